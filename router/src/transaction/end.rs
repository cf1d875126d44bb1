//! How a transaction ends.
//!
//! COMMIT, by how many branches are bound:
//! - None: nothing happens. The branches are let go.
//! - One: its shard commits it, under a request id, so that asking again is safe.
//! - Several: all are **prepared**, at once; each answer is a vote, and names all participants. With all votes the
//!   transaction is committed. All **finish**, and remember it until all have ([`super::kept`]).
//! - A transaction with an idempotency key is prepared, too, however many branches it has. With all votes the
//!   coordinator **decides**: that record is the commit, and uses the key up. Then all finish, and the coordinator is told so.
//!
//! If a vote is missing, the coordinator is asked for a verdict: an abort, unless it has found all votes before. What has no
//! answer then is unknown (08007); the coordinator and the shards see to the rest.
//!
//! A participant whose shard is replaced meanwhile is its heirs ([`super::part`]): they know its vote, and finish. One that has
//! changed or locked something on a shard that is replaced before is lost, and so is its transaction.

use super::keyed::{Refused, claim_lost};
use super::metrics::Way;
use super::part::Part;
use super::{Transaction, Transactions, lost};
use crate::asking::outcome;
use crate::positions::Committed;
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use proto::machine;
use proto::services::{BranchAction, CoordinatorService, Decision, Verdict};
use proto::{LogIndex, Retry, SchemaVersion, ShardId, SqlState, TransactionId, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How long who rolled back waits for its locks to be free.
pub const ROLLBACK_PATIENCE: Duration = Duration::from_millis(500);

/// How branches end.
pub(super) const ROLLBACK: BranchAction = BranchAction::Finish { commit: false, keep: false };
const COMMIT: BranchAction = BranchAction::Finish { commit: true, keep: false };
/// Nothing but the votes says that it is committed.
const KEPT: BranchAction = BranchAction::Finish { commit: true, keep: true };

/// A rollback that is under way.
#[derive(Debug, Default)]
#[must_use]
pub struct Ending(Option<JoinHandle<()>>);

impl Ending {
    /// Waits until it is done, but not for long: it goes on by itself.
    pub async fn settle(self) {
        if let Some(ending) = self.0 {
            // One that takes longer, or has failed, is left to the shards.
            let _ = tokio::time::timeout(ROLLBACK_PATIENCE, ending).await;
        }
    }
}

impl Transaction {
    /// Commits it. After any error but 08007 it is rolled back.
    pub async fn commit(mut self, deadline: Instant) -> Result<Committed, Box<Refused>> {
        let (all, key) = (self.all.clone(), self.key.take());
        let topology = all.cluster.load().topology.clone();
        if let Err(error) = self.follow(&topology) {
            self.abandon().settle().await;
            return Err(error.into());
        }
        // From here on dropping it does nothing: it may be on its way to a commit.
        let (bound, loose) = std::mem::take(&mut *self.branches.lock()).parts();
        drop(all.let_go(self.id, loose));
        let begun = machine::now();
        let (way, result) = match (&bound[..], key) {
            ([], None) => return Ok(Committed::default()),
            ([shard], None) => {
                (Way::Shard, all.commit_one(self.id, *shard).await.map_err(Box::<Refused>::from))
            }
            (_, None) if all.parallel => (
                Way::Votes,
                all.commit_by_votes(self.id, bound, deadline).await.map_err(Box::<Refused>::from),
            ),
            (_, key) => (Way::Record, all.commit_by_record(self.id, bound, key, deadline).await),
        };
        let failed = result.as_ref().err().map(|refused| &refused.error);
        all.metrics.ended(way, machine::now().saturating_duration_since(begun), failed);
        result
    }

    /// Rolls it back, in the background.
    pub fn rollback(self) -> Ending {
        self.abandon()
    }

    fn abandon(&self) -> Ending {
        let shards = std::mem::take(&mut *self.branches.lock()).shards();
        if !shards.is_empty() {
            self.all.metrics.rolled_back();
        }
        self.all.let_go(self.id, shards)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        drop(self.abandon());
    }
}

impl Transactions {
    /// Rolls back branches that aren't prepared, in the background.
    fn let_go(self: &Arc<Self>, transaction: TransactionId, shards: Vec<ShardId>) -> Ending {
        if shards.is_empty() {
            return Ending::default();
        }
        // Without a runtime everything ends, and the shards find out by themselves.
        let Ok(runtime) = Handle::try_current() else { return Ending::default() };
        let all = self.clone();
        Ending(Some(runtime.spawn(async move {
            let until = all.patience();
            join_all(shards.into_iter().map(|shard| all.roll_back(transaction, shard, until))).await;
        })))
    }

    /// Ends branches as it was decided, and notes where. Says whether all have.
    async fn finish(
        &self,
        transaction: TransactionId,
        shards: &[ShardId],
        end: BranchAction,
        heard: &Heard,
    ) -> bool {
        let until = self.patience();
        let finish = shards.iter().copied().map(async |shard| {
            let finished = self.ask_part(transaction, shard, &end, until).await;
            match &finished {
                Ok(positions) => heard.lock().extend(positions),
                // The shard, or the coordinator, will see to it.
                Err(error) => {
                    tracing::debug!(%transaction, %shard, ?end, %error, "a branch was left to its shard");
                }
            }
            finished.is_ok()
        });
        join_all(finish).await.into_iter().all(|finished| finished)
    }

    async fn commit_one(self: &Arc<Self>, id: TransactionId, shard: ShardId) -> Result<Committed, WireError> {
        let request = self.requests.begin();
        let action = BranchAction::Commit { request: request.id, settled: self.requests.settled() };
        let applied = |position| Committed { applied: vec![(shard, position)], ..Committed::default() };
        let until = self.patience();
        let mut maybe = false;
        let error = loop {
            let error = match self.attempt(id, Part::own(shard), action.clone(), until).await {
                Ok(position) => return Ok(applied(position)),
                Err((error, unknown)) => {
                    maybe |= unknown;
                    error
                }
            };
            match error.retry {
                Retry::Never => break error,
                _ if !maybe => break error,
                // The shard doesn't serve now: it may have committed before.
                Retry::StaleEpoch(epoch) => {
                    let told = match self.cluster.wait_for(SchemaVersion(0), epoch, until).await {
                        // It does again, for the attempt to replace it was given up; or it isn't decided yet.
                        Ok(state) if state.topology.serves(shard) => continue,
                        Ok(_) => outcome(&self.cluster, shard, request.id, self.patience()).await,
                        Err(error) => Err(error),
                    };
                    match told {
                        // All that it had committed is in what has taken its place.
                        Ok(Some(_)) => return Ok(applied(LogIndex(1))),
                        Ok(None) => break error,
                        Err(error) => break error.with_retry(Retry::Unknown),
                    }
                }
                _ => break error.with_retry(Retry::Unknown),
            }
        };
        if error.retry == Retry::Unknown {
            // If it is still there, its locks must not stay.
            self.leave(id, shard);
            let name = self.cluster.load().topology.shard_name(shard);
            return Err(unknown().with_detail(format!("It was on shard {name} alone: {error}")));
        }
        self.let_go(id, vec![shard]).settle().await;
        Err(lost(error))
    }

    /// Commits what all its participants vote for.
    async fn commit_by_votes(
        self: &Arc<Self>,
        id: TransactionId,
        shards: Vec<ShardId>,
        deadline: Instant,
    ) -> Result<Committed, WireError> {
        let (heard, votes) = (Heard::default(), Heard::default());
        let error = match self.prepare(id, &shards, true, &votes, deadline.min(self.patience())).await {
            Err(error) => error,
            Ok(prepared) => {
                let (all, place) = (self.clone(), self.finishing.clone().try_acquire_owned());
                let is_full = place.is_err();
                let finishing = tokio::spawn(async move {
                    if all.finish(id, &shards, KEPT, &heard).await {
                        all.forget(id, &shards);
                    }
                    drop(place);
                });
                // It is committed, and whoever looks for its effects from now on waits where they aren't yet. But locks that nobody
                // waits for mustn't become more and more.
                if is_full {
                    let _ = tokio::time::timeout(self.retry_timeout, finishing).await;
                }
                return Ok(Committed { prepared, ..Committed::default() });
            }
        };
        // Nobody can say that it is committed but this router, and whoever has found all votes and has that written down.
        let verdict = self.decide(Decision::abort(id, shards.clone())).await.map_err(|error| {
            let hint = format!("\"shoal txn show {id}\" tells what has become of it.");
            unknown().with_detail(format!("Its id is {id}: {error}")).with_hint(hint)
        })?;
        let (all, end) = (self.clone(), if verdict.committed { COMMIT } else { ROLLBACK });
        let (finished, participants) = (heard.clone(), shards.clone());
        let finishing = tokio::spawn(async move {
            if all.finish(id, &shards, end, &finished).await {
                all.tell_finished(id);
            }
        });
        if verdict.committed {
            let _ = tokio::time::timeout(self.retry_timeout, finishing).await;
            return Ok(self.reached(&participants, &heard, &votes.lock()));
        }
        Ending(Some(finishing)).settle().await;
        Err(lost(error))
    }

    /// Commits by the coordinator's record.
    async fn commit_by_record(
        self: &Arc<Self>,
        id: TransactionId,
        shards: Vec<ShardId>,
        key: Option<String>,
        deadline: Instant,
    ) -> Result<Committed, Box<Refused>> {
        let (heard, votes) = (Heard::default(), Heard::default());
        let voted = self.prepare(id, &shards, false, &votes, deadline.min(self.patience())).await;
        let prepared = match voted {
            Ok(prepared) => prepared,
            Err(error) => {
                // Whatever else was prepared ends by the coordinator's word alone.
                let all = self.clone();
                let ending = tokio::spawn(async move {
                    match all.decide(Decision::abort(id, shards.clone())).await {
                        Ok(verdict) => {
                            let end = if verdict.committed { COMMIT } else { ROLLBACK };
                            if all.finish(id, &shards, end, &heard).await {
                                all.tell_finished(id);
                            }
                        }
                        Err(error) => {
                            tracing::warn!(transaction = %id, %error, "an abort could not be recorded")
                        }
                    }
                });
                Ending(Some(ending)).settle().await;
                return Err(lost(error).into());
            }
        };
        let (key_of, positions) = (key.clone(), prepared.clone());
        let decision =
            Decision { commit: true, key: key_of, positions, ..Decision::abort(id, shards.clone()) };
        let verdict = self.decide(decision).await.map_err(|error| {
            let hint = match &key {
                Some(_) => {
                    "Run it again with its idempotency key: it is told then whether it was committed.".into()
                }
                None => format!("\"shoal txn show {id}\" tells what has become of it."),
            };
            unknown().with_detail(format!("Its id is {id}: {error}")).with_hint(hint)
        })?;
        let (all, finished, participants) = (self.clone(), heard.clone(), shards.clone());
        let finishing = tokio::spawn(async move {
            let end = if verdict.committed { COMMIT } else { ROLLBACK };
            if all.finish(id, &shards, end, &finished).await {
                all.tell_finished(id);
            }
        });
        // It is what it is, whoever waits for it: who does sees its effects everywhere, unless a shard is away for long.
        let _ = tokio::time::timeout(self.retry_timeout, finishing).await;
        if verdict.committed {
            return Ok(self.reached(&participants, &heard, &prepared));
        }
        match (key, verdict.duplicate_of) {
            (Some(key), Some(by)) => return Err(self.spent_by(&key, by).await),
            (Some(key), None) => return Err(claim_lost(&key).into()),
            (None, _) => {}
        }
        let message = "the transaction was aborted before its commit was decided";
        let error = WireError::new(SqlState::SERIALIZATION_FAILURE, message)
            .with_detail("A shard waited too long for the decision, or somebody resolved it.")
            .with_hint("Run the transaction again.");
        Err(error.into())
    }

    /// Has every shard vote, notes where, and answers with all of that. The first that doesn't ends it.
    async fn prepare(
        &self,
        id: TransactionId,
        shards: &[ShardId],
        parallel: bool,
        votes: &Heard,
        until: Instant,
    ) -> Result<Vec<(ShardId, LogIndex)>, WireError> {
        let vote = shards.iter().map(async |shard| {
            let action = BranchAction::Prepare { participants: shards.to_vec(), parallel };
            let positions = self.ask_part(id, *shard, &action, until).await?;
            votes.lock().extend(&positions);
            Ok::<_, WireError>(positions)
        });
        Ok(try_join_all(vote).await?.into_iter().flatten().collect())
    }

    /// Has the coordinator decide. An error leaves it unknown.
    async fn decide(&self, decision: Decision) -> Result<Verdict, WireError> {
        let ask = |coordinator: Arc<dyn CoordinatorService>| {
            let decision = decision.clone();
            async move { coordinator.decide(decision).await }
        };
        self.ask_coordinator(self.patience(), ask).await
    }
}

/// Where branches have voted or finished, as it is heard.
type Heard = Arc<Mutex<Vec<(ShardId, LogIndex)>>>;

impl Transactions {
    /// What a commit has reached on these shards, by what was heard of their ends and of their votes.
    fn reached(&self, shards: &[ShardId], heard: &Heard, voted: &[(ShardId, LogIndex)]) -> Committed {
        let applied = heard.lock().clone();
        let is_in = |among: &[(ShardId, LogIndex)], shard: ShardId| {
            let is_one = |shard: ShardId| among.iter().any(|(of, _)| *of == shard);
            let parts = self.parts(shard);
            is_one(shard) || (!parts.is_empty() && parts.iter().all(|part| is_one(part.shard)))
        };
        let prepared: Vec<_> = voted.iter().filter(|(shard, _)| !is_in(&applied, *shard)).copied().collect();
        let unheard = shards.iter().filter(|shard| !is_in(&applied, **shard) && !is_in(&prepared, **shard));
        Committed { unheard: unheard.copied().collect(), applied, prepared }
    }
}

fn unknown() -> WireError {
    let message = "the outcome of the transaction could not be learned; it may have been committed";
    WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
}
