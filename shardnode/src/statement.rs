//! A statement of a transaction: run, undone while another has what it needs, and run again.
//!
//! In come a statement and the branch that it is for; out comes what it gave, with every row that it touched locked. It
//! is rehearsed on the replica's writer above what its transaction has changed before. There, the rows and unique keys that
//! it has touched are computed and their locks claimed; if another transaction has one, the statement is undone, keeps
//! the locks that come before that one, waits its turn, and is run again as a whole on what is committed by then.
//! (PostgreSQL runs such a statement on with the rows that it had found, in their newest version; running it anew is the
//! same as if it had come later, which READ COMMITTED allows at any time.)
//!
//! What only inserts given rows needn't see what its transaction has changed: it is run on **bare ground**, on what is
//! committed, so it costs the same however much that is and whoever else writes. Only if it fails there, or wants what its
//! transaction has locked already, may that make a difference, and it is run again above it. It must never know who else
//! there is.

use crate::branch::{Answer, Claim, Handle, State, Transactions, leader_changed};
use crate::locks::Party;
use crate::touched::{self, Shape, Want};
use crate::{fence, read, stream, write};
use bytes::Bytes;
use dialect::sqlite::{error, value_ref};
use parking_lot::Mutex;
use proto::machine;
use proto::services::{FragmentRequest, LockWait, RowLock};
use proto::{Retry, RowBatchBuilder, SqlState, TableId, WireError};
use replica::{Rehearsal, Replica, RowOp, Stage};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often those who wait look whether they do so in vain.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often a statement is run again though nothing was in its way any more when it looked.
const SURPRISES: u32 = 3;

