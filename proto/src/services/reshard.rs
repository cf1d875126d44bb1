//! Reshards, as admins, the coordinator and shards speak of them.
//!
//! An admin wishes for one ([`ReshardWish`]), commands it ([`ReshardCommand`]) and is told of it ([`ReshardStatus`]). For a
//! switch the coordinator asks the shards' leaders, as often as it takes, to **seal** what is replaced and to say when what
//! replaces it has **reached** the seal ([`HandOver`]). Each of these may come late, or twice: all of them name the attempt
//! that they are for.

use super::replica::Progress;
use crate::ids::{Attempt, GroupId, LogIndex, NodeId, RequestId, ReshardId, ShardId, TransactionId};
use crate::key_range::KeyRange;
use std::time::Duration;

/// Something for one shard of a reshard. For the leader of its group; others answer [`crate::Retry::NotLeader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The shard, by the id that it has in this attempt.
    pub shard: ShardId,
    /// The reshard.
    pub reshard: ReshardId,
    /// The attempt. For [`HandOverAction::Flows`] the last one.
    pub attempt: Attempt,
    /// What is to be done.
    pub action: HandOverAction,
    /// How long it may take, waiting included.
    pub timeout: Duration,
}

/// What is to be done with a shard of a reshard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandOverAction {
    /// Waits until nothing is in the way of a seal. The shard serves on. For the sake of several that are to be sealed at once: a
    /// transaction that needs one of them to end can't as long as only another one is sealed.
    Clear {
        /// How long open transactions may take until then.
        drain: Duration,
    },
    /// Seals a shard that serves. From the answer on it answers nobody.
    Seal {
        /// How long open transactions may take until then.
        drain: Duration,
        /// Whether all that are to be sealed were clear. What has come since may wait for one that is sealed already, and isn't ended.
        cleared: bool,
    },
    /// Opens a shard that the attempt has sealed. Neither this attempt nor an earlier one can seal it from then on.
    Unseal,
    /// Waits until a shard that takes over has adopted all that this attempt has sealed.
    Reached,
    /// Tells how far a shard that takes over is.
    Flows,
}

/// What became of a [`HandOver`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandedOver {
    /// Nothing was in the way of a seal.
    Clear,
    /// It is sealed, by this attempt.
    Sealed {
        /// How many transactions were ended for it, as far as this leader knows.
        ended: u32,
    },
    /// It isn't sealed, because of these.
    InTheWay(Vec<Hindrance>),
    /// It isn't sealed by this attempt, and never will be.
    Unsealed,
    /// It has adopted.
    Reached(Reached),
    /// So far it is with each of its sources.
    Flows(Vec<FlowStatus>),
}

/// A transaction that keeps a shard from being sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// The transaction.
    pub transaction: TransactionId,
    /// What of it is in the way.
    pub cause: HindranceCause,
    /// For how long it has been.
    pub since: Duration,
}

/// What of a transaction is in the way of a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HindranceCause {
    /// It has changed or locked something, and isn't prepared.
    Busy,
    /// Its changes are too many for one entry, and are staged or being replayed.
    Staged,
}

/// Where a shard has taken over from others, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The entry of its own log from which on it has everything.
    pub first: LogIndex,
    /// The last entry of each source: its seal.
    pub sources: Vec<(ShardId, LogIndex)>,
}

/// How far a shard is that takes over from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowStatus {
    /// The other one.
    pub source: ShardId,
    /// The last of its entries that were taken over.
    pub position: LogIndex,
    /// The last of its entries that is known to be committed.
    pub committed: LogIndex,
    /// For how long the oldest of those between has been committed.
    pub lag: Duration,
    /// How many bytes those between have.
    pub lag_bytes: u64,
    /// Why it can't go on by itself, if it can't.
    pub obstacle: Option<FlowObstacle>,
}

/// Why entries can't be taken over any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowObstacle {
    /// No replica of the source has the next entry in its log any more.
    Forgotten,
    /// The rows aren't what an entry says that they were; or a schema step ended differently on two sources. Says which.
    Differs(String),
}

