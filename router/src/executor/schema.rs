//! DDL and TRUNCATE: the coordinator changes the schema, and the router waits until it sees the change.

use super::Executor;
use super::statement::Statement;
use planner::plan::SchemaAction;
use proto::catalog::ColumnDefault;
use proto::services::{CoordinatorService, SchemaChange, SchemaChangeRequest};
use proto::{Epoch, Retry, SequenceId, TableId, Value, WireError};
use std::sync::Arc;

impl Executor {
    /// Makes the changes, in order. When it returns, this router plans by them.
    pub async fn change_schema(
        &self,
        run: &Statement<'_>,
        action: &SchemaAction,
        scalars: &[Value],
    ) -> Result<(), WireError> {
        for (place, change) in action.changes.iter().enumerate() {
            run.interrupt.check()?;
            let mut change = change.clone();
            if let SchemaChange::ReplaceTable { fill, .. } = &mut change {
                for (_, column, id) in action.fills.iter().filter(|(at, _, _)| *at == place) {
                    let value = scalars.get(id.0 as usize).cloned();
                    let value =
                        value.ok_or_else(|| WireError::internal("a plan names a scalar that it hasn't"))?;
                    fill.push((*column, value));
                }
            }
            let name = self.requests.begin();
            let request =
                SchemaChangeRequest { request: name.id, planned_by: run.state.catalog.version(), change };
            let ask = |coordinator: Arc<dyn CoordinatorService>| {
                let request = request.clone();
                async move { coordinator.change_schema(request).await }
            };
            // What began isn't given up: the coordinator would go on with it.
            let changed = self.cluster.ask_coordinator(run.deadline, run.retry_until(), ask).await;
            let version = changed.map_err(|mut error| {
                if place > 0 {
                    // Planned again, the changes that are done would be asked for once more.
                    error.retry = Retry::Never;
                }
                error
            })?;
            for sequence in restarted(run, &request.change) {
                self.sequences.forget(sequence);
            }
            self.cluster.wait_for(version, Epoch(0), run.deadline).await?;
        }
        Ok(())
    }
}

/// Sequences whose next value is no longer what this router's block says.
fn restarted(run: &Statement<'_>, change: &SchemaChange) -> Vec<SequenceId> {
    match change {
        SchemaChange::Truncate { tables, restart_identity: true } => {
            tables.iter().flat_map(|table| owned_by(run, *table)).collect()
        }
        SchemaChange::ReplaceSequence { sequence, .. } => vec![sequence.id],
        SchemaChange::DropSequences(ids) => ids.clone(),
        SchemaChange::DropTables(tables) => tables.iter().flat_map(|table| owned_by(run, *table)).collect(),
        SchemaChange::Truncate { restart_identity: false, .. }
        | SchemaChange::CreateTable { .. }
        | SchemaChange::ReplaceTable { .. }
        | SchemaChange::CreateSequence(_)
        | SchemaChange::AlterRole { .. } => Vec::new(),
    }
}

fn owned_by(run: &Statement<'_>, table: TableId) -> Vec<SequenceId> {
    let catalog = &run.state.catalog;
    let owned =
        catalog.sequences().filter(|s| s.owner.is_some_and(|(owner, _)| owner == table)).map(|s| s.id);
    let defaults =
        catalog.table(table).into_iter().flat_map(|table| &table.columns).filter_map(|column| match &column
            .default
        {
            Some(ColumnDefault::Sequence { id, .. }) => Some(*id),
            Some(ColumnDefault::Expression(_)) | None => None,
        });
    owned.chain(defaults).collect()
}
