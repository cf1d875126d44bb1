//! Nodes that share this process: services are the objects themselves, Raft messages are method calls.

use proto::NodeId;
use proto::services::{
    CoordinatorService, Peers, RaftMessage, RaftService, RaftTransport, ReplicaService, ShardService,
};
use replica::Host;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// The services of one node.
#[derive(Clone)]
pub struct Services {
    /// Its Raft replicas.
    pub host: Arc<Host>,
    /// Its shards.
    pub shard: Arc<dyn ShardService>,
    /// Its replica of the coordinator, if it has one.
    pub coordinator: Option<Arc<dyn CoordinatorService>>,
}

/// All nodes of this process. Filled once they exist: until then nobody is found.
#[derive(Default)]
pub struct LocalPeers(OnceLock<BTreeMap<NodeId, Services>>);

impl LocalPeers {
    /// Makes the nodes known.
    pub fn fill(&self, nodes: BTreeMap<NodeId, Services>) {
        // A second filling would be of the same nodes.
        drop(self.0.set(nodes));
    }

    fn get(&self, node: NodeId) -> Option<&Services> {
        self.0.get()?.get(&node)
    }
}

impl Peers for LocalPeers {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        Some(self.get(node)?.shard.clone())
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        Some(self.get(node)?.host.clone())
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        let nodes = self.0.get().into_iter().flatten();
        nodes.filter_map(|(id, services)| Some((*id, services.coordinator.clone()?))).collect()
    }
}

/// Carries one node's Raft messages to the others of this process.
pub struct LocalTransport {
    /// The node that sends.
    pub from: NodeId,
    /// Where the others are.
    pub peers: Arc<LocalPeers>,
}

impl RaftTransport for LocalTransport {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        if let Some(services) = self.peers.get(to) {
            services.host.receive(self.from, messages);
        }
    }
}
