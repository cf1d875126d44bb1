//! What a changeset says row by row, and several changesets as one.
//!
//! Changesets go in, values and changesets come out; no database is needed for it. It must never know what a row means.

use super::format::{Part, Reader, in_key, values};
use super::{
    RawGroup, check, length, sqlite3changegroup_add, sqlite3changegroup_delete, sqlite3changegroup_new,
    sqlite3changegroup_output, take,
};
use bytes::Bytes;
use proto::Value;
use std::ptr;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOp {
    /// It is new.
    Insert,
    /// It has other values. A row that gets another primary key is deleted and inserted.
    Update,
    /// It is gone.
    Delete,
}

/// A changed row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Its table.
    pub table: String,
    /// What happened to it.
    pub op: RowOp,
    /// For each column, whether it belongs to the primary key.
    pub key: Vec<bool>,
    /// What each column was; nothing if the changeset doesn't say. A deleted row has all, an updated one those of its
    /// key and those that were changed, an inserted one none.
    pub old: Vec<Option<Value>>,
    /// What each column is; nothing if the changeset doesn't say. An inserted row has all, an updated one those that
    /// were changed, a deleted one none.
    pub new: Vec<Option<Value>>,
}

/// The rows that a changeset changes. Generated columns aren't among theirs.
pub fn changes(changeset: &[u8]) -> rusqlite::Result<Vec<RowChange>> {
    let (mut found, mut table, mut key) = (Vec::new(), "", Vec::new());
    let mut reader = Reader::new(changeset);
    while let Some(part) = reader.next()? {
        match part {
            Part::Table(of) => (table, key) = (of.name, in_key(of.key)),
            Part::Change { op, old, new } => found.push(RowChange {
                table: table.to_owned(),
                op,
                old: values(key.len(), old)?,
                new: values(key.len(), new)?,
                key: key.clone(),
            }),
        }
    }
    Ok(found)
}

/// What several changesets do one after the other, as one that has each row once. It fails if they don't agree on a table's columns.
pub fn merge<T: AsRef<[u8]>>(changesets: &[T]) -> rusqlite::Result<Bytes> {
    struct Group(*mut RawGroup);
    impl Drop for Group {
        fn drop(&mut self) {
            // SAFETY: it is a live group, or null.
            unsafe { sqlite3changegroup_delete(self.0) }
        }
    }
    let mut group = Group(ptr::null_mut());
    let (mut len, mut data) = (0, ptr::null_mut());
    // SAFETY: SQLite sets the pointer to a group, which is deleted at the end, or to null. It copies what it is given,
    // and gives out a buffer of `len` bytes.
    unsafe {
        check(sqlite3changegroup_new(&mut group.0))?;
        for changeset in changesets.iter().map(AsRef::as_ref) {
            let len = length(changeset)?;
            check(sqlite3changegroup_add(group.0, len, changeset.as_ptr().cast_mut().cast()))?;
        }
        check(sqlite3changegroup_output(group.0, &mut len, &mut data))?;
        Ok(take(len, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Capturing, apply};
    use rusqlite::Connection;

    fn captured(connection: &mut Capturing, sql: &str) -> Bytes {
        connection.begin_capture();
        connection.execute_batch(sql).unwrap();
        let changeset = connection.capture().unwrap().changeset().unwrap();
        connection.end_capture();
        changeset
    }

    fn open() -> Capturing {
        let connection = Connection::open_in_memory().unwrap();
        let table = "CREATE TABLE t1 (c1 TEXT, c2 ANY, c3 ANY AS (c2 + 1), c4 INTEGER NOT NULL UNIQUE,
                                      PRIMARY KEY (c4, c1)) STRICT, WITHOUT ROWID;
                     INSERT INTO t1 VALUES ('a', NULL, 1), ('b', 2.5, 2), ('c', x'00ff', 3)";
        connection.execute_batch(table).unwrap();
        Capturing::new(connection)
    }

    #[test]
    fn a_changed_row_has_its_key_and_what_was_changed() {
        let mut connection = open();
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        let int = |int| Some(Value::Int(int));
        let sorted = |changeset: &[u8]| {
            let mut rows = changes(changeset).unwrap();
            rows.sort_by_key(|row| format!("{row:?}"));
            rows
        };
        let row = |op, old: [Option<Value>; 3], new: [Option<Value>; 3]| RowChange {
            table: "t1".into(),
            op,
            key: vec![true, false, true],
            old: old.into(),
            new: new.into(),
        };
        let rows = sorted(&captured(
            &mut connection,
            "UPDATE t1 SET c2 = 'ä' WHERE c1 = 'a'; UPDATE t1 SET c2 = c2 WHERE c1 = 'b';
             DELETE FROM t1 WHERE c1 = 'c'; INSERT INTO t1 VALUES ('', NULL, -9)",
        ));
        let blob = Some(Value::Blob(vec![0, 255]));
        assert_eq!(
            rows,
            [
                row(RowOp::Delete, [text("c"), blob, int(3)], [None, None, None]),
                row(RowOp::Insert, [None, None, None], [text(""), Some(Value::Null), int(-9)]),
                row(RowOp::Update, [text("a"), Some(Value::Null), int(1)], [None, text("ä"), None]),
            ]
        );
        // Another key is another row.
        let rows = sorted(&captured(&mut connection, "UPDATE t1 SET c4 = 7 WHERE c1 = 'b'"));
        let real = || Some(Value::Real(2.5));
        assert_eq!(
            rows,
            [
                row(RowOp::Delete, [text("b"), real(), int(2)], [None, None, None]),
                row(RowOp::Insert, [None, None, None], [text("b"), real(), int(7)]),
            ]
        );
        assert_eq!(changes(&[]).unwrap(), []);
        assert!(changes(b"Tnonsense").is_err());
    }

    #[test]
    fn several_changesets_do_together_what_they_do_one_after_the_other() {
        let (mut leader, other) = (open(), open());
        let steps = [
            "INSERT INTO t1 VALUES ('d', 0, 4)",
            "UPDATE t1 SET c2 = 1 WHERE c1 = 'd'; DELETE FROM t1 WHERE c1 = 'a'",
            "UPDATE t1 SET c4 = -c4; UPDATE t1 SET c4 = 5 + c4",
            "INSERT INTO t1 VALUES ('e', 'e', 9); INSERT INTO t1 VALUES ('a', NULL, 10)",
            "DELETE FROM t1 WHERE c1 = 'e'; UPDATE t1 SET c2 = c2 || '!' WHERE typeof(c2) <> 'blob'",
        ];
        let chunks: Vec<Bytes> = steps.iter().map(|sql| captured(&mut leader, sql)).collect();
        let merged = merge(&chunks).unwrap();
        assert!(!changes(&merged).unwrap().iter().any(|row| row.new[0] == Some(Value::Text("e".into()))));
        apply(&other, &merged).unwrap();
        let dump = |connection: &Connection| -> Vec<String> {
            let mut rows = connection.prepare("SELECT c1 || ':' || quote(c2) || ':' || c4 FROM t1").unwrap();
            rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(dump(&leader), dump(&other));
        assert_eq!(merge::<Bytes>(&[]).unwrap(), Bytes::new());
        let mut wider = Capturing::new(Connection::open_in_memory().unwrap());
        wider.execute_batch("CREATE TABLE t1 (c1 TEXT PRIMARY KEY NOT NULL, c2)").unwrap();
        assert!(merge(&[chunks[0].clone(), captured(&mut wider, "INSERT INTO t1 VALUES ('a', 1)")]).is_err());
    }
}
