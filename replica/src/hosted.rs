//! Which replicas a node has: how they come without being founded, and how they go.
//!
//! Messages for members that aren't here yet come in, and calls to remove; out come blank replicas, which wait for an
//! image, and directories that are deleted. It must never know who decided it.
//!
//! A member's incarnation tells whether a message is for the replica that is here: for an older one it's too late, for a
//! newer one the replica that is here was removed meanwhile, and goes. A removed replica leaves a tombstone in the log
//! ([`crate::log::tombstone`]), so that late messages don't bring it back.
//!
//! A removal is done in three steps, each of which a crash may separate from the next: consensus forgets the group,
//! writing the tombstone; the engine ends; [`Host::sweep`] deletes the directory. A directory that is found beside a
//! tombstone is deleted when the node starts.

use crate::consensus::FOUNDING;
use crate::driver::Mail;
use crate::engine::Engine;
use crate::error::ReplicaError;
use crate::host::Host;
use crate::log::{self, Batch, Change, Kept, LogStore};
use crate::peer::Peer;
use crate::replica::Replica;
use proto::{GroupId, NodeId};
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A directory that is to be deleted has this after its group's number.
const GONE: &str = "gone";

/// What a group's directory holds when its node starts.
pub(crate) enum OnDisk {
    /// A database.
    Database(Box<Engine>),
    /// Nothing yet: the replica waits for an image.
    Blank(Box<Engine>),
    /// Nothing: the replica was removed, or was never finished.
    Nothing,
}

impl Host {
    /// Removes a group's replica: it stops, and its files and its part of the log are deleted. A group without a replica
    /// here is left alone. Comes back before all is done.
    pub fn remove(&self, group: GroupId) -> Result<(), ReplicaError> {
        if self.log_and_drive().is_none() {
            return Err(ReplicaError::ShutDown);
        }
        let mut groups = self.lock_groups();
        self.let_go(group, &mut groups);
        drop(groups);
        self.sweep();
        Ok(())
    }

    fn let_go(&self, group: GroupId, groups: &mut BTreeMap<GroupId, Replica>) {
        let Some(replica) = groups.remove(&group) else { return };
        tracing::info!(node = self.node().0, group = group.0, "removes its replica");
        let shared = replica.shared();
        self.going().lock().insert(group, replica);
        self.mailbox().send(Mail::Forget { shared });
        self.note_change();
    }

    /// Reports that the files of a replica are gone, until a fresh one takes its place. What is here is left alone, and what its
    /// group has removed isn't missed: members know of that before all others. Says whether it is missed.
    pub fn note_missing(&self, group: GroupId) -> bool {
        let mut groups = self.lock_groups();
        if groups.contains_key(&group) || self.going().lock().contains_key(&group) || self.is_buried(group) {
            return false;
        }
        groups.insert(group, self.stopped(group, None, &ReplicaError::FilesGone));
        drop(groups);
        self.note_change();
        true
    }

    /// Whether the last replica of a group that was here was removed.
    fn is_buried(&self, group: GroupId) -> bool {
        let Some((log, _)) = self.log_and_drive() else { return false };
        let (peer, tombstone) = (log::peer(log.as_ref(), group.0), log::tombstone(log.as_ref(), group.0));
        matches!((peer, tombstone), (Ok(None), Ok(Some(_))))
    }

