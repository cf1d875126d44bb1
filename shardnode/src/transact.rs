//! What routers and the coordinator do with a transaction on one shard: its statements, and its end.
//!
//! In come requests that name a transaction, out go positions. What commits, prepares or finishes is a write of the
//! replica's like any other, and is repeated safely: a commit by its request id, a prepare and a finish by the row that is
//! there or not. A commit's locks are free once it has run in a batch: who gets them runs later, and if the batch comes to
//! nothing, so does the transaction. What is prepared may never lose its locks: they are free once its end is committed.
//! Once begun, such a write is seen through, whether or not anyone waits: else nobody would learn that the locks are free.
//!
//! A transaction of one statement that finds its table unlocked needs none of this: it runs in the leader's next batch
//! ([`is_in_the_way`]). It must never know what a statement does, or what other shards do.

mod votes;

use crate::branch::{Answer, Begun, Handle, Phase, Transactions};
use crate::ended;
use crate::fence::{self, Address};
use crate::phrase::Phrase;
use crate::prepared::{self, Changes, Prepared};
use crate::statement::{Attempt, Patience, Work};
use crate::trail::Fresh;
use crate::{staged, stream, write};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::machine;
use proto::services::{
    Access, Branch, BranchAction, BranchStatus, Consistency, FragmentRequest, FragmentResponse,
};
use proto::{CutId, LogIndex, RequestId, Retry, ShardId, SqlState, TableId, Term, TransactionId, WireError};
use replica::{Overlay, Pieces, Rehearsal, Replica, Snapshot, Stage, Write, Written};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;
use votes::{never_voted, renounced};

/// How long a write may take that is seen through: until its outcome is known.
pub(crate) const AS_LONG_AS_IT_TAKES: Duration = Duration::from_secs(365 * 24 * 3600);

/// Sequences of transactions that no router has named are above this.
const OWN: u64 = 1 << 63;

/// A shard's transactions, and the replica that makes them last.
#[derive(Clone)]
pub(crate) struct Desk {
    pub replica: Replica,
    pub transactions: Arc<Transactions>,
    /// Where the request goes.
    pub to: Address,
}

/// What a fragment has waited for that will open a snapshot.
pub(crate) enum Ready {
    /// What was pending has ended, in this term.
    CaughtUp(Term),
    /// Its replica is fresh enough.
    Near(Fresh),
}

/// How fresh a read must be that isn't strong, and how long it may wait for that.
fn near(request: &FragmentRequest) -> Option<(Consistency, Duration)> {
    match request.access {
        Access::Read { consistency, wait, .. } if consistency != Consistency::Strong => {
            Some((consistency, wait))
        }
        Access::Read { .. } | Access::Write { .. } | Access::Branch { .. } => None,
    }
}

/// Until when a fragment that comes now may wait for its snapshot.
pub(crate) fn patience(request: &FragmentRequest, deadline: Instant) -> Instant {
    let wait = near(request).and_then(|(_, wait)| machine::now().checked_add(wait));
    wait.map_or(deadline, |until| until.min(deadline))
}

/// What a write or a rehearsal hears within that is to be done in another way.
pub(crate) fn in_the_way() -> WireError {
    WireError::new(SqlState::LOCK_NOT_AVAILABLE, "locks are in the way").with_retry(Retry::Later)
}

/// Whether someone has locks in a table, so that a write of it must look at each row's. For closures on the writer.
pub(crate) fn is_in_the_way(
    transactions: &Transactions,
    stage: &Stage<'_>,
    job: &write::Job,
) -> Result<bool, WireError> {
    let state = transactions.enter(stage)?;
    Ok(!state.locks.is_empty() && job.phrase.written.is_none_or(|table| state.locks.is_in_use(table)))
}

impl Desk {
    /// Runs a statement of a transaction, and locks what it touches.
    pub async fn statement(
        &self,
        name: Branch,
        work: Work,
        cut: Option<CutId>,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let handle = self.transactions.admit(&name)?;
        let _turn = turn(&handle, deadline).await?;
        match self.transactions.begin(&handle, name.statement)? {
            Begun::Repeated(answer) => answer,
            Begun::New => {
                let attempt = Attempt::new(&self.transactions, &handle, name.statement);
                let patience = match cut {
                    Some(_) => Patience::None,
                    None => Patience::Until(name.lock_timeout),
                };
                let answer = attempt.run(&self.replica, Arc::new(work), patience, deadline).await?;
                self.spill(&handle, deadline).await;
                Ok(answer)
            }
        }
    }

