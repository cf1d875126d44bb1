//! The world: one loop over everything that happens, in one thread, in the order of its time.
//!
//! Events come out of a queue ordered by time: messages and frames arrive, loops and tasks get their turns, faults strike
//! and pass. What somebody sends goes through the network and becomes an event. The same plan gives the same run.

mod deaths;
mod ending;
mod faults;

use super::super::clock::WorldClock;
use super::super::network::{CutId, Network, Quality};
use super::super::random::Random;
use super::super::scenario::Report;
use super::super::trace::{MICROSECOND, MILLISECOND, SECOND, Time, Trace};
use super::admin::Admin;
use super::clients::{Client, Door, Shared, found, lock};
use super::history::{History, Outcome as Ended};
use super::node::Node;
use super::plan::{Kind, NODES, Plan};
use super::tasks::Tasks;
use super::wires::{Item, Sent, WireId, Wires};
use deaths::Dead;
use proto::services::{RaftMessage, RaftService};
use proto::{GroupId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// How long founding the cluster and making its tables may take.
const FOUNDING: Time = 60 * SECOND;
/// How often timers of tasks are looked after, at most and at least.
const POLL: (Time, Time) = (MILLISECOND, 8 * MILLISECOND);
/// How long a peer may say nothing until the stream to it is broken.
const KEEPALIVE: (Time, Time) = (2 * SECOND, 4 * SECOND);

/// Something that happens at its time.
enum Event {
    Deliver {
        from: u64,
        to: u64,
        message: RaftMessage,
    },
    Arrive {
        wire: WireId,
        up: bool,
        item: Item,
    },
    /// A stream is broken if its ends still can't hear each other.
    Keepalive {
        wire: WireId,
    },
    Break {
        wire: WireId,
    },
    Turn {
        node: u64,
        life: u64,
    },
    Tick {
        node: u64,
        life: u64,
    },
    Images {
        node: u64,
        life: u64,
    },
    Step {
        node: u64,
        life: u64,
        group: GroupId,
    },
    Run {
        node: u64,
        life: u64,
    },
    Poll {
        node: u64,
        life: u64,
    },
    Clients {
        poll: bool,
    },
    Fault(usize),
    /// What has waited for a switch happens.
    Ambush(usize),
    Start {
        node: u64,
    },
    Resume {
        node: u64,
        life: u64,
    },
    Mend(CutId),
    Unslow {
        from: u64,
        to: u64,
    },
    Calm,
    Hurry {
        node: u64,
    },
    Quick {
        node: u64,
    },
    /// It's looked whether what dead routers had prepared is free.
    Look,
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
    wires: Wires,
    clients: Tasks,
    clients_at: Option<Time>,
    shared: Arc<Shared>,
    random: Random,
    /// The routers that are dead, and have something prepared as far as anybody has looked.
    dead: Vec<Dead>,
    /// How long routers are to hear nothing of a node, each from a commit on.
    silences: Vec<Time>,
    /// The faults that wait for a switch.
    lurking: VecDeque<usize>,
    healed: bool,
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<Kind, u64>,
    trace: Trace,
}

type Outcome = Result<(), String>;

impl World {
    /// A world whose files lie under a directory.
    pub fn new(plan: Plan, root: &Path) -> std::io::Result<Self> {
        let clock = WorldClock::default();
        let seed = plan.seed;
        let nodes = (1..=NODES).map(|id| (id, Node::new(id, root, &clock, plan.setup, seed))).collect();
        let shared = Arc::new(Shared {
            seed,
            rows: plan.setup.rows,
            think: plan.setup.think,
            cuts: plan.cuts,
            sessions: plan.sessions,
            reshards: plan.reshards,
            tokens: Mutex::default(),
            wants_wide: AtomicBool::new(false),
            committing: Mutex::default(),
            switching: Mutex::default(),
            has_switch: AtomicBool::new(false),
            is_calm: AtomicBool::new(plan.reshards),
            doors: Mutex::default(),
            history: Mutex::new(History::new(clock.clone())),
            log: Mutex::default(),
            counts: Mutex::default(),
            committed: Mutex::new(vec![0; plan.clients]),
            ends: AtomicBool::new(false),
            failure: Mutex::default(),
        });
        Ok(Self {
            root: root.display().to_string(),
            queue: BTreeMap::new(),
            order: 0,
            nodes,
            network: Network::new(seed),
            wires: Wires::default(),
            clients: Tasks::new(0)?,
            clients_at: None,
            shared,
            random: Random::stream(seed, "world", 0),
            dead: Vec::new(),
            silences: Vec::new(),
            lurking: VecDeque::new(),
            healed: false,
            counts: BTreeMap::new(),
            faults: BTreeMap::new(),
            trace: Trace::default(),
            clock,
            plan,
        })
    }

    /// Lets it run to its end.
    pub fn run(mut self) -> Report {
        let outcome = self.live();
        if let Err(why) = &outcome {
            self.trace.note(self.now(), format_args!("FAILED: {why}"));
        }
        let mut report = Report::new(&self.trace, outcome.err());
        report.faults = self.faults.iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
        report.counts = self.counts.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect();
        let history = lock(&self.shared.history);
        for (what, ended) in [
            ("transactions committed", Ended::Committed),
            ("transactions failed", Ended::Failed),
            ("transactions of which nobody knows", Ended::Unknown),
        ] {
            report.counts.insert(what.to_owned(), history.count(ended));
        }
        report.counts.extend(lock(&self.shared.counts).clone());
        report
    }

    fn live(&mut self) -> Outcome {
        for id in self.ids() {
            self.start(id)?;
        }
        self.at(0, Event::Clients { poll: true });
        let done = Arc::new(AtomicBool::new(false));
        self.clients.handle().spawn(found(self.shared.clone(), done.clone()));
        if !self.run_until(FOUNDING, |_| done.load(Ordering::Relaxed))? {
            return Err(format!("no tables after {} s", FOUNDING / SECOND));
        }
        self.note(format_args!("the tables are there"));
        let begun = self.now();
        for number in 0..self.plan.faults.len() {
            self.at(begun + self.plan.faults[number].0, Event::Fault(number));
        }
        for number in 0..self.plan.clients {
            self.clients.handle().spawn(Client::new(self.shared.clone(), number).work());
        }
        if self.plan.reshards {
            self.clients.handle().spawn(Admin::new(self.shared.clone()).work());
        }
        self.run_until(begun + self.plan.length, |_| false)?;
        self.end()
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        // The files lie elsewhere in each run.
        let what = what.to_string().replace(&self.root, "");
        self.trace.note(self.clock.now(), what);
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.queue.insert((time, self.order), event);
    }

    /// Runs until a time, or until something holds; whether it does.
    fn run_until(&mut self, until: Time, holds: impl Fn(&Self) -> bool) -> Result<bool, String> {
        while let Some((&(time, order), _)) = self.queue.first_key_value() {
            if time > until {
                break;
            }
            let event = self.queue.remove(&(time, order)).expect("it was just seen");
            self.clock.set(time);
            let looks = matches!(event, Event::Clients { .. });
            self.happen(event)?;
            if looks {
                if let Some(why) = lock(&self.shared.failure).clone() {
                    return Err(why);
                }
                if holds(self) {
                    return Ok(true);
                }
            }
        }
        self.clock.set(until);
        Ok(holds(self))
    }

    fn happen(&mut self, event: Event) -> Outcome {
        match event {
            Event::Deliver { from, to, message } => {
                if let Some(process) = &self.nodes[&to].process {
                    process.host.receive(NodeId(from), vec![message]);
                    self.touch(to);
                }
                Ok(())
            }
            Event::Arrive { wire, up, item } => self.arrive(wire, up, item),
            Event::Keepalive { wire } => {
                let link = self.wires.link(wire, true).into_iter().chain(self.wires.link(wire, false));
                let is_deaf =
                    |(from, to): (u64, u64)| self.network.is_cut(from, to) || self.nodes[&to].paused;
                if link.into_iter().any(is_deaf) {
                    self.break_wire(wire);
                }
                Ok(())
            }
            Event::Break { wire } => {
                self.break_wire(wire);
                Ok(())
            }
            Event::Turn { node, life } if self.is_alive(node, life) => self.turn(node, false),
            Event::Tick { node, life } if self.is_alive(node, life) => self.turn(node, true),
            Event::Images { node, life } if self.is_alive(node, life) => self.turn_images(node),
            Event::Step { node, life, group } if self.is_alive(node, life) => self.step(node, group),
            Event::Run { node, life } if self.is_alive(node, life) => {
                let now = self.now();
                let due = self.nodes.get_mut(&node).expect("it's alive").run_at.take_if(|at| *at <= now);
                if due.is_some() { self.run_tasks(node) } else { Ok(()) }
            }
            Event::Poll { node, life } if self.is_alive(node, life) => {
                let next = self.now() + self.random.within(POLL.0..POLL.1);
                self.at(next, Event::Poll { node, life });
                self.run_tasks(node)
            }
            Event::Turn { .. } | Event::Tick { .. } | Event::Images { .. } | Event::Step { .. } => Ok(()),
            Event::Run { .. } | Event::Poll { .. } => Ok(()),
            Event::Clients { poll } => {
                self.run_clients(poll);
                Ok(())
            }
            Event::Fault(number) => self.strike(number),
            Event::Ambush(number) => self.ambush(number),
            Event::Start { node } => {
                if self.nodes[&node].process.is_none() {
                    self.start(node)
                } else {
                    Ok(())
                }
            }
            Event::Resume { node, life } => {
                if self.is_alive(node, life) && self.nodes[&node].paused {
                    self.note(format_args!("node {node} goes on"));
                    self.nodes.get_mut(&node).expect("it was just seen").paused = false;
                    self.touch(node);
                    self.wake(node);
                }
                Ok(())
            }
            Event::Mend(cut) => {
                self.network.mend(cut);
                self.release();
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
            Event::Hurry { node } => {
                let delay = self.plan.setup.turn_delay;
                self.nodes.get_mut(&node).expect("faults hit nodes that are there").turn_delay = delay;
                Ok(())
            }
            Event::Look => self.look_for_the_dead(),
            Event::Quick { node } => {
                self.nodes.get_mut(&node).expect("faults hit nodes that are there").disk_delay = 0;
                Ok(())
            }
        }
    }

    fn is_alive(&self, node: u64, life: u64) -> bool {
        let node = &self.nodes[&node];
        node.life == life && node.process.is_some()
    }

    fn start(&mut self, id: u64) -> Outcome {
        let all: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
        let node = self.nodes.get_mut(&id).expect("there is such a node");
        node.start(&all).map_err(|why| format!("node {id} can't start: {why}"))?;
        let life = node.life;
        if let Some(process) = &node.process {
            let door = Door {
                router: process.router.clone(),
                coordinator: process.coordinator.clone(),
                tasks: process.tasks.handle(),
            };
            lock(&self.shared.doors).insert(id, door);
        }
        self.note(format_args!("node {id} starts"));
        self.at(self.now() + POLL.0, Event::Poll { node: id, life });
        self.touch(id);
        self.wake(id);
        Ok(())
    }

    /// A node dies.
    fn crash(&mut self, id: u64, how: &str) -> Outcome {
        lock(&self.shared.doors).remove(&id);
        let node = self.nodes.get_mut(&id).expect("there is such a node");
        let down = node.down_for;
        let left = node.crash(&mut self.random).map_err(|why| format!("node {id} can't crash: {why}"))?;
        self.note(format_args!("node {id} {how}; {left}"));
        self.at(self.now() + down, Event::Start { node: id });
        if self.plan.deaths {
            self.mourn(id, down);
        }
        for wire in self.wires.between(id, None) {
            let (from, to) = self.wires.link(wire, true).expect("it was just found");
            let other = if from == id { to } else { from };
            let time = if self.network.is_cut(id, other) {
                self.random.within(KEEPALIVE.0..KEEPALIVE.1)
            } else {
                self.random.within(20 * MICROSECOND..2 * MILLISECOND)
            };
            self.at(self.now() + time, Event::Break { wire });
        }
        self.look_after_clients();
        Ok(())
    }

    fn run_tasks(&mut self, id: u64) -> Outcome {
        let node = self.nodes.get_mut(&id).expect("it's alive");
        if node.paused {
            return Ok(());
        }
        let now = node.clock.now();
        let process = node.process.as_mut().expect("it's alive");
        process.tasks.run(now);
        self.touch(id);
        self.after_turn(id)
    }

    fn run_clients(&mut self, poll: bool) {
        let now = self.now();
        if poll {
            let next = now + self.random.within(POLL.0..POLL.1);
            self.at(next, Event::Clients { poll: true });
        }
        self.clients_at.take_if(|at| *at <= now);
        self.clients.run(now);
        let log = std::mem::take(&mut *lock(&self.shared.log));
        for line in log {
            self.note(format_args!("{line}"));
        }
        let committing = std::mem::take(&mut *lock(&self.shared.committing));
        self.fall_silent(committing);
        if self.shared.has_switch.swap(false, Ordering::Relaxed) {
            self.note(format_args!("a switch has begun"));
            self.lie_in_wait();
        }
        self.shared.wants_wide.store(!self.silences.is_empty() && !self.healed, Ordering::Relaxed);
        for id in self.ids() {
            self.look_after(id);
        }
    }

    /// Has the clients' tasks go on soon, if somebody has said something to them.
    fn look_after_clients(&mut self) {
        if self.clients.are_woken() && self.clients_at.is_none() {
            let time = self.now() + self.random.within(10 * MICROSECOND..200 * MICROSECOND);
            self.clients_at = Some(time);
            self.at(time, Event::Clients { poll: false });
        }
    }

    /// Has a node's tasks go on soon, if they have anything to do.
    fn look_after(&mut self, id: u64) {
        let node = &self.nodes[&id];
        if node.process.as_ref().is_some_and(|process| process.tasks.are_woken()) {
            self.wake(id);
        }
    }

    /// Has a node's tasks go on soon.
    fn wake(&mut self, id: u64) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("only nodes have tasks");
        if node.paused || node.process.is_none() || node.run_at.is_some_and(|at| at <= now + node.turn_delay)
        {
            return;
        }
        let time = now + self.random.within(10 * MICROSECOND..node.turn_delay);
        node.run_at = Some(time);
        let life = node.life;
        self.at(time, Event::Run { node: id, life });
    }

    /// Has all of a node's loops get turns soon: there may be something to do.
    fn touch(&mut self, id: u64) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("only nodes have loops");
        let Some(process) = node.process.as_ref().filter(|_| !node.paused) else { return };
        let (life, most) = (node.life, node.turn_delay);
        let groups = process.loops.engines();
        let mut events = Vec::new();
        for (planned, event) in [
            (&mut node.turn_at, Event::Turn { node: id, life }),
            (&mut node.images_at, Event::Images { node: id, life }),
        ] {
            if planned.is_none_or(|at| at > now + most) {
                let time = now + self.random.within(10 * MICROSECOND..most);
                *planned = Some(time);
                events.push((time, event));
            }
        }
        for group in groups {
            if node.step_at.get(&group).is_none_or(|at| *at > now + most) {
                let time = now + self.random.within(10 * MICROSECOND..most);
                node.step_at.insert(group, time);
                events.push((time, Event::Step { node: id, life, group }));
            }
        }
        for (time, event) in events {
            self.at(time, event);
        }
        self.plan_ahead(id);
    }

    /// Has the loops get the turns that they want later.
    fn plan_ahead(&mut self, id: u64) {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("only nodes have loops");
        let Some(process) = &node.process else { return };
        let (life, most) = (node.life, node.turn_delay);
        let tick = process.loops.next_tick().map(|next| node.clock.world_time(next));
        // After a pause ticks are overdue. They wait for their turn as everything does, so that any loop may be first.
        let tick = match tick {
            Some(tick) if tick < now && node.tick_at.is_some_and(|at| at <= now + most) => None,
            Some(tick) if tick < now => Some(now + self.random.within(10 * MICROSECOND..most)),
            tick => tick,
        };
        let images = process.loops.next_images().map(|next| node.clock.world_time(next));
        let images = images.map(|at| at.max(now + 50 * MICROSECOND));
        let tick = tick.filter(|tick| node.tick_at.is_none_or(|at| at > *tick));
        let images = images.filter(|images| node.images_at.is_none_or(|at| at > *images));
        node.tick_at = tick.or(node.tick_at);
        node.images_at = images.or(node.images_at);
        if let Some(tick) = tick {
            self.at(tick, Event::Tick { node: id, life });
        }
        if let Some(images) = images {
            self.at(images, Event::Images { node: id, life });
        }
    }

    fn turn(&mut self, id: u64, ticks: bool) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it's alive");
        let planned = if ticks { &mut node.tick_at } else { &mut node.turn_at };
        if planned.take_if(|at| *at <= now).is_none() || node.paused {
            return Ok(());
        }
        if node.busy_until > now {
            // It waits for its log.
            let (again, life) = (node.busy_until, node.life);
            *planned = Some(again);
            let event = if ticks { Event::Tick { node: id, life } } else { Event::Turn { node: id, life } };
            self.at(again, event);
            return Ok(());
        }
        let syncs = node.log.syncs();
        let process = node.process.as_ref().expect("it's alive");
        let entered = process.tasks.enter();
        let had_mail = process.loops.turn_consensus();
        drop(entered);
        if node.disk_delay > 0 && node.log.syncs() > syncs {
            node.busy_until = now + self.random.within(0..node.disk_delay);
        }
        if had_mail || ticks {
            self.touch(id);
        }
        self.after_turn(id)
    }

    fn step(&mut self, id: u64, group: GroupId) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it's alive");
        if node.step_at.get(&group).is_none_or(|at| *at > now) {
            return Ok(());
        }
        node.step_at.remove(&group);
        if node.paused {
            return Ok(());
        }
        let process = node.process.as_ref().expect("it's alive");
        let entered = process.tasks.enter();
        let worked = process.loops.step_engine(group);
        drop(entered);
        // What lies there until the lag is over is applied then, though nothing else comes.
        if let Some(next) = process.loops.next_step(group) {
            let (next, life) = (node.clock.world_time(next).max(now + 50 * MICROSECOND), node.life);
            node.step_at.insert(group, next);
            self.at(next, Event::Step { node: id, life, group });
        }
        if worked {
            self.touch(id);
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
        let entered = process.tasks.enter();
        let worked = process.loops.turn_images();
        drop(entered);
        if worked {
            self.touch(id);
        }
        self.after_turn(id)
    }

    /// Takes what a node has sent, and sees what has become of it.
    fn after_turn(&mut self, id: u64) -> Outcome {
        let now = self.now();
        let node = self.nodes.get_mut(&id).expect("it had a turn");
        let has_died = node.has_died();
        // What the log was synced for goes out once that is done.
        let wait = node.busy_until.saturating_sub(now);
        let process = node.process.as_mut().expect("it had a turn");
        let (raft, sent) = (process.sent(), process.port.take());
        let life = node.life;
        let mut left = node.dies_after;
        let mut falls_silent = || {
            let dies = left == Some(0);
            left = left.map(|left| left.saturating_sub(1));
            dies
        };
        let mut dies = false;
        for (to, message) in raft {
            dies = dies || falls_silent();
            if dies {
                break;
            }
            let mut what = [0; 24];
            what[..8].copy_from_slice(&id.to_le_bytes());
            what[8..16].copy_from_slice(&to.to_le_bytes());
            what[16..].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&message.body).to_le_bytes());
            self.trace.count(now, &what);
            self.count("Raft's packets");
            for delay in self.network.carry(id, to) {
                self.at(now + wait + delay, Event::Deliver { from: id, to, message: message.clone() });
            }
        }
        for sent in sent {
            match sent {
                Sent::Dial(wire, to, back) => self.wires.dial(wire, (id, life), to, back),
                Sent::Item { wire, up, item } => {
                    if let Item::Frame(frame) = &item {
                        dies = dies || falls_silent();
                        self.count("frames");
                        let mut what = [0; 17];
                        what[..8].copy_from_slice(&wire.to_le_bytes());
                        what[8..16].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(frame).to_le_bytes());
                        what[16] = up.into();
                        self.trace.count(now, &what);
                    }
                    if !dies {
                        self.carry(wire, up, item);
                    }
                }
            }
        }
        let node = self.nodes.get_mut(&id).expect("it had a turn");
        node.dies_after = left;
        if has_died {
            return self.crash(id, "dies in a write");
        }
        if dies {
            self.count("crashes after a message");
            return self.crash(id, "has sent something and dies");
        }
        self.look_after(id);
        self.look_after_clients();
        Ok(())
    }

    /// Something goes into a stream.
    fn carry(&mut self, wire: WireId, up: bool, item: Item) {
        let Some((from, to)) = self.wires.link(wire, up) else { return };
        if self.wires.holds(wire, up) || self.network.is_cut(from, to) {
            self.wires.hold(wire, up, item);
            self.expect_keepalive(wire);
            return;
        }
        let time = self.now() + self.network.carry_surely(from, to);
        let time = self.wires.arrival(wire, up, time);
        self.at(time, Event::Arrive { wire, up, item });
    }

    fn expect_keepalive(&mut self, wire: WireId) {
        let time = self.now() + self.random.within(KEEPALIVE.0..KEEPALIVE.1);
        self.at(time, Event::Keepalive { wire });
    }

    /// What streams hold goes on its way where there is one again.
    fn release(&mut self) {
        for wire in self.wires.all() {
            for up in [true, false] {
                for item in self.wires.release(wire, up) {
                    self.carry(wire, up, item);
                }
            }
        }
    }

    fn arrive(&mut self, wire: WireId, up: bool, item: Item) -> Outcome {
        let Some((_, to)) = self.wires.link(wire, up) else { return Ok(()) };
        match item {
            Item::Open => match &self.nodes[&to].process {
                Some(process) => {
                    let life = self.nodes[&to].life;
                    let entered = process.tasks.enter();
                    let receiver = process.port.accept(wire, process.offer.clone());
                    drop(entered);
                    self.wires.accepted(wire, (to, life), receiver);
                }
                None => {
                    // Nobody listens there.
                    let time = self.now() + self.random.within(20 * MICROSECOND..MILLISECOND);
                    self.at(time, Event::Break { wire });
                }
            },
            Item::Frame(frame) => {
                self.wires.arrive(wire, up, frame);
            }
            Item::End => self.wires.end(wire, up),
        }
        self.look_after(to);
        Ok(())
    }

    fn break_wire(&mut self, wire: WireId) {
        let Some((one, other)) = self.wires.link(wire, true) else { return };
        self.wires.cut(wire);
        self.look_after(one);
        self.look_after(other);
    }
}
