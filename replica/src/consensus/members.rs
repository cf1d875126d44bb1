//! A group's members: how changes are proposed, when they take effect, and what that does to promises.
//!
//! Committed entries go in, in order, and come out with the configuration that each of Raft's own changes made; a target
//! goes in, and one step towards it is proposed. It must never know where a configuration is written.
//!
//! A configuration takes effect when its entry is delivered, not when the database has it: the next change can't be
//! proposed before that either, and a candidate that has an unapplied one doesn't ask for votes, so replicas are never
//! more than one step apart. A replica's log that has a change has, written together with it, that the change before it
//! is committed.

use super::Consensus;
use super::plan::{Plan, Target, plan};
use crate::error::ReplicaError;
use crate::peer::Peer;
use proto::NodeId;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType};
use raft::{ProgressState, StateRole};
use std::collections::BTreeSet;

/// A member that lacks no more entries than this has what the others have: the rest is on its way.
const CLOSE_ENTRIES: u64 = 256;

/// A committed entry, and what it made of the group's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivered {
    /// The entry.
    pub entry: Entry,
    /// The configuration from here on, if the entry is one of Raft's changes.
    pub conf_state: Option<ConfState>,
}

/// What came of a step towards other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changing {
    /// The members are those of the target.
    Done,
    /// It goes on when something else has come to pass.
    Waiting,
    /// Leadership is to be handed over to this one first.
    HandOver(Peer),
    /// It can't be, and nothing was done.
    Refused(&'static str),
}

impl Consensus {
    /// Committed entries take effect on the group's configuration, in order. Called once for each, after what made them
    /// committed was persisted.
    pub fn take_effect(&mut self, entries: Vec<Entry>) -> Result<Vec<Delivered>, ReplicaError> {
        let mut delivered = Vec::with_capacity(entries.len());
        for entry in entries {
            let conf_state = change(&entry)?.map(|change| self.reconfigure(&change));
            delivered.push(Delivered { entry, conf_state });
        }
        Ok(delivered)
    }

    fn reconfigure(&mut self, change: &ConfChangeV2) -> ConfState {
        let before = self.members();
        // One that makes no sense changes nothing, here as on every replica.
        let changed = self.raw.apply_conf_change(change);
        let conf = self.raw.raft.prs().conf();
        let is_voter = self.is_voter(self.settings.peer);
        let conf_state = changed.unwrap_or_else(|_| conf.to_conf_state());
        let index = self.raw.raft.raft_log.committed;
        let after = self.members();
        self.leaving.extend(before.difference(&after).map(|peer| (*peer, index)));
        // A round that was sent before may have been answered by who has no say any more.
        self.configuration += 1;
        if !is_voter && self.raw.raft.state == StateRole::Leader {
            // raft-rs would go on to lead, and break where it looks for its own progress.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        self.after_input();
        conf_state
    }

    fn members(&self) -> BTreeSet<Peer> {
        self.raw.raft.prs().iter().filter_map(|(id, _)| Peer::from_raw(*id)).collect()
    }

    /// Members that were removed and can be told so. A leader tells them when a majority knows of the change: until then
    /// the others may need their votes.
    pub fn take_gone(&mut self) -> Vec<Peer> {
        if self.leaving.is_empty() {
            return Vec::new();
        }
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            self.leaving.clear();
            return Vec::new();
        }
        let knows = |id: &u64, index: u64| {
            *id == raft.id || raft.prs().get(*id).is_some_and(|progress| progress.committed_index >= index)
        };
        let voters = raft.prs().conf().to_conf_state().voters;
        let is_known = |index: u64| voters.iter().filter(|id| knows(id, index)).count() > voters.len() / 2;
        let gone = self.leaving.extract_if(.., |(_, index)| is_known(*index));
        gone.map(|(peer, _)| peer).collect()
    }

