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
mod nodes;

pub use bench::Bench;
pub use nodes::FakePeers;

use dialect::sqlite as functions;
use futures::StreamExt;
use parking_lot::Mutex;
use proto::catalog::{Catalog, Column, Placement, RoleChange, RoleSettings, Sequence, Table, TypeRef};
use proto::services::*;
use proto::topology::{Keyspace, Leaders, Node, Sharding, Topology};
use proto::*;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
}

/// How often it's looked whether a transaction is finished.
const LOOKS: usize = 1000;

/// The fake cluster.
pub struct Fake {
    state: tokio::sync::watch::Sender<ClusterState>,
    shards: HashMap<ShardId, Mutex<Connection>>,
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
    /// What its nodes do by themselves.
    pub nodes: nodes::Nodes,
    next: AtomicI64,
}

/// A branch: its statements that stand, with what they were told.
#[derive(Default)]
struct FakeBranch {
    statements: Vec<(u32, FragmentRequest, (RowBatch, u64))>,
    last: u32,
    undone: bool,
    prepared: bool,
    parallel: bool,
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
                first: LogIndex(0),
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
            let id = ShardId(self.shards.len() as u64 + 1);
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
                let (position, waited) = (self.log(request.shard, 0), Duration::ZERO);
                return Ok(FragmentResponse { rows, affected: *affected, position, waited });
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

    fn run_in_branch(&self, request: &FragmentRequest, branch: Branch) -> ServiceResult<FragmentResponse> {
        let mut branches = self.branches.lock();
        let key = (request.shard, branch.transaction);
        if branch.statement == 1 {
            branches.entry(key).or_default();
        }
        let Some(found) = branches.get_mut(&key) else { return Err(unknown_branch()) };
        assert!(!found.prepared, "a statement after the vote");
        if let Some((_, _, answer)) = found.statements.iter().find(|(number, ..)| *number == branch.statement)
        {
            return Ok(response_of(answer.0.clone(), answer.1, self.log(request.shard, 0)));
        }
        assert!(branch.statement >= found.last, "a number for the second time");
        if branch.statement > found.last + 1 && !found.undone {
            return Err(unknown_branch());
        }
        (found.last, found.undone) = (branch.statement, false);
        let before = found.statements.iter().map(|(_, request, _)| request);
        let answer = self.execute_sql(request.shard, before, Some(request), false)?;
        found.statements.push((branch.statement, request.clone(), answer.clone()));
        Ok(response_of(answer.0, answer.1, self.log(request.shard, 0)))
    }

    fn act(&self, request: &BranchRequest) -> ServiceResult<LogIndex> {
        let mut branches = self.branches.lock();
        let key = (request.shard, request.transaction);
        let found = branches.get_mut(&key);
        match (&request.action, found) {
            (BranchAction::RollbackTo(statement), Some(branch)) => {
                branch.statements.retain(|(number, ..)| number <= statement);
                branch.undone |= *statement < branch.last;
            }
            (BranchAction::Commit { request: id, .. }, None) if self.done.lock().contains_key(id) => {}
            (BranchAction::Commit { request: id, .. }, Some(branch)) => {
                self.execute_sql(request.shard, branch.statements.iter().map(|(_, r, _)| r), None, true)?;
                self.done.lock().insert(*id, 0);
                branches.remove(&key);
            }
            (BranchAction::Prepare { participants, parallel }, Some(branch)) => {
                branch.prepared = true;
                let mut votes = self.votes.lock();
                let missing = votes
                    .entry(request.transaction)
                    .or_insert_with(|| participants.iter().copied().collect());
                missing.remove(&request.shard);
                branch.parallel = *parallel;
            }
            (BranchAction::Finish { commit, keep }, Some(branch)) => {
                let verdict = self.verdicts.lock().get(&request.transaction).copied();
                let all_voted = self.votes.lock().get(&request.transaction).is_some_and(BTreeSet::is_empty);
                assert!(
                    verdict == Some(*commit)
                        || (*commit && *keep && branch.parallel && all_voted && verdict.is_none())
                        || (!branch.prepared && !commit && verdict != Some(true)),
                    "{request:?} against {verdict:?}"
                );
                if *commit && *keep {
                    self.kept.lock().insert(key);
                }
                if *commit {
                    self.execute_sql(request.shard, branch.statements.iter().map(|(_, r, _)| r), None, true)?;
                }
                branches.remove(&key);
            }
            (BranchAction::Finish { .. }, None) => {}
            (BranchAction::Fail(_), _) => {
                branches.remove(&key);
            }
            (BranchAction::Forget(ids), _) => {
                let mut kept = self.kept.lock();
                kept.retain(|(shard, id)| *shard != request.shard || !ids.contains(id));
            }
            _ => return Err(unknown_branch()),
        }
        let is_written = matches!(
            request.action,
            BranchAction::Commit { .. } | BranchAction::Prepare { .. } | BranchAction::Finish { .. }
        );
        Ok(self.log(request.shard, is_written.into()))
    }

