//! What a leader does about a reshard: whom it asks for what, and which step is due.
//!
//! In come the record, and events: answers, and time that has passed. Out come what is to be asked, and at most one step that
//! is to be written before anything else happens. All that is kept here beside the record is what this leader has heard
//! itself since it leads, or since the record was last otherwise; the next one hears it again. So a crash loses nothing, and
//! a late answer or a second one changes nothing: it names what it is about.

use super::record::{Hold, PauseCause, Record, Which, feeding};
use super::step::{Step, ends};
use proto::services::{
    FlowObstacle, FlowStatus, HandedOver, Hindrance, HindranceCause, Reached, ReshardPhase,
};
use proto::{Attempt, GroupId, LogIndex, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long schema changes wait for images to begin; and how long images then wait for schema changes.
const STILL: Duration = Duration::from_secs(10);
/// Flows are near that lag less than this..
const NEAR: Duration = Duration::from_millis(100);
/// ..and less than so many bytes..
const NEAR_BYTES: u64 = 256 << 10;
/// ..and have done so for so long.
const NEAR_FOR: Duration = Duration::from_secs(1);
/// What was heard longer ago says nothing of now.
const FRESH: Duration = Duration::from_millis(500);
/// So long after an attempt has begun, all routers know of its gate.
const NEWS: Duration = Duration::from_millis(50);
/// The pause after an attempt was given up; it doubles with each, up to a minute.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Something to be asked for, again and again, until there is an answer or it isn't asked for any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    /// That it is looked again soon whether it may begin.
    Wait,
    /// That the builder gets a replica of a group: [`Event::Placed`].
    Place { group: GroupId, node: NodeId },
    /// That a log is held: from what its builder's replica lacks, or from now on: [`Event::Held`].
    Hold { group: GroupId, hold: Hold },
    /// That none of this reshard's holds on a log is left that came before this one: [`Event::LetGo`].
    LetGo { group: GroupId, before: Hold },
    /// That the builder begins an image of its replica: [`Event::Begun`].
    Image { shard: ShardId, tries: u32 },
    /// That the builder copies, or rests: [`Event::Copied`].
    Copy { tries: u32, rests: bool },
    /// That the builder founds a group with its file: [`Event::Founded`].
    Found { shard: ShardId, group: GroupId, tries: u32 },
    /// That a group has these replicas, and the first of them leads: [`Event::Spread`].
    Spread { group: GroupId, replicas: Vec<NodeId> },
    /// How far a shard is that takes over: [`Event::Flows`].
    Flows { shard: ShardId },
    /// What the groups lack: [`Event::Whole`].
    Whole,
    /// Whether old and new have the same rows: [`Event::Compared`].
    Compare { attempt: Attempt, tries: u32 },
    /// [`proto::services::HandOverAction::Clear`]: [`Event::HandedOver`].
    Clear { shard: ShardId, attempt: Attempt },
    /// [`proto::services::HandOverAction::Seal`]: [`Event::HandedOver`].
    Seal { shard: ShardId, attempt: Attempt },
    /// [`proto::services::HandOverAction::Unseal`].
    Unseal { shard: ShardId, attempt: Attempt },
    /// [`proto::services::HandOverAction::Reached`].
    Reached { shard: ShardId, attempt: Attempt },
    /// That the builder deletes what it has built: [`Event::Discarded`].
    Discard { node: NodeId },
    /// That a replica is removed that a builder got: [`Event::TakenBack`].
    TakeBack { group: GroupId, node: NodeId },
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// So much time has passed.
    Passed(Duration),
    /// The builder has a replica of the group.
    Placed { group: GroupId, node: NodeId },
    /// The log is held from there on.
    Held { group: GroupId, hold: Hold, from: LogIndex },
    /// No earlier one holds the log.
    LetGo { group: GroupId, before: Hold },
    /// The image has all up to there.
    Begun { shard: ShardId, tries: u32, index: LogIndex },
    /// All files are complete.
    Copied { tries: u32 },
    /// Something is gone of what was to be copied.
    Lost { tries: u32, what: String },
    /// The builder has no room left in its directory.
    DiskFull { tries: u32, directory: String },
    /// The group has its leader.
    Founded { group: GroupId, tries: u32 },
    /// The group is on these nodes, where it was to be.
    Spread { group: GroupId, replicas: Vec<NodeId> },
    /// Some who are to hold a new group can't any more. These could.
    Misplaced { group: GroupId, replicas: Vec<NodeId> },
    /// The builder has been silent for too long, or is drained. Who could build in its place?
    BuilderLost { node: NodeId, another: Option<NodeId> },
    /// A group of those that take over has lost its replicas.
    GroupLost { group: GroupId },
    /// How far a shard is with each of its sources.
    Flows { shard: ShardId, flows: Vec<FlowStatus> },
    /// More of a log is held than there may be.
    Overrun { group: GroupId },
    /// What the groups lack: a leader, or a replica that is well. Nothing if they are whole.
    Whole(Option<String>),
    /// Whether old and new have the same rows; if not, what differs.
    Compared { attempt: Attempt, tries: u32, differs: Option<String> },
    /// An answer of a shard.
    HandedOver { shard: ShardId, attempt: Attempt, outcome: HandedOver },
    /// A shard will never do what an attempt wants of it.
    Refused { shard: ShardId, attempt: Attempt, why: String },
    /// The builder has nothing of the reshard's any more, or is gone with it.
    Discarded { node: NodeId },
    /// The replica is gone.
    TakenBack { group: GroupId, node: NodeId },
}

