//! What a node does once it belongs to a cluster: replicas, shards, its part of the coordinator, its part in the whole.

use super::Core;
use crate::failure::Failure;
use crate::identity::{Address, Directory, Founded, Member};
use crate::peers::{NodePeers, Process, Services};
use crate::tuning::Tuned;
use coordinator::Coordinator;
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use proto::machine::Machine;
use proto::services::{CoordinatorService, RaftService, ReplicaService, ShardService};
use proto::transport::{self, Offer};
use proto::{ClusterId, GroupId, NodeId};
use replica::Host;
use shardnode::{Agent, ShardNode};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often a node looks whether it has got or lost a replica of the coordinator, and has news for its directory.
const LOOK: Duration = Duration::from_millis(250);

/// How long handing over may take.
const HAND_OVER: Duration = Duration::from_secs(3);

/// What a node does once it belongs to a cluster.
pub struct Running {
    cluster: ClusterId,
    node: NodeId,
    host: Arc<Host>,
    shards: Option<Arc<ShardNode>>,
    coordinator: Mutex<Option<Arc<Coordinator>>>,
    founded: Option<Founded>,
    peers: Arc<NodePeers>,
    process: Arc<Process>,
    offer: Offer,
    tasks: Mutex<JoinSet<()>>,
}

impl Running {
    /// Opens what the node has on disk, and joins in.
    pub async fn open(
        core: &Arc<Core>,
        directory: &mut Directory,
        member: &Member,
    ) -> Result<Arc<Running>, Failure> {
        let Member { cluster, node, founded, .. } = member.clone();
        let config = core.settings.tuned.replica(node, directory.path().to_owned());
        let transport = core.peers.clone();
        let opening = tokio::task::spawn_blocking(move || Host::open(config, transport)).await;
        let host = opening.map_err(|error| Failure::Runtime(std::io::Error::other(error)))??;
        let roles = core.settings.roles;
        let shards = roles.shardnode.then(|| ShardNode::new(host.clone(), shardnode::Config::new(node)));
        let running = Arc::new(Running {
            cluster,
            node,
            host,
            shards,
            coordinator: Mutex::new(None),
            founded,
            peers: core.peers.clone(),
            process: core.process.clone(),
            offer: core.offer.clone(),
            tasks: Mutex::new(JoinSet::new()),
        });
        if running.founded.as_ref().is_some_and(|founded| !founded.made) {
            let config = running.coordinator_config(&core.settings.tuned);
            let coordinator = Coordinator::new(&running.host, core.peers.clone(), config)?;
            *running.coordinator.lock() = Some(coordinator);
            directory.change(|record| {
                if let Some(founded) = record.member.as_mut().and_then(|member| member.founded.as_mut()) {
                    founded.made = true;
                }
            })?;
        }
        running.attend(core);
        running.register();
        let agent = Agent {
            node: core.settings.registered(node),
            host: running.host.clone(),
            shards: running.shards.clone(),
            // This process has none yet.
            former: directory.record().routers.clone(),
            peers: core.peers.clone(),
            heard: {
                let core = Arc::downgrade(core);
                Box::new(move |state| {
                    if let Some(core) = core.upgrade() {
                        core.peers.follow(state);
                        core.note_heard();
                    }
                })
            },
            machine: Machine::default(),
        };
        let mut tasks = running.tasks.lock();
        tasks.spawn(agent.run());
        tasks.spawn(look(Arc::downgrade(&running), Arc::downgrade(core)));
        drop(tasks);
        Ok(running)
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    fn coordinator_config(&self, tuned: &Tuned) -> coordinator::Config {
        let config = match &self.founded {
            Some(Founded { voters, nodes, shards, replicas, .. }) => coordinator::Config {
                expected_nodes: *nodes,
                shards: *shards,
                replicas: *replicas,
                ..coordinator::Config::new(self.node, voters.clone())
            },
            None => coordinator::Config::new(self.node, vec![self.node]),
        };
        tuned.coordinator(coordinator::Config { cluster: self.cluster, ..config })
    }

    /// Works for the coordinator exactly while this node has a replica of it. Says whether that has changed.
    fn attend(&self, core: &Core) -> bool {
        let mut coordinator = self.coordinator.lock();
        let replica = self.host.replica(GroupId::COORDINATOR);
        let same = match (&replica, &*coordinator) {
            (Some(replica), Some(coordinator)) => coordinator.works_on(replica),
            (Some(_), None) | (None, Some(_)) => false,
            (None, None) => true,
        };
        if same {
            return false;
        }
        if let Some(gone) = coordinator.take() {
            gone.shutdown();
        }
        *coordinator = replica.map(|replica| {
            let config = self.coordinator_config(&core.settings.tuned);
            Coordinator::open(replica, self.peers.clone(), config)
        });
        true
    }

    /// Tells this process and the others what there is here.
    fn register(&self) {
        let services = Services {
            host: self.host.clone(),
            shard: self.shards.clone().map(|shards| shards as Arc<dyn ShardService>),
            coordinator: self.coordinator_service(),
        };
        self.process.put(self.node, services);
        self.offer.change(|services| self.offer(services));
    }

    fn coordinator_service(&self) -> Option<Arc<dyn CoordinatorService>> {
        self.coordinator.lock().clone().map(|coordinator| coordinator as Arc<dyn CoordinatorService>)
    }

    fn offer(&self, services: &mut transport::Services) {
        services.cluster = Some(self.cluster);
        services.node = Some(self.node);
        services.shard = self.shards.clone().map(|shards| shards as Arc<dyn ShardService>);
        services.replica = Some(self.host.clone() as Arc<dyn ReplicaService>);
        services.coordinator = self.coordinator_service();
        services.raft = Some(self.host.clone() as Arc<dyn RaftService>);
    }

    /// What its replicas, its shards and its part of the coordinator have done, and how they are.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let mut families = self.host.metrics();
        families.extend(self.shards.as_ref().map(|shards| shards.metrics()).unwrap_or_default());
        families.extend(self.coordinator.lock().as_ref().map(|it| it.metrics()).unwrap_or_default());
        families
    }

    /// Hands over to others what this node leads. What nobody takes in time is left to an election.
    pub async fn hand_over(&self) {
        self.host.hand_over(Instant::now() + HAND_OVER).await;
    }

    /// Ends what it does by itself.
    pub async fn stop_tasks(&self) {
        if let Some(coordinator) = self.coordinator.lock().take() {
            coordinator.shutdown();
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }

    /// Closes the replicas.
    pub async fn close(&self) {
        self.process.remove(self.node);
        let host = self.host.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || host.shutdown()).await {
            tracing::error!(%error, "closing the replicas has failed");
        }
    }
}

/// Looks after what changes seldom: whether the node holds a replica of the coordinator, and who else does.
async fn look(running: Weak<Running>, core: Weak<Core>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (Some(running), Some(core)) = (running.upgrade(), core.upgrade()) else { return };
        if running.attend(&core) {
            running.register();
        }
        let here = core.settings.registered(running.node);
        let coordinators: Vec<Address> =
            core.peers.coordinator_nodes(&here).iter().map(Address::from).collect();
        let Ok(mut directory) = core.directory.try_lock() else { continue };
        let changed = directory.change(|record| {
            if let Some(member) = &mut record.member
                && !coordinators.is_empty()
            {
                member.coordinators = coordinators;
            }
        });
        if let Err(error) = changed {
            tracing::warn!(%error, "the coordinators' addresses can't be kept");
        }
    }
}
