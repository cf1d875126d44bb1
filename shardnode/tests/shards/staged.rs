//! Transactions of many rows: what they cost, and what they keep locked.

use crate::common::{GROUP, Node, PATIENCE, SHARD, text, values, with_rows};
use crate::prepared::{hand_over, leads, three};
use crate::session::{Session, told};
use proto::services::{BranchAccess, Consistency, LockWait, RowLock, ShardService};
use proto::{NodeId, SqlState, Value, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::join;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT, c3 INTEGER) STRICT";
const UNIQUE: &str = "CREATE UNIQUE INDEX i2 ON t1 (c3)";
const INSERT: &str = "INSERT INTO t1 (c1, c2, c3) VALUES (?1, ?2, ?3)";

/// A node whose table has the rows 1 and 2.
async fn start() -> Node {
    let node = Node::start().await;
    node.schema(1, &[TABLE, UNIQUE], None).await.unwrap();
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'a', 10), (2, 'b', 20)", 1)).await.unwrap();
    node
}

impl Session<'_> {
    /// Inserts rows as a router sends them.
    async fn insert(&self, rows: &[(i64, i64)]) -> Result<u64, WireError> {
        let rows: Vec<_> =
            rows.iter().map(|(key, c3)| [Value::Int(*key), text("x"), Value::Int(*c3)]).collect();
        let insert = with_rows(self.next(INSERT, BranchAccess::Write { touch: 0 }), 3, &rows);
        self.node.shards.execute(insert).await.map(|done| done.affected)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_inserts_meets_its_own_transactions_keys() {
    let node = start().await;
    let one = Session::new(&node, 1);
    let wedge = || async {
        // Another's write has what the transaction has changed undone.
        let other = Session::new(&node, 1000 + u64::from(one.last()));
        other.write("UPDATE t1 SET c2 = 'z' WHERE c1 = 2").await.unwrap();
        other.roll_back().await;
    };
    for is_wedged in [false, true] {
        for (rows, outcome) in [
            (&[(5, 50), (6, 60)][..], Ok(2)),
            (&[(7, 70), (5, 51)], Err(())),
            (&[(7, 50)], Err(())),
            (&[(8, 20)], Err(())),
            (&[(1, 99)], Err(())),
            (&[(7, 70)], Ok(1)),
        ] {
            if is_wedged {
                wedge().await;
            }
            let told = one.insert(rows).await.map_err(|error| assert_eq!(error.sqlstate.as_str(), "23505"));
            assert_eq!(told, outcome, "{rows:?}");
        }
        // What it has freed itself is free to it.
        assert_eq!(one.write("DELETE FROM t1 WHERE c1 = 1").await.unwrap(), 1);
        assert_eq!(one.write("UPDATE t1 SET c3 = 71 WHERE c1 = 7").await.unwrap(), 1);
        wedge().await;
        assert_eq!(one.insert(&[(1, 70), (9, 10)]).await.unwrap(), 2);
        let sql = "SELECT c1, c3 FROM t1 WHERE c1 <> 2 ORDER BY c1";
        let int = Value::Int;
        let all = values(&[[1, 70], [5, 50], [6, 60], [7, 71], [9, 10]].map(|row| row.map(int)));
        assert_eq!(one.read(sql).await.unwrap(), all);
        one.roll_back_to(0).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_inserts_waits_for_others_keys() {
    let node = start().await;
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    two.write("INSERT INTO t1 VALUES (5, 'e', 50)").await.unwrap();
    one.insert(&[(6, 60)]).await.unwrap();
    let ((), inserted) = join!(
        async {
            one.waits_for(&[&two]).await;
            two.commit().await.unwrap();
        },
        one.insert(&[(7, 70), (8, 50)]),
    );
    assert!(told(inserted).starts_with("23505"));
    two.at(&node).roll_back().await;
    let three = Session::new(&node, 3);
    three.write("DELETE FROM t1 WHERE c1 = 5").await.unwrap();
    let ((), inserted) = join!(
        async {
            one.waits_for(&[&three]).await;
            three.commit().await.unwrap();
        },
        one.insert(&[(7, 70), (8, 50)]),
    );
    assert_eq!(inserted.unwrap(), 2);
    one.commit().await.unwrap();
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_locks_than_are_kept_as_they_are_hold_through_a_prepare() {
    locks_hold_through_a_prepare(start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_do_where_they_are_staged() {
    locks_hold_through_a_prepare(start().await.staging(4000, vec![NodeId(1)])).await;
}

async fn locks_hold_through_a_prepare(node: Node) {
    let one = Session::new(&node, 1);
    let rows: Vec<_> = (100..12_100).map(|key| (key, key)).collect();
    for part in rows.chunks(3000) {
        assert_eq!(one.insert(part).await.unwrap(), 3000);
    }
    let probe = async |node: &Node, number: u64, key: i64| {
        let mut probe = Session::new(node, number);
        probe.lock_timeout = Some(Duration::from_millis(20));
        let told = told(probe.insert(&[(key, -key)]).await);
        probe.roll_back().await;
        told
    };
    let locked = "55P03: canceling statement due to lock timeout";
    for key in [100, 5_000, 11_000, 12_099] {
        assert_eq!(probe(&node, 1000 + key as u64, key).await, locked);
    }
    assert_eq!(probe(&node, 2000, 12_100).await, "no error");
    one.roll_back_to(3).await.unwrap();
    assert_eq!(probe(&node, 2001, 9_100).await, "no error");
    assert_eq!(probe(&node, 2002, 9_099).await, locked);
    assert_eq!(one.insert(&rows[9000..]).await.unwrap(), 3000);
    one.prepare().await.unwrap();
    let node = node.restart(vec![NodeId(1)], &Arc::default(), |_| {}).await;
    leads(&node).await;
    for key in [100, 5_000, 11_000, 12_099] {
        assert_eq!(probe(&node, 3000 + key as u64, key).await, locked);
    }
    assert_eq!(probe(&node, 4000, 12_100).await, "no error");
    let one = Session::new(&node, 1);
    let waiting = Session::new(&node, 5000);
    let ((), found) = join!(
        async {
            waiting.waits_for(&[&one]).await;
            one.finish(true).await.unwrap();
        },
        waiting.insert(&[(12_099, -1)]),
    );
    assert!(told(found).starts_with("23505"));
    let sql = "SELECT c1, c1 FROM t1 WHERE c1 = 12098";
    let rows = waiting.lock(sql, RowLock::Update, LockWait::NoWait).await.unwrap();
    assert_eq!(rows, values(&[[Value::Int(12_098)]]));
    assert_eq!(node.shards.branches(SHARD).await.unwrap().len(), 1);
    nothing_is_left(&node).await;
}

/// Waits until nothing is staged, by whomever.
pub async fn nothing_is_left(node: &Node) {
    let struck = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        let count = "SELECT (SELECT count(*) FROM shoal_staged) + (SELECT count(*) FROM shoal_locked)";
        while node.one(count).await != Value::Int(0) {
            // It is seen to when someone asks.
            node.shards.branches(SHARD).await.unwrap();
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, struck).await.expect("what is left over is struck out");
}

async fn pieces(node: &Node) -> i64 {
    match node.one("SELECT count(*) FROM shoal_staged").await {
        Value::Int(count) => count,
        other => panic!("{other:?}"),
    }
}

/// Inserts the rows 100 to 399, thirty at a time.
async fn fill(one: &Session<'_>) {
    for first in (100..400).step_by(30) {
        let rows: Vec<_> = (first..first + 30).map(|key| (key, key)).collect();
        assert_eq!(one.insert(&rows).await.unwrap(), 30);
    }
}

/// How many rows there are, and the sum of a column.
const SUM: &str = "SELECT count(*) || ' ' || sum(c3) FROM t1 WHERE c1 >= 100";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_transaction_lies_in_the_database_until_it_is_committed() {
    let node = start().await.staging(1000, vec![NodeId(1)]);
    let one = Session::new(&node, 1);
    fill(&one).await;
    assert!(pieces(&node).await > 3);
    assert_eq!(one.read(SUM).await.unwrap(), values(&[[text("300 74850")]]));
    assert_eq!(one.write("UPDATE t1 SET c3 = -c3 WHERE c1 >= 390").await.unwrap(), 10);
    assert_eq!(one.write("DELETE FROM t1 WHERE c1 BETWEEN 200 AND 299").await.unwrap(), 100);
    assert!(told(one.insert(&[(150, 1)]).await).starts_with("23505"));
    let after = values(&[[text("200 42010")]]);
    assert_eq!(one.read(SUM).await.unwrap(), after);
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(2), "nobody else sees it");
    let committed = one.commit().await.unwrap();
    assert_eq!(node.one(SUM).await, after[0][0]);
    assert_eq!(pieces(&node).await, 0);
    assert!(one.commit().await.unwrap() >= committed, "it may be asked for again");
    assert_eq!(node.one(SUM).await, after[0][0]);
    assert!(node.shards.branches(SHARD).await.unwrap().is_empty());
    let write = node.write("UPDATE t1 SET c3 = NULL", 900);
    assert_eq!(node.shards.execute(write).await.unwrap().affected, 202, "nothing is locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_is_undone_to_a_savepoint_and_struck_out() {
    let node = start().await.staging(2000, vec![NodeId(1)]);
    let one = Session::new(&node, 1);
    fill(&one).await;
    // In the middle of a piece.
    one.roll_back_to(5).await.unwrap();
    assert_eq!(one.read(SUM).await.unwrap(), values(&[[text("150 26175")]]));
    let rows: Vec<_> = (250..350).map(|key| (key, key)).collect();
    assert_eq!(one.insert(&rows).await.unwrap(), 100);
    assert_eq!(one.read(SUM).await.unwrap(), values(&[[text("250 56125")]]));
    one.commit().await.unwrap();
    assert_eq!(node.one(SUM).await, text("250 56125"));
    assert_eq!(pieces(&node).await, 0);
    for undone in [false, true] {
        let two = Session::new(&node, 2 + u64::from(undone));
        two.write("UPDATE t1 SET c3 = c3 + 1000, c2 = 'much longer than it was'").await.unwrap();
        assert!(pieces(&node).await > 0);
        if undone {
            two.roll_back_to(0).await.unwrap();
            two.commit().await.unwrap();
        } else {
            two.roll_back().await;
        }
        nothing_is_left(&node).await;
        assert_eq!(node.one(SUM).await, text("250 56125"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_is_prepared_and_finished_after_a_restart() {
    for commit in [false, true] {
        let node = start().await.staging(1000, vec![NodeId(1)]);
        let (one, open) = (Session::new(&node, 1), Session::new(&node, 2));
        fill(&one).await;
        open.insert(&(500..600).map(|key| (key, key)).collect::<Vec<_>>()).await.unwrap();
        one.prepare().await.unwrap();
        one.prepare().await.unwrap();
        let node = node.restart(vec![NodeId(1)], &Arc::default(), |_| {}).await;
        leads(&node).await;
        let one = Session::new(&node, 1);
        let waits = Session::new(&node, 3);
        // The rows of the other are free: it is struck out.
        waits.insert(&[(550, 550)]).await.unwrap();
        let ((), inserted) = join!(
            async {
                waits.waits_for(&[&one]).await;
                one.finish(commit).await.unwrap();
                one.finish(commit).await.unwrap();
            },
            waits.insert(&[(111, 0)]),
        );
        assert_eq!(inserted.is_ok(), !commit);
        waits.roll_back().await;
        nothing_is_left(&node).await;
        assert_eq!(node.one("SELECT count(*) FROM shoal_prepared").await, Value::Int(0));
        let expected = if commit { text("300 74850") } else { Value::Null };
        assert_eq!(node.one(SUM).await, expected);
    }
}

/// Its router hasn't heard of it, and asks the next leader for the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_leader_has_staged_takes_nothing_along() {
    let (nodes, _network) = three(|_| {}).await;
    let ids = || (1..=3).map(NodeId).collect();
    let nodes: Vec<_> = nodes.into_iter().map(|node| node.staging(1, ids())).collect();
    let update = "UPDATE t1 SET c2 = 'A' WHERE c1 = 1";
    Session::new(&nodes[0], 1).write(update).await.unwrap();
    assert!(pieces(&nodes[0]).await > 0);
    hand_over(&nodes[0], &nodes[1]).await;
    let changed = "40001: the transaction was aborted: the shard's leader has changed";
    assert_eq!(told(Session::new(&nodes[1], 1).write(update).await), changed);
    nothing_is_left(&nodes[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_keeps_what_is_prepared_of_what_is_staged() {
    let (nodes, _network) = three(|_| {}).await;
    let ids = || (1..=3).map(NodeId).collect();
    let nodes: Vec<_> = nodes.into_iter().map(|node| node.staging(1000, ids())).collect();
    let [one, two] = [1, 2].map(|number| Session::new(&nodes[0], number));
    for first in (100..400).step_by(30) {
        for (session, first) in [(&one, first), (&two, first + 1000)] {
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {first} + 29)
                 INSERT INTO t1 SELECT i, 'x' FROM n"
            );
            assert_eq!(session.write(&sql).await.unwrap(), 30);
        }
    }
    one.prepare().await.unwrap();
    assert!(pieces(&nodes[0]).await > 4);
    hand_over(&nodes[0], &nodes[1]).await;
    let changed = "40001: the transaction was aborted: the shard's leader has changed";
    assert_eq!(told(two.at(&nodes[1]).commit().await), changed);
    let left = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while nodes[1].one("SELECT count(*) FROM shoal_staged WHERE sequence = 2").await != Value::Int(0) {
            nodes[1].shards.branches(SHARD).await.unwrap();
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, left).await.expect("what is open is struck out");
    hand_over(&nodes[1], &nodes[2]).await;
    assert_eq!(told(two.at(&nodes[2]).commit().await), changed);
    let one = one.at(&nodes[2]);
    one.finish(true).await.unwrap();
    nothing_is_left(&nodes[2]).await;
    let count = "SELECT count(*) FROM t1 WHERE c1 >= 100";
    assert_eq!(nodes[2].one(count).await, Value::Int(300));
    // The others have made the same of what they had.
    hand_over(&nodes[2], &nodes[0]).await;
    assert_eq!(nodes[0].one(count).await, Value::Int(300));
    assert_eq!(pieces(&nodes[0]).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_too_big_fails_alone() {
    let node = Node::start_with(|config| config.max_staged_bytes = 20_000).await;
    node.schema(1, &[TABLE, UNIQUE], None).await.unwrap();
    let node = node.staging(1000, vec![NodeId(1)]);
    let one = Session::new(&node, 1);
    let mut inserted = 0;
    let error = loop {
        let rows: Vec<_> = (inserted..inserted + 30).map(|key| (key, key)).collect();
        match one.insert(&rows).await {
            Ok(count) => inserted += count as i64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    assert!((300..900).contains(&inserted), "{inserted}");
    let two = Session::new(&node, 2);
    two.insert(&[(9000, 9000)]).await.unwrap();
    two.commit().await.unwrap();
    one.roll_back().await;
    nothing_is_left(&node).await;
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_brings_what_is_staged() {
    let small = |config: &mut replica::Config| {
        config.log_keep_bytes = 16 << 10;
        config.log_cut_entries = 16;
        config.log_file_bytes = 64 << 10;
        config.checkpoint_bytes = 64 << 10;
    };
    let ids = || (1..=3).map(NodeId).collect::<Vec<_>>();
    let (nodes, network) = three(small).await;
    let mut nodes: Vec<_> = nodes.into_iter().map(|node| node.staging(1000, ids())).collect();
    let insert = async |session: &Session<'_>, first: i64| {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {first} + 99)
             INSERT INTO t1 SELECT i, hex(randomblob(50)) FROM n"
        );
        assert_eq!(session.write(&sql).await.unwrap(), 100);
    };
    // One is prepared, one committed, and one open while a node is away; the log forgets all of it.
    let third = nodes.pop().unwrap();
    let [one, two, open] = [1, 2, 3].map(|number| Session::new(&nodes[0], number));
    insert(&one, 1000).await;
    insert(&two, 2000).await;
    let host = Arc::clone(&third.host);
    tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
    insert(&one, 1100).await;
    one.prepare().await.unwrap();
    insert(&two, 2100).await;
    two.commit().await.unwrap();
    for number in 0..50 {
        let other = Session::new(&nodes[0], 100 + number);
        insert(&other, 10_000 + 100 * number as i64).await;
        other.commit().await.unwrap();
    }
    insert(&open, 3000).await;
    let third = third.restart(ids(), &network, small).await;
    hand_over(&nodes[0], &third).await;
    let rows = "SELECT count(*) FROM t1 WHERE c1 >= 1000 AND c1 < 10000";
    // Whoever asks the shard waits for the one that is prepared.
    let replica = third.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.unwrap();
    let committed = |sql| snapshot.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(committed(rows), 200);
    assert_eq!(committed("SELECT count(*) FROM t1 WHERE c1 >= 10000"), 5000);
    drop(snapshot);
    assert!(told(open.at(&third).commit().await).starts_with("40001"));
    one.at(&third).finish(true).await.unwrap();
    assert_eq!(third.one(rows).await, Value::Int(400));
    nothing_is_left(&third).await;
    hand_over(&third, &nodes[0]).await;
    assert_eq!(nodes[0].one(rows).await, Value::Int(400));
    assert_eq!(pieces(&nodes[0]).await, 0);
}
