use super::*;
use crate::config::Config;
use crate::keyspace;
use crate::nodes::register;
use crate::vitals::Vitals;
use proto::Term;
use proto::services::{CreateKeyspace, ReplicaStatus};
use proto::topology::{Roles, Sharding};
use rusqlite::Connection;
use std::time::Instant;

/// The coordinator's tables: `main` has `-80` and `80-`, and `single` has `-`, each on three nodes of five.
struct Stage {
    connection: Connection,
    known: Known,
    leaders: Leaders,
}

impl Stage {
    fn new(nodes: u64) -> Stage {
        let mut config = Config::new(NodeId(1), (1..=3).map(NodeId).collect());
        config.expected_nodes = 3;
        config.replicas = 3;
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&crate::store::init(&config).join(";")).unwrap();
        let now = Instant::now();
        let mut vitals = Vitals::new(now);
        vitals.begin(now);
        let known = Known { vitals, config, now };
        let mut stage = Stage { connection, known, leaders: Leaders::default() };
        for id in (1..=nodes).map(NodeId) {
            let (address, zone) = (format!("{id}"), String::new());
            let node = Node { id, address, roles: Roles::ALL, zone, draining: false };
            register(stage.store(), &node, None, &stage.known.config).unwrap();
        }
        for shard in stage.store().shards().unwrap().into_values() {
            stage.store().put_shard(&Shard { formed: true, ..shard }).unwrap();
        }
        stage.report(nodes);
        stage
    }

    /// All nodes say that they have what they are to have, and the first of each group that it leads.
    fn report(&mut self, nodes: u64) {
        let topology = self.topology();
        for node in (1..=nodes).map(NodeId) {
            let held = crate::repair::groups(&topology).filter(|(_, members)| members.contains(&node));
            let statuses: Vec<_> = held.map(|(group, _)| ReplicaStatus::new(node, group)).collect();
            self.known.vitals.report(node, &statuses, Vec::new(), self.known.now);
        }
        let term = Term(self.leaders.iter().map(|(_, term, _)| term.0).max().unwrap_or(0) + 1);
        for (group, members) in crate::repair::groups(&topology) {
            self.leaders.learn(group, term, members[0]);
        }
    }

    fn store(&self) -> Store<'_> {
        Store(&self.connection)
    }

    fn topology(&self) -> Topology {
        self.store().topology().unwrap()
    }

    /// The number of a course that begins.
    fn begin(&self, sequence: u64, course: Course) -> Result<u64> {
        self.wish(&wish(sequence, course)).map(|plan| plan.course.unwrap_or(0))
    }

    fn wish(&self, wish: &CourseWish) -> Result<CoursePlan> {
        begin(self.store(), wish, &self.known, &self.leaders)
    }

    fn left(&self, id: u64) -> Left {
        let course = self.store().courses().unwrap().into_iter().find(|course| course.id == id).unwrap();
        let topology = self.topology();
        let Known { vitals, config, now } = &self.known;
        left(&course.aim, &Scene { topology: &topology, vitals, config, now: *now }, &self.leaders)
    }

    /// Does what is left, one change after the other, as jobs would. Tells the changes.
    fn work_off(&mut self, id: u64, nodes: u64) -> Vec<(u64, ReplicaAction)> {
        let mut done = Vec::new();
        while let Some((group, action)) = self.left(id).steps.first().copied() {
            assert!(done.len() < 50, "{done:?}");
            done.push((group.0, action));
            let topology = self.topology();
            let (_, members) = crate::repair::groups(&topology).find(|(of, _)| *of == group).unwrap();
            let mut members = members.to_vec();
            match action {
                ReplicaAction::Add(to) => members.push(to),
                ReplicaAction::Remove(from) => members.retain(|node| *node != from),
                ReplicaAction::Move { from, to } => {
                    let place = members.iter().position(|node| *node == from).unwrap();
                    members[place] = to;
                }
                ReplicaAction::Rebuild(_) => {}
                ReplicaAction::TransferLeader(to) => {
                    let term = Term(self.leaders.term(group).0 + 1);
                    self.leaders.learn(group, term, to);
                }
            }
            if group == GroupId::COORDINATOR {
                self.store().put_coordinators(&members).unwrap();
            } else {
                let shard = topology.shards.values().find(|shard| shard.group == group).unwrap();
                self.store().put_shard(&Shard { replicas: members, ..shard.clone() }).unwrap();
            }
            for node in (1..=nodes).map(NodeId) {
                let topology = self.topology();
                let held = crate::repair::groups(&topology).filter(|(_, members)| members.contains(&node));
                let statuses: Vec<_> = held.map(|(group, _)| ReplicaStatus::new(node, group)).collect();
                self.known.vitals.report(node, &statuses, Vec::new(), self.known.now);
            }
        }
        assert_eq!(self.left(id), Left::default());
        done
    }
}

