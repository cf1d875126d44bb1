//! A group's engine loop: batches on a leader, committed entries on a follower.
//!
//! Each step takes one thing out of the inbox and does it, in this order: hear what became of a proposal, install an
//! image, apply what is committed, undo what leadership that was lost has left open. Then, if nothing is open that
//! waits for Raft, rehearse, or begin the next batch; those two take turns if both are wanted. Replies of a batch that
//! lost its leader wait until what stands at the batch's index is known: the batch after all, or something else. A
//! rehearsal leaves its overlay applied for the next one; whatever else is done undoes it first. If applying it has taken
//! long, its transaction has a **slice**: others wait as long as it took, up to a bound, while its steps follow each other
//! closely. Else each step of a big transaction would cost as much as all before it. It must never know who steps it.

use super::company::{Company, ENOUGH_WRITES};
use super::hashing::{Hashing, TakeHash};
use super::inbox::{Callers, Closing, Committed, Heed, Inbox, PendingOrder, PendingRehearsal, PendingWrite};
use super::lag::Lag;
use super::mailbox::Mail;
use super::shared::Shared;
use crate::engine::{Answer, Engine, Outcome, Pressure, Ran};
use crate::entry::Entry;
use crate::error::ReplicaError;
use crate::image::install;
use crate::log::{Cut, LogReader};
use crate::overlay::{Overlay, Rehearsed};
use crate::write::Written;
use bytes::Bytes;
use prost::Message as _;
use proto::{LogIndex, Retry, SqlState, WireError};
use raft::StateRole;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// One SQLite transaction applies about this many bytes of entries.
const APPLY_BYTES: usize = 1 << 20;
/// A batch takes no more writes than this.
const BATCH_WRITES: usize = 1024;
/// No more rehearsals than this are run in one turn, and none is begun after so long. Those that are left come first in
/// the next.
const TURN_REHEARSALS: usize = 64;
const TURN_TIME: Duration = Duration::from_millis(5);

/// An overlay that took less than this to apply has no slice.
const SLICE_LEAST: Duration = Duration::from_millis(2);
/// A slice is no longer than this, however long applying took.
const SLICE_MOST: Duration = Duration::from_millis(50);
/// It is over when no step has come for so long.
const SLICE_PATIENCE: Duration = Duration::from_millis(2);

/// What a step of a loop did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something; there may be more to do.
    Worked,
    /// It left a proposal in the mail for the consensus loop, which was not woken for it and is to be turned now.
    Proposed,
    /// Nothing: there is nothing to do.
    Idle,
    /// The loop is over.
    Ended,
}

/// A group's engine loop.
pub(crate) struct EngineLoop {
    shared: Arc<Shared>,
    engine: Engine,
    log: Arc<dyn LogReader>,
    open: Option<Open>,
    limbo: Vec<Limbo>,
    /// Whether rehearsals had the last turn, so that the next batch comes before more of them.
    rehearsed: bool,
    slice: Option<Slice>,
    company: Company,
    patience: Patience,
    lag: Option<Lag>,
    hasher: TakeHash,
    /// Whether a configuration was applied of which consensus doesn't know that it is.
    reconfigured: bool,
}

/// How long readers may keep the WAL from being emptied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long writers and new readers wait for those that hold it.
    pub hold: Duration,
    /// A reader that has held it for less isn't ended.
    pub age: Duration,
}

/// For how long the overlay that is applied stays so, though others wait.
#[derive(Clone, Copy, Debug)]
struct Slice {
    until: Duration,
    /// When the next step must have come.
    next: Duration,
}

/// The batch whose SQLite transaction is open.
struct Open {
    term: u64,
    /// Its entry's index, once it was proposed.
    index: Option<u64>,
    /// Since when callers have waited for it.
    begun: Duration,
    replies: Vec<Reply>,
}

/// Replies whose entry was proposed and isn't committed, and that no open batch stands for.
struct Limbo {
    term: u64,
    index: u64,
    replies: Vec<Reply>,
}

/// A caller, and what it will hear if the entry commits.
enum Reply {
    Write(oneshot::Sender<Result<Written, WireError>>, Result<Ran, WireError>),
    Order(oneshot::Sender<Result<LogIndex, WireError>>),
    Rehearsal(oneshot::Sender<Result<Rehearsed, WireError>>, Result<Bytes, WireError>),
}

