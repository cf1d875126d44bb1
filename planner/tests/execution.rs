//! The golden SQL of the whole product, run on bare SQLite databases: what PostgreSQL 15 answered, plans answer, with
//! all rules and with each one off.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::executor::{Database, render};
use planner::{Rule, Rules};
use std::path::Path;

/// The script of settings, which are a session's: there is none here.
const OF_SESSIONS: &str = "role";

/// A recorded script: each statement with its answer.
fn recorded(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(first) = line.strip_prefix("> ") {
            all.push((first.to_owned(), String::new()));
        } else if let Some(more) = line.strip_prefix("+ ") {
            let (sql, _) = all.last_mut().unwrap();
            sql.push('\n');
            sql.push_str(more);
        } else {
            let (_, answer) = all.last_mut().unwrap();
            answer.push_str(line);
            answer.push('\n');
        }
    }
    all
}

fn is_ordered(sql: &str) -> bool {
    let mut depth = 0i32;
    let upper = sql.to_ascii_uppercase();
    upper.char_indices().any(|(i, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0 && upper.get(i..).is_some_and(|rest| rest.starts_with("ORDER BY"))
    })
}

fn same(a: &str, b: &str) -> bool {
    let close = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => a == b || a.contains(['.', 'e']) && (x - y).abs() <= 1e-12 * x.abs().max(y.abs()),
        _ => a == b,
    };
    let (a, b): (Vec<_>, Vec<_>) = (a.split(['|', '\n']).collect(), b.split(['|', '\n']).collect());
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| close(a, b))
}

#[test]
fn plans_answer_as_postgresql() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sql");
    let only = std::env::var("SHOAL_SQL").ok();
    let mut wrong = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_left_out = name == OF_SESSIONS || only.as_ref().is_some_and(|only| *only != name);
        if path.extension().is_none_or(|e| e != "expected") || is_left_out {
            continue;
        }
        let mut database = Database::new();
        for (sql, expected) in recorded(&std::fs::read_to_string(&path).unwrap()) {
            count += 1;
            let ordered = is_ordered(&sql);
            let query = sql.starts_with("SELECT") || sql.starts_with("VALUES");
            let mut sets = vec![Rules::ALL];
            if query && !sql.contains("nextval") {
                sets.push(Rules::NONE);
                sets.extend(Rule::ALL.iter().map(|rule| Rules::ALL.without(*rule)));
            }
            for rules in sets {
                database.settings.rules = rules;
                let result = database.run(&sql);
                let actual = render(&result, ordered);
                if !same(&actual, &expected) {
                    let why = result.err().map_or(String::new(), |e| format!("{e}\n"));
                    wrong += &format!("{name} [{rules}]: {sql}\nexpected\n{expected}got\n{actual}{why}\n");
                    break;
                }
            }
            database.settings.rules = Rules::ALL;
        }
    }
    assert!(count > 0);
    if !wrong.is_empty() {
        panic!("{} of {count} differ\n{wrong}", wrong.matches("expected\n").count());
    }
}
