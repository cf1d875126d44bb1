//! A client: one operation after the other, retried under its name until its outcome is known.
//!
//! Calls go to whichever node it thinks leads. An answer may be lost on its way, a node may die under it, and its
//! patience ends; then the outcome is unknown and the next attempt, at another node, asks under the same name. It must
//! never know more of a replica than its handle and its rows.

use super::history::{ReadCall, SwapCall};
use super::random::Random;
use super::rows;
use super::trace::Time;
use bytes::Bytes;
use proto::services::Consistency;
use proto::{LogIndex, RequestId, RouterIncarnation, WireError};
use replica::{Replica, SchemaEntry, Snapshot, Write, Written};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// What a client wants.
#[derive(Clone, Debug)]
pub enum Wish {
    /// A row more.
    Append {
        /// Its value, which no other has.
        value: i64,
    },
    /// A register's value set.
    Swap {
        /// The register.
        key: i64,
        /// The value, which no other swap sets.
        value: i64,
        /// Its place in the history.
        call: SwapCall,
    },
    /// A table more.
    Schema {
        /// Its number, which no other has.
        job: u64,
    },
    /// All rows, as they are now.
    Read,
    /// All rows, as this session last saw them or later.
    SessionRead,
    /// All rows, no staler than this.
    BoundedRead {
        /// How stale.
        staleness: Time,
    },
    /// All rows, as they were at some time.
    AnyRead,
}

/// A wish under way.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What is wanted.
    pub wish: Wish,
    /// What a write is called.
    pub sequence: u64,
    /// Whether an attempt's outcome is unknown.
    pub uncertain: bool,
    /// How often it was tried.
    pub attempts: u64,
    /// When it is given up.
    pub until: Time,
}

/// What a replica answered.
pub enum Answer {
    /// To a write.
    Written(Result<Written, WireError>),
    /// To a schema entry.
    Changed(Result<LogIndex, WireError>),
    /// To a read.
    Opened(Result<Snapshot, WireError>),
}

/// An answer that is waited for.
pub type Pending = Pin<Box<dyn Future<Output = Answer>>>;

/// A call that a node works on.
pub struct Call {
    /// The node.
    pub node: u64,
    /// Its process.
    pub life: u64,
    /// The answer.
    pub answer: Pending,
    /// For a strong read, when it began.
    pub read: Option<ReadCall>,
}

/// A snapshot that is kept for a while.
pub struct Kept {
    /// The node.
    pub node: u64,
    /// Its process.
    pub life: u64,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What it showed at first.
    pub position: u64,
    /// The hash that it showed at first.
    pub hash: u128,
}

/// Set when a future wants to be polled, as it does at first.
pub struct Flag(AtomicBool);

impl Default for Flag {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

impl Flag {
    /// Whether the future wants to be polled.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Polls a future if it wants to be.
    pub fn poll<T>(self: &Arc<Self>, future: &mut Pin<Box<dyn Future<Output = T>>>) -> Option<T> {
        if !self.0.swap(false, Ordering::Relaxed) {
            return None;
        }
        let waker = Waker::from(self.clone());
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client.
pub struct Client {
    /// Its number, from 0.
    pub number: usize,
    /// Its choices.
    pub random: Random,
    /// What it is at.
    pub operation: Option<Operation>,
    /// The attempt that is under way.
    pub call: Option<Call>,
    /// A snapshot that it hasn't let go of.
    pub kept: Option<Kept>,
    /// Which node it thinks leads.
    pub leader: Option<u64>,
    /// How many operations came to their end, whatever it was.
    pub finished: u64,
    /// How many writes were acknowledged.
    pub acknowledged: u64,
    /// The furthest index that its session has written or seen.
    pub session: u64,
    /// What it appended and was told of.
    pub own: BTreeSet<i64>,
    sequence: u64,
    flag: Arc<Flag>,
}

impl Client {
    /// A client that hasn't done anything.
    pub fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            random: Random::stream(seed, "client", number as u64),
            operation: None,
            call: None,
            kept: None,
            leader: None,
            finished: 0,
            acknowledged: 0,
            session: 0,
            own: BTreeSet::new(),
            sequence: 0,
            flag: Arc::default(),
        }
    }

    /// The next number that nobody else uses.
    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A value that nobody else writes, made of a number of [`Self::next_sequence`].
    pub fn value(&self, sequence: u64) -> i64 {
        (self.number as u64 * 1_000_000 + sequence).cast_signed()
    }

    /// Sends its operation to a replica.
    pub fn send(&mut self, replica: Replica, operation: &Operation, patience: Duration) -> Pending {
        self.flag = Arc::default();
        let deadline = (Instant::now() + patience).into_std();
        let request =
            RequestId { router: RouterIncarnation(self.number as u64 + 1), sequence: operation.sequence };
        let write = |run: replica::WriteFn| Write {
            request: Some(request),
            settled: request.sequence,
            deadline,
            run,
        };
        let consistency = match &operation.wish {
            Wish::Append { value } => {
                let value = *value;
                let write = write(Box::new(move |connection| rows::append(connection, value)));
                return Box::pin(async move { Answer::Written(replica.write(write).await) });
            }
            Wish::Swap { key, value, .. } => {
                let (key, value) = (*key, *value);
                let write = write(Box::new(move |connection| rows::swap(connection, key, value)));
                return Box::pin(async move { Answer::Written(replica.write(write).await) });
            }
            Wish::Schema { job } => {
                let entry = SchemaEntry {
                    id: (*job, 1),
                    statements: vec![format!("CREATE TABLE s{job} (a INTEGER PRIMARY KEY) STRICT")],
                    require_empty: Vec::new(),
                    notes: vec![(format!("job{job}"), Bytes::from_static(b"done"))],
                    deadline,
                };
                return Box::pin(async move { Answer::Changed(replica.schema(entry).await) });
            }
            Wish::Read => Consistency::Strong,
            Wish::SessionRead => Consistency::Session,
            Wish::BoundedRead { staleness } => Consistency::Bounded(Duration::from_nanos(*staleness)),
            Wish::AnyRead => Consistency::Eventual,
        };
        let after = LogIndex(if matches!(operation.wish, Wish::SessionRead) { self.session } else { 0 });
        Box::pin(async move { Answer::Opened(replica.snapshot_after(consistency, after, deadline).await) })
    }

    /// Whether there's reason to look after its call.
    pub fn wants_poll(&self) -> bool {
        self.call.is_some() && self.flag.is_set()
    }

    /// Looks after its call, if there's reason to.
    pub fn poll(&mut self) -> Option<Answer> {
        let flag = self.flag.clone();
        flag.poll(&mut self.call.as_mut()?.answer)
    }
}
