//! What waits for a node's consensus loop.

use super::changing::{Asker, Wish};
use super::queue::{Item, Queue};
use super::shared::Shared;
use crate::consensus::Consensus;
use crate::image::Event;
use crate::packet::{Alive, Answer, Ask};
use bytes::Bytes;
use proto::services::Members;
use proto::{GroupId, NodeId};
use raft::eraftpb::{Message, MessageType};
use std::sync::Arc;

/// What a confirmation round calls when it ends: with the index that it confirmed, or with the leader that is known
/// instead.
pub(crate) type Waiter = Box<dyn FnOnce(Result<u64, Option<NodeId>>) + Send>;

/// What is called when more is known of how fresh a follower is; or with the leader that is known, if the one that was
/// asked leads no more.
pub(crate) type FreshWaiter = Box<dyn FnOnce(Result<(), Option<NodeId>>) + Send>;

/// What waits for the consensus loop.
pub(crate) type Mailbox = Queue<Mail>;

/// One thing for the consensus loop.
pub(crate) enum Mail {
    /// A message from another node.
    Raft { group: GroupId, message: Message, bytes: usize },
    /// Another node lets groups sleep.
    Alive { from: NodeId, alive: Alive, bytes: usize },
    /// Another node doesn't agree that the group sleeps.
    Wake { group: GroupId },
    /// A follower on another node asks how far it must be.
    Asked { group: GroupId, from: NodeId, ask: Ask },
    /// The answer to this node's question.
    Answered { group: GroupId, answer: Answer },
    /// Someone who waits until more is known of how fresh this follower is.
    Freshen { group: GroupId, waiter: FreshWaiter },
    /// An entry to propose in this term.
    Propose { group: GroupId, term: u64, data: Bytes },
    /// Someone who waits for leadership to be confirmed.
    Confirm { group: GroupId, waiter: Waiter },
    /// Something has come to pass with an image.
    Image(Event),
    /// Someone who wants other members.
    ChangeMembers { group: GroupId, wish: Wish, answer: Asker<Members> },
    /// Someone who wants another replica to lead: this one, or any.
    TransferLeader { group: GroupId, to: Option<NodeId>, answer: Asker<()> },
    /// Something happened in the group's engine that its consensus waits for.
    Look { group: GroupId },
    /// A group to serve from now on.
    Add { shared: Arc<Shared>, consensus: Box<Consensus> },
    /// A group to serve no more.
    Remove { group: GroupId },
    /// A replica that is removed: nothing stays but its tombstone.
    Forget { shared: Arc<Shared> },
    /// The end.
    ShutDown,
}

impl Mail {
    /// The group that it wakes.
    pub fn wakes(&self) -> Option<GroupId> {
        match self {
            // The last heartbeats before a sleep are answered after it began.
            Mail::Raft { message, .. } if message.get_msg_type() == MessageType::MsgHeartbeatResponse => None,
            Mail::Raft { group, .. }
            | Mail::Wake { group }
            | Mail::Propose { group, .. }
            | Mail::Confirm { group, .. }
            | Mail::ChangeMembers { group, .. }
            | Mail::TransferLeader { group, .. } => Some(*group),
            Mail::Image(event) => match event {
                Event::Made(group, _) | Event::Silent(group, _) | Event::Complete(group, _) => Some(*group),
                Event::Gone(..) => None,
            },
            // Who is asked wakes when it has to confirm its leadership.
            Mail::Asked { .. } | Mail::Answered { .. } | Mail::Freshen { .. } => None,
            Mail::Alive { .. }
            | Mail::Look { .. }
            | Mail::Add { .. }
            | Mail::Remove { .. }
            | Mail::Forget { .. }
            | Mail::ShutDown => None,
        }
    }
}

impl Item for Mail {
    const MOST_BYTES: usize = 128 << 20;

    /// Raft sends again, and so does who asks or lets groups sleep.
    fn foreign_bytes(&self) -> Option<usize> {
        match self {
            Mail::Raft { bytes, .. } | Mail::Alive { bytes, .. } => Some(*bytes),
            Mail::Wake { .. } | Mail::Asked { .. } | Mail::Answered { .. } => Some(0),
            _ => None,
        }
    }

    fn refuse(self) {
        match self {
            Mail::Confirm { waiter, .. } => waiter(Err(None)),
            Mail::Freshen { waiter, .. } => waiter(Err(None)),
            _ => {}
        }
    }
}
