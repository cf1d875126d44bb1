//! Writers that insert numbered rows for as long as they're told, and remember what they were told.
//!
//! In come the addresses of routers, out go the rows that were acknowledged, with the moments of their sending and of
//! their answer, and the errors that a client saw on a connection that lived. A writer whose connection breaks goes on
//! over another router with the next number: nobody knows what became of the last one.

use crate::cluster::connect;
use crate::wait::until;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Statement};

/// How long a writer waits before it tries the next router.
const PAUSE: Duration = Duration::from_millis(10);
/// How long it waits for an answer, and for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// The table that the writers fill. It has no key, so nothing but the cluster itself keeps a row from coming twice.
pub const TABLE: &str = "CREATE TABLE line (writer bigint, n bigint, note text)";

/// One acknowledged insert.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The row's number.
    pub n: i64,
    /// When it was sent.
    pub sent: Instant,
    /// When the answer came.
    pub done: Instant,
}

/// What one writer did.
#[derive(Debug, Default)]
pub struct Log {
    /// Its number, the rows' first column.
    pub writer: i64,
    /// How many rows it sent, numbered from 0.
    pub sent: i64,
    /// Those that were acknowledged, in order.
    pub written: Vec<Written>,
    /// What went wrong on connections that lived: clients of a cluster that lost one node should see nothing here.
    pub errors: Vec<String>,
    /// How often its connection broke.
    pub reconnects: u64,
}

/// Writers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Vec<Arc<AtomicU64>>,
    writers: Vec<JoinHandle<Log>>,
}

impl Load {
    /// Starts so many writers, numbered from `first`, spread over the routers at these addresses.
    pub fn start(runtime: &Handle, routers: &[Config], writers: usize, first: i64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { stop: stop.clone(), acknowledged: Vec::new(), writers: Vec::new() };
        for number in 0..writers {
            let count = Arc::new(AtomicU64::new(0));
            let mut routers = routers.to_vec();
            let turn = number % routers.len();
            routers.rotate_left(turn);
            let log = Log { writer: first + number as i64, ..Log::default() };
            load.acknowledged.push(count.clone());
            load.writers.push(runtime.spawn(write(log, routers, stop.clone(), count)));
        }
        load
    }

    /// How many rows have been acknowledged, by all writers.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every writer has been told of so many more rows than now. Says whether that came to pass in time.
    pub fn wait_for_each(&self, more: u64, patience: Duration) -> bool {
        let goals: Vec<u64> = self.acknowledged.iter().map(|c| c.load(Ordering::Relaxed) + more).collect();
        let is_there =
            || self.acknowledged.iter().zip(&goals).all(|(c, goal)| c.load(Ordering::Relaxed) >= *goal);
        until(patience, PAUSE, || if is_there() { Ok(()) } else { Err(()) }).is_ok()
    }

    /// Ends the writers once each has its answer.
    pub async fn stop(self) -> Vec<Log> {
        self.stop.store(true, Ordering::Relaxed);
        let mut logs = Vec::new();
        for writer in self.writers {
            logs.push(writer.await.expect("a writer doesn't panic"));
        }
        logs
    }
}

async fn write(mut log: Log, routers: Vec<Config>, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> Log {
    let mut routers = routers.iter().cycle();
    let mut session: Option<(Client, Statement)> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some((client, statement)) = &session else {
            session = open(routers.next().expect("a cycle has no end")).await;
            continue;
        };
        let (n, sent) = (log.sent, Instant::now());
        log.sent += 1;
        match tokio::time::timeout(PATIENCE, client.execute(statement, &[&log.writer, &n])).await {
            Ok(Ok(_)) => {
                log.written.push(Written { n, sent, done: Instant::now() });
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(error)) => {
                // A node that shuts down says so (57P01); that's a connection's end, not a failure of the cluster.
                let ended = client.is_closed() || error.as_db_error().is_none() || is_shutdown(&error);
                if ended {
                    log.reconnects += 1;
                    session = None;
                } else {
                    log.errors.push(error.to_string());
                }
            }
            Err(_) => {
                log.errors.push(format!("row {n} had no answer for {PATIENCE:?}"));
                session = None;
            }
        }
    }
    log
}

fn is_shutdown(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::ADMIN_SHUTDOWN)
}

async fn open(router: &Config) -> Option<(Client, Statement)> {
    let opened = async {
        let client = connect(router).await.ok()?;
        let statement = client.prepare("INSERT INTO line VALUES ($1, $2, 'fish')").await.ok()?;
        Some((client, statement))
    };
    let session = tokio::time::timeout(PATIENCE, opened).await.ok().flatten();
    if session.is_none() {
        tokio::time::sleep(PAUSE).await;
    }
    session
}

impl Log {
    /// The longest time without an answer that touched this span.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let dones = self.written.iter().map(|written| written.done);
        let before = dones.clone().take_while(|done| *done < from).last().unwrap_or(from);
        let mut last = before;
        let mut longest = Duration::ZERO;
        for done in dones.skip_while(|done| *done < from) {
            longest = longest.max(done - last);
            last = done;
            if done > to {
                break;
            }
        }
        longest.max(to.saturating_duration_since(last))
    }

    /// How long the answers took that came in this span.
    pub fn latencies(&self, from: Instant, to: Instant) -> impl Iterator<Item = Duration> {
        let within = move |written: &&Written| written.done >= from && written.done <= to;
        self.written.iter().filter(within).map(|written| written.done - written.sent)
    }
}

/// Checks what the cluster has against what writers were told: nothing acknowledged is missing, nothing is there twice,
/// and nothing is there that was never sent. The error says what is wrong.
pub async fn check(client: &Client, logs: &[Log]) -> Result<(), String> {
    for log in logs {
        let rows = client
            .query("SELECT n FROM line WHERE writer = $1 ORDER BY n", &[&log.writer])
            .await
            .map_err(|error| format!("the rows can't be read: {error}"))?;
        let found: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        if let Some(twice) = found.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("row {} of writer {} is there twice", twice[0], log.writer));
        }
        if let Some(lost) = log.written.iter().find(|written| found.binary_search(&written.n).is_err()) {
            return Err(format!("row {} of writer {} was acknowledged and is lost", lost.n, log.writer));
        }
        if let Some(last) = found.last().filter(|last| **last >= log.sent) {
            return Err(format!("row {last} of writer {} was never sent", log.writer));
        }
    }
    Ok(())
}

/// The value below which this share of them lies; zero of none.
pub fn quantile(values: impl IntoIterator<Item = Duration>, share: f64) -> Duration {
    let mut values: Vec<Duration> = values.into_iter().collect();
    values.sort_unstable();
    let at = ((values.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    values.get(at).copied().unwrap_or_default()
}
