//! A node's end of the streams that others open to it.
//!
//! In come frames, out go calls of the node's services, each in a task of its own. The reader of a stream never
//! waits: it puts calls together, hands credit on, and aborts tasks whose caller is gone. What breaks the protocol
//! ends the stream, with the cause in its closing status. When a stream ends, everything that ran for it is dropped.

use super::answer::answer;
use super::lane::{Closed, Lane, LaneEnd, lane};
use super::pieces::{Inbound, Piece, Pieces, add_credit, pay};
use super::{CONNECTION_WINDOW, KEEPALIVE, MAX_FRAME, MAX_IN_FLIGHT, STREAM_WINDOW, WINDOW};
use super::{Received, check_hello, hello, lock, next_frame, raft};
use crate::error::WireError;
use crate::ids::{ClusterId, NodeId};
use crate::services::{BootstrapService, CoordinatorService, RaftService, ReplicaService, ShardService};
use crate::wire::Convert;
use crate::wire::generated::Nothing;
use crate::wire::generated::link::link_server::{Link, LinkServer};
use crate::wire::generated::link::{Frame, Open, Part, RaftFrame, frame::Kind};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How long connections may take to say goodbye once the server was told to stop.
const GOODBYE: Duration = Duration::from_secs(1);
/// Streams on one connection: a client needs two.
const STREAMS: u32 = 16;

/// What a node offers to others.
#[derive(Clone, Default)]
pub struct Services {
    /// Its cluster, once it belongs to one. A caller of another is refused.
    pub cluster: Option<ClusterId>,
    /// The node itself, once it belongs to a cluster.
    pub node: Option<NodeId>,
    /// How it becomes part of a cluster.
    pub bootstrap: Option<Arc<dyn BootstrapService>>,
    /// Its shards, if it is a shardnode.
    pub shard: Option<Arc<dyn ShardService>>,
    /// Its replicas, whatever their groups hold.
    pub replica: Option<Arc<dyn ReplicaService>>,
    /// Its replica of the coordinator, if it has one.
    pub coordinator: Option<Arc<dyn CoordinatorService>>,
    /// What takes Raft messages.
    pub raft: Option<Arc<dyn RaftService>>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Services { cluster, node, bootstrap, shard, replica, coordinator, raft } = self;
        f.debug_struct("Services")
            .field("cluster", cluster)
            .field("node", node)
            .field("bootstrap", &bootstrap.is_some())
            .field("shard", &shard.is_some())
            .field("replica", &replica.is_some())
            .field("coordinator", &coordinator.is_some())
            .field("raft", &raft.is_some())
            .finish()
    }
}

/// What a node offers to others, now. Clones are the same offer; every request finds what is offered when it comes.
#[derive(Clone, Debug, Default)]
pub struct Offer(Arc<RwLock<Arc<Services>>>);

impl Offer {
    /// What is offered now.
    pub fn get(&self) -> Arc<Services> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is offered.
    pub fn change(&self, change: impl FnOnce(&mut Services)) {
        let mut offered = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut services = Services::clone(&offered);
        change(&mut services);
        *offered = Arc::new(services);
    }
}

impl From<Services> for Offer {
    fn from(services: Services) -> Self {
        Offer(Arc::new(RwLock::new(Arc::new(services))))
    }
}

/// Serves a node's services until `shutdown` resolves, then ends every stream. Dropping the future does the same.
pub async fn serve(
    listener: TcpListener,
    services: impl Into<Offer>,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let closing = CancellationToken::new();
    let _ended = closing.clone().drop_guard();
    let node = Server { offer: services.into(), closing: closing.clone() };
    let node =
        LinkServer::new(node).max_decoding_message_size(MAX_FRAME).max_encoding_message_size(MAX_FRAME);
    let serving = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(node)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            shutdown.await;
            closing.cancel();
        });
    let late = async {
        closing.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    };
    tokio::select! {
        biased;
        served = serving => served.map_err(std::io::Error::other),
        () = late => Ok(()),
    }
}

struct Server {
    offer: Offer,
    closing: CancellationToken,
}

#[tonic::async_trait]
impl Link for Server {
    type RequestsStream = LaneEnd<Result<Frame, Status>>;
    type RaftStream = LaneEnd<Result<Nothing, Status>>;

    async fn requests(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        let frames = Box::pin(request.into_inner());
        Ok(Response::new(serve_stream(self.offer.clone(), frames, self.closing.clone())))
    }

