//! Who turns a node's loops.

use super::consensus_loop::{ConsensusLoop, Purge};
use super::engine_loop::EngineLoop;
use super::hashing::TakeHash;
use super::image_loop::ImageLoop;
use crate::error::ReplicaError;
use crate::host::Host;
use crate::log::LogStore;
use proto::GroupId;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Who turns a node's loops.
pub(crate) trait Drive: Send + Sync {
    /// Gives what has the log purged, in time and not at once: it may take long, and must not delay a tick.
    fn purger(&self, log: Arc<dyn LogStore>) -> Result<Purge, ReplicaError>;

    /// Gives what has tables hashed, one replica's after the other, and slowly enough to be in nobody's way.
    fn hasher(&self) -> Result<TakeHash, ReplicaError>;

    /// Turns the node's consensus loop from now on.
    fn consensus(&self, consensus: ConsensusLoop) -> Result<(), ReplicaError>;

    /// Turns the node's image loop from now on.
    fn images(&self, images: ImageLoop) -> Result<(), ReplicaError>;

    /// Steps a group's engine loop from now on.
    fn engine(&self, group: GroupId, engine: EngineLoop) -> Result<(), ReplicaError>;

    /// Has [`Host::revive`] called this often.
    fn upkeep(&self, every: Duration, host: Weak<Host>) -> Result<(), ReplicaError>;

    /// Comes back when the consensus loop, which was told to, has ended.
    fn finish_consensus(&self);

    /// Breaks off what is being hashed, and hashes nothing more.
    fn finish_hasher(&self);

    /// Comes back when the image loop, which was told to, has ended.
    fn finish_images(&self);

    /// Comes back when a group's engine loop, which was told to, has ended.
    fn finish_engine(&self, group: GroupId);

    /// Ends the upkeep.
    fn finish_upkeep(&self);
}
