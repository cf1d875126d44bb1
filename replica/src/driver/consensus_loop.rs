//! The node's consensus loop: all groups' Raft, one log.
//!
//! Each turn takes mail and the time: it steps the mail, ticks if it's time, collects every group's ready, sends what
//! may go before the log is written, writes the log once for all, then sends and delivers the rest. The time is the one
//! at the turn's begin throughout: a promise that is counted from earlier ends earlier. It must never know who calls it.

use super::changing::Requests;
use super::freshness::{Freshness, Names};
use super::image_loop::ImageMail;
use super::inbox::PendingOrder;
use super::mailbox::{FreshWaiter, Mail, Mailbox, Waiter};
use super::shared::{Fresh, Shared};
use super::sleep::{Sleep, vouch};
use crate::consensus::{Consensus, Install, Rest, Standing};
use crate::entry::{Body, Check};
use crate::error::ReplicaError;
use crate::image::{self, Event, Received, Source};
use crate::log::{self, Batch, Change, Cut, LogStore};
use crate::packet::{Alive, Answer, Ask, NODE, Packet, Resting};
use crate::peer::Peer;
use proto::services::{RaftMessage, RaftTransport};
use proto::{GroupId, NodeId};
use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// After so many ticks, log files are purged of what was cut.
const PURGE_TICKS: u64 = 64;

/// A leader's first check comes after one to so many parts of the time between two.
const CHECK_SPREAD: u32 = 16;

/// Called when the log has something to purge. It must not block.
pub(crate) type Purge = Box<dyn Fn() + Send>;

/// The node's consensus loop.
pub(crate) struct ConsensusLoop {
    mailbox: Arc<Mailbox>,
    log: Arc<dyn LogStore>,
    transport: Arc<dyn RaftTransport>,
    pace: Pace,
    next_tick: Duration,
    ticks: u64,
    purge: Purge,
    names: Names,
    groups: BTreeMap<GroupId, Member>,
}

/// The times of a consensus loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The unit.
    pub tick: Duration,
    /// How often a node speaks of the groups that it lets sleep.
    pub heartbeat_ticks: u32,
    /// For how long a leader has nothing to do before it sleeps.
    pub sleep_ticks: u32,
    /// How often a leader has its group's tables hashed.
    pub check_every: Duration,
}

struct Member {
    shared: Arc<Shared>,
    consensus: Consensus,
    sleep: Sleep,
    standing: Option<Standing>,
    /// Who waits for the round under way, and who came after it was sent.
    confirming: Vec<Waiter>,
    waiting: Vec<Waiter>,
    round: Option<u64>,
    freshness: Freshness,
    /// When the tables are to be checked next, if this replica leads.
    next_check: Option<Duration>,
    /// An image that Raft hasn't taken up yet.
    received: Option<Received>,
    /// One that takes the database's place when the log is written.
    installing: Option<Cut>,
    requests: Requests,
    /// Whether it leads without anyone to ask.
    alone: bool,
}

type Outgoing = BTreeMap<NodeId, Vec<RaftMessage>>;

impl ConsensusLoop {
    /// A loop without groups. `now` is the node's clock.
    pub fn new(
        mailbox: Arc<Mailbox>,
        log: Arc<dyn LogStore>,
        transport: Arc<dyn RaftTransport>,
        pace: Pace,
        now: Duration,
        purge: Purge,
    ) -> Self {
        let next_tick = now + pace.tick;
        let (groups, names) = (BTreeMap::new(), Names::default());
        Self { mailbox, log, transport, pace, next_tick, ticks: 0, purge, names, groups }
    }

    /// Where its mail comes from.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// When, on the node's clock, it wants a turn even if there is no mail.
    pub fn next_tick(&self) -> Duration {
        self.next_tick
    }

    /// Takes mail that was there at `now`, and does what is to be done then. Ends when the mail says so. What concerns
    /// the log, and thus all groups, stops all of them; a panic (raft-rs panics where its invariants break) stops the
    /// group that it came from.
    pub fn turn(&mut self, mail: Vec<Mail>, now: Duration) -> ControlFlow<()> {
        let why = match catch_unwind(AssertUnwindSafe(|| self.try_turn(mail, now))) {
            Ok(Ok(flow)) => return flow,
            Ok(Err(error)) => error,
            Err(panic) => ReplicaError::panicked("the node's consensus", panic.as_ref()),
        };
        self.stop_all(&why);
        ControlFlow::Continue(())
    }

