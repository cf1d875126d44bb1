//! Postgres sessions over the cluster.
//!
//! In come connections of Postgres clients; out go fragments to shards, schema changes to the coordinator, and
//! answers. The life of a statement:
//! 1. `server` accepts the connection; `protocol` cuts its bytes into messages; `session` handles them.
//! 2. The session finds the statement's plan in the cache (`statements`) or has the planner make one.
//! 3. The `executor` evaluates what must be known first, asks the shards, and gathers their rows.
//! 4. The session writes the rows into its buffer, and sends it when the protocol says so.
//!
//! A router keeps no data and no promise beyond a session: any router of a cluster can take any client. It must never
//! know how a shard stores rows, or what consensus is.

mod asking;
mod cancel;
mod cluster;
mod config;
mod copy;
mod error;
mod executor;
#[cfg(test)]
mod fake;
mod gate;
mod gtid;
mod metrics;
mod positions;
mod protocol;
mod replicas;
mod requests;
mod retry;
mod sequences;
mod server;
mod session;
mod statements;
mod transaction;

pub use config::Config;
pub use server::{Router, decline};
