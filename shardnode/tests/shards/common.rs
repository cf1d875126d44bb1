//! A node with one shard, and requests for it.

use parking_lot::Mutex;
use proto::catalog::Catalog;
use proto::services::{
    Access, BranchAccess, ClusterState, Consistency, Floor, FragmentRequest, RaftMessage, RaftService,
    RaftTransport, RowSource, SchemaRequest, SchemaStep, ShardService,
};
use proto::topology::{Keyspace, Leaders, Shard, Sharding, Topology};
use proto::{
    Epoch, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, RouterIncarnation,
    RowBatch, RowBatchBuilder, SchemaVersion, ShardId, Value, WireError,
};
use replica::Host;
use shardnode::{Config, ShardNode};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const SHARD: ShardId = ShardId(1);
pub const GROUP: GroupId = GroupId(2);

/// Carries Raft messages between the hosts that are up.
#[derive(Default)]
pub struct Network(Mutex<HashMap<NodeId, Weak<Host>>>);

impl Network {
    /// Nothing reaches the host any more, and nothing comes from it, until it is attached again.
    pub fn detach(&self, node: NodeId) -> Weak<Host> {
        self.0.lock().remove(&node).unwrap()
    }

    pub fn attach(&self, node: NodeId, host: Weak<Host>) {
        self.0.lock().insert(node, host);
    }
}

struct Link(NodeId, Arc<Network>);

impl RaftTransport for Link {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let host = {
            let hosts = self.1.0.lock();
            hosts.get(&to).filter(|_| hosts.contains_key(&self.0)).and_then(Weak::upgrade)
        };
        if let Some(host) = host {
            host.receive(self.0, messages);
        }
    }
}

/// A node that holds a replica of the only shard.
pub struct Node {
    pub shards: Arc<ShardNode>,
    pub host: Arc<Host>,
    directory: Arc<tempfile::TempDir>,
}

impl Node {
    /// The only one, ready to serve.
    pub async fn start() -> Node {
        Node::start_with(|_| {}).await
    }

