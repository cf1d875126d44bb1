//! The node's Raft log: one raft-engine for all groups, so that one fsync serves many.
//!
//! Entries and hard states go in, batched; entries come out by index. It must never know what an entry means, nor when
//! it may be forgotten: that is said to it.

use crate::error::ReplicaError;
use crate::peer::Peer;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const HARD_STATE: &[u8] = b"hard";
const CUT: &[u8] = b"cut";
const PEER: &[u8] = b"peer";
/// Log files beyond this many times one file's size are purged of what was compacted.
const PURGE_FILES: u64 = 4;

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The last entry that was compacted away: Raft still asks for its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Its index; 0 if nothing was compacted.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// What a group's log reader asks.
pub(crate) trait LogReader: Send {
    /// Entries of `low..high`, at least one, and no more than `max_bytes` beyond the first.
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError>;
}

/// The log of one node.
pub(crate) struct Log {
    engine: raft_engine::Engine,
    path: PathBuf,
}

/// What a group's log holds when it is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Term, vote and commit index, as last written.
    pub hard_state: HardState,
    /// What was compacted.
    pub cut: Cut,
    /// The last entry's index; the cut's if there is none.
    pub last: u64,
}

/// Writes of several groups that become durable together.
#[derive(Default)]
pub(crate) struct Batch(LogBatch);

impl Batch {
    /// Appends entries, which replace any of the same index and after.
    pub fn append(&mut self, group: u64, entries: &[Entry]) -> Result<(), raft_engine::Error> {
        self.0.add_entries::<Entries>(group, entries)
    }

    /// Sets a group's hard state.
    pub fn hard_state(&mut self, group: u64, state: &HardState) -> Result<(), raft_engine::Error> {
        self.0.put_message(group, HARD_STATE.to_vec(), state)
    }

    /// Says which member of the group this node has.
    pub fn peer(&mut self, group: u64, peer: Peer) -> Result<(), raft_engine::Error> {
        self.0.put(group, PEER.to_vec(), peer.raw().to_le_bytes().to_vec())
    }

    /// Forgets a group's entries up to the cut.
    pub fn cut(&mut self, group: u64, cut: Cut) -> Result<(), raft_engine::Error> {
        let mut value = cut.index.to_le_bytes().to_vec();
        value.extend(cut.term.to_le_bytes());
        self.0.put(group, CUT.to_vec(), value)?;
        self.0.add_command(group, Command::Compact { index: cut.index + 1 });
        Ok(())
    }
}

impl Log {
    /// Opens or makes a log.
    pub fn open(path: &Path, file_bytes: u64) -> Result<Self, ReplicaError> {
        let dir =
            path.to_str().ok_or_else(|| ReplicaError::Invalid(format!("{} isn't UTF-8", path.display())))?;
        let config = raft_engine::Config {
            dir: dir.to_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            target_file_size: ReadableSize(file_bytes),
            purge_threshold: ReadableSize(file_bytes * PURGE_FILES),
            ..raft_engine::Config::default()
        };
        let wrap = |source| ReplicaError::Log { path: path.to_owned(), source };
        let engine = raft_engine::Engine::open(config).map_err(wrap)?;
        Ok(Self { engine, path: path.to_owned() })
    }

