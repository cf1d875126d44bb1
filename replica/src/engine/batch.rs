//! A leader's batch: transactions that run in savepoints of one SQLite transaction, and become one log entry.

use super::{Engine, OpenBatch};
use crate::connection::Cancel;
use crate::entry::{Batch, Body, Entry, Request, Transaction};
use crate::error::ReplicaError;
use crate::fault;
use crate::stage::{Did, Stage};
use crate::write::WriteFn;
use bytes::Bytes;
use prost::Message as _;
use proto::{LogIndex, SqlState, Term, WireError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// What a request takes in a log entry beside its output, roughly.
const REQUEST_BYTES: usize = 32;

/// What a write of a batch did, to be told once the batch is committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ran {
    /// What the closure gave, or the first run of this name.
    pub output: Bytes,
    /// Whether an earlier request of this name was found.
    pub repeated: bool,
}

/// What came of running a write.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ran, or failed alone.
    Done(Result<Ran, WireError>),
    /// It failed, and SQLite has undone the whole batch with it: nothing of it has happened, and none is open.
    Undone(WireError),
}

impl Engine {
    /// Opens a batch in this term.
    pub fn begin(&mut self, term: u64) -> Result<(), ReplicaError> {
        debug_assert!(self.batch.is_none(), "one batch at a time");
        self.lift()?;
        self.follow(false)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        self.connection.begin_capture();
        self.batch = Some(OpenBatch { term, ..OpenBatch::default() });
        Ok(())
    }

    /// Runs a write in the open batch.
    ///
    /// Nothing may be told of it, not even its error (it may be due to an earlier write of the batch), before the batch
    /// is committed or leadership is confirmed.
    pub fn run(
        &mut self,
        request: Option<Request>,
        run: WriteFn,
        cancel: &Cancel,
    ) -> Result<Outcome, ReplicaError> {
        if let Some(request) = request {
            match self.remembered(&request)? {
                Ok(None) => {}
                Ok(Some(output)) => return Ok(Outcome::Done(Ok(Ran { output, repeated: true }))),
                Err(refused) => return Ok(Outcome::Done(Err(refused))),
            }
        }
        let captured = self.captured();
        self.execute("/*replica*/ SAVEPOINT replica_write")?;
        let term = self.batch.as_ref().map_or(0, |batch| batch.term);
        let outcome = self.stage(term, run, cancel)?;
        if self.connection.is_autocommit() {
            // It does so when a statement is interrupted, or finds no memory.
            let error = outcome.err().unwrap_or_else(|| WireError::internal("SQLite undid the transaction"));
            self.abandon();
            return Ok(Outcome::Undone(error));
        }
        let result = match outcome {
            Ok(did) => self.accept(request, self.captured() - captured, did)?,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.execute("/*replica*/ ROLLBACK TO replica_write")?;
        }
        self.execute("/*replica*/ RELEASE replica_write")?;
        Ok(Outcome::Done(result))
    }

