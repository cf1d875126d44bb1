//! How fresh what a session reads must be, by what it sets and by hints.

use super::*;
use futures::StreamExt;
use proto::machine::Machine;
use proto::services::Consistency;
use proto::{LogIndex, NodeId};
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const ROW: &str = "SELECT b FROM t WHERE a = 1";

/// A server whose shards are on three nodes, and whose lot never falls on the leader.
pub(super) async fn server() -> Server {
    let lot = AtomicU64::new(1);
    let machine = Machine::simulated(|| Duration::ZERO, move || lot.fetch_add(3, Ordering::Relaxed));
    let server = Server::start(Config { machine, ..Config::default() }).await;
    server.fake.place(&[1, 2, 3], 2);
    // The router has heard of them when it has asked.
    let client = server.client().await;
    assert_eq!(rows(&client, "SET shoal.gtid = 'none/-.1:1'").await, Err("22023".into()));
    server
}

impl Server {
    /// How the requests since the last time read.
    pub(super) fn levels(&self) -> Vec<&'static str> {
        self.fake.asked();
        let requests = std::mem::take(&mut *self.fake.requests.lock());
        let levels = requests.iter().map(|request| match request.access {
            Access::Read { consistency: Consistency::Strong, .. } => "strong",
            Access::Read { consistency: Consistency::Session, .. } => "session",
            Access::Read { consistency: Consistency::Bounded(bound), wait, .. } => {
                match (bound.as_millis(), wait.as_millis()) {
                    (5000, 50) => "bounded by 5 s",
                    (500, 50) => "bounded by 500 ms",
                    (200, 20) => "bounded by 200 ms, waits for 20",
                    _ => "bounded",
                }
            }
            Access::Read { consistency: Consistency::Eventual, .. } => "eventual",
            Access::Write { .. } => "write",
            Access::Branch { .. } => "branch",
        });
        levels.collect()
    }
}

#[tokio::test]
async fn a_statement_is_read_by_its_hint_and_else_by_what_is_set() {
    let server = server().await;
    let client = server.client().await;
    let levels = async |sql: &str| levels_of(&server, &client, sql).await;
    assert_eq!(levels(ROW).await, ["strong"]);
    assert_eq!(levels(&format!("/*+ read(session) */ {ROW}")).await, ["session"]);
    assert_eq!(
        levels(&format!("{ROW}; /*+ read(bounded) */ {ROW}; {ROW}")).await,
        ["strong", "bounded by 5 s", "strong"]
    );
    assert_eq!(levels(&format!("/*+ read(bounded, 500ms) */ {ROW}")).await, ["bounded by 500 ms"]);
    assert_eq!(levels("/*+ read(session) */ SELECT count(*) FROM t").await, ["session", "session"]);
    client.query(&format!("/*+ read(eventual) */ {ROW}"), &[]).await.unwrap();
    assert_eq!(server.levels(), ["eventual"]);
    let prepared = format!("PREPARE p AS /*+ read(session) */ {ROW}");
    assert_eq!(levels(&format!("{prepared}; EXECUTE p; {ROW}")).await, ["session", "strong"]);
    // A hint before EXECUTE is of what it runs.
    let executed =
        format!("/*+ read(strong) */ EXECUTE p; PREPARE q AS {ROW}; /*+ read(eventual) */ EXECUTE q");
    assert_eq!(levels(&executed).await, ["strong", "eventual"]);
    client.query("/*+ read(session) */ EXECUTE q", &[]).await.unwrap();
    assert_eq!((server.levels(), levels("EXECUTE q").await), (vec!["session"], vec!["strong"]));
    assert_eq!(rows(&client, "/*+ read(x) */ EXECUTE q").await, Err("22023".into()));
    assert_eq!(levels("/*+ read(session) */ DEALLOCATE q").await, [""; 0]);
    client.batch_execute("SET shoal.read_consistency = session").await.unwrap();
    assert_eq!(levels(ROW).await, ["session"]);
    assert_eq!(levels(&format!("/*+ read(strong) */ {ROW}")).await, ["strong"]);
    let local = "SET LOCAL shoal.read_consistency = bounded; SET LOCAL shoal.max_staleness = '200ms'";
    let block = format!("BEGIN; {local}; SET LOCAL shoal.read_wait = 20; {ROW}; COMMIT");
    assert_eq!(levels(&block).await, ["bounded by 200 ms, waits for 20"]);
    assert_eq!(levels(ROW).await, ["session"]);
    let copied = client.copy_out("COPY (SELECT b FROM t WHERE a = 1) TO STDOUT").await.unwrap();
    assert!(Box::pin(copied).collect::<Vec<_>>().await.iter().all(Result::is_ok));
    assert_eq!(server.levels(), ["session"]);
    assert_eq!(levels(&format!("SET shoal.max_staleness = 0; /*+ read(bounded) */ {ROW}")).await, ["strong"]);
    assert_eq!(levels(&format!("RESET ALL; {ROW}")).await, ["strong"]);
    let asked = server.client_with("-c shoal.read_consistency=session").await;
    rows(&asked, ROW).await.unwrap();
    assert_eq!(server.levels(), ["session"]);
}

#[tokio::test]
async fn what_belongs_to_a_write_is_read_from_leaders() {
    let server = server().await;
    let client = server.client_with("-c shoal.read_consistency=session").await;
    let levels = async |sql: &str| levels_of(&server, &client, sql).await;
    assert_eq!(levels("INSERT INTO t VALUES (1, 'x')").await, ["write"]);
    assert_eq!(levels(&format!("BEGIN; {ROW}")).await, ["session"]);
    // On the other shard, and it hasn't the branch.
    let others = async || {
        let mut levels = Vec::new();
        for a in 2..9 {
            levels.extend(levels_of(&server, &client, &format!("SELECT b FROM t WHERE a = {a}")).await);
        }
        levels
    };
    assert!(others().await.iter().all(|level| *level == "session"));
    assert_eq!(levels("UPDATE t SET b = 'y' WHERE a = 1").await, ["branch"]);
    let after = others().await;
    assert!(after.contains(&"strong") && !after.contains(&"session"), "{after:?}");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(levels(ROW).await, ["session"]);
    let repeatable = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {ROW}; COMMIT");
    assert_eq!(levels(&repeatable).await, ["strong"]);
    assert_eq!(levels(&format!("{ROW} FOR UPDATE")).await, ["branch"]);
    assert!(!levels("EXPLAIN ANALYZE SELECT b FROM t WHERE a = 1").await.contains(&"session"));
    server.fake.nodes.positions.lock().insert(NodeId(2), (LogIndex(7777), Duration::ZERO));
    server.fake.nodes.positions.lock().insert(NodeId(3), (LogIndex(7777), Duration::ZERO));
    rows(&client, ROW).await.unwrap();
    assert!(shown(&client, "shoal.gtid").await.contains(":7777"), "what a follower showed is seen");
}

pub(super) async fn levels_of(server: &Server, client: &Client, sql: &str) -> Vec<&'static str> {
    server.levels();
    rows(client, sql).await.unwrap();
    server.levels()
}
