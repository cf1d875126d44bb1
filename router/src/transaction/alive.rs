//! Telling the shards that this router lives: its open transactions live as long.
//!
//! One message for each node that leads a shard, however many transactions there are, and none while there is none.

use super::Transactions;
use proto::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How often nodes hear of it. They take some seconds of silence for a router's end.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// How many transactions are open.
#[derive(Debug, Default)]
pub(super) struct Open {
    count: AtomicUsize,
    some: Notify,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Opened(Arc<Open>);

impl Open {
    pub(super) fn enter(self: &Arc<Self>) -> Opened {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.some.notify_one();
        }
        Opened(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Transactions {
    /// Keeps what is open alive, until it is dropped.
    pub async fn keep_alive(self: &Arc<Self>) {
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            while self.open.is_empty() {
                self.open.some.notified().await;
            }
            self.beat();
            self.end_what_is_left();
        }
    }

    /// Tells each node that leads a shard. One that doesn't answer holds up nobody else.
    fn beat(&self) {
        let state = self.cluster.load();
        let groups = state.topology.shards.values().map(|shard| shard.group);
        let leaders: BTreeSet<NodeId> =
            groups.filter_map(|group| self.cluster.leader(&state, group)).collect();
        let router = self.requests.router();
        for node in leaders {
            let Some(service) = self.cluster.peers().shard_service(node) else { continue };
            tokio::spawn(async move {
                let told = tokio::time::timeout(2 * BEAT, service.keep_alive(router)).await;
                if !matches!(told, Ok(Ok(()))) {
                    tracing::debug!(%node, "a node doesn't hear that this router lives");
                }
            });
        }
    }
}
