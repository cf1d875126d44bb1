//! Which columns the rows of a shard's tables have at which position, and what places them: layouts, kept in the shard's
//! own database; and by them, which rows and which part of a changeset are another shard's.
//!
//! Each schema step that makes, changes or drops a table adds a row, in the same entry. So for every index of the log the
//! database says how its rows lay: by the last row of a table whose step had run by then (`replica_schema` has where it
//! did). A table's steps come in the order of jobs and steps, on every shard, for a job has its tables to itself; what
//! undoes a step comes after it. A step that failed has no row.
//!
//! Keyspace ids are those that routers place rows by ([`key_within`], [`KeyspaceId::of`]). Nothing here knows names that users gave, nor
//! which shard asks.

use bytes::Bytes;
use dialect::key::key_within;
use dialect::physical::table_of;
use dialect::sqlite::error;
use dialect::types::Type;
use proto::layout::{Layout, Place, TableLayout};
use proto::services::SchemaStep;
use proto::topology::Sharding;
use proto::wire::Wire;
use proto::{KeyRange, KeyspaceId, LogIndex, SqlState, TableId, ValueRef, WireError};
use replica::Record;
use rusqlite::{Connection, Params};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What every replica of a shard runs before its first log entry. A table that is gone has no layout.
pub(crate) fn init() -> String {
    "CREATE TABLE shoal_layout (table_id INTEGER NOT NULL, job INTEGER NOT NULL, step INTEGER NOT NULL, layout BLOB,
                                PRIMARY KEY (table_id, job, step)) STRICT, WITHOUT ROWID"
        .into()
}

/// The statement by which a step notes what it makes of a table.
pub(crate) fn note(step: SchemaStep, of: &TableLayout) -> String {
    let SchemaStep { job, step } = step;
    let job = job.cast_signed();
    let Some(layout) = &of.layout else {
        return format!("INSERT INTO shoal_layout VALUES ({}, {job}, {step}, NULL)", of.table);
    };
    let mut bytes = String::new();
    for byte in layout.encode() {
        write!(bytes, "{byte:02x}").expect("writing to a string can't fail");
    }
    format!("INSERT INTO shoal_layout VALUES ({}, {job}, {step}, x'{bytes}')", of.table)
}

/// How rows lie in a shard's tables at one index of its log.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    tables: BTreeMap<TableId, Laid>,
}

/// A table's layout, and what of it places rows.
#[derive(Debug)]
pub(crate) struct Laid {
    pub layout: Layout,
    placing: Placing,
}

#[derive(Debug)]
enum Placing {
    /// By the columns at these positions.
    ByKey(Sharding, Vec<(usize, Type)>),
    Everywhere,
}

/// Which rows are a shard's.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// The keyspace ids of its rows, in its keyspace.
    pub range: KeyRange,
    /// Whether the rows of reference tables are among them.
    pub references: bool,
}

impl Layouts {
    /// As of the state that the connection has open.
    pub fn read(connection: &Connection) -> Result<Self, WireError> {
        let sql = "SELECT table_id, layout FROM shoal_layout ORDER BY table_id, job, step";
        Self::collect(connection, sql, [])
    }

    /// As of an index of the log, which isn't after the state that the connection has open.
    pub fn read_at(connection: &Connection, index: LogIndex) -> Result<Self, WireError> {
        let sql =
            "SELECT l.table_id, l.layout FROM shoal_layout AS l JOIN replica_schema AS s USING (job, step)
                   WHERE s.position <= ?1 ORDER BY l.table_id, l.job, l.step";
        Self::collect(connection, sql, [index.0.cast_signed()])
    }

