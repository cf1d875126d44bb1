//! `shoal dev`: a whole cluster in one process.
//!
//! Every node has its directory, its replicas and its address as in a real cluster, and becomes part of the cluster as
//! there; only that nodes which share a process need no sockets between them ([`crate::peers`]). Node 1's router
//! answers Postgres clients. The addresses are printed once every shard has a leader, so whoever reads them can begin.

use crate::arguments::Dev;
use crate::data_dir::{DataDir, Shape, WantedShape};
use crate::failure::Failure;
use crate::identity::Directory;
use crate::node::{Node, Settings};
use crate::peers::Process;
use crate::ready;
use crate::serve::{Metrics, announce, listen, of_router, stop_signal};
use crate::tuning::Tuned;
use proto::services::InitRequest;
use proto::topology::Roles;
use router::Router;
use std::sync::Arc;

/// Runs the cluster until Ctrl-C or SIGTERM.
pub async fn run(options: Dev) -> Result<(), Failure> {
    let wanted = WantedShape { nodes: options.nodes, shards: options.shards, replicas: options.replicas };
    let nodes = options.nodes.unwrap_or(3);
    if options.nodes.is_some() && options.replicas.is_some_and(|replicas| replicas > nodes) {
        return Err(Failure::Arguments(format!("--replicas may not be more than --nodes, which is {nodes}")));
    }
    let tuned = options.tuning.resolve()?;
    let mut stop = stop_signal()?;
    let clients = listen(&options.listen, options.insecure).await?;
    let address = clients.local_addr().map_err(Failure::Runtime)?;
    let data = DataDir::open(&options.data_dir, wanted, Shape::new(nodes, 2, nodes.min(3)))?;
    let metrics = Metrics::listen(options.metrics_listen.as_deref(), options.insecure).await?;
    let cluster = start(&data, &tuned).await?;
    cluster.iter().for_each(|node| metrics.sources.add(node.metrics()));
    let ready = tokio::select! {
        ready = form(&data, &cluster) => ready,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    if ready.is_ok() && !*stop.borrow() {
        let router = Arc::new(Router::new(tuned.router(String::new()), cluster[0].peers()));
        cluster[0].note_router(router.incarnation()).await;
        metrics.sources.add(of_router(cluster[0].member().await, &router));
        announce(Some(address), cluster[0].address(), metrics.address);
        router.serve(clients, async { drop(stop.wait_for(|stop| *stop).await) }).await;
    }
    for node in cluster {
        node.shutdown().await;
    }
    ready
}

async fn start(data: &DataDir, tuned: &Tuned) -> Result<Vec<Node>, Failure> {
    let process = Arc::new(Process::default());
    let mut listeners = Vec::new();
    for _ in 0..data.shape().nodes {
        listeners.push(listen("127.0.0.1:0", false).await?);
    }
    let addresses: Result<Vec<_>, _> = listeners.iter().map(|listener| listener.local_addr()).collect();
    let addresses: Vec<_> =
        addresses.map_err(Failure::Runtime)?.iter().map(|address| address.to_string()).collect();
    let mut nodes = Vec::new();
    for (number, listener) in (1..).zip(listeners) {
        let settings = Settings {
            address: addresses[nodes.len()].clone(),
            roles: Roles { router: number == 1, ..Roles::ALL },
            zone: String::new(),
            join: addresses.clone(),
            tuned: tuned.clone(),
        };
        let directory = Directory::open(&data.node(number))?;
        nodes.push(Node::start(settings, directory, listener, process.clone()).await?);
    }
    Ok(nodes)
}

/// Makes a cluster of the nodes, if they are none yet, and waits until it serves.
async fn form(data: &DataDir, nodes: &[Node]) -> Result<(), Failure> {
    let shape = data.shape();
    let first = &nodes[0];
    if !first.is_member() {
        let request =
            InitRequest { shards: Some(shape.shards), replicas: Some(shape.replicas), coordinators: None };
        let made = first.bootstrap().init(request).await;
        // It may just have gone on with what a crash interrupted.
        if !first.is_member() {
            made?;
        }
    }
    for node in nodes {
        tokio::select! {
            failure = node.failure() => return Err(Failure::Node(failure)),
            _ = node.member() => {}
        }
    }
    ready::wait(first.peers().as_ref()).await.map(drop)
}
