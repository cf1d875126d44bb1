//! The least schema version that a shard serves, kept in its own database.
//!
//! In comes a connection inside a transaction or a snapshot, and the version that a request was planned by. The
//! version is read where the rows are read and raised by the entry that changes the tables, so a plan can never meet
//! tables that it wasn't made for. On the writer, which runs those entries itself, it is read once after each.

use crate::{ended, layout, prepared, staged};
use dialect::sqlite::error;
use parking_lot::Mutex;
use proto::{Retry, SchemaVersion, SqlState, Term, WireError};
use replica::Stage;
use rusqlite::Connection;

/// What every replica of a shard runs before its first log entry.
pub(crate) fn init() -> Vec<String> {
    vec![
        prepared::init(),
        prepared::init_locks(),
        staged::init(),
        ended::init(),
        ended::init_renounced(),
        layout::init(),
        "CREATE TABLE shoal_shard (id INTEGER NOT NULL PRIMARY KEY, least_version INTEGER NOT NULL) STRICT"
            .into(),
        "INSERT INTO shoal_shard VALUES (1, 0)".into(),
    ]
}

/// The statement that raises the least version. Entries of two jobs may come in either order: it never falls.
pub(crate) fn raise(version: SchemaVersion) -> String {
    format!("UPDATE shoal_shard SET least_version = max(least_version, {version}) WHERE id = 1")
}

/// Refuses a request that was planned by an older catalog than the shard serves.
pub(crate) fn check(connection: &Connection, version: SchemaVersion) -> Result<(), WireError> {
    admit(version, least(connection)?)
}

fn least(connection: &Connection) -> Result<SchemaVersion, WireError> {
    let mut statement =
        connection.prepare_cached("SELECT least_version FROM shoal_shard WHERE id = 1").map_err(error)?;
    let least: i64 = statement.query_row([], |row| row.get(0)).map_err(error)?;
    Ok(SchemaVersion(least as u64))
}

fn admit(version: SchemaVersion, least: SchemaVersion) -> Result<(), WireError> {
    if version >= least {
        return Ok(());
    }
    let message = format!("planned by schema version {version}, but the shard serves {least} and later");
    Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(Retry::StaleSchema(least)))
}

/// The version as it was last read on the writer. Nothing but a schema entry raises it.
#[derive(Debug, Default)]
pub(crate) struct Fence(Mutex<Option<(Term, u64, SchemaVersion)>>);

impl Fence {
    /// As [`check`], on the writer.
    pub fn check(&self, stage: &Stage<'_>, version: SchemaVersion) -> Result<(), WireError> {
        let mut known = self.0.lock();
        match *known {
            Some((term, age, least)) if (term, age) == (stage.term(), stage.schema_age()) => {
                admit(version, least)
            }
            _ => {
                let least = least(stage)?;
                *known = Some((stage.term(), stage.schema_age(), least));
                admit(version, least)
            }
        }
    }
}
