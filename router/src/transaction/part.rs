//! A participant's part in a transaction, when its shard may have been replaced.
//!
//! A participant is its heirs: what is prepared on a shard goes along to each of those that take its place. So whoever has
//! to hear of it is asked in its name, and it is done when all have done it. While nobody serves, because the old shard
//! doesn't any more and the new ones don't yet, it is waited for who does. Nothing here knows what is asked for.

use super::Transactions;
use crate::retry::Backoff;
use futures::future::join_all;
use proto::services::BranchAction;
use proto::{LogIndex, Retry, SchemaVersion, ShardId, SqlState, TransactionId, WireError};
use std::time::Instant;

/// Who is asked, and in whose name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Who is asked.
    pub shard: ShardId,
    /// The shard that has had the branch, if it is another one.
    pub on_behalf: Option<ShardId>,
}

impl Part {
    /// A shard's own branch.
    pub fn own(shard: ShardId) -> Self {
        Part { shard, on_behalf: None }
    }
}

impl Transactions {
    /// Those that have a participant's part now: itself, or its heirs. None if all of it was dropped.
    pub(super) fn parts(&self, participant: ShardId) -> Vec<Part> {
        let state = self.cluster.load();
        if state.topology.serves(participant) {
            return vec![Part::own(participant)];
        }
        let heirs = state.topology.heirs(participant);
        heirs.into_iter().map(|shard| Part { shard, on_behalf: Some(participant) }).collect()
    }

    /// Asks whoever has a participant's part, as [`Self::ask`] does. Answers with where it is done.
    pub(super) async fn ask_part(
        &self,
        transaction: TransactionId,
        participant: ShardId,
        action: &BranchAction,
        until: Instant,
    ) -> Result<Vec<(ShardId, LogIndex)>, WireError> {
        let mut backoff = Backoff::until(until);
        let mut maybe_done = false;
        loop {
            let epoch = self.cluster.load().topology.epoch;
            let parts = self.parts(participant);
            if parts.is_empty() {
                return Err(dropped());
            }
            let asked = parts.iter().map(async |part| {
                let done = self.attempt(transaction, *part, action.clone(), until).await;
                done.map(|position| (part.shard, position))
            });
            let (mut done, mut failed) = (Vec::with_capacity(parts.len()), None);
            for answer in join_all(asked).await {
                match answer {
                    Ok(position) => done.push(position),
                    Err((error, unknown)) => {
                        maybe_done |= unknown;
                        // What is said for good counts.
                        if error.retry == Retry::Never || failed.is_none() {
                            failed = Some(error);
                        }
                    }
                }
            }
            let Some(error) = failed else { return Ok(done) };
            let unknown = |error: WireError| match error.retry {
                Retry::Never => error,
                _ if maybe_done => error.with_retry(Retry::Unknown),
                _ => error,
            };
            let Retry::StaleEpoch(later) = error.retry else { return Err(unknown(error)) };
            let newest = self.cluster.wait_for(SchemaVersion(0), later, until).await.map_err(unknown)?;
            if newest.topology.epoch == epoch && !backoff.pause().await {
                return Err(unknown(error));
            }
        }
    }
}

fn dropped() -> WireError {
    WireError::new(SqlState::SERIALIZATION_FAILURE, "a shard of the transaction was dropped")
}
