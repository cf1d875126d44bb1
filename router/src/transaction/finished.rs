//! Telling the coordinator which transactions have finished everywhere.
//!
//! Nobody waits for it: what the coordinator isn't told it finds out by itself. While one message is on its way others
//! gather for the next, so that many transactions cost few messages.

use super::Transactions;
use parking_lot::Mutex;
use proto::TransactionId;
use proto::machine;
use proto::services::CoordinatorService;
use std::sync::Arc;
use std::time::Duration;

/// How long the coordinator may take to hear of it.
const TELLING_TIMEOUT: Duration = Duration::from_secs(5);

/// What the coordinator is to be told.
#[derive(Debug, Default)]
pub struct Finished {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    transactions: Vec<TransactionId>,
    /// A task is telling, and will look here again.
    telling: bool,
}

impl Finished {
    /// Adds one. Says whether somebody must begin to tell.
    fn push(&self, transaction: TransactionId) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.transactions.push(transaction);
        !std::mem::replace(&mut waiting.telling, true)
    }

    /// What is to be told next. `None`: nothing, and nobody is telling any more.
    fn take(&self) -> Option<Vec<TransactionId>> {
        let mut waiting = self.waiting.lock();
        let next = std::mem::take(&mut waiting.transactions);
        waiting.telling = !next.is_empty();
        waiting.telling.then_some(next)
    }
}

impl Transactions {
    /// A transaction has finished on all its shards.
    pub(super) fn tell_finished(self: &Arc<Self>, transaction: TransactionId) {
        if self.finished.push(transaction) {
            let all = self.clone();
            tokio::spawn(async move {
                while let Some(transactions) = all.finished.take() {
                    let ask = |coordinator: Arc<dyn CoordinatorService>| {
                        let transactions = transactions.clone();
                        async move { coordinator.finished(transactions).await }
                    };
                    let deadline = machine::now() + TELLING_TIMEOUT;
                    if let Err(error) = all.cluster.ask_coordinator(deadline, deadline, ask).await {
                        tracing::debug!(%error, "the coordinator was not told of finished transactions");
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RouterIncarnation;

    #[test]
    fn one_tells_for_all_who_come_meanwhile() {
        let id = |sequence| TransactionId { router: RouterIncarnation(1), sequence };
        let finished = Finished::default();
        assert!(finished.push(id(1)));
        assert_eq!(finished.take(), Some(vec![id(1)]));
        assert!(!finished.push(id(2)) && !finished.push(id(3)));
        assert_eq!(finished.take(), Some(vec![id(2), id(3)]));
        assert_eq!(finished.take(), None);
        assert!(finished.push(id(4)));
    }
}
