//! CREATE INDEX.

use super::command::CreateIndex;
use super::names::{self, NewNames, joined};
use super::{notice, placement, schema};
use crate::Context;
use crate::plan::SchemaAction;
use proto::catalog::{Index, IndexColumn, Placement, Table};
use proto::services::SchemaChange;
use proto::{IndexId, SqlState, WireError};

const TAG: &str = "CREATE INDEX";

/// Binds CREATE INDEX.
pub(super) fn create(create: &CreateIndex, context: &Context<'_>) -> Result<SchemaAction, WireError> {
    let mut table = Table::clone(names::table(context, &create.table)?);
    if let Some(name) = create.name.as_ref().filter(|name| context.catalog.resolve(&name.value).is_some()) {
        let error = names::taken(&name.value);
        if !create.if_not_exists {
            return Err(error);
        }
        let skipped = notice(SqlState::DUPLICATE_TABLE, format!("{}, skipping", error.message));
        return Ok(schema(TAG, Vec::new(), vec![skipped]));
    }
    if create.columns.len() > 32 {
        return Err(WireError::new(
            SqlState::TOO_MANY_COLUMNS,
            "cannot use more than 32 columns in an index",
        ));
    }
    let mut columns = Vec::with_capacity(create.columns.len());
    for indexed in &create.columns {
        let column = table.column_named(&indexed.name.value).ok_or_else(|| {
            let message = format!("column \"{}\" does not exist", indexed.name.value);
            WireError::new(SqlState::UNDEFINED_COLUMN, message)
        })?;
        columns.push(IndexColumn {
            column: column.id,
            descending: indexed.descending,
            nulls_first: indexed.nulls_first,
        });
    }
    let name = match &create.name {
        Some(name) => name.value.clone(),
        None => {
            let mut names = NewNames::new(context.catalog);
            let column_names = joined(create.columns.iter().map(|column| column.name.value.as_str()));
            names.relation(&table.name, Some(&column_names), "idx")
        }
    };
    table.indexes.push(Index { id: IndexId(0), name, columns, unique: create.unique, constraint: false });
    let mut notices = Vec::new();
    if let Some(lacking) = placement::unenforceable(&table, &table.placement) {
        if !table.has_hidden_key() || !placement::is_default(&table) {
            return Err(lacking.error(&table));
        }
        let Placement::Sharded { keyspace, key: _ } = table.placement else {
            return Err(WireError::internal("a whole table that a constraint doesn't fit"));
        };
        table.placement = placement::by_default(context, &table, keyspace, &mut notices)?;
    }
    Ok(schema(
        TAG,
        vec![SchemaChange::ReplaceTable { table, sequences: Vec::new(), fill: Vec::new() }],
        notices,
    ))
}
