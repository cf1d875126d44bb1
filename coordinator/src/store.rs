//! The coordinator's tables, and their rows as domain types.
//!
//! In comes a connection, inside a write or a snapshot; in and out go descriptors, counters and jobs. Which change is
//! right when is decided elsewhere. Descriptors are kept as the bytes that also cross the wire ([`proto::wire`]).

use crate::config::Config;
use crate::decisions;
use crate::job::Job;
use crate::reshard::{self, Record};
use bytes::Bytes;
use dialect::sqlite::error;
use proto::catalog::{Catalog, FIRST_USER_ID, RoleSettings, Sequence, Table};
use proto::machine;
use proto::topology::{Keyspace, Shard, Topology};
use proto::wire::Wire;
use proto::{
    Epoch, KeyspaceNumber, RequestId, SchemaVersion, SequenceId, ShardId, SqlState, TableId, WireError,
};
use replica::{Replica, Stage, Write, Written};
use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How many answers to schema changes are remembered.
const ANSWERS: i64 = 10_000;

type Result<T> = std::result::Result<T, WireError>;

/// What every founding replica runs before its first log entry.
pub(crate) fn init(config: &Config) -> Vec<String> {
    let mut statements: Vec<String> = [
        "CREATE TABLE shoal_counter (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) STRICT",
        "CREATE TABLE shoal_node (id INTEGER NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_keyspace (number INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL,
            ready INTEGER NOT NULL, owner INTEGER NOT NULL, descriptor BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_shard (id INTEGER NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_table (id INTEGER NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_sequence (id INTEGER NOT NULL PRIMARY KEY, descriptor BLOB NOT NULL,
            next INTEGER) STRICT",
        "CREATE TABLE shoal_role (name TEXT NOT NULL PRIMARY KEY, settings BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_job (id INTEGER NOT NULL PRIMARY KEY, router INTEGER NOT NULL,
            request INTEGER NOT NULL, exclusive INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_lock (object INTEGER NOT NULL PRIMARY KEY, job INTEGER NOT NULL) STRICT",
        "CREATE TABLE shoal_name (name TEXT NOT NULL PRIMARY KEY, job INTEGER NOT NULL) STRICT",
        "CREATE TABLE shoal_answer (id INTEGER NOT NULL PRIMARY KEY, router INTEGER NOT NULL,
            request INTEGER NOT NULL, value INTEGER NOT NULL, error BLOB) STRICT",
        "CREATE INDEX shoal_answer_request ON shoal_answer (router, request)",
        "CREATE TABLE shoal_cluster (id BLOB NOT NULL PRIMARY KEY) STRICT",
        "CREATE TABLE shoal_coordinator (node INTEGER NOT NULL PRIMARY KEY) STRICT",
        "CREATE TABLE shoal_replica_job (id INTEGER NOT NULL PRIMARY KEY, router INTEGER NOT NULL,
            request INTEGER NOT NULL, raft_group INTEGER NOT NULL UNIQUE, body BLOB NOT NULL) STRICT",
        "CREATE TABLE shoal_course (id INTEGER NOT NULL PRIMARY KEY, router INTEGER NOT NULL,
            request INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    ]
    .map(String::from)
    .into();
    let counters = [
        (Counter::Epoch, 1),
        (Counter::Version, 1),
        (Counter::Object, i64::from(FIRST_USER_ID)),
        (Counter::Group, 2),
        (Counter::Shard, 1),
        (Counter::Keyspace, 1),
        (Counter::Job, 1),
        (Counter::Reshard, 1),
        (Counter::Answer, 1),
        (Counter::Node, 1),
        (Counter::Clock, 0),
    ];
    statements.extend(decisions::TABLES.map(String::from));
    statements.extend(reshard::TABLES.map(String::from));
    statements.push(format!("INSERT INTO shoal_cluster VALUES (x'{:032x}')", config.cluster.0));
    statements
        .extend(config.voters.iter().map(|node| format!("INSERT INTO shoal_coordinator VALUES ({node})")));
    statements.extend(
        counters.map(|(counter, value)| {
            format!("INSERT INTO shoal_counter VALUES ('{}', {value})", counter.name())
        }),
    );
    statements
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// The topology's epoch.
    Epoch,
    /// The catalog's version.
    Version,
    /// The next table, index or sequence.
    Object,
    /// The next Raft group.
    Group,
    /// The next shard.
    Shard,
    /// The next keyspace.
    Keyspace,
    /// The next job.
    Job,
    /// The next reshard.
    Reshard,
    /// The next answer.
    Answer,
    /// The least node id that was never given out.
    Node,
    /// Milliseconds for which somebody has led while there was something to forget.
    Clock,
}

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Counter::Epoch => "epoch",
            Counter::Version => "version",
            Counter::Object => "object",
            Counter::Group => "group",
            Counter::Shard => "shard",
            Counter::Keyspace => "keyspace",
            Counter::Job => "job",
            Counter::Reshard => "reshard",
            Counter::Answer => "answer",
            Counter::Node => "node",
            Counter::Clock => "clock",
        }
    }
}

