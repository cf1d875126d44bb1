//! The fake cluster's coordinator: it says how things are, and decides transactions.

use super::Fake;
use futures::StreamExt;
use proto::services::*;
use proto::topology::{AutoSplit, Node};
use proto::*;
use std::sync::atomic::Ordering;

impl CoordinatorService for Fake {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        let receiver = self.state.subscribe();
        Box::pin(async move {
            let states = futures::stream::unfold((receiver, true), |(mut receiver, first)| async move {
                if !first {
                    receiver.changed().await.ok()?;
                }
                let state = receiver.borrow_and_update().clone();
                Some((state, (receiver, false)))
            });
            Ok(states.boxed())
        })
    }

    fn register(&self, _: Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn report(
        &self,
        _: NodeId,
        _: Vec<ReplicaStatus>,
        _: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        let version = self.state.borrow().catalog.version().0 + 1;
        match request.change {
            SchemaChange::AlterRole { role, change } => self.alter_role(role, change),
            SchemaChange::CreateSequence(_)
            | SchemaChange::ReplaceSequence { .. }
            | SchemaChange::DropSequences(_) => {}
            _ => {
                let shards: Vec<_> = self.shards.lock().keys().copied().collect();
                shards.into_iter().for_each(|shard| _ = self.log(shard, 1));
            }
        }
        self.set_version(version);
        Box::pin(async move { Ok(SchemaVersion(version)) })
    }

    fn allocate(&self, _: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        let first = self.next.fetch_add(count.into(), Ordering::Relaxed);
        Box::pin(async move {
            // A real one's answer is never there at once.
            tokio::task::yield_now().await;
            Ok(SequenceBlock { first, increment: 1, count })
        })
    }

    fn set_sequence(&self, _: SequenceId, _: i64) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn join(&self, _: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>> {
        Box::pin(async { Err(WireError::unsupported("joining a fake cluster")) })
    }

    fn change_replicas(&self, _: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("replicas of a fake cluster")) })
    }

    fn course(&self, _: CourseWish) -> BoxFuture<'_, ServiceResult<CoursePlan>> {
        Box::pin(async { Err(WireError::unsupported("replicas of a fake cluster")) })
    }

    fn reshard(&self, _: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>> {
        Box::pin(async { Err(WireError::unsupported("resharding a fake cluster")) })
    }

    fn command(&self, _: RequestId, _: ReshardId, _: ReshardCommand) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("resharding a fake cluster")) })
    }

    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>> {
        Box::pin(async { self.come_to(self.note("reshards", 0), || Ok(self.reshards.lock().clone())).await })
    }

    fn tallies(&self) -> BoxFuture<'_, ServiceResult<Vec<ShardTally>>> {
        Box::pin(async { self.come_to(self.note("tallies", 0), || Ok(self.tallies.lock().clone())).await })
    }

    fn set_auto(&self, _: AutoWish) -> BoxFuture<'_, ServiceResult<Option<AutoSplit>>> {
        Box::pin(async { Err(WireError::unsupported("keyspaces of a fake that split by themselves")) })
    }

    fn advise(&self) -> BoxFuture<'_, ServiceResult<Vec<Advice>>> {
        Box::pin(async { Err(WireError::unsupported("advice of a fake")) })
    }

    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        Box::pin(async move {
            let decide = || {
                let mut keys = self.keys.lock();
                let claim = decision.key.as_ref().and_then(|key| keys.get_mut(key));
                let is_other = |(by, _): &(TransactionId, bool)| *by != decision.transaction;
                let other = claim.as_deref().copied().filter(is_other);
                let commit =
                    decision.commit && (decision.key.is_none() || claim.is_some() && other.is_none());
                let committed = *self.verdicts.lock().entry(decision.transaction).or_insert(commit);
                let positions = decision.positions.clone();
                self.positions.lock().entry(decision.transaction).or_insert(positions);
                if let Some((_, spent)) = claim.filter(|_| other.is_none()) {
                    *spent |= committed;
                }
                let duplicate_of = other.filter(|(_, spent)| *spent).map(|(by, _)| by);
                Verdict { committed, position: LogIndex(1), duplicate_of }
            };
            let fault = self.note(if decision.commit { "decide" } else { "abort" }, 0);
            self.come_to(fault, || Ok(decide())).await
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>> {
        Box::pin(async move {
            let claim = || {
                let mut keys = self.keys.lock();
                let (by, spent) = keys.get(&claim.key).copied().unwrap_or((claim.transaction, false));
                if spent {
                    let finished = self.finished.lock().contains(&by);
                    let positions = self.positions.lock().get(&by).cloned().unwrap_or_default();
                    return Some(Spent { transaction: by, finished, positions });
                }
                keys.insert(claim.key.clone(), (claim.transaction, false));
                None
            };
            self.come_to(self.note("claim", 0), || Ok(claim())).await
        })
    }

    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        self.finished.lock().extend(transactions);
        Box::pin(async { Ok(()) })
    }

    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        let status = |transaction: TransactionId| {
            let committed = *self.verdicts.lock().get(&transaction)?;
            let finished = self.finished.lock().contains(&transaction);
            let positions = self.positions.lock().get(&transaction).cloned().unwrap_or_default();
            Some(TransactionStatus { transaction, participants: vec![], committed, finished, positions })
        };
        let found = one.and_then(status);
        Box::pin(async move { Ok(found.into_iter().collect()) })
    }

    fn create_keyspace(&self, _: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async { Err(WireError::unsupported("a keyspace of a fake cluster")) })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        let mut state = self.state.borrow().clone();
        if let Some(catalog) = &*self.untold.lock() {
            state.catalog = catalog.clone();
        }
        if let Some(topology) = &*self.untold_topology.lock() {
            state.topology = topology.clone();
        }
        let fault = self.note("status", 0);
        Box::pin(async move {
            let said = || ClusterStatus {
                state,
                replicas: vec![],
                heard: vec![],
                jobs: vec![],
                alarms: vec![],
                loads: vec![],
            };
            self.come_to(fault, || Ok(said())).await
        })
    }
}
