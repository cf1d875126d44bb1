//! Reading what a shard's log says.

use crate::common::{GROUP, Node, PATIENCE, SHARD, text, with_rows};
use crate::prepared::{hand_over, three};
use crate::session::Session;
use bytes::Bytes;
use futures::StreamExt;
use proto::layout::{Layout, LayoutColumn, Place, TableLayout};
use proto::services::{
    BoxStream, BranchAccess, Change, ChangeKind, Changes, ChangesRequest, Estate, SchemaRequest,
    ServiceResult, Serving, ShardService,
};
use proto::{
    Attempt, ColumnId, LogIndex, NodeId, RequestId, ReshardId, Retry, ShardId, SqlState, TableId, Value,
};
use replica::{RowOp, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";

/// Nothing in these tests waits for a beat but the one about beats.
const BEAT: Duration = Duration::from_secs(30);

pub async fn read(node: &Node, after: LogIndex) -> BoxStream<ServiceResult<Changes>> {
    node.shards.changes(ChangesRequest { shard: SHARD, after, beat: BEAT, layouts: false }).await.unwrap()
}

async fn next(parts: &mut BoxStream<ServiceResult<Changes>>) -> Changes {
    let part = tokio::time::timeout(PATIENCE, parts.next()).await.expect("something is said");
    part.expect("it goes on").unwrap()
}

/// All up to a position, and the parts that it came in.
pub async fn up_to(
    parts: &mut BoxStream<ServiceResult<Changes>>,
    end: LogIndex,
) -> (Vec<Change>, Vec<Changes>) {
    let (mut all, mut seen) = (Vec::new(), Vec::new());
    let mut position = LogIndex(0);
    while position < end {
        let part = next(parts).await;
        assert!(part.position >= position && part.committed >= part.position);
        for change in &part.changes {
            assert!(change.index > position, "entries come once");
        }
        position = part.position;
        all.extend(part.changes.clone());
        seen.push(part);
    }
    assert!(all.is_sorted_by_key(|change| change.index));
    (all, seen)
}

pub fn applied(node: &Node) -> LogIndex {
    node.host.replica(GROUP).unwrap().status().applied
}

/// Keeps the log from here on; gives the position of that.
async fn hold(node: &Node, name: &str) -> LogIndex {
    let replica = node.host.replica(GROUP).unwrap();
    let from = LogIndex(applied(node).0 + 1);
    replica.hold_log(name, Some(from), Instant::now() + PATIENCE).await.unwrap()
}

/// Writes past everything that looks at the shard's row.
async fn write(node: &Node, sql: &'static str) -> LogIndex {
    let run = move |stage: &replica::Stage<'_>| {
        stage.execute_batch(sql).unwrap();
        Ok(Bytes::new())
    };
    let write = Write { request: None, settled: 0, deadline: Instant::now() + PATIENCE, run: Box::new(run) };
    node.host.replica(GROUP).unwrap().write(write).await.unwrap().index
}

