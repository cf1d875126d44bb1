//! Golden SQL scripts: statements, and what PostgreSQL 15 answers to each.
//!
//! `tests/sql/NAME.sql` holds statements, each ended by a semicolon at the end of a line; lines that begin with `--`
//! are comments. `tests/sql/NAME.expected` repeats each statement behind `> ` and says what came back: a line of
//! `column:type` names, the rows with `|` between values and `∅` for NULL, and the command's tag; or `ERROR sqlstate`.
//! `cargo run -p tests --bin record` writes the expected files by asking PostgreSQL, never Shoal.
//!
//! Rules: rows of a query without a top-level ORDER BY are sorted as text before they are compared, as no order is
//! promised. Shoal's own clauses are cut out before PostgreSQL sees a statement, unless a comment line `-- verbatim`
//! stands before it. After `-- approximate` floats are compared to a relative 1e-12.

use std::fmt::Write;
use tokio_postgres::{Client, SimpleQueryMessage};

/// One statement of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its text.
    pub sql: String,
    /// PostgreSQL gets it as it is.
    pub verbatim: bool,
    /// Floats are compared approximately.
    pub approximate: bool,
}

/// Splits a script into its statements.
pub fn parse(script: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let (mut sql, mut verbatim, mut approximate) = (String::new(), false, false);
    for line in script.lines() {
        match line.trim() {
            "-- verbatim" => verbatim = true,
            "-- approximate" => approximate = true,
            comment if comment.starts_with("--") && sql.is_empty() => {}
            "" if sql.is_empty() => {}
            _ => {
                if !sql.is_empty() {
                    sql.push('\n');
                }
                sql.push_str(line.trim_end());
                if line.trim_end().ends_with(';') {
                    statements.push(Statement { sql: std::mem::take(&mut sql), verbatim, approximate });
                    (verbatim, approximate) = (false, false);
                }
            }
        }
    }
    assert!(sql.is_empty(), "the script ends inside a statement: {sql}");
    statements
}

/// The statement without Shoal's own clauses: what PostgreSQL is asked.
pub fn for_postgres(statement: &Statement) -> String {
    if statement.verbatim {
        return statement.sql.clone();
    }
    let mut sql = statement.sql.clone();
    for opening in ["PARTITION BY HASH (", "PARTITION BY RANGE (", "WITH (placement", "WITH (keyspace"] {
        while let Some(start) = sql.find(opening) {
            let end = start + sql[start..].find(')').expect("the clause ends") + 1;
            sql.replace_range(start..end, "");
        }
    }
    sql
}

/// Runs a statement and writes down what came back.
pub async fn answer(client: &Client, sql: &str) -> String {
    let types = column_types(client, sql).await;
    match client.simple_query(sql).await {
        Ok(messages) => describe(&messages, sql, |place, name| {
            let ty = types.as_ref().and_then(|types| types.get(place)).map_or("?", String::as_str);
            format!("{name}:{ty}")
        }),
        Err(error) => error_line(&error),
    }
}

/// What a statement's messages say, each column's heading by its place and name.
pub fn describe(
    messages: &[SimpleQueryMessage],
    sql: &str,
    heading: impl Fn(usize, &str) -> String,
) -> String {
    let ordered = is_ordered(sql);
    let mut out = String::new();
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let names: Vec<_> =
                    columns.iter().enumerate().map(|(i, column)| heading(i, column.name())).collect();
                writeln!(out, "{}", names.join("|")).expect("strings take text");
            }
            SimpleQueryMessage::Row(row) => {
                let values: Vec<_> =
                    (0..row.len()).map(|i| row.get(i).unwrap_or("∅").replace('\n', "\\n")).collect();
                rows.push(values.join("|"));
            }
            SimpleQueryMessage::CommandComplete(count) => {
                if !ordered {
                    rows.sort();
                }
                for row in rows.drain(..) {
                    writeln!(out, "{row}").expect("strings take text");
                }
                writeln!(out, "({count})").expect("strings take text");
            }
            _ => {}
        }
    }
    out
}

