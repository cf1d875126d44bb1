//! Holds the planner to taking sqlparser's nodes apart whole: a clause that a pattern skips with `..` would be
//! ignored in silence.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

/// Patterns that only ask what a node is called: nothing is done with the rest.
const NAMING: &[&str] = &["Ast::Trim { trim_where, .. }"];

/// Patterns of sqlparser's nodes in a source that read some fields and skip others.
fn offences(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["ast::", "Ast::"] {
        for (start, _) in source.match_indices(prefix) {
            let rest = &source[start..];
            let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(rest.len());
            if !rest[name..].starts_with(" {") {
                continue;
            }
            let Some(end) = rest.find('}') else { continue };
            let fields = rest[name + 2..end].trim();
            let pattern = rest[..=end].split_whitespace().collect::<Vec<_>>().join(" ");
            if fields != ".." && fields.ends_with("..") && !NAMING.contains(&pattern.as_str()) {
                found.push(pattern);
            }
        }
    }
    found
}

fn check(folder: &Path, wrong: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, wrong);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let found = offences(&std::fs::read_to_string(&path).unwrap());
            wrong.extend(found.into_iter().map(|pattern| format!("{}: {pattern}", path.display())));
        }
    }
}

#[test]
fn no_field_of_a_node_is_skipped() {
    let mut wrong = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(offences("let ast::Query { with, .. } = query;"), ["ast::Query { with, .. }"]);
    assert!(offences("let ast::Query { with, body } = query;").is_empty());
}
