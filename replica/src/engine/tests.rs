//! The engine driven by hand: what a leader makes of writes, a follower makes of the entries.

use super::*;
use crate::connection::Cancel;
use crate::entry::{Body, Entry, Request, Schema};
use crate::session::Capturing;
use crate::write::WriteFn;
use bytes::Bytes;
use prost::Message as _;
use std::time::Duration;
use tempfile::TempDir;

pub(super) const LIMITS: Limits = Limits {
    transaction_bytes: 1 << 20,
    staged_bytes: 4 << 20,
    batch_bytes: 1 << 16,
    checkpoint_bytes: 1 << 16,
    hold_bytes: 2 << 16,
    end_bytes: 4 << 16,
    remember_for: Duration::from_secs(3600),
    remember_rows: 1 << 14,
    remember_bytes: 64 << 20,
};

/// A leader's engine and a follower's.
pub(super) struct Pair {
    pub leader: Engine,
    pub follower: Engine,
    pub index: u64,
    directory: TempDir,
}

pub(super) fn run(
    engine: &mut Engine,
    request: Option<Request>,
    run: WriteFn,
) -> Result<Ran, proto::WireError> {
    match engine.run(request, run, &Cancel::default()).unwrap() {
        Outcome::Done(ran) => ran,
        Outcome::Undone(error) => panic!("SQLite undid the batch: {error}"),
    }
}

pub(super) fn write(sql: &'static str) -> WriteFn {
    Box::new(move |connection| {
        connection.execute_batch(sql).map_err(dialect::sqlite::error)?;
        Ok(Bytes::new())
    })
}

impl Pair {
    pub fn new(init: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            Engine::create(&directory.path().join(name), &[1], &[init.to_owned()], LIMITS).unwrap()
        };
        Self { leader: open("leader"), follower: open("follower"), index: 0, directory }
    }

    /// Runs writes as one batch, applies its entry on the follower, and checks that both have the same rows.
    pub fn batch(&mut self, writes: &[&'static str]) -> Vec<bool> {
        self.leader.begin(1).unwrap();
        let ran = writes.iter().map(|sql| run(&mut self.leader, None, write(sql)).is_ok()).collect();
        match self.leader.seal(0).unwrap() {
            None => self.leader.rollback().unwrap(),
            Some(data) => {
                self.index += 1;
                self.leader.commit(self.index).unwrap();
                self.follower.apply(&[(self.index, data)]).unwrap();
            }
        }
        self.assert_equal();
        ran
    }

    pub fn assert_equal(&self) {
        assert_eq!(dump(&self.leader), dump(&self.follower));
    }
}

pub(super) fn dump(engine: &Engine) -> Vec<String> {
    let connection = &engine.connection;
    let tables: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut found = Vec::new();
    for table in tables {
        let mut statement = connection.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<String> =
                (0..columns).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect();
            found.push(format!("{table}: {}", values.join(", ")));
        }
    }
    found.sort();
    found
}

#[test]
fn unique_values_can_be_swapped() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL UNIQUE, c3) ");
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a', 0), (2, 'b', 0), (3, 'c', 0)"]);
    let swap = "UPDATE t1 SET c2 = 'tmp' WHERE c1 = 1; UPDATE t1 SET c2 = 'a' WHERE c1 = 2;
                UPDATE t1 SET c2 = 'b' WHERE c1 = 1";
    assert_eq!(pair.batch(&[swap]), [true]);
    let rotate = "UPDATE t1 SET c2 = c2 || '!'; UPDATE t1 SET c2 = 'c' WHERE c1 = 1;
                  UPDATE t1 SET c2 = 'b' WHERE c1 = 2; UPDATE t1 SET c2 = 'a' WHERE c1 = 3";
    assert_eq!(pair.batch(&[rotate]), [true]);
}

/// What the tests beside this one show was tried with this one alone.
#[test]
fn sqlite_is_the_version_that_was_tried() {
    assert_eq!(rusqlite::version(), "3.54.1");
}

