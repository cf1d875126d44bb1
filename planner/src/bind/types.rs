//! Type names.
//!
//! In comes a type as the syntax has it, out goes one of Shoal's with its modifier. Anything else is 42704 or 0A000.

use super::{error, syntax};
use dialect::Type;
use dialect::types::{Element, Typed};
use proto::{SqlState, WireError};
use sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, ObjectName, ObjectNamePart, TimezoneInfo,
};

/// A name's schema, if it is written, and its last part.
pub(crate) fn plain_name(name: &ObjectName) -> Result<(Option<&str>, &str), WireError> {
    let ObjectName(parts) = name;
    match parts.as_slice() {
        [ObjectNamePart::Identifier(name)] => Ok((None, &name.value)),
        [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(name)] => {
            Ok((Some(&schema.value), &name.value))
        }
        [
            ObjectNamePart::Identifier(_),
            ObjectNamePart::Identifier(schema),
            ObjectNamePart::Identifier(name),
        ] => Ok((Some(&schema.value), &name.value)),
        _ => Err(syntax(format!("improper qualified name (too many dotted names): {name}"))),
    }
}

fn char_length(length: Option<&CharacterLength>, default: i32) -> Result<i32, WireError> {
    match length {
        None => Ok(default),
        Some(CharacterLength::IntegerLength { length, unit: None }) => match i32::try_from(*length) {
            Ok(0) => {
                Err(error(SqlState::INVALID_PARAMETER_VALUE, "length for type varchar must be at least 1"))
            }
            Ok(length) if length <= 10_485_760 => Ok(length + 4),
            _ => Err(error(
                SqlState::INVALID_PARAMETER_VALUE,
                "length for type varchar cannot exceed 10485760",
            )),
        },
        Some(CharacterLength::IntegerLength { length: _, unit: Some(_) }) | Some(CharacterLength::Max) => {
            Err(WireError::unsupported("this length of a character type"))
        }
    }
}

