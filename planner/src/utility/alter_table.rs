//! ALTER TABLE: from its actions to the table's next descriptor.
//!
//! The actions work on one copy of the descriptor, in PostgreSQL's order (what drops, then types, then what adds),
//! and the copy is the change: what must happen on the shards follows from the difference.

use super::command::{AlterAction, AlterTable, ColumnDefinition, TableConstraint, TableConstraintKind};
use super::create_table::{self, Key};
use super::expressions::{self, Expressions};
use super::names::{self, Found, NewNames, at, no_column, taken};
use super::{notice, placement, schema, types};
use crate::emit::scalars::Scalars;
use crate::plan::{Notice, Scalar, ScalarId, SchemaAction};
use dialect::Type;
use dialect::types::Typed;
use proto::catalog::{ColumnDefault, Placement, Sequence, Table};
use proto::services::SchemaChange;
use proto::{ColumnId, SqlState, WireError};

const TAG: &str = "ALTER TABLE";

/// A table on its way to the next descriptor.
struct Alteration<'a> {
    table: Table,
    sequences: Vec<Sequence>,
    names: NewNames<'a>,
    notices: Vec<Notice>,
    /// What existing rows get in new columns.
    fills: Vec<(ColumnId, ScalarId)>,
    scalars: Scalars,
    expressions: Expressions<'a>,
    /// Whether a key came that the placement has to suit.
    new_key: bool,
}

/// Binds ALTER TABLE. Answers with the scalars that its fills name, too.
pub(super) fn plan(
    alter: &AlterTable,
    expressions: Expressions<'_>,
) -> Result<(SchemaAction, Vec<Scalar>), WireError> {
    let context = expressions.context;
    if alter.if_exists && matches!(names::find(context, &alter.name), Found::Nothing | Found::NoSchema(_)) {
        let message = format!("relation \"{}\" does not exist, skipping", alter.name.name);
        let notices = vec![notice(SqlState::SUCCESSFUL_COMPLETION, message)];
        return Ok((schema(TAG, Vec::new(), notices), Vec::new()));
    }
    let old = names::table(context, &alter.name)?;
    let mut alteration = Alteration {
        table: Table::clone(old),
        sequences: Vec::new(),
        names: NewNames::new(context.catalog),
        notices: Vec::new(),
        fills: Vec::new(),
        scalars: Scalars::default(),
        expressions,
        new_key: false,
    };
    let mut actions: Vec<_> = alter.actions.iter().collect();
    actions.sort_by_key(|action| pass(action));
    for action in actions {
        alteration.apply(action)?;
    }
    alteration.place()?;
    let Alteration { table, sequences, names: _, notices, fills, scalars, expressions: _, new_key: _ } =
        alteration;
    if table == **old && sequences.is_empty() {
        return Ok((schema(TAG, Vec::new(), notices), Vec::new()));
    }
    let places = fills.into_iter().map(|(column, scalar)| (0, column, scalar)).collect();
    let changes = vec![SchemaChange::ReplaceTable { table, sequences, fill: Vec::new() }];
    Ok((SchemaAction { fills: places, ..schema(TAG, changes, notices) }, scalars.list))
}

/// PostgreSQL's passes: what drops comes before what adds, wherever it is written.
fn pass(action: &AlterAction) -> u8 {
    match action {
        AlterAction::DropColumn { .. } | AlterAction::DropConstraint { .. } => 0,
        AlterAction::SetType { .. } => 1,
        AlterAction::RenameColumn { .. } | AlterAction::RenameConstraint { .. } | AlterAction::Nothing => 2,
        AlterAction::AddColumn { .. } => 3,
        AlterAction::SetDefault { .. }
        | AlterAction::DropDefault { .. }
        | AlterAction::SetNotNull { .. }
        | AlterAction::DropNotNull { .. } => 4,
        AlterAction::AddConstraint(_) => 5,
    }
}

