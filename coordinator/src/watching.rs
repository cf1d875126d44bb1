//! What those who watch the cluster hear from one coordinator.
//!
//! In comes the state as this node tells it, out goes a stream of it. Somebody who hears nothing must know that there
//! is nothing new: so a state is told again and again, and a coordinator that has lost touch with its leader ends its
//! streams, lest its watchers stay in a world that has gone on.

use proto::machine;
use proto::services::{BoxStream, ClusterState, PULSE, ReplicaRole, ReplicaStatus};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;

/// How long a coordinator may know no leader until it is taken to be cut off: several elections.
const CUT_OFF: Duration = Duration::from_secs(4);

/// A stream of the states, for one watcher.
pub(crate) fn watch(
    mut states: watch::Receiver<ClusterState>,
    replica: watch::Receiver<ReplicaStatus>,
) -> BoxStream<ClusterState> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut in_touch = machine::now();
        loop {
            // The first tick comes at once, and so does the first state.
            tokio::select! {
                biased;
                changed = states.changed() => if changed.is_err() { return },
                _ = pulse.tick() => {}
                () = sender.closed() => return,
            }
            if has_leader(&replica.borrow()) {
                in_touch = machine::now();
            } else if machine::now() - in_touch > CUT_OFF {
                tracing::debug!("this coordinator knows no leader, and lets its watchers go");
                return;
            }
            let state = states.borrow_and_update().clone();
            if sender.send(state).await.is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn has_leader(status: &ReplicaStatus) -> bool {
    status.stopped.is_none() && (status.role == ReplicaRole::Leader || status.leader.is_some())
}
