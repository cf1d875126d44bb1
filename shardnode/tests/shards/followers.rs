//! Reads that any replica may serve: what they wait for, and for how long.

use crate::common::{GROUP, Node, PATIENCE, SHARD, rows, text, with_rows};
use crate::prepared::three;
use crate::session::Session;
use proto::services::{
    Access, BranchAccess, Consistency, Floor, FragmentRequest, FragmentResponse, LockWait, LockedRows,
    RowLock, ShardService,
};
use proto::{LogIndex, NodeId, Retry, SqlState, TableId, Value, WireError};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

const ROW: &str = "SELECT c2 FROM t1 WHERE (c1 = 1)";
const OTHER_ROW: &str = "SELECT c2 FROM t1 WHERE (c1 = 2)";
const ALL: &str = "SELECT c2 FROM t1 ORDER BY c1";
const OTHER_TABLE: &str = "SELECT count(*) FROM t2";

/// Nothing waits so long in a test.
const LONG: Duration = PATIENCE;
/// Whoever waits for nothing that comes gives up in a moment.
const SHORT: Duration = Duration::from_millis(30);

/// A read as these tests change it.
#[derive(Clone, Copy)]
struct Near<'a> {
    node: &'a Node,
    consistency: Consistency,
    floor: Floor,
    wait: Duration,
    lookup: bool,
}

impl<'a> Near<'a> {
    fn at(node: &'a Node, floor: Floor) -> Self {
        Near { node, consistency: Consistency::Session, floor, wait: LONG, lookup: true }
    }

    fn settled(node: &'a Node, settled: LogIndex) -> Self {
        Near::at(node, Floor { applied: settled, settled })
    }

    fn request(self, sql: &str) -> FragmentRequest {
        let Near { node, consistency, floor, wait, lookup } = self;
        let access = Access::Read { consistency, wait, lookup };
        FragmentRequest { access, floor, ..node.read(sql, lookup) }
    }

    async fn response(self, sql: &str) -> Result<FragmentResponse, WireError> {
        self.node.shards.execute(self.request(sql)).await
    }

    /// The first column, and whether the replica waited.
    async fn read(self, sql: &str) -> Result<(Vec<Value>, bool), WireError> {
        let FragmentResponse { rows: found, waited, .. } = self.response(sql).await?;
        let first = rows(found).await?.into_iter().map(|mut row| row.remove(0));
        Ok((first.collect(), !waited.is_zero()))
    }

    /// Whether nothing had to be awaited.
    async fn is_at_once(self, sql: &str) -> bool {
        let (_, waited) = self.read(sql).await.unwrap();
        !waited
    }

    async fn refused(self, sql: &str) -> WireError {
        self.read(sql).await.expect_err("it can't be read")
    }
}

/// That it isn't over yet.
pub async fn is_waiting<T>(reading: &mut Pin<Box<impl Future<Output = T>>>) {
    for _ in 0..100 {
        tokio::select! {
            biased;
            _ = &mut *reading => panic!("it waits"),
            () = tokio::task::yield_now() => {}
        }
    }
}

fn applied(node: &Node) -> LogIndex {
    node.host.replica(GROUP).unwrap().status().applied
}

fn texts<const N: usize>(all: [&str; N]) -> Vec<Value> {
    all.map(text).to_vec()
}

/// Three nodes, the first of which leads, with another table that has one row.
async fn start() -> Vec<Node> {
    let (nodes, _network) = three(|_| {}).await;
    nodes[0].schema(7, &["CREATE TABLE t2 (c1 INTEGER NOT NULL PRIMARY KEY) STRICT"], None).await.unwrap();
    nodes[0].shards.execute(nodes[0].write("INSERT INTO t2 VALUES (1)", 7)).await.unwrap();
    nodes
}

