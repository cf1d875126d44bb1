//! Queries that lock their rows: FOR UPDATE and its kin, over however many shards.
//!
//! In comes a query with a lock, out come its rows, all of them locked in the transaction's branches. PostgreSQL locks no
//! more rows than LIMIT lets through, and who takes jobs from a queue relies on it. So where any rows will do, shards are
//! asked one after the other until there are enough; where the best are wanted, each is asked for as many as could be
//! among them, and gives back those that aren't. Nothing here knows what the rows are for.

use super::Executor;
use super::fragments::settle;
use super::gather::{feed, row_count, shards_of};
use super::merge::shares;
use super::rows::RowStream;
use super::statement::Statement;
use super::writes::{collect, unseen};
use crate::transaction::Transaction;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use planner::plan::{Fragment, Gather, Locking, MergeKey, Query};
use proto::services::{Access, BranchAccess, LockWait, RowSource};
use proto::{RowBatch, ShardId, SqlState, Value, WireError};
use std::sync::Arc;

/// What is locked, and how: the same for each shard.
struct Lock<'a> {
    run: &'a Statement<'a>,
    transaction: &'a Transaction,
    locking: &'a Locking,
    fragment: &'a Fragment,
    scalars: &'a [Value],
}

impl Executor {
    /// Opens a query whose rows are locked. Without a transaction it gets one for itself, and the locks end with it.
    pub(super) async fn query_locked(
        &self,
        run: &Statement<'_>,
        query: &Query,
        locking: &Locking,
        scalars: &[Value],
    ) -> Result<RowStream, WireError> {
        let (Gather::Stream { order, offset, limit, visible: _ }, [fragment]) =
            (&query.gather, query.fragments.as_slice())
        else {
            return Err(WireError::internal(
                "a query that locks its rows has one fragment and a stream gather",
            ));
        };
        let skip = row_count(*offset, scalars, 0)?;
        let limit = row_count(*limit, scalars, u64::MAX)?;
        let most = row_count(locking.limit, scalars, u64::MAX)?;
        let shards = shards_of(planner::route(&fragment.target, scalars, &run.state.topology)?);
        let own = run.transaction.is_none().then(|| self.begin(run));
        let within = run.within(own.as_ref());
        let Some(transaction) = within.transaction else {
            return Err(WireError::internal("locks without a transaction"));
        };
        let lock = Lock { run: &within, transaction, locking, fragment, scalars };
        let locked = match shards.len() {
            0 | 1 => self.lock_all(&lock, &shards, most).await,
            _ if most == u64::MAX => self.lock_all(&lock, &shards, most).await,
            _ if order.is_empty() => self.lock_any(&lock, &shards, most).await,
            _ => self.lock_best(&lock, &shards, most, order).await,
        };
        let is_own = own.is_some();
        if let Some(own) = own {
            // Nothing was written.
            own.rollback().settle().await;
        }
        let locked = locked.map_err(|error| if is_own { unseen(error) } else { error });
        let locked = locked.map_err(|error| named(run, locking, error))?;
        let sources = locked.into_iter().map(|rows| {
            let rows = rows.into_iter().map(Ok);
            RowSource::Stream(Box::pin(stream::iter(rows)))
        });
        let feed = feed(sources.collect(), order, fragment)?;
        Ok(RowStream::new(feed, skip, limit, run.interrupt.clone(), run.deadline))
    }

    /// Locks so many rows at most of each shard. What each has comes in their order.
    async fn lock_all(
        &self,
        lock: &Lock<'_>,
        shards: &[ShardId],
        most: u64,
    ) -> Result<Vec<Vec<RowBatch>>, WireError> {
        let asked: Vec<_> = shards.iter().map(|shard| (*shard, most, false)).collect();
        self.lock_each(lock, &asked).await
    }

