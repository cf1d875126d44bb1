//! What an admin could do for the cluster.
//!
//! Pure: in come the topology, who leads, how big shards are, how busy they have been and how they have grown, and which nodes are
//! silent or full; out goes advice, the most urgent first, each with its reason and what does it. Nothing is done here, and nothing is
//! advised about what is being changed already. It must never know how a command is typed.

use crate::repair::Scene;
use crate::service::Core;
use crate::store::Store;
use crate::{course, reshard};
use proto::machine;
use proto::services::{
    Advice, Consistency, GroupLoad, Growth, Remedy, ReshardPhase, ServiceResult, ShardTally,
};
use proto::topology::{AutoSplit, Keyspace, Leaders, Node, Shard, Sharding, Topology};
use proto::{GroupId, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A shard that is bigger is too big.
const BIG: u64 = 10 << 30;
/// A shard that is smaller isn't too big for being bigger than others.
const SMALL: u64 = 1 << 30;
/// Who writes less than this in a second isn't busy.
const BUSY: f64 = 100.0;
/// Of fewer rows past the greatest key nothing is concluded.
const MANY: u64 = 1_000;
/// Into how many shards one is split at most.
const MOST: u64 = 16;

/// How things are.
pub(crate) struct View<'a> {
    pub topology: &'a Topology,
    pub leaders: &'a Leaders,
    /// Of shards' groups, in bytes.
    pub sizes: BTreeMap<GroupId, u64>,
    /// Of the last ten minutes.
    pub loads: BTreeMap<GroupId, GroupLoad>,
    /// How the rows of a range keyspace's shards have grown, all tables together.
    pub growth: BTreeMap<GroupId, Growth>,
    /// Nodes that haven't been heard of, and for how long.
    pub silent: BTreeMap<NodeId, Duration>,
    /// Nodes whose disks are full.
    pub full: BTreeSet<NodeId>,
    /// Those of the silent and the full whose replicas have somewhere to go.
    pub drainable: BTreeSet<NodeId>,
    /// Groups that are being changed.
    pub changing: BTreeSet<GroupId>,
}

/// How urgent something is: in the order of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Nodes,
    Size,
    Writes,
    Keys,
    Uneven,
    Merge,
}

/// Whether new rows of a range keyspace come at its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    Grow,
    Spread,
    Unknown,
}

/// Everything that is to be said.
pub(crate) fn advise(view: &View<'_>) -> Vec<Advice> {
    let mut advising = Advising { view, advice: Vec::new() };
    advising.nodes();
    for keyspace in view.topology.keyspaces.values() {
        let shards = keyspace.shards.iter().filter_map(|id| view.topology.shards.get(id));
        let shards: Vec<&Shard> = shards.collect();
        // Where new rows come, if it's no matter of hashes.
        let end = shards.last().filter(|_| keyspace.sharding == Sharding::Range);
        let end = end.map(|last| (last.id, advising.keys(&shards)));
        advising.sizes(keyspace, &shards, end);
        advising.writes(keyspace, &shards, end);
        advising.growing(keyspace, &shards, end);
        advising.small(&shards, end);
    }
    advising.uneven();
    let mut advice = advising.advice;
    advice.sort_by_key(|(urgency, _)| *urgency);
    advice.into_iter().map(|(_, advice)| advice).collect()
}

struct Advising<'a> {
    view: &'a View<'a>,
    advice: Vec<(Urgency, Advice)>,
}

