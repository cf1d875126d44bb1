//! Raft messages over a stream of their own.
//!
//! In come opaque messages from `replica`'s threads, out they go to one node, best effort: while the node can't be
//! reached, and when too much waits, messages are dropped, which Raft expects. Sending never blocks.
//!
//! Small messages travel many to a frame. A big one travels in pieces, and small ones of other groups go between
//! them: an entry of many megabytes holds up no other group's heartbeat. Within a group, order is kept.

use super::client::{ClientConfig, channel, error_text, status_text};
use super::{MAX_FRAME, MAX_MESSAGE, PIECE, check_hello, hello, lock};
use crate::ids::{ClusterId, GroupId, NodeId};
use crate::services::{RaftMessage, RaftService, RaftTransport};
use crate::wire::generated::link;
use crate::wire::generated::link::link_client::LinkClient;
use crate::wire::generated::link::{RaftFrame, RaftMessages, RaftPart, raft_frame::Kind};
use bytes::Bytes;
use futures::task::AtomicWaker;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

/// Bytes of messages that wait for one node. A message that is longer waits alone.
const MOST_WAITING: usize = 64 << 20;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 32;

/// Sends Raft messages to one node.
#[derive(Debug)]
pub struct RaftClient {
    to: NodeId,
    queue: Arc<Queue>,
    _dropped: DropGuard,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes the stream, and whoever would open one.
    stream: AtomicWaker,
    opener: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Counts the streams. One that is over must not take what the next one is to send.
    stream: u64,
    /// Messages are dropped: the node was just found to be unreachable.
    refusing: bool,
    /// Messages are dropped for want of room, and that was said.
    full: bool,
    bytes: usize,
    small: VecDeque<RaftMessage>,
    /// Messages that travel in pieces, and those that must not overtake them.
    big: VecDeque<RaftMessage>,
    /// How many of `big` (and of the one whose pieces are on the way) each group has.
    big_groups: HashMap<GroupId, usize>,
}

impl RaftClient {
    /// A client that sends as node `from` to node `to`, which listens at `address` (`host:port`). Connects with the
    /// first message. Must be called within a Tokio runtime; [`RaftClient::send`] may be called anywhere.
    pub fn connect(from: NodeId, to: NodeId, address: impl Into<String>) -> Self {
        Self::with_config(from, to, address, ClientConfig::default())
    }

    /// The same, waiting as configured.
    pub fn with_config(from: NodeId, to: NodeId, address: impl Into<String>, config: ClientConfig) -> Self {
        let queue = Arc::new(Queue::default());
        let dropped = CancellationToken::new();
        let run = run(queue.clone(), from, to, address.into(), config);
        let until = dropped.clone();
        tokio::spawn(async move { until.run_until_cancelled(run).await });
        Self { to, queue, _dropped: dropped.drop_guard() }
    }

    /// Sends messages, or drops them. Never blocks.
    pub fn send(&self, messages: Vec<RaftMessage>) {
        let mut waiting = lock(&self.queue.waiting);
        if waiting.refusing {
            return;
        }
        for message in messages {
            let cost = message.body.len() + OVERHEAD;
            let room = waiting.bytes == 0 || waiting.bytes + cost <= MOST_WAITING;
            if message.body.len() > MAX_MESSAGE {
                tracing::warn!(group = %message.group, bytes = cost, "dropped a Raft message that is too long");
                continue;
            }
            if !room {
                // A node that is too slow for all that it's sent would have a line for each message.
                if !std::mem::replace(&mut waiting.full, true) {
                    let waiting = waiting.bytes;
                    tracing::warn!(node = %self.to, waiting, "Raft messages are dropped: the node takes them too slowly");
                }
                continue;
            }
            waiting.bytes += cost;
            if cost > PIECE || waiting.big_groups.contains_key(&message.group) {
                *waiting.big_groups.entry(message.group).or_default() += 1;
                waiting.big.push_back(message);
            } else {
                waiting.small.push_back(message);
            }
        }
        drop(waiting);
        self.queue.stream.wake();
        self.queue.opener.notify_one();
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.big.is_empty()
    }

    fn sent(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.full &= self.bytes > MOST_WAITING / 2;
    }

