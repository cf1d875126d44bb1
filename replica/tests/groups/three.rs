//! Three hosts in one process: replication, leader changes, lost messages, retries.

use crate::cluster::{Cluster, GROUP, PATIENCE, number, number_after, request, schema, soon, sql, write};
use proto::services::Consistency::{Eventual, Session, Strong};
use proto::services::ReplicaRole;
use proto::{NodeId, Retry};
use replica::Replica;
use std::time::{Duration, Instant};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT";
const ROWS: &str = "SELECT c1 || ':' || c2 FROM t1 ORDER BY c1";

#[tokio::test]
async fn followers_get_rows_and_schema() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let written = write(&leader, "INSERT INTO t1 VALUES (1, 'a'), (2, 'b')").await.unwrap();
    for node in cluster.others(leader.status().node) {
        let follower = cluster.replica(node);
        assert_eq!(number_after(&follower, written.index, "SELECT count(*) FROM t1").await, 2);
        number(&follower, Eventual, "SELECT count(*) FROM t1").await;
        let refused = write(&follower, "DELETE FROM t1").await.unwrap_err();
        assert_eq!(refused.retry, Retry::NotLeader(Some(leader.status().node)));
        let refused = follower.snapshot(Strong, soon()).await.err().unwrap();
        assert_eq!(refused.retry, Retry::NotLeader(Some(leader.status().node)));
    }
    schema(&leader, 1, &["ALTER TABLE t1 ADD COLUMN c3 INTEGER", "CREATE INDEX i5 ON t1 (c2)"])
        .await
        .unwrap();
    assert!(schema(&leader, 2, &["CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)"]).await.is_err());
    write(&leader, "UPDATE t1 SET c3 = c1 * 10").await.unwrap();
    let rows = cluster.assert_equal("SELECT c1 || ':' || c3 FROM t1 ORDER BY c1").await;
    assert_eq!(rows, "1:10\n2:20");
    cluster.assert_equal("SELECT sql FROM sqlite_schema ORDER BY name").await;
    cluster
        .assert_equal("SELECT job || ':' || position || hex(failure) FROM replica_schema ORDER BY 1")
        .await;
}

/// Waits until a replica says that it doesn't lead.
async fn deposed(replica: &Replica) {
    let mut watch = replica.watch();
    let deposed = watch.wait_for(|status| status.role != ReplicaRole::Leader);
    tokio::time::timeout(PATIENCE, deposed).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_leader_rolls_back_and_takes_what_the_others_have() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let old = cluster.leader().await;
    let node = old.status().node;
    write(&old, "INSERT INTO t1 VALUES (1, 'before')").await.unwrap();
    cluster.network.isolate(node, &cluster.nodes);

    // It executes and proposes, but nobody hears it.
    let lost = tokio::spawn({
        let old = old.clone();
        async move { write(&old, "INSERT INTO t1 VALUES (2, 'lost')").await }
    });
    deposed(&old).await;
    let new = cluster.leader_among(&cluster.others(node)).await;
    write(&new, "INSERT INTO t1 VALUES (2, 'won')").await.unwrap();
    assert!(old.snapshot(Strong, soon()).await.is_err());
    assert_eq!(number(&old, Eventual, "SELECT count(*) FROM t1").await, 1);

    cluster.network.heal();
    let error = lost.await.unwrap().unwrap_err();
    assert!(matches!(error.retry, Retry::NotLeader(_)), "{error:?}");
    assert_eq!(cluster.assert_equal(ROWS).await, "1:before\n2:won");
}

#[tokio::test]
async fn a_lease_ends_before_another_can_lead() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let old = cluster.leader().await;
    let node = old.status().node;
    write(&old, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    // Reads keep the lease alive until the others are gone.
    for _ in 0..100 {
        number(&old, Strong, "SELECT count(*) FROM t1").await;
    }
    cluster.network.isolate(node, &cluster.nodes);
    let new = cluster.leader_among(&cluster.others(node)).await;
    let late = old.snapshot(Strong, Instant::now() + Duration::from_millis(20)).await;
    assert!(late.is_err(), "two replicas answer strong reads");
    write(&new, "INSERT INTO t1 VALUES (2, 'b')").await.unwrap();
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_answered_without_an_entry() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let first = write(&leader, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    let nothing = write(&leader, "UPDATE t1 SET c2 = 'a' WHERE c1 = 1").await.unwrap();
    assert_eq!((nothing.output.as_ref(), nothing.index), (b"1".as_ref(), first.index));
    assert!(write(&leader, "INSERT INTO t1 VALUES (1, 'b')").await.is_err());
    assert_eq!(leader.status().applied, first.index);
    // Once another may lead, one that nobody hears must not answer even that.
    let node = leader.status().node;
    cluster.network.isolate(node, &cluster.nodes);
    cluster.leader_among(&cluster.others(node)).await;
    let mut alone = sql("DELETE FROM t1 WHERE c1 = 9");
    alone.deadline = Instant::now() + Duration::from_millis(100);
    assert!(leader.write(alone).await.is_err());
}

#[tokio::test]
async fn an_unanswered_write_ends_at_its_deadline_as_unknown() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let old = cluster.leader().await;
    cluster.network.isolate(old.status().node, &cluster.nodes);
    let mut begun = sql("INSERT INTO t1 VALUES (1, 'a')");
    begun.deadline = Instant::now() + Duration::from_millis(50);
    let mut waiting = sql("INSERT INTO t1 VALUES (2, 'b')");
    waiting.deadline = begun.deadline;
    let begun = old.write(begun).await.unwrap_err();
    assert_eq!(begun.retry, Retry::Unknown);
    // The first one's batch is open, so this one was never begun.
    let waiting = old.write(waiting).await.unwrap_err();
    assert!(matches!(waiting.retry, Retry::Later | Retry::NotLeader(_)), "{waiting:?}");
}

