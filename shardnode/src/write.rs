//! A write: one statement, run once or once for each of its rows, all or nothing.
//!
//! In comes the leader's writer connection inside a savepoint; out come bytes that say how many rows were affected
//! and what they returned. The bytes travel in the log beside the rows, so that a repeated request is told the same.
//! Nothing here knows when, or whether, what is around it commits.

use crate::fence::Address;
use crate::phrase::Phrase;
use crate::touched::{self, Want};
use bytes::{BufMut, Bytes, BytesMut};
use dialect::sqlite::{error, error_on, parameter, value_ref};
use proto::services::{FragmentResponse, RowLock, RowSource};
use proto::{
    LogIndex, RowBatch, RowBatchBuilder, SchemaVersion, SqlState, TableId, Value, ValueRef, WireError,
};
use replica::Stage;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, Statement};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// What a write does.
pub(crate) struct Job {
    pub(crate) sql: Arc<str>,
    pub(crate) phrase: Arc<Phrase>,
    pub(crate) params: Vec<Value>,
    pub(crate) rows: Option<RowBatch>,
    pub(crate) touch: u16,
    pub(crate) to: Address,
    pub(crate) schema_version: SchemaVersion,
    /// The most bytes that it may return.
    pub(crate) returning_bytes: usize,
    /// The rows that it deletes are added on other shards.
    pub(crate) moves: bool,
}

/// What a write did.
pub(crate) struct Ran {
    /// Rows inserted, updated or deleted.
    pub(crate) affected: u64,
    /// What it returned.
    pub(crate) returned: RowBatch,
}

impl Ran {
    /// What its caller is told, as bytes.
    pub(crate) fn output(&self) -> Bytes {
        encode(self.affected, &self.returned)
    }
}

/// What has come together over the runs of a statement.
struct Outcome<'a> {
    affected: u64,
    /// The rows of which it is told, if not of all: by their keys, as locks name them.
    only: Option<&'a HashSet<Box<[u8]>>>,
    touch: usize,
    columns: usize,
    touched: HashSet<Vec<u8>>,
    returned: RowBatchBuilder,
    limit: usize,
}

impl Job {
    /// Whether it only inserts rows that are given.
    pub(crate) fn is_plain_insert(&self) -> bool {
        self.rows.is_some() && self.phrase.inserts_plainly
    }
}

/// Runs the write, which the fence has let in. With `only`, the rows that it returns are those with these keys.
pub(crate) fn run(stage: &Stage<'_>, job: &Job, only: Option<&HashSet<Box<[u8]>>>) -> Result<Ran, WireError> {
    let connection: &Connection = stage;
    let failed = |failure| match job.phrase.written {
        Some(table) => error_on(connection, table, failure),
        None => error(failure),
    };
    if job.phrase.spares {
        // Of an earlier statement.
        let mut statement = connection.prepare_cached("SELECT pg_spared() IS NULL").map_err(error)?;
        statement.query_row([], |_| Ok(())).map_err(error)?;
    }
    let mut statement = connection.prepare_cached(&job.sql).map_err(error)?;
    // The replica lets a write touch rows alone; what touches none has another intent.
    if statement.readonly() {
        return Err(WireError::internal("a fragment that should change rows would only read"));
    }
    let columns = statement.column_count();
    let touch = usize::from(job.touch);
    let returned = columns
        .checked_sub(touch)
        .and_then(|left| u16::try_from(left).ok())
        .ok_or_else(|| WireError::internal("a fragment returns fewer columns than its key has"))?;
    let mut outcome = Outcome {
        affected: 0,
        only,
        touch,
        columns,
        touched: HashSet::new(),
        returned: RowBatchBuilder::new(returned),
        limit: job.returning_bytes,
    };
    let width = job.rows.as_ref().map_or(0, |rows| usize::from(rows.columns()));
    let wanted = statement.parameter_count();
    if width + job.params.len() < wanted {
        return Err(WireError::internal(format!(
            "a fragment has {wanted} parameters and was sent {}",
            width + job.params.len()
        )));
    }
    for (place, value) in job.params.iter().enumerate().take_while(|(place, _)| width + place < wanted) {
        statement.raw_bind_parameter(width + place + 1, parameter(value)).map_err(error)?;
    }
    match &job.rows {
        None => outcome.run(connection, &mut statement, failed)?,
        Some(rows) => {
            for row in rows.rows() {
                for (place, value) in row.enumerate().take(wanted) {
                    statement.raw_bind_parameter(place + 1, bound(value)).map_err(error)?;
                }
                outcome.run(connection, &mut statement, failed)?;
            }
        }
    }
    Ok(Ran { affected: outcome.affected, returned: outcome.returned.finish() })
}

