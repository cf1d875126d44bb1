//! How a table's rows lie on a shard, and what places them.
//!
//! A changeset names columns by their positions alone. Each shard's database has the layout of each of its tables, written
//! by the schema step that made it so; whoever reads rows without the catalog finds there which column is which, and
//! the shard key. Layouts are kept on disk as messages (`catalog.proto`). Nothing here has a name that a user gave.

use crate::ids::{ColumnId, TableId};
use crate::topology::Sharding;

/// What a schema step makes of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// The table.
    pub table: TableId,
    /// How its rows lie from then on; `None` if it is gone.
    pub layout: Option<Layout>,
}

/// How a table's rows lie on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its columns, as they stand in the table.
    pub columns: Vec<LayoutColumn>,
    /// The positions of the key that rows are stored and replicated by, most significant first.
    pub primary_key: Vec<u32>,
    /// What places the rows.
    pub place: Place,
}

/// A column as a shard has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutColumn {
    /// Its id.
    pub id: ColumnId,
    /// The object id of its type. A column may by now have another type of those that are stored and compared alike: that
    /// is no step of the shards'.
    pub ty: u32,
}

/// What places a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The shard key, at these positions, as its keyspace does. Each of them belongs to the primary key, too.
    Sharded(Sharding, Vec<u32>),
    /// All rows are on the one shard of a keyspace.
    Single,
    /// All rows are on every shard.
    Reference,
}
