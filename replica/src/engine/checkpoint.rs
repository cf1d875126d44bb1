//! The WAL belongs to the writer: it alone checkpoints, between batches.
//!
//! What a checkpoint made durable bounds how far the Raft log may be compacted: after a crash, SQLite reopens at some
//! state at or after it, and the log replays the rest.

use super::Engine;
use crate::connection::BUSY;
use crate::error::ReplicaError;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Whoever doesn't let go in so many times the usual patience won't in more.
const MOST_URGENT: u32 = 4;

/// What the WAL's length asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// Nothing.
    None,
    /// That it is copied into the database, as far as readers let it.
    Copy,
    /// That it is emptied, and new readers wait meanwhile.
    Empty,
    /// That it is emptied, and reads that take long and are in the way end.
    End,
}

/// What the last checkpoint found, and what is known to survive a crash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checkpointed {
    /// The applied index that was read before a checkpoint which synced the WAL.
    pub durable: u64,
    frames: i64,
    copied: i64,
}

impl Engine {
    /// The index whose effects survive a crash of the machine.
    pub fn durable(&self) -> u64 {
        self.checkpointed.durable
    }

    /// How long the WAL was after the last commit.
    pub fn wal_bytes(&self) -> u64 {
        self.hooks.wal_pages.load(Ordering::Relaxed) * self.page_bytes
    }

    /// How long the database's file was after the last checkpoint.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Looks how long the database's file is.
    pub(super) fn measure(&mut self) {
        if let Ok(metadata) = fs::metadata(&self.path) {
            self.file_bytes = metadata.len();
        }
    }

    /// What the WAL's length asks for. Whatever was tried is tried again once it has grown by as much as is due for a
    /// checkpoint, so that writers don't wait at each batch for a reader who stays.
    pub fn pressure(&self) -> Pressure {
        let bytes = self.wal_bytes();
        let grown = bytes.saturating_sub(self.hooks.wal_base.load(Ordering::Relaxed) * self.page_bytes);
        match bytes {
            _ if self.batch.is_some() || grown < self.limits.checkpoint_bytes => Pressure::None,
            bytes if bytes >= self.limits.end_bytes => Pressure::End,
            bytes if bytes >= self.limits.hold_bytes => Pressure::Empty,
            _ => Pressure::Copy,
        }
    }

    /// How many times as long as for one that is only just too long the writer should wait for those who hold the WAL.
    pub fn urgency(&self) -> u32 {
        let times = self.wal_bytes() / self.limits.hold_bytes.max(1);
        u32::try_from(times).unwrap_or(MOST_URGENT).clamp(1, MOST_URGENT)
    }

    /// Copies the WAL into the database, as far as readers let it.
    pub fn checkpoint(&mut self) -> Result<(), ReplicaError> {
        self.run_checkpoint("PRAGMA wal_checkpoint(PASSIVE)").map(drop)
    }

    /// Copies all of the WAL and empties it, waiting so long for the readers that hold it; says whether they let go.
    pub fn empty_wal(&mut self, patience: Duration) -> Result<bool, ReplicaError> {
        self.connection.busy_timeout(patience).map_err(|e| self.stop(e))?;
        let outcome = self.run_checkpoint("PRAGMA wal_checkpoint(TRUNCATE)");
        self.connection.busy_timeout(BUSY).map_err(|e| self.stop(e))?;
        outcome
    }

    /// Says whether the checkpoint did all that its kind does.
    fn run_checkpoint(&mut self, sql: &str) -> Result<bool, ReplicaError> {
        debug_assert!(self.batch.is_none(), "checkpoints come between batches");
        self.lift()?;
        let applied = self.applied;
        let run = || -> rusqlite::Result<(bool, i64, i64)> {
            self.connection
                .prepare_cached(sql)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        };
        let (busy, frames, copied) = match run() {
            // A reader took a lock at a moment when SQLite doesn't wait for it.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                return Ok(false);
            }
            outcome => outcome.map_err(|e| self.stop(e))?,
        };
        let last = self.checkpointed;
        // SQLite syncs the WAL before it copies, so one that copied anything made all of the WAL durable. One that
        // copied nothing, for a reader that still reads the database file itself, hasn't synced either. A WAL that is
        // shorter than last time has begun anew.
        let before = if frames < last.frames { 0 } else { last.copied };
        let progressed = frames == copied || copied > before;
        let durable = if progressed { applied } else { last.durable };
        self.checkpointed = Checkpointed { durable, frames, copied };
        let pages = frames.max(0).cast_unsigned();
        self.hooks.wal_pages.store(pages, Ordering::Relaxed);
        self.hooks.wal_base.store(pages, Ordering::Relaxed);
        self.measure();
        Ok(!busy)
    }
}
