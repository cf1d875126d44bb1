//! Staged changes by hand: put aside, applied from where they lie, made by every replica, or by none.

use super::tests::{Pair, dump, write};
use super::*;
use crate::connection::Cancel;
use crate::entry::{Body, Entry, Replay, Request};
use crate::overlay::Overlay;
use crate::staging::Staging;
use bytes::Bytes;
use prost::Message as _;
use proto::{RouterIncarnation, SqlState, TransactionId, WireError};

const TABLES: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT UNIQUE);
    CREATE TABLE s (router INTEGER NOT NULL, sequence INTEGER NOT NULL, n INTEGER NOT NULL, changes BLOB NOT NULL,
                    PRIMARY KEY (router, sequence, n))";
const TERM: u64 = 7;
const OWNER: TransactionId = TransactionId { router: RouterIncarnation(u64::MAX), sequence: 5 };

fn staged() -> Overlay {
    Overlay::staged_in(Staging { table: "s", owner: OWNER })
}

fn step(engine: &mut Engine, overlay: &Overlay, sql: &'static str) {
    engine.rehearse(TERM, (overlay, false), write(sql), &Cancel::default()).unwrap().unwrap();
}

fn see(engine: &mut Engine, overlay: &Overlay) -> String {
    let run = Box::new(|stage: &crate::Stage<'_>| {
        let sql = "SELECT coalesce(group_concat(c1 || c2, ' ' ORDER BY c1), '') FROM t1";
        let seen: String = stage.query_row(sql, [], |row| row.get(0)).map_err(dialect::sqlite::error)?;
        Ok(seen.into())
    });
    let seen = engine.rehearse(TERM, (overlay, false), run, &Cancel::default()).unwrap();
    String::from_utf8(seen.unwrap().to_vec()).unwrap()
}

impl Pair {
    /// Stages all that is in memory.
    fn put_aside(&mut self, overlay: &Overlay) {
        let piece = overlay.piece(0, 1 << 20).unwrap();
        let own = piece.clone();
        let ran = self.batch_of(vec![Box::new(move |stage| own.write(stage).map(|()| Bytes::new()))]);
        ran[0].as_ref().unwrap();
        overlay.put_aside(&piece);
    }

    /// Has both make the changes, beside other entries.
    fn replay(&mut self, overlay: &Overlay, request: Option<Request>) -> Result<u64, WireError> {
        let replay = Replay {
            request,
            output: Bytes::from_static(b"told"),
            table: "s".into(),
            router: OWNER.router.0,
            sequence: OWNER.sequence,
            pieces: overlay.pieces().0,
            strike: vec!["s".into()],
        };
        let data = Bytes::from(Entry::new(0, Body::Replay(replay)).encode_to_vec());
        let first = self.index + 1;
        self.index += 3;
        let entries = [(first, Bytes::new()), (first + 1, data), (first + 2, Bytes::new())];
        let answers = [&mut self.leader, &mut self.follower].map(|engine| {
            let mut answers = Vec::new();
            while engine.applied() < first + 2 {
                let rest = (engine.applied() + 1 - first) as usize;
                answers.extend(engine.apply(&entries[rest..]).unwrap().answers);
            }
            answers
        });
        assert_eq!(answers[0], answers[1]);
        self.assert_equal();
        let [(index, answer)] = &answers[0][..] else { panic!("one answer: {answers:?}") };
        assert_eq!(*index, first + 1);
        answer.clone()
    }
}

#[test]
fn staged_changes_are_seen_by_their_transaction_and_made_by_all() {
    let mut pair = Pair::new(TABLES);
    pair.batch(&["INSERT INTO t1 VALUES (1, 'a'), (2, 'b')"]);
    let overlay = staged();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (3, 'c'), (4, 'd')");
    step(&mut pair.leader, &overlay, "UPDATE t1 SET c2 = c2 || '!'");
    pair.put_aside(&overlay);
    step(&mut pair.leader, &overlay, "DELETE FROM t1 WHERE c1 = 2");
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (5, 'b!')");
    pair.put_aside(&overlay);
    step(&mut pair.leader, &overlay, "UPDATE t1 SET c2 = 'in memory' WHERE c1 = 5");
    let all = "1a! 3c! 4d! 5in memory";
    assert_eq!(see(&mut pair.leader, &overlay), all);
    pair.leader.rollback().unwrap();
    assert_eq!(see(&mut pair.leader, &overlay), all);
    pair.leader.rollback().unwrap();
    pair.put_aside(&overlay);
    let before = pair.index;
    assert_eq!(pair.replay(&overlay, None).unwrap(), before + 2);
    assert_eq!(see(&mut pair.leader, &Overlay::new()), all);
    pair.leader.rollback().unwrap();
    let left = |engine: &Engine| engine.connection.query_row("SELECT count(*) FROM s", [], |row| row.get(0));
    assert_eq!(left(&pair.follower), Ok(0_i64));
    assert_eq!(see(&mut pair.follower, &Overlay::new()), all);
    pair.follower.rollback().unwrap();
    // They are gone from there.
    assert!(pair.replay(&overlay, None).is_err());
}

#[test]
fn what_was_undone_after_it_was_staged_is_not_made() {
    let mut pair = Pair::new(TABLES);
    let overlay = staged();
    for sql in
        ["INSERT INTO t1 VALUES (1, 'a')", "INSERT INTO t1 VALUES (2, 'b')", "INSERT INTO t1 VALUES (3, 'c')"]
    {
        step(&mut pair.leader, &overlay, sql);
    }
    pair.put_aside(&overlay);
    overlay.truncate(2);
    assert_eq!(see(&mut pair.leader, &overlay), "1a 2b");
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (4, 'c')");
    pair.put_aside(&overlay);
    step(&mut pair.leader, &overlay, "DELETE FROM t1");
    pair.put_aside(&overlay);
    overlay.truncate(3);
    assert_eq!(see(&mut pair.leader, &overlay), "1a 2b 4c");
    pair.replay(&overlay, None).unwrap();
    assert_eq!(see(&mut pair.leader, &Overlay::new()), "1a 2b 4c");
}

#[test]
fn what_fails_fails_on_all_and_leaves_nothing() {
    let mut pair = Pair::new(TABLES);
    let overlay = staged();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (1, 'a'), (2, 'b')");
    pair.put_aside(&overlay);
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (3, 'c')");
    pair.put_aside(&overlay);
    pair.batch(&["INSERT INTO t1 VALUES (9, 'c')"]);
    // But for the applied index.
    let rows = |engine: &Engine| dump(engine)[1..].to_vec();
    let before = rows(&pair.leader);
    let request = Request { router: 9, sequence: 1, settled: 0 };
    assert_eq!(pair.replay(&overlay, Some(request)).unwrap_err().sqlstate, SqlState::DATA_CORRUPTED);
    assert_eq!(rows(&pair.leader), before);
    pair.batch(&["DELETE FROM t1 WHERE c1 = 9"]);
    pair.replay(&overlay, Some(request)).unwrap();
    // It is known by its name from now on.
    pair.replay(&overlay, Some(request)).unwrap();
    assert_eq!(pair.leader.remembered(&request).unwrap().unwrap().unwrap(), "told");
    assert_eq!(see(&mut pair.leader, &Overlay::new()), "1a 2b 3c");
}
