//! A statement of a transaction: run, undone while another has what it needs, and run again.
//!
//! In come a statement and the branch that it is for; out comes what it gave, with every row that it touched locked. It
//! is rehearsed on the replica's writer above what its transaction has changed before. There, the rows and unique keys that
//! it has touched are computed and their locks claimed; if another transaction has one, the statement is undone, keeps
//! the locks that come before that one, waits its turn, and is run again on what is committed by then. As in PostgreSQL
//! it goes on with the rows that it had found, in their newest versions: what its second run does to others is undone.
//! If a row that it waited for may have another key by now, or if it has a LIMIT, it is run again as a whole, as if it had
//! come later. An `INSERT` that waited for a key, and came upon another's row then, keeps of its locks what it needs for that.
//!
//! What names no table in which its transaction has locked a row needn't see what that has changed: it is run on **bare
//! ground**, on what is committed, so it costs the same however much that is and whoever else writes. So is what only
//! inserts given rows; only if it fails there, or wants what its transaction has locked already, may that make a
//! difference, and it is run again above it. It must never know who else there is.

use crate::branch::{Answer, Claim, Handle, State, Transactions, leader_changed};
use crate::fence::Address;
use crate::locks::{AwaitedRow, Mode, Part, Party, Resource};
use crate::phrase::Phrase;
use crate::touched::{self, Shape, Want};
use crate::{read, stream, write};
use bytes::Bytes;
use dialect::sqlite::{error, value_ref};
use parking_lot::Mutex;
use proto::machine;
use proto::services::{FragmentRequest, LockWait, LockedRows, RowLock, cut_lost};
use proto::{Retry, RowBatchBuilder, SchemaVersion, SqlState, TableId, Term, Value, WireError};
use replica::{Rehearsal, Replica, RowOp, Stage};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often those who wait look whether they do so in vain.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often a statement is run again though nothing was in its way any more when it looked.
const SURPRISES: u32 = 3;

/// What a statement does.
pub(crate) enum Work {
    /// Changes rows.
    Write(Arc<write::Job>),
    /// Reads, for its transaction has written.
    Read {
        request: FragmentRequest,
        phrase: Arc<Phrase>,
        /// The most bytes that it may return.
        limit: usize,
    },
    /// Reads rows and locks them.
    Lock {
        request: FragmentRequest,
        phrase: Arc<Phrase>,
        limit: usize,
        /// Whose rows, in the order of the keys that the result's columns begin with.
        rows: Arc<[LockedRows]>,
        /// Ends when so many rows are locked.
        most: Option<u64>,
        /// Gives back first what the branch's statement before this one has locked.
        anew: bool,
    },
}

/// A statement under way. Dropped, it has never been: its locks are given back.
pub(crate) struct Attempt {
    transactions: Arc<Transactions>,
    handle: Arc<Handle>,
    party: Party,
    /// Whether it may still claim locks: a closure may be run, or run on, when nobody waits for it any more.
    is_live: Arc<AtomicBool>,
}

/// What a statement does that meets a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// It fails: whoever has the lock may be waiting for the end of its cut.
    None,
    /// It waits, perhaps so long at most.
    Until(Option<Duration>),
}

/// Why a statement was undone that is to be run again.
enum Met {
    /// Another has a lock that it needs.
    Locked(Waiting),
    /// Only as a whole can it be run again.
    Whole,
    /// It failed, or left something out, because of a key that is there; another may be about to free it.
    Doubt(Option<WireError>),
    /// There was a key that another was about to free, and now there is nobody.
    Surprise,
    /// What its own transaction has changed matters to it.
    Own,
}

/// A statement that waits for a lock.
struct Waiting {
    granted: oneshot::Receiver<Result<(), WireError>>,
    /// The rows that it has found, if those alone matter when it goes on.
    found: Option<HashSet<Key>>,
    /// The row that it waits for, if it is one.
    row: Option<AwaitedRow>,
}

