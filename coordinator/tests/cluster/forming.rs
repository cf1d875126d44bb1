//! Forming a cluster, keyspaces, and sequences.
use crate::common::Cluster;
use crate::tables;
use proto::services::{CreateKeyspace, SchemaChange};
use proto::topology::Sharding;
use proto::{KeyRange, NodeId, SequenceId};
use std::collections::HashSet;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_tells_at_once_what_was_acknowledged() {
    let cluster = Cluster::start(1, 1).await;
    let mut node = cluster.state().await.topology.nodes.values().next().cloned().unwrap();
    for id in 100..150 {
        node.id = NodeId(id);
        let new = node.clone();
        cluster
            .ask(|c| {
                let new = new.clone();
                async move { c.register(new).await }
            })
            .await
            .unwrap();
        assert!(cluster.state().await.topology.nodes.contains_key(&node.id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enough_nodes_make_a_cluster() {
    let cluster = Cluster::start(3, 4).await;
    let state = cluster.state().await;
    let main = state.topology.keyspace_named("main").unwrap();
    assert_eq!((main.sharding, main.replicas, main.shards.len()), (Sharding::Hash, 3, 4));
    let names: Vec<_> = main.shards.iter().map(|shard| state.topology.shard_name(*shard)).collect();
    assert_eq!(names, ["main/-40", "main/40-80", "main/80-c0", "main/c0-"]);
    let single = state.topology.keyspace_named("single").unwrap();
    assert_eq!((single.sharding, single.shards.len()), (Sharding::Single, 1));
    assert_eq!(state.topology.nodes.len(), 3);
    // Every shard has replicas on all three nodes, and likely leaders are spread.
    assert!(state.topology.shards.values().all(|shard| shard.replicas.len() == 3));
    let first: HashSet<_> = state.topology.shards.values().map(|shard| shard.replicas[0]).collect();
    assert_eq!(first.len(), 3);
    // Each group's leader becomes known, the coordinator's too, and each serves.
    cluster.state_where(|state| state.leaders.iter().count() == 6).await;
    for shard in state.topology.shards.keys() {
        cluster.run(*shard, "SELECT 1").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_serves_once_it_is_made() {
    let cluster = Cluster::start(1, 1).await;
    let wish = |name: &str, shards| CreateKeyspace {
        request: cluster.name(),
        name: name.into(),
        sharding: Sharding::Hash,
        shards,
        replicas: None,
    };
    let make = async |wish: CreateKeyspace| {
        cluster
            .ask(|coordinator| {
                let wish = wish.clone();
                async move { coordinator.create_keyspace(wish).await }
            })
            .await
    };
    let before = cluster.state().await;
    let orders = wish("orders", 3);
    let number = make(orders.clone()).await.unwrap();
    let after = cluster.formed().await;
    assert!(after.topology.epoch > before.topology.epoch);
    assert!(Arc::ptr_eq(&before.catalog, &after.catalog), "what doesn't change is the same object");
    let keyspace = &after.topology.keyspaces[&number];
    assert_eq!(keyspace.name, "orders");
    let ranges: Vec<_> =
        keyspace.shards.iter().map(|shard| after.topology.shards[shard].range.clone()).collect();
    assert_eq!(ranges, KeyRange::split_evenly(3));
    for shard in &keyspace.shards {
        cluster.run(*shard, "SELECT 1").await.unwrap();
    }

    // Whoever didn't hear the answer asks again.
    assert_eq!(make(orders).await.unwrap(), number);

    let refused = async |wish: CreateKeyspace| make(wish).await.unwrap_err().sqlstate.to_string();
    assert_eq!(refused(wish("orders", 1)).await, "42710");
    assert_eq!(refused(wish("Orders", 1)).await, "42602");
    assert_eq!(refused(wish("1st", 1)).await, "42602");
    assert_eq!(refused(wish("none", 0)).await, "22023");
    assert_eq!(refused(wish("many", 1025)).await, "22023");
    assert_eq!(refused(CreateKeyspace { replicas: Some(2), ..wish("wide", 1) }).await, "22023");
    assert_eq!(refused(CreateKeyspace { sharding: Sharding::Range, ..wish("cut", 2) }).await, "22023");
    assert_eq!(cluster.state().await.topology, after.topology);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_are_handed_out_in_blocks() {
    let cluster = Cluster::start(1, 1).await;
    cluster.change(SchemaChange::CreateSequence(tables::sequence("s"))).await.unwrap();
    let state = cluster.state().await;
    let sequence = Arc::clone(state.catalog.sequences().next().unwrap());
    assert_eq!(sequence.name, "s");
    let take = async |id: SequenceId, count| {
        let block = cluster.ask(|coordinator| async move { coordinator.allocate(id, count).await }).await?;
        Ok::<_, proto::WireError>((block.first, block.count))
    };
    assert_eq!(take(sequence.id, 10).await.unwrap(), (1, 10));
    assert_eq!(take(sequence.id, 1).await.unwrap(), (11, 1));
    let set = async |next| {
        let id = sequence.id;
        cluster.ask(|coordinator| async move { coordinator.set_sequence(id, next).await }).await
    };
    set(i64::MAX).await.unwrap();
    assert_eq!(take(sequence.id, 5).await.unwrap(), (i64::MAX, 1));
    assert_eq!(take(sequence.id, 5).await.unwrap_err().sqlstate.as_str(), "2200H");
    assert_eq!(set(0).await.unwrap_err().sqlstate.as_str(), "22003");
    assert_eq!(take(SequenceId(99), 1).await.unwrap_err().sqlstate.as_str(), "42P01");

    let again = SchemaChange::CreateSequence(tables::sequence("s"));
    let error = cluster.change(again).await.unwrap_err();
    assert_eq!(error.to_string(), "42P07: relation \"s\" already exists");
    let mut renamed = proto::catalog::Sequence::clone(&sequence);
    renamed.name = "r".into();
    let replace = SchemaChange::ReplaceSequence { sequence: renamed, restart: Some(40) };
    let version = cluster.change(replace).await.unwrap();
    let catalog = cluster.state().await.catalog;
    assert_eq!(catalog.version(), version);
    assert!(catalog.resolve("s").is_none() && catalog.resolve("r").is_some());
    assert_eq!(take(sequence.id, 2).await.unwrap(), (40, 2));
    cluster.change(SchemaChange::DropSequences(vec![sequence.id])).await.unwrap();
    assert_eq!(cluster.state().await.catalog.sequences().count(), 0);
}
