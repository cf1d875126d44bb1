//! The clients: transactions in SQL over connections to routers, one after the other.
//!
//! They live in a runtime of their own and know nothing of the cluster but where its routers are. What they do, see and are
//! told goes into the history. Some, if asked for, change routers between transactions and carry a token along, by which
//! they read from any replica (`session`). A statement that isn't answered in time, and a connection that is lost, leave unknown what
//! became of a COMMIT that was sent.

mod connection;
mod session;

use super::super::random::Random;
use super::super::trace::Time;
use super::history::{Asked, Element, History, Key, Level, Number, Outcome};
use connection::{Connection, Trouble};
use coordinator::Coordinator;
use proto::GroupId;
use router::Router;
use session::{Handed, Session};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// What each account begins with.
const MONEY: i64 = 100;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many times as long it thinks while there needn't be much to do.
const CALM: u32 = 6;
/// How long it waits until it tries again what can't be had now.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a transaction is run with its idempotency key, at most.
const ATTEMPTS: usize = 6;
/// What a transaction is told whose key another has used up.
const SPENT: &str = "SH001";
/// No element is as great, and so these are free for clients' numbers above them.
const ELEMENTS: i64 = 100_000;

/// A router that takes clients.
pub struct Door {
    /// The router.
    pub router: Arc<Router>,
    /// Its node's part of the coordinator.
    pub coordinator: Arc<Coordinator>,
    /// Where they run.
    pub tasks: Handle,
}

/// What the clients and the world tell each other.
pub struct Shared {
    /// Settings of the run.
    pub seed: u64,
    /// How many accounts and lists there are.
    pub rows: i64,
    /// How long clients think at most.
    pub think: Time,
    /// Whether a read of several shards sees one state.
    pub cuts: bool,
    /// Whether some clients read from any replica, as of what they have seen, or at bounded staleness, or whatever there is.
    pub sessions: bool,
    /// Whether shards are replaced meanwhile.
    pub reshards: bool,
    /// Tokens that clients have handed on.
    pub tokens: Mutex<Vec<Handed>>,
    /// Somebody with a token is to commit something on all shards.
    pub wants_wide: AtomicBool,
    /// The routers over which somebody has just sent such a COMMIT.
    pub committing: Mutex<Vec<u64>>,
    /// The groups that the switch is about which begins next.
    pub switching: Mutex<Vec<GroupId>>,
    /// Somebody has seen that a switch has begun.
    pub has_switch: AtomicBool,
    /// Nothing is near for which there must be much to do: clients think for longer.
    pub is_calm: AtomicBool,
    /// The routers that run.
    pub doors: Mutex<BTreeMap<u64, Door>>,
    /// What clients did and saw.
    pub history: Mutex<History>,
    /// What is to be told of them.
    pub log: Mutex<Vec<String>>,
    /// How often something happened.
    pub counts: Mutex<BTreeMap<String, u64>>,
    /// How many transactions of each client were committed.
    pub committed: Mutex<Vec<u64>>,
    /// Nobody begins anything any more.
    pub ends: AtomicBool,
    /// What must not be.
    pub failure: Mutex<Option<String>>,
}

/// A lock that nobody held who panicked and the run went on.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Something has happened once more.
    pub fn count(&self, what: &str) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += 1;
    }

    /// Something is to be told of.
    pub fn note(&self, what: String) {
        lock(&self.log).push(what);
    }

    /// Something is wrong.
    pub fn fail(&self, why: String) {
        lock(&self.failure).get_or_insert(why);
    }
}

/// An element's text in a list, as it is appended.
fn text(list: &[Element]) -> String {
    list.iter().map(|element| format!("{element},")).collect()
}

fn elements(text: &str) -> Result<Vec<Element>, String> {
    let parse = |part: &str| part.parse().map_err(|_| format!("{text:?} is no list"));
    text.split_terminator(',').map(parse).collect()
}