impl Advising<'_> {
    fn say(&mut self, urgency: Urgency, why: String, remedy: Option<Remedy>) {
        self.advice.push((urgency, Advice { why, remedy }));
    }

    fn name(&self, shard: ShardId) -> String {
        self.view.topology.shard_name(shard)
    }

    fn size(&self, shard: &Shard) -> u64 {
        self.view.sizes.get(&shard.group).copied().unwrap_or(0)
    }

    fn rate(&self, shard: &Shard) -> f64 {
        self.view.loads.get(&shard.group).map_or(0.0, |load| load.writes_per_second)
    }

    fn is_free(&self, shard: &Shard) -> bool {
        shard.formed && !self.view.changing.contains(&shard.group)
    }

    /// Nodes that are silent or full, and hold something.
    fn nodes(&mut self) {
        let view = self.view;
        for node in view.topology.nodes.values().filter(|node| !node.draining) {
            let shards = view.topology.shards.values();
            let held = shards.filter(|shard| shard.replicas.contains(&node.id)).count()
                + usize::from(view.topology.coordinators.contains(&node.id));
            if held == 0 {
                continue;
            }
            let (id, replicas) = (node.id, if held == 1 { "replica" } else { "replicas" });
            let what = match view.silent.get(&id) {
                Some(since) => {
                    let since = since.as_secs();
                    format!("node {id} has been silent for {since} s, and holds {held} {replicas}: start it")
                }
                None if view.full.contains(&id) => {
                    format!("the disk of node {id} is full, and it holds {held} {replicas}: make room there")
                }
                None => continue,
            };
            if view.drainable.contains(&id) {
                let why = format!("{what}, or have others hold what it does");
                self.say(Urgency::Nodes, why, Some(Remedy::Drain(id)));
            } else {
                let why =
                    format!("{what}, or add a node and drain this one: there is none yet for all of it");
                self.say(Urgency::Nodes, why, None);
            }
        }
    }

    /// Where new rows of a range keyspace come, by what its last shard was found to have.
    fn keys(&self, shards: &[&Shard]) -> Keys {
        let growth = shards.last().and_then(|last| self.view.growth.get(&last.group));
        match growth {
            Some(Growth { added, past, .. }) if *past >= MANY && past * 10 >= added * 9 => Keys::Grow,
            Some(_) => Keys::Spread,
            None => Keys::Unknown,
        }
    }

    /// Shards that are too big.
    fn sizes(&mut self, keyspace: &Keyspace, shards: &[&Shard], end: Option<(ShardId, Keys)>) {
        if keyspace.sharding == Sharding::Single {
            return;
        }
        let mut sizes: Vec<_> = shards.iter().map(|shard| self.size(shard)).collect();
        sizes.sort_unstable();
        let median = sizes.get(sizes.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        for shard in shards {
            let size = self.size(shard);
            if !self.is_free(shard) {
                continue;
            }
            let is_bigger = size > SMALL && size > median.saturating_mul(3);
            if size <= BIG && !is_bigger {
                continue;
            }
            let splits = |auto: AutoSplit| size > auto.size && shards.len() < auto.shards as usize;
            if keyspace.auto.is_some_and(splits) {
                // It is split without anybody's doing.
                continue;
            }
            let shard_name = self.name(shard.id);
            let mut why = format!("{shard_name} has {}", bytes(size));
            if is_bigger {
                let most = bytes(median);
                why.push_str(&format!(", and half of its keyspace's shards have {most} at most"));
            }
            if end == Some((shard.id, Keys::Grow)) {
                why.push_str(". Its keys grow, so the new last one will go on growing");
            }
            let fits = if is_bigger { BIG.min(median.max(SMALL)) } else { BIG };
            let parts = u32::try_from(size.div_ceil(fits).clamp(2, MOST)).ok();
            let parts = parts.filter(|_| keyspace.sharding == Sharding::Hash);
            self.say(Urgency::Size, why, Some(Remedy::Split { shard: shard_name, parts }));
        }
    }

    /// Shards that keep their leaders' nodes busy.
    fn writes(&mut self, keyspace: &Keyspace, shards: &[&Shard], end: Option<(ShardId, Keys)>) {
        let mut nodes: BTreeMap<NodeId, f64> = self.view.topology.nodes.keys().map(|id| (*id, 0.0)).collect();
        let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
        for shard in self.view.topology.shards.values() {
            if let Some(leader) = self.view.leaders.get(shard.group) {
                *nodes.entry(leader).or_default() += self.rate(shard);
                *leads.entry(leader).or_default() += 1;
            }
        }
        if nodes.len() < 2 {
            // Whether a node is busy is known by the others alone, and there is nobody to relieve it.
            return;
        }
        for shard in shards {
            let leader = self.view.leaders.get(shard.group).filter(|_| self.is_free(shard));
            let Some(leader) = leader else { continue };
            let (rate, all) = (self.rate(shard), nodes[&leader]);
            let others = nodes.iter().filter(|(node, _)| **node != leader).map(|(_, rate)| *rate);
            let most = others.fold(0.0, f64::max);
            if all < BUSY || all <= 2.0 * most || rate <= all / 2.0 {
                continue;
            }
            let name = self.name(shard.id);
            let why = format!(
                "{name} has {rate:.0} of the {all:.0} writes a second of node {leader}, which leads it; other nodes have {most:.0} at most"
            );
            let may_lead = |node: &&NodeId| **node != leader && !self.is_out(**node);
            let followers = shard.replicas.iter().filter(may_lead);
            let quietest = followers.min_by(|a, b| nodes[a].total_cmp(&nodes[b]).then(a.cmp(b)));
            let several = leads.get(&leader).copied().unwrap_or(0) > 1;
            if let Some(to) = quietest.filter(|to| several && nodes[to] + rate < all) {
                self.say(Urgency::Writes, why, Some(Remedy::Lead { shard: name, node: *to }));
                continue;
            }
            let parts = match keyspace.sharding {
                Sharding::Hash => Some(2),
                Sharding::Range => None,
                Sharding::Single => continue,
            };
            match end.filter(|(last, _)| *last == shard.id) {
                // What is to be said of it is said there.
                Some((_, Keys::Grow)) => {}
                Some((_, Keys::Unknown)) => {
                    let unknown = "Whether its keys grow, so that a split won't help, isn't known yet: ask again in a minute";
                    self.say(Urgency::Writes, format!("{why}. {unknown}"), None);
                }
                Some((_, Keys::Spread)) | None => {
                    self.say(Urgency::Writes, why, Some(Remedy::Split { shard: name, parts }));
                }
            }
        }
    }

    /// The last shard of a range keyspace, if nearly all writes are there and its keys grow.
    fn growing(&mut self, keyspace: &Keyspace, shards: &[&Shard], end: Option<(ShardId, Keys)>) {
        let ([.., last], Some((_, Keys::Grow))) = (shards, end) else { return };
        let (all, rate) = (shards.iter().map(|shard| self.rate(shard)).sum::<f64>(), self.rate(last));
        if shards.len() > 1 && (all <= 0.0 || rate < 0.9 * all) {
            return;
        }
        let Some(Growth { over, past, .. }) = self.view.growth.get(&last.group) else { return };
        let share = if all > 0.0 { 100.0 * rate / all } else { 100.0 };
        let why = format!(
            "{}, the last shard of range keyspace {}, gets {share:.0} % of its writes, and keys grow: {past} rows came past the \
             greatest within {} s. Splitting it won't help, for the new last shard would get them all. What helps is to \
             place rows by the key's hash (PARTITION BY HASH), or a key that spreads",
            self.name(last.id),
            keyspace.name,
            over.as_secs().max(1),
        );
        self.say(Urgency::Keys, why, None);
    }

    /// Neighbours that have little together.
    fn small(&mut self, shards: &[&Shard], end: Option<(ShardId, Keys)>) {
        let mut sizes: Vec<_> = shards.iter().map(|shard| self.size(shard)).collect();
        sizes.sort_unstable();
        let median = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
        let rates: f64 = shards.iter().map(|shard| self.rate(shard)).sum();
        let mean = rates / shards.len().max(1) as f64;
        // A last shard whose keys may grow is small for being young.
        let is_young =
            |shard: &Shard| end.is_some_and(|(last, keys)| last == shard.id && keys != Keys::Spread);
        let mut place = 0;
        while let Some([one, other]) = shards.get(place..place + 2) {
            let (size, rate) = (self.size(one) + self.size(other), self.rate(one) + self.rate(other));
            let is_free = self.is_free(one) && self.is_free(other) && !is_young(other);
            if median > SMALL && size < median / 4 && rate <= mean && is_free {
                let shards = vec![self.name(one.id), self.name(other.id)];
                let why = format!(
                    "{} have {} together, and half of their keyspace's shards have {} or more",
                    shards.join(" and "),
                    bytes(size),
                    bytes(median)
                );
                self.say(Urgency::Merge, why, Some(Remedy::Merge { shards }));
                place += 1;
            }
            place += 1;
        }
    }

    /// Whether a node should get nothing.
    fn is_out(&self, node: NodeId) -> bool {
        let draining = self.view.topology.nodes.get(&node).is_none_or(|node| node.draining);
        draining || self.view.silent.contains_key(&node) || self.view.full.contains(&node)
    }

    /// Nodes with more replicas or leaders than others.
    fn uneven(&mut self) {
        let topology = self.view.topology;
        let may_hold = |node: &&Node| node.roles.shardnode && !self.is_out(node.id);
        let nodes: Vec<NodeId> = topology.nodes.values().filter(may_hold).map(|node| node.id).collect();
        let shards: Vec<&Shard> =
            topology.shards.values().filter(|shard| topology.serves(shard.id)).collect();
        let leads = |shard: &Shard, node: NodeId| self.view.leaders.get(shard.group) == Some(node);
        let holds = |shard: &Shard, node: NodeId| shard.replicas.contains(&node);
        let held: BTreeMap<NodeId, usize> =
            nodes.iter().map(|node| (*node, shards.iter().filter(|s| holds(s, *node)).count())).collect();
        let led: BTreeMap<NodeId, usize> =
            nodes.iter().map(|node| (*node, shards.iter().filter(|s| leads(s, *node)).count())).collect();
        let mut said = Vec::new();
        for (node, count, mean) in above(&held) {
            let found = shards.iter().filter(|s| self.is_free(s) && holds(s, node)).find_map(|shard| {
                let others = held.iter().filter(|(to, has)| !holds(shard, **to) && *has + 1 < count);
                let to = others.min_by_key(|(to, has)| (*has, *to)).map(|(to, _)| *to)?;
                Some(Remedy::Move { shard: self.name(shard.id), from: node, to })
            });
            said.extend(found.map(|remedy| (format!("node {node} has {count} replicas"), mean, remedy)));
        }
        for (node, count, mean) in above(&led) {
            let found = shards.iter().filter(|s| self.is_free(s) && leads(s, node)).find_map(|shard| {
                let others = led.iter().filter(|(to, has)| holds(shard, **to) && *has + 1 < count);
                let to = others.min_by_key(|(to, has)| (*has, *to)).map(|(to, _)| *to)?;
                Some(Remedy::Lead { shard: self.name(shard.id), node: to })
            });
            said.extend(found.map(|remedy| (format!("node {node} leads {count} shards"), mean, remedy)));
        }
        for (what, mean, remedy) in said {
            self.say(Urgency::Uneven, format!("{what}, and the mean is {mean:.1}"), Some(remedy));
        }
    }
}

