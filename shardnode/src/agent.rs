//! What makes a node part of its cluster: it registers, follows the topology, holds what that places on it, and
//! reports.
//!
//! In comes the coordinator's watch stream, out go registrations and reports, to whichever coordinators answer.
//! Nothing here serves a request.

use crate::node::{Before, ShardNode, is_still};
use futures_core::Stream;
use proto::machine::{self, Machine};
use proto::services::{
    BoxStream, ClusterState, CoordinatorService, Peers, ReplicaRole, ReplicaStatus, SILENCE,
};
use proto::topology::Node;
use proto::{Epoch, GroupId, NodeId, Retry, RouterIncarnation, SqlState, Term};
use replica::Host;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// How long a change waits for others that come with it: a node's death makes many groups elect at once.
const GATHER: Duration = Duration::from_millis(10);
/// How often a node reports though nothing has changed that others want to hear of at once, and looks for new coordinators.
const REPORT: Duration = Duration::from_secs(2);
/// How soon it reports again to a coordinator that didn't hear it.
const REPORT_AGAIN: Duration = Duration::from_millis(250);
/// How long it waits for a coordinator's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a first failure; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A node's part in its cluster.
pub struct Agent {
    /// The node, as it registers itself.
    pub node: Node,
    /// Its replicas.
    pub host: Arc<Host>,
    /// Its shards; `None` for a node that holds none.
    pub shards: Option<Arc<ShardNode>>,
    /// The routers that ran on this node in earlier processes, and so are gone.
    pub former: Vec<RouterIncarnation>,
    /// The way to the coordinators.
    pub peers: Arc<dyn Peers>,
    /// Is told each state of the cluster, before the shards are. Must not block.
    pub heard: Box<dyn Fn(&ClusterState) + Send + Sync>,
    /// Where threads come from.
    pub machine: Machine,
}

impl Agent {
    /// Plays the part until it is dropped.
    pub async fn run(self) {
        let settling = Settling::default();
        let known = async {
            // Until it is registered, another process may have its id, and be the one that is heard.
            self.register().await;
            self.report().await;
        };
        let flows = async {
            if let Some(shards) = &self.shards {
                shards.run_flows(Arc::clone(&self.peers)).await;
            }
        };
        tokio::join!(known, self.follow(&settling), self.settle(&settling), flows);
    }

