//! All replicas of one node.

use crate::clock::Clock;
use crate::config::Config;
use crate::consensus::{Consensus, FOUNDING, Settings, Store};
use crate::driver::{
    Common, ConsensusLoop, Drive, EngineLoop, ImageLoop, ImageMail, ImageMailbox, Lag, Mail, Mailbox, Pace,
    Patience, Shared, TakeHash, Threads,
};
use crate::engine::{Engine, Limits};
use crate::error::ReplicaError;
use crate::founding;
use crate::hosted::OnDisk;
use crate::image;
use crate::log::{self, Batch, LogStore, RaftEngineLog, TestDisk};
use crate::metrics::Metrics;
use crate::packet::Packet;
use crate::peer::Peer;
use crate::readers::Readers;
use crate::replica::Replica;
use crate::revive::Tries;
use parking_lot::{Mutex, MutexGuard};
use proto::services::{RaftMessage, RaftService, RaftTransport, ReplicaStatus};
use proto::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// How many results of one router's requests are remembered, and how many bytes of them. A router has far fewer under
/// way at once, so only those are beyond it that it should have settled long ago.
const REMEMBER_ROWS: u64 = 1 << 14;
const REMEMBER_BYTES: u64 = 64 << 20;

/// All replicas of one node: one consensus loop and one shared log, and an engine loop for each replica.
pub struct Host {
    config: Config,
    common: Common,
    /// `None` once the host is shut down.
    running: Mutex<Option<Running>>,
    groups: Mutex<BTreeMap<GroupId, Replica>>,
    /// Replicas that were removed and whose files are still there. Locked after the groups.
    going: Mutex<BTreeMap<GroupId, Replica>>,
    /// Why replicas can't be made, as it was last told.
    complaints: Mutex<BTreeMap<GroupId, String>>,
    /// How often replicas were revived of late.
    tries: Mutex<BTreeMap<GroupId, Tries>>,
}

/// What a host is put together from.
pub(crate) struct Parts {
    pub clock: Clock,
    pub log: Arc<dyn LogStore>,
    pub transport: Arc<dyn RaftTransport>,
    pub drive: Arc<dyn Drive>,
}

struct Running {
    log: Arc<dyn LogStore>,
    hasher: TakeHash,
    drive: Arc<dyn Drive>,
}

impl Host {
    /// Opens the node's log and every replica found on disk. Messages to other nodes go out through `transport`;
    /// those for this node come in through [`RaftService::receive`]. A replica that can't be opened is there as a
    /// stopped one, whose status says why.
    pub fn open(config: Config, transport: Arc<dyn RaftTransport>) -> Result<Arc<Host>, ReplicaError> {
        Self::open_on(config, transport, TestDisk::default())
    }

    /// As [`Self::open`], with the log on a disk that a test spoils.
    pub(crate) fn open_on(
        config: Config,
        transport: Arc<dyn RaftTransport>,
        disk: TestDisk,
    ) -> Result<Arc<Host>, ReplicaError> {
        fs::create_dir_all(&config.data_dir).map_err(ReplicaError::io(&config.data_dir))?;
        let clock = Clock::machine();
        let path = config.data_dir.join("log");
        let log = Arc::new(RaftEngineLog::open_on(&path, config.log_file_bytes, disk)?);
        let threads =
            Threads::new(config.node, config.data_dir.clone(), clock.clone(), config.check_bytes_per_second);
        let drive = Arc::new(threads);
        Self::from_parts(config, Parts { clock, log, transport, drive })
    }

