//! Reshards and lineage in the coordinator's tables, and the writes that change them.
//!
//! In comes a wish, a step or a command, inside a write of the coordinator's; out goes the record after it, with all that changes
//! in the topology, in the same write. So whoever leads next finds both or neither. Here it is also said what schema changes and
//! changes of replicas must leave alone for a reshard's sake.

use super::admit::Place;
use super::record::Record;
use super::step::{Change, Ledger, Step};
use super::stored;
use crate::course;
use crate::repair::Scene;
use crate::replica_job::ReplicaJob;
use crate::replicas::Known;
use crate::store::{Counter, Store};
use dialect::sqlite::error;
use proto::gtid::GtidSource;
use proto::services::{ReshardCommand, ReshardPhase, ReshardPlan, ReshardWish};
use proto::topology::{Keyspace, Leaders, Retired, Shard, Topology};
use proto::{
    GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, ReshardId, ShardId,
    SqlState, WireError,
};
use rusqlite::params;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const TABLES: [&str; 3] = [
    "CREATE TABLE shoal_reshard (id INTEGER NOT NULL PRIMARY KEY, router INTEGER NOT NULL,
        request INTEGER NOT NULL, keyspace INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE TABLE shoal_lineage (keyspace TEXT NOT NULL, range TEXT NOT NULL, incarnation INTEGER NOT NULL,
        body BLOB NOT NULL, PRIMARY KEY (keyspace, range, incarnation)) STRICT, WITHOUT ROWID",
    // What shards of keyspaces were called at most that were dropped.
    "CREATE TABLE shoal_incarnation (keyspace TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) STRICT",
];

/// How many reshards that have ended are remembered.
const REMEMBERED: usize = 100;
/// How many reshards build at a time.
const BUILDERS: usize = 2;

type Result<T> = std::result::Result<T, WireError>;

/// Takes a wish in. One that was taken in before is answered as it was then.
pub(crate) fn begin(
    store: Store<'_>,
    wish: &ReshardWish,
    known: &Known,
    leaders: &Leaders,
) -> Result<ReshardPlan> {
    let (topology, reshards) = (store.topology()?, store.reshards()?);
    if let Some(record) = reshards.iter().find(|record| record.request == wish.request) {
        return Ok(record.told(&topology));
    }
    let scene = Scene { topology: &topology, vitals: &known.vitals, config: &known.config, now: known.now };
    let plan = Place { scene, leaders, reshards: &reshards }.plan(wish)?;
    if wish.dry_run {
        return Ok(plan.told(None));
    }
    let id = ReshardId(store.take(Counter::Reshard)?);
    let told = plan.told(Some(id));
    let record = plan.begin(id, wish, &topology, &mut { store })?;
    store.put_reshard(&record)?;
    Ok(told)
}

/// Tells a reshard what to do. What was told before is answered as it was then, and refused again if it was: a copy that comes
/// late finds the reshard elsewhere.
pub(crate) fn command(
    store: Store<'_>,
    request: RequestId,
    id: ReshardId,
    command: ReshardCommand,
) -> Result<Result<()>> {
    if let Some(answer) = store.answer(request)? {
        return Ok(answer.map(drop));
    }
    let told = take(store, id, &Step::Command(command), None).map(|_| 0);
    store.put_answer(request, &told)?;
    Ok(told.map(drop))
}

/// Takes a step, with all that changes with it. `due` is as [`Record::after`] says.
pub(crate) fn take(store: Store<'_>, id: ReshardId, step: &Step, due: Option<u64>) -> Result<Record> {
    let Some(record) = store.reshard(id)? else {
        let error = WireError::new(SqlState::UNDEFINED_OBJECT, format!("reshard {id} does not exist"));
        return Err(error.with_hint("\"shoal reshard status\" lists those that there are."));
    };
    let (record, changes) = record.after(step, due, &mut { store })?;
    for change in &changes {
        store.change(&record, change)?;
    }
    store.put_reshard(&record)?;
    Ok(record)
}

