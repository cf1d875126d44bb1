//! Courses: what many changes of replicas come to. A node is drained, a shard moved, a keyspace gets more replicas or fewer.
//!
//! In come wishes, the topology and what is known of the nodes; out go changes of replicas, two at a time, each a job like
//! those that admins ask for. Which are left follows from the topology (`left`, which is pure), so the next leader goes on
//! in the same way, and a change that has failed is tried with whoever is the best by then. Stopped at any time, a course
//! leaves every group whole.

use crate::reach::Pause;
use crate::repair::{Scene, may_hold};
use crate::replicas::{self, Known};
use crate::reshard;
use crate::service::Core;
use crate::store::{Counter, KeyspaceRow, Store};
use bytes::Bytes;
use dialect::sqlite::error;
use proto::services::{
    Consistency, Course, CoursePlan, CourseWish, JobStatus, PlannedMove, ReplicaAction, ServiceResult,
};
use proto::topology::{Leaders, Node, Shard, Topology};
use proto::wire::Wire;
use proto::{GroupId, KeyspaceNumber, NodeId, RequestId, RouterIncarnation, SqlState, WireError, machine};
use rusqlite::params;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How many changes nobody has asked for are under way at a time.
const AT_ONCE: usize = 2;
/// So many replicas the coordinator keeps.
const COORDINATORS: usize = 3;
/// How often it is looked what is left.
const EVERY: Duration = Duration::from_millis(200);

type Result<T> = std::result::Result<T, WireError>;

/// A course under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its number among the jobs.
    pub(crate) id: u64,
    request: RequestId,
    /// What it does, for people.
    pub(crate) what: String,
    aim: Aim,
}

/// What a course comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Aim {
    Move(GroupId, Vec<NodeId>),
    Count(KeyspaceNumber, u32),
    Drain(NodeId),
}

/// The record as it is kept on disk: a field's number is for ever.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    router: u64,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    #[prost(string, tag = "4")]
    what: String,
    /// Of a shard that is moved; 0 for others.
    #[prost(uint64, tag = "5")]
    group: u64,
    #[prost(uint64, repeated, tag = "6")]
    to: Vec<u64>,
    /// Of a keyspace whose replicas are counted; 0 for others.
    #[prost(uint32, tag = "7")]
    keyspace: u32,
    #[prost(uint32, tag = "8")]
    replicas: u32,
    /// Of a node that is drained; 0 for others.
    #[prost(uint64, tag = "9")]
    drained: u64,
}

/// What is left of a course. Nothing if it is at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    /// What could be begun, the most urgent first, one change for each group.
    steps: Vec<(GroupId, ReplicaAction)>,
    /// How many groups get a replica already: what comes next is seen then.
    moving: usize,
    /// Why the rest can't.
    stuck: Vec<String>,
    /// What isn't there yet, and is to be gone again: it has to come first.
    comes: Vec<String>,
}

impl Aim {
    /// Whether the two are of one thing, so that the later one counts.
    fn is_of_the_same(&self, other: &Aim) -> bool {
        match (self, other) {
            (Aim::Move(group, _), Aim::Move(other, _)) => group == other,
            (Aim::Count(keyspace, _), Aim::Count(other, _)) => keyspace == other,
            _ => false,
        }
    }
}

impl Record {
    fn bytes(&self) -> Vec<u8> {
        let Record { id, request, what, aim } = self;
        let stored = Stored {
            id: *id,
            router: request.router.0,
            sequence: request.sequence,
            what: what.clone(),
            ..Stored::default()
        };
        let stored = match aim {
            Aim::Move(group, to) => {
                Stored { group: group.0, to: to.iter().map(|node| node.0).collect(), ..stored }
            }
            Aim::Count(keyspace, replicas) => Stored { keyspace: keyspace.0, replicas: *replicas, ..stored },
            Aim::Drain(node) => Stored { drained: node.0, ..stored },
        };
        prost::Message::encode_to_vec(&stored)
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = prost::Message::decode(bytes).map_err(|e: prost::DecodeError| {
            WireError::new(SqlState::DATA_CORRUPTED, format!("the record of a course: {e}"))
        })?;
        let aim = match (stored.group, stored.keyspace) {
            (0, 0) => Aim::Drain(NodeId(stored.drained)),
            (0, keyspace) => Aim::Count(KeyspaceNumber(keyspace), stored.replicas),
            (group, _) => Aim::Move(GroupId(group), stored.to.iter().copied().map(NodeId).collect()),
        };
        let request = RequestId { router: RouterIncarnation(stored.router), sequence: stored.sequence };
        Ok(Record { id: stored.id, request, what: stored.what, aim })
    }

