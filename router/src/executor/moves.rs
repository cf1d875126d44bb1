//! An UPDATE that changes the shard key: rows go from where they are to where they belong.
//!
//! In comes what finds the rows; they are locked as they are read, then deleted, then added with their new values, all in
//! one transaction. PostgreSQL changes one row after the other and has each find its new key free, so an UPDATE that has a
//! row pass over another one's key fails there, depending on which comes first; here rows are taken in the order of
//! their keys. Nothing here knows how rows are locked.

use super::Executor;
use super::fragments::ShardWrite;
use super::insert::Placed;
use super::statement::Statement;
use super::writes::Written;
use dialect::key::key_form;
use planner::plan::{Move, Route};
use proto::error::Violation;
use proto::{KeyspaceId, RowBatchBuilder, ShardId, SqlState, TableId, Value, WireError};
use std::collections::BTreeMap;

impl Executor {
    /// Runs the UPDATE, in a transaction of its own if there is none.
    pub(super) async fn modify_moving(
        &self,
        run: &Statement<'_>,
        table: TableId,
        moves: &Move,
        scalars: &[Value],
    ) -> Result<Written, WireError> {
        let own = run.transaction.is_none().then(|| self.begin(run));
        let within = run.within(own.as_ref());
        let moved = self.move_rows(&within, table, moves, scalars).await;
        self.conclude(run, own, moved).await
    }

    async fn move_rows(
        &self,
        run: &Statement<'_>,
        table: TableId,
        moves: &Move,
        scalars: &[Value],
    ) -> Result<Written, WireError> {
        let mut found: BTreeMap<KeyspaceId, Vec<Value>> = BTreeMap::new();
        let mut rows = self.query(run, &moves.read, scalars).await?;
        while let Some(chunk) = rows.next().await? {
            for row in chunk.rows() {
                let row: Vec<Value> = row.map(|value| value.to_owned()).collect();
                // A join may give a row more than once. As in PostgreSQL, one of them counts.
                found.entry(key(moves, |number, _| row.get(number))?).or_insert(row);
            }
        }
        if found.is_empty() {
            return Ok(Written::default());
        }
        check_keys(table, moves, &found)?;
        let width = u16::try_from(moves.key.len()).map_err(|_| WireError::internal("a key is too wide"))?;
        let mut gone: BTreeMap<ShardId, RowBatchBuilder> = BTreeMap::new();
        let mut placed = Placed::new(moves.insert.returning.is_some());
        for row in found.values() {
            let Route::One(shard) = planner::route_row(&moves.place, row, &run.state.topology)? else {
                return Err(WireError::internal("a row belongs to no shard, or to several"));
            };
            let batch = gone.entry(shard).or_insert_with(|| RowBatchBuilder::new(width));
            batch.push_row(row[..moves.key.len()].iter().map(Value::as_ref));
            placed.push(run, &run.state.topology, &moves.insert, &row[moves.before..])?;
        }
        let deletes = gone.into_iter().map(|(shard, batch)| ShardWrite {
            shard,
            schema_version: run.state.catalog.version(),
            sql: moves.delete.clone(),
            params: Vec::new(),
            rows: Some(batch.finish()),
            touch: 0,
            locks: false,
            moves: true,
            alone_in: Some(table),
            everywhere: false,
        });
        let deleted = self.write_all(run, deletes.collect()).await?;
        if deleted.iter().map(|part| part.affected).sum::<u64>() != found.len() as u64 {
            return Err(WireError::internal("rows that were locked are gone"));
        }
        self.send(run, &moves.insert, scalars, placed.finish()).await
    }
}

/// A row's primary key, as it is compared. `value` gives a column of it, by its number and its place among the values.
fn key<'r>(moves: &Move, value: impl Fn(usize, usize) -> Option<&'r Value>) -> Result<KeyspaceId, WireError> {
    let mut forms = Vec::with_capacity(moves.key.len());
    for (number, (ty, place)) in moves.key.iter().enumerate() {
        let value = value(number, *place).ok_or_else(|| WireError::internal("a row lacks its key"))?;
        forms.push(key_form(*ty, value.as_ref()));
    }
    Ok(KeyspaceId::range(forms.iter().map(Value::as_ref)))
}

/// Refuses what meets the key of a row that still has it when its turn comes.
fn check_keys(
    table: TableId,
    moves: &Move,
    found: &BTreeMap<KeyspaceId, Vec<Value>>,
) -> Result<(), WireError> {
    for (old, row) in found {
        let new = key(moves, |_, place| row.get(moves.before + place))?;
        if new > *old && found.contains_key(&new) {
            let message = "duplicate key value violates unique constraint";
            return Err(WireError::new(SqlState::UNIQUE_VIOLATION, message)
                .with_violation(Violation::Unique(table, None)));
        }
    }
    Ok(())
}
