//! The way to every node of the cluster: the object itself for one in this process, else a connection.
//!
//! In come addresses: from the topology, and from nodes that introduce themselves because they listen elsewhere than
//! the topology still says. Out go services and Raft messages. It must not know what any of them mean.

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto::services::{
    ClusterState, CoordinatorService, Identity, Peers, RaftMessage, RaftService, RaftTransport,
    ReplicaService, ShardService,
};
use proto::topology::{Node, Roles};
use proto::transport::{ClientConfig, NodeClient, RaftPeers};
use proto::{ClusterId, Epoch, NodeId};
use replica::Host;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A node that was down is looked for so often at least: until it hears its leaders it is of no use.
const RAFT_BACKOFF: Duration = Duration::from_millis(500);

/// What a node of this process offers to the others in it.
#[derive(Clone)]
pub struct Services {
    /// Its Raft replicas.
    pub host: Arc<Host>,
    /// Its shards, if it is a shardnode.
    pub shard: Option<Arc<dyn ShardService>>,
    /// Its replica of the coordinator, if it has one.
    pub coordinator: Option<Arc<dyn CoordinatorService>>,
}

/// The nodes of this process.
#[derive(Default)]
pub struct Process(ArcSwap<BTreeMap<NodeId, Services>>);

impl Process {
    /// A node has come, or what it offers has changed.
    pub fn put(&self, node: NodeId, services: Services) {
        self.0.rcu(|nodes| {
            let mut nodes = BTreeMap::clone(nodes);
            nodes.insert(node, services.clone());
            nodes
        });
    }

    /// A node is gone.
    pub fn remove(&self, node: NodeId) {
        self.0.rcu(|nodes| {
            let mut nodes = BTreeMap::clone(nodes);
            nodes.remove(&node);
            nodes
        });
    }

    fn with<T>(&self, node: NodeId, read: impl FnOnce(&Services) -> T) -> Option<T> {
        self.0.load().get(&node).map(read)
    }
}

/// One node's way to all the others.
pub struct NodePeers {
    process: Arc<Process>,
    membership: OnceLock<Membership>,
    book: ArcSwap<Book>,
    /// Held while the book is rewritten.
    writing: Mutex<()>,
}

struct Membership {
    node: NodeId,
    cluster: ClusterId,
    config: ClientConfig,
    raft: RaftPeers,
}

/// Where everyone is.
#[derive(Clone, Default)]
struct Book {
    nodes: BTreeMap<NodeId, Remote>,
    coordinators: Vec<NodeId>,
    epoch: Epoch,
    /// Where the topology has said that its nodes are. What a node says itself counts until the topology says something new.
    told: BTreeMap<NodeId, String>,
}

#[derive(Clone)]
struct Remote {
    address: String,
    roles: Roles,
    client: Arc<NodeClient>,
}

impl NodePeers {
    /// Nobody yet.
    pub fn new(process: Arc<Process>) -> Arc<Self> {
        Arc::new(Self {
            process,
            membership: OnceLock::new(),
            book: ArcSwap::default(),
            writing: Mutex::new(()),
        })
    }

    /// This node belongs to a cluster from now on. Must be called within the runtime that connections run on.
    pub fn enter(&self, cluster: ClusterId, node: NodeId, coordinators: &[Node]) {
        let config = ClientConfig { cluster: Some(cluster), ..ClientConfig::default() };
        let raft = RaftPeers::new(node, ClientConfig { most_backoff: RAFT_BACKOFF, ..config });
        // A node enters once.
        drop(self.membership.set(Membership { node, cluster, config, raft }));
        for coordinator in coordinators {
            self.meet(coordinator);
        }
        self.write(|book| book.coordinators = coordinators.iter().map(|node| node.id).collect());
    }

    /// A node of the cluster has said where it is.
    pub fn meet(&self, node: &Node) {
        let Some(membership) = self.membership.get() else { return };
        self.write(|book| membership.put(book, node));
    }

    /// Takes in what the topology says.
    pub fn follow(&self, state: &ClusterState) {
        let Some(membership) = self.membership.get() else { return };
        let topology = &state.topology;
        let known = self.book.load();
        if topology.epoch < known.epoch || (topology.epoch == known.epoch && known.epoch != Epoch(0)) {
            return;
        }
        drop(known);
        self.write(|book| {
            book.epoch = topology.epoch;
            // Founders register one after the other, and the leader may be one that hasn't yet.
            let Book { coordinators, told, .. } = &mut *book;
            coordinators.retain(|id| !told.contains_key(id) && !topology.nodes.contains_key(id));
            coordinators.extend(&topology.coordinators);
            for node in topology.nodes.values() {
                if book.told.get(&node.id) != Some(&node.address) {
                    book.told.insert(node.id, node.address.clone());
                    membership.put(book, node);
                }
            }
            let gone = |id: &NodeId| !topology.nodes.contains_key(id);
            let gone: Vec<_> =
                book.nodes.keys().filter(|id| gone(id) && !book.coordinators.contains(id)).copied().collect();
            for id in gone {
                book.nodes.remove(&id);
                book.told.remove(&id);
                membership.raft.remove(id);
            }
        });
    }

