//! One node: its replicas, its shards, its part of the coordinator, and the socket where others reach them.
//!
//! In come a directory, the peers and an admin listener; out come the node's services. It must not know SQL, or what
//! a shard holds.

use crate::failure::Failure;
use crate::local::{LocalPeers, LocalTransport, Services};
use coordinator::Coordinator;
use proto::services::{
    BoxStream, ClusterState, CoordinatorService, Peers, RaftService, ReplicaService, ServiceResult,
    ShardService,
};
use proto::topology::Roles;
use proto::{NodeId, transport};
use replica::Host;
use shardnode::{Agent, ShardNode};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a node is to be.
pub struct Plan {
    /// Its id.
    pub id: NodeId,
    /// Where its files live.
    pub directory: PathBuf,
    /// The nodes that hold the coordinator's replicas.
    pub coordinators: Vec<NodeId>,
    /// How many nodes the cluster has.
    pub nodes: u32,
    /// How many shards keyspace `main` begins with.
    pub shards: u32,
    /// How many replicas each shard has.
    pub replicas: u32,
}

/// A node that runs.
pub struct Node {
    id: NodeId,
    admin: SocketAddr,
    host: Arc<Host>,
    shards: Arc<ShardNode>,
    coordinator: Option<Arc<Coordinator>>,
    peers: Arc<LocalPeers>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Node {
    /// Opens what the node has on disk. Nobody is served before [`Node::start`].
    pub fn open(plan: Plan, peers: Arc<LocalPeers>) -> Result<Node, Failure> {
        let Plan { id, directory, coordinators, nodes, shards, replicas } = plan;
        let transport = Arc::new(LocalTransport { from: id, peers: peers.clone() });
        let host = Host::open(replica::Config::new(id, directory), transport)?;
        let coordinator = if coordinators.contains(&id) {
            let defaults = coordinator::Config::new(id, coordinators);
            let config = coordinator::Config { expected_nodes: nodes, shards, replicas, ..defaults };
            Some(Coordinator::new(&host, peers.clone(), config)?)
        } else {
            None
        };
        let shards = ShardNode::new(host.clone(), shardnode::Config::new(id));
        let admin = SocketAddr::from(([127, 0, 0, 1], 0));
        let stop = watch::Sender::new(false);
        Ok(Node { id, admin, host, shards, coordinator, peers, tasks: JoinSet::new(), stop })
    }

    /// Serves others on `listener`, and joins the cluster. The peers must know every node of this process by now.
    pub fn start(&mut self, listener: TcpListener) -> std::io::Result<()> {
        self.admin = listener.local_addr()?;
        let services = transport::Services {
            node: Some(self.id),
            shard: Some(self.shards.clone()),
            replica: Some(self.host.clone() as Arc<dyn ReplicaService>),
            coordinator: self.coordinator.clone().map(|c| c as Arc<dyn CoordinatorService>),
            raft: Some(self.host.clone() as Arc<dyn RaftService>),
            ..transport::Services::default()
        };
        let mut stopped = self.stop.subscribe();
        let until = async move {
            // A node that was dropped without a shutdown ends, too.
            drop(stopped.wait_for(|stop| *stop).await);
        };
        self.tasks.spawn(async move {
            if let Err(error) = transport::serve(listener, services, until).await {
                tracing::error!(%error, "the node's own socket is gone");
            }
        });
        let roles =
            Roles { router: self.id == NodeId(1), shardnode: true, coordinator: self.coordinator.is_some() };
        let agent = Agent {
            node: proto::topology::Node { id: self.id, address: self.admin.to_string(), roles },
            host: self.host.clone(),
            shards: Some(self.shards.clone()),
            peers: self.peers.clone(),
        };
        self.tasks.spawn(agent.run());
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where its socket is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The way to all nodes.
    pub fn peers(&self) -> Arc<dyn Peers> {
        self.peers.clone()
    }

    /// Its services, for the others in this process.
    pub fn services(&self) -> Services {
        Services {
            host: self.host.clone(),
            shard: self.shards.clone() as Arc<dyn ShardService>,
            coordinator: self.coordinator.clone().map(|c| c as Arc<dyn CoordinatorService>),
        }
    }

    /// The cluster's state, as any coordinator tells it.
    pub async fn watch(&self) -> ServiceResult<BoxStream<ClusterState>> {
        match self.peers.coordinators().into_iter().next() {
            Some((_, coordinator)) => coordinator.watch().await,
            None => Err(proto::WireError::internal("the cluster has no coordinator")),
        }
    }

    /// Ends it: no more requests, threads joined, files closed.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(coordinator) = &self.coordinator {
            coordinator.shutdown();
        }
        self.tasks.shutdown().await;
        let host = self.host.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || host.shutdown()).await {
            tracing::error!(%error, "closing the replicas has failed");
        }
    }
}
