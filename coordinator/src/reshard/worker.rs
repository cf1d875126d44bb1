//! Going on with one reshard, on the coordinator's leader.
//!
//! In comes its record. Its machine says what is to be asked for, and which step is due: the questions go out side by side, their
//! answers become events, and each step is written before anything else is asked. Nothing is kept that the next leader
//! wouldn't find out by asking. Two at once do no harm: a step is taken on the record that it was due on, or not at all.

use super::CATCH_UP;
use super::admit::Place;
use super::asking::{self, Asker, hold_of};
use super::comparing::Comparing;
use super::machine::{Ask, Event, Machine};
use super::record::{Hold, Record, Which, feeding};
use super::step::Step;
use super::tables;
use crate::reach::Pause;
use crate::repair::Scene;
use crate::service::Core;
use crate::store::Store;
use proto::services::{Consistency, LogHold, Progress, ReshardPhase};
use proto::{GroupId, LogIndex, NodeId, ReshardId, Retry, ShardId, WireError, machine};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinSet};

/// How often it is looked how time passes; more often while transactions may wait for it.
const TICK: Duration = Duration::from_millis(200);
const BUSY_TICK: Duration = Duration::from_millis(20);
/// How often the record is read again that somebody else may have written.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How soon a step is tried again that others are in the way of.
const STEP_AGAIN: Duration = Duration::from_millis(200);
/// How often holds move up behind the flows.
const MOVE_EVERY: Duration = Duration::from_secs(10);
/// How soon it is gone on with after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, WireError>;

/// What this leader knows of a reshard beside its record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Since when it has been in its phase.
    pub(crate) since: Option<(ReshardPhase, Instant)>,
    /// How far each of those that take over is behind.
    pub(crate) lag: BTreeMap<ShardId, Duration>,
    /// What the builder has done.
    pub(crate) built: Option<Progress>,
    pub(crate) rows: Option<u64>,
    /// How far comparing is, or was before it came to where it rests.
    pub(crate) comparing: Option<Comparing>,
    /// What is in the way, by what it is in the way of.
    obstacles: BTreeMap<Ask, String>,
    /// What a step waits for.
    waits: Option<String>,
}

impl Seen {
    /// What it waits for, for people.
    pub(crate) fn waits_for(&self) -> Option<&String> {
        self.waits.as_ref().or_else(|| self.obstacles.values().next())
    }
}

/// Goes on with a reshard until it has ended, or as long as this node leads. Whatever goes wrong in it ends nothing else.
pub(crate) async fn run(core: Arc<Core>, id: ReshardId) {
    loop {
        let mut working = JoinSet::new();
        working.spawn(lead(Arc::clone(&core), id));
        match working.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(reshard = %id, %error, "what goes on with a reshard has failed, and begins anew");
            }
            _ => break,
        }
        tokio::time::sleep(AFTER_PANIC).await;
    }
    core.reshards.lock().remove(&id);
}

async fn lead(core: Arc<Core>, id: ReshardId) {
    let mut pause = Pause::default();
    while core.replica.is_leader() {
        let worker = Worker { core: Arc::clone(&core), id };
        match worker.go_on().await {
            Ok(()) => return,
            Err(error) => {
                tracing::info!(reshard = %id, %error, "a reshard is held up");
                pause.wait().await;
            }
        }
    }
}

/// Goes on with one reshard.
struct Worker {
    core: Arc<Core>,
    id: ReshardId,
}

/// Something that was asked for.
enum Asked {
    /// It is on its way.
    Open(AbortHandle),
    /// It may be asked for again from then on.
    From(Instant),
}

/// What is on its way.
#[derive(Default)]
struct Questions {
    running: JoinSet<(Option<Ask>, Result<Option<Event>>)>,
    asked: BTreeMap<Ask, Asked>,
    /// What those that take over have of each source.
    positions: BTreeMap<(ShardId, ShardId), LogIndex>,
    /// To where holds were moved.
    moved: BTreeMap<(GroupId, Hold), LogIndex>,
}

