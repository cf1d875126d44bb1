//! Transactions as messages.

use super::generated as pb;
use super::shard::nanos;
use super::{Convert, DecodeError, each, id, known, maybe, messages, one, required};
use crate::error::WireError;
use crate::ids::{Epoch, LogIndex, RouterIncarnation, ShardId, TableId, TransactionId};
use crate::services::{
    Branch, BranchAccess, BranchAction, BranchRequest, BranchStatus, Claim, Decision, LockWait, LockedRows,
    RowLock, Spent, TransactionStatus, Verdict,
};
use std::time::Duration;

impl Convert for TransactionId {
    type Message = pb::TransactionId;
    const NAME: &'static str = "transaction";

    fn to_message(&self) -> pb::TransactionId {
        pb::TransactionId { router: self.router.0, sequence: self.sequence }
    }

    fn from_message(message: pb::TransactionId) -> Result<Self, DecodeError> {
        let sequence = id("sequence", message.sequence)?;
        Ok(TransactionId { router: RouterIncarnation(message.router), sequence })
    }
}

pub(super) fn shard_numbers(shards: &[ShardId]) -> Vec<u64> {
    shards.iter().map(|shard| shard.0).collect()
}

pub(super) fn shards(field: &str, numbers: Vec<u64>) -> Result<Vec<ShardId>, DecodeError> {
    numbers.into_iter().map(|number| Ok(ShardId(id(field, number)?))).collect()
}

impl Convert for Branch {
    type Message = pb::Branch;
    const NAME: &'static str = "branch";

    fn to_message(&self) -> pb::Branch {
        let Branch { transaction, begun, statement, lock_timeout, alone } = self;
        pb::Branch {
            transaction: Some(transaction.to_message()),
            begun: *begun,
            statement: *statement,
            lock_timeout: lock_timeout.map(nanos),
            alone: *alone,
        }
    }

    fn from_message(message: pb::Branch) -> Result<Self, DecodeError> {
        Ok(Branch {
            transaction: one("transaction", message.transaction)?,
            begun: message.begun,
            statement: id("statement", message.statement)?,
            lock_timeout: message.lock_timeout.map(Duration::from_nanos),
            alone: message.alone,
        })
    }
}

fn key_width(field: &str, width: u32) -> Result<u16, DecodeError> {
    u16::try_from(width).map_err(|e| DecodeError::new(field, e))
}

/// A branch and what it does, as one message.
pub(super) fn in_branch(branch: &Branch, access: &BranchAccess) -> pb::access::InBranch {
    use pb::access::in_branch::Kind;
    let kind = match access {
        BranchAccess::Read => Kind::Read(pb::Nothing {}),
        BranchAccess::Lock { rows, limit, anew } => {
            let rows = rows.iter().map(locked_rows).collect();
            Kind::Lock(pb::access::Lock { rows, limit: *limit, anew: *anew })
        }
        BranchAccess::Write { touch } => Kind::Write(u32::from(*touch)),
        BranchAccess::Move => Kind::Move(pb::Nothing {}),
    };
    pb::access::InBranch { branch: Some(branch.to_message()), kind: Some(kind) }
}

fn locked_rows(rows: &LockedRows) -> pb::access::lock::Rows {
    let LockedRows { table, key, mode, wait } = *rows;
    let mode = match mode {
        RowLock::KeyShare => pb::RowLock::KeyShare,
        RowLock::Share => pb::RowLock::Share,
        RowLock::NoKeyUpdate => pb::RowLock::NoKeyUpdate,
        RowLock::Update => pb::RowLock::Update,
    };
    let wait = match wait {
        LockWait::Wait => pb::LockWait::Wait,
        LockWait::NoWait => pb::LockWait::NoWait,
        LockWait::SkipLocked => pb::LockWait::SkipLocked,
    };
    pb::access::lock::Rows { table: table.0, key: u32::from(key), mode: mode.into(), wait: wait.into() }
}

fn from_locked_rows(message: pb::access::lock::Rows) -> Result<LockedRows, DecodeError> {
    let pb::access::lock::Rows { table, key, mode, wait } = message;
    Ok(LockedRows {
        table: TableId(id("lock.table", table)?),
        key: key_width("lock.key", key)?,
        mode: match known("lock.mode", mode)? {
            pb::RowLock::Unspecified => return Err(DecodeError::new("lock.mode", "it is missing")),
            pb::RowLock::KeyShare => RowLock::KeyShare,
            pb::RowLock::Share => RowLock::Share,
            pb::RowLock::NoKeyUpdate => RowLock::NoKeyUpdate,
            pb::RowLock::Update => RowLock::Update,
        },
        wait: match known("lock.wait", wait)? {
            pb::LockWait::Unspecified => return Err(DecodeError::new("lock.wait", "it is missing")),
            pb::LockWait::Wait => LockWait::Wait,
            pb::LockWait::NoWait => LockWait::NoWait,
            pb::LockWait::SkipLocked => LockWait::SkipLocked,
        },
    })
}

