//! Verdicts over transactions, with shards that have them, and a test in the router's stead.

use crate::common::{Cluster, PATIENCE, Shape};
use crate::tables::{MAIN, create, hashed, table};
use proto::services::{
    Access, Branch, BranchAccess, BranchAction, BranchRequest, CoordinatorService, Decision, Floor,
    FragmentRequest, ServiceResult, ShardService,
};
use proto::{LogIndex, RouterIncarnation, ShardId, SqlState, TableId, TransactionId};
use std::sync::Arc;
use std::time::Duration;

/// A cluster whose table has the row (1, 0) on each of two shards.
struct Stage {
    cluster: Cluster,
    shards: Vec<ShardId>,
    table: TableId,
}

impl Stage {
    async fn new(shape: Shape) -> Stage {
        let cluster = Cluster::start_as(Shape { shards: 2, ..shape }).await;
        cluster.directory.branches.send_modify(|branches| branches.real = true);
        cluster.change(create(table("t", hashed()))).await.unwrap();
        let table = cluster.state().await.catalog.table_named("t").unwrap().id;
        let shards = cluster.shards_of(MAIN).await;
        for shard in &shards {
            cluster.run(*shard, &format!("INSERT INTO t{table} VALUES (1, 0)")).await.unwrap();
        }
        Stage { cluster, shards, table }
    }

    /// Runs the only statement of a transaction on a shard: it adds to the row there.
    async fn add(&self, sequence: u64, shard: usize, statement: u32) -> ServiceResult<u64> {
        let state = self.cluster.state().await;
        let begun = sequence;
        let branch = Branch { transaction: id(sequence), begun, statement, lock_timeout: None, alone: false };
        let fragment = FragmentRequest {
            shard: self.shards[shard],
            epoch: state.topology.epoch,
            schema_version: state.catalog.version(),
            sql: format!("UPDATE t{} SET c2 = c2 + {sequence} WHERE c1 = 1", self.table).into(),
            params: Vec::new(),
            rows: None,
            access: Access::Branch { branch, access: BranchAccess::Write { touch: 0 } },
            cut: None,
            floor: Floor::default(),
            timeout: PATIENCE,
        };
        let execute = |service: Arc<dyn ShardService>| {
            let fragment = fragment.clone();
            async move { service.execute(fragment).await }
        };
        self.cluster.ask_shard(self.shards[shard], execute).await.map(|done| done.affected)
    }

    async fn act(&self, sequence: u64, shard: usize, action: BranchAction) -> ServiceResult<LogIndex> {
        let epoch = self.cluster.state().await.topology.epoch;
        let (shard, transaction) = (self.shards[shard], id(sequence));
        let request = BranchRequest { shard, epoch, on_behalf: None, transaction, action, timeout: PATIENCE };
        let transact = |service: Arc<dyn ShardService>| {
            let request = request.clone();
            async move { service.transact(request).await }
        };
        self.cluster.ask_shard(shard, transact).await
    }

    async fn prepare(&self, sequence: u64, shard: usize) -> ServiceResult<LogIndex> {
        self.act(
            sequence,
            shard,
            BranchAction::Prepare { participants: self.shards.clone(), parallel: false },
        )
        .await
    }

    /// Has a shard vote for what its votes commit.
    async fn vote(&self, sequence: u64, shard: usize) -> ServiceResult<LogIndex> {
        let participants = self.shards.clone();
        self.act(sequence, shard, BranchAction::Prepare { participants, parallel: true }).await
    }

    /// What the coordinator has written down.
    async fn record(&self, sequence: u64) -> Option<bool> {
        let list = |coordinator: Arc<dyn CoordinatorService>| async move {
            coordinator.transactions(Some(id(sequence))).await
        };
        self.cluster.ask(list).await.unwrap().first().map(|record| record.committed)
    }

    async fn decide(&self, sequence: u64, commit: bool) -> bool {
        let decision = Decision { commit, ..Decision::abort(id(sequence), self.shards.clone()) };
        let decide = |coordinator: Arc<dyn CoordinatorService>| {
            let decision = decision.clone();
            async move { coordinator.decide(decision).await }
        };
        self.cluster.ask(decide).await.unwrap().committed
    }

