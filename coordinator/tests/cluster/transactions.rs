//! Verdicts over transactions, with shards that only say what they have and note what they are told.

use crate::common::{Branches, Cluster, PATIENCE, Shape};
use crate::tables::MAIN;
use proto::services::{
    BranchAction, BranchStatus, Claim, CoordinatorService, Decision, ServiceResult, TransactionStatus,
    Verdict,
};
use proto::{GroupId, RouterIncarnation, ShardId, SqlState, TransactionId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const COMMIT: BranchAction = BranchAction::Finish { commit: true, keep: false };
const ABORT: BranchAction = BranchAction::Finish { commit: false, keep: false };

fn id(sequence: u64) -> TransactionId {
    TransactionId { router: RouterIncarnation(9), sequence }
}

async fn decide(
    cluster: &Cluster,
    sequence: u64,
    participants: &[ShardId],
    commit: bool,
) -> ServiceResult<Verdict> {
    let decision = Decision { commit, ..Decision::abort(id(sequence), participants.to_vec()) };
    cluster
        .ask(|coordinator| {
            let decision = decision.clone();
            async move { coordinator.decide(decision).await }
        })
        .await
}

async fn records(cluster: &Cluster, one: Option<TransactionId>) -> Vec<TransactionStatus> {
    cluster.ask(|coordinator| async move { coordinator.transactions(one).await }).await.unwrap()
}

/// Waits until the coordinator's records of a transaction are like this.
async fn recorded(cluster: &Cluster, sequence: u64, wanted: impl Fn(Option<&TransactionStatus>) -> bool) {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    let found = async {
        while !wanted(records(cluster, Some(id(sequence))).await.first()) {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the record gets there");
}

/// Waits until shards have been told.
async fn until(cluster: &Cluster, wanted: impl Fn(&Branches) -> bool) {
    let mut branches = cluster.directory.branches.subscribe();
    let seen = branches.wait_for(|branches| wanted(branches));
    tokio::time::timeout(PATIENCE, seen).await.expect("shards are told").unwrap();
}

/// Whether all of these have heard of this end, and nothing else.
fn have_heard(branches: &Branches, sequence: u64, shards: &[ShardId], end: &BranchAction) -> bool {
    let told = branches.told_of(id(sequence));
    told.iter().all(|(_, action)| action == end)
        && shards.iter().all(|shard| told.iter().any(|(told, _)| told == shard))
}

fn branch(sequence: u64, shard: ShardId) -> BranchStatus {
    BranchStatus {
        shard,
        transaction: id(sequence),
        begun: sequence,
        prepared: None,
        votes: Vec::new(),
        parallel: false,
        committed: false,
        forsaken: false,
        idle: Duration::from_millis(1),
        waits_for: Vec::new(),
    }
}

fn open(cluster: &Cluster, branches: impl IntoIterator<Item = BranchStatus>) {
    let branches = branches.into_iter().map(|branch| ((branch.shard, branch.transaction), branch));
    let branches: Vec<_> = branches.collect();
    cluster.directory.branches.send_modify(|known| known.open.extend(branches));
}

fn deafen(cluster: &Cluster, shards: &[ShardId]) {
    let shards = shards.iter().copied().collect();
    cluster.directory.branches.send_modify(|branches| (branches.deaf, branches.unheard) = (shards, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_verdict_stands_whoever_leads() {
    let mut cluster = Cluster::start(3, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    let leader = cluster.leader().await;
    let mut asked = JoinSet::new();
    for sequence in 1..=200 {
        for party in 0..4 {
            let directory = cluster.directory.clone();
            let commit = (sequence + party) % 2 == 0;
            let decision = Decision { commit, ..Decision::abort(id(sequence), shards.clone()) };
            asked.spawn(async move {
                let verdict = directory.ask(|coordinator| {
                    let decision = decision.clone();
                    async move { coordinator.decide(decision).await }
                });
                (sequence, verdict.await.unwrap().committed)
            });
        }
    }
    // The leader goes when the first have heard.
    let mut verdicts = BTreeSet::from([asked.join_next().await.unwrap().unwrap()]);
    cluster.stop(leader).await;
    verdicts.extend(asked.join_all().await);
    assert_eq!(verdicts.len(), 200, "two parties heard different things: {verdicts:?}");
    assert_ne!(cluster.leader().await, leader);
    for (sequence, committed) in verdicts {
        let again = decide(&cluster, sequence, &shards, !committed).await.unwrap();
        assert_eq!(again.committed, committed, "{sequence}");
        let record = records(&cluster, Some(id(sequence))).await.remove(0);
        assert_eq!((record.committed, record.participants), (committed, shards.clone()));
    }
    assert_eq!(records(&cluster, Some(id(999))).await, []);
    assert_eq!(records(&cluster, None).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_that_come_together_share_a_round() {
    let cluster = Cluster::start(3, 1).await;
    let shards = cluster.shards_of(MAIN).await;
    let leader = cluster.leader().await;
    let coordinator = cluster.directory.coordinator(leader);
    let decisions = (1..=200).map(|sequence| {
        let (coordinator, participants) = (coordinator.clone(), shards.clone());
        async move {
            coordinator.decide(Decision { commit: true, ..Decision::abort(id(sequence), participants) }).await
        }
    });
    let verdicts = decisions.collect::<JoinSet<_>>().join_all().await;
    let positions: BTreeSet<_> = verdicts.into_iter().map(|verdict| verdict.unwrap().position).collect();
    assert!(positions.len() < 50, "200 verdicts took {} entries", positions.len());
    let again = decide(&cluster, 1, &shards, true).await.unwrap();
    assert!(again.position >= *positions.first().unwrap());
    // They are finished all, a few at a time.
    recorded(&cluster, 200, |record| record.is_some_and(|record| record.finished)).await;
    let told = |branches: &Branches| (1..=200).all(|n| have_heard(branches, n, &shards, &COMMIT));
    until(&cluster, told).await;
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    let finished = async {
        while !records(&cluster, None).await.iter().all(|record| record.finished) {
            pause.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, finished).await.expect("all are finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_router_leaves_behind_is_finished() {
    let cluster = Cluster::start(1, 3).await;
    let shards = cluster.shards_of(MAIN).await;
    deafen(&cluster, &shards[2..]);
    assert!(decide(&cluster, 1, &shards[..2], true).await.unwrap().committed);
    assert!(!decide(&cluster, 2, &shards[1..], false).await.unwrap().committed);
    // A shard that is away holds up its own transactions alone.
    until(&cluster, |branches| have_heard(branches, 1, &shards[..2], &COMMIT)).await;
    recorded(&cluster, 1, |record| record.is_some_and(|record| record.committed && record.finished)).await;
    until(&cluster, |branches| have_heard(branches, 2, &shards[1..2], &ABORT) && branches.unheard > 0).await;
    assert!(!records(&cluster, Some(id(2))).await[0].finished);
    deafen(&cluster, &[]);
    until(&cluster, |branches| have_heard(branches, 2, &shards[1..], &ABORT)).await;
    recorded(&cluster, 2, |record| record.is_some_and(|record| !record.committed && record.finished)).await;
    // A shard that is no more has nothing to finish.
    decide(&cluster, 3, &[shards[0], ShardId(12345)], true).await.unwrap();
    recorded(&cluster, 3, |record| record.is_some_and(|record| record.finished)).await;
    assert!(have_heard(&cluster.directory.branches.borrow(), 3, &shards[..1], &COMMIT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_router_finishes_is_left_to_it() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, shards: 2, ..Shape::default() };
    let finish_after = Duration::from_millis(400);
    let cluster = Cluster::start_as(Shape { finish_after, ..shape }).await;
    let shards = cluster.shards_of(MAIN).await;
    let begun = Instant::now();
    for sequence in [1, 2] {
        decide(&cluster, sequence, &shards, true).await.unwrap();
    }
    cluster.ask(|coordinator| async move { coordinator.finished(vec![id(2), id(77)]).await }).await.unwrap();
    let finished: Vec<_> = records(&cluster, None)
        .await
        .into_iter()
        .map(|record| (record.transaction, record.finished))
        .collect();
    assert_eq!(finished, [(id(1), false), (id(2), true)]);
    until(&cluster, |branches| have_heard(branches, 1, &shards, &COMMIT)).await;
    assert!(begun.elapsed() >= finish_after, "the router had {:?}", begun.elapsed());
    assert_eq!(cluster.directory.branches.borrow().told_of(id(2)), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_finishes_it_and_so_does_a_restarted_one() {
    let mut cluster = Cluster::start(3, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    deafen(&cluster, &shards);
    decide(&cluster, 1, &shards, true).await.unwrap();
    until(&cluster, |branches| branches.unheard > 0).await;
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    deafen(&cluster, &[]);
    until(&cluster, |branches| have_heard(branches, 1, &shards, &COMMIT)).await;
    recorded(&cluster, 1, |record| record.is_some_and(|record| record.finished)).await;

    let mut cluster = Cluster::start(1, 2).await;
    let shards = cluster.shards_of(MAIN).await;
    deafen(&cluster, &shards);
    decide(&cluster, 1, &shards, false).await.unwrap();
    until(&cluster, |branches| branches.unheard > 0).await;
    let node = cluster.leader().await;
    cluster.stop(node).await;
    deafen(&cluster, &[]);
    cluster.open(node);
    until(&cluster, |branches| have_heard(branches, 1, &shards, &ABORT)).await;
    recorded(&cluster, 1, |record| record.is_some_and(|record| record.finished)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_that_nobody_decides_is_aborted() {
    let cluster = Cluster::start(1, 3).await;
    let shards = cluster.shards_of(MAIN).await;
    let old = Duration::from_secs(60);
    let prepared = |sequence, shard: usize, idle| BranchStatus {
        prepared: Some(shards[..2].to_vec()),
        idle,
        ..branch(sequence, shards[shard])
    };
    // One that has just been prepared has a router that goes on with it.
    open(&cluster, [prepared(1, 0, Duration::from_secs(1)), prepared(2, 1, old)]);
    until(&cluster, |branches| have_heard(branches, 2, &shards[..2], &ABORT)).await;
    recorded(&cluster, 2, |record| record.is_some_and(|record| record.finished)).await;
    assert!(!decide(&cluster, 2, &shards[..2], true).await.unwrap().committed, "its router comes too late");
    assert_eq!(records(&cluster, Some(id(1))).await, []);
    assert!(decide(&cluster, 1, &shards[..2], true).await.unwrap().committed);
    until(&cluster, |branches| have_heard(branches, 1, &shards[..2], &COMMIT)).await;
    recorded(&cluster, 1, |record| record.is_some_and(|record| record.finished)).await;
    // Whatever is prepared after the end hears the same end, also where nobody knew of it.
    open(&cluster, [prepared(2, 0, old), prepared(2, 2, old), prepared(1, 1, old)]);
    until(&cluster, |branches| branches.open.is_empty()).await;
    assert!(have_heard(&cluster.directory.branches.borrow(), 2, &shards, &ABORT));
    assert!(have_heard(&cluster.directory.branches.borrow(), 1, &shards[..2], &COMMIT));
    // Who waits in vain is told of.
    deafen(&cluster, &shards);
    open(&cluster, [prepared(3, 0, old)]);
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    let alarmed = async {
        loop {
            let status = cluster.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
            if let Some(alarm) = status.alarms.into_iter().find(|alarm| alarm.message.contains(" 9-3 ")) {
                return alarm;
            }
            pause.tick().await;
        }
    };
    let alarm = tokio::time::timeout(PATIENCE, alarmed).await.expect("an alarm");
    assert_ne!(alarm.group, GroupId::COORDINATOR);
    assert_eq!(alarm.message, "transaction 9-3 has been prepared for 60 seconds and isn't finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shard_takes_for_forsaken_is_ended_at_once() {
    let never = Duration::from_secs(3600);
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, shards: 2, ..Shape::default() };
    let cluster = Cluster::start_as(Shape { abort_after: never, finish_after: never, ..shape }).await;
    let shards = cluster.shards_of(MAIN).await;
    let prepared = |sequence, shard: usize, forsaken| BranchStatus {
        prepared: Some(shards.clone()),
        forsaken,
        ..branch(sequence, shards[shard])
    };
    // Of the second one nobody says so, and the third has been decided.
    assert!(decide(&cluster, 3, &shards, true).await.unwrap().committed);
    open(
        &cluster,
        [prepared(1, 0, true), prepared(1, 1, false), prepared(2, 0, false), prepared(3, 1, true)],
    );
    until(&cluster, |branches| have_heard(branches, 1, &shards, &ABORT)).await;
    until(&cluster, |branches| have_heard(branches, 3, &shards, &COMMIT)).await;
    for sequence in [1, 3] {
        recorded(&cluster, sequence, |record| record.is_some_and(|record| record.finished)).await;
    }
    assert_eq!(records(&cluster, Some(id(2))).await, []);
    assert_eq!(cluster.directory.branches.borrow().told_of(id(2)), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_over_shards_costs_its_youngest_member() {
    let cluster = Cluster::start(1, 3).await;
    let shards = cluster.shards_of(MAIN).await;
    let waits = |sequence, shard: usize, holders: &[u64]| BranchStatus {
        waits_for: holders.iter().copied().map(id).collect(),
        ..branch(sequence, shards[shard])
    };
    // 1, 3 and 2 wait in a circle; 4 waits for all of them, 5 for nobody.
    open(&cluster, [waits(1, 0, &[3]), waits(3, 1, &[2]), waits(2, 2, &[1, 5])]);
    open(&cluster, [waits(4, 1, &[2, 3]), waits(1, 2, &[]), waits(3, 0, &[]), waits(5, 0, &[])]);
    until(&cluster, |branches| !branches.told.is_empty()).await;
    // 2 and the others go on, but for those who wait for them still; a second deadlock comes up.
    open(&cluster, [waits(2, 2, &[5]), waits(6, 0, &[7]), waits(7, 1, &[6])]);
    until(&cluster, |branches| branches.told.len() == 2).await;
    let told = cluster.directory.branches.borrow().told.clone();
    let names = cluster.state().await.topology;
    let name = |shard: usize| names.shard_name(shards[shard]);
    let lines = [
        format!("Transaction 9-3 waits for transaction 9-2 on shard {}.", name(1)),
        format!("Transaction 9-2 waits for transaction 9-1 on shard {}.", name(2)),
        format!("Transaction 9-1 waits for transaction 9-3 on shard {}.", name(0)),
    ];
    let (shard, transaction, BranchAction::Fail(error)) = &told[0] else { panic!("{told:?}") };
    assert_eq!((*shard, *transaction), (shards[1], id(3)));
    assert_eq!((error.sqlstate, error.message.as_str()), (SqlState::DEADLOCK_DETECTED, "deadlock detected"));
    assert_eq!(error.detail.as_ref(), Some(&lines.join("\n")));
    assert!(
        matches!(&told[1], (shard, victim, BranchAction::Fail(_)) if (*shard, *victim) == (shards[1], id(7)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_finished_is_forgotten_and_nothing_else() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, shards: 2, ..Shape::default() };
    let remember_transactions = Duration::from_millis(200);
    let cluster = Cluster::start_as(Shape { remember_transactions, ..shape }).await;
    let shards = cluster.shards_of(MAIN).await;
    deafen(&cluster, &shards[1..]);
    decide(&cluster, 1, &shards, true).await.unwrap();
    decide(&cluster, 2, &shards[..1], true).await.unwrap();
    decide(&cluster, 3, &shards[..1], false).await.unwrap();
    recorded(&cluster, 2, |record| record.is_none()).await;
    recorded(&cluster, 3, |record| record.is_none()).await;
    assert!(!records(&cluster, Some(id(1))).await[0].finished);
    deafen(&cluster, &[]);
    recorded(&cluster, 1, |record| record.is_none()).await;
    assert!(have_heard(&cluster.directory.branches.borrow(), 1, &shards, &COMMIT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_used_up_once_whoever_leads() {
    let mut cluster = Cluster::start(3, 1).await;
    let shards = cluster.shards_of(MAIN).await;
    let claim = async |cluster: &Cluster, sequence: u64, key: &str| {
        let claim = Claim { transaction: id(sequence), key: key.to_owned() };
        let ask = |coordinator: std::sync::Arc<dyn CoordinatorService>| {
            let claim = claim.clone();
            async move { coordinator.claim(claim).await }
        };
        cluster.ask(ask).await.unwrap()
    };
    let commit = async |cluster: &Cluster, sequence: u64, key: &str| {
        let (transaction, key) = (id(sequence), Some(key.to_owned()));
        let decision = Decision { commit: true, key, ..Decision::abort(transaction, shards.clone()) };
        let ask = |coordinator: std::sync::Arc<dyn CoordinatorService>| {
            let decision = decision.clone();
            async move { coordinator.decide(decision).await }
        };
        let verdict = cluster.ask(ask).await.unwrap();
        (verdict.committed, verdict.duplicate_of)
    };
    // Who has claimed it last may commit, and nobody who hasn't.
    assert_eq!(claim(&cluster, 1, "k").await, None);
    assert_eq!(claim(&cluster, 2, "k").await, None);
    assert_eq!(commit(&cluster, 1, "k").await, (false, None));
    assert_eq!(commit(&cluster, 2, "k").await, (true, None));
    assert_eq!(commit(&cluster, 2, "k").await, (true, None));
    assert_eq!(claim(&cluster, 3, "k").await.map(|spent| spent.transaction), Some(id(2)));
    assert_eq!(commit(&cluster, 3, "k").await, (false, Some(id(2))));
    assert_eq!(commit(&cluster, 4, "never claimed").await, (false, None));
    // A claim is lost with its leader; what is used up isn't.
    assert_eq!(claim(&cluster, 5, "l").await, None);
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    assert_eq!(commit(&cluster, 5, "l").await, (false, None));
    assert_eq!(claim(&cluster, 6, "k").await.map(|spent| spent.transaction), Some(id(2)));
    assert_eq!(claim(&cluster, 7, "l").await, None);
    assert_eq!(commit(&cluster, 7, "l").await, (true, None));
    // Many at once: one.
    let directory = cluster.directory.clone();
    let parties = (100..140).map(|sequence| {
        let (directory, participants) = (directory.clone(), shards.clone());
        async move {
            let claim = Claim { transaction: id(sequence), key: "m".to_owned() };
            let claimed = directory.ask(|coordinator| {
                let claim = claim.clone();
                async move { coordinator.claim(claim).await }
            });
            if claimed.await.unwrap().is_some() {
                return false;
            }
            let key = Some("m".to_owned());
            let decision = Decision { commit: true, key, ..Decision::abort(id(sequence), participants) };
            let verdict = directory.ask(|coordinator| {
                let decision = decision.clone();
                async move { coordinator.decide(decision).await }
            });
            verdict.await.unwrap().committed
        }
    });
    let committed = parties.collect::<JoinSet<_>>().join_all().await;
    assert_eq!(committed.iter().filter(|committed| **committed).count(), 1);
}
