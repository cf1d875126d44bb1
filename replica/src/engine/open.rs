//! Making a replica's database, and opening it again after any stop.
//!
//! Its system tables are made in the same transaction as the group's initial SQL, so a database either has both or is
//! made anew.

use super::{Checkpointed, Engine, Limits, Routers};
use crate::changeset::{Shapes, uncapturable};
use crate::connection::{self, Hooks};
use crate::error::ReplicaError;
use crate::log::write_afresh;
use crate::session::Capturing;
use protobuf::Message as _;
use raft::eraftpb::ConfState;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const SYSTEM_TABLES: &str = "
    CREATE TABLE replica_state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        applied INTEGER NOT NULL,
        floor INTEGER NOT NULL,
        conf_state BLOB NOT NULL
    ) STRICT;
    CREATE TABLE replica_requests (
        router INTEGER NOT NULL, sequence INTEGER NOT NULL, output BLOB NOT NULL,
        PRIMARY KEY (router, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE replica_marks (router INTEGER PRIMARY KEY, settled INTEGER NOT NULL) STRICT;
    CREATE TABLE replica_schema (
        job INTEGER NOT NULL, step INTEGER NOT NULL, position INTEGER NOT NULL, failure BLOB,
        PRIMARY KEY (job, step)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE replica_holds (name TEXT PRIMARY KEY NOT NULL, position INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE replica_notes (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL) STRICT, WITHOUT ROWID;";

impl Engine {
    /// Where a group's database lies in its directory.
    pub fn database(directory: &Path) -> PathBuf {
        directory.join("replica.sqlite")
    }

    /// A group's database before its first entry.
    #[cfg(test)]
    pub fn create(
        directory: &Path,
        voters: &[u64],
        init: &[String],
        limits: Limits,
    ) -> Result<Engine, ReplicaError> {
        Self::found(directory, 0, voters, init, limits)
    }

    /// Makes a new database, or finishes one whose making was cut short; one that is finished is opened. Its founding
    /// counts as the group's first entries, up to this index.
    pub fn found(
        directory: &Path,
        index: u64,
        voters: &[u64],
        init: &[String],
        limits: Limits,
    ) -> Result<Engine, ReplicaError> {
        if let Some(engine) = Self::open(directory, limits)? {
            return Ok(engine);
        }
        fs::create_dir_all(directory).map_err(ReplicaError::io(directory))?;
        let path = Self::database(directory);
        let hooks = Hooks::default();
        let connection = connection::writer(&path, &hooks).map_err(ReplicaError::sqlite(&path))?;
        let make = || -> rusqlite::Result<Vec<String>> {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            Self::lay_out(&connection)?;
            for statement in init {
                connection.execute_batch(statement)?;
            }
            Self::begin_state(&connection, index, voters)?;
            let uncapturable = uncapturable(&connection)?;
            if uncapturable.is_empty() {
                connection.execute_batch("COMMIT")?;
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            }
            Ok(uncapturable)
        };
        let uncapturable = make().map_err(ReplicaError::sqlite(&path))?;
        if !uncapturable.is_empty() {
            let tables = uncapturable.join(", ");
            return Err(ReplicaError::Invalid(format!(
                "tables without a primary key that is NOT NULL: {tables}"
            )));
        }
        drop(connection);
        let sync =
            |path: &Path| fs::File::open(path).and_then(|f| f.sync_all()).map_err(ReplicaError::io(path));
        sync(directory)?;
        if let Some(parent) = directory.parent() {
            sync(parent)?;
        }
        Self::open(directory, limits)?.ok_or_else(|| ReplicaError::Damaged {
            path,
            message: "it was just made and has no state".into(),
        })
    }

    /// Makes the tables that every replica's database has, without rows.
    pub fn lay_out(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch(SYSTEM_TABLES)
    }

    /// Writes that the group begins after this index, with these voters; or says whether it is written like that.
    pub fn begin_state(connection: &Connection, index: u64, voters: &[u64]) -> rusqlite::Result<bool> {
        let conf_state = ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let encoded =
            encode(&conf_state).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let begun = (index.cast_signed(), index.cast_signed(), encoded);
        if let Some(state) = state(connection)? {
            return Ok(state == begun);
        }
        connection.execute("INSERT INTO replica_state VALUES (1, ?1, ?2, ?3)", begun)?;
        Ok(true)
    }

    /// Writes the WAL of a database that nobody has open anew, and syncs it: an earlier sync failed, so what the kernel
    /// shows of it need not be on the disk. SQLite takes of it what has the right checksums.
    pub fn write_wal_afresh(directory: &Path) -> Result<(), ReplicaError> {
        let wal = directory.join("replica.sqlite-wal");
        match write_afresh(&wal) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(ReplicaError::io(&wal)(error)),
            _ => Ok(()),
        }
    }

    /// An engine that has nothing and waits for an image to take its place.
    pub fn blank(directory: &Path, limits: Limits) -> Result<Engine, ReplicaError> {
        let path = Self::database(directory);
        let connection = Connection::open_in_memory().map_err(ReplicaError::sqlite(&path))?;
        Ok(Engine {
            path,
            connection: Capturing::new(connection),
            hooks: Hooks::default(),
            limits,
            applied: 0,
            floor: 0,
            conf_state: ConfState::default(),
            reconfigured: BTreeMap::new(),
            holds: BTreeMap::new(),
            shapes: Shapes::default(),
            batch: None,
            stand: None,
            following: true,
            checkpointed: Checkpointed::default(),
            routers: Routers::default(),
            page_bytes: 0,
            file_bytes: 0,
        })
    }

    /// Opens a finished database; `None` if there is none.
    pub fn open(directory: &Path, limits: Limits) -> Result<Option<Engine>, ReplicaError> {
        let path = Self::database(directory);
        if !path.try_exists().map_err(ReplicaError::io(&path))? {
            return Ok(None);
        }
        let hooks = Hooks::default();
        let connection = connection::writer(&path, &hooks).map_err(ReplicaError::sqlite(&path))?;
        let Some((applied, floor, conf_state)) = state(&connection).map_err(ReplicaError::sqlite(&path))?
        else {
            return Ok(None);
        };
        let conf_state = ConfState::parse_from_bytes(&conf_state).map_err(|e| ReplicaError::Damaged {
            path: path.clone(),
            message: format!("its ConfState: {e}"),
        })?;
        let holds = holds(&connection).map_err(ReplicaError::sqlite(&path))?;
        let page_bytes: i64 = connection
            .query_row("PRAGMA page_size", [], |row| row.get(0))
            .map_err(ReplicaError::sqlite(&path))?;
        let mut engine = Engine {
            path,
            connection: Capturing::new(connection),
            hooks,
            limits,
            applied: applied.cast_unsigned(),
            floor: floor.cast_unsigned(),
            conf_state,
            reconfigured: BTreeMap::new(),
            holds,
            shapes: Shapes::default(),
            batch: None,
            stand: None,
            // Whatever the connection's settings are, the first call sets them.
            following: true,
            checkpointed: Checkpointed::default(),
            routers: Routers::default(),
            page_bytes: page_bytes.cast_unsigned(),
            file_bytes: 0,
        };
        engine.measure();
        engine.follow(false)?;
        Ok(Some(engine))
    }
}

/// A configuration as the database keeps it: replicas that agree on it have the same bytes.
pub(super) fn encode(conf_state: &ConfState) -> Result<Vec<u8>, ReplicaError> {
    let mut conf_state = conf_state.clone();
    conf_state.mut_voters().sort_unstable();
    conf_state.mut_voters_outgoing().sort_unstable();
    conf_state.mut_learners().sort_unstable();
    conf_state.mut_learners_next().sort_unstable();
    conf_state.write_to_bytes().map_err(|e| ReplicaError::Invalid(e.to_string()))
}

fn holds(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut statement = connection.prepare("SELECT name, position FROM replica_holds")?;
    let holds = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
    holds.collect()
}

fn state(connection: &Connection) -> rusqlite::Result<Option<(i64, i64, Vec<u8>)>> {
    let made: bool = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'replica_state'",
        [],
        |row| row.get(0),
    )?;
    if !made {
        return Ok(None);
    }
    connection
        .query_row("SELECT applied, floor, conf_state FROM replica_state", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()
}
