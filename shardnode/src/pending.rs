//! What a statement waits for before it looks: its floor, and transactions that were prepared before it came.
//!
//! Whoever has seen one of them on another shard, where it has ended, must find it here, too. In come a statement and what
//! the shard's leader has in memory; out comes leave to look. It doesn't wait for a transaction that has locks in other
//! tables alone, nor, where it looks up rows by their primary key, for one that has none of those rows, nor where it will
//! wait for the row's lock in any case. It must never know how transactions end.

use crate::phrase::Phrase;
use crate::sought::{self, COMPARED, Sought};
use crate::touched::encode;
use crate::transact::Desk;
use crate::{statement, stream};
use proto::machine;
use proto::services::{Access, Consistency, FragmentRequest};
use proto::{SqlState, TableId, Term, TransactionId, Value, WireError};
use std::sync::Arc;
use std::time::Instant;

impl Desk {
    /// Whether the shard's transactions are known as of the present leader's term.
    pub fn is_known(&self) -> bool {
        self.transactions.are_of(self.replica.watch().borrow().term) && self.replica.is_leader()
    }

    /// Sees to it that they are.
    pub async fn know(&self, deadline: Instant) -> Result<(), WireError> {
        if self.is_known() { Ok(()) } else { self.take_up(deadline).await }
    }

    /// Waits until what was pending when the statement came, and may concern it, has ended. `locks`: the statement locks the
    /// rows that it finds, so this is a wait for a lock. Gives the term in which that was so: under a later leader others may
    /// have been.
    pub async fn catch_up(
        &self,
        request: &FragmentRequest,
        locks: bool,
        deadline: Instant,
    ) -> Result<Term, WireError> {
        // What the floor covers may be prepared.
        self.reach(request.floor.index(), deadline).await?;
        self.know(deadline).await?;
        let term = self.transactions.term();
        if !self.transactions.have_pending() {
            return Ok(term);
        }
        let phrase = self.transactions.phrases.of(&request.sql);
        let mut concerned = self.pending_in(&phrase.tables);
        if let Access::Branch { branch, .. } = request.access {
            concerned.retain(|id| *id != branch.transaction);
        }
        if concerned.is_empty() || self.spares(request, &phrase, &concerned, locks, deadline).await? {
            return Ok(term);
        }
        let lock_timeout = match &request.access {
            Access::Branch { branch, .. } => branch.lock_timeout,
            Access::Write { lock_timeout, .. } => *lock_timeout,
            Access::Read { .. } => None,
        };
        let lock_timeout = lock_timeout.filter(|_| locks);
        let lock_deadline =
            lock_timeout.map(|timeout| machine::now() + timeout).filter(|end| *end < deadline);
        match self.ended(&concerned, term, lock_deadline.unwrap_or(deadline)).await? {
            true => Ok(term),
            false if lock_deadline.is_some() => Err(statement::lock_timed_out()),
            false => Err(stream::timed_out()),
        }
    }

    /// Waits until these have ended, or until then.
    async fn ended(&self, these: &[TransactionId], term: Term, end: Instant) -> Result<bool, WireError> {
        loop {
            let look = machine::now() + statement::LOOK_EVERY;
            let seals = self.transactions.look().seals;
            if self.transactions.ended(these, seals, look.min(end)).await {
                return Ok(true);
            }
            if machine::now() >= end {
                return Ok(false);
            }
            statement::check_leads(&self.replica, term)?;
            // What a shard has prepared that isn't served any more ends elsewhere.
            match self.check_served(machine::now() + statement::LOOK_EVERY).await {
                // No snapshot can be had at the moment.
                Err(error) if error.sqlstate == SqlState::QUERY_CANCELED => {}
                served => served?,
            }
        }
    }

    /// The row that a statement looks for, if it says so.
    async fn sought(
        &self,
        request: &FragmentRequest,
        phrase: &Phrase,
        deadline: Instant,
    ) -> Result<Option<Arc<Sought>>, WireError> {
        let Some(table) = phrase.only else { return Ok(None) };
        let known = self.transactions.look().looks.get(&request.sql);
        let age = match known {
            Ok(sought) => return Ok(sought),
            Err(age) => age,
        };
        let sought = match sought::condition(&request.sql) {
            Some(_) => {
                let snapshot = self.replica.snapshot(Consistency::Eventual, deadline).await?;
                Sought::read(snapshot.connection(), table, &request.sql).map(Arc::new)
            }
            None => None,
        };
        self.transactions.look().looks.learn(&request.sql, sought.clone(), age);
        Ok(sought)
    }

    fn pending_in(&self, tables: &[TableId]) -> Vec<TransactionId> {
        let state = self.transactions.look();
        let concerns = |of: &[TableId]| of.is_empty() || of.iter().any(|table| tables.contains(table));
        state.pending().filter(|(_, of)| concerns(of)).map(|(id, _)| id).collect()
    }

    /// Whether the statement looks for a row that none of these transactions has a lock on, or that it will lock itself.
    async fn spares(
        &self,
        request: &FragmentRequest,
        phrase: &Phrase,
        these: &[TransactionId],
        locks: bool,
        deadline: Instant,
    ) -> Result<bool, WireError> {
        if request.rows.is_some() {
            return Ok(false);
        }
        let Some(row) = self.sought(request, phrase, deadline).await? else { return Ok(false) };
        let Some(key) = row.values(&request.params) else { return Ok(false) };
        if !self.may_concern(these, row.table, &encode(key.iter().map(Value::as_ref))) {
            return Ok(true);
        }
        if !(locks && row.is_all) {
            return Ok(false);
        }
        // One that isn't there may be about to be, and one that must also fulfil other conditions may be about to.
        let snapshot = self.replica.snapshot(Consistency::Eventual, deadline).await?;
        Ok(row.is_there(snapshot.connection(), &key))
    }

    /// Whether one of these transactions may have a lock on a row.
    fn may_concern(&self, these: &[TransactionId], table: TableId, key: &[u8]) -> bool {
        let state = self.transactions.look();
        these.iter().any(|id| {
            let mut locks = state.locks.held(*id).filter(|(resource, _)| resource.table == table).enumerate();
            state.locks.hashes(*id).any(|(of, ..)| of == table)
                || locks.any(|(count, (resource, _))| {
                    sought::may_be_about(&resource.part, key) || count > COMPARED
                })
        })
    }
}
