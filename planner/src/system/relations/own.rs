//! The relations that PostgreSQL hasn't got: what psql's functions read here, and what Shoal tells of itself.

use crate::system::Relation;
use dialect::types::Type::{Bool, Int4, Int8, Name, Oid, Text};

pub(super) static RELATIONS: &[Relation] = &[
    // What psql and others learn from `pg_get_indexdef` and `pg_get_constraintdef`: the binder reads it from here.
    Relation {
        schema: "pg_catalog",
        name: "shoal_definition",
        key: "shoal_definition",
        oid: 9999,
        view: true,
        columns: &[
            ("shoal_oid", Oid),
            ("shoal_attnum", Int4),
            ("shoal_whole", Bool),
            ("shoal_definition", Text),
            ("shoal_pretty", Text),
        ],
    },
    // Shoal's own: where things are.
    Relation {
        schema: "pg_catalog",
        name: "shoal_keyspace",
        key: "shoal_keyspace",
        oid: 9998,
        view: true,
        columns: &[("name", Name), ("sharding", Text), ("shards", Int4), ("replicas", Int4)],
    },
    Relation {
        schema: "pg_catalog",
        name: "shoal_shard",
        key: "shoal_shard",
        oid: 9997,
        view: true,
        columns: &[("name", Text), ("keyspace", Name), ("shard", Int8)],
    },
    Relation {
        schema: "pg_catalog",
        name: "shoal_transactions",
        key: "shoal_transactions",
        oid: 9996,
        view: true,
        columns: &[
            ("transaction", Text),
            ("shard", Text),
            ("state", Text),
            ("idle_ms", Int8),
            ("waits_for", Text),
        ],
    },
    Relation {
        schema: "pg_catalog",
        name: "shoal_replicas",
        key: "shoal_replicas",
        oid: 9995,
        view: true,
        columns: &[
            ("shard", Text),
            ("node", Int8),
            ("zone", Text),
            ("role", Text),
            ("term", Int8),
            ("position", Text),
            ("lag_entries", Int8),
            ("lag_ms", Int8),
            ("stopped", Text),
            ("reads", Int8),
            ("latency_us", Int8),
            ("avoided", Bool),
        ],
    },
    Relation {
        schema: "pg_catalog",
        name: "shoal_reshards",
        key: "shoal_reshards",
        oid: 9994,
        view: true,
        columns: &[
            ("id", Int8),
            ("what", Text),
            ("keyspace", Name),
            ("phase", Text),
            ("attempt", Int8),
            ("old", Text),
            ("new", Text),
            ("bytes_done", Int8),
            ("bytes_total", Int8),
            ("lag_ms", Int8),
            ("paused", Text),
            ("since_ms", Int8),
            ("message", Text),
        ],
    },
];
