//! Consistent cuts on one shard: what is withheld from whom, until when.

use crate::common::{GROUP, Node, PATIENCE, SHARD, rows, text, values};
use crate::session::{Session, told};
use proto::services::{
    Consistency, CutAction, CutRequest, FragmentRequest, ShardService, Unsettled, cut_lost,
};
use proto::{
    CutId, Epoch, LogIndex, NodeId, Retry, RouterIncarnation, SchemaVersion, SqlState, TableId,
    TransactionId, Value, WireError,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const OTHER: &str = "CREATE TABLE t2 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const ALL: &str = "SELECT group_concat(c2, '') FROM (SELECT c2 FROM t1 ORDER BY c1)";

/// A shard with the rows 1 to 3 in each of two tables, whose cuts are forgotten after this time.
async fn start_with(cut_timeout: Duration) -> Arc<Node> {
    let mut config = shardnode::Config::new(NodeId(1));
    config.cut_timeout = cut_timeout;
    let node = Node::start().await.with_shards(config);
    node.schema(1, &[TABLE, OTHER], None).await.unwrap();
    for (table, sequence) in [(1, 1), (2, 2)] {
        let insert = format!("INSERT INTO t{table} VALUES (1, 'a'), (2, 'b'), (3, 'c')");
        node.shards.execute(node.write(&insert, sequence)).await.unwrap();
    }
    Arc::new(node)
}

async fn start() -> Arc<Node> {
    start_with(PATIENCE).await
}

struct Cut<'a> {
    node: &'a Node,
    id: CutId,
}

impl<'a> Cut<'a> {
    fn new(node: &'a Node, sequence: u64) -> Self {
        Cut { node, id: CutId { router: RouterIncarnation(5), sequence } }
    }

    async fn act(&self, action: CutAction) -> Result<Vec<Unsettled>, WireError> {
        let (cut, timeout) = (self.id, PATIENCE);
        self.node.shards.cut(CutRequest { shard: SHARD, epoch: Epoch(1), cut, action, timeout }).await
    }

    /// Opens it over table 1.
    async fn open(&self, scans: Option<u32>) -> Vec<TransactionId> {
        let tables = vec![TableId(1)];
        let open = CutAction::Open { schema_version: SchemaVersion(1), tables, scans, after: LogIndex(0) };
        ids(self.act(open).await.unwrap())
    }

    async fn settle(&self, these: Vec<TransactionId>) -> Result<Vec<TransactionId>, WireError> {
        self.act(CutAction::Settle(these)).await.map(ids)
    }

    async fn close(&self) -> Vec<TransactionId> {
        ids(self.act(CutAction::Close).await.unwrap())
    }

    fn scan(&self, sql: &str) -> FragmentRequest {
        FragmentRequest { cut: Some(self.id), ..self.node.read(sql, false) }
    }

    async fn read(&self) -> Result<Vec<Vec<Value>>, WireError> {
        rows(self.node.shards.execute(self.scan(ALL)).await?.rows).await
    }
}

fn ids(unsettled: Vec<Unsettled>) -> Vec<TransactionId> {
    unsettled.into_iter().map(|one| one.transaction).collect()
}

/// What is committed, whoever may know.
async fn committed(node: &Node) -> String {
    let replica = node.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap();
    snapshot.connection().query_row(ALL, [], |row| row.get(0)).unwrap()
}

/// Waits until this is committed, and for whatever was told of it then.
async fn until_committed(node: &Node, expected: &str) {
    until_committed_beside(node, expected, node.write("UPDATE t2 SET c2 = c2", 1 << 40)).await;
}

