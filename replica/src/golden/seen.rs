//! What a replica is, and what is told when that changes.

use super::words;
use crate::Replica;
use crate::simulation::{holds_lease, is_asleep};
use proto::services::Members;
use proto::{LogIndex, NodeId};
use raft::StateRole;

/// What is told of a replica when it changes.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Seen {
    is_there: bool,
    pub role: StateRole,
    term: u64,
    leader: Option<NodeId>,
    /// What it knows to be committed.
    pub committed: u64,
    pub applied: LogIndex,
    pub members: Members,
    stopped: Option<String>,
    lease: bool,
    asleep: bool,
}

impl Seen {
    /// What it is now.
    pub fn of(replica: &Replica) -> Self {
        let shared = replica.shared();
        let status = replica.status();
        let inbox = shared.inbox();
        let (standing, committed) = (inbox.standing, inbox.committed);
        drop(inbox);
        Self {
            is_there: true,
            role: standing.role,
            term: standing.term,
            leader: standing.leader,
            committed,
            applied: status.applied,
            members: status.members,
            stopped: status.stopped,
            lease: holds_lease(replica),
            asleep: is_asleep(replica),
        }
    }

    /// Its part in the group.
    pub fn office(&self) -> String {
        let role = format!("{:?}", self.role).to_lowercase();
        let of = match self.leader {
            Some(leader) if self.role == StateRole::Follower => format!(" of {leader}"),
            _ => String::new(),
        };
        format!("{role}{of} in term {}", self.term)
    }

    /// Tells how this differs from before.
    pub fn tell(&self, before: &Self, tell: impl Fn(String)) {
        if !self.is_there {
            if before.is_there {
                tell("has no replica any more".to_owned());
            }
            return;
        }
        if self.office() != before.office() {
            tell(format!("is {}", self.office()));
        }
        if self.members != before.members {
            tell(format!("knows members {}", members(&self.members)));
        }
        if self.committed != before.committed {
            tell(format!("has committed {}", self.committed));
        }
        if self.applied != before.applied {
            tell(format!("has applied {}", self.applied));
        }
        if self.lease != before.lease {
            tell(if self.lease { "holds the lease" } else { "holds no lease" }.to_owned());
        }
        if self.asleep != before.asleep {
            tell(if self.asleep { "sleeps" } else { "wakes" }.to_owned());
        }
        if self.stopped != before.stopped {
            tell(match &self.stopped {
                Some(why) => format!("stops: {why}"),
                None => "goes on".to_owned(),
            });
        }
    }
}

/// Who is in a group, as everybody may know it.
pub(super) fn members(members: &Members) -> String {
    let mut words = format!("({})", words::list(&members.voters));
    if !members.learners.is_empty() {
        words.push_str(&format!(" learners ({})", words::list(&members.learners)));
    }
    if members.joint {
        words.push_str(" joint");
    }
    words
}
