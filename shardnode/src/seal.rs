//! Sealing a shard that others are to serve, and opening it again.
//!
//! In comes what the coordinator asks of a shard that serves ([`HandOverAction::Clear`], [`HandOverAction::Seal`],
//! [`HandOverAction::Unseal`]); out goes what has become of it. The seal is a write like any other: a change of the shard's row (`fence`), at once with all that
//! ran before it in its batch, and what comes after it in the batch is refused by it. It is tried until nothing is in its
//! way, or its time is over. Once it is committed, and before anybody hears so, this leader gives up what it has in memory that
//! others will have none of: transactions that aren't prepared, waits for locks, cuts that withhold.
//!
//! Requests may come late, or twice. Each names its attempt, and the row remembers up to which attempt none can seal the
//! shard any more. It must never know who serves instead, nor when: that is decided elsewhere.

use crate::branch::Transactions;
use crate::fence::{Address, Standing, State};
use crate::transact::{AS_LONG_AS_IT_TAKES, Desk};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::machine;
use proto::services::{HandOver, HandOverAction, HandedOver, Hindrance};
use proto::{Attempt, ReshardId, Retry, SqlState, WireError};
use replica::{Stage, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whether what is in the way of a seal has gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One try at a switch, by which the row names it.
#[derive(Clone, Copy, Debug)]
struct Try {
    to: Address,
    reshard: ReshardId,
    attempt: Attempt,
}

/// How the shard is to be sealed.
#[derive(Clone, Copy, Debug)]
struct Sealing {
    /// How long what is in the way may take.
    drain: Duration,
    /// Whether what is idle is ended then.
    ends: bool,
    /// Otherwise it is only waited until it could be sealed.
    seals: bool,
}

/// What has come of trying to seal the shard.
enum Tried {
    /// This attempt has sealed it.
    Sealed,
    /// Nothing is in the way.
    Clear,
    /// It can't.
    Refused,
    /// It can't yet.
    InTheWay(Vec<Hindrance>),
}

impl Try {
    /// Whether it is older than what the row has seen.
    fn is_void(&self, standing: &Standing) -> bool {
        self.reshard < standing.reshard || self.reshard == standing.reshard && self.attempt <= standing.void
    }

    /// Whether it is this that has sealed the shard.
    fn has_sealed(&self, standing: &Standing) -> bool {
        standing.state == State::Sealed
            && (standing.reshard, standing.attempt) == (self.reshard, self.attempt)
    }

    /// The row, if it may be of this shard. One that the group is only to become is refused: it serves nobody yet.
    fn standing(&self, stage: &Stage<'_>) -> Result<Option<Standing>, WireError> {
        let standing = Standing::read(stage)?;
        if self.to.shard > standing.shard {
            standing.admit(self.to, None)?;
        }
        Ok((self.to.shard == standing.shard && standing.state != State::Following).then_some(standing))
    }

    /// Seals the shard, if nothing is in the way and it `seals`. `end_idle`: what is in the way and has been idle for so long ends.
    fn seal(
        &self,
        transactions: &Transactions,
        stage: &Stage<'_>,
        end_idle: Option<Duration>,
        seals: bool,
    ) -> Result<Tried, WireError> {
        let Some(standing) = self.standing(stage)? else { return Ok(Tried::Refused) };
        if self.has_sealed(&standing) {
            return Ok(Tried::Sealed);
        }
        if self.is_void(&standing) || standing.state != State::Open {
            return Ok(Tried::Refused);
        }
        let mut state = transactions.enter(stage)?;
        if let Some(longer) = end_idle {
            state.end_idle(longer);
        }
        let hindrances = state.hindrances(stage)?;
        if !hindrances.is_empty() {
            return Ok(Tried::InTheWay(hindrances));
        }
        if !seals {
            return Ok(Tried::Clear);
        }
        let void = if self.reshard == standing.reshard { standing.void } else { Attempt(0) };
        let (reshard, attempt) = (self.reshard, self.attempt);
        Standing { state: State::Sealed, reshard, attempt, void, ..standing }.write(stage)?;
        Ok(Tried::Sealed)
    }

    /// Opens the shard if this attempt has sealed it, and sees to it that neither it nor an earlier one can any more.
    fn unseal(&self, stage: &Stage<'_>) -> Result<(), WireError> {
        let Some(standing) = self.standing(stage)? else { return Ok(()) };
        if self.is_void(&standing) {
            return Ok(());
        }
        let (reshard, void) = (self.reshard, self.attempt);
        if standing.state == State::Open || self.has_sealed(&standing) {
            Standing { state: State::Open, reshard, attempt: Attempt(0), void, ..standing }.write(stage)
        } else if standing.reshard == reshard {
            Standing { void, ..standing }.write(stage)
        } else {
            Ok(())
        }
    }
}

impl Desk {
    /// Does what is asked of a shard of a reshard.
    pub async fn hand_over(&self, request: HandOver, deadline: Instant) -> Result<HandedOver, WireError> {
        let HandOver { shard: _, reshard, attempt, action, timeout: _ } = request;
        let wanted = Try { to: self.to, reshard, attempt };
        match action {
            HandOverAction::Clear { drain } => {
                self.seal(wanted, Sealing { drain, ends: true, seals: false }, deadline).await
            }
            HandOverAction::Seal { drain, cleared } => {
                self.seal(wanted, Sealing { drain, ends: !cleared, seals: true }, deadline).await
            }
            HandOverAction::Unseal => self.unseal(wanted, deadline).await,
            HandOverAction::Reached | HandOverAction::Flows => {
                Err(WireError::internal("flows aren't the desk's"))
            }
        }
    }

    async fn seal(&self, wanted: Try, how: Sealing, deadline: Instant) -> Result<HandedOver, WireError> {
        let Sealing { drain, ends, seals } = how;
        self.know(deadline).await?;
        let until = (machine::now() + drain).min(deadline);
        loop {
            let is_last = machine::now() >= until;
            if is_last || self.transactions.look().is_clear() {
                let end_idle = (is_last && ends).then_some(drain / 2);
                match self.try_to_seal(wanted, end_idle, seals, deadline).await? {
                    Tried::Clear => return Ok(HandedOver::Clear),
                    Tried::Sealed if !seals => return Ok(HandedOver::Clear),
                    Tried::Sealed => {
                        let ended = self.transactions.look().ended_for_seal;
                        return Ok(HandedOver::Sealed { ended });
                    }
                    Tried::Refused => return Ok(HandedOver::Unsealed),
                    Tried::InTheWay(found) if is_last => return Ok(HandedOver::InTheWay(found)),
                    Tried::InTheWay(_) => {}
                }
            }
            // What has ended may have left something staged.
            self.tidy();
            tokio::time::sleep_until(until.min(machine::now() + LOOK_EVERY).into()).await;
        }
    }

    async fn try_to_seal(
        &self,
        wanted: Try,
        end_idle: Option<Duration>,
        seals: bool,
        deadline: Instant,
    ) -> Result<Tried, WireError> {
        let transactions = Arc::clone(&self.transactions);
        let seal = move |stage: &Stage<'_>| wanted.seal(&transactions, stage, end_idle, seals);
        let transactions = Arc::clone(&self.transactions);
        let sealed = move |tried: Option<&Tried>| {
            if matches!(tried, Some(Tried::Sealed)) {
                transactions.look().leave(wanted.to.epoch);
                transactions.cuts.lose_withholding();
            }
        };
        self.change_row(seal, sealed, deadline).await
    }

    async fn unseal(&self, wanted: Try, deadline: Instant) -> Result<HandedOver, WireError> {
        let transactions = Arc::clone(&self.transactions);
        let unsealed = move |done: Option<&()>| {
            if done.is_some() {
                transactions.look().ended_for_seal = 0;
            }
        };
        self.change_row(move |stage| wanted.unseal(stage), unsealed, deadline).await?;
        Ok(HandedOver::Unsealed)
    }

    /// Has the writer take over what other shards have left: `run` writes into `shoal_prepared` and `shoal_ended`, and into the
    /// shard's row. Whoever does something with a transaction from there on, in the same batch or after an error that undid it,
    /// finds what is there by then, as at the beginning of a term. Seen through whether or not anyone waits.
    pub async fn adopt<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Stage<'_>) -> Result<T, WireError> + Send + 'static,
        deadline: Instant,
    ) -> Result<T, WireError> {
        let transactions = Arc::clone(&self.transactions);
        let adopt = move |stage: &Stage<'_>| {
            let gave = run(stage)?;
            transactions.look().forget_term();
            Ok(gave)
        };
        let transactions = Arc::clone(&self.transactions);
        let ended = move |done: Option<&T>| {
            if done.is_none() {
                // It may have run, and was undone with its batch.
                transactions.look().forget_term();
            }
        };
        let adopted = self.change_row(adopt, ended, deadline).await?;
        self.take_up(deadline).await?;
        Ok(adopted)
    }

    /// Has the writer do something that may change the shard's row, and then does what follows from that, or from an error, whether
    /// or not anyone waits.
    async fn change_row<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Stage<'_>) -> Result<T, WireError> + Send + 'static,
        then: impl FnOnce(Option<&T>) + Send + 'static,
        deadline: Instant,
    ) -> Result<T, WireError> {
        let changing = self.transactions.fence.change();
        let gave = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&gave);
        let run = move |stage: &Stage<'_>| {
            *slot.lock() = Some(run(stage)?);
            Ok(Bytes::new())
        };
        let until = machine::now() + AS_LONG_AS_IT_TAKES;
        let write = Write { request: None, settled: 0, deadline: until, run: Box::new(run) };
        let replica = self.replica.clone();
        let changed = tokio::spawn(async move {
            let written = replica.write(write).await;
            drop(changing);
            let gave = gave.lock().take();
            let never = || WireError::internal("a write has succeeded that never ran");
            let gave = written.and_then(|_| gave.ok_or_else(never));
            then(gave.as_ref().ok());
            gave
        });
        match tokio::time::timeout_at(deadline.into(), changed).await {
            Ok(changed) => {
                changed.unwrap_or_else(|_| Err(WireError::internal("a change of a shard's row was given up")))
            }
            Err(_) => {
                let message = "the deadline passed before it was known what the shard serves as";
                Err(WireError::new(SqlState::QUERY_CANCELED, message).with_retry(Retry::Unknown))
            }
        }
    }
}
