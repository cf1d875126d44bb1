//! Transactions, as routers, shards and the coordinator speak of them.
//!
//! A transaction begins in its router. On each shard that it touches it has a **branch**, which the shard's leader keeps
//! in memory until it is committed or **prepared**. A transaction with one branch is committed by that shard; one with
//! several is prepared on all: the votes commit it, or (with an idempotency key) the coordinator's **verdict** does. Then
//! all branches finish. A transaction that lacks a vote is what the coordinator's verdict makes it.

use super::shard::{Access, Consistency, FragmentRequest};
use crate::error::WireError;
use crate::ids::{Epoch, LogIndex, RequestId, ShardId, TableId, TransactionId};
use std::sync::Arc;
use std::time::Duration;

/// Which transaction a fragment belongs to. Its branch on the shard begins with its first statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The transaction.
    pub transaction: TransactionId,
    /// When it began, in microseconds since 1970 by its router's clock. Of a deadlock's parties, the youngest ends.
    pub begun: u64,
    /// Counts the transaction's statements on this shard, from 1. A repeated one is answered as before; one whose
    /// predecessors the shard doesn't know is 40001: its leader has changed.
    pub statement: u32,
    /// How long the statement may wait for a lock; `None` for as long as it may take.
    pub lock_timeout: Option<Duration>,
    /// Whether the transaction is one statement's own, whose router runs it again if it is lost: nobody has seen anything of it.
    pub alone: bool,
}

/// What a fragment does in its branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BranchAccess {
    /// Reads what is committed, and what the transaction has written.
    Read,
    /// Reads rows and locks them. The result's first columns are the primary keys of the rows that each of its rows is made
    /// of; they are cut off the rows that are returned.
    Lock {
        /// Whose rows, in the order of the keys in the result.
        rows: Arc<[LockedRows]>,
        /// Ends when so many rows are locked; those that were skipped don't count. The SQL has no limit of its own.
        limit: Option<u64>,
        /// Gives back first what the branch's statement before this one has locked, which was the same with another limit.
        anew: bool,
    },
    /// Writes. The first `touch` columns are as in [`Access::Write`]; rows are locked by them, too.
    Write {
        /// How many columns the key has.
        touch: u16,
    },
    /// Deletes rows that the transaction adds on other shards: their shard key has changed. A statement that has waited for
    /// one of them ends with [`Retry::Moved`](crate::Retry::Moved), for it may have to find it there.
    Move,
}

/// The rows of one table that a query locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockedRows {
    /// The table.
    pub table: TableId,
    /// How many columns its key has.
    pub key: u16,
    /// How strong the locks are.
    pub mode: RowLock,
    /// What happens if another has one.
    pub wait: LockWait,
}

/// PostgreSQL's row locks, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // PostgreSQL's names
pub enum RowLock {
    KeyShare,
    Share,
    NoKeyUpdate,
    Update,
}

impl RowLock {
    /// Whether two transactions can't have these on one row.
    pub fn conflicts(self, other: RowLock) -> bool {
        use RowLock::*;
        match (self.min(other), self.max(other)) {
            (KeyShare, Update) => true,
            (KeyShare, _) | (Share, Share) => false,
            _ => true,
        }
    }
}

/// What happens to who meets a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockWait {
    /// It waits.
    Wait,
    /// 55P03.
    NoWait,
    /// The row isn't among the result's.
    SkipLocked,
}

/// Something for a branch.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchRequest {
    /// The shard.
    pub shard: ShardId,
    /// The topology it was routed by. What finishes a branch is never refused for an old one.
    pub epoch: Epoch,
    /// The shard that has had the branch, if this one is asked as one of its heirs. It answers by what it has taken over: whether
    /// it has that shard's vote, and whether the transaction has ended. It votes for nobody, and promises nothing.
    pub on_behalf: Option<ShardId>,
    /// The transaction.
    pub transaction: TransactionId,
    /// What is to be done.
    pub action: BranchAction,
    /// How long it may take, waiting included.
    pub timeout: Duration,
}

