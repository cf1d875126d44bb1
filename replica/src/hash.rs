//! A hash of all that a replica's database holds, the same on every replica of a group at the same index.
//!
//! In comes a connection in a read transaction, out comes one number (xxh3-128). What goes in is what is replicated:
//! every table with its declaration, the replica's own among them, every row by its declared columns, and the other
//! objects of the schema. What doesn't: where rows and pages lie (rowids that aren't keys, root pages), what SQLite
//! computes (generated columns, statistics). It must never know a thread, a clock, or what becomes of the number.
//!
//! A table's rows are a set, for each has a primary key. So a row is hashed by itself and the hashes are added up: the
//! sum is the same in whatever order the rows are read, and they are read in the cheapest.

use protobuf::Message as _;
use raft::eraftpb::ConfState;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, ffi};
use std::ops::ControlFlow;
use xxhash_rust::xxh3::xxh3_128;

/// After so many bytes of rows, who hashes looks up.
const SLICE_BYTES: u64 = 64 << 10;

/// The hash of everything that a replica's database holds, as the connection's transaction sees it.
pub fn table_hash(connection: &Connection) -> rusqlite::Result<u128> {
    sliced_hash(connection, &mut |_| ControlFlow::Continue(()))
}

/// As [`table_hash`]; calls `pause` every now and then with the number of bytes that were hashed since. If that breaks
/// it off, the error is the one of an interrupted statement.
pub(crate) fn sliced_hash(
    connection: &Connection,
    pause: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> rusqlite::Result<u128> {
    let mut objects = connection.prepare_cached(
        "SELECT type, name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
         ORDER BY type, name",
    )?;
    let objects: Vec<(String, String, String)> = objects
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut whole = Vec::new();
    let mut slice = Slice { bytes: 0, pause };
    for (kind, name, sql) in objects {
        for text in [&kind, &name, &sql] {
            push(&mut whole, 3, text.as_bytes());
        }
        if kind == "table" {
            let (count, sum) = rows(connection, &name, &mut slice)?;
            whole.extend(count.to_le_bytes());
            whole.extend(sum.to_le_bytes());
        }
    }
    Ok(xxh3_128(&whole))
}

struct Slice<'p> {
    bytes: u64,
    pause: &'p mut dyn FnMut(u64) -> ControlFlow<()>,
}

impl Slice<'_> {
    fn add(&mut self, bytes: usize) -> rusqlite::Result<()> {
        self.bytes += bytes as u64;
        if self.bytes < SLICE_BYTES {
            return Ok(());
        }
        match (self.pause)(std::mem::take(&mut self.bytes)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None))
            }
        }
    }
}

/// How many rows a table has, and the sum of their hashes.
fn rows(connection: &Connection, table: &str, slice: &mut Slice<'_>) -> rusqlite::Result<(u64, u128)> {
    let columns: Vec<String> = connection
        .prepare_cached("SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0 ORDER BY cid")?
        .query_map([table], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let list = columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    let mut statement = connection.prepare(&format!("SELECT {list} FROM main.{}", quoted(table)))?;
    let conf_state =
        (table == "replica_state").then(|| columns.iter().position(|c| c == "conf_state")).flatten();
    let mut sum = RowSum::default();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = sum.add_with(row, columns.len(), conf_state)?;
        slice.add(bytes)?;
    }
    Ok((sum.rows, sum.sum))
}

/// Rows as a set: how many there are, and the sum of their hashes.
#[derive(Debug, Default)]
pub struct RowSum {
    /// How many.
    pub rows: u64,
    /// The sum.
    pub sum: u128,
    buffer: Vec<u8>,
}

impl RowSum {
    /// Adds the row that these first columns are. Says how many bytes that were.
    pub fn add(&mut self, row: &Row<'_>, columns: usize) -> rusqlite::Result<usize> {
        self.add_with(row, columns, None)
    }

    fn add_with(
        &mut self,
        row: &Row<'_>,
        columns: usize,
        conf_state: Option<usize>,
    ) -> rusqlite::Result<usize> {
        let bytes = &mut self.buffer;
        bytes.clear();
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => bytes.push(0),
                ValueRef::Integer(value) => {
                    bytes.push(1);
                    bytes.extend(value.to_le_bytes());
                }
                ValueRef::Real(value) => {
                    bytes.push(2);
                    bytes.extend(value.to_bits().to_le_bytes());
                }
                ValueRef::Text(value) => push(bytes, 3, value),
                ValueRef::Blob(value) if conf_state == Some(column) => push(bytes, 4, &sorted(value)),
                ValueRef::Blob(value) => push(bytes, 4, value),
            }
        }
        self.rows += 1;
        self.sum = self.sum.wrapping_add(xxh3_128(bytes));
        Ok(bytes.len())
    }
}

