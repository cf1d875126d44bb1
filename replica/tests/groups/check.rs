//! The divergence check: replicas hash their tables at one index, and a difference shows.

use crate::cluster::{Cluster, GROUP, PATIENCE, request, schema, soon, sql, write};
use proto::services::Consistency::Strong;
use proto::services::{ReplicaRole, TableHash};
use proto::{GroupId, LogIndex, NodeId, Retry};
use replica::Replica;
use std::time::Duration;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT UNIQUE) STRICT";

/// The replica's hash, once it has one of this index or later.
async fn hash(replica: &Replica, index: LogIndex) -> TableHash {
    let mut watch = replica.watch();
    let done = watch.wait_for(|status| status.check.is_some_and(|check| check.index >= index));
    tokio::time::timeout(PATIENCE, done).await.unwrap().unwrap().check.unwrap()
}

/// Everyone's hash at one index.
async fn check(cluster: &Cluster) -> Vec<(NodeId, u128)> {
    let index = cluster.leader().await.check(soon()).await.unwrap();
    let mut hashes = Vec::new();
    for node in &cluster.nodes {
        let found = hash(&cluster.replica(*node), index).await;
        assert_eq!(found.index, index);
        hashes.push((*node, found.hash));
    }
    hashes
}

fn plant(cluster: &Cluster, node: NodeId, change: &str) {
    let database = cluster.data_dir(node).join("groups").join(GROUP.to_string()).join("replica.sqlite");
    assert_eq!(rusqlite::Connection::open(database).unwrap().execute(change, []).unwrap(), 1);
}

#[tokio::test]
async fn a_planted_difference_is_found() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    for key in 0..50 {
        let mut named = sql(&format!("INSERT INTO t1 VALUES ({key}, 'v{key}')"));
        named.request = Some(request(key));
        leader.write(named).await.unwrap();
    }
    schema(&leader, 1, &["CREATE INDEX i1 ON t1 (c2, c1)"]).await.unwrap();
    let first = check(&cluster).await;
    assert!(first.iter().all(|(_, hash)| *hash == first[0].1), "{first:?}");
    let written = write(&leader, "DELETE FROM t1 WHERE c1 = 7").await.unwrap();
    let second = check(&cluster).await;
    assert!(second.iter().all(|(_, hash)| *hash == second[0].1), "{second:?}");
    assert_ne!(second[0].1, first[0].1);

    for (at, change) in [
        "UPDATE t1 SET c2 = 'planted' WHERE c1 = 8",
        "DELETE FROM replica_requests WHERE sequence = 3",
        "UPDATE replica_notes SET value = x'00'",
    ]
    .into_iter()
    .enumerate()
    {
        let victim = cluster.nodes[at];
        plant(&cluster, victim, change);
        // It is found again and again, whatever is written meanwhile.
        for key in [100, 101] {
            write(&leader, &format!("INSERT OR REPLACE INTO t1 VALUES ({key}, 'w{key}{at}')")).await.unwrap();
            let hashes = check(&cluster).await;
            let differ = |node: &NodeId| {
                let own = hashes.iter().find(|(other, _)| other == node).unwrap().1;
                hashes.iter().any(|(_, hash)| *hash != own)
            };
            assert!(differ(&victim), "{change}");
        }
    }
    assert!(leader.status().applied > written.index);
}

#[tokio::test]
async fn a_follower_orders_no_check() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await.status().node;
    let refused = cluster.replica(cluster.others(leader)[0]).check(soon()).await.unwrap_err();
    assert_eq!(refused.retry, Retry::NotLeader(Some(leader)));
}

#[tokio::test]
async fn a_leader_checks_by_itself_what_was_written() {
    let cluster = Cluster::with(3, |config| config.check_every = Duration::from_millis(100));
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let mut seen = LogIndex(0);
    for key in 0..3 {
        let written = write(&leader, &format!("INSERT INTO t1 VALUES ({key}, 'v{key}')")).await.unwrap();
        let mut hashes = Vec::new();
        for node in &cluster.nodes {
            hashes.push(hash(&cluster.replica(*node), written.index).await);
        }
        assert!(hashes[0].index > seen);
        seen = hashes[0].index;
        let same_index = hashes.iter().filter(|hash| hash.index == seen);
        assert!(same_index.clone().all(|hash| hash.hash == hashes[0].hash), "{hashes:?}");
    }
}

#[tokio::test]
async fn a_check_that_is_in_the_way_of_the_wal_is_broken_off_and_tells_nothing() {
    let cluster = Cluster::with(1, |config| {
        config.end_reads_bytes = 256 << 10;
        config.end_reads_after = Duration::ZERO;
        config.check_bytes_per_second = 1;
    });
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    write(&leader, "INSERT INTO t1 VALUES (0, hex(zeroblob(60000)))").await.unwrap();
    leader.check(soon()).await.unwrap();
    let mut longest = 0;
    for key in 1..200 {
        let update = format!("INSERT OR REPLACE INTO t1 VALUES ({}, hex(randomblob(5000)))", key % 10 + 1);
        write(&leader, &update).await.unwrap();
        longest = longest.max(leader.status().wal_bytes);
    }
    // It wasn't waited for, and the WAL is short all the same.
    assert!((256 << 10..1 << 20).contains(&longest), "{longest}");
    assert!(leader.status().wal_bytes < 256 << 10);
    assert_eq!(leader.status().check, None);
    drop(leader.snapshot(Strong, soon()).await.unwrap());
}

#[tokio::test]
async fn a_check_that_waits_for_its_turn_lets_go_of_the_wal_too() {
    let cluster = Cluster::with(1, |config| {
        config.end_reads_bytes = 256 << 10;
        config.end_reads_after = Duration::ZERO;
        config.check_bytes_per_second = 1;
    });
    cluster.create(&[TABLE]);
    let first = cluster.leader().await;
    write(&first, "INSERT INTO t1 VALUES (0, hex(zeroblob(60000)))").await.unwrap();
    first.check(soon()).await.unwrap();
    let host = &cluster.hosts[&NodeId(1)];
    let second = host.create(GroupId(8), &[NodeId(1)], &[TABLE.to_owned()]).unwrap();
    second.watch().wait_for(|status| status.role == ReplicaRole::Leader).await.unwrap();
    second.check(soon()).await.unwrap();
    for key in 1..200 {
        let update = format!("INSERT OR REPLACE INTO t1 VALUES ({}, hex(randomblob(5000)))", key % 10 + 1);
        write(&second, &update).await.unwrap();
        assert!(second.status().wal_bytes < 1 << 20);
    }
    assert!(second.status().wal_bytes < 256 << 10, "{}", second.status().wal_bytes);
    assert_eq!((first.status().check, second.status().check), (None, None));
}