enum Work {
    Install(Cut),
    Apply(Vec<Committed>),
    ApplyFromLog(u64),
    Proposed(Option<u64>),
    Deposed,
    Refuse(Callers),
    /// To be executed and proposed in this term, whatever has come to pass since.
    Batch(u64, Vec<PendingWrite>),
    Order(u64, PendingOrder),
    /// To be run in this term.
    Rehearse(u64, Vec<PendingRehearsal>),
    Close(Closing),
}

impl EngineLoop {
    pub fn new(
        shared: Arc<Shared>,
        engine: Engine,
        log: Arc<dyn LogReader>,
        patience: Patience,
        lag: Option<Lag>,
        hasher: TakeHash,
    ) -> Self {
        shared.set_holds(engine.holds());
        let (open, limbo, rehearsed, slice, company, reconfigured) = Default::default();
        Self {
            shared,
            engine,
            log,
            open,
            limbo,
            rehearsed,
            slice,
            company,
            patience,
            lag,
            hasher,
            reconfigured,
        }
    }

    /// Does one thing, if there is one to do. A panic stops this replica and no other.
    pub fn step(&mut self) -> Step {
        let work = self.next(false);
        self.perform(work)
    }

    /// Waits until there is something to do, and does it.
    pub fn wait_and_step(&mut self) -> Step {
        let work = self.next(true);
        self.perform(work)
    }

    fn perform(&mut self, work: Option<Work>) -> Step {
        let work = match work {
            None => return Step::Idle,
            Some(Work::Close(closing)) => {
                self.close(&closing);
                self.shared.set_over();
                return Step::Ended;
            }
            Some(work) => work,
        };
        let why = match catch_unwind(AssertUnwindSafe(|| self.act(work))) {
            Ok(Ok(())) if self.open.as_ref().is_some_and(|open| open.index.is_none()) => {
                return Step::Proposed;
            }
            Ok(Ok(())) => return Step::Worked,
            Ok(Err(error)) => error,
            Err(panic) => ReplicaError::panicked("its engine", panic.as_ref()),
        };
        self.shared.stop(&why);
        Step::Worked
    }

    fn act(&mut self, work: Work) -> Result<(), ReplicaError> {
        match work {
            Work::Install(cut) => self.install(cut),
            Work::Apply(entries) => self.apply(entries),
            Work::ApplyFromLog(last) => self.apply_from_log(last),
            Work::Proposed(index) => self.proposed(index),
            Work::Deposed => self.deposed(),
            Work::Refuse(callers) => {
                callers.refuse(&self.shared.not_leader());
                Ok(())
            }
            Work::Batch(term, writes) => self.batch(term, writes),
            Work::Order(term, order) => self.order(term, order),
            Work::Rehearse(term, rehearsals) => self.rehearse(term, rehearsals),
            Work::Close(_) => Ok(()),
        }?;
        self.maintain()
    }

    fn next(&mut self, wait: bool) -> Option<Work> {
        let shared = self.shared.clone();
        let mut inbox = shared.inbox();
        loop {
            if let Some(closing) = inbox.closing.clone() {
                return Some(Work::Close(closing));
            }
            // One time for both looks: who is awaited is waited for.
            let now = self.shared.clock.now();
            let work = self.choose(&mut inbox, now);
            if work.is_some() || !wait {
                return work;
            }
            let slice = self.slice.map(|slice| slice.left(now));
            if slice.is_some_and(|left| left.is_zero()) {
                self.slice = None;
                continue;
            }
            let company = self.company.left(now);
            inbox.heed = match company {
                _ if self.open.is_some() => Heed::Nobody,
                Some(_) => Heed::Steps(ENOUGH_WRITES),
                None => Heed::All,
            };
            let lag = self.lag_left(&inbox, now);
            shared.wait(&mut inbox, slice.into_iter().chain(company).chain(lag).min());
        }
    }

    fn choose(&mut self, inbox: &mut Inbox, now: Duration) -> Option<Work> {
        let work = self.find_work(inbox, now);
        let is_proposed = self.open.as_ref().is_none_or(|open| open.index.is_some());
        inbox.expectant = self.open.is_some() || !self.limbo.is_empty();
        let busy = !is_proposed || matches!(work, Some(Work::Batch(..) | Work::Order(..)));
        if std::mem::replace(&mut inbox.busy, busy) && !busy && inbox.standing.closed {
            // Who hands leadership over waits for this.
            self.shared.mailbox.send(Mail::Look { group: self.shared.group });
        }
        work
    }