    /// Lets a read of a transaction run wherever others' do; nothing if it must see what the transaction has written.
    pub async fn passage(
        &self,
        name: &Branch,
        phrase: &Phrase,
        deadline: Instant,
    ) -> Result<Option<Passage>, WireError> {
        let handle = self.transactions.admit(name)?;
        let turn = turn(&handle, deadline).await?;
        let is_new = matches!(self.transactions.begin(&handle, name.statement)?, Begun::New);
        let passes =
            is_new && (handle.overlay.is_empty() || self.transactions.look().is_apart(handle.id, phrase));
        let (transactions, statement) = (Arc::clone(&self.transactions), name.statement);
        Ok(passes.then(|| Passage { transactions, handle, statement, is_done: false, _turn: turn }))
    }

    /// Does something with a branch.
    pub async fn act(
        &self,
        id: TransactionId,
        action: BranchAction,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        let done = self.act_on(id, action, deadline).await;
        self.tidy();
        done
    }

    async fn act_on(
        &self,
        id: TransactionId,
        action: BranchAction,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        match action {
            BranchAction::RollbackTo(statement) => {
                // Who doesn't lead knows nothing of what the leader has, and it counts as undone when somebody says so.
                self.take_up(deadline).await?;
                let _turn = self.turn_of(id, deadline).await?;
                self.transactions.roll_back_to(id, statement)?;
                Ok(self.applied())
            }
            BranchAction::Commit { request, settled } => {
                let written = self.commit(id, (request, settled), (Bytes::new(), &[]), deadline).await?;
                Ok(written.index)
            }
            BranchAction::Prepare { participants, parallel } => {
                self.prepare(id, participants, parallel, deadline).await
            }
            BranchAction::Finish { commit, keep } => self.finish(id, commit, keep, deadline).await,
            BranchAction::Renounce => self.renounce(id, deadline).await,
            BranchAction::Forget(ids) => self.forget(ids, deadline).await,
            BranchAction::Fail(error) => {
                self.transactions.look().fail(id, error);
                Ok(self.applied())
            }
        }
    }

