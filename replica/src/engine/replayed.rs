//! The changes that replays have made, kept for who reads the log.
//!
//! Of every entry the log has what it changes, but for replays: they make what was staged, and strike it out. While
//! somebody holds the log whose name says that it reads changes, each replay leaves its pieces in a table as it made
//! them, and whether it made them at all. The table is there since the first such hold, and the same on every replica;
//! what lies before all of them goes with the entry that moves or ends one. It must never know who reads there.

use super::Engine;
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::{LogIndex, SqlState, WireError};
use rusqlite::{Connection, OptionalExtension};

/// What the names of those begin with who read changes.
const READERS: [&str; 2] = ["reshard/", "stream/"];

/// Row 0 of a position says what its replay came to: NULL if it changed nothing. The others are the pieces. They are
/// big, so the key is an index beside them: to compare keys of rows that overflow, SQLite reads the rows.
const TABLE: &str = "/*replica*/ CREATE TABLE IF NOT EXISTS replica_replayed (
    position INTEGER NOT NULL, n INTEGER NOT NULL, changes BLOB, PRIMARY KEY (position, n)) STRICT";

/// What the replay at a position came to, as far as it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It made changes: so many pieces, from 1 on ([`replayed_piece`]).
    Made {
        /// How many.
        pieces: u64,
    },
    /// It changed nothing and answers no request: it failed, or its request was answered before.
    Nothing,
    /// Nobody held the log for it when it ran, or they have passed it since.
    Forgotten,
}

/// What the replay at a position of the log came to, which this connection's transaction has. It is known from the first
/// entry on after a hold of a name that begins with `reshard/` or `stream/`, as far as such holds reach back.
pub fn replayed(connection: &Connection, position: LogIndex) -> Result<Replayed, WireError> {
    let position = position.0.cast_signed();
    let find = || -> rusqlite::Result<Replayed> {
        if !connection.table_exists(Some("main"), "replica_replayed")? {
            return Ok(Replayed::Forgotten);
        }
        let changed: Option<bool> = connection
            .prepare_cached("SELECT changes IS NOT NULL FROM replica_replayed WHERE position = ?1 AND n = 0")?
            .query_row([position], |row| row.get(0))
            .optional()?;
        match changed {
            None => Ok(Replayed::Forgotten),
            Some(false) => Ok(Replayed::Nothing),
            Some(true) => {
                let pieces: i64 = connection
                    .prepare_cached("SELECT count(*) FROM replica_replayed WHERE position = ?1 AND n > 0")?
                    .query_row([position], |row| row.get(0))?;
                Ok(Replayed::Made { pieces: pieces.cast_unsigned() })
            }
        }
    };
    find().map_err(dialect::sqlite::error)
}

/// A piece of the changes that the replay at a position made, as a changeset ([`crate::changes`]). They count in their
/// order: a row may be changed by several. XX001 if there is no such piece.
pub fn replayed_piece(connection: &Connection, position: LogIndex, n: u64) -> Result<Bytes, WireError> {
    let find = || -> rusqlite::Result<Option<Vec<u8>>> {
        connection
            .prepare_cached("SELECT changes FROM replica_replayed WHERE position = ?1 AND n = ?2 AND n > 0")?
            .query_row([position.0.cast_signed(), n.cast_signed()], |row| row.get(0))
            .optional()
    };
    let gone = || {
        let message = format!("piece {n} of what was replayed at {position} isn't there");
        WireError::new(SqlState::DATA_CORRUPTED, message)
    };
    find().map_err(dialect::sqlite::error)?.map(Bytes::from).ok_or_else(gone)
}

/// Whether who holds the log under this name reads changes.
pub(super) fn is_reader(name: &str) -> bool {
    READERS.iter().any(|reader| name.starts_with(reader))
}

impl Engine {
    /// Whether a replay at this index is to leave what it changes.
    pub(super) fn is_kept(&self, index: u64) -> bool {
        self.first_read().is_some_and(|first| first <= index)
    }

    /// Keeps a piece of what the replay at this index changes, from 1 on; or as the 0th, whether it changes anything.
    pub(super) fn keep_replayed(&self, index: u64, n: u64, changes: Option<&[u8]>) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("/*replica*/ INSERT INTO replica_replayed VALUES (?1, ?2, ?3)")?
            .execute((index.cast_signed(), n.cast_signed(), changes))?;
        Ok(())
    }

    /// A reader's hold was set, moved or ended: forgets what none of them needs any more.
    pub(super) fn forget_replayed(&self) -> Result<(), ReplicaError> {
        self.execute(TABLE)?;
        let first = self.first_read().map_or(i64::MAX, u64::cast_signed);
        let delete = || -> rusqlite::Result<()> {
            self.connection
                .prepare_cached("/*replica*/ DELETE FROM replica_replayed WHERE position < ?1")?
                .execute([first])?;
            Ok(())
        };
        delete().map_err(|e| self.stop(e))
    }

    /// From where on somebody reads changes, if anyone does.
    fn first_read(&self) -> Option<u64> {
        self.holds().iter().filter(|(name, _)| is_reader(name)).map(|(_, from)| *from).min()
    }
}
