//! How long a replica takes to come back by an image of the database, and what that costs those who write meanwhile.
//!
//! `rebuild [--megabytes N] [--writers N] [--away N] [--rate N]`: three nodes in one process hold so many megabytes of
//! rows, and so many clients update one row at a time. One node is shut down for so many seconds while the log keeps
//! little; then it comes back. `--rate` bounds the megabytes of images that a node sends in a second.

use bytes::Bytes;
use proto::services::{Consistency, RaftMessage, RaftService, RaftTransport};
use proto::{GroupId, NodeId};
use replica::{Config, Host, Replica, Stage, Write};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

const GROUP: GroupId = GroupId(1);
const ROW_BYTES: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(600);
const CALM: Duration = Duration::from_secs(10);

struct Options {
    megabytes: u64,
    writers: u64,
    away: u64,
    rate: u64,
}

fn options() -> Options {
    let mut options = Options { megabytes: 200, writers: 8, away: 10, rate: 128 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number follows");
        match argument.as_str() {
            "--megabytes" => options.megabytes = number(),
            "--writers" => options.writers = number(),
            "--away" => options.away = number(),
            "--rate" => options.rate = number(),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// Carries messages between hosts of this process.
#[derive(Default)]
struct Network {
    hosts: Mutex<HashMap<NodeId, Weak<Host>>>,
}

struct Link(NodeId, Arc<Network>);

impl RaftTransport for Link {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let host = self.1.hosts.lock().expect("nobody panicked").get(&to).and_then(Weak::upgrade);
        if let Some(host) = host {
            host.receive(self.0, messages);
        }
    }
}

fn open(node: NodeId, directory: &Path, network: &Arc<Network>, rate: u64) -> Arc<Host> {
    let mut config = Config::new(node, directory.join(node.to_string()));
    config.log_keep_bytes = 1 << 20;
    config.image_bytes_per_second = rate << 20;
    let host = Host::open(config, Arc::new(Link(node, network.clone()))).expect("it opens");
    network.hosts.lock().expect("nobody panicked").insert(node, Arc::downgrade(&host));
    host
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("it starts").block_on(measure(options()));
}

async fn measure(options: Options) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let network = Arc::new(Network::default());
    let nodes = [1, 2, 3].map(NodeId);
    let mut hosts: HashMap<NodeId, Arc<Host>> =
        nodes.iter().map(|node| (*node, open(*node, directory.path(), &network, options.rate))).collect();
    let rows = (options.megabytes << 20) / ROW_BYTES;
    let table = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT".to_owned();
    let fill = format!(
        "INSERT INTO t1 WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         SELECT i, printf('%0{ROW_BYTES}d', i) FROM n",
        rows - 1
    );
    for host in hosts.values() {
        host.create(GROUP, &nodes, &[table.clone(), fill.clone()]).expect("it is made");
    }
    let leader = leader(&hosts).await;
    let away = nodes.into_iter().find(|node| *node != leader.status().node).expect("there are three");

    let took: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let keys = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..options.writers)
        .map(|_| tokio::spawn(run_writer(leader.clone(), took.clone(), stop.clone(), keys.clone(), rows)))
        .collect();
    let report = |phase: &str| {
        let mut took = std::mem::take(&mut *took.lock().expect("nobody panicked"));
        took.sort_unstable();
        let at = |share: f64| {
            let place = (took.len().saturating_sub(1) as f64 * share) as usize;
            took.get(place).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
        };
        let (median, late, worst) = (at(0.5), at(0.99), at(1.0));
        println!(
            "{phase}: {} writes, median {median:.2} ms, p99 {late:.1} ms, worst {worst:.1} ms",
            took.len()
        );
        median
    };
    tokio::time::sleep(CALM).await;
    let usual = report("three replicas");
    hosts.remove(&away).expect("it runs").shutdown();
    tokio::time::sleep(Duration::from_secs(options.away)).await;
    report("one away");

    let begun = Instant::now();
    let host = open(away, directory.path(), &network, options.rate);
    let replica = host.replica(GROUP).expect("its files are there");
    let mut seen = (None, None);
    let mut status = replica.watch();
    while replica.status().applied.0 + 10 < leader.status().applied.0 {
        let changed = tokio::time::timeout(Duration::from_millis(100), status.changed()).await;
        drop(changed);
        let now = status.borrow_and_update().clone();
        if now.image.is_some() && seen.0.is_none() {
            seen.0 = Some(begun.elapsed());
        }
        if now.image.is_none() && seen.0.is_some() && seen.1.is_none() {
            seen.1 = Some(begun.elapsed());
        }
        assert!(now.stopped.is_none() && begun.elapsed() < PATIENCE, "{now:?}");
    }
    let whole = begun.elapsed();
    let meanwhile = report("while one comes back");
    let part =
        |at: Option<Duration>| at.map_or("never".to_owned(), |at| format!("{:.1} s", at.as_secs_f64()));
    println!(
        "{} MB: offered after {}, here after {}, without lag after {:.1} s; median {:.2} times the usual",
        options.megabytes,
        part(seen.0),
        part(seen.1),
        whole.as_secs_f64(),
        meanwhile / usual
    );
    tokio::time::sleep(CALM / 2).await;
    report("afterwards");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it didn't panic");
    }
    host.shutdown();
    hosts.values().for_each(|host| host.shutdown());
}

async fn leader(hosts: &HashMap<NodeId, Arc<Host>>) -> Replica {
    loop {
        for host in hosts.values() {
            let replica = host.replica(GROUP).expect("it was made");
            let soon = Instant::now() + Duration::from_millis(200);
            if replica.snapshot(Consistency::Strong, soon).await.is_ok() {
                return replica;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn run_writer(
    leader: Replica,
    took: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    keys: Arc<AtomicU64>,
    rows: u64,
) {
    while !stop.load(Ordering::Relaxed) {
        let key = keys.fetch_add(7919, Ordering::Relaxed) % rows;
        let run = Box::new(move |stage: &Stage<'_>| {
            stage
                .prepare_cached("UPDATE t1 SET c2 = hex(randomblob(250)) WHERE c1 = ?1")
                .and_then(|mut update| update.execute([key.cast_signed()]))
                .map_err(dialect::sqlite::error)?;
            Ok(Bytes::new())
        });
        let begun = Instant::now();
        let write = Write { request: None, settled: 0, deadline: begun + PATIENCE, run };
        leader.write(write).await.expect("it is committed");
        took.lock().expect("nobody panicked").push(begun.elapsed());
    }
}
