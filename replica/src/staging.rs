//! Changes that are too many for memory and for one log entry: they lie in a table of the database itself.
//!
//! The layer above names the table, which has the columns `router`, `sequence`, `n` and `changes`, the first three its key,
//! and is captured and replicated like any other. An overlay's chunks go there in **pieces** of a few megabytes, each as
//! an ordinary write; from there they are read when the overlay is applied. What commits them is an entry that names the
//! pieces ([`Replay`]): every replica makes the changes that it has itself, and nothing of them travels again. It must never
//! know what the changes are.

use crate::entry;
use bytes::Bytes;
use prost::Message;
use proto::{RequestId, SqlState, Term, TransactionId, WireError};
use rusqlite::{Connection, OptionalExtension};
use std::time::Instant;

/// Where a transaction's changes are staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// In which table.
    pub table: &'static str,
    /// Whose rows they are.
    pub owner: TransactionId,
}

/// Which rows of a transaction count, and how much of them: some were undone after they had been written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces(pub(crate) Vec<entry::Pieces>);

/// Changes that every replica is to make from what it has staged, and rows that it is to strike out then.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Names it, as a write; what was done under this name isn't done again.
    pub request: Option<RequestId>,
    /// See [`crate::Write::settled`].
    pub settled: u64,
    /// What is remembered under its name.
    pub output: Bytes,
    /// Whose changes.
    pub staging: Staging,
    /// Which.
    pub pieces: Pieces,
    /// The tables whose rows of this transaction are struck out afterwards; they have columns `router` and `sequence`.
    pub strike: Vec<&'static str>,
    /// Only in this term: what it rests on is of that term.
    pub term: Option<Term>,
    /// How long its caller waits.
    pub deadline: Instant,
}

/// Chunks that are to be staged as one row.
#[derive(Clone, Debug)]
pub struct Piece {
    pub(crate) staging: Staging,
    pub(crate) n: u64,
    pub(crate) chunks: Vec<Bytes>,
}

/// A row's content.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    chunks: Vec<Bytes>,
}

/// What is written of pieces.
#[derive(Clone, PartialEq, Message)]
struct PackedPieces {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<entry::Pieces>,
}

impl Piece {
    /// What isn't an overlay's: changesets, as the row of this number. A replay makes them one after the other.
    pub fn new(staging: Staging, n: u64, changesets: Vec<Bytes>) -> Self {
        Piece { staging, n, chunks: changesets }
    }

    /// Writes it down. For the closure of a write; a second time changes nothing.
    pub fn write(&self, connection: &Connection) -> Result<(), WireError> {
        let Staging { table, owner } = self.staging;
        let content = Packed { chunks: self.chunks.clone() }.encode_to_vec();
        let sql =
            format!("INSERT OR REPLACE INTO {table} (router, sequence, n, changes) VALUES (?1, ?2, ?3, ?4)");
        let mut statement = connection.prepare_cached(&sql).map_err(dialect::sqlite::error)?;
        let key = (owner.router.0.cast_signed(), owner.sequence.cast_signed(), self.n.cast_signed());
        statement.execute((key.0, key.1, key.2, content)).map_err(dialect::sqlite::error)?;
        Ok(())
    }
}

impl Pieces {
    /// The rows from 1 up to this one, whole.
    pub fn up_to(last: u64) -> Self {
        if last == 0 { Self::default() } else { Self(vec![entry::Pieces { first: 1, last, chunks: 0 }]) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| run.last - run.first + 1).sum()
    }

    /// As bytes.
    pub fn encode(&self) -> Bytes {
        PackedPieces { pieces: self.0.clone() }.encode_to_vec().into()
    }

