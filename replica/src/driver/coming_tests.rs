//! How a member comes to a node, whatever happens to it meanwhile.

use super::world::{ELECTION, GROUP, TICK, World, later};
use crate::MemberTarget;
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