    /// Runs a write as a transaction of its own.
    pub async fn single(
        &self,
        job: Arc<write::Job>,
        (request, settled): (RequestId, u64),
        lock_timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<Written, WireError> {
        let name = Branch {
            transaction: own_id(request, self.transactions.count()),
            begun: self.transactions.micros(),
            statement: 1,
            lock_timeout,
            alone: true,
        };
        // Nothing of it is executed before it commits: it may be run again, by whoever asks.
        let again = |error: WireError| match error.sqlstate {
            // A row that has moved can't be one of a statement that is run on this shard alone.
            SqlState::SERIALIZATION_FAILURE if matches!(error.retry, Retry::Never | Retry::Moved) => {
                error.with_retry(Retry::Later)
            }
            _ => error,
        };
        let mut single = Single { transactions: &self.transactions, id: name.transaction, is_over: false };
        let read = job.phrase.tables.to_vec();
        let answer = self.statement(name, Work::Write(job), None, deadline).await.map_err(again)?;
        let written =
            self.commit(name.transaction, (request, settled), (answer.output, &read), deadline).await;
        // What may yet commit ends by itself.
        single.is_over = written.as_ref().is_err_and(|error| error.retry == Retry::Unknown);
        written.map_err(again)
    }

    async fn turn_of(
        &self,
        id: TransactionId,
        deadline: Instant,
    ) -> Result<Option<OwnedMutexGuard<()>>, WireError> {
        let found = self.transactions.look().find(id);
        match found {
            Some((handle, _)) => turn(&handle, deadline).await.map(Some),
            None => Ok(None),
        }
    }

    /// Commits, and tells this. `read`: tables of which what it has changed may tell, though nobody was told yet.
    async fn commit(
        &self,
        id: TransactionId,
        (request, settled): (RequestId, u64),
        (output, read): (Bytes, &[TableId]),
        deadline: Instant,
    ) -> Result<Written, WireError> {
        // Its end may be under way already.
        let turn = self.turn_of(id, deadline).await.map_err(|_| unknown())?;
        let found = self.transactions.look().find(id);
        let handle = match found {
            Some((handle, Phase::Open)) => Some(handle),
            // Of one whose leader was lost with it under way, as of one that isn't known, the request may be known.
            Some((_, Phase::Committing | Phase::Sealed)) | None => None,
            Some(_) => {
                return Err(WireError::internal(format!(
                    "transaction {id} is prepared: its verdict ends it"
                )));
            }
        };
        let mut tables = self.transactions.look().tables(id);
        tables.extend(read);
        tables.sort_unstable();
        tables.dedup();
        let linked = handle.as_ref().and_then(|_| self.transactions.cuts.link(&tables));
        if let Some(handle) = &handle
            && staged::is_staged(handle)
        {
            self.spill_all(handle, deadline).await?;
            let (desk, handle) = (self.clone(), Arc::clone(handle));
            let ending = async move {
                let (_linked, told) = (linked, output.clone());
                let until = machine::now() + AS_LONG_AS_IT_TAKES;
                let index = desk.commit_staged(&handle, (request, settled), told, until).await?;
                Ok(Written { output, index, repeated: false })
            };
            let written = see_through(turn, deadline, ending).await?;
            self.transactions.cuts.withhold(&tables, written.index, None).await;
            return Ok(written);
        }
        // Of one that isn't known, the request may be: then it is committed.
        let changes = handle.as_ref().map(|handle| handle.overlay.changeset()).transpose();
        let (transactions, to) = (Arc::clone(&self.transactions), self.to);
        let run = move |stage: &Stage<'_>| {
            transactions.check_served(stage, to, id)?;
            let handle = handle.ok_or_else(|| transactions.look().unknown(id))?;
            transactions.enter(stage)?.bind_to_end(&handle)?;
            stage.apply(&changes?.unwrap_or_default())?;
            // Whoever gets its locks now runs after this in the log, or not at all.
            transactions.enter(stage)?.hand_over(&handle)?;
            Ok(output)
        };
        let transactions = Arc::clone(&self.transactions);
        let ended = move |written: Result<Written, WireError>| {
            // Only now it can be seen.
            drop(linked);
            let mut state = transactions.look();
            match written {
                Ok(written) => {
                    state.end(id, None);
                    Ok(written)
                }
                // It ran, and was undone with its batch. Others may have had its locks since.
                Err(error) if state.has_handed_over(id) && error.retry != Retry::Unknown => {
                    let undone = undone(&error);
                    state.end(id, Some(undone.clone()));
                    Err(if error.retry == Retry::Later { undone } else { error })
                }
                Err(error) => {
                    // Otherwise it may be repeated.
                    if error.retry == Retry::Never {
                        state.end(id, Some(error.clone()));
                    }
                    Err(error)
                }
            }
        };
        let written = self.see_through(Some((request, settled)), turn, deadline, run, ended).await?;
        self.transactions.cuts.withhold(&tables, written.index, None).await;
        self.answer(written, deadline).await
    }

