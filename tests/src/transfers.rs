//! Money that is moved between accounts on all shards, and readers who add it up meanwhile.
//!
//! In come the addresses of routers; out go what each mover was told of its transfers, and what each reader saw and how
//! long it took. A transfer changes two accounts and leaves two marks, `+n` and `-n`: whoever sees all of a transaction or
//! nothing sees the accounts' sum as it always was, and the marks' sum 0. That is the invariant of Citus' issue 7366.

use crate::roaming::Roaming;
use crate::sim::random::Random;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What each account has at the beginning.
const MONEY: i64 = 1000;

/// What a mover was told of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is committed.
    Committed,
    /// It isn't, and will never be.
    RolledBack,
    /// Nobody said: its connection broke at COMMIT, or the outcome couldn't be learned.
    Nothing,
}

/// What one mover did.
#[derive(Debug, Default)]
pub struct Moved {
    /// Its transfers by their number.
    pub told: HashMap<i64, Told>,
    /// How long those took that were committed, COMMIT included.
    pub latencies: Vec<Duration>,
    /// How often each SQLSTATE came.
    pub errors: HashMap<String, u64>,
}

/// What one reader saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// How long each right answer took.
    pub latencies: Vec<Duration>,
    /// Answers that show half of a transfer.
    pub wrong: Vec<String>,
    /// How often each SQLSTATE came.
    pub errors: HashMap<String, u64>,
}

/// Movers and readers at work.
pub struct Transfers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicI64>,
    movers: Vec<JoinHandle<Moved>>,
    readers: Vec<JoinHandle<Seen>>,
}

/// Makes the tables, with so many accounts.
pub async fn prepare(client: &Client, accounts: i64) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL)").await?;
    client.batch_execute("CREATE TABLE mark (id bigint PRIMARY KEY, side bigint NOT NULL)").await?;
    let rows: Vec<_> = (0..accounts).map(|id| format!("({id}, {MONEY})")).collect();
    client.batch_execute(&format!("INSERT INTO account VALUES {}", rows.join(", "))).await
}

impl Transfers {
    /// Starts so many movers and readers over these routers. The transfers are numbered from 1.
    pub fn start(
        runtime: &Handle,
        routers: &[Config],
        (movers, readers): (usize, usize),
        accounts: i64,
        seed: u64,
    ) -> Transfers {
        let stop = Arc::new(AtomicBool::new(false));
        let (next, committed) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicI64::new(0)));
        let client = |number: usize| Roaming::new(routers, number, stop.clone());
        let mover = |number: usize| {
            let random = Random::stream(seed, "mover", number as u64);
            runtime.spawn(move_money(client(number), random, accounts, next.clone(), committed.clone()))
        };
        let movers = (0..movers).map(mover).collect();
        let readers = (0..readers).map(|number| runtime.spawn(add_up(client(number), accounts))).collect();
        Transfers { stop, committed, movers, readers }
    }

    /// How many transfers were committed, by all movers.
    pub fn committed(&self) -> i64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Ends the clients once each has its answer.
    pub async fn stop(self) -> (Vec<Moved>, Vec<Seen>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut moved, mut seen) = (Vec::new(), Vec::new());
        for mover in self.movers {
            moved.push(mover.await.expect("a mover doesn't panic"));
        }
        for reader in self.readers {
            seen.push(reader.await.expect("a reader doesn't panic"));
        }
        (moved, seen)
    }
}

async fn move_money(
    mut session: Roaming,
    mut random: Random,
    accounts: i64,
    next: Arc<AtomicI64>,
    committed: Arc<AtomicI64>,
) -> Moved {
    let mut moved = Moved::default();
    while let Some(client) = session.client().await {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let from = random.within(0..accounts as u64) as i64;
        let to = (from + 1 + random.within(0..accounts as u64 - 1) as i64) % accounts;
        let amount = random.within(1..100) as i64;
        let begun = Instant::now();
        let work = async {
            let done = tokio::time::timeout(PATIENCE, transfer(client, n, from, to, amount)).await;
            if !matches!(done, Ok(Ok(()))) {
                return Err((Told::RolledBack, done.ok().and_then(Result::err)));
            }
            match tokio::time::timeout(PATIENCE, client.batch_execute("COMMIT")).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err((told_at_commit(&error), Some(error))),
                Err(_) => Err((Told::Nothing, None)),
            }
        };
        match work.await {
            Ok(()) => {
                moved.told.insert(n, Told::Committed);
                moved.latencies.push(begun.elapsed());
                committed.fetch_add(1, Ordering::Relaxed);
            }
            Err((told, error)) => {
                moved.told.insert(n, told);
                if error.is_some() && !client.is_closed() {
                    // Whether it is heard or not, the transaction isn't committed any more.
                    drop(tokio::time::timeout(PATIENCE, client.batch_execute("ROLLBACK")).await);
                }
                session.failed(error.as_ref(), &mut moved.errors);
            }
        }
    }
    moved
}