impl Work {
    fn phrase(&self) -> &Phrase {
        match self {
            Work::Write(job) => &job.phrase,
            Work::Read { phrase, .. } | Work::Lock { phrase, .. } => phrase,
        }
    }

    /// Where it goes, and the version that it was planned by.
    fn planned(&self) -> (Address, SchemaVersion) {
        match self {
            Work::Write(job) => (job.to, job.schema_version),
            Work::Read { request, .. } | Work::Lock { request, .. } => {
                (Address::of(request), request.schema_version)
            }
        }
    }
}

/// A row's key, or those of the rows that a join's row is made of.
type Key = Box<[u8]>;

/// What a statement has come to before it is run again.
#[derive(Clone, Default)]
struct Past {
    /// The rows that its first run found: others that fit by now are none of its.
    found: Option<Arc<HashSet<Key>>>,
    /// It has to look at all rows again: one that it waited for may have another key by now.
    is_whole: bool,
    /// Rows that it waited for.
    waited: Vec<AwaitedRow>,
    /// Whether it has been run before.
    has_run: bool,
}

/// How a statement is run.
#[derive(Clone, Debug, PartialEq)]
enum Manner {
    /// On bare ground.
    Bare,
    /// As it is.
    Plain,
    /// As if the rows were gone that others are about to delete: the keys that it needs then are those that it would
    /// have to wait for. It is undone in any case.
    Without(Option<WireError>),
    /// As it is, and what it leaves out is rightly left out.
    Sure,
}

impl Attempt {
    /// A statement of a branch whose turn the caller has.
    pub fn new(transactions: &Arc<Transactions>, handle: &Arc<Handle>, statement: u32) -> Self {
        let party = Party { id: handle.id, begun: handle.begun, statement };
        let is_live = Arc::new(AtomicBool::new(true));
        Self { transactions: Arc::clone(transactions), handle: Arc::clone(handle), party, is_live }
    }

    /// Runs the statement to its end.
    pub async fn run(
        self,
        replica: &Replica,
        work: Arc<Work>,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let result = self.rehearse(replica, work, patience, deadline).await;
        self.is_live.store(false, Ordering::Relaxed);
        self.transactions.end_statement(&self.handle, self.party.statement, result)
    }

