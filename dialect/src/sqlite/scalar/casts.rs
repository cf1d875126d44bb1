//! Casts: between numbers, to lengths, and through text by the types' input and output functions.

use super::numerics::stored;
use super::{Answer, Body::*, Native, int, int4, numeric, out_of_range, real, text};
use crate::datetime::TimeZone;
use crate::io::{self, OutputSettings};
use crate::numeric::Numeric;
use crate::types::{Type, Typed};
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_input", body: Strict(2, |a| io::input(typed(a[0])?, text(a[1])?, &TimeZone::utc())) },
    Native {
        name: "pg_input_zoned",
        body: Strict(3, |a| io::input(typed(a[0])?, text(a[1])?, &zone(a[2])?)),
    },
    Native { name: "pg_output", body: Strict(2, |a| output(a[0], a[1], TimeZone::utc())) },
    Native { name: "pg_output_zoned", body: Strict(3, |a| output(a[0], a[1], zone(a[2])?)) },
    Native { name: "pg_float4_numeric", body: Strict(1, |a| stored(Numeric::from_f32(real(a[0])? as f32))) },
    Native { name: "pg_float8_numeric", body: Strict(1, |a| stored(Numeric::from_f64(real(a[0])?))) },
    Native {
        name: "pg_numeric_float4",
        body: Strict(1, |a| Ok(Value::Real(numeric(a[0])?.to_f32()?.into()))),
    },
    Native { name: "pg_numeric_float8", body: Strict(1, |a| Ok(Value::Real(numeric(a[0])?.to_f64()?))) },
    Native { name: "pg_numeric_int2", body: Strict(1, |a| narrowed::<i16>(a[0], "smallint")) },
    Native { name: "pg_numeric_int4", body: Strict(1, |a| narrowed::<i32>(a[0], "integer")) },
    Native { name: "pg_numeric_int8", body: Strict(1, |a| narrowed::<i64>(a[0], "bigint")) },
    Native {
        name: "pg_varchar_cut",
        body: Strict(2, |a| Ok(Value::Text(cut(text(a[0])?, int(a[1])?).into()))),
    },
    Native { name: "pg_varchar_fit", body: Strict(2, |a| fit(text(a[0])?, int(a[1])?, "character varying")) },
    Native {
        name: "pg_bpchar_cut",
        body: Strict(2, |a| Ok(Value::Text(cut(text(a[0])?, int(a[1])?).trim_end_matches(' ').into()))),
    },
    Native { name: "pg_bpchar_fit", body: Strict(2, |a| fit(text(a[0])?, int(a[1])?, "character")) },
    Native { name: "pg_name", body: Text1(|a| Ok(name(a).to_owned())) },
    Native {
        name: "pg_char",
        body: Strict(1, |a| {
            Ok(Value::Text(text(a[0])?.chars().next().map(String::from).unwrap_or_default()))
        }),
    },
    Native { name: "pg_char_int4", body: Strict(1, char_code) },
    Native { name: "pg_int4_char", body: Strict(1, code_char) },
    Native { name: "pg_oid", body: Int1(oid) },
    Native { name: "pg_int8_oid", body: Int1(|a| if a < 0 { Err(oid_out_of_range()) } else { oid(a) }) },
    Native { name: "pg_oid_int4", body: Int1(|a| Ok(i64::from(a as u32 as i32))) },
];

/// A type's oid, which a template writes.
fn typed(oid: ValueRef<'_>) -> Answer<Typed> {
    u32::try_from(int(oid)?)
        .ok()
        .and_then(Type::from_oid)
        .map(Typed::plain)
        .ok_or_else(|| WireError::internal("a cast names a type that doesn't exist"))
}

pub(super) fn zone(name: ValueRef<'_>) -> Answer<TimeZone> {
    TimeZone::parse(text(name)?)
}

fn output(oid: ValueRef<'_>, value: ValueRef<'_>, zone: TimeZone) -> Answer<Value> {
    let mut out = Vec::new();
    io::output_text(typed(oid)?, value, &OutputSettings { zone }, &mut out)?;
    String::from_utf8(out).map(Value::Text).map_err(|_| WireError::internal("a type's text is not UTF-8"))
}

fn narrowed<T: TryFrom<i64>>(value: ValueRef<'_>, kind: &str) -> Answer<Value> {
    let wide = numeric(value)?.to_i64(kind)?;
    T::try_from(wide).map(|_| Value::Int(wide)).map_err(|_| out_of_range(kind))
}

/// The first `length` characters.
fn cut(text: &str, length: i64) -> &str {
    let length = usize::try_from(length).unwrap_or(0);
    if text.len() <= length {
        return text;
    }
    text.char_indices().nth(length).map_or(text, |(end, _)| &text[..end])
}

/// The text, if no more than blanks must be cut off.
fn fit(text: &str, length: i64, kind: &str) -> Answer<Value> {
    let kept = cut(text, length);
    if text[kept.len()..].bytes().any(|b| b != b' ') {
        let message = format!("value too long for type {kind}({length})");
        return Err(WireError::new(SqlState::STRING_DATA_RIGHT_TRUNCATION, message));
    }
    let kept = if kind == "character" { kept.trim_end_matches(' ') } else { kept };
    Ok(Value::Text(kept.into()))
}

/// What fits into a `name`: 63 bytes.
fn name(text: &str) -> &str {
    let mut end = text.len().min(63);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn char_code(args: &[ValueRef<'_>]) -> Answer<Value> {
    match text(args[0])?.as_bytes() {
        [] => Ok(Value::Int(0)),
        [byte] => Ok(Value::Int(i64::from(*byte as i8))),
        _ => Err(WireError::unsupported("a \"char\" beyond ASCII")),
    }
}

fn code_char(args: &[ValueRef<'_>]) -> Answer<Value> {
    match int4(args[0])? {
        0 => Ok(Value::Text(String::new())),
        code @ 1..=127 => Ok(Value::Text((code as u8 as char).into())),
        -128..=-1 => Err(WireError::unsupported("a \"char\" beyond ASCII")),
        _ => Err(out_of_range("\"char\"")),
    }
}

fn oid(value: i64) -> Answer<i64> {
    // int4 and oid share their bits.
    match value {
        0..=0xffff_ffff => Ok(value),
        -0x8000_0000..=-1 => Ok(value & 0xffff_ffff),
        _ => Err(oid_out_of_range()),
    }
}

fn oid_out_of_range() -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "OID out of range")
}
