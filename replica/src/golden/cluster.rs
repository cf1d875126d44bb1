//! Nodes that a script moves: each has a clock of its own, and does what there is to do when time passes for it or
//! something arrives.
//!
//! Commands go in, lines of the journal come out. After everything that a loop does, what the replica is is compared to
//! what it was, and clients hear their answers. It must never know how a script is written.

use super::journal::{Doom, Ear, Journal, Sender, WatchedLog, Wire};
use super::seen::{Seen, members};
use super::words;
use crate::log::{LogReader, LogStore, RaftEngineLog};
use crate::packet::Packet;
use crate::simulation::{Clock, Loops, open, revive};
use crate::{Config, Host, MemberTarget, Replica, Snapshot, Stage, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::services::{Consistency, RaftMessage, RaftService};
use proto::{GroupId, LogIndex, NodeId, RequestId, RouterIncarnation, WireError};
use raft::StateRole;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const GROUP: GroupId = GroupId(3);
const TICK: Duration = Duration::from_millis(100);
const TABLE: &str = "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT) STRICT";
/// A node that has more to do than this at once never comes to an end.
const MOST_TURNS: usize = 10_000;

/// Messages on their way, from anybody to anybody or less.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub from: Option<u64>,
    pub to: Option<u64>,
}

/// Nodes, what is on its way between them, and who waits for an answer.
pub(super) struct Cluster {
    journal: Journal,
    wire: Wire,
    nodes: BTreeMap<u64, Node>,
    cuts: BTreeSet<(u64, u64)>,
    calls: Vec<Call>,
    clients: u8,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    _ear: tracing::subscriber::DefaultGuard,
}

#[derive(Default)]
struct Node {
    nanos: Arc<AtomicU64>,
    doom: Arc<Mutex<Option<Doom>>>,
    process: Option<Process>,
}

struct Process {
    host: Arc<Host>,
    loops: Loops,
    log: Arc<WatchedLog>,
    seen: Seen,
}

/// A client that waits for an answer.
struct Call {
    client: char,
    node: u64,
    answer: Pin<Box<dyn Future<Output = String>>>,
}

impl Cluster {
    pub fn new() -> Self {
        let journal = Journal::default();
        let ear = tracing::subscriber::set_default(Ear(journal.clone()));
        Self {
            journal,
            wire: Wire::default(),
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            calls: Vec::new(),
            clients: 0,
            directory: tempfile::tempdir().unwrap(),
            // Handles want one to be there. Its time never comes.
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
            _ear: ear,
        }
    }

    /// What has happened since the last call.
    pub fn take_events(&self) -> String {
        let directory = self.directory.path().display().to_string();
        self.journal.take().replace(&directory, "")
    }

    fn data_dir(&self, node: u64) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    fn open(&mut self, id: u64) {
        self.journal.begin(id);
        let data_dir = self.data_dir(id);
        std::fs::create_dir_all(&data_dir).unwrap();
        let node = self.nodes.entry(id).or_default();
        assert!(node.process.is_none(), "node {id} runs");
        let log = Arc::new(WatchedLog {
            inner: RaftEngineLog::open(&data_dir.join("log"), 1 << 20).unwrap(),
            node: id,
            journal: self.journal.clone(),
            doom: node.doom.clone(),
            told: Mutex::default(),
        });
        *log.told.lock() = log.kept(GROUP.0).unwrap().hard_state;
        let nanos = node.nanos.clone();
        let clock = Clock::simulated(move || Duration::from_nanos(nanos.load(Ordering::Relaxed)));
        let mut config = Config::new(NodeId(id), data_dir);
        config.tick = TICK;
        // Each batch is checkpointed and the log is cut soon, so that few writes make an image necessary.
        config.checkpoint_bytes = 1;
        config.log_cut_entries = 2;
        config.log_keep_bytes = 16 << 10;
        config.image_chunk_bytes = 32 << 10;
        let sender = Sender { node: id, journal: self.journal.clone(), wire: self.wire.clone() };
        let (host, loops) = open(config, clock, log.clone(), Arc::new(sender)).unwrap();
        node.process = Some(Process { host, loops, log, seen: Seen::default() });
    }

