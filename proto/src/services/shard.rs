//! What a shard does for routers and for the coordinator.

use super::changes::{Changes, ChangesRequest};
use super::cut::{CutRequest, Unsettled};
use super::load::Times;
use super::reshard::{BuildRequest, Built, HandOver, HandedOver};
use super::sums::{CompareRequest, Compared, Sums, SumsRequest};
use super::tally::{Tally, TallyRequest};
use super::transaction::{Branch, BranchAccess, BranchRequest, BranchStatus};
use super::{BoxFuture, BoxStream, ServiceResult};
use crate::ids::{CutId, Epoch, LogIndex, RequestId, RouterIncarnation, SchemaVersion, ShardId, TableId};
use crate::layout::TableLayout;
use crate::rows::RowBatch;
use crate::value::Value;
use std::sync::Arc;
use std::time::Duration;

/// The shards of one node.
pub trait ShardService: Send + Sync {
    /// Runs one fragment on one shard.
    ///
    /// Errors that name a [`crate::Retry`] other than `Never` and `Unknown` promise that nothing was executed.
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>>;

    /// Applies one step of a schema change to one shard, as an entry of its log. A step that was applied before is
    /// answered with its first result.
    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>>;

    /// Does something with a transaction's branch. Answers with the position that has it, where there is one.
    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>>;

    /// The router lives, and so do the branches of its transactions on this node's shards.
    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>>;

    /// Does something with a cut. Answers with what it has to settle.
    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>>;

    /// The transactions that have a branch on this shard.
    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>>;

    /// Does something with a shard of a reshard. Repeating it is safe.
    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>>;

    /// What a shard's log says after a position, from this node's replica, whatever its part in the group: up to what it has
    /// applied, and then as it applies more. It never ends by itself but with an error, after which another replica may be
    /// asked. SH004 if this one has forgotten what comes next: the error tells of the shard's oldest position
    /// ([`crate::WireError::state`]) after which it has everything.
    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>>;

    /// What a write or a commit was told that may have been done by a shard from which this one has taken over. `None`: it
    /// wasn't, and it never will be, for that one serves nobody any more. 08007 if that is forgotten.
    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>>;

    /// Builds new shards of a reshard on this node, and says how far it is.
    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>>;

    /// Sums of a shard's rows, by this node's replica, whatever its part in the group: of one state, from where the request
    /// says, until its time is up. An error ends it, and then nothing that was said counts.
    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>>;

    /// Compares rows of a shard that takes over, which is led here, with those of a source. Repeating it is safe.
    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>>;

    /// What a shard's tables have by this node's replica, whatever its part in the group; or has it counted in the background.
    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>>;

    /// How long batches of writes took that this node's leaders have committed since its process began. Who commits none has
    /// nothing to tell.
    fn load(&self) -> BoxFuture<'_, ServiceResult<Times>> {
        Box::pin(async { Ok(Times::default()) })
    }
}

/// One statement for one shard.
#[derive(Clone, Debug)]
pub struct FragmentRequest {
    /// The shard.
    pub shard: ShardId,
    /// The topology it was routed by.
    pub epoch: Epoch,
    /// The catalog it was planned by.
    pub schema_version: SchemaVersion,
    /// SQL as SQLite runs it, over physical names, with parameters `?1..`.
    pub sql: Arc<str>,
    /// The values of the parameters. With `rows`, of those after the row's own: `?<width + 1>..`.
    pub params: Vec<Value>,
    /// Runs the statement once for each of these rows, in order, with the row's values as `?1..?<width>`.
    pub rows: Option<RowBatch>,
    /// Reads or writes, and how.
    pub access: Access,
    /// The cut that it is part of. A strong read runs on the cut's snapshot, and what waits to be told for the cut's sake
    /// is told from then on. What a branch does runs while the cut withholds, and fails if it would have to wait for a lock.
    pub cut: Option<CutId>,
    /// What a read must show at least. Nothing for writes, which run on the newest state. Where only the leader may answer,
    /// and its log ends before that, it answers SH003 with [`crate::Retry::Behind`] at once: it may never come.
    pub floor: Floor,
    /// How long it may take, waiting included.
    pub timeout: Duration,
}

