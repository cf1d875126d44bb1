//! The client's end of one stream: the table of requests in flight.
//!
//! In come encoded calls, out go answers as bytes. The link knows nothing of what they mean; it knows which request
//! a frame belongs to, what it may still receive, and who waits for it. When the stream ends, every request in the
//! table ends with it.

use super::lane::{Closed, Lane, LaneEnd, lane};
use super::pieces::{Inbound, Piece, Pieces, add_credit, pay};
use super::{MAX_IN_FLIGHT, WINDOW, lock};
use crate::error::WireError;
use crate::wire::Convert;
use crate::wire::generated::Nothing;
use crate::wire::generated::link::{Frame, Open, frame::Kind};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said so.
    Answered(WireError),
    /// The stream ended. The request may have run.
    Lost,
}

#[derive(Debug)]
pub(super) struct Link {
    lane: Lane<Frame>,
    table: Mutex<Table>,
    next: AtomicU64,
    slots: Arc<Semaphore>,
    cause: OnceLock<String>,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    ended: bool,
    requests: BTreeMap<u64, Request>,
}

#[derive(Debug)]
struct Request {
    inbound: Inbound,
    /// What the server grants for the rest of a call that is longer than a piece.
    credit: Option<Arc<Semaphore>>,
    waiter: Waiter,
}

/// Who waits for the next message. The channel to a stream is bounded by the credit that the stream grants.
#[derive(Debug)]
enum Waiter {
    First(oneshot::Sender<Result<First, WireError>>),
    Next(mpsc::UnboundedSender<Item>),
}

/// The first message, and the stream of what follows it.
#[derive(Debug)]
struct First {
    bytes: Bytes,
    cost: usize,
    next: Option<mpsc::UnboundedReceiver<Item>>,
}

#[derive(Debug)]
enum Item {
    Message(Bytes, usize),
    Failed(WireError),
    End,
}

impl Link {
    /// A link, and the frames that it sends.
    pub(super) fn new() -> (Arc<Link>, LaneEnd<Frame>) {
        let (lane, end) = lane();
        let link = Link {
            lane,
            table: Mutex::default(),
            next: AtomicU64::new(1),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            cause: OnceLock::new(),
            ended: CancellationToken::new(),
        };
        (Arc::new(link), end)
    }

    pub(super) fn post(&self, request: u64, kind: Kind) {
        self.lane.post(Frame { request, kind: Some(kind) });
    }

    pub(super) fn is_open(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Resolves when the link has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Why it ended.
    pub(super) fn cause(&self) -> &str {
        self.cause.get().map_or("the connection ended", String::as_str)
    }

    /// Ends the link and every request on it. The first cause counts.
    pub(super) fn end(&self, cause: String) {
        self.cause.get_or_init(|| cause);
        let requests = {
            let mut table = lock(&self.table);
            table.ended = true;
            std::mem::take(&mut table.requests)
        };
        self.lane.close();
        self.slots.close();
        self.ended.cancel();
        // The waiters see their channels close, and the cause is there already.
        drop(requests);
    }

    /// Sends a call, of no more than [`super::MAX_MESSAGE`] bytes. `Err` if nothing was sent.
    pub(super) async fn call(
        self: &Arc<Self>,
        call: Bytes,
        timeout: Option<Duration>,
    ) -> Result<Flight, Closed> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| Closed)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut pieces = Pieces::new(call, true);
        let cost = pieces.next_cost().expect("a message has a first piece");
        let part = pieces.next();
        let credit = pieces.next_cost().map(|_| Arc::new(Semaphore::new(WINDOW - cost)));
        let (sender, first) = oneshot::channel();
        {
            let mut table = lock(&self.table);
            if table.ended {
                return Err(Closed);
            }
            let waiter = Waiter::First(sender);
            let request = Request { inbound: Inbound::new(), credit: credit.clone(), waiter };
            table.requests.insert(id, request);
        }
        let mut ticket = Ticket { link: self.clone(), id, sent: false, _slot: slot };
        let timeout =
            timeout.map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1));
        let open = Frame { request: id, kind: Some(Kind::Open(Open { timeout, part })) };
        self.lane.send(open, cost).await?;
        ticket.sent = true;
        Ok(Flight { ticket, first, pieces, credit })
    }

    /// Takes a frame from the server. Errors say how it broke the protocol.
    pub(super) fn receive(&self, frame: Frame) -> Result<(), String> {
        let id = frame.request;
        let mut table = lock(&self.table);
        // Frames of a request that was cancelled meanwhile are nobody's.
        let Some(request) = table.requests.get_mut(&id) else {
            return match frame.kind {
                None => Err("a frame of an unknown kind".to_owned()),
                Some(_) => Ok(()),
            };
        };
        match frame.kind {
            Some(Kind::Part(part)) => match request.inbound.accept(part)? {
                Piece::More(cost) => {
                    drop(table);
                    self.post(id, Kind::Credit(cost as u32));
                }
                Piece::Message { bytes, cost, end } => table.message(id, bytes, cost, end),
            },
            Some(Kind::Credit(granted)) => {
                // Of a call that was sent in one piece, credit is of no use.
                if let Some(credit) = &request.credit {
                    add_credit(credit, granted)?;
                }
            }
            Some(Kind::Failed(error)) => {
                let error = WireError::from_message(error).map_err(|e| e.to_string())?;
                match table.requests.remove(&id).map(|request| request.waiter) {
                    Some(Waiter::First(first)) => drop(first.send(Err(error))),
                    Some(Waiter::Next(next)) => drop(next.send(Item::Failed(error))),
                    None => {}
                }
            }
            Some(Kind::End(Nothing {})) => {
                let Waiter::Next(next) = &request.waiter else {
                    return Err("an answer without a message".to_owned());
                };
                let _ = next.send(Item::End);
                table.requests.remove(&id);
            }
            Some(Kind::Hello(_) | Kind::Open(_) | Kind::Cancel(_)) => {
                return Err("a frame that only a client sends".to_owned());
            }
            None => return Err("a frame of an unknown kind".to_owned()),
        }
        Ok(())
    }

    fn grant(&self, id: u64, credit: usize) {
        if let Some(request) = lock(&self.table).requests.get_mut(&id) {
            request.inbound.grant(credit);
        } else {
            return;
        }
        self.post(id, Kind::Credit(credit as u32));
    }
}

