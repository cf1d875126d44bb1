//! Tests that need more than one crate: the repository's own rules, golden SQL against PostgreSQL's recorded answers,
//! real processes with real clients.
//!
//! This library holds what they share: starting a cluster as a process, finding the tools that a test wants, and the
//! form of a recorded script. It must never be used by anything but tests.

pub mod bank;
pub mod cluster;
pub mod figures;
pub mod http;
pub mod isolation;
pub mod load;
pub mod nodes;
pub mod payments;
pub mod pooler;
pub mod postgres;
pub mod roaming;
pub mod script;
pub mod sessions;
pub mod sim;
pub mod tools;
pub mod transfers;
pub mod wait;
