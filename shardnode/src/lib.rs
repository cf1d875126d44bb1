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
//! The life of a transaction's statement:
//!
//! 1. Its branch is found, or made by its first statement; a repeated one is answered as before (`branch`).
//! 2. It is rehearsed on the replica's writer, above what its transaction has changed so far (`statement`).
//! 3. What it has touched is computed, as locks (`touched`), and they are claimed (`locks`). If another transaction has
//!    one of them, it is undone, waits, and is run again.
//! 4. The branch is committed, or prepared and finished, by writes like any others (`transact`, `prepared`). What its votes
//!    alone commit is remembered until all know (`ended`).
//!
//! A transaction lives as long as its router does, which says so to the node (`routers`).
//! Reads of several shards have all of them show one state (`cut`); any statement sees what was prepared before it came
//! (`pending`).
//!
//! What a shard's log says is read from any of its replicas (`changes`). While shards are replaced, what replaces them takes
//! over from there (`flow`), its rows are compared with theirs (`sums`, `compare`), and in the end it takes over what is left of
//! their transactions (`estate`).
//!
//! A write outside of any transaction runs straight in the leader's batch if nobody has a lock in its table, else as a
//! transaction of one statement. A schema entry has its tables for itself (`altering`).
//!
//! A shard may be replaced by others: then it is sealed, and answers nobody any more (`seal`).
//!
//! An [`Agent`] makes a node part of the cluster: it registers it, has it follow the topology, and reports.
//!
//! It must never know a name of the catalog, plan SQL, or talk to another shard but to take over what its log says.

mod agent;
mod altering;
mod branch;
mod build;
mod changes;
mod compare;
mod config;
mod cut;
mod ended;
mod estate;
mod fence;
mod flow;
mod layout;
mod locks;
mod metrics;
mod node;
mod pending;
mod phrase;
mod prepared;
mod read;
mod routers;
mod seal;
mod sought;
mod staged;
mod statement;
mod stream;
mod sums;
mod tally;
mod touched;
mod trail;
mod transact;
mod write;

pub use agent::Agent;
pub use config::Config;
pub use node::{Before, ShardNode};