    fn find_work(&mut self, inbox: &mut Inbox, now: Duration) -> Option<Work> {
        if let Some(open) = &self.open
            && open.index.is_none()
        {
            // Only the consensus loop knows whether the batch is in the log; it answers promptly.
            return inbox.proposal.take().map(Work::Proposed);
        }
        if let Some(cut) = inbox.install.take() {
            return Some(Work::Install(cut));
        }
        let applied = self.engine.applied();
        let ripe = self.ripe(inbox, now);
        if inbox.committed <= applied {
            inbox.due = false;
        } else if inbox.due && ripe > applied {
            let entries = inbox.take(applied, ripe, APPLY_BYTES);
            return Some(if entries.is_empty() { Work::ApplyFromLog(ripe) } else { Work::Apply(entries) });
        }
        let standing = inbox.standing;
        let left_open = self.open.as_ref().map(|open| open.term).or(self.engine.resident_term());
        if left_open.is_some_and(|term| standing.role != StateRole::Leader || standing.term != term) {
            return Some(Work::Deposed);
        }
        let to_write = !(inbox.writes.is_empty() && inbox.orders.is_empty());
        let to_rehearse = !inbox.rehearsals.is_empty();
        if self.open.is_some() || !(to_write || to_rehearse) || standing.closed {
            return None;
        }
        let Some(first) = standing.first else {
            // Who waits is sent on to the next leader, once that is one.
            let refuse = standing.successor.is_none();
            return refuse.then(|| Work::Refuse(inbox.take_callers()));
        };
        // What earlier leaders committed comes first, and so does an order that is under way.
        let order_under_way = self.limbo.iter().any(|limbo| limbo.term == standing.term);
        if applied < first || order_under_way {
            return None;
        }
        if let Some(slice) = self.slice {
            let is_over = slice.left(now).is_zero();
            let next = inbox.rehearsals.iter().position(|pending| self.engine.is_resident(&pending.overlay));
            match next {
                Some(at) if !is_over => {
                    self.rehearsed = true;
                    let next = inbox.rehearsals.remove(at).into_iter().collect();
                    return Some(Work::Rehearse(standing.term, next));
                }
                None if !is_over && self.engine.resident_term().is_some() => return None,
                _ => self.slice = None,
            }
        }
        let is_awaiting = inbox.orders.is_empty() && self.company.is_awaited(inbox.writes.len(), now);
        self.rehearsed = to_rehearse && (is_awaiting || !(to_write && self.rehearsed));
        if self.rehearsed {
            let count = inbox.rehearsals.len().min(TURN_REHEARSALS);
            return Some(Work::Rehearse(standing.term, inbox.rehearsals.drain(..count).collect()));
        }
        if is_awaiting {
            return None;
        }
        if let Some(order) = inbox.orders.pop_front() {
            return Some(Work::Order(standing.term, order));
        }
        self.company.begin();
        let count = inbox.writes.len().min(BATCH_WRITES);
        Some(Work::Batch(standing.term, inbox.writes.drain(..count).collect()))
    }

    /// The last committed entry that may be applied now.
    fn ripe(&self, inbox: &mut Inbox, now: Duration) -> u64 {
        inbox.arrivals.forget(self.engine.applied());
        match &self.lag {
            Some(lag) if inbox.standing.role != StateRole::Leader => lag.ripe(&inbox.arrivals, now),
            _ => inbox.committed,
        }
    }

    /// How long until more may be applied of what is due.
    fn lag_left(&self, inbox: &Inbox, now: Duration) -> Option<Duration> {
        let lag = self.lag.filter(|_| inbox.due && inbox.standing.role != StateRole::Leader)?;
        lag.left(&inbox.arrivals, now)
    }

    /// When, on the node's clock, it is to be stepped even if nothing has come.
    pub fn next_step(&self) -> Option<Duration> {
        let now = self.shared.clock.now();
        self.lag_left(&self.shared.inbox(), now).map(|left| now + left)
    }

