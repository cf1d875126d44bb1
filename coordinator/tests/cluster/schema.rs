//! Schema changes on shards that are all there.

use crate::common::Cluster;
use crate::tables::{self, MAIN, SINGLE, create, hashed, ranged, replace, table};
use proto::catalog::{ColumnDefault, Placement, Relation, RoleChange, Table};
use proto::services::{CreateKeyspace, SchemaChange};
use proto::topology::Sharding;
use proto::{ColumnId, Retry, SequenceId, TableId, Value};
use std::sync::Arc;

async fn find(cluster: &Cluster, name: &str) -> Arc<Table> {
    Arc::clone(cluster.state().await.catalog.table_named(name).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_comes_and_goes() {
    let cluster = Cluster::start(1, 2).await;
    let version = cluster.change(create(table("t", hashed()))).await.unwrap();
    let made = find(&cluster, "t").await;
    assert_eq!((made.modified, cluster.state().await.catalog.version()), (version, version));
    let shards = cluster.shards_of(MAIN).await;
    for shard in &shards {
        let insert = format!("INSERT INTO t{} VALUES (1, 2)", made.id);
        cluster.run(*shard, &insert).await.unwrap();
    }
    let single = cluster.shards_of(SINGLE).await[0];
    assert!(cluster.run(single, &format!("SELECT 1 FROM t{}", made.id)).await.is_err());

    let error = cluster.change(create(table("t", hashed()))).await.unwrap_err();
    assert_eq!(error.to_string(), "42P07: relation \"t\" already exists");
    assert_eq!(error.retry, Retry::Never);
    let mut clash = table("u", hashed());
    clash.primary_key_name = Some("t_pkey".into());
    let error = cluster.change(create(clash)).await.unwrap_err();
    assert_eq!(error.to_string(), "42P07: relation \"t_pkey\" already exists");

    let dropped = cluster.change(SchemaChange::DropTables(vec![made.id])).await.unwrap();
    let state = cluster.state().await;
    assert!(state.catalog.version() == dropped && state.catalog.tables().count() == 0);
    for shard in &shards {
        // Who planned before must plan again, and who planned since finds nothing left.
        let read = format!("SELECT count(*) FROM t{}", made.id);
        let error = cluster.run_at(version, *shard, &read).await.unwrap_err();
        assert_eq!(error.retry, Retry::StaleSchema(dropped));
        assert!(cluster.run(*shard, &read).await.is_err());
    }
    // Its names are free, and its id is not given out again.
    cluster.change(create(table("t", hashed()))).await.unwrap();
    assert!(find(&cluster, "t").await.id > made.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_planned_too_early_is_planned_again() {
    let cluster = Cluster::start(1, 1).await;
    let empty = cluster.state().await.catalog.version();
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let t = find(&cluster, "t").await;
    let mut renamed = Table::clone(&t);
    renamed.name = "r".into();
    cluster.change(replace(renamed)).await.unwrap();
    let now = cluster.state().await.catalog.version();

    let changes = [
        (empty, create(table("r", hashed()))),
        (t.modified, replace(Table::clone(&t))),
        (t.modified, SchemaChange::DropTables(vec![t.id])),
        (t.modified, SchemaChange::Truncate { tables: vec![t.id], restart_identity: false }),
        (empty, SchemaChange::DropTables(vec![TableId(99)])),
    ];
    for (planned_by, change) in changes {
        let error = cluster.send(&cluster.request(planned_by, change)).await.unwrap_err();
        assert_eq!(error.retry, Retry::StaleSchema(now), "{error}");
    }
    let unknown = SchemaChange::DropTables(vec![TableId(99)]);
    assert_eq!(cluster.change(unknown).await.unwrap_err().sqlstate.as_str(), "42P01");
    assert_eq!(cluster.state().await.catalog.version(), now);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_is_answered_the_same() {
    let cluster = Cluster::start(1, 1).await;
    let version = cluster.state().await.catalog.version();
    let request = cluster.request(version, create(table("t", hashed())));
    let first = cluster.send(&request).await.unwrap();
    cluster.change(create(table("u", hashed()))).await.unwrap();
    assert_eq!(cluster.send(&request).await.unwrap(), first);
    assert_eq!(cluster.state().await.catalog.tables().count(), 2);
    // Of two at once, one makes the table and both are told.
    let request = cluster.request(cluster.state().await.catalog.version(), create(table("v", hashed())));
    let (one, other) = tokio::join!(cluster.send(&request), cluster.send(&request));
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_and_go() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let shards = cluster.shards_of(MAIN).await;
    let old = find(&cluster, "t").await;
    for shard in &shards {
        cluster.run(*shard, &format!("INSERT INTO t{} VALUES (1, 10)", old.id)).await.unwrap();
    }
    // A column that may be NULL: whoever doesn't know it yet does right.
    let mut new = Table::clone(&old);
    new.columns.push(tables::column(3, "c", false));
    new.next_column = ColumnId(4);
    cluster.change(replace(new)).await.unwrap();
    let insert = format!("INSERT INTO t{} (c1, c2) VALUES (2, 20)", old.id);
    cluster.run_at(old.modified, shards[0], &insert).await.unwrap();

    // One with a value for every row: whoever doesn't know it would leave it out.
    let before = find(&cluster, "t").await;
    let mut new = Table::clone(&before);
    let mut column = tables::column(4, "d", true);
    column.default = Some(ColumnDefault::Expression("7".into()));
    new.columns.push(column);
    new.next_column = ColumnId(5);
    let fill = vec![(ColumnId(4), Value::Int(7))];
    let change = SchemaChange::ReplaceTable { table: new, sequences: Vec::new(), fill };
    let version = cluster.change(change).await.unwrap();
    let insert = format!("INSERT INTO t{} (c1, c2) VALUES (3, 30)", old.id);
    let error = cluster.run_at(before.modified, shards[0], &insert).await.unwrap_err();
    assert_eq!(error.retry, Retry::StaleSchema(version));
    let read = format!("SELECT c1, c2, c3, c4 FROM t{} ORDER BY c1", old.id);
    let rows = cluster.run(shards[0], &read).await.unwrap();
    let row = |a, b| vec![Value::Int(a), Value::Int(b), Value::Null, Value::Int(7)];
    assert_eq!(rows, [row(1, 10), row(2, 20)]);

    // A column goes: first from plans, then from shards.
    let before = find(&cluster, "t").await;
    let mut new = Table::clone(&before);
    new.columns.retain(|column| column.name != "b");
    let version = cluster.change(replace(new)).await.unwrap();
    for shard in &shards {
        let read = format!("SELECT c2 FROM t{}", old.id);
        let error = cluster.run_at(before.modified, *shard, &read).await.unwrap_err();
        assert_eq!(error.retry, Retry::StaleSchema(version));
        assert!(cluster.run(*shard, &read).await.is_err());
        assert!(cluster.count(*shard, old.id).await > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_shard_refuses_is_undone_on_all() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let shards = cluster.shards_of(MAIN).await;
    let t = find(&cluster, "t").await;
    // The first shard could do all of it; the second has two equal values, one of them negative, and a NULL.
    cluster.run(shards[0], &format!("INSERT INTO t{} VALUES (1, 1)", t.id)).await.unwrap();
    let rows = format!("INSERT INTO t{} VALUES (2, -1), (3, -1), (4, NULL)", t.id);
    cluster.run(shards[1], &rows).await.unwrap();

    let mut unique = Table::clone(&t);
    unique.indexes.push(tables::index("t_b_key", true));
    let error = cluster.change(replace(unique)).await.unwrap_err();
    assert_eq!(error.to_string(), "23505: could not create unique index \"t_b_key\"");
    let mut checked = Table::clone(&t);
    checked.checks.push(tables::check("t_b_check"));
    let error = cluster.change(replace(checked)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "23514: check constraint \"t_b_check\" of relation \"t\" is violated by some row"
    );
    let mut filled = Table::clone(&t);
    filled.columns[1].not_null = true;
    let error = cluster.change(replace(filled)).await.unwrap_err();
    assert_eq!(error.to_string(), "23502: column \"b\" of relation \"t\" contains null values");

    // Nothing is left of it anywhere, and plans made since are served.
    assert_eq!(find(&cluster, "t").await, t);
    let rows = format!("INSERT INTO t{} VALUES (5, -1), (6, -1), (7, NULL)", t.id);
    cluster.run(shards[0], &rows).await.unwrap();
    assert_eq!((cluster.count(shards[0], t.id).await, cluster.count(shards[1], t.id).await), (4, 3));

    // And what can be done is done.
    let mut indexed = Table::clone(&t);
    indexed.indexes.push(tables::index("t_b_idx", false));
    cluster.change(replace(indexed)).await.unwrap();
    let state = cluster.state().await;
    let Some(Relation::Index(owner, id)) = state.catalog.resolve("t_b_idx") else { panic!("an index") };
    assert!(owner == t.id && id.0 > t.id.0);
    let plan = format!("SELECT name FROM sqlite_schema WHERE name = 'i{id}'");
    for shard in &shards {
        assert_eq!(cluster.run(*shard, &plan).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_empties_and_may_count_again() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(tables::serial(table("t", hashed()))).await.unwrap();
    let t = find(&cluster, "t").await;
    let Some(ColumnDefault::Sequence { id, .. }) = t.columns[0].default else { panic!("a serial column") };
    let take = async || cluster.ask(|c| async move { c.allocate(id, 5).await }).await.unwrap().first;
    assert_eq!(take().await, 1);
    let shards = cluster.shards_of(MAIN).await;
    for (restart_identity, first) in [(false, 6), (true, 1)] {
        for shard in &shards {
            cluster.run(*shard, &format!("INSERT INTO t{} VALUES (1, 1)", t.id)).await.unwrap();
        }
        cluster.change(SchemaChange::Truncate { tables: vec![t.id], restart_identity }).await.unwrap();
        for shard in &shards {
            assert_eq!(cluster.count(*shard, t.id).await, 0);
        }
        assert_eq!(take().await, first);
    }

    // The sequence is the column's: it can't go alone, and goes with the table.
    let error = cluster.change(SchemaChange::DropSequences(vec![id])).await.unwrap_err();
    assert_eq!(error.to_string(), "2BP01: cannot drop sequence t_a_seq because other objects depend on it");
    cluster.change(SchemaChange::DropTables(vec![t.id])).await.unwrap();
    assert_eq!(cluster.state().await.catalog.sequences().count(), 0);
    assert!(cluster.ask(|c| async move { c.allocate(SequenceId(id.0), 1).await }).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_never_has_hidden_keys_begin_again() {
    let cluster = Cluster::start(1, 2).await;
    let SchemaChange::CreateTable { table, mut sequences } = tables::serial(table("t", hashed())) else {
        panic!("a new table")
    };
    sequences[0].hidden = true;
    cluster.change(SchemaChange::CreateTable { table, sequences }).await.unwrap();
    let t = find(&cluster, "t").await;
    let Some(ColumnDefault::Sequence { id, .. }) = t.columns[0].default else { panic!("a serial column") };
    let take = async || cluster.ask(|c| async move { c.allocate(id, 5).await }).await.unwrap().first;
    assert_eq!(take().await, 1);
    let truncate = SchemaChange::Truncate { tables: vec![t.id], restart_identity: true };
    cluster.change(truncate).await.unwrap();
    // A row that came after the truncation may have any key that was given out before.
    assert_eq!(take().await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_table_brings_its_keyspace() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("main", ranged()))).await.unwrap();
    let made = find(&cluster, "main").await;
    let Placement::Sharded { keyspace, .. } = made.placement else { panic!("a sharded table") };
    let state = cluster.state().await;
    let own = &state.topology.keyspaces[&keyspace];
    assert_eq!((own.name.as_str(), own.sharding, own.shards.len()), ("main_2", Sharding::Range, 1));
    let shard = own.shards[0];
    cluster.run(shard, &format!("INSERT INTO t{} VALUES (1, 2)", made.id)).await.unwrap();
    cluster.change(SchemaChange::DropTables(vec![made.id])).await.unwrap();
    let after = cluster.state().await;
    assert!(after.topology.epoch > state.topology.epoch);
    assert!(!after.topology.keyspaces.contains_key(&keyspace) && !after.topology.shards.contains_key(&shard));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_all_kinds_go_at_once() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("r", Placement::Reference))).await.unwrap();
    cluster.change(create(table("g", ranged()))).await.unwrap();
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let state = cluster.state().await;
    let ids: Vec<_> = state.catalog.tables().map(|table| table.id).collect();
    cluster.change(SchemaChange::DropTables(ids)).await.unwrap();
    let state = cluster.state().await;
    assert_eq!((state.catalog.tables().count(), state.topology.keyspaces.len()), (0, 2));
    for shard in state.topology.shards.keys() {
        let left = cluster.run(*shard, "SELECT name FROM sqlite_schema WHERE name GLOB 't[0-9]*'").await;
        assert_eq!(left.unwrap(), Vec::<Vec<Value>>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_tables_are_on_every_shard_there_will_be() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("r", Placement::Reference))).await.unwrap();
    let r = find(&cluster, "r").await;
    let topology = cluster.state().await.topology;
    let insert = format!(
        "INSERT INTO t{} WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         SELECT i, -i FROM n",
        r.id
    );
    for shard in topology.shards.keys() {
        cluster.run(*shard, &insert).await.unwrap();
    }
    let before = cluster.state().await.catalog.version();
    cluster.change(create(table("t", ranged()))).await.unwrap();
    let wish = CreateKeyspace {
        request: cluster.name(),
        name: "more".into(),
        sharding: Sharding::Hash,
        shards: 2,
        replicas: None,
    };
    cluster
        .ask(|c| {
            let wish = wish.clone();
            async move { c.create_keyspace(wish).await }
        })
        .await
        .unwrap();
    let after = cluster.state().await;
    let sum = format!("SELECT count(*), sum(c2) FROM t{}", r.id);
    assert_eq!(after.topology.keyspaces.len(), 4);
    for keyspace in after.topology.keyspaces.values() {
        for shard in &keyspace.shards {
            let rows = cluster.run(*shard, &sum).await.unwrap();
            assert_eq!(rows, [[Value::Int(2500), Value::Int(-2500 * 2501 / 2)]], "{}", keyspace.name);
            // Whoever planned when there were fewer shards would write to those alone.
            let error = cluster.run_at(before, *shard, &sum).await.unwrap_err();
            assert!(matches!(error.retry, Retry::StaleSchema(_)), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_table_moves_and_a_filled_one_stays() {
    let cluster = Cluster::start(1, 2).await;
    cluster.change(create(table("t", hashed()))).await.unwrap();
    let t = find(&cluster, "t").await;
    let shards = cluster.shards_of(MAIN).await;
    let single = cluster.shards_of(SINGLE).await[0];
    let mut moved = Table::clone(&t);
    moved.placement = Placement::Single { keyspace: SINGLE };
    cluster.run(shards[1], &format!("INSERT INTO t{} VALUES (1, 1)", t.id)).await.unwrap();
    let error = cluster.change(replace(moved.clone())).await.unwrap_err();
    assert_eq!(error.to_string(), "0A000: re-placing a filled table is not supported");
    assert!(error.hint.is_some());
    assert_eq!(error.state.map(|state| state.0), Some(shards[1]), "it tells of a row");
    for (shard, rows) in shards.iter().zip([0, 1]) {
        assert_eq!(cluster.count(*shard, t.id).await, rows);
    }
    cluster.run(shards[1], &format!("DELETE FROM t{}", t.id)).await.unwrap();
    let version = cluster.change(replace(moved)).await.unwrap();
    assert_eq!(cluster.count(single, t.id).await, 0);
    for shard in &shards {
        let insert = format!("INSERT INTO t{} VALUES (1, 1)", t.id);
        let error = cluster.run_at(t.modified, *shard, &insert).await.unwrap_err();
        assert_eq!(error.retry, Retry::StaleSchema(version));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_roles_begin_with_outlives_the_coordinators_leader() {
    let mut cluster = Cluster::start(3, 1).await;
    let set = |name: &str, value: &str| RoleChange::Set { name: name.into(), value: value.into() };
    let role = || Some("shoal".to_owned());
    let before = cluster.state().await.catalog.version();
    for (role, change) in [
        (role(), set("b", "1")),
        (role(), set("a", "2")),
        (None, set("b", "3")),
        (role(), set("b", "4")),
        (None, set("c", "5")),
        (None, RoleChange::Reset("b".into())),
    ] {
        cluster.change(SchemaChange::AlterRole { role, change }).await.unwrap();
    }
    let request = cluster.request(before, SchemaChange::AlterRole { role: None, change: set("d", "6") });
    let version = cluster.send(&request).await.unwrap();
    assert_eq!(
        cluster.send(&request).await.unwrap(),
        version,
        "it isn't planned by anything that could change"
    );

    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    let state = cluster.state_where(|state| state.catalog.version() >= version).await;
    let settings: Vec<_> = state.catalog.settings_of("shoal").collect();
    assert_eq!(settings, [("c", "5"), ("d", "6"), ("b", "4"), ("a", "2")]);
    cluster.change(SchemaChange::AlterRole { role: None, change: RoleChange::ResetAll }).await.unwrap();
    let last = cluster.change(SchemaChange::AlterRole { role: role(), change: RoleChange::ResetAll }).await;
    let last = last.unwrap();
    cluster.open(leader);
    let state = cluster.state_where(|state| state.catalog.version() >= last).await;
    assert_eq!(state.catalog.roles().count(), 0);
}
