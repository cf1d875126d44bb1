//! A cluster for tests: shards that are SQLite databases in memory, and a coordinator that only says how things are.
//!
//! Answers can be put in the way: each queued fault ends one request, before or after it was executed.

use crate::cancel::Interrupt;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::executor::Executor;
use crate::executor::scalars::Facts;
use crate::executor::statement::Statement;
use dialect::datetime::TimeZone;
use dialect::sqlite as functions;
use futures::StreamExt;
use parking_lot::Mutex;
use planner::plan::Plan;
use planner::text::{Text, split};
use proto::catalog::{Catalog, Column, Placement, Sequence, Table, TypeRef};
use proto::services::*;
use proto::topology::{Keyspace, Leaders, Node, Sharding, Topology};
use proto::*;
use rusqlite::Connection;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// What befalls a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused before it's executed.
    Before(WireError),
    /// It is executed, and its answer lost.
    After(WireError),
    /// It is never answered.
    Hang,
}

/// The fake cluster.
pub struct Fake {
    state: tokio::sync::watch::Sender<ClusterState>,
    shards: HashMap<ShardId, Mutex<Connection>>,
    done: Mutex<HashMap<RequestId, u64>>,
    /// What befalls the next requests, in order.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Every request so far.
    pub requests: Mutex<Vec<FragmentRequest>>,
    next: AtomicI64,
}

pub const TABLE: TableId = TableId(16384);
pub const REFERENCE: TableId = TableId(16385);
pub const SEQUENCE: SequenceId = SequenceId(16390);
pub const MAIN: KeyspaceNumber = KeyspaceNumber(1);

/// A table of two columns, `a` (int4, the key) and `b` (text).
fn table(id: TableId, name: &str, placement: Placement, version: u64) -> Table {
    let column = |n: u32, name: &str, oid| Column {
        id: ColumnId(n),
        name: name.into(),
        ty: TypeRef { oid, modifier: -1 },
        not_null: n == 1,
        default: None,
    };
    Table {
        id,
        name: name.into(),
        columns: vec![column(1, "a", 23), column(2, "b", 25)],
        primary_key: vec![ColumnId(1)],
        primary_key_name: Some(format!("{name}_pkey")),
        indexes: vec![],
        checks: vec![],
        placement,
        next_column: ColumnId(3),
        modified: SchemaVersion(version),
    }
}

/// The catalog at a version; the tables are the same in each.
pub fn catalog(version: u64) -> Catalog {
    let sharded = Placement::Sharded { keyspace: MAIN, key: vec![ColumnId(1)] };
    let sequence = Sequence {
        id: SEQUENCE,
        name: "s".into(),
        ty: TypeRef { oid: 20, modifier: -1 },
        start: 1,
        increment: 1,
        min: 1,
        max: i64::MAX,
        cycle: false,
        cache: 1,
        owner: None,
        hidden: false,
    };
    let tables = [table(TABLE, "t", sharded, 1), table(REFERENCE, "r", Placement::Reference, 1)];
    Catalog::new(SchemaVersion(version), tables.map(Arc::new), [Arc::new(sequence)])
}

impl Fake {
    /// A cluster of so many shards, all led by node 1.
    pub fn new(count: u64) -> Arc<Self> {
        let mut topology = Topology { epoch: Epoch(1), ..Topology::default() };
        let mut leaders = Leaders::default();
        let mut shards = HashMap::new();
        let ids: Vec<_> = (1..=count).map(ShardId).collect();
        let step = 256 / count;
        for id in &ids {
            let bound = |n: u64| if n == 0 || n == 256 { String::new() } else { format!("{n:02x}") };
            let range = format!("{}-{}", bound((id.0 - 1) * step), bound(id.0 * step));
            let shard = topology::Shard {
                id: *id,
                keyspace: MAIN,
                range: KeyRange::parse(&range).unwrap(),
                incarnation: Incarnation(1),
                group: GroupId(id.0 + 1),
                replicas: vec![NodeId(1), NodeId(2)],
                formed: true,
            };
            leaders.learn(shard.group, Term(1), NodeId(1));
            topology.shards.insert(*id, shard);
            let connection = Connection::open_in_memory().unwrap();
            functions::register(&connection).unwrap();
            for t in [TABLE, REFERENCE] {
                let create = format!("CREATE TABLE t{t} (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT");
                connection.execute_batch(&create).unwrap();
            }
            shards.insert(*id, Mutex::new(connection));
        }
        let keyspace = Keyspace {
            number: MAIN,
            name: "main".into(),
            sharding: Sharding::Hash,
            replicas: 1,
            shards: ids,
        };
        topology.keyspaces.insert(MAIN, keyspace);
        let state =
            ClusterState { topology: topology.into(), leaders: leaders.into(), catalog: catalog(1).into() };
        Arc::new(Self {
            state: tokio::sync::watch::Sender::new(state),
            shards,
            done: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            next: AtomicI64::new(1),
        })
    }