    async fn register(&self) {
        let mut pause = FIRST_PAUSE;
        let mut hint: Option<NodeId> = None;
        let mut told = false;
        loop {
            let mut coordinators = self.peers.coordinators();
            coordinators.sort_by_key(|(node, _)| Some(*node) != hint);
            for (node, coordinator) in coordinators {
                match tokio::time::timeout(PATIENCE, coordinator.register(self.node.clone())).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        if let Retry::NotLeader(Some(leader)) = error.retry {
                            hint = Some(leader);
                        }
                        if error.sqlstate == SqlState::OBJECT_IN_USE && !std::mem::replace(&mut told, true) {
                            tracing::error!(node = %self.node.id, "this node is kept out of the cluster: {error}");
                        }
                        tracing::debug!(%node, %error, "not registered yet");
                    }
                    Err(_) => tracing::debug!(%node, "no answer to a registration"),
                }
            }
            wait(&mut pause).await;
        }
    }

    async fn follow(&self, settling: &Settling) {
        let mut pause = FIRST_PAUSE;
        loop {
            for (node, coordinator) in self.coordinators() {
                let watched = tokio::time::timeout(PATIENCE, coordinator.watch()).await;
                let mut states = match watched {
                    Ok(Ok(states)) => states,
                    Ok(Err(error)) => {
                        tracing::debug!(%node, %error, "the cluster can't be watched there");
                        continue;
                    }
                    Err(_) => continue,
                };
                // What is silent is cut off; another one may not be.
                while let Ok(Some(state)) = tokio::time::timeout(SILENCE, next(&mut states)).await {
                    pause = FIRST_PAUSE;
                    (self.heard)(&state);
                    let settled = self.shards.as_ref().is_none_or(|shards| shards.follow(&state));
                    if !settled || self.is_left_over(&state) || self.is_missing(&state) {
                        settling.needed.notify_one();
                    }
                }
            }
            wait(&mut pause).await;
        }
    }

    /// Has the node found and remove replicas, by what the coordinator's leader says: what a follower told may be old.
    async fn settle(&self, settling: &Settling) {
        loop {
            settling.needed.notified().await;
            let mut pause = FIRST_PAUSE;
            while !self.settled().await {
                wait(&mut pause).await;
            }
        }
    }

    async fn settled(&self) -> bool {
        let mut coordinators: VecDeque<_> = self.coordinators().into();
        let mut hinted = false;
        // What comes after the question may be of a change that the answer doesn't tell of, and stays.
        let before = match &self.shards {
            Some(shards) => shards.before(),
            None => Before { replicas: self.host.replicas(), ..Before::default() },
        };
        while let Some((node, coordinator)) = coordinators.pop_front() {
            match tokio::time::timeout(PATIENCE, coordinator.status()).await {
                Ok(Ok(status)) => return self.settle_by(status.state, before).await,
                Ok(Err(error)) => {
                    tracing::debug!(%node, %error, "the cluster's state can't be learned there");
                    let Retry::NotLeader(Some(leader)) = error.retry else { continue };
                    if let Some(at) = coordinators.iter().position(|(node, _)| *node == leader)
                        && !std::mem::replace(&mut hinted, true)
                    {
                        coordinators.swap(0, at);
                    }
                }
                Err(_) => tracing::debug!(%node, "no answer about the cluster's state"),
            }
        }
        false
    }

    async fn settle_by(&self, state: ClusterState, before: Before) -> bool {
        let left_over =
            self.is_left_over(&state) && is_still(&self.host, GroupId::COORDINATOR, &before.replicas);
        let missing = self.is_missing(&state);
        let (host, shards) = (Arc::clone(&self.host), self.shards.clone());
        let settled = self.machine.blocking(move || {
            if missing && host.note_missing(GroupId::COORDINATOR) {
                tracing::error!("the files of the coordinator's replica are gone");
            }
            if left_over && let Err(error) = host.remove(GroupId::COORDINATOR) {
                tracing::error!(%error, "the coordinator's replica that was taken from this node can't be removed");
                return false;
            }
            shards.is_none_or(|shards| shards.settle(&state, &before))
        });
        settled.await.unwrap_or_else(|error| {
            tracing::error!(%error, "following the topology has failed");
            false
        })
    }

    /// Whether the node has a replica of the coordinator's group and isn't meant to.
    fn is_left_over(&self, state: &ClusterState) -> bool {
        let (topology, node) = (&state.topology, self.node.id);
        topology.epoch > Epoch(0)
            && self.host.replica(GroupId::COORDINATOR).is_some()
            && !topology.coordinators.contains(&node)
            && !topology.joining.contains(&(GroupId::COORDINATOR, node))
    }

    /// Whether the node is meant to have a replica of the coordinator's group and has none. One that founds the group
    /// has made it before it follows anything.
    fn is_missing(&self, state: &ClusterState) -> bool {
        let (topology, node) = (&state.topology, self.node.id);
        let meant = topology.coordinators.contains(&node)
            && !topology.joining.contains(&(GroupId::COORDINATOR, node));
        meant && self.host.replica(GroupId::COORDINATOR).is_none()
    }

    /// Has a task for each coordinator, so that one which doesn't answer keeps no news from the others.
    async fn report(&self) {
        let mut reporters: HashMap<NodeId, AbortHandle> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let coordinators = self.peers.coordinators();
            for (coordinator, _) in &coordinators {
                if reporters.get(coordinator).is_none_or(AbortHandle::is_finished) {
                    let reporter = Reporter {
                        node: self.node.id,
                        coordinator: *coordinator,
                        host: self.host.clone(),
                        former: self.former.clone(),
                        peers: self.peers.clone(),
                    };
                    reporters.insert(*coordinator, tasks.spawn(reporter.run()));
                }
            }
            while tasks.try_join_next().is_some() {}
            tokio::time::sleep(if coordinators.is_empty() { REPORT_AGAIN } else { REPORT }).await;
        }
    }

    /// The coordinators, the one on this node first.
    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        let mut coordinators = self.peers.coordinators();
        coordinators.sort_by_key(|(node, _)| *node != self.node.id);
        coordinators
    }
}

/// What following and settling tell each other.
#[derive(Default)]
struct Settling {
    /// The node doesn't hold what it should.
    needed: Notify,
}

/// Tells one coordinator what the node's replicas are, and which routers are gone.
struct Reporter {
    node: NodeId,
    coordinator: NodeId,
    host: Arc<Host>,
    former: Vec<RouterIncarnation>,
    peers: Arc<dyn Peers>,
}

impl Reporter {
    /// Reports until that node is no coordinator any more.
    async fn run(self) {
        let mut changed = self.host.changed();
        let mut told: Option<Vec<Office>> = None;
        let mut due = machine::now();
        loop {
            changed.mark_unchanged();
            let statuses = self.host.statuses();
            let offices: Vec<_> = statuses.iter().map(office).collect();
            if told.as_ref() != Some(&offices) || machine::now() >= due {
                let coordinators = self.peers.coordinators();
                let found = coordinators.into_iter().find(|(node, _)| *node == self.coordinator);
                let Some((_, coordinator)) = found else { return };
                let report = coordinator.report(self.node, statuses, self.former.clone());
                let heard = matches!(tokio::time::timeout(PATIENCE, report).await, Ok(Ok(())));
                told = Some(offices);
                due = machine::now() + if heard { REPORT } else { REPORT_AGAIN };
            }
            // The host lives as long as this does, so the watch doesn't end; a change only comes before its time.
            if let Ok(Ok(())) = tokio::time::timeout_at(due.into(), changed.changed()).await {
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

/// What others want to hear of at once when it changes.
type Office = (GroupId, ReplicaRole, Term, Option<NodeId>, bool);

fn office(status: &ReplicaStatus) -> Office {
    (status.group, status.role, status.term, status.leader, status.stopped.is_some())
}

async fn next(states: &mut BoxStream<ClusterState>) -> Option<ClusterState> {
    poll_fn(|context| Stream::poll_next(Pin::as_mut(states), context)).await
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}
