//! Golden scripts: statements in, plans (or errors) out.
//!
//! Each file of `golden/` begins with DDL, up to a line of `----`. After that come statements, each from a line that
//! begins with `> ` to the next empty line; behind it stands what the planner says. `SHOAL_REWRITE=1` writes the files
//! anew; review reads the difference.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::World;
use planner::plan::Action;
use planner::{Rules, Settings, explain};
use std::fmt::Write;
use std::path::Path;

fn print(world: &World, sql: &str, settings: &Settings) -> String {
    let mut out = String::new();
    let planned = match world.plan(sql, settings) {
        Ok(planned) => planned,
        Err(error) => {
            let place = error.position.map_or(String::new(), |p| format!(" at {p}"));
            writeln!(out, "ERROR {}{place}: {}", error.sqlstate, error.message).unwrap();
            for (word, text) in [("DETAIL", &error.detail), ("HINT", &error.hint)] {
                if let Some(text) = text {
                    writeln!(out, "  {word}: {text}").unwrap();
                }
            }
            return out;
        }
    };
    for planned in planned {
        let plan = &planned.plan;
        if !plan.parameters.is_empty() {
            let types: Vec<_> = plan.parameters.iter().map(|ty| dialect::functions::type_name(*ty)).collect();
            writeln!(out, "Parameters: {}", types.join(", ")).unwrap();
        }
        if let Some(columns) = &plan.columns {
            let columns: Vec<_> = columns
                .iter()
                .map(|c| {
                    let modifier =
                        if c.ty.modifier >= 0 { format!("({})", c.ty.modifier) } else { String::new() };
                    let origin =
                        c.origin.map_or(String::new(), |(table, number)| format!(" of {table}.{number}"));
                    format!("{} {}{modifier}{origin}", c.name, dialect::functions::type_name(c.ty.ty))
                })
                .collect();
            writeln!(out, "Columns: {}", columns.join("; ")).unwrap();
        }
        if !planned.pinned.is_empty() {
            let pinned: Vec<_> =
                planned.pinned.iter().map(|(slot, text)| format!("{}: {text}", slot + 1)).collect();
            writeln!(out, "Pinned: {}", pinned.join(", ")).unwrap();
        }
        for line in explain(plan, &[], &world.topology) {
            writeln!(out, "{line}").unwrap();
        }
        if let Action::Modify(modify) = &plan.action {
            writeln!(out, "Locking, {} columns of the key first: {}", modify.touch, modify.locking_sql)
                .unwrap();
        }
    }
    out
}

fn run(script: &str) -> String {
    let (setup, statements) = script.split_once("----\n").expect("a script has setup and statements");
    let mut world = World::new();
    let mut settings = Settings::default();
    world.run(setup).unwrap_or_else(|error| panic!("setup: {error}"));
    let mut out = format!("{setup}----\n");
    for block in statements.split("\n\n") {
        let block = block.trim_start_matches('\n');
        if block.is_empty() {
            continue;
        }
        if let Some(rules) = block.strip_prefix("rules ") {
            let rules = rules.lines().next().unwrap_or_default();
            settings.rules = Rules::parse(rules).unwrap();
            writeln!(out, "rules {rules}\n").unwrap();
            continue;
        }
        let sql: Vec<_> = block.lines().take_while(|line| line.starts_with("> ")).collect();
        if sql.is_empty() {
            writeln!(out, "{}\n", block.trim_end()).unwrap();
            continue;
        }
        let plain: Vec<_> = sql.iter().map(|line| &line[2..]).collect();
        let printed = print(&world, &plain.join("\n"), &settings);
        writeln!(out, "{}\n{printed}", sql.join("\n")).unwrap();
    }
    out
}

#[test]
fn plans_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rewrite = std::env::var_os("SHOAL_REWRITE").is_some();
    let mut wrong = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        let actual = run(&script);
        files += 1;
        if rewrite {
            std::fs::write(&path, actual).unwrap();
        } else if actual != script {
            let line = actual.lines().zip(script.lines()).position(|(a, b)| a != b);
            let show = |text: &str| line.and_then(|n| text.lines().nth(n)).unwrap_or_default().to_owned();
            wrong.push(format!(
                "{} differs:\n  wrote {}\n  is    {}",
                path.display(),
                show(&script),
                show(&actual)
            ));
        }
    }
    assert!(files > 0 && wrong.is_empty(), "{}\n(SHOAL_REWRITE=1 writes them anew)", wrong.join("\n"));
}
