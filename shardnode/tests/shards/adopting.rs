//! Shards that take the place of sealed ones: what they adopt, and what comes of it if the seal is undone.

use crate::common::{Node, PATIENCE, rows};
use crate::flows::{Cluster, HALVES, TABLE, WHOLE, flows, insert};
use bytes::Bytes;
use proto::services::{
    Access, Branch, BranchAccess, BranchAction, BranchRequest, BranchStatus, FragmentRequest, HandOver,
    HandOverAction, HandedOver, Reached, ShardService,
};
use proto::topology::Topology;
use proto::{
    Attempt, LogIndex, RequestId, ReshardId, Retry, RouterIncarnation, ShardId, TransactionId, Value,
    WireError,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A participant elsewhere.
const OTHER: ShardId = ShardId(99);

/// How long is waited for what isn't to come.
const SHORT: Duration = Duration::from_millis(200);

fn id(sequence: u64) -> TransactionId {
    TransactionId { router: RouterIncarnation(5), sequence }
}

/// A cluster whose targets follow, with a table of 40 rows.
async fn start(count: u64, splits: bool) -> Cluster {
    let cluster = Cluster::start(count, splits, |_| {}).await;
    let (sources, targets) = if splits { (&[WHOLE][..], &HALVES[..]) } else { (&HALVES[..], &[WHOLE][..]) };
    for target in targets {
        set(&cluster, *target, 2).await;
    }
    for source in sources {
        cluster.schema(*source, 1, TABLE).await.unwrap();
    }
    cluster
}

/// Sets what a shard's group serves as.
async fn set(cluster: &Cluster, shard: ShardId, state: u32) {
    let (_, replica) = cluster.leader(shard).await;
    let sql = format!("UPDATE shoal_shard SET shard = {shard}, state = {state}");
    let run = move |stage: &replica::Stage<'_>| {
        stage.execute_batch(&sql).unwrap();
        Ok(Bytes::new())
    };
    let deadline = Instant::now() + PATIENCE;
    let write = replica::Write { request: None, settled: 0, deadline, run: Box::new(run) };
    replica.write(write).await.unwrap();
}

