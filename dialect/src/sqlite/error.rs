//! SQLite's errors as clients see them.
//!
//! A function's error travels through SQLite as text: [`Raised`] writes it behind a private prefix, [`error`] reads it
//! back. Constraint failures are read from SQLite's messages, which name physical tables and columns (`t5.c1`).

use proto::error::Violation;
use proto::{ColumnId, IndexId, SqlState, TableId, WireError};
use rusqlite::{Connection, ErrorCode, ffi};
use std::fmt;

const PREFIX: &str = "\u{1}shoal\u{1}";

/// An error on its way out of a function, through SQLite.
#[derive(Debug)]
pub(super) struct Raised(pub WireError);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WireError { sqlstate, message, detail, hint, .. } = &self.0;
        let text = |part: &Option<String>| part.as_deref().unwrap_or_default().replace(['\u{1}', '\0'], "?");
        let message = message.replace(['\u{1}', '\0'], "?");
        write!(f, "{PREFIX}{sqlstate}\u{1}{message}\u{1}{}\u{1}{}", text(detail), text(hint))
    }
}

impl std::error::Error for Raised {}

impl From<WireError> for Raised {
    fn from(error: WireError) -> Self {
        Raised(error)
    }
}

/// A function's error, for rusqlite.
pub(super) fn raise(error: WireError) -> rusqlite::Error {
    rusqlite::Error::UserFunctionError(Box::new(Raised(error)))
}

fn raised(message: &str) -> Option<WireError> {
    let mut parts = message.strip_prefix(PREFIX)?.split('\u{1}');
    let sqlstate = SqlState::parse(parts.next()?)?;
    let mut error = WireError::new(sqlstate, parts.next()?);
    error.detail = parts.next().filter(|s| !s.is_empty()).map(str::to_owned);
    error.hint = parts.next().filter(|s| !s.is_empty()).map(str::to_owned);
    Some(error)
}

/// What a SQLite error is to a client. Errors that Shoal's functions raised come back whole; constraint failures carry
/// the ids of what was violated as far as SQLite's message tells them: NOT NULL and the primary key. A unique index and
/// a CHECK take [`error_on`].
pub fn error(error: rusqlite::Error) -> WireError {
    match &error {
        rusqlite::Error::SqliteFailure(code, message) => {
            failure(*code, message.as_deref().unwrap_or_default())
        }
        rusqlite::Error::SqlInputError { error: code, msg, .. } => failure(*code, msg),
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
            WireError::new(SqlState::DATA_CORRUPTED, error.to_string())
        }
        rusqlite::Error::UserFunctionError(inner) => {
            raised(&inner.to_string()).unwrap_or_else(|| WireError::internal(error.to_string()))
        }
        _ => WireError::internal(error.to_string()),
    }
}

/// As [`error`], for a statement that wrote this table, on the connection that it came from. SQLite names a unique
/// index by its columns only, so the index is looked up there; and a CHECK without its table.
pub fn error_on(connection: &Connection, table: TableId, error: rusqlite::Error) -> WireError {
    let violation = match &error {
        rusqlite::Error::SqliteFailure(code, Some(message)) => match code.extended_code {
            ffi::SQLITE_CONSTRAINT_UNIQUE => {
                unique_index(connection, table, message).map(|index| Violation::Unique(table, Some(index)))
            }
            ffi::SQLITE_CONSTRAINT_CHECK => {
                subject(message).and_then(|name| id(name, 'k')).map(|check| Violation::Check(table, check))
            }
            _ => None,
        },
        _ => None,
    };
    let error = self::error(error);
    match violation {
        Some(violation) => error.with_violation(violation),
        None => error,
    }
}

/// Whether a statement names a table, a column, or an index that isn't there.
pub fn names_nothing(error: &rusqlite::Error) -> bool {
    let message = match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message,
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        _ => return false,
    };
    ["no such table: ", "no such column: ", "no such index: "].iter().any(|what| message.starts_with(what))
}