    async fn rehearse(
        &self,
        replica: &Replica,
        work: Arc<Work>,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let mut manner = match &*work {
            Work::Write(job) if job.is_plain_insert() && !self.handle.overlay.is_empty() => Manner::Bare,
            _ => Manner::Plain,
        };
        let is_apart = self.transactions.look().is_apart(self.party.id, work.phrase());
        let mut surprises = 0;
        let mut past = Past::default();
        loop {
            let met = Arc::new(Mutex::new(None));
            let step = Step {
                transactions: Arc::clone(&self.transactions),
                handle: Arc::clone(&self.handle),
                party: self.party,
                is_live: Arc::clone(&self.is_live),
                work: Arc::clone(&work),
                manner: manner.clone(),
                past: past.clone(),
            };
            past.has_run = true;
            let found = Arc::clone(&met);
            let run = move |stage: &Stage<'_>| match step.run(stage)? {
                Ok(output) => Ok(output),
                Err(why) => {
                    *found.lock() = Some(why);
                    Err(undone())
                }
            };
            if self.is_lost(replica) {
                return Err(leader_changed());
            }
            let (overlay, bare) = (self.handle.overlay.clone(), is_apart || manner == Manner::Bare);
            let rehearsal = Rehearsal { overlay, bare, deadline, run: Box::new(run) };
            let failure = match replica.rehearse(rehearsal).await {
                Ok(rehearsed) => return Ok(Answer { output: rehearsed.output, index: rehearsed.index }),
                Err(failure) => failure,
            };
            let why = met.lock().take();
            manner = match why {
                Some(why) if failure == undone() => match why {
                    Met::Locked(Waiting { granted, found, row }) => {
                        let lock_timeout = match patience {
                            Patience::None => return Err(cut_lost()),
                            Patience::Until(lock_timeout) => lock_timeout,
                        };
                        self.wait(replica, granted, lock_timeout, deadline).await?;
                        past.is_whole |= found.is_none();
                        match found {
                            Some(found) if !past.is_whole => {
                                past.found.get_or_insert(Arc::new(found));
                            }
                            _ => past.found = None,
                        }
                        past.waited.extend(row);
                        Manner::Plain
                    }
                    Met::Whole => {
                        (past.found, past.is_whole) = (None, true);
                        Manner::Plain
                    }
                    Met::Own => Manner::Plain,
                    Met::Doubt(failure) => Manner::Without(failure),
                    Met::Surprise => {
                        surprises += 1;
                        match manner {
                            Manner::Without(None) => Manner::Sure,
                            Manner::Without(Some(failure)) if surprises > SURPRISES => return Err(failure),
                            _ => Manner::Plain,
                        }
                    }
                },
                // What it has changed may not fit what others have committed since.
                _ if failure.retry == Retry::Never && self.is_lost(replica) => return Err(leader_changed()),
                _ => return Err(failure),
            };
        }
    }

    /// Whether another term has begun since the branch changed or locked something.
    fn is_lost(&self, replica: &Replica) -> bool {
        let term = replica.watch().borrow().term;
        replica.is_leader() && !self.transactions.look().is_open_in(self.party.id, term)
    }

    async fn wait(
        &self,
        replica: &Replica,
        granted: oneshot::Receiver<Result<(), WireError>>,
        lock_timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let lock_deadline =
            lock_timeout.map(|timeout| machine::now() + timeout).filter(|end| *end < deadline);
        let end = lock_deadline.unwrap_or(deadline);
        match wait(replica, &self.transactions, granted, end).await {
            Some(answer) => answer,
            None if lock_deadline.is_some() => Err(lock_timed_out()),
            None => Err(stream::timed_out()),
        }
    }
}

/// 55P03, as PostgreSQL words it for `lock_timeout`.
pub(crate) fn lock_timed_out() -> WireError {
    WireError::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout")
}

/// Waits for a lock until then. Whoever has it may be silent for too long; and who leads no more never hears.
pub(crate) async fn wait(
    replica: &Replica,
    transactions: &Transactions,
    mut granted: oneshot::Receiver<Result<(), WireError>>,
    end: Instant,
) -> Option<Result<(), WireError>> {
    let status = replica.watch();
    let begun_in = status.borrow().term;
    loop {
        let look = machine::now() + LOOK_EVERY;
        match tokio::time::timeout_at(look.min(end).into(), &mut granted).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(_)) => {
                return Some(Err(WireError::internal("somebody who waits for a lock was forgotten")));
            }
            Err(_) if machine::now() >= end => return None,
            Err(_) => {}
        }
        if let Err(error) = check_leads(replica, begun_in) {
            return Some(Err(error));
        }
        transactions.sweep();
    }
}

/// Refuses to wait on where this replica doesn't lead any more, or leads in another term: what is waited for is never heard.
pub(crate) fn check_leads(replica: &Replica, term: Term) -> Result<(), WireError> {
    let (now, leader) = (replica.watch().borrow().term, replica.watch().borrow().leader);
    if replica.is_leader() && now == term {
        return Ok(());
    }
    let message = "the shard's leader has changed while a transaction was waited for";
    Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::NotLeader(leader)))
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut state = self.transactions.look();
        if self.is_live.swap(false, Ordering::Relaxed) {
            state.abandon(&self.handle, self.party.statement);
        }
    }
}

/// What a statement hears that has waited for a row which is on another shard now.
fn moved() -> WireError {
    let message = "tuple to be locked was already moved to another partition due to concurrent update";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message)
        .with_retry(Retry::Moved)
        .with_hint("Run the transaction again.")
}

