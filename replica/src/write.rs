//! What callers hand to a replica: writes, schema entries, and who its group's members are to be.

use crate::stage::Stage;
use bytes::Bytes;
use proto::{LogIndex, NodeId, RequestId, WireError};
use rusqlite::{Connection, OptionalExtension};
use std::time::Instant;

/// What a write does with the leader's writer connection, which the stage derefs to. It runs on the replica's engine
/// thread, inside a savepoint, and gives what the caller is to be told. Its changes to rows are captured; it can't
/// change the schema, end the transaction, or touch the replica's own tables (`replica_*`).
pub type WriteFn = Box<dyn FnOnce(&Stage<'_>) -> Result<Bytes, WireError> + Send>;

/// One transaction.
pub struct Write {
    /// Names the write: a second one of the same name isn't run, but answered as the first was.
    pub request: Option<RequestId>,
    /// Every request of the same router below this sequence has been answered and can be forgotten.
    pub settled: u64,
    /// How long its caller waits.
    pub deadline: Instant,
    /// What it does.
    pub run: WriteFn,
}

/// What a committed write left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What the closure gave. For a repeated request, what the first run gave.
    pub output: Bytes,
    /// The position that has the write.
    pub index: LogIndex,
    /// Whether an earlier request of this name was found, so that nothing ran now.
    pub repeated: bool,
}

/// A change that every replica makes by running the same statements.
#[derive(Clone, Debug)]
pub struct SchemaEntry {
    /// Names the change within the group (a job and its step): a second one of the same name gets the first's answer.
    pub id: (u64, u32),
    /// SQL, run in order in one savepoint. It must do the same on every replica: no `random()`, no `now()`. A failing
    /// one undoes the others and is the entry's answer on every replica. Every table must have a primary key whose
    /// columns are NOT NULL.
    pub statements: Vec<String>,
    /// Tables that must have no row, else the answer is 55000 and nothing is changed.
    pub require_empty: Vec<String>,
    /// Facts for the layer above, set in the same transaction; [`note`] reads them.
    pub notes: Vec<(String, Bytes)>,
    /// How long its caller waits.
    pub deadline: Instant,
}

/// Who a group's members are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTarget {
    /// The nodes of its voters.
    pub voters: Vec<NodeId>,
    /// One of them whose member is to be replaced by a fresh one.
    pub rebuild: Option<NodeId>,
}

/// A fact that a schema entry left (see [`SchemaEntry::notes`]), as this connection's transaction sees it.
pub fn note(connection: &Connection, key: &str) -> Result<Option<Bytes>, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT value FROM replica_notes WHERE key = ?1")?;
    let value: Option<Vec<u8>> = statement.query_row([key], |row| row.get(0)).optional()?;
    Ok(value.map(Bytes::from))
}
