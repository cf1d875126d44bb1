//! What a shard's leader has of transactions in memory.
//!
//! In come terms, and what becomes of branches: how far each is, what it has locked, whether it has ended; out go locks to
//! those who wait for them, and what is heard of a transaction that isn't there any more. What asks for all this is
//! [`Transactions`]. It must never know what a statement does.

mod leaving;
mod transactions;

pub(crate) use transactions::{Begun, Claim, Transactions};

use crate::locks::{Locks, Mode, Party, Resource, Settled};
use crate::phrase::Phrase;
use crate::prepared;
use crate::routers::Routers;
use crate::sought::Looks;
use crate::touched::{Shapes, Want};
use bytes::Bytes;
use proto::machine;
use proto::{LogIndex, ShardId, SqlState, TableId, Term, TransactionId, WireError};
use replica::Overlay;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// How many transactions that have ended are remembered, so that what comes late for them begins none anew.
const REMEMBERED: usize = 10_000;

/// What can be seen of the state without its lock.
#[derive(Default)]
struct Marks {
    /// Its term; 0 for none.
    term: AtomicU64,
    /// How many transactions are pending.
    pending: AtomicUsize,
}

/// All that there is, under the lock of [`Transactions`].
#[derive(Default)]
pub(crate) struct State {
    /// The term that all of this is of.
    term: Option<Term>,
    /// The transactions whose rows may be written: they end by verdict alone.
    /// With the tables in which they have locks.
    pending: BTreeMap<TransactionId, Vec<TableId>>,
    marks: Arc<Marks>,
    /// Is told when a transaction has ended.
    news: Arc<Notify>,
    pub locks: Locks,
    branches: HashMap<TransactionId, Branch>,
    waiters: HashMap<TransactionId, oneshot::Sender<Result<(), WireError>>>,
    /// Why those ended of which someone may yet hear.
    ended: HashMap<TransactionId, Option<WireError>>,
    ended_in_order: VecDeque<TransactionId>,
    pub shapes: Shapes,
    pub looks: Looks,
    /// Transactions that are over, and may have left changes staged.
    pub left_over: Vec<TransactionId>,
    /// Those of which it is being struck out.
    pub striking: HashSet<TransactionId>,
    /// How often the shard was sealed here.
    pub seals: u64,
    /// How many transactions were ended for a seal since one was last undone.
    pub ended_for_seal: u32,
    /// Those that have committed here and are remembered, with their participants, and since when.
    kept: HashMap<TransactionId, (Vec<ShardId>, Instant)>,
    /// How many statements were ended for a deadlock.
    deadlocks: u64,
}

/// What a transaction has on this shard.
struct Branch {
    handle: Arc<Handle>,
    /// The term in which it locked or changed something; none if it has only read.
    term: Option<Term>,
    phase: Phase,
    /// Its last statement.
    last: u32,
    /// What that was told, if it may be told again.
    answer: Option<Result<Answer, WireError>>,
    /// Whether statements were undone since: some that came after the last may never have arrived.
    undone: bool,
    /// The overlay's length after each statement that changed something.
    lengths: Vec<(u32, usize)>,
    /// What its next statement fails with.
    fault: Option<WireError>,
    /// Whether it is one statement's, whose router runs that again if it is lost.
    alone: bool,
    /// The first statement that stands and may have changed or locked something, as far as the router knows.
    bound: Option<u32>,
    /// Whether its votes commit it, once it is prepared.
    parallel: bool,
    /// The shards whose votes its row is.
    votes: Vec<ShardId>,
    /// The entry that prepared it, if that is of this leader's.
    prepared_at: LogIndex,
    since: Instant,
}

/// What those who do something for a branch share.
pub(crate) struct Handle {
    pub id: TransactionId,
    pub begun: u64,
    pub overlay: Overlay,
    /// Whether changes of it may have been staged of which nothing but the overlay knows.
    pub has_staged: AtomicBool,
    /// How many of its statements are under way, which may wait without the turn.
    pub under_way: AtomicUsize,
    /// Held by whoever does something with it.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// That a statement of a branch is under way, until it is dropped.
pub(crate) struct UnderWay(Arc<Handle>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far a branch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Statements may come.
    Open,
    /// It was committed in a batch that may not be committed yet. It has no locks any more.
    Committing,
    /// Its row may be written.
    Preparing,
    /// The entry that makes its staged changes may be in the log. It has its locks until that is applied.
    Sealed,
    /// Its row is written: it ends by verdict alone.
    Prepared(Vec<ShardId>),
}

/// What a statement was told.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub output: Bytes,
    pub index: LogIndex,
}

