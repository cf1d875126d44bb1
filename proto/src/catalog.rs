//! The catalog: tables, columns, indexes, sequences and their names, and what roles' sessions begin with.
//!
//! The coordinator keeps it, versioned as a whole; routers plan against it; shards never see a name. Types are
//! PostgreSQL's object ids and modifiers here; `dialect` knows what they mean. Expressions (defaults, checks) are
//! kept as the text the user wrote, normalised by the planner, and bound again where they are needed.

use crate::ids::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, SequenceId, TableId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The first id of user objects, as in PostgreSQL.
pub const FIRST_USER_ID: u32 = 16384;

/// The one role there is.
pub const USER: &str = "shoal";

/// Everything that has a name, at one version.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    version: SchemaVersion,
    tables: BTreeMap<TableId, Arc<Table>>,
    sequences: BTreeMap<SequenceId, Arc<Sequence>>,
    names: HashMap<String, Relation>,
    roles: BTreeMap<Option<String>, Arc<RoleSettings>>,
}

/// What a name in the `public` schema stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// A table.
    Table(TableId),
    /// An index of a table.
    Index(TableId, IndexId),
    /// A sequence.
    Sequence(SequenceId),
}

/// A type as the catalog writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeRef {
    /// PostgreSQL's object id of the type.
    pub oid: u32,
    /// PostgreSQL's type modifier; -1 for none.
    pub modifier: i32,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its id; 0 in a request that makes it.
    pub id: TableId,
    /// Its name, in the one schema `public`.
    pub name: String,
    /// Its columns in order, dropped ones left out. A table without a primary key has [`ColumnId::HIDDEN_KEY`] last.
    pub columns: Vec<Column>,
    /// The key that rows are stored and replicated by. Never empty: the hidden key where none is declared.
    pub primary_key: Vec<ColumnId>,
    /// The primary key constraint's name; `None` where none is declared.
    pub primary_key_name: Option<String>,
    /// Unique constraints and indexes, beside the primary key.
    pub indexes: Vec<Index>,
    /// CHECK constraints.
    pub checks: Vec<Check>,
    /// Where its rows live.
    pub placement: Placement,
    /// The id that the next added column gets.
    pub next_column: ColumnId,
    /// The catalog version that last changed it.
    pub modified: SchemaVersion,
}

/// A column.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its id.
    pub id: ColumnId,
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TypeRef,
    /// Whether NULL is forbidden.
    pub not_null: bool,
    /// What a row gets that doesn't name the column.
    pub default: Option<ColumnDefault>,
}

/// A column's default.
#[derive(Clone, Debug, PartialEq)]
pub enum ColumnDefault {
    /// An expression, as PostgreSQL would print it.
    Expression(String),
    /// The next value of a sequence: SERIAL, IDENTITY, and the hidden key.
    Sequence {
        /// The sequence.
        id: SequenceId,
        /// `None` for SERIAL; for IDENTITY, whether it is GENERATED ALWAYS.
        identity_always: Option<bool>,
    },
}

/// A secondary index.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// Its id; 0 in a request that makes it.
    pub id: IndexId,
    /// Its name.
    pub name: String,
    /// Its columns, most significant first.
    pub columns: Vec<IndexColumn>,
    /// Whether two rows may not have the same key (NULLs distinct).
    pub unique: bool,
    /// Whether it was declared as a constraint of the table.
    pub constraint: bool,
}

/// A column of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexColumn {
    /// The column.
    pub column: ColumnId,
    /// DESC.
    pub descending: bool,
    /// NULLS FIRST. SQLite sorts NULLs first; the planner minds the difference, the index only remembers it.
    pub nulls_first: bool,
}

/// A CHECK constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// The expression, as PostgreSQL would print it.
    pub expression: String,
    /// The same as SQLite runs it, over `c<id>`.
    pub physical: String,
}

/// Where a table's rows live.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// Each row on the shard that its shard key places it on, in a hash or range keyspace.
    Sharded {
        /// The keyspace.
        keyspace: KeyspaceNumber,
        /// The shard key.
        key: Vec<ColumnId>,
    },
    /// All rows on the one shard of this keyspace.
    Single {
        /// The keyspace.
        keyspace: KeyspaceNumber,
    },
    /// All rows on every shard of every keyspace.
    Reference,
}

/// A sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Its id; 0 in a request that makes it.
    pub id: SequenceId,
    /// Its name.
    pub name: String,
    /// The type of its values: int2, int4 or int8.
    pub ty: TypeRef,
    /// The first value.
    pub start: i64,
    /// The step; never 0.
    pub increment: i64,
    /// The least value.
    pub min: i64,
    /// The greatest value.
    pub max: i64,
    /// Whether it begins again at its end.
    pub cycle: bool,
    /// How many values a session takes at once.
    pub cache: i64,
    /// The column that owns it and takes it along when dropped.
    pub owner: Option<(TableId, ColumnId)>,
    /// The hidden key's sequence has no name that SQL could reach.
    pub hidden: bool,
}

/// What the sessions of a role begin with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoleSettings {
    /// The role; `None` for every one, whose settings yield to a role's own.
    pub role: Option<String>,
    /// Names and values. No name comes up twice, and what was set first stands first.
    pub settings: Vec<(String, String)>,
}

/// What ALTER ROLE does to a role's settings.
#[derive(Clone, Debug, PartialEq)]
pub enum RoleChange {
    /// A setting gets a value.
    Set {
        /// Its name.
        name: String,
        /// Its value, as it was written.
        value: String,
    },
    /// A setting has none any more.
    Reset(String),
    /// No setting has one any more.
    ResetAll,
}