    async fn raft(
        &self,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<Self::RaftStream>, Status> {
        let services = self.offer.get();
        let (Some(service), Some(node)) = (services.raft.clone(), services.node) else {
            return Err(Status::failed_precondition("this node has no replicas"));
        };
        let (lane, outbound) = lane();
        let (cluster, closing) = (services.cluster, self.closing.clone());
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            let end = tokio::select! {
                biased;
                () = closing.cancelled() => Some(going_down()),
                () = lane.closed() => None,
                end = raft::read(&mut frames, cluster, node, service.as_ref()) => end,
            };
            if let Some(status) = end {
                lane.post(Err(status));
            }
            lane.close();
        });
        Ok(Response::new(outbound))
    }
}

/// Serves one stream of requests in a task of its own. Gives the frames for the client.
pub(super) fn serve_stream(
    offer: Offer,
    frames: Received,
    closing: CancellationToken,
) -> LaneEnd<Result<Frame, Status>> {
    let (lane, outbound) = lane();
    let (running, ended) = (Mutex::default(), CancellationToken::new());
    tokio::spawn(read(Arc::new(Connection { lane, running, offer, ended }), frames, closing));
    outbound
}

fn going_down() -> Status {
    Status::unavailable("the node is shutting down")
}

/// One stream of requests.
pub(super) struct Connection {
    lane: Lane<Result<Frame, Status>>,
    running: Mutex<BTreeMap<u64, Running>>,
    offer: Offer,
    ended: CancellationToken,
}

/// A request whose call is still arriving, or runs.
struct Running {
    inbound: Inbound,
    timeout: u64,
    /// What the client grants for the answer.
    credit: Arc<Semaphore>,
    task: Option<AbortHandle>,
}

/// Reads a stream until its end, then drops what runs for it.
async fn read(connection: Arc<Connection>, mut frames: Received, closing: CancellationToken) {
    let reading = async {
        let first = next_frame(&mut frames).await?.and_then(|frame| frame.kind);
        let Some(Kind::Hello(first)) = first else {
            return Err(Status::invalid_argument("the first frame is no hello"));
        };
        let Services { cluster, node, .. } = *connection.offer.get();
        check_hello(&first, cluster, node).map_err(Status::failed_precondition)?;
        connection.post(0, Kind::Hello(hello(cluster, node, None)));
        while let Some(frame) = next_frame(&mut frames).await? {
            connection.receive(frame).map_err(Status::invalid_argument)?;
        }
        Ok(())
    };
    let end = tokio::select! {
        biased;
        () = closing.cancelled() => Err(going_down()),
        () = connection.ended.cancelled() => Ok(()),
        () = connection.lane.closed() => Ok(()),
        end = reading => end,
    };
    match end {
        Ok(()) => connection.end(None),
        Err(status) => connection.end(Some(status)),
    }
}

impl Connection {
    fn post(&self, request: u64, kind: Kind) {
        self.lane.post(Ok(Frame { request, kind: Some(kind) }));
    }

    /// Ends the stream and everything that runs for it.
    pub(super) fn end(&self, status: Option<Status>) {
        if let Some(status) = status {
            tracing::debug!(cause = status.message(), "a stream of requests ended");
            self.lane.post(Err(status));
        }
        self.lane.close();
        self.ended.cancel();
        let running = std::mem::take(&mut *lock(&self.running));
        for task in running.into_values().filter_map(|request| request.task) {
            task.abort();
        }
    }

