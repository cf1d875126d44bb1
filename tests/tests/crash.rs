//! kill -9 of the whole cluster: what was acknowledged is there afterwards, once.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;
use tests::cluster::{self, Cluster};
use tokio::sync::oneshot;

/// How often the cluster is killed.
const CRASHES: i64 = 20;

/// How many inserts a round has acknowledged before the kill may come.
const INSERTS: i64 = 5;

#[test]
fn acknowledged_rows_survive_kill_9_and_none_comes_twice() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut cluster = Cluster::start(&[]);
    runtime.block_on(async {
        cluster.connect().await.batch_execute("CREATE TABLE line (n bigint, note text)").await.unwrap();
    });
    let mut acknowledged = Vec::new();
    let mut next = 0i64;
    for _ in 0..CRASHES {
        let config = cluster.config();
        let (ready, enough) = oneshot::channel();
        let first = next;
        let writer = runtime.spawn(async move {
            let client = cluster::connect(&config).await.unwrap();
            let statement = client.prepare("INSERT INTO line VALUES ($1, 'x')").await.unwrap();
            let (mut sent, mut done) = (first, Vec::new());
            let mut ready = Some(ready);
            // The kill ends this loop: the last insert fails, its fate unknown.
            loop {
                let n = sent;
                sent += 1;
                if client.execute(&statement, &[&n]).await.is_err() {
                    return (sent, done);
                }
                done.push(n);
                if done.len() as i64 == INSERTS {
                    ready.take().map(|ready| ready.send(()));
                }
            }
        });
        runtime.block_on(enough).expect("the writer reached its number of inserts");
        cluster.crash_and_restart();
        let (sent, done) = runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), writer).await })
            .expect("a killed server ends its connections")
            .unwrap();
        next = sent;
        acknowledged.extend(done);
        let found: Vec<i64> = runtime.block_on(async {
            let rows = cluster.connect().await.query("SELECT n FROM line ORDER BY n", &[]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        });
        let mut once = found.clone();
        once.dedup();
        assert_eq!(once, found, "a row is there twice");
        let lost: Vec<_> = acknowledged.iter().filter(|n| found.binary_search(n).is_err()).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    }
}
