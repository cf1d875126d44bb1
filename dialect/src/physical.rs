//! Tables and indexes as SQLite has them.
//!
//! In come the catalog's descriptors, out goes the DDL that a shard runs. Names are ids: `t<id>`, `c<id>`, `i<id>`,
//! and `k<n>` for the n-th CHECK constraint; no user's name ever reaches SQLite. Statements of one change belong into
//! one transaction.
//!
//! Tables are STRICT rowid tables with a primary key, as the session extension needs it, and never WITHOUT ROWID,
//! which the update hook wouldn't see. A primary key of one column that is stored as INTEGER is the rowid itself:
//! SQLite turns a NULL given for it into a new id, and no constraint can refuse that, so whoever inserts must
//! ([`rowid_column`]). A key's numeric columns are stored as they are, and a unique index `p<id>` over the key forms
//! holds 1.0 and 1.00 to be one key.
//!
//! Columns stand in the order of their ids, so that a table that was altered and one made anew agree: a changeset
//! names columns by position alone.

use crate::key::{has_own_key_form, key_sql};
use crate::types::Type;
use proto::catalog::{Column, Index, Placement, Table, TypeRef};
use proto::layout::{Layout, LayoutColumn, Place};
use proto::topology::Sharding;
use proto::{ColumnId, IndexId, TableId, Value, WireError};
use std::fmt::Write as _;

/// The table's name on a shard.
pub fn table_name(id: TableId) -> String {
    format!("t{id}")
}

/// The table of this name on a shard, if it is one of rows.
pub fn table_of(name: &str) -> Option<TableId> {
    let digits = name.strip_prefix('t')?;
    // No sign, and no zeros in front.
    digits.parse().ok().map(TableId).filter(|id| table_name(*id) == name)
}

/// The tables that a shard's SQL names, each as often as it does: `t5`, or `o5` while one is built anew.
pub fn tables_in(sql: &str) -> impl Iterator<Item = TableId> {
    let words = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter_map(|word| {
        let number = word.strip_prefix(['t', 'o'])?;
        number.parse().ok().map(TableId)
    })
}

/// The column's name on a shard.
pub fn column_name(id: ColumnId) -> String {
    format!("c{id}")
}

/// The index's name on a shard.
pub fn index_name(id: IndexId) -> String {
    format!("i{id}")
}

/// The name of the index that a primary key with numeric columns has on a shard.
pub fn primary_key_index_name(id: TableId) -> String {
    format!("p{id}")
}

/// The name that a CHECK constraint has on a shard, by its place in [`Table::checks`].
pub fn check_name(place: usize) -> String {
    format!("k{place}")
}

/// The name of a table's rows while the table is built anew.
fn old_table_name(id: TableId) -> String {
    format!("o{id}")
}

/// How SQLite stores a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Integer,
    Real,
    Text,
    Blob,
}

impl Storage {
    pub(crate) fn of(ty: Type) -> Self {
        match ty {
            Type::Bool | Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid | Type::Regclass => {
                Storage::Integer
            }
            Type::Date | Type::Timestamp | Type::Timestamptz => Storage::Integer,
            Type::Float4 | Type::Float8 => Storage::Real,
            Type::Text | Type::Varchar | Type::Bpchar | Type::Char | Type::Name => Storage::Text,
            Type::Array(_) | Type::Unknown => Storage::Text,
            Type::Numeric | Type::Bytea | Type::Uuid => Storage::Blob,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Storage::Integer => "INTEGER",
            Storage::Real => "REAL",
            Storage::Text => "TEXT",
            Storage::Blob => "BLOB",
        }
    }
}

fn type_of(ty: TypeRef) -> Result<Type, WireError> {
    Type::from_oid(ty.oid).ok_or_else(|| WireError::internal(format!("no type has the object id {}", ty.oid)))
}

fn column(table: &Table, id: ColumnId) -> Result<&Column, WireError> {
    let unknown = || WireError::internal(format!("table {} has no column {id}", table.id));
    table.column(id).ok_or_else(unknown)
}

/// The columns as they stand in the table.
fn in_order(table: &Table) -> Vec<&Column> {
    let mut columns: Vec<_> = table.columns.iter().collect();
    columns.sort_by_key(|column| column.id);
    columns
}

/// The primary key's column if it is the rowid. Whoever inserts must refuse a NULL for it: SQLite makes up an id.
pub fn rowid_column(table: &Table) -> Option<ColumnId> {
    let [id] = table.primary_key[..] else { return None };
    let ty = Type::from_oid(table.column(id)?.ty.oid)?;
    (Storage::of(ty) == Storage::Integer).then_some(id)
}

/// What indexes hold of a column, as SQL over the table: its key form. ON CONFLICT must name it so.
pub fn key_column(table: &Table, id: ColumnId) -> Result<String, WireError> {
    Ok(key_sql(type_of(column(table, id)?.ty)?, &column_name(id)))
}