/// How a fragment uses its shard.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// Only reads.
    Read {
        /// How fresh it must be, and who may answer.
        consistency: Consistency,
        /// How long a replica may wait until it is that fresh. If that isn't enough it answers [`crate::Retry::Behind`].
        /// A strong read waits as long as it may take, whatever stands here, but not for a floor that its log lacks.
        wait: Duration,
        /// It looks up a few rows by key, so it may run on the caller's thread.
        lookup: bool,
    },
    /// Writes, as one transaction.
    Write {
        /// Names the write, so that repeating it is safe.
        request: RequestId,
        /// Every request of this router below this sequence has been answered and can be forgotten.
        settled: u64,
        /// The first so many columns of the result are a row's primary key. A row that comes up twice is 21000 (ON
        /// CONFLICT DO UPDATE may not hit a row twice). They are cut off the rows that are returned. 0 for no check.
        touch: u16,
        /// How long it may wait for a lock; `None` for as long as it may take.
        lock_timeout: Option<Duration>,
    },
    /// Within a transaction. Nothing of it is seen by others before the transaction is committed.
    Branch {
        /// Which one.
        branch: Branch,
        /// What it does.
        access: BranchAccess,
    },
}

impl Access {
    /// A read by the leader.
    pub fn strong(lookup: bool) -> Self {
        Access::Read { consistency: Consistency::Strong, wait: Duration::ZERO, lookup }
    }
}

/// How fresh a read must be. Whatever is asked for, it is as of the request's [`Floor`] at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Consistency {
    /// By the leader; linearizable.
    Strong,
    /// By any replica that has come to the floor.
    Session,
    /// By any replica no staler than this.
    Bounded(Duration),
    /// By any replica.
    Eventual,
}

/// Positions in a shard's log that a read must not be behind of. The default is behind of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// All entries up to here have been applied.
    pub applied: LogIndex,
    /// The same; and what was prepared up to here, and concerns the read, has ended. A commit that is answered with its
    /// last vote is known by where its branches were prepared.
    pub settled: LogIndex,
}

impl Floor {
    /// The floor that wants nothing to have ended.
    pub fn applied(applied: LogIndex) -> Self {
        Self { applied, settled: LogIndex(0) }
    }

    /// What has to be applied.
    pub fn index(&self) -> LogIndex {
        self.applied.max(self.settled)
    }
}

/// What a fragment gave.
pub struct FragmentResponse {
    /// Rows, in storage form.
    pub rows: RowSource,
    /// Rows inserted, updated or deleted.
    pub affected: u64,
    /// The position that the read saw or the write reached.
    pub position: LogIndex,
    /// How long the replica waited until it was fresh enough.
    pub waited: Duration,
}

/// Rows at once, or as they come.
pub enum RowSource {
    /// All of them.
    Whole(RowBatch),
    /// In batches. An error ends the stream.
    Stream(BoxStream<ServiceResult<RowBatch>>),
}

/// One step of a schema change, for one shard.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaRequest {
    /// The shard.
    pub shard: ShardId,
    /// Names the step within the cluster, so that repeating it is safe.
    pub step: SchemaStep,
    /// SQL as SQLite runs it, in one transaction.
    pub statements: Vec<String>,
    /// How rows lie in the tables that it makes, changes or drops.
    pub layouts: Vec<TableLayout>,
    /// From here on the shard refuses requests that were planned by an older catalog.
    pub least_version: Option<SchemaVersion>,
    /// The step fails with 55000 and changes nothing if one of these tables has a row.
    pub require_empty: Vec<TableId>,
}

/// A step of a schema change: the job, and the step's number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaStep {
    /// The job, numbered by the coordinator.
    pub job: u64,
    /// The step, from 1.
    pub step: u32,
}
