//! One group's place in the consensus loop: its Raft, and what the rest of the node is told of it.
//!
//! In come turns of the loop; out go what is to be written and sent, and what engine, handles and image loop hear: office,
//! committed entries, confirmed rounds, images to fetch. It must never write the log, nor know another group.

use super::changing::Requests;
use super::freshness::{Freshness, Names};
use super::image_loop::ImageMail;
use super::inbox::PendingOrder;
use super::mailbox::{FreshWaiter, Waiter};
use super::shared::{Fresh, Shared};
use super::sleep::Sleep;
use crate::consensus::{Consensus, Install, Rest, Standing};
use crate::entry::{Body, Check};
use crate::error::ReplicaError;
use crate::image::{self, Received, Source};
use crate::log::{Change, Cut};
use crate::packet::{Answer, Ask};
use crate::peer::Peer;
use proto::NodeId;
use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType};
use std::sync::Arc;
use std::time::Duration;

/// A leader's first check comes after one to so many parts of the time between two.
const CHECK_SPREAD: u32 = 16;
/// After so many deliveries between two ticks, a follower is a busy one.
const PROMPT_DELIVERIES: u32 = 8;

/// A group, as the node's consensus loop has it.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    pub(super) consensus: Consensus,
    pub(super) sleep: Sleep,
    pub(super) standing: Option<Standing>,
    /// Who waits for the round under way, and who came after it was sent.
    pub(super) confirming: Vec<Waiter>,
    /// Whether members changed, and the log need not know yet that they did.
    pub(super) members_changed: bool,
    pub(super) waiting: Vec<Waiter>,
    pub(super) round: Option<u64>,
    pub(super) freshness: Freshness,
    /// When the tables are to be checked next, if this replica leads.
    pub(super) next_check: Option<Duration>,
    /// An image that Raft hasn't taken up yet.
    pub(super) received: Option<Received>,
    /// One that takes the database's place when the log is written.
    pub(super) installing: Option<Cut>,
    pub(super) requests: Requests,
    /// Whether it leads without anyone to ask.
    pub(super) alone: bool,
    /// How often committed entries were delivered since the last tick.
    pub(super) deliveries: u32,
}

/// What one group wants to be done, as [`crate::consensus::Ready`] but with all that is to be written.
#[derive(Default)]
pub(super) struct MemberReady {
    pub(super) messages: Vec<Message>,
    pub(super) changes: Vec<Change>,
    pub(super) sync: bool,
    /// Committed entries; nothing if Raft had no ready, so that there is nothing to be told when the log is written.
    pub(super) committed: Option<Vec<Entry>>,
}

impl Member {
    pub(super) fn ready(&mut self, now: Duration) -> Result<MemberReady, ReplicaError> {
        let mut out = MemberReady::default();
        self.consensus.applied(self.shared.applied());
        self.change();
        self.publish();
        self.start_round(now);
        self.fetch_offered();
        self.install_received()?;
        out.changes.extend(self.due_cut().map(Change::Cut));
        let ready = self.consensus.ready();
        if let Some(wanted) = self.consensus.take_wanted() {
            self.shared.images.send(ImageMail::Want { group: self.shared.group, wanted });
        }
        let Some(ready) = ready else {
            self.end_rounds();
            self.keep_commit(&mut out);
            return Ok(out);
        };
        if let Some(cut) = ready.snapshot {
            self.commit_received(cut)?;
            out.changes.push(Change::Reset(cut));
        }
        self.note_offers(&ready.messages);
        if self.consensus.has_offered() {
            self.shared.end_lease();
        }
        if !ready.entries.is_empty() {
            out.changes.push(Change::Append(ready.entries));
        }
        out.changes.extend(ready.hard_state.map(Change::HardState));
        out.messages = ready.messages;
        out.sync = ready.sync;
        self.keep_commit(&mut out);
        out.committed = Some(ready.committed);
        Ok(out)
    }