    /// As many small messages as a frame takes.
    fn small_frame(&mut self) -> Option<Kind> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        while let Some(message) = self.small.front() {
            let cost = message.body.len() + OVERHEAD;
            if bytes > 0 && bytes + cost > 2 * PIECE {
                break;
            }
            bytes += cost;
            let Some(RaftMessage { group, body }) = self.small.pop_front() else { break };
            messages.push(link::RaftMessage { group: group.0, body });
        }
        self.sent(bytes);
        (!messages.is_empty()).then_some(Kind::Messages(RaftMessages { messages }))
    }
}

/// What a stream sends.
struct Outbound {
    queue: Arc<Queue>,
    stream: u64,
    first: Option<Kind>,
    /// The message whose pieces are on the way: its group, what is left of it, and what it cost.
    sending: Option<(GroupId, Bytes, usize)>,
    /// Whether the last frame was a piece: then small messages go first.
    piece: bool,
}

impl Outbound {
    fn next(&mut self, waiting: &mut Waiting) -> Option<Kind> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.piece || (self.sending.is_none() && waiting.big.is_empty()) {
            self.piece = false;
            if let Some(frame) = waiting.small_frame() {
                return Some(frame);
            }
        }
        let Some((group, mut data, cost)) = self.sending.take().or_else(|| {
            let RaftMessage { group, body } = waiting.big.pop_front()?;
            let cost = body.len() + OVERHEAD;
            Some((group, body, cost))
        }) else {
            return waiting.small_frame();
        };
        self.piece = true;
        if data.len() > PIECE {
            let rest = data.split_off(PIECE);
            let part = RaftPart { group: group.0, data, rest: rest.len() as u64 };
            self.sending = Some((group, rest, cost));
            return Some(Kind::Part(part));
        }
        waiting.sent(cost);
        if let Some(count) = waiting.big_groups.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                waiting.big_groups.remove(&group);
            }
        }
        Some(Kind::Part(RaftPart { group: group.0, data, rest: 0 }))
    }
}

impl Stream for Outbound {
    type Item = RaftFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftFrame>> {
        let queue = self.queue.clone();
        let mut waiting = lock(&queue.waiting);
        if waiting.stream != self.stream {
            return Poll::Ready(None);
        }
        // Whoever adds a message takes the lock first and wakes afterwards, so none is missed.
        queue.stream.register(cx.waker());
        match self.next(&mut waiting) {
            Some(kind) => Poll::Ready(Some(RaftFrame { kind: Some(kind) })),
            None => Poll::Pending,
        }
    }
}

/// Opens a stream whenever there is something to send and none is open.
async fn run(queue: Arc<Queue>, from: NodeId, to: NodeId, address: String, config: ClientConfig) {
    let mut failures = 0u32;
    loop {
        while lock(&queue.waiting).is_empty() {
            queue.opener.notified().await;
        }
        let opening = tokio::time::timeout(config.connect_timeout, open(&queue, from, to, &address, &config));
        let cause = match opening.await {
            Ok(Ok(mut replies)) => {
                let opened = tokio::time::Instant::now();
                // Nothing comes but the end.
                let cause = loop {
                    match replies.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break "it closed the stream".to_owned(),
                        Err(status) => break status_text(&status),
                    }
                };
                // A node that refuses the stream at once is left alone as one that can't be reached.
                if opened.elapsed() > config.most_backoff {
                    failures = 0;
                }
                cause
            }
            Ok(Err(cause)) => cause,
            Err(_) => "connecting took too long".to_owned(),
        };
        failures = failures.saturating_add(1);
        tracing::debug!(node = %to, %address, %cause, failures, "the Raft stream ended");
        // What waited is stale, and Raft would rather send what is news then.
        {
            let mut waiting = lock(&queue.waiting);
            *waiting = Waiting { stream: waiting.stream + 1, refusing: true, ..Waiting::default() };
        }
        tokio::time::sleep(config.backoff(failures)).await;
        lock(&queue.waiting).refusing = false;
    }
}

async fn open(
    queue: &Arc<Queue>,
    from: NodeId,
    to: NodeId,
    address: &str,
    config: &ClientConfig,
) -> Result<Streaming<crate::wire::generated::Nothing>, String> {
    let channel = channel(address, config).await?;
    let mut client =
        LinkClient::new(channel).max_decoding_message_size(MAX_FRAME).max_encoding_message_size(MAX_FRAME);
    let first = Some(Kind::Hello(hello(config.cluster, Some(from), Some(to))));
    let stream = lock(&queue.waiting).stream;
    let outbound = Outbound { queue: queue.clone(), stream, first, sending: None, piece: false };
    let response = client.raft(outbound).await.map_err(|status| error_text(&status))?;
    Ok(response.into_inner())
}

