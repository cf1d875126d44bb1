//! The router's door: connections, their number, and their end.

use crate::cancel::{Reason, Sessions};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::executor::Executor;
use crate::executor::scalars::DATABASE;
use crate::gtid::{self, GTID};
use crate::metrics::Metrics;
use crate::protocol::backend;
use crate::protocol::framing::{FrameError, Frames};
use crate::protocol::startup::{self, Purpose, Startup};
use crate::session::output::Output;
use crate::session::settings::Settings;
use crate::session::{Session, role};
use crate::statements::PlanCache;
use futures::FutureExt;
use planner::plan::Notice;
use prometheus::proto::MetricFamily;
use proto::catalog::USER;
use proto::gtid::Position;
use proto::machine;
use proto::services::Peers;
use proto::{RouterIncarnation, ShardId, SqlState, WireError};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long statements may run on when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sessions may take to end when the server doesn't wait for their statements any more.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what they have committed may take to be finished then. The shards would do it by themselves, later.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after a connection that couldn't be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all sessions share.
pub struct Shared {
    pub(crate) executor: Executor,
    pub(crate) plans: PlanCache,
    pub(crate) metrics: Metrics,
    sessions: Arc<Sessions>,
    permits: Arc<Semaphore>,
}

/// A router.
pub struct Router {
    pub(crate) shared: Arc<Shared>,
}

impl Router {
    /// A router over the cluster that these peers form.
    pub fn new(config: Config, peers: Arc<dyn Peers>) -> Self {
        let plans = PlanCache::new(config.cached_plans);
        let permits = Arc::new(Semaphore::new(config.max_connections));
        let executor = Executor::new(config, Arc::new(Cluster::new(peers)));
        Self {
            shared: Arc::new(Shared {
                executor,
                plans,
                metrics: Metrics::new(),
                sessions: Arc::default(),
                permits,
            }),
        }
    }

    /// This start of the router: all its transactions bear it.
    pub fn incarnation(&self) -> RouterIncarnation {
        self.shared.executor.incarnation()
    }

    /// Statements, sessions, transactions and reads, in Prometheus' form.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let mut families = self.shared.metrics.gather(self.shared.sessions.count());
        families.extend(self.shared.executor.transactions.metrics());
        families.extend(self.shared.executor.replicas.reads.gather());
        families.extend(self.shared.executor.cluster.gate().gather());
        families
    }

    /// Keeps up with the cluster, and its transactions alive, until it is dropped. [`Self::serve`] does so by itself.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let Executor { cluster, transactions, .. } = &shared.executor;
            tokio::join!(cluster.follow(), transactions.keep_alive());
        }
    }

    /// Answers one client that has connected in another way than by [`Self::serve`]'s listener, until it leaves.
    pub fn converse<R, W>(&self, reader: R, writer: W) -> impl Future<Output = ()> + Send + use<R, W>
    where
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Sync + Unpin,
    {
        converse(self.shared.clone(), reader, writer)
    }

    /// Answers the connections of a listener until `shutdown` is ready. Sessions then end, those that run a statement
    /// after it. What still runs after a while is cancelled where it can be; a write that was sent to a shard is waited
    /// for.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let follower = tokio::spawn(self.follow());
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                // Connections that have ended are let go.
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(self.shared.clone(), stream));
                }
                Err(error) => {
                    // No file descriptors, most likely: accepting at once would only spin.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        self.shared.sessions.close();
        if !all_end(&mut connections, DRAIN_TIMEOUT).await {
            self.shared.sessions.shut_down();
            if !all_end(&mut connections, SHUTDOWN_TIMEOUT).await {
                tracing::warn!("sessions were ended in the middle of their statements");
            }
        }
        self.shared.executor.transactions.finish_all(machine::now() + FINISH_TIMEOUT).await;
        follower.abort();
    }
}

/// Waits for the end of all connections. `false`: not all have ended in time.
async fn all_end(connections: &mut JoinSet<()>, timeout: Duration) -> bool {
    let all = async { while connections.join_next().await.is_some() {} };
    tokio::time::timeout(timeout, all).await.is_ok()
}

