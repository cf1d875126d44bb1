//! What a router counts of its transactions.
//!
//! In come commits and rollbacks as they end; out go Prometheus' metric families. It must never know who serves them.

use super::alive::Open;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use proto::{SqlState, WireError};
use std::sync::Arc;
use std::time::Duration;

/// How a transaction is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By its only shard.
    Shard,
    /// By the votes of several.
    Votes,
    /// By the coordinator's record.
    Record,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Shard => "shard",
            Way::Votes => "votes",
            Way::Record => "record",
        }
    }
}

/// What is counted.
pub(super) struct Metrics {
    registry: Registry,
    commits: IntCounterVec,
    seconds: HistogramVec,
    aborts: IntCounterVec,
    rollbacks: IntCounter,
    unknown: IntCounter,
    open: IntGauge,
}

impl Metrics {
    /// Nothing has happened yet.
    pub(super) fn new() -> Self {
        let registry = Registry::new_custom(Some("shoal".to_owned()), None).expect("the prefix isn't empty");
        let help = "Transactions that this node's router has committed, by what commits them.";
        let commits = IntCounterVec::new(Opts::new("commits_total", help), &["by"]).expect("constants");
        let help = "How long commits took, by what commits them.";
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
        let opts = HistogramOpts::new("commit_seconds", help).buckets(buckets);
        let seconds = HistogramVec::new(opts, &["by"]).expect("constants");
        let help = "Transactions that came to their commit and were aborted, by SQLSTATE.";
        let aborts = IntCounterVec::new(Opts::new("aborts_total", help), &["sqlstate"]).expect("constants");
        let help = "Transactions that were rolled back before they came to a commit.";
        let rollbacks = IntCounter::new("rollbacks_total", help).expect("constants");
        let help = "Commits whose outcome could not be learned (08007).";
        let unknown = IntCounter::new("commits_unknown_total", help).expect("constants");
        let help =
            "Transactions that have written or locked something, or have an idempotency key, and are open.";
        let open = IntGauge::new("open_transactions", help).expect("constants");
        let all: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(commits.clone()),
            Box::new(seconds.clone()),
            Box::new(aborts.clone()),
            Box::new(rollbacks.clone()),
            Box::new(unknown.clone()),
            Box::new(open.clone()),
        ];
        for collector in all {
            registry.register(collector).expect("each has a name of its own");
        }
        for way in [Way::Shard, Way::Votes, Way::Record] {
            commits.with_label_values(&[way.name()]);
            seconds.with_label_values(&[way.name()]);
        }
        Self { registry, commits, seconds, aborts, rollbacks, unknown, open }
    }

    /// A commit has ended, or failed so.
    pub(super) fn ended(&self, way: Way, took: Duration, failed: Option<&WireError>) {
        match failed {
            None => {
                self.commits.with_label_values(&[way.name()]).inc();
                self.seconds.with_label_values(&[way.name()]).observe(took.as_secs_f64());
            }
            Some(error) if error.sqlstate == SqlState::TRANSACTION_RESOLUTION_UNKNOWN => self.unknown.inc(),
            Some(error) => self.aborts.with_label_values(&[error.sqlstate.as_str()]).inc(),
        }
    }

    /// A transaction was rolled back.
    pub(super) fn rolled_back(&self) {
        self.rollbacks.inc();
    }

    /// What was counted.
    pub(super) fn gather(&self, open: &Arc<Open>) -> Vec<MetricFamily> {
        self.open.set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        self.registry.gather()
    }
}
