//! Rows of groups that take over, compared with those that they take over.

use crate::common::PATIENCE;
use crate::flows::{Cluster, HALVES, TABLE, WHOLE, insert, write};
use futures::StreamExt;
use proto::layout::{Layout, LayoutColumn, Place, TableLayout};
use proto::services::{
    CompareRequest, Compared, ComparedNext, Difference, SchemaRequest, SchemaStep, ShardService, Sums,
    SumsPart, SumsPlace, SumsRequest,
};
use proto::{
    ColumnId, KeyRange, KeyspaceId, LogIndex, Retry, ShardId, SqlState, TableId, Value, ValueRef, WireError,
};
use std::time::Duration;

const REFERENCE: &str =
    "CREATE TABLE t2 (c1 TEXT NOT NULL, c2 INTEGER NOT NULL, c3 REAL, PRIMARY KEY (c1, c2)) STRICT";

/// Makes a reference table, or has it gone.
async fn reference(cluster: &Cluster, shard: ShardId, job: u64, statement: &str) {
    let column = |id, ty| LayoutColumn { id: ColumnId(id), ty };
    let layout = Layout {
        columns: vec![column(1, 25), column(2, 20), column(3, 701)],
        primary_key: vec![0, 1],
        place: Place::Reference,
    };
    let layout = statement.starts_with("CREATE").then_some(layout);
    let request = SchemaRequest {
        shard,
        step: SchemaStep { job, step: 1 },
        statements: vec![statement.to_owned()],
        layouts: vec![TableLayout { table: TableId(2), layout }],
        least_version: None,
        require_empty: Vec::new(),
    };
    cluster.leader(shard).await.0.shards.apply_schema(request).await.unwrap();
}

/// Compares one span.
async fn span(
    cluster: &Cluster,
    (source, target): (ShardId, ShardId),
    from: Option<SumsPlace>,
    time: Duration,
) -> Result<Compared, WireError> {
    let (node, _) = cluster.leader(target).await;
    node.shards.compare(CompareRequest { target, source, from, time, timeout: Duration::from_secs(5) }).await
}

/// Compares all rows in spans of one part; says how many were the same, in how many spans, and what differs.
async fn all(cluster: &Cluster, flow: (ShardId, ShardId)) -> (u64, u64, Option<Difference>) {
    let (mut rows, mut spans, mut from) = (0, 0, None);
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match span(cluster, flow, from.clone(), Duration::ZERO).await {
            Ok(compared) => {
                rows += compared.rows;
                spans += 1;
                match compared.next {
                    ComparedNext::From(place) => from = Some(place),
                    ComparedNext::End => return (rows, spans, None),
                    ComparedNext::Differs(difference) => return (rows, spans, Some(difference)),
                }
            }
            // Who leads may not have begun.
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
    }
}

/// A key of one half's, and one of the other's.
fn keys() -> [i64; 2] {
    let of = |half: &str| {
        let range = KeyRange::parse(half).unwrap();
        (0..100).find(|key| range.contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0)).unwrap()
    };
    [of("-80"), of("80-")]
}

/// Some thousand rows on these shards, each its own, and some in a reference table.
async fn fill(cluster: &Cluster, shards: &[(ShardId, &str)]) {
    for (shard, range) in shards {
        cluster.schema(*shard, 1, TABLE).await.unwrap();
        reference(cluster, *shard, 2, REFERENCE).await;
        let range = KeyRange::parse(range).unwrap();
        let own = |key: &i64| range.contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0);
        let value = "x".repeat(300);
        let rows: Vec<_> = (0..4000).filter(own).map(|key| format!("({key}, '{value}')")).collect();
        for (sequence, some) in rows.chunks(500).enumerate() {
            let sql = format!("INSERT INTO t1 VALUES {}", some.join(", "));
            cluster.write(*shard, &sql, shard.0 * 100 + sequence as u64).await.unwrap();
        }
        let sql = "INSERT INTO t2 VALUES ('a', 1, 1.5), ('a', 2, NULL), ('b', 1, -0.0)";
        cluster.write(*shard, sql, shard.0 * 100 + 90).await.unwrap();
    }
}

