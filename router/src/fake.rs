//! A cluster for tests: shards that are SQLite databases in memory, and a coordinator that says how things are and
//! decides transactions.
//!
//! A branch is the list of its statements: each new one runs after all of them were run again, and all are undone. There
//! are no locks. Whoever ends a prepared branch otherwise than was decided panics.
//!
//! Each shard's log has an entry for all that is written there, a hundred times its number of them from the start.
//!
//! Answers can be put in the way: each queued fault ends one request, before or after it was executed.

mod bench;
mod branches;
mod coordinator;
mod nodes;
mod switch;

pub use bench::Bench;
use branches::FakeBranch;
pub use nodes::FakePeers;
pub use switch::sealed;

use dialect::sqlite as functions;
use parking_lot::Mutex;
use proto::catalog::{Catalog, Column, Placement, RoleChange, RoleSettings, Sequence, Table, TypeRef};
use proto::services::*;
use proto::topology::{Keyspace, Leaders, Sharding, Topology};
use proto::*;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

/// What befalls a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused before it's executed.
    Before(WireError),
    /// It is executed, and its answer lost.
    After(WireError),
    /// It is never answered.
    Hang,
    /// What befalls it otherwise, and what happens before that is heard.
    Then(Option<Box<Fault>>, fn(&Fake)),
}

/// How often it's looked whether a transaction is finished.
const LOOKS: usize = 1000;

