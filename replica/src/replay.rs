//! A transaction's changes, made again on its leader.
//!
//! A changeset goes in, and is applied beside nothing else: foreign keys and triggers don't act, for what they did is
//! in it. SQLite's own application prepares several statements for each table and has every other be prepared again,
//! which costs more than most transactions do. So the rows of a small changeset are changed one by one, by statements
//! that stay prepared; if any of them isn't as expected, that is undone and SQLite's application is the judge. It must
//! never know where a changeset came from.

use crate::changeset::{self, ChangesetError, Shapes};
use crate::session::{self, RowChange, RowOp};
use proto::Value;
use rusqlite::{Connection, ErrorCode, params_from_iter};
use std::fmt::Write as _;

/// A changeset that is longer is left to SQLite, whose cost by row is less.
pub(crate) const SMALL_BYTES: usize = 2048;

/// Makes the changes of a changeset, or of several small ones put together, inside the caller's transaction, on a connection on which foreign keys and triggers
/// act. What an error leaves is to be undone.
pub(crate) fn replay(
    connection: &Connection,
    shapes: &mut Shapes,
    changeset: &[u8],
) -> Result<(), ChangesetError> {
    let mut merged = None;
    if changeset.len() <= SMALL_BYTES {
        if shapes.are_inert(connection)?
            && let Ok(rows) = session::changes(changeset)
            && by_hand(connection, shapes, &rows)?
        {
            return Ok(());
        }
        // SQLite would have each row once.
        let once = session::merge(&[changeset]).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::SchemaChanged) => ChangesetError::Altered("a table was altered".to_owned()),
            _ => ChangesetError::Sqlite(error),
        })?;
        merged = Some(once);
    }
    let changeset = merged.as_deref().unwrap_or(changeset);
    changeset::let_act(connection, false)?;
    let applied = changeset::apply(connection, shapes, changeset);
    changeset::let_act(connection, true)?;
    applied
}

/// Changes rows one by one. Says whether all were as they should be; if not, none was changed.
fn by_hand(connection: &Connection, shapes: &mut Shapes, rows: &[RowChange]) -> rusqlite::Result<bool> {
    run(connection, "/*replica*/ SAVEPOINT replica_replay")?;
    for row in rows {
        let made = match shapes.columns(connection, &row.table, &row.key)? {
            Some(columns) => change(connection, row, columns),
            None => Ok(false),
        };
        match made {
            Ok(true) => {}
            // Another row may have to go first, as in a swap of unique values.
            Ok(false) => return undo(connection),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                return undo(connection);
            }
            Err(error) => return Err(error),
        }
    }
    run(connection, "/*replica*/ RELEASE replica_replay")?;
    Ok(true)
}

fn undo(connection: &Connection) -> rusqlite::Result<bool> {
    run(connection, "/*replica*/ ROLLBACK TO replica_replay")?;
    run(connection, "/*replica*/ RELEASE replica_replay")?;
    Ok(false)
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// Changes a row. Says whether it was as it should be.
fn change(connection: &Connection, row: &RowChange, columns: &[String]) -> rusqlite::Result<bool> {
    let table = &row.table;
    let mut values: Vec<&Value> = Vec::with_capacity(2 * columns.len());
    let known = |values: &[Option<Value>]| -> Vec<usize> {
        values.iter().enumerate().filter(|(_, value)| value.is_some()).map(|(at, _)| at).collect()
    };
    let (old, new) = (known(&row.old), known(&row.new));
    let mut sql = String::with_capacity(128);
    // A String takes whatever is written to it.
    let _ = match row.op {
        RowOp::Insert => write!(sql, "/*replica*/ INSERT INTO \"{}\" (", quoted(table)),
        RowOp::Update => write!(sql, "/*replica*/ UPDATE \"{}\" SET ", quoted(table)),
        RowOp::Delete => write!(sql, "/*replica*/ DELETE FROM \"{}\"", quoted(table)),
    };
    for (number, at) in new.iter().enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        let is = if row.op == RowOp::Update { " = ?" } else { "" };
        let _ = write!(sql, "{comma}\"{}\"{is}", quoted(&columns[*at]));
        values.extend(&row.new[*at]);
    }
    if row.op == RowOp::Insert {
        sql.push_str(") VALUES (");
        sql.push_str(&vec!["?"; new.len()].join(", "));
        sql.push(')');
    }
    for (number, at) in old.iter().enumerate() {
        let and = if number > 0 { " AND " } else { " WHERE " };
        let is = if row.key[*at] { "=" } else { "IS" };
        let _ = write!(sql, "{and}\"{}\" {is} ?", quoted(&columns[*at]));
        values.extend(&row.old[*at]);
    }
    let parameters = values.into_iter().map(dialect::sqlite::parameter);
    let made = connection.prepare_cached(&sql)?.execute(params_from_iter(parameters))?;
    Ok(made == 1)
}

