//! Copies many rows into a table on all shards in one statement, beside writers of single rows, and kills a node half-way if
//! asked to.
//!
//! A COPY that leaves some of its rows fails the trial, as does a lost row of the others. It prints how much each process has
//! grown, how fast the rows came, and how long the other writers went without an answer.

use super::{Arguments, Failure, PATIENCE, Stage};
use bytes::Bytes;
use clap::Args;
use futures::SinkExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tests::load::quantile;
use tests::nodes::groups;
use tests::wait;
use tokio_postgres::Client;

/// Rows that are sent at once.
const AT_ONCE: u64 = 1000;

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct Copy {
    /// How many rows are copied
    #[arg(long, default_value_t = 5_000_000)]
    rows: u64,
    /// Kills a shard's leader when half of the rows are sent, and copies them all when it is back
    #[arg(long)]
    kill: bool,
    /// What no process may grow by, in MB
    #[arg(long, default_value_t = 300)]
    most_mb: u64,
}

pub fn run(arguments: &Arguments, trial: &Copy) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    let table = "CREATE TABLE copied (id bigint PRIMARY KEY, branch int, balance int, filler char(84))";
    stage.runtime.block_on(async { stage.nodes.connect(0).await.batch_execute(table).await })?;
    let load = stage.load(&[0, 1, 2]);
    if !load.wait_for_each(50, PATIENCE) {
        return Err("the load stands still".into());
    }
    if trial.kill {
        let status = stage.nodes.status(0).ok_or("no status")?;
        let shard =
            groups(&status).filter_map(|group| group["shard"].as_str()).find(|s| s.starts_with("main/"));
        let victim = stage.nodes.leader(0, shard.ok_or("no shard")?).ok_or("no leader")?;
        let half = trial.rows / 2;
        let client = stage.runtime.block_on(stage.nodes.connect((victim + 1) % stage.nodes.count()));
        let sent = stage.runtime.block_on(async { send(&client, half).await });
        let sink = sent?;
        stage.nodes.kill(victim);
        let outcome = stage.runtime.block_on(async { finish(sink, half, trial.rows).await });
        println!(
            "node {victim} killed after {half} rows: {}",
            outcome.map_or_else(|e| e, |n| format!("COPY {n}"))
        );
        wait::pause(Duration::from_secs(1));
        stage.nodes.restart(victim);
        if !load.wait_for_each(50, PATIENCE) {
            return Err("the load stands still after a node came back".into());
        }
        let client = stage.runtime.block_on(stage.nodes.connect(victim));
        let count = stage.runtime.block_on(count(&client))?;
        if count != 0 && count != trial.rows {
            return Err(format!("{count} of {} rows are there", trial.rows).into());
        }
        let emptied = stage.runtime.block_on(client.batch_execute("TRUNCATE copied"));
        emptied.map_err(|error| told(&error))?;
    }

    let quiet = Instant::now();
    if !load.wait_for_each(200, PATIENCE) {
        return Err("the load stands still".into());
    }
    let pids: Vec<u32> = (0..stage.nodes.count()).map(|node| stage.nodes.pid(node)).collect();
    let watch = Watch::begin(pids);
    let from = Instant::now();
    let client = stage.runtime.block_on(stage.nodes.connect(0));
    let sink = stage.runtime.block_on(async { send(&client, trial.rows).await })?;
    let all_sent = from.elapsed();
    let copied = stage.runtime.block_on(async { finish(sink, trial.rows, trial.rows).await })?;
    let to = Instant::now();
    // It is told of as soon as all shards have voted. Who counts the rows waits until they are all in place.
    let count = stage.runtime.block_on(count(&client))?;
    let in_place = Instant::now();
    if !load.wait_for_each(20, PATIENCE) {
        return Err("the load stands still after the COPY".into());
    }
    let grown = watch.end();
    let logs = stage.end(load);
    println!(
        "COPY of {copied} rows took {:.1?} ({:.0} rows/s), of which its end {:.1?}; counted after {:.1?} more",
        to - from,
        copied as f64 / (to - from).as_secs_f64(),
        (to - from).saturating_sub(all_sent),
        in_place - to
    );
    for (node, (before, most)) in grown.iter().enumerate() {
        println!("node {node} grew from {before} MB by {} MB at most", most - before);
    }
    let latency = |from, to| {
        let all: Vec<_> = logs.iter().flat_map(|log| log.latencies(from, to)).collect();
        let at = |share| quantile(all.iter().copied(), share);
        format!("median {:.2?}, p99 {:.2?}, worst {:.2?} of {}", at(0.5), at(0.99), at(1.0), all.len())
    };
    println!("other writers before: {}", latency(quiet, from));
    println!("other writers meanwhile: {}", latency(from, in_place));
    let pause = logs.iter().map(|log| log.longest_gap(from, in_place)).max().unwrap_or_default();
    println!("longest pause of another writer: {pause:.2?}");
    for error in logs.iter().flat_map(|log| &log.errors) {
        println!("  a client saw: {error}");
    }
    stage.check(0, &logs)?;
    if copied != trial.rows || count != trial.rows {
        return Err(format!("{copied} rows were told, {count} are there").into());
    }
    match grown.iter().map(|(before, most)| most - before).max() {
        Some(most) if most > trial.most_mb => Err(format!("a process grew by {most} MB").into()),
        _ => Ok(()),
    }
}