/// A changeset ignores tables without a primary key, and rows that have a NULL in it.
#[test]
fn tables_whose_changes_could_be_missed_are_refused() {
    let tables = ["CREATE TABLE t2 (c1 TEXT)", "CREATE TABLE t2 (c1 TEXT PRIMARY KEY, c2)"];
    for table in tables {
        let mut connection = Capturing::new(Connection::open_in_memory().unwrap());
        connection.execute_batch(table).unwrap();
        connection.begin_capture();
        connection.execute("INSERT INTO t2 (c1) VALUES (NULL)", []).unwrap();
        assert!(connection.capture().unwrap().changeset().unwrap().is_empty(), "it is missed: {table}");

        let directory = tempfile::tempdir().unwrap();
        let refused = Engine::create(directory.path(), &[1], &[table.to_owned()], LIMITS).err().unwrap();
        assert!(refused.to_string().contains("t2"), "{refused}");
        let mut pair = Pair::new("");
        let schema = Schema { job: 1, step: 1, statements: vec![table.to_owned()], ..Schema::default() };
        let data: Bytes = Entry::new(0, Body::Schema(schema)).encode_to_vec().into();
        for engine in [&mut pair.leader, &mut pair.follower] {
            let applied = engine.apply(&[(1, data.clone())]).unwrap();
            let answer = applied.answers[0].1.as_ref().unwrap_err();
            assert_eq!(answer.sqlstate, proto::SqlState::INVALID_TABLE_DEFINITION);
        }
    }
    for table in [
        "CREATE TABLE t2 (c1 TEXT NOT NULL PRIMARY KEY)",
        "CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)",
        "CREATE TABLE t2 (c1 TEXT PRIMARY KEY) WITHOUT ROWID",
    ] {
        drop(Pair::new(table));
    }
}

#[test]
fn primary_keys_can_move_along_a_chain() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')"]);
    assert_eq!(pair.batch(&["UPDATE t1 SET c1 = -c1; UPDATE t1 SET c1 = 1 - c1"]), [true]);
    assert_eq!(pair.batch(&["UPDATE t1 SET c1 = c1 + 10; UPDATE t1 SET c1 = 15 - (c1 - 10) - 10"]), [true]);
}

#[test]
fn composite_text_and_blob_keys_work() {
    let mut pair = Pair::new(
        "CREATE TABLE t1 (c1 TEXT NOT NULL, c2 BLOB NOT NULL, c3 REAL, PRIMARY KEY (c2, c1)) STRICT;
         CREATE TABLE t2 (c1 TEXT NOT NULL PRIMARY KEY, c2) WITHOUT ROWID;",
    );
    pair.batch(&["INSERT INTO t1 VALUES ('a', x'00', 1.5), ('a', x'0001', NULL), ('', x'', -0.0)"]);
    pair.batch(&[
        "UPDATE t1 SET c1 = c1 || 'x', c3 = 9e999 WHERE c3 IS NULL",
        "DELETE FROM t1 WHERE c1 = ''",
    ]);
    pair.batch(&[
        "INSERT INTO t2 VALUES ('k', 1)",
        "UPDATE t2 SET c1 = 'm'",
        "INSERT INTO t2 VALUES ('k', 2)",
    ]);
}

#[test]
fn generated_columns_are_computed_by_each_replica() {
    let mut pair = Pair::new(
        "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 INTEGER, c3 AS (c2 * 2) STORED, c4 AS (c2 + 1) VIRTUAL);
         CREATE INDEX i1 ON t1 (c4);",
    );
    pair.batch(&["INSERT INTO t1 (c1, c2) VALUES (1, 10), (2, 20)", "UPDATE t1 SET c2 = 5 WHERE c3 = 40"]);
}

#[test]
fn what_changes_nothing_needs_no_entry() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    pair.batch(&["INSERT INTO t1 VALUES (1, 5)"]);
    assert_eq!(pair.index, 1);
    pair.batch(&["UPDATE t1 SET c2 = 5", "DELETE FROM t1 WHERE c1 = 9"]);
    pair.batch(&["INSERT INTO t1 VALUES (2, 2); DELETE FROM t1 WHERE c1 = 2"]);
    assert_eq!(pair.index, 1);
}

#[test]
fn cascades_and_triggers_act_on_the_leader_alone() {
    let mut pair = Pair::new(
        "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY);
         CREATE TABLE t2 (c1 INTEGER PRIMARY KEY, c2 INTEGER REFERENCES t1 ON DELETE CASCADE);
         CREATE TABLE t3 (c1 INTEGER PRIMARY KEY, c2);
         CREATE TRIGGER tr AFTER INSERT ON t1 BEGIN INSERT INTO t3 (c2) VALUES (random()); END;",
    );
    let ran = pair.batch(&[
        "INSERT INTO t1 VALUES (1), (2)",
        "INSERT INTO t2 VALUES (1, 1), (2, 2), (3, 1)",
        "INSERT INTO t2 VALUES (4, 99)",
    ]);
    assert_eq!(ran, [true, true, false]);
    pair.batch(&["DELETE FROM t1 WHERE c1 = 1"]);
    assert!(dump(&pair.follower).iter().any(|row| row.starts_with("t2: Integer(2)")));
}