/// How the table's rows lie on a shard, once a shard has it. `sharding` is its keyspace's; any, if it is in none.
pub fn layout(table: &Table, sharding: Sharding) -> Result<Layout, WireError> {
    let columns = in_order(table);
    let position = |id: &ColumnId| {
        let place = columns.iter().position(|column| column.id == *id);
        let unknown = || WireError::internal(format!("table {} has no column {id}", table.id));
        place.map(|place| place as u32).ok_or_else(unknown)
    };
    let positions = |ids: &[ColumnId]| ids.iter().map(position).collect::<Result<Vec<_>, _>>();
    let place = match &table.placement {
        Placement::Sharded { key, .. } => Place::Sharded(sharding, positions(key)?),
        Placement::Single { .. } => Place::Single,
        Placement::Reference => Place::Reference,
    };
    Ok(Layout {
        primary_key: positions(&table.primary_key)?,
        place,
        columns: columns.iter().map(|column| LayoutColumn { id: column.id, ty: column.ty.oid }).collect(),
    })
}

/// Statements that make the table with its indexes.
pub fn create(table: &Table) -> Result<Vec<String>, WireError> {
    let mut statements = vec![create_table(table)?];
    statements.extend(create_indexes(table)?);
    Ok(statements)
}

fn create_table(table: &Table) -> Result<String, WireError> {
    let rowid = rowid_column(table);
    let mut sql = format!("CREATE TABLE {} (", table_name(table.id));
    for column in in_order(table) {
        let storage = Storage::of(type_of(column.ty)?).name();
        let name = column_name(column.id);
        if rowid == Some(column.id) {
            write!(sql, "{name} {storage} PRIMARY KEY NOT NULL, ")
        } else if column.not_null || table.primary_key.contains(&column.id) {
            write!(sql, "{name} {storage} NOT NULL, ")
        } else {
            write!(sql, "{name} {storage}, ")
        }
        .expect("writing to a string can't fail");
    }
    if rowid.is_none() {
        let key: Vec<_> = table.primary_key.iter().map(|id| column_name(*id)).collect();
        if key.is_empty() {
            return Err(WireError::internal(format!("table {} has no primary key", table.id)));
        }
        write!(sql, "PRIMARY KEY ({}), ", key.join(", ")).expect("writing to a string can't fail");
    }
    for (place, check) in table.checks.iter().enumerate() {
        write!(sql, "CONSTRAINT {} CHECK ({}), ", check_name(place), check.physical)
            .expect("writing to a string can't fail");
    }
    sql.truncate(sql.len() - 2);
    sql.push_str(") STRICT");
    Ok(sql)
}

fn create_indexes(table: &Table) -> Result<Vec<String>, WireError> {
    let own_key = primary_key_index(table)?;
    let secondary = table.indexes.iter().map(|index| create_index(table, index));
    own_key.into_iter().map(Ok).chain(secondary).collect()
}

fn primary_key_index(table: &Table) -> Result<Option<String>, WireError> {
    let mut keys = Vec::new();
    let mut needed = false;
    for id in &table.primary_key {
        needed |= has_own_key_form(type_of(column(table, *id)?.ty)?);
        keys.push(key_column(table, *id)?);
    }
    let (name, on) = (primary_key_index_name(table.id), table_name(table.id));
    Ok(needed.then(|| format!("CREATE UNIQUE INDEX {name} ON {on} ({})", keys.join(", "))))
}

fn create_index(table: &Table, index: &Index) -> Result<String, WireError> {
    let mut keys = Vec::new();
    for indexed in &index.columns {
        let direction = if indexed.descending { " DESC" } else { "" };
        keys.push(format!("{}{direction}", key_column(table, indexed.column)?));
    }
    let unique = if index.unique { "UNIQUE " } else { "" };
    let (name, on) = (index_name(index.id), table_name(table.id));
    Ok(format!("CREATE {unique}INDEX {name} ON {on} ({})", keys.join(", ")))
}

/// Statements that make `new` of `old`: the same table id. `fill` has the values that existing rows get in added
/// columns; NULL for those it leaves out.
///
/// A column may change its type among the integers, and between text and varchar: those are stored alike. Whether
/// the rows there are fit the new type is for whoever asks to know. Any other change of type is refused.
pub fn change(old: &Table, new: &Table, fill: &[(ColumnId, Value)]) -> Result<Vec<String>, WireError> {
    for column in &new.columns {
        if let Some(before) = old.column(column.id)
            && !stored_alike(type_of(before.ty)?, type_of(column.ty)?)
        {
            return Err(WireError::unsupported("changing a column's type to one that is stored differently")
                .with_hint("Add a column of the new type, fill it, and drop the old one."));
        }
    }
    if needs_rebuild(old, new, fill) { rebuild(old, new, fill) } else { alter(old, new, fill) }
}

