//! Capturing what a connection changes.
//!
//! SQLite tells of each row before it changes (the preupdate hook). Of each row the first word is kept: what it was, or
//! that it wasn't. At the end each is looked up by its key, and what it is by then makes the change, so whatever was
//! undone in between, by a savepoint or a statement that failed, leaves no trace. The session extension does the same;
//! but it asks for a table's columns and prepares its statements anew for every capture, which costs more than most
//! transactions do. Here, both are kept. A changeset in its form comes out. It must never know what a row means.

use super::format;
use super::rows::RowOp;
use super::{OWN_PREFIX, check};
use bytes::Bytes;
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ffi};
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::ops::Deref;
use std::ptr;

/// For how many rows of a table the memory is kept from capture to capture.
const KEPT_ROWS: usize = 1024;

type PreUpdate =
    unsafe extern "C" fn(*mut c_void, *mut ffi::sqlite3, c_int, *const c_char, *const c_char, i64, i64);
type Get = unsafe extern "C" fn(*mut ffi::sqlite3, c_int, *mut *mut ffi::sqlite3_value) -> c_int;

unsafe extern "C" {
    fn sqlite3_preupdate_hook(
        db: *mut ffi::sqlite3,
        hook: Option<PreUpdate>,
        context: *mut c_void,
    ) -> *mut c_void;
    fn sqlite3_preupdate_old(
        db: *mut ffi::sqlite3,
        column: c_int,
        value: *mut *mut ffi::sqlite3_value,
    ) -> c_int;
    fn sqlite3_preupdate_new(
        db: *mut ffi::sqlite3,
        column: c_int,
        value: *mut *mut ffi::sqlite3_value,
    ) -> c_int;
    fn sqlite3_preupdate_count(db: *mut ffi::sqlite3) -> c_int;
}

/// A connection, and what is captured on it. The connection can't be taken out.
pub struct Capturing {
    connection: Connection,
    /// SQLite has a pointer to it while something is captured.
    log: Box<RefCell<Log>>,
    is_on: bool,
}

impl Capturing {
    /// A connection on which nothing is captured.
    pub fn new(connection: Connection) -> Self {
        Self { connection, log: Box::default(), is_on: false }
    }

    /// Begins to capture the changes that the connection makes to the tables of its main database, but for the replica's
    /// own. What was captured before is forgotten.
    pub fn begin_capture(&mut self) {
        self.log.borrow_mut().clear();
        self.is_on = true;
        let context: *const RefCell<Log> = &raw const *self.log;
        // SAFETY: the handle is open. The log stays where it is until the connection is closed: fields are dropped in order.
        unsafe {
            sqlite3_preupdate_hook(self.connection.handle(), Some(on_change), context.cast_mut().cast())
        };
    }

    /// The capture that is under way.
    pub fn capture(&self) -> Option<Capture<'_>> {
        self.is_on.then_some(Capture { connection: &self.connection, log: &self.log })
    }

    /// Captures no more.
    pub fn end_capture(&mut self) {
        if std::mem::take(&mut self.is_on) {
            // SAFETY: the handle is open.
            unsafe { sqlite3_preupdate_hook(self.connection.handle(), None, ptr::null_mut()) };
            self.log.borrow_mut().clear();
        }
    }

    /// The schema may have changed: what is known of tables is asked for again.
    pub fn forget_tables(&mut self) {
        *self.log.borrow_mut() = Log::default();
    }
}

impl Deref for Capturing {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A capture that is under way.
#[derive(Clone, Copy)]
pub struct Capture<'c> {
    connection: &'c Connection,
    log: &'c RefCell<Log>,
}

impl Capture<'_> {
    /// How many bytes the changeset has at most. It only grows: what is undone is still counted.
    pub fn size(&self) -> usize {
        self.log.borrow().size
    }

    /// What has changed since the capture began, as one changeset; empty if nothing did. Asked for again, it is the same
    /// until SQLite tells of another row.
    pub fn changeset(&self) -> rusqlite::Result<Bytes> {
        if let Some(made) = &self.log.borrow().made {
            return Ok(made.clone());
        }
        let made = Bytes::from(self.log.borrow().changeset(self.connection)?);
        self.log.borrow_mut().made = Some(made.clone());
        Ok(made)
    }
}

