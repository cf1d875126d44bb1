//! What of SQL is accepted: `accepted` was recorded from PostgreSQL 15. After `+` what its grammar takes, after `-`
//! what it refuses with 42601, then its message and the character that it points at.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use planner::text::{LiteralKind, MAX_DEPTH, Parsed, split};
use proto::{SqlState, WireError};
use sqlparser::ast::{self, Expr};

/// PostgreSQL's grammar takes these, and Shoal refuses them before it has read them whole.
const REFUSED: &[&str] = &["SELECT a FROM t SET", "SELECT a FROM t values", "SELECT * FROM t *"];

/// PostgreSQL's grammar refuses these; Shoal's binder does.
const BOUND: &[&str] = &["SELECT [1]"];

fn parse(sql: &str) -> Result<(), WireError> {
    for text in split(sql)? {
        text.parse()?;
    }
    Ok(())
}

#[test]
fn the_grammar_is_postgresqls() {
    let mut wrong = Vec::new();
    let mut lines = include_str!("accepted").lines().peekable();
    while let Some(line) = lines.next() {
        let (sign, sql) = line.split_at(2);
        let result = parse(sql);
        if sign == "+ " {
            match result {
                Ok(()) => {}
                Err(error) if error.sqlstate == SqlState::FEATURE_NOT_SUPPORTED || REFUSED.contains(&sql) => {
                }
                Err(error) => wrong.push(format!("refused: {sql}: {error}")),
            }
            continue;
        }
        let expected = lines.next().unwrap().trim();
        match result {
            Ok(()) if BOUND.contains(&sql) => {}
            Ok(()) => wrong.push(format!("accepted: {sql}: {expected}")),
            Err(error) => {
                let position = error.position.map_or(String::new(), |position| format!(" @{position}"));
                let found = format!("{}{position}", error.message);
                if found != expected {
                    wrong.push(format!("worded: {sql}: {found} | {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The one expression of a SELECT, with parentheses around every operation.
fn grouped(sql: &str) -> String {
    let text = &split(&format!("SELECT {sql}")).unwrap()[0];
    let Parsed::Statement(tree) = text.parse().unwrap() else { panic!("a query") };
    let ast::Statement::Query(query) = &*tree else { panic!("a query") };
    let ast::SetExpr::Select(select) = &*query.body else { panic!("a SELECT") };
    let [ast::SelectItem::UnnamedExpr(expr)] = select.projection.as_slice() else { panic!("one expression") };
    fn show(expr: &Expr) -> String {
        match expr {
            Expr::BinaryOp { left, op, right } => format!("({} {op} {})", show(left), show(right)),
            Expr::UnaryOp { op, expr } => format!("({op} {})", show(expr)),
            Expr::Cast { expr, data_type, .. } => format!("({}::{data_type})", show(expr)),
            Expr::IsNull(expr) => format!("({} IS NULL)", show(expr)),
            Expr::IsTrue(expr) => format!("({} IS TRUE)", show(expr)),
            Expr::Like { expr, pattern, .. } => format!("({} LIKE {})", show(expr), show(pattern)),
            Expr::InList { expr, list, .. } => format!("({} IN ({}))", show(expr), show(&list[0])),
            Expr::Between { expr, low, high, .. } => {
                format!("({} BETWEEN {} AND {})", show(expr), show(low), show(high))
            }
            Expr::AtTimeZone { timestamp, time_zone } => {
                format!("({} AT {})", show(timestamp), show(time_zone))
            }
            Expr::Collate { expr, collation } => format!("({} COLLATE {collation})", show(expr)),
            Expr::Nested(expr) => show(expr),
            other => other.to_string(),
        }
    }
    show(expr)
}

#[test]
fn operators_bind_as_in_postgresql() {
    // What PostgreSQL 15 computes shows the grouping: -2^2 is 4, ~1+1 is -3, 2^3^2 is 64, @ -5 + 3 is 2, 1<<2+1 is 8.
    for (sql, expected) in [
        ("-2^2", "((- 2) ^ 2)"),
        ("2 * -3 ^ 2", "(2 * ((- 3) ^ 2))"),
        ("~1+1", "(~ (1 + 1))"),
        ("2^3^2", "((2 ^ 3) ^ 2)"),
        ("@ -5 + 3", "(@ ((- 5) + 3))"),
        ("1 << 2 + 1", "(1 << (2 + 1))"),
        ("-1::int", "(- (1::INT))"),
        ("1 + 2 * 3 % 4", "(1 + ((2 * 3) % 4))"),
        ("1 - 2 - 3", "((1 - 2) - 3)"),
        ("3*-1", "(3 * (- 1))"),
        ("a ~ b || c", "((a ~ b) || c)"),
        ("a || b LIKE c || d", "((a || b) LIKE (c || d))"),
        ("a < b IS NULL", "((a < b) IS NULL)"),
        ("1 + 2 IS NULL", "((1 + 2) IS NULL)"),
        ("1 = 1 IS TRUE", "((1 = 1) IS TRUE)"),
        ("NOT a = b AND c", "((NOT (a = b)) AND c)"),
        ("NOT a IS NULL", "(NOT (a IS NULL))"),
        ("a AND b OR c AND d", "((a AND b) OR (c AND d))"),
        ("b = a IN (1)", "(b = (a IN (1)))"),
        ("1 + 2 BETWEEN 3 AND 4 + 5 AND c", "(((1 + 2) BETWEEN 3 AND (4 + 5)) AND c)"),
        ("- x AT TIME ZONE 'a' || 'b'", "(((- x) AT 'a') || 'b')"),
        ("a::text COLLATE \"C\" || b", "(((a::TEXT) COLLATE \"C\") || b)"),
        ("a ISNULL", "(a IS NULL)"),
        ("a # b & c | d", "(((a # b) & c) | d)"),
    ] {
        assert_eq!(grouped(sql), expected, "{sql}");
    }
}

#[test]
fn a_key_is_what_stays_when_literals_go() {
    let key = |sql: &str| split(sql).unwrap().remove(0).key;
    let same = [
        "SELECT a FROM t WHERE b = 1 AND c = 'x'",
        "select A from T\nwhere /* why */ b=2 and c = E'\\n' -- end",
        "  SELECT a FROM t WHERE b = 30 AND c = $q$y$q$ ;",
        "SELECT a FROM t WHERE b = 2147483647 AND c = ''",
    ];
    for sql in same {
        assert_eq!(key(sql), key(same[0]), "{sql}");
    }
    for sql in [
        "SELECT a FROM t WHERE b = 2147483648 AND c = 'x'",
        "SELECT a FROM t WHERE b = 1.0 AND c = 'x'",
        "SELECT a FROM t WHERE b = $1 AND c = 'x'",
        "SELECT a FROM t WHERE b = -1 AND c = 'x'",
        "SELECT \"A\" FROM t WHERE b = 1 AND c = 'x'",
        "SELECT a FROM t WHERE b = 1 AND c = B'1'",
        "SELECT aFROM t WHERE b = 1 AND c = 'x'",
    ] {
        assert_ne!(key(sql), key(same[0]), "{sql}");
    }
    // A quoted name can't pass for a keyword, nor one token for two.
    assert_ne!(key("SELECT \"select\""), key("SELECT select"));
    assert_ne!(key("SELECT 1 < = 2"), key("SELECT 1 <= 2"));
    assert_ne!(key("SELECT \"a\u{3}\""), key("SELECT \"a\""));
}

#[test]
fn literals_have_slots_kinds_and_places() {
    let sql = "SELECT 'é', 1; SELECT 5, 9999999999, 1e3, .5, 99999999999999999999, B'1', 'a' \n 'b', N'n'";
    let texts = split(sql).unwrap();
    assert_eq!(texts.len(), 2);
    let text = &texts[1];
    let kinds: Vec<_> = text.literals.iter().map(|literal| literal.kind).collect();
    use LiteralKind::{Bits, Int4, Int8, Numeric, Text};
    assert_eq!(kinds, [Int4, Int8, Numeric, Numeric, Numeric, Bits, Text, Text]);
    let values: Vec<_> = (0..8).map(|slot| text.literal(slot).unwrap().into_owned()).collect();
    assert_eq!(values, ["5", "9999999999", "1e3", ".5", "99999999999999999999", "B'1'", "ab", "n"]);
    assert_eq!(text.literal(8), None);
    let Parsed::Statement(tree) = texts[0].parse().unwrap() else { panic!("a query") };
    let ast::Statement::Query(query) = &*tree else { panic!("a query") };
    let ast::SetExpr::Select(select) = &*query.body else { panic!("a SELECT") };
    for (slot, item) in select.projection.iter().enumerate() {
        let ast::SelectItem::UnnamedExpr(Expr::Value(value)) = item else { panic!("a literal") };
        assert_eq!(texts[0].slot(value.span.start), Some(slot as u32));
    }
    // Positions count characters of all that the client sent.
    assert_eq!(
        split("SELECT 'é'; SELECT a a a").unwrap()[1].parse().unwrap_err().position.map(u32::from),
        Some(24)
    );
    assert_eq!(split("SELECT 'é'; SELECT 'open").unwrap_err().position.map(u32::from), Some(20));
}

#[test]
fn strings_say_what_postgresql_reads() {
    for (sql, expected) in [
        ("'it''s'", "it's"),
        (r"'a\n'", r"a\n"),
        (r"E'a\nb\t\\'", "a\nb\t\\"),
        (r"E'\x41\102\u00e9\U0001F600'", "AB\u{e9}\u{1F600}"),
        (r"E'\uD83D\uDE00'", "\u{1F600}"),
        (r"E'it\'s ''so'''", "it's 'so'"),
        ("$$a'b$$", "a'b"),
        ("$x$a$$b$x$", "a$$b"),
        ("'a'\n-- comment\n  'b''c'", "ab'c"),
        ("N'x'", "x"),
    ] {
        let text = &split(&format!("SELECT {sql}")).unwrap()[0];
        assert_eq!(text.literal(0).unwrap(), expected, "{sql}");
    }
    for (sql, sqlstate) in [
        (r"E'\uD83D'", SqlState::SYNTAX_ERROR),
        (r"E'\u12'", SqlState::INVALID_ESCAPE_SEQUENCE),
        (r"E'\0'", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
        (r"E'\xff'", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
        (r"U&'\0041'", SqlState::FEATURE_NOT_SUPPORTED),
    ] {
        assert_eq!(split(&format!("SELECT {sql}")).unwrap_err().sqlstate, sqlstate, "{sql}");
    }
}

#[test]
fn identifiers_are_folded_and_cut() {
    let shown = |sql: &str| format!("{:?}", split(sql).unwrap()[0].parse().unwrap());
    assert!(shown(&format!("SELECT {}", "X".repeat(70))).contains(&format!("\"{}\"", "x".repeat(63))));
    assert!(shown("SELECT \"Ab\"\"c\"").contains("Ab\\\"c"));
    assert!(shown("SELECT ÄB").contains("Äb"));
}

#[test]
fn what_is_too_deep_is_refused_and_nothing_overflows() {
    // On a stack as small as a thread of a runtime may have.
    let check = || {
        let sqlstate = |sql: &str| match split(sql).and_then(|texts| texts[0].parse().map(drop)) {
            Ok(()) => None,
            Err(error) => Some(error.sqlstate),
        };
        let too_complex = Some(SqlState::STATEMENT_TOO_COMPLEX);
        let chain = |n: usize, op: &str| format!("SELECT 1 WHERE {}true", format!("true {op} ").repeat(n));
        assert_eq!(sqlstate(&chain(40_000, "OR")), too_complex);
        assert_eq!(sqlstate(&chain(MAX_DEPTH as usize - 10, "OR")), None);
        assert_eq!(sqlstate(&chain(MAX_DEPTH as usize - 10, "AND")), None);
        assert_eq!(sqlstate(&format!("SELECT {}1", "1 + ".repeat(9_000))), None);
        assert_eq!(sqlstate(&format!("SELECT {}1", "1 + ".repeat(40_000))), too_complex);
        assert_eq!(sqlstate(&format!("SELECT {}true", "NOT ".repeat(300))), None);
        let nests = [("(", ")"), ("NOT ", ""), ("- ", ""), ("CASE WHEN true THEN ", " END"), ("f(", ")")];
        for (open, close) in nests {
            let deep = format!("SELECT {}1{}", open.repeat(30_000), close.repeat(30_000));
            assert_eq!(sqlstate(&deep), too_complex, "{open}");
        }
        assert_eq!(sqlstate(&format!("SELECT {}1{}", "(".repeat(490), ")".repeat(490))), None);
        assert_eq!(sqlstate(&format!("{}SELECT 1{}", "SELECT (".repeat(300), ")".repeat(300))), None);
        assert_eq!(sqlstate(&format!("SELECT 1{}", " UNION SELECT 1".repeat(40_000))), too_complex);
        assert_eq!(sqlstate(&format!("SELECT 1{}", " UNION SELECT 1".repeat(5_000))), None);
        let values = format!("INSERT INTO t VALUES {}(1, -1)", "(1, -1), ".repeat(50_000));
        assert_eq!(sqlstate(&values), None);
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(check).unwrap().join().unwrap();
}
