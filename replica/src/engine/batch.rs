//! A leader's batch: transactions that run in savepoints of one SQLite transaction, and become one log entry.

use super::{Engine, OpenBatch};
use crate::connection::Cancel;
use crate::entry::{Batch, Body, Entry, Request, Transaction};
use crate::error::ReplicaError;
use crate::fault;
use crate::session::Session;
use crate::write::WriteFn;
use bytes::Bytes;
use prost::Message as _;
use proto::{SqlState, WireError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// What a write of a batch did, to be told once the batch is committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ran {
    /// What the closure gave, or the first run of this name.
    pub output: Bytes,
    /// Whether an earlier request of this name was found.
    pub repeated: bool,
}

impl Engine {
    /// Opens a batch.
    pub fn begin(&mut self) -> Result<(), ReplicaError> {
        debug_assert!(self.batch.is_none(), "one batch at a time");
        self.follow(false)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        self.batch = Some(OpenBatch::default());
        Ok(())
    }

    /// Runs a write in the open batch. The inner result is the write's own: its error undid this write alone.
    ///
    /// Nothing may be told of it, not even the error (it may be due to an earlier write of the batch), before the batch
    /// is committed or leadership is confirmed.
    pub fn run(
        &mut self,
        request: Option<Request>,
        run: WriteFn,
        cancel: &Cancel,
    ) -> Result<Result<Ran, WireError>, ReplicaError> {
        if let Some(request) = request {
            match self.remembered(&request)? {
                Ok(None) => {}
                Ok(Some(output)) => return Ok(Ok(Ran { output, repeated: true })),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        self.execute("/*replica*/ SAVEPOINT replica_write")?;
        let (outcome, changeset) = {
            let session = Session::new(&self.connection).map_err(|e| self.stop(e))?;
            self.hooks.guarded.store(true, Ordering::Relaxed);
            *self.hooks.running.lock() = Some(cancel.clone());
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&self.connection)))
                .unwrap_or_else(|_| Err(WireError::internal("a write panicked")));
            *self.hooks.running.lock() = None;
            self.hooks.guarded.store(false, Ordering::Relaxed);
            // Asked before anything else: what this machine did to the write isn't for its caller to hear.
            if outcome.is_err()
                && let Some(fault) = fault::met(&self.connection)
            {
                return Err(self.stop(fault));
            }
            let changeset = match &outcome {
                Ok(_) => session.changeset(),
                Err(_) => Ok(Bytes::new()),
            };
            (outcome, changeset)
        };
        if self.connection.is_autocommit() {
            let error = outcome.err().unwrap_or_else(|| WireError::internal("SQLite undid the transaction"));
            self.redo()?;
            return Ok(Err(error));
        }
        let result = match (outcome, changeset) {
            (Ok(output), Ok(changeset)) => self.accept(request, changeset, output)?,
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) if fault::is_local(&error) => return Err(self.stop(error)),
            (Ok(_), Err(error)) => Err(dialect::sqlite::error(error)),
        };
        if result.is_err() {
            self.execute("/*replica*/ ROLLBACK TO replica_write")?;
        }
        self.execute("/*replica*/ RELEASE replica_write")?;
        Ok(result)
    }

    /// SQLite undoes a whole transaction when a statement of it is interrupted or finds no memory. What the batch had
    /// before is made again from its changesets.
    fn redo(&mut self) -> Result<(), ReplicaError> {
        self.follow(true)?;
        self.execute("/*replica*/ BEGIN IMMEDIATE")?;
        let transactions =
            std::mem::take(&mut self.batch.as_mut().expect("a write runs in an open batch").transactions);
        for transaction in &transactions {
            self.apply_transaction(transaction)?;
        }
        self.batch.as_mut().expect("a write runs in an open batch").transactions = transactions;
        self.follow(false)
    }

    fn accept(
        &mut self,
        request: Option<Request>,
        changeset: Bytes,
        output: Bytes,
    ) -> Result<Result<Ran, WireError>, ReplicaError> {
        let bytes = changeset.len() + output.len();
        if bytes > self.limits.transaction_bytes {
            let limit = self.limits.transaction_bytes;
            let error = WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "transaction is too big")
                .with_detail(format!("It changes {bytes} bytes; at most {limit} fit into one log entry."))
                .with_hint("Split it into smaller transactions.");
            return Ok(Err(error));
        }
        if let Some(request) = &request {
            self.remember(request, &output)?;
        }
        if request.is_some() || !changeset.is_empty() {
            let batch = self.batch.as_mut().expect("a write runs in an open batch");
            batch.bytes += bytes;
            let remembered = if request.is_some() { output.clone() } else { Bytes::new() };
            batch.transactions.push(Transaction { changeset, request, output: remembered });
        }
        Ok(Ok(Ran { output, repeated: false }))
    }

    /// Whether the open batch takes no further write.
    pub fn is_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.bytes >= self.limits.batch_bytes)
    }

    /// The open batch as a log entry; `None` if nothing in it needs one. Its transaction stays open.
    pub fn seal(&mut self, floor: u64) -> Option<Bytes> {
        let batch = self.batch.as_mut()?;
        let transactions = std::mem::take(&mut batch.transactions);
        batch.floor = floor;
        let forgets = std::mem::take(&mut batch.forgets);
        (!transactions.is_empty())
            .then(|| Entry::new(floor, Body::Batch(Batch { transactions, forgets })).encode_to_vec().into())
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

    /// Undoes the open batch, if there is one.
    pub fn rollback(&mut self) -> Result<(), ReplicaError> {
        if self.batch.take().is_some() {
            self.execute("/*replica*/ ROLLBACK")?;
        }
        Ok(())
    }
}
