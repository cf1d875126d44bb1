//! The log of production: one raft-engine for all groups of a node.
//!
//! Batches go in and are framed as raft-engine wants them; entries come out by index. It must never know what an entry
//! means.

use super::{Batch, Change, Cut, Kept, LogReader, LogStore};
use crate::error::ReplicaError;
use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const HARD_STATE: &[u8] = b"hard";
const CUT: &[u8] = b"cut";
/// Marks' names begin with this, so that they can't be mistaken for the two above.
const MARK: &str = "mark.";
/// Log files beyond this many times one file's size are purged of what was compacted.
const PURGE_FILES: u64 = 4;

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The log of one node.
pub(crate) struct RaftEngineLog {
    engine: raft_engine::Engine,
    path: PathBuf,
}

fn mark_key(name: &str) -> Vec<u8> {
    format!("{MARK}{name}").into_bytes()
}

fn cut_value(cut: Cut) -> Vec<u8> {
    let mut value = cut.index.to_le_bytes().to_vec();
    value.extend(cut.term.to_le_bytes());
    value
}

impl RaftEngineLog {
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

    fn wrap(&self, source: raft_engine::Error) -> ReplicaError {
        ReplicaError::Log { path: self.path.clone(), source }
    }

    fn damaged(&self, message: String) -> ReplicaError {
        ReplicaError::Damaged { path: self.path.clone(), message }
    }

    fn hard_state(&self, group: u64) -> Result<Option<HardState>, ReplicaError> {
        self.engine.get_message(group, HARD_STATE).map_err(|e| self.wrap(e))
    }

    /// raft-engine can only forget a group as a whole: what is to stay is written again behind that.
    fn clean(&self, group: u64, framed: &mut LogBatch) -> Result<(), raft_engine::Error> {
        let mut marks: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let keep = |key: &[u8], value: &[u8]| {
            marks.push((key.to_vec(), value.to_vec()));
            true
        };
        let (begin, end) = (MARK.as_bytes(), b"mark/".as_slice());
        self.engine.scan_raw_messages(group, Some(begin), Some(end), false, keep)?;
        framed.add_command(group, Command::Clean);
        for (key, value) in marks {
            framed.put(group, key, value)?;
        }
        Ok(())
    }

    fn frame(&self, group: u64, change: Change, framed: &mut LogBatch) -> Result<(), raft_engine::Error> {
        match change {
            Change::Append(entries) => framed.add_entries::<Entries>(group, &entries),
            Change::HardState(state) => framed.put_message(group, HARD_STATE.to_vec(), &state),
            Change::Cut(cut) => {
                framed.put(group, CUT.to_vec(), cut_value(cut))?;
                framed.add_command(group, Command::Compact { index: cut.index + 1 });
                Ok(())
            }
            Change::Reset(cut) => {
                let state: Option<HardState> = self.engine.get_message(group, HARD_STATE)?;
                self.clean(group, framed)?;
                if let Some(state) = state {
                    framed.put_message(group, HARD_STATE.to_vec(), &state)?;
                }
                framed.put(group, CUT.to_vec(), cut_value(cut))
            }
            Change::Mark(name, Some(value)) => framed.put(group, mark_key(name), value.to_vec()),
            Change::Mark(name, None) => {
                framed.delete(group, mark_key(name));
                Ok(())
            }
            Change::Clear => self.clean(group, framed),
        }
    }
}

impl LogReader for RaftEngineLog {
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

impl LogStore for RaftEngineLog {
    fn path(&self) -> &Path {
        &self.path
    }

    fn kept(&self, group: u64) -> Result<Kept, ReplicaError> {
        let cut = match self.engine.get(group, CUT) {
            None => Cut::default(),
            Some(value) => {
                let (index, term) =
                    value.split_first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                let term = term.first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                Cut { index: u64::from_le_bytes(*index), term: u64::from_le_bytes(*term) }
            }
        };
        let range = self.engine.first_index(group).zip(self.engine.last_index(group));
        Ok(Kept { hard_state: self.hard_state(group)?.unwrap_or_default(), cut, range })
    }

    fn mark(&self, group: u64, name: &str) -> Result<Option<Bytes>, ReplicaError> {
        Ok(self.engine.get(group, &mark_key(name)).map(Bytes::from))
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError> {
        let mut framed = LogBatch::default();
        for (group, change) in batch.into_changes() {
            self.frame(group, change, &mut framed).map_err(|e| self.wrap(e))?;
        }
        // raft-engine panics where an fsync fails; what it wrote before can't be trusted then, and the node's
        // replicas stop.
        match catch_unwind(AssertUnwindSafe(|| self.engine.write(&mut framed, sync))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.wrap(error)),
            Err(_) => Err(self.damaged("it could not be synced".into())),
        }
    }

