//! Golden SQL: every script of `tests/sql`, on one shard and on four, answers as PostgreSQL 15 did; and every query
//! answers the same with all pushdown rules off, and with each one off.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use tests::cluster::Cluster;
use tests::script;

#[test]
fn one_shard_answers_as_postgresql() {
    run_all("1");
}

#[test]
fn four_shards_answer_as_postgresql() {
    run_all("4");
}

/// Each value of `shoal.rules` that must make no difference.
const RULES: &[&str] = &[
    "none",
    "-route-by-key",
    "-push-whole",
    "-push-filter",
    "-push-projection",
    "-push-join",
    "-push-aggregate",
    "-push-distinct",
    "-push-order",
    "-push-limit",
];

/// Whether a statement can be repeated without changing anything.
fn is_query(sql: &str) -> bool {
    (sql.starts_with("SELECT") || sql.starts_with("VALUES")) && !sql.contains("nextval")
}

fn run_all(shards: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut scripts: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sql"))
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    let only = std::env::var("SHOAL_SQL").ok();
    let mut differences = String::new();
    for path in scripts {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", shards]);
        let statements = script::parse(&fs::read_to_string(&path).unwrap());
        let recorded = script::parse_expected(&fs::read_to_string(path.with_extension("expected")).unwrap());
        let texts: Vec<_> = statements.iter().map(|s| s.sql.as_str()).collect();
        let expected: Vec<_> = recorded.iter().map(|(sql, _)| sql.as_str()).collect();
        assert_eq!(texts, expected, "{name}.expected is of another script: record it again");
        runtime.block_on(async {
            let client = cluster.connect().await;
            for (statement, (_, expected)) in statements.iter().zip(&recorded) {
                let actual = script::answer(&client, &statement.sql).await;
                let rules = if is_query(&statement.sql) { RULES } else { &[] };
                for rules in rules {
                    client.simple_query(&format!("SET shoal.rules = '{rules}'")).await.unwrap();
                    let other = script::answer(&client, &statement.sql).await;
                    if !script::same(&actual, &other, statement.approximate) {
                        let sql = &statement.sql;
                        writeln!(differences, "{name}: {sql}\nall rules\n{actual}but with {rules}\n{other}")
                            .unwrap();
                    }
                }
                if !rules.is_empty() {
                    client.simple_query("SET shoal.rules = 'all'").await.unwrap();
                }
                if !script::same(expected, &actual, statement.approximate) {
                    writeln!(differences, "{name}: {}\nexpected\n{expected}but got\n{actual}", statement.sql)
                        .unwrap();
                }
            }
        });
    }
    assert!(differences.is_empty(), "{differences}");
}
