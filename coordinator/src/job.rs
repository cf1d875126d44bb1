//! A schema change under way: what is left to do, and how far it has come.
//!
//! A job is written whole into the coordinator's log before anything happens on a shard, so that any later leader
//! can take it up where it stands. Its stages are worked off in order; each can be done again without harm, for the
//! shards know a step by its name. The messages here are kept on disk: a field's number is for ever.

use dialect::physical;
use proto::catalog::Table;
use proto::layout::{Layout, TableLayout};
use proto::services::SchemaChange;
use proto::topology::Sharding;
use proto::wire::Wire;
use proto::{
    ColumnId, KeyspaceNumber, RequestId, RouterIncarnation, SchemaVersion, ShardId, SqlState, TableId, Value,
    WireError,
};
use std::collections::BTreeMap;

/// Undoing a stage is a step of its own on a shard, so many further on.
const UNDO: u32 = 1000;

/// One schema change.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Job {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(uint64, tag = "2")]
    router: u64,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    /// Runs alone: it keeps old plans off the shards by a version that only it may publish.
    #[prost(bool, tag = "4")]
    pub(crate) exclusive: bool,
    /// The change with all ids given out; empty for a job that only makes a keyspace.
    #[prost(bytes = "vec", tag = "5")]
    change: Vec<u8>,
    /// The keyspace that it makes; 0 for none.
    #[prost(uint32, tag = "6")]
    keyspace: u32,
    #[prost(message, repeated, tag = "7")]
    pub(crate) stages: Vec<Stage>,
    /// The stage that is next.
    #[prost(uint32, tag = "8")]
    pub(crate) stage: u32,
    /// The catalog version that shows the change; 0 while it isn't known.
    #[prost(uint64, tag = "9")]
    version: u64,
    /// Why it failed. What its stage did is then to be undone.
    #[prost(bytes = "vec", optional, tag = "10")]
    failed_by: Option<Vec<u8>>,
    /// The shards on which the failed stage is to be undone.
    #[prost(uint64, repeated, tag = "11")]
    undo: Vec<u64>,
}

/// One stage: all its shards at once.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stage {
    #[prost(enumeration = "Kind", tag = "1")]
    pub(crate) kind: i32,
    /// For [`Kind::Entries`]. A shard is in one of them at most.
    #[prost(message, repeated, tag = "2")]
    pub(crate) groups: Vec<Group>,
    /// Whether the entries also refuse requests that were planned before the job's version.
    #[prost(bool, tag = "3")]
    pub(crate) fence: bool,
    #[prost(enumeration = "Failure", tag = "4")]
    pub(crate) failure: i32,
    /// For [`Kind::Copy`].
    #[prost(message, repeated, tag = "5")]
    pub(crate) copies: Vec<Copying>,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    /// An entry on each of some shards.
    Entries = 0,
    /// Rows of reference tables to shards that don't serve yet.
    Copy = 1,
    /// The catalog and the topology change, and everyone is told.
    Publish = 2,
}

/// What a failing entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Failure {
    /// The job fails, and what the other shards did is undone.
    Undo = 0,
    /// Only a log line: the change is published, and what is left behind harms nobody.
    Ignore = 1,
}

/// The same entry for several shards.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Group {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) shards: Vec<u64>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) statements: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) undo: Vec<String>,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) require_empty: Vec<u32>,
    /// How rows lie after the statements: [`TableLayout`]s.
    #[prost(bytes = "vec", repeated, tag = "5")]
    layouts: Vec<Vec<u8>>,
    /// And after what undoes them.
    #[prost(bytes = "vec", repeated, tag = "6")]
    undo_layouts: Vec<Vec<u8>>,
}

/// A table whose rows go to further shards.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Copying {
    #[prost(uint32, tag = "1")]
    pub(crate) table: u32,
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) columns: Vec<u32>,
    #[prost(uint64, tag = "3")]
    pub(crate) source: u64,
    #[prost(uint64, repeated, tag = "4")]
    pub(crate) targets: Vec<u64>,
}

/// An entry for one shard.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entry {
    pub(crate) doing: Doing,
    pub(crate) undo: Doing,
    pub(crate) require_empty: Vec<u32>,
}

