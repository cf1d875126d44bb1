//! What sessions see of shards that are replaced by others: nothing, or `40001`.

use super::*;
use crate::fake::sealed;
use proto::services::{Counted, ReshardPhase, ReshardStatus, ShardTally, TableTally};
use proto::{Attempt, Epoch, KeyRange, KeyspaceId, ReshardId, Retry, ShardId, ValueRef};

/// The first shard's halves take its place.
fn split(fake: &Fake) {
    fake.switch(&[1], &[(11, "-40"), (12, "40-80")]);
}

/// One shard takes the place of both.
fn merge(fake: &Fake) {
    fake.switch(&[1, 2], &[(21, "-")]);
}

/// The attempt is given up.
fn give_up(fake: &Fake) {
    fake.unseal(&[1, 2]);
}

/// A number whose row is in this range: the first, the second ..
fn key(range: &str, nth: usize) -> i64 {
    let range = KeyRange::parse(range).unwrap();
    let is_in = |key: &i64| range.contains(&KeyspaceId::hash([ValueRef::Int(*key)]).0);
    (1..).filter(is_in).nth(nth).unwrap()
}

/// `[A]`, `[B]`: rows of the first shard's halves; `[C]` one of the second's. `[D]` is like `[A]`.
fn with_keys(sql: &str) -> String {
    let keys = [("[A]", "-40", 0), ("[B]", "40-80", 0), ("[C]", "80-", 0), ("[D]", "-40", 1)];
    keys.iter()
        .fold(sql.to_owned(), |sql, (name, range, nth)| sql.replace(name, &key(range, *nth).to_string()))
}

async fn run(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
    rows(client, &with_keys(sql)).await
}

/// What is in the tables, once all that was committed is there.
async fn contents(server: &Server) -> Vec<Vec<Option<String>>> {
    let client = server.client().await;
    let mut all = rows(&client, "SELECT a, b FROM t ORDER BY a").await.unwrap();
    all.extend(rows(&client, "SELECT a, b FROM r ORDER BY a").await.unwrap());
    all
}

const ROWS: &str = "INSERT INTO t VALUES ([A], 'a'), ([B], 'b'), ([C], 'c'); INSERT INTO r VALUES (1, 'r')";

#[tokio::test]
async fn a_view_shows_shards_as_they_were_counted() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let sql = "SELECT keyspace, rows, rows_age_ms, bytes FROM shoal_shards WHERE rows IS NOT NULL";
    assert_eq!(run(&client, sql).await, Ok(vec![]));
    let (shard, state) = (ShardId(1), server.fake.state());
    let of = |name: &str| state.catalog.table_named(name).unwrap().id;
    let tally = |table, rows| TableTally { table, rows, bytes: 9, middle: None, growth: None };
    let tables = vec![tally(of("t"), 5), tally(of("r"), 100)];
    let counted = Counted { age: Duration::from_secs(2), took: Duration::ZERO, tables };
    *server.fake.tallies.lock() = vec![ShardTally { shard, counted }];
    let found = run(&client, sql).await.unwrap();
    let expected = ["main", "5", "2000"].map(|value| Some(value.to_owned()));
    assert_eq!(found, [[&expected[..], &[None]].concat()], "reference tables have no shard of their own");
    assert!(run(&client, "SELECT * FROM shoal_shards").await.unwrap().len() > 1);
}

#[tokio::test]
async fn the_view_shows_what_the_coordinator_says() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let sql = "SELECT id, phase, new, bytes_done, since_ms FROM shoal_reshards";
    assert_eq!(run(&client, sql).await, Ok(vec![]));
    let reshard = |id| ReshardStatus {
        id: ReshardId(id),
        what: String::new(),
        keyspace: "main".into(),
        phase: ReshardPhase::Ready,
        attempt: Attempt(1),
        old: vec![],
        new: vec!["a".into(), "b".into()],
        wanted: false,
        bytes: None,
        rows: None,
        lag: None,
        paused: None,
        failed: None,
        message: String::new(),
        switches: 0,
        ended: 0,
        pause: None,
        completes_in: None,
        since: Duration::from_secs(1),
    };
    *server.fake.reshards.lock() = vec![reshard(8), reshard(7)];
    let found = run(&client, sql).await.unwrap();
    let found: Vec<Vec<&str>> = found
        .iter()
        .map(|row| row.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect())
        .collect();
    assert_eq!(found, [["7", "ready", "a, b", "NULL", "1000"], ["8", "ready", "a, b", "NULL", "1000"]]);
    let refused = WireError::new(SqlState::CANNOT_CONNECT_NOW, "nobody leads");
    server.fake.action_faults.lock().push(("reshards", Fault::Before(refused)));
    assert_eq!(run(&client, sql).await, Err("57P03".into()));
}

