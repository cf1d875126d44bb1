//! Prepared transactions: what they keep locked, through everything, until their verdict.

use crate::common::{GROUP, Network, Node, PATIENCE, SHARD, text, values};
use crate::session::{Session, told};
use proto::services::{Consistency, LockWait, RowLock, ShardService};
use proto::{NodeId, Retry, SchemaVersion, ShardId, SqlState, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::join;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const ROWS: &str = "INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c')";

async fn fill(node: &Node) {
    node.schema(1, &[TABLE], None).await.unwrap();
    node.shards.execute(node.write(ROWS, 1)).await.unwrap();
}

/// What is committed, for who doesn't wait for what is pending.
async fn texts(node: &Node) -> Value {
    let replica = node.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.unwrap();
    let sql = "SELECT group_concat(c2, '') FROM (SELECT c2 FROM t1 ORDER BY c1)";
    text(&snapshot.connection().query_row(sql, [], |row| row.get::<_, String>(0)).unwrap())
}

/// Waits until this node's replica leads, and serves.
pub async fn leads(node: &Node) {
    let replica = node.host.replica(GROUP).unwrap();
    let ready = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.is_err() {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("it leads");
}

pub async fn hand_over(from: &Node, to: &Node) {
    let node = to.host.statuses()[0].node;
    let replica = from.host.replica(GROUP).unwrap();
    let end = Instant::now() + PATIENCE;
    // On a busy machine it may not be taken over in time, and is kept.
    while let Err(error) = replica.transfer_leader(node, end).await {
        if !replica.is_leader() {
            break;
        }
        assert!(error.retry == Retry::Later && Instant::now() < end, "{error}");
    }
    leads(to).await;
}

/// The nodes of a shard with three replicas; the first leads. Table 1 has the rows 1 to 3.
pub async fn three(change: fn(&mut replica::Config)) -> (Vec<Node>, Arc<Network>) {
    let network = Arc::<Network>::default();
    let ids: Vec<_> = (1..=3).map(NodeId).collect();
    let nodes: Vec<_> = ids.iter().map(|id| Node::open_with(*id, ids.clone(), &network, change)).collect();
    let led = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        // On a busy machine the first one may lead for a moment only.
        loop {
            for node in &nodes {
                let replica = node.host.replica(GROUP).unwrap();
                if replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.is_ok() {
                    return node;
                }
            }
            pause.tick().await;
        }
    };
    let leader = tokio::time::timeout(PATIENCE, led).await.unwrap();
    fill(leader).await;
    if !std::ptr::eq(leader, &nodes[0]) {
        hand_over(leader, &nodes[0]).await;
    }
    (nodes, network)
}

/// That row 1 is locked, and no other.
async fn is_kept(node: &Node, number: u64) {
    let probe = Session::new(node, number);
    let skipped = probe.lock("SELECT c1, c1 FROM t1 ORDER BY c1", RowLock::Share, LockWait::SkipLocked).await;
    assert_eq!(skipped.unwrap(), values(&[[Value::Int(2)], [Value::Int(3)]]));
    probe.roll_back().await;
}

/// Whoever was told that it is committed finds no row of it locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_wait_for_locks_waits_for_what_may_have_committed() {
    let node = Node::start().await;
    fill(&node).await;
    for (number, wait) in [(10, LockWait::NoWait), (20, LockWait::SkipLocked)] {
        let (one, hasty) = (Session::new(&node, number), Session::new(&node, number + 1));
        one.write("UPDATE t1 SET c2 = c2 || '!' WHERE c1 = 1").await.unwrap();
        one.prepare().await.unwrap();
        let (mut locked, mut finished) = (
            Box::pin(hasty.lock("SELECT c1, c1 FROM t1 WHERE c1 = 1", RowLock::Update, wait)),
            Box::pin(one.finish(true)),
        );
        tokio::select! {
            biased;
            found = &mut locked => panic!("it is locked: {found:?}"),
            () = tokio::task::yield_now() => {}
        }
        let (locked, finished) = join!(&mut locked, &mut finished);
        finished.unwrap();
        assert_eq!(locked.unwrap(), values(&[[Value::Int(1)]]));
        hasty.roll_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_ends_by_its_verdict_and_every_step_may_be_repeated() {
    let node = Node::start().await;
    fill(&node).await;
    for (number, commit) in [(10, false), (20, true)] {
        let before = texts(&node).await;
        let one = Session::new(&node, number);
        one.write("DELETE FROM t1 WHERE c1 = 1").await.unwrap();
        one.lock("SELECT c1, c2 FROM t1 WHERE c1 = 1", RowLock::Share, LockWait::Wait).await.unwrap();
        let at = one.prepare().await.unwrap();
        assert!(one.prepare().await.unwrap() >= at);
        assert_eq!(one.status().await.unwrap().prepared, Some(vec![SHARD, ShardId(9)]));
        for refused in [
            told(one.write("DELETE FROM t1").await),
            told(one.commit().await),
            told(one.roll_back_to(0).await),
        ] {
            assert!(refused.starts_with("XX000"), "{refused}");
        }
        assert_eq!(texts(&node).await, before);
        is_kept(&node, number + 1).await;
        let waits = Session::new(&node, number + 2);
        let autocommit = node.write("UPDATE t1 SET c2 = c2 || 'x' WHERE c1 = 1", number);
        let ((), changed, wrote) = join!(
            async {
                waits.waits_for(&[&one]).await;
                let finished = one.finish(commit).await.unwrap();
                assert!(finished > at);
                assert!(one.finish(commit).await.unwrap() >= finished);
            },
            async {
                let changed = waits.write("UPDATE t1 SET c2 = c2 || 'y' WHERE c1 = 1").await.unwrap();
                waits.commit().await.unwrap();
                changed
            },
            node.shards.execute(autocommit)
        );
        assert_eq!((changed, wrote.unwrap().affected), if commit { (0, 0) } else { (1, 1) });
        let found = texts(&node).await;
        let expected: &[&str] = if commit { &["bc"] } else { &["axybc", "ayxbc"] };
        assert!(expected.iter().any(|expected| found == text(expected)), "{found:?}");
        assert!(one.status().await.is_none());
    }
    let open = Session::new(&node, 30);
    open.write("DELETE FROM t1").await.unwrap();
    assert!(told(open.finish(true).await).starts_with("XX000"), "nobody may decide so before it is prepared");
    open.roll_back().await;
    assert_eq!(node.one("SELECT count(*) FROM shoal_prepared").await, Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altering_a_table_waits_for_who_is_prepared() {
    let node = Node::start().await;
    fill(&node).await;
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    let two = Session::new(&node, 2);
    two.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    let (altered, ()) =
        join!(node.schema(2, &["ALTER TABLE t1 ADD COLUMN c3 INTEGER"], Some(SchemaVersion(1))), async {
            // The schema entry has ended this one, and waits.
            let mut pause = tokio::time::interval(Duration::from_millis(2));
            let ended = async {
                while two.status().await.is_some() {
                    pause.tick().await;
                }
            };
            tokio::time::timeout(PATIENCE, ended).await.unwrap();
            one.finish(true).await.unwrap();
        });
    altered.unwrap();
    assert_eq!(texts(&node).await, text("Abc"));
    let three = Session::new(&node, 3);
    three.write("UPDATE t1 SET c3 = 7").await.unwrap();
    three.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_ends_what_is_open_and_keeps_what_is_prepared() {
    let (nodes, _network) = three(|_| {}).await;
    let (one, two, three) =
        (Session::new(&nodes[0], 1), Session::new(&nodes[0], 2), Session::new(&nodes[0], 3));
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    two.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    three.write("UPDATE t1 SET c2 = 'C' WHERE c1 = 3").await.unwrap();
    hand_over(&nodes[0], &nodes[1]).await;
    let changed = "40001: the transaction was aborted: the shard's leader has changed";
    let moved = two.at(&nodes[1]);
    assert_eq!(told(moved.write("DELETE FROM t1").await), changed);
    assert_eq!(told(moved.commit().await), changed);
    is_kept(&nodes[1], 10).await;
    let again = one.at(&nodes[1]);
    again.prepare().await.unwrap();
    assert_eq!(again.status().await.unwrap().prepared, Some(vec![SHARD, ShardId(9)]));
    let waits = Session::new(&nodes[1], 11);
    let (waited, ()) = join!(waits.write("UPDATE t1 SET c2 = c2 || '!' WHERE c1 = 1"), async {
        waits.waits_for(&[&again]).await;
        again.finish(true).await.unwrap();
    });
    assert_eq!(waited.unwrap(), 1);
    waits.commit().await.unwrap();
    assert_eq!(texts(&nodes[1]).await, text("A!bc"));

    // What was of an earlier term of the same leader is gone, too.
    hand_over(&nodes[1], &nodes[0]).await;
    for result in [told(three.write("DELETE FROM t1").await), told(three.commit().await)] {
        assert_eq!(result, changed);
    }
    three.roll_back().await;
    assert_eq!(texts(&nodes[0]).await, text("A!bc"));
}

/// A router may know an old leader, and takes the word of whoever answers: what is undone must be so where it was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_undoes_a_statement() {
    let (nodes, _network) = three(|_| {}).await;
    let one = Session::new(&nodes[0], 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    for node in &nodes[1..] {
        let refused = one.at(node).roll_back_to(0).await.unwrap_err();
        assert_eq!(refused.retry, Retry::NotLeader(Some(NodeId(1))), "{refused}");
    }
    one.roll_back_to(0).await.unwrap();
    // An old leader that still has the branch doesn't undo it for the new one.
    one.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    hand_over(&nodes[0], &nodes[1]).await;
    let refused = one.roll_back_to(0).await.unwrap_err();
    assert!(matches!(refused.retry, Retry::NotLeader(_)), "{refused}");
}

/// Nothing is heard of a transaction's end where nobody leads any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_one_that_is_prepared_is_sent_to_the_new_leader() {
    let (nodes, _network) = three(|_| {}).await;
    let one = Session::new(&nodes[0], 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    let all = nodes[0].read("SELECT c2 FROM t1", false);
    let changed = nodes[0].write("UPDATE t1 SET c2 = 'x' WHERE c2 = 'a'", 2);
    let (read, written, ()) = join!(
        nodes[0].shards.execute(all),
        nodes[0].shards.execute(changed),
        hand_over(&nodes[0], &nodes[1])
    );
    for refused in [read.err().unwrap(), written.err().unwrap()] {
        assert!(matches!(refused.retry, Retry::NotLeader(_)), "{refused}");
    }
    one.at(&nodes[1]).finish(true).await.unwrap();
}

/// A first statement that came to a node before it led leaves nothing there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_done_nothing_neither_commits_nor_votes() {
    let (nodes, _network) = three(|_| {}).await;
    let sessions = [Session::new(&nodes[0], 1), Session::new(&nodes[0], 2)];
    for session in &sessions {
        let sql = format!("UPDATE t1 SET c2 = 'A' WHERE c1 = {}", session.id().sequence);
        let refused = session.at(&nodes[1]).write(&sql).await.unwrap_err();
        assert!(matches!(refused.retry, Retry::NotLeader(_)), "{refused}");
        session.write(&sql).await.unwrap();
    }
    hand_over(&nodes[0], &nodes[1]).await;
    assert!(nodes[1].shards.branches(SHARD).await.unwrap().is_empty());
    let refused = sessions[0].at(&nodes[1]).commit().await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::SERIALIZATION_FAILURE, "{refused}");
    let refused = sessions[1].at(&nodes[1]).prepare().await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::SERIALIZATION_FAILURE, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_what_is_prepared() {
    let node = Node::start().await;
    fill(&node).await;
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    let node = node.restart(vec![NodeId(1)], &Arc::default(), |_| {}).await;
    leads(&node).await;
    is_kept(&node, 10).await;
    let one = Session::new(&node, 1);
    one.finish(true).await.unwrap();
    one.finish(true).await.unwrap();
    assert_eq!(texts(&node).await, text("Abc"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_brings_what_is_prepared() {
    let small = |config: &mut replica::Config| {
        config.log_keep_bytes = 16 << 10;
        config.log_cut_entries = 16;
        config.log_file_bytes = 64 << 10;
        config.checkpoint_bytes = 64 << 10;
    };
    let (mut nodes, network) = three(small).await;
    let third = nodes.pop().unwrap();
    let ids = || (1..=3).map(NodeId).collect::<Vec<_>>();
    // It is away while more is written than the log keeps.
    let host = Arc::clone(&third.host);
    tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
    let one = Session::new(&nodes[0], 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    for sequence in 100..200 {
        let insert =
            nodes[0].write("INSERT INTO t1 (c1, c2) VALUES (9, hex(randomblob(2000)))", 2 * sequence);
        nodes[0].shards.execute(insert).await.unwrap();
        let delete = nodes[0].write("DELETE FROM t1 WHERE c1 = 9", 2 * sequence + 1);
        nodes[0].shards.execute(delete).await.unwrap();
    }
    let third = third.restart(ids(), &network, small).await;
    hand_over(&nodes[0], &third).await;
    is_kept(&third, 10).await;
    let one = Session::new(&third, 1);
    assert_eq!(told(one.write("SELECT 1").await).split(':').next(), Some(SqlState::INTERNAL_ERROR.as_str()));
    one.finish(true).await.unwrap();
    assert_eq!(texts(&third).await, text("Abc"));
}
