//! Queries that lock rows, run on bare SQLite databases: they answer as without a lock, whatever the rules are, and the
//! rows that they lock are those that they should.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::executor::{Database, render};
use planner::{Rule, Rules};

fn database() -> Database {
    let mut database = Database::new();
    for sql in [
        "CREATE TABLE job (id int PRIMARY KEY, state text, due numeric(6,2)) PARTITION BY HASH (id)",
        "CREATE TABLE part (id int, n int, v text, PRIMARY KEY (id, n)) PARTITION BY HASH (id)",
        "CREATE TABLE kind (code int PRIMARY KEY, name text) WITH (placement = 'reference')",
        "CREATE TABLE one (k numeric PRIMARY KEY, v int) WITH (placement = 'single')",
        "CREATE TABLE bare (v int)",
        "INSERT INTO job VALUES (1, 'new', 3.5), (2, 'new', 1.25), (3, 'done', 2), (4, 'new', NULL)",
        "INSERT INTO part VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 1, 'c'), (4, 1, 'd'), (4, 2, 'e')",
        "INSERT INTO kind VALUES (1, 'x'), (2, 'y')",
        "INSERT INTO one VALUES (1.0, 1), (2.50, 2)",
        "INSERT INTO bare VALUES (7), (7), (8)",
    ] {
        database.run(sql).unwrap();
    }
    database
}

/// Queries, and how many rows each locks.
const QUERIES: &[(&str, usize)] = &[
    ("SELECT * FROM job ORDER BY id", 4),
    ("SELECT state FROM job WHERE id = 2", 1),
    ("SELECT id FROM job WHERE state = 'new' ORDER BY due DESC NULLS LAST, id", 3),
    ("SELECT id FROM job WHERE state = 'none'", 0),
    ("SELECT n, v FROM part WHERE id = 4 ORDER BY n LIMIT 1", 1),
    ("SELECT n, v FROM part WHERE id = 4 ORDER BY n LIMIT 1 OFFSET 1", 2),
    ("SELECT n, v FROM part WHERE id = 4 ORDER BY n OFFSET 1", 2),
    ("SELECT k FROM one ORDER BY k DESC LIMIT 1", 1),
    ("SELECT v FROM bare WHERE v = 7", 2),
    ("SELECT job.id, v FROM job JOIN part ON part.id = job.id WHERE job.id = 1 ORDER BY v", 1),
    ("SELECT job.id, v FROM job JOIN part ON part.id = job.id ORDER BY v", 3),
    ("SELECT job.id, name FROM job LEFT JOIN kind ON code = job.id ORDER BY job.id", 4),
    ("SELECT id FROM job WHERE id IN (SELECT code FROM kind) ORDER BY id", 2),
    ("SELECT FROM bare WHERE v = 8", 1),
];

#[test]
fn a_lock_changes_no_answer() {
    let mut database = database();
    for (sql, locks) in QUERIES {
        let ordered = sql.contains("ORDER BY");
        let plain = render(&database.run(sql), ordered);
        let of = if sql.contains("FROM job") { " OF job" } else { "" };
        for rules in
            [Rules::ALL, Rules::NONE].into_iter().chain(Rule::ALL.iter().map(|r| Rules::ALL.without(*r)))
        {
            database.settings.rules = rules;
            database.locked.borrow_mut().clear();
            for lock in ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"] {
                let locked = database.run(&format!("{sql} FOR {lock}{of}"));
                assert_eq!(render(&locked, ordered), plain, "[{rules}] {sql}");
            }
            assert_eq!(database.locked.borrow().len(), *locks, "[{rules}] {sql}");
        }
        database.settings.rules = Rules::ALL;
    }
}

#[test]
fn several_shards_lock_as_many_as_the_limit_each() {
    let mut database = database();
    let answer = database.run("SELECT id FROM job ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED").unwrap();
    assert_eq!(answer.rows.len(), 1);
    assert_eq!(database.locked.borrow().len(), 2);
}

