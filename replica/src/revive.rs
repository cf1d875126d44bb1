//! Opening again what has stopped, once its reason may have passed.
//!
//! Every [`crate::Config::revive_every`], the stopped replicas of a host go in, and those whose disk takes writes again
//! come out in another life: they read what is durable, as after a restart, and catch up as any follower. What can't
//! pass (damage) isn't tried: it waits for a rebuild. It must never know what a replica was doing when it stopped.

use crate::engine::Engine;
use crate::error::ReplicaError;
use crate::host::Host;
use crate::hosted::OnDisk;
use crate::log::{Batch, Change, LogStore};
use crate::packet::NODE;
use crate::replica::Replica;
use bytes::Bytes;
use std::io::ErrorKind;
use std::sync::Arc;

/// The mark that is written to see whether the log takes writes.
const PROBE: &str = "probe";
/// After so many rounds in which it ran, it is forgotten that a replica had stopped.
const ROUNDS_WELL: u32 = 64;
/// One that stops again and again is left alone for twice as many rounds each time, up to two to this power.
const MOST_DOUBLINGS: u32 = 6;

/// How often a replica was revived of late.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    count: u32,
    /// For how many rounds it is left alone yet.
    rest: u32,
    /// For how many rounds it has run since.
    well: u32,
}

impl Tries {
    /// Whether it is to be tried in this round.
    fn is_due(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.count += 1;
        self.well = 0;
        self.rest = (1 << self.count.min(MOST_DOUBLINGS)) - 2;
        true
    }

    /// It ran in this round. Whether its tries still count.
    fn ran(&mut self) -> bool {
        self.rest = 0;
        self.well += 1;
        self.well < ROUNDS_WELL
    }
}

impl Host {
    /// Opens the log and the replicas again that have stopped for reasons which have passed.
    pub(crate) fn revive(&self) {
        self.sweep();
        let Some((log, drive)) = self.log_and_drive() else { return };
        let replicas = self.replicas();
        let stopped: Vec<&Replica> =
            replicas.iter().filter(|replica| replica.shared().can_be_revived()).collect();
        let mut tries = self.tries().lock();
        for replica in replicas.iter().filter(|replica| !replica.shared().has_stopped()) {
            if tries.get_mut(&replica.group()).is_some_and(|tries| !tries.ran()) {
                tries.remove(&replica.group());
            }
        }
        let failure = log.failure();
        if failure.is_none() {
            self.forget_again();
        }
        if failure.is_none() && stopped.is_empty() || failure.as_ref().is_some_and(|why| !why.can_pass()) {
            return;
        }
        if let Err(error) = log.check_room() {
            tracing::debug!(node = self.node().0, "nothing is revived yet: {error}");
            return;
        }
        if failure.is_none() {
            // The disk may have been taken away and put back, and the log be open on what is no more.
            let mut probe = Batch::default();
            probe.put(NODE.0, Change::Mark(PROBE, Some(Bytes::new())));
            if log.write(probe, true).is_err() {
                return;
            }
        } else {
            // The consensus loop stops all of them as soon as it sees the failure.
            if replicas.iter().any(|replica| !replica.shared().has_stopped()) {
                return;
            }
            if let Err(error) = log.reopen() {
                stopped.iter().for_each(|replica| replica.shared().still_stopped(&error));
                return;
            }
            tracing::info!(node = self.node().0, "{} was opened again", log.path().display());
        }
        for replica in stopped {
            // Who still reads has the old files open.
            if !replica.shared().readers.are_gone() || !tries.entry(replica.group()).or_default().is_due() {
                continue;
            }
            drive.finish_engine(replica.group());
            if let Err(error) = self.revive_one(replica, log.as_ref()) {
                replica.shared().still_stopped(&error);
            }
        }
    }

    fn revive_one(&self, replica: &Replica, log: &dyn LogStore) -> Result<(), ReplicaError> {
        let group = replica.group();
        let before = replica.shared();
        let directory = self.directory(group);
        if before.lost_a_sync() {
            Engine::write_wal_afresh(&directory)?;
        }
        // The disk may just have been taken away. Whether they are gone for ever, the next start tells.
        let away = || ReplicaError::io(&directory)(ErrorKind::NotFound.into());
        let found = self.on_disk(group, log).map_err(|error| match error {
            ReplicaError::FilesGone => away(),
            error => error,
        });
        let engine = match found? {
            OnDisk::Database(engine) | OnDisk::Blank(engine) => *engine,
            OnDisk::Nothing => return Err(away()),
        };
        let groups = self.lock_groups();
        let same = groups.get(&group).is_some_and(|now| Arc::ptr_eq(&now.shared(), &before));
        if same {
            self.start(group, engine, Some(replica))?;
            tracing::info!(node = self.node().0, group = group.0, "the replica goes on");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stops_again_and_again_is_tried_less_and_less_often() {
        let mut tries = Tries::default();
        let due: Vec<u32> = (0..40).filter(|_| tries.is_due()).collect();
        assert_eq!(due, [0, 1, 4, 11, 26]);
        let mut tries = Tries::default();
        assert!(tries.is_due());
        assert_eq!((1..).find(|_| !tries.ran()), Some(ROUNDS_WELL));
    }
}
