//! A shard's refusal of a schema change, in the words that PostgreSQL has for it.
//!
//! In come the error, which names what was violated by ids at most, and the change that was tried; out comes the
//! error that the client sees. The new names are in no catalog yet, so only the coordinator can say them. Where the
//! error doesn't say which of several new constraints it was, neither does the message.

use proto::catalog::Table;
use proto::error::Violation;
use proto::services::SchemaChange;
use proto::{SqlState, WireError};

/// The error as the client sees it. `old` is the table as it was.
pub(crate) fn explain(error: WireError, change: Option<&SchemaChange>, old: Option<&Table>) -> WireError {
    let (Some(SchemaChange::ReplaceTable { table, .. }), Some(old)) = (change, old) else { return error };
    let message = match error.sqlstate {
        SqlState::UNIQUE_VIOLATION => Some(unique(&error, old, table)),
        SqlState::NOT_NULL_VIOLATION => Some(not_null(&error, old, table)),
        SqlState::CHECK_VIOLATION => Some(check(&error, old, table)),
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE if old.placement != table.placement => {
            return WireError::unsupported("re-placing a filled table")
                .with_detail(format!(
                    "The change would move the rows of table \"{}\" to other shards.",
                    table.name
                ))
                .with_hint("Create a new table with the new key, copy the rows, and rename it.")
                .instead_of(error);
        }
        _ => None,
    };
    match message {
        // Named already: nobody need look the ids up.
        Some(message) => WireError { message, violation: None, ..error },
        None => error,
    }
}

fn unique(error: &WireError, old: &Table, new: &Table) -> String {
    let added =
        new.indexes.iter().filter(|index| index.unique && !old.indexes.iter().any(|o| o.id == index.id));
    let mut names: Vec<_> = added.map(|index| index.name.as_str()).collect();
    if old.primary_key != new.primary_key {
        names.extend(new.primary_key_name.as_deref());
    }
    let named = match error.violation {
        Some(Violation::Unique(_, Some(id))) => {
            new.indexes.iter().find(|index| index.id == id).map(|index| index.name.as_str())
        }
        Some(Violation::Unique(_, None)) => new.primary_key_name.as_deref(),
        _ => None,
    };
    match named.or_else(|| only(names)) {
        Some(name) => format!("could not create unique index \"{name}\""),
        None => format!("could not create a unique index of table \"{}\"", new.name),
    }
}

fn not_null(error: &WireError, old: &Table, new: &Table) -> String {
    let forbids = |id| old.column(id).is_some_and(|column| column.not_null);
    let added = new.columns.iter().filter(|column| column.not_null && !forbids(column.id));
    let named = match error.violation {
        Some(Violation::NotNull(_, id)) => new.column(id).map(|column| column.name.as_str()),
        _ => None,
    };
    match named.or_else(|| only(added.map(|column| column.name.as_str()))) {
        Some(name) => format!("column \"{name}\" of relation \"{}\" contains null values", new.name),
        None => format!("a column of relation \"{}\" contains null values", new.name),
    }
}

fn check(error: &WireError, old: &Table, new: &Table) -> String {
    let added = new.checks.iter().filter(|check| !old.checks.iter().any(|o| o.physical == check.physical));
    let named = match error.violation {
        Some(Violation::Check(_, place)) => new.checks.get(place as usize).map(|check| check.name.as_str()),
        _ => None,
    };
    match named.or_else(|| only(added.map(|check| check.name.as_str()))) {
        Some(name) => {
            format!("check constraint \"{name}\" of relation \"{}\" is violated by some row", new.name)
        }
        None => format!("a check constraint of relation \"{}\" is violated by some row", new.name),
    }
}

/// The one name, if there is no other that it could be.
fn only<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut names = names.into_iter();
    names.next().filter(|_| names.next().is_none())
}
