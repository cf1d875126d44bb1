//! The node's consensus thread: all groups' Raft, one log.
//!
//! Each turn: take the mail, tick if it's time, collect every group's ready, send what may go before the log is
//! written, write the log once for all, then send and deliver the rest.

use super::mailbox::{Mail, Mailbox, Waiter};
use super::shared::{Clock, Shared};
use crate::consensus::{Consensus, Standing};
use crate::error::ReplicaError;
use crate::log::{Batch, Cut, Log};
use crate::peer::Peer;
use proto::services::{RaftMessage, RaftTransport};
use proto::{GroupId, NodeId};
use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{Entry, Message};
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// The log is cut only if that frees so many entries.
const CUT_ENTRIES: u64 = 1024;
/// After so many ticks, log files are purged of what was cut.
const PURGE_TICKS: u64 = 64;

/// The node's consensus thread.
pub(crate) struct ConsensusThread {
    mailbox: Arc<Mailbox>,
    log: Arc<Log>,
    transport: Arc<dyn RaftTransport>,
    clock: Clock,
    tick: Duration,
    ticks: u64,
    purge: SyncSender<()>,
    groups: HashMap<GroupId, Member>,
}

struct Member {
    shared: Arc<Shared>,
    consensus: Consensus,
    standing: Option<Standing>,
    /// Who waits for the round under way, and who came after it was sent.
    confirming: Vec<Waiter>,
    waiting: Vec<Waiter>,
    round: Option<u64>,
}

type Outgoing = HashMap<NodeId, Vec<RaftMessage>>;

impl ConsensusThread {
    pub fn new(
        mailbox: Arc<Mailbox>,
        log: Arc<Log>,
        transport: Arc<dyn RaftTransport>,
        clock: Clock,
        tick: Duration,
        purge: SyncSender<()>,
    ) -> Self {
        Self { mailbox, log, transport, clock, tick, ticks: 0, purge, groups: HashMap::new() }
    }

    /// Runs until it's told to end. A panic (raft-rs panics where its invariants break) stops the node's replicas.
    pub fn run(mut self) {
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let why = match catch_unwind(AssertUnwindSafe(|| self.turn(&mut next_tick))) {
                Ok(Ok(ControlFlow::Continue(()))) => continue,
                Ok(Ok(ControlFlow::Break(()))) => return self.end(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the node's consensus panicked".to_owned(),
            };
            for (_, member) in self.groups.drain() {
                member.shared.stop(why.clone());
                member.fail_waiters(None);
            }
        }
    }

    fn turn(&mut self, next_tick: &mut Instant) -> Result<ControlFlow<()>, ReplicaError> {
        let mut touched = BTreeSet::new();
        for mail in self.mailbox.take(*next_tick) {
            if matches!(mail, Mail::ShutDown) {
                return Ok(ControlFlow::Break(()));
            }
            self.handle(mail, &mut touched);
        }
        let now = Instant::now();
        if now >= *next_tick {
            // Ticks that were missed stay missed: two in quick succession would shorten a promise not to vote.
            *next_tick = now + self.tick;
            self.tick(&mut touched);
        }
        self.pump(touched)?;
        Ok(ControlFlow::Continue(()))
    }

    fn end(&mut self) {
        for (_, member) in self.groups.drain() {
            member.shared.end_lease();
            for waiter in member.confirming.into_iter().chain(member.waiting) {
                waiter(Err(None));
            }
        }
        self.mailbox.close();
    }

