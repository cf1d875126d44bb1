//! Finishing what is decided, on the coordinator's leader.
//!
//! In come the records of transactions that are decided and not finished; out go verdicts to the shards that take part, and
//! notes in the coordinator's log that all have heard theirs. Mostly the router does that within milliseconds; what it
//! hasn't done after a short grace is done here: the router may be gone. What was decided
//! here, for it is gone, has no grace. Nothing is kept that the records don't have but what need not be done twice, so
//! another leader goes on from the same place. Telling a shard twice is harmless.
//!
//! Each shard has a **lane** of its own, so one that doesn't answer holds up nobody else's transactions.

use crate::reach::Reach;
use crate::service::Core;
use crate::store::Store;
use proto::machine;
use proto::services::{BranchAction, BranchRequest, Consistency, Decision, ShardService};
use proto::topology::Topology;
use proto::{ShardId, SqlState, TransactionId, WireError};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many unfinished transactions are looked at. A shard that is away takes no new ones, so there aren't more for long.
const MOST: usize = 100_000;
/// How many transactions a shard is told of at once.
const AT_ONCE: usize = 64;
/// How long one may take until the shard counts as one that doesn't answer. To finish a big transaction takes its time.
const TELLING: Duration = Duration::from_secs(60);
/// How long a shard is left alone that didn't take a verdict.
const REST: Duration = Duration::from_secs(1);
/// After so long a shard is told again, since it may have heard of the transaction again from a router.
const SURE: Duration = Duration::from_secs(30);

/// What is known of an unfinished transaction.
struct Seen {
    since: Instant,
    /// The participants that have finished, and when.
    done: BTreeMap<ShardId, Instant>,
}

/// What a shard is to be told, and is being told.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<(TransactionId, bool)>,
    asked: HashSet<TransactionId>,
    rests_until: Option<Instant>,
}

/// What came of telling a shard.
struct Told {
    shard: ShardId,
    transaction: TransactionId,
    answer: Result<(), WireError>,
}

#[derive(Default)]
struct Driver {
    seen: HashMap<TransactionId, Seen>,
    /// Those that nobody else goes on with.
    orphans: HashSet<TransactionId>,
    lanes: HashMap<ShardId, Lane>,
    telling: JoinSet<Told>,
}

/// Finishes transactions until it is dropped.
pub(crate) async fn finish(core: Arc<Core>) {
    let mut driver = Driver::default();
    let mut calls = core.deciding.subscribe();
    // A decision whose caller is gone may still be written for so long.
    let lag = core.config.write_timeout + core.config.look_every;
    let mut until = machine::now() + lag;
    let mut ticks = tokio::time::interval(core.config.look_every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_idle = match driver.turn(&core).await {
            Ok(is_idle) => is_idle,
            Err(error) => {
                tracing::debug!(%error, "the coordinator's leader could not look for unfinished transactions");
                false
            }
        };
        if calls.has_changed().unwrap_or(false) {
            calls.mark_unchanged();
            until = machine::now() + lag;
        }
        if is_idle && machine::now() >= until {
            // Its group may sleep meanwhile.
            if calls.changed().await.is_err() {
                return;
            }
            until = machine::now() + lag;
        }
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => break,
                () = core.orphaned.notified() => break,
                Some(told) = driver.telling.join_next() => match told {
                    // What is finished now is noted at once.
                    Ok(told) => if driver.hear(&core, told) { break },
                    Err(error) => {
                        tracing::error!(%error, "telling a shard what became of a transaction has failed");
                        // Nobody knows which it was: all begin anew.
                        driver.telling.shutdown().await;
                        driver.lanes.clear();
                        break;
                    }
                },
            }
        }
    }
}

