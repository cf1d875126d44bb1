//! Many rows as one run of bytes.
//!
//! A batch is row-major: each value is a tag byte and its payload, with no offsets and no padding, so that a shard
//! writes it in one pass from SQLite's rows and a router turns it into DataRow messages in one pass. In come values
//! in storage form; out go borrowed values. A batch that came from a peer is checked whole ([`RowBatch::decode`])
//! before anyone reads it, so reading can't fail.
//!
//! Tags: 00 NULL; 01 to 09 an integer of 0 to 8 bytes, little-endian, sign-extended; 0a a double, 8 bytes
//! little-endian; 10 text and 11 a blob, each a varint length and the bytes.

use crate::value::ValueRef;
use bytes::Bytes;

const NULL: u8 = 0x00;
const INT: u8 = 0x01;
const REAL: u8 = 0x0a;
const TEXT: u8 = 0x10;
const BLOB: u8 = 0x11;

/// Rows of equal width, immutable and cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowBatch {
    columns: u16,
    rows: u32,
    data: Bytes,
}

/// Bytes that aren't a row batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed row batch: {0}")]
pub struct DecodeError(pub &'static str);

/// Collects rows into a batch, a value at a time.
#[derive(Debug, Default)]
pub struct RowBatchBuilder {
    columns: u16,
    values: u64,
    data: Vec<u8>,
}

impl RowBatchBuilder {
    /// A builder for rows of this width.
    pub fn new(columns: u16) -> Self {
        Self { columns, values: 0, data: Vec::new() }
    }

    /// Adds the next value, left to right, row after row.
    pub fn push(&mut self, value: ValueRef<'_>) {
        self.values += 1;
        match value {
            ValueRef::Null => self.data.push(NULL),
            ValueRef::Int(v) => {
                let bytes = v.to_le_bytes();
                let len = int_len(v);
                self.data.push(INT + len as u8);
                self.data.extend_from_slice(&bytes[..len]);
            }
            ValueRef::Real(v) => {
                self.data.push(REAL);
                self.data.extend_from_slice(&v.to_le_bytes());
            }
            ValueRef::Text(v) => self.push_bytes(TEXT, v.as_bytes()),
            ValueRef::Blob(v) => self.push_bytes(BLOB, v),
        }
    }

    /// Adds a whole row. The row must be as wide as the batch.
    pub fn push_row<'a>(&mut self, row: impl IntoIterator<Item = ValueRef<'a>>) {
        let before = self.values;
        for value in row {
            self.push(value);
        }
        debug_assert_eq!(self.values - before, u64::from(self.columns), "a row of another width");
        if self.columns == 0 {
            self.values += 1;
        }
    }

    fn push_bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.data.push(tag);
        let mut len = bytes.len() as u64;
        while len >= 0x80 {
            self.data.push(len as u8 | 0x80);
            len >>= 7;
        }
        self.data.push(len as u8);
        self.data.extend_from_slice(bytes);
    }

    /// Bytes so far, to decide when a batch is big enough.
    pub fn byte_len(&self) -> usize {
        self.data.len()
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        // A batch of no columns counts its rows in `values`.
        (self.values / u64::from(self.columns.max(1))) as u32
    }

    /// The batch. The last row must be whole.
    pub fn finish(self) -> RowBatch {
        debug_assert_eq!(self.values % u64::from(self.columns.max(1)), 0, "an unfinished row");
        RowBatch { columns: self.columns, rows: self.rows(), data: self.data.into() }
    }
}

/// Bytes that an integer takes: the fewest that sign-extend to it.
fn int_len(v: i64) -> usize {
    if v == 0 {
        return 0;
    }
    let significant = 65 - (if v < 0 { !v } else { v }).leading_zeros() as usize;
    significant.div_ceil(8)
}

impl RowBatch {
    /// Checks bytes that a peer sent: that they hold exactly `rows` rows of `columns` values, and that texts are UTF-8.
    pub fn decode(columns: u16, rows: u32, data: Bytes) -> Result<Self, DecodeError> {
        let mut rest = data.as_ref();
        if columns == 0 {
            return if rest.is_empty() {
                Ok(Self { columns, rows, data })
            } else {
                Err(DecodeError("values in a batch of no columns"))
            };
        }
        for _ in 0..u64::from(rows) * u64::from(columns) {
            let (value, tail) = split_value(rest).ok_or(DecodeError("cut short or an unknown tag"))?;
            if let Raw::Text(bytes) = value {
                std::str::from_utf8(bytes).map_err(|_| DecodeError("text that is not UTF-8"))?;
            }
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(DecodeError("bytes after the last row"));
        }
        Ok(Self { columns, rows, data })
    }

    /// Columns of each row.
    pub fn columns(&self) -> u16 {
        self.columns
    }

