//! What Raft reads back: the durable log behind a cache of its newest entries.
//!
//! The driver writes entries to the log and then tells the store; Raft reads through [`raft::Storage`]. Where the log
//! doesn't reach back far enough, the store offers an image of the database, or notes that one is wanted. It must never
//! write.

use crate::image::{self, Image, ImageId};
use crate::log::{Cut, Found, LogReader};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

/// Newer entries up to this many bytes are kept in memory, so that neither a commit nor a follower that keeps up
/// reads from disk.
const CACHE_BYTES: usize = 1 << 20;

/// What an entry costs beside its data, roughly.
const ENTRY_BYTES: u64 = 32;
/// How far the log's length in bytes is noted apart, at least, and at how many indexes at most.
const MILESTONE_BYTES: u64 = 64 << 10;
const MILESTONES: usize = 2048;

/// One group's log, as Raft sees it.
pub(crate) struct Store {
    group: u64,
    reader: Arc<dyn LogReader>,
    hard_state: HardState,
    conf_state: ConfState,
    cut: Cut,
    last: u64,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// The images that can be offered, each with the term of its last entry.
    images: Vec<(Image, u64)>,
    /// Raft asks for snapshots through a shared reference.
    wanted: Cell<Option<Wanted>>,
    /// How many bytes were appended since the start, and at some indexes how many up to there.
    appended_bytes: u64,
    milestones: VecDeque<(u64, u64)>,
    /// How far apart they are, at least.
    milestone_bytes: u64,
    /// How many of them were forgotten, or a few less.
    cut_bytes: u64,
}

/// An image that Raft would send if there were one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Who needs it, by its id in Raft. The image must know it as a member.
    pub member: u64,
    /// What it must have at least.
    pub least: u64,
}

impl Store {
    /// The log as it was found on disk.
    pub fn new(group: u64, reader: Arc<dyn LogReader>, found: Found, conf_state: ConfState) -> Self {
        Self {
            group,
            reader,
            hard_state: found.hard_state,
            conf_state,
            cut: found.cut,
            last: found.last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            images: Vec::new(),
            wanted: Cell::new(None),
            appended_bytes: 0,
            cut_bytes: 0,
            milestones: VecDeque::new(),
            milestone_bytes: MILESTONE_BYTES,
        }
    }

    /// Takes note of entries that the log has now. They replace any of the same index and after.
    pub fn appended(&mut self, entries: &[Entry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        while self.cache.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.cache.pop_back().expect("it was just seen");
            self.cache_bytes -= dropped.data.len();
        }
        self.cache.extend(entries.iter().cloned());
        self.cache_bytes += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        while self.milestones.back().is_some_and(|(index, _)| *index >= first.index) {
            self.milestones.pop_back();
        }
        self.last = last.index;
        self.appended_bytes += entries.iter().map(|entry| ENTRY_BYTES + entry.data.len() as u64).sum::<u64>();
        if self.milestones.back().is_none_or(|(_, bytes)| bytes + self.milestone_bytes <= self.appended_bytes)
        {
            self.milestones.push_back((last.index, self.appended_bytes));
        }
        if self.milestones.len() > MILESTONES {
            // Twice as far apart, they reach back as far as before.
            let reach = self.milestones.front().map_or(0, |(_, first)| self.appended_bytes - first);
            self.milestone_bytes = (2 * self.milestone_bytes).max(reach / (MILESTONES as u64 / 2));
            let mut odd = false;
            self.milestones.retain(|_| {
                odd = !odd;
                odd
            });
        }
        while self.cache.len() > 1 && self.cache_bytes > CACHE_BYTES {
            let dropped = self.cache.pop_front().expect("it has more than one");
            self.cache_bytes -= dropped.data.len();
        }
    }

    /// The last index that has at least so many bytes of the log behind it. What was there before the start counts as
    /// nothing.
    pub fn index_behind(&self, bytes: u64) -> u64 {
        let behind = |(_, up_to): &(u64, u64)| up_to + bytes <= self.appended_bytes;
        self.milestones.iter().rev().find(|milestone| behind(milestone)).map_or(0, |(index, _)| *index)
    }

    /// How many bytes of the log a cut there forgets. What was there before the start counts as nothing.
    pub fn bytes_up_to(&self, index: u64) -> u64 {
        let count = self.milestones.partition_point(|(last, _)| *last <= index);
        let milestone = count.checked_sub(1).and_then(|at| self.milestones.get(at));
        milestone.map_or(0, |(_, bytes)| bytes.saturating_sub(self.cut_bytes))
    }

    /// How many bytes of the log lie at an index and after, or a few more. What was there before the start counts as
    /// nothing.
    pub fn bytes_from(&self, index: u64) -> u64 {
        let kept = self.appended_bytes - self.cut_bytes;
        kept - self.bytes_up_to(index.saturating_sub(1)).min(kept)
    }

    /// What was forgotten.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// The cut that forgets everything up to `index` but the last entry, if that forgets anything.
    pub fn cut_at(&self, index: u64) -> Option<Cut> {
        let index = index.min(self.last.checked_sub(1)?);
        (index > self.cut.index).then(|| self.term(index).ok().map(|term| Cut { index, term }))?
    }

