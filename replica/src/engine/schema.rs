//! Schema entries: the one kind of entry that every replica executes, the leader among them, and only when committed.
//!
//! What fails the same way everywhere is the entry's answer and is remembered under its id; what fails on this machine
//! alone stops the replica.

use super::Engine;
use crate::changeset::uncapturable;
use crate::entry::{Failure, Schema};
use crate::error::ReplicaError;
use crate::fault;
use prost::Message as _;
use proto::{LogIndex, SqlState, WireError};
use rusqlite::{Connection, OptionalExtension};

/// What the entry of this job and step came to, which this connection's transaction has: where it ran, and why it failed,
/// if it did; then it changed nothing. An entry of that name anywhere else was passed over. Nothing if there was none.
pub fn schema_outcome(
    connection: &Connection,
    id: (u64, u32),
) -> Result<Option<(LogIndex, Option<WireError>)>, WireError> {
    let Some((position, failure)) = answer(connection, id).map_err(dialect::sqlite::error)? else {
        return Ok(None);
    };
    let failure = failure.map(|failure| Failure::decode(failure.as_slice()).map(WireError::from)).transpose();
    let damaged = |error| {
        let message = format!("the answer of schema entry {}: {error}", id.0);
        WireError::new(SqlState::DATA_CORRUPTED, message)
    };
    Ok(Some((LogIndex(position), failure.map_err(damaged)?)))
}

/// Where the entry of this job and step ran, and its failure as it is kept.
fn answer(
    connection: &Connection,
    (job, step): (u64, u32),
) -> rusqlite::Result<Option<(u64, Option<Vec<u8>>)>> {
    connection
        .prepare_cached("SELECT position, failure FROM replica_schema WHERE job = ?1 AND step = ?2")?
        .query_row((job.cast_signed(), step), |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)))
        .optional()
}

enum Refusal {
    Sqlite(rusqlite::Error),
    Answer(WireError),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Refusal::Sqlite(error)
    }
}

impl Engine {
    /// Runs a schema entry at its index, in the open transaction; gives the index at which its id first ran.
    pub(super) fn apply_schema(
        &mut self,
        index: u64,
        schema: &Schema,
    ) -> Result<Result<u64, WireError>, ReplicaError> {
        if let Some(answer) = self.schema_answer(schema)? {
            return Ok(answer);
        }
        self.execute("/*replica*/ SAVEPOINT replica_schema_entry")?;
        self.shapes.forget();
        self.connection.forget_tables();
        let answer = match self.run_schema(schema) {
            Ok(()) => Ok(index),
            Err(Refusal::Answer(error)) => Err(error),
            Err(Refusal::Sqlite(error)) if fault::is_local(&error) => return Err(self.stop(error)),
            Err(Refusal::Sqlite(error)) => Err(dialect::sqlite::error(error)),
        };
        if answer.is_err() {
            self.execute("/*replica*/ ROLLBACK TO replica_schema_entry")?;
        }
        self.execute("/*replica*/ RELEASE replica_schema_entry")?;
        self.shapes.forget();
        self.connection.forget_tables();
        let failure = answer.as_ref().err().map(|error| Failure::from(error).encode_to_vec());
        let insert = || -> rusqlite::Result<()> {
            self.connection
                .prepare_cached("INSERT INTO replica_schema VALUES (?1, ?2, ?3, ?4)")?
                .execute((schema.job.cast_signed(), schema.step, index.cast_signed(), failure))?;
            Ok(())
        };
        insert().map_err(|e| self.stop(e))?;
        Ok(answer)
    }

    /// What an entry of this id was answered, if one was applied.
    pub fn schema_answer(&self, schema: &Schema) -> Result<Option<Result<u64, WireError>>, ReplicaError> {
        let found = answer(&self.connection, (schema.job, schema.step)).map_err(|e| self.stop(e))?;
        Ok(match found {
            None => None,
            Some((position, None)) => Some(Ok(position)),
            Some((_, Some(failure))) => {
                let failure = Failure::decode(failure.as_slice())
                    .map_err(|e| self.damaged(format!("the answer of schema entry {}: {e}", schema.job)))?;
                Some(Err(failure.into()))
            }
        })
    }

    fn run_schema(&self, schema: &Schema) -> Result<(), Refusal> {
        for table in &schema.require_empty {
            let sql = format!("SELECT EXISTS (SELECT 1 FROM \"{}\")", table.replace('"', "\"\""));
            if self.connection.query_row(&sql, [], |row| row.get::<_, bool>(0))? {
                let message = format!("table {table} is not empty");
                return Err(Refusal::Answer(WireError::new(
                    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    message,
                )));
            }
        }
        for statement in &schema.statements {
            self.connection.execute_batch(statement)?;
        }
        for note in &schema.notes {
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO replica_notes VALUES (?1, ?2)")?
                .execute((&note.key, note.value.as_ref()))?;
        }
        let tables = uncapturable(&self.connection)?;
        if !tables.is_empty() {
            let message = format!("tables without a primary key that is NOT NULL: {}", tables.join(", "));
            return Err(Refusal::Answer(WireError::new(SqlState::INVALID_TABLE_DEFINITION, message)));
        }
        Ok(())
    }
}
