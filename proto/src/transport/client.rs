//! The connection to a node elsewhere, and calls over it.
//!
//! In come calls, out come their answers or the error that says what became of them. The client connects when it is
//! first needed, and again when it is next needed after a loss. While a node can't be reached, calls fail at once
//! instead of waiting, so that whoever asks can ask another node.

use super::link::{Failure, Flight, Link, Messages};
use super::simulation::{self, Dial};
use super::{CONNECTION_WINDOW, KEEPALIVE, MAX_FRAME, MAX_MESSAGE, STREAM_WINDOW, check_hello, hello};
use super::{Received, next_frame};
use crate::error::{Retry, SqlState, WireError};
use crate::ids::{ClusterId, NodeId};
use crate::services::ServiceResult;
use crate::wire::DecodeError;
use crate::wire::generated::link::{Answer, Call, answer, call, frame, link_client::LinkClient};
use prost::Message;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// How a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long a small request without a timeout of its own may take. Schema changes and new keyspaces have none.
    pub call_timeout: Duration,
    /// How long a node is left alone after the first failure to reach it. Doubles with each further one.
    pub least_backoff: Duration,
    /// The longest that a node is left alone.
    pub most_backoff: Duration,
    /// The caller's cluster. A node of another one refuses it.
    pub cluster: Option<ClusterId>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(10),
            least_backoff: Duration::from_millis(50),
            most_backoff: Duration::from_secs(1),
            cluster: None,
        }
    }
}

impl ClientConfig {
    /// How long to leave a node alone after so many failures in a row: between half and the whole of the backoff, so
    /// that nodes which lost the same peer don't all come back in the same instant.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        // The standard library's only randomness is the seed of its hashers; it is new for each.
        self.backoff_by(failures, std::hash::RandomState::new().build_hasher().finish())
    }

    /// The same, by this number's lot.
    fn backoff_by(&self, failures: u32, random: u64) -> Duration {
        let doubled = self.least_backoff.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.most_backoff).mul_f64(0.5 + (random % 1024) as f64 / 2048.0)
    }
}

/// A node's shard and coordinator services, over the network. Clones share one connection, which ends with the last of
/// them and of the streams that they gave.
#[derive(Clone, Debug)]
pub struct NodeClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    target: Target,
    state: watch::Sender<State>,
    runtime: tokio::runtime::Handle,
    /// Ends the connection with the last clone.
    dropped: CancellationToken,
}

#[derive(Clone, Debug)]
pub(super) struct Target {
    address: String,
    node: Option<NodeId>,
    config: ClientConfig,
    /// How streams are opened where there are no sockets.
    dial: Option<Arc<dyn Dial>>,
}

#[derive(Clone, Debug)]
enum State {
    /// Not connected; the next call connects.
    Idle,
    Connecting,
    Up(Arc<Link>),
    /// Left alone until then.
    Down {
        failures: u32,
        until: Instant,
        cause: Arc<str>,
    },
}

impl NodeClient {
    /// A client of whichever node listens at `address` (`host:port`). Doesn't connect yet. Must be called within a
    /// Tokio runtime, which the connection will run on.
    pub fn connect(address: impl Into<String>) -> Self {
        Self::with_config(address, None, ClientConfig::default())
    }

    /// A client of this node alone: if another one listens at `address`, it can't be reached there.
    pub fn connect_node(node: NodeId, address: impl Into<String>) -> Self {
        Self::with_config(address, Some(node), ClientConfig::default())
    }

    /// The same, waiting as configured.
    pub fn with_config(address: impl Into<String>, node: Option<NodeId>, config: ClientConfig) -> Self {
        Self::to(Target { address: address.into(), node, config, dial: None })
    }

    /// A client of a node over streams that a simulation carries.
    pub(super) fn over(dial: Arc<dyn Dial>, node: NodeId, config: ClientConfig) -> Self {
        let address = format!("simulated:{node}");
        Self::to(Target { address, node: Some(node), config, dial: Some(dial) })
    }

    fn to(target: Target) -> Self {
        let (state, _) = watch::channel(State::Idle);
        let runtime = tokio::runtime::Handle::current();
        Self(Arc::new(Shared { target, state, runtime, dropped: CancellationToken::new() }))
    }

    /// Where the node listens.
    pub fn address(&self) -> &str {
        &self.0.target.address
    }

    pub(super) fn target(&self) -> &Target {
        &self.0.target
    }

