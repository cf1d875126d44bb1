use super::super::record::Which;
use super::*;
use crate::admit::{self, Admission};
use crate::config::Config;
use crate::keyspace;
use crate::nodes::register;
use crate::replica_job::Course;
use crate::replicas;
use crate::vitals::Vitals;
use proto::services::{
    Course as WishedCourse, CourseWish, CreateKeyspace, Reached, ReplicaAction, ReplicaChange, ReplicaStatus,
    ReplicaTarget, ReshardCourse, ReshardOptions, SchemaChange, SchemaChangeRequest, SplitAt,
};
use proto::topology::{Node, Roles, Sharding};
use proto::{RequestId, RouterIncarnation, SchemaVersion, TableId};
use rusqlite::Connection;
use std::time::{Duration, Instant};

/// The coordinator's tables, as one connection sees them: `main` has `-80` and `80-` on three of four nodes.
struct Stage {
    connection: Connection,
    known: Known,
}

impl Stage {
    fn new() -> Stage {
        let mut config = Config::new(NodeId(1), (1..=4).map(NodeId).collect());
        config.replicas = 3;
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&crate::store::init(&config).join(";")).unwrap();
        let now = Instant::now();
        let mut vitals = Vitals::new(now);
        vitals.begin(now);
        let stage = Stage { connection, known: Known { vitals, config, now } };
        for id in (1..=4).map(NodeId) {
            let (address, zone) = (format!("{id}"), String::new());
            let node = Node { id, address, roles: Roles::ALL, zone, draining: false };
            register(stage.store(), &node, None, &stage.known.config).unwrap();
        }
        for shard in stage.store().shards().unwrap().into_values() {
            stage.store().put_shard(&Shard { formed: true, ..shard }).unwrap();
        }
        stage.alive()
    }

    /// All replicas that there are to be are there.
    fn alive(mut self) -> Stage {
        let now = self.known.now;
        for node in (1..=4).map(NodeId) {
            let shards = self.store().shards().unwrap().into_values();
            let held = shards.filter(|shard| shard.replicas.contains(&node)).map(|shard| shard.group);
            let statuses: Vec<_> = held.map(|group| ReplicaStatus::new(node, group)).collect();
            self.known.vitals.report(node, &statuses, Vec::new(), now);
        }
        self
    }

    fn store(&self) -> Store<'_> {
        Store(&self.connection)
    }

    fn topology(&self) -> Topology {
        self.store().topology().unwrap()
    }

    /// The shards that serve, by name and incarnation.
    fn serving(&self) -> Vec<String> {
        let topology = self.topology();
        let keyspace = topology.keyspace_named("main").unwrap();
        let name = |id: &ShardId| topology.gtid_source(*id).unwrap();
        let word = |source: GtidSource| format!("{}.{}", source.shard, source.incarnation.0);
        keyspace.shards.iter().map(name).map(word).collect()
    }

    fn begin(&self, wish: &ReshardWish) -> Result<ReshardPlan> {
        begin(self.store(), wish, &self.known, &Leaders::default())
    }

    fn record(&self, id: u64) -> Record {
        self.store().reshard(ReshardId(id)).unwrap().unwrap()
    }

    fn tell(&self, sequence: u64, id: u64, told: ReshardCommand) -> Result<()> {
        command(self.store(), request(sequence), ReshardId(id), told).unwrap()
    }

    fn step(&self, id: u64, step: Step) -> Record {
        let due = match step {
            Step::Command(_) => None,
            _ => Some(self.record(id).version),
        };
        take(self.store(), ReshardId(id), &step, due).unwrap()
    }

    fn held(&self, parts: &[super::super::record::Part]) -> Vec<(GroupId, LogIndex)> {
        parts.iter().map(|part| (part.group, LogIndex(5))).collect()
    }

    /// Has a reshard come to where it could switch.
    fn bring_to_ready(&self, id: u64) -> Record {
        self.step(id, Step::Turn);
        self.step(id, Step::Placed);
        let held = self.held(&self.record(id).old.parts);
        for step in [Step::Still { held }, Step::Imaged, Step::Copied, Step::Founded, Step::Spread] {
            self.step(id, step);
        }
        self.step(id, Step::CaughtUp)
    }

    /// Has the other side serve: each old shard ends at entry 90, each new one begins at 12.
    fn switch(&self, id: u64, command: ReshardCommand) -> Record {
        self.step(id, Step::Command(command));
        let held = self.held(self.record(id).targets());
        let record = self.step(id, Step::Begin { held });
        let sources: Vec<_> = record.sources().iter().map(|source| (source.shard, LogIndex(90))).collect();
        let reached = Reached { first: LogIndex(12), sources };
        let reached = record.targets().iter().map(|target| (target.shard, reached.clone())).collect();
        self.step(id, Step::Decide { reached, ended: 0, pause: Duration::from_millis(40) })
    }

    fn change_schema(&self) -> Result<Admission> {
        let request = SchemaChangeRequest {
            request: request(99),
            planned_by: SchemaVersion(1),
            change: SchemaChange::DropTables(vec![TableId(16_384)]),
        };
        admit::change(self.store(), &request)
    }
}