/// What a statement does.
pub(crate) enum Work {
    /// Changes rows.
    Write(Arc<write::Job>),
    /// Reads, for its transaction has written.
    Read {
        request: FragmentRequest,
        /// The most bytes that it may return.
        limit: usize,
    },
    /// Reads rows and locks them.
    Lock {
        request: FragmentRequest,
        limit: usize,
        table: TableId,
        /// How many columns of the result are the row's key.
        key: u16,
        mode: RowLock,
        wait: LockWait,
        /// Ends when so many rows are locked.
        rows: Option<u64>,
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

/// Why a statement was undone that is to be run again.
enum Met {
    /// Another has a lock that it needs.
    Locked(oneshot::Receiver<Result<(), WireError>>),
    /// It failed, or left something out, because of a key that is there; another may be about to free it.
    Doubt(Option<WireError>),
    /// There was a key that another was about to free, and now there is nobody.
    Surprise,
    /// What its own transaction has changed matters to it.
    Own,
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
        lock_timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let result = self.rehearse(replica, work, lock_timeout, deadline).await;
        self.is_live.store(false, Ordering::Relaxed);
        self.transactions.end_statement(&self.handle, self.party.statement, result)
    }

    async fn rehearse(
        &self,
        replica: &Replica,
        work: Arc<Work>,
        lock_timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<Answer, WireError> {
        let mut manner = match &*work {
            Work::Write(job) if job.is_plain_insert() && !self.handle.overlay.is_empty() => Manner::Bare,
            _ => Manner::Plain,
        };
        let mut surprises = 0;
        loop {
            let met = Arc::new(Mutex::new(None));
            let step = Step {
                transactions: Arc::clone(&self.transactions),
                handle: Arc::clone(&self.handle),
                party: self.party,
                is_live: Arc::clone(&self.is_live),
                work: Arc::clone(&work),
                manner: manner.clone(),
            };
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
            let (overlay, bare) = (self.handle.overlay.clone(), manner == Manner::Bare);
            let rehearsal = Rehearsal { overlay, bare, deadline, run: Box::new(run) };
            let failure = match replica.rehearse(rehearsal).await {
                Ok(rehearsed) => return Ok(Answer { output: rehearsed.output, index: rehearsed.index }),
                Err(failure) => failure,
            };
            let why = met.lock().take();
            manner = match why {
                Some(why) if failure == undone() => match why {
                    Met::Locked(granted) => {
                        self.wait(replica, granted, lock_timeout, deadline).await?;
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
            None if lock_deadline.is_some() => {
                let message = "canceling statement due to lock timeout";
                Err(WireError::new(SqlState::LOCK_NOT_AVAILABLE, message))
            }
            None => Err(stream::timed_out()),
        }
    }
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
        let (term, leader) = (status.borrow().term, status.borrow().leader);
        if !replica.is_leader() || term != begun_in {
            let message = "the shard's leader has changed while a lock was waited for";
            let error = WireError::new(SqlState::CANNOT_CONNECT_NOW, message);
            return Some(Err(error.with_retry(Retry::NotLeader(leader))));
        }
        transactions.sweep();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut state = self.transactions.look();
        if self.is_live.swap(false, Ordering::Relaxed) {
            state.abandon(&self.handle, self.party.statement);
        }
    }
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
}

impl Step {
    /// Gives what the statement's caller is told, or why it is to be run again.
    fn run(&self, stage: &Stage<'_>) -> Result<Result<Bytes, Met>, WireError> {
        // Whoever comes first in a term finds the locks of what is prepared.
        drop(self.enter(stage)?);
        match &*self.work {
            Work::Write(job) => self.write(stage, job),
            Work::Read { request, limit } => read_rows(stage, request, *limit).map(Ok),
            Work::Lock { request, limit, table, key, mode, wait, rows } => {
                self.lock(stage, request, (*limit, *rows), usize::from(*key), (*table, *mode, *wait))
            }
        }
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
        let table = job.table();
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
        let ran = match write::run(stage, job) {
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
        let left_out = job.may_do_nothing()
            && job
                .rows
                .as_ref()
                .is_none_or(|rows| ran.affected < u64::try_from(rows.len()).unwrap_or(u64::MAX));
        if left_out && doubtful(self)? {
            return Ok(Err(Met::Doubt(None)));
        }
        let wants = self.wants(stage, table, &gone)?;
        if self.manner == Manner::Bare {
            let state = self.enter(stage)?;
            if wants.iter().any(|want| state.locks.has(self.party.id, &want.resource)) {
                return Ok(Err(Met::Own));
            }
        }
        match (self.claim(stage, wants, false)?, &self.manner) {
            (Claim::Waits(granted), _) => Ok(Err(Met::Locked(granted))),
            (Claim::Held, Manner::Without(_)) => Ok(Err(Met::Surprise)),
            (Claim::Held, _) => Ok(Ok(ran.output)),
        }
    }

    /// The locks of what a write has changed, and of what it came upon and left as it was.
    fn wants(
        &self,
        stage: &Stage<'_>,
        table: Option<TableId>,
        gone: &HashSet<Box<[u8]>>,
    ) -> Result<Vec<Want>, WireError> {
        let mut wants = Vec::new();
        for change in replica::changes(&stage.changes()?)? {
            let shape = self.shape(stage, named(&change.table)?)?;
            // What is gone only as far as this run goes isn't what the statement has changed.
            if change.op == RowOp::Delete && !gone.is_empty() && gone.contains(&shape.key_of(&change)?) {
                continue;
            }
            shape.wants(stage, &change, &mut wants)?;
        }
        for (updated, rowids) in stage.updated() {
            let id = named(&updated)?;
            let shape = self.shape(stage, id)?;
            for rowid in rowids {
                let key = shape.key_at(stage, rowid)?;
                wants.extend(key.map(|key| Want::row(id, key, RowLock::NoKeyUpdate)));
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
        self.enter(stage)?.shapes.get(stage, table)
    }

    fn lock(
        &self,
        stage: &Stage<'_>,
        request: &FragmentRequest,
        (limit, most): (usize, Option<u64>),
        width: usize,
        (table, mode, wait): (TableId, RowLock, LockWait),
    ) -> Result<Result<Bytes, Met>, WireError> {
        fence::check(stage, request.schema_version)?;
        let mut statement = read::prepare(stage, request)?;
        let columns = statement.column_count();
        let returned =
            columns.checked_sub(width).filter(|_| width > 0).and_then(|left| u16::try_from(left).ok());
        let returned = returned
            .ok_or_else(|| WireError::internal("a fragment returns fewer columns than its key has"))?;
        let mut batch = RowBatchBuilder::new(returned);
        let mut wants = Vec::new();
        let mut key_bytes = 0;
        let mut locked = 0;
        let mut rows = statement.raw_query();
        while most.is_none_or(|most| locked < most)
            && let Some(row) = rows.next().map_err(error)?
        {
            let mut key = Vec::with_capacity(width);
            for column in 0..width {
                key.push(value_ref(row.get_ref(column).map_err(error)?)?);
            }
            let key = touched::encode(key);
            key_bytes += key.len();
            let want = Want::row(table, key, mode);
            if wait == LockWait::SkipLocked {
                let mut state = self.enter(stage)?;
                if !self.has(&mut state, &want)? {
                    continue;
                }
            } else {
                wants.push(want);
            }
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
        match self.claim(stage, wants, wait == LockWait::NoWait)? {
            Claim::Waits(granted) => Ok(Err(Met::Locked(granted))),
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

fn read_rows(stage: &Stage<'_>, request: &FragmentRequest, limit: usize) -> Result<Bytes, WireError> {
    fence::check(stage, request.schema_version)?;
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

fn bounded(bytes: usize, limit: usize) -> Result<(), WireError> {
    if bytes <= limit {
        return Ok(());
    }
    let message =
        format!("a query that locks rows, or follows a write, gives more than {limit} bytes of rows");
    Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .with_hint("Read fewer rows at once, or read them before the transaction writes."))
}
