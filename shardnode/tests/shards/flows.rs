//! Groups that take over what other groups' logs say.

use crate::common::{Network, Node, PATIENCE, state};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::layout::{Layout, LayoutColumn, Place, TableLayout};
use proto::services::{
    ClusterState, Consistency, CoordinatorService, FlowObstacle, FragmentRequest, HandOver, HandOverAction,
    HandedOver, Peers, ReplicaService, SchemaRequest, SchemaStep, ShardService,
};
use proto::topology::{Flow, Reshard, Sharding, Topology};
use proto::{
    Attempt, ColumnId, GroupId, KeyRange, LogIndex, NodeId, RequestId, ReshardId, Retry, RouterIncarnation,
    ShardId, TableId, TransactionId, WireError,
};
use replica::{Overlay, Piece, Pieces, Rehearsal, Replay, Replica, Staging, Write};
use shardnode::ShardNode;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

pub const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";

/// The whole, and its halves.
pub const WHOLE: ShardId = ShardId(1);
pub const HALVES: [ShardId; 2] = [ShardId(2), ShardId(3)];

pub fn group(shard: ShardId) -> GroupId {
    // The whole's group may bear another name later on.
    GroupId(if shard > HALVES[1] { WHOLE.0 } else { shard.0 } + 1)
}

/// The nodes that are up.
#[derive(Default)]
pub struct Directory(pub Mutex<HashMap<NodeId, Weak<ShardNode>>>);

impl Peers for Directory {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        Some(self.0.lock().get(&node)?.upgrade()? as Arc<dyn ShardService>)
    }

    fn replica_service(&self, _: NodeId) -> Option<Arc<dyn ReplicaService>> {
        None
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        Vec::new()
    }
}

/// A node that runs flows.
struct Runner {
    node: Node,
    flows: AbortHandle,
}

/// Nodes that all hold the whole and its halves.
pub struct Cluster {
    nodes: Vec<Option<Runner>>,
    network: Arc<Network>,
    pub directory: Arc<Directory>,
    pub state: ClusterState,
    change: fn(&mut replica::Config),
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.flows.abort();
    }
}

/// From the whole to its halves, or from them to the whole.
pub fn flows(splits: bool) -> Vec<Flow> {
    let flow = |half: ShardId| match splits {
        true => Flow { source: WHOLE, target: half, references: true },
        false => Flow { source: half, target: WHOLE, references: half == HALVES[0] },
    };
    HALVES.map(flow).to_vec()
}

impl Cluster {
    pub async fn start(count: u64, splits: bool, change: fn(&mut replica::Config)) -> Cluster {
        let ids: Vec<_> = (1..=count).map(NodeId).collect();
        let mut state = state(ids.clone());
        let topology = Arc::make_mut(&mut state.topology);
        for (half, range) in HALVES.into_iter().zip(["-80", "80-"]) {
            let mut shard = topology.shards[&WHOLE].clone();
            (shard.id, shard.group, shard.range) = (half, group(half), KeyRange::parse(range).unwrap());
            topology.shards.insert(half, shard);
        }
        // A group's log begins with what it was founded by.
        topology.shards.values_mut().for_each(|shard| shard.first = LogIndex(1));
        topology.reshards.push(Reshard { id: ReshardId(7), build: None, flows: flows(splits), gate: None });
        let mut cluster =
            Cluster { nodes: Vec::new(), network: Arc::default(), directory: Arc::default(), state, change };
        for id in ids {
            let node = Node::bare_with(id, &cluster.network, change);
            assert!(node.settle(&cluster.state));
            cluster.add(node);
        }
        cluster
    }

    fn stop_flows(&self, place: usize) {
        self.nodes[place].as_ref().unwrap().flows.abort();
    }

    fn begin_flows(&mut self, place: usize) {
        let peers = Arc::clone(&self.directory);
        let runner = self.nodes[place].as_mut().unwrap();
        runner.flows = flows_of(&runner.node, peers);
    }

