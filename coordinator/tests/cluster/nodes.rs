//! Nodes that join, come back, and claim each other's ids.

use crate::common::Cluster;
use proto::services::{NodeJoin, Peers};
use proto::topology::{Node, Roles};
use proto::{ClusterId, NodeId};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_gets_an_id_of_its_own() {
    let cluster = Cluster::start(1, 1).await;
    let join = async |join: NodeJoin| {
        let ask = cluster.ask(|coordinator| {
            let join = join.clone();
            async move { coordinator.join(join).await }
        });
        ask.await.unwrap()
    };
    let wish = |address: &str| NodeJoin {
        request: cluster.name(),
        address: address.into(),
        roles: Roles { router: true, shardnode: false, coordinator: false },
        zone: "east".into(),
    };
    let first = wish("a:1");
    let joined = join(first.clone()).await;
    assert_eq!((joined.cluster, joined.node), (ClusterId(77), NodeId(2)));
    assert_eq!(joined.coordinators.iter().map(|node| node.id).collect::<Vec<_>>(), [NodeId(1)]);
    let state = cluster.state().await;
    let node = &state.topology.nodes[&NodeId(2)];
    assert_eq!((node.address.as_str(), node.zone.as_str()), ("a:1", "east"));
    assert_eq!(state.topology.coordinators, [NodeId(1)]);
    assert_eq!(join(first).await, joined, "who didn't hear the answer asks again");
    assert_eq!(join(wish("a:1")).await.node, NodeId(3), "a new data directory is a new node");
    assert_eq!(join(wish("b:1")).await.node, NodeId(4));
    assert_eq!(cluster.state().await.topology.nodes.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_cannot_be_one_node() {
    let cluster = Cluster::start(1, 1).await;
    let register = async |id, address: &str| {
        let node = Node {
            id: NodeId(id),
            address: address.into(),
            roles: Roles::ALL,
            zone: String::new(),
            draining: false,
        };
        let coordinator = cluster.directory.coordinators().remove(0).1;
        coordinator.register(node).await
    };
    // Node 1 reports; a node that joined and was never heard of may listen elsewhere by now.
    let refused = register(1, "elsewhere:1").await.unwrap_err();
    assert_eq!(refused.sqlstate.as_str(), "55006");
    assert!(refused.message.contains("node 1 is another process"), "{refused}");
    assert_eq!(register(1, "").await, Ok(()));
    assert_eq!(register(9, "a:1").await, Ok(()));
    assert_eq!(register(9, "b:1").await, Ok(()));
    assert_eq!(cluster.state().await.topology.nodes[&NodeId(9)].address, "b:1");
    assert_eq!(register(0, "a:1").await.unwrap_err().sqlstate.as_str(), "22023");
    assert_eq!(register(65_536, "a:1").await.unwrap_err().sqlstate.as_str(), "22023");
}
