//! Holds that nobody needs any more.
//!
//! In come what replicas say of their logs, and the reshards that go on; out go ends of holds. A hold that a coordinator asked for which
//! leads no more may come after its reshard has ended: nobody else ends it.

use super::asking::hold_of;
use crate::service::Core;
use crate::store::Store;
use proto::machine;
use proto::services::{Consistency, ReplicaService, ReshardPhase};
use proto::topology::Topology;
use proto::{GroupId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long the end of one may take. It is seen to again.
const LIMIT: Duration = Duration::from_secs(1);

/// Ends the holds of reshards that have ended.
pub(crate) async fn end_holds(core: &Core, topology: &Topology) -> Result<(), WireError> {
    let mut held: BTreeMap<GroupId, BTreeSet<String>> = BTreeMap::new();
    for status in core.state.reports() {
        let names = status.holds.into_iter().map(|hold| hold.name).filter(|name| hold_of(name).is_some());
        held.entry(status.group).or_default().extend(names);
    }
    if held.values().all(BTreeSet::is_empty) {
        return Ok(());
    }
    let going_on: BTreeSet<_> = {
        let deadline = machine::now() + core.config.write_timeout;
        let snapshot = core.replica.snapshot(Consistency::Strong, deadline).await?;
        let reshards = Store(snapshot.connection()).reshards()?;
        reshards.iter().filter(|record| record.phase != ReshardPhase::Ended).map(|record| record.id).collect()
    };
    for shard in topology.shards.values() {
        let names = held.remove(&shard.group).unwrap_or_default();
        let ends = |name: &String| hold_of(name).is_some_and(|(id, _)| !going_on.contains(&id));
        for name in names.into_iter().filter(ends) {
            let (reach, group) = (core.reach(), shard.group);
            let ask = |service: Arc<dyn ReplicaService>| {
                let name = name.clone();
                async move { service.hold_log(group, name, None, LIMIT).await }
            };
            let ended = tokio::time::timeout(LIMIT, reach.group(group, &shard.replicas, LIMIT, ask)).await;
            if let Ok(Err(error)) = ended {
                tracing::debug!(%group, name, %error, "a hold that nobody needs isn't ended");
            }
        }
    }
    Ok(())
}
