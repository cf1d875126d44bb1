//! A shard of three replicas, and the loss of its leader.

use crate::common::{Network, Node, PATIENCE, rows};
use proto::services::{Access, Consistency, Floor, FragmentRequest, FragmentResponse, ShardService};
use proto::{LogIndex, NodeId, Retry, Value, WireError};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 INTEGER NOT NULL) STRICT";

/// Asks one node after the other until one answers as leader; says which.
pub async fn ask<'a, T, F>(nodes: &'a [Node], call: impl Fn(&'a Node) -> F) -> (usize, Result<T, WireError>)
where
    F: Future<Output = Result<T, WireError>>,
{
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    let asked = async {
        loop {
            for (place, node) in nodes.iter().enumerate() {
                match call(node).await {
                    Err(error)
                        if matches!(error.retry, Retry::NotLeader(_) | Retry::Unknown | Retry::Later) => {}
                    answer => return (place, answer),
                }
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("a node leads")
}

async fn execute(nodes: &[Node], request: &FragmentRequest) -> (usize, FragmentResponse) {
    let (place, answer) = ask(nodes, |node| node.shards.execute(request.clone())).await;
    (place, answer.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_the_leader() {
    let network = Arc::<Network>::default();
    let ids: Vec<_> = (1..=3).map(NodeId).collect();
    let mut nodes: Vec<_> = ids.iter().map(|id| Node::open(*id, ids.clone(), &network)).collect();
    let step = nodes[0].step(1, &[TABLE], None);
    let (_, made) = ask(&nodes, |node| node.shards.apply_schema(step.clone())).await;
    let made: LogIndex = made.unwrap();
    let insert = nodes[0].write("INSERT INTO t1 (c2) VALUES (7) RETURNING c1", 1);
    let (leader, first) = execute(&nodes, &insert).await;

    // Followers refuse what only a leader may answer, and wait until they have what they must show.
    let strong = nodes[0].read("SELECT count(*) FROM t1", true);
    for (place, node) in nodes.iter().enumerate().filter(|(place, _)| *place != leader) {
        let error = node.shards.execute(strong.clone()).await.err().unwrap();
        assert!(matches!(error.retry, Retry::NotLeader(_)), "node {place}: {error}");
        let access = Access::Read { consistency: Consistency::Session, wait: PATIENCE, lookup: true };
        let session = FragmentRequest { access, floor: Floor::applied(first.position), ..strong.clone() };
        let found = node.shards.execute(session).await.unwrap();
        assert!(found.position >= first.position);
        assert_eq!(rows(found.rows).await.unwrap(), [[Value::Int(1)]]);
    }

    let gone = nodes.remove(leader);
    let host = Arc::clone(&gone.host);
    tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
    drop(gone);
    let (_, again) = execute(&nodes, &insert).await;
    assert_eq!(again.position.max(first.position), again.position);
    assert_eq!(rows(again.rows).await.unwrap(), rows(first.rows).await.unwrap());
    let (_, count) = execute(&nodes, &strong).await;
    assert_eq!(rows(count.rows).await.unwrap(), [[Value::Int(1)]]);
    let (_, remade) = ask(&nodes, |node| node.shards.apply_schema(step.clone())).await;
    assert_eq!(remade.unwrap(), made);
}
