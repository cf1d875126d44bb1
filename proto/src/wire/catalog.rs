//! Tables, sequences, roles' settings and the catalog as messages.

use super::generated as pb;
use super::{Convert, DecodeError, each, id, maybe, messages, one, required};
use crate::catalog::{
    Catalog, Check, Column, ColumnDefault, Index, IndexColumn, Placement, RoleSettings, Sequence, Table,
    TypeRef,
};
use crate::ids::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, SequenceId, TableId};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

impl Convert for TypeRef {
    type Message = pb::TypeRef;
    const NAME: &'static str = "type";

    fn to_message(&self) -> pb::TypeRef {
        pb::TypeRef { oid: self.oid, modifier: self.modifier }
    }

    fn from_message(message: pb::TypeRef) -> Result<Self, DecodeError> {
        Ok(TypeRef { oid: id("oid", message.oid)?, modifier: message.modifier })
    }
}

impl Convert for ColumnDefault {
    type Message = pb::ColumnDefault;
    const NAME: &'static str = "default";

    fn to_message(&self) -> pb::ColumnDefault {
        use pb::column_default::{Kind, Sequence};
        let kind = match self {
            ColumnDefault::Expression(text) => Kind::Expression(text.clone()),
            ColumnDefault::Sequence { id, identity_always } => {
                Kind::Sequence(Sequence { id: id.0, identity_always: *identity_always })
            }
        };
        pb::ColumnDefault { kind: Some(kind) }
    }

    fn from_message(message: pb::ColumnDefault) -> Result<Self, DecodeError> {
        use pb::column_default::{Kind, Sequence};
        Ok(match required("kind", message.kind)? {
            Kind::Expression(text) => ColumnDefault::Expression(text),
            Kind::Sequence(Sequence { id: sequence, identity_always }) => {
                ColumnDefault::Sequence { id: SequenceId(id("sequence.id", sequence)?), identity_always }
            }
        })
    }
}

impl Convert for Column {
    type Message = pb::Column;
    const NAME: &'static str = "column";

    fn to_message(&self) -> pb::Column {
        let Column { id, name, ty, not_null, default } = self;
        pb::Column {
            id: id.0,
            name: name.clone(),
            r#type: Some(ty.to_message()),
            not_null: *not_null,
            default: default.as_ref().map(ColumnDefault::to_message),
        }
    }

