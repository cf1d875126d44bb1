//! The form of a changeset, as SQLite's session extension documents it: written, and read.
//!
//! For each table comes `T`, the number of columns, a byte for each that is not 0 if it belongs to the primary key, and the
//! name, ended by a zero. Then for each changed row an operation, a flag that Shoal doesn't use, and one record or
//! two: what the row was, what it is. A record has a value for each column: a type, and what the type needs. Bytes come in and go out; no database is
//! needed for it.

use super::rows::RowOp;
use proto::Value;
use rusqlite::ffi;
use rusqlite::types::{Type, ValueRef};

const UNDEFINED: u8 = 0;
const INTEGER: u8 = 1;
const FLOAT: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const NULL: u8 = 5;

/// Adds a value to a record.
pub(super) fn put(record: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => record.push(NULL),
        ValueRef::Integer(int) => put_eight(record, INTEGER, int.to_be_bytes()),
        ValueRef::Real(real) => put_eight(record, FLOAT, real.to_bits().to_be_bytes()),
        ValueRef::Text(text) => put_bytes(record, TEXT, text),
        ValueRef::Blob(blob) => put_bytes(record, BLOB, blob),
    }
}

/// Adds what stands for a value that isn't told.
pub(super) fn put_undefined(record: &mut Vec<u8>) {
    record.push(UNDEFINED);
}

fn put_eight(record: &mut Vec<u8>, kind: u8, bytes: [u8; 8]) {
    record.push(kind);
    record.extend_from_slice(&bytes);
}

fn put_bytes(record: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    record.push(kind);
    put_varint(record, bytes.len() as u64);
    record.extend_from_slice(bytes);
}

/// SQLite's varint, of what fits into four of its bytes: no value is longer.
fn put_varint(record: &mut Vec<u8>, number: u64) {
    let mut shift = 28;
    while shift > 0 {
        if number >> shift != 0 {
            record.push((number >> shift & 0x7f) as u8 | 0x80);
        }
        shift -= 7;
    }
    record.push((number & 0x7f) as u8);
}

/// Begins a table.
pub(super) fn put_table(changeset: &mut Vec<u8>, name: &str, key: &[u8]) {
    changeset.push(b'T');
    put_varint(changeset, key.len() as u64);
    changeset.extend_from_slice(key);
    changeset.extend_from_slice(name.as_bytes());
    changeset.push(0);
}

/// Begins a changed row.
pub(super) fn put_change(changeset: &mut Vec<u8>, op: RowOp) {
    let op = match op {
        RowOp::Insert => ffi::SQLITE_INSERT,
        RowOp::Update => ffi::SQLITE_UPDATE,
        RowOp::Delete => ffi::SQLITE_DELETE,
    };
    changeset.extend_from_slice(&[op as u8, 0]);
}

/// The encoded value at the beginning of a record, and the rest.
pub(super) fn split(record: &[u8]) -> rusqlite::Result<(&[u8], &[u8])> {
    let len = match record.first() {
        Some(&UNDEFINED | &NULL) => 1,
        Some(&INTEGER | &FLOAT) => 9,
        Some(&TEXT | &BLOB) => {
            let (len, rest) = varint(&record[1..])?;
            (record.len() - rest.len()).checked_add(len).ok_or_else(damaged)?
        }
        _ => return Err(damaged()),
    };
    record.split_at_checked(len).ok_or_else(damaged)
}

/// An encoded value; nothing for one that isn't told.
pub(super) fn value(encoded: &[u8]) -> rusqlite::Result<Option<ValueRef<'_>>> {
    let eight = || encoded.get(1..9).and_then(|bytes| bytes.try_into().ok()).ok_or_else(damaged);
    Ok(Some(match encoded.first() {
        Some(&UNDEFINED) => return Ok(None),
        Some(&NULL) => ValueRef::Null,
        Some(&INTEGER) => ValueRef::Integer(i64::from_be_bytes(eight()?)),
        Some(&FLOAT) => ValueRef::Real(f64::from_bits(u64::from_be_bytes(eight()?))),
        Some(&TEXT) => ValueRef::Text(varint(&encoded[1..])?.1),
        Some(&BLOB) => ValueRef::Blob(varint(&encoded[1..])?.1),
        _ => return Err(damaged()),
    }))
}

