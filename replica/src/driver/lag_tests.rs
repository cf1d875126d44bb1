//! Followers that lag, and what replicas say of how far behind they are.

use super::world::{ELECTION, TICK, World, later};
use crate::Replica;
use proto::services::Consistency::{Eventual, Session, Strong};
use proto::{LogIndex, NodeId};
use std::time::Duration;

const LAG: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(20);

impl World {
    /// Three nodes that lag as followers, one of which leads.
    async fn lagging() -> (World, Replica) {
        Self::with_leader(|config| config.apply_lag = Some((LAG, LAG))).await
    }

    async fn with_leader(change: fn(&mut crate::Config)) -> (World, Replica) {
        let world = World::with(3, change);
        world.pass(ELECTION + LAG).await;
        let leader = world.leader();
        (world, leader)
    }

    fn followers(&self, leader: &Replica) -> Vec<Replica> {
        let others = self.others(leader.status().node);
        others.into_iter().map(|node| self.replica(node)).collect()
    }

    fn applied(&self, replicas: &[Replica]) -> Vec<u64> {
        replicas.iter().map(|replica| replica.status().applied.0).collect()
    }
}

fn figures(replica: &Replica) -> (u64, u64, Duration) {
    let status = replica.status();
    (status.committed.0, status.applied.0, status.behind)
}

#[tokio::test]
async fn a_follower_applies_what_has_lain_for_long_enough_whoever_waits() {
    let (world, leader) = World::lagging().await;
    let followers = world.followers(&leader);
    let first = world.write(&leader, 1).await.unwrap();
    assert_eq!(leader.status().applied.0, first, "a leader doesn't lag");
    world.pass(STEP * 5).await;
    let second = world.write(&leader, 2).await.unwrap();
    // A reader has it applied no sooner.
    let reader = followers[0].clone();
    let read = tokio::spawn(async move {
        reader.snapshot_after(Session, LogIndex(second), later()).await.map(|snapshot| snapshot.position().0)
    });
    let mut passed = STEP * 5;
    while passed < LAG + STEP * 7 {
        let expected = match passed {
            passed if passed < LAG => first - 1,
            passed if passed < LAG + STEP * 5 => first,
            _ => second,
        };
        assert_eq!(world.applied(&followers), [expected; 2], "{passed:?}");
        assert_eq!(read.is_finished(), expected == second, "{passed:?}");
        world.pass(STEP).await;
        passed += STEP;
    }
    assert_eq!(read.await.unwrap().unwrap(), second);
}

/// What isn't kept in memory is read from the log, and not all that is there is ripe.
#[tokio::test]
async fn so_it_is_with_what_is_read_from_the_log() {
    let (world, leader) = World::lagging().await;
    let followers = world.followers(&leader);
    let before = leader.status().applied.0;
    for number in 0..6 {
        // After those that are too big to be kept come some of which many are read at a time.
        let bytes = if number < 3 { 4 << 20 } else { 10 };
        world.write_bytes(&leader, number, bytes).await.unwrap();
        world.pass(STEP).await;
    }
    let mut passed = STEP * 6;
    while passed < LAG + STEP * 7 {
        let ripe = (0..6).filter(|number| passed >= LAG + STEP * *number).count() as u64;
        assert_eq!(world.applied(&followers), [before + ripe; 2], "{passed:?}");
        world.pass(STEP).await;
        passed += STEP;
    }
}

#[tokio::test]
async fn who_begins_to_lead_lags_no_more() {
    let (world, leader) = World::with_leader(|config| {
        config.apply_lag = Some((Duration::from_secs(60), Duration::from_secs(60)))
    })
    .await;
    let index = world.write(&leader, 1).await.unwrap();
    let old = leader.status().node;
    assert!(world.applied(&world.followers(&leader)).iter().all(|applied| *applied < index));
    world.isolate(old);
    world.pass(ELECTION).await;
    let led_by = |node: &NodeId| world.replica(*node).is_leader();
    let new = world.others(old).into_iter().find(led_by).expect("one of the others was elected");
    let new = world.replica(new);
    let reader = new.clone();
    let read =
        tokio::spawn(
            async move { reader.snapshot(Strong, later()).await.map(|snapshot| snapshot.position().0) },
        );
    while !read.is_finished() {
        world.settle().await;
    }
    assert!(read.await.unwrap().unwrap() > index);
    // The old one follows as any other does.
    world.heal();
    world.pass(ELECTION).await;
    let position = world.replica(old).snapshot(Eventual, later()).await.unwrap().position().0;
    assert_eq!(position, index);
}