/// The locks of the rows of a table that statements have spared since this was last asked.
pub(crate) fn spared(connection: &Connection, table: TableId) -> Result<Vec<Want>, WireError> {
    let mut statement = connection.prepare_cached("SELECT pg_spared()").map_err(error)?;
    let packed: Option<Vec<u8>> = statement.query_row([], |row| row.get(0)).map_err(error)?;
    let Some(packed) = packed else { return Ok(Vec::new()) };
    let rows = dialect::rowset::unpack(&packed)?;
    let lock = |mut row: proto::rows::Row<'_>| {
        let mode = match row.next() {
            Some(ValueRef::Int(0)) => RowLock::NoKeyUpdate,
            _ => RowLock::Update,
        };
        Want::row(table, touched::encode(row), mode)
    };
    Ok(rows.rows().map(lock).collect())
}

fn bound(value: ValueRef<'_>) -> ToSqlOutput<'_> {
    use rusqlite::types::ValueRef as Sqlite;
    ToSqlOutput::Borrowed(match value {
        ValueRef::Null => Sqlite::Null,
        ValueRef::Int(v) => Sqlite::Integer(v),
        ValueRef::Real(v) => Sqlite::Real(v),
        ValueRef::Text(v) => Sqlite::Text(v.as_bytes()),
        ValueRef::Blob(v) => Sqlite::Blob(v),
    })
}

impl Outcome<'_> {
    /// Runs the statement to its end, with what is bound.
    fn run(
        &mut self,
        connection: &Connection,
        statement: &mut Statement<'_>,
        failed: impl FnOnce(rusqlite::Error) -> WireError,
    ) -> Result<(), WireError> {
        let mut rows = statement.raw_query();
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(failure) => return Err(failed(failure)),
            };
            if self.touch > 0 {
                let mut key = RowBatchBuilder::new(self.touch as u16);
                for column in 0..self.touch {
                    key.push(value_ref(row.get_ref(column).map_err(error)?)?);
                }
                if !self.touched.insert(key.finish().data().to_vec()) {
                    return Err(WireError::new(
                        SqlState::CARDINALITY_VIOLATION,
                        "ON CONFLICT DO UPDATE command cannot affect row a second time",
                    )
                    .with_hint(
                        "Ensure that no rows proposed for insertion within the same command have duplicate \
                         constrained values.",
                    ));
                }
            }
            if let Some(only) = self.only
                && self.touch > 0
            {
                let mut key = Vec::with_capacity(self.touch);
                for column in 0..self.touch {
                    key.push(value_ref(row.get_ref(column).map_err(error)?)?);
                }
                if !only.contains(&touched::encode(key)) {
                    continue;
                }
            }
            if self.columns > self.touch {
                for column in self.touch..self.columns {
                    self.returned.push(value_ref(row.get_ref(column).map_err(error)?)?);
                }
                if self.returned.byte_len() > self.limit {
                    return Err(WireError::new(
                        SqlState::PROGRAM_LIMIT_EXCEEDED,
                        format!("RETURNING gives more than {} bytes of rows", self.limit),
                    )
                    .with_hint("Change fewer rows at once, or return fewer columns."));
                }
            }
        }
        // The statement has come to its end: only now does SQLite tell what it changed.
        self.affected += connection.changes();
        Ok(())
    }
}

/// What a caller is told, as bytes.
pub(crate) fn encode(affected: u64, rows: &RowBatch) -> Bytes {
    let mut bytes = BytesMut::with_capacity(14 + rows.data().len());
    bytes.put_u64_le(affected);
    bytes.put_u16_le(rows.columns());
    bytes.put_u32_le(rows.len() as u32);
    bytes.extend_from_slice(rows.data());
    bytes.freeze()
}

/// What a request was told: a write what it has done, the commit of a branch nothing.
pub(crate) fn told(output: &Bytes, position: LogIndex) -> Result<FragmentResponse, WireError> {
    if !output.is_empty() {
        return decode(output, position);
    }
    let rows = RowSource::Whole(RowBatch::default());
    Ok(FragmentResponse { rows, affected: 0, position, waited: Duration::ZERO })
}

/// Reads what [`encode`] wrote, perhaps in another process long ago.
pub(crate) fn decode(output: &Bytes, position: LogIndex) -> Result<FragmentResponse, WireError> {
    let damaged = || WireError::new(SqlState::DATA_CORRUPTED, "a write's recorded result is damaged");
    let (affected, rest) = output.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (columns, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (rows, _) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let batch = RowBatch::decode(u16::from_le_bytes(*columns), u32::from_le_bytes(*rows), output.slice(14..));
    Ok(FragmentResponse {
        rows: RowSource::Whole(batch.map_err(|_| damaged())?),
        affected: u64::from_le_bytes(*affected),
        position,
        waited: Duration::ZERO,
    })
}