fn varint(bytes: &[u8]) -> rusqlite::Result<(usize, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        number = number << 7 | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok((number, &bytes[at + 1..]));
        }
    }
    Err(damaged())
}

/// A table of a changeset, at its header.
pub(super) struct Table<'c> {
    pub name: &'c str,
    /// A byte for each column, which isn't 0 if it belongs to the primary key.
    pub key: &'c [u8],
}

/// What a changeset consists of, in its order.
pub(super) enum Part<'c> {
    Table(Table<'c>),
    /// A changed row of the table before it: its records.
    Change {
        op: RowOp,
        old: &'c [u8],
        new: &'c [u8],
    },
}

/// Reads a changeset.
pub(super) struct Reader<'c> {
    rest: &'c [u8],
    len: usize,
    columns: usize,
}

/// Which columns belong to the primary key.
pub(super) fn in_key(key: &[u8]) -> Vec<bool> {
    key.iter().map(|flag| *flag != 0).collect()
}

impl<'c> Reader<'c> {
    pub fn new(changeset: &'c [u8]) -> Self {
        Self { rest: changeset, len: changeset.len(), columns: 0 }
    }

    /// Where the next part begins.
    pub fn position(&self) -> usize {
        self.len - self.rest.len()
    }

    /// The next part; nothing at the end.
    pub fn next(&mut self) -> rusqlite::Result<Option<Part<'c>>> {
        let Some((first, rest)) = self.rest.split_first() else { return Ok(None) };
        self.rest = rest;
        if *first == b'T' {
            return self.table().map(Some);
        }
        let op = match i32::from(*first) {
            ffi::SQLITE_INSERT => RowOp::Insert,
            ffi::SQLITE_UPDATE => RowOp::Update,
            ffi::SQLITE_DELETE => RowOp::Delete,
            _ => return Err(damaged()),
        };
        self.rest = self.rest.get(1..).ok_or_else(damaged)?;
        if self.columns == 0 {
            return Err(damaged());
        }
        let old = if op == RowOp::Insert { &[][..] } else { self.record()? };
        let new = if op == RowOp::Delete { &[][..] } else { self.record()? };
        Ok(Some(Part::Change { op, old, new }))
    }

    fn table(&mut self) -> rusqlite::Result<Part<'c>> {
        let (columns, rest) = varint(self.rest)?;
        let (key, rest) = rest.split_at_checked(columns).ok_or_else(damaged)?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        let name = std::str::from_utf8(&rest[..end]).map_err(|_| damaged())?;
        (self.columns, self.rest) = (columns, &rest[end + 1..]);
        Ok(Part::Table(Table { name, key }))
    }

    fn record(&mut self) -> rusqlite::Result<&'c [u8]> {
        let begin = self.rest;
        for _ in 0..self.columns {
            self.rest = split(self.rest)?.1;
        }
        Ok(&begin[..begin.len() - self.rest.len()])
    }
}

/// A record's values; none are told if it is empty.
pub(super) fn values(columns: usize, mut record: &[u8]) -> rusqlite::Result<Vec<Option<Value>>> {
    if record.is_empty() {
        return Ok(vec![None; columns]);
    }
    let mut values = Vec::with_capacity(columns);
    for column in 0..columns {
        let (encoded, rest) = split(record)?;
        record = rest;
        values.push(match value(encoded)? {
            None => None,
            Some(value) => Some(owned(column, value)?),
        });
    }
    Ok(values)
}

fn owned(column: usize, value: ValueRef<'_>) -> rusqlite::Result<Value> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(int) => Value::Int(int),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => Value::Text(String::from_utf8(text.to_vec()).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
        })?),
        ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
    })
}

/// What a changeset is that doesn't have the form.
fn damaged() -> rusqlite::Error {
    let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some("a changeset doesn't have the form of one".to_owned()))
}
