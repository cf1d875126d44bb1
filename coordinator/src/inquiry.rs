//! What the coordinator's leader asks shards about transactions: who is prepared, and who waits for whom.
//!
//! In come the branches that shards' leaders have; out go aborts of transactions that nobody decides, and of one
//! transaction of each deadlock.
//!
//! **Prepared and forgotten.** A branch that is prepared stays so until it hears the verdict, and its router may be gone.
//! The design has the shard ask the coordinator then. Here it's the other way round: the leader asks all shards
//! what they have prepared, and whoever has been so for long, or has a router that is gone, is told. It is as safe, since
//! only the asking is turned round: an undecided transaction is still aborted by a record in the coordinator's log,
//! before anybody hears of it (`decisions.rs`); if the router's verdict is there first, that stands. And it is as live: there is always a leader
//! of the coordinator in the end, it asks every shard that the topology names, and goes on asking those that don't
//! answer. A shard needs no way to the coordinator, and one party fewer has a clock to mind.
//!
//! That a router is **gone** is said by its node, which has another one, or by a shard that hasn't heard it for long.
//! Either may be wrong: it only says when to look, and what follows from looking is right at any time.
//!
//! **Votes that commit.** A transaction whose votes alone commit it (`parallel`) may be committed already when nobody has decided it:
//! its router needs nobody's word. So its other participants matter: if all have voted, or one has committed, it is committed;
//! one that hasn't voted is asked never to, and once it has promised, the transaction is aborted, if the branch that
//! waits is still prepared then: a shard forgets that it has committed only once all have. A participant that was replaced
//! is its heirs (`votes.rs`): each is asked whether it has that one's vote. One that hasn't needs no promise, for nobody votes in its
//! name any more. Until it is decided who the heirs are, a sealed shard says nothing, and its votes wait.
//! A shard doesn't tell of votes that a cut withholds; and they count only once they are older than any cut that may:
//! this is no way round one.
//!
//! **Deadlocks.** A shard ends the deadlocks that it sees. One over several shards is a cycle of waits that no shard sees
//! whole (`deadlock.rs`). Its victim is told where it waits.
//!
//! Shards that nobody waits on are asked rarely. What they answer is in their leader's memory.

