//! Reads that take too long: they end, and say why; nothing that was cut short looks whole.

use crate::common::{Node, PATIENCE, SHARD, rows};
use proto::services::{CutAction, CutRequest, ShardService, cut_lost};
use proto::{CutId, Epoch, LogIndex, RouterIncarnation, SchemaVersion, Value};
use std::time::Duration;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const END_BYTES: u64 = 256 << 10;

const ENDLESS: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/// A node whose WAL is soon too long, and whose reads are soon too old.
async fn impatient() -> Node {
    let node = Node::start_with(|config| {
        config.checkpoint_bytes = END_BYTES / 4;
        config.hold_bytes = END_BYTES / 2;
        config.end_reads_bytes = END_BYTES;
        config.hold_snapshots = Duration::ZERO;
        config.end_reads_after = Duration::ZERO;
    })
    .await;
    node.schema(1, &[TABLE], None).await.unwrap();
    let fill = "INSERT INTO t1 SELECT i, hex(randomblob(40)) FROM
        (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) SELECT i FROM n)";
    node.shards.execute(node.write(fill, 1)).await.unwrap();
    // The WAL is emptied between these two.
    node.shards.execute(node.write("DELETE FROM t1 WHERE c1 = 9000", 2)).await.unwrap();
    node
}

async fn write_many(node: &Node, from: u64) {
    for sequence in from..from + 80 {
        let update = format!("UPDATE t1 SET c2 = hex(randomblob(5000)) WHERE c1 = {}", sequence % 10 + 1);
        node.shards.execute(node.write(&update, sequence)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_snapshot_is_too_old_ends_with_an_error() {
    let node = impatient().await;
    // It has filled its channel and waits for a reader who doesn't come.
    let response = node.shards.execute(node.read("SELECT c1, c2 FROM t1", false)).await.unwrap();
    write_many(&node, 10).await;
    let error = rows(response.rows).await.unwrap_err();
    assert_eq!(error.to_string(), "72000: snapshot too old");
    assert!(error.hint.is_some());
    node.idle_readers().await;
    write_many(&node, 100).await;
    assert!(node.wal_bytes() < END_BYTES + (64 << 10), "{}", node.wal_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_whose_snapshot_is_too_old_ends_with_an_error() {
    let node = impatient().await;
    let running = tokio::spawn({
        let (shards, endless) = (node.shards.clone(), node.read(ENDLESS, false));
        async move { shards.execute(endless).await.err() }
    });
    // It ends once it has begun and the WAL is long.
    let mut from = 10;
    while !running.is_finished() {
        write_many(&node, from).await;
        from += 80;
    }
    assert_eq!(running.await.unwrap().unwrap().to_string(), "72000: snapshot too old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_is_in_nobodys_way_may_take_its_time() {
    let node = impatient().await;
    let response = node.shards.execute(node.read("SELECT c1, c2 FROM t1", false)).await.unwrap();
    let update = node.write("UPDATE t1 SET c2 = 'x' WHERE c1 = 8000", 3);
    node.shards.execute(update).await.unwrap();
    let found = rows(response.rows).await.unwrap();
    assert_eq!(found.len(), 8000);
    assert_ne!(found[7999][1], Value::Text("x".into()), "it is older than the write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_ends_at_its_deadline() {
    let node = Node::start().await;
    let mut endless = node.read(ENDLESS, true);
    endless.timeout = Duration::from_millis(50);
    let error = node.shards.execute(endless).await.err().unwrap();
    assert_eq!(error.to_string(), "57014: canceling statement due to statement timeout");
    // The connection's next statement isn't hit.
    let mut short = node.read("SELECT 1", true);
    short.timeout = PATIENCE;
    assert_eq!(rows(node.shards.execute(short).await.unwrap().rows).await.unwrap(), [[Value::Int(1)]]);
}

/// A transaction that only reads may be idle for as long as it likes, but not at the cost of all who write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_kept_for_too_long_is_given_up() {
    let node = impatient().await;
    let cut = CutId { router: RouterIncarnation(5), sequence: 1 };
    let act = |action| {
        let request = CutRequest { shard: SHARD, epoch: Epoch(1), cut, action, timeout: PATIENCE };
        node.shards.cut(request)
    };
    act(CutAction::Open {
        schema_version: SchemaVersion(1),
        tables: vec![],
        scans: None,
        after: LogIndex(0),
    })
    .await
    .unwrap();
    write_many(&node, 10).await;
    let given_up = async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        // To release it once more changes nothing, but that it isn't idle.
        while act(CutAction::Release).await != Err(cut_lost()) {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("the WAL is long enough");
    write_many(&node, 100).await;
    assert!(node.wal_bytes() < END_BYTES + (64 << 10), "{}", node.wal_bytes());
}
