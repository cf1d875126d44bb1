//! Rehearsals: steps of transactions that aren't committed yet, run above what they have done before.
//!
//! An overlay goes in; its changes are made in a SQLite transaction that is never committed, a closure runs above them,
//! and what it changed comes out as one more chunk. The transaction stays open: as long as what comes next is the same
//! overlay's, it is **resident**, and only the closure is run. A small one lies in a savepoint, so that another's place is
//! made without a transaction of its own; of a big one SQLite would keep each page that it changes twice. Everything else
//! that the engine does undoes it first. A closure that needn't see the overlay's changes is run without them, and undone
//! at once.

use super::Engine;
use crate::changeset::ChangesetError;
use crate::connection::Cancel;
use crate::error::ReplicaError;
use crate::fault;
use crate::overlay::{self, Applied, Laid, Overlay, RehearsalFn};
use crate::replay::replay;
use crate::stage::unfit;
use crate::staging::{self, Staging, Unread};
use bytes::Bytes;
use proto::{SqlState, WireError};

/// Why an overlay isn't applied.
enum Unlaid {
    Sqlite(rusqlite::Error),
    Unfit(WireError),
}

/// An overlay of which no more is in memory is a small one, if nothing of it is staged.
const SMALL_BYTES: usize = 16 << 10;

/// A transaction is emptied no more often than this: each page that was changed in it counts as changed until it ends.
const MOST_USES: u32 = 1000;

/// The open SQLite transaction that is never committed.
pub(super) struct Stand {
    /// The term of the leader whose rehearsals it is for.
    term: u64,
    resident: Option<Resident>,
    /// How often it was emptied.
    uses: u32,
}

/// The overlay that is applied.
struct Resident {
    applied: Applied,
    /// Whether it lies in a savepoint; else it is all of the transaction.
    is_small: bool,
}

impl Engine {
    /// The term of the leader whose rehearsal has left a transaction open, if one has.
    pub fn resident_term(&self) -> Option<u64> {
        self.stand.as_ref().map(|stand| stand.term)
    }

    /// Whether this overlay is applied, in the way in which it should be.
    pub fn is_resident(&self, overlay: &Overlay) -> bool {
        let fits = |resident: &Resident| !resident.is_small || overlay.bytes_in_memory() <= SMALL_BYTES;
        self.resident().is_some_and(|resident| resident.applied.is(overlay) && fits(resident))
    }

    fn resident(&self) -> Option<&Resident> {
        self.stand.as_ref()?.resident.as_ref()
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
        if aside {
            self.clear(term)?;
        } else if let Err(error) = self.lay(term, overlay, cancel)? {
            return Ok(Err(error));
        }
        self.execute("/*replica*/ SAVEPOINT replica_rehearsal")?;
        self.connection.begin_capture();
        let outcome = self.stage(term, run, cancel)?;
        if self.connection.is_autocommit() {
            // It does so when a statement is interrupted, or finds no memory.
            self.connection.end_capture();
            self.stand = None;
            let undone = || WireError::internal("SQLite undid the transaction");
            return Ok(Err(outcome.err().unwrap_or_else(undone)));
        }
        let result = match outcome {
            Ok(did) => self.add(overlay, did.output, cancel)?,
            Err(error) => Err(error),
        };
        self.connection.end_capture();
        if result.is_err() || aside {
            self.execute("/*replica*/ ROLLBACK TO replica_rehearsal")?;
        }
        self.execute("/*replica*/ RELEASE replica_rehearsal")?;
        // One that has outgrown its savepoint: SQLite would keep in memory what it takes to undo it.
        let outgrown = |resident: &Resident| resident.is_small && overlay.bytes_in_memory() > SMALL_BYTES;
        if !aside && self.resident().is_some_and(outgrown) {
            self.lift()?;
        }
        Ok(result)
    }

    /// Undoes the overlay that is applied, if one is, and ends the transaction.
    pub(super) fn lift(&mut self) -> Result<(), ReplicaError> {
        if self.stand.take().is_some() {
            self.execute("/*replica*/ ROLLBACK")?;
        }
        Ok(())
    }

