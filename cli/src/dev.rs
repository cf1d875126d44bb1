//! `shoal dev`: a whole cluster in one process.
//!
//! Every node has its directory, its replicas and its admin address as in a real cluster; only the sockets between
//! them are missing ([`crate::local`]). Node 1's router answers Postgres clients. The addresses are printed once every
//! shard has a leader, so whoever reads them can begin.

use crate::arguments::Dev;
use crate::data_dir::{DataDir, Shape, WantedShape};
use crate::failure::Failure;
use crate::local::LocalPeers;
use crate::node::{self, Node};
use futures::StreamExt;
use proto::services::ClusterState;
use proto::topology::Sharding;
use proto::{GroupId, NodeId};
use router::Router;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long the cluster may take until all its shards have leaders.
const READY: Duration = Duration::from_secs(60);

/// Runs the cluster until Ctrl-C or SIGTERM.
pub async fn run(options: Dev) -> Result<(), Failure> {
    if !options.listen.ip().is_loopback() && !options.insecure {
        return Err(Failure::Insecure(options.listen));
    }
    let wanted = WantedShape { nodes: options.nodes, shards: options.shards, replicas: options.replicas };
    let nodes = options.nodes.unwrap_or(3);
    if options.nodes.is_some() && options.replicas.is_some_and(|replicas| replicas > nodes) {
        return Err(Failure::Arguments(format!("--replicas may not be more than --nodes, which is {nodes}")));
    }
    let clients = listen(options.listen).await?;
    let data = DataDir::open(&options.data_dir, wanted, Shape::new(nodes, 2, nodes.min(3)))?;
    let cluster = start(&data).await?;
    let ready = wait_until_ready(&cluster[0]).await;
    let served = match ready {
        Ok(()) => serve(&cluster[0], clients).await,
        Err(failure) => Err(failure),
    };
    for node in cluster {
        node.shutdown().await;
    }
    served
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|source| Failure::Listen { address, source })
}

async fn start(data: &DataDir) -> Result<Vec<Node>, Failure> {
    let shape = data.shape();
    let ids: Vec<NodeId> = (1..=shape.nodes).map(|number| NodeId(number.into())).collect();
    // A coordinator group of more than five would only be slower.
    let coordinators = &ids[..ids.len().min(5)];
    let peers = Arc::new(LocalPeers::default());
    let mut nodes = Vec::new();
    for (number, id) in (1..).zip(&ids) {
        let plan = node::Plan {
            id: *id,
            directory: data.node(number),
            coordinators: coordinators.to_vec(),
            nodes: shape.nodes,
            shards: shape.shards,
            replicas: shape.replicas,
        };
        nodes.push(Node::open(plan, peers.clone())?);
    }
    peers.fill(nodes.iter().map(|node| (node.id(), node.services())).collect());
    for node in &mut nodes {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen(address).await?;
        node.start(listener).map_err(|source| Failure::Listen { address, source })?;
    }
    Ok(nodes)
}

/// Waits until the bootstrapped keyspaces are there and every group has a leader.
async fn wait_until_ready(node: &Node) -> Result<(), Failure> {
    let mut missing = "the coordinator has no leader".to_owned();
    let waiting = async {
        let mut states = node.watch().await?;
        while let Some(state) = states.next().await {
            match what_is_missing(&state) {
                None => return Ok(()),
                Some(what) => missing = what,
            }
        }
        Ok(())
    };
    match tokio::time::timeout(READY, waiting).await {
        Ok(result) => result,
        Err(_) => Err(Failure::NotReady(READY.as_secs(), missing)),
    }
}

fn what_is_missing(state: &ClusterState) -> Option<String> {
    let keyspaces = || state.topology.keyspaces.values();
    let bootstrapped =
        keyspaces().any(|k| k.name == "main") && keyspaces().any(|k| k.sharding == Sharding::Single);
    if !bootstrapped || state.leaders.get(GroupId::COORDINATOR).is_none() {
        return Some("the coordinator has not set up the cluster".to_owned());
    }
    let leaderless = state.topology.shards.values().find(|shard| state.leaders.get(shard.group).is_none())?;
    Some(format!("shard {} has no leader", state.topology.shard_name(leaderless.id)))
}

async fn serve(node: &Node, clients: TcpListener) -> Result<(), Failure> {
    let address = clients.local_addr().map_err(Failure::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Runtime)?;
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let router = Router::new(router::Config::default(), node.peers());
    announce(address, node.admin_address());
    router.serve(clients, stop).await;
    Ok(())
}

fn announce(address: SocketAddr, admin: SocketAddr) {
    // Someone who closed stdout doesn't want to read it.
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "psql -h {} -p {} -U shoal shoal", address.ip(), address.port()));
    drop(writeln!(out, "admin: {admin}"));
    drop(out.flush());
}
