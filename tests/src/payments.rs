//! Payers whose connections are cut around COMMIT, and who repeat each payment with its key until they are answered.
//!
//! In come the addresses of routers, out goes what the payers were told. Nothing in the tables keeps a payment from being
//! made twice but its idempotency key. A cut is the client's own: its socket is closed at a random moment, mostly while it
//! waits for COMMIT's answer, and what was on its way in either direction is lost to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio_postgres::{Client, Config, NoTls};

/// How many accounts there are.
const ACCOUNTS: i64 = 40;
/// What each has at first.
const BALANCE: i64 = 1000;
/// How long one payment may take, all attempts together.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(40);
/// How long a payer waits before it tries again after an error.
const PAUSE: Duration = Duration::from_millis(20);

/// What the payers saw.
#[derive(Debug, Default)]
pub struct Tally {
    /// How often a payment was tried.
    pub attempts: u64,
    /// How often a payer cut its own connection.
    pub cuts: u64,
    /// How many payments were said to have been made before: the commit's own answer was lost.
    pub told_before: u64,
    /// Other errors, by their SQLSTATE, or `lost` for connections that broke by themselves.
    pub errors: BTreeMap<String, u64>,
}

/// What one attempt came to.
enum Outcome {
    Paid,
    PaidBefore,
    Cut,
    Failed(String),
}

/// Makes the tables.
pub async fn set_up(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("CREATE TABLE payment (n bigint, source bigint, target bigint)").await?;
    client.batch_execute("CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL)").await?;
    let accounts: Vec<_> = (1..=ACCOUNTS).map(|id| format!("({id}, {BALANCE})")).collect();
    client.batch_execute(&format!("INSERT INTO account VALUES {}", accounts.join(", "))).await
}