    /// Takes a frame from the client. Errors say how it broke the protocol.
    fn receive(self: &Arc<Self>, frame: Frame) -> Result<(), String> {
        let id = frame.request;
        let mut running = lock(&self.running);
        let complete = match frame.kind {
            Some(Kind::Open(Open { timeout, part })) => {
                let part = part.ok_or("a request without its first piece")?;
                if id == 0 || running.contains_key(&id) {
                    return Err(format!("the number {id} for a new request"));
                }
                // A client's slot is free a moment before its request has left this table.
                if running.len() >= 2 * MAX_IN_FLIGHT {
                    return Err("too many requests at once".to_owned());
                }
                let (inbound, credit) = (Inbound::new(), Arc::new(Semaphore::new(WINDOW)));
                let request = running.entry(id).or_insert(Running { inbound, timeout, credit, task: None });
                self.piece(id, request, part)?
            }
            Some(Kind::Part(part)) => match running.get_mut(&id) {
                Some(Running { task: Some(_), .. }) => {
                    return Err("more of a request than its end".to_owned());
                }
                Some(request) => self.piece(id, request, part)?,
                // The request has failed, or was cancelled, while the rest of its call was on the way.
                None => None,
            },
            Some(Kind::Credit(granted)) => {
                if let Some(request) = running.get(&id) {
                    add_credit(&request.credit, granted)?;
                }
                None
            }
            Some(Kind::Cancel(Nothing {})) => {
                if let Some(task) = running.remove(&id).and_then(|request| request.task) {
                    task.abort();
                }
                None
            }
            Some(Kind::Hello(_) | Kind::Failed(_) | Kind::End(_)) => {
                return Err("a frame that has no place here".to_owned());
            }
            None => return Err("a frame of an unknown kind".to_owned()),
        };
        drop(running);
        if let Some((call, timeout, credit)) = complete {
            let reply = Reply { connection: self.clone(), id, credit };
            // Not under the lock: a runtime that shuts down drops the task, and with it the reply, at once.
            let task = tokio::spawn(answer(reply, call, timeout)).abort_handle();
            match lock(&self.running).get_mut(&id) {
                Some(request) => request.task = Some(task),
                // It has ended already, or the stream has.
                None => task.abort(),
            }
        }
        Ok(())
    }

    /// Takes a piece of a call. `Some` if it was the last.
    fn piece(&self, id: u64, request: &mut Running, part: Part) -> Result<Option<Complete>, String> {
        match request.inbound.accept(part)? {
            Piece::More(cost) => {
                self.post(id, Kind::Credit(cost as u32));
                Ok(None)
            }
            Piece::Message { end: false, .. } => Err("a request of several messages".to_owned()),
            Piece::Message { bytes, .. } => {
                let timeout = (request.timeout > 0).then(|| Duration::from_nanos(request.timeout));
                Ok(Some((bytes, timeout, request.credit.clone())))
            }
        }
    }
}

/// A whole call, the time that it has, and the credit for its answer.
type Complete = (Bytes, Option<Duration>, Arc<Semaphore>);

/// Where a request's answer goes. Dropping it takes the request out of the table.
pub(super) struct Reply {
    connection: Arc<Connection>,
    id: u64,
    credit: Arc<Semaphore>,
}

impl Reply {
    pub(super) fn services(&self) -> Arc<Services> {
        self.connection.offer.get()
    }

    /// Sends a message as the client grants credit for it. `end` if nothing follows it.
    pub(super) async fn message(&self, message: Bytes, end: bool) -> Result<(), Closed> {
        let mut pieces = Pieces::new(message, end);
        while let Some(cost) = pieces.next_cost() {
            pay(&self.credit, cost).await?;
            let Some(part) = pieces.next() else { break };
            self.send(Kind::Part(part), cost).await?;
        }
        Ok(())
    }

    /// Ends a stream of messages.
    pub(super) async fn end(&self) -> Result<(), Closed> {
        self.send(Kind::End(Nothing {}), super::PIECE_COST).await
    }

    /// Ends the request with an error.
    pub(super) async fn fail(&self, mut error: WireError) -> Result<(), Closed> {
        shorten(&mut error);
        let cost = super::PIECE_COST + error.message.len();
        self.send(Kind::Failed(error.to_message()), cost).await
    }

    /// Ends the whole stream: the client sends what nobody understands.
    pub(super) fn refuse(&self, what: impl std::fmt::Display) {
        self.connection.end(Some(Status::invalid_argument(what.to_string())));
    }

    async fn send(&self, kind: Kind, cost: usize) -> Result<(), Closed> {
        self.connection.lane.send(Ok(Frame { request: self.id, kind: Some(kind) }), cost).await
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        lock(&self.connection.running).remove(&self.id);
    }
}

/// Keeps an error's texts small enough for one frame.
fn shorten(error: &mut WireError) {
    const MOST: usize = 16 << 10;
    let cut = |text: &mut String| {
        if text.len() > MOST {
            text.truncate(text.floor_char_boundary(MOST));
            text.push_str("...");
        }
    };
    cut(&mut error.message);
    error.detail.as_mut().map(cut);
    error.hint.as_mut().map(cut);
}
