//! What a new shard's file has beside rows: at its beginning, and at its end.
//!
//! Images and a fresh file go in. The file gets the replica's own tables and the shard's, with what of the old shards is
//! the new one's too: the answers to requests and to schema steps, notes, layouts, and up to which entry of each it has all. What is
//! about transactions isn't taken over here, nor what is about another log.

use super::plan::Source;
use crate::fence::{self, State as Serves};
use dialect::sqlite::error;
use proto::{SchemaVersion, ShardId, WireError};
use rusqlite::{Connection, OpenFlags, params_from_iter};
use std::path::Path;

/// How far a file is.
pub(super) enum State {
    /// It has nothing.
    Empty,
    /// It has a part of what it is to have, and says which.
    Begun,
    /// It has everything.
    Complete,
}

pub(super) fn state(connection: &Connection) -> Result<State, WireError> {
    let has = |table: &str| connection.table_exists(Some("main"), table).map_err(error);
    Ok(match (has("shoal_building")?, has("replica_state")?) {
        (true, _) => State::Begun,
        (false, true) => State::Complete,
        (false, false) => State::Empty,
    })
}

/// Whether the file at this place, which nobody has open, has everything.
pub(super) fn is_complete(path: &Path) -> Result<bool, WireError> {
    let connection = super::plan::open(path, OpenFlags::empty())?;
    Ok(matches!(state(&connection)?, State::Complete))
}

/// What is copied row by row of the tables that replicas and shards have for themselves, of one old shard after the other: what is
/// read there, and how it is added. Who is asked again for a schema step must answer as one of them did.
const TAKEN: [(&str, &str); 5] = [
    (
        "SELECT router, settled FROM replica_marks",
        "INSERT INTO replica_marks VALUES (?1, ?2) ON CONFLICT (router) DO UPDATE SET settled = max(settled, excluded.settled)",
    ),
    (
        "SELECT router, sequence, output FROM replica_requests",
        "INSERT INTO replica_requests VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
    ),
    (
        "SELECT job, step, failure FROM replica_schema",
        "INSERT INTO replica_schema VALUES (?1, ?2, 1, ?3) ON CONFLICT DO NOTHING",
    ),
    (
        "SELECT key, value FROM replica_notes",
        "INSERT INTO replica_notes VALUES (?1, ?2) ON CONFLICT DO NOTHING",
    ),
    (
        "SELECT table_id, job, step, layout FROM shoal_layout",
        "INSERT INTO shoal_layout VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
    ),
];

/// Makes what a fresh file has beside rows, in the open transaction.
pub(super) fn begin(connection: &Connection, shard: ShardId, sources: &[Source]) -> Result<(), WireError> {
    let run = |sql: &str| connection.execute_batch(sql).map_err(error);
    replica::lay_out(connection).map_err(error)?;
    let least = sources.iter().map(|source| source.least).max().unwrap_or(SchemaVersion(0));
    for statement in fence::init(shard, Serves::Following, least) {
        run(&statement)?;
    }
    for source in sources {
        for (read, add) in TAKEN {
            take(source, read, connection, add)?;
        }
    }
    // With the highest mark of a router, requests below it are forgotten.
    run("DELETE FROM replica_requests WHERE sequence <
           (SELECT settled FROM replica_marks AS m WHERE m.router = replica_requests.router);
         CREATE TABLE shoal_building (one INTEGER NOT NULL PRIMARY KEY, tables INTEGER NOT NULL, key BLOB,
                                      indexes INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
         INSERT INTO shoal_building VALUES (1, 0, NULL, 0, 0, 0)")?;
    for source in sources {
        let row = [source.shard.0.cast_signed(), source.position.0.cast_signed()];
        connection.execute("INSERT INTO shoal_source VALUES (?1, ?2, 0)", row).map_err(error)?;
    }
    Ok(())
}

fn take(source: &Source, read: &str, connection: &Connection, add: &str) -> Result<(), WireError> {
    let mut read = source.connection.prepare(read).map_err(error)?;
    let mut add = connection.prepare(add).map_err(error)?;
    let width = read.column_count();
    let mut rows = read.query([]).map_err(error)?;
    while let Some(row) = rows.next().map_err(error)? {
        let row = (0..width).map(|place| row.get::<_, rusqlite::types::Value>(place));
        let row = row.collect::<rusqlite::Result<Vec<_>>>().map_err(error)?;
        add.execute(params_from_iter(row)).map_err(error)?;
    }
    Ok(())
}

/// Ends a file that has everything. It is on the disk then.
pub(super) fn complete(connection: &Connection) -> Result<(), WireError> {
    connection.execute_batch("PRAGMA synchronous = EXTRA; DROP TABLE shoal_building").map_err(error)
}
