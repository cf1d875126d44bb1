//! Functions over text, counting in characters (`oracle_compat.c`, `varlena.c`).

use super::letters::{is_alphanumeric, lower, upper};
use super::{Answer, Body::*, Native, int, int4, invalid, text};
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_upper", body: Text1(|a| Ok(a.chars().map(upper).collect())) },
    Native { name: "pg_lower", body: Text1(|a| Ok(lowered(a))) },
    Native { name: "pg_initcap", body: Text1(|a| Ok(initcap(a))) },
    Native { name: "pg_reverse", body: Text1(|a| Ok(a.chars().rev().collect())) },
    Native { name: "pg_substr", body: Strict(-1, substr) },
    Native { name: "pg_left", body: Strict(2, |a| Ok(Value::Text(left(text(a[0])?, int(a[1])?).into()))) },
    Native { name: "pg_right", body: Strict(2, |a| Ok(Value::Text(right(text(a[0])?, int(a[1])?).into()))) },
    Native { name: "pg_btrim", body: Strict(2, |a| trim(a, true, true)) },
    Native { name: "pg_ltrim", body: Strict(2, |a| trim(a, true, false)) },
    Native { name: "pg_rtrim", body: Strict(2, |a| trim(a, false, true)) },
    Native { name: "pg_lpad", body: Strict(3, |a| pad(a, true)) },
    Native { name: "pg_rpad", body: Strict(3, |a| pad(a, false)) },
    Native { name: "pg_repeat", body: Strict(2, repeat) },
    Native { name: "pg_replace", body: Strict(3, replace) },
    Native { name: "pg_strpos", body: Strict(2, strpos) },
    Native {
        name: "pg_starts_with",
        body: Strict(2, |a| Ok(super::bool(text(a[0])?.starts_with(text(a[1])?)))),
    },
    Native { name: "pg_split_part", body: Strict(3, split_part) },
    Native { name: "pg_translate", body: Strict(3, translate) },
    Native { name: "pg_overlay", body: Strict(-1, overlay) },
    Native {
        name: "pg_ascii",
        body: Strict(1, |a| {
            Ok(Value::Int(text(a[0])?.chars().next().map_or(0, |c| i64::from(u32::from(c)))))
        }),
    },
    Native { name: "pg_chr", body: Strict(1, chr) },
    Native { name: "pg_concat", body: Loose(-1, concat) },
    Native { name: "pg_concat_ws", body: Loose(-1, concat_ws) },
];

/// The longest text that PostgreSQL makes.
const LONGEST: usize = 0x3fff_ffff;

pub(super) fn lowered(text: &str) -> String {
    text.chars().map(lower).collect()
}

fn initcap(text: &str) -> String {
    let mut within = false;
    text.chars()
        .map(|c| {
            let shown = if within { lower(c) } else { upper(c) };
            within = is_alphanumeric(shown);
            shown
        })
        .collect()
}

/// The characters from `start` (0-based) on, `count` of them at most.
fn slice(text: &str, start: usize, count: Option<usize>) -> &str {
    let from = text.char_indices().nth(start).map_or(text.len(), |(i, _)| i);
    let rest = &text[from..];
    match count {
        Some(count) => &rest[..rest.char_indices().nth(count).map_or(rest.len(), |(i, _)| i)],
        None => rest,
    }
}

/// The part of a string that `substring(s, start, length)` means: what lies before the first place counts, but isn't
/// there. 0-based start and length.
pub(super) fn extent(start: i32, length: Option<i32>) -> Answer<(usize, Option<usize>)> {
    let begin = i64::from(start).max(1);
    let from = usize::try_from(begin - 1).unwrap_or(0);
    match length {
        None => Ok((from, None)),
        Some(length) if length < 0 => Err(negative_length()),
        Some(length) => {
            let end = i64::from(start) + i64::from(length);
            Ok((from, Some(usize::try_from(end - begin).unwrap_or(0))))
        }
    }
}

pub(super) fn negative_length() -> WireError {
    WireError::new(SqlState::SUBSTRING_ERROR, "negative substring length not allowed")
}

fn substr(args: &[ValueRef<'_>]) -> Answer<Value> {
    let length = args.get(2).map(|v| int4(*v)).transpose()?;
    let (start, count) = extent(int4(args[1])?, length)?;
    Ok(Value::Text(slice(text(args[0])?, start, count).into()))
}

fn left(text: &str, n: i64) -> &str {
    let count = if n < 0 { text.chars().count().saturating_sub(magnitude(n)) } else { magnitude(n) };
    slice(text, 0, Some(count))
}

fn right(text: &str, n: i64) -> &str {
    let skipped = if n < 0 { magnitude(n) } else { text.chars().count().saturating_sub(magnitude(n)) };
    slice(text, skipped, None)
}

fn magnitude(n: i64) -> usize {
    usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX)
}