/// The result's column types, by way of the extended protocol; `None` where a statement can't be prepared.
async fn column_types(client: &Client, sql: &str) -> Option<Vec<String>> {
    let first = sql.trim_start_matches(|c: char| c.is_whitespace() || c == '(').split_whitespace().next()?;
    if !["SELECT", "VALUES", "INSERT", "UPDATE", "DELETE", "WITH"].contains(&&*first.to_ascii_uppercase()) {
        return None;
    }
    let statement = client.prepare(sql).await.ok()?;
    Some(statement.columns().iter().map(|column| column.type_().name().to_owned()).collect())
}

fn error_line(error: &tokio_postgres::Error) -> String {
    match error.code() {
        Some(code) => format!("ERROR {}\n", code.code()),
        None => format!("FAILED {error}\n"),
    }
}

/// Whether a query promises an order: an ORDER BY outside of all parentheses.
fn is_ordered(sql: &str) -> bool {
    let mut depth = 0i32;
    let upper = sql.to_ascii_uppercase();
    upper.char_indices().any(|(i, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0 && upper[i..].starts_with("ORDER BY")
    })
}

/// Whether two answers say the same; approximately, if asked.
pub fn same(expected: &str, actual: &str, approximate: bool) -> bool {
    if expected == actual || !approximate {
        return expected == actual;
    }
    let (left, right): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    left.len() == right.len()
        && left.iter().zip(&right).all(|(left, right)| {
            let (left, right): (Vec<_>, Vec<_>) = (left.split('|').collect(), right.split('|').collect());
            left.len() == right.len() && left.iter().zip(&right).all(|(left, right)| same_value(left, right))
        })
}

fn same_value(left: &str, right: &str) -> bool {
    match (left.parse::<f64>(), right.parse::<f64>()) {
        (Ok(a), Ok(b)) => a == b || (a - b).abs() <= 1e-12 * a.abs().max(b.abs()),
        _ => left == right,
    }
}

/// A recorded script: each statement with its answer.
pub fn parse_expected(text: &str) -> Vec<(String, String)> {
    let mut recorded: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("> "), line.strip_prefix("+ "), recorded.last_mut()) {
            (Some(first), _, _) => recorded.push((first.to_owned(), String::new())),
            (_, Some(more), Some((sql, _))) => {
                sql.push('\n');
                sql.push_str(more);
            }
            (_, _, Some((_, answer))) => {
                answer.push_str(line);
                answer.push('\n');
            }
            (None, _, None) => panic!("an expected file begins with a statement"),
        }
    }
    recorded
}

/// The form that [`parse_expected`] reads.
pub fn render(sql: &str, answer: &str) -> String {
    let mut out = String::new();
    for (i, line) in sql.lines().enumerate() {
        writeln!(out, "{} {line}", if i == 0 { ">" } else { "+" }).expect("strings take text");
    }
    out.push_str(answer);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shoals_clauses_are_cut_unless_verbatim() {
        let script =
            "-- a comment\nCREATE TABLE t (a int)\n  PARTITION BY HASH (a);\n\n-- verbatim\nSELECT 1;\n";
        let statements = parse(script);
        assert_eq!(for_postgres(&statements[0]).replace(char::is_whitespace, ""), "CREATETABLEt(aint);");
        assert!(statements[1].verbatim);
    }

    #[test]
    fn a_recorded_script_reads_back() {
        let text = render("SELECT\n1;", "?column?:int4\n1\n(1)\n") + &render("SELEC;", "ERROR 42601\n");
        let expected = [
            ("SELECT\n1;".into(), "?column?:int4\n1\n(1)\n".into()),
            ("SELEC;".into(), "ERROR 42601\n".into()),
        ];
        assert_eq!(parse_expected(&text), expected);
    }

    #[test]
    fn an_order_within_parentheses_promises_nothing() {
        assert!(is_ordered("select * from t order by a"));
        assert!(!is_ordered("select * from (select * from t order by a) s"));
    }

    #[test]
    fn floats_may_differ_in_the_last_digits() {
        assert!(same("a|0.30000000000000004\n", "a|0.3\n", true));
        assert!(!same("a|0.30000000000000004\n", "a|0.3\n", false));
        assert!(!same("1\n", "2\n", true));
    }
}