    /// Has the log know for good that a change of members is committed. Those who left go soon, and without them nobody who
    /// has forgotten that could be elected: it would ask for their votes, too.
    fn keep_commit(&mut self, out: &mut MemberReady) {
        if std::mem::take(&mut self.members_changed) {
            out.changes.push(Change::HardState(self.consensus.hard_state()));
            out.sync = true;
        }
    }

    /// The ready is in the log. Gives what may be sent now.
    pub(super) fn persisted(&mut self, mut committed: Vec<Entry>) -> Result<Vec<Message>, ReplicaError> {
        let (messages, more) = self.consensus.persisted();
        if self.consensus.has_offered() {
            self.shared.end_lease();
        }
        self.note_offers(&messages);
        committed.extend(more);
        if let Some(cut) = self.installing.take() {
            self.shared.set_members(&self.consensus.conf_state());
            self.shared.inbox().install(cut);
            self.shared.wake();
        }
        self.deliver(committed)?;
        self.publish();
        self.end_rounds();
        Ok(messages)
    }

    /// Takes what is asked of the group's members a step further.
    fn change(&mut self) {
        if !self.is_leading() {
            return;
        }
        self.requests.go_on(&mut self.consensus);
        if self.consensus.handing_over().is_some() {
            self.consensus.continue_hand_over(false);
            // The engine begins nothing more once it knows; what it has begun is in the log when it says so.
            self.publish();
            let idle = !self.shared.inbox().busy;
            self.consensus.continue_hand_over(idle);
        }
    }

    /// Whether it has to tick.
    pub(super) fn is_awake(&self, now: Duration) -> bool {
        !self.sleep.is_asleep() || self.sleep.is_abandoned(&self.consensus, now)
    }

    pub(super) fn tick(&mut self, now: Duration, sleep_ticks: u32) -> Result<(), ReplicaError> {
        if self.sleep.is_asleep() {
            self.wake(now);
        }
        self.apply_delayed();
        self.consensus.tick()?;
        let (last, matched) = (self.consensus.last(), self.consensus.matched());
        let store = self.consensus.store();
        self.shared.set_progress(last, |index| store.bytes_from(index), matched);
        let is_used = self.shared.take_lease_use();
        // Where reads come in, the lease is renewed before it ends; where none do, nothing is sent.
        if self.round.is_none() && self.is_leading() && is_used {
            self.round = self.consensus.confirm(now);
        }
        let is_used = is_used || !self.waiting.is_empty() || !self.confirming.is_empty();
        if self.sleep.tick(&self.consensus, is_used, sleep_ticks) {
            if !self.consensus.is_sole_voter() {
                self.shared.end_lease();
            }
            self.shared.set_asleep(true);
        }
        Ok(())
    }

    fn apply_delayed(&mut self) {
        if std::mem::take(&mut self.deliveries) > PROMPT_DELIVERIES {
            self.shared.apply_now();
        }
    }

    pub(super) fn wake(&mut self, now: Duration) {
        self.sleep.wake(&mut self.consensus, now);
        self.shared.set_asleep(false);
    }

    pub(super) fn hear(&mut self, from: NodeId, rest: Rest, now: Duration) -> bool {
        let agreed = self.sleep.hear(&mut self.consensus, from, rest, now);
        if agreed {
            self.shared.set_heard(self.consensus.heard());
            self.apply_delayed();
            self.shared.set_asleep(true);
        }
        agreed
    }

    /// Has the images received that were offered to this replica.
    fn fetch_offered(&mut self) {
        for mut message in self.consensus.take_offers() {
            let snapshot = message.take_snapshot();
            let Some((peer, image)) = Peer::from_raw(message.from).zip(image::offered(&snapshot)) else {
                continue;
            };
            let source = Box::new(Source { node: peer.node(), image, snapshot });
            self.shared.images.send(ImageMail::Fetch { group: self.shared.group, source });
        }
    }

    /// Gives Raft an image that is here.
    fn install_received(&mut self) -> Result<(), ReplicaError> {
        let Some(received) = &self.received else { return Ok(()) };
        if self.consensus.install(&received.source.snapshot)? == Install::Unneeded {
            self.received = None;
            self.shared.images.send(ImageMail::Settled { group: self.shared.group });
        }
        Ok(())
    }