#[test]
fn a_failed_write_and_its_request_leave_nothing() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    let ran = pair.batch(&[
        "INSERT INTO t1 VALUES (1)",
        "INSERT INTO t1 VALUES (2), (1)",
        "INSERT INTO t1 VALUES (3)",
    ]);
    assert_eq!(ran, [true, false, true]);
    let request = Some(Request { router: 1, sequence: 1, settled: 0 });
    pair.leader.begin(1).unwrap();
    assert!(run(&mut pair.leader, request, write("INSERT INTO t1 VALUES (1)")).is_err());
    // The name is free again: nothing was done under it.
    assert!(!run(&mut pair.leader, request, write("INSERT INTO t1 VALUES (4)")).unwrap().repeated);
    pair.leader.rollback().unwrap();
    assert_eq!(dump(&pair.leader), dump(&pair.follower));
}

#[test]
fn a_write_that_nobody_waits_for_any_more_is_interrupted() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (1)")).unwrap();
    let cancel = Cancel::default();
    let canceller = cancel.clone();
    let endless: WriteFn = Box::new(move |connection| {
        canceller.cancel();
        write(
            "INSERT INTO t1 WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        )(connection)
    });
    let Outcome::Undone(error) = pair.leader.run(None, endless, &cancel).unwrap() else {
        panic!("SQLite keeps nothing of a transaction whose statement was interrupted");
    };
    assert_eq!(error.sqlstate, proto::SqlState::QUERY_CANCELED);
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (2)")).unwrap();
    let data = pair.leader.seal(0).unwrap().unwrap();
    pair.leader.commit(1).unwrap();
    pair.follower.apply(&[(1, data)]).unwrap();
    pair.assert_equal();
    assert_eq!(
        dump(&pair.leader).iter().filter(|row| row.starts_with("t1:")).count(),
        1,
        "{:?}",
        dump(&pair.leader)
    );
}

#[test]
fn what_the_writes_of_a_batch_do_to_each_others_rows_is_captured_as_they_leave_it() {
    let mut pair = Pair::new(
        "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 INTEGER UNIQUE);
         INSERT INTO t1 VALUES (1, 10), (2, 20), (3, 30)",
    );
    let ran = pair.batch(&[
        "UPDATE t1 SET c2 = 11 WHERE c1 = 1",
        "DELETE FROM t1 WHERE c1 = 2; INSERT INTO t1 VALUES (1, 5)",
        "UPDATE t1 SET c2 = 12 WHERE c1 = 1; UPDATE t1 SET c2 = 10 WHERE c1 = 3",
        "INSERT INTO t1 VALUES (4, 30); DELETE FROM t1 WHERE c1 = 4",
        "INSERT INTO t1 VALUES (5, 30)",
        "DELETE FROM t1 WHERE c1 = 2",
        "INSERT INTO t1 VALUES (2, 11)",
    ]);
    assert_eq!(ran, [true, false, true, true, true, true, true]);
    // A swap whose two halves are different writes, by way of a third value.
    pair.batch(&[
        "UPDATE t1 SET c2 = -1 WHERE c1 = 1",
        "UPDATE t1 SET c2 = 12 WHERE c1 = 2",
        "UPDATE t1 SET c2 = 11 WHERE c1 = 1",
    ]);
    // Keys that move on, each to where the next was.
    pair.batch(&["UPDATE t1 SET c1 = c1 + 100", "UPDATE t1 SET c1 = c1 - 99", "UPDATE t1 SET c2 = c2 + 1"]);
    pair.batch(&["UPDATE t1 SET c2 = 0 WHERE c1 = 2", "UPDATE t1 SET c2 = 12 WHERE c1 = 2"]);
}

#[test]
fn a_write_that_panics_fails_alone() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (1)")).unwrap();
    assert!(run(&mut pair.leader, None, Box::new(|_| panic!("of the test"))).is_err());
    let data = pair.leader.seal(0).unwrap().unwrap();
    pair.leader.commit(1).unwrap();
    pair.follower.apply(&[(1, data)]).unwrap();
    pair.assert_equal();
}

fn entry_of(pair: &mut Pair, sql: &'static str) -> Bytes {
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write(sql)).unwrap();
    let data = pair.leader.seal(0).unwrap().unwrap();
    pair.leader.rollback().unwrap();
    data
}

