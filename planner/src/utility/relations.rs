//! Commands about whole relations: DROP, RENAME, TRUNCATE, and sequences.

use super::command::{Drop, RelationKind, SequenceOption};
use super::cursor::{Name, Qualified};
use super::names::{self, Found};
use super::{create_table, kind_of, notice, schema, sequence};
use crate::Context;
use crate::plan::{Notice, SchemaAction};
use proto::catalog::{ColumnDefault, Relation, Sequence, Table};
use proto::services::SchemaChange;
use proto::{IndexId, SequenceId, SqlState, TableId, WireError};
use std::collections::BTreeMap;

/// Binds DROP TABLE, DROP INDEX and DROP SEQUENCE.
pub(super) fn drop(drop: &Drop, context: &Context<'_>) -> Result<SchemaAction, WireError> {
    let noun = drop.what.noun();
    let tag = match drop.what {
        RelationKind::Table => "DROP TABLE",
        RelationKind::Index => "DROP INDEX",
        RelationKind::Sequence => "DROP SEQUENCE",
    };
    let mut notices = Vec::new();
    let mut found = Vec::new();
    for name in &drop.names {
        let (sqlstate, missing) = match names::find(context, name) {
            Found::Relation(relation) => {
                let same = matches!(
                    (relation, drop.what),
                    (Relation::Table(_), RelationKind::Table)
                        | (Relation::Index(..), RelationKind::Index)
                        | (Relation::Sequence(_), RelationKind::Sequence)
                );
                if !same {
                    return Err(wrong_kind(&name.name, drop.what, relation));
                }
                if !found.contains(&relation) {
                    found.push(relation);
                }
                continue;
            }
            Found::System => {
                let message = format!("permission denied: \"{}\" is a system catalog", name.name);
                return Err(WireError::new(SqlState::INSUFFICIENT_PRIVILEGE, message));
            }
            Found::NoSchema(schema) => {
                (SqlState::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist"))
            }
            Found::Nothing => {
                let code = match drop.what {
                    RelationKind::Index => SqlState::UNDEFINED_OBJECT,
                    RelationKind::Table | RelationKind::Sequence => SqlState::UNDEFINED_TABLE,
                };
                (code, format!("{noun} \"{}\" does not exist", name.name))
            }
        };
        if !drop.if_exists {
            return Err(WireError::new(sqlstate, missing));
        }
        notices.push(notice(SqlState::SUCCESSFUL_COMPLETION, format!("{missing}, skipping")));
    }
    let changes = match drop.what {
        RelationKind::Table => drop_tables(&found),
        RelationKind::Index => drop_indexes(&found, context)?,
        RelationKind::Sequence => drop_sequences(&found, drop.cascade, context, &mut notices)?,
    };
    Ok(schema(tag, changes, notices))
}

fn wrong_kind(name: &str, wanted: RelationKind, found: Relation) -> WireError {
    let (article, noun) = match wanted {
        RelationKind::Table => ("a", "table"),
        RelationKind::Index => ("an", "index"),
        RelationKind::Sequence => ("a", "sequence"),
    };
    let found = kind_of(found);
    let found_article = if found == "index" { "an" } else { "a" };
    WireError::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{name}\" is not {article} {noun}"))
        .with_hint(format!("Use DROP {} to remove {found_article} {found}.", found.to_uppercase()))
}

fn drop_tables(found: &[Relation]) -> Vec<SchemaChange> {
    let tables: Vec<TableId> = found
        .iter()
        .filter_map(|relation| match relation {
            Relation::Table(id) => Some(*id),
            Relation::Index(..) | Relation::Sequence(_) => None,
        })
        .collect();
    if tables.is_empty() { Vec::new() } else { vec![SchemaChange::DropTables(tables)] }
}

fn replace(table: Table) -> SchemaChange {
    SchemaChange::ReplaceTable { table, sequences: Vec::new(), fill: Vec::new() }
}

fn table_of(context: &Context<'_>, id: TableId) -> Result<Table, WireError> {
    let table = context.catalog.table(id).ok_or_else(|| WireError::internal("a name of no table"))?;
    Ok(Table::clone(table))
}