    fn collect(connection: &Connection, sql: &str, params: impl Params) -> Result<Self, WireError> {
        let mut newest: BTreeMap<TableId, Option<Vec<u8>>> = BTreeMap::new();
        let mut statement = connection.prepare(sql).map_err(error)?;
        let mut rows = statement.query(params).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            newest.insert(TableId(row.get(0).map_err(error)?), row.get(1).map_err(error)?);
        }
        let mut tables = BTreeMap::new();
        for (table, layout) in newest {
            let Some(bytes) = layout else { continue };
            let damaged = |problem: &dyn std::fmt::Display| corrupt(table, problem);
            let layout = Layout::decode(&bytes).map_err(|problem| damaged(&problem))?;
            tables.insert(table, Laid::new(layout).map_err(|problem| damaged(&problem))?);
        }
        Ok(Self { tables })
    }

    /// The tables that are there, by id.
    pub fn tables(&self) -> impl Iterator<Item = (TableId, &Laid)> {
        self.tables.iter().map(|(table, laid)| (*table, laid))
    }

    /// The same, to keep.
    pub fn into_tables(self) -> impl Iterator<Item = (TableId, Laid)> {
        self.tables.into_iter()
    }

    /// Whether these are the same tables with the same layouts.
    pub fn are(&self, other: &Layouts) -> bool {
        let layouts = |layouts: &'_ Layouts| -> Vec<_> {
            layouts.tables.iter().map(|(table, laid)| (*table, laid.layout.clone())).collect()
        };
        layouts(self) == layouts(other)
    }

    /// A table's layout.
    pub fn table(&self, table: TableId) -> Result<&Laid, WireError> {
        self.tables.get(&table).ok_or_else(|| corrupt(table, &"it isn't there"))
    }

    /// The part of a changeset that is a shard's, byte for byte: rows of tables, and nothing of what a shard keeps for
    /// itself. Rows must be in it as these layouts say. What isn't cut into pieces isn't copied.
    pub fn filter(&self, changeset: &Bytes, share: &Share) -> Result<Bytes, WireError> {
        let mut known: Option<(*const str, Option<&Laid>)> = None;
        replica::retain(changeset, |record| {
            let laid = match known {
                Some((name, laid)) if std::ptr::eq(name, record.table) => laid,
                _ => {
                    let laid = self.of(record)?;
                    known = Some((record.table, laid));
                    laid
                }
            };
            laid.map_or(Ok(false), |laid| laid.is_within(record, share))
        })
    }

    /// The layout of a changed row's table; `None` if it is none of rows.
    fn of(&self, record: &Record<'_>) -> Result<Option<&Laid>, WireError> {
        let Some(table) = table_of(record.table) else { return Ok(None) };
        let laid = self.table(table)?;
        let key = &laid.layout.primary_key;
        let fits = record.key.len() == laid.layout.columns.len()
            && record
                .key
                .iter()
                .enumerate()
                .all(|(place, flag)| (*flag != 0) == key.contains(&(place as u32)));
        if !fits {
            return Err(corrupt(table, &"a changeset has other columns, or another primary key"));
        }
        Ok(Some(laid))
    }
}

impl Laid {
    fn new(layout: Layout) -> Result<Self, String> {
        let placing = match &layout.place {
            Place::Sharded(sharding, key) => {
                let mut columns = Vec::with_capacity(key.len());
                for place in key.iter().map(|place| *place as usize) {
                    let oid = layout.columns[place].ty;
                    let ty = Type::from_oid(oid).ok_or_else(|| format!("no type has the object id {oid}"))?;
                    columns.push((place, ty));
                }
                Placing::ByKey(*sharding, columns)
            }
            Place::Single => Placing::ByKey(Sharding::Single, Vec::new()),
            Place::Reference => Placing::Everywhere,
        };
        Ok(Self { layout, placing })
    }

    /// The keyspace id of a row, of which `value` gives the stored values by position; `None` if it is on every shard.
    pub fn keyspace_id<'v>(&self, value: impl Fn(usize) -> ValueRef<'v>) -> Option<KeyspaceId> {
        match &self.placing {
            Placing::ByKey(sharding, key) => {
                let key = key.iter().map(|(place, ty)| key_within(*ty, value(*place)));
                Some(KeyspaceId::of(*sharding, key))
            }
            Placing::Everywhere => None,
        }
    }

    /// Whether rows lie in the order of their keys.
    pub fn is_by_range(&self) -> bool {
        matches!(self.placing, Placing::ByKey(Sharding::Range, _))
    }

    /// Whether a row is a shard's.
    pub fn is_in<'v>(&self, share: &Share, value: impl Fn(usize) -> ValueRef<'v>) -> bool {
        self.keyspace_id(value).map_or(share.references, |id| share.range.contains(&id.0))
    }

    fn is_within(&self, record: &Record<'_>, share: &Share) -> Result<bool, WireError> {
        let Placing::ByKey(_, key) = &self.placing else { return Ok(share.references) };
        let end = key.iter().map(|(place, _)| place + 1).max().unwrap_or(0);
        let values = record.identity().take(end).collect::<Result<Vec<_>, _>>()?;
        if key.iter().any(|(place, _)| values.get(*place).is_none_or(Option::is_none)) {
            let message = format!("a change of a row of {} doesn't have its shard key", record.table);
            return Err(WireError::new(SqlState::DATA_CORRUPTED, message));
        }
        Ok(self.is_in(share, |place| values[place].unwrap_or(ValueRef::Null)))
    }
}

fn corrupt(table: TableId, problem: &dyn std::fmt::Display) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("the layout of table {table}: {problem}"))
}

#[cfg(test)]
pub(crate) mod tests;