#[test]
fn what_does_not_fit_stops_the_follower() {
    let change = "INSERT INTO t1 VALUES (1, 'a')";
    for (spoil, what) in [
        ("DROP TABLE t1", "no table t1"),
        ("ALTER TABLE t1 DROP COLUMN c2", "other columns"),
        ("ALTER TABLE t1 ADD COLUMN c3", "other columns"),
        ("DROP TABLE t1; CREATE TABLE t1 (c1 INTEGER, c2 TEXT PRIMARY KEY NOT NULL)", "primary key"),
        ("INSERT INTO t1 VALUES (1, 'b')", "exists already"),
    ] {
        let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
        let data = entry_of(&mut pair, change);
        pair.follower.connection.execute_batch(spoil).unwrap();
        let error = pair.follower.apply(&[(1, data)]).unwrap_err().to_string();
        assert!(
            error.contains(what) && error.contains("replica.sqlite") && error.contains("index 1"),
            "{error}"
        );
    }
    for (spoil, change, what) in [
        ("DELETE FROM t1", "UPDATE t1 SET c2 = 'z'", "missing"),
        ("UPDATE t1 SET c2 = 'q'", "UPDATE t1 SET c2 = 'z'", "other values"),
        ("UPDATE t1 SET c2 = 'q'", "DELETE FROM t1", "other values"),
    ] {
        let mut pair =
            Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2); INSERT INTO t1 VALUES (1, 'a')");
        let data = entry_of(&mut pair, change);
        pair.follower.connection.execute_batch(spoil).unwrap();
        let error = pair.follower.apply(&[(1, data)]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn an_entry_out_of_turn_or_of_the_future_stops_the_replica() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    let data = entry_of(&mut pair, "INSERT INTO t1 VALUES (1)");
    assert!(pair.follower.apply(&[(2, data.clone())]).unwrap_err().to_string().contains("entry 2"));
    let future = Entry { version: 99, floor: 0, body: None }.encode_to_vec();
    let mut pair = Pair::new("");
    assert!(pair.follower.apply(&[(1, future.into())]).unwrap_err().to_string().contains("version 99"));
}

#[test]
fn schema_entries_answer_alike_everywhere_and_remember() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    pair.batch(&["INSERT INTO t1 VALUES (1)"]);
    let entry = |step: u32, statements: &[&str], empty: &[&str]| {
        let schema = Schema {
            job: 1,
            step,
            statements: statements.iter().map(|s| (*s).to_owned()).collect(),
            require_empty: empty.iter().map(|s| (*s).to_owned()).collect(),
            notes: Vec::new(),
        };
        Bytes::from(Entry::new(0, Body::Schema(schema)).encode_to_vec())
    };
    let entries = [
        (2, entry(1, &["CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)"], &[])),
        (3, entry(2, &["DROP TABLE t1"], &["t1"])),
        (4, entry(3, &["DROP TABLE t2", "nonsense"], &["t2"])),
        (5, entry(1, &["CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)"], &[])),
        (6, entry(2, &["DROP TABLE t1"], &[])),
    ];
    let leader = pair.leader.apply(&entries).unwrap().answers;
    let follower = pair.follower.apply(&entries).unwrap().answers;
    assert_eq!(leader, follower);
    pair.assert_equal();
    let answers: Vec<_> = leader.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!(answers[0], Ok(2));
    assert_eq!(answers[1].as_ref().unwrap_err().sqlstate, proto::SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    assert!(answers[2].is_err());
    assert_eq!(answers[3], Ok(2));
    assert_eq!(answers[4], answers[1]);
}

#[test]
fn a_crash_between_any_two_steps_leaves_a_whole_state() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a')"]);
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (2, 'b')")).unwrap();
    let data = pair.leader.seal(0).unwrap().unwrap();
    // The batch was proposed, then the process died.
    let path = pair.directory.path().join("leader");
    let Pair { leader, mut follower, .. } = pair;
    drop(leader);
    let mut leader = Engine::open(&path, LIMITS).unwrap().unwrap();
    assert_eq!(leader.applied(), 1);
    for engine in [&mut leader, &mut follower] {
        engine.apply(&[(2, data.clone()), (3, Bytes::new())]).unwrap();
        assert_eq!(engine.applied(), 3);
    }
    assert_eq!(dump(&leader), dump(&follower));
    assert_eq!(Engine::open(&path, LIMITS).unwrap().unwrap().applied(), 3);
}

