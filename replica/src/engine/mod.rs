//! The engine: a SQLite writer connection as a synchronous state machine.
//!
//! Writes and committed log entries go in, log entries and replies come out:
//!
//! 1. A leader gathers a batch: [`Engine::begin`], [`Engine::run`] for each write, [`Engine::seal`] for the entry.
//! 2. It is proposed. If Raft commits it: [`Engine::commit`] with its index. If leadership is lost first:
//!    [`Engine::rollback`], and what Raft commits comes as on any follower.
//! 3. Steps of transactions that are still open are rehearsed on a leader between batches: [`Engine::rehearse`].
//! 4. A follower gets committed entries: [`Engine::apply`].
//!
//! The applied index, Raft's ConfState, remembered requests and schema results are rows of the same database, written
//! in the same transactions as what they describe. An error of an `Engine` method means that the replica must stop:
//! it isn't the request's fault, and going on could diverge from the others. It must never know a thread, a socket, a
//! clock, or who leads.

mod apply;
mod batch;
mod checkpoint;
mod holds;
mod open;
mod rehearsal;
#[cfg(test)]
mod rehearsal_tests;
mod replay;
#[cfg(test)]
mod replay_tests;
mod replayed;
#[cfg(test)]
mod request_tests;
pub(crate) mod requests;
mod schema;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wal_tests;

pub(crate) use apply::Answer;
pub(crate) use batch::{Outcome, Ran};
pub(crate) use checkpoint::{Checkpointed, Pressure};
pub use replayed::{Replayed, replayed, replayed_piece};
pub use schema::schema_outcome;

use crate::changeset::{self, Shapes};
use crate::connection::Hooks;
use crate::entry::{Forget, Request};
use crate::error::ReplicaError;
use crate::fault;
use crate::session::Capturing;
use bytes::Bytes;
use raft::eraftpb::ConfState;
use rehearsal::Stand;
use requests::Routers;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What bounds an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many bytes one transaction may put into the log.
    pub transaction_bytes: usize,
    /// How many bytes an overlay may have that may be staged.
    pub staged_bytes: u64,
    /// A batch of this many bytes is full.
    pub batch_bytes: usize,
    /// A WAL of this many bytes is due for a checkpoint.
    pub checkpoint_bytes: u64,
    /// A WAL of this many bytes is to be emptied, though new readers wait for it.
    pub hold_bytes: u64,
    /// A WAL of this many bytes is worth more than the reads that keep it from being emptied.
    pub end_bytes: u64,
    /// For how long what a silent router was told is remembered.
    pub remember_for: Duration,
    /// How many results of one router are remembered, whatever it says.
    pub remember_rows: u64,
    /// And how many bytes of them.
    pub remember_bytes: u64,
}

/// One replica's writer connection and what stands on it.
pub(crate) struct Engine {
    path: PathBuf,
    connection: Capturing,
    hooks: Hooks,
    limits: Limits,
    applied: u64,
    floor: u64,
    conf_state: ConfState,
    /// Configurations that aren't written yet, each at the index of the entry that made it.
    reconfigured: BTreeMap<u64, ConfState>,
    holds: BTreeMap<String, u64>,
    shapes: Shapes,
    batch: Option<OpenBatch>,
    /// The open SQLite transaction of rehearsals. Never beside a batch.
    stand: Option<Stand>,
    following: bool,
    checkpointed: Checkpointed,
    routers: Routers,
    page_bytes: u64,
    /// How long the database's file was after the last checkpoint.
    file_bytes: u64,
}

/// A batch whose SQLite transaction is open.
#[derive(Default)]
struct OpenBatch {
    /// The term in which its writes run.
    term: u64,
    /// Its named writes, and what their callers will be told.
    requests: Vec<(Request, Bytes)>,
    bytes: usize,
    forgets: Vec<Forget>,
    /// What its entry says that every voter has.
    floor: u64,
}

impl Engine {
    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last index whose effects are committed in the database.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Who is in the group, at the applied index.
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// Opens the database anew, after `swap` has put another in its place. Nobody has it open meanwhile.
    pub fn replace(&mut self, swap: impl FnOnce() -> Result<(), ReplicaError>) -> Result<(), ReplicaError> {
        debug_assert!(self.batch.is_none(), "an open batch is rolled back first");
        self.lift()?;
        let nothing = Connection::open_in_memory().map_err(|e| self.stop(e))?;
        drop(std::mem::replace(&mut self.connection, Capturing::new(nothing)));
        swap()?;
        let directory = self.path.parent().expect("a database lies in a directory").to_owned();
        match Self::open(&directory, self.limits)? {
            Some(engine) => *self = engine,
            None => return Err(self.damaged("an image took its place that isn't a replica's")),
        }
        Ok(())
    }

    /// Who is in the group from this index on. It is written together with the applied index that covers it.
    pub fn reconfigure(&mut self, index: u64, conf_state: ConfState) {
        self.reconfigured.insert(index, conf_state);
    }

    fn stop(&self, source: rusqlite::Error) -> ReplicaError {
        let source = fault::explained(&self.connection, source);
        ReplicaError::Sqlite { path: self.path.clone(), source }
    }

    fn damaged(&self, message: impl Into<String>) -> ReplicaError {
        ReplicaError::Damaged { path: self.path.clone(), message: message.into() }
    }

    /// The comment in these statements keeps them apart from a write's own in the statement cache: what is found there
    /// isn't authorized again.
    fn execute(&self, sql: &str) -> Result<(), ReplicaError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|e| self.stop(e))?;
        statement.execute([]).map_err(|e| self.stop(e))?;
        Ok(())
    }

    /// Foreign keys and triggers act on a leader and not on a follower. It costs something, so it's done only when the
    /// role changes.
    fn follow(&mut self, following: bool) -> Result<(), ReplicaError> {
        if self.following != following {
            changeset::let_act(&self.connection, !following).map_err(|e| self.stop(e))?;
            self.following = following;
        }
        Ok(())
    }

    fn write_applied(&self, index: u64, floor: u64) -> Result<(), ReplicaError> {
        let sql = "UPDATE replica_state SET applied = ?1, floor = max(floor, ?2)";
        let mut statement = self.connection.prepare_cached(sql).map_err(|e| self.stop(e))?;
        statement.execute([index.cast_signed(), floor.cast_signed()]).map_err(|e| self.stop(e))?;
        if let Some((_, conf_state)) = self.reconfigured.range(..=index).next_back() {
            let sql = "UPDATE replica_state SET conf_state = ?1";
            self.connection.execute(sql, [open::encode(conf_state)?]).map_err(|e| self.stop(e))?;
        }
        Ok(())
    }

    /// What was written with an applied index is committed.
    fn is_applied(&mut self, index: u64, floor: u64) {
        self.applied = index;
        self.floor = self.floor.max(floor);
        let later = self.reconfigured.split_off(&(index + 1));
        if let Some((_, conf_state)) = std::mem::replace(&mut self.reconfigured, later).pop_last() {
            self.conf_state = conf_state;
        }
    }
}
