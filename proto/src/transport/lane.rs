//! The queue in front of a stream.
//!
//! In come frames from many requests, out they go in the order they came. Frames that carry data wait for room; the
//! few that a reader or a destructor must leave without waiting (credit, cancel) don't. Those are bounded too: credit
//! by what the peer has sent, cancels by the requests in flight. Everything is in one queue, so that a cancel can't
//! overtake the request that it cancels.

use super::LANE;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;

/// The stream is over: nothing that is sent now would arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// The end that frames go into.
#[derive(Debug)]
pub(super) struct Lane<T> {
    queue: mpsc::UnboundedSender<Queued<T>>,
    room: Arc<Semaphore>,
}

/// The end that the connection takes them from.
#[derive(Debug)]
pub(super) struct LaneEnd<T> {
    queue: mpsc::UnboundedReceiver<Queued<T>>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
enum Queued<T> {
    Frame(T, usize),
    End,
}

pub(super) fn lane<T>() -> (Lane<T>, LaneEnd<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(LANE));
    (Lane { queue: sender, room: room.clone() }, LaneEnd { queue: receiver, room })
}

impl<T> Lane<T> {
    /// Queues a frame of so many bytes once there is room. Frames that wait get their turn in order.
    pub(super) async fn send(&self, frame: T, cost: usize) -> Result<(), Closed> {
        let cost = cost.min(LANE);
        let permits = u32::try_from(cost).expect("the lane has fewer bytes than 32 bits count");
        self.room.acquire_many(permits).await.map_err(|_| Closed)?.forget();
        self.queue.send(Queued::Frame(frame, cost)).map_err(|_| Closed)
    }

    /// Queues a small frame without waiting. Lost if the stream is over.
    pub(super) fn post(&self, frame: T) {
        let _ = self.queue.send(Queued::Frame(frame, 0));
    }

    /// Resolves when nobody takes frames any more.
    pub(super) async fn closed(&self) {
        self.queue.closed().await;
    }

    /// Ends the stream after what is queued.
    pub(super) fn close(&self) {
        self.room.close();
        let _ = self.queue.send(Queued::End);
    }
}

impl<T> Stream for LaneEnd<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.queue.poll_recv(cx).map(|queued| match queued? {
            Queued::Frame(frame, cost) => {
                self.room.add_permits(cost);
                Some(frame)
            }
            Queued::End => None,
        })
    }
}

impl<T> Drop for LaneEnd<T> {
    fn drop(&mut self) {
        self.room.close();
    }
}
