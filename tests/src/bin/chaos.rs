//! Real nodes under load, and what befalls them: `cargo run --release -p tests --bin chaos -- kill|transfer|rebuild`.
//!
//! Each trial starts a cluster of `shoal node` processes, writes to a table without a key over all routers, and checks
//! at the end that every acknowledged row is there once. It prints what a client measures: how long it went without
//! service, how much slower it was served. The figures are for people; the exit code says whether the rows were right.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tests::load::{self, Load, Log, quantile};
use tests::nodes::{self, Nodes, groups};

type Failure = Box<dyn std::error::Error>;

/// How long the cluster may take to serve everyone again.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Arguments {
    /// How many writers there are
    #[arg(long, default_value_t = 6, global = true)]
    writers: usize,
    /// How many shards the keyspace `main` has
    #[arg(long, default_value_t = 2, global = true)]
    shards: u32,
    #[command(subcommand)]
    trial: Trial,
}

#[derive(Debug, Subcommand)]
enum Trial {
    /// Kills a random node of three, again and again
    Kill {
        #[arg(long, default_value_t = 30)]
        rounds: u32,
        /// What the victims are drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Moves a shard's leader, again and again
    Transfer {
        #[arg(long, default_value_t = 10)]
        rounds: u32,
    },
    /// Takes a replica away for a while, or its files, and has it come back
    Rebuild {
        /// How many rows are written meanwhile
        #[arg(long, default_value_t = 200_000)]
        rows: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = match arguments.trial {
        Trial::Kill { rounds, seed } => kill(&arguments, rounds, seed),
        Trial::Transfer { rounds } => transfer(&arguments, rounds),
        Trial::Rebuild { rows } => rebuild(&arguments, rows),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("chaos: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// A cluster of three, with a runtime for its clients.
struct Stage {
    nodes: Nodes,
    runtime: tokio::runtime::Runtime,
    writers: usize,
    next_writer: i64,
}

impl Stage {
    fn set(arguments: &Arguments, node_arguments: &[&str]) -> Result<Stage, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shards = arguments.shards.to_string();
        let nodes = Nodes::start_with(3, node_arguments, &["--shards", &shards, "--replicas", "3"]);
        runtime.block_on(async { nodes.connect(0).await.batch_execute(load::TABLE).await })?;
        Ok(Stage { nodes, runtime, writers: arguments.writers, next_writer: 0 })
    }

    fn load(&mut self, over: &[usize]) -> Load {
        let routers: Vec<_> = over.iter().map(|node| self.nodes.config(*node)).collect();
        let first = self.next_writer;
        self.next_writer += self.writers as i64;
        Load::start(self.runtime.handle(), &routers, self.writers, first)
    }

    fn end(&self, load: Load) -> Vec<Log> {
        self.runtime.block_on(load.stop())
    }

    fn check(&self, at: usize, logs: &[Log]) -> Result<(), Failure> {
        Ok(self.runtime.block_on(async { load::check(&self.nodes.connect(at).await, logs).await })?)
    }

    /// Waits until every replica of every group follows its leader at the same index. Nobody may write.
    fn wait_until_level(&self, at: usize) {
        self.nodes.wait_for(at, "all replicas are level", |status| {
            groups(status).all(|group| nodes::is_level(group, 3))
        });
    }
}

fn kill(arguments: &Arguments, rounds: u32, seed: u64) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    let mut random = seed;
    let (mut of_leaders, mut of_others, mut errors, mut rows) = (Vec::new(), Vec::new(), 0, 0);
    for round in 1..=rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = (random >> 33) as usize % stage.nodes.count();
        let asked = (victim + 1) % stage.nodes.count();
        let status = stage.nodes.status(asked).ok_or("no status")?;
        let id = stage.nodes.id(victim).ok_or("a node without an id")?;
        let led: Vec<&str> = groups(&status)
            .filter(|group| group["leader"].as_u64() == Some(id))
            .map(|group| group["shard"].as_str().unwrap_or("coordinator"))
            .collect();
        let led_rows = led.iter().any(|shard| shard.starts_with("main/"));

        // Clients of the victim lose their connections; what the others measure is the cluster's own time.
        let others: Vec<usize> = (0..stage.nodes.count()).filter(|node| *node != victim).collect();
        let load = stage.load(&others);
        let stranded = stage.load(&[victim, asked]);
        if !load.wait_for_each(20, PATIENCE) || !stranded.wait_for_each(5, PATIENCE) {
            return Err(format!("round {round}: nothing is acknowledged before the kill").into());
        }
        let killed = Instant::now();
        stage.nodes.kill(victim);
        if !load.wait_for_each(20, PATIENCE) || !stranded.wait_for_each(5, PATIENCE) {
            return Err(format!("round {round}: no service {PATIENCE:?} after the death of a node").into());
        }
        let served = Instant::now();
        let logs = stage.end(load);
        let stranded = stage.end(stranded);
        stage.check(asked, &logs)?;
        stage.check(asked, &stranded)?;
        let gap = logs.iter().map(|log| log.longest_gap(killed, served)).max().unwrap_or_default();
        errors += logs.iter().chain(&stranded).map(|log| log.errors.len()).sum::<usize>();
        for error in logs.iter().chain(&stranded).flat_map(|log| &log.errors) {
            println!("  a client saw: {error}");
        }
        rows += logs.iter().chain(&stranded).map(|log| log.written.len()).sum::<usize>();
        println!("round {round}: node {id} (led {led:?}) killed; longest time without service {gap:.2?}");
        if led_rows {
            of_leaders.push(gap)
        } else {
            of_others.push(gap)
        }
        stage.nodes.restart(victim);
        stage.wait_until_level(asked);
    }
    println!("{rows} rows acknowledged, none lost, none twice; {errors} errors on connections that lived");
    summary("without service, a shard's leader killed", &of_leaders);
    summary("without service, another node killed", &of_others);
    Ok(())
}

fn transfer(arguments: &Arguments, rounds: u32) -> Result<(), Failure> {
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

fn rebuild(arguments: &Arguments, rows: u64) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &["--replace-after", "10s"])?;
    // The first as it came, the second as one that was away, the third without the files of its replicas, the last
    // without any: it comes back as another node.
    let trials: [(&str, Spoil); 3] = [
        ("stopped meanwhile", |_, _| {}),
        ("its replicas' files deleted", |nodes, node| {
            // A failure shows in what follows.
            drop(std::fs::remove_dir_all(nodes.directory(node).join("groups")));
        }),
        ("its directory deleted", |nodes, node| nodes.wipe(node)),
    ];
    for (what, spoil) in trials {
        let victim = 2;
        let before = stage.load(&[0, 1]);
        if !before.wait_for_each(500, PATIENCE) {
            return Err("the load stands still".into());
        }
        let logs = stage.end(before);
        let usual = median(&logs);
        stage.check(0, &logs)?;

        stage.nodes.kill(victim);
        spoil(&mut stage.nodes, victim);
        let load = stage.load(&[0, 1]);
        let wanted = load.acknowledged() + rows;
        let begun = Instant::now();
        while load.acknowledged() < wanted {
            if !load.wait_for_each(1, PATIENCE) {
                return Err("the load stands still with a node away".into());
            }
        }
        println!("node {victim} {what}: {rows} rows written in {:.1?} without it", begun.elapsed());
        stage.nodes.restart(victim);
        let back = Instant::now();
        stage.nodes.wait_for(0, "every replica is level with its leader", level);
        let level = Instant::now();
        let logs = stage.end(load);
        stage.wait_until_level(0);
        let meanwhile = quantile(logs.iter().flat_map(|log| log.latencies(back, level)), 0.5);
        let ratio = meanwhile.as_secs_f64() / usual.as_secs_f64();
        println!(
            "  level after {:.1?}; a write took {meanwhile:.2?} meanwhile, {usual:.2?} before: {ratio:.2} times",
            level - back
        );
        let errors: Vec<&String> = logs.iter().flat_map(|log| &log.errors).collect();
        println!("  {} errors seen by clients {:?}", errors.len(), errors.first());
        stage.check(0, &logs)?;
    }
    Ok(())
}

/// What is done to a node that has ended.
type Spoil = fn(&mut Nodes, usize);

/// Whether every group has three replicas whose logs lack no more than what is on its way.
fn level(status: &serde_json::Value) -> bool {
    groups(status).all(|group| {
        let replicas = nodes::replicas(group);
        let level = |r: &serde_json::Value| {
            matches!(r["role"].as_str(), Some("leader" | "follower"))
                && r["lag"].as_u64().is_some_and(|lag| lag < 100)
        };
        replicas.len() == 3 && replicas.iter().all(level)
    })
}

fn median(logs: &[Log]) -> Duration {
    quantile(logs.iter().flat_map(|log| log.written.iter().map(|w| w.done - w.sent)), 0.5)
}

fn summary(what: &str, gaps: &[Duration]) {
    let (median, worst) = (quantile(gaps.iter().copied(), 0.5), quantile(gaps.iter().copied(), 1.0));
    println!("{what}: median {median:.2?}, worst {worst:.2?} of {}", gaps.len());
}