/// Makes the tables, and tells when they are there.
pub async fn found(shared: Arc<Shared>, done: Arc<AtomicBool>) {
    let (mut connection, mut random) = (Connection::new(), Random::stream(shared.seed, "founder", 0));
    let lists: Vec<String> = (0..shared.rows).map(|key| format!("({key}, '')")).collect();
    let accounts: Vec<String> = (0..shared.rows).map(|id| format!("({id}, {MONEY})")).collect();
    for sql in [
        "CREATE TABLE lists (k int PRIMARY KEY, v text NOT NULL)".to_owned(),
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)".to_owned(),
        format!("INSERT INTO lists VALUES {}", lists.join(", ")),
        format!("INSERT INTO accounts VALUES {}", accounts.join(", ")),
    ] {
        connection.open(&shared, &mut random).await;
        if let Err(trouble) = connection.run(&sql).await {
            return shared.fail(format!("{sql}: {trouble:?}"));
        }
    }
    done.store(true, Ordering::Relaxed);
}

/// What the tables hold in the end.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// The lists.
    pub lists: BTreeMap<Key, Vec<Element>>,
    /// The sum of the accounts.
    pub money: i64,
}

/// Reads all there is, once nobody else does anything: and takes each row's lock, which must be free.
pub async fn look(shared: Arc<Shared>, end: Arc<Mutex<Option<End>>>) {
    let (mut connection, mut random) = (Connection::new(), Random::stream(shared.seed, "judge", 0));
    for sql in ["UPDATE lists SET v = v", "UPDATE accounts SET balance = balance"] {
        connection.open(&shared, &mut random).await;
        let sql = format!("SET lock_timeout = '2s'; {sql}");
        if let Err(trouble) = connection.run(&sql).await {
            return shared.fail(format!("after everybody had ended, {sql}: {trouble:?}"));
        }
    }
    let mut found = End::default();
    match connection.run("SELECT k, v FROM lists").await.map(|rows| lists(&rows)) {
        Ok(Ok(lists)) => found.lists = lists.into_iter().collect(),
        other => return shared.fail(format!("the lists can't be read in the end: {other:?}")),
    }
    match connection.run("SELECT sum(balance), count(*) FROM accounts").await {
        Ok(rows) => match shared.sum(&rows) {
            Ok(money) => found.money = money,
            Err(why) => return shared.fail(why),
        },
        Err(trouble) => return shared.fail(format!("the accounts can't be read in the end: {trouble:?}")),
    }
    *lock(&end) = Some(found);
}

fn lists(rows: &[Vec<String>]) -> Result<Vec<(Key, Vec<Element>)>, String> {
    let list = |row: &Vec<String>| match &row[..] {
        [key, list] => Ok((key.parse().map_err(|_| format!("{key:?} is no key"))?, elements(list)?)),
        _ => Err(format!("{row:?} is no list's row")),
    };
    rows.iter().map(list).collect()
}

impl Shared {
    /// What all accounts must have together.
    pub fn money(&self) -> i64 {
        self.rows * MONEY
    }

    fn sum(&self, rows: &[Vec<String>]) -> Result<i64, String> {
        match rows {
            [row] if row.len() == 2 && row[1] == self.rows.to_string() => {
                row[0].parse().map_err(|_| format!("{row:?} is no sum"))
            }
            _ => Err(format!("{rows:?} is no sum of {} accounts", self.rows)),
        }
    }
}

/// A client that works until it's told not to.
pub struct Client {
    shared: Arc<Shared>,
    number: usize,
    random: Random,
    connection: Connection,
    elements: i64,
    transactions: u64,
    /// The idempotency key of the transaction under way, and how often it was run before.
    key: Option<(String, usize)>,
    /// What the last transaction came to.
    last: Outcome,
    /// How fresh what it reads is, unless it says otherwise.
    level: Level,
    /// What it carries from router to router, if it does.
    session: Option<Session>,
}

/// A transaction under way.
struct Under {
    number: Number,
    name: String,
    /// What it reads is strong, whatever its client asks for: it has written or locked something.
    is_strong: bool,
}

impl Client {
    /// One that hasn't done anything.
    pub fn new(shared: Arc<Shared>, number: usize) -> Self {
        let random = Random::stream(shared.seed, "client", number as u64);
        let (connection, elements, transactions) = (Connection::new(), 0, 0);
        let (key, last) = (None, Outcome::Failed);
        let level = if shared.sessions { session::level(shared.seed, number) } else { Level::Strong };
        let session = (level == Level::Session).then(Session::default);
        Self { shared, number, random, connection, elements, transactions, key, last, level, session }
    }

