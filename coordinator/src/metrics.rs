//! What the coordinator's leader counts, for whoever watches over the cluster.
//!
//! In come alarms as they are raised; out go Prometheus' metric families: how many there were of each kind since this
//! process started, and, from the leader alone, those that stand. It must never know who serves them.

use crate::repair::Trouble;
use crate::vitals::Ailment;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// What all names begin with.
const PREFIX: &str = "shoal";

/// What is counted.
pub(crate) struct Metrics {
    registry: Registry,
    alarms: IntCounterVec,
}

impl Metrics {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Self {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None).expect("the prefix isn't empty");
        let help = "Replicas that this node found to be unwell while it led the coordinator.";
        let alarms = IntCounterVec::new(Opts::new("alarms_total", help), &["kind"]).expect("constants");
        registry.register(Box::new(alarms.clone())).expect("it's the first");
        // One that was never raised is there, as 0: whoever waits for the first must see that it came.
        for kind in Ailment::KINDS {
            alarms.with_label_values(&[kind]);
        }
        Self { registry, alarms }
    }

    /// An alarm was raised.
    pub(crate) fn raised(&self, kind: &str) {
        self.alarms.with_label_values(&[kind]).inc();
    }

    /// What was counted, and the alarms that stand.
    pub(crate) fn gather(&self, standing: &[Trouble]) -> Vec<MetricFamily> {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None).expect("the prefix isn't empty");
        let opts = Opts::new("alarm", "1 for an alarm that stands. Told by the coordinator's leader.");
        let alarm = IntGaugeVec::new(opts, &["group", "member", "kind"]).expect("constants");
        registry.register(Box::new(alarm.clone())).expect("it's the first");
        for trouble in standing {
            let (group, member) = (trouble.group.to_string(), trouble.node.to_string());
            alarm.with_label_values(&[&group, &member, trouble.kind]).set(1);
        }
        let mut families = self.registry.gather();
        families.extend(registry.gather());
        families
    }
}
