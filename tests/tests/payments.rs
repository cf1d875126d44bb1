//! Payments that are repeated with their keys by clients that lose their connections, over real sockets.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tests::cluster::Cluster;
use tests::payments::{check, pay, set_up};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_repeated_with_its_key_is_done_once() {
    let cluster = Cluster::start(&["--nodes", "3", "--shards", "4"]);
    let client = cluster.connect().await;
    set_up(&client).await.unwrap();
    let tally = pay(vec![cluster.config()], 80, 4, 5, Arc::new(AtomicU64::new(0))).await.unwrap();
    check(&client, 80).await.unwrap();
    assert!(tally.cuts > 20 && tally.told_before > 0, "{tally:?}");
    assert!(tally.errors.keys().all(|code| code == "40001"), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_key_is_refused_after_a_restart_too() {
    let mut cluster = Cluster::start(&["--nodes", "1", "--shards", "2"]);
    let client = cluster.connect().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)").await.unwrap();
    let begin = "BEGIN; SET LOCAL shoal.idempotency_key = 'k'; INSERT INTO t VALUES";
    client.batch_execute(&format!("{begin} (1), (2), (3); COMMIT")).await.unwrap();
    // One that was never committed left nothing of its key.
    let other = "BEGIN; SET LOCAL shoal.idempotency_key = 'l'; INSERT INTO t VALUES";
    client.batch_execute(&format!("{other} (4), (5)")).await.unwrap();
    cluster.crash_and_restart();
    let client = cluster.connect().await;
    let error = client.batch_execute(&format!("{begin} (6)")).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "SH001");
    assert!(error.detail().is_some_and(|detail| detail.starts_with("Its id is ")));
    client.batch_execute(&format!("ROLLBACK; {other} (4), (5); COMMIT")).await.unwrap();
    let row = client.query_one("SELECT count(*), sum(a) FROM t", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5, 15));
}
