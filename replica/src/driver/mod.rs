//! The shell around consensus and engine: what their loops do in a turn, and who turns them.
//!
//! One consensus loop per node serves all groups, so that one fsync covers them; one engine loop per group runs SQLite,
//! so that nothing that takes long there delays a tick; one image loop per node copies whole databases. They know each
//! other through [`Shared`] and their mailboxes. A loop owns no thread: [`Drive`] is who turns it, [`Threads`] in production, a simulation's hand elsewhere.

mod changing;
#[cfg(test)]
mod coming_tests;
mod company;
mod consensus_loop;
mod drive;
mod engine_loop;
mod freshness;
mod hashing;
mod image_loop;
mod inbox;
mod lag;
#[cfg(test)]
mod lag_tests;
mod mailbox;
mod member;
mod patient;
mod queue;
#[cfg(test)]
mod read_tests;
#[cfg(test)]
mod rehearsal_tests;
mod shared;
mod sleep;
#[cfg(test)]
mod sleep_tests;
#[cfg(test)]
mod slow_tests;
#[cfg(test)]
mod tail_tests;
mod threads;
#[cfg(test)]
mod world;

pub(crate) use changing::Wish;
pub(crate) use consensus_loop::{ConsensusLoop, Pace, Purge};
pub(crate) use drive::Drive;
pub(crate) use engine_loop::{EngineLoop, Patience, Step};
pub(crate) use hashing::{Hashing, TakeHash};
pub(crate) use image_loop::{ImageLoop, ImageMail, ImageMailbox};
pub(crate) use inbox::{Inbox, PendingOrder, PendingRehearsal, PendingWrite, Place, WriteState};
pub(crate) use lag::Lag;
pub(crate) use mailbox::{Mail, Mailbox};
pub use shared::Closely;
pub(crate) use shared::{Common, Shared};
pub(crate) use threads::Threads;
