//! A host whose loops are turned by hand: clock, log and network come from outside, and nothing happens between turns.
//!
//! The consensus, engine and handles are those of production; what is missing is the threads. Handles' futures wait by
//! tokio's clock, which a simulation pauses. Everything of a host happens in the thread that turns its loops.

use crate::driver::{ConsensusLoop, Drive, EngineLoop, Hashing, ImageLoop, Purge, Step, TakeHash};
use crate::host::Parts;
use crate::packet::Packet;
use crate::{Config, Host, Replica, ReplicaError};
use parking_lot::Mutex;
use proto::GroupId;
use proto::services::{RaftMessage, RaftTransport};
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use crate::clock::Clock;
pub use crate::log::{Batch, Change, Condition, Cut, Kept, LogReader, LogStore, TestDisk};
pub use raft::eraftpb::{Entry, HardState};

/// Opens a host whose loops are turned by [`Loops`].
pub fn open(
    config: Config,
    clock: Clock,
    log: Arc<dyn LogStore>,
    transport: Arc<dyn RaftTransport>,
) -> Result<(Arc<Host>, Loops), ReplicaError> {
    // Whoever holds the WAL can't let go while a loop waits for it.
    let config = Config { hold_snapshots: Duration::ZERO, ..config };
    let hand = Arc::new(Hand { clock: clock.clone(), held: Mutex::default() });
    let host = Host::from_parts(config, Parts { clock, log, transport, drive: hand.clone() })?;
    Ok((host, Loops(hand)))
}

/// Opens the log and the replicas again that have stopped for reasons which have passed, as production does every
/// [`Config::revive_every`].
pub fn revive(host: &Host) {
    host.revive();
}

/// Opens a host as production does, with threads, but with its log on a disk that a test spoils.
pub fn open_on(
    config: Config,
    transport: Arc<dyn RaftTransport>,
    disk: TestDisk,
) -> Result<Arc<Host>, ReplicaError> {
    Host::open_on(config, transport, disk)
}

/// Whether nobody else can lead the replica's group now, as far as it knows.
pub fn holds_lease(replica: &Replica) -> bool {
    replica.shared().holds_lease()
}

/// Whether the replica sleeps, since its group has nothing to do.
pub fn is_asleep(replica: &Replica) -> bool {
    replica.shared().is_asleep()
}

/// Whether a node gives another its vote in this message.
pub fn gives_vote(message: &RaftMessage) -> bool {
    match Packet::decode(message.body.clone()) {
        Ok(Packet::Raft(raft)) => raft.get_msg_type() == MessageType::MsgRequestVoteResponse && !raft.reject,
        _ => false,
    }
}

/// A host's loops.
pub struct Loops(Arc<Hand>);

impl Loops {
    /// When, on the host's clock, its consensus wants a turn even if it has no mail.
    pub fn next_tick(&self) -> Option<Duration> {
        self.0.held.lock().consensus.as_ref().map(ConsensusLoop::next_tick)
    }

    /// Gives consensus a turn with the mail that it has; whether there was any.
    pub fn turn_consensus(&self) -> bool {
        self.0.turn_consensus()
    }

    /// When, on the host's clock, its images want a turn even if they have no mail.
    pub fn next_images(&self) -> Option<Duration> {
        let now = self.0.clock.now();
        self.0.held.lock().images.as_ref().map(|images| images.next_turn(now))
    }

    /// Gives images a turn with the mail that they have: a slice of work. Whether there was mail.
    pub fn turn_images(&self) -> bool {
        self.0.turn_images()
    }

    /// The groups whose engines run.
    pub fn engines(&self) -> Vec<GroupId> {
        self.0.held.lock().engines.keys().copied().collect()
    }

    /// Lets a group's engine do one thing; whether there was one.
    pub fn step_engine(&self, group: GroupId) -> bool {
        matches!(self.0.step_engine(group), Step::Worked | Step::Proposed)
    }

    /// When, on the host's clock, a group's engine wants a step even if nothing has come for it.
    pub fn next_step(&self, group: GroupId) -> Option<Duration> {
        self.0.held.lock().engines.get(&group).and_then(EngineLoop::next_step)
    }

    /// Drops the loops as they are, as a crash does: nothing is ended, answered or written.
    pub fn crash(&self) {
        let held = std::mem::take(&mut *self.0.held.lock());
        drop(held);
    }
}

/// Holds the loops between turns.
struct Hand {
    clock: Clock,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    consensus: Option<ConsensusLoop>,
    images: Option<ImageLoop>,
    engines: BTreeMap<GroupId, EngineLoop>,
}

impl Hand {
    /// A loop is taken out while it's turned: what it calls may come back here.
    fn turn_consensus(&self) -> bool {
        let Some(mut consensus) = self.held.lock().consensus.take() else { return false };
        let mail = consensus.mailbox().take();
        let had_mail = !mail.is_empty();
        if consensus.turn(mail, self.clock.now()).is_continue() {
            self.held.lock().consensus = Some(consensus);
        }
        had_mail
    }

    fn turn_images(&self) -> bool {
        let Some(mut images) = self.held.lock().images.take() else { return false };
        let mail = images.mailbox().take();
        let had_mail = !mail.is_empty();
        if images.turn(mail, self.clock.now()).is_continue() {
            self.held.lock().images = Some(images);
        }
        had_mail
    }

    fn step_engine(&self, group: GroupId) -> Step {
        let Some(mut engine) = self.held.lock().engines.remove(&group) else { return Step::Ended };
        let step = engine.step();
        if step != Step::Ended {
            self.held.lock().engines.insert(group, engine);
        }
        step
    }
}

impl Drive for Hand {
    fn purger(&self, log: Arc<dyn LogStore>) -> Result<Purge, ReplicaError> {
        Ok(Box::new(move || {
            if let Err(error) = log.purge() {
                tracing::warn!("the log was not purged: {error}");
            }
        }))
    }

    fn hasher(&self) -> Result<TakeHash, ReplicaError> {
        Ok(Arc::new(|hashing: Hashing| hashing.run(&mut |_, _| ControlFlow::Continue(()))))
    }

    fn consensus(&self, consensus: ConsensusLoop) -> Result<(), ReplicaError> {
        self.held.lock().consensus = Some(consensus);
        Ok(())
    }

    fn images(&self, images: ImageLoop) -> Result<(), ReplicaError> {
        self.held.lock().images = Some(images);
        Ok(())
    }

    fn engine(&self, group: GroupId, engine: EngineLoop) -> Result<(), ReplicaError> {
        self.held.lock().engines.insert(group, engine);
        Ok(())
    }

    fn upkeep(&self, _: Duration, _: Weak<Host>) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn finish_upkeep(&self) {}

    fn finish_consensus(&self) {
        self.turn_consensus();
    }

    fn finish_hasher(&self) {}

    fn finish_images(&self) {
        self.turn_images();
    }

    fn finish_engine(&self, group: GroupId) {
        while matches!(self.step_engine(group), Step::Worked | Step::Proposed) {}
    }
}
