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
