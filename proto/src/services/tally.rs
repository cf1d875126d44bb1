//! How many rows tables have, as counted now and then.
//!
//! Counts are of a moment that is past: rows that change meanwhile may be counted or not, and each answer tells its age.

use crate::catalog::{Catalog, Placement};
use crate::ids::{KeyspaceNumber, ShardId, TableId};
use std::time::Duration;

/// A question for what a replica's tables have. Repeating it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TallyRequest {
    /// The shard.
    pub shard: ShardId,
    /// What was counted longer ago is counted anew, in the background.
    pub within: Duration,
    /// How many bytes of rows a second may be read for that.
    pub rate: u64,
}

/// What a replica's tables have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// What was counted last, if anything was.
    pub counted: Option<Counted>,
    /// How many rows have been counted since, if it is being counted anew.
    pub counting: Option<u64>,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// How long ago that came to its end.
    pub age: Duration,
    /// How long it took.
    pub took: Duration,
    /// The tables, by id.
    pub tables: Vec<TableTally>,
}

impl Counted {
    /// The biggest of a keyspace's tables whose rows lie by a key, if any of them was counted.
    pub fn biggest_of(&self, keyspace: KeyspaceNumber, catalog: &Catalog) -> Option<&TableTally> {
        let is_placed = |id: TableId| match catalog.table(id).map(|table| &table.placement) {
            Some(Placement::Sharded { keyspace: of, .. }) => *of == keyspace,
            Some(Placement::Single { .. } | Placement::Reference) | None => false,
        };
        let tables = self.tables.iter().filter(|tally| is_placed(tally.table));
        tables.max_by_key(|tally| (tally.bytes, tally.table))
    }

    /// How many rows a keyspace's own tables have, if all of them were counted.
    pub fn rows_of(&self, keyspace: KeyspaceNumber, catalog: &Catalog) -> Option<u64> {
        let own = catalog.tables().filter(|table| match table.placement {
            Placement::Sharded { keyspace: of, .. } | Placement::Single { keyspace: of } => of == keyspace,
            Placement::Reference => false,
        });
        let rows = |id| self.tables.iter().find(|tally| tally.table == id).map(|tally| tally.rows);
        own.map(|table| rows(table.id)).sum()
    }
}

/// What a table has on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableTally {
    /// The table.
    pub table: TableId,
    /// How many rows.
    pub rows: u64,
    /// How many bytes their values have, about.
    pub bytes: u64,
    /// The keyspace id before which about half of the rows are, and some at least; `None` if all rows are in one place.
    pub middle: Option<Vec<u8>>,
    /// How it has grown. Known of tables by range alone, once they were counted twice and had rows the first time.
    pub growth: Option<Growth>,
}

/// How a table's rows have changed since they were counted before, by the same node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// How long before.
    pub over: Duration,
    /// How many rows more there are; 0 if there are fewer.
    pub added: u64,
    /// How many rows are past the greatest keyspace id that there was.
    pub past: u64,
}

/// What a shard's tables have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardTally {
    /// The shard.
    pub shard: ShardId,
    /// What was counted.
    pub counted: Counted,
}
