//! The settings of a coordinator.

use proto::machine::Machine;
use proto::{ClusterId, NodeId};
use std::time::Duration;

/// The settings of a [`crate::Coordinator`]. All but `node` must be the same on each of its nodes.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The cluster that is founded with it.
    pub cluster: ClusterId,
    /// The nodes that found the coordinator's group; this one among them. Who holds it later is in the topology.
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
    /// How long one attempt at changing a group's members may take, before it's looked whether it still makes sense.
    pub member_timeout: Duration,
    /// A node that hasn't reported for so long isn't counted on.
    pub silent_after: Duration,
    /// The replicas of a node that hasn't reported for so long are made on others.
    pub replace_after: Duration,
    /// A replica on a live node that has been lost for so long is made anew.
    pub rebuild_after: Duration,
    /// How many replicas are made without being asked for at a time.
    pub repairs_at_once: usize,
    /// How many bytes of one group's log a reshard may have kept.
    pub reshard_log: u64,
    /// How often it's looked whether something must be done.
    pub look_every: Duration,
    /// How long what became of a finished transaction is remembered. Far longer than any router goes on about one.
    pub remember_transactions: Duration,
    /// How many records of finished transactions there may be, those with idempotency keys aside. If there are more, the
    /// oldest are forgotten sooner, though none within minutes.
    pub max_records: u64,
    /// How long it is remembered that a transaction with an idempotency key was committed.
    pub remember_keys: Duration,
    /// How many such keys may be remembered; then nobody may claim another.
    pub max_keys: u64,
    /// A transaction that was decided is left to its router for so long, unless that is gone.
    pub finish_after: Duration,
    /// A transaction with a branch that has been prepared for so long is ended if nobody has decided it, though its router be heard. Longer than it
    /// takes to prepare a big one on its other shards.
    pub abort_after: Duration,
    /// How often shards are asked for their branches. Less often if there are hundreds of them.
    pub ask_every: Duration,
    /// How often those are asked that have branches which wait for others.
    pub ask_waiting_every: Duration,
    /// Where chance and threads come from.
    pub machine: Machine,
}

impl Config {
    /// A cluster of these nodes, each of which holds a replica of everything.
    pub fn new(node: NodeId, voters: Vec<NodeId>) -> Self {
        let nodes = voters.len() as u32;
        Self {
            node,
            cluster: ClusterId(0),
            voters,
            expected_nodes: nodes,
            shards: 2,
            replicas: nodes,
            schema_timeout: Duration::from_secs(300),
            attempt_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
            member_timeout: Duration::from_secs(30),
            silent_after: Duration::from_secs(10),
            replace_after: Duration::from_secs(300),
            rebuild_after: Duration::from_secs(10),
            repairs_at_once: 2,
            reshard_log: 16 << 30,
            look_every: Duration::from_millis(500),
            remember_transactions: Duration::from_secs(3600),
            max_records: 1_000_000,
            remember_keys: Duration::from_secs(24 * 3600),
            max_keys: 10_000_000,
            finish_after: Duration::from_secs(2),
            abort_after: Duration::from_secs(10),
            ask_every: Duration::from_secs(1),
            ask_waiting_every: Duration::from_millis(200),
            machine: Machine::default(),
        }
    }
}
