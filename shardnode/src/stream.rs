//! Reads that may be long: on a thread of their own, in batches, against a bounded channel.
//!
//! In come a snapshot and a request, out come batches as the reader takes them. A result of one batch is returned
//! whole. The query ends when its deadline passes, when nobody reads any more, or when the replica ends its snapshot; a
//! query that waits for its reader leaves its turn to another, so that readers who wait for each other's rows (an
//! ordered merge) can't starve. It must never know what a snapshot has to wait for: who waits for that has no place here.

use crate::config::Config;
use crate::read;
use dialect::sqlite::error;
use futures_core::Stream;
use parking_lot::Mutex;
use proto::machine::Machine;
use proto::services::{FragmentRequest, FragmentResponse, RowSource};
use proto::{LogIndex, RowBatch, RowBatchBuilder, SqlState, WireError};
use replica::{Canceller, Snapshot};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Batches that wait for the reader.
const BATCHES: usize = 2;

/// Where long reads run.
pub(crate) struct Readers {
    running: Arc<Semaphore>,
    open: Arc<Semaphore>,
    batch_bytes: usize,
    batch_rows: u32,
    machine: Machine,
}

/// The right to run, and to have a snapshot open meanwhile.
pub(crate) struct Place {
    open: OwnedSemaphorePermit,
    running: OwnedSemaphorePermit,
}

/// What the first batch tells.
struct Begun {
    first: RowBatch,
    position: LogIndex,
    rest: Option<mpsc::Receiver<RowBatch>>,
}

impl Readers {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            running: Arc::new(Semaphore::new(config.readers)),
            open: Arc::new(Semaphore::new(config.streams)),
            batch_bytes: config.batch_bytes,
            batch_rows: config.batch_rows,
            machine: config.machine.clone(),
        }
    }

    /// Waits for a place; nothing if there is none until then.
    pub(crate) async fn place(&self, until: Instant) -> Option<Place> {
        let place = async {
            let open = Arc::clone(&self.open).acquire_owned().await;
            let running = Arc::clone(&self.running).acquire_owned().await;
            open.and_then(|open| running.map(|running| Place { open, running }))
        };
        let place = tokio::time::timeout_at(until.into(), place).await.ok()?;
        Some(place.expect("the semaphores are never closed"))
    }

    /// Runs the request on its snapshot, which it has waited for so long.
    pub(crate) async fn run(
        &self,
        request: FragmentRequest,
        deadline: Instant,
        (snapshot, waited): (Snapshot, Duration),
        place: Place,
    ) -> Result<FragmentResponse, WireError> {
        let Place { open: place, running: turn } = place;
        snapshot.end_at(deadline);
        let (begun, answer) = oneshot::channel();
        let fault = Arc::new(Mutex::new(None));
        let query = Query {
            request,
            deadline,
            turn: Some(turn),
            turns: Arc::clone(&self.running),
            batch_bytes: self.batch_bytes,
            batch_rows: self.batch_rows,
            begun: Some(begun),
            sender: None,
            runtime: Handle::current(),
        };
        let cancel = Cancel(snapshot.canceller());
        let failed = Arc::clone(&fault);
        self.machine.blocking(move || {
            let _place = place;
            let mut query = query;
            let result = query.run(&snapshot);
            let made_from = (query.request.shard, snapshot.position());
            drop(snapshot);
            if let Err(error) = result {
                *failed.lock() = Some(error.made_from(made_from.0, made_from.1));
            }
            // Only now do the channels close: who sees them closed finds the error.
            drop(query);
        });
        match answer.await {
            Ok(Begun { first, position, rest }) => {
                let rows = match rest {
                    None => RowSource::Whole(first),
                    Some(rest) => {
                        let stream = Batches { first: Some(first), rest, fault, _cancel: cancel };
                        RowSource::Stream(Box::pin(stream))
                    }
                };
                Ok(FragmentResponse { rows, affected: 0, position, waited })
            }
            Err(_) => Err(fault
                .lock()
                .take()
                .unwrap_or_else(|| WireError::internal("a query's thread ended without a word"))),
        }
    }
}

/// 57014, as PostgreSQL words it for `statement_timeout`.
pub(crate) fn timed_out() -> WireError {
    WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
}

/// Held by whoever waits for the query. Dropped, it ends the query.
struct Cancel(Canceller);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A query on its thread.
struct Query {
    request: FragmentRequest,
    deadline: Instant,
    /// The right to run; given up while it waits for its reader.
    turn: Option<OwnedSemaphorePermit>,
    turns: Arc<Semaphore>,
    batch_bytes: usize,
    batch_rows: u32,
    begun: Option<oneshot::Sender<Begun>>,
    sender: Option<mpsc::Sender<RowBatch>>,
    runtime: Handle,
}

impl Query {
    fn run(&mut self, snapshot: &Snapshot) -> Result<(), WireError> {
        let mut statement = read::begin(snapshot, &self.request)?;
        let columns = statement.column_count();
        let mut batch = RowBatchBuilder::new(columns as u16);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(|e| snapshot.explain(error(e)))? {
            read::push(row, columns, &mut batch)?;
            if batch.byte_len() >= self.batch_bytes || batch.rows() >= self.batch_rows {
                let full = std::mem::replace(&mut batch, RowBatchBuilder::new(columns as u16));
                self.send(full.finish(), snapshot)?;
            }
        }
        match self.begun.take() {
            Some(begun) => {
                let whole = Begun { first: batch.finish(), position: snapshot.position(), rest: None };
                // Nobody waits any more: there is nobody to tell.
                let _ = begun.send(whole);
            }
            None if batch.rows() > 0 => self.send(batch.finish(), snapshot)?,
            None => {}
        }
        Ok(())
    }

    fn send(&mut self, batch: RowBatch, snapshot: &Snapshot) -> Result<(), WireError> {
        let gone = || WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request");
        if let Some(begun) = self.begun.take() {
            let (sender, rest) = mpsc::channel(BATCHES);
            self.sender = Some(sender);
            let begin = Begun { first: batch, position: snapshot.position(), rest: Some(rest) };
            return begun.send(begin).map_err(|_| gone());
        }
        let sender = self.sender.as_ref().expect("made with the first batch");
        let batch = match sender.try_send(batch) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(gone()),
            Err(mpsc::error::TrySendError::Full(batch)) => batch,
        };
        self.turn = None;
        let turns = Arc::clone(&self.turns);
        let wait = async {
            // It holds the snapshot meanwhile, and nothing runs that would notice its end.
            tokio::select! {
                biased;
                sent = sender.send(batch) => sent.map_err(|_| gone())?,
                () = snapshot.ended() => snapshot.check()?,
            }
            Ok::<_, WireError>(turns.acquire_owned().await.expect("never closed"))
        };
        let turn = self.runtime.block_on(tokio::time::timeout_at(self.deadline.into(), wait));
        self.turn = Some(turn.map_err(|_| timed_out())??);
        Ok(())
    }
}

/// A streamed result. An error comes last.
struct Batches {
    first: Option<RowBatch>,
    rest: mpsc::Receiver<RowBatch>,
    fault: Arc<Mutex<Option<WireError>>>,
    _cancel: Cancel,
}

impl Stream for Batches {
    type Item = Result<RowBatch, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        self.rest.poll_recv(context).map(|batch| match batch {
            Some(batch) => Some(Ok(batch)),
            None => self.fault.lock().take().map(Err),
        })
    }
}
