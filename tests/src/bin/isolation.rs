//! Plays the isolation scripts on Shoal, and tells where it does otherwise than PostgreSQL 15 did.
//!
//! `cargo run -p tests --bin isolation [--shards N] [NAME..]` starts a cluster (with one shard, then one with four, if
//! none is said) and plays each script of `tests/isolation`, or those that are named.

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use tests::cluster::Cluster;
use tests::isolation::{play_on_shoal, script, scripts};

/// Plays isolation scripts on Shoal.
#[derive(Parser)]
struct Arguments {
    /// How many shards the cluster has; may be said more than once
    #[arg(long, default_values_t = [1, 4])]
    shards: Vec<u32>,
    /// How many nodes, each with a replica of everything
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// Prints the whole of a case that differs, not its first difference alone
    #[arg(long)]
    whole: bool,
    /// The scripts
    names: Vec<String>,
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let Arguments { shards, nodes, whole, names } = Arguments::parse();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("isolation");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let scripts = scripts(&folder)?;
    let mut wrong = 0;
    for shards in shards {
        let (count, nodes) = (shards.to_string(), nodes.to_string());
        let cluster = Cluster::start(&["--nodes", &nodes, "--replicas", &nodes, "--shards", &count]);
        let (played, otherwise) =
            runtime.block_on(play_on_shoal(&cluster.config(), shards, &scripts, &names));
        for (name, case, expected, actual) in &otherwise {
            println!("{name} on {shards} shards: {case}");
            if whole {
                println!("expected\n{}", script::render(case, expected));
                println!("but got\n{}", script::render(case, actual));
            } else if let Some((expected, actual)) = script::first_difference(expected, actual) {
                println!("expected\n{expected}but got\n{actual}");
            }
        }
        println!("{played} cases on {shards} shards, {} otherwise than expected", otherwise.len());
        wrong += otherwise.len();
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
