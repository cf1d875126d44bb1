//! The world: one loop over everything that happens, in one thread, in the order of its time.
//!
//! Events come out of a queue ordered by time: messages arrive, loops get their turns, faults strike and pass, clients
//! go on. After each event clients' answers are looked at and what must always hold is checked. Then the world is
//! healed, and everything must become live again. The same plan gives the same run.

mod chores;
mod clients;
mod faults;

use super::client::Client;
use super::clock::WorldClock;
use super::history::{History, Rows};
use super::network::{CutId, Network, Quality};
use super::node::Node;
use super::plan::{Kind, Plan};
use super::random::Random;
use super::rows;
use super::scenario::Report;
use super::trace::{MICROSECOND, MILLISECOND, SECOND, Time, Trace};
use chores::{Chore, Wound};
use proto::NodeId;
use proto::services::{Consistency, RaftMessage, RaftService};
use replica::simulation::gives_vote;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// How long after the last fault everything must work again.
const RECOVERY: Time = 25 * SECOND;
/// How many writes of each client must be acknowledged by then.
const WRITES_AFTER: u64 = 3;
/// How long all replicas may take to have the same, once nobody writes any more.
const CONVERGENCE: Time = 15 * SECOND;
/// How often a node tries to revive what stopped.
const REVIVE: Time = 2 * SECOND;
/// The first byte of a message between hosts that carries a piece of an image.
const IMAGE_CHUNK: u8 = 2;

/// Something that happens at its time.
enum Event {
    Deliver { from: u64, to: u64, message: RaftMessage },
    Turn { node: u64, life: u64 },
    Step { node: u64, life: u64 },
    Images { node: u64, life: u64 },
    Tick { node: u64, life: u64 },
    Revive { node: u64 },
    Client { number: usize, token: u64 },
    Fault(usize),
    Start { node: u64 },
    Resume { node: u64, life: u64 },
    Awake { node: u64, life: u64 },
    Mend(CutId),
    Unslow { from: u64, to: u64 },
    Calm,
    Survive,
    Space { node: u64 },
    Hurry { node: u64 },
    Quick { node: u64 },
    Readers { node: u64, life: u64 },
    Operate,
    Sweep,
    DieYoung { node: u64, life: u64 },
}

/// A node's loops.
enum Loop {
    Consensus,
    Engine,
    Images,
}

/// A simulated cluster with its clients.
pub struct World {
    plan: Plan,
    root: String,
    clock: WorldClock,
    queue: BTreeMap<(Time, u64), Event>,
    order: u64,
    nodes: BTreeMap<u64, Node>,
    network: Network,
    clients: Vec<Client>,
    tokens: Vec<u64>,
    history: History,
    random: Random,
    healed: bool,
    /// No client begins anything before this time.
    quiet_until: Time,
    /// Every other client wants nothing but to read until this time.
    eager_until: Time,
    /// What the group must make up for.
    wound: Option<Wound>,
    /// Whether the last change of members came to its end.
    members_settled: bool,
    /// Who came in the place of nodes that are gone.
    replaced: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    chores: Vec<Chore>,
    /// The hashes that replicas took themselves, by index.
    checks: BTreeMap<u64, u128>,
    /// Tokio's time, which lags behind the world's by less than its own precision.
    advanced: Time,
    counts: BTreeMap<Cow<'static, str>, u64>,
    faults: BTreeMap<Kind, u64>,
    trace: Trace,
}

type Outcome = Result<(), String>;

impl World {
    /// A world whose files lie under a directory.
    pub fn new(plan: Plan, root: &Path) -> Self {
        let clock = WorldClock::default();
        let seed = plan.seed;
        let all = plan.nodes + plan.spares;
        let nodes = (1..=all).map(|id| (id, Node::new(id, root, &clock, plan.setup, seed))).collect();
        let clients: Vec<Client> = (0..plan.clients).map(|number| Client::new(number, seed)).collect();
        Self {
            root: root.display().to_string(),
            clock,
            queue: BTreeMap::new(),
            order: 0,
            nodes,
            network: Network::new(seed),
            tokens: vec![0; clients.len()],
            clients,
            history: History::default(),
            random: Random::stream(seed, "world", 0),
            healed: false,
            quiet_until: 0,
            eager_until: 0,
            wound: None,
            members_settled: true,
            replaced: BTreeMap::new(),
            leaders: BTreeMap::new(),
            chores: Vec::new(),
            checks: BTreeMap::new(),
            advanced: 0,
            counts: BTreeMap::new(),
            faults: BTreeMap::new(),
            trace: Trace::default(),
            plan,
        }
    }

