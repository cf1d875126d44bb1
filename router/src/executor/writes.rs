//! Writes that go to one shard, and those few that may go to several.
//!
//! Until there are distributed transactions, only INSERT, COPY and writes to reference tables write on more than one
//! shard, as best effort: when a shard refuses its part, what the others did stays, and the error says so. UPDATE and
//! DELETE of sharded rows run on one shard or are refused before they begin.

use super::Executor;
use super::fragments::{ShardWrite, pick};
use super::rows::next_of;
use super::statement::Statement;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use planner::plan::{Modify, Route, Target};
use proto::services::{FragmentResponse, RowSource};
use proto::{Retry, RowBatch, ShardId, SqlState, TableId, Value, WireError};
use std::sync::Arc;

/// What a write did.
#[derive(Debug, Default)]
pub struct Written {
    /// Rows inserted, updated or deleted.
    pub affected: u64,
    /// What RETURNING returns.
    pub rows: Vec<RowBatch>,
}

impl Executor {
    /// Runs an UPDATE or DELETE.
    pub async fn modify(
        &self,
        run: &Statement<'_>,
        modify: &Modify,
        scalars: &[Value],
    ) -> Result<Written, WireError> {
        let fragment = &modify.fragment;
        let shards = match planner::route(&fragment.target, scalars, &run.state.topology)? {
            Route::None => return Ok(Written::default()),
            Route::One(shard) => vec![shard],
            Route::Some(shards) | Route::All(shards) if matches!(fragment.target, Target::Everywhere) => {
                shards
            }
            Route::Some(shards) | Route::All(shards) => {
                return Err(too_many_shards(modify.delete, shards.len()));
            }
        };
        let write = |shard| {
            Ok(ShardWrite {
                shard,
                schema_version: run.state.catalog.version(),
                sql: fragment.sql.clone(),
                params: pick(&fragment.params, scalars)?,
                rows: None,
                touch: 0,
                request: self.requests.begin(),
                // Its conditions may name other tables, so it is planned again when the catalog changes.
                alone_in: None,
                everywhere: false,
            })
        };
        if let [shard] = shards[..] {
            let response = self.write(run, write(shard)?).await?;
            return collect(response).await;
        }
        self.write_everywhere(run, modify.table, &shards, write).await
    }

    /// Writes the same on every shard: a reference table. One shard goes first, so that what fails everywhere fails
    /// there, before anything is done.
    pub(super) async fn write_everywhere(
        &self,
        run: &Statement<'_>,
        table: TableId,
        shards: &[ShardId],
        write: impl Fn(ShardId) -> Result<ShardWrite, WireError>,
    ) -> Result<Written, WireError> {
        let Some((first, others)) = shards.split_first() else {
            return Err(WireError::internal("the cluster has no shard"));
        };
        // Two writes of this router reach every shard in the same order.
        let lock: Arc<tokio::sync::Mutex<()>> = self.reference_locks.entry(table).or_default().clone();
        let _held = run.attend(async { Ok(lock.lock().await) }).await?;
        let first = ShardWrite { everywhere: true, ..write(*first)? };
        let done = collect(self.write(run, first).await?).await?;
        let rest = others.iter().map(|shard| {
            let mut write = write(*shard)?;
            // The first shard has it, so the others must get it though the catalog changes meanwhile.
            write.alone_in = Some(table);
            Ok(write)
        });
        let rest = rest.collect::<Result<Vec<_>, WireError>>()?;
        for outcome in self.write_each(run, rest).await {
            let others = outcome.map_err(|error| partly(error, "the other copies of a reference table"))?;
            if others.affected != done.affected {
                let message = "the copies of a reference table differ: a write changed more rows on one than on another";
                return Err(WireError::new(SqlState::DATA_CORRUPTED, message));
            }
        }
        Ok(done)
    }

    /// Sends writes to their shards, and waits for every outcome. They come in the order of the writes.
    pub(super) async fn write_each(
        &self,
        run: &Statement<'_>,
        writes: Vec<ShardWrite>,
    ) -> Vec<Result<FragmentResponse, WireError>> {
        let writes: Vec<BoxFuture<'_, _>> =
            writes.into_iter().map(|write| self.write(run, write).boxed()).collect();
        stream::iter(writes).buffered(self.config.shards_at_once).collect().await
    }
}

/// All that a write's answer has.
pub(super) async fn collect(response: FragmentResponse) -> Result<Written, WireError> {
    let mut rows = Vec::new();
    match response.rows {
        RowSource::Whole(batch) if batch.is_empty() => {}
        RowSource::Whole(batch) => rows.push(batch),
        RowSource::Stream(mut stream) => {
            while let Some(batch) = next_of(&mut stream).await? {
                rows.push(batch);
            }
        }
    }
    Ok(Written { affected: response.affected, rows })
}

/// The outcomes of one statement's parts on several shards, as one: the first error, if there is one, saying whether
/// other parts were done.
pub(super) fn together(
    outcomes: Vec<Result<FragmentResponse, WireError>>,
) -> Result<Vec<FragmentResponse>, WireError> {
    let all = outcomes.len();
    let (done, errors): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let done: Vec<_> = done.into_iter().flatten().collect();
    let mut errors: Vec<_> = errors.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        return Ok(done);
    }
    // An error that nothing can mend says more than one that another plan could.
    let worst = errors.iter().position(|error| error.retry == Retry::Never).unwrap_or(0);
    let error = errors.swap_remove(worst);
    let unknown = errors.iter().any(|error| error.retry == Retry::Unknown);
    if done.is_empty() && !unknown {
        return Err(error);
    }
    Err(partly(error, &format!("{} of {all} shards", done.len())))
}

/// The error of a statement that was done in part.
pub(super) fn partly(mut error: WireError, place: &str) -> WireError {
    // Planning and running it again would do the done parts twice.
    error.retry = Retry::Never;
    let note = format!("The statement's rows on {place} were written before it failed, and stay.");
    error.detail = Some(match error.detail.take() {
        Some(detail) => format!("{detail} {note}"),
        None => note,
    });
    error
}

fn too_many_shards(delete: bool, shards: usize) -> WireError {
    let what = if delete { "DELETE" } else { "UPDATE" };
    WireError::unsupported(format_args!("{what} of rows on several shards ({shards})"))
        .with_hint("Give the shard key's value in WHERE, so that one shard has all the rows.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{LogIndex, SchemaVersion};

    fn ok() -> Result<FragmentResponse, WireError> {
        let rows = RowSource::Whole(RowBatch::default());
        Ok(FragmentResponse { rows, affected: 1, position: LogIndex(1) })
    }

    fn error(retry: Retry) -> Result<FragmentResponse, WireError> {
        Err(WireError::new(SqlState::UNIQUE_VIOLATION, "x").with_retry(retry))
    }

    #[test]
    fn a_statement_that_was_done_in_part_says_so_and_is_not_repeated() {
        assert_eq!(together(vec![ok(), ok()]).unwrap().len(), 2);
        let stale = || error(Retry::StaleSchema(SchemaVersion(9)));
        let none_done = together(vec![stale(), stale()]).err().unwrap();
        assert_eq!(none_done.retry, Retry::StaleSchema(SchemaVersion(9)));
        let some_done = together(vec![stale(), ok()]).err().unwrap();
        assert_eq!(some_done.retry, Retry::Never);
        assert!(some_done.detail.unwrap().contains("1 of 2 shards"));
        let unknown = together(vec![stale(), error(Retry::Unknown)]).err().unwrap();
        assert_eq!(unknown.retry, Retry::Never);
    }
}
