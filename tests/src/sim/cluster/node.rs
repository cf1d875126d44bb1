//! A node: everything that a `shoal` process runs, on disks, a clock and a network of the simulation.
//!
//! It starts, crashes and starts again; its disks outlive it. It must never know why it crashes.

use super::super::clock::{NodeClock, WorldClock};
use super::super::file_disk::FileDisk;
use super::super::log_disk::LogDisk;
use super::super::random::Random;
use super::super::trace::{SECOND, Time};
use super::plan::Setup;
use super::tasks::Tasks;
use super::wires::Port;
use coordinator::Coordinator;
use proto::machine::Machine;
use proto::services::{
    CoordinatorService, Peers, RaftMessage, RaftService, RaftTransport, ReplicaService, ShardService,
};
use proto::topology::{Node as Registered, Roles};
use proto::transport::{ClientConfig, NodeClient, Offer, Services, simulation};
use proto::{ClusterId, GroupId, NodeId, RouterIncarnation};
use replica::Host;
use replica::simulation::Loops;
use router::Router;
use shardnode::{Agent, ShardNode};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The unit of Raft's time.
const TICK: Duration = Duration::from_millis(100);
/// The time of day when a world begins, in seconds since 1970.
const BEGIN: u64 = 1_800_000_000;
const CLUSTER: ClusterId = ClusterId(0x5ea);

/// What a node's replicas have sent and the network has not yet taken.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<(u64, RaftMessage)>>>);

impl RaftTransport for Outbox {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let mut outbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.extend(messages.into_iter().map(|message| (to.0, message)));
    }
}

/// What a node offers to itself.
#[derive(Clone)]
struct Own {
    host: Arc<Host>,
    shards: Arc<ShardNode>,
    coordinator: Arc<Coordinator>,
}

/// A node's way to all nodes.
struct NodePeers {
    node: NodeId,
    others: BTreeMap<NodeId, Arc<NodeClient>>,
    /// Nothing until all is made, and once the process is gone.
    own: Mutex<Option<Own>>,
}

impl NodePeers {
    fn own<T>(&self, take: impl FnOnce(&Own) -> T) -> Option<T> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(take)
    }

    fn set_own(&self, own: Option<Own>) {
        let before = std::mem::replace(&mut *self.own.lock().unwrap_or_else(PoisonError::into_inner), own);
        drop(before);
    }
}

impl Peers for NodePeers {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        if node == self.node {
            return self.own(|own| own.shards.clone() as Arc<dyn ShardService>);
        }
        self.others.get(&node).map(|client| client.clone() as Arc<dyn ShardService>)
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        if node == self.node {
            return self.own(|own| own.host.clone() as Arc<dyn ReplicaService>);
        }
        self.others.get(&node).map(|client| client.clone() as Arc<dyn ReplicaService>)
    }

    fn is_here(&self, node: NodeId) -> bool {
        node == self.node
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        let own = self.own(|own| (self.node, own.coordinator.clone() as Arc<dyn CoordinatorService>));
        let others = self.others.iter();
        own.into_iter().chain(others.map(|(node, client)| (*node, client.clone() as Arc<_>))).collect()
    }
}

/// A node's process.
pub struct Process {
    /// Its tasks.
    pub tasks: Tasks,
    /// All replicas.
    pub host: Arc<Host>,
    /// What is turned by hand.
    pub loops: Loops,
    /// What answers its clients.
    pub router: Arc<Router>,
    /// Its shards.
    pub shards: Arc<ShardNode>,
    /// Its part of the coordinator.
    pub coordinator: Arc<Coordinator>,
    /// What it offers to other nodes.
    pub offer: Offer,
    /// Its end of the streams to other nodes.
    pub port: Port,
    outbox: Outbox,
    peers: Arc<NodePeers>,
}