    /// Opens every replica found on disk, with loops that `drive` turns.
    pub(crate) fn from_parts(config: Config, parts: Parts) -> Result<Arc<Host>, ReplicaError> {
        Peer::check_node(config.node)?;
        if config.heartbeat_ticks == 0 || config.election_ticks <= config.heartbeat_ticks {
            return Err(ReplicaError::Invalid(
                "election_ticks must be more than heartbeat_ticks, and that not 0".into(),
            ));
        }
        let Parts { clock, log, transport, drive } = parts;
        let groups_dir = config.data_dir.join("groups");
        fs::create_dir_all(&groups_dir).map_err(ReplicaError::io(&groups_dir))?;
        let mailbox = Arc::new(Mailbox::default());
        let purge = drive.purger(log.clone())?;
        let hasher = drive.hasher()?;
        let metrics = Arc::new(Metrics::new(clock.clone()));
        let images = Arc::new(ImageMailbox::default());
        let settings = image::Settings {
            chunk_bytes: config.image_chunk_bytes.clamp(1, image::MOST_CHUNK_BYTES),
            window: image::WINDOW,
            bytes_per_second: config.image_bytes_per_second,
            patience: config.tick * config.election_ticks,
        };
        drive.images(ImageLoop::new(
            images.clone(),
            transport.clone(),
            settings,
            metrics.clone(),
            clock.now(),
        ))?;
        let pace = Pace {
            tick: config.tick,
            heartbeat_ticks: config.heartbeat_ticks,
            sleep_ticks: config.sleep_ticks,
            check_every: config.check_every,
        };
        let consensus = ConsensusLoop::new(
            mailbox.clone(),
            log.clone(),
            transport,
            pace,
            metrics.clone(),
            clock.now(),
            purge,
        );
        drive.consensus(consensus)?;
        let node = config.node;
        let silence = 2 * config.heartbeat_ticks * config.tick;
        let host = Host {
            config,
            common: Common {
                node,
                clock,
                metrics,
                mailbox,
                images,
                log: Arc::downgrade(&log),
                changes: Arc::default(),
                silence,
            },
            running: Mutex::new(Some(Running { log: log.clone(), hasher, drive })),
            groups: Mutex::new(BTreeMap::new()),
            going: Mutex::new(BTreeMap::new()),
            complaints: Mutex::new(BTreeMap::new()),
            tries: Mutex::new(BTreeMap::new()),
        };
        for group in host.groups_on_disk(&groups_dir)? {
            let mut groups = host.groups.lock();
            let started = match host.on_disk(group, log.as_ref()) {
                Ok(OnDisk::Nothing) => continue,
                Ok(OnDisk::Database(engine) | OnDisk::Blank(engine)) => host.start(group, *engine, None),
                Err(error) => Err(error),
            };
            let replica = started.unwrap_or_else(|error| {
                let peer = host.known_peer(group, log.as_ref());
                host.stopped(group, peer, &error)
            });
            groups.insert(group, replica);
        }
        let host = Arc::new(host);
        if let Some((_, drive)) = host.log_and_drive() {
            drive.upkeep(host.config.revive_every, Arc::downgrade(&host))?;
        }
        Ok(host)
    }

    /// This node.
    pub(crate) fn node(&self) -> NodeId {
        self.config.node
    }

    /// What the loops stand on; nothing once the host is shut down.
    pub(crate) fn log_and_drive(&self) -> Option<(Arc<dyn LogStore>, Arc<dyn Drive>)> {
        self.running.lock().as_ref().map(|running| (running.log.clone(), running.drive.clone()))
    }

    pub(crate) fn going(&self) -> &Mutex<BTreeMap<GroupId, Replica>> {
        &self.going
    }

    /// Why replicas can't be made, as it was last told.
    pub(crate) fn complaints(&self) -> &Mutex<BTreeMap<GroupId, String>> {
        &self.complaints
    }

    /// How often replicas were revived of late.
    pub(crate) fn tries(&self) -> &Mutex<BTreeMap<GroupId, Tries>> {
        &self.tries
    }

