//! The transactions that are under way in the cluster, for `shoal_transactions`.
//!
//! In come what the coordinator has records of and what each shard's leader has; out goes a row for each transaction and
//! shard. It's asked for when a query reads the view, and is as of that moment on each of them. A shard that doesn't answer
//! fails the query: an answer without it could be taken for the whole.

use super::Executor;
use crate::asking::{Asked, no_answer, no_leader};
use futures::{StreamExt, TryStreamExt, stream};
use planner::system::TransactionFact;
use proto::services::{BranchStatus, ClusterState, CoordinatorService, TransactionStatus};
use proto::{ShardId, TransactionId, WireError, machine};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long shards and the coordinator may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Executor {
    /// All that are under way, ordered by transaction and shard.
    pub async fn transactions_now(
        &self,
        state: &ClusterState,
        deadline: Instant,
    ) -> Result<Vec<TransactionFact>, WireError> {
        let until = deadline.min(machine::now() + PATIENCE);
        let shards = state.topology.keyspaces.values().flat_map(|keyspace| keyspace.shards.iter().copied());
        let asked: Vec<_> = shards.map(|shard| self.branches(state, shard, until)).collect();
        let branches: Vec<Vec<BranchStatus>> =
            stream::iter(asked).buffered(self.config.shards_at_once).try_collect().await?;
        // Afterwards: whatever is decided meanwhile is decided.
        let list =
            |coordinator: Arc<dyn CoordinatorService>| async move { coordinator.transactions(None).await };
        let records = self.cluster.ask_coordinator(until, until, list).await?;
        let records = records.into_iter().filter(|record| !record.finished);
        let records: BTreeMap<_, _> = records.map(|record| (record.transaction, record)).collect();
        let mut facts = Vec::new();
        let mut seen: BTreeSet<(TransactionId, ShardId)> = BTreeSet::new();
        for branch in branches.into_iter().flatten() {
            seen.insert((branch.transaction, branch.shard));
            facts.push(fact_of(&branch, records.get(&branch.transaction)));
        }
        for record in records.values() {
            for shard in
                record.participants.iter().filter(|shard| !seen.contains(&(record.transaction, **shard)))
            {
                facts.push(TransactionFact {
                    transaction: record.transaction,
                    shard: *shard,
                    state: decided(record),
                    idle_ms: None,
                    waits_for: Vec::new(),
                });
            }
        }
        facts.sort_by_key(|fact| (fact.transaction, fact.shard));
        Ok(facts)
    }

    async fn branches(
        &self,
        state: &ClusterState,
        shard: ShardId,
        until: Instant,
    ) -> Result<Vec<BranchStatus>, WireError> {
        let mut asked = Asked::new(&self.cluster, &state.topology, shard, until);
        loop {
            let Some(service) = asked.service()? else {
                asked.again(no_leader()).await?;
                continue;
            };
            let answer = tokio::time::timeout_at(until.into(), service.branches(shard));
            match answer.await.unwrap_or_else(|_| Err(no_answer())) {
                Ok(branches) => return Ok(branches),
                Err(error) => asked.again(error).await?,
            }
        }
    }
}

fn fact_of(branch: &BranchStatus, record: Option<&TransactionStatus>) -> TransactionFact {
    let state = match record {
        _ if branch.committed => "committed",
        Some(record) => decided(record),
        None if branch.prepared.is_some() => "prepared",
        None => "open",
    };
    TransactionFact {
        transaction: branch.transaction,
        shard: branch.shard,
        state,
        idle_ms: Some(i64::try_from(branch.idle.as_millis()).unwrap_or(i64::MAX)),
        waits_for: branch.waits_for.clone(),
    }
}

fn decided(record: &TransactionStatus) -> &'static str {
    if record.committed { "committing" } else { "aborting" }
}