async fn transfer(
    client: &Client,
    n: i64,
    from: i64,
    to: i64,
    amount: i64,
) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(&format!("BEGIN; UPDATE account SET balance = balance - {amount} WHERE id = {from}"))
        .await?;
    client.batch_execute(&format!("UPDATE account SET balance = balance + {amount} WHERE id = {to}")).await?;
    client.batch_execute(&format!("INSERT INTO mark VALUES ({}, {n}), ({}, {})", 2 * n, 2 * n + 1, -n)).await
}

/// What an error at COMMIT says, or at a statement that is a transaction: it has rolled back, unless nobody knows.
pub fn told_at_commit(error: &tokio_postgres::Error) -> Told {
    match error.code() {
        None | Some(&SqlState::TRANSACTION_RESOLUTION_UNKNOWN | &SqlState::ADMIN_SHUTDOWN) => Told::Nothing,
        Some(_) => Told::RolledBack,
    }
}

async fn add_up(mut session: Roaming, accounts: i64) -> Seen {
    let mut seen = Seen::default();
    let sums = [
        ("SELECT sum(balance)::bigint FROM account", accounts * MONEY),
        ("SELECT coalesce(sum(side), 0)::bigint FROM mark", 0),
    ];
    for (sql, right) in sums.iter().cycle() {
        let Some(client) = session.client().await else { break };
        let begun = Instant::now();
        match tokio::time::timeout(PATIENCE, client.query_one(*sql, &[])).await {
            Ok(Ok(row)) => {
                let sum: i64 = row.get(0);
                if sum == *right {
                    seen.latencies.push(begun.elapsed());
                } else {
                    seen.wrong.push(format!("{sql}: {sum}, not {right}"));
                }
            }
            Ok(Err(error)) => session.failed(Some(&error), &mut seen.errors),
            Err(_) => session.failed(None, &mut seen.errors),
        }
    }
    seen
}

/// Checks that no lock is left, and that what the cluster has is what the movers were told. The error says what's wrong.
pub async fn check(client: &Client, moved: &[Moved], accounts: i64) -> Result<(), String> {
    let said = |error: tokio_postgres::Error| {
        error.as_db_error().map_or_else(
            || error.to_string(),
            |known| format!("{}: {}", known.code().code(), known.message()),
        )
    };
    // It needs the lock of every account.
    let touch = client.batch_execute("UPDATE account SET balance = balance");
    match tokio::time::timeout(PATIENCE, touch).await {
        Ok(done) => done.map_err(|error| format!("a lock is left: {}", said(error)))?,
        Err(_) => return Err(format!("a lock is left: no answer for {PATIENCE:?}")),
    }
    let row = client.query_one("SELECT sum(balance)::bigint FROM account", &[]).await.map_err(said)?;
    if row.get::<_, i64>(0) != accounts * MONEY {
        return Err(format!("the accounts' sum is {} at the end", row.get::<_, i64>(0)));
    }
    let rows = client.query("SELECT id FROM mark", &[]).await.map_err(said)?;
    let marks: std::collections::HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    for (n, told) in moved.iter().flat_map(|moved| &moved.told) {
        let halves = (marks.contains(&(2 * n)), marks.contains(&(2 * n + 1)));
        match (told, halves) {
            (_, (true, false) | (false, true)) => {
                return Err(format!("there is half of transfer {n} ({told:?})"));
            }
            (Told::Committed, (false, false)) => {
                return Err(format!("transfer {n} was committed and is lost"));
            }
            (Told::RolledBack, (true, true)) => {
                return Err(format!("transfer {n} was rolled back and is there"));
            }
            _ => {}
        }
    }
    Ok(())
}
