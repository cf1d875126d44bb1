//! All that a reshard's machine has to do with: the coordinator's log, the topology, and groups with their logs and rows.
//!
//! Groups do what docs/resharding.md wants of them, and nothing else: what they are asked for they do when it arrives, once
//! or twice or late. After whatever happens, what must always be so is asserted.

use crate::reshard::CATCH_UP;
use crate::reshard::machine::{Ask, Event, Machine};
use crate::reshard::record::{Hold, Options, Part, Record, Which, feeding};
use crate::reshard::step::{Change, Ledger, Step};
use proto::services::{
    FlowObstacle, FlowStatus, HandedOver, Hindrance, HindranceCause, Reached, ReshardPhase,
};
use proto::topology::{Reshard, Retired};
use proto::{
    Attempt, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, ReshardId,
    RouterIncarnation, ShardId, TransactionId, WireError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The shard that has nothing to do with it.
const ASIDE: ShardId = ShardId(99);

/// What an entry of a group's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Rows,
    Seal(Attempt),
    Unseal(Attempt),
    Adopt,
}

/// What a group serves as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Sealed,
    Following,
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    log: Vec<Entry>,
    /// Up to here the log is gone.
    floor: u64,
    holds: BTreeMap<Hold, u64>,
    shard: ShardId,
    state: State,
    attempt: Attempt,
    void: Attempt,
    /// What it has taken over of each source.
    taken: BTreeMap<ShardId, u64>,
    /// Where it has adopted last, with the ends of its sources.
    adopted: Option<(Attempt, Reached)>,
    /// Transactions that are in a seal's way.
    pub(super) busy: u32,
}

impl Group {
    fn new(shard: ShardId, state: State, entries: usize) -> Self {
        Group {
            log: vec![Entry::Rows; entries],
            floor: 0,
            holds: BTreeMap::new(),
            shard,
            state,
            attempt: Attempt(0),
            void: Attempt(0),
            taken: BTreeMap::new(),
            adopted: None,
            busy: 0,
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.log.len() as u64
    }

    fn push(&mut self, entry: Entry) -> u64 {
        self.log.push(entry);
        self.last()
    }

    /// As much of the log goes as may.
    fn trim(&mut self) {
        let held = self.holds.values().map(|from| from - 1).min();
        self.floor = self.floor.max(held.unwrap_or(self.last()));
    }
}

/// A request on its way, with what its sender has put into it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) ask: Ask,
    from: u64,
}

pub(super) struct World {
    pub(super) record: Record,
    pub(super) machine: Machine,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// The topology: the keyspace's shards, all shards with their ranges and groups, and what has ended.
    keyspace: Vec<ShardId>,
    shards: BTreeMap<ShardId, (KeyRange, GroupId, LogIndex)>,
    lineage: Vec<Retired>,
    pub(super) epoch: u64,
    /// Every shard that anybody was ever routed to.
    routed: BTreeSet<ShardId>,
    decided: BTreeSet<Attempt>,
    images: BTreeMap<(u32, ShardId), u64>,
    pub(super) ledger: Numbers,
    /// How far the builder's replicas are behind.
    pub(super) behind: u64,
    /// Whether flows stand still.
    pub(super) stuck: bool,
    pub(super) whole: bool,
    pub(super) told: Vec<String>,
}

/// The coordinator's tables.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    shard: u64,
    group: u64,
    pub(super) lacking: Vec<GroupId>,
    pub(super) turn: bool,
    pub(super) quiet: bool,
}

impl Ledger for Numbers {
    fn shard(&mut self) -> Result<ShardId, WireError> {
        self.shard += 1;
        Ok(ShardId(self.shard))
    }

    fn group(&mut self) -> Result<GroupId, WireError> {
        self.group += 1;
        Ok(GroupId(self.group))
    }

    fn lacking(&self, _: NodeId, groups: &[GroupId]) -> Result<Vec<GroupId>, WireError> {
        Ok(groups.iter().copied().filter(|group| self.lacking.contains(group)).collect())
    }

    fn comes_first(&self, _: &[GroupId]) -> Result<Option<String>, WireError> {
        Ok((!self.turn).then(|| "other reshards are under way".to_owned()))
    }

    fn is_quiet(&self, _: KeyspaceNumber, _: &[GroupId]) -> Result<bool, WireError> {
        Ok(self.quiet)
    }
}