/// Reads a node's stream and hands its messages over. Ends with why the stream must be closed, if the client didn't.
pub(super) async fn read(
    frames: &mut Streaming<RaftFrame>,
    cluster: Option<ClusterId>,
    node: NodeId,
    service: &dyn RaftService,
) -> Option<Status> {
    let mut reader = Reader { from: None, partial: None };
    loop {
        match frames.message().await {
            Ok(Some(frame)) => match reader.receive(frame, cluster, node) {
                Ok((from, messages)) if !messages.is_empty() => service.receive(from, messages),
                Ok(_) => {}
                Err(broken) => return Some(Status::invalid_argument(broken)),
            },
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

struct Reader {
    from: Option<NodeId>,
    /// The message whose pieces are arriving: its group, what has come, and how much is to come.
    partial: Option<(u64, Vec<u8>, u64)>,
}

impl Reader {
    /// The messages that a frame completes. Errors say how the sender broke the protocol.
    fn receive(
        &mut self,
        frame: RaftFrame,
        cluster: Option<ClusterId>,
        node: NodeId,
    ) -> Result<(NodeId, Vec<RaftMessage>), String> {
        let message = |group, body| RaftMessage { group: GroupId(group), body };
        match (frame.kind, self.from) {
            (Some(Kind::Hello(hello)), None) => {
                check_hello(&hello, cluster, Some(node))?;
                if hello.from == 0 {
                    return Err("a Raft stream from nobody".to_owned());
                }
                self.from = Some(NodeId(hello.from));
                Ok((NodeId(hello.from), Vec::new()))
            }
            (_, None) => Err("the first frame is no hello".to_owned()),
            (Some(Kind::Messages(RaftMessages { messages })), Some(from)) => {
                let messages = messages.into_iter().map(|m| message(m.group, m.body));
                Ok((from, messages.collect()))
            }
            (Some(Kind::Part(RaftPart { group, data, rest })), Some(from)) => {
                let (of, mut body, to_come) = self.partial.take().unwrap_or((group, Vec::new(), 0));
                let length = (data.len() as u64).checked_add(rest).ok_or("a message without bounds")?;
                if of != group || (to_come != 0 && to_come != length) {
                    return Err("pieces of different messages".to_owned());
                }
                if body.len() as u64 + length > MAX_MESSAGE as u64 || (rest > 0 && data.is_empty()) {
                    return Err("a Raft message out of bounds".to_owned());
                }
                body.extend_from_slice(&data);
                if rest > 0 {
                    self.partial = Some((group, body, rest));
                    return Ok((from, Vec::new()));
                }
                Ok((from, vec![message(group, body.into())]))
            }
            (Some(Kind::Hello(_)), Some(_)) => Err("a second hello".to_owned()),
            (None, Some(_)) => Err("a frame of an unknown kind".to_owned()),
        }
    }
}

/// Sends Raft messages to every node it knows the address of.
#[derive(Debug)]
pub struct RaftPeers {
    from: NodeId,
    config: ClientConfig,
    runtime: tokio::runtime::Handle,
    clients: RwLock<HashMap<NodeId, (String, Arc<RaftClient>)>>,
}

impl RaftPeers {
    /// Nobody yet. Must be called within a Tokio runtime, which the connections will run on.
    pub fn new(from: NodeId, config: ClientConfig) -> Self {
        let runtime = tokio::runtime::Handle::current();
        Self { from, config, runtime, clients: RwLock::default() }
    }

    /// Learns where a node listens. Its connection is kept while the address stays the same.
    pub fn set(&self, node: NodeId, address: &str) {
        let mut clients = self.clients.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if clients.get(&node).is_some_and(|(known, _)| known == address) {
            return;
        }
        let _on = self.runtime.enter();
        let client = RaftClient::with_config(self.from, node, address, self.config);
        clients.insert(node, (address.to_owned(), Arc::new(client)));
    }

    /// Forgets a node.
    pub fn remove(&self, node: NodeId) {
        self.clients.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&node);
    }
}

impl RaftTransport for RaftPeers {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let clients = self.clients.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let client = clients.get(&to).map(|(_, client)| client.clone());
        drop(clients);
        if let Some(client) = client {
            client.send(messages);
        }
    }
}
