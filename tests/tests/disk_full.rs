//! One node's disk is full: its replicas stop and say so, no client hears of it, and when there is space again they come
//! back by themselves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::nodes::Nodes;

/// A file system of its own, so that filling it fills nothing else.
struct Small(PathBuf);

impl Small {
    /// Nothing where this machine doesn't let a test mount one.
    fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all that is free.
    fn fill(&self) {
        let mut file = fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        while file.write_all(&[7; 1 << 16]).is_ok() {}
        while file.write_all(&[7]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A test that has failed has told why; this must not hide it.
        drop(Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

/// What clients write, and how long they had to wait.
#[derive(Default)]
struct Load {
    ended: AtomicBool,
    next: AtomicU64,
    worst_micros: AtomicU64,
}

impl Load {
    /// Inserts rows, one by one, until it's told to end. Every statement must succeed.
    async fn run(&self, client: &tokio_postgres::Client) {
        let insert = client.prepare("INSERT INTO t VALUES ($1, $2)").await.unwrap();
        let text = "x".repeat(2000);
        while !self.ended.load(Ordering::Relaxed) {
            let number = i64::try_from(self.next.fetch_add(1, Ordering::Relaxed)).unwrap();
            let begun = Instant::now();
            let inserted = client.execute(&insert, &[&number, &text]).await;
            assert_eq!(inserted.map_err(|error| format!("{error:?}")), Ok(1));
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap();
            self.worst_micros.fetch_max(micros, Ordering::Relaxed);
        }
    }

    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_micros.swap(0, Ordering::Relaxed))
    }
}

/// The causes that a node's replicas say they have stopped for.
fn stopped(status: &serde_json::Value, node: u64) -> Vec<String> {
    fn collect(value: &serde_json::Value, node: u64, causes: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                if object.get("node").and_then(serde_json::Value::as_u64) == Some(node)
                    && let Some(cause) = object.get("stopped").and_then(serde_json::Value::as_str)
                {
                    causes.push(cause.to_owned());
                }
                object.values().for_each(|value| collect(value, node, causes));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, node, causes)),
            _ => {}
        }
    }
    let mut causes = Vec::new();
    collect(status, node, &mut causes);
    causes
}

#[test]
fn a_full_disk_on_one_node_of_three_is_heard_of_by_no_client() {
    let mut nodes = Nodes::launch(2, &[]);
    let directory = nodes.directory(0).with_file_name("node-2");
    let Some(small) = Small::mount(&directory, 256) else {
        eprintln!("SKIPPED: this machine doesn't let a test mount a file system");
        return;
    };
    let third = nodes.add(&[]);
    assert_eq!(nodes.directory(third), directory);
    nodes.init(&["--shards", "4"]);
    let id = nodes.id(third).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let load = Arc::new(Load::default());
    let mut writers = Vec::new();
    runtime.block_on(async {
        nodes.connect(0).await.batch_execute("CREATE TABLE t (n bigint PRIMARY KEY, v text)").await.unwrap();
        for writer in 0..6 {
            // Two of them through the router of the node whose disk fills up: it goes on, with the others' replicas.
            let client = nodes.connect(writer % 3).await;
            let load = load.clone();
            writers.push(tokio::spawn(async move { load.run(&client).await }));
        }
    });
    for _ in 0..2 {
        small.fill();
        nodes.wait_for(0, "the full disk is told of", |status| {
            let causes = stopped(status, id);
            causes.iter().any(|cause| cause.contains(&directory.display().to_string()))
        });
        println!("stopped: {:?}", stopped(&nodes.status(0).unwrap(), id));
        let before = load.next.load(Ordering::Relaxed);
        nodes.wait_for(0, "writers go on", |_| load.next.load(Ordering::Relaxed) > before + 500);
        println!("longest wait while it filled up: {:?}", load.worst());
        small.free();
        nodes.wait_for(0, "its replicas are back", |status| stopped(status, id).is_empty());
        println!("longest wait while it came back: {:?}", load.worst());
        assert!(nodes.is_running(third));
    }
    load.ended.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for writer in writers {
            writer.await.unwrap();
        }
        let written = i64::try_from(load.next.load(Ordering::Relaxed)).unwrap();
        let count: i64 =
            nodes.connect(1).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(count, written, "every row was acknowledged");
    });
    // One line for each replica that stops, not one for each write that it misses.
    let complaints = nodes.log(third).lines().filter(|line| line.contains("ERROR")).count();
    assert!(complaints < 60, "{complaints} lines of errors");
}

#[test]
fn a_node_starts_on_a_full_disk() {
    let mut nodes = Nodes::launch(2, &[]);
    let directory = nodes.directory(0).with_file_name("node-2");
    let Some(small) = Small::mount(&directory, 256) else {
        eprintln!("SKIPPED: this machine doesn't let a test mount a file system");
        return;
    };
    let third = nodes.add(&[]);
    nodes.init(&["--shards", "4"]);
    let id = nodes.id(third).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let insert = |nodes: &Nodes, node: usize, from: i64| {
        runtime.block_on(async {
            let client = nodes.connect(node).await;
            for number in from..from + 100 {
                client.execute("INSERT INTO t VALUES ($1)", &[&number]).await.unwrap();
            }
        });
    };
    runtime.block_on(async {
        nodes.connect(0).await.batch_execute("CREATE TABLE t (n bigint PRIMARY KEY)").await.unwrap();
    });
    insert(&nodes, 0, 0);
    nodes.kill(third);
    small.fill();
    insert(&nodes, 1, 100);
    nodes.restart(third);
    insert(&nodes, third, 200);
    small.free();
    nodes.wait_for(0, "its replicas are back", |status| stopped(status, id).is_empty());
    insert(&nodes, third, 300);
    runtime.block_on(async {
        let client = nodes.connect(third).await;
        let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(count, 400);
    });
}
