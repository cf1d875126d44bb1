//! INSERT, and the batches that COPY fills: rows to the shards that their keys name.
//!
//! In come rows in storage form; each is placed by its shard key, and each shard gets its rows as one batch, or as
//! several where they are too many to hold. What is more than one batch is one transaction all the same.

use super::Executor;
use super::fragments::{ShardWrite, pick};
use super::rows::RowStream;
use super::scalars::environment;
use super::sqlite;
use super::statement::Statement;
use super::violation::described;
use super::writes::{Written, collect, first_of, sum_of};
use crate::transaction::Transaction;
use planner::plan::{Insert, InsertRows, InsertTarget, Route, RowValue, ScalarId};
use proto::error::Violation;
use proto::topology::Topology;
use proto::{RowBatch, RowBatchBuilder, ShardId, SqlState, Value, WireError};
use std::borrow::Cow;

/// No more than this many batches are held back at a time, however many shards there are.
const MOST_BATCHES: usize = 16;

/// Rows on their way to their shards.
pub struct Placed {
    /// Each shard's rows so far. For a reference table one entry, whose rows go everywhere.
    batches: Vec<(ShardId, RowBatchBuilder)>,
    /// For each row so far, the entry that has it, while that is worth knowing.
    order: Option<Vec<u32>>,
    bytes: usize,
}

impl Placed {
    /// No rows yet. `ordered`: what RETURNING returns is to come in the order of the rows.
    pub fn new(ordered: bool) -> Self {
        Self { batches: Vec::new(), order: ordered.then(Vec::new), bytes: 0 }
    }

    /// Adds a row, which has the statement's width, where it belongs by this topology.
    pub fn push(
        &mut self,
        run: &Statement<'_>,
        topology: &Topology,
        insert: &Insert,
        row: &[Value],
    ) -> Result<(), WireError> {
        if let Some((_, column)) =
            insert.not_null.iter().find(|(place, _)| row.get(*place).is_none_or(Value::is_null))
        {
            let violation = Violation::NotNull(insert.table, *column);
            let message = "null value violates not-null constraint";
            let error = WireError::new(SqlState::NOT_NULL_VIOLATION, message).with_violation(violation);
            return Err(described(error, run, row.iter().map(Value::as_ref)));
        }
        let shard = match planner::route_row(&insert.target, row, topology)? {
            Route::One(shard) => shard,
            Route::Some(shards) | Route::All(shards) if matches!(insert.target, InsertTarget::Everywhere) => {
                *shards.first().ok_or_else(|| WireError::internal("the cluster has no shard"))?
            }
            _ => return Err(WireError::internal("a row belongs to no shard, or to several")),
        };
        let place = match self.batches.iter().position(|(id, _)| *id == shard) {
            Some(place) => place,
            None => {
                let width = u16::try_from(insert.width);
                let width = width.map_err(|_| WireError::internal("a row has too many values"))?;
                self.batches.push((shard, RowBatchBuilder::new(width)));
                self.batches.len() - 1
            }
        };
        let batch = &mut self.batches[place].1;
        let before = batch.byte_len();
        batch.push_row(row.iter().map(Value::as_ref));
        self.bytes += batch.byte_len() - before;
        if let Some(order) = &mut self.order {
            order.push(place as u32);
        }
        Ok(())
    }

    /// The rows, as they are sent.
    pub fn finish(self) -> Batches {
        let batches = self.batches.into_iter().map(|(shard, batch)| (shard, batch.finish())).collect();
        Batches { batches, order: self.order }
    }

    /// Whether there is enough to send: for the shards together, or for one that most of the rows belong to.
    pub fn is_full(&self, batch_bytes: usize) -> bool {
        self.bytes >= batch_bytes * self.batches.len().clamp(1, MOST_BATCHES)
            || self.batches.iter().any(|(_, batch)| batch.byte_len() >= batch_bytes * 4)
    }
}

/// Rows that were placed, for their shards.
#[derive(Clone)]
pub struct Batches {
    batches: Vec<(ShardId, RowBatch)>,
    order: Option<Vec<u32>>,
}

impl Batches {
    /// The same rows, placed anew. Nothing is to be returned of them.
    pub fn place_again(
        &self,
        run: &Statement<'_>,
        topology: &Topology,
        insert: &Insert,
    ) -> Result<Placed, WireError> {
        let mut placed = Placed::new(false);
        for row in self.batches.iter().flat_map(|(_, batch)| batch.rows()) {
            let row: Vec<Value> = row.map(|value| value.to_owned()).collect();
            placed.push(run, topology, insert, &row)?;
        }
        Ok(placed)
    }
}

