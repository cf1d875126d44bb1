//! An executor over a fake cluster, without a session around it.

use super::{Fake, FakePeers};
use crate::cancel::Interrupt;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::executor::Executor;
use crate::executor::scalars::Facts;
use crate::executor::statement::{Reading, Statement};
use crate::positions::Positions;
use dialect::datetime::TimeZone;
use futures::StreamExt;
use planner::plan::Plan;
use planner::text::{Text, split};
use proto::services::CoordinatorService;
use proto::{Value, machine};
use std::sync::Arc;
use std::time::Duration;

/// An executor over a fake cluster, and what a statement needs.
pub struct Bench {
    pub fake: Arc<Fake>,
    pub executor: Executor,
    pub interrupt: Arc<Interrupt>,
    pub parameters: Vec<Value>,
    pub timeout: Duration,
    pub reading: Reading,
    pub positions: Positions,
    text: Text,
    facts: Facts,
}

impl Bench {
    /// Waits until all that is committed is finished.
    pub async fn finish_all(&self) {
        self.executor.transactions.finish_all(machine::now() + Duration::from_secs(5)).await;
    }

    pub async fn new(shards: u64) -> Self {
        Self::with(Config::default(), shards).await
    }

    pub async fn with(config: Config, shards: u64) -> Self {
        let fake = Fake::new(shards);
        let cluster = Arc::new(Cluster::new(Arc::new(FakePeers(fake.clone()))));
        let states = fake.watch().await.unwrap().next().await.unwrap();
        cluster.install(states);
        let follower = cluster.clone();
        tokio::spawn(async move { follower.follow().await });
        let facts = Facts {
            transaction_time: 0,
            statement_time: 0,
            zone: TimeZone::utc(),
            backend_pid: 1,
            settings: vec![],
            transactions: vec![],
            replicas: vec![],
            reshards: vec![],
            shards: vec![],
        };
        Self {
            fake,
            executor: Executor::new(Config { retry_timeout: Duration::from_millis(50), ..config }, cluster),
            interrupt: Arc::default(),
            parameters: Vec::new(),
            timeout: Duration::from_secs(30),
            text: split("SELECT 1").unwrap().remove(0),
            facts,
            reading: Reading::STRONG,
            positions: Positions::default(),
        }
    }

    /// A run of a plan.
    pub fn statement<'a>(&'a self, plan: &'a Arc<Plan>) -> Statement<'a> {
        let deadline = machine::now() + self.timeout;
        Statement {
            plan,
            text: &self.text,
            parameters: &self.parameters,
            state: self.executor.cluster.snapshot(),
            facts: &self.facts,
            interrupt: &self.interrupt,
            deadline,
            retry_for: self.timeout,
            transaction: None,
            kept: None,
            lock_timeout: None,
            reading: self.reading,
            positions: &self.positions,
        }
    }
}