    /// Takes note of a cut that the log has made.
    pub fn was_cut(&mut self, cut: Cut) {
        self.cut_bytes += self.bytes_up_to(cut.index);
        self.cut = cut;
        // The next one's distance is counted from the last of them.
        while self.milestones.get(1).is_some_and(|(index, _)| *index <= cut.index) {
            self.milestones.pop_front();
        }
        if self.milestones.len() < MILESTONES / 4 && self.milestone_bytes > MILESTONE_BYTES {
            self.milestone_bytes /= 2;
        }
        while self.cache.front().is_some_and(|entry| entry.index <= cut.index) {
            let dropped = self.cache.pop_front().expect("it was just seen");
            self.cache_bytes -= dropped.data.len();
        }
    }

    /// Takes note that an image stands for all entries up to its own, and that the log holds none.
    pub fn installed(&mut self, cut: Cut) {
        self.cut_bytes = self.appended_bytes;
        self.milestones.drain(..self.milestones.len().saturating_sub(1));
        self.milestone_bytes = MILESTONE_BYTES;
        self.cut = cut;
        self.last = cut.index;
        self.cache.clear();
        self.cache_bytes = 0;
    }

    /// Offers an image from now on. Says whether the log has its last entry's term and what comes after.
    pub fn add_image(&mut self, image: Image) -> bool {
        let Ok(term) = self.term(image.index) else { return false };
        self.images.retain(|(other, _)| other.id != image.id);
        self.images.push((image, term));
        true
    }

    /// Doesn't offer an image any more.
    pub fn drop_image(&mut self, id: ImageId) {
        self.images.retain(|(image, _)| image.id != id);
    }

    /// What was wanted since the last call.
    pub fn take_wanted(&self) -> Option<Wanted> {
        self.wanted.take()
    }

    fn cached(&self, index: u64) -> Option<usize> {
        let first = self.cache.front()?.index;
        usize::try_from(index.checked_sub(first)?).ok().filter(|at| *at < self.cache.len())
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low <= self.cut.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if let Some(start) = self.cached(low) {
            let count = usize::try_from(high - low).unwrap_or(usize::MAX);
            let mut entries: Vec<Entry> = self.cache.range(start..).take(count).cloned().collect();
            raft::util::limit_size(&mut entries, max_size);
            return Ok(entries);
        }
        let entries = self
            .reader
            .entries(self.group, low, high, max_size)
            .map_err(|e| Error::Store(StorageError::Other(Box::new(e))))?;
        if entries.is_empty() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.cut.index {
            return Ok(self.cut.term);
        }
        if index < self.cut.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let entries = self.entries(index, index + 1, None, GetEntriesContext::empty(false))?;
        Ok(entries.first().map_or(0, |entry| entry.term))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.cut.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let least = request_index.max(self.cut.index);
        let fits = |image: &Image| image.index >= least && image::includes(&image.conf_state, to);
        match self.images.iter().filter(|(image, _)| fits(image)).max_by_key(|(image, _)| image.index) {
            Some((image, term)) => Ok(image::offer(image, *term)),
            None => {
                self.wanted.set(Some(Wanted { member: to, least }));
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ReplicaError;
    use bytes::Bytes;

    /// Nothing is read from it.
    struct Unread;

    impl LogReader for Unread {
        fn entries(&self, _: u64, _: u64, _: u64, _: Option<u64>) -> Result<Vec<Entry>, ReplicaError> {
            Ok(Vec::new())
        }
    }

    const MIB: u64 = 1 << 20;

    fn append(store: &mut Store, from: u64, to: u64, data: &Bytes) {
        for index in from..to {
            store.appended(&[Entry { index, term: 1, data: data.clone(), ..Entry::default() }]);
        }
    }

    fn assert_near(counted: u64, exact: u64, slack: u64) {
        assert!((exact..=exact + slack).contains(&counted), "{counted} bytes counted of {exact}");
    }

    #[test]
    fn how_much_of_a_long_log_is_kept_is_known_to_a_hundredth() {
        let mut store = Store::new(1, Arc::new(Unread), Found::default(), ConfState::default());
        let entry = Bytes::from(vec![7; MIB as usize - ENTRY_BYTES as usize]);
        let last = 16 << 10;
        append(&mut store, 1, last + 1, &entry);
        assert!(store.milestones.len() <= MILESTONES);
        for from in [1, 2, 100, last / 3, last / 2, last - 200, last - 1] {
            let exact = (last - from + 1) * MIB;
            assert_near(store.bytes_from(from), exact, last * MIB / 512);
        }
        // Most is forgotten: what is left is known as well as ever before.
        store.was_cut(Cut { index: last - 64, term: 1 });
        assert_near(store.bytes_from(1), 64 * MIB, last * MIB / 512);
        for turn in 0..8 {
            let first = last + 1 + turn * 64;
            append(&mut store, first, first + 64, &entry);
            store.was_cut(Cut { index: first, term: 1 });
        }
        let end = last + 1 + 8 * 64;
        assert_near(store.bytes_from(end - 8), 8 * MIB, MIB);
        assert!(store.index_behind(16 * MIB) >= end - 18);
        // What is written over isn't told of, and an image leaves nothing.
        append(&mut store, end - 4, end, &entry);
        assert_near(store.bytes_from(end - 4), 4 * MIB, 5 * MIB);
        assert!(store.milestones.iter().is_sorted());
        store.installed(Cut { index: end + 100, term: 2 });
        assert_eq!((store.bytes_from(1), store.bytes_from(end + 101)), (0, 0));
    }
}
