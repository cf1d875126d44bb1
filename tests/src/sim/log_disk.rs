//! A node's Raft log on a disk that loses what wasn't synced.
//!
//! Batches go in; what is read back is all of them. At a crash the synced ones stay, and as many of those after them as
//! chance will have: a batch is kept or lost as a whole, as raft-engine's checksums do it. It must never know what is in
//! an entry.

use super::random::Random;
use bytes::Bytes;
use replica::ReplicaError;
use replica::simulation::{Batch, Change, Cut, Entry, HardState, Kept, LogReader, LogStore};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A node's log.
pub struct LogDisk {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    synced: Groups,
    /// Written since, oldest first.
    unsynced: Vec<Batch>,
    current: Groups,
    full: bool,
    /// Whether a write found no space: none is taken any more then.
    failed: bool,
    syncs: u64,
    fatal: Fatal,
}

/// Whether the node's process dies in its next write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fatal {
    #[default]
    No,
    AtNextWrite,
    Died,
}

type Groups = BTreeMap<u64, Group>;

#[derive(Clone, Default)]
struct Group {
    hard_state: HardState,
    cut: Cut,
    entries: VecDeque<Entry>,
    marks: BTreeMap<String, Bytes>,
}

impl Group {
    fn position(&self, index: u64) -> usize {
        let first = self.entries.front().map_or(index, |entry| entry.index);
        usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(self.entries.len())
    }

    fn change(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Append(entries) => {
                let Some(first) = entries.first() else { return Ok(()) };
                let next = self.entries.back().map_or(self.cut.index, |entry| entry.index) + 1;
                if first.index > next || first.index <= self.cut.index {
                    return Err(format!("entry {} was appended where {next} comes next", first.index));
                }
                self.entries.truncate(self.position(first.index));
                self.entries.extend(entries.iter().cloned());
            }
            Change::HardState(state) => self.hard_state = state.clone(),
            Change::Cut(cut) => {
                self.cut = *cut;
                self.entries.drain(..self.position(cut.index + 1));
            }
            Change::Reset(cut) => {
                self.cut = *cut;
                self.entries.clear();
            }
            Change::Mark(name, Some(value)) => {
                self.marks.insert((*name).to_owned(), value.clone());
            }
            Change::Mark(name, None) => {
                self.marks.remove(*name);
            }
            Change::Clear => *self = Self { marks: std::mem::take(&mut self.marks), ..Self::default() },
        }
        Ok(())
    }
}

fn change_all(groups: &mut Groups, batch: &Batch) -> Result<(), String> {
    batch.changes().iter().try_for_each(|(group, change)| groups.entry(*group).or_default().change(change))
}

impl LogDisk {
    /// An empty log. The path is for messages.
    pub fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether writes find no space.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Whether writes find no space.
    pub fn is_full(&self) -> bool {
        self.state().full
    }

    /// Has the process die in its next write: what it sent before is out, what it wrote may be there or not.
    pub fn die_at_next_write(&self) {
        self.state().fatal = Fatal::AtNextWrite;
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Whether the process died in a write.
    pub fn has_died(&self) -> bool {
        self.state().fatal == Fatal::Died
    }

    /// Has the process live, if it hasn't died yet.
    pub fn spare(&self) {
        let mut state = self.state();
        if state.fatal != Fatal::Died {
            state.fatal = Fatal::No;
        }
    }

    /// The process that had it open is gone, and its machine isn't: what was written stays. The next one opens it anew.
    pub fn close(&self) {
        let mut state = self.state();
        state.fatal = Fatal::No;
        state.failed = false;
    }

    /// Loses what a crash loses. Gives how many unsynced batches there were and how many stayed.
    pub fn crash(&self, random: &mut Random) -> (usize, usize) {
        let mut state = self.state();
        let unsynced = std::mem::take(&mut state.unsynced);
        let kept = usize::try_from(random.within(0..unsynced.len() as u64 + 1)).unwrap_or(0);
        for batch in &unsynced[..kept] {
            change_all(&mut state.synced, batch).expect("it was applied before");
        }
        state.current = state.synced.clone();
        state.fatal = Fatal::No;
        state.failed = false;
        (unsynced.len(), kept)
    }

    fn damaged(&self, message: String) -> ReplicaError {
        ReplicaError::Damaged { path: self.path.clone(), message }
    }

    fn refused(&self, kind: io::ErrorKind) -> ReplicaError {
        ReplicaError::Io { path: self.path.clone(), source: kind.into() }
    }
}

impl LogReader for LogDisk {
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError> {
        let state = self.state();
        let Some(group) = state.current.get(&group) else { return Ok(Vec::new()) };
        if group.entries.front().is_none_or(|first| first.index > low) {
            return Err(self.damaged(format!("entry {low} is asked for, but isn't there")));
        }
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in group.entries.range(group.position(low)..).take_while(|entry| entry.index < high) {
            bytes += entry.data.len() as u64;
            if !taken.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }
}

impl LogStore for LogDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn kept(&self, group: u64) -> Result<Kept, ReplicaError> {
        let state = self.state();
        let Some(group) = state.current.get(&group) else { return Ok(Kept::default()) };
        let range = group.entries.front().zip(group.entries.back());
        let range = range.map(|(first, last)| (first.index, last.index));
        Ok(Kept { hard_state: group.hard_state.clone(), cut: group.cut, range })
    }

