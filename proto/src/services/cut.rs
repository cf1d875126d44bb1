//! Consistent cuts: how a read of several shards has them all show one state.
//!
//! A router **opens** the cut on each shard. From then on the shard's leader has a snapshot for it, and **withholds**: it
//! tells nobody what the snapshot lacks of the cut's tables. If transactions are pending in a snapshot, all shards
//! concerned **settle** them: they let those through, and open their snapshots again when they have ended. Then each is
//! **closed**, which fails if it has let something else through meanwhile. A fragment that names the cut releases the
//! shard, and runs on the snapshot. Why that's enough stands in docs/transactions.md, and docs/models/cut.py tries it.

use crate::error::{SqlState, WireError};
use crate::ids::{CutId, Epoch, LogIndex, SchemaVersion, ShardId, TableId, TransactionId};
use std::time::Duration;

/// Something for a cut on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutRequest {
    /// The shard.
    pub shard: ShardId,
    /// The topology it was routed by.
    pub epoch: Epoch,
    /// The cut.
    pub cut: CutId,
    /// What is to be done.
    pub action: CutAction,
    /// How long it may take, waiting included.
    pub timeout: Duration,
}

/// What is to be done with a cut on one shard. Repeating any of it is safe. If the shard doesn't have the cut any more
/// (its bound has passed, its leader has changed) the answer is [`cut_lost`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutAction {
    /// Opens a snapshot, and withholds. Answers with the transactions that are pending in it.
    Open {
        /// The catalog by which it is read.
        schema_version: SchemaVersion,
        /// What is read. None: everything.
        tables: Vec<TableId>,
        /// How many fragments will read the snapshot. The first one releases the shard, the last one closes the
        /// snapshot. `None`: it is kept until the cut is released, or nothing is heard of it for long.
        scans: Option<u32>,
        /// What the snapshot must show at least. A shard whose log ends before that answers [`crate::Retry::Behind`] at once,
        /// and has nothing of the cut.
        after: LogIndex,
    },
    /// Lets the votes of these transactions through, and waits until those have ended that were pending in the snapshot or
    /// have been let through; then opens it again. Answers at once with such as aren't among these. A shard that the
    /// cut doesn't read has others that settle something let them through, too.
    Settle(Vec<TransactionId>),
    /// Lets nothing through any more. Answers with what was let through since the snapshot was opened: with any, it
    /// isn't closed.
    Close,
    /// Withholds no longer. A snapshot that is kept stays.
    Release,
    /// Forgets the cut.
    Drop,
}

/// A transaction that a cut has to settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// The transaction.
    pub transaction: TransactionId,
    /// All shards on which it has a branch.
    pub participants: Vec<ShardId>,
}

/// What is heard for a cut that the shard doesn't have any more. Nothing was told by it, so it can be begun anew.
pub fn cut_lost() -> WireError {
    WireError::new(SqlState::SNAPSHOT_TOO_OLD, CUT_LOST)
}

/// Whether that is what was heard.
pub fn is_cut_lost(error: &WireError) -> bool {
    error.sqlstate == SqlState::SNAPSHOT_TOO_OLD && error.message == CUT_LOST
}

const CUT_LOST: &str = "a shard has given up the snapshot of a read over several shards";