    /// The open link, or a new one.
    async fn link(&self) -> Result<Arc<Link>, WireError> {
        let mut watcher = None;
        loop {
            let mut connect = None;
            let failures = match &*self.0.state.borrow() {
                State::Up(link) if link.is_open() => return Ok(link.clone()),
                State::Up(_) | State::Idle => Some(0),
                State::Down { failures, until, .. } if *until <= Instant::now() => Some(*failures),
                State::Down { cause, .. } => return Err(self.unreachable(cause)),
                State::Connecting => None,
            };
            if let Some(failures) = failures {
                self.0.state.send_if_modified(|state| {
                    // Somebody else may have been faster.
                    let stale = match state {
                        State::Up(link) => !link.is_open(),
                        State::Idle => true,
                        State::Down { until, .. } => *until <= Instant::now(),
                        State::Connecting => false,
                    };
                    if stale {
                        *state = State::Connecting;
                        connect = Some(failures);
                    }
                    stale
                });
            }
            if let Some(failures) = connect {
                let run =
                    run(Arc::downgrade(&self.0), self.0.target.clone(), failures, self.0.dropped.clone());
                self.0.runtime.spawn(run);
            }
            let watcher = watcher.get_or_insert_with(|| self.0.state.subscribe());
            let connecting = |state: &State| matches!(state, State::Connecting);
            match watcher.wait_for(|state| !connecting(state)).await {
                // However short the backoff: who waited for an attempt that failed waits for no other.
                Ok(state) => {
                    if let State::Down { cause, .. } = &*state {
                        return Err(self.unreachable(cause));
                    }
                }
                Err(_) => return Err(self.unreachable("the client was dropped")),
            }
        }
    }

    fn unreachable(&self, cause: &str) -> WireError {
        let message = format!("could not reach {}: {cause}", self.0.target);
        WireError::new(SqlState::CONNECTION_FAILURE, message).with_retry(Retry::Later)
    }

    /// Sends a call and waits for the answer's first message.
    pub(super) async fn call(
        &self,
        limit: Option<Duration>,
        lost: Retry,
        call: impl FnOnce(Option<Duration>) -> call::Kind,
    ) -> Result<(answer::Kind, Arc<Link>, Option<Messages>), WireError> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let sent = before(deadline, self.send(deadline, call)).await;
        let Some(sent) = sent else {
            return Err(self.unreachable("the request's time was up before it could be sent"));
        };
        let flight = sent?;
        let link = flight.link();
        let answered = before(deadline, flight.answer()).await;
        let Some(answered) = answered else {
            let message = "canceling statement due to timeout";
            return Err(WireError::new(SqlState::QUERY_CANCELED, message)
                .with_detail(format!("{} gave no answer in time.", self.0.target))
                .with_retry(timed_out(lost)));
        };
        let (bytes, messages) = answered.map_err(|failure| self.0.target.failed(failure, &link, &lost))?;
        let answer =
            Answer::decode(bytes).map_err(|e| self.0.target.garbled(&link, &lost, &e.to_string()))?;
        match answer.kind {
            Some(kind) => Ok((kind, link, messages)),
            None => Err(self.0.target.garbled(&link, &lost, "an answer of an unknown kind")),
        }
    }

    async fn send(
        &self,
        deadline: Option<Instant>,
        call: impl FnOnce(Option<Duration>) -> call::Kind,
    ) -> Result<Flight, WireError> {
        let link = self.link().await?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let bytes = Call { kind: Some(call(left)) }.encode_to_vec();
        if bytes.len() > MAX_MESSAGE {
            let message = format!("a request of {} bytes is too big", bytes.len());
            return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
                .with_detail(format!("Requests between nodes may have at most {MAX_MESSAGE} bytes."))
                .with_hint("Send fewer rows or smaller values at once."));
        }
        link.call(bytes.into(), left).await.map_err(|_| self.unreachable(link.cause()))
    }

    /// A call with one message for an answer.
    pub(super) async fn simple<T>(
        &self,
        limit: Option<Duration>,
        lost: Retry,
        call: call::Kind,
        read: impl FnOnce(answer::Kind) -> Option<Result<T, DecodeError>>,
    ) -> ServiceResult<T> {
        let (kind, link, messages) = self.call(limit, lost.clone(), |_| call).await?;
        match (read(kind), messages) {
            (Some(Ok(answer)), None) => Ok(answer),
            (Some(Err(e)), None) => Err(self.0.target.garbled(&link, &lost, &e.to_string())),
            _ => Err(self.0.target.garbled(&link, &lost, "an answer to another request")),
        }
    }

    pub(super) fn call_timeout(&self) -> Option<Duration> {
        Some(self.0.target.config.call_timeout)
    }
}

