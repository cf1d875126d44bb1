//! What the coordinator's leader looks after by itself.
//!
//! In come the topology and what nodes report; out go notes that groups are formed, repairs, and splits where they are wanted. Nothing is kept here
//! that another leader would miss: it looks again.

use crate::auto::Auto;
use crate::repair::{Scene, Trouble};
use crate::replicas::{self, Known};
use crate::service::Core;
use crate::{nodes, repair, reshard};
use bytes::Bytes;
use proto::machine;
use proto::services::{Consistency, JobStatus, ReplicaStatus};
use proto::topology::Topology;
use proto::{GroupId, NodeId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the replicas of a new group that has a leader have got until whoever isn't there counts as lost.
const FORMING: Duration = Duration::from_secs(30);
/// How long a group is left alone after a repair was begun.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// What the leader has seen and done since it leads.
#[derive(Default)]
struct Seen {
    /// Since when groups have a leader and aren't formed.
    forming: BTreeMap<GroupId, Instant>,
    /// When a repair was last begun.
    repaired: BTreeMap<GroupId, Instant>,
}

/// Looks after the cluster until it is dropped.
pub(crate) async fn care(core: Arc<Core>) {
    core.state.begin();
    let (mut seen, mut left_over) = (Seen::default(), reshard::LeftOver::default());
    let mut auto = Auto::new(machine::now());
    let mut ticks = tokio::time::interval(core.config.look_every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = core.look(&mut seen).await {
            tracing::debug!(%error, "the coordinator's leader could not look after the cluster");
        }
        if let Err(error) = left_over.end(&core).await {
            tracing::debug!(%error, "holds that nobody needs are left");
        }
        if let Err(error) = auto.look(&core).await {
            tracing::debug!(%error, "nothing could be split by itself");
        }
    }
}

impl Core {
    async fn look(&self, seen: &mut Seen) -> Result<(), WireError> {
        let now = machine::now();
        let state = self.state.subscribe().borrow().clone();
        let topology = state.topology;
        let formed = self.formed(&topology, seen, now);
        if !formed.is_empty() {
            self.write(move |store| nodes::formed(store, &formed).map(|()| Bytes::new())).await?;
            self.state.refresh(&self.replica).await?;
        }
        let led =
            repair::groups(&topology).map(|(group, members)| (group, members, state.leaders.get(group)));
        for (group, node, ailment) in self.state.look(led, now) {
            self.metrics.raised(ailment.kind());
            tracing::error!(%group, %node, what = self.name_of(&topology, group), "a replica isn't well: {ailment}");
        }
        seen.repaired.retain(|_, at| now.saturating_duration_since(*at) < LEFT_ALONE);
        let known = self.known(now);
        let scene = Scene { topology: &topology, vitals: &known.vitals, config: &known.config, now };
        if scene.repairs(&seen.repaired.keys().copied().collect(), 1).is_empty() {
            return Ok(());
        }
        let deadline = now + self.config.write_timeout;
        let jobs = {
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            crate::store::Store(snapshot.connection()).replica_jobs()?
        };
        let running = jobs.iter().filter(|job| job.automatic).count();
        let busy: BTreeSet<_> =
            jobs.iter().map(|job| job.group()).chain(seen.repaired.keys().copied()).collect();
        let repairs = scene.repairs(&busy, self.config.repairs_at_once.saturating_sub(running));
        for repair in repairs {
            let known = known.clone();
            seen.repaired.insert(repair.group, now);
            self.write(move |store| {
                let repair::Repair { group, action, cause } = &repair;
                replicas::repair(store, *group, *action, cause, &known).map(|()| Bytes::new())
            })
            .await?;
            self.state.refresh(&self.replica).await?;
            self.begun.notify_one();
        }
        Ok(())
    }

    /// The groups that have come to life: whoever has no replica of theirs now has lost it.
    fn formed(&self, topology: &Topology, seen: &mut Seen, now: Instant) -> Vec<GroupId> {
        let leaders = Arc::clone(&self.state.subscribe().borrow().leaders);
        let mut formed = Vec::new();
        for shard in topology.shards.values().filter(|shard| !shard.formed) {
            if leaders.get(shard.group).is_none() {
                continue;
            }
            let since = *seen.forming.entry(shard.group).or_insert(now);
            let late = now.saturating_duration_since(since) >= FORMING;
            if late || shard.replicas.iter().all(|node| self.state.has(shard.group, *node)) {
                seen.forming.remove(&shard.group);
                formed.push(shard.group);
            }
        }
        formed
    }

    /// What is known of the nodes now.
    pub(crate) fn known(&self, now: Instant) -> Known {
        Known { vitals: self.state.vitals(), config: self.config.clone(), now }
    }

    fn name_of(&self, topology: &Topology, group: GroupId) -> String {
        match topology.shards.values().find(|shard| shard.group == group) {
            Some(shard) => topology.shard_name(shard.id),
            None => "the coordinator".to_owned(),
        }
    }

    /// What somebody should look at.
    pub(crate) fn troubles(&self, topology: &Topology, now: Instant) -> Vec<Trouble> {
        let known = self.known(now);
        Scene { topology, vitals: &known.vitals, config: &known.config, now }.troubles()
    }

    /// Every change that is under way.
    pub(crate) async fn jobs_now(&self) -> Result<Vec<JobStatus>, WireError> {
        let deadline = machine::now() + self.config.write_timeout;
        let (schema, replicas, courses, topology) = {
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            let store = crate::store::Store(snapshot.connection());
            (store.jobs()?, store.replica_jobs()?, store.courses()?, store.topology()?)
        };
        let mut jobs = Vec::new();
        for job in schema {
            let what = match job.change()? {
                Some(_) => "change the schema",
                None => "make a keyspace",
            };
            let how = if job.has_failed() { ", is being undone" } else { "" };
            let progress = format!("stage {} of {}{how}", job.stage + 1, job.stages.len());
            jobs.push(JobStatus { id: job.id, what: what.to_owned(), progress });
        }
        let vitals = self.state.vitals();
        for job in replicas {
            let group = job.group();
            let mut progress = match job.has_failed() {
                true => "has failed, is being undone".to_owned(),
                false => format!("step {} of {}", job.step + 1, job.length()),
            };
            let reports = vitals.statuses();
            for status in reports.iter().filter(|status| status.group == group) {
                progress.push_str(&catching_up(status, &reports));
            }
            if let Some(obstacle) = self.obstacles.lock().get(&job.id) {
                progress.push_str("; held up: ");
                progress.push_str(obstacle);
            }
            jobs.push(JobStatus { id: job.id, what: job.what.clone(), progress });
        }
        jobs.extend(courses.iter().map(|course| self.course_status(course, &topology)));
        jobs.sort_unstable_by_key(|job| job.id);
        Ok(jobs)
    }

    /// How long ago each node was heard of.
    pub(crate) fn heard(&self, topology: &Topology, now: Instant) -> Vec<(NodeId, Duration)> {
        let vitals = self.state.vitals();
        topology.nodes.keys().filter_map(|node| Some((*node, vitals.heard(*node, now)?))).collect()
    }
}

/// What a replica still has to get.
fn catching_up(status: &ReplicaStatus, reports: &[ReplicaStatus]) -> String {
    if let Some(image) = status.image {
        let percent = (100 * u128::from(image.done)).checked_div(u128::from(image.total)).unwrap_or(0);
        return format!(", node {} has {percent} % of the image", status.node);
    }
    let leader = reports
        .iter()
        .find(|other| other.group == status.group && other.role == proto::services::ReplicaRole::Leader);
    let lag = leader.map_or(0, |leader| leader.applied.0.saturating_sub(status.applied.0));
    let learns = status.role == proto::services::ReplicaRole::Learner;
    if learns { format!(", node {} is {lag} entries behind", status.node) } else { String::new() }
}
