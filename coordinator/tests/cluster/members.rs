//! Changes of who holds a group's replicas, with real groups and rows in them.

use crate::common::{Cluster, PATIENCE, Shape};
use crate::replicas::{change, main_shard, others, send, shard};
use crate::tables::{create, hashed, ranged, table};
use proto::services::{
    ClusterState, CoordinatorService, ReplicaAction, ReplicaChange, ReplicaRole, ReplicaStatus,
    ReplicaTarget, SchemaChange,
};
use proto::topology::Shard;
use proto::{GroupId, NodeId, TableId, Value};
use std::sync::Arc;
use std::time::Duration;

const COORDINATOR: ReplicaTarget = ReplicaTarget::Group(GroupId::COORDINATOR);

/// A cluster with rows in `main`.
async fn filled(shape: Shape) -> (Cluster, TableId, Shard) {
    let cluster = Cluster::start_as(shape).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let t = cluster.state().await.catalog.table_named("t").unwrap().id;
    let shard = shard(&cluster).await;
    insert(&cluster, &shard, t, 1..101).await;
    (cluster, t, shard)
}

async fn insert(cluster: &Cluster, shard: &Shard, t: TableId, keys: std::ops::Range<i64>) {
    for key in keys {
        cluster.run(shard.id, &format!("INSERT INTO t{t} VALUES ({key}, {key})")).await.unwrap();
    }
}

/// Waits until a node's replica of a group, or its absence, is as wanted.
pub async fn replica_where(
    cluster: &Cluster,
    node: NodeId,
    group: GroupId,
    wanted: impl Fn(Option<&ReplicaStatus>) -> bool,
) {
    let host = Arc::clone(cluster.host(node));
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let found = async {
        loop {
            let status = host.replica(group).map(|replica| replica.status());
            if wanted(status.as_ref()) {
                return;
            }
            looks.tick().await;
        }
    };
    if tokio::time::timeout(PATIENCE, found).await.is_err() {
        panic!("group {group} on node {node}: {:?}", host.replica(group).map(|replica| replica.status()));
    }
}

fn leads(status: Option<&ReplicaStatus>) -> bool {
    status.is_some_and(|status| status.role == ReplicaRole::Leader)
}