/// What an entry does to tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Doing {
    pub(crate) statements: Vec<String>,
    /// How rows lie afterwards in the tables that it makes, changes or drops.
    layouts: BTreeMap<TableId, Option<Layout>>,
}

/// What one shard is to do in a step.
pub(crate) struct Request {
    pub(crate) shard: ShardId,
    pub(crate) statements: Vec<String>,
    /// How rows lie after the statements.
    pub(crate) layouts: Vec<TableLayout>,
    pub(crate) require_empty: Vec<TableId>,
}

impl Doing {
    /// Makes a table.
    pub(crate) fn create(&mut self, table: &Table, sharding: Sharding) -> Result<(), WireError> {
        self.statements.extend(physical::create(table)?);
        self.layouts.insert(table.id, Some(physical::layout(table, sharding)?));
        Ok(())
    }

    /// Makes another table of one.
    pub(crate) fn change(
        &mut self,
        old: &Table,
        new: &Table,
        fill: &[(ColumnId, Value)],
        sharding: Sharding,
    ) -> Result<(), WireError> {
        let statements = physical::change(old, new, fill)?;
        if !statements.is_empty() {
            self.statements.extend(statements);
            self.layouts.insert(new.id, Some(physical::layout(new, sharding)?));
        }
        Ok(())
    }

    /// Drops a table.
    pub(crate) fn drop(&mut self, table: TableId) {
        self.statements.extend(physical::drop(table));
        self.layouts.insert(table, None);
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_nothing(&self) -> bool {
        self.statements.is_empty()
    }

    /// Does further things afterwards.
    pub(crate) fn extend(&mut self, further: Doing) {
        self.statements.extend(further.statements);
        self.layouts.extend(further.layouts);
    }

    fn into_parts(self) -> (Vec<String>, Vec<Vec<u8>>) {
        let layouts = self.layouts.into_iter().map(|(table, layout)| TableLayout { table, layout }.encode());
        (self.statements, layouts.collect())
    }
}

impl Job {
    /// A job at its beginning. `version` is known already if it is exclusive.
    pub(crate) fn new(
        id: u64,
        request: RequestId,
        change: Option<&SchemaChange>,
        stages: Vec<Stage>,
    ) -> Self {
        Job {
            id,
            router: request.router.0,
            sequence: request.sequence,
            change: change.map(Wire::encode).unwrap_or_default(),
            stages,
            ..Job::default()
        }
    }

    /// The same job, alone until it publishes this version.
    pub(crate) fn alone_until(mut self, version: SchemaVersion) -> Self {
        self.exclusive = true;
        self.version = version.0;
        self
    }

    /// The same job, making a keyspace.
    pub(crate) fn making(mut self, keyspace: Option<KeyspaceNumber>) -> Self {
        self.keyspace = keyspace.map_or(0, |number| number.0);
        self
    }

    /// Reads what `prost::Message::encode_to_vec` wrote.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        <Job as prost::Message>::decode(bytes).map_err(|e| damaged(&e))
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// Who asked for it.
    pub(crate) fn request(&self) -> RequestId {
        RequestId { router: RouterIncarnation(self.router), sequence: self.sequence }
    }

    /// The change; `None` for a job that only makes a keyspace.
    pub(crate) fn change(&self) -> Result<Option<SchemaChange>, WireError> {
        if self.change.is_empty() {
            return Ok(None);
        }
        SchemaChange::decode(&self.change).map(Some).map_err(|e| damaged(&e))
    }

    /// The keyspace that it makes.
    pub(crate) fn keyspace(&self) -> Option<KeyspaceNumber> {
        (self.keyspace != 0).then_some(KeyspaceNumber(self.keyspace))
    }

    /// The version that shows the change, once it is known.
    pub(crate) fn version(&self) -> Option<SchemaVersion> {
        (self.version != 0).then_some(SchemaVersion(self.version))
    }

    /// Learns the version that shows the change.
    pub(crate) fn publish_as(&mut self, version: SchemaVersion) {
        self.version = version.0;
    }

