//! What a statement has touched, as locks.
//!
//! In come the rows that a statement changed (its changeset) and those that it updated to what they were; out come the
//! locks that it needs: on each row, and on each old and new value of a unique key. Which keys a table has is asked of
//! SQLite's schema, and remembered until that changes. It must never know who has which lock.
//!
//! A row is locked by its primary key as it is stored. Where a key's form for comparing differs from that (numeric), the
//! table has a unique index over those forms, and two rows meet there.

use crate::locks::{Mode, Part, Resource};
use bytes::Bytes;
use dialect::sqlite::{error, parameter, value_ref};
use foldhash::{HashMap, HashMapExt as _};
use proto::services::RowLock;
use proto::{KeyspaceId, RowBatch, RowBatchBuilder, TableId, Value, ValueRef, WireError};
use replica::{RowChange, RowOp};
use rusqlite::{Connection, params_from_iter};
use std::sync::Arc;

/// A lock that a statement needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub resource: Resource,
    pub mode: Mode,
}

impl Want {
    /// A row's lock.
    pub fn row(table: TableId, key: Box<[u8]>, mode: RowLock) -> Self {
        Self { resource: Resource { table, part: Part::Row(key) }, mode: Mode::Row(mode) }
    }
}

/// Brings locks into the order in which every statement takes them: by table, rows before unique keys, then as their keys
/// are ordered. That is the order in which PostgreSQL takes them when it goes through an index, and statements that
/// all take theirs in one order don't wait for each other in a circle.
pub(crate) fn sort(wants: &mut [Want]) {
    if wants.len() < 2 {
        return;
    }
    wants.sort_by_cached_key(|want| {
        let (rank, key) = match &want.resource.part {
            Part::Table => (0, None),
            Part::Row(key) => (1, Some(key)),
            Part::Keys(key) | Part::Moved(key) => (2, Some(key)),
            Part::Unique(number, key) => (3 + u64::from(*number), Some(key)),
        };
        let place = key.map(|key| KeyspaceId::range(values(key).iter().map(Value::as_ref)));
        (want.resource.table, rank, place)
    });
}

/// A key as locks name it.
pub(crate) fn encode<'a>(key: impl IntoIterator<Item = ValueRef<'a>>) -> Box<[u8]> {
    let mut values = RowBatchBuilder::new(1);
    key.into_iter().for_each(|value| values.push(value));
    let values = values.finish();
    let mut bytes = Vec::with_capacity(4 + values.data().len());
    bytes.extend_from_slice(&(values.len() as u32).to_le_bytes());
    bytes.extend_from_slice(values.data());
    bytes.into()
}

/// What [`encode`] was given; nothing for what it didn't give.
pub(crate) fn values(key: &[u8]) -> Vec<Value> {
    let Some((count, data)) = key.split_first_chunk::<4>() else { return Vec::new() };
    let batch = RowBatch::decode(1, u32::from_le_bytes(*count), Bytes::copy_from_slice(data));
    batch.map(|batch| batch.rows().flatten().map(ValueRef::to_owned).collect()).unwrap_or_default()
}

/// The tables' keys, as far as they were asked for.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    /// Of the schema of this age.
    age: u64,
    tables: HashMap<TableId, Arc<Shape>>,
}

/// A table's keys.
#[derive(Debug)]
pub(crate) struct Shape {
    table: TableId,
    /// The names of the columns that changesets have, in their order.
    columns: Vec<String>,
    /// The primary key's columns, in the key's order.
    key: Vec<usize>,
    uniques: Vec<Unique>,
}

#[derive(Debug)]
struct Unique {
    number: u32,
    /// The columns that it is made of, in its order if they are its values.
    columns: Vec<usize>,
    /// What gives its values from those of the columns.
    computed: Option<String>,
}

impl Shapes {
    /// Forgets all.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// A table's keys, as the connection has them now: its schema has this age ([`replica::Stage::schema_age`]).
    pub fn get(
        &mut self,
        connection: &Connection,
        age: u64,
        table: TableId,
    ) -> Result<Arc<Shape>, WireError> {
        if self.age != age {
            self.tables.clear();
            self.age = age;
        }
        if let Some(shape) = self.tables.get(&table) {
            return Ok(Arc::clone(shape));
        }
        let shape = Arc::new(Shape::read(connection, table)?);
        self.tables.insert(table, Arc::clone(&shape));
        Ok(shape)
    }
}

