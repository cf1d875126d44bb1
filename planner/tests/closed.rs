//! The binder takes every node of sqlparser's apart without `..`, so that a clause it doesn't read can't be forgotten.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

/// Patterns that may leave fields out, because only the node's kind is looked at: each is refused or named, not read.
const ALLOWED: &[&str] = &[
    "TableFactor::Function { .. } | TableFactor::TableFunction { .. } | TableFactor::UNNEST { .. } => {",
    "Ast::Extract { .. } => sure(\"extract\"),",
    "Ast::Ceil { .. } => sure(\"ceil\"),",
    "Ast::Floor { .. } => sure(\"floor\"),",
    "Ast::Position { .. } => sure(\"position\"),",
    "Ast::Substring { .. } => sure(\"substring\"),",
    "Ast::Overlay { .. } => sure(\"overlay\"),",
    "Ast::Trim { trim_where, .. } => sure(match trim_where {",
    "Ast::AtTimeZone { .. } => sure(\"timezone\"),",
];

#[test]
fn no_field_of_the_syntax_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bind");
    let mut found = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        files += 1;
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.trim();
            let rest = code.contains(", ..}") || code.contains(".. }") || code == ".." || code == "..,";
            // A struct made with the rest of another is no pattern.
            let made = code.contains("..*") || code.contains("..c") || code.contains("..a");
            if rest && !made && !code.starts_with("//") && !ALLOWED.contains(&code) {
                found.push(format!("{}:{}: {code}", path.display(), number + 1));
            }
        }
    }
    assert!(files > 10 && found.is_empty(), "patterns that leave fields out:\n{}", found.join("\n"));
}