    /// Node 2 leads all groups from this term on.
    pub fn elect(&self, term: u64) {
        self.state.send_modify(|state| {
            let mut leaders = Leaders::clone(&state.leaders);
            for shard in state.topology.shards.values() {
                leaders.learn(shard.group, Term(term), NodeId(2));
            }
            state.leaders = leaders.into();
        });
    }

    /// The catalog's version becomes this one.
    pub fn set_version(&self, version: u64) {
        self.state.send_modify(|state| state.catalog = catalog(version).into());
    }

    /// One more keyspace joins, and the catalog's version becomes this one.
    pub fn add_keyspace(&self, version: u64) {
        self.state.send_modify(|state| {
            let mut topology = Topology::clone(&state.topology);
            let number = KeyspaceNumber(MAIN.0 + 1);
            let id = ShardId(self.shards.len() as u64 + 1);
            let shard = topology::Shard {
                id,
                keyspace: number,
                range: KeyRange::full(),
                incarnation: Incarnation(1),
                group: GroupId(id.0 + 1),
                replicas: vec![NodeId(1), NodeId(2)],
                formed: true,
            };
            topology.epoch = Epoch(topology.epoch.0 + 1);
            topology.shards.insert(id, shard);
            let keyspace = Keyspace {
                number,
                name: "more".into(),
                sharding: Sharding::Range,
                replicas: 1,
                shards: vec![id],
            };
            topology.keyspaces.insert(number, keyspace);
            state.topology = topology.into();
            state.catalog = catalog(version).into();
        });
    }

    /// A query's first value on every shard, in the shards' order.
    pub fn on_each(&self, sql: &str) -> Vec<i64> {
        let shards = (1..=self.shards.len() as u64).map(ShardId);
        shards.map(|id| self.shards[&id].lock().query_row(sql, [], |row| row.get(0)).unwrap()).collect()
    }

    /// Runs SQL on every shard.
    pub fn run_on_each(&self, sql: &str) {
        self.shards.values().for_each(|shard| shard.lock().execute_batch(sql).unwrap());
    }

    fn run(&self, request: &FragmentRequest) -> ServiceResult<FragmentResponse> {
        let least = self.state.borrow().catalog.version();
        if request.schema_version < least {
            let error = WireError::internal("stale").with_retry(Retry::StaleSchema(least));
            return Err(error);
        }
        if let Access::Write { request: id, .. } = request.access {
            if let Some(affected) = self.done.lock().get(&id) {
                let rows = RowSource::Whole(RowBatch::default());
                return Ok(FragmentResponse { rows, affected: *affected, position: LogIndex(1) });
            }
            let response = self.execute_sql(request)?;
            self.done.lock().insert(id, response.affected);
            return Ok(response);
        }
        self.execute_sql(request)
    }

    fn execute_sql(&self, request: &FragmentRequest) -> ServiceResult<FragmentResponse> {
        let mut connection = self.shards[&request.shard].lock();
        let transaction = connection.transaction().map_err(functions::error)?;
        let (mut affected, mut out) = (0, None);
        {
            let mut statement = transaction.prepare(&request.sql).map_err(functions::error)?;
            let columns = statement.column_count() as u16;
            let mut builder = RowBatchBuilder::new(columns);
            let no_rows = [vec![]];
            let rows: Vec<Vec<Value>> = match &request.rows {
                Some(rows) => rows.rows().map(|row| row.map(ValueRef::to_owned).collect()).collect(),
                None => no_rows.into(),
            };
            for row in rows {
                for (i, value) in row.iter().chain(&request.params).enumerate() {
                    statement
                        .raw_bind_parameter(i + 1, functions::parameter(value))
                        .map_err(functions::error)?;
                }
                if columns == 0 {
                    affected += statement.raw_execute().map_err(functions::error)? as u64;
                    continue;
                }
                let mut rows = statement.raw_query();
                while let Some(row) = rows.next().map_err(functions::error)? {
                    affected += 1;
                    for column in 0..columns as usize {
                        builder.push(functions::value_ref(row.get_ref(column).map_err(functions::error)?)?);
                    }
                }
            }
            out.replace(builder.finish());
        }
        transaction.commit().map_err(functions::error)?;
        let rows = RowSource::Whole(out.unwrap_or_default());
        Ok(FragmentResponse { rows, affected, position: LogIndex(1) })
    }
}

