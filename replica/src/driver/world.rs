//! Nodes whose clock, network and turns are a test's: nothing happens but when it says so.

use crate::clock::Clock;
use crate::log::RaftEngineLog;
use crate::simulation::{Loops, open};
use crate::{Config, Host, Replica, Stage, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::services::{RaftMessage, RaftService, RaftTransport};
use proto::{GroupId, NodeId};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const GROUP: GroupId = GroupId(3);
pub const TICK: Duration = Duration::from_millis(100);
/// An election takes no longer, from the leader's last word.
pub const ELECTION: Duration = Duration::from_millis(2300);

/// What is on its way.
#[derive(Default)]
pub struct Wire {
    pub messages: Mutex<VecDeque<(NodeId, NodeId, RaftMessage)>>,
    pub sent: AtomicU64,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
}

struct Link(NodeId, Arc<Wire>);

impl RaftTransport for Link {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        self.1.sent.fetch_add(messages.len() as u64, Ordering::Relaxed);
        let mut wire = self.1.messages.lock();
        wire.extend(messages.into_iter().map(|message| (self.0, to, message)));
    }
}

/// A host and its loops.
pub struct Node {
    pub host: Arc<Host>,
    pub loops: Loops,
    pub log: Arc<RaftEngineLog>,
}

/// Nodes whose clock, network and turns are the test's.
pub struct World {
    pub nanos: Arc<AtomicU64>,
    pub wire: Arc<Wire>,
    pub nodes: BTreeMap<NodeId, Node>,
    directory: tempfile::TempDir,
    /// Nodes that get no turn, as if they were stopped.
    frozen: Mutex<HashSet<NodeId>>,
    /// Nodes whose engines get no turn.
    stalled: Mutex<HashSet<NodeId>>,
    /// Nodes that messages reach slowly, and what is on its way to them.
    slow: Mutex<BTreeMap<NodeId, VecDeque<(NodeId, RaftMessage)>>>,
    sent_bytes: Mutex<BTreeMap<NodeId, usize>>,
    change: fn(&mut Config),
}

impl World {
    /// So many nodes with one group.
    pub fn new(count: u64) -> Self {
        Self::with(count, |_| {})
    }

    /// So many nodes with one group, and settings of their own.
    pub fn with(count: u64, change: fn(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (nanos, wire, nodes) = Default::default();
        let (frozen, stalled, slow, sent_bytes) = Default::default();
        let mut world = Self { nanos, wire, nodes, directory, frozen, stalled, slow, sent_bytes, change };
        let members: Vec<NodeId> = (1..=count).map(NodeId).collect();
        for node in &members {
            world.start(*node);
        }
        let init = [
            "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY) STRICT".to_owned(),
            "CREATE TABLE t2 (c1 INTEGER PRIMARY KEY, c2 BLOB) STRICT".to_owned(),
        ];
        for node in &members {
            world.nodes[node].host.create(GROUP, &members, &init).unwrap();
        }
        world
    }

    /// Opens a node's host.
    pub fn start(&mut self, node: NodeId) {
        let data_dir = self.directory.path().join(node.to_string());
        std::fs::create_dir_all(&data_dir).unwrap();
        let log = Arc::new(RaftEngineLog::open(&data_dir.join("log"), 1 << 20).unwrap());
        let nanos = self.nanos.clone();
        let clock = Clock::simulated(move || Duration::from_nanos(nanos.load(Ordering::Relaxed)));
        let mut config = Config { tick: TICK, ..Config::new(node, data_dir) };
        (self.change)(&mut config);
        let link = Arc::new(Link(node, self.wire.clone()));
        let (host, loops) = open(config, clock, log.clone(), link).unwrap();
        self.nodes.insert(node, Node { host, loops, log });
    }

    /// A node crashes and is started again.
    pub fn restart(&mut self, node: NodeId) {
        let stopped = self.nodes.remove(&node).unwrap();
        stopped.loops.crash();
        drop(stopped);
        self.start(node);
    }

    /// A node crashes, and its group's directory isn't there when it is started again.
    pub fn restart_without_files(&mut self, node: NodeId) {
        let stopped = self.nodes.remove(&node).unwrap();
        stopped.loops.crash();
        drop(stopped);
        let groups = self.directory.path().join(node.to_string()).join("groups");
        std::fs::remove_dir_all(groups.join(GROUP.to_string())).unwrap();
        self.start(node);
    }

    /// A node's replica.
    pub fn replica(&self, node: NodeId) -> Replica {
        self.nodes[&node].host.replica(GROUP).unwrap()
    }

    /// All replicas.
    pub fn replicas(&self) -> Vec<Replica> {
        self.nodes.keys().map(|node| self.replica(*node)).collect()
    }

    /// Lets everything happen that happens now.
    pub async fn settle(&self) {
        loop {
            tokio::task::yield_now().await;
            let mut worked = false;
            for (id, node) in &self.nodes {
                if self.frozen.lock().contains(id) {
                    continue;
                }
                node.loops.turn_consensus();
                let stalled = self.stalled.lock().contains(id);
                for group in node.loops.engines().into_iter().filter(|_| !stalled) {
                    while node.loops.step_engine(group) {
                        worked = true;
                    }
                }
                node.loops.turn_consensus();
                let due = node.loops.next_images().is_some_and(|due| due <= self.now());
                worked |= node.loops.turn_images() || due;
            }
            let messages = std::mem::take(&mut *self.wire.messages.lock());
            if messages.is_empty() && !worked {
                return;
            }
            for (from, to, message) in messages {
                *self.sent_bytes.lock().entry(to).or_default() += message.body.len();
                if let Some(waiting) = self.slow.lock().get_mut(&to) {
                    waiting.push_back((from, message));
                    continue;
                }
                if !self.wire.cut.lock().contains(&(from, to))
                    && let Some(node) = self.nodes.get(&to)
                {
                    node.host.receive(from, vec![message]);
                }
            }
        }
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        let step = Duration::from_millis(20);
        let mut passed = Duration::ZERO;
        while passed < time {
            self.nanos.fetch_add(step.as_nanos() as u64, Ordering::Relaxed);
            passed += step;
            self.settle().await;
        }
    }

    /// The only one that leads.
    pub fn leader(&self) -> Replica {
        let leaders: Vec<_> = self.replicas().into_iter().filter(Replica::is_leader).collect();
        assert_eq!(leaders.len(), 1, "{:?}", self.replicas().iter().map(Replica::status).collect::<Vec<_>>());
        leaders[0].clone()
    }

    /// Inserts a row.
    pub async fn write(&self, replica: &Replica, number: u64) -> Result<u64, proto::WireError> {
        let insert = "INSERT INTO t1 VALUES (?1)";
        self.run(replica, move |connection| connection.execute(insert, [number as i64])).await
    }

    async fn run(
        &self,
        replica: &Replica,
        execute: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) -> Result<u64, proto::WireError> {
        let replica = replica.clone();
        let run = Box::new(move |stage: &Stage<'_>| {
            execute(stage).map(|_| Bytes::new()).map_err(dialect::sqlite::error)
        });
        let write = Write { request: None, settled: 0, deadline: later(), run };
        let written = tokio::spawn(async move { replica.write(write).await });
        while !written.is_finished() {
            self.settle().await;
        }
        Ok(written.await.unwrap()?.index.0)
    }

