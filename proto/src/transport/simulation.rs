//! The same clients and servers over streams that a simulation carries instead of sockets.
//!
//! Frames go in and out as bytes, in order, until a stream ends at either side: what a connection does. When they arrive,
//! and whether it ends, is the simulation's affair; everything above it is what production runs.

use super::lane::LaneEnd;
use super::server::{Offer, serve_stream};
use super::{Received, client::NodeClient};
use crate::ids::NodeId;
use crate::services::BoxStream;
use crate::transport::ClientConfig;
use crate::wire::generated::link::Frame;
use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use std::fmt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How streams to other nodes are opened where there are no sockets.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens a stream of requests to a node: what it is to be sent goes in, what it sends comes out. That ends when the
    /// connection does, or at once if there is none to be had.
    fn dial(&self, node: NodeId, sent: BoxStream<Bytes>) -> BoxStream<Bytes>;

    /// A number by lot.
    fn random(&self) -> u64;
}

/// A client of a node, over streams that are opened so. Must be called within a Tokio runtime.
pub fn client(dial: Arc<dyn Dial>, node: NodeId, config: ClientConfig) -> NodeClient {
    NodeClient::over(dial, node, config)
}

/// Serves a stream that another node has opened: gives what that one is to be sent. Must be called within a Tokio runtime.
pub fn accept(offer: Offer, sent: BoxStream<Bytes>) -> BoxStream<Bytes> {
    let outbound = serve_stream(offer, received(sent), CancellationToken::new());
    Box::pin(
        outbound.take_while(|frame| std::future::ready(frame.is_ok())).filter_map(|frame| {
            std::future::ready(frame.ok().map(|frame| Bytes::from(frame.encode_to_vec())))
        }),
    )
}

/// Frames as they are sent.
pub(super) fn sent(outbound: LaneEnd<Frame>) -> BoxStream<Bytes> {
    Box::pin(outbound.map(|frame| Bytes::from(frame.encode_to_vec())))
}

/// Frames from what was received.
pub(super) fn received(bytes: BoxStream<Bytes>) -> Received {
    let frame = |bytes| Frame::decode(bytes).map_err(|error| Status::internal(error.to_string()));
    Box::pin(bytes.map(frame))
}
