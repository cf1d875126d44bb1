//! The shards' replicas, as this router knows them, for reads that any of them may answer.
//!
//! In come such reads and their answers; out comes whom to ask. Nobody is polled: an answer carries the replica's position and
//! how long it has waited, and how long it took can be measured. A replica that fails is left alone for a while
//! ([`breaker`]), and one of the rest is chosen ([`choice`]). What is known ends with the topology that places the replica.
//! Whether a read may go to any replica is the executor's to say.

mod breaker;
mod choice;
mod metrics;

pub use metrics::{By, Reads, Why};

use crate::cluster::Cluster;
use arc_swap::ArcSwap;
use breaker::{Breaker, Failure, Pass};
use choice::{Candidate, Known, Nearness};
use parking_lot::Mutex;
use proto::machine::{self, Machine};
use proto::services::{FragmentResponse, ShardService};
use proto::topology::{Node, Topology};
use proto::{Epoch, GroupId, LogIndex, NodeId, Retry, ShardId, SqlState, WireError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was learned of waiting counts half after this time.
const WAITED_HALF_LIFE: Duration = Duration::from_millis(250);
/// What was learned of answering fades to 1/e in this time.
const LATENCY_LIFE: Duration = Duration::from_secs(1);
/// A lookup's answer is waited for so long at least.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);
/// And so many times as long as answers have taken.
const PATIENCE: u32 = 8;

/// What a replica's answer comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the answer.
    Final,
    /// The replica is behind: the leader isn't.
    Behind,
    /// The replica can't: perhaps the leader can.
    Failed,
}

/// No word from a replica in its time.
pub fn silent() -> WireError {
    WireError::new(SqlState::CONNECTION_FAILURE, "a replica did not answer in time").with_retry(Retry::Later)
}

/// All replicas that this router may ask.
pub struct Replicas {
    cluster: Arc<Cluster>,
    machine: Machine,
    zone: String,
    table: ArcSwap<Table>,
    /// Held while the table is made anew.
    making: Mutex<()>,
    /// What was read where.
    pub reads: Reads,
}

/// The replicas of one topology.
#[derive(Default)]
struct Table {
    epoch: Epoch,
    records: BTreeMap<(GroupId, NodeId), Arc<Record>>,
}

/// One replica.
struct Record {
    node: Node,
    nearness: Nearness,
    figures: Mutex<Figures>,
}

impl Record {
    /// One more asks it, unless another is trying it.
    fn enter(&self, now: Instant) -> Option<Pass> {
        let mut figures = self.figures.lock();
        let pass = figures.breaker.enter(now)?;
        figures.outstanding += 1;
        Some(pass)
    }
}

/// What was seen of a replica.
#[derive(Default)]
struct Figures {
    applied: LogIndex,
    waited: Fading,
    latency: Fading,
    outstanding: u32,
    answered: u64,
    breaker: Breaker,
}

/// A duration that fades unless it is seen again.
#[derive(Clone, Copy, Default)]
struct Fading {
    seconds: f64,
    since: Option<Instant>,
}

impl Fading {
    /// How much of what was is left: 2^-1 after the half-life.
    fn left(&self, half_life: f64, now: Instant) -> f64 {
        let since =
            self.since.map_or(f64::INFINITY, |since| now.saturating_duration_since(since).as_secs_f64());
        (-since / half_life).exp2()
    }

    fn now(&self, half_life: f64, now: Instant) -> Duration {
        Duration::from_secs_f64(self.seconds * self.left(half_life, now))
    }

    /// Takes a sample into the average.
    fn take(&mut self, sample: Duration, half_life: f64, now: Instant) {
        let left = self.left(half_life, now);
        self.seconds = self.seconds * left + sample.as_secs_f64() * (1.0 - left);
        self.since = Some(now);
    }

    /// Takes a sample into the average, and believes one that is worse at once.
    fn take_peak(&mut self, sample: Duration, half_life: f64, now: Instant) {
        if sample >= self.now(half_life, now) {
            *self = Fading { seconds: sample.as_secs_f64(), since: Some(now) };
        } else {
            self.take(sample, half_life, now);
        }
    }
}