    /// The only one, with other settings.
    pub async fn start_with(change: impl FnOnce(&mut replica::Config)) -> Node {
        let node = Node::open_with(NodeId(1), vec![NodeId(1)], &Arc::default(), change);
        let replica = node.host.replica(GROUP).unwrap();
        let mut status = replica.watch();
        let ready = async {
            while replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.is_err() {
                status.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        node
    }

    /// One of several.
    pub fn open(id: NodeId, nodes: Vec<NodeId>, network: &Arc<Network>) -> Node {
        Node::open_with(id, nodes, network, |_| {})
    }

    /// One of several, with other settings.
    pub fn open_with(
        id: NodeId,
        nodes: Vec<NodeId>,
        network: &Arc<Network>,
        change: impl FnOnce(&mut replica::Config),
    ) -> Node {
        let node = Node::bare_with(id, network, change);
        assert!(node.settle(&state(nodes)));
        node
    }

    /// Has the node hold what a state says that was just asked for.
    pub fn settle(&self, state: &ClusterState) -> bool {
        self.shards.settle(state, &self.shards.before())
    }

    /// One that has heard of no cluster.
    pub fn bare(id: NodeId, network: &Arc<Network>) -> Node {
        Node::bare_with(id, network, |_| {})
    }

    /// The same, with other settings.
    pub fn bare_with(id: NodeId, network: &Arc<Network>, change: impl FnOnce(&mut replica::Config)) -> Node {
        Node::open_in(Arc::new(tempfile::tempdir().unwrap()), id, network, change)
    }

    /// The same node, with its shards as these settings have them.
    pub fn with_shards(mut self, config: Config) -> Node {
        self.shards = ShardNode::new(Arc::clone(&self.host), config);
        assert!(self.shards.follow(&state(vec![NodeId(1)])));
        self
    }

    /// The same node, which stages transactions as soon as they have changed so many bytes.
    pub fn staging(mut self, stage_bytes: usize, nodes: Vec<NodeId>) -> Node {
        let config = Config { stage_bytes, ..Config::new(self.host.statuses()[0].node) };
        self.shards = ShardNode::new(Arc::clone(&self.host), config);
        assert!(self.shards.follow(&state(nodes)));
        self
    }

    /// The same node, started anew.
    pub async fn restart(
        self,
        nodes: Vec<NodeId>,
        network: &Arc<Network>,
        change: impl FnOnce(&mut replica::Config),
    ) -> Node {
        self.restart_in(&state(nodes), network, change).await
    }

    /// The same, in a cluster that is like this.
    pub async fn restart_in(
        self,
        state: &ClusterState,
        network: &Arc<Network>,
        change: impl FnOnce(&mut replica::Config),
    ) -> Node {
        let (host, directory) = (Arc::clone(&self.host), Arc::clone(&self.directory));
        let id = self.host.statuses()[0].node;
        drop(self);
        tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
        let node = Node::open_in(directory, id, network, change);
        assert!(node.settle(state));
        node
    }

    fn open_in(
        directory: Arc<tempfile::TempDir>,
        id: NodeId,
        network: &Arc<Network>,
        change: impl FnOnce(&mut replica::Config),
    ) -> Node {
        let mut config = replica::Config::new(id, directory.path());
        config.tick = Duration::from_millis(10);
        change(&mut config);
        let host = Host::open(config, Arc::new(Link(id, Arc::clone(network)))).unwrap();
        network.0.lock().insert(id, Arc::downgrade(&host));
        let shards = ShardNode::new(Arc::clone(&host), Config::new(id));
        Node { shards, host, directory }
    }

    pub fn read(&self, sql: &str, lookup: bool) -> FragmentRequest {
        FragmentRequest {
            shard: SHARD,
            epoch: Epoch(1),
            schema_version: SchemaVersion(1),
            sql: sql.into(),
            params: Vec::new(),
            rows: None,
            access: Access::strong(lookup),
            cut: None,
            floor: Floor::default(),
            timeout: PATIENCE,
        }
    }

    pub fn write(&self, sql: &str, sequence: u64) -> FragmentRequest {
        let request = RequestId { router: RouterIncarnation(77), sequence };
        FragmentRequest {
            access: Access::Write { request, settled: 0, touch: 0, lock_timeout: None },
            ..self.read(sql, false)
        }
    }

    pub fn step(&self, job: u64, statements: &[&str], least_version: Option<SchemaVersion>) -> SchemaRequest {
        SchemaRequest {
            shard: SHARD,
            step: SchemaStep { job, step: 1 },
            statements: statements.iter().map(|s| (*s).to_owned()).collect(),
            layouts: Vec::new(),
            least_version,
            require_empty: Vec::new(),
        }
    }

    pub async fn schema(
        &self,
        job: u64,
        statements: &[&str],
        least_version: Option<SchemaVersion>,
    ) -> Result<LogIndex, WireError> {
        self.shards.apply_schema(self.step(job, statements, least_version)).await
    }

    /// The one value that a query gives.
    pub async fn one(&self, sql: &str) -> Value {
        let mut read = self.read(sql, true);
        read.schema_version = SchemaVersion(u64::MAX);
        let response = self.shards.execute(read).await.unwrap();
        rows(response.rows).await.unwrap().remove(0).remove(0)
    }

    /// How long the shard's WAL is.
    pub fn wal_bytes(&self) -> u64 {
        let group = self.directory.path().join("groups").join(GROUP.to_string());
        std::fs::metadata(group.join("replica.sqlite-wal")).unwrap().len()
    }

    /// Waits until no query runs any more: then every snapshot can be had at once.
    pub async fn idle_readers(&self) {
        let replica = self.host.replica(GROUP).unwrap();
        let most = replica::Config::new(NodeId(1), "").max_snapshots;
        let mut held = Vec::new();
        for _ in 0..most {
            held.push(replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap());
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.host.shutdown();
    }
}

/// The cluster at epoch 1.
pub fn state(replicas: Vec<NodeId>) -> ClusterState {
    let number = KeyspaceNumber(1);
    let shard = Shard {
        id: SHARD,
        keyspace: number,
        range: KeyRange::full(),
        incarnation: Incarnation(1),
        group: GROUP,
        replicas,
        formed: false,
        first: LogIndex(0),
    };
    let keyspace = Keyspace {
        number,
        name: "main".into(),
        sharding: Sharding::Hash,
        replicas: 1,
        shards: vec![SHARD],
        auto: None,
    };
    let topology = Topology {
        epoch: Epoch(1),
        keyspaces: [(number, keyspace)].into(),
        shards: [(SHARD, shard)].into(),
        ..Topology::default()
    };
    ClusterState {
        topology: Arc::new(topology),
        leaders: Arc::new(Leaders::default()),
        catalog: Arc::new(Catalog::default()),
    }
}

/// The request with rows.
pub fn with_rows<const N: usize>(
    mut request: FragmentRequest,
    columns: u16,
    rows: &[[Value; N]],
) -> FragmentRequest {
    let mut batch = RowBatchBuilder::new(columns);
    for row in rows {
        batch.push_row(row.iter().map(Value::as_ref));
    }
    request.rows = Some(batch.finish());
    request
}

/// The write with a check that no row is touched twice.
pub fn touching(access: Access, columns: u16) -> Access {
    match access {
        Access::Write { request, settled, .. } => {
            Access::Write { request, settled, touch: columns, lock_timeout: None }
        }
        Access::Branch { branch, .. } => {
            Access::Branch { branch, access: BranchAccess::Write { touch: columns } }
        }
        Access::Read { .. } => panic!("a read touches nothing"),
    }
}

/// All rows, however they come.
pub async fn rows(source: RowSource) -> Result<Vec<Vec<Value>>, WireError> {
    let unpack = |batch: &RowBatch| -> Vec<Vec<Value>> {
        batch.rows().map(|row| row.map(|value| value.to_owned()).collect()).collect()
    };
    match source {
        RowSource::Whole(batch) => Ok(unpack(&batch)),
        RowSource::Stream(mut batches) => {
            let mut found = Vec::new();
            let next = |context: &mut std::task::Context<'_>| Pin::as_mut(&mut batches).poll_next(context);
            let mut next = next;
            while let Some(batch) = std::future::poll_fn(&mut next).await {
                found.extend(unpack(&batch?));
            }
            Ok(found)
        }
    }
}

/// Rows to compare with.
pub fn values<const N: usize>(rows: &[[Value; N]]) -> Vec<Vec<Value>> {
    rows.iter().map(|row| row.to_vec()).collect()
}

/// A text.
pub fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}
