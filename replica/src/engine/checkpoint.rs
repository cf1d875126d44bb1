//! The WAL belongs to the writer: it alone checkpoints, between batches.
//!
//! What a checkpoint made durable bounds how far the Raft log may be compacted: after a crash, SQLite reopens at some
//! state at or after it, and the log replays the rest.

use super::Engine;
use crate::connection::BUSY;
use crate::error::ReplicaError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A WAL this many times as long as is due for a checkpoint is emptied, at the cost of a pause for new readers.
const HOLD_FACTOR: u64 = 2;

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

    /// Whether the WAL has grown enough since the last checkpoint, or since it began anew.
    pub fn wants_checkpoint(&self) -> bool {
        let grown =
            self.wal_bytes().saturating_sub(self.hooks.wal_base.load(Ordering::Relaxed) * self.page_bytes);
        self.batch.is_none() && grown >= self.limits.checkpoint_bytes
    }

    /// How long the WAL was after the last commit.
    pub fn wal_bytes(&self) -> u64 {
        self.hooks.wal_pages.load(Ordering::Relaxed) * self.page_bytes
    }

    /// Whether the WAL is so long that new readers should be held back until it is emptied.
    pub fn wants_hold(&self) -> bool {
        self.wal_bytes() >= HOLD_FACTOR * self.limits.checkpoint_bytes
    }

    /// Copies the WAL into the database, as far as readers let it. With `empty`, waits so long for the readers that
    /// hold the WAL, and empties it if they let go.
    pub fn checkpoint(&mut self, empty: Option<Duration>) -> Result<(), ReplicaError> {
        debug_assert!(self.batch.is_none(), "checkpoints come between batches");
        let applied = self.applied;
        let run = |sql: &str| -> rusqlite::Result<(bool, i64, i64)> {
            self.connection
                .prepare_cached(sql)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        };
        let mut outcome = run("PRAGMA wal_checkpoint(PASSIVE)");
        if let Some(patience) = empty {
            self.connection.busy_timeout(patience).map_err(|e| self.stop(e))?;
            outcome = run("PRAGMA wal_checkpoint(TRUNCATE)").or(outcome);
            self.connection.busy_timeout(BUSY).map_err(|e| self.stop(e))?;
        }
        let (_, frames, copied) = outcome.map_err(|e| self.stop(e))?;
        let last = self.checkpointed;
        // SQLite syncs the WAL before it copies, so one that copied anything made all of the WAL durable. A WAL that
        // is shorter than last time has begun anew.
        let progressed = frames == copied || copied > last.copied || frames < last.frames;
        let durable = if progressed { applied } else { last.durable };
        self.checkpointed = Checkpointed { durable, frames, copied };
        let pages = frames.max(0).cast_unsigned();
        self.hooks.wal_pages.store(pages, Ordering::Relaxed);
        self.hooks.wal_base.store(pages, Ordering::Relaxed);
        Ok(())
    }
}