    fn batch(&mut self, term: u64, writes: Vec<PendingWrite>) -> Result<(), ReplicaError> {
        let mut replies = Vec::with_capacity(writes.len());
        let mut writes = writes.into_iter();
        let (office, begun) = (self.shared.office(), self.shared.clock.now());
        self.engine.begin(term)?;
        while !self.engine.is_full() {
            let Some(write) = writes.next() else { break };
            if !write.state.begin() {
                continue;
            }
            match self.engine.run(write.request, write.run, &write.cancel) {
                Ok(Outcome::Done(ran)) => replies.push(Reply::Write(write.reply, ran)),
                Ok(Outcome::Undone(error)) => {
                    self.requeue(writes);
                    replies.into_iter().for_each(|reply| reply.refuse(&undone()));
                    self.confirm(office, vec![Reply::Write(write.reply, Err(error))]);
                    return Ok(());
                }
                Err(error) => {
                    // The replica stops. Nothing of the batch was proposed, so nothing of it happened.
                    drop(write.reply.send(Err(self.nothing_happened(&error.to_string()))));
                    for reply in replies {
                        reply.refuse(&self.nothing_happened(&error.to_string()));
                    }
                    return Err(error);
                }
            }
        }
        // What a full batch didn't take comes first in the next.
        self.requeue(writes);
        let (now, floor) = (self.shared.clock.now(), self.shared.floor());
        let sealed = match self.engine.expire(now).and_then(|()| self.engine.seal(floor)) {
            Ok(sealed) => sealed,
            Err(error) => {
                let refusal = self.nothing_happened(&error.to_string());
                replies.into_iter().for_each(|reply| reply.refuse(&refusal));
                return Err(error);
            }
        };
        match sealed {
            Some(data) => {
                self.shared.count_writes(replies.len());
                self.shared.metrics.batch_writes.observe(replies.len() as f64);
                self.shared.metrics.batch_bytes.observe(data.len() as f64);
                self.open = Some(Open { term, index: None, begun, replies });
                self.propose(term, data);
            }
            None => {
                self.engine.rollback()?;
                self.confirm(office, replies);
            }
        }
        Ok(())
    }

    fn rehearse(&mut self, term: u64, mut rehearsals: Vec<PendingRehearsal>) -> Result<(), ReplicaError> {
        // Who needs nothing undone goes first, but whoever has waited longest has its turn now, however long this one
        // takes.
        let resident = rehearsals.iter().position(|pending| self.engine.is_resident(&pending.overlay));
        let least = match resident {
            Some(at) if at > 0 => {
                rehearsals[..=at].rotate_right(1);
                2
            }
            _ => 1,
        };
        let office = self.shared.office();
        let until = self.shared.clock.now() + TURN_TIME;
        let mut replies = Vec::with_capacity(rehearsals.len());
        let mut rehearsals = rehearsals.into_iter();
        while replies.len() < least || self.shared.clock.now() < until {
            let Some(PendingRehearsal { overlay, bare, run, cancel, state, reply, .. }) = rehearsals.next()
            else {
                break;
            };
            if !state.begin() {
                continue;
            }
            self.shared.metrics.rehearsals.inc();
            let is_laid = !bare && !self.engine.is_resident(&overlay);
            if is_laid {
                self.shared.metrics.overlays_applied.inc();
            }
            let begun = self.shared.clock.now();
            match self.engine.rehearse(term, (&overlay, bare), run, &cancel) {
                Ok(result) => {
                    replies.push(Reply::Rehearsal(reply, result));
                    self.company.step(&overlay, begun);
                    self.have_slice(&overlay, is_laid.then_some(begun));
                }
                Err(error) => {
                    let refusal = self.nothing_happened(&error.to_string());
                    drop(reply.send(Err(refusal.clone())));
                    replies.into_iter().for_each(|reply| reply.refuse(&refusal));
                    return Err(error);
                }
            }
        }
        if rehearsals.len() > 0 {
            let mut inbox = self.shared.inbox();
            rehearsals.rev().for_each(|pending| inbox.rehearsals.push_front(pending));
        }
        self.confirm(office, replies);
        Ok(())
    }

    /// After a step above this overlay: it may have a slice, if it was applied for it since then, or have one.
    fn have_slice(&mut self, overlay: &Overlay, applied_since: Option<Duration>) {
        let now = self.shared.clock.now();
        if !self.engine.is_resident(overlay) {
            self.slice = None;
            return;
        }
        if let Some(since) = applied_since {
            let took = now.saturating_sub(since);
            let until = now + took.min(SLICE_MOST);
            self.slice = (took >= SLICE_LEAST).then_some(Slice { until, next: now });
        }
        if let Some(slice) = &mut self.slice {
            slice.next = now + SLICE_PATIENCE;
        }
    }

