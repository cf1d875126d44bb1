//! `shoal reshard ..`, as it is typed.

use super::Admin;
use crate::units::{Size, Span};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

/// `shoal reshard ..`.
#[derive(Debug, Subcommand)]
pub enum Reshard {
    /// Splits a shard while clients go on
    #[command(
        after_help = "Examples:\n  \
        shoal reshard split main/-80 --into 2             into halves; asks before it switches\n  \
        shoal reshard split main/-80 --into 4 --yes       switches as soon as it can\n  \
        shoal reshard split main/-80 --at 20 --dry-run    shows what would be done\n  \
        shoal reshard split event/- --at 1000             a range keyspace, at a key\n  \
        shoal reshard split event/- --at \"(7, 'm')\"       whose key has two columns\n  \
        shoal reshard split event/- --median              where half of the rows are before",
        group = ArgGroup::new("where").required(true)
    )]
    Split {
        /// The shard, by its name (main/-80)
        shard: String,
        /// Into so many parts of the same width; for a keyspace that places rows by hash
        #[arg(long, value_name = "N", group = "where", value_parser = clap::value_parser!(u32).range(2..=16))]
        into: Option<u32>,
        /// At this key, the first of a new shard, as SQL writes it: 1000, 'm', (7, 'm'). Of a keyspace that places rows by
        /// hash, at this keyspace id, in hex as shards' names have it
        #[arg(long, value_name = "KEY", group = "where", allow_hyphen_values = true)]
        at: Vec<String>,
        /// Where about half of the rows of its biggest table are before
        #[arg(long, group = "where")]
        median: bool,
        /// How.
        #[command(flatten)]
        options: Options,
    },
    /// Makes one shard of neighbours while clients go on
    #[command(after_help = "Example:\n  shoal reshard merge main/-40 main/40-80")]
    Merge {
        /// The shards, by their names
        #[arg(required = true, num_args = 2..=16)]
        shards: Vec<String>,
        /// How.
        #[command(flatten)]
        options: Options,
    },
    /// Has other nodes hold a shard's replicas
    #[command(after_help = "Examples:\n  \
        shoal reshard move main/-80 --to 4,5,6        on these nodes, and no others\n  \
        shoal reshard move main/-80 --from 2 --to 4   one replica; the others stay where they are")]
    Move(Move),
    /// Shows how far reshards are: one, or those of late
    Status {
        /// Which
        id: Option<u64>,
        /// How.
        #[command(flatten)]
        show: Show,
    },
    /// Has the new shards serve, and waits until they do
    Switch(One),
    /// Has the old shards serve again, with all that was written since, and waits until they do
    Reverse(One),
    /// Drops the old shards, after which there is no way back
    Complete(One),
    /// Ends a reshard whose new shards don't serve, and leaves nothing of it
    Cancel(One),
    /// Has a reshard rest: it copies and compares no more, and doesn't go on by itself
    Pause(One),
    /// Has a reshard go on that rests
    Resume(One),
    /// Compares the rows of old and new once more
    Verify(One),
}

/// Where a shard goes.
#[derive(Debug, Args)]
pub struct Move {
    /// The shard, by its name (main/-80)
    pub shard: String,
    /// The nodes that are to hold it, as many as it has replicas; or the one that gets what --from has
    #[arg(long, required = true, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Vec<u64>,
    /// The node that loses its replica
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub from: Option<u64>,
    /// Shows what would be done, and begins nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Whether to wait until it is done
    #[arg(long, value_enum, value_name = "yes|no", default_value = "yes")]
    pub wait: Wait,
    /// How.
    #[command(flatten)]
    pub show: Show,
}

/// Which reshard.
#[derive(Debug, Args)]
pub struct One {
    /// Its number
    pub id: u64,
    /// How.
    #[command(flatten)]
    pub show: Show,
}

/// Where to ask, and how to tell.
#[derive(Debug, Args)]
pub struct Show {
    /// Prints an object of JSON a line
    #[arg(long)]
    pub json: bool,
    /// Where to ask.
    #[command(flatten)]
    pub admin: Admin,
}

/// How a shard is split, or several are merged.
#[derive(Debug, Args)]
pub struct Options {
    /// Switches as soon as it can, without asking
    #[arg(long)]
    pub yes: bool,
    /// Shows what would be done, and begins nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Copies so many bytes in a second at most [default: as many as don't slow writers down]
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Size>,
    /// How long the switch waits for open transactions
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub drain: Span,
    /// How long the old shards are kept after the switch; `always` for as long as nobody says otherwise
    #[arg(long, value_name = "TIME|always", default_value = "1h", value_parser = keep)]
    pub keep: Keep,
    /// Doesn't compare the rows of old and new before the switch
    #[arg(long)]
    pub no_verify: bool,
    /// The node that makes the new shards [default: the one with the least to do]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub builder: Option<u64>,
    /// The nodes that hold the new shards [default: those that hold the old, or have the fewest]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    pub on: Vec<u64>,
    /// Whether to wait until it is done, or until somebody must decide
    #[arg(long, value_enum, value_name = "yes|no", default_value = "yes")]
    pub wait: Wait,
    /// How.
    #[command(flatten)]
    pub show: Show,
}

/// Whether a command waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Until it is done, or somebody must decide
    Yes,
    /// Until it has begun
    No,
}

/// How long shards are kept that don't serve any more; `None` for as long as nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(pub Option<Span>);

fn keep(text: &str) -> Result<Keep, String> {
    if text == "always" {
        return Ok(Keep(None));
    }
    // Nothing needs no unit.
    let text = if text == "0" { "0s" } else { text };
    text.parse().map(|span| Keep(Some(span)))
}
