//! The services over gRPC: clients and servers behind the traits of [`crate::services`].
//!
//! Two nodes that talk keep two streams open in each direction they ask in: one for all requests, one for Raft. The
//! life of a request, from [`NodeClient`] to [`serve`] and back:
//!
//! 1. The caller's future takes the open link to the node (`client`), or waits until one is made, or fails at once
//!    while the node is known to be unreachable. It takes one of the link's slots: requests in flight are bounded.
//! 2. The call is encoded and entered in the link's table under a new number (`link`). Its first piece goes into the
//!    lane, the one bounded queue in front of the stream (`lane`); what doesn't fit a piece follows as the server
//!    grants credit (`pieces`). From the moment the first piece is in the lane, the server may run it.
//! 3. The server's reader puts the pieces together (`server`), and starts a task that calls the service (`answer`).
//! 4. The answer goes back the same way: the server's lane, pieces, credit. If it streams, each message is sent while
//!    the client has granted credit for it, and the client grants credit as its reader takes messages. So a slow
//!    reader of a big result holds up nobody but itself.
//! 5. Dropping the future or the stream sends a cancel, and the server drops the running future. At its deadline the
//!    caller does that by itself.
//!
//! Neither side's reader ever waits: whatever it queues is bounded by the credit that it granted. A peer that breaks
//! the protocol loses its stream, with the cause in the closing status. When a stream ends, every request on it ends
//! at once, with [`crate::Retry::Later`] if nothing can have run and [`crate::Retry::Unknown`] if a write may have.
//!
//! Nothing in here knows what a request means, beyond whether it writes.

mod answer;
mod client;
mod lane;
mod link;
mod pieces;
mod raft;
mod remote;
mod server;
pub mod simulation;

#[cfg(test)]
mod tests;

pub use client::{ClientConfig, NodeClient};
pub use raft::{RaftClient, RaftPeers};
pub use server::{Offer, Services, serve};

use crate::ids::{ClusterId, NodeId};
use crate::wire::generated::link::{Frame, Hello};
use crate::wire::{cluster_bytes, cluster_from};
use futures::StreamExt;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_stream::Stream;
use tonic::Status;

/// The version of the frames and messages. Peers of another one are refused.
const PROTOCOL: u32 = 1;

/// The greatest message: one call, one answer, one row batch, one Raft message.
const MAX_MESSAGE: usize = 64 << 20;
/// The greatest piece of a message, overhead included. Bounds how long a frame can hold up the next.
const PIECE: usize = 64 << 10;
/// What a piece costs beside its bytes, so that empty ones aren't free.
const PIECE_COST: usize = 64;
/// The greatest frame that is accepted: a piece, or an error with its texts, with room to spare.
const MAX_FRAME: usize = 256 << 10;
/// The credit that each request begins with, in each direction.
const WINDOW: usize = 256 << 10;
/// Bytes that wait in front of one stream.
const LANE: usize = 512 << 10;
/// Requests in flight on one link.
const MAX_IN_FLIGHT: usize = 16 << 10;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// A peer is pinged so often, and gone if it answers none for so long.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Frames as they come in.
type Received = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

/// The next of them; `None` when the peer has ended the stream.
async fn next_frame(frames: &mut Received) -> Result<Option<Frame>, Status> {
    frames.next().await.transpose()
}

/// The first frame: who speaks, and to whom.
fn hello(cluster: Option<ClusterId>, from: Option<NodeId>, to: Option<NodeId>) -> Hello {
    let number = |node: Option<NodeId>| node.map_or(0, |node| node.0);
    Hello { protocol: PROTOCOL, from: number(from), to: number(to), cluster: cluster_bytes(cluster) }
}

/// Whether a peer's first frame may be followed by others. `cluster` and `here` are whose it is told to.
fn check_hello(hello: &Hello, cluster: Option<ClusterId>, here: Option<NodeId>) -> Result<(), String> {
    let Hello { protocol, from: _, to, cluster: theirs } = hello;
    if *protocol != PROTOCOL {
        return Err(format!(
            "the peer speaks version {protocol} of the protocol, this node version {PROTOCOL}"
        ));
    }
    let theirs = cluster_from(theirs).map_err(|e| e.to_string())?;
    if let (Some(ours), Some(theirs)) = (cluster, theirs)
        && ours != theirs
    {
        return Err(format!("this is cluster {ours}, not cluster {theirs}"));
    }
    match here {
        Some(here) if *to != 0 && *to != here.0 => Err(format!("this is node {here}, not node {to}")),
        _ => Ok(()),
    }
}

/// A lock whose data is sound at every point where a holder could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
