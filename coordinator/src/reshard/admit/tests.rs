use super::*;
use crate::config::Config;
use crate::reshard::record::Which;
use crate::vitals::Vitals;
use proto::gtid::GtidSource;
use proto::services::ReplicaStatus;
use proto::topology::{Node, Retired, Roles};
use proto::{RequestId, RouterIncarnation, Term};
use std::time::{Duration, Instant};

struct Stage {
    topology: Topology,
    vitals: Vitals,
    config: Config,
    leaders: Leaders,
    reshards: Vec<Record>,
    now: Instant,
}

struct Numbers(u64);

impl Ledger for Numbers {
    fn shard(&mut self) -> Result<ShardId> {
        self.0 += 1;
        Ok(ShardId(self.0))
    }

    fn group(&mut self) -> Result<GroupId> {
        self.0 += 1;
        Ok(GroupId(self.0))
    }

    fn lacking(&self, _: NodeId, _: &[GroupId]) -> Result<Vec<GroupId>> {
        Ok(Vec::new())
    }

    fn comes_first(&self, _: &[GroupId]) -> Result<Option<String>> {
        Ok(None)
    }

    fn is_quiet(&self, _: KeyspaceNumber, _: &[GroupId]) -> Result<bool> {
        Ok(true)
    }
}

fn range(name: &str) -> KeyRange {
    KeyRange::parse(name).unwrap()
}

impl Stage {
    /// Nodes 1 to 4, all alive. `main` has shards 1 and 2 (`-80`, `80-`) on nodes 1 to 3, `single` has shard 3, and `t`, which
    /// is sharded by range, has shard 4. Node 1 leads all of them.
    fn new() -> Stage {
        let now = Instant::now();
        let mut topology = Topology { coordinators: vec![NodeId(1)], ..Topology::default() };
        let mut vitals = Vitals::new(now);
        vitals.begin(now);
        for id in (1..=4).map(NodeId) {
            let (address, zone) = (String::new(), String::new());
            let node = Node { id, address, roles: Roles::ALL, zone, draining: false };
            topology.nodes.insert(id, node);
            vitals.report(id, &[ReplicaStatus::new(id, GroupId(1))], Vec::new(), now);
        }
        let mut leaders = Leaders::default();
        let keyspaces = [
            ("main", Sharding::Hash, &["-80", "80-"][..]),
            ("single", Sharding::Single, &["-"]),
            ("t", Sharding::Range, &["-"]),
        ];
        for (number, (name, sharding, ranges)) in (1..).map(KeyspaceNumber).zip(keyspaces) {
            let mut shards = Vec::new();
            for name in ranges {
                let id = ShardId(topology.shards.len() as u64 + 1);
                let group = GroupId(id.0 + 1);
                leaders.learn(group, Term(1), NodeId(1));
                shards.push(id);
                let shard = Shard {
                    id,
                    keyspace: number,
                    range: range(name),
                    incarnation: Incarnation(1),
                    group,
                    replicas: [1, 2, 3].map(NodeId).to_vec(),
                    formed: true,
                    first: LogIndex(0),
                };
                topology.shards.insert(id, shard);
            }
            let keyspace =
                Keyspace { number, name: name.to_owned(), sharding, replicas: 3, shards, auto: None };
            topology.keyspaces.insert(number, keyspace);
        }
        let config = Config::new(NodeId(1), vec![NodeId(1)]);
        Stage { topology, vitals, config, leaders, reshards: Vec::new(), now }
    }

    fn plan(&self, wish: &ReshardWish) -> Result<Plan> {
        let Stage { topology, vitals, config, leaders, reshards, now } = self;
        let scene = Scene { topology, vitals, config, now: *now };
        Place { scene, leaders, reshards }.plan(wish)
    }

    /// What it comes to: in words, and who builds and holds.
    fn told(&self, wish: &ReshardWish) -> (String, u64, Vec<Vec<u64>>) {
        let plan = self.plan(wish).unwrap().told(None);
        let nodes = |nodes: &Vec<NodeId>| nodes.iter().map(|node| node.0).collect();
        (plan.what, plan.builder.0, plan.shards.iter().map(|(_, held)| nodes(held)).collect())
    }