    /// Inserts a row of so many bytes.
    pub async fn write_bytes(
        &self,
        replica: &Replica,
        number: u64,
        bytes: usize,
    ) -> Result<u64, proto::WireError> {
        self.run(replica, move |connection| {
            // What can't be made shorter.
            connection.execute("INSERT INTO t2 VALUES (?1, randomblob(?2))", [number as i64, bytes as i64])
        })
        .await
    }

    /// How many rows a node has, and how many bytes of them, in the database as it is.
    pub fn rows(&self, node: NodeId) -> (i64, i64) {
        let reader = self.replica(node).shared().readers.open(None).unwrap();
        let sql = "SELECT count(*), coalesce(sum(length(c2) + unicode(hex(c2))), 0) FROM t2";
        let rows = reader.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        self.replica(node).shared().give_back(reader);
        rows
    }

    /// Has so much time pass at once, for whoever looks at a clock next. For closures that take long.
    pub fn delay(&self) -> impl Fn(Duration) + Send + use<> {
        let nanos = self.nanos.clone();
        move |time| {
            nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// What the nodes' clocks show.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Messages to the node wait until they're let through.
    pub fn slow_down(&self, node: NodeId) {
        self.slow.lock().insert(node, VecDeque::new());
    }

    /// So many messages reach a slow node.
    pub fn let_through(&self, node: NodeId, count: usize) {
        let mut slow = self.slow.lock();
        let Some(waiting) = slow.get_mut(&node) else { return };
        let through: Vec<_> = waiting.drain(..count.min(waiting.len())).collect();
        drop(slow);
        for (from, message) in through {
            self.nodes[&node].host.receive(from, vec![message]);
        }
    }

    /// Messages reach the node at once again.
    pub fn speed_up(&self, node: NodeId) {
        self.let_through(node, usize::MAX);
        self.slow.lock().remove(&node);
    }

    /// How many messages of at least so many bytes are on their way to a slow node.
    pub fn waiting(&self, node: NodeId, least: usize) -> usize {
        self.slow.lock()[&node].iter().filter(|(_, message)| message.body.len() >= least).count()
    }

    /// How many bytes were sent to a node.
    pub fn sent_bytes(&self, node: NodeId) -> usize {
        self.sent_bytes.lock().get(&node).copied().unwrap_or_default()
    }

    /// Cuts the ways between two nodes.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.wire.cut.lock().extend([(one, other), (other, one)]);
    }

    /// Cuts a node off.
    pub fn isolate(&self, node: NodeId) {
        self.nodes.keys().filter(|other| **other != node).for_each(|other| self.cut(node, *other));
    }

    /// The node gets no turn until it is thawed.
    pub fn freeze(&self, node: NodeId) {
        self.frozen.lock().insert(node);
    }

    /// It gets turns again, as of now.
    pub fn thaw(&self, node: NodeId) {
        self.frozen.lock().remove(&node);
    }

    /// The node's engines get no turn until they do again.
    pub fn stall(&self, node: NodeId, stalled: bool) {
        let mut nodes = self.stalled.lock();
        if stalled {
            nodes.insert(node)
        } else {
            nodes.remove(&node)
        };
    }

    /// Mends all ways.
    pub fn heal(&self) {
        self.wire.cut.lock().clear();
    }

    /// The other nodes.
    pub fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|other| *other != node).collect()
    }
}

/// Long from now.
pub fn later() -> Instant {
    Instant::now() + Duration::from_secs(20)
}
