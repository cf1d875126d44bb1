//! The service traits: all that router, shardnode and coordinator know of each other.
//!
//! A service is a trait with two implementations: the local object itself, and (with the `transport` feature) the
//! gRPC client. Who calls can't tell which it has. Deadlines cross as time left, never as a time of day.

mod advice;
mod bootstrap;
mod changes;
mod coordinator;
mod cut;
mod load;
mod replica;
mod reshard;
mod shard;
mod sums;
mod tally;
mod transaction;

pub use advice::*;
pub use bootstrap::*;
pub use changes::*;
pub use coordinator::*;
pub use cut::*;
pub use load::*;
pub use replica::*;
pub use reshard::*;
pub use shard::*;
pub use sums::*;
pub use tally::*;
pub use transaction::*;

use crate::error::WireError;
use crate::ids::NodeId;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future on the heap, so that the traits can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A stream on the heap. Dropping it cancels what feeds it.
pub type BoxStream<T> = Pin<Box<dyn futures_core::Stream<Item = T> + Send>>;

/// Finds the services of the cluster's nodes: the local object for a node in this process, else a client.
pub trait Peers: Send + Sync {
    /// The shard service of a node; `None` if the node is unknown.
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>>;

    /// The replica service of a node; `None` if the node is unknown.
    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>>;

    /// Whether a node is in this process.
    fn is_here(&self, _node: NodeId) -> bool {
        false
    }

    /// The nodes that hold the coordinator's replicas, with their services.
    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)>;
}

/// A Raft message, opaque to everyone but `replica`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMessage {
    /// The group it belongs to.
    pub group: crate::ids::GroupId,
    /// The encoded message.
    pub body: bytes::Bytes,
}

/// Carries Raft messages to other nodes. Best effort: it may lose, delay or repeat them, and never blocks.
pub trait RaftTransport: Send + Sync {
    /// Sends messages to a node, in order where the network allows.
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>);
}

/// Takes Raft messages from other nodes.
pub trait RaftService: Send + Sync {
    /// Hands over messages that `from` sent. Never blocks.
    fn receive(&self, from: NodeId, messages: Vec<RaftMessage>);
}

/// The result of a service call.
pub type ServiceResult<T> = Result<T, WireError>;
