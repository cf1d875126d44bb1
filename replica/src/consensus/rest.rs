//! Rest: when a group may stop ticking, and what its members must know while it does.
//!
//! A leader says where its group stands once there is nothing to do ([`Consensus::settled`]); a follower that stands at
//! the same place may rest ([`Consensus::agrees`]). The leader's node then vouches for all its resting groups at once,
//! and each such word counts as a heartbeat ([`Consensus::hear`]): votes stay refused as they'd be between heartbeats,
//! and a follower that hears none for an election timeout goes on as if it had ticked all along.

use super::Consensus;
use crate::peer::Peer;
use proto::NodeId;
use raft::{ProgressState, StateRole};
use std::time::Duration;

/// Where a resting group stands: everything up to the index is committed and on every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub term: u64,
    pub index: u64,
}

impl Consensus {
    /// Where the group stands, if this replica leads it and nothing is under way: each member has all
    /// entries, all are committed and applied here, nobody waits for a round, and neither the members nor the
    /// leader are about to change.
    pub fn settled(&self) -> Option<Rest> {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let last = log.last_index();
        let is_quiet = raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && log.committed == last
            && log.persisted == last
            && log.applied == last
            && self.round.is_none()
            && raft.lead_transferee.is_none()
            && self.hand_over.is_none()
            && self.leaving.is_empty()
            && !self.has_offered();
        if !is_quiet {
            return None;
        }
        let is_settled = raft.prs().iter().all(|(id, progress)| {
            *id == raft.id || (progress.matched == last && progress.state == ProgressState::Replicate)
        });
        let members = raft.prs().conf().to_conf_state();
        let is_changing = !members.learners.is_empty()
            || !members.voters_outgoing.is_empty()
            || !members.learners_next.is_empty();
        (is_settled && !is_changing).then_some(Rest { term: raft.term, index: last })
    }

    /// Whether each member was heard of lately. A leader forgets that once in an election timeout, to find out anew.
    pub fn hears_all(&self) -> bool {
        let raft = &self.raw.raft;
        raft.prs().iter().all(|(id, progress)| *id == raft.id || progress.recent_active)
    }

    /// Whether this replica follows a leader on `node` and stands where that leader says.
    pub fn agrees(&self, node: NodeId, rest: Rest) -> bool {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        raft.state == StateRole::Follower
            && raft.term == rest.term
            && Peer::from_raw(raft.leader_id).is_some_and(|leader| leader.node() == node)
            && log.last_index() == rest.index
            && log.committed == rest.index
            && log.persisted == rest.index
    }

    /// The leader's node has vouched for the group.
    pub fn hear(&mut self, now: Duration) {
        self.quiet_until = now + self.settings.tick * self.settings.election_ticks;
        self.raw.raft.election_elapsed = 0;
    }

    /// When a leader was last heard of, or this replica began.
    pub fn heard(&self) -> Duration {
        self.quiet_until.saturating_sub(self.settings.tick * self.settings.election_ticks)
    }

    /// Whether nobody has vouched for the leader for an election timeout.
    pub fn is_unheard(&self, now: Duration) -> bool {
        now >= self.quiet_until
    }

    /// Takes up ticking again: a leader tells its followers that it's there, a follower has waited since it last heard
    /// of a leader.
    pub fn rouse(&mut self, now: Duration) {
        let timeout = self.settings.tick * self.settings.election_ticks;
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader {
            raft.ping();
        } else {
            let silence = (now + timeout).saturating_sub(self.quiet_until).min(timeout);
            let ticks = silence.as_nanos() / self.settings.tick.as_nanos().max(1);
            raft.election_elapsed = usize::try_from(ticks).unwrap_or(self.settings.election_ticks as usize);
        }
        self.after_input();
    }

    /// Whether this replica leads.
    pub fn is_leading(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The nodes of the group's other members.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        let own = self.raw.raft.id;
        self.raw
            .raft
            .prs()
            .iter()
            .filter(move |(id, _)| **id != own)
            .filter_map(|(id, _)| Some(Peer::from_raw(*id)?.node()))
    }
}
