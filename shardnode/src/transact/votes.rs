//! Who has voted, and in whose name that is said.
//!
//! In come questions for a shard's vote: its own, or that of one whose place it has taken together with others. Out goes the
//! vote, or the promise that there will be none. Nobody votes in the name of a shard that serves no more: what has come here of it
//! says whether it had, and where nothing has, no promise needs to be written down. It must never know who counts the votes.

use super::{Desk, unknown};
use crate::branch::Phase;
use crate::{ended, fence, prepared};
use bytes::Bytes;
use proto::services::{BranchAction, Consistency};
use proto::{LogIndex, ShardId, SqlState, TransactionId, WireError};
use replica::{Stage, Written};
use rusqlite::Connection;
use std::sync::Arc;
use std::time::Instant;

impl Desk {
    /// Does something in the name of a shard that others have taken the place of, this one among them. What ends a transaction
    /// ends all that is here of it, whosever votes that is. Nobody votes in that shard's name any more: it has voted here, or it
    /// never will, which needn't be written down.
    pub async fn act_for(
        &self,
        of: ShardId,
        id: TransactionId,
        action: BranchAction,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        let is_vote = match action {
            BranchAction::Finish { .. } | BranchAction::Forget(_) => {
                return self.act(id, action, deadline).await;
            }
            BranchAction::Prepare { .. } => true,
            BranchAction::Renounce => false,
            BranchAction::RollbackTo(_) | BranchAction::Commit { .. } | BranchAction::Fail(_) => {
                let message = format!("shard {of} has taken what was open with it");
                return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message));
            }
        };
        self.know(deadline).await?;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        fence::check_served(&snapshot, self.to)?;
        let connection = snapshot.connection();
        let voted = has_vote(connection, id, of).map_err(|error| snapshot.explain(error))?;
        let index = snapshot.position();
        drop(snapshot);
        if !voted {
            return if is_vote { Err(never_voted()) } else { Ok(index) };
        }
        self.tell_vote(id, index).await;
        if is_vote { Ok(index) } else { Err(has_voted(id)) }
    }

    /// Waits until it may be told that a transaction has a vote here, as of this index: that is as good as the vote.
    async fn tell_vote(&self, id: TransactionId, index: LogIndex) {
        let (tables, found) = {
            let state = self.transactions.look();
            (state.tables(id), state.find(id))
        };
        let participants = match found {
            Some((_, Phase::Prepared(participants))) => participants,
            _ => Vec::new(),
        };
        self.transactions.cuts.vote(id, &participants, &tables, index).await;
    }

    /// Writes down that this shard never votes for the transaction. 55000 if it has.
    pub(super) async fn renounce(&self, id: TransactionId, deadline: Instant) -> Result<LogIndex, WireError> {
        // Its vote may be under way already.
        let turn = self.turn_of(id, deadline).await.map_err(|_| unknown())?;
        let (transactions, to) = (Arc::clone(&self.transactions), self.to);
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check_served(stage, to)?;
            drop(transactions.enter(stage)?);
            if has_vote(stage, id, to.shard)? {
                return Err(has_voted(id));
            }
            ended::renounce(stage, id)?;
            Ok(Bytes::new())
        };
        let transactions = Arc::clone(&self.transactions);
        let ended = move |written: Result<Written, WireError>| {
            let mut state = transactions.look();
            // What it has of another shard's part stays until its end.
            let has_part = matches!(state.find(id), Some((_, Phase::Prepared(_))));
            if written.is_ok() && !has_part {
                state.end(id, Some(renounced()));
            }
            drop(state);
            written
        };
        let renounced = self.see_through(None, turn, deadline, run, ended).await;
        if renounced.is_err() {
            self.tell_vote(id, self.applied()).await;
        }
        renounced.map(|written| written.index)
    }
}

/// Whether a shard has voted: its vote is here, or all have voted.
fn has_vote(connection: &Connection, id: TransactionId, of: ShardId) -> Result<bool, WireError> {
    let votes = prepared::votes(connection, id)?;
    Ok(votes.is_some_and(|votes| votes.contains(&of)) || ended::has_committed(connection, id)?)
}

/// What is heard by who asks for the promise never to vote.
fn has_voted(id: TransactionId) -> WireError {
    let message = format!("the shard has voted for transaction {id}");
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

/// What a prepare hears for a shard that had not voted when others took its place.
pub(super) fn never_voted() -> WireError {
    let message = "the transaction was aborted: a shard of it was replaced before it had voted";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_hint("Run the transaction again.")
}

/// What a prepare hears that comes too late.
pub(super) fn renounced() -> WireError {
    let message = "the transaction was aborted: its vote was missing for too long";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_hint("Run the transaction again.")
}
