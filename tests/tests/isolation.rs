//! Isolation scripts: Shoal does as PostgreSQL 15 did, on one shard and on four; and PostgreSQL still does so.
//!
//! The latter holds the harness to account: it plays cases by their recordings, as it does on Shoal, and must see no
//! difference. `cargo run -p tests --bin isolation` plays some of them, and tells more of what differs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::path::Path;
use tests::cluster::Cluster;
use tests::isolation::run::{self, Guide, Kind, Target};
use tests::isolation::{Found, play_on_shoal, script, scripts};
use tests::postgres::Server;
use tests::tools;

fn all() -> Vec<Found> {
    let found = scripts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("isolation")).unwrap();
    assert!(!found.is_empty());
    found
}

#[test]
fn every_hermitage_case_is_there() {
    let found = all();
    let hermitage = found.iter().find(|found| found.name == "hermitage").unwrap();
    for anomaly in ["G0", "G1a", "G1b", "G1c", "OTV", "PMP", "P4", "G-single", "G2-item", "G2"] {
        let is_it = |name: &str| name.split_whitespace().next().is_some_and(|word| word == anomaly);
        assert!(hermitage.script.cases.iter().any(|case| is_it(&case.name)), "{anomaly} is missing");
    }
}

#[test]
fn one_shard_does_as_recorded() {
    play(1);
}

#[test]
fn four_shards_do_as_recorded() {
    play(4);
}

fn play(shards: u32) {
    let count = shards.to_string();
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", &count]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_, otherwise) = runtime.block_on(play_on_shoal(&cluster.config(), shards, &all(), &[]));
    let mut differences = String::new();
    for (name, case, expected, actual) in otherwise {
        let (expected, actual) = (script::render(&case, &expected), script::render(&case, &actual));
        writeln!(differences, "{name}: expected\n{expected}but got\n{actual}").unwrap();
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn postgresql_does_as_recorded() {
    if tools::find_or_skip("initdb", "postgresql_does_as_recorded").is_none() {
        return;
    }
    let server = Server::start().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut differences = String::new();
    for Found { name, script, recorded, .. } in all() {
        runtime.block_on(server.create(&name)).unwrap();
        let target = Target { config: server.config(&name), kind: Kind::PostgreSql };
        for (case, expected) in script.cases.iter().zip(&recorded) {
            let actual = runtime.block_on(run::play(&target, &script, case, Guide::Follow(expected)));
            if actual != *expected {
                let (expected, actual) =
                    (script::render(&case.name, expected), script::render(&case.name, &actual));
                writeln!(differences, "{name}: expected\n{expected}but got\n{actual}").unwrap();
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
