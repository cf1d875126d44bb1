//! What waits for a group's engine loop.

use super::lag::Arrivals;
use crate::connection::Cancel;
use crate::consensus::{Delivered, Standing};
use crate::entry::{Body, Request};
use crate::log::Cut;
use crate::overlay::{Overlay, RehearsalFn, Rehearsed};
use crate::write::{WriteFn, Written};
use bytes::Bytes;
use proto::{LogIndex, WireError};
use raft::eraftpb::{ConfState, Entry};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Committed entries beyond this many bytes aren't kept here, but read from the log when their turn comes.
const ENTRY_BYTES: usize = 8 << 20;
/// So many bytes of committed entries are applied even if nobody waits for it.
const LOAD_BYTES: usize = 256 << 10;

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

/// A rehearsal that waits for its turn.
pub(crate) struct PendingRehearsal {
    pub overlay: Overlay,
    pub bare: bool,
    pub run: RehearsalFn,
    pub cancel: Cancel,
    pub state: WriteState,
    pub reply: oneshot::Sender<Result<Rehearsed, WireError>>,
    pub _place: Place,
}

/// An order that waits to be proposed: an entry that every replica, the leader too, executes when it is committed.
pub(crate) struct PendingOrder {
    pub body: Body,
    /// Only in this term.
    pub term: Option<u64>,
    pub state: WriteState,
    pub reply: oneshot::Sender<Result<LogIndex, WireError>>,
    /// What the replica orders by itself takes nobody's place.
    pub _place: Option<Place>,
}

impl PendingOrder {
    /// One that nobody waits for.
    pub fn unasked(body: Body) -> Self {
        Self { body, term: None, state: WriteState::default(), reply: oneshot::channel().0, _place: None }
    }
}

/// Those who wait to write or to rehearse.
pub(crate) struct Callers {
    writes: Vec<PendingWrite>,
    orders: Vec<PendingOrder>,
    rehearsals: Vec<PendingRehearsal>,
}

impl Callers {
    /// Tells all of them that nothing was done.
    pub fn refuse(self, error: &WireError) {
        for write in self.writes {
            drop(write.reply.send(Err(error.clone())));
        }
        for order in self.orders {
            drop(order.reply.send(Err(error.clone())));
        }
        for rehearsal in self.rehearsals {
            drop(rehearsal.reply.send(Err(error.clone())));
        }
    }
}

/// A committed entry.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub index: u64,
    pub term: u64,
    /// Nothing for an entry of Raft's own.
    pub data: Bytes,
    /// The group's configuration from here on, if the entry changed it.
    pub conf_state: Option<ConfState>,
}

impl Committed {
    fn new(entry: Entry, conf_state: Option<ConfState>) -> Self {
        let data = if conf_state.is_some() { Bytes::new() } else { entry.data };
        Self { index: entry.index, term: entry.term, data, conf_state }
    }
}

/// Why an engine loop ends.
#[derive(Clone, Debug)]
pub(crate) enum Closing {
    /// The node shuts down.
    ShutDown,
    /// The replica can't go on.
    Stopped(String),
    /// The replica was removed.
    Removed,
}

/// Which callers a loop that waits is woken for. Consensus wakes it always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Heed {
    #[default]
    All,
    /// Who rehearses, or orders, or is one of so many that write.
    Steps(usize),
    /// Nobody: a batch is open.
    Nobody,
}

/// What waits for a group's engine loop.
pub(crate) struct Inbox {
    pub writes: VecDeque<PendingWrite>,
    pub orders: VecDeque<PendingOrder>,
    pub rehearsals: VecDeque<PendingRehearsal>,
    pub standing: Standing,
    /// The last committed index. Entries up to it that aren't in `entries` are in the log.
    pub committed: u64,
    /// When those came of them that the database lacked when it was last looked.
    pub arrivals: Arrivals,
    entries: VecDeque<Committed>,
    entry_bytes: usize,
    /// An image that was put beside the database, and is to take its place before anything else is done.
    pub install: Option<Cut>,
    /// The configurations that committed entries have made and that aren't applied yet. The log has only the changes.
    conf_states: BTreeMap<u64, ConfState>,
    /// Whether something is being executed that isn't in the log yet.
    pub busy: bool,
    /// Whether what is committed is to be applied now; else more is to come first.
    pub due: bool,
    /// Whether the engine has callers that wait for entries to be committed.
    pub expectant: bool,
    /// The answer to the proposal that is under way: its index, or that it was refused.
    pub proposal: Option<Option<u64>>,
    pub closing: Option<Closing>,
    pub heed: Heed,
}

