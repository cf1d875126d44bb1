//! The gate: new transaction blocks wait while shards are being replaced, so that those that are open can end.
//!
//! In come topologies; who is about to begin to write in a block waits here until the attempt that a topology names has come
//! to its end, or is old: from then on nobody waits for that attempt again. Whoever has written or locked something must never be
//! kept here, for others wait for its locks. Nothing here knows what a switch is.

use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, Registry};
use proto::topology::Topology;
use proto::{Attempt, ReshardId, machine};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Keeps transactions waiting.
pub struct Gate {
    /// The attempts that there are, and when they were heard of.
    attempts: watch::Sender<BTreeMap<(ReshardId, Attempt), Instant>>,
    seconds: Histogram,
    registry: Registry,
    /// Topologies are taken in one after the other.
    hearing: Mutex<()>,
}

impl Gate {
    /// One that is open.
    pub fn new() -> Self {
        let registry = Registry::new_custom(Some("shoal".to_owned()), None).expect("the prefix isn't empty");
        let help = "How long transaction blocks waited because shards were being replaced.";
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let opts = HistogramOpts::new("gated_seconds", help).buckets(buckets);
        let seconds = Histogram::with_opts(opts).expect("constants");
        registry.register(Box::new(seconds.clone())).expect("it's the first");
        Self { attempts: watch::Sender::default(), seconds, registry, hearing: Mutex::default() }
    }

    /// Takes in the newest topology, which `newest` tells.
    pub fn hear<T: AsRef<Topology>>(&self, newest: impl FnOnce() -> T) {
        let _turn = self.hearing.lock();
        let newest = newest();
        let gates = newest.as_ref().reshards.iter();
        let named: Vec<_> = gates.filter_map(|reshard| Some((reshard.id, reshard.gate?))).collect();
        self.attempts.send_if_modified(|attempts| {
            let before = attempts.len();
            attempts.retain(|attempt, _| named.contains(attempt));
            let gone = before - attempts.len();
            for attempt in named {
                attempts.entry(attempt).or_insert_with(machine::now);
            }
            gone > 0 || attempts.len() > before
        });
    }

    /// Waits as long as there is an attempt that was heard of less than `bound` ago.
    pub async fn pass(&self, bound: Duration) {
        if self.attempts.borrow().is_empty() {
            return;
        }
        let mut attempts = self.attempts.subscribe();
        let mut timer = None;
        loop {
            let last = attempts.borrow_and_update().values().max().copied();
            let now = machine::now();
            let Some(until) = last.map(|heard| heard + bound).filter(|until| *until > now) else { return };
            timer.get_or_insert_with(|| Timer { seconds: &self.seconds, began: now });
            tokio::select! {
                biased;
                changed = attempts.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.attempts.receiver_count()
    }

    /// What was counted.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// Notes how long somebody waited, who may have given up.
struct Timer<'a> {
    seconds: &'a Histogram,
    began: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.seconds.observe(machine::now().saturating_duration_since(self.began).as_secs_f64());
    }
}
