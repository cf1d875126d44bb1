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
use proto::{SqlState, WireError};
use rusqlite::OptionalExtension;

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
        let find = || -> rusqlite::Result<Option<(i64, Option<Vec<u8>>)>> {
            self.connection
                .prepare_cached("SELECT position, failure FROM replica_schema WHERE job = ?1 AND step = ?2")?
                .query_row((schema.job.cast_signed(), schema.step), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        };
        Ok(match find().map_err(|e| self.stop(e))? {
            None => None,
            Some((position, None)) => Some(Ok(position.cast_unsigned())),
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
