//! What the coordinator does for everyone.

use super::{BoxFuture, BoxStream, ReplicaStatus, ServiceResult};
use crate::catalog::{Catalog, Sequence, Table};
use crate::ids::{ColumnId, KeyspaceNumber, NodeId, RequestId, SchemaVersion, SequenceId, TableId};
use crate::topology::{Leaders, Node, Sharding, Topology};
use crate::value::Value;
use std::sync::Arc;

/// The coordinator's replica on one node. All but `watch` and `report` are for its leader; others answer
/// [`crate::Retry::NotLeader`].
pub trait CoordinatorService: Send + Sync {
    /// The cluster's state now, and again after each change. Slow readers miss states, never the newest.
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>>;

    /// Adds a node, or takes note of its new address.
    fn register(&self, node: Node) -> BoxFuture<'_, ServiceResult<()>>;

    /// Hears what a node's replicas are doing.
    fn report(&self, node: NodeId, replicas: Vec<ReplicaStatus>) -> BoxFuture<'_, ServiceResult<()>>;

    /// Changes the schema, on every shard, and answers with the catalog version that shows it.
    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>>;

    /// Takes the next `count` values of a sequence (fewer at its end; 2200H if there are none).
    fn allocate(&self, sequence: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>>;

    /// Sets a sequence: the next block begins at `next`.
    fn set_sequence(&self, sequence: SequenceId, next: i64) -> BoxFuture<'_, ServiceResult<()>>;

    /// Makes a keyspace and answers once its shards have leaders.
    fn create_keyspace(&self, request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>>;

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

/// A keyspace to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateKeyspace {
    /// Its name: a lower-case identifier.
    pub name: String,
    /// How it places rows.
    pub sharding: Sharding,
    /// How many shards it begins with.
    pub shards: u32,
    /// How many replicas each shard has; `None` for as many as `main` has.
    pub replicas: Option<u32>,
}

/// What there is and how it does.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// Topology, leaders and catalog.
    pub state: ClusterState,
    /// What each node last said of its replicas, the coordinator's among them.
    pub replicas: Vec<ReplicaStatus>,
}
