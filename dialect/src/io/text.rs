//! Text forms.

use super::{OutputSettings, array, cut_name, fit, mismatch, without_nul};
use crate::datetime::{self, TimeZone};
use crate::float;
use crate::numeric::Numeric;
use crate::types::{Type, Typed};
use proto::{SqlState, Value, ValueRef, WireError};

/// Reads a text as PostgreSQL's input function of the type does, modifier included (22P02, 22001, 22003, ..).
pub fn input(ty: Typed, text: &str, zone: &TimeZone) -> Result<Value, WireError> {
    let modifier = ty.modifier;
    Ok(match ty.ty {
        Type::Bool => Value::Int(read_bool(text)?.into()),
        Type::Int2 => Value::Int(read_integer(text, "smallint", i16::MIN.into(), i16::MAX.into())?),
        Type::Int4 => Value::Int(read_integer(text, "integer", i32::MIN.into(), i32::MAX.into())?),
        Type::Int8 => Value::Int(read_integer(text, "bigint", i64::MIN, i64::MAX)?),
        Type::Oid => Value::Int(read_oid(text)?),
        Type::Regclass => Value::Int(read_regclass(text)?),
        Type::Float4 => Value::Real(float::parse_f32(text)?.into()),
        Type::Float8 => Value::Real(float::parse_f64(text)?),
        Type::Numeric => Value::Blob(Numeric::parse(text)?.apply_modifier(modifier)?.encode()),
        Type::Text | Type::Unknown => Value::Text(without_nul(text)?.to_owned()),
        Type::Varchar => Value::Text(fit(without_nul(text)?, modifier, "character varying")?.to_owned()),
        Type::Bpchar => {
            Value::Text(fit(without_nul(text)?, modifier, "character")?.trim_end_matches(' ').to_owned())
        }
        Type::Char => Value::Text(first_character(without_nul(text)?)?.to_owned()),
        Type::Name => Value::Text(cut_name(without_nul(text)?).to_owned()),
        Type::Bytea => Value::Blob(read_bytea(text)?),
        Type::Date => Value::Int(datetime::parse_date(text)?.into()),
        Type::Timestamp => Value::Int(datetime::parse_timestamp(text, modifier)?),
        Type::Timestamptz => Value::Int(datetime::parse_timestamptz(text, modifier, zone)?),
        Type::Uuid => Value::Blob(read_uuid(text)?.to_vec()),
        Type::Array(element) => Value::Text(array::normalize(element, modifier, without_nul(text)?, zone)?),
    })
}

/// Appends the text form of a value in storage form, which must not be NULL. A value of another storage class than
/// the type's is XX001.
pub fn output_text(
    ty: Typed,
    value: ValueRef<'_>,
    settings: &OutputSettings,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    match (ty.ty, value) {
        (Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid | Type::Regclass, ValueRef::Int(v)) => {
            write_i64(v, out);
        }
        (Type::Text | Type::Varchar | Type::Name | Type::Char | Type::Unknown, ValueRef::Text(v)) => {
            out.extend_from_slice(v.as_bytes());
        }
        (Type::Array(_), ValueRef::Text(v)) => out.extend_from_slice(v.as_bytes()),
        (Type::Bpchar, ValueRef::Text(v)) => write_padded(v, ty.modifier, out),
        (Type::Bool, ValueRef::Int(v)) => out.push(if v == 0 { b'f' } else { b't' }),
        (Type::Float8, ValueRef::Real(v)) => float::write_f64(v, out),
        (Type::Float4, ValueRef::Real(v)) => float::write_f32(v as f32, out),
        (Type::Numeric, ValueRef::Blob(v)) => Numeric::decode(v)?.write_text(out),
        (Type::Bytea, ValueRef::Blob(v)) => write_bytea(v, out),
        (Type::Date, ValueRef::Int(v)) => {
            datetime::format_date(i32::try_from(v).map_err(|_| mismatch(ty.ty, value))?, out);
        }
        (Type::Timestamp, ValueRef::Int(v)) => datetime::format_timestamp(v, out),
        (Type::Timestamptz, ValueRef::Int(v)) => datetime::format_timestamptz(v, &settings.zone, out),
        (Type::Uuid, ValueRef::Blob(v)) => {
            write_uuid(v.try_into().map_err(|_| mismatch(ty.ty, value))?, out);
        }
        _ => return Err(mismatch(ty.ty, value)),
    }
    Ok(())
}

fn invalid(kind: &str, text: &str) -> WireError {
    let message = format!("invalid input syntax for type {kind}: \"{text}\"");
    WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message)
}

fn out_of_range(kind: &str, text: &str) -> WireError {
    let message = format!("value \"{text}\" is out of range for type {kind}");
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message)
}

/// What C's `isspace` calls white space.
fn trim(text: &str) -> &str {
    text.trim_matches(|c| matches!(c, ' ' | '\t'..='\r'))
}

