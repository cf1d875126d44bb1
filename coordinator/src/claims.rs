//! Idempotency keys: who may use one up, and who has.
//!
//! In come claims, of transactions that begin with a key; out goes who was committed with it before. A transaction with a
//! key is committed by a record here alone, however few shards it has, and the record has the key (`decisions.rs`): so
//! one of all that ever come with it is committed, and the others learn which.
//!
//! The second to come must know what has become of the first before it looks at anything: what it reads would be wrong
//! in the next moment. So whoever claims a key takes it from who claimed it before, and a decision to commit counts
//! only from who has the claim. Claims are in the leader's memory, and cost no entry in the log: a claim that is lost
//! with its leader's term ends its transaction with 40001 and does no other harm. They are made and looked at by closures
//! on the replica's writer alone, in the log's order: who claims sees all that was decided before, and takes part in all
//! that is decided after.

use crate::service::Core;
use crate::store::{self, Store, decode};
use bytes::Bytes;
use proto::services::{Claim, Decision, ServiceResult, Spent};
use proto::wire::Wire;
use proto::{SqlState, Term, TransactionId, WireError};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many claims there may be. The oldest is lost to a new one: its transaction was rolled back long ago.
const MOST: usize = 100_000;

/// Who has claimed which key.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The term that all of this is of.
    term: Option<Term>,
    holders: HashMap<Arc<str>, TransactionId>,
    in_order: VecDeque<(Arc<str>, TransactionId)>,
}

impl Claims {
    fn enter(&mut self, term: Term) {
        if self.term != Some(term) {
            *self = Claims { term: Some(term), ..Claims::default() };
        }
    }

    /// The key is this transaction's.
    fn claim(&mut self, term: Term, key: &str, transaction: TransactionId) {
        self.enter(term);
        let key: Arc<str> = key.into();
        if self.holders.insert(Arc::clone(&key), transaction) != Some(transaction) {
            self.in_order.push_back((key, transaction));
        }
        while let Some((key, transaction)) = self.in_order.front()
            && (self.holders.len() > MOST || self.holders.get(key) != Some(transaction))
            && let Some((key, transaction)) = self.in_order.pop_front()
        {
            self.release(&key, transaction);
        }
        if self.in_order.len() > 2 * MOST {
            let holders = &self.holders;
            self.in_order.retain(|(key, transaction)| holders.get(key) == Some(transaction));
        }
    }

    /// Whether the key is this transaction's.
    pub(crate) fn holds(&mut self, term: Term, key: &str, transaction: TransactionId) -> bool {
        self.enter(term);
        self.holders.get(key) == Some(&transaction)
    }

    /// The transaction has ended.
    pub(crate) fn release(&mut self, key: &str, transaction: TransactionId) {
        if self.holders.get(key) == Some(&transaction) {
            self.holders.remove(key);
        }
    }
}

impl Store<'_> {
    /// Who has used the key up.
    pub(crate) fn spent(&self, key: &str) -> Result<Option<Spent>, WireError> {
        let sql = "SELECT descriptor, finished FROM shoal_decision WHERE key = ?1";
        let found = self.first(sql, [key], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, bool>(1)?)))?;
        let spent = |(bytes, finished): (Vec<u8>, bool)| {
            let Decision { transaction, positions, .. } = decode(&bytes)?;
            Ok(Spent { transaction, finished, positions })
        };
        found.map(spent).transpose()
    }
}

impl Core {
    /// Claims a key for a transaction, or says who has used it up.
    pub(crate) async fn claim(&self, claim: Claim) -> ServiceResult<Option<Spent>> {
        if self.keys.load(Ordering::Relaxed) >= self.config.max_keys {
            let message = "too many idempotency keys are remembered";
            return Err(WireError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message)
                .with_detail(format!("There may be {}.", self.config.max_keys))
                .with_hint("Have them forgotten sooner (remember-keys)."));
        }
        let claims = Arc::clone(&self.claims);
        let output = store::staged(&self.replica, self.config.write_timeout, move |stage| {
            if let Some(spent) = Store(stage).spent(&claim.key)? {
                return Ok(spent.encode().into());
            }
            claims.lock().claim(stage.term(), &claim.key, claim.transaction);
            Ok(Bytes::new())
        });
        let output = output.await?.output;
        if output.is_empty() { Ok(None) } else { decode(&output).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RouterIncarnation;

    #[test]
    fn the_last_to_claim_has_it() {
        let id = |sequence| TransactionId { router: RouterIncarnation(1), sequence };
        let mut claims = Claims::default();
        claims.claim(Term(1), "k", id(1));
        assert!(claims.holds(Term(1), "k", id(1)) && !claims.holds(Term(1), "l", id(1)));
        claims.claim(Term(1), "k", id(2));
        assert!(claims.holds(Term(1), "k", id(2)) && !claims.holds(Term(1), "k", id(1)));
        claims.release("k", id(1));
        assert!(claims.holds(Term(1), "k", id(2)), "it was another's");
        assert!(!claims.holds(Term(2), "k", id(2)), "a claim is lost with its term");
        for sequence in 1..=MOST as u64 + 1 {
            claims.claim(Term(2), &sequence.to_string(), id(sequence));
        }
        assert!(!claims.holds(Term(2), "1", id(1)) && claims.holds(Term(2), "2", id(2)));
        assert_eq!((claims.holders.len(), claims.in_order.len()), (MOST, MOST));
    }

    #[test]
    fn those_that_have_ended_cost_nobody_a_claim() {
        let id = |sequence| TransactionId { router: RouterIncarnation(1), sequence };
        let mut claims = Claims::default();
        claims.claim(Term(1), "old", id(0));
        for sequence in 1..=3 * MOST as u64 {
            let key = sequence.to_string();
            claims.claim(Term(1), &key, id(sequence));
            claims.release(&key, id(sequence));
        }
        assert!(claims.holds(Term(1), "old", id(0)));
        assert!(claims.in_order.len() <= 2 * MOST);
    }
}