/// The rows that SQLite has told of.
#[derive(Default)]
struct Log {
    /// Those that were ever met: what they are like is kept from capture to capture.
    tables: Vec<Table>,
    /// The places of those with rows, in the order in which they were met.
    touched: Vec<usize>,
    size: usize,
    /// Something couldn't be noted, so that there can be no changeset.
    failure: Option<c_int>,
    made: Option<Bytes>,
}

struct Table {
    name: String,
    /// Nothing for one without a primary key: nobody can name its rows.
    shape: Option<Shape>,
    rows: IndexMap<Box<[u8]>, Row, RandomState>,
}

struct Shape {
    /// How many columns SQLite counts, generated ones among them.
    total: c_int,
    /// Of those that aren't generated, the place among all.
    places: Vec<c_int>,
    /// And the place in the primary key, from 1; 0 if it isn't in there.
    key: Vec<u8>,
    /// Looks a row up by its key: the values of these columns.
    select: String,
}

struct Row {
    /// What it was, as a record; nothing if it wasn't.
    was: Option<Box<[u8]>>,
    /// The most bytes that it had since.
    is: usize,
}

/// What the hook may ask SQLite for: the row that is about to change.
#[derive(Clone, Copy)]
struct Changing(*mut ffi::sqlite3);

impl Log {
    fn clear(&mut self) {
        for at in self.touched.drain(..) {
            let rows = &mut self.tables[at].rows;
            // What one big transaction needed isn't kept for all that come.
            if rows.capacity() > KEPT_ROWS { *rows = IndexMap::default() } else { rows.clear() }
        }
        (self.size, self.failure, self.made) = (0, None, None);
    }

    fn note(&mut self, row: Changing, op: c_int, name: &[u8]) -> Result<(), c_int> {
        self.made = None;
        let at = match self.tables.iter().position(|table| table.name.as_bytes() == name) {
            Some(at) => at,
            None => {
                let name = String::from_utf8(name.to_vec()).map_err(|_| ffi::SQLITE_CORRUPT)?;
                let shape = row.shape(&name)?;
                self.tables.push(Table { name, shape, rows: IndexMap::default() });
                self.tables.len() - 1
            }
        };
        let table = &mut self.tables[at];
        let Some(shape) = &table.shape else { return Ok(()) };
        // SAFETY: this is asked from within the hook.
        if unsafe { sqlite3_preupdate_count(row.0) } != shape.total {
            return Err(ffi::SQLITE_SCHEMA);
        }
        if table.rows.is_empty() {
            self.touched.push(at);
            self.size += 8 + shape.key.len() + table.name.len();
        }
        let (before, after) = match op {
            ffi::SQLITE_INSERT => (None, row.key(shape, sqlite3_preupdate_new)?),
            ffi::SQLITE_DELETE => (row.key(shape, sqlite3_preupdate_old)?, None),
            _ => (row.key(shape, sqlite3_preupdate_old)?, row.key(shape, sqlite3_preupdate_new)?),
        };
        if let Some(key) = before
            && !table.rows.contains_key(&*key)
        {
            let was = row.record(shape, sqlite3_preupdate_old)?;
            self.size += 2 + was.len();
            table.rows.insert(key, Row { was: Some(was), is: 0 });
        }
        if let Some(key) = after {
            let bytes = row.record(shape, sqlite3_preupdate_new)?.len();
            let row = table.rows.entry(key).or_insert(Row { was: None, is: 0 });
            self.size += (2 + bytes).saturating_sub(row.is);
            row.is = row.is.max(2 + bytes);
        }
        Ok(())
    }

    fn changeset(&self, connection: &Connection) -> rusqlite::Result<Vec<u8>> {
        if let Some(code) = self.failure {
            check(code)?;
        }
        let mut changeset = Vec::new();
        for table in self.touched.iter().map(|at| &self.tables[*at]) {
            let Some(shape) = &table.shape else { continue };
            let head = changeset.len();
            format::put_table(&mut changeset, &table.name, &shape.key);
            let body = changeset.len();
            let mut statement = connection.prepare_cached(&shape.select)?;
            for (key, row) in &table.rows {
                let mut rest = &**key;
                for place in 1..=shape.key.iter().filter(|place| **place > 0).count() {
                    let (encoded, after) = format::split(rest)?;
                    rest = after;
                    let value = format::value(encoded)?.unwrap_or(ValueRef::Null);
                    statement.raw_bind_parameter(place, ToSqlOutput::Borrowed(value))?;
                }
                let mut found = statement.raw_query();
                match (&row.was, found.next()?) {
                    (None, None) => {}
                    (Some(was), None) => {
                        format::put_change(&mut changeset, RowOp::Delete);
                        changeset.extend_from_slice(was);
                    }
                    (None, Some(is)) => {
                        format::put_change(&mut changeset, RowOp::Insert);
                        for column in 0..shape.key.len() {
                            format::put(&mut changeset, is.get_ref(column)?);
                        }
                    }
                    (Some(was), Some(is)) => shape.put_update(&mut changeset, was, is)?,
                }
            }
            if changeset.len() == body {
                changeset.truncate(head);
            }
        }
        Ok(changeset)
    }
}

