//! The steps of a reshard: what may follow on a record, and what else changes with it.
//!
//! In come a record as the log has it, a step, and what the coordinator's tables say at that moment; out come the record after
//! it and the changes of the topology that are part of the same write. Whatever can't follow is refused, and changes nothing.

use super::record::{PauseCause, Paused, Record, Which, feeding};
use proto::services::{Reached, ReshardCommand, ReshardPhase};
use proto::topology::Retired;
use proto::{
    Attempt, GroupId, Incarnation, KeyspaceNumber, LogIndex, NodeId, Retry, ShardId, SqlState, WireError,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many attempts are given up; then somebody must say that there are to be more.
pub(crate) const ATTEMPTS: u32 = 5;
/// So often a log may become too long; then somebody must look.
const OVERRUNS: u32 = 3;

type Result<T> = std::result::Result<T, WireError>;

/// What may happen to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its turn has come.
    Turn,
    /// The builder has a replica of each old shard.
    Placed,
    /// Their logs are held; schema changes are kept waiting from now on.
    Still { held: Vec<(GroupId, LogIndex)> },
    /// Images weren't begun in time: schema changes go on.
    GiveWay,
    /// All images are begun.
    Imaged,
    /// The new shards' files are complete.
    Copied,
    /// Others hold a new group in the end than were to.
    Place { group: GroupId, replicas: Vec<NodeId> },
    /// The new groups live.
    Founded,
    /// They are where they are to be.
    Spread,
    /// The flows are near.
    CaughtUp,
    /// Old and new are the same.
    Verified,
    /// The builder is gone, and this node takes its place.
    Builder(NodeId),
    /// What was copied is of no use. Another copy is made.
    Anew(String),
    /// The log that a flow needs is too long, or gone. Another copy is made, if that hasn't been tried often enough.
    Overrun(String),
    /// The shards that were replaced can't take over any more.
    OneWay(String),
    /// An attempt begins. The logs of those that are to serve are held.
    Begin { held: Vec<(GroupId, LogIndex)> },
    /// The attempt is decided: what these say that they have reached, they serve. **This is the switch.**
    Decide { reached: Vec<(ShardId, Reached)>, ended: u32, pause: Duration },
    /// The attempt is given up.
    GiveUp(String),
    /// What it has sealed is open again.
    Undone,
    /// It can't go on by itself.
    Pause(PauseCause, String),
    /// The old shards have been kept for as long as was wished.
    Kept,
    /// Nothing is left to do.
    End,
    /// The keyspace was dropped, with all its shards.
    Dropped,
    /// Somebody says so.
    Command(ReshardCommand),
}

/// What a step changes in the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The new shards are there, each on the builder alone.
    Put(Vec<ShardId>),
    /// These shards aren't there any more.
    Drop(Vec<ShardId>),
    /// A shard has another id and incarnation. Its group and replicas stay.
    Rename { from: ShardId, to: ShardId, incarnation: Incarnation },
    /// From this entry on the shard has all that was before it.
    First(ShardId, LogIndex),
    /// The shard's log goes on in others.
    Retire(Retired),
    /// These serve the keyspace in the place of those.
    Serve { instead_of: Vec<ShardId>, shards: Vec<ShardId> },
    /// A new epoch begins.
    Epoch,
}

/// What the coordinator's tables say as the write sees them, and the numbers that it gives out.
pub(crate) trait Ledger {
    /// A shard id that nobody has had.
    fn shard(&mut self) -> Result<ShardId>;

    /// A group that nobody has had.
    fn group(&mut self) -> Result<GroupId>;

    /// Those of these groups of which the node has no replica.
    fn lacking(&self, node: NodeId, groups: &[GroupId]) -> Result<Vec<GroupId>>;

    /// What a reshard of these groups has to wait for before it begins: too many build, or others have the groups change.
    fn comes_first(&self, groups: &[GroupId]) -> Result<Option<String>>;

    /// Whether no schema change of the keyspace, and no change of these groups' replicas, is under way.
    fn is_quiet(&self, keyspace: KeyspaceNumber, groups: &[GroupId]) -> Result<bool>;
}