/// What became of a future by a deadline; `None` if nothing.
async fn before<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// What the deadline leaves: a read is over, a write may have run.
fn timed_out(lost: Retry) -> Retry {
    if lost == Retry::Later { Retry::Never } else { lost }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.node {
            Some(node) => write!(f, "node {node} at {}", self.address),
            None => write!(f, "the node at {}", self.address),
        }
    }
}

impl Target {
    pub(super) fn failed(&self, failure: Failure, link: &Link, lost: &Retry) -> WireError {
        match failure {
            Failure::Answered(error) => error,
            Failure::Lost => {
                let message = format!("lost the connection to {self}: {}", link.cause());
                WireError::new(SqlState::CONNECTION_FAILURE, message).with_retry(lost.clone())
            }
        }
    }

    /// Nothing comes from it though something should.
    pub(super) fn silent(&self) -> WireError {
        let message = format!("{self} has fallen silent");
        WireError::new(SqlState::CONNECTION_FAILURE, message).with_retry(Retry::Later)
    }

    fn backoff(&self, failures: u32) -> Duration {
        match &self.dial {
            Some(dial) => self.config.backoff_by(failures, dial.random()),
            None => self.config.backoff(failures),
        }
    }

    /// A peer that sends what nobody understands can't be trusted with the link's other requests.
    pub(super) fn garbled(&self, link: &Link, lost: &Retry, what: &str) -> WireError {
        link.end(format!("it broke the protocol: {what}"));
        self.failed(Failure::Lost, link, lost)
    }
}

/// A connection's whole life: makes it, reads it until it ends, leaves its cause behind.
async fn run(shared: Weak<Shared>, target: Target, failures: u32, dropped: CancellationToken) {
    let become_state = |state: State| {
        if let Some(shared) = shared.upgrade() {
            shared.state.send_replace(state);
        }
    };
    let open = tokio::time::timeout(target.config.connect_timeout, open(&target));
    let opened = tokio::select! {
        biased;
        () = dropped.cancelled() => return,
        opened = open => opened.unwrap_or_else(|_| Err("connecting took too long".to_owned())),
    };
    let (link, mut frames) = match opened {
        Ok(opened) => opened,
        Err(cause) => {
            let failures = failures.saturating_add(1);
            tracing::debug!(node = %target, %cause, failures, "connecting failed");
            let until = Instant::now() + target.backoff(failures);
            become_state(State::Down { failures, until, cause: cause.into() });
            return;
        }
    };
    become_state(State::Up(link.clone()));
    loop {
        let frame = tokio::select! {
            biased;
            () = dropped.cancelled() => break link.end("the client was dropped".to_owned()),
            () = link.ended() => break,
            frame = next_frame(&mut frames) => frame,
        };
        match frame {
            Ok(Some(frame)) => {
                if let Err(broken) = link.receive(frame) {
                    break link.end(format!("it broke the protocol: {broken}"));
                }
            }
            Ok(None) => break link.end("it closed the connection".to_owned()),
            Err(status) => break link.end(status_text(&status)),
        }
    }
    tracing::debug!(node = %target, cause = link.cause(), "the connection ended");
    // A link that worked counts as no failure: the next call connects at once.
    become_state(State::Idle);
}

pub(super) fn status_text(status: &tonic::Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}

/// An error with its causes, which is where tonic keeps what happened.
pub(super) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

pub(super) async fn channel(address: &str, config: &ClientConfig) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| format!("{address:?} is not host:port: {e}"))?
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| error_text(&e))
}

async fn open(target: &Target) -> Result<(Arc<Link>, Received), String> {
    let (link, outbound) = Link::new();
    link.post(0, frame::Kind::Hello(hello(target.config.cluster, None, target.node)));
    let mut frames: Received = match (&target.dial, target.node) {
        (Some(dial), Some(node)) => simulation::received(dial.dial(node, simulation::sent(outbound))),
        _ => {
            let channel = channel(&target.address, &target.config).await?;
            let mut client = LinkClient::new(channel)
                .max_decoding_message_size(MAX_FRAME)
                .max_encoding_message_size(MAX_FRAME);
            Box::pin(client.requests(outbound).await.map_err(|s| status_text(&s))?.into_inner())
        }
    };
    let first = next_frame(&mut frames).await.map_err(|s| status_text(&s))?;
    match first.and_then(|frame| frame.kind) {
        Some(frame::Kind::Hello(hello)) => check_hello(&hello, target.config.cluster, None)?,
        _ => return Err("it didn't say hello".to_owned()),
    }
    Ok((link, frames))
}
