//! Replays: entries that make changes which every replica has in its own database already.
//!
//! Like a schema entry, one is executed by all, the leader among them, and only when it is committed. It has a SQLite
//! transaction to itself: undoing a savepoint of a big one would want its pages in memory. What fails the same way
//! everywhere is its answer, and nothing of it is left; what fails on this machine alone stops the replica.

use super::Engine;
use crate::changeset::{self, ChangesetError};
use crate::entry::Replay;
use crate::error::ReplicaError;
use crate::fault;
use crate::overlay;
use crate::stage::unfit;
use crate::staging::{self, Pieces, Unread};
use proto::{SqlState, WireError};

enum Refusal {
    Sqlite(rusqlite::Error),
    Answer(WireError),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Refusal::Sqlite(error)
    }
}

impl From<ChangesetError> for Refusal {
    fn from(error: ChangesetError) -> Self {
        match error {
            ChangesetError::Sqlite(error) => Refusal::Sqlite(error),
            error => Refusal::Answer(unfit(&error)),
        }
    }
}

impl Engine {
    /// Makes a replay's changes at its index, in the open transaction, of which nothing else is part; if that fails, the
    /// transaction is begun anew.
    pub(super) fn apply_replay(
        &mut self,
        index: u64,
        replay: &Replay,
    ) -> Result<Result<u64, WireError>, ReplicaError> {
        if let Some(request) = &replay.request {
            let answer = match self.remembered(request)? {
                Ok(None) => None,
                Ok(Some(_)) => Some(Ok(index)),
                Err(refused) => Some(Err(refused)),
            };
            if let Some(answer) = answer {
                self.keep_nothing(index)?;
                return Ok(answer);
            }
        }
        let error = match self.run_replay(index, replay) {
            Ok(()) => {
                if let Some(request) = &replay.request {
                    self.remember(request, &replay.output)?;
                }
                return Ok(Ok(index));
            }
            Err(Refusal::Sqlite(error)) if fault::is_local(&error) => return Err(self.stop(error)),
            Err(Refusal::Sqlite(error)) => dialect::sqlite::error(error),
            Err(Refusal::Answer(error)) => error,
        };
        tracing::error!(
            transaction = format_args!("{:x}-{:x}", replay.router, replay.sequence),
            %error,
            "staged changes can't be made"
        );
        if !self.connection.is_autocommit() {
            self.execute("/*replica*/ ROLLBACK")?;
        }
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        self.keep_nothing(index)?;
        Ok(Err(error))
    }

    /// Who reads the log is to know that a replay has changed nothing.
    fn keep_nothing(&self, index: u64) -> Result<(), ReplicaError> {
        if self.is_kept(index) {
            self.keep_replayed(index, 0, None).map_err(|e| self.stop(e))?;
        }
        Ok(())
    }

    fn run_replay(&mut self, index: u64, replay: &Replay) -> Result<(), Refusal> {
        let mut kept = self.is_kept(index).then_some(0);
        if kept.is_some() {
            self.keep_replayed(index, 0, Some(&[]))?;
        }
        let owner = [replay.router.cast_signed(), replay.sequence.cast_signed()];
        let staged = quoted(&replay.table);
        for (n, count) in Pieces(replay.pieces.clone()).rows() {
            let key = (replay.table.as_str(), replay.router, replay.sequence);
            let chunks = staging::read(&self.connection, key, (n, count)).map_err(|error| match error {
                Unread::Sqlite(error) => Refusal::Sqlite(error),
                Unread::Gone(why) => Refusal::Answer(WireError::new(SqlState::DATA_CORRUPTED, why)),
            })?;
            let piece = overlay::merged(&chunks).map_err(Refusal::Answer)?;
            drop(chunks);
            if !piece.is_empty() {
                changeset::apply(&self.connection, &mut self.shapes, &piece)?;
                if let Some(n) = &mut kept {
                    *n += 1;
                    self.keep_replayed(index, *n, Some(&piece))?;
                }
            }
            // Its room is the next one's.
            let sql =
                format!("/*replica*/ DELETE FROM {staged} WHERE router = ?1 AND sequence = ?2 AND n = ?3");
            self.connection.prepare_cached(&sql)?.execute([owner[0], owner[1], n.cast_signed()])?;
        }
        for table in &replay.strike {
            let sql =
                format!("/*replica*/ DELETE FROM {} WHERE router = ?1 AND sequence = ?2", quoted(table));
            self.connection.prepare_cached(&sql)?.execute(owner)?;
        }
        Ok(())
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
