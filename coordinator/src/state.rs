//! The cluster's state as everyone follows it.
//!
//! In come the coordinator's tables as this node's replica has applied them, and reports of who leads. Out goes one
//! [`ClusterState`] after the other; a part that didn't change is the same object as before. A state never goes back
//! to an older topology or catalog.

use crate::loads::Loads;
use crate::store::Store;
use crate::vitals::{Ailment, Vitals};
use parking_lot::Mutex;
use proto::catalog::Catalog;
use proto::machine;
use proto::services::{ClusterState, Consistency, GroupLoad, ReplicaRole, ReplicaStatus};
use proto::topology::{Leaders, Topology};
use proto::{GroupId, NodeId, RouterIncarnation, WireError};
use replica::Replica;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a node's own replica may take to open a snapshot.
const SNAPSHOT: Duration = Duration::from_secs(5);
/// How busy somebody is, is told of so long.
const MINUTE: Duration = Duration::from_secs(60);

/// The newest state, and what nodes said.
pub(crate) struct State {
    sender: watch::Sender<ClusterState>,
    vitals: Mutex<Vitals>,
    loads: Mutex<Loads>,
}

impl State {
    pub(crate) fn new() -> Self {
        let empty = ClusterState {
            topology: Arc::new(Topology::default()),
            leaders: Arc::new(Leaders::default()),
            catalog: Arc::new(Catalog::default()),
        };
        let vitals = Mutex::new(Vitals::new(machine::now()));
        Self { sender: watch::Sender::new(empty), vitals, loads: Mutex::default() }
    }

    /// Follows it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<ClusterState> {
        self.sender.subscribe()
    }

    /// Reads what the replica has applied, and tells everyone what is new.
    pub(crate) async fn refresh(&self, replica: &Replica) -> Result<(), WireError> {
        let snapshot = replica.snapshot(Consistency::Eventual, machine::now() + SNAPSHOT).await?;
        let store = Store(snapshot.connection());
        let (epoch, version) = (store.epoch()?, store.version()?);
        let (known_epoch, known_version) = {
            let known = self.sender.borrow();
            (known.topology.epoch, known.catalog.version())
        };
        let topology = if epoch > known_epoch { Some(Arc::new(store.topology()?)) } else { None };
        let catalog = if version > known_version { Some(Arc::new(store.catalog()?)) } else { None };
        drop(snapshot);
        if topology.is_none() && catalog.is_none() {
            return Ok(());
        }
        self.sender.send_if_modified(|state| {
            // Another refresh may have been faster.
            let newer = topology.filter(|topology| topology.epoch > state.topology.epoch);
            let fresher = catalog.filter(|catalog| catalog.version() > state.catalog.version());
            let changed = newer.is_some() || fresher.is_some();
            state.topology = newer.unwrap_or_else(|| Arc::clone(&state.topology));
            state.catalog = fresher.unwrap_or_else(|| Arc::clone(&state.catalog));
            changed
        });
        Ok(())
    }

    /// Takes a node's report.
    pub(crate) fn report(&self, node: NodeId, replicas: &[ReplicaStatus], former: Vec<RouterIncarnation>) {
        self.sender.send_if_modified(|state| {
            let mut leaders = Leaders::clone(&state.leaders);
            let mut news = false;
            for status in replicas {
                let leader = match status.role {
                    ReplicaRole::Leader => Some(node),
                    ReplicaRole::Follower | ReplicaRole::Candidate | ReplicaRole::Learner => status.leader,
                };
                if let Some(leader) = leader {
                    news |= leaders.learn(status.group, status.term, leader);
                }
            }
            if news {
                state.leaders = Arc::new(leaders);
            }
            news
        });
        let now = machine::now();
        self.loads.lock().report(node, replicas, now);
        self.vitals.lock().report(node, replicas, former, now);
    }

    /// How busy groups have been in the last minute.
    pub(crate) fn loads(&self) -> Vec<GroupLoad> {
        self.loads.lock().all(MINUTE, machine::now())
    }

    /// How busy groups have been in the last ten minutes.
    pub(crate) fn loads_of_late(&self) -> Vec<GroupLoad> {
        self.loads.lock().all(10 * MINUTE, machine::now())
    }

    /// What each node last said.
    pub(crate) fn reports(&self) -> Vec<ReplicaStatus> {
        self.vitals.lock().statuses()
    }

    /// The routers that are gone for certain.
    pub(crate) fn gone(&self) -> BTreeSet<RouterIncarnation> {
        self.vitals.lock().gone()
    }

    /// All that is known of the nodes.
    pub(crate) fn vitals(&self) -> Vitals {
        self.vitals.lock().clone()
    }

    /// This node leads from now on.
    pub(crate) fn begin(&self) {
        self.vitals.lock().begin(machine::now());
    }

    /// Notes what is wrong with which replica. Returns what is new.
    pub(crate) fn look<'a>(
        &self,
        groups: impl IntoIterator<Item = (GroupId, &'a [NodeId], Option<NodeId>)>,
        now: Instant,
    ) -> Vec<(GroupId, NodeId, Ailment)> {
        self.vitals.lock().look(groups, now)
    }

    /// A group's replicas aren't what they were.
    pub(crate) fn settle(&self, group: GroupId) {
        self.vitals.lock().settle(group);
    }

    /// How long a node has been silent.
    pub(crate) fn silence(&self, node: NodeId) -> Duration {
        self.vitals.lock().silence(node, machine::now())
    }

    /// How long ago a node was heard of, if it was since this one leads.
    pub(crate) fn heard(&self, node: NodeId) -> Option<Duration> {
        self.vitals.lock().heard(node, machine::now())
    }

    /// Whether a node said that it has a replica of a group, and that it runs.
    pub(crate) fn has(&self, group: GroupId, node: NodeId) -> bool {
        self.vitals.lock().status(group, node).is_some_and(|status| status.stopped.is_none())
    }
}
