//! CREATE TABLE: from what was written to the table's descriptor.

use super::command::{
    ColumnConstraintKind, ColumnDefinition, CreateTable, SequenceOption, TableConstraintKind,
};
use super::cursor::Name;
use super::expressions::Expressions;
use super::names::{self, NewNames, at, check_column_name, creatable, joined, taken};
use super::{notice, placement, schema, sequence, types};
use crate::plan::{Notice, SchemaAction};
use dialect::Type;
use dialect::types::Typed;
use proto::catalog::{Check, Column, ColumnDefault, Index, IndexColumn, Placement, Sequence, Table};
use proto::services::SchemaChange;
use proto::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, SequenceId, SqlState, TableId, WireError};

/// The most columns of a table, as in PostgreSQL.
pub(super) const MAX_COLUMNS: usize = 1600;
/// The most columns of an index, as in PostgreSQL.
const MAX_INDEX_COLUMNS: usize = 32;

/// What a column's definition comes to, its keys aside.
pub(super) struct NewColumn {
    pub column: Column,
    /// The sequence of SERIAL or IDENTITY.
    pub sequence: Option<Sequence>,
}

/// A constraint that has an index.
pub(super) struct Key {
    pub name: Option<Name>,
    pub columns: Vec<Name>,
    pub primary: bool,
    pub position: Option<u32>,
}