    fn purge(&self) -> Result<(), ReplicaError> {
        self.engine.purge_expired_files().map_err(|e| self.wrap(e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        indexes.map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() }).collect()
    }

    fn open(directory: &tempfile::TempDir) -> RaftEngineLog {
        RaftEngineLog::open(directory.path(), 1 << 20).unwrap()
    }

    fn write(log: &RaftEngineLog, changes: impl IntoIterator<Item = Change>, sync: bool) {
        let mut batch = Batch::default();
        changes.into_iter().for_each(|change| batch.put(3, change));
        log.write(batch, sync).unwrap();
    }

    fn append(log: &RaftEngineLog, entries: &[Entry], commit: u64) {
        let term = entries.last().unwrap().term;
        let state = HardState { term, vote: 2, commit, ..HardState::default() };
        write(log, [Change::Append(entries.to_vec()), Change::HardState(state)], true);
    }

    #[test]
    fn what_was_written_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        assert_eq!(find(&log, 3, 0).unwrap().last, 0);
        append(&log, &entries(1..=10, 1), 5);
        // A new leader's entries replace the tail.
        append(&log, &entries(8..=9, 2), 6);
        drop(log);
        let log = open(&directory);
        let found = find(&log, 3, 7).unwrap();
        assert_eq!((found.last, found.hard_state.term, found.hard_state.vote), (9, 2, 2));
        assert_eq!(found.hard_state.commit, 7, "the database had more than was noted as committed");
        let read = log.entries(3, 7, 10, None).unwrap();
        assert_eq!(read.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(7, 1), (8, 2), (9, 2)]);
        assert_eq!(log.entries(3, 1, 10, Some(150)).unwrap().len(), 1);
        assert_eq!(find(&log, 4, 0).unwrap().last, 0, "groups don't mix");
    }

    #[test]
    fn a_cut_forgets_and_keeps_the_term() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&log, &entries(1..=10, 4), 10);
        write(&log, [Change::Cut(Cut { index: 6, term: 4 })], false);
        log.purge().unwrap();
        drop(log);
        let found = find(&open(&directory), 3, 8).unwrap();
        assert_eq!((found.cut, found.last), (Cut { index: 6, term: 4 }, 10));
    }

    #[test]
    fn a_reset_forgets_entries_alone_and_goes_on_behind_the_cut() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        write(&log, [Change::Mark("peer", Some(Bytes::from_static(b"one")))], false);
        append(&log, &entries(1..=10, 4), 10);
        let cut = Cut { index: 20, term: 5 };
        write(&log, [Change::Reset(cut)], true);
        drop(log);
        let log = open(&directory);
        let kept = log.kept(3).unwrap();
        assert_eq!((kept.cut, kept.range, kept.hard_state.vote), (cut, None, 2));
        assert_eq!(log.mark(3, "peer").unwrap().unwrap(), "one");
        append(&log, &entries(21..=22, 5), 21);
        drop(log);
        assert_eq!(find(&open(&directory), 3, 20).unwrap().last, 22);
    }

    #[test]
    fn what_is_cleared_leaves_its_marks() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&log, &entries(1..=10, 4), 10);
        let marks = [
            Change::Mark("peer", Some(Bytes::from_static(b"one"))),
            Change::Mark("tombstone", Some(Bytes::from_static(b"two"))),
        ];
        write(&log, marks, true);
        write(&log, [Change::Clear, Change::Mark("peer", None)], true);
        drop(log);
        let log = open(&directory);
        assert_eq!(log.kept(3).unwrap(), Kept::default());
        assert_eq!(log.mark(3, "peer").unwrap(), None);
        assert_eq!(log.mark(3, "tombstone").unwrap().unwrap(), "two");
        append(&log, &entries(1..=2, 1), 1);
        assert_eq!(find(&log, 3, 0).unwrap().last, 2);
    }

    #[test]
    fn a_log_that_does_not_reach_the_database_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&log, &entries(1..=10, 1), 10);
        assert!(find(&log, 3, 11).unwrap_err().to_string().contains("ends at 10, but 11"));
        write(&log, [Change::Cut(Cut { index: 6, term: 1 })], true);
        assert!(find(&log, 3, 5).unwrap_err().to_string().contains("begins at 7"));
        find(&log, 3, 6).unwrap();
    }
}