impl World {
    /// Shards 1.. of these ranges in groups 2.., which are to become shards of those ranges. `-80` is all that they have.
    pub(super) fn new(old: &[&str], new: &[&str], (auto, verify): (bool, bool), keep: Option<u64>) -> World {
        let mut numbers = Numbers { shard: 0, group: 1, lacking: Vec::new(), turn: true, quiet: true };
        let mut part = |range: &&str| Part {
            shard: numbers.shard().unwrap(),
            group: numbers.group().unwrap(),
            range: KeyRange::parse(range).unwrap(),
            incarnation: Incarnation(1),
            replicas: [1, 2, 3].map(NodeId).to_vec(),
            first: LogIndex(0),
            last: LogIndex(0),
        };
        let old: Vec<Part> = old.iter().map(&mut part).collect();
        let new: Vec<Part> = new.iter().map(&mut part).collect();
        let options =
            Options { verify, rate: 0, drain: Duration::from_secs(2), keep: keep.map(Duration::from_secs) };
        let request = RequestId { router: RouterIncarnation(7), sequence: 1 };
        let mut shards: BTreeMap<_, _> =
            old.iter().map(|part| (part.shard, (part.range.clone(), part.group, LogIndex(0)))).collect();
        let keyspace: Vec<_> = old.iter().map(|part| part.shard).chain([ASIDE]).collect();
        shards.insert(ASIDE, (KeyRange::parse("80-").unwrap(), GroupId(99), LogIndex(0)));
        let group = |part: &Part| (part.group, Group::new(part.shard, State::Open, 100));
        let groups = old.iter().map(group).collect();
        let record = Record::new(
            (ReshardId(7), request),
            (KeyspaceNumber(1), "split".to_owned()),
            (old, new),
            NodeId(2),
            (options, auto),
        );
        World {
            machine: Machine::take_over(record.clone(), CATCH_UP),
            record,
            groups,
            routed: keyspace.iter().copied().collect(),
            keyspace,
            shards,
            lineage: Vec::new(),
            epoch: 1,
            decided: BTreeSet::new(),
            images: BTreeMap::new(),
            ledger: numbers,
            behind: 0,
            stuck: false,
            whole: true,
            told: Vec::new(),
        }
    }

    /// Another leader takes over.
    pub(super) fn another_leader(&mut self) {
        self.machine = Machine::take_over(self.record.clone(), CATCH_UP);
    }