impl RoleSettings {
    /// Makes a change.
    pub fn apply(&mut self, change: RoleChange) {
        match change {
            RoleChange::Set { name, value } => {
                match self.settings.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, before)) => *before = value,
                    None => self.settings.push((name, value)),
                }
            }
            RoleChange::Reset(name) => self.settings.retain(|(known, _)| *known != name),
            RoleChange::ResetAll => self.settings.clear(),
        }
    }
}

impl Table {
    /// The column of this id.
    pub fn column(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|c| c.id == id)
    }

    /// The column of this name; never the hidden key.
    pub fn column_named(&self, name: &str) -> Option<&Column> {
        self.visible_columns().find(|c| c.name == name)
    }

    /// The columns that `*` stands for.
    pub fn visible_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| c.id != ColumnId::HIDDEN_KEY)
    }

    /// Whether it declares no primary key.
    pub fn has_hidden_key(&self) -> bool {
        self.primary_key == [ColumnId::HIDDEN_KEY]
    }
}

impl Catalog {
    /// A catalog of these objects.
    pub fn new(
        version: SchemaVersion,
        tables: impl IntoIterator<Item = Arc<Table>>,
        sequences: impl IntoIterator<Item = Arc<Sequence>>,
    ) -> Self {
        let mut catalog = Catalog { version, ..Catalog::default() };
        for table in tables {
            catalog.names.insert(table.name.clone(), Relation::Table(table.id));
            if let Some(name) = &table.primary_key_name {
                // The primary key's index shares no number with any other; its name is taken all the same.
                catalog.names.insert(name.clone(), Relation::Index(table.id, IndexId(0)));
            }
            for index in &table.indexes {
                catalog.names.insert(index.name.clone(), Relation::Index(table.id, index.id));
            }
            catalog.tables.insert(table.id, table);
        }
        for sequence in sequences {
            if !sequence.hidden {
                catalog.names.insert(sequence.name.clone(), Relation::Sequence(sequence.id));
            }
            catalog.sequences.insert(sequence.id, sequence);
        }
        catalog
    }

    /// The same catalog, with these roles' settings and no others.
    pub fn with_roles(mut self, roles: impl IntoIterator<Item = Arc<RoleSettings>>) -> Self {
        self.roles = roles.into_iter().map(|settings| (settings.role.clone(), settings)).collect();
        self
    }

    /// The version of all this.
    pub fn version(&self) -> SchemaVersion {
        self.version
    }

    /// What a name in `public` stands for.
    pub fn resolve(&self, name: &str) -> Option<Relation> {
        self.names.get(name).copied()
    }

    /// The table of this id.
    pub fn table(&self, id: TableId) -> Option<&Arc<Table>> {
        self.tables.get(&id)
    }

    /// The table of this name.
    pub fn table_named(&self, name: &str) -> Option<&Arc<Table>> {
        match self.resolve(name)? {
            Relation::Table(id) => self.tables.get(&id),
            Relation::Index(..) | Relation::Sequence(_) => None,
        }
    }

    /// The sequence of this id.
    pub fn sequence(&self, id: SequenceId) -> Option<&Arc<Sequence>> {
        self.sequences.get(&id)
    }

    /// Every table, by id.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// Every sequence, by id.
    pub fn sequences(&self) -> impl Iterator<Item = &Arc<Sequence>> {
        self.sequences.values()
    }

    /// The settings of each role that has some, those of every role first.
    pub fn roles(&self) -> impl Iterator<Item = &Arc<RoleSettings>> {
        self.roles.values()
    }

    /// What this role's sessions begin with: names and values, of which a later one counts.
    pub fn settings_of(&self, role: &str) -> impl Iterator<Item = (&str, &str)> {
        let own = self.roles.get(&Some(role.to_owned()));
        let all = self.roles.get(&None).into_iter().chain(own).flat_map(|settings| &settings.settings);
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> RoleChange {
        RoleChange::Set { name: name.into(), value: value.into() }
    }

    #[test]
    fn a_setting_keeps_its_place_until_it_is_reset() {
        let mut settings = RoleSettings::default();
        for change in [set("a", "1"), set("b", "2"), set("a", "3")] {
            settings.apply(change);
        }
        assert_eq!(settings.settings, [("a".into(), "3".into()), ("b".into(), "2".into())]);
        settings.apply(RoleChange::Reset("a".into()));
        settings.apply(RoleChange::Reset("never".into()));
        settings.apply(set("a", "4"));
        assert_eq!(settings.settings, [("b".into(), "2".into()), ("a".into(), "4".into())]);
        settings.apply(RoleChange::ResetAll);
        assert_eq!(settings, RoleSettings::default());
    }

    #[test]
    fn a_role_has_its_own_settings_after_those_of_all() {
        let of = |role: Option<&str>, value: &str| {
            let mut settings = RoleSettings { role: role.map(str::to_owned), settings: Vec::new() };
            settings.apply(set("a", value));
            Arc::new(settings)
        };
        let roles = [of(Some("u"), "2"), of(Some("v"), "3"), of(None, "1")];
        let catalog = Catalog::default().with_roles(roles);
        let values = |role: &str| catalog.settings_of(role).map(|(_, value)| value).collect::<String>();
        assert_eq!((values("u"), values("v"), values("w")), ("12".into(), "13".into(), "1".into()));
        assert_eq!(catalog.roles().next().unwrap().role, None);
    }
}
