//! Moves money between accounts on all shards while readers add it up, and kills nodes meanwhile if asked to.
//!
//! A reader that ever sees half of a transfer fails the trial, as does a committed transfer that is lost, or a lock that
//! is left at the end.

use super::{Arguments, Failure, Stage, victims};
use clap::Args;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tests::load::quantile;
use tests::transfers::{self, Told, Transfers};
use tests::wait;

#[derive(Debug, Args)]
pub struct Sums {
    /// How many accounts there are
    #[arg(long, default_value_t = 1000)]
    accounts: i64,
    /// How many clients add up
    #[arg(long, default_value_t = 4)]
    readers: usize,
    /// How long it goes on, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Kills a random node every so many seconds, and starts it again 3 s later; 0 for never
    #[arg(long, default_value_t = 0)]
    kill_every: u64,
    /// What accounts and victims are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(arguments: &Arguments, trial: &Sums) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    stage
        .runtime
        .block_on(async { transfers::prepare(&stage.nodes.connect(0).await, trial.accounts).await })?;
    let routers: Vec<_> = (0..stage.nodes.count()).map(|node| stage.nodes.config(node)).collect();
    let clients = (stage.writers, trial.readers);
    let load = Transfers::start(stage.runtime.handle(), &routers, clients, trial.accounts, trial.seed);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(trial.seconds);
    let mut kills = 0;
    if trial.kill_every > 0 {
        let every = Duration::from_secs(trial.kill_every);
        kills = victims::kill(&mut stage, every, end, trial.seed, || Some(load.committed() as u64))?;
    }
    wait::pause(end.saturating_duration_since(Instant::now()));
    let (moved, seen) = stage.runtime.block_on(load.stop());
    let elapsed = begun.elapsed();

    let told =
        |what| moved.iter().flat_map(|moved| moved.told.values()).filter(|told| **told == what).count();
    let (committed, unknown) = (told(Told::Committed), told(Told::Nothing));
    let rate = |count: usize| count as f64 / elapsed.as_secs_f64();
    let latencies = |of: &[Duration]| {
        let at = |share| quantile(of.iter().copied(), share);
        format!("median {:.2?}, p99 {:.2?}, worst {:.2?}", at(0.5), at(0.99), at(1.0))
    };
    let transfers: Vec<_> = moved.iter().flat_map(|moved| moved.latencies.iter().copied()).collect();
    let reads: Vec<_> = seen.iter().flat_map(|seen| seen.latencies.iter().copied()).collect();
    println!("{} movers and {} readers, {elapsed:.0?}, {kills} nodes killed", stage.writers, trial.readers);
    println!(
        "{committed} transfers committed ({:.0}/s, {}), {unknown} of unknown outcome",
        rate(committed),
        latencies(&transfers)
    );
    println!("{} sums read ({:.0}/s, {})", reads.len(), rate(reads.len()), latencies(&reads));
    println!("movers saw {:?}", count(moved.iter().map(|moved| &moved.errors)));
    println!("readers saw {:?}", count(seen.iter().map(|seen| &seen.errors)));

    let wrong: Vec<&String> = seen.iter().flat_map(|seen| &seen.wrong).collect();
    stage
        .runtime
        .block_on(async { transfers::check(&stage.nodes.connect(0).await, &moved, trial.accounts).await })?;
    println!("at the end every committed transfer is there, whole, and no lock is left");
    match wrong.first() {
        Some(first) => Err(format!("{} sums were wrong; the first: {first}", wrong.len()).into()),
        None => Ok(()),
    }
}

fn count<'a>(errors: impl Iterator<Item = &'a HashMap<String, u64>>) -> HashMap<&'a str, u64> {
    let mut all = HashMap::new();
    for (name, times) in errors.flatten() {
        *all.entry(name.as_str()).or_default() += times;
    }
    all
}
