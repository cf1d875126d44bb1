//! A shard's refusal of a schema change, in the words that PostgreSQL has for it.
//!
//! In come the error, which names what was violated by ids at most, and the change that was tried; out comes the
//! error that the client sees. The new names are in no catalog yet, so only the coordinator can say them.

use proto::catalog::Table;
use proto::error::Violation;
use proto::services::SchemaChange;
use proto::{SqlState, WireError};

/// The error as the client sees it.
pub(crate) fn explain(error: WireError, change: Option<&SchemaChange>) -> WireError {
    let Some(SchemaChange::ReplaceTable { table, .. }) = change else { return error };
    let message = match (error.sqlstate, &error.violation) {
        (SqlState::UNIQUE_VIOLATION, violation) => {
            let name = match violation {
                Some(Violation::Unique(_, Some(id))) => {
                    table.indexes.iter().find(|index| index.id == *id).map(|index| index.name.as_str())
                }
                Some(Violation::Unique(_, None)) => table.primary_key_name.as_deref(),
                _ => newest_unique(table),
            };
            name.map(|name| format!("could not create unique index \"{name}\""))
        }
        (SqlState::NOT_NULL_VIOLATION, Some(Violation::NotNull(_, id))) => table.column(*id).map(|column| {
            format!("column \"{}\" of relation \"{}\" contains null values", column.name, table.name)
        }),
        (SqlState::CHECK_VIOLATION, Some(Violation::Check(_, place))) => {
            table.checks.get(*place as usize).map(|check| {
                format!(
                    "check constraint \"{}\" of relation \"{}\" is violated by some row",
                    check.name, table.name
                )
            })
        }
        (SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, _) => {
            return WireError::unsupported("re-placing a filled table")
                .with_detail(format!(
                    "The change would move the rows of table \"{}\" to other shards.",
                    table.name
                ))
                .with_hint("Create a new table with the new key, copy the rows, and rename it.");
        }
        _ => None,
    };
    match message {
        // Named already: nobody need look the ids up.
        Some(message) => WireError { message, violation: None, ..error },
        None => error,
    }
}

/// The unique index that was made last: SQLite doesn't always say which one fails.
fn newest_unique(table: &Table) -> Option<&str> {
    let unique = table.indexes.iter().filter(|index| index.unique);
    unique.max_by_key(|index| index.id).map(|index| index.name.as_str())
}
