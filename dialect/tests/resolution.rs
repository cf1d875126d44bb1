//! The choice among overloads, compared with PostgreSQL's for every name and all types (`resolution/record.py`).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dialect::functions::{common_type, resolve_aggregate, resolve_function, resolve_operator, type_name};
use dialect::types::Type;
use proto::WireError;
use std::collections::{HashMap, HashSet};

const TYPES: &[(&str, Type)] = &[
    ("bool", Type::Bool),
    ("int2", Type::Int2),
    ("int4", Type::Int4),
    ("int8", Type::Int8),
    ("float4", Type::Float4),
    ("float8", Type::Float8),
    ("numeric", Type::Numeric),
    ("text", Type::Text),
    ("varchar", Type::Varchar),
    ("bpchar", Type::Bpchar),
    ("\"char\"", Type::Char),
    ("name", Type::Name),
    ("bytea", Type::Bytea),
    ("date", Type::Date),
    ("timestamp", Type::Timestamp),
    ("timestamptz", Type::Timestamptz),
    ("uuid", Type::Uuid),
    ("oid", Type::Oid),
    ("unknown", Type::Unknown),
];

const FEW: &[&str] = &["int4", "int8", "text", "bytea", "unknown", "numeric", "timestamptz", "float8"];

/// Names of which Shoal refuses some overload that PostgreSQL has: intervals, padded characters, patterns.
const REFUSING: &[&str] = &[
    "+",
    "-",
    "~",
    "!~",
    "~*",
    "!~*",
    "~~",
    "!~~",
    "~~*",
    "!~~*",
    "~<~",
    "~<=~",
    "~>~",
    "~>=~",
    "concat",
    "concat_ws",
    "format",
    "like",
    "like_escape",
    "notlike",
    "octet_length",
    "substring",
];

fn combinations(count: usize) -> Vec<Vec<(&'static str, Type)>> {
    let types: Vec<_> = TYPES.iter().filter(|(name, _)| count < 3 || FEW.contains(name)).copied().collect();
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|args| types.iter().map(move |ty| args.iter().copied().chain([*ty]).collect()))
            .collect();
    }
    all
}

fn resolve(kind: &str, name: &str, types: &[Type]) -> Result<Type, WireError> {
    match (kind, types) {
        ("function", _) => resolve_function(name, types).map(|r| r.result),
        ("aggregate", _) => resolve_aggregate(name, types).map(|r| r.result),
        (_, [left, right]) => resolve_operator(name, Some(*left), *right).map(|r| r.result),
        (_, [right]) => resolve_operator(name, None, *right).map(|r| r.result),
        _ => panic!("an operator has one or two arguments"),
    }
}

#[test]
fn overloads_are_chosen_as_postgresql_does() {
    let recorded = include_str!("resolution/resolution.txt");
    let mut answers = HashMap::new();
    for line in recorded.lines().filter(|l| !l.starts_with('?')) {
        let (call, answer) = line.rsplit_once('\t').unwrap();
        answers.insert(call, answer);
    }
    let mut wrong = Vec::new();
    let mut refused = HashSet::new();
    let mut used = 0;
    for line in recorded.lines().filter_map(|l| l.strip_prefix("? ")) {
        let [kind, name, count] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        for args in combinations(count.parse().unwrap()) {
            let (names, types): (Vec<&str>, Vec<Type>) = args.into_iter().unzip();
            let call = format!("{kind}\t{name}\t{}", names.join(","));
            let expected = answers.get(call.as_str()).copied();
            used += usize::from(expected.is_some());
            let expected = expected.unwrap_or("!42883");
            let got = match resolve(kind, name, &types) {
                Ok(ty) => type_name(ty).to_owned(),
                Err(error) => format!("!{}", error.sqlstate),
            };
            if got == "!0A000" && !expected.starts_with('!') {
                refused.insert(name);
            } else if got != expected {
                wrong.push(format!("{call}: expected {expected}, got {got}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(used, answers.len(), "each answer was looked at");
    assert_eq!(refused, REFUSING.iter().copied().collect());
}

#[test]
fn what_shoal_lacks_is_refused_and_what_nobody_has_is_unknown() {
    let refused = resolve_function("regexp_replace", &[Type::Text, Type::Text, Type::Text]).unwrap_err();
    assert_eq!(refused.sqlstate.as_str(), "0A000");
    let refused = resolve_aggregate("array_agg", &[Type::Text]).unwrap_err();
    assert_eq!(refused.sqlstate.as_str(), "0A000");
    let unknown = resolve_function("nosuch", &[Type::Int4, Type::Unknown]).unwrap_err();
    assert_eq!(unknown.message, "function nosuch(integer, unknown) does not exist");
    let unknown = resolve_operator("+", Some(Type::Int4), Type::Text).unwrap_err();
    assert_eq!(unknown.message, "operator does not exist: integer + text");
    let ambiguous = resolve_operator("+", Some(Type::Unknown), Type::Unknown).unwrap_err();
    assert_eq!(ambiguous.message, "operator is not unique: unknown + unknown");
    assert_eq!(
        ambiguous.hint.as_deref(),
        Some("Could not choose a best candidate operator. You might need to add explicit type casts.")
    );
}

#[test]
fn values_of_several_types_meet_in_one() {
    let meet = |types: &[Type]| common_type("CASE", types);
    assert_eq!(meet(&[Type::Int4, Type::Unknown]).unwrap(), Type::Int4);
    assert_eq!(meet(&[Type::Unknown, Type::Unknown]).unwrap(), Type::Text);
    assert_eq!(meet(&[Type::Int4, Type::Numeric, Type::Int8]).unwrap(), Type::Numeric);
    assert_eq!(meet(&[Type::Int4, Type::Float8, Type::Numeric]).unwrap(), Type::Float8);
    // Each casts to the other: the first stays.
    assert_eq!(meet(&[Type::Varchar, Type::Text]).unwrap(), Type::Varchar);
    assert_eq!(meet(&[Type::Date, Type::Timestamptz]).unwrap(), Type::Timestamptz);
    let mixed = meet(&[Type::Int4, Type::Text]).unwrap_err();
    assert_eq!(mixed.sqlstate.as_str(), "42804");
    assert_eq!(mixed.message, "CASE types integer and text cannot be matched");
}
