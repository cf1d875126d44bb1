//! The reshards that there are and have been, for `shoal_reshards`.
//!
//! They are asked for when a query reads the view, and are as the coordinator knows them at that moment. If it can't be asked the
//! query fails: an empty answer could be taken for the truth.

use super::Executor;
use proto::services::{CoordinatorService, ReshardStatus};
use proto::{WireError, machine};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the coordinator may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Executor {
    /// All of them, by their numbers.
    pub async fn reshards_now(&self, deadline: Instant) -> Result<Vec<ReshardStatus>, WireError> {
        let until = deadline.min(machine::now() + PATIENCE);
        let list = |coordinator: Arc<dyn CoordinatorService>| async move { coordinator.reshards().await };
        let mut reshards = self.cluster.ask_coordinator(until, until, list).await?;
        reshards.sort_by_key(|reshard| reshard.id);
        Ok(reshards)
    }
}
