//! What the router knows of the cluster, and how it stays up to date.
//!
//! A task follows any coordinator's watch stream and swaps the newest state in; statements load it without a lock.
//! Who leads a group is a hint that a shard's answer can correct until the next state comes.

use crate::gate::Gate;
use crate::retry::Backoff;
use arc_swap::{ArcSwap, Guard};
use dashmap::DashMap;
use futures::StreamExt;
use proto::machine;
use proto::services::{ClusterState, CoordinatorService, Peers, SILENCE};
use proto::topology::Leaders;
use proto::{Epoch, GroupId, NodeId, Retry, SchemaVersion, SqlState, WireError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long one coordinator may take to say how things are, until another is asked.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster, as this router sees it.
pub struct Cluster {
    peers: Arc<dyn Peers>,
    state: ArcSwap<ClusterState>,
    changed: watch::Sender<u64>,
    gate: Gate,
    corrected: AtomicBool,
    corrections: DashMap<GroupId, NodeId>,
    coordinator: AtomicU64,
}

impl Cluster {
    /// A cluster of which nothing is known yet.
    pub fn new(peers: Arc<dyn Peers>) -> Self {
        let state =
            ClusterState { topology: Arc::default(), leaders: Arc::default(), catalog: Arc::default() };
        Self {
            peers,
            state: ArcSwap::from_pointee(state),
            changed: watch::Sender::new(0),
            gate: Gate::new(),
            corrected: AtomicBool::new(false),
            corrections: DashMap::new(),
            coordinator: AtomicU64::new(0),
        }
    }

    /// The newest state. Don't hold it while waiting.
    pub fn load(&self) -> Guard<Arc<ClusterState>> {
        self.state.load()
    }

    /// The newest state, to keep.
    pub fn snapshot(&self) -> Arc<ClusterState> {
        self.state.load_full()
    }

    /// Where transaction blocks wait while shards are being replaced.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The nodes' services.
    pub fn peers(&self) -> &dyn Peers {
        self.peers.as_ref()
    }

    /// Follows the coordinators until it is dropped.
    pub async fn follow(&self) {
        loop {
            let mut backoff = Backoff::until(machine::now() + Duration::from_secs(3600));
            for (node, coordinator) in self.peers.coordinators() {
                match tokio::time::timeout(SILENCE, coordinator.watch())
                    .await
                    .unwrap_or_else(|_| Err(silent()))
                {
                    Ok(mut states) => {
                        // One that is silent is cut off, and another may not be.
                        while let Ok(Some(state)) = tokio::time::timeout(SILENCE, states.next()).await {
                            self.install(state);
                            backoff = Backoff::until(machine::now() + Duration::from_secs(3600));
                        }
                    }
                    Err(error) => tracing::debug!(%node, %error, "can't follow this coordinator"),
                }
            }
            backoff.pause().await;
        }
    }

    /// Takes in a state. Parts that are older than what is known are left out: coordinators may lag.
    pub fn install(&self, new: ClusterState) {
        let old = self.load();
        if Arc::ptr_eq(&old.topology, &new.topology)
            && Arc::ptr_eq(&old.leaders, &new.leaders)
            && Arc::ptr_eq(&old.catalog, &new.catalog)
        {
            return;
        }
        drop(old);
        self.state.rcu(|old| {
            let topology =
                if new.topology.epoch >= old.topology.epoch { &new.topology } else { &old.topology };
            let catalog =
                if new.catalog.version() >= old.catalog.version() { &new.catalog } else { &old.catalog };
            ClusterState {
                topology: topology.clone(),
                catalog: catalog.clone(),
                leaders: newest(&old.leaders, &new.leaders),
            }
        });
        self.corrected.store(false, Ordering::Release);
        self.corrections.clear();
        self.gate.hear(|| self.load().topology.clone());
        self.changed.send_modify(|n| *n += 1);
    }

    /// Tells of each new state from now on.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The node that leads a group, as far as is known.
    pub fn leader(&self, state: &ClusterState, group: GroupId) -> Option<NodeId> {
        if self.corrected.load(Ordering::Acquire)
            && let Some(node) = self.corrections.get(&group)
        {
            return Some(*node);
        }
        state.leaders.get(group)
    }

    /// A replica said who leads its group.
    pub fn correct_leader(&self, group: GroupId, node: NodeId) {
        self.corrections.insert(group, node);
        self.corrected.store(true, Ordering::Release);
    }

    /// Waits for a state of at least these versions; 57P03 at the deadline.
    pub async fn wait_for(
        &self,
        schema: SchemaVersion,
        epoch: Epoch,
        deadline: Instant,
    ) -> Result<Arc<ClusterState>, WireError> {
        let mut changed = self.changed.subscribe();
        loop {
            let state = self.snapshot();
            if state.catalog.version() >= schema && state.topology.epoch >= epoch {
                return Ok(state);
            }
            if !matches!(tokio::time::timeout_at(deadline.into(), changed.changed()).await, Ok(Ok(()))) {
                let message = match state.catalog.version() < schema {
                    true => "this router has not heard of the newest catalog yet",
                    false => "this router has not heard yet which shards serve now",
                };
                return Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message)
                    .with_hint("Run it again in a moment.")
                    .with_retry(Retry::Later));
            }
        }
    }

    /// Waits until there is a cluster: 57P03 if there is none by the deadline.
    pub async fn wait_ready(&self, deadline: Instant) -> Result<(), WireError> {
        let mut changed = self.changed.subscribe();
        loop {
            if self.load().topology.keyspaces.values().any(|keyspace| !keyspace.shards.is_empty()) {
                return Ok(());
            }
            if !matches!(tokio::time::timeout_at(deadline.into(), changed.changed()).await, Ok(Ok(()))) {
                return Err(WireError::new(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the database system is starting up",
                ));
            }
        }
    }

    /// What stands at the coordinator, at some moment from now on: asks its leader, until one answers. 57P03 if none does
    /// by then, and so nobody can say what is the newest.
    pub async fn confirm(&self, until: Instant) -> Result<Arc<ClusterState>, WireError> {
        let ask = |coordinator: Arc<dyn CoordinatorService>| async move {
            let asked = tokio::time::timeout(STATUS_TIMEOUT, coordinator.status());
            asked.await.unwrap_or_else(|_| Err(silent().with_retry(Retry::Later)))
        };
        match self.ask_coordinator(until + STATUS_TIMEOUT, until, ask).await {
            Ok(status) => {
                self.install(status.state);
                Ok(self.snapshot())
            }
            Err(error) => {
                tracing::debug!(%error, "nobody can say which catalog is the newest");
                let message = "the coordinator can't be asked whether this router's catalog is the newest";
                Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later))
            }
        }
    }

    /// Calls the coordinator's leader, wherever it is. Repeats the call until `retry_until` while the answer is that
    /// it may help, so the call must be one that can be repeated: a read, or one with a request id. An answer is
    /// waited for until the deadline.
    pub async fn ask_coordinator<T, F>(
        &self,
        deadline: Instant,
        retry_until: Instant,
        call: impl Fn(Arc<dyn CoordinatorService>) -> F,
    ) -> Result<T, WireError>
    where
        F: Future<Output = Result<T, WireError>>,
    {
        let mut backoff = Backoff::until(retry_until);
        let mut hint = Some(NodeId(self.coordinator.load(Ordering::Relaxed)));
        let mut turn = 0;
        loop {
            let coordinators = self.peers.coordinators();
            let named = coordinators.iter().find(|(node, _)| Some(*node) == hint);
            let Some((node, service)) = named.or_else(|| coordinators.get(turn % coordinators.len().max(1)))
            else {
                if backoff.pause().await {
                    continue;
                }
                return Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "no coordinator is known"));
            };
            turn += 1;
            let answer = match tokio::time::timeout_at(deadline.into(), call(service.clone())).await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = "the coordinator did not answer in time";
                    return Err(WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                        .with_retry(Retry::Unknown));
                }
            };
            let error = match answer {
                Ok(answer) => {
                    self.coordinator.store(node.0, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let asked_by_hint = hint == Some(*node);
            hint = None;
            match error.retry {
                Retry::NotLeader(Some(leader)) if !(asked_by_hint && leader == *node) => {
                    hint = Some(leader);
                    // One that was just named is asked at once, but two that name each other must not spin.
                    if turn <= 2 {
                        continue;
                    }
                }
                Retry::NotLeader(_) | Retry::Later | Retry::Behind(_) | Retry::Moved | Retry::Unknown => {}
                Retry::Never | Retry::StaleEpoch(_) | Retry::StaleSchema(_) => return Err(error),
            }
            if !backoff.pause().await {
                return Err(error);
            }
        }
    }
}

fn silent() -> WireError {
    WireError::new(SqlState::CONNECTION_FAILURE, "the coordinator does not answer")
}

/// For each group the leader of the latest term that either knows of.
fn newest(old: &Arc<Leaders>, new: &Arc<Leaders>) -> Arc<Leaders> {
    let mut merged = Leaders::clone(new);
    let mut kept = false;
    for (group, term, node) in old.iter() {
        kept |= merged.learn(group, term, node);
    }
    if kept { Arc::new(merged) } else { new.clone() }
}
