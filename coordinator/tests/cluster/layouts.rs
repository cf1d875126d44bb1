//! What shards note of how rows lie in their tables.

use crate::common::Cluster;
use crate::tables::{self, MAIN, SINGLE, create, hashed, ranged, replace, table};
use dialect::physical;
use proto::catalog::{Column, Placement, Table};
use proto::layout::{Layout, Place};
use proto::services::{CreateKeyspace, SchemaChange};
use proto::topology::Sharding;
use proto::wire::Wire;
use proto::{ColumnId, ShardId, TableId, Value};

const BY_HASH: Sharding = Sharding::Hash;

/// The layouts that a shard has noted of a table, the newest last.
async fn noted(cluster: &Cluster, shard: ShardId, table: TableId) -> Vec<Option<Layout>> {
    let read = format!("SELECT layout FROM shoal_layout WHERE table_id = {table} ORDER BY job, step");
    let rows = cluster.run(shard, &read).await.unwrap().into_iter().map(|mut row| row.remove(0));
    rows.map(|layout| match layout {
        Value::Null => None,
        Value::Blob(bytes) => Some(Layout::decode(&bytes).unwrap()),
        other => panic!("not a layout: {other:?}"),
    })
    .collect()
}

/// The layout that a shard has noted last; as far as SQLite can say, the table is so.
async fn newest(cluster: &Cluster, shard: ShardId, table: TableId) -> Layout {
    let layout = noted(cluster, shard, table).await.pop().expect("one is noted").expect("it is there");
    let read = format!("SELECT name, pk FROM pragma_table_xinfo('t{table}') ORDER BY cid");
    let columns = cluster.run(shard, &read).await.unwrap();
    let position = |place: usize| {
        let found = layout.primary_key.iter().position(|key| *key as usize == place);
        Value::Int(found.map_or(0, |position| position as i64 + 1))
    };
    let laid = layout.columns.iter().enumerate();
    let laid = laid.map(|(place, column)| vec![Value::Text(format!("c{}", column.id)), position(place)]);
    assert_eq!(columns, laid.collect::<Vec<_>>());
    layout
}

async fn made(cluster: &Cluster, new: Table) -> TableId {
    let name = new.name.clone();
    cluster.change(create(new)).await.unwrap();
    current(cluster, &name).await.id
}

async fn current(cluster: &Cluster, name: &str) -> Table {
    Table::clone(cluster.state().await.catalog.table_named(name).unwrap())
}