fn request(sequence: u64) -> RequestId {
    RequestId { router: RouterIncarnation(7), sequence }
}

fn split(sequence: u64, shard: &str) -> ReshardWish {
    let course = ReshardCourse::Split { shard: shard.into(), at: SplitAt::Evenly(2) };
    let options = ReshardOptions { verify: false, ..ReshardOptions::default() };
    ReshardWish { request: request(sequence), course, options, dry_run: false }
}

#[test]
fn a_switch_changes_who_serves_and_what_goes_on_where_in_one_write() {
    let stage = Stage::new();
    let plan = stage.begin(&split(1, "main/-80")).unwrap();
    assert_eq!(plan.reshard, Some(ReshardId(1)));
    assert_eq!(stage.topology().reshards, [], "no node has a part in it yet");
    stage.step(1, Step::Turn);
    stage.step(1, Step::Placed);
    let build = stage.topology().reshards[0].build.clone().unwrap();
    assert_eq!((build.node, build.tries), (plan.builder, 1));
    let stage = Stage::new();
    stage.begin(&split(1, "main/-80")).unwrap();
    let record = stage.bring_to_ready(1);
    let topology = stage.topology();
    assert_eq!(topology.reshards[0].flows.len(), 2);
    for part in &record.new.parts {
        let shard = &topology.shards[&part.shard];
        assert_eq!((shard.group, &shard.range, shard.formed), (part.group, &part.range, true));
        assert_eq!(shard.replicas, [record.builder], "the others come later");
        assert!(!topology.serves(part.shard));
    }
    assert_eq!(stage.serving(), ["-80.1", "80-.1"]);

    let before = stage.store().epoch().unwrap();
    let record = stage.switch(1, ReshardCommand::Switch);
    assert_eq!(stage.store().epoch().unwrap().0, before.0 + 2, "an attempt begins, and is decided");
    assert_eq!(stage.serving(), ["-40.1", "40-80.1", "80-.1"]);
    let topology = stage.topology();
    let old = &record.old.parts[0];
    assert_eq!(topology.heirs(old.shard), record.new.parts.iter().map(|part| part.shard).collect::<Vec<_>>());
    assert_eq!(topology.shards[&record.new.parts[0].shard].first, LogIndex(12));
    let source = topology.gtid_source(old.shard).unwrap();
    assert_eq!(topology.lineage[&source].last, LogIndex(90));

    // There and back: the old group serves under another id and name.
    let record = stage.switch(1, ReshardCommand::Reverse);
    assert_eq!(stage.serving(), ["-80.2", "80-.1"]);
    let topology = stage.topology();
    assert_eq!(topology.lineage.len(), 3);
    assert!(!topology.shards.contains_key(&old.shard), "it has another id now");
    assert_eq!(topology.heirs(old.shard), [record.old.parts[0].shard]);
    let record = stage.switch(1, ReshardCommand::Switch);
    assert_eq!(stage.serving(), ["-40.2", "40-80.2", "80-.1"]);
    stage.step(1, Step::Command(ReshardCommand::Complete));
    let topology = stage.topology();
    assert_eq!(topology.shards.values().filter(|shard| shard.keyspace == record.keyspace).count(), 3);
    assert_eq!(topology.heirs(old.shard).len(), 2);
    assert_eq!(stage.step(1, Step::End).phase, ReshardPhase::Ended);
    assert_eq!(stage.topology().reshards, []);
    // The next of the name has a name of its own.
    stage.begin(&split(2, "main/-40")).unwrap();
    assert!(stage.record(2).new.parts.iter().all(|part| part.incarnation == Incarnation(2)));
}