    /// Everyone of the cluster but this node, as far as is known.
    pub fn known(&self) -> Vec<Identity> {
        let Some(membership) = self.membership.get() else { return Vec::new() };
        let identity = |(id, remote): (&NodeId, &Remote)| Identity {
            member: Some((membership.cluster, *id)),
            address: remote.address.clone(),
            roles: remote.roles,
        };
        self.book.load().nodes.iter().map(identity).collect()
    }

    /// The nodes that hold the coordinator's replicas, as far as their addresses are known. `here` is this node.
    pub fn coordinator_nodes(&self, here: &Node) -> Vec<Node> {
        let book = self.book.load();
        let find = |id: &NodeId| match book.nodes.get(id) {
            _ if *id == here.id => Some(here.clone()),
            Some(remote) => {
                let (address, roles) = (remote.address.clone(), remote.roles);
                Some(Node { id: *id, address, roles, zone: String::new(), draining: false })
            }
            None => None,
        };
        book.coordinators.iter().filter_map(find).collect()
    }

    fn write(&self, change: impl FnOnce(&mut Book)) {
        let _turn = self.writing.lock();
        let mut book = Book::clone(&self.book.load());
        change(&mut book);
        self.book.store(Arc::new(book));
    }

    fn remote(&self, node: NodeId) -> Option<Arc<NodeClient>> {
        self.book.load().nodes.get(&node).map(|remote| remote.client.clone())
    }
}

impl Membership {
    fn put(&self, book: &mut Book, node: &Node) {
        let Node { id, address, roles, zone: _, draining: _ } = node;
        if *id == self.node {
            return;
        }
        match book.nodes.get_mut(id) {
            Some(known) if known.address == *address => known.roles = *roles,
            _ => {
                let client = NodeClient::with_config(address.clone(), Some(*id), self.config);
                let remote = Remote { address: address.clone(), roles: *roles, client: Arc::new(client) };
                book.nodes.insert(*id, remote);
                self.raft.set(*id, address);
            }
        }
    }
}

impl Peers for NodePeers {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        match self.process.with(node, |services| services.shard.clone()) {
            Some(local) => local,
            None => Some(self.remote(node)?),
        }
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        match self.process.with(node, |services| services.host.clone()) {
            Some(local) => Some(local),
            None => Some(self.remote(node)?),
        }
    }

    fn is_here(&self, node: NodeId) -> bool {
        self.process.with(node, |_| ()).is_some()
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        let book = self.book.load();
        let service = |node: &NodeId| -> Option<(NodeId, Arc<dyn CoordinatorService>)> {
            match self.process.with(*node, |services| services.coordinator.clone()) {
                Some(local) => Some((*node, local?)),
                None => Some((*node, book.nodes.get(node)?.client.clone())),
            }
        };
        let mut services: Vec<_> = book.coordinators.iter().filter_map(service).collect();
        // Whoever may choose chooses the nearest.
        services.sort_by_key(|(node, _)| self.membership.get().is_none_or(|m| m.node != *node));
        services
    }
}

impl RaftTransport for NodePeers {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let Some(membership) = self.membership.get() else { return };
        match self.process.with(to, |services| services.host.clone()) {
            Some(host) => host.receive(membership.node, messages),
            None => membership.raft.send(to, messages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::Topology;

    #[tokio::test]
    async fn a_node_that_was_removed_is_reached_again_once_it_is_back() {
        let peers = NodePeers::new(Arc::default());
        peers.enter(ClusterId(7), NodeId(1), &[]);
        let known = |epoch: u64, ids: &[u64]| {
            let node = |id: &u64| {
                let (id, address, zone) = (NodeId(*id), format!("127.0.0.1:{id}"), String::new());
                (id, Node { id, address, roles: Roles::ALL, zone, draining: false })
            };
            let nodes = ids.iter().map(node).collect();
            let topology = Arc::new(Topology { epoch: Epoch(epoch), nodes, ..Topology::default() });
            peers.follow(&ClusterState { topology, leaders: Arc::default(), catalog: Arc::default() });
            let known = peers.known().into_iter().map(|other| (other.member.unwrap().1.0, other.address));
            known.collect::<Vec<_>>()
        };
        let (two, three) = ((2, "127.0.0.1:2".to_owned()), (3, "127.0.0.1:3".to_owned()));
        assert_eq!(known(1, &[1, 2, 3]), [two.clone(), three.clone()]);
        assert_eq!(known(2, &[1, 2]), std::slice::from_ref(&two));
        assert_eq!(known(3, &[1, 2, 3]), [two, three]);
    }
}
