//! Which state a read sees, whatever happens while it is being opened.

use super::world::{ELECTION, TICK, World, later};
use crate::simulation::holds_lease;
use crate::{Replica, Snapshot};
use futures::poll;
use proto::Retry;
use proto::services::Consistency::{self, Bounded, Eventual, Session, Strong};
use proto::services::ReplicaRole;
use proto::{LogIndex, NodeId, SqlState, WireError};
use std::pin::pin;
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// Three nodes, one of which leads and holds a lease.
    async fn led() -> (World, Replica) {
        let world = World::new(3);
        world.pass(ELECTION).await;
        let leader = world.leader();
        world.count(&leader, Strong).await.unwrap();
        assert!(holds_lease(&leader));
        (world, leader)
    }

    /// How many rows a read sees.
    async fn count(&self, replica: &Replica, consistency: Consistency) -> Result<i64, WireError> {
        self.count_after(replica, consistency, LogIndex(0)).await
    }

    async fn count_after(
        &self,
        replica: &Replica,
        consistency: Consistency,
        after: LogIndex,
    ) -> Result<i64, WireError> {
        let replica = replica.clone();
        let read = tokio::spawn(async move { count_after(&replica, consistency, after).await });
        while !read.is_finished() {
            self.settle().await;
        }
        read.await.unwrap()
    }

    /// Has another lead: the old leader neither hears nor is heard.
    async fn replace(&self, leader: &Replica) -> Replica {
        let old = leader.status().node;
        self.isolate(old);
        self.pass(ELECTION).await;
        let led_by = |node: &NodeId| self.replica(*node).is_leader();
        let new = self.others(old).into_iter().find(led_by).expect("one of the others was elected");
        self.replica(new)
    }
}

async fn count(replica: &Replica, consistency: Consistency) -> Result<i64, WireError> {
    count_after(replica, consistency, LogIndex(0)).await
}

async fn count_after(replica: &Replica, consistency: Consistency, after: LogIndex) -> Result<i64, WireError> {
    let snapshot = replica.snapshot_after(consistency, after, later()).await?;
    Ok(snapshot.connection().query_row("SELECT count(*) FROM t1", [], |row| row.get(0)).unwrap())
}

/// TiKV #9351: between the look at the lease and the snapshot, another may have been elected and have written.
#[tokio::test]
async fn a_lease_is_checked_after_the_snapshot_is_taken() {
    let (world, old) = World::led().await;
    let node = old.status().node;
    let held = old.shared();
    let held = held.readers.hold();
    let mut read = pin!(count(&old, Strong));
    assert!(poll!(read.as_mut()).is_pending(), "it had the lease, and waits for its snapshot");
    // The old leader gets no turn, so it doesn't even know that time has passed.
    world.freeze(node);
    let new = world.replace(&old).await;
    world.write(&new, 1).await.unwrap();
    assert!(old.is_leader());
    drop(held);
    assert!(poll!(read.as_mut()).is_pending(), "what it sees now is the past");
    world.thaw(node);
    world.heal();
    world.pass(ELECTION).await;
    assert_eq!(read.await.unwrap_err().retry, Retry::NotLeader(Some(new.status().node)));
    assert_eq!(world.count(&new, Strong).await.unwrap(), 1);
}

/// A read that a round has confirmed may wait before it is opened, and who is elected meanwhile acknowledges writes.
#[tokio::test]
async fn a_snapshot_has_what_was_acknowledged_before_it_was_opened() {
    let (world, old) = World::led().await;
    let node = old.status().node;
    world.pass(TICK * 20).await;
    assert!(!holds_lease(&old), "a round confirms the read");
    let held = old.shared();
    let held = held.readers.hold();
    let mut read = pin!(old.snapshot(Strong, later()));
    assert!(poll!(read.as_mut()).is_pending());
    world.settle().await;
    assert!(poll!(read.as_mut()).is_pending(), "it is confirmed, and waits for its snapshot");
    world.freeze(node);
    let new = world.replace(&old).await;
    world.write(&new, 1).await.unwrap();
    drop(held);
    assert!(poll!(read.as_mut()).is_pending(), "what it sees now is the past");
    world.thaw(node);
    world.heal();
    world.pass(ELECTION).await;
    assert_eq!(read.await.err().unwrap().retry, Retry::NotLeader(Some(new.status().node)));
}

