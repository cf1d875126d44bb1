//! Splits that nobody asks for: of keyspaces that are set to split what is too big.
//!
//! In come the topology, how big shards are and where the middle of their rows is, and which reshards there are and have been; out goes
//! one wish at most. What to do is decided purely ([`Scene::due`]); what is remembered is only when a keyspace was last seen being
//! resharded, and a new leader, which can't know that, waits for as long as if it had been just now. Nothing is merged here, and nothing is
//! begun while anything else of the kind is under way.

use crate::reshard::{self, Record};
use crate::service::Core;
use crate::store::{Counter, KeyspaceRow, Store};
use bytes::Bytes;
use proto::catalog::Catalog;
use proto::machine;
use proto::services::{
    AutoWish, Consistency, ReshardCourse, ReshardOptions, ReshardPhase, ReshardWish, ServiceResult,
    ShardTally, SplitAt,
};
use proto::topology::{AutoSplit, Keyspace, Shard, Sharding, Topology};
use proto::{GroupId, KeyspaceNumber, RequestId, RouterIncarnation, SqlState, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a keyspace is left alone after a reshard of it.
const APART: Duration = Duration::from_secs(3600);
/// How often it is looked whether something is too big.
const LOOK: Duration = Duration::from_secs(5);
/// When a wish that was refused is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// What a shard may have if nobody says otherwise, in bytes, and how many of them a keyspace may have.
const USUAL: AutoSplit = AutoSplit { size: 10 << 30, shards: 64 };
/// A shard that may have less than this would be split for what every database has.
const LEAST: u64 = 1 << 20;
/// The most shards that may be asked for.
const MOST_SHARDS: u32 = 1024;

/// How things are.
struct Scene<'a> {
    topology: &'a Topology,
    catalog: &'a Catalog,
    /// Of shards' groups, in bytes.
    sizes: &'a BTreeMap<GroupId, u64>,
    tallies: &'a [ShardTally],
    /// Keyspaces that were resharded less than an hour ago.
    tired: &'a BTreeSet<KeyspaceNumber>,
    /// A reshard or a change of replicas is under way, or something isn't well.
    is_busy: bool,
}

impl Scene<'_> {
    /// What is to be split now: of all that is too big, the biggest.
    fn due(&self) -> Option<ReshardCourse> {
        if self.is_busy {
            return None;
        }
        let keyspaces = self.topology.keyspaces.values();
        let resting = keyspaces.filter(|keyspace| !self.tired.contains(&keyspace.number));
        let splits = resting.flat_map(|keyspace| self.splits(keyspace));
        splits.max_by_key(|(size, _)| *size).map(|(_, course)| course)
    }

    /// What of a keyspace could be split, with its size.
    fn splits(&self, keyspace: &Keyspace) -> Vec<(u64, ReshardCourse)> {
        let Some(auto) = keyspace.auto.filter(|auto| keyspace.shards.len() < auto.shards as usize) else {
            return Vec::new();
        };
        let shards = keyspace.shards.iter().filter_map(|id| self.topology.shards.get(id));
        let split = |shard: &Shard| {
            let size = self.sizes.get(&shard.group).copied().unwrap_or(0);
            let is_big = shard.formed && size > auto.size;
            let at = self.place(keyspace, shard).filter(|_| is_big)?;
            Some((size, ReshardCourse::Split { shard: self.topology.shard_name(shard.id), at }))
        };
        shards.filter_map(split).collect()
    }

    /// Where a shard is cut. Nowhere, if its rows haven't been counted yet, or lie in one place.
    fn place(&self, keyspace: &Keyspace, shard: &Shard) -> Option<SplitAt> {
        let tally = self.tallies.iter().find(|tally| tally.shard == shard.id)?;
        let middle = tally.counted.biggest_of(keyspace.number, self.catalog)?.middle.clone()?;
        match keyspace.sharding {
            Sharding::Hash => Some(SplitAt::Evenly(2)),
            Sharding::Range => Some(SplitAt::Bounds(vec![middle])),
            Sharding::Single => None,
        }
    }
}

/// What a leader has seen since it leads.
pub(crate) struct Auto {
    since: Instant,
    /// When keyspaces were last seen being resharded; those that were before it led, when that began.
    resharded: BTreeMap<KeyspaceNumber, Instant>,
    /// It isn't looked again before.
    after: Instant,
}

impl Auto {
    /// This node leads from now on.
    pub(crate) fn new(now: Instant) -> Self {
        Auto { since: now, resharded: BTreeMap::new(), after: now }
    }

    /// Takes in which reshards there are and have been. Says which keyspaces are to be left alone.
    fn hear(
        &mut self,
        reshards: impl IntoIterator<Item = (KeyspaceNumber, ReshardPhase)>,
        now: Instant,
    ) -> BTreeSet<KeyspaceNumber> {
        for (keyspace, phase) in reshards {
            let seen = self.resharded.entry(keyspace).or_insert(self.since);
            if phase != ReshardPhase::Ended {
                *seen = now;
            }
        }
        let is_tired = |at: &Instant| now.saturating_duration_since(*at) < APART;
        self.resharded.iter().filter(|(_, at)| is_tired(at)).map(|(keyspace, _)| *keyspace).collect()
    }