    /// Has a transaction open with nothing in it.
    fn clear(&mut self, term: u64) -> Result<(), ReplicaError> {
        let stand = self.stand.as_mut().filter(|stand| stand.term == term && stand.uses < MOST_USES);
        if let Some(stand) = stand
            && stand.resident.as_ref().is_none_or(|resident| resident.is_small)
        {
            stand.uses += 1;
            if stand.resident.take().is_some() {
                self.execute("/*replica*/ ROLLBACK TO replica_overlay")?;
                self.execute("/*replica*/ RELEASE replica_overlay")?;
            }
            return Ok(());
        }
        self.lift()?;
        self.follow(false)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        self.stand = Some(Stand { term, resident: None, uses: 0 });
        Ok(())
    }

    /// Refuses what makes an overlay too big. What is in memory must fit into one log entry, or several of which each does.
    fn check_overlay(&self, overlay: &Overlay, more: usize) -> Result<(), WireError> {
        self.check_size(overlay.bytes_in_memory() + more)?;
        let (bytes, limit) = (overlay.bytes() + more, self.limits.staged_bytes);
        if !overlay.may_be_staged() || bytes as u64 <= limit {
            return Ok(());
        }
        Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "transaction is too big")
            .with_detail(format!("It changes {bytes} bytes on a shard; it may change {limit}."))
            .with_hint("Split it into smaller transactions."))
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
        let laid = overlay.contents();
        let changeset = match overlay::merged(&laid.chunks) {
            Ok(changeset) => changeset,
            Err(error) => return Ok(Err(error)),
        };
        self.clear(term)?;
        let bytes: usize = laid.chunks.iter().map(Bytes::len).sum();
        let is_small = laid.pieces.is_empty() && bytes <= SMALL_BYTES;
        if is_small {
            self.execute("/*replica*/ SAVEPOINT replica_overlay")?;
        }
        if let Some(stand) = &mut self.stand {
            let applied = Applied::new(overlay, laid.version);
            stand.resident = Some(Resident { applied, is_small });
        }
        *self.hooks.running.lock() = Some(cancel.clone());
        let applied = self.lay_all(&laid, &changeset);
        *self.hooks.running.lock() = None;
        let error = match applied {
            Ok(()) => return Ok(Ok(())),
            Err(Unlaid::Sqlite(error)) if fault::is_machines(&error) => return Err(self.stop(error)),
            Err(Unlaid::Sqlite(error)) => dialect::sqlite::error(error),
            Err(Unlaid::Unfit(error)) => error,
        };
        if self.connection.is_autocommit() {
            self.stand = None;
        }
        self.lift()?;
        Ok(Err(error))
    }

    /// Makes the changes of an overlay: those of its pieces, then this changeset's.
    fn lay_all(&mut self, laid: &Laid, changeset: &[u8]) -> Result<(), Unlaid> {
        let fits = |error| match error {
            ChangesetError::Sqlite(error) => Unlaid::Sqlite(error),
            error => Unlaid::Unfit(unfit(&error)),
        };
        if let Some(Staging { table, owner }) = laid.staging {
            for (n, count) in laid.pieces.rows() {
                let owner = (table, owner.router.0, owner.sequence);
                let chunks =
                    staging::read(&self.connection, owner, (n, count)).map_err(|error| match error {
                        Unread::Sqlite(error) => Unlaid::Sqlite(error),
                        Unread::Gone(why) => Unlaid::Unfit(WireError::new(SqlState::DATA_CORRUPTED, why)),
                    })?;
                let piece = overlay::merged(&chunks).map_err(Unlaid::Unfit)?;
                replay(&self.connection, &mut self.shapes, &piece).map_err(fits)?;
            }
        }
        if changeset.is_empty() {
            return Ok(());
        }
        replay(&self.connection, &mut self.shapes, changeset).map_err(fits)
    }

    /// Adds to the overlay what was captured.
    fn add(
        &mut self,
        overlay: &Overlay,
        output: Bytes,
        cancel: &Cancel,
    ) -> Result<Result<Bytes, WireError>, ReplicaError> {
        let captured = self.connection.capture().map(|capture| capture.changeset());
        let chunk = captured.transpose().map_err(|e| self.stop(e))?.unwrap_or_default();
        if let Err(error) = self.check_overlay(overlay, chunk.len()) {
            return Ok(Err(error));
        }
        let Some(version) = overlay.push(chunk, cancel) else {
            let gone = WireError::new(SqlState::QUERY_CANCELED, "nobody waits for it any more");
            return Ok(Err(gone));
        };
        if let Some(Stand { resident: Some(resident), .. }) = &mut self.stand {
            resident.applied.version = version;
        }
        Ok(Ok(output))
    }
}