#[tokio::test]
async fn another_snapshot_shows_the_state_of_one_that_is_open_and_no_other() {
    let (world, leader) = World::led().await;
    let rows = |snapshot: &Snapshot| -> i64 {
        snapshot.connection().query_row("SELECT count(*) FROM t1", [], |row| row.get(0)).unwrap()
    };
    world.write(&leader, 1).await.unwrap();
    let old = leader.snapshot(Strong, later()).await.unwrap();
    let state = old.state();
    for number in 2..50 {
        world.write(&leader, number).await.unwrap();
        let again = leader.snapshot_of(&state, later()).await.unwrap();
        assert_eq!((rows(&again), again.position()), (1, old.position()));
    }
    assert_eq!(world.count(&leader, Strong).await.unwrap(), 49, "whoever comes later sees the newest");
    let office = leader.office().unwrap();
    leader.assert_office(office, later()).await.unwrap();
    let new = world.replace(&leader).await;
    assert!(new.assert_office(office, later()).await.is_err(), "it is another's");
}

/// A lease that is counted in ticks survives a SIGSTOP: lost time isn't ticked afterwards.
#[tokio::test]
async fn a_leader_that_was_stopped_holds_no_lease_when_it_goes_on() {
    let (world, old) = World::led().await;
    let node = old.status().node;
    world.freeze(node);
    let new = world.replace(&old).await;
    world.write(&new, 1).await.unwrap();
    world.thaw(node);
    // Before its first turn, and after one tick.
    assert!(!holds_lease(&old));
    let mut read = pin!(count(&old, Strong));
    assert!(poll!(read.as_mut()).is_pending());
    world.pass(TICK).await;
    assert!(!holds_lease(&old));
    assert!(poll!(read.as_mut()).is_pending());
    world.heal();
    world.pass(ELECTION).await;
    assert!(read.await.is_err());
}

/// What an earlier leader acknowledged may be committed and not yet applied at the next.
#[tokio::test]
async fn a_new_leader_serves_only_what_its_own_terms_first_entry_follows() {
    let (world, old) = World::led().await;
    world.write(&old, 1).await.unwrap();
    for node in world.others(old.status().node) {
        world.stall(node, true);
    }
    world.write(&old, 2).await.unwrap();
    let new = world.replace(&old).await;
    let node = new.status().node;
    let mut read = pin!(count(&new, Strong));
    let mut eventual = pin!(count(&new, Eventual));
    for _ in 0..20 {
        assert!(poll!(read.as_mut()).is_pending());
        world.pass(TICK).await;
        assert!(!holds_lease(&new));
    }
    // It leads, and a round has confirmed that; its database is behind.
    assert_eq!(new.status().role, ReplicaRole::Leader);
    let std::task::Poll::Ready(seen) = poll!(eventual.as_mut()) else { panic!("it waits for nothing") };
    assert!(seen.unwrap() < 2);
    world.stall(node, false);
    world.settle().await;
    assert!(poll!(read.as_mut()).is_pending(), "what confirmed it is past, now that it's open");
    world.settle().await;
    assert_eq!(read.await.unwrap(), 2);
}

/// TiKV #9208, #13553, #16069: who is asked for the commit index must lead when it answers.
#[tokio::test]
async fn a_followers_strong_read_is_the_leaders() {
    let (world, leader) = World::led().await;
    let node = leader.status().node;
    world.write(&leader, 1).await.unwrap();
    for other in world.others(node) {
        let refused = world.count(&world.replica(other), Strong).await.unwrap_err();
        assert_eq!(refused.retry, Retry::NotLeader(Some(node)));
    }
}

#[tokio::test]
async fn a_read_that_no_majority_confirms_is_not_answered() {
    let (world, old) = World::led().await;
    world.isolate(old.status().node);
    // While the lease holds, nobody else can have written.
    assert_eq!(world.count(&old, Strong).await.unwrap(), 0);
    let mut read = pin!(count(&old, Strong));
    world.pass(TICK * 8).await;
    assert!(!holds_lease(&old) && old.is_leader());
    assert!(poll!(read.as_mut()).is_pending());
    world.pass(ELECTION).await;
    assert!(matches!(read.await.unwrap_err().retry, Retry::NotLeader(_)));
}