    /// Makes the image that Raft has taken up the replica's state, whatever happens from now on.
    fn commit_received(&mut self, cut: Cut) -> Result<(), ReplicaError> {
        let received = self.received.take().expect("Raft takes up what it was given");
        image::install::commit(&self.shared.directory, &received.path, cut)?;
        self.shared.images.send(ImageMail::Settled { group: self.shared.group });
        self.installing = Some(cut);
        Ok(())
    }

    /// From when an image was offered, its receiver is expected to ask for it.
    fn note_offers(&self, messages: &[Message]) {
        for message in messages.iter().filter(|message| message.get_msg_type() == MessageType::MsgSnapshot) {
            let offered = Peer::from_raw(message.to).zip(image::offered(message.get_snapshot()));
            if let Some((peer, image)) = offered {
                let group = self.shared.group;
                self.shared.images.send(ImageMail::Offered { group, to: peer.node(), id: image.id });
            }
        }
    }

    pub(super) fn stop(self, why: &ReplicaError) -> Vec<Message> {
        self.shared.stop(why);
        self.abdicate()
    }

    /// The replica goes. If it leads, another need not wait for its silence: what it gives is to be sent.
    pub(super) fn abdicate(mut self) -> Vec<Message> {
        self.shared.end_lease();
        let messages = self.consensus.abdicate().into_iter().collect();
        self.fail_waiters(None);
        messages
    }

    /// Takes someone who waits to know how fresh this follower is. Gives what is to be asked.
    pub(super) fn freshen(
        &mut self,
        waiter: FreshWaiter,
        names: &mut Names,
        now: Duration,
    ) -> Option<(NodeId, Ask)> {
        match self.other_leader() {
            Some(leader) => {
                let peer = self.consensus.peer().raw();
                self.freshness.wait(waiter, || names.next(peer), now).map(|ask| (leader, ask))
            }
            None => {
                waiter(Err(None));
                None
            }
        }
    }

    /// What to ask again.
    pub(super) fn unanswered(&self) -> Option<(NodeId, Ask)> {
        self.freshness.unanswered().and_then(|ask| Some((self.other_leader()?, ask)))
    }

    pub(super) fn other_leader(&self) -> Option<NodeId> {
        self.standing?.leader.filter(|leader| *leader != self.shared.node)
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        let Some((since, index, waiters)) = self.freshness.answered(answer) else { return };
        if let Some(index) = index {
            self.shared.set_fresh(Fresh { since, index });
        }
        // Who was asked and has no index leads no more.
        waiters.into_iter().for_each(|waiter| waiter(index.map(|_| ()).ok_or(None)));
    }

    fn is_leading(&self) -> bool {
        self.standing.is_some_and(|standing| standing.role == StateRole::Leader)
    }

    /// Tells engine and handles of a change of role, term or leader.
    fn publish(&mut self) {
        self.shared.set_floor(self.consensus.floor());
        self.shared.set_heard(self.consensus.heard());
        let alone = self.consensus.leads_alone();
        if self.alone && !alone {
            self.shared.end_lease();
        }
        self.alone = alone;
        self.publish_standing();
        if alone {
            self.shared.renew_lease(Duration::MAX);
        }
        if let Some(standing) = self.standing {
            self.requests.settle(&self.consensus, standing, &self.shared);
        }
    }

    fn publish_standing(&mut self) {
        let standing = self.consensus.standing();
        if self.standing == Some(standing) {
            return;
        }
        if self.standing.is_some_and(|before| before.leader != standing.leader) {
            self.freshness.fail(standing.leader);
        }
        let campaigns =
            |standing: Standing| matches!(standing.role, StateRole::PreCandidate | StateRole::Candidate);
        // Who has no one else to ask leads before anyone sees it ask.
        let leads = |standing: Standing| standing.role == StateRole::Leader;
        let is_over = self.standing.is_none_or(|before| !campaigns(before) && !leads(before));
        if is_over && (campaigns(standing) || leads(standing)) {
            self.shared.metrics.elections.with_label_values(&[&self.shared.group.to_string()]).inc();
        }
        self.standing = Some(standing);
        self.round = None;
        self.shared.set_standing(standing);
        self.shared.inbox().standing = standing;
        self.shared.apply_now();
        if standing.role != StateRole::Leader {
            self.fail_round(standing.leader);
            return;
        }
        self.waiting.append(&mut self.confirming);
    }

