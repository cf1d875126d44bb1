//! A thread for each loop: how a node's loops are turned in production.
//!
//! A thread waits where its loop has nothing to do, and knows nothing else of it. The consensus loop has one for what other
//! nodes send and for its ticks; an engine that has proposed turns it itself, as it would only wait for its entry
//! meanwhile: that spares two changes of threads for each batch.

use super::consensus_loop::{ConsensusLoop, Purge};
use super::drive::Drive;
use super::engine_loop::{EngineLoop, Step};
use super::hashing::{Hashing, TakeHash};
use super::image_loop::ImageLoop;
use super::patient::be_patient;
use crate::clock::Clock;
use crate::error::ReplicaError;
use crate::host::Host;
use crate::log::LogStore;
use parking_lot::Mutex;
use proto::{GroupId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// SQLite's parser and code generator recurse over an expression; the deepest that it accepts must fit.
const STACK_BYTES: usize = 64 << 20;

/// How long who hashes slowly may not notice that it's to end.
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// A thread for each loop of a node.
pub(crate) struct Threads {
    node: NodeId,
    data_dir: PathBuf,
    clock: Clock,
    purger: Mutex<Option<JoinHandle<()>>>,
    hasher: Mutex<Option<Hasher>>,
    hash_rate: u64,
    ending: Arc<AtomicBool>,
    turning: Arc<Turning>,
    consensus: Mutex<Option<JoinHandle<()>>>,
    images: Mutex<Option<JoinHandle<()>>>,
    engines: Mutex<BTreeMap<GroupId, JoinHandle<()>>>,
    /// It ends when its sender is gone.
    upkeep: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

/// The consensus loop, for all that turn it; nothing before it is begun and after its end.
struct Turning {
    clock: Clock,
    consensus: Mutex<Option<ConsensusLoop>>,
}

impl Turning {
    /// Takes its mail. Gives how long it wants no other turn if there is no more mail, unless it has ended.
    fn turn(&self) -> Option<Duration> {
        let mut held = self.consensus.lock();
        let consensus = held.as_mut()?;
        let mail = consensus.mailbox().take();
        if consensus.turn(mail, self.clock.now()).is_break() {
            *held = None;
            return None;
        }
        Some(consensus.next_tick().saturating_sub(self.clock.now()))
    }
}

/// The thread that hashes tables, and how to give it some; nothing ends it.
struct Hasher {
    thread: JoinHandle<()>,
    sender: Sender<Option<Hashing>>,
}

impl Threads {
    /// No thread yet. The directory is named where one can't be started. At most `hash_rate` bytes of tables are hashed
    /// in a second.
    pub fn new(node: NodeId, data_dir: PathBuf, clock: Clock, hash_rate: u64) -> Self {
        Self {
            node,
            data_dir,
            turning: Arc::new(Turning { clock: clock.clone(), consensus: Mutex::default() }),
            clock,
            purger: Mutex::default(),
            hasher: Mutex::default(),
            hash_rate: hash_rate.max(1),
            ending: Arc::default(),
            consensus: Mutex::default(),
            images: Mutex::default(),
            engines: Mutex::default(),
            upkeep: Mutex::default(),
        }
    }

    fn spawn(
        &self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, ReplicaError> {
        thread::Builder::new()
            .name(name)
            .stack_size(STACK_BYTES)
            .spawn(run)
            .map_err(ReplicaError::io(&self.data_dir))
    }

    fn join(&self, thread: Option<JoinHandle<()>>) {
        if let Some(thread) = thread
            // Who lets go of the host last shuts it down, and that may be the upkeep.
            && thread.thread().id() != thread::current().id()
            && let name = thread.thread().name().unwrap_or_default().to_owned()
            && thread.join().is_err()
        {
            tracing::error!(node = self.node.0, "thread {name} had panicked");
        }
    }
}

impl Drive for Threads {
    fn purger(&self, log: Arc<dyn LogStore>) -> Result<Purge, ReplicaError> {
        let (sender, purges) = sync_channel(1);
        let thread = self.spawn(format!("log-purge-{}", self.node), move || {
            let mut last = None;
            while purges.recv().is_ok() {
                let why = log.purge().err().map(|error| error.to_string());
                if let Some(error) = why.as_ref().filter(|_| why != last) {
                    tracing::warn!("the log was not purged: {error}");
                }
                last = why;
            }
        })?;
        *self.purger.lock() = Some(thread);
        Ok(Box::new(move || {
            // If the purger is still at it, once more would change nothing.
            let _ = sender.try_send(());
        }))
    }

    fn hasher(&self) -> Result<TakeHash, ReplicaError> {
        let (sender, hashings) = channel::<Option<Hashing>>();
        let (rate, ending) = (self.hash_rate, self.ending.clone());
        let thread = self.spawn(format!("check-{}", self.node), move || {
            let mut waiting = VecDeque::new();
            loop {
                let next = match waiting.pop_front() {
                    Some(next) => next,
                    None => match hashings.recv() {
                        Ok(Some(next)) => next,
                        Ok(None) | Err(_) => return,
                    },
                };
                let mut pause = |bytes: u64, wanted: &dyn Fn() -> bool| {
                    let mut left = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
                    while !left.is_zero() && wanted() && !ending.load(Ordering::Relaxed) {
                        let nap = left.min(LONGEST_NAP);
                        thread::sleep(nap);
                        left -= nap;
                        // Those that wait hold snapshots, too, and somebody may need them to let go.
                        waiting.extend(hashings.try_iter().flatten());
                        waiting.retain(Hashing::is_wanted);
                    }
                    if ending.load(Ordering::Relaxed) {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                };
                next.run(&mut pause);
                if ending.load(Ordering::Relaxed) {
                    return;
                }
            }
        })?;
        *self.hasher.lock() = Some(Hasher { thread, sender: sender.clone() });
        // At the end there is nobody any more who takes it; dropped, it lets go of its snapshot.
        Ok(Arc::new(move |hashing| drop(sender.send(Some(hashing)))))
    }

    fn consensus(&self, consensus: ConsensusLoop) -> Result<(), ReplicaError> {
        let (mailbox, turning) = (consensus.mailbox().clone(), self.turning.clone());
        *turning.consensus.lock() = Some(consensus);
        let thread = self.spawn(format!("raft-{}", self.node), move || {
            while let Some(patience) = turning.turn() {
                mailbox.wait(patience);
            }
        })?;
        *self.consensus.lock() = Some(thread);
        Ok(())
    }

    fn images(&self, mut images: ImageLoop) -> Result<(), ReplicaError> {
        let clock = self.clock.clone();
        let mailbox = images.mailbox().clone();
        let thread = self.spawn(format!("images-{}", self.node), move || {
            loop {
                let now = clock.now();
                mailbox.wait(images.next_turn(now).saturating_sub(now));
                if images.turn(mailbox.take(), clock.now()).is_break() {
                    return;
                }
            }
        })?;
        *self.images.lock() = Some(thread);
        Ok(())
    }

    fn engine(&self, group: GroupId, mut engine: EngineLoop) -> Result<(), ReplicaError> {
        let turning = self.turning.clone();
        let thread = self.spawn(format!("engine-{group}"), move || {
            be_patient();
            loop {
                match engine.wait_and_step() {
                    Step::Ended => return,
                    Step::Proposed => drop(turning.turn()),
                    Step::Worked | Step::Idle => {}
                }
            }
        })?;
        let before = self.engines.lock().insert(group, thread);
        self.join(before);
        Ok(())
    }

    fn upkeep(&self, every: Duration, host: Weak<Host>) -> Result<(), ReplicaError> {
        let (sender, ended) = channel();
        let thread = self.spawn(format!("upkeep-{}", self.node), move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let Some(host) = host.upgrade() else { return };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| host.revive())) {
                    let error = ReplicaError::panicked("opening what had stopped", panic.as_ref());
                    tracing::error!(node = host.node().0, "{error}");
                }
            }
        })?;
        *self.upkeep.lock() = Some((sender, thread));
        Ok(())
    }

    fn finish_consensus(&self) {
        let threads = [self.consensus.lock().take(), self.purger.lock().take()];
        // The purger ends when the loop is gone that can ask it for something.
        threads.into_iter().for_each(|thread| self.join(thread));
    }

    fn finish_hasher(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let Some(Hasher { thread, sender }) = self.hasher.lock().take() else { return };
        // If it has ended before, it needn't be told.
        let _ = sender.send(None);
        self.join(Some(thread));
    }

    fn finish_images(&self) {
        let thread = self.images.lock().take();
        self.join(thread);
    }

    fn finish_engine(&self, group: GroupId) {
        let thread = self.engines.lock().remove(&group);
        self.join(thread);
    }

    fn finish_upkeep(&self) {
        let upkeep = self.upkeep.lock().take();
        self.join(upkeep.map(|(_, thread)| thread));
    }
}
