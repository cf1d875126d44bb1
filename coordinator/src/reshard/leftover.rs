//! Holds that nobody needs any more.
//!
//! In come what replicas say of their logs, and the reshards that go on; out go ends of holds. A hold that a coordinator asked for which
//! leads no more may come after its reshard has ended: nobody else ends it.

use super::asking::hold_of;
use crate::service::Core;
use crate::store::Store;
use proto::machine;
use proto::services::{Consistency, ReplicaService, ReplicaStatus, ReshardPhase};
use proto::topology::Shard;
use proto::{GroupId, ReshardId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long the end of some may take. It is seen to again.
const LIMIT: Duration = Duration::from_secs(1);
/// How soon one is ended again that a replica still speaks of: it may not have heard yet.
const AGAIN: Duration = Duration::from_secs(30);

/// When which holds were last ended.
#[derive(Default)]
pub(crate) struct LeftOver(BTreeMap<(GroupId, String), Instant>);

impl LeftOver {
    /// The holds that are to be ended now, as replicas speak of them: those of reshards that don't go on.
    fn due<'a>(
        &mut self,
        statuses: impl IntoIterator<Item = &'a ReplicaStatus>,
        going_on: &BTreeSet<ReshardId>,
        now: Instant,
    ) -> BTreeSet<(GroupId, String)> {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        let ends = |name: &str| hold_of(name).is_some_and(|(id, _)| !going_on.contains(&id));
        let held = statuses.into_iter().flat_map(|status| {
            status.holds.iter().filter(|hold| ends(&hold.name)).map(|hold| (status.group, hold.name.clone()))
        });
        let due: BTreeSet<_> = held.filter(|hold| !self.0.contains_key(hold)).collect();
        self.0.extend(due.iter().map(|hold| (hold.clone(), now)));
        due
    }

    /// Ends the holds of reshards that have ended, side by side.
    pub(crate) async fn end(&mut self, core: &Core) -> Result<(), WireError> {
        let now = machine::now();
        let vitals = core.state.vitals();
        let statuses: Vec<_> = vitals.running(core.config.silent_after, now).collect();
        if !statuses.iter().flat_map(|status| &status.holds).any(|hold| hold_of(&hold.name).is_some()) {
            return Ok(());
        }
        let (going_on, shards) = {
            let snapshot =
                core.replica.snapshot(Consistency::Strong, now + core.config.write_timeout).await?;
            let store = Store(snapshot.connection());
            let reshards = store.reshards()?.into_iter().filter(|record| record.phase != ReshardPhase::Ended);
            (reshards.map(|record| record.id).collect(), store.shards()?)
        };
        let shard = |group| shards.values().find(|shard: &&Shard| shard.group == group);
        let due = self.due(statuses, &going_on, now);
        let mut ending = JoinSet::new();
        for (group, name) in due {
            let (Some(shard), reach) = (shard(group), core.reach()) else { continue };
            let nodes = shard.replicas.clone();
            ending.spawn(async move {
                let ask = |service: Arc<dyn ReplicaService>| {
                    let name = name.clone();
                    async move { service.hold_log(group, name, None, LIMIT).await }
                };
                let ended = tokio::time::timeout(LIMIT, reach.group(group, &nodes, LIMIT, ask)).await;
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%group, name, %error, "a hold that nobody needs isn't ended");
                }
            });
        }
        while ending.join_next().await.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::services::LogHold;
    use proto::{LogIndex, NodeId};

    #[test]
    fn a_hold_ends_with_its_reshard_and_nobody_is_asked_twice_in_a_row() {
        let status = |name: &str| {
            let hold = LogHold { name: name.to_owned(), from: LogIndex(3), bytes: 0 };
            ReplicaStatus { holds: vec![hold], ..ReplicaStatus::new(NodeId(1), GroupId(4)) }
        };
        let statuses =
            [status("reshard/7/2"), status("reshard/8/1"), status("stream/x"), status("reshard/7/2")];
        let (mut left, now) = (LeftOver::default(), Instant::now());
        let mut due = |after| {
            let due = left.due(&statuses, &BTreeSet::from([ReshardId(8)]), now + after);
            due.into_iter().map(|(group, name)| (group.0, name)).collect::<Vec<_>>()
        };
        assert_eq!(due(Duration::ZERO), [(4, "reshard/7/2".to_owned())]);
        assert_eq!(due(Duration::from_secs(1)), []);
        assert_eq!(due(AGAIN).len(), 1, "it may have got lost");
    }
}
