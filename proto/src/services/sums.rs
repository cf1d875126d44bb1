//! Comparing the rows of a shard that takes over with those of the shards from which it does.
//!
//! One flow is compared at a time, in spans of keys: the target's leader has the flow stop, has a replica of the source open a
//! snapshot, goes on to exactly where that is, and opens its own. Then both add up the hashes of their rows, part by part,
//! and who has asked is told how far that went, or where they differ.

use crate::ids::{LogIndex, ShardId, TableId};
use crate::key_range::KeyRange;
use crate::value::Value;
use std::time::Duration;

/// Asks a replica of a source for sums of its rows, from one snapshot, in the order of tables and their primary keys.
#[derive(Clone, Debug, PartialEq)]
pub struct SumsRequest {
    /// The shard. It needn't serve.
    pub shard: ShardId,
    /// The snapshot has all up to here.
    pub after: LogIndex,
    /// The rows with a keyspace id in here.
    pub range: KeyRange,
    /// And those of reference tables?
    pub references: bool,
    /// Where to begin; nothing for the first table.
    pub from: Option<SumsPlace>,
    /// No further part is begun that long after the snapshot was opened. There is one, if there are rows.
    pub time: Duration,
    /// How long opening it may take.
    pub timeout: Duration,
}

/// A place among the rows of a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct SumsPlace {
    /// All tables before this one are done.
    pub table: TableId,
    /// And of this one the rows up to this primary key, as values are stored; if there is none, all of it.
    pub key: Option<Vec<Value>>,
    /// What the table was made by. If it is made otherwise by now, all its rows are to be read again.
    pub schema: u128,
}

/// What is said of sums. A stream that ends without saying that all is done goes on elsewhere after its last part.
#[derive(Clone, Debug, PartialEq)]
pub enum Sums {
    /// The snapshot is open, and has all up to here and nothing beyond. This comes first.
    Open(LogIndex),
    /// A part of a table's rows. Parts follow each other without a gap, and each table has one at least.
    Part(SumsPart),
    /// There is nothing more in any table.
    End,
}

/// Some rows of one table.
#[derive(Clone, Debug, PartialEq)]
pub struct SumsPart {
    /// After this primary key; nothing for the first row.
    pub after: Option<Vec<Value>>,
    /// Up to here.
    pub to: SumsPlace,
    /// How many these are.
    pub rows: u64,
    /// The sum of their hashes.
    pub sum: u128,
}

/// Asks the leader of a shard that takes over to compare a span of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct CompareRequest {
    /// The shard.
    pub target: ShardId,
    /// From which it takes over.
    pub source: ShardId,
    /// Where to begin; nothing for the first table.
    pub from: Option<SumsPlace>,
    /// Snapshots aren't to be open for much longer.
    pub time: Duration,
    /// How long it may take until they are open.
    pub timeout: Duration,
}

impl CompareRequest {
    /// How long the whole may take.
    pub fn longest(&self) -> Duration {
        self.timeout.saturating_add(self.time.saturating_mul(3))
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The source's position at which it was compared.
    pub position: LogIndex,
    /// How many rows were the same.
    pub rows: u64,
    /// How it goes on.
    pub next: ComparedNext,
}

/// What follows on a span.
#[derive(Clone, Debug, PartialEq)]
pub enum ComparedNext {
    /// More rows.
    From(SumsPlace),
    /// Nothing: all rows were compared.
    End,
    /// Nothing: these aren't the same.
    Differs(Difference),
}

/// Rows that aren't the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Of this table.
    pub table: TableId,
    /// After this primary key; nothing for the first row.
    pub after: Option<Vec<Value>>,
    /// Up to this one; nothing for the last row.
    pub to: Option<Vec<Value>>,
    /// How many there are on the source and on the target. `None`: the table itself isn't the same.
    pub rows: Option<(u64, u64)>,
}
