//! What is to be built of which images, and what these have in common.
//!
//! Images' files go in, their tables come out: with the statements that made them, word for word, so that a changeset that
//! fits one database fits the other. Nothing is written here.

use super::damaged;
use crate::fence::Standing;
use crate::layout::{Laid, Layouts};
use dialect::physical::{column_name, table_name, table_of};
use dialect::sqlite::{error, register};
use proto::layout::Place;
use proto::{KeyRange, LogIndex, SchemaVersion, ShardId, WireError};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// What is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Where the files are.
    pub directory: PathBuf,
    /// The shards that there are images of. Of the first one come the rows of reference tables.
    pub sources: Vec<ShardId>,
    /// The shards that get files, side by side.
    pub targets: Vec<Target>,
}

/// A shard that gets a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub shard: ShardId,
    pub range: KeyRange,
}

/// Where a shard's image is, once it is whole.
pub(super) fn image(directory: &Path, shard: ShardId) -> PathBuf {
    directory.join(format!("image-{}.sqlite", shard.0))
}

/// Where a new shard's database is until its group is founded.
pub(super) fn file(directory: &Path, shard: ShardId) -> PathBuf {
    directory.join(format!("shard-{}.sqlite", shard.0))
}

/// An image of a shard.
pub(super) struct Source {
    pub shard: ShardId,
    pub connection: Connection,
    /// The last entry whose effects it has.
    pub position: LogIndex,
    pub least: SchemaVersion,
}

impl Source {
    pub fn open(directory: &Path, shard: ShardId) -> Result<Self, WireError> {
        let connection = open(&image(directory, shard), OpenFlags::empty())?;
        let sql = "SELECT applied FROM replica_state";
        let position: i64 = connection.query_row(sql, [], |row| row.get(0)).map_err(error)?;
        let least = Standing::read(&connection)?.least;
        Ok(Self { shard, connection, position: LogIndex(position.cast_unsigned()), least })
    }
}

/// Opens a database that nobody else has open.
pub(super) fn open(path: &Path, further: OpenFlags) -> Result<Connection, WireError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | further;
    let connection = Connection::open_with_flags(path, flags).map_err(error)?;
    register(&connection).map_err(error)?;
    Ok(connection)
}

/// A table whose rows are copied.
pub(crate) struct Table {
    pub laid: Laid,
    /// What made it.
    pub create: String,
    /// The positions of its primary key.
    pub key: Vec<usize>,
    /// All rows, and those after a key, in the order of the primary key.
    pub all: String,
    pub after: String,
    /// How many rows there are, row by row, so that it can pause.
    pub count: String,
    pub insert: String,
}

impl Table {
    /// By a database that has it.
    pub fn read(connection: &Connection, name: &str, laid: Laid, create: String) -> Result<Self, WireError> {
        // A key of one integer is the rowid, and has no index.
        let mut statement = connection
            .prepare("SELECT name FROM pragma_index_list(?1) WHERE origin = 'pk'")
            .map_err(error)?;
        let mut rows = statement.query([name]).map_err(error)?;
        let by = match rows.next().map_err(error)? {
            Some(row) => format!(" INDEXED BY {}", row.get::<_, String>(0).map_err(error)?),
            None => String::new(),
        };
        let columns = &laid.layout.columns;
        let key: Vec<_> = laid.layout.primary_key.iter().map(|place| *place as usize).collect();
        let places = |count| (1..=count).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
        let list = columns.iter().map(|column| column_name(column.id)).collect::<Vec<_>>().join(", ");
        let order = key.iter().map(|place| column_name(columns[*place].id)).collect::<Vec<_>>().join(", ");
        let all = format!("SELECT {list} FROM {name}{by}");
        Ok(Self {
            create,
            after: format!("{all} WHERE ({order}) > ({}) ORDER BY {order}", places(key.len())),
            all: format!("{all} ORDER BY {order}"),
            count: format!("SELECT count({}) FROM {name}", column_name(columns[key[0]].id)),
            insert: format!("INSERT INTO {name} ({list}) VALUES ({})", places(columns.len())),
            key,
            laid,
        })
    }

    /// Whether every shard has all of its rows.
    pub fn is_reference(&self) -> bool {
        self.laid.layout.place == Place::Reference
    }
}

/// What all images have.
pub(super) struct Schema {
    /// By id.
    pub tables: Vec<Table>,
    /// The statements that make the indexes.
    pub indexes: Vec<String>,
}

impl Schema {
    /// The tables of all of these. They must be the same: a row that fits one fits all.
    pub fn of(sources: &[Source]) -> Result<Self, WireError> {
        let [first, others @ ..] = sources else { return Err(WireError::internal("nothing to build from")) };
        let objects = objects(&first.connection)?;
        let names = |objects: &[Object]| -> Vec<_> {
            objects.iter().map(|object| (object.is_index, object.name.clone())).collect()
        };
        let layouts = Layouts::read(&first.connection)?;
        for other in others {
            if names(&self::objects(&other.connection)?) != names(&objects)
                || !Layouts::read(&other.connection)?.are(&layouts)
            {
                let message = format!("shards {} and {} have other tables", first.shard, other.shard);
                return Err(damaged(&message));
            }
        }
        let indexes = objects.iter().filter(|object| object.is_index).map(|object| object.sql.clone());
        let indexes = indexes.collect();
        let mut tables = Vec::new();
        for (id, laid) in layouts.into_tables() {
            let name = table_name(id);
            let made = objects.iter().find(|object| !object.is_index && object.name == name);
            let made = made.ok_or_else(|| damaged(&format!("there is no table {id}")))?;
            tables.push(Table::read(&first.connection, &name, laid, made.sql.clone())?);
        }
        if tables.len() != objects.iter().filter(|object| !object.is_index).count() {
            return Err(damaged("a table has no layout"));
        }
        Ok(Self { tables, indexes })
    }
}

struct Object {
    is_index: bool,
    name: String,
    sql: String,
}

/// The tables of rows and their indexes.
fn objects(connection: &Connection) -> Result<Vec<Object>, WireError> {
    let sql = "SELECT type = 'index', name, tbl_name, sql FROM sqlite_schema
               WHERE type IN ('table', 'index') AND sql IS NOT NULL ORDER BY type, name";
    let mut statement = connection.prepare(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        let of: String = row.get(2).map_err(error)?;
        if table_of(&of).is_some() {
            let (is_index, name, sql) = (row.get(0), row.get(1), row.get(3));
            found.push(Object {
                is_index: is_index.map_err(error)?,
                name: name.map_err(error)?,
                sql: sql.map_err(error)?,
            });
        }
    }
    Ok(found)
}