    async fn lock_each(
        &self,
        lock: &Lock<'_>,
        asked: &[(ShardId, u64, bool)],
    ) -> Result<Vec<Vec<RowBatch>>, WireError> {
        let locks: Vec<BoxFuture<'_, _>> = asked
            .iter()
            .map(|(shard, most, anew)| self.lock_on(lock, *shard, *most, *anew).boxed())
            .collect();
        stream::iter(locks).buffered(self.config.shards_at_once).try_collect().await
    }

    /// Locks so many rows of several shards, whichever they are.
    async fn lock_any(
        &self,
        lock: &Lock<'_>,
        shards: &[ShardId],
        most: u64,
    ) -> Result<Vec<Vec<RowBatch>>, WireError> {
        let mut left = most;
        let mut locked = Vec::with_capacity(shards.len());
        // Not everyone begins with the same shard.
        let begin = lock.transaction.spread(shards.len());
        for shard in shards[begin..].iter().chain(&shards[..begin]) {
            if left == 0 {
                break;
            }
            let rows = self.lock_on(lock, *shard, left, false).await?;
            left = left.saturating_sub(count(&rows));
            locked.push(rows);
        }
        Ok(locked)
    }

    /// Locks the first so many rows in an order that each shard's rows have.
    async fn lock_best(
        &self,
        lock: &Lock<'_>,
        shards: &[ShardId],
        most: u64,
        order: &[MergeKey],
    ) -> Result<Vec<Vec<RowBatch>>, WireError> {
        let mark = lock.transaction.mark();
        let mut locked = self.lock_all(lock, shards, most).await?;
        if locked.iter().map(|rows| count(rows)).sum::<u64>() <= most {
            return Ok(locked);
        }
        let shares = shares(&locked, order, most);
        let mut again = Vec::new();
        for (place, share) in shares.into_iter().enumerate() {
            match share {
                share if share == count(&locked[place]) => {}
                0 => {
                    let until = lock.run.deadline;
                    lock.run.attend(lock.transaction.undo_on(shards[place], &mark, until)).await?;
                    locked[place].clear();
                }
                share => again.push((place, (shards[place], share, true))),
            }
        }
        let asked: Vec<_> = again.iter().map(|(_, asked)| *asked).collect();
        let rows = self.lock_each(lock, &asked).await?;
        for ((place, _), rows) in again.into_iter().zip(rows) {
            locked[place] = rows;
        }
        Ok(locked)
    }

    async fn lock_on(
        &self,
        lock: &Lock<'_>,
        shard: ShardId,
        most: u64,
        anew: bool,
    ) -> Result<Vec<RowBatch>, WireError> {
        let Lock { run, transaction, locking, fragment, scalars } = lock;
        let branch = transaction.statement(shard, true, run.lock_timeout);
        let limit = (most < u64::MAX).then_some(most);
        let access = BranchAccess::Lock { rows: Arc::clone(&locking.rows), limit, anew };
        let access = Access::Branch { branch, access };
        let mut unknown = false;
        let answer = self.ask(run, shard, fragment, scalars, (access, None), &mut unknown).await;
        let rows = collect(settle(transaction, shard, answer, unknown)?).await?.rows;
        if rows.iter().all(RowBatch::is_empty) {
            transaction.unbind(shard, branch);
        }
        Ok(rows)
    }
}

fn count(rows: &[RowBatch]) -> u64 {
    rows.iter().map(|batch| batch.len() as u64).sum()
}

/// The shard knows no names.
fn named(run: &Statement<'_>, locking: &Locking, mut error: WireError) -> WireError {
    let mut impatient = locking.rows.iter().filter(|rows| rows.wait == LockWait::NoWait);
    if error.sqlstate == SqlState::LOCK_NOT_AVAILABLE
        && let (Some(rows), None) = (impatient.next(), impatient.next())
        && let Some(table) = run.state.catalog.table(rows.table)
    {
        error.message = format!("could not obtain lock on row in relation \"{}\"", table.name);
    }
    error
}
