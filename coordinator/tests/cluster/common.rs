//! Whole clusters without routers, in one process: hosts, shardnodes and coordinators, and a gate before each shard.

use coordinator::{Config, Coordinator};
use parking_lot::Mutex;
use proto::services::{
    Access, BoxFuture, ClusterState, Consistency, CoordinatorService, FragmentRequest, FragmentResponse,
    Peers, RaftMessage, RaftService, RaftTransport, ReplicaService, RowSource, SchemaChange,
    SchemaChangeRequest, SchemaRequest, ServiceResult, ShardService,
};
use proto::topology::{Node, Roles};
use proto::{
    KeyspaceNumber, LogIndex, NodeId, RequestId, Retry, RouterIncarnation, SchemaVersion, ShardId, SqlState,
    TableId, Value, WireError,
};
use replica::Host;
use shardnode::{Agent, ShardNode};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that are up.
#[derive(Default)]
pub struct Directory {
    hosts: Mutex<HashMap<NodeId, Weak<Host>>>,
    shards: Mutex<HashMap<NodeId, Arc<dyn ShardService>>>,
    coordinators: Mutex<BTreeMap<NodeId, Arc<dyn CoordinatorService>>>,
    /// Shards that take no schema step.
    closed: watch::Sender<HashSet<ShardId>>,
    /// Schema steps that were refused for that.
    refused: watch::Sender<u64>,
}

impl Peers for Directory {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        self.shards.lock().get(&node).cloned()
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        let host = self.hosts.lock().get(&node).and_then(Weak::upgrade);
        host.map(|host| host as Arc<dyn ReplicaService>)
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        self.coordinators.lock().iter().map(|(node, service)| (*node, Arc::clone(service))).collect()
    }
}

impl Directory {
    /// Asks the coordinator's leader, as a router does: again where nothing was done, or where it is safe.
    pub async fn ask<T, F>(&self, call: impl Fn(Arc<dyn CoordinatorService>) -> F) -> ServiceResult<T>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let asked = async {
            loop {
                for (_, coordinator) in self.coordinators() {
                    match call(coordinator).await {
                        Err(error) if is_passing(&error) => {}
                        answer => return answer,
                    }
                }
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("a coordinator answers")
    }
}

struct Link {
    from: NodeId,
    directory: Weak<Directory>,
}

impl RaftTransport for Link {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let Some(directory) = self.directory.upgrade() else { return };
        let host = directory.hosts.lock().get(&to).and_then(Weak::upgrade);
        if let Some(host) = host {
            host.receive(self.from, messages);
        }
    }
}

/// A shardnode that refuses schema steps for closed shards.
struct Gate {
    shards: Arc<ShardNode>,
    directory: Weak<Directory>,
}

impl ShardService for Gate {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        self.shards.execute(request)
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        if let Some(directory) = self.directory.upgrade()
            && directory.closed.borrow().contains(&request.shard)
        {
            directory.refused.send_modify(|refused| *refused += 1);
            let error = WireError::new(SqlState::CANNOT_CONNECT_NOW, "closed").with_retry(Retry::Later);
            return Box::pin(async move { Err(error) });
        }
        self.shards.apply_schema(request)
    }
}

struct Member {
    host: Arc<Host>,
    coordinator: Arc<Coordinator>,
    agent: AbortHandle,
}

/// A cluster.
pub struct Cluster {
    pub directory: Arc<Directory>,
    nodes: Vec<NodeId>,
    shards: u32,
    members: BTreeMap<NodeId, Member>,
    files: tempfile::TempDir,
    sequence: AtomicU64,
}

impl Cluster {
    /// So many nodes, with a replica of everything each, and so many shards in `main`.
    pub async fn start(nodes: u64, shards: u32) -> Cluster {
        let mut cluster = Cluster {
            directory: Arc::default(),
            nodes: (1..=nodes).map(NodeId).collect(),
            shards,
            members: BTreeMap::new(),
            files: tempfile::tempdir().unwrap(),
            sequence: AtomicU64::new(1),
        };
        for node in cluster.nodes.clone() {
            cluster.open(node);
        }
        cluster.state_where(|state| state.topology.keyspaces.len() == 2).await;
        cluster
    }

    /// Starts a node.
    pub fn open(&mut self, node: NodeId) {
        let mut config = replica::Config::new(node, self.files.path().join(node.to_string()));
        config.tick = Duration::from_millis(20);
        let directory = Arc::downgrade(&self.directory);
        let link = Link { from: node, directory: Weak::clone(&directory) };
        let host = Host::open(config, Arc::new(link)).unwrap();
        self.directory.hosts.lock().insert(node, Arc::downgrade(&host));
        let shards = ShardNode::new(Arc::clone(&host), shardnode::Config::new(node));
        let gate = Gate { shards: Arc::clone(&shards), directory };
        self.directory.shards.lock().insert(node, Arc::new(gate));
        let peers: Arc<dyn Peers> = Arc::clone(&self.directory) as Arc<dyn Peers>;
        let config = Config {
            shards: self.shards,
            attempt_timeout: Duration::from_secs(5),
            schema_timeout: PATIENCE,
            ..Config::new(node, self.nodes.clone())
        };
        let coordinator = Coordinator::new(&host, Arc::clone(&peers), config).unwrap();
        self.directory
            .coordinators
            .lock()
            .insert(node, Arc::clone(&coordinator) as Arc<dyn CoordinatorService>);
        let registered = Node { id: node, address: String::new(), roles: Roles::ALL };
        let heard = Box::new(|_: &ClusterState| {});
        let agent = Agent { node: registered, host: Arc::clone(&host), shards: Some(shards), peers, heard };
        let agent = tokio::spawn(agent.run()).abort_handle();
        self.members.insert(node, Member { host, coordinator, agent });
    }