    /// Works.
    pub async fn work(mut self) {
        loop {
            let think = Duration::from_nanos(self.random.within(0..self.shared.think));
            let is_calm = self.shared.is_calm.load(Ordering::Relaxed);
            tokio::time::sleep(if is_calm { think * CALM } else { think }).await;
            if self.shared.ends.load(Ordering::Relaxed) {
                return;
            }
            self.hop();
            self.connect().await;
            self.take().await;
            self.transactions += 1;
            let kind = self.random.within(0..100);
            match kind {
                _ if self.carries_locally() => self.block(kind).await,
                _ if kind < 50
                    && self.session.is_some()
                    && self.shared.wants_wide.load(Ordering::Relaxed) =>
                {
                    self.append_to_all().await
                }
                _ if self.lacks_something() && kind < 60 => self.read_each().await,
                // What a sum is of must be one state.
                93.. if self.level != Level::Strong => self.read_all().await,
                0..15 => self.transfer().await,
                15..25 => self.transfer_at_once().await,
                25..55 => self.append().await,
                55..63 => self.append_at_once().await,
                63..75 => self.append_once().await,
                75..85 => self.read_one().await,
                85..93 => self.read_all().await,
                _ => self.add_up().await,
            }
            self.remember().await;
        }
    }

    fn begin(&mut self, what: &str) -> Under {
        let mut name = format!("{what} {}.{}", self.number, self.transactions);
        let key = self.key.as_ref().map(|(key, attempt)| {
            name += &format!(", attempt {attempt}");
            key.clone()
        });
        let line = self.session.as_ref().map(|session| session.line);
        if line.is_some() {
            self.shared.count("transactions with a token");
        }
        let number = lock(&self.shared.history).begin(name.clone(), key, line);
        Under { number, name, is_strong: false }
    }

    fn row(&mut self) -> i64 {
        i64::try_from(self.random.within(0..self.shared.rows.unsigned_abs())).unwrap_or(0)
    }

    fn element(&mut self) -> Element {
        self.elements += 1;
        (self.number as i64 + 1) * ELEMENTS + self.elements
    }

    /// What a statement's error means for its transaction. `last`: it may have been committed.
    fn outcome(&self, name: &str, trouble: &Trouble, last: bool) -> Outcome {
        match trouble {
            Trouble::Lost if last => Outcome::Unknown,
            Trouble::Lost => Outcome::Failed,
            Trouble::Refused(code, message) => {
                self.shared.count(&format!("errors {code}"));
                // What is wrong with the product, and not with the weather.
                let is_lost = code.starts_with("SH") && code != SPENT;
                if is_lost || matches!(&code[..2], "XX" | "42" | "23" | "22" | "0A" | "58") {
                    self.shared.fail(format!("{name} met {code}: {message}"));
                }
                match &self.key {
                    Some((key, _)) if code == SPENT => {
                        let line = self.session.as_ref().map(|session| session.line);
                        lock(&self.shared.history).spent(key, line);
                    }
                    None if code == SPENT => {
                        self.shared.fail(format!("{name} has no key, and met {code}: {message}"))
                    }
                    _ => {}
                }
                if code == "08007" { Outcome::Unknown } else { Outcome::Failed }
            }
        }
    }

    fn end(&mut self, under: &Under, outcome: Outcome, why: Option<&Trouble>) {
        lock(&self.shared.history).end(under.number, outcome);
        self.last = outcome;
        if outcome == Outcome::Committed {
            lock(&self.shared.committed)[self.number] += 1;
        }
        let why = match why {
            Some(Trouble::Refused(code, message)) => format!(": {code} {message}"),
            Some(Trouble::Lost) => ": lost".to_owned(),
            None => String::new(),
        };
        self.shared.note(format!("{}: {outcome:?}{why}", under.name));
    }

    /// Runs statements, and notes what they gave.
    async fn run(&mut self, name: &str, sql: &str) -> Result<Vec<Vec<String>>, Trouble> {
        self.shared.note(format!("{name}: {sql}"));
        let answer = self.connection.run(sql).await;
        if let Ok(rows) = &answer {
            self.shared.note(format!("{name}: {rows:?}"));
        }
        answer
    }

    /// Runs what is a transaction by itself.
    async fn at_once(&mut self, under: &Under, sql: &str) -> Option<Vec<Vec<String>>> {
        match self.run(&under.name, sql).await {
            Ok(rows) => Some(rows),
            Err(trouble) => {
                let outcome = self.outcome(&under.name, &trouble, true);
                self.end(under, outcome, Some(&trouble));
                None
            }
        }
    }

