//! LIKE and its escapes (`like_match.c`).

use super::texts::lowered;
use super::{Answer, bytes, text};
use crate::sqlite::error::raise;
use crate::sqlite::value;
use proto::{SqlState, ValueRef, WireError};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value as Out;

pub(super) fn register(connection: &Connection, flags: FunctionFlags) -> rusqlite::Result<()> {
    type Matcher = fn(ValueRef<'_>, ValueRef<'_>) -> Answer<bool>;
    let matchers: [(&str, Matcher); 3] = [
        ("pg_like", |a, b| matches(text(a)?.as_bytes(), text(b)?.as_bytes(), true)),
        ("pg_ilike", |a, b| matches(lowered(text(a)?).as_bytes(), lowered(text(b)?).as_bytes(), true)),
        ("pg_bytes_like", |a, b| matches(bytes(a)?, bytes(b)?, false)),
    ];
    for (name, matcher) in matchers {
        connection.create_scalar_function(name, 2, flags, move |context| {
            let arg = |i: usize| value::value_ref(context.get_raw(i)).map_err(raise);
            let (string, pattern) = (arg(0)?, arg(1)?);
            if string.is_null() || pattern.is_null() {
                return Ok(Out::Null);
            }
            matcher(string, pattern).map(|found| Out::Integer(found.into())).map_err(raise)
        })?;
    }
    connection.create_scalar_function("pg_like_escape", 2, flags, move |context| {
        let arg = |i: usize| value::value_ref(context.get_raw(i)).map_err(raise);
        match (arg(0)?, arg(1)?) {
            (ValueRef::Text(pattern), ValueRef::Text(escape)) => {
                like_escape(pattern, escape).map(Out::Text).map_err(raise)
            }
            _ => Ok(Out::Null),
        }
    })
}

/// `MatchText`: `%` is any string, `_` any character (any byte where `wide` is off), `\` makes the next one plain. A
/// pattern that ends with the escape is an error only when the match gets there.
fn matches(mut string: &[u8], mut pattern: &[u8], wide: bool) -> Answer<bool> {
    // Where to try again: the last `%`, and the string from which it may take one more character.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        let advanced = match pattern {
            [b'%', rest @ ..] => {
                let mut rest = rest;
                loop {
                    match rest {
                        [b'%', after @ ..] => rest = after,
                        [b'_', ..] if string.is_empty() => return Ok(false),
                        [b'_', after @ ..] => {
                            string = &string[step(string, wide)..];
                            rest = after;
                        }
                        _ => break,
                    }
                }
                if rest.is_empty() {
                    return Ok(true);
                }
                if rest == b"\\" {
                    return Err(dangling());
                }
                again = Some((rest, string));
                pattern = rest;
                continue;
            }
            [] => string.is_empty(),
            [b'_', rest @ ..] if !string.is_empty() => {
                string = &string[step(string, wide)..];
                pattern = rest;
                continue;
            }
            [b'\\'] if !string.is_empty() => return Err(dangling()),
            [b'\\', plain, rest @ ..] if string.first() == Some(plain) => {
                (string, pattern) = (&string[1..], rest);
                continue;
            }
            [b'\\' | b'_', ..] => false,
            [plain, rest @ ..] if string.first() == Some(plain) => {
                (string, pattern) = (&string[1..], rest);
                continue;
            }
            _ => false,
        };
        if advanced {
            return Ok(true);
        }
        match again {
            Some((rest, from)) if !from.is_empty() => {
                let from = &from[step(from, wide)..];
                again = Some((rest, from));
                (pattern, string) = (rest, from);
            }
            _ => return Ok(false),
        }
    }
}

/// The length of the first character.
fn step(string: &[u8], wide: bool) -> usize {
    let rest = &string[1..];
    if wide { 1 + rest.iter().take_while(|b| **b & 0xc0 == 0x80).count() } else { 1 }
}

fn dangling() -> WireError {
    WireError::new(SqlState::INVALID_ESCAPE_SEQUENCE, "LIKE pattern must not end with escape character")
}

/// `like_escape`: the pattern with a backslash as its escape.
fn like_escape(pattern: &str, escape: &str) -> Answer<String> {
    let mut chars = escape.chars();
    let escape = chars.next();
    if chars.next().is_some() {
        return Err(WireError::new(SqlState::INVALID_ESCAPE_SEQUENCE, "invalid escape string")
            .with_hint("Escape string must be empty or one character."));
    }
    let mut out = String::with_capacity(pattern.len() + 4);
    let mut escaped = false;
    for c in pattern.chars() {
        match c {
            _ if escape == Some('\\') => out.push(c),
            _ if Some(c) == escape && !escaped => {
                out.push('\\');
                escaped = true;
            }
            '\\' => {
                out.push('\\');
                if !escaped {
                    out.push('\\');
                }
                escaped = false;
            }
            _ => {
                out.push(c);
                escaped = false;
            }
        }
    }
    Ok(out)
}
