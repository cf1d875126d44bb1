//! How busy each group is, by what its replicas have counted.
//!
//! In come the nodes' reports with the time at which they came, out go rates. Pure. It remembers ten minutes, and nothing
//! of them is kept anywhere: a new leader has heard the same reports.

use proto::services::{GroupLoad, ReplicaStatus};
use proto::{GroupId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// For how long what was counted is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How often it is noted.
const EVERY: Duration = Duration::from_secs(20);
/// What wasn't heard for so long says nothing of now.
const SILENT: Duration = Duration::from_secs(30);

/// What replicas have counted.
#[derive(Debug, Default)]
pub(crate) struct Loads(BTreeMap<(GroupId, NodeId), Counted>);

#[derive(Debug)]
struct Counted {
    last: Sample,
    /// The oldest first, [`EVERY`] apart.
    before: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    writes: u64,
    reads: u64,
}

impl Loads {
    /// Takes a node's report.
    pub(crate) fn report(&mut self, node: NodeId, replicas: &[ReplicaStatus], now: Instant) {
        for status in replicas {
            let sample = Sample { at: now, writes: status.writes, reads: status.reads };
            let counted = self.0.entry((status.group, node));
            counted.and_modify(|counted| counted.note(sample)).or_insert_with(|| Counted::new(sample));
        }
        // What it says no more of, it hasn't any more.
        let says = |group: GroupId| replicas.iter().any(|status| status.group == group);
        self.0.retain(|(group, of), _| *of != node || says(*group));
    }

    /// How busy groups have been of late, for so long at most. Without those of which that isn't known.
    pub(crate) fn all(&self, window: Duration, now: Instant) -> Vec<GroupLoad> {
        let mut loads: Vec<GroupLoad> = Vec::new();
        for ((group, _), counted) in &self.0 {
            let Some((writes_per_second, reads_per_second)) = counted.rates(window, now) else { continue };
            match loads.last_mut() {
                Some(load) if load.group == *group => {
                    load.writes_per_second += writes_per_second;
                    load.reads_per_second += reads_per_second;
                }
                _ => loads.push(GroupLoad { group: *group, writes_per_second, reads_per_second }),
            }
        }
        loads
    }
}

impl Counted {
    fn new(sample: Sample) -> Self {
        Counted { last: sample, before: [sample].into() }
    }

    fn note(&mut self, sample: Sample) {
        // A process that was started again counts anew.
        if sample.writes < self.last.writes || sample.reads < self.last.reads {
            *self = Self::new(sample);
            return;
        }
        self.last = sample;
        while self.before.front().is_some_and(|first| sample.at.duration_since(first.at) > MEMORY) {
            self.before.pop_front();
        }
        if self.before.back().is_none_or(|last| sample.at.duration_since(last.at) >= EVERY) {
            self.before.push_back(sample);
        }
    }

    /// Writes and reads in a second.
    fn rates(&self, window: Duration, now: Instant) -> Option<(f64, f64)> {
        if now.saturating_duration_since(self.last.at) > SILENT {
            return None;
        }
        let ago = |sample: &Sample| self.last.at.duration_since(sample.at);
        let first = self.before.iter().find(|sample| ago(sample) <= window)?;
        let seconds = ago(first).as_secs_f64();
        let each = |last: u64, first: u64| (last - first) as f64 / seconds;
        (seconds >= 1.0).then(|| (each(self.last.writes, first.writes), each(self.last.reads, first.reads)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(7);
    const MINUTE: Duration = Duration::from_secs(60);

    fn status(node: u64, writes: u64, reads: u64) -> ReplicaStatus {
        ReplicaStatus { writes, reads, ..ReplicaStatus::new(NodeId(node), GROUP) }
    }

    fn rates(loads: &Loads, window: Duration, now: Instant) -> Option<(f64, f64)> {
        match loads.all(window, now)[..] {
            [] => None,
            [GroupLoad { group: GROUP, writes_per_second, reads_per_second }] => {
                Some((writes_per_second, reads_per_second))
            }
            ref others => panic!("{others:?}"),
        }
    }

    #[test]
    fn rates_are_of_all_replicas_and_of_late() {
        let zero = Instant::now();
        let at = |second| zero + Duration::from_secs(second);
        let mut loads = Loads::default();
        for second in (0..=1200).step_by(2) {
            // It was busy in the first ten minutes.
            let writes = second.min(600) * 100;
            loads.report(NodeId(1), &[status(1, writes, second * 5)], at(second));
            loads.report(NodeId(2), &[status(2, 0, second * 3)], at(second));
        }
        let now = at(1201);
        assert_eq!(rates(&loads, MINUTE, now), Some((0.0, 8.0)));
        loads.report(NodeId(1), &[status(1, 60_000 + 6_000, 6_000 + 300)], at(1260));
        assert_eq!(rates(&loads, MINUTE, at(1260)).unwrap().0, 100.0);
        let writes = rates(&loads, 10 * MINUTE, at(1260)).unwrap().0;
        assert!((9.0..11.0).contains(&writes), "{writes}");
        let remembered = loads.0[&(GROUP, NodeId(1))].before.len();
        assert!((20..=31).contains(&remembered), "what is older is forgotten: {remembered}");
    }

    #[test]
    fn who_is_silent_or_has_begun_anew_is_not_counted() {
        let zero = Instant::now();
        let at = |second| zero + Duration::from_secs(second);
        let mut loads = Loads::default();
        loads.report(NodeId(1), &[status(1, 1_000, 0)], at(0));
        assert_eq!(rates(&loads, MINUTE, at(0)), None, "one report tells nothing");
        loads.report(NodeId(1), &[status(1, 2_000, 0)], at(10));
        assert_eq!(rates(&loads, MINUTE, at(10)).unwrap().0, 100.0);
        assert_eq!(rates(&loads, MINUTE, at(41)), None, "it is silent");
        loads.report(NodeId(1), &[status(1, 5, 0)], at(50));
        assert_eq!(rates(&loads, MINUTE, at(50)), None, "it was started again");
        loads.report(NodeId(1), &[], at(60));
        assert!(loads.0.is_empty(), "it has no replica of it any more");
    }
}
