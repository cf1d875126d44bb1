//! Hosts in one process over a network that can lose messages.

use bytes::Bytes;
use proto::services::Consistency::{Session, Strong};
use proto::services::{RaftMessage, RaftService, RaftTransport};
use proto::{GroupId, LogIndex, NodeId, RequestId, RouterIncarnation, WireError};
use replica::simulation::{self, TestDisk};
use replica::{Config, Host, Replica, SchemaEntry, Write, Written};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The group that tests use.
pub const GROUP: GroupId = GroupId(7);

/// Carries messages between hosts, but for pairs that are cut.
#[derive(Default)]
pub struct Network {
    hosts: Mutex<HashMap<NodeId, Weak<Host>>>,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
    lose_every: AtomicU64,
    sent: AtomicU64,
    /// How many bytes of images were sent, and which of their chunks is damaged on its way.
    image_bytes: AtomicU64,
    damage_every: AtomicU64,
    chunks: AtomicU64,
}

/// The first byte of a packet with bytes of an image.
const IMAGE_CHUNK: u8 = 2;

struct Link {
    from: NodeId,
    network: Arc<Network>,
}

impl RaftTransport for Link {
    fn send(&self, to: NodeId, mut messages: Vec<RaftMessage>) {
        let every = self.network.lose_every.load(Ordering::Relaxed);
        messages.retain(|_| {
            let sent = self.network.sent.fetch_add(1, Ordering::Relaxed);
            // Messages come in rounds of the same few: one that is lost each time would be no lossy network.
            let drawn = sent.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            every == 0 || !drawn.is_multiple_of(every)
        });
        if self.network.cut.lock().unwrap().contains(&(self.from, to)) {
            return;
        }
        messages.iter_mut().for_each(|message| self.network.carry(message));
        let host = self.network.hosts.lock().unwrap().get(&to).and_then(Weak::upgrade);
        if let Some(host) = host {
            host.receive(self.from, messages);
        }
    }
}

impl Network {
    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, node: NodeId, nodes: &[NodeId]) {
        let mut cut = self.cut.lock().unwrap();
        for other in nodes.iter().filter(|other| **other != node) {
            cut.insert((node, *other));
            cut.insert((*other, node));
        }
    }

    /// Cuts the way from one node to another.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.cut.lock().unwrap().insert((from, to));
    }

    /// Loses one of so many messages; none if 0.
    pub fn lose_every(&self, every: u64) {
        self.lose_every.store(every, Ordering::Relaxed);
    }

    /// Damages one of so many chunks of images; none if 0.
    pub fn damage_every(&self, every: u64) {
        self.damage_every.store(every, Ordering::Relaxed);
    }

    /// How many bytes of images were sent.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes.load(Ordering::Relaxed)
    }

    fn carry(&self, message: &mut RaftMessage) {
        if message.body.first() != Some(&IMAGE_CHUNK) {
            return;
        }
        self.image_bytes.fetch_add(message.body.len() as u64, Ordering::Relaxed);
        let every = self.damage_every.load(Ordering::Relaxed);
        if every > 0 && self.chunks.fetch_add(1, Ordering::Relaxed).is_multiple_of(every) {
            let mut body = message.body.to_vec();
            let middle = body.len() / 2;
            body[middle] ^= 4;
            message.body = body.into();
        }
    }

    /// Mends everything.
    pub fn heal(&self) {
        self.lose_every(0);
        self.damage_every(0);
        self.cut.lock().unwrap().clear();
    }
}

/// Hosts with a directory each.
pub struct Cluster {
    pub network: Arc<Network>,
    pub nodes: Vec<NodeId>,
    pub hosts: HashMap<NodeId, Arc<Host>>,
    /// What each node's log lies on.
    pub disks: HashMap<NodeId, TestDisk>,
    directory: tempfile::TempDir,
    change: Box<dyn Fn(&mut Config) + Send + Sync>,
}

impl Cluster {
    /// So many hosts, with no group yet.
    pub fn new(count: u64) -> Self {
        Self::with(count, |_| {})
    }

