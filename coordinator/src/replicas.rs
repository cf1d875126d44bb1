//! Taking a change of a group's replicas in: can it be done, and by which steps.
//!
//! In come a wish, the coordinator's tables as its write sees them, and what is known of the nodes. Out comes a job
//! with all its steps. Everything that can be refused is refused here, before anybody is asked. Once the job has
//! reached its end, the topology names the new replicas: a node is named when it can serve, and until it can't.

use crate::admit::{self, Admission};
use crate::config::Config;
use crate::repair::{Scene, may_hold};
use crate::replica_job::{Course, ReplicaJob};
use crate::reshard;
use crate::store::{Counter, Store};
use crate::vitals::Vitals;
use proto::services::{ReplicaAction, ReplicaChange, ReplicaTarget};
use proto::topology::Topology;
use proto::{GroupId, NodeId, RequestId, Retry, RouterIncarnation, SqlState, WireError};
use std::time::Instant;

/// More would only be slower.
const MOST_COORDINATORS: usize = 5;

type Result<T> = std::result::Result<T, WireError>;

/// What is known of the nodes when a wish comes.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) vitals: Vitals,
    pub(crate) config: Config,
    pub(crate) now: Instant,
}

/// Takes a change in that somebody asked for.
pub(crate) fn change(store: Store<'_>, change: &ReplicaChange, known: &Known) -> Result<Admission> {
    if let Some(known) = admit::known(store, change.request)? {
        return Ok(known);
    }
    let topology = store.topology()?;
    let wish = Wish::find(&topology, &change.target, known)?;
    let course = wish.course(change.action)?;
    if let Some(job) = store.replica_jobs()?.iter().find(|job| job.group() == wish.group) {
        let message = format!("the replicas of {} are being changed already", wish.name);
        return Err(WireError::new(SqlState::OBJECT_IN_USE, message)
            .with_detail(format!("Job {} is under way: {}.", job.id, job.what))
            .with_hint("Wait for its end: shoal status shows how far it is."));
    }
    if wish.is_left_over(&course) || reshard::has_replicas_wait(store, wish.group, false)? {
        return Ok(Admission::Wait);
    }
    let id = store.take(Counter::Job)?;
    let what = wish.describe(change.action);
    begin(store, &ReplicaJob::new(id, change.request, wish.group, what, wish.members, course))
}

/// Takes a change in that the coordinator itself found to be needed; nothing if it can't be done.
pub(crate) fn repair(
    store: Store<'_>,
    group: GroupId,
    action: ReplicaAction,
    cause: &str,
    known: &Known,
) -> Result<()> {
    if reshard::has_replicas_wait(store, group, true)? {
        return Ok(());
    }
    unasked(store, group, action, cause, true, known)
}

/// Takes a change in that a reshard or a course needs; nothing if another one of the group is under way.
pub(crate) fn needed(
    store: Store<'_>,
    group: GroupId,
    action: ReplicaAction,
    cause: &str,
    known: &Known,
) -> Result<()> {
    unasked(store, group, action, cause, false, known)
}

fn unasked(
    store: Store<'_>,
    group: GroupId,
    action: ReplicaAction,
    cause: &str,
    repairs: bool,
    known: &Known,
) -> Result<()> {
    let topology = store.topology()?;
    let wish = Wish::find(&topology, &ReplicaTarget::Group(group), known)?;
    let course = wish.course(action)?;
    let busy = store.replica_jobs()?.iter().any(|job| job.group() == group);
    if busy || wish.is_left_over(&course) {
        return Ok(());
    }
    let id = store.take(Counter::Job)?;
    let what = format!("{}, for {cause}", wish.describe(action));
    if repairs {
        tracing::warn!(job = id, %group, "begins to {what}");
    }
    let request = RequestId { router: RouterIncarnation(0), sequence: id };
    let mut job = ReplicaJob::new(id, request, group, what, wish.members, course);
    job.automatic = repairs;
    begin(store, &job).map(drop)
}

fn begin(store: Store<'_>, job: &ReplicaJob) -> Result<Admission> {
    store.put_replica_job(job)?;
    if job.joining().is_some() {
        // Before the node gets its replica it must be known that it's meant to: what isn't is removed.
        store.next_epoch()?;
    }
    Ok(Admission::Running(job.id))
}

/// Moves a job past the step that it stands at, if it still does. Past the last one it ends, and the topology names
/// the new replicas. Says whether it has ended.
pub(crate) fn advance(store: Store<'_>, id: u64, step: u32) -> Result<bool> {
    let Some(mut job) = store.replica_job(id)?.filter(|job| job.step == step && !job.has_failed()) else {
        return Ok(false);
    };
    job.advance();
    if job.step < job.length() {
        store.put_replica_job(&job)?;
        return Ok(false);
    }
    if let Some(members) = job.after() {
        place(store, job.group(), &members)?;
        store.next_epoch()?;
    }
    store.end_replica_job(&job, &Ok(0))?;
    Ok(true)
}