impl Table {
    /// Hands a whole message to whoever waits for it.
    fn message(&mut self, id: u64, bytes: Bytes, cost: usize, end: bool) {
        let Some(mut request) = self.requests.remove(&id) else { return };
        request.waiter = match request.waiter {
            Waiter::First(first) => {
                if end {
                    let _ = first.send(Ok(First { bytes, cost, next: None }));
                    return;
                }
                let (sender, receiver) = mpsc::unbounded_channel();
                // If nobody waits any more, its ticket is about to cancel the request.
                let _ = first.send(Ok(First { bytes, cost, next: Some(receiver) }));
                Waiter::Next(sender)
            }
            Waiter::Next(next) => {
                let _ = next.send(Item::Message(bytes, cost));
                if end {
                    let _ = next.send(Item::End);
                }
                Waiter::Next(next)
            }
        };
        if !end {
            self.requests.insert(id, request);
        }
    }
}

/// A request's place in the table and one of the link's slots. Dropping it cancels a request that hasn't ended.
#[derive(Debug)]
struct Ticket {
    link: Arc<Link>,
    id: u64,
    sent: bool,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let waited = lock(&self.link.table).requests.remove(&self.id).is_some();
        if waited && self.sent {
            self.link.post(self.id, Kind::Cancel(Nothing {}));
        }
    }
}

/// A call that was sent.
#[derive(Debug)]
pub(super) struct Flight {
    ticket: Ticket,
    first: oneshot::Receiver<Result<First, WireError>>,
    pieces: Pieces,
    credit: Option<Arc<Semaphore>>,
}

impl Flight {
    /// Sends what is left of the call and waits for its answer: the first message, and those that follow it.
    pub(super) async fn answer(mut self) -> Result<(Bytes, Option<Messages>), Failure> {
        let first = match &self.credit {
            None => (&mut self.first).await,
            Some(credit) => {
                let rest = send_rest(&self.ticket, &mut self.pieces, credit);
                tokio::select! {
                    biased;
                    first = &mut self.first => first,
                    never = rest => match never {},
                }
            }
        };
        match first {
            Ok(Ok(First { bytes, cost, next })) => {
                let messages =
                    next.map(|items| Messages { ticket: self.ticket, items, owed: cost, ended: false });
                Ok((bytes, messages))
            }
            Ok(Err(error)) => Err(Failure::Answered(error)),
            Err(_) => Err(Failure::Lost),
        }
    }

    pub(super) fn link(&self) -> Arc<Link> {
        self.ticket.link.clone()
    }
}

/// Never ends: what ends a request is its answer, which may come before the server has read the whole call.
async fn send_rest(ticket: &Ticket, pieces: &mut Pieces, credit: &Semaphore) -> std::convert::Infallible {
    while let Some(cost) = pieces.next_cost() {
        if pay(credit, cost).await.is_err() {
            break;
        }
        let Some(part) = pieces.next() else { break };
        let frame = Frame { request: ticket.id, kind: Some(Kind::Part(part)) };
        if ticket.link.lane.send(frame, cost).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// The messages that follow the first. Dropping it cancels the request.
#[derive(Debug)]
pub(super) struct Messages {
    ticket: Ticket,
    items: mpsc::UnboundedReceiver<Item>,
    owed: usize,
    ended: bool,
}

impl Messages {
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.ticket.link
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.items.poll_recv(cx));
        Poll::Ready(match item {
            Some(Item::Message(bytes, cost)) => {
                self.owed += cost;
                if self.owed >= WINDOW / 4 {
                    let owed = std::mem::take(&mut self.owed);
                    self.ticket.link.grant(self.ticket.id, owed);
                }
                Some(Ok(bytes))
            }
            Some(Item::End) => {
                self.ended = true;
                None
            }
            Some(Item::Failed(error)) => {
                self.ended = true;
                Some(Err(Failure::Answered(error)))
            }
            None => {
                self.ended = true;
                Some(Err(Failure::Lost))
            }
        })
    }
}