fn drop_indexes(found: &[Relation], context: &Context<'_>) -> Result<Vec<SchemaChange>, WireError> {
    let mut tables: BTreeMap<TableId, Table> = BTreeMap::new();
    for relation in found {
        let Relation::Index(table, index) = *relation else { continue };
        if let std::collections::btree_map::Entry::Vacant(entry) = tables.entry(table) {
            entry.insert(table_of(context, table)?);
        }
        let table = tables.get_mut(&table).expect("inserted above");
        let constraint = if index == IndexId(0) {
            table.primary_key_name.clone()
        } else {
            table.indexes.iter().find(|i| i.id == index && i.constraint).map(|i| i.name.clone())
        };
        if let Some(name) = constraint {
            return Err(WireError::new(
                SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                format!(
                    "cannot drop index {name} because constraint {name} on table {} requires it",
                    table.name
                ),
            )
            .with_hint(format!("You can drop constraint {name} on table {} instead.", table.name)));
        }
        table.indexes.retain(|i| i.id != index);
    }
    Ok(tables.into_values().map(replace).collect())
}

fn drop_sequences(
    found: &[Relation],
    cascade: bool,
    context: &Context<'_>,
    notices: &mut Vec<Notice>,
) -> Result<Vec<SchemaChange>, WireError> {
    let mut ids: Vec<SequenceId> = Vec::new();
    let mut tables: BTreeMap<TableId, Table> = BTreeMap::new();
    for relation in found {
        let Relation::Sequence(id) = *relation else { continue };
        let name = context.catalog.sequence(id).map_or("", |sequence| &sequence.name);
        ids.push(id);
        for table in context.catalog.tables() {
            for column in &table.columns {
                let Some(ColumnDefault::Sequence { id: used, identity_always }) = &column.default else {
                    continue;
                };
                if *used != id {
                    continue;
                }
                if identity_always.is_some() {
                    let of = format!("column {} of table {}", column.name, table.name);
                    return Err(WireError::new(
                        SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                        format!("cannot drop sequence {name} because {of} requires it"),
                    )
                    .with_hint(format!("You can drop {of} instead.")));
                }
                let of = format!("default value for column {} of table {}", column.name, table.name);
                if !cascade {
                    return Err(WireError::new(
                        SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                        format!("cannot drop sequence {name} because other objects depend on it"),
                    )
                    .with_detail(format!("{of} depends on sequence {name}"))
                    .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
                }
                notices.push(notice(SqlState::SUCCESSFUL_COMPLETION, format!("drop cascades to {of}")));
                let table = tables.entry(table.id).or_insert_with(|| Table::clone(table));
                for changed in table.columns.iter_mut().filter(|c| c.id == column.id) {
                    changed.default = None;
                }
            }
        }
    }
    let mut changes: Vec<_> = tables.into_values().map(replace).collect();
    if !ids.is_empty() {
        changes.push(SchemaChange::DropSequences(ids));
    }
    Ok(changes)
}

/// Binds ALTER TABLE, INDEX or SEQUENCE .. RENAME TO.
pub(super) fn rename(
    what: RelationKind,
    if_exists: bool,
    from: &Qualified,
    to: &Name,
    context: &Context<'_>,
) -> Result<SchemaAction, WireError> {
    let tag = match what {
        RelationKind::Table => "ALTER TABLE",
        RelationKind::Index => "ALTER INDEX",
        RelationKind::Sequence => "ALTER SEQUENCE",
    };
    let relation = match names::find(context, from) {
        Found::Relation(relation) => relation,
        Found::Nothing | Found::NoSchema(_) if if_exists => {
            let message = format!("relation \"{}\" does not exist, skipping", from.name);
            return Ok(schema(tag, Vec::new(), vec![notice(SqlState::SUCCESSFUL_COMPLETION, message)]));
        }
        Found::Nothing => return Err(names::undefined(from)),
        Found::NoSchema(schema) => return Err(names::no_schema(&schema)),
        Found::System => {
            let message = format!("permission denied: \"{}\" is a system catalog", from.name);
            return Err(WireError::new(SqlState::INSUFFICIENT_PRIVILEGE, message));
        }
    };
    // ALTER TABLE renames anything, as in PostgreSQL.
    let fits = match (what, relation) {
        (RelationKind::Table, _) => true,
        (RelationKind::Index, relation) => matches!(relation, Relation::Index(..)),
        (RelationKind::Sequence, relation) => matches!(relation, Relation::Sequence(_)),
    };
    if !fits {
        let article = if what == RelationKind::Index { "an" } else { "a" };
        let message = format!("\"{}\" is not {article} {}", from.name, what.noun());
        return Err(WireError::new(SqlState::WRONG_OBJECT_TYPE, message));
    }
    if context.catalog.resolve(&to.value).is_some() {
        return Err(names::taken(&to.value));
    }
    let change = match relation {
        Relation::Table(id) => {
            let mut table = table_of(context, id)?;
            table.name.clone_from(&to.value);
            replace(table)
        }
        Relation::Index(id, index) => {
            let mut table = table_of(context, id)?;
            if index == IndexId(0) {
                table.primary_key_name = Some(to.value.clone());
            }
            for index in table.indexes.iter_mut().filter(|i| i.id == index) {
                index.name.clone_from(&to.value);
            }
            replace(table)
        }
        Relation::Sequence(id) => {
            let sequence =
                context.catalog.sequence(id).ok_or_else(|| WireError::internal("a name of no sequence"))?;
            let sequence = Sequence { name: to.value.clone(), ..Sequence::clone(sequence) };
            SchemaChange::ReplaceSequence { sequence, restart: None }
        }
    };
    Ok(schema(tag, vec![change], Vec::new()))
}

/// Binds TRUNCATE.
pub(super) fn truncate(
    tables: &[Qualified],
    restart_identity: bool,
    context: &Context<'_>,
) -> Result<SchemaAction, WireError> {
    let mut ids = Vec::new();
    for name in tables {
        let id = names::table(context, name)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let change = SchemaChange::Truncate { tables: ids, restart_identity };
    Ok(schema("TRUNCATE TABLE", vec![change], Vec::new()))
}

fn owner(
    options: &[SequenceOption],
    context: &Context<'_>,
) -> Result<Option<Option<(TableId, proto::ColumnId)>>, WireError> {
    for option in options {
        let SequenceOption::OwnedBy(owner) = option else { continue };
        let Some((schema, table, column)) = owner else { return Ok(Some(None)) };
        let name = Qualified { schema: schema.clone(), name: table.clone(), position: None };
        let table = names::table(context, &name)?;
        let column = table.column_named(column).ok_or_else(|| names::no_column(&table.name, column))?;
        return Ok(Some(Some((table.id, column.id))));
    }
    Ok(None)
}

/// Binds CREATE SEQUENCE.
pub(super) fn create_sequence(
    if_not_exists: bool,
    name: &Qualified,
    options: &[SequenceOption],
    context: &Context<'_>,
) -> Result<SchemaAction, WireError> {
    const TAG: &str = "CREATE SEQUENCE";
    names::creatable(name)?;
    if context.catalog.resolve(&name.name).is_some() {
        let error = names::taken(&name.name);
        if !if_not_exists {
            return Err(error);
        }
        let skipped =
            create_table::skipped(SqlState::DUPLICATE_TABLE, format!("{}, skipping", error.message));
        return Ok(schema(TAG, Vec::new(), vec![skipped]));
    }
    let mut made = sequence::create(name.name.clone(), None, options)?;
    made.owner = owner(options, context)?.flatten();
    Ok(schema(TAG, vec![SchemaChange::CreateSequence(made)], Vec::new()))
}

/// Binds ALTER SEQUENCE.
pub(super) fn alter_sequence(
    if_exists: bool,
    name: &Qualified,
    options: &[SequenceOption],
    context: &Context<'_>,
) -> Result<SchemaAction, WireError> {
    const TAG: &str = "ALTER SEQUENCE";
    if if_exists && matches!(names::find(context, name), Found::Nothing | Found::NoSchema(_)) {
        let message = format!("relation \"{}\" does not exist, skipping", name.name);
        return Ok(schema(TAG, Vec::new(), vec![notice(SqlState::SUCCESSFUL_COMPLETION, message)]));
    }
    let mut changed = Sequence::clone(names::sequence(context, name)?);
    let identity = is_identity(&changed, context);
    let restart = sequence::apply(&mut changed, options, false, identity)?;
    if let Some(owner) = owner(options, context)? {
        if identity {
            return Err(WireError::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                "cannot change ownership of identity sequence",
            ));
        }
        changed.owner = owner;
    }
    Ok(schema(TAG, vec![SchemaChange::ReplaceSequence { sequence: changed, restart }], Vec::new()))
}

fn is_identity(sequence: &Sequence, context: &Context<'_>) -> bool {
    let Some((table, column)) = sequence.owner else { return false };
    let column = context.catalog.table(table).and_then(|table| table.column(column));
    matches!(
        column.and_then(|column| column.default.as_ref()),
        Some(ColumnDefault::Sequence { id, identity_always: Some(_) }) if *id == sequence.id
    )
}