#[test]
fn a_wish_is_answered_alike_whenever_it_comes_again() {
    let stage = Stage::new();
    let dry = ReshardWish { dry_run: true, ..split(1, "main/-80") };
    let told = stage.begin(&dry).unwrap();
    assert_eq!((told.reshard, stage.store().reshards().unwrap()), (None, Vec::new()));
    let begun = stage.begin(&split(2, "main/-80")).unwrap();
    assert_eq!(begun, ReshardPlan { reshard: Some(ReshardId(1)), ..told });
    assert_eq!(stage.begin(&split(2, "main/-80")).unwrap(), begun);
    assert_eq!(stage.begin(&split(3, "main/-80")).unwrap_err().sqlstate, SqlState::OBJECT_IN_USE);
    stage.bring_to_ready(1);
    assert_eq!(stage.begin(&split(2, "main/-80")).unwrap(), begun);
    let unknown = stage.tell(10, 9, ReshardCommand::Pause).unwrap_err();
    assert_eq!(
        (unknown.sqlstate, unknown.message),
        (SqlState::UNDEFINED_OBJECT, "reshard 9 does not exist".into())
    );
    assert!(stage.tell(11, 1, ReshardCommand::Complete).is_err());
}

/// Who isn't answered sends a command again, elsewhere. The first copy may come much later.
#[test]
fn a_command_is_done_once_however_late_a_copy_of_it_comes() {
    let stage = Stage::new();
    stage.begin(&split(1, "main/-80")).unwrap();
    stage.bring_to_ready(1);
    assert!(stage.tell(2, 1, ReshardCommand::Complete).is_err());
    assert_eq!(stage.tell(3, 1, ReshardCommand::Switch), Ok(()));
    stage.switch(1, ReshardCommand::Switch);
    assert!(stage.tell(2, 1, ReshardCommand::Complete).is_err(), "it was refused");
    stage.switch(1, ReshardCommand::Reverse);
    let before = stage.record(1);
    assert!(!before.wanted);
    assert_eq!(stage.tell(3, 1, ReshardCommand::Switch), Ok(()));
    assert_eq!(stage.record(1), before);
    assert_eq!(stage.tell(4, 1, ReshardCommand::Switch), Ok(()));
    assert!(stage.record(1).wanted);
}

/// The course would wait for the reshard, and the reshard for the course.
#[test]
fn a_reshard_that_has_not_begun_is_in_nobodys_way() {
    let stage = Stage::new();
    stage.begin(&split(1, "main/-80")).unwrap();
    let groups = stage.record(1).groups(Which::Old);
    let course = CourseWish {
        request: request(2),
        course: WishedCourse::Count { keyspace: "main".into(), replicas: 4 },
        dry_run: false,
    };
    course::begin(stage.store(), &course, &stage.known, &Leaders::default()).unwrap();
    let why = "have 4 replicas in main, which is under way, comes first";
    assert_eq!(stage.store().comes_first(&groups), Ok(Some(why.to_owned())));
    assert_eq!(of_group(stage.store(), groups[0]), Ok(None));
    let course = CourseWish { request: request(3), course: WishedCourse::Stop(1), ..course };
    course::begin(stage.store(), &course, &stage.known, &Leaders::default()).unwrap();
    stage.step(1, Step::Turn);
    assert_eq!(of_group(stage.store(), groups[0]), Ok(Some(ReshardId(1))));
    stage.step(1, Step::Command(ReshardCommand::Cancel));
    stage.step(1, Step::End);
    assert_eq!(of_group(stage.store(), groups[0]), Ok(None));
}