#[tokio::test]
async fn a_simulation_learns_when_a_lagging_engine_is_to_be_stepped() {
    let (world, leader) = World::lagging().await;
    let follower = world.followers(&leader)[0].clone();
    let loops = &world.nodes[&follower.status().node].loops;
    assert_eq!(loops.next_step(super::world::GROUP), None);
    let index = world.write(&leader, 1).await.unwrap();
    let mut waits = 0;
    while follower.status().applied.0 < index {
        let next = loops.next_step(super::world::GROUP).expect("it waits");
        let left = next.saturating_sub(world.now());
        assert!(!left.is_zero() && left <= Duration::from_millis(100), "{left:?}");
        world.delay()(left);
        assert!(loops.step_engine(super::world::GROUP) == (follower.status().applied.0 == index));
        waits += 1;
    }
    assert!((3..=5).contains(&waits), "{waits}");
}

#[tokio::test]
async fn a_replica_says_how_far_behind_it_is() {
    let (world, leader) = World::lagging().await;
    let followers = world.followers(&leader);
    let before = leader.status().applied.0;
    assert_eq!(figures(&leader), (before, before, Duration::ZERO));
    let index = world.write(&leader, 1).await.unwrap();
    assert_eq!(figures(&leader), (index, index, Duration::ZERO));
    for follower in &followers {
        assert_eq!(figures(follower), (index, before, Duration::ZERO));
    }
    world.pass(STEP * 4).await;
    world.write(&leader, 2).await.unwrap();
    world.pass(STEP * 3).await;
    for follower in &followers {
        assert_eq!(figures(follower), (index + 1, before, STEP * 7), "since the oldest");
    }
    world.pass(LAG - STEP * 7).await;
    for follower in &followers {
        assert_eq!(figures(follower), (index + 1, index, LAG - STEP * 4));
    }
    world.pass(LAG).await;
    for replica in world.replicas() {
        assert_eq!(figures(&replica), (index + 1, index + 1, Duration::ZERO));
    }
}

#[tokio::test]
async fn who_hears_nothing_of_its_leader_is_behind_for_as_long() {
    let (world, leader) = World::with_leader(|_| {}).await;
    let follower = world.followers(&leader)[0].clone();
    let node = follower.status().node;
    let heartbeat = TICK * 2;
    // One that sleeps hears of its leader, too.
    for _ in 0..600 {
        world.pass(STEP * 5).await;
        assert_eq!(follower.status().behind, Duration::ZERO);
    }
    assert!(crate::simulation::is_asleep(&follower));
    let alone_since = world.now();
    world.isolate(node);
    for _ in 0..100 {
        let behind = follower.status().behind;
        let alone = world.now() - alone_since;
        assert!(behind <= alone + heartbeat, "{behind:?} {alone:?}");
        assert!(behind >= alone || alone <= heartbeat * 2, "{behind:?} {alone:?}");
        assert_eq!(leader.status().behind, Duration::ZERO);
        world.pass(STEP * 5).await;
    }
    world.heal();
    world.pass(ELECTION).await;
    assert!(world.replicas().iter().all(|replica| replica.status().behind == Duration::ZERO));
    // A leader that isn't one any more has heard of itself until then.
    let leader = world.leader();
    world.pass(Duration::from_secs(60)).await;
    world.write(&leader, 1).await.unwrap();
    let alone_since = world.now();
    world.isolate(leader.status().node);
    world.pass(ELECTION).await;
    assert!(!leader.is_leader());
    assert!(leader.status().behind <= world.now() - alone_since);
}