/// Asks whoever leads a shard's group.
async fn ask(
    cluster: &Cluster,
    shard: ShardId,
    attempt: u32,
    action: HandOverAction,
    timeout: Duration,
) -> Result<HandedOver, WireError> {
    let end = Instant::now() + timeout;
    loop {
        let (node, _) = cluster.leader(shard).await;
        let (reshard, attempt, action) = (ReshardId(7), Attempt(attempt), action.clone());
        let timeout = SHORT.min(timeout);
        match node.shards.hand_over(HandOver { shard, reshard, attempt, action, timeout }).await {
            Err(error) if error.retry != Retry::Never && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

async fn seal(cluster: &Cluster, shard: ShardId, attempt: u32) -> LogIndex {
    let sealed = ask(cluster, shard, attempt, HandOverAction::Seal { drain: SHORT, cleared: true }, PATIENCE)
        .await
        .unwrap();
    assert!(matches!(sealed, HandedOver::Sealed { .. }), "{sealed:?}");
    let (_, replica) = cluster.leader(shard).await;
    replica.status().applied
}

async fn unseal(cluster: &Cluster, shard: ShardId, attempt: u32) {
    let unsealed = ask(cluster, shard, attempt, HandOverAction::Unseal, PATIENCE).await.unwrap();
    assert_eq!(unsealed, HandedOver::Unsealed);
}

async fn reached(cluster: &Cluster, shard: ShardId, attempt: u32) -> Reached {
    match ask(cluster, shard, attempt, HandOverAction::Reached, PATIENCE).await.unwrap() {
        HandedOver::Reached(reached) => reached,
        other => panic!("{other:?}"),
    }
}

async fn is_not_reached(cluster: &Cluster, shard: ShardId, attempt: u32) {
    let error = ask(cluster, shard, attempt, HandOverAction::Reached, SHORT).await.unwrap_err();
    assert_eq!(error.retry, Retry::Later, "{error}");
}

fn gate(attempt: Option<u32>) -> impl FnOnce(&mut Topology) {
    move |topology| topology.reshards[0].gate = attempt.map(Attempt)
}

async fn write(cluster: &Cluster, shard: ShardId, sql: &str, sequence: u64) -> Result<LogIndex, WireError> {
    cluster.write(shard, sql, sequence).await
}

async fn act(
    cluster: &Cluster,
    (shard, on_behalf): (ShardId, Option<ShardId>),
    transaction: TransactionId,
    action: BranchAction,
) -> Result<LogIndex, WireError> {
    let (node, _) = cluster.leader(shard).await;
    let epoch = cluster.state.topology.epoch;
    let request = BranchRequest { shard, epoch, on_behalf, transaction, action, timeout: PATIENCE };
    node.shards.transact(request).await
}

/// Prepares a transaction of one statement.
async fn prepare(cluster: &Cluster, shard: ShardId, sql: &str, sequence: u64) {
    let (node, _) = cluster.leader(shard).await;
    let branch =
        Branch { transaction: id(sequence), begun: sequence, statement: 1, lock_timeout: None, alone: false };
    let access = Access::Branch { branch, access: BranchAccess::Write { touch: 0 } };
    let request = FragmentRequest { shard, access, ..node.read(sql, false) };
    assert!(node.shards.execute(request).await.unwrap().affected > 0);
    let participants = vec![HALVES[0], HALVES[1], WHOLE, OTHER];
    let action = BranchAction::Prepare { participants, parallel: true };
    act(cluster, (shard, None), id(sequence), action).await.unwrap();
}

const COMMIT: BranchAction = BranchAction::Finish { commit: true, keep: true };

async fn statuses(cluster: &Cluster, shard: ShardId) -> Vec<BranchStatus> {
    let (node, _) = cluster.leader(shard).await;
    node.shards.branches(shard).await.unwrap()
}

/// What a strong read of a shard's rows gives.
async fn read(cluster: &Cluster, shard: ShardId) -> Result<BTreeSet<String>, WireError> {
    let (node, _) = cluster.leader(shard).await;
    let epoch = cluster.state.topology.epoch;
    let read = node.read("SELECT c1 || '=' || c2 FROM t1", false);
    let answer = node.shards.execute(FragmentRequest { shard, epoch, timeout: SHORT, ..read }).await?;
    let text = |row: Vec<Value>| match row.into_iter().next() {
        Some(Value::Text(text)) => text,
        other => panic!("{other:?}"),
    };
    Ok(rows(answer.rows).await?.into_iter().map(text).collect())
}

fn leader_node(found: (&Node, replica::Replica)) -> &Node {
    found.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_adopt_what_the_whole_leaves() {
    let mut cluster = start(3, true).await;
    write(&cluster, WHOLE, &insert(0..40, "x"), 1).await.unwrap();
    // One is prepared, and one has committed and is remembered.
    prepare(&cluster, WHOLE, "UPDATE t1 SET c2 = 'ended' WHERE c1 >= 20", 2).await;
    act(&cluster, (WHOLE, None), id(2), COMMIT).await.unwrap();
    prepare(&cluster, WHOLE, "UPDATE t1 SET c2 = 'prepared' WHERE c1 < 20", 1).await;
    let before = cluster.rows(WHOLE).await;
    let last = seal(&cluster, WHOLE, 1).await;
    cluster.change(gate(Some(2)));
    for half in HALVES {
        // The topology doesn't say that they are to be another attempt's.
        is_not_reached(&cluster, half, 1).await;
        assert_eq!(read(&cluster, half).await.unwrap_err().retry, Retry::Later);
    }
    cluster.change(gate(Some(1)));
    let mut together = BTreeSet::new();
    for half in HALVES {
        let Reached { first, sources } = reached(&cluster, half, 1).await;
        let (_, replica) = cluster.leader(half).await;
        assert!(first <= replica.status().applied);
        assert_eq!(sources.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [WHOLE]);
        assert!(sources[0].1 <= last);
        is_not_reached(&cluster, half, 2).await;
        // What is prepared is in the way of who reads what it may have changed.
        assert_eq!(read(&cluster, half).await.unwrap_err().sqlstate.as_str(), "57014");
        let known = statuses(&cluster, half).await;
        assert_eq!(known.iter().map(|of| of.transaction).collect::<Vec<_>>(), [id(1)], "{known:?}");
        assert!(known[0].parallel && known[0].prepared.as_ref().is_some_and(|of| of.contains(&OTHER)));
        together.extend(cluster.rows(half).await);
    }
    assert_eq!(together, before);
    // Another leader has it, too.
    cluster.kill_leader(HALVES[0]).await;
    reached(&cluster, HALVES[0], 1).await;
    let request = RequestId { router: RouterIncarnation(77), sequence: 1 };
    for half in HALVES {
        let node = leader_node(cluster.leader(half).await);
        assert_eq!(node.shards.outcome(half, request).await.unwrap().unwrap().affected, 40);
        act(&cluster, (half, Some(WHOLE)), id(1), COMMIT).await.unwrap();
        let rows = read(&cluster, half).await.unwrap();
        assert!(rows.iter().all(|row| !row.ends_with("=x")), "{rows:?}");
        assert!(rows.iter().any(|row| row.ends_with("=prepared")), "{rows:?}");
        let remembered = "SELECT '' || sequence FROM shoal_ended ORDER BY 1";
        assert_eq!(cluster.list(half, remembered).await, ["1".to_owned(), "2".to_owned()].into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_adopted_is_forgotten_if_the_seal_is_undone() {
    let mut cluster = start(3, true).await;
    write(&cluster, WHOLE, &insert(0..40, "x"), 1).await.unwrap();
    prepare(&cluster, WHOLE, "UPDATE t1 SET c2 = 'prepared' WHERE c1 < 20", 1).await;
    for attempt in [1, 2] {
        seal(&cluster, WHOLE, attempt).await;
        cluster.change(gate(Some(attempt)));
        for half in HALVES {
            reached(&cluster, half, attempt).await;
        }
        if attempt == 2 {
            cluster.kill_leader(HALVES[1]).await;
        }
        cluster.change(gate(None));
        unseal(&cluster, WHOLE, attempt).await;
        let sequence = 10 + u64::from(attempt);
        write(&cluster, WHOLE, &format!("INSERT INTO t1 VALUES (4{attempt}, 'y')"), sequence).await.unwrap();
        cluster.is_split().await;
        for half in HALVES {
            assert_eq!(read(&cluster, half).await.unwrap_err().retry, Retry::Later);
            is_not_reached(&cluster, half, attempt).await;
            let none = BTreeSet::new();
            assert_eq!(cluster.list(half, "SELECT '' || sequence FROM shoal_prepared").await, none);
        }
    }
    act(&cluster, (WHOLE, None), id(1), COMMIT).await.unwrap();
    seal(&cluster, WHOLE, 3).await;
    cluster.change(gate(Some(3)));
    let mut together = BTreeSet::new();
    for half in HALVES {
        reached(&cluster, half, 3).await;
        assert_eq!(statuses(&cluster, half).await, []);
        let rows = read(&cluster, half).await.unwrap();
        assert!(!rows.is_empty(), "{rows:?}");
        together.extend(rows);
    }
    for (value, count) in [("prepared", 20), ("x", 20), ("y", 2)] {
        assert_eq!(together.iter().filter(|row| row.ends_with(&format!("={value}"))).count(), count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_adopts_both_halves_of_a_transaction_as_one() {
    let mut cluster = start(1, false).await;
    for (place, half) in HALVES.into_iter().enumerate() {
        let first = 100 * place as i64;
        write(&cluster, half, &insert(first..first + 10, "x"), 1 + place as u64).await.unwrap();
        let update = format!("UPDATE t1 SET c2 = 'both' WHERE c1 < {}", first + 5);
        prepare(&cluster, half, &update, 1).await;
    }
    // Of another one only one half has voted.
    prepare(&cluster, HALVES[1], &insert(110..115, "one"), 2).await;
    cluster.change(gate(Some(1)));
    seal(&cluster, HALVES[0], 1).await;
    is_not_reached(&cluster, WHOLE, 1).await;
    seal(&cluster, HALVES[1], 1).await;
    let Reached { sources, .. } = reached(&cluster, WHOLE, 1).await;
    assert_eq!(sources.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), HALVES);
    assert_eq!(statuses(&cluster, WHOLE).await.len(), 2);
    for half in HALVES {
        act(&cluster, (WHOLE, Some(half)), id(1), COMMIT).await.unwrap();
    }
    let abort = BranchAction::Finish { commit: false, keep: false };
    act(&cluster, (WHOLE, Some(HALVES[1])), id(2), abort).await.unwrap();
    let all = read(&cluster, WHOLE).await.unwrap();
    assert_eq!(all.iter().filter(|row| row.ends_with("=both")).count(), 10);
    assert_eq!(all.iter().filter(|row| row.ends_with("=x")).count(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_comes_back_with_what_its_halves_have_written() {
    let again = ShardId(9);
    let mut cluster = start(3, true).await;
    write(&cluster, WHOLE, &insert(0..40, "x"), 1).await.unwrap();
    prepare(&cluster, WHOLE, "UPDATE t1 SET c2 = 'first' WHERE c1 < 10", 1).await;
    prepare(&cluster, WHOLE, &insert(40..50, "second"), 2).await;
    seal(&cluster, WHOLE, 1).await;
    cluster.change(gate(Some(1)));
    let mut firsts = Vec::new();
    for half in HALVES {
        firsts.push(reached(&cluster, half, 1).await.first);
    }
    // The switch: they serve, and the whole takes over from them.
    cluster.change(|topology| {
        topology.keyspaces.values_mut().for_each(|of| of.shards = HALVES.to_vec());
        for (half, first) in HALVES.iter().zip(&firsts) {
            topology.shards.get_mut(half).unwrap().first = *first;
        }
        (topology.reshards[0].gate, topology.reshards[0].flows) = (None, flows(false));
    });
    for (half, first) in HALVES.into_iter().zip([100, 200]) {
        act(&cluster, (half, Some(WHOLE)), id(1), COMMIT).await.unwrap();
        write(&cluster, half, &insert(first..first + 5, "half"), 2).await.unwrap();
    }
    // The way back is tried once, given up, and tried again.
    for attempt in [2, 3] {
        cluster.change(|topology| {
            let mut whole =
                topology.shards.remove(&WHOLE).or_else(|| topology.shards.remove(&again)).unwrap();
            whole.id = again;
            topology.shards.insert(again, whole);
            let mut turned = flows(false);
            turned.iter_mut().for_each(|flow| flow.target = again);
            (topology.reshards[0].gate, topology.reshards[0].flows) = (Some(Attempt(attempt)), turned);
        });
        for half in HALVES {
            seal(&cluster, half, attempt).await;
        }
        reached(&cluster, again, attempt).await;
        if attempt == 2 {
            cluster.kill_leader(again).await;
            for (half, first) in HALVES.into_iter().zip([300, 400]) {
                unseal(&cluster, half, attempt).await;
                write(&cluster, half, &insert(first..first + 5, "late"), 3).await.unwrap();
            }
            cluster.change(gate(None));
        }
    }
    assert_eq!(statuses(&cluster, again).await.iter().map(|of| of.transaction).collect::<Vec<_>>(), [id(2)]);
    let abort = BranchAction::Finish { commit: false, keep: false };
    for behalf in [HALVES[0], HALVES[1], WHOLE] {
        act(&cluster, (again, Some(behalf)), id(2), abort.clone()).await.unwrap();
    }
    let all = read(&cluster, again).await.unwrap();
    for (value, count) in [("first", 10), ("x", 30), ("half", 10), ("late", 10)] {
        assert_eq!(all.iter().filter(|row| row.ends_with(&format!("={value}"))).count(), count, "{all:?}");
    }
    assert_eq!(all.len(), 60);
    // Its former name is nobody's.
    let (node, _) = cluster.leader(again).await;
    let former = FragmentRequest { shard: WHOLE, ..node.read("SELECT 1", false) };
    assert!(matches!(node.shards.execute(former).await.map(drop).unwrap_err().retry, Retry::StaleEpoch(_)));
}
