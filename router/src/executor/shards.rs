//! How big and busy shards are, for `shoal_shards`.
//!
//! The coordinator is asked when a query reads the view. If it can't be, the query fails: an empty answer could be taken for the truth.

use super::Executor;
use planner::system::ShardFact;
use proto::services::{ClusterStatus, CoordinatorService, ShardTally};
use proto::topology::Shard;
use proto::{WireError, machine};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the coordinator may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Executor {
    /// All shards that serve, in the order of their keyspaces and ranges.
    pub async fn shards_now(&self, deadline: Instant) -> Result<Vec<ShardFact>, WireError> {
        let until = deadline.min(machine::now() + PATIENCE);
        let look = |coordinator: Arc<dyn CoordinatorService>| async move {
            let tallies = coordinator.tallies().await?;
            Ok((coordinator.status().await?, tallies))
        };
        let (status, tallies) = self.cluster.ask_coordinator(until, until, look).await?;
        let topology = &status.state.topology;
        let serving = topology.keyspaces.values().flat_map(|keyspace| &keyspace.shards);
        let shards = serving.filter_map(|id| topology.shards.get(id));
        Ok(shards.map(|shard| fact(&status, &tallies, shard)).collect())
    }
}

fn fact(status: &ClusterStatus, tallies: &[ShardTally], shard: &Shard) -> ShardFact {
    let load = status.loads.iter().find(|load| load.group == shard.group);
    let of_shard = status
        .replicas
        .iter()
        .filter(|replica| replica.group == shard.group && shard.replicas.contains(&replica.node));
    let counted = tallies.iter().find(|tally| tally.shard == shard.id).map(|tally| &tally.counted);
    ShardFact {
        shard: shard.id,
        leader: status.state.leaders.get(shard.group),
        bytes: of_shard.map(|replica| replica.bytes).max(),
        rows: counted.and_then(|counted| counted.rows_of(shard.keyspace, &status.state.catalog)),
        rows_age_ms: counted.map(|counted| u64::try_from(counted.age.as_millis()).unwrap_or(u64::MAX)),
        writes_per_second: load.map(|load| load.writes_per_second),
        reads_per_second: load.map(|load| load.reads_per_second),
    }
}
