//! Taking a schema change in: is it still right, what ids does it get, and what has to happen where.
//!
//! In come a request and the coordinator's tables as its write sees them. Out comes a job with all its stages, or an
//! answer at once. Everything that can be refused is refused here, before any shard is asked. The order of a job's
//! stages is what keeps plans right that were made before it:
//!
//! - What only adds (a table, an index, a column that may be NULL) is made on the shards, then published.
//! - What only takes away is published, then removed, and the removing entry refuses older plans.
//! - Everything else runs alone. Its entries refuse plans older than the version that it is about to publish, so
//!   that routers wait for that version instead of meeting tables that are not what they planned for.

use crate::alter::{self, Placed};
use crate::job::{Copying, Doing, Entry, Failure, Job, Stage};
use crate::keyspace;
use crate::reshard;
use crate::store::{Counter, Store};
use bytes::Bytes;
use dialect::physical;
use proto::catalog::{ColumnDefault, Placement, Relation, RoleChange, Sequence, Table};
use proto::services::{CreateKeyspace, SchemaChange, SchemaChangeRequest};
use proto::topology::{Keyspace, Sharding};
use proto::wire::Wire;
use proto::{
    ColumnId, IndexId, KeyspaceNumber, RequestId, Retry, SchemaVersion, SequenceId, ShardId, SqlState,
    TableId, WireError,
};
use std::collections::{BTreeMap, BTreeSet};

/// Whoever makes or drops a keyspace or touches a reference table holds this: each must see all of the others.
const REFERENCES: u32 = 0;

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Admission {
    /// It is done, with this result.
    Done(u64),
    /// It was done, and failed.
    Failed(WireError),
    /// This job does it.
    Running(u64),
    /// Others are in the way.
    Wait,
}

type Result<T> = std::result::Result<T, WireError>;

impl Admission {
    /// As the output of a write.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let (tag, rest) = match self {
            Admission::Done(value) => (0, value.to_le_bytes().to_vec()),
            Admission::Failed(error) => (1, error.encode()),
            Admission::Running(job) => (2, job.to_le_bytes().to_vec()),
            Admission::Wait => (3, Vec::new()),
        };
        [&[tag], rest.as_slice()].concat().into()
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = || WireError::internal("an admission's record is damaged");
        let (tag, rest) = bytes.split_first().ok_or_else(damaged)?;
        let number = || Ok(u64::from_le_bytes(rest.try_into().map_err(|_| damaged())?));
        match tag {
            0 => number().map(Admission::Done),
            1 => WireError::decode(rest).map(Admission::Failed).map_err(|_| damaged()),
            2 => number().map(Admission::Running),
            3 => Ok(Admission::Wait),
            _ => Err(damaged()),
        }
    }
}

/// Takes a schema change in.
pub(crate) fn change(store: Store<'_>, request: &SchemaChangeRequest) -> Result<Admission> {
    if let Some(known) = known(store, request.request)? {
        return Ok(known);
    }
    let admitting = Admitting {
        store,
        request: request.request,
        planned_by: request.planned_by,
        version: store.version()?,
    };
    let (_, alone) = store.busy()?;
    if alone || request.change.reaches_shards() && reshard::has_schema_wait(store)? {
        return Ok(Admission::Wait);
    }
    match &request.change {
        SchemaChange::CreateTable { table, sequences } => admitting.create(table, sequences),
        SchemaChange::ReplaceTable { table, sequences, fill } => admitting.replace(table, sequences, fill),
        SchemaChange::DropTables(tables) => admitting.drop(tables),
        SchemaChange::Truncate { tables, restart_identity } => admitting.truncate(tables, *restart_identity),
        SchemaChange::CreateSequence(sequence) => admitting.create_sequence(sequence),
        SchemaChange::ReplaceSequence { sequence, restart } => admitting.replace_sequence(sequence, *restart),
        SchemaChange::DropSequences(sequences) => admitting.drop_sequences(sequences),
        SchemaChange::AlterRole { role, change } => admitting.alter_role(role.as_deref(), change),
    }
}

