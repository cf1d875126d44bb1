//! The admin's way into a running cluster: any node's address leads to the coordinator's leader.

use crate::arguments::{Admin, Keyspace, ShardingArgument};
use crate::failure::Failure;
use futures::StreamExt;
use proto::services::{BoxFuture, CoordinatorService, CreateKeyspace, ServiceResult};
use proto::topology::Sharding;
use proto::transport::NodeClient;
use proto::{NodeId, RequestId, Retry, RouterIncarnation, SqlState, WireError};
use std::sync::Arc;
use std::time::Duration;

/// How long a command may take, the search for the leader included.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it waits until it asks again for a leader.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `shoal keyspace ..`.
pub async fn keyspace(command: Keyspace) -> Result<(), Failure> {
    let Keyspace::Create { name, sharding, shards, replicas, admin } = command;
    let sharding = match sharding {
        ShardingArgument::Hash => Sharding::Hash,
        ShardingArgument::Range => Sharding::Range,
        ShardingArgument::Single => Sharding::Single,
    };
    let id = RequestId { router: RouterIncarnation(rand::random()), sequence: 1 };
    let request = CreateKeyspace { request: id, name: name.clone(), sharding, shards, replicas };
    ask_leader(&admin, |coordinator| {
        let request = request.clone();
        Box::pin(async move { coordinator.create_keyspace(request).await })
    })
    .await?;
    println!("keyspace {name} created");
    Ok(())
}

/// Asks the coordinator's leader, wherever it is.
pub async fn ask_leader<T>(
    admin: &Admin,
    ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
) -> Result<T, Failure> {
    let answer = tokio::time::timeout(PATIENCE, search(admin, ask)).await;
    answer.unwrap_or_else(|_| {
        let message = format!("{}: no answer in {} seconds", admin.host, PATIENCE.as_secs());
        Err(Failure::Cluster(WireError::new(SqlState::CONNECTION_FAILURE, message)))
    })
}

async fn search<T>(
    admin: &Admin,
    ask: impl Fn(Arc<dyn CoordinatorService>) -> BoxFuture<'static, ServiceResult<T>>,
) -> Result<T, Failure> {
    let first = Arc::new(NodeClient::connect(admin.host.clone()));
    let mut states = first.watch().await?;
    let Some(state) = states.next().await else {
        let message = format!("{} closed the connection", admin.host);
        return Err(Failure::Cluster(WireError::new(SqlState::CONNECTION_FAILURE, message)));
    };
    let coordinators: Vec<(NodeId, Arc<NodeClient>)> = state
        .topology
        .nodes
        .values()
        .filter(|node| node.roles.coordinator)
        .map(|node| (node.id, Arc::new(NodeClient::connect_node(node.id, node.address.clone()))))
        .collect();
    loop {
        for (_, coordinator) in &coordinators {
            match ask(coordinator.clone()).await {
                Err(error) if matches!(error.retry, Retry::NotLeader(_) | Retry::Later) => {}
                answer => return Ok(answer?),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
