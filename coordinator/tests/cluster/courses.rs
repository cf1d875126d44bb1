//! Nodes that are drained, and other things that many changes of replicas come to, with real groups.

use crate::common::{Cluster, PATIENCE, Shape};
use crate::tables::{MAIN, create, hashed, table};
use proto::services::{ClusterState, CoordinatorService, Course, CourseWish, ReplicaService, ServiceResult};
use proto::{NodeId, SqlState};
use std::sync::Arc;
use std::time::Duration;

async fn begin(cluster: &Cluster, course: Course) -> ServiceResult<u64> {
    let wish = CourseWish { request: cluster.name(), course, dry_run: false };
    let begin = |coordinator: Arc<dyn CoordinatorService>| {
        let wish = wish.clone();
        async move { coordinator.course(wish).await }
    };
    cluster.ask(begin).await.map(|plan| plan.course.unwrap_or(0))
}

/// Waits until a course is no more under way.
async fn ended(cluster: &Cluster, course: u64) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let ended = async {
        loop {
            let status = cluster.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
            if !status.jobs.iter().any(|job| job.id == course) {
                return;
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the course ends");
}

fn holds(state: &ClusterState, node: NodeId) -> bool {
    let topology = &state.topology;
    topology.coordinators.contains(&node)
        || topology.shards.values().any(|shard| shard.replicas.contains(&node))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leads_and_coordinates_is_drained_while_rows_stay() {
    let cluster = Cluster::start_as(Shape { shards: 2, ..Shape::default() }).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let t = cluster.state().await.catalog.table_named("t").unwrap().id;
    let shards = cluster.shards_of(MAIN).await;
    for shard in &shards {
        cluster.run(*shard, &format!("INSERT INTO t{t} VALUES (1, 1)")).await.unwrap();
    }
    let node = cluster.leader().await;
    let course = begin(&cluster, Course::Drain(node)).await.unwrap();
    let refused = begin(&cluster, Course::Remove(node)).await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    let state = cluster.state_where(|state| !holds(state, node)).await;
    assert!(state.topology.nodes[&node].draining);
    assert!(state.topology.shards.values().all(|shard| shard.replicas.len() == 3));
    assert_eq!(state.topology.coordinators.len(), 3);
    ended(&cluster, course).await;
    assert_ne!(cluster.leader().await, node);
    for shard in &shards {
        assert_eq!(cluster.count(*shard, t).await, 1);
    }
    // What it had is gone from it, too.
    let host = Arc::clone(cluster.host_of(node).unwrap());
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let emptied = async {
        while !ReplicaService::replicas(host.as_ref()).await.unwrap().is_empty() {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, emptied).await.expect("its replicas go");
    drop(host);
    let alive = begin(&cluster, Course::Remove(node)).await.unwrap_err();
    let says = |what: &str| alive.message.starts_with(&format!("node {node} {what} alive"));
    assert!(says("is") || says("may be"), "{alive}");
    begin(&cluster, Course::Undrain(node)).await.unwrap();
    assert!(!cluster.state().await.topology.nodes[&node].draining);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_moved_and_counted_by_whoever_leads() {
    let mut cluster = Cluster::start_as(Shape::default()).await;
    let before = crate::replicas::shard(&cluster).await;
    let mut to = crate::replicas::others(&before.replicas);
    to.push(before.replicas[1]);
    let course = Course::Move { shard: "main/-".into(), from: None, to: to.clone() };
    let number = begin(&cluster, course).await.unwrap();
    let leader = cluster.leader().await;
    let moved = |state: &ClusterState| {
        let mut now = state.topology.shards[&before.id].replicas.clone();
        now.sort_unstable();
        let mut to = to.clone();
        to.sort_unstable();
        now == to
    };
    if !to.contains(&leader) {
        // The next one goes on with what this one has begun.
        cluster.stop(leader).await;
        cluster.open(leader);
    }
    cluster.state_where(moved).await;
    ended(&cluster, number).await;
    let number = begin(&cluster, Course::Count { keyspace: "main".into(), replicas: 4 }).await.unwrap();
    cluster.state_where(|state| state.topology.shards[&before.id].replicas.len() == 4).await;
    ended(&cluster, number).await;
    assert_eq!(cluster.state().await.topology.keyspaces[&MAIN].replicas, 4);
}