    /// So many hosts with settings of their own.
    pub fn with(count: u64, change: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            network: Arc::default(),
            nodes: nodes.clone(),
            hosts: HashMap::new(),
            disks: nodes.iter().map(|node| (*node, TestDisk::default())).collect(),
            directory,
            change: Box::new(change),
        };
        for node in nodes {
            cluster.start(node);
        }
        cluster
    }

    /// A node's files.
    pub fn data_dir(&self, node: NodeId) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    /// Opens a node's host.
    pub fn start(&mut self, node: NodeId) {
        let mut config = Config::new(node, self.data_dir(node));
        config.tick = Duration::from_millis(20);
        config.max_transaction_bytes = 1 << 20;
        config.checkpoint_bytes = 64 << 10;
        config.hold_bytes = 128 << 10;
        config.log_file_bytes = 1 << 20;
        (self.change)(&mut config);
        let link = Link { from: node, network: self.network.clone() };
        let host = simulation::open_on(config, Arc::new(link), self.disks[&node].clone()).unwrap();
        self.network.hosts.lock().unwrap().insert(node, Arc::downgrade(&host));
        self.hosts.insert(node, host);
    }

    /// Shuts a node's host down.
    pub fn stop(&mut self, node: NodeId) {
        self.network.hosts.lock().unwrap().remove(&node);
        self.hosts.remove(&node).unwrap().shutdown();
    }

    /// Makes the group on every host.
    pub fn create(&self, init: &[&str]) {
        let init: Vec<String> = init.iter().map(|sql| (*sql).to_owned()).collect();
        for node in &self.nodes {
            self.hosts[node].create(GROUP, &self.nodes, &init).unwrap();
        }
    }

    /// A node's replica of the group.
    pub fn replica(&self, node: NodeId) -> Replica {
        self.hosts[&node].replica(GROUP).unwrap()
    }

    /// Waits for a leader among these nodes whom a majority follows.
    pub async fn leader_among(&self, nodes: &[NodeId]) -> Replica {
        let until = Instant::now() + PATIENCE;
        loop {
            for node in nodes {
                let replica = self.replica(*node);
                let ready = replica.snapshot(Strong, Instant::now() + Duration::from_millis(200)).await;
                if ready.is_ok() {
                    return replica;
                }
            }
            assert!(Instant::now() < until, "no leader: {:?}", self.statuses());
            // Something changes at some node before a leader can be there.
            let mut watches: Vec<_> = nodes.iter().map(|node| self.replica(*node).watch()).collect();
            let changes = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
            let any = futures::future::select_all(changes);
            let _ = tokio::time::timeout(Duration::from_millis(50), any).await;
        }
    }

    /// Waits for a leader.
    pub async fn leader(&self) -> Replica {
        self.leader_among(&self.nodes).await
    }

    /// The other nodes.
    pub fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|other| *other != node).collect()
    }

    /// Waits until every replica has applied what the leader has, and checks that all have the same rows.
    pub async fn assert_equal(&self, query: &str) -> String {
        let leader = self.leader().await;
        let index = leader.snapshot(Strong, soon()).await.unwrap().position();
        let mut seen = Vec::new();
        for node in &self.nodes {
            let snapshot = self.replica(*node).snapshot_after(Session, index, soon()).await.unwrap();
            let mut statement = snapshot.connection().prepare(query).unwrap();
            let rows = statement.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
            seen.push(rows.map(|row| row.unwrap().unwrap_or_default()).collect::<Vec<_>>().join("\n"));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "replicas differ: {seen:#?}");
        seen.swap_remove(0)
    }

    /// What every replica is doing.
    pub fn statuses(&self) -> Vec<proto::services::ReplicaStatus> {
        self.hosts.values().flat_map(|host| host.statuses()).collect()
    }
}

/// When to give up.
pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A request's name.
pub fn request(sequence: u64) -> RequestId {
    RequestId { router: RouterIncarnation(9), sequence }
}

/// A write of one statement, that tells how many rows it changed.
pub fn sql(sql: &str) -> Write {
    let sql = sql.to_owned();
    Write {
        request: None,
        settled: 0,
        deadline: soon(),
        run: Box::new(move |connection| {
            let rows = connection.prepare_cached(&sql).and_then(|mut statement| statement.execute([]));
            rows.map(|rows| Bytes::from(rows.to_string())).map_err(dialect::sqlite::error)
        }),
    }
}

/// Runs one statement.
pub async fn write(replica: &Replica, statement: &str) -> Result<Written, WireError> {
    replica.write(sql(statement)).await
}

/// Runs schema statements.
pub async fn schema(replica: &Replica, id: u64, statements: &[&str]) -> Result<LogIndex, WireError> {
    replica
        .schema(SchemaEntry {
            id: (id, 1),
            statements: statements.iter().map(|sql| (*sql).to_owned()).collect(),
            require_empty: Vec::new(),
            notes: vec![("schema".into(), Bytes::from(id.to_string()))],
            deadline: soon(),
        })
        .await
}

/// One number, as a snapshot sees it.
pub async fn number(replica: &Replica, consistency: proto::services::Consistency, query: &str) -> i64 {
    let snapshot = replica.snapshot(consistency, soon()).await.unwrap();
    snapshot.connection().query_row(query, [], |row| row.get(0)).unwrap()
}

/// The same, of any replica once it has an index.
pub async fn number_after(replica: &Replica, index: LogIndex, query: &str) -> i64 {
    let snapshot = replica.snapshot_after(Session, index, soon()).await.unwrap();
    snapshot.connection().query_row(query, [], |row| row.get(0)).unwrap()
}