    /// What it does, as whoever wishes for it is told.
    fn plan(&self, topology: &Topology) -> CoursePlan {
        let moves = match &self.aim {
            Aim::Move(group, to) => {
                let shard = topology.shards.values().find(|shard| shard.group == *group);
                let from = shard.map_or_else(Vec::new, |shard| shard.replicas.clone());
                Some(PlannedMove { group: *group, from, to: to.clone() })
            }
            Aim::Count(..) | Aim::Drain(_) => None,
        };
        CoursePlan { course: Some(self.id), what: self.what.clone(), moves }
    }

    /// The groups that it changes.
    pub(crate) fn groups(&self, topology: &Topology) -> Vec<GroupId> {
        let shards = topology.shards.values();
        match &self.aim {
            Aim::Move(group, _) => vec![*group],
            Aim::Count(keyspace, _) => {
                shards.filter(|shard| shard.keyspace == *keyspace).map(|shard| shard.group).collect()
            }
            Aim::Drain(node) => {
                shards.filter(|shard| shard.replicas.contains(node)).map(|shard| shard.group).collect()
            }
        }
    }
}

/// What is left until an aim is reached.
fn left(aim: &Aim, scene: &Scene<'_>, leaders: &Leaders) -> Left {
    let mut planning =
        Planning { scene, leaders, load: scene.load(), leads: BTreeMap::new(), left: Left::default() };
    for (_, _, node) in leaders.iter() {
        *planning.leads.entry(node).or_default() += 1;
    }
    let topology = scene.topology;
    match aim {
        Aim::Drain(node) => {
            for shard in topology.shards.values().filter(|s| !s.formed && s.replicas.contains(node)) {
                planning.left.stuck.push(format!("{} is only being formed", topology.shard_name(shard.id)));
            }
            for (group, _) in topology.joining.iter().filter(|(_, joining)| joining == node) {
                let name = planning.name(*group);
                planning.left.comes.push(format!("a replica of {name} is on its way there"));
            }
            for (group, members) in scene.groups().filter(|(_, members)| members.contains(node)) {
                if !planning.hand_over(group, members, *node) {
                    planning.replace(group, members, *node);
                }
            }
        }
        Aim::Move(group, to) => {
            if let Some((_, members)) = scene.groups().find(|(of, _)| of == group) {
                planning.bring(*group, members, to);
            }
        }
        Aim::Count(number, count) => {
            let shards = topology.keyspaces.get(number).map(|keyspace| keyspace.shards.as_slice());
            for shard in shards.unwrap_or_default().iter().filter_map(|id| topology.shards.get(id)) {
                planning.count(shard, *count as usize);
            }
        }
    }
    let mut left = planning.left;
    // Who leads gives that up first; and the coordinator stays until the rest is done.
    left.steps.sort_by_key(|(group, action)| {
        let moves = !matches!(action, ReplicaAction::TransferLeader(_));
        (*group == GroupId::COORDINATOR, moves)
    });
    left
}

/// Whether all that a node holds has somewhere to go.
pub(crate) fn can_drain(node: NodeId, scene: &Scene<'_>, leaders: &Leaders) -> bool {
    left(&Aim::Drain(node), scene, leaders).stuck.is_empty()
}

struct Planning<'a> {
    scene: &'a Scene<'a>,
    leaders: &'a Leaders,
    /// How many replicas each node has, with those of steps that are planned.
    load: BTreeMap<NodeId, usize>,
    /// How many groups each leads.
    leads: BTreeMap<NodeId, usize>,
    left: Left,
}