impl Driver {
    /// Notes what is finished, and has shards told of what isn't. Says whether there is nothing.
    async fn turn(&mut self, core: &Core) -> Result<bool, WireError> {
        // Before their records are looked for: those were there first.
        self.orphans.extend(core.orphans.lock().drain(..));
        let (unfinished, topology) = core.unfinished().await?;
        let now = machine::now();
        let listed: HashSet<_> = unfinished.iter().map(|decision| decision.transaction).collect();
        self.seen.retain(|transaction, _| listed.contains(transaction));
        self.orphans.retain(|transaction| listed.contains(transaction));
        for lane in self.lanes.values_mut() {
            lane.waiting.clear();
        }
        let mut finished = Vec::new();
        let mut late = Vec::new();
        for Decision { transaction, participants, commit, .. } in unfinished {
            let seen =
                self.seen.entry(transaction).or_insert_with(|| Seen { since: now, done: BTreeMap::new() });
            seen.done.retain(|_, at| now.saturating_duration_since(*at) < SURE);
            let age = now.saturating_duration_since(seen.since);
            if age < core.config.finish_after && !self.orphans.contains(&transaction) {
                continue;
            }
            // They were all there when it began. Who has replaced one has its branch; one that isn't there any more, and that
            // nobody has replaced, took it with it.
            let mut left = topology.heirs_of(&participants);
            left.retain(|shard| !seen.done.contains_key(shard));
            if left.is_empty() {
                finished.push(transaction);
            }
            for shard in left {
                late.push((transaction, shard, age));
                let lane = self.lanes.entry(shard).or_default();
                if !lane.asked.contains(&transaction) {
                    lane.waiting.push_back((transaction, commit));
                }
            }
        }
        core.lingering.lock().unfinished(late);
        self.lanes.retain(|_, lane| !lane.waiting.is_empty() || !lane.asked.is_empty());
        let shards: Vec<_> = self.lanes.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.ask(core, shard));
        if !finished.is_empty() {
            core.finished(&finished).await?;
            // If one is taken up once more, all of it is.
            finished.iter().for_each(|transaction| drop(self.seen.remove(transaction)));
        }
        Ok(listed.is_empty())
    }

    /// Tells a shard what waits for it, as much as it may be told at once.
    fn ask(&mut self, core: &Core, shard: ShardId) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        if lane.rests_until.is_some_and(|until| machine::now() < until) {
            return;
        }
        while lane.asked.len() < AT_ONCE {
            let Some((transaction, commit)) = lane.waiting.pop_front() else { return };
            lane.asked.insert(transaction);
            let reach = core.reach();
            self.telling.spawn(async move {
                let told = tell(&reach, shard, transaction, commit);
                let answer = tokio::time::timeout(TELLING, told).await.unwrap_or_else(|_| {
                    Err(WireError::new(SqlState::CONNECTION_FAILURE, "the shard doesn't answer"))
                });
                Told { shard, transaction, answer }
            });
        }
    }

    /// Takes note of what came of it. Says whether that was all for this shard.
    fn hear(&mut self, core: &Core, told: Told) -> bool {
        let Told { shard, transaction, answer } = told;
        let now = machine::now();
        let Some(lane) = self.lanes.get_mut(&shard) else { return true };
        lane.asked.remove(&transaction);
        match answer {
            Ok(()) => {
                if let Some(seen) = self.seen.get_mut(&transaction) {
                    seen.done.insert(shard, now);
                }
            }
            Err(error) => {
                tracing::warn!(%shard, %transaction, %error, "a shard hasn't heard what became of a transaction");
                lane.rests_until = Some(now + REST);
                return false;
            }
        }
        let is_all = lane.waiting.is_empty() && lane.asked.is_empty();
        self.ask(core, shard);
        is_all
    }
}

async fn tell(
    reach: &Reach,
    shard: ShardId,
    transaction: TransactionId,
    commit: bool,
) -> Result<(), WireError> {
    let action = BranchAction::Finish { commit, keep: false };
    let call = |service: Arc<dyn ShardService>| {
        let epoch = reach.state.borrow().topology.epoch;
        let request = BranchRequest {
            shard,
            epoch,
            on_behalf: None,
            transaction,
            action: action.clone(),
            timeout: TELLING,
        };
        async move { service.transact(request).await }
    };
    reach.leader(shard, call).await.map(drop)
}

impl Core {
    /// The transactions that are decided and not finished, and the topology as of then; without transactions nothing.
    async fn unfinished(&self) -> Result<(Vec<Decision>, Topology), WireError> {
        let deadline = machine::now() + self.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        let unfinished = store.unfinished(MOST)?;
        if unfinished.is_empty() {
            return Ok((unfinished, Topology::default()));
        }
        Ok((unfinished, store.topology()?))
    }
}