fn trim(args: &[ValueRef<'_>], start: bool, end: bool) -> Answer<Value> {
    let (mut rest, set) = (text(args[0])?, text(args[1])?);
    if start {
        rest = rest.trim_start_matches(|c| set.contains(c));
    }
    if end {
        rest = rest.trim_end_matches(|c| set.contains(c));
    }
    Ok(Value::Text(rest.into()))
}

fn too_long() -> WireError {
    WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "requested length too large")
}

fn pad(args: &[ValueRef<'_>], before: bool) -> Answer<Value> {
    let (string, fill) = (text(args[0])?, text(args[2])?);
    let wanted = usize::try_from(int(args[1])?).unwrap_or(0);
    let have = string.chars().count();
    if have >= wanted || fill.is_empty() {
        return Ok(Value::Text(slice(string, 0, Some(wanted)).into()));
    }
    // PostgreSQL allows for the widest characters.
    if wanted.saturating_mul(4) > LONGEST {
        return Err(too_long());
    }
    let filling = fill.chars().cycle().take(wanted - have);
    let padded = if before {
        filling.chain(string.chars()).collect()
    } else {
        string.chars().chain(filling).collect()
    };
    Ok(Value::Text(padded))
}

fn repeat(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, count) = (text(args[0])?, usize::try_from(int(args[1])?).unwrap_or(0));
    if string.len().saturating_mul(count) > LONGEST {
        return Err(too_long());
    }
    Ok(Value::Text(string.repeat(count)))
}

fn replace(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, from, to) = (text(args[0])?, text(args[1])?, text(args[2])?);
    if from.is_empty() {
        return Ok(Value::Text(string.into()));
    }
    if string.len() / from.len() * to.len() > LONGEST {
        return Err(too_long());
    }
    Ok(Value::Text(string.replace(from, to)))
}

fn strpos(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, part) = (text(args[0])?, text(args[1])?);
    let place = string.find(part).map_or(0, |at| string[..at].chars().count() + 1);
    Ok(Value::Int(place as i64))
}

fn split_part(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, delimiter, field) = (text(args[0])?, text(args[1])?, int(args[2])?);
    if field == 0 {
        return Err(invalid("field position must not be zero"));
    }
    let place = magnitude(field) - 1;
    let part = if delimiter.is_empty() || string.is_empty() {
        (place == 0).then_some(string)
    } else if field > 0 {
        string.split(delimiter).nth(place)
    } else {
        // Fields are found from the left, whichever end they are counted from.
        let parts: Vec<&str> = string.split(delimiter).collect();
        parts.len().checked_sub(place + 1).map(|i| parts[i])
    };
    Ok(Value::Text(part.unwrap_or_default().into()))
}

fn translate(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, from, to) = (text(args[0])?, text(args[1])?, text(args[2])?);
    let to: Vec<char> = to.chars().collect();
    let changed = string.chars().filter_map(|c| match from.chars().position(|f| f == c) {
        Some(place) => to.get(place).copied(),
        None => Some(c),
    });
    Ok(Value::Text(changed.collect()))
}

fn overlay(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, part, start) = (text(args[0])?, text(args[1])?, int4(args[2])?);
    let length = match args.get(3) {
        Some(length) => i64::from(int4(*length)?),
        None => part.chars().count() as i64,
    };
    if start <= 0 {
        return Err(negative_length());
    }
    let start = i64::from(start);
    let after = i32::try_from(start + length).map_err(|_| super::out_of_range("integer"))?;
    let before = slice(string, 0, usize::try_from(start - 1).ok());
    let (after, _) = extent(after, None)?;
    Ok(Value::Text(format!("{before}{part}{}", slice(string, after, None))))
}

fn chr(args: &[ValueRef<'_>]) -> Answer<Value> {
    let code = int4(args[0])?;
    let limit = |message: String| WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message);
    match u32::try_from(code) {
        Err(_) => Err(invalid("character number must be positive")),
        Ok(0) => Err(limit("null character not permitted".into())),
        Ok(code) if code > 0x10_ffff => {
            Err(limit(format!("requested character too large for encoding: {code}")))
        }
        Ok(code) => match char::from_u32(code) {
            Some(c) => Ok(Value::Text(c.into())),
            None => Err(limit(format!("requested character not valid for encoding: {code}"))),
        },
    }
}

fn concat(args: &[ValueRef<'_>]) -> Answer<Value> {
    let mut out = String::new();
    for arg in args.iter().filter(|a| !a.is_null()) {
        out.push_str(text(*arg)?);
    }
    Ok(Value::Text(out))
}

fn concat_ws(args: &[ValueRef<'_>]) -> Answer<Value> {
    if args[0].is_null() {
        return Ok(Value::Null);
    }
    let separator = text(args[0])?;
    let parts = args[1..].iter().filter(|a| !a.is_null()).map(|a| text(*a)).collect::<Answer<Vec<_>>>()?;
    Ok(Value::Text(parts.join(separator)))
}
