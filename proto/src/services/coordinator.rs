//! What the coordinator does for everyone.

use super::transaction::{Claim, Decision, Spent, TransactionStatus, Verdict};
use super::{
    Advice, BoxFuture, BoxStream, ReplicaStatus, ReshardCommand, ReshardPlan, ReshardStatus, ReshardWish,
    ServiceResult, ShardTally,
};
use crate::catalog::{Catalog, RoleChange, Sequence, Table};
use crate::ids::{
    ClusterId, ColumnId, GroupId, KeyspaceNumber, NodeId, RequestId, ReshardId, RouterIncarnation,
    SchemaVersion, SequenceId, TableId, TransactionId,
};
use crate::topology::{AutoSplit, Leaders, Node, Roles, Sharding, Topology};
use crate::value::Value;
use std::sync::Arc;
use std::time::Duration;

/// How often the state is told though nothing has changed.
pub const PULSE: Duration = Duration::from_secs(1);
/// A coordinator that has told nothing for so long is cut off from whoever watches.
pub const SILENCE: Duration = Duration::from_secs(4);

/// The coordinator's replica on one node. All but `watch` and `report` are for its leader; others answer
/// [`crate::Retry::NotLeader`].
pub trait CoordinatorService: Send + Sync {
    /// The cluster's state now, and again after each change. Slow readers miss states, never the newest. It is told at
    /// least once in [`PULSE`]; whoever hears nothing for [`SILENCE`] should ask another coordinator.
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>>;

