//! What the coordinator does on top of a replica: the cluster's shape, its catalog, and the changes of both.

mod config;

pub use config::Config;

use proto::catalog::Catalog;
use proto::services::{
    BoxFuture, BoxStream, ClusterState, ClusterStatus, CoordinatorService, CreateKeyspace, Peers,
    ReplicaStatus, SchemaChangeRequest, SequenceBlock, ServiceResult,
};
use proto::topology::{Leaders, Node, Topology};
use proto::{KeyspaceNumber, NodeId, SchemaVersion, SequenceId, WireError};
use replica::{Host, Replica};
use std::sync::Arc;
use tokio::sync::watch;

/// The coordinator's part on one node.
pub struct Coordinator {
    replica: Replica,
    config: Config,
    peers: Arc<dyn Peers>,
    state: watch::Sender<ClusterState>,
}

impl Coordinator {
    /// Makes or finds this node's replica of the coordinator's group and follows it. Call it inside a tokio runtime.
    pub fn new(host: &Host, peers: Arc<dyn Peers>, config: Config) -> Result<Arc<Coordinator>, WireError> {
        let replica = host.create(proto::GroupId::COORDINATOR, &config.voters, &[])?;
        let state = ClusterState {
            topology: Arc::new(Topology::default()),
            leaders: Arc::new(Leaders::default()),
            catalog: Arc::new(Catalog::default()),
        };
        Ok(Arc::new(Coordinator { replica, config, peers, state: watch::Sender::new(state) }))
    }

    /// Stops what it does by itself. Its replica goes on. Doing it again does nothing.
    pub fn shutdown(&self) {}

    fn unready<T>(&self) -> ServiceResult<T> {
        let _ = (&self.replica, &self.config, &self.peers, &self.state);
        Err(WireError::unsupported("coordinating"))
    }
}

impl CoordinatorService for Coordinator {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        Box::pin(async { self.unready() })
    }

    fn register(&self, _node: Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { self.unready() })
    }

    fn report(&self, _node: NodeId, _replicas: Vec<ReplicaStatus>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { self.unready() })
    }

    fn change_schema(&self, _request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        Box::pin(async { self.unready() })
    }

    fn allocate(&self, _sequence: SequenceId, _count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        Box::pin(async { self.unready() })
    }

    fn set_sequence(&self, _sequence: SequenceId, _next: i64) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { self.unready() })
    }

    fn create_keyspace(&self, _request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async { self.unready() })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        Box::pin(async { self.unready() })
    }
}
