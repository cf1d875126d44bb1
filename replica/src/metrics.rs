//! What a node's replicas count and measure, for whoever watches over them.
//!
//! The loops count what happens as it happens: a few additions for each batch, none for each row. What statuses say is
//! read from them when somebody asks ([`Host::metrics`]). Out go Prometheus' metric families. It must never know who
//! serves them, nor be asked by anything that decides something.

use crate::clock::Clock;
use crate::host::Host;
use crate::replica::Replica;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use proto::services::{ReplicaRole, ReplicaStatus, Times};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What all names begin with.
const PREFIX: &str = "shoal";

/// What a node's loops count.
pub(crate) struct Metrics {
    clock: Clock,
    registry: Registry,
    /// Entries that this node's leaders have proposed.
    pub proposals: IntCounter,
    /// Steps of open transactions that this node's leaders have run, and how often what such a transaction had done
    /// before had to be applied for it first.
    pub rehearsals: IntCounter,
    pub overlays_applied: IntCounter,
    /// How many writes a batch had, and how many bytes its entry.
    pub batch_writes: Histogram,
    pub batch_bytes: Histogram,
    /// How many batches took how long, from their beginning until they were committed.
    batch_times: [AtomicU64; Times::PLACES],
    /// How long a synced write of the log took.
    pub log_sync: Histogram,
    /// How long SQLite took to apply or to commit what Raft has committed, in one transaction.
    pub apply: Histogram,
    /// Elections that a replica here began, by its group.
    pub elections: IntCounterVec,
    /// Replicas that stopped, by group and cause.
    pub stops: IntCounterVec,
    pub images_made: IntCounter,
    pub images_offered: IntCounter,
    pub images_received: IntCounter,
    pub image_bytes_sent: IntCounter,
    pub image_bytes_received: IntCounter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(clock: Clock) -> Self {
        let registry = registry();
        let counter =
            |name: &str, help: &str| register(&registry, IntCounter::with_opts(Opts::new(name, help)));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, (start, factor, count)| {
            let buckets = exponential_buckets(start, factor, count).expect("the constants make sense");
            register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
        };
        // From 50 microseconds to 13 seconds.
        let seconds = (50e-6, 2.0, 19);
        Self {
            proposals: counter("proposals_total", "Entries that leaders on this node proposed."),
            rehearsals: counter(
                "rehearsals_total",
                "Steps of open transactions that leaders on this node ran.",
            ),
            overlays_applied: counter(
                "overlays_applied_total",
                "Times that what an open transaction had done before was applied for its next step.",
            ),
            batch_writes: histogram(
                "batch_writes",
                "Writes in one batch, which is one log entry.",
                (1.0, 2.0, 11),
            ),
            batch_bytes: histogram("batch_bytes", "Bytes of one batch's log entry.", (64.0, 4.0, 11)),
            batch_times: [const { AtomicU64::new(0) }; Times::PLACES],
            log_sync: histogram("log_sync_seconds", "Time of one synced write of the Raft log.", seconds),
            apply: histogram(
                "apply_seconds",
                "Time of one SQLite transaction that applies or commits what Raft has committed.",
                seconds,
            ),
            elections: counters(
                "elections_total",
                "Elections that a replica on this node began.",
                &["group"],
            ),
            stops: counters("replica_stops_total", "Replicas that stopped.", &["group", "cause"]),
            images_made: counter("images_made_total", "Database images made for members that need one."),
            images_offered: counter("images_offered_total", "Offers of an image to a member."),
            images_received: counter("images_received_total", "Database images received whole."),
            image_bytes_sent: counter("image_sent_bytes_total", "Bytes of images sent."),
            image_bytes_received: counter("image_received_bytes_total", "Bytes of images received."),
            registry,
            clock,
        }
    }

    /// Does something, and notes how long it took.
    pub fn timed<T>(&self, histogram: &Histogram, act: impl FnOnce() -> T) -> T {
        let begun = self.clock.now();
        let done = act();
        histogram.observe(self.clock.now().saturating_sub(begun).as_secs_f64());
        done
    }

    /// A batch is committed that was begun then.
    pub fn batch_took(&self, begun: Duration) {
        let place = Times::place(self.clock.now().saturating_sub(begun));
        self.batch_times[place].fetch_add(1, Ordering::Relaxed);
    }
}

fn registry() -> Registry {
    Registry::new_custom(Some(PREFIX.to_owned()), None).expect("the prefix isn't empty")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constants that make sense");
    registry.register(Box::new(metric.clone())).expect("no two metrics have one name");
    metric
}

