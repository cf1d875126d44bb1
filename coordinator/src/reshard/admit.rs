//! Taking a wish for a reshard in: can it be done, which shards become which, who builds and who holds them.
//!
//! In come a wish, the topology, the reshards that haven't ended, and what is known of the nodes; out comes a plan, or why there
//! is none. Everything that can be refused by what the coordinator knows is refused here, before anything begins. Whether the
//! nodes have the room is asked of them, not known here.

use super::CATCH_UP;
use super::record::{Options, Part, Record};
use super::step::Ledger;
use crate::repair::{Scene, may_hold};
use proto::services::{GATE, ReshardCourse, ReshardOptions, ReshardPhase, ReshardPlan, ReshardWish, SplitAt};
use proto::topology::{Keyspace, Leaders, Shard, Sharding, Topology};
use proto::{
    GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, ReshardId, ShardId, SqlState, WireError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Into how many shards one is split at most, and how many become one.
const MOST: usize = 16;
/// A hash keyspace's ids have so many bytes.
const HASH_BYTES: usize = 8;
/// Nodes report every two seconds: who is silent for so long may be dead.
const LATE: Duration = Duration::from_secs(3);

type Result<T> = std::result::Result<T, WireError>;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    keyspace: KeyspaceNumber,
    what: String,
    old: Vec<ShardId>,
    new: Vec<New>,
    builder: NodeId,
}

/// A shard that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct New {
    name: String,
    range: KeyRange,
    incarnation: Incarnation,
    replicas: Vec<NodeId>,
}

/// How things are when a wish comes.
pub(crate) struct Place<'a> {
    pub(crate) scene: Scene<'a>,
    pub(crate) leaders: &'a Leaders,
    pub(crate) reshards: &'a [Record],
}

