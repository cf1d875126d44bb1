//! The times and bounds that an operator may set, the same for `shoal node` and `shoal dev`.
//!
//! In come options from the command line and the `[tuning]` table of a file; out go the settings of replicas,
//! coordinator and router. A value out of bounds is refused with its name before anything starts.

use crate::failure::Failure;
use crate::units::{Size, Span, Spans};
use clap::Args;
use proto::NodeId;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// A node is heard every two seconds: less than a few of them is no silence.
const LEAST_SILENCE: Duration = Duration::from_secs(10);
const MOST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

/// Who lags for longer has much to apply before it can lead.
const MOST_LAG: Duration = Duration::from_secs(60);

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
    /// Reads that keep a long WAL from being checkpointed are ended after so long, with SQLSTATE 72000 [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub end_reads_after: Option<Span>,
    /// So much of each group's log is kept for members that lack it; those that lack more get an image of the database
    /// [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub log_keep: Option<Size>,
    /// The replicas of each group are compared so often, if anything was written since [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub check_every: Option<Span>,
    /// What stopped because of a full disk or an I/O error is tried again so often [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub revive_every: Option<Span>,
    /// The replicas of a node that is silent for so long are made anew on others; the same on all nodes [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub replace_after: Option<Span>,
    /// What a transaction may change on one shard; more is refused with SQLSTATE 54000 [default: 16GiB]
    #[arg(long, value_name = "SIZE")]
    pub max_transaction: Option<Size>,
    /// It's remembered for so long that a transaction with an idempotency key was committed; the same on all nodes
    /// [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub remember_keys: Option<Span>,
    /// So many idempotency keys are remembered at most, then new ones are refused; the same on all nodes [default: 10000000]
    #[arg(long, value_name = "N")]
    pub max_keys: Option<u64>,
    /// For drills: replicas that don't lead apply what is committed so much later, by a time between these that is drawn anew
    /// every tenth of a second, as in 0ms..100ms [default: none]
    #[arg(long, value_name = "TIME..TIME")]
    pub apply_lag: Option<Spans>,
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
    end_reads_after: Duration,
    log_keep_bytes: u64,
    check_every: Duration,
    revive_every: Duration,
    replace_after: Duration,
    max_transaction_bytes: u64,
    remember_keys: Duration,
    max_keys: u64,
    apply_lag: Option<(Duration, Duration)>,
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
            end_reads_after: self.end_reads_after.or(other.end_reads_after),
            log_keep: self.log_keep.or(other.log_keep),
            check_every: self.check_every.or(other.check_every),
            revive_every: self.revive_every.or(other.revive_every),
            replace_after: self.replace_after.or(other.replace_after),
            max_transaction: self.max_transaction.or(other.max_transaction),
            remember_keys: self.remember_keys.or(other.remember_keys),
            max_keys: self.max_keys.or(other.max_keys),
            apply_lag: self.apply_lag.or(other.apply_lag),
            max_connections: self.max_connections.or(other.max_connections),
        }
    }

    /// Fills in the defaults and checks the bounds.
    pub fn resolve(self) -> Result<Tuned, Failure> {
        let tick = self.tick.unwrap_or(Span(Duration::from_millis(60)));
        let election_ticks = self.election_ticks.unwrap_or(10);
        let heartbeat_ticks = self.heartbeat_ticks.unwrap_or(2);
        let checkpoint = self.checkpoint_size.unwrap_or(Size(8 << 20));
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        let end_reads_after = self.end_reads_after.unwrap_or(seconds(10));
        let log_keep = self.log_keep.unwrap_or(Size(64 << 20));
        let check_every = self.check_every.unwrap_or(seconds(600));
        let revive_every = self.revive_every.unwrap_or(seconds(5));
        let replace_after = self.replace_after.unwrap_or(seconds(300));
        let max_transaction = self.max_transaction.unwrap_or(Size(16 << 30));
        let remember_keys = self.remember_keys.unwrap_or(seconds(86_400));
        let max_keys = self.max_keys.unwrap_or(10_000_000);
        let max_connections = self.max_connections.unwrap_or(500);
        within("tick", tick, Span(Duration::from_millis(5)), Span(Duration::from_secs(1)))?;
        within("election-ticks", election_ticks, 4, 100)?;
        // A vote needs several messages within the timeout that it ends.
        within("heartbeat-ticks", heartbeat_ticks, 1, election_ticks / 2)?;
        within("checkpoint-size", checkpoint, Size(256 << 10), Size(1 << 30))?;
        within("end-reads-after", end_reads_after, seconds(1), seconds(86_400))?;
        within("log-keep", log_keep, Size(1 << 20), Size(64 << 30))?;
        within("check-every", check_every, seconds(1), seconds(30 * 86_400))?;
        within("revive-every", revive_every, seconds(1), seconds(3600))?;
        within("replace-after", replace_after, Span(LEAST_SILENCE), Span(MOST_SILENCE))?;
        within("max-transaction", max_transaction, Size(1 << 20), Size(1 << 40))?;
        within("remember-keys", remember_keys, seconds(60), seconds(365 * 86_400))?;
        within("max-keys", max_keys, 1, 1_000_000_000)?;
        within("max-connections", max_connections, 1, 100_000)?;
        if let Some(Spans(_, most)) = self.apply_lag {
            within("apply-lag", most, Span(Duration::ZERO), Span(MOST_LAG))?;
        }
        Ok(Tuned {
            tick: tick.0,
            election_ticks,
            heartbeat_ticks,
            checkpoint_bytes: checkpoint.0,
            end_reads_after: end_reads_after.0,
            log_keep_bytes: log_keep.0,
            check_every: check_every.0,
            revive_every: revive_every.0,
            replace_after: replace_after.0,
            max_transaction_bytes: max_transaction.0,
            remember_keys: remember_keys.0,
            max_keys,
            apply_lag: self.apply_lag.map(|Spans(least, most)| (least.0, most.0)),
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
            // What holds back and ends readers grows along, or no checkpoint would come before it.
            hold_bytes: 2 * self.checkpoint_bytes,
            end_reads_bytes: 6 * self.checkpoint_bytes,
            end_reads_after: self.end_reads_after,
            log_keep_bytes: self.log_keep_bytes,
            check_every: self.check_every,
            revive_every: self.revive_every,
            max_staged_bytes: self.max_transaction_bytes,
            apply_lag: self.apply_lag,
            ..replica::Config::new(node, directory)
        }
    }

    /// The settings of a node's part of the coordinator.
    pub fn coordinator(&self, config: coordinator::Config) -> coordinator::Config {
        let (replace_after, remember_keys, max_keys) =
            (self.replace_after, self.remember_keys, self.max_keys);
        coordinator::Config { replace_after, remember_keys, max_keys, ..config }
    }

    /// The settings of a router in this zone.
    pub fn router(&self, zone: String) -> router::Config {
        router::Config { max_connections: self.max_connections, zone, ..router::Config::default() }
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
        assert_eq!(
            text(tuned(|t| t.apply_lag = Some(Spans(Span(Duration::ZERO), Span(Duration::from_secs(61)))))),
            "apply-lag is from 0ms to 1m, not 61s"
        );
        assert!(text(tuned(|t| t.max_connections = Some(0))).starts_with("max-connections"));
    }
}
