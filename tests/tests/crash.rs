//! kill -9 of the whole cluster: what was acknowledged is there afterwards, once, and of a transaction all or nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tests::cluster::{self, Cluster};
use tokio::sync::{Semaphore, oneshot};

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

/// How often the cluster is killed in the middle of transfers.
const TRANSFER_CRASHES: i64 = 3;

/// How many transfers a round has acknowledged before the kill.
const TRANSFERS: u32 = 40;

/// Moves money between two accounts, mostly on two shards, and leaves two marks, mostly on two shards as well.
async fn transfer(client: &tokio_postgres::Client, n: i64) -> Result<(), tokio_postgres::Error> {
    let (from, to) = (n * 7 % 16, (n * 7 + 1 + n % 5) % 16);
    client.batch_execute("BEGIN").await?;
    client.execute("UPDATE account SET v = v - 1 WHERE id = $1", &[&from]).await?;
    client.execute("UPDATE account SET v = v + 1 WHERE id = $1", &[&to]).await?;
    client.execute("INSERT INTO mark VALUES ($1), ($2)", &[&(2 * n), &(2 * n + 1)]).await?;
    client.batch_execute("COMMIT").await
}

#[test]
fn transfers_over_shards_are_done_or_not_whatever_is_killed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut cluster = Cluster::start(&["--nodes", "1", "--shards", "4"]);
    runtime.block_on(async {
        let client = cluster.connect().await;
        client.batch_execute("CREATE TABLE account (id bigint PRIMARY KEY, v bigint)").await.unwrap();
        client.batch_execute("CREATE TABLE mark (n bigint PRIMARY KEY)").await.unwrap();
        let rows: Vec<_> = (0..16).map(|id| format!("({id}, 100)")).collect();
        client.batch_execute(&format!("INSERT INTO account VALUES {}", rows.join(", "))).await.unwrap();
    });
    let next = Arc::new(AtomicI64::new(0));
    let mut acknowledged = Vec::new();
    for _ in 0..TRANSFER_CRASHES {
        let done = Arc::new(Semaphore::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (config, next, counted) = (cluster.config(), next.clone(), done.clone());
                runtime.spawn(async move {
                    let client = cluster::connect(&config).await.unwrap();
                    let mut done = Vec::new();
                    // The kill ends this loop. A deadlock's victim goes on with another transfer.
                    while !client.is_closed() {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        match transfer(&client, n).await {
                            Ok(()) => {
                                done.push(n);
                                counted.add_permits(1);
                            }
                            Err(_) => drop(client.batch_execute("ROLLBACK").await),
                        }
                    }
                    done
                })
            })
            .collect();
        runtime.block_on(done.acquire_many(TRANSFERS)).unwrap().forget();
        cluster.crash_and_restart();
        runtime.block_on(async {
            for client in clients {
                acknowledged
                    .extend(tokio::time::timeout(Duration::from_secs(30), client).await.unwrap().unwrap());
            }
            let client = cluster.connect().await;
            // Takes every account's lock, so it waits until whatever moves money has ended.
            client.batch_execute("UPDATE account SET v = v").await.unwrap();
            let sum = client.query_one("SELECT sum(v)::bigint FROM account", &[]).await.unwrap();
            assert_eq!(sum.get::<_, i64>(0), 1600);
            let mut marks = HashSet::new();
            // The other shards of what has ended there may come a moment later.
            for _ in 0..100 {
                let rows = client.query("SELECT n FROM mark", &[]).await.unwrap();
                marks = rows.iter().map(|row| row.get::<_, i64>(0)).collect();
                if marks.iter().all(|n| marks.contains(&(n ^ 1))) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let halves: Vec<_> = marks.iter().filter(|n| !marks.contains(&(*n ^ 1))).collect();
            assert!(halves.is_empty(), "half of a transaction: {halves:?}");
            let lost: Vec<_> = acknowledged.iter().filter(|n| !marks.contains(&(2 * *n))).collect();
            assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        });
    }
}