impl Planning<'_> {
    fn step(&mut self, group: GroupId, action: ReplicaAction) {
        if let ReplicaAction::Add(to) | ReplicaAction::Move { to, .. } = action {
            *self.load.entry(to).or_default() += 1;
        }
        self.left.steps.push((group, action));
    }

    /// Has another lead, if this node does and another can. Says whether that comes first.
    fn hand_over(&mut self, group: GroupId, members: &[NodeId], from: NodeId) -> bool {
        if self.leaders.get(group) != Some(from) {
            return false;
        }
        let others = members.iter().copied().filter(|node| *node != from);
        let others = others.filter(|node| self.scene.well(group, &[*node]) > 0);
        let fewest = others.min_by_key(|node| (self.leads.get(node).copied().unwrap_or(0), *node));
        let Some(to) = fewest else { return false };
        *self.leads.entry(to).or_default() += 1;
        self.step(group, ReplicaAction::TransferLeader(to));
        true
    }

    /// Moves a replica to the best node. The coordinator does without one that has nowhere to go, as long as it has enough.
    fn replace(&mut self, group: GroupId, members: &[NodeId], from: NodeId) {
        match self.scene.free(group, members, &self.load) {
            Some(to) => self.step(group, ReplicaAction::Move { from, to }),
            None if group == GroupId::COORDINATOR && members.len() > COORDINATORS => {
                self.step(group, ReplicaAction::Remove(from));
            }
            None => self.stuck(group),
        }
    }

    fn name(&self, group: GroupId) -> String {
        let topology = self.scene.topology;
        let shard = topology.shards.values().find(|shard| shard.group == group);
        shard.map_or_else(|| "the coordinator".to_owned(), |shard| topology.shard_name(shard.id))
    }

    /// Nobody is free. Whoever gets a replica already isn't.
    fn stuck(&mut self, group: GroupId) {
        if self.scene.topology.joining.iter().any(|(joined, _)| *joined == group) {
            self.left.moving += 1;
            return;
        }
        let name = self.name(group);
        self.left.stuck.push(format!("no other node can hold a replica of {name}"));
    }

    /// One step towards a group on these nodes.
    fn bring(&mut self, group: GroupId, members: &[NodeId], to: &[NodeId]) {
        let lacks = to.iter().copied().find(|node| !members.contains(node));
        let exceeds = members.iter().copied().find(|node| !to.contains(node));
        match (lacks, exceeds) {
            (Some(to), Some(from)) => {
                let stays: Vec<_> =
                    members.iter().copied().filter(|node| to != *node && *node != from).collect();
                if stays.is_empty() || !self.hand_over(group, members, from) {
                    self.step(group, ReplicaAction::Move { from, to });
                }
            }
            (Some(to), None) => self.step(group, ReplicaAction::Add(to)),
            (None, Some(from)) if !self.hand_over(group, members, from) => {
                self.step(group, ReplicaAction::Remove(from));
            }
            (None, _) => {}
        }
    }

    /// One step towards so many replicas.
    fn count(&mut self, shard: &Shard, count: usize) {
        let (group, members) = (shard.group, shard.replicas.as_slice());
        if members.len() < count {
            match self.scene.free(group, members, &self.load) {
                Some(to) => self.step(group, ReplicaAction::Add(to)),
                None => self.stuck(group),
            }
        } else if members.len() > count {
            let topology = self.scene.topology;
            let worst = members.iter().copied().max_by_key(|node| {
                let drained = topology.nodes.get(node).is_none_or(|node| node.draining);
                let is_well = self.scene.well(group, &[*node]) > 0;
                let leads = self.leaders.get(group) == Some(*node);
                (drained, !is_well, !leads, self.load.get(node).copied().unwrap_or(0), *node)
            });
            if let Some(from) = worst.filter(|from| !self.hand_over(group, members, *from)) {
                self.step(group, ReplicaAction::Remove(from));
            }
        }
    }
}

