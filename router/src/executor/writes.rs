//! Writes: on one shard as they are, on several as one transaction.
//!
//! A statement that is a transaction by itself and writes on one shard is sent there, and that's all. One that writes on
//! several shards gets a transaction of its own around it; one in a session's
//! transaction becomes part of that. Either way all of it is done or nothing.

use super::Executor;
use super::fragments::{ShardWrite, pick};
use super::gather::shards_of;
use super::rows::next_of;
use super::statement::Statement;
use crate::transaction::Transaction;
use dialect::physical::{table_name, tables_in};
use futures::{StreamExt, stream};
use planner::plan::{Modify, Target};
use proto::catalog::Placement;
use proto::services::{FragmentResponse, RowSource, is_cut_lost};
use proto::{CutId, Retry, RowBatch, ShardId, SqlState, TableId, Value, WireError};

/// What a write did.
#[derive(Debug, Default)]
pub struct Written {
    /// Rows inserted, updated or deleted.
    pub affected: u64,
    /// What RETURNING returns.
    pub rows: Vec<RowBatch>,
}

impl Executor {
    /// Begins a statement's own transaction.
    pub fn begin(&self, run: &Statement<'_>) -> Transaction {
        self.transactions.begin_alone(run.facts.begun())
    }

    /// Whether a write on one shard needs no transaction around it.
    pub(super) fn is_alone(&self, run: &Statement<'_>) -> bool {
        run.transaction.is_none()
    }

    /// Ends the transaction that a statement got for itself, by what the statement came to.
    pub(super) async fn conclude<T>(
        &self,
        run: &Statement<'_>,
        own: Option<Transaction>,
        result: Result<T, WireError>,
    ) -> Result<T, WireError> {
        let Some(own) = own else { return result };
        let result = match result {
            Ok(done) => match own.commit(run.deadline).await {
                Ok(committed) => {
                    run.positions.committed(&committed);
                    Ok(done)
                }
                Err(refused) => Err(refused.error),
            },
            Err(error) => {
                own.rollback().settle().await;
                Err(error)
            }
        };
        result.map_err(unseen)
    }

    /// Runs an UPDATE or DELETE.
    pub async fn modify(
        &self,
        run: &Statement<'_>,
        modify: &Modify,
        scalars: &[Value],
    ) -> Result<Written, WireError> {
        if let Some(moves) = &modify.moves {
            return self.modify_moving(run, modify.table, moves, scalars).await;
        }
        let fragment = &modify.fragment;
        let shards = shards_of(planner::route(&fragment.target, scalars, &run.state.topology)?);
        let everywhere = matches!(fragment.target, Target::Everywhere);
        let is_alone = shards.len() == 1 && self.is_alone(run);
        // Who has waited for a lock must know which rows it returns.
        let plain = fragment.columns.is_empty();
        let (sql, touch) = if plain { (&fragment.sql, 0) } else { (&modify.locking_sql, modify.touch) };
        let write = |shard| {
            Ok(ShardWrite {
                shard,
                schema_version: run.state.catalog.version(),
                sql: sql.clone(),
                params: pick(&fragment.params, scalars)?,
                rows: None,
                touch,
                locks: true,
                moves: false,
                // Its conditions may name other tables, so it is planned again when the catalog changes.
                alone_in: None,
                everywhere,
            })
        };
        if is_alone && let [shard] = shards[..] {
            return collect(self.write(run, write(shard)?).await?).await;
        }
        let writes = shards.into_iter().map(write).collect::<Result<_, WireError>>()?;
        let parts = self.write_all(run, writes).await?;
        Ok(if everywhere { first_of(parts) } else { sum_of(parts) })
    }

    /// TRUNCATE in a transaction: all rows are deleted.
    pub async fn truncate(&self, run: &Statement<'_>, tables: &[TableId]) -> Result<(), WireError> {
        for id in tables {
            let table = run.state.catalog.table(*id);
            let table = table.ok_or_else(|| WireError::internal("a plan names a table that isn't there"))?;
            let keyspaces = &run.state.topology.keyspaces;
            let (shards, everywhere): (Vec<ShardId>, _) = match &table.placement {
                Placement::Reference => (keyspaces.values().flat_map(|k| k.shards.clone()).collect(), true),
                Placement::Sharded { keyspace, .. } | Placement::Single { keyspace } => {
                    (keyspaces.get(keyspace).map(|k| k.shards.clone()).unwrap_or_default(), false)
                }
            };
            let write = |shard| ShardWrite {
                shard,
                schema_version: run.state.catalog.version(),
                sql: format!("DELETE FROM {}", table_name(*id)).into(),
                params: Vec::new(),
                rows: None,
                touch: 0,
                locks: false,
                moves: false,
                alone_in: Some(*id),
                everywhere,
            };
            self.write_all(run, shards.into_iter().map(write).collect()).await?;
        }
        Ok(())
    }

