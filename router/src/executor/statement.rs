//! One run of a plan: everything that stays the same while it lasts.

use super::cut::Kept;
use super::scalars::Facts;
use crate::cancel::{Interrupt, Reason};
use crate::positions::Positions;
use crate::transaction::Transaction;
use planner::plan::Plan;
use planner::text::Text;
use proto::machine;
use proto::services::{ClusterState, Consistency};
use proto::{SqlState, Value, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How fresh what a query reads must be, beyond what its session has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The level. It's a lower bound: to be read by a leader is always right.
    pub consistency: Consistency,
    /// How long a replica may wait until it is that fresh.
    pub wait: Duration,
}

impl Reading {
    /// By leaders.
    pub const STRONG: Reading = Reading { consistency: Consistency::Strong, wait: Duration::ZERO };
}

/// One run of a plan.
pub struct Statement<'a> {
    /// The plan.
    pub plan: &'a Arc<Plan>,
    /// The text whose literals it takes.
    pub text: &'a Text,
    /// The client's parameters, in storage form.
    pub parameters: &'a [Value],
    /// The cluster that it was planned and is routed by.
    pub state: Arc<ClusterState>,
    /// The session's facts.
    pub facts: &'a Facts,
    /// How it learns that it should stop.
    pub interrupt: &'a Arc<Interrupt>,
    /// When it must have ended.
    pub deadline: Instant,
    /// How long one request of it is repeated where that may help.
    pub retry_for: Duration,
    /// The transaction that it's part of. Without one it is a transaction of its own.
    pub transaction: Option<&'a Transaction>,
    /// The state that it sees, if not the newest.
    pub kept: Option<&'a Kept>,
    /// How long it may wait for a lock, if less than it may take.
    pub lock_timeout: Option<Duration>,
    /// How fresh what it reads must be.
    pub reading: Reading,
    /// What its session has seen, which it must not be behind of.
    pub positions: &'a Positions,
}

impl Statement<'_> {
    /// The time that is left.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(machine::now())
    }

    /// Until when a request that begins now is repeated. A long statement's last request has as much time as its first.
    pub fn retry_until(&self) -> Instant {
        self.deadline.min(machine::now() + self.retry_for)
    }

    /// What a request has come to that was repeated for as long as may be: where that was the statement's own end, it is told.
    pub fn in_vain(&self, error: WireError) -> WireError {
        let is_over = error.sqlstate == SqlState::POSITION_NOT_REACHED && machine::now() >= self.deadline;
        if is_over { Reason::Timeout.error() } else { error }
    }

    /// The same run, within this transaction unless it is in one already.
    pub fn within<'b>(&'b self, transaction: Option<&'b Transaction>) -> Statement<'b> {
        Statement { state: self.state.clone(), transaction: self.transaction.or(transaction), ..*self }
    }

    /// Waits for something that may be given up: an interrupt or the deadline ends it.
    pub async fn attend<T>(&self, work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
        attend(self.interrupt, self.deadline, work).await
    }
}

/// An error by which something was waited for in vain: where that was the statement's own end, it is told.
pub fn in_time(deadline: Instant, error: WireError) -> WireError {
    if machine::now() >= deadline { Reason::Timeout.error() } else { error }
}

/// Waits for something that may be given up: an interrupt or the deadline ends it.
pub async fn attend<T>(
    interrupt: &Interrupt,
    deadline: Instant,
    work: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    tokio::select! {
        // The work is looked at first: what is ready at once pays for no timer.
        biased;
        result = work => result,
        reason = interrupt.wait() => Err(reason.error()),
        // Made when it's first looked at.
        () = async { tokio::time::sleep_until(deadline.into()).await } => Err(Reason::Timeout.error()),
    }
}
