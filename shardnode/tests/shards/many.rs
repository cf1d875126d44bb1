//! Many transactions at once, of all kinds: what is committed is there, nothing else is, and no lock is left.

use crate::common::{Node, SHARD};
use crate::session::Session;
use proto::services::{LockWait, RowLock, ShardService};
use proto::{Retry, Value, WireError};
use std::sync::Arc;

const ACCOUNTS: u64 = 6;
const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 INTEGER NOT NULL) STRICT";

/// xorshift: the same numbers in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Moves money between accounts; gives what the transaction has done to each, if it was committed.
async fn move_some(
    session: &Session<'_>,
    chance: &mut Chance,
) -> Result<[i64; ACCOUNTS as usize], WireError> {
    let mut moved = [0; ACCOUNTS as usize];
    for _ in 0..1 + chance.below(3) {
        let (from, to) = (chance.below(ACCOUNTS), chance.below(ACCOUNTS));
        let before = (session.last(), moved);
        if chance.below(3) == 0 {
            let sql = format!("SELECT c1, c2 FROM t1 WHERE c1 IN ({from}, {to})");
            session.lock(&sql, RowLock::NoKeyUpdate, LockWait::Wait).await?;
        }
        for (account, amount) in [(from, -1), (to, 1)] {
            session.write(&format!("UPDATE t1 SET c2 = c2 + {amount} WHERE c1 = {account}")).await?;
            moved[account as usize] += amount;
        }
        if chance.below(5) == 0 {
            session.roll_back_to(before.0).await?;
            moved = before.1;
        }
    }
    match chance.below(8) {
        0 => {
            session.finish(false).await?;
            moved = [0; ACCOUNTS as usize];
        }
        1 => {
            session.prepare().await?;
            session.finish(true).await?;
        }
        2 => {
            session.prepare().await?;
            session.finish(false).await?;
            moved = [0; ACCOUNTS as usize];
        }
        _ => drop(session.commit().await?),
    }
    Ok(moved)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_there_and_nothing_else() {
    let node = Arc::new(Node::start().await);
    node.schema(1, &[TABLE], None).await.unwrap();
    for account in 0..ACCOUNTS {
        let insert = node.write(&format!("INSERT INTO t1 VALUES ({account}, 100)"), 1 + account);
        node.shards.execute(insert).await.unwrap();
    }
    let worker = |worker: u64| {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let mut chance = Chance(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(worker + 1));
            let (mut total, mut deadlocks) = ([0; ACCOUNTS as usize], 0);
            for round in 0..25 {
                let number = 1000 * worker + round + 1;
                if chance.below(4) == 0 {
                    let account = chance.below(ACCOUNTS);
                    let write = format!("UPDATE t1 SET c2 = c2 + 7 WHERE c1 = {account}");
                    let done = node.shards.execute(node.write(&write, 100_000 + number)).await;
                    assert_eq!(done.unwrap().affected, 1);
                    total[account as usize] += 7;
                    continue;
                }
                let session = Session::new(&node, number);
                match move_some(&session, &mut chance).await {
                    Ok(moved) => total.iter_mut().zip(moved).for_each(|(total, moved)| *total += moved),
                    Err(error) => {
                        assert_eq!(
                            (error.sqlstate.as_str(), &error.retry),
                            ("40P01", &Retry::Never),
                            "{error}"
                        );
                        deadlocks += 1;
                        session.roll_back().await;
                    }
                }
            }
            (total, deadlocks)
        })
    };
    let workers: Vec<_> = (0..6).map(worker).collect();
    let (mut expected, mut deadlocks) = ([100; ACCOUNTS as usize], 0);
    for worker in workers {
        let (total, ended) = worker.await.unwrap();
        expected.iter_mut().zip(total).for_each(|(expected, total)| *expected += total);
        deadlocks += ended;
    }
    for (account, expected) in expected.into_iter().enumerate() {
        let found = node.one(&format!("SELECT c2 FROM t1 WHERE c1 = {account}")).await;
        assert_eq!(found, Value::Int(expected), "account {account}");
    }
    assert!(deadlocks > 0, "it has met what it is about");
    assert!(node.shards.branches(SHARD).await.unwrap().is_empty());
    assert_eq!(node.one("SELECT count(*) FROM shoal_prepared").await, Value::Int(0));
    // Nothing is locked: this isn't run as a transaction, and changes every row at once.
    let write = node.write("UPDATE t1 SET c2 = 0", 900_000);
    assert_eq!(node.shards.execute(write).await.unwrap().affected, ACCOUNTS);
}
