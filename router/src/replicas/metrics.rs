//! What a router counts of its reads: at which level, who answered, and why it was that one.
//!
//! In come fragments that have been read; out go Prometheus' metric families.

use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use proto::services::Consistency;

/// Who has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The leader.
    Leader,
    /// Another replica.
    Follower,
}

/// Why it was that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was the one to ask.
    Asked,
    /// The one that was asked first was behind.
    Behind,
    /// Those that could have been asked had failed before.
    Avoided,
    /// The one that was asked first has failed.
    Failed,
}

/// The reads so far.
pub struct Reads {
    registry: Registry,
    strong: IntCounter,
    session: Level,
    bounded: Level,
    eventual: Level,
}

/// Those of one level.
struct Level {
    follower: IntCounter,
    asked: IntCounter,
    behind: IntCounter,
    avoided: IntCounter,
    failed: IntCounter,
}

impl Reads {
    /// Nothing has been read.
    pub(super) fn new() -> Self {
        let registry = Registry::new_custom(Some("shoal".to_owned()), None).expect("the prefix isn't empty");
        let help =
            "Fragments that this node's router has read, by level, who answered, and why it was that one.";
        let labels = ["level", "by", "why"];
        let reads = IntCounterVec::new(Opts::new("reads_total", help), &labels).expect("constants");
        registry.register(Box::new(reads.clone())).expect("it's the only one");
        let level = |level: &str| {
            let of = |by: &str, why: &str| reads.with_label_values(&[level, by, why]);
            Level {
                follower: of("follower", "asked"),
                asked: of("leader", "asked"),
                behind: of("leader", "behind"),
                avoided: of("leader", "avoided"),
                failed: of("leader", "failed"),
            }
        };
        Self {
            registry,
            strong: reads.with_label_values(&["strong", "leader", "asked"]),
            session: level("session"),
            bounded: level("bounded"),
            eventual: level("eventual"),
        }
    }

    /// A fragment is read so.
    pub fn count(&self, consistency: Consistency, by: By, why: Why) {
        self.counter(consistency, by, why).inc();
    }

    fn counter(&self, consistency: Consistency, by: By, why: Why) -> &IntCounter {
        let level = match consistency {
            Consistency::Strong => return &self.strong,
            Consistency::Session => &self.session,
            Consistency::Bounded(_) => &self.bounded,
            Consistency::Eventual => &self.eventual,
        };
        match (by, why) {
            (By::Follower, _) => &level.follower,
            (By::Leader, Why::Asked) => &level.asked,
            (By::Leader, Why::Behind) => &level.behind,
            (By::Leader, Why::Avoided) => &level.avoided,
            (By::Leader, Why::Failed) => &level.failed,
        }
    }

    /// How many were read so.
    #[cfg(test)]
    pub fn counted(&self, consistency: Consistency, by: By, why: Why) -> u64 {
        self.counter(consistency, by, why).get()
    }

    /// What was counted.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}