    /// Why it's refused.
    fn refused(&self, wish: &ReshardWish) -> (&'static str, String) {
        let error = self.plan(wish).unwrap_err();
        let states = [
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            SqlState::OBJECT_IN_USE,
            SqlState::UNDEFINED_OBJECT,
        ];
        let names = ["22023", "55000", "55006", "42704"];
        let at = states.iter().position(|state| *state == error.sqlstate).unwrap();
        (names[at], error.message)
    }

    fn begin(&mut self, wish: &ReshardWish) -> Record {
        let id = ReshardId(self.reshards.len() as u64 + 7);
        let plan = self.plan(wish).unwrap();
        let record = plan.begin(id, wish, &self.topology, &mut Numbers(100)).unwrap();
        self.reshards.push(record.clone());
        record
    }
}

fn wish(course: ReshardCourse) -> ReshardWish {
    let request = RequestId { router: RouterIncarnation(7), sequence: 1 };
    ReshardWish { request, course, options: ReshardOptions::default(), dry_run: false }
}

fn into(shard: &str, parts: u32) -> ReshardWish {
    wish(ReshardCourse::Split { shard: shard.to_owned(), at: SplitAt::Evenly(parts) })
}

fn at(shard: &str, bounds: &[&[u8]]) -> ReshardWish {
    let bounds = bounds.iter().map(|bound| bound.to_vec()).collect();
    wish(ReshardCourse::Split { shard: shard.to_owned(), at: SplitAt::Bounds(bounds) })
}

fn merge(shards: &[&str]) -> ReshardWish {
    wish(ReshardCourse::Merge { shards: shards.iter().map(|name| name.to_string()).collect() })
}

#[test]
fn a_hash_shard_is_split_evenly_or_at_bounds() {
    let stage = Stage::new();
    let (what, builder, held) = stage.told(&into("main/-80", 2));
    assert_eq!(what, "split main/-80 into main/-40, main/40-80");
    // Node 2 follows, and leads nothing else. Node 4 has nothing yet, node 1 leads all; different ones are to lead these.
    assert_eq!((builder, held), (2, vec![vec![2, 3, 4], vec![3, 4, 1]]));
    assert_eq!(
        stage.told(&into("main/80-", 4)).0,
        "split main/80- into main/80-a0, main/a0-c0, main/c0-e0, main/e0-"
    );
    let (what, ..) = stage.told(&at("main/80-", &[&[0x90, 0, 0], &[0xff, 1]]));
    assert_eq!(what, "split main/80- into main/80-90, main/90-ff01, main/ff01-");
}

#[test]
fn a_range_shard_is_split_at_keys() {
    let stage = Stage::new();
    // Of these each byte counts.
    let (what, ..) = stage.told(&at("t/-", &[&[0x10, 0x80, 0, 0]]));
    assert_eq!(what, "split t/- into t/-10800000, t/10800000-");
    let error = stage.plan(&into("t/-", 2)).unwrap_err();
    assert_eq!(error.message, "keyspace t is sharded by range, so t/- has no middle");
    assert_eq!(error.hint.as_deref(), Some("Say where, with --at or --median."));
}

#[test]
fn what_cant_be_split_is_refused() {
    let stage = Stage::new();
    let refused = |wish: &ReshardWish| stage.refused(wish);
    let is = |state: &'static str, message: &str| (state, message.to_owned());
    assert_eq!(refused(&into("main/-40", 2)), is("42704", "shard \"main/-40\" does not exist"));
    assert_eq!(refused(&into("single/-", 2)), is("55000", "keyspace single has one shard and is not split"));
    assert_eq!(refused(&into("main/-80", 1)), is("22023", "a shard is split into 2 to 16, not 1"));
    assert_eq!(refused(&into("main/-80", 17)), is("22023", "a shard is split into 2 to 16, not 17"));
    assert_eq!(refused(&at("main/-80", &[])), is("22023", "a shard is split into 2 to 16, not 1"));
    for (bounds, wrong) in [
        (&[&[0x80][..]][..], "80: its range is -80"),
        (&[&[0]], ": its range is -80"),
        (&[&[]], ": its range is -80"),
        (&[&[0x40], &[0x40, 0]], "40: bounds are ascending"),
        (&[&[0x40], &[0x20]], "20: bounds are ascending"),
        (&[&[0x90]], "90: its range is -80"),
    ] {
        let expected = is("22023", &format!("main/-80 can't be split at {wrong}"));
        assert_eq!(refused(&at("main/-80", bounds)), expected);
    }
    let long = at("main/-80", &[&[1; 9]]);
    assert_eq!(refused(&long), is("22023", "a bound of a hash keyspace has 8 bytes at most"));
    let mut slow = into("main/-80", 2);
    slow.options.drain = Duration::from_secs(5);
    assert_eq!(refused(&slow), is("22023", "transactions may be waited for for less than 5 seconds"));

    let mut narrow = Stage::new();
    let shard = narrow.topology.shards.get_mut(&ShardId(1)).unwrap();
    shard.range = range("5555555555555554-5555555555555556");
    let name = "main/5555555555555554-5555555555555556";
    assert_eq!(narrow.told(&into(name, 2)).1, 2);
    assert_eq!(narrow.refused(&into(name, 3)).1, format!("{name} is too narrow to be split into 3"));
}

