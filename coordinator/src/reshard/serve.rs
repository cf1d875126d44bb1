//! What the coordinator's leader answers to those who wish for reshards, command them, and ask for them.
//!
//! In come the calls, out go writes of the coordinator's log and what is known of each reshard. Nobody waits here for what a
//! reshard does.

use super::record::{Part, Record};
use super::tables;
use super::worker::Seen;
use crate::service::Core;
use crate::store::Store;
use bytes::Bytes;
use proto::machine;
use proto::services::{
    Consistency, ReshardCommand, ReshardPhase, ReshardPlan, ReshardStatus, ReshardWish, ServiceResult,
};
use proto::topology::Topology;
use proto::wire::Wire;
use proto::{RequestId, ReshardId, WireError};
use std::time::{Duration, Instant};

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
    pub(crate) async fn command(
        &self,
        request: RequestId,
        id: ReshardId,
        command: ReshardCommand,
    ) -> ServiceResult<()> {
        let tell = move |store: Store<'_>| {
            let told = tables::command(store, request, id, command)?;
            Ok(told.map_or_else(|error| error.encode().into(), |()| Bytes::new()))
        };
        let told = self.write(tell).await?;
        if !told.is_empty() {
            return Err(WireError::decode(&told).map_err(|e| WireError::internal(e.to_string()))?);
        }
        self.state.refresh(&self.replica).await?;
        self.told.send_modify(|told| *told += 1);
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
        let now = machine::now();
        let seen = self.reshards.lock();
        let nothing = Seen::default();
        let status =
            |record: &Record| status(record, &topology, seen.get(&record.id).unwrap_or(&nothing), now);
        Ok(records.iter().map(status).collect())
    }
}

fn status(record: &Record, topology: &Topology, seen: &Seen, now: Instant) -> ReshardStatus {
    let keyspace = record.keyspace_name(topology);
    let names =
        |parts: &[Part]| parts.iter().map(|part| format!("{keyspace}/{}", part.range)).collect::<Vec<_>>();
    let since = seen.since.filter(|(phase, _)| *phase == record.phase);
    let since = since.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
    let keeps = record.phase == ReshardPhase::Switched && record.paused.is_none() && !record.wanted;
    let one_way = record.one_way.as_ref().map(|why| format!("there is no way back: {why}"));
    let last = Some(&record.message).filter(|message| !message.is_empty());
    let equal = seen.comparing.as_ref().and_then(|comparing| comparing.equal(&keyspace, record.sources()));
    let is_due = record.wanted && record.phase == record.resting() && record.paused.is_none();
    let near = is_due.then(|| "it begins when those that follow have been near for a second".to_owned());
    let message = one_way.or_else(|| seen.waits_for().or(last).cloned()).or(near).or(equal);
    let compared = seen.comparing.as_ref().filter(|_| record.phase == ReshardPhase::Verifying);
    ReshardStatus {
        id: record.id,
        what: record.what.clone(),
        phase: record.phase,
        attempt: record.attempt,
        old: names(&record.old.parts),
        new: names(&record.new.parts),
        keyspace,
        wanted: record.wanted,
        bytes: seen.built,
        rows: compared.map(|comparing| comparing.rows).or(seen.rows),
        lag: seen.lag.values().max().copied(),
        paused: record.paused.as_ref().map(|paused| paused.why.clone()),
        failed: record.failed.clone(),
        message: message.unwrap_or_default(),
        switches: record.counts.switches,
        ended: record.counts.ended,
        pause: record.counts.pauses.last().copied(),
        completes_in: record.options.keep.filter(|_| keeps).map(|keep| keep.saturating_sub(since)),
        since,
    }
}
