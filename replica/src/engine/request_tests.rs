//! What was told to named requests: how long it is remembered, by whom, and what happens to a repetition afterwards.

use super::requests::told;
use super::*;
use crate::connection::Cancel;
use crate::entry::{Body, Entry, Request};
use crate::overlay::Overlay;
use crate::write::WriteFn;
use bytes::Bytes;
use proto::{Retry, SqlState, WireError};
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: Limits = Limits {
    transaction_bytes: 1 << 20,
    staged_bytes: 4 << 20,
    batch_bytes: 1 << 20,
    checkpoint_bytes: 1 << 20,
    hold_bytes: 2 << 20,
    end_bytes: 4 << 20,
    remember_for: HOUR,
    remember_rows: 100,
    remember_bytes: 10_000,
};

/// Two replicas, the first of which leads.
struct Pair {
    engines: Vec<Engine>,
    directory: TempDir,
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let init = ["CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)".to_owned()];
        let open = |name: &str| Engine::create(&directory.path().join(name), &[1], &init, LIMITS).unwrap();
        Self { engines: vec![open("a"), open("b")], directory }
    }

    /// The other one leads.
    fn change_leader(&mut self) {
        self.engines.swap(0, 1);
    }

    /// Both are closed and opened again.
    fn restart(&mut self) {
        let paths: Vec<_> = self.engines.drain(..).map(|engine| engine.path().to_owned()).collect();
        let open = |path: &PathBuf| Engine::open(path.parent().unwrap(), LIMITS).unwrap().unwrap();
        self.engines = paths.iter().map(open).collect();
        assert!(self.directory.path().exists());
    }

    /// Runs a request as a batch of its own, at this time.
    fn run(&mut self, now: Duration, request: Request, output: &[u8]) -> Result<Ran, WireError> {
        let output = Bytes::copy_from_slice(output);
        let write: WriteFn = Box::new(move |connection| {
            connection.execute("INSERT INTO t1 (c2) VALUES (1)", []).map_err(dialect::sqlite::error)?;
            Ok(output)
        });
        self.batch(now, vec![(Some(request), write)]).0.remove(0)
    }

    /// Runs writes as one batch; gives what came of them, and how many requests its entry has.
    fn batch(
        &mut self,
        now: Duration,
        writes: Vec<(Option<Request>, WriteFn)>,
    ) -> (Vec<Result<Ran, WireError>>, usize) {
        let index = self.engines[0].applied() + 1;
        self.engines[0].begin(1).unwrap();
        let mut ran = Vec::new();
        for (request, write) in writes {
            let outcome = self.engines[0].run(request, write, &Cancel::default()).unwrap();
            let Outcome::Done(done) = outcome else { panic!("{outcome:?}") };
            ran.push(done);
        }
        self.engines[0].expire(now).unwrap();
        let mut requests = 0;
        match self.engines[0].seal(0).unwrap() {
            None => self.engines[0].rollback().unwrap(),
            Some(data) => {
                self.engines[0].commit(index).unwrap();
                self.engines[1].apply(&[(index, data.clone())]).unwrap();
                let Some(Body::Batch(batch)) = Entry::read(data).unwrap().body else { panic!("a batch") };
                requests = batch.transactions.iter().filter(|one| one.request.is_some()).count();
            }
        }
        let hashes = self.engines.iter().map(|e| crate::table_hash(&e.connection).unwrap());
        assert_eq!(hashes.collect::<std::collections::HashSet<_>>().len(), 1, "the replicas differ");
        (ran, requests)
    }

    fn count(&self, sql: &str) -> i64 {
        self.engines[0].connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn rows(&self) -> i64 {
        self.count("SELECT count(*) FROM t1")
    }
}

fn named(router: u64, sequence: u64) -> Request {
    Request { router, sequence, settled: 0 }
}

