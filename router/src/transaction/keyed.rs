//! Transactions with an idempotency key: whatever becomes of the connection, one of all with the same key is committed.
//!
//! The key is claimed from the coordinator when the transaction begins. If one with that key is committed, it is told so
//! then, once its effects are seen everywhere. If another has begun with it and isn't committed, it never will be: a
//! commit with a key is decided by the coordinator alone, and only for who claimed it last.

use super::{Transaction, Transactions};
use crate::retry::Backoff;
use proto::services::{Claim, CoordinatorService};
use proto::{LogIndex, ShardId, SqlState, TransactionId, WireError, machine};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it is waited for that what was committed before has finished everywhere.
const FINISHING_PATIENCE: Duration = Duration::from_secs(5);

/// What a transaction hears that isn't committed, or can't begin.
#[derive(Debug)]
pub struct Refused {
    /// The error.
    pub error: WireError,
    /// Where the one was prepared that has used up its idempotency key, as far as it is known.
    pub reached: Option<Vec<(ShardId, LogIndex)>>,
}

impl From<WireError> for Box<Refused> {
    fn from(error: WireError) -> Self {
        Box::new(Refused { error, reached: None })
    }
}

impl From<Box<Refused>> for WireError {
    fn from(refused: Box<Refused>) -> Self {
        refused.error
    }
}

impl Transactions {
    /// Begins one that uses a key up by being committed. SH001 if another has used it up. `begun` is in microseconds since
    /// 1970.
    pub async fn begin_with_key(
        self: &Arc<Self>,
        begun: u64,
        key: String,
        deadline: Instant,
    ) -> Result<Transaction, Box<Refused>> {
        let until = deadline.min(self.patience());
        let mut transaction = self.begin(begun);
        transaction.key = Some(key.clone());
        let transaction = transaction;
        let claim = |coordinator: Arc<dyn CoordinatorService>| {
            let claim = Claim { transaction: transaction.id, key: key.clone() };
            async move { coordinator.claim(claim).await }
        };
        let Some(spent) = self.ask_coordinator(until, claim).await? else { return Ok(transaction) };
        if !spent.finished {
            self.until_finished(spent.transaction, until.min(machine::now() + FINISHING_PATIENCE)).await;
        }
        Err(self.already_committed(&key, spent.transaction, spent.positions))
    }

    /// What a transaction hears that learns only by its commit that its key is used up.
    pub(super) async fn spent_by(&self, key: &str, by: TransactionId) -> Box<Refused> {
        let status = |coordinator: Arc<dyn CoordinatorService>| async move {
            coordinator.transactions(Some(by)).await
        };
        let positions = match self.ask_coordinator(self.patience(), status).await {
            Ok(found) => found.into_iter().flat_map(|status| status.positions).collect(),
            Err(error) => {
                tracing::debug!(transaction = %by, %error, "its positions can't be asked for");
                Vec::new()
            }
        };
        self.already_committed(key, by, positions)
    }

    /// What a transaction hears whose key another has used up.
    fn already_committed(
        &self,
        key: &str,
        by: TransactionId,
        positions: Vec<(ShardId, LogIndex)>,
    ) -> Box<Refused> {
        let gtid = self.cluster.load().topology.gtid(&positions.iter().copied().collect());
        let gtid = if gtid.is_empty() { String::new() } else { format!(", its GTID {gtid}") };
        let message = format!("a transaction with the idempotency key \"{key}\" has been committed before");
        let error = WireError::new(SqlState::TRANSACTION_ALREADY_COMMITTED, message)
            .with_detail(format!("Its id is {by}{gtid}."))
            .with_hint("Nothing of this one is done. What the key stands for is done.");
        Box::new(Refused { error, reached: Some(positions) })
    }

    /// Waits until a committed transaction has finished everywhere, or as long as there is time.
    async fn until_finished(&self, id: TransactionId, until: Instant) {
        let mut backoff = Backoff::until(until);
        while backoff.pause().await {
            let status = |coordinator: Arc<dyn CoordinatorService>| async move {
                coordinator.transactions(Some(id)).await
            };
            match self.cluster.ask_coordinator(until, until, status).await {
                Ok(found) if found.iter().all(|status| status.finished) => return,
                Ok(_) => {}
                Err(error) => tracing::debug!(transaction = %id, %error, "its end can't be asked for"),
            }
        }
    }
}

/// What a transaction hears that was aborted because of its key, though nobody has used that up.
pub(super) fn claim_lost(key: &str) -> WireError {
    let message = format!("the transaction has lost its claim on the idempotency key \"{key}\"");
    WireError::new(SqlState::SERIALIZATION_FAILURE, message)
        .with_detail(
            "Another transaction has begun with the key since, or the coordinator's leader has changed.",
        )
        .with_hint("Run the transaction again, with its key.")
}
