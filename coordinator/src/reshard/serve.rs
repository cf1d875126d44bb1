//! What the coordinator's leader answers to those who wish for reshards, command them, and ask for them.
//!
//! In come the calls, out go writes of the coordinator's log and what is known of each reshard. Nobody waits here for what a
//! reshard does.

use super::record::{Part, Record};
use super::tables;
use crate::service::Core;
use crate::store::Store;
use bytes::Bytes;
use proto::machine;
use proto::services::{Consistency, ReshardCommand, ReshardPlan, ReshardStatus, ReshardWish, ServiceResult};
use proto::topology::Topology;
use proto::wire::Wire;
use proto::{ReshardId, WireError};
use std::time::Duration;

impl Core {
    /// Begins a reshard, or says what it would do.
    pub(crate) async fn reshard(&self, wish: ReshardWish) -> ServiceResult<ReshardPlan> {
        self.check_leader()?;
        let (known, leaders) = (self.known(machine::now()), self.state.subscribe().borrow().leaders.clone());
        if wish.dry_run {
            let deadline = machine::now() + self.config.write_timeout;
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            return tables::begin(Store(snapshot.connection()), &wish, &known, &leaders);
        }
        let begin =
            move |store: Store<'_>| Ok(tables::begin(store, &wish, &known, &leaders)?.encode().into());
        let output = self.write(begin).await?;
        self.begun.notify_one();
        ReshardPlan::decode(&output).map_err(|e| WireError::internal(e.to_string()))
    }

    /// Tells a reshard what to do.
    pub(crate) async fn command(&self, id: ReshardId, command: ReshardCommand) -> ServiceResult<()> {
        let tell = move |store: Store<'_>| tables::command(store, id, command).map(|()| Bytes::new());
        self.write(tell).await?;
        self.state.refresh(&self.replica).await?;
        self.begun.notify_one();
        Ok(())
    }

    /// What is known of each reshard.
    pub(crate) async fn reshards(&self) -> ServiceResult<Vec<ReshardStatus>> {
        self.check_leader()?;
        let deadline = machine::now() + self.config.write_timeout;
        let (records, topology) = {
            let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
            let store = Store(snapshot.connection());
            (store.reshards()?, store.topology()?)
        };
        Ok(records.iter().map(|record| status(record, &topology)).collect())
    }
}

fn status(record: &Record, topology: &Topology) -> ReshardStatus {
    let keyspace = record.keyspace_name(topology);
    let names =
        |parts: &[Part]| parts.iter().map(|part| format!("{keyspace}/{}", part.range)).collect::<Vec<_>>();
    let one_way = record.one_way.as_ref().map(|why| format!("there is no way back: {why}"));
    ReshardStatus {
        id: record.id,
        what: record.what.clone(),
        phase: record.phase,
        attempt: record.attempt,
        old: names(&record.old.parts),
        new: names(&record.new.parts),
        keyspace,
        wanted: record.wanted,
        bytes: None,
        rows: None,
        lag: None,
        paused: record.paused.as_ref().map(|paused| paused.why.clone()),
        failed: record.failed.clone(),
        message: one_way.unwrap_or_else(|| record.message.clone()),
        switches: record.counts.switches,
        ended: record.counts.ended,
        pause: record.counts.pauses.last().copied(),
        completes_in: None,
        since: Duration::ZERO,
    }
}
