//! The open transactions of one shard, for those who do something with them.
//!
//! In come statements that begin, claim locks and end; out go answers to what is repeated, and locks, as far as there may be
//! so many. Locks are claimed by closures on the replica's writer alone ([`Transactions::enter`]), so that looking
//! and acting are one; the first closure of a term throws away what was of another, and takes up the locks of what is
//! prepared, before it does anything else. It must never know what a statement does.

use super::{Answer, Branch, Handle, Marks, Phase, State, leader_changed};
use crate::config::Config;
use crate::cut::Cuts;
use crate::fence::{Address, Fence};
use crate::locks::{Mode, Part, Party, Resource};
use crate::metrics::Figures;
use crate::phrase::Phrases;
use crate::routers::Routers;
use crate::touched::Want;
use crate::trail::Trail;
use crate::{ended, prepared, staged};
use parking_lot::{Mutex, MutexGuard};
use proto::machine::{self, Machine};
use proto::services::{Branch as BranchName, BranchStatus};
use proto::{Retry, ShardId, SqlState, Term, TransactionId, WireError};
use replica::Stage;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// What has committed and is remembered for so long is told of.
const KEPT: Duration = Duration::from_secs(2);

/// The transactions of one shard, as far as its leader has them in memory.
pub(crate) struct Transactions {
    state: Mutex<State>,
    routers: Arc<Routers>,
    bounds: Bounds,
    counter: AtomicU64,
    machine: Machine,
    marks: Arc<Marks>,
    /// Who reads the shard together with others.
    pub cuts: Arc<Cuts>,
    pub fence: Arc<Fence>,
    pub trail: Trail,
    pub phrases: Arc<Phrases>,
}

/// What bounds them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    branches: usize,
    waiting: usize,
    locks: usize,
    hashed_locks: usize,
    stage_bytes: usize,
    idle: Duration,
}

/// How a statement begins.
pub(crate) enum Begun {
    /// It is to be run.
    New,
    /// It ran before, and was told this.
    Repeated(Result<Answer, WireError>),
}

/// What came of claiming locks.
pub(crate) enum Claim {
    /// It has them all.
    Held,
    /// It has those before one that another has, and hears when it has that.
    Waits(oneshot::Receiver<Result<(), WireError>>),
}

impl Transactions {
    pub fn new(config: &Config, routers: Arc<Routers>, phrases: Arc<Phrases>) -> Self {
        let bounds = Bounds {
            branches: config.max_branches,
            waiting: config.max_waiting,
            locks: config.max_locks,
            hashed_locks: config.max_hashed_locks,
            stage_bytes: config.stage_bytes,
            idle: config.router_silence,
        };
        let machine = config.machine.clone();
        let (marks, news) = (Arc::<Marks>::default(), Arc::<Notify>::default());
        let cuts = Arc::new(Cuts::new(config, Arc::clone(&news)));
        let state = Mutex::new(State { marks: Arc::clone(&marks), news, ..State::default() });
        let (counter, fence, trail) = (AtomicU64::new(1), Arc::default(), Trail::default());
        Self { state, routers, bounds, counter, machine, marks, cuts, fence, trail, phrases }
    }

    /// Whether all of it is of this term, without looking.
    pub fn are_of(&self, term: Term) -> bool {
        self.marks.term.load(Ordering::Acquire) == term.0
    }

    /// The term that all of it is of, without looking; 0 for none.
    pub fn term(&self) -> Term {
        Term(self.marks.term.load(Ordering::Acquire))
    }

    /// Whether transactions are pending, without looking.
    pub fn have_pending(&self) -> bool {
        self.marks.pending.load(Ordering::Acquire) > 0
    }

    /// Waits until none of these transactions is pending, or until then, or until the shard was sealed once more than so often.
    pub async fn ended(&self, these: &[TransactionId], seals: u64, end: Instant) -> bool {
        loop {
            let news = Arc::clone(&self.look().news);
            let mut news = std::pin::pin!(news.notified());
            news.as_mut().enable();
            {
                let state = self.look();
                if !these.iter().any(|id| state.is_pending(*id)) {
                    return true;
                }
                if state.seals != seals {
                    return false;
                }
            }
            if tokio::time::timeout_at(end.into(), news).await.is_err() {
                return false;
            }
        }
    }