/// Takes a wish in, and tells what will be done. One that was taken in before is answered with its course's number, which is 0
/// for what is done at once. A dry run is refused if the wish would be, and changes nothing.
pub(crate) fn begin(
    store: Store<'_>,
    wish: &CourseWish,
    known: &Known,
    leaders: &Leaders,
) -> Result<CoursePlan> {
    let courses = store.courses()?;
    let mut topology = store.topology()?;
    if let Some(course) = courses.iter().find(|course| course.request == wish.request) {
        return Ok(course.plan(&topology));
    }
    if let Some(answer) = store.answer(wish.request)? {
        return Ok(CoursePlan {
            course: Some(answer?).filter(|number| *number > 0),
            ..CoursePlan::default()
        });
    }
    let (mut marked, mut counted) = (None, None);
    let (aim, what) = match &wish.course {
        Course::Drain(id) => {
            if let Some(course) = courses.iter().find(|course| course.aim == Aim::Drain(*id)) {
                return Ok(course.plan(&topology));
            }
            let node = Node { draining: true, ..found(&topology, *id)?.clone() };
            topology.nodes.insert(*id, node.clone());
            marked = Some(node);
            (Aim::Drain(*id), format!("drain node {id}"))
        }
        Course::Move { shard, from, to } => {
            let (shard, replicas) = named(&topology, shard)?;
            check_nodes(&topology, known, to)?;
            let to = destination(shard, &topology.shard_name(shard.id), replicas as usize, *from, to)?;
            let nodes: BTreeSet<_> = to.iter().copied().collect();
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            let what = format!("move {} to nodes {}", topology.shard_name(shard.id), nodes.join(", "));
            (Aim::Move(shard.group, to), what)
        }
        Course::Count { keyspace, replicas } => {
            let mut row = check_count(store, keyspace, *replicas)?;
            row.keyspace.replicas = *replicas;
            let number = row.keyspace.number;
            counted = Some(row);
            (Aim::Count(number, *replicas), format!("have {replicas} replicas in {keyspace}"))
        }
        Course::Undrain(id) => {
            let node = found(&topology, *id)?;
            if wish.dry_run {
                return Ok(CoursePlan::default());
            }
            if node.draining {
                store.put_node(&Node { draining: false, ..node.clone() })?;
                store.next_epoch()?;
            }
            if let Some(course) = courses.iter().find(|course| course.aim == Aim::Drain(*id)) {
                store.end_course(course)?;
            }
            return done_at_once(store, wish);
        }
        Course::Remove(id) => {
            check_removal(&topology, *id, known)?;
            if wish.dry_run {
                return Ok(CoursePlan::default());
            }
            store.run("DELETE FROM shoal_node WHERE id = ?1", [id.0 as i64])?;
            store.next_epoch()?;
            for course in courses.iter().filter(|course| course.aim == Aim::Drain(*id)) {
                store.end_course(course)?;
            }
            return done_at_once(store, wish);
        }
        Course::Stop(id) => {
            let course = courses.iter().find(|course| course.id == *id);
            let unknown = || {
                WireError::new(SqlState::UNDEFINED_OBJECT, format!("course {id} isn't under way"))
                    .with_hint("\"shoal status\" lists those that are.")
            };
            let course = course.ok_or_else(unknown)?;
            if wish.dry_run {
                return Ok(CoursePlan::default());
            }
            store.end_course(course)?;
            return done_at_once(store, wish);
        }
    };
    let mut record = Record { id: 0, request: wish.request, what, aim };
    let (replaced, others): (Vec<_>, Vec<_>) =
        courses.into_iter().partition(|course| course.aim.is_of_the_same(&record.aim));
    check_free(&record, &others, &topology)?;
    let scene = Scene { topology: &topology, vitals: &known.vitals, config: &known.config, now: known.now };
    if let Some(why) = left(&record.aim, &scene, leaders).stuck.into_iter().next() {
        return Err(
            refused(why).with_hint("Add a node, or see to it that those that there are can be reached.")
        );
    }
    if wish.dry_run {
        return Ok(CoursePlan { course: None, ..record.plan(&topology) });
    }
    replaced.iter().try_for_each(|course| store.end_course(course))?;
    record.id = store.take(Counter::Job)?;
    let plan = record.plan(&topology);
    // What is made meanwhile is made accordingly.
    if let Some(node) = &marked {
        store.put_node(node)?;
    }
    if let Some(row) = &counted {
        store.put_keyspace(row)?;
    }
    if marked.is_some() || counted.is_some() {
        store.next_epoch()?;
    }
    store.put_course(&record)?;
    Ok(plan)
}