    /// Runs a statement's writes, in a transaction of its own if there is none. What each did comes in their order.
    pub(super) async fn write_all(
        &self,
        run: &Statement<'_>,
        mut writes: Vec<ShardWrite>,
    ) -> Result<Vec<Written>, WireError> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        if writes.len() == 1 && self.is_alone(run) {
            let write = writes.remove(0);
            return Ok(vec![collect(self.write(run, write).await?).await?]);
        }
        let own = run.transaction.is_none().then(|| self.begin(run));
        let within = run.within(own.as_ref());
        let result = self.write_each(&within, writes).await;
        self.conclude(run, own, result).await
    }

    /// A statement that looks for its rows on several shards sees one state of them, unless it meets a lock: then it is run
    /// anew, and sees each shard as of when it has the locks there.
    async fn write_each(
        &self,
        run: &Statement<'_>,
        writes: Vec<ShardWrite>,
    ) -> Result<Vec<Written>, WireError> {
        let Some(transaction) = run.transaction else {
            return Err(WireError::internal("writes on several shards without a transaction"));
        };
        let looks = |write: &ShardWrite| !write.everywhere && !write.moves && write.rows.is_none();
        if writes.len() > 1 && writes.iter().all(looks) {
            let parts = writes.iter().map(|write| (write.shard, tables_in(&write.sql)));
            let cut = Box::pin(self.hold(run, parts)).await?;
            let mark = transaction.mark();
            match self.write_parts(run, transaction, writes.clone(), Some(cut.id)).await {
                Err(error) if is_cut_lost(&error) => {}
                written => return written,
            }
            drop(cut);
            transaction.undo(&mark, run.deadline).await?;
        }
        self.write_parts(run, transaction, writes, None).await
    }

    async fn write_parts(
        &self,
        run: &Statement<'_>,
        transaction: &Transaction,
        mut writes: Vec<ShardWrite>,
        cut: Option<CutId>,
    ) -> Result<Vec<Written>, WireError> {
        let mut done: Vec<Option<Written>> = std::iter::repeat_with(|| None).take(writes.len()).collect();
        let everywhere = writes.iter().any(|write| write.everywhere);
        if everywhere {
            // The first shard goes first: whoever writes the same row waits for its lock there, and holds none elsewhere.
            let first = writes.remove(0);
            done[0] = Some(collect(self.write_within(run, transaction, first, cut).await?).await?);
        }
        let rest = done.len() - writes.len();
        let writes = writes.into_iter().enumerate().map(|(place, write)| async move {
            let written = match self.write_within(run, transaction, write, cut).await {
                Ok(response) => collect(response).await,
                Err(error) => Err(error),
            };
            (rest + place, written)
        });
        let mut answers = stream::iter(writes).buffer_unordered(self.config.shards_at_once);
        let mut failed: Option<WireError> = None;
        while let Some((place, written)) = answers.next().await {
            match written {
                Ok(written) => done[place] = Some(written),
                // Nothing can mend it, so the others needn't be waited for: they may wait for locks.
                Err(error) if error.retry == Retry::Never => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let done: Vec<_> = done.into_iter().flatten().collect();
        match failed {
            Some(error) => Err(error),
            None if everywhere && done.iter().any(|copy| copy.affected != done[0].affected) => {
                let message = "the copies of a reference table differ: a write would change more rows on one than on another";
                Err(WireError::new(SqlState::DATA_CORRUPTED, message))
            }
            None => Ok(done),
        }
    }
}

/// The error of a statement whose transaction was its own, and is rolled back. Nobody has seen anything of it, so it can run
/// again. Its parts lock rows on several shards at once, so two statements may meet in a circle that PostgreSQL's, one row
/// after the other, wouldn't be in.
pub(super) fn unseen(error: WireError) -> WireError {
    match (error.sqlstate, &error.retry) {
        (SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK_DETECTED, Retry::Never) => {
            error.with_retry(Retry::Later)
        }
        _ => error,
    }
}

/// Whether that is what was heard: nobody has seen anything of the transaction.
pub(crate) fn is_unseen(error: &WireError) -> bool {
    let codes = [SqlState::SERIALIZATION_FAILURE, SqlState::DEADLOCK_DETECTED];
    error.retry == Retry::Later && codes.contains(&error.sqlstate)
}

/// What a write to every copy of a reference table did: the same to each.
pub(super) fn first_of(parts: Vec<Written>) -> Written {
    parts.into_iter().next().unwrap_or_default()
}

/// What a statement did whose parts ran on several shards.
pub(super) fn sum_of(parts: Vec<Written>) -> Written {
    let mut sum = Written::default();
    for part in parts {
        sum.affected += part.affected;
        sum.rows.extend(part.rows);
    }
    sum
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
