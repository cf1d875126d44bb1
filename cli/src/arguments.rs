//! The command line.

mod reshard;

pub use reshard::{Move, One, Options as ReshardOptions, Reshard, Show, Wait};

use crate::tuning::Tuning;
use crate::units::Size;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use proto::TransactionId;
use proto::gtid::GtidSet;
use serde::Deserialize;
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
    Dev(Box<Dev>),
    /// Runs one node of a cluster; or has one give away what it holds
    Node(Box<Node>),
    /// Makes a cluster of the nodes that run, once
    Init(Init),
    /// Shows nodes, keyspaces, and shards with their leaders and replicas
    Status(Status),
    /// Shows shards with their sizes and how busy they are
    Shards(Status),
    /// Shows nodes with what they hold
    Nodes(Status),
    /// Shows tables with where their rows lie, how many these are, and how big
    #[command(after_help = "Examples:\n  shoal tables\n  shoal tables --json")]
    Tables(Status),
    /// Says what could be done for shards and nodes, the most urgent first, with the command
    #[command(after_help = "Examples:\n  shoal advise\n  shoal advise --json")]
    Advise(Status),
    /// Changes who holds a group's replicas, or compares them
    #[command(subcommand)]
    Replica(Replica),
    /// Makes keyspaces, and changes how many replicas they have and what they split by themselves
    #[command(subcommand)]
    Keyspace(Keyspace),
    /// Prints what is committed to a table from now on, as lines of JSON
    #[command(after_help = "Examples:\n  \
        shoal stream --table account\n  \
        shoal stream --table account --from main/-80.1:4711,main/80-.1:99")]
    Stream(Stream),
    /// Splits and merges shards while clients go on
    #[command(subcommand)]
    Reshard(Reshard),
    /// Shows transactions, and ends those that nobody decides
    #[command(subcommand)]
    Txn(Txn),
    /// Prints what makes a shell complete these commands
    #[command(after_help = "Example, in ~/.bashrc:\n  source <(shoal completions bash)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `shoal dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Where the data lives; it is made if it isn't there
    #[arg(long, value_name = "DIR", default_value = "./shoal-data")]
    pub data_dir: PathBuf,
    /// Where Postgres clients connect; port 0 takes one that is free
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433")]
    pub listen: String,
    /// Where Prometheus fetches /metrics; port 0 takes one that is free [default: nowhere]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
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
    /// Times and bounds.
    #[command(flatten)]
    pub tuning: Tuning,
}

/// `shoal node`, and `shoal node ..`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Node {
    /// What is to become of a node.
    #[command(subcommand)]
    pub admin: Option<NodeAdmin>,
    /// How one runs.
    #[command(flatten)]
    pub options: NodeOptions,
}

/// `shoal node ..`.
#[derive(Debug, Subcommand)]
pub enum NodeAdmin {
    /// Has a node give away all that it holds, and get nothing new
    Drain {
        /// The node
        #[arg(value_name = "N")]
        node: u64,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
    /// Has a node hold replicas again that is drained, or being drained
    Undrain {
        /// The node
        #[arg(value_name = "N")]
        node: u64,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
    /// Takes a node out of the cluster that holds nothing and is stopped
    Remove {
        /// The node
        #[arg(value_name = "N")]
        node: u64,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
}

/// How a node runs, and the TOML file that says the same.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NodeOptions {
    /// A TOML file with any of these options, without the dashes in front; the command line wins
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where the node's data lives; it is made if it isn't there
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where other nodes and the admin reach this one; port 0 takes one that is free
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// What other nodes are told of that, where it is something else (behind 0.0.0.0, or a proxy)
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where Postgres clients connect, on a node with the role router
    #[arg(long, value_name = "HOST:PORT")]
    pub pg_listen: Option<String>,
    /// Where Prometheus fetches /metrics; port 0 takes one that is free [default: nowhere]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Addresses of other nodes, any of them; this node's own may be among them
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',')]
    pub join: Option<Vec<String>>,
    /// What this node does [default: all]
    #[arg(long, value_enum, value_name = "ROLE,..", value_delimiter = ',')]
    pub roles: Option<Vec<RoleArgument>>,
    /// Where this node is, by any name that its neighbours have too: reads that any replica may answer prefer the near ones
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// Listens on addresses that others can reach, though Shoal has no authentication yet
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Times and bounds.
    #[command(flatten)]
    pub tuning: Tuning,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleArgument {
    /// Answers Postgres clients
    Router,
    /// Holds replicas of shards
    Shardnode,
    /// May hold a replica of the coordinator
    Coordinator,
}

/// `shoal init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
    /// How many shards the keyspace `main` begins with [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,
    /// How many replicas each shard has [default: 3, or as many as there are nodes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replicas: Option<u32>,
    /// How many nodes hold the coordinator's replicas: 1, 3 or 5 [default: as many of these as there are nodes]
    #[arg(long, value_name = "1|3|5", value_parser = odd)]
    pub coordinators: Option<u32>,
}