/// Has so many payments made by so many payers. `done` counts those that were answered.
pub async fn pay(
    routers: Vec<Config>,
    count: i64,
    payers: u64,
    seed: u64,
    done: Arc<AtomicU64>,
) -> Result<Tally, String> {
    let next = Arc::new(AtomicI64::new(1));
    // About how long a commit takes, in microseconds: cuts are drawn from twice that.
    let usual = Arc::new(AtomicU64::new(5000));
    let mut working: JoinSet<Result<Tally, String>> = JoinSet::new();
    for payer in 0..payers {
        let (next, usual, done, routers) = (next.clone(), usual.clone(), done.clone(), routers.clone());
        working.spawn(async move {
            let random = Random(seed.wrapping_mul(1_000_003).wrapping_add(payer));
            let mut payer = Payer { routers, random, usual, tally: Tally::default() };
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n > count {
                    return Ok(payer.tally);
                }
                let paid = tokio::time::timeout(PATIENCE, payer.pay(n)).await;
                paid.map_err(|_| format!("payment {n} has no answer; {:?}", payer.tally))??;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut sum = Tally::default();
    while let Some(tally) = working.join_next().await {
        let tally = tally.map_err(|error| error.to_string())??;
        sum.attempts += tally.attempts;
        sum.cuts += tally.cuts;
        sum.told_before += tally.told_before;
        for (code, count) in tally.errors {
            *sum.errors.entry(code).or_default() += count;
        }
    }
    Ok(sum)
}

/// Checks that each payment was made once.
pub async fn check(client: &Client, count: i64) -> Result<(), String> {
    let rows = async |sql: &str| {
        let rows = client.query(sql, &[]).await.map_err(|error| format!("{sql}: {error}"))?;
        let row =
            |row: &tokio_postgres::Row| (0..row.len()).map(|i| row.get::<_, i64>(i)).collect::<Vec<_>>();
        Ok::<_, String>(rows.iter().map(row).collect::<Vec<_>>())
    };
    let made = rows("SELECT n, source, target FROM payment").await?;
    let payments: BTreeSet<_> = made.iter().map(|payment| payment[0]).collect();
    if made.len() as i64 != count || payments.len() as i64 != count {
        return Err(format!("{count} payments left {} rows of {} payments", made.len(), payments.len()));
    }
    let mut balances: BTreeMap<_, _> = (1..=ACCOUNTS).map(|id| (id, BALANCE)).collect();
    for payment in made.iter().filter(|payment| payment[2] != 0) {
        *balances.entry(payment[1]).or_default() -= 1;
        *balances.entry(payment[2]).or_default() += 1;
    }
    let found: BTreeMap<_, _> =
        rows("SELECT id, balance FROM account").await?.iter().map(|row| (row[0], row[1])).collect();
    if found != balances {
        return Err(format!("the accounts have {found:?}, and their payments left them {balances:?}"));
    }
    Ok(())
}

struct Payer {
    routers: Vec<Config>,
    random: Random,
    usual: Arc<AtomicU64>,
    tally: Tally,
}

impl Payer {
    /// Repeats a payment until it is answered.
    async fn pay(&mut self, n: i64) -> Result<(), String> {
        let source = 1 + self.random.below(ACCOUNTS as u64) as i64;
        let target = 1 + (source + self.random.below(ACCOUNTS as u64 - 1) as i64) % ACCOUNTS;
        // Every third is a statement by itself, on one shard, and moves nothing.
        let target = if n % 3 == 0 { 0 } else { target };
        loop {
            self.tally.attempts += 1;
            let router = self.random.below(self.routers.len() as u64) as usize;
            let router = self.routers[router].clone();
            let attempt = tokio::time::timeout(ATTEMPT, self.attempt(&router, n, source, target));
            match attempt.await {
                Ok(Outcome::Paid) => return Ok(()),
                Ok(Outcome::PaidBefore) => {
                    self.tally.told_before += 1;
                    return self.see(n).await;
                }
                Ok(Outcome::Cut) => self.tally.cuts += 1,
                Ok(Outcome::Failed(code)) => {
                    *self.tally.errors.entry(code).or_default() += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => *self.tally.errors.entry("silence".into()).or_default() += 1,
            }
        }
    }

    /// What is said to have been paid must be there, whoever is asked.
    async fn see(&mut self, n: i64) -> Result<(), String> {
        loop {
            let router = self.random.below(self.routers.len() as u64) as usize;
            let asked = async {
                let client = crate::cluster::connect(&self.routers[router]).await?;
                client.query_one("SELECT count(*) FROM payment WHERE n = $1", &[&n]).await
            };
            match asked.await {
                Ok(row) if row.get::<_, i64>(0) == 1 => return Ok(()),
                Ok(row) => return Err(format!("payment {n} is there {} times", row.get::<_, i64>(0))),
                // A node may be away.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn attempt(&mut self, router: &Config, n: i64, source: i64, target: i64) -> Outcome {
        let (client, connection) = match router.connect(NoTls).await {
            Ok(connected) => connected,
            Err(error) => return Outcome::Failed(code(&error)),
        };
        let socket = Socket(tokio::spawn(async move { drop(connection.await) }).abort_handle());
        let usual = self.usual.load(Ordering::Relaxed);
        // Two of three are cut: mostly while COMMIT runs, sometimes before it, sometimes too late.
        let cut_after = match self.random.below(6) {
            0 | 1 => None,
            2 => Some((false, Duration::from_micros(self.random.below(usual)))),
            _ => Some((true, Duration::from_micros(self.random.below(2 * usual)))),
        };
        let until_cut = |at_commit: bool| async move {
            match cut_after {
                Some((at, after)) if at == at_commit => tokio::time::sleep(after).await,
                _ => std::future::pending().await,
            }
        };
        let insert = format!("INSERT INTO payment VALUES ({n}, {source}, {target})");
        let last = if target == 0 { insert.as_str() } else { "COMMIT" };
        let set = async {
            client.batch_execute(&format!("SET shoal.idempotency_key = 'payment {n}'")).await?;
            if target != 0 {
                client.batch_execute("BEGIN").await?;
                client.batch_execute(&insert).await?;
                let mut changes = [(source, '-'), (target, '+')];
                // In one order for all, so that they don't wait for each other in a circle.
                changes.sort_unstable();
                for (account, sign) in changes {
                    let change =
                        format!("UPDATE account SET balance = balance {sign} 1 WHERE id = {account}");
                    client.batch_execute(&change).await?;
                }
            }
            Ok(())
        };
        let result: Result<(), tokio_postgres::Error> = tokio::select! {
            result = set => result,
            () = until_cut(false) => {
                socket.cut();
                return Outcome::Cut;
            }
        };
        if let Err(error) = result {
            return failed(&error);
        }
        let sent = std::time::Instant::now();
        tokio::select! {
            result = client.batch_execute(last) => match result {
                Ok(()) => {
                    let took = sent.elapsed().as_micros() as u64;
                    self.usual.store((7 * usual + took) / 8 + 1, Ordering::Relaxed);
                    Outcome::Paid
                }
                Err(error) => failed(&error),
            },
            () = until_cut(true) => {
                socket.cut();
                Outcome::Cut
            }
        }
    }
}

/// A connection's task. It ends with this, and its socket with it.
struct Socket(AbortHandle);

impl Socket {
    fn cut(&self) {
        self.0.abort();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cut();
    }
}

fn failed(error: &tokio_postgres::Error) -> Outcome {
    match code(error).as_str() {
        "SH001" => Outcome::PaidBefore,
        code => Outcome::Failed(code.to_owned()),
    }
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| "lost".to_owned(), |code| code.code().to_owned())
}

/// A seeded source of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}
