//! Who is alive, and which replicas are well.
//!
//! In come the nodes' reports with the time at which they came, out goes how long each node has been silent, which routers
//! are gone, and what is wrong with which replica since when. Times are this process's own: a new leader starts counting anew, and one
//! that was stopped for a while doesn't take its own absence for everybody's silence.

use crate::divergence::Checks;
use proto::services::ReplicaStatus;
use proto::{GroupId, LogIndex, NodeId, RouterIncarnation};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Who looks less often than this was away.
const AWAY: Duration = Duration::from_secs(5);

/// What nodes said, and when.
#[derive(Clone, Debug)]
pub(crate) struct Vitals {
    reports: BTreeMap<NodeId, Report>,
    checks: Checks,
    /// Since when silence counts.
    since: Instant,
    looked: Instant,
    /// Since when something is wrong with a replica, as far as [`Self::look`] has seen.
    ill: BTreeMap<(GroupId, NodeId), (Ailment, Instant)>,
}

#[derive(Clone, Debug)]
struct Report {
    heard: Instant,
    replicas: BTreeMap<GroupId, ReplicaStatus>,
    /// The routers that ran on the node before its process began.
    former: Vec<RouterIncarnation>,
}

/// What is wrong with a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// Its files are gone.
    Gone,
    /// Its tables aren't what the others' were at this index.
    Diverged(LogIndex),
    /// It has stopped for this cause.
    Stopped(String),
}

impl Ailment {
    /// What [`Self::kind`] gives.
    pub(crate) const KINDS: [&'static str; 3] = ["files_gone", "diverged", "stopped"];

    /// In one word.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Ailment::Gone => "files_gone",
            Ailment::Diverged(_) => "diverged",
            Ailment::Stopped(_) => "stopped",
        }
    }
}

impl std::fmt::Display for Ailment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ailment::Gone => f.write_str(ReplicaStatus::FILES_GONE),
            Ailment::Diverged(index) => write!(f, "its tables differ from the others' at index {index}"),
            Ailment::Stopped(cause) => write!(f, "it has stopped: {cause}"),
        }
    }
}

impl Vitals {
    /// Nobody has been heard of.
    pub(crate) fn new(now: Instant) -> Self {
        Vitals {
            reports: BTreeMap::new(),
            checks: Checks::default(),
            since: now,
            looked: now,
            ill: BTreeMap::new(),
        }
    }

    /// Takes a node's report.
    pub(crate) fn report(
        &mut self,
        node: NodeId,
        replicas: &[ReplicaStatus],
        former: Vec<RouterIncarnation>,
        now: Instant,
    ) {
        for status in replicas {
            self.checks.learn(status.group, node, status.check);
        }
        let replicas = replicas.iter().map(|status| (status.group, status.clone())).collect();
        self.reports.insert(node, Report { heard: now, replicas, former });
    }