    fn requeue(&self, writes: impl DoubleEndedIterator<Item = PendingWrite> + ExactSizeIterator) {
        if writes.len() > 0 {
            let mut inbox = self.shared.inbox();
            writes.rev().for_each(|write| inbox.writes.push_front(write));
        }
    }

    /// A batch that changed nothing needs no entry, and a rehearsal has none. The replies say what the group's state
    /// was when it ran, so they may only go out if this replica led then, and in the same term still does.
    fn confirm(&self, office: Option<u64>, replies: Vec<Reply>) {
        let index = LogIndex(self.engine.applied());
        if office.is_some() && self.shared.holds_lease() && self.shared.office() == office {
            self.shared.use_lease();
            return replies.into_iter().for_each(|reply| reply.accept(index, None));
        }
        let shared = self.shared.clone();
        let waiter = Box::new(move |confirmed: Result<u64, _>| {
            let leads = confirmed.is_ok() && office.is_some() && shared.office() == office;
            for reply in replies {
                if leads {
                    reply.accept(index, None);
                } else {
                    reply.refuse(&shared.not_leader());
                }
            }
        });
        self.shared.mailbox.send(Mail::Confirm { group: self.shared.group, waiter });
    }

    fn order(&mut self, term: u64, pending: PendingOrder) -> Result<(), ReplicaError> {
        if !pending.state.begin() {
            return Ok(());
        }
        if pending.term.is_some_and(|wanted| wanted != term) {
            drop(pending.reply.send(Err(self.shared.not_leader())));
            return Ok(());
        }
        let data = Entry::new(self.shared.floor(), pending.body).encode_to_vec().into();
        // No SQLite transaction is open for it: it runs when it is committed, here as everywhere.
        let (begun, replies) = (Duration::ZERO, vec![Reply::Order(pending.reply)]);
        self.open = Some(Open { term, index: None, begun, replies });
        self.propose(term, data);
        Ok(())
    }

    fn propose(&self, term: u64, data: Bytes) {
        self.shared.metrics.proposals.inc();
        self.shared.inbox().proposal = None;
        self.shared.mailbox.put(Mail::Propose { group: self.shared.group, term, data });
    }

