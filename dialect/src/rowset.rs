//! Rows as one value: what one step of a statement found, as a parameter of the next.
//!
//! In come rows in storage form; out goes one blob, the SQL that reads a cell of it, and the rows again. A blob is the
//! number of columns (two bytes), that of rows (four), and the rows as they travel. SQLite sees them by
//! `json_each(pg_rows_json(blob))`, a JSON array for each row. Nothing here knows what the rows are for.

use crate::physical::Storage;
use crate::types::Type;
use bytes::Bytes;
use proto::{RowBatch, SqlState, Value, WireError};
use std::fmt::Write;

/// The rows as one value.
pub fn pack(rows: &RowBatch) -> Value {
    let mut bytes = Vec::with_capacity(6 + rows.data().len());
    bytes.extend_from_slice(&rows.columns().to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(rows.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(rows.data());
    Value::Blob(bytes)
}

/// What [`pack`] was given.
pub fn unpack(packed: &[u8]) -> Result<RowBatch, WireError> {
    let damaged = || WireError::new(SqlState::DATA_CORRUPTED, "rows that were packed are damaged");
    let (columns, rest) = packed.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (rows, data) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let data = Bytes::copy_from_slice(data);
    RowBatch::decode(u16::from_le_bytes(*columns), u32::from_le_bytes(*rows), data).map_err(|_| damaged())
}

/// The rows as JSON: integers as numbers, text as it is, floats by their shortest digits, bytes in hex.
pub fn json(rows: &RowBatch) -> String {
    use proto::ValueRef::{Blob, Int, Null, Real, Text};
    let mut json = String::from("[");
    for (number, row) in rows.rows().enumerate() {
        json.push_str(if number > 0 { ",[" } else { "[" });
        for (place, value) in row.enumerate() {
            if place > 0 {
                json.push(',');
            }
            // Writing to a string can't fail.
            let _ = match value {
                Null => write!(json, "null"),
                Int(value) => write!(json, "{value}"),
                Real(value) => write!(json, "\"{value:?}\""),
                Text(value) => write_string(&mut json, value),
                Blob(value) => {
                    json.push('"');
                    value.iter().for_each(|byte| {
                        let _ = write!(json, "{byte:02x}");
                    });
                    write!(json, "\"")
                }
            };
        }
        json.push(']');
    }
    json.push(']');
    json
}

fn write_string(json: &mut String, text: &str) -> std::fmt::Result {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                json.push('\\');
                json.push(c);
            }
            c if u32::from(c) < 0x20 => write!(json, "\\u{:04x}", u32::from(c))?,
            c => json.push(c),
        }
    }
    json.push('"');
    Ok(())
}

/// The table of rows that a parameter has packed: columns `a0`, `a1`, .. of these types.
pub fn table_sql(parameter: &str, types: &[Type]) -> String {
    let cells: Vec<_> =
        types.iter().enumerate().map(|(place, ty)| format!("{} AS a{place}", cell_sql(*ty, place))).collect();
    let cells = if cells.is_empty() { "NULL AS a0".to_owned() } else { cells.join(", ") };
    format!("SELECT {cells} FROM json_each(pg_rows_json({parameter})) AS v")
}

fn cell_sql(ty: Type, place: usize) -> String {
    let cell = format!("v.value ->> {place}");
    match Storage::of(ty) {
        Storage::Integer | Storage::Text => format!("({cell})"),
        Storage::Real => format!("pg_input({}, {cell})", Type::Float8.oid()),
        Storage::Blob => format!("unhex({cell})"),
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;
    use proto::{RowBatchBuilder, ValueRef};

    #[test]
    fn packed_rows_are_what_they_were_to_rust_and_to_sqlite() {
        let types = [Type::Int8, Type::Text, Type::Float8, Type::Bytea];
        let rows = [
            [
                ValueRef::Int(i64::MIN),
                ValueRef::Text("a\"b\\\n\u{1}é"),
                ValueRef::Real(0.1),
                ValueRef::Blob(&[0, 255]),
            ],
            [ValueRef::Null, ValueRef::Text(""), ValueRef::Real(f64::INFINITY), ValueRef::Blob(&[])],
            [ValueRef::Int(i64::MAX), ValueRef::Null, ValueRef::Null, ValueRef::Null],
        ];
        let mut batch = RowBatchBuilder::new(4);
        rows.iter().for_each(|row| batch.push_row(*row));
        let packed = pack(&batch.finish());
        let Value::Blob(bytes) = &packed else { panic!() };
        let again = unpack(bytes).unwrap();
        assert!(again.rows().zip(&rows).all(|(row, was)| row.eq(*was)));
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        crate::sqlite::register(&connection).unwrap();
        let mut statement = connection.prepare(&table_sql("?1", &types)).unwrap();
        let mut found = statement.query([crate::sqlite::parameter(&packed)]).unwrap();
        for row in &rows {
            let here = found.next().unwrap().unwrap();
            for (place, value) in row.iter().enumerate() {
                let cell = crate::sqlite::value_ref(here.get_ref(place).unwrap()).unwrap();
                assert_eq!(cell, *value, "column {place}");
            }
        }
        assert!(found.next().unwrap().is_none());
        assert!(unpack(&bytes[..5]).is_err());
    }
}