    /// Gives a new node its id.
    fn join(&self, join: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>>;

    /// Adds a node, or takes note of its new address. 55006 if another process that isn't silent has the id.
    fn register(&self, node: Node) -> BoxFuture<'_, ServiceResult<()>>;

    /// Hears what a node's replicas are doing, and which routers ran there before and are gone.
    fn report(
        &self,
        node: NodeId,
        replicas: Vec<ReplicaStatus>,
        former: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>>;

    /// Changes the schema, on every shard, and answers with the catalog version that shows it.
    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>>;

    /// Takes the next `count` values of a sequence (fewer at its end; 2200H if there are none).
    fn allocate(&self, sequence: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>>;

    /// Sets a sequence: the next block begins at `next`.
    fn set_sequence(&self, sequence: SequenceId, next: i64) -> BoxFuture<'_, ServiceResult<()>>;

    /// Makes a keyspace and answers once its shards have leaders.
    fn create_keyspace(&self, request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>>;

    /// Changes who holds a group's replicas, and answers once it has happened.
    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>>;

    /// Begins a course, and answers with what it will do. It goes on by itself.
    fn course(&self, wish: CourseWish) -> BoxFuture<'_, ServiceResult<CoursePlan>>;

    /// Begins a reshard, and answers with what it will do. It goes on by itself.
    fn reshard(&self, wish: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>>;

    /// Tells a reshard what to do. The answer says that it will, not that it has. Repeating it under the same id is safe: it is done
    /// once, however late a copy of it comes.
    fn command(
        &self,
        request: RequestId,
        reshard: ReshardId,
        command: ReshardCommand,
    ) -> BoxFuture<'_, ServiceResult<()>>;

    /// The reshards that haven't ended, and the last that have, in the order of their beginning.
    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>>;

    /// What the shards that serve have, as followers have counted it. Without those of which that isn't known yet.
    fn tallies(&self) -> BoxFuture<'_, ServiceResult<Vec<ShardTally>>>;

    /// Decides what a transaction becomes, unless that is decided, and answers with what it has become. The answer is in
    /// the log before it is given: committed or aborted for good.
    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>>;

    /// Claims an idempotency key for a transaction that begins, and answers with who has used it up, if somebody has. From
    /// here on nobody who claimed the key before is committed.
    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>>;

    /// All participants of these transactions have finished, so that nobody need drive them any more.
    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>>;

    /// The transactions that there is a record of: one; or those that aren't finished, the oldest first, and then the
    /// latest of the others, as many as fit.
    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>>;

    /// Sets whether a keyspace splits by itself what is too big. Repeating it is safe. Answers with what is set by then.
    fn set_auto(&self, wish: AutoWish) -> BoxFuture<'_, ServiceResult<Option<AutoSplit>>>;

    /// What an admin could do, the most urgent first.
    fn advise(&self) -> BoxFuture<'_, ServiceResult<Vec<Advice>>>;

    /// What there is and how it does.
    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>>;
}

/// What routers and shardnodes follow. Parts that didn't change are the same object as before.
#[derive(Clone, Debug)]
pub struct ClusterState {
    /// Where things are.
    pub topology: Arc<Topology>,
    /// Who leads.
    pub leaders: Arc<Leaders>,
    /// What things are.
    pub catalog: Arc<Catalog>,
}

/// One schema change. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaChangeRequest {
    /// Names the change.
    pub request: RequestId,
    /// The catalog it was planned by. If the objects it touches have changed since: [`crate::Retry::StaleSchema`].
    pub planned_by: SchemaVersion,
    /// The change.
    pub change: SchemaChange,
}

/// What a schema change does. Ids that the coordinator is to give out are 0 in it, but for new sequences, which a
/// new column's default names by their place in `sequences`, from 1.
#[derive(Clone, Debug, PartialEq)]
pub enum SchemaChange {
    /// A new table. A sharded placement with keyspace 0 makes a range keyspace named as the table.
    CreateTable {
        /// The table.
        table: Table,
        /// The sequences that its columns own, the hidden key's among them.
        sequences: Vec<Sequence>,
    },
    /// A table as it is to be from now on: every ALTER TABLE, and CREATE and DROP INDEX. Columns and indexes are
    /// matched with the old ones by id, and what must happen on the shards follows from the difference.
    ReplaceTable {
        /// The table; `modified` as it was planned by.
        table: Table,
        /// The sequences that new columns own.
        sequences: Vec<Sequence>,
        /// What existing rows get in new columns, in storage form.
        fill: Vec<(ColumnId, Value)>,
    },
    /// Drops tables with all they own.
    DropTables(Vec<TableId>),
    /// Empties tables.
    Truncate {
        /// The tables.
        tables: Vec<TableId>,
        /// Whether the sequences that they own begin again.
        restart_identity: bool,
    },
    /// A new sequence.
    CreateSequence(Sequence),
    /// A sequence as it is to be from now on.
    ReplaceSequence {
        /// The sequence.
        sequence: Sequence,
        /// Its next value, if that changes.
        restart: Option<i64>,
    },
    /// Drops sequences that no column uses.
    DropSequences(Vec<SequenceId>),
    /// Changes what the sessions of a role begin with. No shard hears of it.
    AlterRole {
        /// The role; `None` for every one.
        role: Option<String>,
        /// The change.
        change: RoleChange,
    },
}

impl SchemaChange {
    /// Whether shards hear of it.
    pub fn reaches_shards(&self) -> bool {
        match self {
            SchemaChange::CreateTable { .. }
            | SchemaChange::ReplaceTable { .. }
            | SchemaChange::DropTables(_)
            | SchemaChange::Truncate { .. } => true,
            SchemaChange::CreateSequence(_)
            | SchemaChange::ReplaceSequence { .. }
            | SchemaChange::DropSequences(_)
            | SchemaChange::AlterRole { .. } => false,
        }
    }
}

/// Values of a sequence that one router may give out: `first`, `first + increment`, .. (`count` of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceBlock {
    /// The first value.
    pub first: i64,
    /// The step.
    pub increment: i64,
    /// How many.
    pub count: u32,
}

/// A node that has no id yet. Repeating the request is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeJoin {
    /// Names the request.
    pub request: RequestId,
    /// `host:port` where others reach it.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Its zone; empty for none.
    pub zone: String,
}

/// What a node needs to belong to a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's id, for ever.
    pub node: NodeId,
    /// The nodes that hold the coordinator's replicas.
    pub coordinators: Vec<Node>,
}

/// A change of who holds a group's replicas. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaChange {
    /// Names the change.
    pub request: RequestId,
    /// Whose replicas.
    pub target: ReplicaTarget,
    /// The change.
    pub action: ReplicaAction,
}

/// Something that many changes of replicas come to, one after the other. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CourseWish {
    /// Names the wish.
    pub request: RequestId,
    /// What is to come of it.
    pub course: Course,
    /// Nothing begins: the answer says what would.
    pub dry_run: bool,
}

