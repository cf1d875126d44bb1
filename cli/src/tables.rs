//! `shoal tables`: what tables there are, where their rows lie, how many these are and how big.
//!
//! In come the cluster's state and what followers have counted, out goes a table. Rows and bytes are of when they were counted, and
//! each line tells how long ago that was; what isn't counted on all its shards yet is left out.

use crate::admin;
use crate::arguments;
use crate::failure::Failure;
use crate::listings::{new_table, print, tallies};
use comfy_table::Table;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use proto::catalog::{Placement, Table as Definition};
use proto::services::{ClusterState, ShardTally, TableTally};
use proto::topology::Sharding;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
struct TableLine {
    table: String,
    /// Null for a reference table, which every keyspace has.
    keyspace: Option<String>,
    /// `hash`, `range`, `single`, or `reference`.
    sharding: &'static str,
    /// The columns of the shard key.
    key: Vec<String>,
    shards: usize,
    rows: Option<u64>,
    /// Of the rows' values, about; indexes aren't counted.
    bytes: Option<u64>,
    /// How long ago the first of the shards was counted.
    age_ms: Option<u64>,
}

/// Runs `shoal tables`.
pub async fn run(options: arguments::Status) -> Result<(), Failure> {
    let status = admin::status(&options.admin).await?;
    let tallies = tallies(&options.admin).await?;
    print(&options, &lines(&status.state, &tallies), table)
}

/// All tables, by name.
fn lines(state: &ClusterState, tallies: &[ShardTally]) -> Vec<TableLine> {
    let mut lines: Vec<_> = state.catalog.tables().map(|table| line(state, tallies, table)).collect();
    lines.sort_by(|a, b| a.table.cmp(&b.table));
    lines
}