    async fn prepare(
        &self,
        id: TransactionId,
        participants: Vec<ShardId>,
        parallel: bool,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        // Its end may be under way already.
        let turn = self.turn_of(id, deadline).await.map_err(|_| unknown())?;
        let handle = self.transactions.look().find(id).map(|(handle, _)| handle);
        let locks_are_written = match &handle {
            Some(handle) => self.put_locks_aside(handle, deadline).await?,
            None => false,
        };
        let is_staged = handle.as_ref().is_some_and(|handle| staged::is_staged(handle));
        if let Some(handle) = handle.as_ref().filter(|_| is_staged) {
            self.spill_all(handle, deadline).await?;
        }
        let changes = handle.as_ref().map(|handle| match is_staged {
            true => Ok(Changes::Staged(handle.overlay.pieces())),
            false => handle.overlay.changeset().map(Changes::Whole),
        });
        let changes = changes.transpose();
        let (transactions, known) = (Arc::clone(&self.transactions), handle.clone());
        let (shards, tables) = (participants.clone(), self.transactions.look().tables(id));
        let (all, to) = (participants.clone(), self.to);
        let run = move |stage: &Stage<'_>| {
            transactions.check_served(stage, to, id)?;
            let mut state = transactions.enter(stage)?;
            // What is open in this term has never been prepared.
            let is_new = state.is_bound(id);
            if !is_new {
                match prepared::votes(stage, id)? {
                    Some(votes) if votes.contains(&to.shard) => return Ok(Bytes::new()),
                    // Another shard's part of it has come here.
                    Some(_) => return Err(never_voted()),
                    None if parallel && ended::has_committed(stage, id)? => return Ok(Bytes::new()),
                    None => {}
                }
            }
            if parallel && ended::is_renounced(stage, id)? {
                return Err(renounced());
            }
            let handle = known.ok_or_else(|| state.unknown(id))?;
            state.bind_to_end(&handle)?;
            if state.is_being_committed(id) {
                return Err(WireError::internal(format!("transaction {id} is being committed")));
            }
            state.advance(&handle, Phase::Preparing)?;
            let locks = state.locks.held(id).map(|(resource, mode)| (resource.clone(), mode)).collect();
            let hashes = state.locks.hashes(id);
            let hashes = hashes.filter(|_| !locks_are_written);
            let hashes = hashes.map(|(table, mode, hashes)| (table, mode, hashes.to_vec())).collect();
            drop(state);
            let changes = changes?.unwrap_or_else(|| Changes::Whole(Bytes::new()));
            // What it changes has been rehearsed, and its locks see to it that it still fits what it was made on.
            if let Changes::Staged(pieces) = &changes {
                staged::check(stage, id, pieces)?;
            }
            let (begun, since) = (handle.begun, stage.applied());
            let (participants, votes) = (shards, vec![to.shard]);
            let prepared = Prepared { id, begun, since, participants, votes, parallel, locks, hashes };
            prepared::insert(stage, &prepared, &changes)?;
            Ok(Bytes::new())
        };
        let transactions = Arc::clone(&self.transactions);
        let ended = move |written: Result<Written, WireError>| {
            let mut state = transactions.look();
            // If another term has begun, it has found the row itself, or ended the branch.
            match (&written, handle) {
                (Ok(written), Some(handle)) => {
                    drop(state.set_prepared_at(&handle, written.index));
                    // What is staged is the row's now.
                    handle.has_staged.store(false, Ordering::Relaxed);
                    drop(state.set_vote(&handle, to.shard, parallel));
                    drop(state.advance(&handle, Phase::Prepared(participants)));
                }
                // It was prepared before: its row is there, and its locks stay.
                (Err(_), _) if matches!(state.find(id), Some((_, Phase::Prepared(_)))) => {}
                (Err(error), _) if error.retry == Retry::Never => state.end(id, Some(error.clone())),
                (Err(error), Some(handle)) if error.retry != Retry::Unknown => {
                    drop(state.advance(&handle, Phase::Open));
                }
                _ => {}
            }
            written
        };
        let index = self.see_through(None, turn, deadline, run, ended).await?.index;
        self.transactions.cuts.vote(id, &all, &tables, index).await;
        Ok(index)
    }

    async fn finish(
        &self,
        id: TransactionId,
        commit: bool,
        keep: bool,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        // Who has it open and leads in the same term knows that nothing of it is written down. So does who has ended it.
        if !commit && self.is_open_or_over_here(id) {
            self.transactions.look().end(id, None);
            return Ok(self.applied());
        }
        // Its end may be under way already.
        let turn = self.turn_of(id, deadline).await.map_err(|_| unknown())?;
        let transactions = Arc::clone(&self.transactions);
        let staged = Arc::new(Mutex::new(None));
        let met = Arc::clone(&staged);
        let remembered = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&remembered);
        // What this leader had prepared is as it was.
        let found = self.transactions.look().find(id);
        let at_hand = found.filter(|(handle, phase)| {
            let is_prepared = matches!(phase, Phase::Prepared(_));
            is_prepared && !handle.overlay.is_empty() && handle.overlay.pieces().is_empty()
        });
        let at_hand = at_hand.map(|(handle, _)| (handle.overlay.changeset(), handle));
        let to = self.to;
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check_served(stage, to)?;
            let (known, is_kept) = {
                let state = transactions.enter(stage)?;
                (state.find(id), state.is_kept(id))
            };
            let changes = match (&known, at_hand) {
                (Some((handle, Phase::Prepared(_))), Some((changes, own))) if Arc::ptr_eq(handle, &own) => {
                    Some(Changes::Whole(changes?))
                }
                _ => prepared::changes(stage, id)?,
            };
            let Some(changes) = changes else {
                if !keep {
                    ended::forget(stage, &[id])?;
                }
                return match known {
                    Some((_, Phase::Open)) if commit => Err(WireError::internal(format!(
                        "transaction {id} is to be committed and isn't prepared"
                    ))),
                    _ => Ok(Bytes::new()),
                };
            };
            if commit && keep {
                let participants = match known {
                    Some((_, Phase::Prepared(participants))) => participants,
                    _ => Vec::new(),
                };
                ended::commit(stage, id, &participants)?;
                *kept.lock() = Some(participants);
            } else if is_kept {
                // Another shard's part of it had committed there, and both have come here.
                ended::forget(stage, &[id])?;
            }
            match changes {
                Changes::Whole(changes) if commit => stage.apply(&changes)?,
                Changes::Whole(_) => {}
                // That is for an entry of its own.
                Changes::Staged(found) => {
                    *met.lock() = Some((if commit { found } else { Pieces::default() }, stage.term()));
                    return Ok(Bytes::new());
                }
            }
            prepared::delete(stage, id)?;
            Ok(Bytes::new())
        };
        let desk = self.clone();
        let ending = async move {
            let deadline = machine::now() + AS_LONG_AS_IT_TAKES;
            let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
            let mut written = desk.replica.write(write).await?;
            let staged = staged.lock().take();
            if let Some((pieces, term)) = staged {
                written.index = desk.replay(id, None, pieces, term).await?;
            }
            let mut state = desk.transactions.look();
            state.end(id, None);
            match remembered.lock().take() {
                Some(participants) => state.keep(id, participants),
                None if !keep => state.forget(&[id]),
                None => {}
            }
            drop(state);
            Ok(written)
        };
        see_through(turn, deadline, ending).await.map(|written| written.index)
    }

    /// These have committed everywhere.
    async fn forget(&self, ids: Vec<TransactionId>, deadline: Instant) -> Result<LogIndex, WireError> {
        let (forgotten, transactions, to) = (ids.clone(), Arc::clone(&self.transactions), self.to);
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check_served(stage, to)?;
            ended::forget(stage, &ids).map(|()| Bytes::new())
        };
        let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
        let written = self.replica.write(write).await?;
        self.transactions.look().forget(&forgotten);
        Ok(written.index)
    }

    fn is_open_or_over_here(&self, id: TransactionId) -> bool {
        let term = self.replica.watch().borrow().term;
        let state = self.transactions.look();
        let is_open_or_over = state.why(id).is_some() || state.is_open_in(id, term);
        state.term() == Some(term) && is_open_or_over && self.replica.is_leader()
    }

    /// The last entry that is in effect here.
    pub fn applied(&self) -> LogIndex {
        self.replica.watch().borrow().applied
    }

    /// Has the replica write, and sees to what follows from that even if nobody waits any more.
    async fn see_through(
        &self,
        request: Option<(RequestId, u64)>,
        turn: Option<OwnedMutexGuard<()>>,
        deadline: Instant,
        run: impl FnOnce(&Stage<'_>) -> Result<Bytes, WireError> + Send + 'static,
        ended: impl FnOnce(Result<Written, WireError>) -> Result<Written, WireError> + Send + 'static,
    ) -> Result<Written, WireError> {
        let write = Write {
            request: request.map(|(request, _)| request),
            settled: request.map_or(0, |(_, settled)| settled),
            deadline: machine::now() + AS_LONG_AS_IT_TAKES,
            run: Box::new(run),
        };
        let replica = self.replica.clone();
        see_through(turn, deadline, async move { ended(replica.write(write).await) }).await
    }

    /// Waits until then for what a fragment's snapshot must have, so that it can be opened later.
    pub async fn get_ready(
        &self,
        request: &FragmentRequest,
        until: Instant,
    ) -> Result<Option<Ready>, WireError> {
        if let Some(cut) = request.cut {
            self.transactions.cuts.get_ready(self, cut, until).await?;
            return Ok(None);
        }
        Ok(Some(match near(request) {
            Some((consistency, _)) => Ready::Near(self.come_near(request, consistency, until).await?),
            None => {
                self.replica.reach(request.floor.index(), until).await?;
                Ready::CaughtUp(self.catch_up(request, false, until).await?)
            }
        }))
    }

    /// A snapshot for a fragment, and how long it waited until its replica was fresh enough: the snapshot of its cut, or one
    /// that has what was prepared before the fragment came, or one that has its floor. `ready`: that was waited for.
    pub async fn snapshot(
        &self,
        request: &FragmentRequest,
        ready: Option<Ready>,
        until: Instant,
    ) -> Result<(Snapshot, Duration), WireError> {
        if let Some(cut) = request.cut {
            let cuts = &self.transactions.cuts;
            let snapshot = match request.access {
                Access::Branch { .. } => cuts.peek(self, cut, until).await,
                Access::Read { .. } | Access::Write { .. } => cuts.scan(self, cut, until).await,
            };
            return snapshot.map(|snapshot| (snapshot, Duration::ZERO));
        }
        let (mut caught_up, fresh) = match ready {
            Some(Ready::CaughtUp(term)) => (Some(term), None),
            Some(Ready::Near(fresh)) => (None, Some(fresh)),
            None => (None, None),
        };
        if let Some((consistency, _)) = near(request) {
            // A future of its own: strong reads' stays small.
            return Box::pin(self.near(request, consistency, fresh, until)).await;
        }
        let after = request.floor.index();
        loop {
            let term = match caught_up.take() {
                Some(term) => term,
                None => self.catch_up(request, false, until).await?,
            };
            let snapshot = self.replica.snapshot_after(Consistency::Strong, after, until).await?;
            // Another leader may have had others prepared.
            if self.transactions.are_of(term) && self.is_known() {
                return Ok((snapshot, Duration::ZERO));
            }
        }
    }

    /// What a read hears that waited for a snapshot for as long as it may.
    pub fn too_late(&self, request: &FragmentRequest) -> WireError {
        match near(request) {
            Some(_) => stream::timed_out().with_retry(Retry::Behind(self.applied())),
            None => stream::timed_out(),
        }
    }

    /// Waits until the shard shows this position, as far as that is sure to come: SH003 at once where the log ends before it.
    pub async fn reach(&self, position: LogIndex, until: Instant) -> Result<(), WireError> {
        if self.replica.has_applied(position) {
            return Ok(());
        }
        self.replica.reach(position, until).await
    }

    /// The state that an answer is from. What went wrong may be news, too.
    pub fn told_from(&self, answer: &Result<FragmentResponse, WireError>) -> LogIndex {
        answer.as_ref().map_or_else(|_| self.applied(), |answer| answer.position)
    }

    /// Waits until an answer from this state may be told.
    pub async fn tell(&self, phrase: &Phrase, cut: Option<CutId>, index: LogIndex) {
        self.transactions.cuts.withhold(&phrase.tables, index, cut).await;
    }

    /// The transactions that have something on the shard.
    pub async fn list(&self, shard: ShardId, deadline: Instant) -> Result<Vec<BranchStatus>, WireError> {
        loop {
            self.know(deadline).await?;
            self.tidy();
            let term = self.transactions.term();
            let mut statuses = self.transactions.statuses(shard);
            // To tell of a vote is to vote. Looked at afterwards: a cut that came meanwhile has seen it.
            if let Some(seen) = self.transactions.cuts.least_seen() {
                let state = self.transactions.look();
                let withheld = |status: &&mut BranchStatus| state.prepared_at(status.transaction) > seen;
                for status in statuses.iter_mut().filter(withheld) {
                    (status.prepared, status.parallel, status.forsaken) = (None, false, false);
                    status.votes.clear();
                }
            }
            // Of votes only a leader tells that is sure to lead: under another one they may be over.
            let has_votes = statuses.iter().any(|status| status.prepared.is_some());
            let consistency = if has_votes { Consistency::Strong } else { Consistency::Eventual };
            fence::check_served(&self.replica.snapshot(consistency, deadline).await?, self.to)?;
            if !has_votes {
                return Ok(statuses);
            }
            if self.transactions.are_of(term) && self.is_known() {
                return Ok(statuses);
            }
        }
    }

    /// Refuses if the shard isn't served here, as far as the replica is.
    pub async fn check_served(&self, deadline: Instant) -> Result<(), WireError> {
        fence::check_served(&self.replica.snapshot(Consistency::Eventual, deadline).await?, self.to)
    }

    /// The answer to a write. A shard that isn't served any more answers nobody, not even with what it had told before: whoever
    /// serves in its place knows that, too.
    pub async fn answer(&self, written: Written, deadline: Instant) -> Result<Written, WireError> {
        if written.repeated {
            let served = self.check_served(deadline).await;
            served.map_err(|error| if error.retry == Retry::Never { unknown() } else { error })?;
        }
        Ok(written)
    }

    /// Has a term begun: then what is prepared is known.
    pub async fn take_up(&self, deadline: Instant) -> Result<(), WireError> {
        let transactions = Arc::clone(&self.transactions);
        let run = move |stage: &Stage<'_>| transactions.enter(stage).map(|_| Bytes::new());
        let rehearsal = Rehearsal { overlay: Overlay::new(), bare: false, deadline, run: Box::new(run) };
        self.replica.rehearse(rehearsal).await.map(|_| ())
    }
}