impl Place<'_> {
    /// What a wish comes to.
    pub(crate) fn plan(&self, wish: &ReshardWish) -> Result<Plan> {
        let options = &wish.options;
        if options.drain + CATCH_UP >= GATE {
            let most = (GATE - CATCH_UP).as_secs();
            return Err(invalid(format!("transactions may be waited for for less than {most} seconds")));
        }
        let (keyspace, old, ranges, verb) = match &wish.course {
            ReshardCourse::Split { shard, at } => {
                let (keyspace, shard) = self.shard(shard)?;
                (keyspace, vec![shard], split(keyspace, shard, at, self.topology())?, "split")
            }
            ReshardCourse::Merge { shards } => {
                let (keyspace, shards) = self.neighbours(shards)?;
                let (first, last) = (shards[0], shards[shards.len() - 1]);
                let range = KeyRange { start: first.range.start.clone(), end: last.range.end.clone() };
                (keyspace, shards, vec![range], "merge")
            }
        };
        for shard in &old {
            self.check_free(shard)?;
        }
        let builder = match options.builder {
            Some(node) => {
                self.check_node(node)?;
                node
            }
            None => self.builder(&groups(&old), None).ok_or_else(|| {
                refused("no node can build".to_owned())
                    .with_hint("\"shoal nodes\" shows which are drained or silent.")
            })?,
        };
        let replicas = self.place(keyspace, &old, ranges.len(), options)?;
        let new = ranges.into_iter().zip(replicas).map(|(range, replicas)| New {
            name: format!("{}/{range}", keyspace.name),
            incarnation: self.incarnation(keyspace, &old, &range),
            range,
            replicas,
        });
        let new: Vec<_> = new.collect();
        let from: Vec<_> = old.iter().map(|shard| self.topology().shard_name(shard.id)).collect();
        let to: Vec<_> = new.iter().map(|new| new.name.as_str()).collect();
        Ok(Plan {
            keyspace: keyspace.number,
            what: format!("{verb} {} into {}", from.join(", "), to.join(", ")),
            old: old.iter().map(|shard| shard.id).collect(),
            new,
            builder,
        })
    }

    /// Who builds, if not `lost`: the node that was heard of just now, lacks the fewest of the old shards, leads the fewest of them,
    /// and leads the fewest groups.
    pub(crate) fn builder(&self, groups: &[GroupId], lost: Option<NodeId>) -> Option<NodeId> {
        let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
        let shards = self.topology().shards.values();
        for node in shards.filter(|shard| groups.contains(&shard.group)).flat_map(|shard| &shard.replicas) {
            *held.entry(*node).or_default() += 1;
        }
        let leads = |node: NodeId, among: &dyn Fn(GroupId) -> bool| {
            self.leaders.iter().filter(|(group, _, leader)| *leader == node && among(*group)).count()
        };
        let nodes = self.topology().nodes.keys().copied();
        let able = nodes.filter(|node| Some(*node) != lost && self.check_node(*node).is_ok());
        let Scene { vitals, now, .. } = &self.scene;
        able.min_by_key(|node| {
            let is_late = vitals.silence(*node, *now) >= LATE;
            let lacks = groups.len() - held.get(node).copied().unwrap_or(0);
            (is_late, lacks, leads(*node, &|group| groups.contains(&group)), leads(*node, &|_| true), *node)
        })
    }

    /// Who holds a new shard in the end, if some who were to can't: they are drained, gone, or silent for too long. Who can stays, in
    /// its place. Nothing if nobody can take the others' places. `parts` are all new shards.
    pub(crate) fn again(&self, parts: &[Part], part: &Part) -> Option<Vec<NodeId>> {
        let Scene { topology, vitals, config, now } = &self.scene;
        let is_lost = |id: &NodeId| {
            let is_drained = topology.nodes.get(id).is_none_or(|node| node.draining);
            is_drained || vitals.silence(*id, *now) >= config.replace_after
        };
        if !part.replicas.iter().any(is_lost) {
            return None;
        }
        let mut load = self.scene.load();
        for part in parts.iter().filter(|part| !topology.shards.contains_key(&part.shard)) {
            part.replicas.iter().for_each(|node| *load.entry(*node).or_default() += 1);
        }
        let is_there = |node: NodeId| {
            let has = topology.shards.get(&part.shard).is_some_and(|shard| shard.replicas.contains(&node));
            has || topology.joining.contains(&(part.group, node))
        };
        let mut replicas = part.replicas.clone();
        for place in 0..replicas.len() {
            if is_lost(&replicas[place]) {
                let nodes = topology.nodes.keys().copied();
                let able = nodes.filter(|id| !replicas.contains(id) && self.check_node(*id).is_ok());
                let load = |id: NodeId| load.get(&id).copied().unwrap_or(0);
                replicas[place] = able.min_by_key(|id| (!is_there(*id), load(*id), *id))?;
            }
        }
        Some(replicas)
    }

    fn topology(&self) -> &Topology {
        self.scene.topology
    }

    /// A shard that serves, by its name.
    fn shard(&self, name: &str) -> Result<(&Keyspace, &Shard)> {
        let topology = self.topology();
        let serving = topology.keyspaces.values().flat_map(|keyspace| {
            let shards = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
            shards.map(move |shard| (keyspace, shard))
        });
        let mut named = serving.filter(|(keyspace, shard)| {
            let range = name.strip_prefix(keyspace.name.as_str()).and_then(|rest| rest.strip_prefix('/'));
            range.is_some_and(|range| range == shard.range.to_string())
        });
        named.next().ok_or_else(|| {
            let message = format!("shard \"{name}\" does not exist");
            WireError::new(SqlState::UNDEFINED_OBJECT, message).with_hint("\"shoal shards\" lists them.")
        })
    }

    /// Shards of one keyspace that lie side by side, in the order of their ranges.
    fn neighbours(&self, names: &[String]) -> Result<(&Keyspace, Vec<&Shard>)> {
        if !(2..=MOST).contains(&names.len()) {
            return Err(invalid(format!("2 to {MOST} shards are merged, not {}", names.len())));
        }
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            found.push(self.shard(name)?);
        }
        let keyspace = found[0].0;
        if let Some((other, _)) = found.iter().find(|(other, _)| other.number != keyspace.number) {
            let message = format!("{} and {} are two keyspaces", keyspace.name, other.name);
            return Err(invalid(message).with_hint("Shards of one keyspace are merged."));
        }
        let mut shards: Vec<_> = found.into_iter().map(|(_, shard)| shard).collect();
        shards.sort_by(|a, b| a.range.cmp(&b.range));
        for pair in shards.windows(2) {
            if pair[0].range.end.as_ref() != Some(&pair[1].range.start) {
                let name = |shard: &Shard| self.topology().shard_name(shard.id);
                let (one, other) = (name(pair[0]), name(pair[1]));
                let what = if one == other { "is named twice" } else { "aren't neighbours" };
                let who = if one == other { one } else { format!("{one} and {other}") };
                return Err(invalid(format!("{who} {what}"))
                    .with_hint("Shards are merged whose ranges lie side by side."));
            }
        }
        Ok((keyspace, shards))
    }

    /// Nobody else has it change its shape.
    fn check_free(&self, shard: &Shard) -> Result<()> {
        let name = self.topology().shard_name(shard.id);
        let concerns = |record: &&Record| {
            let mut parts = record.old.parts.iter().chain(&record.new.parts);
            record.phase != ReshardPhase::Ended && parts.any(|part| part.shard == shard.id)
        };
        if let Some(record) = self.reshards.iter().find(concerns) {
            let (id, phase) = (record.id, record.phase);
            let ends = if phase == ReshardPhase::Switched { "complete" } else { "cancel" };
            let hint = format!(
                "Reshard {id}, {phase}: \"shoal reshard status {id}\" shows it, \"shoal reshard {ends} {id}\" ends it."
            );
            let message = format!("{name} is being resharded already");
            return Err(WireError::new(SqlState::OBJECT_IN_USE, message).with_hint(hint));
        }
        if !shard.formed {
            let error = refused(format!("{name} is only being formed")).with_retry(proto::Retry::Later);
            return Err(error.with_hint("Try again in a moment."));
        }
        Ok(())
    }

    /// The node lives, and may get something new.
    fn check_node(&self, id: NodeId) -> Result<()> {
        let Some(node) = self.topology().nodes.get(&id) else {
            return Err(WireError::new(SqlState::UNDEFINED_OBJECT, format!("node {id} does not exist"))
                .with_hint("\"shoal nodes\" lists those that there are."));
        };
        // Which group it is doesn't matter, so long as it isn't the coordinator's.
        if !may_hold(GroupId(GroupId::COORDINATOR.0 + 1), node) {
            return Err(refused(format!("node {id} doesn't have the role shardnode"))
                .with_hint("Start it with --roles, or choose another node."));
        }
        if node.draining {
            let hint = format!("\"shoal node undrain {id}\" has it hold shards again.");
            return Err(refused(format!("node {id} is being drained")).with_hint(hint));
        }
        let silence = self.scene.vitals.silence(id, self.scene.now);
        if silence >= self.scene.config.silent_after {
            return Err(refused(format!("node {id} has been silent for {} seconds", silence.as_secs()))
                .with_hint("Start it, or choose another node."));
        }
        Ok(())
    }

    /// Who holds each of so many new shards, the one first that is to lead. What the old ones hold will be free.
    fn place(
        &self,
        keyspace: &Keyspace,
        old: &[&Shard],
        parts: usize,
        options: &ReshardOptions,
    ) -> Result<Vec<Vec<NodeId>>> {
        let named: BTreeSet<_> = options.nodes.iter().copied().collect();
        for node in &named {
            self.check_node(*node)?;
        }
        let nodes = self.topology().nodes.keys().copied();
        let able = nodes.filter(|node| named.is_empty() || named.contains(node));
        let able = able.filter(|node| self.check_node(*node).is_ok());
        // How many each holds, and how many of these it is to lead.
        let mut load: BTreeMap<NodeId, (usize, usize)> = able.map(|node| (node, (0, 0))).collect();
        let count = keyspace.replicas as usize;
        if load.len() < count {
            let message = format!("{count} replicas need as many nodes, and there are {}", load.len());
            return Err(refused(message).with_hint("Add nodes, or lower the keyspace's number of replicas."));
        }
        let gone: BTreeSet<_> = old.iter().map(|shard| shard.id).collect();
        for shard in self.topology().shards.values().filter(|shard| !gone.contains(&shard.id)) {
            for (place, node) in shard.replicas.iter().enumerate() {
                if let Some((held, first)) = load.get_mut(node) {
                    *held += 1;
                    *first += usize::from(place == 0);
                }
            }
        }
        let mut placed = Vec::with_capacity(parts);
        for _ in 0..parts {
            let mut nodes: Vec<_> = load.iter().map(|(node, load)| (load.0, load.1, *node)).collect();
            nodes.sort_unstable();
            nodes.truncate(count);
            nodes.sort_unstable_by_key(|(_, first, node)| (*first, *node));
            let nodes: Vec<_> = nodes.into_iter().map(|(.., node)| node).collect();
            for (place, node) in nodes.iter().enumerate() {
                let (held, first) = load.get_mut(node).expect("it is one of them");
                *held += 1;
                *first += usize::from(place == 0);
            }
            placed.push(nodes);
        }
        Ok(placed)
    }

    /// One that no shard of this name has had. Those of a keyspace that had the same name before had lower ones than any of
    /// this one's shards.
    fn incarnation(&self, keyspace: &Keyspace, old: &[&Shard], range: &KeyRange) -> Incarnation {
        let ended = self.topology().lineage.keys();
        let ended = ended.filter(|source| source.keyspace == keyspace.name && source.shard == *range);
        let there = self.topology().shards.values();
        let there = there.filter(|shard| shard.keyspace == keyspace.number && shard.range == *range);
        let had = ended.map(|source| source.incarnation.0).chain(there.map(|shard| shard.incarnation.0));
        let had = had.chain(old.iter().map(|shard| shard.incarnation.0.saturating_sub(1)));
        Incarnation(had.max().unwrap_or(0) + 1)
    }
}

