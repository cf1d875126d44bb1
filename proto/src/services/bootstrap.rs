//! How nodes find each other, and how some of them become a cluster.

use super::{BoxFuture, ServiceResult};
use crate::ids::{ClusterId, NodeId};
use crate::topology::{Node, Roles};

/// What a node answers before it belongs to a cluster, and always: who it is.
pub trait BootstrapService: Send + Sync {
    /// Who this node is and whom it knows. Whoever asks as a node introduces itself by `caller`, so that a node which
    /// was told of nobody learns of those that were told of it.
    fn identity(&self, caller: Option<Identity>) -> BoxFuture<'_, ServiceResult<Introduction>>;

    /// Makes this node one of the founders of a cluster. Repeating it is safe; a node that belongs to another cluster,
    /// or is another node of this one, refuses with 55000.
    fn found(&self, founding: Founding) -> BoxFuture<'_, ServiceResult<()>>;

    /// Makes a cluster of the nodes that this one can reach, and answers once all its founders have taken part. What a
    /// crash interrupted goes on when it is repeated here.
    fn init(&self, request: InitRequest) -> BoxFuture<'_, ServiceResult<Founding>>;
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it belongs to, and which of its nodes it is.
    pub member: Option<(ClusterId, NodeId)>,
    /// `host:port` where others reach it.
    pub address: String,
    /// What it is willing to do.
    pub roles: Roles,
}

/// Who a node is, and whom it knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Introduction {
    /// The node itself.
    pub node: Identity,
    /// Others, as they introduced themselves.
    pub known: Vec<Identity>,
    /// Addresses that it was told of and that nobody answered at yet.
    pub unmet: Vec<String>,
    /// The nodes that hold the coordinator's replicas, as far as it knows.
    pub coordinators: Vec<Node>,
}

/// A cluster as it is founded.
#[derive(Clone, Debug, PartialEq)]
pub struct Founding {
    /// Its id.
    pub cluster: ClusterId,
    /// The node that is spoken to.
    pub node: NodeId,
    /// The founders: they hold the coordinator's replicas.
    pub coordinators: Vec<Node>,
    /// How many shardnodes it waits for before it makes its first keyspaces.
    pub nodes: u32,
    /// How many shards keyspace `main` begins with.
    pub shards: u32,
    /// How many replicas each shard has.
    pub replicas: u32,
}

/// Wishes for a new cluster; what is left open follows from the nodes that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitRequest {
    /// How many shards keyspace `main` begins with.
    pub shards: Option<u32>,
    /// How many replicas each shard has.
    pub replicas: Option<u32>,
    /// How many nodes hold the coordinator's replicas: 1, 3 or 5.
    pub coordinators: Option<u32>,
}
