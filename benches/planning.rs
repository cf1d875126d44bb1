//! What a statement pays before any shard is asked: with a cold plan cache it is cut, parsed, bound and planned; with
//! a warm one it is cut and looked up.

use criterion::{Criterion, criterion_group, criterion_main};
use dialect::Type;
use dialect::types::Typed;
use planner::{Context, Planned, Settings, plan, text};
use proto::catalog::{Catalog, Column, Placement, Table};
use proto::topology::{Keyspace, Shard, Sharding, Topology};
use proto::{
    ColumnId, Epoch, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, SchemaVersion,
    ShardId, TableId,
};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

const POINT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711";

fn catalog() -> Catalog {
    let column = |id, name: &str, ty, not_null| Column {
        id: ColumnId(id),
        name: name.to_owned(),
        ty: Typed::plain(ty).to_ref(),
        not_null,
        default: None,
    };
    let table = Table {
        id: TableId(16384),
        name: "pgbench_accounts".to_owned(),
        columns: vec![
            column(1, "aid", Type::Int4, true),
            column(2, "bid", Type::Int4, false),
            column(3, "abalance", Type::Int4, false),
            column(4, "filler", Type::Bpchar, false),
        ],
        primary_key: vec![ColumnId(1)],
        primary_key_name: Some("pgbench_accounts_pkey".to_owned()),
        indexes: Vec::new(),
        checks: Vec::new(),
        placement: Placement::Sharded { keyspace: KeyspaceNumber(1), key: vec![ColumnId(1)] },
        next_column: ColumnId(5),
        modified: SchemaVersion(1),
    };
    Catalog::new(SchemaVersion(1), [Arc::new(table)], [])
}

fn topology() -> Topology {
    let number = KeyspaceNumber(1);
    let mut topology = Topology { epoch: Epoch(1), ..Topology::default() };
    let mut shards = Vec::new();
    for (id, range) in (1..).zip(KeyRange::split_evenly(4)) {
        shards.push(ShardId(id));
        let shard = Shard {
            id: ShardId(id),
            keyspace: number,
            range,
            incarnation: Incarnation(1),
            group: GroupId(id + 1),
            replicas: vec![NodeId(1)],
            formed: true,
            first: LogIndex(0),
        };
        topology.shards.insert(shard.id, shard);
    }
    let keyspace = Keyspace {
        number,
        name: "main".to_owned(),
        sharding: Sharding::Hash,
        replicas: 1,
        shards,
        auto: None,
    };
    topology.keyspaces.insert(number, keyspace);
    topology
}

fn cut(sql: &str) -> text::Text {
    text::split(sql).expect("it is one good statement").remove(0)
}

fn point_select(c: &mut Criterion) {
    let (catalog, topology, settings) = (catalog(), topology(), Settings::default());
    let context = Context { catalog: &catalog, topology: &topology, settings: &settings };
    let make = |text: &text::Text| plan(text, &[], &context).expect("it can be planned");
    let mut group = c.benchmark_group("point SELECT");
    group.bench_function("cut", |b| b.iter(|| cut(black_box(POINT))));
    group.bench_function("cold", |b| b.iter(|| make(&cut(black_box(POINT)))));
    let first = cut(POINT);
    let cache: HashMap<Box<[u8]>, Planned> = HashMap::from([(first.key.clone(), make(&first))]);
    group
        .bench_function("warm", |b| b.iter(|| cache.get(&cut(black_box(POINT)).key).map(|p| p.plan.clone())));
    group.finish();
}

criterion_group!(benches, point_select);
criterion_main!(benches);
