//! What the coordinator's leader counts, for whoever watches over the cluster.
//!
//! In come alarms as they are raised, and switches of reshards; out go Prometheus' metric families: how many there were of each
//! kind since this process started, and, from the leader alone, alarms that stand and the phases of reshards. It must never know who serves them.

use crate::repair::Trouble;
use crate::vitals::Ailment;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use proto::ReshardId;
use proto::services::ReshardPhase;
use std::time::Duration;

/// What all names begin with.
const PREFIX: &str = "shoal";

/// What is counted.
pub(crate) struct Metrics {
    registry: Registry,
    alarms: IntCounterVec,
    switches: IntCounterVec,
    switch_seconds: HistogramVec,
}

/// What became of attempts at a switch.
const OUTCOMES: [&str; 2] = ["decided", "given_up"];

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
        let help = "Attempts at a switch that ended while this node led the coordinator.";
        let switches =
            IntCounterVec::new(Opts::new("switches_total", help), &["outcome"]).expect("constants");
        registry.register(Box::new(switches.clone())).expect("its name is its own");
        for outcome in OUTCOMES {
            switches.with_label_values(&[outcome]);
        }
        let help = "How long the steps of switches took that were decided.";
        let buckets = vec![0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
        let opts = HistogramOpts::new("switch_seconds", help).buckets(buckets);
        let switch_seconds = HistogramVec::new(opts, &["step"]).expect("constants");
        registry.register(Box::new(switch_seconds.clone())).expect("its name is its own");
        Self { registry, alarms, switches, switch_seconds }
    }

    /// An alarm was raised.
    pub(crate) fn raised(&self, kind: &str) {
        self.alarms.with_label_values(&[kind]).inc();
    }

    /// An attempt was decided: so long it took to seal all shards, then to adopt, then to decide.
    pub(crate) fn decided(&self, steps: [Duration; 3]) {
        self.switches.with_label_values(&[OUTCOMES[0]]).inc();
        for (step, took) in ["drain", "adopt", "decide"].into_iter().zip(steps) {
            self.switch_seconds.with_label_values(&[step]).observe(took.as_secs_f64());
        }
    }

    /// An attempt was given up.
    pub(crate) fn given_up(&self) {
        self.switches.with_label_values(&[OUTCOMES[1]]).inc();
    }

    /// What was counted, the alarms that stand, and the phases of reshards.
    pub(crate) fn gather(
        &self,
        standing: &[Trouble],
        reshards: &[(ReshardId, ReshardPhase)],
    ) -> Vec<MetricFamily> {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None).expect("the prefix isn't empty");
        let opts = Opts::new("alarm", "1 for an alarm that stands. Told by the coordinator's leader.");
        let alarm = IntGaugeVec::new(opts, &["group", "member", "kind"]).expect("constants");
        registry.register(Box::new(alarm.clone())).expect("it's the first");
        for trouble in standing {
            let (group, member) = (trouble.group.to_string(), trouble.node.to_string());
            alarm.with_label_values(&[&group, &member, trouble.kind]).set(1);
        }
        let opts =
            Opts::new("reshard_phase", "1 for the phase of a reshard. Told by the coordinator's leader.");
        let phase = IntGaugeVec::new(opts, &["reshard", "phase"]).expect("constants");
        registry.register(Box::new(phase.clone())).expect("its name is its own");
        for (id, at) in reshards {
            phase.with_label_values(&[&id.to_string(), at.name()]).set(1);
        }
        let mut families = self.registry.gather();
        families.extend(registry.gather());
        families
    }
}