impl Branch {
    fn new(handle: Arc<Handle>) -> Self {
        Self {
            handle,
            term: None,
            phase: Phase::Open,
            last: 0,
            answer: None,
            undone: false,
            lengths: Vec::new(),
            fault: None,
            alone: false,
            bound: None,
            parallel: false,
            votes: Vec::new(),
            prepared_at: LogIndex(0),
            since: machine::now(),
        }
    }

    fn end_statement(&mut self, statement: u32, answer: Option<Result<Answer, WireError>>) {
        (self.last, self.answer, self.undone) = (statement, answer, false);
    }
}

impl State {
    /// Whether a statement names no table in which the transaction has locked a row: then nothing that the transaction has
    /// changed can make a difference to it.
    pub fn is_apart(&self, id: TransactionId, phrase: &Phrase) -> bool {
        phrase.tables.iter().all(|table| !self.locks.has(id, &Resource::table(*table)))
    }

    fn begin_term(&mut self, term: Term, prepared: Vec<prepared::Prepared>) {
        self.pending.clear();
        self.shapes.forget();
        self.looks.forget();
        self.locks = Locks::default();
        for (_, waiter) in self.waiters.drain() {
            // Who doesn't wait any more needs no word.
            let _ = waiter.send(Err(leader_changed()));
        }
        // Who has only read has lost nothing.
        let lost: Vec<_> =
            self.branches.iter().filter(|(_, branch)| branch.term.is_some()).map(|(id, _)| *id).collect();
        for id in lost {
            self.end(id, Some(leader_changed()));
        }
        for prepared in prepared {
            let prepared::Prepared { id, begun, since: _, participants, votes, parallel, locks, hashes } =
                prepared;
            self.ended.remove(&id);
            let (overlay, has_staged, turn) = (Overlay::new(), AtomicBool::new(false), Arc::default());
            let handle = Handle { id, begun, overlay, has_staged, under_way: AtomicUsize::new(0), turn };
            let mut branch = Branch::new(Arc::new(handle));
            (branch.term, branch.phase) = (Some(term), Phase::Prepared(participants));
            (branch.parallel, branch.votes) = (parallel, votes);
            self.branches.insert(id, branch);
            let party = Party { id, begun, statement: 1 };
            for (resource, mode) in locks {
                if !self.locks.take(party, &resource, mode) {
                    tracing::error!(transaction = %id, ?resource, "two prepared transactions have one lock");
                }
            }
            for (table, mode, hashes) in hashes {
                self.locks.restore(party, table, mode, &hashes);
            }
            self.pending.insert(id, self.tables(id));
        }
        (self.term, self.ended_for_seal) = (Some(term), 0);
        self.mark();
        self.marks.term.store(term.0, Ordering::Release);
    }

    /// What is prepared, or remembered, is another by the closure that calls this, or was to be and is not: whatever is done next
    /// reads it anew, as if a term began.
    pub fn forget_term(&mut self) {
        self.term = None;
        self.marks.term.store(0, Ordering::Release);
    }

    /// The branch, if it is still the one that was admitted.
    fn branch(&mut self, handle: &Arc<Handle>) -> Result<&mut Branch, WireError> {
        if self.branches.get(&handle.id).is_some_and(|branch| Arc::ptr_eq(&branch.handle, handle)) {
            return Ok(self.branches.get_mut(&handle.id).expect("it was just found"));
        }
        Err(self.unknown(handle.id))
    }

    /// The branch's handle and how far it has come, if there is one.
    pub fn find(&self, id: TransactionId) -> Option<(Arc<Handle>, Phase)> {
        self.branches.get(&id).map(|branch| (Arc::clone(&branch.handle), branch.phase.clone()))
    }

