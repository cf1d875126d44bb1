//! Committed entries, as a follower applies them.
//!
//! Several entries share one SQLite transaction; the applied index moves with it. Every check that fails stops the
//! replica: it must not serve rows that may differ from the others'.

use super::Engine;
use crate::changeset::{self, ChangesetError};
use crate::entry::{Batch, Body, Entry, Transaction};
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::WireError;

/// An order's answer, at its index.
pub(crate) type Answer = (u64, Result<u64, WireError>);

/// What was applied of the entries that were given.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// How many.
    pub count: usize,
    /// What the orders among them have answered.
    pub answers: Vec<Answer>,
    /// The last of them is a check: the database is in the state that it is for.
    pub check: bool,
}

impl Engine {
    /// Applies entries in their order, the first of which follows the applied index. Empty data is Raft's own: it only
    /// moves the index. It stops after a check, and before and after a replay, and is to be called again for the rest.
    pub fn apply(&mut self, entries: &[(u64, Bytes)]) -> Result<Applied, ReplicaError> {
        debug_assert!(self.batch.is_none(), "an open batch is committed or rolled back first");
        let mut applied = Applied::default();
        if entries.is_empty() {
            return Ok(applied);
        }
        self.lift()?;
        self.follow(true)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        let mut floor = self.floor;
        for (position, (index, data)) in entries.iter().enumerate() {
            let expected = self.applied + 1 + position as u64;
            if *index != expected {
                return Err(self.damaged(format!("entry {index} came where {expected} was expected")));
            }
            if data.is_empty() {
                applied.count += 1;
                continue;
            }
            let entry = Entry::read(data.clone())
                .map_err(|what| self.damaged(format!("log index {index}: {what}")))?;
            let is_replay = matches!(entry.body, Some(Body::Replay(_)));
            if is_replay && applied.count > 0 {
                // It has a transaction to itself.
                break;
            }
            applied.count += 1;
            floor = floor.max(entry.floor);
            match entry.body {
                Some(Body::Batch(batch)) => self.apply_batch(*index, &batch)?,
                Some(Body::Schema(schema)) => {
                    applied.answers.push((*index, self.apply_schema(*index, &schema)?))
                }
                Some(Body::Hold(hold)) => {
                    applied.answers.push((*index, self.apply_hold(*index, &hold, floor)?))
                }
                Some(Body::Replay(replay)) => {
                    applied.answers.push((*index, self.apply_replay(*index, &replay)?));
                    break;
                }
                Some(Body::Check(_)) => {
                    applied.check = true;
                    break;
                }
                None => {}
            }
        }
        let last = self.applied + applied.count as u64;
        self.write_applied(last, floor)?;
        self.execute("/*replica*/ COMMIT")?;
        self.is_applied(last, floor);
        Ok(applied)
    }

    fn apply_batch(&mut self, index: u64, batch: &Batch) -> Result<(), ReplicaError> {
        for transaction in &batch.transactions {
            self.apply_transaction(transaction).map_err(|error| match error {
                ReplicaError::Damaged { path, message } => {
                    ReplicaError::Damaged { path, message: format!("log index {index}: {message}") }
                }
                error => error,
            })?;
        }
        batch.forgets.iter().try_for_each(|forget| self.forget(forget))
    }

    /// Makes the changes that a transaction made elsewhere, with foreign keys and triggers off.
    pub(super) fn apply_transaction(&mut self, transaction: &Transaction) -> Result<(), ReplicaError> {
        if !transaction.changeset.is_empty() {
            let applied = changeset::apply(&self.connection, &mut self.shapes, &transaction.changeset);
            applied.map_err(|error| match error {
                ChangesetError::Sqlite(error) => self.stop(error),
                ChangesetError::Diverged(why) | ChangesetError::Altered(why) => self.damaged(why),
            })?;
        }
        match &transaction.request {
            Some(request) => self.remember(request, &transaction.output),
            None => Ok(()),
        }
    }
}