    fn mark(&self, group: u64, name: &str) -> Result<Option<Bytes>, ReplicaError> {
        Ok(self.state().current.get(&group).and_then(|group| group.marks.get(name).cloned()))
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError> {
        let mut state = self.state();
        let state = &mut *state;
        match state.fatal {
            Fatal::No => {}
            Fatal::AtNextWrite => {
                change_all(&mut state.current, &batch).map_err(|message| self.damaged(message))?;
                state.unsynced.push(batch);
                state.fatal = Fatal::Died;
                return Err(self.refused(io::ErrorKind::BrokenPipe));
            }
            Fatal::Died => return Err(self.refused(io::ErrorKind::BrokenPipe)),
        }
        if state.full || state.failed {
            state.failed = true;
            return Err(self.refused(io::ErrorKind::StorageFull));
        }
        change_all(&mut state.current, &batch).map_err(|message| self.damaged(message))?;
        state.unsynced.push(batch);
        if sync {
            state.syncs += 1;
            for batch in state.unsynced.drain(..) {
                change_all(&mut state.synced, &batch).map_err(|message| self.damaged(message))?;
            }
        }
        Ok(())
    }

    fn purge(&self) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn failure(&self) -> Option<ReplicaError> {
        self.state().failed.then(|| self.refused(io::ErrorKind::StorageFull))
    }

    fn check_room(&self) -> Result<(), ReplicaError> {
        if self.state().full { Err(self.refused(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    fn reopen(&self) -> Result<(), ReplicaError> {
        let mut state = self.state();
        if state.failed {
            state.failed = false;
            state.unsynced.clear();
            state.current = state.synced.clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(log: &LogDisk, indexes: std::ops::RangeInclusive<u64>, term: u64, sync: bool) {
        let mut batch = Batch::default();
        let entries = indexes.map(|index| Entry { index, term, ..Entry::default() }).collect();
        batch.put(1, Change::Append(entries));
        log.write(batch, sync).expect("it has space");
    }

    fn terms(log: &LogDisk) -> Vec<u64> {
        let Some((first, last)) = log.kept(1).expect("it is whole").range else { return Vec::new() };
        let entries = log.entries(1, first, last + 1, None).expect("they are there");
        entries.iter().map(|entry| entry.term).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_part_of_the_rest() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let log = LogDisk::new("log".into());
            append(&log, 1..=3, 1, false);
            append(&log, 4..=4, 1, true);
            append(&log, 3..=4, 2, false);
            append(&log, 5..=5, 2, false);
            assert_eq!(terms(&log), [1, 1, 2, 2, 2]);
            log.crash(&mut Random::new(seed));
            seen.insert(terms(&log));
        }
        let possible = [vec![1, 1, 1, 1], vec![1, 1, 2, 2], vec![1, 1, 2, 2, 2]];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), possible);
    }

    #[test]
    fn cuts_and_full_disks() {
        let log = LogDisk::new("log".into());
        append(&log, 1..=5, 1, true);
        let mut batch = Batch::default();
        batch.put(1, Change::Cut(Cut { index: 2, term: 1 }));
        log.write(batch, false).expect("it has space");
        assert_eq!(log.kept(1).expect("it is whole").range, Some((3, 5)));
        log.set_full(true);
        assert!(log.write(Batch::default(), false).is_err());
    }
}
