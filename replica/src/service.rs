//! A node's replicas as the coordinator asks them.
//!
//! In come calls for a group, out go calls of its replica on this node. It must not know who calls.

use crate::error::ReplicaError;
use crate::host::Host;
use crate::replica::Replica;
use crate::write::MemberTarget;
use proto::services::{BoxFuture, Members, ReplicaService, ReplicaStatus, ServiceResult};
use proto::{GroupId, LogIndex, NodeId};
use std::time::{Duration, Instant};

impl Host {
    fn known(&self, group: GroupId) -> Result<Replica, ReplicaError> {
        self.replica(group).ok_or(ReplicaError::UnknownGroup(group))
    }
}

/// Deadlines are of tokio's clock, which a simulation stops.
fn until(timeout: Duration) -> Instant {
    tokio::time::Instant::now().into_std() + timeout
}

impl ReplicaService for Host {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        Box::pin(async { Ok(self.statuses()) })
    }

    fn change_members(
        &self,
        group: GroupId,
        voters: Vec<NodeId>,
        rebuild: Option<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        Box::pin(async move {
            let target = MemberTarget { voters, rebuild };
            self.known(group)?.change_members(target, until(timeout)).await
        })
    }

    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { self.known(group)?.transfer_leader(to, until(timeout)).await })
    }

    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move { self.known(group)?.check(until(timeout)).await })
    }

    fn hold_log(
        &self,
        group: GroupId,
        name: String,
        from: Option<LogIndex>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move { self.known(group)?.hold_log(&name, from, until(timeout)).await })
    }
}