/// Takes a wish for a keyspace in.
pub(crate) fn keyspace(store: Store<'_>, wish: &CreateKeyspace) -> Result<Admission> {
    if let Some(known) = known(store, wish.request)? {
        return Ok(known);
    }
    keyspace::check(store, wish)?;
    let admitting =
        Admitting { store, request: wish.request, planned_by: store.version()?, version: store.version()? };
    if store.busy()?.1 || store.is_held(&[REFERENCES], &[])? || reshard::has_schema_wait(store)? {
        return Ok(Admission::Wait);
    }
    let references = admitting.references()?;
    if !references.is_empty() && store.busy()?.0 {
        return Ok(Admission::Wait);
    }
    let before = keyspace::shards_of(store, &Placement::Reference)?;
    let made = keyspace::make(store, wish, None, false)?;
    let stages = admitting.furnish(&references, &before, &made, Doing::default())?;
    admitting.begin(None, stages, !references.is_empty(), Some(made.number), &[REFERENCES], &[])
}

/// What is known of a request that was taken in before.
pub(crate) fn known(store: Store<'_>, request: RequestId) -> Result<Option<Admission>> {
    if let Some(job) = store.job_of(request)? {
        return Ok(Some(Admission::Running(job)));
    }
    Ok(store.answer(request)?.map(|answer| match answer {
        Ok(value) => Admission::Done(value),
        Err(error) => Admission::Failed(error),
    }))
}

struct Admitting<'a> {
    store: Store<'a>,
    request: RequestId,
    planned_by: SchemaVersion,
    /// The catalog's version now.
    version: SchemaVersion,
}