    /// Runs a statement of a block; one that fails ends it.
    async fn within(&mut self, under: &Under, sql: &str) -> Option<Vec<Vec<String>>> {
        match self.run(&under.name, sql).await {
            Ok(rows) => Some(rows),
            Err(trouble) => {
                let outcome = self.outcome(&under.name, &trouble, false);
                self.end(under, outcome, Some(&trouble));
                // If that fails the connection is gone, or the next BEGIN will say so.
                let _ = self.connection.run("ROLLBACK").await;
                None
            }
        }
    }

    /// Ends a block with COMMIT.
    async fn commit(&mut self, under: &Under) {
        if self.at_once(under, "COMMIT").await.is_some() {
            self.end(under, Outcome::Committed, None);
        }
    }

    async fn transfer(&mut self) {
        let (from, to, amount) = (self.row(), self.row(), self.random.within(1..10));
        let under = self.begin("transfer");
        let take = format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}");
        let give = format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}");
        if self.random.permille(300) {
            // All in one message.
            if self.at_once(&under, &format!("{take}; {give}")).await.is_some() {
                self.end(&under, Outcome::Committed, None);
            }
            return;
        }
        for sql in ["BEGIN", &take, &give] {
            if self.within(&under, sql).await.is_none() {
                return;
            }
        }
        self.commit(&under).await;
    }

    async fn transfer_at_once(&mut self) {
        let (from, amount) = (self.row(), self.random.within(1..10));
        let to = (from + 1) % self.shared.rows;
        let under = self.begin("transfer at once");
        let sql = format!(
            "UPDATE accounts SET balance = balance + CASE WHEN id = {from} THEN -{amount} ELSE {amount} END
             WHERE id IN ({from}, {to})"
        );
        if self.at_once(&under, &sql).await.is_some() {
            self.end(&under, Outcome::Committed, None);
        }
    }

    /// Reads a list within a transaction.
    async fn see(&mut self, under: &Under, key: Key, sql: &str) -> Option<()> {
        let level = if under.is_strong { Level::Strong } else { self.level };
        let asked = lock(&self.shared.history).ask(under.number, level);
        let rows = self.within(under, sql).await?;
        self.saw(under, asked, &rows, Some(key), false)
    }

    /// Notes what was read.
    fn saw(
        &self,
        under: &Under,
        asked: Asked,
        rows: &[Vec<String>],
        key: Option<Key>,
        whole: bool,
    ) -> Option<()> {
        // Where nothing is promised that old, not even the empty lists need be there.
        let may_lack = matches!(asked.level, Level::Bounded(_) | Level::Eventual);
        let found = lists(rows).and_then(|lists| {
            let count = key.map_or(self.shared.rows, |_| 1);
            let complete = lists.len() as i64 == count || may_lack && (lists.len() as i64) < count;
            let complete = complete && key.is_none_or(|key| lists.iter().all(|(of, _)| *of == key));
            if complete { Ok(lists) } else { Err(format!("lists are missing: {rows:?}")) }
        });
        let noted =
            found.and_then(|lists| lock(&self.shared.history).read(under.number, asked, lists, whole));
        noted.map_err(|why| self.shared.fail(format!("{}: {why}", under.name))).ok()
    }

    async fn append(&mut self) {
        let mut under = self.begin("append");
        let begin = self.block_begin(&under);
        if self.within(&under, &begin).await.is_none() {
            return;
        }
        for _ in 0..self.random.within(1..4) {
            let key = self.row();
            if self.random.permille(250) {
                let lock = if self.random.permille(300) { " FOR UPDATE" } else { "" };
                under.is_strong |= !lock.is_empty();
                let sql = format!("SELECT k, v FROM lists WHERE k = {key}{lock}");
                if self.see(&under, key, &sql).await.is_none() {
                    return;
                }
            }
            let (savepoint, was_strong) = (self.random.permille(150), under.is_strong);
            if savepoint && self.within(&under, "SAVEPOINT s").await.is_none() {
                return;
            }
            let mark = lock(&self.shared.history).mark(under.number);
            let element = self.element();
            lock(&self.shared.history).append(under.number, key, element);
            let sql = format!("UPDATE lists SET v = v || '{}' WHERE k = {key}", text(&[element]));
            if self.within(&under, &sql).await.is_none() {
                return;
            }
            under.is_strong = true;
            if self.random.permille(200) {
                let sql = format!("SELECT k, v FROM lists WHERE k = {key}");
                if self.see(&under, key, &sql).await.is_none() {
                    return;
                }
            }
            if savepoint && self.random.permille(600) {
                if self.within(&under, "ROLLBACK TO s").await.is_none() {
                    return;
                }
                lock(&self.shared.history).undo(under.number, mark);
                under.is_strong = was_strong;
            }
        }
        if self.random.permille(100) {
            if self.within(&under, "ROLLBACK").await.is_some() {
                self.end(&under, Outcome::Failed, None);
            }
            return;
        }
        self.commit(&under).await;
    }

    /// Appends to all lists, in a block.
    async fn append_to_all(&mut self) {
        let (under, element) = (self.begin("append to all"), self.element());
        for key in 0..self.shared.rows {
            lock(&self.shared.history).append(under.number, key, element);
        }
        let sql = format!("UPDATE lists SET v = v || '{}'", text(&[element]));
        for sql in ["BEGIN", &sql] {
            if self.within(&under, sql).await.is_none() {
                return;
            }
        }
        lock(&self.shared.committing).extend(self.connection.router());
        self.commit(&under).await;
    }

    /// Appends with an idempotency key, as often as it takes.
    async fn append_once(&mut self) {
        let key = format!("{}.{}", self.number, self.transactions);
        let at_once = self.random.permille(300);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            self.connect().await;
            let set = format!("SET shoal.idempotency_key = '{key}'");
            if let Err(trouble) = self.run("a key", &set).await {
                self.shared.note(format!("{set}: {trouble:?}"));
                continue;
            }
            self.key = Some((key.clone(), attempt));
            if at_once {
                self.append_at_once().await;
            } else {
                self.append().await;
            }
            self.key = None;
            let is_spent = lock(&self.shared.history).is_spent(&key);
            if is_spent || self.last == Outcome::Committed || self.shared.ends.load(Ordering::Relaxed) {
                return;
            }
            self.shared.count("transactions run again with their key");
        }
    }

    async fn append_at_once(&mut self) {
        let under = self.begin("append at once");
        let (one, element) = (self.row(), self.element());
        // Where shards are replaced much depends on writes that nobody has to wait for.
        let is_of_one = self.shared.reshards && self.random.permille(500);
        let other = if is_of_one { one } else { (one + 1) % self.shared.rows };
        for key in if is_of_one { vec![one] } else { vec![one, other] } {
            lock(&self.shared.history).append(under.number, key, element);
        }
        let sql = format!("UPDATE lists SET v = v || '{}' WHERE k IN ({one}, {other})", text(&[element]));
        if self.at_once(&under, &sql).await.is_some() {
            self.end(&under, Outcome::Committed, None);
        }
    }

    async fn read_one(&mut self) {
        let key = self.row();
        self.read_list(key).await;
    }

    /// Reads a list. Says whether there was an answer.
    async fn read_list(&mut self, key: Key) -> bool {
        let under = self.begin("read");
        let (level, hint) = self.reading();
        let asked = lock(&self.shared.history).ask(under.number, level);
        let sql = format!("{hint}SELECT k, v FROM lists WHERE k = {key}");
        let Some(rows) = self.at_once(&under, &sql).await else { return false };
        let is_well = self.saw(&under, asked, &rows, Some(key), false).is_some();
        if is_well {
            self.end(&under, Outcome::Committed, None);
        }
        is_well
    }

    async fn read_all(&mut self) {
        let under = self.begin("read of all");
        let (level, hint) = self.reading();
        let asked = lock(&self.shared.history).ask(under.number, level);
        let sql = format!("{hint}SELECT k, v FROM lists");
        if let Some(rows) = self.at_once(&under, &sql).await
            && self.saw(&under, asked, &rows, None, true).is_some()
        {
            self.end(&under, Outcome::Committed, None);
        }
    }

    async fn add_up(&mut self) {
        let under = self.begin("sum");
        let Some(rows) = self.at_once(&under, "SELECT sum(balance), count(*) FROM accounts").await else {
            return;
        };
        match self.shared.sum(&rows) {
            Ok(sum) if self.shared.cuts && sum != self.shared.money() => {
                self.shared.fail(format!("{} is {sum} and not {}", under.name, self.shared.money()));
            }
            Ok(_) => self.end(&under, Outcome::Committed, None),
            Err(why) => self.shared.fail(format!("{}: {why}", under.name)),
        }
    }
}