    /// All there is, as of the stage's term. For closures on the writer, with nothing but their own changes made: what is
    /// prepared is read from there.
    pub fn enter(&self, stage: &Stage<'_>) -> Result<MutexGuard<'_, State>, WireError> {
        let mut state = self.state.lock();
        if state.term != Some(stage.term()) {
            let prepared = prepared::load(stage)?;
            let left_over = staged::left_over(stage)?;
            let kept = ended::load(stage)?;
            state.begin_term(stage.term(), prepared);
            let now = machine::now();
            state.kept = kept.into_iter().map(|(id, participants)| (id, (participants, now))).collect();
            // All others of earlier terms have just ended.
            (state.left_over, state.striking) = (left_over, HashSet::new());
        }
        Ok(state)
    }

    /// Refuses what would end a transaction on a shard that isn't served here: with why it has ended, if it has.
    pub fn check_served(&self, stage: &Stage<'_>, to: Address, id: TransactionId) -> Result<(), WireError> {
        let served = self.fence.check_served(stage, to);
        served.map_err(|refused| self.look().why(id).unwrap_or(refused))
    }

    /// All there is, as of whatever term.
    pub fn look(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// So many bytes of a transaction's changes are staged.
    pub fn stage_bytes(&self) -> usize {
        self.bounds.stage_bytes
    }

    /// Another number each time.
    pub fn count(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// The microseconds since 1970, by this node's clock.
    pub fn micros(&self) -> u64 {
        self.machine.micros()
    }

    /// The branch that a statement is for; its first statement makes it.
    pub fn admit(&self, name: &BranchName) -> Result<Arc<Handle>, WireError> {
        let mut state = self.state.lock();
        if let Some(branch) = state.branches.get_mut(&name.transaction) {
            branch.since = machine::now();
            branch.alone &= name.alone;
            return Ok(Arc::clone(&branch.handle));
        }
        if name.statement != 1 || state.ended.contains_key(&name.transaction) {
            return Err(state.unknown(name.transaction));
        }
        if state.branches.len() >= self.bounds.branches {
            state.sweep(self.bounds.idle, &self.routers);
        }
        if state.branches.len() >= self.bounds.branches {
            let message = "too many transactions are open on the shard";
            return Err(WireError::new(SqlState::TOO_MANY_CONNECTIONS, message)
                .with_detail(format!("There may be {}.", self.bounds.branches)));
        }
        let handle = Arc::new(Handle {
            id: name.transaction,
            begun: name.begun,
            overlay: staged::overlay(name.transaction),
            has_staged: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            turn: Arc::default(),
        });
        let branch = Branch { alone: name.alone, ..Branch::new(Arc::clone(&handle)) };
        state.branches.insert(name.transaction, branch);
        Ok(handle)
    }

    /// Has the branch begin a statement. Whoever calls has the branch's turn.
    pub fn begin(&self, handle: &Arc<Handle>, statement: u32) -> Result<Begun, WireError> {
        let mut state = self.state.lock();
        let branch = state.branch(handle)?;
        branch.since = machine::now();
        if branch.phase != Phase::Open {
            return Err(WireError::internal(format!(
                "transaction {} takes no statement: it is prepared",
                handle.id
            )));
        }
        // The number of what was undone may be given out again.
        if statement == branch.last
            && let Some(answer) = branch.answer.clone()
        {
            return Ok(Begun::Repeated(answer));
        }
        if statement < branch.last {
            let message = format!("statement {statement} of transaction {} was answered long ago", handle.id);
            return Err(WireError::internal(message));
        }
        if statement - branch.last > 1 && !branch.undone {
            return Err(leader_changed());
        }
        if let Some(fault) = branch.fault.take() {
            branch.end_statement(statement, Some(Err(fault.clone())));
            return Err(fault);
        }
        Ok(Begun::New)
    }

    /// The branch's statement has come to its end, and is told this.
    pub fn end_statement(
        &self,
        handle: &Arc<Handle>,
        statement: u32,
        result: Result<Answer, WireError>,
    ) -> Result<Answer, WireError> {
        let mut state = self.state.lock();
        let branch = state.branch(handle)?;
        branch.since = machine::now();
        match &result {
            Ok(_) => {
                let length = handle.overlay.len();
                if length != branch.lengths.last().map_or(0, |(_, length)| *length) {
                    branch.lengths.push((statement, length));
                }
                branch.end_statement(statement, Some(result.clone()));
            }
            // What wasn't executed may be asked for again.
            Err(error) => {
                if error.retry == Retry::Never {
                    branch.end_statement(statement, Some(result.clone()));
                }
                state.abandon(handle, statement);
            }
        }
        result
    }

    /// A statement that leaves no trace here was run elsewhere; if that failed, it may be asked for again.
    pub fn pass(&self, handle: &Arc<Handle>, statement: u32, is_done: bool) {
        let mut state = self.state.lock();
        match state.branch(handle) {
            Ok(branch) if is_done => {
                branch.since = machine::now();
                branch.end_statement(statement, None);
            }
            _ => state.abandon(handle, statement),
        }
    }

    /// Undoes what came after a statement. Whoever calls has the branch's turn.
    pub fn roll_back_to(&self, id: TransactionId, statement: u32) -> Result<(), WireError> {
        let mut state = self.state.lock();
        let Some(branch) = state.branches.get_mut(&id) else {
            return Err(state.unknown(id));
        };
        if branch.phase != Phase::Open {
            return Err(WireError::internal(format!(
                "nothing of transaction {id} can be undone: it is prepared"
            )));
        }
        branch.since = machine::now();
        branch.lengths.retain(|(after, _)| *after <= statement);
        branch.handle.overlay.truncate(branch.lengths.last().map_or(0, |(_, length)| *length));
        branch.bound = branch.bound.filter(|first| *first <= statement);
        branch.undone = true;
        branch.answer = None;
        state.undo(id, statement);
        Ok(())
    }

    /// What there is of them.
    pub fn figures(&self) -> Figures {
        let state = self.state.lock();
        let now = machine::now();
        let prepared = state.branches.values().filter(|b| matches!(b.phase, Phase::Prepared(_)));
        let ages: Vec<_> =
            prepared.map(|branch| now.saturating_duration_since(branch.since).as_secs_f64()).collect();
        Figures {
            branches: state.branches.len(),
            prepared: ages.len(),
            oldest_seconds: ages.iter().copied().fold(0.0, f64::max),
            locks: state.locks.len(),
            waiting: state.locks.waiting(),
            deadlocks: state.deadlocks,
        }
    }

    /// What has been idle for too long is rolled back, if its router is silent, too.
    pub fn sweep(&self) {
        self.state.lock().sweep(self.bounds.idle, &self.routers);
    }

    /// The transactions that have something on the shard.
    pub fn statuses(&self, shard: ShardId) -> Vec<BranchStatus> {
        let mut state = self.state.lock();
        state.sweep(self.bounds.idle, &self.routers);
        let now = machine::now();
        // A leader that is new need not have heard of a router that lives.
        let is_forsaken = |branch: &Branch| {
            matches!(branch.phase, Phase::Prepared(_))
                && now.saturating_duration_since(branch.since) >= self.bounds.idle / 2
                && self.routers.is_silent(branch.handle.id.router)
        };
        let status = |(id, branch): (&TransactionId, &Branch)| BranchStatus {
            shard,
            transaction: *id,
            begun: branch.handle.begun,
            prepared: match &branch.phase {
                Phase::Open | Phase::Committing | Phase::Preparing | Phase::Sealed => None,
                Phase::Prepared(participants) => Some(participants.clone()),
            },
            idle: now.saturating_duration_since(branch.since),
            votes: match &branch.phase {
                Phase::Prepared(_) => branch.votes.clone(),
                _ => Vec::new(),
            },
            parallel: branch.parallel && matches!(branch.phase, Phase::Prepared(_)),
            // It may have, where another shard's part of it was that has gone on here.
            committed: state.is_kept(*id),
            forsaken: is_forsaken(branch),
            waits_for: state.locks.waits_for(*id),
        };
        let mut statuses: Vec<_> = state.branches.iter().map(status).collect();
        let kept = state.kept.iter().filter(|(id, _)| !state.branches.contains_key(id));
        let kept = kept.map(|(id, (participants, since))| BranchStatus {
            shard,
            transaction: *id,
            begun: 0,
            prepared: Some(participants.clone()),
            votes: Vec::new(),
            parallel: true,
            committed: true,
            forsaken: false,
            idle: now.saturating_duration_since(*since),
            waits_for: Vec::new(),
        });
        // Mostly they are forgotten in a moment.
        statuses.extend(kept.filter(|status| status.idle >= KEPT));
        statuses.sort_by_key(|status| (status.begun, status.transaction));
        statuses
    }

    /// Claims locks for a statement, in this order, as far as they are free. A branch has a lock in each table of whose
    /// rows it locks one.
    pub fn claim(
        &self,
        state: &mut State,
        party: Party,
        wants: &[Want],
        no_wait: bool,
    ) -> Result<Claim, WireError> {
        let mut table = None;
        for Want { resource, mode } in wants {
            if table.replace(resource.table) != Some(resource.table)
                && let Some(claim) =
                    self.claim_one(state, party, &Resource::table(resource.table), Mode::Shared, no_wait)?
            {
                return Ok(claim);
            }
            if let Some(claim) = self.claim_one(state, party, resource, *mode, no_wait)? {
                return Ok(claim);
            }
        }
        Ok(Claim::Held)
    }

    /// Claims one lock; nothing if it is had.
    pub fn claim_one(
        &self,
        state: &mut State,
        party: Party,
        resource: &Resource,
        mode: Mode,
        no_wait: bool,
    ) -> Result<Option<Claim>, WireError> {
        let (locks, hashed) = (self.bounds.locks, self.bounds.hashed_locks);
        if state.locks.len() >= locks || state.locks.hashed() >= hashed {
            return Err(WireError::new(SqlState::OUT_OF_MEMORY, "too many locks are held on the shard")
                .with_detail(format!(
                    "There may be {locks}, and {hashed} that are the further ones of big transactions."
                ))
                .with_hint("Change or lock fewer rows in one transaction."));
        }
        if state.locks.take(party, resource, mode) {
            return Ok(None);
        }
        if no_wait {
            let what = if resource.part == Part::Table { "table" } else { "row" };
            return Err(WireError::new(
                SqlState::LOCK_NOT_AVAILABLE,
                format!("could not obtain lock on {what}"),
            ));
        }
        if state.locks.waiting() >= self.bounds.waiting {
            return Err(WireError::new(
                SqlState::OUT_OF_MEMORY,
                "too many statements wait for locks on the shard",
            )
            .with_detail(format!("There may be {}.", self.bounds.waiting)));
        }
        let (sender, receiver) = oneshot::channel();
        state.waiters.insert(party.id, sender);
        let settled = state.locks.wait(party, resource, mode);
        state.tell(settled);
        Ok(Some(Claim::Waits(receiver)))
    }
}
