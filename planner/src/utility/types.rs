//! The types of columns.

use super::command::TypeName;
use super::names::at;
use crate::bind::types::type_of;
use dialect::Type;
use dialect::types::Typed;
use proto::WireError;
use sqlparser::ast::{DataType, ObjectNamePart};

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
    let ty = type_of(&name.data_type).map_err(|error| at(error, name.position))?;
    match ty.ty {
        Type::Bpchar if ty.modifier < 0 => {
            let unsized_character = WireError::unsupported("a column of type bpchar without a length")
                .with_hint("Blanks at the end would be lost: give a length, or use text.");
            Err(at(unsized_character, name.position))
        }
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