use crate::deadlock::{Deadlock, Rounds, Wait};
use crate::decisions::Prepared;
use crate::reach::Reach;
use crate::service::Core;
use crate::votes::{self, Count};
use proto::machine;
use proto::services::{BranchAction, BranchRequest, BranchStatus, ShardService};
use proto::{ShardId, SqlState, TransactionId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many shards are asked at once.
const AT_ONCE: usize = 64;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between rounds grows by this for each shard.
const FOR_EACH: Duration = Duration::from_millis(5);
/// How long the end of a deadlock's victim may take.
const ENDING: Duration = Duration::from_secs(2);
/// How many promises are asked for in a round.
const PROMISES: usize = 256;
/// A vote that is so old counts.
const OLD_VOTE: Duration = Duration::from_millis(1500);

/// Asks shards until it is dropped.
pub(crate) async fn inquire(core: Arc<Core>) {
    let mut rounds = Rounds::default();
    loop {
        let begun = machine::now();
        let topology = core.state.subscribe().borrow().topology.clone();
        // One that follows has nothing of its own, and one that was sealed says nothing.
        let shards: Vec<_> =
            topology.keyspaces.values().flat_map(|keyspace| &keyspace.shards).copied().collect();
        let every = core.config.ask_every.max(FOR_EACH * shards.len() as u32);
        let branches = core.branches(&shards).await;
        core.end_deadlocks(rounds.next(&branches)).await;
        if let Err(error) = core.end_orphans(&branches).await {
            tracing::debug!(%error, "transactions that nobody decides can't be aborted");
        }
        let next = begun + every;
        let mut waiting = with_waits(&branches);
        while !waiting.is_empty() && machine::now() + core.config.ask_waiting_every < next {
            tokio::time::sleep(core.config.ask_waiting_every).await;
            let branches = core.branches(&waiting).await;
            core.end_deadlocks(rounds.next(&branches)).await;
            waiting = with_waits(&branches);
        }
        tokio::time::sleep_until(next.into()).await;
    }
}

/// The shards on which somebody waits.
fn with_waits(branches: &[BranchStatus]) -> Vec<ShardId> {
    let waiting = branches.iter().filter(|branch| !branch.waits_for.is_empty()).map(|branch| branch.shard);
    waiting.collect::<BTreeSet<_>>().into_iter().collect()
}

impl Core {
    /// The branches of these shards, as far as they answer.
    async fn branches(&self, shards: &[ShardId]) -> Vec<BranchStatus> {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked = JoinSet::new();
        for shard in shards.iter().copied() {
            let (reach, turns) = (self.reach(), Arc::clone(&turns));
            asked.spawn(async move {
                let _turn = turns.acquire().await;
                let call = |service: Arc<dyn ShardService>| async move { service.branches(shard).await };
                (shard, tokio::time::timeout(PATIENCE, reach.leader(shard, call)).await)
            });
        }
        let mut branches = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok(Ok(of_shard)))) => branches.extend(of_shard),
                Ok((shard, Ok(Err(error)))) => {
                    tracing::debug!(%shard, %error, "a shard doesn't tell its branches")
                }
                Ok((shard, Err(_))) => tracing::debug!(%shard, "a shard doesn't answer"),
                Err(error) => tracing::error!(%error, "asking a shard has failed"),
            }
        }
        branches
    }

    async fn end_deadlocks(&self, deadlocks: Vec<Deadlock>) {
        for deadlock in &deadlocks {
            self.end(deadlock).await;
        }
    }

    /// Ends a deadlock's victim where it waits in the cycle.
    async fn end(&self, deadlock: &Deadlock) {
        let Wait { waiter: transaction, shard, .. } = deadlock.victim();
        let reach = self.reach();
        let (detail, epoch) = {
            let state = reach.state.borrow();
            (deadlock.describe(|shard| state.topology.shard_name(shard)), state.topology.epoch)
        };
        tracing::info!(%transaction, detail, "a deadlock is ended");
        let error = WireError::new(SqlState::DEADLOCK_DETECTED, "deadlock detected").with_detail(detail);
        let action = BranchAction::Fail(error);
        let request = BranchRequest { shard, epoch, on_behalf: None, transaction, action, timeout: ENDING };
        let call = |service: Arc<dyn ShardService>| {
            let request = request.clone();
            async move { service.transact(request).await }
        };
        match tokio::time::timeout(ENDING, reach.leader(shard, call)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%transaction, %shard, %error, "a deadlock can't be ended"),
            Err(_) => {
                tracing::warn!(%transaction, %shard, "a deadlock can't be ended: the shard doesn't answer")
            }
        }
    }

    /// Has an end put to what is prepared and whose router is gone, or has taken long.
    async fn end_orphans(&self, branches: &[BranchStatus]) -> Result<(), WireError> {
        let mut prepared = Vec::new();
        let mut late = Vec::new();
        let mut voted = Vec::new();
        let gone = self.state.gone();
        for status in branches {
            let BranchStatus { shard, transaction, prepared: participants, idle, forsaken, .. } = status;
            let is_orphan =
                *forsaken || gone.contains(&transaction.router) || *idle >= self.config.abort_after;
            let Some(participants) = participants.clone().filter(|_| is_orphan) else { continue };
            late.push((*transaction, *shard, *idle));
            let orphan = Prepared { transaction: *transaction, shard: *shard, participants, commit: false };
            if status.parallel { voted.push(orphan) } else { prepared.push(orphan) }
        }
        self.lingering.lock().prepared(late);
        if !voted.is_empty() {
            prepared.extend(self.count_votes(voted, branches).await?);
        }
        if prepared.is_empty() {
            return Ok(());
        }
        for transaction in self.settle(prepared).await? {
            tracing::warn!(%transaction, "a prepared transaction that nobody has decided is aborted");
        }
        Ok(())
    }

    /// Finds out what becomes of transactions that their votes commit; those of which that can't be known yet are left out.
    async fn count_votes(
        &self,
        orphans: Vec<Prepared>,
        branches: &[BranchStatus],
    ) -> Result<Vec<Prepared>, WireError> {
        let ids = orphans.iter().map(|orphan| orphan.transaction).collect();
        // Whatever shard a transaction that was found has is there by now, if it wasn't dropped or replaced.
        let (undecided, topology) = self.undecided(ids).await?;
        // For each transaction: who has something prepared.
        let mut rows: BTreeMap<TransactionId, BTreeMap<ShardId, &BranchStatus>> = BTreeMap::new();
        for status in branches.iter().filter(|status| status.prepared.is_some()) {
            rows.entry(status.transaction).or_default().insert(status.shard, status);
        }
        let mut known = Vec::new();
        let mut asked = JoinSet::new();
        for orphan in orphans {
            let Some(rows) = rows.get(&orphan.transaction) else { continue };
            let old = OLD_VOTE.min(self.config.abort_after);
            let count = match undecided.contains(&orphan.transaction) {
                true => votes::count(&orphan.participants, &topology, rows, old),
                false => Count::Committed,
            };
            match count {
                Count::Committed => known.push(Prepared { commit: true, ..orphan }),
                Count::Open { ask, commits } if asked.len() < PROMISES => {
                    let reach = self.reach();
                    asked.spawn(async move {
                        let voted = have_voted(&reach, &orphan, &ask).await?;
                        let known = voted.filter(|voted| !voted || commits);
                        Ok(known.map(|commit| Prepared { commit, ..orphan }))
                    });
                }
                Count::Open { .. } | Count::Unknown => {}
            }
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(orphan)) => known.extend(orphan),
                Ok(Err::<_, WireError>(error)) => {
                    tracing::debug!(%error, "a shard can't be asked for its vote")
                }
                Err(error) => tracing::error!(%error, "asking a shard for its vote has failed"),
            }
        }
        Ok(known)
    }
}

