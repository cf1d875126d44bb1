//! The relations of `pg_catalog` and `information_schema`: what psql's `\d` and drivers ask.
//!
//! In come the catalog, the topology and a few facts of the session; out go rows in storage form. A relation that
//! isn't here is unknown (42P01), never empty; one whose rows could tell of nothing that Shoal has (triggers, say) is
//! truly empty. Object ids are the catalog's own numbers; what has none there (a primary key's index, constraints,
//! defaults) gets one that is made from its table's and can't meet another.
//!
//! `pg_catalog.shoal_definition` isn't PostgreSQL's: it holds what `pg_get_indexdef(oid, attnum)` and
//! `pg_get_constraintdef(oid)` answer (attnum 0 for the whole; `shoal_pretty` is the form of their pretty
//! argument): the binder reads those as lookups. `pg_attrdef.adbin` and `pg_constraint.conbin` are the expressions' text
//! already, which is what `pg_get_expr` makes of them. `shoal_keyspace` and `shoal_shard` show the topology,
//! `shoal_transactions` what is under way, `shoal_replicas` what the shards' replicas are doing, `shoal_reshards` how far
//! the replacing of shards by others is, `shoal_shards` how big and busy shards are.

mod definitions;
mod fixed;
mod information_schema;
mod pg_catalog;
pub(crate) mod psql;
mod relations;

use dialect::Type;
use dialect::types::Typed;
use proto::catalog::{Catalog, Column};
use proto::services::ReshardStatus;
use proto::topology::Topology;
use proto::{ColumnId, LogIndex, NodeId, ShardId, TableId, TransactionId, Value};

/// A system relation.
#[derive(Debug)]
pub struct Relation {
    /// `pg_catalog` or `information_schema`.
    pub schema: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What [`rows`] knows it by: the name, in `information_schema` with the schema before it.
    pub key: &'static str,
    /// PostgreSQL's object id of it.
    pub oid: u32,
    /// Whether PostgreSQL has it as a view.
    pub view: bool,
    /// Its columns' names and types, in order.
    pub columns: &'static [(&'static str, Type)],
}

/// What rows say of the session.
#[derive(Clone, Debug, Default)]
pub struct SessionFacts {
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// Every setting.
    pub settings: Vec<SettingFact>,
    /// The transactions that are under way, if `shoal_transactions` is read.
    pub transactions: Vec<TransactionFact>,
    /// The replicas, if `shoal_replicas` is read.
    pub replicas: Vec<ReplicaFact>,
    /// The reshards, if `shoal_reshards` is read.
    pub reshards: Vec<ReshardStatus>,
    /// The shards that serve, if `shoal_shards` is read.
    pub shards: Vec<ShardFact>,
}

/// A setting of the session's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingFact {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What it is after RESET.
    pub reset: String,
    /// What it does.
    pub about: String,
}

/// The relation whose rows are [`SessionFacts::transactions`].
pub const TRANSACTIONS: &str = "shoal_transactions";

/// What a transaction has on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionFact {
    /// The transaction.
    pub transaction: TransactionId,
    /// The shard.
    pub shard: ShardId,
    /// `open`, `prepared`, `committing`, `aborting` or `committed`.
    pub state: &'static str,
    /// How long it has been so, in milliseconds; `None` if the shard has nothing of it.
    pub idle_ms: Option<i64>,
    /// The transactions that it waits for there.
    pub waits_for: Vec<TransactionId>,
}

/// The relation whose rows are [`SessionFacts::replicas`].
pub const REPLICAS: &str = "shoal_replicas";

/// The relation whose rows are [`SessionFacts::reshards`].
pub const RESHARDS: &str = "shoal_reshards";

/// The relation whose rows are [`SessionFacts::shards`].
pub const SHARDS: &str = "shoal_shards";

