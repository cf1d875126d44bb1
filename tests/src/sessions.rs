//! Pairs of a write over one connection and a read over another, to which the write's token is handed, or isn't.
//!
//! In come the addresses that writers and readers take and the rows that they use; out goes what the reads showed. Each client has
//! rows of its own, one on each of two shards, and counts them up: a row that shows less than its client was last told of is
//! stale. Half of the writes change one row, half both in one transaction.

use crate::roaming::Roaming;
use crate::sim::random::Random;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

/// What each statement has as its `statement_timeout`.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How much later a client may hear of that, on a busy machine.
const LEEWAY: Duration = Duration::from_secs(1);
/// How long a client waits for any answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause between a write and its read, in microseconds.
const LONGEST_PAUSE_US: u64 = 40_000;
/// What a client may be told while nodes die: that its connection is over, that nobody can answer now, that it's to be run
/// again, that nobody knows, that it took too long.
pub const WEATHER: [&str; 8] = ["08000", "08003", "08006", "08007", "40001", "57014", "57P01", "57P03"];

/// What the clients use.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Routers (or a pooler's databases) for writes.
    pub writers: Vec<Config>,
    /// The same for reads.
    pub readers: Vec<Config>,
    /// Each client's rows.
    pub spots: Vec<Spot>,
    /// The connections are a pooler's, and may be another after each transaction: what is set is set in the transaction.
    pub pooled: bool,
    /// The reader is handed the token.
    pub carried: bool,
    /// How many pairs are made.
    pub pairs: i64,
    /// What rows are counted up from. More than any earlier clients came to.
    pub first: i64,
    /// What rows and pauses are drawn from.
    pub seed: u64,
    /// Nodes die meanwhile, so that not everything can be answered.
    pub deaths: bool,
}

/// Two rows on different shards.
pub type Spot = [i64; 2];

/// What became of the pairs.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many writes were acknowledged whose read was answered.
    pub pairs: u64,
    /// How many of the reads showed less than was written before, and the first of them.
    pub stale: (u64, Option<String>),
    /// Answers that are wrong in another way.
    pub wrong: Vec<String>,
    /// How long the longest statement of a write took, and of a read, whatever it came to.
    pub longest: (Duration, Duration),
    /// How many pairs failed.
    pub failed: u64,
    /// Errors that no client may see.
    pub wild: Vec<String>,
    /// Writes that were told with a warning that their position isn't known: their token can't be handed on.
    pub unknown: u64,
    /// How long the answered reads took.
    pub latencies: Vec<Duration>,
    /// How often each SQLSTATE came.
    pub errors: HashMap<String, u64>,
}

impl Tally {
    /// Whether a statement took longer than it may.
    pub fn is_late(&self) -> bool {
        self.longest.0.max(self.longest.1) > DEADLINE + LEEWAY
    }

    /// How many of all pairs were answered, in percent.
    pub fn share(&self) -> f64 {
        let all = self.pairs + self.failed + self.unknown;
        100.0 * self.pairs as f64 / all.max(1) as f64
    }

    fn add(&mut self, other: Tally) {
        self.pairs += other.pairs;
        self.stale = (self.stale.0 + other.stale.0, self.stale.1.take().or(other.stale.1));
        self.wrong.extend(other.wrong);
        let (write, read) = other.longest;
        self.longest = (self.longest.0.max(write), self.longest.1.max(read));
        self.failed += other.failed;
        self.wild.extend(other.wild);
        self.unknown += other.unknown;
        self.latencies.extend(other.latencies);
        for (name, times) in other.errors {
            *self.errors.entry(name).or_default() += times;
        }
    }
}

/// Makes the table and so many clients' rows.
pub async fn prepare(client: &Client, clients: usize) -> Result<Vec<Spot>, tokio_postgres::Error> {
    client.batch_execute("CREATE TABLE pair (id bigint PRIMARY KEY, n bigint NOT NULL)").await?;
    let mut by_shard: Vec<(String, Vec<i64>)> = Vec::new();
    for id in 0.. {
        let plan = client.simple_query(&format!("EXPLAIN SELECT n FROM pair WHERE id = {id}")).await?;
        let lines = plan.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let shard = lines.filter_map(|line| line.trim().strip_prefix("Route: ")).collect::<String>();
        match by_shard.iter_mut().find(|(name, _)| *name == shard) {
            Some((_, ids)) => ids.push(id),
            None => by_shard.push((shard, vec![id])),
        }
        by_shard.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
        if by_shard.len() > 1 && by_shard[1].1.len() >= clients {
            break;
        }
    }
    let spots: Vec<Spot> = by_shard[0].1.iter().zip(&by_shard[1].1).map(|(a, b)| [*a, *b]).collect();
    let rows: Vec<String> = spots.iter().flatten().map(|id| format!("({id}, 0)")).collect();
    client.batch_execute(&format!("INSERT INTO pair VALUES {}", rows.join(", "))).await?;
    Ok(spots)
}

