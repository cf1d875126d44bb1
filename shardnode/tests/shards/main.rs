//! Shards on real replicas, in one process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod adopting;
mod building;
mod changes;
mod common;
mod cuts;
mod failover;
mod flows;
mod followers;
mod fragments;
mod heirs;
mod long_reads;
mod many;
mod placing;
mod prepared;
mod seal;
mod serving;
mod session;
mod staged;
mod sums;
mod transactions;