/// Those who have a third more than the mean, and one more at least; and the mean.
fn above(counts: &BTreeMap<NodeId, usize>) -> impl Iterator<Item = (NodeId, usize, f64)> {
    let mean = counts.values().sum::<usize>() as f64 / counts.len().max(1) as f64;
    let least = (mean * 4.0 / 3.0).max(mean + 1.0);
    let above = counts.iter().filter(move |(_, count)| **count as f64 >= least);
    above.map(move |(node, count)| (*node, *count, mean))
}

/// A size, for people.
fn bytes(size: u64) -> String {
    match size {
        0..1_073_741_824 => format!("{} MiB", size >> 20),
        _ => format!("{:.1} GiB", size as f64 / (1u64 << 30) as f64),
    }
}

impl Core {
    /// What is to be said now.
    pub(crate) async fn advise(&self) -> ServiceResult<Vec<Advice>> {
        self.check_leader()?;
        let now = machine::now();
        let deadline = now + self.config.write_timeout;
        let (changing, topology) = {
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            let store = Store(snapshot.connection());
            let topology = store.topology()?;
            (changing(store, &topology)?, topology)
        };
        let leaders = Arc::clone(&self.state.subscribe().borrow().leaders);
        let known = self.known(now);
        let scene = Scene { topology: &topology, vitals: &known.vitals, config: &known.config, now };
        let reports = known.vitals.statuses();
        let silence = |node: &NodeId| (*node, known.vitals.silence(*node, now));
        let is_silent = |(_, since): &(NodeId, Duration)| *since >= self.config.silent_after;
        let silent: BTreeMap<_, _> = topology.nodes.keys().map(silence).filter(is_silent).collect();
        let full: BTreeSet<_> =
            reports.iter().filter(|report| report.has_full_disk()).map(|report| report.node).collect();
        let out = silent.keys().chain(&full).copied();
        let drainable = out.filter(|node| course::can_drain(*node, &scene, &leaders)).collect();
        let loads = self.state.loads_of_late().into_iter();
        let tallies = self.tallies.lock().all(&topology, now);
        Ok(advise(&View {
            topology: &topology,
            leaders: &leaders,
            sizes: known.vitals.sizes(),
            loads: loads.map(|load| (load.group, load)).collect(),
            growth: growth(&topology, &tallies),
            silent,
            full,
            drainable,
            changing,
        }))
    }
}

/// The groups that are being changed.
fn changing(store: Store<'_>, topology: &Topology) -> ServiceResult<BTreeSet<GroupId>> {
    let reshards: Vec<reshard::Record> = store.reshards()?;
    let going_on = reshards.iter().filter(|record| record.phase != ReshardPhase::Ended);
    let mut changing: BTreeSet<_> = going_on.flat_map(reshard::Record::all_groups).collect();
    changing.extend(store.replica_jobs()?.iter().map(|job| job.group()));
    changing.extend(store.courses()?.iter().flat_map(|course| course.groups(topology)));
    Ok(changing)
}

/// How shards have grown, all of their tables of which that is known together.
fn growth(topology: &Topology, tallies: &[ShardTally]) -> BTreeMap<GroupId, Growth> {
    let of_shard = |tally: &ShardTally| {
        let group = topology.shards.get(&tally.shard)?.group;
        let tables = tally.counted.tables.iter().filter_map(|table| table.growth);
        let together = |a: Growth, b: Growth| Growth {
            over: a.over.max(b.over),
            added: a.added + b.added,
            past: a.past + b.past,
        };
        Some((group, tables.reduce(together)?))
    };
    tallies.iter().filter_map(of_shard).collect()
}

#[cfg(test)]
mod tests;