    /// Takes a step towards other members, if it's time for one. To be called again whenever something happened.
    pub fn change_members(&mut self, target: &Target) -> Changing {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.has_pending_conf() || raft.lead_transferee.is_some() {
            return Changing::Waiting;
        }
        let state = raft.prs().conf().to_conf_state();
        let next = raft.raft_log.last_index() + 1;
        match plan(&state, self.settings.peer, next, |peer| self.keeps_up(peer), target) {
            Plan::Done => Changing::Done,
            Plan::CatchUp(_) => Changing::Waiting,
            Plan::Refuse(why) => Changing::Refused(why),
            Plan::HandOver(peers) => self.best_of(&peers).map_or(Changing::Waiting, Changing::HandOver),
            Plan::Leave => {
                self.propose_change(&ConfChangeV2::default());
                Changing::Waiting
            }
            Plan::Change(changes) => {
                let mut change = ConfChangeV2::default();
                for (kind, peer) in changes {
                    let mut single = ConfChangeSingle { node_id: peer.raw(), ..ConfChangeSingle::default() };
                    single.set_change_type(kind);
                    change.mut_changes().push(single);
                }
                self.propose_change(&change);
                Changing::Waiting
            }
        }
    }

    fn propose_change(&mut self, change: &ConfChangeV2) {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        // Leaving is an empty change, which is encoded as nothing.
        entry.data =
            change.write_to_bytes().expect("memory takes every byte, and no field is required").into();
        // If it's refused, the next step finds it missing.
        self.append(entry);
    }

    /// A joint configuration is left by whoever leads once it is applied. raft-rs sees to that only where the leader
    /// was there before.
    pub(super) fn leave_joint(&mut self) {
        let raft = &self.raw.raft;
        let joint = !raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
        if joint
            && raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && raft.lead_transferee.is_none()
        {
            self.propose_change(&ConfChangeV2::default());
        }
    }

    /// The group's configuration.
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// Whether a member is a voter.
    pub fn is_voter(&self, peer: Peer) -> bool {
        self.raw.raft.prs().conf().voters().contains(peer.raw())
    }

    /// Whether this replica alone makes its group's majority, now and as long as no change is proposed.
    pub fn leads_alone(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader && self.is_sole_voter() && !raft.has_pending_conf()
    }

    /// Whether this replica has nothing yet, not even a configuration: it waits for an image.
    pub fn is_blank(&self) -> bool {
        let raft = &self.raw.raft;
        raft.raft_log.last_index() == 0 && raft.prs().conf().voters().ids().is_empty()
    }

    /// The member on a node.
    pub fn member_on(&self, node: NodeId) -> Option<Peer> {
        let state = self.conf_state();
        let ids = state.voters.iter().chain(&state.voters_outgoing).chain(&state.learners);
        ids.copied().filter_map(Peer::from_raw).find(|peer| peer.node() == node)
    }

    /// The other voters.
    pub fn other_voters(&self) -> Vec<Peer> {
        let state = self.conf_state();
        let others = state.voters.iter().copied().filter_map(Peer::from_raw);
        others.filter(|peer| *peer != self.settings.peer).collect()
    }

