//! Telling shards that they needn't remember what has committed everywhere.
//!
//! A shard that finishes a transaction which its votes alone have committed remembers that, for whoever asks
//! after a router that is gone. Once all have finished there is nothing to ask. Nobody waits for it: what shards aren't told
//! here the coordinator finds out. Who has taken a shard's place remembers in its name. They are told of many at a time, a moment later, so it costs few entries of their logs.

use super::Transactions;
use parking_lot::Mutex;
use proto::services::BranchAction;
use proto::{ShardId, TransactionId, machine};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long what is to be told is gathered.
const GATHERING: Duration = Duration::from_millis(500);
/// How long a shard may take to hear of it.
const TELLING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many one shard is told of at once.
const AT_ONCE: usize = 1000;

/// What shards remember and needn't.
#[derive(Debug, Default)]
pub struct Kept {
    waiting: Mutex<BTreeMap<ShardId, Vec<TransactionId>>>,
}

impl Transactions {
    /// A transaction has finished on all its shards.
    pub(super) fn forget(self: &Arc<Self>, transaction: TransactionId, shards: &[ShardId]) {
        let mut waiting = self.kept.waiting.lock();
        let is_first = waiting.is_empty();
        shards.iter().for_each(|shard| waiting.entry(*shard).or_default().push(transaction));
        drop(waiting);
        if is_first {
            let all = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(GATHERING).await;
                let waiting = std::mem::take(&mut *all.kept.waiting.lock());
                for (shard, transactions) in waiting {
                    for some in transactions.chunks(AT_ONCE) {
                        let until = machine::now() + TELLING_TIMEOUT;
                        let forget = BranchAction::Forget(some.to_vec());
                        if let Err(error) = all.ask_part(some[0], shard, &forget, until).await {
                            tracing::debug!(%shard, %error, "a shard was not told what it may forget");
                        }
                    }
                }
            });
        }
    }
}
