//! The types of columns.

use super::command::TypeName;
use super::names::at;
use dialect::Type;
use dialect::types::Typed;
use proto::{SqlState, WireError};
use sqlparser::ast::{CharacterLength, DataType, ExactNumberInfo, ObjectNamePart, TimezoneInfo};

/// A column's type, and whether it is one of the SERIAL family.
pub(super) struct ColumnType {
    pub ty: Typed,
    pub serial: bool,
}

/// The type that a column is declared with.
pub(super) fn column(name: &TypeName) -> Result<ColumnType, WireError> {
    if let Some(ty) = serial(&name.data_type) {
        return Ok(ColumnType { ty: Typed::plain(ty), serial: true });
    }
    let ty = plain(&name.data_type).map_err(|error| at(error, name.position))?;
    match ty.ty {
        Type::Bool
        | Type::Int2
        | Type::Int4
        | Type::Int8
        | Type::Float4
        | Type::Float8
        | Type::Numeric
        | Type::Text
        | Type::Varchar
        | Type::Bpchar
        | Type::Bytea
        | Type::Date
        | Type::Timestamp
        | Type::Timestamptz
        | Type::Uuid => Ok(ColumnType { ty, serial: false }),
        Type::Char | Type::Name | Type::Oid | Type::Regclass | Type::Array(_) | Type::Unknown => {
            let what = format!("a column of type {}", name.data_type.to_string().to_lowercase());
            Err(at(WireError::unsupported(what), name.position))
        }
    }
}

fn serial(data_type: &DataType) -> Option<Type> {
    let DataType::Custom(name, modifiers) = data_type else { return None };
    let [ObjectNamePart::Identifier(name)] = name.0.as_slice() else { return None };
    if !modifiers.is_empty() {
        return None;
    }
    match name.value.as_str() {
        "serial" | "serial4" => Some(Type::Int4),
        "bigserial" | "serial8" => Some(Type::Int8),
        "smallserial" | "serial2" => Some(Type::Int2),
        _ => None,
    }
}

fn invalid(message: &str) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn length(length: Option<&CharacterLength>, default: i32, name: &str) -> Result<i32, WireError> {
    match length {
        None => Ok(default),
        Some(CharacterLength::IntegerLength { length, unit: None }) => match i32::try_from(*length) {
            Ok(0) => Err(invalid(&format!("length for type {name} must be at least 1"))),
            Ok(length) if length <= 10_485_760 => Ok(length + 4),
            _ => Err(invalid(&format!("length for type {name} cannot exceed 10485760"))),
        },
        Some(_) => Err(WireError::unsupported("this length of a character type")),
    }
}

/// The type that a name means.
pub(super) fn plain(data_type: &DataType) -> Result<Typed, WireError> {
    let plain = |ty| Ok(Typed::plain(ty));
    match data_type {
        DataType::Bool | DataType::Boolean => plain(Type::Bool),
        DataType::Int2(None) | DataType::SmallInt(None) => plain(Type::Int2),
        DataType::Int(None) | DataType::Int4(None) | DataType::Integer(None) => plain(Type::Int4),
        DataType::Int8(None) | DataType::BigInt(None) => plain(Type::Int8),
        DataType::Real | DataType::Float4 => plain(Type::Float4),
        DataType::DoublePrecision | DataType::Float8 | DataType::Float(ExactNumberInfo::None) => {
            plain(Type::Float8)
        }
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => match info {
            ExactNumberInfo::None => plain(Type::Numeric),
            ExactNumberInfo::Precision(precision) => {
                Ok(Typed { ty: Type::Numeric, modifier: ((*precision as i32) << 16) + 4 })
            }
            ExactNumberInfo::PrecisionAndScale(precision, scale) => {
                let modifier = ((*precision as i32) << 16 | (*scale as i32 & 0x7ff)) + 4;
                Ok(Typed { ty: Type::Numeric, modifier })
            }
        },
        DataType::Text => plain(Type::Text),
        DataType::Varchar(n) | DataType::CharacterVarying(n) => {
            Ok(Typed { ty: Type::Varchar, modifier: length(n.as_ref(), -1, "varchar")? })
        }
        DataType::Char(n) | DataType::Character(n) => {
            Ok(Typed { ty: Type::Bpchar, modifier: length(n.as_ref(), 5, "char")? })
        }
        DataType::Bytea => plain(Type::Bytea),
        DataType::Date => plain(Type::Date),
        DataType::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            plain(Type::Timestamp)
        }
        DataType::Timestamp(None, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => plain(Type::Timestamptz),
        DataType::Uuid => plain(Type::Uuid),
        other => Err(WireError::unsupported(format!("type {}", other.to_string().to_lowercase()))),
    }
}
