//! What a router does in one transaction on the only shard.

use crate::common::{Node, SHARD, rows};
use proto::services::{
    Access, Branch, BranchAccess, BranchAction, BranchRequest, BranchStatus, FragmentRequest, LockWait,
    LockedRows, RowLock, ShardService,
};
use proto::{
    Epoch, LogIndex, RequestId, Retry, RouterIncarnation, ShardId, TableId, TransactionId, Value, WireError,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::common::PATIENCE;

/// A transaction. Those of higher numbers are younger.
pub struct Session<'a> {
    pub node: &'a Node,
    number: u64,
    statement: AtomicU32,
    pub lock_timeout: Option<Duration>,
    pub timeout: Duration,
    /// Whether it is one statement's, which can be run again.
    pub alone: bool,
}

impl<'a> Session<'a> {
    pub fn new(node: &'a Node, number: u64) -> Self {
        Session {
            node,
            number,
            statement: AtomicU32::new(0),
            lock_timeout: None,
            timeout: PATIENCE,
            alone: false,
        }
    }

    /// The same transaction, at another node.
    pub fn at<'b>(&self, node: &'b Node) -> Session<'b> {
        Session {
            node,
            number: self.number,
            statement: AtomicU32::new(self.last()),
            ..Session::new(node, self.number)
        }
    }

    pub fn id(&self) -> TransactionId {
        TransactionId { router: RouterIncarnation(5), sequence: self.number }
    }

    /// The number of its last statement.
    pub fn last(&self) -> u32 {
        self.statement.load(Ordering::Relaxed)
    }

    /// Its last statement wasn't executed: the next one has its number.
    pub fn take_back(&self) {
        self.statement.fetch_sub(1, Ordering::Relaxed);
    }

    fn branch(&self, statement: u32) -> Branch {
        Branch {
            transaction: self.id(),
            begun: self.number,
            statement,
            lock_timeout: self.lock_timeout,
            alone: self.alone,
        }
    }

    /// The request of its next statement.
    pub fn next(&self, sql: &str, access: BranchAccess) -> FragmentRequest {
        let branch = self.branch(self.statement.fetch_add(1, Ordering::Relaxed) + 1);
        let read = self.node.read(sql, false);
        FragmentRequest { access: Access::Branch { branch, access }, timeout: self.timeout, ..read }
    }

    /// Writes; gives how many rows it changed.
    pub async fn write(&self, sql: &str) -> Result<u64, WireError> {
        self.node
            .shards
            .execute(self.next(sql, BranchAccess::Write { touch: 0 }))
            .await
            .map(|done| done.affected)
    }

    pub async fn read(&self, sql: &str) -> Result<Vec<Vec<Value>>, WireError> {
        rows(self.node.shards.execute(self.next(sql, BranchAccess::Read)).await?.rows).await
    }

    /// Reads rows of table 1, and locks them by their first column.
    pub async fn lock(&self, sql: &str, mode: RowLock, wait: LockWait) -> Result<Vec<Vec<Value>>, WireError> {
        self.lock_some(sql, mode, wait, None).await
    }

    /// The same, so many of them at most.
    pub async fn lock_some(
        &self,
        sql: &str,
        mode: RowLock,
        wait: LockWait,
        limit: Option<u64>,
    ) -> Result<Vec<Vec<Value>>, WireError> {
        let locked = [LockedRows { table: TableId(1), key: 1, mode, wait }].into();
        let access = BranchAccess::Lock { rows: locked, limit, anew: false };
        rows(self.node.shards.execute(self.next(sql, access)).await?.rows).await
    }

    pub async fn act(&self, action: BranchAction) -> Result<LogIndex, WireError> {
        let (transaction, timeout) = (self.id(), self.timeout);
        let request =
            BranchRequest { shard: SHARD, epoch: Epoch(1), on_behalf: None, transaction, action, timeout };
        self.node.shards.transact(request).await
    }

    /// Does something at whichever node leads, until it is known to be done or refused.
    pub async fn act_anywhere(&self, nodes: &[Node], action: BranchAction) -> Result<LogIndex, WireError> {
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        let done = async {
            loop {
                for node in nodes {
                    match self.at(node).act(action.clone()).await {
                        Err(error) if error.retry != Retry::Never => {}
                        answer => return answer,
                    }
                }
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, done).await.expect("a node leads")
    }

    /// What commits it.
    pub fn commitment(&self) -> BranchAction {
        let request = RequestId { router: RouterIncarnation(5), sequence: self.number };
        BranchAction::Commit { request, settled: 0 }
    }

    pub async fn roll_back_to(&self, statement: u32) -> Result<LogIndex, WireError> {
        self.act(BranchAction::RollbackTo(statement)).await
    }

    pub async fn commit(&self) -> Result<LogIndex, WireError> {
        self.act(self.commitment()).await
    }

    pub async fn prepare(&self) -> Result<LogIndex, WireError> {
        self.act(BranchAction::Prepare { participants: vec![SHARD, ShardId(9)], parallel: false }).await
    }

    pub async fn finish(&self, commit: bool) -> Result<LogIndex, WireError> {
        self.act(BranchAction::Finish { commit, keep: false }).await
    }

    pub async fn roll_back(&self) {
        self.finish(false).await.unwrap();
    }

    /// Commits, or rolls back.
    pub async fn end(&self, commit: bool) {
        if commit { self.commit().await } else { self.finish(false).await }.unwrap();
    }

    /// What the shard says of it.
    pub async fn status(&self) -> Option<BranchStatus> {
        let all = self.node.shards.branches(SHARD).await.unwrap();
        all.into_iter().find(|status| status.transaction == self.id())
    }

    /// Waits until its statement waits for these.
    pub async fn waits_for(&self, others: &[&Session<'_>]) {
        let others: Vec<_> = others.iter().map(|session| session.id()).collect();
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        let waits = async {
            while self.status().await.is_none_or(|status| status.waits_for != others) {
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("it waits for them");
    }
}

/// The error's SQLSTATE and message.
pub fn told<T>(result: Result<T, WireError>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string(),
    }
}