impl Plan {
    /// As it is told to whoever wished for it.
    pub(crate) fn told(&self, reshard: Option<ReshardId>) -> ReshardPlan {
        let shards = self.new.iter().map(|new| (new.name.clone(), new.replicas.clone())).collect();
        ReshardPlan { reshard, what: self.what.clone(), builder: self.builder, shards }
    }

    /// The record that begins it.
    pub(crate) fn begin(
        self,
        id: ReshardId,
        wish: &ReshardWish,
        topology: &Topology,
        ledger: &mut dyn Ledger,
    ) -> Result<Record> {
        let old = self.old.iter().filter_map(|id| topology.shards.get(id)).map(|shard| Part {
            shard: shard.id,
            group: shard.group,
            range: shard.range.clone(),
            incarnation: shard.incarnation,
            replicas: shard.replicas.clone(),
            first: shard.first,
            last: LogIndex(0),
        });
        let mut new = Vec::with_capacity(self.new.len());
        for New { range, incarnation, replicas, .. } in self.new {
            let (shard, group) = (ledger.shard()?, ledger.group()?);
            let (first, last) = (LogIndex(0), LogIndex(0));
            new.push(Part { shard, group, range, incarnation, replicas, first, last });
        }
        let ReshardOptions { auto, verify, rate, drain, keep, .. } = wish.options;
        Ok(Record::new(
            (id, wish.request),
            (self.keyspace, self.what),
            (old.collect(), new),
            self.builder,
            (Options { verify, rate, drain, keep }, auto),
        ))
    }
}

