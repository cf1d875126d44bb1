//! One node: who it is, how it becomes part of a cluster, and what it does from then on.
//!
//! In come settings, a directory and a listener. From the start the node answers who it is and whom it knows
//! ([`BootstrapService`]); everything else it answers once it belongs to a cluster:
//!
//! 1. A directory that says so: it goes on as the node that it was.
//! 2. `shoal init` here: the node picks the founders among those that it knows, writes the plan down, tells each, and
//!    founds the coordinator's group with them. A plan that a crash interrupted goes on at the next start.
//! 3. Another node's `found`: it is one of the founders.
//! 4. An acquaintance that belongs to a cluster: it asks the coordinator for an id, and joins.
//!
//! It must not know SQL, or what a shard holds.

mod bootstrap;
mod running;

use crate::failure::Failure;
use crate::identity::{self, Directory, Member};
use crate::meeting::Meeting;
use crate::peers::{NodePeers, Process};
use crate::tuning::Tuned;
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use proto::services::{BootstrapService, Identity, Introduction, NodeJoin, Peers};
use proto::topology::{Node as Registered, Roles};
use proto::transport::{self, NodeClient, Offer};
use proto::{ClusterId, NodeId, RequestId, RouterIncarnation, WireError};
use running::Running;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often a node without a cluster looks for one.
const LOOK: Duration = Duration::from_millis(250);
/// A founder that hasn't been told so for this long isn't one: its directory is another than the founder's was.
const FOUND: Duration = Duration::from_secs(10);
/// A node that has heard nothing of the coordinator for this long tells everyone where it is.
const SILENCE: Duration = Duration::from_secs(5);

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` where others reach it.
    pub address: String,
    /// What it is willing to do.
    pub roles: Roles,
    /// Its zone; empty for none.
    pub zone: String,
    /// Addresses of others.
    pub join: Vec<String>,
    /// Times and bounds.
    pub tuned: Tuned,
}

impl Settings {
    /// What the coordinator is told of the node.
    fn registered(&self, id: NodeId) -> Registered {
        let Settings { address, roles, zone, .. } = self.clone();
        Registered { id, address, roles, zone, draining: false }
    }
}

/// A node that runs.
pub struct Node {
    core: Arc<Core>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

/// What the node's tasks share.
struct Core {
    settings: Settings,
    /// Held while the node becomes part of a cluster.
    directory: tokio::sync::Mutex<Directory>,
    meeting: Meeting,
    offer: Offer,
    process: Arc<Process>,
    peers: Arc<NodePeers>,
    /// What runs once it belongs to a cluster.
    running: watch::Sender<Option<Arc<Running>>>,
    /// Why it can't go on.
    failure: watch::Sender<Option<Arc<Failure>>>,
    /// When the coordinator was last heard of.
    heard: Mutex<Option<Instant>>,
}

impl Node {
    /// Starts a node, which serves others on `listener`.
    pub async fn start(
        settings: Settings,
        directory: Directory,
        listener: TcpListener,
        process: Arc<Process>,
    ) -> Result<Node, Failure> {
        let peers = NodePeers::new(process.clone());
        let core = Arc::new(Core {
            meeting: Meeting::new(settings.join.clone()),
            settings,
            directory: tokio::sync::Mutex::new(directory),
            offer: Offer::default(),
            process,
            peers,
            running: watch::Sender::new(None),
            failure: watch::Sender::new(None),
            heard: Mutex::new(None),
        });
        {
            let mut directory = core.directory.lock().await;
            if let Some(member) = directory.record().member.clone() {
                core.run(&mut directory, member).await?;
            }
        }
        let bootstrap: Arc<dyn BootstrapService> = Arc::new(bootstrap::Bootstrap(Arc::downgrade(&core)));
        core.offer.change(|services| services.bootstrap = Some(bootstrap));
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let (mut stopped, offer) = (stop.subscribe(), core.offer.clone());
        tasks.spawn(async move {
            // A node that was dropped without a shutdown ends, too.
            let until = async move { drop(stopped.wait_for(|stop| *stop).await) };
            if let Err(error) = transport::serve(listener, offer, until).await {
                tracing::error!(%error, "the node's own socket is gone");
            }
        });
        let living = core.clone();
        tasks.spawn(async move {
            if let Err(failure) = living.live().await {
                living.failure.send_replace(Some(Arc::new(failure)));
            }
        });
        Ok(Node { core, tasks, stop })
    }

    /// Where others reach it.
    pub fn address(&self) -> &str {
        &self.core.settings.address
    }

    /// The way to all nodes.
    pub fn peers(&self) -> Arc<dyn Peers> {
        self.core.peers.clone()
    }

    /// How it becomes part of a cluster.
    pub fn bootstrap(&self) -> Arc<dyn BootstrapService> {
        Arc::new(bootstrap::Bootstrap(Arc::downgrade(&self.core)))
    }

    /// Waits until it belongs to a cluster.
    pub async fn member(&self) -> NodeId {
        let mut running = self.core.running.subscribe();
        let member = running.wait_for(Option::is_some).await;
        let member = member.ok().and_then(|running| running.as_ref().map(|running| running.node()));
        member.expect("the node holds the sender, and what was waited for is there")
    }

    /// Whether it belongs to a cluster now.
    pub fn is_member(&self) -> bool {
        self.core.running.borrow().is_some()
    }

    /// Has the node's next process know which router this one had.
    pub async fn note_router(&self, router: RouterIncarnation) {
        if let Err(error) = self.core.directory.lock().await.note_router(router) {
            tracing::warn!(%error, "should this process die, what its router leaves will be locked for some seconds more");
        }
    }

    /// What it has done and how its replicas are, in Prometheus' form, while it belongs to a cluster.
    pub fn metrics(&self) -> impl Fn() -> Option<(NodeId, Vec<MetricFamily>)> + Send + Sync + 'static {
        let core = Arc::downgrade(&self.core);
        move || {
            let running = core.upgrade()?.running.borrow().clone()?;
            Some((running.node(), running.metrics()))
        }
    }

    /// Waits until it can't go on, and says why.
    pub async fn failure(&self) -> Arc<Failure> {
        let mut failure = self.core.failure.subscribe();
        let failure = failure.wait_for(Option::is_some).await;
        failure.ok().and_then(|failure| failure.clone()).expect("the node holds the sender")
    }

    /// Hands over to others what this node leads, as far as that takes no longer than a moment.
    pub async fn hand_over(&self) {
        let running = self.core.running.borrow().clone();
        if let Some(running) = running {
            running.hand_over().await;
        }
    }

    /// Ends it: no more requests, threads joined, files closed.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let running = self.core.running.send_replace(None);
        if let Some(running) = &running {
            running.stop_tasks().await;
        }
        self.tasks.shutdown().await;
        if let Some(running) = running {
            self.core.process.remove(running.node());
            running.close().await;
        }
    }
}

impl Core {
    /// Who the node is.
    fn identity(&self) -> Identity {
        let member = self.running.borrow().as_ref().map(|running| (running.cluster(), running.node()));
        Identity { member, address: self.settings.address.clone(), roles: self.settings.roles }
    }

    /// What it answers to who asks.
    fn introduction(&self) -> Introduction {
        let node = self.identity();
        let mut known = self.meeting.known();
        let met = |known: &[Identity], address: &str| known.iter().any(|known| known.address == address);
        for identity in self.peers.known() {
            if !met(&known, &identity.address) {
                known.push(identity);
            }
        }
        let coordinators = match node.member {
            Some((_, id)) => {
                let here = self.settings.registered(id);
                self.peers.coordinator_nodes(&here)
            }
            None => Vec::new(),
        };
        Introduction { node, known, unmet: self.meeting.unmet(), coordinators }
    }

    /// Somebody says who they are.
    fn learn(&self, identity: &Identity) {
        if identity.address == self.settings.address {
            return;
        }
        self.meeting.learn(identity.clone());
        let ours = self.running.borrow().as_ref().map(|running| running.cluster());
        if let (Some(ours), Some((cluster, id))) = (ours, identity.member)
            && ours == cluster
        {
            let Identity { address, roles, .. } = identity.clone();
            self.peers.meet(&Registered { id, address, roles, zone: String::new(), draining: false });
        }
    }

    /// Becomes part of a cluster, for good.
    async fn enter(self: &Arc<Self>, directory: &mut Directory, member: Member) -> Result<(), Failure> {
        directory.change(|record| {
            record.member = Some(member.clone());
            record.join = None;
        })?;
        tracing::info!(cluster = %member.cluster, node = %member.node, "this node belongs to a cluster");
        self.run(directory, member).await
    }

    /// Runs as what the directory says.
    async fn run(self: &Arc<Self>, directory: &mut Directory, member: Member) -> Result<(), Failure> {
        self.peers.enter(member.cluster, member.node, &identity::nodes(&member.coordinators));
        let running = Running::open(self, directory, &member).await?;
        self.running.send_replace(Some(running));
        Ok(())
    }

    /// Becomes part of a cluster if it is none, and sees to it that others can find it.
    async fn live(self: &Arc<Self>) -> Result<(), Failure> {
        let mut named_founder: Option<Instant> = None;
        let mut first = true;
        loop {
            if self.running.borrow().is_none() {
                self.go_on_founding().await;
            }
            let silent = self.heard.lock().is_none_or(|heard| heard.elapsed() > SILENCE);
            if silent || first {
                let more = self.peers.known().into_iter().map(|identity| identity.address);
                let introductions = self.meeting.ask(&self.identity(), more).await;
                for introduction in &introductions {
                    self.learn(&introduction.node);
                }
                match self.identity().member {
                    Some((cluster, _)) if first => self.check_cluster(cluster, &introductions).await?,
                    Some(_) => {}
                    None => self.join(&introductions, &mut named_founder).await?,
                }
            }
            first = false;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A directory of another cluster than the nodes that this one was told of is a mistake.
    async fn check_cluster(&self, ours: ClusterId, introductions: &[Introduction]) -> Result<(), Failure> {
        let elsewhere = introductions.iter().find_map(|introduction| match introduction.node.member {
            Some((theirs, _)) if theirs != ours => Some((theirs, &introduction.node.address)),
            _ => None,
        });
        if let Some((theirs, address)) = elsewhere {
            let message =
                format!("it belongs to cluster {ours}, but the node at {address} to cluster {theirs}");
            let path = self.directory.lock().await.path().to_owned();
            return Err(Failure::DataUnfit { path, message });
        }
        Ok(())
    }

    /// Joins the cluster that others belong to.
    async fn join(
        self: &Arc<Self>,
        introductions: &[Introduction],
        named_founder: &mut Option<Instant>,
    ) -> Result<(), Failure> {
        let members = || introductions.iter().filter_map(|i| Some((i.node.member?.0, i)));
        let Some((cluster, first)) = members().next() else { return Ok(()) };
        if let Some((other, second)) = members().find(|(other, _)| *other != cluster) {
            return Err(Failure::Arguments(format!(
                "the nodes that this one was told of belong to different clusters: the one at {} to {cluster}, the \
                 one at {} to {other}",
                first.node.address, second.node.address
            )));
        }
        let mut coordinators: Vec<&Registered> = members().flat_map(|(_, i)| &i.coordinators).collect();
        coordinators.sort_by_key(|node| node.id);
        coordinators.dedup_by_key(|node| node.id);
        if coordinators.iter().any(|node| node.address == self.settings.address)
            && named_founder.get_or_insert_with(Instant::now).elapsed() < FOUND
        {
            return Ok(());
        }
        let mut directory = self.directory.lock().await;
        if directory.record().member.is_some() || directory.record().plan.is_some() {
            return Ok(());
        }
        if directory.record().join.is_none() {
            directory.change(|record| record.join = Some(rand::random()))?;
        }
        let Some(name) = directory.record().join else { return Ok(()) };
        let request = NodeJoin {
            request: RequestId { router: RouterIncarnation(name), sequence: 1 },
            address: self.settings.address.clone(),
            roles: self.settings.roles,
            zone: self.settings.zone.clone(),
        };
        for coordinator in coordinators {
            let client: NodeClient = self.meeting.client(&coordinator.address);
            let joined = proto::services::CoordinatorService::join(&client, request.clone()).await;
            match joined {
                Ok(joined) => return self.enter(&mut directory, Member::from(&joined)).await,
                Err(error) => self.note_refusal(&coordinator.address, &error),
            }
        }
        Ok(())
    }

    fn note_refusal(&self, address: &str, error: &WireError) {
        if error.retry == proto::Retry::Never {
            tracing::warn!(address, %error, "the cluster doesn't let this node in yet");
        } else {
            tracing::debug!(address, %error, "the cluster can't be joined there");
        }
    }

    /// The coordinator was heard of: nobody need be looked for.
    fn note_heard(&self) {
        *self.heard.lock() = Some(Instant::now());
    }
}
