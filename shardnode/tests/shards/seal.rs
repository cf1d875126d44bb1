//! A shard that is sealed: what is in the way, what is lost, what stays, and how it comes back.

use crate::changes;
use crate::common::{GROUP, Node, PATIENCE, SHARD, rows, state, text, values};
use crate::followers::is_waiting;
use crate::prepared::{hand_over, three};
use crate::serving::set;
use crate::session::{Session, told};
use proto::services::{
    BranchAccess, BranchAction, ChangeKind, ClusterState, Consistency, CutAction, CutRequest, Estate,
    FragmentRequest, HandOver, HandOverAction, HandedOver, Hindrance, HindranceCause, LockWait, RowLock,
    Serving, ShardService, Unsettled, cut_lost,
};
use proto::topology::{Shard, Topology};
use proto::{
    Attempt, CutId, Epoch, LogIndex, NodeId, ReshardId, Retry, RouterIncarnation, SchemaVersion, ShardId,
    TableId, TransactionId, Value, WireError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const ALL: &str = "SELECT group_concat(c2, '') FROM (SELECT c2 FROM t1 ORDER BY c1)";
const FIRST: &str = "UPDATE t1 SET c2 = upper(c2) WHERE c1 = 1";
const SECOND: &str = "UPDATE t1 SET c2 = upper(c2) WHERE c1 = 2";
const STALE: Retry = Retry::StaleEpoch(Epoch(2));
/// A drain that is over in a moment.
const SHORT: Duration = Duration::from_millis(40);

async fn start() -> Node {
    fill(Node::start().await).await
}

async fn fill(node: Node) -> Node {
    node.schema(1, &[TABLE], None).await.unwrap();
    let insert = node.write("INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c')", 1);
    node.shards.execute(insert).await.unwrap();
    node
}

async fn ask(
    node: &Node,
    (reshard, attempt): (u64, u32),
    action: HandOverAction,
) -> Result<HandedOver, WireError> {
    let (reshard, attempt) = (ReshardId(reshard), Attempt(attempt));
    node.shards.hand_over(HandOver { shard: SHARD, reshard, attempt, action, timeout: PATIENCE }).await
}

async fn seal(node: &Node, attempt: u32, drain: Duration) -> HandedOver {
    ask(node, (7, attempt), HandOverAction::Seal { drain, cleared: false }).await.unwrap()
}

async fn unseal(node: &Node, attempt: u32) {
    assert_eq!(ask(node, (7, attempt), HandOverAction::Unseal).await.unwrap(), HandedOver::Unsealed);
}

fn sealed() -> HandedOver {
    HandedOver::Sealed { ended: 0 }
}

/// The transactions that keep the shard from being sealed, and what of them does.
fn in_the_way(outcome: HandedOver) -> Vec<(TransactionId, HindranceCause)> {
    match outcome {
        HandedOver::InTheWay(found) => {
            found.into_iter().map(|Hindrance { transaction, cause, since: _ }| (transaction, cause)).collect()
        }
        other => panic!("nothing is in its way: {other:?}"),
    }
}

async fn read(node: &Node) -> Result<Vec<Vec<Value>>, WireError> {
    rows(node.shards.execute(node.read(ALL, false)).await?.rows).await
}

async fn write(node: &Node, sql: &str, sequence: u64) -> Result<u64, WireError> {
    node.shards.execute(node.write(sql, sequence)).await.map(|done| done.affected)
}

/// What is committed, whoever may know.
async fn committed(node: &Node) -> String {
    let replica = node.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap();
    snapshot.connection().query_row(ALL, [], |row| row.get(0)).unwrap()
}

fn retry<T: std::fmt::Debug>(answer: Result<T, WireError>) -> Retry {
    answer.expect_err("it is refused").retry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_waits_for_blocks_and_then_nobody_is_answered() {
    let node = start().await;
    let (block, reader, waiter) = (Session::new(&node, 1), Session::new(&node, 2), Session::new(&node, 3));
    block.write(FIRST).await.unwrap();
    reader.read(ALL).await.unwrap();
    let mut sealing = Box::pin(seal(&node, 1, PATIENCE));
    is_waiting(&mut sealing).await;
    // Until it is sealed all goes on: nobody who is open has to wait for who comes later.
    assert_eq!(write(&node, "UPDATE t1 SET c2 = 'C' WHERE c1 = 3", 10).await.unwrap(), 1);
    block.write(SECOND).await.unwrap();
    is_waiting(&mut sealing).await;
    block.commit().await.unwrap();
    assert_eq!(sealing.await, sealed());
    assert_eq!(retry(read(&node).await), STALE);
    assert_eq!(retry(write(&node, FIRST, 11).await), STALE);
    assert_eq!(retry(waiter.write(FIRST).await), STALE);
    assert_eq!(retry(node.shards.branches(SHARD).await), STALE);
    // What has only read has lost nothing.
    assert_eq!(retry(reader.read(ALL).await), STALE);
    reader.take_back();
    unseal(&node, 1).await;
    assert_eq!(reader.read(ALL).await.unwrap(), values(&[[text("ABC")]]));
    assert_eq!(reader.write("DELETE FROM t1 WHERE c1 = 3").await.unwrap(), 1);
    reader.commit().await.unwrap();
    assert_eq!(read(&node).await.unwrap(), values(&[[text("AB")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_alone_is_no_hindrance_and_is_run_again() {
    let node = start().await;
    let mut alone = Session::new(&node, 1);
    alone.alone = true;
    alone.write(FIRST).await.unwrap();
    let block = Session::new(&node, 2);
    let (mut waits, mut single) =
        (Box::pin(block.write(FIRST)), Box::pin(write(&node, "DELETE FROM t1 WHERE c1 = 1", 10)));
    is_waiting(&mut waits).await;
    is_waiting(&mut single).await;
    assert_eq!(seal(&node, 1, Duration::ZERO).await, sealed());
    // Nothing of either was told, and neither waits any longer.
    assert_eq!(retry(waits.await), STALE);
    assert_eq!(retry(single.await), STALE);
    for answer in [alone.commit().await, alone.prepare().await] {
        assert_eq!(retry(answer), STALE);
    }
    // Nothing is left to be undone, and that can be said.
    alone.finish(false).await.unwrap();
    assert_eq!(committed(&node).await, "abc");
    unseal(&node, 1).await;
    block.take_back();
    // Its locks are free, and nothing of it is there.
    assert_eq!(write(&node, SECOND, 11).await.unwrap(), 1);
    assert_eq!(block.write(FIRST).await.unwrap(), 1);
    block.commit().await.unwrap();
    assert_eq!(committed(&node).await, "ABc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_idle_ends_when_the_time_is_over() {
    let node = start().await;
    let (idle, other) = (Session::new(&node, 1), Session::new(&node, 2));
    idle.write(FIRST).await.unwrap();
    other.lock("SELECT c1, c2 FROM t1 WHERE c1 = 2", RowLock::Share, LockWait::Wait).await.unwrap();
    assert_eq!(seal(&node, 1, SHORT).await, HandedOver::Sealed { ended: 2 });
    // Whoever asks again hears the same.
    assert_eq!(seal(&node, 1, SHORT).await, HandedOver::Sealed { ended: 2 });
    for answer in [idle.commit().await, other.prepare().await] {
        let error = answer.unwrap_err();
        assert_eq!((error.sqlstate.as_str(), &error.retry), ("40001", &Retry::Never), "{error}");
        assert!(error.message.contains("it was idle"), "{error}");
    }
    unseal(&node, 1).await;
    assert!(told(idle.write(SECOND).await).contains("it was idle"));
    assert_eq!(committed(&node).await, "abc");
    assert_eq!(seal(&node, 2, Duration::ZERO).await, sealed());
}

/// Of several shards that are to be sealed at once, each is asked whether it could be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_to_be_clear_serves_on() {
    let node = start().await;
    let clear = |drain| ask(&node, (7, 1), HandOverAction::Clear { drain });
    let block = Session::new(&node, 1);
    block.write(FIRST).await.unwrap();
    let mut clearing = Box::pin(clear(PATIENCE));
    is_waiting(&mut clearing).await;
    block.commit().await.unwrap();
    assert_eq!(clearing.await.unwrap(), HandedOver::Clear);
    assert_eq!(write(&node, "UPDATE t1 SET c2 = 'C' WHERE c1 = 3", 10).await.unwrap(), 1);
    let idle = Session::new(&node, 2);
    idle.write(SECOND).await.unwrap();
    assert_eq!(clear(SHORT).await.unwrap(), HandedOver::Clear);
    assert!(told(idle.commit().await).contains("it was idle"));
    // What has come since may wait for another shard, which is sealed already.
    let late = Session::new(&node, 3);
    late.write(FIRST).await.unwrap();
    let seal = || ask(&node, (7, 1), HandOverAction::Seal { drain: SHORT, cleared: true });
    assert_eq!(in_the_way(seal().await.unwrap()), [(late.id(), HindranceCause::Busy)]);
    late.commit().await.unwrap();
    assert_eq!(seal().await.unwrap(), HandedOver::Sealed { ended: 1 });
    // Whoever leads the coordinator next asks again.
    assert_eq!(clear(SHORT).await.unwrap(), HandedOver::Clear);
    unseal(&node, 1).await;
    assert_eq!(clear(SHORT).await.unwrap(), HandedOver::Unsealed);
    assert_eq!(committed(&node).await, "AbC");
}

/// Its router can't tell that it has locked nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_may_have_locked_something_is_waited_for() {
    let node = start().await;
    let none = "DELETE FROM t1 WHERE c1 = 9";
    let (block, other) = (Session::new(&node, 1), Session::new(&node, 2));
    for session in [&block, &other] {
        assert_eq!(session.read(ALL).await.unwrap(), values(&[[text("abc")]]));
        assert_eq!(session.write(none).await.unwrap(), 0);
    }
    let mut sealing = Box::pin(seal(&node, 1, PATIENCE));
    is_waiting(&mut sealing).await;
    // What was undone, or has failed, is neither changed nor locked.
    other.roll_back_to(1).await.unwrap();
    assert!(told(other.write("INSERT INTO t1 VALUES (1, 'x')").await).starts_with("23505"));
    is_waiting(&mut sealing).await;
    block.commit().await.unwrap();
    assert_eq!(sealing.await, sealed());
    unseal(&node, 1).await;
    assert_eq!(other.read(ALL).await.unwrap(), values(&[[text("abc")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_busy_goes_on() {
    let node = start().await;
    let (prepared, busy) = (Session::new(&node, 1), Session::new(&node, 2));
    prepared.write(FIRST).await.unwrap();
    prepared.prepare().await.unwrap();
    busy.write(SECOND).await.unwrap();
    let mut waits = Box::pin(busy.lock("SELECT c1, c2 FROM t1", RowLock::Update, LockWait::Wait));
    is_waiting(&mut waits).await;
    // However long it has been at it.
    assert_eq!(in_the_way(seal(&node, 1, SHORT).await), [(busy.id(), HindranceCause::Busy)]);
    prepared.finish(true).await.unwrap();
    waits.await.unwrap();
    // Nor is one idle that is heard of, though not at the very end.
    let mut sealing = Box::pin(seal(&node, 1, 10 * SHORT + SHORT / 8));
    let mut pause = tokio::time::interval(SHORT / 4);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut sealing => break outcome,
            _ = pause.tick() => assert_eq!(busy.write(SECOND).await.unwrap(), 1),
        }
    };
    assert_eq!(in_the_way(outcome), [(busy.id(), HindranceCause::Busy)]);
    busy.commit().await.unwrap();
    assert_eq!(committed(&node).await, "ABc");
    assert_eq!(seal(&node, 1, Duration::ZERO).await, sealed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_is_in_the_way_until_it_has_ended() {
    let node = fill(Node::start().await.staging(1, vec![NodeId(1)])).await;
    let staged = |session: &Session<'_>| [(session.id(), HindranceCause::Staged)];
    for (attempt, is_alone) in [(1, false), (21, true)] {
        let mut one = Session::new(&node, attempt);
        one.alone = is_alone;
        one.write(FIRST).await.unwrap();
        let number = attempt as u32;
        // It is idle, and ends; but what it has staged must be struck out first.
        assert_eq!(in_the_way(seal(&node, number, Duration::ZERO).await), staged(&one));
        assert_eq!(seal(&node, number, PATIENCE).await, HandedOver::Sealed { ended: 1 });
        unseal(&node, number).await;
        let number = number + 10;
        let mut again = Session::new(&node, 10 + attempt);
        again.alone = is_alone;
        again.write("UPDATE t1 SET c2 = c2 || '!' WHERE c1 = 2").await.unwrap();
        again.prepare().await.unwrap();
        assert_eq!(in_the_way(seal(&node, number, SHORT).await), staged(&again));
        let mut sealing = Box::pin(seal(&node, number, PATIENCE));
        is_waiting(&mut sealing).await;
        again.finish(!is_alone).await.unwrap();
        assert_eq!(sealing.await, sealed());
        assert_eq!(count(&node, "shoal_staged").await, 0);
        unseal(&node, number).await;
    }
    assert_eq!(committed(&node).await, "ab!c");
}

async fn count(node: &Node, table: &str) -> i64 {
    let replica = node.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap();
    let sql = format!("SELECT count(*) FROM {table}");
    snapshot.connection().query_row(&sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_stays_as_it_is() {
    let node = start().await;
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    for (session, sql) in [(&one, FIRST), (&two, SECOND)] {
        session.write(sql).await.unwrap();
        session.prepare().await.unwrap();
    }
    let mut waits = Box::pin(read(&node));
    is_waiting(&mut waits).await;
    let writer = Session::new(&node, 3);
    let mut writes = Box::pin(writer.write(FIRST));
    is_waiting(&mut writes).await;
    assert_eq!(seal(&node, 1, PATIENCE).await, sealed());
    assert_eq!(retry(waits.await), STALE);
    assert_eq!(retry(writes.await), STALE);
    let keep = |commit| BranchAction::Finish { commit, keep: true };
    for action in [
        keep(true),
        keep(false),
        BranchAction::Finish { commit: true, keep: false },
        BranchAction::Renounce,
        BranchAction::Forget(vec![one.id()]),
        BranchAction::Prepare { participants: vec![SHARD, ShardId(9)], parallel: false },
    ] {
        assert_eq!(retry(one.act(action.clone()).await), STALE, "{action:?}");
    }
    assert_eq!(count(&node, "shoal_prepared").await, 2);
    unseal(&node, 1).await;
    writer.take_back();
    assert!(one.status().await.unwrap().prepared.is_some());
    let mut waits = Box::pin(writer.write(FIRST));
    is_waiting(&mut waits).await;
    one.finish(true).await.unwrap();
    two.finish(false).await.unwrap();
    waits.await.unwrap();
    writer.roll_back().await;
    assert_eq!(read(&node).await.unwrap(), values(&[[text("Abc")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_changes_nothing() {
    let node = start().await;
    let drain = Duration::ZERO;
    let seal_by = |which| ask(&node, which, HandOverAction::Seal { drain, cleared: false });
    let unseal_by = |which| ask(&node, which, HandOverAction::Unseal);
    let mut sequence = 10;
    let mut serves = async || {
        sequence += 1;
        match write(&node, "UPDATE t1 SET c2 = c2", sequence).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.retry, STALE);
                false
            }
        }
    };
    // It is given up before it was heard of.
    assert_eq!(unseal_by((7, 2)).await.unwrap(), HandedOver::Unsealed);
    for attempt in [1, 2] {
        assert_eq!(seal_by((7, attempt)).await.unwrap(), HandedOver::Unsealed);
        assert!(serves().await);
    }
    assert_eq!(seal_by((7, 3)).await.unwrap(), sealed());
    assert!(!serves().await);
    // What concerns others leaves it sealed.
    for which in [(7, 1), (7, 2), (6, 9)] {
        assert_eq!(seal_by(which).await.unwrap(), HandedOver::Unsealed);
        assert_eq!(unseal_by(which).await.unwrap(), HandedOver::Unsealed);
        assert!(!serves().await);
    }
    assert_eq!(seal_by((7, 4)).await.unwrap(), HandedOver::Unsealed);
    assert_eq!(seal_by((7, 3)).await.unwrap(), sealed());
    for _ in 0..2 {
        assert_eq!(unseal_by((7, 3)).await.unwrap(), HandedOver::Unsealed);
        assert!(serves().await);
    }
    assert_eq!(seal_by((7, 3)).await.unwrap(), HandedOver::Unsealed);
    assert!(serves().await);
    // Another reshard counts anew, and those before it are over.
    assert_eq!(seal_by((8, 1)).await.unwrap(), sealed());
    for which in [(7, 3), (7, 4)] {
        assert_eq!(seal_by(which).await.unwrap(), HandedOver::Unsealed);
        assert_eq!(unseal_by(which).await.unwrap(), HandedOver::Unsealed);
        assert!(!serves().await);
    }
    assert_eq!(unseal_by((8, 1)).await.unwrap(), HandedOver::Unsealed);
    assert!(serves().await);
    assert_eq!(seal_by((7, 9)).await.unwrap(), HandedOver::Unsealed);
    assert!(serves().await);
    // This one takes nothing over.
    for action in [HandOverAction::Reached, HandOverAction::Flows] {
        assert_eq!(ask(&node, (8, 1), action).await.unwrap_err().retry, Retry::Later);
    }
}

struct Cut<'a>(&'a Node, CutId);

impl<'a> Cut<'a> {
    fn new(node: &'a Node, sequence: u64) -> Self {
        Cut(node, CutId { router: RouterIncarnation(5), sequence })
    }

    async fn act(&self, action: CutAction) -> Result<Vec<Unsettled>, WireError> {
        let (shard, epoch, timeout) = (SHARD, Epoch(1), PATIENCE);
        self.0.shards.cut(CutRequest { shard, epoch, cut: self.1, action, timeout }).await
    }

    async fn open(&self, scans: Option<u32>) -> Result<Vec<Unsettled>, WireError> {
        let (schema_version, after, tables) = (SchemaVersion(1), LogIndex(0), vec![TableId(1)]);
        self.act(CutAction::Open { schema_version, tables, scans, after }).await
    }

    async fn read(&self) -> Result<Vec<Vec<Value>>, WireError> {
        let request = FragmentRequest { cut: Some(self.1), ..self.0.read(ALL, false) };
        rows(self.0.shards.execute(request).await?.rows).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_withholds_is_lost_and_what_it_withheld_is_told() {
    let node = Arc::new(start().await);
    let abc = || values(&[[text("abc")]]);
    let prepared = Session::new(&node, 1);
    prepared.write(SECOND).await.unwrap();
    // In each phase that a cut can be in: opened, settling, released with scans left, kept, and kept but not released yet.
    let (released, kept) = (Cut::new(&node, 3), Cut::new(&node, 4));
    assert_eq!(released.open(Some(2)).await.unwrap(), []);
    assert_eq!(released.read().await.unwrap(), abc());
    assert_eq!(kept.open(None).await.unwrap(), []);
    kept.act(CutAction::Release).await.unwrap();
    prepared.prepare().await.unwrap();
    let (open, settling, unreleased) = (Cut::new(&node, 1), Cut::new(&node, 2), Cut::new(&node, 5));
    for cut in [&open, &settling] {
        assert_eq!(cut.open(Some(1)).await.unwrap().len(), 1);
    }
    assert_eq!(unreleased.open(None).await.unwrap().len(), 1);
    let mut settles = Box::pin(settling.act(CutAction::Settle(vec![prepared.id()])));
    is_waiting(&mut settles).await;
    let withheld = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { write(&node, FIRST, 10).await })
    };
    let is_there = async {
        while committed(&node).await != "Abc" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_there).await.unwrap();
    assert!(!withheld.is_finished());
    assert_eq!(seal(&node, 1, PATIENCE).await, sealed());
    // The write was done before the seal, and there is nobody who mustn't know any more.
    assert_eq!(withheld.await.unwrap().unwrap(), 1);
    assert_eq!(settles.await, Err(cut_lost()));
    for cut in [&open, &settling, &unreleased] {
        for action in [CutAction::Close, CutAction::Release] {
            assert_eq!(cut.act(action).await, Err(cut_lost()));
        }
        assert_eq!(cut.read().await, Err(cut_lost()));
    }
    for _ in 0..2 {
        assert_eq!(kept.read().await.unwrap(), abc());
    }
    assert_eq!(released.read().await.unwrap(), abc());
    assert_eq!(retry(Cut::new(&node, 6).open(Some(1)).await), STALE);
}

/// Whatever a cut's opening and a seal come upon of each other, a cut that is there withholds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_is_being_opened_is_lost_or_refused() {
    let node = start().await;
    for attempt in 1..=50 {
        let cut = Cut::new(&node, u64::from(attempt));
        let (opened, outcome) = tokio::join!(cut.open(Some(1)), seal(&node, attempt, PATIENCE));
        assert_eq!(outcome, sealed());
        match opened {
            Err(error) => assert!(error == cut_lost() || error.retry == STALE, "{error}"),
            Ok(_) => assert_eq!(cut.act(CutAction::Close).await, Err(cut_lost())),
        }
        unseal(&node, attempt).await;
        assert_eq!(write(&node, FIRST, 100 + u64::from(attempt)).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_before_the_seal() {
    let node = Arc::new(start().await);
    let (told, numbers) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU64::new(1000)));
    for attempt in 1..=20 {
        let mut tasks = JoinSet::new();
        for kind in 0..8 {
            let (node, told, numbers) = (Arc::clone(&node), Arc::clone(&told), Arc::clone(&numbers));
            tasks.spawn(async move {
                loop {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let insert = format!("INSERT INTO t1 VALUES ({number}, '')");
                    let done = match kind % 2 {
                        0 => write(&node, &insert, number).await.map(drop),
                        _ => by_itself(&node, number, &insert).await,
                    };
                    match done {
                        Ok(()) => told.fetch_add(1, Ordering::Relaxed),
                        Err(error) => return error,
                    };
                }
            });
        }
        while told.load(Ordering::Relaxed) < i64::from(attempt) * 10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(seal(&node, attempt, PATIENCE).await, sealed());
        let before = count(&node, "t1").await;
        let refused = async {
            while let Some(refused) = tasks.join_next().await {
                let error = refused.unwrap();
                assert_eq!(error.retry, STALE, "{error}");
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("nobody is answered any more");
        assert_eq!(count(&node, "t1").await, before, "nothing comes after the seal");
        unseal(&node, attempt).await;
        // What had voted goes on.
        for branch in node.shards.branches(SHARD).await.unwrap() {
            assert!(branch.prepared.is_some(), "{branch:?}");
            let session = Session::new(&node, branch.transaction.sequence);
            session.finish(true).await.unwrap();
            told.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(count(&node, "t1").await, told.load(Ordering::Relaxed) + 3);
    }
}

/// Writes in a transaction over several shards that is one statement's.
async fn by_itself(node: &Node, number: u64, sql: &str) -> Result<(), WireError> {
    let mut alone = Session::new(node, number);
    alone.alone = true;
    alone.write(sql).await?;
    alone.prepare().await?;
    alone.finish(true).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leader_finds_what_one_has_sealed_or_opened() {
    let (nodes, _network) = three(|_| {}).await;
    let one = Session::new(&nodes[0], 1);
    one.write(FIRST).await.unwrap();
    one.prepare().await.unwrap();
    assert_eq!(seal(&nodes[0], 1, PATIENCE).await, sealed());
    hand_over(&nodes[0], &nodes[1]).await;
    assert_eq!(retry(write(&nodes[1], SECOND, 10).await), STALE);
    assert_eq!(retry(read(&nodes[1]).await), STALE);
    assert_eq!(retry(one.at(&nodes[1]).finish(true).await), STALE);
    assert_eq!(seal(&nodes[1], 1, PATIENCE).await, sealed());
    let elsewhere = ask(&nodes[0], (7, 1), HandOverAction::Unseal).await.unwrap_err();
    assert!(matches!(elsewhere.retry, Retry::NotLeader(_)), "{elsewhere}");
    unseal(&nodes[1], 1).await;
    assert_eq!(write(&nodes[1], SECOND, 10).await.unwrap(), 1);
    // What the first one remembered of the row is of another term.
    hand_over(&nodes[1], &nodes[0]).await;
    assert_eq!(write(&nodes[0], "DELETE FROM t1 WHERE c1 = 3", 11).await.unwrap(), 1);
    one.finish(true).await.unwrap();
    assert_eq!(read(&nodes[0]).await.unwrap(), values(&[[text("AB")]]));
    assert_eq!(seal(&nodes[0], 1, PATIENCE).await, HandedOver::Unsealed);
}

/// The topology in which the only group is another shard.
fn renamed(epoch: u64, id: ShardId) -> ClusterState {
    let before = state(vec![NodeId(1)]);
    let mut topology = Topology::clone(&before.topology);
    topology.epoch = Epoch(epoch);
    let was = topology.shards.remove(&SHARD).unwrap();
    topology.shards.insert(id, Shard { id, ..was });
    ClusterState { topology: Arc::new(topology), ..before }
}

/// As soon as an attempt begins that is to have the group serve once more, it has another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_read_on_under_the_name_of_then() {
    let node = start().await;
    let (kept, reader) = (Cut::new(&node, 1), Session::new(&node, 1));
    assert_eq!(kept.open(None).await.unwrap(), []);
    kept.act(CutAction::Release).await.unwrap();
    for _ in 0..2 {
        reader.read(ALL).await.unwrap();
    }
    assert_eq!(seal(&node, 1, PATIENCE).await, sealed());
    for (epoch, id) in [(2, 2), (3, 3)] {
        assert!(node.settle(&renamed(epoch, ShardId(id))));
        assert_eq!(kept.read().await.unwrap(), values(&[[text("abc")]]));
        let stale = Retry::StaleEpoch(Epoch(epoch));
        assert_eq!(retry(read(&node).await), stale);
        assert_eq!(retry(Cut::new(&node, 2).open(None).await), STALE);
    }
    // Under a name that it hasn't had whoever has read there begins anew.
    set(&node, "shard = 3, state = 0").await;
    let anew = Session::new(&node, 1).next(SECOND, BranchAccess::Write { touch: 0 });
    let anew = FragmentRequest { shard: ShardId(3), epoch: Epoch(3), ..anew };
    assert_eq!(node.shards.execute(anew).await.unwrap().affected, 1);
}

/// Each entry says of which reshard and attempt it is, though no two of them change the same of the row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_of_seals() {
    let node = start().await;
    let begin = changes::applied(&node);
    for attempt in [1, 2, 3] {
        assert_eq!(seal(&node, attempt, PATIENCE).await, sealed());
        unseal(&node, attempt).await;
    }
    assert_eq!(
        ask(&node, (8, 3), HandOverAction::Seal { drain: PATIENCE, cleared: false }).await.unwrap(),
        sealed()
    );
    let mut parts = changes::read(&node, begin).await;
    let (all, _) = changes::up_to(&mut parts, changes::applied(&node)).await;
    let served = all.into_iter().filter_map(|change| match change.kind {
        ChangeKind::Serving(serving) => Some(serving),
        _ => None,
    });
    let served: Vec<_> = served.collect();
    let estate = Estate { reshard: ReshardId(8), attempt: Attempt(3) };
    let undone = [Serving::Sealed(None), Serving::Open];
    assert_eq!(served[..6], [undone.clone(), undone.clone(), undone].concat());
    assert_eq!(served[6..], [Serving::Sealed(Some(estate))]);
}
