//! Consensus: one group's Raft as a synchronous state machine.
//!
//! Messages, ticks, proposals and read rounds go in; entries to persist, messages to send, committed entries and
//! finished rounds come out ([`Consensus::ready`], then [`Consensus::persisted`]). Time comes in as a duration since
//! the node's start, randomness as a seed. It must never own a socket, a thread, a clock or a random source, nor know
//! what an entry does.
//!
//! What raft-rs leaves to its user is settled here: proposals are never forwarded; votes wait for one election timeout
//! after a start and after any word from a leader, by the clock and not by ticks (a lease depends on it); election
//! timeouts are drawn from seed, replica and term.

mod handover;
mod logger;
mod members;
mod plan;
mod rest;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use members::{Changing, Delivered};
pub(crate) use plan::Target;
pub(crate) use rest::Rest;
pub(crate) use store::{Store, Wanted};

use crate::error::ReplicaError;
use crate::image;
use crate::log::Cut;
use crate::peer::Peer;
use handover::HandOver;
use proto::NodeId;
use raft::eraftpb::{Entry, HardState, Message, MessageType, Snapshot};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use std::time::Duration;

/// The least entries that one message carries, in bytes.
const MESSAGE_BYTES: u64 = 1 << 20;
const INFLIGHT_MESSAGES: usize = 64;
/// How much one ready hands over for applying.
const COMMITTED_BYTES: u64 = 4 << 20;
/// A lease is this share (in fifths) of the least election timeout.
const LEASE_FIFTHS: u32 = 4;

/// A group's founding stands for its first entry, so that nobody can have its log from the beginning without having
/// what was there before the first write.
pub(crate) const FOUNDING: Cut = Cut { index: 1, term: 1 };

/// What one group's consensus is told at its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// This member.
    pub peer: Peer,
    pub group: u64,
    pub tick: Duration,
    pub election_ticks: u32,
    pub heartbeat_ticks: u32,
    pub seed: u64,
    /// So many bytes of the log are kept for members that lack them.
    pub log_keep_bytes: u64,
    /// The log is cut when that frees so many entries, or as many bytes as are kept.
    pub log_cut_entries: u64,
}

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub role: StateRole,
    pub term: u64,
    /// The leader that it knows.
    pub leader: Option<NodeId>,
    /// For a leader, its term's first entry: once it is applied, the leader has all that earlier terms committed.
    pub first: Option<u64>,
    /// Whether it catches up and doesn't vote.
    pub learner: bool,
    /// Whether it leads but takes no entries, for another is about to lead.
    pub closed: bool,
    /// Of a replica that led: who is about to lead.
    pub successor: Option<NodeId>,
    /// Whether it has nothing although it once had: what it needs is to be rebuilt.
    pub files_gone: bool,
}

/// What to do now. Messages first, then the log, then [`Consensus::persisted`].
#[derive(Default)]
pub(crate) struct Ready {
    /// To send at once.
    pub messages: Vec<Message>,
    /// A received image takes the place of the database and of all entries up to here. Before all else of this ready.
    pub snapshot: Option<Cut>,
    /// To append to the log.
    pub entries: Vec<Entry>,
    /// To write to the log.
    pub hard_state: Option<HardState>,
    /// Whether the log must be synced.
    pub sync: bool,
    /// Committed, to be applied in order.
    pub committed: Vec<Entry>,
}

/// A round that confirmed this replica's leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// The round.
    pub round: u64,
    /// Everything that was acknowledged before the round was sent is at or before this index.
    pub index: u64,
    /// Until when no other replica can be elected; nothing if leadership is being handed over.
    pub lease: Option<Duration>,
}

/// What became of a received image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// The next ready has it.
    Taken,
    /// It isn't needed any more.
    Unneeded,
    /// There is no leader to be told of it. To be tried again when there is one.
    Later,
}

/// A round under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    id: u64,
    sent: Duration,
    configuration: u64,
}