/// What a course will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoursePlan {
    /// The number that it has among the jobs. None of what has been done at once, and for a dry run.
    pub course: Option<u64>,
    /// What it does, for people. Empty if the wish was taken in before, and its course isn't under way any more.
    pub what: String,
    /// The shard that it moves, and which nodes hold that now.
    pub moves: Option<PlannedMove>,
}

/// From where to where a shard is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// Its group.
    pub group: GroupId,
    /// The nodes that hold it.
    pub from: Vec<NodeId>,
    /// Those that are to.
    pub to: Vec<NodeId>,
}

/// What many changes of replicas are to come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Course {
    /// A shard is on these nodes and no others.
    Move {
        /// The shard's name: `main/-80`.
        shard: String,
        /// The one that `to` has instead, the others staying where they are; `None` if none do but those of `to`.
        from: Option<NodeId>,
        /// The nodes.
        to: Vec<NodeId>,
    },
    /// Each shard of a keyspace has so many replicas, those that are made later among them.
    Count {
        /// The keyspace's name.
        keyspace: String,
        /// How many.
        replicas: u32,
    },
    /// A node holds nothing any more, and gets nothing new.
    Drain(NodeId),
    /// A node may get something again. What has left it doesn't come back by itself.
    Undrain(NodeId),
    /// A node that holds nothing and is silent doesn't belong to the cluster any more.
    Remove(NodeId),
    /// A course ends where it stands.
    Stop(u64),
}

/// A group, as an admin names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaTarget {
    /// A shard's, by the shard's name: `main/-80`.
    Shard(String),
    /// By its number; [`GroupId::COORDINATOR`] is the coordinator's own.
    Group(GroupId),
}

/// What happens to a group's replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaAction {
    /// A node gets one.
    Add(NodeId),
    /// A node loses its.
    Remove(NodeId),
    /// One node gets what another has, which then loses it.
    Move {
        /// Who loses its.
        from: NodeId,
        /// Who gets one.
        to: NodeId,
    },
    /// A node's is made anew from the others.
    Rebuild(NodeId),
    /// A node's is to lead.
    TransferLeader(NodeId),
}

/// A keyspace to make. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateKeyspace {
    /// Names the request.
    pub request: RequestId,
    /// Its name: a lower-case identifier.
    pub name: String,
    /// How it places rows.
    pub sharding: Sharding,
    /// How many shards it begins with.
    pub shards: u32,
    /// How many replicas each shard has; `None` for as many as `main` has.
    pub replicas: Option<u32>,
}

/// Whether a keyspace is to split by itself what is too big. Repeating it under the same id is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoWish {
    /// Names the wish.
    pub request: RequestId,
    /// The keyspace's name.
    pub keyspace: String,
    /// `None` for off.
    pub auto: Option<AutoChange>,
}

/// What changes of an [`AutoSplit`]; what is `None` stays as it was, or is as usual if it was off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoChange {
    /// [`AutoSplit::size`].
    pub size: Option<u64>,
    /// [`AutoSplit::shards`].
    pub shards: Option<u32>,
}

/// What there is and how it does.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// Topology, leaders and catalog.
    pub state: ClusterState,
    /// What each node last said of its replicas, the coordinator's among them.
    pub replicas: Vec<ReplicaStatus>,
    /// How long ago the coordinator's leader last heard of each node. Without those it hasn't heard of since it leads.
    pub heard: Vec<(NodeId, Duration)>,
    /// Changes that are under way.
    pub jobs: Vec<JobStatus>,
    /// What somebody should look at.
    pub alarms: Vec<Alarm>,
    /// How busy groups have been in the last minute. Without those of which that isn't known.
    pub loads: Vec<GroupLoad>,
}

/// How busy a group is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupLoad {
    /// The group.
    pub group: GroupId,
    /// Writes that changed something, in a second.
    pub writes_per_second: f64,
    /// Snapshots that its replicas opened, in a second.
    pub reads_per_second: f64,
}

/// A change that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub what: String,
    /// How far it is.
    pub progress: String,
}

/// Something is wrong with a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The replica's group.
    pub group: GroupId,
    /// Its node.
    pub node: NodeId,
    /// What is wrong.
    pub message: String,
}