fn waited_half_life() -> f64 {
    WAITED_HALF_LIFE.as_secs_f64()
}

fn latency_half_life() -> f64 {
    LATENCY_LIFE.as_secs_f64() * std::f64::consts::LN_2
}

impl Figures {
    fn known(&self, now: Instant) -> Known {
        Known {
            applied: self.applied,
            waited: self.waited.now(waited_half_life(), now),
            latency: self.latency.now(latency_half_life(), now),
            outstanding: self.outstanding,
        }
    }
}

/// What this router has seen of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many reads it has answered that any replica could have.
    pub reads: u64,
    /// How long it takes to answer a lookup; `None` if it hasn't for long.
    pub latency: Option<Duration>,
    /// Whether it is left alone.
    pub avoided: bool,
}

impl Replicas {
    /// Of nobody anything is known.
    pub fn new(cluster: Arc<Cluster>, machine: Machine, zone: String) -> Self {
        let (table, making) = (ArcSwap::default(), Mutex::default());
        Self { cluster, machine, zone, table, making, reads: Reads::new() }
    }

    /// Whom to ask for what shows `floor`. Nobody if those that could be asked have failed: it's for the leader then.
    pub fn choose(&self, shard: ShardId, floor: LogIndex) -> Option<Chosen> {
        self.choose_among(shard, floor, None)
    }

    /// Whom to ask who isn't among those that were asked: the leader only if nobody else is left. Nobody if all were, or
    /// have failed.
    pub fn choose_other(&self, shard: ShardId, floor: LogIndex, tried: &[NodeId]) -> Option<Chosen> {
        self.choose_among(shard, floor, Some(tried))
    }

    fn choose_among(&self, shard: ShardId, floor: LogIndex, tried: Option<&[NodeId]>) -> Option<Chosen> {
        let state = self.cluster.load();
        let shard = state.topology.shards.get(&shard)?;
        let leader = self.cluster.leader(&state, shard.group);
        let table = self.table(&state.topology);
        let record = |node: &NodeId| table.records.get(&(shard.group, *node));
        let now = machine::now();
        let candidate = |(place, node): (usize, &NodeId)| {
            let record = record(node).filter(|_| tried.is_none_or(|tried| !tried.contains(node)))?;
            let figures = record.figures.lock();
            let known = figures.breaker.admits(now).then(|| figures.known(now))?;
            Some(Candidate { place, nearness: record.nearness, leads: leader == Some(*node), known })
        };
        let mut left: Vec<Candidate> = shard.replicas.iter().enumerate().filter_map(candidate).collect();
        loop {
            let followers: Vec<_> = left.iter().filter(|candidate| !candidate.leads).copied().collect();
            let (among, replicas) = match tried {
                None => (&left, shard.replicas.len()),
                Some(_) if followers.is_empty() => (&left, left.len()),
                Some(_) => (&followers, followers.len()),
            };
            let place = choice::choose(among, replicas, floor, || self.machine.random())?;
            let node = shard.replicas[place];
            let record = Arc::clone(record(&node)?);
            if let Some(service) = self.cluster.peers().shard_service(node)
                && let Some(pass) = record.enter(now)
            {
                let leads = leader == Some(node);
                return Some(Chosen { service, node, leads, record, began: now, pass, is_done: false });
            }
            // Another tries it, or there is no way to it.
            left.retain(|candidate| candidate.place != place);
        }
    }

    /// What was seen of a replica; `None` for one that nobody asks.
    pub fn seen(&self, group: GroupId, node: NodeId) -> Option<Seen> {
        let table = self.table(&self.cluster.load().topology);
        let figures = table.records.get(&(group, node))?.figures.lock();
        let latency = figures.latency.now(latency_half_life(), machine::now());
        let latency = (latency >= Duration::from_micros(1)).then_some(latency);
        Some(Seen { reads: figures.answered, latency, avoided: figures.breaker.is_open() })
    }