/// What a statement hears within, and nobody else: it is run again.
fn undone() -> WireError {
    WireError::new(SqlState::LOCK_NOT_AVAILABLE, "undone, to be run again").with_retry(Retry::Later)
}

/// A statement, as it is run once on the writer.
struct Step {
    transactions: Arc<Transactions>,
    handle: Arc<Handle>,
    party: Party,
    is_live: Arc<AtomicBool>,
    work: Arc<Work>,
    manner: Manner,
    past: Past,
}

impl Step {
    /// Gives what the statement's caller is told, or why it is to be run again.
    fn run(&self, stage: &Stage<'_>) -> Result<Result<Bytes, Met>, WireError> {
        // Whoever comes first in a term finds the locks of what is prepared.
        drop(self.enter(stage)?);
        let (to, version) = self.work.planned();
        self.transactions.fence.check(stage, to, version)?;
        self.let_go(stage)?;
        let ran = match &*self.work {
            Work::Write(job) => self.write(stage, job),
            Work::Read { request, limit, .. } => self.read(stage, request, *limit).map(Ok),
            Work::Lock { request, limit, rows, most, anew, .. } => {
                if *anew && !self.past.has_run {
                    self.enter(stage)?.undo(self.party.id, self.party.statement.saturating_sub(2));
                }
                self.lock(stage, request, (*limit, *most), rows)
            }
        };
        if matches!(ran, Ok(Ok(_))) && !matches!(&*self.work, Work::Read { .. }) {
            self.enter(stage)?.stands(&self.handle, self.party.statement)?;
        }
        ran
    }

    /// Gives back the locks of rows that it waited for and that are gone: a key without a row is nobody's. Fails if one may
    /// be on another shard.
    fn let_go(&self, stage: &Stage<'_>) -> Result<(), WireError> {
        let mut gone = Vec::new();
        for row in &self.past.waited {
            match self.shape(stage, row.table)?.exists(stage, &row.key)? {
                true => {}
                false if row.moves => return Err(moved()),
                false => gone.push(Resource { table: row.table, part: Part::Row(row.key.clone()) }),
            }
        }
        // An INSERT is about to have one under that key, and it is its turn.
        if !gone.is_empty() && !self.work.phrase().inserts {
            self.enter(stage)?.give_back(self.party, &gone);
        }
        Ok(())
    }

