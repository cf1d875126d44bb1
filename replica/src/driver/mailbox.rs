//! What waits for a node's consensus loop.

use super::changing::{Asker, Wish};
use super::shared::Shared;
use crate::consensus::Consensus;
use crate::image::Event;
use crate::packet::{Alive, Answer, Ask};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use proto::services::Members;
use proto::{GroupId, NodeId};
use raft::eraftpb::{Message, MessageType};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages from other nodes beyond this many are dropped; Raft sends again.
const MAX_MESSAGES: usize = 16 << 10;
/// And beyond this many bytes.
const MAX_BYTES: usize = 64 << 20;

/// What a confirmation round calls when it ends: with the index that it confirmed, or with the leader that is known
/// instead.
pub(crate) type Waiter = Box<dyn FnOnce(Result<u64, Option<NodeId>>) + Send>;

/// What is called when more is known of how fresh a follower is; or with the leader that is known, if the one that was
/// asked leads no more.
pub(crate) type FreshWaiter = Box<dyn FnOnce(Result<(), Option<NodeId>>) + Send>;

/// One thing for the consensus loop.
pub(crate) enum Mail {
    /// A message from another node.
    Raft { group: GroupId, message: Message, bytes: usize },
    /// Another node lets groups sleep.
    Alive { from: NodeId, alive: Alive },
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

/// A queue with one reader.
#[derive(Default)]
pub(crate) struct Mailbox {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    mail: Vec<Mail>,
    messages: usize,
    bytes: usize,
    closed: bool,
}

impl Mailbox {
    /// Puts something in. Afterwards nothing but a message of a full or closed mailbox is lost.
    pub fn send(&self, mail: Mail) {
        self.send_all([mail]);
    }

    /// Puts several things in.
    pub fn send_all(&self, mails: impl IntoIterator<Item = Mail>) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        for mail in mails {
            let foreign_bytes = match &mail {
                Mail::Raft { bytes, .. } => Some(*bytes),
                Mail::Asked { .. } | Mail::Answered { .. } => Some(0),
                _ => None,
            };
            if let Some(bytes) = foreign_bytes {
                if queue.messages >= MAX_MESSAGES || queue.bytes + bytes > MAX_BYTES {
                    continue;
                }
                queue.messages += 1;
                queue.bytes += bytes;
            }
            queue.mail.push(mail);
        }
        drop(queue);
        self.arrived.notify_one();
    }

    /// Takes everything.
    pub fn take(&self) -> Vec<Mail> {
        Self::empty(&mut self.queue.lock())
    }

    /// Takes everything, waiting so long until there is something.
    pub fn wait_and_take(&self, patience: Duration) -> Vec<Mail> {
        let mut queue = self.queue.lock();
        let until = Instant::now() + patience;
        while queue.mail.is_empty() {
            if self.arrived.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
        Self::empty(&mut queue)
    }

    fn empty(queue: &mut Queue) -> Vec<Mail> {
        queue.messages = 0;
        queue.bytes = 0;
        std::mem::take(&mut queue.mail)
    }

    /// Takes nothing in any more; what is still inside is dropped.
    pub fn close(&self) {
        let mail = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.mail)
        };
        for mail in mail {
            match mail {
                Mail::Confirm { waiter, .. } => waiter(Err(None)),
                Mail::Freshen { waiter, .. } => waiter(Err(None)),
                _ => {}
            }
        }
    }
}
