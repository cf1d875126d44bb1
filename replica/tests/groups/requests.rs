//! Named requests over everything that can come between a write and its repetition.

use crate::cluster::{Cluster, request, soon, sql, write};
use proto::services::Consistency::{Session, Strong};
use proto::{LogIndex, NodeId, Retry, SqlState};
use replica::{Config, Replica, Write};
use std::time::{Duration, Instant};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT";
const ROWS: &str = "SELECT c1 || ':' || length(c2) FROM t1 ORDER BY c1";

fn short_log(config: &mut Config) {
    config.log_keep_bytes = 16 << 10;
}

/// A write that makes another row each time that it is run.
fn named(sequence: u64, settled: u64) -> Write {
    let mut write = sql("INSERT INTO t1 SELECT coalesce(max(c1), 0) + 1, 'named' FROM t1");
    (write.request, write.settled) = (Some(request(sequence)), settled);
    write
}

async fn assert_told(leader: &Replica, sequence: u64) {
    let again = leader.write(named(sequence, 1)).await.unwrap();
    assert!(again.repeated, "request {sequence} ran twice");
    assert_eq!(again.output.as_ref(), b"1");
}

async fn assert_refused(leader: &Replica, sequence: u64) {
    let error = leader.write(named(sequence, 1)).await.unwrap_err();
    assert_eq!((error.sqlstate, error.retry), (SqlState::TRANSACTION_RESOLUTION_UNKNOWN, Retry::Never));
}

/// Gives the leadership to this node's replica, once it has what the leader has.
async fn lead(cluster: &Cluster, node: NodeId) -> Replica {
    let until = soon();
    loop {
        let leader = cluster.leader().await;
        if leader.status().node == node {
            return leader;
        }
        let index = leader.snapshot(Strong, soon()).await.unwrap().position();
        drop(cluster.replica(node).snapshot_after(Session, index, soon()).await.unwrap());
        // One that comes to nothing is tried again.
        if let Err(error) = leader.transfer_leader(node, Instant::now() + Duration::from_secs(1)).await {
            assert!(Instant::now() < until, "{error}");
        }
    }
}

#[tokio::test]
async fn whoever_leads_after_whatever_knows_what_was_told() {
    let mut cluster = Cluster::with(3, short_log);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    leader.write(named(1, 1)).await.unwrap();
    let away = cluster.others(leader.status().node)[0];
    cluster.stop(away);
    for sequence in 2..=100 {
        leader.write(named(sequence, 1)).await.unwrap();
    }
    leader.write(named(300, 90)).await.unwrap();
    // More than the log keeps: who was away gets an image.
    let mut last = LogIndex(0);
    for _ in 0..1300 {
        let update = "INSERT OR REPLACE INTO t1 VALUES (1000, hex(randomblob(250)))";
        last = write(&leader, update).await.unwrap().index;
    }
    cluster.start(away);
    drop(cluster.replica(away).snapshot_after(Session, last, soon()).await.unwrap());
    assert!(cluster.network.image_bytes() > 0, "it came by the log");
    drop(leader);
    let rows = cluster.assert_equal(ROWS).await;
    // Who leads next may be the one that came by an image, and it may not: all remember the same.
    cluster.assert_equal("SELECT sequence || ':' || hex(output) FROM replica_requests ORDER BY 1").await;
    cluster.assert_equal("SELECT router || ':' || settled FROM replica_marks ORDER BY 1").await;
    for _ in 0..3 {
        let old = cluster.leader().await.status().node;
        cluster.stop(old);
        let leader = cluster.leader_among(&cluster.others(old)).await;
        for sequence in [90, 100, 300] {
            assert_told(&leader, sequence).await;
        }
        for sequence in [1, 89] {
            assert_refused(&leader, sequence).await;
        }
        drop(leader);
        cluster.start(old);
    }
    assert_eq!(cluster.assert_equal(ROWS).await, rows, "nothing ran");
    let leader = cluster.leader().await;
    assert!(!leader.write(named(301, 90)).await.unwrap().repeated, "what is new runs");
}

#[tokio::test]
async fn what_expired_is_refused_by_every_replica() {
    let cluster = Cluster::with(3, |config| config.remember_requests = Duration::from_millis(1));
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    leader.write(named(7, 1)).await.unwrap();
    // Other writes let it look at who is silent.
    let forgotten = "SELECT NOT EXISTS (SELECT 1 FROM replica_requests WHERE sequence = 7)";
    while crate::cluster::number(&leader, Strong, forgotten).await == 0 {
        write(&leader, "INSERT OR REPLACE INTO t1 VALUES (1000, random())").await.unwrap();
    }
    let rows = cluster.assert_equal(ROWS).await;
    for node in cluster.nodes.clone() {
        let leader = lead(&cluster, node).await;
        assert_refused(&leader, 7).await;
        assert_refused(&leader, 3).await;
    }
    assert_eq!(cluster.assert_equal(ROWS).await, rows);
    let index = cluster.leader().await.check(soon()).await.unwrap();
    let mut hashes = Vec::new();
    for node in &cluster.nodes {
        let mut watch = cluster.replica(*node).watch();
        let done = watch.wait_for(|status| status.check.is_some_and(|check| check.index >= index));
        hashes.push(tokio::time::timeout(crate::cluster::PATIENCE, done).await.unwrap().unwrap().check);
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}
