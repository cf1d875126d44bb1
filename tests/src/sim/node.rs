//! A node: a host whose loops are turned by hand, on disks and a clock of the simulation.
//!
//! It starts, crashes and starts again; its disks outlive it. It must never know why it crashes, nor who else is there.

use super::clock::{NodeClock, WorldClock};
use super::file_disk::FileDisk;
use super::log_disk::LogDisk;
use super::plan::Setup;
use super::random::Random;
use super::rows;
use super::trace::{SECOND, Time};
use proto::services::{RaftMessage, RaftTransport};
use proto::{GroupId, NodeId};
use replica::simulation::{Loops, holds_lease};
use replica::{Config, Host, Replica, Snapshot};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The group that a simulation is about.
pub const GROUP: GroupId = GroupId(7);

/// The unit of Raft's time.
const TICK: Duration = Duration::from_millis(100);

/// What a node has sent and the network has not yet taken.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<(u64, RaftMessage)>>>);

impl RaftTransport for Outbox {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let mut outbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.extend(messages.into_iter().map(|message| (to.0, message)));
    }
}

/// A node's process.
pub struct Process {
    /// All replicas.
    pub host: Arc<Host>,
    /// What is turned by hand.
    pub loops: Loops,
    /// Told when what replicas are changes.
    pub changed: watch::Receiver<u64>,
    outbox: Outbox,
    /// Whether a disk refused it something, so that it may have stopped.
    pub had_trouble: bool,
}

impl Process {
    /// The replica that the simulation is about, if the node has one.
    pub fn replica(&self) -> Option<Replica> {
        self.host.replica(GROUP)
    }

