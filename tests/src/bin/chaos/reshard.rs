//! Splits, moves and merges shards while clients read and write like pgbench's, over two routers.
//!
//! Two shards become four, one of them is moved, and four become two again, over and over until there were so many switches. A
//! client that hears an error fails the trial, as does a wrong sum, a write that is lost or there twice, and a token that was
//! taken before a step and doesn't show its writes after it. It prints for each switch the longest wait of a client, and the longest
//! in spans of the same length right before and after. With kills, errors that deaths explain are no failures, but every reshard must end or be
//! cancelled.

mod kills;
mod steps;

use super::{Arguments, Failure, PATIENCE, Stage, summary};
use clap::Args;
use kills::Kills;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use steps::{Switch, Work};
use tests::bank::{self, Bank, Book, longest_wait, longest_within};
use tests::load::quantile;
use tests::nodes::{Nodes, groups};
use tests::sessions::WEATHER;

/// How many of the errors that clients saw are printed.
const TOLD: usize = 20;

#[derive(Debug, Args)]
pub struct Reshard {
    /// How many accounts there are, in hundreds
    #[arg(long, default_value_t = 1_000_000)]
    rows: i64,
    /// How many clients read and write, half of them over each router
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Goes on until there were so many switches
    #[arg(long, default_value_t = 4)]
    switches: usize,
    /// Switches back after each switch, and forward again, with writes between
    #[arg(long)]
    reverse: bool,
    /// Kills the coordinator's leader, an old shard's, a new shard's, or the command, in turn and in each phase, every so many
    /// seconds at most; nodes come back 3 s later. 0 for never
    #[arg(long, default_value_t = 0)]
    kill_every: u64,
    /// Has the rows of old and new not compared
    #[arg(long)]
    no_verify: bool,
    /// How long each switch is waited for, so that there is a quiet span to compare it with, in seconds
    #[arg(long, default_value_t = 3)]
    quiet: u64,
    /// How much longer than usual a client may wait at a switch, in ms; 0 for as long as it takes
    #[arg(long, default_value_t = 300)]
    most_ms: u64,
    /// The same for the median of all switches
    #[arg(long, default_value_t = 100)]
    median_ms: u64,
    /// What accounts are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(arguments: &Arguments, trial: &Reshard) -> Result<(), Failure> {
    let stage = Stage::set(arguments, &[])?;
    let accounts = (trial.rows / 100).max(1) * 100;
    stage.runtime.block_on(async {
        let client = stage.nodes.connect(0).await;
        bank::prepare(&client, accounts).await?;
        client.batch_execute("CREATE TABLE noted (id bigint PRIMARY KEY)").await
    })?;
    let routers = [stage.nodes.config(0), stage.nodes.config(1)];
    let begun = Instant::now();
    let bank = Bank::open(stage.runtime.handle(), &routers, trial.clients, accounts, trial.seed);
    if !bank.wait_for_each(20, PATIENCE) {
        return Err("the clients stand still before anything has begun".into());
    }
    println!("{accounts} accounts, {} clients over two routers", trial.clients);
    let kills = (trial.kill_every > 0).then(|| Kills::every(Duration::from_secs(trial.kill_every)));
    let mut work =
        Work { stage, trial, bank, begun, tokens: Vec::new(), switches: Vec::new(), switched: 0, kills };
    let outcome = work.work();
    let Work { stage, bank, switches, tokens, kills, .. } = work;
    let books = stage.runtime.block_on(bank.close());
    let took = begun.elapsed();

    if let Some(kills) = &kills {
        kills.tell();
    }
    println!("{} tokens were handed on over {took:.0?}", tokens.len());
    let heard = tell(&books, took, begun, kills.is_some());
    let pauses = pauses(&books, &switches);
    let right = (0..2).try_for_each(|router| {
        stage
            .runtime
            .block_on(async { bank::check(&stage.nodes.connect(router).await, &books, accounts).await })
    });
    match (&right, &outcome) {
        (Ok(()), _) => {
            println!("at the end every account and every line is as the books say, and no lock is left")
        }
        (Err(_), Err(failure)) => println!("and before that: {failure}"),
        _ => {}
    }
    if right.is_err() || outcome.is_err() {
        show_logs(&stage.nodes)?;
    }
    right?;
    outcome?;
    heard?;
    if kills.is_none() { pauses.check(trial) } else { Ok(()) }
}

