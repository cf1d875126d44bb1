//! The admin: has shards split and merged, brought back, and given up, while clients work and faults strike.
//!
//! It lives among the clients, and knows the coordinators alone. What it wishes for is drawn from the seed and from what it
//! is told of reshards. When everybody is to end it has what it began brought to an end, too. What became of the rows the
//! clients' history says.

use super::super::random::Random;
use super::clients::{Shared, lock};
use coordinator::Coordinator;
use proto::services::{
    BoxFuture, CoordinatorService, ReshardCommand, ReshardCourse, ReshardOptions, ReshardPhase,
    ReshardStatus, ReshardWish, ServiceResult, SplitAt,
};
use proto::topology::{Shard, Topology};
use proto::{Attempt, KeyRange, RequestId, ReshardId, Retry, RouterIncarnation, ShardId, WireError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long it waits between two things that it does, at most.
const THINK: u64 = 800;
/// How often it looks, at most, whether a switch that is to come has begun.
const LOOK: u64 = 12;
/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits until it asks again.
const PAUSE: Duration = Duration::from_millis(100);
/// More shards aren't made.
const MOST_SHARDS: usize = 6;
/// Who wishes, as its wishes are named.
const NAME: RouterIncarnation = RouterIncarnation(0xad);

/// Somebody who reshards.
pub struct Admin {
    shared: Arc<Shared>,
    random: Random,
    wishes: u64,
    /// The attempt that was seen last.
    seen: (ReshardId, Attempt),
    /// Whether a switch is to come soon.
    is_near: bool,
}

impl Admin {
    /// One who hasn't done anything.
    pub fn new(shared: Arc<Shared>) -> Self {
        let random = Random::stream(shared.seed, "admin", 0);
        Self { shared, random, wishes: 0, seen: (ReshardId(0), Attempt(0)), is_near: false }
    }

    /// Works until everybody ends, and until nothing that it has begun is left.
    pub async fn work(mut self) {
        loop {
            let ends = self.shared.ends.load(Ordering::Relaxed);
            let think = if ends { THINK / 4 } else { THINK };
            let think = self.random.within(0..think);
            let Some(reshards) = self.look_for(think).await else { continue };
            let open = reshards.iter().find(|status| status.phase != ReshardPhase::Ended).cloned();
            match open {
                Some(status) if ends => self.finish(&status).await,
                None if ends => return self.sum_up(&reshards),
                Some(status) => self.go_on(&status).await,
                None => self.begin().await,
            }
        }
    }

    /// Waits for so many milliseconds, and looks how far all reshards are: more often while a switch is near.
    async fn look_for(&mut self, mut think: u64) -> Option<Vec<ReshardStatus>> {
        loop {
            let pause = if self.is_near { think.min(self.random.within(2..LOOK)) } else { think };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            think -= pause;
            let reshards = self.ask("reshards", |c| Box::pin(async move { c.reshards().await })).await?;
            let was_near = self.is_near;
            self.notice(&reshards);
            if self.is_near && !was_near {
                self.find_groups().await;
            }
            if think == 0 {
                return Some(reshards);
            }
        }
    }

    /// Tells the world of a switch that has begun, and clients whether one is near.
    fn notice(&mut self, reshards: &[ReshardStatus]) {
        use ReshardPhase::{Ended, Ready, Switched, Switching};
        let open = reshards.iter().find(|status| status.phase != Ended);
        if let Some(ReshardStatus { id, attempt, phase: Switching, .. }) = open
            && self.seen != (*id, *attempt)
        {
            self.seen = (*id, *attempt);
            self.shared.has_switch.store(true, Ordering::Relaxed);
        }
        self.is_near = open.is_some_and(|status| match status.phase {
            Switching => true,
            Ready | Switched => status.wanted && status.paused.is_none(),
            _ => false,
        });
        self.shared.is_calm.store(!self.is_near, Ordering::Relaxed);
    }

    /// Tells the world whom the next switch is about.
    async fn find_groups(&self) {
        let status = self.ask("status", |c| Box::pin(async move { c.status().await }));
        let Some(topology) = status.await.map(|status| status.state.topology) else { return };
        let flows = topology.reshards.iter().flat_map(|reshard| &reshard.flows);
        let shards: BTreeSet<ShardId> = flows.flat_map(|flow| [flow.source, flow.target]).collect();
        let groups = shards.iter().filter_map(|shard| topology.shards.get(shard).map(|shard| shard.group));
        *lock(&self.shared.switching) = groups.collect();
    }

    /// Counts what was tried.
    fn sum_up(&self, reshards: &[ReshardStatus]) {
        for status in reshards {
            (0..status.switches).for_each(|_| self.shared.count("switches decided"));
            (status.switches..status.attempt.0).for_each(|_| self.shared.count("switches given up"));
            (0..status.ended).for_each(|_| self.shared.count("transactions ended for a switch"));
        }
    }

    /// Asks whoever leads the coordinator, until there is an answer that isn't about who that is.
    async fn ask<T: Send + 'static>(
        &self,
        what: &str,
        ask: impl Fn(Arc<Coordinator>) -> BoxFuture<'static, ServiceResult<T>>,
    ) -> Option<T> {
        loop {
            let doors: Vec<_> = {
                let doors = lock(&self.shared.doors);
                doors.values().map(|door| (door.coordinator.clone(), door.tasks.clone())).collect()
            };
            for (coordinator, tasks) in doors {
                let asked = tasks.spawn(ask(coordinator));
                // A node that dies answers nothing.
                let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await else { continue };
                match answer {
                    Ok(answer) => return Some(answer),
                    Err(error) if is_elsewhere(&error) => {}
                    Err(error) => {
                        self.refused(what, &error);
                        return None;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn refused(&self, what: &str, error: &WireError) {
        let code = error.sqlstate.as_str();
        self.shared.note(format!("admin: {what}: {code} {}", error.message));
        self.shared.count(&format!("refusals of the admin {code}"));
        if code.starts_with("XX") || code.starts_with("58") {
            self.shared.fail(format!("the admin's {what} met {code}: {}", error.message));
        }
    }

    async fn begin(&mut self) {
        let Some(status) = self.ask("status", |c| Box::pin(async move { c.status().await })).await else {
            return;
        };
        let Some(course) = self.draw(&status.state.topology) else { return };
        self.wishes += 1;
        // With little time blocks are ended that only wait for somebody.
        let is_hasty = self.random.permille(400);
        let drain = if is_hasty { self.random.within(10..60) } else { self.random.within(100..2_000) };
        let wish = ReshardWish {
            request: RequestId { router: NAME, sequence: self.wishes },
            course,
            options: ReshardOptions {
                auto: self.random.permille(700),
                verify: self.random.permille(800),
                drain: Duration::from_millis(drain),
                keep: *self
                    .random
                    .pick(&[Some(Duration::ZERO), Some(Duration::from_secs(2)), None, None, None])
                    .expect("there are some"),
                ..ReshardOptions::default()
            },
            dry_run: self.random.permille(50),
        };
        self.shared.note(format!("admin: wishes for {:?}", wish.course));
        let wished = self.ask("wish", move |c| {
            let wish = wish.clone();
            Box::pin(async move { c.reshard(wish).await })
        });
        if let Some(plan) = wished.await {
            self.shared.note(format!("admin: {:?}: {}", plan.reshard, plan.what));
            self.shared.count("reshards begun");
        }
    }

    /// What is to become of which shards of `main`.
    fn draw(&mut self, topology: &Topology) -> Option<ReshardCourse> {
        let keyspace = topology.keyspace_named("main")?;
        let shards: Vec<&Shard> =
            keyspace.shards.iter().filter_map(|shard| topology.shards.get(shard)).collect();
        let splits = shards.len() < 2 || shards.len() < MOST_SHARDS && self.random.permille(550);
        if !splits {
            let first = self.random.within(0..shards.len() as u64 - 1) as usize;
            let all = shards.len() > 2 && self.random.permille(200);
            let some = if all { &shards[..] } else { &shards[first..first + 2] };
            let shards = some.iter().map(|shard| topology.shard_name(shard.id)).collect();
            return Some(ReshardCourse::Merge { shards });
        }
        let shard = self.random.pick(&shards)?;
        let at = match self.random.within(0..3) {
            0 => SplitAt::Bounds(vec![self.inside(&shard.range)?]),
            _ => SplitAt::Evenly(*self.random.pick(&[2, 2, 3])?),
        };
        Some(ReshardCourse::Split { shard: topology.shard_name(shard.id), at })
    }

    /// A keyspace id of a range, not its first.
    fn inside(&mut self, range: &KeyRange) -> Option<Vec<u8>> {
        (0..16).find_map(|_| {
            let id = self.random.draw().to_be_bytes()[..2].to_vec();
            (range.contains(&id) && id != range.start).then_some(id)
        })
    }

    /// Does something, or nothing, about a reshard that is under way.
    async fn go_on(&mut self, status: &ReshardStatus) {
        use ReshardCommand::{Cancel, Complete, Pause, Resume, Reverse, Switch};
        let is_paused = status.paused.is_some();
        let chance = self.random.within(0..100);
        let command = match status.phase {
            _ if is_paused => (chance < 60).then_some(Resume),
            ReshardPhase::Ready if !status.wanted && chance < 60 => Some(Switch),
            // Each way back is a switch more, and nothing has to be copied for it.
            ReshardPhase::Switched if !status.wanted && chance < 45 => Some(Reverse),
            ReshardPhase::Switched if chance < 60 => Some(Complete),
            ReshardPhase::Switched => None,
            _ if chance < 2 => Some(Cancel),
            _ if chance < 4 => Some(Pause),
            _ => None,
        };
        if let Some(command) = command {
            self.tell(status, command).await;
        }
    }

    /// Has a reshard come to its end.
    async fn finish(&mut self, status: &ReshardStatus) {
        use ReshardPhase::{Cancelling, Completing, Switched, Switching, Undoing};
        let command = match status.phase {
            Completing | Cancelling => return,
            Switched => ReshardCommand::Complete,
            // It may be decided, and on the way back it can't be cancelled.
            Switching | Undoing => return,
            _ => ReshardCommand::Cancel,
        };
        self.tell(status, command).await;
    }

    async fn tell(&mut self, status: &ReshardStatus, command: ReshardCommand) {
        self.wishes += 1;
        let (id, request) = (status.id, RequestId { router: NAME, sequence: self.wishes });
        self.shared.note(format!("admin: {command:?} of reshard {id}, which is {}", status.phase));
        let told =
            self.ask("command", move |c| Box::pin(async move { c.command(request, id, command).await }));
        if told.await.is_some() {
            self.shared.count(&format!("reshards told to {}", format!("{command:?}").to_lowercase()));
        }
    }
}

/// Whether somebody else is to be asked, or later.
fn is_elsewhere(error: &WireError) -> bool {
    matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Unknown)
}
