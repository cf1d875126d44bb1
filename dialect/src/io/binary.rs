//! Binary forms: PostgreSQL's `*_send` and `*_recv`.

use super::{array, cut_name, fit, invalid_utf8, mismatch, without_nul};
use crate::datetime;
use crate::float;
use crate::numeric::Numeric;
use crate::types::{Type, Typed};
use proto::{SqlState, Value, ValueRef, WireError};

fn wrong_length(bytes: &[u8], wanted: usize) -> WireError {
    if bytes.len() < wanted {
        WireError::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message")
    } else {
        WireError::new(SqlState::INVALID_BINARY_REPRESENTATION, "incorrect binary data format")
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| wrong_length(bytes, N))
}

/// A text's bytes, which must be UTF-8 without a NUL.
fn utf8(bytes: &[u8]) -> Result<&str, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let rest = &bytes[error.valid_up_to()..];
        // PostgreSQL shows as many bytes as the first one announces.
        let announced = match rest.first() {
            Some(0xc0..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf7) => 4,
            _ => 1,
        };
        invalid_utf8(&rest[..rest.len().min(announced)])
    })?;
    without_nul(text)
}

/// Reads the binary form, modifier included.
pub fn input_binary(ty: Typed, bytes: &[u8]) -> Result<Value, WireError> {
    let modifier = ty.modifier;
    Ok(match ty.ty {
        Type::Bool => Value::Int((fixed::<1>(bytes)? != [0]).into()),
        Type::Int2 => Value::Int(i16::from_be_bytes(fixed(bytes)?).into()),
        Type::Int4 => Value::Int(i32::from_be_bytes(fixed(bytes)?).into()),
        Type::Int8 => Value::Int(i64::from_be_bytes(fixed(bytes)?)),
        Type::Oid | Type::Regclass => Value::Int(u32::from_be_bytes(fixed(bytes)?).into()),
        Type::Float4 => {
            let value = f32::from_be_bytes(fixed(bytes)?);
            Value::Real(if value.is_nan() { return Err(float::refuse_nan()) } else { value.into() })
        }
        Type::Float8 => {
            let value = f64::from_be_bytes(fixed(bytes)?);
            Value::Real(if value.is_nan() { return Err(float::refuse_nan()) } else { value })
        }
        Type::Numeric => Value::Blob(Numeric::read_binary(bytes)?.apply_modifier(modifier)?.encode()),
        Type::Text | Type::Unknown => Value::Text(utf8(bytes)?.to_owned()),
        Type::Varchar => Value::Text(fit(utf8(bytes)?, modifier, "character varying")?.to_owned()),
        Type::Bpchar => {
            Value::Text(fit(utf8(bytes)?, modifier, "character")?.trim_end_matches(' ').to_owned())
        }
        Type::Char => {
            let [byte] = fixed(bytes)?;
            if !byte.is_ascii() {
                return Err(WireError::unsupported("a value of type \"char\" beyond ASCII"));
            }
            let character = char::from(byte);
            Value::Text(if byte == 0 { String::new() } else { character.into() })
        }
        Type::Name => Value::Text(cut_name(utf8(bytes)?).to_owned()),
        Type::Bytea => Value::Blob(bytes.to_vec()),
        Type::Date => {
            let date = i32::from_be_bytes(fixed(bytes)?);
            if !datetime::is_valid_date(date) {
                return Err(WireError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range"));
            }
            Value::Int(date.into())
        }
        Type::Timestamp | Type::Timestamptz => {
            let timestamp = i64::from_be_bytes(fixed(bytes)?);
            if !datetime::is_valid_timestamp(timestamp) {
                return Err(WireError::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"));
            }
            Value::Int(datetime::round_timestamp(timestamp, modifier))
        }
        Type::Uuid => Value::Blob(fixed::<16>(bytes)?.to_vec()),
        Type::Array(element) => Value::Text(array::read_binary(element, modifier, bytes)?),
    })
}

/// Appends the binary form of a value in storage form, which must not be NULL. A value of another storage class than
/// the type's is XX001.
pub fn output_binary(ty: Typed, value: ValueRef<'_>, out: &mut Vec<u8>) -> Result<(), WireError> {
    let refuse = || mismatch(ty.ty, value);
    match (ty.ty, value) {
        (Type::Bool, ValueRef::Int(v)) => out.push((v != 0).into()),
        (Type::Int2, ValueRef::Int(v)) => {
            out.extend_from_slice(&i16::try_from(v).map_err(|_| refuse())?.to_be_bytes());
        }
        (Type::Int4 | Type::Date, ValueRef::Int(v)) => {
            out.extend_from_slice(&i32::try_from(v).map_err(|_| refuse())?.to_be_bytes());
        }
        (Type::Int8 | Type::Timestamp | Type::Timestamptz, ValueRef::Int(v)) => {
            out.extend_from_slice(&v.to_be_bytes());
        }
        (Type::Oid | Type::Regclass, ValueRef::Int(v)) => {
            out.extend_from_slice(&u32::try_from(v).map_err(|_| refuse())?.to_be_bytes());
        }
        (Type::Float4, ValueRef::Real(v)) => out.extend_from_slice(&(v as f32).to_be_bytes()),
        (Type::Float8, ValueRef::Real(v)) => out.extend_from_slice(&v.to_be_bytes()),
        (Type::Numeric, ValueRef::Blob(v)) => Numeric::decode(v)?.write_binary(out),
        (Type::Char, ValueRef::Text(v)) => out.push(v.bytes().next().unwrap_or(0)),
        (Type::Text | Type::Varchar | Type::Name | Type::Unknown | Type::Bpchar, ValueRef::Text(_)) => {
            super::output_text(ty, value, &super::OutputSettings::default(), out)?;
        }
        (Type::Bytea, ValueRef::Blob(v)) => out.extend_from_slice(v),
        (Type::Uuid, ValueRef::Blob(v)) if v.len() == 16 => out.extend_from_slice(v),
        (Type::Array(element), ValueRef::Text(v)) => array::write_binary(element, v, out)?,
        _ => return Err(refuse()),
    }
    Ok(())
}
