//! What the shards' replicas are doing, for `shoal_replicas`.
//!
//! In come what the topology places, what each node says of its replicas, and what this router has seen of them; out goes a
//! row for each. All nodes are asked at once when a query reads the view. One that doesn't answer soon is unreachable: the view
//! is for bad days, and must not fail then.

use super::Executor;
use futures::future::join_all;
use planner::system::ReplicaFact;
use proto::services::{ClusterState, ReplicaRole, ReplicaStatus};
use proto::{GroupId, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A group, the shard that it serves, and the nodes that hold its replicas.
type Placed = (GroupId, Option<ShardId>, Vec<NodeId>);

impl Executor {
    /// All replicas: the coordinator's, then the shards' in the order of their keyspaces and ranges.
    pub async fn replicas_now(&self, state: &ClusterState) -> Vec<ReplicaFact> {
        let placed = placed(state);
        let nodes: BTreeSet<NodeId> = placed.iter().flat_map(|(_, _, nodes)| nodes).copied().collect();
        let asked = nodes.into_iter().map(|node| async move {
            let service = self.cluster.peers().replica_service(node)?;
            let said = tokio::time::timeout(PATIENCE, service.replicas()).await.ok()?.ok()?;
            Some((node, said))
        });
        let said: BTreeMap<NodeId, Vec<ReplicaStatus>> =
            join_all(asked).await.into_iter().flatten().collect();
        let mut facts = Vec::new();
        for (group, shard, nodes) in placed {
            for node in nodes {
                let said = said.get(&node);
                let status = said.and_then(|said| said.iter().find(|status| status.group == group));
                let role = match (said, status) {
                    (None, _) => "unreachable",
                    (Some(_), None) => "missing",
                    (Some(_), Some(status)) => role(status),
                };
                facts.push(self.fact(shard, group, node, role, status));
            }
        }
        facts
    }

    fn fact(
        &self,
        shard: Option<ShardId>,
        group: GroupId,
        node: NodeId,
        role: &'static str,
        status: Option<&ReplicaStatus>,
    ) -> ReplicaFact {
        let seen = self.replicas.seen(group, node);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        ReplicaFact {
            shard,
            node,
            role,
            term: status.map(|status| status.term.0),
            applied: status.map(|status| status.applied),
            lag_entries: status.map(|status| status.committed.0.saturating_sub(status.applied.0)),
            lag_ms: status.map(|status| millis(status.behind)),
            stopped: status.and_then(|status| status.stopped.clone()),
            reads: seen.map(|seen| seen.reads),
            latency_us: seen.and_then(|seen| seen.latency).map(micros),
            avoided: seen.map(|seen| seen.avoided),
        }
    }
}

fn placed(state: &ClusterState) -> Vec<Placed> {
    let topology = &state.topology;
    let mut placed = vec![(GroupId::COORDINATOR, None, topology.coordinators.clone())];
    for keyspace in topology.keyspaces.values() {
        let shards = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
        placed.extend(shards.map(|shard| (shard.group, Some(shard.id), shard.replicas.clone())));
    }
    for (group, _, nodes) in &mut placed {
        let joining = topology.joining.iter().filter(|(of, _)| of == group).map(|(_, node)| *node);
        let joining: Vec<_> = joining.filter(|node| !nodes.contains(node)).collect();
        nodes.extend(joining);
    }
    placed
}

fn role(status: &ReplicaStatus) -> &'static str {
    match (&status.stopped, status.role) {
        (Some(_), _) => "stopped",
        (None, ReplicaRole::Leader) => "leader",
        (None, ReplicaRole::Follower) => "follower",
        (None, ReplicaRole::Candidate) => "candidate",
        (None, ReplicaRole::Learner) => "learner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Bench;
    use proto::LogIndex;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_shown_all_the_same() {
        let bench = Bench::new(1).await;
        bench.fake.place(&[1, 2, 3], 2);
        let state = bench.fake.state();
        bench.executor.cluster.install(state.clone());
        let group = GroupId(2);
        let lagging = ReplicaStatus {
            applied: LogIndex(7),
            committed: LogIndex(9),
            behind: Duration::from_millis(35),
            ..ReplicaStatus::new(NodeId(2), group)
        };
        let stopped = ReplicaStatus { stopped: Some("full".into()), ..ReplicaStatus::new(NodeId(1), group) };
        let said = [(NodeId(1), vec![stopped]), (NodeId(2), vec![lagging])];
        bench.fake.nodes.statuses.lock().extend(said);
        let facts = bench.executor.replicas_now(&state).await;
        let of = |node: u64| facts.iter().find(|fact| fact.node == NodeId(node)).unwrap();
        assert_eq!(facts.iter().map(|fact| fact.shard).collect::<Vec<_>>(), [Some(ShardId(1)); 3]);
        assert_eq!((of(1).role, of(1).stopped.as_deref()), ("stopped", Some("full")));
        assert_eq!((of(2).role, of(2).applied), ("follower", Some(LogIndex(7))));
        assert_eq!((of(2).lag_entries, of(2).lag_ms), (Some(2), Some(35)));
        assert_eq!((of(2).reads, of(2).latency_us, of(2).avoided), (Some(0), None, Some(false)));
        assert_eq!((of(3).role, of(3).applied, of(3).lag_ms), ("unreachable", None, None));
        bench.fake.nodes.statuses.lock().insert(NodeId(2), vec![]);
        let facts = bench.executor.replicas_now(&state).await;
        assert_eq!(facts[1].role, "missing");
    }
}
