//! The node's consensus loop: all groups' Raft, one log.
//!
//! Each turn takes mail and the time: it steps the mail, ticks if it's time, collects every group's ready, sends what
//! may go before the log is written, writes the log once for all, then sends and delivers the rest. The time is the one
//! at the turn's begin throughout: a promise that is counted from earlier ends earlier. It must never know who calls it.

use super::changing::Requests;
use super::freshness::{Freshness, Names};
use super::image_loop::ImageMail;
use super::mailbox::{Mail, Mailbox};
use super::member::Member;
use super::shared::Shared;
use super::sleep::{Sleep, vouch};
use crate::consensus::Rest;
use crate::error::ReplicaError;
use crate::image::Event;
use crate::log::{self, Batch, LogStore};
use crate::metrics::Metrics;
use crate::packet::{Alive, Answer, Ask, NODE, Packet, Resting};
use crate::peer::Peer;
use proto::services::{RaftMessage, RaftTransport};
use proto::{GroupId, NodeId};
use raft::eraftpb::{Entry, Message};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// After so many ticks, log files are purged of what was cut.
const PURGE_TICKS: u64 = 64;

/// Called when the log has something to purge. It must not block.
pub(crate) type Purge = Box<dyn Fn() + Send>;

/// The node's consensus loop.
pub(crate) struct ConsensusLoop {
    mailbox: Arc<Mailbox>,
    log: Arc<dyn LogStore>,
    transport: Arc<dyn RaftTransport>,
    pace: Pace,
    metrics: Arc<Metrics>,
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

type Outgoing = BTreeMap<NodeId, Vec<RaftMessage>>;

impl ConsensusLoop {
    /// A loop without groups. `now` is the node's clock.
    pub fn new(
        mailbox: Arc<Mailbox>,
        log: Arc<dyn LogStore>,
        transport: Arc<dyn RaftTransport>,
        pace: Pace,
        metrics: Arc<Metrics>,
        now: Duration,
        purge: Purge,
    ) -> Self {
        let next_tick = now + pace.tick;
        let (groups, names) = (BTreeMap::new(), Names::default());
        Self { mailbox, log, transport, pace, metrics, next_tick, ticks: 0, purge, names, groups }
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
            Mail::Alive { from, alive, .. } => self.hear(from, alive, now),
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
                    members_changed: false,
                    waiting: Vec::new(),
                    round: None,
                    freshness: Freshness::default(),
                    next_check: None,
                    received: None,
                    installing: None,
                    requests: Requests::default(),
                    alone: false,
                    deliveries: 0,
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
                if sync {
                    self.metrics.timed(&self.metrics.log_sync, || self.log.write(batch, true))?;
                } else {
                    self.log.write(batch, false)?;
                }
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