fn line(state: &ClusterState, tallies: &[ShardTally], table: &Definition) -> TableLine {
    let topology = &state.topology;
    let of = |keyspace| topology.keyspaces.get(&keyspace);
    let (keyspace, sharding, key) = match &table.placement {
        Placement::Sharded { keyspace, key } => {
            let keyspace = of(*keyspace);
            let sharding = match keyspace.map(|keyspace| keyspace.sharding) {
                Some(Sharding::Range) => "range",
                _ => "hash",
            };
            (keyspace, sharding, key.as_slice())
        }
        Placement::Single { keyspace } => (of(*keyspace), "single", &[][..]),
        Placement::Reference => (None, "reference", &[][..]),
    };
    let shards: Vec<_> = match keyspace {
        Some(keyspace) => keyspace.shards.clone(),
        None => topology.keyspaces.values().flat_map(|keyspace| keyspace.shards.clone()).collect(),
    };
    let mut counted: Vec<(Duration, &TableTally)> = Vec::new();
    for tally in tallies.iter().filter(|tally| shards.contains(&tally.shard)) {
        let found = tally.counted.tables.iter().find(|found| found.table == table.id);
        counted.extend(found.map(|found| (tally.counted.age, found)));
    }
    if counted.len() < shards.len() {
        counted.clear();
    }
    let of_all = |value: fn(&TableTally) -> u64| {
        let values = counted.iter().map(|(_, tally)| value(tally));
        // All shards have the same rows of a reference table.
        if keyspace.is_none() { values.max() } else { (!counted.is_empty()).then(|| values.sum()) }
    };
    let age = counted.iter().map(|(age, _)| *age).max();
    TableLine {
        table: table.name.clone(),
        keyspace: keyspace.map(|keyspace| keyspace.name.clone()),
        sharding,
        key: key.iter().filter_map(|id| table.column(*id)).map(|column| column.name.clone()).collect(),
        shards: shards.len(),
        rows: of_all(|tally| tally.rows),
        bytes: of_all(|tally| tally.bytes),
        age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn table(lines: &[TableLine]) -> Table {
    let mut table =
        new_table(&["table", "keyspace", "placed by", "shards", "rows", "size", "counted"], &[3, 4, 5]);
    for line in lines {
        let placed = match line.key.as_slice() {
            [] => line.sharding.to_owned(),
            key => format!("{} ({})", line.sharding, key.join(", ")),
        };
        table.add_row([
            line.table.clone(),
            line.keyspace.clone().unwrap_or_default(),
            placed,
            line.shards.to_string(),
            line.rows.map_or_else(String::new, |rows| HumanCount(rows).to_string()),
            line.bytes.map_or_else(String::new, |bytes| HumanBytes(bytes).to_string()),
            line.age_ms.map_or_else(|| "not yet".to_owned(), ago),
        ]);
    }
    table
}

/// How long ago something was counted, for people.
pub fn ago(ms: u64) -> String {
    format!("{} ago", HumanDuration(Duration::from_secs(ms / 1000)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::listings::tests::{cells, status};
    use proto::catalog::{Catalog, Column, TypeRef};
    use proto::services::Counted;
    use proto::{ColumnId, KeyspaceNumber, SchemaVersion, ShardId, TableId};
    use std::sync::Arc;

    pub(crate) fn definition(id: u32, name: &str, placement: Placement) -> Arc<Definition> {
        let ty = TypeRef { oid: 20, modifier: -1 };
        let column = |(id, name): (u32, &str)| Column {
            id: ColumnId(id),
            name: name.into(),
            ty,
            not_null: true,
            default: None,
        };
        Arc::new(Definition {
            id: TableId(id),
            name: name.into(),
            columns: [(1, "at"), (2, "id")].into_iter().map(column).collect(),
            primary_key: vec![ColumnId(1), ColumnId(2)],
            primary_key_name: None,
            indexes: Vec::new(),
            checks: Vec::new(),
            placement,
            next_column: ColumnId(3),
            modified: SchemaVersion(1),
        })
    }

    pub(crate) fn tally(shard: u64, age: u64, tables: &[(u32, u64, u64)]) -> ShardTally {
        let tables = tables.iter().map(|(table, rows, bytes)| TableTally {
            table: TableId(*table),
            rows: *rows,
            bytes: *bytes,
            middle: None,
            growth: None,
        });
        let counted =
            Counted { age: Duration::from_secs(age), took: Duration::ZERO, tables: tables.collect() };
        ShardTally { shard: ShardId(shard), counted }
    }

    #[test]
    fn tables_are_counted_over_their_shards() {
        let main = KeyspaceNumber(1);
        let tables = [
            definition(
                1,
                "event",
                Placement::Sharded { keyspace: main, key: vec![ColumnId(1), ColumnId(2)] },
            ),
            definition(2, "color", Placement::Reference),
            definition(3, "new", Placement::Sharded { keyspace: main, key: vec![ColumnId(2)] }),
        ];
        let state =
            ClusterState { catalog: Arc::new(Catalog::new(SchemaVersion(1), tables, [])), ..status().state };
        // Shard 3 doesn't serve; and the second one was counted before there was the third table.
        let tallies = [
            tally(1, 180, &[(1, 1_200, 1 << 20), (2, 5, 50), (3, 7, 70)]),
            tally(2, 60, &[(1, 34, 1 << 19), (2, 5, 50)]),
            tally(3, 1, &[(1, 34, 1 << 19), (2, 5, 50)]),
        ];
        let lines = lines(&state, &tallies);
        let expected: [&[&str]; 4] = [
            &["table", "keyspace", "placed by", "shards", "rows", "size", "counted"],
            &["color", "reference", "2", "5", "50 B", "3 minutes ago"],
            &["event", "main", "hash (at, id)", "2", "1,234", "1.50 MiB", "3 minutes ago"],
            &["new", "main", "hash (id)", "2", "not yet"],
        ];
        assert_eq!(cells(&table(&lines)), expected);
        let json = serde_json::to_value(&lines[1]).unwrap();
        assert_eq!(
            (&json["rows"], &json["age_ms"], &json["key"][1]),
            (&1_234.into(), &180_000.into(), &"id".into())
        );
    }
}
