//! Raft-replicated SQLite: the engine under shardnode and coordinator.
//!
//! A [`Host`] holds every replica of one node. A write runs on the leader's writer connection, its changes are
//! captured as a changeset, and the changeset travels in the Raft log; followers apply it and never run user SQL.
//!
//! The life of a write:
//!
//! 1. [`Replica::write`] puts it into the group's inbox and waits for its reply (`replica.rs`).
//! 2. The group's engine loop gathers everything that waits and runs it in one SQLite transaction, each write in a
//!    savepoint of its own, under one capture (`engine`, `session`).
//! 3. The batch becomes one log entry (`entry`) and is proposed, in the term in which it was executed (`consensus`).
//! 4. The node's consensus loop sends it to the followers, then syncs its own log (`driver`, `log`).
//! 5. Raft commits. The engine writes the entry's index beside the rows, commits, and the replies go out.
//!
//! A transaction that is still open has an [`Overlay`]: what it has changed so far. Its steps are rehearsed between
//! batches ([`Replica::rehearse`]), and a write that applies the overlay ([`Stage::apply`]) commits it. One that is too big for
//! that lies in a table of the database, and an entry that every replica executes commits it ([`Replica::replay`]).
//!
//! Nothing uncommitted is ever visible to a reader, and there is no undo: a leader that lost its office rolls back, and
//! what Raft commits after all arrives as on any follower.
//!
//! It must never know what a table means: no catalog, no shard, no key range, no plan.

mod changeset;
mod clock;
mod config;
mod connection;
mod consensus;
mod driver;
mod engine;
mod entry;
mod error;
mod fault;
mod founding;
#[cfg(test)]
mod golden;
mod hash;
mod host;
mod hosted;
mod image;
mod log;
mod metrics;
mod moment;
mod overlay;
mod packet;
mod peer;
mod readers;
mod reading;
mod replay;
mod replica;
mod revive;
mod service;
pub mod session;
pub mod simulation;
mod snapshot;
mod stage;
mod staging;
mod tail;
mod write;

pub use config::Config;
pub use driver::Closely;
pub use engine::{Replayed, replayed, replayed_piece, schema_outcome};
pub use error::ReplicaError;
pub use founding::lay_out;
pub use hash::{RowSum, table_hash, text_hash};
pub use host::Host;
pub use image::Copying;
pub use overlay::{Overlay, Rehearsal, RehearsalFn, Rehearsed};
pub use reading::Canceller;
pub use replica::{Office, Replica};
pub use session::{Record, RowChange, RowOp, Values, retain};
pub use snapshot::{Snapshot, State};
pub use stage::{Stage, changes};
pub use staging::{Piece, Pieces, Replay, Staging};
pub use tail::{Answered, Content, Logged, TailError};
pub use write::{MemberTarget, SchemaEntry, Write, WriteFn, Written, note};