/// A shard that serves, as the coordinator knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardFact {
    /// The shard.
    pub shard: ShardId,
    /// The node that leads it.
    pub leader: Option<NodeId>,
    /// How big its database is, in bytes.
    pub bytes: Option<u64>,
    /// How many rows its keyspace's tables have in it, as a follower has counted them.
    pub rows: Option<u64>,
    /// How many milliseconds ago it has.
    pub rows_age_ms: Option<u64>,
    /// Of the last minute.
    pub writes_per_second: Option<f64>,
    /// Of the last minute.
    pub reads_per_second: Option<f64>,
}

/// The relations of Shoal's own that are found without a schema.
pub(crate) const OWN: [&str; 4] = [TRANSACTIONS, REPLICAS, RESHARDS, SHARDS];

/// A replica: what its node says of it, and what this router has seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFact {
    /// The shard; `None` for the coordinator.
    pub shard: Option<ShardId>,
    /// Its node.
    pub node: NodeId,
    /// Its part in its group, `stopped`, or `missing` if its node has none; `unreachable` if that didn't answer.
    pub role: &'static str,
    /// Its term.
    pub term: Option<u64>,
    /// The last index that its database has.
    pub applied: Option<LogIndex>,
    /// How many entries it knows to be committed that its database lacks.
    pub lag_entries: Option<u64>,
    /// For how many milliseconds it has.
    pub lag_ms: Option<u64>,
    /// Why it stopped.
    pub stopped: Option<String>,
    /// How many reads it has answered to this router that any replica could have.
    pub reads: Option<u64>,
    /// How long it takes to answer this router, in microseconds.
    pub latency_us: Option<u64>,
    /// Whether this router leaves it alone, because it has failed.
    pub avoided: Option<bool>,
}

/// The relation of this name; without a schema one of `pg_catalog`.
pub fn relation(schema: Option<&str>, name: &str) -> Option<&'static Relation> {
    let schema = schema.unwrap_or("pg_catalog");
    relations::all().find(|relation| relation.schema == schema && relation.name == name)
}

/// Every relation.
pub fn relations() -> impl Iterator<Item = &'static Relation> {
    relations::all()
}

/// The rows of the relation of this [`Relation::key`], in storage form, each with a value for every column. None for a
/// key that no relation has.
pub fn rows(key: &str, catalog: &Catalog, topology: &Topology, facts: &SessionFacts) -> Vec<Vec<Value>> {
    let sources = Sources { catalog, topology, facts };
    match key.split_once('.') {
        Some(("information_schema", name)) => information_schema::rows(name, &sources),
        _ => pg_catalog::rows(key, &sources),
    }
}

/// What rows are made of.
struct Sources<'a> {
    catalog: &'a Catalog,
    topology: &'a Topology,
    facts: &'a SessionFacts,
}

/// Ids of namespaces, roles and relations of PostgreSQL's.
mod oid {
    pub const PG_CATALOG: u32 = 11;
    pub const PUBLIC: u32 = 2200;
    pub const INFORMATION_SCHEMA: u32 = 13207;
    /// The user's: the bootstrap superuser.
    pub const USER: u32 = 10;
    pub const DATABASE: u32 = 16383;
    pub const HEAP: u32 = 2;
    pub const BTREE: u32 = 403;
    pub const PG_CLASS: u32 = 1259;
    pub const PG_NAMESPACE: u32 = 2615;
    pub const DEFAULT_COLLATION: u32 = 100;
}

/// Object ids of what has no number in the catalog. User objects' own numbers stay below these.
mod made {
    use proto::{ColumnId, IndexId, TableId};

    pub fn primary_key_index(table: TableId) -> u32 {
        table.0 | 0x4000_0000
    }

    pub fn primary_key(table: TableId) -> u32 {
        table.0 | 0xc000_0000
    }

    pub fn constraint(index: IndexId) -> u32 {
        index.0 | 0x8000_0000
    }

    /// Shares its relation with the other constraints.
    pub fn check(table: TableId, position: usize) -> u32 {
        0x2000_0000 | (table.0.wrapping_mul(64).wrapping_add(position as u32) & 0x1fff_ffff)
    }

    /// Is alone in `pg_attrdef`.
    pub fn default(table: TableId, column: ColumnId) -> u32 {
        table.0.wrapping_mul(2048).wrapping_add(column.0)
    }
}