    fn from_message(message: pb::Column) -> Result<Self, DecodeError> {
        let pb::Column { id, name, r#type, not_null, default } = message;
        // Column 0 is the hidden key, so an id of 0 isn't a missing one.
        let id = ColumnId(id);
        Ok(Column { id, name, ty: one("type", r#type)?, not_null, default: maybe("default", default)? })
    }
}

impl Convert for IndexColumn {
    type Message = pb::IndexColumn;
    const NAME: &'static str = "index_column";

    fn to_message(&self) -> pb::IndexColumn {
        let IndexColumn { column, descending, nulls_first } = self;
        pb::IndexColumn { column: column.0, descending: *descending, nulls_first: *nulls_first }
    }

    fn from_message(message: pb::IndexColumn) -> Result<Self, DecodeError> {
        let pb::IndexColumn { column, descending, nulls_first } = message;
        Ok(IndexColumn { column: ColumnId(column), descending, nulls_first })
    }
}

impl Convert for Index {
    type Message = pb::Index;
    const NAME: &'static str = "index";

    fn to_message(&self) -> pb::Index {
        let Index { id, name, columns, unique, constraint } = self;
        pb::Index {
            id: id.0,
            name: name.clone(),
            columns: messages(columns),
            unique: *unique,
            constraint: *constraint,
        }
    }

    fn from_message(message: pb::Index) -> Result<Self, DecodeError> {
        let pb::Index { id, name, columns, unique, constraint } = message;
        Ok(Index { id: IndexId(id), name, columns: each("columns", columns)?, unique, constraint })
    }
}

impl Convert for Check {
    type Message = pb::Check;
    const NAME: &'static str = "check";

    fn to_message(&self) -> pb::Check {
        let Check { name, expression, physical } = self.clone();
        pb::Check { name, expression, physical }
    }

    fn from_message(message: pb::Check) -> Result<Self, DecodeError> {
        let pb::Check { name, expression, physical } = message;
        Ok(Check { name, expression, physical })
    }
}

impl Convert for Placement {
    type Message = pb::Placement;
    const NAME: &'static str = "placement";

    fn to_message(&self) -> pb::Placement {
        use pb::placement::{Kind, Reference, Sharded, Single};
        let kind = match self {
            Placement::Sharded { keyspace, key } => {
                Kind::Sharded(Sharded { keyspace: keyspace.0, key: column_numbers(key) })
            }
            Placement::Single { keyspace } => Kind::Single(Single { keyspace: keyspace.0 }),
            Placement::Reference => Kind::Reference(Reference {}),
        };
        pb::Placement { kind: Some(kind) }
    }

    fn from_message(message: pb::Placement) -> Result<Self, DecodeError> {
        use pb::placement::{Kind, Reference, Sharded, Single};
        Ok(match required("kind", message.kind)? {
            // Keyspace 0 asks for a new one, so it isn't a missing one.
            Kind::Sharded(Sharded { keyspace, key }) => Placement::Sharded {
                keyspace: KeyspaceNumber(keyspace),
                key: column_ids("sharded.key", key)?,
            },
            Kind::Single(Single { keyspace }) => Placement::Single { keyspace: KeyspaceNumber(keyspace) },
            Kind::Reference(Reference {}) => Placement::Reference,
        })
    }
}

fn column_numbers(columns: &[ColumnId]) -> Vec<u32> {
    columns.iter().map(|column| column.0).collect()
}

/// A key: at least one column.
fn column_ids(field: &str, numbers: Vec<u32>) -> Result<Vec<ColumnId>, DecodeError> {
    if numbers.is_empty() {
        return Err(DecodeError::new(field, "it is missing"));
    }
    Ok(numbers.into_iter().map(ColumnId).collect())
}

impl Convert for Table {
    type Message = pb::Table;
    const NAME: &'static str = "table";

    fn to_message(&self) -> pb::Table {
        let Table {
            id,
            name,
            columns,
            primary_key,
            primary_key_name,
            indexes,
            checks,
            placement,
            next_column,
            modified,
        } = self;
        pb::Table {
            id: id.0,
            name: name.clone(),
            columns: messages(columns),
            primary_key: column_numbers(primary_key),
            primary_key_name: primary_key_name.clone(),
            indexes: messages(indexes),
            checks: messages(checks),
            placement: Some(placement.to_message()),
            next_column: next_column.0,
            modified: modified.0,
        }
    }

    fn from_message(message: pb::Table) -> Result<Self, DecodeError> {
        let pb::Table {
            id,
            name,
            columns,
            primary_key,
            primary_key_name,
            indexes,
            checks,
            placement,
            next_column,
            modified,
        } = message;
        Ok(Table {
            id: TableId(id),
            name,
            columns: each("columns", columns)?,
            primary_key: column_ids("primary_key", primary_key)?,
            primary_key_name,
            indexes: each("indexes", indexes)?,
            checks: each("checks", checks)?,
            placement: one("placement", placement)?,
            next_column: ColumnId(next_column),
            modified: SchemaVersion(modified),
        })
    }
}

impl Convert for Sequence {
    type Message = pb::Sequence;
    const NAME: &'static str = "sequence";

    fn to_message(&self) -> pb::Sequence {
        let Sequence { id, name, ty, start, increment, min, max, cycle, cache, owner, hidden } = self;
        let owner = owner.map(|(table, column)| pb::sequence::Owner { table: table.0, column: column.0 });
        pb::Sequence {
            id: id.0,
            name: name.clone(),
            r#type: Some(ty.to_message()),
            start: *start,
            increment: *increment,
            min: *min,
            max: *max,
            cycle: *cycle,
            cache: *cache,
            owner,
            hidden: *hidden,
        }
    }

    fn from_message(message: pb::Sequence) -> Result<Self, DecodeError> {
        let pb::Sequence {
            id: number,
            name,
            r#type,
            start,
            increment,
            min,
            max,
            cycle,
            cache,
            owner,
            hidden,
        } = message;
        Ok(Sequence {
            id: SequenceId(number),
            name,
            ty: one("type", r#type)?,
            start,
            increment: id("increment", increment)?,
            min,
            max,
            cycle,
            cache,
            owner: owner.map(|owner| (TableId(owner.table), ColumnId(owner.column))),
            hidden,
        })
    }
}

impl Convert for RoleSettings {
    type Message = pb::RoleSettings;
    const NAME: &'static str = "role_settings";

    fn to_message(&self) -> pb::RoleSettings {
        let RoleSettings { role, settings } = self;
        let setting = |(name, value): &(String, String)| setting(name, value);
        pb::RoleSettings { role: role.clone(), settings: settings.iter().map(setting).collect() }
    }

    fn from_message(message: pb::RoleSettings) -> Result<Self, DecodeError> {
        let pb::RoleSettings { role, settings } = message;
        let role = role.map(|role| id("role", role)).transpose()?;
        let setting = |pb::Setting { name, value }| Ok((id("settings.name", name)?, value));
        let settings: Vec<_> = settings.into_iter().map(setting).collect::<Result<_, _>>()?;
        once("settings", settings.iter().map(|(name, _)| name))?;
        Ok(RoleSettings { role, settings })
    }
}

/// A setting with its value.
pub(super) fn setting(name: &str, value: &str) -> pb::Setting {
    pb::Setting { name: name.to_owned(), value: value.to_owned() }
}

impl Convert for Catalog {
    type Message = pb::Catalog;
    const NAME: &'static str = "catalog";

    fn to_message(&self) -> pb::Catalog {
        pb::Catalog {
            version: self.version().0,
            tables: self.tables().map(|table| table.to_message()).collect(),
            sequences: self.sequences().map(|sequence| sequence.to_message()).collect(),
            roles: self.roles().map(|settings| settings.to_message()).collect(),
        }
    }

    fn from_message(message: pb::Catalog) -> Result<Self, DecodeError> {
        let pb::Catalog { version, tables, sequences, roles } = message;
        let tables: Vec<Table> = each("tables", tables)?;
        let sequences: Vec<Sequence> = each("sequences", sequences)?;
        distinct("tables", tables.iter().map(|table| table.id.0))?;
        distinct("sequences", sequences.iter().map(|sequence| sequence.id.0))?;
        let roles: Vec<RoleSettings> = each("roles", roles)?;
        once("roles", roles.iter().map(|settings| settings.role.as_deref().unwrap_or_default()))?;
        let (tables, sequences) = (tables.into_iter().map(Arc::new), sequences.into_iter().map(Arc::new));
        let catalog = Catalog::new(SchemaVersion(version), tables, sequences);
        Ok(catalog.with_roles(roles.into_iter().map(Arc::new)))
    }
}

/// Ids of which none is missing and none comes up twice.
fn distinct(field: &str, ids: impl Iterator<Item = u32> + Clone) -> Result<(), DecodeError> {
    ids.clone().try_for_each(|number| id(field, number).map(drop))?;
    once(field, ids.map(|number| format!("id {number}")))
}

/// What has a name of its own.
fn once(field: &str, names: impl Iterator<Item: Ord + Display>) -> Result<(), DecodeError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if seen.contains(&name) {
            return Err(DecodeError::new(field, format_args!("{name} comes up twice")));
        }
        seen.insert(name);
    }
    Ok(())
}
