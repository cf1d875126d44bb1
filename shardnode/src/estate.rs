//! Estates: what a sealed shard leaves beside its rows, and how others take it up.
//!
//! In comes a snapshot of a sealed shard; out goes what is prepared in it, and what has committed there and is remembered
//! ([`left`]). In come the estates of all whose place a shard takes, with their changes filtered; out comes one write, by
//! which the shard has all of it and serves ([`adopt`]). What is prepared on several of them becomes one row, that ends as
//! a whole. If a seal is undone, what was adopted is nobody's any more ([`close`]). It must never know how an
//! estate came here.

use crate::fence::{Standing, State};
use crate::{ended, prepared};
use proto::services::{Left, ServiceResult};
use proto::{Attempt, ShardId};
use replica::Stage;
use rusqlite::Connection;

/// What a shard leaves that is sealed in this snapshot.
pub(crate) fn left(connection: &Connection) -> ServiceResult<Vec<Left>> {
    let mut found = Vec::new();
    for prepared in prepared::all(connection)? {
        found.push(Left::Prepared(prepared));
    }
    for (transaction, participants) in ended::load(connection)? {
        found.push(Left::Ended { transaction, participants });
    }
    Ok(found)
}

/// Has a group serve as a shard that takes the place of others, with all that those leave. For closures on the writer that adopt
/// ([`Desk::adopt`](crate::transact::Desk::adopt)).
pub(crate) fn adopt(stage: &Stage<'_>, to: ShardId, left: Vec<Left>) -> ServiceResult<()> {
    forget(stage)?;
    for left in left {
        match left {
            Left::Prepared(prepared) => prepared::adopt(stage, stage.applied(), &prepared)?,
            Left::Ended { transaction, participants } => ended::commit(stage, transaction, &participants)?,
        }
    }
    let standing = Standing::read(stage)?;
    Standing { shard: to, state: State::Open, attempt: Attempt(0), ..standing }.write(stage)
}

/// The group serves nobody any more: a seal was undone, so somebody else does. Nothing if it hasn't adopted. For closures on
/// the writer that adopt.
pub(crate) fn close(stage: &Stage<'_>) -> ServiceResult<()> {
    let standing = Standing::read(stage)?;
    if standing.state != State::Open {
        return Ok(());
    }
    forget(stage)?;
    Standing { state: State::Following, ..standing }.write(stage)
}

/// What was adopted before, or left when the group was itself sealed.
fn forget(connection: &Connection) -> ServiceResult<()> {
    prepared::clear(connection)?;
    ended::clear(connection)
}