    /// A statement of a branch has come; nothing if it is its first.
    pub fn statement_comes(&self, id: TransactionId) -> Option<UnderWay> {
        let handle = &self.branches.get(&id)?.handle;
        handle.under_way.fetch_add(1, Ordering::Relaxed);
        Some(UnderWay(Arc::clone(handle)))
    }

    /// The term that all of it is of.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// What is seen without the lock follows.
    fn mark(&self) {
        self.marks.pending.store(self.pending.len(), Ordering::Release);
        self.news.notify_waiters();
    }

    /// Whether the transaction's row may be written, so that it ends by verdict alone.
    pub fn is_pending(&self, id: TransactionId) -> bool {
        self.pending.contains_key(&id)
    }

    /// The transactions that are pending, with the tables in which they have locks.
    pub fn pending(&self) -> impl Iterator<Item = (TransactionId, &[TableId])> {
        self.pending.iter().map(|(id, tables)| (*id, tables.as_slice()))
    }

    /// The tables in which a transaction has locks: all that it has changed are among them.
    pub fn tables(&self, id: TransactionId) -> Vec<TableId> {
        let tables: BTreeSet<TableId> = self.locks.held(id).map(|(resource, _)| resource.table).collect();
        tables.into_iter().collect()
    }

    /// Whether statements may come for the branch in this term.
    pub fn is_open_in(&self, id: TransactionId, term: Term) -> bool {
        let branch = self.branches.get(&id);
        branch.is_some_and(|branch| branch.phase == Phase::Open && branch.term.is_none_or(|own| own == term))
    }

    /// The branch is of this state's term from here on. For closures on the writer.
    pub fn bind(&mut self, handle: &Arc<Handle>) -> Result<(), WireError> {
        let term = self.term;
        self.branch(handle)?.term = term;
        // What is staged in its name is an earlier leader's, and goes. Who repeats a first statement here would lose with it
        // what that stages.
        if self.left_over.contains(&handle.id) || self.striking.contains(&handle.id) {
            return Err(leader_changed());
        }
        Ok(())
    }

    /// The same at the branch's end, which is for those alone that have locked or changed something in this term. A branch
    /// may be known here because its first statement came by before this node led; what that did, it did elsewhere.
    pub fn bind_to_end(&mut self, handle: &Arc<Handle>) -> Result<(), WireError> {
        let term = self.term;
        let is_old = self.branch(handle)?.term != term;
        if is_old { Err(leader_changed()) } else { self.bind(handle) }
    }

    /// A statement of the branch has changed or locked what there was for it: perhaps nothing, which its router can't tell.
    pub fn stands(&mut self, handle: &Arc<Handle>, statement: u32) -> Result<(), WireError> {
        self.branch(handle)?.bound.get_or_insert(statement);
        Ok(())
    }

    /// Notes how far the branch has come.
    pub fn advance(&mut self, handle: &Arc<Handle>, phase: Phase) -> Result<(), WireError> {
        let branch = self.branch(handle)?;
        let is_pending = matches!(phase, Phase::Preparing | Phase::Prepared(_));
        (branch.phase, branch.since) = (phase, machine::now());
        if !is_pending {
            self.pending.remove(&handle.id);
        } else if !self.pending.contains_key(&handle.id) {
            // It locks nothing more from here on.
            self.pending.insert(handle.id, self.tables(handle.id));
        }
        self.mark();
        Ok(())
    }

    /// The branch was prepared by this entry.
    pub fn set_prepared_at(&mut self, handle: &Arc<Handle>, index: LogIndex) -> Result<(), WireError> {
        let branch = self.branch(handle)?;
        if branch.prepared_at == LogIndex(0) {
            branch.prepared_at = index;
        }
        Ok(())
    }

    /// The entry that prepared the branch; 0 if it was another leader's.
    pub fn prepared_at(&self, id: TransactionId) -> LogIndex {
        self.branches.get(&id).map_or(LogIndex(0), |branch| branch.prepared_at)
    }

    /// The branch has the vote of this shard. `parallel`: votes commit it.
    pub fn set_vote(
        &mut self,
        handle: &Arc<Handle>,
        shard: ShardId,
        parallel: bool,
    ) -> Result<(), WireError> {
        let branch = self.branch(handle)?;
        (branch.votes, branch.parallel) = (vec![shard], branch.parallel || parallel);
        Ok(())
    }

