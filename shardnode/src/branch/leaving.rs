//! What a leader's transactions mean to a seal: which of them are in its way, and what becomes of the others.
//!
//! In the way is what may have changed or locked something as its router knows it, can't be run again by that, and isn't
//! prepared. What a statement that waits has locked for itself alone isn't counted: nobody was told of it. What has only read
//! stays, for it has lost nothing: its next statement is refused, or, if the seal is undone, runs. It must never know who seals, nor why.

use super::{Branch, Phase, State};
use crate::prepared;
use crate::staged;
use proto::machine;
use proto::services::{Hindrance, HindranceCause};
use proto::{Epoch, Retry, SqlState, TransactionId, WireError};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a transaction hears that can be run again.
fn gone(epoch: Epoch) -> WireError {
    let retry = Retry::StaleEpoch(Epoch(epoch.0 + 1));
    let message = "the shard is not served here any more";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(retry)
}

/// What one hears that has been idle for too long.
fn idle() -> WireError {
    let message =
        "the transaction was aborted: it was idle while a shard that it has changed was handed over";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_hint("Run the transaction again.")
}

impl State {
    /// What of a branch is in the way of a seal, if anything is.
    fn cause(&self, id: TransactionId, branch: &Branch) -> Option<HindranceCause> {
        match branch.phase {
            Phase::Open if staged::is_staged(&branch.handle) => Some(HindranceCause::Staged),
            Phase::Open if branch.alone || !self.has_something(id, branch) => None,
            Phase::Open => Some(HindranceCause::Busy),
            Phase::Sealed => Some(HindranceCause::Staged),
            // They have been written, or the row says what has become of it.
            Phase::Committing | Phase::Preparing | Phase::Prepared(_) => None,
        }
    }

    /// Whether a branch may have changed or locked something, as its router knows it or is about to.
    fn has_something(&self, id: TransactionId, branch: &Branch) -> bool {
        let has_locked = || self.locks.held(id).next().is_some() && !self.locks.is_waiting(id);
        branch.bound.is_some() || !branch.handle.overlay.is_empty() || has_locked()
    }

    /// Whether memory knows of nothing that is in the way of a seal.
    pub fn is_clear(&self) -> bool {
        self.branches.iter().all(|(id, branch)| self.cause(*id, branch).is_none())
    }

    /// What is in the way of a seal, in the order of the transactions' ids. For closures on the writer: what is staged, and what
    /// is prepared, is looked up there.
    pub fn hindrances(&self, connection: &Connection) -> Result<Vec<Hindrance>, WireError> {
        let mut found = BTreeMap::new();
        for (id, branch) in &self.branches {
            let mut cause = self.cause(*id, branch);
            if branch.phase == Phase::Preparing && !prepared::is_there(connection, *id)? {
                // Its row couldn't be written, and it is open in a moment.
                cause = Some(HindranceCause::Busy);
            }
            found.extend(cause.map(|cause| (*id, cause)));
        }
        let staged = staged::owners(connection)?;
        found.extend(staged.into_iter().map(|id| (id, HindranceCause::Staged)));
        let now = machine::now();
        let hindrance = |(transaction, cause)| {
            let branch = self.branches.get(&transaction);
            let since = branch.map_or(Duration::ZERO, |branch| now.saturating_duration_since(branch.since));
            Hindrance { transaction, cause, since }
        };
        Ok(found.into_iter().map(hindrance).collect())
    }

    /// Ends what is in the way of a seal and has been idle for longer: nobody has asked anything of it, and nobody does now.
    pub fn end_idle(&mut self, longer: Duration) {
        let now = machine::now();
        let is_idle = |branch: &Branch| {
            branch.phase == Phase::Open
                && now.saturating_duration_since(branch.since) > longer
                && branch.handle.under_way.load(Ordering::Relaxed) == 0
                && branch.handle.turn.try_lock().is_ok()
        };
        let found =
            self.branches.iter().filter(|(id, branch)| is_idle(branch) && self.cause(**id, branch).is_some());
        let found: Vec<TransactionId> = found.map(|(id, _)| *id).collect();
        for id in found {
            tracing::info!(transaction = %id, "rolled back: it was idle while its shard was handed over");
            self.ended_for_seal += 1;
            self.end(id, Some(idle()));
        }
    }

    /// The shard has been sealed. What can be run again ends, and who waits for a lock waits no more: both are to ask at a later
    /// epoch than this.
    pub fn leave(&mut self, epoch: Epoch) {
        self.seals += 1;
        let over = |(id, branch): (&TransactionId, &Branch)| {
            (branch.phase == Phase::Open && branch.alone && self.has_something(*id, branch)).then_some(*id)
        };
        let over: Vec<_> = self.branches.iter().filter_map(over).collect();
        for id in over {
            self.end(id, Some(gone(epoch)));
        }
        let waiting: Vec<_> =
            self.waiters.keys().filter(|id| self.branches.contains_key(id)).copied().collect();
        for id in waiting {
            self.wake(id, gone(epoch));
        }
        self.mark();
    }

    /// The group is to serve as another shard than it has: of what has only read in it, nobody will ask it for more.
    pub fn let_go(&mut self) {
        let found =
            self.branches.iter().filter(|(_, branch)| branch.phase == Phase::Open && branch.term.is_none());
        let found: Vec<TransactionId> = found.map(|(id, _)| *id).collect();
        found.iter().for_each(|id| drop(self.branches.remove(id)));
    }
}
