//! What a caller's closure has at hand while it runs on the writer connection.
//!
//! It must never know whether what the closure does is proposed next, or rehearsed and undone: all that differs is
//! whether its changes were captured for themselves.

use crate::changeset::{ChangesetError, Shapes};
use crate::connection::Hooks;
use crate::entry::Request;
use crate::fault;
use crate::overlay::altered;
use crate::replay::replay;
use crate::session::{Capture, RowChange};
use bytes::Bytes;
use proto::{LogIndex, RequestId, SqlState, Term, WireError};
use rusqlite::Connection;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::Ordering;

/// What a closure on the writer has at hand: the connection, which it derefs to, and what that alone can't do.
pub struct Stage<'a> {
    connection: &'a Connection,
    term: Term,
    applied: LogIndex,
    hooks: &'a Hooks,
    shapes: RefCell<&'a mut Shapes>,
    /// What has been changed since the closure began, if that is captured by itself.
    capture: Option<Capture<'a>>,
    /// The requests that the closure answers beside its own, and what they are told.
    told: RefCell<Vec<(Request, Bytes)>>,
    spoiled: Cell<Option<Spoiled>>,
}

/// What a closure that has succeeded leaves beside its changes.
#[derive(Debug)]
pub(crate) struct Did {
    /// What it gave.
    pub output: Bytes,
    /// The requests that it answers beside its own, in their order, and what they are told.
    pub told: Vec<(Request, Bytes)>,
}

/// Why nothing of what a closure did may stay, whatever it says itself.
#[derive(Debug)]
enum Spoiled {
    /// A fault of this machine.
    Fault(rusqlite::Error),
    /// A changeset was applied in part.
    Applied(WireError),
}

impl<'a> Stage<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        (term, applied): (Term, LogIndex),
        hooks: &'a Hooks,
        shapes: &'a mut Shapes,
        capture: Option<Capture<'a>>,
    ) -> Self {
        let shapes = RefCell::new(shapes);
        let (told, spoiled) = Default::default();
        Self { connection, term, applied, hooks, shapes, capture, told, spoiled }
    }

    /// The writer connection.
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// The term in which the closure runs: its replica leads in it, and has applied its first entry.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last entry that the replica has applied. What the closure does is in the log later than that, if it ever is.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Another number whenever the schema may have changed since the replica was opened.
    pub fn schema_age(&self) -> u64 {
        self.shapes.borrow().age()
    }

    /// What a rehearsal's closure has changed since it began, as a changeset ([`changes`] lists its rows). Only in a
    /// rehearsal: the writes of a batch are captured as one.
    pub fn changes(&self) -> Result<Bytes, WireError> {
        let Some(capture) = self.capture else {
            return Err(WireError::internal("the writes of a batch aren't captured one by one"));
        };
        self.unguarded(|| capture.changeset()).map_err(|error| self.failed(error))
    }

    /// The rows that a rehearsal's closure has updated since it began, by table and rowid: those, too, that it updated to
    /// what they were, which [`Self::changes`] doesn't have. Some of them may be gone by now.
    pub fn updated(&self) -> HashMap<String, Vec<i64>> {
        self.hooks.updates.rows()
    }

    /// How often a row was updated since then.
    pub fn count_updated(&self) -> usize {
        self.hooks.updates.count()
    }

    /// Has this request be answered by the write, too, as if it had been a write of its own: whoever repeats it is told
    /// `output`, and it is in the same log entry. Requests of its router below `settled` need no answer any more. One that
    /// has an answer keeps it, and one that is forgotten already stays so. If the write fails, nothing is remembered. Only
    /// in a write; a rehearsal leaves nothing. Outputs count towards the size that the write may have.
    pub fn remember(&self, request: RequestId, settled: u64, output: Bytes) -> Result<(), WireError> {
        if self.capture.is_some() {
            return Err(WireError::internal("a rehearsal answers no requests"));
        }
        self.told.borrow_mut().push((Request::new(request, settled), output));
        Ok(())
    }

    /// Makes a changeset's changes, and nothing beside them: foreign keys and triggers don't act. A row that isn't as
    /// the changeset has it is XX001, a table that isn't 40001; the closure fails then, whatever it says itself. No
    /// statement may be under way.
    pub fn apply(&self, changeset: &[u8]) -> Result<(), WireError> {
        if changeset.is_empty() {
            return Ok(());
        }
        let mut shapes = self.shapes.borrow_mut();
        let applied = self.unguarded(|| replay(self.connection, &mut shapes, changeset));
        applied.map_err(|error| {
            let error = match error {
                ChangesetError::Sqlite(error) => self.failed(error),
                error => unfit(&error),
            };
            let spoiled = self.spoiled.take().unwrap_or_else(|| Spoiled::Applied(error.clone()));
            self.spoiled.set(Some(spoiled));
            error
        })
    }

    /// What comes of the closure, which gave this. The outer error is a fault of this machine.
    pub(crate) fn end(
        self,
        gave: Result<Bytes, WireError>,
    ) -> Result<Result<Did, WireError>, rusqlite::Error> {
        match self.spoiled.take() {
            Some(Spoiled::Fault(fault)) => Err(fault),
            Some(Spoiled::Applied(error)) => Ok(gave.and(Err(error))),
            None => Ok(gave.map(|output| Did { output, told: self.told.into_inner() })),
        }
    }

    fn failed(&self, error: rusqlite::Error) -> WireError {
        let error = fault::explained(self.connection, error);
        let told = WireError::new(SqlState::IO_ERROR, error.to_string());
        if fault::is_machines(&error) {
            self.spoiled.set(Some(Spoiled::Fault(error)));
            return told;
        }
        dialect::sqlite::error(error)
    }

    /// Does what the closure itself couldn't.
    fn unguarded<T>(&self, act: impl FnOnce() -> T) -> T {
        let guarded = self.hooks.guarded.swap(false, Ordering::Relaxed);
        let done = act();
        self.hooks.guarded.store(guarded, Ordering::Relaxed);
        done
    }
}

impl Deref for Stage<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// What a transaction hears whose changes don't fit.
pub(crate) fn unfit(error: &ChangesetError) -> WireError {
    match error {
        ChangesetError::Altered(why) => altered(why),
        error => WireError::new(
            SqlState::DATA_CORRUPTED,
            format!("a transaction's changes don't fit what is committed: {error}"),
        ),
    }
}

/// The rows that a changeset changes. Generated columns aren't among theirs.
pub fn changes(changeset: &[u8]) -> Result<Vec<RowChange>, WireError> {
    crate::session::changes(changeset).map_err(dialect::sqlite::error)
}
