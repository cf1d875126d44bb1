//! What a replica's handles and its loops share.

use super::changing::members;
use super::image_loop::{ImageMail, ImageMailbox};
use super::inbox::{Closing, Inbox};
use super::mailbox::{Mail, Mailbox};
use crate::clock::Clock;
use crate::consensus::Standing;
use crate::error::ReplicaError;
use crate::fault;
use crate::log::LogStore;
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::readers::{Reader, Readers};
use parking_lot::{Condvar, Mutex, MutexGuard};
use proto::services::{LogHold, Progress, ReplicaRole, ReplicaStatus, TableHash};
use proto::{GroupId, LogIndex, NodeId, Retry, SqlState, Term, WireError};
use raft::StateRole;
use raft::eraftpb::ConfState;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::watch;

const NOT_LEADING: u64 = u64::MAX;
const NOT_HELD: u64 = u64::MAX;

/// Who has applied the index has everything that was acknowledged before this time, on its own node's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    pub since: Duration,
    pub index: u64,
}

/// Somebody waits for an index. Dropped, nobody waits for one that may never come; who waits for the same has it a tick
/// later at most.
pub(crate) struct Awaiting<'a> {
    awaited: &'a AtomicU64,
    index: u64,
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        // If it isn't what is awaited, somebody waits for more.
        let _ = self.awaited.compare_exchange(self.index, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Somebody follows each entry as it comes: as long as this is there, a follower applies what is committed at once, and
/// not only what somebody waits for.
#[must_use = "it ends when it is dropped"]
pub struct Closely(Arc<AtomicUsize>);

impl Drop for Closely {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What all replicas of a node share.
#[derive(Clone)]
pub(crate) struct Common {
    pub node: NodeId,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub mailbox: Arc<Mailbox>,
    pub images: Arc<ImageMailbox>,
    /// Handles may outlive the host, and must not keep its log open.
    pub log: Weak<dyn LogStore>,
    /// Counts the changes of role, leader, term or health of all the node's replicas.
    pub changes: Arc<watch::Sender<u64>>,
    /// A leader that is well is heard of within this time.
    pub silence: Duration,
}

/// What a replica's handles and its loops share.
pub(crate) struct Shared {
    pub node: NodeId,
    pub group: GroupId,
    /// Which member of the group it is; nothing if nobody knows.
    pub peer: Option<Peer>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub mailbox: Arc<Mailbox>,
    pub images: Arc<ImageMailbox>,
    /// The node's log, until the host is shut down.
    pub log: Weak<dyn LogStore>,
    /// Where the group's files are.
    pub directory: PathBuf,
    pub readers: Readers,
    pub writes: Arc<Semaphore>,
    /// What the handles are told. It outlives this life of the replica.
    pub status: Arc<watch::Sender<ReplicaStatus>>,
    /// Whether the replica has begun another life, so that this one tells nothing any more.
    retired: AtomicBool,
    /// Whether the replica was removed and consensus has let go of it, and whether its engine loop has ended.
    forgotten: AtomicBool,
    over: AtomicBool,
    /// Whether what stopped it can pass.
    can_pass: AtomicBool,
    /// What kind of thing stopped it.
    stop_cause: Mutex<Option<&'static str>>,
    /// Whether what stopped it was a failed sync.
    lost_a_sync: AtomicBool,
    /// Counts the changes of role, leader, term or health of all the node's replicas.
    changes: Arc<watch::Sender<u64>>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// What the database has. Written by the engine loop.
    applied: AtomicU64,
    /// The highest index that a reader has waited for.
    awaited: AtomicU64,
    /// How many follow each entry. It outlives this life of the replica.
    close: Arc<AtomicUsize>,
    /// What the log may forget. Written by the engine loop.
    forgettable: AtomicU64,
    /// What every voter's log has. Written by the consensus loop.
    floor: AtomicU64,
    /// The first entry of the term that this replica leads in. Written by the consensus loop.
    first: AtomicU64,
    /// The node that is about to lead, for this one has handed leadership over; 0 if there is none.
    successor: AtomicU64,
    /// Until when, on the node's clock in nanoseconds, nobody else can lead. Written by the consensus loop.
    lease: AtomicU64,
    /// Whether a strong read came since the lease was last renewed.
    lease_used: AtomicBool,
    /// Written by the engine loop.
    last_check: AtomicU64,
    /// Written by the consensus loop.
    fresh: Mutex<Option<Fresh>>,
    /// The log is needed after this index for images. Written by the image loop.
    image_hold: AtomicU64,
    /// Whether an image of the database is being made. Written by the image loop.
    copied: AtomicBool,
    /// How many copies of it are being made for callers.
    copies: AtomicUsize,
    /// Whether the replica sleeps. Written by the consensus loop.
    asleep: AtomicBool,
    /// When, on the node's clock in nanoseconds, a leader was last heard of. Written by the consensus loop.
    heard: AtomicU64,
    silence: Duration,
    /// Writes that have changed something. Written by the engine loop.
    written: AtomicU64,
}

impl Shared {
    pub fn new(common: Common, group: GroupId, readers: Readers, max_writes: usize, applied: u64) -> Self {
        let Common { node, clock, metrics, mailbox, images, log, changes, silence } = common;
        let status = ReplicaStatus { applied: LogIndex(applied), ..ReplicaStatus::new(node, group) };
        let heard = clock.nanos();
        Self {
            node,
            group,
            peer: None,
            clock,
            metrics,
            mailbox,
            images,
            log,
            directory: readers.directory().to_owned(),
            readers,
            writes: Arc::new(Semaphore::new(max_writes)),
            status: Arc::new(watch::Sender::new(status)),
            retired: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            over: AtomicBool::new(false),
            can_pass: AtomicBool::new(false),
            stop_cause: Mutex::default(),
            lost_a_sync: AtomicBool::new(false),
            changes,
            inbox: Mutex::new(Inbox::new(applied)),
            arrived: Condvar::new(),
            applied: AtomicU64::new(applied),
            awaited: AtomicU64::new(0),
            close: Arc::default(),
            forgettable: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            first: AtomicU64::new(NOT_LEADING),
            successor: AtomicU64::new(0),
            lease: AtomicU64::new(0),
            lease_used: AtomicBool::new(false),
            last_check: AtomicU64::new(0),
            fresh: Mutex::default(),
            image_hold: AtomicU64::new(NOT_HELD),
            copied: AtomicBool::new(false),
            copies: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            heard: AtomicU64::new(heard),
            silence,
            written: AtomicU64::new(0),
        }
    }

    /// The replica begins another life in `self`: the handles of the one `before` go on with this one.
    pub fn succeed(&mut self, before: &Shared) {
        let applied = LogIndex(self.applied());
        self.status = before.status.clone();
        self.writes = before.writes.clone();
        self.close = before.close.clone();
        self.status.send_modify(|status| {
            before.retired.store(true, Ordering::Relaxed);
            *status = ReplicaStatus { applied, ..ReplicaStatus::new(self.node, self.group) };
        });
    }

    /// Changes what the handles are told, unless that's another life's affair.
    fn tell(&self, change: impl FnOnce(&mut ReplicaStatus)) {
        self.status.send_if_modified(|status| {
            let tell = !self.retired.load(Ordering::Relaxed);
            if tell {
                change(status);
            }
            tell
        });
    }

    /// The engine's inbox.
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock()
    }

    /// Wakes who waits for the engine's inbox.
    pub fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Lets go of the inbox until [`Self::wake`].
    pub fn wait(&self, inbox: &mut MutexGuard<'_, Inbox>, most: Option<Duration>) {
        match most {
            Some(most) => drop(self.arrived.wait_for(inbox, most)),
            None => self.arrived.wait(inbox),
        }
    }

    /// What the database has.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The database has this now, and the log may forget that.
    pub fn set_applied(&self, applied: u64, forgettable: u64) {
        self.forgettable.store(forgettable, Ordering::Release);
        if self.applied.swap(applied, Ordering::AcqRel) != applied {
            self.tell(|status| status.applied = LogIndex(applied));
        }
    }

    /// The database's file and its WAL are so long now.
    pub fn set_sizes(&self, bytes: u64, wal_bytes: u64) {
        self.status.send_if_modified(|status| {
            if !self.retired.load(Ordering::Relaxed) {
                (status.bytes, status.wal_bytes) = (bytes, wal_bytes);
            }
            // Who waits for something else isn't woken for this.
            false
        });
    }

    /// So many writes have changed something.
    pub fn count_writes(&self, writes: usize) {
        self.written.fetch_add(writes as u64, Ordering::Relaxed);
    }

    /// How many writes have changed something while this one led, and how many snapshots were opened.
    pub fn counts(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.readers.opened())
    }

    /// A reader waits until the database has this, or drops what it is given.
    pub fn await_applied(&self, index: u64) -> Awaiting<'_> {
        self.awaited.fetch_max(index, Ordering::SeqCst);
        self.apply_now();
        Awaiting { awaited: &self.awaited, index }
    }

    /// Somebody follows each entry, until what is given is dropped.
    pub fn follow_closely(&self) -> Closely {
        self.close.fetch_add(1, Ordering::SeqCst);
        self.apply_now();
        Closely(self.close.clone())
    }

    /// Has applied what is committed, if it waits for more.
    pub fn apply_now(&self) {
        self.inbox().due = true;
        self.wake();
    }

    /// Whether somebody waits for what the database hasn't yet.
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::SeqCst) > self.applied() || self.close.load(Ordering::SeqCst) > 0
    }

    /// The index of the last check that was applied.
    pub fn last_check(&self) -> u64 {
        self.last_check.load(Ordering::Acquire)
    }

    /// Sets [`Self::last_check`].
    pub fn set_last_check(&self, index: u64) {
        self.last_check.store(index, Ordering::Release);
    }

    /// A check's result. An older one than is known isn't told.
    pub fn set_check(&self, check: TableHash) {
        self.status.send_if_modified(|status| {
            let newer = !self.retired.load(Ordering::Relaxed)
                && status.check.is_none_or(|known| known.index < check.index);
            if newer {
                status.check = Some(check);
            }
            newer
        });
    }

    /// Publishes who has the log kept from where on. How much that is comes with the next tick.
    pub fn set_holds(&self, holds: &BTreeMap<String, u64>) {
        self.tell(|status| {
            let known = std::mem::take(&mut status.holds);
            let hold = |(name, from): (&String, &u64)| {
                let known = known.iter().find(|known| known.name == *name);
                let bytes = known.map_or(0, |known| known.bytes);
                LogHold { name: name.clone(), from: LogIndex(*from), bytes }
            };
            status.holds = holds.iter().map(hold).collect();
        });
    }

    /// What the log may forget.
    pub fn forgettable(&self) -> u64 {
        self.forgettable.load(Ordering::Acquire)
    }

    /// After which index images need the log. To be asked after [`Self::forgettable`]: a hold that is set later is at or
    /// after what was forgettable before.
    pub fn image_hold(&self) -> Option<u64> {
        Some(self.image_hold.load(Ordering::SeqCst)).filter(|hold| *hold != NOT_HELD)
    }

    /// Sets [`Self::image_hold`].
    pub fn set_image_hold(&self, hold: Option<u64>) {
        self.image_hold.store(hold.unwrap_or(NOT_HELD), Ordering::SeqCst);
    }

    /// Whether the database is being copied, so that the WAL can't be emptied whatever is tried.
    pub fn is_copied(&self) -> bool {
        self.copied.load(Ordering::Relaxed) || self.copies.load(Ordering::Relaxed) > 0
    }

    /// A copy for a caller is begun.
    pub fn begin_copy(&self) {
        self.copies.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn end_copy(&self) {
        self.copies.fetch_sub(1, Ordering::Relaxed);
    }

    /// Says whether an image is being made.
    pub fn set_copied(&self, copied: bool) {
        self.copied.store(copied, Ordering::Relaxed);
    }

    /// Publishes how much of an image has arrived, and of how much.
    pub fn set_image_progress(&self, progress: Option<(u64, u64)>) {
        let image = progress.map(|(done, total)| Progress { done, total });
        self.status.send_if_modified(|status| std::mem::replace(&mut status.image, image) != image);
    }

    /// What every voter's log has, as far as a leader knows.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }

    /// Sets [`Self::floor`].
    pub fn set_floor(&self, floor: u64) {
        self.floor.store(floor, Ordering::Release);
    }

    /// Whether this replica leads and has applied all that earlier leaders committed.
    pub fn is_serving(&self) -> bool {
        self.applied() >= self.first.load(Ordering::Acquire)
    }

    /// Whether it leads, as far as it knows.
    pub fn is_leading(&self) -> bool {
        self.first.load(Ordering::Acquire) != NOT_LEADING
    }

    /// Which term it serves in, told by that term's first entry.
    pub fn office(&self) -> Option<u64> {
        let first = self.first.load(Ordering::Acquire);
        (self.applied() >= first).then_some(first)
    }

    /// Whether nobody else can lead now, so that this replica's committed state is the group's.
    pub fn holds_lease(&self) -> bool {
        // The lease first: a later office's lease is never taken for one of an earlier office.
        self.clock.nanos() < self.lease.load(Ordering::Acquire) && self.is_serving()
    }

    /// Says that leases are of use here.
    pub fn use_lease(&self) {
        if !self.lease_used.load(Ordering::Relaxed) {
            self.lease_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the lease was used since the last call.
    pub fn take_lease_use(&self) -> bool {
        self.lease_used.swap(false, Ordering::Relaxed)
    }

    /// What is known of how fresh this follower is.
    pub fn fresh(&self) -> Option<Fresh> {
        *self.fresh.lock()
    }

    /// Sets [`Self::fresh`].
    pub fn set_fresh(&self, fresh: Fresh) {
        *self.fresh.lock() = Some(fresh);
    }

    /// Extends the lease.
    pub fn renew_lease(&self, until: Duration) {
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.lease.fetch_max(until, Ordering::AcqRel);
    }

    /// Ends the lease.
    pub fn end_lease(&self) {
        self.lease.store(0, Ordering::Release);
    }

    /// A leader was heard of then.
    pub fn set_heard(&self, heard: Duration) {
        self.heard.fetch_max(u64::try_from(heard.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What is known to be committed, and since when the database has been behind of it, or may have been for all that it
    /// hears.
    pub fn progress(&self) -> (LogIndex, Duration) {
        let now = self.clock.now();
        let (committed, oldest) = {
            let mut inbox = self.inbox();
            inbox.arrivals.forget(self.applied());
            (inbox.committed, inbox.arrivals.oldest())
        };
        let lies = oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest));
        let unheard = match self.is_leading() {
            true => Duration::ZERO,
            false => now.saturating_sub(Duration::from_nanos(self.heard.load(Ordering::Relaxed))),
        };
        let unheard = if unheard > self.silence { unheard } else { Duration::ZERO };
        (LogIndex(committed), lies.max(unheard))
    }

    /// Whether the replica sleeps.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Acquire)
    }

    /// Sets [`Self::is_asleep`].
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Release);
    }

    /// Publishes what this replica is in its group.
    pub fn set_standing(&self, standing: Standing) {
        // One that has stopped leads no more, whatever consensus doesn't know yet.
        let inbox = self.inbox();
        if inbox.closing.is_some() {
            return;
        }
        if self.is_leading() {
            // It has heard of itself until now.
            self.set_heard(self.clock.now());
        }
        self.end_lease();
        self.first.store(standing.first.unwrap_or(NOT_LEADING), Ordering::Release);
        self.successor.store(standing.successor.map_or(0, |node| node.0), Ordering::Release);
        let role = match standing.role {
            StateRole::Leader => ReplicaRole::Leader,
            StateRole::Follower if standing.learner => ReplicaRole::Learner,
            StateRole::Follower => ReplicaRole::Follower,
            StateRole::Candidate | StateRole::PreCandidate => ReplicaRole::Candidate,
        };
        self.tell(|status| {
            status.role = role;
            status.term = Term(standing.term);
            status.leader = standing.leader;
            // It runs, but as long as it isn't rebuilt there is nothing that it can do.
            let gone = || ReplicaStatus::FILES_GONE.to_owned();
            if standing.files_gone {
                status.stopped.get_or_insert_with(gone);
            } else {
                status.stopped.take_if(|why| *why == gone());
            }
        });
        drop(inbox);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Publishes who is in the group.
    pub fn set_members(&self, conf_state: &ConfState) {
        self.tell(|status| status.members = members(conf_state));
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Publishes how far the log goes, how many bytes lie at an index of it and after, and of a leader, what each other
    /// member has of it.
    pub fn set_progress(&self, last: u64, bytes_from: impl Fn(u64) -> u64, matched: Vec<(NodeId, u64)>) {
        let lag: Vec<(NodeId, LogIndex)> =
            matched.into_iter().map(|(node, index)| (node, LogIndex(index))).collect();
        self.status.send_if_modified(|status| {
            if self.retired.load(Ordering::Relaxed) {
                return false;
            }
            // Who waits for something else isn't woken for this.
            status.holds.iter_mut().for_each(|hold| hold.bytes = bytes_from(hold.from.0));
            if status.last.0 == last && status.lag == lag {
                return false;
            }
            status.last = LogIndex(last);
            status.lag = lag;
            true
        });
    }

    /// Stops the replica: what waits and what comes is answered with `why`. The node goes on. The first reason stays.
    pub fn stop(&self, why: &ReplicaError) {
        let message = why.to_string();
        // Whoever waits is answered by the engine loop, which sees that it's over no sooner than everyone else can.
        let mut inbox = self.inbox();
        if inbox.closing.is_some() {
            return;
        }
        inbox.closing = Some(Closing::Stopped(message.clone()));
        self.lost_a_sync.store(why.is_failed_sync(), Ordering::Release);
        self.can_pass.store(why.can_pass(), Ordering::Release);
        *self.stop_cause.lock() = Some(why.cause());
        self.end_lease();
        self.first.store(NOT_LEADING, Ordering::Release);
        self.readers.close();
        self.tell(|status| {
            status.role = ReplicaRole::Follower;
            status.leader = None;
            status.stopped = Some(message.clone());
        });
        drop(inbox);
        self.metrics.stops.with_label_values(&[&self.group.to_string(), why.cause()]).inc();
        tracing::error!(node = self.node.0, group = self.group.0, "the replica stops: {message}");
        self.changes.send_modify(|changes| *changes += 1);
        self.wake();
        self.images.send(ImageMail::Remove { group: self.group });
        self.mailbox.send(Mail::Remove { group: self.group });
    }

    /// Stops the replica if what this reader met is the fault of the replica's own files; says whether it did.
    pub fn stop_for(&self, reader: &Reader) -> bool {
        if !self.readers.is_current(reader) {
            return false;
        }
        let fault = fault::met_by_reader(&reader.connection);
        let stops = fault.map(|source| ReplicaError::Sqlite { path: self.readers.path().to_owned(), source });
        stops.inspect(|why| self.stop(why)).is_some()
    }

    /// Takes a reader back, and looks at what it met.
    pub fn give_back(&self, reader: Reader) {
        self.stop_for(&reader);
        self.readers.give_back(reader);
    }

    /// The replica was removed, and the log has nothing of it any more.
    pub fn forget(&self) {
        self.end_lease();
        self.first.store(NOT_LEADING, Ordering::Release);
        self.readers.close();
        self.images.send(ImageMail::Remove { group: self.group });
        self.inbox().closing.get_or_insert(Closing::Removed);
        self.forgotten.store(true, Ordering::Release);
        self.tell(|status| status.leader = None);
        self.wake();
    }

    /// Whether consensus has let go of the removed replica.
    pub fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    /// The engine loop has ended, or never began.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether the engine loop has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether its loops have ended, or are about to.
    pub fn has_stopped(&self) -> bool {
        self.inbox().closing.is_some()
    }

    /// Whether it stopped for a reason that can pass.
    pub fn can_be_revived(&self) -> bool {
        self.can_pass.load(Ordering::Acquire)
    }

    /// What kind of thing stopped it, if it has.
    pub fn stop_cause(&self) -> Option<&'static str> {
        *self.stop_cause.lock()
    }

    /// Whether a sync of its database's files failed: what the kernel shows of them need not be on the disk.
    pub fn lost_a_sync(&self) -> bool {
        self.lost_a_sync.load(Ordering::Acquire)
    }

    /// It was tried to begin another life, in vain.
    pub fn still_stopped(&self, why: &ReplicaError) {
        let message = why.to_string();
        self.can_pass.store(why.can_pass(), Ordering::Release);
        *self.stop_cause.lock() = Some(why.cause());
        if self.status.borrow().stopped.as_ref() != Some(&message) {
            tracing::error!(
                node = self.node.0,
                group = self.group.0,
                "the replica can't be revived: {message}"
            );
            self.tell(|status| status.stopped = Some(message));
        }
    }

    /// Ends the engine loop for the node's end.
    pub fn close_for_shutdown(&self) {
        self.inbox().closing.get_or_insert(Closing::ShutDown);
        self.wake();
    }

    /// What a caller hears who came to the wrong replica. Nothing was executed.
    pub fn not_leader(&self) -> WireError {
        let (leader, stopped) = {
            let status = self.status.borrow();
            (status.leader.filter(|leader| *leader != self.node), status.stopped.clone())
        };
        let message = match (stopped, leader) {
            (Some(why), _) => {
                format!("the replica of group {} on node {} has stopped: {why}", self.group, self.node)
            }
            (None, Some(leader)) => format!("group {} is led by node {leader}", self.group),
            (None, None) => format!("group {} has no leader that node {} knows", self.group, self.node),
        };
        let successor = Some(NodeId(self.successor.load(Ordering::Acquire))).filter(|node| node.0 != 0);
        WireError::new(SqlState::CANNOT_CONNECT_NOW, message)
            .with_retry(Retry::NotLeader(leader.or(successor)))
    }
}
