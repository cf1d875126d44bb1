//! Clients that read from any replica: what they carry from connection to connection, and how fresh what they read is.
//!
//! A client with a token sets it on each connection, or brings it to a transaction alone (`SET LOCAL`). What it knows there is
//! what the token stands for and what the connection tells it from then on. The token that it asks for after each transaction
//! takes all of that along; if the connection is lost before, the one that it has goes on. Tokens are handed on from client to
//! client, too. Others carry nothing, and read at bounded staleness or whatever there is.

use super::super::super::random::Random;
use super::super::super::trace::{MILLISECOND, SECOND, Time};
use super::super::history::{Knowledge, Level, Line};
use super::{Client, Connection, PAUSE, Under, lock};
use std::sync::atomic::Ordering;

/// How many tokens lie about.
const LYING: usize = 8;
/// How old what is read at bounded staleness may be.
const BOUNDS: [Time; 4] = [10 * MILLISECOND, 50 * MILLISECOND, 300 * MILLISECOND, 2 * SECOND];

/// A token, and what it stands for.
#[derive(Clone, Default)]
pub struct Handed {
    token: String,
    knowledge: Knowledge,
}

/// What a client carries from connection to connection.
#[derive(Default)]
pub(super) struct Session {
    /// The last token that it was told and that had everything.
    own: Handed,
    /// The connection's number in the history.
    pub line: Line,
    /// The connection doesn't have the token yet: the next transaction brings it along for itself.
    is_local: bool,
    /// The connection has committed something, and the server doesn't know where.
    lacks: bool,
}

/// Whether a token that was told has everything. `lacks`: where something was committed wasn't known.
fn is_whole(token: &str, lacks: bool) -> bool {
    // A shard of which nothing else is known is named with a question mark.
    !lacks || token.contains(":?")
}

/// How fresh what a client reads is.
pub(super) fn level(seed: u64, number: usize) -> Level {
    let mut random = Random::stream(seed, "cluster sessions", number as u64);
    match random.within(0..1000) {
        0..600 => Level::Session,
        600..750 => Level::Bounded(*random.pick(&BOUNDS).expect("there are some")),
        750..800 => Level::Eventual,
        _ => Level::Strong,
    }
}

impl Client {
    /// Changes to another router, perhaps.
    pub(super) fn hop(&mut self) {
        let Some(session) = &self.session else { return };
        // What isn't known of its commit is known on its connection alone.
        if self.random.permille(if session.lacks { 50 } else { 600 }) {
            self.connection = Connection::new();
        }
    }

