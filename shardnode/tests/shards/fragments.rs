//! Fragments and schema steps on real replicas.

use crate::common::{self, Node, PATIENCE, SHARD, rows, text, values};
use crate::session::Session;
use proto::services::{Access, BranchAction, FragmentRequest, ShardService};
use proto::{Epoch, Retry, SchemaVersion, ShardId, Value};
use std::time::Duration;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();

    let insert = node.write("INSERT INTO t1 VALUES (?1, ?2) RETURNING c2, c1", 1);
    let insert = common::with_rows(insert, 2, &[[Value::Int(1), text("a")], [Value::Int(2), Value::Null]]);
    let response = node.shards.execute(insert).await.unwrap();
    assert_eq!(response.affected, 2);
    assert_eq!(
        rows(response.rows).await.unwrap(),
        values(&[[text("a"), Value::Int(1)], [Value::Null, Value::Int(2)]])
    );

    for lookup in [true, false] {
        let mut read = node.read("SELECT c1 + ?1 FROM t1 ORDER BY c1 DESC", lookup);
        read.params = vec![Value::Int(10)];
        let found = node.shards.execute(read).await.unwrap();
        assert!(found.position >= response.position);
        assert_eq!(rows(found.rows).await.unwrap(), values(&[[Value::Int(12)], [Value::Int(11)]]));
    }

    let mut update = node.write("UPDATE t1 SET c2 = ?1 WHERE c1 > ?2", 2);
    update.params = vec![text("b"), Value::Int(0)];
    assert_eq!(node.shards.execute(update).await.unwrap().affected, 2);
    let delete = node.write("DELETE FROM t1 WHERE c1 = 3", 3);
    assert_eq!(node.shards.execute(delete).await.unwrap().affected, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_answered_and_not_run() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let insert = node.write("INSERT INTO t1 (c2) VALUES ('x') RETURNING c1", 7);
    let first = node.shards.execute(insert.clone()).await.unwrap();
    let again = node.shards.execute(insert).await.unwrap();
    assert_eq!(again.affected, 1);
    assert_eq!(rows(first.rows).await.unwrap(), rows(again.rows).await.unwrap());
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_known_under_its_name() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let insert = node.write("INSERT INTO t1 (c2) VALUES ('x') RETURNING c1", 7);
    let request = |insert: &FragmentRequest| match insert.access {
        Access::Write { request, .. } => request,
        _ => panic!("it writes"),
    };
    let request = request(&insert);
    assert!(node.shards.outcome(SHARD, request).await.unwrap().is_none());
    let first = node.shards.execute(insert).await.unwrap();
    let told = node.shards.outcome(SHARD, request).await.unwrap().unwrap();
    assert_eq!((told.affected, told.position), (1, first.position));
    assert_eq!(rows(told.rows).await.unwrap(), values(&[[Value::Int(1)]]));

    // A commit says nothing but that it is done.
    let session = Session::new(&node, 9);
    session.write("UPDATE t1 SET c2 = 'y'").await.unwrap();
    let BranchAction::Commit { request, .. } = session.commitment() else { panic!("it commits") };
    assert!(node.shards.outcome(SHARD, request).await.unwrap().is_none());
    session.commit().await.unwrap();
    assert_eq!(node.shards.outcome(SHARD, request).await.unwrap().unwrap().affected, 0);
    assert_eq!(node.shards.outcome(ShardId(99), request).await.err().unwrap().retry, Retry::Later);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_in_all_or_none() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let insert = node.write("INSERT INTO t1 VALUES (?1, ?2)", 1);
    let twice = [[Value::Int(1), text("a")], [Value::Int(2), text("b")], [Value::Int(1), text("c")]];
    let error = node.shards.execute(common::with_rows(insert, 2, &twice)).await.err().unwrap();
    assert_eq!(error.sqlstate.as_str(), "23505", "{error}");
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_touched_twice_where_that_is_forbidden() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let sql =
        "INSERT INTO t1 VALUES (?1, ?2) ON CONFLICT (c1) DO UPDATE SET c2 = excluded.c2 RETURNING c1, c2";
    let mut upsert =
        common::with_rows(node.write(sql, 1), 2, &[[Value::Int(1), text("a")], [Value::Int(2), text("b")]]);
    upsert.access = common::touching(upsert.access, 1);
    let response = node.shards.execute(upsert.clone()).await.unwrap();
    // The key that was checked is cut off.
    assert_eq!(rows(response.rows).await.unwrap(), values(&[[text("a")], [text("b")]]));
    let mut upsert =
        common::with_rows(node.write(sql, 2), 2, &[[Value::Int(1), text("x")], [Value::Int(1), text("y")]]);
    upsert.access = common::touching(upsert.access, 1);
    let error = node.shards.execute(upsert).await.err().unwrap();
    assert_eq!(error.to_string(), "21000: ON CONFLICT DO UPDATE command cannot affect row a second time");
    assert_eq!(node.one("SELECT c2 FROM t1 WHERE c1 = 1").await, text("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_cannot_write() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    for lookup in [true, false] {
        for sql in [
            "INSERT INTO t1 VALUES (1, 'a') RETURNING c1",
            "DELETE FROM t1",
            "COMMIT",
            "ATTACH ':memory:' AS x",
        ] {
            let error = node.shards.execute(node.read(sql, lookup)).await.err().unwrap();
            assert_eq!(error.sqlstate.as_str(), "XX000", "{sql}: {error}");
        }
    }
    let only_reads = node.write("SELECT c1 FROM t1", 1);
    assert_eq!(node.shards.execute(only_reads).await.err().unwrap().sqlstate.as_str(), "XX000");
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_plans_and_routes_are_refused() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], Some(SchemaVersion(5))).await.unwrap();
    // An entry of an older change that comes late doesn't lower it.
    node.schema(2, &[], Some(SchemaVersion(3))).await.unwrap();
    let mut requests =
        vec![node.read("SELECT 1", true), node.read("SELECT 1", false), node.write("DELETE FROM t1", 1)];
    for request in &mut requests {
        request.schema_version = SchemaVersion(4);
        let error = node.shards.execute(request.clone()).await.err().unwrap();
        assert_eq!(error.retry, Retry::StaleSchema(SchemaVersion(5)));
        request.schema_version = SchemaVersion(5);
        node.shards.execute(request.clone()).await.unwrap();

        request.epoch = Epoch(0);
        assert_eq!(
            node.shards.execute(request.clone()).await.err().unwrap().retry,
            Retry::StaleEpoch(Epoch(1))
        );
        request.epoch = Epoch(9);
        node.shards.execute(request.clone()).await.unwrap();

        request.shard = ShardId(99);
        assert_eq!(node.shards.execute(request.clone()).await.err().unwrap().retry, Retry::Later);
        request.epoch = Epoch(1);
        assert_eq!(
            node.shards.execute(request.clone()).await.err().unwrap().retry,
            Retry::StaleEpoch(Epoch(1))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_step_is_applied_once() {
    let node = Node::start().await;
    let first = node.schema(1, &[TABLE], None).await.unwrap();
    assert_eq!(node.schema(1, &[TABLE], None).await.unwrap(), first);
    let error = node.schema(2, &[TABLE], Some(SchemaVersion(9))).await.unwrap_err();
    let again = node.schema(2, &["SELECT 1"], None).await.unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    // What failed has raised nothing.
    node.shards.execute(node.read("SELECT 1", true)).await.unwrap();

    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'a')", 1)).await.unwrap();
    let mut drop = node.step(3, &["DROP TABLE t1"], None);
    drop.require_empty = vec![proto::TableId(1)];
    assert_eq!(node.shards.apply_schema(drop.clone()).await.unwrap_err().sqlstate.as_str(), "55000");
    node.shards.execute(node.write("DELETE FROM t1", 2)).await.unwrap();
    drop.step.job = 4;
    node.shards.apply_schema(drop).await.unwrap();
}

const MANY: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT i FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_results_stream() {
    let node = Node::start().await;
    let mut read = node.read(MANY, false);
    read.params = vec![Value::Int(12_345)];
    let response = node.shards.execute(read).await.unwrap();
    assert!(matches!(response.rows, proto::services::RowSource::Stream(_)));
    let found = rows(response.rows).await.unwrap();
    assert_eq!(found.len(), 12_345);
    assert!(found.iter().enumerate().all(|(i, row)| row[0] == Value::Int(i as i64 + 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_query() {
    let node = Node::start().await;
    // One that has not found a row yet.
    let mut read = node.read(&format!("SELECT count(*) FROM ({MANY})"), false);
    read.params = vec![Value::Int(i64::MAX)];
    read.timeout = Duration::from_millis(100);
    let error = node.shards.execute(read).await.err().unwrap();
    assert_eq!(error.to_string(), "57014: canceling statement due to statement timeout");
    // One whose reader is slow, and one whose reader isn't.
    for slow in [true, false] {
        let mut read = node.read(MANY, false);
        read.params = vec![Value::Int(i64::MAX)];
        read.timeout = Duration::from_millis(100);
        let response = node.shards.execute(read).await.unwrap();
        if slow {
            node.idle_readers().await;
        }
        let error = rows(response.rows).await.unwrap_err();
        assert_eq!(error.to_string(), "57014: canceling statement due to statement timeout");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_nobody_waits_for_ends() {
    let node = Node::start().await;
    let mut streaming = node.read(MANY, false);
    streaming.params = vec![Value::Int(i64::MAX)];
    let response = node.shards.execute(streaming).await.unwrap();
    drop(response);
    node.idle_readers().await;

    let mut silent = node.read(&format!("SELECT count(*) FROM ({MANY})"), false);
    silent.params = vec![Value::Int(i64::MAX)];
    // Its own deadline isn't what ends it.
    silent.timeout = 10 * PATIENCE;
    let waiting = tokio::time::timeout(Duration::from_millis(50), node.shards.execute(silent)).await;
    assert!(waiting.is_err());
    node.idle_readers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_wait_for_each_other_all_get_a_turn() {
    // Many more streams than may run at once, all begun before any is read.
    let node = Node::start().await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut read = node.read(MANY, false);
        read.params = vec![Value::Int(20_000)];
        streams.push(node.shards.execute(read).await.unwrap().rows);
    }
    for stream in streams {
        assert_eq!(rows(stream).await.unwrap().len(), 20_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_write_returns_is_bounded() {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let sql = "INSERT INTO t1 SELECT i, hex(zeroblob(50000)) FROM
        (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) SELECT i FROM n)
        RETURNING c2 || c2 || c2";
    let error = node.shards.execute(node.write(sql, 1)).await.err().unwrap();
    assert_eq!(error.sqlstate.as_str(), "54000", "{error}");
    assert_eq!(node.one("SELECT count(*) FROM t1").await, Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_row_breaks_is_named_by_ids() {
    use proto::error::Violation;
    use proto::{ColumnId, IndexId, TableId};
    let node = Node::start().await;
    let table = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 INTEGER NOT NULL, c3 INTEGER,
        CONSTRAINT k0 CHECK (c3 < 9), CONSTRAINT k1 CHECK (c3 > 0)) STRICT";
    node.schema(1, &[table, "CREATE UNIQUE INDEX i8 ON t1 (c3)"], None).await.unwrap();
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 1, 1)", 1)).await.unwrap();
    let table = TableId(1);
    let cases = [
        ("INSERT INTO t1 VALUES (1, 2, 2)", "23505", Violation::Unique(table, None)),
        ("INSERT INTO t1 VALUES (2, 2, 1)", "23505", Violation::Unique(table, Some(IndexId(8)))),
        ("INSERT INTO t1 VALUES (2, NULL, 2)", "23502", Violation::NotNull(table, ColumnId(2))),
        ("UPDATE t1 SET c3 = 0", "23514", Violation::Check(table, 1)),
    ];
    for (sequence, (sql, sqlstate, violation)) in cases.into_iter().enumerate() {
        let write = node.write(sql, 10 + sequence as u64);
        let error = node.shards.execute(write).await.err().unwrap();
        assert_eq!((error.sqlstate.as_str(), error.violation), (sqlstate, Some(violation)), "{sql}");
    }
}
