//! Images: how a replica gets a whole database that its group's log can't give it any more.
//!
//! The life of an image:
//!
//! 1. Raft wants to send a follower entries that the leader's log doesn't have any more. Its store has no image that
//!    would do instead, so it says "later" and notes what is wanted (`consensus::Store`).
//! 2. The leader's image loop copies the database, in slices, inside one read transaction ([`Making`]). From before its
//!    begin the log is held at the image's index, so that what comes after the image is there when it has arrived.
//! 3. Raft's next try finds the image, and sends a MsgSnapshot whose data is the image's id and length ([`offer`]).
//! 4. The follower keeps that message back. Its image loop asks for the image piece by piece ([`Fetching`]), whoever
//!    offered it answers ([`Serving`]). What has arrived is in a file: a transfer that was cut off goes on where it
//!    was, after a restart of the receiver too. When all of it is there, synced and hashed, the message goes to Raft.
//! 5. Raft takes it up, unless the follower has caught up otherwise. The image is renamed to what says that it replaces
//!    the database ([`install`]): from there on a crash leaves the new state. Then the log is emptied, then the
//!    engine swaps the databases.
//!
//! Images and their transfers are a state machine, [`Images`]: packets, wants and the time go in, a slice of work is
//! done at a time, packets and events come out. It must never own a thread, a clock or a socket, nor know what a row is.

mod backup;
mod copy;
mod fetch;
mod file;
mod images;
pub(crate) mod install;
mod make;
mod serve;
#[cfg(test)]
mod tests;

pub use copy::Copying;
pub(crate) use fetch::Source;
pub(crate) use images::{Event, Images, Received, Settings, Turn};

use bytes::Bytes;
use fetch::Fetching;
use make::Making;
use prost::Message;
use raft::eraftpb::{ConfState, Snapshot};
use serve::Serving;
use std::fmt;

/// How many chunks may be on their way to a receiver. Four of them are soon through any network that can carry images.
pub(crate) const WINDOW: usize = 4;
/// No chunk is longer, whatever is asked for.
pub(crate) const MOST_CHUNK_BYTES: u32 = 1 << 20;

/// An image's name: the hash of its bytes. Who has bytes of that hash has the image, wherever they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ImageId(pub u128);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl ImageId {
    fn halves(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }

    fn from_halves(high: u64, low: u64) -> Self {
        Self(u128::from(high) << 64 | u128::from(low))
    }
}

/// A database as it was at an index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub id: ImageId,
    /// Its bytes.
    pub length: u64,
    /// The last entry whose effects it has.
    pub index: u64,
    /// Who was in the group at that index.
    pub conf_state: ConfState,
}

/// What a MsgSnapshot carries as its data.
#[derive(Clone, PartialEq, Message)]
struct Offered {
    #[prost(fixed64, tag = "1")]
    high: u64,
    #[prost(fixed64, tag = "2")]
    low: u64,
    #[prost(uint64, tag = "3")]
    length: u64,
}

/// Asks for bytes of an image, or says that the receiver is still at it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageRequest {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(fixed64, tag = "2")]
    pub high: u64,
    #[prost(fixed64, tag = "3")]
    pub low: u64,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    /// How many bytes; 0 for none.
    #[prost(uint32, tag = "5")]
    pub length: u32,
}

/// Bytes of an image.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageChunk {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(fixed64, tag = "2")]
    pub high: u64,
    #[prost(fixed64, tag = "3")]
    pub low: u64,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub data: Bytes,
    /// Of all the above.
    #[prost(fixed32, tag = "6")]
    pub crc: u32,
    /// There are no bytes, for the sender doesn't have the image any more.
    #[prost(bool, tag = "7")]
    pub gone: bool,
}

impl ImageRequest {
    fn id(&self) -> ImageId {
        ImageId::from_halves(self.high, self.low)
    }
}

impl ImageChunk {
    fn new(request: &ImageRequest, data: Bytes, gone: bool) -> Self {
        let ImageRequest { group, high, low, offset, .. } = *request;
        let mut chunk = Self { group, high, low, offset, data, crc: 0, gone };
        chunk.crc = chunk.sum();
        chunk
    }

    fn id(&self) -> ImageId {
        ImageId::from_halves(self.high, self.low)
    }

    fn sum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for part in [self.group, self.high, self.low, self.offset, u64::from(self.gone)] {
            hasher.update(&part.to_le_bytes());
        }
        hasher.update(&self.data);
        hasher.finalize()
    }

    /// Whether it is as it was sent.
    fn is_sound(&self) -> bool {
        self.crc == self.sum()
    }
}

/// The snapshot that offers an image, whose last entry is of this term.
pub(crate) fn offer(image: &Image, term: u64) -> Snapshot {
    let (high, low) = image.id.halves();
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = image.index;
    snapshot.mut_metadata().term = term;
    snapshot.mut_metadata().set_conf_state(image.conf_state.clone());
    snapshot.data = Offered { high, low, length: image.length }.encode_to_vec().into();
    snapshot
}

/// The image that a snapshot offers; nothing if it makes no sense.
pub(crate) fn offered(snapshot: &Snapshot) -> Option<Image> {
    let Offered { high, low, length } = Offered::decode(snapshot.data.clone()).ok()?;
    let metadata = snapshot.get_metadata();
    (metadata.index > 0 && length > 0).then(|| Image {
        id: ImageId::from_halves(high, low),
        length,
        index: metadata.index,
        conf_state: metadata.get_conf_state().clone(),
    })
}

/// Whether a member is in a group. raft-rs ignores a snapshot whose ConfState lacks its receiver.
pub(crate) fn includes(conf_state: &ConfState, member: u64) -> bool {
    [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing]
        .iter()
        .any(|members| members.contains(&member))
}
