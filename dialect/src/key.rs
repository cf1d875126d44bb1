//! Key forms: what is compared, sorted, grouped, indexed and hashed in place of a stored value.
//!
//! In comes a value in storage form, or SQL that yields one; out comes its key form, which is equal exactly where
//! PostgreSQL's `=` holds and sorts as plain integers, doubles or bytes do.
//!
//! Storage forms of numeric sort by value too (then by display scale), so `min` and `max` may run on them as they
//! are: only equality and grouping need the key.

use crate::numeric::SCALE_BYTES;
use crate::types::Type;
use proto::{Value, ValueRef};

/// The key form of a stored value.
pub fn key_form(ty: Type, value: ValueRef<'_>) -> Value {
    key_within(ty, value).to_owned()
}

/// The key form of a stored value, which is a part of it.
pub fn key_within(ty: Type, value: ValueRef<'_>) -> ValueRef<'_> {
    match (ty, value) {
        (Type::Numeric, ValueRef::Blob(stored)) => {
            ValueRef::Blob(&stored[..stored.len().saturating_sub(SCALE_BYTES)])
        }
        // The two zeros are equal.
        (_, ValueRef::Real(value)) => ValueRef::Real(value + 0.0),
        _ => value,
    }
}

/// SQL of the key form of what `sql` yields, which is evaluated once.
///
/// The same string each time for the same `sql`, so that an index over it serves a query over it. Nothing but SQLite
/// itself is needed to run it.
pub fn key_sql(ty: Type, sql: &str) -> String {
    match ty {
        // What stands before the last two bytes; the bound is beyond any numeric's length.
        Type::Numeric => format!("substr({sql},-{SCALE_BYTES},-1000000)"),
        // SQLite's = finds the two zeros equal, too.
        _ => sql.to_owned(),
    }
}

/// Whether the key form differs from the storage form.
pub fn has_own_key_form(ty: Type) -> bool {
    ty == Type::Numeric
}
