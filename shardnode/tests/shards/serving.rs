//! Who serves as what: requests for a shard that a group isn't, isn't yet, or isn't any more.

use crate::common::{GROUP, Node, PATIENCE, SHARD, rows, state, text};
use crate::followers::is_waiting;
use crate::prepared::{leads, three};
use crate::session::Session;
use bytes::Bytes;
use proto::services::{
    Access, BranchAction, BranchRequest, Consistency, CutAction, CutRequest, Floor, FragmentRequest,
    ShardService,
};
use proto::topology::Topology;
use proto::{
    CutId, Epoch, LogIndex, NodeId, Retry, RouterIncarnation, SchemaVersion, ShardId, TableId, Value,
    WireError,
};
use replica::{Stage, Write};
use std::sync::Arc;
use std::time::Instant;

const HERE: NodeId = NodeId(1);
const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT";
const ROW: &str = "SELECT c2 FROM t1 WHERE c1 = 1";
pub const NEXT: ShardId = ShardId(2);

/// Writes into the row of the shard, as nobody does but in a test.
pub async fn set(node: &Node, columns: &str) -> LogIndex {
    let sql = format!("UPDATE shoal_shard SET {columns}");
    let run = move |stage: &Stage<'_>| {
        stage.execute(&sql, []).unwrap();
        Ok(Bytes::new())
    };
    let deadline = Instant::now() + PATIENCE;
    let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
    node.host.replica(GROUP).unwrap().write(write).await.unwrap().index
}

/// The same node in a process of its own, where nothing is known of the row. In the topology the group is this shard.
pub async fn anew(node: Node, shard: ShardId) -> Node {
    let node = node.restart(vec![HERE], &Arc::default(), |_| {}).await;
    leads(&node).await;
    let before = state(vec![HERE]);
    let mut topology = Topology::clone(&before.topology);
    let was = topology.shards.remove(&SHARD).unwrap();
    topology.shards.insert(shard, proto::topology::Shard { id: shard, ..was });
    let after = proto::services::ClusterState { topology: Arc::new(topology), ..before };
    assert!(node.settle(&after));
    node
}

fn near(node: &Node, consistency: Consistency, floor: LogIndex) -> FragmentRequest {
    let access = Access::Read { consistency, wait: PATIENCE, lookup: true };
    FragmentRequest { access, floor: Floor::applied(floor), ..node.read(ROW, true) }
}

async fn read(node: &Node, request: FragmentRequest) -> Result<Vec<Vec<Value>>, WireError> {
    rows(node.shards.execute(request).await?.rows).await
}

/// What each kind of request hears that is for this shard, by the name of its kind.
async fn heard(node: &Node, shard: ShardId) -> Vec<(String, Result<(), WireError>)> {
    let mut told = Vec::new();
    let epoch = Epoch(1);
    let session = Session::new(node, 100);
    let write = |sequence| node.write("UPDATE t1 SET c2 = 'new'", sequence);
    let locks = proto::services::BranchAccess::Lock { rows: [].into(), limit: None, anew: false };
    let writes = proto::services::BranchAccess::Write { touch: 0 };
    for (name, request) in [
        ("lookup", node.read(ROW, true)),
        ("read", node.read(ROW, false)),
        ("write", write(50)),
        ("statement", session.next("UPDATE t1 SET c2 = 'new'", writes)),
        ("locking", Session::new(node, 101).next(ROW, locks)),
        ("read within", Session::new(node, 102).next(ROW, proto::services::BranchAccess::Read)),
    ] {
        let answer = node.shards.execute(FragmentRequest { shard, ..request }).await;
        told.push((name.to_owned(), answer.map(drop)));
    }
    let participants = vec![SHARD, ShardId(9)];
    for action in [
        session.commitment(),
        BranchAction::Prepare { participants: participants.clone(), parallel: false },
        BranchAction::Prepare { participants, parallel: true },
        BranchAction::Finish { commit: true, keep: false },
        BranchAction::Finish { commit: false, keep: false },
        BranchAction::Renounce,
        BranchAction::Forget(vec![session.id()]),
    ] {
        let (name, transaction) = (format!("{action:?}"), Session::new(node, 200).id());
        let request = BranchRequest { shard, epoch, on_behalf: None, transaction, action, timeout: PATIENCE };
        told.push((name, node.shards.transact(request).await.map(drop)));
    }
    let (schema_version, after) = (SchemaVersion(1), LogIndex(0));
    let action = CutAction::Open { schema_version, tables: vec![TableId(1)], scans: Some(1), after };
    let cut = CutId { router: RouterIncarnation(5), sequence: 1 };
    let request = CutRequest { shard, epoch, cut, action, timeout: PATIENCE };
    told.push(("cut".into(), node.shards.cut(request).await.map(drop)));
    told.push(("list".into(), node.shards.branches(shard).await.map(drop)));
    told
}

pub async fn filled() -> Node {
    let node = Node::start().await;
    node.schema(1, &[TABLE], None).await.unwrap();
    node.shards.execute(node.write("INSERT INTO t1 VALUES (1, 'old')", 1)).await.unwrap();
    node
}