    /// Whether nothing was sent since.
    pub fn sent_nothing(&self) -> bool {
        self.outbox.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes what was sent.
    pub fn sent(&self) -> Vec<(u64, RaftMessage)> {
        std::mem::take(&mut self.outbox.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A node.
pub struct Node {
    /// Its number.
    pub id: u64,
    /// Its clock.
    pub clock: NodeClock,
    /// Its Raft log.
    pub log: Arc<LogDisk>,
    /// Its databases.
    pub files: FileDisk,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// Counts its processes.
    pub life: u64,
    /// Whether its process isn't given any turn.
    pub paused: bool,
    /// Whether its consensus isn't given any turn.
    pub stalled: bool,
    /// How long its loops wait for a turn at most.
    pub turn_delay: Time,
    /// When its loops' turns come that are decided on.
    pub turn_at: Option<Time>,
    /// The same for its engine.
    pub step_at: Option<Time>,
    /// The same for its images.
    pub images_at: Option<Time>,
    /// The same for its next tick.
    pub tick_at: Option<Time>,
    /// How long it stays down after its next crash.
    pub down_for: Time,
    /// Whether its process dies whenever it has voted for another, and for how long.
    pub dies_voting: Option<Time>,
    /// Whether it's gone for good, with its disks.
    pub gone: bool,
    /// Whether the group's files were lost, and its member wasn't made anew yet.
    pub lost_files: bool,
    /// How long its log needs for a sync at most.
    pub disk_delay: Time,
    /// Until when its consensus waits for its log.
    pub busy_until: Time,
    /// Whether its replica slept when it was last looked at.
    pub asleep: bool,
    /// Readers that are taken.
    pub taken: Vec<Snapshot>,
    root: PathBuf,
    setup: Setup,
    seed: u64,
}

impl Node {
    /// A node whose disks are empty.
    pub fn new(id: u64, root: &Path, world: &WorldClock, setup: Setup, seed: u64) -> Self {
        let mut random = Random::stream(seed, "node", id);
        let root = root.join(id.to_string());
        Self {
            id,
            clock: NodeClock::new(world.clone(), random.within(SECOND..1_000 * SECOND)),
            log: Arc::new(LogDisk::new(root.join("log"))),
            files: FileDisk::new(root.join("0")),
            process: None,
            life: 0,
            paused: false,
            stalled: false,
            turn_delay: setup.turn_delay,
            turn_at: None,
            step_at: None,
            images_at: None,
            tick_at: None,
            down_for: SECOND,
            dies_voting: None,
            gone: false,
            lost_files: false,
            disk_delay: 0,
            busy_until: 0,
            asleep: false,
            taken: Vec::new(),
            root,
            setup,
            seed,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::new(NodeId(self.id), self.files.directory());
        config.tick = TICK;
        config.seed = self.seed;
        config.max_snapshots = self.setup.max_snapshots;
        config.max_writes = self.setup.max_writes;
        config.max_batch_bytes = self.setup.max_batch_bytes;
        config.checkpoint_bytes = self.setup.checkpoint_bytes;
        config.hold_bytes = 2 * self.setup.checkpoint_bytes;
        config.hold_snapshots = Duration::ZERO;
        config.log_keep_bytes = self.setup.log_keep_bytes;
        config.log_cut_entries = 8;
        config.sleep_ticks = self.setup.sleep_ticks;
        config.image_chunk_bytes = 8 << 10;
        config.end_reads_bytes = 8 * self.setup.checkpoint_bytes;
        config
    }

    /// Starts its process. With `founders`, its group is made first.
    pub fn start(&mut self, founders: Option<&[NodeId]>) -> Result<(), String> {
        let outbox = Outbox::default();
        let (host, loops) = replica::simulation::open(
            self.config(),
            self.clock.for_host(),
            self.log.clone(),
            Arc::new(outbox.clone()),
        )
        .map_err(|error| error.to_string())?;
        if let Some(founders) = founders {
            let init: Vec<String> = rows::INIT.iter().map(|sql| (*sql).to_owned()).collect();
            host.create(GROUP, founders, &init).map_err(|error| error.to_string())?;
        }
        let changed = host.changed();
        if self.lost_files && host.replica(GROUP).is_none() {
            // The shard is formed, so who has no files of it must not found it.
            host.note_missing(GROUP);
        }
        self.life += 1;
        (self.busy_until, self.asleep) = (0, false);
        (self.turn_at, self.step_at, self.images_at, self.tick_at) = (None, None, None, None);
        self.process = Some(Process { host, loops, changed, outbox, had_trouble: false });
        Ok(())
    }

    /// Ends its process as a power failure does. Says what its log lost.
    pub fn crash(&mut self, random: &mut Random) -> Result<String, String> {
        self.life += 1;
        self.taken.clear();
        let left = self.root.join(self.life.to_string());
        let before = self.files.directory().to_owned();
        let files = std::mem::replace(&mut self.files, FileDisk::new(self.root.join("none")));
        self.files = files.crash(left, random).map_err(|error| error.to_string())?;
        if let Some(process) = self.process.take() {
            process.loops.crash();
            process.host.shutdown();
        }
        fs::remove_dir_all(before).map_err(|error| error.to_string())?;
        let (unsynced, kept) = self.log.crash(random);
        (self.paused, self.stalled) = (false, false);
        Ok(format!("its log keeps {kept} of {unsynced} unsynced batches"))
    }

    /// Ends its process as it should be.
    pub fn stop(&mut self) {
        self.life += 1;
        self.taken.clear();
        (self.paused, self.stalled) = (false, false);
        if let Some(process) = self.process.take() {
            process.host.shutdown();
        }
    }

    /// Loses the group's files, but not its log. Its process must be down.
    pub fn lose_files(&mut self) -> Result<(), String> {
        let directory = self.files.directory().join("groups").join(GROUP.to_string());
        self.lost_files = true;
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Takes all of its readers, if nobody has taken one yet.
    pub fn take_readers(&mut self, take: impl Fn(&Replica) -> Option<Snapshot>) {
        let Some(replica) = self.replica() else { return };
        while self.taken.len() < self.setup.max_snapshots
            && let Some(snapshot) = take(&replica)
        {
            self.taken.push(snapshot);
        }
    }

    /// Its replica, if it runs and has one.
    pub fn replica(&self) -> Option<Replica> {
        self.process.as_ref()?.replica()
    }

    /// Whether a disk killed its process.
    pub fn has_died(&self) -> bool {
        self.log.has_died() || self.files.has_died()
    }

    /// Whether it says that nobody else can lead.
    pub fn holds_lease(&self) -> bool {
        self.replica().is_some_and(|replica| holds_lease(&replica))
    }
}