    /// Rows in the batch.
    pub fn len(&self) -> usize {
        self.rows as usize
    }

    /// Whether the batch has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The encoded rows.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The rows, in order.
    pub fn rows(&self) -> Rows<'_> {
        Rows { columns: self.columns, left: self.rows, rest: &self.data }
    }
}

/// Iterates over a batch's rows.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    columns: u16,
    left: u32,
    rest: &'a [u8],
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        self.left = self.left.checked_sub(1)?;
        let row = Row { columns: self.columns, rest: self.rest };
        for _ in 0..self.columns {
            self.rest = split_value(self.rest).expect("checked when the batch was made").1;
        }
        Some(row)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

/// One row: an iterator over its values, and cheap to clone.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    columns: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Row<'a> {
    type Item = ValueRef<'a>;

    fn next(&mut self) -> Option<ValueRef<'a>> {
        self.columns = self.columns.checked_sub(1)?;
        let (value, rest) = split_value(self.rest).expect("checked when the batch was made");
        self.rest = rest;
        Some(match value {
            Raw::Text(bytes) => {
                ValueRef::Text(std::str::from_utf8(bytes).expect("checked when the batch was made"))
            }
            Raw::Value(value) => value,
        })
    }
}

enum Raw<'a> {
    Text(&'a [u8]),
    Value(ValueRef<'a>),
}

fn split_value(data: &[u8]) -> Option<(Raw<'_>, &[u8])> {
    let (&tag, rest) = data.split_first()?;
    match tag {
        NULL => Some((Raw::Value(ValueRef::Null), rest)),
        INT..=0x09 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(tag - INT))?;
            let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = if negative { [0xff; 8] } else { [0; 8] };
            wide[..bytes.len()].copy_from_slice(bytes);
            Some((Raw::Value(ValueRef::Int(i64::from_le_bytes(wide))), rest))
        }
        REAL => {
            let (bytes, rest) = rest.split_first_chunk::<8>()?;
            Some((Raw::Value(ValueRef::Real(f64::from_le_bytes(*bytes))), rest))
        }
        TEXT | BLOB => {
            let (len, rest) = split_varint(rest)?;
            let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            let value = if tag == TEXT { Raw::Text(bytes) } else { Raw::Value(ValueRef::Blob(bytes)) };
            Some((value, rest))
        }
        _ => None,
    }
}

fn split_varint(mut data: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, data));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn values() -> Vec<Value> {
        let ints = [0, 1, -1, 127, 128, -128, -129, 32767, 32768, i64::from(i32::MIN), i64::MAX, i64::MIN];
        let mut values: Vec<_> = ints.into_iter().map(Value::Int).collect();
        values.extend([
            Value::Null,
            Value::Real(-1.5),
            Value::Real(f64::INFINITY),
            Value::Text("é".repeat(100)),
        ]);
        values.extend([Value::Text(String::new()), Value::Blob(vec![0, 255]), Value::Blob(vec![7; 20_000])]);
        values
    }

    fn batch() -> RowBatch {
        let mut builder = RowBatchBuilder::new(2);
        for value in &values() {
            builder.push_row([ValueRef::Int(1), value.as_ref()]);
        }
        builder.finish()
    }

    #[test]
    fn every_value_comes_back() {
        let batch = batch();
        let read: Vec<_> = batch.rows().map(|mut row| row.nth(1).unwrap().to_owned()).collect();
        assert_eq!(read, values());
        let decoded = RowBatch::decode(2, batch.len() as u32, batch.data().clone()).unwrap();
        assert_eq!(decoded, batch);
    }

    #[test]
    fn small_integers_are_small() {
        let mut builder = RowBatchBuilder::new(1);
        builder.push(ValueRef::Int(0));
        builder.push(ValueRef::Int(-128));
        builder.push(ValueRef::Int(128));
        assert_eq!(builder.byte_len(), 1 + 2 + 3);
    }

    #[test]
    fn damage_is_found_at_any_byte() {
        let batch = batch();
        let rows = batch.len() as u32;
        for cut in 0..batch.data().len() {
            assert!(RowBatch::decode(2, rows, batch.data().slice(..cut)).is_err());
        }
        assert!(RowBatch::decode(2, rows - 1, batch.data().clone()).is_err());
        assert!(RowBatch::decode(1, 1, Bytes::from_static(&[0x10, 1, 0xff])).is_err());
        assert!(
            RowBatch::decode(1, 1, Bytes::from_static(&[0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])).is_err()
        );
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let mut builder = RowBatchBuilder::new(0);
        builder.push_row([]);
        builder.push_row([]);
        let batch = builder.finish();
        assert_eq!((batch.len(), batch.rows().count()), (2, 2));
    }
}