    fn table(&self, topology: &Topology) -> Arc<Table> {
        let known = self.table.load();
        if known.epoch >= topology.epoch {
            return Arc::clone(&known);
        }
        drop(known);
        let _turn = self.making.lock();
        let known = self.table.load_full();
        if known.epoch < topology.epoch {
            self.table.store(Arc::new(self.make(topology, &known)));
        }
        self.table.load_full()
    }

    /// The replicas of a topology. What is known of one stays known as long as its node is the same.
    fn make(&self, topology: &Topology, known: &Table) -> Table {
        let mut records = BTreeMap::new();
        for shard in topology.shards.values() {
            for node in shard.replicas.iter().filter_map(|node| topology.nodes.get(node)) {
                let key = (shard.group, node.id);
                let record = match known.records.get(&key) {
                    Some(record) if record.node == *node => Arc::clone(record),
                    _ => Arc::new(Record {
                        node: node.clone(),
                        nearness: self.nearness(node),
                        figures: Mutex::default(),
                    }),
                };
                records.insert(key, record);
            }
        }
        Table { epoch: topology.epoch, records }
    }

    fn nearness(&self, node: &Node) -> Nearness {
        match node {
            _ if self.cluster.peers().is_here(node.id) => Nearness::Here,
            _ if !node.zone.is_empty() && node.zone == self.zone => Nearness::Zone,
            _ => Nearness::Elsewhere,
        }
    }
}

/// A replica that is being asked. Dropped without an answer, it has been given up.
pub struct Chosen {
    /// Its node's service.
    pub service: Arc<dyn ShardService>,
    /// Its node.
    pub node: NodeId,
    /// Whether it leads its group, as far as is known.
    pub leads: bool,
    record: Arc<Record>,
    began: Instant,
    pass: Pass,
    is_done: bool,
}

impl Chosen {
    /// How long a lookup's answer is waited for, if the replica may wait so long for its log.
    pub fn patience(&self, wait: Duration) -> Duration {
        let latency = self.record.figures.lock().latency.now(latency_half_life(), machine::now());
        wait + (latency * PATIENCE).max(LEAST_PATIENCE)
    }

    /// Takes in what the replica said, which had so long to wait: how long a lookup takes is worth knowing.
    pub fn answered(
        mut self,
        answer: &Result<FragmentResponse, WireError>,
        wait: Duration,
        lookup: bool,
    ) -> Verdict {
        self.is_done = true;
        let now = machine::now();
        let took = now.saturating_duration_since(self.began);
        let mut figures = self.record.figures.lock();
        figures.outstanding -= 1;
        let verdict = match answer {
            Ok(response) => {
                figures.applied = figures.applied.max(response.position);
                figures.waited.take(response.waited, waited_half_life(), now);
                figures.answered += 1;
                if lookup {
                    let latency = took.saturating_sub(response.waited);
                    figures.latency.take_peak(latency, latency_half_life(), now);
                }
                Verdict::Final
            }
            Err(error) => match (&error.retry, error.sqlstate) {
                (Retry::Behind(position), _) => {
                    figures.applied = figures.applied.max(*position);
                    figures.waited.take_peak(wait, waited_half_life(), now);
                    Verdict::Behind
                }
                // It has stopped, or isn't there: everyone else's answer names the leader.
                (Retry::NotLeader(_), _) | (Retry::Later | Retry::Unknown, SqlState::CONNECTION_FAILURE) => {
                    figures.breaker.failed(Failure::Lost, self.pass, now);
                    return Verdict::Failed;
                }
                (Retry::Later | Retry::Unknown | Retry::Moved, _)
                | (_, SqlState::IO_ERROR | SqlState::DISK_FULL | SqlState::DATA_CORRUPTED) => {
                    figures.breaker.failed(Failure::Refused, self.pass, now);
                    return Verdict::Failed;
                }
                // It had no room for a long read's past, and has it again.
                (_, SqlState::SNAPSHOT_TOO_OLD) => Verdict::Failed,
                _ => Verdict::Final,
            },
        };
        figures.breaker.succeeded();
        verdict
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.is_done {
            let mut figures = self.record.figures.lock();
            figures.outstanding -= 1;
            figures.breaker.gave_up(self.pass, machine::now());
        }
    }
}

#[cfg(test)]
mod tests;