    /// Lets it run to its end. It wants a runtime whose time is paused.
    pub async fn run(mut self) -> Report {
        let outcome = self.live().await;
        if let Err(why) = &outcome {
            self.trace.note(self.now(), format_args!("FAILED: {why}"));
        }
        self.counts.insert("snapshots compared".into(), self.history.compared());
        let mut report = Report::new(&self.trace, outcome.err());
        report.faults = self.faults.iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
        report.counts = self.counts.iter().map(|(what, count)| (what.to_string(), *count)).collect();
        report
    }

    async fn live(&mut self) -> Outcome {
        let founders: Vec<NodeId> = (1..=self.plan.nodes).map(NodeId).collect();
        for id in self.ids() {
            let founders = founders.contains(&NodeId(id)).then_some(founders.as_slice());
            self.nodes.get_mut(&id).expect("it was just made").start(founders)?;
            self.touch(id);
            self.at(REVIVE, Event::Revive { node: id });
        }
        for number in 0..self.plan.faults.len() {
            self.at(self.plan.faults[number].0, Event::Fault(number));
        }
        for number in 0..self.clients.len() {
            let first = self.clients[number].random.within(0..3 * SECOND);
            self.client_at(number, first);
        }
        self.run_until(self.plan.length, |_| false).await?;
        self.heal()?;
        let before: Vec<u64> = self.clients.iter().map(|client| client.acknowledged).collect();
        let works = |world: &Self| {
            let mut pairs = world.clients.iter().zip(&before);
            world.wound.is_none()
                && pairs.all(|(client, before)| client.acknowledged >= before + WRITES_AFTER)
        };
        if !self.run_until(self.now() + RECOVERY, works).await? {
            return Err(format!("not live {} s after all was healed: {}", RECOVERY / SECOND, self.state()));
        }
        for number in 0..self.clients.len() {
            self.tokens[number] += 1;
            let client = &mut self.clients[number];
            (client.call, client.kept) = (None, None);
        }
        if !self.run_until(self.now() + CONVERGENCE, Self::has_converged).await? {
            let state = self.state();
            return Err(format!("not the same {} s after the last write: {state}", CONVERGENCE / SECOND));
        }
        self.compare().await?;
        let undecided = self.history.judge()?;
        self.counts.insert("registers undecided".into(), undecided);
        self.trace.note(self.now(), "the end");
        Ok(())
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.values().filter(|node| !node.gone).map(|node| node.id).collect()
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn count(&mut self, what: impl Into<Cow<'static, str>>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.queue.insert((time, self.order), event);
    }

    fn client_at(&mut self, number: usize, time: Time) {
        self.tokens[number] += 1;
        let token = self.tokens[number];
        self.at(time, Event::Client { number, token });
    }

    /// Runs until a time, or until something holds; whether it does.
    async fn run_until(&mut self, until: Time, holds: impl Fn(&Self) -> bool) -> Result<bool, String> {
        while let Some((&(time, order), _)) = self.queue.first_key_value() {
            if time > until {
                break;
            }
            let event = self.queue.remove(&(time, order)).expect("it was just seen");
            self.clock.set(time);
            if time - self.advanced >= MILLISECOND / 2 {
                tokio::time::advance(Duration::from_nanos(time - self.advanced)).await;
                self.advanced = time;
            }
            let looks = matches!(event, Event::Tick { .. } | Event::Client { .. });
            self.happen(event)?;
            self.poll_clients()?;
            self.poll_chores()?;
            self.check_leases()?;
            if looks && holds(self) {
                return Ok(true);
            }
        }
        self.clock.set(until);
        Ok(holds(self))
    }

    fn happen(&mut self, event: Event) -> Outcome {
        match event {
            Event::Deliver { from, to, message } => {
                let node = self.nodes.get(&to).and_then(|node| node.process.as_ref());
                if let Some(process) = node {
                    process.host.receive(NodeId(from), vec![message]);
                    self.touch(to);
                }
                Ok(())
            }
            Event::Turn { node, life } if self.is_alive(node, life) => self.turn(node, false),
            Event::Step { node, life } if self.is_alive(node, life) => self.step(node),
            Event::Images { node, life } if self.is_alive(node, life) => self.turn_images(node),
            Event::Tick { node, life } if self.is_alive(node, life) => self.turn(node, true),
            Event::Turn { .. } | Event::Step { .. } | Event::Images { .. } | Event::Tick { .. } => Ok(()),
            Event::Revive { node } => self.revive(node),
            Event::Client { number, token } if self.tokens[number] == token => self.client_turn(number),
            Event::Client { .. } => Ok(()),
            Event::Fault(number) => self.strike(number),
            Event::Start { node } => self.start(node),
            Event::Resume { node, life } => {
                let hit = &self.nodes[&node];
                if hit.life == life && (hit.paused || hit.stalled) {
                    self.note(format_args!("node {node} goes on"));
                    let hit = self.nodes.get_mut(&node).expect("it was just seen");
                    (hit.paused, hit.stalled) = (false, false);
                    self.touch(node);
                }
                Ok(())
            }
            Event::Awake { node, life } => {
                if self.nodes[&node].life == life {
                    self.nodes.get_mut(&node).expect("it was just seen").paused = false;
                    self.touch(node);
                }
                Ok(())
            }
            Event::Mend(cut) => {
                self.network.mend(cut);
                Ok(())
            }
            Event::Unslow { from, to } => {
                self.network.slow(from, to, 0);
                Ok(())
            }
            Event::Calm => {
                self.network.set_quality(Quality::GOOD);
                Ok(())
            }
            Event::Survive => {
                self.nodes.values_mut().for_each(|node| node.dies_voting = None);
                Ok(())
            }
            Event::Space { node } => {
                self.note(format_args!("node {node} has space again"));
                self.give_space(node);
                Ok(())
            }
            Event::Hurry { node } => {
                let delay = self.plan.setup.turn_delay;
                self.nodes.get_mut(&node).expect("faults hit nodes that are there").turn_delay = delay;
                Ok(())
            }
            Event::Quick { node } => {
                self.nodes.get_mut(&node).expect("faults hit nodes that are there").disk_delay = 0;
                Ok(())
            }
            Event::Readers { node, life } => {
                if self.is_alive(node, life) {
                    self.note(format_args!("node {node} has its readers again"));
                    self.nodes.get_mut(&node).expect("it's alive").taken.clear();
                    self.touch(node);
                }
                Ok(())
            }
            Event::DieYoung { node, life } => {
                if self.is_alive(node, life) && self.nodes[&node].dies_voting.is_some() {
                    self.crash(node, "leads and dies")?;
                }
                Ok(())
            }
            Event::Operate => {
                self.operate();
                Ok(())
            }
            Event::Sweep => {
                self.sweep();
                Ok(())
            }
        }
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        // The files lie elsewhere in each run.
        let what = what.to_string().replace(&self.root, "");
        self.trace.note(self.clock.now(), what);
    }

    fn is_alive(&self, node: u64, life: u64) -> bool {
        let node = &self.nodes[&node];
        node.life == life && node.process.is_some()
    }

    /// Has all of a node's loops get turns soon: there may be something to do.
    fn touch(&mut self, id: u64) {
        self.soon(id, Loop::Consensus);
        self.soon(id, Loop::Engine);
        self.soon(id, Loop::Images);
        self.plan_ahead(id);
    }

    /// Has a loop get a turn soon.
    fn soon(&mut self, id: u64, which: Loop) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("only nodes have loops");
        if node.process.is_none() || node.paused {
            return;
        }
        let (life, most) = (node.life, node.turn_delay);
        let (planned, event) = match which {
            Loop::Consensus => (&mut node.turn_at, Event::Turn { node: id, life }),
            Loop::Engine => (&mut node.step_at, Event::Step { node: id, life }),
            Loop::Images => (&mut node.images_at, Event::Images { node: id, life }),
        };
        if planned.is_none_or(|at| at > now + most) {
            let time = now + self.random.within(10 * MICROSECOND..most);
            *planned = Some(time);
            self.at(time, event);
        }
    }