    /// Deletes what was removed, as far as nobody uses it any more.
    pub(crate) fn sweep(&self) {
        let Some((_, drive)) = self.log_and_drive() else { return };
        let mut going = self.going().lock();
        going.retain(|group, replica| {
            let shared = replica.shared();
            if !shared.is_forgotten() || !shared.is_over() {
                return true;
            }
            drive.finish_engine(*group);
            match self.discard(*group) {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(group = group.0, %error, "a removed replica's files can't be deleted yet");
                    true
                }
            }
        });
    }

    /// Which member of a group this node has, as far as its files still tell: the log or, where that is damaged or lost,
    /// the database.
    pub(crate) fn known_peer(&self, group: GroupId, log: &dyn LogStore) -> Option<Peer> {
        if let Ok(Some(peer)) = log::peer(log, group.0) {
            return Some(peer);
        }
        let engine = Engine::open(&self.directory(group), self.limits()).ok().flatten()?;
        let state = engine.conf_state();
        let members = state.voters.iter().chain(&state.learners).chain(&state.voters_outgoing);
        members.filter_map(|raw| Peer::from_raw(*raw)).filter(|peer| peer.node() == self.node()).max()
    }

    /// Has a log that takes writes, so that a replica can be made anew; a damaged one is put aside for that. Says whether
    /// there is one. What the others of its replicas were is noted in the new one: they are lost, and must not come back
    /// as if they had never voted.
    fn has_fit_log(&self, groups: &BTreeMap<GroupId, Replica>) -> Result<bool, ReplicaError> {
        let Some((log, _)) = self.log_and_drive() else { return Ok(false) };
        match log.failure() {
            None => return Ok(true),
            // It is opened again as soon as its disk is better.
            Some(failure) if failure.can_pass() => return Ok(false),
            Some(_) => {}
        }
        log.renew()?;
        let mut batch = Batch::default();
        for (group, replica) in groups {
            replica.shared().peer.into_iter().for_each(|peer| batch.put(group.0, log::note_peer(peer)));
        }
        log.write(batch, true)?;
        Ok(true)
    }

    /// Has consensus forget once more what it couldn't before, for want of a log that takes writes.
    pub(crate) fn forget_again(&self) {
        for replica in self.going().lock().values() {
            let shared = replica.shared();
            if !shared.is_forgotten() {
                self.mailbox().send(Mail::Forget { shared });
            }
        }
    }

    fn discard(&self, group: GroupId) -> Result<(), ReplicaError> {
        let directory = self.directory(group);
        let gone = directory.with_extension(GONE);
        if gone.exists() {
            fs::remove_dir_all(&gone).map_err(ReplicaError::io(&gone))?;
        }
        if directory.exists() {
            fs::rename(&directory, &gone).map_err(ReplicaError::io(&directory))?;
            fs::remove_dir_all(&gone).map_err(ReplicaError::io(&gone))?;
        }
        Ok(())
    }

    /// What a group's directory holds. What was removed is deleted.
    pub(crate) fn on_disk(&self, group: GroupId, log: &dyn LogStore) -> Result<OnDisk, ReplicaError> {
        let peer = log::peer(log, group.0)?;
        if peer.is_none() && log::tombstone(log, group.0)?.is_some() {
            self.discard(group)?;
            return Ok(OnDisk::Nothing);
        }
        if let Some(engine) = self.open_engine(group, log)? {
            return Ok(OnDisk::Database(Box::new(engine)));
        }
        let is_new = is_new(&log.kept(group.0)?);
        match peer {
            Some(_) if !is_new => Err(ReplicaError::FilesGone),
            Some(peer) if peer.incarnation() > 0 => {
                Ok(OnDisk::Blank(Box::new(Engine::blank(&self.directory(group), self.limits())?)))
            }
            _ => Ok(OnDisk::Nothing),
        }
    }

    /// The directories of replicas that were removed when the node stopped.
    pub(crate) fn discard_leftovers(&self, groups: &[PathBuf]) -> Result<(), ReplicaError> {
        for path in groups.iter().filter(|path| path.extension().is_some_and(|extension| extension == GONE)) {
            fs::remove_dir_all(path).map_err(ReplicaError::io(path))?;
        }
        Ok(())
    }

    /// Whether a message is for the replica that is here, after one was made if it's for one that is to be.
    pub(crate) fn admits(&self, group: GroupId, message: &Message) -> bool {
        let Some(to) = Peer::from_raw(message.to) else { return false };
        let mut groups = self.lock_groups();
        let here = groups.get(&group).map(|replica| replica.shared().peer);
        match here {
            Some(Some(here)) if here == to => return true,
            Some(Some(here)) if here > to => return false,
            _ if to.incarnation() == 0 || !is_from_leader(message) => return false,
            _ => {}
        }
        match self.has_fit_log(&groups) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                self.cannot_make(group, &error);
                return false;
            }
        }
        if let Some(Some(_)) = here {
            // Removed and added again: who adds a member has removed the one before.
            self.let_go(group, &mut groups);
            return false;
        }
        if self.going().lock().contains_key(&group) {
            // The one before goes as soon as nobody uses it any more. Whoever leads says it all again until then.
            drop(groups);
            self.sweep();
            return false;
        }
        let before = groups.get(&group).cloned();
        match self.begin_blank(group, to, before.as_ref()) {
            Ok(Some(replica)) => {
                groups.insert(group, replica);
                drop(groups);
                self.note_change();
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.cannot_make(group, &error);
                false
            }
        }
    }

    /// The leader asks again and again; one line for each reason is enough.
    fn cannot_make(&self, group: GroupId, error: &ReplicaError) {
        let error = error.to_string();
        if self.complaints().lock().insert(group, error.clone()).as_ref() != Some(&error) {
            tracing::error!(node = self.node().0, group = group.0, "a replica can't be made: {error}");
        }
    }

    fn begin_blank(
        &self,
        group: GroupId,
        peer: Peer,
        before: Option<&Replica>,
    ) -> Result<Option<Replica>, ReplicaError> {
        let Some((log, _)) = self.log_and_drive() else { return Ok(None) };
        let noted = log::peer(log.as_ref(), group.0)?;
        // It was noted, and the node died before there was a directory: nobody has heard of it.
        let is_begun = noted == Some(peer) && is_new(&log.kept(group.0)?);
        // A member that is later or the same has been here, and lost its files.
        let been_here = [log::tombstone(log.as_ref(), group.0)?, noted.filter(|_| !is_begun)];
        if been_here.into_iter().flatten().any(|been_here| been_here >= peer) {
            return Ok(None);
        }
        self.discard(group)?;
        if !is_begun {
            let mut batch = Batch::default();
            batch.put(group.0, Change::Clear);
            batch.put(group.0, log::note_peer(peer));
            log.write(batch, true)?;
        }
        let directory = self.directory(group);
        fs::create_dir_all(&directory).map_err(ReplicaError::io(&directory))?;
        tracing::info!(node = self.node().0, group = group.0, %peer, "makes a replica that waits for an image");
        self.start(group, Engine::blank(&directory, self.limits())?, before).map(Some)
    }

    /// A member of the group knows that this one was removed from it.
    pub(crate) fn dismiss(&self, group: GroupId, from: NodeId, peer: Peer) {
        let mut groups = self.lock_groups();
        if groups.get(&group).is_some_and(|replica| replica.shared().peer == Some(peer)) {
            tracing::info!(node = self.node().0, group = group.0, from = from.0, "is no member any more");
            self.let_go(group, &mut groups);
        }
    }
}

/// Whether the log has nothing of a group yet that a leader sent.
fn is_new(kept: &Kept) -> bool {
    kept.cut.index <= FOUNDING.index && kept.range.is_none()
}

/// Whether only a leader sends such a message: a member gets it that the group has, or is about to have.
fn is_from_leader(message: &Message) -> bool {
    use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
    matches!(message.get_msg_type(), MsgAppend | MsgHeartbeat | MsgSnapshot)
}