    fn enter<'a>(&'a self, stage: &Stage<'_>) -> Result<parking_lot::MutexGuard<'a, State>, WireError> {
        let mut state = self.transactions.enter(stage)?;
        if !self.is_live.load(Ordering::Relaxed) {
            return Err(WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request"));
        }
        state.bind(&self.handle)?;
        Ok(state)
    }

    fn claim(&self, stage: &Stage<'_>, mut wants: Vec<Want>, no_wait: bool) -> Result<Claim, WireError> {
        if wants.is_empty() {
            return Ok(Claim::Held);
        }
        touched::sort(&mut wants);
        let mut state = self.enter(stage)?;
        self.transactions.claim(&mut state, self.party, &wants, no_wait)
    }

    fn write(&self, stage: &Stage<'_>, job: &write::Job) -> Result<Result<Bytes, Met>, WireError> {
        let table = job.phrase.written;
        // The rows of others that are gone, as far as this run goes.
        let mut gone = HashSet::new();
        if matches!(self.manner, Manner::Without(_))
            && let Some(table) = table
        {
            gone.extend(self.enter(stage)?.locks.freed_by_others(table, self.party.id));
            let shape = self.shape(stage, table)?;
            for key in &gone {
                shape.delete(stage, key)?;
            }
        }
        let doubtful = |step: &Self| -> Result<bool, WireError> {
            let Some(table) = table else { return Ok(false) };
            Ok(step.manner == Manner::Plain
                && !step.enter(stage)?.locks.freed_by_others(table, step.party.id).is_empty())
        };
        let mut ran = match write::run(stage, job, self.past.found.as_deref()) {
            Ok(ran) => ran,
            Err(failure) => {
                return match &self.manner {
                    Manner::Bare => Ok(Err(Met::Own)),
                    Manner::Without(Some(first)) => Err(first.clone()),
                    Manner::Without(None) => Ok(Err(Met::Surprise)),
                    _ if failure.sqlstate == SqlState::UNIQUE_VIOLATION && doubtful(self)? => {
                        Ok(Err(Met::Doubt(Some(failure))))
                    }
                    _ => Err(failure),
                };
            }
        };
        let left_out = job.phrase.may_do_nothing
            && job
                .rows
                .as_ref()
                .is_none_or(|rows| ran.affected < u64::try_from(rows.len()).unwrap_or(u64::MAX));
        if left_out && doubtful(self)? {
            return Ok(Err(Met::Doubt(None)));
        }
        if let Some(only) = self.past.found.as_deref().filter(|_| gone.is_empty()) {
            match self.confine(stage, only)? {
                Some(affected) => ran.affected = affected,
                None => return Ok(Err(Met::Whole)),
            }
        }
        let mut wants = self.wants(stage, table, &gone)?;
        if job.phrase.spares
            && let Some(table) = table
        {
            wants.extend(write::spared(stage, table)?);
        }
        if job.moves {
            let deleted = wants.iter().filter_map(|want| match &want.resource.part {
                Part::Keys(key) => Some((want.resource.table, Part::Moved(key.clone()))),
                _ => None,
            });
            let moved: Vec<_> = deleted
                .map(|(table, part)| Want {
                    resource: Resource { table, part },
                    mode: Mode::Row(RowLock::Update),
                })
                .collect();
            wants.extend(moved);
        }
        if self.manner == Manner::Bare {
            let state = self.enter(stage)?;
            if wants.iter().any(|want| state.locks.has(self.party.id, &want.resource)) {
                return Ok(Err(Met::Own));
            }
        }
        if self.past.has_run && job.phrase.inserts && !matches!(self.manner, Manner::Without(_)) {
            // It has waited for keys as if it were to add their rows, and may have found the rows of others since.
            self.enter(stage)?.confine(self.party, &wants);
        }
        match (self.claim(stage, wants, false)?, &self.manner) {
            (Claim::Waits(granted), _) => {
                let found = self.found(stage, job, &ran)?;
                Ok(Err(Met::Locked(self.waiting(stage, granted, found)?)))
            }
            (Claim::Held, Manner::Without(_)) => Ok(Err(Met::Surprise)),
            (Claim::Held, _) => Ok(Ok(ran.output())),
        }
    }

    fn waiting(
        &self,
        stage: &Stage<'_>,
        granted: oneshot::Receiver<Result<(), WireError>>,
        found: Option<HashSet<Key>>,
    ) -> Result<Waiting, WireError> {
        let row = self.enter(stage)?.locks.awaited_row(self.party.id);
        // A row that gets another key goes on under that, and isn't among those that were found.
        let found = found.filter(|_| row.as_ref().is_some_and(|row| row.stays));
        Ok(Waiting { granted, found, row })
    }

    /// The rows that a statement has found which changes rows that are there. None if it gives them other keys, or if it
    /// isn't known which of them it returns.
    fn found(
        &self,
        stage: &Stage<'_>,
        job: &write::Job,
        ran: &write::Ran,
    ) -> Result<Option<HashSet<Key>>, WireError> {
        let is_known = ran.returned.columns() == 0 || job.touch > 0;
        if job.rows.is_some() || self.manner != Manner::Plain || self.past.is_whole || !is_known {
            return Ok(None);
        }
        let mut found = HashSet::new();
        for change in replica::changes(&stage.changes()?)? {
            if change.op == RowOp::Insert {
                return Ok(None);
            }
            found.insert(self.shape(stage, named(&change.table)?)?.key_of(&change)?);
        }
        found.extend(self.updated(stage)?.into_iter().map(|(_, key)| key));
        Ok(Some(found))
    }

    /// The rows that were updated and are still there, changed or not.
    fn updated(&self, stage: &Stage<'_>) -> Result<Vec<(TableId, Key)>, WireError> {
        let mut keys = Vec::new();
        for (updated, rowids) in stage.updated() {
            let id = named(&updated)?;
            let shape = self.shape(stage, id)?;
            for rowid in rowids {
                keys.extend(shape.key_at(stage, rowid)?.map(|key| (id, key)));
            }
        }
        Ok(keys)
    }

    /// Undoes what a statement that is run again has done to rows that its first run hadn't found. Gives how many rows are
    /// left, or nothing if it can't be told which those are.
    fn confine(&self, stage: &Stage<'_>, only: &HashSet<Key>) -> Result<Option<u64>, WireError> {
        let mut kept = HashSet::new();
        let mut others = Vec::new();
        for change in replica::changes(&stage.changes()?)? {
            if change.op == RowOp::Insert {
                return Ok(None);
            }
            let shape = self.shape(stage, named(&change.table)?)?;
            let key = shape.key_of(&change)?;
            if only.contains(&key) {
                kept.insert(key);
            } else {
                others.push((shape, change));
            }
        }
        kept.extend(self.updated(stage)?.into_iter().map(|(_, key)| key).filter(|key| only.contains(key)));
        for (shape, change) in others {
            shape.undo(stage, &change)?;
        }
        Ok(Some(kept.len() as u64))
    }

    /// The locks of what a write has changed, and of what it came upon and left as it was.
    fn wants(
        &self,
        stage: &Stage<'_>,
        table: Option<TableId>,
        gone: &HashSet<Box<[u8]>>,
    ) -> Result<Vec<Want>, WireError> {
        let mut wants = Vec::new();
        let changes = replica::changes(&stage.changes()?)?;
        for change in &changes {
            let shape = self.shape(stage, named(&change.table)?)?;
            // What is gone only as far as this run goes isn't what the statement has changed.
            if change.op == RowOp::Delete && !gone.is_empty() && gone.contains(&shape.key_of(change)?) {
                continue;
            }
            shape.wants(stage, change, &mut wants)?;
        }
        // Each of them was updated: if no more were, that's all.
        if gone.is_empty()
            && changes.iter().all(|change| change.op == RowOp::Update)
            && changes.len() == stage.count_updated()
        {
            return Ok(wants);
        }
        let only = self.past.found.as_deref().filter(|_| gone.is_empty());
        for (id, key) in self.updated(stage)? {
            // What was undone was updated once more by that.
            if only.is_none_or(|only| only.contains(&key)) {
                wants.push(Want::row(id, key, RowLock::NoKeyUpdate));
            }
        }
        if let Some(table) = table.filter(|_| !gone.is_empty()) {
            // A row that came back as it was isn't among the changes.
            let shape = self.shape(stage, table)?;
            for key in gone {
                if shape.exists(stage, key)? {
                    wants.push(Want::row(table, key.clone(), RowLock::Update));
                }
            }
        }
        Ok(wants)
    }

    fn shape(&self, stage: &Stage<'_>, table: TableId) -> Result<Arc<Shape>, WireError> {
        self.enter(stage)?.shapes.get(stage, stage.schema_age(), table)
    }

    fn read(&self, stage: &Stage<'_>, request: &FragmentRequest, limit: usize) -> Result<Bytes, WireError> {
        let mut statement = read::prepare(stage, request)?;
        let columns = statement.column_count();
        let mut batch = RowBatchBuilder::new(columns as u16);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(error)? {
            read::push(row, columns, &mut batch)?;
            bounded(batch.byte_len(), limit)?;
        }
        Ok(write::encode(0, &batch.finish()))
    }

    fn lock(
        &self,
        stage: &Stage<'_>,
        request: &FragmentRequest,
        (limit, most): (usize, Option<u64>),
        tables: &[LockedRows],
    ) -> Result<Result<Bytes, Met>, WireError> {
        let mut statement = read::prepare(stage, request)?;
        let columns = statement.column_count();
        let width: usize = tables.iter().map(|table| usize::from(table.key)).sum();
        let returned =
            columns.checked_sub(width).filter(|_| width > 0).and_then(|left| u16::try_from(left).ok());
        let returned = returned
            .ok_or_else(|| WireError::internal("a fragment returns fewer columns than its key has"))?;
        let mut batch = RowBatchBuilder::new(returned);
        let (mut waits, mut no_waits) = (Vec::new(), Vec::new());
        let mut found = (most.is_none() && !self.past.is_whole).then(HashSet::new);
        let mut key_bytes = 0;
        let mut locked = 0;
        let mut rows = statement.raw_query();
        'rows: while most.is_none_or(|most| locked < most)
            && let Some(row) = rows.next().map_err(error)?
        {
            let mut keys = Vec::with_capacity(width);
            for column in 0..width {
                keys.push(value_ref(row.get_ref(column).map_err(error)?)?);
            }
            if found.is_some() || self.past.found.is_some() {
                let all = touched::encode(keys.iter().copied());
                if self.past.found.as_ref().is_some_and(|found| !found.contains(&all)) {
                    continue;
                }
                key_bytes += all.len();
                found.iter_mut().for_each(|found| {
                    found.insert(all.clone());
                });
            }
            let mut keys = keys.as_slice();
            for table in tables {
                let (key, rest) = keys.split_at(usize::from(table.key));
                keys = rest;
                let want = Want::row(table.table, touched::encode(key.iter().copied()), table.mode);
                match table.wait {
                    LockWait::SkipLocked => {
                        let mut state = self.enter(stage)?;
                        if !self.has(&mut state, &want)? {
                            continue 'rows;
                        }
                    }
                    LockWait::NoWait => no_waits.push(want),
                    LockWait::Wait => waits.push(want),
                }
            }
            key_bytes += width * size_of::<Value>();
            locked += 1;
            if returned == 0 {
                batch.push_row([]);
            }
            for column in width..columns {
                batch.push(value_ref(row.get_ref(column).map_err(error)?)?);
            }
            bounded(batch.byte_len() + key_bytes, limit)?;
        }
        drop(rows);
        drop(statement);
        self.claim(stage, no_waits, true)?;
        match self.claim(stage, waits, false)? {
            Claim::Waits(granted) => Ok(Err(Met::Locked(self.waiting(stage, granted, found)?))),
            Claim::Held => Ok(Ok(write::encode(0, &batch.finish()))),
        }
    }

    /// Takes a row's lock if it is free.
    fn has(&self, state: &mut State, want: &Want) -> Result<bool, WireError> {
        if state.locks.is_blocked(self.party.id, &want.resource, want.mode) {
            return Ok(false);
        }
        match self.transactions.claim(state, self.party, std::slice::from_ref(want), true) {
            Ok(_) => Ok(true),
            // Its table is being altered.
            Err(error) if error.sqlstate == SqlState::LOCK_NOT_AVAILABLE => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A table, by its physical name.
fn named(table: &str) -> Result<TableId, WireError> {
    let id = table.strip_prefix('t').and_then(|id| id.parse().ok()).map(TableId);
    id.ok_or_else(|| WireError::internal(format!("a statement changes {table}, which is no table")))
}

fn bounded(bytes: usize, limit: usize) -> Result<(), WireError> {
    if bytes <= limit {
        return Ok(());
    }
    let message =
        format!("a query that locks rows, or follows a write, gives more than {limit} bytes of rows");
    Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .with_hint("Read fewer rows at once, or read them before the transaction writes."))
}
