use super::*;
use proto::catalog::{Check, ColumnDefault, Index, IndexColumn, Placement, Sequence, Table};
use proto::services::{Progress, ReshardPhase};
use proto::topology::{Keyspace, Node, Roles, Shard, Sharding};
use proto::{
    Attempt, GroupId, Incarnation, IndexId, KeyRange, KeyspaceNumber, LogIndex, ReshardId, SchemaVersion,
    SequenceId,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// `t (id serial PRIMARY KEY, v text NOT NULL DEFAULT 'x'::text, n numeric(10,2) CHECK (n > 0), UNIQUE (v DESC))`.
fn catalog() -> Catalog {
    let column = |id, name: &str, ty: Typed, not_null, default| Column {
        id: ColumnId(id),
        name: name.into(),
        ty: ty.to_ref(),
        not_null,
        default,
    };
    let serial = ColumnDefault::Sequence { id: SequenceId(16385), identity_always: None };
    let table = Table {
        id: TableId(16384),
        name: "t".into(),
        columns: vec![
            column(1, "id", Typed::plain(Type::Int4), true, Some(serial)),
            column(
                2,
                "v",
                Typed::plain(Type::Text),
                true,
                Some(ColumnDefault::Expression("'x'::text".into())),
            ),
            column(4, "n", Typed { ty: Type::Numeric, modifier: 655_366 }, false, None),
        ],
        primary_key: vec![ColumnId(1)],
        primary_key_name: Some("t_pkey".into()),
        indexes: vec![Index {
            id: IndexId(16386),
            name: "V".into(),
            columns: vec![IndexColumn { column: ColumnId(2), descending: true, nulls_first: false }],
            unique: true,
            constraint: true,
        }],
        checks: vec![Check {
            name: "t_n_check".into(),
            expression: "n > 0".into(),
            physical: "c4 > 0".into(),
        }],
        placement: Placement::Single { keyspace: KeyspaceNumber(2) },
        next_column: ColumnId(5),
        modified: SchemaVersion(1),
    };
    let sequence = Sequence {
        id: SequenceId(16385),
        name: "t_id_seq".into(),
        ty: Typed::plain(Type::Int4).to_ref(),
        start: 1,
        increment: 1,
        min: 1,
        max: i64::from(i32::MAX),
        cycle: false,
        cache: 1,
        owner: Some((TableId(16384), ColumnId(1))),
        hidden: false,
    };
    Catalog::new(SchemaVersion(1), [Arc::new(table)], [Arc::new(sequence)])
}

fn facts() -> SessionFacts {
    let setting =
        |name: &str| SettingFact { name: name.into(), value: "on".into(), ..SettingFact::default() };
    let fact = TransactionFact {
        transaction: "8f2c-1a".parse().unwrap(),
        shard: ShardId(1),
        state: "open",
        idle_ms: Some(7),
        waits_for: vec!["1-2".parse().unwrap()],
    };
    SessionFacts {
        user: "shoal".into(),
        database: "shoal".into(),
        settings: vec![setting("a")],
        transactions: vec![fact],
        replicas: vec![
            ReplicaFact {
                shard: Some(ShardId(1)),
                node: NodeId(2),
                role: "follower",
                term: Some(3),
                applied: Some(LogIndex(4711)),
                lag_entries: Some(12),
                lag_ms: Some(35),
                stopped: None,
                reads: Some(9),
                latency_us: Some(210),
                avoided: Some(false),
            },
            ReplicaFact { node: NodeId(3), role: "unreachable", ..ReplicaFact::default() },
        ],
        reshards: vec![reshard()],
        shards: vec![
            ShardFact {
                shard: ShardId(1),
                leader: Some(NodeId(2)),
                bytes: Some(4096),
                rows: Some(7),
                rows_age_ms: Some(1500),
                writes_per_second: Some(2.5),
                reads_per_second: Some(0.0),
            },
            ShardFact { shard: ShardId(99), ..ShardFact::default() },
        ],
    }
}

fn reshard() -> ReshardStatus {
    ReshardStatus {
        id: ReshardId(7),
        what: "split main/-80 into main/-40, main/40-80".into(),
        keyspace: "main".into(),
        phase: ReshardPhase::CatchingUp,
        attempt: Attempt(2),
        old: vec!["main/-80".into()],
        new: vec!["main/-40".into(), "main/40-80".into()],
        wanted: false,
        bytes: Some(Progress { done: 5, total: 9 }),
        rows: Some(3),
        lag: Some(Duration::from_millis(2100)),
        paused: None,
        failed: None,
        message: String::new(),
        switches: 0,
        ended: 0,
        pause: None,
        completes_in: None,
        since: Duration::from_secs(240),
    }
}

#[test]
fn a_shard_shows_how_big_and_busy_it_is() {
    let names: Vec<_> = relation(None, SHARDS).unwrap().columns.iter().map(|(name, _)| *name).collect();
    let shown = select("pg_catalog", SHARDS, &names);
    let expected = ["main/-80|1|main|2|4096|7|1500|2.5|0"];
    assert_eq!(shown, expected, "of one that isn't in the topology there is nothing to say");
}

#[test]
fn a_reshard_shows_how_far_it_is() {
    let names: Vec<_> = relation(None, RESHARDS).unwrap().columns.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        select("pg_catalog", RESHARDS, &names),
        [
            "7|split main/-80 into main/-40, main/40-80|main|catching-up|2|main/-80|main/-40, main/40-80|5|9|2100|NULL|240000|NULL"
        ]
    );
}