fn numeric(info: &ExactNumberInfo) -> Result<Typed, WireError> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => return Ok(Typed::plain(Type::Numeric)),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    if !(1..=1000).contains(&precision) {
        let message = format!("NUMERIC precision {precision} must be between 1 and 1000");
        return Err(error(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    if !(-1000..=1000).contains(&scale) {
        let message = format!("NUMERIC scale {scale} must be between -1000 and 1000");
        return Err(error(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    let modifier = ((precision as i32) << 16 | (scale as i32 & 0x7ff)) + 4;
    Ok(Typed { ty: Type::Numeric, modifier })
}

fn timestamp(ty: Type, precision: Option<u64>) -> Result<Typed, WireError> {
    match precision {
        None => Ok(Typed::plain(ty)),
        // PostgreSQL reduces what is more, with a warning.
        Some(precision) => Ok(Typed { ty, modifier: precision.min(6) as i32 }),
    }
}

fn missing(name: &str) -> WireError {
    error(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"))
}

/// A name that sqlparser keeps as a name.
fn named(name: &str, modifiers: &[String]) -> Result<Typed, WireError> {
    let number =
        |text: &String| text.parse::<u64>().map_err(|_| syntax("type modifiers must be simple constants"));
    let ty = match name {
        "bpchar" => {
            return match modifiers {
                [] => Ok(Typed::plain(Type::Bpchar)),
                [length] => {
                    let length = CharacterLength::IntegerLength { length: number(length)?, unit: None };
                    Ok(Typed { ty: Type::Bpchar, modifier: char_length(Some(&length), -1)? })
                }
                _ => Err(error(SqlState::INVALID_PARAMETER_VALUE, "invalid type modifier")),
            };
        }
        "timestamptz" => {
            let precision = modifiers.first().map(number).transpose()?;
            return timestamp(Type::Timestamptz, precision);
        }
        "serial" | "bigserial" | "smallserial" | "serial4" | "serial8" | "serial2" => {
            return Err(missing(name));
        }
        "name" => Type::Name,
        "char" => Type::Char,
        "oid" => Type::Oid,
        "regclass" => Type::Regclass,
        "unknown" => Type::Unknown,
        _ => {
            let found = Type::ALL.iter().find(|ty| type_keyword(**ty) == Some(name));
            match found {
                Some(ty) => *ty,
                None => {
                    const ABSENT: &[&str] = &[
                        "json",
                        "jsonb",
                        "interval",
                        "time",
                        "timetz",
                        "money",
                        "xml",
                        "inet",
                        "cidr",
                        "macaddr",
                        "bit",
                        "varbit",
                        "point",
                        "line",
                        "box",
                        "path",
                        "polygon",
                        "circle",
                        "tsvector",
                        "tsquery",
                        "int4range",
                        "int8range",
                        "numrange",
                        "tsrange",
                        "tstzrange",
                        "daterange",
                        "record",
                        "void",
                        "regproc",
                        "regprocedure",
                        "regtype",
                        "regnamespace",
                        "regrole",
                        "regoper",
                        "regoperator",
                        "pg_lsn",
                        "xid",
                        "cid",
                        "tid",
                        "anyarray",
                    ];
                    return Err(if ABSENT.contains(&name) {
                        WireError::unsupported(format!("type {name}"))
                    } else {
                        missing(name)
                    });
                }
            }
        }
    };
    if modifiers.is_empty() {
        Ok(Typed::plain(ty))
    } else {
        Err(syntax(format!("type modifier is not allowed for type \"{name}\"")))
    }
}

/// `pg_type.typname` of a type; arrays have none here.
pub(crate) fn type_keyword(ty: Type) -> Option<&'static str> {
    Some(match ty {
        Type::Bool => "bool",
        Type::Int2 => "int2",
        Type::Int4 => "int4",
        Type::Int8 => "int8",
        Type::Float4 => "float4",
        Type::Float8 => "float8",
        Type::Numeric => "numeric",
        Type::Text => "text",
        Type::Varchar => "varchar",
        Type::Bpchar => "bpchar",
        Type::Char => "char",
        Type::Name => "name",
        Type::Bytea => "bytea",
        Type::Date => "date",
        Type::Timestamp => "timestamp",
        Type::Timestamptz => "timestamptz",
        Type::Uuid => "uuid",
        Type::Oid => "oid",
        Type::Regclass => "regclass",
        Type::Unknown => "unknown",
        Type::Array(_) => return None,
    })
}

/// The array of an element type, if Shoal has it.
pub(crate) fn array_of(ty: Type) -> Option<Type> {
    Some(Type::Array(match ty {
        Type::Bool => Element::Bool,
        Type::Int2 => Element::Int2,
        Type::Int4 => Element::Int4,
        Type::Int8 => Element::Int8,
        Type::Float8 => Element::Float8,
        Type::Numeric => Element::Numeric,
        Type::Text => Element::Text,
        Type::Varchar => Element::Varchar,
        Type::Name => Element::Name,
        Type::Char => Element::Char,
        Type::Oid => Element::Oid,
        Type::Uuid => Element::Uuid,
        Type::Float4
        | Type::Bpchar
        | Type::Bytea
        | Type::Date
        | Type::Timestamp
        | Type::Timestamptz
        | Type::Regclass
        | Type::Array(_)
        | Type::Unknown => return None,
    }))
}

/// The element type of an array.
pub(crate) fn element_of(ty: Type) -> Option<Type> {
    let Type::Array(element) = ty else { return None };
    Some(match element {
        Element::Bool => Type::Bool,
        Element::Int2 => Type::Int2,
        Element::Int4 => Type::Int4,
        Element::Int8 => Type::Int8,
        Element::Float8 => Type::Float8,
        Element::Numeric => Type::Numeric,
        Element::Text => Type::Text,
        Element::Varchar => Type::Varchar,
        Element::Name => Type::Name,
        Element::Char => Type::Char,
        Element::Oid => Type::Oid,
        Element::Uuid => Type::Uuid,
    })
}

/// The type that a type's name means.
pub(crate) fn type_of(data_type: &DataType) -> Result<Typed, WireError> {
    let plain = |ty| Ok(Typed::plain(ty));
    match data_type {
        DataType::Bool | DataType::Boolean => plain(Type::Bool),
        DataType::Int2(None) | DataType::SmallInt(None) => plain(Type::Int2),
        DataType::Int(None) | DataType::Int4(None) | DataType::Integer(None) => plain(Type::Int4),
        DataType::Int8(None) | DataType::BigInt(None) => plain(Type::Int8),
        DataType::Real | DataType::Float4 => plain(Type::Float4),
        DataType::DoublePrecision | DataType::Float8 => plain(Type::Float8),
        DataType::Float(ExactNumberInfo::None) => plain(Type::Float8),
        DataType::Float(ExactNumberInfo::Precision(precision)) => match precision {
            0 => Err(error(
                SqlState::INVALID_PARAMETER_VALUE,
                "precision for type float must be at least 1 bit",
            )),
            1..=24 => plain(Type::Float4),
            25..=53 => plain(Type::Float8),
            _ => Err(error(
                SqlState::INVALID_PARAMETER_VALUE,
                "precision for type float must be less than 54 bits",
            )),
        },
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info),
        DataType::Text => plain(Type::Text),
        DataType::Varchar(length) | DataType::CharacterVarying(length) | DataType::CharVarying(length) => {
            Ok(Typed { ty: Type::Varchar, modifier: char_length(length.as_ref(), -1)? })
        }
        DataType::Char(length) | DataType::Character(length) => {
            Ok(Typed { ty: Type::Bpchar, modifier: char_length(length.as_ref(), 5)? })
        }
        DataType::Bytea => plain(Type::Bytea),
        DataType::Date => plain(Type::Date),
        DataType::Timestamp(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            timestamp(Type::Timestamp, *precision)
        }
        DataType::Timestamp(precision, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
            timestamp(Type::Timestamptz, *precision)
        }
        DataType::Uuid => plain(Type::Uuid),
        DataType::Regclass => plain(Type::Regclass),
        DataType::Custom(name, modifiers) => {
            let (schema, name) = plain_name(name)?;
            match schema {
                None | Some("pg_catalog") => named(name, modifiers),
                Some(schema) => Err(missing(&format!("{schema}.{name}"))),
            }
        }
        DataType::Array(
            ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::Qualified(element, _),
        ) => {
            let element = type_of(element)?.ty;
            let array = array_of(element)
                .ok_or_else(|| WireError::unsupported(format!("type {data_type}").to_lowercase()))?;
            plain(array)
        }
        other => Err(WireError::unsupported(format!("type {}", other.to_string().to_lowercase()))),
    }
}

/// Whether values of the two types can be compared as they are stored: an `int2` with an `int8`, but no `date` with a
/// `timestamp`, though both are integers.
pub(crate) fn one_storage(a: Type, b: Type) -> bool {
    let integers = |ty| matches!(ty, Type::Int2 | Type::Int4 | Type::Int8);
    let floats = |ty| matches!(ty, Type::Float4 | Type::Float8);
    let strings = |ty| matches!(ty, Type::Text | Type::Varchar | Type::Name);
    a == b || integers(a) && integers(b) || floats(a) && floats(b) || strings(a) && strings(b)
}

/// What operands of `=` have to become where they are compared as they are stored; `None` if they can stay.
pub(crate) fn common_storage(a: Type, b: Type) -> Result<Option<Type>, WireError> {
    if one_storage(a, b) { Ok(None) } else { dialect::functions::common_type("=", &[a, b]).map(Some) }
}