#[tokio::test]
async fn a_follower_waits_for_an_index_and_not_beyond_its_deadline() {
    let (world, leader) = World::led().await;
    let node = world.others(leader.status().node)[0];
    let follower = world.replica(node);
    world.stall(node, true);
    let index = LogIndex(world.write(&leader, 1).await.unwrap());
    let late = follower.snapshot_after(Session, index, Instant::now()).await.err().unwrap();
    assert!(matches!(late.retry, Retry::Behind(at) if at < index), "{late}");
    let mut read = pin!(count_after(&follower, Session, index));
    world.pass(TICK * 3).await;
    assert!(poll!(read.as_mut()).is_pending());
    world.stall(node, false);
    world.settle().await;
    assert_eq!(read.await.unwrap(), 1);
}

/// Nobody was told of what no majority's log has, so it may never come.
#[tokio::test]
async fn a_position_past_the_log_is_not_waited_for() {
    let (world, leader) = World::led().await;
    let index = LogIndex(world.write(&leader, 1).await.unwrap());
    let next = LogIndex(index.0 + 1);
    let mut read = pin!(count_after(&leader, Strong, next));
    assert!(poll!(read.as_mut()).is_pending(), "a majority is asked");
    world.pass(TICK).await;
    let std::task::Poll::Ready(refused) = poll!(read.as_mut()) else { panic!("it waits") };
    let refused = refused.unwrap_err();
    assert_eq!((refused.sqlstate, &refused.retry), (SqlState::POSITION_NOT_REACHED, &Retry::Behind(index)));
    let mut reach = pin!(leader.reach(next, later()));
    assert!(poll!(reach.as_mut()).is_pending(), "a majority is asked");
    world.pass(TICK).await;
    assert_eq!(reach.await.unwrap_err(), refused);
    world.write(&leader, 2).await.unwrap();
    assert_eq!(world.count_after(&leader, Strong, next).await.unwrap(), 2);
    leader.reach(next, later()).await.unwrap();
}

/// It serves others as well as ever: the replica isn't to be left alone.
#[tokio::test]
async fn who_can_not_tell_how_fresh_it_is_is_behind() {
    let (world, leader) = World::led().await;
    let follower = world.replica(world.others(leader.status().node)[0]);
    world.isolate(follower.status().node);
    let mut read = pin!(count(&follower, Bounded(Duration::ZERO)));
    assert!(poll!(read.as_mut()).is_pending(), "it has asked");
    world.pass(ELECTION).await;
    assert_eq!(
        read.await.unwrap_err().retry,
        Retry::Behind(follower.status().applied),
        "it has lost its leader"
    );
    let refused = world.count(&follower, Bounded(Duration::ZERO)).await.unwrap_err();
    assert_eq!(refused.retry, Retry::Behind(follower.status().applied), "it knows of no leader");
    world.heal();
    world.pass(ELECTION).await;
    let leader = world.leader();
    world.isolate(leader.status().node);
    world.pass(TICK * 8).await;
    assert!(!holds_lease(&leader) && leader.is_leader());
    let mut read = pin!(count(&leader, Bounded(HOUR)));
    assert!(poll!(read.as_mut()).is_pending(), "it asks whether it leads");
    world.pass(ELECTION).await;
    assert_eq!(read.await.unwrap_err().retry, Retry::Behind(leader.status().applied));
    assert_eq!(world.count(&leader, Eventual).await.unwrap(), 0);
}