    /// Whether it has committed here, or where others were that have gone on here, and that is remembered.
    pub fn is_kept(&self, id: TransactionId) -> bool {
        self.kept.contains_key(&id)
    }

    /// It has committed here, and that is remembered.
    pub fn keep(&mut self, id: TransactionId, participants: Vec<ShardId>) {
        self.kept.insert(id, (participants, machine::now()));
    }

    /// These needn't be remembered any more.
    pub fn forget(&mut self, ids: &[TransactionId]) {
        ids.iter().for_each(|id| drop(self.kept.remove(id)));
    }

    /// Gives the branch's locks to those who wait for them: its commit has run.
    pub fn hand_over(&mut self, handle: &Arc<Handle>) -> Result<(), WireError> {
        self.advance(handle, Phase::Committing)?;
        let granted = self.locks.release(handle.id);
        self.tell(Settled { granted, victims: Vec::new() });
        Ok(())
    }

    /// Whether the branch is open, and has locked or changed something in this term.
    pub fn is_bound(&self, id: TransactionId) -> bool {
        let branch = self.branches.get(&id);
        branch.is_some_and(|branch| branch.phase == Phase::Open && branch.term == self.term)
    }

    /// Whether the branch's commit has run.
    pub fn has_handed_over(&self, id: TransactionId) -> bool {
        self.branches.get(&id).is_some_and(|branch| branch.phase == Phase::Committing)
    }

    /// Whether the branch's commit has run, or is on its way.
    pub fn is_being_committed(&self, id: TransactionId) -> bool {
        self.branches.get(&id).is_some_and(|branch| matches!(branch.phase, Phase::Committing | Phase::Sealed))
    }

    /// Has the statement that waits fail, or else the branch's next one.
    pub fn fail(&mut self, id: TransactionId, error: WireError) {
        let Some(branch) = self.branches.get_mut(&id) else { return };
        if branch.phase != Phase::Open {
            return;
        }
        self.deadlocks += u64::from(error.sqlstate == SqlState::DEADLOCK_DETECTED);
        if self.waiters.contains_key(&id) {
            self.wake(id, error);
        } else {
            branch.fault = Some(error);
        }
    }

    /// Has a statement that waits fail.
    fn wake(&mut self, id: TransactionId, error: WireError) {
        let Some(waiter) = self.waiters.remove(&id) else { return };
        let granted = self.locks.cancel(id);
        // If nobody waits any more, its statement has failed by itself.
        let _ = waiter.send(Err(error));
        self.tell(Settled { granted, victims: Vec::new() });
    }

    /// Takes back the locks of the statements after this one.
    pub fn undo(&mut self, id: TransactionId, statement: u32) {
        let granted = self.locks.release_after(id, statement);
        if !self.locks.is_waiting(id) {
            self.waiters.remove(&id);
        }
        self.tell(Settled { granted, victims: Vec::new() });
    }

    /// A statement that is run again needs these locks of those that it has taken so far, and no others.
    pub fn confine(&mut self, party: Party, wants: &[Want]) {
        let mut needs: HashMap<&Resource, Mode> = HashMap::new();
        for Want { resource, mode } in wants {
            let needed = needs.entry(resource).or_insert(*mode);
            *needed = (*needed).max(*mode);
        }
        let granted = self.locks.confine(party, |resource| needs.get(resource).copied());
        self.tell(Settled { granted, victims: Vec::new() });
    }

    /// A statement that is run again doesn't need these, whatever else of what it has taken so far.
    pub fn give_back(&mut self, party: Party, these: &[Resource]) {
        let keep = |resource: &Resource| (!these.contains(resource)).then_some(Mode::Exclusive);
        let granted = self.locks.confine(party, keep);
        self.tell(Settled { granted, victims: Vec::new() });
    }

    /// A statement of this branch has come to nothing.
    pub fn abandon(&mut self, handle: &Arc<Handle>, statement: u32) {
        if self.branch(handle).is_err() {
            return;
        }
        self.undo(handle.id, statement - 1);
        if let Some(branch) = self.branches.get_mut(&handle.id) {
            branch.bound = branch.bound.filter(|first| *first < statement);
        }
        let has_nothing = handle.overlay.is_empty() && self.locks.held(handle.id).next().is_none();
        if let Some(branch) = self.branches.get_mut(&handle.id)
            && has_nothing
            && branch.phase == Phase::Open
        {
            // Another term takes nothing from it. If it has never had an answer here, another node may be the right one.
            branch.term = None;
            if branch.last == 0 && branch.fault.is_none() {
                self.branches.remove(&handle.id);
            }
        }
    }

