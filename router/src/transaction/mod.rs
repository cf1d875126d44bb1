//! Transactions, as their router has them.
//!
//! The life of a transaction:
//! 1. [`Transactions::begin`] gives it its id. Nobody else hears of it, unless it has an idempotency key ([`keyed`]).
//! 2. Statements that write or lock are numbered for each shard ([`Transaction::statement`]) and sent there; the first
//!    one makes the **branch** on that shard. Reads of a shard that has a branch go there, too.
//! 3. A part of it is undone ([`Transaction::undo`]): ROLLBACK TO, or a statement that is planned anew.
//!    Meanwhile the shards hear that this router lives ([`alive`]).
//! 4. Where shards are replaced meanwhile, what it has there is lost, or nothing ([`Transaction::follow`]).
//! 5. It is committed or rolled back ([`end`]). One that is dropped is rolled back in the background: whatever becomes
//!    of its session, its locks are given up. Once it is prepared its participants may be replaced: then it is finished by their
//!    heirs ([`part`]).
//!
//! It must never know SQL, nor what its session tells its client.

mod alive;
mod branches;
mod end;
mod finished;
mod kept;
mod keyed;
mod left;
mod metrics;
mod part;

#[cfg(test)]
mod tests;

use crate::asking::{Asked, no_answer, no_leader, replaced};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::requests::Requests;
use alive::{Open, Opened};
use branches::Branches;
pub use branches::Mark;
pub use end::{Ending, ROLLBACK_PATIENCE};
use finished::Finished;
use futures::future::try_join_all;
use kept::Kept;
pub use keyed::Refused;
use left::Left;
use metrics::Metrics;
use parking_lot::Mutex;
use part::Part;
use prometheus::proto::MetricFamily;
use proto::machine;
use proto::services::{Branch, BranchAction, BranchRequest, CoordinatorService};
use proto::topology::Topology;
use proto::{LogIndex, Retry, ShardId, SqlState, TransactionId, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What a router's transactions have in common.
pub struct Transactions {
    cluster: Arc<Cluster>,
    requests: Arc<Requests>,
    /// How long a shard or the coordinator is asked again where that may help.
    retry_timeout: Duration,
    /// Whether votes commit.
    parallel: bool,
    finished: Finished,
    kept: Kept,
    left: Left,
    open: Arc<Open>,
    /// A place for each transaction that is committed and hasn't been finished everywhere.
    finishing: Arc<Semaphore>,
    metrics: Metrics,
}

/// So many transactions of a router may be committed and not finished. Who commits another one waits until it is.
const FINISHING: u32 = 1000;

/// How long one coordinator is waited for before another is asked: one that is paused may never answer.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(3);

/// A transaction that is open.
pub struct Transaction {
    all: Arc<Transactions>,
    id: TransactionId,
    begun: u64,
    /// Whether it is one statement's own, which is run again if it is lost.
    alone: bool,
    /// The idempotency key that its commit uses up.
    key: Option<String>,
    _opened: Opened,
    branches: Mutex<Branches>,
}

impl Transactions {
    /// The transactions of a router over this cluster.
    pub fn new(cluster: Arc<Cluster>, requests: Arc<Requests>, config: &Config) -> Arc<Self> {
        let (retry_timeout, parallel) = (config.retry_timeout, config.parallel_commit);
        let (finished, kept, left, open) =
            (Finished::default(), Kept::default(), Left::default(), Arc::default());
        let (finishing, metrics) = (Arc::new(Semaphore::new(FINISHING as usize)), Metrics::new());
        Arc::new(Self {
            cluster,
            requests,
            retry_timeout,
            parallel,
            finished,
            kept,
            left,
            open,
            finishing,
            metrics,
        })
    }

    /// Waits until all that is committed is finished, or until then.
    pub async fn finish_all(&self, until: Instant) {
        let all = tokio::time::timeout_at(until.into(), self.finishing.acquire_many(FINISHING)).await;
        if all.is_err() {
            tracing::warn!("what is committed was left to the shards, which will finish it");
        }
    }

    /// What they come to, in Prometheus' form.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        self.metrics.gather(&self.open)
    }

    /// Begins one. `begun` is in microseconds since 1970.
    pub fn begin(self: &Arc<Self>, begun: u64) -> Transaction {
        let id = self.requests.begin_transaction();
        let (all, _opened, branches) = (self.clone(), self.open.enter(), Mutex::default());
        Transaction { all, id, begun, alone: false, key: None, _opened, branches }
    }

    /// Begins one that is a statement's own, which is run again if it is lost.
    pub fn begin_alone(self: &Arc<Self>, begun: u64) -> Transaction {
        let mut transaction = self.begin(begun);
        transaction.alone = true;
        transaction
    }

    /// Asks the coordinator for something that can be repeated, until there is an answer.
    async fn ask_coordinator<T, F>(
        &self,
        until: Instant,
        call: impl Fn(Arc<dyn CoordinatorService>) -> F,
    ) -> Result<T, WireError>
    where
        F: Future<Output = Result<T, WireError>>,
    {
        loop {
            let attempt = until.min(machine::now() + COORDINATOR_PATIENCE);
            match self.cluster.ask_coordinator(attempt, attempt, &call).await {
                Err(error) if error.retry != Retry::Never && machine::now() < until => {
                    tracing::debug!(%error, "asking the coordinator again");
                }
                answer => return answer,
            }
        }
    }

    /// Asks a shard to do something with a branch. Every action can be repeated, so it is, until there is an answer. An
    /// error says [`Retry::Unknown`] if the shard may have done it all the same, and [`Retry::StaleEpoch`] if others serve in
    /// its place, or will perhaps.
    async fn ask(
        &self,
        transaction: TransactionId,
        shard: ShardId,
        action: BranchAction,
        until: Instant,
    ) -> Result<LogIndex, WireError> {
        self.attempt(transaction, Part::own(shard), action, until).await.map_err(|(error, unknown)| {
            // A refusal for good is what the shard says now, whatever became of the attempts before it.
            match error.retry {
                Retry::Never | Retry::StaleEpoch(_) => error,
                _ if unknown => error.with_retry(Retry::Unknown),
                _ => error,
            }
        })
    }

    /// Asks a shard, and says beside an error whether it may have done it all the same.
    async fn attempt(
        &self,
        transaction: TransactionId,
        Part { shard, on_behalf }: Part,
        action: BranchAction,
        until: Instant,
    ) -> Result<LogIndex, (WireError, bool)> {
        let state = self.cluster.snapshot();
        if !state.topology.serves(shard) {
            return Err((replaced(shard, state.topology.epoch), false));
        }
        let mut asked = Asked::new(&self.cluster, &state.topology, shard, until);
        let mut unknown = false;
        loop {
            let error = match asked.service() {
                Ok(Some(service)) => {
                    let timeout = until.saturating_duration_since(machine::now());
                    let (epoch, action) = (asked.epoch, action.clone());
                    let request = BranchRequest { shard, epoch, on_behalf, transaction, action, timeout };
                    let answer = tokio::select! {
                        biased;
                        answer = service.transact(request) => answer,
                        () = asked.superseded() => Err(no_answer()),
                        () = tokio::time::sleep_until(until.into()) => return Err((no_answer(), true)),
                    };
                    match answer {
                        Ok(position) => return Ok(position),
                        Err(error) => error,
                    }
                }
                Ok(None) => no_leader(),
                Err(error) => error,
            };
            unknown |= error.retry == Retry::Unknown;
            let newest = self.cluster.load().topology.epoch;
            if let Retry::StaleEpoch(epoch) = error.retry
                && asked.epoch < epoch
                && epoch <= newest
            {
                asked.epoch = newest;
                continue;
            }
            asked.again(error).await.map_err(|error| (error, unknown))?;
        }
    }

    /// Until when something that is asked now is asked again.
    fn patience(&self) -> Instant {
        machine::now() + self.retry_timeout
    }
}

