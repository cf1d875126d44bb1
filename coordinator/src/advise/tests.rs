//! Scenes, and what is said of them.

use super::*;
use proto::services::{Counted, TableTally};
use proto::topology::Roles;
use proto::{Incarnation, KeyRange, KeyspaceNumber, LogIndex, TableId, Term};

const GIB: u64 = 1 << 30;

/// A cluster of some nodes.
struct Scene {
    topology: Topology,
    leaders: Leaders,
    sizes: BTreeMap<GroupId, u64>,
    loads: BTreeMap<GroupId, GroupLoad>,
    silent: BTreeMap<NodeId, Duration>,
    growth: BTreeMap<GroupId, Growth>,
    full: BTreeSet<NodeId>,
    drainable: BTreeSet<NodeId>,
    changing: BTreeSet<GroupId>,
}

impl Scene {
    fn new(nodes: u64) -> Self {
        let mut topology = Topology::default();
        for id in (1..=nodes).map(NodeId) {
            let (address, zone) = (format!("n{id}:1"), String::new());
            topology.nodes.insert(id, Node { id, address, roles: Roles::ALL, zone, draining: false });
        }
        Scene {
            topology,
            leaders: Leaders::default(),
            sizes: BTreeMap::new(),
            loads: BTreeMap::new(),
            silent: BTreeMap::new(),
            growth: BTreeMap::new(),
            full: BTreeSet::new(),
            drainable: BTreeSet::new(),
            changing: BTreeSet::new(),
        }
    }

    /// A keyspace: of each shard its range, its replicas of which the first leads, its bytes, its writes in a second.
    fn keyspace(mut self, name: &str, sharding: Sharding, shards: &[(&str, &[u64], u64, f64)]) -> Self {
        let number = KeyspaceNumber(self.topology.keyspaces.len() as u32 + 1);
        let mut ids = Vec::new();
        for (range, replicas, bytes, writes_per_second) in shards {
            let id = ShardId(self.topology.shards.len() as u64 + 1);
            let (group, replicas) =
                (GroupId(id.0 + 1), replicas.iter().copied().map(NodeId).collect::<Vec<_>>());
            self.leaders.learn(group, Term(1), replicas[0]);
            self.sizes.insert(group, *bytes);
            let load = GroupLoad { group, writes_per_second: *writes_per_second, reads_per_second: 0.0 };
            self.loads.insert(group, load);
            let shard = Shard {
                id,
                keyspace: number,
                range: KeyRange::parse(range).unwrap(),
                incarnation: Incarnation(1),
                group,
                replicas,
                formed: true,
                first: LogIndex(0),
            };
            self.topology.shards.insert(id, shard);
            ids.push(id);
        }
        let keyspace = Keyspace { number, name: name.into(), sharding, replicas: 3, shards: ids, auto: None };
        self.topology.keyspaces.insert(number, keyspace);
        self
    }

    /// The rows of a shard have grown.
    fn grown(mut self, shard: u64, added: u64, past: u64) -> Self {
        let growth = Growth { over: Duration::from_secs(300), added, past };
        self.growth.insert(GroupId(shard + 1), growth);
        self
    }

    /// What is said, a line each: the reason, and after the bar what does it.
    fn said(&self) -> Vec<String> {
        let view = View {
            topology: &self.topology,
            leaders: &self.leaders,
            sizes: self.sizes.clone(),
            loads: self.loads.clone(),
            silent: self.silent.clone(),
            growth: self.growth.clone(),
            full: self.full.clone(),
            drainable: self.drainable.clone(),
            changing: self.changing.clone(),
        };
        let line = |Advice { why, remedy }: Advice| match remedy {
            Some(remedy) => format!("{why} | {}", short(&remedy)),
            None => why,
        };
        advise(&view).into_iter().map(line).collect()
    }
}