/// Changes the table `t`.
async fn alter(cluster: &Cluster, change: impl Fn(&mut Table)) -> proto::services::ServiceResult<()> {
    let mut table = current(cluster, "t").await;
    change(&mut table);
    cluster.change(replace(table)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_notes_how_rows_lie_after_it() {
    let cluster = Cluster::start(1, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    // The second of its columns and the first are the key, and rows are placed by the first.
    let mut new = table("t", hashed());
    new.columns[1].not_null = true;
    new.primary_key = vec![ColumnId(2), ColumnId(1)];
    let t = made(&cluster, new).await;
    let first = newest(&cluster, shards[0], t).await;
    assert_eq!(
        (first.primary_key.as_slice(), &first.place),
        ([1, 0].as_slice(), &Place::Sharded(BY_HASH, vec![0]))
    );
    assert!(first.columns.iter().all(|column| column.ty == 20));

    // A column comes by ALTER TABLE, another one by a table that is made anew; the first one goes in the end.
    let text = |id, name| Column {
        ty: proto::catalog::TypeRef { oid: 25, modifier: -1 },
        ..tables::column(id, name, false)
    };
    alter(&cluster, |table| table.columns.push(text(3, "c"))).await.unwrap();
    alter(&cluster, |table| {
        table.columns.push(text(4, "d"));
        table.checks.push(tables::check("t_b_check"));
    })
    .await
    .unwrap();
    alter(&cluster, |table| table.columns.retain(|column| column.id != ColumnId(3))).await.unwrap();
    alter(&cluster, |table| table.indexes.push(tables::index("t_b_idx", false))).await.unwrap();
    // These two are none of the shards' business.
    alter(&cluster, |table| table.name = "u".into()).await.unwrap();
    cluster.change(SchemaChange::Truncate { tables: vec![t], restart_identity: false }).await.unwrap();
    for shard in &shards {
        let last = newest(&cluster, *shard, t).await;
        let noted = noted(&cluster, *shard, t).await;
        let columns = noted.iter().flatten().map(|layout| layout.columns.len()).collect::<Vec<_>>();
        // It loses a column only once everyone plans without it.
        assert_eq!(columns, [2, 3, 4, 3, 3]);
        assert_eq!(last.columns.iter().map(|column| column.ty).collect::<Vec<_>>(), [20, 20, 25]);
    }
    cluster.change(SchemaChange::DropTables(vec![t])).await.unwrap();
    for shard in &shards {
        assert_eq!(noted(&cluster, *shard, t).await.last(), Some(&None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_undone_lies_as_before() {
    let cluster = Cluster::start(1, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    let t = made(&cluster, table("t", hashed())).await;
    let before = newest(&cluster, shards[0], t).await;
    cluster.run(shards[1], &format!("INSERT INTO t{t} VALUES (2, -1)")).await.unwrap();
    alter(&cluster, |table| {
        table.columns.push(tables::column(3, "c", false));
        table.checks.push(tables::check("t_b_check"));
    })
    .await
    .unwrap_err();
    // The first did it and took it back, the second couldn't.
    for (shard, count) in shards.iter().zip([3, 1]) {
        assert_eq!(newest(&cluster, *shard, t).await, before);
        assert_eq!(noted(&cluster, *shard, t).await.len(), count);
    }
    // So it is with one that can't move: where it was to go it has been, and isn't any more.
    alter(&cluster, |table| table.placement = Placement::Single { keyspace: SINGLE }).await.unwrap_err();
    let single = cluster.shards_of(SINGLE).await[0];
    assert_eq!(noted(&cluster, single, t).await.last(), Some(&None));
    for shard in &shards {
        assert_eq!(newest(&cluster, *shard, t).await, before);
    }
    // And where it can be.
    cluster.run(shards[1], &format!("DELETE FROM t{t}")).await.unwrap();
    alter(&cluster, |table| table.placement = Placement::Reference).await.unwrap();
    for shard in [single, shards[0], shards[1]] {
        assert_eq!(newest(&cluster, shard, t).await, Layout { place: Place::Reference, ..before.clone() });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_all_kinds_are_noted_where_they_are() {
    let cluster = Cluster::start(1, 2).await;
    let hidden = |mut table: Table| {
        table.columns.push(tables::column(0, "", true));
        table.primary_key = vec![ColumnId::HIDDEN_KEY];
        table.primary_key_name = None;
        table
    };
    let key = vec![ColumnId::HIDDEN_KEY];
    let sharded = made(&cluster, hidden(table("h", Placement::Sharded { keyspace: MAIN, key }))).await;
    let single = made(&cluster, table("s", Placement::Single { keyspace: SINGLE })).await;
    let reference = made(&cluster, table("r", Placement::Reference)).await;
    let range = made(&cluster, table("g", ranged())).await;
    let name = cluster.name();
    let wish = move || CreateKeyspace {
        request: name,
        name: "more".into(),
        sharding: Sharding::Hash,
        shards: 2,
        replicas: None,
    };
    cluster
        .ask(|c| {
            let wish = wish();
            async move { c.create_keyspace(wish).await }
        })
        .await
        .unwrap();
    let state = cluster.state().await;
    assert_eq!(state.topology.keyspaces.len(), 4);
    for keyspace in state.topology.keyspaces.values() {
        for shard in &keyspace.shards {
            // A keyspace that is made later has it from its beginning.
            assert_eq!(
                newest(&cluster, *shard, reference).await.place,
                Place::Reference,
                "{}",
                keyspace.name
            );
            let (own, place) = match keyspace.name.as_str() {
                "main" => (sharded, Place::Sharded(BY_HASH, vec![0])),
                "single" => (single, Place::Single),
                "g" => (range, Place::Sharded(Sharding::Range, vec![0])),
                _ => continue,
            };
            let layout = newest(&cluster, *shard, own).await;
            assert_eq!(layout.place, place);
            let table = state.catalog.table(own).unwrap();
            assert_eq!(layout, physical::layout(table, keyspace.sharding).unwrap());
            let others = [sharded, single, range].into_iter().filter(|id| *id != own);
            for other in others {
                assert_eq!(noted(&cluster, *shard, other).await, []);
            }
        }
    }
}
