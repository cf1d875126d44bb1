//! What a shard's log says, for who does elsewhere what was done here, or tells of it.
//!
//! A reader names a position and is given what the entries after it did, in their order, and then each further entry as
//! soon as a replica has applied it. Every replica gives the same, so who has read from one goes on at another.

use crate::error::WireError;
use crate::ids::{Attempt, LogIndex, RequestId, ReshardId, ShardId, TransactionId};
use crate::layout::TableLayout;
use crate::services::SchemaStep;
use bytes::Bytes;
use std::time::Duration;

/// From where on somebody reads a shard's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesRequest {
    /// The shard. It needn't serve.
    pub shard: ShardId,
    /// What comes after this position.
    pub after: LogIndex,
    /// Something is said at least so often, though nothing may have happened.
    pub beat: Duration,
    /// Whether it is said how rows lie: before the first entry, and after each that changes it.
    pub layouts: bool,
}

/// A part of what a log says. Parts follow each other without a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// What the entries did that lie after the part before, in order. Most entries do several things, many do nothing.
    pub changes: Vec<Change>,
    /// All that was done up to here has been given. What lies beyond it, in this part and in those that follow, is the
    /// beginning of an entry.
    pub position: LogIndex,
    /// The last entry that the replica knows to be committed.
    pub committed: LogIndex,
}

/// One thing that an entry did.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The entry.
    pub index: LogIndex,
    /// What it did.
    pub kind: ChangeKind,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeKind {
    /// It changed rows: a changeset, of tables that nobody but the shard itself knows, too.
    Rows(Bytes),
    /// It answered a request.
    Answer(NamedAnswer),
    /// It ran a step of a schema change, or tried to. Nothing is said of one that had been run before.
    Schema(SchemaRun),
    /// It made changes that had been staged, by as many pieces as follow. Nothing is said of one that came to nothing.
    Replay(ReplayRun),
    /// A piece of these: a changeset.
    Piece(Bytes),
    /// From now on the shard's group serves as this.
    Serving(Serving),
    /// So the rows of all tables lie in what follows.
    Layouts(Vec<TableLayout>),
    /// The shard that it was just said to be sealed leaves this. There is as much of it as there is.
    Left(Left),
}

/// A request, and what it is told whenever it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAnswer {
    /// Its name.
    pub request: RequestId,
    /// Requests of its router below this sequence needed no answer any more.
    pub settled: u64,
    /// What it is told.
    pub output: Bytes,
}

/// A step of a schema change.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaRun {
    /// Which.
    pub step: SchemaStep,
    /// SQL as SQLite runs it.
    pub statements: Vec<String>,
    /// Tables that had to be empty, by the names that they have there.
    pub require_empty: Vec<String>,
    /// Why it changed nothing, if it didn't.
    pub failure: Option<WireError>,
}

/// A big transaction's commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRun {
    /// The transaction.
    pub owner: TransactionId,
    /// How many pieces follow.
    pub pieces: u64,
    /// The request that it answers, if anybody can repeat it.
    pub answer: Option<NamedAnswer>,
}

/// What a shard's group serves as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// As its shard.
    Open,
    /// It takes over from others, and serves nobody.
    Following,
    /// It serves nobody any more. Nothing is said of what it leaves if it was opened again since: that follows.
    Sealed(Option<Estate>),
}

/// By whom a shard was sealed, and so for whom its estate is: all [`Left`] that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estate {
    /// The reshard that has sealed it.
    pub reshard: ReshardId,
    /// And the attempt.
    pub attempt: Attempt,
}

/// A transaction that a sealed shard leaves beside its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// It is prepared.
    Prepared(LeftPrepared),
    /// It has committed, and is remembered for nothing but the votes says so.
    Ended {
        /// The transaction.
        transaction: TransactionId,
        /// Its participants.
        participants: Vec<ShardId>,
    },
}

/// A prepared transaction of a sealed shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftPrepared {
    /// The transaction.
    pub transaction: TransactionId,
    /// See [`Branch::begun`](crate::services::Branch::begun).
    pub begun: u64,
    /// Its participants.
    pub participants: Vec<ShardId>,
    /// The shards whose votes it is.
    pub votes: Vec<ShardId>,
    /// Whether the votes commit it.
    pub parallel: bool,
    /// What it has locked, in the shards' own form.
    pub locks: Bytes,
    /// What it changes: a changeset.
    pub changes: Bytes,
}