impl Transaction {
    /// The idempotency key that its commit uses up.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Whether it has statements on this shard.
    pub fn has(&self, shard: ShardId) -> bool {
        self.branches.lock().has(shard)
    }

    /// Whether it has statements anywhere.
    pub fn has_part(&self) -> bool {
        self.branches.lock().has_part()
    }

    /// Whether it may have changed or locked something anywhere.
    pub fn is_bound(&self) -> bool {
        !self.branches.lock().parts().0.is_empty()
    }

    /// Numbers the next statement on a shard. `binds`: it may change or lock something.
    pub fn statement(&self, shard: ShardId, binds: bool, lock_timeout: Option<Duration>) -> Branch {
        let statement = self.branches.lock().number(shard, binds);
        Branch { transaction: self.id, begun: self.begun, statement, lock_timeout, alone: self.alone }
    }

    /// A statement has changed and locked nothing.
    pub fn unbind(&self, shard: ShardId, branch: Branch) {
        self.branches.lock().unbind(shard, branch.statement);
    }

    /// The last statement on a shard wasn't executed, for certain.
    pub fn take_back(&self, shard: ShardId) {
        self.branches.lock().take_back(shard);
    }

    /// How far it is.
    pub fn mark(&self) -> Mark {
        self.branches.lock().mark()
    }