    fn add(&mut self, node: Node) {
        let id = node.host.statuses()[0].node;
        self.directory.0.lock().insert(id, Arc::downgrade(&node.shards));
        let flows = flows_of(&node, Arc::clone(&self.directory));
        let runner = Some(Runner { node, flows });
        match self.nodes.get_mut(id.0 as usize - 1) {
            Some(place) => *place = runner,
            None => self.nodes.push(runner),
        }
    }

    /// The next epoch.
    pub fn change(&mut self, change: impl FnOnce(&mut Topology)) {
        let topology = Arc::make_mut(&mut self.state.topology);
        topology.epoch.0 += 1;
        change(topology);
        for node in self.up() {
            node.shards.follow(&self.state);
        }
    }

    pub fn up(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten().map(|runner| &runner.node)
    }

    /// Whoever leads a shard's group.
    pub async fn leader(&self, shard: ShardId) -> (&Node, Replica) {
        let led = async {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            loop {
                for node in self.up() {
                    let replica = node.host.replica(group(shard)).unwrap();
                    if replica.snapshot(Consistency::Strong, Instant::now() + PATIENCE).await.is_ok() {
                        return (node, replica);
                    }
                }
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, led).await.expect("somebody leads")
    }

    /// Ends the node that leads a shard's group, and starts it anew once another one leads.
    pub async fn kill_leader(&mut self, shard: ShardId) {
        let id = self.leader(shard).await.0.host.statuses()[0].node;
        let place = id.0 as usize - 1;
        let mut runner = self.nodes[place].take().unwrap();
        self.directory.0.lock().remove(&id);
        runner.flows.abort();
        let host = Arc::clone(&runner.node.host);
        tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
        self.leader(shard).await;
        let node = std::mem::replace(&mut runner.node, Node::bare(NodeId(99), &Arc::default()));
        let node = node.restart_in(&self.state, &self.network, self.change).await;
        self.add(node);
    }

    /// Asks until somebody answers as leader.
    pub async fn write(&self, shard: ShardId, sql: &str, sequence: u64) -> Result<LogIndex, WireError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (node, _) = self.leader(shard).await;
            let request = FragmentRequest { shard, ..node.write(sql, sequence) };
            match node.shards.execute(request).await {
                Ok(done) => return Ok(done.position),
                Err(error) if error.retry == Retry::Never || Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    pub async fn schema(&self, shard: ShardId, job: u64, sql: &str) -> Result<LogIndex, WireError> {
        let column = |id, ty| LayoutColumn { id: ColumnId(id), ty };
        let layout = Layout {
            columns: vec![column(1, 20), column(2, 25)],
            primary_key: vec![0],
            place: Place::Sharded(Sharding::Hash, vec![0]),
        };
        let layouts = match sql == TABLE {
            true => vec![TableLayout { table: TableId(1), layout: Some(layout) }],
            false => Vec::new(),
        };
        let request = SchemaRequest {
            shard,
            step: SchemaStep { job, step: 1 },
            statements: vec![sql.to_owned()],
            layouts,
            least_version: None,
            require_empty: Vec::new(),
        };
        self.leader(shard).await.0.shards.apply_schema(request).await
    }

    /// A list that a query gives.
    pub async fn list(&self, shard: ShardId, sql: &str) -> BTreeSet<String> {
        let (_, replica) = self.leader(shard).await;
        let snapshot = replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap();
        let mut statement = snapshot.connection().prepare(sql).unwrap();
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        lines.collect::<Result<_, _>>().unwrap()
    }

    pub async fn rows(&self, shard: ShardId) -> BTreeSet<String> {
        self.list(shard, "SELECT c1 || '=' || c2 FROM t1").await
    }

    pub async fn requests(&self, shard: ShardId) -> BTreeSet<String> {
        let sql = "SELECT router || '-' || sequence || '=' || hex(output) FROM replica_requests";
        self.list(shard, sql).await
    }

    /// How far a target is with its sources, and what stops it.
    async fn positions(&self, target: ShardId) -> BTreeMap<ShardId, (LogIndex, Option<FlowObstacle>)> {
        let (node, _) = self.leader(target).await;
        let statuses = match node.shards.hand_over(asking(target)).await {
            Ok(HandedOver::Flows(statuses)) => statuses,
            Ok(other) => panic!("{other:?}"),
            // It has only begun to lead, or leads no more.
            Err(error) => {
                assert!(matches!(error.retry, Retry::Later | Retry::NotLeader(_)), "{error}");
                Vec::new()
            }
        };
        statuses.into_iter().map(|status| (status.source, (status.position, status.obstacle))).collect()
    }

    /// Waits until a target has taken this much over of a source.
    async fn reaches(&self, target: ShardId, source: ShardId, index: LogIndex) {
        let end = Instant::now() + PATIENCE;
        loop {
            let positions = self.positions(target).await;
            match positions.get(&source) {
                Some((position, _)) if *position >= index => return,
                found => assert!(Instant::now() < end, "{source} to {target}: {found:?}, not {index}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until something stops a target's flow.
    async fn stops(&self, target: ShardId, source: ShardId) -> FlowObstacle {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some((_, Some(obstacle))) = self.positions(target).await.get(&source) {
                return obstacle.clone();
            }
            assert!(Instant::now() < end, "nothing stops it");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has a target take over all that its sources have.
    pub async fn catches_up(&self, target: ShardId, sources: &[ShardId]) {
        for source in sources {
            let (_, replica) = self.leader(*source).await;
            self.reaches(target, *source, replica.status().applied).await;
        }
    }

    /// That the halves have what the whole has, each its own.
    pub async fn is_split(&self) {
        for half in HALVES {
            self.catches_up(half, &[WHOLE]).await;
        }
        let whole = self.rows(WHOLE).await;
        let halves = [self.rows(HALVES[0]).await, self.rows(HALVES[1]).await];
        assert!(halves[0].is_disjoint(&halves[1]));
        let together: BTreeSet<_> = halves.iter().flatten().cloned().collect();
        assert_eq!(together, whole);
        assert!(whole.len() < 8 || halves.iter().all(|half| !half.is_empty()));
        for half in HALVES {
            assert_eq!(self.requests(half).await, self.requests(WHOLE).await);
        }
    }
}

fn flows_of(node: &Node, peers: Arc<Directory>) -> AbortHandle {
    let shards = Arc::clone(&node.shards);
    tokio::spawn(async move { shards.run_flows(peers).await }).abort_handle()
}

/// Asks how far a target's flows are.
fn asking(shard: ShardId) -> HandOver {
    let (reshard, attempt, action) = (ReshardId(7), Attempt(0), HandOverAction::Flows);
    HandOver { shard, reshard, attempt, action, timeout: PATIENCE }
}

pub fn insert(keys: std::ops::Range<i64>, value: &str) -> String {
    let rows: Vec<_> = keys.map(|key| format!("({key}, '{value}')")).collect();
    format!("INSERT INTO t1 VALUES {}", rows.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_take_over_what_the_whole_does_whoever_leads() {
    let mut cluster = Cluster::start(3, true, |_| {}).await;
    cluster.schema(WHOLE, 1, TABLE).await.unwrap();
    cluster.write(WHOLE, &insert(0..40, "x"), 1).await.unwrap();
    cluster.is_split().await;

    // Who doesn't lead says who does.
    let (leader, _) = cluster.leader(HALVES[0]).await;
    let leader = leader.host.statuses()[0].node;
    for node in cluster.up().filter(|node| node.host.statuses()[0].node != leader) {
        let error = node.shards.hand_over(asking(HALVES[0])).await.unwrap_err();
        assert_eq!(error.retry, Retry::NotLeader(Some(leader)));
    }

    let sequence = AtomicU64::new(2);
    for round in 0..6 {
        // A writer goes on while a leader is killed: of the source, and of each of the targets.
        let victim = [WHOLE, HALVES[0], HALVES[1]][round % 3];
        let (directory, state) = (Arc::clone(&cluster.directory), cluster.state.clone());
        let first = sequence.load(Ordering::Relaxed);
        let writer = tokio::spawn(async move {
            let mut sequence = first;
            let end = Instant::now() + PATIENCE;
            while sequence < first + 60 {
                let key = sequence % 50;
                let sql = match sequence % 7 {
                    0 => format!("DELETE FROM t1 WHERE c1 = {key}"),
                    1 => format!("INSERT INTO t1 VALUES ({key}, 'n') ON CONFLICT (c1) DO NOTHING"),
                    _ => format!(
                        "UPDATE t1 SET c2 = substr(c2, -20) || '{sequence}' WHERE c1 >= {key} AND c1 < {key} + 3"
                    ),
                };
                let mut done = false;
                for id in state.topology.shards[&WHOLE].replicas.iter() {
                    let Some(shards) = directory.0.lock().get(id).and_then(Weak::upgrade) else { continue };
                    let request = request(&sql, sequence);
                    done |= shards.execute(request).await.is_ok();
                    if done {
                        break;
                    }
                }
                assert!(Instant::now() < end, "nobody takes write {sequence}");
                match done {
                    true => sequence += 1,
                    false => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
            sequence
        });
        cluster.kill_leader(victim).await;
        sequence.store(writer.await.unwrap(), Ordering::Relaxed);
        cluster.is_split().await;
    }
}

/// A write to the whole.
fn request(sql: &str, sequence: u64) -> FragmentRequest {
    use proto::services::{Access, Floor};
    let request = RequestId { router: RouterIncarnation(77), sequence };
    FragmentRequest {
        shard: WHOLE,
        epoch: proto::Epoch(1),
        schema_version: proto::SchemaVersion(1),
        sql: sql.into(),
        params: Vec::new(),
        rows: None,
        access: Access::Write { request, settled: 0, touch: 0, lock_timeout: None },
        cut: None,
        floor: Floor::default(),
        timeout: Duration::from_secs(2),
    }
}

/// Changes rows by nobody's leave.
pub async fn write(replica: &Replica, sql: String) -> LogIndex {
    let run = move |stage: &replica::Stage<'_>| {
        stage.execute_batch(&sql).unwrap();
        Ok(Bytes::new())
    };
    let write = Write { request: None, settled: 0, deadline: Instant::now() + PATIENCE, run: Box::new(run) };
    replica.write(write).await.unwrap().index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_as_they_should_be_stop_the_flow_and_not_the_group() {
    let cluster = Cluster::start(1, true, |_| {}).await;
    cluster.schema(WHOLE, 1, TABLE).await.unwrap();
    cluster.write(WHOLE, &insert(0..20, "x"), 1).await.unwrap();
    cluster.is_split().await;
    let (_, half) = cluster.leader(HALVES[0]).await;
    write(&half, "UPDATE t1 SET c2 = 'other'".into()).await;
    let before = cluster.positions(HALVES[0]).await[&WHOLE].0;
    let other = cluster.write(WHOLE, "UPDATE t1 SET c2 = 'y'", 2).await.unwrap();
    let FlowObstacle::Differs(what) = cluster.stops(HALVES[0], WHOLE).await else { panic!("it differs") };
    assert!(what.contains("XX001"), "{what}");
    assert_eq!(cluster.positions(HALVES[0]).await[&WHOLE].0, before);
    assert_eq!(cluster.rows(HALVES[0]).await.iter().filter(|row| row.ends_with("=y")).count(), 0);
    write(&half, "UPDATE t1 SET c2 = 'still there'".into()).await;
    cluster.reaches(HALVES[1], WHOLE, other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_stays_in_front_of_its_flow_until_it_is_undone() {
    let mut cluster = Cluster::start(3, true, |_| {}).await;
    cluster.schema(WHOLE, 1, TABLE).await.unwrap();
    let last = cluster.write(WHOLE, &insert(0..20, "x"), 1).await.unwrap();
    let ask = async |cluster: &Cluster, action| {
        let (node, _) = cluster.leader(WHOLE).await;
        let request = HandOver { attempt: Attempt(1), action, ..asking(WHOLE) };
        node.shards.hand_over(request).await.unwrap()
    };
    let sealed = ask(&cluster, HandOverAction::Seal { drain: Duration::from_secs(1), cleared: false }).await;
    assert!(matches!(sealed, HandedOver::Sealed { .. }), "{sealed:?}");
    let (_, whole) = cluster.leader(WHOLE).await;
    let end = whole.status().applied;
    for killed in [None, Some(HALVES[0])] {
        if let Some(half) = killed {
            cluster.kill_leader(half).await;
        }
        // Whoever leads has heard of the seal, and not passed it.
        let heard = async {
            loop {
                let (node, _) = cluster.leader(HALVES[0]).await;
                let Ok(statuses) = node.shards.hand_over(asking(HALVES[0])).await else { continue };
                let HandedOver::Flows(statuses) = statuses else { panic!("{statuses:?}") };
                if statuses[0].committed >= end && statuses[0].position >= last {
                    return statuses[0].position;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let position = tokio::time::timeout(PATIENCE, heard).await.unwrap();
        assert!(position < end, "{position}, and the seal is at {end} at most");
    }
    assert_eq!(ask(&cluster, HandOverAction::Unseal).await, HandedOver::Unsealed);
    cluster.write(WHOLE, "UPDATE t1 SET c2 = 'y'", 2).await.unwrap();
    cluster.is_split().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_no_replica_has_any_more_is_an_obstacle() {
    let change = |config: &mut replica::Config| {
        (config.log_keep_bytes, config.log_cut_entries, config.log_file_bytes) = (20_000, 8, 64 << 10);
    };
    let mut cluster = Cluster::start(1, true, change).await;
    cluster.schema(WHOLE, 1, TABLE).await.unwrap();
    cluster.write(WHOLE, &insert(0..20, "x"), 1).await.unwrap();
    cluster.is_split().await;
    cluster.stop_flows(0);
    let (node, whole) = cluster.leader(WHOLE).await;
    let from = whole.status().applied;
    let request =
        proto::services::ChangesRequest { shard: WHOLE, after: from, beat: Duration::ZERO, layouts: false };
    loop {
        for _ in 0..20 {
            write(&whole, "UPDATE t1 SET c2 = hex(zeroblob(2000)) || total_changes()".into()).await;
        }
        let mut parts = node.shards.changes(request).await.unwrap();
        if futures::StreamExt::next(&mut parts).await.unwrap().is_err() {
            break;
        }
    }
    cluster.begin_flows(0);
    assert_eq!(cluster.stops(HALVES[0], WHOLE).await, FlowObstacle::Forgotten);
}

/// Commits a big transaction of one row each, by so many pieces.
async fn replay(replica: &Replica, sequence: u64, keys: Vec<i64>) -> LogIndex {
    replay_of(replica, sequence, keys, "big").await
}

async fn replay_of(replica: &Replica, sequence: u64, keys: Vec<i64>, value: &str) -> LogIndex {
    let deadline = Instant::now() + PATIENCE;
    let owner = TransactionId { router: RouterIncarnation(5), sequence };
    let staging = Staging { table: "shoal_staged", owner };
    for (n, key) in (1..).zip(&keys) {
        let sql = insert(*key..key + 1, value);
        let run = move |stage: &replica::Stage<'_>| {
            stage.execute_batch(&sql).unwrap();
            stage.changes()
        };
        let overlay = Overlay::new();
        let rehearsal = Rehearsal { overlay, bare: false, deadline, run: Box::new(run) };
        let piece = Piece::new(staging, n, vec![replica.rehearse(rehearsal).await.unwrap().output]);
        let run = move |stage: &replica::Stage<'_>| piece.write(stage).map(|()| Bytes::new());
        let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
        replica.write(write).await.unwrap();
    }
    let replay = Replay {
        request: Some(RequestId { router: RouterIncarnation(5), sequence }),
        settled: 0,
        output: Bytes::from_static(b"done"),
        staging,
        pieces: Pieces::up_to(keys.len() as u64),
        strike: vec!["shoal_staged"],
        term: None,
        deadline,
    };
    replica.replay(replay).await.unwrap()
}

async fn hold(replica: &Replica) {
    let from = LogIndex(replica.status().applied.0 + 1);
    replica.hold_log("reshard/7/1", Some(from), Instant::now() + PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_transactions_are_taken_over_as_they_were_made() {
    let mut cluster = Cluster::start(3, true, |_| {}).await;
    cluster.schema(WHOLE, 1, TABLE).await.unwrap();
    hold(&cluster.leader(WHOLE).await.1).await;
    for (sequence, victim) in [(1, None), (2, Some(HALVES[0])), (3, Some(WHOLE)), (4, Some(HALVES[1]))] {
        let first = 1000 * sequence as i64;
        replay(&cluster.leader(WHOLE).await.1, sequence, (first..first + 40).collect()).await;
        cluster
            .write(WHOLE, &format!("UPDATE t1 SET c2 = 'after' WHERE c1 = {first}"), sequence)
            .await
            .unwrap();
        if let Some(victim) = victim {
            cluster.kill_leader(victim).await;
        }
        // One that has nothing for one of the halves.
        replay(&cluster.leader(WHOLE).await.1, 100 + sequence, vec![first + 500]).await;
        cluster.is_split().await;
        for half in HALVES {
            assert_eq!(cluster.list(half, "SELECT '' || n FROM shoal_arriving").await, BTreeSet::new());
        }
    }
    assert_eq!(cluster.requests(WHOLE).await.len(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_two_sources_have_answered_keeps_the_first_answer() {
    let cluster = Cluster::start(1, false, |_| {}).await;
    let mut replicas = Vec::new();
    for half in HALVES {
        cluster.schema(half, 1, TABLE).await.unwrap();
        let (_, replica) = cluster.leader(half).await;
        hold(&replica).await;
        replicas.push(replica);
    }
    cluster.catches_up(WHOLE, &HALVES).await;
    for (half, replica) in replicas.iter().enumerate() {
        let first = 100 * half as i64;
        replay(replica, 7, (first..first + 40).collect()).await;
        cluster.write(HALVES[half], &insert(first + 50..first + 60, "small"), 8).await.unwrap();
        cluster.catches_up(WHOLE, &HALVES).await;
    }
    let mut both = cluster.rows(HALVES[0]).await;
    // Of the second half's rows those count that are in its range: the whole has all, for its range is all.
    both.extend(cluster.rows(HALVES[1]).await);
    assert_eq!(both.len(), 100);
    assert_eq!(cluster.rows(WHOLE).await, both);
    assert_eq!(cluster.requests(WHOLE).await, cluster.requests(HALVES[0]).await);
}

/// A transaction over both has one name on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_one_big_transaction_come_from_both_sources_at_a_time() {
    let mut cluster = Cluster::start(1, false, |_| {}).await;
    for half in HALVES {
        cluster.schema(half, 1, TABLE).await.unwrap();
        hold(&cluster.leader(half).await.1).await;
    }
    cluster.catches_up(WHOLE, &HALVES).await;
    // What is there when the flows begin, and is more than is read at a time, is taken over by turns.
    cluster.stop_flows(0);
    let value = "x".repeat(100_000);
    for (half, first) in HALVES.into_iter().zip([0, 100]) {
        let (_, replica) = cluster.leader(half).await;
        replay_of(&replica, 7, (first..first + 40).collect(), &value).await;
    }
    cluster.begin_flows(0);
    cluster.catches_up(WHOLE, &HALVES).await;
    let mut both = cluster.rows(HALVES[0]).await;
    both.extend(cluster.rows(HALVES[1]).await);
    assert!(cluster.rows(WHOLE).await == both && both.len() == 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_step_waits_until_all_sources_have_come_to_it() {
    let cluster = Cluster::start(1, false, |_| {}).await;
    let [one, two] = HALVES;
    cluster.schema(one, 1, TABLE).await.unwrap();
    let early = cluster.write(one, &insert(0..5, "x"), 1).await.unwrap();
    let step = LogIndex(early.0 - 1);
    cluster.reaches(WHOLE, one, LogIndex(step.0 - 1)).await;
    assert!(cluster.positions(WHOLE).await[&one].0 < step, "the other hasn't come to it");
    cluster.schema(two, 1, TABLE).await.unwrap();
    cluster.write(two, &insert(10..15, "y"), 2).await.unwrap();
    cluster.catches_up(WHOLE, &HALVES).await;
    assert_eq!(cluster.rows(WHOLE).await.len(), 10);

    // In the other order; what comes before it isn't held up.
    let index = "CREATE INDEX i1 ON t1 (c2)";
    cluster.schema(two, 2, index).await.unwrap();
    cluster.write(two, "DELETE FROM t1 WHERE c1 = 10", 3).await.unwrap();
    let other = cluster.write(one, "DELETE FROM t1 WHERE c1 = 0", 4).await.unwrap();
    cluster.reaches(WHOLE, one, other).await;
    assert!(cluster.rows(WHOLE).await.contains("10=y"));
    cluster.schema(one, 2, index).await.unwrap();
    cluster.catches_up(WHOLE, &HALVES).await;
    assert!(!cluster.rows(WHOLE).await.contains("10=y"));
    let indexes = "SELECT name FROM sqlite_schema WHERE type = 'index' AND name = 'i1'";
    assert_eq!(cluster.list(WHOLE, indexes).await.len(), 1);

    // One that has failed everywhere is passed over, and so is what undoes it.
    for half in HALVES {
        assert!(cluster.schema(half, 3, "CREATE INDEX i2 ON t1 (nothing)").await.is_err());
        cluster.schema(half, 4, "DROP INDEX IF EXISTS i2").await.unwrap();
    }
    cluster.write(one, "DELETE FROM t1 WHERE c1 = 1", 5).await.unwrap();
    cluster.catches_up(WHOLE, &HALVES).await;
    assert!(!cluster.rows(WHOLE).await.contains("1=x"));
    assert!(cluster.positions(WHOLE).await.values().all(|(_, obstacle)| obstacle.is_none()));

    // One that ends otherwise on another is an obstacle.
    let unique = "CREATE UNIQUE INDEX i3 ON t1 (c2)";
    cluster.write(one, "DELETE FROM t1 WHERE c1 > 2", 6).await.unwrap();
    cluster.schema(one, 5, unique).await.unwrap();
    assert!(cluster.schema(two, 5, unique).await.is_err());
    let obstacle = cluster.stops(WHOLE, two).await;
    assert!(
        matches!(&obstacle, FlowObstacle::Differs(what) if what.contains("step 1 of schema change 5")),
        "{obstacle:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_with_other_steps_are_an_obstacle() {
    let cluster = Cluster::start(1, false, |_| {}).await;
    cluster.schema(HALVES[0], 1, TABLE).await.unwrap();
    cluster.schema(HALVES[1], 2, TABLE).await.unwrap();
    let obstacle = cluster.stops(WHOLE, HALVES[1]).await;
    assert!(matches!(&obstacle, FlowObstacle::Differs(_)), "{obstacle:?}");
    assert_eq!(cluster.list(WHOLE, "SELECT name FROM sqlite_schema WHERE name = 't1'").await.len(), 0);
}
