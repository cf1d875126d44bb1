//! Aggregates in one step and in two, over no rows, some, and with DISTINCT. Expected values are PostgreSQL 15's.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dialect::functions::{ResolvedAggregate, resolve_aggregate};
use dialect::io::{self, OutputSettings};
use dialect::types::{Type, Typed};
use dialect::{TimeZone, sqlite};
use rusqlite::Connection;

/// A table of one column of the type, its rows dealt to three shards in turn (the last shard has none).
fn table(connection: &Connection, ty: Type, rows: &[Option<&str>]) {
    connection.execute_batch("DROP TABLE IF EXISTS t; CREATE TABLE t(shard INTEGER, v)").unwrap();
    for (i, row) in rows.iter().enumerate() {
        let value = row.map_or(proto::Value::Null, |row| {
            io::input(Typed::plain(ty), row, &TimeZone::utc()).expect("a value of the type")
        });
        let value = sqlite::parameter(&value);
        connection
            .execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![(i % 2) as i64, value])
            .unwrap();
    }
}

fn shown(connection: &Connection, ty: Type, sql: &str) -> String {
    let mut statement = connection.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut rows = statement.query([]).unwrap();
    let row = match rows.next().map_err(sqlite::error) {
        Ok(row) => row.expect("a row"),
        Err(error) => return format!("!{}", error.sqlstate),
    };
    let value = sqlite::value_ref(row.get_ref(0).unwrap()).unwrap();
    if value.is_null() {
        return "NULL".into();
    }
    let mut out = Vec::new();
    io::output_text(Typed::plain(ty), value, &OutputSettings::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The aggregate over the whole table, and put together from partial results of `shards` shards.
fn both(
    connection: &Connection,
    call: &ResolvedAggregate,
    args: &[&str],
    shards: usize,
) -> (String, Option<String>) {
    let whole = shown(connection, call.result, &format!("SELECT {} FROM t", call.sql(args, "", "")));
    let merged = call.aggregate.partial.as_ref().map(|partial| {
        let columns: Vec<String> = partial
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| format!("{} AS a{i}", call.partial_sql(c, args, "")))
            .collect();
        let fragments: Vec<String> = (0..shards)
            .map(|shard| format!("SELECT {} FROM t WHERE shard = {shard}", columns.join(", ")))
            .collect();
        let fragments = match fragments.is_empty() {
            true => format!("SELECT {} FROM t LIMIT 0", columns.join(", ")),
            false => fragments.join(" UNION ALL "),
        };
        let merges: Vec<String> =
            partial.columns.iter().enumerate().map(|(i, c)| c.merge_sql(&format!("a{i}"))).collect();
        shown(connection, call.result, &format!("SELECT {} FROM ({fragments})", partial.finish_sql(&merges)))
    });
    (whole, merged)
}

fn connection() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    sqlite::register(&connection).unwrap();
    connection
}

