//! Real nodes under load, and what befalls them: `cargo run --release -p tests --bin chaos -- kill|transfer|rebuild|sums|copy|payments|session|reshard`.
//!
//! Each trial starts a cluster of `shoal node` processes, writes to a table without a key over all routers, and checks
//! at the end that every acknowledged row is there once. It prints what a client measures: how long it went without
//! service, how much slower it was served. The figures are for people; the exit code says whether the rows were right.

mod copy;
mod kill;
mod payments;
mod rebuild;
mod reshard;
mod session;
mod sums;
mod transfer;
mod victims;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;
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
    /// Makes payments, repeated with their keys, over connections that are cut around COMMIT
    Payments(payments::Payments),
    /// Moves money over all shards, while readers add it up
    Sums(sums::Sums),
    /// Copies millions of rows in one statement
    Copy(copy::Copy),
    /// Writes over one router and reads over another, with the write's token
    Session(session::Session),
    /// Splits, moves and merges shards while clients read and write
    Reshard(reshard::Reshard),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = match &arguments.trial {
        Trial::Kill { rounds, seed } => kill::run(&arguments, *rounds, *seed),
        Trial::Transfer { rounds } => transfer::run(&arguments, *rounds),
        Trial::Rebuild { rows } => rebuild::run(&arguments, *rows),
        Trial::Payments(trial) => payments::run(&arguments, trial),
        Trial::Sums(trial) => sums::run(&arguments, trial),
        Trial::Copy(trial) => copy::run(&arguments, trial),
        Trial::Session(trial) => session::run(&arguments, trial),
        Trial::Reshard(trial) => reshard::run(&arguments, trial),
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

    /// The shards that a node leads, as another one knows, and the coordinator.
    fn led(&self, node: usize, asked: usize) -> Option<Vec<String>> {
        let (status, id) = (self.nodes.status(asked)?, self.nodes.id(node)?);
        let led = groups(&status).filter(|group| group["leader"].as_u64() == Some(id));
        Some(led.map(|group| group["shard"].as_str().unwrap_or("coordinator").to_owned()).collect())
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

fn summary(what: &str, gaps: &[Duration]) {
    let (median, worst) = (quantile(gaps.iter().copied(), 0.5), quantile(gaps.iter().copied(), 1.0));
    println!("{what}: median {median:.2?}, worst {worst:.2?} of {}", gaps.len());
}