    pub(crate) fn counted(&self) -> &Metrics {
        &self.common.metrics
    }

    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.common.mailbox
    }

    /// Tells those who follow [`Self::changed`].
    pub(crate) fn note_change(&self) {
        self.common.changes.send_modify(|changes| *changes += 1);
    }

    /// The replicas. While they're locked, none is made, replaced or removed.
    pub(crate) fn lock_groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Replica>> {
        self.groups.lock()
    }

    fn groups_on_disk(&self, directory: &Path) -> Result<Vec<GroupId>, ReplicaError> {
        let entries = fs::read_dir(directory).and_then(|entries| {
            entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>, std::io::Error>>()
        });
        let entries = entries.map_err(ReplicaError::io(directory))?;
        self.discard_leftovers(&entries)?;
        let number = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
        let mut found: Vec<GroupId> = entries.iter().filter_map(number).map(GroupId).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// A place for files of a caller's, on the disk that the groups' files are on. What is there is no matter of the host's.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.config.data_dir.join(name)
    }

    pub(crate) fn directory(&self, group: GroupId) -> PathBuf {
        self.config.data_dir.join("groups").join(group.to_string())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            transaction_bytes: self.config.max_transaction_bytes,
            staged_bytes: self.config.max_staged_bytes,
            batch_bytes: self.config.max_batch_bytes,
            checkpoint_bytes: self.config.checkpoint_bytes,
            hold_bytes: self.config.hold_bytes,
            end_bytes: self.config.end_reads_bytes,
            remember_for: self.config.remember_requests,
            remember_rows: REMEMBER_ROWS,
            remember_bytes: REMEMBER_BYTES,
        }
    }

    fn shared(
        &self,
        group: GroupId,
        peer: Option<Peer>,
        applied: u64,
        before: Option<&Replica>,
    ) -> Arc<Shared> {
        let database = Engine::database(&self.directory(group));
        let readers = Readers::new(database, self.config.max_snapshots, self.common.clock.clone());
        let max_writes = self.config.max_writes;
        let mut shared = Shared::new(self.common.clone(), group, readers, max_writes, applied);
        shared.peer = peer;
        if let Some(before) = before {
            shared.succeed(&before.shared());
        }
        Arc::new(shared)
    }

    /// Opens the group's database, with the image in its place that was received last.
    pub(crate) fn open_engine(
        &self,
        group: GroupId,
        log: &dyn LogStore,
    ) -> Result<Option<Engine>, ReplicaError> {
        let directory = self.directory(group);
        image::install::finish(&directory, group.0, log)?;
        Engine::open(&directory, self.limits())
    }

    /// Gives an engine its consensus and has both turned. The handles of the replica that was there `before` go on with
    /// this one.
    pub(crate) fn start(
        &self,
        group: GroupId,
        engine: Engine,
        before: Option<&Replica>,
    ) -> Result<Replica, ReplicaError> {
        let running = self.running.lock();
        let running = running.as_ref().ok_or(ReplicaError::ShutDown)?;
        let applied = engine.applied();
        let found = log::find(running.log.as_ref(), group.0, applied)?;
        let store = Store::new(group.0, running.log.clone(), found, engine.conf_state().clone());
        let peer = self.peer(running.log.as_ref(), group)?;
        let settings = Settings {
            peer,
            group: group.0,
            tick: self.config.tick,
            election_ticks: self.config.election_ticks,
            heartbeat_ticks: self.config.heartbeat_ticks,
            seed: self.config.seed,
            log_keep_bytes: self.config.log_keep_bytes,
            log_cut_entries: self.config.log_cut_entries,
        };
        let consensus = Consensus::new(settings, store, applied, self.common.clock.now())?;
        let shared = self.shared(group, Some(peer), applied, before);
        let patience = Patience { hold: self.config.hold_snapshots, age: self.config.end_reads_after };
        let seed = self.config.seed ^ (self.config.node.0 << 32) ^ group.0;
        let lag = self.config.apply_lag.map(|range| Lag::new(range, seed));
        let hasher = running.hasher.clone();
        let engine = EngineLoop::new(shared.clone(), engine, running.log.clone(), patience, lag, hasher);
        let replica = match before {
            Some(replica) => {
                replica.begin(shared.clone());
                replica.clone()
            }
            None => Replica::new(shared.clone()),
        };
        if let Err(error) = running.drive.engine(group, engine) {
            shared.stop(&error);
            return Err(error);
        }
        self.common.mailbox.send(Mail::Add { shared, consensus: Box::new(consensus) });
        Ok(replica)
    }

    /// The log, if this node may found a group of this number.
    pub(crate) fn check_new(&self, group: GroupId) -> Result<Arc<dyn LogStore>, ReplicaError> {
        let Some((log, _)) = self.log_and_drive() else { return Err(ReplicaError::ShutDown) };
        if log::tombstone(log.as_ref(), group.0)?.is_some() {
            return Err(ReplicaError::Invalid(format!("group {group} was removed from this node")));
        }
        let peer = log::peer(log.as_ref(), group.0)?;
        if peer.is_some_and(|peer| peer.incarnation() > 0) || log.kept(group.0)?.cut.index > FOUNDING.index {
            return Err(ReplicaError::FilesGone);
        }
        Ok(log)
    }

    /// Which member of a group this node has. One that isn't noted is there since the group was founded.
    fn peer(&self, log: &dyn LogStore, group: GroupId) -> Result<Peer, ReplicaError> {
        if let Some(peer) = log::peer(log, group.0)? {
            return Ok(peer);
        }
        let peer = Peer::founding(self.config.node);
        let mut batch = Batch::default();
        batch.put(group.0, log::note_peer(peer));
        log.write(batch, true)?;
        Ok(peer)
    }

    /// A replica that doesn't run, and says why.
    pub(crate) fn stopped(&self, group: GroupId, peer: Option<Peer>, error: &ReplicaError) -> Replica {
        let shared = self.shared(group, peer, 0, None);
        shared.stop(error);
        shared.set_over();
        Replica::new(shared)
    }

    /// Founds this node's replica of a new group, or finds it founded already. Replicas of groups that exist come by
    /// [`Replica::change_members`] alone. The same `voters` and `init` must be given
    /// on each of the voters: `init` is SQL that every replica runs before the first log entry.
    pub fn create(
        &self,
        group: GroupId,
        voters: &[NodeId],
        init: &[String],
    ) -> Result<Replica, ReplicaError> {
        if !voters.contains(&self.config.node) {
            return Err(ReplicaError::Invalid(format!(
                "node {} isn't a voter of group {group}",
                self.config.node
            )));
        }
        let mut groups = self.groups.lock();
        if let Some(replica) = groups.get(&group) {
            return Ok(replica.clone());
        }
        let log = self.check_new(group)?;
        let mut voters: Vec<u64> = voters.iter().map(|node| node.0).collect();
        voters.sort_unstable();
        founding::note(log.as_ref(), group, self.config.node)?;
        let engine = Engine::found(&self.directory(group), FOUNDING.index, &voters, init, self.limits())?;
        let replica = self.start(group, engine, None)?;
        groups.insert(group, replica.clone());
        self.note_change();
        Ok(replica)
    }

    /// The replica of a group, if this node has one.
    pub fn replica(&self, group: GroupId) -> Option<Replica> {
        self.groups.lock().get(&group).cloned()
    }

    /// Every replica.
    pub fn replicas(&self) -> Vec<Replica> {
        self.groups.lock().values().cloned().collect()
    }

    /// What every replica is doing.
    pub fn statuses(&self) -> Vec<ReplicaStatus> {
        self.replicas().iter().map(Replica::status).collect()
    }

    /// Counts the changes of what the replicas are: of a role, a leader or a term, a replica that was made, one that
    /// stopped. Who follows it need not ask [`Host::statuses`] again and again.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.common.changes.subscribe()
    }

    /// Has other nodes lead whatever groups this one leads, as far as they can by the deadline. For a node that is about
    /// to go.
    pub async fn hand_over(&self, deadline: Instant) {
        let mut waiting = Vec::new();
        for replica in self.replicas() {
            if replica.is_leader() && replica.status().members.voters.len() > 1 {
                let group = replica.group();
                waiting.push((group, tokio::spawn(async move { replica.hand_over(deadline).await })));
            }
        }
        for (group, handed_over) in waiting {
            match handed_over.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(group = group.0, %error, "nobody took over"),
                Err(error) => tracing::warn!(group = group.0, %error, "nobody took over"),
            }
        }
    }

    /// Ends the loops and closes the files. What was waiting is answered with an error. Doing it again does nothing.
    pub fn shutdown(&self) {
        let Some(running) = self.running.lock().take() else { return };
        // Who is making a replica comes to an end: what it writes to the log and to the disk belongs together.
        drop(self.lock_groups());
        // First Raft, so that nothing is committed any more of which an engine would not tell its callers.
        self.common.mailbox.send(Mail::ShutDown);
        running.drive.finish_consensus();
        running.drive.finish_hasher();
        self.common.images.send(ImageMail::ShutDown);
        running.drive.finish_images();
        let replicas = self.replicas();
        let replicas: Vec<Replica> =
            replicas.into_iter().chain(self.going.lock().values().cloned()).collect();
        for replica in &replicas {
            replica.shared().close_for_shutdown();
        }
        for replica in &replicas {
            running.drive.finish_engine(replica.group());
        }
        running.drive.finish_upkeep();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl RaftService for Host {
    fn receive(&self, from: NodeId, messages: Vec<RaftMessage>) {
        let node = self.config.node;
        let is_at = |raw, node| Peer::from_raw(raw).is_some_and(|peer| peer.node() == node);
        // Some of it puts mail in by itself.
        let mail = messages.into_iter().filter_map(|message| {
            let RaftMessage { group, body } = message;
            let bytes = body.len();
            match Packet::decode(body) {
                Ok(Packet::ImageRequest(request)) => {
                    self.common.images.send(ImageMail::Request { from, request });
                    None
                }
                Ok(Packet::ImageChunk(chunk)) => {
                    self.common.images.send(ImageMail::Chunk { from, chunk });
                    None
                }
                Ok(Packet::Raft(message)) if is_at(message.from, from) && is_at(message.to, node) => {
                    self.admits(group, &message).then_some(Mail::Raft { group, message, bytes })
                }
                Ok(Packet::Removed(peer)) => {
                    self.dismiss(group, from, peer);
                    None
                }
                Ok(Packet::Alive(alive)) => Some(Mail::Alive { from, alive, bytes }),
                Ok(Packet::Wake) => Some(Mail::Wake { group }),
                Ok(Packet::Ask(ask)) if is_at(ask.peer, from) => Some(Mail::Asked { group, from, ask }),
                Ok(Packet::Answer(answer)) if is_at(answer.ask.peer, node) => {
                    Some(Mail::Answered { group, answer })
                }
                Ok(Packet::Raft(_) | Packet::Ask(_) | Packet::Answer(_)) => {
                    tracing::warn!(
                        node = node.0,
                        group = group.0,
                        "dropped a Raft message from node {from} for another"
                    );
                    None
                }
                Err(error) => {
                    tracing::warn!(node = node.0, group = group.0, "dropped {error} from node {from}");
                    None
                }
            }
        });
        let mail: Vec<Mail> = mail.collect();
        self.common.mailbox.send_all(mail);
    }
}