/// Any unambiguous beginning of true, false, yes, no, on, off; 1 and 0.
fn read_bool(text: &str) -> Result<bool, WireError> {
    let word = trim(text);
    let begins = |of: &str, least: usize| {
        word.len() >= least
            && word.len() <= of.len()
            && of.as_bytes()[..word.len()].eq_ignore_ascii_case(word.as_bytes())
    };
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || word == "1" {
        Ok(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || word == "0" {
        Ok(false)
    } else {
        Err(invalid("boolean", text))
    }
}

fn read_integer(text: &str, kind: &str, least: i64, most: i64) -> Result<i64, WireError> {
    let word = trim(text).as_bytes();
    let (negative, digits) = match word.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, word),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(invalid(kind, text));
    }
    // Counted downwards, where there is room for one more.
    let negated = digits
        .iter()
        .try_fold(0i64, |value, digit| value.checked_mul(10)?.checked_sub(i64::from(digit - b'0')));
    let value = negated.and_then(|value| if negative { Some(value) } else { value.checked_neg() });
    value.filter(|value| (least..=most).contains(value)).ok_or_else(|| out_of_range(kind, text))
}

/// Negative numbers stand for the oids of the same bits, as PostgreSQL's `oidin` has it.
fn read_oid(text: &str) -> Result<i64, WireError> {
    let value = read_integer(text, "oid", i32::MIN.into(), u32::MAX.into())?;
    Ok(if value < 0 { i64::from(value as i32 as u32) } else { value })
}

/// A relation's oid. Names need the catalog, which isn't here.
fn read_regclass(text: &str) -> Result<i64, WireError> {
    match text {
        "-" => Ok(0),
        _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => read_oid(text),
        _ => {
            Err(WireError::unsupported("a regclass value by name here").with_hint("Use the relation's oid."))
        }
    }
}

fn first_character(text: &str) -> Result<&str, WireError> {
    match text.as_bytes().first() {
        None => Ok(""),
        Some(first) if first.is_ascii() && *first != b'\\' => Ok(&text[..1]),
        Some(b'\\') if text.len() == 1 => Ok(text),
        Some(_) => Err(WireError::unsupported("a value of type \"char\" beyond ASCII")),
    }
}

fn write_padded(text: &str, modifier: i32, out: &mut Vec<u8>) {
    out.extend_from_slice(text.as_bytes());
    if modifier >= 4 {
        let missing = ((modifier - 4) as usize).saturating_sub(text.chars().count());
        out.resize(out.len() + missing, b' ');
    }
}

fn read_bytea(text: &str) -> Result<Vec<u8>, WireError> {
    match text.strip_prefix("\\x") {
        Some(hex) => read_hex(hex),
        None => read_escaped(text.as_bytes()).ok_or_else(|| {
            WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type bytea")
        }),
    }
}

/// Pairs of digits, white space between pairs.
fn read_hex(hex: &str) -> Result<Vec<u8>, WireError> {
    let refuse = |message: String| WireError::new(SqlState::INVALID_PARAMETER_VALUE, message);
    let digit = |c: char| {
        c.to_digit(16).ok_or_else(|| refuse(format!("invalid hexadecimal digit: \"{c}\""))).map(|v| v as u8)
    };
    let mut bytes = Vec::with_capacity(hex.len() / 2);
    let mut rest = hex.chars();
    while let Some(first) = rest.next() {
        if matches!(first, ' ' | '\n' | '\t' | '\r') {
            continue;
        }
        let high = digit(first)?;
        let second =
            rest.next().ok_or_else(|| refuse("invalid hexadecimal data: odd number of digits".into()))?;
        bytes.push(high << 4 | digit(second)?);
    }
    Ok(bytes)
}

/// Bytes as they are, `\\` for a backslash, `\ooo` for any byte.
fn read_escaped(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    loop {
        text = match text {
            [] => return Some(bytes),
            [b'\\', b'\\', rest @ ..] => {
                bytes.push(b'\\');
                rest
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            [b'\\', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

fn write_bytea(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"\\x");
    write_hex(bytes, out);
}

/// 32 digits, a hyphen allowed after each four of them, braces around.
fn read_uuid(text: &str) -> Result<[u8; 16], WireError> {
    read_uuid_digits(text.as_bytes()).ok_or_else(|| invalid("uuid", text))
}

fn read_uuid_digits(text: &[u8]) -> Option<[u8; 16]> {
    let mut rest = match text {
        [b'{', inner @ .., b'}'] => inner,
        _ => text,
    };
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().enumerate() {
        let (pair, after) = rest.split_first_chunk::<2>()?;
        let digit = |c: u8| char::from(c).to_digit(16).map(|v| v as u8);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        rest = after;
        if place % 2 == 1 && place < 15 {
            rest = rest.strip_prefix(b"-").unwrap_or(rest);
        }
    }
    rest.is_empty().then_some(bytes)
}

fn write_uuid(bytes: &[u8; 16], out: &mut Vec<u8>) {
    for (from, to) in [(0, 4), (4, 6), (6, 8), (8, 10), (10, 16)] {
        if from > 0 {
            out.push(b'-');
        }
        write_hex(&bytes[from..to], out);
    }
}

/// Appends an integer in decimal.
pub fn write_i64(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_u64(value.unsigned_abs(), out);
}

/// `00` to `99`.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut i = 0;
    while i < 100 {
        pairs[i] = [b'0' + (i / 10) as u8, b'0' + (i % 10) as u8];
        i += 1;
    }
    pairs
};

/// Appends an unsigned integer in decimal.
pub(crate) fn write_u64(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = value;
    while rest >= 100 {
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[(rest % 100) as usize]);
        rest /= 100;
    }
    if rest >= 10 {
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[rest as usize]);
    } else {
        start -= 1;
        digits[start] = b'0' + rest as u8;
    }
    out.extend_from_slice(&digits[start..]);
}