impl Shape {
    fn read(connection: &Connection, table: TableId) -> Result<Self, WireError> {
        let name = dialect::physical::table_name(table);
        let (mut columns, mut places, mut key) = (Vec::new(), HashMap::new(), Vec::new());
        // Generated columns aren't in changesets.
        let sql = "SELECT cid, name, pk FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0 ORDER BY cid";
        let mut statement = connection.prepare_cached(sql).map_err(error)?;
        let mut rows = statement.query([&name]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            let (cid, pk): (i64, i64) = (row.get(0).map_err(error)?, row.get(2).map_err(error)?);
            places.insert(cid, columns.len());
            if pk > 0 {
                key.push((pk, columns.len()));
            }
            columns.push(row.get::<_, String>(1).map_err(error)?);
        }
        if key.is_empty() {
            return Err(WireError::internal(format!("{name} is no table with a primary key")));
        }
        key.sort_unstable();
        let key = key.into_iter().map(|(_, place)| place).collect();
        let sql = "SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk' ORDER BY seq";
        let mut statement = connection.prepare_cached(sql).map_err(error)?;
        let names = statement.query_map([&name], |row| row.get(0)).map_err(error)?;
        let names: Vec<String> = names.collect::<Result<_, _>>().map_err(error)?;
        let mut uniques = Vec::with_capacity(names.len());
        for (place, index) in names.iter().enumerate() {
            uniques.push(Unique::read(connection, index, place, &columns, &places)?);
        }
        Ok(Self { table, columns, key, uniques })
    }

    /// The key of the row that is at this place now, if there is one.
    pub fn key_at(&self, connection: &Connection, rowid: i64) -> Result<Option<Box<[u8]>>, WireError> {
        let key: Vec<_> = self.key.iter().map(|place| self.columns[*place].as_str()).collect();
        let table = dialect::physical::table_name(self.table);
        let sql = format!("SELECT {} FROM {table} WHERE rowid = ?1", key.join(", "));
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        let mut rows = statement.query([rowid]).map_err(error)?;
        let Some(row) = rows.next().map_err(error)? else { return Ok(None) };
        let mut values = Vec::with_capacity(key.len());
        for column in 0..key.len() {
            values.push(value_ref(row.get_ref(column).map_err(error)?)?);
        }
        Ok(Some(encode(values)))
    }

    /// Deletes a row by its key, as a lock names it.
    pub fn delete(&self, connection: &Connection, key: &[u8]) -> Result<(), WireError> {
        let sql = format!("DELETE FROM {}{}", dialect::physical::table_name(self.table), self.by_key());
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        statement.execute(params_from_iter(values(key).iter().map(parameter))).map_err(error)?;
        Ok(())
    }

    /// Undoes an update or a deletion of a row, whose key stays.
    pub fn undo(&self, connection: &Connection, change: &RowChange) -> Result<(), WireError> {
        let name = dialect::physical::table_name(self.table);
        let old = |place: &usize| change.old.get(*place).cloned().flatten().unwrap_or_default();
        let (sql, values): (_, Vec<Value>) = match change.op {
            RowOp::Insert => {
                return Err(WireError::internal("a row that was added isn't one that was there"));
            }
            RowOp::Delete => {
                let places: Vec<_> = (1..=self.columns.len()).map(|place| format!("?{place}")).collect();
                let sql = format!(
                    "INSERT INTO {name} ({}) VALUES ({})",
                    self.columns.join(", "),
                    places.join(", ")
                );
                (sql, (0..self.columns.len()).map(|place| old(&place)).collect())
            }
            RowOp::Update => {
                let changed = |place: &usize| matches!(change.new.get(*place), Some(Some(_)));
                let changed: Vec<usize> = (0..self.columns.len()).filter(changed).collect();
                let set = |(number, place): (usize, &usize)| {
                    format!("{} = ?{}", self.columns[*place], self.key.len() + number + 1)
                };
                let sets: Vec<_> = changed.iter().enumerate().map(set).collect();
                let sql = format!("UPDATE {name} SET {}{}", sets.join(", "), self.by_key());
                (sql, self.key.iter().chain(&changed).map(old).collect())
            }
        };
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        statement.execute(params_from_iter(values.iter().map(parameter))).map_err(error)?;
        Ok(())
    }

    /// Whether there is a row with this key.
    pub fn exists(&self, connection: &Connection, key: &[u8]) -> Result<bool, WireError> {
        let sql = format!("SELECT 1 FROM {}{}", dialect::physical::table_name(self.table), self.by_key());
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        statement.exists(params_from_iter(values(key).iter().map(parameter))).map_err(error)
    }