    /// Silence counts from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.since, self.looked) = (now, now);
        self.ill.clear();
    }

    /// Notes what is wrong with which of these replicas. Returns what is new.
    pub(crate) fn look<'a>(
        &mut self,
        groups: impl IntoIterator<Item = (GroupId, &'a [NodeId], Option<NodeId>)>,
        now: Instant,
    ) -> Vec<(GroupId, NodeId, Ailment)> {
        if now.saturating_duration_since(self.looked) > AWAY {
            self.begin(now);
        }
        self.looked = now;
        let mut ill = BTreeMap::new();
        let mut news = Vec::new();
        for (group, members, leader) in groups {
            let diverged = self.checks.diverged(group, members, leader);
            for node in members {
                let Some(status) = self.status(group, *node) else { continue };
                let differs = diverged.iter().find(|(other, _)| other == node);
                let ailment = match (&status.stopped, differs) {
                    (Some(cause), _) if cause == ReplicaStatus::FILES_GONE => Ailment::Gone,
                    (_, Some((_, index))) => Ailment::Diverged(*index),
                    (Some(cause), None) => Ailment::Stopped(cause.clone()),
                    (None, None) => continue,
                };
                let key = (group, *node);
                let since = match self.ill.get(&key) {
                    Some((known, since)) => {
                        if *known != ailment {
                            news.push((group, *node, ailment.clone()));
                        }
                        *since
                    }
                    None => {
                        news.push((group, *node, ailment.clone()));
                        now
                    }
                };
                ill.insert(key, (ailment, since));
            }
        }
        self.ill = ill;
        news
    }

    /// The group's replicas aren't what they were: what is known of their tables counts no more.
    pub(crate) fn settle(&mut self, group: GroupId) {
        self.checks.settle(group);
        self.ill.retain(|(other, _), _| *other != group);
    }

    /// How long a node has been silent.
    pub(crate) fn silence(&self, node: NodeId, now: Instant) -> Duration {
        let heard = self.reports.get(&node).map_or(self.since, |report| report.heard.max(self.since));
        now.saturating_duration_since(heard)
    }

    /// How long ago a node was last heard of, if it was since silence counts.
    pub(crate) fn heard(&self, node: NodeId, now: Instant) -> Option<Duration> {
        let report = self.reports.get(&node).filter(|report| report.heard >= self.since)?;
        Some(now.saturating_duration_since(report.heard))
    }

    /// What a node last said of its replica of a group.
    pub(crate) fn status(&self, group: GroupId, node: NodeId) -> Option<&ReplicaStatus> {
        self.reports.get(&node)?.replicas.get(&group)
    }

    /// Everything that nodes last said.
    pub(crate) fn statuses(&self) -> Vec<ReplicaStatus> {
        self.reports.values().flat_map(|report| report.replicas.values()).cloned().collect()
    }

    /// How big groups' databases are, in bytes: as the biggest of their replicas says.
    pub(crate) fn sizes(&self) -> BTreeMap<GroupId, u64> {
        let mut sizes: BTreeMap<GroupId, u64> = BTreeMap::new();
        for status in self.reports.values().flat_map(|report| report.replicas.values()) {
            let size = sizes.entry(status.group).or_default();
            *size = status.bytes.max(*size);
        }
        sizes
    }

    /// What those say of their replicas that run and were heard of in the last `patience`.
    pub(crate) fn running(&self, patience: Duration, now: Instant) -> impl Iterator<Item = &ReplicaStatus> {
        let since = self.since;
        let fresh = move |report: &&Report| {
            report.heard >= since && now.saturating_duration_since(report.heard) < patience
        };
        let replicas = self.reports.values().filter(fresh).flat_map(|report| report.replicas.values());
        replicas.filter(|status| status.stopped.is_none())
    }

    /// The routers that are gone for certain: another process has their node.
    pub(crate) fn gone(&self) -> BTreeSet<RouterIncarnation> {
        self.reports.values().flat_map(|report| report.former.iter().copied()).collect()
    }

    /// What is wrong with a replica, and since when.
    pub(crate) fn ailment(&self, group: GroupId, node: NodeId) -> Option<(&Ailment, Instant)> {
        self.ill.get(&(group, node)).map(|(ailment, since)| (ailment, *since))
    }

    /// Whether a replica can do its part. Of one that wasn't heard of yet it's assumed, for as long as `patience`.
    pub(crate) fn is_well(&self, group: GroupId, node: NodeId, patience: Duration, now: Instant) -> bool {
        if self.silence(node, now) >= patience {
            return false;
        }
        match self.heard(node, now) {
            None => true,
            Some(_) => self.status(group, node).is_some_and(|status| status.stopped.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::services::TableHash;

    const GROUP: GroupId = GroupId(4);
    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn status(node: NodeId, stopped: Option<&str>) -> ReplicaStatus {
        ReplicaStatus { stopped: stopped.map(str::to_owned), ..ReplicaStatus::new(node, GROUP) }
    }

    fn look(vitals: &mut Vitals, now: Instant) -> Vec<(GroupId, NodeId, Ailment)> {
        vitals.look([(GROUP, NODES.as_slice(), Some(NODES[0]))], now)
    }

    #[test]
    fn silence_counts_since_this_leader_leads() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut vitals = Vitals::new(start);
        vitals.report(NODES[0], &[], Vec::new(), start + second);
        assert_eq!(vitals.silence(NODES[0], start + 4 * second), 3 * second);
        assert_eq!(vitals.silence(NODES[1], start + 4 * second), 4 * second);
        vitals.begin(start + 10 * second);
        assert_eq!(vitals.silence(NODES[0], start + 12 * second), 2 * second);
        assert_eq!(vitals.heard(NODES[0], start + 12 * second), None);
        vitals.report(NODES[0], &[], Vec::new(), start + 12 * second);
        assert_eq!(vitals.heard(NODES[0], start + 13 * second), Some(second));
    }

    #[test]
    fn a_router_is_gone_once_its_node_has_another() {
        let start = Instant::now();
        let mut vitals = Vitals::new(start);
        let [one, two, three] = [1, 2, 3].map(RouterIncarnation);
        vitals.report(NODES[0], &[], vec![one], start);
        vitals.report(NODES[1], &[], vec![three], start);
        vitals.report(NODES[0], &[], vec![one, two], start);
        vitals.begin(start + Duration::from_secs(1));
        assert_eq!(vitals.gone(), BTreeSet::from([one, two, three]));
    }

    #[test]
    fn who_was_away_starts_counting_anew() {
        let start = Instant::now();
        let mut vitals = Vitals::new(start);
        for node in NODES {
            vitals.report(node, &[status(node, None)], Vec::new(), start);
        }
        look(&mut vitals, start + Duration::from_secs(1));
        assert_eq!(vitals.silence(NODES[0], start + Duration::from_secs(1)), Duration::from_secs(1));
        // The process was stopped: nobody could be heard.
        let back = start + Duration::from_secs(600);
        look(&mut vitals, back);
        assert_eq!(vitals.silence(NODES[0], back), Duration::ZERO);
    }

    #[test]
    fn an_illness_is_news_once_and_counts_from_when_it_was_seen() {
        let start = Instant::now();
        let mut vitals = Vitals::new(start);
        let hash = |hash| Some(TableHash { index: LogIndex(9), hash });
        for (node, stopped, check) in [
            (NODES[0], None, hash(1)),
            (NODES[1], Some(ReplicaStatus::FILES_GONE), hash(1)),
            (NODES[2], None, hash(2)),
        ] {
            vitals.report(node, &[ReplicaStatus { check, ..status(node, stopped) }], Vec::new(), start);
        }
        let found = look(&mut vitals, start);
        let diverged = Ailment::Diverged(LogIndex(9));
        assert_eq!(found, [(GROUP, NODES[1], Ailment::Gone), (GROUP, NODES[2], diverged.clone())]);
        let later = start + Duration::from_secs(1);
        assert_eq!(look(&mut vitals, later), []);
        assert_eq!(vitals.ailment(GROUP, NODES[2]), Some((&diverged, start)));
        vitals.settle(GROUP);
        vitals.report(NODES[1], &[status(NODES[1], None)], Vec::new(), later);
        assert_eq!(look(&mut vitals, later), []);
        assert_eq!(vitals.ailment(GROUP, NODES[1]), None);
    }

    #[test]
    fn what_was_said_long_ago_or_by_a_replica_that_has_stopped_is_nothing_of_now() {
        let start = Instant::now();
        let patience = Duration::from_secs(10);
        let mut vitals = Vitals::new(start);
        vitals.report(NODES[0], &[status(NODES[0], None)], Vec::new(), start);
        vitals.report(NODES[1], &[status(NODES[1], Some("disk full"))], Vec::new(), start + patience);
        vitals.report(NODES[2], &[status(NODES[2], None)], Vec::new(), start + patience);
        let running = |vitals: &Vitals, at| vitals.running(patience, at).map(|s| s.node).collect::<Vec<_>>();
        assert_eq!(running(&vitals, start), [NODES[0], NODES[2]]);
        assert_eq!(running(&vitals, start + patience), [NODES[2]]);
        vitals.begin(start + patience + Duration::from_secs(1));
        assert_eq!(running(&vitals, start + patience), []);
    }

    #[test]
    fn only_a_replica_that_was_seen_running_is_well_for_long() {
        let start = Instant::now();
        let patience = Duration::from_secs(10);
        let mut vitals = Vitals::new(start);
        assert!(vitals.is_well(GROUP, NODES[0], patience, start));
        assert!(!vitals.is_well(GROUP, NODES[0], patience, start + patience));
        vitals.report(NODES[0], &[status(NODES[0], None)], Vec::new(), start);
        vitals.report(NODES[1], &[status(NODES[1], Some("disk full"))], Vec::new(), start);
        vitals.report(NODES[2], &[], Vec::new(), start);
        let well = NODES.map(|node| vitals.is_well(GROUP, node, patience, start));
        assert_eq!(well, [true, false, false]);
    }
}