impl Admitting<'_> {
    fn create(&self, table: &Table, sequences: &[Sequence]) -> Result<Admission> {
        let names = names_of(table, sequences);
        let own_keyspace =
            matches!(table.placement, Placement::Sharded { keyspace, .. } if keyspace == KeyspaceNumber(0));
        let reference = table.placement == Placement::Reference;
        let held: &[u32] = if own_keyspace || reference { &[REFERENCES] } else { &[] };
        if self.store.is_held(held, &names)? {
            return Ok(Admission::Wait);
        }
        self.check_names(&names, None)?;
        let references = if own_keyspace { self.references()? } else { Vec::new() };
        if !references.is_empty() && self.store.busy()?.0 {
            return Ok(Admission::Wait);
        }

        let mut table = table.clone();
        table.id = TableId(self.object()?);
        let sequences = self.give_ids(&mut table, sequences)?;
        let before = keyspace::shards_of(self.store, &Placement::Reference)?;
        let made = match &mut table.placement {
            Placement::Sharded { keyspace, .. } if *keyspace == KeyspaceNumber(0) => {
                let wish = CreateKeyspace {
                    request: self.request,
                    name: keyspace::name_for(self.store, &table.name)?,
                    sharding: Sharding::Range,
                    shards: 1,
                    replicas: None,
                };
                let made = keyspace::make(self.store, &wish, Some(table.id), false)?;
                *keyspace = made.number;
                Some(made)
            }
            _ => None,
        };
        let mut entry = Entry::default();
        entry.doing.create(&table, keyspace::sharding_of(self.store, &table.placement)?)?;
        let stages = match &made {
            Some(made) => self.furnish(&references, &before, made, entry.doing)?,
            None => {
                entry.undo.drop(table.id);
                let shards = keyspace::shards_of(self.store, &table.placement)?;
                let entries = shards.into_iter().map(|shard| (shard, entry.clone())).collect();
                vec![Stage::entries(entries, false, Failure::Undo), Stage::publish()]
            }
        };
        let objects = [&[table.id.0], held].concat();
        let change = SchemaChange::CreateTable { table, sequences };
        let made = made.map(|keyspace| keyspace.number);
        self.begin(Some(change), stages, !references.is_empty(), made, &objects, &names)
    }

    /// The stages that make a keyspace serve: its shards get the reference tables with their rows, and `further`
    /// tables. With reference tables, all that other shards serve is held off meanwhile, so that no row is missed.
    fn furnish(
        &self,
        references: &[Table],
        before: &[ShardId],
        made: &Keyspace,
        further: Doing,
    ) -> Result<Vec<Stage>> {
        // Nothing to undo: a keyspace that never served is forgotten with its shards.
        let mut entry = Entry::default();
        for table in references {
            entry.doing.create(table, keyspace::sharding_of(self.store, &table.placement)?)?;
        }
        entry.doing.extend(further);
        let fresh: BTreeMap<_, _> = made.shards.iter().map(|shard| (*shard, entry.clone())).collect();
        if references.is_empty() {
            return Ok(vec![Stage::entries(fresh, false, Failure::Undo), Stage::publish()]);
        }
        let source = before.first().ok_or_else(|| WireError::internal("a reference table is on no shard"))?;
        let copies = references.iter().map(|table| Copying {
            table: table.id.0,
            columns: table.columns.iter().map(|column| column.id.0).collect(),
            source: source.0,
            targets: made.shards.iter().map(|shard| shard.0).collect(),
        });
        Ok(vec![
            Stage::entries(fresh, true, Failure::Undo),
            Stage::entries(
                before.iter().map(|shard| (*shard, Entry::default())).collect(),
                true,
                Failure::Undo,
            ),
            Stage::copy(copies.collect()),
            Stage::publish(),
        ])
    }

    fn replace(
        &self,
        table: &Table,
        sequences: &[Sequence],
        fill: &[(ColumnId, proto::Value)],
    ) -> Result<Admission> {
        let old = self.current(table.id)?;
        if old.modified != table.modified {
            return Err(self.stale());
        }
        let before = names_of(&old, &[]);
        let mut names = names_of(table, sequences);
        names.retain(|name| !before.contains(name));
        let reference = [&old.placement, &table.placement].contains(&&Placement::Reference);
        let objects = if reference { vec![table.id.0, REFERENCES] } else { vec![table.id.0] };
        if self.store.is_held(&objects, &names)? {
            return Ok(Admission::Wait);
        }
        self.check_names(&names, Some(old.id))?;

        let mut table = table.clone();
        let sequences = self.give_ids(&mut table, sequences)?;
        let alteration = if old.placement == table.placement {
            let shards = keyspace::shards_of(self.store, &old.placement)?;
            let sharding = keyspace::sharding_of(self.store, &old.placement)?;
            alter::in_place(&old, &table, fill, &shards, sharding)?
        } else {
            if matches!(table.placement, Placement::Sharded { keyspace, .. } if keyspace == KeyspaceNumber(0))
            {
                return Err(WireError::unsupported("moving a table into a range keyspace of its own")
                    .with_hint("Create a new table with PARTITION BY RANGE and copy the rows."));
            }
            let source = keyspace::shards_of(self.store, &old.placement)?;
            let target = keyspace::shards_of(self.store, &table.placement)?;
            let sharding = |table: &Table| keyspace::sharding_of(self.store, &table.placement);
            let before = Placed { table: &old, shards: &source, sharding: sharding(&old)? };
            let after = Placed { table: &table, shards: &target, sharding: sharding(&table)? };
            alter::re_place(&before, &after)?
        };
        if alteration.alone && self.store.busy()?.0 {
            return Ok(Admission::Wait);
        }
        let change = SchemaChange::ReplaceTable { table, sequences, fill: Vec::new() };
        self.begin(Some(change), alteration.stages, alteration.alone, None, &objects, &names)
    }

    fn drop(&self, ids: &[TableId]) -> Result<Admission> {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        let mut tables = Vec::new();
        for id in &ids {
            let table = self.current(*id)?;
            if table.modified > self.planned_by {
                return Err(self.stale());
            }
            tables.push(table);
        }
        let rows = self.store.keyspaces()?;
        let gone: Vec<_> =
            rows.iter().filter(|row| row.owner.is_some_and(|owner| ids.contains(&owner))).collect();
        let reference = tables.iter().any(|table| table.placement == Placement::Reference);
        let spread = (reference || !gone.is_empty()).then_some(REFERENCES);
        let objects: Vec<_> = ids.iter().map(|id| id.0).chain(spread).collect();
        if self.store.is_held(&objects, &[])? {
            return Ok(Admission::Wait);
        }
        for sequence in self.store.sequences()? {
            if sequence.owner.is_some_and(|(table, _)| ids.contains(&table)) {
                let what = format!("sequence {}", sequence.name);
                self.check_unused(sequence.id, &what, &ids)?;
            }
        }
        // The shards of a keyspace that goes with its table go whole.
        let gone: BTreeSet<_> = gone.iter().flat_map(|row| &row.keyspace.shards).collect();
        let mut entries: BTreeMap<ShardId, Entry> = BTreeMap::new();
        for table in &tables {
            let shards = keyspace::shards_of(self.store, &table.placement)?;
            for shard in shards.into_iter().filter(|shard| !gone.contains(shard)) {
                entries.entry(shard).or_default().doing.drop(table.id);
            }
        }
        let stages = vec![Stage::publish(), Stage::entries(entries, true, Failure::Ignore)];
        let change = SchemaChange::DropTables(ids.into_iter().collect());
        self.begin(Some(change), stages, false, None, &objects, &[])
    }

    fn truncate(&self, ids: &[TableId], restart_identity: bool) -> Result<Admission> {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        let mut objects: Vec<_> = ids.iter().map(|id| id.0).collect();
        let mut entries: BTreeMap<ShardId, Entry> = BTreeMap::new();
        for id in &ids {
            let table = self.current(*id)?;
            if table.modified > self.planned_by {
                return Err(self.stale());
            }
            if table.placement == Placement::Reference {
                objects.push(REFERENCES);
            }
            for shard in keyspace::shards_of(self.store, &table.placement)? {
                entries.entry(shard).or_default().doing.statements.extend(physical::truncate(*id));
            }
        }
        objects.dedup();
        if self.store.is_held(&objects, &[])? {
            return Ok(Admission::Wait);
        }
        let stages = vec![Stage::entries(entries, false, Failure::Undo), Stage::publish()];
        let change = SchemaChange::Truncate { tables: ids.into_iter().collect(), restart_identity };
        self.begin(Some(change), stages, false, None, &objects, &[])
    }

    fn create_sequence(&self, sequence: &Sequence) -> Result<Admission> {
        let names = [sequence.name.clone()];
        if self.store.is_held(&[], &names)? {
            return Ok(Admission::Wait);
        }
        self.check_names(&names, None)?;
        let mut sequence = sequence.clone();
        sequence.id = SequenceId(self.object()?);
        self.store.put_sequence(&sequence, Some(sequence.start))?;
        self.done()
    }

    fn replace_sequence(&self, sequence: &Sequence, restart: Option<i64>) -> Result<Admission> {
        let Some((old, next)) = self.store.sequence(sequence.id)? else {
            return Err(self.missing(&format!("sequence with OID {}", sequence.id)));
        };
        let names = [sequence.name.clone()];
        if self.store.is_held(&[sequence.id.0], &names)? {
            return Ok(Admission::Wait);
        }
        if old.name != sequence.name {
            self.check_names(&names, None)?;
        }
        // A sequence at its old end goes on where that end was moved.
        let next = restart.or(next).or_else(|| {
            let last = if old.increment > 0 { old.max } else { old.min };
            last.checked_add(sequence.increment)
        });
        let next = next.filter(|next| (sequence.min..=sequence.max).contains(next));
        self.store.put_sequence(sequence, next)?;
        self.done()
    }

    fn drop_sequences(&self, ids: &[SequenceId]) -> Result<Admission> {
        let objects: Vec<_> = ids.iter().map(|id| id.0).collect();
        if self.store.is_held(&objects, &[])? {
            return Ok(Admission::Wait);
        }
        for id in ids {
            let Some((sequence, _)) = self.store.sequence(*id)? else {
                return Err(self.missing(&format!("sequence with OID {id}")));
            };
            self.check_unused(*id, &format!("sequence {}", sequence.name), &BTreeSet::new())?;
        }
        for id in ids {
            self.store.drop_sequence(*id)?;
        }
        self.done()
    }

    fn alter_role(&self, role: Option<&str>, change: &RoleChange) -> Result<Admission> {
        let mut settings = self.store.role_settings(role)?;
        settings.apply(change.clone());
        self.store.put_role_settings(&settings)?;
        self.done()
    }

    /// A change that no shard hears of: it is done.
    fn done(&self) -> Result<Admission> {
        let version = self.store.next_version()?.0;
        self.store.put_answer(self.request, &Ok(version))?;
        Ok(Admission::Done(version))
    }

    fn begin(
        &self,
        change: Option<SchemaChange>,
        stages: Vec<Stage>,
        alone: bool,
        making: Option<KeyspaceNumber>,
        objects: &[u32],
        names: &[String],
    ) -> Result<Admission> {
        let id = self.store.take(Counter::Job)?;
        let mut stages = stages;
        if alone {
            // Who is away would leave the others fenced off for as long: all must answer before any is.
            let shards =
                stages.iter().flat_map(Stage::shards).map(|shard| (shard, Entry::default())).collect();
            stages.insert(0, Stage::entries(shards, false, Failure::Undo));
        }
        let mut job = Job::new(id, self.request, change.as_ref(), stages).making(making);
        if alone {
            job = job.alone_until(SchemaVersion(self.version.0 + 1));
        }
        self.store.put_job(&job)?;
        self.store.hold(id, objects, names)?;
        Ok(Admission::Running(id))
    }

    fn references(&self) -> Result<Vec<Table>> {
        let tables = self.store.tables()?;
        Ok(tables.into_iter().filter(|table| table.placement == Placement::Reference).collect())
    }

    fn current(&self, id: TableId) -> Result<Table> {
        self.store.table(id)?.ok_or_else(|| self.missing(&format!("relation with OID {id}")))
    }

    /// What the request was planned by has changed.
    fn stale(&self) -> WireError {
        let message = format!("the schema has changed since version {}", self.planned_by);
        WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(Retry::StaleSchema(self.version))
    }

    fn missing(&self, what: &str) -> WireError {
        if self.planned_by < self.version {
            return self.stale();
        }
        WireError::new(SqlState::UNDEFINED_TABLE, format!("{what} does not exist"))
    }

    /// The names must be free, or the table's own.
    fn check_names(&self, names: &[String], table: Option<TableId>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let catalog = self.store.catalog()?;
        for name in names {
            let taken = match catalog.resolve(name) {
                None => false,
                Some(Relation::Table(id) | Relation::Index(id, _)) => Some(id) != table,
                Some(Relation::Sequence(_)) => true,
            };
            if taken && self.planned_by < self.version {
                return Err(self.stale());
            }
            if taken || !seen.insert(name) {
                let message = format!("relation \"{name}\" already exists");
                return Err(WireError::new(SqlState::DUPLICATE_TABLE, message));
            }
        }
        Ok(())
    }

    /// No column outside these tables may draw its default from the sequence.
    fn check_unused(&self, id: SequenceId, what: &str, except: &BTreeSet<TableId>) -> Result<()> {
        for table in self.store.tables()?.iter().filter(|table| !except.contains(&table.id)) {
            for column in &table.columns {
                if matches!(column.default, Some(ColumnDefault::Sequence { id: used, .. }) if used == id) {
                    let message = format!("cannot drop {what} because other objects depend on it");
                    let detail = format!(
                        "default value for column {} of table {} depends on {what}",
                        column.name, table.name
                    );
                    return Err(WireError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
                        .with_detail(detail)
                        .with_hint("Drop the default or the table first."));
                }
            }
        }
        Ok(())
    }

    fn object(&self) -> Result<u32> {
        self.store.take(Counter::Object).map(|id| id as u32)
    }

    /// Gives the table's new indexes and these sequences their ids, and puts them where the columns name a sequence
    /// by its place.
    fn give_ids(&self, table: &mut Table, sequences: &[Sequence]) -> Result<Vec<Sequence>> {
        for index in table.indexes.iter_mut().filter(|index| index.id == IndexId(0)) {
            index.id = IndexId(self.object()?);
        }
        let mut named = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let mut sequence = sequence.clone();
            sequence.id = SequenceId(self.object()?);
            sequence.owner = sequence.owner.map(|(_, column)| (table.id, column));
            named.push(sequence);
        }
        for column in &mut table.columns {
            if let Some(ColumnDefault::Sequence { id, .. }) = &mut column.default
                && id.0 < proto::catalog::FIRST_USER_ID
            {
                let place = (id.0 as usize).checked_sub(1);
                let sequence = place.and_then(|place| named.get(place)).ok_or_else(|| {
                    WireError::internal(format!("a column names new sequence {id}, and there is none"))
                })?;
                *id = sequence.id;
            }
        }
        Ok(named)
    }
}

/// Every name that a table takes in `public`, its sequences' among them.
fn names_of(table: &Table, sequences: &[Sequence]) -> Vec<String> {
    let own = [Some(&table.name), table.primary_key_name.as_ref()].into_iter().flatten();
    let indexes = table.indexes.iter().map(|index| &index.name);
    let sequences = sequences.iter().filter(|sequence| !sequence.hidden).map(|sequence| &sequence.name);
    own.chain(indexes).chain(sequences).cloned().collect()
}