/// One shard, and two nodes of which one has a zone.
fn topology() -> Topology {
    let mut topology = Topology::default();
    for (id, zone) in [(NodeId(2), "east"), (NodeId(3), "")] {
        topology.nodes.insert(
            id,
            Node { id, address: String::new(), roles: Roles::ALL, zone: zone.into(), draining: false },
        );
    }
    let (number, id) = (KeyspaceNumber(1), ShardId(1));
    let shard = Shard {
        id,
        keyspace: number,
        range: KeyRange::parse("-80").unwrap(),
        incarnation: Incarnation(1),
        group: GroupId(2),
        replicas: vec![NodeId(2)],
        formed: true,
        first: LogIndex(0),
    };
    topology.shards.insert(id, shard);
    let (name, sharding) = ("main".into(), Sharding::Hash);
    topology
        .keyspaces
        .insert(number, Keyspace { number, name, sharding, replicas: 1, shards: vec![id], auto: None });
    topology
}

fn read(relation: &Relation) -> Vec<Vec<Value>> {
    rows(relation.key, &catalog(), &topology(), &facts())
}

#[test]
fn a_replica_shows_what_is_known_of_it() {
    let names: Vec<_> = relation(None, REPLICAS).unwrap().columns.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        select("pg_catalog", REPLICAS, &names),
        [
            "main/-80|2|east|follower|3|main/-80.1:4711|12|35|NULL|9|210|0",
            "coordinator|3|NULL|unreachable|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL"
        ]
    );
}

/// The named columns of a relation's rows, as text.
fn select(schema: &str, name: &str, columns: &[&str]) -> Vec<String> {
    let relation = relation(Some(schema), name).unwrap();
    let places: Vec<_> =
        columns.iter().map(|c| relation.columns.iter().position(|(name, _)| name == c).unwrap()).collect();
    let show = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Int(value) => value.to_string(),
        Value::Real(value) => value.to_string(),
        Value::Text(value) => value.clone(),
        Value::Blob(value) => format!("{value:?}"),
    };
    read(relation)
        .iter()
        .map(|row| places.iter().map(|place| show(&row[*place])).collect::<Vec<_>>().join("|"))
        .collect()
}

#[test]
fn every_row_fits_its_columns() {
    for relation in relations() {
        for row in read(relation) {
            assert_eq!(row.len(), relation.columns.len(), "{}", relation.name);
            for ((column, ty), value) in relation.columns.iter().zip(&row) {
                let fits = match ty {
                    _ if value.is_null() => true,
                    Type::Bool | Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid | Type::Regclass => {
                        matches!(value, Value::Int(_))
                    }
                    Type::Timestamptz => matches!(value, Value::Int(_)),
                    Type::Float4 | Type::Float8 => matches!(value, Value::Real(_)),
                    Type::Bytea | Type::Numeric => matches!(value, Value::Blob(_)),
                    _ => matches!(value, Value::Text(_)),
                };
                assert!(fits, "{}.{column} is {value:?}", relation.name);
            }
        }
    }
}

#[test]
fn object_ids_are_unique_in_their_relation() {
    for name in ["pg_class", "pg_constraint", "pg_type", "pg_attrdef", "pg_namespace"] {
        let ids = select("pg_catalog", name, &["oid"]);
        let unique: HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{name}");
    }
}

#[test]
fn what_psql_reads_of_a_table() {
    let indexes =
        select("pg_catalog", "pg_index", &["indrelid", "indisprimary", "indisunique", "indkey", "indoption"]);
    assert_eq!(indexes, ["16384|1|1|1|0", "16384|0|1|2|1"]);
    let columns = ["attname", "atttypid", "atttypmod", "attnum", "attnotnull", "atthasdef"];
    assert_eq!(
        select("pg_catalog", "pg_attribute", &columns)[..3],
        ["id|23|-1|1|1|1", "v|25|-1|2|1|1", "n|1700|655366|4|0|0"]
    );
    assert_eq!(
        select("pg_catalog", "pg_attrdef", &["adnum", "adbin"]),
        ["1|nextval('t_id_seq'::regclass)", "2|'x'::text"]
    );
    let definitions = select("pg_catalog", "shoal_definition", &["shoal_attnum", "shoal_pretty"]);
    assert_eq!(
        definitions,
        [
            "0|CREATE UNIQUE INDEX t_pkey ON t USING btree (id)",
            "1|id",
            "0|PRIMARY KEY (id)",
            "0|CREATE UNIQUE INDEX \"V\" ON t USING btree (v DESC NULLS LAST)",
            "1|v",
            "0|UNIQUE (v)",
            "0|CHECK (n > 0)",
        ]
    );
    let depends = select("pg_catalog", "pg_depend", &["objid", "refobjid", "refobjsubid", "deptype"]);
    assert!(depends.contains(&"16385|16384|1|a".to_owned()), "{depends:?}");
    let constraints = select("pg_catalog", "pg_constraint", &["conname", "contype", "conkey"]);
    assert_eq!(constraints, ["t_pkey|p|{1}", "V|u|{2}", "t_n_check|c|{4}"]);
}

#[test]
fn what_the_information_schema_says() {
    let columns =
        ["column_name", "data_type", "numeric_precision", "numeric_scale", "column_default", "udt_name"];
    assert_eq!(
        select("information_schema", "columns", &columns),
        [
            "id|integer|32|0|nextval('t_id_seq'::regclass)|int4",
            "v|text|NULL|NULL|'x'::text|text",
            "n|numeric|10|2|NULL|numeric",
        ]
    );
}

#[test]
fn unknown_relations_are_unknown() {
    assert!(relation(None, "pg_stat_activity").is_none());
    assert!(relation(Some("public"), "pg_class").is_none());
    assert!(relation(None, "tables").is_none());
    assert_eq!(relation(Some("information_schema"), "tables").unwrap().key, "information_schema.tables");
}