    /// Of a leader: what each other member is known to have in its log.
    pub fn matched(&self) -> Vec<(NodeId, u64)> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let mut matched: Vec<(NodeId, u64)> = others
            .filter_map(|(id, progress)| Some((Peer::from_raw(*id)?.node(), progress.matched)))
            .collect();
        matched.sort_unstable();
        matched
    }

    /// Whether a member has what the others have, but for what is on its way.
    pub(super) fn keeps_up(&self, peer: Peer) -> bool {
        let raft = &self.raw.raft;
        raft.prs().get(peer.raw()).is_some_and(|progress| {
            // One that took an image of everything is still being probed until there is more to send.
            progress.state != ProgressState::Snapshot
                && progress.recent_active
                && progress.matched > 0
                && progress.matched >= peer.incarnation()
                && progress.matched + CLOSE_ENTRIES >= raft.raft_log.last_index()
        })
    }

    /// Who of these has most, among those that keep up.
    pub fn best_of(&self, peers: &[Peer]) -> Option<Peer> {
        let matched =
            |peer: &Peer| self.raw.raft.prs().get(peer.raw()).map_or(0, |progress| progress.matched);
        peers.iter().copied().filter(|peer| self.keeps_up(*peer)).max_by_key(matched)
    }

    /// Up to where no member may still fetch the log from this leader; 0 for others. Members that lack more than
    /// [`super::Settings::log_keep_bytes`], and those that lack what is gone already, get an image.
    pub fn floor(&self) -> u64 {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return 0;
        }
        let cut = raft.store().cut().index;
        let fetching = raft.prs().iter().filter_map(|(_, progress)| match progress.matched {
            // It hasn't said yet what it has: anything that the log still has may be what it lacks next.
            0 if progress.state == ProgressState::Probe && progress.next_idx > cut => Some(cut),
            matched => (matched >= cut).then_some(matched),
        });
        let slowest = fetching.min().unwrap_or(0);
        slowest.max(raft.store().index_behind(self.settings.log_keep_bytes))
    }

    /// A blank replica answers nothing that it could be held to. Gives the message as it may be stepped.
    pub(super) fn censor(&mut self, mut message: Message) -> Option<Message> {
        use MessageType::*;
        match message.get_msg_type() {
            // Who votes promises to have what it had; a blank replica has forgotten.
            MsgRequestVote | MsgRequestPreVote | MsgTimeoutNow => None,
            // The log begins with the group's founding, which only an image has.
            MsgAppend if message.index == 0 => None,
            MsgHeartbeat if message.commit > 0 => {
                // The leader believes that this member has entries. It lost them with its disk.
                let mut lost = Message { to: message.from, index: message.commit, ..Message::default() };
                lost.set_msg_type(MsgAppendResponse);
                lost.reject = true;
                message.commit = 0;
                self.files_gone = true;
                let stale = message.term < self.raw.raft.term;
                lost.from = self.settings.peer.raw();
                lost.term = message.term;
                if !stale {
                    self.lost = Some(lost);
                }
                Some(message)
            }
            // A voter that has nothing was a voter before it lost its disk: only one that is added anew may come back.
            MsgSnapshot => {
                let state = message.get_snapshot().get_metadata().get_conf_state();
                self.files_gone = !state.learners.contains(&self.settings.peer.raw());
                (!self.files_gone).then_some(message)
            }
            _ => Some(message),
        }
    }

    /// A member that asks for votes was removed: its incarnation is of an entry that is applied here, and it isn't in the
    /// configuration any more.
    pub(super) fn note_removed(&mut self, message: &Message) {
        use MessageType::{MsgRequestPreVote, MsgRequestVote};
        let raft = &self.raw.raft;
        if !matches!(message.get_msg_type(), MsgRequestPreVote | MsgRequestVote)
            || self.is_blank()
            || raft.prs().get(message.from).is_some()
        {
            return;
        }
        let known = |peer: &Peer| peer.incarnation() <= raft.raft_log.applied;
        self.removed = Peer::from_raw(message.from).filter(known);
    }

    /// Who asked for votes just now although it was removed.
    pub fn take_removed(&mut self) -> Option<Peer> {
        self.removed.take()
    }

    /// A learner that has less than it had lost its disk. It doesn't vote, so it may begin again.
    pub(super) fn note_loss(&mut self, message: &Message) {
        if message.get_msg_type() != MessageType::MsgAppendResponse || !message.reject {
            return;
        }
        let raft = &mut self.raw.raft;
        let is_learner = raft.prs().conf().learners().contains(&message.from);
        if raft.state != StateRole::Leader || !is_learner || message.term != raft.term {
            return;
        }
        if let Some(progress) = raft.mut_prs().get_mut(message.from)
            && progress.state == ProgressState::Replicate
            && message.reject_hint < progress.matched
        {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = message.index + 1;
        }
    }
}

/// The change of configuration that an entry is, if it is one.
fn change(entry: &Entry) -> Result<Option<ConfChangeV2>, raft::Error> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(None),
        EntryType::EntryConfChangeV2 => {
            Ok(Some(ConfChangeV2::parse_from_carllerche_bytes(&entry.data).map_err(raft::Error::from)?))
        }
        EntryType::EntryConfChange => {
            Err(raft::Error::ConfChangeError("a change of a kind that is never proposed".into()))
        }
    }
}
