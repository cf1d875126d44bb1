//! Who reads the log of what is applied as it grows: how soon a follower has it, and how much is kept for them.

use super::world::{ELECTION, TICK, World, later};
use crate::{Content, Replica, TailError};
use futures::poll;
use proto::{LogIndex, NodeId, WireError};
use std::pin::pin;
use std::time::{Duration, Instant};

const KIB: u64 = 1024;

/// More writes than a follower applies one by one between two ticks.
const MANY: u64 = 30;

/// Three nodes, one of which leads, and a follower.
async fn three() -> (World, Replica, Replica) {
    let world = World::new(3);
    world.pass(ELECTION).await;
    let leader = world.leader();
    let follower = world.replica(world.others(leader.status().node)[0]);
    (world, leader, follower)
}

impl World {
    /// Lets happen what happens now until this is done.
    async fn until<T: Send + 'static>(
        &self,
        done: impl Future<Output = Result<T, WireError>> + Send + 'static,
    ) -> T {
        let done = tokio::spawn(done);
        while !done.is_finished() {
            self.settle().await;
        }
        done.await.unwrap().unwrap()
    }

    async fn hold(&self, leader: &Replica, name: &'static str, from: Option<u64>) -> LogIndex {
        let leader = leader.clone();
        self.until(async move { leader.hold_log(name, from.map(LogIndex), later()).await }).await
    }

    async fn write_many(&self, leader: &Replica, first: u64) -> u64 {
        let mut last = 0;
        for number in first..first + MANY {
            last = self.write(leader, number).await.unwrap();
        }
        last
    }

    /// The bytes that a node's replica keeps, by whom it keeps them for.
    fn held(&self, node: NodeId) -> Vec<(String, u64)> {
        let holds = self.replica(node).status().holds;
        holds.into_iter().map(|hold| (hold.name, hold.bytes)).collect()
    }
}

#[tokio::test]
async fn who_awaits_the_next_entry_has_a_follower_apply_at_once() {
    let (world, leader, follower) = three().await;
    let before = world.now();
    let last = world.write_many(&leader, 0).await;
    assert!(follower.status().applied.0 < last, "nobody waits for it");
    // Who comes now has what is committed already, and then each entry as it comes.
    let at = follower.status().applied;
    let mut first = pin!(follower.entries_after(at, later()));
    assert!(poll!(first.as_mut()).is_pending());
    world.settle().await;
    let entries = first.await.unwrap();
    assert_eq!(entries.last().unwrap().index.0, last);
    let indexes = entries.iter().map(|entry| entry.index.0);
    assert!(indexes.eq(at.0 + 1..=last), "in order and without a gap");

    let mut next = pin!(follower.entries_after(LogIndex(last), later()));
    let far = LogIndex(last + MANY + 2);
    let mut farther = pin!(follower.entries_after(far, later()));
    assert!(poll!(next.as_mut()).is_pending() && poll!(farther.as_mut()).is_pending());
    let second = world.write_many(&leader, 100).await;
    assert_eq!((follower.status().applied.0, world.now()), (second, before), "no time has passed");
    assert_eq!(next.await.unwrap().len() as u64, MANY);
    // One that goes away takes nothing from another that still waits.
    let third = {
        let mut gone = pin!(follower.entries_after(far, later()));
        assert!(poll!(gone.as_mut()).is_pending());
        world.write(&leader, 200).await.unwrap()
    };
    world.write(&leader, 201).await.unwrap();
    let last = world.write(&leader, 202).await.unwrap();
    assert_eq!((third + 2, world.now()), (last, before));
    assert_eq!(farther.await.unwrap().iter().map(|entry| entry.index.0).collect::<Vec<_>>(), [last]);
    // Nobody waits any more.
    let last = world.write_many(&leader, 300).await;
    assert!(follower.status().applied.0 < last);
    world.pass(TICK).await;
    assert_eq!(follower.status().applied.0, last);
}

#[tokio::test]
async fn a_follower_that_is_followed_closely_applies_at_once_until_it_is_not() {
    let (mut world, leader, follower) = three().await;
    let node = follower.status().node;
    let closely = follower.follow_closely();
    let other = follower.follow_closely();
    let last = world.write_many(&leader, 0).await;
    assert_eq!(follower.status().applied.0, last);
    drop(other);
    let last = world.write_many(&leader, 100).await;
    assert_eq!(follower.status().applied.0, last);
    drop(closely);
    let last = world.write_many(&leader, 200).await;
    assert!(follower.status().applied.0 < last);
    world.restart(node);
    let error = follower.entries_after(LogIndex(0), later()).await.unwrap_err();
    assert!(matches!(error, TailError::Refused(_)), "its log is closed: {error}");
    let follower = world.replica(node);
    let entries = follower.entries_after(LogIndex(1), later()).await.unwrap();
    assert!(entries.iter().any(|entry| matches!(entry.content, Content::Batch { .. })));
}

#[tokio::test]
async fn at_the_deadline_there_is_nothing() {
    let (world, leader, follower) = three().await;
    let last = LogIndex(world.write(&leader, 1).await.unwrap());
    let soon = || Instant::now() + Duration::from_millis(1);
    for index in [last, LogIndex(last.0 + 5)] {
        assert_eq!(follower.entries_after(index, soon()).await, Ok(Vec::new()));
    }
    assert_eq!(follower.entries_after(LogIndex(last.0 - 1), soon()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn each_replica_says_how_much_it_keeps_for_whom() {
    let (mut world, leader, follower) = three().await;
    let first = world.write(&leader, 0).await.unwrap() + 1;
    world.hold(&leader, "reshard/7", Some(first)).await;
    let mut last = 0;
    for number in 0..20 {
        last = world.write_bytes(&leader, number, 100 << 10).await.unwrap();
    }
    world.hold(&leader, "stream/a", Some(last - 4)).await;
    world.pass(2 * TICK).await;
    let nodes: Vec<NodeId> = world.nodes.keys().copied().collect();
    for node in &nodes {
        let held = world.held(*node);
        let [(one, all), (other, some)] = &held[..] else { panic!("{held:?}") };
        assert_eq!((one.as_str(), other.as_str()), ("reshard/7", "stream/a"));
        // No more than some milestone's distance beyond what they are.
        assert!((2000 * KIB..2100 * KIB).contains(all), "{held:?}");
        assert!((500 * KIB..670 * KIB).contains(some), "{held:?}");
    }
    world.hold(&leader, "reshard/7", Some(last + 1)).await;
    world.hold(&leader, "stream/a", None).await;
    world.pass(2 * TICK).await;
    for node in &nodes {
        let held = world.held(*node);
        assert!(held.len() == 1 && held[0].1 < 170 * KIB, "{held:?}");
    }
    // What was there before isn't counted, but what comes is.
    let node = follower.status().node;
    drop(follower);
    world.restart(node);
    world.pass(ELECTION).await;
    let leader = world.leader();
    for number in 100..110 {
        world.write_bytes(&leader, number, 100 << 10).await.unwrap();
    }
    world.pass(2 * TICK).await;
    let held = world.held(node);
    assert!((1000 * KIB..1170 * KIB).contains(&held[0].1), "{held:?}");
}