/// Whether all these votes were given, each asked for at one shard that must know; `None` if that isn't known. If one never will be,
/// the transaction is aborted: who could still give it has promised not to.
async fn have_voted(
    reach: &Reach,
    orphan: &Prepared,
    ask: &[(ShardId, ShardId)],
) -> Result<Option<bool>, WireError> {
    let transaction = orphan.transaction;
    for (participant, shard) in ask.iter().copied() {
        let on_behalf = (participant != shard).then_some(participant);
        let call = |service: Arc<dyn ShardService>| {
            let epoch = reach.state.borrow().topology.epoch;
            let action = BranchAction::Renounce;
            let request = BranchRequest { shard, epoch, on_behalf, transaction, action, timeout: ENDING };
            async move { service.transact(request).await }
        };
        match in_time(reach.leader(shard, call)).await {
            Ok(_) => {
                // If it has committed everywhere since it was found prepared, it's forgotten now where it was asked for.
                let call =
                    |service: Arc<dyn ShardService>| async move { service.branches(orphan.shard).await };
                let branches = in_time(reach.leader(orphan.shard, call)).await?;
                let waits = branches.iter().any(|status| {
                    status.transaction == transaction && status.prepared.is_some() && !status.committed
                });
                return Ok(waits.then_some(false));
            }
            // It has voted.
            Err(error) if error.sqlstate == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(true))
}

async fn in_time<T>(asked: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let silent = || WireError::new(SqlState::CONNECTION_FAILURE, "the shard doesn't answer");
    tokio::time::timeout(ENDING, asked).await.unwrap_or_else(|_| Err(silent()))
}
