//! Finishing what is decided, on the coordinator's leader.
//!
//! In come the records of transactions that are decided and not finished; out go verdicts to the shards that take part, and
//! notes in the coordinator's log that all have heard theirs. Mostly the router does that within milliseconds; what it
//! hasn't done after a short grace is done here: the router may be gone. Nothing is kept that the records don't have but
//! what need not be done twice, so another leader goes on from the same place. Telling a shard twice is harmless.
//!
//! Each shard has a **lane** of its own, so one that doesn't answer holds up nobody else's transactions.

use crate::reach::Reach;
use crate::service::Core;
use crate::store::Store;
use proto::services::{BranchAction, BranchRequest, Consistency, Decision, ShardService};
use proto::{ShardId, SqlState, TransactionId, WireError};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many unfinished transactions are looked at. A shard that is away takes no new ones, so there aren't more for long.
const MOST: usize = 100_000;
/// How many transactions a shard is told of at once.
const AT_ONCE: usize = 64;
/// How long a lane goes on with a shard that doesn't answer.
const LANE: Duration = Duration::from_secs(5);
/// How long a shard is left alone that didn't take all verdicts.
const REST: Duration = Duration::from_secs(1);
/// After so long a shard is told again, since it may have heard of the transaction again from a router.
const SURE: Duration = Duration::from_secs(30);

/// What is known of an unfinished transaction.
struct Seen {
    since: Instant,
    /// The participants that have finished, and when.
    done: BTreeMap<ShardId, Instant>,
}

/// What a lane has achieved.
struct Lane {
    shard: ShardId,
    done: Vec<TransactionId>,
    failed: usize,
    error: Option<WireError>,
}

#[derive(Default)]
struct Driver {
    seen: HashMap<TransactionId, Seen>,
    lanes: JoinSet<Lane>,
    /// Shards with a lane, and those that rest.
    busy: HashSet<ShardId>,
    resting: HashMap<ShardId, Instant>,
}

/// Finishes transactions until it is dropped.
pub(crate) async fn finish(core: Arc<Core>) {
    let mut driver = Driver::default();
    let mut calls = core.deciding.subscribe();
    // A decision whose caller is gone may still be written for so long.
    let lag = core.config.write_timeout + core.config.look_every;
    let mut until = Instant::now() + lag;
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
            until = Instant::now() + lag;
        }
        if is_idle && Instant::now() >= until {
            // Its group may sleep meanwhile.
            if calls.changed().await.is_err() {
                return;
            }
            until = Instant::now() + lag;
        }
        tokio::select! {
            _ = ticks.tick() => {}
            Some(lane) = driver.lanes.join_next() => match lane {
                Ok(lane) => driver.take(lane),
                Err(error) => {
                    tracing::error!(%error, "telling a shard what became of transactions has failed");
                    // Nobody knows which it was.
                    driver.lanes.shutdown().await;
                    driver.busy.clear();
                }
            },
        }
    }
}

impl Driver {
    /// Notes what is finished, and opens lanes for what isn't. Says whether there is nothing.
    async fn turn(&mut self, core: &Core) -> Result<bool, WireError> {
        let (unfinished, shards) = core.unfinished().await?;
        let now = Instant::now();
        let listed: HashSet<_> = unfinished.iter().map(|decision| decision.transaction).collect();
        self.seen.retain(|transaction, _| listed.contains(transaction));
        self.resting.retain(|_, until| *until > now);
        let mut finished = Vec::new();
        let mut work: BTreeMap<ShardId, Vec<(TransactionId, bool)>> = BTreeMap::new();
        let mut late = Vec::new();
        for Decision { transaction, participants, commit } in unfinished {
            let seen =
                self.seen.entry(transaction).or_insert_with(|| Seen { since: now, done: BTreeMap::new() });
            seen.done.retain(|_, at| now.saturating_duration_since(*at) < SURE);
            let age = now.saturating_duration_since(seen.since);
            if age < core.config.finish_after {
                continue;
            }
            // They were all there when it began: one that isn't any more took its branch with it.
            let left = participants.into_iter().filter(|s| shards.contains(s) && !seen.done.contains_key(s));
            let left: Vec<_> = left.collect();
            if left.is_empty() {
                finished.push(transaction);
            }
            for shard in left {
                late.push((transaction, shard, age));
                if !self.busy.contains(&shard) && !self.resting.contains_key(&shard) {
                    work.entry(shard).or_default().push((transaction, commit));
                }
            }
        }
        core.lingering.lock().unfinished(late);
        for (shard, work) in work {
            self.busy.insert(shard);
            self.lanes.spawn(run(core.reach(), shard, work));
        }
        if !finished.is_empty() {
            core.finished(&finished).await?;
            // If one is taken up once more, all of it is.
            finished.iter().for_each(|transaction| drop(self.seen.remove(transaction)));
        }
        Ok(listed.is_empty())
    }

    /// Takes note of what a lane has achieved.
    fn take(&mut self, lane: Lane) {
        let Lane { shard, done, failed, error } = lane;
        let now = Instant::now();
        self.busy.remove(&shard);
        for transaction in done {
            if let Some(seen) = self.seen.get_mut(&transaction) {
                seen.done.insert(shard, now);
            }
        }
        if let Some(error) = error {
            tracing::warn!(%shard, failed, %error, "a shard hasn't heard what became of transactions");
            self.resting.insert(shard, now + REST);
        }
    }
}

/// Tells one shard's leader what became of transactions.
async fn run(reach: Reach, shard: ShardId, work: Vec<(TransactionId, bool)>) -> Lane {
    let until = tokio::time::Instant::now() + LANE;
    let mut lane = Lane { shard, done: Vec::new(), failed: 0, error: None };
    let mut work = work.into_iter();
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE && tokio::time::Instant::now() < until {
            let Some((transaction, commit)) = work.next() else { break };
            let reach = reach.clone();
            asked.spawn(async move {
                let told = tokio::time::timeout_at(until, tell(&reach, shard, transaction, commit)).await;
                let late = |_| Err(WireError::new(SqlState::CONNECTION_FAILURE, "it doesn't answer"));
                (transaction, told.unwrap_or_else(late))
            });
        }
        let error = match asked.join_next().await {
            None => return lane,
            Some(Ok((transaction, Ok(())))) => {
                lane.done.push(transaction);
                continue;
            }
            Some(Ok((_, Err(error)))) => error,
            Some(Err(error)) => WireError::internal(format!("telling a shard: {error}")),
        };
        lane.failed += 1;
        lane.error.get_or_insert(error);
    }
}

async fn tell(
    reach: &Reach,
    shard: ShardId,
    transaction: TransactionId,
    commit: bool,
) -> Result<(), WireError> {
    let action = BranchAction::Finish { commit };
    let call = |service: Arc<dyn ShardService>| {
        let epoch = reach.state.borrow().topology.epoch;
        let request = BranchRequest { shard, epoch, transaction, action: action.clone(), timeout: LANE };
        async move { service.transact(request).await }
    };
    reach.leader(shard, call).await.map(drop)
}

impl Core {
    /// The transactions that are decided and not finished, and the shards that there are.
    async fn unfinished(&self) -> Result<(Vec<Decision>, BTreeSet<ShardId>), WireError> {
        let deadline = Instant::now() + self.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        let unfinished = store.unfinished(MOST)?;
        if unfinished.is_empty() {
            return Ok((unfinished, BTreeSet::new()));
        }
        Ok((unfinished, store.shards()?.into_keys().collect()))
    }
}
