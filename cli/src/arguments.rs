//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A sharded, replicated SQL database that Postgres clients can use.
#[derive(Debug, Parser)]
#[command(name = "shoal", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `shoal` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a whole cluster in one process, for development
    Dev(Dev),
    /// Shows nodes, keyspaces, and shards with their leaders and replicas
    Status(Status),
    /// Makes keyspaces
    #[command(subcommand)]
    Keyspace(Keyspace),
}

/// `shoal dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Where the data lives; it is made if it isn't there
    #[arg(long, value_name = "DIR", default_value = "./shoal-data")]
    pub data_dir: PathBuf,
    /// Where Postgres clients connect; port 0 takes one that is free
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433")]
    pub listen: SocketAddr,
    /// How many nodes the cluster has [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub nodes: Option<u32>,
    /// How many shards the keyspace `main` begins with [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,
    /// How many replicas each shard has [default: 3, or as many as there are nodes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replicas: Option<u32>,
    /// Listens on an address that others can reach, though Shoal has no authentication yet
    #[arg(long)]
    pub insecure: bool,
}

/// Where the admin's commands go.
#[derive(Debug, Args)]
pub struct Admin {
    /// The admin address of any node, as it prints it at its start
    #[arg(long, value_name = "HOST:PORT", env = "SHOAL_HOST")]
    pub host: String,
}

/// `shoal status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// `shoal keyspace ..`.
#[derive(Debug, Subcommand)]
pub enum Keyspace {
    /// Makes a keyspace
    Create {
        /// Its name
        name: String,
        /// How it places rows
        #[arg(long, value_enum, default_value_t = ShardingArgument::Hash)]
        sharding: ShardingArgument,
        /// How many shards it begins with
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
        shards: u32,
        /// How many replicas each shard has [default: as many as in keyspace main]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
        replicas: Option<u32>,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
}

/// How a keyspace places rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShardingArgument {
    /// By the hash of the shard key
    Hash,
    /// By the order of the shard key
    Range,
    /// Everything on one shard
    Single,
}