/// Notes that a job's step can't be done.
pub(crate) fn fail(store: Store<'_>, id: u64, step: u32, error: &WireError) -> Result<()> {
    let Some(mut job) = store.replica_job(id)?.filter(|job| job.step == step && !job.has_failed()) else {
        return Ok(());
    };
    job.fail(error);
    store.put_replica_job(&job)
}

/// Ends a job that failed, once the group has the voters that it had.
pub(crate) fn abort(store: Store<'_>, id: u64, error: &WireError) -> Result<()> {
    let Some(job) = store.replica_job(id)?.filter(ReplicaJob::has_failed) else { return Ok(()) };
    if job.joining().is_some() {
        store.next_epoch()?;
    }
    store.end_replica_job(&job, &Err(error.clone()))
}

fn place(store: Store<'_>, group: GroupId, members: &[NodeId]) -> Result<()> {
    if group == GroupId::COORDINATOR {
        return store.put_coordinators(members);
    }
    // A shard that was dropped meanwhile has taken its group with it.
    if let Some(mut shard) = store.shards()?.into_values().find(|shard| shard.group == group) {
        shard.replicas = members.to_vec();
        store.put_shard(&shard)?;
    }
    Ok(())
}

/// A group, and whose replicas it has.
struct Wish<'a> {
    group: GroupId,
    name: String,
    members: &'a [NodeId],
    topology: &'a Topology,
    known: &'a Known,
}

impl<'a> Wish<'a> {
    fn find(topology: &'a Topology, target: &ReplicaTarget, known: &'a Known) -> Result<Self> {
        let wish = |group, name, members| Wish { group, name, members, topology, known };
        let shard = match target {
            ReplicaTarget::Group(GroupId::COORDINATOR) => {
                let members = topology.coordinators.as_slice();
                return Ok(wish(GroupId::COORDINATOR, "the coordinator".to_owned(), members));
            }
            ReplicaTarget::Group(group) => topology.shards.values().find(|shard| shard.group == *group),
            ReplicaTarget::Shard(name) => {
                let serving = topology.keyspaces.values().flat_map(|keyspace| &keyspace.shards);
                serving.filter_map(|id| topology.shards.get(id)).find(|s| topology.shard_name(s.id) == *name)
            }
        };
        let Some(shard) = shard else {
            let what = match target {
                ReplicaTarget::Group(group) => format!("group {group}"),
                ReplicaTarget::Shard(name) => format!("shard \"{name}\""),
            };
            return Err(missing(format!("{what} does not exist")));
        };
        let name = topology.shard_name(shard.id);
        if !shard.formed {
            let error = refused(format!("{name} is only being formed")).with_retry(Retry::Later);
            return Err(error.with_hint("Try again in a moment."));
        }
        Ok(wish(shard.group, name, &shard.replicas))
    }

    fn describe(&self, action: ReplicaAction) -> String {
        let name = &self.name;
        match action {
            ReplicaAction::Add(to) => format!("add a replica of {name} on node {to}"),
            ReplicaAction::Remove(from) => format!("remove the replica of {name} from node {from}"),
            ReplicaAction::Move { from, to } => format!("move a replica of {name} from node {from} to {to}"),
            ReplicaAction::Rebuild(node) => format!("rebuild the replica of {name} on node {node}"),
            ReplicaAction::TransferLeader(to) => format!("have node {to} lead {name}"),
        }
    }

    /// The steps that do it, or why it can't be done.
    fn course(&self, action: ReplicaAction) -> Result<Course> {
        let without = |from: NodeId| -> Vec<_> {
            self.members.iter().copied().filter(|member| *member != from).collect()
        };
        let course = match action {
            ReplicaAction::Add(to) => {
                self.check_new(to)?;
                if self.group == GroupId::COORDINATOR && self.members.len() >= MOST_COORDINATORS {
                    let message = format!(
                        "the coordinator has {MOST_COORDINATORS} replicas; more would only be slower"
                    );
                    return Err(refused(message).with_hint("Move one instead."));
                }
                let voters = self.members.iter().copied().chain([to]).collect();
                Course::Voters { steps: vec![voters], joining: Some(to) }
            }
            ReplicaAction::Remove(from) => {
                self.check_held(from)?;
                self.check_not_last(from, "removed", "Move it, or add another one first.")?;
                Course::Voters { steps: vec![without(from)], joining: None }
            }
            ReplicaAction::Move { from, to } => {
                self.check_held(from)?;
                self.check_new(to)?;
                // The place in the list stays: whoever is first in many is likelier to lead many.
                let replaced = self.members.iter().map(|member| if *member == from { to } else { *member });
                Course::Voters { steps: vec![replaced.collect()], joining: Some(to) }
            }
            ReplicaAction::Rebuild(node) => {
                self.check_held(node)?;
                let hint = "There is nothing that it could be made from. Restore a backup.";
                self.check_not_last(node, "rebuilt", hint)?;
                // Two sets of voters, so that it can be told afterwards how far it had come.
                let steps = vec![without(node), self.members.to_vec()];
                Course::Voters { steps, joining: Some(node) }
            }
            ReplicaAction::TransferLeader(to) => {
                self.check_held(to)?;
                self.check_alive(to)?;
                Course::Lead(to)
            }
        };
        self.check_majority(self.members)?;
        if let Course::Voters { steps, joining } = &course {
            for voters in steps {
                // Who joins is well before it votes, and who is rebuilt after the first step as well.
                let sure: Vec<_> = voters.iter().copied().filter(|n| Some(*n) != *joining).collect();
                let rebuilt = matches!(action, ReplicaAction::Rebuild(node) if voters.contains(&node));
                if !rebuilt && self.well(&sure) + voters.len() - sure.len() < voters.len() / 2 + 1 {
                    let message = format!("{} would lose its majority", self.name);
                    return Err(refused(message).with_detail(self.who_is_well(voters)));
                }
            }
        }
        Ok(course)
    }

