//! Resharding: some shards of a keyspace, side by side, are replaced by others of the same range (docs/resharding.md).
//!
//! 1. A wish is checked, and becomes a plan (`admit`).
//! 2. A reshard is one **record** (`record`), written whole at each change, so that any later leader can take it up.
//! 3. On the leader a worker (`worker`) asks (`asking`), and a **machine** (`machine`) says what is to be asked of whom, hears the answers, and says which **step** is
//!    due. What it has heard is its own, and is heard again by the next leader's.
//! 4. A step is taken inside the write that records it (`step`), on the record as the log has it by then, together with what it
//!    changes in the topology (`tables`). One that was due on an older record isn't taken.
//! 5. Whether old and new have the same rows is asked span by span (`comparing`).
//!
//! The record, its steps and its machine must never know a socket, a clock or a table.

mod admit;
mod asking;
mod comparing;
mod leftover;
mod machine;
mod record;
mod serve;
mod step;
mod stored;
mod tables;
mod worker;

#[cfg(test)]
mod golden;

pub(crate) use leftover::LeftOver;
pub(crate) use record::Record;
pub(crate) use tables::{TABLES, begin, dropped, has_replicas_wait, has_schema_wait, of_group};
pub(crate) use worker::{Seen, run};

use std::time::Duration;

/// How long an attempt may take from its last seal to its last adoption.
const CATCH_UP: Duration = Duration::from_secs(5);