fn short(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Split { shard, parts: Some(parts) } => format!("split {shard} into {parts}"),
        Remedy::Split { shard, parts: None } => format!("split {shard} where half of the rows are"),
        Remedy::Merge { shards } => format!("merge {}", shards.join(", ")),
        Remedy::Move { shard, from, to } => format!("move {shard} from {from} to {to}"),
        Remedy::Lead { shard, node } => format!("have {node} lead {shard}"),
        Remedy::Drain(node) => format!("drain {node}"),
    }
}

#[test]
fn of_a_cluster_that_is_well_nothing_is_said() {
    assert_eq!(Scene::new(3).said(), [] as [&str; 0]);
    let even = Scene::new(3).keyspace(
        "main",
        Sharding::Hash,
        &[("-80", &[1, 2, 3], 9 * GIB, 900.0), ("80-", &[2, 3, 1], 8 * GIB, 800.0)],
    );
    assert_eq!(even.said(), [] as [&str; 0]);
    // A few mebibytes more or less are no matter, and nobody is busy.
    let small = Scene::new(3).keyspace(
        "main",
        Sharding::Hash,
        &[("-80", &[1, 2, 3], 900 << 20, 90.0), ("80-", &[2, 3, 1], 1 << 20, 0.0)],
    );
    assert_eq!(small.said(), [] as [&str; 0]);
}

#[test]
fn what_is_too_big_is_split() {
    let mut scene = Scene::new(3)
        .keyspace(
            "main",
            Sharding::Hash,
            &[
                ("-40", &[1, 2, 3], 35 * GIB, 0.0),
                ("40-80", &[2, 3, 1], 11 * GIB, 0.0),
                ("80-", &[3, 1, 2], 12 * GIB, 0.0),
            ],
        )
        .keyspace("log", Sharding::Range, &[("-", &[1, 2, 3], 11 * GIB, 0.0)])
        .keyspace("few", Sharding::Hash, &[("-80", &[2, 3, 1], GIB, 0.0), ("80-", &[3, 1, 2], 4 * GIB, 0.0)])
        .keyspace("single", Sharding::Single, &[("-", &[1, 2, 3], 99 * GIB, 0.0)]);
    let expected = [
        "main/-40 has 35.0 GiB | split main/-40 into 4",
        "main/40-80 has 11.0 GiB | split main/40-80 into 2",
        "main/80- has 12.0 GiB | split main/80- into 2",
        "log/- has 11.0 GiB | split log/- where half of the rows are",
        "few/80- has 4.0 GiB, and half of its keyspace's shards have 1.0 GiB at most | split few/80- into 4",
    ];
    assert_eq!(scene.said(), expected);
    // What is split by itself is left to that, as long as there may be more shards.
    let few = |scene: &mut Scene, shards| {
        let keyspace = scene.topology.keyspaces.get_mut(&KeyspaceNumber(3)).unwrap();
        keyspace.auto = Some(AutoSplit { size: GIB, shards });
    };
    few(&mut scene, 3);
    assert_eq!(scene.said(), expected[..4]);
    few(&mut scene, 2);
    assert_eq!(scene.said(), expected);
    // Of what is being changed nothing is said.
    scene.changing.extend((2..=5).map(GroupId));
    assert_eq!(scene.said(), expected[4..]);
}

#[test]
fn who_is_busy_is_relieved() {
    let hot =
        |shards: &[(&str, &[u64], u64, f64)]| Scene::new(3).keyspace("main", Sharding::Hash, shards).said();
    // Node 1 leads two of them, so one of these goes.
    let leads_two = hot(&[
        ("-40", &[1, 2, 3], GIB, 900.0),
        ("40-80", &[1, 2, 3], GIB, 300.0),
        ("80-", &[2, 3, 1], GIB, 100.0),
    ]);
    let why = "main/-40 has 900 of the 1200 writes a second of node 1, which leads it; other nodes have 100 at most";
    assert_eq!(leads_two[0], format!("{why} | have 3 lead main/-40"));
    let leads_one = hot(&[("-80", &[1, 2, 3], GIB, 900.0), ("80-", &[2, 3, 1], GIB, 100.0)]);
    let why =
        "main/-80 has 900 of the 900 writes a second of node 1, which leads it; other nodes have 100 at most";
    assert_eq!(leads_one, [format!("{why} | split main/-80 into 2")]);
    assert_eq!(hot(&[("-80", &[1, 2, 3], GIB, 90.0), ("80-", &[2, 3, 1], GIB, 1.0)]), [] as [&str; 0]);
}

