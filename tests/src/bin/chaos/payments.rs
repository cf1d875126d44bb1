//! Payments by clients whose connections are cut around COMMIT, and who repeat each with its key until they're answered.

use super::{Arguments, Failure, PATIENCE, Stage};
use clap::Args;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::payments::{check, pay, set_up};
use tests::wait;

/// How often it's looked whether a kill is due.
const PAUSE: Duration = Duration::from_millis(10);

/// What is paid, and what befalls the cluster meanwhile.
#[derive(Debug, Args)]
pub struct Payments {
    /// How many payments are made
    #[arg(long, default_value_t = 1000)]
    payments: i64,
    /// How many nodes are killed meanwhile, one after the other
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// What cuts and victims are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(arguments: &Arguments, trial: &Payments) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    stage.runtime.block_on(async { set_up(&stage.nodes.connect(0).await).await })?;
    let routers: Vec<_> = (0..stage.nodes.count()).map(|node| stage.nodes.config(node)).collect();
    let (payments, payers, done) = (trial.payments, stage.writers as u64, Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let paying = stage.runtime.spawn(pay(routers, payments, payers, trial.seed, done.clone()));
    for kill in 1..=trial.kills {
        let share = payments as u64 * u64::from(kill) / u64::from(trial.kills + 1);
        let is_due = || done.load(Ordering::Relaxed) >= share || paying.is_finished();
        if wait::until(PATIENCE * 10, PAUSE, || if is_due() { Ok(()) } else { Err(()) }).is_err() {
            return Err(format!("no {share} payments before node {kill} is to be killed").into());
        }
        let victim = (trial.seed as usize + kill as usize * 7) % stage.nodes.count();
        println!("node {} is killed after {} payments", victim + 1, done.load(Ordering::Relaxed));
        stage.nodes.kill(victim);
        stage.nodes.restart(victim);
        // Another may go once nobody lacks anything.
        wait::pause(Duration::from_secs(5));
    }
    let tally = stage.runtime.block_on(paying)??;
    let took = begun.elapsed();
    stage.runtime.block_on(async { check(&stage.nodes.connect(0).await, payments).await })?;
    println!(
        "{payments} payments in {took:.1?}, each made once: {} attempts, {} connections cut, {} told that it was made before",
        tally.attempts, tally.cuts, tally.told_before
    );
    println!("errors by SQLSTATE: {:?}", tally.errors);
    if trial.kills == 0 && tally.errors.keys().any(|code| code != "40001") {
        return Err("errors that no payer should see".into());
    }
    Ok(())
}