    /// Ends a transaction: its locks are free. What comes for it later hears the error.
    pub fn end(&mut self, id: TransactionId, why: Option<WireError>) {
        if let Some(waiter) = self.waiters.remove(&id) {
            let error = why.clone().unwrap_or_else(|| over(id));
            // Who doesn't wait any more needs no word.
            let _ = waiter.send(Err(error));
        }
        if self.pending.remove(&id).is_some() {
            self.mark();
        }
        let granted = self.locks.release(id);
        let Some(branch) = self.branches.remove(&id) else {
            return self.tell(Settled { granted, victims: Vec::new() });
        };
        if branch.handle.has_staged.load(Ordering::Relaxed) {
            self.left_over.push(id);
        }
        if self.ended.insert(id, why).is_none() {
            self.ended_in_order.push_back(id);
            if self.ended_in_order.len() > REMEMBERED
                && let Some(oldest) = self.ended_in_order.pop_front()
            {
                self.ended.remove(&oldest);
            }
        }
        self.tell(Settled { granted, victims: Vec::new() });
    }

    /// Rolls back what is open and has rows of these tables locked.
    pub fn abort_in(&mut self, tables: &HashSet<TableId>, by: TransactionId) {
        let mut found: Vec<_> = tables.iter().flat_map(|table| self.locks.others_in(*table, by)).collect();
        found.retain(|id| self.branches.get(id).is_some_and(|branch| branch.phase == Phase::Open));
        for id in found {
            let error = WireError::new(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was aborted: a table that it has changed or locked is being altered",
            )
            .with_hint("Run the transaction again.");
            self.end(id, Some(error));
        }
    }

    fn sweep(&mut self, idle: Duration, routers: &Routers) {
        let now = machine::now();
        let is_idle = |branch: &Branch| {
            branch.phase == Phase::Open
                && now.saturating_duration_since(branch.since) > idle
                && routers.is_silent(branch.handle.id.router)
                && branch.handle.turn.try_lock().is_ok()
        };
        let found: Vec<_> =
            self.branches.iter().filter(|(_, branch)| is_idle(branch)).map(|(id, _)| *id).collect();
        for id in found {
            tracing::info!(transaction = %id, "rolled back: its router has been silent for too long");
            let error = WireError::new(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was aborted: the shard has heard nothing of its router for too long",
            );
            self.end(id, Some(error));
        }
    }

    fn tell(&mut self, settled: Settled) {
        // Who doesn't wait any more gives back what it got.
        for id in settled.granted {
            if let Some(waiter) = self.waiters.remove(&id) {
                let _ = waiter.send(Ok(()));
            }
        }
        for deadlock in settled.victims {
            self.deadlocks += 1;
            if let Some(waiter) = self.waiters.remove(&deadlock.victim) {
                let error = WireError::new(SqlState::DEADLOCK_DETECTED, "deadlock detected");
                let _ = waiter.send(Err(error.with_detail(deadlock.detail)));
            }
        }
    }

    /// Why a transaction has ended here, if it hasn't by its own.
    pub fn why(&self, id: TransactionId) -> Option<WireError> {
        self.ended.get(&id).cloned().flatten()
    }

    /// What is heard for a transaction that isn't here.
    pub fn unknown(&self, id: TransactionId) -> WireError {
        match self.ended.get(&id) {
            Some(Some(error)) => error.clone(),
            Some(None) => over(id),
            None => leader_changed(),
        }
    }
}

fn over(id: TransactionId) -> WireError {
    WireError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, format!("transaction {id} has ended"))
}

/// What a transaction hears of which this leader knows nothing.
pub(crate) fn leader_changed() -> WireError {
    WireError::new(
        SqlState::SERIALIZATION_FAILURE,
        "the transaction was aborted: the shard's leader has changed",
    )
    .with_hint("Run the transaction again.")
}
