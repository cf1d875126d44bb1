//! The DDL of tables and indexes, run on a real SQLite.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use dialect::key::{key_form, key_sql};
use dialect::numeric::Numeric;
use dialect::physical;
use dialect::sqlite::error_on;
use dialect::types::Type;
use proto::catalog::{Check, Column, Index, IndexColumn, Placement, Table, TypeRef};
use proto::error::Violation;
use proto::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, TableId, Value, ValueRef};
use rusqlite::Connection;
use rusqlite::types::Value as Stored;

fn column(id: u32, ty: Type, not_null: bool) -> Column {
    let ty = TypeRef { oid: ty.oid(), modifier: -1 };
    Column { id: ColumnId(id), name: format!("name {id}"), ty, not_null, default: None }
}

fn table(columns: Vec<Column>, primary_key: &[u32]) -> Table {
    Table {
        id: TableId(5),
        name: "a \"table\"".into(),
        next_column: ColumnId(columns.len() as u32 + 1),
        columns,
        primary_key: primary_key.iter().copied().map(ColumnId).collect(),
        primary_key_name: None,
        indexes: Vec::new(),
        checks: Vec::new(),
        placement: Placement::Single { keyspace: KeyspaceNumber(1) },
        modified: SchemaVersion(1),
    }
}

fn index(id: u32, columns: &[u32], unique: bool) -> Index {
    let indexed = |id: &u32| IndexColumn { column: ColumnId(*id), descending: *id == 3, nulls_first: false };
    let columns = columns.iter().map(indexed).collect();
    Index { id: IndexId(id), name: format!("index {id}"), columns, unique, constraint: false }
}

fn check(physical: &str) -> Check {
    Check { name: "a check".into(), expression: String::new(), physical: physical.into() }
}

fn run(connection: &Connection, statements: &[String]) -> Result<(), String> {
    let transaction = connection.unchecked_transaction().unwrap();
    for statement in statements {
        transaction.execute_batch(statement).map_err(|error| error.to_string())?;
    }
    transaction.commit().map_err(|error| error.to_string())
}

fn made(table: &Table) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    run(&connection, &physical::create(table).unwrap()).unwrap();
    connection
}

fn failure(connection: &Connection, sql: &str) -> String {
    connection.execute(sql, []).unwrap_err().to_string()
}

/// Every row of `t5`, its columns as they stand.
fn rows(connection: &Connection) -> Vec<Vec<Stored>> {
    let mut statement = connection.prepare("SELECT * FROM t5 ORDER BY 1").unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.map(Result::unwrap).collect()
}

/// What SQLite knows of the schema, but for how its text is laid out.
fn schema(connection: &Connection) -> Vec<(String, String)> {
    let mut statement =
        connection.prepare("SELECT name, coalesce(sql, '') FROM sqlite_schema ORDER BY name").unwrap();
    let read = |row: &rusqlite::Row<'_>| {
        Ok((row.get(0)?, row.get::<_, String>(1)?.replace([' ', '"'], "").replace("DEFAULT7", "")))
    };
    statement.query_map([], read).unwrap().map(Result::unwrap).collect()
}

fn numeric(text: &str) -> Vec<u8> {
    Numeric::parse(text).unwrap().encode()
}