impl Shape {
    /// Adds what has changed of a row, if anything has.
    fn put_update(
        &self,
        changeset: &mut Vec<u8>,
        mut was: &[u8],
        is: &rusqlite::Row<'_>,
    ) -> rusqlite::Result<()> {
        let begin = changeset.len();
        format::put_change(changeset, RowOp::Update);
        let (mut new, mut now) = (Vec::new(), Vec::new());
        let mut has_changed = false;
        for (column, place) in self.key.iter().enumerate() {
            let (old, rest) = format::split(was)?;
            was = rest;
            now.clear();
            format::put(&mut now, is.get_ref(column)?);
            let differs = now != old;
            has_changed |= differs;
            if differs || *place > 0 {
                changeset.extend_from_slice(old);
            } else {
                format::put_undefined(changeset);
            }
            if differs {
                new.extend_from_slice(&now);
            } else {
                format::put_undefined(&mut new);
            }
        }
        if has_changed {
            changeset.extend_from_slice(&new);
        } else {
            changeset.truncate(begin);
        }
        Ok(())
    }
}

impl Changing {
    /// The values of the row's key; nothing if one is NULL: nobody can name such a row.
    fn key(self, shape: &Shape, get: Get) -> Result<Option<Box<[u8]>>, c_int> {
        let mut key = Vec::with_capacity(16);
        for (place, in_key) in shape.places.iter().zip(&shape.key) {
            if *in_key > 0 {
                match self.value(*place, get)? {
                    ValueRef::Null => return Ok(None),
                    value => format::put(&mut key, value),
                }
            }
        }
        Ok(Some(key.into()))
    }

    /// All values of the row.
    fn record(self, shape: &Shape, get: Get) -> Result<Box<[u8]>, c_int> {
        let mut record = Vec::with_capacity(16 * shape.places.len());
        for place in &shape.places {
            format::put(&mut record, self.value(*place, get)?);
        }
        Ok(record.into())
    }

    /// A value of the row. It is to be used before the next is asked for.
    fn value<'v>(self, place: c_int, get: Get) -> Result<ValueRef<'v>, c_int> {
        let mut raw = ptr::null_mut();
        // SAFETY: this is asked from within the hook, for a column that there is, and of an operation that has such values;
        // they live until the hook returns. The bytes are asked for after the pointer to them, as SQLite wants it.
        unsafe {
            match get(self.0, place, &mut raw) {
                ffi::SQLITE_OK if !raw.is_null() => {}
                ffi::SQLITE_OK => return Err(ffi::SQLITE_NOMEM),
                code => return Err(code),
            }
            let bytes = |data: *const u8| match usize::try_from(ffi::sqlite3_value_bytes(raw)) {
                Ok(len) if len > 0 && !data.is_null() => std::slice::from_raw_parts(data, len),
                _ => &[],
            };
            Ok(match ffi::sqlite3_value_type(raw) {
                ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_value_int64(raw)),
                ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_value_double(raw)),
                ffi::SQLITE_TEXT => ValueRef::Text(bytes(ffi::sqlite3_value_text(raw))),
                ffi::SQLITE_BLOB => ValueRef::Blob(bytes(ffi::sqlite3_value_blob(raw).cast())),
                _ => ValueRef::Null,
            })
        }
    }

    /// What a table is like; nothing for one without a primary key.
    fn shape(self, name: &str) -> Result<Option<Shape>, c_int> {
        // SAFETY: the handle is open, and isn't closed by what is made of it.
        let connection = unsafe { Connection::from_handle(self.0) };
        let shape = connection.and_then(|connection| Shape::load(&connection, name));
        shape.map_err(|error| error.sqlite_error().map_or(ffi::SQLITE_ERROR, |error| error.extended_code))
    }
}

