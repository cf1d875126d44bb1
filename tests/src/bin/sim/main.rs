//! `sim`: runs simulated groups, or clusters, from seeds, and tells what went wrong.
//!
//! Seeds go in, verdicts come out; each run is the library's affair. Runs share nothing, so each core takes its own. A
//! cluster's run has a process for itself, whose chance is fixed (`chance`).

mod chance;

use clap::{Parser, ValueEnum};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tests::sim::scenario::{Report, Scenario, Variant};
use tests::sim::{cluster, plan, shrink::shrink};

/// In so many runs of deaths some router must have left something.
const ENOUGH_RUNS: u64 = 4;

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
    /// Of each seed's faults just these, by their places.
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    keep: Option<Vec<usize>>,
    /// So many clients, whatever the seeds say.
    #[arg(long)]
    clients: Option<usize>,
    /// Have a cluster's reads of several shards judged as one state of them all, too.
    #[arg(long)]
    cuts: bool,
    /// Have some of a cluster's clients read from any replica, as of what they have seen, over routers that they change.
    #[arg(long)]
    sessions: bool,
    /// Have an admin split and merge a cluster's shards meanwhile.
    #[arg(long)]
    reshards: bool,
    /// Have a cluster's nodes die one after the other, and nothing else go wrong: what their routers had prepared must be
    /// free in time.
    #[arg(long)]
    deaths: bool,
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
    /// Run here, and print all that there is to say for the process that asked.
    #[arg(long, hide = true)]
    alone: bool,
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
#[derive(Default)]
struct Sums {
    runs: u64,
    faults: BTreeMap<String, u64>,
    counts: BTreeMap<String, u64>,
    failed: Vec<(u64, String)>,
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
    if arguments.alone {
        chance::fix();
        let report = run_here::<S>(&arguments.variant(first));
        println!("{}", serde_json::to_string(&report).expect("a report is plain"));
        return ExitCode::SUCCESS;
    }
    println!("seed {first}, {} runs", arguments.runs);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let (next, sums, begun) = (AtomicU64::new(0), Mutex::new(Sums::default()), Instant::now());
    std::thread::scope(|scope| {
        for number in 0..threads {
            let worker = || work::<S>(arguments, first, &next, &sums);
            let builder = std::thread::Builder::new().name(format!("run-{number}")).stack_size(64 << 20);
            builder.spawn_scoped(scope, worker).expect("the system gives a thread");
        }
    });
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!("\n{} runs in {seconds:.1} s", sums.runs);
    println!("faults:");
    for kind in S::kinds() {
        println!("{:>12}  {kind}", sums.faults.get(&kind).copied().unwrap_or(0));
    }
    println!("and:");
    for (what, count) in &sums.counts {
        println!("{count:>12}  {what}");
    }
    // A single run may well have none.
    if arguments.deaths && sums.runs >= ENOUGH_RUNS && !sums.counts.contains_key(cluster::LEFT) {
        println!("FAILED: there were no {}, so nothing was tried", cluster::LEFT);
        return ExitCode::FAILURE;
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

fn work<S: Scenario>(arguments: &Arguments, first: u64, next: &AtomicU64, sums: &Mutex<Sums>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= arguments.runs {
            return;
        }
        let seed = first.wrapping_add(number);
        let report = run_seed::<S>(arguments, seed);
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, count) in report.faults {
            *sums.faults.entry(kind).or_default() += count;
        }
        for (what, count) in report.counts {
            *sums.counts.entry(what).or_default() += count;
        }
        sums.runs += 1;
        if let Some(why) = report.failure {
            // Whoever waits for the end needn't wait for this.
            eprintln!("seed {seed} fails: {}", why.lines().next().unwrap_or_default());
            sums.failed.push((seed, why));
            if arguments.until_failure {
                next.store(arguments.runs, Ordering::Relaxed);
            }
        }
    }
}

impl Arguments {
    fn variant(&self, seed: u64) -> Variant {
        let Arguments { clients, cuts, sessions, reshards, deaths, .. } = *self;
        Variant { seed, keep: self.keep.clone(), clients, cuts, sessions, reshards, deaths }
    }

    fn run<S: Scenario>(&self, variant: &Variant) -> Report {
        match self.subject {
            Subject::Group => run_here::<S>(variant),
            Subject::Cluster => run_apart(variant).unwrap_or_else(Report::failed),
        }
    }
}

fn run_here<S: Scenario>(variant: &Variant) -> Report {
    let failed = |error| Report::failed(format!("it could not be run: {error}"));
    variant.plan::<S>().run().unwrap_or_else(failed)
}

/// Runs in another process.
fn run_apart(variant: &Variant) -> Result<Report, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["cluster", "--alone"]).args(variant.arguments());
    let output = command.output().map_err(|error| format!("it could not be run: {error}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("its process ended with {}: {words}", output.status))
}

fn run_seed<S: Scenario>(arguments: &Arguments, seed: u64) -> Report {
    let variant = arguments.variant(seed);
    let mut report = arguments.run::<S>(&variant);
    if arguments.doublecheck {
        let second = arguments.run::<S>(&variant);
        if let Some((same, time)) = report.parts_from(&second)
            && report.failure.is_none()
        {
            let parted = report.lines.iter().zip(&second.lines).find(|(one, two)| one != two);
            let where_to = parted.map(|(one, two)| format!("\n    {one}\n    {two}")).unwrap_or_default();
            report.failure =
                Some(format!("two runs of the seed differ after {same} events, at {time} ns:{where_to}"));
        }
    }
    let is_whole = variant.keep.is_none() && variant.clients.is_none();
    if report.failure.is_some() && arguments.shrink > 0 && is_whole && !arguments.doublecheck {
        let failure = report.failure.clone().unwrap_or_default();
        let mut plan: S = variant.plan();
        let kinds: Vec<String> = plan.faults().iter().map(|(_, fault)| S::kind(fault)).collect();
        let run = |variant: &Variant| arguments.run::<S>(variant);
        let (shorter, shortest) = shrink(&variant, &kinds, *plan.clients(), report, arguments.shrink, run);
        let mut text = format!("\nseed {seed} failed: {failure}\nthe shortest run that fails: ");
        text += &shorter.arguments().join(" ");
        text.push('\n');
        for line in &shortest.lines {
            text += line;
            text.push('\n');
        }
        println!("{text}");
        report = shortest;
        report.failure = Some(failure);
    } else if arguments.trace {
        report.lines.iter().for_each(|line| println!("{line}"));
    }
    report
}
