//! Queries that are run before their statement: what a plan has in `first`.
//!
//! In come such a query and the scalars that it may use; out comes one scalar more: its one value, or its rows packed. If one of
//! them locks rows, it and its statement are one transaction, the statement's own if it has no other. Nothing here knows
//! what the rows are used for.

use super::Executor;
use super::rows::RowStream;
use super::statement::Statement;
use super::writes::{Written, unseen};
use dialect::rowset;
use planner::plan::{Action, Plan, Query};
use proto::{RowBatchBuilder, SqlState, Value, WireError};

/// The most bytes of rows that such a query may give: they travel to every shard that needs them.
const MOST_BYTES: usize = 16 << 20;

impl Executor {
    /// What a query of a plan's `first` gives.
    pub(super) async fn first(
        &self,
        run: &Statement<'_>,
        query: &Query,
        columns: u16,
        single: bool,
        scalars: &[Value],
    ) -> Result<Value, WireError> {
        let mut rows = self.query(run, query, scalars).await?;
        let mut found = RowBatchBuilder::new(columns);
        while let Some(chunk) = rows.next().await? {
            for row in chunk.rows() {
                // Columns behind the result's own were for the order.
                found.push_row(row.take(columns.into()));
                if single && found.rows() > 1 {
                    return Err(WireError::new(
                        SqlState::CARDINALITY_VIOLATION,
                        "more than one row returned by a subquery used as an expression",
                    ));
                }
            }
            if found.byte_len() > MOST_BYTES {
                let message = format!("a subquery of a statement gives more than {MOST_BYTES} bytes of rows");
                return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
                    .with_hint("Let it find fewer rows, or run it by itself."));
            }
        }
        let found = found.finish();
        Ok(match single {
            true => found.rows().next().and_then(|mut row| row.next()).map_or(Value::Null, |v| v.to_owned()),
            false => rowset::pack(&found),
        })
    }

    /// Runs a plan that writes: its scalars, then its statement.
    pub async fn write_plan(&self, run: &Statement<'_>, plan: &Plan) -> Result<Written, WireError> {
        let locks = plan.locks_first().is_some() && run.transaction.is_none();
        let own = locks.then(|| self.begin(run));
        let within = run.within(own.as_ref());
        let written = async {
            let scalars = self.scalars(plan, &within).await?;
            match &plan.action {
                Action::Insert(insert) => self.insert(&within, insert, &scalars).await,
                Action::Modify(modify) => self.modify(&within, modify, &scalars).await,
                _ => Err(WireError::internal("a plan that should write does something else")),
            }
        };
        let written = written.await;
        self.conclude(run, own, written).await
    }

    /// Opens a plan's query: its scalars, then its rows.
    pub async fn query_plan(
        &self,
        run: &Statement<'_>,
        plan: &Plan,
        query: &Query,
    ) -> Result<RowStream, WireError> {
        let locks = plan.locks_first().is_some() && run.transaction.is_none();
        let own = locks.then(|| self.begin(run));
        let within = run.within(own.as_ref());
        let rows = async {
            let scalars = self.scalars(plan, &within).await?;
            self.query(&within, query, &scalars).await
        };
        let rows = rows.await;
        let Some(own) = own else { return rows };
        // Nothing was written.
        own.rollback().settle().await;
        rows.map_err(unseen)
    }
}