    /// Writes a step, if it still follows.
    pub(super) fn write(&mut self, step: &Step, due: Option<u64>) -> Result<(), WireError> {
        let (record, changes) = self.record.after(step, due, &mut self.ledger)?;
        if matches!(step, Step::Decide { .. }) {
            self.check_decision();
        }
        assert_eq!(record.version, self.record.version + 1);
        // What another leader finds is what was written.
        let record = {
            let kept = Record::read(&record.bytes()).unwrap();
            assert_eq!(kept, record);
            kept
        };
        if matches!(step, Step::Decide { .. }) {
            self.decided.insert(self.record.attempt);
        }
        let (before, shown) = (self.record.shown(), record.shown());
        self.record = record;
        self.told.push(format!("step {}", words_of_step(step)));
        self.told.push(format!("  {}", words_of_record(&self.record)));
        for change in &changes {
            self.change(change);
            if *change != Change::Epoch {
                self.told.push(format!("  {change:?}"));
            }
        }
        if before != shown {
            self.told.push(format!("  epoch {}: {}", self.epoch, words_of_shown(shown.as_ref())));
        }
        Ok(())
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Put(ids) => {
                for id in ids {
                    let part = self.record.new.parts.iter().find(|part| part.shard == *id).unwrap();
                    let known = self.shards.insert(*id, (part.range.clone(), part.group, LogIndex(0)));
                    assert!(known.is_none() && self.groups.contains_key(&part.group));
                }
            }
            Change::Drop(ids) => {
                for id in ids {
                    let (_, group, _) = self.shards.remove(id).unwrap();
                    assert!(!self.keyspace.contains(id), "shard {id} serves");
                    self.groups.remove(&group);
                }
            }
            Change::Rename { from, to, .. } => {
                let (range, group, _) = self.shards.remove(from).unwrap();
                assert!(self.routed.contains(from) && !self.routed.contains(to));
                self.shards.insert(*to, (range, group, LogIndex(0)));
            }
            Change::First(shard, first) => self.shards.get_mut(shard).unwrap().2 = *first,
            Change::Retire(retired) => {
                assert!(self.lineage.iter().all(|other| other.shard != retired.shard));
                assert!(retired.successors.iter().all(|(successor, _)| *successor > retired.shard));
                self.lineage.push(retired.clone());
            }
            Change::Serve { instead_of, shards } => {
                let at = self.keyspace.iter().position(|shard| *shard == instead_of[0]).unwrap();
                let gone: Vec<_> = self.keyspace.splice(at..at + instead_of.len(), shards.clone()).collect();
                assert_eq!(gone, *instead_of);
                self.routed.extend(shards);
            }
            Change::Epoch => self.epoch += 1,
        }
    }

    /// All that is decided has happened, in this attempt.
    fn check_decision(&self) {
        let attempt = self.record.attempt;
        for source in self.record.sources() {
            let group = &self.groups[&source.group];
            assert_eq!((group.state, group.attempt), (State::Sealed, attempt), "shard {}", source.shard);
        }
        for target in self.record.targets() {
            let group = &self.groups[&target.group];
            assert_eq!((group.state, group.attempt), (State::Open, attempt), "shard {}", target.shard);
            assert_eq!(group.shard, target.shard);
            for source in feeding(self.record.sources(), target) {
                let taken = group.taken[&source.shard];
                assert_eq!(
                    taken,
                    self.groups[&source.group].last(),
                    "entries of {} are missing",
                    source.shard
                );
            }
        }
    }

    /// What is asked for, as it leaves.
    pub(super) fn send(&self, ask: &Ask) -> Sent {
        let last = |group| self.groups.get(group).map_or(0, Group::last);
        let from = match ask {
            Ask::Hold { group, .. } if self.record.phase == ReshardPhase::Imaging => {
                last(group).saturating_sub(self.behind) + 1
            }
            Ask::Hold { group, .. } => last(group) + 1,
            _ => 0,
        };
        Sent { ask: ask.clone(), from }
    }

    /// A request arrives. What comes of it is told to whoever asked.
    pub(super) fn arrive(&mut self, sent: &Sent) -> Option<Event> {
        match sent.ask.clone() {
            Ask::Wait => None,
            Ask::Place { group, node } => {
                self.ledger.lacking.retain(|lacking| *lacking != group);
                Some(Event::Placed { group, node })
            }
            Ask::Hold { group, hold } => {
                let log = self.groups.get_mut(&group)?;
                if sent.from <= log.floor && log.holds.values().all(|from| *from > sent.from) {
                    return None;
                }
                log.holds.insert(hold, sent.from);
                Some(Event::Held { group, hold, from: LogIndex(sent.from) })
            }
            Ask::LetGo { group, before } => {
                if let Some(log) = self.groups.get_mut(&group) {
                    log.holds.retain(|hold, _| *hold >= before);
                }
                Some(Event::LetGo { group, before })
            }
            Ask::Image { shard, tries } => {
                let (_, group, _) = self.shards.get(&shard)?;
                let index = self.groups[group].last() - self.behind;
                let index = LogIndex(*self.images.entry((tries, shard)).or_insert(index));
                Some(Event::Begun { shard, tries, index })
            }
            Ask::Copy { rests: true, .. } => None,
            Ask::Copy { tries, rests: false } => Some(Event::Copied { tries }),
            Ask::Found { shard, group, tries } => {
                if !self.groups.contains_key(&group) {
                    let mut founded = Group::new(shard, State::Following, 1);
                    let images = self.images.iter().filter(|((of, _), _)| *of == tries);
                    founded.taken = images.map(|((_, shard), index)| (*shard, *index)).collect();
                    // Whoever asked for it may be far behind: then nobody knows of this group.
                    if self.record.new.parts.iter().any(|part| part.group == group) {
                        self.groups.insert(group, founded);
                    }
                }
                Some(Event::Founded { group, tries })
            }
            Ask::Spread { group, replicas } => Some(Event::Spread { group, replicas }),
            Ask::Whole => Some(Event::Whole((!self.whole).then(|| "a replica is missing".to_owned()))),
            Ask::Flows { shard } => {
                self.flow();
                Some(Event::Flows { shard, flows: self.statuses(shard)? })
            }
            Ask::Compare { attempt, tries } => Some(Event::Compared { attempt, tries, differs: None }),
            Ask::Clear { shard, attempt } => self.seal(shard, attempt, false),
            Ask::Seal { shard, attempt } => self.seal(shard, attempt, true),
            Ask::Unseal { shard, attempt } => self.unseal(shard, attempt),
            Ask::Reached { shard, attempt } => {
                self.flow();
                let (_, group, _) = self.shards.get(&shard)?;
                let (of, reached) = self.groups[group].adopted.clone()?;
                let outcome = HandedOver::Reached(reached);
                (of == attempt).then_some(Event::HandedOver { shard, attempt, outcome })
            }
            Ask::Discard { node } => Some(Event::Discarded { node }),
            Ask::TakeBack { group, node } => Some(Event::TakenBack { group, node }),
        }
    }

    /// Seals a shard, or only says whether it could be.
    fn seal(&mut self, shard: ShardId, attempt: Attempt, seals: bool) -> Option<Event> {
        let Some((_, group, _)) = self.shards.get(&shard) else {
            return Some(Event::Refused { shard, attempt, why: "it isn't there".to_owned() });
        };
        let group = self.groups.get_mut(group).unwrap();
        let handed = |outcome| Some(Event::HandedOver { shard, attempt, outcome });
        if group.void >= attempt {
            return handed(HandedOver::Unsealed);
        }
        match group.state {
            _ if group.shard != shard => {
                Some(Event::Refused { shard, attempt, why: "it is another shard now".to_owned() })
            }
            State::Open if group.busy > 0 => {
                let transaction = TransactionId { router: RouterIncarnation(8), sequence: 1 };
                let cause = HindranceCause::Busy;
                let since = Duration::from_secs(180);
                let found = vec![Hindrance { transaction, cause, since }; group.busy as usize];
                handed(HandedOver::InTheWay(found))
            }
            State::Open if !seals => handed(HandedOver::Clear),
            State::Open => {
                group.push(Entry::Seal(attempt));
                (group.state, group.attempt) = (State::Sealed, attempt);
                handed(HandedOver::Sealed { ended: 1 })
            }
            State::Sealed if group.attempt == attempt && !seals => handed(HandedOver::Clear),
            State::Sealed if group.attempt == attempt => handed(HandedOver::Sealed { ended: 0 }),
            State::Sealed | State::Following => {
                Some(Event::Refused { shard, attempt, why: format!("it is {:?}", group.state) })
            }
        }
    }

    fn unseal(&mut self, shard: ShardId, attempt: Attempt) -> Option<Event> {
        assert!(!self.decided.contains(&attempt), "attempt {attempt} was decided");
        let (_, group, _) = self.shards.get(&shard)?;
        let group = self.groups.get_mut(group).unwrap();
        if group.state == State::Sealed && group.attempt == attempt {
            group.state = State::Open;
        }
        if group.void < attempt {
            group.void = attempt;
            group.push(Entry::Unseal(attempt));
        }
        Some(Event::HandedOver { shard, attempt, outcome: HandedOver::Unsealed })
    }

    /// Whoever takes over takes over all that there is.
    pub(super) fn flow(&mut self) {
        let Some(Reshard { flows, gate, .. }) = self.record.shown().filter(|_| !self.stuck) else { return };
        let targets: BTreeSet<_> = flows.iter().map(|flow| flow.target).collect();
        for target in targets {
            let target_group = self.shards[&target].1;
            let mut ends = Vec::new();
            for flow in flows.iter().filter(|flow| flow.target == target) {
                let (_, source_group, first) = self.shards[&flow.source].clone();
                let source = self.groups[&source_group].clone();
                let group = self.groups.get_mut(&target_group).unwrap();
                let mut at = *group.taken.entry(flow.source).or_insert(first.0);
                while at < source.last() && at >= source.floor {
                    match source.log[at as usize] {
                        Entry::Unseal(_) if group.state == State::Open => group.state = State::Following,
                        _ => {}
                    }
                    at += 1;
                }
                group.taken.insert(flow.source, at);
                // Who adopts must know as which shard, and for which attempt.
                if let Some(Entry::Seal(attempt)) = source.log.last()
                    && at == source.last()
                    && gate == Some(*attempt)
                {
                    ends.push((flow.source, LogIndex(at)));
                }
            }
            let group = self.groups.get_mut(&target_group).unwrap();
            let all = flows.iter().filter(|flow| flow.target == target).count();
            let adopted = group.adopted.as_ref().map(|(attempt, _)| *attempt);
            if let Some(attempt) = gate.filter(|gate| ends.len() == all && adopted != Some(*gate)) {
                let first = LogIndex(group.push(Entry::Adopt));
                (group.state, group.attempt, group.shard) = (State::Open, attempt, target);
                group.adopted = Some((attempt, Reached { first, sources: ends }));
            }
        }
    }

    fn statuses(&self, shard: ShardId) -> Option<Vec<FlowStatus>> {
        let shown = self.record.shown()?;
        let group = &self.groups[&self.shards.get(&shard)?.1];
        let flows = shown.flows.iter().filter(|flow| flow.target == shard);
        let status = |flow: &proto::topology::Flow| {
            let source = &self.groups[&self.shards[&flow.source].1];
            let position = group.taken.get(&flow.source).copied().unwrap_or(self.shards[&flow.source].2.0);
            let behind = source.last() - position;
            FlowStatus {
                source: flow.source,
                position: LogIndex(position),
                committed: LogIndex(source.last()),
                lag: Duration::from_millis(50 * behind),
                lag_bytes: 100 * behind,
                obstacle: (position < source.floor).then_some(FlowObstacle::Forgotten),
            }
        };
        Some(flows.map(status).collect())
    }

    /// Clients write.
    pub(super) fn rows(&mut self, entries: u64) {
        for group in self.groups.values_mut() {
            // Who follows writes, too: what it takes over.
            if group.state != State::Sealed {
                group.log.extend((0..entries).map(|_| Entry::Rows));
            }
        }
    }

    pub(super) fn trim(&mut self) {
        self.groups.values_mut().for_each(Group::trim);
    }

    /// What must always be so (docs/resharding.md, "The phases").
    pub(super) fn check(&self) {
        let record = &self.record;
        // I1
        let mut start = Vec::new();
        for (i, shard) in self.keyspace.iter().enumerate() {
            let range = &self.shards[shard].0;
            assert_eq!(range.start, start, "I1: the keyspace isn't covered");
            assert_eq!(range.end.is_none(), i + 1 == self.keyspace.len(), "I1");
            start = range.end.clone().unwrap_or_default();
        }
        // I2
        if record.phase != ReshardPhase::Ended || record.failed.is_none() {
            let serving = record.ids(record.serves);
            assert!(serving.iter().all(|shard| self.keyspace.contains(shard)), "I2: others serve");
            let others = record.ids(record.serves.other());
            assert!(others.iter().all(|shard| !self.keyspace.contains(shard)), "I2: the other side serves");
        }
        // I3
        for target in record.targets().iter().filter(|_| record.has_founded()) {
            let Some(group) = self.groups.get(&target.group) else { continue };
            let comes = |source: &Part| {
                let taken = group.taken.get(&source.shard).copied().unwrap_or(0);
                let log = &self.groups[&source.group].log;
                log[taken as usize..].iter().any(|entry| matches!(entry, Entry::Unseal(_)))
            };
            let attempts = record.is_attempting() && group.attempt == record.attempt;
            let closes = feeding(record.sources(), target).any(comes);
            let open = group.state == State::Open;
            assert!(!open || attempts || closes || record.one_way.is_some(), "I3: {} is open", target.shard);
        }
        // I4
        for flow in record.shown().into_iter().flat_map(|shown| shown.flows) {
            let (source, target) = (&self.shards[&flow.source], &self.shards[&flow.target]);
            let taken = self.groups[&target.1].taken.get(&flow.source).copied().unwrap_or(source.2.0);
            let from = self.groups[&source.1].holds.values().min();
            assert!(
                from.is_some_and(|from| *from <= taken + 1),
                "I4: {flow:?} has {taken}, held from {from:?}"
            );
        }
        // I5
        let gate = record.shown().and_then(|shown| shown.gate);
        assert_eq!(gate, record.is_attempting().then_some(record.attempt), "I5");
        for source in record.sources() {
            let group = &self.groups[&source.group];
            assert!(group.state == State::Open || record.is_attempting(), "I5: {} is sealed", source.shard);
            assert!(group.state != State::Sealed || group.attempt == record.attempt, "I5");
        }
        // Nobody but one takes writes for a key, whatever topology its router has.
        let open: Vec<_> = self
            .shards
            .iter()
            .filter(|(_, (_, group, _))| {
                self.groups.get(group).is_some_and(|group| group.state == State::Open)
            })
            .filter(|(shard, (_, group, _))| {
                self.routed.contains(shard) && self.groups[group].shard == **shard
            })
            .collect();
        for (i, (shard, (range, ..))) in open.iter().enumerate() {
            for (other, (others, ..)) in &open[i + 1..] {
                assert!(!range.overlaps(others), "both {shard} and {other} take writes");
            }
        }
    }

    /// Nothing is left of what it didn't end with.
    pub(super) fn check_end(&self) {
        let ids: Vec<_> = self.shards.keys().filter(|shard| **shard != ASIDE).copied().collect();
        assert_eq!(ids, {
            let mut serving = self.record.ids(self.record.serves);
            serving.sort_unstable();
            serving
        });
        assert!(self.record.shown().is_none());
    }

    /// Whether a log is held though nobody needs it.
    pub(super) fn is_held(&self) -> bool {
        self.groups.values().any(|group| !group.holds.is_empty())
    }
}