fn failure(code: ffi::Error, message: &str) -> WireError {
    if let Some(error) = raised(message) {
        return error;
    }
    match code.extended_code {
        ffi::SQLITE_CONSTRAINT_NOTNULL => return not_null(message),
        ffi::SQLITE_CONSTRAINT_CHECK => {
            return WireError::new(SqlState::CHECK_VIOLATION, "new row violates check constraint");
        }
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            return unique(code.extended_code, message);
        }
        ffi::SQLITE_CONSTRAINT_DATATYPE => {
            return WireError::internal(format!(
                "a value has another storage class than its column: {message}"
            ));
        }
        _ => {}
    }
    match code.code {
        ErrorCode::ConstraintViolation => {
            WireError::new(SqlState::INTEGRITY_CONSTRAINT_VIOLATION, message.to_owned())
        }
        ErrorCode::OperationInterrupted => {
            WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
        }
        ErrorCode::DiskFull => {
            WireError::new(SqlState::DISK_FULL, "could not write: no space left on device")
        }
        ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => {
            WireError::new(SqlState::IO_ERROR, format!("I/O error in the storage engine: {message}"))
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            WireError::new(SqlState::DATA_CORRUPTED, format!("a database file is damaged: {message}"))
        }
        ErrorCode::TooBig => {
            WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a value or statement is too large")
                .with_hint("A value can have at most 1 GB.")
        }
        ErrorCode::OutOfMemory => WireError::new(SqlState::OUT_OF_MEMORY, "out of memory"),
        ErrorCode::ReadOnly => {
            WireError::new(SqlState::READ_ONLY_SQL_TRANSACTION, "cannot write in a read-only transaction")
        }
        // SQLite's own sum() of integers.
        _ if message == "integer overflow" => {
            WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "bigint out of range")
        }
        _ if message.starts_with("Expression tree is too large")
            || message == "parser stack overflow"
            || message == "Recursion limit" =>
        {
            WireError::new(
                SqlState::STATEMENT_TOO_COMPLEX,
                "the statement's expressions are nested too deeply",
            )
        }
        _ => WireError::internal(format!("storage engine: {message}")),
    }
}

/// `NOT NULL constraint failed: t5.c3`
fn not_null(message: &str) -> WireError {
    let error = WireError::new(SqlState::NOT_NULL_VIOLATION, "null value violates not-null constraint");
    match subject(message).and_then(column) {
        Some((table, column)) => error.with_violation(Violation::NotNull(table, column)),
        None => error,
    }
}

/// `UNIQUE constraint failed: t5.c1, t5.c2`, or `.. index 'i7'` for one over expressions.
fn unique(code: i32, message: &str) -> WireError {
    let error = WireError::new(SqlState::UNIQUE_VIOLATION, "duplicate key value violates unique constraint");
    let primary = code != ffi::SQLITE_CONSTRAINT_UNIQUE;
    let table = match unique_columns(message) {
        Some((table, _)) if primary => Some(table),
        _ => primary_key_index(message),
    };
    match table {
        Some(table) => error.with_violation(Violation::Unique(table, None)),
        None => error,
    }
}

/// The table whose primary key holds by the index that [`crate::physical`] makes for numeric keys: `index 'p5'`.
fn primary_key_index(message: &str) -> Option<TableId> {
    let name = subject(message)?.strip_prefix("index '")?.strip_suffix('\'')?;
    Some(TableId(id(name, 'p')?))
}

fn unique_columns(message: &str) -> Option<(TableId, Vec<ColumnId>)> {
    let columns: Option<Vec<_>> = subject(message)?.split(", ").map(column).collect();
    let columns = columns?;
    Some((columns.first()?.0, columns.into_iter().map(|(_, column)| column).collect()))
}

/// The unique index of the table that the message means: by its name if SQLite tells it (it does for an index over
/// expressions), else the one over exactly these columns.
fn unique_index(connection: &Connection, table: TableId, message: &str) -> Option<IndexId> {
    if let Some(name) = subject(message)?.strip_prefix("index '") {
        return Some(IndexId(id(name.strip_suffix('\'')?, 'i')?));
    }
    let (_, columns) = unique_columns(message)?;
    let sql = "SELECT l.name, (SELECT group_concat(i.name, ',') FROM pragma_index_info(l.name) i)
               FROM pragma_index_list(?1) l WHERE l.\"unique\" AND l.origin <> 'pk' ORDER BY l.name";
    let wanted: Vec<String> = columns.iter().map(|c| format!("c{c}")).collect();
    let wanted = wanted.join(",");
    let mut statement = connection.prepare_cached(sql).ok()?;
    let mut rows = statement.query([format!("t{table}")]).ok()?;
    while let Some(row) = rows.next().ok()? {
        if row.get_ref(1).ok()?.as_str() == Ok(wanted.as_str()) {
            return Some(IndexId(id(row.get_ref(0).ok()?.as_str().ok()?, 'i')?));
        }
    }
    None
}

fn subject(message: &str) -> Option<&str> {
    message.split_once("constraint failed: ").map(|(_, subject)| subject)
}

/// `t5.c3`
fn column(name: &str) -> Option<(TableId, ColumnId)> {
    let (table, column) = name.split_once('.')?;
    Some((TableId(id(table, 't')?), ColumnId(id(column, 'c')?)))
}

fn id(name: &str, letter: char) -> Option<u32> {
    name.strip_prefix(letter)?.parse().ok()
}
