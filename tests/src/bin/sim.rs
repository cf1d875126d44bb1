//! `sim`: runs simulated groups, or clusters, from seeds, and tells what went wrong.
//!
//! Seeds go in, verdicts come out; each run is the library's affair. Runs share nothing, so each core takes its own.

use clap::{Parser, ValueEnum};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tests::sim::scenario::{Report, Scenario};
use tests::sim::{cluster, plan, shrink::shrink};

/// Runs replicated groups, or whole clusters, in a simulated world, and checks them from outside.
#[derive(Parser)]
struct Arguments {
    /// What is simulated.
    #[arg(value_enum, default_value_t = Subject::Group)]
    subject: Subject,
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

/// What can be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// One replicated group with its clients.
    Group,
    /// A cluster: routers, coordinator and shards, with clients that speak SQL.
    Cluster,
}

/// What all runs came to.
struct Sums<K> {
    runs: u64,
    faults: BTreeMap<K, u64>,
    counts: BTreeMap<Cow<'static, str>, u64>,
    failed: Vec<(u64, String)>,
}

impl<K> Default for Sums<K> {
    fn default() -> Self {
        Self { runs: 0, faults: BTreeMap::new(), counts: BTreeMap::new(), failed: Vec::new() }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.subject {
        Subject::Group => run::<plan::Plan>(&arguments),
        Subject::Cluster => run::<cluster::plan::Plan>(&arguments),
    }
}

fn run<S: Scenario>(arguments: &Arguments) -> ExitCode {
    let first = arguments.seed.unwrap_or_else(fresh_seed);
    println!("seed {first}, {} runs", arguments.runs);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let (next, sums, begun) = (AtomicU64::new(0), Mutex::new(Sums::<S::Kind>::default()), Instant::now());
    std::thread::scope(|scope| {
        for number in 0..threads {
            let worker = || work::<S>(arguments, first, &next, &sums);
            let builder = std::thread::Builder::new().name(format!("run-{number}")).stack_size(64 << 20);
            builder.spawn_scoped(scope, worker).expect("the system gives a thread");
        }
    });
    let sums = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!("\n{} runs in {seconds:.1} s", sums.runs);
    println!("faults:");
    for kind in S::KINDS {
        println!("{:>12}  {kind}", sums.faults.get(kind).copied().unwrap_or(0));
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

fn work<S: Scenario>(arguments: &Arguments, first: u64, next: &AtomicU64, sums: &Mutex<Sums<S::Kind>>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= arguments.runs {
            return;
        }
        let seed = first.wrapping_add(number);
        let report = run_seed::<S>(arguments, seed);
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

fn run_seed<S: Scenario>(arguments: &Arguments, seed: u64) -> Report<S::Kind> {
    let mut report = checked(S::draw(seed).run(), seed);
    if arguments.doublecheck {
        let second = checked(S::draw(seed).run(), seed);
        let (one, two) = (&report.trace, &second.trace);
        if (one.hash(), one.events()) != (two.hash(), two.events()) && report.failure.is_none() {
            let parted = one.lines().zip(two.lines()).find(|(one, two)| one != two);
            let where_to = parted.map(|(one, two)| format!("\n    {one}\n    {two}")).unwrap_or_default();
            report.failure = Some(format!("two runs of the seed differ:{where_to}"));
        }
    }
    if report.failure.is_some() && arguments.shrink > 0 && !arguments.doublecheck {
        let faults = S::draw(seed).faults().len();
        let failure = report.failure.clone().unwrap_or_default();
        let (mut plan, shorter) = shrink(S::draw(seed), report, arguments.shrink);
        let (kept, clients) = (plan.faults().len(), *plan.clients());
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

fn checked<K>(report: std::io::Result<Report<K>>, seed: u64) -> Report<K> {
    report.unwrap_or_else(|error| Report {
        failure: Some(format!("seed {seed} could not be run: {error}")),
        ..Report::default()
    })
}
