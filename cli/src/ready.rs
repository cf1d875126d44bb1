//! Waiting until a new cluster serves.

use crate::failure::Failure;
use futures::StreamExt;
use proto::GroupId;
use proto::services::{ClusterState, Peers};
use proto::topology::Sharding;
use std::time::Duration;

/// How long a cluster may take until all its shards have leaders.
const READY: Duration = Duration::from_secs(60);
/// How long until the coordinators are asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until the bootstrapped keyspaces are there and every group has a leader.
pub async fn wait(peers: &dyn Peers) -> Result<ClusterState, Failure> {
    let mut missing = "the coordinator can't be reached".to_owned();
    let waiting = async {
        loop {
            for (_, coordinator) in peers.coordinators() {
                let Ok(mut states) = coordinator.watch().await else { continue };
                while let Some(state) = states.next().await {
                    match what_is_missing(&state) {
                        None => return state,
                        Some(what) => missing = what,
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(READY, waiting).await {
        Ok(state) => Ok(state),
        Err(_) => Err(Failure::NotReady(READY.as_secs(), missing)),
    }
}

fn what_is_missing(state: &ClusterState) -> Option<String> {
    let keyspaces = || state.topology.keyspaces.values();
    let bootstrapped =
        keyspaces().any(|k| k.name == "main") && keyspaces().any(|k| k.sharding == Sharding::Single);
    if !bootstrapped || state.leaders.get(GroupId::COORDINATOR).is_none() {
        return Some("the coordinator has not set up the cluster".to_owned());
    }
    let leaderless = state.topology.shards.values().find(|shard| state.leaders.get(shard.group).is_none())?;
    Some(format!("shard {} has no leader", state.topology.shard_name(leaderless.id)))
}