/// Something for the node that builds a reshard's new shards. All of it may come late, or twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRequest {
    /// The reshard.
    pub reshard: ReshardId,
    /// Which try it is: what was built for another one is no part of it.
    pub tries: u32,
    /// What is to be done.
    pub action: BuildAction,
    /// How long it may take, waiting included. What goes on by itself isn't waited for.
    pub timeout: Duration,
}

/// What is to be done for new shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildAction {
    /// Begins an image of the node's own replica of a shard, once that has the entry `after`. One that has it and was
    /// begun before counts. It goes on by itself.
    Image {
        /// The shard.
        shard: ShardId,
        /// Its group.
        group: GroupId,
        /// What it must have.
        after: LogIndex,
    },
    /// Copies the images' rows into files of the new shards, or rests. It goes on by itself. The shards must be the same
    /// each time.
    Copy {
        /// The shards that there are images of, in the order of their ranges. Reference tables come from the first.
        sources: Vec<ShardId>,
        /// The shards that get files.
        targets: Vec<BuildTarget>,
        /// Whether it is to rest.
        rests: bool,
        /// How many bytes a second it may copy; 0 for as many as it can.
        rate: u64,
    },
    /// Founds a new shard's group with its file.
    Found {
        /// The shard.
        shard: ShardId,
        /// Its group.
        group: GroupId,
    },
    /// Deletes what was built for the reshard, in any try. Groups that were founded stay.
    Discard,
}

/// A new shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildTarget {
    /// The shard.
    pub shard: ShardId,
    /// Its group.
    pub group: GroupId,
    /// Its range, in its keyspace.
    pub range: KeyRange,
}

/// What became of a [`BuildRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Built {
    /// The image has all up to there.
    Begun(LogIndex),
    /// It isn't complete yet.
    Copying(BuildProgress),
    /// All files are complete, and on the disk.
    Copied,
    /// There is no room left where it builds, which this says. Asked again, it goes on from where it is.
    DiskFull(String),
    /// An image that there must be is gone: all of them are to be begun anew, as another try. Says what was lost.
    Lost(String),
    /// The group has its leader, on this node.
    Founded,
    /// Nothing is left.
    Discarded,
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildProgress {
    /// How much of the images there is, as far as it's known how big they are.
    pub images: Progress,
    /// How many rows were copied.
    pub rows: u64,
    /// How much of the images' bytes was worked off, rows and indexes.
    pub bytes: Progress,
}

/// A reshard that an admin wishes for. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshardWish {
    /// Names the wish.
    pub request: RequestId,
    /// What is to become of which shards.
    pub course: ReshardCourse,
    /// How.
    pub options: ReshardOptions,
    /// Only says what would be done.
    pub dry_run: bool,
}

/// What is to become of which shards. They are named as admins do: `main/-80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReshardCourse {
    /// One shard becomes several.
    Split {
        /// The shard.
        shard: String,
        /// Where it is cut.
        at: SplitAt,
    },
    /// Neighbours become one.
    Merge {
        /// The shards, in any order.
        shards: Vec<String>,
    },
}

/// Where a shard is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitAt {
    /// Into so many parts of the same width. For a hash keyspace.
    Evenly(u32),
    /// At these keyspace ids, each the first of a new shard.
    Bounds(Vec<Vec<u8>>),
}

/// How a reshard is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshardOptions {
    /// Switches as soon as it can, without being told to.
    pub auto: bool,
    /// Compares old and new before it is ready.
    pub verify: bool,
    /// Bytes that are copied in a second, at most; 0 for as many as the writers don't mind.
    pub rate: u64,
    /// How long open transactions may take when it switches.
    pub drain: Duration,
    /// How long after the switch it is completed; `None` for when it is told to.
    pub keep: Option<Duration>,
    /// The node that builds the new shards; `None` for the best.
    pub builder: Option<NodeId>,
    /// The nodes that hold the new shards; none for the best.
    pub nodes: Vec<NodeId>,
}

impl Default for ReshardOptions {
    fn default() -> Self {
        ReshardOptions {
            auto: false,
            verify: true,
            rate: 0,
            drain: Duration::from_secs(2),
            keep: Some(Duration::from_secs(3600)),
            builder: None,
            nodes: Vec::new(),
        }
    }
}