/// Does something to its end, though nobody may wait for it any more.
async fn see_through(
    turn: Option<OwnedMutexGuard<()>>,
    deadline: Instant,
    ending: impl Future<Output = Result<Written, WireError>> + Send + 'static,
) -> Result<Written, WireError> {
    let seen_through = tokio::spawn(async move {
        let written = ending.await;
        drop(turn);
        written
    });
    match tokio::time::timeout_at(deadline.into(), seen_through).await {
        Ok(Ok(written)) => written,
        Ok(Err(_)) => Err(WireError::internal("a transaction's end was given up")),
        Err(_) => Err(unknown()),
    }
}

/// What is heard of an end that may have come, or may come yet.
fn unknown() -> WireError {
    let message = "the deadline passed before the outcome was known";
    WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
        .with_retry(Retry::Unknown)
        .with_hint("It may have been committed, or may still be.")
}

/// What a transaction hears whose commit was undone with its batch.
fn undone(why: &WireError) -> WireError {
    let message = "the transaction was aborted: its commit was undone with another's";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message)
        .with_detail(why.message.clone())
        .with_hint("Run the transaction again.")
}

/// A read that is done elsewhere. Dropped before it is done, it was never asked for.
pub(crate) struct Passage {
    transactions: Arc<Transactions>,
    handle: Arc<Handle>,
    statement: u32,
    is_done: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Passage {
    /// The read has been answered.
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.transactions.pass(&self.handle, self.statement, self.is_done);
    }
}

/// A write that is a transaction of its own. Dropped, it is rolled back.
struct Single<'a> {
    transactions: &'a Transactions,
    id: TransactionId,
    is_over: bool,
}

impl Drop for Single<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.transactions.look().end(self.id, None);
        }
    }
}

/// A name for what a request does, unlike any that a router gives, and another one each time.
fn own_id(request: RequestId, run: u64) -> TransactionId {
    let sequence = OWN | (request.sequence << 8 & (OWN - 1)) | (run & 0xff);
    TransactionId { router: request.router, sequence }
}

async fn turn(handle: &Handle, deadline: Instant) -> Result<OwnedMutexGuard<()>, WireError> {
    let turn = Arc::clone(&handle.turn).lock_owned();
    tokio::time::timeout_at(deadline.into(), turn).await.map_err(|_| stream::timed_out())
}

#[cfg(test)]
mod tests;