/// A keyspace is dropped, with all its shards. What is to become of those concerns nobody any more.
pub(crate) fn dropped(store: Store<'_>, keyspace: KeyspaceNumber) -> Result<()> {
    let concerned = |record: &Record| record.keyspace == keyspace && record.phase != ReshardPhase::Ended;
    for record in store.reshards()?.iter().filter(|record| concerned(record)) {
        take(store, record.id, &Step::Dropped, None)?;
    }
    Ok(())
}

/// Whether a change of the schema has to wait: all images are of one schema, an attempt sees none, and whoever takes over from
/// several shards finds the same changes in the same order with each.
pub(crate) fn has_schema_wait(store: Store<'_>) -> Result<bool> {
    use ReshardPhase::{Imaging, Switched};
    let reshards = store.reshards()?;
    let follows = |record: &Record| (Imaging..=Switched).contains(&record.phase) && record.one_way.is_none();
    if reshards.iter().any(|record| record.still || record.is_attempting()) {
        return Ok(true);
    }
    Ok(reshards.iter().any(follows) && store.busy()?.0)
}

/// Whether an admin's change of a group's replicas has to wait. `automatic` for one that the coordinator found to be needed:
/// an attempt alone is in its way, for its replicas may be why a reshard doesn't get on.
pub(crate) fn has_replicas_wait(store: Store<'_>, group: GroupId, automatic: bool) -> Result<bool> {
    use ReshardPhase::{Imaging, Placing, Spreading};
    let concerns = |record: &Record| {
        let (old, new) = (has(&record.old.parts, group), has(&record.new.parts, group));
        let builds = (Placing..=Imaging).contains(&record.phase) && record.paused.is_none();
        let spreads = record.phase == Spreading && record.paused.is_none();
        record.is_attempting() && (old || new) || !automatic && (builds && old || spreads && new)
    };
    Ok(store.reshards()?.iter().any(concerns))
}

/// The reshard for whose end a course has to wait before it changes a group's replicas. One that hasn't begun waits itself.
pub(crate) fn of_group(store: Store<'_>, group: GroupId) -> Result<Option<ReshardId>> {
    use ReshardPhase::{Ended, Planned};
    let has_begun = |record: &&Record| !matches!(record.phase, Planned | Ended);
    let concerns = |record: &&Record| record.all_groups().any(|of| of == group);
    Ok(store.reshards()?.iter().filter(has_begun).find(concerns).map(|record| record.id))
}

fn has(parts: &[super::record::Part], group: GroupId) -> bool {
    parts.iter().any(|part| part.group == group)
}

impl Record {
    /// As it is told to whoever wished for it, and asks again.
    fn told(&self, topology: &Topology) -> ReshardPlan {
        let keyspace = self.keyspace_name(topology);
        let parts = self.new.parts.iter();
        ReshardPlan {
            reshard: Some(self.id),
            what: self.what.clone(),
            builder: self.builder,
            shards: parts.map(|part| (format!("{keyspace}/{}", part.range), part.replicas.clone())).collect(),
        }
    }

    pub(crate) fn keyspace_name(&self, topology: &Topology) -> String {
        let found = topology.keyspaces.get(&self.keyspace);
        found.map_or_else(|| format!("keyspace {}", self.keyspace), |keyspace| keyspace.name.clone())
    }
}

impl Ledger for Store<'_> {
    fn shard(&mut self) -> Result<ShardId> {
        self.take(Counter::Shard).map(ShardId)
    }

    fn group(&mut self) -> Result<GroupId> {
        self.take(Counter::Group).map(GroupId)
    }

    fn lacking(&self, node: NodeId, groups: &[GroupId]) -> Result<Vec<GroupId>> {
        let shards = self.shards()?;
        let held: BTreeSet<_> =
            shards.values().filter(|shard| shard.replicas.contains(&node)).map(|shard| shard.group).collect();
        Ok(groups.iter().copied().filter(|group| !held.contains(group)).collect())
    }

    fn comes_first(&self, groups: &[GroupId]) -> Result<Option<String>> {
        use ReshardPhase::{Founding, Placing};
        let topology = self.topology()?;
        let courses = self.courses()?;
        let concerns = |course: &&course::Record| course.groups(&topology).iter().any(|g| groups.contains(g));
        if let Some(course) = courses.iter().find(concerns) {
            return Ok(Some(format!("{}, which is under way, comes first", course.what)));
        }
        let jobs = self.replica_jobs()?;
        if let Some(job) = jobs.iter().find(|job| groups.contains(&job.group())) {
            return Ok(Some(format!("{}, which is under way, comes first", job.what)));
        }
        let reshards = self.reshards()?;
        let building = reshards.iter().filter(|record| (Placing..=Founding).contains(&record.phase));
        let building: Vec<_> = building.map(|record| record.id.to_string()).collect();
        let waits = building.len() >= BUILDERS;
        Ok(waits.then(|| format!("reshards {} build, which come first", building.join(" and "))))
    }

    /// Schema changes of other keyspaces count, too: those of reference tables concern all of them.
    fn is_quiet(&self, _: KeyspaceNumber, groups: &[GroupId]) -> Result<bool> {
        Ok(!self.busy()?.0 && !self.has_replica_jobs(groups)?)
    }
}

