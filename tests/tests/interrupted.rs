//! What is under way when a process is killed goes on, or is done again: a database that is being sent and installed,
//! and the making of a cluster.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::nodes::{self, Nodes};
use tests::wait::{PATIENCE, until};

/// How often files are looked at. What is to be seen may be over soon.
const GLANCE: Duration = Duration::from_micros(500);
/// How many rows are written at a time, and of how many bytes: so that the database is large, and so that the log, of
/// which nodes keep 1 MiB, forgets where it was.
const ROWS: i32 = 120;
const LARGE: usize = 300_000;
const SMALL: usize = 30_000;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// What a replica's directory says of an image that comes.
#[derive(Clone, Copy, Debug, Default)]
struct Arriving {
    /// How much has arrived, while it is arriving.
    part: Option<u64>,
    /// It has all arrived, and is the database from now on.
    next: bool,
}

impl Arriving {
    fn look(directory: &Path) -> Self {
        let mut seen = Self::default();
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("incoming-") {
                seen.part = entry.metadata().ok().map(|metadata| metadata.len());
            }
            seen.next |= name.starts_with("next-");
        }
        seen
    }
}

/// A shard whose database is large for its log, and one of whose followers is away.
struct Stage {
    nodes: Nodes,
    runtime: tokio::runtime::Runtime,
    shard: String,
    group: u64,
    away: usize,
    rows: i32,
    /// The length of all their texts.
    length: i64,
}

impl Stage {
    fn set() -> Self {
        let nodes = Nodes::start_with(
            3,
            &["--log-keep", "1MiB", "--checkpoint-size", "1MiB"],
            &["--shards", "1", "--replicas", "3"],
        );
        let runtime = runtime();
        runtime.block_on(async {
            let client = nodes.connect(0).await;
            client.batch_execute("CREATE TABLE t (n int PRIMARY KEY, v text)").await.unwrap();
        });
        let status = nodes.status(0).unwrap();
        let shard = nodes::groups(&status).find(|group| group["keyspace"] == "main").unwrap();
        let (shard, group) = (shard["shard"].as_str().unwrap().to_owned(), shard["group"].as_u64().unwrap());
        let leader = nodes.leader(0, &shard).unwrap();
        Stage { nodes, runtime, shard, group, away: (leader + 1) % 3, rows: 0, length: 0 }
    }

    /// Writes rows of so many bytes each.
    fn fill(&mut self, bytes: usize) {
        let text = "x".repeat(bytes);
        let first = self.rows;
        self.rows += ROWS;
        self.length += i64::from(ROWS) * text.len() as i64;
        self.runtime.block_on(async {
            let client = self.nodes.connect(self.at()).await;
            let insert = client.prepare("INSERT INTO t VALUES ($1, $2)").await.unwrap();
            for number in first..self.rows {
                client.execute(&insert, &[&number, &text]).await.unwrap();
            }
        });
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.nodes.directory(node).join("groups").join(self.group.to_string())
    }

    /// Waits until the files of the follower are as they should be.
    fn watch(&self, what: &str, is: impl Fn(Arriving) -> bool) -> Arriving {
        let directory = self.directory(self.away);
        let seen = until(PATIENCE, GLANCE, || {
            let seen = Arriving::look(&directory);
            if is(seen) { Ok(seen) } else { Err(seen) }
        });
        seen.unwrap_or_else(|seen| {
            panic!("{what} was not to be seen: {seen:?}\n{:#?}", self.nodes.status(self.at()))
        })
    }

    /// A node that isn't the one that is away.
    fn at(&self) -> usize {
        (self.away + 1) % 3
    }

    /// Waits until all replicas have the same, and proves it.
    fn check(&self, at: usize) {
        self.nodes.wait_for(at, "all replicas are level", |status| {
            nodes::groups(status).all(|group| nodes::is_level(group, 3))
        });
        let check = self.nodes.shoal(at, &["replica", "check", "--shard", &self.shard]);
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        self.runtime.block_on(async {
            let client = self.nodes.connect(self.away).await;
            let row = client.query_one("SELECT count(*), sum(length(v)) FROM t", &[]).await.unwrap();
            let (count, length): (i64, i64) = (row.get(0), row.get(1));
            assert_eq!((count, length), (i64::from(self.rows), self.length));
        });
    }
}

