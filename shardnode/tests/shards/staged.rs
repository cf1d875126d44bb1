//! Transactions of many rows: what they cost, and what they keep locked.

use crate::common::{Node, SHARD, text, values, with_rows};
use crate::session::{Session, told};
use proto::services::{BranchAccess, LockWait, RowLock, ShardService};
use proto::{Value, WireError};
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
    let node = start().await;
    let one = Session::new(&node, 1);
    let rows: Vec<_> = (100..12_100).map(|key| (key, key)).collect();
    for part in rows.chunks(3000) {
        assert_eq!(one.insert(part).await.unwrap(), 3000);
    }
    let probe = async |node: &Node, number: u64, key: i64| {
        let mut probe = Session::new(node, number);
        probe.lock_timeout = Some(std::time::Duration::from_millis(20));
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
    let node = node.restart(vec![proto::NodeId(1)], &std::sync::Arc::default(), |_| {}).await;
    crate::prepared::leads(&node).await;
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
}
