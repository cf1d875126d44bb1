//! How far shards are, asked of their leaders.
//!
//! For what is committed and whose positions nobody has told: a schema change, or a transaction whose record has none. The
//! newest state that a leader shows is behind nothing that was committed, or prepared, before it was asked.

use super::Executor;
use crate::asking::{Asked, no_answer, no_leader};
use crate::positions::{Committed, Positions};
use futures::{StreamExt, stream};
use proto::services::{Access, Floor, FragmentRequest};
use proto::{Epoch, Retry, SchemaVersion, ShardId, WireError, machine};
use std::time::Instant;

impl Executor {
    /// Raises a session's positions to what all shards have. Those that don't answer until then, or before it is given up, are
    /// left as unheard.
    pub async fn positions_now(&self, positions: &Positions, until: Instant) {
        let state = self.cluster.snapshot();
        let shards: Vec<ShardId> = state.topology.keyspaces.values().flat_map(|k| k.shards.clone()).collect();
        positions.committed(&Committed { unheard: shards.clone(), ..Committed::default() });
        let asked: Vec<_> =
            shards.into_iter().map(|shard| self.position_now(positions, shard, until)).collect();
        let answers: Vec<_> =
            stream::iter(asked).buffer_unordered(self.config.shards_at_once).collect().await;
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a shard's position could not be learned");
        }
    }

    async fn position_now(
        &self,
        positions: &Positions,
        shard: ShardId,
        until: Instant,
    ) -> Result<(), WireError> {
        let mut state = self.cluster.snapshot();
        let mut schema = SchemaVersion(0);
        loop {
            let mut asked = Asked::new(&self.cluster, &state.topology, shard, until);
            let (version, epoch) = loop {
                let request = FragmentRequest {
                    shard,
                    epoch: state.topology.epoch,
                    schema_version: state.catalog.version().max(schema),
                    sql: "SELECT 1".into(),
                    params: Vec::new(),
                    rows: None,
                    access: Access::strong(true),
                    cut: None,
                    floor: Floor::default(),
                    timeout: until.saturating_duration_since(machine::now()),
                };
                let Some(service) = asked.service()? else {
                    asked.again(no_leader()).await?;
                    continue;
                };
                let answer = tokio::select! {
                    biased;
                    answer = service.execute(request) => answer,
                    () = asked.superseded() => Err(no_answer()),
                    () = tokio::time::sleep_until(until.into()) => return Err(no_answer()),
                };
                match answer {
                    Ok(response) => {
                        positions.asked(shard, response.position);
                        return Ok(());
                    }
                    Err(error) => match error.retry {
                        Retry::StaleSchema(version) => break (version, Epoch(0)),
                        Retry::StaleEpoch(epoch) => break (SchemaVersion(0), epoch),
                        _ => asked.again(error).await?,
                    },
                }
            };
            schema = schema.max(version);
            drop(asked);
            state = self.cluster.wait_for(version, epoch, until).await?;
        }
    }
}