#[test]
fn whoever_dies_while_an_image_is_sent_or_installed_the_receiver_comes_to_what_the_others_have() {
    let mut stage = Stage::set();
    let away = stage.away;
    stage.nodes.kill(away);
    stage.fill(LARGE);
    stage.nodes.restart(away);
    // It is killed while the image comes, and goes on with what it has each time.
    let mut had = 0;
    for least in [1, 8 << 20, 20 << 20] {
        let seen = stage.watch("an image that comes", |seen| seen.part.is_some_and(|part| part >= least));
        stage.nodes.kill(away);
        println!("killed at {seen:?}");
        assert!(seen.part.is_some_and(|part| part >= had), "what had arrived was kept: {had}, {seen:?}");
        had = Arriving::look(&stage.directory(away)).part.unwrap();
        stage.nodes.restart(away);
    }
    // When all of it is there and is being proved, and when it is the database from now on.
    let most = std::cell::Cell::new(0);
    let seen = stage.watch("an image that has come", |seen| {
        let grows = seen.part.is_some_and(|part| part > most.get());
        most.set(most.get().max(seen.part.unwrap_or(0)));
        (most.get() > 30 << 20 && !grows) || seen.next
    });
    stage.nodes.kill(away);
    println!("killed at {seen:?}");
    stage.nodes.restart(away);
    let seen = stage.watch("an image that is the next database", |seen| seen.next);
    stage.nodes.kill(away);
    println!("killed at {seen:?}");
    stage.fill(SMALL);
    // And while it takes what has been written since.
    stage.nodes.restart(away);
    stage.nodes.kill(away);
    stage.nodes.restart(away);
    stage.check(stage.at());

    // Whoever sends dies, and the other one goes on. A new leader has no image for whose receiver it would keep the log.
    let first = stage.nodes.leader(stage.at(), &stage.shard).unwrap();
    let sender = 3 - away - first;
    stage.nodes.kill(away);
    let id = stage.nodes.id(sender).unwrap().to_string();
    let arguments = ["replica", "transfer-leader", "--shard", &stage.shard, "--to", &id];
    let moved = stage.nodes.shoal(first, &arguments);
    assert!(moved.status.success(), "{}", said(&moved));
    stage.fill(SMALL);
    stage.nodes.restart(away);
    stage.watch("an image that comes", |seen| seen.part.is_some_and(|part| part > 2 << 20));
    stage.nodes.kill(sender);
    stage.nodes.wait_for(first, "the receiver follows another leader", |status| {
        let groups: Vec<_> = nodes::groups(status).collect();
        let shard = groups.iter().find(|group| group["shard"] == stage.shard.as_str());
        let id = stage.nodes.id(sender);
        shard.is_some_and(|shard| shard["leader"].as_u64().is_some_and(|leader| Some(leader) != id))
    });
    stage.runtime.block_on(async {
        let client = stage.nodes.connect(first).await;
        client.execute("UPDATE t SET v = v WHERE n = 7", &[]).await.unwrap();
    });
    stage.nodes.restart(sender);
    stage.check(first);
}

fn said(output: &std::process::Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

/// What a node's directory says of how far it has come; JSON null if it says nothing.
fn record(nodes: &Nodes, node: usize) -> serde_json::Value {
    let text = std::fs::read(nodes.directory(node).join("node.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Waits until the directories of nodes are as they should be.
fn wait_for_record(nodes: &Nodes, node: usize, is: impl Fn(&serde_json::Value) -> bool) {
    let written = until(PATIENCE, GLANCE, || {
        let record = record(nodes, node);
        if is(&record) { Ok(()) } else { Err(record) }
    });
    if let Err(record) = written {
        panic!("node {node} is as it was: {record:#?}");
    }
}

/// Has a cluster whose making was interrupted be finished and serve.
fn is_whole(nodes: &Nodes) {
    nodes.wait_for(0, "a cluster of three", |status| {
        let groups: Vec<_> = nodes::groups(status).collect();
        groups.len() == 4 && groups.iter().all(|group| nodes::is_level(group, 3))
    });
    runtime().block_on(async {
        nodes.connect(1).await.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
        for node in 0..3 {
            let client = nodes.connect(node as usize).await;
            client.execute("INSERT INTO t VALUES ($1)", &[&node]).await.unwrap();
            let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
            assert_eq!(count, i64::from(node) + 1);
        }
    });
}

const INIT: [&str; 3] = ["init", "--shards", "2"];

#[test]
fn init_goes_on_after_the_node_that_carries_it_out_was_killed() {
    let mut nodes = Nodes::launch(3, &[]);
    nodes.wait_for_acquaintance();
    let mut init = nodes.begin_shoal(0, &INIT);
    // From here on the cluster is what is written here. Who of the others knows is open.
    wait_for_record(&nodes, 0, |record| record["plan"].is_object());
    nodes.kill(0);
    let cluster = record(&nodes, 0)["plan"]["cluster"].clone();
    init.wait().unwrap();
    nodes.restart(0);
    // Whether the node is faster by itself or somebody asks for it: it's the cluster that was begun.
    let again = nodes.shoal(0, &INIT);
    assert!(again.status.success() || said(&again).contains("already"), "{}", said(&again));
    for node in 0..3 {
        wait_for_record(&nodes, node, |record| record["member"]["cluster"].is_string());
        assert!(cluster.is_null() || record(&nodes, node)["member"]["cluster"] == cluster);
    }
    wait_for_record(&nodes, 0, |record| record["plan"].is_null());
    is_whole(&nodes);
    let other = nodes.shoal(0, &["init", "--shards", "8"]);
    assert!(other.status.code() == Some(1) && said(&other).contains("already"), "{}", said(&other));
}

#[test]
fn init_goes_on_after_a_founder_was_killed_and_init_itself() {
    let mut nodes = Nodes::launch(3, &[]);
    nodes.wait_for_acquaintance();
    let mut init = nodes.begin_shoal(0, &INIT);
    wait_for_record(&nodes, 0, |record| record["plan"].is_object());
    nodes.kill(2);
    // Without the command, the nodes go on.
    init.kill().unwrap();
    init.wait().unwrap();
    let other = nodes.begin_shoal(0, &["init", "--shards", "8"]);
    nodes.restart(2);
    let other = other.wait_with_output().unwrap();
    assert!(other.status.code() == Some(1) && said(&other).contains("already"), "{}", said(&other));
    let again = nodes.shoal(0, &INIT);
    assert!(again.status.success() || said(&again).contains("already"), "{}", said(&again));
    is_whole(&nodes);
}