    fn by_key(&self) -> String {
        let equal = |(number, place): (usize, &usize)| format!("{} = ?{}", self.columns[*place], number + 1);
        let terms: Vec<_> = self.key.iter().enumerate().map(equal).collect();
        format!(" WHERE {}", terms.join(" AND "))
    }

    /// What a changeset doesn't say of a row, for it wasn't changed.
    fn read_back(&self, connection: &Connection, key: &[u8]) -> Result<Vec<Value>, WireError> {
        let columns = self.columns.join(", ");
        let sql =
            format!("SELECT {columns} FROM {}{}", dialect::physical::table_name(self.table), self.by_key());
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        let mut rows = statement.query(params_from_iter(values(key).iter().map(parameter))).map_err(error)?;
        let row = rows.next().map_err(error)?;
        let row = row.ok_or_else(|| WireError::internal("a row that was just updated is gone"))?;
        (0..self.columns.len())
            .map(|column| Ok(value_ref(row.get_ref(column).map_err(error)?)?.to_owned()))
            .collect()
    }

    /// The key of a changed row.
    pub fn key_of(&self, change: &RowChange) -> Result<Box<[u8]>, WireError> {
        let row = if change.op == RowOp::Insert { &change.new } else { &change.old };
        let mut key = Vec::with_capacity(self.key.len());
        for place in &self.key {
            match row.get(*place) {
                Some(Some(value)) => key.push(value.as_ref()),
                _ => return Err(WireError::internal("a changeset lacks a row's key")),
            }
        }
        Ok(encode(key))
    }

    /// The locks that a change needs.
    pub fn wants(
        &self,
        connection: &Connection,
        change: &RowChange,
        wants: &mut Vec<Want>,
    ) -> Result<(), WireError> {
        let key = self.key_of(change)?;
        let changed = |place: &usize| matches!(change.new.get(*place), Some(Some(_)));
        let keyed = |unique: &Unique| unique.columns.iter().any(changed);
        let mode = match change.op {
            RowOp::Update if !self.uniques.iter().any(keyed) => RowLock::NoKeyUpdate,
            _ => RowLock::Update,
        };
        if mode == RowLock::Update {
            let current = match change.op {
                RowOp::Update => self.read_back(connection, &key)?,
                _ => Vec::new(),
            };
            let with = |row: &[Option<Value>]| -> Vec<Value> {
                let value = |place| row.get(place).cloned().flatten().or_else(|| current.get(place).cloned());
                (0..self.columns.len()).map(|place| value(place).unwrap_or_default()).collect()
            };
            for unique in self.uniques.iter().filter(|unique| change.op != RowOp::Update || keyed(unique)) {
                for (row, is_there) in
                    [(&change.old, change.op != RowOp::Insert), (&change.new, change.op != RowOp::Delete)]
                {
                    let key =
                        if is_there { unique.key(connection, &with(row), &self.columns)? } else { None };
                    if let Some(key) = key {
                        let resource = Resource { table: self.table, part: Part::Unique(unique.number, key) };
                        wants.push(Want { resource, mode: Mode::Row(RowLock::Update) });
                    }
                }
            }
        }
        if change.op != RowOp::Insert && mode == RowLock::Update {
            let resource = Resource { table: self.table, part: Part::Keys(key.clone()) };
            wants.push(Want { resource, mode: Mode::Row(mode) });
        }
        wants.push(Want::row(self.table, key, mode));
        Ok(())
    }
}

impl Unique {
    fn read(
        connection: &Connection,
        name: &str,
        place: usize,
        columns: &[String],
        places: &HashMap<i64, usize>,
    ) -> Result<Self, WireError> {
        // The primary key's own is `p<table>`; no index has the number 0. What has no name of ours goes by its place.
        let number = match name.split_at_checked(1) {
            Some(("i", number)) => number.parse().ok(),
            Some(("p", _)) => Some(0),
            _ => None,
        };
        let number = number.unwrap_or_else(|| u32::MAX - u32::try_from(place).unwrap_or(0));
        let mut statement = connection
            .prepare_cached("SELECT cid FROM pragma_index_info(?1) ORDER BY seqno")
            .map_err(error)?;
        let cids = statement.query_map([name], |row| row.get(0)).map_err(error)?;
        let cids: Vec<i64> = cids.collect::<Result<_, _>>().map_err(error)?;
        let plain: Option<Vec<usize>> = cids.iter().map(|cid| places.get(cid).copied()).collect();
        if let Some(columns) = plain {
            return Ok(Self { number, columns, computed: None });
        }
        let sql = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = ?1";
        let mut statement = connection.prepare_cached(sql).map_err(error)?;
        let sql: String = statement.query_row([name], |row| row.get(0)).map_err(error)?;
        let list = expressions(&sql)
            .ok_or_else(|| WireError::internal(format!("the expressions of index {name} can't be read")))?;
        let is_named =
            |column: &str| list.iter().any(|expression| words(expression).any(|word| word == column));
        let used: Vec<usize> = (0..columns.len()).filter(|place| is_named(&columns[*place])).collect();
        let parameters: Vec<_> = used
            .iter()
            .enumerate()
            .map(|(number, place)| format!("?{} AS {}", number + 1, columns[*place]))
            .collect();
        let computed = format!("SELECT {} FROM (SELECT {})", list.join(", "), parameters.join(", "));
        Ok(Self { number, columns: used, computed: Some(computed) })
    }