    fn try_turn(&mut self, mail: Vec<Mail>, now: Duration) -> Result<ControlFlow<()>, ReplicaError> {
        let mut touched = BTreeSet::new();
        for mail in mail {
            if matches!(mail, Mail::ShutDown) {
                self.end();
                return Ok(ControlFlow::Break(()));
            }
            self.handle(mail, now, &mut touched);
        }
        if now >= self.next_tick {
            // Ticks that were missed stay missed: two in quick succession would shorten a promise not to vote.
            self.next_tick = now + self.pace.tick;
            self.tick(now, &mut touched);
        }
        self.pump(touched, now)?;
        Ok(ControlFlow::Continue(()))
    }

    fn stop_all(&mut self, why: &ReplicaError) {
        let mut outgoing = Outgoing::new();
        while let Some((group, member)) = self.groups.pop_first() {
            collect(&mut outgoing, group, member.stop(why));
        }
        self.send(outgoing);
    }

    fn end(&mut self) {
        while let Some((_, member)) = self.groups.pop_first() {
            member.shared.end_lease();
            member.fail_waiters(None);
        }
        self.mailbox.close();
    }

    fn handle(&mut self, mail: Mail, now: Duration, touched: &mut BTreeSet<GroupId>) {
        if let Some(group) = mail.wakes()
            && self.groups.get(&group).is_some_and(|member| member.sleep.is_asleep())
        {
            self.touch(group, touched, |member| {
                member.wake(now);
                Ok(())
            });
        }
        match mail {
            Mail::Alive { from, alive } => self.hear(from, alive, now),
            Mail::Wake { .. } => {}
            Mail::Raft { group, message, .. } => {
                let from = message.from;
                self.touch(group, touched, |member| member.consensus.step(message, now));
                self.tell_removed(group, from);
            }
            Mail::Propose { group, term, data } => self.touch(group, touched, |member| {
                let proposed = member.consensus.propose(term, data);
                member.shared.inbox().proposal = Some(proposed);
                // One that was accepted is next heard of when it is committed, or leadership is lost.
                if proposed.is_none() {
                    member.shared.wake();
                }
                Ok(())
            }),
            Mail::Confirm { group, waiter } => match self.groups.get_mut(&group) {
                Some(member) => {
                    member.waiting.push(waiter);
                    touched.insert(group);
                }
                None => waiter(Err(None)),
            },
            Mail::Asked { group, from, ask } => {
                let transport = self.transport.clone();
                let waiter = Box::new(move |outcome: Result<u64, _>| {
                    let body = Packet::Answer(Answer { ask, index: outcome.ok() }).encode();
                    transport.send(from, vec![RaftMessage { group, body }]);
                });
                // As for a strong read: the index is told once leadership is confirmed, after the question came.
                self.handle(Mail::Confirm { group, waiter }, now, touched);
            }
            Mail::Answered { group, answer } => {
                if let Some(member) = self.groups.get_mut(&group) {
                    member.answered(answer);
                }
            }
            Mail::Freshen { group, waiter } => match self.groups.get_mut(&group) {
                Some(member) => match self.names.begin(self.log.as_ref()) {
                    Ok(()) => {
                        let ask = member.freshen(waiter, &mut self.names, now);
                        self.ask(group, ask);
                    }
                    Err(error) => {
                        tracing::warn!(group = group.0, %error, "a question can't be named");
                        waiter(Err(member.other_leader()));
                    }
                },
                None => waiter(Err(None)),
            },
            Mail::Image(event) => self.image(event, touched),
            Mail::ChangeMembers { group, wish, answer } => match self.groups.get_mut(&group) {
                Some(member) => {
                    member.requests.change_members(&member.consensus, &member.shared, wish, answer);
                    touched.insert(group);
                }
                None => drop(answer.send(Err(ReplicaError::UnknownGroup(group).into()))),
            },
            Mail::TransferLeader { group, to, answer } => match self.groups.get_mut(&group) {
                Some(member) => {
                    member.requests.transfer_leader(&mut member.consensus, &member.shared, to, answer);
                    touched.insert(group);
                }
                None => drop(answer.send(Err(ReplicaError::UnknownGroup(group).into()))),
            },
            Mail::Look { group } => {
                touched.insert(group);
            }
            Mail::Add { shared, consensus } => {
                let group = shared.group;
                shared.images.send(ImageMail::Add { shared: shared.clone() });
                touched.insert(group);
                let member = Member {
                    shared,
                    consensus: *consensus,
                    sleep: Sleep::default(),
                    standing: None,
                    confirming: Vec::new(),
                    waiting: Vec::new(),
                    round: None,
                    freshness: Freshness::default(),
                    next_check: None,
                    received: None,
                    installing: None,
                    requests: Requests::default(),
                    alone: false,
                };
                member.shared.set_members(&member.consensus.conf_state());
                self.groups.insert(group, member);
            }
            Mail::Remove { group } => {
                if let Some(member) = self.groups.remove(&group) {
                    member.shared.images.send(ImageMail::Remove { group });
                    let mut outgoing = Outgoing::new();
                    collect(&mut outgoing, group, member.abdicate());
                    self.send(outgoing);
                }
            }
            Mail::Forget { shared } => self.forget(&shared),
            Mail::ShutDown => {}
        }
    }