    fn handle(&mut self, mail: Mail, touched: &mut BTreeSet<GroupId>) {
        match mail {
            Mail::Raft { group, message, .. } => {
                let now = self.clock.now();
                self.with(group, touched, |member| member.consensus.step(message, now));
            }
            Mail::Propose { group, term, data } => self.with(group, touched, |member| {
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
            Mail::Add { shared, consensus } => {
                let group = shared.group;
                touched.insert(group);
                let member = Member {
                    shared,
                    consensus: *consensus,
                    standing: None,
                    confirming: Vec::new(),
                    waiting: Vec::new(),
                    round: None,
                };
                self.groups.insert(group, member);
            }
            Mail::Remove { group } => {
                if let Some(member) = self.groups.remove(&group) {
                    member.fail_waiters(None);
                }
            }
            Mail::ShutDown => {}
        }
    }

    fn with(
        &mut self,
        group: GroupId,
        touched: &mut BTreeSet<GroupId>,
        act: impl FnOnce(&mut Member) -> Result<(), ReplicaError>,
    ) {
        let Some(member) = self.groups.get_mut(&group) else { return };
        match act(member) {
            Ok(()) => {
                touched.insert(group);
            }
            Err(error) => {
                member.shared.stop(error.to_string());
                if let Some(member) = self.groups.remove(&group) {
                    member.fail_waiters(None);
                }
            }
        }
    }

    fn tick(&mut self, touched: &mut BTreeSet<GroupId>) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(PURGE_TICKS) {
            // If the purger is still at it, once more would change nothing.
            let _ = self.purge.try_send(());
        }
        let now = self.clock.now();
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in groups {
            self.with(group, touched, |member| {
                member.consensus.tick()?;
                // Where reads come in, the lease is renewed before it ends; where none do, nothing is sent.
                if member.round.is_none() && member.is_leading() && member.shared.take_lease_use() {
                    member.round = member.consensus.confirm(now);
                }
                Ok(())
            });
        }
    }

    /// Does what the touched groups' Raft asks for, until they ask for nothing.
    fn pump(&mut self, mut touched: BTreeSet<GroupId>) -> Result<(), ReplicaError> {
        while !touched.is_empty() {
            let now = self.clock.now();
            let mut batch = Batch::default();
            let mut outgoing = Outgoing::new();
            let (mut sync, mut write) = (false, false);
            let mut pending: Vec<(GroupId, Vec<Entry>)> = Vec::new();
            let wrap = |source| ReplicaError::Log { path: self.log.path().to_owned(), source };
            for group in std::mem::take(&mut touched) {
                let Some(member) = self.groups.get_mut(&group) else { continue };
                member.consensus.applied(member.shared.applied());
                member.publish();
                member.start_round(now);
                if let Some(cut) = member.due_cut() {
                    batch.cut(group.0, cut).map_err(wrap)?;
                    write = true;
                }
                let Some(ready) = member.consensus.ready() else {
                    member.end_rounds();
                    continue;
                };
                if member.consensus.has_offered() {
                    member.shared.end_lease();
                }
                collect(&mut outgoing, group, ready.messages);
                if !ready.entries.is_empty() {
                    batch.append(group.0, &ready.entries).map_err(wrap)?;
                    write = true;
                }
                if let Some(state) = &ready.hard_state {
                    batch.hard_state(group.0, state).map_err(wrap)?;
                    write = true;
                }
                sync |= ready.sync;
                pending.push((group, ready.committed));
            }
            self.send(std::mem::take(&mut outgoing));
            if write {
                self.log.write(batch, sync)?;
            }
            for (group, mut committed) in pending {
                let Some(member) = self.groups.get_mut(&group) else { continue };
                let (messages, more) = member.consensus.persisted();
                if member.consensus.has_offered() {
                    member.shared.end_lease();
                }
                collect(&mut outgoing, group, messages);
                committed.extend(more);
                member.deliver(committed);
                member.publish();
                member.end_rounds();
                touched.insert(group);
            }
            self.send(outgoing);
        }
        Ok(())
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
        match message.write_to_bytes() {
            Ok(body) => outgoing.entry(to.node()).or_default().push(RaftMessage { group, body: body.into() }),
            Err(error) => tracing::error!(group = group.0, "a Raft message can't be encoded: {error}"),
        }
    }
}

impl Member {
    fn is_leading(&self) -> bool {
        self.standing.is_some_and(|standing| standing.role == StateRole::Leader)
    }

    /// Tells engine and handles of a change of role, term or leader.
    fn publish(&mut self) {
        self.shared.set_floor(self.consensus.floor());
        let standing = self.consensus.standing();
        if self.standing == Some(standing) {
            return;
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
        if self.consensus.is_sole_voter() {
            self.shared.renew_lease(Duration::MAX);
        }
    }

    fn deliver(&mut self, committed: Vec<Entry>) {
        if !committed.is_empty() {
            self.shared.inbox().push(committed);
            self.shared.wake();
        }
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
        self.fail_round(leader);
    }

    fn due_cut(&mut self) -> Option<Cut> {
        let forgettable = self.shared.forgettable();
        let store = self.consensus.store();
        if forgettable < store.cut().index + CUT_ENTRIES {
            return None;
        }
        let cut = store.cut_at(forgettable)?;
        store.was_cut(cut);
        Some(cut)
    }
}
