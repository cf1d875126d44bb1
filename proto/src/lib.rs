//! The vocabulary that crosses process borders.
//!
//! Everything that two of router, shardnode and coordinator must agree on is named here once: ids, key ranges, how
//! a row finds its keyspace id, values and rows, topology, catalog, positions, errors, and the service traits by
//! which the three know each other. With the `transport` feature come the gRPC clients and servers behind those
//! traits, with `machine` what nodes take from the machine; without them this crate has no socket, no runtime, no clock.
//!
//! It must never know SQL, SQLite, or Raft: a type is an object id and a modifier here, a value is one of five
//! storage classes, a log entry is a position.

pub mod catalog;
pub mod error;
pub mod gtid;
pub mod ids;
pub mod key_range;
pub mod keyspace_id;
pub mod layout;
pub mod lineage;
#[cfg(feature = "machine")]
pub mod machine;
pub mod rows;
pub mod services;
pub mod topology;
#[cfg(feature = "transport")]
pub mod transport;
pub mod value;
#[cfg(any(feature = "machine", feature = "transport"))]
pub mod wire;

pub use error::{Retry, SqlState, Violation, WireError};
pub use ids::*;
pub use key_range::KeyRange;
pub use keyspace_id::KeyspaceId;
pub use rows::{RowBatch, RowBatchBuilder};
pub use value::{Value, ValueRef};