/// One group's Raft.
pub(crate) struct Consensus {
    raw: RawNode<Store>,
    settings: Settings,
    pending: Option<raft::Ready>,
    /// No vote is given before this time.
    quiet_until: Duration,
    start_term: u64,
    /// The leader's first entry, with its term.
    first: Option<(u64, u64)>,
    rounds: u64,
    round: Option<Round>,
    /// How often the group's configuration has changed here.
    configuration: u64,
    confirmed: Vec<Confirmed>,
    /// The term in which leadership was offered to another: no lease holds any more.
    offered: Option<u64>,
    hand_over: Option<HandOver>,
    /// Who was offered leadership when this replica lost it, and in which term that may lead.
    successor: Option<(Peer, u64)>,
    /// What a leader is to hear who takes this replica for one that has entries.
    lost: Option<Message>,
    /// Whether this replica has nothing although others know that it had something.
    files_gone: bool,
    /// A member that asks for votes although it was removed.
    removed: Option<Peer>,
    /// Who was removed by which index, and hasn't been told.
    leaving: Vec<(Peer, u64)>,
    fresh: bool,
    ticks: u64,
    /// Snapshots that were offered, and whose images aren't here.
    offers: Vec<Message>,
}

impl Consensus {
    /// Takes up a group's log. `applied` is what its database has.
    pub fn new(settings: Settings, store: Store, applied: u64, now: Duration) -> Result<Self, ReplicaError> {
        let config = raft::Config {
            id: settings.peer.raw(),
            election_tick: settings.election_ticks as usize,
            heartbeat_tick: settings.heartbeat_ticks as usize,
            applied,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_committed_size_per_ready: COMMITTED_BYTES,
            ..raft::Config::default()
        };
        let raw = RawNode::new(&config, store, &logger::logger(settings.peer.raw(), settings.group))?;
        // A group that never had a term but its founding's never had a leader whose lease a vote could break.
        let fresh = raw.raft.term <= FOUNDING.term && raw.raft.vote == 0;
        let quiet_until = if fresh { Duration::ZERO } else { now + settings.tick * settings.election_ticks };
        let start_term = raw.raft.term;
        let mut consensus = Self {
            raw,
            settings,
            pending: None,
            quiet_until,
            start_term,
            first: None,
            rounds: 0,
            round: None,
            configuration: 0,
            confirmed: Vec::new(),
            offered: None,
            hand_over: None,
            successor: None,
            lost: None,
            files_gone: false,
            removed: None,
            leaving: Vec::new(),
            fresh,
            ticks: 0,
            offers: Vec::new(),
        };
        if consensus.is_sole_voter() {
            consensus.raw.campaign()?;
        }
        consensus.after_input();
        Ok(consensus)
    }

    /// Which member of its group this is.
    pub fn peer(&self) -> Peer {
        self.settings.peer
    }

    /// Whether this replica alone makes its group's majority.
    pub fn is_sole_voter(&self) -> bool {
        let voters = self.raw.raft.prs().conf().voters();
        voters.ids().iter().eq([self.settings.peer.raw()])
    }

    /// Takes a message from another replica.
    pub fn step(&mut self, message: Message, now: Duration) -> Result<(), ReplicaError> {
        use MessageType::*;
        let message = match self.is_blank() {
            true => self.censor(message),
            false => Some(message),
        };
        let Some(message) = message else { return Ok(()) };
        self.note_removed(&message);
        if self.removed.is_some() {
            return Ok(());
        }
        match message.get_msg_type() {
            // raft-rs forwards these to the leader: a deposed leader's changes would land on another state.
            MsgPropose | MsgReadIndex | MsgReadIndexResp => return Ok(()),
            MsgSnapshot if self.needs(message.get_snapshot()) => {
                // Raft takes a snapshot for something that is there. It hears of it when the image is.
                if message.term >= self.raw.raft.term {
                    self.offers.push(message);
                }
                return Ok(());
            }
            MsgRequestVote | MsgRequestPreVote => {
                let forced = message.context.as_ref() == b"CampaignTransfer";
                if now < self.quiet_until && !forced {
                    return Ok(());
                }
            }
            MsgHeartbeat if message.commit > self.raw.raft.raft_log.last_index() => {
                let (had, has) = (message.commit, self.raw.raft.raft_log.last_index());
                let what = format!("its log ends at {has}, but the leader knows that it had {had}");
                return Err(ReplicaError::Invalid(what));
            }
            MsgHeartbeat | MsgAppend if message.term >= self.raw.raft.term => {
                self.fresh = false;
                self.quiet_until = now + self.settings.tick * self.settings.election_ticks;
            }
            _ => {}
        }
        self.note_loss(&message);
        let stepped = self.raw.step(message);
        if let Some(lost) = self.lost.take().filter(|lost| lost.term == self.raw.raft.term) {
            self.raw.raft.msgs.push(lost);
        }
        self.after_input();
        match stepped {
            // Whatever a peer sends that makes no sense here is dropped; a failing log isn't.
            Err(raft::Error::Store(error)) => Err(raft::Error::Store(error).into()),
            _ => Ok(()),
        }
    }