fn odd(text: &str) -> Result<u32, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("it is 1, 3 or 5".to_owned()),
    }
}

/// Where the admin's commands go.
#[derive(Debug, Args)]
pub struct Admin {
    /// The admin address of any node, as it prints it at its start
    #[arg(long, value_name = "HOST:PORT", env = "SHOAL_HOST")]
    pub host: String,
}

/// `shoal status`, `shoal shards`, `shoal nodes`, `shoal tables` and `shoal advise`.
#[derive(Debug, Args)]
pub struct Status {
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// `shoal stream`.
#[derive(Debug, Args)]
pub struct Stream {
    /// The table
    #[arg(long)]
    pub table: String,
    /// From what comes after this token on, for example the gtid of the last line that was read, of each shard the last one,
    /// joined by commas [default: from now on]
    #[arg(long, value_name = "GTID")]
    pub from: Option<GtidSet>,
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
}

/// Whose replicas.
#[derive(Debug, Args)]
pub struct Target {
    /// The shard, by its name (main/-80), or coordinator
    #[arg(long, value_name = "SHARD", allow_hyphen_values = true)]
    pub shard: String,
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
}

/// `shoal replica ..`.
#[derive(Debug, Subcommand)]
pub enum Replica {
    /// Gives a node a replica
    Add {
        /// Of what.
        #[command(flatten)]
        target: Target,
        /// The node that gets it
        #[arg(long, value_name = "N")]
        node: u64,
    },
    /// Takes a node's replica away
    Remove {
        /// Of what.
        #[command(flatten)]
        target: Target,
        /// The node that loses it
        #[arg(long, value_name = "N")]
        node: u64,
    },
    /// Gives one node what another has, which then loses it
    Move {
        /// Of what.
        #[command(flatten)]
        target: Target,
        /// The node that loses it
        #[arg(long, value_name = "N")]
        from: u64,
        /// The node that gets it
        #[arg(long, value_name = "N")]
        to: u64,
    },
    /// Makes a node's replica anew from the others, whatever it has on disk
    Rebuild {
        /// Of what.
        #[command(flatten)]
        target: Target,
        /// The node whose it is
        #[arg(long, value_name = "N")]
        node: u64,
    },
    /// Has another of the nodes lead
    TransferLeader {
        /// Of what.
        #[command(flatten)]
        target: Target,
        /// The node that is to lead
        #[arg(long, value_name = "N")]
        to: u64,
    },
    /// Has all replicas hash their tables at the same place of the log, and compares
    Check {
        /// Of what.
        #[command(flatten)]
        target: Target,
    },
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
    /// Changes how many replicas each of a keyspace's shards has, and whether it splits by itself what is too big
    #[command(
        after_help = "Examples:\n  \
        shoal keyspace alter main --replicas 5\n  \
        shoal keyspace alter main --auto on --auto-size 20GiB --auto-shards 16\n  \
        shoal keyspace alter main --auto off",
        group = ArgGroup::new("what").required(true).multiple(true)
    )]
    Alter {
        /// Its name
        name: String,
        /// How many replicas
        #[arg(long, group = "what", value_parser = clap::value_parser!(u32).range(1..=16))]
        replicas: Option<u32>,
        /// Whether shards that are too big are split without being asked for, one at a time, and never within an hour of the last
        #[arg(long, group = "what", value_enum, value_name = "on|off")]
        auto: Option<OnOff>,
        /// What is too big [default: what was set before, or 10GiB]
        #[arg(long, requires = "auto", value_name = "SIZE")]
        auto_size: Option<Size>,
        /// Up to how many shards it splits [default: what was set before, or 64]
        #[arg(long, requires = "auto", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
        auto_shards: Option<u32>,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
}

/// `shoal txn ..`.
#[derive(Debug, Subcommand)]
pub enum Txn {
    /// Lists the transactions that have branches on shards, or are decided and not finished
    List {
        /// Lists the latest of those that are finished, too
        #[arg(long)]
        all: bool,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
    /// Shows what became of a transaction, and its branches
    Show {
        /// The transaction, as errors and the list name it
        #[arg(value_name = "ID")]
        transaction: TransactionId,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
    /// Ends a transaction that is prepared and undecided
    Resolve {
        /// The transaction, as errors and the list name it
        #[arg(value_name = "ID")]
        transaction: TransactionId,
        /// By aborting it. There is no other way: only its router can know that all its shards have voted for it
        #[arg(long, required = true)]
        abort: bool,
        /// Where to ask.
        #[command(flatten)]
        admin: Admin,
    },
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// It is
    On,
    /// It isn't
    Off,
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