    /// Has the loops get the turns that they want later.
    fn plan_ahead(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("only nodes have loops");
        let Some(process) = &node.process else { return };
        let (life, most) = (node.life, node.turn_delay);
        let now = self.clock.now();
        let tick = process.loops.next_tick().map(|next| node.clock.world_time(next));
        // After a pause ticks are overdue. They wait for their turn as everything does, so that any loop may be first.
        let tick = match tick {
            Some(tick) if tick < now && node.tick_at.is_some_and(|at| at <= now + most) => None,
            Some(tick) if tick < now => Some(now + self.random.within(10 * MICROSECOND..most)),
            tick => tick,
        };
        let images = process.loops.next_images().map(|next| node.clock.world_time(next));
        if let Some(tick) = tick
            && node.tick_at.is_none_or(|at| at > tick)
        {
            node.tick_at = Some(tick);
            self.at(tick, Event::Tick { node: id, life });
        }
        let images = images.map(|at| at.max(self.clock.now() + 50 * MICROSECOND));
        let node = self.nodes.get_mut(&id).expect("it was just seen");
        if let Some(images) = images
            && node.images_at.is_none_or(|at| at > images)
        {
            node.images_at = Some(images);
            self.at(images, Event::Images { node: id, life });
        }
    }

    fn turn(&mut self, id: u64, ticks: bool) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it's alive");
        let planned = if ticks { &mut node.tick_at } else { &mut node.turn_at };
        if planned.take_if(|at| *at <= now).is_none() || node.paused || node.stalled {
            return Ok(());
        }
        if node.busy_until > now {
            // It waits for its log.
            let (again, life) = (node.busy_until, node.life);
            if ticks {
                node.tick_at = Some(again);
                self.at(again, Event::Tick { node: id, life });
            } else {
                node.turn_at = Some(again);
                self.at(again, Event::Turn { node: id, life });
            }
            return Ok(());
        }
        let syncs = node.log.syncs();
        let had_mail = node.process.as_ref().expect("it's alive").loops.turn_consensus();
        if node.disk_delay > 0 && node.log.syncs() > syncs {
            node.busy_until = now + self.random.within(0..node.disk_delay);
        }
        if had_mail || ticks {
            self.soon(id, Loop::Engine);
            self.soon(id, Loop::Images);
        }
        self.after_turn(id)
    }

    fn step(&mut self, id: u64) -> Outcome {
        let node = self.nodes.get_mut(&id).expect("it's alive");
        node.step_at = None;
        if node.paused {
            return Ok(());
        }
        let process = node.process.as_ref().expect("it's alive");
        let mut worked = false;
        for group in process.loops.engines() {
            worked |= process.loops.step_engine(group);
        }
        if worked {
            self.soon(id, Loop::Consensus);
            self.soon(id, Loop::Engine);
            self.soon(id, Loop::Images);
            if self.random.permille(60) {
                self.look(id)?;
            }
        }
        self.after_turn(id)
    }

    fn turn_images(&mut self, id: u64) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it's alive");
        if node.images_at.take_if(|at| *at <= now).is_none() || node.paused {
            return Ok(());
        }
        let process = node.process.as_ref().expect("it's alive");
        let worked = process.loops.turn_images();
        if worked || !process.sent_nothing() {
            self.soon(id, Loop::Consensus);
            self.soon(id, Loop::Engine);
        }
        self.after_turn(id)
    }

    /// Takes what a loop has sent, and sees what has become of the node.
    fn after_turn(&mut self, id: u64) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it had a turn");
        let has_died = node.has_died();
        // What the log was synced for goes out once that is done.
        let wait = node.busy_until.saturating_sub(now);
        let process = node.process.as_mut().expect("it had a turn");
        let sent = process.sent();
        let changed = process.changed.has_changed().unwrap_or(false);
        process.changed.mark_unchanged();
        let status = process.replica().filter(|_| changed).map(|replica| replica.status());
        let is_asleep = node.replica().is_some_and(|replica| replica::simulation::is_asleep(&replica));
        let fell_asleep = is_asleep && !std::mem::replace(&mut node.asleep, is_asleep);
        let dies_voting = node.dies_voting.filter(|_| sent.iter().any(|(_, message)| gives_vote(message)));
        if fell_asleep {
            self.count("replicas that fell asleep");
        }
        for (to, message) in sent {
            let mut what = [0; 24];
            what[..8].copy_from_slice(&id.to_le_bytes());
            what[8..16].copy_from_slice(&to.to_le_bytes());
            what[16..].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&message.body).to_le_bytes());
            self.trace.count(now, &what);
            self.count(match message.body.first() {
                Some(0) => "packets: Raft",
                Some(1) => "packets: image requests",
                Some(&IMAGE_CHUNK) => "packets: image chunks",
                Some(3) => "packets: alive",
                _ => "packets: others",
            });
            for delay in self.network.carry(id, to) {
                self.at(now + wait + delay, Event::Deliver { from: id, to, message: message.clone() });
            }
        }
        if has_died {
            return self.crash(id, "dies in a write");
        }
        if let Some(down) = dies_voting {
            self.nodes.get_mut(&id).expect("it had a turn").down_for = down;
            self.count("crashes after a vote");
            return self.crash(id, "has voted and dies");
        }
        if let Some(status) = status {
            let leader = status.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
            let (role, term) = (status.role, status.term.0);
            self.note(format_args!("node {id}: {role:?} of term {term}, leader {leader}"));
            let trouble = self.nodes[&id].process.as_ref().is_some_and(|process| process.had_trouble);
            if let Some(why) = status.stopped {
                self.note(format_args!("node {id} has stopped: {why}"));
                if !trouble {
                    return Err(format!("the replica on node {id} stopped though its disk is well: {why}"));
                }
            }
            if let Some(check) = status.check {
                let first = *self.checks.entry(check.index.0).or_insert(check.hash);
                if first != check.hash {
                    return Err(format!(
                        "node {id} hashes its tables at {} as nobody else does",
                        check.index
                    ));
                }
            }
            if role == proto::services::ReplicaRole::Leader {
                self.count("leaders");
                self.ends_soon(id);
                let first = *self.leaders.entry(term).or_insert(id);
                if first != id {
                    return Err(format!("nodes {first} and {id} both lead in term {term}"));
                }
            }
        }
        self.plan_ahead(id);
        Ok(())
    }

    /// Where voters die, who is elected doesn't lead for long: there are to be more votes.
    fn ends_soon(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it was just elected");
        if node.dies_voting.is_some() {
            let life = node.life;
            node.down_for = self.random.within(10 * MILLISECOND..300 * MILLISECOND);
            let time = self.now() + self.random.within(0..400 * MILLISECOND);
            self.at(time, Event::DieYoung { node: id, life });
        }
    }

    fn check_leases(&self) -> Outcome {
        if self.nodes.values().filter(|node| node.holds_lease()).count() > 1 {
            let holders = self.nodes.values().filter(|node| node.holds_lease()).map(|node| node.id);
            let holders: Vec<u64> = holders.collect();
            return Err(format!("nodes {holders:?} hold a lease at the same moment"));
        }
        Ok(())
    }

    /// Compares what a node has with what others had at the same index.
    fn look(&mut self, id: u64) -> Outcome {
        let Some(replica) = self.nodes[&id].replica() else { return Ok(()) };
        if let Some(snapshot) = now_or_never(replica.snapshot(Consistency::Eventual, soon())) {
            let Ok(snapshot) = snapshot else { return Ok(()) };
            if let Ok(rows) = rows::read(&snapshot) {
                self.history.saw(&rows, &format!("node {id}"))?;
            }
        }
        Ok(())
    }

    /// Whom the group consists of, as its leader says.
    fn members(&self) -> Vec<u64> {
        let replicas = self.nodes.values().filter_map(Node::replica);
        let leading = replicas.filter(replica::Replica::is_leader).map(|replica| replica.status());
        let members = leading.max_by_key(|status| status.term).map(|status| status.members);
        members.map(|members| members.voters.iter().map(|node| node.0).collect()).unwrap_or_default()
    }

    fn has_converged(&self) -> bool {
        if self.wound.is_some() {
            return false;
        }
        let mut applied = BTreeSet::new();
        for id in self.members() {
            let Some(replica) = self.nodes.get(&id).and_then(Node::replica) else { return false };
            let status = replica.status();
            if status.stopped.is_some() || status.leader.is_none() {
                return false;
            }
            applied.insert((status.applied, status.term));
        }
        applied.len() == 1
    }

    async fn compare(&mut self) -> Outcome {
        let mut all: Vec<Rows> = Vec::new();
        for id in self.members() {
            let replica = self.nodes[&id].replica().ok_or("a node isn't there at the end")?;
            let snapshot = replica.snapshot(Consistency::Eventual, soon()).await;
            let snapshot = snapshot.map_err(|error| format!("node {id} can't be read: {error}"))?;
            let rows = rows::read(&snapshot).map_err(|error| format!("node {id} can't be read: {error}"))?;
            self.history.saw(&rows, &format!("node {id} at the end"))?;
            all.push(rows);
        }
        let Some(first) = all.first().cloned() else { return Ok(()) };
        if all.iter().any(|rows| *rows != first) {
            return Err("replicas differ at the end".into());
        }
        self.history.end(&first, self.clock.now())
    }

    fn state(&self) -> String {
        let mut text = String::new();
        for node in self.nodes.values() {
            text += &match node.replica() {
                None => format!("\n    node {} is down or has no replica", node.id),
                Some(replica) => format!("\n    {:?}", replica.status()),
            };
        }
        for client in &self.clients {
            text += &format!("\n    client {} is at {:?}", client.number, client.operation);
        }
        text
    }
}

/// A deadline that nobody means to reach.
fn soon() -> std::time::Instant {
    (tokio::time::Instant::now() + Duration::from_secs(60)).into_std()
}

/// A future's result if it's there at once.
fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