/// The clock is the follower's own, from before it asked until its snapshot is open.
#[tokio::test]
async fn a_bound_is_measured_from_the_question_to_the_open_snapshot() {
    let (world, leader) = World::led().await;
    let node = world.others(leader.status().node)[0];
    let follower = world.replica(node);
    world.write(&leader, 1).await.unwrap();
    assert_eq!(world.count(&follower, Bounded(HOUR)).await.unwrap(), 1);
    let asked = Duration::from_secs(2);
    world.pass(asked).await;
    world.isolate(node);
    world.write(&leader, 2).await.unwrap();
    // Two seconds ago it had everything.
    assert_eq!(world.count(&follower, Bounded(asked)).await.unwrap(), 1);
    let read = |bound| {
        let follower = follower.clone();
        tokio::spawn(async move { count(&follower, Bounded(bound)).await })
    };
    let fresher = read(asked - Duration::from_millis(1));
    world.settle().await;
    assert!(!fresher.is_finished(), "it has to ask");
    // One that was fresh enough when it came, and isn't when its snapshot is open.
    let shared = follower.shared();
    let held = shared.readers.hold();
    let slow = read(asked);
    world.settle().await;
    assert!(!slow.is_finished());
    world.pass(TICK).await;
    drop(held);
    world.settle().await;
    assert!(!slow.is_finished(), "it has to ask");
    world.heal();
    world.pass(TICK * 20).await;
    assert_eq!(fresher.await.unwrap().unwrap(), 2);
    assert_eq!(slow.await.unwrap().unwrap(), 2);
}

/// The index comes from a leader that was confirmed after the question was sent.
#[tokio::test]
async fn a_deposed_leader_answers_no_question() {
    let (world, old) = World::led().await;
    let node = old.status().node;
    let [asker, other] = world.others(node)[..] else { panic!("three nodes") };
    // The asker still hears the old leader alone, the other one is elected by nobody.
    world.cut(node, other);
    world.cut(asker, other);
    let follower = world.replica(asker);
    assert_eq!(world.count(&follower, Bounded(Duration::ZERO)).await.unwrap(), 0, "no time has passed");
    world.heal();
    world.freeze(node);
    let new = world.replace(&old).await;
    world.write(&new, 1).await.unwrap();
    world.thaw(node);
    let late = if new.status().node == asker { other } else { asker };
    assert_eq!(world.count(&world.replica(late), Bounded(Duration::ZERO)).await.unwrap(), 1);
    let mut alone = pin!(count(&old, Bounded(HOUR)));
    assert!(poll!(alone.as_mut()).is_pending(), "it leads nobody");
}

/// Many writes that come one after the other cost a follower one transaction, unless somebody reads there.
#[tokio::test]
async fn a_busy_follower_applies_at_once_only_what_is_waited_for() {
    let (world, leader) = World::led().await;
    let follower = world.replica(world.others(leader.status().node)[0]);
    let mut last = 0;
    for number in 0..20 {
        last = world.write(&leader, number).await.unwrap();
    }
    let applied = follower.status().applied.0;
    assert!(applied < last, "it has waited for nothing");
    world.pass(TICK * 2).await;
    assert_eq!(follower.status().applied.0, last, "a tick ends the wait");

    for number in 20..40 {
        last = world.write(&leader, number).await.unwrap();
    }
    assert_eq!(
        world.count_after(&follower, Session, LogIndex(last)).await.unwrap(),
        40,
        "a reader ends it, too"
    );
}

#[tokio::test]
async fn who_gives_up_is_waited_for_no_longer() {
    let (world, leader) = World::led().await;
    let follower = world.replica(world.others(leader.status().node)[0]);
    let mut rows = 0;
    // So much within one tick that a follower is busy. How many entries it lacks after that.
    let mut lack = async || {
        let mut index = 0;
        for _ in 0..20 {
            rows += 1;
            index = world.write(&leader, rows).await.unwrap();
        }
        index - follower.status().applied.0
    };
    let applied = follower.status().applied.0;
    let mut near = Box::pin(count_after(&follower, Session, LogIndex(applied + 1)));
    let mut far = Box::pin(count_after(&follower, Session, LogIndex(applied + 1000)));
    assert!(poll!(near.as_mut()).is_pending() && poll!(far.as_mut()).is_pending());
    assert_eq!(lack().await, 0);
    // One of them has what it waited for, the other hasn't.
    assert!(near.await.unwrap() > 0);
    world.pass(TICK).await;
    assert_eq!(lack().await, 0);
    // Its index may never come.
    drop(far);
    world.pass(TICK).await;
    assert!(lack().await > 0);
}