/// What is to be done with a branch.
#[derive(Clone, Debug, PartialEq)]
pub enum BranchAction {
    /// Undoes what came after this statement: ROLLBACK TO SAVEPOINT. 0 undoes everything.
    RollbackTo(u32),
    /// Commits a transaction that has no other branch. Repeating it under its name is safe.
    Commit {
        /// Names it.
        request: RequestId,
        /// As in [`Access::Write`].
        settled: u64,
    },
    /// Makes the branch survive its leader, and votes for the transaction by answering. Repeating it is safe.
    Prepare {
        /// All shards on which the transaction has a branch.
        participants: Vec<ShardId>,
        /// Whether the transaction is committed once all have voted; else by the coordinator's verdict.
        parallel: bool,
    },
    /// Ends a branch as it was decided. One that isn't prepared is rolled back by `commit: false`. A branch that has ended
    /// is answered with success.
    Finish {
        /// Whether the transaction is committed.
        commit: bool,
        /// Whether the shard must remember that it has committed, for nothing but the votes says so.
        keep: bool,
    },
    /// Has the shard promise never to vote for the transaction. 55000 if it has.
    Renounce,
    /// All participants of these have committed, or it's written down elsewhere that they do: the shard needn't remember.
    Forget(Vec<TransactionId>),
    /// Ends a branch that isn't prepared: its statement that waits, or else its next one, fails with this error.
    Fail(WireError),
}

/// What a shard knows of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchStatus {
    /// The shard.
    pub shard: ShardId,
    /// The transaction.
    pub transaction: TransactionId,
    /// See [`Branch::begun`].
    pub begun: u64,
    /// If the shard has voted, or one that has gone on in it: the transaction's participants.
    pub prepared: Option<Vec<ShardId>>,
    /// If it is prepared, whose votes that is: the shard's own, or those of shards that have gone on in it.
    pub votes: Vec<ShardId>,
    /// Whether the votes commit the transaction, if it is prepared.
    pub parallel: bool,
    /// Whether it has committed here, and is remembered because nothing but the votes says so.
    pub committed: bool,
    /// Whether it is prepared, and the shard's leader takes its router to be gone: it has heard nothing of it for long.
    pub forsaken: bool,
    /// How long it has been as it is: since its last statement, or since it was prepared as far as this leader knows.
    pub idle: Duration,
    /// The transactions that its statement waits for.
    pub waits_for: Vec<TransactionId>,
}

/// What a transaction is to become. The first that the coordinator hears of a transaction stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The transaction.
    pub transaction: TransactionId,
    /// Its participants.
    pub participants: Vec<ShardId>,
    /// Whether all of them have voted for it, and it is to be committed.
    pub commit: bool,
    /// The idempotency key that it uses up by being committed. It must have been claimed for the transaction.
    pub key: Option<String>,
    /// Where its participants have voted, as far as is known: who reads no less than that, and waits for what is prepared
    /// there, sees what it did.
    pub positions: Vec<(ShardId, LogIndex)>,
}

impl Decision {
    /// An abort.
    pub fn abort(transaction: TransactionId, participants: Vec<ShardId>) -> Self {
        Self { transaction, participants, commit: false, key: None, positions: Vec::new() }
    }
}

/// What a transaction has become, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is committed.
    pub committed: bool,
    /// A position in the coordinator's log that has the record: for the decision that made it, the record's own.
    pub position: LogIndex,
    /// If it is aborted because another transaction had used up its idempotency key: that one.
    pub duplicate_of: Option<TransactionId>,
}

/// A transaction that is to use up an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The transaction.
    pub transaction: TransactionId,
    /// The key.
    pub key: String,
}

/// The transaction that has used up an idempotency key by being committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The transaction.
    pub transaction: TransactionId,
    /// Whether every participant has finished, so that its effects are seen everywhere.
    pub finished: bool,
    /// As in its [`Decision`].
    pub positions: Vec<(ShardId, LogIndex)>,
}

/// A transaction that the coordinator has a record of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionStatus {
    /// The transaction.
    pub transaction: TransactionId,
    /// Its participants.
    pub participants: Vec<ShardId>,
    /// Whether it is committed.
    pub committed: bool,
    /// Whether every participant has finished.
    pub finished: bool,
    /// As in its [`Decision`].
    pub positions: Vec<(ShardId, LogIndex)>,
}

impl FragmentRequest {
    /// Whether it is a write by itself, so that its outcome is unknown until its answer is heard.
    pub fn writes(&self) -> bool {
        matches!(self.access, Access::Write { .. })
    }

    /// Whether it has to be as fresh as only a leader knows.
    pub fn is_strong(&self) -> bool {
        !matches!(self.access, Access::Read { consistency, .. } if consistency != Consistency::Strong)
    }

    /// Whether it leaves something where it was executed, though its answer be lost. A branch's statement can be repeated,
    /// but who gives it up must undo it: the shard has counted it.
    pub fn leaves_something(&self) -> bool {
        matches!(self.access, Access::Write { .. } | Access::Branch { .. })
    }
}