/// A row in the making: what isn't set is what PostgreSQL has there when it means nothing.
struct Row {
    columns: &'static [(&'static str, Type)],
    values: Vec<Value>,
}

impl Row {
    /// NULL everywhere.
    fn empty(relation: &Relation) -> Self {
        Row { columns: relation.columns, values: vec![Value::Null; relation.columns.len()] }
    }

    /// 0, false and the empty string, and NULL for texts, arrays and times.
    fn zero(relation: &Relation) -> Self {
        let zero = |ty: &Type| match ty {
            Type::Bool | Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid => Value::Int(0),
            Type::Float4 | Type::Float8 => Value::Real(0.0),
            Type::Char | Type::Name => Value::Text(String::new()),
            _ => Value::Null,
        };
        Row { columns: relation.columns, values: relation.columns.iter().map(|(_, ty)| zero(ty)).collect() }
    }

    fn set(mut self, name: &str, value: impl Into<Cell>) -> Self {
        let at =
            self.columns.iter().position(|(column, _)| *column == name).expect("a column of the relation");
        self.values[at] = value.into().0;
        self
    }
}

/// A value of a row.
struct Cell(Value);

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell(Value::Text(text.to_owned()))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell(Value::Text(text))
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        Cell(Value::Text(text.clone()))
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Cell(Value::Int(value))
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Cell(Value::Real(value))
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Cell(Value::Int(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Cell(Value::Int(i64::from(value)))
    }
}

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Cell(Value::Int(value as i64))
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Cell(Value::Int(i64::from(value)))
    }
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        Cell(value)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell(Value::Null), Into::into)
    }
}

fn by_name(name: &str) -> &'static Relation {
    relation(None, name).expect("a relation of this module's table")
}

/// A column's attribute number: ids are never reused, so holes are where columns were dropped, as in PostgreSQL.
fn attnum(column: ColumnId) -> i64 {
    i64::from(column.0)
}

fn typed(column: &Column) -> Typed {
    Typed::from_ref(column.ty).unwrap_or(Typed::plain(Type::Text))
}

/// `format_type`.
fn format_type(typed: Typed) -> String {
    let Typed { ty, modifier } = typed;
    let base = match ty {
        Type::Bool => "boolean",
        Type::Int2 => "smallint",
        Type::Int4 => "integer",
        Type::Int8 => "bigint",
        Type::Float4 => "real",
        Type::Float8 => "double precision",
        Type::Numeric if modifier >= 4 => {
            let (precision, scale) = ((modifier - 4) >> 16, (modifier - 4) & 0x7ff);
            // Eleven bits with a sign.
            return format!("numeric({precision},{})", (scale ^ 1024) - 1024);
        }
        Type::Numeric => "numeric",
        Type::Text => "text",
        Type::Varchar if modifier >= 4 => return format!("character varying({})", modifier - 4),
        Type::Varchar => "character varying",
        Type::Bpchar if modifier >= 4 => return format!("character({})", modifier - 4),
        Type::Bpchar => "bpchar",
        Type::Char => "\"char\"",
        Type::Name => "name",
        Type::Bytea => "bytea",
        Type::Date => "date",
        Type::Timestamp if modifier >= 0 => return format!("timestamp({modifier}) without time zone"),
        Type::Timestamp => "timestamp without time zone",
        Type::Timestamptz if modifier >= 0 => return format!("timestamp({modifier}) with time zone"),
        Type::Timestamptz => "timestamp with time zone",
        Type::Uuid => "uuid",
        Type::Oid => "oid",
        Type::Regclass => "regclass",
        Type::Array(_) => "text[]",
        Type::Unknown => "unknown",
    };
    base.to_owned()
}

/// Every table with its id.
fn tables<'a>(sources: &Sources<'a>) -> impl Iterator<Item = (TableId, &'a proto::catalog::Table)> {
    sources.catalog.tables().map(|table| (table.id, table.as_ref()))
}

#[cfg(test)]
mod tests;
