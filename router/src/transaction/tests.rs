//! Transactions over shards that fail on command.

use super::{Transaction, Transactions};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::fake::Fault::{self, After, Before, Hang};
use crate::fake::{Fake, FakePeers, sealed};
use crate::positions::Committed;
use crate::requests::Requests;
use futures::StreamExt;
use proto::services::*;
use proto::{Epoch, LogIndex, NodeId, Retry, SchemaVersion, ShardId, SqlState, Value, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};

const A: ShardId = ShardId(1);
const B: ShardId = ShardId(2);

struct Bench {
    fake: Arc<Fake>,
    all: Arc<Transactions>,
}

impl Bench {
    async fn new() -> Self {
        let fake = Fake::new(2);
        let cluster = Arc::new(Cluster::new(Arc::new(FakePeers(fake.clone()))));
        let config = Config { retry_timeout: Duration::from_millis(50), ..Config::default() };
        cluster.install(fake.watch().await.unwrap().next().await.unwrap());
        let all = Transactions::new(cluster, Requests::new(&Default::default()), &config);
        Self { fake, all }
    }

    fn begin(&self) -> Transaction {
        self.all.begin(1)
    }

    /// One that is committed by the coordinator's record.
    async fn begin_with_key(&self) -> Transaction {
        self.all.begin_with_key(1, "k".into(), later()).await.unwrap()
    }

    async fn write(&self, transaction: &Transaction, shard: ShardId, value: i64) -> Result<(), WireError> {
        let branch = transaction.statement(shard, true, None);
        self.send(
            shard,
            branch,
            BranchAccess::Write { touch: 0 },
            "INSERT INTO t16384 VALUES (?1, NULL)",
            value,
        )
        .await
    }

    async fn send(
        &self,
        shard: ShardId,
        branch: Branch,
        access: BranchAccess,
        sql: &str,
        value: i64,
    ) -> Result<(), WireError> {
        let request = FragmentRequest {
            shard,
            epoch: Epoch(1),
            schema_version: SchemaVersion(1),
            sql: sql.into(),
            params: vec![Value::Int(value)],
            rows: None,
            access: Access::Branch { branch, access },
            cut: None,
            floor: Floor::default(),
            timeout: Duration::from_secs(10),
        };
        self.fake.execute(request).await.map(drop)
    }

    fn fault(&self, kind: &'static str, fault: Fault) {
        self.fake.action_faults.lock().push((kind, fault));
    }

    fn rows(&self) -> Vec<i64> {
        self.fake.on_each("SELECT count(*) FROM t16384")
    }