    fn proposed(&mut self, index: Option<u64>) -> Result<(), ReplicaError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        match index {
            None => {
                self.engine.rollback()?;
                let error = self.shared.not_leader();
                open.replies.into_iter().for_each(|reply| reply.refuse(&error));
            }
            Some(index) if open.is_order() => {
                self.limbo.push(Limbo { term: open.term, index, replies: open.replies });
            }
            Some(index) => {
                open.index = Some(index);
                self.open = Some(open);
            }
        }
        Ok(())
    }

    /// Leadership was lost with a batch open, or an overlay applied: it is undone, and whoever waits for the batch
    /// hears when its index is committed.
    fn deposed(&mut self) -> Result<(), ReplicaError> {
        self.engine.rollback()?;
        if let Some(Open { term, index: Some(index), replies, .. }) = self.open.take() {
            tracing::info!(
                group = self.shared.group.0,
                index,
                "undid a batch: leadership was lost with it open"
            );
            self.limbo.push(Limbo { term, index, replies });
        }
        Ok(())
    }

    /// Puts a received image in the database's place. The entries that it stands for never come.
    fn install(&mut self, cut: Cut) -> Result<(), ReplicaError> {
        self.deposed()?;
        let passed = |limbo: &mut Limbo| limbo.index <= cut.index;
        let error = self.shared.not_leader().with_retry(Retry::Unknown);
        for reply in self.limbo.extract_if(.., passed).flat_map(|limbo| limbo.replies) {
            reply.refuse(&error);
        }
        let Shared { readers, directory, .. } = &*self.shared;
        readers.replace(|| self.engine.replace(|| install::swap(directory)))?;
        if self.engine.applied() != cut.index {
            let message = format!("an image of index {} is of index {}", cut.index, self.engine.applied());
            return Err(ReplicaError::Damaged { path: self.engine.path().to_owned(), message });
        }
        tracing::info!(group = self.shared.group.0, index = cut.index, "took up an image");
        self.shared.set_holds(self.engine.holds());
        self.publish();
        Ok(())
    }

    fn apply_from_log(&mut self, last: u64) -> Result<(), ReplicaError> {
        let low = self.engine.applied() + 1;
        let entries = self.log.entries(self.shared.group.0, low, last + 1, Some(APPLY_BYTES as u64))?;
        if entries.is_empty() {
            let message = format!("log index {low} is committed, but not in the log");
            return Err(ReplicaError::Damaged { path: self.engine.path().to_owned(), message });
        }
        let entries = self.shared.inbox().complete(entries);
        self.apply(entries)
    }

    fn apply(&mut self, mut entries: Vec<Committed>) -> Result<(), ReplicaError> {
        if let Some(Open { term, index: Some(index), .. }) = self.open {
            let own = entries.iter().position(|entry| entry.index == index);
            match own {
                // Raft's own entries before the batch change no row, and the batch's index covers them.
                Some(at)
                    if entries[at].term == term
                        && entries[..at].iter().all(|entry| entry.data.is_empty()) =>
                {
                    self.reconfigure(&entries[..at]);
                    entries.drain(..=at);
                    self.commit(index)?;
                }
                // Something else got in between. Undone, the batch comes back as on any follower, if it does.
                _ => self.deposed()?,
            }
        }
        self.apply_as_follower(&entries)
    }

    /// The group's configuration goes into the database together with what is applied.
    fn reconfigure(&mut self, entries: &[Committed]) {
        for entry in entries {
            if let Some(conf_state) = &entry.conf_state {
                self.engine.reconfigure(entry.index, conf_state.clone());
                self.reconfigured = true;
            }
        }
    }

    fn commit(&mut self, index: u64) -> Result<(), ReplicaError> {
        let metrics = &self.shared.metrics;
        metrics.timed(&metrics.apply, || self.engine.commit(index))?;
        self.publish();
        if let Some(open) = self.open.take() {
            self.shared.metrics.batch_took(open.begun);
            open.replies.into_iter().for_each(|reply| reply.accept(LogIndex(index), None));
        }
        Ok(())
    }

    fn apply_as_follower(&mut self, entries: &[Committed]) -> Result<(), ReplicaError> {
        let pairs: Vec<(u64, Bytes)> =
            entries.iter().map(|entry| (entry.index, entry.data.clone())).collect();
        self.reconfigure(entries);
        let mut done = 0;
        while done < pairs.len() {
            let metrics = &self.shared.metrics;
            let applied = metrics.timed(&metrics.apply, || self.engine.apply(&pairs[done..]))?;
            self.publish();
            if !applied.answers.is_empty() {
                self.shared.set_holds(self.engine.holds());
            }
            if applied.check {
                self.take_hash();
            }
            for entry in &entries[done..done + applied.count] {
                self.resolve(entry, &applied.answers);
            }
            done += applied.count;
        }
        Ok(())
    }

    /// The database is at a check's index and nothing is written before this returns, so a snapshot of now is one of
    /// that index.
    fn take_hash(&self) {
        self.shared.set_last_check(self.engine.applied());
        match self.shared.readers.open(None) {
            Ok(reader) => (self.hasher)(Hashing::new(self.shared.clone(), reader)),
            Err(error) => {
                tracing::warn!(group = self.shared.group.0, %error, "the tables can't be read to be checked");
            }
        }
    }

    /// What stands at an index is known now: those who waited for it hear.
    fn resolve(&mut self, entry: &Committed, answers: &[Answer]) {
        while let Some(at) = self.limbo.iter().position(|limbo| limbo.index == entry.index) {
            let limbo = self.limbo.swap_remove(at);
            let answer = answers.iter().find(|(index, _)| *index == entry.index).map(|(_, answer)| answer);
            for reply in limbo.replies {
                if limbo.term == entry.term {
                    reply.accept(LogIndex(entry.index), answer);
                } else {
                    reply.refuse(&self.shared.not_leader());
                }
            }
        }
    }

    fn publish(&mut self) {
        self.shared.set_sizes(self.engine.file_bytes(), self.engine.wal_bytes());
        self.shared.set_applied(self.engine.applied(), self.engine.forgettable());
        if std::mem::take(&mut self.reconfigured) {
            // The next change of members waits for this one.
            self.shared.mailbox.send(Mail::Look { group: self.shared.group });
        }
    }

    /// The WAL is the writer's to shorten, between batches.
    fn maintain(&mut self) -> Result<(), ReplicaError> {
        let pressure = self.engine.pressure();
        if pressure == Pressure::None {
            return Ok(());
        }
        // Most is copied before anyone has to wait for the rest.
        self.engine.checkpoint()?;
        if pressure >= Pressure::Empty && !self.shared.is_copied() {
            let _held = self.shared.readers.hold();
            let emptied = self.engine.empty_wal(self.patience.hold * self.engine.urgency())?;
            if !emptied && pressure == Pressure::End {
                let ended = self.shared.readers.end_older(self.patience.age);
                if ended > 0 {
                    let group = self.shared.group.0;
                    let wal_bytes = self.engine.wal_bytes();
                    tracing::warn!(group, ended, wal_bytes, "long reads were ended to empty the WAL");
                    self.engine.empty_wal(self.patience.hold)?;
                }
            }
        }
        self.publish();
        Ok(())
    }

    fn nothing_happened(&self, why: &str) -> WireError {
        let message =
            format!("the replica of group {} on node {} stops: {why}", self.shared.group, self.shared.node);
        WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::NotLeader(None))
    }

    fn close(&mut self, closing: &Closing) {
        let (error, unknown) = match closing {
            Closing::ShutDown => {
                let error = WireError::new(SqlState::ADMIN_SHUTDOWN, "the node is shutting down");
                (error.clone().with_retry(Retry::NotLeader(None)), error.with_retry(Retry::Unknown))
            }
            Closing::Removed => {
                let error = self.shared.not_leader();
                (error.clone(), error.with_retry(Retry::Unknown))
            }
            Closing::Stopped(why) => {
                let error = self.nothing_happened(why);
                (error.clone(), error.with_retry(Retry::Unknown))
            }
        };
        // Was it proposed? If so, it may yet be committed.
        let open = self.open.take().map(|open| open.replies).unwrap_or_default();
        for reply in open.into_iter().chain(self.limbo.drain(..).flat_map(|limbo| limbo.replies)) {
            reply.refuse(&unknown);
        }
        let callers = self.shared.inbox().take_callers();
        callers.refuse(&error);
        self.shared.readers.close();
        if matches!(closing, Closing::ShutDown) {
            // A clean end leaves a short WAL; a failing disk must not be written to any more.
            let ended = self.engine.rollback().and_then(|()| self.engine.empty_wal(Duration::ZERO).map(drop));
            if let Err(error) = ended {
                tracing::warn!(group = self.shared.group.0, "the last checkpoint failed: {error}");
            }
        }
    }
}

