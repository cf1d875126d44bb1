//! Many transactions at once, of all kinds: what is committed is there, nothing else is, and no lock is left.

use crate::common::{GROUP, Node, PATIENCE, SHARD};
use crate::session::Session;
use crate::{prepared, staged};
use proto::services::{BranchAction, LockWait, RowLock, ShardService};
use proto::{NodeId, Retry, Value, WireError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    move_by_chance(Node::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_there_anything_else_where_all_is_staged() {
    move_by_chance(Node::start().await.staging(1, vec![NodeId(1)])).await;
}

async fn move_by_chance(node: Node) {
    let node = Arc::new(node);
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
    staged::nothing_is_left(&node).await;
    // Nothing is locked: this isn't run as a transaction, and changes every row at once.
    let write = node.write("UPDATE t1 SET c2 = 0", 900_000);
    assert_eq!(node.shards.execute(write).await.unwrap().affected, ACCOUNTS);
}

/// Runs a write outside of any transaction at whichever node leads; says whether it was done.
async fn write_anywhere(nodes: &[Node], sql: &str, number: u64) -> bool {
    let mut pause = tokio::time::interval(Duration::from_millis(2));
    let done = async {
        loop {
            for node in nodes {
                match node.shards.execute(node.write(sql, number)).await {
                    Ok(done) => return done.affected == 1,
                    Err(error) if error.retry != Retry::Never => {}
                    Err(error) => {
                        assert_eq!(error.sqlstate.as_str(), "40P01", "{error}");
                        return false;
                    }
                }
            }
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("a node leads")
}

/// Leadership moves all the time: a transaction is lost or it is committed, and which of both can be learned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_there_whoever_leads() {
    let (nodes, _network) = prepared::three(|_| {}).await;
    move_under_new_leaders(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_where_all_is_staged() {
    let (nodes, _network) = prepared::three(|_| {}).await;
    let ids = || (1..=3).map(NodeId).collect();
    move_under_new_leaders(nodes.into_iter().map(|node| node.staging(1, ids())).collect()).await;
}

async fn move_under_new_leaders(nodes: Vec<Node>) {
    let table = "CREATE TABLE t2 (c1 INTEGER NOT NULL PRIMARY KEY, c2 INTEGER NOT NULL) STRICT";
    nodes[0].schema(2, &[table], None).await.unwrap();
    let rows = "INSERT INTO t2 VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)";
    nodes[0].shards.execute(nodes[0].write(rows, 2)).await.unwrap();
    let nodes = Arc::new(nodes);
    let over = Arc::new(AtomicBool::new(false));
    let mover = {
        let (nodes, over) = (Arc::clone(&nodes), Arc::clone(&over));
        tokio::spawn(async move {
            let (mut chance, mut moves) = (Chance(77), 0);
            let mut pause = tokio::time::interval(Duration::from_millis(60));
            while !over.load(Ordering::Relaxed) {
                pause.tick().await;
                let to = NodeId(1 + chance.below(3));
                for node in nodes.iter() {
                    let replica = node.host.replica(GROUP).unwrap();
                    if replica.is_leader() && replica.status().node != to {
                        // Another one may have been elected meanwhile.
                        let moved =
                            replica.transfer_leader(to, Instant::now() + Duration::from_secs(2)).await;
                        moves += u32::from(moved.is_ok());
                    }
                }
            }
            moves
        })
    };
    let worker = |worker: u64| {
        let nodes = Arc::clone(&nodes);
        tokio::spawn(async move {
            let mut chance = Chance(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(worker + 1));
            let (mut total, mut committed) = ([0; ACCOUNTS as usize], 0);
            for round in 0..40 {
                let leader = nodes.iter().find(|node| node.host.replica(GROUP).unwrap().is_leader());
                if chance.below(4) == 0 {
                    let account = chance.below(ACCOUNTS);
                    let number = 1000 * (worker + 1) + round;
                    let update = format!("UPDATE t2 SET c2 = c2 + 1 WHERE c1 = {account}");
                    total[account as usize] += i64::from(write_anywhere(&nodes, &update, number).await);
                    continue;
                }
                let session = Session::new(leader.unwrap_or(&nodes[0]), 1000 * (worker + 1) + round);
                let mut moved = [0; ACCOUNTS as usize];
                let mut alive = true;
                for _ in 0..2 + chance.below(3) {
                    let account = chance.below(ACCOUNTS);
                    let update = format!("UPDATE t2 SET c2 = c2 + 1 WHERE c1 = {account}");
                    alive &= alive && session.write(&update).await.is_ok();
                    moved[account as usize] += 1;
                }
                let is_committed = alive
                    && if chance.below(2) == 0 {
                        session.act_anywhere(&nodes, session.commitment()).await.is_ok()
                    } else {
                        let prepare = BranchAction::Prepare { participants: vec![SHARD], parallel: false };
                        let commit =
                            session.act_anywhere(&nodes, prepare).await.is_ok() && chance.below(4) > 0;
                        session
                            .act_anywhere(&nodes, BranchAction::Finish { commit, keep: false })
                            .await
                            .unwrap();
                        commit
                    };
                if is_committed {
                    committed += 1;
                    total.iter_mut().zip(moved).for_each(|(total, moved)| *total += moved);
                } else {
                    session
                        .act_anywhere(&nodes, BranchAction::Finish { commit: false, keep: false })
                        .await
                        .unwrap();
                }
            }
            (total, committed)
        })
    };
    let workers: Vec<_> = (0..4).map(worker).collect();
    let (mut expected, mut committed) = ([0; ACCOUNTS as usize], 0);
    for worker in workers {
        let (total, count) = worker.await.unwrap();
        expected.iter_mut().zip(total).for_each(|(expected, total)| *expected += total);
        committed += count;
    }
    over.store(true, Ordering::Relaxed);
    let moves = mover.await.unwrap();
    assert!(moves > 2 && committed > 10, "it has met what it is about: {moves}, {committed}");
    let led = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            if let Some(leader) = nodes.iter().find(|node| node.host.replica(GROUP).unwrap().is_leader()) {
                return leader;
            }
            pause.tick().await;
        }
    };
    let leader = tokio::time::timeout(PATIENCE, led).await.unwrap();
    prepared::leads(leader).await;
    for (account, expected) in expected.into_iter().enumerate() {
        let found = leader.one(&format!("SELECT c2 FROM t2 WHERE c1 = {account}")).await;
        assert_eq!(found, Value::Int(expected), "account {account}");
    }
    assert_eq!(leader.one("SELECT count(*) FROM shoal_prepared").await, Value::Int(0));
    staged::nothing_is_left(leader).await;
    let session = Session::new(leader, 900_000);
    assert_eq!(session.write("UPDATE t2 SET c2 = 0").await.unwrap(), ACCOUNTS, "no lock is left");
}