impl Host {
    /// What the node's replicas have done, and how they are.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        let mut families = self.counted().registry.gather();
        families.extend(sample(&self.replicas()));
        families
    }

    /// How long batches of writes took that replicas here have committed as leaders.
    pub fn batch_times(&self) -> Times {
        Times::of(self.counted().batch_times.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// How replicas are now.
fn sample(replicas: &[Replica]) -> Vec<MetricFamily> {
    let registry = registry();
    let gauges = |name: &str, help: &str, labels: &[&str]| {
        register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
    };
    let applied = gauges("replica_applied_index", "The last log index that the database has.", &["group"]);
    let last = gauges("replica_last_index", "The last index of the log.", &["group"]);
    let term = gauges("replica_term", "The replica's term.", &["group"]);
    let leader = gauges("replica_is_leader", "1 if the replica leads its group.", &["group"]);
    let asleep = gauges("replica_is_asleep", "1 if the group sleeps, having nothing to do.", &["group"]);
    let wal = gauges("replica_wal_bytes", "The size of the database's write-ahead log.", &["group"]);
    let lag = gauges(
        "replica_lag_entries",
        "Entries of the leader's log that a member is not known to have. Told by the leader.",
        &["group", "member"],
    );
    let stopped = gauges("replica_stopped", "1 for a replica that has stopped.", &["group", "cause"]);
    for replica in replicas {
        let shared = replica.shared();
        let status = replica.status();
        let group = status.group.to_string();
        let leads = status.role == ReplicaRole::Leader;
        let set = |gauge: &IntGaugeVec, value: u64| {
            gauge.with_label_values(&[&group]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&applied, status.applied.0);
        set(&last, status.last.0);
        set(&term, status.term.0);
        set(&leader, u64::from(leads));
        set(&asleep, u64::from(shared.is_asleep()));
        set(&wal, status.wal_bytes);
        for (member, has) in status.lag.iter().filter(|_| leads) {
            let lacks = status.last.0.saturating_sub(has.0);
            lag.with_label_values(&[&group, &member.to_string()])
                .set(i64::try_from(lacks).unwrap_or(i64::MAX));
        }
        if let Some(cause) = cause(&status, shared.stop_cause()) {
            stopped.with_label_values(&[&group, cause]).set(1);
        }
    }
    registry.gather()
}

fn cause(status: &ReplicaStatus, known: Option<&'static str>) -> Option<&'static str> {
    let stopped = status.stopped.as_ref()?;
    // One that runs, and lost what it had before it ran.
    let gone = || if stopped == ReplicaStatus::FILES_GONE { "files_gone" } else { "other" };
    Some(known.unwrap_or_else(gone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ReplicaError;
    use proto::{GroupId, NodeId};
    use std::io::ErrorKind;
    use std::path::Path;
    use std::sync::Arc;

    #[test]
    fn what_takes_time_is_measured_by_the_nodes_clock() {
        let nanos = Arc::new(AtomicU64::new(0));
        let shown = nanos.clone();
        let metrics =
            Metrics::new(Clock::simulated(move || Duration::from_nanos(shown.load(Ordering::Relaxed))));
        let done = metrics.timed(&metrics.log_sync, || nanos.fetch_add(1_500_000_000, Ordering::Relaxed));
        assert_eq!(done, 0);
        assert_eq!((metrics.log_sync.get_sample_count(), metrics.log_sync.get_sample_sum()), (1, 1.5));
        assert_eq!(metrics.apply.get_sample_count(), 0);
    }

    #[test]
    fn a_cause_is_one_of_few_words() {
        let io = |kind: ErrorKind| ReplicaError::io(Path::new("f"))(kind.into());
        assert_eq!(io(ErrorKind::StorageFull).cause(), "disk_full");
        assert_eq!(io(ErrorKind::QuotaExceeded).cause(), "disk_full");
        assert_eq!(io(ErrorKind::NotFound).cause(), "io");
        let code = |code| {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            ReplicaError::sqlite(Path::new("f"))(source).cause()
        };
        assert_eq!(code(rusqlite::ffi::SQLITE_FULL), "disk_full");
        assert_eq!(code(rusqlite::ffi::SQLITE_IOERR_WRITE), "io");
        assert_eq!(code(rusqlite::ffi::SQLITE_CORRUPT), "damaged");
        let full = raft_engine::Error::Io(ErrorKind::StorageFull.into());
        let full = ReplicaError::Log { path: "log".into(), source: full };
        assert_eq!(full.cause(), "disk_full");
        let wrapped = raft::Error::Store(raft::StorageError::Other(Box::new(full)));
        assert_eq!(ReplicaError::Raft(wrapped).cause(), "disk_full");
        assert_eq!(ReplicaError::FilesGone.cause(), "files_gone");
    }

    #[test]
    fn that_a_disk_is_full_is_known_by_what_is_said() {
        let os = |code| ReplicaError::io(Path::new("f"))(std::io::Error::from_raw_os_error(code));
        let sqlite = |code| {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            ReplicaError::sqlite(Path::new("f"))(source)
        };
        let log = raft_engine::Error::Io(std::io::Error::from_raw_os_error(libc::ENOSPC));
        for error in [
            os(libc::ENOSPC),
            os(libc::EDQUOT),
            sqlite(rusqlite::ffi::SQLITE_FULL),
            ReplicaError::Log { path: "log".into(), source: log },
            os(libc::EIO),
            sqlite(rusqlite::ffi::SQLITE_IOERR_WRITE),
            ReplicaError::FilesGone,
        ] {
            let stopped = Some(error.to_string());
            let status = ReplicaStatus { stopped, ..ReplicaStatus::new(NodeId(1), GroupId(2)) };
            assert_eq!(status.has_full_disk(), error.cause() == "disk_full", "{error}");
        }
    }
}