async fn count(cluster: &Cluster, shard: ShardId) -> u64 {
    let (_, replica) = cluster.leader(shard).await;
    let until = std::time::Instant::now() + PATIENCE;
    let snapshot = replica.snapshot(proto::services::Consistency::Strong, until).await.unwrap();
    let count = |table| {
        let sql = format!("SELECT count(*) FROM {table}");
        snapshot.connection().query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
    };
    count("t1") + count("t2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_difference_of_a_split_is_found_and_named() {
    let cluster = Cluster::start(1, true, |_| {}).await;
    fill(&cluster, &[(WHOLE, "-")]).await;
    let [mine, others] = keys();
    let half = HALVES[0];
    let flow = (WHOLE, half);
    let (rows, spans, differs) = all(&cluster, flow).await;
    assert_eq!((rows, differs), (count(&cluster, half).await, None));
    assert!(spans > 3, "{spans}");
    let whole = span(&cluster, flow, None, PATIENCE).await.unwrap();
    assert_eq!((whole.rows, whole.next), (rows, ComparedNext::End));
    let (_, replica) = cluster.leader(half).await;
    let cases = [
        (
            "UPDATE t1 SET c2 = c2 || 'y' WHERE c1 = ?",
            "UPDATE t1 SET c2 = substr(c2, 1, 300) WHERE c1 = ?",
            1,
            0,
        ),
        (
            "UPDATE t1 SET c2 = NULL WHERE c1 = ?",
            "UPDATE t1 SET c2 = printf('%.*c', 300, 'x') WHERE c1 = ?",
            1,
            0,
        ),
        ("DELETE FROM t1 WHERE c1 = ?", "INSERT INTO t1 VALUES (?, printf('%.*c', 300, 'x'))", 1, -1),
        ("INSERT INTO t1 VALUES (-?, 'z')", "DELETE FROM t1 WHERE c1 = -?", 1, 1),
        (
            "UPDATE t2 SET c3 = 2 WHERE c1 = 'a' AND c2 = 1",
            "UPDATE t2 SET c3 = 1.5 WHERE c1 = 'a' AND c2 = 1",
            2,
            0,
        ),
        ("DELETE FROM t2 WHERE c1 = 'b'", "INSERT INTO t2 VALUES ('b', 1, -0.0)", 2, -1),
        ("INSERT INTO t2 VALUES ('b', 2, 0)", "DELETE FROM t2 WHERE c1 = 'b' AND c2 = 2", 2, 1),
    ];
    let own = (1..4000)
        .map(|key| -key)
        .find(|key| KeyRange::parse("-80").unwrap().contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0));
    let last = (0..4000)
        .rev()
        .find(|key| KeyRange::parse("-80").unwrap().contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0));
    for (plant, undo, table, more) in cases {
        for key in [mine, last.unwrap()] {
            let key = if plant.contains("-?") { -own.unwrap() } else { key };
            write(&replica, plant.replace('?', &key.to_string())).await;
            let (same, _, differs) = all(&cluster, flow).await;
            let Difference { table: found, after, to, rows: counts } = differs.expect(plant);
            let (theirs, ours) = counts.unwrap();
            assert_eq!((found, ours as i64 - theirs as i64), (TableId(table), more), "{plant}");
            assert!(same < rows);
            if table == 1 {
                let key = if plant.contains("-?") { -key } else { key };
                let of = |key: &Option<Vec<Value>>| match key.as_deref() {
                    None => None,
                    Some([Value::Int(key)]) => Some(*key),
                    other => panic!("{other:?}"),
                };
                assert!(of(&after).is_none_or(|after| after < key) && of(&to).is_none_or(|to| key <= to));
            }
            write(&replica, undo.replace('?', &key.to_string())).await;
            assert_eq!(all(&cluster, flow).await.2, None, "{undo}");
        }
    }
    // What is nobody's here is as wrong as what lacks.
    write(&replica, format!("INSERT INTO t1 VALUES ({others}, 'z')")).await;
    assert_eq!(all(&cluster, flow).await.2.unwrap().table, TableId(1));
    write(&replica, format!("DELETE FROM t1 WHERE c1 = {others}")).await;
    // So is a table that is made otherwise, or isn't there.
    let otherwise = |table| Some(Difference { table: TableId(table), after: None, to: None, rows: None });
    cluster.schema(half, 50, "CREATE INDEX i1 ON t1 (c2)").await.unwrap();
    assert_eq!(all(&cluster, flow).await.2, otherwise(1));
    cluster.schema(half, 51, "DROP INDEX i1").await.unwrap();
    reference(&cluster, half, 52, "DROP TABLE t2").await;
    assert_eq!(all(&cluster, flow).await.2, otherwise(2));
    reference(&cluster, half, 53, REFERENCE).await;
    assert_eq!(all(&cluster, flow).await.2.unwrap().rows, Some((3, 0)));
    // Nothing of all that concerns the other half.
    assert_eq!(all(&cluster, (WHOLE, HALVES[1])).await.2, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_is_compared_with_one_source_at_a_time() {
    let cluster = Cluster::start(1, false, |_| {}).await;
    fill(&cluster, &[(HALVES[0], "-80"), (HALVES[1], "80-")]).await;
    cluster.catches_up(WHOLE, &HALVES).await;
    let flows = HALVES.map(|half| (half, WHOLE));
    let [first, second] = [all(&cluster, flows[0]).await, all(&cluster, flows[1]).await];
    assert_eq!((first.2, second.2), (None, None));
    // The rows of the reference table are compared once.
    assert_eq!(first.0 + second.0, count(&cluster, WHOLE).await);
    let (_, whole) = cluster.leader(WHOLE).await;
    for (place, key) in keys().into_iter().enumerate() {
        write(&whole, format!("UPDATE t1 SET c2 = 'other' WHERE c1 = {key}")).await;
        assert_eq!(all(&cluster, flows[place]).await.2.unwrap().table, TableId(1));
        assert_eq!(all(&cluster, flows[1 - place]).await.2, None);
        write(&whole, format!("UPDATE t1 SET c2 = printf('%.*c', 300, 'x') WHERE c1 = {key}")).await;
    }
    write(&whole, "DELETE FROM t2 WHERE c1 = 'b'".into()).await;
    assert_eq!(all(&cluster, flows[0]).await.2.unwrap().rows, Some((3, 2)));
    assert_eq!(all(&cluster, flows[1]).await.2, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_the_same_while_they_are_written_and_tables_are_altered() {
    let cluster = Cluster::start(3, true, |_| {}).await;
    fill(&cluster, &[(WHOLE, "-")]).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let writer = async {
        let mut sequence = 1000;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let key = sequence * 37 % 4000;
            let sql = match sequence % 5 {
                0 => format!("DELETE FROM t1 WHERE c1 = {key}"),
                1 => format!("INSERT INTO t1 VALUES ({}, 'n')", 10_000 + sequence),
                2 => format!("UPDATE t2 SET c3 = {sequence}"),
                _ => format!("UPDATE t1 SET c2 = 'u{sequence}' WHERE c1 >= {key} AND c1 < {key} + 50"),
            };
            if let Err(error) = cluster.write(WHOLE, &sql, sequence).await {
                assert!(error.message.contains("no such table: t2"), "{error}");
            }
            sequence += 1;
        }
    };
    let compare = async {
        for half in HALVES {
            let flow = (WHOLE, half);
            assert_eq!(all(&cluster, flow).await.2, None);
            // A table that is altered meanwhile is begun anew: all its rows are compared as they are by then.
            let first = span(&cluster, flow, None, Duration::ZERO).await.unwrap();
            let ComparedNext::From(place) = first.next else { panic!("{first:?}") };
            assert!(place.key.is_some());
            let job = 100 + half.0 * 10;
            let alter = format!("CREATE INDEX i{job} ON t1 (c2)");
            cluster.schema(WHOLE, job, &alter).await.unwrap();
            let rest = span(&cluster, flow, Some(place.clone()), PATIENCE).await.unwrap();
            assert_eq!(rest.next, ComparedNext::End);
            assert!(rest.rows > 1000 && rest.position > first.position, "{rest:?}");
            // One that is gone is passed over.
            reference(&cluster, WHOLE, job + 1, "DROP TABLE t2").await;
            // Until then both are compared as they were before.
            cluster.catches_up(half, &[WHOLE]).await;
            let gone = SumsPlace { table: TableId(2), key: Some(vec![Value::Int(1)]), schema: place.schema };
            let rest = span(&cluster, flow, Some(gone.clone()), PATIENCE).await.unwrap();
            assert_eq!((rest.rows, rest.next), (0, ComparedNext::End));
            reference(&cluster, WHOLE, job + 2, REFERENCE).await;
            let rest = span(&cluster, flow, Some(gone), PATIENCE).await.unwrap();
            assert_eq!((rest.rows, rest.next), (0, ComparedNext::End));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(writer, compare);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_ended_ends_the_span_and_not_the_flow() {
    const END_BYTES: u64 = 256 << 10;
    let cluster = Cluster::start(1, true, |config| {
        config.checkpoint_bytes = END_BYTES / 4;
        config.hold_bytes = END_BYTES / 2;
        config.end_reads_bytes = END_BYTES;
        config.hold_snapshots = Duration::ZERO;
        config.end_reads_after = Duration::ZERO;
    })
    .await;
    fill(&cluster, &[(WHOLE, "-")]).await;
    let (node, _) = cluster.leader(WHOLE).await;
    let request = SumsRequest {
        shard: WHOLE,
        after: LogIndex(0),
        range: KeyRange::full(),
        references: true,
        from: None,
        time: PATIENCE,
        timeout: PATIENCE,
    };
    // Nobody reads on, and the WAL becomes long.
    let mut sums = node.shards.sums(request.clone()).await.unwrap();
    assert!(matches!(sums.next().await, Some(Ok(Sums::Open(_)))));
    assert!(matches!(sums.next().await, Some(Ok(Sums::Part(SumsPart { rows: 1.., .. })))));
    for sequence in 700..800 {
        let update = format!("UPDATE t1 SET c2 = hex(randomblob(5000)) WHERE c1 = {}", sequence % 10);
        cluster.write(WHOLE, &update, sequence).await.unwrap();
    }
    let error = sums.next().await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate, SqlState::SNAPSHOT_TOO_OLD, "{error}");
    assert!(sums.next().await.is_none());
    assert_eq!(all(&cluster, (WHOLE, HALVES[0])).await.2, None);
    let whole: Vec<_> = node.shards.sums(request).await.unwrap().collect().await;
    assert_eq!(whole.last(), Some(&Ok(Sums::End)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_goes_on_whatever_becomes_of_who_has_held_it() {
    let cluster = Cluster::start(1, true, |_| {}).await;
    fill(&cluster, &[(WHOLE, "-")]).await;
    let (node, _) = cluster.leader(HALVES[0]).await;
    // Who gives up while it is held, or has nobody to ask, leaves nothing behind.
    let request = |timeout| CompareRequest {
        target: HALVES[0],
        source: WHOLE,
        from: None,
        time: Duration::ZERO,
        timeout,
    };
    for sequence in 0..10 {
        let abandoned = node.shards.compare(request(PATIENCE));
        let _ = tokio::time::timeout(Duration::from_micros(sequence * 300), abandoned).await;
        cluster
            .write(WHOLE, &format!("UPDATE t1 SET c2 = 'v' WHERE c1 < {sequence}"), 500 + sequence)
            .await
            .unwrap();
        cluster.catches_up(HALVES[0], &[WHOLE]).await;
    }
    let known = std::mem::take(&mut *cluster.directory.0.lock());
    let late = node.shards.compare(request(PATIENCE)).await.unwrap_err();
    assert_eq!(late.retry, Retry::Later, "{late}");
    *cluster.directory.0.lock() = known;
    let unknown = CompareRequest { source: HALVES[1], ..request(PATIENCE) };
    assert_eq!(node.shards.compare(unknown).await.unwrap_err().retry, Retry::Later);
    cluster.write(WHOLE, &insert(5000..5010, "w"), 600).await.unwrap();
    cluster.catches_up(HALVES[0], &[WHOLE]).await;
    assert_eq!(all(&cluster, (WHOLE, HALVES[0])).await.2, None);
    assert!(span(&cluster, (WHOLE, HALVES[0]), None, PATIENCE).await.unwrap().position > LogIndex(0));
}