#[test]
fn two_build_at_a_time_and_nobody_else_touches_their_groups() {
    let stage = Stage::new();
    for (id, shard) in [(1, "main/-80"), (2, "main/80-"), (3, "single/-")] {
        let at = SplitAt::Bounds(vec![vec![0xc0]]);
        let course = match id {
            2 => ReshardCourse::Split { shard: shard.into(), at },
            _ => split(id, shard).course,
        };
        let begun = stage.begin(&ReshardWish { course, ..split(id, shard) });
        assert_eq!(begun.is_ok(), id < 3);
    }
    let groups = [stage.record(1).old.parts[0].group];
    let comes_first = |groups: &[GroupId]| stage.store().comes_first(groups).unwrap();
    assert_eq!(comes_first(&groups), None);
    let change = |sequence, group| {
        let target = ReplicaTarget::Group(group);
        let members = &stage.store().shards().unwrap();
        let shard = members.values().find(|shard| shard.group == group).unwrap().clone();
        let action = ReplicaAction::TransferLeader(shard.replicas[0]);
        let change = ReplicaChange { request: request(sequence), target, action };
        replicas::change(stage.store(), &change, &stage.known)
    };
    let Ok(Admission::Running(job)) = change(20, groups[0]) else { panic!("nothing is in its way") };
    assert!(comes_first(&groups).unwrap().starts_with("have node "), "its replicas are being changed");
    assert!(!stage.store().is_quiet(KeyspaceNumber(1), &groups).unwrap());
    replicas::advance(stage.store(), job, 0).unwrap();
    assert!(stage.store().is_quiet(KeyspaceNumber(1), &groups).unwrap());
    stage.step(1, Step::Turn);
    assert_eq!(change(21, groups[0]), Ok(Admission::Wait), "it may be what the builder needs");
    stage.step(2, Step::Turn);
    assert_eq!(comes_first(&[GroupId(77)]).unwrap(), "reshards 1 and 2 build, which come first");
    stage.step(1, Step::Command(ReshardCommand::Cancel));
    assert_eq!(comes_first(&[GroupId(77)]), None);
    assert!(matches!(change(22, groups[0]), Ok(Admission::Running(_))));
}

#[test]
fn schema_changes_wait_for_images_and_attempts_and_come_one_by_one_between() {
    let stage = Stage::new();
    stage.begin(&split(1, "main/-80")).unwrap();
    let is_taken = || !matches!(stage.change_schema(), Ok(Admission::Wait));
    stage.step(1, Step::Turn);
    stage.step(1, Step::Placed);
    assert!(is_taken(), "images haven't begun");
    let held = stage.held(&stage.record(1).old.parts);
    stage.step(1, Step::Still { held });
    assert!(!is_taken());
    assert!(!stage.store().busy().unwrap().0);
    stage.step(1, Step::Imaged);
    assert!(is_taken());
    // Another one is under way.
    let job = crate::job::Job::new(50, request(50), None, Vec::new());
    stage.store().put_job(&job).unwrap();
    assert!(!is_taken());
    stage.store().end_job(&job, &Ok(1)).unwrap();
    for step in [Step::Copied, Step::Founded, Step::Spread, Step::CaughtUp] {
        stage.step(1, step);
    }
    assert!(is_taken());
    stage.step(1, Step::Command(ReshardCommand::Switch));
    let held = stage.held(&stage.record(1).new.parts);
    stage.store().put_job(&job).unwrap();
    let record = stage.record(1);
    let early = take(stage.store(), record.id, &Step::Begin { held: held.clone() }, Some(record.version));
    assert_eq!(early.unwrap_err().retry, proto::Retry::Later, "an attempt waits, too");
    stage.store().end_job(&job, &Ok(1)).unwrap();
    stage.step(1, Step::Begin { held });
    assert!(!is_taken());
    let wish = CreateKeyspace {
        request: request(51),
        name: "other".into(),
        sharding: Sharding::Hash,
        shards: 2,
        replicas: None,
    };
    assert_eq!(admit::keyspace(stage.store(), &wish), Ok(Admission::Wait));
    let group = record.new.parts[0].group;
    assert!(has_replicas_wait(stage.store(), group, true).unwrap());
    stage.step(1, Step::GiveUp("a test".into()));
    assert!(!is_taken());
    stage.step(1, Step::Undone);
    assert!(is_taken() && !has_replicas_wait(stage.store(), group, false).unwrap());
}

