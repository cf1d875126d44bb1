//! Checked application of changesets.
//!
//! A changeset and the tables it is for go in; either all of its changes were made, or an error comes out that stops
//! the replica. SQLite by itself says OK and does nothing when a table is missing or has fewer columns. It must never
//! know where a changeset came from.

use crate::session::{self, ApplyError, OWN_PREFIX};
use foldhash::HashMap;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// What a table looks like to a changeset.
struct Shape {
    /// For each of its columns, whether it is in the primary key.
    key: Vec<bool>,
    /// And what it is called.
    columns: Vec<String>,
}

/// The tables' shapes, as far as they were asked for. To be forgotten whenever the schema may have changed.
#[derive(Default)]
pub(crate) struct Shapes {
    tables: HashMap<String, Option<Shape>>,
    inert: Option<bool>,
    age: u64,
}

/// A changeset that doesn't fit the database it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangesetError {
    /// SQLite failed.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The rows or tables aren't those that the changeset was made on.
    #[error("{0}")]
    Diverged(String),
    /// The tables aren't those that the changeset was made on.
    #[error("{0}")]
    Altered(String),
}

impl Shapes {
    /// Forgets all.
    pub fn forget(&mut self) {
        *self = Self { age: self.age + 1, ..Self::default() };
    }

    /// How often all was forgotten.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// Whether no table has foreign keys or triggers that could act.
    pub fn are_inert(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        if let Some(inert) = self.inert {
            return Ok(inert);
        }
        let acting = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger')
                          OR EXISTS (SELECT 1 FROM sqlite_schema AS t, pragma_foreign_key_list(t.name, 'main')
                                     WHERE t.type = 'table')";
        let inert = !connection.query_row(acting, [], |row| row.get::<_, bool>(0))?;
        self.inert = Some(inert);
        Ok(inert)
    }

    /// What a table's columns are called, if it is one whose rows a changeset with such a key may change.
    pub fn columns(
        &mut self,
        connection: &Connection,
        table: &str,
        key: &[bool],
    ) -> rusqlite::Result<Option<&[String]>> {
        if is_own(table) {
            return Ok(None);
        }
        let shape = self.get(connection, table)?;
        Ok(shape.filter(|shape| shape.key == key).map(|shape| shape.columns.as_slice()))
    }

    fn get(&mut self, connection: &Connection, table: &str) -> rusqlite::Result<Option<&Shape>> {
        if !self.tables.contains_key(table) {
            let shape = shape(connection, table)?;
            self.tables.insert(table.to_owned(), (!shape.key.is_empty()).then_some(shape));
        }
        Ok(self.tables.get(table).and_then(Option::as_ref))
    }
}

/// Whether it is one of the replica's tables, which no changeset is about.
fn is_own(table: &str) -> bool {
    table.get(..OWN_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(OWN_PREFIX))
}

fn shape(connection: &Connection, table: &str) -> rusqlite::Result<Shape> {
    // Generated columns (hidden 2 and 3) aren't in changesets.
    let mut statement = connection.prepare_cached(
        "SELECT pk > 0, name FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0 ORDER BY cid",
    )?;
    let columns = statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (key, columns) = columns.collect::<rusqlite::Result<Vec<(bool, String)>>>()?.into_iter().unzip();
    Ok(Shape { key, columns })
}

/// Lets foreign keys and triggers act, or not. They act on a leader, and their effects are in the changeset, so where
/// it is applied they must not act again. `PRAGMA foreign_keys` would be ignored inside a transaction,
/// `sqlite3_db_config` isn't. It makes SQLite prepare every statement again.
pub(crate) fn let_act(connection: &Connection, act: bool) -> rusqlite::Result<()> {
    for config in [DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER] {
        connection.set_db_config(config, act)?;
    }
    Ok(())
}

/// Applies a changeset, inside the caller's transaction. Foreign keys and triggers must be off: what they did is in
/// the changeset.
pub(crate) fn apply(
    connection: &Connection,
    shapes: &mut Shapes,
    changeset: &[u8],
) -> Result<(), ChangesetError> {
    let mut expected = 0;
    for part in session::inspect(changeset)? {
        match shapes.get(connection, &part.table)? {
            _ if is_own(&part.table) => {
                return Err(ChangesetError::Altered(format!("{} is no table of rows", part.table)));
            }
            None => return Err(ChangesetError::Altered(format!("there is no table {}", part.table))),
            Some(shape) if shape.key != part.key => {
                let message = format!("table {} has other columns or another primary key", part.table);
                return Err(ChangesetError::Altered(message));
            }
            Some(_) => expected += part.changes,
        }
    }
    let before = connection.total_changes();
    session::apply(connection, changeset).map_err(|error| match error {
        ApplyError::Sqlite(error) => ChangesetError::Sqlite(error),
        ApplyError::Conflict { table, kind } => ChangesetError::Diverged(format!("table {table}: {kind}")),
    })?;
    // A change that needs two steps (a swap of unique values) is counted twice, so there may be more, never fewer.
    let made = connection.total_changes() - before;
    if made < expected {
        return Err(ChangesetError::Diverged(format!("{made} of {expected} changes were made")));
    }
    Ok(())
}

/// The tables whose rows a changeset could miss: those without a primary key, or with a nullable one.
pub(crate) fn uncapturable(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let tables: Vec<String> = connection
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    let mut columns = connection.prepare(
        "SELECT upper(type), \"notnull\", (SELECT count(*) FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0),
                (SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main')
         FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0",
    )?;
    for table in tables.into_iter().filter(|name| !name.starts_with(OWN_PREFIX)) {
        let mut rows = columns.query([&table])?;
        let (mut keyed, mut nullable) = (false, false);
        while let Some(row) = rows.next()? {
            let (ty, not_null, count, without_rowid): (String, bool, u32, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            keyed = true;
            let rowid = count == 1 && ty == "INTEGER";
            nullable |= !(not_null || without_rowid || rowid);
        }
        if !keyed || nullable {
            found.push(table);
        }
    }
    Ok(found)
}