/// What [`in_branch`] made a message of.
pub(super) fn from_in_branch(message: pb::access::InBranch) -> Result<(Branch, BranchAccess), DecodeError> {
    use pb::access::in_branch::Kind;
    let branch = one("branch.branch", message.branch)?;
    let access = match required("branch.kind", message.kind)? {
        Kind::Read(pb::Nothing {}) => BranchAccess::Read,
        Kind::Lock(pb::access::Lock { rows, limit, anew }) => BranchAccess::Lock {
            rows: rows.into_iter().map(from_locked_rows).collect::<Result<_, _>>()?,
            limit,
            anew,
        },
        Kind::Write(touch) => BranchAccess::Write { touch: key_width("branch.touch", touch)? },
        Kind::Move(pb::Nothing {}) => BranchAccess::Move,
    };
    Ok((branch, access))
}

impl Convert for BranchRequest {
    type Message = pb::BranchRequest;
    const NAME: &'static str = "branch_request";

    fn to_message(&self) -> pb::BranchRequest {
        use pb::branch_request::{Action, Commit, Finish};
        let BranchRequest { shard, epoch, on_behalf, transaction, action, timeout } = self;
        let action = match action {
            BranchAction::RollbackTo(statement) => Action::RollbackTo(*statement),
            BranchAction::Commit { request, settled } => {
                Action::Commit(Commit { request: Some(request.to_message()), settled: *settled })
            }
            BranchAction::Prepare { participants, parallel } => {
                let shards = pb::Shards { shards: shard_numbers(participants) };
                if *parallel { Action::PrepareInParallel(shards) } else { Action::Prepare(shards) }
            }
            BranchAction::Finish { commit, keep } => Action::Finish(Finish { commit: *commit, keep: *keep }),
            BranchAction::Renounce => Action::Renounce(pb::Nothing {}),
            BranchAction::Forget(ids) => Action::Forget(pb::TransactionIds { transactions: messages(ids) }),
            BranchAction::Fail(error) => Action::Fail(error.to_message()),
        };
        pb::BranchRequest {
            shard: shard.0,
            epoch: epoch.0,
            on_behalf: on_behalf.map(|shard| shard.0),
            transaction: Some(transaction.to_message()),
            action: Some(action),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: pb::BranchRequest) -> Result<Self, DecodeError> {
        use pb::branch_request::{Action, Commit, Finish};
        let pb::BranchRequest { shard, epoch, on_behalf, transaction, action, timeout } = message;
        Ok(BranchRequest {
            shard: ShardId(id("shard", shard)?),
            epoch: Epoch(epoch),
            on_behalf: on_behalf.map(|shard| id("on_behalf", shard)).transpose()?.map(ShardId),
            transaction: one("transaction", transaction)?,
            action: match required("action", action)? {
                Action::RollbackTo(statement) => BranchAction::RollbackTo(statement),
                Action::Commit(Commit { request, settled }) => {
                    BranchAction::Commit { request: one("commit.request", request)?, settled }
                }
                Action::Prepare(pb::Shards { shards: participants }) => {
                    BranchAction::Prepare { participants: shards("prepare", participants)?, parallel: false }
                }
                Action::PrepareInParallel(pb::Shards { shards: participants }) => {
                    BranchAction::Prepare { participants: shards("prepare", participants)?, parallel: true }
                }
                Action::Finish(Finish { commit, keep }) => BranchAction::Finish { commit, keep },
                Action::Renounce(pb::Nothing {}) => BranchAction::Renounce,
                Action::Forget(pb::TransactionIds { transactions }) => {
                    BranchAction::Forget(each("forget", transactions)?)
                }
                Action::Fail(error) => {
                    BranchAction::Fail(WireError::from_message(error).map_err(|e| e.inside("fail"))?)
                }
            },
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for BranchStatus {
    type Message = pb::BranchStatus;
    const NAME: &'static str = "branch_status";

    fn to_message(&self) -> pb::BranchStatus {
        let BranchStatus {
            shard,
            transaction,
            begun,
            prepared,
            votes,
            parallel,
            committed,
            forsaken,
            idle,
            waits_for,
        } = self;
        let prepared = prepared.as_deref().map(|shards| pb::Shards { shards: shard_numbers(shards) });
        pb::BranchStatus {
            shard: shard.0,
            transaction: Some(transaction.to_message()),
            begun: *begun,
            prepared,
            idle: nanos(*idle),
            waits_for: messages(waits_for),
            parallel: *parallel,
            committed: *committed,
            forsaken: *forsaken,
            votes: shard_numbers(votes),
        }
    }

    fn from_message(message: pb::BranchStatus) -> Result<Self, DecodeError> {
        let pb::BranchStatus {
            shard,
            transaction,
            begun,
            prepared,
            idle,
            waits_for,
            parallel,
            committed,
            forsaken,
            votes,
        } = message;
        Ok(BranchStatus {
            shard: ShardId(id("shard", shard)?),
            transaction: one("transaction", transaction)?,
            begun,
            prepared: prepared.map(|prepared| shards("prepared", prepared.shards)).transpose()?,
            idle: Duration::from_nanos(idle),
            waits_for: each("waits_for", waits_for)?,
            parallel,
            committed,
            forsaken,
            votes: shards("votes", votes)?,
        })
    }
}

impl Convert for Decision {
    type Message = pb::Decision;
    const NAME: &'static str = "decision";

    fn to_message(&self) -> pb::Decision {
        let Decision { transaction, participants, commit, key, positions } = self;
        pb::Decision {
            transaction: Some(transaction.to_message()),
            participants: shard_numbers(participants),
            commit: *commit,
            key: key.clone(),
            positions: messages(positions),
        }
    }

    fn from_message(message: pb::Decision) -> Result<Self, DecodeError> {
        let pb::Decision { transaction, participants, commit, key, positions } = message;
        let (participants, positions) =
            (shards("participants", participants)?, each("positions", positions)?);
        Ok(Decision { transaction: one("transaction", transaction)?, participants, commit, key, positions })
    }
}

impl Convert for Verdict {
    type Message = pb::Verdict;
    const NAME: &'static str = "verdict";

    fn to_message(&self) -> pb::Verdict {
        let Verdict { committed, position, duplicate_of } = self;
        let duplicate_of = duplicate_of.as_ref().map(TransactionId::to_message);
        pb::Verdict { committed: *committed, position: position.0, duplicate_of }
    }

    fn from_message(message: pb::Verdict) -> Result<Self, DecodeError> {
        let pb::Verdict { committed, position, duplicate_of } = message;
        let duplicate_of = maybe("duplicate_of", duplicate_of)?;
        Ok(Verdict { committed, position: LogIndex(position), duplicate_of })
    }
}

impl Convert for Claim {
    type Message = pb::Claim;
    const NAME: &'static str = "claim";

    fn to_message(&self) -> pb::Claim {
        pb::Claim { transaction: Some(self.transaction.to_message()), key: self.key.clone() }
    }

    fn from_message(message: pb::Claim) -> Result<Self, DecodeError> {
        Ok(Claim { transaction: one("transaction", message.transaction)?, key: message.key })
    }
}

impl Convert for Spent {
    type Message = pb::Spent;
    const NAME: &'static str = "spent";

    fn to_message(&self) -> pb::Spent {
        let Spent { transaction, finished, positions } = self;
        let transaction = Some(transaction.to_message());
        pb::Spent { transaction, finished: *finished, positions: messages(positions) }
    }

    fn from_message(message: pb::Spent) -> Result<Self, DecodeError> {
        let pb::Spent { transaction, finished, positions } = message;
        let positions = each("positions", positions)?;
        Ok(Spent { transaction: one("transaction", transaction)?, finished, positions })
    }
}

impl Convert for TransactionStatus {
    type Message = pb::TransactionStatus;
    const NAME: &'static str = "transaction_status";

    fn to_message(&self) -> pb::TransactionStatus {
        let TransactionStatus { transaction, participants, committed, finished, positions } = self;
        pb::TransactionStatus {
            transaction: Some(transaction.to_message()),
            participants: shard_numbers(participants),
            committed: *committed,
            finished: *finished,
            positions: messages(positions),
        }
    }

    fn from_message(message: pb::TransactionStatus) -> Result<Self, DecodeError> {
        let pb::TransactionStatus { transaction, participants, committed, finished, positions } = message;
        Ok(TransactionStatus {
            transaction: one("transaction", transaction)?,
            participants: shards("participants", participants)?,
            committed,
            finished,
            positions: each("positions", positions)?,
        })
    }
}