fn groups(shards: &[&Shard]) -> Vec<GroupId> {
    shards.iter().map(|shard| shard.group).collect()
}

/// The ranges that a shard is split into.
fn split(keyspace: &Keyspace, shard: &Shard, at: &SplitAt, topology: &Topology) -> Result<Vec<KeyRange>> {
    let name = topology.shard_name(shard.id);
    if keyspace.sharding == Sharding::Single {
        let message = format!("keyspace {} has one shard and is not split", keyspace.name);
        return Err(refused(message).with_hint("\"shoal reshard move\" moves it."));
    }
    let parts = match at {
        SplitAt::Evenly(parts) => *parts as usize,
        SplitAt::Bounds(bounds) => bounds.len() + 1,
    };
    if !(2..=MOST).contains(&parts) {
        return Err(invalid(format!("a shard is split into 2 to {MOST}, not {parts}")));
    }
    let bounds = match at {
        SplitAt::Evenly(_) if keyspace.sharding == Sharding::Range => {
            let message = format!("keyspace {} is sharded by range, so {name} has no middle", keyspace.name);
            return Err(invalid(message).with_hint("Say where, with --at or --median."));
        }
        SplitAt::Evenly(parts) => {
            let even = shard.range.even_bounds(*parts);
            even.ok_or_else(|| refused(format!("{name} is too narrow to be split into {parts}")))?
        }
        SplitAt::Bounds(bounds) => bounds.clone(),
    };
    let mut ranges = Vec::with_capacity(parts);
    let mut start = shard.range.start.clone();
    for mut bound in bounds {
        if keyspace.sharding == Sharding::Hash {
            if bound.len() > HASH_BYTES {
                return Err(invalid(format!("a bound of a hash keyspace has {HASH_BYTES} bytes at most")));
            }
            // Each point has one name.
            bound.truncate(bound.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        }
        if bound <= start || shard.range.end.as_ref().is_some_and(|end| bound >= *end) {
            let range = &shard.range;
            let is_within = bound > range.start && range.end.as_ref().is_none_or(|end| bound < *end);
            let why = if is_within { "bounds are ascending".into() } else { format!("its range is {range}") };
            let message = format!("{name} can't be split at {}: {why}", hex(&bound));
            return Err(
                invalid(message).with_hint("A bound is greater than the one before, and within the shard.")
            );
        }
        ranges.push(KeyRange { start: std::mem::replace(&mut start, bound.clone()), end: Some(bound) });
    }
    ranges.push(KeyRange { start, end: shard.range.end.clone() });
    Ok(ranges)
}

fn hex(bytes: &[u8]) -> String {
    KeyRange { start: bytes.to_vec(), end: None }.to_string().trim_end_matches('-').to_owned()
}

fn refused(message: String) -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

fn invalid(message: String) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

#[cfg(test)]
mod tests;
