//! What makes a group sleep, and what wakes it.

use super::world::{ELECTION, GROUP, TICK, World, later};
use crate::packet::Packet;
use crate::simulation::{holds_lease, is_asleep};
use crate::{Replica, Stage, Write};
use bytes::Bytes;
use proto::services::Consistency::{Session, Strong};
use proto::services::{RaftMessage, RaftService, ReplicaRole};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A group that is idle sleeps after this.
const IDLE: Duration = Duration::from_secs(5);

impl World {
    /// Lets the group elect a leader and fall asleep.
    async fn rest(&self) -> Replica {
        self.pass(ELECTION + IDLE).await;
        self.assert_asleep();
        self.leader()
    }

    fn assert_asleep(&self) {
        let awake = self.replicas().into_iter().filter(|replica| !is_asleep(replica));
        let awake: Vec<_> = awake.map(|replica| replica.status()).collect();
        assert!(awake.is_empty(), "awake: {awake:?}");
    }
}

#[tokio::test]
async fn an_idle_group_sleeps_whole_and_says_little() {
    let world = World::new(3);
    let leader = world.rest().await;
    let term = leader.status().term;
    let sent = world.wire.sent.load(Ordering::Relaxed);
    world.pass(Duration::from_secs(60)).await;
    world.assert_asleep();
    assert_eq!(world.leader().status(), leader.status());
    assert_eq!(leader.status().term, term);
    // One word to each of the two others in two ticks, and no answer.
    assert_eq!(world.wire.sent.load(Ordering::Relaxed) - sent, 60 * 10 / 2 * 2);
}

