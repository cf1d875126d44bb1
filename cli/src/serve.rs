//! `shoal node`: one node of a cluster, until it is told to stop.
//!
//! The addresses are printed once both listen. Postgres clients hear that the node isn't part of a cluster until it
//! is. At the first SIGTERM or SIGINT the node takes no more clients, lets running statements end, and hands over what
//! it leads; at the second it ends at once.

use crate::arguments::NodeOptions;
use crate::failure::Failure;
use crate::identity::Directory;
use crate::metrics::{self, Sources};
use crate::node::{Node, Settings};
use crate::options::{self, Options};
use crate::peers::Process;
use prometheus::proto::MetricFamily;
use proto::{NodeId, SqlState, WireError};
use router::Router;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs the node until a signal.
pub async fn run(given: NodeOptions) -> Result<(), Failure> {
    let options = options::resolve(given)?;
    let stop = stop_signal()?;
    let directory = Directory::open(&options.data_dir)?;
    let listener = listen(&options.listen, options.insecure).await?;
    let clients = match &options.pg_listen {
        Some(address) => Some(listen(address, options.insecure).await?),
        None => None,
    };
    let address = advertised(&options, local(&listener)?)?;
    let pg = clients.as_ref().map(local).transpose()?;
    let metrics = Metrics::listen(options.metrics_listen.as_deref(), options.insecure).await?;
    let Options { roles, zone, join, tuned, .. } = options;
    let settings =
        Settings { address: address.clone(), roles, zone: zone.clone(), join, tuned: tuned.clone() };
    let node = Node::start(settings, directory, listener, Arc::new(Process::default())).await?;
    metrics.sources.add(node.metrics());
    announce(pg, &address, metrics.address);
    let served = tokio::select! {
        failure = node.failure() => Err(Failure::Node(failure)),
        () = serve(&node, clients, tuned.router(zone), &metrics.sources, stop) => Ok(()),
    };
    node.shutdown().await;
    served
}

/// Answers clients until the signal, then ends well.
async fn serve(
    node: &Node,
    clients: Option<TcpListener>,
    config: router::Config,
    sources: &Sources,
    mut stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    let stopping = async move { drop(stopped.wait_for(|stop| *stop).await) };
    let Some(clients) = clients else {
        stopping.await;
        return node.hand_over().await;
    };
    let not_yet = WireError::new(SqlState::CANNOT_CONNECT_NOW, "this node is not part of a cluster yet")
        .with_hint("Run shoal init at one of the nodes.");
    tokio::select! {
        () = router::decline(&clients, not_yet, async { _ = node.member().await }) => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    let router = Arc::new(Router::new(config, node.peers()));
    node.note_router(router.incarnation()).await;
    sources.add(of_router(node.member().await, &router));
    // Leaders go while the last statements run: what meets a leader that has gone finds the new one.
    let handing_over = async {
        drop(stop.wait_for(|stop| *stop).await);
        node.hand_over().await;
    };
    tokio::join!(router.serve(clients, stopping), handing_over);
}

/// What serves the process's figures, if somebody wants them, until it is dropped.
pub struct Metrics {
    /// To be filled with what has figures.
    pub sources: Arc<Sources>,
    /// Where they are served.
    pub address: Option<SocketAddr>,
    _serving: JoinSet<()>,
}

impl Metrics {
    /// Serves at `address`, if there is one.
    pub async fn listen(address: Option<&str>, insecure: bool) -> Result<Metrics, Failure> {
        let sources = Arc::<Sources>::default();
        let mut serving = JoinSet::new();
        let listener = match address {
            Some(address) => Some(listen(address, insecure).await?),
            None => None,
        };
        let address = listener.as_ref().map(local).transpose()?;
        listener.map(|listener| serving.spawn(metrics::serve(listener, sources.clone())));
        Ok(Metrics { sources, address, _serving: serving })
    }
}

/// A router's figures, as those of its node, as long as there is the router.
pub fn of_router(
    node: NodeId,
    router: &Arc<Router>,
) -> impl Fn() -> Option<(NodeId, Vec<MetricFamily>)> + Send + Sync + 'static {
    let router = Arc::downgrade(router);
    move || Some((node, router.upgrade()?.metrics()))
}

/// Turns true at the first SIGTERM or SIGINT. The second ends the process.
pub fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Runtime)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        sender.send_replace(true);
        either(&mut interrupt, &mut terminate).await;
        eprintln!("shoal: ended at once");
        std::process::exit(130);
    });
    Ok(receiver)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Listens on `host:port`. Addresses that others can reach need the user's word.
pub async fn listen(address: &str, insecure: bool) -> Result<TcpListener, Failure> {
    let failed = |source| Failure::Listen { address: address.to_owned(), source };
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    if let Some(open) = resolved.iter().find(|address| !address.ip().is_loopback())
        && !insecure
    {
        return Err(Failure::Insecure(*open));
    }
    TcpListener::bind(&resolved[..]).await.map_err(failed)
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(Failure::Runtime)
}

/// What others are told: the host as it was given, and the port that it is.
fn advertised(options: &Options, local: SocketAddr) -> Result<String, Failure> {
    if let Some(address) = &options.advertise {
        return Ok(address.clone());
    }
    if local.ip().is_unspecified() {
        let message =
            format!("listen is {local}, which others can't connect to: say with --advertise what they can");
        return Err(Failure::Arguments(message));
    }
    let host = options.listen.rsplit_once(':').map_or("", |(host, _)| host);
    Ok(format!("{host}:{}", local.port()))
}

/// Prints where the node is.
pub fn announce(clients: Option<SocketAddr>, admin: &str, metrics: Option<SocketAddr>) {
    // Someone who closed stdout doesn't want to read it.
    let mut out = std::io::stdout().lock();
    if let Some(clients) = clients {
        drop(writeln!(out, "psql -h {} -p {} -U shoal shoal", clients.ip(), clients.port()));
    }
    drop(writeln!(out, "admin: {admin}"));
    if let Some(metrics) = metrics {
        drop(writeln!(out, "metrics: http://{metrics}/metrics"));
    }
    drop(out.flush());
}