/// When what was done last.
struct Clock {
    passed: Instant,
    read: Instant,
    moved: Instant,
    looked: Instant,
    /// No step is tried before.
    step: Instant,
    /// When the attempt began that is under way, when all was sealed, and when all had adopted, as far as this leader knows.
    attempt: [Option<Instant>; 3],
}

impl Clock {
    /// How far an attempt is.
    fn look(&mut self, machine: &Machine, now: Instant) {
        if machine.record().phase != ReshardPhase::Switching {
            self.attempt = [None; 3];
            return;
        }
        let sealed = machine.is_sealed();
        for (at, come) in self.attempt.iter_mut().zip([true, sealed, sealed && machine.has_reached()]) {
            if come {
                at.get_or_insert(now);
            }
        }
    }

    /// How long the steps of a decided attempt took.
    fn steps(&self, now: Instant) -> [Duration; 3] {
        let [begun, sealed, reached] = self.attempt.map(|at| at.unwrap_or(now));
        [(begun, sealed), (sealed, reached), (reached, now)]
            .map(|(from, to)| to.saturating_duration_since(from))
    }
}

impl Worker {
    async fn go_on(&self) -> Result<()> {
        let mut told = self.core.told.subscribe();
        let Some(record) = self.record().await? else { return Ok(()) };
        let mut machine = Machine::take_over(record, CATCH_UP);
        let mut questions = Questions::default();
        let now = machine::now();
        let mut clock =
            Clock { passed: now, read: now, moved: now, looked: now, step: now, attempt: [None; 3] };
        loop {
            let now = machine::now();
            machine.hear(Event::Passed(now.saturating_duration_since(clock.passed)));
            clock.passed = now;
            if now.saturating_duration_since(clock.read) >= READ_EVERY {
                clock.read = now;
                self.read(&mut machine).await?;
            }
            if now.saturating_duration_since(clock.looked) >= READ_EVERY {
                clock.looked = now;
                self.look(&mut machine, now);
            }
            clock.look(&machine, now);
            self.step(&mut machine, &mut clock).await?;
            self.note(machine.record(), now);
            if machine.record().phase == ReshardPhase::Ended {
                return Ok(());
            }
            let asker = Asker { core: Arc::clone(&self.core), record: Arc::new(machine.record().clone()) };
            questions.want(machine.asks(), &asker, now);
            if now.saturating_duration_since(clock.moved) >= MOVE_EVERY {
                clock.moved = now;
                questions.move_holds(&asker);
            }
            self.core
                .reshards
                .lock()
                .entry(self.id)
                .or_default()
                .obstacles
                .retain(|ask, _| questions.asked.contains_key(ask));
            let tick =
                if machine.record().is_attempting() || machine.record().wanted { BUSY_TICK } else { TICK };
            tokio::select! {
                biased;
                Some(answered) = questions.running.join_next() => match answered {
                    Ok((ask, answer)) => self.answered(&mut machine, &mut questions, ask, answer),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    // Nobody wants to know any more.
                    Err(_) => {}
                },
                changed = told.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.read(&mut machine).await?;
                }
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    async fn record(&self) -> Result<Option<Record>> {
        let deadline = machine::now() + self.core.config.write_timeout;
        let snapshot = self.core.replica.snapshot(Consistency::Strong, deadline).await?;
        let record = Store(snapshot.connection()).reshard(self.id)?;
        Ok(record.filter(|record| record.phase != ReshardPhase::Ended))
    }

    /// Somebody else may have written the record.
    async fn read(&self, machine: &mut Machine) -> Result<()> {
        let deadline = machine::now() + self.core.config.write_timeout;
        let snapshot = self.core.replica.snapshot(Consistency::Strong, deadline).await?;
        let record = Store(snapshot.connection()).reshard(self.id)?;
        if let Some(record) = record.filter(|record| record.version > machine.record().version) {
            machine.written(record);
        }
        Ok(())
    }

    /// Writes the steps that are due, one after the other.
    async fn step(&self, machine: &mut Machine, clock: &mut Clock) -> Result<()> {
        while let Some(step) = machine.due() {
            if machine::now() < clock.step {
                return Ok(());
            }
            let (id, due, version) = (self.id, step.clone(), machine.record().version);
            let take = move |store: Store<'_>| {
                tables::take(store, id, &due, Some(version)).map(|record| record.bytes().into())
            };
            match self.core.write(take).await {
                Ok(bytes) => {
                    match step {
                        Step::Decide { .. } => self.core.metrics.decided(clock.steps(machine::now())),
                        Step::GiveUp(_) => self.core.metrics.given_up(),
                        _ => {}
                    }
                    let before = machine.record().phase;
                    machine.written(Record::read(&bytes)?);
                    let (phase, message) = (machine.record().phase, &machine.record().message);
                    tracing::info!(reshard = %id, %phase, message, "a reshard was {before}");
                    self.core.reshards.lock().entry(id).or_default().waits = None;
                    self.core.state.refresh(&self.core.replica).await?;
                    // What has waited for it may go on.
                    self.core.count_end();
                }
                Err(error) if matches!(error.retry, Retry::NotLeader(_)) => return Err(error),
                Err(error) => {
                    clock.step = machine::now() + STEP_AGAIN;
                    tracing::debug!(reshard = %id, %error, ?step, "a reshard's step isn't taken");
                    if error.retry == Retry::Later {
                        let mut seen = self.core.reshards.lock();
                        seen.entry(id).or_default().waits = Some(error.message);
                    }
                    self.read(machine).await?;
                }
            }
        }
        Ok(())
    }

    fn answered(
        &self,
        machine: &mut Machine,
        questions: &mut Questions,
        ask: Option<Ask>,
        answer: Result<Option<Event>>,
    ) {
        let Some(ask) = ask else { return };
        questions.asked.insert(ask.clone(), Asked::From(machine::now() + asking::pause(&ask)));
        let mut seen = self.core.reshards.lock();
        let seen = seen.entry(self.id).or_default();
        match answer {
            Ok(event) => {
                seen.obstacles.remove(&ask);
                if let Some(Event::Flows { shard, flows }) = &event {
                    for flow in flows {
                        questions.positions.insert((*shard, flow.source), flow.position);
                    }
                    seen.lag.insert(*shard, flows.iter().map(|flow| flow.lag).max().unwrap_or_default());
                }
                if let Some(Event::Whole(Some(lacks))) = &event {
                    seen.obstacles.insert(ask, lacks.clone());
                }
                if let Some(event) = event {
                    machine.hear(event);
                }
            }
            Err(error) => {
                tracing::debug!(reshard = %self.id, %error, ?ask, "a reshard is held up");
                seen.obstacles.insert(ask, error.message);
            }
        }
    }

    /// Since when it is in its phase, for those who ask.
    fn note(&self, record: &Record, now: Instant) {
        let mut seen = self.core.reshards.lock();
        let seen = seen.entry(self.id).or_default();
        if seen.since.is_none_or(|(phase, _)| phase != record.phase) {
            seen.since = Some((record.phase, now));
            (seen.built, seen.rows) = (None, None);
            if record.phase != record.resting() {
                seen.comparing = None;
            }
        }
        if record.paused.is_some() {
            seen.comparing = None;
        }
        let targets: Vec<_> = record.targets().iter().map(|part| part.shard).collect();
        seen.lag.retain(|shard, _| record.flows() && targets.contains(shard));
    }

    /// What nodes report, and whom nobody has heard of for long.
    fn look(&self, machine: &mut Machine, now: Instant) {
        let state = self.core.state.subscribe().borrow().clone();
        let known = self.core.known(now);
        let scene = Scene { topology: &state.topology, vitals: &known.vitals, config: &known.config, now };
        let record = machine.record().clone();
        let place = Place { scene, leaders: &state.leaders, reshards: &[] };
        let is_lost = |node: NodeId| known.vitals.silence(node, now) >= self.core.config.replace_after;
        let builder = state.topology.nodes.get(&record.builder);
        let is_drained = builder.is_some_and(|node| node.draining);
        if is_lost(record.builder) || is_drained {
            let another = place.builder(&record.groups(Which::Old), Some(record.builder));
            // Who is drained goes on if nobody else can.
            if another.is_some() || is_lost(record.builder) {
                machine.hear(Event::BuilderLost { node: record.builder, another });
            }
        }
        if record.phase <= ReshardPhase::Spreading {
            for part in &record.new.parts {
                if let Some(replicas) = place.again(&record.new.parts, part) {
                    machine.hear(Event::Misplaced { group: part.group, replicas });
                }
            }
        }
        for part in record.targets() {
            let shard = state.topology.shards.get(&part.shard);
            let lost = |shard: &&proto::topology::Shard| {
                let lost = shard.replicas.iter().filter(|node| is_lost(**node)).count();
                lost > (shard.replicas.len() - 1) / 2
            };
            if shard.filter(lost).is_some() {
                machine.hear(Event::GroupLost { group: part.group });
            }
        }
        for status in known.vitals.running(self.core.config.silent_after, now) {
            // Holds of before are about to end.
            let Some((hold, _)) = record.held.get(&status.group) else { continue };
            let own = |held: &&LogHold| hold_of(&held.name) == Some((self.id, *hold));
            if status.holds.iter().find(own).is_some_and(|held| held.bytes > self.core.config.reshard_log) {
                machine.hear(Event::Overrun { group: status.group });
            }
        }
    }
}

impl Questions {
    /// Asks for these, and for nothing else any more.
    fn want(&mut self, asks: Vec<Ask>, asker: &Asker, now: Instant) {
        self.asked.retain(|ask, asked| {
            let wanted = asks.contains(ask);
            if let (false, Asked::Open(task)) = (wanted, asked) {
                task.abort();
            }
            wanted
        });
        for ask in asks {
            let waits = match self.asked.get(&ask) {
                Some(Asked::Open(_)) => true,
                Some(Asked::From(from)) => now < *from,
                None => false,
            };
            if !waits {
                let (asker, asked) = (asker.clone(), ask.clone());
                let task = self.running.spawn(async move {
                    let answer = asker.ask(&asked).await;
                    (Some(asked), answer)
                });
                self.asked.insert(ask, Asked::Open(task));
            }
        }
    }

    /// Lets go of what all that take over have.
    fn move_holds(&mut self, asker: &Asker) {
        let record = &asker.record;
        if !record.flows() || record.is_attempting() {
            return;
        }
        for source in record.sources() {
            let Some((hold, from)) = record.held.get(&source.group).copied() else { continue };
            let targets = record
                .targets()
                .iter()
                .filter(|target| feeding(std::slice::from_ref(source), target).next().is_some());
            let had = targets.map(|target| self.positions.get(&(target.shard, source.shard)).copied());
            let Some(Some(had)) = had.min() else { continue };
            let to = LogIndex(had.0 + 1);
            let moved = self.moved.entry((source.group, hold)).or_insert(from);
            if to > *moved {
                *moved = to;
                let (asker, group) = (asker.clone(), source.group);
                self.running.spawn(async move {
                    let moved = tokio::time::timeout(MOVE_EVERY, asker.set_hold(group, hold, Some(to))).await;
                    if let Ok(Err(error)) = moved {
                        tracing::debug!(%group, %error, "a hold stays where it is");
                    }
                    (None, Ok(None))
                });
            }
        }
    }
}