impl Executor {
    /// Runs an INSERT.
    pub async fn insert(
        &self,
        run: &Statement<'_>,
        insert: &Insert,
        scalars: &[Value],
    ) -> Result<Written, WireError> {
        match &insert.rows {
            InsertRows::Values(rows) => {
                let mut placed = Placed::new(insert.returning.is_some());
                for row in rows {
                    let row = values_of(row, scalars)?;
                    placed.push(run, &run.state.topology, insert, &row)?;
                }
                self.send(run, insert, scalars, placed.finish()).await
            }
            InsertRows::Query { query, row } => {
                let rows = self.query(run, query, scalars).await?;
                self.insert_all(run, insert, scalars, row, rows).await
            }
        }
    }

    /// INSERT .. SELECT. The query's snapshots are open before the first row is written, so it never meets its own.
    async fn insert_all(
        &self,
        run: &Statement<'_>,
        insert: &Insert,
        scalars: &[Value],
        row: &[RowValue],
        rows: RowStream,
    ) -> Result<Written, WireError> {
        let mut own = None;
        let done = self.insert_each(run, insert, scalars, row, rows, &mut own).await;
        self.conclude(run, own, done).await
    }

    /// What is more than one batch gets a transaction, unless there is one: `own`.
    async fn insert_each(
        &self,
        run: &Statement<'_>,
        insert: &Insert,
        scalars: &[Value],
        row: &[RowValue],
        mut rows: RowStream,
        own: &mut Option<Transaction>,
    ) -> Result<Written, WireError> {
        let ordered = insert.returning.is_some();
        let mut placed = Placed::new(ordered);
        let mut parts = Vec::new();
        while let Some(chunk) = rows.next().await? {
            for input in chunk.rows() {
                let input: Vec<Value> = input.map(|value| value.to_owned()).collect();
                let made = self.make_row(run, row, scalars, input).await?;
                placed.push(run, &run.state.topology, insert, &made)?;
            }
            if placed.is_full(self.config.batch_bytes * 4) {
                if insert.touch > 0 {
                    // Each shard looks for rows that are hit twice within one batch.
                    let what = "INSERT .. SELECT .. ON CONFLICT DO UPDATE of so many rows";
                    return Err(WireError::unsupported(what).with_hint("Insert them in parts."));
                }
                let full = std::mem::replace(&mut placed, Placed::new(ordered));
                if run.transaction.is_none() && own.is_none() {
                    *own = Some(self.begin(run));
                }
                parts.push(self.send(&run.within(own.as_ref()), insert, scalars, full.finish()).await?);
            }
        }
        parts.push(self.send(&run.within(own.as_ref()), insert, scalars, placed.finish()).await?);
        Ok(sum_of(parts))
    }

    /// A row of the statement's width, made of one of the input's.
    pub async fn make_row(
        &self,
        run: &Statement<'_>,
        row: &[RowValue],
        scalars: &[Value],
        mut input: Vec<Value>,
    ) -> Result<Vec<Value>, WireError> {
        let mut made = Vec::with_capacity(row.len());
        for (i, value) in row.iter().enumerate() {
            made.push(match value {
                RowValue::Input(place) => {
                    let again = row[i + 1..].contains(value);
                    let value = input.get_mut(*place);
                    let value =
                        value.ok_or_else(|| WireError::internal("a row lacks a value of its input"))?;
                    if again { value.clone() } else { std::mem::take(value) }
                }
                RowValue::Fixed(id) => value_at(*id, scalars)?.clone(),
                RowValue::NextValue(id) => {
                    Value::Int(self.sequences.next(*id, &self.cluster, run.retry_until()).await?)
                }
                RowValue::Environment(fact) => environment(*fact, run.facts, &self.config.machine),
                RowValue::Expression(sql) => {
                    sqlite::evaluate(&self.expressions, sql, &[], run.interrupt, run.deadline)?
                }
            });
        }
        Ok(made)
    }

    /// Sends rows to their shards.
    pub async fn send(
        &self,
        run: &Statement<'_>,
        insert: &Insert,
        scalars: &[Value],
        Batches { batches, order }: Batches,
    ) -> Result<Written, WireError> {
        // The row that there is but one of, unless it may be another that breaks a constraint: the one that it meets.
        let only = match &batches[..] {
            [(_, rows)] if rows.len() == 1 && insert.touch == 0 => Some(rows.clone()),
            _ => None,
        };
        let sent = self.send_batches(run, insert, scalars, batches, order).await;
        sent.map_err(|error| match only.as_ref().and_then(|rows| rows.rows().next()) {
            Some(row) => described(error, run, row),
            None => error,
        })
    }