    /// A replica was removed.
    fn forget(&mut self, shared: &Arc<Shared>) {
        let group = shared.group;
        if shared.is_forgotten() {
            return;
        }
        if let Some(member) = self.groups.remove(&group) {
            let mut outgoing = Outgoing::new();
            collect(&mut outgoing, group, member.abdicate());
            self.send(outgoing);
        }
        let Some(peer) = shared.peer else { return shared.forget() };
        let mut batch = Batch::default();
        log::bury(peer).into_iter().for_each(|change| batch.put(group.0, change));
        match self.log.write(batch, true) {
            Ok(()) => shared.forget(),
            // Its files stay, and at the next start it is what it was.
            Err(error) => shared.stop(&error),
        }
    }

    /// Who asks for votes and was removed hears it, for nobody else tells it any more.
    fn tell_removed(&mut self, group: GroupId, from: u64) {
        let removed = self.with(group, |member| Ok(member.consensus.take_removed()));
        if let Some(peer) = removed.flatten().filter(|peer| peer.raw() == from) {
            self.dismiss(group, peer);
        }
    }

    fn dismiss(&self, group: GroupId, peer: Peer) {
        let body = Packet::Removed(peer).encode();
        self.transport.send(peer.node(), vec![RaftMessage { group, body }]);
    }

    fn image(&mut self, event: Event, touched: &mut BTreeSet<GroupId>) {
        match event {
            Event::Made(group, image) => self.touch(group, touched, |member| {
                let index = image.index;
                if !member.consensus.store().add_image(image) {
                    tracing::warn!(group = group.0, index, "an image was made of what the log has forgotten");
                }
                Ok(())
            }),
            Event::Gone(group, id) => self.touch(group, touched, |member| {
                member.consensus.store().drop_image(id);
                Ok(())
            }),
            Event::Silent(group, node) => self.touch(group, touched, |member| {
                member.consensus.offer_ended(node);
                Ok(())
            }),
            Event::Complete(group, received) => self.touch(group, touched, |member| {
                member.received = Some(received);
                Ok(())
            }),
        }
    }

    /// Lets a group do something. If it fails or panics, the group stops and no other.
    fn with<T>(
        &mut self,
        group: GroupId,
        act: impl FnOnce(&mut Member) -> Result<T, ReplicaError>,
    ) -> Option<T> {
        let member = self.groups.get_mut(&group)?;
        let why = match catch_unwind(AssertUnwindSafe(|| act(member))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error,
            Err(panic) => ReplicaError::panicked("its consensus", panic.as_ref()),
        };
        if let Some(member) = self.groups.remove(&group) {
            // What panicked isn't asked for anything more.
            if matches!(why, ReplicaError::Panicked { .. }) {
                member.shared.stop(&why);
                member.fail_waiters(None);
            } else {
                let mut outgoing = Outgoing::new();
                collect(&mut outgoing, group, member.stop(&why));
                self.send(outgoing);
            }
        }
        None
    }