#[test]
fn every_type_has_a_column() {
    let columns = Type::ALL.iter().enumerate().map(|(i, ty)| column(i as u32 + 1, *ty, false)).collect();
    let connection = made(&table(columns, &[1]));
    let declared: i64 = connection
        .query_row(
            "SELECT count(*) FROM pragma_table_info('t5') WHERE type IN ('INTEGER', 'REAL', 'TEXT', 'BLOB')",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(declared as usize, Type::ALL.len());
    let strict: (i64, i64) = connection
        .query_row("SELECT strict, wr FROM pragma_table_list('t5')", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(strict, (1, 0));
}

#[test]
fn the_statements_of_a_table() {
    let mut table = table(vec![column(1, Type::Int4, true), column(2, Type::Numeric, false)], &[1]);
    table.columns.push(column(3, Type::Text, true));
    table.indexes = vec![index(7, &[3, 2], true), index(8, &[2], false)];
    table.checks = vec![check("c1 > 0"), check("c2 IS NOT NULL")];
    let expected = [
        "CREATE TABLE t5 (c1 INTEGER PRIMARY KEY NOT NULL, c2 BLOB, c3 TEXT NOT NULL, \
         CONSTRAINT k0 CHECK (c1 > 0), CONSTRAINT k1 CHECK (c2 IS NOT NULL)) STRICT",
        "CREATE UNIQUE INDEX i7 ON t5 (c3 DESC, substr(c2,-2,-1000000))",
        "CREATE INDEX i8 ON t5 (substr(c2,-2,-1000000))",
    ];
    assert_eq!(physical::create(&table).unwrap(), expected);
    made(&table);
}

#[test]
fn a_key_of_one_integer_is_the_rowid() {
    for (ty, is_rowid) in
        [(Type::Int2, true), (Type::Timestamp, true), (Type::Text, false), (Type::Uuid, false)]
    {
        let table = table(vec![column(1, ty, true)], &[1]);
        assert_eq!(physical::rowid_column(&table), is_rowid.then_some(ColumnId(1)));
        let indexes: i64 = made(&table)
            .query_row("SELECT count(*) FROM pragma_index_list('t5')", [], |row| row.get(0))
            .unwrap();
        assert_eq!(indexes == 0, is_rowid, "{ty:?}");
    }
    let pair = table(vec![column(1, Type::Int4, true), column(2, Type::Int4, true)], &[2, 1]);
    assert_eq!(physical::rowid_column(&pair), None);
}

#[test]
fn the_hidden_key_stands_first() {
    let table = table(vec![column(1, Type::Text, false), column(0, Type::Int8, true)], &[0]);
    assert!(
        physical::create(&table).unwrap()[0]
            .starts_with("CREATE TABLE t5 (c0 INTEGER PRIMARY KEY NOT NULL, c1 TEXT")
    );
}

#[test]
fn broken_constraints_are_named_by_ids() {
    let mut table = table(vec![column(1, Type::Text, true), column(2, Type::Int4, true)], &[1]);
    table.indexes = vec![index(7, &[2], true)];
    table.checks = vec![check("c2 < 100"), check("c2 > 0")];
    let connection = made(&table);
    connection.execute("INSERT INTO t5 VALUES ('a', 1)", []).unwrap();
    let of = |sql: &str| failure(&connection, sql);
    assert!(of("INSERT INTO t5 VALUES ('b', NULL)").contains("NOT NULL constraint failed: t5.c2"));
    assert!(of("INSERT INTO t5 VALUES (NULL, 2)").contains("NOT NULL constraint failed: t5.c1"));
    assert!(of("INSERT INTO t5 VALUES ('a', 2)").contains("UNIQUE constraint failed: t5.c1"));
    assert!(of("INSERT INTO t5 VALUES ('b', 1)").contains("UNIQUE constraint failed: t5.c2"));
    assert!(of("INSERT INTO t5 VALUES ('b', 0)").contains("CHECK constraint failed: k1"));
    assert!(
        of("INSERT INTO t5 VALUES ('b', 'x')").contains("cannot store TEXT value in INTEGER column t5.c2")
    );
}

#[test]
fn numeric_keys_are_unique_by_value() {
    let mut table = table(vec![column(1, Type::Numeric, true), column(2, Type::Numeric, false)], &[1]);
    table.indexes = vec![index(7, &[2], true)];
    let connection = made(&table);
    let insert = |key: &str, other: &str| {
        connection
            .execute("INSERT INTO t5 VALUES (?1, ?2)", [numeric(key), numeric(other)])
            .map_err(|error| error.to_string())
    };
    insert("1.0", "2").unwrap();
    assert!(insert("1.00", "3").unwrap_err().contains("UNIQUE constraint failed: index 'p5'"));
    let error = connection.execute("INSERT INTO t5 VALUES (?1, NULL)", [numeric("1.000")]).unwrap_err();
    let violation = error_on(&connection, TableId(5), error).violation;
    assert_eq!(violation, Some(Violation::Unique(TableId(5), None)));
    let error =
        connection.execute("INSERT INTO t5 VALUES (?1, ?2)", [numeric("7"), numeric("2.00")]).unwrap_err();
    let violation = error_on(&connection, TableId(5), error).violation;
    assert_eq!(violation, Some(Violation::Unique(TableId(5), Some(IndexId(7)))));
    assert!(insert("5", "2.000").unwrap_err().contains("UNIQUE constraint failed: index 'i7'"));
    insert("1.01", "2.1").unwrap();
}

#[test]
fn an_upsert_finds_a_numeric_key() {
    let table = table(vec![column(1, Type::Numeric, true), column(2, Type::Int4, false)], &[1]);
    let connection = made(&table);
    let target = physical::key_column(&table, ColumnId(1)).unwrap();
    for change in ["DO UPDATE SET c2 = c2 + excluded.c2", "DO NOTHING"] {
        let sql = format!("INSERT INTO t5 VALUES (?1, 10) ON CONFLICT ({target}) {change}");
        for key in ["1.0", "1.00", "1.0"] {
            connection.execute(&sql, [numeric(key)]).unwrap();
        }
    }
    assert_eq!(rows(&connection), [[Stored::Blob(numeric("1.0")), Stored::Integer(30)]]);
}

#[test]
fn key_sql_agrees_with_key_form_and_uses_the_index() {
    let mut table = table(vec![column(1, Type::Int4, true), column(2, Type::Numeric, false)], &[1]);
    table.indexes = vec![index(7, &[2], false)];
    let connection = made(&table);
    let numbers = ["0", "0.00", "1", "1.0", "-1.50", "1e1000", "-1e-1000", "NaN", "Infinity", "-Infinity"];
    for (place, number) in numbers.iter().enumerate() {
        let stored = numeric(number);
        connection
            .execute("INSERT INTO t5 VALUES (?1, ?2)", rusqlite::params![place as i64, stored])
            .unwrap();
        let key: Vec<u8> = connection
            .query_row(
                &format!("SELECT {} FROM t5 WHERE c1 = ?1", key_sql(Type::Numeric, "c2")),
                [place as i64],
                |r| r.get(0),
            )
            .unwrap();
        assert_eq!(Value::Blob(key), key_form(Type::Numeric, ValueRef::Blob(&stored)), "{number}");
    }
    let null: Option<Vec<u8>> = connection
        .query_row(&format!("SELECT {}", key_sql(Type::Numeric, "NULL")), [], |row| row.get(0))
        .unwrap();
    assert_eq!(null, None);
    let plan: String = connection
        .query_row(
            &format!(
                "EXPLAIN QUERY PLAN SELECT x.c1 FROM t5 AS x WHERE {} = ?1",
                key_sql(Type::Numeric, "x.c2")
            ),
            [numeric("1")],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("INDEX i7 (<expr>=?)"), "{plan}");
}

#[test]
fn zeros_are_one_key() {
    let mut table = table(vec![column(1, Type::Int4, true), column(2, Type::Float8, false)], &[1]);
    table.indexes = vec![index(7, &[2], true)];
    let connection = made(&table);
    connection.execute("INSERT INTO t5 VALUES (1, ?1)", [0.0]).unwrap();
    let error = connection.execute("INSERT INTO t5 VALUES (2, ?1)", [-0.0]).unwrap_err().to_string();
    assert!(error.contains("UNIQUE constraint failed: t5.c2"), "{error}");
    for zero in [0.0, -0.0] {
        let Value::Real(key) = key_form(Type::Float8, ValueRef::Real(zero)) else {
            panic!("a real stays one")
        };
        assert_eq!(key.to_bits(), 0);
    }
}

/// Makes `old`, puts in rows, changes it to `new`, and says what the rows are then and whether SQLite was left with
/// the schema that a new table has.
fn changed(old: &Table, insert: &str, new: &Table, fill: &[(ColumnId, Value)]) -> Vec<Vec<Stored>> {
    let connection = made(old);
    connection.execute(insert, []).unwrap();
    run(&connection, &physical::change(old, new, fill).unwrap()).unwrap();
    assert_eq!(schema(&connection), schema(&made(new)));
    rows(&connection)
}

fn pair() -> Table {
    table(vec![column(1, Type::Int4, true), column(2, Type::Text, false)], &[1])
}

const TWO_ROWS: &str = "INSERT INTO t5 VALUES (1, 'a'), (2, NULL)";

#[test]
fn nothing_to_change_is_no_statement() {
    let mut renamed = pair();
    renamed.name = "other".into();
    renamed.columns[1].name = "other".into();
    renamed.columns[0].ty.oid = Type::Int8.oid();
    assert_eq!(physical::change(&pair(), &renamed, &[]).unwrap(), Vec::<String>::new());
}

#[test]
fn a_column_is_added_with_its_fill() {
    let mut new = pair();
    new.columns.push(column(3, Type::Int4, true));
    let statements = physical::change(&pair(), &new, &[(ColumnId(3), Value::Int(7))]).unwrap();
    assert_eq!(statements, ["ALTER TABLE t5 ADD COLUMN c3 INTEGER NOT NULL DEFAULT 7"]);
    let found = changed(&pair(), TWO_ROWS, &new, &[(ColumnId(3), Value::Int(7))]);
    assert_eq!(found[1], [Stored::Integer(2), Stored::Null, Stored::Integer(7)]);
}

#[test]
fn fills_of_every_kind_arrive_unchanged() {
    let fills = [
        Value::Int(i64::MIN),
        Value::Int(i64::MAX),
        Value::Real(0.1),
        Value::Real(5e-324),
        Value::Real(-1.7976931348623157e308),
        Value::Real(1e23),
        Value::Real(123456789.12345679),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Text("it's \"é\"".into()),
        Value::Blob(vec![0, 255]),
    ];
    // Both ways: by ALTER TABLE, and by the rebuild that a column without a place at the end takes.
    for id in [3, 1] {
        for fill in &fills {
            let ty = match fill {
                Value::Int(_) => Type::Int8,
                Value::Real(_) => Type::Float8,
                Value::Text(_) => Type::Text,
                _ => Type::Bytea,
            };
            let old = table(vec![column(2, Type::Int4, true)], &[2]);
            let mut new = old.clone();
            new.columns.push(column(id, ty, false));
            let connection = made(&old);
            connection.execute("INSERT INTO t5 VALUES (1)", []).unwrap();
            run(&connection, &physical::change(&old, &new, &[(ColumnId(id), fill.clone())]).unwrap())
                .unwrap();
            let found: Stored =
                connection.query_row(&format!("SELECT c{id} FROM t5"), [], |row| row.get(0)).unwrap();
            let expected = match fill.clone() {
                Value::Int(v) => Stored::Integer(v),
                Value::Real(v) => Stored::Real(v),
                Value::Text(v) => Stored::Text(v),
                Value::Blob(v) => Stored::Blob(v),
                Value::Null => Stored::Null,
            };
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_column_is_dropped_with_its_indexes() {
    let mut old = pair();
    old.columns.push(column(3, Type::Text, false));
    old.indexes = vec![index(7, &[2, 3], false), index(8, &[3], true)];
    let mut new = old.clone();
    new.columns.remove(1);
    new.indexes.remove(0);
    let found = changed(&old, "INSERT INTO t5 VALUES (1, 'a', 'b')", &new, &[]);
    assert_eq!(found, [[Stored::Integer(1), Stored::Text("b".into())]]);
}

#[test]
fn indexes_come_and_go() {
    let mut old = pair();
    old.indexes = vec![index(7, &[2], false)];
    let mut new = pair();
    new.indexes = vec![index(8, &[2, 1], true)];
    let expected = ["DROP INDEX i7", "CREATE UNIQUE INDEX i8 ON t5 (c2, c1)"];
    assert_eq!(physical::change(&old, &new, &[]).unwrap(), expected);
    changed(&old, TWO_ROWS, &new, &[]);
}

#[test]
fn a_rebuild_keeps_rows_and_indexes() {
    let mut old = pair();
    old.indexes = vec![index(7, &[2], true)];
    let mut new = old.clone();
    new.columns.push(column(3, Type::Uuid, false));
    new.primary_key = vec![ColumnId(2), ColumnId(1)];
    new.columns[1].not_null = true;
    new.checks = vec![check("c1 > 0")];
    let fill = [(ColumnId(3), Value::Blob(vec![9]))];
    let found = changed(&old, "INSERT INTO t5 VALUES (1, 'a'), (2, 'b')", &new, &fill);
    assert_eq!(found[1], [Stored::Integer(2), Stored::Text("b".into()), Stored::Blob(vec![9])]);
}

#[test]
fn a_hidden_key_gives_way_to_a_declared_one() {
    let old = table(vec![column(1, Type::Int4, true), column(0, Type::Int8, true)], &[0]);
    let new = table(vec![column(1, Type::Int4, true)], &[1]);
    assert_eq!(changed(&old, "INSERT INTO t5 VALUES (100, 1)", &new, &[]), [[Stored::Integer(1)]]);
    let fill: [(ColumnId, Value); 0] = [];
    assert_eq!(changed(&old, "INSERT INTO t5 VALUES (100, 1)", &old, &fill).len(), 1);
}

#[test]
fn rows_that_break_a_new_constraint_stop_the_change() {
    let mut not_null = pair();
    not_null.columns[1].not_null = true;
    let mut checked = pair();
    checked.checks = vec![check("c1 < 2")];
    let mut unfilled = pair();
    unfilled.columns.push(column(3, Type::Int4, true));
    for (new, message) in [
        (not_null, "NOT NULL constraint failed: t5.c2"),
        (checked, "CHECK constraint failed: k0"),
        (unfilled, "NOT NULL constraint failed: t5.c3"),
    ] {
        let connection = made(&pair());
        connection.execute(TWO_ROWS, []).unwrap();
        let error = run(&connection, &physical::change(&pair(), &new, &[]).unwrap()).unwrap_err();
        assert!(error.contains(message), "{error}");
        assert_eq!(schema(&connection), schema(&made(&pair())));
        assert_eq!(rows(&connection).len(), 2);
    }
}

#[test]
fn a_type_stored_differently_is_refused() {
    let mut new = pair();
    new.columns[1].ty.oid = Type::Int4.oid();
    assert_eq!(physical::change(&pair(), &new, &[]).unwrap_err().sqlstate.as_str(), "0A000");
}

#[test]
fn truncate_and_drop() {
    let connection = made(&pair());
    connection.execute(TWO_ROWS, []).unwrap();
    run(&connection, &physical::truncate(TableId(5))).unwrap();
    assert_eq!(rows(&connection).len(), 0);
    run(&connection, &physical::drop(TableId(5))).unwrap();
    assert_eq!(schema(&connection), []);
}