/// Clients at work, one for each spot.
pub struct Pairs {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Pairs {
    /// Starts them.
    pub fn start(runtime: &Handle, plan: &Plan) -> Pairs {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let left = Arc::new(AtomicI64::new(plan.pairs));
        let clients = plan.spots.iter().enumerate().map(|(number, spot)| {
            let mut options = plan.clone();
            if !plan.pooled {
                let settings = format!("-c statement_timeout={}", DEADLINE.as_millis());
                for writer in &mut options.writers {
                    writer.options(&settings);
                }
                for reader in &mut options.readers {
                    reader.options(format!("{settings} -c shoal.read_consistency=session"));
                }
            }
            let person = Person {
                writer: Roaming::new(&options.writers, number, stop.clone()),
                // Where there are several routers, not the writer's.
                reader: Roaming::new(&options.readers, number + 1, stop.clone()),
                random: Random::stream(plan.seed, "pairs", number as u64),
                spot: *spot,
                n: plan.first,
                pooled: plan.pooled,
                carried: plan.carried,
                deaths: plan.deaths,
                stop: stop.clone(),
                tally: Tally::default(),
            };
            runtime.spawn(person.work(left.clone(), done.clone()))
        });
        Pairs { clients: clients.collect(), stop, done }
    }

    /// How many pairs were made, by all clients; nothing once one has seen what it may not.
    pub fn done(&self) -> Option<u64> {
        (!self.stop.load(Ordering::Relaxed)).then(|| self.done.load(Ordering::Relaxed))
    }

    /// Ends the clients once each has its answer.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.end().await
    }

    /// Waits until all pairs are made.
    pub async fn end(self) -> Tally {
        let mut sum = Tally::default();
        for client in self.clients {
            sum.add(client.await.expect("a client doesn't panic"));
        }
        sum
    }
}

/// Why there is no answer.
struct Failed(Option<tokio_postgres::Error>);

/// One client, with its two connections.
struct Person {
    writer: Roaming,
    reader: Roaming,
    random: Random,
    spot: Spot,
    n: i64,
    pooled: bool,
    carried: bool,
    deaths: bool,
    stop: Arc<AtomicBool>,
    tally: Tally,
}

impl Person {
    async fn work(mut self, left: Arc<AtomicI64>, done: Arc<AtomicU64>) -> Tally {
        while left.fetch_sub(1, Ordering::Relaxed) > 0 {
            self.n += 1;
            let rows = match self.random.within(0..4) {
                0 => vec![self.spot[0]],
                1 => vec![self.spot[1]],
                _ => self.spot.to_vec(),
            };
            let warnings = self.writer.warnings();
            let Some(writer) = self.writer.client().await else { break };
            let mut line = Line { client: writer, longest: Duration::ZERO };
            let written = answer(write(&mut line, &rows, self.n, self.pooled)).await;
            let longest = line.longest;
            self.tally.longest.0 = self.tally.longest.0.max(longest);
            let token = match written {
                Ok(token) => token,
                Err(Failed(error)) => {
                    give_up(writer).await;
                    self.writer.failed(error.as_ref(), &mut self.tally.errors);
                    self.failed("a write", error.as_ref());
                    continue;
                }
            };
            // A shard of which nothing else is known is named with a question mark, and then the token has everything.
            if self.writer.warnings() > warnings && !token.contains(":?") {
                self.tally.unknown += 1;
                continue;
            }
            tokio::time::sleep(Duration::from_micros(self.random.within(0..LONGEST_PAUSE_US))).await;
            match self.see(&rows, &token).await {
                Some(true) => done.fetch_add(1, Ordering::Relaxed),
                Some(false) => continue,
                None => break,
            };
        }
        self.tally
    }