impl ShardService for Fake {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        Box::pin(async move {
            self.requests.lock().push(request.clone());
            let fault = self.faults.lock().pop_front();
            match fault {
                Some(Fault::Before(error)) => Err(error),
                Some(Fault::After(error)) => {
                    self.run(&request)?;
                    Err(error)
                }
                Some(Fault::Hang) => std::future::pending().await,
                None => self.run(&request),
            }
        })
    }

    fn apply_schema(&self, _: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async { Ok(LogIndex(1)) })
    }

    fn transact(&self, _: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async { Err(WireError::unsupported("a transaction on a fake shard")) })
    }

    fn branches(&self, _: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(async { Ok(vec![]) })
    }
}

impl CoordinatorService for Fake {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        let receiver = self.state.subscribe();
        Box::pin(async move {
            let states = futures::stream::unfold((receiver, true), |(mut receiver, first)| async move {
                if !first {
                    receiver.changed().await.ok()?;
                }
                let state = receiver.borrow_and_update().clone();
                Some((state, (receiver, false)))
            });
            Ok(states.boxed())
        })
    }

    fn register(&self, _: Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn report(&self, _: NodeId, _: Vec<ReplicaStatus>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn change_schema(&self, _: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        let version = self.state.borrow().catalog.version().0 + 1;
        self.set_version(version);
        Box::pin(async move { Ok(SchemaVersion(version)) })
    }

    fn allocate(&self, _: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        let first = self.next.fetch_add(count.into(), Ordering::Relaxed);
        Box::pin(async move {
            // A real one's answer is never there at once.
            tokio::task::yield_now().await;
            Ok(SequenceBlock { first, increment: 1, count })
        })
    }

    fn set_sequence(&self, _: SequenceId, _: i64) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn join(&self, _: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>> {
        Box::pin(async { Err(WireError::unsupported("joining a fake cluster")) })
    }

    fn change_replicas(&self, _: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("replicas of a fake cluster")) })
    }

    fn decide(&self, _: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        Box::pin(async { Err(WireError::unsupported("a transaction of a fake cluster")) })
    }

    fn finished(&self, _: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn transactions(&self, _: Option<TransactionId>) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn create_keyspace(&self, _: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async { Err(WireError::unsupported("a keyspace of a fake cluster")) })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        let state = self.state.borrow().clone();
        Box::pin(async move {
            Ok(ClusterStatus { state, replicas: vec![], heard: vec![], jobs: vec![], alarms: vec![] })
        })
    }
}

/// The fake's two nodes are one object.
pub struct FakePeers(pub Arc<Fake>);

impl Peers for FakePeers {
    fn shard_service(&self, _: NodeId) -> Option<Arc<dyn ShardService>> {
        Some(self.0.clone())
    }

    fn replica_service(&self, _: NodeId) -> Option<Arc<dyn ReplicaService>> {
        None
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        vec![(NodeId(1), self.0.clone())]
    }
}

/// An executor over a fake cluster, and what a statement needs.
pub struct Bench {
    pub fake: Arc<Fake>,
    pub executor: Executor,
    pub interrupt: Arc<Interrupt>,
    pub parameters: Vec<Value>,
    pub timeout: Duration,
    text: Text,
    facts: Facts,
}

impl Bench {
    pub async fn new(shards: u64) -> Self {
        let fake = Fake::new(shards);
        let cluster = Arc::new(Cluster::new(Arc::new(FakePeers(fake.clone()))));
        let states = fake.watch().await.unwrap().next().await.unwrap();
        cluster.install(states);
        let follower = cluster.clone();
        tokio::spawn(async move { follower.follow().await });
        let facts = Facts {
            transaction_time: 0,
            statement_time: 0,
            zone: TimeZone::utc(),
            backend_pid: 1,
            settings: vec![],
        };
        Self {
            fake,
            executor: Executor::new(
                Config { retry_timeout: Duration::from_millis(50), ..Config::default() },
                cluster,
            ),
            interrupt: Arc::default(),
            parameters: Vec::new(),
            timeout: Duration::from_secs(30),
            text: split("SELECT 1").unwrap().remove(0),
            facts,
        }
    }

    /// A run of a plan.
    pub fn statement<'a>(&'a self, plan: &'a Arc<Plan>) -> Statement<'a> {
        let deadline = Instant::now() + self.timeout;
        Statement {
            plan,
            text: &self.text,
            parameters: &self.parameters,
            state: self.executor.cluster.snapshot(),
            facts: &self.facts,
            interrupt: &self.interrupt,
            deadline,
            retry_for: self.timeout,
        }
    }
}
