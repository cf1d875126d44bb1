//! What is done to the shards, step by step, and that tokens from before a step show their writes after it.

use super::kills::Kills;
use super::{Bank, Failure, PATIENCE, Reshard, Stage, serving};
use serde_json::Value;
use std::fmt;
use std::process::Output;
use std::time::{Duration, Instant};
use tests::bank::text;
use tests::cluster::connect;
use tests::nodes::{Nodes, groups};
use tests::wait;
use tokio_postgres::SimpleQueryMessage;

/// How many of its tokens are read again after each step: the first, and the last ones.
const READ_AGAIN: usize = 20;
/// What exit code a command has that stopped where somebody must decide.
const UNDECIDED: i32 = 3;

/// A token, and the rows that were written when it was taken.
pub struct Token {
    gtid: String,
    rows: [i64; 2],
}

/// One switch, from its command to when that had heard of it.
pub struct Switch {
    what: String,
    pub from: Instant,
    pub to: Instant,
    attempts: u64,
    ended: u64,
    pause_ms: u64,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Switch { what, from, to, attempts, ended, pause_ms } = self;
        let took = *to - *from;
        write!(
            f,
            "{what}: attempt {attempts}, {took:.1?}, {pause_ms} ms from the last seal to the decision, {ended} transactions ended"
        )
    }
}

/// The cluster, its clients, and what was done so far.
pub struct Work<'a> {
    pub stage: Stage,
    pub trial: &'a Reshard,
    pub bank: Bank,
    pub begun: Instant,
    pub tokens: Vec<Token>,
    pub switches: Vec<Switch>,
    /// How many switches there were, those among them that weren't measured.
    pub switched: usize,
    pub kills: Option<Kills>,
}