#[test]
fn neighbours_of_one_keyspace_are_merged() {
    let stage = Stage::new();
    let (what, builder, held) = stage.told(&merge(&["main/80-", "main/-80"]));
    assert_eq!(what, "merge main/-80, main/80- into main/-");
    assert_eq!((builder, held), (2, vec![vec![2, 3, 4]]));
    let refused = |shards: &[&str]| stage.refused(&merge(shards)).1;
    assert_eq!(refused(&["main/-80"]), "2 to 16 shards are merged, not 1");
    assert_eq!(refused(&["main/-80", "t/-"]), "main and t are two keyspaces");
    assert_eq!(refused(&["main/-80", "main/-80"]), "main/-80 is named twice");
    assert_eq!(refused(&["main/-80", "main/-"]), "shard \"main/-\" does not exist");

    let mut three = Stage::new();
    let mut third = three.topology.shards[&ShardId(2)].clone();
    (third.id, third.group, third.range) = (ShardId(9), GroupId(10), range("c0-"));
    three.topology.shards.insert(third.id, third);
    three.topology.shards.get_mut(&ShardId(2)).unwrap().range = range("80-c0");
    three.topology.keyspaces.get_mut(&KeyspaceNumber(1)).unwrap().shards.push(ShardId(9));
    let apart = merge(&["main/c0-", "main/-80"]);
    assert_eq!(three.refused(&apart), ("22023", "main/-80 and main/c0- aren't neighbours".to_owned()));
    let (what, ..) = three.told(&merge(&["main/c0-", "main/80-c0", "main/-80"]));
    assert_eq!(what, "merge main/-80, main/80-c0, main/c0- into main/-");
}

#[test]
fn who_has_most_of_it_and_leads_least_builds() {
    let mut stage = Stage::new();
    // Node 4 has one of the two and leads nothing; node 3 has both, and leads one.
    stage.topology.shards.get_mut(&ShardId(2)).unwrap().replicas = [1, 3, 4].map(NodeId).to_vec();
    stage.leaders.learn(GroupId(3), Term(2), NodeId(3));
    let both = merge(&["main/-80", "main/80-"]);
    // Nodes 1 and 3 have both and lead one each; node 1 leads more besides.
    assert_eq!(stage.told(&both).1, 3);
    assert_eq!(stage.told(&into("main/80-", 2)).1, 4, "who follows");
    stage.topology.shards.get_mut(&ShardId(2)).unwrap().replicas = vec![NodeId(3)];
    assert_eq!(stage.told(&into("main/80-", 2)).1, 3, "who leads, if nobody follows");

    let mut chosen = into("main/80-", 2);
    chosen.options.builder = Some(NodeId(1));
    assert_eq!(stage.told(&chosen).1, 1, "though it gets a replica first");
    chosen.options.builder = Some(NodeId(9));
    assert_eq!(stage.refused(&chosen), ("42704", "node 9 does not exist".to_owned()));

    let Stage { topology, vitals, config, leaders, reshards, now } = &stage;
    let scene = Scene { topology, vitals, config, now: *now };
    let place = Place { scene, leaders, reshards };
    assert_eq!(place.builder(&[GroupId(2)], None), Some(NodeId(2)));
    assert_eq!(place.builder(&[GroupId(2)], Some(NodeId(2))), Some(NodeId(3)));

    // Node 2 has just died, or it's the only one.
    let later = *now + Duration::from_secs(4);
    let mut vitals = vitals.clone();
    for id in [1, 3, 4].map(NodeId) {
        vitals.report(id, &[ReplicaStatus::new(id, GroupId(1))], Vec::new(), later);
    }
    let mut few = topology.clone();
    few.nodes.retain(|id, _| *id == NodeId(2));
    for (topology, builder) in [(topology, 3), (&few, 2)] {
        let scene = Scene { topology, vitals: &vitals, config, now: later };
        let place = Place { scene, leaders, reshards };
        assert_eq!(place.builder(&[GroupId(2)], None), Some(NodeId(builder)));
    }
}

