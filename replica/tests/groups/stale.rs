//! Reads of bounded staleness: a follower serves them if it knows of itself that it is fresh enough.

use crate::cluster::{Cluster, PATIENCE, number, soon, write};
use proto::services::Consistency::{Bounded, Eventual};
use proto::services::ReplicaRole;
use proto::{NodeId, Retry};
use replica::Replica;
use std::time::{Duration, Instant};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY) STRICT";
const COUNT: &str = "SELECT count(*) FROM t1";
const HOUR: Duration = Duration::from_secs(3600);

async fn three() -> (Cluster, Replica, Replica) {
    // What a busy machine doesn't turn into an election.
    let cluster = Cluster::with(3, |config| config.tick = Duration::from_millis(60));
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let node = leader.status().node;
    let follower = cluster.replica(cluster.others(node)[0]);
    // One that knows no leader has nobody to ask, and sends its readers on.
    let mut status = follower.watch();
    let follows = status.wait_for(|status| status.leader == Some(node));
    drop(tokio::time::timeout(PATIENCE, follows).await.expect("the follower hears the leader").unwrap());
    (cluster, leader, follower)
}

#[tokio::test]
async fn a_follower_has_all_that_was_acknowledged_before_the_bound() {
    let (_cluster, leader, follower) = three().await;
    for key in 1..=50 {
        write(&leader, &format!("INSERT INTO t1 VALUES ({key})")).await.unwrap();
        let acknowledged = Instant::now();
        // It may or may not have the last one; once it's older than the bound, it must.
        while acknowledged.elapsed() < Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
        let bound = acknowledged.elapsed();
        match follower.snapshot(Bounded(bound), soon()).await {
            Ok(snapshot) => {
                let seen: i64 = snapshot.connection().query_row(COUNT, [], |row| row.get(0)).unwrap();
                assert_eq!(seen, key);
            }
            // On a machine this slow, asking takes longer than the bound.
            Err(error) => assert!(matches!(error.retry, Retry::Behind(_)), "{error}"),
        }
        assert_eq!(number(&leader, Bounded(Duration::ZERO), COUNT).await, key, "a leader always is");
    }
}

#[tokio::test]
async fn a_follower_that_hears_nobody_serves_what_is_fresh_enough_and_no_more() {
    let (cluster, leader, follower) = three().await;
    write(&leader, "INSERT INTO t1 VALUES (1)").await.unwrap();
    assert_eq!(number(&follower, Bounded(HOUR), COUNT).await, 1);
    let asked = Instant::now();
    let node = follower.status().node;
    cluster.network.isolate(node, &cluster.nodes);
    write(&leader, "INSERT INTO t1 VALUES (2)").await.unwrap();
    assert_eq!(number(&follower, Bounded(HOUR), COUNT).await, 1, "it knows that it was fresh not long ago");
    let bound = asked.elapsed() / 2;
    let refused = follower.snapshot(Bounded(bound), Instant::now() + Duration::from_millis(50)).await;
    assert!(matches!(refused.err().unwrap().retry, Retry::NotLeader(_) | Retry::Behind(_)));
    cluster.network.heal();
    let healed = async {
        while follower.snapshot(Bounded(HOUR / 2), soon()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, healed).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_was_deposed_tells_nobody_how_far_to_be() {
    let (cluster, old, _) = three().await;
    let node = old.status().node;
    cluster.network.isolate(node, &cluster.nodes);
    let new = cluster.leader_among(&cluster.others(node)).await;
    write(&new, "INSERT INTO t1 VALUES (1)").await.unwrap();
    // It has lost its office or can't confirm it.
    let late = Instant::now() + Duration::from_millis(50);
    assert!(old.snapshot(Bounded(Duration::ZERO), late).await.is_err());
    assert_eq!(number(&old, Eventual, COUNT).await, 0);
    let other = cluster.nodes.iter().find(|other| ![node, new.status().node].contains(other)).unwrap();
    assert_eq!(number(&cluster.replica(*other), Bounded(HOUR), COUNT).await, 1);
}

#[tokio::test]
async fn a_question_that_is_lost_is_asked_again() {
    let (cluster, leader, follower) = three().await;
    write(&leader, "INSERT INTO t1 VALUES (1)").await.unwrap();
    let (asker, asked): (NodeId, NodeId) = (follower.status().node, leader.status().node);
    assert_eq!(leader.status().role, ReplicaRole::Leader);
    cluster.network.cut_one_way(asker, asked);
    let asking = follower.snapshot(Bounded(HOUR), soon());
    tokio::pin!(asking);
    assert!(futures::poll!(asking.as_mut()).is_pending());
    // The mail is taken before a later one's: the question was sent, and lost.
    number(&follower, Eventual, COUNT).await;
    cluster.network.heal();
    let snapshot = asking.await.unwrap();
    assert_eq!(snapshot.connection().query_row(COUNT, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}