type Case = (Type, &'static [Option<&'static str>], &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[
    (
        Type::Int2,
        &[Some("1"), Some("32767"), None, Some("1")],
        &[
            ("sum", "32769"),
            ("avg", "10923.0000000000000000"),
            ("min", "1"),
            ("max", "32767"),
            ("count", "3"),
            ("sum distinct", "32768"),
            ("count distinct", "2"),
            ("avg distinct", "16384.000000000000"),
        ],
    ),
    (
        Type::Int4,
        &[Some("2147483647"), Some("2147483647"), Some("-5"), None],
        &[
            ("sum", "4294967289"),
            ("avg", "1431655763.00000000"),
            ("min", "-5"),
            ("max", "2147483647"),
            ("count", "3"),
            ("sum distinct", "2147483642"),
            ("avg distinct", "1073741821.00000000"),
        ],
    ),
    (
        Type::Int4,
        &[None, None],
        &[("sum", "NULL"), ("avg", "NULL"), ("min", "NULL"), ("max", "NULL"), ("count", "0")],
    ),
    (
        Type::Int8,
        &[Some("9223372036854775807"), Some("9223372036854775807"), Some("1"), Some("1")],
        &[
            ("sum", "18446744073709551616"),
            ("avg", "4611686018427387904"),
            ("min", "1"),
            ("max", "9223372036854775807"),
            ("sum distinct", "9223372036854775808"),
            ("avg distinct", "4611686018427387904"),
        ],
    ),
    (
        Type::Numeric,
        &[Some("1.10"), Some("1.1"), Some("-2.345"), None, Some("10"), Some("1.100")],
        &[
            ("sum", "10.955"),
            ("avg", "2.1910000000000000"),
            ("min", "-2.345"),
            ("max", "10"),
            ("count", "5"),
            ("count distinct", "3"),
        ],
    ),
    (
        Type::Numeric,
        &[Some("1.5"), Some("NaN"), Some("Infinity")],
        &[("sum", "NaN"), ("avg", "NaN"), ("min", "1.5"), ("max", "NaN")],
    ),
    (
        Type::Numeric,
        &[Some("1e20"), Some("0.00001"), Some("3")],
        &[
            ("sum", "100000000000000000003.00001"),
            ("avg", "33333333333333333334.33334"),
            ("sum distinct", "100000000000000000003.00001"),
            ("avg distinct", "33333333333333333334.33334"),
        ],
    ),
    (
        Type::Float8,
        &[Some("0.5"), Some("1.25"), None, Some("-3")],
        &[
            ("sum", "-1.25"),
            ("avg", "-0.4166666666666667"),
            ("min", "-3"),
            ("max", "1.25"),
            ("sum distinct", "-1.25"),
        ],
    ),
    (Type::Float8, &[Some("1e308"), Some("1e308")], &[("sum", "!22003"), ("avg", "!22003")]),
    (
        Type::Float8,
        &[Some("Infinity"), Some("1")],
        &[("sum", "Infinity"), ("avg", "Infinity"), ("max", "Infinity")],
    ),
    (
        Type::Float4,
        &[Some("0.5"), Some("16777216"), None],
        &[("sum", "1.6777216e+07"), ("min", "0.5"), ("max", "1.6777216e+07")],
    ),
    (Type::Float4, &[Some("0.5"), Some("1.25")], &[("avg", "0.875"), ("sum", "1.75")]),
    (
        Type::Text,
        &[Some("b"), Some("a"), None, Some("B"), Some("é"), Some("a")],
        &[("min", "B"), ("max", "é"), ("count", "5"), ("count distinct", "4"), ("max distinct", "é")],
    ),
    (
        Type::Date,
        &[Some("2020-01-01"), Some("infinity"), Some("1999-12-31")],
        &[("min", "1999-12-31"), ("max", "infinity")],
    ),
    (
        Type::Timestamptz,
        &[Some("2020-01-01 00:00+00"), Some("2019-12-31 23:00-03")],
        &[("min", "2020-01-01 00:00:00+00"), ("max", "2020-01-01 02:00:00+00")],
    ),
    (
        Type::Bool,
        &[Some("t"), Some("f"), None],
        &[("bool_and", "f"), ("bool_or", "t"), ("every", "f"), ("count distinct", "2")],
    ),
    (Type::Bool, &[None], &[("bool_and", "NULL"), ("bool_or", "NULL")]),
];

#[test]
fn one_step_and_two_agree_with_postgresql() {
    let connection = connection();
    for (ty, rows, answers) in CASES {
        table(&connection, *ty, rows);
        for (name, expected) in *answers {
            let (name, distinct) = name.strip_suffix(" distinct").map_or((*name, false), |name| (name, true));
            let call = resolve_aggregate(name, &[*ty]).unwrap();
            if distinct {
                let sql = format!("SELECT {} FROM t", call.distinct_sql(&["v"], "").expect("DISTINCT"));
                assert_eq!(
                    shown(&connection, call.result, &sql),
                    *expected,
                    "{name}(DISTINCT {ty:?}) of {rows:?}"
                );
                continue;
            }
            let expected = (expected.to_string(), Some(expected.to_string()));
            assert_eq!(both(&connection, &call, &["v"], 3), expected, "{name}({ty:?}) of {rows:?}");
        }
    }
}

#[test]
fn no_rows_count_zero_and_sum_to_null() {
    let connection = connection();
    table(&connection, Type::Int4, &[]);
    for (name, args, expected) in [
        ("count", &[][..], "0"),
        ("count", &["v"][..], "0"),
        ("sum", &["v"][..], "NULL"),
        ("avg", &["v"][..], "NULL"),
    ] {
        let call = resolve_aggregate(name, &vec![Type::Int4; args.len()]).unwrap();
        let expected = (expected.to_string(), Some(expected.to_string()));
        assert_eq!(both(&connection, &call, args, 2), expected);
        assert_eq!(both(&connection, &call, args, 0), expected, "no shard was asked");
    }
}

#[test]
fn string_agg_keeps_its_order_and_filter() {
    let connection = connection();
    table(&connection, Type::Text, &[Some("b"), None, Some("a"), Some("c")]);
    let call = resolve_aggregate("string_agg", &[Type::Text, Type::Unknown]).unwrap();
    let sql = call.sql(&["v", "', '"], " ORDER BY v DESC", " FILTER (WHERE v <> 'b')");
    assert_eq!(shown(&connection, Type::Text, &format!("SELECT {sql} FROM t")), "c, a");
    assert!(call.aggregate.partial.is_none() && call.distinct_sql(&["v", "','"], "").is_none());
}

#[test]
fn float4_is_summed_as_float4() {
    let connection = connection();
    table(&connection, Type::Float4, &[Some("0.1"), Some("0.2"), Some("16777216"), Some("1")]);
    let call = resolve_aggregate("sum", &[Type::Float4]).unwrap();
    // In float8 it would be 1.6777218e+07.
    assert_eq!(both(&connection, &call, &["v"], 1), ("1.6777216e+07".into(), Some("1.6777216e+07".into())));
}
