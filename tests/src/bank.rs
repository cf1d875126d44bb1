//! Clients like pgbench's, who keep books of all that they were told.
//!
//! In come the addresses of routers; out goes for each client what it wrote and was told of it, how long it waited for each
//! answer, and what it saw that can't be. Accounts lie together in branches of a hundred whose money never changes, so a reader
//! who adds one up while others move money knows the sum. At the end every account must have what the books say, every
//! acknowledged line must be there once, and no lock may be left.

use crate::roaming::Roaming;
use crate::sim::random::Random;
use crate::transfers::{Told, told_at_commit};
use bytes::Bytes;
use futures::SinkExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether the clients have got on.
const LOOK: Duration = Duration::from_millis(10);
/// What each account has at the beginning.
const MONEY: i64 = 1000;
/// How many accounts a branch has.
const BRANCH: i64 = 100;
/// How many rows of a COPY are sent at once.
const AT_ONCE: i64 = 1000;
/// How many rows are locked at once, to see that they can be.
const LOCKED: usize = 500;

/// A write, by what it changes.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// A line with the client's number and the write's, into a table without a key.
    Line,
    /// An account is counted up. Who did it twice would be found out.
    Touch(i64),
    /// Money goes from one account to another, and a line says so; in one transaction.
    Transfer { from: i64, to: i64, amount: i64 },
}

/// The wait for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// When it was asked.
    pub asked: Instant,
    /// When the answer came.
    pub done: Instant,
}

/// What one client did, saw and was told.
#[derive(Debug, Default)]
pub struct Book {
    client: i64,
    /// Its writes, by their numbers.
    writes: Vec<(Deed, Told)>,
    /// All its waits, in order.
    pub waits: Vec<Wait>,
    /// How many reads were answered.
    pub reads: u64,
    /// How often each SQLSTATE came.
    pub errors: HashMap<String, u64>,
    /// When, and what they said.
    pub said: Vec<(Instant, String)>,
    /// Answers that are wrong.
    pub wrong: Vec<String>,
}

/// The clients at work.
pub struct Bank {
    stop: Arc<AtomicBool>,
    answered: Vec<Arc<AtomicU64>>,
    clients: Vec<JoinHandle<Book>>,
}

/// Makes the tables, with so many accounts.
pub async fn prepare(client: &Client, accounts: i64) -> Result<(), Error> {
    let account = "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, touched bigint NOT NULL, filler char(84))";
    client.batch_execute(account).await?;
    client.batch_execute("CREATE TABLE entry (client bigint, n bigint)").await?;
    let mut sink = Box::pin(client.copy_in("COPY account FROM STDIN").await?);
    let mut next = 0;
    while next < accounts {
        let end = accounts.min(next + AT_ONCE);
        let lines: String = (next..end).map(|id| format!("{id}\t{MONEY}\t0\t{id}\n")).collect();
        sink.send(Bytes::from(lines)).await?;
        next = end;
    }
    sink.as_mut().finish().await?;
    Ok(())
}

impl Bank {
    /// Starts so many clients, spread over these routers. `accounts` are hundreds.
    pub fn open(runtime: &Handle, routers: &[Config], clients: usize, accounts: i64, seed: u64) -> Bank {
        let mut bank = Bank { stop: Arc::default(), answered: Vec::new(), clients: Vec::new() };
        for number in 0..clients {
            let answered = Arc::new(AtomicU64::new(0));
            bank.answered.push(answered.clone());
            let person = Person {
                random: Random::stream(seed, "client", number as u64),
                accounts,
                answered,
                book: Book { client: number as i64, ..Book::default() },
            };
            let session = Roaming::new(routers, number, bank.stop.clone());
            bank.clients.push(runtime.spawn(person.work(session)));
        }
        bank
    }

