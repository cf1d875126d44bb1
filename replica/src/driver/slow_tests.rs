//! A slow follower slows nobody: not one whose engine is behind, nor one whose disk stands still, nor one that messages
//! reach slowly. Others' writes are acknowledged without it, what waits for it is bounded, and it comes back.

use super::world::{ELECTION, TICK, World};
use crate::{Config, Replica};
use proto::NodeId;

/// Each write's, with a window of 64 messages behind it.
const ROW_BYTES: usize = 96 << 10;
const MIB: usize = 1 << 20;

/// Three nodes, one of which leads, and one of the others.
async fn three(change: fn(&mut Config)) -> (World, Replica, NodeId) {
    let world = World::with(3, change);
    world.pass(ELECTION).await;
    let leader = world.leader();
    world.write(&leader, 0).await.unwrap();
    let slow = world.others(leader.status().node)[0];
    (world, leader, slow)
}

/// Writes so many rows, none of which waits for time to pass.
async fn write(world: &World, leader: &Replica, first: u64, count: u64) {
    let before = world.now();
    for number in first..first + count {
        world.write_bytes(leader, number, ROW_BYTES).await.unwrap();
    }
    assert_eq!(world.now(), before, "a write has waited for something else than the others' answers");
}

/// The slow one has what the others have, by images or without one.
async fn assert_back(world: &World, leader: &Replica, slow: NodeId, by_image: bool) {
    for _ in 0..600 {
        if world.replica(slow).status().applied == leader.status().applied {
            break;
        }
        world.pass(TICK).await;
    }
    assert!(world.leader().is(leader), "another leads");
    let rows: Vec<(i64, i64)> = world.nodes.keys().map(|node| world.rows(*node)).collect();
    assert!(rows[0].0 > 0 && rows.iter().all(|other| *other == rows[0]), "{rows:?}");
    let metrics = world.nodes[&slow].host.counted();
    assert_eq!(metrics.images_received.get() > 0, by_image);
}

#[tokio::test]
async fn one_that_applies_slowly() {
    let (world, leader, slow) = three(|_| {}).await;
    world.stall(slow, true);
    write(&world, &leader, 1, 150).await;
    // It takes part all the while: it has the entries, and its word counts.
    let replica = world.replica(slow);
    world.pass(ELECTION).await;
    assert!(
        replica.status().last == leader.status().last && replica.status().applied < leader.status().applied
    );
    let kept = replica.shared().inbox().entry_bytes();
    assert!(kept > MIB && kept <= 8 * MIB, "{kept} bytes of 14 MiB are kept in memory");
    world.stall(slow, false);
    assert_back(&world, &leader, slow, false).await;
}

#[tokio::test]
async fn one_whose_disk_stands_still() {
    let (world, leader, slow) = three(|_| {}).await;
    world.freeze(slow);
    let before = world.sent_bytes(slow);
    write(&world, &leader, 1, 100).await;
    world.pass(3 * ELECTION).await;
    write(&world, &leader, 101, 100).await;
    let sent = world.sent_bytes(slow) - before;
    assert!(sent <= 8 * MIB, "{sent} bytes were sent to one that answers nothing");
    world.thaw(slow);
    assert_back(&world, &leader, slow, false).await;
}

#[tokio::test]
async fn one_that_messages_reach_slowly() {
    let (world, leader, slow) = three(|_| {}).await;
    world.slow_down(slow);
    for round in 0..20 {
        write(&world, &leader, 1 + 10 * round, 10).await;
        world.pass(TICK).await;
        world.let_through(slow, 2);
        let waiting = world.waiting(slow, ROW_BYTES);
        assert!(waiting <= 64, "{waiting} messages with entries are on their way");
    }
    assert!(world.replica(slow).status().applied < leader.status().applied);
    world.speed_up(slow);
    assert_back(&world, &leader, slow, false).await;
}

#[tokio::test]
async fn one_that_is_behind_what_the_log_keeps() {
    let (world, leader, slow) = three(|config| {
        config.log_keep_bytes = MIB as u64;
        config.log_cut_entries = 8;
        config.checkpoint_bytes = 256 << 10;
    })
    .await;
    world.freeze(slow);
    write(&world, &leader, 1, 60).await;
    world.pass(3 * ELECTION).await;
    write(&world, &leader, 61, 60).await;
    world.pass(TICK).await;
    world.thaw(slow);
    // While it is sent its image, too.
    for round in 0..10 {
        world.pass(TICK).await;
        write(&world, &leader, 200 + round, 1).await;
    }
    assert_back(&world, &leader, slow, true).await;
}

/// Whoever asked has long been told that it took too long.
#[tokio::test]
async fn one_that_comes_back_is_not_handed_what_was_meant_for_it_long_ago() {
    let (world, leader, slow) = three(|_| {}).await;
    world.isolate(slow);
    world.pass(ELECTION).await;
    write(&world, &leader, 1, 300).await;
    {
        let soon = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut transfer = std::pin::pin!(leader.transfer_leader(slow, soon));
        assert!(futures::poll!(transfer.as_mut()).is_pending());
        world.pass(TICK).await;
        assert!(futures::poll!(transfer.as_mut()).is_pending(), "it can't have it as long as it isn't there");
    }
    world.pass(TICK).await;
    world.heal();
    world.pass(3 * ELECTION).await;
    assert!(world.leader().is(&leader));
}

#[tokio::test]
async fn one_that_has_stopped_never_leads() {
    let (world, _, slow) = three(|_| {}).await;
    let shared = world.replica(slow).shared();
    shared.stop(&crate::ReplicaError::FilesGone);
    // Consensus hears of it a turn later, and may have been elected meanwhile.
    let role = raft::StateRole::Leader;
    shared.set_standing(crate::consensus::Standing { role, first: Some(1), ..Default::default() });
    let status = world.replica(slow).status();
    assert!(!world.replica(slow).is_leader() && status.role == proto::services::ReplicaRole::Follower);
    assert!(status.stopped.is_some());
}
