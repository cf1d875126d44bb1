//! Rows that a statement came upon and left as they are.
//!
//! ON CONFLICT DO UPDATE .. WHERE asks each row that is in its way, and PostgreSQL locks those that it spares, too. SQLite
//! tells nobody of them, so the condition calls `pg_spare(strong, key..)` for each; `pg_spared()` gives those of the
//! connection since it was last called, as packed rows ([`crate::rowset`]), or NULL.

use super::super::{error, value};
use crate::rowset;
use proto::{RowBatchBuilder, Value, WireError};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use std::sync::{Arc, Mutex};

pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    let spared: Arc<Mutex<Vec<Vec<Value>>>> = Arc::default();
    let noted = Arc::clone(&spared);
    // Not deterministic: it is called for what it does.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("pg_spare", -1, flags, move |context| {
        let key = (0..context.len()).map(|place| Ok(value::value_ref(context.get_raw(place))?.to_owned()));
        let key: Vec<Value> = key.collect::<Result<_, WireError>>().map_err(error::raise)?;
        noted.lock().map_err(|_| error::raise(poisoned()))?.push(key);
        Ok(0)
    })?;
    connection.create_scalar_function("pg_spared", 0, flags, move |_| {
        let rows = std::mem::take(&mut *spared.lock().map_err(|_| error::raise(poisoned()))?);
        let Some(first) = rows.first() else { return Ok(None) };
        let mut batch = RowBatchBuilder::new(u16::try_from(first.len()).unwrap_or(u16::MAX));
        rows.iter().for_each(|row| batch.push_row(row.iter().map(Value::as_ref)));
        match rowset::pack(&batch.finish()) {
            Value::Blob(packed) => Ok(Some(packed)),
            _ => Ok(None),
        }
    })
}

fn poisoned() -> WireError {
    WireError::internal("the rows that were spared are lost")
}