/// Whether a node's replica has all that the group's leader has.
async fn has_all(cluster: &Cluster, node: NodeId, group: GroupId) {
    let statuses = || {
        let hosts = (1..=5).map(NodeId).filter_map(|node| cluster.host_of(node));
        hosts.filter_map(|host| Some(host.replica(group)?.status())).collect::<Vec<_>>()
    };
    replica_where(cluster, node, group, |status| {
        let leader = statuses().into_iter().find(|status| status.role == ReplicaRole::Leader);
        let Some((leader, status)) = leader.zip(status) else { return false };
        status.stopped.is_none() && status.applied >= leader.applied && leader.members.voters.contains(&node)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_go_and_move_with_their_rows() {
    let (cluster, t, before) = filled(Shape::default()).await;
    let [first, second] = others(&before.replicas)[..] else { panic!("five nodes, three replicas") };
    change(&cluster, main_shard(), ReplicaAction::Add(first)).await.unwrap();
    has_all(&cluster, first, before.group).await;
    insert(&cluster, &before, t, 101..110).await;
    change(&cluster, main_shard(), ReplicaAction::Move { from: before.replicas[0], to: second })
        .await
        .unwrap();
    has_all(&cluster, second, before.group).await;
    change(&cluster, main_shard(), ReplicaAction::Remove(before.replicas[1])).await.unwrap();
    change(&cluster, main_shard(), ReplicaAction::TransferLeader(second)).await.unwrap();
    replica_where(&cluster, second, before.group, leads).await;
    // Who isn't named any more loses its files.
    for node in &before.replicas[..2] {
        replica_where(&cluster, *node, before.group, |status| status.is_none()).await;
    }
    let after = shard(&cluster).await;
    assert_eq!(after.replicas, [second, before.replicas[2], first]);
    insert(&cluster, &after, t, 110..120).await;
    assert_eq!(cluster.count(after.id, t).await, 119);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_where_it_is_wanted() {
    let (cluster, t, shard) = filled(Shape::default()).await;
    for node in shard.replicas.iter().chain(&shard.replicas[..1]) {
        change(&cluster, main_shard(), ReplicaAction::TransferLeader(*node)).await.unwrap();
        replica_where(&cluster, *node, shard.group, leads).await;
    }
    for node in [NodeId(3), NodeId(1), NodeId(2)] {
        change(&cluster, COORDINATOR, ReplicaAction::TransferLeader(node)).await.unwrap();
        assert_eq!(cluster.leader().await, node);
    }
    assert_eq!(cluster.count(shard.id, t).await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_rebuilt_on_request_the_leaders_too() {
    let (cluster, t, shard) = filled(Shape::default()).await;
    for node in &shard.replicas {
        change(&cluster, main_shard(), ReplicaAction::Rebuild(*node)).await.unwrap();
        has_all(&cluster, *node, shard.group).await;
        insert(&cluster, &shard, t, 1000 + node.0 as i64..1001 + node.0 as i64).await;
    }
    assert_eq!(cluster.count(shard.id, t).await, 103);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_files_are_gone_comes_back_by_itself() {
    let rebuild_after = Duration::from_millis(100);
    let (mut cluster, t, shard) = filled(Shape { rebuild_after, ..Shape::default() }).await;
    let node = shard.replicas[1];
    cluster.stop(node).await;
    cluster.lose(node, shard.group);
    cluster.open(node);
    has_all(&cluster, node, shard.group).await;
    assert_eq!(cluster.count(shard.id, t).await, 100);
    assert_eq!(crate::replicas::shard(&cluster).await.replicas, shard.replicas);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_replaced_gives_up_what_it_has() {
    let replace_after = Duration::from_secs(6);
    let (mut cluster, t, before) = filled(Shape { replace_after, ..Shape::default() }).await;
    let lost = before.replicas[0];
    cluster.stop(lost).await;
    let state = cluster
        .state_where(|state| {
            let held = state.topology.shards.values().any(|shard| shard.replicas.contains(&lost));
            !held && !state.topology.coordinators.contains(&lost)
        })
        .await;
    for shard in state.topology.shards.values() {
        for node in &shard.replicas {
            has_all(&cluster, *node, shard.group).await;
        }
    }
    cluster.open(lost);
    for shard in before_groups(&state) {
        replica_where(&cluster, lost, shard, |status| status.is_none()).await;
    }
    let shard = shard(&cluster).await;
    insert(&cluster, &shard, t, 101..111).await;
    assert_eq!(cluster.count(shard.id, t).await, 110);
}

fn before_groups(state: &ClusterState) -> Vec<GroupId> {
    let shards = state.topology.shards.values().map(|shard| shard.group);
    std::iter::once(GroupId::COORDINATOR).chain(shards).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_outlives_the_coordinators_leader() {
    let (mut cluster, t, before) = filled(Shape::default()).await;
    let leader = cluster.leader().await;
    // The target hears nothing, so the move can't end.
    let to = others(&before.replicas).into_iter().find(|node| *node != leader).unwrap();
    let from = before.replicas.iter().copied().find(|node| *node != leader).unwrap();
    cluster.directory.cut(Some(to));
    let action = ReplicaAction::Move { from, to };
    let moving = ReplicaChange { request: cluster.name(), target: main_shard(), action };
    let waiting = {
        let (directory, moving) = (Arc::clone(&cluster.directory), moving.clone());
        let call = move |coordinator: Arc<dyn CoordinatorService>| {
            let moving = moving.clone();
            async move { coordinator.change_replicas(moving).await }
        };
        tokio::spawn(async move { directory.ask(call).await })
    };
    cluster.directory.asked(|group, voters| group == before.group && voters.contains(&to)).await;
    cluster.stop(leader).await;
    assert_ne!(cluster.leader().await, leader);
    assert!(!waiting.is_finished());
    cluster.directory.cut(None);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    cluster.open(leader);
    has_all(&cluster, to, before.group).await;
    replica_where(&cluster, from, before.group, |status| status.is_none()).await;
    let after = shard(&cluster).await;
    assert_eq!(cluster.count(after.id, t).await, 100);
    assert_eq!(send(&cluster, moving).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_moves_as_any_group() {
    let (cluster, t, shard) = filled(Shape::default()).await;
    let leader = cluster.leader().await;
    // Its own leader moves away, to a node that has never had a part in it.
    change(&cluster, COORDINATOR, ReplicaAction::Move { from: leader, to: NodeId(4) }).await.unwrap();
    let state = cluster.state().await;
    assert!(state.topology.coordinators.contains(&NodeId(4)));
    assert!(!state.topology.coordinators.contains(&leader));
    assert_ne!(cluster.leader().await, leader);
    replica_where(&cluster, leader, GroupId::COORDINATOR, |status| status.is_none()).await;
    change(&cluster, COORDINATOR, ReplicaAction::Add(NodeId(5))).await.unwrap();
    change(&cluster, COORDINATOR, ReplicaAction::Add(leader)).await.unwrap();
    change(&cluster, COORDINATOR, ReplicaAction::TransferLeader(NodeId(5))).await.unwrap();
    assert_eq!(cluster.leader().await, NodeId(5));
    let all: Vec<_> = (1..=5).map(NodeId).collect();
    assert_eq!(cluster.state().await.topology.coordinators, all);
    let refused = change(&cluster, COORDINATOR, ReplicaAction::Remove(NodeId(9))).await.unwrap_err();
    assert_eq!(refused.message, "node 9 does not exist");
    // It goes on as before: schema changes are worked off by the one that leads now.
    cluster.change(create(table("u", hashed()))).await.unwrap();
    assert_eq!(cluster.count(shard.id, t).await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dropped_keyspace_had_is_removed() {
    let cluster = Cluster::start(1, 1).await;
    cluster.change(create(table("r", ranged()))).await.unwrap();
    let state = cluster.state().await;
    let r = state.catalog.table_named("r").unwrap().id;
    let made = state.topology.shards.values().max_by_key(|shard| shard.id).unwrap().clone();
    assert_eq!(cluster.run(made.id, "SELECT 1").await.unwrap(), [[Value::Int(1)]]);
    cluster.change(SchemaChange::DropTables(vec![r])).await.unwrap();
    replica_where(&cluster, NodeId(1), made.group, |status| status.is_none()).await;
}