/// When shards are replaced.
#[derive(Clone, Copy, Debug)]
enum When {
    Never,
    /// Before the statement is sent.
    Before(fn(&Fake)),
    /// They are sealed by then, and this comes once somebody was refused.
    During(&'static [u64], fn(&Fake)),
}

/// What a statement comes to, and what is in the tables then.
type Came = (Result<Vec<Vec<Option<String>>>, String>, Vec<Vec<Option<String>>>);

async fn play(first: &str, sql: &str, last: &str, when: When) -> Came {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    if !first.is_empty() {
        run(&client, first).await.unwrap();
    }
    let answer = match when {
        When::Never => run(&client, sql).await,
        When::Before(change) => {
            change(&server.fake);
            run(&client, sql).await
        }
        When::During(shards, change) => {
            server.fake.seal(shards);
            tokio::join!(run(&client, sql), server.fake.once_refused(change)).0
        }
    };
    let mut answer = answer;
    if !last.is_empty()
        && let Err(error) = run(&client, last).await
    {
        answer = Err(error);
    }
    (answer, contents(&server).await)
}

const STATEMENTS: [&str; 15] = [
    "/*+ read(eventual) */ SELECT b FROM t WHERE a = [A]",
    "SELECT b FROM t WHERE a = [A]",
    "SELECT a, b FROM t ORDER BY a",
    "SELECT count(*) FROM t JOIN r ON r.a = 1",
    "SELECT b FROM t WHERE a = [B] FOR UPDATE",
    "SELECT b FROM t ORDER BY a FOR UPDATE",
    "INSERT INTO t VALUES ([D], 'd') RETURNING a",
    "INSERT INTO t VALUES ([D], 'd'), (100, 'x'), (101, 'y'), (102, 'z') RETURNING a",
    "INSERT INTO t SELECT a + 1000, b FROM t",
    "UPDATE t SET b = 'new' WHERE a = [A] RETURNING b",
    "UPDATE t SET b = b || 'new'",
    "UPDATE t SET a = [D] WHERE a = [C]",
    "DELETE FROM t WHERE a = [B]",
    "DELETE FROM t",
    "UPDATE r SET b = 'new'",
];

#[tokio::test]
async fn a_statement_hears_nothing_of_a_switch() {
    let times = [
        When::Before(split),
        When::Before(merge),
        When::During(&[1], split),
        When::During(&[1, 2], merge),
        When::During(&[1, 2], give_up),
    ];
    for sql in STATEMENTS {
        let expected = play("", sql, "", When::Never).await;
        assert!(expected.0.is_ok(), "{sql}: {expected:?}");
        for when in times {
            assert_eq!(play("", sql, "", when).await, expected, "{sql} {when:?}");
        }
    }
}

/// What was done elsewhere stays, and what the statement itself did elsewhere is undone before it is run again.
#[tokio::test]
async fn a_block_that_comes_to_a_shard_only_after_its_seal_goes_on() {
    let first = "BEGIN; UPDATE t SET b = 'block' WHERE a = [C]";
    for sql in STATEMENTS {
        let expected = play(first, sql, "COMMIT", When::Never).await;
        assert!(expected.0.is_ok(), "{sql}: {expected:?}");
        for when in [When::Before(split), When::During(&[1], split), When::During(&[1], give_up)] {
            assert_eq!(play(first, sql, "COMMIT", when).await, expected, "{sql} {when:?}");
        }
    }
}

#[tokio::test]
async fn a_block_that_has_written_or_locked_on_a_shard_is_lost_with_it() {
    for first in [
        "BEGIN; UPDATE t SET b = 'block' WHERE a = [A] OR a = [C]",
        "BEGIN; SELECT b FROM t WHERE a = [A] FOR UPDATE; UPDATE t SET b = 'block' WHERE a = [C]",
        "BEGIN; UPDATE t SET b = 'block' WHERE a = [A]; SAVEPOINT s; UPDATE t SET b = 'block' WHERE a = [C]",
    ] {
        for sql in
            ["COMMIT", "SELECT 1 FROM t WHERE a = [B]", "INSERT INTO t VALUES ([D])", "UPDATE t SET b = 'x'"]
        {
            for when in [When::Before(split), When::During(&[1], split)] {
                if sql.starts_with("SELECT") && matches!(when, When::During(..)) {
                    // It reads where it has a branch, as it was.
                    continue;
                }
                let server = Server::start(Config::default()).await;
                let client = server.client().await;
                run(&client, ROWS).await.unwrap();
                run(&client, first).await.unwrap();
                let answer = match when {
                    When::During(shards, change) => {
                        server.fake.seal(shards);
                        tokio::join!(run(&client, sql), server.fake.once_refused(change)).0
                    }
                    _ => {
                        split(&server.fake);
                        server.hears().await;
                        run(&client, sql).await
                    }
                };
                assert_eq!(answer, Err("40001".into()), "{first}; {sql} {when:?}");
                run(&client, "ROLLBACK").await.unwrap();
                let blocks = run(&client, "SELECT count(*) FROM t WHERE b = 'block'").await.unwrap();
                assert_eq!(blocks[0][0].as_deref(), Some("0"), "{first}; {sql}");
                assert_eq!(server.fake.open_branches(), 0, "{first}; {sql}");
            }
        }
    }
}

#[tokio::test]
async fn what_a_block_has_only_read_is_no_loss() {
    for first in [
        "BEGIN; INSERT INTO t VALUES ([A]) ON CONFLICT DO NOTHING; UPDATE t SET b = 'block' WHERE a = [C]",
        "BEGIN; SELECT a FROM t WHERE a = [D] FOR UPDATE; UPDATE t SET b = 'block' WHERE a = [C]",
        "BEGIN; SAVEPOINT s; UPDATE t SET b = 'x' WHERE a = [A]; ROLLBACK TO s; UPDATE t SET b = 'block' WHERE a = [C]",
    ] {
        let expected = play(first, "SELECT a, b FROM t ORDER BY a", "COMMIT", When::Never).await;
        let came = play(first, "SELECT a, b FROM t ORDER BY a", "COMMIT", When::Before(split)).await;
        assert_eq!(came, expected, "{first}");
        let expected = play(first, "SELECT 1", "COMMIT", When::Never).await;
        assert_eq!(play(first, "SELECT 1", "COMMIT", When::Before(split)).await, expected, "{first}");
    }
    // What came after a savepoint is lost, and was to be undone anyway.
    let first =
        "BEGIN; UPDATE t SET b = 'block' WHERE a = [C]; SAVEPOINT s; UPDATE t SET b = 'x' WHERE a = [A]";
    let expected = play(first, "ROLLBACK TO s", "COMMIT", When::Never).await;
    assert_eq!(play(first, "ROLLBACK TO s", "COMMIT", When::Before(split)).await, expected);
    // While the shard is sealed, too; and if it isn't replaced, what had only read goes on where it was.
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    run(&client, first).await.unwrap();
    server.fake.seal(&[1]);
    run(&client, "ROLLBACK TO s").await.unwrap();
    split(&server.fake);
    run(&client, "COMMIT").await.unwrap();
    assert_eq!(contents(&server).await, expected.1);
    let first = "BEGIN; INSERT INTO t VALUES ([A]) ON CONFLICT DO NOTHING; SELECT b FROM t WHERE a = [A]";
    for sql in STATEMENTS {
        let expected = play(first, sql, "COMMIT", When::Never).await;
        assert_eq!(play(first, sql, "COMMIT", When::During(&[1], give_up)).await, expected, "{sql}");
    }
}

fn unknown() -> WireError {
    WireError::new(SqlState::CONNECTION_FAILURE, "lost").with_retry(Retry::Unknown)
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_done_once() {
    let lost = |fault| Fault::Then(Some(Box::new(fault)), split as fn(&Fake));
    for (fault, asked) in [
        (lost(Fault::After(unknown())), vec![11]),
        (lost(Fault::Before(unknown())), vec![11]),
        (lost(Fault::Before(sealed(Epoch(1)))), vec![]),
    ] {
        let server = Server::start(Config::default()).await;
        let client = server.client().await;
        run(&client, ROWS).await.unwrap();
        server.fake.faults.lock().push_back(fault.clone());
        run(&client, "UPDATE t SET b = b || '+' WHERE a = [B]").await.unwrap();
        assert_eq!(server.fake.acted("outcome"), asked, "{fault:?}");
        let found = run(&client, "SELECT b FROM t WHERE a = [B]").await.unwrap();
        assert_eq!(found[0][0].as_deref(), Some("b+"), "{fault:?}");
    }
    // Its shard never answers, and is replaced.
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    server.fake.faults.lock().push_back(Fault::Hang);
    let before = server.fake.requests.lock().len();
    let replace = async {
        while server.fake.requests.lock().len() == before {
            tokio::task::yield_now().await;
        }
        split(&server.fake);
    };
    let (done, ()) = tokio::join!(run(&client, "UPDATE t SET b = b || '+' WHERE a = [B]"), replace);
    done.unwrap();
    assert_eq!(run(&client, "SELECT b FROM t WHERE a = [B]").await.unwrap()[0][0].as_deref(), Some("b+"));
}

#[tokio::test]
async fn who_is_refused_waits_for_the_decision_with_a_bound() {
    let server =
        Server::start(Config { retry_timeout: Duration::from_millis(50), ..Config::default() }).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    server.fake.seal(&[1]);
    for sql in
        ["SELECT b FROM t WHERE a = [A]", "SELECT b FROM t", "INSERT INTO t VALUES ([D])", "DELETE FROM t"]
    {
        assert_eq!(run(&client, sql).await, Err("57P03".into()), "{sql}");
    }
    // It may have been done, and nobody can say so yet.
    server.fake.unseal(&[1]);
    let lost = Fault::Then(Some(Box::new(Fault::After(unknown()))), |fake| fake.seal(&[1]));
    server.fake.faults.lock().push_back(lost);
    assert_eq!(run(&client, "INSERT INTO t VALUES ([D])").await, Err("08007".into()));
    // Who waits can be cancelled, and goes on when the attempt is given up.
    client.batch_execute("SET statement_timeout = 20").await.unwrap();
    assert_eq!(run(&client, "SELECT b FROM t").await, Err("57014".into()));
    assert_eq!(run(&client, "DELETE FROM t WHERE a = [A]").await, Err("57014".into()));
    server.fake.unseal(&[1]);
    assert_eq!(contents(&server).await.len(), 5);
}

#[tokio::test]
async fn what_is_prepared_ends_with_the_heirs() {
    let block = "BEGIN; UPDATE t SET b = 'block' WHERE a <> 0";
    let then = |fault: Option<Fault>, then: fn(&Fake)| Fault::Then(fault.map(Box::new), then);
    let committed = play(block, "COMMIT", "", When::Never).await;
    for (change, merges) in [(split as fn(&Fake), false), (merge, true)] {
        for (kind, fault) in [
            // Voted, and the answer is heard, or lost.
            ("prepare", then(None, change)),
            ("prepare", then(Some(Fault::After(unknown())), change)),
            // Committed, and not finished where it was.
            ("finish", then(Some(Fault::Before(sealed(Epoch(1)))), change)),
            ("finish", then(Some(Fault::After(unknown())), change)),
        ] {
            let server = Server::start(Config::default()).await;
            let client = server.client().await;
            run(&client, ROWS).await.unwrap();
            run(&client, block).await.unwrap();
            // The second answer is lost: then both have voted, or finished.
            let place = usize::from(merges && kind == "prepare");
            let mut faults = vec![(kind, Fault::Then(None, |_: &Fake| {})); place];
            faults.push((kind, fault.clone()));
            *server.fake.action_faults.lock() = faults;
            assert_eq!(run(&client, "COMMIT").await, Ok(vec![]), "{fault:?}");
            assert_eq!(contents(&server).await, committed.1, "{kind} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_vote_that_was_never_given_is_nobodys() {
    for (change, merges) in [(split as fn(&Fake), false), (merge, true)] {
        let server = Server::start(Config::default()).await;
        let client = server.client().await;
        run(&client, ROWS).await.unwrap();
        let before = contents(&server).await;
        run(&client, "BEGIN; UPDATE t SET b = 'block' WHERE a <> 0").await.unwrap();
        // One of them has voted, the other is asked too late. With the merge their heir has a row of it.
        let late = Fault::Then(Some(Box::new(Fault::Before(sealed(Epoch(1))))), change);
        let well = Fault::Then(None, |_: &Fake| {});
        let faults = if merges { vec![well, late] } else { vec![late] };
        *server.fake.action_faults.lock() = faults.into_iter().map(|fault| ("prepare", fault)).collect();
        assert_eq!(run(&client, "COMMIT").await, Err("40001".into()));
        assert_eq!(contents(&server).await, before);
        assert_eq!(server.fake.open_branches(), 0);
    }
}

#[tokio::test]
async fn a_commit_of_one_shard_is_done_or_not() {
    for (fault, came) in [
        (Fault::After(unknown()), Ok(vec![])),
        (Fault::Before(unknown()), Err("40001".into())),
        (Fault::Before(sealed(Epoch(1))), Err("40001".into())),
    ] {
        let server = Server::start(Config::default()).await;
        let client = server.client().await;
        run(&client, ROWS).await.unwrap();
        run(&client, "BEGIN; UPDATE t SET b = 'block' WHERE a = [A]").await.unwrap();
        let fault = Fault::Then(Some(Box::new(fault)), split);
        *server.fake.action_faults.lock() = vec![("commit", fault.clone())];
        assert_eq!(run(&client, "COMMIT").await, came, "{fault:?}");
        let found = run(&client, "SELECT b FROM t WHERE a = [A]").await.unwrap();
        let expected = if came.is_ok() { "block" } else { "a" };
        assert_eq!(found[0][0].as_deref(), Some(expected), "{fault:?}");
    }
}

/// A later epoch isn't always another shard: it may be the gate's, or say that the attempt is given up.
#[tokio::test]
async fn a_commit_of_one_shard_is_asked_for_again_as_long_as_that_serves() {
    let commits = [(Fault::After(unknown()), Ok(vec![])), (Fault::Before(unknown()), Err("40001".into()))];
    for (fault, came) in commits {
        for last in [give_up as fn(&Fake), split] {
            let server = Server::start(Config::default()).await;
            let client = server.client().await;
            run(&client, ROWS).await.unwrap();
            run(&client, "BEGIN; UPDATE t SET b = 'block' WHERE a = [A]").await.unwrap();
            let fault = Fault::Then(Some(Box::new(fault.clone())), |fake| fake.seal(&[1]));
            *server.fake.action_faults.lock() = vec![("commit", fault.clone())];
            let switches = async {
                server.fake.once_refused(|fake| fake.close_gate(Some(1))).await;
                server.fake.once_refused(last).await;
            };
            assert_eq!(tokio::join!(run(&client, "COMMIT"), switches).0, came, "{fault:?}");
            let found = run(&client, "SELECT b FROM t WHERE a = [A]").await.unwrap();
            let expected = if came.is_ok() { "block" } else { "a" };
            assert_eq!(found[0][0].as_deref(), Some(expected), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn an_heir_that_is_behind_is_not_asked_in_a_hurry() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    let lost = Fault::Then(Some(Box::new(Fault::After(unknown()))), split as fn(&Fake));
    server.fake.faults.lock().push_back(lost);
    let behind = || ("outcome", Fault::Before(sealed(Epoch(0))));
    *server.fake.action_faults.lock() = std::iter::repeat_with(behind).take(8).collect();
    let began = proto::machine::now();
    assert_eq!(run(&client, "INSERT INTO t VALUES ([D])").await, Ok(vec![]));
    let took = proto::machine::now() - began;
    assert!(took > Duration::from_millis(60), "{took:?}");
}

#[tokio::test]
async fn a_commit_by_record_is_finished_by_the_heirs() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    run(&client, "SET shoal.idempotency_key = 'k'").await.unwrap();
    run(&client, "BEGIN; UPDATE t SET b = 'block' WHERE a <> 0").await.unwrap();
    *server.fake.action_faults.lock() = vec![("decide", Fault::Then(None, split))];
    run(&client, "COMMIT").await.unwrap();
    assert!([11, 12].iter().all(|heir| server.fake.acted("finish").contains(heir)));
    let found = run(&client, "SELECT count(*) FROM t WHERE b = 'block'").await.unwrap();
    assert_eq!(found[0][0].as_deref(), Some("3"));
}

#[tokio::test]
async fn a_state_that_is_kept_is_read_where_it_is() {
    let server = Server::start(Config::default()).await;
    let (client, other) = (server.client().await, server.client().await);
    run(&client, ROWS).await.unwrap();
    let all = "SELECT a, b FROM t ORDER BY a";
    let one = "SELECT b FROM t WHERE a = [B]";
    let before = (run(&client, all).await.unwrap(), run(&client, one).await.unwrap());
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    run(&client, &format!("{begin}; SELECT 1 FROM t")).await.unwrap();
    split(&server.fake);
    run(&other, "UPDATE t SET b = 'new' WHERE b <> 'c'").await.unwrap();
    assert_eq!((run(&client, all).await.unwrap(), run(&client, one).await.unwrap()), before);
    run(&client, "COMMIT").await.unwrap();
    assert_eq!(run(&client, one).await.unwrap()[0][0].as_deref(), Some("new"));
    // The shards hear that it is over, wherever they are.
    while !server.fake.cuts.lock().iter().any(|(kind, cut)| *kind == "drop" && cut.shard == ShardId(1)) {
        tokio::task::yield_now().await;
    }
    // It begins anew with those that serve if it was refused before it was opened.
    server.fake.seal(&[11]);
    let open = format!("{begin}; {all}");
    let (found, ()) = tokio::join!(
        run(&client, &open),
        server.fake.once_refused(|fake| fake.switch(&[11, 12], &[(31, "-80")]))
    );
    assert_eq!(found.unwrap().len(), 3);
    // What isn't there any more is lost.
    server.fake.switch(&[31], &[(41, "-80")]);
    server.fake.drop_shard(31);
    assert_eq!(run(&client, one).await, Err("40001".into()));
}

#[tokio::test]
async fn a_cut_settles_with_the_heirs_of_who_takes_part() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    run(&client, ROWS).await.unwrap();
    split(&server.fake);
    server.hears().await;
    let transaction = proto::TransactionId { router: proto::RouterIncarnation(9), sequence: 1 };
    let pending = proto::services::Unsettled { transaction, participants: vec![ShardId(1), ShardId(2)] };
    // Those that are read are asked first, each once.
    server.fake.cut_answers.lock().extend([Ok(vec![pending]), Ok(vec![])]);
    server.fake.cuts.lock().clear();
    run(&client, "SELECT count(*) FROM t WHERE a IN ([A], [C])").await.unwrap();
    // Whoever may have been told hears that it is over.
    while !server.fake.cuts.lock().iter().any(|(kind, cut)| *kind == "drop" && cut.shard == ShardId(12)) {
        tokio::task::yield_now().await;
    }
    assert!(server.fake.cuts.lock().iter().all(|(_, cut)| cut.shard != ShardId(1)));
}