    /// Nodes start and found a group.
    pub fn found(&mut self, nodes: &[u64]) {
        let voters: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        for id in nodes {
            self.open(*id);
            let process = self.nodes[id].process.as_ref().unwrap();
            process.host.create(GROUP, &voters, &[TABLE.to_owned()]).unwrap();
            self.run(*id);
        }
    }

    /// A node starts, and founds a group from a file.
    pub fn found_from(&mut self, id: u64, sql: &str) {
        self.open(id);
        let file = self.data_dir(id).join("made.sqlite");
        let connection = rusqlite::Connection::open(&file).unwrap();
        crate::lay_out(&connection).unwrap();
        connection.execute_batch(&format!("{TABLE};{sql}")).unwrap();
        drop(connection);
        self.nodes[&id].process.as_ref().unwrap().host.create_from(GROUP, &file).unwrap();
        self.run(id);
    }

    /// A node starts.
    pub fn start(&mut self, id: u64) {
        self.open(id);
        self.run(id);
    }

    /// A node's process dies.
    pub fn crash(&mut self, id: u64) {
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.take()).expect("it runs");
        process.loops.crash();
        drop(process);
        self.journal.remark(format_args!("{id} is dead"));
        for call in self.calls.extract_if(.., |call| call.node == id) {
            self.journal.remark(format_args!("client {} hears nothing of {id} any more", call.client));
        }
    }

    /// A node dies when it comes to this.
    pub fn doom(&mut self, id: u64, doom: Doom) {
        *self.nodes[&id].doom.lock() = Some(doom);
    }

    /// So many ticks pass for some nodes.
    pub fn tick(&mut self, ids: &[u64], times: u64) {
        for _ in 0..times {
            for id in ids {
                self.nodes[id].nanos.fetch_add(TICK.as_nanos() as u64, Ordering::Relaxed);
                self.run(*id);
            }
        }
    }

    /// So many ticks pass for all nodes that run, and what they send arrives.
    pub fn pass(&mut self, times: u64) {
        for _ in 0..times {
            let running = self.nodes.iter().filter(|(_, node)| node.process.is_some());
            let ids: Vec<u64> = running.map(|(id, _)| *id).collect();
            self.tick(&ids, 1);
            self.deliver(Link { from: None, to: None }, u64::MAX);
        }
    }

    fn next_message(&self, link: Link) -> Option<(u64, u64, RaftMessage)> {
        let mut wire = self.wire.lock();
        let fits = |(from, to, _): &(u64, u64, RaftMessage)| {
            link.from.is_none_or(|wanted| wanted == *from) && link.to.is_none_or(|wanted| wanted == *to)
        };
        let at = wire.iter().position(fits)?;
        wire.remove(at)
    }

    /// What is on its way arrives.
    pub fn deliver(&mut self, link: Link, count: u64) {
        for _ in 0..count {
            let Some((from, to, message)) = self.next_message(link) else { return };
            let kind = words::kind(&Packet::decode(message.body.clone()).unwrap());
            let process = self.nodes.get(&to).and_then(|node| node.process.as_ref());
            match process {
                Some(process) if !self.cuts.contains(&(from, to)) => {
                    self.journal.begin(to);
                    self.journal.note(to, format_args!("← {from} {kind}"));
                    process.host.receive(NodeId(from), vec![message]);
                    self.run(to);
                }
                _ => self.journal.remark(format_args!("{from} ⇥ {to} {kind} is lost")),
            }
        }
    }

    /// What is on its way gets lost.
    pub fn lose(&mut self, link: Link, count: u64) {
        for _ in 0..count {
            let Some((from, to, message)) = self.next_message(link) else { return };
            let kind = words::kind(&Packet::decode(message.body.clone()).unwrap());
            self.journal.remark(format_args!("{from} ⇥ {to} {kind} is lost"));
        }
    }

    /// Cuts the ways from and to a node.
    pub fn cut(&mut self, node: u64) {
        for other in self.nodes.keys().filter(|id| **id != node) {
            self.cuts.extend([(node, *other), (*other, node)]);
        }
    }

    /// Mends all ways.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// A node does all that there is to do now.
    fn run(&mut self, id: u64) {
        self.journal.begin(id);
        for _ in 0..MOST_TURNS {
            let process = self.nodes[&id].process.as_ref().expect("it runs");
            let mut worked = process.loops.turn_consensus();
            if self.journal.is_dead() {
                return self.crash(id);
            }
            worked |= self.look(id);
            while self.step_engine(id) {
                worked = true;
            }
            worked |= self.turn_images(id);
            if !worked {
                // In production that is done every few seconds: directories of what was removed are deleted.
                revive(&self.nodes[&id].process.as_ref().expect("it runs").host);
                self.look(id);
                return;
            }
        }
        panic!("node {id} never rests: {}", self.take_events());
    }

    fn step_engine(&mut self, id: u64) -> bool {
        let process = self.nodes[&id].process.as_ref().expect("it runs");
        let worked = process.loops.step_engine(GROUP);
        self.look(id) || worked
    }

    fn turn_images(&mut self, id: u64) -> bool {
        let node = &self.nodes[&id];
        let process = node.process.as_ref().expect("it runs");
        let now = Duration::from_nanos(node.nanos.load(Ordering::Relaxed));
        let is_due = process.loops.next_images().is_some_and(|due| due <= now);
        let had_mail = process.loops.turn_images();
        self.look(id) || is_due || had_mail
    }

    /// Tells what has changed at a node, and what clients hear. Says whether one did.
    fn look(&mut self, id: u64) -> bool {
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()).expect("it runs");
        let now = process.host.replica(GROUP).as_ref().map(Seen::of).unwrap_or_default();
        let before = std::mem::replace(&mut process.seen, now.clone());
        now.tell(&before, |what| self.journal.note(id, what));
        self.poll()
    }

    fn poll(&mut self) -> bool {
        let _entered = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        let mut heard = false;
        self.calls.retain_mut(|Call { client, node, answer }| match answer.as_mut().poll(&mut context) {
            Poll::Pending => true,
            Poll::Ready(answer) => {
                heard = true;
                self.journal.remark(format_args!("client {client} ← {node}: {answer}"));
                false
            }
        });
        heard
    }

    fn replica(&self, id: u64) -> Replica {
        let process = self.nodes.get(&id).and_then(|node| node.process.as_ref()).expect("the node runs");
        process.host.replica(GROUP).expect("the node has a replica")
    }

    fn call(&mut self, node: u64, what: &str, answer: impl Future<Output = String> + 'static) {
        let client = char::from(b'a' + self.clients);
        self.clients += 1;
        self.journal.remark(format_args!("client {client} → {node}: {what}"));
        self.calls.push(Call { client, node, answer: Box::pin(answer) });
        self.journal.begin(node);
        self.poll();
        self.run(node);
    }

    /// A client sends a transaction.
    pub fn write(&mut self, node: u64, sql: &str, request: Option<&str>) -> Result<(), Box<dyn Error>> {
        let request = request.map(request_id).transpose()?;
        let (replica, text) = (self.replica(node), sql.to_owned());
        let run = Box::new(move |stage: &Stage<'_>| {
            let changed = stage.execute(&text, []).map_err(dialect::sqlite::error)?;
            Ok(Bytes::from(format!("{changed} rows changed")))
        });
        self.call(node, sql, async move {
            // Nothing is settled but by a later request.
            let write = Write { request, settled: 0, deadline: later(), run };
            match replica.write(write).await {
                Ok(written) => {
                    let repeated = if written.repeated { ", as it was told before" } else { "" };
                    format!("{} at {}{repeated}", String::from_utf8_lossy(&written.output), written.index)
                }
                Err(error) => refusal(&error),
            }
        });
        Ok(())
    }

    /// A client asks for all rows, as of an index or no staler than so many ticks if it says so.
    pub fn read(&mut self, node: u64, session: Option<u64>, stale: Option<u32>) {
        let replica = self.replica(node);
        let after = LogIndex(session.unwrap_or_default());
        let (what, consistency) = match (session, stale) {
            (Some(index), _) => (format!("reads as of {index}"), Consistency::Session),
            (None, Some(ticks)) => {
                (format!("reads no staler than {ticks} ticks"), Consistency::Bounded(TICK * ticks))
            }
            (None, None) => ("reads".to_owned(), Consistency::Strong),
        };
        self.call(node, &what, async move {
            match replica.snapshot_after(consistency, after, later()).await {
                Ok(snapshot) => rows_of(&snapshot),
                Err(error) => refusal(&error),
            }
        });
    }

    /// Somebody asks for other members.
    pub fn members(&mut self, node: u64, voters: &[u64], rebuild: Option<u64>) {
        let replica = self.replica(node);
        let voters = voters.iter().copied().map(NodeId).collect();
        let target = MemberTarget { voters, rebuild: rebuild.map(NodeId) };
        let what = match rebuild {
            Some(rebuild) => format!("have {} vote, and {rebuild} made anew", words::list(&target.voters)),
            None => format!("have {} vote", words::list(&target.voters)),
        };
        self.call(node, &what, async move {
            match replica.change_members(target, later()).await {
                Ok(now) => format!("members {}", members(&now)),
                Err(error) => refusal(&error),
            }
        });
    }

    /// Somebody asks for another leader.
    pub fn transfer(&mut self, node: u64, to: u64) {
        let replica = self.replica(node);
        self.call(node, &format!("have {to} lead"), async move {
            match replica.transfer_leader(NodeId(to), later()).await {
                Ok(()) => "done".to_owned(),
                Err(error) => refusal(&error),
            }
        });
    }

    /// What a node's database shows.
    pub fn rows(&self, node: u64) -> String {
        let _entered = self.runtime.enter();
        let replica = self.replica(node);
        let mut opened = Box::pin(replica.snapshot(Consistency::Eventual, later()));
        match opened.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(snapshot)) => format!("{node} {}", rows_of(&snapshot)),
            Poll::Ready(Err(error)) => format!("{node} {}", refusal(&error)),
            Poll::Pending => format!("{node} is too busy"),
        }
    }

    /// What a node's log has.
    pub fn log(&self, node: u64) -> String {
        let log = &self.nodes[&node].process.as_ref().expect("the node runs").log;
        let kept = log.kept(GROUP.0).unwrap();
        let mut lines = vec![format!("{node} after {}@{}", kept.cut.index, kept.cut.term)];
        if let Some((first, last)) = kept.range {
            let entries = log.entries(GROUP.0, first, last + 1, None).unwrap();
            lines.extend(entries.iter().map(|entry| format!("{node} {}", words::entry(entry))));
        }
        lines.join("\n")
    }

    /// What every replica is.
    pub fn status(&self) -> String {
        let line = |(id, node): (&u64, &Node)| {
            let Some(process) = &node.process else { return format!("{id} is dead") };
            let Some(replica) = process.host.replica(GROUP) else { return format!("{id} has no replica") };
            let seen = Seen::of(&replica);
            let kept = process.log.kept(GROUP.0).unwrap();
            let (office, commit, applied) = (seen.office(), seen.committed, seen.applied);
            let vote = words::peer(kept.hard_state.vote);
            let log = match kept.range {
                Some((first, last)) => format!("log {first}..{last}"),
                None => format!("log empty after {}", kept.cut.index),
            };
            let members = members(&seen.members);
            let mut words = format!(
                "{id} {office}, vote {vote}, {log}, commit {commit}, applied {applied}, members {members}"
            );
            let matched = replica.status().lag;
            let matched = words::list(matched.iter().map(|(node, index)| format!("{node}:{index}")));
            if seen.role == StateRole::Leader && !matched.is_empty() {
                words.push_str(&format!(", matched {matched}"));
            }
            words
        };
        self.nodes.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn rows_of(snapshot: &Snapshot) -> String {
    // Long values are as good as their begin.
    let sql = "SELECT k || ' ' || substr(v, 1, 8) || iif(length(v) > 8, '..', '') FROM t ORDER BY k";
    let mut statement = snapshot.connection().prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let rows: Vec<String> = rows.map(Result::unwrap).collect();
    format!("rows [{}] at {}", rows.join(", "), snapshot.position())
}

fn refusal(error: &WireError) -> String {
    format!("{} {} (retry: {:?})", error.sqlstate.as_str(), error.message, error.retry)
}

fn request_id(text: &str) -> Result<RequestId, Box<dyn Error>> {
    let (router, sequence) = text.split_once('.').ok_or("a request is ROUTER.SEQUENCE")?;
    Ok(RequestId { router: RouterIncarnation(router.parse()?), sequence: sequence.parse()? })
}

/// Long from now.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
