//! Rehearsals: steps of transactions that aren't committed yet, run above what they have done before.
//!
//! An overlay goes in; its changes are made in a SQLite transaction that is never committed, a closure runs above them,
//! and what it changed comes out as one more chunk. The transaction stays open: as long as what comes next is the same
//! overlay's, it is **resident**, and only the closure is run. Everything else that the engine does undoes it first. A
//! closure that needn't see the overlay's changes is run without them, and undone at once.

use super::Engine;
use crate::changeset::ChangesetError;
use crate::connection::Cancel;
use crate::error::ReplicaError;
use crate::fault;
use crate::overlay::{self, Applied, Overlay, RehearsalFn};
use crate::replay::replay;
use crate::stage::unfit;
use bytes::Bytes;
use proto::{SqlState, WireError};

/// The overlay that the open SQLite transaction consists of.
pub(super) struct Resident {
    applied: Applied,
    term: u64,
}

impl Engine {
    /// The term of the leader whose rehearsal has left its overlay applied, if one has.
    pub fn resident_term(&self) -> Option<u64> {
        self.resident.as_ref().map(|resident| resident.term)
    }

    /// Whether this overlay is applied.
    pub fn is_resident(&self, overlay: &Overlay) -> bool {
        self.resident.as_ref().is_some_and(|resident| resident.applied.is(overlay))
    }

    /// Runs a closure above an overlay, or bare, and adds to the overlay what it changed. If it fails, the overlay is
    /// what it was.
    ///
    /// Nothing may be told of it before leadership is confirmed: it shows the rows that this replica takes for the
    /// group's.
    pub fn rehearse(
        &mut self,
        term: u64,
        (overlay, bare): (&Overlay, bool),
        run: RehearsalFn,
        cancel: &Cancel,
    ) -> Result<Result<Bytes, WireError>, ReplicaError> {
        debug_assert!(self.batch.is_none(), "an open batch is committed or rolled back first");
        let aside = bare && !(self.resident_term() == Some(term) && self.is_resident(overlay));
        let beneath = if aside { self.ground.clone() } else { overlay.clone() };
        if let Err(error) = self.lay(term, &beneath, cancel)? {
            return Ok(Err(error));
        }
        self.execute("/*replica*/ SAVEPOINT replica_rehearsal")?;
        self.connection.begin_capture().map_err(|e| self.stop(e))?;
        let outcome = self.stage(term, run, cancel)?;
        if self.connection.is_autocommit() {
            // It does so when a statement is interrupted, or finds no memory.
            self.connection.end_capture();
            self.resident = None;
            let undone = || WireError::internal("SQLite undid the transaction");
            return Ok(Err(outcome.err().unwrap_or_else(undone)));
        }
        let result = match outcome {
            Ok(output) => self.add(overlay, aside, output, cancel)?,
            Err(error) => Err(error),
        };
        self.connection.end_capture();
        if result.is_err() || aside {
            self.execute("/*replica*/ ROLLBACK TO replica_rehearsal")?;
        }
        self.execute("/*replica*/ RELEASE replica_rehearsal")?;
        Ok(result)
    }

    /// Undoes the overlay that is applied, if one is.
    pub(super) fn lift(&mut self) -> Result<(), ReplicaError> {
        if self.resident.take().is_some() {
            self.execute("/*replica*/ ROLLBACK")?;
        }
        Ok(())
    }

    /// Has this overlay applied, and nothing else.
    fn lay(
        &mut self,
        term: u64,
        overlay: &Overlay,
        cancel: &Cancel,
    ) -> Result<Result<(), WireError>, ReplicaError> {
        if self.resident_term() == Some(term) && self.is_resident(overlay) {
            return Ok(Ok(()));
        }
        self.lift()?;
        let (chunks, version) = overlay.contents();
        let changeset = match overlay::merged(&chunks) {
            Ok(changeset) => changeset,
            Err(error) => return Ok(Err(error)),
        };
        self.follow(false)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        self.resident = Some(Resident { applied: Applied::new(overlay, version), term });
        if changeset.is_empty() {
            return Ok(Ok(()));
        }
        *self.hooks.running.lock() = Some(cancel.clone());
        let applied = replay(&self.connection, &mut self.shapes, &changeset);
        *self.hooks.running.lock() = None;
        let Err(error) = applied else { return Ok(Ok(())) };
        let error = match error {
            ChangesetError::Sqlite(error) if fault::is_machines(&error) => return Err(self.stop(error)),
            ChangesetError::Sqlite(error) => dialect::sqlite::error(error),
            error => unfit(&error),
        };
        if self.connection.is_autocommit() {
            self.resident = None;
        }
        self.lift()?;
        Ok(Err(error))
    }

    /// Adds to the overlay what was captured.
    fn add(
        &mut self,
        overlay: &Overlay,
        aside: bool,
        output: Bytes,
        cancel: &Cancel,
    ) -> Result<Result<Bytes, WireError>, ReplicaError> {
        let captured = self.connection.capture().map(|capture| capture.changeset());
        let chunk = captured.transpose().map_err(|e| self.stop(e))?.unwrap_or_default();
        if let Err(error) = self.check_size(overlay.bytes() + chunk.len()) {
            return Ok(Err(error));
        }
        let Some(version) = overlay.push(chunk, cancel) else {
            let gone = WireError::new(SqlState::QUERY_CANCELED, "nobody waits for it any more");
            return Ok(Err(gone));
        };
        if let Some(resident) = self.resident.as_mut().filter(|_| !aside) {
            resident.applied.version = version;
        }
        Ok(Ok(output))
    }
}
