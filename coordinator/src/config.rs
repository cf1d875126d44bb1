//! The settings of a coordinator.

use proto::NodeId;
use std::time::Duration;

/// The settings of a [`crate::Coordinator`]. All but `node` must be the same on each of its nodes.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The nodes that hold the coordinator's replicas; this one among them.
    pub voters: Vec<NodeId>,
    /// A new cluster makes its first keyspaces once so many shardnodes have registered.
    pub expected_nodes: u32,
    /// How many shards keyspace `main` begins with.
    pub shards: u32,
    /// How many replicas each shard has.
    pub replicas: u32,
    /// How long a caller waits for a schema change; the change itself goes on.
    pub schema_timeout: Duration,
    /// How long one shard may take for one attempt at a step.
    pub attempt_timeout: Duration,
    /// How long other changes of the cluster's state may take.
    pub write_timeout: Duration,
}

impl Config {
    /// A cluster of these nodes, each of which holds a replica of everything.
    pub fn new(node: NodeId, voters: Vec<NodeId>) -> Self {
        let nodes = voters.len() as u32;
        Self {
            node,
            voters,
            expected_nodes: nodes,
            shards: 2,
            replicas: nodes,
            schema_timeout: Duration::from_secs(300),
            attempt_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
        }
    }
}
