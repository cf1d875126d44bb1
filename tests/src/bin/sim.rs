//! `sim`: runs simulated groups from seeds, and tells what went wrong.
//!
//! Seeds go in, verdicts come out; each run is the library's affair. Runs share nothing, so each core takes its own.

use clap::Parser;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tests::sim::plan::{Kind, Plan};
use tests::sim::world::Report;
use tests::sim::{run, shrink::shrink};

/// Runs replicated groups in a simulated world, and checks them from outside.
#[derive(Parser)]
struct Arguments {
    /// The first run's seed; a fresh one if it isn't given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to run, one after the other from the first.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Run each seed twice and compare what happened.
    #[arg(long)]
    doublecheck: bool,
    /// End at the first run that fails.
    #[arg(long)]
    until_failure: bool,
    /// Print what happened, also of runs that pass.
    #[arg(long)]
    trace: bool,
    /// Runs at the same time; as many as there are cores if it isn't given.
    #[arg(long)]
    threads: Option<usize>,
    /// How many runs the search for a shorter failing run may take.
    #[arg(long, default_value_t = 150)]
    shrink: u64,
}

/// What all runs came to.
#[derive(Default)]
struct Sums {
    runs: u64,
    faults: BTreeMap<Kind, u64>,
    counts: BTreeMap<Cow<'static, str>, u64>,
    failed: Vec<(u64, String)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or_else(fresh_seed);
    println!("seed {first}, {} runs", arguments.runs);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let (next, sums, begun) = (AtomicU64::new(0), Mutex::new(Sums::default()), Instant::now());
    std::thread::scope(|scope| {
        for number in 0..threads {
            let worker = || work(&arguments, first, &next, &sums);
            let builder = std::thread::Builder::new().name(format!("run-{number}")).stack_size(64 << 20);
            builder.spawn_scoped(scope, worker).expect("the system gives a thread");
        }
    });
    let sums = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!("\n{} runs in {seconds:.1} s", sums.runs);
    println!("faults:");
    for kind in Kind::ALL {
        println!("{:>12}  {kind}", sums.faults.get(&kind).copied().unwrap_or(0));
    }
    println!("and:");
    for (what, count) in &sums.counts {
        println!("{count:>12}  {what}");
    }
    if sums.failed.is_empty() {
        println!("all passed");
        return ExitCode::SUCCESS;
    }
    for (seed, why) in &sums.failed {
        println!("FAILED: seed {seed}: {why}");
    }
    println!("{} of {} failed", sums.failed.len(), sums.runs);
    ExitCode::FAILURE
}

/// The time is random enough to begin where nobody has been.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64 * 10_000
}

fn work(arguments: &Arguments, first: u64, next: &AtomicU64, sums: &Mutex<Sums>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= arguments.runs {
            return;
        }
        let seed = first.wrapping_add(number);
        let report = run_seed(arguments, seed);
        let mut sums = sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (kind, count) in &report.faults {
            *sums.faults.entry(*kind).or_default() += count;
        }
        for (what, count) in &report.counts {
            *sums.counts.entry(what.clone()).or_default() += count;
        }
        sums.runs += 1;
        if let Some(why) = report.failure {
            sums.failed.push((seed, why));
            if arguments.until_failure {
                next.store(arguments.runs, Ordering::Relaxed);
            }
        }
    }
}

fn run_seed(arguments: &Arguments, seed: u64) -> Report {
    let mut report = checked(run(Plan::new(seed)), seed);
    if arguments.doublecheck {
        let second = checked(run(Plan::new(seed)), seed);
        let (one, two) = (&report.trace, &second.trace);
        if (one.hash(), one.events()) != (two.hash(), two.events()) && report.failure.is_none() {
            let parted = one.lines().zip(two.lines()).find(|(one, two)| one != two);
            let where_to = parted.map(|(one, two)| format!("\n    {one}\n    {two}")).unwrap_or_default();
            report.failure = Some(format!("two runs of the seed differ:{where_to}"));
        }
    }
    if report.failure.is_some() && arguments.shrink > 0 && !arguments.doublecheck {
        let faults = Plan::new(seed).faults.len();
        let failure = report.failure.clone().unwrap_or_default();
        let (plan, shorter) = shrink(Plan::new(seed), report, arguments.shrink);
        let (kept, clients) = (plan.faults.len(), plan.clients);
        let mut text = format!("\nseed {seed} failed: {failure}\n");
        text += &format!("the shortest run that fails has {kept} of {faults} faults, {clients} clients\n");
        for line in shorter.trace.lines() {
            text += &line;
            text.push('\n');
        }
        println!("{text}");
        report = shorter;
        report.failure = Some(failure);
    } else if arguments.trace {
        report.trace.lines().for_each(|line| println!("{line}"));
    }
    report
}

fn checked(report: std::io::Result<Report>, seed: u64) -> Report {
    report.unwrap_or_else(|error| Report {
        failure: Some(format!("seed {seed} could not be run: {error}")),
        ..Report::default()
    })
}
