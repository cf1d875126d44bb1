//! A node's replicas as the coordinator asks them.
//!
//! In come calls for a group, out go calls of its replica on this node. It must not know who calls.

use crate::error::ReplicaError;
use crate::host::Host;
use proto::services::{BoxFuture, Members, ReplicaService, ReplicaStatus, ServiceResult};
use proto::{GroupId, LogIndex, NodeId, WireError};
use std::time::Duration;

impl ReplicaService for Host {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        Box::pin(async { Ok(self.statuses()) })
    }

    fn change_members(
        &self,
        _: GroupId,
        _: Vec<NodeId>,
        _: Option<NodeId>,
        _: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        Box::pin(async { Err(WireError::unsupported("changing a group's members")) })
    }

    fn transfer_leader(&self, _: GroupId, _: NodeId, _: Duration) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("transferring leadership")) })
    }

    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let replica = self.replica(group).ok_or(ReplicaError::UnknownGroup(group))?;
            replica.check(tokio::time::Instant::now().into_std() + timeout).await
        })
    }
}
