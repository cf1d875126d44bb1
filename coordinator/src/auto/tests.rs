//! What is split by itself, and when.

use super::*;
use crate::Config;
use crate::keyspace;
use crate::store;
use proto::catalog::{Placement, Table};
use proto::services::{AutoChange, Counted, CreateKeyspace, TableTally};
use proto::{Incarnation, KeyRange, LogIndex, NodeId, SchemaVersion, ShardId, TableId};
use rusqlite::Connection;

const MIB: u64 = 1 << 20;
const MAIN: KeyspaceNumber = KeyspaceNumber(1);
const EVENT: KeyspaceNumber = KeyspaceNumber(2);

/// Two keyspaces: `main` by hash, `event` by range, each with two shards, of ids and groups 11, 12 and 21, 22, and one table.
struct Stage {
    topology: Topology,
    catalog: Catalog,
    sizes: BTreeMap<GroupId, u64>,
    tallies: Vec<ShardTally>,
    tired: BTreeSet<KeyspaceNumber>,
    is_busy: bool,
}

impl Stage {
    /// Both split what is bigger than 10 MiB, up to three shards. All rows have been counted.
    fn new() -> Stage {
        let mut topology = Topology::default();
        let (mut tallies, mut tables) = (Vec::new(), Vec::new());
        for (number, name, sharding) in [(MAIN, "main", Sharding::Hash), (EVENT, "event", Sharding::Range)] {
            let table = TableId(number.0);
            let shards = [(1, "-80"), (2, "80-")].map(|(place, range)| {
                let id = ShardId(u64::from(number.0) * 10 + place);
                let shard = Shard {
                    id,
                    keyspace: number,
                    range: KeyRange::parse(range).unwrap(),
                    incarnation: Incarnation(1),
                    group: GroupId(id.0),
                    replicas: vec![NodeId(1)],
                    formed: true,
                    first: LogIndex(0),
                };
                topology.shards.insert(id, shard);
                let middle = Some(vec![0x40 * place as u8]);
                let tables = vec![TableTally { table, rows: 9, bytes: 90, middle, growth: None }];
                let counted = Counted { age: Duration::ZERO, took: Duration::ZERO, tables };
                tallies.push(ShardTally { shard: id, counted });
                id
            });
            let keyspace = Keyspace {
                number,
                name: name.into(),
                sharding,
                replicas: 1,
                shards: shards.into(),
                auto: Some(AutoSplit { size: 10 * MIB, shards: 3 }),
            };
            topology.keyspaces.insert(number, keyspace);
            tables.push(Arc::new(Table {
                id: table,
                name: name.into(),
                columns: Vec::new(),
                primary_key: Vec::new(),
                primary_key_name: None,
                indexes: Vec::new(),
                checks: Vec::new(),
                placement: Placement::Sharded { keyspace: number, key: Vec::new() },
                next_column: proto::ColumnId(1),
                modified: SchemaVersion(1),
            }));
        }
        let catalog = Catalog::new(SchemaVersion(1), tables, []);
        let (sizes, tired) = (BTreeMap::new(), BTreeSet::new());
        Stage { topology, catalog, sizes, tallies, tired, is_busy: false }
    }

    fn sized(mut self, sizes: &[(u64, u64)]) -> Self {
        self.sizes = sizes.iter().map(|(group, mib)| (GroupId(*group), mib * MIB)).collect();
        self
    }

    fn auto(&mut self, keyspace: KeyspaceNumber) -> &mut Option<AutoSplit> {
        &mut self.topology.keyspaces.get_mut(&keyspace).unwrap().auto
    }

    fn due(&self) -> Option<(String, SplitAt)> {
        let scene = Scene {
            topology: &self.topology,
            catalog: &self.catalog,
            sizes: &self.sizes,
            tallies: &self.tallies,
            tired: &self.tired,
            is_busy: self.is_busy,
        };
        scene.due().map(|course| match course {
            ReshardCourse::Split { shard, at } => (shard, at),
            ReshardCourse::Merge { shards } => panic!("nobody merges {shards:?}"),
        })
    }
}

fn main_split() -> Option<(String, SplitAt)> {
    Some(("main/80-".into(), SplitAt::Evenly(2)))
}

#[test]
fn the_biggest_of_what_is_too_big_is_split() {
    assert_eq!(Stage::new().due(), None, "nobody has said how big anything is");
    assert_eq!(Stage::new().sized(&[(11, 10), (12, 10), (21, 9), (22, 1)]).due(), None);
    assert_eq!(Stage::new().sized(&[(11, 11), (12, 12), (21, 11)]).due(), main_split());
    // By range it is cut where half of the rows are.
    let event = Some(("event/-80".into(), SplitAt::Bounds(vec![vec![0x40]])));
    assert_eq!(Stage::new().sized(&[(11, 11), (12, 12), (21, 13)]).due(), event);
}

#[test]
fn it_is_off_unless_asked_for_and_has_a_bound() {
    let mut stage = Stage::new().sized(&[(12, 12), (21, 99)]);
    *stage.auto(EVENT) = None;
    assert_eq!(stage.due(), main_split());
    *stage.auto(MAIN) = None;
    assert_eq!(stage.due(), None);
    for (shards, splits) in [(2, false), (3, true)] {
        *stage.auto(MAIN) = Some(AutoSplit { size: 10 * MIB, shards });
        assert_eq!(stage.due().is_some(), splits, "of two shards there may be {shards}");
    }
    stage.topology.keyspaces.get_mut(&MAIN).unwrap().sharding = Sharding::Single;
    assert_eq!(stage.due(), None);
}

