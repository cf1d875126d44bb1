//! The node's Raft log: what is written for all groups together and read back for each.
//!
//! [`LogStore`] is a disk that keeps entries, hard states and a few marks per group; [`RaftEngineLog`] is the one of
//! production, simulations bring their own. [`find`] judges what a group's log holds when it is opened. It must never
//! know what an entry means, nor when it may be forgotten: that is said to it.

mod files;
mod raft_engine;
mod tail;

pub use files::{Condition, TestDisk};
pub(crate) use raft_engine::RaftEngineLog;
pub(crate) use tail::write_afresh;

use crate::error::ReplicaError;
use crate::peer::Peer;
use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use std::path::Path;

/// The mark that says which member of the group this node has.
const PEER: &str = "peer";
const TOMBSTONE: &str = "tombstone";
/// The mark that counts the node's starts.
const STARTS: &str = "starts";
/// No group has this id: what is marked here is the node's.
const NODE: u64 = 0;

/// The last entry that isn't in the log any more: Raft still asks for its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Its index; 0 if nothing is missing.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// One thing to write of a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Appends entries, which replace any of the same index and after.
    Append(Vec<Entry>),
    /// Sets term, vote and commit index.
    HardState(HardState),
    /// Forgets the entries up to the cut.
    Cut(Cut),
    /// Forgets every entry; the next one comes after the cut.
    Reset(Cut),
    /// Remembers something under a name, or forgets it.
    Mark(&'static str, Option<Bytes>),
    /// Forgets entries, cut and hard state. Marks stay.
    Clear,
}

/// Writes of several groups that become durable together. Their order counts.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<(u64, Change)>,
}

impl Batch {
    /// Adds a change of a group.
    pub fn put(&mut self, group: u64, change: Change) {
        self.changes.push((group, change));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes, each with its group.
    pub fn changes(&self) -> &[(u64, Change)] {
        &self.changes
    }

    /// The changes, each with its group.
    pub fn into_changes(self) -> Vec<(u64, Change)> {
        self.changes
    }
}

/// What a log holds of a group, as it was last written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Term, vote and commit index; all 0 if they were never written.
    pub hard_state: HardState,
    /// What was cut.
    pub cut: Cut,
    /// The first and the last entry's index.
    pub range: Option<(u64, u64)>,
}

/// What a group's log reader asks.
pub trait LogReader: Send + Sync {
    /// Entries of `low..high`, at least one, and no more than `max_bytes` beyond the first.
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError>;
}

/// A node's log, shared by all of its groups, so that one sync serves many.
pub trait LogStore: LogReader {
    /// Where it lies, for messages.
    fn path(&self) -> &Path;

    /// What it holds of a group.
    fn kept(&self, group: u64) -> Result<Kept, ReplicaError>;

    /// What is remembered for a group under a name.
    fn mark(&self, group: u64, name: &str) -> Result<Option<Bytes>, ReplicaError>;

    /// Writes a batch, all of it or nothing; with `sync`, it is durable afterwards, and so is all that came before.
    fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError>;

    /// Frees the space of what was forgotten. It may take long.
    fn purge(&self) -> Result<(), ReplicaError>;

    /// Why nothing can be written any more: a write or a sync has failed, or the log is damaged. From the first failure
    /// on every write fails, until the log is opened again.
    fn failure(&self) -> Option<ReplicaError> {
        None
    }

    /// Whether the disk that it lies on takes writes.
    fn check_room(&self) -> Result<(), ReplicaError> {
        Ok(())
    }

    /// Puts a damaged log aside, for whoever wants to look at it, and begins a new one in its place. What is remembered
    /// and noted of groups is gone from it. It does nothing to one that isn't damaged.
    fn renew(&self) -> Result<(), ReplicaError> {
        Ok(())
    }

    /// Opens a log that has failed again: it has what is durable of it, and nothing else. No replica may use it
    /// meanwhile. It does nothing to one that hasn't failed.
    fn reopen(&self) -> Result<(), ReplicaError> {
        Ok(())
    }
}

/// What a group's log holds when it is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// What was cut.
    pub cut: Cut,
    /// The last entry's index; the cut's if there is none.
    pub last: u64,
}

/// What the log holds of a group. `applied` is what the group's database has: a log that ends before it has lost
/// entries which were acknowledged, and one that begins after it can't bring the database up to date.
pub(crate) fn find(log: &dyn LogStore, group: u64, applied: u64) -> Result<Found, ReplicaError> {
    let Kept { mut hard_state, cut, range } = log.kept(group)?;
    let damaged = |message| Err(ReplicaError::Damaged { path: log.path().to_owned(), message });
    if let Some((first, _)) = range
        && first != cut.index + 1
    {
        return damaged(format!("group {group} begins at {first}, but was cut at {}", cut.index));
    }
    let last = range.map_or(cut.index, |(_, last)| last);
    if cut.index > applied {
        let begin = cut.index + 1;
        return damaged(format!("group {group} begins at {begin}, but its database is at {applied}"));
    }
    if last < applied || last < hard_state.commit {
        let need = applied.max(hard_state.commit);
        return damaged(format!("group {group} ends at {last}, but {need} was committed"));
    }
    // The database is synced less often than the log but commits are written lazily: either may be ahead.
    hard_state.commit = hard_state.commit.max(applied);
    Ok(Found { hard_state, cut, last })
}

/// Counts a start of the node, durably; says how many were counted with it.
pub(crate) fn count_start(log: &dyn LogStore) -> Result<u64, ReplicaError> {
    let before = log.mark(NODE, STARTS)?.and_then(|value| value.first_chunk::<8>().copied());
    let start = before.map_or(0, u64::from_le_bytes) + 1;
    let mut batch = Batch::default();
    batch.put(NODE, Change::Mark(STARTS, Some(Bytes::copy_from_slice(&start.to_le_bytes()))));
    log.write(batch, true)?;
    Ok(start)
}

/// Which member of the group this node has, as last noted.
pub(crate) fn peer(log: &dyn LogStore, group: u64) -> Result<Option<Peer>, ReplicaError> {
    noted(log, group, PEER)
}

fn noted(log: &dyn LogStore, group: u64, name: &str) -> Result<Option<Peer>, ReplicaError> {
    let Some(value) = log.mark(group, name)? else { return Ok(None) };
    let raw = value.first_chunk::<8>().map(|raw| u64::from_le_bytes(*raw));
    let message = || format!("group {group}: no member has this id");
    let peer = raw.and_then(Peer::from_raw);
    peer.map(Some).ok_or_else(|| ReplicaError::Damaged { path: log.path().to_owned(), message: message() })
}

fn note(name: &'static str, peer: Peer) -> Change {
    Change::Mark(name, Some(Bytes::copy_from_slice(&peer.raw().to_le_bytes())))
}

/// The last member of the group that was removed from this node, if one was.
pub(crate) fn tombstone(log: &dyn LogStore, group: u64) -> Result<Option<Peer>, ReplicaError> {
    noted(log, group, TOMBSTONE)
}

/// Forgets a group, but for the member that was removed.
pub(crate) fn bury(peer: Peer) -> [Change; 3] {
    [Change::Clear, Change::Mark(PEER, None), note(TOMBSTONE, peer)]
}

/// Notes which member of the group this node has.
pub(crate) fn note_peer(peer: Peer) -> Change {
    note(PEER, peer)
}
