//! Arrays in their text form: `{a,"b c",NULL}`.
//!
//! Arrays live in catalog queries and parameters only; they are one-dimensional here.

use super::{Answer, Body::*, Native, int, text};
use crate::rowset;
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_array_to_string", body: Loose(-1, to_string) },
    Native { name: "pg_array_json", body: Strict(1, json) },
    Native { name: "pg_rows_json", body: Strict(1, rows_json) },
    Native { name: "pg_array_length", body: Strict(2, length) },
    Native { name: "pg_array_lower", body: Strict(2, lower) },
    Native {
        name: "pg_cardinality",
        body: Strict(1, |a| Ok(Value::Int(elements(text(a[0])?)?.len() as i64))),
    },
    Native { name: "pg_string_to_array", body: Loose(2, from_string) },
];

/// The rows of a packed value: see [`crate::rowset`].
fn rows_json(args: &[ValueRef<'_>]) -> Answer<Value> {
    let ValueRef::Blob(packed) = args[0] else {
        return Err(WireError::internal("rows that aren't packed"));
    };
    Ok(Value::Text(rowset::json(&rowset::unpack(packed)?)))
}

fn malformed(array: &str) -> WireError {
    let message = format!("malformed array literal: \"{array}\"");
    WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message)
}

/// The elements of an array's text form; `None` is NULL.
fn elements(array: &str) -> Answer<Vec<Option<String>>> {
    let inner = array.strip_prefix('{').and_then(|a| a.strip_suffix('}')).ok_or_else(|| malformed(array))?;
    let mut elements = Vec::new();
    let mut rest = inner.chars();
    if inner.is_empty() {
        return Ok(elements);
    }
    let (mut element, mut quoted, mut was_quoted) = (String::new(), false, false);
    loop {
        match rest.next() {
            Some('"') => {
                quoted = !quoted;
                was_quoted = true;
            }
            Some('\\') => element.push(rest.next().ok_or_else(|| malformed(array))?),
            Some('{') if !quoted => return Err(WireError::unsupported("an array of several dimensions")),
            end @ (Some(',') | None) if !quoted => {
                let null = !was_quoted && element.eq_ignore_ascii_case("null");
                elements.push((!null).then(|| std::mem::take(&mut element)));
                element.clear();
                was_quoted = false;
                if end.is_none() {
                    return Ok(elements);
                }
            }
            Some(c) => element.push(c),
            None => return Err(malformed(array)),
        }
    }
}

fn to_string(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (array, separator) = (args[0], args[1]);
    if array.is_null() || separator.is_null() {
        return Ok(Value::Null);
    }
    let null = match args.get(2) {
        Some(shown) if !shown.is_null() => Some(text(*shown)?.to_owned()),
        _ => None,
    };
    let shown: Vec<String> =
        elements(text(array)?)?.into_iter().filter_map(|element| element.or_else(|| null.clone())).collect();
    Ok(Value::Text(shown.join(text(separator)?)))
}

/// The elements as a JSON array of strings and nulls, for SQLite's `json_each`.
fn json(args: &[ValueRef<'_>]) -> Answer<Value> {
    let mut out = String::from("[");
    for element in elements(text(args[0])?)? {
        if out.len() > 1 {
            out.push(',');
        }
        let Some(element) = element else {
            out.push_str("null");
            continue;
        };
        out.push('"');
        for c in element.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out.push(']');
    Ok(Value::Text(out))
}

fn length(args: &[ValueRef<'_>]) -> Answer<Value> {
    let count = elements(text(args[0])?)?.len() as i64;
    Ok(if int(args[1])? == 1 && count > 0 { Value::Int(count) } else { Value::Null })
}

fn lower(args: &[ValueRef<'_>]) -> Answer<Value> {
    let empty = elements(text(args[0])?)?.is_empty();
    Ok(if int(args[1])? == 1 && !empty { Value::Int(1) } else { Value::Null })
}

fn from_string(args: &[ValueRef<'_>]) -> Answer<Value> {
    if args[0].is_null() {
        return Ok(Value::Null);
    }
    let string = text(args[0])?;
    let parts: Vec<String> = match args[1] {
        _ if string.is_empty() => Vec::new(),
        ValueRef::Null => string.chars().map(String::from).collect(),
        separator => match text(separator)? {
            "" => vec![string.to_owned()],
            separator => string.split(separator).map(str::to_owned).collect(),
        },
    };
    let shown: Vec<String> = parts.iter().map(|part| quoted(part)).collect();
    Ok(Value::Text(format!("{{{}}}", shown.join(","))))
}

/// An element as `array_out` writes it.
fn quoted(element: &str) -> String {
    let special =
        |c: char| matches!(c, '"' | '\\' | '{' | '}' | ',') || c.is_ascii_whitespace() || c == '\u{b}';
    if !element.is_empty() && !element.eq_ignore_ascii_case("null") && !element.contains(special) {
        return element.to_owned();
    }
    format!("\"{}\"", element.replace('\\', "\\\\").replace('"', "\\\""))
}