    /// Whether a snapshot has what neither the log nor the database has. Any other one, Raft answers without an image.
    fn needs(&self, snapshot: &Snapshot) -> bool {
        let log = &self.raw.raft.raft_log;
        let metadata = snapshot.get_metadata();
        metadata.index >= log.committed
            && image::includes(metadata.get_conf_state(), self.settings.peer.raw())
            && !log.match_term(metadata.index, metadata.term)
    }

    /// The snapshots that were offered since the last call. Their images are to be received, then
    /// [`Self::install`]ed.
    pub fn take_offers(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.offers)
    }

    /// The image that a snapshot offered is here. Whoever offered it, it is of committed entries; whoever leads now is
    /// told of it.
    pub fn install(&mut self, snapshot: &Snapshot) -> Result<Install, ReplicaError> {
        let raft = &self.raw.raft;
        if !self.needs(snapshot) || raft.snap().is_some() {
            return Ok(Install::Unneeded);
        }
        if raft.leader_id == 0 || raft.state != StateRole::Follower {
            return Ok(Install::Later);
        }
        let mut message =
            Message { from: raft.leader_id, to: raft.id, term: raft.term, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot.clone());
        let stepped = self.raw.step(message);
        self.after_input();
        stepped?;
        Ok(if self.raw.raft.snap().is_some() { Install::Taken } else { Install::Unneeded })
    }

    /// A node asks no more for the image that it was offered. If it hasn't got it, Raft tries again from the begin.
    pub fn offer_ended(&mut self, node: NodeId) {
        let members: Vec<u64> = self.raw.raft.prs().iter().map(|(member, _)| *member).collect();
        for member in members {
            if Peer::from_raw(member).is_some_and(|peer| peer.node() == node) {
                self.raw.report_snapshot(member, SnapshotStatus::Failure);
            }
        }
        self.after_input();
    }

    /// Whether a cut of the log there frees enough: many entries, or as many bytes as are kept for members that lack them.
    pub fn is_worth_a_cut(&self, index: u64) -> bool {
        let (store, settings) = (self.raw.store(), &self.settings);
        index >= store.cut().index + settings.log_cut_entries
            || store.bytes_up_to(index) >= settings.log_keep_bytes.max(1)
    }

    /// The image that is wanted for a member, if one is.
    pub fn take_wanted(&mut self) -> Option<Wanted> {
        self.raw.mut_store().take_wanted()
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) -> Result<(), ReplicaError> {
        self.ticks += 1;
        self.raw.tick();
        // Nobody leads a new group yet, and one of its voters need not wait to ask for votes. The others' replicas
        // may not exist yet, so it asks again.
        if self.fresh
            && self.raw.raft.leader_id == 0
            && self.rank() == 0
            && self.ticks.is_multiple_of(u64::from(self.settings.heartbeat_ticks))
            && self.raw.raft.state != StateRole::Leader
            && self.is_voter(self.settings.peer)
        {
            self.raw.campaign()?;
        }
        self.leave_joint();
        self.tick_hand_over();
        self.after_input();
        Ok(())
    }

    /// Appends an entry, if this replica leads in `term`; gives its index.
    pub fn propose(&mut self, term: u64, data: bytes::Bytes) -> Option<u64> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.term != term {
            return None;
        }
        self.append(Entry { data, ..Entry::default() })
    }

    /// Appends an entry, unless leadership is being handed over.
    fn append(&mut self, entry: Entry) -> Option<u64> {
        let before = self.raw.raft.raft_log.last_index();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.settings.peer.raw();
        message.set_entries(vec![entry].into());
        let proposed = self.raw.raft.step(message);
        self.after_input();
        let last = self.raw.raft.raft_log.last_index();
        (proposed.is_ok() && last == before + 1).then_some(last)
    }

    /// Sends a round that confirms leadership, unless one is under way. Its end is told by [`Self::take_confirmed`].
    /// `None` if this replica doesn't lead, or hasn't committed an entry of its term yet.
    pub fn confirm(&mut self, now: Duration) -> Option<u64> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || !raft.commit_to_current_term() || self.round.is_some() {
            return None;
        }
        self.rounds += 1;
        self.round = Some(Round { id: self.rounds, sent: now, configuration: self.configuration });
        let mut context = raft.term.to_le_bytes().to_vec();
        context.extend(self.rounds.to_le_bytes());
        self.raw.read_index(context);
        self.after_input();
        Some(self.rounds)
    }

    /// The rounds that ended since the last call.
    pub fn take_confirmed(&mut self) -> Vec<Confirmed> {
        let mut confirmed = std::mem::take(&mut self.confirmed);
        if self.has_offered() {
            // The offer may have gone out after the round ended.
            confirmed.iter_mut().for_each(|confirmed| confirmed.lease = None);
        }
        confirmed
    }

    /// What is to be done; `None` if nothing is.
    pub fn ready(&mut self) -> Option<Ready> {
        debug_assert!(self.pending.is_none(), "a ready is persisted before the next is taken");
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            self.round_ended(&state);
        }
        let metadata = ready.snapshot().get_metadata();
        let snapshot = (metadata.index > 0).then_some(Cut { index: metadata.index, term: metadata.term });
        let out = Ready {
            messages: ready.take_messages(),
            snapshot,
            entries: ready.entries().clone(),
            // That something is committed needs no write of its own: whoever loses that hears it again. But with a change
            // of configuration, that the one before it is committed must reach the disk: who finds the change in its
            // log must not ask for votes among those before.
            hard_state: match ready.entries().is_empty() {
                true => ready.hs().filter(|_| ready.must_sync()).cloned(),
                false => Some(self.raw.raft.hard_state()),
            },
            sync: ready.must_sync(),
            committed: ready.take_committed_entries(),
        };
        self.note_offer(&out.messages);
        self.pending = Some(ready);
        Some(out)
    }

    /// Term, vote and what is committed, as far as it knows.
    pub fn hard_state(&self) -> HardState {
        self.raw.raft.hard_state()
    }

    /// The ready's entries and hard state are in the log, synced if it asked for that. Gives messages to send now, and
    /// what is committed thereby.
    pub fn persisted(&mut self) -> (Vec<Message>, Vec<Entry>) {
        let mut ready = self.pending.take().expect("only what was taken is persisted");
        let metadata = ready.snapshot().get_metadata();
        if metadata.index > 0 {
            self.raw.mut_store().installed(Cut { index: metadata.index, term: metadata.term });
        }
        self.raw.mut_store().appended(ready.entries());
        let mut messages = ready.take_persisted_messages();
        let installed = ready.snapshot().get_metadata().index;
        let mut light = self.raw.advance_append(ready);
        if installed > 0 {
            // What the image stands for counts as applied: raft-rs would look for it in the log before it campaigns.
            self.raw.advance_apply_to(installed);
        }
        messages.extend(light.take_messages());
        self.note_offer(&messages);
        (messages, light.take_committed_entries())
    }

    /// The database has applied up to here.
    pub fn applied(&mut self, index: u64) {
        let log = &self.raw.raft.raft_log;
        if index > log.applied && index <= log.committed.min(log.persisted) {
            self.raw.advance_apply_to(index);
            self.after_input();
        }
    }

    /// What a leader that must go sends last: the voter that has most of its log is to campaign at once, not after an
    /// election timeout of silence. It needs nothing of this replica's own log, which may have failed.
    pub fn abdicate(&mut self) -> Option<Message> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let voters = raft.prs().conf().voters();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id && voters.contains(**id));
        let (to, _) = others.max_by_key(|(id, progress)| (progress.recent_active, progress.matched, **id))?;
        let mut message = Message { to: *to, from: raft.id, term: raft.term, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        self.offered = Some(message.term);
        Some(message)
    }

    /// What this replica is in its group.
    pub fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            role: raft.state,
            term: raft.term,
            leader: Peer::from_raw(raft.leader_id).map(Peer::node),
            first: self.first.filter(|(_, term)| *term == raft.term).map(|(index, _)| index),
            learner: !self.is_voter(self.settings.peer),
            closed: self.is_closed(),
            successor: self.successor.map(|(peer, _)| peer.node()),
            files_gone: self.files_gone && self.is_blank(),
        }
    }

    /// The last index of this replica's log.
    pub fn last(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The log below [`Store::cut_at`] isn't needed any more.
    pub fn store(&mut self) -> &mut Store {
        self.raw.mut_store()
    }

    /// Whether leadership was offered to another replica in this term. It may be elected at any moment, so no lease
    /// holds any more.
    pub fn has_offered(&self) -> bool {
        self.offered == Some(self.raw.raft.term)
    }

    fn round_ended(&mut self, state: &raft::ReadState) {
        let raft = &self.raw.raft;
        let Some(Round { id: round, sent, configuration }) = self.round else { return };
        let mut context = raft.term.to_le_bytes().to_vec();
        context.extend(round.to_le_bytes());
        if state.request_ctx != context {
            return;
        }
        self.round = None;
        let length = self.settings.tick * (self.settings.election_ticks - 1) * LEASE_FIFTHS / 5;
        let stands = configuration == self.configuration && !self.has_offered();
        let lease = stands.then_some(sent + length);
        self.confirmed.push(Confirmed { round, index: state.index, lease });
    }

    fn note_offer(&mut self, messages: &[Message]) {
        if messages.iter().any(|message| message.get_msg_type() == MessageType::MsgTimeoutNow) {
            self.offered = Some(self.raw.raft.term);
        }
    }

    /// The place of this replica among its group's voters, turned by the group's id so that groups spread.
    fn rank(&self) -> u64 {
        let mut voters: Vec<u64> = self.raw.raft.prs().conf().voters().ids().iter().collect();
        voters.sort_unstable();
        let at =
            voters.iter().position(|voter| *voter == self.settings.peer.raw()).unwrap_or(voters.len()) as u64;
        let count = voters.len().max(1) as u64;
        (at + self.settings.group) % count
    }

    fn after_input(&mut self) {
        let timeout = self.election_timeout();
        let raft = &mut self.raw.raft;
        raft.set_randomized_election_timeout(timeout);
        if raft.state == StateRole::Leader {
            self.fresh = false;
            if self.first.is_none_or(|(_, term)| term != raft.term) {
                // A new leader appends an empty entry at once, and nothing was appended since.
                self.first = Some((raft.raft_log.last_index(), raft.term));
                self.round = None;
            }
        } else {
            self.first = None;
            self.round = None;
            self.end_hand_over();
        }
        let raft = &self.raw.raft;
        if self.successor.is_some_and(|(_, term)| term != raft.term || raft.leader_id != 0) {
            self.successor = None;
        }
    }

    /// raft-rs draws it from the thread's random source, anew inside step and tick, so it's overwritten after each.
    fn election_timeout(&self) -> usize {
        let least = u64::from(self.settings.election_ticks);
        let term = self.raw.raft.term;
        // After a restart of the whole group all wait for the same silence: they ask one after the other.
        let extra = if term == self.start_term {
            (1 + 3 * self.rank()).min(least - 1)
        } else {
            let mut bytes = [0; 32];
            for (chunk, part) in bytes.chunks_mut(8).zip([
                self.settings.seed,
                self.settings.peer.raw(),
                self.settings.group,
                term,
            ]) {
                chunk.copy_from_slice(&part.to_le_bytes());
            }
            // Never the least: a voter that heard the dead leader a moment later would still have to refuse.
            1 + u64::from(crc32fast::hash(&bytes)) % (least - 1)
        };
        usize::try_from(least + extra).expect("a few hundred ticks at most")
    }
}