/// Binds CREATE TABLE.
pub(super) fn plan(create: &CreateTable, expressions: Expressions<'_>) -> Result<SchemaAction, WireError> {
    let context = expressions.context;
    creatable(&create.name)?;
    let mut notices = Vec::new();
    let action = |changes, notices| schema("CREATE TABLE", changes, notices);
    if context.catalog.resolve(&create.name.name).is_some() {
        let error = taken(&create.name.name);
        if !create.if_not_exists {
            return Err(error);
        }
        notices.push(notice(SqlState::DUPLICATE_TABLE, format!("{}, skipping", error.message)));
        return Ok(action(Vec::new(), notices));
    }
    let mut names = NewNames::new(context.catalog);
    names.take_relation(&create.name.name)?;
    let mut table = Table {
        id: TableId(0),
        name: create.name.name.clone(),
        columns: Vec::new(),
        primary_key: vec![ColumnId::HIDDEN_KEY],
        primary_key_name: None,
        indexes: Vec::new(),
        checks: Vec::new(),
        placement: Placement::Reference,
        next_column: ColumnId(1),
        modified: SchemaVersion(0),
    };
    let mut sequences = Vec::new();
    let mut keys = Vec::new();
    if create.columns.len() > MAX_COLUMNS {
        let message = format!("tables can have at most {MAX_COLUMNS} columns");
        return Err(WireError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    for definition in &create.columns {
        if table.columns.iter().any(|column| column.name == definition.name.value) {
            let message = format!("column \"{}\" specified more than once", definition.name.value);
            return Err(WireError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        let new = column(definition, &mut table, &mut names, expressions)?;
        keys.extend(column_keys(definition));
        add_column(new, &mut table, &mut sequences);
    }
    for constraint in &create.constraints {
        let (columns, primary) = match &constraint.kind {
            TableConstraintKind::PrimaryKey(columns) => (columns, true),
            TableConstraintKind::Unique(columns) => (columns, false),
            TableConstraintKind::Check(_) => continue,
        };
        let (name, position) = (constraint.name.clone(), constraint.position);
        keys.push(Key { name, columns: columns.clone(), primary, position });
    }
    // As PostgreSQL: the primary key first, so that its columns are NOT NULL and its name is taken first.
    keys.sort_by_key(|key| !key.primary);
    if let [_, second, ..] = keys.iter().filter(|key| key.primary).collect::<Vec<_>>().as_slice() {
        return Err(at(multiple_primary_keys(&table.name), second.position));
    }
    for key in &keys {
        add_key(key, &mut table, &mut names)?;
    }
    for definition in &create.columns {
        for constraint in &definition.constraints {
            if let ColumnConstraintKind::Check(condition) = &constraint.kind {
                add_check(constraint.name.as_ref(), condition, &mut table, &mut names, expressions)?;
            }
        }
    }
    for constraint in &create.constraints {
        if let TableConstraintKind::Check(condition) = &constraint.kind {
            add_check(constraint.name.as_ref(), condition, &mut table, &mut names, expressions)?;
        }
    }
    if table.has_hidden_key() {
        add_hidden_key(&mut table, &mut sequences);
    }
    let wish = placement::wish(&create.parameters)?;
    let placed = placement::place(context, &table, create.partition.as_ref(), &wish, &mut notices)?;
    if let Placement::Sharded { keyspace: KeyspaceNumber(0), key: _ } = &placed
        && context.topology.keyspace_named(&table.name).is_some()
    {
        let message = format!("keyspace \"{}\" already exists", table.name);
        return Err(WireError::new(SqlState::DUPLICATE_OBJECT, message).with_hint(
            "A table with PARTITION BY RANGE has a keyspace of its own name. Name it otherwise.",
        ));
    }
    table.placement = placed;
    Ok(action(vec![SchemaChange::CreateTable { table, sequences }], notices))
}

pub(super) fn multiple_primary_keys(table: &str) -> WireError {
    let message = format!("multiple primary keys for table \"{table}\" are not allowed");
    WireError::new(SqlState::INVALID_TABLE_DEFINITION, message)
}

/// The key and its sequence that a table without a primary key has.
fn add_hidden_key(table: &mut Table, sequences: &mut Vec<Sequence>) {
    sequences.push(Sequence {
        id: SequenceId(0),
        name: String::new(),
        ty: Typed::plain(Type::Int8).to_ref(),
        start: 1,
        increment: 1,
        min: 1,
        max: i64::MAX,
        cycle: false,
        cache: 1,
        owner: Some((table.id, ColumnId::HIDDEN_KEY)),
        hidden: true,
    });
    table.columns.push(Column {
        id: ColumnId::HIDDEN_KEY,
        name: "shoal_hidden_key".to_owned(),
        ty: Typed::plain(Type::Int8).to_ref(),
        not_null: true,
        default: Some(ColumnDefault::Sequence {
            id: SequenceId(sequences.len() as u32),
            identity_always: None,
        }),
    });
}

/// Adds a column that [`column`] made, with its sequence.
pub(super) fn add_column(new: NewColumn, table: &mut Table, sequences: &mut Vec<Sequence>) {
    let NewColumn { mut column, sequence } = new;
    if let Some(mut sequence) = sequence {
        sequence.owner = Some((table.id, column.id));
        sequences.push(sequence);
        if let Some(ColumnDefault::Sequence { id, identity_always: _ }) = &mut column.default {
            *id = SequenceId(sequences.len() as u32);
        }
    }
    table.next_column = ColumnId(table.next_column.0 + 1);
    // The hidden key stays last.
    let end =
        table.columns.len() - usize::from(table.columns.last().is_some_and(|c| c.id == ColumnId::HIDDEN_KEY));
    table.columns.insert(end, column);
}

/// The keys that a column's own constraints declare.
pub(super) fn column_keys(definition: &ColumnDefinition) -> impl Iterator<Item = Key> + '_ {
    definition.constraints.iter().filter_map(|constraint| {
        let primary = match constraint.kind {
            ColumnConstraintKind::PrimaryKey => true,
            ColumnConstraintKind::Unique => false,
            ColumnConstraintKind::NotNull
            | ColumnConstraintKind::Null
            | ColumnConstraintKind::Default(_)
            | ColumnConstraintKind::Check(_)
            | ColumnConstraintKind::Identity { .. } => return None,
        };
        Some(Key {
            name: constraint.name.clone(),
            columns: vec![definition.name.clone()],
            primary,
            position: constraint.position,
        })
    })
}

/// A column without its keys and checks.
pub(super) fn column(
    definition: &ColumnDefinition,
    table: &mut Table,
    names: &mut NewNames<'_>,
    expressions: Expressions<'_>,
) -> Result<NewColumn, WireError> {
    let name = &definition.name.value;
    check_column_name(name)?;
    let of = |what: &str| format!("{what} for column \"{name}\" of table \"{}\"", table.name);
    let syntax =
        |message: String, position| Err(at(WireError::new(SqlState::SYNTAX_ERROR, message), position));
    let types::ColumnType { ty, serial } = types::column(&definition.ty)?;
    let mut null = None;
    let mut default = None;
    let mut identity: Option<(bool, &[SequenceOption])> = None;
    for constraint in &definition.constraints {
        let position = constraint.position;
        match &constraint.kind {
            ColumnConstraintKind::NotNull | ColumnConstraintKind::Null => {
                let forbidden = matches!(constraint.kind, ColumnConstraintKind::NotNull);
                if null.is_some_and(|null| null != forbidden) || serial && !forbidden {
                    return syntax(of("conflicting NULL/NOT NULL declarations"), position);
                }
                null = Some(forbidden);
            }
            ColumnConstraintKind::Default(value) => {
                if default.is_some() || serial {
                    return syntax(of("multiple default values specified"), position);
                }
                default = Some(value);
            }
            ColumnConstraintKind::Identity { always, options } => {
                if identity.is_some() {
                    return syntax(of("multiple identity specifications"), position);
                }
                identity = Some((*always, options));
            }
            ColumnConstraintKind::PrimaryKey
            | ColumnConstraintKind::Unique
            | ColumnConstraintKind::Check(_) => {}
        }
    }
    if identity.is_some() {
        if default.is_some() || serial {
            return syntax(of("both default and identity specified"), None);
        }
        if null == Some(false) {
            return syntax(of("conflicting NULL/NOT NULL declarations"), None);
        }
        if !matches!(ty.ty, Type::Int2 | Type::Int4 | Type::Int8) {
            return Err(WireError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                "identity column type must be smallint, integer, or bigint",
            ));
        }
    }
    let mut made = None;
    let bound = if serial || identity.is_some() {
        let sequence_name = names.relation(&table.name, Some(name), "seq");
        let (always, options) = identity.map_or((None, &[][..]), |(always, options)| (Some(always), options));
        made = Some(sequence::create(sequence_name, Some(ty.ty), options)?);
        Some(ColumnDefault::Sequence { id: SequenceId(0), identity_always: always })
    } else {
        match default {
            Some(value) => expressions.default(value, name, ty)?,
            None => None,
        }
    };
    Ok(NewColumn {
        column: Column {
            id: table.next_column,
            name: name.clone(),
            ty: ty.to_ref(),
            not_null: null == Some(true) || serial || identity.is_some(),
            default: bound,
        },
        sequence: made,
    })
}

/// The columns of a key, each once.
fn key_columns(key: &Key, table: &Table, what: &str) -> Result<Vec<ColumnId>, WireError> {
    let columns = &key.columns;
    if columns.len() > MAX_INDEX_COLUMNS {
        let message = format!("cannot use more than {MAX_INDEX_COLUMNS} columns in an index");
        return Err(WireError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    let mut ids = Vec::with_capacity(columns.len());
    for name in columns {
        let column = table.column_named(&name.value).ok_or_else(|| {
            let message = format!("column \"{}\" named in key does not exist", name.value);
            at(WireError::new(SqlState::UNDEFINED_COLUMN, message), key.position)
        })?;
        if ids.contains(&column.id) {
            let message = format!("column \"{}\" appears twice in {what} constraint", name.value);
            return Err(at(WireError::new(SqlState::DUPLICATE_COLUMN, message), key.position));
        }
        ids.push(column.id);
    }
    Ok(ids)
}

fn constraint_taken(name: &str, table: &str) -> WireError {
    let message = format!("constraint \"{name}\" for relation \"{table}\" already exists");
    WireError::new(SqlState::DUPLICATE_OBJECT, message)
}

/// Whether a table has a constraint of this name.
pub(super) fn has_constraint(table: &Table, name: &str) -> bool {
    table.primary_key_name.as_deref() == Some(name)
        || table.checks.iter().any(|check| check.name == name)
        || table.indexes.iter().any(|index| index.constraint && index.name == name)
}

/// Adds a primary key or unique constraint. The table must have no primary key yet.
pub(super) fn add_key(key: &Key, table: &mut Table, names: &mut NewNames<'_>) -> Result<(), WireError> {
    let what = if key.primary { "primary key" } else { "unique" };
    let columns = key_columns(key, table, what)?;
    let name = match &key.name {
        Some(name) => {
            if has_constraint(table, &name.value) {
                return Err(constraint_taken(&name.value, &table.name));
            }
            names.take_relation(&name.value)?;
            names.take_constraint(&name.value);
            name.value.clone()
        }
        None if key.primary => names.key(&table.name, None, "pkey"),
        None => {
            let column_names = joined(key.columns.iter().map(|name| name.value.as_str()));
            names.key(&table.name, Some(&column_names), "key")
        }
    };
    if key.primary {
        for column in table.columns.iter_mut().filter(|column| columns.contains(&column.id)) {
            column.not_null = true;
        }
        table.primary_key = columns;
        table.primary_key_name = Some(name);
    } else {
        let columns = columns
            .into_iter()
            .map(|column| IndexColumn { column, descending: false, nulls_first: false })
            .collect();
        table.indexes.push(Index { id: IndexId(0), name, columns, unique: true, constraint: true });
    }
    Ok(())
}

/// Adds a CHECK constraint.
pub(super) fn add_check(
    name: Option<&Name>,
    condition: &sqlparser::ast::Expr,
    table: &mut Table,
    names: &mut NewNames<'_>,
    expressions: Expressions<'_>,
) -> Result<(), WireError> {
    let condition = expressions.check(condition, table)?;
    let name = match name {
        Some(name) => {
            if has_constraint(table, &name.value) {
                return Err(constraint_taken(&name.value, &table.name));
            }
            names.take_constraint(&name.value);
            name.value.clone()
        }
        None => {
            let column = match condition.columns.as_slice() {
                [column] => Some(column.as_str()),
                _ => None,
            };
            names.check(&table.name, column)
        }
    };
    table.checks.push(Check { name, expression: condition.expression, physical: condition.physical });
    Ok(())
}

/// A NOTICE for a thing that was skipped.
pub(super) fn skipped(sqlstate: SqlState, message: String) -> Notice {
    notice(sqlstate, message)
}

/// Looks a column up for ALTER TABLE.
pub(super) fn column_id(table: &Table, name: &str) -> Result<ColumnId, WireError> {
    table.column_named(name).map(|column| column.id).ok_or_else(|| names::no_column(&table.name, name))
}
