//! `shoal init`: makes a cluster of the nodes that run, and says what it made.

use crate::admin;
use crate::arguments::Init;
use crate::failure::Failure;
use crate::peers::{NodePeers, Process};
use crate::ready;
use proto::NodeId;
use proto::services::{BootstrapService, InitRequest};
use proto::transport::NodeClient;
use std::io::Write;
use std::sync::Arc;

/// Makes the cluster and waits until it serves.
pub async fn run(options: Init) -> Result<(), Failure> {
    let Init { admin, shards, replicas, coordinators } = options;
    let node = NodeClient::connect(admin.host);
    let founding = node.init(InitRequest { shards, replicas, coordinators }).await?;
    // Node 0 is nobody: this process is no node of the cluster.
    let peers = NodePeers::new(Arc::new(Process::default()));
    peers.enter(founding.cluster, NodeId(0), &founding.coordinators);
    let state = ready::wait(peers.as_ref()).await?;
    let topology = &state.topology;
    let mut text = format!("cluster {}\n", founding.cluster);
    for node in topology.nodes.values() {
        let holds = if topology.coordinators.contains(&node.id) { ", coordinator" } else { "" };
        text += &format!("node {} at {}{holds}\n", node.id, node.address);
    }
    for keyspace in topology.keyspaces.values() {
        let (shards, replicas) = (keyspace.shards.len(), keyspace.replicas);
        text += &format!(
            "keyspace {}: {}, {} each\n",
            keyspace.name,
            admin::count(shards, "shard"),
            admin::count(replicas as usize, "replica")
        );
    }
    write!(std::io::stdout(), "{text}").map_err(Failure::Print)
}