    /// Notes an action, and says what befalls it.
    fn note(&self, kind: &'static str, shard: u64) -> Option<Fault> {
        self.actions.lock().push((kind, shard));
        let mut faults = self.action_faults.lock();
        let place = faults.iter().position(|(of, _)| *of == kind)?;
        Some(faults.remove(place).1)
    }

    /// Waits until what is committed by its votes is finished on a shard, unless that takes long: as statements do.
    async fn wait_for_committed(&self, of: ShardId) {
        let is_committed = |(shard, id): &(ShardId, TransactionId), branch: &FakeBranch| {
            let votes = self.votes.lock();
            *shard == of && branch.parallel && votes.get(id).is_some_and(BTreeSet::is_empty)
        };
        for _ in 0..LOOKS {
            if !self.branches.lock().iter().any(|(key, branch)| is_committed(key, branch)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// How many branches there are, on all shards together.
    pub fn open_branches(&self) -> usize {
        self.branches.lock().len()
    }

    /// A new leader: the branches that aren't prepared are lost.
    pub fn lose_branches(&self) {
        self.branches.lock().retain(|_, branch| branch.prepared);
    }

    /// The actions of a kind so far, by the shards' numbers, sorted.
    pub fn acted(&self, kind: &str) -> Vec<u64> {
        let mut shards: Vec<_> =
            self.actions.lock().iter().filter(|(of, _)| *of == kind).map(|(_, shard)| *shard).collect();
        shards.sort_unstable();
        shards
    }

    /// Runs statements in a transaction of the shard's SQLite. What the last one gave.
    fn execute_sql<'a>(
        &self,
        shard: ShardId,
        before: impl IntoIterator<Item = &'a FragmentRequest>,
        last: Option<&FragmentRequest>,
        commit: bool,
    ) -> ServiceResult<(RowBatch, u64)> {
        let mut connection = self.shards[&shard].lock();
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
        Ok(answer)
    }
}

/// Says whether a log that is at `at` has a position.
fn reached(position: LogIndex, at: LogIndex) -> ServiceResult<()> {
    if position <= at {
        return Ok(());
    }
    let message = format!("index {position} has not been reached: the log is at {at}");
    Err(WireError::new(SqlState::POSITION_NOT_REACHED, message).with_retry(Retry::Behind(at)))
}

fn unknown_branch() -> WireError {
    WireError::new(
        SqlState::SERIALIZATION_FAILURE,
        "the transaction was aborted: the shard's leader has changed",
    )
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
            match self.note(kind, request.shard.0) {
                Some(Fault::Before(error)) => Err(error),
                Some(Fault::After(error)) => {
                    self.act(&request)?;
                    Err(error)
                }
                Some(Fault::Hang) => std::future::pending().await,
                None => self.act(&request),
            }
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
            self.cuts.lock().push((kind, request));
            reached?;
            match self.cut_answers.lock().pop_front() {
                Some(answer) => answer,
                None => Ok(Vec::new()),
            }
        })
    }

    fn branches(&self, _: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn changes(&self, _: ChangesRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        Box::pin(async { Err(WireError::unsupported("reading a fake's log")) })
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

    fn report(
        &self,
        _: NodeId,
        _: Vec<ReplicaStatus>,
        _: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        let version = self.state.borrow().catalog.version().0 + 1;
        match request.change {
            SchemaChange::AlterRole { role, change } => self.alter_role(role, change),
            SchemaChange::CreateSequence(_)
            | SchemaChange::ReplaceSequence { .. }
            | SchemaChange::DropSequences(_) => {}
            _ => {
                for shard in self.shards.keys() {
                    self.log(*shard, 1);
                }
            }
        }
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

    fn reshard(&self, _: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>> {
        Box::pin(async { Err(WireError::unsupported("resharding a fake cluster")) })
    }

    fn command(&self, _: ReshardId, _: ReshardCommand) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("resharding a fake cluster")) })
    }

    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        Box::pin(async move {
            let decide = || {
                let mut keys = self.keys.lock();
                let claim = decision.key.as_ref().and_then(|key| keys.get_mut(key));
                let is_other = |(by, _): &(TransactionId, bool)| *by != decision.transaction;
                let other = claim.as_deref().copied().filter(is_other);
                let commit =
                    decision.commit && (decision.key.is_none() || claim.is_some() && other.is_none());
                let committed = *self.verdicts.lock().entry(decision.transaction).or_insert(commit);
                let positions = decision.positions.clone();
                self.positions.lock().entry(decision.transaction).or_insert(positions);
                if let Some((_, spent)) = claim.filter(|_| other.is_none()) {
                    *spent |= committed;
                }
                let duplicate_of = other.filter(|(_, spent)| *spent).map(|(by, _)| by);
                Verdict { committed, position: LogIndex(1), duplicate_of }
            };
            match self.note(if decision.commit { "decide" } else { "abort" }, 0) {
                Some(Fault::Before(error)) => Err(error),
                Some(Fault::After(error)) => {
                    decide();
                    Err(error)
                }
                Some(Fault::Hang) => std::future::pending().await,
                None => Ok(decide()),
            }
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>> {
        Box::pin(async move {
            let claim = || {
                let mut keys = self.keys.lock();
                let (by, spent) = keys.get(&claim.key).copied().unwrap_or((claim.transaction, false));
                if spent {
                    let finished = self.finished.lock().contains(&by);
                    let positions = self.positions.lock().get(&by).cloned().unwrap_or_default();
                    return Some(Spent { transaction: by, finished, positions });
                }
                keys.insert(claim.key.clone(), (claim.transaction, false));
                None
            };
            match self.note("claim", 0) {
                Some(Fault::Before(error)) => Err(error),
                Some(Fault::After(error)) => {
                    claim();
                    Err(error)
                }
                Some(Fault::Hang) => std::future::pending().await,
                None => Ok(claim()),
            }
        })
    }

    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        self.finished.lock().extend(transactions);
        Box::pin(async { Ok(()) })
    }

    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        let status = |transaction: TransactionId| {
            let committed = *self.verdicts.lock().get(&transaction)?;
            let finished = self.finished.lock().contains(&transaction);
            let positions = self.positions.lock().get(&transaction).cloned().unwrap_or_default();
            Some(TransactionStatus { transaction, participants: vec![], committed, finished, positions })
        };
        let found = one.and_then(status);
        Box::pin(async move { Ok(found.into_iter().collect()) })
    }

    fn create_keyspace(&self, _: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async { Err(WireError::unsupported("a keyspace of a fake cluster")) })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        let mut state = self.state.borrow().clone();
        if let Some(catalog) = &*self.untold.lock() {
            state.catalog = catalog.clone();
        }
        if let Some(topology) = &*self.untold_topology.lock() {
            state.topology = topology.clone();
        }
        let fault = self.note("status", 0);
        Box::pin(async move {
            match fault {
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Before(error) | Fault::After(error)) => return Err(error),
                None => {}
            }
            Ok(ClusterStatus {
                state,
                replicas: vec![],
                heard: vec![],
                jobs: vec![],
                alarms: vec![],
                loads: vec![],
            })
        })
    }
}