    /// Connects, with its token if it carries one.
    pub(super) async fn connect(&mut self) {
        while self.connection.open(&self.shared, &mut self.random).await {
            let level = match self.level {
                Level::Strong => return,
                Level::Session => "session",
                Level::Bounded(_) => "bounded",
                Level::Eventual => "eventual",
            };
            let mut set = format!("SET shoal.read_consistency = '{level}'");
            if let Level::Bounded(bound) = self.level {
                set += &format!("; SET shoal.max_staleness = '{}ms'", bound / MILLISECOND);
            }
            if let Some(session) = &mut self.session {
                let line = lock(&self.shared.history).connect();
                let own = std::mem::take(&mut session.own);
                let is_local = !own.token.is_empty() && self.random.permille(300);
                *session = Session { own, line, is_local, lacks: false };
                if is_local {
                    return;
                }
                set += &format!("; SET shoal.gtid = '{}'", session.own.token);
                if session.own.token.is_empty() {
                    // Who knows nothing yet has it from the leaders: the tables were made before it came.
                    set = format!("SELECT count(*) FROM lists; {set}");
                }
            }
            match self.run("a token", &set).await {
                Ok(_) => {
                    if let Some(Session { own, line, .. }) = &self.session {
                        lock(&self.shared.history).bring(*line, &own.knowledge);
                    }
                    return;
                }
                Err(trouble) => {
                    self.outcome("a token", &trouble, false);
                    self.connection = Connection::new();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes the token of what it has seen by now, and hands it on, perhaps.
    pub(super) async fn remember(&mut self) {
        let Some(session) = &self.session else { return };
        let (line, is_local) = (session.line, session.is_local);
        let mut sql = "SHOW shoal.gtid".to_owned();
        if is_local {
            let token = &session.own.token;
            sql = format!("SET shoal.read_consistency = 'session'; SET shoal.gtid = '{token}'; {sql}");
        }
        let shown = self.run("the token", &sql).await;
        let is_unheard = self.connection.is_unheard.swap(false, Ordering::Relaxed);
        if is_unheard {
            self.shared.count("commits not heard of");
        }
        let Some(session) = &mut self.session else { return };
        session.lacks |= is_unheard;
        match shown {
            Ok(mut rows) if rows.len() == 1 && rows[0].len() == 1 => {
                let mut history = lock(&self.shared.history);
                if std::mem::take(&mut session.is_local) {
                    history.bring(line, &session.own.knowledge);
                }
                let token = rows.remove(0).remove(0);
                // Until it's whole, the one before goes on.
                if !is_whole(&token, session.lacks) {
                    return;
                }
                session.own = Handed { token, knowledge: history.knowledge(line) };
                drop(history);
                if self.random.permille(250) {
                    let mut tokens = lock(&self.shared.tokens);
                    tokens.push(session.own.clone());
                    if tokens.len() > LYING {
                        tokens.remove(0);
                    }
                }
            }
            Ok(rows) => self.shared.fail(format!("{rows:?} is no token")),
            // It goes on with the one before.
            Err(trouble) => drop(self.outcome("the token", &trouble, false)),
        }
    }

    /// Takes a token that somebody has handed on, perhaps.
    pub(super) async fn take(&mut self) {
        let Some(session) = &self.session else { return };
        let line = session.line;
        if session.is_local || !self.random.permille(200) {
            return;
        }
        let Some(Handed { token, knowledge }) = self.handed() else { return };
        match self.run("a token that was handed on", &format!("SET shoal.gtid = '{token}'")).await {
            Ok(_) => lock(&self.shared.history).bring(line, &knowledge),
            Err(trouble) => drop(self.outcome("a token that was handed on", &trouble, false)),
        }
        self.connect().await;
    }

    /// One of the tokens that lie about.
    fn handed(&mut self) -> Option<Handed> {
        let handed = self.random.pick(&lock(&self.shared.tokens)).cloned()?;
        self.shared.count("tokens handed on");
        Some(handed)
    }

    /// Whether its next transaction brings the token along.
    pub(super) fn carries_locally(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_local)
    }

    /// Whether the server doesn't know all that its connection has committed.
    pub(super) fn lacks_something(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.lacks)
    }

    /// What a block begins with.
    pub(super) fn block_begin(&mut self, under: &Under) -> String {
        let mut begin = "BEGIN".to_owned();
        let Some(session) = self.session.as_ref().filter(|session| session.is_local) else { return begin };
        let mut brought = vec![session.own.clone()];
        if self.random.permille(300) {
            brought.extend(self.handed());
        }
        begin += "; SET LOCAL shoal.read_consistency = 'session'";
        for Handed { token, knowledge } in brought {
            begin += &format!("; SET LOCAL shoal.gtid = '{token}'");
            lock(&self.shared.history).bring_locally(under.number, &knowledge);
        }
        self.shared.count("transactions that bring a token along");
        begin
    }

    /// A transaction of several statements.
    pub(super) async fn block(&mut self, kind: u64) {
        if kind < 40 {
            return self.append().await;
        }
        let under = self.begin("read in a block");
        let begin = self.block_begin(&under);
        if self.within(&under, &begin).await.is_none() {
            return;
        }
        for _ in 0..self.random.within(1..4) {
            let key = self.row();
            let sql = format!("SELECT k, v FROM lists WHERE k = {key}");
            if self.see(&under, key, &sql).await.is_none() {
                return;
            }
        }
        self.commit(&under).await;
    }

    /// Reads each list by itself: whoever asks a list's shard for it is told where it stands.
    pub(super) async fn read_each(&mut self) {
        for key in 0..self.shared.rows {
            if !self.read_list(key).await {
                return;
            }
        }
        if !self.connection.is_unheard.load(Ordering::Relaxed)
            && let Some(session) = &mut self.session
        {
            session.lacks = false;
        }
    }

    /// How fresh what its next statement reads is, and what it says to have it so.
    pub(super) fn reading(&mut self) -> (Level, String) {
        let (mut level, mut hint) = (self.level, String::new());
        if self.session.is_some() && self.random.permille(150) {
            (level, hint) = (Level::Eventual, "/*+ read(eventual) */ ".to_owned());
            if self.random.permille(700) {
                let bound = *self.random.pick(&BOUNDS).expect("there are some");
                level = Level::Bounded(bound);
                hint = format!("/*+ read(bounded, {}ms) */ ", bound / MILLISECOND);
            }
        }
        match level {
            Level::Bounded(_) => self.shared.count("bounded reads"),
            Level::Eventual => self.shared.count("eventual reads"),
            Level::Strong | Level::Session => {}
        }
        (level, hint)
    }
}
