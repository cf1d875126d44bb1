//! Switches of the fake cluster: shards that are sealed, and others that are put in their place.
//!
//! The new shards have the rows of the old ones that are in their ranges, and what was prepared or is remembered there. A
//! request's answer is known to all shards anyway.

use super::{Fake, FakeBranch, MAIN, REFERENCE, TABLE, empty_database};
use parking_lot::Mutex;
use proto::gtid::GtidSource;
use proto::services::*;
use proto::topology::{Leaders, Reshard, Retired, Shard};
use proto::*;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reshard that the fake cluster has.
const RESHARD: ReshardId = ReshardId(7);

/// What a sealed shard says.
pub fn sealed(epoch: Epoch) -> WireError {
    WireError::new(SqlState::SERIALIZATION_FAILURE, "the shard is sealed")
        .with_retry(Retry::StaleEpoch(Epoch(epoch.0 + 1)))
}

impl Fake {
    /// Shards serve nobody from now on but who has kept a state of them. What isn't prepared there and hasn't only read ends.
    pub fn seal(&self, shards: &[u64]) {
        self.sealed.lock().extend(shards.iter().copied().map(ShardId));
        let stays = |branch: &FakeBranch| branch.prepared || !branch.has_something();
        self.branches.lock().retain(|(shard, _), branch| stays(branch) || !shards.contains(&shard.0));
    }

    /// They serve again: the attempt was given up.
    pub fn unseal(&self, shards: &[u64]) {
        self.sealed.lock().retain(|shard| !shards.contains(&shard.0));
        self.close_gate(None);
    }

