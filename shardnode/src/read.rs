//! Running a read on a snapshot.
//!
//! In come a read-only connection inside a read transaction and a statement with its parameters; out come rows in
//! storage form. Nothing here can write: the connection can't, and a statement that would is refused before it runs.

use crate::fence::{self, Address};
use dialect::sqlite::{error, names_nothing, parameter, value_ref};
use proto::services::{FragmentRequest, FragmentResponse, RowSource};
use proto::{Retry, RowBatch, RowBatchBuilder, SqlState, WireError};
use replica::Snapshot;
use rusqlite::{CachedStatement, Connection, Row};
use std::time::{Duration, Instant};

/// Runs a whole read here and now, until the deadline: it is a short one, but nobody else could end it.
pub(crate) fn lookup(
    snapshot: &Snapshot,
    request: &FragmentRequest,
    waited: Duration,
    deadline: Instant,
) -> Result<FragmentResponse, WireError> {
    snapshot.end_at(deadline);
    let position = snapshot.position();
    let rows = whole(snapshot, request).map_err(|error| error.made_from(request.shard, position))?;
    Ok(FragmentResponse { rows: RowSource::Whole(rows), affected: 0, position, waited })
}

fn whole(snapshot: &Snapshot, request: &FragmentRequest) -> Result<RowBatch, WireError> {
    let mut statement = begin(snapshot, request)?;
    let columns = statement.column_count();
    let mut batch = RowBatchBuilder::new(columns as u16);
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(|e| snapshot.explain(error(e)))? {
        push(row, columns, &mut batch)?;
    }
    Ok(batch.finish())
}

/// The request's statement on a snapshot, if both are of one schema.
pub(crate) fn begin<'a>(
    snapshot: &'a Snapshot,
    request: &FragmentRequest,
) -> Result<CachedStatement<'a>, WireError> {
    let connection = snapshot.connection();
    fence::check(snapshot, Address::of(request), request.schema_version, request.is_strong())?;
    let prepared = match connection.prepare_cached(&request.sql) {
        // What the plan has is on the leader, and no id is used twice: it has yet to come here.
        Err(missing) if !request.is_strong() && names_nothing(&missing) => {
            let message = format!("this replica's schema is older than the statement's: {missing}");
            let behind = WireError::new(SqlState::CANNOT_CONNECT_NOW, message);
            return Err(behind.with_retry(Retry::Behind(snapshot.position())));
        }
        prepared => prepared.map_err(error),
    };
    let bound = prepared.and_then(|statement| bind(statement, request));
    bound.map_err(|e| snapshot.explain(e))
}

/// The request's statement with its parameters bound.
pub(crate) fn prepare<'a>(
    connection: &'a Connection,
    request: &FragmentRequest,
) -> Result<CachedStatement<'a>, WireError> {
    bind(connection.prepare_cached(&request.sql).map_err(error)?, request)
}

fn bind<'a>(
    mut statement: CachedStatement<'a>,
    request: &FragmentRequest,
) -> Result<CachedStatement<'a>, WireError> {
    // Without columns it is no query, but may well be "read-only" (BEGIN, ATTACH).
    if !statement.readonly() || statement.column_count() == 0 {
        return Err(WireError::internal("a fragment that should only read would write"));
    }
    if request.rows.is_some() {
        return Err(WireError::internal("a fragment that only reads was sent rows"));
    }
    let wanted = statement.parameter_count();
    if request.params.len() < wanted {
        return Err(WireError::internal(format!(
            "a fragment has {wanted} parameters and was sent {}",
            request.params.len()
        )));
    }
    for (place, value) in request.params.iter().take(wanted).enumerate() {
        statement.raw_bind_parameter(place + 1, parameter(value)).map_err(error)?;
    }
    Ok(statement)
}

/// Adds a row of SQLite's to the batch.
pub(crate) fn push(row: &Row<'_>, columns: usize, batch: &mut RowBatchBuilder) -> Result<(), WireError> {
    for column in 0..columns {
        batch.push(value_ref(row.get_ref(column).map_err(error)?)?);
    }
    Ok(())
}