    /// How many reads and writes were done, by all clients.
    pub fn answered(&self) -> u64 {
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every client has done so many more than now. Says whether that came to pass in time.
    pub fn wait_for_each(&self, more: u64, patience: Duration) -> bool {
        let goals: Vec<u64> = self.answered.iter().map(|c| c.load(Ordering::Relaxed) + more).collect();
        let is_there =
            || self.answered.iter().zip(&goals).all(|(c, goal)| c.load(Ordering::Relaxed) >= *goal);
        crate::wait::until(patience, LOOK, || if is_there() { Ok(()) } else { Err(()) }).is_ok()
    }

    /// Ends the clients once each has its answer.
    pub async fn close(self) -> Vec<Book> {
        self.stop.store(true, Ordering::Relaxed);
        let mut books = Vec::new();
        for client in self.clients {
            books.push(client.await.expect("a client doesn't panic"));
        }
        books
    }
}

/// The longest wait of all clients of which a part lies in this span.
pub fn longest_wait(books: &[Book], from: Instant, to: Instant) -> Duration {
    longest(books, |wait| wait.asked < to && wait.done > from)
}

/// The longest wait of all clients that lies in this span, all of it.
pub fn longest_within(books: &[Book], from: Instant, to: Instant) -> Duration {
    longest(books, |wait| wait.asked >= from && wait.done <= to)
}

fn longest(books: &[Book], counts: impl Fn(&&Wait) -> bool) -> Duration {
    let waits = books.iter().flat_map(|book| &book.waits).filter(counts);
    waits.map(|wait| wait.done - wait.asked).max().unwrap_or_default()
}

struct Person {
    random: Random,
    accounts: i64,
    answered: Arc<AtomicU64>,
    book: Book,
}

impl Person {
    async fn work(mut self, mut session: Roaming) -> Book {
        while let Some(client) = session.client().await {
            let done = match self.random.within(0..100) {
                0..35 => self.look(client).await,
                35..50 => self.add_up(client).await,
                drawn => self.write(client, drawn).await,
            };
            match done {
                Ok(()) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let said = match &error {
                        None => format!("no answer for {PATIENCE:?}"),
                        Some(error) => text(error),
                    };
                    self.book.said.push((Instant::now(), format!("client {}: {said}", self.book.client)));
                    session.failed(error.as_ref(), &mut self.book.errors);
                }
            }
        }
        self.book
    }

    fn account(&mut self) -> i64 {
        self.random.within(0..self.accounts as u64) as i64
    }

    async fn look(&mut self, client: &Client) -> Result<(), Option<Error>> {
        let id = self.account();
        let sql = "SELECT balance FROM account WHERE id = $1";
        let rows = self.book.wait(client.query(sql, &[&id])).await?;
        if rows.len() != 1 {
            self.book.wrong.push(format!("account {id} is there {} times", rows.len()));
        }
        self.book.reads += 1;
        Ok(())
    }

    async fn add_up(&mut self, client: &Client) -> Result<(), Option<Error>> {
        let first = self.account() / BRANCH * BRANCH;
        let sql = format!(
            "SELECT count(*), sum(balance)::bigint FROM account WHERE id BETWEEN {first} AND {}",
            first + BRANCH - 1
        );
        let row = self.book.wait(client.query_one(&sql, &[])).await?;
        let found: (i64, Option<i64>) = (row.get(0), row.get(1));
        if found != (BRANCH, Some(BRANCH * MONEY)) {
            self.book.wrong.push(format!("{sql}: {found:?}"));
        }
        self.book.reads += 1;
        Ok(())
    }

    async fn write(&mut self, client: &Client, drawn: u64) -> Result<(), Option<Error>> {
        let (id, n) = (self.account(), self.book.writes.len() as i64);
        let line = format!("INSERT INTO entry VALUES ({}, {n})", self.book.client);
        let (deed, statements) = match drawn {
            50..65 => (Deed::Line, vec![line]),
            65..80 => {
                (Deed::Touch(id), vec![format!("UPDATE account SET touched = touched + 1 WHERE id = {id}")])
            }
            _ => {
                let (first, step) =
                    (id / BRANCH * BRANCH, 1 + self.random.within(0..BRANCH as u64 - 1) as i64);
                let (to, amount) = (first + (id - first + step) % BRANCH, self.random.within(1..100) as i64);
                let change = |sign, id| {
                    format!("UPDATE account SET balance = balance {sign} {amount} WHERE id = {id}")
                };
                let statements =
                    vec!["BEGIN".to_owned(), change('-', id), change('+', to), line, "COMMIT".to_owned()];
                (Deed::Transfer { from: id, to, amount }, statements)
            }
        };
        let last = statements.len() - 1;
        for (number, sql) in statements.iter().enumerate() {
            let Err(error) = self.book.wait(client.batch_execute(sql)).await else { continue };
            let told = match &error {
                _ if number < last => Told::RolledBack,
                Some(error) => told_at_commit(error),
                None => Told::Nothing,
            };
            self.book.writes.push((deed, told));
            if last > 0 && error.is_some() && !client.is_closed() {
                // Whether it is heard or not, the transaction isn't committed any more.
                drop(tokio::time::timeout(PATIENCE, client.batch_execute("ROLLBACK")).await);
            }
            return Err(error);
        }
        self.book.writes.push((deed, Told::Committed));
        Ok(())
    }
}