/// A range keyspace with two shards and 1,000 writes a second.
fn event(last: f64) -> Scene {
    let shards: [(&str, &[u64], u64, f64); 2] =
        [("-40", &[2, 3, 1], GIB, 1_000.0 - last), ("40-", &[1, 2, 3], GIB, last)];
    Scene::new(3).keyspace("event", Sharding::Range, &shards)
}

#[test]
fn who_appends_is_told_that_a_split_does_not_help() {
    let expected = "event/40-, the last shard of range keyspace event, gets 95 % of its writes, and keys grow: 20000 rows came \
                    past the greatest within 300 s. Splitting it won't help, for the new last shard would get them all. \
                    What helps is to place rows by the key's hash (PARTITION BY HASH), or a key that spreads";
    assert_eq!(event(950.0).grown(2, 20_000, 20_000).said(), [expected]);
    // Who deletes at the other end has no more rows than before.
    assert_eq!(event(950.0).grown(2, 0, 20_000).said(), [expected]);
    // With one shard it's no other.
    let one: [(&str, &[u64], u64, f64); 1] = [("-", &[1, 2, 3], 11 * GIB, 50.0)];
    let said = Scene::new(3).keyspace("event", Sharding::Range, &one).grown(1, 20_000, 20_000).said();
    assert_eq!(said.len(), 2, "{said:?}");
    let split = "event/- has 11.0 GiB. Its keys grow, so the new last one will go on growing | split event/- where half of the rows are";
    assert_eq!(said[0], split);
    assert!(said[1].starts_with("event/-, the last shard of range keyspace event, gets 100 % of its writes"));
}

#[test]
fn a_last_shard_whose_keys_spread_is_split() {
    let why =
        "event/40- has 950 of the 950 writes a second of node 1, which leads it; other nodes have 50 at most";
    let split = format!("{why} | split event/40- where half of the rows are");
    assert_eq!(event(950.0).grown(2, 20_000, 17_000).said(), [split.as_str()], "most isn't nearly all");
    assert_eq!(event(950.0).grown(2, 900, 900).said(), [split.as_str()], "of few rows nothing is concluded");
    // Others than the last are split whatever the last one does.
    let first = event(100.0).grown(2, 20_000, 20_000).said();
    let why = "event/-40 has 900 of the 900 writes a second of node 2, which leads it; other nodes have 100 at most";
    assert_eq!(first, [format!("{why} | split event/-40 where half of the rows are")]);
    let unknown = event(950.0).said();
    let hint = "Whether its keys grow, so that a split won't help, isn't known yet: ask again in a minute";
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert!(unknown[0].ends_with(hint), "{unknown:?}");
}

#[test]
fn growth_is_of_all_tables_of_which_it_is_known() {
    let scene = event(0.0);
    let table = |table, growth: Option<(u64, u64)>| TableTally {
        table: TableId(table),
        rows: 9,
        bytes: 9,
        middle: None,
        growth: growth.map(|(added, past)| Growth {
            over: Duration::from_secs(u64::from(table)),
            added,
            past,
        }),
    };
    let tally = |shard, tables| ShardTally {
        shard: ShardId(shard),
        counted: Counted { age: Duration::ZERO, took: Duration::ZERO, tables },
    };
    let tallies = [
        tally(2, vec![table(1, Some((10, 5))), table(2, None), table(3, Some((1, 7)))]),
        tally(1, vec![table(1, None)]),
        tally(9, vec![table(1, Some((1, 1)))]),
    ];
    let expected = Growth { over: Duration::from_secs(3), added: 11, past: 12 };
    assert_eq!(growth(&scene.topology, &tallies), BTreeMap::from([(GroupId(3), expected)]));
}

