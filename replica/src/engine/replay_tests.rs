//! Staged changes by hand: put aside, applied from where they lie, made by every replica, or by none.

use super::tests::{Pair, dump, write};
use super::*;
use crate::connection::Cancel;
use crate::entry::{Body, Entry, Hold, Replay, Request};
use crate::overlay::Overlay;
use crate::staging::Staging;
use bytes::Bytes;
use prost::Message as _;
use proto::{LogIndex, RouterIncarnation, SqlState, TransactionId, WireError};

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

    /// Has both keep the log, or keep it no more.
    fn hold(&mut self, name: &str, from: Option<u64>) -> Result<u64, WireError> {
        let hold = Hold { name: name.into(), from };
        let data = Bytes::from(Entry::new(0, Body::Hold(hold)).encode_to_vec());
        self.index += 1;
        let entries = [(self.index, data)];
        let answers =
            [&mut self.leader, &mut self.follower].map(|engine| engine.apply(&entries).unwrap().answers);
        self.assert_equal();
        assert_eq!(answers[0], answers[1]);
        answers[0][0].1.clone()
    }

    /// What is kept of the replay at this index: the changesets, if it made any; the same on both, by their hashes, too.
    fn kept(&self, index: u64) -> Result<Vec<Bytes>, Replayed> {
        let hash = |engine: &Engine| crate::table_hash(&engine.connection).unwrap();
        assert_eq!(hash(&self.leader), hash(&self.follower));
        let connection = &self.follower.connection;
        let at = LogIndex(index);
        match replayed(connection, at).unwrap() {
            Replayed::Made { pieces } => {
                assert!(replayed_piece(connection, at, pieces + 1).is_err());
                assert!(replayed_piece(connection, at, 0).is_err());
                Ok((1..=pieces).map(|n| replayed_piece(connection, at, n).unwrap()).collect())
            }
            other => Err(other),
        }
    }

    /// Stages these statements, each as a piece of its own, and has both make them; gives where.
    fn stage_and_replay(
        &mut self,
        steps: &[&'static str],
        request: Option<Request>,
    ) -> Result<u64, WireError> {
        let overlay = staged();
        for sql in steps {
            step(&mut self.leader, &overlay, sql);
            self.put_aside(&overlay);
        }
        self.replay(&overlay, request)
    }
}

/// The rows of a database that has made these changes, after those of `before`.
fn made(before: &str, changesets: &[Bytes]) -> String {
    let mut other = Pair::new(TABLES);
    let connection = &other.leader.connection;
    connection.execute_batch(before).unwrap();
    for changeset in changesets {
        changeset::apply(connection, &mut other.leader.shapes, changeset).unwrap();
    }
    see(&mut other.leader, &Overlay::new())
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

#[test]
fn what_replays_change_is_kept_for_who_reads_the_log() {
    let mut pair = Pair::new(TABLES);
    let steps = ["INSERT INTO t1 VALUES (1, 'a'), (2, 'b')", "UPDATE t1 SET c2 = 'c' WHERE c1 = 1"];
    let unread = pair.stage_and_replay(&steps, None).unwrap();
    assert_eq!(pair.kept(unread), Err(Replayed::Forgotten), "nobody holds the log");
    pair.hold("somebody", Some(1)).unwrap();
    let unread = pair.stage_and_replay(&["DELETE FROM t1"], None).unwrap();
    assert_eq!(pair.kept(unread), Err(Replayed::Forgotten), "who holds it doesn't read");

    pair.batch(&["INSERT INTO t1 VALUES (9, 'z')"]);
    let held = pair.hold("reshard/7", Some(pair.index + 1)).unwrap();
    let first = pair.stage_and_replay(&steps, None).unwrap();
    let changesets = pair.kept(first).unwrap();
    assert_eq!(
        (changesets.len(), made("INSERT INTO t1 VALUES (9, 'z')", &changesets).as_str()),
        (2, "1c 2b 9z")
    );
    assert_eq!(pair.kept(held), Err(Replayed::Forgotten), "it is no replay");
    // One that changes nothing, one that fails, and one that is repeated.
    let request = Request { router: 9, sequence: 1, settled: 0 };
    let empty = pair.replay(&staged(), Some(request)).unwrap();
    assert_eq!(pair.kept(empty), Ok(Vec::new()));
    let again = pair.stage_and_replay(&["DELETE FROM t1"], Some(request)).unwrap();
    assert_eq!(pair.kept(again), Err(Replayed::Nothing));
    let overlay = staged();
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (3, 'd')");
    pair.put_aside(&overlay);
    step(&mut pair.leader, &overlay, "INSERT INTO t1 VALUES (4, 'e')");
    pair.put_aside(&overlay);
    pair.batch(&["INSERT INTO t1 VALUES (5, 'e')"]);
    pair.replay(&overlay, None).unwrap_err();
    assert_eq!(pair.kept(pair.index - 1), Err(Replayed::Nothing));

    // It goes with the last who needs it, whatever else is held.
    let second = pair.stage_and_replay(&["DELETE FROM t1 WHERE c1 = 9"], None).unwrap();
    pair.hold("stream/a", Some(second)).unwrap();
    assert_eq!((pair.kept(first).unwrap().len(), pair.kept(second).unwrap().len()), (2, 1));
    pair.hold("reshard/7", Some(second + 1)).unwrap();
    assert_eq!((pair.kept(first), pair.kept(again)), (Err(Replayed::Forgotten), Err(Replayed::Forgotten)));
    assert_eq!(pair.kept(second).unwrap().len(), 1);
    // What lies ahead is what comes after the hold, and that nobody has forgotten.
    let data = Entry::new(pair.index, Body::Hold(Hold { name: "stream/a".into(), from: Some(u64::MAX) }));
    pair.index += 1;
    let entries = [(pair.index, Bytes::from(data.encode_to_vec()))];
    for engine in [&mut pair.leader, &mut pair.follower] {
        assert_eq!(engine.apply(&entries).unwrap().answers, [(pair.index, Ok(pair.index))]);
        assert_eq!(engine.holds()["stream/a"], pair.index + 1);
    }
    pair.hold("reshard/7", None).unwrap();
    assert_eq!(pair.kept(second), Err(Replayed::Forgotten));
    let third = pair.stage_and_replay(&["INSERT INTO t1 VALUES (7, 'g')"], None).unwrap();
    // Whoever opens the database anew goes on with it.
    let directory = pair.follower.path().parent().unwrap().to_owned();
    pair.follower = Engine::open(&directory, tests::LIMITS).unwrap().unwrap();
    let fourth = pair.stage_and_replay(&["INSERT INTO t1 VALUES (8, 'h')"], None).unwrap();
    assert_eq!((pair.kept(third).unwrap().len(), pair.kept(fourth).unwrap().len()), (1, 1));
    pair.hold("stream/b", None).unwrap();
    assert_eq!(pair.kept(third).unwrap().len(), 1);
    pair.hold("stream/a", None).unwrap();
    assert_eq!((pair.kept(third), pair.kept(fourth)), (Err(Replayed::Forgotten), Err(Replayed::Forgotten)));
    let left =
        pair.follower.connection.query_row("SELECT count(*) FROM replica_replayed", [], |row| row.get(0));
    assert_eq!(left, Ok(0_i64));
}
