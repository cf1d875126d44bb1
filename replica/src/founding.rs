//! Founding a group with a database that was made elsewhere, so that a crash at any moment leaves no group or all of it.
//!
//! 1. What the replica's own tables say of a group's beginning is written into the file where it lies, and synced.
//! 2. The log notes the founding.
//! 3. The file gets the database's name. This is the moment: what a crash leaves before it is no group, and the file;
//!    after it there is the group, and it runs when its node is started.
//!
//! Doing it again goes on from wherever it was left. The group has one voter, this node; others come as members
//! ([`Replica::change_members`]), and get images. It must never know what is in the file beside the replica's own tables.

use crate::changeset::uncapturable;
use crate::consensus::FOUNDING;
use crate::engine::Engine;
use crate::error::ReplicaError;
use crate::host::Host;
use crate::log::{self, Batch, Change, Kept, LogStore};
use crate::peer::Peer;
use crate::replica::Replica;
use proto::{GroupId, NodeId};
use raft::eraftpb::HardState;
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A group that is being founded from a file.
struct Founding<'a> {
    file: &'a Path,
    directory: &'a Path,
    log: &'a dyn LogStore,
    group: GroupId,
    node: NodeId,
}

type Step = fn(&Founding<'_>) -> Result<(), ReplicaError>;

/// One by one, for each could be the last before a crash. A database must never be seen with a WAL that isn't its own.
const STEPS: [Step; 8] = [
    complete,
    |founding| note(founding.log, founding.group, founding.node),
    |founding| fs::create_dir_all(founding.directory).map_err(ReplicaError::io(founding.directory)),
    |founding| sync(parent(founding.directory)),
    |founding| ["-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove(founding.directory, suffix)),
    |founding| sync(founding.directory),
    |founding| {
        fs::rename(founding.file, Engine::database(founding.directory))
            .map_err(ReplicaError::io(founding.file))
    },
    |founding| sync(founding.directory).and_then(|()| sync(parent(founding.file))),
];

impl Host {
    /// Founds a group whose first state is a database that was made elsewhere on the disk that the node's files are on, or
    /// finds it founded already. The file is gone afterwards. It has the replica's own tables ([`lay_out`]); in them may be
    /// what requests and schema entries were told, these at position 1, and notes. Nobody has it open.
    ///
    /// [`ReplicaError::Invalid`] if it isn't such a file; it is left as it was, and there is no group.
    pub fn create_from(&self, group: GroupId, file: &Path) -> Result<Replica, ReplicaError> {
        if let Some(replica) = self.replica(group) {
            return Ok(replica);
        }
        let (log, directory) = (self.check_new(group)?, &self.directory(group));
        let founding = Founding { file, directory, log: log.as_ref(), group, node: self.node() };
        let is_there = Engine::open(directory, self.limits())?.is_some();
        let [complete, rest @ ..] = STEPS;
        if !is_there {
            // It may take long, if much of the file has yet to get to the disk: nobody waits for it.
            complete(&founding)?;
        }
        let mut groups = self.lock_groups();
        if let Some(replica) = groups.get(&group) {
            return Ok(replica.clone());
        }
        if self.log_and_drive().is_none() {
            // By now it may be another process that has the files.
            return Err(ReplicaError::ShutDown);
        }
        if !is_there {
            rest.iter().try_for_each(|step| step(&founding))?;
        }
        let engine = Engine::open(directory, self.limits())?.ok_or_else(|| ReplicaError::Damaged {
            path: Engine::database(directory),
            message: "it was just put in place and has no state".into(),
        })?;
        let replica = self.start(group, engine, None)?;
        groups.insert(group, replica.clone());
        drop(groups);
        self.note_change();
        Ok(replica)
    }
}

/// Makes the replica's own tables in a database that is to be a group's first state ([`Host::create_from`]): without rows,
/// and but for what the founding writes itself.
pub fn lay_out(connection: &Connection) -> rusqlite::Result<()> {
    Engine::lay_out(connection)
}

/// Writes a group's founding into the log, before there is a database that needs it.
pub(crate) fn note(log: &dyn LogStore, group: GroupId, node: NodeId) -> Result<(), ReplicaError> {
    if log.kept(group.0)? != Kept::default() {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.put(group.0, Change::Reset(FOUNDING));
    let state = HardState { term: FOUNDING.term, commit: FOUNDING.index, ..HardState::default() };
    batch.put(group.0, Change::HardState(state));
    batch.put(group.0, log::note_peer(Peer::founding(node)));
    log.write(batch, true)
}

/// Writes into the file who is in the group, and at which index it begins. One file is left, durably: no journal, no WAL.
fn complete(founding: &Founding<'_>) -> Result<(), ReplicaError> {
    let file = founding.file;
    let voters = [Peer::founding(founding.node).raw()];
    let refusal = |why: &str| ReplicaError::Invalid(format!("{}: {why}", file.display()));
    let write = || -> rusqlite::Result<Result<(), String>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        dialect::sqlite::register(&connection)?;
        // A crash may have left a journal or a WAL beside it, which this takes up.
        connection
            .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL; BEGIN IMMEDIATE")?;
        if !connection.table_exists(Some("main"), "replica_state")? {
            return Ok(Err("it hasn't the replica's own tables".into()));
        }
        let tables = uncapturable(&connection)?;
        if !tables.is_empty() {
            return Ok(Err(format!("tables without a primary key that is NOT NULL: {}", tables.join(", "))));
        }
        let is_so = Engine::begin_state(&connection, FOUNDING.index, &voters)?;
        if !is_so {
            return Ok(Err("it is the state of a group that has begun already".into()));
        }
        connection.execute_batch("COMMIT")?;
        Ok(Ok(()))
    };
    write().map_err(ReplicaError::sqlite(file))?.map_err(|why| refusal(&why))?;
    sync(file)?;
    sync(parent(file))
}

/// Removes what lies beside a group's database, if it's there.
fn remove(directory: &Path, suffix: &str) -> Result<(), ReplicaError> {
    let mut path = Engine::database(directory).into_os_string();
    path.push(suffix);
    let path = PathBuf::from(path);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(ReplicaError::io(&path)(error)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync(path: &Path) -> Result<(), ReplicaError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ReplicaError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::log::RaftEngineLog;
    use proto::services::{RaftMessage, RaftTransport};
    use protobuf::Message as _;
    use std::sync::Arc;

    const GROUP: GroupId = GroupId(7);
    const NODE: NodeId = NodeId(3);
    const ROWS: i64 = 1000;

    struct Nowhere;

    impl RaftTransport for Nowhere {
        fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
    }

    fn file(node: &Path) -> PathBuf {
        node.join("builds").join("shard-1.sqlite")
    }

    fn group(node: &Path) -> PathBuf {
        node.join("groups").join(GROUP.to_string())
    }

    /// Makes a file that is to be a group's first state; a part of it is in what `mode` leaves beside it.
    fn build(node: &Path, mode: &str) {
        let path = file(node);
        fs::create_dir_all(parent(&path)).unwrap();
        let aside = node.join("aside");
        fs::create_dir_all(&aside).unwrap();
        let connection = Connection::open(aside.join("shard-1.sqlite")).unwrap();
        connection.execute_batch(&format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 1")).unwrap();
        lay_out(&connection).unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT;
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
                 INSERT INTO t1 SELECT i, printf('%.*c', 200, 'x') FROM n;
                 INSERT INTO replica_requests VALUES (9, 5, x'61');
                 BEGIN; DELETE FROM t1 WHERE c1 % 2; UPDATE t1 SET c2 = 'undone';"
            ))
            .unwrap();
        // The process that made it dies here: what wasn't committed is undone by whoever opens it.
        copy(&aside, parent(&path));
        drop(connection);
        fs::remove_dir_all(aside).unwrap();
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => copy(&entry.path(), &target),
                false => drop(fs::copy(entry.path(), target).unwrap()),
            }
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn open(node: &Path) -> Arc<Host> {
        Host::open(Config::new(NODE, node), Arc::new(Nowhere)).unwrap()
    }

    /// What the group's database has: its index when it was opened, its rows, who votes.
    fn state(host: &Host) -> (bool, i64, Vec<NodeId>) {
        let shared = host.replica(GROUP).unwrap().shared();
        let reader = shared.readers.open(None).unwrap();
        let sql = "SELECT count(*) FROM t1 JOIN pragma_integrity_check WHERE length(c2) = 200 AND integrity_check = 'ok'";
        let rows = reader.connection.query_row(sql, [], |row| row.get(0)).unwrap();
        shared.give_back(reader);
        let status = host.replica(GROUP).unwrap().status();
        (status.stopped.is_none() && status.applied.0 >= FOUNDING.index, rows, engine_voters(&shared))
    }

    fn engine_voters(shared: &crate::driver::Shared) -> Vec<NodeId> {
        let reader = shared.readers.open(None).unwrap();
        let sql = "SELECT conf_state FROM replica_state";
        let state: Vec<u8> = reader.connection.query_row(sql, [], |row| row.get(0)).unwrap();
        shared.give_back(reader);
        let state = raft::eraftpb::ConfState::parse_from_bytes(&state).unwrap();
        state.voters.into_iter().map(NodeId).collect()
    }

    #[test]
    fn a_crash_after_any_step_leaves_no_group_or_all_of_it() {
        for mode in ["DELETE", "WAL"] {
            let node = tempfile::tempdir().unwrap();
            build(node.path(), mode);
            assert!(names(parent(&file(node.path()))).len() > 1, "there is something beside it: {mode}");
            let crashed = tempfile::tempdir().unwrap();
            let directory = group(node.path());
            let mut begun = 0;
            for done in 0..=STEPS.len() {
                let left = crashed.path().join(done.to_string());
                copy(node.path(), &left);
                let host = open(&left);
                let there = host.replica(GROUP).is_some();
                assert_eq!(there, !file(&left).exists(), "before step {done}");
                begun += usize::from(there);
                // It goes on from there, whatever was done.
                let replica = host.create_from(GROUP, &file(&left)).unwrap();
                assert!(host.create_from(GROUP, &file(&left)).unwrap().is(&replica), "it is there already");
                assert_eq!(state(&host), (true, ROWS, vec![NODE]), "after step {done}");
                assert_eq!(names(parent(&file(&left))), Vec::<String>::new());
                drop(replica);
                host.shutdown();
                drop(host);
                let host = open(&left);
                assert_eq!(state(&host), (true, ROWS, vec![NODE]));
                host.shutdown();
                if let Some(step) = STEPS.get(done) {
                    let log = RaftEngineLog::open(&node.path().join("log"), 1 << 20).unwrap();
                    let file = file(node.path());
                    step(&Founding {
                        file: &file,
                        directory: &directory,
                        log: &log,
                        group: GROUP,
                        node: NODE,
                    })
                    .unwrap();
                }
            }
            assert_eq!(begun, 2, "it is there from when the file has the database's name");
        }
    }

    #[test]
    fn what_an_earlier_founding_left_does_not_get_into_it() {
        let node = tempfile::tempdir().unwrap();
        build(node.path(), "DELETE");
        // One that was cut short, and left a WAL.
        let directory = group(node.path());
        fs::create_dir_all(&directory).unwrap();
        let other = Connection::open(Engine::database(&directory)).unwrap();
        other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)").unwrap();
        let aside = node.path().join("aside");
        copy(&directory, &aside);
        drop(other);
        fs::remove_dir_all(&directory).unwrap();
        fs::rename(aside, &directory).unwrap();
        assert_eq!(names(&directory), ["replica.sqlite", "replica.sqlite-shm", "replica.sqlite-wal"]);
        let host = open(node.path());
        host.create_from(GROUP, &file(node.path())).unwrap();
        assert_eq!(state(&host), (true, ROWS, vec![NODE]));
    }

    #[test]
    fn a_file_that_somebody_has_open_loses_nothing() {
        let node = tempfile::tempdir().unwrap();
        let host = open(node.path());
        let path = node.path().join("file.sqlite");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        lay_out(&connection).unwrap();
        let error = host.create_from(GROUP, &path).err().unwrap();
        assert!(matches!(error, ReplicaError::Sqlite { .. }), "{error}");
        assert!(host.replica(GROUP).is_none() && path.exists());
        drop(connection);
        host.create_from(GROUP, &path).unwrap();
    }

    #[test]
    fn what_is_no_first_state_is_refused() {
        let node = tempfile::tempdir().unwrap();
        let host = open(node.path());
        let path = node.path().join("file.sqlite");
        let refused = |sql: &str| {
            drop(fs::remove_file(&path));
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch(sql).unwrap();
            drop(connection);
            let before = fs::read(&path).unwrap();
            let error = host.create_from(GROUP, &path).err().unwrap();
            assert!(matches!(error, ReplicaError::Invalid(_)), "{error}");
            assert_eq!(fs::read(&path).unwrap(), before);
            assert!(host.replica(GROUP).is_none() && !group(node.path()).exists());
            error.to_string()
        };
        assert!(refused("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)").contains("own tables"));
        let laid_out = |sql: &str| {
            let other = Connection::open_in_memory().unwrap();
            lay_out(&other).unwrap();
            let sqls: Vec<String> = other
                .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            refused(&format!("{};{sql}", sqls.join(";")))
        };
        assert!(laid_out("CREATE TABLE t2 (c1 TEXT)").contains("t2"));
        assert!(laid_out("INSERT INTO replica_state VALUES (1, 4711, 1, x'')").contains("begun"));
        let missing = host.create_from(GROUP, &node.path().join("nothing.sqlite")).err().unwrap();
        assert!(matches!(missing, ReplicaError::Sqlite { .. }), "{missing}");
        assert!(host.replica(GROUP).is_none());
    }
}