/// One reshard, as its leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    record: Record,
    /// How long an attempt may take from its last seal to its last adoption.
    catch_up: Duration,
    heard: Heard,
}

/// What was heard since the record is as it is.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// For how long it has been so.
    passed: Duration,
    /// It was the other way round before: images didn't begin in time.
    gave_way: bool,
    placed: BTreeSet<GroupId>,
    held: BTreeMap<GroupId, LogIndex>,
    begun: BTreeSet<ShardId>,
    copied: bool,
    founded: BTreeSet<GroupId>,
    spread: BTreeSet<GroupId>,
    /// Whether each that takes over was near, and how long ago that was.
    near: BTreeMap<ShardId, (bool, Duration)>,
    /// The same of whether all groups are whole.
    whole: Option<(bool, Duration)>,
    /// For how long all have been near.
    near_for: Duration,
    same: bool,
    /// The shards that were clear, of several that are to be sealed.
    clear: BTreeSet<ShardId>,
    /// How many transactions each seal has ended.
    sealed: BTreeMap<ShardId, u32>,
    /// For how long all have been sealed.
    sealed_for: Duration,
    reached: BTreeMap<ShardId, Reached>,
    unsealed: BTreeSet<ShardId>,
    /// A step that an event made due.
    trouble: Option<Step>,
    let_go: BTreeSet<(GroupId, Hold)>,
    discarded: bool,
    taken_back: BTreeSet<(GroupId, NodeId)>,
}

impl Machine {
    /// Goes on with a reshard.
    pub(crate) fn take_over(record: Record, catch_up: Duration) -> Self {
        Machine { record, catch_up, heard: Heard::default() }
    }

    /// The record, as far as this one knows.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The record is this now. What was heard of something else counts no more.
    pub(crate) fn written(&mut self, record: Record) {
        let before = std::mem::replace(&mut self.record, record);
        let now = &self.record;
        if before.hold != now.hold {
            // What was heard is of a hold that counts no more.
            self.heard.held.clear();
        }
        for (part, was) in now.new.parts.iter().zip(&before.new.parts) {
            if part.replicas != was.replicas {
                self.heard.spread.remove(&part.group);
            }
        }
        let key = |record: &Record| (record.phase, record.attempt, record.serves, record.tries, record.still);
        if key(&before) == key(now) && before.builder == now.builder && before.given_up == now.given_up {
            self.heard.trouble = None;
            return;
        }
        let waits = now.phase == ReshardPhase::Imaging && now.paused.is_none();
        let gave_way = before.still && !now.still && waits;
        let let_go = std::mem::take(&mut self.heard.let_go);
        self.heard = Heard { gave_way, let_go, ..Heard::default() };
    }

