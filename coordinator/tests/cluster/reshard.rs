//! Wishes for reshards, commands, and what is told of them.

use crate::common::{Cluster, PATIENCE, Shape};
use crate::tables::{MAIN, create, hashed, table};
use proto::services::{
    Access, Branch, BranchAccess, BranchAction, BranchRequest, ClusterState, Consistency, CoordinatorService,
    Floor, FragmentRequest, HandOverAction, Peers, ReplicaAction, ReplicaTarget, ReshardCommand,
    ReshardCourse, ReshardOptions, ReshardPhase, ReshardPlan, ReshardStatus, ReshardWish, ServiceResult,
    ShardService, SplitAt,
};
use proto::topology::{Shard, Topology};
use proto::{
    GroupId, KeyspaceId, LogIndex, NodeId, RequestId, ReshardId, Retry, RouterIncarnation, ShardId, SqlState,
    TableId, TransactionId, ValueRef, WireError,
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A wish to split a shard in two.
pub fn split(request: RequestId, shard: &str) -> ReshardWish {
    let course = ReshardCourse::Split { shard: shard.into(), at: SplitAt::Evenly(2) };
    ReshardWish { request, course, options: ReshardOptions::default(), dry_run: false }
}

pub async fn begin(cluster: &Cluster, wish: &ReshardWish) -> ServiceResult<ReshardPlan> {
    let begin = |coordinator: std::sync::Arc<dyn CoordinatorService>| {
        let wish = wish.clone();
        async move { coordinator.reshard(wish).await }
    };
    cluster.ask(begin).await
}

pub async fn command(cluster: &Cluster, id: ReshardId, command: ReshardCommand) -> ServiceResult<()> {
    let request = cluster.name();
    cluster.ask(|coordinator| async move { coordinator.command(request, id, command).await }).await
}

pub async fn statuses(cluster: &Cluster) -> Vec<ReshardStatus> {
    cluster.ask(|coordinator| async move { coordinator.reshards().await }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_is_refused_before_anything_happens() {
    let cluster = Cluster::start(3, 2).await;
    // Its coordinators needn't have told of this one all at once.
    let before = cluster.formed().await.topology;
    let wishes = [
        (split(cluster.name(), "main/-70"), SqlState::UNDEFINED_OBJECT),
        (split(cluster.name(), "single/-"), SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
        (
            ReshardWish {
                course: ReshardCourse::Merge { shards: vec!["main/-80".into()] },
                ..split(cluster.name(), "")
            },
            SqlState::INVALID_PARAMETER_VALUE,
        ),
    ];
    for (wish, sqlstate) in wishes {
        let refused = begin(&cluster, &wish).await.unwrap_err();
        assert_eq!(refused.sqlstate, sqlstate, "{refused:?}");
        assert!(refused.hint.is_some() || sqlstate == SqlState::INVALID_PARAMETER_VALUE, "{refused:?}");
    }
    let dry = ReshardWish { dry_run: true, ..split(cluster.name(), "main/-80") };
    let told = begin(&cluster, &dry).await.unwrap();
    assert_eq!((told.reshard, told.what.as_str()), (None, "split main/-80 into main/-40, main/40-80"));
    let shards: Vec<_> = told.shards.iter().map(|(name, nodes)| (name.as_str(), nodes.len())).collect();
    assert_eq!(shards, [("main/-40", 3), ("main/40-80", 3)]);
    let unknown = command(&cluster, ReshardId(1), ReshardCommand::Switch).await.unwrap_err();
    assert_eq!(unknown.sqlstate, SqlState::UNDEFINED_OBJECT);
    assert_eq!(statuses(&cluster).await, []);
    let after = cluster.state_where(|state| state.topology.epoch >= before.epoch).await.topology;
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reshard_is_known_to_the_next_leader_and_to_a_new_replica() {
    let mut cluster = Cluster::start_as(Shape { nodes: 4, shards: 2, ..Shape::default() }).await;
    let wish = split(cluster.name(), "main/-80");
    let begun = begin(&cluster, &wish).await.unwrap();
    assert_eq!(begin(&cluster, &wish).await.unwrap(), begun);
    let id = begun.reshard.unwrap();
    command(&cluster, id, ReshardCommand::Pause).await.unwrap();
    let second = begin(&cluster, &split(cluster.name(), "main/-80")).await.unwrap_err();
    assert_eq!(second.sqlstate, SqlState::OBJECT_IN_USE);
    let hint = second.hint.unwrap();
    assert!(hint.contains(&format!("shoal reshard cancel {id}")), "{hint}");
    // The coordinator moves, bit by bit, to a node that had no part in it.
    let leader = cluster.leader().await;
    let action = ReplicaAction::Move { from: leader, to: NodeId(4) };
    let target = ReplicaTarget::Group(GroupId::COORDINATOR);
    crate::replicas::change(&cluster, target, action).await.unwrap();
    let next = cluster.leader().await;
    cluster.stop(next).await;
    cluster.open(next);
    let known = statuses(&cluster).await;
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].id, known[0].keyspace.as_str()), (id, "main"));
    assert_eq!((&known[0].old, &known[0].new.len()), (&vec!["main/-80".to_owned()], &2));
    assert_eq!(known[0].paused.as_deref(), Some("an admin has paused it"));
    assert_eq!(begin(&cluster, &wish).await.unwrap(), begun);
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    assert!(statuses(&cluster).await[0].phase >= ReshardPhase::Cancelling);
    assert_eq!(statuses(&cluster).await[0].failed.as_deref(), Some("it was cancelled"));
}

/// A reshard's status once it is as wanted.
async fn status_where(
    cluster: &Cluster,
    id: ReshardId,
    wanted: impl Fn(&ReshardStatus) -> bool,
) -> ReshardStatus {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let found = async {
        loop {
            let all = statuses(cluster).await;
            if let Some(status) = all.into_iter().find(|status| status.id == id && wanted(status)) {
                return status;
            }
            pause.tick().await;
        }
    };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(status) => status,
        Err(_) => panic!("it doesn't get there: {:?}", statuses(cluster).await),
    }
}

/// The names under which any replica keeps its log.
async fn holds(cluster: &Cluster) -> BTreeSet<(GroupId, String)> {
    let mut held = BTreeSet::new();
    for node in (1..=cluster.shape.nodes).map(NodeId) {
        let Some(service) = cluster.directory.replica_service(node) else { continue };
        for status in service.replicas().await.unwrap() {
            held.extend(status.holds.into_iter().map(|hold| (status.group, hold.name)));
        }
    }
    held
}

/// Has a shard's log held.
async fn hold(cluster: &Cluster, shard: &Shard, name: &str) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let held = async {
        loop {
            for node in &shard.replicas {
                let service = cluster.directory.replica_service(*node).unwrap();
                let held = service.hold_log(shard.group, name.into(), Some(LogIndex(1000)), PATIENCE);
                match held.await {
                    Ok(_) => return,
                    Err(error) => assert!(matches!(error.retry, Retry::NotLeader(_)), "{error:?}"),
                }
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("a leader has it held");
}

/// The phases that the leader's metrics tell.
async fn told_phase(cluster: &Cluster) -> Vec<String> {
    let metrics = cluster.directory.coordinator(cluster.leader().await).metrics();
    let phases = metrics.iter().filter(|family| family.get_name() == "shoal_reshard_phase");
    let labels = phases.flat_map(|family| family.get_metric()).flat_map(|metric| metric.get_label());
    labels.filter(|label| label.get_name() == "phase").map(|label| label.get_value().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_comes_after_its_reshard_has_ended_is_ended() {
    let cluster = Cluster::start(3, 1).await;
    let shard = crate::replicas::shard(&cluster).await;
    let wish =
        ReshardWish { course: split(cluster.name(), "main/-").course, ..split(cluster.name(), "main/-") };
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    assert_eq!(id, ReshardId(1));
    for name in ["reshard/9/1", "other/9/1"] {
        hold(&cluster, &shard, name).await;
    }
    let own = |name: &str| (shard.group, name.to_owned());
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let ended = async {
        loop {
            let held = holds(&cluster).await;
            let mine = held.iter().any(|(_, name)| name.starts_with("reshard/1/"));
            if mine && held.contains(&own("other/9/1")) && !held.contains(&own("reshard/9/1")) {
                return;
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("what nobody needs is let go");
}

/// Waits until nothing is left of a reshard but its record.
async fn as_before(cluster: &Cluster, before: &Shard) {
    let back = |state: &ClusterState| {
        let topology = &state.topology;
        let shard = topology.shards.get(&before.id);
        shard.is_some_and(|shard| shard.replicas == before.replicas)
            && topology.joining.is_empty()
            && topology.reshards.is_empty()
    };
    cluster.state_where(back).await;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let gone = async {
        while !holds(cluster).await.is_empty() {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the holds end");
}

/// A cluster of five nodes, and a wish that has one build that holds nothing.
async fn lent() -> (Cluster, ReshardWish, NodeId) {
    let cluster = Cluster::start_as(Shape { shards: 1, ..Shape::default() }).await;
    let shard = crate::replicas::shard(&cluster).await;
    let builder = *crate::replicas::others(&shard.replicas).last().unwrap();
    let mut wish = split(cluster.name(), "main/-");
    wish.options.builder = Some(builder);
    (cluster, wish, builder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_gets_what_it_lacks_logs_are_held_and_cancelling_leaves_nothing() {
    let (cluster, wish, builder) = lent().await;
    let before = crate::replicas::shard(&cluster).await;
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    let begun = |state: &ClusterState| state.topology.reshards.iter().any(|shown| shown.build.is_some());
    let topology = cluster.state_where(begun).await.topology;
    assert_eq!(topology.reshards[0].build.as_ref().unwrap().node, builder);
    assert!(topology.shards[&before.id].replicas.contains(&builder), "it has a replica to make an image of");
    let status = status_where(&cluster, id, |status| status.phase == ReshardPhase::Ready).await;
    assert_eq!((status.wanted, status.attempt.0), (false, 0));
    // Its worker knows a moment later.
    let told = async {
        while told_phase(&cluster).await != ["ready"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("its metrics tell");
    let held = holds(&cluster).await;
    let is_held =
        |(group, name): &(GroupId, String)| *group == before.group && name.starts_with("reshard/1/");
    assert!(held.iter().any(is_held), "{held:?}");

    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    let cancelled = status_where(&cluster, id, |status| status.phase == ReshardPhase::Ended).await;
    assert_eq!(cancelled.failed.as_deref(), Some("it was cancelled"));
    as_before(&cluster, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_doesnt_wait_for_a_builder_that_is_dead() {
    let (mut cluster, wish, builder) = lent().await;
    let before = crate::replicas::shard(&cluster).await;
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    status_where(&cluster, id, |status| status.phase == ReshardPhase::Ready).await;
    let topology = cluster.state().await.topology;
    let groups: Vec<_> = new_shards(&topology).iter().map(|shard| topology.shards[shard].group).collect();
    cluster.stop(builder).await;
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    status_where(&cluster, id, |status| status.phase == ReshardPhase::Ended).await;
    as_before(&cluster, &before).await;

    cluster.open(builder);
    for group in groups {
        crate::members::replica_where(&cluster, builder, group, |status| status.is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_with_it() {
    let (mut cluster, wish, builder) = lent().await;
    let before = crate::replicas::shard(&cluster).await;
    cluster.directory.idle.store(true, Ordering::Relaxed);
    // Nobody gets a replica.
    let refused = || WireError::new(SqlState::CANNOT_CONNECT_NOW, "a test").with_retry(Retry::Later);
    cluster.directory.script(Some(Box::new(move |_, _| Err(refused()))));
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    let group = before.group;
    cluster.directory.asked(|of, voters| of == group && voters.contains(&builder)).await;
    assert_eq!(statuses(&cluster).await[0].phase, ReshardPhase::Placing);
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    cluster.directory.script(None);
    let phase = status_where(&cluster, id, |status| status.phase >= ReshardPhase::Imaging).await.phase;
    assert_eq!(phase, ReshardPhase::Imaging);
    let leader = cluster.leader().await;
    // The next one asks for what the last one has asked for.
    status_where(&cluster, id, |status| !status.message.is_empty()).await;
    cluster.stop(leader).await;
    cluster.open(leader);
    status_where(&cluster, id, |status| !status.message.is_empty()).await;
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    cluster.directory.idle.store(false, Ordering::Relaxed);
    status_where(&cluster, id, |status| status.phase == ReshardPhase::Ended).await;
    as_before(&cluster, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_changes_wait_for_images_for_a_while_and_no_longer() {
    let cluster = Cluster::start(1, 2).await;
    cluster.directory.idle.store(true, Ordering::Relaxed);
    begin(&cluster, &split(cluster.name(), "main/-80")).await.unwrap();
    let tries = |state: &ClusterState| {
        state.topology.reshards.first().and_then(|shown| shown.build.as_ref()).map(|build| build.tries)
    };
    cluster.state_where(|state| tries(state) == Some(1)).await;
    let shard = cluster.shards_of(MAIN).await[0];
    let held = async {
        while holds(&cluster).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap();
    // Nobody begins an image: the change comes when that has taken too long, and then there is another try.
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let state = cluster.state_where(|state| tries(state) == Some(2)).await;
    let t = state.catalog.table_named("t").map(|table| table.id);
    assert_eq!(cluster.count(shard, t.unwrap()).await, 0);
}

/// Rows of a table `(a, b)` by their keys, each on the shard whose it is.
struct Rows<'a> {
    cluster: &'a Cluster,
    table: TableId,
    written: BTreeSet<i64>,
}

impl<'a> Rows<'a> {
    async fn new(cluster: &'a Cluster) -> Rows<'a> {
        cluster.change(create(table("t", hashed()))).await.unwrap();
        let table = cluster.state().await.catalog.table_named("t").unwrap().id;
        Rows { cluster, table, written: BTreeSet::new() }
    }

    /// Writes so many more.
    async fn write(&mut self, count: i64) {
        let first = self.written.last().map_or(1, |last| last + 1);
        let topology = self.cluster.state().await.topology;
        for key in first..first + count {
            let id = KeyspaceId::hash([ValueRef::Int(key)]).0;
            let shard = topology.shard_for(MAIN, &id).unwrap();
            let insert = format!("INSERT INTO t{} VALUES ({key}, 1)", self.table);
            self.cluster.run(shard, &insert).await.unwrap();
            self.written.insert(key);
        }
    }

    /// Waits until these shards' groups have the rows that are theirs and no others, on each replica.
    async fn are_on(&self, topology: &Topology, shards: &[ShardId]) {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        for shard in shards.iter().map(|shard| &topology.shards[shard]) {
            let own = |key: &i64| shard.range.contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0);
            let wanted: BTreeSet<_> = self.written.iter().copied().filter(own).collect();
            for node in &shard.replicas {
                let there = async {
                    loop {
                        let replica = self.cluster.host_of(*node).and_then(|host| host.replica(shard.group));
                        if let Some(replica) = replica
                            && self.keys(&replica).await == wanted
                        {
                            return;
                        }
                        pause.tick().await;
                    }
                };
                tokio::time::timeout(PATIENCE, there).await.expect("a replica gets its rows");
            }
        }
    }

    async fn keys(&self, replica: &replica::Replica) -> BTreeSet<i64> {
        let deadline = Instant::now() + PATIENCE;
        let snapshot = replica.snapshot(Consistency::Eventual, deadline).await.unwrap();
        let sql = format!("SELECT c1 FROM t{}", self.table);
        let mut statement = snapshot.connection().prepare(&sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

/// The new shards of the only reshard.
fn new_shards(topology: &Topology) -> Vec<ShardId> {
    let main = &topology.keyspaces[&MAIN];
    let own = topology.shards.values().filter(|shard| shard.keyspace == MAIN);
    own.map(|shard| shard.id).filter(|id| !main.shards.contains(id)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_comes_to_ready_while_rows_are_written_and_cancelling_leaves_nothing() {
    let cluster = Cluster::start_as(Shape { shards: 1, ..Shape::default() }).await;
    let mut rows = Rows::new(&cluster).await;
    rows.write(100).await;
    let before = crate::replicas::shard(&cluster).await;
    let id = begin(&cluster, &split(cluster.name(), "main/-")).await.unwrap().reshard.unwrap();
    let at = |phase| move |status: &ReshardStatus| status.phase >= phase;
    status_where(&cluster, id, at(ReshardPhase::Spreading)).await;
    rows.write(50).await;
    let status = status_where(&cluster, id, at(ReshardPhase::Ready)).await;
    assert_eq!((status.phase, status.attempt.0, status.wanted), (ReshardPhase::Ready, 0, false));
    rows.write(50).await;
    let topology = cluster.state().await.topology;
    let new = new_shards(&topology);
    assert_eq!(new.len(), 2);
    assert!(new.iter().all(|shard| topology.shards[shard].replicas.len() == 3));
    rows.are_on(&topology, &new).await;
    assert_eq!(cluster.count(before.id, rows.table).await, 200, "the old one serves");
    let lag = status_where(&cluster, id, |status| status.lag.is_some()).await.lag.unwrap();
    assert!(lag < PATIENCE);

    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    status_where(&cluster, id, at(ReshardPhase::Ended)).await;
    as_before(&cluster, &before).await;
    let groups: Vec<_> = new.iter().map(|shard| topology.shards[shard].group).collect();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let gone = async {
        for node in (1..=cluster.shape.nodes).map(NodeId) {
            let host = cluster.host_of(node).unwrap();
            while groups.iter().any(|group| host.replica(*group).is_some()) {
                pause.tick().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the new groups go");
    rows.write(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_comes_to_ready_though_each_phase_has_another_leader() {
    let mut cluster = Cluster::start_as(Shape { shards: 2, ..Shape::default() }).await;
    let written = {
        let mut rows = Rows::new(&cluster).await;
        rows.write(100).await;
        rows.written
    };
    let mut wish = split(cluster.name(), "");
    wish.course = ReshardCourse::Merge { shards: vec!["main/80-".into(), "main/-80".into()] };
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    let mut phase = ReshardPhase::Planned;
    while phase != ReshardPhase::Ready {
        let last = phase;
        phase = status_where(&cluster, id, |status| status.phase != last).await.phase;
        let leader = cluster.leader().await;
        cluster.stop(leader).await;
        cluster.open(leader);
    }
    let topology = cluster.state().await.topology;
    let new = new_shards(&topology);
    let table = cluster.state().await.catalog.table_named("t").unwrap().id;
    let rows = Rows { cluster: &cluster, table, written };
    rows.are_on(&topology, &new).await;
}

/// A block, which has begun.
const BLOCK: TransactionId = TransactionId { router: RouterIncarnation(5), sequence: 1 };

/// The block's first statement on a shard.
async fn update(cluster: &Cluster, shard: ShardId, table: TableId) -> ServiceResult<u64> {
    let state = cluster.state().await;
    let branch = Branch { transaction: BLOCK, begun: 1, statement: 1, lock_timeout: None, alone: false };
    let fragment = FragmentRequest {
        shard,
        epoch: state.topology.epoch,
        schema_version: state.catalog.version(),
        sql: format!("UPDATE t{table} SET c2 = 2").into(),
        params: Vec::new(),
        rows: None,
        access: Access::Branch { branch, access: BranchAccess::Write { touch: 0 } },
        cut: None,
        floor: Floor::default(),
        timeout: PATIENCE,
    };
    let execute = |service: std::sync::Arc<dyn ShardService>| {
        let fragment = fragment.clone();
        async move { service.execute(fragment).await }
    };
    cluster.ask_shard(shard, execute).await.map(|done| done.affected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_over_shards_that_are_merged_goes_on_until_its_end() {
    let cluster = Cluster::start(3, 2).await;
    cluster.directory.branches.send_modify(|branches| branches.real = true);
    let mut rows = Rows::new(&cluster).await;
    rows.write(20).await;
    let shards = cluster.shards_of(MAIN).await;
    let mut wish = split(cluster.name(), "");
    wish.course = ReshardCourse::Merge { shards: vec!["main/-80".into(), "main/80-".into()] };
    wish.options.drain = Duration::from_secs(4);
    let id = begin(&cluster, &wish).await.unwrap().reshard.unwrap();
    status_where(&cluster, id, |status| status.phase == ReshardPhase::Ready).await;
    assert!(update(&cluster, shards[0], rows.table).await.unwrap() > 0);
    command(&cluster, id, ReshardCommand::Switch).await.unwrap();
    let is_clear = |action: &HandOverAction| matches!(action, HandOverAction::Clear { .. });
    let is_seal = |action: &HandOverAction| matches!(action, HandOverAction::Seal { cleared: true, .. });
    cluster.directory.handed(&shards, is_clear).await;
    // It comes to the other shard only now.
    assert!(update(&cluster, shards[1], rows.table).await.unwrap() > 0);
    let handed = cluster.directory.handed(&[], is_seal).await;
    assert!(!handed.iter().any(|(_, action)| is_seal(action)), "{handed:?}");
    let epoch = cluster.state().await.topology.epoch;
    for shard in shards.iter().copied() {
        let action = BranchAction::Finish { commit: false, keep: false };
        let (transaction, on_behalf) = (BLOCK, None);
        let request = BranchRequest { shard, epoch, on_behalf, transaction, action, timeout: PATIENCE };
        let transact = |service: std::sync::Arc<dyn ShardService>| {
            let request = request.clone();
            async move { service.transact(request).await }
        };
        cluster.ask_shard(shard, transact).await.unwrap();
    }
    cluster.directory.handed(&shards, is_seal).await;
    let status = status_where(&cluster, id, |status| status.phase == ReshardPhase::Switched).await;
    assert_eq!((status.attempt.0, status.switches, status.ended), (1, 1, 0), "{status:?}");
    rows.write(10).await;
    let topology = cluster.state().await.topology;
    rows.are_on(&topology, &topology.keyspaces[&MAIN].shards).await;
}

/// Changes rows of a shard's group by nobody's leave.
async fn plant(cluster: &Cluster, group: GroupId, sql: &str) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let planted = async {
        loop {
            for node in (1..=cluster.shape.nodes).map(NodeId) {
                let Some(replica) = cluster.host_of(node).and_then(|host| host.replica(group)) else {
                    continue;
                };
                let sql = sql.to_owned();
                let run = move |stage: &replica::Stage<'_>| {
                    stage.execute_batch(&sql).unwrap();
                    Ok(bytes::Bytes::new())
                };
                let deadline = Instant::now() + PATIENCE;
                let write = replica::Write { request: None, settled: 0, deadline, run: Box::new(run) };
                if replica.write(write).await.is_ok() {
                    return;
                }
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, planted).await.expect("somebody leads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_differ_are_named_and_have_it_rest_until_they_are_the_same() {
    let cluster = Cluster::start_as(Shape { shards: 1, ..Shape::default() }).await;
    let mut rows = Rows::new(&cluster).await;
    rows.write(100).await;
    let id = begin(&cluster, &split(cluster.name(), "main/-")).await.unwrap().reshard.unwrap();
    let at = |phase| move |status: &ReshardStatus| status.phase == phase && status.paused.is_none();
    let ready = status_where(&cluster, id, at(ReshardPhase::Ready)).await;
    assert!(ready.message.starts_with("equal at main/-."), "{}", ready.message);
    let topology = cluster.state().await.topology;
    let last = new_shards(&topology)[1];
    let group = topology.shards[&last].group;
    let own = |key: &&i64| topology.shards[&last].range.contains(&KeyspaceId::hash([ValueRef::Int(**key)]).0);
    let key = *rows.written.iter().find(own).unwrap();
    let table = rows.table;
    plant(&cluster, group, &format!("UPDATE t{table} SET c2 = 2 WHERE c1 = {key}")).await;
    for told in [ReshardCommand::Verify, ReshardCommand::Resume] {
        command(&cluster, id, told).await.unwrap();
        let paused = status_where(&cluster, id, |status| status.paused.is_some()).await;
        assert_eq!(paused.phase, ReshardPhase::Verifying);
        let why = paused.paused.unwrap();
        let named = why.starts_with("old and new differ: table t: ");
        assert!(
            named
                && why.contains(" rows on main/- and ")
                && why.contains(" on main/80- aren't the same, at main/-."),
            "{why}"
        );
    }
    plant(&cluster, group, &format!("UPDATE t{table} SET c2 = 1 WHERE c1 = {key}")).await;
    // It goes on while rows are written.
    command(&cluster, id, ReshardCommand::Resume).await.unwrap();
    rows.write(20).await;
    status_where(&cluster, id, at(ReshardPhase::Ready)).await;
    command(&cluster, id, ReshardCommand::Verify).await.unwrap();
    status_where(&cluster, id, at(ReshardPhase::Ready)).await;
}
