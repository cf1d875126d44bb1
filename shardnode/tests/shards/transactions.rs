//! Transactions of several statements on one shard: what they see, what they lock, who waits.

use crate::common::{Node, PATIENCE, SHARD, rows, text, values};
use crate::session::{Session, told};
use proto::services::{BranchAccess, BranchAction, LockWait, RowLock, ShardService};
use proto::{NodeId, Retry, SqlState, Value, WireError};
use std::time::Duration;
use tokio::join;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT, c3 INTEGER) STRICT";
const UNIQUE: &str = "CREATE UNIQUE INDEX i2 ON t1 (c3)";

/// A node whose table has the rows 1 to 4.
async fn start() -> Node {
    let node = Node::start().await;
    node.schema(1, &[TABLE, UNIQUE], None).await.unwrap();
    let insert =
        node.write("INSERT INTO t1 VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30), (4, 'd', NULL)", 1);
    node.shards.execute(insert).await.unwrap();
    node
}

/// Waits until a write outside of any transaction waits for this one.
async fn single_waits_for(node: &Node, other: &Session<'_>) {
    let waits = async {
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        let all = || async { node.shards.branches(SHARD).await.unwrap() };
        while !all().await.iter().any(|status| status.waits_for == [other.id()]) {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it waits");
}

/// All texts, in the order of their rows.
async fn texts(node: &Node) -> String {
    match node.one("SELECT group_concat(c2, '') FROM (SELECT c2 FROM t1 ORDER BY c1)").await {
        Value::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sees_what_it_has_written_and_others_do_once_it_is_committed() {
    let node = start().await;
    let one = Session::new(&node, 1);
    assert_eq!(one.read("SELECT c2 FROM t1 WHERE c1 = 1").await.unwrap(), values(&[[text("a")]]));
    assert_eq!(one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap(), 1);
    assert_eq!(one.write("INSERT INTO t1 VALUES (5, 'e', 50)").await.unwrap(), 1);
    assert_eq!(one.write("UPDATE t1 SET c2 = c2 || c2 WHERE c1 IN (1, 5)").await.unwrap(), 2);
    let sql = "SELECT c2 FROM t1 WHERE c1 IN (1, 5) ORDER BY c1";
    assert_eq!(one.read(sql).await.unwrap(), values(&[[text("AA")], [text("ee")]]));
    assert_eq!(texts(&node).await, "abcd");
    let committed = one.commit().await.unwrap();
    assert_eq!(texts(&node).await, "AAbcdee");
    assert_eq!(one.commit().await.unwrap(), committed, "repeated, it is answered as before");
    assert_eq!(told(one.write("DELETE FROM t1").await), format!("25P01: transaction {} has ended", one.id()));
    assert!(node.shards.branches(SHARD).await.unwrap().is_empty());

    let two = Session::new(&node, 2);
    two.write("DELETE FROM t1").await.unwrap();
    two.roll_back().await;
    two.roll_back().await;
    assert_eq!(texts(&node).await, "AAbcdee");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_statement_is_answered_and_not_run() {
    let node = start().await;
    let one = Session::new(&node, 1);
    let insert = one.next("INSERT INTO t1 (c2) VALUES ('x') RETURNING c1", BranchAccess::Write { touch: 0 });
    let first = node.shards.execute(insert.clone()).await.unwrap();
    let again = node.shards.execute(insert.clone()).await.unwrap();
    assert_eq!((first.affected, again.affected), (1, 1));
    assert_eq!(rows(first.rows).await.unwrap(), rows(again.rows).await.unwrap());
    let fails = one.next("INSERT INTO t1 VALUES (1, 'x', 0)", BranchAccess::Write { touch: 0 });
    let error = node.shards.execute(fails.clone()).await.err().unwrap();
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(node.shards.execute(fails).await.err().unwrap(), error);
    assert!(node.shards.execute(insert).await.is_err(), "its answer is forgotten");
    one.write("UPDATE t1 SET c2 = 'y' WHERE c1 = 5").await.unwrap();
    one.commit().await.unwrap();
    assert_eq!(texts(&node).await, "abcdy");

    let gap = Session::new(&node, 2);
    let _lost = gap.next("DELETE FROM t1", BranchAccess::Write { touch: 0 });
    assert_eq!(
        told(gap.write("DELETE FROM t1").await),
        "40001: the transaction was aborted: the shard's leader has changed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changes_a_row_that_another_has_changed_waits_for_it() {
    let node = start().await;
    for (number, commit) in [(10, true), (20, false)] {
        let (one, two, three) =
            (Session::new(&node, number), Session::new(&node, number + 1), Session::new(&node, number + 2));
        one.write("UPDATE t1 SET c2 = c2 || '1' WHERE c1 = 1").await.unwrap();
        assert_eq!(two.write("UPDATE t1 SET c2 = c2 || '2' WHERE c1 = 2").await.unwrap(), 1, "another row");
        let sql = "UPDATE t1 SET c2 = c2 || '3' WHERE c1 = 1";
        let (second, third, ()) = join!(
            two.write("UPDATE t1 SET c2 = c2 || '2' WHERE c1 = 1"),
            async {
                two.waits_for(&[&one]).await;
                let third = three.write(sql).await;
                three.commit().await.unwrap();
                third
            },
            async {
                three.waits_for(&[&one]).await;
                one.end(commit).await;
                three.waits_for(&[&two]).await;
                two.commit().await.unwrap();
            }
        );
        assert_eq!((second.unwrap(), third.unwrap()), (1, 1));
    }
    assert_eq!(texts(&node).await, "a12323b22cd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_runs_on_what_is_committed_then() {
    let node = start().await;
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    one.write("UPDATE t1 SET c2 = 'gone' WHERE c1 = 2").await.unwrap();
    let (changed, ()) = join!(two.write("UPDATE t1 SET c2 = 'B' WHERE c2 = 'b'"), async {
        two.waits_for(&[&one]).await;
        one.commit().await.unwrap();
    });
    assert_eq!(changed.unwrap(), 0, "it isn't 'b' any more");
    two.commit().await.unwrap();
    assert_eq!(texts(&node).await, "agonecd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_come_upon_is_locked_though_it_stays_as_it_was() {
    let node = start().await;
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    assert_eq!(one.write("UPDATE t1 SET c2 = 'a' WHERE c1 = 1").await.unwrap(), 1);
    let (changed, ()) = join!(two.write("UPDATE t1 SET c2 = 'x' WHERE c1 = 1"), async {
        two.waits_for(&[&one]).await;
        one.commit().await.unwrap();
    });
    assert_eq!(changed.unwrap(), 1);
    // What is 'b' as far as others see may become something else: who makes it 'b' must wait for that.
    let same = node.write("UPDATE t1 SET c2 = 'b' WHERE c1 = 2", 70);
    let three = Session::new(&node, 3);
    three.write("UPDATE t1 SET c2 = 'y' WHERE c1 = 2").await.unwrap();
    let (done, ()) = join!(node.shards.execute(same), async {
        single_waits_for(&node, &three).await;
        three.commit().await.unwrap();
    });
    assert_eq!(done.unwrap().affected, 1);
    two.commit().await.unwrap();
    assert_eq!(texts(&node).await, "xbcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_wait_for_each_other_the_younger_ends() {
    let node = start().await;
    let (old, young) = (Session::new(&node, 1), Session::new(&node, 2));
    old.write("UPDATE t1 SET c2 = 'o' WHERE c1 = 1").await.unwrap();
    young.write("UPDATE t1 SET c2 = 'y' WHERE c1 = 2").await.unwrap();
    let (waited, ended) = join!(old.write("UPDATE t1 SET c2 = 'o' WHERE c1 = 2"), async {
        old.waits_for(&[&young]).await;
        let ended = young.write("UPDATE t1 SET c2 = 'y' WHERE c1 = 1").await.unwrap_err();
        assert!(old.status().await.unwrap().waits_for.contains(&young.id()), "it has what it had before");
        young.roll_back().await;
        ended
    });
    assert_eq!(waited.unwrap(), 1);
    assert_eq!((ended.sqlstate, ended.retry), (SqlState::DEADLOCK_DETECTED, Retry::Never));
    let detail = ended.detail.unwrap();
    for line in [
        "Transaction 5-1 waits for NO KEY UPDATE lock on a row; blocked by transaction 5-2.",
        "Transaction 5-2 waits for NO KEY UPDATE lock on a row; blocked by transaction 5-1.",
    ] {
        assert!(detail.contains(line), "{detail}");
    }
    old.commit().await.unwrap();
    assert_eq!(texts(&node).await, "oocd");

    // The other way round, the one that waits already is ended.
    let (old, young) = (Session::new(&node, 3), Session::new(&node, 4));
    old.write("UPDATE t1 SET c2 = 'O' WHERE c1 = 1").await.unwrap();
    young.write("UPDATE t1 SET c2 = 'Y' WHERE c1 = 2").await.unwrap();
    let (ended, waited) = join!(
        async {
            let ended = young.write("UPDATE t1 SET c2 = 'Y' WHERE c1 = 1").await;
            young.roll_back().await;
            ended
        },
        async {
            young.waits_for(&[&old]).await;
            old.write("UPDATE t1 SET c2 = 'O' WHERE c1 = 2").await
        }
    );
    assert_eq!(ended.unwrap_err().sqlstate, SqlState::DEADLOCK_DETECTED);
    assert_eq!(waited.unwrap(), 1);
    old.commit().await.unwrap();
    assert_eq!(texts(&node).await, "OOcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unique_key_is_waited_for_and_then_taken_or_refused() {
    let node = start().await;
    let cases = [
        // What the first does, what the second wants, whether it may once the first has committed, and if it was rolled back.
        ("INSERT INTO t1 VALUES (7, 'x', 70)", "INSERT INTO t1 VALUES (7, 'y', 71)", false, true),
        ("INSERT INTO t1 VALUES (7, 'x', 70)", "INSERT INTO t1 VALUES (8, 'y', 70)", false, true),
        ("UPDATE t1 SET c3 = 70 WHERE c1 = 1", "UPDATE t1 SET c3 = 70 WHERE c1 = 2", false, true),
        ("DELETE FROM t1 WHERE c1 = 3", "INSERT INTO t1 VALUES (3, 'y', 71)", true, false),
        ("DELETE FROM t1 WHERE c1 = 3", "INSERT INTO t1 VALUES (3, 'c', 30)", true, false),
        ("DELETE FROM t1 WHERE c1 = 3", "INSERT INTO t1 VALUES (8, 'y', 30)", true, false),
        ("UPDATE t1 SET c3 = 31 WHERE c1 = 3", "INSERT INTO t1 VALUES (8, 'y', 30)", true, false),
        ("UPDATE t1 SET c1 = 9 WHERE c1 = 3", "UPDATE t1 SET c1 = 3 WHERE c1 = 2", true, false),
    ];
    for (place, (first, second, if_committed, if_rolled_back)) in cases.into_iter().enumerate() {
        for (commit, may) in [(true, if_committed), (false, if_rolled_back)] {
            let number = 100 * (place as u64 + 1) + 10 * u64::from(commit);
            let (one, two) = (Session::new(&node, number), Session::new(&node, number + 1));
            one.write(first).await.unwrap();
            let (done, ()) = join!(two.write(second), async {
                two.waits_for(&[&one]).await;
                one.end(commit).await;
            });
            match done {
                Ok(affected) => assert!(may && affected == 1, "{first}; {second}; {commit}"),
                Err(error) => {
                    assert!(
                        !may && error.sqlstate == SqlState::UNIQUE_VIOLATION,
                        "{first}; {second}; {commit}: {error}"
                    );
                }
            }
            two.roll_back().await;
            let restore = "INSERT INTO t1 VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30), (4, 'd', NULL)";
            for (step, sql) in ["DELETE FROM t1", restore].into_iter().enumerate() {
                node.shards.execute(node.write(sql, 10 * number + step as u64)).await.unwrap();
            }
        }
    }
    // What nobody is about to free is refused at once.
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    one.write("DELETE FROM t1 WHERE c1 = 3").await.unwrap();
    assert_eq!(
        two.write("INSERT INTO t1 VALUES (1, 'y', 0)").await.unwrap_err().sqlstate,
        SqlState::UNIQUE_VIOLATION
    );
    let three = Session::new(&node, 3);
    three.lock("SELECT c1, c1 FROM t1 WHERE c1 = 2", RowLock::Update, LockWait::Wait).await.unwrap();
    three.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    for sql in ["INSERT INTO t1 VALUES (2, 'y', 0)", "INSERT INTO t1 VALUES (7, 'y', 20)"] {
        assert_eq!(
            two.write(sql).await.unwrap_err().sqlstate,
            SqlState::UNIQUE_VIOLATION,
            "a lock frees no key"
        );
    }
    assert_eq!(two.write("INSERT INTO t1 VALUES (2, 'y', 0) ON CONFLICT DO NOTHING").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_for_too_long_is_rolled_back() {
    let node = start().await;
    let mut config = shardnode::Config::new(NodeId(1));
    config.router_silence = Duration::from_millis(300);
    config.max_branches = 2;
    let node = node.with_shards(config);
    let (one, two, three) = (Session::new(&node, 1), Session::new(&node, 2), Session::new(&node, 3));
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    // Whoever waits for it has it looked after.
    assert_eq!(two.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 1").await.unwrap(), 1);
    let silent = "40001: the transaction was aborted: the shard has heard nothing of its router for too long";
    assert_eq!(told(one.commit().await), silent);
    assert_eq!(told(one.write("DELETE FROM t1").await), silent);
    three.read("SELECT 1").await.unwrap();
    let many = Session::new(&node, 4).read("SELECT 1").await.unwrap_err();
    assert_eq!(many.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    two.commit().await.unwrap();
    assert_eq!(texts(&node).await, "Bbcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_lives_as_long_as_its_router() {
    let node = start().await;
    let mut config = shardnode::Config::new(NodeId(1));
    config.router_silence = Duration::from_millis(200);
    let node = node.with_shards(config);
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let mut beats = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..30 {
        beats.tick().await;
        node.shards.keep_alive(one.id().router).await.unwrap();
        assert_eq!(node.shards.branches(SHARD).await.unwrap().len(), 1);
    }
    // Another's word is none of its own.
    let other = proto::RouterIncarnation(one.id().router.0 + 1);
    let gone = async {
        while !node.shards.branches(SHARD).await.unwrap().is_empty() {
            node.shards.keep_alive(other).await.unwrap();
            beats.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it ends with its router");
    assert_eq!(texts(&node).await, "abcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_and_whose_router_is_silent_is_told_of() {
    let node = start().await;
    let mut config = shardnode::Config::new(NodeId(1));
    config.router_silence = Duration::from_millis(200);
    let node = node.with_shards(config);
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    one.prepare().await.unwrap();
    let mut beats = tokio::time::interval(Duration::from_millis(20));
    let is_forsaken = async || {
        let [branch] = &node.shards.branches(SHARD).await.unwrap()[..] else { panic!("it is prepared") };
        assert!(branch.prepared.is_some());
        branch.forsaken
    };
    for _ in 0..30 {
        beats.tick().await;
        node.shards.keep_alive(one.id().router).await.unwrap();
        assert!(!is_forsaken().await);
    }
    let forsaken = async {
        while !is_forsaken().await {
            beats.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forsaken).await.expect("nothing is heard of its router");
    // It stays as it is until somebody says what it becomes.
    node.shards.keep_alive(one.id().router).await.unwrap();
    assert!(!is_forsaken().await);
    one.finish(true).await.unwrap();
    assert_eq!(texts(&node).await, "Abcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_out_because_it_is_there_waits_for_who_may_free_it() {
    let node = start().await;
    let sql = "INSERT INTO t1 VALUES (3, 'y', 30) ON CONFLICT DO NOTHING";
    for (number, commit) in [(10, false), (20, true)] {
        let (one, two) = (Session::new(&node, number), Session::new(&node, number + 1));
        one.write("DELETE FROM t1 WHERE c1 = 3").await.unwrap();
        assert_eq!(two.write("INSERT INTO t1 VALUES (2, 'y', 0) ON CONFLICT DO NOTHING").await.unwrap(), 0);
        let (done, ()) = join!(two.write(sql), async {
            two.waits_for(&[&one]).await;
            one.end(commit).await;
        });
        assert_eq!(done.unwrap(), u64::from(commit));
        two.commit().await.unwrap();
    }
    assert_eq!(texts(&node).await, "abyd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_key_looks_again_when_it_turns_out_to_be_a_rows() {
    let node = start().await;
    let session = |number| Session::new(&node, number);
    let (one, two, three) = (session(1), session(2), session(3));
    one.write("INSERT INTO t1 VALUES (5, 'e', NULL)").await.unwrap();
    let update = "INSERT INTO t1 VALUES (5, 'x', NULL) ON CONFLICT (c1) DO UPDATE SET c2 = excluded.c2";
    let (updated, left_out, ()) = join!(
        two.write(update),
        async {
            two.waits_for(&[&one]).await;
            three.write("INSERT INTO t1 VALUES (5, 'y', NULL) ON CONFLICT DO NOTHING").await
        },
        async {
            three.waits_for(&[&one]).await;
            one.commit().await.unwrap();
        }
    );
    assert_eq!((updated.unwrap(), left_out.unwrap()), (1, 0));
    let row = "SELECT c1, c2 FROM t1 WHERE c1 = 5";
    let locked = three.lock(row, RowLock::KeyShare, LockWait::NoWait).await.unwrap();
    assert_eq!(
        locked,
        values(&[[text("e")]]),
        "the third has nothing of it, and the second no more than it needs"
    );
    two.commit().await.unwrap();
    three.commit().await.unwrap();
    assert_eq!(texts(&node).await, "abcdx");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_a_savepoint_is_undone_and_unlocked() {
    let node = start().await;
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let savepoint = one.last();
    one.write("UPDATE t1 SET c2 = 'AA' WHERE c1 = 1").await.unwrap();
    one.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    let (done, ()) = join!(two.write("UPDATE t1 SET c2 = 'x' WHERE c1 = 2"), async {
        two.waits_for(&[&one]).await;
        one.roll_back_to(savepoint).await.unwrap();
    });
    assert_eq!(done.unwrap(), 1);
    two.commit().await.unwrap();
    assert_eq!(one.read("SELECT c2 FROM t1 WHERE c1 = 1").await.unwrap(), values(&[[text("A")]]));
    // A statement that never arrived came before the one after it was undone.
    let _lost = one.next("DELETE FROM t1", BranchAccess::Write { touch: 0 });
    one.roll_back_to(savepoint).await.unwrap();
    one.write("UPDATE t1 SET c2 = c2 || '!' WHERE c1 IN (1, 2)").await.unwrap();
    one.roll_back_to(savepoint).await.unwrap();
    one.roll_back_to(savepoint).await.unwrap();
    one.write("UPDATE t1 SET c2 = c2 || '?' WHERE c1 IN (1, 2)").await.unwrap();
    one.commit().await.unwrap();
    assert_eq!(texts(&node).await, "A?x?cd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_locked_by_who_reads_them_for_that() {
    let node = start().await;
    let (one, two, three) = (Session::new(&node, 1), Session::new(&node, 2), Session::new(&node, 3));
    let all = "SELECT c1, c2 FROM t1 ORDER BY c1 DESC";
    let first = "SELECT c1, c2 FROM t1 WHERE c1 = 1";
    assert_eq!(one.lock(first, RowLock::Share, LockWait::Wait).await.unwrap(), values(&[[text("a")]]));
    assert_eq!(two.lock(first, RowLock::Share, LockWait::NoWait).await.unwrap(), values(&[[text("a")]]));
    assert_eq!(
        told(three.lock(all, RowLock::NoKeyUpdate, LockWait::NoWait).await),
        "55P03: could not obtain lock on row"
    );
    assert_eq!(
        three.lock(all, RowLock::Update, LockWait::SkipLocked).await.unwrap(),
        values(&[[text("d")], [text("c")], [text("b")]])
    );
    let four = Session::new(&node, 4);
    let two_rows = four.lock_some(all, RowLock::KeyShare, LockWait::SkipLocked, Some(2)).await;
    assert_eq!(two_rows.unwrap(), values(&[[text("a")]]), "three has the others");
    four.roll_back().await;
    three.roll_back_to(0).await.unwrap();
    for expected in [["d", "c"], ["b", ""]] {
        let worker = Session::new(&node, 20 + expected[1].len() as u64);
        let job = worker.lock_some(all, RowLock::Update, LockWait::SkipLocked, Some(2)).await.unwrap();
        let expected: Vec<_> =
            expected.iter().filter(|name| !name.is_empty()).map(|name| vec![text(name)]).collect();
        assert_eq!(job, expected, "what is skipped doesn't count");
    }
    Session::new(&node, 20).roll_back().await;
    Session::new(&node, 21).roll_back().await;
    assert_eq!(three.lock(first, RowLock::KeyShare, LockWait::NoWait).await.unwrap(), values(&[[text("a")]]));
    three.commit().await.unwrap();
    two.roll_back().await;
    let (waited, ()) = join!(
        async {
            let five = Session::new(&node, 5);
            let waited = five.lock(first, RowLock::Update, LockWait::Wait).await;
            five.roll_back().await;
            waited
        },
        async {
            Session::new(&node, 5).waits_for(&[&one]).await;
            one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
            one.commit().await.unwrap();
        }
    );
    assert_eq!(waited.unwrap(), values(&[[text("A")]]), "as it is when it is locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_longer_than_asked_for() {
    let node = start().await;
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let short = Duration::from_millis(50);
    let mut two = Session::new(&node, 2);
    two.lock_timeout = Some(short);
    let sql = "UPDATE t1 SET c2 = 'B'";
    assert_eq!(told(two.write(sql).await), "55P03: canceling statement due to lock timeout");
    assert_eq!(two.status().await.unwrap().waits_for, []);
    let mut three = Session::new(&node, 3);
    three.timeout = short;
    assert_eq!(told(three.write(sql).await), "57014: canceling statement due to statement timeout");
    // Whose caller goes away waits no more, and leaves nothing.
    let four = Session::new(&node, 4);
    tokio::select! {
        _ = four.write(sql) => panic!("it waits"),
        () = async { four.waits_for(&[&one]).await } => {}
    }
    assert_eq!(four.status().await, None);
    // Somebody else has found that it waits in a circle.
    let five = Session::new(&node, 5);
    let deadlock = WireError::new(SqlState::DEADLOCK_DETECTED, "deadlock detected");
    let (failed, ()) = join!(five.write(sql), async {
        five.waits_for(&[&one]).await;
        five.act(BranchAction::Fail(deadlock.clone())).await.unwrap();
    });
    assert_eq!(failed.unwrap_err().to_string(), deadlock.to_string());
    five.act(BranchAction::Fail(deadlock.clone())).await.unwrap();
    assert_eq!(
        five.read("SELECT 1").await.unwrap_err().to_string(),
        deadlock.to_string(),
        "or its next statement, if it doesn't wait"
    );
    one.commit().await.unwrap();
    let four = Session::new(&node, 4);
    assert_eq!(four.write(sql).await.unwrap(), 4, "rows 2 to 4 weren't kept by those who gave up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_outside_of_transactions_respects_their_locks() {
    let node = start().await;
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let other = node.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2 RETURNING c2", 50);
    let done = node.shards.execute(other.clone()).await.unwrap();
    assert_eq!(rows(done.rows).await.unwrap(), values(&[[text("B")]]));
    let again = node.shards.execute(other).await.unwrap();
    assert_eq!((again.affected, again.position), (1, done.position), "repeated, it is answered");
    let same = node.write("UPDATE t1 SET c2 = c2 || '!' WHERE c1 = 1", 51);
    let (done, ()) = join!(node.shards.execute(same), async {
        single_waits_for(&node, &one).await;
        assert_eq!(texts(&node).await, "aBcd");
        one.commit().await.unwrap();
    });
    assert_eq!(done.unwrap().affected, 1);
    assert_eq!(texts(&node).await, "A!Bcd");
    assert!(node.shards.branches(SHARD).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altering_a_table_ends_who_has_changed_it() {
    let node = start().await;
    node.schema(2, &["CREATE TABLE t3 (c1 INTEGER NOT NULL PRIMARY KEY) STRICT"], None).await.unwrap();
    let (one, two) = (Session::new(&node, 1), Session::new(&node, 2));
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    two.write("INSERT INTO t3 VALUES (1)").await.unwrap();
    node.schema(3, &["ALTER TABLE t1 ADD COLUMN c4 INTEGER"], None).await.unwrap();
    for result in
        [one.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.map(drop), one.commit().await.map(drop)]
    {
        assert_eq!(result.unwrap_err().sqlstate, SqlState::SERIALIZATION_FAILURE);
    }
    two.commit().await.unwrap();
    assert_eq!(node.one("SELECT count(*) FROM t3").await, Value::Int(1));
    assert_eq!(texts(&node).await, "abcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_kept() {
    let node = start().await;
    let one = Session::new(&node, 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let much = one.read("SELECT hex(zeroblob(4000000)) FROM t1").await.unwrap_err();
    assert_eq!(much.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    one.commit().await.unwrap();
    assert_eq!(texts(&node).await, "Abcd");
}
