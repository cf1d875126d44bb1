//! New shards, built on a node of its own replica of an old one.

use crate::common::{GROUP, Network, Node, PATIENCE, SHARD, rows, state};
use crate::failover;
use dialect::Type;
use dialect::physical;
use proto::catalog::{Column, Placement, Table, TypeRef};
use proto::layout::TableLayout;
use proto::services::{
    BuildAction, BuildRequest, BuildTarget, Built, ClusterState, Consistency, SchemaRequest, SchemaStep,
    ServiceResult, ShardService,
};
use proto::topology::{Build, Reshard, Sharding};
use proto::{
    ColumnId, Epoch, GroupId, KeyRange, KeyspaceNumber, LogIndex, NodeId, ReshardId, SchemaVersion, ShardId,
    SqlState, TableId,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RESHARD: ReshardId = ReshardId(7);
/// More than a batch of rows.
const ROWS: i64 = 60_000;

fn table() -> Table {
    let column = |id, ty: Type| Column {
        id: ColumnId(id),
        name: format!("name {id}"),
        ty: TypeRef { oid: ty.oid(), modifier: -1 },
        not_null: true,
        default: None,
    };
    Table {
        id: TableId(5),
        name: "a".into(),
        columns: vec![column(1, Type::Int8), column(2, Type::Text)],
        primary_key: vec![ColumnId(1)],
        primary_key_name: None,
        indexes: Vec::new(),
        checks: Vec::new(),
        placement: Placement::Sharded { keyspace: KeyspaceNumber(1), key: vec![ColumnId(1)] },
        next_column: ColumnId(3),
        modified: SchemaVersion(1),
    }
}

fn halves() -> Vec<BuildTarget> {
    let ranges = KeyRange::split_evenly(2).into_iter();
    ranges
        .zip(11..)
        .map(|(range, id)| BuildTarget { shard: ShardId(id), group: GroupId(id), range })
        .collect()
}

/// A node with a shard of some rows.
async fn start() -> Node {
    let node = Node::start().await;
    fill(std::slice::from_ref(&node)).await;
    node
}

/// Makes the table and its rows.
async fn fill(nodes: &[Node]) {
    let layout = Some(physical::layout(&table(), Sharding::Hash).unwrap());
    let step = SchemaRequest {
        shard: SHARD,
        step: SchemaStep { job: 1, step: 1 },
        statements: physical::create(&table()).unwrap(),
        layouts: vec![TableLayout { table: TableId(5), layout }],
        least_version: Some(SchemaVersion(1)),
        require_empty: Vec::new(),
    };
    failover::ask(nodes, |node| node.shards.apply_schema(step.clone())).await.1.unwrap();
    let fill = format!(
        "INSERT INTO t5 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         SELECT i, printf('%.*c', 100, 'x') FROM n"
    );
    let fill = nodes[0].write(&fill, 1);
    failover::ask(nodes, |node| node.shards.execute(fill.clone())).await.1.unwrap();
}

/// The state in which this node builds, or doesn't any more.
fn building(epoch: u64, tries: Option<u32>) -> ClusterState {
    let mut state = state(vec![NodeId(1)]);
    let topology = Arc::make_mut(&mut state.topology);
    topology.epoch = Epoch(epoch);
    let groups = halves().iter().map(|target| target.group).collect();
    let build = tries.map(|tries| Build { node: NodeId(1), tries, groups });
    topology.reshards = vec![Reshard { id: RESHARD, build, flows: Vec::new(), gate: None }];
    state
}

async fn ask(node: &Node, tries: u32, action: BuildAction) -> ServiceResult<Built> {
    let request = BuildRequest { reshard: RESHARD, tries, action, timeout: PATIENCE };
    node.shards.build(request).await
}

fn applied(node: &Node) -> LogIndex {
    node.host.replica(GROUP).unwrap().status().applied
}

async fn image(node: &Node, tries: u32) -> Built {
    let after = applied(node);
    ask(node, tries, BuildAction::Image { shard: SHARD, group: GROUP, after }).await.unwrap()
}

fn copying(rests: bool) -> BuildAction {
    BuildAction::Copy { sources: vec![SHARD], targets: halves(), rests, rate: 0 }
}

/// Asks again and again, as the coordinator does, until there is another answer than how far it is.
async fn copied(node: &Node, tries: u32) -> Built {
    let asked = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            match ask(node, tries, copying(false)).await.unwrap() {
                Built::Copying(_) => pause.tick().await,
                other => return other,
            };
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

/// The node, started anew while it builds.
async fn again(node: Node, tries: u32) -> Node {
    node.restart_in(&building(10, Some(tries)), &Arc::default(), |_| {}).await
}

fn directory(node: &Node, tries: u32) -> PathBuf {
    node.host.beside("builds").join(format!("{RESHARD}-{tries}"))
}

fn names(path: PathBuf) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// How many rows a group has, and their least and greatest.
async fn summary(node: &Node, group: GroupId) -> (i64, i64, i64) {
    let replica = node.host.replica(group).unwrap();
    let snapshot = replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.unwrap();
    let sql = "SELECT count(*), min(c1), max(c1) FROM t5";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    snapshot.connection().query_row(sql, [], row).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_founded_with_what_was_built_while_writers_go_on() {
    let node = start().await;
    assert!(node.settle(&building(10, Some(2))));
    let Built::Begun(index) = image(&node, 2).await else { panic!("an image") };
    assert_eq!(index, applied(&node));
    // What comes later isn't in it, and asking again begins no other.
    node.shards.execute(node.write("INSERT INTO t5 VALUES (-1, 'later')", 2)).await.unwrap();
    let action = BuildAction::Image { shard: SHARD, group: GROUP, after: index };
    assert_eq!(ask(&node, 2, action).await.unwrap(), Built::Begun(index));
    let early = ask(&node, 2, BuildAction::Found { shard: ShardId(11), group: GroupId(11) }).await.unwrap();
    assert!(matches!(&early, Built::Lost(what) if what.contains("shard 11")), "{early:?}");
    assert_eq!(copied(&node, 2).await, Built::Copied);
    for target in halves() {
        assert!(node.host.replica(target.group).is_none());
        let (shard, group) = (target.shard, target.group);
        for _ in 0..2 {
            assert_eq!(ask(&node, 2, BuildAction::Found { shard, group }).await.unwrap(), Built::Founded);
        }
        // Whoever asks late isn't in the way of what is there.
        assert_eq!(copied(&node, 2).await, Built::Copied);
    }
    assert_eq!(names(directory(&node, 2)), Vec::<String>::new(), "the images aren't needed any more");
    let (one, other) = (summary(&node, GroupId(11)).await, summary(&node, GroupId(12)).await);
    assert_eq!((one.0 + other.0, one.1.min(other.1), one.2.max(other.2)), (ROWS, 1, ROWS));
    assert!(one.0 > ROWS / 3 && other.0 > ROWS / 3);
    // The shard isn't open there.
    let mut read = node.read("SELECT count(*) FROM t5", true);
    assert_eq!(rows(node.shards.execute(read.clone()).await.unwrap().rows).await.unwrap().len(), 1);
    read.shard = ShardId(11);
    assert!(node.shards.execute(read).await.is_err());
    // The groups stay as long as the build may found them.
    assert!(node.settle(&building(11, Some(2))));
    assert!(node.host.replica(GroupId(11)).is_some() && directory(&node, 2).exists());
    assert!(node.settle(&building(12, None)));
    assert!(node.host.replica(GroupId(11)).is_none() && !directory(&node, 2).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_after_a_restart_as_far_as_it_can() {
    let node = start().await;
    assert!(node.settle(&building(10, Some(2))));
    image(&node, 2).await;
    // An image goes on while nothing is copied.
    ask(&node, 2, copying(true)).await.unwrap();
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    while !directory(&node, 2).join("image-1.sqlite").exists() {
        pause.tick().await;
    }
    let Built::Copying(progress) = ask(&node, 2, copying(true)).await.unwrap() else { panic!("it rests") };
    assert_eq!(progress.rows, 0);
    // After a batch it waits for long.
    let slowly =
        || BuildAction::Copy { sources: vec![SHARD], targets: halves(), rests: false, rate: 1 << 16 };
    let begun = loop {
        let Built::Copying(progress) = ask(&node, 2, slowly()).await.unwrap() else { panic!("it is slow") };
        if progress.rows > 0 {
            break progress.rows.cast_signed();
        }
        pause.tick().await;
    };
    assert!(begun < ROWS, "{begun}");
    let node = again(node, 2).await;
    assert_eq!(copied(&node, 2).await, Built::Copied);
    let node = again(node, 2).await;
    let found = BuildAction::Found { shard: ShardId(12), group: GroupId(12) };
    assert_eq!(ask(&node, 2, found).await.unwrap(), Built::Founded);
    assert!(summary(&node, GroupId(12)).await.0 > ROWS / 3);

    // An image that wasn't whole is gone.
    let node = node.restart_in(&building(13, None), &Arc::default(), |_| {}).await;
    image(&node, 3).await;
    let node = again(node, 3).await;
    let path = directory(&node, 3).join("image-1.sqlite");
    if path.exists() {
        std::fs::remove_file(path).unwrap();
    }
    let lost = ask(&node, 3, copying(false)).await.unwrap();
    assert_eq!(lost, Built::Lost("the image of shard 1".into()));
    // What is left of both goes.
    assert_eq!(ask(&node, 3, BuildAction::Discard).await.unwrap(), Built::Discarded);
    assert_eq!(names(node.host.beside("builds")), Vec::<String>::new());
    assert_eq!(ask(&node, 3, BuildAction::Discard).await.unwrap(), Built::Discarded);
}

/// A rate holds from slice to slice: at no time there is more than it allows, and it never stands still for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_no_faster_than_its_rate() {
    const RATE: u64 = 2 << 20;
    let node = start().await;
    assert!(node.settle(&building(10, Some(2))));
    let committed = node.shards.load().await.unwrap();
    assert!(committed.total() > 0, "writers waited for what they wrote");
    image(&node, 2).await;
    let path = directory(&node, 2).join("image-1.sqlite");
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    while !path.exists() {
        pause.tick().await;
    }
    let begun = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 4 {
        let slowly = BuildAction::Copy { sources: vec![SHARD], targets: halves(), rests: false, rate: RATE };
        let Built::Copying(progress) = ask(&node, 2, slowly).await.unwrap() else {
            panic!("it takes seconds")
        };
        let most = begun.elapsed().as_secs_f64() * RATE as f64;
        // The first slice is there before anything is waited for, and one is some more than it should be.
        assert!((progress.bytes.done as f64) < most + 300_000.0, "{} of {most}", progress.bytes.done);
        seen.insert(progress.bytes.done);
        pause.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_came_after_the_question_is_left_alone() {
    let node = start().await;
    let before = node.shards.before();
    image(&node, 3).await;
    assert!(!node.shards.settle(&building(10, Some(2)), &before), "it is to be asked again");
    assert!(directory(&node, 3).exists());
    assert!(node.settle(&building(11, Some(3))));
    assert!(directory(&node, 3).exists());
    assert!(node.settle(&building(12, Some(4))));
    assert!(!directory(&node, 3).exists());
    let elsewhere = BuildAction::Image { shard: ShardId(9), group: GroupId(9), after: LogIndex(1) };
    let error = ask(&node, 4, elsewhere).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_begins_an_image_once_it_has_what_it_must() {
    let (ids, network) = ([1, 2, 3].map(NodeId).to_vec(), Arc::<Network>::default());
    let nodes: Vec<_> = ids.iter().map(|id| Node::open(*id, ids.clone(), &network)).collect();
    fill(&nodes).await;
    let after = nodes.iter().map(applied).max().unwrap();
    for node in &nodes {
        let action = BuildAction::Image { shard: SHARD, group: GROUP, after };
        let begun = ask(node, 2, action).await.unwrap();
        assert!(matches!(begun, Built::Begun(index) if index >= after), "{begun:?}");
        // What it hasn't yet isn't waited for longer than asked.
        let (after, timeout) = (LogIndex(after.0 + 1000), Duration::from_millis(20));
        let action = BuildAction::Image { shard: SHARD, group: GROUP, after };
        let request = BuildRequest { reshard: RESHARD, tries: 2, action, timeout };
        assert!(node.shards.build(request).await.is_err());
    }
    assert_eq!(copied(&nodes[2], 2).await, Built::Copied);
}