impl Book {
    /// Awaits an answer, and notes how long that took. No answer in time is no error of anybody's.
    async fn wait<T>(&mut self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Option<Error>> {
        let asked = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        self.waits.push(Wait { asked, done: Instant::now() });
        answer.map_err(|_| None)?.map_err(Some)
    }

    /// How many writes it was told are committed.
    pub fn committed(&self) -> usize {
        self.writes.iter().filter(|(_, told)| *told == Told::Committed).count()
    }

    /// How many it was told nothing of.
    pub fn unknown(&self) -> usize {
        self.writes.iter().filter(|(_, told)| *told == Told::Nothing).count()
    }
}

/// What an error says.
pub fn text(error: &Error) -> String {
    let known =
        |known: &tokio_postgres::error::DbError| format!("{} {}", known.code().code(), known.message());
    error.as_db_error().map_or_else(|| format!("the connection was lost: {error}"), known)
}

/// What the books say that an account has.
#[derive(Debug, Default)]
struct Account {
    balance: i64,
    touched: i64,
    /// How often it may have been counted up beside.
    unknown: i64,
}

/// Checks what the cluster has against the books. The error says what is wrong.
pub async fn check(client: &Client, books: &[Book], accounts: i64) -> Result<(), String> {
    let said = |error: Error| format!("at the end: {}", text(&error));
    let ids: HashSet<i64> = books.iter().flat_map(Book::changed).collect();
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    for some in ids.chunks(LOCKED) {
        let sql = format!("UPDATE account SET touched = touched WHERE id IN ({})", some.join(", "));
        match tokio::time::timeout(PATIENCE, client.batch_execute(&sql)).await {
            Ok(done) => done.map_err(|error| format!("a lock is left: {}", text(&error)))?,
            Err(_) => return Err(format!("a lock is left: no answer for {PATIENCE:?}")),
        }
    }

    let mut expected: BTreeMap<i64, Account> = BTreeMap::new();
    for book in books {
        let rows = client.query("SELECT n FROM entry WHERE client = $1 ORDER BY n", &[&book.client]).await;
        let lines: Vec<i64> = rows.map_err(said)?.iter().map(|row| row.get(0)).collect();
        book.check_lines(&lines)?;
        book.add_to(&mut expected, &lines);
    }

    let row =
        client.query_one("SELECT count(*), sum(balance)::bigint FROM account", &[]).await.map_err(said)?;
    let found: (i64, Option<i64>) = (row.get(0), row.get(1));
    if found != (accounts, Some(accounts * MONEY)) {
        return Err(format!("{accounts} accounts with {MONEY} each, and at the end there are {found:?}"));
    }
    let sql = format!("SELECT id, balance, touched FROM account WHERE balance <> {MONEY} OR touched <> 0");
    for row in client.query(&sql, &[]).await.map_err(said)? {
        let (id, balance, touched): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let account = expected.remove(&id).unwrap_or_default();
        let counted = account.touched..=account.touched + account.unknown;
        if balance != MONEY + account.balance || !counted.contains(&touched) {
            return Err(format!(
                "account {id} has {balance}, counted {touched} times; the books say {account:?}"
            ));
        }
    }
    match expected.iter().find(|(_, account)| account.balance != 0 || account.touched != 0) {
        Some((id, account)) => Err(format!("account {id} is as it was at first; the books say {account:?}")),
        None => Ok(()),
    }
}

impl Book {
    /// The accounts that it may have changed.
    fn changed(&self) -> impl Iterator<Item = i64> {
        self.writes
            .iter()
            .flat_map(|(deed, _)| match *deed {
                Deed::Line => [None, None],
                Deed::Touch(id) => [Some(id), None],
                Deed::Transfer { from, to, .. } => [Some(from), Some(to)],
            })
            .flatten()
    }

    /// Whether its lines are those that it was told of. They come in order.
    fn check_lines(&self, lines: &[i64]) -> Result<(), String> {
        let client = self.client;
        if let Some(twice) = lines.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("line {} of client {client} is there twice", twice[0]));
        }
        if let Some(wild) =
            lines.iter().find(|n| usize::try_from(**n).map_or(true, |n| n >= self.writes.len()))
        {
            return Err(format!("line {wild} of client {client} was never sent"));
        }
        for (n, (deed, told)) in (0..).zip(&self.writes) {
            let is_there = lines.binary_search(&n).is_ok();
            match (deed, told, is_there) {
                (Deed::Touch(_), _, true) => {
                    return Err(format!("line {n} of client {client} was never sent"));
                }
                (Deed::Touch(_), ..) => {}
                (_, Told::Committed, false) => {
                    return Err(format!("{deed:?}, {n} of client {client}, was acknowledged and is lost"));
                }
                (_, Told::RolledBack, true) => {
                    return Err(format!("{deed:?}, {n} of client {client}, was rolled back and is there"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds what its writes have done. Of a transfer that it was told nothing of the line says whether it is done.
    fn add_to(&self, expected: &mut BTreeMap<i64, Account>, lines: &[i64]) {
        for (n, (deed, told)) in (0..).zip(&self.writes) {
            match *deed {
                Deed::Touch(id) if *told == Told::Committed => expected.entry(id).or_default().touched += 1,
                Deed::Touch(id) if *told == Told::Nothing => expected.entry(id).or_default().unknown += 1,
                Deed::Transfer { from, to, amount } if lines.binary_search(&n).is_ok() => {
                    expected.entry(from).or_default().balance -= amount;
                    expected.entry(to).or_default().balance += amount;
                }
                _ => {}
            }
        }
    }
}
