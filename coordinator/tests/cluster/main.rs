//! Coordinators over real replicas and shardnodes, in one process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod branches;
mod common;
mod courses;
mod forming;
mod layouts;
mod members;
mod nodes;
mod replicas;
mod reshard;
mod resuming;
mod schema;
mod tables;
mod transactions;