type Sink = std::pin::Pin<Box<tokio_postgres::CopyInSink<Bytes>>>;

/// Begins a COPY and sends the first rows.
async fn send(client: &Client, rows: u64) -> Result<Sink, Failure> {
    let sink = client.copy_in("COPY copied FROM STDIN").await.map_err(|error| told(&error))?;
    let mut sink = Box::pin(sink);
    let mut next = 0;
    while next < rows {
        let end = rows.min(next + AT_ONCE);
        sink.send(lines(next, end)).await.map_err(|error| told(&error))?;
        next = end;
    }
    Ok(sink)
}

/// Sends the rest of a COPY, and ends it.
async fn finish(mut sink: Sink, from: u64, to: u64) -> Result<u64, String> {
    let mut next = from;
    while next < to {
        let end = to.min(next + AT_ONCE);
        sink.send(lines(next, end)).await.map_err(|error| told(&error))?;
        next = end;
    }
    sink.as_mut().finish().await.map_err(|error| told(&error))
}

fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.to_string())
}

fn lines(from: u64, to: u64) -> Bytes {
    let mut text = String::with_capacity(110 * (to - from) as usize);
    for id in from..to {
        text.push_str(&format!("{id}\t{}\t0\t{id:084}\n", id / 100_000));
    }
    text.into()
}

async fn count(client: &Client) -> Result<u64, Failure> {
    let counted = client.query_one("SELECT count(*) FROM copied", &[]).await;
    let count: i64 = counted.map_err(|error| told(&error))?.get(0);
    Ok(u64::try_from(count)?)
}

/// Looks at processes' resident memory, in MB.
struct Watch {
    over: Arc<AtomicBool>,
    watcher: std::thread::JoinHandle<Vec<(u64, u64)>>,
}

impl Watch {
    fn begin(pids: Vec<u32>) -> Watch {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let watcher = std::thread::spawn(move || {
            let mut seen: Vec<_> = pids.iter().map(|pid| (resident(*pid), resident(*pid))).collect();
            while !ended.load(Ordering::Relaxed) {
                for (pid, (_, most)) in pids.iter().zip(&mut seen) {
                    *most = (*most).max(resident(*pid));
                }
                wait::pause(LOOK);
            }
            seen
        });
        Watch { over, watcher }
    }

    /// What each had at first, and at most.
    fn end(self) -> Vec<(u64, u64)> {
        self.over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap_or_default()
    }
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