    /// Undoes what came after a mark. After an error nothing but a rollback is left.
    pub async fn undo(&self, mark: &Mark, deadline: Instant) -> Result<(), WireError> {
        let beyond = self.branches.lock().beyond(mark);
        let until = deadline.min(self.all.patience());
        let undo = beyond.into_iter().map(|(shard, statement)| self.undo_after(shard, statement, until));
        try_join_all(undo).await.map(drop)
    }

    /// The same on one shard.
    pub async fn undo_on(&self, shard: ShardId, mark: &Mark, deadline: Instant) -> Result<(), WireError> {
        let beyond = self.branches.lock().beyond(mark);
        let until = deadline.min(self.all.patience());
        match beyond.into_iter().find(|(id, _)| *id == shard) {
            Some((shard, statement)) => self.undo_after(shard, statement, until).await,
            None => Ok(()),
        }
    }

    async fn undo_after(&self, shard: ShardId, statement: u32, until: Instant) -> Result<(), WireError> {
        let undone = self.all.ask(self.id, shard, BranchAction::RollbackTo(statement), until).await;
        match undone {
            Ok(_) => {}
            // Nothing of it is there, not even the branch.
            Err(error) if statement == 0 && error.retry == Retry::Never => {}
            // It serves nobody any more, and nobody will ask it for the branch again. Where it may serve on, the branch may live, and
            // mustn't be taken for one of which something is undone.
            Err(error)
                if matches!(error.retry, Retry::StaleEpoch(_))
                    && !self.all.cluster.load().topology.serves(shard) =>
            {
                let mut branches = self.branches.lock();
                branches.cut(shard, statement);
                return if branches.is_bound(shard) { Err(lost(error)) } else { Ok(()) };
            }
            Err(error) => return Err(lost(error)),
        }
        self.branches.lock().cut(shard, statement);
        Ok(())
    }

    /// Leaves the branches to themselves whose shards don't serve in this topology: they have ended. 40001 if one of them has
    /// changed or locked something, for that is lost.
    pub fn follow(&self, topology: &Topology) -> Result<(), WireError> {
        let mut branches = self.branches.lock();
        for shard in branches.shards().into_iter().filter(|shard| !topology.serves(*shard)) {
            if branches.is_bound(shard) {
                let message = "a shard on which the transaction has written or locked rows was replaced";
                return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message)
                    .with_detail(format!("It was {}.", topology.shard_name(shard)))
                    .with_hint("Run the transaction again."));
            }
            branches.forget(shard);
        }
        Ok(())
    }

    /// A number below `among`, another one for the next transaction.
    pub fn spread(&self, among: usize) -> usize {
        usize::try_from(self.id.sequence % among.max(1) as u64).unwrap_or(0)
    }
}

/// What a statement of a transaction ends with when a shard's answer can't be learned: nothing was committed, and
/// nothing will be.
pub fn lost(error: WireError) -> WireError {
    if error.retry == Retry::Never {
        return error;
    }
    WireError::new(SqlState::SERIALIZATION_FAILURE, "a shard has lost touch with the transaction")
        .with_detail(error.to_string())
        .with_hint("Run the transaction again.")
}