    /// What [`Self::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let packed = PackedPieces::decode(bytes);
        let damaged =
            |_| WireError::new(SqlState::DATA_CORRUPTED, "the list of a transaction's pieces is damaged");
        packed.map(|packed| Self(packed.pieces)).map_err(damaged)
    }

    /// Adds a row of which so many chunks count; 0 for all.
    pub(crate) fn add(&mut self, n: u64, chunks: u32) {
        match self.0.last_mut() {
            Some(last) if last.chunks == 0 && last.last + 1 == n => (last.last, last.chunks) = (n, chunks),
            _ => self.0.push(entry::Pieces { first: n, last: n, chunks }),
        }
    }

    /// Each row, and how many of its chunks count; 0 for all.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, u32)> + use<> {
        self.0.clone().into_iter().flat_map(|run| {
            (run.first..=run.last).map(move |n| (n, if n == run.last { run.chunks } else { 0 }))
        })
    }
}

/// Why a piece can't be had.
#[derive(Debug)]
pub(crate) enum Unread {
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// There is no such piece, or it isn't one.
    Gone(String),
}

/// The chunks of a piece that count.
pub(crate) fn read(
    connection: &Connection,
    (table, router, sequence): (&str, u64, u64),
    (n, count): (u64, u32),
) -> Result<Vec<Bytes>, Unread> {
    let sql = format!(
        "/*replica*/ SELECT changes FROM \"{}\" WHERE router = ?1 AND sequence = ?2 AND n = ?3",
        table.replace('"', "\"\"")
    );
    let find = || -> rusqlite::Result<Option<Vec<u8>>> {
        let key = [router.cast_signed(), sequence.cast_signed(), n.cast_signed()];
        connection.prepare_cached(&sql)?.query_row(key, |row| row.get(0)).optional()
    };
    let gone = |why: &str| Unread::Gone(format!("piece {n} of transaction {router:x}-{sequence:x} {why}"));
    let content = find().map_err(Unread::Sqlite)?.ok_or_else(|| gone("isn't there"))?;
    let mut chunks = Packed::decode(Bytes::from(content)).map_err(|_| gone("is damaged"))?.chunks;
    if count as usize > chunks.len() {
        return Err(gone("is too short"));
    }
    if count > 0 {
        chunks.truncate(count as usize);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RouterIncarnation;

    #[test]
    fn rows_that_follow_each_other_are_one_run() {
        let mut pieces = Pieces::default();
        for (n, chunks) in [(1, 0), (2, 0), (3, 2), (4, 0), (6, 0), (7, 0)] {
            pieces.add(n, chunks);
        }
        assert_eq!(pieces.0.len(), 3);
        let rows: Vec<_> = pieces.rows().collect();
        assert_eq!(rows, [(1, 0), (2, 0), (3, 2), (4, 0), (6, 0), (7, 0)]);
        assert_eq!(Pieces::decode(&pieces.encode()).unwrap(), pieces);
        assert!(Pieces::decode(b"nonsense").is_err());
    }

    #[test]
    fn a_piece_is_read_as_far_as_it_counts() {
        let connection = Connection::open_in_memory().unwrap();
        let table = "CREATE TABLE s (router INTEGER, sequence INTEGER, n INTEGER, changes BLOB,
                                     PRIMARY KEY (router, sequence, n))";
        connection.execute_batch(table).unwrap();
        let owner = TransactionId { router: RouterIncarnation(u64::MAX), sequence: 2 };
        let chunks = [Bytes::from_static(b"a"), Bytes::from_static(b"bc")];
        let piece = Piece { staging: Staging { table: "s", owner }, n: 7, chunks: chunks.to_vec() };
        piece.write(&connection).unwrap();
        piece.write(&connection).unwrap();
        let read = |sequence, n, count| read(&connection, ("s", u64::MAX, sequence), (n, count));
        assert_eq!(read(2, 7, 0).unwrap(), chunks);
        assert_eq!(read(2, 7, 1).unwrap(), chunks[..1]);
        for (sequence, n, count) in [(2, 7, 3), (2, 8, 0), (3, 7, 0)] {
            assert!(matches!(read(sequence, n, count), Err(Unread::Gone(_))));
        }
    }
}