impl Record {
    /// The record after a step, and what changes with it. `due` is the version of the record that it was due on; `None` for
    /// what somebody says, or what has happened, whatever the record is.
    pub(crate) fn after(
        &self,
        step: &Step,
        due: Option<u64>,
        ledger: &mut dyn Ledger,
    ) -> Result<(Record, Vec<Change>)> {
        if due.is_some_and(|version| version != self.version) {
            return Err(stale("it is another record by now"));
        }
        let mut next = Next { record: self.clone(), changes: Vec::new() };
        next.take(step, ledger)?;
        let Next { mut record, mut changes } = next;
        if !changes.is_empty() || record.shown() != self.shown() {
            changes.push(Change::Epoch);
        }
        record.version += 1;
        Ok((record, changes))
    }
}

/// A record that is being changed.
struct Next {
    record: Record,
    changes: Vec<Change>,
}

impl Next {
    fn take(&mut self, step: &Step, ledger: &mut dyn Ledger) -> Result<()> {
        use ReshardPhase::*;
        let record = &mut self.record;
        match step {
            Step::Turn => {
                record.at(&[Planned])?;
                if let Some(why) = ledger.comes_first(&record.groups(Which::Old))? {
                    return Err(later(&why));
                }
                self.place(ledger)
            }
            Step::Placed => {
                record.at(&[Placing])?;
                record.tries += 1;
                record.phase = Imaging;
                Ok(())
            }
            Step::Still { held } => {
                record.at(&[Imaging])?;
                if !ledger.is_quiet(record.keyspace, &record.groups(Which::Old))? {
                    return Err(later("a change of the schema or of replicas is under way"));
                }
                record.hold(Which::Old, held)?;
                record.still = true;
                Ok(())
            }
            Step::GiveWay => {
                record.at(&[Imaging])?;
                // What was begun may be of several schemas.
                record.tries += 1;
                record.still = false;
                record.held.clear();
                Ok(())
            }
            Step::Imaged => {
                record.at(&[Imaging])?;
                if !record.still {
                    return Err(stale("its images may be of several schemas"));
                }
                record.still = false;
                record.phase = Copying;
                Ok(())
            }
            Step::Copied => record.go(Copying, Founding),
            Step::Place { group, replicas } => {
                record.at(&[Planned, Placing, Imaging, Copying, Founding, Spreading])?;
                let part = record.new.parts.iter_mut().find(|part| part.group == *group);
                part.ok_or_else(|| stale("its new shards have other groups by now"))?
                    .replicas
                    .clone_from(replicas);
                Ok(())
            }
            Step::Founded => {
                record.go(Founding, Spreading)?;
                // What became of earlier copies is of no interest any more.
                record.message.clear();
                self.changes.push(Change::Put(record.ids(Which::New)));
                Ok(())
            }
            Step::Spread => record.go(Spreading, CatchingUp),
            Step::CaughtUp => {
                let next = if record.options.verify { Verifying } else { record.resting() };
                record.go(CatchingUp, next)
            }
            Step::Verified => record.go(Verifying, record.resting()),
            Step::Builder(node) => {
                record.at(&[Placing, Imaging, Copying, Founding])?;
                record.message = format!("node {} was lost, and node {node} builds", record.builder);
                record.builder = *node;
                self.anew(ledger)
            }
            Step::Anew(why) => {
                record.at(&[Imaging, Copying, Founding]).or_else(|_| record.at_copy())?;
                record.message = why.clone();
                self.anew(ledger)
            }
            Step::Overrun(why) => {
                record.at_copy()?;
                record.message = why.clone();
                record.overruns += 1;
                if record.overruns >= OVERRUNS && record.paused.is_none() {
                    record.paused = Some(Paused { cause: PauseCause::Copy, why: why.clone() });
                }
                self.anew(ledger)
            }
            Step::OneWay(why) => {
                record.at(&[Verifying, Switched])?;
                if record.serves == Which::Old || record.one_way.is_some() {
                    return Err(stale("it hasn't switched"));
                }
                record.phase = Switched;
                record.one_way = Some(why.clone());
                record.wanted = false;
                record.held.clear();
                Ok(())
            }
            Step::Begin { held } => self.begin(held, ledger),
            Step::Decide { reached, ended, pause } => self.decide(reached, *ended, *pause),
            Step::GiveUp(why) => {
                record.at(&[Switching])?;
                record.message = format!("attempt {} was given up: {why}", record.attempt);
                record.given_up += 1;
                record.phase = Undoing;
                Ok(())
            }
            Step::Undone => self.undone(),
            Step::Pause(cause, why) => {
                if record.paused.is_some() {
                    return Err(stale("it rests already"));
                }
                record.pause(*cause, why.clone());
                Ok(())
            }
            Step::Kept => self.complete(),
            Step::End => {
                record.at(&[Completing, Cancelling])?;
                record.held.clear();
                record.phase = Ended;
                Ok(())
            }
            Step::Dropped => {
                if record.is_attempting() {
                    return Err(stale("an attempt is under way"));
                }
                if record.phase < Completing {
                    record.failed = Some("its keyspace was dropped".to_owned());
                    self.cancelling(false);
                }
                Ok(())
            }
            Step::Command(command) => self.command(*command, ledger),
        }
    }