#[tokio::test]
async fn a_retry_after_a_leader_change_runs_once() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let old = cluster.leader().await;
    let node = old.status().node;
    let named = |sequence: u64| {
        let mut write = sql("INSERT INTO t1 SELECT coalesce(max(c1), 0) + 1, 'row' FROM t1");
        write.request = Some(request(sequence));
        write.settled = 1;
        write
    };
    old.write(named(1)).await.unwrap();
    cluster.network.isolate(node, &cluster.nodes);
    let unanswered = old.write(named(2));
    let new = async {
        let new = cluster.leader_among(&cluster.others(node)).await;
        // Both were sent before; the first had been committed, the second hadn't.
        assert!(new.write(named(1)).await.unwrap().repeated);
        assert!(!new.write(named(2)).await.unwrap().repeated);
        cluster.network.heal();
        new
    };
    let (unanswered, new) = tokio::join!(unanswered, new);
    assert!(unanswered.is_err());
    let again = new.write(named(2)).await.unwrap();
    assert!(again.repeated);
    assert_eq!(cluster.assert_equal(ROWS).await, "1:row\n2:row");
}

#[tokio::test]
async fn lost_messages_and_restarts_lose_no_acknowledged_write() {
    let mut cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let mut acknowledged = Vec::new();
    let mut key = 0;
    for round in 0..6_u64 {
        cluster.network.lose_every(if round % 2 == 0 { 5 } else { 0 });
        let leader = cluster.leader().await;
        for _ in 0..20 {
            key += 1;
            if write(&leader, &format!("INSERT INTO t1 VALUES ({key}, 'r{round}')")).await.is_ok() {
                acknowledged.push(key);
            }
        }
        cluster.network.heal();
        let victim = if round % 2 == 0 { leader.status().node } else { NodeId(1 + round % 3) };
        drop(leader);
        cluster.stop(victim);
        let leader = cluster.leader_among(&cluster.others(victim)).await;
        key += 1;
        write(&leader, &format!("INSERT INTO t1 VALUES ({key}, 'one down')")).await.unwrap();
        acknowledged.push(key);
        cluster.start(victim);
    }
    let rows = cluster.assert_equal(ROWS).await;
    for key in &acknowledged {
        assert!(rows.lines().any(|row| row.starts_with(&format!("{key}:"))), "row {key} is lost");
    }
    assert!(acknowledged.len() > 60, "most writes work: {}", acknowledged.len());
}

#[tokio::test]
async fn a_group_that_all_restarts_has_its_rows() {
    let mut cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    for key in 0..100 {
        write(&leader, &format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 3000, 'x'))")).await.unwrap();
    }
    drop(leader);
    for node in cluster.nodes.clone() {
        cluster.stop(node);
    }
    for node in cluster.nodes.clone() {
        cluster.start(node);
    }
    let leader = cluster.leader().await;
    assert_eq!(number(&leader, Strong, "SELECT count(*) FROM t1").await, 100);
    cluster.assert_equal("SELECT c1 || c2 FROM t1 ORDER BY c1").await;
    assert!(cluster.hosts[&NodeId(1)].replica(GROUP).is_some());
}

#[tokio::test]
async fn a_follower_that_was_away_for_long_finds_what_it_needs_in_the_log() {
    let mut cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let away = cluster.others(leader.status().node)[0];
    // Enough for checkpoints and cuts, before and while one is away.
    for round in 0..2 {
        for key in 0..1200 {
            let key = round * 1200 + key;
            write(&leader, &format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 500, 'x'))"))
                .await
                .unwrap();
        }
        if round == 0 {
            cluster.stop(away);
        }
    }
    cluster.start(away);
    cluster.assert_equal(ROWS).await;
    assert_eq!(number(&cluster.replica(away), Eventual, "SELECT count(*) FROM t1").await, 2400);
}

#[tokio::test]
async fn a_replica_that_differs_stops_and_the_group_goes_on() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let first = write(&leader, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    let victim = cluster.others(leader.status().node)[0];
    let replica = cluster.replica(victim);
    drop(replica.snapshot_after(Session, first.index, soon()).await.unwrap());
    let database = cluster.data_dir(victim).join("groups").join(GROUP.to_string()).join("replica.sqlite");
    rusqlite::Connection::open(database).unwrap().execute("UPDATE t1 SET c2 = 'planted'", []).unwrap();

    let second = write(&leader, "UPDATE t1 SET c2 = 'b'").await.unwrap();
    let mut watch = replica.watch();
    let stopped = watch.wait_for(|status| status.stopped.is_some());
    let why = tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap().stopped.clone().unwrap();
    assert!(why.contains("replica.sqlite") && why.contains("t1") && why.contains("other values"), "{why}");
    // It answers nothing any more: its rows can't be trusted.
    assert!(replica.snapshot(Eventual, soon()).await.is_err());
    assert_eq!(replica.status().applied, first.index);
    let healthy = cluster.others(victim).into_iter().find(|node| *node != leader.status().node).unwrap();
    assert_eq!(number_after(&cluster.replica(healthy), second.index, "SELECT c2 = 'b' FROM t1").await, 1);
    write(&leader, "INSERT INTO t1 VALUES (2, 'c')").await.unwrap();
}