/// Answers every connection with an error until `until` is ready: for a node that can't take clients yet. Who has connected by
/// then hears it all the same.
pub async fn decline(listener: &TcpListener, error: WireError, until: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    tokio::pin!(until);
    loop {
        let accepted = tokio::select! {
            // Whoever comes once it is ready isn't declined any more.
            biased;
            () = &mut until => return connections.detach_all(),
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let error = error.clone();
                connections.spawn(async move {
                    let (reader, writer) = stream.into_split();
                    let config = Config::default();
                    let mut frames = Frames::new(reader, config.max_message_bytes);
                    let mut output = Output::new(writer);
                    let purpose = startup::read(&mut frames, output.writer());
                    if let Ok(Ok(Purpose::Session(_))) =
                        tokio::time::timeout(config.startup_timeout, purpose).await
                    {
                        refuse(output, error, config.startup_timeout).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The life of a connection.
async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Answers are sent whole, so there is nothing to wait for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "can't set TCP_NODELAY");
    }
    let (reader, writer) = stream.into_split();
    converse(shared, reader, writer).await;
}

async fn converse<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(shared: Arc<Shared>, reader: R, writer: W) {
    let mut frames = Frames::new(reader, shared.executor.config.max_message_bytes);
    let mut output = Output::new(writer);
    let timeout = shared.executor.config.startup_timeout;
    let purpose = tokio::time::timeout(timeout, startup::read(&mut frames, output.writer())).await;
    let startup = match purpose {
        Err(_) | Ok(Err(FrameError::Closed)) => return,
        Ok(Err(FrameError::Invalid(error))) => return refuse(output, error, timeout).await,
        Ok(Ok(Purpose::Cancel { pid, secret })) => return shared.sessions.cancel(pid, secret),
        Ok(Ok(Purpose::Session(startup))) => startup,
    };
    let Ok(_permit) = shared.permits.clone().try_acquire_owned() else {
        let error = WireError::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
        return refuse(output, error, timeout).await;
    };
    let accepted = match accept(&shared, &startup).await {
        Ok(accepted) => accepted,
        Err(error) => return refuse(output, error, timeout).await,
    };
    session(shared, frames, output, startup, accepted).await;
}

async fn session<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    mut frames: Frames<R>,
    mut output: Output<W>,
    startup: Startup,
    Accepted { settings, warnings, token }: Accepted,
) {
    let registration = shared.sessions.register();
    let out = &mut output.buffer;
    let options = startup.unknown_options();
    if startup.minor > 0 || !options.is_empty() {
        backend::negotiate_version(out, &options);
    }
    backend::authentication_ok(out);
    for (name, value) in settings.reported() {
        backend::parameter_status(out, name, value);
    }
    backend::backend_key(out, registration.pid, registration.secret);
    for warning in &warnings {
        backend::notice(out, warning);
    }
    backend::ready(out, backend::Status::Idle);
    if output.flush().await.is_err() {
        return;
    }
    let mut session = Session::new(shared, &registration, output, settings, token);
    if AssertUnwindSafe(session.run(&mut frames)).catch_unwind().await.is_err() {
        tracing::error!("a session has panicked; it is closed, the others go on");
        registration.interrupt.raise(Reason::Lost);
        let error = WireError::internal("the session met a bug and is closed");
        let last_words = AssertUnwindSafe(session.end(error)).catch_unwind();
        // A client that doesn't listen isn't waited for.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, last_words).await;
    }
}

/// What a session begins with.
struct Accepted {
    settings: Settings,
    /// What of its role's settings it doesn't begin with.
    warnings: Vec<Notice>,
    /// What it must see.
    token: Vec<(ShardId, Position)>,
}

/// Checks what a client asks for at startup.
async fn accept(shared: &Shared, startup: &Startup) -> Result<Accepted, WireError> {
    let user = startup.get("user").unwrap_or_default();
    if user.is_empty() {
        let message = "no PostgreSQL user name specified in startup packet";
        return Err(WireError::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message));
    }
    if user != USER {
        let message = format!("role \"{user}\" does not exist");
        return Err(WireError::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
            .with_hint(format!("The user is \"{USER}\".")));
    }
    let database = startup.get("database").filter(|name| !name.is_empty()).unwrap_or(user);
    if database != DATABASE {
        let message = format!("database \"{database}\" does not exist");
        return Err(WireError::new(SqlState::INVALID_CATALOG_NAME, message)
            .with_hint(format!("The database is \"{DATABASE}\".")));
    }
    if startup.get("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(WireError::unsupported("the replication protocol"));
    }
    let deadline = machine::now() + shared.executor.config.retry_timeout;
    let cluster = &shared.executor.cluster;
    cluster.wait_ready(deadline).await?;
    let (mut settings, warnings) = role::begin(&cluster.load().catalog);
    let mut tokens = Vec::new();
    for (name, value) in startup.settings()? {
        match name.as_str() {
            "replication" => {}
            GTID => tokens.push(value),
            name => drop(settings.set(name, Some(&value))?),
        }
    }
    settings.keep_as_startup();
    let mut token = Vec::new();
    for text in tokens {
        token.extend(gtid::read(cluster, &text, deadline).await?);
    }
    Ok(Accepted { settings, warnings, token })
}

/// The one thing that a client hears which gets no session.
async fn refuse(mut output: Output<impl AsyncWrite + Unpin>, error: WireError, timeout: Duration) {
    backend::error(&mut output.buffer, backend::Severity::Fatal, &error.into());
    // A client that doesn't listen isn't waited for.
    let _ = tokio::time::timeout(timeout, output.flush()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn nobody_is_declined_once_there_is_a_router() {
        for _ in 0..64 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            decline(&listener, WireError::internal("not yet"), async {}).await;
            let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
            assert!(accepted.is_ok(), "a client was declined");
        }
    }

    #[tokio::test]
    async fn who_came_too_early_hears_so_though_clients_are_taken_by_now() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (taken, until) = oneshot::channel::<()>();
        let declining = tokio::spawn(async move {
            let error = WireError::new(SqlState::CANNOT_CONNECT_NOW, "not yet");
            decline(&listener, error, async { drop(until.await) }).await;
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A request for TLS, whose answer says that somebody has taken the connection.
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'N');
        taken.send(()).unwrap();
        declining.await.unwrap();
        stream.write_all(b"\0\0\0\x14\0\x03\0\0user\0shoal\0\0").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("57P03"), "{answer:?}");
    }
}
