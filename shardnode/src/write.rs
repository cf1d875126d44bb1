//! A write: one statement, run once or once for each of its rows, all or nothing.
//!
//! In comes the leader's writer connection inside a savepoint; out come bytes that say how many rows were affected
//! and what they returned. The bytes travel in the log beside the rows, so that a repeated request is told the same.
//! Nothing here knows when, or whether, what is around it commits.

use crate::touched::Want;
use crate::{fence, touched};
use bytes::{BufMut, Bytes, BytesMut};
use dialect::sqlite::{error, error_on, parameter, value_ref};
use proto::services::{FragmentResponse, RowLock, RowSource};
use proto::{
    LogIndex, RowBatch, RowBatchBuilder, SchemaVersion, SqlState, TableId, Value, ValueRef, WireError,
};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, Statement};
use std::collections::HashSet;
use std::sync::Arc;

/// What a write does.
pub(crate) struct Job {
    pub(crate) sql: Arc<str>,
    pub(crate) params: Vec<Value>,
    pub(crate) rows: Option<RowBatch>,
    pub(crate) touch: u16,
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
    /// The table that it writes; nothing if its SQL doesn't tell.
    pub(crate) fn table(&self) -> Option<TableId> {
        written_table(&self.sql)
    }

    /// Whether it only inserts rows that are given: what its own transaction has changed matters to it no more than
    /// what others have, for it reads none of it.
    pub(crate) fn is_plain_insert(&self) -> bool {
        let verb = self.sql.get(..11).is_some_and(|verb| verb.eq_ignore_ascii_case("INSERT INTO"));
        let reads = |word: &str| self.sql.to_ascii_uppercase().contains(word);
        verb && self.rows.is_some() && !reads("SELECT") && !reads("ON CONFLICT") && !reads("INSERT OR")
    }

    /// Whether it may leave rows as they are that are in its way, and lock them all the same.
    pub(crate) fn spares(&self) -> bool {
        self.sql.contains(" ELSE pg_spare(")
    }

    /// Whether it may leave out rows whose keys are there already.
    pub(crate) fn may_do_nothing(&self) -> bool {
        self.sql.contains(" DO NOTHING")
    }
}

/// Runs the write. With `only`, the rows that it returns are those with these keys.
pub(crate) fn run(
    connection: &Connection,
    job: &Job,
    only: Option<&HashSet<Box<[u8]>>>,
) -> Result<Ran, WireError> {
    fence::check(connection, job.schema_version)?;
    let failed = |failure| match written_table(&job.sql) {
        Some(table) => error_on(connection, table, failure),
        None => error(failure),
    };
    if job.spares() {
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

/// The table that a statement writes, by its physical name. SQLite's messages don't always say.
fn written_table(sql: &str) -> Option<TableId> {
    let mut words = sql.split(|c: char| c.is_whitespace() || c == '(').filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let name = match word.to_ascii_uppercase().as_str() {
            "INTO" | "UPDATE" => words.next(),
            "DELETE" => words.nth(1),
            _ => None,
        };
        let id =
            name.and_then(|name| name.trim_matches('"').strip_prefix('t')).and_then(|id| id.parse().ok());
        if id.is_some() {
            return id.map(TableId);
        }
    }
    None
}

/// Whether a statement names more than one table.
pub(crate) fn names_several_tables(sql: &str) -> bool {
    let mut tables = dialect::physical::tables_in(sql);
    tables.next().is_some_and(|first| tables.any(|table| table != first))
}

/// All tables that a statement names, and perhaps some that it doesn't: whatever looks like the physical name of one.
pub(crate) fn named_tables(sql: &str) -> impl Iterator<Item = TableId> {
    let words = sql.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter_map(|word| word.strip_prefix(['t', 'T'])?.parse().ok().map(TableId))
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_inserts_is_known() {
        let job = |sql: &str, rows: Option<RowBatch>| Job {
            sql: sql.into(),
            params: Vec::new(),
            rows,
            touch: 0,
            schema_version: SchemaVersion(1),
            returning_bytes: 0,
            moves: false,
        };
        let rows = || Some(RowBatchBuilder::new(1).finish());
        assert!(job("INSERT INTO t5 (c1) VALUES (?1) RETURNING c1", rows()).is_plain_insert());
        for sql in [
            "INSERT INTO t5 (c1) VALUES (?1) ON CONFLICT DO NOTHING",
            "INSERT INTO t5 (c1) SELECT ?1",
            "INSERT INTO t5 (c1) VALUES (?1) RETURNING (select max(c1) FROM t5)",
            "INSERT OR REPLACE INTO t5 (c1) VALUES (?1)",
            "UPDATE t5 SET c1 = ?1",
        ] {
            assert!(!job(sql, rows()).is_plain_insert(), "{sql}");
        }
        assert!(!job("INSERT INTO t5 (c1) VALUES (1)", None).is_plain_insert());
    }

    #[test]
    fn a_written_table_is_found() {
        for sql in [
            "INSERT INTO t16384(c1) VALUES (?1)",
            "INSERT INTO \"t16384\" (c1) SELECT c1 FROM t5",
            "update t16384 SET c1 = (SELECT 1 FROM t6)",
            "DELETE FROM t16384 WHERE c1 = ?1",
            "WITH x AS (SELECT c1 FROM t7) DELETE FROM t16384 WHERE c1 IN (SELECT c1 FROM x)",
        ] {
            assert_eq!(written_table(sql), Some(TableId(16384)), "{sql}");
        }
        assert_eq!(written_table("SELECT c1 FROM t5"), None);
    }

    #[test]
    fn every_named_table_is_found() {
        let tables = |sql| named_tables(sql).map(|table| table.0).collect::<Vec<_>>();
        assert_eq!(
            tables("WITH x AS (SELECT t7.c1 FROM t7) DELETE FROM\t\"t16384\" WHERE c1 IN x"),
            [7, 7, 16384]
        );
        assert_eq!(tables("UPDATE t1 SET c2=(SELECT max(c1)FROM t2,main.t3)"), [1, 2, 3]);
        assert_eq!(tables("SELECT at1, t1a, t_1, _t1, total FROM r0"), []);
    }
}