impl Shape {
    fn load(connection: &Connection, name: &str) -> rusqlite::Result<Option<Shape>> {
        let mut statement =
            connection.prepare("SELECT name, hidden, pk FROM pragma_table_xinfo(?1, 'main') ORDER BY cid")?;
        let columns = statement
            .query_map([name], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, u8>(1)?, row.get::<_, u8>(2)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let total = c_int::try_from(columns.len()).unwrap_or(c_int::MAX);
        let stored = (0..).zip(columns).filter(|(_, (_, hidden, _))| *hidden == 0);
        let (mut places, mut key, mut names, mut conditions) =
            (Vec::new(), Vec::new(), String::new(), String::new());
        for (place, (column, _, in_key)) in stored {
            let column = column.replace('"', "\"\"");
            let comma = if places.is_empty() { "" } else { ", " };
            // A String takes whatever is written to it.
            let _ = write!(names, "{comma}\"{column}\"");
            if in_key > 0 {
                let and = if conditions.is_empty() { "" } else { " AND " };
                let _ = write!(conditions, "{and}\"{column}\" = ?");
            }
            places.push(place);
            key.push(in_key);
        }
        if conditions.is_empty() {
            return Ok(None);
        }
        let table = name.replace('"', "\"\"");
        let select = format!("/*replica*/ SELECT {names} FROM main.\"{table}\" WHERE {conditions}");
        Ok(Some(Shape { total, places, key, select }))
    }
}

unsafe extern "C" fn on_change(
    context: *mut c_void,
    db: *mut ffi::sqlite3,
    op: c_int,
    database: *const c_char,
    table: *const c_char,
    _: i64,
    _: i64,
) {
    // SAFETY: the context is the log that `begin_capture` passed, which lives for as long as the connection; SQLite passes
    // names that live for the call.
    let (log, database, table) =
        unsafe { (&*context.cast::<RefCell<Log>>(), CStr::from_ptr(database), CStr::from_ptr(table)) };
    if database != c"main" || table.to_bytes().starts_with(OWN_PREFIX.as_bytes()) {
        return;
    }
    let mut log = log.borrow_mut();
    if log.failure.is_none()
        && let Err(code) = log.note(Changing(db), op, table.to_bytes())
    {
        log.failure = Some(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{apply, changes};

    const TABLES: &str = "
        CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 ANY, c3 ANY AS (c1 + 1), c4 REAL, c5 TEXT UNIQUE) STRICT;
        CREATE TABLE \"t \"\"2\" (c1 TEXT, c2 BLOB, c3 INTEGER, PRIMARY KEY (c3, c1)) STRICT, WITHOUT ROWID;
        CREATE TABLE t3 (c1 TEXT PRIMARY KEY NOT NULL, c2 INTEGER NOT NULL DEFAULT 7);
        CREATE TABLE replica_t (c1 INTEGER PRIMARY KEY);
        CREATE TABLE without_key (c1 INTEGER);";

    fn open() -> Capturing {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLES).unwrap();
        Capturing::new(connection)
    }

    fn captured(connection: &mut Capturing, steps: &[&str]) -> (Bytes, usize) {
        connection.begin_capture();
        for sql in steps {
            // Some are meant to fail.
            let _ = connection.execute_batch(sql);
        }
        let capture = connection.capture().unwrap();
        let captured = (capture.changeset().unwrap(), capture.size());
        connection.end_capture();
        captured
    }

    fn dump(connection: &Connection) -> Vec<String> {
        let sql = "SELECT 1 || quote(c1) || quote(c2) || quote(c4) || quote(c5) FROM t1
                   UNION ALL SELECT 2 || quote(c1) || quote(c2) || quote(c3) FROM \"t \"\"2\"
                   UNION ALL SELECT 3 || quote(c1) || quote(c2) FROM t3";
        let mut rows = connection.prepare(sql).unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn whatever_is_done_and_undone_another_becomes_the_same() {
        let (mut leader, follower) = (open(), open());
        let runs: [&[&str]; 8] = [
            &[
                "INSERT INTO t1 (c1, c2, c4, c5) VALUES (1, 'a', 1, 'x'), (2, NULL, 2.5, 'y'), (3, x'00', -0.5, NULL)",
                "INSERT INTO \"t \"\"2\" VALUES ('', x'', 1), ('k', NULL, 1), ('k', x'ff', -9)",
                "INSERT INTO t3 (c1) VALUES ('é'), ('b')",
            ],
            // A statement that fails half-way, and one that leaves out what's there.
            &[
                "INSERT INTO t1 (c1, c5) VALUES (4, 'z'), (5, 'x')",
                "INSERT OR IGNORE INTO t1 (c1, c5) VALUES (6, 'x'), (7, 'w')",
                "UPDATE t1 SET c5 = 'x'",
            ],
            // Savepoints.
            &[
                "BEGIN; SAVEPOINT a; DELETE FROM t1; INSERT INTO t3 VALUES ('c', 1); ROLLBACK TO a; RELEASE a",
                "UPDATE t1 SET c4 = c4 + 1 WHERE c1 = 1; SAVEPOINT a; UPDATE t1 SET c4 = 9; ROLLBACK TO a; COMMIT",
            ],
            // Keys that change, and change places.
            &[
                "UPDATE t1 SET c1 = c1 + 10 WHERE c1 < 3; UPDATE t1 SET c1 = 2 WHERE c1 = 11",
                "UPDATE \"t \"\"2\" SET c3 = -c3; UPDATE \"t \"\"2\" SET c1 = c1 || 'l'",
            ],
            &["REPLACE INTO t1 (c1, c5) VALUES (30, 'x'); REPLACE INTO t3 VALUES ('b', 8)"],
            // There and back again, and changed to what it was.
            &[
                "INSERT INTO t3 VALUES ('n', 1); DELETE FROM t3 WHERE c1 = 'n'",
                "DELETE FROM t3 WHERE c1 = 'b'; INSERT INTO t3 VALUES ('b', 8); UPDATE t1 SET c2 = c2",
            ],
            &["INSERT INTO t3 VALUES ('b', 1) ON CONFLICT DO UPDATE SET c2 = t3.c2 + excluded.c2"],
            &["DELETE FROM t1; DELETE FROM t3; DELETE FROM \"t \"\"2\" WHERE c2 IS NULL"],
        ];
        for steps in runs {
            let (changeset, size) = captured(&mut leader, steps);
            assert!(changeset.len() <= size, "{steps:?}: {} of {size}", changeset.len());
            apply(&follower, &changeset).unwrap();
            assert_eq!(dump(&follower), dump(&leader), "{steps:?}");
        }
        assert!(dump(&leader).len() == 2, "{:?}", dump(&leader));
    }

    #[test]
    fn what_comes_to_nothing_makes_no_changeset() {
        let mut connection = open();
        let nothing: [&[&str]; 5] = [
            &[],
            &["INSERT INTO t3 VALUES ('n', 1); DELETE FROM t3"],
            &["BEGIN; INSERT INTO t3 VALUES ('n', 1); ROLLBACK"],
            &["INSERT INTO replica_t VALUES (1)"],
            &["CREATE TEMP TABLE other (c1 INTEGER PRIMARY KEY); INSERT INTO other VALUES (1)"],
        ];
        for steps in nothing {
            assert_eq!(captured(&mut connection, steps).0, Bytes::new(), "{steps:?}");
        }
        connection.execute_batch("INSERT INTO t3 VALUES ('n', 1)").unwrap();
        assert!(connection.capture().is_none());
        assert_eq!(captured(&mut connection, &[]).0, Bytes::new(), "what comes before isn't captured");
    }

    #[test]
    fn a_table_that_has_changed_is_looked_at_again_or_refused() {
        let mut connection = open();
        let insert: &[&str] = &["INSERT INTO t3 (c1) VALUES ('a')"];
        assert_eq!(changes(&captured(&mut connection, insert).0).unwrap().len(), 1);
        connection.execute_batch("DELETE FROM t3; ALTER TABLE t3 ADD COLUMN c3 TEXT").unwrap();
        connection.begin_capture();
        connection.execute_batch(insert[0]).unwrap();
        assert!(connection.capture().unwrap().changeset().is_err(), "it isn't the table that was known");
        connection.end_capture();
        connection.forget_tables();
        connection.execute_batch("DELETE FROM t3").unwrap();
        assert_eq!(changes(&captured(&mut connection, insert).0).unwrap()[0].new.len(), 3);
    }
}
