//! How members come and go, whatever happens to their nodes meanwhile.

use super::world::{ELECTION, GROUP, TICK, World, later};
use crate::MemberTarget;
use crate::log::LogStore;
use proto::NodeId;

/// The log notes a member before it has a directory: what it promises must never be forgotten. A node that dies in between
/// is to go on from there, for its number says that it was here.
#[tokio::test]
async fn a_node_that_dies_while_a_member_comes_goes_on() {
    let mut world = World::new(3);
    world.pass(ELECTION).await;
    let leader = world.leader();
    let new = NodeId(4);
    world.start(new);
    let target = MemberTarget { voters: (1..=4).map(NodeId).collect(), rebuild: None };
    let change = tokio::spawn(async move { leader.change_members(target, later()).await });
    // Less than a tick: an image is offered with a heartbeat.
    world.pass(TICK / 5).await;
    let comes = |world: &World| {
        world.nodes[&new].host.replica(GROUP).is_some_and(|replica| replica.status().stopped.is_none())
    };
    // It waits for an image.
    assert!(comes(&world) && !change.is_finished());
    world.restart_without_files(new);
    assert!(!comes(&world));
    world.pass(TICK * 5).await;
    assert!(comes(&world));
    change.abort();
}

/// Who left is gone soon. If the others forgot that the change was committed, as a commit index may be forgotten that was
/// never synced, they'd ask those for their votes for ever.
#[tokio::test]
async fn a_change_of_members_is_remembered_as_committed() {
    let world = World::new(3);
    world.pass(ELECTION).await;
    let leader = world.leader();
    let node = leader.status().node;
    let stay = [node, world.others(node)[0]];
    let target = MemberTarget { voters: stay.to_vec(), rebuild: None };
    let change = tokio::spawn(async move { leader.change_members(target, later()).await });
    while !change.is_finished() {
        world.pass(TICK).await;
    }
    assert!(!change.await.unwrap().unwrap().joint);
    world.pass(TICK * 5).await;
    for node in stay {
        let applied = world.replica(node).status().applied.0;
        let known = world.nodes[&node].log.kept(GROUP.0).unwrap().hard_state.commit;
        assert_eq!(known, applied, "node {node}");
    }
}