#[test]
fn new_shards_are_held_by_who_lives_and_stays() {
    let mut stage = Stage::new();
    let node = |stage: &mut Stage, id, draining| {
        stage.topology.nodes.get_mut(&NodeId(id)).unwrap().draining = draining;
    };
    node(&mut stage, 2, true);
    let (_, builder, held) = stage.told(&into("main/-80", 2));
    assert_eq!((builder, held), (3, vec![vec![3, 4, 1], vec![4, 3, 1]]));
    let mut chosen = into("main/-80", 2);
    chosen.options.nodes = vec![NodeId(2), NodeId(3), NodeId(4)];
    assert_eq!(stage.refused(&chosen), ("55000", "node 2 is being drained".to_owned()));
    node(&mut stage, 2, false);
    assert_eq!(stage.told(&chosen).2, [[2, 3, 4], [3, 4, 2]]);
    chosen.options.nodes = vec![NodeId(3), NodeId(4)];
    let few = "3 replicas need as many nodes, and there are 2";
    assert_eq!(stage.refused(&chosen), ("55000", few.to_owned()));

    // A minute later only two have been heard.
    stage.now += Duration::from_secs(60);
    for id in [1, 2].map(NodeId) {
        stage.vitals.report(id, &[ReplicaStatus::new(id, GroupId(1))], Vec::new(), stage.now);
    }
    assert_eq!(stage.refused(&into("main/-80", 2)), ("55000", few.to_owned()));
    chosen.options.nodes = vec![NodeId(1), NodeId(2), NodeId(4)];
    assert_eq!(stage.refused(&chosen).1, "node 4 has been silent for 60 seconds");
    stage.topology.nodes.get_mut(&NodeId(1)).unwrap().roles.shardnode = false;
    chosen.options.nodes = vec![NodeId(1)];
    assert_eq!(stage.refused(&chosen).1, "node 1 doesn't have the role shardnode");
}

#[test]
fn who_cant_hold_a_new_shard_any_more_is_replaced_and_the_others_stay() {
    let mut stage = Stage::new();
    let record = stage.begin(&into("main/-80", 2));
    let parts = &record.new.parts;
    let again = |stage: &Stage| {
        let Stage { topology, vitals, config, leaders, reshards, now } = stage;
        let scene = Scene { topology, vitals, config, now: *now };
        Place { scene, leaders, reshards }.again(parts, &parts[0])
    };
    assert_eq!(again(&stage), None);
    let before = parts[0].replicas.clone();
    let other = (1..=4).map(NodeId).find(|node| !before.contains(node)).unwrap();
    let after: Vec<_> = before.iter().map(|node| if *node == before[1] { other } else { *node }).collect();
    stage.topology.nodes.get_mut(&before[1]).unwrap().draining = true;
    assert_eq!(again(&stage), Some(after.clone()));
    stage.topology.nodes.remove(&before[1]);
    assert_eq!(again(&stage), Some(after));
    // Nobody is left to take the place.
    stage.topology.nodes.get_mut(&other).unwrap().draining = true;
    assert_eq!(again(&stage), None);
    // Who is silent has some time.
    let mut stage = Stage::new();
    let later = stage.now + stage.config.replace_after;
    for node in (1..=4).map(NodeId).filter(|node| *node != before[0]) {
        stage.vitals.report(node, &[], Vec::new(), later);
    }
    stage.now = later - Duration::from_secs(1);
    assert_eq!(again(&stage), None);
    stage.now = later;
    assert_eq!(again(&stage).unwrap()[1..], before[1..]);
    // A replica that is there already is left where it is.
    let five = Node { id: NodeId(5), ..stage.topology.nodes[&NodeId(4)].clone() };
    stage.topology.nodes.insert(NodeId(5), five);
    stage.vitals.report(NodeId(5), &[], Vec::new(), later);
    for node in [other, NodeId(5)] {
        stage.topology.joining = vec![(parts[0].group, node)];
        assert_eq!(again(&stage).unwrap()[0], node);
    }
}

