//! Reading what a group has applied: the log's entries, for who does elsewhere what they did here.
//!
//! In goes a position, out come the entries after it that this replica has applied, as soon as there are any. They are
//! the same on every replica, so who reads can go on at another. It must never know what they are read for, nor keep
//! the log for anyone: that is a hold's affair ([`Replica::hold_log`]).

use crate::driver::{Closely, Shared};
use crate::entry::{self, Body, Request};
use crate::error::ReplicaError;
use crate::replica::Replica;
use bytes::Bytes;
use proto::{LogIndex, RequestId, RouterIncarnation, TransactionId, WireError, machine};
use raft::eraftpb::{Entry, EntryType};
use std::time::Instant;
use tokio::time::timeout_at;

/// One read gives no more entries than this, and no more bytes beyond the first.
const MOST_ENTRIES: u64 = 4096;
const MOST_BYTES: u64 = 1 << 20;

/// One entry of a group's log that is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// Where it stands.
    pub index: LogIndex,
    /// What it does.
    pub content: Content,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Transactions that ran in one batch.
    Batch {
        /// The rows that they changed ([`crate::changes`]), none of them empty. Mostly it is one for all.
        changesets: Vec<Bytes>,
        /// The named requests among them, in their order.
        answers: Vec<Answered>,
    },
    /// Statements that every replica ran, unless an entry of this id was there before. [`crate::schema_outcome`] has what came of
    /// it.
    Schema {
        /// The change's name: a job and its step.
        id: (u64, u32),
        /// SQL.
        statements: Vec<String>,
        /// Tables that had to be empty.
        require_empty: Vec<String>,
        /// Facts that were set with it.
        notes: Vec<(String, Bytes)>,
    },
    /// Changes that had been staged were made, unless the request was answered before or it failed.
    Replay {
        /// Its name, if it has one.
        answer: Option<Answered>,
        /// Whose changes.
        owner: TransactionId,
    },
    /// Nothing that concerns rows: Raft's own entries, holds and checks.
    Nothing,
}

/// A named request, and what it is told whenever it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its name.
    pub request: RequestId,
    /// Requests of its router below this sequence needed no answer any more.
    pub settled: u64,
    /// What it is told.
    pub output: Bytes,
}

/// Why the log couldn't be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TailError {
    /// This replica's log doesn't reach back so far: it was cut, or an image has taken its place. Another replica's may.
    #[error("the log has forgotten what comes after index {after}; it has what comes after {oldest}")]
    Forgotten {
        /// What was asked for.
        after: LogIndex,
        /// The oldest position after which it has everything.
        oldest: LogIndex,
    },
    /// This replica can't be asked now.
    #[error(transparent)]
    Refused(#[from] WireError),
}

impl Replica {
    /// The entries after an index that this replica has applied, in order and without a gap: some of them, at least one if
    /// there is one by the deadline. Whether it leads makes no difference. While somebody waits in here, a follower
    /// applies what is committed at once.
    ///
    /// What an entry came to is in every snapshot that is opened after it was given. 57P03 if the replica has stopped or
    /// is gone, 58030 or XX001 if its log can't be read.
    pub async fn entries_after(&self, index: LogIndex, deadline: Instant) -> Result<Vec<Logged>, TailError> {
        let shared = self.shared();
        if shared.applied() <= index.0 && !self.applies_more(index, deadline).await? {
            return Ok(Vec::new());
        }
        let shared = self.shared();
        machine::in_place(|| read(&shared, index))
    }

    /// As long as what is given is there, this replica applies at once what is committed, though it follows and nobody waits.
    pub fn follow_closely(&self) -> Closely {
        self.shared().follow_closely()
    }

    /// Waits until more is applied than this; whether it is by the deadline.
    async fn applies_more(&self, index: LogIndex, deadline: Instant) -> Result<bool, TailError> {
        let mut status = self.watch();
        let _closely = self.follow_closely();
        loop {
            status.mark_unchanged();
            let shared = self.shared();
            if shared.has_stopped() {
                return Err(shared.not_leader().into());
            }
            if shared.applied() > index.0 {
                return Ok(true);
            }
            match timeout_at(deadline.into(), status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(shared.not_leader().into()),
                Err(_) => return Ok(false),
            }
        }
    }
}

fn read(shared: &Shared, after: LogIndex) -> Result<Vec<Logged>, TailError> {
    let Some(log) = shared.log.upgrade() else { return Err(shared.not_leader().into()) };
    let group = shared.group.0;
    let forgotten = || -> Result<(), TailError> {
        let oldest = LogIndex(log.kept(group).map_err(WireError::from)?.cut.index);
        if oldest > after { Err(TailError::Forgotten { after, oldest }) } else { Ok(()) }
    };
    forgotten()?;
    let low = after.0 + 1;
    let high = shared.applied().min(after.0 + MOST_ENTRIES) + 1;
    let failed = match log.entries(group, low, high, Some(MOST_BYTES)) {
        Ok(entries) if entries.first().is_some_and(|entry| entry.index == low) => {
            return entries.into_iter().map(|entry| logged(shared, entry)).collect();
        }
        Ok(_) => ReplicaError::Damaged {
            path: log.path().to_owned(),
            message: format!("group {group}: entry {low} is applied, but not in the log"),
        },
        Err(error) => error,
    };
    // It may have been cut meanwhile, or the replica removed with all that the log has of it.
    if shared.has_stopped() {
        return Err(shared.not_leader().into());
    }
    forgotten()?;
    Err(TailError::Refused(failed.into()))
}

fn logged(shared: &Shared, entry: Entry) -> Result<Logged, TailError> {
    let index = LogIndex(entry.index);
    if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return Ok(Logged { index, content: Content::Nothing });
    }
    let body = entry::Entry::read(entry.data).map_err(|what| {
        let message = format!("log index {index}: {what}");
        WireError::from(ReplicaError::Damaged { path: shared.directory.clone(), message })
    })?;
    let content = match body.body {
        Some(Body::Batch(batch)) => {
            let (mut changesets, mut answers) = (Vec::new(), Vec::new());
            for transaction in batch.transactions {
                changesets.extend(Some(transaction.changeset).filter(|changeset| !changeset.is_empty()));
                answers.extend(transaction.request.map(|request| answered(request, transaction.output)));
            }
            Content::Batch { changesets, answers }
        }
        Some(Body::Schema(entry::Schema { job, step, statements, require_empty, notes })) => {
            let notes = notes.into_iter().map(|note| (note.key, note.value)).collect();
            Content::Schema { id: (job, step), statements, require_empty, notes }
        }
        Some(Body::Replay(replay)) => {
            let owner = TransactionId { router: RouterIncarnation(replay.router), sequence: replay.sequence };
            let answer = replay.request.map(|request| answered(request, replay.output));
            Content::Replay { answer, owner }
        }
        Some(Body::Hold(_) | Body::Check(_)) | None => Content::Nothing,
    };
    Ok(Logged { index, content })
}

fn answered(request: Request, output: Bytes) -> Answered {
    Answered { request: request.id(), settled: request.settled, output }
}
