//! What is in a replica's tables: the two that clients use, and a hash of all that replicas must agree on.

use super::history::Rows;
use bytes::Bytes;
use proto::WireError;
use replica::Snapshot;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// How many registers there are.
pub const REGISTERS: i64 = 3;

/// What every replica makes before its first log entry.
pub const INIT: [&str; 2] = [
    "CREATE TABLE appends (id INTEGER PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    "CREATE TABLE registers (key INTEGER PRIMARY KEY, value INTEGER NOT NULL) STRICT",
];

/// The replica's own tables that log entries alone write.
const REPLICATED: [&str; 4] = ["replica_requests", "replica_marks", "replica_schema", "replica_notes"];

/// Reads everything.
pub fn read(snapshot: &Snapshot) -> rusqlite::Result<Rows> {
    let connection = snapshot.connection();
    let appended = connection
        .prepare_cached("SELECT value FROM appends ORDER BY value")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut registers: BTreeMap<i64, i64> = (1..=REGISTERS).map(|key| (key, 0)).collect();
    let mut statement = connection.prepare_cached("SELECT key, value FROM registers")?;
    for pair in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (key, value) = pair?;
        registers.insert(key, value);
    }
    Ok(Rows { position: snapshot.position().0, appended, registers, hash: hash(connection)? })
}

/// A hash of all tables that replicas must agree on.
pub fn hash(connection: &Connection) -> rusqlite::Result<u128> {
    let mut hash = Xxh3::new();
    let names: Vec<String> = connection
        .prepare_cached("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let replicated = |name: &&String| !name.starts_with("replica_") || REPLICATED.contains(&name.as_str());
    for name in names.iter().filter(replicated) {
        hash.update(name.as_bytes());
        let columns = connection.prepare_cached(&format!("SELECT * FROM \"{name}\""))?.column_count();
        let order = if columns > 1 { "1, 2" } else { "1" };
        let mut statement =
            connection.prepare_cached(&format!("SELECT * FROM \"{name}\" ORDER BY {order}"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => hash.update(&[0]),
                    ValueRef::Integer(value) => hash.update(&value.to_le_bytes()),
                    ValueRef::Real(value) => hash.update(&value.to_le_bytes()),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        hash.update(&bytes.len().to_le_bytes());
                        hash.update(bytes);
                    }
                }
            }
        }
    }
    Ok(hash.digest128())
}

/// Appends a row.
pub fn append(connection: &Connection, value: i64) -> Result<Bytes, WireError> {
    let insert = || connection.prepare_cached("INSERT INTO appends (value) VALUES (?1)")?.execute([value]);
    insert().map_err(dialect::sqlite::error)?;
    Ok(Bytes::new())
}

/// Sets a register; gives the value before.
pub fn swap(connection: &Connection, key: i64, value: i64) -> Result<Bytes, WireError> {
    let swap = || -> rusqlite::Result<i64> {
        let old = connection
            .prepare_cached("SELECT value FROM registers WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        connection
            .prepare_cached(
                "INSERT INTO registers VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute([key, value])?;
        Ok(old.unwrap_or(0))
    };
    Ok(Bytes::copy_from_slice(&swap().map_err(dialect::sqlite::error)?.to_le_bytes()))
}

/// What [`swap`] gave.
pub fn swapped(output: &[u8]) -> Option<i64> {
    output.first_chunk::<8>().map(|bytes| i64::from_le_bytes(*bytes))
}
