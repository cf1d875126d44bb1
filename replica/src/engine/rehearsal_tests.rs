//! Rehearsals by hand: what a step sees, what it leaves in its overlay, and that it leaves nothing else.

use super::tests::{LIMITS, Pair, dump, run, write};
use super::*;
use crate::connection::Cancel;
use crate::entry::{Body, Entry, Schema};
use crate::overlay::Overlay;
use crate::session::Capturing;
use crate::stage::{Stage, changes};
use crate::write::WriteFn;
use bytes::Bytes;
use prost::Message as _;
use proto::{SqlState, Term, Value, WireError};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)";
const TERM: u64 = 7;

fn rehearse(
    engine: &mut Engine,
    overlay: &Overlay,
    run: impl FnOnce(&Stage<'_>) -> Result<Bytes, WireError> + Send + 'static,
) -> Result<Bytes, WireError> {
    engine.rehearse(TERM, (overlay, false), Box::new(run), &Cancel::default()).unwrap()
}

/// Runs a step.
fn step(engine: &mut Engine, overlay: &Overlay, sql: &'static str) -> Result<Bytes, WireError> {
    rehearse(engine, overlay, write(sql))
}

/// What a step sees.
fn see(engine: &mut Engine, overlay: &Overlay) -> String {
    let seen = rehearse(engine, overlay, |stage| {
        let sql = "SELECT coalesce(group_concat(c1 || coalesce(c2, '') , ' ' ORDER BY c1), '') FROM t1";
        let seen: String = stage.query_row(sql, [], |row| row.get(0)).map_err(dialect::sqlite::error)?;
        Ok(seen.into())
    });
    String::from_utf8(seen.unwrap().to_vec()).unwrap()
}

/// What commits an overlay.
fn commit(overlay: &Overlay) -> WriteFn {
    let overlay = overlay.clone();
    Box::new(move |stage| stage.apply(&overlay.changeset()?).map(|()| Bytes::new()))
}

impl Pair {
    /// Runs writes as one batch, applies its entry on the follower, and checks that both have the same rows.
    pub fn batch_of(&mut self, writes: Vec<WriteFn>) -> Vec<Result<Bytes, WireError>> {
        self.leader.begin(TERM).unwrap();
        let ran: Vec<_> = writes
            .into_iter()
            .map(|write| run(&mut self.leader, None, write).map(|ran| ran.output))
            .collect();
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
}

#[test]
fn a_step_runs_above_those_before_it_and_leaves_nothing_else() {
    let mut pair = Pair::new(TABLE);
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a')"]);
    let committed = dump(&pair.follower);
    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (2, 'b')").unwrap();
    step(&mut pair.leader, &overlay, "UPDATE t1 SET c2 = c2 || '!'").unwrap();
    assert_eq!(see(&mut pair.leader, &overlay), "1a! 2b!");
    assert_eq!(overlay.len(), 2, "one that changes nothing has no chunk");
    pair.leader.rollback().unwrap();
    assert_eq!(dump(&pair.leader), committed);
    // It is as if it had stayed.
    assert_eq!(see(&mut pair.leader, &overlay), "1a! 2b!");
    pair.batch(&["INSERT INTO t1 VALUES (3, 'c')"]);
    assert_eq!(see(&mut pair.leader, &overlay), "1a! 2b! 3c");
    let other = Overlay::new();
    step(&mut pair.leader, &other, "DELETE FROM t1 WHERE c1 = 3").unwrap();
    assert_eq!(see(&mut pair.leader, &other), "1a");
    assert_eq!(see(&mut pair.leader, &overlay), "1a! 2b! 3c");
    assert_eq!(see(&mut pair.leader, &other), "1a");
    pair.leader.rollback().unwrap();
    pair.assert_equal();
}

#[test]
fn a_bare_step_runs_without_the_overlay_unless_it_is_there() {
    let mut pair = Pair::new(TABLE);
    let (overlay, other) = (Overlay::new(), Overlay::new());
    let count = |engine: &mut Engine, overlay: &Overlay| {
        let run: WriteFn = Box::new(|stage| {
            let count: i64 = stage.query_row("SELECT count(*) FROM t1", [], |row| row.get(0)).unwrap();
            stage.execute("INSERT INTO t1 (c2) SELECT 10 * ?1", [count]).map_err(dialect::sqlite::error)?;
            Ok(count.to_string().into())
        });
        engine.rehearse(TERM, (overlay, true), run, &Cancel::default()).unwrap()
    };
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (7, 'a')").unwrap();
    assert_eq!(count(&mut pair.leader, &overlay).unwrap(), "1", "the overlay was there anyway");
    assert_eq!(see(&mut pair.leader, &overlay), "7a 810");
    pair.leader.rollback().unwrap();
    assert_eq!(count(&mut pair.leader, &overlay).unwrap(), "0");
    assert_eq!(count(&mut pair.leader, &other).unwrap(), "0", "nothing is left of it");
    assert_eq!((overlay.len(), other.len()), (3, 1));
    assert!(!pair.leader.is_resident(&overlay) && !pair.leader.is_resident(&other));
    assert_eq!(see(&mut pair.leader, &overlay), "10 7a 810");
    assert_eq!(see(&mut pair.leader, &other), "10");
    let ran = pair.batch_of(vec![commit(&overlay)]);
    assert!(ran[0].is_ok());
}

#[test]
fn an_overlay_stays_applied_for_its_next_step_alone() {
    let mut pair = Pair::new(TABLE);
    let (overlay, other) = (Overlay::new(), Overlay::new());
    for engine in [&mut pair.leader, &mut pair.follower] {
        // Another replica's engine has applied what it was.
        step(engine, &overlay, "INSERT INTO t1 SELECT coalesce(max(c1), 0) + 1, 'a' FROM t1").unwrap();
        assert!(engine.is_resident(&overlay) && engine.is_resident(&overlay.clone()));
        assert_eq!(engine.resident_term(), Some(TERM));
        assert!(!engine.is_resident(&other));
    }
    assert!(!pair.leader.is_resident(&overlay), "it has become more");
    assert_eq!(see(&mut pair.leader, &overlay), "1a 2a");
    see(&mut pair.leader, &other);
    assert!(pair.leader.is_resident(&other) && !pair.leader.is_resident(&overlay));
    // A transaction that is gone leaves nothing that another could be taken for.
    drop(other);
    assert!((0..100).all(|_| !pair.leader.is_resident(&Overlay::new())));
}

#[test]
fn small_and_big_overlays_take_each_others_place() {
    let mut pair = Pair::new(TABLE);
    let overlays: Vec<Overlay> = (0..3).map(|_| Overlay::new()).collect();
    let steps = [
        "INSERT INTO t1 VALUES (1, 'a')",
        "INSERT INTO t1 VALUES (2, 'b')",
        "INSERT INTO t1 VALUES (3, printf('%.20000c', 'c'))",
    ];
    for (overlay, sql) in overlays.iter().zip(steps) {
        step(&mut pair.leader, overlay, sql).unwrap();
    }
    assert!(!pair.leader.is_resident(&overlays[2]), "it has become too big for the way in which it is there");
    let mut seen = |at: usize| see(&mut pair.leader, &overlays[at]);
    let big = format!("3{}", "c".repeat(20_000));
    for at in [2, 2, 0, 1, 2, 1, 1, 0, 2] {
        assert_eq!(seen(at), ["1a", "2b", &big][at]);
    }
    assert!(pair.leader.is_resident(&overlays[2]));
    pair.leader.rollback().unwrap();
    assert_eq!(pair.leader.resident_term(), None);
    assert!(pair.batch_of(overlays.iter().map(commit).collect()).iter().all(Result::is_ok));
}

#[test]
fn everything_else_undoes_it_first() {
    let schema = Schema { job: 1, step: 1, statements: vec!["SELECT 1".into()], ..Schema::default() };
    let entry = Bytes::from(Entry::new(0, Body::Schema(schema)).encode_to_vec());
    type Act = Box<dyn Fn(&mut Engine)>;
    let others: [(&str, Act); 6] = [
        ("a batch", Box::new(|engine| engine.begin(TERM).unwrap())),
        ("an entry", Box::new(move |engine| drop(engine.apply(&[(2, entry.clone())]).unwrap()))),
        ("a rollback", Box::new(|engine| engine.rollback().unwrap())),
        ("a checkpoint", Box::new(|engine| engine.checkpoint().unwrap())),
        ("emptying the WAL", Box::new(|engine| assert!(engine.empty_wal(Duration::ZERO).unwrap()))),
        ("an image", Box::new(|engine| engine.replace(|| Ok(())).unwrap())),
    ];
    for (what, act) in others {
        let mut pair = Pair::new(TABLE);
        pair.batch(&["INSERT INTO t1 VALUES (1, 'a')"]);
        let overlay = Overlay::new();
        step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (2, 'b')").unwrap();
        act(&mut pair.leader);
        assert_eq!(pair.leader.resident_term(), None, "{what}");
        let rows = |engine: &Engine| dump(engine).iter().filter(|row| row.starts_with("t1:")).count();
        assert_eq!(rows(&pair.leader), 1, "{what}");
        pair.leader.rollback().unwrap();
        assert_eq!(see(&mut pair.leader, &overlay), "1a 2b", "{what}");
    }
}

#[test]
fn a_step_that_fails_leaves_its_overlay_as_it_was() {
    let mut pair = Pair::new(TABLE);
    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (1, 'a')").unwrap();
    let before = overlay.chunks();
    let insert = "INSERT INTO t1 VALUES (2, 'b')";
    let error = step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (2, 'b'), (1, 'c')").unwrap_err();
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    let error = rehearse(&mut pair.leader, &overlay, move |stage| {
        write(insert)(stage)?;
        panic!("of the test")
    });
    assert_eq!(error.unwrap_err().sqlstate, SqlState::INTERNAL_ERROR);
    for sql in ["COMMIT", "CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)", "DELETE FROM replica_state"] {
        assert!(step(&mut pair.leader, &overlay, sql).is_err(), "{sql}");
    }
    assert!(pair.leader.is_resident(&overlay), "what was there before is still there");
    let big = "INSERT INTO t1 VALUES (2, zeroblob(1200000))";
    let error = step(&mut pair.leader, &overlay, big).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    let interrupt = |sql: &'static str| {
        let cancel = Cancel::default();
        let canceller = cancel.clone();
        let run: WriteFn = Box::new(move |stage| {
            canceller.cancel();
            write(sql)(stage)
        });
        (run, cancel)
    };
    // Too short to be interrupted: it is done, and yet nobody waits for it.
    let (run, cancel) = interrupt(insert);
    let error = pair.leader.rehearse(TERM, (&overlay, false), run, &cancel).unwrap().unwrap_err();
    assert_eq!(error.sqlstate, SqlState::QUERY_CANCELED);
    assert_eq!(see(&mut pair.leader, &overlay), "1a");
    let (run, cancel) = interrupt(
        "INSERT INTO t1 WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n) SELECT i, '' FROM n",
    );
    let error = pair.leader.rehearse(TERM, (&overlay, false), run, &cancel).unwrap().unwrap_err();
    assert_eq!(error.sqlstate, SqlState::QUERY_CANCELED);
    assert_eq!(pair.leader.resident_term(), None, "SQLite has undone all");
    assert_eq!(see(&mut pair.leader, &overlay), "1a");
    assert_eq!(overlay.chunks(), before);
}

#[test]
fn all_steps_together_may_be_as_big_as_one_transaction() {
    let mut pair = Pair::new(TABLE);
    let (overlay, small) = (Overlay::new(), Overlay::new());
    let mut add = |overlay: &Overlay| {
        let sql = "INSERT INTO t1 SELECT coalesce(max(c1), 0) + 1, zeroblob(100000) FROM t1";
        step(&mut pair.leader, overlay, sql)
    };
    let fitted = (0..).take_while(|_| add(&overlay).is_ok()).count();
    assert_eq!(fitted, LIMITS.transaction_bytes / 100_000);
    assert_eq!(add(&overlay).unwrap_err().sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    add(&small).unwrap();
    assert_eq!(overlay.len(), fitted);
}

#[test]
fn what_a_step_changed_is_known_to_it_and_is_its_chunk() {
    let mut pair = Pair::new(TABLE);
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a'), (2, 'b')"]);
    let overlay = Overlay::new();
    for resident in [true, false] {
        step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (3, 'c')").unwrap();
        if !resident {
            pair.leader.rollback().unwrap();
        }
        let told = rehearse(&mut pair.leader, &overlay, |stage| {
            assert_eq!(stage.term(), Term(TERM));
            assert!(stage.changes()?.is_empty());
            write("UPDATE t1 SET c2 = 'z' WHERE c1 = 2; UPDATE t1 SET c2 = 'c' WHERE c1 = 3")(stage)?;
            stage.changes()
        });
        let told = told.unwrap();
        assert_eq!(overlay.chunks()[1], told);
        let rows = changes(&told).unwrap();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0].old, [Some(Value::Int(2)), Some(Value::Text("b".into()))]);
        overlay.truncate(1);
        assert_eq!(see(&mut pair.leader, &overlay), "1a 2b 3c", "ROLLBACK TO");
        overlay.truncate(0);
        assert_eq!(see(&mut pair.leader, &overlay), "1a 2b");
    }
}