/// What a write hears that was undone with another's. It can simply be run again.
fn undone() -> WireError {
    let message = "undone together with a write that was interrupted";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(Retry::Later)
}

impl Slice {
    /// How much longer others wait, if no step comes.
    fn left(&self, now: Duration) -> Duration {
        self.until.min(self.next).saturating_sub(now)
    }
}

impl Open {
    fn is_order(&self) -> bool {
        matches!(self.replies.as_slice(), [Reply::Order(_)])
    }
}

impl Reply {
    /// The entry is committed at this index. A caller that went away isn't missed.
    fn accept(self, index: LogIndex, answer: Option<&Result<u64, WireError>>) {
        match self {
            Reply::Write(reply, ran) => {
                let written = ran.map(|ran| Written { output: ran.output, index, repeated: ran.repeated });
                drop(reply.send(written));
            }
            Reply::Order(reply) => {
                // One that can't fail has no answer of its own.
                drop(reply.send(answer.map_or(Ok(index), |answer| answer.clone().map(LogIndex))));
            }
            Reply::Rehearsal(reply, ran) => {
                drop(reply.send(ran.map(|output| Rehearsed { output, index })));
            }
        }
    }

    fn refuse(self, error: &WireError) {
        match self {
            Reply::Write(reply, _) => drop(reply.send(Err(error.clone()))),
            Reply::Order(reply) => drop(reply.send(Err(error.clone()))),
            Reply::Rehearsal(reply, _) => drop(reply.send(Err(error.clone()))),
        }
    }
}
