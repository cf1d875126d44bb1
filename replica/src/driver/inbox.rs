//! What waits for a group's engine loop.

use crate::connection::Cancel;
use crate::consensus::Standing;
use crate::entry::{Body, Request};
use crate::log::Cut;
use crate::write::{WriteFn, Written};
use bytes::Bytes;
use proto::{LogIndex, WireError};
use raft::StateRole;
use raft::eraftpb::Entry;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Committed entries beyond this many bytes aren't kept here, but read from the log when their turn comes.
const ENTRY_BYTES: usize = 8 << 20;

/// Whether a write was begun or given up: exactly one of the two happens.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteState(Arc<AtomicU8>);

const BEGUN: u8 = 1;
const GIVEN_UP: u8 = 2;

impl WriteState {
    /// Begins, unless it was given up.
    pub fn begin(&self) -> bool {
        self.0.compare_exchange(0, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives up, unless it was begun.
    pub fn give_up(&self) -> bool {
        self.0.compare_exchange(0, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A place among those that may be under way at once. Its caller has it, and what waits here too: a write that was given
/// up takes room until its turn has come.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// A write that waits for its batch.
pub(crate) struct PendingWrite {
    pub request: Option<Request>,
    pub run: WriteFn,
    pub cancel: Cancel,
    pub state: WriteState,
    pub reply: oneshot::Sender<Result<Written, WireError>>,
    pub _place: Place,
}

/// An order that waits to be proposed: an entry that every replica, the leader too, executes when it is committed.
pub(crate) struct PendingOrder {
    pub body: Body,
    pub state: WriteState,
    pub reply: oneshot::Sender<Result<LogIndex, WireError>>,
    /// What the replica orders by itself takes nobody's place.
    pub _place: Option<Place>,
}

impl PendingOrder {
    /// One that nobody waits for.
    pub fn unasked(body: Body) -> Self {
        Self { body, state: WriteState::default(), reply: oneshot::channel().0, _place: None }
    }
}

/// A committed entry.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

impl From<Entry> for Committed {
    fn from(entry: Entry) -> Self {
        Self { index: entry.index, term: entry.term, data: entry.data }
    }
}

/// Why an engine loop ends.
#[derive(Clone, Debug)]
pub(crate) enum Closing {
    /// The node shuts down.
    ShutDown,
    /// The replica can't go on.
    Stopped(String),
}

/// What waits for a group's engine loop.
pub(crate) struct Inbox {
    pub writes: VecDeque<PendingWrite>,
    pub orders: VecDeque<PendingOrder>,
    pub standing: Standing,
    /// The last committed index. Entries up to it that aren't in `entries` are in the log.
    pub committed: u64,
    entries: VecDeque<Committed>,
    entry_bytes: usize,
    /// An image that was put beside the database, and is to take its place before anything else is done.
    pub install: Option<Cut>,
    /// The answer to the proposal that is under way: its index, or that it was refused.
    pub proposal: Option<Option<u64>>,
    pub closing: Option<Closing>,
}

impl Inbox {
    pub fn new(committed: u64) -> Self {
        Self {
            writes: VecDeque::new(),
            orders: VecDeque::new(),
            standing: Standing { role: StateRole::Follower, term: 0, leader: None, first: None },
            committed,
            entries: VecDeque::new(),
            entry_bytes: 0,
            install: None,
            proposal: None,
            closing: None,
        }
    }

    /// Takes committed entries, in order.
    pub fn push(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            // A gap is filled from the log. Entries after a gap would only wait behind it.
            let follows =
                self.entries.back().map_or(entry.index == self.committed + 1, |e| e.index + 1 == entry.index);
            self.committed = self.committed.max(entry.index);
            if follows && self.entry_bytes + entry.data.len() <= ENTRY_BYTES {
                self.entry_bytes += entry.data.len();
                self.entries.push_back(entry.into());
            }
        }
    }

    /// An image stands for all entries up to here.
    pub fn install(&mut self, cut: Cut) {
        self.install = Some(cut);
        self.entries.clear();
        self.entry_bytes = 0;
        self.committed = self.committed.max(cut.index);
    }

    /// The committed entries after `applied` that are here, up to about `max_bytes`; none if they're in the log.
    pub fn take(&mut self, applied: u64, max_bytes: usize) -> Vec<Committed> {
        while self.entries.front().is_some_and(|entry| entry.index <= applied) {
            self.pop();
        }
        let mut taken: Vec<Committed> = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            let next = taken.last().map_or(applied, |last| last.index) + 1;
            if entry.index != next || (bytes > 0 && bytes + entry.data.len() > max_bytes) {
                break;
            }
            bytes += entry.data.len();
            taken.extend(self.pop());
        }
        taken
    }

    fn pop(&mut self) -> Option<Committed> {
        let entry = self.entries.pop_front()?;
        self.entry_bytes -= entry.data.len();
        Some(entry)
    }
}