#[test]
fn a_step_knows_what_it_updated_to_what_it_was() {
    let mut pair = Pair::new(TABLE);
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c')"]);
    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "UPDATE t1 SET c2 = 'x' WHERE c1 = 3").unwrap();
    let updated = |sql: &'static str| {
        move |stage: &Stage<'_>| {
            stage.execute_batch(sql).map_err(dialect::sqlite::error)?;
            Ok(format!("{:?}", stage.updated().remove("t1").unwrap_or_default()).into())
        }
    };
    let sql =
        "UPDATE t1 SET c2 = 'a' WHERE c1 < 3; INSERT INTO t1 VALUES (4, 'd'); DELETE FROM t1 WHERE c1 = 2";
    assert_eq!(rehearse(&mut pair.leader, &overlay, updated(sql)).unwrap(), "[1, 2]");
    assert_eq!(
        rehearse(&mut pair.leader, &overlay, updated("SELECT 1")).unwrap(),
        "[]",
        "not what came before"
    );
    pair.leader.rollback().unwrap();
    assert_eq!(
        rehearse(&mut pair.leader, &overlay, updated("SELECT 1")).unwrap(),
        "[]",
        "nor what was applied anew"
    );
}

#[test]
fn what_foreign_keys_and_triggers_did_is_not_done_again() {
    let mut pair = Pair::new(
        "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2);
         CREATE TABLE t2 (c1 INTEGER PRIMARY KEY, c2 INTEGER REFERENCES t1 ON DELETE CASCADE);
         CREATE TABLE t3 (c1 INTEGER PRIMARY KEY, c2);
         CREATE TRIGGER tr AFTER INSERT ON t1 BEGIN INSERT INTO t3 (c2) VALUES (random()); END;",
    );
    pair.batch(&["INSERT INTO t1 VALUES (1, '')", "INSERT INTO t2 VALUES (1, 1)"]);
    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (2, ''); INSERT INTO t2 VALUES (2, 2), (3, 2)")
        .unwrap();
    step(&mut pair.leader, &overlay, "DELETE FROM t1 WHERE c1 = 1").unwrap();
    let counts = |engine: &mut Engine| {
        let counted = rehearse(engine, &overlay, |stage| {
            let sql =
                "SELECT (SELECT count(*) FROM t1) || (SELECT count(*) FROM t2) || (SELECT count(*) FROM t3)";
            let counts: String =
                stage.query_row(sql, [], |row| row.get(0)).map_err(dialect::sqlite::error)?;
            Ok(counts.into())
        });
        counted.unwrap()
    };
    assert_eq!(counts(&mut pair.leader), "122");
    pair.leader.rollback().unwrap();
    assert_eq!(counts(&mut pair.leader), "122");
    // They act on what a step does itself, before and after an overlay was applied for it.
    for _ in 0..2 {
        assert!(step(&mut pair.leader, &overlay, "INSERT INTO t2 VALUES (4, 99)").is_err());
        step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (5, ''); DELETE FROM t1 WHERE c1 = 2")
            .unwrap();
        assert_eq!(counts(&mut pair.leader), "103");
        overlay.truncate(2);
    }
    let ran = pair.batch_of(vec![
        commit(&overlay),
        write("INSERT INTO t2 VALUES (5, 99)"),
        write("INSERT INTO t1 VALUES (7, '')"),
    ]);
    assert!(ran[0].is_ok() && ran[1].is_err() && ran[2].is_ok(), "{ran:?}");
    assert_eq!(dump(&pair.follower).iter().filter(|row| row.starts_with("t3:")).count(), 3);
}

