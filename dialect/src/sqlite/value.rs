//! SQLite's values as Shoal's, and back.

use proto::{SqlState, Value, ValueRef, WireError};
use rusqlite::types::{ToSqlOutput, ValueRef as Stored};

/// A SQLite value as Shoal's.
///
/// # Errors
/// XX001 for text that isn't UTF-8.
pub fn value_ref(value: Stored<'_>) -> Result<ValueRef<'_>, WireError> {
    Ok(match value {
        Stored::Null => ValueRef::Null,
        Stored::Integer(v) => ValueRef::Int(v),
        Stored::Real(v) => ValueRef::Real(v),
        Stored::Text(v) => ValueRef::Text(
            std::str::from_utf8(v)
                .map_err(|_| WireError::new(SqlState::DATA_CORRUPTED, "a stored text is not UTF-8"))?,
        ),
        Stored::Blob(v) => ValueRef::Blob(v),
    })
}

/// A value to bind as a parameter, borrowed.
pub fn parameter<'a>(value: impl Into<ValueRef<'a>>) -> ToSqlOutput<'a> {
    ToSqlOutput::Borrowed(match value.into() {
        ValueRef::Null => Stored::Null,
        ValueRef::Int(v) => Stored::Integer(v),
        ValueRef::Real(v) => Stored::Real(v),
        ValueRef::Text(v) => Stored::Text(v.as_bytes()),
        ValueRef::Blob(v) => Stored::Blob(v),
    })
}

/// What a function returns to SQLite. NaN would become NULL there, so it is refused here.
pub(super) fn result(value: Value) -> Result<rusqlite::types::Value, WireError> {
    Ok(match value {
        Value::Null => rusqlite::types::Value::Null,
        Value::Int(v) => rusqlite::types::Value::Integer(v),
        Value::Real(v) if v.is_nan() => {
            return Err(crate::float::refuse_nan());
        }
        Value::Real(v) => rusqlite::types::Value::Real(v),
        Value::Text(v) => rusqlite::types::Value::Text(v),
        Value::Blob(v) => rusqlite::types::Value::Blob(v),
    })
}
