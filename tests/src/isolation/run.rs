//! Plays a case of an isolation script with real connections.
//!
//! Whether a statement waits is never told by a clock. A PostgreSQL that is being recorded is asked whom each session
//! waits for, until every one has ended or waits. A server that is compared with a recording is taken at its word: what
//! ended there must end here, and what waited must not have ended when the next statement is sent. (By then it has come to
//! where it waits: a PostgreSQL is asked for that, too, and Shoal is given writes to commit.) So a slow machine
//! makes no difference, and a statement that should wait and doesn't is seen by what it answers, if not by when.

use super::script::{Case, Recorded, Recording, Script, Step, WAITS};
use crate::script;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long something may take that ought to end. It's here so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often in a row PostgreSQL must say that everyone waits. It also says so of locks that are held for a moment.
const SURE: usize = 5;

/// How many writes to every shard commit before a statement is taken to wait.
const PROBES: usize = 2;

/// The table of those writes, with rows enough for every shard to have one.
const PROBE: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS probe (id int PRIMARY KEY, n int)",
    "INSERT INTO probe VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 0), \
     (12, 0), (13, 0), (14, 0), (15, 0), (16, 0) ON CONFLICT DO NOTHING",
];

/// What cases are played on.
#[derive(Clone, Debug)]
pub struct Target {
    /// How it's reached.
    pub config: tokio_postgres::Config,
    /// What it is.
    pub kind: Kind,
}

/// What a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL, as a superuser.
    PostgreSql,
    /// Shoal, with so many shards.
    Shoal(u32),
}

/// How it's known who waits.
#[derive(Clone, Copy, Debug)]
pub enum Guide<'a> {
    /// The server is asked. PostgreSQL alone can tell.
    Ask,
    /// As in this recording.
    Follow(&'a Recording),
}

/// A session of a case.
struct Session {
    name: String,
    client: Arc<Client>,
    /// Its backend, for PostgreSQL.
    pid: i32,
    /// The SQLSTATE that its connection ended with.
    ended_with: Arc<Mutex<Option<String>>>,
    connection: Option<JoinHandle<()>>,
    running: Option<Running>,
}

/// A statement that hasn't ended.
struct Running {
    step: String,
    order: usize,
    asked: JoinHandle<String>,
    answer: Option<String>,
}

impl Session {
    async fn open(target: &Target, name: &str) -> Session {
        let (client, connection) = target.config.connect(NoTls).await.expect("the server takes connections");
        let ended_with = Arc::new(Mutex::new(None));
        let end = Arc::clone(&ended_with);
        let connection = tokio::spawn(async move {
            let code =
                connection.await.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
            *end.lock().unwrap_or_else(PoisonError::into_inner) = code;
        });
        let name = name.to_owned();
        Session {
            name,
            client: Arc::new(client),
            pid: 0,
            ended_with,
            connection: Some(connection),
            running: None,
        }
    }

    fn start(&mut self, step: String, order: usize, sql: String) {
        let client = Arc::clone(&self.client);
        let asked = tokio::spawn(async move { answer(&client, &sql).await });
        self.running = Some(Running { step, order, asked, answer: None });
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.answer.is_some() || running.asked.is_finished())
    }

    /// What its statement answered.
    async fn take_answer(&mut self) -> Option<(usize, String, String)> {
        let Running { step, order, asked, answer } = self.running.take()?;
        let mut answer = match answer {
            Some(answer) => answer,
            None => asked.await.expect("asking a server doesn't panic"),
        };
        if answer == CLOSED {
            if let Some(connection) = self.connection.take() {
                connection.await.expect("driving a connection doesn't panic");
            }
            let code = self.ended_with.lock().unwrap_or_else(PoisonError::into_inner).clone();
            answer = format!("CLOSED {}\n", code.as_deref().unwrap_or("without a word"));
        }
        Some((order, step, answer))
    }

    /// Waits for its statement; whether it ended in time.
    async fn end(&mut self) -> bool {
        let Some(running) = &mut self.running else { return true };
        if running.answer.is_none() {
            let Ok(answer) = timeout(PATIENCE, &mut running.asked).await else { return false };
            running.answer = Some(answer.expect("asking a server doesn't panic"));
        }
        true
    }
}

const CLOSED: &str = "CLOSED\n";

