//! What Prometheus is told, over HTTP, by real nodes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use tests::figures::figure;
use tests::http::{self, Answer};
use tests::nodes::Nodes;
use tests::wait::{LOOK, PATIENCE, until};

fn wait_for(address: &str, what: &str, is: impl Fn(&str) -> bool) -> String {
    let told = until(PATIENCE, LOOK, || {
        let text = http::get(address, "/metrics").unwrap().body;
        if is(&text) { Ok(text) } else { Err(text) }
    });
    told.unwrap_or_else(|text| panic!("{what} isn't in\n{text}"))
}

#[test]
fn a_node_tells_prometheus_how_it_does_and_what_is_wrong() {
    let mut nodes =
        Nodes::launch(3, &["--tick", "30ms", "--metrics-listen", "127.0.0.1:0", "--zone", "east"]);
    let addresses: Vec<String> = (0..3).map(|node| nodes.metrics_address(node).to_owned()).collect();
    let Answer { head, body: early } = http::get(&addresses[0], "/metrics").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(figure(&early, "shoal_proposals_total", &[]), None, "it isn't part of a cluster yet");
    assert!(http::get(&addresses[0], "/").unwrap().head.starts_with("HTTP/1.1 404"));
    nodes.init(&["--shards", "2"]);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = nodes.connect(0).await;
        client.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
        for n in 0..20 {
            client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap();
        }
        client.query("SELECT n FROM t", &[]).await.unwrap();
        let text = nodes.metrics(0);
        let of = |name, labels: &[&str]| figure(&text, name, labels).unwrap_or(-1.0);
        assert_eq!(of("shoal_statements_total", &["kind=\"insert\""]), 20.0, "{text}");
        assert_eq!(of("shoal_statements_total", &["kind=\"select\""]), 1.0, "{text}");
        assert_eq!(of("shoal_statements_total", &["kind=\"schema\""]), 1.0, "{text}");
        assert_eq!(of("shoal_sessions", &[]), 1.0, "{text}");

        // Transactions, in figures and in SQL.
        client.batch_execute("BEGIN; INSERT INTO t VALUES (100), (101), (102), (103); COMMIT").await.unwrap();
        client.batch_execute("BEGIN; DELETE FROM t WHERE n = 100; ROLLBACK").await.unwrap();
        let other = nodes.connect(1).await;
        other.batch_execute("BEGIN; INSERT INTO t VALUES (200)").await.unwrap();
        let text = nodes.metrics(0);
        let of = |name, labels: &[&str]| figure(&text, name, labels).unwrap_or(-1.0);
        assert_eq!(of("shoal_commits_total", &["by=\"votes\""]), 1.0, "{text}");
        assert_eq!(of("shoal_commit_seconds_count", &["by=\"votes\""]), 1.0, "{text}");
        assert_eq!(
            (of("shoal_rollbacks_total", &[]), of("shoal_open_transactions", &[])),
            (1.0, 0.0),
            "{text}"
        );
        let branches = || {
            let texts = addresses.iter().map(|address| http::get(address, "/metrics").unwrap().body);
            texts.filter_map(|text| figure(&text, "shoal_branches", &[])).sum::<f64>()
        };
        assert_eq!(branches(), 1.0);
        let sql = "SELECT shard, state, idle_ms, waits_for FROM shoal_transactions ORDER BY shard";
        let rows = client.query(sql, &[]).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert!(rows[0].get::<_, &str>(0).starts_with("main/") && rows[0].get::<_, &str>(1) == "open");
        assert!(rows[0].get::<_, i64>(2) >= 0 && rows[0].get::<_, Option<&str>>(3).is_none());
        other.batch_execute("ROLLBACK").await.unwrap();
        assert!(client.query(sql, &[]).await.unwrap().is_empty());
    });
    let texts: Vec<String> =
        addresses.iter().map(|address| http::get(address, "/metrics").unwrap().body).collect();
    let sum = |name, labels: &[&str]| texts.iter().filter_map(|text| figure(text, name, labels)).sum::<f64>();
    assert!(sum("shoal_replica_is_leader", &[]) >= 3.0, "{}", texts[0]);
    assert!(sum("shoal_proposals_total", &[]) >= 20.0 && sum("shoal_batch_writes_sum", &[]) >= 20.0);
    assert!(sum("shoal_elections_total", &[]) >= 3.0, "{}", texts[0]);
    for text in &texts {
        for name in ["shoal_replica_applied_index", "shoal_replica_last_index", "shoal_replica_term"] {
            assert!(figure(text, name, &["group=\"1\""]).is_some_and(|value| value > 0.0), "{name}\n{text}");
        }
        for name in ["shoal_log_sync_seconds_count", "shoal_apply_seconds_count", "shoal_batch_bytes_bucket"]
        {
            assert!(figure(text, name, &[]).is_some_and(|value| value > 0.0), "{name}\n{text}");
        }
        assert!(figure(text, "shoal_replica_wal_bytes", &[]).is_some(), "{text}");
        assert_eq!(figure(text, "shoal_alarms_total", &["kind=\"diverged\""]), Some(0.0), "{text}");
    }

    // One that leads tells how far behind a dead one is, and the coordinator's leader raises the alarm.
    let dead = (0..3).find(|node| nodes.leader(0, "coordinator") != Some(*node)).unwrap();
    let id = nodes.id(dead).unwrap();
    nodes.kill(dead);
    let alive = (0..3).find(|node| *node != dead).unwrap();
    nodes.wait_for(alive, "leaders", |status| {
        status["shards"]
            .as_array()
            .unwrap()
            .iter()
            .all(|shard| shard["leader"].as_u64().is_some_and(|l| l != id))
    });
    let leader = nodes.leader(alive, "coordinator").unwrap();
    runtime.block_on(async {
        let client = nodes.connect(alive).await;
        for n in 20..40 {
            client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap();
        }
        client.query("SELECT count(*) FROM t", &[]).await.unwrap();
        // The view is for such days.
        let sql = "SELECT shard, node, zone, role, position, lag_entries FROM shoal_replicas";
        let rows = client.query(sql, &[]).await.unwrap();
        assert_eq!(rows.len(), 12);
        for row in rows {
            let (shard, node, role) = (row.get::<_, &str>(0), row.get::<_, i64>(1), row.get::<_, &str>(3));
            let (position, lag) = (row.get::<_, Option<&str>>(4), row.get::<_, Option<i64>>(5));
            assert_eq!(row.get::<_, &str>(2), "east");
            if node as u64 == id {
                assert_eq!((role, position, lag), ("unreachable", None, None), "{shard}");
                continue;
            }
            assert!(["leader", "follower"].contains(&role) && lag.is_some(), "{shard} on {node}: {role}");
            let index = position.unwrap().strip_prefix(&format!("{shard}.1:")).or(position).unwrap();
            assert!(index.parse::<u64>().unwrap() > 0, "{shard}: {position:?}");
        }
    });
    let told = http::get(&addresses[alive], "/metrics").unwrap().body;
    let reads = figure(&told, "shoal_reads_total", &["level=\"strong\""]);
    assert!(reads.is_some_and(|reads| reads > 0.0));
    let member = format!("member=\"{id}\"");
    let is_behind =
        |text: &str| figure(text, "shoal_replica_lag_entries", &[&member]).is_some_and(|lag| lag > 0.0);
    let others: Vec<usize> = (0..3).filter(|node| *node != dead).collect();
    let tells = || others.iter().any(|node| is_behind(&nodes.metrics(*node)));
    let told = until(PATIENCE, LOOK, || if tells() { Ok(()) } else { Err(()) });
    assert!(told.is_ok(), "nobody tells that node {id} is behind");
    wait_for(&addresses[leader], "an alarm about the dead node", |text| {
        figure(text, "shoal_alarm", &["kind=\"silent\"", &member]).is_some_and(|alarms| alarms >= 1.0)
    });
}
