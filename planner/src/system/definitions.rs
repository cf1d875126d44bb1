//! The SQL that would make an index, constraint or default again, as PostgreSQL prints it.

use crate::text::quoted;
use proto::ColumnId;
use proto::catalog::{Catalog, Column, ColumnDefault, IndexColumn, Table};

fn names(table: &Table, columns: impl IntoIterator<Item = ColumnId>) -> String {
    let name = |id| table.column(id).map_or(String::new(), |column| quoted(&column.name).into_owned());
    columns.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// An index's columns, in parentheses.
fn index_columns(table: &Table, columns: &[IndexColumn]) -> String {
    let columns: Vec<_> = columns
        .iter()
        .map(|column| {
            let order = match (column.descending, column.nulls_first) {
                (false, false) => "",
                (false, true) => " NULLS FIRST",
                (true, true) => " DESC",
                (true, false) => " DESC NULLS LAST",
            };
            format!("{}{order}", names(table, [column.column]))
        })
        .collect();
    columns.join(", ")
}

/// `pg_get_indexdef`: with and without the schema.
pub(super) fn index(table: &Table, name: &str, unique: bool, columns: &[IndexColumn]) -> (String, String) {
    let unique = if unique { "UNIQUE " } else { "" };
    let (name, of) = (quoted(name), quoted(&table.name));
    let columns = index_columns(table, columns);
    (
        format!("CREATE {unique}INDEX {name} ON public.{of} USING btree ({columns})"),
        format!("CREATE {unique}INDEX {name} ON {of} USING btree ({columns})"),
    )
}

/// `pg_get_constraintdef` of a primary key or unique constraint.
pub(super) fn key(table: &Table, primary: bool, columns: impl IntoIterator<Item = ColumnId>) -> String {
    let what = if primary { "PRIMARY KEY" } else { "UNIQUE" };
    format!("{what} ({})", names(table, columns))
}

/// `pg_get_constraintdef` of a CHECK, as it is and pretty.
pub(super) fn check(expression: &str) -> (String, String) {
    (format!("CHECK (({expression}))"), format!("CHECK ({expression})"))
}

/// `pg_get_expr` of a column's default. None for an identity column, whose sequence is part of it.
pub(super) fn default(catalog: &Catalog, column: &Column) -> Option<String> {
    match column.default.as_ref()? {
        ColumnDefault::Expression(text) => Some(text.clone()),
        ColumnDefault::Sequence { id: _, identity_always: Some(_) } => None,
        ColumnDefault::Sequence { id, identity_always: None } => {
            let name = quoted(&catalog.sequence(*id)?.name).replace('\'', "''");
            Some(format!("nextval('{name}'::regclass)"))
        }
    }
}
