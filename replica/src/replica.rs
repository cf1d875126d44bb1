//! The handle of one replica.

use crate::snapshot::Snapshot;
use crate::write::{SchemaEntry, Write, Written};
use proto::services::{Consistency, ReplicaStatus};
use proto::{GroupId, LogIndex, WireError};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// A cheap handle of one replica.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

struct Shared {
    group: GroupId,
    status: watch::Receiver<ReplicaStatus>,
}

impl Replica {
    /// The group it belongs to.
    pub fn group(&self) -> GroupId {
        self.shared.group
    }

    /// What it is doing.
    pub fn status(&self) -> ReplicaStatus {
        self.shared.status.borrow().clone()
    }

    /// Whether it leads its group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        false
    }

    /// Follows its status: role, leader, and applied index.
    pub fn watch(&self) -> watch::Receiver<ReplicaStatus> {
        self.shared.status.clone()
    }

    /// Runs a write and answers once the group has committed it.
    ///
    /// [`proto::Retry::NotLeader`] promises that it wasn't executed and won't be. [`proto::Retry::Unknown`] (40001 or
    /// 08007) says that it may have been, or may still be: repeat it under the same request id.
    pub async fn write(&self, write: Write) -> Result<Written, WireError> {
        drop(write);
        Err(WireError::unsupported("writing to a replica"))
    }

    /// Has every replica run a schema entry, and answers once this one has. Errors as for [`Self::write`]; repeating
    /// an entry of the same id is always safe.
    pub async fn schema(&self, entry: SchemaEntry) -> Result<LogIndex, WireError> {
        drop(entry);
        Err(WireError::unsupported("changing a replica's schema"))
    }

    /// Opens a snapshot that is as fresh as asked for, waiting until the deadline at most.
    pub async fn snapshot(&self, consistency: Consistency, deadline: Instant) -> Result<Snapshot, WireError> {
        let _ = (consistency, deadline);
        Err(WireError::unsupported("reading from a replica"))
    }
}