/// A write that changes a row and answers these requests, too.
fn carry(told: &[(Request, &'static str)]) -> WriteFn {
    let told = told.to_vec();
    Box::new(move |stage| {
        stage.execute("INSERT INTO t1 (c2) VALUES (2)", []).map_err(dialect::sqlite::error)?;
        for (request, output) in told {
            stage.remember(request.id(), request.settled, output.into())?;
        }
        Ok(Bytes::from_static(b"own"))
    })
}

fn assert_refused(ran: Result<Ran, WireError>) {
    let error = ran.unwrap_err();
    assert_eq!((error.sqlstate, error.retry), (SqlState::TRANSACTION_RESOLUTION_UNKNOWN, Retry::Never));
}

#[test]
fn a_repeated_request_is_answered_by_whoever_leads() {
    let mut pair = Pair::new();
    let first = pair.run(Duration::ZERO, named(1, 5), b"told").unwrap();
    assert_eq!((first.output.as_ref(), first.repeated), (b"told".as_ref(), false));
    for step in 0..4 {
        let again = pair.run(Duration::ZERO, named(1, 5), b"other").unwrap();
        assert_eq!((again.output.as_ref(), again.repeated), (b"told".as_ref(), true));
        if step % 2 == 0 { pair.change_leader() } else { pair.restart() }
    }
    assert_eq!(pair.rows(), 1);
}

#[test]
fn what_is_settled_is_forgotten_and_refused() {
    let mut pair = Pair::new();
    for sequence in 1..=10 {
        pair.run(Duration::ZERO, named(1, sequence), b"").unwrap();
    }
    pair.run(Duration::ZERO, Request { settled: 200, ..named(1, 300) }, b"").unwrap();
    assert_eq!(pair.count("SELECT count(*) FROM replica_requests"), 1);
    for _ in 0..3 {
        let told = |sequence| told(&pair.engines[0].connection, named(1, sequence).id()).unwrap();
        let forgotten = SqlState::TRANSACTION_RESOLUTION_UNKNOWN;
        assert_eq!([7, 150].map(|sequence| told(sequence).unwrap_err().sqlstate), [forgotten; 2]);
        assert_eq!([200, 300, 301].map(|sequence| told(sequence).unwrap().is_some()), [false, true, false]);
        assert_refused(pair.run(Duration::ZERO, named(1, 7), b""));
        // One that was never seen, but is below the mark: nobody can say that it never ran.
        assert_refused(pair.run(Duration::ZERO, named(1, 150), b""));
        assert!(pair.run(Duration::ZERO, named(1, 300), b"").unwrap().repeated);
        pair.change_leader();
        pair.restart();
    }
    pair.run(Duration::ZERO, named(1, 200), b"").unwrap();
    assert_eq!(pair.rows(), 12);
}

#[test]
fn results_of_a_router_that_is_gone_expire_on_all_replicas() {
    let mut pair = Pair::new();
    for sequence in 1..=20 {
        pair.run(Duration::ZERO, named(1, sequence), b"").unwrap();
    }
    let mut other = 0;
    let mut tick = |pair: &mut Pair, now| {
        other += 1;
        pair.run(now, Request { settled: other, ..named(2, other) }, b"").unwrap();
    };
    // It looks every eighth of the time, so it takes up to an eighth longer.
    for eighth in 0..=8 {
        tick(&mut pair, HOUR * eighth / 8);
        assert_eq!(pair.count("SELECT count(*) FROM replica_requests WHERE router = 1"), 20);
    }
    tick(&mut pair, HOUR * 9 / 8);
    assert_eq!(pair.count("SELECT count(*) FROM replica_requests WHERE router = 1"), 0);
    assert_ne!(
        pair.count("SELECT count(*) FROM replica_requests WHERE router = 2"),
        0,
        "this one isn't silent"
    );
    for _ in 0..2 {
        assert_refused(pair.run(2 * HOUR, named(1, 20), b""));
        assert_refused(pair.run(2 * HOUR, named(1, 3), b""));
        pair.restart();
        pair.change_leader();
    }
    // It was only silent: it goes on where it was.
    pair.run(2 * HOUR, named(1, 21), b"").unwrap();
    assert!(pair.run(2 * HOUR, named(1, 21), b"").unwrap().repeated);
}

#[test]
fn a_new_leader_counts_silence_anew() {
    let mut pair = Pair::new();
    pair.run(Duration::ZERO, named(1, 1), b"").unwrap();
    pair.run(HOUR / 2, named(2, 1), b"").unwrap();
    pair.change_leader();
    // Its clock is another one, and it hasn't watched before.
    pair.run(HOUR * 9, named(2, 2), b"").unwrap();
    assert!(pair.run(HOUR * 9, named(1, 1), b"").unwrap().repeated);
    pair.run(HOUR * 10, named(2, 3), b"").unwrap();
    assert_refused(pair.run(HOUR * 10, named(1, 1), b""));
}

#[test]
fn a_router_that_settles_nothing_is_bounded_in_rows_and_bytes() {
    let mut pair = Pair::new();
    let total = 3 * 4096;
    for sequence in 1..=total {
        pair.engines[0].begin(1).unwrap();
        let write: WriteFn = Box::new(|_| Ok(Bytes::new()));
        let outcome = pair.engines[0].run(Some(named(1, sequence)), write, &Cancel::default()).unwrap();
        assert!(matches!(outcome, Outcome::Done(Ok(_))));
        pair.engines[0].expire(Duration::ZERO).unwrap();
        pair.engines[0].seal(0).unwrap().unwrap();
        pair.engines[0].commit(sequence).unwrap();
    }
    let held = pair.count("SELECT count(*) FROM replica_requests");
    assert!(held <= 4096 + 100, "{held}");

    let mut pair = Pair::new();
    for sequence in 1..=20 {
        pair.run(HOUR * u32::try_from(sequence).unwrap() / 4, named(1, sequence), &[7; 1000]).unwrap();
    }
    assert_eq!(pair.count("SELECT count(*) FROM replica_requests"), 10);
    assert_eq!(pair.count("SELECT min(sequence) FROM replica_requests"), 11, "the oldest go first");
    assert_refused(pair.run(HOUR * 5, named(1, 10), b""));
    assert!(pair.run(HOUR * 5, named(1, 11), b"").unwrap().repeated);
}

#[test]
fn a_write_answers_many_requests_in_one_entry() {
    let mut pair = Pair::new();
    pair.run(Duration::ZERO, named(1, 1), b"first").unwrap();
    let told = [
        (named(1, 1), "second"),
        (named(1, 2), "a"),
        (named(2, 2), "b"),
        (named(2, 9), "c"),
        (named(2, 9), "again"),
        (named(3, 3), "other"),
    ];
    let (ran, requests) = pair.batch(
        Duration::ZERO,
        vec![
            (None, carry(&told[..4])),
            (Some(named(3, 3)), carry(&told[3..])),
            (None, Box::new(|_| Ok(Bytes::new()))),
        ],
    );
    assert!(ran.into_iter().all(|ran| ran.is_ok_and(|ran| !ran.repeated)));
    assert_eq!((requests, pair.rows()), (4, 3));
    for _ in 0..2 {
        let first = [(1, 1, "first"), (1, 2, "a"), (2, 2, "b"), (2, 9, "c"), (3, 3, "own")];
        for (router, sequence, output) in first {
            let again = pair.run(Duration::ZERO, named(router, sequence), b"more").unwrap();
            assert_eq!((again.output.as_ref(), again.repeated), (output.as_bytes(), true));
        }
        pair.restart();
        pair.change_leader();
    }
    assert_eq!(pair.rows(), 3);
    // One that changes nothing needs an entry for what it answers, and nothing else does.
    let only = |request: Request| -> WriteFn {
        Box::new(move |stage| stage.remember(request.id(), 0, Bytes::new()).map(|()| Bytes::new()))
    };
    assert_eq!(pair.batch(Duration::ZERO, vec![(None, only(named(5, 5)))]).1, 1);
    assert_eq!(pair.batch(Duration::ZERO, vec![(None, only(named(5, 5)))]).1, 0);
}

#[test]
fn what_a_write_answers_settles_and_expires_as_ever() {
    let mut pair = Pair::new();
    let settles = Request { settled: 200, ..named(1, 300) };
    // In their order: the second settles the first, and the third comes too late.
    let told = [(named(1, 5), "a"), (settles, "b"), (named(1, 6), "c"), (named(1, 250), "d")];
    assert_eq!(pair.batch(Duration::ZERO, vec![(None, carry(&told))]).1, 3);
    for _ in 0..2 {
        assert_refused(pair.run(Duration::ZERO, named(1, 5), b""));
        assert_refused(pair.run(Duration::ZERO, named(1, 6), b""));
        assert!(pair.run(Duration::ZERO, named(1, 250), b"").unwrap().repeated);
        pair.change_leader();
    }
    pair.batch(HOUR, vec![(None, carry(&[(named(2, 1), "e")]))]);
    pair.batch(HOUR * 2, vec![(None, carry(&[(named(2, 2), "f")]))]);
    assert_refused(pair.run(HOUR * 2, named(1, 300), b""));
    assert!(pair.run(HOUR * 2, named(2, 2), b"").unwrap().repeated);
}

#[test]
fn what_a_write_answers_is_undone_with_it() {
    let mut pair = Pair::new();
    let settles = Request { settled: 200, ..named(1, 300) };
    let told = [(named(1, 5), "a"), (settles, "b")];
    // A batch that isn't committed.
    pair.engines[0].begin(1).unwrap();
    let outcome = pair.engines[0].run(None, carry(&told), &Cancel::default()).unwrap();
    assert!(matches!(outcome, Outcome::Done(Ok(_))));
    pair.engines[0].seal(0).unwrap().unwrap();
    pair.engines[0].rollback().unwrap();
    assert!(!pair.run(Duration::ZERO, named(1, 5), b"").unwrap().repeated);
    // Writes that fail, by themselves or since they are too big, beside one that doesn't.
    let failing: WriteFn = Box::new(move |stage| {
        carry(&told)(stage)?;
        Err(WireError::internal("no"))
    });
    let big = "x".repeat(LIMITS.transaction_bytes / 4);
    let big: WriteFn = Box::new(move |stage| {
        (10..14).try_for_each(|n| stage.remember(named(1, n).id(), 0, big.clone().into()))?;
        Ok(Bytes::new())
    });
    let beside = carry(&[(named(1, 7), "c")]);
    let (ran, requests) = pair.batch(Duration::ZERO, vec![(None, failing), (None, big), (None, beside)]);
    let failed: Vec<_> = ran.into_iter().map(|ran| ran.err().map(|error| error.sqlstate)).collect();
    let expected = [Some(SqlState::INTERNAL_ERROR), Some(SqlState::PROGRAM_LIMIT_EXCEEDED), None];
    assert_eq!((failed.as_slice(), requests), (expected.as_slice(), 1));
    assert!(pair.run(Duration::ZERO, named(1, 7), b"").unwrap().repeated);
    for sequence in [10, 300] {
        assert!(!pair.run(Duration::ZERO, named(1, sequence), b"").unwrap().repeated);
    }
    // A rehearsal is undone whatever comes of it.
    let (overlay, run) = (Overlay::new(), carry(&[(named(1, 8), "d")]));
    let refused = pair.engines[0].rehearse(1, (&overlay, false), run, &Cancel::default()).unwrap();
    assert_eq!(refused.unwrap_err().sqlstate, SqlState::INTERNAL_ERROR);
    pair.engines[0].rollback().unwrap();
    assert!(!pair.run(Duration::ZERO, named(1, 8), b"").unwrap().repeated);
}