#[test]
fn a_keyspace_that_is_dropped_takes_its_reshards_along_and_leaves_its_names() {
    let stage = Stage::new();
    let make = |sequence| {
        let wish = CreateKeyspace {
            request: request(sequence),
            name: "t".into(),
            sharding: Sharding::Hash,
            shards: 2,
            replicas: None,
        };
        let made = keyspace::make(stage.store(), &wish, None, true).unwrap();
        for id in &made.shards {
            let shard = stage.store().found(*id).unwrap();
            stage.store().put_shard(&Shard { formed: true, ..shard }).unwrap();
        }
        made
    };
    let first = make(1);
    stage.begin(&split(2, "t/-80")).unwrap();
    stage.bring_to_ready(1);
    stage.switch(1, ReshardCommand::Switch);
    stage.switch(1, ReshardCommand::Reverse);
    stage.begin(&split(3, "t/80-")).unwrap();
    assert_eq!(stage.topology().lineage.len(), 3);
    let group = stage.record(1).new.parts[0].group;
    let course = Course::Voters { steps: vec![vec![NodeId(4)]], joining: Some(NodeId(4)) };
    let job = ReplicaJob::new(60, request(60), group, "a test".into(), &[], course);
    stage.store().put_replica_job(&job).unwrap();
    assert_eq!(stage.topology().joining, [(group, NodeId(4))]);
    stage.store().drop_keyspace(first.number).unwrap();
    for id in [1, 2] {
        let record = stage.record(id);
        assert_eq!(record.phase, ReshardPhase::Cancelling);
        assert_eq!(record.failed.as_deref(), Some("its keyspace was dropped"));
        stage.step(id, Step::End);
    }
    let topology = stage.topology();
    assert!(topology.lineage.is_empty() && topology.reshards.is_empty() && topology.joining.is_empty());
    assert!(topology.shards.values().all(|shard| shard.keyspace != first.number));
    // `t/-80` has had two incarnations.
    let second = make(4);
    for id in &second.shards {
        assert_eq!(stage.topology().shards[id].incarnation, Incarnation(3));
    }
    stage.begin(&split(5, "t/-80")).unwrap();
    assert!(stage.record(3).new.parts.iter().all(|part| part.incarnation == Incarnation(3)));
}

#[test]
fn the_last_hundred_that_have_ended_are_remembered() {
    let stage = Stage::new();
    for id in 1..=103 {
        stage.begin(&split(id, "main/-80")).unwrap();
        stage.step(id, Step::Command(ReshardCommand::Cancel));
        if id > 1 {
            stage.step(id, Step::End);
        }
        if id == 1 {
            // It stays, for it hasn't ended.
            assert!(stage.begin(&split(200, "main/-80")).is_err());
            let record = Record {
                old: super::super::record::Side { parts: Vec::new(), served: true },
                ..stage.record(1)
            };
            stage.store().put_reshard(&record).unwrap();
        }
    }
    let kept: Vec<_> = stage.store().reshards().unwrap().iter().map(|record| record.id.0).collect();
    assert_eq!(kept, [1].into_iter().chain(4..=103).collect::<Vec<_>>());
}