impl Alteration<'_> {
    fn apply(&mut self, action: &AlterAction) -> Result<(), WireError> {
        match action {
            AlterAction::AddColumn { if_not_exists, column } => self.add_column(*if_not_exists, column),
            AlterAction::DropColumn { if_exists, name, cascade } => {
                self.drop_column(*if_exists, &name.value, *cascade)
            }
            AlterAction::RenameColumn { from, to } => self.rename_column(&from.value, &to.value),
            AlterAction::SetDefault { column, value } => {
                let id = self.column(&column.value)?;
                self.refuse_identity(id)?;
                let ty = self.ty(id)?;
                let default = self.expressions.default(value, &column.value, ty)?;
                self.set_default(id, default);
                Ok(())
            }
            AlterAction::DropDefault { column } => {
                let id = self.column(&column.value)?;
                self.refuse_identity(id)?;
                self.set_default(id, None);
                Ok(())
            }
            AlterAction::SetNotNull { column } => {
                let id = self.column(&column.value)?;
                self.set_not_null(id, true);
                Ok(())
            }
            AlterAction::DropNotNull { column } => {
                let id = self.column(&column.value)?;
                if self.table.primary_key.contains(&id) {
                    let message = format!("column \"{}\" is in a primary key", column.value);
                    return Err(WireError::new(SqlState::INVALID_TABLE_DEFINITION, message));
                }
                if self.identity(id) {
                    let message = format!(
                        "column \"{}\" of relation \"{}\" is an identity column",
                        column.value, self.table.name
                    );
                    return Err(WireError::new(SqlState::SYNTAX_ERROR, message));
                }
                self.set_not_null(id, false);
                Ok(())
            }
            AlterAction::SetType { column, ty } => {
                let id = self.column(&column.value)?;
                let new = types::column(ty)?;
                if new.serial {
                    return Err(at(
                        WireError::new(
                            SqlState::UNDEFINED_OBJECT,
                            format!("type \"{}\" does not exist", ty.data_type),
                        ),
                        ty.position,
                    ));
                }
                self.set_type(id, new.ty)
            }
            AlterAction::AddConstraint(constraint) => self.add_constraint(constraint),
            AlterAction::DropConstraint { if_exists, name } => self.drop_constraint(*if_exists, &name.value),
            AlterAction::RenameConstraint { from, to } => self.rename_constraint(&from.value, &to.value),
            AlterAction::Nothing => Ok(()),
        }
    }

    fn column(&self, name: &str) -> Result<ColumnId, WireError> {
        create_table::column_id(&self.table, name)
    }

    fn ty(&self, id: ColumnId) -> Result<Typed, WireError> {
        let column = self.table.column(id).ok_or_else(|| WireError::internal("a column without an entry"))?;
        Typed::from_ref(column.ty).ok_or_else(|| WireError::internal("a column of an unknown type"))
    }

    fn identity(&self, id: ColumnId) -> bool {
        let default = self.table.column(id).and_then(|column| column.default.as_ref());
        matches!(default, Some(ColumnDefault::Sequence { id: _, identity_always: Some(_) }))
    }

    fn refuse_identity(&self, id: ColumnId) -> Result<(), WireError> {
        if !self.identity(id) {
            return Ok(());
        }
        let name = self.table.column(id).map_or("", |column| &column.name);
        let message = format!("column \"{name}\" of relation \"{}\" is an identity column", self.table.name);
        Err(WireError::new(SqlState::SYNTAX_ERROR, message))
    }

    fn set_default(&mut self, id: ColumnId, default: Option<ColumnDefault>) {
        for column in self.table.columns.iter_mut().filter(|column| column.id == id) {
            column.default.clone_from(&default);
        }
    }

    fn set_not_null(&mut self, id: ColumnId, not_null: bool) {
        for column in self.table.columns.iter_mut().filter(|column| column.id == id) {
            column.not_null = not_null;
        }
    }

    fn add_column(&mut self, if_not_exists: bool, definition: &ColumnDefinition) -> Result<(), WireError> {
        let name = &definition.name.value;
        if self.table.column_named(name).is_some() {
            let message = format!("column \"{name}\" of relation \"{}\" already exists", self.table.name);
            if !if_not_exists {
                return Err(WireError::new(SqlState::DUPLICATE_COLUMN, message));
            }
            self.notices.push(notice(SqlState::DUPLICATE_COLUMN, format!("{message}, skipping")));
            return Ok(());
        }
        if self.table.columns.len() >= create_table::MAX_COLUMNS {
            let message = format!("tables can have at most {} columns", create_table::MAX_COLUMNS);
            return Err(WireError::new(SqlState::TOO_MANY_COLUMNS, message));
        }
        let new = create_table::column(definition, &mut self.table, &mut self.names, self.expressions)?;
        if new.sequence.is_some() {
            return Err(WireError::unsupported("ADD COLUMN with a sequence").with_hint(
                "CREATE SEQUENCE, ADD COLUMN without a default, UPDATE the rows, then SET DEFAULT nextval('..').",
            ));
        }
        let id = new.column.id;
        match &new.column.default {
            None => {}
            Some(ColumnDefault::Sequence { .. }) => {
                return Err(WireError::unsupported("ADD COLUMN with a default of nextval()")
                    .with_hint("ADD COLUMN without a default, UPDATE the rows, then SET DEFAULT."));
            }
            Some(ColumnDefault::Expression(_)) => {
                let ty = Typed::from_ref(new.column.ty)
                    .ok_or_else(|| WireError::internal("a column of an unknown type"))?;
                let scalar = self.expressions.fill(definition, ty, &mut self.scalars)?;
                self.fills.extend(scalar.map(|scalar| (id, scalar)));
            }
        }
        create_table::add_column(new, &mut self.table, &mut self.sequences);
        for key in create_table::column_keys(definition) {
            self.add_key(&key)?;
        }
        for constraint in &definition.constraints {
            if let super::command::ColumnConstraintKind::Check(condition) = &constraint.kind {
                let (name, expressions) = (constraint.name.as_ref(), self.expressions);
                create_table::add_check(name, condition, &mut self.table, &mut self.names, expressions)?;
            }
        }
        Ok(())
    }

    fn drop_column(&mut self, if_exists: bool, name: &str, cascade: bool) -> Result<(), WireError> {
        let Some(id) = self.table.column_named(name).map(|column| column.id) else {
            let error = no_column(&self.table.name, name);
            if !if_exists {
                return Err(error);
            }
            self.notices
                .push(notice(SqlState::SUCCESSFUL_COMPLETION, format!("{}, skipping", error.message)));
            return Ok(());
        };
        if let Placement::Sharded { keyspace: _, key } = &self.table.placement
            && key.contains(&id)
        {
            let message = format!(
                "cannot drop column \"{name}\" because it is part of the partition key of relation \"{}\"",
                self.table.name
            );
            return Err(WireError::new(SqlState::INVALID_TABLE_DEFINITION, message));
        }
        if self.table.primary_key.contains(&id) {
            return Err(WireError::unsupported("dropping a column of the primary key")
                .with_hint("Make a new table and INSERT INTO .. SELECT."));
        }
        // Others may count by the column's sequence.
        let owned: Vec<_> = self.owned_sequences(id);
        for table in self.expressions.context.catalog.tables() {
            for column in &table.columns {
                let Some(ColumnDefault::Sequence { id: used, identity_always: _ }) = &column.default else {
                    continue;
                };
                let other = table.id != self.table.id || column.id != id;
                if other && owned.contains(used) {
                    let hint = if cascade {
                        "Drop that default first."
                    } else {
                        "Use DROP ... CASCADE to drop the dependent objects too."
                    };
                    let message = format!(
                        "cannot drop column {name} of table {} because other objects depend on it",
                        self.table.name
                    );
                    return Err(WireError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
                        .with_detail(format!(
                            "default value for column {} of table {} depends on its sequence",
                            column.name, table.name
                        ))
                        .with_hint(hint));
                }
            }
        }
        self.table.columns.retain(|column| column.id != id);
        self.table.indexes.retain(|index| index.columns.iter().all(|c| c.column != id));
        self.table.checks.retain(|check| !expressions::names_column(&check.physical, id));
        Ok(())
    }

    fn owned_sequences(&self, id: ColumnId) -> Vec<proto::SequenceId> {
        let catalog = self.expressions.context.catalog;
        catalog.sequences().filter(|s| s.owner == Some((self.table.id, id))).map(|s| s.id).collect()
    }

    fn rename_column(&mut self, from: &str, to: &str) -> Result<(), WireError> {
        let id = self.column_or_missing(from)?;
        names::check_column_name(to)?;
        if self.table.column_named(to).is_some() {
            let message = format!("column \"{to}\" of relation \"{}\" already exists", self.table.name);
            return Err(WireError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        for column in self.table.columns.iter_mut().filter(|column| column.id == id) {
            to.clone_into(&mut column.name);
        }
        for check in &mut self.table.checks {
            if expressions::names_column(&check.physical, id) {
                check.expression = expressions::rename(&check.expression, from, to)?;
            }
        }
        Ok(())
    }

    /// RENAME COLUMN words it without the relation.
    fn column_or_missing(&self, name: &str) -> Result<ColumnId, WireError> {
        self.table.column_named(name).map(|column| column.id).ok_or_else(|| {
            WireError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"))
        })
    }

    fn set_type(&mut self, id: ColumnId, new: Typed) -> Result<(), WireError> {
        let old = self.ty(id)?;
        if !keeps_storage(old, new) {
            return Err(WireError::unsupported("ALTER COLUMN TYPE that changes how values are stored")
                .with_hint("ADD COLUMN, UPDATE it from the old one, DROP the old one and RENAME."));
        }
        for column in self.table.columns.iter_mut().filter(|column| column.id == id) {
            column.ty = new.to_ref();
        }
        Ok(())
    }

    fn add_constraint(&mut self, constraint: &TableConstraint) -> Result<(), WireError> {
        let (columns, primary) = match &constraint.kind {
            TableConstraintKind::Check(condition) => {
                let (name, expressions) = (constraint.name.as_ref(), self.expressions);
                return create_table::add_check(
                    name,
                    condition,
                    &mut self.table,
                    &mut self.names,
                    expressions,
                );
            }
            TableConstraintKind::PrimaryKey(columns) => (columns, true),
            TableConstraintKind::Unique(columns) => (columns, false),
        };
        let name = constraint.name.clone();
        // PostgreSQL points at nothing here.
        self.add_key(&Key { name, columns: columns.clone(), primary, position: None })
    }

    fn add_key(&mut self, key: &Key) -> Result<(), WireError> {
        let spread_by_hidden_key = placement::is_default(&self.table);
        if key.primary && !self.table.has_hidden_key() {
            return Err(create_table::multiple_primary_keys(&self.table.name));
        }
        create_table::add_key(key, &mut self.table, &mut self.names)?;
        if key.primary {
            self.table.columns.retain(|column| column.id != ColumnId::HIDDEN_KEY);
            if let (true, Placement::Sharded { keyspace: _, key }) =
                (spread_by_hidden_key, &mut self.table.placement)
            {
                *key = self.table.primary_key.first().copied().into_iter().collect();
                // It's still a default, which the other keys may not suit.
                self.new_key = true;
                return Ok(());
            }
        }
        if spread_by_hidden_key {
            self.new_key = true;
        } else if let Some(lacking) = placement::unenforceable(&self.table, &self.table.placement) {
            return Err(lacking.error(&self.table));
        }
        Ok(())
    }

    /// Places a table anew whose placement was nobody's wish.
    fn place(&mut self) -> Result<(), WireError> {
        if !self.new_key {
            return Ok(());
        }
        if let Placement::Sharded { keyspace, key: _ } = self.table.placement {
            let context = self.expressions.context;
            self.table.placement = placement::by_default(context, &self.table, keyspace, &mut self.notices)?;
        }
        Ok(())
    }

    fn drop_constraint(&mut self, if_exists: bool, name: &str) -> Result<(), WireError> {
        if self.table.primary_key_name.as_deref() == Some(name) {
            return Err(WireError::unsupported("dropping a primary key")
                .with_hint("Make a new table and INSERT INTO .. SELECT."));
        }
        if !create_table::has_constraint(&self.table, name) {
            let message = format!("constraint \"{name}\" of relation \"{}\" does not exist", self.table.name);
            if !if_exists {
                return Err(WireError::new(SqlState::UNDEFINED_OBJECT, message));
            }
            self.notices.push(notice(SqlState::SUCCESSFUL_COMPLETION, format!("{message}, skipping")));
            return Ok(());
        }
        self.table.checks.retain(|check| check.name != name);
        self.table.indexes.retain(|index| !index.constraint || index.name != name);
        Ok(())
    }

    fn rename_constraint(&mut self, from: &str, to: &str) -> Result<(), WireError> {
        if !create_table::has_constraint(&self.table, from) {
            let message = format!("constraint \"{from}\" for table \"{}\" does not exist", self.table.name);
            return Err(WireError::new(SqlState::UNDEFINED_OBJECT, message));
        }
        if create_table::has_constraint(&self.table, to) {
            let message = format!("constraint \"{to}\" for relation \"{}\" already exists", self.table.name);
            return Err(WireError::new(SqlState::DUPLICATE_OBJECT, message));
        }
        let indexed = !self.table.checks.iter().any(|check| check.name == from);
        if indexed && self.expressions.context.catalog.resolve(to).is_some() {
            return Err(taken(to));
        }
        if self.table.primary_key_name.as_deref() == Some(from) {
            self.table.primary_key_name = Some(to.to_owned());
        }
        for name in self.table.checks.iter_mut().map(|check| &mut check.name).filter(|name| *name == from) {
            to.clone_into(name);
        }
        let indexes = self.table.indexes.iter_mut().filter(|index| index.constraint && index.name == from);
        for index in indexes {
            to.clone_into(&mut index.name);
        }
        Ok(())
    }
}

/// Whether every value of one type is stored alike, and with the same meaning, as one of the other.
fn keeps_storage(old: Typed, new: Typed) -> bool {
    let longer = new.modifier == -1 || old.modifier != -1 && old.modifier <= new.modifier;
    match (old.ty, new.ty) {
        (Type::Int2, Type::Int2 | Type::Int4 | Type::Int8)
        | (Type::Int4, Type::Int4 | Type::Int8)
        | (Type::Float4, Type::Float4) => true,
        (Type::Text | Type::Varchar, Type::Text) => true,
        (Type::Varchar | Type::Text, Type::Varchar) => longer,
        (Type::Timestamp, Type::Timestamp) | (Type::Timestamptz, Type::Timestamptz) => longer,
        (Type::Numeric, Type::Numeric) => {
            let scale = |typed: Typed| (typed.modifier - 4) & 0x7ff;
            let precision = |typed: Typed| (typed.modifier - 4) >> 16;
            new.modifier == -1
                || old.modifier != -1 && scale(old) == scale(new) && precision(old) <= precision(new)
        }
        _ => old == new,
    }
}