    /// Refuses what is for a shard that is sealed.
    pub(super) fn admit(&self, shard: ShardId, epoch: Epoch) -> ServiceResult<()> {
        if !self.sealed.lock().contains(&shard) {
            return Ok(());
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        Err(sealed(epoch))
    }

    /// Does something when a shard that is sealed has been asked.
    pub async fn once_refused(&self, then: fn(&Fake)) {
        let before = self.refusals.load(Ordering::Relaxed);
        while self.refusals.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        then(self);
    }

    /// A shard that was replaced isn't there any more.
    pub fn drop_shard(&self, shard: u64) {
        self.cuts.lock().clear();
        self.reshape(|topology| _ = topology.shards.remove(&ShardId(shard)));
    }

    /// Routers keep new transactions waiting for this attempt, or for none.
    pub fn close_gate(&self, attempt: Option<u32>) {
        let reshard =
            |attempt| Reshard { id: RESHARD, build: None, flows: vec![], gate: Some(Attempt(attempt)) };
        self.reshape(|topology| topology.reshards = attempt.map(reshard).into_iter().collect());
    }

    /// Seals shards that lie side by side, and has others serve in their place: their numbers and ranges.
    pub fn switch(&self, old: &[u64], new: &[(u64, &str)]) {
        self.seal(old);
        let from = |shard: &ShardId| old.contains(&shard.0);
        let lasts: Vec<_> = old.iter().map(|shard| (ShardId(*shard), self.log(ShardId(*shard), 1))).collect();
        for (id, range) in new {
            let (id, range) = (ShardId(*id), KeyRange::parse(range).unwrap());
            let database = empty_database();
            for (place, shard) in old.iter().enumerate() {
                copy_rows(&self.database(ShardId(*shard)).lock(), &database, place == 0);
            }
            self.shards.lock().insert(id, Arc::new(Mutex::new(database)));
            self.ranges.lock().insert(id, range);
            self.weed(id);
            let kept: Vec<_> = self.kept.lock().iter().filter(|(shard, _)| from(shard)).copied().collect();
            self.kept.lock().extend(kept.into_iter().map(|(_, transaction)| (id, transaction)));
        }
        self.hand_over(old, new);
        self.state.send_modify(|state| {
            let mut leaders = Leaders::clone(&state.leaders);
            new.iter().for_each(|(id, _)| _ = leaders.learn(GroupId(id + 1), Term(1), NodeId(1)));
            state.leaders = leaders.into();
        });
        self.reshape(|topology| {
            for (shard, last) in &lasts {
                let source = topology.gtid_source(*shard).unwrap();
                let range = topology.shards[shard].range.clone();
                let heirs = new.iter().filter(|(_, name)| KeyRange::parse(name).unwrap().overlaps(&range));
                let successors = heirs.map(|(id, _)| (ShardId(*id), self.log(ShardId(*id), 0))).collect();
                topology.lineage.insert(source, Retired { shard: *shard, last: *last, successors });
            }
            for (id, name) in new {
                topology.shards.insert(ShardId(*id), shard(topology.lineage.keys(), *id, name));
            }
            let serving = &mut topology.keyspaces.get_mut(&MAIN).unwrap().shards;
            let place = serving.iter().position(from).unwrap();
            serving.retain(|shard| !from(shard));
            let new = new.iter().map(|(id, _)| ShardId(*id));
            serving.splice(place..place, new);
            topology.reshards.clear();
        });
    }

    /// Every new shard gets all that is prepared, with whose votes it is. What has only read is over.
    fn hand_over(&self, old: &[u64], new: &[(u64, &str)]) {
        let mut branches = self.branches.lock();
        branches.retain(|(shard, _), branch| branch.prepared || !old.contains(&shard.0));
        let prepared: Vec<_> = branches.keys().filter(|(shard, _)| old.contains(&shard.0)).copied().collect();
        for key in prepared {
            let branch = branches.remove(&key).unwrap();
            for (id, _) in new {
                let heir: &mut FakeBranch = branches.entry((ShardId(*id), key.1)).or_default();
                heir.statements.extend(branch.statements.iter().cloned());
                heir.votes.extend(branch.votes.iter().copied());
                (heir.prepared, heir.parallel) = (true, branch.parallel);
            }
        }
    }

    /// Deletes rows that aren't in the shard's range, if it has taken another one's place.
    pub(super) fn weed(&self, shard: ShardId) {
        let Some(range) = self.ranges.lock().get(&shard).cloned() else { return };
        let database = self.database(shard);
        let database = database.lock();
        let mut keys = database.prepare(&format!("SELECT c1 FROM t{TABLE}")).unwrap();
        let keys: Vec<i64> = keys.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        for key in keys {
            if !range.contains(&KeyspaceId::hash([ValueRef::Int(key)]).0) {
                database.execute(&format!("DELETE FROM t{TABLE} WHERE c1 = ?1"), [key]).unwrap();
            }
        }
    }

    /// What a request was told, whoever told it.
    pub(super) fn told(&self, request: RequestId) -> Option<FragmentResponse> {
        let affected = self.done.lock().get(&request).copied()?;
        let rows = RowSource::Whole(RowBatch::default());
        Some(FragmentResponse { rows, affected, position: LogIndex(1), waited: std::time::Duration::ZERO })
    }
}

fn shard<'a>(before: impl Iterator<Item = &'a GtidSource>, id: u64, range: &str) -> Shard {
    let range = KeyRange::parse(range).unwrap();
    let incarnation = before.filter(|source| source.shard == range).count() as u32 + 1;
    Shard {
        id: ShardId(id),
        keyspace: MAIN,
        range,
        incarnation: Incarnation(incarnation),
        group: GroupId(id + 1),
        replicas: vec![NodeId(1), NodeId(2)],
        formed: true,
        first: LogIndex(100 * id),
    }
}

fn copy_rows(from: &Connection, to: &Connection, references: bool) {
    for table in [Some(TABLE), references.then_some(REFERENCE)].into_iter().flatten() {
        let mut rows = from.prepare(&format!("SELECT c1, c2 FROM t{table}")).unwrap();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let row: (i64, Option<String>) = (row.get(0).unwrap(), row.get(1).unwrap());
            to.execute(&format!("INSERT INTO t{table} VALUES (?1, ?2)"), row).unwrap();
        }
    }
}