fn done_at_once(store: Store<'_>, wish: &CourseWish) -> Result<CoursePlan> {
    store.put_answer(wish.request, &Ok(0)).map(|()| CoursePlan::default())
}

/// The nodes that a shard is to be on.
fn destination(
    shard: &Shard,
    name: &str,
    replicas: usize,
    from: Option<NodeId>,
    to: &[NodeId],
) -> Result<Vec<NodeId>> {
    let wrong = |message| WireError::new(SqlState::INVALID_PARAMETER_VALUE, message);
    let Some(from) = from else {
        let distinct: BTreeSet<_> = to.iter().collect();
        if distinct.len() != replicas || to.len() != distinct.len() {
            let replicas =
                if replicas == 1 { "1 replica".to_owned() } else { format!("{replicas} replicas") };
            return Err(wrong(format!("{name} has {replicas}, so it is moved to as many nodes")));
        }
        return Ok(to.to_vec());
    };
    let [to] = to else {
        return Err(wrong(format!(
            "what node {from} has of {name} is moved to one node, not to {}",
            to.len()
        )));
    };
    if !shard.replicas.contains(&from) {
        return Err(
            wrong(format!("node {from} has no replica of {name}")).with_hint("\"shoal shards\" lists them.")
        );
    }
    if shard.replicas.contains(to) {
        return Err(wrong(format!("node {to} has a replica of {name} already")));
    }
    Ok(shard.replicas.iter().map(|node| if *node == from { *to } else { *node }).collect())
}

fn found(topology: &Topology, id: NodeId) -> Result<&Node> {
    topology.nodes.get(&id).ok_or_else(|| {
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("node {id} does not exist"))
            .with_hint("\"shoal nodes\" lists those that there are.")
    })
}

/// A shard that serves, and how many replicas it is to have.
fn named<'a>(topology: &'a Topology, name: &str) -> Result<(&'a Shard, u32)> {
    let serving = topology.keyspaces.values().flat_map(|keyspace| {
        let shards = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
        shards.map(|shard| (shard, keyspace.replicas))
    });
    let mut serving = serving.filter(|(shard, _)| topology.shard_name(shard.id) == name);
    serving.next().ok_or_else(|| {
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("shard \"{name}\" does not exist"))
            .with_hint("\"shoal shards\" lists them.")
    })
}

fn check_nodes(topology: &Topology, known: &Known, nodes: &[NodeId]) -> Result<()> {
    for id in nodes {
        let node = found(topology, *id)?;
        // Which group it is doesn't matter, so long as it isn't the coordinator's.
        if !may_hold(GroupId(GroupId::COORDINATOR.0 + 1), node) {
            return Err(refused(format!("node {id} doesn't have the role shardnode"))
                .with_hint("Start it with --roles, or choose another node."));
        }
        if node.draining {
            let hint = format!("\"shoal node undrain {id}\" has it hold replicas again.");
            return Err(refused(format!("node {id} is being drained")).with_hint(hint));
        }
        let silence = known.vitals.silence(*id, known.now);
        if silence >= known.config.silent_after {
            return Err(refused(format!("node {id} has been silent for {} seconds", silence.as_secs()))
                .with_hint("Start it, or choose another node."));
        }
    }
    Ok(())
}

