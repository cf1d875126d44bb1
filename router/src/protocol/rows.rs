//! Rows, from a batch straight into DataRow messages.
//!
//! In come batches in storage form with the types of their columns, out go bytes at the end of the session's buffer:
//! no row is built in between, for this is what every query pays for each of its rows.

use super::frontend::Format;
use dialect::io::{self, OutputSettings};
use dialect::types::{Type, Typed};
use proto::rows::Row;
use proto::{ValueRef, WireError};

/// How a column of a result is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColumnFormat {
    /// Its type.
    pub ty: Typed,
    /// Text or binary.
    pub format: Format,
}

/// `typlen` of a type: its bytes in PostgreSQL, -1 for a variable number.
pub fn type_len(ty: Type) -> i16 {
    match ty {
        Type::Bool | Type::Char => 1,
        Type::Int2 => 2,
        Type::Int4 | Type::Float4 | Type::Date | Type::Oid | Type::Regclass => 4,
        Type::Int8 | Type::Float8 | Type::Timestamp | Type::Timestamptz => 8,
        Type::Uuid => 16,
        Type::Name => 64,
        Type::Unknown => -2,
        _ => -1,
    }
}

/// Appends one DataRow of the row's first columns, as many as have a format. On an error nothing is appended.
pub fn data_row(
    out: &mut Vec<u8>,
    row: Row<'_>,
    columns: &[ColumnFormat],
    settings: &OutputSettings,
) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(b"D\0\0\0\0");
    out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
    let mut values = row;
    for column in columns {
        let value = values.next().unwrap_or(ValueRef::Null);
        if let Err(error) = field(out, value, *column, settings) {
            out.truncate(start);
            return Err(error);
        }
    }
    let len = (out.len() - start - 1) as u32;
    out[start + 1..start + 5].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

fn field(
    out: &mut Vec<u8>,
    value: ValueRef<'_>,
    column: ColumnFormat,
    settings: &OutputSettings,
) -> Result<(), WireError> {
    if value.is_null() {
        out.extend_from_slice(&(-1i32).to_be_bytes());
        return Ok(());
    }
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match column.format {
        Format::Text => io::output_text(column.ty, value, settings, out)?,
        Format::Binary => io::output_binary(column.ty, value, out)?,
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}
