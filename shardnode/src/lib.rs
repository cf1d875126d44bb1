//! What a shard does on top of a replica.
//!
//! The life of a fragment:
//!
//! 1. [`ShardNode`] finds the shard's replica and checks the epoch that the request was routed by (`node`).
//! 2. A read opens a snapshot, a write enters the leader's next batch. Inside it, the schema version is checked
//!    against the shard's own (`fence`), so that the check and the rows can't disagree.
//! 3. A lookup runs where it is asked (`read`); any other read runs on a thread of its own and streams its rows
//!    (`stream`).
//! 4. A write runs once, or once for each of its rows; what it says of itself travels as the write's output, so that a
//!    repeated request is told the same (`write`).
//!
//! An [`Agent`] makes a node part of the cluster: it registers it, has it follow the topology, and reports.
//!
//! It must never know a name of the catalog, plan SQL, or talk to another shard.

mod agent;
mod config;
mod fence;
mod node;
mod read;
mod stream;
mod write;

pub use agent::Agent;
pub use config::Config;
pub use node::ShardNode;
