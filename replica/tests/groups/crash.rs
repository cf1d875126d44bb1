//! A process that dies in the middle of its work: what it acknowledged is there, and once.

use crate::cluster::{request, soon};
use bytes::Bytes;
use proto::services::Consistency::Strong;
use proto::services::{RaftMessage, RaftTransport, ReplicaRole};
use proto::{GroupId, NodeId};
use replica::{Config, Host, Replica, Write};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const DIRECTORY: &str = "SHOAL_TEST_CRASH_DIRECTORY";

struct Nowhere;

impl RaftTransport for Nowhere {
    fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
}

async fn open(directory: &Path) -> (Arc<Host>, Replica) {
    let mut config = Config::new(NodeId(1), directory);
    config.checkpoint_bytes = 256 << 10;
    config.log_file_bytes = 1 << 20;
    let host = Host::open(config, Arc::new(Nowhere)).unwrap();
    let table = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 INTEGER NOT NULL, c3 TEXT) STRICT";
    let replica = host.create(GroupId(2), &[NodeId(1)], &[table.to_owned()]).unwrap();
    replica.watch().wait_for(|status| status.role == ReplicaRole::Leader).await.unwrap();
    (host, replica)
}

fn insert(number: u64) -> Write {
    Write {
        request: Some(request(number)),
        settled: number.saturating_sub(50),
        deadline: soon(),
        run: Box::new(move |connection| {
            // The table's key is its own choice, so a row that is inserted twice is two rows.
            connection
                .prepare_cached("INSERT INTO t1 (c2, c3) VALUES (?1, hex(randomblob(300)))")
                .and_then(|mut statement| statement.execute([number.cast_signed()]))
                .map_err(dialect::sqlite::error)?;
            Ok(Bytes::new())
        }),
    }
}

/// What the killed process does. It prints each number before it writes it and after it was acknowledged.
#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let (_host, replica) = open(Path::new(&directory)).await;
    let snapshot = replica.snapshot(Strong, soon()).await.unwrap();
    let last: u64 = snapshot
        .connection()
        .query_row("SELECT coalesce(max(c2), 0) FROM t1", [], |row| row.get::<_, i64>(0))
        .unwrap()
        .cast_unsigned();
    drop(snapshot);
    // Repeats the last one, as a router does that didn't hear the answer.
    for first in (last.max(1)..).step_by(8) {
        let writes = (first..first + 8).map(|number| {
            let replica = replica.clone();
            async move {
                replica.write(insert(number)).await.unwrap();
                println!("acknowledged {number}");
            }
        });
        futures::future::join_all(writes).await;
    }
}

#[tokio::test]
async fn a_killed_process_loses_no_acknowledged_row_and_doubles_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "crash::writer", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..40 + round * 37 {
            let line = lines.next().expect("it runs until it is killed").unwrap();
            acknowledged
                .extend(line.strip_prefix("acknowledged ").map(|number| number.parse::<i64>().unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            acknowledged
                .extend(line.strip_prefix("acknowledged ").and_then(|number| number.parse::<i64>().ok()));
        }
        let (host, replica) = open(directory.path()).await;
        let snapshot = replica.snapshot(Strong, soon()).await.unwrap();
        let mut statement = snapshot.connection().prepare("SELECT c2 FROM t1 ORDER BY c2").unwrap();
        let rows: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "a row is there twice");
        for number in &acknowledged {
            assert!(rows.binary_search(number).is_ok(), "round {round}: row {number} is lost");
        }
        let check: String =
            snapshot.connection().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        drop(statement);
        drop(snapshot);
        host.shutdown();
    }
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
}