#[test]
fn a_database_whose_making_was_cut_short_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(Engine::database(directory.path()), b"").unwrap();
    assert!(Engine::open(directory.path(), LIMITS).unwrap().is_none());
    let init = ["CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)".to_owned()];
    assert_eq!(Engine::create(directory.path(), &[1, 2], &init, LIMITS).unwrap().conf_state().voters, [1, 2]);
    // A second time finds it made, whatever it's asked to be.
    assert_eq!(Engine::create(directory.path(), &[9], &[], LIMITS).unwrap().conf_state().voters, [1, 2]);
}

#[test]
fn a_lock_that_is_held_for_a_moment_does_not_stop_the_writer() {
    let mut pair = Pair::new("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY) STRICT");
    // A checkpoint sets a patience of its own, and that must not stay.
    pair.leader.empty_wal(Duration::ZERO).unwrap();
    let other = Connection::open(pair.leader.path()).unwrap();
    let (locked, is_locked) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // As a reader does that met the WAL's header while it was being written.
        scope.spawn(move || {
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            let since = std::time::Instant::now();
            locked.send(()).unwrap();
            while since.elapsed() < Duration::from_millis(20) {
                std::thread::yield_now();
            }
            other.execute_batch("ROLLBACK").unwrap();
        });
        is_locked.recv().unwrap();
        pair.leader.begin(1).unwrap();
        pair.leader.rollback().unwrap();
    });
}

#[test]
fn a_write_that_meets_a_full_disk_stops_the_replica_and_is_told_of_nobody() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a')"]);
    let pages: i64 = pair.leader.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    pair.leader.connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
    pair.leader.begin(1).unwrap();
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (2, 'b')")).unwrap();
    let big = write("INSERT INTO t1 VALUES (3, zeroblob(100000))");
    let error = pair.leader.run(None, big, &Cancel::default()).unwrap_err();
    assert!(error.can_pass(), "{error}");
    let said = error.to_string();
    assert!(said.contains("replica.sqlite") && said.contains("full"), "{said}");
    // Once there is space, it goes on from what was committed.
    let path = pair.directory.path().join("leader");
    drop(pair.leader);
    let mut again = Engine::open(&path, LIMITS).unwrap().unwrap();
    assert_eq!(again.applied(), 1);
    again.begin(1).unwrap();
    run(&mut again, None, write("INSERT INTO t1 VALUES (3, zeroblob(100000))")).unwrap();
}

#[test]
fn a_full_disk_stops_a_follower() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    let data = entry_of(&mut pair, "INSERT INTO t1 VALUES (3, zeroblob(100000))");
    pair.follower.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let error = pair.follower.apply(&[(1, data)]).unwrap_err();
    assert!(error.can_pass() && error.to_string().contains("replica.sqlite: "), "{error}");
    assert_eq!(pair.follower.applied(), 0);
}

#[test]
fn what_a_closure_says_of_damage_is_its_own_affair() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY)");
    pair.leader.begin(1).unwrap();
    for state in [proto::SqlState::DATA_CORRUPTED, proto::SqlState::DISK_FULL, proto::SqlState::IO_ERROR] {
        let raise: WriteFn = Box::new(move |connection| {
            write("INSERT INTO t1 VALUES (1)")(connection)?;
            Err(proto::WireError::new(state, "of the test"))
        });
        assert_eq!(run(&mut pair.leader, None, raise).unwrap_err().sqlstate, state);
    }
    run(&mut pair.leader, None, write("INSERT INTO t1 VALUES (1)")).unwrap();
}

#[test]
fn a_damaged_page_stops_the_replica_when_it_is_met() {
    let mut pair = Pair::new("CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)");
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a')"]);
    let root: i64 = pair
        .leader
        .connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 't1'", [], |row| row.get(0))
        .unwrap();
    pair.leader.empty_wal(Duration::ZERO).unwrap();
    let path = pair.directory.path().join("leader");
    drop(pair.leader);
    let file = Engine::database(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    let page = (usize::try_from(root).unwrap() - 1) * 4096;
    bytes[page..page + 64].fill(0xee);
    std::fs::write(&file, bytes).unwrap();
    let mut damaged = Engine::open(&path, LIMITS).unwrap().unwrap();
    damaged.begin(1).unwrap();
    let error = damaged.run(None, write("UPDATE t1 SET c2 = 'b'"), &Cancel::default()).unwrap_err();
    assert!(!error.can_pass() && error.to_string().contains("malformed"), "{error}");
}
