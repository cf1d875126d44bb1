//! The admin's way into a running cluster: any node's address leads to the coordinator's leader.

use crate::arguments::Admin;
use crate::failure::Failure;
use parking_lot::Mutex;
use proto::services::{BootstrapService, BoxFuture, ClusterStatus, CoordinatorService, ServiceResult};
use proto::topology::Node;
use proto::transport::NodeClient;
use proto::{Retry, SqlState, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a command may take, the search for the leader included.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one node may take to lead to an answer, where there are others.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long it waits until it asks again for a leader.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks the coordinator's leader, wherever it is.
pub async fn ask_leader<T>(
    admin: &Admin,
    ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
) -> Result<T, Failure> {
    ask_leader_for(admin, Some(PATIENCE), ask).await
}

/// The same, for so long; `None` for as long as it takes. What is asked must be safe to repeat.
pub async fn ask_leader_for<T>(
    admin: &Admin,
    patience: Option<Duration>,
    ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
) -> Result<T, Failure> {
    let Some(patience) = patience else { return search(admin, ask).await };
    tokio::time::timeout(patience, search(admin, ask)).await.unwrap_or_else(|_| {
        let message = format!("{}: no answer in {} seconds", admin.host, patience.as_secs());
        Err(Failure::Cluster(WireError::new(SqlState::CONNECTION_FAILURE, message)))
    })
}

/// What there is and how it does.
pub async fn status(admin: &Admin) -> Result<ClusterStatus, Failure> {
    ask_leader(admin, |coordinator| Box::pin(async move { coordinator.status().await })).await
}

/// The way into a cluster of a command that goes on for long: whichever node it was told of may die meanwhile.
pub struct Way {
    /// Whoever answered last is the first.
    hosts: Mutex<Vec<String>>,
}

impl Way {
    /// By the node that the admin names, which must be there.
    pub async fn find(admin: &Admin) -> Result<(Self, ClusterStatus), Failure> {
        let (way, status) = (Way { hosts: Mutex::default() }, status(admin).await?);
        way.learn(admin.host.clone(), &status);
        Ok((way, status))
    }

    /// What there is and how it does.
    pub async fn status(&self) -> Result<ClusterStatus, Failure> {
        let status = self.ask(|coordinator| Box::pin(async move { coordinator.status().await })).await?;
        let first = self.hosts.lock()[0].clone();
        self.learn(first, &status);
        Ok(status)
    }

    /// Asks the coordinator's leader, by whichever node leads to it; in the time that a command may take.
    pub async fn ask<T>(
        &self,
        ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            let hosts = self.hosts.lock().clone();
            let mut failure = None;
            for host in hosts {
                let admin = Admin { host: host.clone() };
                match ask_leader_for(&admin, Some(ATTEMPT), &ask).await {
                    Ok(answer) => {
                        self.hosts.lock().sort_by_key(|other| *other != host);
                        return Ok(answer);
                    }
                    Err(Failure::Cluster(error)) if is_far(&error) => failure = Some(Failure::Cluster(error)),
                    Err(refused) => return Err(refused),
                }
            }
            if begun.elapsed() >= PATIENCE {
                return Err(failure.expect("there is always a node to be asked"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn learn(&self, host: String, status: &ClusterStatus) {
        let nodes = status.state.topology.nodes.values().map(|node| node.address.clone());
        let others = nodes.filter(|address| !address.is_empty() && *address != host);
        *self.hosts.lock() = [host.clone()].into_iter().chain(others).collect();
    }
}

/// Whether another node may lead to an answer.
pub fn is_far(error: &WireError) -> bool {
    error.retry != Retry::Never
        || [SqlState::CONNECTION_FAILURE, SqlState::CANNOT_CONNECT_NOW].contains(&error.sqlstate)
}

async fn search<T>(
    admin: &Admin,
    ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
) -> Result<T, Failure> {
    let first = NodeClient::connect(admin.host.clone());
    let introduction = first.identity(None).await?;
    if introduction.node.member.is_none() {
        let message = format!("the node at {} is not part of a cluster yet", admin.host);
        let error = WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_hint("Run shoal init.");
        return Err(Failure::Cluster(error));
    }
    let connect = |node: &Node| Arc::new(NodeClient::connect_node(node.id, node.address.clone()));
    let coordinators: Vec<Arc<NodeClient>> = introduction.coordinators.iter().map(connect).collect();
    loop {
        for coordinator in &coordinators {
            match ask(coordinator.clone()).await {
                Err(error) if matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Unknown) => {}
                answer => return Ok(answer?),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// So many of something.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