    /// Stops a node as a crash would: nobody is told.
    pub async fn stop(&mut self, node: NodeId) {
        let member = self.members.remove(&node).unwrap();
        self.directory.coordinators.lock().remove(&node);
        self.directory.shards.lock().remove(&node);
        self.directory.hosts.lock().remove(&node);
        member.agent.abort();
        member.coordinator.shutdown();
        tokio::task::spawn_blocking(move || member.host.shutdown()).await.unwrap();
    }

    /// The node that leads the coordinator.
    pub async fn leader(&self) -> NodeId {
        self.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
        let leading = |node: &&NodeId| {
            let replica = self.members[node].host.replica(proto::GroupId::COORDINATOR);
            replica.is_some_and(|replica| replica.is_leader())
        };
        *self.members.keys().find(leading).expect("one has answered as leader")
    }

    /// The newest state that satisfies this, at any coordinator.
    pub async fn state_where(&self, wanted: impl Fn(&ClusterState) -> bool) -> ClusterState {
        let (_, coordinator) = self.directory.coordinators().remove(0);
        let mut states = coordinator.watch().await.unwrap();
        let found = async {
            loop {
                let state = poll_fn(|context| Pin::as_mut(&mut states).poll_next(context)).await.unwrap();
                if wanted(&state) {
                    return state;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the cluster gets there")
    }

    /// The state now.
    pub async fn state(&self) -> ClusterState {
        self.ask(|coordinator| async move { coordinator.status().await }).await.unwrap().state
    }

    /// Asks the coordinator's leader.
    pub async fn ask<T, F>(&self, call: impl Fn(Arc<dyn CoordinatorService>) -> F) -> ServiceResult<T>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        self.directory.ask(call).await
    }

    /// A name for a request that nobody has used.
    pub fn name(&self) -> RequestId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        RequestId { router: RouterIncarnation(5), sequence }
    }

    /// A request that plans by this version.
    pub fn request(&self, planned_by: SchemaVersion, change: SchemaChange) -> SchemaChangeRequest {
        SchemaChangeRequest { request: self.name(), planned_by, change }
    }

    /// Has a request done.
    pub async fn send(&self, request: &SchemaChangeRequest) -> ServiceResult<SchemaVersion> {
        self.ask(|coordinator| {
            let request = request.clone();
            async move { coordinator.change_schema(request).await }
        })
        .await
    }

    /// Makes a change, planned by the newest catalog.
    pub async fn change(&self, change: SchemaChange) -> ServiceResult<SchemaVersion> {
        let planned_by = self.state().await.catalog.version();
        self.send(&self.request(planned_by, change)).await
    }

    /// Refuses schema steps for a shard from now on.
    pub fn close(&self, shard: ShardId) {
        self.directory.closed.send_modify(|closed| {
            closed.insert(shard);
        });
    }

    /// Takes them again.
    pub fn open_all(&self) {
        self.directory.closed.send_modify(HashSet::clear);
    }

    /// Waits until a step has been refused.
    pub async fn refused(&self) {
        let mut refused = self.directory.refused.subscribe();
        let heard = refused.wait_for(|refused| *refused > 0);
        tokio::time::timeout(PATIENCE, heard).await.expect("a step is tried").unwrap();
    }

    /// The shards of a keyspace, in order.
    pub async fn shards_of(&self, keyspace: KeyspaceNumber) -> Vec<ShardId> {
        self.state().await.topology.keyspaces[&keyspace].shards.clone()
    }

    /// Runs SQL on one shard, at this version.
    pub async fn run_at(
        &self,
        version: SchemaVersion,
        shard: ShardId,
        sql: &str,
    ) -> ServiceResult<Vec<Vec<Value>>> {
        let state = self.state().await;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let reads = sql.starts_with("SELECT");
        let request = RequestId { router: RouterIncarnation(6), sequence };
        let fragment = FragmentRequest {
            shard,
            epoch: state.topology.epoch,
            schema_version: version,
            sql: sql.into(),
            params: Vec::new(),
            rows: None,
            access: if reads {
                Access::Read { consistency: Consistency::Strong, lookup: true }
            } else {
                Access::Write { request, settled: 0, touch: 0 }
            },
            timeout: PATIENCE,
        };
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let asked = async {
            loop {
                for node in state.topology.shards[&shard].replicas.clone() {
                    let Some(service) = self.directory.shard_service(node) else { continue };
                    match service.execute(fragment.clone()).await {
                        Err(error) if is_passing(&error) => {}
                        answer => return answer,
                    }
                }
                pause.tick().await;
            }
        };
        let response = tokio::time::timeout(PATIENCE, asked).await.expect("the shard answers")?;
        let RowSource::Whole(batch) = response.rows else { panic!("a small result comes whole") };
        Ok(batch.rows().map(|row| row.map(|value| value.to_owned()).collect()).collect())
    }

    /// Runs SQL on one shard.
    pub async fn run(&self, shard: ShardId, sql: &str) -> ServiceResult<Vec<Vec<Value>>> {
        let version = self.state().await.catalog.version();
        self.run_at(version, shard, sql).await
    }

    /// How many rows a shard has of a table.
    pub async fn count(&self, shard: ShardId, table: TableId) -> i64 {
        match self.run(shard, &format!("SELECT count(*) FROM t{table}")).await.unwrap()[0][0] {
            Value::Int(count) => count,
            ref other => panic!("not a count: {other:?}"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in std::mem::take(&mut self.members).into_values() {
            member.agent.abort();
            member.coordinator.shutdown();
            member.host.shutdown();
        }
    }
}

fn is_passing(error: &WireError) -> bool {
    matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Unknown)
}