/// What a changeset does to table 1, as `+1=a`, `~1=b`, `-1`.
fn rows(changeset: &[u8]) -> Vec<String> {
    let changes = replica::changes(changeset).unwrap();
    let of = changes.into_iter().filter(|change| change.table == "t1");
    let show = |value: &Option<Value>| match value {
        Some(Value::Int(int)) => int.to_string(),
        Some(Value::Text(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    let mut told: Vec<_> = of
        .map(|change| match change.op {
            RowOp::Insert => format!("+{}={}", show(&change.new[0]), show(&change.new[1])),
            RowOp::Update => format!("~{}={}", show(&change.old[0]), show(&change.new[1])),
            RowOp::Delete => format!("-{}", show(&change.old[0])),
        })
        .collect();
    told.sort();
    told
}

/// A line for each change that concerns table 1, requests, the schema or the shard.
fn lines(changes: &[Change]) -> Vec<String> {
    let mut lines = Vec::new();
    for Change { kind, .. } in changes {
        match kind {
            ChangeKind::Rows(changeset) => {
                let rows = rows(changeset);
                lines.extend((!rows.is_empty()).then(|| format!("rows {}", rows.join(" "))));
            }
            ChangeKind::Answer(answer) => {
                let RequestId { router, sequence } = answer.request;
                lines.push(format!("answer {}-{sequence} below {}", router.0, answer.settled));
            }
            ChangeKind::Schema(run) => {
                let failure = run.failure.as_ref().map_or("done", |failure| failure.sqlstate.as_str());
                lines.push(format!("step {}/{} {failure}", run.step.job, run.step.step));
            }
            ChangeKind::Replay(run) => {
                let answer = run.answer.as_ref().map(|answer| answer.request.sequence);
                lines.push(format!("replay of {} answers {answer:?}", run.owner));
            }
            ChangeKind::Piece(changeset) => lines.push(format!("piece of {}", rows(changeset).len())),
            ChangeKind::Serving(serving) => lines.push(format!("{serving:?}")),
            ChangeKind::Layouts(tables) => lines.push(format!("layouts of {}", tables.len())),
            ChangeKind::Left(left) => lines.push(format!("leaves {left:?}")),
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_says_all_that_was_done() {
    let node = Node::start().await.staging(4000, vec![NodeId(1)]);
    let begin = hold(&node, "reshard/7/1").await;
    let mut parts = read(&node, begin).await;

    let made = node.schema(1, &[TABLE], None).await.unwrap();
    assert_eq!(node.schema(1, &[TABLE], None).await.unwrap(), made, "nothing is said of it");
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'a'), (2, 'b')", 1)).await.unwrap();
    let refused = node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'a')", 2)).await;
    assert!(refused.is_err(), "it leaves nothing");
    assert!(node.schema(2, &["CREATE UNIQUE INDEX i1 ON t1 (c9)"], None).await.is_err());
    let mut update = node.write("UPDATE t1 SET c2 = 'c' WHERE c1 = 2", 3);
    if let proto::services::Access::Write { settled, .. } = &mut update.access {
        *settled = 2;
    }
    node.shards.execute(update.clone()).await.unwrap();
    node.shards.execute(update).await.unwrap();
    let one = Session::new(&node, 40);
    one.write("DELETE FROM t1 WHERE c1 = 1").await.unwrap();
    one.commit().await.unwrap();
    let prepared = Session::new(&node, 41);
    prepared.write("INSERT INTO t1 VALUES (5, 'e')").await.unwrap();
    prepared.prepare().await.unwrap();
    prepared.finish(true).await.unwrap();
    let big = big(&node, 42, 1).await;
    big.commit().await.unwrap();
    let end = applied(&node);

    let (all, _) = up_to(&mut parts, end).await;
    let told = lines(&all);
    let pieces = told.iter().filter(|line| line.starts_with("piece")).count();
    assert!(pieces > 1, "{told:?}");
    let told: Vec<_> = told.iter().filter(|line| !line.starts_with("piece")).map(String::as_str).collect();
    let expected = [
        "step 1/1 done",
        "rows +1=a +2=b",
        "answer 77-1 below 0",
        "step 2/1 XX000",
        "rows ~2=c",
        "answer 77-3 below 2",
        "rows -1",
        "answer 5-40 below 0",
        "rows +5=e",
        &format!("replay of {} answers Some(42)", big.id()),
    ];
    assert_eq!(told, expected);
    let index = all.iter().find(|change| matches!(change.kind, ChangeKind::Schema(_))).unwrap().index;
    assert_eq!(index, made);
    let (announced, followed): (Vec<_>, Vec<_>) = all
        .iter()
        .filter(|change| matches!(change.kind, ChangeKind::Replay(_) | ChangeKind::Piece(_)))
        .partition(|change| matches!(change.kind, ChangeKind::Replay(_)));
    let ChangeKind::Replay(run) = &announced[0].kind else { panic!("it was one") };
    assert_eq!((run.pieces as usize, announced[0].index), (followed.len(), followed[0].index));
    let inserted: usize = followed
        .iter()
        .map(|change| match &change.kind {
            ChangeKind::Piece(changeset) => rows(changeset).len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(inserted, BIG as usize);

    // From the middle, and again from the beginning, it is the same.
    for after in [made, begin] {
        let (again, _) = up_to(&mut read(&node, after).await, end).await;
        assert!(again.iter().eq(all.iter().filter(|change| change.index > after)));
    }
}

const BIG: i64 = 600;

/// A transaction that inserts so many rows that they are staged.
async fn big(node: &Node, number: u64, width: usize) -> Session<'_> {
    let session = Session::new(node, number);
    let wide = "x".repeat(width);
    let keys: Vec<_> = (0..BIG).map(|key| [Value::Int(1000 * number as i64 + key), text(&wide)]).collect();
    for some in keys.chunks(50) {
        let sql = "INSERT INTO t1 VALUES (?1, ?2)";
        let insert = with_rows(session.next(sql, BranchAccess::Write { touch: 0 }), 2, some);
        node.shards.execute(insert).await.unwrap();
    }
    session
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replay_made_is_told_while_the_log_is_held_for_readers() {
    let node = Node::start().await.staging(4000, vec![NodeId(1)]);
    node.schema(1, &[TABLE], None).await.unwrap();
    let begin = applied(&node);
    big(&node, 1, 1).await.commit().await.unwrap();
    let replayed = applied(&node);
    let mut parts = read(&node, begin).await;
    let error = loop {
        match parts.next().await.unwrap() {
            Ok(part) => assert!(part.position < replayed),
            Err(error) => break error,
        }
    };
    assert_eq!(error.sqlstate, SqlState::POSITION_FORGOTTEN);
    assert_eq!(error.state, Some(Box::new((SHARD, replayed))));
    assert!(parts.next().await.is_none(), "that was its end");

    // They are let go while somebody reads them.
    let begin = hold(&node, "reshard/7/1").await;
    big(&node, 2, 2000).await.commit().await.unwrap();
    let replayed = applied(&node);
    let mut parts = read(&node, begin).await;
    let mut pieces = 0;
    while pieces == 0 {
        let part = next(&mut parts).await;
        pieces += part.changes.iter().filter(|change| matches!(change.kind, ChangeKind::Piece(_))).count();
    }
    hold(&node, "reshard/7/1").await;
    let error = parts.next().await.unwrap().unwrap_err();
    assert_eq!((error.sqlstate, *error.state.unwrap()), (SqlState::POSITION_FORGOTTEN, (SHARD, replayed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_too_late_hears_from_where_on_there_is_something() {
    let change = |config: &mut replica::Config| {
        (config.log_keep_bytes, config.log_cut_entries, config.log_file_bytes) = (20_000, 8, 64 << 10);
    };
    let node = Node::start_with(change).await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let mut last = LogIndex(0);
    let error = loop {
        for _ in 0..20 {
            last = write(&node, "REPLACE INTO t1 VALUES (1, hex(zeroblob(2000)) || total_changes())").await;
        }
        let first = read(&node, LogIndex(1)).await.next().await.unwrap();
        if let Err(error) = first {
            break error;
        }
    };
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::POSITION_FORGOTTEN, Retry::Never));
    let (shard, oldest) = *error.state.unwrap();
    assert!(shard == SHARD && oldest > LogIndex(1) && oldest < last);
    let (all, _) = up_to(&mut read(&node, oldest).await, last).await;
    assert_eq!(all.first().unwrap().index, LogIndex(oldest.0 + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_tells_of_what_is_committed_at_once() {
    let (nodes, _network) = three(|_| {}).await;
    let begin = applied(&nodes[0]);
    let mut parts = read(&nodes[1], begin).await;
    let mut told = Vec::new();
    for sequence in 10..20 {
        let sql = format!("INSERT INTO t1 VALUES ({sequence}, 'x')");
        let done = nodes[0].shards.execute(nodes[0].write(&sql, sequence)).await.unwrap();
        let (all, _) = up_to(&mut parts, done.position).await;
        told.extend(all);
    }
    let end = applied(&nodes[0]);
    assert_eq!(lines(&told).len(), 20);
    for node in &nodes {
        let (all, _) = up_to(&mut read(node, begin).await, end).await;
        assert_eq!(all, told, "every replica says the same");
    }
    // A change of leaders is nothing to it.
    hand_over(&nodes[0], &nodes[1]).await;
    let done = nodes[1].shards.execute(nodes[1].write("DELETE FROM t1 WHERE c1 = 10", 30)).await.unwrap();
    let (all, _) = up_to(&mut parts, done.position).await;
    assert_eq!(lines(&all), ["rows -10", "answer 77-30 below 0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_slowly_costs_little_and_who_goes_away_nothing() {
    let node = Node::start().await.staging(300_000, vec![NodeId(1)]);
    node.schema(1, &[TABLE], None).await.unwrap();
    let begin = hold(&node, "stream/slow").await;
    let wide = Session::new(&node, 1);
    for key in 0..16 {
        let sql = format!("INSERT INTO t1 VALUES ({key}, hex(zeroblob(100000)))");
        wide.write(&sql).await.unwrap();
    }
    wide.commit().await.unwrap();
    for _ in 0..8 {
        write(&node, "UPDATE t1 SET c2 = c2 || 'y' WHERE c1 = 1").await;
    }
    let end = applied(&node);
    let mut slow: Vec<_> = Vec::new();
    for _ in 0..20 {
        let mut parts = read(&node, begin).await;
        next(&mut parts).await;
        slow.push(parts);
    }
    // None of them keeps a snapshot.
    node.idle_readers().await;
    let mut parts = slow.pop().unwrap();
    drop(slow);
    let mut told = next(&mut read(&node, begin).await).await.changes;
    let (rest, seen) = up_to(&mut parts, end).await;
    told.extend(rest);
    assert!(seen.len() > 4, "{} parts", seen.len());
    for part in &seen {
        let sizes = part.changes.iter().map(|change| match &change.kind {
            ChangeKind::Rows(changeset) | ChangeKind::Piece(changeset) => changeset.len(),
            _ => 0,
        });
        let sizes: Vec<_> = sizes.collect();
        let last = sizes.last().copied().unwrap_or(0);
        assert!(sizes.iter().sum::<usize>() - last <= 256 << 10, "{sizes:?}");
    }
    let (all, _) = up_to(&mut read(&node, begin).await, end).await;
    assert_eq!(told, all, "an entry that comes in several parts is whole");
    let part_of_an_entry = |part: &Changes| part.changes.iter().any(|change| change.index > part.position);
    assert!(seen.iter().any(part_of_an_entry));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_goes_on_after_a_restart() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let begin = applied(&node);
    let mut parts = read(&node, begin).await;
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'a')", 1)).await.unwrap();
    let position = next(&mut parts).await.position;
    let node = node.restart(vec![NodeId(1)], &Arc::default(), |_| {}).await;
    let error = parts.next().await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate, SqlState::CANNOT_CONNECT_NOW);
    assert!(parts.next().await.is_none());
    crate::prepared::leads(&node).await;
    let mut parts = read(&node, position).await;
    node.shards.execute(node.write("INSERT INTO t1 VALUES (2, 'b')", 2)).await.unwrap();
    let (all, _) = up_to(&mut parts, applied(&node)).await;
    assert_eq!(lines(&all), ["rows +2=b", "answer 77-2 below 0"]);
    let (again, _) = up_to(&mut read(&node, begin).await, applied(&node)).await;
    assert_eq!(lines(&again)[..2], ["rows +1=a", "answer 77-1 below 0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_happens_it_is_said_how_far_it_is() {
    let node = Node::start().await;
    let end = applied(&node);
    let request = ChangesRequest { shard: SHARD, after: end, beat: Duration::ZERO, layouts: false };
    let mut parts = node.shards.changes(request).await.unwrap();
    for _ in 0..2 {
        let nothing = Changes { changes: Vec::new(), position: end, committed: end };
        assert_eq!(next(&mut parts).await, nothing);
    }
    let unknown = node.shards.changes(ChangesRequest { shard: ShardId(99), ..request }).await;
    assert_eq!(unknown.err().unwrap().retry, Retry::Later);
}

/// A follower that its leader can't reach has nothing to tell, and can't say how much it lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_from_its_leader_says_no_more() {
    let (nodes, network) = three(|_| {}).await;
    let beat = Duration::from_millis(50);
    let request = |node| ChangesRequest { shard: SHARD, after: applied(node), beat, layouts: false };
    let mut cut_off = nodes[1].shards.changes(request(&nodes[1])).await.unwrap();
    let mut other = nodes[2].shards.changes(request(&nodes[2])).await.unwrap();
    next(&mut cut_off).await;
    network.detach(NodeId(2));
    let ends = async {
        loop {
            match cut_off.next().await.expect("it says why it ends") {
                Ok(part) => assert_eq!(part.changes, []),
                Err(error) => return error,
            }
            // Those that hear of their leader go on, though nothing comes.
            next(&mut other).await;
        }
    };
    let error = tokio::time::timeout(PATIENCE, ends).await.expect("it ends");
    assert_eq!((error.sqlstate, error.retry), (SqlState::CANNOT_CONNECT_NOW, Retry::Later));
    assert!(cut_off.next().await.is_none());
    next(&mut other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_is_told_of_as_long_as_it_holds() {
    let node = Node::start().await;
    let begin = applied(&node);
    let mut parts = read(&node, begin).await;
    let seal = |attempt| match attempt {
        1 => "UPDATE shoal_shard SET state = 1, reshard = 7, attempt = (7 << 32) | 1",
        _ => "UPDATE shoal_shard SET state = 1, reshard = 7, attempt = (7 << 32) | 2",
    };
    let estate = |attempt| Some(Estate { reshard: ReshardId(7), attempt: Attempt(attempt) });
    let serving = |(all, _): (Vec<Change>, Vec<Changes>)| -> Vec<Serving> {
        let kinds = all.into_iter().map(|change| change.kind);
        kinds
            .filter_map(|kind| if let ChangeKind::Serving(serving) = kind { Some(serving) } else { None })
            .collect()
    };
    let sealed = write(&node, seal(1)).await;
    assert_eq!(serving(up_to(&mut parts, sealed).await), [Serving::Sealed(estate(1))]);
    let open = write(&node, "UPDATE shoal_shard SET state = 0, attempt = 0, void = 1").await;
    assert_eq!(serving(up_to(&mut parts, open).await), [Serving::Open]);
    write(&node, "UPDATE shoal_shard SET least_version = 9").await;
    let follows = write(&node, "UPDATE shoal_shard SET state = 2").await;
    assert_eq!(serving(up_to(&mut parts, follows).await), [Serving::Following]);
    let sealed = write(&node, seal(2)).await;
    assert_eq!(serving(up_to(&mut parts, sealed).await), [Serving::Sealed(estate(2))]);
    // Who reads later hears that the first was undone, and of the second.
    let all = [Serving::Sealed(None), Serving::Open, Serving::Following, Serving::Sealed(estate(2))];
    assert_eq!(serving(up_to(&mut read(&node, begin).await, sealed).await), all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_is_told_how_rows_lie_before_each_of_them() {
    let node = Node::start().await;
    let begin = applied(&node);
    let column = |id, ty| LayoutColumn { id: ColumnId(id), ty };
    let layout = |columns| Some(Layout { columns, primary_key: vec![0], place: Place::Single });
    let (first, second) = (layout(vec![column(1, 23)]), layout(vec![column(1, 23), column(2, 25)]));
    let step = |job, sql: &str, layout: &Option<Layout>| {
        let layouts = vec![TableLayout { table: TableId(1), layout: layout.clone() }];
        let request = SchemaRequest { layouts, ..node.step(job, &[sql], None) };
        node.shards.apply_schema(request)
    };
    step(1, "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY) STRICT", &first).await.unwrap();
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1)", 1)).await.unwrap();
    let between = applied(&node);
    step(2, "ALTER TABLE t1 ADD COLUMN c2 TEXT", &second).await.unwrap();
    step(3, "CREATE TABLE t1 (c1 INTEGER)", &None).await.unwrap_err();
    node.shards.execute(node.write("INSERT INTO t1 VALUES (2, 'b')", 2)).await.unwrap();
    let told = async |after| {
        let request = ChangesRequest { shard: SHARD, after, beat: BEAT, layouts: true };
        let (all, _) = up_to(&mut node.shards.changes(request).await.unwrap(), applied(&node)).await;
        let kinds = all.into_iter().filter_map(|change| match change.kind {
            ChangeKind::Layouts(tables) => Some(tables.into_iter().map(|of| of.layout).collect::<Vec<_>>()),
            ChangeKind::Rows(_) => Some(vec![None]),
            _ => None,
        });
        kinds.collect::<Vec<_>>()
    };
    let rows = vec![None];
    assert_eq!(
        told(begin).await,
        [vec![], vec![first.clone()], rows.clone(), vec![second.clone()], rows.clone()]
    );
    assert_eq!(told(between).await, [vec![first], vec![second], rows]);
}