/// Statements with queries that lock within, what each answers, how many rows it locks, and what is left of the jobs.
const WITHIN: &[(&str, &str, usize, &str)] = &[
    (
        "UPDATE job SET state = 'run' WHERE id = (SELECT id FROM job WHERE state = 'new' ORDER BY id DESC LIMIT 1 \
         FOR UPDATE SKIP LOCKED) RETURNING id, due",
        "4|∅",
        1,
        "1 new, 2 new, 3 done, 4 run",
    ),
    (
        "WITH next AS (SELECT id FROM job WHERE state = 'new' AND id < 3 FOR UPDATE) DELETE FROM job USING next \
         WHERE job.id = next.id RETURNING job.id",
        "1, 2",
        2,
        "3 done, 4 new",
    ),
    (
        "WITH next (n) AS (SELECT id FROM job WHERE id IN (1, 3) FOR UPDATE) UPDATE job SET state = n || '!' FROM next \
         WHERE id = n RETURNING job.state",
        "1!, 3!",
        2,
        "1 1!, 2 new, 3 3!, 4 new",
    ),
    (
        "UPDATE job AS j SET state = v FROM part AS p WHERE p.id = j.id AND n = 2 RETURNING j.id, state",
        "1|b, 4|e",
        0,
        "1 b, 2 new, 3 done, 4 e",
    ),
    (
        "UPDATE job SET state = 'x' FROM one WHERE id = one.v AND one.v > 1",
        "",
        0,
        "1 new, 2 x, 3 done, 4 new",
    ),
    (
        "DELETE FROM job WHERE id IN (SELECT v FROM one FOR SHARE) AND due = 3.5 RETURNING id",
        "1",
        2,
        "2 new, 3 done, 4 new",
    ),
    (
        "DELETE FROM job USING part JOIN kind ON code = n WHERE job.id = part.id AND name = 'y' RETURNING job.id",
        "1, 4",
        0,
        "2 new, 3 done",
    ),
    (
        "WITH a AS (SELECT v FROM one), b AS (SELECT max(v) AS m FROM a) UPDATE job SET state = m || '' FROM b \
         WHERE id > m",
        "",
        0,
        "1 new, 2 new, 3 2, 4 2",
    ),
    (
        "INSERT INTO job SELECT id + 10, state FROM (SELECT id, state FROM job WHERE id < 3 FOR UPDATE) AS j",
        "",
        2,
        "1 new, 11 new, 12 new, 2 new, 3 done, 4 new",
    ),
    (
        "WITH l AS (SELECT id FROM job WHERE state = 'new' FOR UPDATE) SELECT l.id, part.v FROM l LEFT JOIN part \
         ON part.id = l.id AND part.n = 2",
        "1|b, 2|∅, 4|e",
        3,
        "1 new, 2 new, 3 done, 4 new",
    ),
    (
        "UPDATE job SET due = 9 WHERE EXISTS (SELECT 1 FROM one WHERE v = 7 FOR UPDATE)",
        "",
        0,
        "1 new, 2 new, 3 done, 4 new",
    ),
];

#[test]
fn queries_within_lock_once_whatever_the_rules_are() {
    for (sql, answer, locks, left) in WITHIN {
        for rules in
            [Rules::ALL, Rules::NONE].into_iter().chain(Rule::ALL.iter().map(|r| Rules::ALL.without(*r)))
        {
            let mut database = database();
            database.settings.rules = rules;
            let rows = render(&database.run(sql), false);
            let plain = database.run("SELECT id || ' ' || state FROM job ORDER BY 1");
            let found = (flat(&rows), database.locked.borrow().len(), flat(&render(&plain, true)));
            assert_eq!(found, ((*answer).to_owned(), *locks, (*left).to_owned()), "[{rules}] {sql}");
        }
    }
}

/// The rows of what was rendered, beside each other.
fn flat(rendered: &str) -> String {
    let rows: Vec<_> =
        rendered.lines().filter(|line| !line.starts_with('(') && !line.contains(':')).collect();
    rows.join(", ")
}