fn stored_alike(old: Type, new: Type) -> bool {
    let integer = |ty: Type| matches!(ty, Type::Int2 | Type::Int4 | Type::Int8);
    let text = |ty: Type| matches!(ty, Type::Text | Type::Varchar);
    old == new || (integer(old) && integer(new)) || (text(old) && text(new))
}

fn fill_of(fill: &[(ColumnId, Value)], id: ColumnId) -> &Value {
    fill.iter().find(|(column, _)| *column == id).map_or(&Value::Null, |(_, value)| value)
}

/// What SQLite's ALTER TABLE can't do: another key, other constraints, a forbidden NULL in existing rows, or a column
/// that doesn't come after all others.
fn needs_rebuild(old: &Table, new: &Table, fill: &[(ColumnId, Value)]) -> bool {
    let checks = |table: &Table| table.checks.iter().map(|check| check.physical.clone()).collect::<Vec<_>>();
    if old.primary_key != new.primary_key || checks(old) != checks(new) {
        return true;
    }
    let last = old.columns.iter().map(|column| column.id).max();
    new.columns.iter().any(|column| match old.column(column.id) {
        Some(before) => before.not_null != column.not_null,
        None => Some(column.id) < last || (column.not_null && fill_of(fill, column.id).is_null()),
    })
}

fn alter(old: &Table, new: &Table, fill: &[(ColumnId, Value)]) -> Result<Vec<String>, WireError> {
    let name = table_name(new.id);
    let mut statements = Vec::new();
    let same = |a: &Index, b: &Index| a.id == b.id && a.unique == b.unique && a.columns == b.columns;
    for index in old.indexes.iter().filter(|index| !new.indexes.iter().any(|kept| same(index, kept))) {
        statements.push(format!("DROP INDEX {}", index_name(index.id)));
    }
    for column in old.columns.iter().filter(|column| new.column(column.id).is_none()) {
        statements.push(format!("ALTER TABLE {name} DROP COLUMN {}", column_name(column.id)));
    }
    for column in in_order(new).into_iter().filter(|column| old.column(column.id).is_none()) {
        let storage = Storage::of(type_of(column.ty)?).name();
        let not_null = if column.not_null { " NOT NULL" } else { "" };
        let mut sql = format!("ALTER TABLE {name} ADD COLUMN {} {storage}{not_null}", column_name(column.id));
        let value = fill_of(fill, column.id);
        if !value.is_null() {
            // The rows there are aren't rewritten: SQLite reads the default in the column's place.
            write!(sql, " DEFAULT {}", literal(value)?).expect("writing to a string can't fail");
        }
        statements.push(sql);
    }
    for index in new.indexes.iter().filter(|index| !old.indexes.iter().any(|kept| same(index, kept))) {
        statements.push(create_index(new, index)?);
    }
    Ok(statements)
}

/// The old table steps aside, so that what the copy breaks is reported under the table's own name.
fn rebuild(old: &Table, new: &Table, fill: &[(ColumnId, Value)]) -> Result<Vec<String>, WireError> {
    let (name, aside) = (table_name(new.id), old_table_name(new.id));
    let columns = in_order(new);
    let names: Vec<_> = columns.iter().map(|column| column_name(column.id)).collect();
    let mut values = Vec::with_capacity(columns.len());
    for column in &columns {
        values.push(match old.column(column.id) {
            Some(_) => column_name(column.id),
            None => literal(fill_of(fill, column.id))?,
        });
    }
    let mut statements = vec![
        format!("ALTER TABLE {name} RENAME TO {aside}"),
        create_table(new)?,
        format!("INSERT INTO {name} ({}) SELECT {} FROM {aside}", names.join(", "), values.join(", ")),
        // Takes its indexes along, whose names the new ones need.
        format!("DROP TABLE {aside}"),
    ];
    statements.extend(create_indexes(new)?);
    Ok(statements)
}

/// A value as an SQL literal.
fn literal(value: &Value) -> Result<String, WireError> {
    Ok(match value {
        Value::Null => "NULL".into(),
        Value::Int(value) => value.to_string(),
        Value::Real(value) if value.is_nan() => return Err(crate::float::refuse_nan()),
        Value::Real(f64::INFINITY) => "9e999".into(),
        Value::Real(f64::NEG_INFINITY) => "-9e999".into(),
        Value::Real(value) => format!("{value:e}"),
        Value::Text(value) => format!("'{}'", value.replace('\'', "''")),
        Value::Blob(value) => format!("x'{}'", hex::encode(value)),
    })
}

/// Statements that drop the table.
pub fn drop(id: TableId) -> Vec<String> {
    vec![format!("DROP TABLE {}", table_name(id))]
}

/// Statements that empty the table.
pub fn truncate(id: TableId) -> Vec<String> {
    vec![format!("DELETE FROM {}", table_name(id))]
}
