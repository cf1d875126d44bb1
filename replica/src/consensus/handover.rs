//! Handing leadership over to a chosen voter, without a moment in which nobody could lead.
//!
//! 1. The target catches up while the leader goes on as always.
//! 2. The leader closes: it takes no new entries ([`super::Standing::closed`]), so that the target can have all of them.
//! 3. When nothing is being executed any more and the target has everything, it is told to ask for votes at once.
//! 4. It is elected, or a few ticks later the leader opens again. From 3. on no lease holds in this term.
//!
//! Who waits for it may go away while the target isn't there yet: then it is given up, lest it happen long afterwards.
//!
//! It must never know who waits for it.

use super::Consensus;
use crate::peer::Peer;
use raft::StateRole;

/// Leadership that is being handed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOver {
    to: Peer,
    /// How many ticks are left; counted since the leader closed.
    left: Option<u32>,
}

impl Consensus {
    /// Begins to hand leadership over to another voter; whether that can be.
    pub fn hand_over(&mut self, to: Peer) -> bool {
        let conf = self.raw.raft.prs().conf();
        let can = self.raw.raft.state == StateRole::Leader
            && to != self.settings.peer
            && conf.to_conf_state().voters.contains(&to.raw());
        if can && self.hand_over.is_none_or(|under_way| under_way.to != to) {
            self.raw.raft.abort_leader_transfer();
            self.hand_over = Some(HandOver { to, left: None });
        }
        can
    }

    /// To whom leadership is being handed over.
    pub fn handing_over(&self) -> Option<Peer> {
        self.hand_over.map(|hand_over| hand_over.to)
    }

    /// Goes on with handing over, if that is under way. `idle` says that nothing is being executed, so that what has
    /// been executed is in the log. To be called whenever something happened.
    pub fn continue_hand_over(&mut self, idle: bool) {
        let Some(HandOver { to, left }) = self.hand_over else { return };
        if left.is_none() {
            if self.keeps_up(to) {
                let left = Some(self.settings.election_ticks);
                self.hand_over = Some(HandOver { to, left });
            }
            return;
        }
        let raft = &self.raw.raft;
        let has_all =
            raft.prs().get(to.raw()).is_some_and(|progress| progress.matched == raft.raft_log.last_index());
        if idle && has_all && raft.lead_transferee.is_none() {
            self.raw.transfer_leader(to.raw());
            self.after_input();
        }
    }

    /// Nobody waits for it any more. One for which the leader has closed is let come to its end, which is near.
    pub fn give_up_hand_over(&mut self) {
        self.hand_over.take_if(|hand_over| hand_over.left.is_none());
    }

    pub(super) fn tick_hand_over(&mut self) {
        let Some(HandOver { to, left: Some(left) }) = self.hand_over else { return };
        if left == 0 {
            self.raw.raft.abort_leader_transfer();
            self.hand_over = None;
            return;
        }
        self.hand_over = Some(HandOver { to, left: Some(left - 1) });
        if self.raw.raft.lead_transferee == Some(to.raw()) {
            // The first word may have been lost.
            self.raw.raft.send_timeout_now(to.raw());
        }
    }

    /// Whether this leader takes no entries, for another is about to lead.
    pub(super) fn is_closed(&self) -> bool {
        self.hand_over.is_some_and(|hand_over| hand_over.left.is_some())
    }

    /// This replica doesn't lead any more: who was offered leadership is about to, if nobody else asks for votes.
    pub(super) fn end_hand_over(&mut self) {
        if let Some(hand_over) = self.hand_over.take()
            && self.offered.is_some_and(|term| term + 1 == self.raw.raft.term)
        {
            self.successor = Some((hand_over.to, self.raw.raft.term));
        }
    }
}
