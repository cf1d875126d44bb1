//! Plays the isolation scripts on Shoal, and tells where it does otherwise than PostgreSQL 15 did.
//!
//! `cargo run -p tests --bin isolation [--shards N] [NAME..]` starts a cluster (with one shard, then one with four, if
//! none is said) and plays each script of `tests/isolation`, or those that are named.

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use tests::cluster::Cluster;
use tests::isolation::run::{Guide, Kind, Target, play};
use tests::isolation::script;
use tests::isolation::scripts;

/// Plays isolation scripts on Shoal.
#[derive(Parser)]
struct Arguments {
    /// How many shards the cluster has; may be said more than once
    #[arg(long, default_values_t = [1, 4])]
    shards: Vec<u32>,
    /// Prints the whole of a case that differs, not its first difference alone
    #[arg(long)]
    whole: bool,
    /// The scripts
    names: Vec<String>,
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let Arguments { shards, whole, names } = Arguments::parse();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("isolation");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut played, mut wrong) = (0, 0);
    for shards in shards {
        let count = shards.to_string();
        let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", &count]);
        let target = Target { config: cluster.config(), kind: Kind::Shoal(shards) };
        for found in scripts(&folder)? {
            if !names.is_empty() && !names.contains(&found.name) {
                continue;
            }
            for (case, expected) in found.script.cases.iter().zip(&found.expected) {
                let actual = runtime.block_on(play(&target, &found.script, case, Guide::Follow(expected)));
                played += 1;
                if actual == *expected {
                    continue;
                }
                wrong += 1;
                println!("{} on {shards} shards: {}", found.name, case.name);
                if whole {
                    println!("expected\n{}", script::render(&case.name, expected));
                    println!("but got\n{}", script::render(&case.name, &actual));
                } else if let Some((expected, actual)) = script::first_difference(expected, &actual) {
                    println!("expected\n{expected}but got\n{actual}");
                }
            }
        }
    }
    println!("{played} cases, {wrong} otherwise than expected");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