/// Runs a write on the coordinator's leader, which must be here. Nobody asks for it again, so it has no name.
pub(crate) async fn write(
    replica: &Replica,
    patience: Duration,
    run: impl FnOnce(Store<'_>) -> Result<Bytes> + Send + 'static,
) -> Result<Bytes> {
    staged(replica, patience, move |stage| run(Store(stage))).await.map(|written| written.output)
}

/// The same for what must know the term that it runs in, with the position that has it.
pub(crate) async fn staged(
    replica: &Replica,
    patience: Duration,
    run: impl FnOnce(&Stage<'_>) -> Result<Bytes> + Send + 'static,
) -> Result<Written> {
    let deadline = machine::now() + patience;
    replica.write(Write { request: None, settled: 0, deadline, run: Box::new(run) }).await
}

/// The coordinator's tables as one transaction sees them.
#[derive(Clone, Copy)]
pub(crate) struct Store<'a>(pub(crate) &'a Connection);

/// A keyspace with what only the coordinator knows of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyspaceRow {
    pub(crate) keyspace: Keyspace,
    /// Whether it serves; one that is still being made is hidden from routers.
    pub(crate) ready: bool,
    /// The table that it was made for and goes with.
    pub(crate) owner: Option<TableId>,
}

/// What became of a schema change: a number (the catalog's version, a keyspace), or why it failed.
pub(crate) type Answer = std::result::Result<u64, WireError>;

pub(crate) fn decode<T: Wire>(bytes: &[u8]) -> Result<T> {
    T::decode(bytes)
        .map_err(|e| WireError::new(SqlState::DATA_CORRUPTED, format!("the coordinator's state: {e}")))
}

