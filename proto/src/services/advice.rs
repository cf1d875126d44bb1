//! What an admin could do for the cluster.
//!
//! How a command is typed is nobody's business here: each remedy is what is to be done, and to what.

use crate::ids::NodeId;

/// What an admin could do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Why, for people.
    pub why: String,
    /// What does it; `None` if nothing does that the cluster can be told.
    pub remedy: Option<Remedy>,
}

/// Something that an admin can have done. Shards are named as people name them: `main/-80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A shard is split.
    Split {
        /// Which.
        shard: String,
        /// Into so many of the same width; `None` for two, cut where half of the rows are before.
        parts: Option<u32>,
    },
    /// Neighbours become one shard.
    Merge {
        /// Which, in the order of their ranges.
        shards: Vec<String>,
    },
    /// A node gets what another has of a shard, which then loses it.
    Move {
        /// The shard.
        shard: String,
        /// Who loses its replica.
        from: NodeId,
        /// Who gets one.
        to: NodeId,
    },
    /// Another node leads a shard.
    Lead {
        /// The shard.
        shard: String,
        /// Who is to lead.
        node: NodeId,
    },
    /// A node gives away all that it holds.
    Drain(NodeId),
}