fn wish(sequence: u64, course: Course) -> CourseWish {
    CourseWish { request: RequestId { router: RouterIncarnation(7), sequence }, course, dry_run: false }
}

fn ids(nodes: &[u64]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

#[test]
fn a_drained_node_gives_up_leading_then_holding_and_the_coordinator_last() {
    let mut stage = Stage::new(5);
    let id = stage.begin(1, Course::Drain(NodeId(1))).unwrap();
    assert!(stage.topology().nodes[&NodeId(1)].draining);
    assert_eq!(stage.begin(1, Course::Drain(NodeId(1))), Ok(id));
    assert_eq!(stage.begin(2, Course::Drain(NodeId(1))), Ok(id), "it is under way already");
    let done = stage.work_off(id, 5);
    let first_move =
        done.iter().position(|(_, action)| matches!(action, ReplicaAction::Move { .. })).unwrap();
    assert!(first_move > 0, "{done:?}");
    let (group, last) = done.last().unwrap();
    assert_eq!(*group, GroupId::COORDINATOR.0);
    assert!(matches!(last, ReplicaAction::Move { from: NodeId(1), .. }));
    for (_, action) in &done {
        assert!(!matches!(action, ReplicaAction::Add(_) | ReplicaAction::Remove(_)), "{action:?}");
    }
    let topology = stage.topology();
    assert!(crate::repair::groups(&topology).all(|(_, members)| !members.contains(&NodeId(1))));
    assert!(topology.shards.values().all(|shard| shard.replicas.len() == 3));
    // New shards go elsewhere.
    let made = CreateKeyspace {
        request: wish(9, Course::Stop(1)).request,
        name: "k".into(),
        sharding: Sharding::Hash,
        shards: 4,
        replicas: None,
    };
    let made = keyspace::make(stage.store(), &made, None, true).unwrap();
    let topology = stage.topology();
    assert!(made.shards.iter().all(|shard| !topology.shards[shard].replicas.contains(&NodeId(1))));
}

#[test]
fn what_has_nowhere_to_go_is_refused_or_waits() {
    let stage = Stage::new(3);
    let refused = stage.begin(1, Course::Drain(NodeId(1))).unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    assert!(refused.hint.unwrap().starts_with("Add a node"));
    assert!(!stage.topology().nodes[&NodeId(1)].draining && stage.store().courses().unwrap().is_empty());
    let stage = Stage::new(5);
    let id = stage.begin(1, Course::Drain(NodeId(1))).unwrap();
    for node in [NodeId(4), NodeId(5)] {
        stage.store().put_node(&Node { draining: true, ..stage.topology().nodes[&node].clone() }).unwrap();
    }
    let left = stage.left(id);
    let moves = |(_, action): &(GroupId, ReplicaAction)| matches!(action, ReplicaAction::Move { .. });
    assert!(!left.steps.iter().any(moves) && !left.stuck.is_empty(), "{left:?}");
    assert!(left.stuck[0].starts_with("no other node can hold a replica of "), "{left:?}");
}

#[test]
fn what_is_on_its_way_is_left_and_holds_nothing_up() {
    let mut stage = Stage::new(4);
    let mut topology = stage.topology();
    // Node 4, the only one that could take them over, gets two of them already, and says so.
    let groups: Vec<_> = crate::repair::groups(&topology).map(|(group, _)| group).collect();
    let (moving, rest) = groups.split_at(2);
    topology.joining = moving.iter().map(|group| (*group, NodeId(4))).collect();
    let statuses: Vec<_> = moving.iter().map(|group| ReplicaStatus::new(NodeId(4), *group)).collect();
    stage.known.vitals.report(NodeId(4), &statuses, Vec::new(), stage.known.now);
    for group in &groups {
        stage.leaders.learn(*group, Term(9), NodeId(2));
    }
    let Known { vitals, config, now } = &stage.known;
    let scene = Scene { topology: &topology, vitals, config, now: *now };
    let left = left(&Aim::Drain(NodeId(1)), &scene, &stage.leaders);
    assert_eq!((left.moving, left.stuck.as_slice()), (2, &[][..]));
    let steps: Vec<_> = left.steps.iter().map(|(group, _)| *group).collect();
    assert_eq!(steps, rest);
}

#[test]
fn a_node_is_removed_once_it_was_listened_for_in_vain() {
    let mut stage = Stage::new(5);
    let said = |stage: &Stage, seconds| {
        let (known, topology) = (&stage.known, stage.topology());
        let now = known.now + Duration::from_secs(seconds);
        let known = Known { vitals: known.vitals.clone(), config: known.config.clone(), now };
        let refused = check_removal(&topology, NodeId(5), &known).err();
        refused.map(|error| (error.message, error.hint.unwrap()))
    };
    let (message, hint) = said(&stage, 3).unwrap();
    assert_eq!((message.as_str(), hint.as_str()), ("node 5 is alive", "Stop it first, and wait 10 seconds."));
    assert_eq!(said(&stage, 10), None);
    // A new leader has heard of nobody.
    stage.known.vitals.begin(stage.known.now + Duration::from_secs(1));
    let (message, hint) = said(&stage, 4).unwrap();
    assert!(message.starts_with("node 5 may be alive: "), "{message}");
    assert_eq!(hint, "Try again in 7 seconds.");
    assert_eq!(said(&stage, 11), None);
}

#[test]
fn the_coordinator_does_without_a_replica_that_has_nowhere_to_go() {
    let mut stage = Stage::new(5);
    stage.store().put_coordinators(&ids(&[1, 2, 3, 4, 5])).unwrap();
    stage.report(5);
    let id = stage.begin(1, Course::Drain(NodeId(2))).unwrap();
    let done = stage.work_off(id, 5);
    assert_eq!(done.last(), Some(&(GroupId::COORDINATOR.0, ReplicaAction::Remove(NodeId(2)))));
    assert_eq!(stage.topology().coordinators, ids(&[1, 3, 4, 5]));
}

#[test]
fn a_shard_is_moved_to_the_nodes_that_are_named() {
    let mut stage = Stage::new(5);
    let shard = |stage: &Stage| {
        let topology = stage.topology();
        let id = topology.keyspace_named("main").unwrap().shards[0];
        topology.shards[&id].clone()
    };
    let from = shard(&stage).replicas;
    let to = ids(&[4, 5, 3]);
    let wished =
        |shard: &str, to: &[NodeId]| Course::Move { shard: shard.into(), from: None, to: to.to_vec() };
    assert_eq!(stage.begin(1, wished("main/-70", &to)).unwrap_err().sqlstate, SqlState::UNDEFINED_OBJECT);
    for wrong in [ids(&[4, 5]), ids(&[4, 4, 5])] {
        let refused = stage.begin(1, wished("main/-80", &wrong)).unwrap_err();
        assert_eq!(refused.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    }
    assert_eq!(
        stage.begin(1, wished("main/-80", &ids(&[4, 5, 9]))).unwrap_err().sqlstate,
        SqlState::UNDEFINED_OBJECT
    );
    let id = stage.begin(1, wished("main/-80", &to)).unwrap();
    let other = stage.begin(2, Course::Count { keyspace: "main".into(), replicas: 5 }).unwrap_err();
    assert_eq!(other.sqlstate, SqlState::OBJECT_IN_USE);
    let done = stage.work_off(id, 5);
    let moves = done.iter().filter(|(_, action)| matches!(action, ReplicaAction::Move { .. })).count();
    assert_eq!(moves, 2, "from {from:?}: {done:?}");
    let mut now = shard(&stage).replicas;
    now.sort_unstable();
    assert_eq!(now, ids(&[3, 4, 5]));
    assert_eq!(stage.begin(3, Course::Stop(id)), Ok(0));
    assert_eq!(stage.begin(3, Course::Stop(id)), Ok(0), "it was stopped");
    assert_eq!(stage.begin(4, Course::Stop(id)).unwrap_err().sqlstate, SqlState::UNDEFINED_OBJECT);
    assert_eq!(stage.begin(1, wished("main/-80", &to)), Ok(id), "its wish was taken in");
}

#[test]
fn one_replica_is_moved_and_the_others_stay() {
    let mut stage = Stage::new(5);
    stage.store().put_node(&Node { draining: true, ..stage.topology().nodes[&NodeId(5)].clone() }).unwrap();
    let wished =
        |from, to: &[u64]| Course::Move { shard: "main/-80".into(), from: Some(NodeId(from)), to: ids(to) };
    for (from, to, message) in [
        (2, &[4, 5][..], "node 5 is being drained"),
        (2, &[4, 4], "what node 2 has of main/-80 is moved to one node, not to 2"),
        (4, &[4], "node 4 has no replica of main/-80"),
        (2, &[3], "node 3 has a replica of main/-80 already"),
    ] {
        assert_eq!(stage.begin(1, wished(from, to)).unwrap_err().message, message);
    }
    let shard = |stage: &Stage| {
        let topology = stage.topology();
        topology.shards[&topology.keyspace_named("main").unwrap().shards[0]].clone()
    };
    let before = shard(&stage).replicas;
    assert_eq!(before.len(), 3);
    let wish = wish(1, wished(2, &[4]));
    let plan = stage.wish(&CourseWish { dry_run: true, ..wish.clone() }).unwrap();
    let to: Vec<_> = before.iter().map(|node| if *node == NodeId(2) { NodeId(4) } else { *node }).collect();
    let moves = PlannedMove { group: shard(&stage).group, from: before.clone(), to: to.clone() };
    let what = "move main/-80 to nodes 1, 3, 4".to_owned();
    assert_eq!(plan, CoursePlan { course: None, what, moves: Some(moves) });
    assert_eq!(stage.store().courses().unwrap(), [], "a dry run begins nothing");
    let begun = stage.wish(&wish).unwrap();
    let id = begun.course.unwrap();
    assert_eq!(begun, CoursePlan { course: Some(id), ..plan });
    assert_eq!(stage.wish(&wish), Ok(begun), "it is under way");
    let done = stage.work_off(id, 5);
    let moves = done.iter().filter(|(_, action)| matches!(action, ReplicaAction::Move { .. }));
    assert_eq!(moves.count(), 1, "{done:?}");
    let (mut now, mut to) = (shard(&stage).replicas, to);
    now.sort_unstable();
    to.sort_unstable();
    assert_eq!(now, to);
}

#[test]
fn a_dry_run_changes_nothing() {
    let stage = Stage::new(6);
    let courses = [
        Course::Drain(NodeId(1)),
        Course::Count { keyspace: "main".into(), replicas: 5 },
        Course::Undrain(NodeId(1)),
    ];
    let before = stage.topology();
    for course in courses {
        let wish = CourseWish { dry_run: true, ..wish(1, course) };
        assert_eq!(stage.wish(&wish).unwrap().course, None);
        assert_eq!((stage.topology(), stage.store().courses().unwrap()), (before.clone(), Vec::new()));
        assert_eq!(stage.store().answer(wish.request).unwrap(), None);
    }
}

#[test]
fn shards_get_more_replicas_or_fewer() {
    let mut stage = Stage::new(5);
    let count = |replicas| Course::Count { keyspace: "main".into(), replicas };
    for replicas in [0, 6] {
        assert_eq!(stage.begin(1, count(replicas)).unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    }
    let id = stage.begin(1, count(5)).unwrap();
    assert_eq!(stage.topology().keyspace_named("main").unwrap().replicas, 5);
    assert_eq!(stage.work_off(id, 5).len(), 4);
    stage.begin(2, Course::Stop(id)).unwrap();
    let id = stage.begin(3, count(2)).unwrap();
    let done = stage.work_off(id, 5);
    assert_eq!(done.iter().filter(|(_, action)| matches!(action, ReplicaAction::Remove(_))).count(), 6);
    let topology = stage.topology();
    let main = topology.keyspace_named("main").unwrap();
    assert!(main.shards.iter().all(|shard| topology.shards[shard].replicas.len() == 2));
    // Who leads stays.
    for shard in &main.shards {
        let shard = &topology.shards[shard];
        assert!(shard.replicas.contains(&stage.leaders.get(shard.group).unwrap()));
    }
}

/// Nobody has to wait for a course that is stuck.
#[test]
fn a_later_wish_for_the_same_takes_the_place_of_the_earlier_one() {
    let stage = Stage::new(6);
    let count = |replicas| Course::Count { keyspace: "main".into(), replicas };
    let one = stage.begin(1, count(5)).unwrap();
    let other = stage.begin(2, count(3)).unwrap();
    let aims = |stage: &Stage| stage.store().courses().unwrap().into_iter().map(|c| c.id).collect::<Vec<_>>();
    assert_eq!(aims(&stage), [other]);
    assert_eq!(stage.topology().keyspace_named("main").unwrap().replicas, 3);
    assert_eq!(stage.begin(1, count(5)), Ok(one), "that wish was taken in before");
    assert_eq!(aims(&stage), [other]);
    let moved = |to: &[u64]| Course::Move { shard: "single/-".into(), from: None, to: ids(to) };
    stage.begin(3, moved(&[4, 5, 6])).unwrap();
    let back = stage.begin(4, moved(&[1, 2, 3])).unwrap();
    assert_eq!(aims(&stage), [other, back]);
    let refused = stage.begin(5, Course::Count { keyspace: "single".into(), replicas: 5 }).unwrap_err();
    assert!(refused.hint.unwrap().contains("to where it is"));
}

#[test]
fn a_node_is_drained_once_nothing_is_on_its_way_there() {
    let mut stage = Stage::new(5);
    let group = stage.topology().shards.values().find(|s| !s.replicas.contains(&NodeId(5))).unwrap().group;
    let members = stage.topology().shards.values().find(|s| s.group == group).unwrap().replicas.clone();
    replicas::needed(stage.store(), group, ReplicaAction::Add(NodeId(5)), "a test", &stage.known).unwrap();
    assert_eq!(stage.topology().joining, [(group, NodeId(5))]);
    let id = stage.begin(1, Course::Drain(NodeId(5))).unwrap();
    let left = |stage: &Stage| stage.left(id);
    while let Some((group, _)) = left(&stage).steps.first().copied() {
        let topology = stage.topology();
        let shard = topology.shards.values().find(|shard| shard.group == group).unwrap().clone();
        let replicas = shard.replicas.iter().map(|node| if *node == NodeId(5) { NodeId(4) } else { *node });
        stage.store().put_shard(&Shard { replicas: replicas.collect(), ..shard }).unwrap();
    }
    stage.report(5);
    assert!(left(&stage).comes[0].ends_with("is on its way there"), "{:?} {members:?}", left(&stage));
}

#[test]
fn a_node_is_removed_that_holds_nothing_and_is_silent() {
    let mut stage = Stage::new(6);
    let remove = |stage: &Stage, sequence, node| stage.begin(sequence, Course::Remove(NodeId(node)));
    let hint = |error: WireError| error.hint.unwrap();
    assert!(hint(remove(&stage, 1, 1).unwrap_err()).contains("shoal node drain 1"));
    assert!(hint(remove(&stage, 1, 6).unwrap_err()).contains("Stop it first"));
    assert_eq!(remove(&stage, 1, 9).unwrap_err().sqlstate, SqlState::UNDEFINED_OBJECT);
    stage.begin(2, Course::Drain(NodeId(6))).unwrap();
    stage.known.now += stage.known.config.silent_after;
    assert_eq!(remove(&stage, 3, 6), Ok(0));
    assert_eq!(remove(&stage, 3, 6), Ok(0));
    assert!(!stage.topology().nodes.contains_key(&NodeId(6)));
    assert_eq!(stage.store().courses().unwrap(), [], "nothing is left to be drained");
}

#[test]
fn a_mark_is_taken_away_and_with_it_what_was_left() {
    let stage = Stage::new(5);
    let id = stage.begin(1, Course::Drain(NodeId(2))).unwrap();
    assert_eq!(stage.begin(2, Course::Undrain(NodeId(2))), Ok(0));
    assert_eq!(stage.begin(2, Course::Undrain(NodeId(2))), Ok(0));
    assert!(!stage.topology().nodes[&NodeId(2)].draining);
    assert_eq!(stage.store().courses().unwrap(), []);
    assert_eq!(stage.begin(1, Course::Drain(NodeId(2))), Ok(id), "that wish was taken in before");
    assert!(!stage.topology().nodes[&NodeId(2)].draining);
}

#[test]
fn a_course_is_kept_as_it_is() {
    let request = wish(3, Course::Stop(1)).request;
    for aim in [Aim::Drain(NodeId(4)), Aim::Count(KeyspaceNumber(2), 3), Aim::Move(GroupId(5), ids(&[1, 2]))]
    {
        let record = Record { id: 9, request, what: "a test".into(), aim };
        assert_eq!(Record::read(&record.bytes()).unwrap(), record);
    }
}
