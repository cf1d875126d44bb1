//! Schema changes whose coordinator or shard is away for a while.

use crate::common::{Cluster, PATIENCE};
use crate::tables::{MAIN, create, hashed, replace, table};
use proto::catalog::Table;
use proto::services::{CoordinatorService, SchemaChange};
use proto::{ColumnId, Retry};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_finishes_what_was_begun() {
    let mut cluster = Cluster::start(3, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let state = cluster.state().await;
    let t = state.catalog.table_named("t").unwrap();
    let shards = cluster.shards_of(MAIN).await;
    cluster.close(shards[1]);
    // One change that publishes last, and one that publishes first.
    let made = cluster.request(state.catalog.version(), create(table("u", hashed())));
    let dropped = cluster.request(state.catalog.version(), SchemaChange::DropTables(vec![t.id]));
    let waiting = [&made, &dropped].map(|request| {
        let (directory, request) = (Arc::clone(&cluster.directory), request.clone());
        let call = move |coordinator: Arc<dyn CoordinatorService>| {
            let request = request.clone();
            async move { coordinator.change_schema(request).await }
        };
        tokio::spawn(async move { directory.ask(call).await })
    });
    cluster.refused().await;
    cluster.state_where(|state| state.catalog.table_named("t").is_none()).await;
    assert!(cluster.state().await.catalog.table_named("u").is_none());

    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    assert_ne!(cluster.leader().await, leader);
    cluster.open_all();
    // Who asked sees it through by asking again.
    let mut versions = Vec::new();
    for waiting in waiting {
        versions.push(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap());
    }
    assert_eq!(cluster.send(&made).await.unwrap(), versions[0]);
    assert_eq!(cluster.send(&dropped).await.unwrap(), versions[1]);
    let state = cluster.state().await;
    assert_eq!(Some(&state.catalog.version()), versions.iter().max());
    let names: Vec<_> = state.catalog.tables().map(|table| table.name.clone()).collect();
    assert_eq!(names, ["u"]);
    let u = state.catalog.table_named("u").unwrap().id;
    for shard in shards {
        cluster.run(shard, &format!("INSERT INTO t{u} VALUES (1, 1)")).await.unwrap();
        assert!(cluster.run(shard, &format!("SELECT 1 FROM t{}", t.id)).await.is_err());
    }
    // The node that was away learns of it.
    cluster.open(leader);
    cluster.state_where(|state| state.catalog.table_named("u").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_table_come_one_after_the_other() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let state = cluster.state().await;
    let t = state.catalog.table_named("t").unwrap();
    let shards = cluster.shards_of(MAIN).await;
    cluster.close(shards[0]);
    let mut altered = Table::clone(t);
    altered.columns.push(crate::tables::column(3, "c", false));
    altered.next_column = ColumnId(4);
    let alter = cluster.request(state.catalog.version(), replace(altered));
    let drop = cluster.request(state.catalog.version(), SchemaChange::DropTables(vec![t.id]));
    let mut altering = Box::pin(cluster.send(&alter));
    let begun = async {
        tokio::select! {
            answer = &mut altering => panic!("a closed shard can't be altered: {answer:?}"),
            () = cluster.refused() => {}
        }
    };
    begun.await;
    let mut dropping = Box::pin(cluster.send(&drop));
    // Another table isn't held up by it, but for its own step on the closed shard.
    let single = create(table("s", proto::catalog::Placement::Single { keyspace: crate::tables::SINGLE }));
    cluster.change(single).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut dropping).await.is_err());
    cluster.open_all();
    altering.await.unwrap();
    // It was planned before the other, so it must be planned again.
    assert!(matches!(dropping.await.unwrap_err().retry, Retry::StaleSchema(_)));
    let state = cluster.state().await;
    assert_eq!(state.catalog.table_named("t").unwrap().columns.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_comes_back_as_it_was() {
    let mut cluster = Cluster::start(1, 2).await;
    let request = cluster.request(cluster.state().await.catalog.version(), create(table("t", hashed())));
    let version = cluster.send(&request).await.unwrap();
    let before = cluster.state().await;
    let t = before.catalog.table_named("t").unwrap().id;
    for shard in cluster.shards_of(MAIN).await {
        cluster.run(shard, &format!("INSERT INTO t{t} VALUES (1, 1)")).await.unwrap();
    }
    let node = cluster.leader().await;
    cluster.stop(node).await;
    cluster.open(node);
    let after = cluster.state_where(|state| state.catalog.version() == version).await;
    // Registering again as before is no news.
    assert_eq!(after.topology, before.topology);
    assert_eq!(after.catalog.table_named("t"), before.catalog.table_named("t"));
    for shard in cluster.shards_of(MAIN).await {
        assert_eq!(cluster.count(shard, t).await, 1);
    }
    assert_eq!(cluster.send(&request).await.unwrap(), version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_after_a_restart() {
    let mut cluster = Cluster::start(1, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    cluster.close(shards[1]);
    let request = cluster.request(cluster.state().await.catalog.version(), create(table("t", hashed())));
    let waiting = {
        let (directory, request) = (Arc::clone(&cluster.directory), request.clone());
        let call = move |coordinator: Arc<dyn CoordinatorService>| {
            let request = request.clone();
            async move { coordinator.change_schema(request).await }
        };
        tokio::spawn(async move { directory.ask(call).await })
    };
    cluster.refused().await;
    let node = cluster.leader().await;
    cluster.stop(node).await;
    cluster.open_all();
    cluster.open(node);
    let version = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let state = cluster.state_where(|state| state.catalog.version() == version).await;
    let t = state.catalog.table_named("t").unwrap().id;
    for shard in shards {
        assert_eq!(cluster.count(shard, t).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_away_holds_up_the_change_and_not_the_others() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let state = cluster.state().await;
    let t = state.catalog.table_named("t").unwrap();
    let shards = cluster.shards_of(MAIN).await;
    cluster.close(shards[1]);
    // Plans made before it would do wrong, so it keeps them off the shards.
    let mut altered = Table::clone(t);
    altered.columns[1].not_null = true;
    let request = cluster.request(state.catalog.version(), replace(altered));
    let mut altering = Box::pin(cluster.send(&request));
    tokio::select! {
        answer = &mut altering => panic!("a closed shard can't be altered: {answer:?}"),
        () = cluster.refused() => {}
    }
    for key in 1..20 {
        let insert = format!("INSERT INTO t{} VALUES ({key}, 1)", t.id);
        cluster.run_at(t.modified, shards[0], &insert).await.unwrap();
    }
    cluster.open_all();
    let version = altering.await.unwrap();
    let insert = format!("INSERT INTO t{} VALUES (100, NULL)", t.id);
    let error = cluster.run_at(t.modified, shards[0], &insert).await.unwrap_err();
    assert_eq!(error.retry, Retry::StaleSchema(version));
    assert_eq!(cluster.run(shards[0], &insert).await.unwrap_err().sqlstate.as_str(), "23502");
}