#[test]
fn an_overlay_is_committed_by_a_write() {
    let mut pair = Pair::new(TABLE);
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a'), (2, 'b'), (3, 'c')"]);
    let overlay = Overlay::new();
    for sql in [
        "UPDATE t1 SET c1 = -c1",
        "UPDATE t1 SET c1 = 4 + c1",
        "INSERT INTO t1 VALUES (9, 'x')",
        "DELETE FROM t1 WHERE c2 = 'c'",
        "INSERT INTO t1 VALUES (1, 'y')",
        "DELETE FROM t1 WHERE c1 = 9",
    ] {
        step(&mut pair.leader, &overlay, sql).unwrap();
    }
    let seen = see(&mut pair.leader, &overlay);
    assert_eq!(seen, "1y 2b 3a");
    pair.batch_of(vec![write("INSERT INTO t1 VALUES (8, 'other')"), commit(&overlay)]);
    assert_eq!(see(&mut pair.leader, &Overlay::new()), "1y 2b 3a 8other");
}

#[test]
fn an_overlay_that_does_not_fit_fails_alone_and_whole() {
    let mut pair = Pair::new(TABLE);
    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (1, 'a'), (2, 'b')").unwrap();
    // No lock has kept another from it.
    pair.batch(&["INSERT INTO t1 VALUES (2, 'z')"]);
    let error = step(&mut pair.leader, &overlay, "SELECT 1").unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DATA_CORRUPTED, "{error:?}");
    assert_eq!(pair.leader.resident_term(), None);
    let careless = {
        let commit = commit(&overlay);
        Box::new(move |stage: &Stage<'_>| {
            assert!(commit(stage).is_err());
            write("INSERT INTO t1 VALUES (5, 'e')")(stage)
        })
    };
    let ran = pair.batch_of(vec![commit(&overlay), careless, write("INSERT INTO t1 VALUES (3, 'c')")]);
    assert_eq!(ran[0].as_ref().unwrap_err().sqlstate, SqlState::DATA_CORRUPTED);
    assert_eq!(ran[1].as_ref().unwrap_err().sqlstate, SqlState::DATA_CORRUPTED);
    assert_eq!(see(&mut pair.leader, &Overlay::new()), "2z 3c");

    let overlay = Overlay::new();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (7, 'a')").unwrap();
    let statements = vec!["ALTER TABLE t1 ADD COLUMN c3".to_owned()];
    let schema = Schema { job: 1, step: 1, statements, ..Schema::default() };
    let entry = Bytes::from(Entry::new(0, Body::Schema(schema)).encode_to_vec());
    pair.index += 1;
    for engine in [&mut pair.leader, &mut pair.follower] {
        engine.apply(&[(pair.index, entry.clone())]).unwrap();
    }
    let error = step(&mut pair.leader, &overlay, "SELECT 1").unwrap_err();
    assert_eq!(error.sqlstate, SqlState::SERIALIZATION_FAILURE, "{error:?}");
    let error = pair.batch_of(vec![commit(&overlay)]).remove(0).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::SERIALIZATION_FAILURE, "{error:?}");
}

