//! A thread for each loop: how a node's loops are turned in production.
//!
//! A thread waits where its loop has nothing to do, and knows nothing else of it.

use super::consensus_loop::{ConsensusLoop, Purge};
use super::drive::Drive;
use super::engine_loop::{EngineLoop, Step};
use crate::clock::Clock;
use crate::error::ReplicaError;
use crate::log::LogStore;
use parking_lot::Mutex;
use proto::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

/// SQLite's parser and code generator recurse over an expression; the deepest that it accepts must fit.
const STACK_BYTES: usize = 64 << 20;

/// A thread for each loop of a node.
pub(crate) struct Threads {
    node: NodeId,
    data_dir: PathBuf,
    clock: Clock,
    purger: Mutex<Option<JoinHandle<()>>>,
    consensus: Mutex<Option<JoinHandle<()>>>,
    engines: Mutex<BTreeMap<GroupId, JoinHandle<()>>>,
}

impl Threads {
    /// No thread yet. The directory is named where one can't be started.
    pub fn new(node: NodeId, data_dir: PathBuf, clock: Clock) -> Self {
        let (purger, consensus, engines) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { node, data_dir, clock, purger, consensus, engines }
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
            while purges.recv().is_ok() {
                if let Err(error) = log.purge() {
                    tracing::warn!("the log was not purged: {error}");
                }
            }
        })?;
        *self.purger.lock() = Some(thread);
        Ok(Box::new(move || {
            // If the purger is still at it, once more would change nothing.
            let _ = sender.try_send(());
        }))
    }

    fn consensus(&self, mut consensus: ConsensusLoop) -> Result<(), ReplicaError> {
        let clock = self.clock.clone();
        let mailbox = consensus.mailbox().clone();
        let thread = self.spawn(format!("raft-{}", self.node), move || {
            loop {
                let mail = mailbox.wait_and_take(consensus.next_tick().saturating_sub(clock.now()));
                if consensus.turn(mail, clock.now()).is_break() {
                    return;
                }
            }
        })?;
        *self.consensus.lock() = Some(thread);
        Ok(())
    }

    fn engine(&self, group: GroupId, mut engine: EngineLoop) -> Result<(), ReplicaError> {
        let thread =
            self.spawn(format!("engine-{group}"), move || while engine.wait_and_step() != Step::Ended {})?;
        let before = self.engines.lock().insert(group, thread);
        self.join(before);
        Ok(())
    }

    fn finish_consensus(&self) {
        let threads = [self.consensus.lock().take(), self.purger.lock().take()];
        // The purger ends when the loop is gone that can ask it for something.
        threads.into_iter().for_each(|thread| self.join(thread));
    }

    fn finish_engine(&self, group: GroupId) {
        let thread = self.engines.lock().remove(&group);
        self.join(thread);
    }
}