/// Runs a statement and writes down what came back.
async fn answer(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(messages) => script::describe(&messages, sql, |_, name| name.to_owned()),
        Err(error) => match error.as_db_error() {
            Some(error) if error.severity() == "FATAL" => format!("CLOSED {}\n", error.code().code()),
            Some(error) => format!("ERROR {}\n", error.code().code()),
            None => CLOSED.to_owned(),
        },
    }
}

/// Plays a case. What it answers differs from the recording that it follows where the server does.
pub async fn play(target: &Target, script: &Script, case: &Case, guide: Guide<'_>) -> Recording {
    let control = Session::open(target, "control").await;
    prepare(target, script, &control.client).await;
    let mut stage = Stage { target, case, control, sessions: Vec::new(), recording: Recording::default() };
    for (order, step) in case.steps.iter().enumerate() {
        if !stage.step(order, step, guide).await {
            break;
        }
    }
    stage.finish().await
}

/// Makes the tables, and looks whether keys are where the script wants them.
async fn prepare(target: &Target, script: &Script, control: &Client) {
    let setup = script.setup.iter().map(|statement| match target.kind {
        Kind::PostgreSql => script::for_postgres(statement),
        Kind::Shoal(_) => statement.sql.clone(),
    });
    for sql in PROBE.into_iter().map(str::to_owned).chain(setup) {
        let done = timeout(PATIENCE, control.simple_query(&sql)).await.expect("setup ends in time");
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    if !matches!(target.kind, Kind::Shoal(shards) if shards > 1) {
        return;
    }
    for (table, column, values) in &script.apart {
        let mut routes = Vec::new();
        for value in values {
            let sql = format!("EXPLAIN SELECT * FROM {table} WHERE {column} = {value}");
            let plan = script::answer(control, &sql).await;
            let route = plan.lines().find(|line| line.contains("Route: One(")).map(str::to_owned);
            let route = route.unwrap_or_else(|| panic!("{sql} goes to more than one shard:\n{plan}"));
            assert!(!routes.contains(&route), "{table}.{column}: {values:?} aren't on different shards");
            routes.push(route);
        }
    }
}

/// A case while it's played.
struct Stage<'a> {
    target: &'a Target,
    case: &'a Case,
    control: Session,
    sessions: Vec<Session>,
    recording: Recording,
}