fn check_count(store: Store<'_>, name: &str, replicas: u32) -> Result<KeyspaceRow> {
    let holders = store.nodes()?.values().filter(|node| node.roles.shardnode && !node.draining).count();
    if replicas == 0 || replicas as usize > holders {
        let message = format!("a shard has 1 to {holders} replicas on {holders} nodes, not {replicas}");
        return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
            .with_hint("Each replica of a shard needs a node of its own: add nodes."));
    }
    let rows = store.keyspaces()?;
    rows.into_iter().find(|row| row.ready && row.keyspace.name == *name).ok_or_else(|| {
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("keyspace \"{name}\" does not exist"))
            .with_hint("\"shoal shards\" lists the shards of those that there are.")
    })
}

fn check_removal(topology: &Topology, id: NodeId, known: &Known) -> Result<()> {
    found(topology, id)?;
    let holds = topology.shards.values().any(|shard| shard.replicas.contains(&id))
        || topology.coordinators.contains(&id)
        || topology.joining.iter().any(|(_, node)| *node == id);
    if holds {
        let hint = format!("\"shoal node drain {id}\" has others hold it.");
        return Err(refused(format!("node {id} still holds replicas")).with_hint(hint));
    }
    let patience = known.config.silent_after;
    let Some(rest) = patience.checked_sub(known.vitals.silence(id, known.now)).filter(|rest| !rest.is_zero())
    else {
        return Ok(());
    };
    if known.vitals.heard(id, known.now).is_none() {
        let hint = format!("Try again in {} seconds.", rest.as_secs_f64().ceil());
        let message =
            format!("node {id} may be alive: the coordinator has a new leader, which still listens for it");
        return Err(refused(message).with_hint(hint));
    }
    let hint = format!("Stop it first, and wait {} seconds.", patience.as_secs());
    Err(refused(format!("node {id} is alive")).with_hint(hint))
}

/// No other course wants something else of the same groups.
fn check_free(record: &Record, courses: &[Record], topology: &Topology) -> Result<()> {
    if matches!(record.aim, Aim::Drain(_)) {
        return Ok(());
    }
    let groups = record.groups(topology);
    let other = courses.iter().filter(|course| !matches!(course.aim, Aim::Drain(_)));
    let mut other = other.filter(|course| course.groups(topology).iter().any(|group| groups.contains(group)));
    match other.next() {
        None => Ok(()),
        Some(course) => {
            let message = format!("other replicas of these shards are being changed: {}", course.what);
            let hint = match &course.aim {
                Aim::Move(..) => "The shard can be moved elsewhere instead, or to where it is.",
                _ => "The keyspace can get another number of replicas instead, or the one that it had.",
            };
            let hint = format!("\"shoal status\" shows how far that is. {hint}");
            Err(WireError::new(SqlState::OBJECT_IN_USE, message).with_hint(hint))
        }
    }
}

fn refused(message: String) -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