impl Store<'_> {
    pub(crate) fn run(&self, sql: &str, params: impl Params) -> Result<()> {
        self.0.prepare_cached(sql).map_err(error)?.execute(params).map_err(error)?;
        Ok(())
    }

    pub(crate) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut row: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(sql).map_err(error)?;
        let mut rows = statement.query(params).map_err(error)?;
        let mut found = Vec::new();
        while let Some(next) = rows.next().map_err(error)? {
            found.push(row(next)?);
        }
        Ok(found)
    }

    pub(crate) fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.0.prepare_cached(sql).map_err(error)?.query_row(params, row).optional().map_err(error)
    }

    /// The counter's value.
    pub(crate) fn counter(&self, counter: Counter) -> Result<u64> {
        let value = self.first("SELECT value FROM shoal_counter WHERE name = ?1", [counter.name()], |r| {
            r.get::<_, i64>(0)
        })?;
        value
            .map(|v| v as u64)
            .ok_or_else(|| WireError::new(SqlState::DATA_CORRUPTED, "the coordinator has lost a counter"))
    }

    /// Takes the counter's value and counts up.
    pub(crate) fn take(&self, counter: Counter) -> Result<u64> {
        let value = self.counter(counter)?;
        self.pass(counter, 1)?;
        Ok(value)
    }

    /// Counts up by so many.
    pub(crate) fn pass(&self, counter: Counter, by: u64) -> Result<()> {
        let sql = "UPDATE shoal_counter SET value = value + ?2 WHERE name = ?1";
        self.run(sql, params![counter.name(), by as i64])
    }

    /// The topology's epoch.
    pub(crate) fn epoch(&self) -> Result<Epoch> {
        self.counter(Counter::Epoch).map(Epoch)
    }

    /// Begins the next epoch.
    pub(crate) fn next_epoch(&self) -> Result<()> {
        self.take(Counter::Epoch).map(drop)
    }

    /// The catalog's version.
    pub(crate) fn version(&self) -> Result<SchemaVersion> {
        self.counter(Counter::Version).map(SchemaVersion)
    }

    /// Begins the catalog's next version, and tells it.
    pub(crate) fn next_version(&self) -> Result<SchemaVersion> {
        self.take(Counter::Version)?;
        self.version()
    }

    pub(crate) fn keyspaces(&self) -> Result<Vec<KeyspaceRow>> {
        self.all("SELECT descriptor, ready, owner FROM shoal_keyspace ORDER BY number", [], |row| {
            let owner = row.get::<_, u32>(2).map_err(error)?;
            Ok(KeyspaceRow {
                keyspace: decode(&row.get::<_, Vec<u8>>(0).map_err(error)?)?,
                ready: row.get(1).map_err(error)?,
                owner: (owner != 0).then_some(TableId(owner)),
            })
        })
    }

    pub(crate) fn put_keyspace(&self, row: &KeyspaceRow) -> Result<()> {
        let sql = "INSERT INTO shoal_keyspace VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (number) DO UPDATE SET
            name = excluded.name, ready = excluded.ready, owner = excluded.owner, descriptor = excluded.descriptor";
        let KeyspaceRow { keyspace, ready, owner } = row;
        let owner = owner.map_or(0, |table| table.0);
        self.run(sql, params![keyspace.number.0, keyspace.name, ready, owner, keyspace.encode()])
    }

    /// Forgets a keyspace with its shards.
    pub(crate) fn drop_keyspace(&self, number: KeyspaceNumber) -> Result<()> {
        reshard::dropped(*self, number)?;
        if let Some(row) = self.keyspaces()?.iter().find(|row| row.keyspace.number == number && row.ready) {
            self.forget_logs(&row.keyspace)?;
        }
        for shard in self.shards()?.into_values().filter(|shard| shard.keyspace == number) {
            self.drop_shard(&shard)?;
        }
        self.run("DELETE FROM shoal_keyspace WHERE number = ?1", [number.0])
    }

    pub(crate) fn shards(&self) -> Result<BTreeMap<ShardId, Shard>> {
        let shards = self.all("SELECT descriptor FROM shoal_shard ORDER BY id", [], |row| {
            decode::<Shard>(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })?;
        Ok(shards.into_iter().map(|shard| (shard.id, shard)).collect())
    }

    pub(crate) fn put_shard(&self, shard: &Shard) -> Result<()> {
        let sql = "INSERT INTO shoal_shard VALUES (?1, ?2)
            ON CONFLICT (id) DO UPDATE SET descriptor = excluded.descriptor";
        self.run(sql, params![shard.id.0 as i64, shard.encode()])
    }

    /// The topology as everyone follows it.
    pub(crate) fn topology(&self) -> Result<Topology> {
        let keyspaces = self.keyspaces()?.into_iter().filter(|row| row.ready);
        Ok(Topology {
            epoch: self.epoch()?,
            nodes: self.nodes()?,
            keyspaces: keyspaces.map(|row| (row.keyspace.number, row.keyspace)).collect(),
            shards: self.shards()?,
            lineage: self.lineage()?,
            coordinators: self.coordinators()?,
            joining: self.joining()?,
            reshards: self.reshards()?.iter().filter_map(Record::shown).collect(),
        })
    }

    pub(crate) fn table(&self, id: TableId) -> Result<Option<Table>> {
        let found = self
            .first("SELECT descriptor FROM shoal_table WHERE id = ?1", [id.0], |r| r.get::<_, Vec<u8>>(0))?;
        found.map(|bytes| decode(&bytes)).transpose()
    }

    pub(crate) fn tables(&self) -> Result<Vec<Table>> {
        self.all("SELECT descriptor FROM shoal_table ORDER BY id", [], |row| {
            decode(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn put_table(&self, table: &Table) -> Result<()> {
        let sql = "INSERT INTO shoal_table VALUES (?1, ?2)
            ON CONFLICT (id) DO UPDATE SET descriptor = excluded.descriptor";
        self.run(sql, params![table.id.0, table.encode()])
    }

    pub(crate) fn drop_table(&self, id: TableId) -> Result<()> {
        self.run("DELETE FROM shoal_table WHERE id = ?1", [id.0])
    }

    /// A sequence and its next value; `None` once it has reached its end.
    pub(crate) fn sequence(&self, id: SequenceId) -> Result<Option<(Sequence, Option<i64>)>> {
        let found =
            self.first("SELECT descriptor, next FROM shoal_sequence WHERE id = ?1", [id.0], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))
            })?;
        found.map(|(bytes, next)| Ok((decode(&bytes)?, next))).transpose()
    }

    pub(crate) fn sequences(&self) -> Result<Vec<Sequence>> {
        self.all("SELECT descriptor FROM shoal_sequence ORDER BY id", [], |row| {
            decode(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn put_sequence(&self, sequence: &Sequence, next: Option<i64>) -> Result<()> {
        let sql = "INSERT INTO shoal_sequence VALUES (?1, ?2, ?3)
            ON CONFLICT (id) DO UPDATE SET descriptor = excluded.descriptor, next = excluded.next";
        self.run(sql, params![sequence.id.0, sequence.encode(), next])
    }

    pub(crate) fn drop_sequence(&self, id: SequenceId) -> Result<()> {
        self.run("DELETE FROM shoal_sequence WHERE id = ?1", [id.0])
    }

    /// What the sessions of a role begin with, or `None` for every role's.
    pub(crate) fn role_settings(&self, role: Option<&str>) -> Result<RoleSettings> {
        let name = role.unwrap_or_default();
        let found = self
            .first("SELECT settings FROM shoal_role WHERE name = ?1", [name], |r| r.get::<_, Vec<u8>>(0))?;
        let none = || Ok(RoleSettings { role: role.map(str::to_owned), settings: Vec::new() });
        found.map_or_else(none, |bytes| decode(&bytes))
    }

    /// Keeps them, if there are any. No role has an empty name, so that is every role's.
    pub(crate) fn put_role_settings(&self, settings: &RoleSettings) -> Result<()> {
        let name = settings.role.as_deref().unwrap_or_default();
        if settings.settings.is_empty() {
            return self.run("DELETE FROM shoal_role WHERE name = ?1", [name]);
        }
        let sql = "INSERT INTO shoal_role VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET settings = excluded.settings";
        self.run(sql, params![name, settings.encode()])
    }

    fn roles(&self) -> Result<Vec<RoleSettings>> {
        self.all("SELECT settings FROM shoal_role ORDER BY name", [], |row| {
            decode(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn catalog(&self) -> Result<Catalog> {
        let tables = self.tables()?.into_iter().map(Arc::new);
        let catalog = Catalog::new(self.version()?, tables, self.sequences()?.into_iter().map(Arc::new));
        Ok(catalog.with_roles(self.roles()?.into_iter().map(Arc::new)))
    }

    /// Every unfinished job, in the order of their beginning.
    pub(crate) fn jobs(&self) -> Result<Vec<Job>> {
        self.all("SELECT body FROM shoal_job ORDER BY id", [], |row| {
            Job::read(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn job(&self, id: u64) -> Result<Option<Job>> {
        let found =
            self.first("SELECT body FROM shoal_job WHERE id = ?1", [id as i64], |r| r.get::<_, Vec<u8>>(0))?;
        found.map(|bytes| Job::read(&bytes)).transpose()
    }

    /// The unfinished job of a request.
    pub(crate) fn job_of(&self, request: RequestId) -> Result<Option<u64>> {
        let key = params![request.router.0 as i64, request.sequence as i64];
        let found = self.first(
            "SELECT id FROM shoal_job WHERE router = ?1 AND request = ?2
            UNION ALL SELECT id FROM shoal_replica_job WHERE router = ?1 AND request = ?2",
            key,
            |r| r.get::<_, i64>(0),
        )?;
        Ok(found.map(|id| id as u64))
    }

    pub(crate) fn put_job(&self, job: &Job) -> Result<()> {
        let sql = "INSERT INTO shoal_job VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (id) DO UPDATE SET body = excluded.body";
        let (router, sequence) = (job.request().router.0 as i64, job.request().sequence as i64);
        self.run(sql, params![job.id as i64, router, sequence, job.exclusive, job.bytes()])
    }

    /// Whether a job runs, and whether one that must be alone does.
    pub(crate) fn busy(&self) -> Result<(bool, bool)> {
        let found =
            self.first("SELECT count(*) > 0, coalesce(max(exclusive), 0) FROM shoal_job", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        Ok(found.unwrap_or_default())
    }

    /// Whether another job holds the object or the name.
    pub(crate) fn is_held(&self, objects: &[u32], names: &[String]) -> Result<bool> {
        for object in objects {
            if self.first("SELECT 1 FROM shoal_lock WHERE object = ?1", [object], |_| Ok(()))?.is_some() {
                return Ok(true);
            }
        }
        for name in names {
            if self.first("SELECT 1 FROM shoal_name WHERE name = ?1", [name], |_| Ok(()))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has the job hold these until it has ended.
    pub(crate) fn hold(&self, job: u64, objects: &[u32], names: &[String]) -> Result<()> {
        for object in objects {
            self.run("INSERT OR IGNORE INTO shoal_lock VALUES (?1, ?2)", params![object, job as i64])?;
        }
        for name in names {
            self.run("INSERT OR IGNORE INTO shoal_name VALUES (?1, ?2)", params![name, job as i64])?;
        }
        Ok(())
    }

    /// Ends a job: what it held is free, and its answer stays.
    pub(crate) fn end_job(&self, job: &Job, answer: &Answer) -> Result<()> {
        let id = job.id as i64;
        self.run("DELETE FROM shoal_lock WHERE job = ?1", [id])?;
        self.run("DELETE FROM shoal_name WHERE job = ?1", [id])?;
        self.run("DELETE FROM shoal_job WHERE id = ?1", [id])?;
        self.put_answer(job.request(), answer)
    }

    /// What a request was answered with.
    pub(crate) fn answer(&self, request: RequestId) -> Result<Option<Answer>> {
        let sql = "SELECT value, error FROM shoal_answer WHERE router = ?1 AND request = ?2";
        let key = params![request.router.0 as i64, request.sequence as i64];
        let found =
            self.first(sql, key, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?)))?;
        match found {
            None => Ok(None),
            Some((value, None)) => Ok(Some(Ok(value as u64))),
            Some((_, Some(bytes))) => Ok(Some(Err(decode::<WireError>(&bytes)?))),
        }
    }

    /// Remembers what a request is answered with; the oldest answers are forgotten.
    pub(crate) fn put_answer(&self, request: RequestId, answer: &Answer) -> Result<()> {
        let id = self.take(Counter::Answer)? as i64;
        let (value, error) = match answer {
            Ok(value) => (*value as i64, None),
            Err(error) => (0, Some(error.encode())),
        };
        let (router, sequence) = (request.router.0 as i64, request.sequence as i64);
        self.run(
            "INSERT INTO shoal_answer VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, router, sequence, value, error],
        )?;
        self.run("DELETE FROM shoal_answer WHERE id <= ?1", [id - ANSWERS])
    }
}