    /// Waits for what happens in the background.
    async fn until(&self, what: impl Fn(&Fake) -> bool) {
        let wait = async {
            while !what(&self.fake) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it happens in the background");
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn error(retry: Retry) -> WireError {
    WireError::internal("fault").with_retry(retry)
}

fn code<T>(result: Result<T, impl Into<WireError>>) -> String {
    result.err().map_or_else(String::new, |error| error.into().sqlstate.to_string())
}

#[tokio::test]
async fn one_shard_commits_by_itself_and_once() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, A, 2).await.unwrap();
    let reads = transaction.statement(B, false, None);
    bench.send(B, reads, BranchAccess::Read, "SELECT ?1", 1).await.unwrap();
    assert_eq!(bench.rows(), [0, 0]);
    bench.fault("commit", After(error(Retry::Unknown)));
    bench.fault("commit", Before(error(Retry::NotLeader(Some(NodeId(2))))));
    transaction.commit(later()).await.unwrap();
    assert_eq!((bench.rows(), bench.fake.acted("commit")), (vec![2, 0], vec![1, 1, 1]));
    assert!(bench.fake.acted("prepare").is_empty() && bench.fake.verdicts.lock().is_empty());
    // Where it only read, it is let go.
    bench.until(|fake| fake.open_branches() == 0).await;
}

#[tokio::test]
async fn several_shards_vote_then_it_is_decided_then_they_finish() {
    let bench = Bench::new().await;
    let transaction = bench.begin_with_key().await;
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    for kind in ["prepare", "decide", "finish"] {
        bench.fault(kind, After(error(Retry::Unknown)));
        bench.fault(kind, Before(error(Retry::Later)));
    }
    let id = transaction.id;
    transaction.commit(later()).await.unwrap();
    assert_eq!(bench.rows(), [1, 1]);
    let kinds: Vec<_> = bench.fake.actions.lock().iter().map(|(kind, _)| *kind).collect();
    let first = |kind| kinds.iter().position(|k| *k == kind).unwrap();
    let last = |kind| kinds.iter().rposition(|k| *k == kind).unwrap();
    assert!(last("prepare") < first("decide") && last("decide") < first("finish"), "{kinds:?}");
    bench.until(|fake| *fake.finished.lock() == [id]).await;
}

#[tokio::test]
async fn several_shards_vote_and_that_commits() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    for kind in ["prepare", "finish", "forget"] {
        bench.fault(kind, After(error(Retry::Unknown)));
        bench.fault(kind, Before(error(Retry::Later)));
    }
    let id = transaction.id;
    transaction.commit(later()).await.unwrap();
    assert_eq!(bench.rows(), [0, 0], "it is told before it is finished");
    bench.all.finish_all(later()).await;
    assert_eq!(bench.rows(), [1, 1]);
    let kinds: Vec<_> = bench.fake.actions.lock().iter().map(|(kind, _)| *kind).collect();
    let first = |kind| kinds.iter().position(|k| *k == kind).unwrap();
    let last = |kind| kinds.iter().rposition(|k| *k == kind).unwrap();
    assert!(last("prepare") < first("finish"), "{kinds:?}");
    assert!(bench.fake.verdicts.lock().is_empty(), "nobody else was asked");
    assert_eq!(bench.fake.kept.lock().iter().copied().collect::<Vec<_>>(), [(A, id), (B, id)]);
    bench.until(|fake| fake.kept.lock().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_has_not_finished_leaves_the_others_remembering() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    let id = transaction.id;
    bench.fault("finish", After(error(Retry::Never)));
    transaction.commit(later()).await.unwrap();
    bench.all.finish_all(later()).await;
    assert_eq!(bench.fake.kept.lock().iter().copied().collect::<Vec<_>>(), [(A, id), (B, id)]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((bench.fake.kept.lock().len(), bench.fake.acted("forget")), (2, vec![]));
}

#[tokio::test]
async fn who_lacks_a_vote_does_what_the_coordinator_says() {
    for committed in [false, true] {
        let bench = Bench::new().await;
        let transaction = bench.begin();
        bench.write(&transaction, A, 1).await.unwrap();
        bench.write(&transaction, B, 2).await.unwrap();
        // Both votes are given, and one is never heard; the coordinator has asked both, or was asked first.
        bench.fault("prepare", After(error(Retry::Never)));
        if committed {
            bench.fake.verdicts.lock().insert(transaction.id, true);
        }
        let id = transaction.id;
        let told = code(transaction.commit(later()).await);
        assert_eq!(told.is_empty(), committed, "{told}");
        bench.until(|fake| *fake.finished.lock() == [id]).await;
        assert_eq!((bench.rows(), bench.fake.open_branches()), (vec![i64::from(committed); 2], 0));
    }
}

#[tokio::test]
async fn a_vote_that_is_missing_aborts() {
    for fault in
        [Before(error(Retry::Never)), Before(error(Retry::Later)), After(error(Retry::Unknown)), Hang]
    {
        let bench = Bench::new().await;
        let transaction = bench.begin();
        bench.write(&transaction, A, 1).await.unwrap();
        bench.write(&transaction, B, 2).await.unwrap();
        // The first shard's vote is given, the other's never comes.
        bench.fault("prepare", After(error(Retry::Unknown)));
        for _ in 0..100 {
            bench.fault("prepare", fault.clone());
        }
        let failed = code(transaction.commit(later()).await);
        assert!(["40001", "XX000"].contains(&failed.as_str()), "{failed} after {fault:?}");
        bench.until(|fake| fake.open_branches() == 0).await;
        assert_eq!((bench.rows(), bench.fake.acted("decide")), (vec![0, 0], vec![]));
        assert!(bench.fake.verdicts.lock().values().all(|committed| !committed));
    }
}

#[tokio::test]
async fn a_branch_that_is_lost_aborts() {
    let bench = Bench::new().await;
    for shards in [&[A][..], &[A, B]] {
        let transaction = bench.begin();
        for shard in shards {
            bench.write(&transaction, *shard, 1).await.unwrap();
        }
        bench.fake.lose_branches();
        assert_eq!(code(transaction.commit(later()).await), "40001");
    }
    assert_eq!(bench.rows(), [0, 0]);
}

#[tokio::test]
async fn who_decided_first_was_right() {
    let bench = Bench::new().await;
    let transaction = bench.begin_with_key().await;
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    bench.fake.verdicts.lock().insert(transaction.id, false);
    assert_eq!(code(transaction.commit(later()).await), "40001");
    bench.until(|fake| fake.open_branches() == 0).await;
    assert_eq!(bench.rows(), [0, 0]);
}

#[tokio::test]
async fn an_outcome_that_cannot_be_learned_names_the_transaction() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    let id = transaction.id.to_string();
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    bench.fault("prepare", After(error(Retry::Never)));
    for _ in 0..100 {
        bench.fault("abort", After(error(Retry::Unknown)));
    }
    let unknown = transaction.commit(later()).await.unwrap_err().error;
    assert_eq!(unknown.sqlstate, SqlState::TRANSACTION_RESOLUTION_UNKNOWN);
    assert!(unknown.detail.unwrap().contains(&id) && unknown.hint.unwrap().contains(&id));
    // It may be committed, so nobody may let it go.
    assert_eq!((bench.fake.open_branches(), bench.fake.acted("let go")), (2, vec![]));
    let transaction = bench.begin();
    bench.write(&transaction, A, 5).await.unwrap();
    for _ in 0..100 {
        bench.fault("commit", After(error(Retry::Unknown)));
    }
    assert_eq!(code(transaction.commit(later()).await), "08007");
}

#[tokio::test]
async fn what_is_dropped_is_let_go() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    bench.write(&transaction, B, 2).await.unwrap();
    bench.fault("let go", Before(error(Retry::Later)));
    drop(transaction);
    bench.until(|fake| fake.open_branches() == 0).await;
    assert_eq!(bench.rows(), [0, 0]);
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    transaction.rollback().settle().await;
    assert_eq!(bench.fake.open_branches(), 0);
    drop(bench.begin());
    assert!(bench.fake.verdicts.lock().is_empty());
}