    /// Orders a check of the tables if it's time, and something was written since the last.
    pub(super) fn check_tables(&mut self, now: Duration, every: Duration) {
        if !self.is_leading() {
            self.next_check = None;
            return;
        }
        // A node that begins to lead many groups doesn't check all of them at once.
        let first = every / CHECK_SPREAD * (1 + self.shared.group.0 as u32 % CHECK_SPREAD);
        let due = *self.next_check.get_or_insert(now.saturating_add(first));
        if now < due {
            return;
        }
        self.next_check = Some(now.saturating_add(every));
        let (applied, last) = (self.shared.applied(), self.shared.last_check());
        if applied > last {
            self.shared.inbox().orders.push_back(PendingOrder::unasked(Body::Check(Check {})));
            self.shared.wake();
        }
    }

    fn deliver(&mut self, committed: Vec<Entry>) -> Result<(), ReplicaError> {
        if committed.is_empty() {
            return Ok(());
        }
        let delivered = self.consensus.take_effect(committed)?;
        if let Some(conf_state) = delivered.iter().rev().find_map(|delivered| delivered.conf_state.as_ref()) {
            // Whoever was asked for the lease may have no say any more.
            self.shared.end_lease();
            self.alone = false;
            self.members_changed = true;
            self.shared.set_members(conf_state);
        }
        // Nobody waits for a busy follower: what comes until the next tick is applied in one transaction.
        self.deliveries += 1;
        let now = self.shared.clock.now();
        // Who begins to wait after this has what is in the inbox by then applied.
        let mut inbox = self.shared.inbox();
        let at_once = self.is_leading() || self.shared.is_awaited() || self.deliveries <= PROMPT_DELIVERIES;
        let due = inbox.push(delivered, at_once, now);
        drop(inbox);
        if due {
            self.shared.wake();
        }
        Ok(())
    }

    /// Sends a round for those who wait, if none is under way.
    fn start_round(&mut self, now: Duration) {
        if self.waiting.is_empty() || self.round.is_some() {
            return;
        }
        if !self.is_leading() {
            let leader = self.standing.and_then(|standing| standing.leader);
            self.fail_round(leader);
            return;
        }
        // Before its term's first commit a leader can't confirm anything; the waiters stay until it can.
        self.round = self.consensus.confirm(now);
        if self.round.is_some() {
            self.confirming.append(&mut self.waiting);
        }
    }

    fn end_rounds(&mut self) {
        for confirmed in self.consensus.take_confirmed() {
            if self.round != Some(confirmed.round) {
                continue;
            }
            self.round = None;
            match confirmed.lease {
                Some(until) => self.shared.renew_lease(until),
                None => self.shared.end_lease(),
            }
            for waiter in self.confirming.drain(..) {
                waiter(Ok(confirmed.index));
            }
        }
    }

    fn fail_round(&mut self, leader: Option<NodeId>) {
        for waiter in self.confirming.drain(..).chain(self.waiting.drain(..)) {
            waiter(Err(leader));
        }
    }

    pub(super) fn fail_waiters(mut self, leader: Option<NodeId>) {
        self.freshness.fail(leader);
        self.fail_round(leader);
        self.requests.fail(&self.shared);
    }

    fn due_cut(&mut self) -> Option<Cut> {
        let forgettable = self.shared.forgettable();
        let forgettable = self.shared.image_hold().map_or(forgettable, |hold| hold.min(forgettable));
        if !self.consensus.is_worth_a_cut(forgettable) {
            return None;
        }
        let store = self.consensus.store();
        let cut = store.cut_at(forgettable)?;
        store.was_cut(cut);
        Some(cut)
    }
}