#[test]
fn neighbours_that_are_small_are_merged() {
    let shards: [(&str, &[u64], u64, f64); 6] = [
        ("-20", &[1, 2, 3], 8 * GIB, 0.0),
        ("20-40", &[2, 3, 1], GIB / 2, 0.0),
        ("40-60", &[3, 1, 2], GIB / 2, 0.0),
        ("60-80", &[1, 2, 3], GIB / 2, 0.0),
        ("80-a0", &[2, 3, 1], 8 * GIB, 0.0),
        ("a0-", &[3, 1, 2], 8 * GIB, 0.0),
    ];
    let said = Scene::new(3).keyspace("main", Sharding::Hash, &shards).said();
    let merge = "main/20-40 and main/40-60 have 1.0 GiB together, and half of their keyspace's shards have 8.0 GiB or more \
                 | merge main/20-40, main/40-60";
    assert_eq!(said.last().map(String::as_str), Some(merge));
}

#[test]
fn what_lies_unevenly_is_moved() {
    let shards: [(&str, &[u64], u64, f64); 4] = [
        ("-40", &[1, 2], 0, 0.0),
        ("40-80", &[1, 2], 0, 0.0),
        ("80-c0", &[1, 3], 0, 0.0),
        ("c0-", &[1, 3], 0, 0.0),
    ];
    let mut scene = Scene::new(4).keyspace("main", Sharding::Hash, &shards);
    let expected = [
        "node 1 has 4 replicas, and the mean is 2.0 | move main/-40 from 1 to 4",
        "node 1 leads 4 shards, and the mean is 1.0 | have 2 lead main/-40",
    ];
    assert_eq!(scene.said(), expected);
    // Nobody moves anything to who is silent or full.
    scene.silent.insert(NodeId(4), Duration::from_secs(40));
    let moved = "node 1 has 4 replicas, and the mean is 2.7 | move main/-40 from 1 to 3";
    assert_eq!(scene.said()[0], moved);
    scene.full.insert(NodeId(3));
    assert!(scene.said().iter().all(|line| !line.ends_with("to 3")), "{:?}", scene.said());
}

#[test]
fn who_is_silent_or_full_comes_first() {
    let shards: [(&str, &[u64], u64, f64); 2] =
        [("-80", &[1, 2, 3], 35 * GIB, 0.0), ("80-", &[1, 2, 3], 35 * GIB, 0.0)];
    let mut scene = Scene::new(5).keyspace("main", Sharding::Hash, &shards);
    scene.topology.coordinators = vec![NodeId(4)];
    scene.silent = [3, 4, 5].map(|node| (NodeId(node), Duration::from_secs(40))).into();
    scene.full.extend([NodeId(2), NodeId(5)]);
    scene.drainable.extend([NodeId(2), NodeId(4)]);
    let said = scene.said();
    let expected = [
        "the disk of node 2 is full, and it holds 2 replicas: make room there, or have others hold what it does | drain 2",
        "node 3 has been silent for 40 s, and holds 2 replicas: start it, or add a node and drain this one: there is none yet for all of it",
        "node 4 has been silent for 40 s, and holds 1 replica: start it, or have others hold what it does | drain 4",
    ];
    assert_eq!(said[..3], expected, "node 5 holds nothing");
    assert_eq!(said[3], "main/-80 has 35.0 GiB | split main/-80 into 4", "what is big comes after that");
    // Who is drained already is left to it.
    for node in scene.topology.nodes.values_mut() {
        node.draining = true;
    }
    assert!(scene.said()[0].starts_with("main/-80 has"), "{:?}", scene.said());
}
