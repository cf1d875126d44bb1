//! What two nodes' replicas send each other: the body of a [`proto::services::RaftMessage`].
//!
//! A tag byte, then the message in its own encoding. A node drops what it doesn't know, so kinds can be added. It must
//! never know who a packet is for, nor what it does there.

use bytes::{Buf, Bytes};
use protobuf::Message as _;
use raft::eraftpb::Message;

/// A message of raft-rs, in its protobuf encoding.
const RAFT: u8 = 0;

/// One message between two nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Packet {
    /// Raft's own, for the group of its envelope.
    Raft(Message),
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
            tag => Err(PacketError::Unknown(tag)),
        }
    }
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
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Packet::decode(Bytes::new()), Err(PacketError::Empty));
        assert_eq!(Packet::decode(Bytes::from_static(&[200, 1])), Err(PacketError::Unknown(200)));
        assert_eq!(Packet::decode(Bytes::from_static(&[RAFT, 0xff, 0xff])), Err(PacketError::Garbled(RAFT)));
    }
}
