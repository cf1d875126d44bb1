//! Wishes for reshards, commands, and what is told of them.

use crate::common::{Cluster, Shape};
use proto::services::{
    CoordinatorService, ReshardCommand, ReshardCourse, ReshardOptions, ReshardPhase, ReshardPlan,
    ReshardStatus, ReshardWish, ServiceResult, SplitAt,
};
use proto::{NodeId, RequestId, ReshardId, SqlState};

/// A wish to split a shard in two.
pub fn split(request: RequestId, shard: &str) -> ReshardWish {
    let course = ReshardCourse::Split { shard: shard.into(), at: SplitAt::Evenly(2) };
    let options = ReshardOptions { verify: false, ..ReshardOptions::default() };
    ReshardWish { request, course, options, dry_run: false }
}

pub async fn begin(cluster: &Cluster, wish: &ReshardWish) -> ServiceResult<ReshardPlan> {
    let begin = |coordinator: std::sync::Arc<dyn CoordinatorService>| {
        let wish = wish.clone();
        async move { coordinator.reshard(wish).await }
    };
    cluster.ask(begin).await
}

pub async fn command(cluster: &Cluster, id: ReshardId, command: ReshardCommand) -> ServiceResult<()> {
    cluster.ask(|coordinator| async move { coordinator.command(id, command).await }).await
}

pub async fn statuses(cluster: &Cluster) -> Vec<ReshardStatus> {
    cluster.ask(|coordinator| async move { coordinator.reshards().await }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_is_refused_before_anything_happens() {
    let cluster = Cluster::start(3, 2).await;
    // Its coordinators needn't have told of this one all at once.
    let before = cluster.formed().await.topology;
    let wishes = [
        (split(cluster.name(), "main/-70"), SqlState::UNDEFINED_OBJECT),
        (split(cluster.name(), "single/-"), SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
        (
            ReshardWish {
                course: ReshardCourse::Merge { shards: vec!["main/-80".into()] },
                ..split(cluster.name(), "")
            },
            SqlState::INVALID_PARAMETER_VALUE,
        ),
        (
            ReshardWish {
                options: ReshardOptions { verify: true, ..ReshardOptions::default() },
                ..split(cluster.name(), "main/-80")
            },
            SqlState::FEATURE_NOT_SUPPORTED,
        ),
    ];
    for (wish, sqlstate) in wishes {
        let refused = begin(&cluster, &wish).await.unwrap_err();
        assert_eq!(refused.sqlstate, sqlstate, "{refused:?}");
        assert!(refused.hint.is_some() || sqlstate == SqlState::INVALID_PARAMETER_VALUE, "{refused:?}");
    }
    let dry = ReshardWish { dry_run: true, ..split(cluster.name(), "main/-80") };
    let told = begin(&cluster, &dry).await.unwrap();
    assert_eq!((told.reshard, told.what.as_str()), (None, "split main/-80 into main/-40, main/40-80"));
    let shards: Vec<_> = told.shards.iter().map(|(name, nodes)| (name.as_str(), nodes.len())).collect();
    assert_eq!(shards, [("main/-40", 3), ("main/40-80", 3)]);
    let unknown = command(&cluster, ReshardId(1), ReshardCommand::Switch).await.unwrap_err();
    assert_eq!(unknown.sqlstate, SqlState::UNDEFINED_OBJECT);
    assert_eq!(statuses(&cluster).await, []);
    let after = cluster.state_where(|state| state.topology.epoch >= before.epoch).await.topology;
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reshard_is_known_to_the_next_leader_and_to_a_new_replica() {
    let mut cluster = Cluster::start_as(Shape { nodes: 4, shards: 2, ..Shape::default() }).await;
    let wish = split(cluster.name(), "main/-80");
    let begun = begin(&cluster, &wish).await.unwrap();
    assert_eq!(begin(&cluster, &wish).await.unwrap(), begun);
    let id = begun.reshard.unwrap();
    command(&cluster, id, ReshardCommand::Pause).await.unwrap();
    let second = begin(&cluster, &split(cluster.name(), "main/-80")).await.unwrap_err();
    assert_eq!(second.sqlstate, SqlState::OBJECT_IN_USE);
    let hint = second.hint.unwrap();
    assert!(hint.contains(&format!("shoal reshard cancel {id}")), "{hint}");
    // The coordinator moves, bit by bit, to a node that had no part in it.
    let leader = cluster.leader().await;
    let action = proto::services::ReplicaAction::Move { from: leader, to: NodeId(4) };
    let target = proto::services::ReplicaTarget::Group(proto::GroupId::COORDINATOR);
    crate::replicas::change(&cluster, target, action).await.unwrap();
    let next = cluster.leader().await;
    cluster.stop(next).await;
    cluster.open(next);
    let known = statuses(&cluster).await;
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].id, known[0].keyspace.as_str()), (id, "main"));
    assert_eq!((&known[0].old, &known[0].new.len()), (&vec!["main/-80".to_owned()], &2));
    assert_eq!(known[0].paused.as_deref(), Some("an admin has it rest"));
    assert_eq!(begin(&cluster, &wish).await.unwrap(), begun);
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    command(&cluster, id, ReshardCommand::Cancel).await.unwrap();
    assert!(statuses(&cluster).await[0].phase >= ReshardPhase::Cancelling);
    assert_eq!(statuses(&cluster).await[0].failed.as_deref(), Some("it was cancelled"));
}
