//! A part of a changeset: some of its rows, byte for byte as they are in it.
//!
//! A changeset goes in, and who says which rows are to stay; a changeset comes out. No database is needed for it, nothing is copied
//! that needn't be, and it must never know what a row means.

use super::format::{Part, Reader, split, value};
use super::rows::RowOp;
use bytes::{Bytes, BytesMut};
use dialect::sqlite::error;
use proto::{ValueRef, WireError};
use rusqlite::types::{Type, ValueRef as Sqlite};
use std::ops::Range;

/// A changed row, where it is in its changeset.
#[derive(Clone, Copy, Debug)]
pub struct Record<'c> {
    /// Its table.
    pub table: &'c str,
    /// For each column a byte, which isn't 0 if it belongs to the primary key.
    pub key: &'c [u8],
    /// What happened to it.
    pub op: RowOp,
    old: &'c [u8],
    new: &'c [u8],
}

impl<'c> Record<'c> {
    /// The values by which one knows the row, column by column: those of its primary key are told, whatever happened to
    /// it. The columns of an inserted or deleted row are told, all of them; of an updated one those that were changed, as they were.
    pub fn identity(&self) -> Values<'c> {
        Values { rest: if self.op == RowOp::Insert { self.new } else { self.old }, column: 0 }
    }
}

/// The values of a row, in the order of its columns: nothing for one that isn't told.
#[derive(Clone, Debug)]
pub struct Values<'c> {
    rest: &'c [u8],
    column: usize,
}

impl<'c> Iterator for Values<'c> {
    type Item = Result<Option<ValueRef<'c>>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let column = self.column;
        self.column += 1;
        let read = split(self.rest).and_then(|(encoded, rest)| {
            self.rest = rest;
            value(encoded)?.map(|value| borrowed(column, value)).transpose()
        });
        if read.is_err() {
            self.rest = &[];
        }
        Some(read.map_err(error))
    }
}

fn borrowed(column: usize, value: Sqlite<'_>) -> rusqlite::Result<ValueRef<'_>> {
    Ok(match value {
        Sqlite::Null => ValueRef::Null,
        Sqlite::Integer(int) => ValueRef::Int(int),
        Sqlite::Real(real) => ValueRef::Real(real),
        Sqlite::Text(text) => ValueRef::Text(std::str::from_utf8(text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
        })?),
        Sqlite::Blob(blob) => ValueRef::Blob(blob),
    })
}

/// The rows of a changeset that are to stay, as a changeset: those of one table under one header, in their order.
/// What is one piece of the changeset, or all of it, isn't copied.
pub fn retain(
    changeset: &Bytes,
    mut stays: impl FnMut(&Record<'_>) -> Result<bool, WireError>,
) -> Result<Bytes, WireError> {
    let mut reader = Reader::new(changeset);
    let mut kept: Vec<Range<usize>> = Vec::new();
    let (mut table, mut key, mut header) = ("", &[][..], None);
    loop {
        let from = reader.position();
        let Some(part) = reader.next().map_err(error)? else { break };
        let span = from..reader.position();
        match part {
            Part::Table(of) => (table, key, header) = (of.name, of.key, Some(span)),
            Part::Change { op, old, new } => {
                if stays(&Record { table, key, op, old, new })? {
                    header.take().into_iter().chain([span]).for_each(|span| add(&mut kept, span));
                }
            }
        }
    }
    Ok(match kept.as_slice() {
        [] => Bytes::new(),
        [span] => changeset.slice(span.clone()),
        spans => {
            let mut part = BytesMut::with_capacity(spans.iter().map(ExactSizeIterator::len).sum());
            spans.iter().for_each(|span| part.extend_from_slice(&changeset[span.clone()]));
            part.freeze()
        }
    })
}

fn add(kept: &mut Vec<Range<usize>>, span: Range<usize>) {
    match kept.last_mut() {
        Some(last) if last.end == span.start => last.end = span.end,
        _ => kept.push(span),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::changes;
    use super::*;
    use crate::session::Capturing;
    use proto::Value;
    use rusqlite::Connection;

    /// A changeset of two tables with all kinds of rows and values.
    fn changeset() -> Bytes {
        let connection = Connection::open_in_memory().unwrap();
        let sql = "CREATE TABLE t1 (c1 ANY, c2 ANY, c3 INTEGER NOT NULL, PRIMARY KEY (c3)) STRICT;
                   CREATE TABLE t2 (c1 TEXT NOT NULL, c2 BLOB NOT NULL, c3 REAL, PRIMARY KEY (c2, c1)) STRICT;
                   INSERT INTO t1 VALUES (1, NULL, 1), ('ä', 2.5, 2), (x'00', 'b', 3);
                   INSERT INTO t2 VALUES ('a', x'01', 1.5), ('b', x'02', NULL)";
        connection.execute_batch(sql).unwrap();
        let mut connection = Capturing::new(connection);
        connection.begin_capture();
        let sql = "UPDATE t1 SET c1 = NULL WHERE c3 = 2; DELETE FROM t1 WHERE c3 = 3; INSERT INTO t1 VALUES (7, 8, 9);
                   UPDATE t2 SET c3 = 9 WHERE c1 = 'a'; DELETE FROM t2 WHERE c1 = 'b'; INSERT INTO t2 VALUES ('c', x'', 0);
                   INSERT INTO t1 VALUES (NULL, 0, 10)";
        connection.execute_batch(sql).unwrap();
        let changeset = connection.capture().unwrap().changeset().unwrap();
        connection.end_capture();
        changeset
    }

    #[test]
    fn any_choice_of_rows_is_a_changeset_of_these() {
        let whole = changeset();
        let all = changes(&whole).unwrap();
        assert_eq!(all.len(), 7);
        for choice in 0..1_u32 << all.len() {
            let mut at = 0;
            let part = retain(&whole, |_| {
                at += 1;
                Ok(choice >> (at - 1) & 1 == 1)
            });
            let part = part.unwrap();
            let chosen: Vec<_> =
                (0..all.len()).filter(|at| choice >> at & 1 == 1).map(|at| all[at].clone()).collect();
            assert_eq!(changes(&part).unwrap(), chosen);
            if choice + 1 == 1 << all.len() {
                assert!(part == whole && part.as_ptr() == whole.as_ptr(), "all of it isn't copied");
            }
        }
    }

    #[test]
    fn a_row_is_known_by_its_key() {
        let whole = changeset();
        let mut rows = changes(&whole).unwrap().into_iter();
        retain(&whole, |record| {
            let row = rows.next().unwrap();
            let told: Vec<Option<Value>> = record
                .identity()
                .map(|value| value.map(|value| value.map(ValueRef::to_owned)).unwrap())
                .collect();
            assert_eq!((record.table, record.op), (row.table.as_str(), row.op));
            assert_eq!(told, if row.op == RowOp::Insert { row.new } else { row.old });
            for (column, key) in record.key.iter().enumerate() {
                assert_eq!(*key != 0, row.key[column]);
                assert!(*key == 0 || told[column].is_some());
            }
            Ok(false)
        })
        .unwrap();
        let stays = |_: &Record<'_>| Ok(true);
        assert!(retain(&Bytes::from_static(b"Tnonsense"), stays).is_err());
        assert!(retain(&whole.slice(..whole.len() - 1), stays).is_err());
        assert_eq!(retain(&Bytes::new(), stays).unwrap(), Bytes::new());
    }
}