impl Process {
    /// Takes what its replicas have sent.
    pub fn sent(&self) -> Vec<(u64, RaftMessage)> {
        std::mem::take(&mut self.outbox.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The time of its tasks has passed: it is gone, and so is all that it held.
    fn end(self) {
        let Process { tasks, host, loops, router, shards, coordinator, offer, port, outbox, peers } = self;
        peers.set_own(None);
        loops.crash();
        drop(tasks);
        offer.change(|services| *services = Services::default());
        drop((router, coordinator, shards, port, outbox, peers));
        host.shutdown();
    }
}

/// A node.
pub struct Node {
    /// Its number.
    pub id: u64,
    /// Its clock.
    pub clock: NodeClock,
    /// Its Raft log.
    pub log: Arc<LogDisk>,
    /// Its databases.
    pub files: FileDisk,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// Counts its processes.
    pub life: u64,
    /// The routers of all its processes.
    pub routers: Vec<RouterIncarnation>,
    /// Whether its process isn't given any turn.
    pub paused: bool,
    /// How long whatever it does waits for its turn at most.
    pub turn_delay: Time,
    /// When turns come that are decided on: of consensus.
    pub turn_at: Option<Time>,
    /// Of its next tick.
    pub tick_at: Option<Time>,
    /// Of images.
    pub images_at: Option<Time>,
    /// Of its tasks.
    pub run_at: Option<Time>,
    /// Of its engines.
    pub step_at: BTreeMap<GroupId, Time>,
    /// How long it stays down after its next crash.
    pub down_for: Time,
    /// How long its log needs for a sync at most.
    pub disk_delay: Time,
    /// Until when its consensus waits for its log.
    pub busy_until: Time,
    /// It dies when it has sent so many more messages.
    pub dies_after: Option<u64>,
    founded: bool,
    root: PathBuf,
    setup: Setup,
    seed: u64,
}

impl Node {
    /// A node whose disks are empty.
    pub fn new(id: u64, root: &Path, world: &WorldClock, setup: Setup, seed: u64) -> Self {
        let mut random = Random::stream(seed, "node", id);
        let root = root.join(id.to_string());
        Self {
            id,
            clock: NodeClock::new(world.clone(), random.within(SECOND..1_000 * SECOND)),
            log: Arc::new(LogDisk::new(root.join("log"))),
            files: FileDisk::new(root.join("0")),
            process: None,
            life: 0,
            routers: Vec::new(),
            paused: false,
            turn_delay: setup.turn_delay,
            turn_at: None,
            tick_at: None,
            images_at: None,
            run_at: None,
            step_at: BTreeMap::new(),
            down_for: SECOND,
            disk_delay: 0,
            busy_until: 0,
            dies_after: None,
            founded: false,
            root,
            setup,
            seed,
        }
    }

    fn replica_config(&self) -> replica::Config {
        let mut config = replica::Config::new(NodeId(self.id), self.files.directory());
        config.tick = TICK;
        config.seed = self.seed;
        config.checkpoint_bytes = self.setup.checkpoint_bytes;
        config.hold_bytes = 2 * self.setup.checkpoint_bytes;
        config.hold_snapshots = Duration::ZERO;
        config.log_keep_bytes = self.setup.log_keep_bytes;
        config.log_cut_entries = 8;
        config.sleep_ticks = self.setup.sleep_ticks;
        let lag = |most| (Duration::ZERO, Duration::from_nanos(most));
        config.apply_lag = self.setup.apply_lag.map(lag);
        config.image_chunk_bytes = 8 << 10;
        config.end_reads_bytes = 8 * self.setup.checkpoint_bytes;
        config
    }

    fn machine(&self) -> Machine {
        let clock = self.clock.clone();
        let random = Mutex::new(Random::stream(self.seed, "machine", self.id << 32 | self.life));
        Machine::simulated(
            move || Duration::from_secs(BEGIN) + Duration::from_nanos(clock.now()),
            move || random.lock().unwrap_or_else(PoisonError::into_inner).draw(),
        )
    }

    /// Starts its process.
    pub fn start(&mut self, all: &[NodeId]) -> Result<(), String> {
        let id = NodeId(self.id);
        self.life += 1;
        self.busy_until = 0;
        (self.turn_at, self.tick_at, self.images_at, self.run_at) = (None, None, None, None);
        self.step_at.clear();
        (self.paused, self.dies_after) = (false, None);
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let tasks = Tasks::new(self.clock.now()).map_err(|error| text(&error))?;
        let entered = tasks.enter();
        let outbox = Outbox::default();
        let clock = self.clock.for_host();
        let (host, loops) = replica::simulation::open(
            self.replica_config(),
            clock,
            self.log.clone(),
            Arc::new(outbox.clone()),
        )
        .map_err(|error| text(&error))?;
        let number = self.id << 32 | self.life;
        let port = Port::new(number << 24, Random::stream(self.seed, "port", number));
        let client = |node: &NodeId| {
            let config = ClientConfig { cluster: Some(CLUSTER), ..ClientConfig::default() };
            (*node, Arc::new(simulation::client(Arc::new(port.clone()), *node, config)))
        };
        let others = all.iter().filter(|node| **node != id).map(client).collect();
        let peers = Arc::new(NodePeers { node: id, others, own: Mutex::default() });
        let machine = self.machine();
        let mut config = coordinator::Config::new(id, all.to_vec());
        config.cluster = CLUSTER;
        config.shards = self.setup.shards;
        config.finish_after = Duration::from_nanos(self.setup.finish_after);
        config.abort_after = Duration::from_nanos(self.setup.abort_after);
        config.machine = machine.clone();
        let coordinator = match host.replica(GroupId::COORDINATOR) {
            Some(replica) if self.founded => Coordinator::open(replica, peers.clone(), config),
            _ => Coordinator::new(&host, peers.clone(), config).map_err(|error| text(&error))?,
        };
        self.founded = true;
        let mut config = shardnode::Config::new(id);
        config.machine = machine.clone();
        config.stage_bytes = self.setup.stage_bytes;
        // A thread that waits for its reader has no place here: all results fit one batch.
        (config.batch_bytes, config.batch_rows) = (64 << 20, u32::MAX);
        let shards = ShardNode::new(host.clone(), config);
        let config = router::Config {
            machine: machine.clone(),
            retry_timeout: Duration::from_nanos(self.setup.retry_timeout),
            parallel_commit: self.setup.parallel_commit,
            ..router::Config::default()
        };
        let router = Arc::new(Router::new(config, peers.clone()));
        let own = Own { host: host.clone(), shards: shards.clone(), coordinator: coordinator.clone() };
        peers.set_own(Some(own));
        let offer = Offer::from(Services {
            cluster: Some(CLUSTER),
            node: Some(id),
            bootstrap: None,
            shard: Some(shards.clone()),
            replica: Some(host.clone()),
            coordinator: Some(coordinator.clone()),
            raft: Some(host.clone() as Arc<dyn RaftService>),
        });
        let roles = Roles { router: true, shardnode: true, coordinator: true };
        let agent = Agent {
            node: Registered {
                id,
                address: format!("simulated:{id}"),
                roles,
                zone: String::new(),
                draining: false,
            },
            host: host.clone(),
            shards: Some(shards.clone()),
            former: self.routers.clone(),
            peers: peers.clone(),
            heard: Box::new(|_| ()),
            machine,
        };
        self.routers.push(router.incarnation());
        tokio::spawn(agent.run());
        tokio::spawn(router.follow());
        drop(entered);
        self.process =
            Some(Process { tasks, host, loops, router, shards, coordinator, offer, port, outbox, peers });
        Ok(())
    }

    /// Ends its process as a power failure does. Says what its log lost.
    pub fn crash(&mut self, random: &mut Random) -> Result<String, String> {
        self.life += 1;
        let left = self.root.join(self.life.to_string());
        let before = self.files.directory().to_owned();
        let files = std::mem::replace(&mut self.files, FileDisk::new(self.root.join("none")));
        self.files = files.crash(left, random).map_err(|error| error.to_string())?;
        if let Some(process) = self.process.take() {
            process.end();
        }
        fs::remove_dir_all(before).map_err(|error| error.to_string())?;
        let (unsynced, kept) = self.log.crash(random);
        self.paused = false;
        Ok(format!("its log keeps {kept} of {unsynced} unsynced batches"))
    }

    /// Whether a disk killed its process.
    pub fn has_died(&self) -> bool {
        self.log.has_died() || self.files.has_died()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end();
        }
    }
}
