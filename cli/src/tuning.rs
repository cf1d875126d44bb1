//! The times and bounds that an operator may set, the same for `shoal node` and `shoal dev`.
//!
//! In come options from the command line and the `[tuning]` table of a file; out go the settings of replicas,
//! coordinator and router. A value out of bounds is refused with its name before anything starts.

use crate::failure::Failure;
use crate::units::{Size, Span};
use clap::Args;
use proto::NodeId;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// A node is heard every two seconds: less than a few of them is no silence.
const LEAST_SILENCE: Duration = Duration::from_secs(10);
const MOST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

/// What may be tuned. What isn't given has its default.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "Tuning")]
pub struct Tuning {
    /// The unit of Raft's time; the same on all nodes [default: 60ms]
    #[arg(long, value_name = "TIME")]
    pub tick: Option<Span>,
    /// After so many ticks without its leader (up to twice as many) a replica asks for votes; the same on all nodes
    /// [default: 10]
    #[arg(long, value_name = "N")]
    pub election_ticks: Option<u32>,
    /// A leader is heard every so many ticks; the same on all nodes [default: 2]
    #[arg(long, value_name = "N")]
    pub heartbeat_ticks: Option<u32>,
    /// A database's WAL of this size is checkpointed [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    pub checkpoint_size: Option<Size>,
    /// The replicas of a node that is silent for so long are made anew on others; the same on all nodes [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub replace_after: Option<Span>,
    /// How many Postgres clients may be connected to this node at a time [default: 500]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<u32>,
}

/// Tuning with nothing left open and everything in its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    tick: Duration,
    election_ticks: u32,
    heartbeat_ticks: u32,
    checkpoint_bytes: u64,
    replace_after: Duration,
    max_connections: usize,
}

impl Tuning {
    /// These options, and where they say nothing, those.
    pub fn or(self, other: Tuning) -> Tuning {
        Tuning {
            tick: self.tick.or(other.tick),
            election_ticks: self.election_ticks.or(other.election_ticks),
            heartbeat_ticks: self.heartbeat_ticks.or(other.heartbeat_ticks),
            checkpoint_size: self.checkpoint_size.or(other.checkpoint_size),
            replace_after: self.replace_after.or(other.replace_after),
            max_connections: self.max_connections.or(other.max_connections),
        }
    }

    /// Fills in the defaults and checks the bounds.
    pub fn resolve(self) -> Result<Tuned, Failure> {
        let tick = self.tick.unwrap_or(Span(Duration::from_millis(60)));
        let election_ticks = self.election_ticks.unwrap_or(10);
        let heartbeat_ticks = self.heartbeat_ticks.unwrap_or(2);
        let checkpoint = self.checkpoint_size.unwrap_or(Size(8 << 20));
        let replace_after = self.replace_after.unwrap_or(Span(Duration::from_secs(300)));
        let max_connections = self.max_connections.unwrap_or(500);
        within("tick", tick, Span(Duration::from_millis(5)), Span(Duration::from_secs(1)))?;
        within("election-ticks", election_ticks, 4, 100)?;
        // A vote needs several messages within the timeout that it ends.
        within("heartbeat-ticks", heartbeat_ticks, 1, election_ticks / 2)?;
        within("checkpoint-size", checkpoint, Size(256 << 10), Size(1 << 30))?;
        within("replace-after", replace_after, Span(LEAST_SILENCE), Span(MOST_SILENCE))?;
        within("max-connections", max_connections, 1, 100_000)?;
        Ok(Tuned {
            tick: tick.0,
            election_ticks,
            heartbeat_ticks,
            checkpoint_bytes: checkpoint.0,
            replace_after: replace_after.0,
            max_connections: max_connections as usize,
        })
    }
}

fn within<T: PartialOrd + std::fmt::Display>(name: &str, value: T, least: T, most: T) -> Result<(), Failure> {
    if value < least || value > most {
        return Err(Failure::Arguments(format!("{name} is from {least} to {most}, not {value}")));
    }
    Ok(())
}

impl Tuned {
    /// The settings of a node's replicas.
    pub fn replica(&self, node: NodeId, directory: PathBuf) -> replica::Config {
        replica::Config {
            tick: self.tick,
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            checkpoint_bytes: self.checkpoint_bytes,
            ..replica::Config::new(node, directory)
        }
    }

    /// The settings of a node's part of the coordinator.
    pub fn coordinator(&self, config: coordinator::Config) -> coordinator::Config {
        coordinator::Config { replace_after: self.replace_after, ..config }
    }

    /// The settings of a router.
    pub fn router(&self) -> router::Config {
        router::Config { max_connections: self.max_connections, ..router::Config::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let tuned = |change: fn(&mut Tuning)| {
            let mut tuning = Tuning::default();
            change(&mut tuning);
            tuning.resolve()
        };
        tuned(|_| {}).unwrap();
        let text = |result: Result<Tuned, Failure>| result.unwrap_err().to_string();
        let tick = text(tuned(|t| t.tick = Some(Span(Duration::from_millis(1)))));
        assert_eq!(tick, "tick is from 5ms to 1s, not 1ms");
        let heartbeat = text(tuned(|t| t.heartbeat_ticks = Some(6)));
        assert_eq!(heartbeat, "heartbeat-ticks is from 1 to 5, not 6");
        assert!(text(tuned(|t| t.checkpoint_size = Some(Size(1)))).starts_with("checkpoint-size"));
        assert!(text(tuned(|t| t.max_connections = Some(0))).starts_with("max-connections"));
    }
}
