//! Tables and indexes as SQLite has them.
//!
//! In come the catalog's descriptors, out goes the DDL that a shard runs. Names are ids: `t<id>`, `c<id>`, `i<id>`;
//! no user's name ever reaches SQLite.

use proto::catalog::Table;
use proto::{ColumnId, IndexId, TableId, Value, WireError};

/// The table's name on a shard.
pub fn table_name(id: TableId) -> String {
    format!("t{id}")
}

/// The column's name on a shard.
pub fn column_name(id: ColumnId) -> String {
    format!("c{id}")
}

/// The index's name on a shard.
pub fn index_name(id: IndexId) -> String {
    format!("i{id}")
}

/// Statements that make the table with its indexes.
pub fn create(_table: &Table) -> Result<Vec<String>, WireError> {
    Err(WireError::unsupported("physical"))
}

/// Statements that make `new` of `old`: the same table id. `fill` has the values that existing rows get in added
/// columns.
pub fn change(_old: &Table, _new: &Table, _fill: &[(ColumnId, Value)]) -> Result<Vec<String>, WireError> {
    Err(WireError::unsupported("physical"))
}

/// Statements that drop the table.
pub fn drop(id: TableId) -> Vec<String> {
    vec![format!("DROP TABLE {}", table_name(id))]
}

/// Statements that empty the table.
pub fn truncate(id: TableId) -> Vec<String> {
    vec![format!("DELETE FROM {}", table_name(id))]
}