    /// Lets a group do something after which its Raft may have a ready.
    fn touch(
        &mut self,
        group: GroupId,
        touched: &mut BTreeSet<GroupId>,
        act: impl FnOnce(&mut Member) -> Result<(), ReplicaError>,
    ) {
        if self.with(group, act).is_some() {
            touched.insert(group);
        }
    }

    fn tick(&mut self, now: Duration, touched: &mut BTreeSet<GroupId>) {
        self.ticks += 1;
        if let Some(failure) = self.log.failure() {
            // Met by another than this loop, which writes only when there is something to write.
            self.stop_all(&failure);
            return;
        }
        if self.ticks.is_multiple_of(PURGE_TICKS) {
            (self.purge)();
        }
        let sleep_ticks = self.pace.sleep_ticks;
        let check_every = self.pace.check_every;
        let awake = |(group, member): (&GroupId, &mut Member)| {
            // What is due for one that sleeps wakes it when it is proposed.
            member.check_tables(now, check_every);
            member.is_awake(now).then_some(*group)
        };
        let groups: Vec<GroupId> = self.groups.iter_mut().filter_map(awake).collect();
        for group in groups {
            self.touch(group, touched, |member| member.tick(now, sleep_ticks));
            let gone = self.with(group, |member| Ok(member.consensus.take_gone())).unwrap_or_default();
            gone.into_iter().for_each(|peer| self.dismiss(group, peer));
        }
        for (group, member) in &self.groups {
            // A question may be lost as any message.
            self.ask(*group, member.unanswered());
        }
        if self.ticks.is_multiple_of(u64::from(self.pace.heartbeat_ticks)) {
            let groups = self.groups.iter().map(|(group, member)| (*group, &member.consensus, &member.sleep));
            for (node, alive) in vouch(groups) {
                let body = Packet::Alive(alive).encode();
                self.transport.send(node, vec![RaftMessage { group: NODE, body }]);
            }
        }
    }

    /// Another node has said which groups it lets sleep.
    fn hear(&mut self, from: NodeId, alive: Alive, now: Duration) {
        let mut objections = Vec::new();
        for Resting { group, term, index } in alive.resting {
            let group = GroupId(group);
            let agreed =
                self.with(group, |member| Ok(member.hear(from, Rest { term, index }, now))).unwrap_or(false);
            if !agreed {
                objections.push(RaftMessage { group, body: Packet::Wake.encode() });
            }
        }
        if !objections.is_empty() {
            self.transport.send(from, objections);
        }
    }

    /// Does what the touched groups' Raft asks for, until they ask for nothing.
    fn pump(&mut self, mut touched: BTreeSet<GroupId>, now: Duration) -> Result<(), ReplicaError> {
        while !touched.is_empty() {
            let mut batch = Batch::default();
            let mut outgoing = Outgoing::new();
            let mut sync = false;
            let mut pending: Vec<(GroupId, Vec<Entry>)> = Vec::new();
            for group in std::mem::take(&mut touched) {
                let Some(ready) = self.with(group, |member| member.ready(now)) else { continue };
                collect(&mut outgoing, group, ready.messages);
                for change in ready.changes {
                    batch.put(group.0, change);
                }
                sync |= ready.sync;
                pending.extend(ready.committed.map(|committed| (group, committed)));
            }
            self.send(std::mem::take(&mut outgoing));
            if !batch.is_empty() {
                self.log.write(batch, sync)?;
            }
            for (group, committed) in pending {
                if let Some(messages) = self.with(group, |member| member.persisted(committed)) {
                    collect(&mut outgoing, group, messages);
                    touched.insert(group);
                }
            }
            self.send(outgoing);
        }
        Ok(())
    }

    fn ask(&self, group: GroupId, ask: Option<(NodeId, Ask)>) {
        if let Some((leader, ask)) = ask {
            self.transport.send(leader, vec![RaftMessage { group, body: Packet::Ask(ask).encode() }]);
        }
    }