    /// Waits until no shard has a branch. What is seen then is the end.
    async fn settled(&self) {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        for shard in self.shards.iter().copied() {
            let list = |service: Arc<dyn ShardService>| async move { service.branches(shard).await };
            let settled = async {
                while !self.cluster.ask_shard(shard, list).await.unwrap().is_empty() {
                    pause.tick().await;
                }
            };
            tokio::time::timeout(PATIENCE, settled).await.expect("no branch is left");
        }
    }

    /// The row's value on each shard.
    async fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for shard in &self.shards {
            let rows = self.cluster.run(*shard, &format!("SELECT c2 FROM t{}", self.table)).await.unwrap();
            values.push(format!("{:?}", rows[0][0]));
        }
        values
    }
}

fn id(sequence: u64) -> TransactionId {
    TransactionId { router: RouterIncarnation(8), sequence }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decided_transaction_is_finished_without_its_router_and_the_first_leaders() {
    let shape = Shape { nodes: 3, coordinators: 3, replicas: 3, ..Shape::default() };
    let mut stage = Stage::new(Shape { finish_after: Duration::from_millis(500), ..shape }).await;
    for shard in 0..2 {
        assert_eq!(stage.add(10, shard, 1).await.unwrap(), 1);
        stage.prepare(10, shard).await.unwrap();
    }
    assert!(stage.decide(10, true).await);
    let leader = stage.cluster.leader().await;
    stage.cluster.stop(leader).await;
    stage.settled().await;
    assert_eq!(stage.values().await, ["Int(10)", "Int(10)"]);
    for shard in 0..2 {
        assert_eq!(stage.add(1, shard, 1).await.unwrap(), 1);
        stage.prepare(1, shard).await.unwrap();
    }
    assert!(!stage.decide(1, false).await);
    stage.settled().await;
    assert_eq!(stage.values().await, ["Int(10)", "Int(10)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decided_transaction_is_finished_after_a_restart() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() };
    let mut stage = Stage::new(Shape { finish_after: Duration::from_millis(500), ..shape }).await;
    for shard in 0..2 {
        assert_eq!(stage.add(1, shard, 1).await.unwrap(), 1);
        stage.prepare(1, shard).await.unwrap();
    }
    assert!(stage.decide(1, true).await);
    let node = stage.cluster.leader().await;
    stage.cluster.stop(node).await;
    stage.cluster.open(node);
    stage.settled().await;
    assert_eq!(stage.values().await, ["Int(1)", "Int(1)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_its_router_left_half_prepared_is_aborted() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() };
    let stage = Stage::new(Shape { abort_after: Duration::from_millis(100), ..shape }).await;
    for shard in 0..2 {
        assert_eq!(stage.add(1, shard, 1).await.unwrap(), 1);
    }
    stage.prepare(1, 0).await.unwrap();
    stage.settled().await;
    assert!(!stage.decide(1, true).await, "it is aborted for good");
    assert!(stage.prepare(1, 1).await.is_err());
    assert_eq!(stage.values().await, ["Int(0)", "Int(0)"]);
    // Nobody is locked out.
    assert_eq!(stage.add(2, 0, 1).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_younger_of_two_that_wait_for_each_other_on_two_shards_ends() {
    let stage = Stage::new(Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() }).await;
    assert_eq!(stage.add(1, 0, 1).await.unwrap(), 1);
    assert_eq!(stage.add(2, 1, 1).await.unwrap(), 1);
    let (older, younger) = tokio::join!(stage.add(1, 1, 1), async {
        let error = stage.add(2, 0, 1).await.unwrap_err();
        for shard in 0..2 {
            stage.act(2, shard, BranchAction::Finish { commit: false, keep: false }).await.unwrap();
        }
        error
    });
    assert_eq!(older.unwrap(), 1);
    assert_eq!(
        (younger.sqlstate, younger.message.as_str()),
        (SqlState::DEADLOCK_DETECTED, "deadlock detected")
    );
    let lines = [
        "Transaction 8-2 waits for transaction 8-1 on shard main/-80.",
        "Transaction 8-1 waits for transaction 8-2 on shard main/80-.",
    ];
    assert_eq!(younger.detail, Some(lines.join("\n")));
    for shard in 0..2 {
        stage.prepare(1, shard).await.unwrap();
    }
    assert!(stage.decide(1, true).await);
    stage.settled().await;
    assert_eq!(stage.values().await, ["Int(1)", "Int(1)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_have_voted_for_is_committed_without_its_router() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() };
    let mut stage = Stage::new(Shape { abort_after: Duration::from_millis(300), ..shape }).await;
    let keep = BranchAction::Finish { commit: true, keep: true };
    for sequence in [1, 10] {
        for shard in 0..2 {
            assert_eq!(stage.add(sequence, shard, 1).await.unwrap(), 1);
            stage.vote(sequence, shard).await.unwrap();
        }
        if sequence == 10 {
            // One has finished, and remembers, though its node was started anew.
            stage.act(10, 0, keep.clone()).await.unwrap();
            let node = stage.cluster.leader().await;
            stage.cluster.stop(node).await;
            stage.cluster.open(node);
        }
        stage.settled().await;
        assert_eq!(stage.record(sequence).await, Some(true));
    }
    assert_eq!(stage.values().await, ["Int(11)", "Int(11)"]);
    assert!(stage.decide(10, false).await, "a router that comes late hears it");
    // One that finished everywhere by itself leaves no record.
    for shard in 0..2 {
        assert_eq!(stage.add(100, shard, 1).await.unwrap(), 1);
        stage.vote(100, shard).await.unwrap();
    }
    for shard in 0..2 {
        stage.act(100, shard, keep.clone()).await.unwrap();
        stage.act(100, shard, keep.clone()).await.unwrap();
    }
    for shard in 0..2 {
        stage.act(100, shard, BranchAction::Forget(vec![id(100)])).await.unwrap();
    }
    assert_eq!((stage.record(100).await, stage.values().await), (None, vec!["Int(111)".to_owned(); 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lacks_a_vote_is_aborted_once_that_can_never_come() {
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() };
    let mut stage = Stage::new(Shape { abort_after: Duration::from_millis(300), ..shape }).await;
    for shard in 0..2 {
        assert_eq!(stage.add(1, shard, 1).await.unwrap(), 1);
    }
    stage.vote(1, 0).await.unwrap();
    stage.settled().await;
    assert_eq!(stage.record(1).await, Some(false));
    let late = stage.vote(1, 1).await.unwrap_err();
    assert_eq!(late.sqlstate, SqlState::SERIALIZATION_FAILURE);
    assert_eq!(stage.values().await, ["Int(0)", "Int(0)"]);
    // The promise outlives the leader that gave it: a branch that begins anew can't be voted for.
    let node = stage.cluster.leader().await;
    stage.cluster.stop(node).await;
    stage.cluster.open(node);
    assert_eq!(stage.add(1, 1, 1).await.unwrap(), 1);
    assert_eq!(stage.vote(1, 1).await.unwrap_err().sqlstate, SqlState::SERIALIZATION_FAILURE);
    assert_eq!(stage.add(2, 1, 1).await.unwrap(), 1);
    // Who has voted promises nothing, whether it has finished or not.
    let voted = async |stage: &Stage| stage.act(2, 1, BranchAction::Renounce).await.unwrap_err().sqlstate;
    stage.vote(2, 1).await.unwrap();
    assert_eq!(voted(&stage).await, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_router_left_ends_once_its_node_has_another() {
    let never = Duration::from_secs(3600);
    let shape = Shape { nodes: 1, coordinators: 1, replicas: 1, ..Shape::default() };
    let mut stage = Stage::new(Shape { abort_after: never, finish_after: never, ..shape }).await;
    for shard in 0..2 {
        assert_eq!(stage.add(1, shard, 1).await.unwrap(), 1);
        stage.vote(1, shard).await.unwrap();
    }
    let node = stage.cluster.leader().await;
    stage.cluster.stop(node).await;
    stage.cluster.shape.former = &[RouterIncarnation(7), RouterIncarnation(8)];
    stage.cluster.open(node);
    stage.settled().await;
    assert_eq!(stage.record(1).await, Some(true), "it was committed by its votes");
    assert_eq!(stage.values().await, ["Int(1)", "Int(1)"]);
    // What comes late of a router that is gone comes to nothing.
    for (sequence, parallel) in [(10, true), (20, false)] {
        for shard in 0..2 {
            assert_eq!(stage.add(sequence, shard, 1).await.unwrap(), 1);
        }
        let participants = stage.shards.clone();
        stage.act(sequence, 0, BranchAction::Prepare { participants, parallel }).await.unwrap();
        stage.settled().await;
        assert_eq!(stage.record(sequence).await, Some(false));
        assert!(stage.vote(sequence, 1).await.is_err());
    }
    assert_eq!(stage.values().await, ["Int(1)", "Int(1)"]);
}