#[tokio::test]
async fn what_is_undone_can_be_done_again() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    bench.write(&transaction, A, 1).await.unwrap();
    let mark = transaction.mark();
    bench.write(&transaction, A, 2).await.unwrap();
    bench.write(&transaction, B, 3).await.unwrap();
    assert!(bench.write(&transaction, B, 3).await.is_err(), "a key twice");
    transaction.undo(&mark, later()).await.unwrap();
    transaction.undo(&mark, later()).await.unwrap();
    assert_eq!(bench.fake.acted("rollback to"), [1, 2]);
    assert!(transaction.has(A) && !transaction.has(B));
    bench.write(&transaction, A, 2).await.unwrap();
    transaction.commit(later()).await.unwrap();
    assert_eq!((bench.rows(), bench.fake.acted("commit")), (vec![2, 0], vec![1]));
    // Undone to nothing on a shard that has lost it: that's as well. Undone in part: it isn't there.
    let transaction = bench.begin();
    bench.write(&transaction, A, 7).await.unwrap();
    let mark = transaction.mark();
    bench.write(&transaction, B, 8).await.unwrap();
    bench.fake.lose_branches();
    transaction.undo(&mark, later()).await.unwrap();
    bench.write(&transaction, B, 8).await.unwrap();
    assert_eq!(code(bench.write(&transaction, A, 9).await), "40001");
    assert_eq!(code(transaction.undo(&mark, later()).await), "40001");
}

#[tokio::test]
async fn nothing_bound_is_nothing_to_commit() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    let branch = transaction.statement(A, true, None);
    let nothing = "DELETE FROM t16384 WHERE c1 = ?1";
    bench.send(A, branch, BranchAccess::Write { touch: 0 }, nothing, 1).await.unwrap();
    transaction.unbind(A, branch);
    transaction.commit(later()).await.unwrap();
    bench.until(|fake| fake.open_branches() == 0).await;
    assert!(bench.fake.acted("commit").is_empty());
    assert_eq!(
        bench
            .all
            .ask(bench.begin().id, A, BranchAction::Finish { commit: false, keep: false }, later())
            .await,
        Ok(bench.fake.log(A, 0))
    );
}

