//! Changes of who holds a group's replicas, with groups that only say that they have changed.

use crate::common::{Cluster, PATIENCE, Shape};
use proto::services::{
    Alarm, ClusterStatus, CoordinatorService, Peers, ReplicaAction, ReplicaChange, ReplicaTarget,
    ServiceResult, TableHash,
};
use proto::topology::Shard;
use proto::{GroupId, LogIndex, NodeId, Retry, SqlState, WireError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub async fn change(cluster: &Cluster, target: ReplicaTarget, action: ReplicaAction) -> ServiceResult<()> {
    send(cluster, ReplicaChange { request: cluster.name(), target, action }).await
}

pub async fn send(cluster: &Cluster, change: ReplicaChange) -> ServiceResult<()> {
    cluster
        .ask(|coordinator| {
            let change = change.clone();
            async move { coordinator.change_replicas(change).await }
        })
        .await
}

pub fn main_shard() -> ReplicaTarget {
    ReplicaTarget::Shard("main/-".into())
}

pub async fn shard(cluster: &Cluster) -> Shard {
    let topology = cluster.state().await.topology;
    let id = topology.keyspace_named("main").unwrap().shards[0];
    topology.shards[&id].clone()
}

fn without(members: &[NodeId], node: NodeId) -> Vec<NodeId> {
    members.iter().copied().filter(|member| *member != node).collect()
}

/// The nodes that a shard isn't on.
pub fn others(members: &[NodeId]) -> Vec<NodeId> {
    (1..=5).map(NodeId).filter(|node| !members.contains(node)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topology_names_what_the_group_has() {
    let cluster = Cluster::start_as(Shape::default()).await;
    cluster.directory.script(Some(Box::new(|_, _| Ok(()))));
    let before = shard(&cluster).await;
    let (from, to) = (before.replicas[0], others(&before.replicas)[0]);
    let added =
        ReplicaChange { request: cluster.name(), target: main_shard(), action: ReplicaAction::Add(to) };
    send(&cluster, added.clone()).await.unwrap();
    let four: Vec<_> = before.replicas.iter().copied().chain([to]).collect();
    assert_eq!(shard(&cluster).await.replicas, four);
    assert_eq!(send(&cluster, added).await, Ok(()), "a repeated change is answered, not done");
    change(&cluster, main_shard(), ReplicaAction::Remove(from)).await.unwrap();
    let three = without(&four, from);
    assert_eq!(shard(&cluster).await.replicas, three);
    let group = ReplicaTarget::Group(before.group);
    change(&cluster, group.clone(), ReplicaAction::Rebuild(to)).await.unwrap();
    assert_eq!(shard(&cluster).await.replicas, three);
    change(&cluster, group, ReplicaAction::TransferLeader(three[1])).await.unwrap();
    let asked = cluster.directory.all_asked();
    let sets: Vec<_> = asked.into_iter().map(|(group, voters)| (group == before.group, voters)).collect();
    let expected = [four, three.clone(), without(&three, to), three.clone(), vec![three[1]]];
    assert_eq!(sets, expected.map(|voters| (true, voters)));
    let status = cluster.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
    assert!(status.state.topology.joining.is_empty() && status.jobs.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused() {
    let mut cluster = Cluster::start_as(Shape::default()).await;
    cluster.directory.script(Some(Box::new(|_, _| Err(WireError::internal("nobody should be asked")))));
    let members = shard(&cluster).await.replicas;
    let (held, other) = (members[0], others(&members)[0]);
    let refused = async |target, action| {
        let error = change(&cluster, target, action).await.unwrap_err();
        (error.sqlstate.to_string(), error.message)
    };
    let named = |code: &str, message: String| (code.to_owned(), message);
    use ReplicaAction::{Add, Move, Rebuild, Remove, TransferLeader};
    let unknown = ReplicaTarget::Shard("main/80-".into());
    assert_eq!(
        refused(unknown, Add(other)).await,
        named("42704", "shard \"main/80-\" does not exist".into())
    );
    let unknown = ReplicaTarget::Group(GroupId(99));
    assert_eq!(refused(unknown, Add(other)).await, named("42704", "group 99 does not exist".into()));
    let missing = named("42704", "node 9 does not exist".into());
    for action in [Add(NodeId(9)), Remove(NodeId(9)), Rebuild(NodeId(9)), TransferLeader(NodeId(9))] {
        assert_eq!(refused(main_shard(), action).await, missing);
    }
    let taken = named("42710", format!("node {held} already has a replica of main/-"));
    for action in [Add(held), Move { from: held, to: held }] {
        assert_eq!(refused(main_shard(), action).await, taken);
    }
    let absent = named("42704", format!("node {other} has no replica of main/-"));
    for action in [Remove(other), Rebuild(other), TransferLeader(other), Move { from: other, to: NodeId(9) }]
    {
        assert_eq!(refused(main_shard(), action).await, absent);
    }
    assert_eq!(cluster.directory.all_asked(), []);
    // Whoever is silent can't take a replica, and doesn't count for the rest.
    cluster.stop(other).await;
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    let noticed = async {
        while !refused_silent(&cluster, other).await {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.unwrap();
}

/// Whether a silent node is refused by now. Until then it's given back what it was given.
async fn refused_silent(cluster: &Cluster, node: NodeId) -> bool {
    let error = change(cluster, main_shard(), ReplicaAction::Add(node)).await.unwrap_err();
    error.sqlstate == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE && error.message.contains("has been silent")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_with_a_change_of_replicas() {
    let mut cluster = Cluster::start_as(Shape::default()).await;
    let later = || WireError::new(SqlState::CANNOT_CONNECT_NOW, "not yet").with_retry(Retry::Later);
    cluster.directory.script(Some(Box::new(move |_, _| Err(later()))));
    let before = shard(&cluster).await;
    let (from, to) = (before.replicas[0], others(&before.replicas)[1]);
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
    // It is known that the node is getting one, and what holds it up.
    let status = cluster.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
    assert_eq!(status.state.topology.joining, [(before.group, to)]);
    assert_eq!(status.jobs.len(), 1);
    assert_eq!(status.jobs[0].what, format!("move a replica of main/- from node {from} to {to}"));
    let busy = change(&cluster, main_shard(), ReplicaAction::Rebuild(from)).await.unwrap_err();
    assert_eq!(busy.sqlstate, SqlState::OBJECT_IN_USE);

    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    assert_ne!(cluster.leader().await, leader);
    cluster.directory.script(Some(Box::new(|_, _| Ok(()))));
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let after = shard(&cluster).await;
    assert_eq!(after.replicas[0], to);
    assert_eq!(after.replicas[1..], before.replicas[1..]);
    assert!(cluster.state().await.topology.joining.is_empty());
    assert_eq!(send(&cluster, moving).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_group_refuses_is_taken_back() {
    let cluster = Cluster::start_as(Shape::default()).await;
    let before = shard(&cluster).await;
    let to = others(&before.replicas)[0];
    let script = move |_: GroupId, voters: &[NodeId]| match voters.contains(&to) {
        true => Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many")),
        false => Ok(()),
    };
    cluster.directory.script(Some(Box::new(script)));
    let error = change(&cluster, main_shard(), ReplicaAction::Add(to)).await.unwrap_err();
    assert_eq!((error.sqlstate, error.message.as_str()), (SqlState::PROGRAM_LIMIT_EXCEEDED, "too many"));
    assert_eq!(shard(&cluster).await.replicas, before.replicas);
    assert_eq!(cluster.directory.all_asked().last(), Some(&(before.group, before.replicas.clone())));
    assert!(cluster.state().await.topology.joining.is_empty());
    // The way is free again.
    cluster.directory.script(Some(Box::new(|_, _| Ok(()))));
    change(&cluster, main_shard(), ReplicaAction::Add(to)).await.unwrap();
}

/// Has the replicas of a shard say that their tables have these hashes, until what the coordinator's leader says of
/// itself is as wanted.
async fn report_hashes(
    cluster: &Cluster,
    shard: &Shard,
    hashes: [u128; 3],
    wanted: impl Fn(&ClusterStatus) -> bool,
) {
    let leading = cluster.leader().await;
    let coordinators = cluster.directory.coordinators();
    let (_, leader) = coordinators.into_iter().find(|(node, _)| *node == leading).unwrap();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let reporting = async {
        loop {
            for (node, hash) in shard.replicas.iter().zip(hashes) {
                let mut statuses = cluster.host(*node).statuses();
                for status in statuses.iter_mut().filter(|status| status.group == shard.group) {
                    status.check = Some(TableHash { index: LogIndex(7), hash });
                }
                leader.report(*node, statuses, Vec::new()).await.unwrap();
            }
            let status = leader.status().await.unwrap();
            if wanted(&status) {
                return;
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, reporting).await.expect("the coordinator notices");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_differ_are_an_alarm() {
    let cluster = Cluster::start_as(Shape::default()).await;
    let shard = shard(&cluster).await;
    let alarm = Alarm {
        group: shard.group,
        node: shard.replicas[2],
        message: "its tables differ from the others' at index 7".into(),
    };
    report_hashes(&cluster, &shard, [5, 5, 6], |status| status.alarms == [alarm.clone()]).await;
    let leader = cluster.directory.coordinator(cluster.leader().await);
    let figures = || {
        let mut figures = BTreeMap::new();
        for family in leader.metrics() {
            for metric in family.get_metric() {
                let labels: Vec<_> = metric.get_label().iter().map(|label| label.get_value()).collect();
                let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
                figures.insert(format!("{} {}", family.get_name(), labels.join(" ")), value);
            }
        }
        figures
    };
    let standing = format!("shoal_alarm {} diverged {}", shard.group, shard.replicas[2]);
    assert_eq!(figures().get(&standing), Some(&1.0), "{:?}", figures());
    report_hashes(&cluster, &shard, [5, 5, 5], |status| status.alarms.is_empty()).await;
    // Who looks only now learns that it was.
    assert_eq!(figures().get(&standing), None);
    assert_eq!(figures().get("shoal_alarms_total diverged"), Some(&1.0), "{:?}", figures());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_differs_from_the_others_is_rebuilt() {
    let cluster = Cluster::start_as(Shape { rebuild_after: Duration::ZERO, ..Shape::default() }).await;
    cluster.directory.script(Some(Box::new(|_, _| Ok(()))));
    let shard = shard(&cluster).await;
    let differs = shard.replicas[0];
    report_hashes(&cluster, &shard, [6, 5, 5], |_| cluster.directory.all_asked().len() == 2).await;
    let steps = [without(&shard.replicas, differs), shard.replicas.clone()];
    assert_eq!(cluster.directory.all_asked(), steps.map(|voters| (shard.group, voters)));
    // What they said was before that: it is no reason to do it again.
    report_hashes(&cluster, &shard, [6, 5, 5], |status| status.alarms.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicas_of_a_silent_node_go_elsewhere() {
    let replace_after = Duration::from_secs(6);
    let mut cluster = Cluster::start_as(Shape { replace_after, ..Shape::default() }).await;
    cluster.directory.script(Some(Box::new(|_, _| Ok(()))));
    let leader = cluster.leader().await;
    let before = cluster.state().await.topology;
    let held = |node: &NodeId| before.shards.values().any(|shard| shard.replicas.contains(node));
    let lost = (1..=5).map(NodeId).find(|node| *node != leader && held(node)).unwrap();
    cluster.stop(lost).await;
    let state = cluster
        .state_where(|state| {
            let shards = state.topology.shards.values();
            shards.flat_map(|shard| &shard.replicas).all(|node| *node != lost)
                && !state.topology.coordinators.contains(&lost)
        })
        .await;
    for shard in state.topology.shards.values() {
        assert_eq!(shard.replicas.len(), 3);
    }
    assert_eq!(state.topology.coordinators.len(), 3);
}