#[test]
fn a_shard_has_one_reshard_at_a_time() {
    let mut stage = Stage::new();
    let record = stage.begin(&into("main/-80", 2));
    let error = stage.plan(&into("main/-80", 2)).unwrap_err();
    assert_eq!(
        (error.sqlstate, error.message.as_str()),
        (SqlState::OBJECT_IN_USE, "main/-80 is being resharded already")
    );
    let hint = "Reshard 7, planned: \"shoal reshard status 7\" shows it, \"shoal reshard cancel 7\" ends it.";
    assert_eq!(error.hint.as_deref(), Some(hint));
    assert_eq!(stage.refused(&merge(&["main/80-", "main/-80"])).0, "55006");
    assert_eq!(stage.told(&into("main/80-", 2)).1, 2, "the other one is free");
    stage.reshards[0].phase = ReshardPhase::Ended;
    assert!(stage.plan(&into("main/-80", 2)).is_ok());

    // What has switched, and is kept, isn't free either.
    let mut kept = Stage::new();
    let (old, new) = (record.ids(Which::Old), record.ids(Which::New));
    kept.reshards = vec![Record { phase: ReshardPhase::Switched, ..record.clone() }];
    for part in &record.new.parts {
        let shard = kept.topology.shards[&old[0]].clone();
        let shard = Shard { id: part.shard, group: part.group, range: part.range.clone(), ..shard };
        kept.topology.shards.insert(part.shard, shard);
    }
    kept.topology.keyspaces.get_mut(&KeyspaceNumber(1)).unwrap().shards.splice(0..1, new);
    let error = kept.plan(&into("main/-40", 2)).unwrap_err();
    assert!(error.hint.unwrap().contains("\"shoal reshard complete 7\" ends it"));

    let mut young = Stage::new();
    young.topology.shards.get_mut(&ShardId(1)).unwrap().formed = false;
    let error = young.plan(&into("main/-80", 2)).unwrap_err();
    assert_eq!((error.message.as_str(), error.retry), ("main/-80 is only being formed", proto::Retry::Later));
}

#[test]
fn a_record_begins_with_new_ids_groups_and_incarnations() {
    let mut stage = Stage::new();
    let source = |name, incarnation| GtidSource {
        keyspace: "main".to_owned(),
        shard: range(name),
        incarnation: Incarnation(incarnation),
    };
    let retired =
        Retired { shard: ShardId(0), last: LogIndex(9), successors: vec![(ShardId(1), LogIndex(3))] };
    stage.topology.lineage.insert(source("-40", 2), retired.clone());
    stage.topology.lineage.insert(source("-40", 5), retired);
    stage.topology.shards.get_mut(&ShardId(1)).unwrap().first = LogIndex(3);
    let mut auto = into("main/-80", 2);
    (auto.options.auto, auto.options.keep) = (true, None);
    let record = stage.begin(&auto);
    let parts = |parts: &[Part]| -> Vec<_> {
        let words = |part: &Part| (part.shard.0, part.group.0, part.incarnation.0, part.first.0);
        parts.iter().map(words).collect()
    };
    assert_eq!(parts(&record.old.parts), [(1, 2, 1, 3)]);
    assert_eq!(parts(&record.new.parts), [(101, 102, 6, 0), (103, 104, 1, 0)]);
    assert_eq!((record.phase, record.wanted, record.builder), (ReshardPhase::Planned, true, NodeId(2)));
    assert_eq!((record.id, record.request, record.options.keep), (ReshardId(7), auto.request, None));
    assert_eq!(Record::read(&record.bytes()).unwrap(), record);
    assert!(Record::read(&[8]).is_err());
}
