#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part, and may panic")]

//! A catalog and topology made by the planner's own DDL, as the coordinator would.

pub mod executor;

use planner::plan::{Action, SchemaAction};
use planner::text::split;
use planner::{Context, Planned, Settings};
use proto::catalog::{Catalog, ColumnDefault, FIRST_USER_ID, Placement, Sequence, Table};
use proto::services::SchemaChange;
use proto::topology::{Keyspace, Shard, Sharding, Topology};
use proto::{
    GroupId, Incarnation, IndexId, KeyRange, KeyspaceNumber, LogIndex, NodeId, SchemaVersion, SequenceId,
    ShardId, TableId, WireError,
};
use std::sync::Arc;

#[derive(Clone)]
/// A cluster that has nothing but a catalog and a topology.
pub struct World {
    pub catalog: Catalog,
    pub topology: Topology,
    tables: Vec<Arc<Table>>,
    sequences: Vec<Arc<Sequence>>,
    next: u32,
}

impl World {
    /// `main` with two shards, and `single`.
    pub fn new() -> World {
        let mut world = World {
            catalog: Catalog::default(),
            topology: Topology::default(),
            tables: Vec::new(),
            sequences: Vec::new(),
            next: FIRST_USER_ID,
        };
        world.keyspace(1, "main", Sharding::Hash, KeyRange::split_evenly(2));
        world.keyspace(2, "single", Sharding::Single, vec![KeyRange::full()]);
        world
    }

    fn keyspace(&mut self, number: u32, name: &str, sharding: Sharding, ranges: Vec<KeyRange>) {
        let number = KeyspaceNumber(number);
        let mut shards = Vec::new();
        for range in ranges {
            let id = ShardId(self.topology.shards.len() as u64 + 1);
            shards.push(id);
            let (group, incarnation) = (GroupId(id.0 + 1), Incarnation(1));
            let replicas = vec![NodeId(1)];
            self.topology.shards.insert(
                id,
                Shard {
                    id,
                    keyspace: number,
                    range,
                    incarnation,
                    group,
                    replicas,
                    formed: true,
                    first: LogIndex(0),
                },
            );
        }
        let keyspace = Keyspace { number, name: name.to_owned(), sharding, replicas: 1, shards, auto: None };
        self.topology.keyspaces.insert(number, keyspace);
    }

    /// Plans the statements of a string, each on its own.
    pub fn plan(&self, sql: &str, settings: &Settings) -> Result<Vec<Planned>, WireError> {
        let context = Context { catalog: &self.catalog, topology: &self.topology, settings };
        split(sql)?.iter().map(|text| planner::plan(text, &[], &context)).collect()
    }

    /// Runs DDL.
    pub fn run(&mut self, sql: &str) -> Result<(), WireError> {
        for planned in self.plan(sql, &Settings::default())? {
            if let Action::Schema(SchemaAction { changes, .. }) = &planned.plan.action {
                changes.iter().for_each(|change| self.apply(change.clone()));
            }
        }
        Ok(())
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// What the coordinator does with a change.
    pub fn apply(&mut self, change: SchemaChange) {
        match change {
            SchemaChange::CreateTable { mut table, sequences } => {
                table.id = TableId(self.id());
                let mut ids = Vec::new();
                for mut sequence in sequences {
                    sequence.id = SequenceId(self.id());
                    ids.push(sequence.id);
                    self.sequences.push(Arc::new(sequence));
                }
                for column in &mut table.columns {
                    if let Some(ColumnDefault::Sequence { id, .. }) = &mut column.default
                        && id.0 >= 1
                        && id.0 <= ids.len() as u32
                    {
                        *id = ids[id.0 as usize - 1];
                    }
                }
                for index in &mut table.indexes {
                    index.id = IndexId(self.id());
                }
                if let Placement::Sharded { keyspace: keyspace @ KeyspaceNumber(0), .. } =
                    &mut table.placement
                {
                    let number = self.topology.keyspaces.len() as u32 + 1;
                    *keyspace = KeyspaceNumber(number);
                    let name = table.name.clone();
                    self.keyspace(number, &name, Sharding::Range, vec![KeyRange::full()]);
                }
                self.tables.push(Arc::new(table));
            }
            SchemaChange::ReplaceTable { mut table, .. } => {
                for index in &mut table.indexes {
                    if index.id.0 == 0 {
                        index.id = IndexId(self.id());
                    }
                }
                self.tables.retain(|known| known.id != table.id);
                self.tables.push(Arc::new(table));
            }
            SchemaChange::CreateSequence(mut sequence) => {
                sequence.id = SequenceId(self.id());
                self.sequences.push(Arc::new(sequence));
            }
            SchemaChange::DropTables(ids) => {
                self.tables.retain(|table| !ids.contains(&table.id));
                let gone = |s: &Sequence| s.owner.is_some_and(|(table, _)| ids.contains(&table));
                self.sequences.retain(|s| !gone(s));
            }
            SchemaChange::DropSequences(ids) => self.sequences.retain(|s| !ids.contains(&s.id)),
            SchemaChange::Truncate { .. } => {}
            other => panic!("the tests' catalog doesn't do {other:?}"),
        }
        self.catalog = Catalog::new(SchemaVersion(1), self.tables.clone(), self.sequences.clone());
    }
}