    /// Takes note of something that happened.
    pub(crate) fn hear(&mut self, event: Event) {
        let Machine { record, heard, .. } = self;
        let (phase, attempt, tries) = (record.phase, record.attempt, record.tries);
        let builds = (ReshardPhase::Placing..=ReshardPhase::Founding).contains(&phase);
        match event {
            Event::Passed(time) => self.pass(time),
            Event::Placed { group, node } if node == record.builder => {
                heard.placed.insert(group);
            }
            Event::Held { group, hold, from } if hold == record.next_hold() => {
                heard.held.insert(group, from);
            }
            Event::LetGo { group, before } => {
                heard.let_go.insert((group, before));
            }
            Event::Begun { shard, tries: of, index } if of == tries && record.still => {
                // What an image lacks must be in the log. One that is too old is asked for again.
                let part = record.old.parts.iter().find(|part| part.shard == shard);
                let held = part.and_then(|part| record.held.get(&part.group));
                if held.is_some_and(|(_, from)| index.0 + 1 >= from.0) {
                    heard.begun.insert(shard);
                }
            }
            Event::Copied { tries: of } if of == tries => heard.copied = true,
            Event::Lost { tries: of, what } if of == tries && builds && phase > ReshardPhase::Placing => {
                heard.trouble = Some(Step::Anew(what));
            }
            Event::DiskFull { tries: of, directory } if of == tries && builds && record.paused.is_none() => {
                let node = record.builder;
                let why = format!("node {node}, which builds, has no room left on the disk of {directory}");
                heard.trouble = Some(Step::Pause(PauseCause::Disk, why));
            }
            Event::Founded { group, tries: of } if of == tries => {
                heard.founded.insert(group);
            }
            Event::Spread { group, replicas } if is_to_hold(record, group, &replicas) => {
                heard.spread.insert(group);
            }
            Event::Misplaced { group, replicas }
                if phase <= ReshardPhase::Spreading
                    && heard.trouble.is_none()
                    && !is_to_hold(record, group, &replicas) =>
            {
                heard.trouble = Some(Step::Place { group, replicas });
            }
            Event::BuilderLost { node, another: Some(another) } if node == record.builder && builds => {
                heard.trouble = Some(Step::Builder(another));
            }
            Event::BuilderLost { node, another: None } if node == record.builder && builds => {
                let why = format!("node {node}, which builds, is gone, and no other can");
                let pause = Step::Pause(PauseCause::Builder, why);
                heard.trouble = record.paused.is_none().then_some(pause);
            }
            Event::GroupLost { group } if record.targets().iter().any(|part| part.group == group) => {
                self.useless(format!("group {group} has lost its replicas"), Step::Anew);
            }
            Event::Overrun { group } if record.sources().iter().any(|part| part.group == group) => {
                self.useless(format!("the log of group {group} became too long"), Step::Overrun);
            }
            Event::Flows { shard, flows } => self.flows(shard, &flows),
            Event::Whole(lacks) => heard.whole = Some((lacks.is_none(), Duration::ZERO)),
            Event::Compared { attempt: of, tries: copy, differs }
                if (of, copy) == (attempt, tries) && phase == ReshardPhase::Verifying =>
            {
                heard.same = differs.is_none();
                let differs = differs.filter(|_| record.paused.is_none());
                heard.trouble = differs
                    .map(|what| Step::Pause(PauseCause::Differs, format!("old and new differ: {what}")));
            }
            Event::HandedOver { shard, attempt: of, outcome } if of == attempt => self.answer(shard, outcome),
            Event::Refused { shard, attempt: of, why }
                if of == attempt && phase == ReshardPhase::Switching =>
            {
                heard.trouble = Some(Step::GiveUp(format!("shard {shard}: {why}")));
            }
            Event::Discarded { node } if node == record.builder => heard.discarded = true,
            Event::TakenBack { group, node } => {
                heard.taken_back.insert((group, node));
            }
            // Late: it is about what was before.
            _ => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        let Machine { record, heard, .. } = self;
        heard.passed += time;
        for (_, ago) in heard.near.values_mut().chain(heard.whole.as_mut()) {
            *ago += time;
        }
        let is_near = |(near, ago): &(bool, Duration)| *near && *ago <= FRESH;
        let near = record.targets().iter().all(|target| heard.near.get(&target.shard).is_some_and(is_near));
        heard.near_for = if near { heard.near_for + time } else { Duration::ZERO };
        if !near {
            // From where a log is held that nobody may come to need for long, grows old.
            heard.held.retain(|_, _| record.phase == ReshardPhase::Imaging);
        }
        if record.sources().iter().all(|source| heard.sealed.contains_key(&source.shard)) {
            heard.sealed_for += time;
        }
    }

    fn flows(&mut self, shard: ShardId, flows: &[FlowStatus]) {
        let record = &self.record;
        let Some(target) = record.targets().iter().find(|target| target.shard == shard) else { return };
        let mut near = true;
        let mut obstacle = None;
        for source in feeding(record.sources(), target) {
            let Some(flow) = flows.iter().find(|flow| flow.source == source.shard) else {
                near = false;
                continue;
            };
            near &= flow.lag < NEAR && flow.lag_bytes < NEAR_BYTES && flow.obstacle.is_none();
            obstacle = obstacle.or(flow.obstacle.as_ref().map(|why| (source.shard, why.clone())));
        }
        self.heard.near.insert(shard, (near, Duration::ZERO));
        if !near {
            self.heard.near_for = Duration::ZERO;
        }
        match obstacle {
            None => {}
            Some((source, FlowObstacle::Forgotten)) => {
                self.useless(
                    format!("the log of shard {source} doesn't reach back far enough"),
                    Step::Overrun,
                );
            }
            Some((source, FlowObstacle::Differs(what))) => {
                let why = format!("shard {shard} can't follow shard {source}: {what}");
                let rests = self.record.paused.is_some();
                self.useless(why, |why| Step::Pause(PauseCause::Copy, why));
                if rests && self.record.serves == Which::Old {
                    // It has been told already.
                    self.heard.trouble = None;
                }
            }
        }
    }

    /// Those that take over are of no use any more: they are copied again, or there is no way back.
    fn useless(&mut self, why: String, again: impl Fn(String) -> Step) {
        let Machine { record, heard, .. } = self;
        if !record.flows() || record.is_attempting() {
            return;
        }
        heard.trouble = Some(match record.serves {
            Which::Old => again(why),
            Which::New => Step::OneWay(why),
        });
    }

    fn answer(&mut self, shard: ShardId, outcome: HandedOver) {
        let Machine { record, heard, .. } = self;
        let is_source = record.sources().iter().any(|part| part.shard == shard);
        let is_target = record.targets().iter().any(|part| part.shard == shard);
        match (record.phase, outcome) {
            (ReshardPhase::Switching, HandedOver::Clear) if is_source => {
                heard.clear.insert(shard);
            }
            (ReshardPhase::Switching, HandedOver::Sealed { ended }) if is_source => {
                // Who leads after the one that has sealed it knows of none.
                let known = heard.sealed.entry(shard).or_default();
                *known = ended.max(*known);
            }
            (ReshardPhase::Switching, HandedOver::Reached(reached)) if is_target => {
                heard.reached.insert(shard, reached);
            }
            (ReshardPhase::Switching, HandedOver::InTheWay(found)) if is_source => {
                heard.trouble = Some(Step::GiveUp(in_the_way(shard, &found)));
            }
            (ReshardPhase::Switching, HandedOver::Unsealed) if is_source => {
                heard.trouble = Some(Step::GiveUp(format!("shard {shard} is to stay open")));
            }
            (ReshardPhase::Undoing, HandedOver::Unsealed) if is_source => {
                heard.unsealed.insert(shard);
            }
            _ => {}
        }
    }

    /// The step that is to be written now, if there is one.
    pub(crate) fn due(&self) -> Option<Step> {
        use ReshardPhase::*;
        let Machine { record, heard, .. } = self;
        let rests = record.paused.is_some();
        match record.phase {
            Switching => return self.switching(),
            Undoing => {
                let done = record.sources().iter().all(|part| heard.unsealed.contains(&part.shard));
                return done.then_some(Step::Undone);
            }
            Completing | Cancelling => return self.asks().is_empty().then_some(Step::End),
            Ended => return None,
            _ if heard.trouble.is_some() => return heard.trouble.clone(),
            _ if rests => return None,
            _ => {}
        }
        match record.phase {
            Planned => Some(Step::Turn),
            Placing => {
                let lent = record.lent.iter().filter(|(_, node)| *node == record.builder);
                let mut groups = lent.map(|(group, _)| group);
                groups.all(|group| heard.placed.contains(group)).then_some(Step::Placed)
            }
            Imaging if record.still => {
                let mut parts = record.old.parts.iter();
                if parts.all(|part| heard.begun.contains(&part.shard)) {
                    return Some(Step::Imaged);
                }
                (heard.passed >= STILL).then_some(Step::GiveWay)
            }
            Imaging if heard.gave_way && heard.passed < STILL => None,
            Imaging => Some(Step::Still { held: self.held(Which::Old)? }),
            Copying => heard.copied.then_some(Step::Copied),
            Founding => {
                let mut parts = record.new.parts.iter();
                parts.all(|part| heard.founded.contains(&part.group)).then_some(Step::Founded)
            }
            Spreading => {
                let mut parts = record.new.parts.iter();
                parts.all(|part| heard.spread.contains(&part.group)).then_some(Step::Spread)
            }
            CatchingUp => (heard.near_for >= NEAR_FOR).then_some(Step::CaughtUp),
            Verifying => heard.same.then_some(Step::Verified),
            Ready | Switched if record.wanted && record.one_way.is_none() => {
                let held = self.held(record.serves.other())?;
                self.could_begin().then_some(Step::Begin { held })
            }
            Switched => record.options.keep.is_some_and(|keep| heard.passed >= keep).then_some(Step::Kept),
            _ => None,
        }
    }

    /// Whether all shards that are replaced are sealed, as far as this leader knows.
    pub(crate) fn is_sealed(&self) -> bool {
        self.record.sources().iter().all(|part| self.heard.sealed.contains_key(&part.shard))
    }

    /// Whether all shards that take over have reached the seals.
    pub(crate) fn has_reached(&self) -> bool {
        self.record.targets().iter().all(|part| self.heard.reached.contains_key(&part.shard))
    }

    /// Whether what is replaced may be sealed. As long as one of several has a transaction in its way, none is: that may need another
    /// one of them to end. Before all routers know of the gate, one may begin at any moment.
    fn is_clear(&self) -> bool {
        let Machine { record, heard, .. } = self;
        !record.clears() || record.sources().iter().all(|part| heard.clear.contains(&part.shard))
    }

    fn switching(&self) -> Option<Step> {
        let Machine { record, heard, catch_up } = self;
        let sealed = self.is_sealed();
        if sealed && self.has_reached() {
            let reached: Vec<_> = heard.reached.clone().into_iter().collect();
            return Some(match ends(record, &reached) {
                Ok(_) => {
                    let ended = heard.sealed.values().sum();
                    Step::Decide { reached, ended, pause: heard.sealed_for }
                }
                Err(problem) => Step::GiveUp(problem),
            });
        }
        if let Some(trouble) = &heard.trouble {
            return Some(trouble.clone());
        }
        if heard.sealed_for >= *catch_up || heard.passed >= record.options.drain + *catch_up {
            let what = if sealed { "the new ones didn't catch up" } else { "not all shards were sealed" };
            return Some(Step::GiveUp(format!("{what} in time")));
        }
        None
    }

    /// Whether an attempt could begin, for all that is known of flows and groups.
    fn could_begin(&self) -> bool {
        let Machine { record, heard, .. } = self;
        let doubled = PAUSE * 2u32.saturating_pow(record.given_up.saturating_sub(1).min(8));
        let pause = if record.given_up == 0 { Duration::ZERO } else { doubled.min(LONGEST_PAUSE) };
        let whole = heard.whole.is_some_and(|(whole, ago)| whole && ago <= FRESH);
        whole && heard.near_for >= NEAR_FOR && heard.passed >= pause
    }

    /// From where on all groups of a side are held, if they are.
    fn held(&self, which: Which) -> Option<Vec<(GroupId, LogIndex)>> {
        let groups = self.record.groups(which).into_iter();
        groups.map(|group| Some((group, *self.heard.held.get(&group)?))).collect()
    }

    /// What is to be asked for now.
    pub(crate) fn asks(&self) -> Vec<Ask> {
        use ReshardPhase::*;
        let Machine { record, heard, .. } = self;
        let (attempt, tries, rests) = (record.attempt, record.tries, record.paused.is_some());
        let mut asks = self.letting_go();
        if record.flows() && !record.is_attempting() {
            asks.extend(record.targets().iter().map(|part| Ask::Flows { shard: part.shard }));
        }
        match record.phase {
            Planned if !rests => asks.push(Ask::Wait),
            Placing if !rests => {
                let lent = record.lent.iter().filter(|(_, node)| *node == record.builder);
                let open = lent.filter(|(group, _)| !heard.placed.contains(group));
                asks.extend(open.map(|(group, node)| Ask::Place { group: *group, node: *node }));
            }
            Imaging if !rests && record.still => {
                let open = record.old.parts.iter().filter(|part| !heard.begun.contains(&part.shard));
                asks.extend(open.map(|part| Ask::Image { shard: part.shard, tries }));
            }
            Imaging if !rests => asks.extend(self.holding(Which::Old)),
            Copying if !heard.copied => asks.push(Ask::Copy { tries, rests }),
            Founding if !rests => {
                let open = record.new.parts.iter().filter(|part| !heard.founded.contains(&part.group));
                asks.extend(open.map(|part| Ask::Found { shard: part.shard, group: part.group, tries }));
            }
            Spreading if !rests => {
                let open = record.new.parts.iter().filter(|part| !heard.spread.contains(&part.group));
                asks.extend(
                    open.map(|part| Ask::Spread { group: part.group, replicas: part.replicas.clone() }),
                );
            }
            Verifying if !rests && !heard.same => asks.push(Ask::Compare { attempt, tries }),
            Ready | Switched if !rests && record.wanted && record.one_way.is_none() => {
                asks.push(Ask::Whole);
                if self.could_begin() {
                    asks.extend(self.holding(record.serves.other()));
                }
            }
            Switching => {
                if self.is_clear() {
                    let open = record.sources().iter().filter(|part| !heard.sealed.contains_key(&part.shard));
                    asks.extend(open.map(|part| Ask::Seal { shard: part.shard, attempt }));
                } else if heard.passed >= NEWS {
                    let open = record.sources().iter().filter(|part| !heard.clear.contains(&part.shard));
                    asks.extend(open.map(|part| Ask::Clear { shard: part.shard, attempt }));
                }
                let open = record.targets().iter().filter(|part| !heard.reached.contains_key(&part.shard));
                asks.extend(open.map(|part| Ask::Reached { shard: part.shard, attempt }));
            }
            Undoing => {
                let open = record.sources().iter().filter(|part| !heard.unsealed.contains(&part.shard));
                asks.extend(open.map(|part| Ask::Unseal { shard: part.shard, attempt }));
            }
            Cancelling => {
                let open = record.lent.iter().filter(|lent| !heard.taken_back.contains(lent));
                asks.extend(open.map(|(group, node)| Ask::TakeBack { group: *group, node: *node }));
                if tries > 0 && !heard.discarded {
                    asks.push(Ask::Discard { node: record.builder });
                }
            }
            _ => {}
        }
        asks
    }

    fn holding(&self, which: Which) -> impl Iterator<Item = Ask> {
        let hold = self.record.next_hold();
        let open = self.record.groups(which).into_iter().filter(|group| !self.heard.held.contains_key(group));
        open.map(move |group| Ask::Hold { group, hold })
    }

    /// Holds that nobody needs end. Nothing waits for that but the end.
    fn letting_go(&self) -> Vec<Ask> {
        use ReshardPhase::*;
        let Machine { record, heard, .. } = self;
        let (serving, other) = (record.serves, record.serves.other());
        let mut groups = match record.phase {
            Planned | Imaging | Switching | Undoing | Ended => Vec::new(),
            // Nobody has held a log for it yet.
            Placing | Cancelling if record.tries == 0 => Vec::new(),
            _ => record.groups(serving),
        };
        let is_free = !record.wanted && record.attempt > Attempt(0) && record.flows();
        if (matches!(record.phase, Ready) && is_free) || record.phase == Switched && !record.wanted {
            groups.extend(record.groups(other));
        }
        let next = record.next_hold();
        let end = if record.phase > Switched { Hold(next.0 + 1) } else { next };
        let kept = |group: GroupId| (group, record.held.get(&group).map_or(end, |(hold, _)| *hold));
        let open = groups.into_iter().map(kept).filter(|ask| !heard.let_go.contains(ask));
        open.map(|(group, before)| Ask::LetGo { group, before }).collect()
    }
}

/// Whether a new group is to be on these nodes.
fn is_to_hold(record: &Record, group: GroupId, replicas: &[NodeId]) -> bool {
    record.new.parts.iter().any(|part| part.group == group && part.replicas == replicas)
}

/// Why a shard isn't sealed.
fn in_the_way(shard: ShardId, found: &[Hindrance]) -> String {
    let Some(oldest) = found.iter().max_by_key(|found| found.since) else {
        return format!("shard {shard} can't be sealed now");
    };
    let (seconds, id) = (oldest.since.as_secs(), oldest.transaction);
    let does = match oldest.cause {
        HindranceCause::Busy => "been busy",
        HindranceCause::Staged => "had staged changes",
    };
    let also = match found.len() - 1 {
        0 => String::new(),
        others => format!(", and {others} more"),
    };
    format!("a transaction on shard {shard} has {does} for {seconds} s ({id}){also}")
}
