//! Names for writes and transactions, and what the shards may forget of them.
//!
//! Each write gets an id that no other ever has: this start of the router, and a number. The shards remember a
//! write's outcome by its id until every write before it has been answered; that mark travels with each write.

use parking_lot::Mutex;
use proto::machine::Machine;
use proto::{CutId, RequestId, RouterIncarnation, TransactionId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives out request ids.
#[derive(Debug)]
pub struct Requests {
    router: RouterIncarnation,
    open: Mutex<Open>,
    /// The sequence of the last transaction.
    transactions: AtomicU64,
    /// The sequence of the last cut.
    cuts: AtomicU64,
}

#[derive(Debug)]
struct Open {
    /// The lowest sequence that has no answer yet, or the next one.
    settled: u64,
    /// From `settled` on: whether each has been answered.
    answered: VecDeque<bool>,
}

/// A write that is under way; dropping it says that nobody will ask for it again.
#[derive(Debug)]
pub struct Request {
    requests: Arc<Requests>,
    /// Its id.
    pub id: RequestId,
}

impl Requests {
    /// A router's request ids, from this start on.
    pub fn new(machine: &Machine) -> Arc<Self> {
        let router = RouterIncarnation(machine.random());
        let open = Mutex::new(Open { settled: 1, answered: VecDeque::new() });
        Arc::new(Self { router, open, transactions: AtomicU64::new(0), cuts: AtomicU64::new(0) })
    }

    /// This start of the router.
    pub fn router(&self) -> RouterIncarnation {
        self.router
    }

    /// Names a transaction.
    pub fn begin_transaction(&self) -> TransactionId {
        let sequence = self.transactions.fetch_add(1, Ordering::Relaxed) + 1;
        TransactionId { router: self.router, sequence }
    }

    /// Names a read of several shards.
    pub fn begin_cut(&self) -> CutId {
        CutId { router: self.router, sequence: self.cuts.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Begins a write.
    pub fn begin(self: &Arc<Self>) -> Request {
        let mut open = self.open.lock();
        let sequence = open.settled + open.answered.len() as u64;
        open.answered.push_back(false);
        Request { requests: self.clone(), id: RequestId { router: self.router, sequence } }
    }

    /// Every write below this has been answered.
    pub fn settled(&self) -> u64 {
        self.open.lock().settled
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut open = self.requests.open.lock();
        let place = (self.id.sequence - open.settled) as usize;
        open.answered[place] = true;
        while open.answered.front() == Some(&true) {
            open.answered.pop_front();
            open.settled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stops_at_the_oldest_open_write() {
        let requests = Requests::new(&Machine::default());
        let (first, second, third) = (requests.begin(), requests.begin(), requests.begin());
        assert_eq!((first.id.sequence, third.id.sequence, requests.settled()), (1, 3, 1));
        drop(second);
        assert_eq!(requests.settled(), 1);
        drop(first);
        assert_eq!(requests.settled(), 3);
        drop(third);
        assert_eq!((requests.settled(), requests.begin().id.sequence), (4, 4));
        assert_ne!(Requests::new(&Machine::default()).begin().id.router, requests.begin().id.router);
    }
}