    /// Reads what was written. Says whether there was an answer; nothing if the work is over.
    async fn see(&mut self, rows: &[i64], token: &str) -> Option<bool> {
        let token = self.carried.then_some(token);
        let reader = self.reader.client().await?;
        let begun = Instant::now();
        let mut line = Line { client: reader, longest: Duration::ZERO };
        let seen = answer(read(&mut line, rows, token, self.pooled)).await;
        let (took, longest) = (begun.elapsed(), line.longest);
        self.tally.longest.1 = self.tally.longest.1.max(longest);
        match seen {
            Ok(seen) => {
                self.tally.pairs += 1;
                self.tally.latencies.push(took);
                if seen.len() > rows.len() || seen.iter().any(|n| *n > self.n) {
                    self.tally.wrong.push(format!("rows {rows:?} have {seen:?}, and {} was written", self.n));
                } else if seen.len() < rows.len() || seen.iter().any(|n| *n < self.n) {
                    self.tally.stale.0 += 1;
                    let what = || format!("rows {rows:?} have {seen:?}, not {} (token {token:?})", self.n);
                    self.tally.stale.1.get_or_insert_with(what);
                }
            }
            Err(Failed(error)) => {
                give_up(reader).await;
                self.reader.failed(error.as_ref(), &mut self.tally.errors);
                self.failed("a read", error.as_ref());
                return Some(false);
            }
        }
        Some(true)
    }

    /// A pair has failed. If nothing explains it, nobody goes on.
    fn failed(&mut self, what: &str, error: Option<&tokio_postgres::Error>) {
        self.tally.failed += 1;
        if let Some(why) = wild(error, self.deaths) {
            self.tally.wild.push(format!("{what}: {why}"));
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// What is wrong about an error, if no client may see it.
fn wild(error: Option<&tokio_postgres::Error>, deaths: bool) -> Option<String> {
    let Some(error) = error else { return Some(format!("no answer within {PATIENCE:?}")) };
    let Some(known) = error.as_db_error() else {
        return (!deaths).then(|| format!("the connection was lost: {error}"));
    };
    let code = known.code().code();
    (!deaths || !WEATHER.contains(&code)).then(|| format!("{code} {}", known.message()))
}

/// A connection, and how long a statement took on it at most.
struct Line<'a> {
    client: &'a Client,
    longest: Duration,
}

impl Line<'_> {
    async fn say(&mut self, sql: &str) -> Result<Vec<SimpleQueryMessage>, tokio_postgres::Error> {
        let begun = Instant::now();
        let answer = self.client.simple_query(sql).await;
        self.longest = self.longest.max(begun.elapsed());
        answer
    }
}

async fn answer<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|error| Failed(Some(error))),
        Err(_) => Err(Failed(None)),
    }
}

/// Leaves a block that failed. Whether it's heard or not, nothing of it is done any more.
async fn give_up(client: &Client) {
    if !client.is_closed() {
        drop(tokio::time::timeout(PATIENCE, client.batch_execute("ROLLBACK")).await);
    }
}

/// Counts rows up to `n` and answers with the token. What an earlier attempt may still do changes nothing that is newer.
async fn write(
    line: &mut Line<'_>,
    rows: &[i64],
    n: i64,
    pooled: bool,
) -> Result<String, tokio_postgres::Error> {
    let update = |row: &i64| format!("UPDATE pair SET n = {n} WHERE id = {row} AND n < {n}");
    if let ([row], false) = (rows, pooled) {
        line.say(&update(row)).await?;
        return Ok(texts(&line.say("SHOW shoal.gtid").await?).concat());
    }
    let mut begin = "BEGIN".to_owned();
    if pooled {
        // What others have left in a pooled connection would only make reads wait longer.
        begin += &format!("; SET LOCAL statement_timeout = {}; RESET shoal.gtid", DEADLINE.as_millis());
    }
    line.say(&begin).await?;
    for row in rows {
        line.say(&update(row)).await?;
    }
    // In one string: afterwards the connection may be somebody else's.
    Ok(texts(&line.say("COMMIT; SHOW shoal.gtid").await?).concat())
}

/// What rows have, at the level `session`.
async fn read(
    line: &mut Line<'_>,
    rows: &[i64],
    token: Option<&str>,
    pooled: bool,
) -> Result<Vec<i64>, tokio_postgres::Error> {
    let rows: Vec<String> = rows.iter().map(i64::to_string).collect();
    let select = format!("SELECT n FROM pair WHERE id IN ({})", rows.join(", "));
    if pooled {
        let mut begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {}; SET LOCAL shoal.read_consistency = 'session'",
            DEADLINE.as_millis()
        );
        if let Some(token) = token {
            begin += &format!("; SET LOCAL shoal.gtid = '{token}'");
        }
        line.say(&begin).await?;
    } else if let Some(token) = token {
        line.say(&format!("SET shoal.gtid = '{token}'")).await?;
    }
    let seen = texts(&line.say(&select).await?);
    if pooled {
        line.say("COMMIT").await?;
    }
    Ok(seen.iter().map(|n| n.parse().expect("a bigint")).collect())
}

/// The first column of every row.
fn texts(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let text = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.iter().filter_map(text).collect()
}