    /// The key that a row with these values has; none if NULL is in it, which equals nothing.
    fn key(
        &self,
        connection: &Connection,
        row: &[Value],
        columns: &[String],
    ) -> Result<Option<Box<[u8]>>, WireError> {
        debug_assert_eq!(row.len(), columns.len());
        let parts = self.columns.iter().map(|place| &row[*place]);
        let Some(computed) = &self.computed else {
            let mut parts = parts.peekable();
            let is_null = parts.clone().any(Value::is_null);
            return Ok((!is_null && parts.peek().is_some()).then(|| encode(parts.map(Value::as_ref))));
        };
        let mut statement = connection.prepare_cached(computed).map_err(error)?;
        let width = statement.column_count();
        let mut rows = statement.query(params_from_iter(parts.map(parameter))).map_err(error)?;
        let row = rows.next().map_err(error)?;
        let row = row.ok_or_else(|| WireError::internal("an index's expressions gave nothing"))?;
        let mut key = Vec::with_capacity(width);
        for column in 0..width {
            let value = value_ref(row.get_ref(column).map_err(error)?)?;
            if value.is_null() {
                return Ok(None);
            }
            key.push(value);
        }
        Ok(Some(encode(key)))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// What an index is over, by the statement that made it: `CREATE UNIQUE INDEX i7 ON t5 (f(c1), c2 DESC)`.
fn expressions(sql: &str) -> Option<Vec<String>> {
    let (_, list) = sql.split_once('(')?;
    let mut found = Vec::new();
    let (mut depth, mut begin) = (1, 0);
    let mut quote = None;
    for (place, c) in list.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            _ => {}
        }
        if quote.is_none() && (depth == 0 || (depth == 1 && c == ',')) {
            let expression = list[begin..place].trim();
            let expression = expression.strip_suffix(" DESC").unwrap_or(expression);
            found.push(expression.to_owned());
            begin = place + 1;
        }
        if depth == 0 {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use replica::session::Capturing;

    fn open() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        let sql = "CREATE TABLE t5 (c1 TEXT NOT NULL, c2 INTEGER NOT NULL, c3 TEXT, c4 INTEGER, c5 INTEGER,
                                    PRIMARY KEY (c2, c1)) STRICT;
                   CREATE UNIQUE INDEX i6 ON t5 (c3, c4);
                   CREATE UNIQUE INDEX i7 ON t5 (abs(c4) DESC, c1);
                   CREATE INDEX i8 ON t5 (c5)";
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    /// What a row is marked with whose keys may be had by others.
    const FREED: u32 = u32::MAX;

    /// The locks of what a statement changes, as (unique key or 0, its values, mode).
    fn wants(connection: &mut Capturing, sql: &str) -> Vec<(u32, Vec<Value>, RowLock)> {
        connection.begin_capture();
        connection.execute_batch(sql).unwrap();
        let changeset = connection.capture().unwrap().changeset().unwrap();
        let shape = Shapes::default().get(connection, 0, TableId(5)).unwrap();
        let mut wants = Vec::new();
        for change in replica::changes(&changeset).unwrap() {
            shape.wants(connection, &change, &mut wants).unwrap();
        }
        sort(&mut wants);
        let told = |want: Want| {
            let Mode::Row(mode) = want.mode else { panic!("{want:?}") };
            match want.resource.part {
                Part::Row(key) => (0, values(&key), mode),
                Part::Unique(number, key) => (number, values(&key), mode),
                Part::Keys(key) => (FREED, values(&key), mode),
                Part::Moved(_) => panic!("nothing moves"),
                Part::Table => panic!("no row needs it by itself"),
            }
        };
        wants.into_iter().map(told).collect()
    }

    #[test]
    fn rows_and_unique_keys_are_locked_as_they_were_and_as_they_are() {
        let mut connection = Capturing::new(open());
        let int = Value::Int;
        let row = |key: i64, name: &str, mode| (0, vec![int(key), text(name)], mode);
        let freed = |key: i64, name: &str| (FREED, vec![int(key), text(name)], RowLock::Update);
        let (key, other) = (RowLock::Update, RowLock::NoKeyUpdate);
        assert_eq!(
            wants(&mut connection, "INSERT INTO t5 VALUES ('b', 1, 'x', -4, 0), ('a', 2, NULL, 5, 0)"),
            [
                row(1, "b", key),
                row(2, "a", key),
                (6, vec![text("x"), int(-4)], key),
                (7, vec![int(4), text("b")], key),
                (7, vec![int(5), text("a")], key),
            ]
        );
        assert_eq!(wants(&mut connection, "UPDATE t5 SET c5 = 7"), [row(1, "b", other), row(2, "a", other)]);
        assert_eq!(
            wants(&mut connection, "UPDATE t5 SET c5 = 7"),
            [],
            "what isn't changed isn't in a changeset"
        );
        assert_eq!(
            wants(&mut connection, "UPDATE t5 SET c3 = 'y' WHERE c1 = 'b'"),
            [
                row(1, "b", key),
                freed(1, "b"),
                (6, vec![text("x"), int(-4)], key),
                (6, vec![text("y"), int(-4)], key)
            ],
            "the half of it that was not changed is read back"
        );
        assert_eq!(
            wants(&mut connection, "UPDATE t5 SET c4 = 4 WHERE c1 = 'b'"),
            [
                row(1, "b", key),
                freed(1, "b"),
                (6, vec![text("y"), int(-4)], key),
                (6, vec![text("y"), int(4)], key),
                (7, vec![int(4), text("b")], key),
                (7, vec![int(4), text("b")], key),
            ]
        );
        assert_eq!(
            wants(&mut connection, "UPDATE t5 SET c2 = 3 WHERE c1 = 'b'; DELETE FROM t5 WHERE c1 = 'a'"),
            [
                row(1, "b", key),
                row(2, "a", key),
                row(3, "b", key),
                freed(1, "b"),
                freed(2, "a"),
                (6, vec![text("y"), int(4)], key),
                (6, vec![text("y"), int(4)], key),
                (7, vec![int(4), text("b")], key),
                (7, vec![int(4), text("b")], key),
                (7, vec![int(5), text("a")], key),
            ]
        );
    }

    #[test]
    fn keys_are_read_anew_when_the_schema_has_changed() {
        let connection = open();
        let mut shapes = Shapes::default();
        let before = shapes.get(&connection, 0, TableId(5)).unwrap();
        assert!(Arc::ptr_eq(&before, &shapes.get(&connection, 0, TableId(5)).unwrap()));
        connection.execute_batch("DROP INDEX i6").unwrap();
        assert_eq!(shapes.get(&connection, 1, TableId(5)).unwrap().uniques.len(), 1);
        assert!(shapes.get(&connection, 1, TableId(6)).is_err());
    }

    #[test]
    fn a_row_is_found_and_deleted_by_its_locks_key() {
        let connection = open();
        connection.execute_batch("INSERT INTO t5 VALUES ('b', 1, 'x', -4, 0)").unwrap();
        let shape = Shapes::default().get(&connection, 0, TableId(5)).unwrap();
        let key = encode([ValueRef::Int(1), ValueRef::Text("b")]);
        assert!(shape.exists(&connection, &key).unwrap());
        shape.delete(&connection, &encode([ValueRef::Int(1), ValueRef::Text("c")])).unwrap();
        assert!(shape.exists(&connection, &key).unwrap());
        shape.delete(&connection, &key).unwrap();
        assert!(!shape.exists(&connection, &key).unwrap());
    }

    #[test]
    fn the_expressions_of_an_index_are_found() {
        let list = expressions("CREATE UNIQUE INDEX i7 ON t5 (shoal_key(c1, ',)'), c2 DESC)");
        assert_eq!(list, Some(vec!["shoal_key(c1, ',)')".to_owned(), "c2".to_owned()]));
        assert_eq!(expressions("CREATE UNIQUE INDEX i7 ON t5 (c1"), None);
    }
}