    /// The log's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wrap(&self, source: raft_engine::Error) -> ReplicaError {
        ReplicaError::Log { path: self.path.clone(), source }
    }

    fn damaged(&self, message: String) -> ReplicaError {
        ReplicaError::Damaged { path: self.path.clone(), message }
    }

    /// What the log holds of a group. `applied` is what the group's database has: a log that ends before it has lost
    /// entries which were acknowledged, and one that begins after it can't bring the database up to date.
    pub fn find(&self, group: u64, applied: u64) -> Result<Found, ReplicaError> {
        let hard_state: Option<HardState> =
            self.engine.get_message(group, HARD_STATE).map_err(|e| self.wrap(e))?;
        let cut = match self.engine.get(group, CUT) {
            None => Cut::default(),
            Some(value) => {
                let (index, term) =
                    value.split_first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                let term = term.first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                Cut { index: u64::from_le_bytes(*index), term: u64::from_le_bytes(*term) }
            }
        };
        let last = self.engine.last_index(group).unwrap_or(cut.index);
        let mut hard_state = hard_state.unwrap_or_default();
        if let Some(first) = self.engine.first_index(group)
            && first != cut.index + 1
        {
            return Err(
                self.damaged(format!("group {group} begins at {first}, but was cut at {}", cut.index))
            );
        }
        if cut.index > applied {
            let begin = cut.index + 1;
            return Err(
                self.damaged(format!("group {group} begins at {begin}, but its database is at {applied}"))
            );
        }
        if last < applied || last < hard_state.commit {
            let need = applied.max(hard_state.commit);
            return Err(self.damaged(format!("group {group} ends at {last}, but {need} was committed")));
        }
        // The database is synced less often than the log but commits are written lazily: either may be ahead.
        hard_state.commit = hard_state.commit.max(applied);
        Ok(Found { hard_state, cut, last })
    }

    /// Which member of the group this node has, as last written.
    pub fn peer(&self, group: u64) -> Result<Option<Peer>, ReplicaError> {
        let Some(value) = self.engine.get(group, PEER) else { return Ok(None) };
        let raw = value.first_chunk::<8>().map(|raw| u64::from_le_bytes(*raw));
        let peer = raw.and_then(Peer::from_raw);
        peer.map(Some).ok_or_else(|| self.damaged(format!("group {group}: no member has this id")))
    }

    /// Writes a batch; with `sync`, it is durable afterwards.
    pub fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError> {
        let mut batch = batch.0;
        // raft-engine panics where an fsync fails; what it wrote before can't be trusted then, and the node's
        // replicas stop.
        match catch_unwind(AssertUnwindSafe(|| self.engine.write(&mut batch, sync))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.wrap(error)),
            Err(_) => Err(self.damaged("it could not be synced".into())),
        }
    }

    /// Frees the space of what was cut.
    pub fn purge(&self) -> Result<(), ReplicaError> {
        self.engine.purge_expired_files().map_err(|e| self.wrap(e))?;
        Ok(())
    }
}

impl LogReader for std::sync::Arc<Log> {
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError> {
        let mut entries = Vec::new();
        let max = max_bytes.map(|max| usize::try_from(max).unwrap_or(usize::MAX));
        self.engine
            .fetch_entries_to::<Entries>(group, low, high, max, &mut entries)
            .map_err(|e| self.wrap(e))?;
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        indexes.map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() }).collect()
    }

    fn open(directory: &tempfile::TempDir) -> Arc<Log> {
        Arc::new(Log::open(directory.path(), 1 << 20).unwrap())
    }

    fn append(log: &Log, entries: &[Entry], commit: u64) {
        let mut batch = Batch::default();
        batch.append(3, entries).unwrap();
        let term = entries.last().unwrap().term;
        batch.hard_state(3, &HardState { term, vote: 2, commit, ..HardState::default() }).unwrap();
        log.write(batch, true).unwrap();
    }

    #[test]
    fn what_was_written_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        assert_eq!(log.find(3, 0).unwrap().last, 0);
        append(&log, &entries(1..=10, 1), 5);
        // A new leader's entries replace the tail.
        append(&log, &entries(8..=9, 2), 6);
        drop(log);
        let log = open(&directory);
        let found = log.find(3, 7).unwrap();
        assert_eq!((found.last, found.hard_state.term, found.hard_state.vote), (9, 2, 2));
        assert_eq!(found.hard_state.commit, 7, "the database had more than was noted as committed");
        let read = log.entries(3, 7, 10, None).unwrap();
        assert_eq!(read.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(7, 1), (8, 2), (9, 2)]);
        assert_eq!(log.entries(3, 1, 10, Some(150)).unwrap().len(), 1);
        assert_eq!(log.find(4, 0).unwrap().last, 0, "groups don't mix");
    }

    #[test]
    fn a_cut_forgets_and_keeps_the_term() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&log, &entries(1..=10, 4), 10);
        let mut batch = Batch::default();
        batch.cut(3, Cut { index: 6, term: 4 }).unwrap();
        log.write(batch, false).unwrap();
        log.purge().unwrap();
        drop(log);
        let found = open(&directory).find(3, 8).unwrap();
        assert_eq!((found.cut, found.last), (Cut { index: 6, term: 4 }, 10));
    }

    #[test]
    fn a_log_that_does_not_reach_the_database_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&log, &entries(1..=10, 1), 10);
        assert!(log.find(3, 11).unwrap_err().to_string().contains("ends at 10, but 11"));
        let mut batch = Batch::default();
        batch.cut(3, Cut { index: 6, term: 1 }).unwrap();
        log.write(batch, true).unwrap();
        assert!(log.find(3, 5).unwrap_err().to_string().contains("begins at 7"));
        log.find(3, 6).unwrap();
    }
}
