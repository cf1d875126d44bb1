//! What two nodes' replicas send each other: the body of a [`proto::services::RaftMessage`].
//!
//! A tag byte, then the message in its own encoding. A node drops what it doesn't know, so kinds can be added. It must
//! never know who a packet is for, nor what it does there.

use crate::image::{ImageChunk, ImageRequest};
use crate::peer::Peer;
use bytes::{Buf, Bytes};
use prost::Message as _;
use proto::GroupId;
use protobuf::Message as _;
use raft::eraftpb::Message;

/// A message of raft-rs, in its protobuf encoding.
const RAFT: u8 = 0;
/// Someone who wants bytes of an image.
const IMAGE_REQUEST: u8 = 1;
/// Bytes of an image.
const IMAGE_CHUNK: u8 = 2;

/// The envelope's group of packets about images, whatever group they're of: a group's big packets hold up its small
/// ones, and an image must not hold up a heartbeat.
pub(crate) const IMAGES: GroupId = GroupId(u64::MAX);
/// A node's word for the groups that it lets sleep.
const ALIVE: u8 = 3;
/// Somebody who doesn't agree that a group may sleep.
const WAKE: u8 = 4;
/// A follower's question how far it must be.
const ASK: u8 = 5;
/// The leader's answer.
const ANSWER: u8 = 6;

/// A member's word that another isn't one any more.
const REMOVED: u8 = 7;

/// The envelope's group of what belongs to the node.
pub(crate) const NODE: GroupId = GroupId(0);

/// One message between two nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Packet {
    /// Raft's own, for the group of its envelope.
    Raft(Message),
    /// Asks for bytes of an image.
    ImageRequest(ImageRequest),
    /// Bytes of an image.
    ImageChunk(ImageChunk),
    /// What the sender's node lets sleep.
    Alive(Alive),
    /// Wakes the group of its envelope.
    Wake,
    /// A follower's question how far it must be.
    Ask(Ask),
    /// The leader's answer.
    Answer(Answer),
    /// The member was removed from the group of the envelope, as its sender has applied.
    Removed(Peer),
}

/// The groups that a node lets sleep, of those which have a member on the receiver's node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Alive {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub resting: Vec<Resting>,
}

/// A group that its leader lets sleep, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Resting {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The term in which it is led.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Its last index: committed, and on every member.
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

/// Asks the leader of the envelope's group for an index that has everything which was acknowledged before this was sent.
/// Its name is never used twice, not even after a restart: an old answer to another question would be a wrong one.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Ask {
    /// The member that asks.
    #[prost(uint64, tag = "1")]
    pub peer: u64,
    /// How often its node had been started with something to ask.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// How often it had asked since.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
}

/// What the leader says to an [`Ask`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Answer {
    /// The question.
    #[prost(message, required, tag = "1")]
    pub ask: Ask,
    /// The index; nothing if who was asked doesn't lead.
    #[prost(uint64, optional, tag = "2")]
    pub index: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Removed {
    #[prost(uint64, tag = "1")]
    peer: u64,
}

/// Why a packet makes no sense here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PacketError {
    /// Not even a tag.
    #[error("an empty packet")]
    Empty,
    /// A newer node's.
    #[error("a packet of the unknown kind {0}")]
    Unknown(u8),
    /// Not what its tag says.
    #[error("a packet of kind {0} that can't be decoded")]
    Garbled(u8),
}

impl Packet {
    /// The bytes that travel.
    pub fn encode(&self) -> Bytes {
        match self {
            Packet::Raft(message) => {
                let mut body = Vec::with_capacity(1 + message.compute_size() as usize);
                body.push(RAFT);
                message.write_to_vec(&mut body).expect("memory takes every byte, and no field is required");
                body.into()
            }
            Packet::ImageRequest(request) => tagged(IMAGE_REQUEST, request),
            Packet::ImageChunk(chunk) => tagged(IMAGE_CHUNK, chunk),
            Packet::Alive(alive) => tagged(ALIVE, alive),
            Packet::Wake => Bytes::from_static(&[WAKE]),
            Packet::Ask(ask) => tagged(ASK, ask),
            Packet::Answer(answer) => tagged(ANSWER, answer),
            Packet::Removed(peer) => tagged(REMOVED, &Removed { peer: peer.raw() }),
        }
    }

    /// Reads what travelled. Long fields share the body's memory.
    pub fn decode(mut body: Bytes) -> Result<Self, PacketError> {
        if body.is_empty() {
            return Err(PacketError::Empty);
        }
        match body.get_u8() {
            RAFT => Message::parse_from_carllerche_bytes(&body)
                .map(Packet::Raft)
                .map_err(|_| PacketError::Garbled(RAFT)),
            IMAGE_REQUEST => ImageRequest::decode(body)
                .map(Packet::ImageRequest)
                .map_err(|_| PacketError::Garbled(IMAGE_REQUEST)),
            IMAGE_CHUNK => ImageChunk::decode(body)
                .map(Packet::ImageChunk)
                .map_err(|_| PacketError::Garbled(IMAGE_CHUNK)),
            ALIVE => Alive::decode(body).map(Packet::Alive).map_err(|_| PacketError::Garbled(ALIVE)),
            WAKE => Ok(Packet::Wake),
            ASK => Ask::decode(body).map(Packet::Ask).map_err(|_| PacketError::Garbled(ASK)),
            ANSWER => Answer::decode(body).map(Packet::Answer).map_err(|_| PacketError::Garbled(ANSWER)),
            REMOVED => Removed::decode(body)
                .ok()
                .and_then(|removed| Peer::from_raw(removed.peer))
                .map(Packet::Removed)
                .ok_or(PacketError::Garbled(REMOVED)),
            tag => Err(PacketError::Unknown(tag)),
        }
    }
}

fn tagged(tag: u8, message: &impl prost::Message) -> Bytes {
    let mut body = Vec::with_capacity(1 + message.encoded_len());
    body.push(tag);
    message.encode_raw(&mut body);
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::{Entry, MessageType};

    #[test]
    fn a_raft_message_comes_back() {
        let mut message = Message { from: 1, to: 2, term: 3, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.set_entries(vec![Entry { index: 4, data: vec![5; 1000].into(), ..Entry::default() }].into());
        let packet = Packet::Raft(message);
        let body = packet.encode();
        assert_eq!(body[0], RAFT);
        assert_eq!(Packet::decode(body), Ok(packet));
    }

    #[test]
    fn words_of_sleep_come_back() {
        let resting = [(7, 2, 90), (8, 1, 3)].map(|(group, term, index)| Resting { group, term, index });
        for packet in [Packet::Alive(Alive { resting: resting.to_vec() }), Packet::Wake] {
            assert_eq!(Packet::decode(packet.encode()), Ok(packet));
        }
    }

    #[test]
    fn questions_and_answers_come_back() {
        let ask = Ask { peer: (7 << 16) | 2, start: 3, sequence: u64::MAX };
        for packet in [
            Packet::Ask(ask),
            Packet::Answer(Answer { ask, index: Some(0) }),
            Packet::Answer(Answer { ask, index: None }),
        ] {
            assert_eq!(Packet::decode(packet.encode()), Ok(packet));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Packet::decode(Bytes::new()), Err(PacketError::Empty));
        assert_eq!(Packet::decode(Bytes::from_static(&[200, 1])), Err(PacketError::Unknown(200)));
        for tag in [RAFT, ALIVE] {
            assert_eq!(Packet::decode(vec![tag, 0xff, 0xff].into()), Err(PacketError::Garbled(tag)));
        }
    }
}
