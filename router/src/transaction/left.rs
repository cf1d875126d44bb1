//! Branches that are to end and couldn't be told so.
//!
//! A shard keeps what is open as long as the router that opened it lives, locks and all. So whoever gives a branch up
//! because its shard doesn't answer leaves it here, and it is told again, with each of the router's signs of life, until the shard
//! has heard it, or doesn't serve any more: then it has ended what wasn't prepared. It must never be given one that is
//! prepared: that ends by its verdict.

use super::Transactions;
use super::alive::BEAT;
use super::end::ROLLBACK;
use futures::future::join_all;
use parking_lot::Mutex;
use proto::{Retry, ShardId, TransactionId, machine};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// How many there may be. The oldest is given up for a new one: its shard has mostly had another leader since.
const MOST: usize = 100_000;
/// How many shards are told of at once.
const AT_ONCE: usize = 256;

/// What is yet to be ended, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<VecDeque<(TransactionId, ShardId)>>);

impl Transactions {
    /// A shard is to be told later that a branch is rolled back.
    pub(super) fn leave(&self, transaction: TransactionId, shard: ShardId) {
        let mut left = self.left.0.lock();
        left.push_back((transaction, shard));
        if left.len() > MOST {
            left.pop_front();
        }
    }

    /// Tells shards what was left, in the background.
    pub(super) fn end_what_is_left(self: &Arc<Self>) {
        let some: Vec<_> = {
            let mut left = self.left.0.lock();
            let count = left.len().min(AT_ONCE);
            left.drain(..count).collect()
        };
        if some.is_empty() {
            return;
        }
        let all = self.clone();
        tokio::spawn(async move {
            let until = machine::now() + 2 * BEAT;
            let end = some.into_iter().map(|(transaction, shard)| all.roll_back(transaction, shard, until));
            join_all(end).await;
        });
    }

    /// Rolls back a branch that isn't prepared, now or later.
    pub(super) async fn roll_back(&self, transaction: TransactionId, shard: ShardId, until: Instant) {
        if let Err(error) = self.ask(transaction, shard, ROLLBACK, until).await
            && !matches!(error.retry, Retry::Never | Retry::StaleEpoch(_))
        {
            tracing::debug!(%transaction, %shard, %error, "a branch is rolled back later");
            self.leave(transaction, shard);
        }
    }
}
