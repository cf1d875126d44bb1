//! What a node's shards tell of their transactions, for whoever watches over the cluster.
//!
//! Out go Prometheus' metric families, read when they are asked for: of the shards that this node leads, and of reads that
//! any replica may serve. It must never know who serves them.

use crate::node::ShardNode;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use proto::services::FragmentResponse;
use proto::{Retry, WireError};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a shard has at one time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Open transactions, those included that are prepared.
    pub branches: usize,
    /// Those that are prepared.
    pub prepared: usize,
    /// For how long the oldest of them has been.
    pub oldest_seconds: f64,
    /// Locks.
    pub locks: usize,
    /// Statements that wait for one.
    pub waiting: usize,
    /// Deadlocks that were ended here since this process started.
    pub deadlocks: u64,
}

/// How reads went that weren't strong, since this process started.
#[derive(Debug, Default)]
pub(crate) struct ReplicaReads {
    at_once: AtomicU64,
    waited: AtomicU64,
    behind: AtomicU64,
}

impl ReplicaReads {
    /// Counts one. An answer that is another error says nothing of the replica.
    pub fn count(&self, answer: &Result<FragmentResponse, WireError>) {
        let outcome = match answer {
            Ok(answer) if answer.waited.is_zero() => &self.at_once,
            Ok(_) => &self.waited,
            Err(error) if matches!(error.retry, Retry::Behind(_)) => &self.behind,
            Err(_) => return,
        };
        outcome.fetch_add(1, Ordering::Relaxed);
    }

    fn outcomes(&self) -> [(&'static str, u64); 3] {
        let Self { at_once, waited, behind } = self;
        [("at_once", at_once), ("waited", waited), ("behind", behind)]
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }
}

impl ShardNode {
    /// Its shards' transactions, in Prometheus' form.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let registry = Registry::new_custom(Some("shoal".to_owned()), None).expect("the prefix isn't empty");
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["group"]).expect("constants");
            registry.register(Box::new(gauge.clone())).expect("each has a name of its own");
            gauge
        };
        let branches = gauge("branches", "Transactions that have something on a shard that this node leads.");
        let prepared = gauge("prepared_branches", "Those of them that have voted, and wait for their end.");
        let locks = gauge("locks", "Locks that transactions have on a shard.");
        let waiting = gauge("lock_waits", "Statements that wait for a lock.");
        let help = "For how long the oldest of those that have voted has waited for its end.";
        let oldest = Opts::new("prepared_seconds", help);
        let oldest = GaugeVec::new(oldest, &["group"]).expect("constants");
        registry.register(Box::new(oldest.clone())).expect("it has another name");
        let help = "Statements that were ended for a deadlock.";
        let deadlocks =
            IntCounterVec::new(Opts::new("deadlocks_total", help), &["group"]).expect("constants");
        registry.register(Box::new(deadlocks.clone())).expect("it has another name");
        let help = "Reads by freshness less than strong: served at once, or after waiting, or handed over.";
        let reads = Opts::new("replica_reads_total", help);
        let reads = IntCounterVec::new(reads, &["outcome"]).expect("constants");
        registry.register(Box::new(reads.clone())).expect("it has another name");
        for (outcome, count) in self.replica_reads().outcomes() {
            reads.with_label_values(&[outcome]).inc_by(count);
        }
        for (group, figures) in self.figures() {
            let group = [group.to_string()];
            let label = [group[0].as_str()];
            let set = |gauge: &IntGaugeVec, value: usize| {
                gauge.with_label_values(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&branches, figures.branches);
            set(&prepared, figures.prepared);
            set(&locks, figures.locks);
            set(&waiting, figures.waiting);
            oldest.with_label_values(&label).set(figures.oldest_seconds);
            deadlocks.with_label_values(&label).inc_by(figures.deadlocks);
        }
        registry.gather()
    }
}
