//! How long a replica's WAL grows, and how long its writers pause, while clients' reads and writes overlap.
//!
//! `wal [--seconds N] [--clients N] [--long-reads] [--unbounded]`: each client reads a part of the table and updates rows
//! of it, in turns, so that some read is always open. With `--long-reads` one more reader keeps its snapshots open until
//! they are ended. With `--unbounded` the WAL is copied but never emptied, to see what the bounds are for.

use bytes::Bytes;
use proto::services::{Consistency, RaftMessage, RaftTransport, ReplicaRole};
use proto::{GroupId, NodeId};
use replica::{Config, Host, Replica, Stage, Write};
use rusqlite::Connection;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle};

const ROWS: u64 = 40_000;
const READ_ROWS: u64 = 10_000;
const WRITE_ROWS: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(600);

struct Nowhere;

impl RaftTransport for Nowhere {
    fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
}

struct Options {
    seconds: u64,
    clients: u64,
    long_reads: bool,
    unbounded: bool,
}

/// What the clients did, and when.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    reads: AtomicU64,
    ended: AtomicU64,
    /// How long each write took.
    took: Mutex<Vec<Duration>>,
    /// When each was acknowledged.
    acknowledged: Mutex<Vec<Instant>>,
}

fn options() -> Options {
    let mut options = Options { seconds: 120, clients: 16, long_reads: false, unbounded: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number follows");
        match argument.as_str() {
            "--seconds" => options.seconds = number(),
            "--clients" => options.clients = number(),
            "--long-reads" => options.long_reads = true,
            "--unbounded" => options.unbounded = true,
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn main() {
    let options = options();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let mut config = Config::new(NodeId(1), directory.path());
    if options.unbounded {
        config.hold_bytes = u64::MAX;
        config.end_reads_bytes = u64::MAX;
    }
    let host = Host::open(config, Arc::new(Nowhere)).expect("it opens");
    let table = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT".to_owned();
    let fill = format!(
        "INSERT INTO t1 WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         SELECT i, hex(randomblob(250)) FROM n",
        ROWS - 1
    );
    let replica = host.create(GroupId(1), &[NodeId(1)], &[table, fill]).expect("it is made");
    let handle = runtime.handle().clone();
    handle.block_on(async {
        let mut status = replica.watch();
        status.wait_for(|status| status.role == ReplicaRole::Leader).await.expect("it leads").applied
    });
    let wal = directory.path().join("groups/1/replica.sqlite-wal");
    let seen = Arc::new(Seen::default());
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let longest = thread::scope(|scope| {
        for client in 0..options.clients {
            let (seen, replica, handle) = (&seen, &replica, &handle);
            scope.spawn(move || run_client(client, seen, replica, handle));
        }
        if options.long_reads {
            scope.spawn(|| hold_snapshots(&seen, &replica, &handle));
        }
        let mut longest = 0;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
            longest = longest.max(length(&wal));
        }
        seen.stop.store(true, Ordering::Relaxed);
        longest
    });
    report(&options, &seen, longest);
    host.shutdown();
}

fn length(wal: &Path) -> u64 {
    std::fs::metadata(wal).map_or(0, |file| file.len())
}

fn run_client(client: u64, seen: &Seen, replica: &Replica, handle: &Handle) {
    let mut random = (client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    while !seen.stop.load(Ordering::Relaxed) {
        let first = draw(ROWS - READ_ROWS);
        let deadline = Instant::now() + PATIENCE;
        let snapshot = handle.block_on(replica.snapshot(Consistency::Strong, deadline)).expect("it leads");
        let sql = "SELECT sum(length(c2)) FROM t1 WHERE c1 BETWEEN ?1 AND ?2";
        let read = |connection: &Connection| {
            connection
                .prepare_cached(sql)?
                .query_row([first.cast_signed(), (first + READ_ROWS).cast_signed()], |_| Ok(()))
        };
        match read(snapshot.connection()) {
            Ok(()) => seen.reads.fetch_add(1, Ordering::Relaxed),
            Err(_) => seen.ended.fetch_add(1, Ordering::Relaxed),
        };
        drop(snapshot);

        let keys: Vec<u64> = (0..WRITE_ROWS).map(|_| draw(ROWS)).collect();
        let run = Box::new(move |stage: &Stage<'_>| {
            let sql = "UPDATE t1 SET c2 = hex(randomblob(250)) WHERE c1 = ?1";
            let mut update = stage.prepare_cached(sql).map_err(dialect::sqlite::error)?;
            for key in keys {
                update.execute([key.cast_signed()]).map_err(dialect::sqlite::error)?;
            }
            Ok(Bytes::new())
        });
        let begun = Instant::now();
        let write = Write { request: None, settled: 0, deadline: begun + PATIENCE, run };
        handle.block_on(replica.write(write)).expect("it is committed");
        let now = Instant::now();
        seen.took.lock().expect("nobody panicked").push(now - begun);
        seen.acknowledged.lock().expect("nobody panicked").push(now);
    }
}

/// As a cursor does whose client is slow.
fn hold_snapshots(seen: &Seen, replica: &Replica, handle: &Handle) {
    while !seen.stop.load(Ordering::Relaxed) {
        let deadline = Instant::now() + PATIENCE;
        let snapshot = handle.block_on(replica.snapshot(Consistency::Strong, deadline)).expect("it leads");
        while !seen.stop.load(Ordering::Relaxed) && snapshot.check().is_ok() {
            let short = Duration::from_millis(100);
            // That it isn't ended yet is no error.
            let _ = handle.block_on(async { tokio::time::timeout(short, snapshot.ended()).await });
        }
        seen.ended.fetch_add(u64::from(snapshot.check().is_err()), Ordering::Relaxed);
    }
}

fn report(options: &Options, seen: &Seen, longest: u64) {
    let mut took = seen.took.lock().expect("nobody panicked").clone();
    let mut acknowledged = seen.acknowledged.lock().expect("nobody panicked").clone();
    acknowledged.sort_unstable();
    let mut gaps: Vec<Duration> = acknowledged.windows(2).map(|pair| pair[1] - pair[0]).collect();
    took.sort_unstable();
    gaps.sort_unstable();
    let at = |sorted: &[Duration], share: f64| {
        let place = (sorted.len().saturating_sub(1) as f64 * share) as usize;
        sorted.get(place).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
    };
    let seconds = options.seconds as f64;
    println!(
        "{} clients, {} s: {:.0} writes/s of {WRITE_ROWS} rows, {:.0} reads/s of {READ_ROWS} rows, {} ended",
        options.clients,
        options.seconds,
        took.len() as f64 / seconds,
        seen.reads.load(Ordering::Relaxed) as f64 / seconds,
        seen.ended.load(Ordering::Relaxed),
    );
    println!("longest WAL: {:.1} MiB", longest as f64 / f64::from(1 << 20));
    for (what, sorted) in [("a write took", &took), ("between two acknowledgements", &gaps)] {
        println!(
            "{what}: median {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, worst {:.1} ms",
            at(sorted, 0.5),
            at(sorted, 0.99),
            at(sorted, 0.999),
            at(sorted, 1.0)
        );
    }
}
