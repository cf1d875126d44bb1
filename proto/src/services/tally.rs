//! How many rows tables have, as counted now and then.
//!
//! Counts are of a moment that is past: rows that change meanwhile may be counted or not, and each answer tells its age.

use crate::ids::{ShardId, TableId};
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
}

/// What a shard's tables have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardTally {
    /// The shard.
    pub shard: ShardId,
    /// What was counted.
    pub counted: Counted,
}