    /// The stage that is next.
    pub(crate) fn current(&self) -> Option<&Stage> {
        self.stages.get(self.stage as usize)
    }

    /// The step that the current stage is on a shard.
    pub(crate) fn step(&self) -> u32 {
        self.stage + 1
    }

    /// The step that undoes the current stage.
    pub(crate) fn undo_step(&self) -> u32 {
        self.step() + UNDO
    }

    /// Notes that the current stage failed, and where it must be undone.
    pub(crate) fn fail(&mut self, error: &WireError, undo: impl IntoIterator<Item = ShardId>) {
        self.failed_by = Some(error.encode());
        self.undo = undo.into_iter().map(|shard| shard.0).collect();
    }

    /// Whether its stage has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed_by.is_some()
    }

    /// Why it failed.
    pub(crate) fn error(&self) -> Result<Option<WireError>, WireError> {
        self.failed_by.as_deref().map(|bytes| WireError::decode(bytes).map_err(|e| damaged(&e))).transpose()
    }

    /// What undoes the failed stage, for each shard that needs it.
    pub(crate) fn undoing(&self) -> Result<Vec<Request>, WireError> {
        let groups = self.current().map(|stage| stage.groups.as_slice()).unwrap_or_default();
        let mut requests = Vec::new();
        for group in groups.iter().filter(|group| !group.undo.is_empty()) {
            let shards = group.shards.iter().filter(|shard| self.undo.contains(shard));
            requests.extend(Request::each(shards, &group.undo, &group.undo_layouts, &[])?);
        }
        Ok(requests)
    }
}

impl Request {
    fn each<'a>(
        shards: impl Iterator<Item = &'a u64>,
        statements: &[String],
        layouts: &[Vec<u8>],
        require_empty: &[u32],
    ) -> Result<impl Iterator<Item = Request>, WireError> {
        let read = |bytes: &Vec<u8>| TableLayout::decode(bytes).map_err(|e| damaged(&e));
        let layouts: Vec<_> = layouts.iter().map(read).collect::<Result<_, _>>()?;
        Ok(shards.map(move |shard| Request {
            shard: ShardId(*shard),
            statements: statements.to_vec(),
            layouts: layouts.clone(),
            require_empty: require_empty.iter().map(|id| TableId(*id)).collect(),
        }))
    }
}

impl Stage {
    /// A stage of entries.
    pub(crate) fn entries(entries: BTreeMap<ShardId, Entry>, fence: bool, failure: Failure) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (shard, entry) in entries {
            let (statements, layouts) = entry.doing.into_parts();
            let (undo, undo_layouts) = entry.undo.into_parts();
            let require_empty = entry.require_empty;
            let mut group =
                Group { shards: Vec::new(), statements, undo, require_empty, layouts, undo_layouts };
            let same = groups.iter_mut().find(|other| {
                group.shards.clone_from(&other.shards);
                group == **other
            });
            match same {
                Some(same) => same.shards.push(shard.0),
                None => {
                    group.shards = vec![shard.0];
                    groups.push(group);
                }
            }
        }
        Stage { kind: Kind::Entries as i32, groups, fence, failure: failure as i32, copies: Vec::new() }
    }

    /// What its entries are, for each shard.
    pub(crate) fn requests(&self) -> Result<Vec<Request>, WireError> {
        let mut requests = Vec::new();
        for group in &self.groups {
            let shards = group.shards.iter();
            requests.extend(Request::each(shards, &group.statements, &group.layouts, &group.require_empty)?);
        }
        Ok(requests)
    }

    /// The stage that publishes.
    pub(crate) fn publish() -> Self {
        Stage { kind: Kind::Publish as i32, ..Stage::default() }
    }

    /// The shards of its entries.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.groups.iter().flat_map(|group| &group.shards).map(|shard| ShardId(*shard))
    }

    /// A stage that copies.
    pub(crate) fn copy(copies: Vec<Copying>) -> Self {
        Stage { kind: Kind::Copy as i32, copies, ..Stage::default() }
    }
}

fn damaged(problem: &dyn std::fmt::Display) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("a schema change's record: {problem}"))
}