/// Keeps what the nodes have said where it can be read when they are gone.
fn show_logs(nodes: &Nodes) -> Result<(), Failure> {
    for node in 0..nodes.count() {
        let file = std::env::temp_dir().join(format!("chaos-{}-node-{node}.log", std::process::id()));
        std::fs::write(&file, nodes.log(node))?;
        println!("node {node} said what is in {}", file.display());
    }
    Ok(())
}

/// Says what the clients have done and heard. It is a failure if they heard what they may not.
fn tell(books: &[Book], took: Duration, begun: Instant, deaths: bool) -> Result<(), Failure> {
    let all = books.iter().flat_map(|book| &book.waits).map(|wait| wait.done - wait.asked);
    let waits: Vec<Duration> = all.collect();
    let at = |share| quantile(waits.iter().copied(), share);
    let (reads, writes): (u64, usize) =
        (books.iter().map(|book| book.reads).sum(), books.iter().map(Book::committed).sum());
    let unknown: usize = books.iter().map(Book::unknown).sum();
    println!(
        "{reads} reads and {writes} writes ({:.0}/s); answers took {:.2?} (median), {:.2?} (p99), {:.2?} (worst); {unknown} writes of unknown outcome",
        (reads as f64 + writes as f64) / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
    );
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, times) in books.iter().flat_map(|book| &book.errors) {
        *errors.entry(name).or_default() += times;
    }
    println!("errors by SQLSTATE: {errors:?}");
    let mut said: Vec<_> = books.iter().flat_map(|book| &book.said).collect();
    said.sort_unstable_by_key(|(when, _)| *when);
    for (when, what) in said.iter().take(TOLD) {
        println!("  {:7.2} s: {what}", (*when - begun).as_secs_f64());
    }
    let wrong: Vec<_> = books.iter().flat_map(|book| &book.wrong).collect();
    if let Some(first) = wrong.first() {
        return Err(format!("{} answers are wrong; the first: {first}", wrong.len()).into());
    }
    let explained = |name: &&&str| deaths && (WEATHER.contains(*name) || **name == "connection lost");
    match errors.keys().find(|name| !explained(name)) {
        Some(name) => Err(format!("clients saw errors that nothing explains, like {name}").into()),
        None => Ok(()),
    }
}

/// How much longer than usual clients waited at each switch.
struct Pauses(Vec<Duration>);

fn pauses(books: &[Book], switches: &[Switch]) -> Pauses {
    let mut more = Vec::new();
    for switch in switches {
        let length = switch.to - switch.from;
        let longest = longest_wait(books, switch.from, switch.to);
        let before = longest_within(books, switch.from - length, switch.from);
        let after = longest_within(books, switch.to, switch.to + length);
        more.push(longest.saturating_sub(before.max(after)));
        println!(
            "{switch}: a client waited {longest:.2?} at most, {before:.2?} before it and {after:.2?} after it",
        );
    }
    if !more.is_empty() {
        summary("longer than usual at a switch", &more);
    }
    Pauses(more)
}

impl Pauses {
    fn check(&self, trial: &Reshard) -> Result<(), Failure> {
        for (what, share, bound) in [("most", 1.0, trial.most_ms), ("the median", 0.5, trial.median_ms)] {
            let found = quantile(self.0.iter().copied(), share);
            if bound > 0 && found >= Duration::from_millis(bound) {
                return Err(
                    format!("of the pauses at switches {what} is {found:.2?}, not below {bound} ms").into()
                );
            }
        }
        Ok(())
    }
}

/// The shards of the keyspace that serve, in their order.
fn serving(status: &serde_json::Value) -> Vec<String> {
    let serve = groups(status).filter(|group| group["keyspace"] == "main" && group["serves"] == true);
    serve.filter_map(|group| Some(group["shard"].as_str()?.to_owned())).collect()
}
