//! What a step of an open transaction costs, by what the transaction has done before, and a long transaction against
//! the same rows written one by one.
//!
//! `rehearsals [--rows N] [--clients N]`: one replica. Steps insert a row; above overlays that must be applied first,
//! then above one that stays applied. Then N rows are inserted by as many steps of one transaction, which is committed;
//! by writes of so many clients, which share batches.

use bytes::Bytes;
use proto::services::{RaftMessage, RaftTransport, ReplicaRole};
use proto::{GroupId, NodeId, WireError};
use replica::{Config, Host, Overlay, Rehearsal, Replica, Stage, Write, WriteFn};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

const PATIENCE: Duration = Duration::from_secs(600);
const STEPS: i64 = 500;

struct Nowhere;

impl RaftTransport for Nowhere {
    fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
}

fn main() {
    let (mut rows, mut clients) = (100_000, 64);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let number = arguments.next().and_then(|n| n.parse().ok()).expect("a number follows");
        match argument.as_str() {
            "--rows" => rows = number,
            "--clients" => clients = number,
            other => panic!("unknown option {other}"),
        }
    }
    let directory = tempfile::tempdir().expect("a directory can be made");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let host = Host::open(Config::new(NodeId(1), directory.path()), Arc::new(Nowhere)).expect("it opens");
    let table = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT".to_owned();
    let replica = host.create(GroupId(1), &[NodeId(1)], &[table]).expect("it is made");
    runtime.block_on(async {
        let mut status = replica.watch();
        status.wait_for(|status| status.role == ReplicaRole::Leader).await.expect("it leads");
        for before in [0, 1, 100, 10_000] {
            steps(&replica, before).await;
        }
        compare(&replica, rows, clients).await;
    });
    host.shutdown();
}

fn insert(key: i64) -> WriteFn {
    Box::new(move |stage: &Stage<'_>| {
        let sql = "INSERT INTO t1 VALUES (?1, 'a filler of some length')";
        let inserted = stage.prepare_cached(sql).and_then(|mut insert| insert.execute([key]));
        inserted.map(|_| Bytes::new()).map_err(dialect::sqlite::error)
    })
}

async fn step(replica: &Replica, overlay: &Overlay, key: i64) -> Result<(), WireError> {
    let insert = insert(key);
    // Whoever locks rows asks what it has changed.
    let run = Box::new(move |stage: &Stage<'_>| {
        insert(stage)?;
        stage.changes()
    });
    let rehearsal =
        Rehearsal { overlay: overlay.clone(), bare: false, deadline: Instant::now() + PATIENCE, run };
    replica.rehearse(rehearsal).await.map(drop)
}

async fn write(replica: &Replica, run: WriteFn) -> Result<(), WireError> {
    let write = Write { request: None, settled: 0, deadline: Instant::now() + PATIENCE, run };
    replica.write(write).await.map(drop)
}

/// What a step costs above so many rows, applied for it first or not.
async fn steps(replica: &Replica, before: i64) {
    let overlay = Overlay::new();
    for key in 0..before {
        step(replica, &overlay, key).await.expect("it leads");
    }
    let base = overlay.len();
    let begun = Instant::now();
    let count = if before > 1000 { STEPS / 10 } else { STEPS };
    for key in 0..count {
        // What it was before isn't what it is now.
        step(replica, &overlay, before + key).await.expect("it leads");
        overlay.truncate(base);
        if base == 0 {
            // Nothing can be cut off: another one comes in between.
            step(replica, &Overlay::new(), before).await.expect("it leads");
        }
    }
    let times = if base == 0 { 2 } else { 1 };
    let applied = begun.elapsed() / u32::try_from(times * count).expect("it's small");
    let begun = Instant::now();
    for key in 0..STEPS {
        step(replica, &overlay, before + key).await.expect("it leads");
    }
    let resident = begun.elapsed() / u32::try_from(STEPS).expect("it's small");
    println!(
        "a step above {before} rows: {applied:.1?} if they're applied first, {resident:.1?} if they're there"
    );
}

async fn compare(replica: &Replica, rows: i64, clients: i64) {
    let overlay = Overlay::new();
    let begun = Instant::now();
    for key in 0..rows {
        step(replica, &overlay, key).await.expect("it leads");
    }
    let stepped = begun.elapsed();
    let changeset = overlay.changeset().expect("its chunks go together");
    let merged = begun.elapsed() - stepped;
    let commit = Box::new(move |stage: &Stage<'_>| stage.apply(&changeset).map(|()| Bytes::new()));
    write(replica, commit).await.expect("it is committed");
    let committed = begun.elapsed() - stepped - merged;
    println!(
        "{rows} rows by one transaction: {:.2?}, of which merging took {merged:.2?}, committing {committed:.2?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let replica = replica.clone();
            tokio::spawn(async move {
                for key in (rows..2 * rows).filter(|key| key % clients == client) {
                    write(&replica, insert(key)).await.expect("it is committed");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it doesn't panic");
    }
    println!("{rows} rows by writes of {clients} clients: {:.2?}", begun.elapsed());
}
