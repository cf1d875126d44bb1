//! The thin shell around consensus and engine: threads, a ticker, channels, the log's writes.
//!
//! One consensus thread per node serves all groups, so that one fsync covers them; one engine thread per group runs
//! SQLite, so that nothing that takes long there delays a tick. They know each other through [`Shared`] and two
//! mailboxes, each woken only when there is something to do.

mod consensus_thread;
mod engine_thread;
mod inbox;
mod mailbox;
mod shared;

pub(crate) use consensus_thread::ConsensusThread;
pub(crate) use engine_thread::{EngineThread, Patience};
pub(crate) use inbox::{Inbox, PendingSchema, PendingWrite, Place, WriteState};
pub(crate) use mailbox::{Mail, Mailbox};
pub(crate) use shared::{Clock, Shared};