impl Stage<'_> {
    /// Plays a step; whether the case can go on.
    async fn step(&mut self, order: usize, step: &Step, guide: Guide<'_>) -> bool {
        let text = step.to_string();
        let session = match step {
            Step::Send { session, .. } | Step::Await(session) => self.session(session).await,
        };
        if let Step::Send { sql, .. } = step {
            // What has ended since the last step ended too early to be in any recording.
            self.note_ended().await;
            assert!(!self.sessions[session].is_running(), "{text}: the session's last statement still waits");
            self.sessions[session].start(text.clone(), order, sql.clone());
        }
        let answer = match step {
            Step::Send { .. } => WAITS.to_owned(),
            Step::Await(_) => String::new(),
        };
        self.recording.steps.push(Recorded { step: text.clone(), answer, ended: Vec::new() });
        let mut in_time = true;
        match guide {
            Guide::Ask => {
                if matches!(step, Step::Await(_)) {
                    in_time = self.sessions[session].end().await;
                }
                self.settle().await;
            }
            Guide::Follow(recording) => {
                let expected = recording.steps.get(order).filter(|expected| expected.step == text);
                let expected = expected.unwrap_or_else(|| panic!("{text}: it isn't in the recording"));
                let mut wanted: Vec<&str> = expected.ended.iter().map(|(step, _)| step.as_str()).collect();
                match step {
                    Step::Send { .. } if expected.answer == WAITS => match self.target.kind {
                        Kind::PostgreSql => self.settle().await,
                        Kind::Shoal(_) => self.probe().await,
                    },
                    Step::Send { .. } => wanted.insert(0, &text),
                    Step::Await(_) => {}
                }
                for session in &mut self.sessions {
                    let running = session.running.as_ref().map(|running| running.step.as_str());
                    if running.is_some_and(|step| wanted.contains(&step)) {
                        in_time &= session.end().await;
                    }
                }
            }
        }
        self.note_ended().await;
        in_time
    }

    /// The place of a session, which begins with its first step.
    async fn session(&mut self, name: &str) -> usize {
        if let Some(place) = self.sessions.iter().position(|session| session.name == name) {
            return place;
        }
        let mut session = Session::open(self.target, name).await;
        if self.target.kind == Kind::PostgreSql {
            let rows = session.client.query_one("SELECT pg_backend_pid()", &[]).await;
            session.pid = rows.expect("a backend has a number").get(0);
            if let Some(victim) = &self.case.victim {
                let patience = if victim == name { "10ms" } else { "100s" };
                let sql = format!("SET deadlock_timeout = '{patience}'");
                session.client.batch_execute(&sql).await.expect("the user is a superuser");
            }
        }
        self.sessions.push(session);
        self.sessions.len() - 1
    }

    /// Writes down what has ended.
    async fn note_ended(&mut self) {
        let mut ended = Vec::new();
        for session in &mut self.sessions {
            if session.has_ended() {
                ended.extend(session.take_answer().await);
            }
        }
        ended.sort();
        let steps = self.recording.steps.len();
        let Some(last) = self.recording.steps.last_mut() else { return };
        for (order, step, answer) in ended {
            if step == last.step && order + 1 == steps {
                last.answer = answer;
            } else {
                last.ended.push((step, answer));
            }
        }
    }

    /// Waits until every statement has ended or waits for another session.
    async fn settle(&mut self) {
        let settled = async {
            let mut sure = 0;
            while sure < SURE {
                let waiting: Vec<i32> = self
                    .sessions
                    .iter()
                    .filter(|s| s.is_running() && !s.has_ended())
                    .map(|s| s.pid)
                    .collect();
                if waiting.is_empty() {
                    return;
                }
                let blocked = blockers(&self.control.client, &waiting).await;
                let all = waiting.iter().all(|pid| blocked.get(pid).is_some_and(|by| !by.is_empty()));
                sure = if all && !has_cycle(&blocked) { sure + 1 } else { 0 };
            }
        };
        timeout(PATIENCE, settled).await.expect("every statement ends or waits for another session");
    }

    /// Has writes of every shard committed, so that a statement that was sent before has come to where it waits, or has
    /// ended.
    async fn probe(&self) {
        for _ in 0..PROBES {
            let written =
                timeout(PATIENCE, self.control.client.simple_query("UPDATE probe SET n = n + 1")).await;
            written.expect("nobody else writes it").expect("the table is there");
        }
    }

    /// Ends what is left open.
    async fn finish(mut self) -> Recording {
        for session in &self.sessions {
            if session.is_running() {
                // It may have ended by now, or its connection may be gone.
                drop(timeout(PATIENCE, session.client.cancel_token().cancel_query(NoTls)).await);
            }
        }
        for session in &mut self.sessions {
            if let Some(running) = &session.running {
                let left = (running.step.clone(), "never ended\n".to_owned());
                if let Some(last) = self.recording.steps.last_mut() {
                    last.ended.push(left);
                }
                session.end().await;
            }
            // A connection that is gone has rolled back already.
            drop(timeout(PATIENCE, session.client.simple_query("ROLLBACK")).await);
        }
        self.recording
    }
}

/// Whom each of some backends waits for.
async fn blockers(control: &Client, pids: &[i32]) -> HashMap<i32, Vec<i32>> {
    let list: Vec<_> = pids.iter().map(i32::to_string).collect();
    let sql = format!(
        "SELECT pid, pg_blocking_pids(pid)::text FROM unnest('{{{}}}'::int[]) AS pid",
        list.join(",")
    );
    let messages = control.simple_query(&sql).await.expect("PostgreSQL tells who waits");
    let numbers = |text: &str| -> Vec<i32> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let mut found = HashMap::new();
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message
            && let (Some(pid), Some(by)) = (row.get(0), row.get(1))
        {
            found.insert(pid.parse().expect("a backend's number"), numbers(by));
        }
    }
    found
}

/// Whether some wait for each other: a deadlock that will be found.
fn has_cycle(waits: &HashMap<i32, Vec<i32>>) -> bool {
    waits.keys().any(|start| {
        let (mut seen, mut next) = (Vec::new(), waits[start].clone());
        while let Some(pid) = next.pop() {
            if pid == *start {
                return true;
            }
            if !seen.contains(&pid) {
                seen.push(pid);
                next.extend(waits.get(&pid).into_iter().flatten());
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_more_than_a_queue() {
        let queue = HashMap::from([(1, vec![2]), (2, vec![3]), (4, vec![2, 3])]);
        assert!(!has_cycle(&queue));
        let mut cycle = queue;
        cycle.insert(3, vec![1]);
        assert!(has_cycle(&cycle));
    }
}