/// The fake cluster.
pub struct Fake {
    state: tokio::sync::watch::Sender<ClusterState>,
    shards: Mutex<BTreeMap<ShardId, Arc<Mutex<Connection>>>>,
    /// The ranges of shards that have taken others' places.
    ranges: Mutex<BTreeMap<ShardId, KeyRange>>,
    /// The shards that serve nobody.
    sealed: Mutex<BTreeSet<ShardId>>,
    /// How often one of them was asked.
    refusals: AtomicU64,
    done: Mutex<HashMap<RequestId, u64>>,
    /// A catalog that the coordinator's leader has, and no router has heard of.
    pub untold: Mutex<Option<Arc<Catalog>>>,
    /// A topology like that.
    pub untold_topology: Mutex<Option<Arc<Topology>>>,
    /// What befalls the next requests, in order.
    pub faults: Mutex<VecDeque<Fault>>,
    /// What befalls the next actions of a kind, in order.
    pub action_faults: Mutex<Vec<(&'static str, Fault)>>,
    /// Every request so far.
    pub requests: Mutex<Vec<FragmentRequest>>,
    /// Every action on a branch or transaction so far: its kind, and the shard's number.
    pub actions: Mutex<Vec<(&'static str, u64)>>,
    branches: Mutex<BTreeMap<(ShardId, TransactionId), FakeBranch>>,
    /// What was decided.
    pub verdicts: Mutex<HashMap<TransactionId, bool>>,
    /// Who hasn't voted yet.
    votes: Mutex<HashMap<TransactionId, BTreeSet<ShardId>>>,
    /// Where it is remembered that a transaction has committed.
    pub kept: Mutex<BTreeSet<(ShardId, TransactionId)>>,
    /// Where what was decided has been voted for.
    pub positions: Mutex<HashMap<TransactionId, Vec<(ShardId, LogIndex)>>>,
    /// How many entries the logs have, by their shards.
    log: Mutex<BTreeMap<ShardId, u64>>,
    /// The idempotency keys that were claimed, by whom, and whether that was committed.
    pub keys: Mutex<HashMap<String, (TransactionId, bool)>>,
    /// The routers that said that they live.
    pub kept_alive: Mutex<Vec<RouterIncarnation>>,
    /// What the coordinator was told has finished.
    pub finished: Mutex<Vec<TransactionId>>,
    /// Every action on a cut so far, and its kind.
    pub cuts: Mutex<Vec<(&'static str, CutRequest)>>,
    /// What the next actions on cuts are answered with; nothing to settle otherwise.
    pub cut_answers: Mutex<VecDeque<ServiceResult<Vec<Unsettled>>>>,
    /// What the coordinator says of reshards.
    pub reshards: Mutex<Vec<ReshardStatus>>,
    /// What followers have counted, as the coordinator tells it.
    pub tallies: Mutex<Vec<ShardTally>>,
    /// What its nodes do by themselves.
    pub nodes: nodes::Nodes,
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
    catalog_with(version, None)
}

/// The catalog at a version, with one more table.
pub fn catalog_with(version: u64, name: Option<&str>) -> Catalog {
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
    let more = name.map(|name| table(TableId(16400), name, sharded.clone(), version));
    let tables = [table(TABLE, "t", sharded, 1), table(REFERENCE, "r", Placement::Reference, 1)];
    Catalog::new(SchemaVersion(version), tables.into_iter().chain(more).map(Arc::new), [Arc::new(sequence)])
}

impl Fake {
    /// A cluster of so many shards, all led by node 1.
    pub fn new(count: u64) -> Arc<Self> {
        let mut topology = Topology { epoch: Epoch(1), ..Topology::default() };
        topology.nodes.extend((1..=2).map(nodes::node));
        let mut leaders = Leaders::default();
        let mut shards = BTreeMap::new();
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
                first: LogIndex(0),
            };
            leaders.learn(shard.group, Term(1), NodeId(1));
            topology.shards.insert(*id, shard);
            shards.insert(*id, Arc::new(Mutex::new(empty_database())));
        }
        let keyspace = Keyspace {
            number: MAIN,
            name: "main".into(),
            sharding: Sharding::Hash,
            replicas: 1,
            shards: ids,
            auto: None,
        };
        topology.keyspaces.insert(MAIN, keyspace);
        let state =
            ClusterState { topology: topology.into(), leaders: leaders.into(), catalog: catalog(1).into() };
        Arc::new(Self {
            state: tokio::sync::watch::Sender::new(state),
            shards: shards.into(),
            ranges: Mutex::default(),
            sealed: Mutex::default(),
            refusals: AtomicU64::default(),
            done: Mutex::default(),
            untold: Mutex::default(),
            untold_topology: Mutex::default(),
            faults: Mutex::default(),
            action_faults: Mutex::default(),
            requests: Mutex::default(),
            actions: Mutex::default(),
            branches: Mutex::default(),
            verdicts: Mutex::default(),
            votes: Mutex::default(),
            kept: Mutex::default(),
            keys: Mutex::default(),
            positions: Mutex::default(),
            log: Mutex::default(),
            kept_alive: Mutex::default(),
            finished: Mutex::default(),
            cuts: Mutex::default(),
            cut_answers: Mutex::default(),
            reshards: Mutex::default(),
            tallies: Mutex::default(),
            nodes: nodes::Nodes::default(),
            next: AtomicI64::new(1),
        })
    }

    /// How far a shard's log is, after so many more entries.
    pub fn log(&self, shard: ShardId, more: u64) -> LogIndex {
        let mut log = self.log.lock();
        let index = log.entry(shard).or_insert(100 * shard.0);
        *index += more;
        LogIndex(*index)
    }

    /// The logs as a GTID set.
    pub fn gtid(&self) -> String {
        let topology = self.topology();
        let positions = topology.shards.keys().map(|shard| (*shard, self.log(*shard, 0))).collect();
        topology.gtid(&positions).to_string()
    }

    /// The topology is another one from now on.
    pub fn reshape(&self, change: impl FnOnce(&mut Topology)) {
        self.state.send_modify(|state| {
            let mut topology = Topology::clone(&state.topology);
            topology.epoch = Epoch(topology.epoch.0 + 1);
            change(&mut topology);
            state.topology = topology.into();
        });
    }

    /// The cluster's shape now.
    pub fn topology(&self) -> Arc<Topology> {
        self.state.borrow().topology.clone()
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
        self.state.send_modify(|state| {
            state.catalog = catalog(version).with_roles(state.catalog.roles().cloned()).into();
        });
    }

    /// What the sessions of a role begin with changes.
    pub fn alter_role(&self, role: Option<String>, change: RoleChange) {
        self.state.send_modify(|state| {
            let (of_role, others): (Vec<_>, Vec<_>) =
                state.catalog.roles().cloned().partition(|settings| settings.role == role);
            let mut settings = RoleSettings { role, settings: vec![] };
            of_role.iter().for_each(|known| settings.settings = known.settings.clone());
            settings.apply(change);
            state.catalog =
                Catalog::clone(&state.catalog).with_roles(others.into_iter().chain([settings.into()])).into();
        });
    }

    /// One more keyspace joins, and the catalog's version becomes this one.
    pub fn add_keyspace(&self, version: u64) {
        self.state.send_modify(|state| {
            let mut topology = Topology::clone(&state.topology);
            let number = KeyspaceNumber(MAIN.0 + 1);
            let id = ShardId(self.shards.lock().len() as u64 + 1);
            let shard = topology::Shard {
                id,
                keyspace: number,
                range: KeyRange::full(),
                incarnation: Incarnation(1),
                group: GroupId(id.0 + 1),
                replicas: vec![NodeId(1), NodeId(2)],
                formed: true,
                first: LogIndex(0),
            };
            topology.epoch = Epoch(topology.epoch.0 + 1);
            topology.shards.insert(id, shard);
            let keyspace = Keyspace {
                number,
                name: "more".into(),
                sharding: Sharding::Range,
                replicas: 1,
                shards: vec![id],
                auto: None,
            };
            topology.keyspaces.insert(number, keyspace);
            state.topology = topology.into();
            state.catalog = catalog(version).into();
        });
    }

    /// A query's first value on every shard that serves, in the shards' order.
    pub fn on_each(&self, sql: &str) -> Vec<i64> {
        let topology = self.topology();
        let shards = topology.keyspaces[&MAIN].shards.iter();
        shards.map(|id| self.database(*id).lock().query_row(sql, [], |row| row.get(0)).unwrap()).collect()
    }

    fn database(&self, shard: ShardId) -> Arc<Mutex<Connection>> {
        self.shards.lock()[&shard].clone()
    }

    /// Runs SQL on every shard.
    pub fn run_on_each(&self, sql: &str) {
        self.shards.lock().values().for_each(|shard| shard.lock().execute_batch(sql).unwrap());
    }

    fn run(&self, request: &FragmentRequest) -> ServiceResult<FragmentResponse> {
        if request.cut.is_none_or(|cut| !self.has_kept(cut)) {
            self.admit(request.shard, request.epoch)?;
        }
        let least = self.state.borrow().catalog.version();
        if request.schema_version < least {
            let error = WireError::internal("stale").with_retry(Retry::StaleSchema(least));
            return Err(error);
        }
        if let Access::Write { request: id, .. } = request.access {
            if let Some(told) = self.told(id) {
                return Ok(FragmentResponse { position: self.log(request.shard, 0), ..told });
            }
            let (rows, affected) = self.execute_sql(request.shard, [], Some(request), true)?;
            self.done.lock().insert(id, affected);
            return Ok(response_of(rows, affected, self.log(request.shard, 1)));
        }
        let at = self.log(request.shard, 0);
        reached(request.floor.index(), at)?;
        if let Access::Branch { branch, .. } = request.access {
            return self.run_in_branch(request, branch);
        }
        let (rows, affected) = self.execute_sql(request.shard, [], Some(request), true)?;
        Ok(response_of(rows, affected, at))
    }

    /// Whether a cut was kept, and isn't over.
    fn has_kept(&self, cut: CutId) -> bool {
        let cuts = self.cuts.lock();
        let did = |kind| cuts.iter().any(|(of, request)| *of == kind && request.cut == cut);
        did("release") && !did("drop")
    }

    /// Notes an action, and says what befalls it.
    fn note(&self, kind: &'static str, shard: u64) -> Option<Fault> {
        self.actions.lock().push((kind, shard));
        let mut faults = self.action_faults.lock();
        let place = faults.iter().position(|(of, _)| *of == kind)?;
        Some(faults.remove(place).1)
    }

    /// What a request comes to that this befalls.
    async fn come_to<T>(
        &self,
        fault: Option<Fault>,
        run: impl FnOnce() -> ServiceResult<T>,
    ) -> ServiceResult<T> {
        let (fault, then) = match fault {
            Some(Fault::Then(fault, then)) => (fault.map(|fault| *fault), Some(then)),
            fault => (fault, None),
        };
        let answer = match fault {
            None => run(),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => run().and(Err(error)),
            Some(Fault::Hang | Fault::Then(..)) => std::future::pending().await,
        };
        then.inspect(|then| then(self));
        answer
    }

    /// Runs statements in a transaction of the shard's SQLite. What the last one gave.
    fn execute_sql<'a>(
        &self,
        shard: ShardId,
        before: impl IntoIterator<Item = &'a FragmentRequest>,
        last: Option<&FragmentRequest>,
        commit: bool,
    ) -> ServiceResult<(RowBatch, u64)> {
        let connection = self.database(shard);
        let mut connection = connection.lock();
        let transaction = connection.transaction().map_err(functions::error)?;
        for request in before {
            run_sql(&transaction, request)?;
        }
        let answer = match last {
            Some(request) => run_sql(&transaction, request)?,
            None => Default::default(),
        };
        let ended = if commit { transaction.commit() } else { transaction.rollback() };
        ended.map_err(functions::error)?;
        drop(connection);
        self.weed(shard);
        Ok(answer)
    }
}

