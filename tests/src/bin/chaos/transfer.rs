//! Moves a shard's leader under load, again and again, and measures what its clients wait for.

use super::{Arguments, Failure, PATIENCE, Stage, summary};
use std::time::Instant;
use tests::nodes::groups;

pub fn run(arguments: &Arguments, rounds: u32) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    let status = stage.nodes.status(0).ok_or("no status")?;
    let shard = groups(&status).filter_map(|group| group["shard"].as_str()).find(|s| s.starts_with("main/"));
    let shard = shard.ok_or("no shard")?.to_owned();
    let load = stage.load(&[0, 1, 2]);
    let (mut planned, mut spans) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if !load.wait_for_each(50, PATIENCE) {
            return Err("the load stands still".into());
        }
        let leader = stage.nodes.leader(0, &shard).ok_or("no leader")?;
        let to = (leader + 1 + round as usize % 2) % 3;
        let id = stage.nodes.id(to).ok_or("a node without an id")?.to_string();
        let quiet = Instant::now();
        if !load.wait_for_each(50, PATIENCE) {
            return Err("the load stands still".into());
        }
        let from = Instant::now();
        spans.push((quiet, from));
        let moved = stage.nodes.shoal(1, &["replica", "transfer-leader", "--shard", &shard, "--to", &id]);
        if !moved.status.success() {
            return Err(format!("no transfer: {}", String::from_utf8_lossy(&moved.stderr)).into());
        }
        if !load.wait_for_each(20, PATIENCE) {
            return Err("the load stands still after a transfer".into());
        }
        planned.push((from, Instant::now()));
    }
    let logs = stage.end(load);
    stage.check(0, &logs)?;
    let longest = |(from, to): &(Instant, Instant)| {
        logs.iter().map(|log| log.longest_gap(*from, *to)).max().unwrap_or_default()
    };
    for log in &logs {
        for error in &log.errors {
            println!("  a client saw: {error}");
        }
    }
    let errors: usize = logs.iter().map(|log| log.errors.len()).sum();
    println!(
        "{rounds} transfers of {shard}; {errors} errors seen by clients; every acknowledged row is there once"
    );
    summary("longest time without an answer, leader moved", &planned.iter().map(longest).collect::<Vec<_>>());
    summary("longest time without an answer, left alone", &spans.iter().map(longest).collect::<Vec<_>>());
    if errors > 0 { Err("clients saw errors".into()) } else { Ok(()) }
}