    /// Begins a split, if one is due.
    pub(crate) async fn look(&mut self, core: &Core) -> Result<(), WireError> {
        let now = machine::now();
        let state = core.state.subscribe().borrow().clone();
        let topology = &state.topology;
        if now < self.after || topology.keyspaces.values().all(|keyspace| keyspace.auto.is_none()) {
            return Ok(());
        }
        self.after = now + LOOK;
        let (reshards, is_busy) = {
            let deadline = now + core.config.write_timeout;
            let snapshot = core.replica.snapshot(Consistency::Strong, deadline).await?;
            let store = Store(snapshot.connection());
            (store.reshards()?, is_busy(store)?)
        };
        let tired = self.hear(reshards.iter().map(|record| (record.keyspace, record.phase)), now);
        let scene = Scene {
            topology,
            catalog: &state.catalog,
            sizes: &core.state.vitals().sizes(),
            tallies: &core.tallies.lock().all(topology, now),
            tired: &tired,
            is_busy: is_busy || !core.troubles(topology, now).is_empty(),
        };
        let Some(course) = scene.due() else { return Ok(()) };
        let begun = core.begin_by_itself(course).await;
        if begun.is_err() {
            self.after = now + AGAIN;
        }
        begun
    }
}

/// Whether a reshard is under way, or a change of replicas: a repair, or what an admin has asked for.
fn is_busy(store: Store<'_>) -> Result<bool, WireError> {
    let goes_on = |record: &Record| record.phase != ReshardPhase::Ended;
    Ok(store.reshards()?.iter().any(goes_on)
        || !store.replica_jobs()?.is_empty()
        || !store.courses()?.is_empty())
}

impl Core {
    async fn begin_by_itself(&self, course: ReshardCourse) -> Result<(), WireError> {
        let known = self.known(machine::now());
        let leaders = Arc::clone(&self.state.subscribe().borrow().leaders);
        let begin = move |store: Store<'_>| {
            // Something may have begun since it was looked.
            if is_busy(store)? {
                return Ok(Bytes::new());
            }
            let sequence = store.counter(Counter::Reshard)?;
            let request = RequestId { router: RouterIncarnation(0), sequence };
            let options = ReshardOptions { auto: true, ..ReshardOptions::default() };
            let wish = ReshardWish { request, course, options, dry_run: false };
            let plan = reshard::begin(store, &wish, &known, &leaders)?;
            tracing::warn!("begins by itself to {}", plan.what);
            Ok(Bytes::new())
        };
        let begun = self.write(begin).await.map(drop);
        if let Err(error) = &begun {
            tracing::warn!(%error, "a shard is too big, and can't be split");
        }
        self.begun.notify_one();
        begun
    }

    /// Sets whether a keyspace splits by itself. Answers with what is set.
    pub(crate) async fn set_auto(&self, wish: AutoWish) -> ServiceResult<Option<AutoSplit>> {
        let name = wish.keyspace.clone();
        self.write(move |store| set(store, &wish).map(|()| Bytes::new())).await?;
        self.state.refresh(&self.replica).await?;
        let topology = Arc::clone(&self.state.subscribe().borrow().topology);
        Ok(topology.keyspace_named(&name).and_then(|keyspace| keyspace.auto))
    }
}

/// Takes a wish in. One that was taken in before changes nothing: a copy may come late.
fn set(store: Store<'_>, wish: &AutoWish) -> Result<(), WireError> {
    if store.answer(wish.request)?.is_some() {
        return Ok(());
    }
    let rows = store.keyspaces()?.into_iter().filter(|row| row.ready);
    let KeyspaceRow { keyspace, ready, owner } =
        rows.into_iter().find(|row| row.keyspace.name == wish.keyspace).ok_or_else(|| {
            let message = format!("keyspace \"{}\" does not exist", wish.keyspace);
            WireError::new(SqlState::UNDEFINED_OBJECT, message).with_hint("\"shoal status\" lists them.")
        })?;
    let auto = wish.auto.map(|auto| {
        let before = keyspace.auto.unwrap_or(USUAL);
        AutoSplit { size: auto.size.unwrap_or(before.size), shards: auto.shards.unwrap_or(before.shards) }
    });
    if let Some(auto) = auto {
        check(&keyspace, auto)?;
    }
    store.put_keyspace(&KeyspaceRow { keyspace: Keyspace { auto, ..keyspace }, ready, owner })?;
    store.next_epoch()?;
    store.put_answer(wish.request, &Ok(0))
}

fn check(keyspace: &Keyspace, auto: AutoSplit) -> Result<(), WireError> {
    if keyspace.sharding == Sharding::Single {
        let message = format!("keyspace {} has one shard and is not split", keyspace.name);
        return Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message));
    }
    let wrong = |message: String| Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    if auto.size < LEAST {
        return wrong("a shard is split by itself at 1 MiB or more".to_owned());
    }
    if auto.shards == 0 || auto.shards > MOST_SHARDS {
        return wrong(format!(
            "a keyspace splits by itself up to 1 to {MOST_SHARDS} shards, not {}",
            auto.shards
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
