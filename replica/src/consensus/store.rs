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
        self.last = last.index;
        self.appended_bytes += entries.iter().map(|entry| ENTRY_BYTES + entry.data.len() as u64).sum::<u64>();
        if self.milestones.back().is_none_or(|(_, bytes)| bytes + MILESTONE_BYTES <= self.appended_bytes) {
            self.milestones.push_back((last.index, self.appended_bytes));
        }
        if self.milestones.len() > MILESTONES {
            // Twice as far apart, they reach back as far as before.
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
        while self.cache.front().is_some_and(|entry| entry.index <= cut.index) {
            let dropped = self.cache.pop_front().expect("it was just seen");
            self.cache_bytes -= dropped.data.len();
        }
    }

    /// Takes note that an image stands for all entries up to its own, and that the log holds none.
    pub fn installed(&mut self, cut: Cut) {
        self.cut_bytes = self.appended_bytes;
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
