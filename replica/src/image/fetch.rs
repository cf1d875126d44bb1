//! The receiver's side: an image that arrives piece by piece.
//!
//! Chunks go in, requests come out, a window of them at a time. The file holds what has arrived from the image's begin
//! without a gap, so its length says where to go on; what arrives before its turn waits in memory, no more than the
//! window. At the end the file is synced, read again and hashed. It must never know what Raft makes of the image.

use super::file::{self, Hashing};
use super::{Image, ImageChunk, ImageRequest};
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::{GroupId, NodeId};
use raft::eraftpb::Snapshot;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// After so many bytes the file is synced, so that the last sync isn't one of everything.
const SYNC_BYTES: u64 = 16 << 20;

/// What was offered, and by whom.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    pub node: NodeId,
    pub image: Image,
    /// What Raft is given once the image is here.
    pub snapshot: Snapshot,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub chunk_bytes: u32,
    /// How many requests may be unanswered at once.
    pub window: usize,
    /// A request that isn't answered within this time is sent again.
    pub patience: Duration,
}

/// An image that is being received.
pub(super) struct Fetching {
    group: GroupId,
    source: Source,
    path: PathBuf,
    file: File,
    stage: Stage,
    /// How much is in the file.
    done: u64,
    synced: u64,
    /// What came before its turn.
    early: BTreeMap<u64, Bytes>,
    /// What was asked for, and when.
    asked: BTreeMap<u64, Duration>,
    /// What hasn't been asked for yet.
    next: u64,
    /// When something last arrived that was of use.
    progressed: Duration,
    spoke: Duration,
}

enum Stage {
    Receiving,
    Hashing(Hashing),
}

/// What came of a slice of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is more to do at once.
    Working,
    /// It waits for chunks.
    Waiting,
    /// The image is here, durable and right.
    Complete,
    /// All of it arrived, and it isn't the image. The file is gone.
    Wrong,
}

impl Fetching {
    /// Begins, or goes on with what an earlier try left.
    pub fn begin(
        group: GroupId,
        directory: &Path,
        source: Source,
        now: Duration,
    ) -> Result<Self, ReplicaError> {
        std::fs::create_dir_all(directory).map_err(ReplicaError::io(directory))?;
        file::clean_incoming(directory, Some(source.image.id))?;
        let path = file::incoming(directory, source.image.id);
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            let mut length = file.metadata()?.len();
            if length > source.image.length {
                file.set_len(0)?;
                length = 0;
            }
            file.seek(SeekFrom::Start(length))?;
            Ok((file, length))
        };
        let (file, done) = open().map_err(ReplicaError::io(&path))?;
        Ok(Self {
            group,
            source,
            file,
            stage: Stage::Receiving,
            done,
            // Whether an earlier process synced what it wrote isn't known.
            synced: 0,
            early: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: done,
            progressed: now,
            spoke: now,
            path,
        })
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes are here, and of how many.
    pub fn progress(&self) -> (u64, u64) {
        (self.done, self.source.image.length)
    }

    /// When something last arrived.
    pub fn progressed(&self) -> Duration {
        self.progressed
    }

    /// The same image is offered again, maybe by another.
    pub fn offered_again(&mut self, source: Source) {
        self.source = source;
    }

    /// Takes a chunk. One that isn't of use is dropped, and will be asked for again if it is missed.
    pub fn chunk(
        &mut self,
        from: NodeId,
        chunk: ImageChunk,
        pace: Pace,
        now: Duration,
    ) -> Result<(), ReplicaError> {
        let ImageChunk { offset, ref data, .. } = chunk;
        let wanted = self.length_at(offset, pace);
        let expected = from == self.source.node
            && chunk.id() == self.source.image.id
            && self.asked.contains_key(&offset)
            && data.len() as u64 == wanted;
        if !expected {
            return Ok(());
        }
        if !chunk.is_sound() {
            tracing::warn!(
                group = self.group.0,
                "a chunk of an image from node {from} is damaged: asking again"
            );
            self.asked.insert(offset, now.saturating_sub(pace.patience));
            return Ok(());
        }
        self.asked.remove(&offset);
        self.progressed = now;
        self.early.insert(offset, chunk.data);
        while let Some(data) = self.early.remove(&self.done) {
            if let Err(error) = self.file.write_all(&data) {
                // Part of it may be in the file: who opens it again begins at its end.
                return Err(ReplicaError::io(&self.path)(error));
            }
            self.done += data.len() as u64;
        }
        Ok(())
    }

    fn length_at(&self, offset: u64, pace: Pace) -> u64 {
        u64::from(pace.chunk_bytes).min(self.source.image.length.saturating_sub(offset))
    }

    /// Does a slice of what there is to do, and says what to send.
    pub fn step(
        &mut self,
        pace: Pace,
        now: Duration,
        requests: &mut Vec<ImageRequest>,
    ) -> Result<Outcome, ReplicaError> {
        if now >= self.spoke + pace.patience && self.asked.is_empty() {
            self.speak(self.done, 0, now, requests);
        }
        match &mut self.stage {
            Stage::Hashing(hashing) => {
                let Some(found) = hashing.step()? else { return Ok(Outcome::Working) };
                if found == (self.source.image.id, self.source.image.length) {
                    return Ok(Outcome::Complete);
                }
                file::remove(&self.path)?;
                Ok(Outcome::Wrong)
            }
            Stage::Receiving if self.done == self.source.image.length => {
                self.sync()?;
                self.stage = Stage::Hashing(Hashing::begin(&self.path)?);
                Ok(Outcome::Working)
            }
            Stage::Receiving => {
                if self.done - self.synced >= SYNC_BYTES {
                    self.sync()?;
                }
                self.ask(pace, now, requests);
                Ok(Outcome::Waiting)
            }
        }
    }

    fn sync(&mut self) -> Result<(), ReplicaError> {
        if let Err(error) = self.file.sync_all() {
            // What the kernel shows of it need not be on the disk, and it won't say so again: not to be gone on with.
            let error = ReplicaError::io(&self.path)(error);
            file::remove(&self.path)?;
            return Err(error);
        }
        self.synced = self.done;
        Ok(())
    }

    fn ask(&mut self, pace: Pace, now: Duration, requests: &mut Vec<ImageRequest>) {
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| now >= **asked + pace.patience)
            .map(|(offset, _)| *offset)
            .collect();
        for offset in late {
            self.ask_at(offset, pace, now, requests);
        }
        while self.asked.len() + self.early.len() < pace.window && self.next < self.source.image.length {
            let offset = self.next;
            self.next += self.length_at(offset, pace);
            self.ask_at(offset, pace, now, requests);
        }
    }

    fn ask_at(&mut self, offset: u64, pace: Pace, now: Duration, requests: &mut Vec<ImageRequest>) {
        self.asked.insert(offset, now);
        let length = u32::try_from(self.length_at(offset, pace)).expect("no more than a chunk");
        self.speak(offset, length, now, requests);
    }

    fn speak(&mut self, offset: u64, length: u32, now: Duration, requests: &mut Vec<ImageRequest>) {
        self.spoke = now;
        let (high, low) = self.source.image.id.halves();
        requests.push(ImageRequest { group: self.group.0, high, low, offset, length });
    }

    /// When [`Self::step`] has something to do if nothing arrives.
    pub fn due(&self, pace: Pace) -> Duration {
        let asked = self.asked.values().map(|asked| *asked + pace.patience).min();
        asked.unwrap_or(self.spoke + pace.patience)
    }
}
