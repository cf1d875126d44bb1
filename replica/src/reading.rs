//! What is known of one open snapshot from outside: since when it is open, how long it may be, and who ended it.
//!
//! A reading belongs to a pooled connection and outlives its snapshots, which it tells apart by number: who ends one
//! can't hit the next. Ending it doesn't touch the connection; the statement that runs there looks here every few
//! thousand steps, and who waits without running a statement waits here too. It must never know why a snapshot was
//! opened.

use crate::clock::Clock;
use proto::{SqlState, WireError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How many steps of SQLite's machine pass between two looks: some 50 microseconds.
pub(crate) const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 2048;

const NEVER: u64 = u64::MAX;

const OPEN: u64 = 0;
const TOO_OLD: u64 = 1;
const TIMED_OUT: u64 = 2;
const GIVEN_UP: u64 = 3;
const CLOSED: u64 = 4;
const STATES: u64 = 8;

/// One connection's snapshots, the present one above all.
pub(crate) struct Reading {
    clock: Clock,
    /// The snapshot's number times [`STATES`], and what has become of it.
    state: AtomicU64,
    /// When it was opened, and how long it may be, in nanoseconds of the node's clock.
    begun: AtomicU64,
    deadline: AtomicU64,
    ended: Notify,
}

impl Reading {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: AtomicU64::new(CLOSED),
            begun: AtomicU64::new(0),
            deadline: AtomicU64::new(NEVER),
            ended: Notify::new(),
        }
    }

    /// A snapshot is opened now.
    pub fn begin(&self) {
        self.begun.store(self.clock.nanos(), Ordering::Relaxed);
        self.deadline.store(NEVER, Ordering::Relaxed);
        let next = (self.state.load(Ordering::Relaxed) / STATES + 1) * STATES;
        self.state.store(next | OPEN, Ordering::Release);
    }

    /// The snapshot is closed. Nothing ends it any more.
    pub fn close(&self) {
        self.state.fetch_or(STATES - 1, Ordering::AcqRel);
    }

    /// The snapshot's number.
    pub fn number(&self) -> u64 {
        self.state.load(Ordering::Relaxed) / STATES
    }

    /// How long the snapshot has been open.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(self.clock.nanos().saturating_sub(self.begun.load(Ordering::Relaxed)))
    }

    /// Statements of the snapshot are ended with 57014 from then on.
    pub fn set_deadline(&self, left: Duration) {
        let left = u64::try_from(left.as_nanos()).unwrap_or(NEVER);
        self.deadline.store(self.clock.nanos().saturating_add(left), Ordering::Relaxed);
    }

    /// Ends the snapshot if it was opened so long ago; says whether it did.
    pub fn end_if_older(&self, age: Duration) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state % STATES == OPEN && self.age() >= age && self.end(state, TOO_OLD)
    }

    /// Ends the snapshot of this number, because nobody waits for it any more.
    pub fn give_up(&self, number: u64) {
        self.end((number * STATES) | OPEN, GIVEN_UP);
    }

    fn end(&self, open: u64, why: u64) -> bool {
        let ended =
            self.state.compare_exchange(open, open | why, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if ended {
            self.ended.notify_waiters();
        }
        ended
    }

    /// Whether the statement that runs must end. Called by SQLite.
    pub fn must_end(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        match state % STATES {
            OPEN => {
                let deadline = self.deadline.load(Ordering::Relaxed);
                deadline != NEVER && self.clock.nanos() >= deadline && self.end(state, TIMED_OUT)
            }
            TOO_OLD | TIMED_OUT | GIVEN_UP => true,
            _ => false,
        }
    }

    /// Why the snapshot was ended, if it was.
    pub fn why(&self) -> Option<WireError> {
        match self.state.load(Ordering::Acquire) % STATES {
            TOO_OLD => Some(too_old()),
            TIMED_OUT => {
                Some(WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout"))
            }
            GIVEN_UP => {
                Some(WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request"))
            }
            _ => None,
        }
    }

    /// Waits until the snapshot is ended by someone else.
    pub async fn ended(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.why().is_some() {
                return;
            }
            ended.await;
        }
    }
}

/// Ends a snapshot from another thread. One that is closed meanwhile isn't hit, nor is its connection's next.
#[derive(Clone)]
pub struct Canceller {
    reading: Arc<Reading>,
    number: u64,
}

impl Canceller {
    pub(crate) fn new(reading: Arc<Reading>) -> Self {
        let number = reading.number();
        Self { reading, number }
    }

    /// Ends what runs on the snapshot, and what would yet run, with 57014.
    pub fn cancel(&self) {
        self.reading.give_up(self.number);
    }
}

/// PostgreSQL's own code for a snapshot that stood in the way of cleaning up (`old_snapshot_threshold`). Not 40001:
/// clients repeat what failed with that at once, and the same read would be as long again.
fn too_old() -> WireError {
    WireError::new(SqlState::SNAPSHOT_TOO_OLD, "snapshot too old")
        .with_detail(
            "The read was open for so long that it kept the replica's write-ahead log from being emptied.",
        )
        .with_hint("Read less at once, or while less is written.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_a_snapshot_does_not_hit_the_next() {
        let reading = Arc::new(Reading::new(Clock::machine()));
        reading.begin();
        let canceller = Canceller::new(reading.clone());
        reading.close();
        assert!(!reading.end_if_older(Duration::ZERO), "it is closed");
        reading.begin();
        canceller.cancel();
        assert!(reading.why().is_none() && !reading.must_end());
        Canceller::new(reading.clone()).cancel();
        assert_eq!(reading.why().unwrap().sqlstate, SqlState::QUERY_CANCELED);
        assert!(reading.must_end());
        // The first reason stays.
        assert!(!reading.end_if_older(Duration::ZERO));
        reading.close();
        assert!(!reading.must_end(), "what ends the transaction must not be ended");
        reading.begin();
        assert!(!reading.end_if_older(Duration::from_secs(3600)));
        assert!(reading.end_if_older(Duration::ZERO));
        assert_eq!(reading.why().unwrap().sqlstate.as_str(), "72000");
    }

    #[test]
    fn a_snapshot_ends_at_its_deadline() {
        let reading = Reading::new(Clock::machine());
        reading.begin();
        reading.set_deadline(Duration::from_secs(3600));
        assert!(!reading.must_end());
        reading.set_deadline(Duration::ZERO);
        assert!(reading.must_end());
        assert!(reading.why().unwrap().message.contains("timeout"));
        reading.close();
        reading.begin();
        assert!(!reading.must_end(), "the next has none");
    }
}