#[test]
fn a_batchs_write_knows_its_term_but_not_its_own_changes() {
    let mut pair = Pair::new(TABLE);
    let write: WriteFn = Box::new(|stage| {
        assert_eq!(stage.term(), Term(TERM));
        assert_eq!(stage.changes().unwrap_err().sqlstate, SqlState::INTERNAL_ERROR);
        // What isn't said in rows is no transaction's.
        let state = {
            let mut other = Capturing::new(Connection::open_in_memory().unwrap());
            other.execute_batch("CREATE TABLE REPLICA_STATE (one INTEGER PRIMARY KEY)").unwrap();
            other.begin_capture();
            other.execute_batch("INSERT INTO REPLICA_STATE VALUES (2)").unwrap();
            other.capture().unwrap().changeset().unwrap()
        };
        assert_eq!(stage.apply(&state).unwrap_err().sqlstate, SqlState::SERIALIZATION_FAILURE);
        Ok(Bytes::new())
    });
    let error = pair.batch_of(vec![write]).remove(0).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::SERIALIZATION_FAILURE, "whatever it says: {error:?}");
}

#[test]
fn a_rehearsal_that_meets_a_full_disk_stops_the_replica() {
    for fits in [true, false] {
        let mut pair = Pair::new(TABLE);
        let overlay = Overlay::new();
        step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (1, zeroblob(50000))").unwrap();
        pair.leader.rollback().unwrap();
        let pages: i64 = pair.leader.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let most = if fits { pages + 20 } else { pages + 2 };
        pair.leader.connection.pragma_update(None, "max_page_count", most).unwrap();
        let big = write("INSERT INTO t1 VALUES (3, zeroblob(100000))");
        let error = pair.leader.rehearse(TERM, (&overlay, false), big, &Cancel::default()).unwrap_err();
        assert!(error.can_pass() && error.to_string().contains("full"), "{error}");
        assert_eq!(overlay.len(), 1);
    }
}
