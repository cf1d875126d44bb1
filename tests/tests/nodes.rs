//! Nodes as processes: how they become a cluster, and what one's end means for the others.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tests::cluster;
use tests::nodes::Nodes;
use tokio_postgres::error::SqlState;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn numbers(client: &tokio_postgres::Client) -> Vec<i32> {
    let rows = client.query("SELECT n FROM t ORDER BY n", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn nodes_become_a_cluster_once_and_every_router_serves_it() {
    let mut nodes = Nodes::launch(3, &[]);
    let runtime = runtime();
    runtime.block_on(async {
        let error = cluster::connect(&nodes.config(1)).await.err().unwrap();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code(), &SqlState::CANNOT_CONNECT_NOW);
        assert!(error.hint().unwrap().contains("shoal init"), "{error}");
    });
    let early = nodes.shoal(1, &["status"]);
    assert!(!early.status.success() && said(&early).contains("not part of a cluster"), "{}", said(&early));
    let too_many = nodes.shoal(2, &["init", "--coordinators", "5"]);
    assert!(said(&too_many).contains("there are 3"), "{}", said(&too_many));

    // Any of them makes the cluster, though each was told of the first alone.
    let made = nodes.shoal(2, &["init", "--shards", "4"]);
    let text = String::from_utf8_lossy(&made.stdout);
    assert!(text.contains("main: 4 shards, 3 replicas each"), "{text} {}", said(&made));
    for node in 0..3 {
        let again = nodes.shoal(node, &["init"]);
        assert!(again.status.code() == Some(1) && said(&again).contains("already"), "{}", said(&again));
    }
    runtime.block_on(async {
        nodes.connect(0).await.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
        for node in 0..3i32 {
            let client = nodes.connect(node as usize).await;
            client.execute("INSERT INTO t VALUES ($1)", &[&node]).await.unwrap();
            assert_eq!(numbers(&client).await, (0..=node).collect::<Vec<_>>());
        }
    });

    // A node that comes later is let in by whomever it asks, and serves clients, though it holds nothing yet.
    let fourth = nodes.add(&[]);
    nodes.wait_for(0, "four nodes", |status| status["nodes"].as_array().unwrap().len() == 4);
    runtime.block_on(async {
        // The cluster knows of it a moment before it does itself.
        let end = Instant::now() + Duration::from_secs(60);
        let client = loop {
            match cluster::connect(&nodes.config(fourth)).await {
                Ok(client) => break client,
                Err(error) => assert_eq!(error.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{error}"),
            }
            assert!(Instant::now() < end, "the fourth node serves nobody");
        };
        assert_eq!(numbers(&client).await, [0, 1, 2]);
    });
    assert_eq!(nodes.stop(fourth).code(), Some(0));
    nodes.restart(fourth);
    runtime.block_on(async {
        assert_eq!(numbers(&nodes.connect(fourth).await).await, [0, 1, 2]);
    });
}

#[test]
fn a_killed_node_comes_back_where_it_was_and_elsewhere() {
    let mut nodes = Nodes::start(3, &[]);
    let runtime = runtime();
    runtime.block_on(async {
        let client = nodes.connect(0).await;
        client.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1), (2), (3), (4)").await.unwrap();
    });
    nodes.kill(2);
    runtime.block_on(async {
        let client = nodes.connect(1).await;
        client.batch_execute("INSERT INTO t VALUES (5)").await.unwrap();
        assert_eq!(numbers(&client).await, [1, 2, 3, 4, 5]);
    });
    nodes.restart_elsewhere(2);
    let admin = nodes.admin(2).to_owned();
    nodes.wait_for(0, "the new address", |status| {
        status["nodes"].as_array().unwrap().iter().any(|node| node["address"] == admin.as_str())
    });
    // The others need the one that has moved now.
    nodes.kill(0);
    runtime.block_on(async {
        for node in [1, 2] {
            assert_eq!(numbers(&nodes.connect(node).await).await, [1, 2, 3, 4, 5]);
        }
    });
    // All ends, and all come back but for the first, which alone the others were told of.
    nodes.kill(1);
    nodes.kill(2);
    nodes.restart(1);
    nodes.restart(2);
    runtime.block_on(async {
        assert_eq!(numbers(&nodes.connect(1).await).await, [1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_node_that_lost_its_directory_comes_back_as_another() {
    let mut nodes = Nodes::start_with(3, &["--replace-after", "10s"], &[]);
    let runtime = runtime();
    runtime.block_on(async {
        let client = nodes.connect(1).await;
        client.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1), (2), (3), (4)").await.unwrap();
    });
    let before = nodes.id(0).unwrap();
    nodes.kill(0);
    nodes.wipe(0);
    nodes.restart(0);
    nodes.wait_for(1, "a fourth node", |status| status["nodes"].as_array().unwrap().len() == 4);
    let after = nodes.id(0).unwrap();
    assert!(after > 3 && after != before, "{before} came back as {after}");
    nodes.wait_for(1, "replicas on it in the place of those that are lost", |status| {
        let groups = status["shards"].as_array().unwrap().iter().chain([&status["coordinator"]]);
        groups.clone().all(|group| {
            let voters = group["voters"].as_array().unwrap();
            voters.iter().any(|node| *node == after) && voters.iter().all(|node| *node != before)
        })
    });
    // With one more gone, what it has been given is needed.
    nodes.kill(1);
    runtime.block_on(async {
        assert_eq!(numbers(&nodes.connect(0).await).await, [1, 2, 3, 4]);
    });
}

#[test]
fn directories_stay_with_their_cluster() {
    let mut one = Nodes::start(1, &[]);
    let other = Nodes::start(1, &[]);
    one.stop(0);
    let mut command = std::process::Command::new(cluster::binary());
    command.args(["node", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0", "--join", other.admin(0)]);
    let refused = command.arg("--data-dir").arg(one.directory(0)).output().unwrap();
    assert!(refused.status.code() == Some(1) && said(&refused).contains("belongs to cluster"), "{refused:?}");
    one.restart(0);
    runtime().block_on(async {
        one.connect(0).await.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
    });
}

#[test]
fn a_node_that_shuts_down_under_load_costs_no_client_of_others_an_error() {
    let mut nodes = Nodes::start(3, &["--shards", "4"]);
    let runtime = runtime();
    runtime.block_on(async {
        let client = nodes.connect(0).await;
        client.batch_execute("CREATE TABLE t (n int PRIMARY KEY, v int)").await.unwrap();
    });
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4i32)
        .map(|number| {
            let (config, stop) = (nodes.config((number % 2) as usize), stop.clone());
            runtime.spawn(async move {
                let client = cluster::connect(&config).await.unwrap();
                let (mut done, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let row = number + 4 * done;
                    client.execute("INSERT INTO t VALUES ($1, 0)", &[&row]).await.unwrap();
                    client.execute("UPDATE t SET v = v + 1 WHERE n = $1", &[&row]).await.unwrap();
                    longest = longest.max(began.elapsed());
                    done += 1;
                }
                (done, longest)
            })
        })
        .collect();
    let idle = runtime.block_on(cluster::connect(&nodes.config(2))).unwrap();
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(nodes.stop(2).code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        nodes.restart(2);
        nodes.wait_for(0, "all replicas of node 2", |status| {
            let shards = status["shards"].as_array().unwrap();
            shards.iter().all(|shard| shard["replicas"].as_array().unwrap().len() == 3)
        });
    }
    let error = runtime.block_on(idle.simple_query("SELECT 1")).err().unwrap();
    assert!(error.code() == Some(&SqlState::ADMIN_SHUTDOWN) || error.is_closed(), "{error}");
    stop.store(true, Ordering::Relaxed);
    let mut rows = 0;
    for client in clients {
        let (done, longest) = runtime.block_on(client).unwrap();
        eprintln!("{done} pairs of writes, the longest took {longest:?}");
        rows += i64::from(done);
    }
    runtime.block_on(async {
        let client = nodes.connect(2).await;
        let row = client.query_one("SELECT count(*), sum(v) FROM t", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<i64>>(1)), (rows, Some(rows)));
    });
}