/// The row, whoever may read it.
async fn value(node: &Node) -> String {
    let replica = node.host.replica(GROUP).unwrap();
    let snapshot = replica.snapshot(Consistency::Eventual, Instant::now() + PATIENCE).await.unwrap();
    snapshot.connection().query_row(ROW, [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_answers_as_the_shard_that_its_row_names() {
    let stale = Some(Retry::StaleEpoch(Epoch(2)));
    for (columns, shard, expected) in [
        // What it was founded as.
        ("void = void", SHARD, None),
        ("shard = 2", SHARD, stale.clone()),
        ("state = 1, reshard = 7, attempt = 1", SHARD, stale.clone()),
        ("state = 1, reshard = 7, attempt = 1", NEXT, Some(Retry::Later)),
        ("void = void", NEXT, Some(Retry::Later)),
        ("shard = 2, state = 2", NEXT, Some(Retry::Later)),
        ("shard = 2, state = 2", SHARD, stale.clone()),
        ("shard = 2", NEXT, None),
    ] {
        let node = filled().await;
        let at = set(&node, columns).await;
        let node = anew(node, shard).await;
        // The request of a write that is known is answered as all others are.
        let repeated = FragmentRequest { shard, ..node.write("INSERT INTO t1 VALUES (1, 'old')", 1) };
        let mut told = vec![("repeated".to_owned(), node.shards.execute(repeated).await.map(drop))];
        told.extend(heard(&node, shard).await);
        for (name, answer) in told {
            match (&expected, answer) {
                (Some(retry), answer) => {
                    let error = answer.expect_err(&name);
                    assert_eq!(error.retry, *retry, "{columns}: {name}: {error}");
                }
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    let is_of_row = matches!(error.retry, Retry::StaleEpoch(_) | Retry::Later);
                    assert!(!is_of_row, "{columns}: {name}: {error}");
                }
            }
        }
        assert_eq!(value(&node).await, if expected.is_some() { "old" } else { "new" }, "{columns}");
        // Any replica answers by its own row, and says how far it has come.
        for consistency in [Consistency::Session, Consistency::Eventual] {
            let request = FragmentRequest { shard, ..near(&node, consistency, at) };
            match (&expected, read(&node, request).await) {
                (None, answer) => assert_eq!(answer.unwrap(), [[text("new")]]),
                (Some(Retry::Later), answer) => {
                    assert!(matches!(answer.unwrap_err().retry, Retry::Behind(position) if position >= at));
                }
                (Some(retry), answer) => assert_eq!(answer.unwrap_err().retry, *retry, "{columns}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_answers_from_before_the_seal_until_it_has_it() {
    let (nodes, network) = three(|_| {}).await;
    let before = set(&nodes[0], "void = void").await;
    assert_eq!(read(&nodes[2], near(&nodes[2], Consistency::Session, before)).await.unwrap(), [[text("a")]]);
    let third = network.detach(NodeId(3));
    let eventual = |node| near(node, Consistency::Eventual, LogIndex(0));
    let sealed = set(&nodes[0], "state = 1, reshard = 7, attempt = 1").await;
    assert!(sealed > before);
    let stale = Retry::StaleEpoch(Epoch(2));
    // A node that has the seal answers nobody, whatever the reader is content with.
    for node in &nodes[..2] {
        let has_it = near(node, Consistency::Session, sealed);
        assert_eq!(read(node, has_it).await.unwrap_err().retry, stale);
        assert_eq!(read(node, eventual(node)).await.unwrap_err().retry, stale);
    }
    // One that hasn't answers from before it.
    assert_eq!(read(&nodes[2], eventual(&nodes[2])).await.unwrap(), [[text("a")]]);
    network.attach(NodeId(3), third);
    let has_it = near(&nodes[2], Consistency::Session, sealed);
    assert_eq!(read(&nodes[2], has_it).await.unwrap_err().retry, stale);
    assert_eq!(read(&nodes[2], eventual(&nodes[2])).await.unwrap_err().retry, stale);
    let opened = set(&nodes[0], "state = 0, void = 1").await;
    for node in &nodes {
        assert_eq!(read(node, near(node, Consistency::Session, opened)).await.unwrap(), [[text("a")]]);
    }
}

/// What is prepared on a shard that isn't served any more ends elsewhere, if ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_is_prepared_hears_that_the_shard_is_sealed() {
    let (nodes, _network) = three(|_| {}).await;
    let one = Session::new(&nodes[0], 1);
    one.write("UPDATE t1 SET c2 = 'A' WHERE c1 = 1").await.unwrap();
    let index = one.prepare().await.unwrap();
    let settled = |node: &Node| {
        let floor = Floor { applied: index, settled: index };
        FragmentRequest { floor, ..near(node, Consistency::Session, index) }
    };
    let (strong, follower) = (nodes[0].read(ROW, true), settled(&nodes[1]));
    let mut waiting = [Box::pin(read(&nodes[0], strong)), Box::pin(read(&nodes[1], follower))];
    for waiting in &mut waiting {
        is_waiting(waiting).await;
    }
    set(&nodes[0], "state = 1, reshard = 7, attempt = 1").await;
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap_err().retry, Retry::StaleEpoch(Epoch(2)));
    }
    let late = read(&nodes[2], settled(&nodes[2])).await;
    assert_eq!(late.unwrap_err().retry, Retry::StaleEpoch(Epoch(2)));
}
