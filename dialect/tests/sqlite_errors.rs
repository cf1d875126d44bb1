//! What clients see of SQLite's errors, each provoked on a real connection.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dialect::sqlite::{error, error_on, register};
use proto::error::Violation;
use proto::{ColumnId, IndexId, SqlState, TableId, WireError};
use rusqlite::{Connection, OpenFlags};

const TABLE: TableId = TableId(5);

fn connection() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    register(&connection).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t4(c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT;
             CREATE TABLE t5(c1 INTEGER NOT NULL, c2 TEXT NOT NULL, c3 INTEGER, c4 INTEGER,
                 PRIMARY KEY (c1, c2), CONSTRAINT k0 CHECK (c3 <> 7), CONSTRAINT k2 CHECK (c3 > 0)) STRICT;
             CREATE UNIQUE INDEX i7 ON t5(c3);
             CREATE UNIQUE INDEX i8 ON t5(c4, c3);
             CREATE UNIQUE INDEX i9 ON t5(c1 * 10 + c4);
             INSERT INTO t4 VALUES (1, 'a');
             INSERT INTO t5 VALUES (1, 'a', 1, 1);",
        )
        .unwrap();
    connection
}

fn refusal(connection: &Connection, sql: &str) -> WireError {
    error(connection.execute_batch(sql).unwrap_err())
}

fn refusal_of_table(connection: &Connection, sql: &str) -> WireError {
    error_on(connection, TABLE, connection.execute_batch(sql).unwrap_err())
}