#[tokio::test]
async fn a_replica_that_is_alone_sleeps_under_its_lease() {
    let world = World::new(1);
    let leader = world.rest().await;
    assert!(holds_lease(&leader));
    world.write(&leader, 1).await.unwrap();
    assert!(!is_asleep(&leader));
    world.pass(IDLE).await;
    world.assert_asleep();
    assert_eq!(world.wire.sent.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_write_wakes_all_and_they_sleep_again() {
    let world = World::new(3);
    let leader = world.rest().await;
    let index = world.write(&leader, 1).await.unwrap();
    assert!(!is_asleep(&leader));
    world.pass(TICK * 3).await;
    for replica in world.replicas() {
        assert_eq!(replica.status().applied.0, index);
        assert!(!is_asleep(&replica));
    }
    // Writes keep it awake, reads do, too.
    for number in 2..20 {
        world.pass(Duration::from_secs(1)).await;
        assert!(world.replicas().iter().all(|replica| !is_asleep(replica)));
        if number < 10 {
            world.write(&leader, number).await.unwrap();
        } else {
            let reader = leader.clone();
            let read = tokio::spawn(async move { reader.snapshot(Strong, later()).await.map(drop) });
            while !read.is_finished() {
                world.settle().await;
            }
            read.await.unwrap().unwrap();
        }
    }
    world.pass(IDLE).await;
    world.assert_asleep();
}

#[tokio::test]
async fn the_first_read_after_a_sleep_has_its_leader_confirmed() {
    let world = World::new(3);
    let leader = world.rest().await;
    let index = leader.status().applied;
    assert!(!holds_lease(&leader));
    let sent = world.wire.sent.load(Ordering::Relaxed);
    let reader = leader.clone();
    let read = tokio::spawn(async move { reader.snapshot(Strong, later()).await.map(|s| s.position()) });
    while !read.is_finished() {
        world.settle().await;
    }
    assert_eq!(read.await.unwrap().unwrap(), index);
    assert!(holds_lease(&leader) && !is_asleep(&leader));
    // Two heartbeats that wake the others, two that ask, four answers: no time has passed.
    assert!(world.wire.sent.load(Ordering::Relaxed) - sent <= 8);
    // A follower that sleeps serves what it has.
    world.pass(IDLE).await;
    let follower = world.replica(world.others(leader.status().node)[0]);
    follower.snapshot_after(Session, index, later()).await.unwrap();
    world.assert_asleep();
}

#[tokio::test]
async fn a_leader_that_is_lost_asleep_is_replaced_as_soon_as_one_that_is_awake() {
    let world = World::new(3);
    let old = world.rest().await;
    let node = old.status().node;
    world.isolate(node);
    world.pass(ELECTION).await;
    let new =
        world.others(node).into_iter().map(|node| world.replica(node)).find(Replica::is_leader).unwrap();
    assert!(new.status().term > old.status().term);
    // The old one knows nothing yet; it can't confirm itself.
    assert!(old.is_leader() && !holds_lease(&old));
    world.write(&new, 1).await.unwrap();
    world.heal();
    world.pass(ELECTION + IDLE).await;
    world.assert_asleep();
    assert_eq!(world.leader().status().node, new.status().node);
    assert_eq!(old.status().applied, new.status().applied);
}

#[tokio::test]
async fn a_sleeping_leader_that_is_cut_off_commits_nothing_when_it_wakes() {
    let world = World::new(3);
    let old = world.rest().await;
    let node = old.status().node;
    world.isolate(node);
    let lost = {
        let old = old.clone();
        let run = Box::new(|stage: &Stage<'_>| {
            let inserted = stage.execute("INSERT INTO t1 VALUES (1)", []);
            inserted.map(|_| Bytes::new()).map_err(dialect::sqlite::error)
        });
        let write = Write { request: None, settled: 0, deadline: later(), run };
        tokio::spawn(async move { old.write(write).await })
    };
    world.pass(ELECTION).await;
    // It has noticed that nobody follows it.
    assert_eq!(old.status().role, ReplicaRole::Follower);
    let new =
        world.others(node).into_iter().map(|node| world.replica(node)).find(Replica::is_leader).unwrap();
    world.write(&new, 2).await.unwrap();
    world.heal();
    world.pass(ELECTION + IDLE).await;
    world.assert_asleep();
    lost.await.unwrap().unwrap_err();
    let snapshot = old.snapshot_after(Session, new.status().applied, later()).await.unwrap();
    let rows: String =
        snapshot.connection().query_row("SELECT group_concat(c1) FROM t1", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, "2");
}

#[tokio::test]
async fn one_follower_that_hears_nothing_deposes_nobody() {
    let world = World::new(3);
    let leader = world.rest().await;
    let (status, others) = (leader.status(), world.others(leader.status().node));
    world.cut(status.node, others[0]);
    world.pass(Duration::from_secs(30)).await;
    assert_eq!(leader.status(), status);
    assert!(!is_asleep(&world.replica(others[0])));
    world.heal();
    world.pass(IDLE + ELECTION).await;
    world.assert_asleep();
    assert_eq!(leader.status(), status);
}

#[tokio::test]
async fn lost_words_are_said_again() {
    let world = World::new(3);
    let leader = world.rest().await;
    let status = leader.status();
    for _ in 0..20 {
        world.isolate(status.node);
        world.pass(Duration::from_millis(700)).await;
        world.heal();
        world.pass(Duration::from_millis(300)).await;
        world.assert_asleep();
    }
    assert_eq!(leader.status(), status);
}

#[tokio::test]
async fn a_leaders_replica_that_stops_while_its_node_lives_is_replaced() {
    let world = World::new(3);
    let old = world.rest().await;
    old.shared().stop(&crate::ReplicaError::Invalid("its disk is full".into()));
    world.pass(ELECTION).await;
    let new = world.leader();
    assert_ne!(new.status().node, old.status().node);
    world.write(&new, 1).await.unwrap();
}

#[tokio::test]
async fn a_follower_that_was_restarted_joins_the_sleep_again() {
    let mut world = World::new(3);
    let leader = world.rest().await;
    let status = leader.status();
    let follower = world.others(status.node)[0];
    world.restart(follower);
    assert!(!is_asleep(&world.replica(follower)));
    world.pass(IDLE + ELECTION).await;
    world.assert_asleep();
    assert_eq!(leader.status(), status);
}

#[tokio::test]
async fn a_leader_that_was_restarted_before_it_was_missed_leaves_nobody_asleep() {
    let mut world = World::new(3);
    let status = world.rest().await.status();
    world.restart(status.node);
    world.pass(ELECTION * 2).await;
    let new = world.leader();
    assert!(new.status().term > status.term);
    world.write(&new, 1).await.unwrap();
    world.pass(IDLE).await;
    world.assert_asleep();
}

#[tokio::test]
async fn who_does_not_stand_where_the_leader_does_objects() {
    let world = World::new(3);
    let leader = world.rest().await;
    let status = leader.status();
    let follower = world.others(status.node)[0];
    let host = &world.nodes[&follower].host;
    let alive = |index| {
        let resting = crate::packet::Resting { group: GROUP.0, term: status.term.0, index };
        let body = Packet::Alive(crate::packet::Alive { resting: vec![resting] }).encode();
        vec![RaftMessage { group: crate::packet::NODE, body }]
    };
    host.receive(status.node, alive(status.applied.0));
    world.nodes[&follower].loops.turn_consensus();
    assert!(world.wire.messages.lock().is_empty());
    for (from, index) in [(status.node, status.applied.0 + 1), (follower, status.applied.0)] {
        host.receive(from, alive(index));
        world.nodes[&follower].loops.turn_consensus();
        let (_, to, message) = world.wire.messages.lock().pop_front().unwrap();
        assert_eq!((to, message.group), (from, GROUP));
        assert_eq!(Packet::decode(message.body), Ok(Packet::Wake));
    }
}