    /// Runs a caller's closure on the connection, so that it can do nothing but read and change rows.
    pub(super) fn stage(
        &mut self,
        term: u64,
        run: WriteFn,
        cancel: &Cancel,
    ) -> Result<Result<Did, WireError>, ReplicaError> {
        self.hooks.guarded.store(true, Ordering::Relaxed);
        *self.hooks.running.lock() = Some(cancel.clone());
        let capture = if self.batch.is_some() { None } else { self.connection.capture() };
        self.hooks.updates.want(capture.is_some());
        let when = (Term(term), LogIndex(self.applied));
        let stage = Stage::new(&self.connection, when, &self.hooks, &mut self.shapes, capture);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&stage)))
            .unwrap_or_else(|_| Err(WireError::internal("a write panicked")));
        let failed = outcome.is_err();
        let done = stage.end(outcome);
        *self.hooks.running.lock() = None;
        self.hooks.guarded.store(false, Ordering::Relaxed);
        self.hooks.updates.want(false);
        // Asked before anything else: what this machine did to the write isn't for its caller to hear.
        if failed && let Some(fault) = fault::met(&self.connection) {
            return Err(self.stop(fault));
        }
        done.map_err(|fault| self.stop(fault))
    }

    /// How much the batch has changed, in bytes. It only grows.
    fn captured(&self) -> usize {
        self.connection.capture().map_or(0, |capture| capture.size())
    }

    fn accept(
        &mut self,
        request: Option<Request>,
        captured: usize,
        Did { output, told }: Did,
    ) -> Result<Result<Ran, WireError>, ReplicaError> {
        let told_bytes: usize = told.iter().map(|(_, output)| REQUEST_BYTES + output.len()).sum();
        let bytes = captured + output.len() + told_bytes;
        if let Err(error) = self.check_size(bytes) {
            return Ok(Err(error));
        }
        if let Some(request) = request {
            self.answer(request, output.clone())?;
        }
        for (request, output) in told {
            // Who has an answer keeps it, and what is forgotten stays so.
            if let Ok(None) = self.remembered(&request)? {
                self.answer(request, output)?;
            }
        }
        self.batch().bytes += bytes;
        Ok(Ok(Ran { output, repeated: false }))
    }

    /// Has the open batch answer a request that has no answer yet.
    fn answer(&mut self, request: Request, output: Bytes) -> Result<(), ReplicaError> {
        self.remember(&request, &output)?;
        self.batch().requests.push((request, output));
        Ok(())
    }

    fn batch(&mut self) -> &mut OpenBatch {
        self.batch.as_mut().expect("a write runs in an open batch")
    }

    /// Refuses a transaction of so many bytes, if it is too big.
    pub(super) fn check_size(&self, bytes: usize) -> Result<(), WireError> {
        let limit = self.limits.transaction_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "transaction is too big")
            .with_detail(format!("It changes {bytes} bytes; at most {limit} fit into one log entry."))
            .with_hint("Split it into smaller transactions."))
    }

    /// Whether the open batch takes no further write.
    pub fn is_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.bytes >= self.limits.batch_bytes)
    }

    /// The open batch as a log entry; `None` if nothing in it needs one. Its transaction stays open.
    ///
    /// What its writes changed is one changeset.
    pub fn seal(&mut self, floor: u64) -> Result<Option<Bytes>, ReplicaError> {
        let Some(capture) = self.connection.capture() else { return Ok(None) };
        let mut changeset = capture.changeset().map_err(|e| self.stop(e))?;
        self.connection.end_capture();
        let Some(batch) = self.batch.as_mut() else { return Ok(None) };
        batch.floor = floor;
        let forgets = std::mem::take(&mut batch.forgets);
        let mut transactions = Vec::with_capacity(batch.requests.len().max(1));
        for (request, output) in std::mem::take(&mut batch.requests) {
            let changeset = std::mem::take(&mut changeset);
            transactions.push(Transaction { changeset, request: Some(request), output });
        }
        if !changeset.is_empty() {
            transactions.push(Transaction { changeset, request: None, output: Bytes::new() });
        }
        if transactions.is_empty() {
            return Ok(None);
        }
        Ok(Some(Entry::new(floor, Body::Batch(Batch { transactions, forgets })).encode_to_vec().into()))
    }

    /// Commits the open batch: Raft has committed its entry at `index`.
    pub fn commit(&mut self, index: u64) -> Result<(), ReplicaError> {
        let floor = self.batch.as_ref().expect("only an open batch is committed").floor;
        self.write_applied(index, floor)?;
        self.execute("/*replica*/ COMMIT")?;
        self.batch = None;
        self.is_applied(index, floor);
        Ok(())
    }

    /// Undoes the open batch or the resident overlay, if there is one.
    pub fn rollback(&mut self) -> Result<(), ReplicaError> {
        self.lift()?;
        if self.batch.is_some() {
            self.abandon();
            self.execute("/*replica*/ ROLLBACK")?;
        }
        Ok(())
    }

    /// Forgets the batch, whose transaction is undone.
    fn abandon(&mut self) {
        self.connection.end_capture();
        self.batch = None;
        self.doubt_marks();
    }
}