fn empty_database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    functions::register(&connection).unwrap();
    for t in [TABLE, REFERENCE] {
        let create = format!("CREATE TABLE t{t} (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT");
        connection.execute_batch(&create).unwrap();
    }
    connection
}

/// Says whether a log that is at `at` has a position.
fn reached(position: LogIndex, at: LogIndex) -> ServiceResult<()> {
    if position <= at {
        return Ok(());
    }
    let message = format!("index {position} has not been reached: the log is at {at}");
    Err(WireError::new(SqlState::POSITION_NOT_REACHED, message).with_retry(Retry::Behind(at)))
}

fn response_of(rows: RowBatch, affected: u64, position: LogIndex) -> FragmentResponse {
    let rows = RowSource::Whole(rows);
    FragmentResponse { rows, affected, position, waited: Duration::ZERO }
}

/// The leading columns of a statement's result that are cut off, and how many rows it may return.
fn cut_of(access: &Access) -> (usize, u64) {
    match access {
        Access::Write { touch, .. } => (usize::from(*touch), u64::MAX),
        Access::Branch { access: BranchAccess::Write { touch }, .. } => (usize::from(*touch), u64::MAX),
        Access::Branch { access: BranchAccess::Lock { rows, limit, .. }, .. } => {
            (rows.iter().map(|rows| usize::from(rows.key)).sum(), limit.unwrap_or(u64::MAX))
        }
        Access::Read { .. } | Access::Branch { access: BranchAccess::Read | BranchAccess::Move, .. } => {
            (0, u64::MAX)
        }
    }
}

