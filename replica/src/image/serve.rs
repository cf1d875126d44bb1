//! The sender's side: images that others may ask for, and who is asking.
//!
//! Requests go in, chunks come out, no faster than configured. An image that nobody asked for in a while is forgotten; a
//! receiver that has fallen silent is told of, so that Raft tries it again. It must never know what Raft makes of that.

use super::file;
use super::{Image, ImageChunk, ImageId, ImageRequest, MOST_CHUNK_BYTES};
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More requests than this aren't kept; they are sent again.
const MOST_WAITING: usize = 256;

/// What one group's replica here offers to others.
pub(super) struct Serving {
    directory: PathBuf,
    images: BTreeMap<ImageId, Served>,
    /// To whom which image was offered, and when they were last heard of.
    receivers: BTreeMap<NodeId, (ImageId, Duration)>,
    waiting: VecDeque<(NodeId, ImageRequest)>,
}

struct Served {
    image: Image,
    file: File,
    used: Duration,
}

/// What a silence was too long for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expired {
    /// Images that aren't there any more.
    pub images: Vec<ImageId>,
    /// Receivers that don't ask any more.
    pub receivers: Vec<NodeId>,
}

impl Serving {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, images: BTreeMap::new(), receivers: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// Takes an image up.
    pub fn add(&mut self, image: Image, now: Duration) -> Result<(), ReplicaError> {
        let path = file::made(&self.directory, image.id);
        let file = File::open(&path).map_err(ReplicaError::io(&path))?;
        self.images.insert(image.id, Served { image, file, used: now });
        Ok(())
    }

    /// The lowest index of the images: entries after it will be asked for.
    pub fn hold(&self) -> Option<u64> {
        self.images.values().map(|served| served.image.index).min()
    }

    /// Whether there is an image that has a member, and is no older than asked for.
    pub fn has(&self, member: u64, least: u64) -> bool {
        self.images
            .values()
            .any(|served| served.image.index >= least && super::includes(&served.image.conf_state, member))
    }

    /// An image was offered to a node.
    pub fn offered(&mut self, to: NodeId, id: ImageId, now: Duration) {
        self.receivers.insert(to, (id, now));
        if let Some(served) = self.images.get_mut(&id) {
            served.used = now;
        }
    }

    /// A node asks. Gives an answer if there are no bytes to give.
    pub fn request(&mut self, from: NodeId, request: ImageRequest, now: Duration) -> Option<ImageChunk> {
        let id = request.id();
        let Some(served) = self.images.get_mut(&id) else {
            return Some(ImageChunk::new(&request, Bytes::new(), true));
        };
        served.used = now;
        if let Some((_, heard)) = self.receivers.get_mut(&from).filter(|(offered, _)| *offered == id) {
            *heard = now;
        }
        if request.length > 0 && self.waiting.len() < MOST_WAITING {
            self.waiting.push_back((from, request));
        }
        None
    }

    /// Whether a request waits for its bytes.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The bytes that the first request asks for.
    pub fn answer(&mut self) -> Result<Option<(NodeId, ImageChunk)>, ReplicaError> {
        let Some((to, request)) = self.waiting.pop_front() else { return Ok(None) };
        let id = request.id();
        let Some(served) = self.images.get_mut(&id) else {
            return Ok(Some((to, ImageChunk::new(&request, Bytes::new(), true))));
        };
        let left = served.image.length.saturating_sub(request.offset);
        let length = u64::from(request.length.min(MOST_CHUNK_BYTES)).min(left);
        let mut data = vec![0; usize::try_from(length).expect("a chunk fits into memory")];
        let read =
            served.file.seek(SeekFrom::Start(request.offset)).and_then(|_| served.file.read_exact(&mut data));
        read.map_err(ReplicaError::io(&file::made(&self.directory, id)))?;
        Ok(Some((to, ImageChunk::new(&request, data.into(), false))))
    }

    /// Forgets an image, and removes its file.
    pub fn forget(&mut self, id: ImageId) -> Result<(), ReplicaError> {
        self.images.remove(&id);
        file::remove(&file::made(&self.directory, id))
    }

    /// Forgets who was last heard of before `stalled`, and which images were last asked for before `expired`.
    pub fn expire(&mut self, stalled: Duration, expired: Duration) -> Expired {
        let silent =
            |(node, (_, heard)): (&NodeId, &(ImageId, Duration))| (*heard < stalled).then_some(*node);
        let receivers: Vec<NodeId> = self.receivers.iter().filter_map(silent).collect();
        for node in &receivers {
            self.receivers.remove(node);
        }
        let old = |(id, served): (&ImageId, &Served)| (served.used < expired).then_some(*id);
        let images: Vec<ImageId> = self.images.iter().filter_map(old).collect();
        Expired { images, receivers }
    }

    /// When [`Self::expire`] will next have something to do.
    pub fn expires(&self, stall: Duration, keep: Duration) -> Option<Duration> {
        let receivers = self.receivers.values().map(|(_, heard)| *heard + stall);
        receivers.chain(self.images.values().map(|served| served.used + keep)).min()
    }

    /// The directory of the group.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