    fn send(&self, outgoing: Outgoing) {
        for (to, messages) in outgoing {
            self.transport.send(to, messages);
        }
    }
}

fn collect(outgoing: &mut Outgoing, group: GroupId, messages: Vec<Message>) {
    for message in messages {
        let Some(to) = Peer::from_raw(message.to) else { continue };
        let body = Packet::Raft(message).encode();
        outgoing.entry(to.node()).or_default().push(RaftMessage { group, body });
    }
}

/// What one group wants to be done, as [`crate::consensus::Ready`] but with all that is to be written.
#[derive(Default)]
struct MemberReady {
    messages: Vec<Message>,
    changes: Vec<Change>,
    sync: bool,
    /// Committed entries; nothing if Raft had no ready, so that there is nothing to be told when the log is written.
    committed: Option<Vec<Entry>>,
}

impl Member {
    fn ready(&mut self, now: Duration) -> Result<MemberReady, ReplicaError> {
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
        out.committed = Some(ready.committed);
        Ok(out)
    }

    /// The ready is in the log. Gives what may be sent now.
    fn persisted(&mut self, mut committed: Vec<Entry>) -> Result<Vec<Message>, ReplicaError> {
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
    fn is_awake(&self, now: Duration) -> bool {
        !self.sleep.is_asleep() || self.sleep.is_abandoned(&self.consensus, now)
    }

    fn tick(&mut self, now: Duration, sleep_ticks: u32) -> Result<(), ReplicaError> {
        if self.sleep.is_asleep() {
            self.wake(now);
        }
        self.consensus.tick()?;
        self.shared.set_progress(self.consensus.last(), self.consensus.matched());
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

    fn wake(&mut self, now: Duration) {
        self.sleep.wake(&mut self.consensus, now);
        self.shared.set_asleep(false);
    }

    fn hear(&mut self, from: NodeId, rest: Rest, now: Duration) -> bool {
        let agreed = self.sleep.hear(&mut self.consensus, from, rest, now);
        if agreed {
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

    fn stop(self, why: &ReplicaError) -> Vec<Message> {
        self.shared.stop(why);
        self.abdicate()
    }

    /// The replica goes. If it leads, another need not wait for its silence: what it gives is to be sent.
    fn abdicate(mut self) -> Vec<Message> {
        self.shared.end_lease();
        let messages = self.consensus.abdicate().into_iter().collect();
        self.fail_waiters(None);
        messages
    }

    /// Takes someone who waits to know how fresh this follower is. Gives what is to be asked.
    fn freshen(&mut self, waiter: FreshWaiter, names: &mut Names, now: Duration) -> Option<(NodeId, Ask)> {
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
    fn unanswered(&self) -> Option<(NodeId, Ask)> {
        self.freshness.unanswered().and_then(|ask| Some((self.other_leader()?, ask)))
    }

    fn other_leader(&self) -> Option<NodeId> {
        self.standing?.leader.filter(|leader| *leader != self.shared.node)
    }

    fn answered(&mut self, answer: Answer) {
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
        self.standing = Some(standing);
        self.round = None;
        self.shared.set_standing(standing);
        self.shared.inbox().standing = standing;
        self.shared.wake();
        if standing.role != StateRole::Leader {
            self.fail_round(standing.leader);
            return;
        }
        self.waiting.append(&mut self.confirming);
    }

    /// Orders a check of the tables if it's time, and something was written since the last.
    fn check_tables(&mut self, now: Duration, every: Duration) {
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
            self.shared.set_members(conf_state);
        }
        self.shared.inbox().push(delivered);
        self.shared.wake();
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

    fn fail_waiters(mut self, leader: Option<NodeId>) {
        self.freshness.fail(leader);
        self.fail_round(leader);
        self.requests.fail(&self.shared);
    }

    fn due_cut(&mut self) -> Option<Cut> {
        let forgettable = self.shared.forgettable();
        let forgettable = self.shared.image_hold().map_or(forgettable, |hold| hold.min(forgettable));
        let least = self.consensus.log_cut_entries();
        let store = self.consensus.store();
        if forgettable < store.cut().index + least {
            return None;
        }
        let cut = store.cut_at(forgettable)?;
        store.was_cut(cut);
        Some(cut)
    }
}