impl Work<'_> {
    /// Splits, moves and merges until there were enough switches.
    pub fn work(&mut self) -> Result<(), Failure> {
        while self.switched < self.trial.switches {
            for shard in self.serving()? {
                self.replace(&["split", &shard, "--into", "2"])?;
            }
            self.move_one()?;
            for pair in self.serving()?.chunks_exact(2) {
                self.replace(&["merge", &pair[0], &pair[1]])?;
            }
        }
        self.nothing_is_left()
    }

    /// Prints a line with the time.
    pub fn say(&self, what: &str) {
        println!("{:7.2} s: {what}", self.begun.elapsed().as_secs_f64());
    }

    fn serving(&self) -> Result<Vec<String>, Failure> {
        Ok(serving(&self.stage.nodes.status(0).ok_or("no status")?))
    }

    /// Replaces shards by others, and drops the old ones.
    fn replace(&mut self, wish: &[&str]) -> Result<(), Failure> {
        self.take_token()?;
        let mut arguments = [&["reshard"], wish, &["--keep", "always", "--json"]].concat();
        if self.trial.no_verify {
            arguments.push("--no-verify");
        }
        let what = wish[..2 + usize::from(wish[0] == "merge")].join(" ");
        self.say(&what);
        let commands: &[&str] =
            if self.trial.reverse { &["switch", "reverse", "switch"] } else { &["switch"] };
        if self.kills.is_some() {
            arguments.push("--yes");
            self.drive(&what, &arguments, commands)?;
        } else {
            let output = self.stage.nodes.shoal(0, &arguments);
            let lines = lines(&output);
            let id = lines.first().and_then(|line| line["reshard"].as_u64());
            let id = id.filter(|_| output.status.code() == Some(UNDECIDED)).ok_or_else(|| told(&output))?;
            let phase = lines.last().map_or(&Value::Null, |line| &line["phase"]);
            if *phase != "ready" {
                return Err(told(&output).into());
            }
            for command in commands {
                self.switch(&what, id, command)?;
            }
            self.shoal(&["reshard", "complete", &id.to_string(), "--json"])?;
        }
        self.goes_on()?;
        self.check_tokens()
    }

    /// Has the other side serve, after a while in which nothing happens, and waits as long again afterwards.
    fn switch(&mut self, what: &str, id: u64, command: &str) -> Result<(), Failure> {
        wait::pause(Duration::from_secs(self.trial.quiet));
        self.take_token()?;
        let from = Instant::now();
        let lines = self.shoal(&["reshard", command, &id.to_string(), "--json"])?;
        let to = Instant::now();
        wait::pause(to - from);
        let last = lines.last().ok_or("the command said nothing")?;
        let number = |name: &str| last[name].as_u64().unwrap_or_default();
        let switch = Switch {
            what: format!("{command} of {what}"),
            from,
            to,
            attempts: number("attempt"),
            ended: number("ended_transactions"),
            pause_ms: number("pause_ms"),
        };
        self.say(&switch.to_string());
        self.switches.push(switch);
        self.switched += 1;
        self.goes_on()?;
        self.check_tokens()
    }

    /// Moves a replica of a shard to a node that has none, which is started if there is no such.
    fn move_one(&mut self) -> Result<(), Failure> {
        self.take_token()?;
        let shard = self.serving()?.pop().ok_or("no shard")?;
        let status = self.stage.nodes.status(0).ok_or("no status")?;
        let group = groups(&status).find(|group| group["shard"] == *shard).ok_or("no such shard")?;
        let voters: Vec<u64> =
            group["voters"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let free = |nodes: &Nodes| {
            (0..nodes.count()).filter_map(|node| nodes.id(node)).find(|id| !voters.contains(id))
        };
        let to = match free(&self.stage.nodes) {
            Some(id) => id,
            None => {
                let added = self.stage.nodes.add(&[]);
                let known = |status: &Value| status["nodes"].as_array().map_or(0, Vec::len) > added;
                self.stage.nodes.wait_for(0, "the new node is known", known);
                free(&self.stage.nodes).ok_or("a node without an id")?
            }
        };
        let from = voters.first().ok_or("a shard without replicas")?;
        self.say(&format!("move {shard} from node {from} to node {to}"));
        self.shoal(&[
            "reshard",
            "move",
            &shard,
            "--from",
            &from.to_string(),
            "--to",
            &to.to_string(),
            "--json",
        ])?;
        self.goes_on()?;
        self.check_tokens()
    }

    /// Runs a command, which must do what it is told.
    fn shoal(&self, arguments: &[&str]) -> Result<Vec<Value>, Failure> {
        let output = self.stage.nodes.shoal(0, arguments);
        if output.status.success() { Ok(lines(&output)) } else { Err(told(&output).into()) }
    }

    /// Every client is answered yet.
    pub fn goes_on(&self) -> Result<(), Failure> {
        if self.bank.wait_for_each(2, PATIENCE) { Ok(()) } else { Err("a client stands still".into()) }
    }

    /// Writes two rows in a transaction over one router, and keeps its token.
    pub fn take_token(&mut self) -> Result<(), Failure> {
        self.calm();
        let first = 2 * self.tokens.len() as i64;
        let rows = [first, first + 1];
        let sql = format!("INSERT INTO noted VALUES ({first}), ({}) ON CONFLICT DO NOTHING", first + 1);
        let gtid =
            self.ask(0, &[&sql], "SHOW shoal.gtid").map_err(|why| format!("a token's write: {why}"))?;
        self.tokens.push(Token { gtid, rows });
        Ok(())
    }

    /// Reads what was written before tokens were taken, over the other router and with the token alone.
    pub fn check_tokens(&mut self) -> Result<(), Failure> {
        self.calm();
        let late = self.tokens.len().saturating_sub(READ_AGAIN);
        for token in self.tokens[..late.min(1)].iter().chain(&self.tokens[late..]) {
            let Token { gtid, rows: [one, two] } = token;
            let set = ["SET shoal.read_consistency = 'session'", &format!("SET shoal.gtid = '{gtid}'")];
            let sql = format!("SELECT count(*) FROM noted WHERE id IN ({one}, {two})");
            match self.ask(1, &set, &sql).as_deref() {
                Ok("2") => {}
                Ok(found) => return Err(format!("with the token {gtid} {found} of 2 rows are seen").into()),
                Err(why) => return Err(format!("with the token {gtid}: {why}").into()),
            }
        }
        Ok(())
    }

    /// Says something over a router, and asks for one value. Where nodes die it is asked until there is an answer.
    fn ask(&self, router: usize, first: &[&str], sql: &str) -> Result<String, String> {
        let patience = if self.kills.is_some() { PATIENCE } else { Duration::ZERO };
        let ask = async || {
            let client = connect(&self.stage.nodes.config(router)).await?;
            for sql in first {
                client.batch_execute(sql).await?;
            }
            let answer = client.simple_query(sql).await?;
            Ok(answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }))
        };
        wait::until(patience, wait::LOOK, || match self.stage.runtime.block_on(ask()) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err("no answer".to_owned()),
            Err(error) => Err(text(&error)),
        })
    }

    /// Of reshards that have ended nothing is left: no shards, no holds, nothing that was built.
    fn nothing_is_left(&mut self) -> Result<(), Failure> {
        self.calm();
        let clean = || {
            let status = self.stage.nodes.status(0).ok_or("no status")?;
            for group in groups(&status).filter(|group| group["keyspace"] == "main") {
                let mut holds = group["holds"].as_array().into_iter().flatten();
                let held =
                    holds.find(|hold| hold["name"].as_str().is_some_and(|name| name.starts_with("reshard/")));
                if group["serves"] != true || held.is_some() {
                    return Err(format!("{} is left: {held:?}", group["shard"]));
                }
            }
            for node in 0..self.stage.nodes.count() {
                let builds = std::fs::read_dir(self.stage.nodes.directory(node).join("builds"));
                if let Some(Ok(build)) = builds.ok().and_then(|mut builds| builds.next()) {
                    return Err(format!("{} is left", build.path().display()));
                }
            }
            Ok(())
        };
        Ok(wait::until(PATIENCE, wait::LOOK, clean)?)
    }
}

/// What a command printed, line by line.
pub fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What a command said when it failed.
pub fn told(output: &Output) -> String {
    let last = lines(output).pop().map_or_else(String::new, |line| format!("; the last: {line}"));
    format!("{}: {}{last}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}