fn run_sql(connection: &Connection, request: &FragmentRequest) -> ServiceResult<(RowBatch, u64)> {
    let (cut, limit) = cut_of(&request.access);
    let mut affected = 0;
    let mut statement = connection.prepare(&request.sql).map_err(functions::error)?;
    let columns = statement.column_count();
    let mut builder = RowBatchBuilder::new((columns - cut.min(columns)) as u16);
    let no_rows = [vec![]];
    let rows: Vec<Vec<Value>> = match &request.rows {
        Some(rows) => rows.rows().map(|row| row.map(ValueRef::to_owned).collect()).collect(),
        None => no_rows.into(),
    };
    for row in rows {
        for (i, value) in row.iter().chain(&request.params).enumerate() {
            statement.raw_bind_parameter(i + 1, functions::parameter(value)).map_err(functions::error)?;
        }
        if columns == 0 {
            affected += statement.raw_execute().map_err(functions::error)? as u64;
            continue;
        }
        let mut rows = statement.raw_query();
        while affected < limit
            && let Some(row) = rows.next().map_err(functions::error)?
        {
            affected += 1;
            let mut values = Vec::new();
            for column in cut..columns {
                values.push(functions::value_ref(row.get_ref(column).map_err(functions::error)?)?);
            }
            builder.push_row(values);
        }
    }
    Ok((builder.finish(), affected))
}

impl ShardService for Fake {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        Box::pin(async move {
            self.wait_for_committed(request.shard).await;
            self.requests.lock().push(request.clone());
            let fault = self.faults.lock().pop_front();
            self.come_to(fault, || self.run(&request)).await
        })
    }

    fn apply_schema(&self, _: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async { Ok(LogIndex(1)) })
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let kind = match request.action {
                BranchAction::RollbackTo(_) => "rollback to",
                BranchAction::Commit { .. } => "commit",
                BranchAction::Prepare { .. } => "prepare",
                BranchAction::Finish { commit: true, .. } => "finish",
                BranchAction::Finish { commit: false, .. } => "let go",
                BranchAction::Renounce => "renounce",
                BranchAction::Forget(_) => "forget",
                BranchAction::Fail(_) => "fail",
            };
            self.come_to(self.note(kind, request.shard.0), || self.act(&request)).await
        })
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        self.kept_alive.lock().push(router);
        Box::pin(async { Ok(()) })
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        Box::pin(async move {
            let kind = match request.action {
                CutAction::Open { .. } => "open",
                CutAction::Settle(_) => "settle",
                CutAction::Close => "close",
                CutAction::Release => "release",
                CutAction::Drop => "drop",
            };
            let reached = match request.action {
                CutAction::Open { after, .. } => reached(after, self.log(request.shard, 0)),
                _ => Ok(()),
            };
            let (shard, epoch, is_over) = (request.shard, request.epoch, kind == "drop");
            self.cuts.lock().push((kind, request));
            if !is_over {
                self.admit(shard, epoch)?;
            }
            reached?;
            match self.cut_answers.lock().pop_front() {
                Some(answer) => answer,
                None => Ok(Vec::new()),
            }
        })
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        Box::pin(async move { self.come_to(self.note("outcome", shard.0), || Ok(self.told(request))).await })
    }

    fn branches(&self, _: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn hand_over(&self, _: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        Box::pin(async { Err(WireError::internal("no router asks for that")) })
    }

    fn tally(&self, _: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        Box::pin(async { Err(WireError::unsupported("counting on a fake")) })
    }

    fn build(&self, _: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        Box::pin(async { Err(WireError::unsupported("building on a fake")) })
    }

    fn sums(&self, _: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        Box::pin(async { Err(WireError::unsupported("adding up a fake's rows")) })
    }

    fn compare(&self, _: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        Box::pin(async { Err(WireError::unsupported("comparing a fake's rows")) })
    }

    fn changes(&self, _: ChangesRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        Box::pin(async { Err(WireError::unsupported("reading a fake's log")) })
    }
}
