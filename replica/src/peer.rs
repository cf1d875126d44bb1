//! Who a member of a group is to Raft.
//!
//! A node's number and an incarnation go in, the id that Raft's messages, votes and ConfStates carry comes out. A node
//! whose disk was emptied must not come back under the id with which it voted, so a member that is added later has an
//! incarnation of its own. It must never leave this crate: everybody else speaks of nodes.

use crate::error::ReplicaError;
use proto::NodeId;
use std::fmt;

const NODE_BITS: u32 = 16;

/// A member's id in its group: `incarnation << 16 | node`. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Peer(u64);

impl Peer {
    /// The greatest node id that has room in a peer's.
    pub const MAX_NODE: NodeId = NodeId((1 << NODE_BITS) - 1);

    /// A member of the group since it was founded: its id is its node's.
    pub fn founding(node: NodeId) -> Self {
        Self::new(node, 0)
    }

    /// A member that was added by the entry at this log index, which no other member can have been.
    pub fn new(node: NodeId, incarnation: u64) -> Self {
        Self(incarnation << NODE_BITS | node.0)
    }

    /// Checks that a node can be a member of groups.
    pub fn check_node(node: NodeId) -> Result<(), ReplicaError> {
        if node.0 == 0 || node > Self::MAX_NODE {
            let message = format!("node ids are from 1 to {}, not {node}", Self::MAX_NODE);
            return Err(ReplicaError::Invalid(message));
        }
        Ok(())
    }

    /// As Raft's messages carry it; `None` for what is no member's id.
    pub fn from_raw(raw: u64) -> Option<Self> {
        let peer = Self(raw);
        (peer.node().0 != 0).then_some(peer)
    }

    /// As Raft's messages carry it.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Where it lives.
    pub fn node(self) -> NodeId {
        NodeId(self.0 & Self::MAX_NODE.0)
    }

    /// The log index at which it was added; 0 if it was a member from the beginning.
    pub fn incarnation(self) -> u64 {
        self.0 >> NODE_BITS
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.incarnation() {
            0 => write!(f, "{}", self.node()),
            incarnation => write!(f, "{}#{incarnation}", self.node()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_founding_member_is_called_as_its_node() {
        let peer = Peer::founding(NodeId(3));
        assert_eq!((peer.raw(), peer.node(), peer.incarnation()), (3, NodeId(3), 0));
        assert_eq!(peer.to_string(), "3");
    }

    #[test]
    fn later_members_are_others_on_the_same_node() {
        let (first, second) = (Peer::new(NodeId(65_535), 7), Peer::new(NodeId(65_535), 8));
        assert!(first < second && first.node() == second.node());
        assert_eq!((first.incarnation(), first.to_string()), (7, "65535#7".to_owned()));
        assert_eq!(Peer::from_raw(first.raw()), Some(first));
    }

    #[test]
    fn what_names_no_node_is_no_peer() {
        assert_eq!(Peer::from_raw(0), None);
        assert_eq!(Peer::from_raw(5 << 16), None);
        assert!(Peer::check_node(NodeId(0)).is_err());
        assert!(Peer::check_node(NodeId(65_536)).is_err());
        Peer::check_node(NodeId(65_535)).unwrap();
    }
}