fn quoted(name: &str) -> String {
    name.replace('"', "\"\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Capturing;
    use bytes::Bytes;

    const TABLES: &str = r#"
        CREATE TABLE "t ""1" (c1 INTEGER PRIMARY KEY, "c "" 2" TEXT, c3 AS (c1 + 1), c4 REAL UNIQUE);
        CREATE TABLE t2 (c1 BLOB, c2 ANY, c3 TEXT, PRIMARY KEY (c3, c1)) STRICT, WITHOUT ROWID;
        INSERT INTO "t ""1" VALUES (1, NULL, 1), (2, '', 2.5), (3, 'c', NULL);
        INSERT INTO t2 VALUES (x'', NULL, ''), (x'00', 'text', 'k'), (x'00', x'01', 'l'), (x'01', 1.5, 'l');"#;

    fn open() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLES).unwrap();
        connection
    }

    fn captured(sql: &str) -> (Capturing, Bytes) {
        let mut connection = Capturing::new(open());
        connection.begin_capture();
        connection.execute_batch(sql).unwrap();
        let changeset = connection.capture().unwrap().changeset().unwrap();
        connection.end_capture();
        (connection, changeset)
    }

    fn dump(connection: &Connection) -> Vec<String> {
        let sql = r#"SELECT quote(c1) || quote("c "" 2") || quote(c4) FROM "t ""1"
                     UNION ALL SELECT quote(c1) || quote(c2) || quote(c3) FROM t2"#;
        let mut rows = connection.prepare(sql).unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Whether it could be done by hand.
    fn replayed(connection: &Connection, changeset: &[u8]) -> bool {
        let mut shapes = Shapes::default();
        let mut rows = session::changes(changeset).unwrap();
        let before = dump(connection);
        let mut replayed = |rows: &[RowChange]| {
            connection.execute_batch("BEGIN").unwrap();
            let made = by_hand(connection, &mut shapes, rows).unwrap();
            assert_eq!(dump(connection) == before, !made, "all or nothing");
            connection.execute_batch("ROLLBACK").unwrap();
            made
        };
        let made = replayed(&rows);
        // Whichever row is not as expected, another comes before it.
        rows.reverse();
        replayed(&rows);
        made
    }

    #[test]
    fn rows_are_changed_by_hand_as_by_sqlite() {
        for (sql, simple) in [
            (r#"INSERT INTO "t ""1" VALUES (4, x'00ff', -0.5), (5, NULL, 1e300)"#, true),
            (
                r#"UPDATE "t ""1" SET "c "" 2" = 'x' WHERE c1 = 1; UPDATE "t ""1" SET c4 = NULL WHERE c1 = 2"#,
                true,
            ),
            (
                r#"DELETE FROM "t ""1"; DELETE FROM t2 WHERE c3 = 'l'; INSERT INTO t2 VALUES (x'', 7, 'l')"#,
                true,
            ),
            ("UPDATE t2 SET c2 = NULL; UPDATE t2 SET c2 = 'new' WHERE c1 = x''", true),
            ("UPDATE t2 SET c2 = c3 WHERE c1 = x'00'; UPDATE t2 SET c3 = 'moved' WHERE c1 = x''", true),
            (r#"UPDATE "t ""1" SET c4 = 3 - c4 WHERE c1 < 3; UPDATE "t ""1" SET c4 = c4 + 1"#, true),
            (
                r#"UPDATE "t ""1" SET c4 = 0 WHERE c1 = 1; UPDATE "t ""1" SET c4 = 1 WHERE c1 = 2;
                   UPDATE "t ""1" SET c4 = 2.5 WHERE c1 = 1"#,
                false,
            ),
        ] {
            let (leader, changeset) = captured(sql);
            let other = open();
            assert_eq!(replayed(&other, &changeset), simple, "{sql}");
            assert_eq!(dump(&other), dump(&open()));
            replay(&other, &mut Shapes::default(), &changeset).unwrap();
            assert_eq!(dump(&other), dump(&leader), "{sql}");
        }
    }

    #[test]
    fn small_changesets_put_together_are_made_one_after_the_other() {
        // The second one wants what the first has done, which can't be done row by row.
        let steps = [
            r#"UPDATE "t ""1" SET c4 = 0 WHERE c1 = 1; UPDATE "t ""1" SET c4 = 1 WHERE c1 = 2;
               UPDATE "t ""1" SET c4 = 2.5 WHERE c1 = 1"#,
            r#"UPDATE "t ""1" SET c4 = c4 + 10; DELETE FROM t2 WHERE c3 = 'k'"#,
            "INSERT INTO t2 VALUES (x'00', 'again', 'k'); UPDATE t2 SET c2 = c3",
        ];
        let mut leader = Capturing::new(open());
        let mut together = Vec::new();
        for sql in steps {
            leader.begin_capture();
            leader.execute_batch(sql).unwrap();
            together.extend_from_slice(&leader.capture().unwrap().changeset().unwrap());
        }
        let other = open();
        replay(&other, &mut Shapes::default(), &together).unwrap();
        assert_eq!(dump(&other), dump(&leader));
    }

    #[test]
    fn rows_that_are_not_as_expected_are_left_as_they_are() {
        for (change, before) in [
            ("INSERT INTO t2 VALUES (x'02', 1, 'n')", "INSERT INTO t2 VALUES (x'02', 1, 'n')"),
            ("DELETE FROM t2 WHERE c3 = 'k'", "UPDATE t2 SET c2 = 'other' WHERE c3 = 'k'"),
            ("DELETE FROM t2 WHERE c3 = 'k'", "DELETE FROM t2 WHERE c3 = 'k'"),
            ("UPDATE t2 SET c2 = 5 WHERE c3 = 'k'", "UPDATE t2 SET c2 = NULL WHERE c3 = 'k'"),
            ("UPDATE t2 SET c2 = 5", "DELETE FROM t2 WHERE c3 = 'l'"),
            ("UPDATE t2 SET c2 = 5", "ALTER TABLE t2 ADD COLUMN c4 TEXT"),
            ("UPDATE t2 SET c2 = 5", "DROP TABLE t2; CREATE TABLE t2 (c1 BLOB PRIMARY KEY NOT NULL, c2, c3)"),
        ] {
            let changeset = captured(change).1;
            let connection = open();
            connection.execute_batch(before).unwrap();
            let rows = dump(&connection);
            assert!(!replayed(&connection, &changeset), "{before}; {change}");
            connection.execute_batch("BEGIN").unwrap();
            assert!(replay(&connection, &mut Shapes::default(), &changeset).is_err(), "{before}; {change}");
            connection.execute_batch("ROLLBACK").unwrap();
            assert_eq!(dump(&connection), rows);
        }
    }

    #[test]
    fn a_schema_that_acts_is_left_to_sqlite() {
        let acts = |schema: &str| {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch("CREATE TABLE t (c1 INTEGER PRIMARY KEY)").unwrap();
            connection.execute_batch(schema).unwrap();
            !Shapes::default().are_inert(&connection).unwrap()
        };
        assert!(!acts("CREATE INDEX i ON t (c1); CREATE VIEW v AS SELECT 1"));
        assert!(acts("CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM t WHERE c1 = 9; END"));
        assert!(acts("CREATE TABLE t2 (c1 INTEGER PRIMARY KEY, c2 INTEGER REFERENCES t)"));
    }
}