/// What a wish comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshardPlan {
    /// The reshard; `None` for a dry run.
    pub reshard: Option<ReshardId>,
    /// What it does, for people.
    pub what: String,
    /// The node that builds.
    pub builder: NodeId,
    /// The new shards, each with the nodes that are to hold it.
    pub shards: Vec<(String, Vec<NodeId>)>,
}

/// What an admin tells a reshard to do. Who tells it what it has done already hears that all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReshardCommand {
    /// Have the new shards serve.
    Switch,
    /// Have the old shards serve again.
    Reverse,
    /// Drop the old shards.
    Complete,
    /// Drop the new shards.
    Cancel,
    /// Rest.
    Pause,
    /// Go on.
    Resume,
    /// Compare old and new once more.
    Verify,
}

/// How far a reshard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // docs/resharding.md, "The phases"
pub enum ReshardPhase {
    Planned,
    Placing,
    Imaging,
    Copying,
    Founding,
    Spreading,
    CatchingUp,
    Verifying,
    Ready,
    Switching,
    Undoing,
    Switched,
    Completing,
    Cancelling,
    Ended,
}

impl ReshardPhase {
    /// Every phase, in the order in which they mostly come.
    pub const ALL: [ReshardPhase; 15] = [
        ReshardPhase::Planned,
        ReshardPhase::Placing,
        ReshardPhase::Imaging,
        ReshardPhase::Copying,
        ReshardPhase::Founding,
        ReshardPhase::Spreading,
        ReshardPhase::CatchingUp,
        ReshardPhase::Verifying,
        ReshardPhase::Ready,
        ReshardPhase::Switching,
        ReshardPhase::Undoing,
        ReshardPhase::Switched,
        ReshardPhase::Completing,
        ReshardPhase::Cancelling,
        ReshardPhase::Ended,
    ];

    /// Its name, as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            ReshardPhase::Planned => "planned",
            ReshardPhase::Placing => "placing",
            ReshardPhase::Imaging => "imaging",
            ReshardPhase::Copying => "copying",
            ReshardPhase::Founding => "founding",
            ReshardPhase::Spreading => "spreading",
            ReshardPhase::CatchingUp => "catching-up",
            ReshardPhase::Verifying => "verifying",
            ReshardPhase::Ready => "ready",
            ReshardPhase::Switching => "switching",
            ReshardPhase::Undoing => "undoing",
            ReshardPhase::Switched => "switched",
            ReshardPhase::Completing => "completing",
            ReshardPhase::Cancelling => "cancelling",
            ReshardPhase::Ended => "ended",
        }
    }
}

impl std::fmt::Display for ReshardPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How long routers keep transaction blocks waiting for one attempt at a switch, unless they are told otherwise. Longer than any
/// attempt takes that isn't given up.
pub const GATE: Duration = Duration::from_secs(10);

/// What is known of a reshard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshardStatus {
    /// Its number.
    pub id: ReshardId,
    /// What it does, for people.
    pub what: String,
    /// Its keyspace.
    pub keyspace: String,
    /// How far it is.
    pub phase: ReshardPhase,
    /// The attempts at a switch so far.
    pub attempt: Attempt,
    /// The shards that served when it began.
    pub old: Vec<String>,
    /// The shards that are to serve after its switch.
    pub new: Vec<String>,
    /// Whether the other side is to serve as soon as it can. Otherwise somebody must say so.
    pub wanted: bool,
    /// What has been done of what the phase has to do, in bytes and of how many.
    pub bytes: Option<Progress>,
    /// How many rows have been copied, or compared.
    pub rows: Option<u64>,
    /// How far the flow is behind that is furthest behind.
    pub lag: Option<Duration>,
    /// Why it rests, if it does.
    pub paused: Option<String>,
    /// Why it ended, if not because it was completed.
    pub failed: Option<String>,
    /// What it waits for, or what last went otherwise than it should, for people. Empty if there is nothing to say.
    pub message: String,
    /// The attempts that were decided, in either direction.
    pub switches: u32,
    /// How many transactions were ended for them.
    pub ended: u32,
    /// How long the last of them took, from the last seal to the decision.
    pub pause: Option<Duration>,
    /// In which time it is completed by itself; `None` if it isn't.
    pub completes_in: Option<Duration>,
    /// For how long it has been in its phase, as far as this coordinator knows.
    pub since: Duration,
}
