//! What a node holds, and what it serves.

use crate::common::{GROUP, Node, SHARD, state};
use proto::services::{ClusterState, ReplicaStatus, ShardService};
use proto::topology::Topology;
use proto::{Epoch, Incarnation, NodeId, Retry, Value};
use shardnode::Before;
use std::sync::Arc;

const HERE: NodeId = NodeId(1);

/// The state with another topology.
fn changed(state: &ClusterState, change: impl FnOnce(&mut Topology)) -> ClusterState {
    let mut topology = Topology::clone(&state.topology);
    topology.epoch = Epoch(topology.epoch.0 + 1);
    change(&mut topology);
    ClusterState { topology: Arc::new(topology), ..state.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_founded_by_what_is_so_and_only_once() {
    let told = state(vec![HERE]);
    let node = Node::bare(HERE, &Arc::default());
    assert!(!node.shards.follow(&told), "what a coordinator's follower tells may be old");
    assert!(node.host.replica(GROUP).is_none());
    let formed = changed(&told, |topology| topology.shards.get_mut(&SHARD).unwrap().formed = true);
    node.settle(&formed);
    let why = node.host.replica(GROUP).and_then(|replica| replica.status().stopped);
    assert_eq!(why.as_deref(), Some(ReplicaStatus::FILES_GONE), "it has voted, and forgotten for whom");
    assert!(!node.settle(&told), "an older state changes nothing");

    let node = Node::bare(HERE, &Arc::default());
    assert!(node.settle(&told));
    assert!(node.shards.follow(&formed), "whose files are here is well");
    assert_eq!(node.host.replica(GROUP).unwrap().status().stopped, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_shard_is_no_matter_of_routing() {
    let node = Node::start().await;
    let more = changed(&state(vec![HERE]), |topology| {
        let shard = topology.shards.get_mut(&SHARD).unwrap();
        (shard.replicas, shard.formed) = (vec![NodeId(2), HERE], true);
    });
    node.shards.follow(&more);
    // The requests of these tests are routed at epoch 1.
    assert_eq!(node.one("SELECT 1").await, Value::Int(1));
    let other = changed(&more, |topology| {
        topology.shards.get_mut(&SHARD).unwrap().incarnation = Incarnation(2);
    });
    node.shards.follow(&other);
    let refused = node.shards.execute(node.read("SELECT 1", true)).await.err().unwrap();
    assert_eq!(refused.retry, Retry::StaleEpoch(Epoch(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_from_a_node_is_removed_once_that_is_so() {
    let node = Node::start().await;
    let joining = changed(&state(vec![HERE]), |topology| {
        topology.shards.get_mut(&SHARD).unwrap().replicas = vec![NodeId(2)];
        topology.joining = vec![(GROUP, HERE)];
    });
    assert!(node.settle(&joining), "a replica that is being made stays");
    let gone = changed(&joining, |topology| topology.joining.clear());
    assert!(!node.shards.follow(&gone));
    assert!(node.host.replica(GROUP).is_some());
    assert!(node.settle(&gone));
    assert!(node.host.replica(GROUP).is_none());
    let refused = node.shards.execute(node.read("SELECT 1", true)).await.err().unwrap();
    assert_eq!(refused.retry, Retry::NotLeader(None));
}

/// The answer to who holds what may be older than a replica that came while it was under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_the_question_is_left_alone() {
    let node = Node::start().await;
    let elsewhere = changed(&state(vec![HERE]), |topology| {
        topology.shards.get_mut(&SHARD).unwrap().replicas = vec![NodeId(2)];
    });
    assert!(!node.shards.settle(&elsewhere, &Before::default()), "it is to be asked again");
    assert!(node.host.replica(GROUP).is_some());
    assert!(node.settle(&elsewhere));
    assert!(node.host.replica(GROUP).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dropped_shard_had_is_removed() {
    let node = Node::start().await;
    let dropped = changed(&state(vec![HERE]), |topology| topology.shards.clear());
    assert!(node.settle(&dropped));
    assert!(node.host.replica(GROUP).is_none());
}