    /// Its groups are placed, and then copied.
    fn place(&mut self, ledger: &dyn Ledger) -> Result<()> {
        let record = &mut self.record;
        let lacking = ledger.lacking(record.builder, &record.groups(Which::Old))?;
        for lent in lacking.into_iter().map(|group| (group, record.builder)) {
            if !record.lent.contains(&lent) {
                record.lent.push(lent);
            }
        }
        record.phase = ReshardPhase::Placing;
        Ok(())
    }

    /// Nothing that was copied is of use any more.
    fn anew(&mut self, ledger: &mut dyn Ledger) -> Result<()> {
        let record = &mut self.record;
        if record.has_founded() {
            self.changes.push(Change::Drop(record.ids(Which::New)));
        }
        if record.phase >= ReshardPhase::Founding {
            // A group is founded once, and an id serves once.
            for part in &mut record.new.parts {
                part.shard = ledger.shard()?;
                part.group = ledger.group()?;
                part.incarnation.0 += u32::from(record.new.served);
                (part.first, part.last) = (LogIndex(0), LogIndex(0));
            }
            record.new.served = false;
        }
        record.still = false;
        record.held.clear();
        self.place(ledger)
    }

    fn begin(&mut self, held: &[(GroupId, LogIndex)], ledger: &mut dyn Ledger) -> Result<()> {
        let record = &mut self.record;
        record.at(&[record.resting()])?;
        if !record.wanted || record.paused.is_some() || record.one_way.is_some() {
            return Err(stale("it isn't to switch"));
        }
        let groups = [record.groups(Which::Old), record.groups(Which::New)].concat();
        if !ledger.is_quiet(record.keyspace, &groups)? {
            return Err(later("a change of the schema or of replicas is under way"));
        }
        record.attempt = Attempt(record.attempt.0 + 1);
        let taking = record.serves.other();
        record.hold(taking, held)?;
        if record.side(taking).served {
            let side = record.side_mut(taking);
            for part in &mut side.parts {
                let from = part.shard;
                part.shard = ledger.shard()?;
                part.incarnation.0 += 1;
                (part.first, part.last) = (LogIndex(0), LogIndex(0));
                self.changes.push(Change::Rename { from, to: part.shard, incarnation: part.incarnation });
            }
            side.served = false;
        }
        record.message.clear();
        record.phase = ReshardPhase::Switching;
        Ok(())
    }

    fn decide(&mut self, reached: &[(ShardId, Reached)], ended: u32, pause: Duration) -> Result<()> {
        let record = &mut self.record;
        record.at(&[ReshardPhase::Switching])?;
        let ends = ends(record, reached).map_err(WireError::internal)?;
        let (serving, taking) = (record.serves, record.serves.other());
        let firsts: BTreeMap<_, _> = reached.iter().map(|(shard, reached)| (*shard, reached.first)).collect();
        for part in &mut record.side_mut(taking).parts {
            part.first = firsts[&part.shard];
            self.changes.push(Change::First(part.shard, part.first));
        }
        let heirs = record.side(taking).parts.clone();
        for part in &mut record.side_mut(serving).parts {
            part.last = ends[&part.shard];
            let heirs = heirs.iter().filter(|heir| heir.range.overlaps(&part.range));
            let successors = heirs.map(|heir| (heir.shard, heir.first)).collect();
            self.changes.push(Change::Retire(Retired { shard: part.shard, last: part.last, successors }));
        }
        self.changes.push(Change::Serve { instead_of: record.ids(serving), shards: record.ids(taking) });
        record.side_mut(taking).served = true;
        record.serves = taking;
        record.phase = record.resting();
        record.rest();
        record.wanted = false;
        record.given_up = 0;
        record.counts.switches += 1;
        record.counts.ended += ended;
        record.counts.pauses.push(pause);
        Ok(())
    }

    fn undone(&mut self) -> Result<()> {
        let record = &mut self.record;
        record.at(&[ReshardPhase::Undoing])?;
        record.phase = record.resting();
        record.rest();
        if record.given_up >= ATTEMPTS {
            record.wanted = false;
        }
        if record.cancel {
            self.cancelling(true);
        }
        Ok(())
    }

