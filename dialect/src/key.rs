//! Key forms: what is compared, sorted, grouped, indexed and hashed in place of a stored value.
//!
//! In comes a value in storage form, or SQL that yields one; out comes its key form, which is equal exactly where
//! PostgreSQL's `=` holds and sorts as plain integers, doubles or bytes do.

use crate::types::Type;
use proto::{Value, ValueRef};

/// The key form of a stored value.
pub fn key_form(_ty: Type, value: ValueRef<'_>) -> Value {
    value.to_owned()
}

/// SQL of the key form of what `sql` yields. Evaluates `sql` once.
pub fn key_sql(ty: Type, sql: &str) -> String {
    match ty {
        // All but the two bytes of display scale. Built into SQLite, so that it works on any connection.
        Type::Numeric => format!("substr({sql},-2,-1000000)"),
        _ => sql.to_owned(),
    }
}