/// A transaction that is prepared, and where.
async fn prepared<'a>(node: &'a Node, number: u64, sql: &str) -> (Session<'a>, LogIndex) {
    let session = Session::new(node, number);
    session.write(sql).await.unwrap();
    let index = session.prepare().await.unwrap();
    (session, index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_waits_until_it_has_what_the_read_must_show() {
    let nodes = start().await;
    for (lookup, sequence) in [(true, 100), (false, 101)] {
        for (place, node) in nodes[1..].iter().enumerate() {
            let next = LogIndex(applied(&nodes[0]).0 + 1);
            let near = Near { lookup, ..Near::at(node, Floor::applied(next)) };
            let mut reading = Box::pin(near.read(ROW));
            is_waiting(&mut reading).await;
            let value = format!("{sequence}{place}");
            let write = format!("UPDATE t1 SET c2 = '{value}' WHERE c1 = 1");
            let write = nodes[0].write(&write, sequence + 10 * place as u64);
            assert_eq!(nodes[0].shards.execute(write).await.unwrap().position, next);
            assert_eq!(reading.await.unwrap(), (texts([&value]), true));
            // Now it is there.
            assert!(near.is_at_once(ROW).await);
            let beyond = Near { wait: SHORT, ..Near::at(node, Floor::applied(LogIndex(next.0 + 1))) };
            assert_eq!(beyond.refused(ROW).await.retry, Retry::Behind(next));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_below_the_floor_must_end() {
    let nodes = start().await;
    for (number, place, lookup) in [(1, 1, true), (2, 1, false), (3, 2, true), (4, 0, true), (5, 0, false)] {
        for commit in [false, true] {
            let value = format!("{number}");
            let change = format!("UPDATE t1 SET c2 = '{value}' WHERE c1 = 1");
            let (one, index) = prepared(&nodes[0], 2 * number + u64::from(commit), &change).await;
            let near = Near { lookup, ..Near::settled(&nodes[place], index) };
            let before = Near { lookup, ..Near::at(&nodes[place], Floor::applied(index)) };
            let was = before.read(ROW).await.unwrap().0;
            assert_ne!(was, texts([&value]), "it isn't committed");
            let mut reading = Box::pin(near.read(ROW));
            is_waiting(&mut reading).await;
            let mut all = Box::pin(near.read(ALL));
            is_waiting(&mut all).await;
            // What comes to pass meanwhile isn't its end.
            let other = format!("UPDATE t2 SET c1 = {}", 10 * number + u64::from(commit));
            let other = nodes[0].write(&other, 1000 + 2 * number + u64::from(commit));
            nodes[0].shards.execute(other).await.unwrap();
            Near::at(&nodes[place], Floor::applied(applied(&nodes[0]))).read(OTHER_TABLE).await.unwrap();
            is_waiting(&mut reading).await;
            is_waiting(&mut all).await;
            // What it hasn't changed doesn't wait for it.
            assert_eq!(near.read(OTHER_ROW).await.unwrap().0, texts(["b"]));
            assert_eq!(near.read(OTHER_TABLE).await.unwrap().0, [Value::Int(1)]);
            // Nor does who waits no longer.
            let short = Near { lookup, wait: SHORT, ..Near::settled(&nodes[place], index) };
            assert!(matches!(short.refused(ROW).await.retry, Retry::Behind(at) if at >= index));
            one.finish(commit).await.unwrap();
            let becomes = if commit { texts([&value]) } else { was };
            assert_eq!(reading.await.unwrap(), (becomes.clone(), true));
            assert_eq!(all.await.unwrap().0[..1], becomes);
            // It is gone, and with it what was waited for.
            assert!(near.is_at_once(ROW).await && near.is_at_once(ALL).await);
        }
    }
}

/// A busy shard always has something prepared that is none of the session's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_past_the_floor_is_not_waited_for() {
    let nodes = start().await;
    let (mine, index) = prepared(&nodes[0], 1, "UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await;
    let (others, later) = prepared(&nodes[0], 2, "UPDATE t1 SET c2 = 'B' WHERE c1 = 2").await;
    let near = |place: usize, settled| Near::at(&nodes[place], Floor { applied: later, settled });
    for place in [1, 2, 0] {
        let mut reading = Box::pin(near(place, index).read(ALL));
        is_waiting(&mut reading).await;
        assert_eq!(near(place, LogIndex(index.0 - 1)).read(ALL).await.unwrap().0, texts(["a", "b", "c"]));
        let short = Near { wait: SHORT, ..near(place, later) };
        assert!(matches!(short.refused(OTHER_ROW).await.retry, Retry::Behind(_)));
    }
    let mut reading = Box::pin(near(1, index).read(ALL));
    is_waiting(&mut reading).await;
    mine.finish(true).await.unwrap();
    assert_eq!(reading.await.unwrap().0, texts(["A", "b", "c"]));
    for place in [1, 2, 0] {
        assert_eq!(near(place, index).read(ALL).await.unwrap().0[1], text("b"));
    }
    others.finish(true).await.unwrap();
    for place in [1, 2, 0] {
        assert_eq!(near(place, later).read(ALL).await.unwrap().0, texts(["A", "B", "c"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounded_reads_wait_for_all_that_is_prepared_and_eventual_ones_for_nothing() {
    let nodes = start().await;
    let (one, _) = prepared(&nodes[0], 1, "UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await;
    for place in [1, 0] {
        let at = |consistency, wait| Near { consistency, wait, ..Near::at(&nodes[place], Floor::default()) };
        let bounded = Consistency::Bounded(PATIENCE);
        assert!(matches!(at(bounded, SHORT).refused(ROW).await.retry, Retry::Behind(_)));
        assert_eq!(at(bounded, LONG).read(OTHER_ROW).await.unwrap().0, texts(["b"]));
        let eventual = at(Consistency::Eventual, Duration::ZERO).response(ROW).await.unwrap();
        assert!(eventual.waited.is_zero());
    }
    let bounded =
        Near { consistency: Consistency::Bounded(PATIENCE), ..Near::at(&nodes[1], Floor::default()) };
    let mut reading = Box::pin(bounded.read(ROW));
    is_waiting(&mut reading).await;
    one.finish(true).await.unwrap();
    assert_eq!(reading.await.unwrap(), (texts(["A"]), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_with_more_locks_than_are_kept_as_they_are() {
    big_transactions_are_waited_for(64 << 20).await;
}

/// What is staged becomes rows by another way than what lies in the prepared transaction's row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_with_what_is_staged() {
    big_transactions_are_waited_for(1000).await;
}

async fn big_transactions_are_waited_for(stage_bytes: usize) {
    let ids: Vec<_> = (1..=3).map(NodeId).collect();
    let nodes = start().await;
    let nodes: Vec<_> = nodes.into_iter().map(|node| node.staging(stage_bytes, ids.clone())).collect();
    let one = Session::new(&nodes[0], 1);
    let new: Vec<_> = (100..12_100).map(|key| [Value::Int(key), text("x")]).collect();
    for part in new.chunks(3000) {
        let insert = one.next("INSERT INTO t1 (c1, c2) VALUES (?1, ?2)", BranchAccess::Write { touch: 0 });
        nodes[0].shards.execute(with_rows(insert, 2, part)).await.unwrap();
    }
    // Nothing is known of which row this is.
    one.write("INSERT INTO t2 (c1) VALUES (5)").await.unwrap();
    let index = one.prepare().await.unwrap();
    Near::at(&nodes[1], Floor::applied(index)).read(OTHER_TABLE).await.unwrap();
    let near = Near::settled(&nodes[1], index);
    let mut row = Box::pin(near.read("SELECT c2 FROM t1 WHERE (c1 = 12099)"));
    let mut other_row = Box::pin(near.read("SELECT c1 FROM t2 WHERE (c1 = 5)"));
    let mut all = Box::pin(near.read("SELECT count(*) FROM t1"));
    is_waiting(&mut row).await;
    is_waiting(&mut other_row).await;
    is_waiting(&mut all).await;
    one.finish(true).await.unwrap();
    assert_eq!(row.await.unwrap().0, texts(["x"]));
    assert_eq!(other_row.await.unwrap().0, [Value::Int(5)]);
    assert_eq!(all.await.unwrap().0, [Value::Int(12_003)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lacks_what_a_statement_names_is_behind() {
    let nodes = start().await;
    // It is told where the replica is, and that's where it stays.
    Near::at(&nodes[1], Floor::applied(applied(&nodes[0]))).read(ROW).await.unwrap();
    let missing = [
        "SELECT c1 FROM t9",
        "SELECT c9 FROM t1",
        "SELECT r0.c9 FROM t1 AS r0 WHERE r0.c9 = 1",
        "SELECT c1 FROM t1 INDEXED BY i9 WHERE c2 = 'a'",
    ];
    for sql in missing {
        for lookup in [true, false] {
            for (place, consistency) in
                [(1, Consistency::Session), (1, Consistency::Eventual), (0, Consistency::Session)]
            {
                let near = Near { lookup, consistency, ..Near::settled(&nodes[place], LogIndex(1)) };
                let refused = near.refused(sql).await;
                assert_eq!(refused.retry, Retry::Behind(applied(&nodes[place])), "{sql}: {refused}");
            }
            // The leader has no excuse.
            let refused = nodes[0].shards.execute(nodes[0].read(sql, lookup)).await.err().unwrap();
            assert_eq!((refused.sqlstate, refused.retry), (SqlState::INTERNAL_ERROR, Retry::Never));
        }
    }
    let near = Near::settled(&nodes[1], LogIndex(1));
    assert_eq!(near.refused("SELECT FROM").await.retry, Retry::Never);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_need_not_be_strong_are_counted() {
    let nodes = start().await;
    let counts = |node: &Node| {
        let families = node.shards.metrics();
        let family = families.iter().find(|family| family.get_name() == "shoal_replica_reads_total").unwrap();
        let count = |outcome: &str| {
            let of = |metric: &&prometheus::proto::Metric| metric.get_label()[0].get_value() == outcome;
            family.get_metric().iter().find(of).unwrap().get_counter().get_value() as u64
        };
        ["at_once", "waited", "behind"].map(count)
    };
    let index = applied(&nodes[0]);
    let near = Near::at(&nodes[1], Floor::applied(index));
    near.read(ROW).await.unwrap();
    let [at_once, waited, _] = counts(&nodes[1]);
    assert_eq!(at_once + waited, 1, "it has applied that, or waited for it");
    for lookup in [true, false] {
        Near { lookup, ..Near::at(&nodes[1], Floor::applied(index)) }.read(ALL).await.unwrap();
    }
    assert_eq!(counts(&nodes[1]), [at_once + 2, waited, 0]);
    let (one, index) = prepared(&nodes[0], 1, "UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await;
    Near { wait: SHORT, ..Near::settled(&nodes[1], index) }.refused(ROW).await;
    assert_eq!(counts(&nodes[1]), [at_once + 2, waited, 1]);
    Near::settled(&nodes[1], index).refused("SELECT c9 FROM t2").await;
    assert_eq!(counts(&nodes[1]), [at_once + 2, waited, 2]);
    let near = Near::settled(&nodes[1], index);
    let mut reading = Box::pin(near.read(ROW));
    is_waiting(&mut reading).await;
    one.finish(true).await.unwrap();
    reading.await.unwrap();
    assert_eq!(counts(&nodes[1]), [at_once + 2, waited + 1, 2]);
    // Strong ones aren't among them, nor what fails for other reasons.
    nodes[0].shards.execute(nodes[0].read(ROW, true)).await.unwrap();
    Near::at(&nodes[1], Floor::default()).refused("SELECT FROM").await;
    assert_eq!(counts(&nodes[1]), [at_once + 2, waited + 1, 2]);
    assert_eq!(counts(&nodes[0]), [0, 0, 0]);
}

/// A node whose only reader's place is taken, until what comes with it is dropped.
async fn crowded() -> (Node, FragmentResponse) {
    let mut config = shardnode::Config::new(NodeId(1));
    (config.readers, config.streams) = (1, 1);
    let node = Node::start().await.with_shards(config);
    let tables = ["CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT"];
    node.schema(1, &tables, None).await.unwrap();
    let insert = "INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c')";
    node.shards.execute(node.write(insert, 1)).await.unwrap();
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let taken = node.shards.execute(node.read(endless, false)).await.unwrap();
    (node, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_waits_for_a_readers_place_no_longer_than_for_its_log() {
    let (node, taken) = crowded().await;
    let scan = |consistency, wait| {
        let near = Near::at(&node, Floor::applied(applied(&node)));
        Near { consistency, wait, lookup: false, ..near }
    };
    for consistency in [Consistency::Session, Consistency::Bounded(PATIENCE), Consistency::Eventual] {
        for wait in [Duration::ZERO, SHORT] {
            let refused = scan(consistency, wait).refused(ALL).await;
            assert_eq!(refused.retry, Retry::Behind(applied(&node)), "{consistency:?} {wait:?}: {refused}");
        }
        assert!(Near { lookup: true, ..scan(consistency, SHORT) }.is_at_once(ALL).await, "it needs none");
    }
    // Who asks the leader has nobody else to ask.
    let strong = FragmentRequest { timeout: SHORT, ..node.read(ALL, false) };
    let refused = node.shards.execute(strong).await.err().unwrap();
    assert_eq!((refused.sqlstate, refused.retry), (SqlState::QUERY_CANCELED, Retry::Never));
    drop(taken);
    assert_eq!(scan(Consistency::Session, LONG).read(ALL).await.unwrap().0, texts(["a", "b", "c"]));
}

/// There are few places, for all of the node's shards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_to_wait_once_more_gives_its_place_back() {
    let (node, taken) = crowded().await;
    let scan = |consistency| Near { consistency, lookup: false, ..Near::at(&node, Floor::default()) };
    let mut reading = Box::pin(scan(Consistency::Bounded(PATIENCE)).read(ALL));
    is_waiting(&mut reading).await;
    // There was nothing to wait for but a place, and now there is something else.
    let (one, _) = prepared(&node, 1, "UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await;
    is_waiting(&mut reading).await;
    drop(taken);
    tokio::select! {
        biased;
        _ = &mut reading => panic!("it waits"),
        other = scan(Consistency::Eventual).read(ALL) => {
            assert_eq!(other.unwrap().0, texts(["a", "b", "c"]));
        }
    }
    one.finish(true).await.unwrap();
    assert_eq!(reading.await.unwrap().0, texts(["A", "b", "c"]));
}

/// It may never come. Whoever knows for how long it is to be waited for asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_is_not_there_is_refused_at_once() {
    let (node, _taken) = crowded().await;
    let at = applied(&node);
    let floor = Floor::applied(LogIndex(at.0 + 1));
    let session = Session::new(&node, 1);
    let lock = |wait| {
        let rows = [LockedRows { table: TableId(1), key: 1, mode: RowLock::Update, wait }].into();
        BranchAccess::Lock { rows, limit: None, anew: false }
    };
    let own = |access| session.next("SELECT c1, c2 FROM t1", access);
    let refuse = async |request: FragmentRequest| {
        let refused = node.shards.execute(FragmentRequest { floor, ..request.clone() }).await.err().unwrap();
        assert_eq!((refused.sqlstate, refused.retry), (SqlState::POSITION_NOT_REACHED, Retry::Behind(at)));
        request
    };
    // A scan hears of it before it waits for a place.
    refuse(node.read(ALL, false)).await;
    refuse(node.read(ALL, true)).await;
    for access in [lock(LockWait::Wait), lock(LockWait::SkipLocked), lock(LockWait::NoWait)] {
        let request = refuse(own(access)).await;
        node.shards.execute(request).await.unwrap();
    }
    session.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let request = refuse(own(BranchAccess::Read)).await;
    node.shards.execute(request).await.unwrap();
    session.commit().await.unwrap();
    node.shards.execute(FragmentRequest { floor, ..node.read(ALL, true) }).await.unwrap();
}

/// The error's code, and what it was made from.
fn made_from<T>(answer: Result<T, WireError>) -> (SqlState, LogIndex) {
    let error = answer.err().expect("it fails");
    let (shard, index) = *error.state.expect("it was made from a state");
    assert_eq!(shard, SHARD);
    (error.sqlstate, index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_says_what_it_was_made_from() {
    let nodes = start().await;
    let (leader, unique) = (&nodes[0], SqlState::UNIQUE_VIOLATION);
    let insert = |key: u64| leader.write(&format!("INSERT INTO t2 VALUES ({key})"), 1000 + key);
    let again = |key: u64| leader.write(&format!("INSERT INTO t2 VALUES ({key})"), 2000 + key);
    let position = leader.shards.execute(insert(10)).await.unwrap().position;
    assert_eq!(made_from(leader.shards.execute(again(10)).await), (unique, position));
    // In the batch that adds the row, or after it.
    for key in 11..30 {
        let (one, two) = tokio::join!(leader.shards.execute(insert(key)), leader.shards.execute(again(key)));
        let (added, failed) = if one.is_ok() { (one, two) } else { (two, one) };
        let (code, index) = made_from(failed);
        assert!(code == unique && index >= added.unwrap().position);
        // Who comes from there to a follower finds it.
        let near = Near::at(&nodes[1], Floor::applied(index));
        let found = near.read(&format!("SELECT c1 FROM t2 WHERE (c1 = {key})")).await.unwrap().0;
        assert_eq!(found, [Value::Int(key as i64)]);
    }
    let session = Session::new(leader, 50);
    let here = applied(leader);
    assert_eq!(made_from(session.write("INSERT INTO t2 VALUES (10)").await), (unique, here));
    session.roll_back().await;
    let index = "CREATE UNIQUE INDEX i9 ON t1 (c2)";
    leader.shards.execute(leader.write("UPDATE t1 SET c2 = 'same'", 60)).await.unwrap();
    let (code, altered) = made_from(leader.schema(9, &[index], None).await);
    assert!(code == unique && altered > here);
    // Reads, wherever they are.
    leader.shards.execute(leader.write("INSERT INTO t2 VALUES (-9223372036854775808)", 61)).await.unwrap();
    let here = applied(leader);
    for node in &nodes {
        for lookup in [true, false] {
            let near = Near { lookup, ..Near::at(node, Floor::applied(here)) };
            let (_, index) = made_from(near.read("SELECT abs(c1) FROM t2").await);
            assert_eq!(index, here);
            // One that comes when there were rows.
            let late = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
                SELECT i FROM n UNION ALL SELECT abs(c1) FROM t2";
            assert_eq!(made_from(near.read(late).await).1, here);
        }
    }
}

/// Who was kept waiting by a commit that has voted may know that it is told as committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_with_what_has_voted_is_after_the_vote() {
    let nodes = start().await;
    let (one, index) = prepared(&nodes[0], 1, "UPDATE t1 SET c2 = 'x' WHERE c1 = 1").await;
    let mut other = Session::new(&nodes[0], 2);
    other.lock_timeout = Some(SHORT);
    let (code, at) = made_from(other.write("UPDATE t1 SET c2 = 'y' WHERE c1 = 1").await);
    assert!(code == SqlState::LOCK_NOT_AVAILABLE && at >= index);
    let mut reading = Box::pin(Near::settled(&nodes[1], at).read(ROW));
    is_waiting(&mut reading).await;
    one.finish(true).await.unwrap();
    assert_eq!(reading.await.unwrap(), (texts(["x"]), true));
}