#[tokio::test]
async fn a_branch_that_could_not_be_ended_is_ended_later() {
    let bench = Bench::new().await;
    let all = bench.all.clone();
    tokio::spawn(async move { all.keep_alive().await });
    // As long as this is open, the shards keep all that the router has opened.
    let _open = bench.begin();
    let (one, other) = (bench.begin(), bench.begin());
    bench.write(&one, A, 1).await.unwrap();
    bench.write(&other, B, 2).await.unwrap();
    for _ in 0..10 {
        bench.fault("commit", Before(error(Retry::Unknown)));
        bench.fault("let go", Before(error(Retry::Later)));
    }
    assert_eq!(code(one.commit(later()).await), "08007");
    other.rollback().settle().await;
    assert_eq!(bench.fake.open_branches(), 2);
    bench.until(|fake| fake.open_branches() == 0).await;
    assert_eq!(bench.rows(), [0, 0]);
}

#[tokio::test]
async fn a_router_says_that_it_lives_while_something_is_open() {
    let bench = Bench::new().await;
    let all = bench.all.clone();
    tokio::spawn(async move { all.keep_alive().await });
    tokio::task::yield_now().await;
    assert!(bench.fake.kept_alive.lock().is_empty());
    let transaction = bench.begin();
    let router = transaction.id.router;
    bench.until(|fake| !fake.kept_alive.lock().is_empty()).await;
    assert_eq!(bench.fake.kept_alive.lock()[..], [router], "once for each node that leads");
    drop(transaction);
    bench.begin().commit(later()).await.unwrap();
    bench.until(|_| bench.all.open.is_empty()).await;
}

#[tokio::test]
async fn a_commit_says_what_it_has_reached() {
    let bench = Bench::new().await;
    let begin = async || {
        let transaction = bench.begin();
        bench.write(&transaction, A, 1).await.unwrap();
        bench.write(&transaction, B, 2).await.unwrap();
        transaction
    };
    let at = |shard, index| (shard, LogIndex(index));
    let transaction = bench.begin();
    bench.write(&transaction, A, 3).await.unwrap();
    let committed = transaction.commit(later()).await.unwrap();
    assert_eq!(committed, Committed { applied: vec![at(A, 101)], ..Committed::default() });
    // All votes.
    let committed = begin().await.commit(later()).await.unwrap();
    let votes = vec![at(A, 102), at(B, 201)];
    assert_eq!(committed, Committed { prepared: votes, ..Committed::default() });
    bench.until(|fake| fake.open_branches() == 0).await;
    bench.fake.run_on_each("DELETE FROM t16384");
    // A vote isn't heard, and the coordinator has found all; one shard can't be told in time, or none.
    for (deaf, applied, prepared) in [(1, vec![at(B, 204)], vec![]), (2, vec![], vec![at(B, 205)])] {
        let transaction = begin().await;
        bench.fake.verdicts.lock().insert(transaction.id, true);
        bench.fault("prepare", Hang);
        for _ in 0..deaf {
            bench.fault("finish", Hang);
        }
        let committed = transaction.commit(later()).await.unwrap();
        assert_eq!(committed, Committed { applied, prepared, unheard: vec![A] });
        bench.fake.run_on_each("DELETE FROM t16384");
    }
}

#[tokio::test]
async fn what_a_shard_refuses_to_undo_is_not_taken_for_undone() {
    let bench = Bench::new().await;
    let transaction = bench.begin();
    let mark = transaction.mark();
    bench.write(&transaction, A, 1).await.unwrap();
    // It is sealed, and may serve on.
    bench.fake.action_faults.lock().push(("rollback to", Before(sealed(Epoch(1)))));
    let refused = transaction.undo(&mark, later()).await.unwrap_err();
    assert_eq!((refused.sqlstate, refused.retry), (SqlState::SERIALIZATION_FAILURE, Retry::Never));
}