    async fn send_batches(
        &self,
        run: &Statement<'_>,
        insert: &Insert,
        scalars: &[Value],
        mut batches: Vec<(ShardId, RowBatch)>,
        order: Option<Vec<u32>>,
    ) -> Result<Written, WireError> {
        let shards: Vec<_> = batches.iter().map(|(shard, batch)| (*shard, batch.len())).collect();
        let params = pick(&insert.params, scalars)?;
        let write = |shard: ShardId, rows: RowBatch| ShardWrite {
            shard,
            schema_version: run.state.catalog.version(),
            sql: insert.sql.clone(),
            params: params.clone(),
            rows: Some(rows),
            touch: insert.touch,
            locks: insert.touch > 0,
            moves: false,
            alone_in: Some(insert.table),
            everywhere: matches!(insert.target, InsertTarget::Everywhere),
        };
        if matches!(insert.target, InsertTarget::Everywhere) {
            let Some((_, rows)) = batches.pop() else { return Ok(Written::default()) };
            let everywhere = run.state.topology.keyspaces.values().flat_map(|k| &k.shards);
            let writes = everywhere.map(|shard| write(*shard, rows.clone())).collect();
            return self.write_all(run, writes).await.map(first_of);
        }
        if batches.len() < 2 && self.is_alone(run) {
            let Some((shard, rows)) = batches.pop() else { return Ok(Written::default()) };
            return collect(self.write(run, write(shard, rows)).await?).await;
        }
        let writes = batches.into_iter().map(|(shard, rows)| write(shard, rows)).collect();
        let parts = self.write_all(run, writes).await?;
        let affected = parts.iter().map(|part| part.affected).sum();
        let rows = match order {
            // Each row returned one: they can be put in the order of the statement.
            Some(order) if shards.iter().zip(&parts).all(|((_, sent), part)| *sent == count(&part.rows)) => {
                interleave(&order, &parts)
            }
            _ => parts.into_iter().flat_map(|part| part.rows).collect(),
        };
        Ok(Written { affected, rows })
    }
}

fn count(batches: &[RowBatch]) -> usize {
    batches.iter().map(RowBatch::len).sum()
}

/// Rows of several parts in the order that says, for each, which part it's the next of.
fn interleave(order: &[u32], parts: &[Written]) -> Vec<RowBatch> {
    let Some(columns) = parts.iter().flat_map(|part| &part.rows).map(RowBatch::columns).next() else {
        return Vec::new();
    };
    let mut next: Vec<_> = parts.iter().map(|part| part.rows.iter().flat_map(RowBatch::rows)).collect();
    let mut rows = RowBatchBuilder::new(columns);
    for place in order {
        if let Some(row) = next[*place as usize].next() {
            rows.push_row(row);
        }
    }
    vec![rows.finish()]
}

fn value_at(id: ScalarId, scalars: &[Value]) -> Result<&Value, WireError> {
    scalars.get(id.0 as usize).ok_or_else(|| WireError::internal("a plan names a scalar that it hasn't"))
}

fn values_of<'a>(row: &[ScalarId], scalars: &'a [Value]) -> Result<Cow<'a, [Value]>, WireError> {
    // A row that names all scalars in order, as a plain INSERT of literals does, is there already.
    if row.len() == scalars.len() && row.iter().enumerate().all(|(i, id)| id.0 as usize == i) {
        return Ok(Cow::Borrowed(scalars));
    }
    row.iter().map(|id| value_at(*id, scalars).cloned()).collect::<Result<_, _>>().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ValueRef;

    fn part(values: &[i64]) -> Written {
        let mut rows = RowBatchBuilder::new(1);
        values.iter().for_each(|v| rows.push(ValueRef::Int(*v)));
        Written { affected: values.len() as u64, rows: vec![rows.finish()] }
    }

    #[test]
    fn returned_rows_come_in_the_order_of_the_statement() {
        let rows = interleave(&[1, 0, 0, 1], &[part(&[10, 11]), part(&[20, 21])]);
        let values: Vec<_> = rows[0].rows().map(|mut row| row.next().unwrap()).collect();
        assert_eq!(values, [20, 10, 11, 21].map(ValueRef::Int));
    }

    #[test]
    fn rows_are_picked_from_the_scalars() {
        let scalars = [Value::Int(1), Value::Int(2)];
        let ids = |ids: &[u32]| ids.iter().map(|i| ScalarId(*i)).collect::<Vec<_>>();
        assert!(matches!(values_of(&ids(&[0, 1]), &scalars).unwrap(), Cow::Borrowed(_)));
        assert_eq!(*values_of(&ids(&[1, 0]), &scalars).unwrap(), [Value::Int(2), Value::Int(1)]);
        assert!(values_of(&ids(&[2]), &scalars).is_err());
    }
}