/// A hash of texts in their order.
pub fn text_hash<'t>(texts: impl IntoIterator<Item = &'t str>) -> u128 {
    let mut whole = Vec::new();
    texts.into_iter().for_each(|text| push(&mut whole, 3, text.as_bytes()));
    xxh3_128(&whole)
}

fn push(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    bytes.push(tag);
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(value);
}

/// raft-rs lists a configuration's members in any order.
fn sorted(conf_state: &[u8]) -> Vec<u8> {
    let Ok(mut state) = ConfState::parse_from_bytes(conf_state) else { return conf_state.to_vec() };
    for members in
        [&mut state.voters, &mut state.learners, &mut state.voters_outgoing, &mut state.learners_next]
    {
        members.sort_unstable();
    }
    state.write_to_bytes().unwrap_or_else(|_| conf_state.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: &str = "
        CREATE TABLE t1 (c1 TEXT NOT NULL PRIMARY KEY, c2 REAL, c3 REAL AS (c2 * 2) STORED) STRICT;
        CREATE TABLE t2 (c1 INTEGER PRIMARY KEY, c2 INTEGER) STRICT, WITHOUT ROWID;
        CREATE TABLE \"odd \"\"name\" (c1 INTEGER PRIMARY KEY, \"c \"\"2\");
        INSERT INTO t1 (c1, c2) VALUES ('a', 1.5), ('b', NULL), ('c', 2);
        INSERT INTO \"odd \"\"name\" VALUES (1, x'61');";

    fn database(sql: &str) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(INIT).unwrap();
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn hash(sql: &str) -> u128 {
        table_hash(&database(sql)).unwrap()
    }

    #[test]
    fn where_and_in_which_order_rows_lie_makes_no_difference() {
        let whole = hash("");
        assert_eq!(hash("UPDATE t1 SET c2 = c2 + 1; UPDATE t1 SET c2 = c2 - 1"), whole);
        assert_eq!(hash("DELETE FROM t1; INSERT INTO t1 VALUES ('c', 2), ('b', NULL), ('a', 1.5)"), whole);
        assert_eq!(hash("UPDATE t1 SET rowid = rowid + 100; ANALYZE; VACUUM"), whole);
        assert_eq!(hash("INSERT INTO t2 VALUES (1, 1); DELETE FROM t2"), whole);
    }

    #[test]
    fn every_difference_shows() {
        let changes = [
            "",
            "UPDATE t1 SET c2 = 1.25 WHERE c1 = 'a'",
            "UPDATE t1 SET c2 = NULL WHERE c1 = 'a'",
            "UPDATE t1 SET c1 = 'A' WHERE c1 = 'a'",
            "UPDATE t1 SET c2 = CASE c1 WHEN 'a' THEN 2 WHEN 'c' THEN 1.5 END",
            "DELETE FROM t1",
            "DELETE FROM t1 WHERE c1 = 'b'",
            "INSERT INTO t2 VALUES (0, 0)",
            "INSERT INTO t2 VALUES (0, NULL)",
            "UPDATE \"odd \"\"name\" SET \"c \"\"2\" = 'a'",
            "UPDATE \"odd \"\"name\" SET \"c \"\"2\" = 97",
            "UPDATE \"odd \"\"name\" SET \"c \"\"2\" = 97.0",
            "CREATE INDEX i1 ON t1 (c2)",
            "ALTER TABLE t2 ADD COLUMN c9 TEXT",
            "CREATE TABLE t9 (c1 INTEGER PRIMARY KEY)",
            "DROP TABLE t2",
        ];
        let hashes: std::collections::HashSet<u128> = changes.iter().map(|change| hash(change)).collect();
        assert_eq!(hashes.len(), changes.len());
    }

    #[test]
    fn a_configuration_is_the_same_in_any_order() {
        let with = |voters: &[u64]| {
            let state = ConfState { voters: voters.to_vec(), ..ConfState::default() };
            let blob: String =
                state.write_to_bytes().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            hash(&format!(
                "CREATE TABLE replica_state (one INTEGER PRIMARY KEY, conf_state BLOB);
                           INSERT INTO replica_state VALUES (1, x'{blob}')"
            ))
        };
        assert_eq!(with(&[1, 2, 3]), with(&[3, 1, 2]));
        assert_ne!(with(&[1, 2, 3]), with(&[1, 2, 4]));
    }

    #[test]
    fn it_stops_between_slices() {
        let connection = database(
            "INSERT INTO t1 (c1) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
             SELECT printf('%d%.*c', i, 5000, 'x') FROM n",
        );
        let mut slices = 0;
        let whole = sliced_hash(&connection, &mut |bytes| {
            assert!(bytes >= SLICE_BYTES);
            slices += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(whole.unwrap(), table_hash(&connection).unwrap());
        assert!(slices > 5, "{slices}");
        let stopped = sliced_hash(&connection, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert_eq!(stopped.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
    }
}