    fn scene(&self) -> Scene<'_> {
        let Known { vitals, config, now } = self.known;
        Scene { topology: self.topology, vitals, config, now: *now }
    }

    fn well(&self, members: &[NodeId]) -> usize {
        self.scene().well(self.group, members)
    }

    fn who_is_well(&self, members: &[NodeId]) -> String {
        let said = members.iter().map(|node| {
            let how = if self.well(&[*node]) > 0 { "well" } else { "silent, stopped or gone" };
            format!("node {node}: {how}")
        });
        said.collect::<Vec<_>>().join(", ") + "."
    }

    fn check_majority(&self, members: &[NodeId]) -> Result<()> {
        let (well, needed) = (self.well(members), members.len() / 2 + 1);
        if well >= needed {
            return Ok(());
        }
        let vitals = &self.known.vitals;
        let is_new = |node: &NodeId| {
            let silence = vitals.silence(*node, self.known.now);
            vitals.status(self.group, *node).is_none() && silence < self.known.config.silent_after
        };
        if members.iter().all(is_new) {
            return Err(refused(format!("no replica of {} has been heard of yet", self.name))
                .with_hint("Try again in some seconds."));
        }
        let message = format!(
            "{} has {well} of {} replicas alive, and needs {needed} to change anything",
            self.name,
            members.len()
        );
        Err(refused(message)
            .with_detail(self.who_is_well(members))
            .with_hint("Start the nodes that are down."))
    }

    fn check_known(&self, node: NodeId) -> Result<()> {
        if self.topology.nodes.contains_key(&node) {
            return Ok(());
        }
        Err(missing(format!("node {node} does not exist")))
    }

    fn check_alive(&self, node: NodeId) -> Result<()> {
        let silence = self.known.vitals.silence(node, self.known.now);
        if silence < self.known.config.silent_after {
            return Ok(());
        }
        Err(refused(format!("node {node} has been silent for {} seconds", silence.as_secs())))
    }

    fn check_held(&self, node: NodeId) -> Result<()> {
        self.check_known(node)?;
        if self.members.contains(&node) {
            return Ok(());
        }
        Err(missing(format!("node {node} has no replica of {}", self.name)))
    }

    fn check_new(&self, node: NodeId) -> Result<()> {
        self.check_known(node)?;
        if self.members.contains(&node) {
            let message = format!("node {node} already has a replica of {}", self.name);
            return Err(WireError::new(SqlState::DUPLICATE_OBJECT, message));
        }
        if !self.topology.nodes.get(&node).is_some_and(|node| may_hold(self.group, node)) {
            let role = if self.group == GroupId::COORDINATOR { "coordinator" } else { "shardnode" };
            return Err(refused(format!("node {node} doesn't have the role {role}"))
                .with_hint("Start it with --roles, or choose another node."));
        }
        if self.topology.nodes.get(&node).is_some_and(|node| node.draining) {
            let hint = format!("\"shoal node undrain {node}\" has it hold replicas again.");
            return Err(refused(format!("node {node} is being drained")).with_hint(hint));
        }
        self.check_alive(node)
    }

    fn check_not_last(&self, node: NodeId, done: &str, hint: &str) -> Result<()> {
        if self.members != [node] {
            return Ok(());
        }
        Err(refused(format!("the last replica of {} can't be {done}", self.name)).with_hint(hint))
    }

    /// Whether the node that is to get a replica still has one that was taken from it. It will be gone soon, and the
    /// new one must not go with it.
    fn is_left_over(&self, course: &Course) -> bool {
        let Course::Voters { joining: Some(to), .. } = course else { return false };
        !self.members.contains(to) && self.known.vitals.status(self.group, *to).is_some()
    }
}

fn refused(message: String) -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

fn missing(message: String) -> WireError {
    WireError::new(SqlState::UNDEFINED_OBJECT, message)
}