fn words_of_side(side: &[Part]) -> String {
    let part = |part: &Part| {
        let mut words = format!("{}@{}", part.shard, part.group);
        if part.incarnation != Incarnation(1) {
            words += &format!(".{}", part.incarnation);
        }
        if part.first.0 > 0 {
            words += &format!(" from {}", part.first);
        }
        if part.last.0 > 0 {
            words += &format!(" to {}", part.last);
        }
        words
    };
    side.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn words_of_record(record: &Record) -> String {
    let side = |which| {
        let serves = if record.serves == which { "*" } else { "" };
        format!(
            "{}{serves} ({})",
            if which == Which::Old { "old" } else { "new" },
            words_of_side(&record.side(which).parts)
        )
    };
    let mut words = format!("{}: {} {}", record.phase, side(Which::Old), side(Which::New));
    let mut also = |yes: bool, what: String| {
        if yes {
            words += ", ";
            words += &what;
        }
    };
    also(record.tries > 0, format!("try {}", record.tries));
    also(record.attempt.0 > 0, format!("attempt {}", record.attempt));
    also(record.still, "still".to_owned());
    also(record.wanted, "wanted".to_owned());
    also(record.given_up > 0, format!("given up {}", record.given_up));
    let held = record.held.iter().map(|(group, (hold, from))| format!("{group} {hold} {from}"));
    also(!record.held.is_empty(), format!("held ({})", held.collect::<Vec<_>>().join(", ")));
    also(
        !record.lent.is_empty(),
        format!("lent {:?}", record.lent.iter().map(|l| (l.0.0, l.1.0)).collect::<Vec<_>>()),
    );
    also(record.one_way.is_some(), format!("one way: {}", record.one_way.clone().unwrap_or_default()));
    let paused = record.paused.clone().map(|paused| format!("rests ({:?}): {}", paused.cause, paused.why));
    also(paused.is_some(), paused.unwrap_or_default());
    also(record.cancel, "cancel".to_owned());
    also(record.counts.switches > 0, format!("{:?}", record.counts));
    also(!record.message.is_empty(), format!("\"{}\"", record.message));
    words
}

fn words_of_step(step: &Step) -> String {
    match step {
        Step::Still { .. } => "Still".to_owned(),
        Step::Begin { .. } => "Begin".to_owned(),
        Step::Decide { .. } => "Decide".to_owned(),
        step => format!("{step:?}"),
    }
}

fn words_of_shown(shown: Option<&Reshard>) -> String {
    let Some(Reshard { build, flows, gate, .. }) = shown else { return "nothing".to_owned() };
    let mut words = Vec::new();
    if let Some(build) = build {
        let groups: Vec<_> = build.groups.iter().map(|group| group.to_string()).collect();
        words.push(format!("build try {} on node {} for {}", build.tries, build.node, groups.join(" ")));
    }
    if !flows.is_empty() {
        let flow = |flow: &proto::topology::Flow| {
            format!("{}→{}{}", flow.source, flow.target, if flow.references { "" } else { "'" })
        };
        words.push(format!("flows {}", flows.iter().map(flow).collect::<Vec<_>>().join(" ")));
    }
    if let Some(gate) = gate {
        words.push(format!("gate of attempt {gate}"));
    }
    words.join(", ")
}