impl Store<'_> {
    /// Every course that is under way, in the order of their beginning.
    pub(crate) fn courses(&self) -> Result<Vec<Record>> {
        self.all("SELECT body FROM shoal_course ORDER BY id", [], |row| {
            Record::read(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    fn put_course(&self, course: &Record) -> Result<()> {
        let (router, sequence) = (course.request.router.0 as i64, course.request.sequence as i64);
        let sql = "INSERT INTO shoal_course VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![course.id as i64, router, sequence, course.bytes()])
    }

    /// Ends a course, and remembers that its wish was taken in.
    fn end_course(&self, course: &Record) -> Result<()> {
        self.run("DELETE FROM shoal_course WHERE id = ?1", [course.id as i64])?;
        self.put_answer(course.request, &Ok(course.id))
    }
}

/// Goes on with a course until it has ended, or as long as this node leads.
pub(crate) async fn run(core: Arc<Core>, id: u64) {
    let mut pause = Pause::default();
    while core.replica.is_leader() {
        match core.go_on(id).await {
            Ok(true) => {
                pause = Pause::default();
                tokio::time::sleep(EVERY).await;
            }
            Ok(false) => break,
            Err(error) => {
                tracing::info!(course = id, %error, "a course is held up");
                core.obstacles.lock().insert(id, error.message);
                pause.wait().await;
            }
        }
    }
    core.obstacles.lock().remove(&id);
}

impl Core {
    /// Begins a course, or says what it would do.
    pub(crate) async fn course(&self, wish: CourseWish) -> ServiceResult<CoursePlan> {
        self.check_leader()?;
        let (known, leaders) = (self.known(machine::now()), self.state.subscribe().borrow().leaders.clone());
        if wish.dry_run {
            let deadline = machine::now() + self.config.write_timeout;
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            return begin(Store(snapshot.connection()), &wish, &known, &leaders);
        }
        let begin = move |store: Store<'_>| Ok(begin(store, &wish, &known, &leaders)?.encode().into());
        let output = self.write(begin).await?;
        self.state.refresh(&self.replica).await?;
        self.begun.notify_one();
        CoursePlan::decode(&output).map_err(|e| WireError::internal(e.to_string()))
    }

    /// How far a course is.
    pub(crate) fn course_status(&self, course: &Record, topology: &Topology) -> JobStatus {
        let known = self.known(machine::now());
        let scene = Scene { topology, vitals: &known.vitals, config: &known.config, now: known.now };
        let leaders = self.state.subscribe().borrow().leaders.clone();
        let left = left(&course.aim, &scene, &leaders);
        let groups = left.steps.len() + left.moving + left.stuck.len() + left.comes.len();
        let mut progress = match groups {
            0 => "nearly done".to_owned(),
            1 => "1 group left".to_owned(),
            groups => format!("{groups} groups left"),
        };
        if let Some(obstacle) = self.obstacles.lock().get(&course.id).filter(|_| groups > 0) {
            progress.push_str("; held up: ");
            progress.push_str(obstacle);
        }
        JobStatus { id: course.id, what: course.what.clone(), progress }
    }

    /// Has what can be begun begin. Says whether there is more to do.
    async fn go_on(&self, id: u64) -> Result<bool> {
        let deadline = machine::now() + self.config.write_timeout;
        let (course, jobs, topology) = {
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            let store = Store(snapshot.connection());
            let course = store.courses()?.into_iter().find(|course| course.id == id);
            let Some(course) = course else { return Ok(false) };
            (course, store.replica_jobs()?, store.topology()?)
        };
        let known = self.known(machine::now());
        let leaders = self.state.subscribe().borrow().leaders.clone();
        let scene =
            Scene { topology: &topology, vitals: &known.vitals, config: &known.config, now: known.now };
        let left = left(&course.aim, &scene, &leaders);
        let is_done = left == Left::default();
        let Left { steps, moving: _, stuck, comes } = left;
        if is_done {
            tracing::info!(course = id, what = course.what, "a course is at its end");
            self.write(move |store| store.end_course(&course).map(|()| Bytes::new())).await?;
            return Ok(false);
        }
        let mut obstacle = stuck.into_iter().chain(comes).next();
        let unasked =
            jobs.iter().filter(|job| !job.automatic && job.request().router == RouterIncarnation(0));
        let mut room = AT_ONCE.saturating_sub(unasked.count());
        let mut has_begun = false;
        for (group, action) in steps {
            if room == 0 || jobs.iter().any(|job| job.group() == group) {
                continue;
            }
            let (known, cause) = (known.clone(), format!("course {id}"));
            let begin = move |store: Store<'_>| {
                if let Some(reshard) = reshard::of_group(store, group)? {
                    let message = format!("reshard {reshard} is under way");
                    return Err(WireError::new(SqlState::OBJECT_IN_USE, message));
                }
                replicas::needed(store, group, action, &cause, &known).map(|()| Bytes::new())
            };
            match self.write(begin).await {
                Ok(_) => (room, has_begun) = (room - 1, true),
                Err(error) if !self.replica.is_leader() => return Err(error),
                Err(error) => obstacle = obstacle.or(Some(error.message)),
            }
        }
        match obstacle {
            Some(obstacle) => self.obstacles.lock().insert(id, obstacle),
            None => self.obstacles.lock().remove(&id),
        };
        if has_begun {
            self.state.refresh(&self.replica).await?;
            self.begun.notify_one();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