    fn cancelling(&mut self, drops: bool) {
        let record = &mut self.record;
        if drops && record.has_founded() {
            self.changes.push(Change::Drop(record.ids(Which::New)));
        }
        if !drops {
            record.lent.clear();
        }
        record.cancel = true;
        record.still = false;
        record.wanted = false;
        record.paused = None;
        record.held.clear();
        record.phase = ReshardPhase::Cancelling;
    }

    fn complete(&mut self) -> Result<()> {
        let record = &mut self.record;
        record.at(&[ReshardPhase::Switched])?;
        self.changes.push(Change::Drop(record.ids(Which::Old)));
        record.wanted = false;
        record.paused = None;
        record.held.clear();
        record.phase = ReshardPhase::Completing;
        Ok(())
    }

    fn command(&mut self, command: ReshardCommand, ledger: &mut dyn Ledger) -> Result<()> {
        use ReshardPhase::*;
        let record = &mut self.record;
        let id = record.id;
        let refused = |record: &Record, done: &str, hint: String| {
            let message = format!("reshard {id} can't be {done}: {}", record.state());
            Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).with_hint(hint))
        };
        let status = || format!("\"shoal reshard status {id}\" shows how far it is.");
        let resume =
            || format!("\"shoal reshard resume {id}\" has it go on, \"shoal reshard cancel {id}\" ends it.");
        match (command, record.phase) {
            (ReshardCommand::Switch, Switching | Undoing) if record.serves == Which::Old => {
                record.given_up = 0;
                Ok(())
            }
            (ReshardCommand::Switch, Switched) => {
                record.stay();
                Ok(())
            }
            (ReshardCommand::Switch, phase) if phase <= Ready && record.paused.is_some() => {
                refused(record, "switched", resume())
            }
            (ReshardCommand::Switch, Ready) => {
                (record.wanted, record.given_up) = (true, 0);
                Ok(())
            }
            (ReshardCommand::Switch, _) => refused(record, "switched", status()),
            (ReshardCommand::Reverse, Switching | Undoing) if record.serves == Which::New => {
                record.given_up = 0;
                Ok(())
            }
            (ReshardCommand::Reverse, Ready) if record.counts.switches > 0 => {
                record.stay();
                Ok(())
            }
            (ReshardCommand::Reverse, Switched) if record.one_way.is_some() => {
                let hint = format!("\"shoal reshard complete {id}\" drops the old shards.");
                refused(record, "reversed", hint)
            }
            (ReshardCommand::Reverse, Switched) if record.paused.is_some() => {
                refused(record, "reversed", format!("\"shoal reshard resume {id}\" has it go on."))
            }
            (ReshardCommand::Reverse, Switched) => {
                (record.wanted, record.given_up) = (true, 0);
                Ok(())
            }
            (ReshardCommand::Reverse, _) => refused(record, "reversed", status()),
            (ReshardCommand::Complete, Switched) => self.complete(),
            (ReshardCommand::Complete, Completing) => Ok(()),
            (ReshardCommand::Complete, Ended) if record.failed.is_none() => Ok(()),
            (ReshardCommand::Complete, _) => refused(record, "completed", status()),
            (ReshardCommand::Cancel, Cancelling) => Ok(()),
            (ReshardCommand::Cancel, Ended) if record.cancel => Ok(()),
            (ReshardCommand::Cancel, Completing | Ended) => refused(record, "cancelled", status()),
            (ReshardCommand::Cancel, _) if record.serves == Which::New => {
                let hint = format!(
                    "\"shoal reshard reverse {id}\" goes back, \"shoal reshard complete {id}\" drops the old shards."
                );
                refused(record, "cancelled", hint)
            }
            (ReshardCommand::Cancel, _) => {
                record.cancel = true;
                record.failed = Some("it was cancelled".to_owned());
                match record.phase {
                    // First what it has sealed is opened.
                    Switching => self.take(&Step::GiveUp("it is cancelled".to_owned()), ledger),
                    Undoing => Ok(()),
                    _ => {
                        self.cancelling(true);
                        Ok(())
                    }
                }
            }
            (ReshardCommand::Pause, Completing | Cancelling | Ended) => refused(record, "paused", status()),
            (ReshardCommand::Pause, _) => {
                if record.paused.is_none() {
                    record.pause(PauseCause::Admin, "an admin has paused it".to_owned());
                }
                Ok(())
            }
            (ReshardCommand::Resume, _) => {
                record.message.clear();
                let Some(paused) = record.paused.take() else { return Ok(()) };
                if paused.cause == PauseCause::Copy {
                    record.overruns = 0;
                    if record.at_copy().is_ok() {
                        return self.anew(ledger);
                    }
                }
                Ok(())
            }
            (ReshardCommand::Verify, Verifying) => Ok(()),
            (ReshardCommand::Verify, Ready | Switched) if record.one_way.is_none() => {
                record.phase = Verifying;
                Ok(())
            }
            (ReshardCommand::Verify, _) => refused(record, "verified", status()),
        }
    }
}

