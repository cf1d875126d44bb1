//! EXPLAIN: the plan's lines with the shards that this run would ask, and for ANALYZE what they took.

use super::Executor;
use super::statement::{Reading, Statement};
use planner::plan::{Action, InsertRows, Plan, Query, Route};
use proto::machine;
use proto::{RowBatch, RowBatchBuilder, Value, ValueRef, WireError};
use std::sync::Arc;

impl Executor {
    /// The lines of EXPLAIN, as rows.
    pub async fn explain(
        &self,
        run: &Statement<'_>,
        analyze: bool,
        plan: &Arc<Plan>,
    ) -> Result<RowBatch, WireError> {
        // What is measured is what leaders do.
        let run = &Statement { plan, state: run.state.clone(), reading: Reading::STRONG, ..*run };
        // Where the rest goes depends on what is run first, and EXPLAIN runs nothing.
        let runs_first = !plan.first.is_empty();
        let scalars = if runs_first { Vec::new() } else { self.scalars(plan, run).await? };
        let routes = match &plan.action {
            _ if runs_first => Vec::new(),
            Action::Query(query) => self.routes(run, query, &scalars)?,
            Action::Insert(insert) => match &insert.rows {
                InsertRows::Query { query, .. } => self.routes(run, query, &scalars)?,
                InsertRows::Values(_) => Vec::new(),
            },
            Action::Modify(modify) => {
                vec![planner::route(&modify.fragment.target, &scalars, &run.state.topology)?]
            }
            _ => Vec::new(),
        };
        let mut lines = planner::explain(plan, &routes, &run.state.topology);
        if analyze {
            if runs_first {
                return Err(WireError::unsupported(
                    "EXPLAIN ANALYZE of a statement with subqueries that lock",
                ));
            }
            let Action::Query(query @ Query { lock: None, .. }) = &plan.action else {
                return Err(WireError::unsupported("EXPLAIN ANALYZE of a statement that writes or locks"));
            };
            lines.extend(self.analyze(run, query, &routes, &scalars).await?);
        }
        let mut rows = RowBatchBuilder::new(1);
        lines.iter().for_each(|line| rows.push(ValueRef::Text(line)));
        Ok(rows.finish())
    }

    /// Runs the query, and each of its fragments on each shard by itself, and tells what they took.
    async fn analyze(
        &self,
        run: &Statement<'_>,
        query: &Query,
        routes: &[Route],
        scalars: &[Value],
    ) -> Result<Vec<String>, WireError> {
        let mut lines = Vec::new();
        let started = machine::now();
        let mut rows = self.query(run, query, scalars).await?;
        let mut returned = 0;
        while let Some(chunk) = rows.next().await? {
            returned += chunk.len();
        }
        let took = machine::now().saturating_duration_since(started);
        for (place, (fragment, route)) in query.fragments.iter().zip(routes).enumerate() {
            for shard in super::gather::shards_of(route.clone()) {
                let started = machine::now();
                let answer = self.read(run, shard, fragment, scalars, None).await?;
                let (mut rows, mut bytes) = (0, 0);
                let mut take = |batch: &RowBatch| {
                    rows += batch.len();
                    bytes += batch.data().len();
                };
                match answer.rows {
                    proto::services::RowSource::Whole(batch) => take(&batch),
                    proto::services::RowSource::Stream(mut stream) => {
                        while let Some(batch) = run.attend(super::rows::next_of(&mut stream)).await? {
                            take(&batch);
                        }
                    }
                }
                let name = run.state.topology.shard_name(shard);
                let took = machine::now().saturating_duration_since(started).as_secs_f64() * 1000.0;
                lines.push(format!(
                    "Fragment {} on {name}: rows={rows} bytes={bytes} time={took:.3} ms",
                    place + 1
                ));
            }
        }
        lines.push(format!("Execution: rows={returned} time={:.3} ms", took.as_secs_f64() * 1000.0));
        Ok(lines)
    }
}
