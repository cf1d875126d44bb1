//! Descriptors as a planner would make them.

use proto::catalog::{Check, Column, ColumnDefault, Index, IndexColumn, Placement, Sequence, Table, TypeRef};
use proto::services::SchemaChange;
use proto::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, SequenceId, TableId};

pub const MAIN: KeyspaceNumber = KeyspaceNumber(1);
pub const SINGLE: KeyspaceNumber = KeyspaceNumber(2);

const INT8: TypeRef = TypeRef { oid: 20, modifier: -1 };

/// A column of type bigint.
pub fn column(id: u32, name: &str, not_null: bool) -> Column {
    Column { id: ColumnId(id), name: name.into(), ty: INT8, not_null, default: None }
}

/// A table `(a bigint primary key, b bigint)`.
pub fn table(name: &str, placement: Placement) -> Table {
    Table {
        id: TableId(0),
        name: name.into(),
        columns: vec![column(1, "a", true), column(2, "b", false)],
        primary_key: vec![ColumnId(1)],
        primary_key_name: Some(format!("{name}_pkey")),
        indexes: Vec::new(),
        checks: Vec::new(),
        placement,
        next_column: ColumnId(3),
        modified: SchemaVersion(0),
    }
}

/// Spread over `main` by `a`.
pub fn hashed() -> Placement {
    Placement::Sharded { keyspace: MAIN, key: vec![ColumnId(1)] }
}

/// In a range keyspace of its own.
pub fn ranged() -> Placement {
    Placement::Sharded { keyspace: KeyspaceNumber(0), key: vec![ColumnId(1)] }
}

pub fn create(table: Table) -> SchemaChange {
    SchemaChange::CreateTable { table, sequences: Vec::new() }
}

pub fn replace(table: Table) -> SchemaChange {
    SchemaChange::ReplaceTable { table, sequences: Vec::new(), fill: Vec::new() }
}

/// An index over column 2.
pub fn index(name: &str, unique: bool) -> Index {
    let columns = vec![IndexColumn { column: ColumnId(2), descending: false, nulls_first: false }];
    Index { id: IndexId(0), name: name.into(), columns, unique, constraint: false }
}

/// `CHECK (b > 0)`.
pub fn check(name: &str) -> Check {
    Check { name: name.into(), expression: "(b > 0)".into(), physical: "c2 > 0".into() }
}

/// A sequence from 1, without an owner.
pub fn sequence(name: &str) -> Sequence {
    Sequence {
        id: SequenceId(0),
        name: name.into(),
        ty: INT8,
        start: 1,
        increment: 1,
        min: 1,
        max: i64::MAX,
        cycle: false,
        cache: 1,
        owner: None,
        hidden: false,
    }
}

/// The table with a SERIAL key, and its sequence.
pub fn serial(mut table: Table) -> SchemaChange {
    let name = format!("{}_a_seq", table.name);
    table.columns[0].default = Some(ColumnDefault::Sequence { id: SequenceId(1), identity_always: None });
    let sequence = Sequence { owner: Some((TableId(0), ColumnId(1))), ..sequence(&name) };
    SchemaChange::CreateTable { table, sequences: vec![sequence] }
}
