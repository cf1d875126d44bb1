//! Asking a group's leader, wherever it is.
//!
//! In comes a call for one shard or group, out comes its result or the error that asking again can't mend. Who leads is
//! guessed from what was last heard, then from the hints of those who don't lead. There is one retry policy, this one.

use crate::config::Config;
use futures_core::Stream;
use proto::services::{BoxStream, ClusterState, Peers, ReplicaService, ServiceResult, ShardService};
use proto::{GroupId, NodeId, Retry, ShardId, SqlState, WireError};
use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The pause after all replicas have refused; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a request that minds its own time and its answer may be on their way.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// The way to the shards.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) state: watch::Receiver<ClusterState>,
    pub(crate) config: Config,
}

impl Reach {
    /// Calls the shard's leader until it answers, or refuses for good. It doesn't give up by itself: whoever waits
    /// for it has the deadline.
    pub(crate) async fn leader<T, F>(
        &self,
        shard: ShardId,
        call: impl Fn(Arc<dyn ShardService>) -> F,
    ) -> Result<T, WireError>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        let mut pause = Pause::default();
        let mut hint = None;
        loop {
            for node in self.candidates(shard, hint.take()) {
                let Some(service) = self.peers.shard_service(node) else { continue };
                match tokio::time::timeout(self.config.attempt_timeout, call(service)).await {
                    Ok(Ok(result)) => return Ok(result),
                    Ok(Err(error)) if is_final(&error) => return Err(error),
                    Ok(Err(error)) => {
                        tracing::debug!(%shard, %node, %error, "a shard's replica refused");
                        if let Retry::NotLeader(Some(leader)) = error.retry {
                            hint = Some(leader);
                        }
                    }
                    Err(_) => tracing::warn!(%shard, %node, "a shard's replica doesn't answer"),
                }
            }
            pause.wait().await;
        }
    }

    /// Asks the nodes that may lead a group, the likeliest first, and whoever they name. What asking again may mend
    /// comes back with a [`Retry`] other than `Never`.
    pub(crate) async fn group<T, F>(
        &self,
        group: GroupId,
        nodes: &[NodeId],
        timeout: Duration,
        call: impl Fn(Arc<dyn ReplicaService>) -> F,
    ) -> Result<T, WireError>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        let leader = self.state.borrow().leaders.get(group);
        let mut waiting: VecDeque<_> = nodes.to_vec().into();
        waiting.make_contiguous().sort_by_key(|node| Some(*node) != leader);
        let mut asked = BTreeSet::new();
        let mut last = WireError::new(SqlState::CANNOT_CONNECT_NOW, format!("group {group} has no leader"));
        while let Some(node) = waiting.pop_front() {
            let Some(service) = self.peers.replica_service(node).filter(|_| asked.insert(node)) else {
                continue;
            };
            // Whoever is asked minds the time; only one that doesn't answer at all is given up here.
            match tokio::time::timeout(timeout + ON_THE_WAY, call(service)).await {
                Ok(Ok(result)) => return Ok(result),
                Ok(Err(error)) if is_final(&error) && error.sqlstate != SqlState::OBJECT_IN_USE => {
                    return Err(error);
                }
                Ok(Err(error)) => {
                    if let Retry::NotLeader(Some(leader)) = error.retry {
                        waiting.push_front(leader);
                    }
                    if !matches!(error.retry, Retry::NotLeader(_)) || last.retry == Retry::Never {
                        last = error;
                    }
                }
                Err(_) => {
                    let message = format!("node {node} doesn't answer");
                    last = WireError::new(SqlState::CONNECTION_FAILURE, message);
                }
            }
        }
        Err(match last.retry {
            Retry::Never => last.with_retry(Retry::Later),
            _ => last,
        })
    }

    /// The shard's replicas, the likeliest leader first.
    pub(crate) fn candidates(&self, shard: ShardId, hint: Option<NodeId>) -> Vec<NodeId> {
        let state = self.state.borrow();
        let Some(shard) = state.topology.shards.get(&shard) else { return Vec::new() };
        let leader = hint.or_else(|| state.leaders.get(shard.group));
        let mut nodes = shard.replicas.clone();
        nodes.sort_by_key(|node| Some(*node) != leader);
        nodes
    }
}

/// Whether asking again is in vain: the same entry does the same on every replica, again and again.
fn is_final(error: &WireError) -> bool {
    let class = &error.sqlstate.as_str()[..2];
    // Resources, operators, the system and connections are matters of one node and one moment.
    error.retry == Retry::Never
        && !matches!(class, "08" | "53" | "57" | "58")
        && error.sqlstate != SqlState::SERIALIZATION_FAILURE
}

/// Longer and longer pauses between attempts.
pub(crate) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Pause(FIRST_PAUSE)
    }
}

impl Pause {
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// The next item of a stream.
pub(crate) async fn next<T>(stream: &mut BoxStream<T>) -> Option<T> {
    poll_fn(|context| Stream::poll_next(Pin::as_mut(stream), context)).await
}