#[test]
fn a_broken_constraint_is_named_by_ids() {
    let connection = connection();
    let primary = refusal(&connection, "INSERT INTO t5 VALUES (1, 'a', 2, 2)");
    assert_eq!(primary.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(primary.violation, Some(Violation::Unique(TABLE, None)));

    let rowid = refusal(&connection, "INSERT INTO t4 VALUES (1, 'b')");
    assert_eq!(rowid.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(rowid.violation, Some(Violation::Unique(TableId(4), None)));

    let missing = refusal(&connection, "INSERT INTO t4 VALUES (2, NULL)");
    assert_eq!(missing.sqlstate, SqlState::NOT_NULL_VIOLATION);
    assert_eq!(missing.violation, Some(Violation::NotNull(TableId(4), ColumnId(2))));

    let index = refusal_of_table(&connection, "INSERT INTO t5 VALUES (2, 'b', 1, 2)");
    assert_eq!(index.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(index.violation, Some(Violation::Unique(TABLE, Some(IndexId(7)))));

    let pair = refusal_of_table(&connection, "DROP INDEX i7; INSERT INTO t5 VALUES (2, 'b', 1, 1)");
    assert_eq!(pair.violation, Some(Violation::Unique(TABLE, Some(IndexId(8)))));

    let expression = refusal_of_table(&connection, "INSERT INTO t5 VALUES (1, 'b', 2, 1)");
    assert_eq!(expression.violation, Some(Violation::Unique(TABLE, Some(IndexId(9)))));

    let check = refusal_of_table(&connection, "INSERT INTO t5 VALUES (3, 'c', -1, 5)");
    assert_eq!(check.sqlstate, SqlState::CHECK_VIOLATION);
    assert_eq!(check.violation, Some(Violation::Check(TABLE, 2)));
}

#[test]
fn an_unknown_index_is_not_guessed() {
    let connection = connection();
    let index = refusal(&connection, "INSERT INTO t5 VALUES (2, 'b', 1, 2)");
    assert_eq!((index.sqlstate, index.violation), (SqlState::UNIQUE_VIOLATION, None));
}

#[test]
fn a_functions_error_comes_back_whole() {
    let connection = connection();
    let run = |sql: &str| error(connection.query_row(sql, [], |_| Ok(())).unwrap_err());
    let overflow = run("SELECT pg_int4(2147483647 + 1)");
    assert_eq!(overflow.sqlstate, SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
    assert_eq!((overflow.message.as_str(), overflow.hint), ("integer out of range", None));
    let hinted = run("SELECT pg_decode('AA', 'base64')");
    assert_eq!(hinted.message, "invalid base64 end sequence");
    assert!(hinted.hint.unwrap().starts_with("Input data is missing padding"));
    let sum = run("SELECT sum(9223372036854775807) FROM (SELECT 1 UNION ALL SELECT 1)");
    assert_eq!(sum.message, "bigint out of range");
    let aggregate = run("SELECT pg_float8_sum(1e308) FROM (SELECT 1 UNION ALL SELECT 1)");
    assert_eq!(aggregate.message, "value out of range: overflow");
    let check =
        connection.execute_batch("CREATE TABLE t6(c1 INTEGER, CONSTRAINT k0 CHECK (pg_int4_div(1, c1) > 0))");
    check.unwrap();
    assert_eq!(refusal(&connection, "INSERT INTO t6 VALUES (0)").sqlstate, SqlState::DIVISION_BY_ZERO);
}

#[test]
fn what_stops_a_statement_has_its_code() {
    let connection = connection();
    let handle = connection.get_interrupt_handle();
    let stop = move || {
        handle.interrupt();
        Ok(0)
    };
    connection
        .create_scalar_function("stop", 0, rusqlite::functions::FunctionFlags::SQLITE_UTF8, move |_| stop())
        .unwrap();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 + stop() FROM n LIMIT 1000000)
                   SELECT count(*) FROM n";
    let canceled = refusal(&connection, endless);
    assert_eq!(canceled.sqlstate, SqlState::QUERY_CANCELED);

    connection.execute_batch("PRAGMA max_page_count = 20").unwrap();
    let full = refusal(&connection, "CREATE TABLE t9(c1 BLOB); INSERT INTO t9 VALUES (zeroblob(1000000))");
    assert_eq!(full.sqlstate, SqlState::DISK_FULL);

    let big = refusal(&connection, "SELECT zeroblob(2000000000)");
    assert_eq!(big.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);

    let mistyped = refusal(&connection, "INSERT INTO t4 VALUES (7, x'00')");
    assert_eq!(mistyped.sqlstate, SqlState::INTERNAL_ERROR);
}

#[test]
fn files_that_fail_have_their_codes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let missing = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap_err();
    assert_eq!(error(missing).sqlstate, SqlState::IO_ERROR);
    std::fs::write(&path, [b'x'; 4096]).unwrap();
    let garbage = Connection::open(&path).unwrap();
    assert_eq!(refusal(&garbage, "SELECT * FROM sqlite_schema").sqlstate, SqlState::DATA_CORRUPTED);
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t1(c1)").unwrap();
    let read_only = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_eq!(refusal(&read_only, "DROP TABLE t1").sqlstate, SqlState::READ_ONLY_SQL_TRANSACTION);
}

#[test]
fn a_double_quoted_word_is_a_name() {
    let connection = connection();
    assert!(connection.prepare("SELECT \"nope\"").is_err());
    assert!(connection.prepare("SELECT c1 FROM t4 WHERE c2 = \"nope\"").is_err());
}

#[test]
fn a_registered_connection_can_do_what_shoal_needs() {
    let connection = connection();
    let values = (0..60_000).map(|i| format!("?{}", i + 1)).collect::<Vec<_>>().join(", ");
    connection.prepare(&format!("SELECT 1 IN ({values})")).unwrap();
    connection.prepare(&format!("SELECT {}", vec!["1"; 1_400].join(" + "))).unwrap();
    // VACUUM attaches a database of its own.
    connection.execute_batch("VACUUM").unwrap();
}

#[test]
fn too_deep_an_expression_is_refused_and_ends_nothing() {
    let connection = connection();
    let refused = |sql: String| error(connection.prepare(&sql).map(drop).unwrap_err()).sqlstate;
    assert_eq!(refused(format!("SELECT {}", vec!["1"; 5_000].join(" + "))), SqlState::STATEMENT_TOO_COMPLEX);
    let nested = format!("SELECT {}1{}", "pg_int4(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(refused(nested), SqlState::STATEMENT_TOO_COMPLEX);
}