/// The same, with a write that nothing withholds: it goes the same way.
async fn until_committed_beside(node: &Node, expected: &str, write: FragmentRequest) {
    let wait = async {
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        while committed(node).await != expected {
            pause.tick().await;
        }
        node.shards.execute(write).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it is committed");
}

fn execute(node: &Arc<Node>, request: FragmentRequest) -> JoinHandle<Result<Vec<Vec<Value>>, WireError>> {
    let node = Arc::clone(node);
    tokio::spawn(async move { rows(node.shards.execute(request).await?.rows).await })
}

/// Has a transaction change row 1, and prepares it.
async fn prepared(node: &Node, number: u64) -> Session<'_> {
    let session = Session::new(node, number);
    session.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    session.prepare().await.unwrap();
    session
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it is told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cut_lacks_is_told_when_it_is_released() {
    let node = start().await;
    let cut = Cut::new(&node, 1);
    assert_eq!(cut.open(Some(1)).await, []);
    let write = execute(&node, node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10));
    until_committed(&node, "Abc").await;
    let read = execute(&node, node.read("SELECT c2 FROM t1 WHERE c1 = 1", true));
    let scan = execute(&node, node.read(ALL, false));
    let other = Session::new(&node, 3);
    let error = other.write("INSERT INTO t1 VALUES (1, 'x')");
    tokio::select! {
        biased;
        _ = error => panic!("an error tells of a row that is there"),
        () = async {
            let elsewhere = node.read("SELECT c2 FROM t2 WHERE c1 = 1", true);
            assert!(soon(execute(&node, elsewhere)).await.is_ok(), "the cut doesn't read that table");
        } => {}
    }
    assert!(!write.is_finished() && !read.is_finished() && !scan.is_finished());
    assert_eq!(cut.read().await.unwrap(), values(&[[text("abc")]]));
    assert!(soon(write).await.unwrap().is_ok());
    assert_eq!(soon(read).await.unwrap().unwrap(), values(&[[text("A")]]));
    assert_eq!(soon(scan).await.unwrap().unwrap(), values(&[[text("Abc")]]));
    assert_eq!(cut.read().await, Err(cut_lost()), "its only scan is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_together_is_told_together() {
    let third = "CREATE TABLE t3 (c1 INTEGER NOT NULL PRIMARY KEY) STRICT";
    for has_read in [false, true] {
        let node = start().await;
        node.schema(2, &[third], None).await.unwrap();
        let cut = Cut::new(&node, 1);
        cut.open(Some(1)).await;
        let first = node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10);
        let copy = node.write("UPDATE t2 SET c2 = (SELECT c2 FROM t1 WHERE c1 = 1) WHERE c1 = 1", 11);
        let session = Session::new(&node, 3);
        let writes = async {
            if has_read {
                let first = execute(&node, first);
                until_committed(&node, "Abc").await;
                let told = soon(execute(&node, copy)).await.unwrap();
                first.await.unwrap().unwrap();
                told.unwrap();
            } else {
                session.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
                session.write("UPDATE t2 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
                session.commit().await.unwrap();
            }
        };
        let reads = async {
            until_committed_beside(&node, "Abc", node.write("INSERT INTO t3 VALUES (1)", 12)).await;
            let replica = node.host.replica(GROUP).unwrap();
            let mut pause = tokio::time::interval(Duration::from_millis(2));
            let is_copied = async || {
                let deadline = Instant::now() + PATIENCE;
                let snapshot = replica.snapshot(Consistency::Eventual, deadline).await.unwrap();
                let sql = "SELECT c2 = 'A' FROM t2 WHERE c1 = 1";
                snapshot.connection().query_row(sql, [], |row| row.get::<_, bool>(0)).unwrap()
            };
            while !is_copied().await {
                pause.tick().await;
            }
            let read = execute(&node, node.read("SELECT c2 FROM t2 WHERE c1 = 1", true));
            let other = node.read("SELECT count(*) FROM t3", false);
            soon(execute(&node, other)).await.unwrap().unwrap();
            assert!(!read.is_finished(), "it tells of what the cut lacks");
            assert_eq!(cut.read().await.unwrap(), values(&[[text("abc")]]));
            assert_eq!(soon(read).await.unwrap().unwrap(), values(&[[text("A")]]));
        };
        soon(async { tokio::join!(writes, reads) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_opened_once() {
    let node = start().await;
    let cut = Cut::new(&node, 1);
    let open = || CutAction::Open {
        schema_version: SchemaVersion(1),
        tables: vec![TableId(1)],
        scans: Some(1),
        after: LogIndex(0),
    };
    assert_eq!(cut.act(open()).await, Ok(vec![]));
    assert_eq!(cut.act(open()).await, Err(cut_lost()));
    assert_eq!(cut.read().await.unwrap(), values(&[[text("abc")]]), "what was opened is as it was");
}

/// Its position may never come, and whoever is withheld something has nothing to do with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_must_show_what_is_not_there_withholds_nothing() {
    let node = start().await;
    let cut = Cut::new(&node, 1);
    let at = node.host.replica(GROUP).unwrap().status().applied;
    let open = |more| CutAction::Open {
        schema_version: SchemaVersion(1),
        tables: vec![TableId(1)],
        scans: Some(1),
        after: LogIndex(at.0 + more),
    };
    let begun = Instant::now();
    let write = node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10);
    let (refused, written) = tokio::join!(cut.act(open(1000)), soon(execute(&node, write)));
    assert!(written.unwrap().is_ok());
    let refused = refused.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::POSITION_NOT_REACHED);
    assert!(matches!(refused.retry, Retry::Behind(position) if position >= at), "{refused}");
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    // It can be asked for again as soon as there is more.
    assert_eq!(cut.act(open(1)).await, Ok(vec![]));
    assert_eq!(cut.read().await.unwrap(), values(&[[text("Abc")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cut_has_is_told_at_once() {
    let node = start().await;
    let cut = Cut::new(&node, 1);
    cut.open(Some(1)).await;
    let read = node.read(ALL, false);
    assert_eq!(soon(execute(&node, read)).await.unwrap().unwrap(), values(&[[text("abc")]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cuts_scan_tells_no_news_either() {
    let node = start().await;
    let (old, new) = (Cut::new(&node, 1), Cut::new(&node, 2));
    old.open(Some(1)).await;
    let write = execute(&node, node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10));
    until_committed(&node, "Abc").await;
    new.open(Some(1)).await;
    let scan = execute(&node, new.scan(ALL));
    until_committed(&node, "Abc").await;
    assert!(!scan.is_finished() && !write.is_finished());
    old.act(CutAction::Drop).await.unwrap();
    assert_eq!(soon(scan).await.unwrap().unwrap(), values(&[[text("Abc")]]));
    assert!(soon(write).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_wait_for_cuts_that_do_not_settle_them() {
    let node = start().await;
    let (cut, other) = (Cut::new(&node, 1), Cut::new(&node, 2));
    cut.open(Some(1)).await;
    let session = Session::new(&node, 10);
    session.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let mut vote = Box::pin(session.prepare());
    let told = async {
        let replica = node.host.replica(GROUP).unwrap();
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        loop {
            let deadline = Instant::now() + PATIENCE;
            let snapshot = replica.snapshot(Consistency::Eventual, deadline).await.unwrap();
            let sql = "SELECT count(*) FROM shoal_prepared";
            let count = snapshot.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
            if count == 1 {
                break;
            }
            drop(snapshot);
            pause.tick().await;
        }
        until_committed(&node, "abc").await;
        let branches = node.shards.branches(SHARD).await.unwrap();
        assert!(branches.iter().all(|status| status.prepared.is_none()), "to tell of a vote is to vote");
    };
    tokio::select! { biased; _ = &mut vote => panic!("it is told"), () = told => {} }
    // Another cut, which has it pending, settles it: that's none of this one's business yet.
    assert_eq!(other.open(Some(1)).await, [session.id()]);
    let mut settled = Box::pin(other.settle(vec![session.id()]));
    tokio::select! {
        biased;
        _ = &mut settled => panic!("it hasn't ended"),
        _ = &mut vote => panic!("it is withheld"),
        () = until_committed(&node, "abc") => {}
    }
    // As soon as this one settles something, it lets through what the others settle, and has to settle that.
    assert_eq!(cut.settle(vec![]).await.unwrap(), []);
    soon(vote).await.unwrap();
    assert_eq!(cut.close().await, [session.id()]);
    session.finish(true).await.unwrap();
    assert_eq!(soon(settled).await.unwrap(), []);
    assert_eq!(soon(cut.settle(vec![session.id()])).await.unwrap(), []);
    for cut in [cut, other] {
        assert_eq!(cut.close().await, []);
        assert_eq!(cut.read().await.unwrap(), values(&[[text("Abc")]]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pending_is_waited_for_and_the_snapshot_opened_again() {
    let node = start().await;
    for (number, commit, expected) in [(10, false, "abc"), (20, true, "Abc")] {
        let session = prepared(&node, number).await;
        let cut = Cut::new(&node, number);
        assert_eq!(cut.open(Some(1)).await, [session.id()]);
        assert_eq!(cut.read().await, Err(cut_lost()), "it isn't settled");
        // Repeating everything after that is safe.
        assert_eq!(
            cut.settle(vec![]).await.unwrap(),
            [session.id()],
            "there is something that it must know of"
        );
        let (settled, finished) =
            tokio::join!(soon(cut.settle(vec![session.id()])), async { session.finish(commit).await });
        assert_eq!((settled.unwrap(), finished.is_ok()), (vec![], true));
        assert_eq!((cut.settle(vec![session.id()]).await.unwrap(), cut.close().await), (vec![], vec![]));
        assert_eq!(cut.read().await.unwrap(), values(&[[text(expected)]]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_of_one_cut_see_one_state_and_kept_ones_go_on_seeing_it() {
    let node = start().await;
    let (three, kept) = (Cut::new(&node, 1), Cut::new(&node, 2));
    three.open(Some(3)).await;
    kept.open(None).await;
    kept.act(CutAction::Release).await.unwrap();
    let write = execute(&node, node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10));
    until_committed(&node, "Abc").await;
    assert!(!write.is_finished());
    for _ in 0..3 {
        assert_eq!(three.read().await.unwrap(), values(&[[text("abc")]]));
    }
    soon(write).await.unwrap().unwrap();
    for sequence in 11..14 {
        node.shards.execute(node.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2", sequence)).await.unwrap();
        assert_eq!(kept.read().await.unwrap(), values(&[[text("abc")]]));
    }
    kept.act(CutAction::Drop).await.unwrap();
    assert_eq!(kept.read().await, Err(cut_lost()));
    assert_eq!(node.one(ALL).await, text("ABc"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_takes_too_long_is_forgotten() {
    let node = start_with(Duration::from_millis(100)).await;
    let cut = Cut::new(&node, 1);
    cut.open(Some(1)).await;
    let write = node.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1", 10);
    soon(execute(&node, write)).await.unwrap().unwrap();
    assert_eq!(cut.read().await, Err(cut_lost()));
    node.idle_readers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_for_what_was_prepared_before_it_came() {
    let node = start().await;
    let session = prepared(&node, 10).await;
    let by_key = |key: i64| {
        let sql = "SELECT r0.c2 FROM t1 AS r0 WHERE (r0.c1 = ?1)";
        FragmentRequest { params: vec![Value::Int(key)], ..node.read(sql, true) }
    };
    let reads = [node.read(ALL, false), by_key(1), node.read("SELECT c2 FROM t1 WHERE c2 = 'A'", true)];
    let reads = reads.map(|read| execute(&node, read));
    let write =
        execute(&node, node.write("UPDATE t2 SET c2 = c2 || 'x' WHERE c1 = (SELECT min(c1) FROM t1)", 11));
    for other in [by_key(2), node.read("SELECT c2 FROM t2 WHERE c1 = 2", false)] {
        assert_eq!(soon(execute(&node, other)).await.unwrap().unwrap(), values(&[[text("b")]]));
    }
    assert!(reads.iter().all(|read| !read.is_finished()) && !write.is_finished());
    session.finish(true).await.unwrap();
    for (read, expected) in reads.into_iter().zip(["Abc", "A", "A"]) {
        assert_eq!(soon(read).await.unwrap().unwrap(), values(&[[text(expected)]]));
    }
    soon(write).await.unwrap().unwrap();
}

/// Somebody may have seen on another shard that it has committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_by_key_waits_for_a_row_that_is_prepared() {
    let node = start().await;
    let session = Session::new(&node, 10);
    session.write("INSERT INTO t1 VALUES (4, 'd')").await.unwrap();
    session.write("UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await.unwrap();
    session.prepare().await.unwrap();
    let by_key_and_more = |sequence, key: i64, was: &str| {
        let sql = "UPDATE t1 SET c2 = c2 || 'x' WHERE (c1 = ?1) AND (c2 = ?2)";
        FragmentRequest { params: vec![Value::Int(key), text(was)], ..node.write(sql, sequence) }
    };
    let inserted = "UPDATE t1 SET c2 = c2 || 'x' WHERE c1 = 4";
    let writes = [node.write(inserted, 20), by_key_and_more(21, 2, "B")].map(|write| execute(&node, write));
    soon(execute(&node, by_key_and_more(22, 3, "c"))).await.unwrap().unwrap();
    soon(execute(&node, by_key_and_more(23, 5, "e"))).await.unwrap().unwrap();
    let mut impatient = Session::new(&node, 11);
    impatient.lock_timeout = Some(Duration::from_millis(50));
    let refused = impatient.write(inserted).await;
    assert_eq!(told(refused), "55P03: canceling statement due to lock timeout");
    assert!(writes.iter().all(|write| !write.is_finished()));
    session.finish(true).await.unwrap();
    for write in writes {
        soon(write).await.unwrap().unwrap();
    }
    assert_eq!(committed(&node).await, "aBxcxdx");
}

/// There are few readers' places, for all of the node's shards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_transaction_takes_no_readers_place() {
    let node = start().await;
    let mut config = shardnode::Config::new(NodeId(1));
    config.readers = 1;
    let node = Arc::new(Arc::into_inner(node).expect("nobody else has it").with_shards(config));
    let session = prepared(&node, 10).await;
    let reads: Vec<_> = (0..3).map(|_| execute(&node, node.read(ALL, false))).collect();
    let elsewhere = node.read("SELECT c2 FROM t2 WHERE c1 = 2", false);
    assert_eq!(soon(execute(&node, elsewhere)).await.unwrap().unwrap(), values(&[[text("b")]]));
    assert!(reads.iter().all(|read| !read.is_finished()));
    session.finish(true).await.unwrap();
    for read in reads {
        assert_eq!(soon(read).await.unwrap().unwrap(), values(&[[text("Abc")]]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_are_kept_take_nobodys_place() {
    let mut config = shardnode::Config::new(NodeId(1));
    (config.max_cuts, config.max_kept_cuts) = (1, 2);
    let node = Node::start().await.with_shards(config);
    node.schema(1, &[TABLE], None).await.unwrap();
    let kept: Vec<_> = (1..=2).map(|number| Cut::new(&node, number)).collect();
    for cut in &kept {
        cut.open(None).await;
        cut.act(CutAction::Release).await.unwrap();
    }
    let open = |scans| CutAction::Open {
        schema_version: SchemaVersion(1),
        tables: vec![],
        scans,
        after: LogIndex(0),
    };
    let refused = Cut::new(&node, 3).act(open(None)).await.unwrap_err();
    assert_eq!((refused.sqlstate.as_str(), refused.retry), ("53300", Retry::Never));
    let one = Cut::new(&node, 4);
    one.act(open(Some(1))).await.unwrap();
    let refused = Cut::new(&node, 5).act(open(Some(1))).await.unwrap_err();
    assert_eq!((refused.sqlstate.as_str(), refused.retry), ("53300", Retry::Later));
    kept[0].act(CutAction::Drop).await.unwrap();
    Cut::new(&node, 3).act(open(None)).await.unwrap();
}