#[test]
fn nothing_is_begun_beside_anything_else_or_soon_after() {
    let mut stage = Stage::new().sized(&[(12, 12)]);
    stage.is_busy = true;
    assert_eq!(stage.due(), None);
    stage.is_busy = false;
    stage.tired.insert(EVENT);
    assert_eq!(stage.due(), main_split(), "each keyspace has an hour of its own");
    stage.tired.insert(MAIN);
    assert_eq!(stage.due(), None);
}

#[test]
fn what_can_not_be_halved_is_left() {
    let mut stage = Stage::new().sized(&[(12, 12)]);
    let tables = stage.tallies[1].counted.tables.clone();
    stage.tallies[1].counted.tables[0].middle = None;
    assert_eq!(stage.due(), None, "its rows lie in one place");
    stage.tallies.remove(1);
    assert_eq!(stage.due(), None, "they haven't been counted");
    let counted = Counted { age: Duration::ZERO, took: Duration::ZERO, tables };
    stage.tallies.push(ShardTally { shard: ShardId(12), counted });
    assert_eq!(stage.due(), main_split());
    stage.topology.shards.get_mut(&ShardId(12)).unwrap().formed = false;
    assert_eq!(stage.due(), None, "it isn't whole yet");
}

#[test]
fn a_keyspace_has_an_hour_between_reshards() {
    use ReshardPhase::{Copying, Ended};
    let zero = Instant::now();
    let at = |minute: u64| zero + Duration::from_secs(60 * minute);
    let mut auto = Auto::new(zero);
    let mut tired = |reshards: &[(KeyspaceNumber, ReshardPhase)], minute| {
        auto.hear(reshards.iter().copied(), at(minute)).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(tired(&[], 0), [], "of what was never resharded there is nothing to wait for");
    // When an older one ended is known by nobody: it may have been just before.
    let ended = [(EVENT, Ended)];
    assert_eq!(tired(&ended, 1), [EVENT]);
    assert_eq!(tired(&ended, 59), [EVENT]);
    assert_eq!(tired(&ended, 60), []);
    // One that goes on counts until it has ended, whoever has begun it.
    assert_eq!(tired(&[(EVENT, Ended), (MAIN, Copying)], 70), [MAIN]);
    assert_eq!(tired(&[(EVENT, Ended), (MAIN, Copying)], 300), [MAIN]);
    assert_eq!(tired(&[(EVENT, Ended), (MAIN, Ended)], 359), [MAIN]);
    assert_eq!(tired(&[(EVENT, Ended), (MAIN, Ended), (EVENT, Copying)], 360), [EVENT]);
}

#[test]
fn it_is_set_and_kept() {
    let connection = Connection::open_in_memory().unwrap();
    let config = Config::new(NodeId(1), vec![NodeId(1)]);
    connection.execute_batch(&store::init(&config).join(";")).unwrap();
    let store = Store(&connection);
    let roles = proto::topology::Roles::ALL;
    let node = proto::topology::Node {
        id: NodeId(1),
        address: "n1:1".into(),
        roles,
        zone: String::new(),
        draining: false,
    };
    store.put_node(&node).unwrap();
    for (name, sharding) in [("main", Sharding::Hash), ("single", Sharding::Single)] {
        let request = keyspace::BOOTSTRAP;
        let wish = CreateKeyspace { request, name: name.into(), sharding, shards: 1, replicas: Some(1) };
        keyspace::make(store, &wish, None, true).unwrap();
    }
    let wish = |sequence, keyspace: &str, auto: Option<(Option<u64>, Option<u32>)>| {
        let request = RequestId { router: RouterIncarnation(7), sequence };
        let auto = auto.map(|(size, shards)| AutoChange { size, shards });
        set(store, &AutoWish { request, keyspace: keyspace.into(), auto })
    };
    let is = || {
        let topology = store.topology().unwrap();
        topology.keyspace_named("main").unwrap().auto.map(|auto| (auto.size / MIB, auto.shards))
    };
    assert_eq!(is(), None, "off");
    wish(1, "main", Some((None, None))).unwrap();
    assert_eq!(is(), Some((10 << 10, 64)));
    wish(2, "main", Some((Some(5 * MIB), None))).unwrap();
    let epoch = store.epoch().unwrap();
    wish(3, "main", Some((None, Some(3)))).unwrap();
    assert_eq!(is(), Some((5, 3)), "what isn't said stays as it was");
    assert!(store.epoch().unwrap() > epoch, "everyone hears of it");
    // A copy that comes late changes nothing.
    wish(1, "main", Some((None, None))).unwrap();
    assert_eq!(is(), Some((5, 3)));
    for (keyspace, size, shards, code) in [
        ("main", Some(MIB - 1), None, "22023"),
        ("main", None, Some(0), "22023"),
        ("main", None, Some(1025), "22023"),
        ("single", None, None, "55000"),
        ("other", None, None, "42704"),
    ] {
        let refused = wish(9, keyspace, Some((size, shards))).unwrap_err();
        assert_eq!(refused.sqlstate.to_string(), code, "{refused}");
    }
    assert_eq!(is(), Some((5, 3)));
    wish(4, "main", None).unwrap();
    assert_eq!(is(), None);
    wish(5, "single", None).unwrap();
}