impl Record {
    fn at(&self, phases: &[ReshardPhase]) -> Result<()> {
        if phases.contains(&self.phase) { Ok(()) } else { Err(stale(&self.state())) }
    }

    /// Where another copy can be made of the shards that serve.
    fn at_copy(&self) -> Result<()> {
        use ReshardPhase::*;
        self.at(&[Spreading, CatchingUp, Verifying, Ready])?;
        if self.serves == Which::New { Err(stale("the new shards serve")) } else { Ok(()) }
    }

    fn go(&mut self, from: ReshardPhase, to: ReshardPhase) -> Result<()> {
        self.at(&[from])?;
        self.phase = to;
        Ok(())
    }

    /// What it does, in words.
    fn state(&self) -> String {
        match &self.paused {
            _ if self.one_way.is_some() => "there is no way back any more".to_owned(),
            Some(paused) => format!("it is {}, and rests: {}", self.phase, paused.why),
            None => format!("it is {}", self.phase),
        }
    }

    fn pause(&mut self, cause: PauseCause, why: String) {
        // Nobody waits for what may rest for days.
        if self.phase == ReshardPhase::Imaging && self.still {
            self.still = false;
            self.tries += 1;
            self.held.clear();
        }
        self.paused = Some(Paused { cause, why });
    }

    /// The other side isn't to serve any more.
    fn stay(&mut self) {
        if self.wanted {
            // Logs may be held already for the attempt that doesn't come.
            self.hold = self.next_hold();
            self.wanted = false;
        }
    }

    /// The attempt is over, and with it what only it needed.
    fn rest(&mut self) {
        let read = self.groups(self.serves);
        self.held.retain(|group, _| read.contains(group));
    }

    /// The groups of a side.
    pub(crate) fn groups(&self, which: Which) -> Vec<GroupId> {
        self.side(which).parts.iter().map(|part| part.group).collect()
    }

    /// The shards of a side.
    pub(crate) fn ids(&self, which: Which) -> Vec<ShardId> {
        self.side(which).parts.iter().map(|part| part.shard).collect()
    }

    fn hold(&mut self, which: Which, held: &[(GroupId, LogIndex)]) -> Result<()> {
        self.hold = self.next_hold();
        for group in self.groups(which) {
            let from = held.iter().find(|(of, _)| *of == group).map(|(_, from)| *from);
            let from = from.ok_or_else(|| WireError::internal(format!("group {group} isn't held")))?;
            self.held.insert(group, (self.hold, from));
        }
        Ok(())
    }
}

/// The last entry of each source, if all targets have reached the ends of theirs, and the same ones.
pub(crate) fn ends(
    record: &Record,
    reached: &[(ShardId, Reached)],
) -> std::result::Result<BTreeMap<ShardId, LogIndex>, String> {
    let mut ends = BTreeMap::new();
    for target in record.targets() {
        let found = reached.iter().find(|(shard, _)| *shard == target.shard);
        let Some((_, reached)) = found else { return Err(format!("shard {} has nothing", target.shard)) };
        let sources: BTreeMap<_, _> = reached.sources.iter().copied().collect();
        for source in feeding(record.sources(), target) {
            let Some(last) = sources.get(&source.shard) else {
                return Err(format!("shard {} has nothing of shard {}", target.shard, source.shard));
            };
            let known = *ends.entry(source.shard).or_insert(*last);
            if known != *last {
                return Err(format!("shard {} was said to end at {known}, and at {last}", source.shard));
            }
        }
    }
    Ok(ends)
}

fn stale(why: &str) -> WireError {
    let message = format!("a reshard's step comes too late: {why}");
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

fn later(why: &str) -> WireError {
    WireError::new(SqlState::OBJECT_IN_USE, why).with_retry(Retry::Later)
}