impl Inbox {
    pub fn new(committed: u64) -> Self {
        Self {
            writes: VecDeque::new(),
            orders: VecDeque::new(),
            rehearsals: VecDeque::new(),
            standing: Standing::default(),
            committed,
            arrivals: Arrivals::default(),
            entries: VecDeque::new(),
            entry_bytes: 0,
            install: None,
            conf_states: BTreeMap::new(),
            busy: false,
            due: false,
            expectant: false,
            proposal: None,
            closing: None,
            heed: Heed::All,
        }
    }

    /// Whether the loop, if it waits, is to be woken for a caller that has come.
    pub fn is_heeded(&self) -> bool {
        match self.heed {
            Heed::All => true,
            Heed::Steps(writes) => {
                !(self.rehearsals.is_empty() && self.orders.is_empty()) || self.writes.len() >= writes
            }
            Heed::Nobody => false,
        }
    }

    /// Takes out all who wait to write or to rehearse.
    pub fn take_callers(&mut self) -> Callers {
        Callers {
            writes: self.writes.drain(..).collect(),
            orders: self.orders.drain(..).collect(),
            rehearsals: self.rehearsals.drain(..).collect(),
        }
    }

    /// Takes committed entries, in order, to be applied at once or when there is reason to. Says whether there is.
    pub fn push(&mut self, delivered: Vec<Delivered>, at_once: bool, now: Duration) -> bool {
        for Delivered { entry, conf_state } in delivered {
            if let Some(conf_state) = &conf_state {
                self.conf_states.insert(entry.index, conf_state.clone());
            }
            // A gap is filled from the log. Entries after a gap would only wait behind it.
            let follows =
                self.entries.back().map_or(entry.index == self.committed + 1, |e| e.index + 1 == entry.index);
            self.committed = self.committed.max(entry.index);
            if follows && self.entry_bytes + entry.data.len() <= ENTRY_BYTES {
                self.entry_bytes += entry.data.len();
                self.entries.push_back(Committed::new(entry, conf_state));
            }
        }
        self.arrivals.note(self.committed, now);
        self.due |= at_once || self.expectant || self.entry_bytes >= LOAD_BYTES;
        self.due
    }

    /// An image stands for all entries up to here.
    pub fn install(&mut self, cut: Cut) {
        self.install = Some(cut);
        self.entries.clear();
        self.entry_bytes = 0;
        self.committed = self.committed.max(cut.index);
    }

    /// The committed entries after `applied` that are here, up to `last` and about `max_bytes`; none if they're in the log.
    pub fn take(&mut self, applied: u64, last: u64, max_bytes: usize) -> Vec<Committed> {
        while self.entries.front().is_some_and(|entry| entry.index <= applied) {
            self.pop();
        }
        self.conf_states = self.conf_states.split_off(&(applied + 1));
        let mut taken: Vec<Committed> = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            let next = taken.last().map_or(applied, |last| last.index) + 1;
            let is_over = bytes > 0 && bytes + entry.data.len() > max_bytes;
            if entry.index != next || entry.index > last || is_over {
                break;
            }
            bytes += entry.data.len();
            taken.extend(self.pop());
        }
        taken
    }

    /// Committed entries as they were read from the log, with the configurations that they made.
    pub fn complete(&self, entries: Vec<Entry>) -> Vec<Committed> {
        let complete = |entry: Entry| {
            let conf_state = self.conf_states.get(&entry.index).cloned();
            Committed::new(entry, conf_state)
        };
        entries.into_iter().map(complete).collect()
    }

    /// How many bytes of committed entries are kept here.
    #[cfg(test)]
    pub fn entry_bytes(&self) -> usize {
        self.entry_bytes
    }

    fn pop(&mut self) -> Option<Committed> {
        let entry = self.entries.pop_front()?;
        self.entry_bytes -= entry.data.len();
        Some(entry)
    }
}