impl Store<'_> {
    /// Every reshard that is known, in the order of their beginning.
    pub(crate) fn reshards(&self) -> Result<Vec<Record>> {
        self.all("SELECT body FROM shoal_reshard ORDER BY id", [], |row| {
            Record::read(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn reshard(&self, id: ReshardId) -> Result<Option<Record>> {
        let sql = "SELECT body FROM shoal_reshard WHERE id = ?1";
        let found = self.first(sql, [id.0 as i64], |row| row.get::<_, Vec<u8>>(0))?;
        found.map(|bytes| Record::read(&bytes)).transpose()
    }

    /// Writes a reshard down. The oldest of those that have ended are forgotten.
    fn put_reshard(&self, record: &Record) -> Result<()> {
        let sql = "INSERT INTO shoal_reshard VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (id) DO UPDATE SET body = excluded.body";
        let (router, sequence) = (record.request.router.0 as i64, record.request.sequence as i64);
        self.run(sql, params![record.id.0 as i64, router, sequence, record.keyspace.0, record.bytes()])?;
        if record.phase == ReshardPhase::Ended {
            let ended = |record: &Record| record.phase == ReshardPhase::Ended;
            let ended: Vec<_> = self.reshards()?.into_iter().filter(ended).map(|record| record.id).collect();
            for id in &ended[..ended.len().saturating_sub(REMEMBERED)] {
                self.run("DELETE FROM shoal_reshard WHERE id = ?1", [id.0 as i64])?;
            }
        }
        Ok(())
    }

    /// The logs that have ended, and what they go on in.
    pub(crate) fn lineage(&self) -> Result<BTreeMap<GtidSource, Retired>> {
        let sql = "SELECT keyspace, range, incarnation, body FROM shoal_lineage";
        let rows = self.all(sql, [], |row| {
            let range: String = row.get(1).map_err(error)?;
            let shard = KeyRange::parse(&range).ok_or_else(|| {
                WireError::new(SqlState::DATA_CORRUPTED, format!("the lineage names range \"{range}\""))
            })?;
            let (keyspace, incarnation) = (row.get(0).map_err(error)?, row.get(2).map_err(error)?);
            let source = GtidSource { keyspace, shard, incarnation: Incarnation(incarnation) };
            Ok((source, stored::read_retired(&row.get::<_, Vec<u8>>(3).map_err(error)?)?))
        })?;
        Ok(rows.into_iter().collect())
    }

    fn retire(&self, retired: &Retired) -> Result<()> {
        let source = self.topology()?.gtid_source(retired.shard);
        let source = source
            .ok_or_else(|| WireError::internal(format!("shard {} ends and isn't there", retired.shard)))?;
        let GtidSource { keyspace, shard, incarnation } = source;
        let body = stored::retired_bytes(retired);
        self.run(
            "INSERT INTO shoal_lineage VALUES (?1, ?2, ?3, ?4)",
            params![keyspace, shard.to_string(), incarnation.0, body],
        )
    }

    /// The incarnation that the shards of a keyspace begin with which gets this name: one that no shard of the name has had.
    pub(crate) fn first_incarnation(&self, keyspace: &str) -> Result<Incarnation> {
        let sql = "SELECT last FROM shoal_incarnation WHERE keyspace = ?1";
        let last = self.first(sql, [keyspace], |row| row.get::<_, u32>(0))?;
        Ok(Incarnation(last.unwrap_or(0) + 1))
    }

    /// Forgets what became of a keyspace's logs: there is nothing that they go on in. Their names are never used again.
    pub(crate) fn forget_logs(&self, keyspace: &Keyspace) -> Result<()> {
        let ended = self.lineage()?.into_keys().filter(|source| source.keyspace == keyspace.name);
        let there = self.shards()?.into_values().filter(|shard| shard.keyspace == keyspace.number);
        let had = ended.map(|source| source.incarnation).chain(there.map(|shard| shard.incarnation));
        let Some(last) = had.max() else { return Ok(()) };
        self.run(
            "INSERT INTO shoal_incarnation VALUES (?1, ?2)
                ON CONFLICT (keyspace) DO UPDATE SET last = max(last, excluded.last)",
            params![keyspace.name, last.0],
        )?;
        self.run("DELETE FROM shoal_lineage WHERE keyspace = ?1", [&keyspace.name])
    }

    /// Forgets a shard, with what was to become of its replicas.
    pub(crate) fn drop_shard(&self, shard: &Shard) -> Result<()> {
        for job in self.replica_jobs()?.iter().filter(|job| job.group() == shard.group) {
            let gone = WireError::new(SqlState::UNDEFINED_OBJECT, "the shard was dropped meanwhile");
            self.end_replica_job(job, &Err(gone))?;
        }
        self.run("DELETE FROM shoal_shard WHERE id = ?1", [shard.id.0 as i64])
    }

    fn has_replica_jobs(&self, groups: &[GroupId]) -> Result<bool> {
        Ok(self.replica_jobs()?.iter().map(ReplicaJob::group).any(|group| groups.contains(&group)))
    }

    fn found(&self, id: ShardId) -> Result<Shard> {
        let missing = || WireError::internal(format!("a reshard's shard {id} is gone"));
        self.shards()?.remove(&id).ok_or_else(missing)
    }

    /// Changes the topology as a step says. The record is the one after it.
    fn change(&self, record: &Record, change: &Change) -> Result<()> {
        match change {
            Change::Put(ids) => {
                for part in record.new.parts.iter().filter(|part| ids.contains(&part.shard)) {
                    self.put_shard(&Shard {
                        id: part.shard,
                        keyspace: record.keyspace,
                        range: part.range.clone(),
                        incarnation: part.incarnation,
                        group: part.group,
                        replicas: vec![record.builder],
                        formed: true,
                        first: LogIndex(0),
                    })?;
                }
                Ok(())
            }
            Change::Drop(ids) => ids.iter().try_for_each(|id| self.drop_shard(&self.found(*id)?)),
            Change::Rename { from, to, incarnation } => {
                let shard = self.found(*from)?;
                self.run("DELETE FROM shoal_shard WHERE id = ?1", [from.0 as i64])?;
                self.put_shard(&Shard { id: *to, incarnation: *incarnation, first: LogIndex(0), ..shard })
            }
            Change::First(id, first) => self.put_shard(&Shard { first: *first, ..self.found(*id)? }),
            Change::Retire(retired) => self.retire(retired),
            Change::Serve { instead_of, shards } => self.serve(record, instead_of, shards),
            Change::Epoch => self.next_epoch(),
        }
    }

    fn serve(&self, record: &Record, instead_of: &[ShardId], shards: &[ShardId]) -> Result<()> {
        let rows = self.keyspaces()?;
        let row = rows.into_iter().find(|row| row.keyspace.number == record.keyspace);
        let other = || WireError::internal(format!("reshard {} is of another keyspace by now", record.id));
        let mut row = row.ok_or_else(other)?;
        let serving = &mut row.keyspace.shards;
        let at = serving.iter().position(|shard| Some(shard) == instead_of.first()).ok_or_else(other)?;
        let end = at + instead_of.len();
        if serving.get(at..end) != Some(instead_of) {
            return Err(other());
        }
        serving.splice(at..end, shards.iter().copied());
        self.put_keyspace(&row)
    }
}

#[cfg(test)]
mod tests;
