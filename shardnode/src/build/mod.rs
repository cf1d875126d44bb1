//! Databases of new shards, made on this node of images of its own replicas of old ones.
//!
//! Requests come in ([`BuildRequest`]), each of them as often as it takes; files come out, in a directory of the reshard's try, and in the
//! end groups that are founded with them. Between requests a build goes on by itself, a slice at a time, until all is done that was asked for; after
//! a crash it goes on from its files once it is asked again. Nothing here decides anything: what isn't named by the topology any
//! more is deleted ([`Builds::keep`]).

mod copy;
mod finish;
mod pace;
mod plan;

use crate::node::ShardNode;
use copy::{Copying, Pause};
pub(crate) use copy::{borrowed, bytes_of, compare_all, stored};
use pace::{Pacer, Slice};
use parking_lot::{Condvar, Mutex};
pub(crate) use plan::Table;
use plan::{Plan, Target};
use proto::machine::{self, Machine};
use proto::services::{
    BuildAction, BuildProgress, BuildRequest, BuildTarget, Built, Consistency, Peers, Progress, ReplicaRole,
    ServiceResult, Times,
};
use proto::topology::Topology;
use proto::{GroupId, LogIndex, NodeId, ReshardId, Retry, ShardId, SqlState, WireError};
use replica::{Host, Replica, ReplicaError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The longest that anything is waited for.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a node is waited for that is asked what its leaders commit.
const PATIENCE: Duration = Duration::from_millis(300);
/// An index's making pauses after so long.
const SPELL: Duration = Duration::from_millis(2);

/// What names a build: the reshard, and which try it is.
pub(crate) type Name = (ReshardId, u32);

/// The builds of a node.
pub(crate) struct Builds {
    node: NodeId,
    host: Arc<Host>,
    machine: Machine,
    directory: PathBuf,
    known: Mutex<BTreeMap<Name, Known>>,
    peers: Arc<Mutex<Option<Weak<dyn Peers>>>>,
}

/// Who tells a build what its writers wait for.
struct Ears {
    node: NodeId,
    host: Arc<Host>,
    /// The way to other nodes, as long as there is one.
    peers: Arc<Mutex<Option<Weak<dyn Peers>>>>,
}

/// A build that there are files of.
#[derive(Default)]
struct Known {
    /// Once something was asked of it in this process.
    build: Option<Arc<Build>>,
    task: Option<AbortHandle>,
    /// Its files are being deleted.
    goes: bool,
}

struct Build {
    directory: PathBuf,
    /// What is copied, once that has begun. Held during a slice, which may be long, and never taken by who has `work`.
    copying: Mutex<Option<Copying>>,
    work: Mutex<Work>,
    /// There is something to do.
    news: Notify,
    pacer: Mutex<Pacer>,
    /// Since when it has worked without a rest; nothing before it does.
    since: Mutex<Option<Instant>>,
    /// It is to be deleted. Who pauses is told.
    goes: Mutex<bool>,
    gone: Condvar,
    /// The pacer has begun to count.
    paced: Notify,
    /// The groups of the old shards, as far as they were heard of.
    groups: Mutex<BTreeSet<GroupId>>,
}

/// What a build has to do.
#[derive(Default)]
struct Work {
    /// Images that aren't whole.
    images: BTreeMap<ShardId, replica::Copying>,
    plan: Option<Plan>,
    /// Doesn't copy. Images go on, and at any rate: they keep their replicas' WALs from being emptied.
    rests: bool,
    /// How many bytes of rows a second are copied at most; 0 for any number.
    rate: u64,
    /// How many bytes those have that are.
    imaged: u64,
    /// How many rows were copied, and how much of the images: of what is being copied.
    copied: Option<(u64, Progress)>,
    is_copied: bool,
    /// Nothing is done until somebody has heard of it.
    failure: Option<WireError>,
    /// Its files are gone, or go.
    ended: bool,
}

/// What is to follow on a slice.
enum Next {
    /// Another one, after so many bytes, of which there may be so many a second; 0 for any number.
    Slice { bytes: u64, rate: u64 },
    /// Nothing, before somebody asks.
    Nothing,
}

impl ShardNode {
    /// Builds for a reshard.
    pub(crate) async fn build_for(&self, request: BuildRequest) -> ServiceResult<Built> {
        let builds = &self.builds;
        let name = (request.reshard, request.tries);
        let until = machine::now() + request.timeout.min(LONGEST);
        let answer = match request.action {
            BuildAction::Image { shard, group, after } => {
                builds.image(name, shard, group, after, until).await
            }
            BuildAction::Copy { sources, targets, rests, rate } => {
                let groups = sources.iter().filter_map(|shard| Some(self.replica(*shard)?.group()));
                builds.watch(name, groups);
                builds.copy(name, sources, targets, rests, rate).await
            }
            BuildAction::Found { shard, group } => builds.found(name, shard, group, until).await,
            BuildAction::Discard => builds.discard(request.reshard).await,
        };
        answer.or_else(|error| match error.sqlstate {
            SqlState::DISK_FULL => Ok(Built::DiskFull(builds.path(name).display().to_string())),
            _ => Err(error),
        })
    }
}

impl Builds {
    /// The builds whose files are there.
    pub fn open(node: NodeId, host: Arc<Host>, machine: Machine) -> Self {
        let directory = host.beside("builds");
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().and_then(name_of) {
                known.insert(name, Known::default());
            }
        }
        Self { node, host, machine, directory, known: Mutex::new(known), peers: Arc::default() }
    }

    /// From now on this is the way to other nodes.
    pub fn set_peers(&self, peers: &Arc<dyn Peers>) {
        *self.peers.lock() = Some(Arc::downgrade(peers));
    }

    /// A build that there is has these old shards' groups.
    fn watch(&self, name: Name, groups: impl Iterator<Item = GroupId>) {
        if let Some(build) = self.known.lock().get(&name).and_then(|known| known.build.as_ref()) {
            build.groups.lock().extend(groups);
        }
    }

    /// The builds that there are.
    pub fn names(&self) -> Vec<Name> {
        self.known.lock().keys().copied().collect()
    }

    /// Whether there is a build that the topology doesn't name.
    pub fn are_left_over(&self, topology: &Topology, node: NodeId) -> bool {
        self.known.lock().keys().any(|name| !is_named(topology, node, *name))
    }

    /// Deletes the builds that the topology doesn't name, as far as they were there before it was asked for: one that has begun
    /// since may be of a try that it doesn't tell of. Writes to disk.
    pub fn keep(&self, topology: &Topology, node: NodeId, before: &[Name]) {
        for name in before.iter().filter(|name| !is_named(topology, node, **name)) {
            if let Err(error) = self.delete(*name) {
                tracing::error!(reshard = %name.0, %error, "what was built for a reshard can't be deleted");
            }
        }
    }

    fn path(&self, (reshard, tries): Name) -> PathBuf {
        self.directory.join(format!("{}-{tries}", reshard.0))
    }

    /// The build, at work.
    fn build(&self, name: Name) -> ServiceResult<Arc<Build>> {
        let mut known = self.known.lock();
        let known = known.entry(name).or_default();
        if known.goes {
            return Err(discarded());
        }
        if let Some(build) = &known.build {
            return Ok(Arc::clone(build));
        }
        let build = Arc::new(Build::new(self.path(name)));
        let (at_work, machine) = (Arc::clone(&build), self.machine.clone());
        let ears = Ears { node: self.node, host: Arc::clone(&self.host), peers: Arc::clone(&self.peers) };
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = Arc::clone(&at_work).go_on(machine) => {}
                () = at_work.listen(ears) => {}
            }
        });
        (known.build, known.task) = (Some(Arc::clone(&build)), Some(task.abort_handle()));
        Ok(build)
    }

    /// Runs something that takes long and needs the build.
    async fn with<T: Send + 'static>(
        &self,
        build: &Arc<Build>,
        run: impl FnOnce(&Build, &mut Work) -> ServiceResult<T> + Send + 'static,
    ) -> ServiceResult<T> {
        let held = Arc::clone(build);
        let run = move || {
            let mut work = held.work.lock();
            if work.ended {
                return Err(discarded());
            }
            run(&held, &mut work)
        };
        let ran = self.machine.blocking(run).await;
        let ran = ran.unwrap_or_else(|_| Err(WireError::internal("building shards has failed")));
        build.news.notify_one();
        ran
    }

    async fn image(
        &self,
        name: Name,
        shard: ShardId,
        group: GroupId,
        after: LogIndex,
        until: Instant,
    ) -> ServiceResult<Built> {
        let replica = self.host.replica(group).ok_or_else(|| {
            WireError::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("no replica of {group} is here"),
            )
            .with_retry(Retry::Later)
        })?;
        if !replica.has_applied(after) {
            drop(replica.snapshot_after(Consistency::Session, after, until).await?);
        }
        let build = self.build(name)?;
        build.groups.lock().insert(group);
        let begun = self.with(&build, move |build, work| build.image(work, shard, &replica, after));
        begun.await.map(Built::Begun)
    }

    async fn copy(
        &self,
        name: Name,
        sources: Vec<ShardId>,
        targets: Vec<BuildTarget>,
        rests: bool,
        rate: u64,
    ) -> ServiceResult<Built> {
        if targets.iter().any(|target| self.host.replica(target.group).is_some()) {
            // None was founded before all were complete.
            return Ok(Built::Copied);
        }
        let targets = targets.into_iter().map(|BuildTarget { shard, range, .. }| Target { shard, range });
        let targets = targets.collect();
        self.with(&self.build(name)?, move |build, work| {
            let plan = Plan { directory: build.directory.clone(), sources, targets };
            (work.rests, work.rate) = (rests, rate);
            build.copy(work, plan)
        })
        .await
    }

    async fn found(
        &self,
        name: Name,
        shard: ShardId,
        group: GroupId,
        until: Instant,
    ) -> ServiceResult<Built> {
        let founded = match self.host.replica(group) {
            Some(replica) => Ok(replica),
            None => {
                let host = Arc::clone(&self.host);
                self.with(&self.build(name)?, move |build, work| build.found(work, &host, shard, group))
                    .await?
            }
        };
        let replica = match founded {
            Ok(replica) => replica,
            Err(lost) => return Ok(Built::Lost(lost)),
        };
        let mut status = replica.watch();
        let leads = status.wait_for(|status| status.role == ReplicaRole::Leader);
        match tokio::time::timeout_at(until.into(), leads).await {
            Ok(Ok(_)) => Ok(Built::Founded),
            _ => Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "the group has no leader yet")
                .with_retry(Retry::Later)),
        }
    }

    async fn discard(&self, reshard: ReshardId) -> ServiceResult<Built> {
        for name in self.names().into_iter().filter(|name| name.0 == reshard) {
            machine::in_place(|| self.delete(name))?;
        }
        Ok(Built::Discarded)
    }

    /// Deletes what there is of a build, after the slice that is under way.
    fn delete(&self, name: Name) -> ServiceResult<()> {
        let (build, task) = match self.known.lock().get_mut(&name) {
            // Somebody else does, or has done, so.
            None | Some(Known { goes: true, .. }) => return Ok(()),
            Some(known) => {
                known.goes = true;
                (known.build.take(), known.task.take())
            }
        };
        if let Some(task) = task {
            task.abort();
        }
        if let Some(build) = build {
            build.go();
            let mut copying = build.copying.lock();
            *build.work.lock() = Work { ended: true, ..Work::default() };
            *copying = None;
        }
        let removed = remove(&self.path(name));
        let mut known = self.known.lock();
        match &removed {
            Ok(()) => drop(known.remove(&name)),
            Err(_) => drop(known.insert(name, Known::default())),
        }
        removed
    }
}

impl Drop for Builds {
    fn drop(&mut self) {
        for known in self.known.get_mut().values() {
            if let Some(task) = &known.task {
                task.abort();
            }
            if let Some(build) = &known.build {
                build.go();
            }
        }
    }
}

impl Ears {
    /// How long this node's leaders take for what they commit, and those of these groups.
    async fn listen(&self, groups: BTreeSet<GroupId>) -> Vec<(NodeId, Times)> {
        let leader = |group| self.host.replica(group)?.status().leader;
        let leaders: BTreeSet<NodeId> = groups.into_iter().filter_map(leader).collect();
        let mut told = vec![(self.node, self.host.batch_times())];
        let until = machine::now() + PATIENCE;
        for node in leaders.into_iter().filter(|node| *node != self.node) {
            let peers = self.peers.lock().as_ref().and_then(Weak::upgrade);
            let Some(service) = peers.and_then(|peers| peers.shard_service(node)) else { continue };
            if let Ok(Ok(times)) = tokio::time::timeout_at(until.into(), service.load()).await {
                told.push((node, times));
            }
        }
        told
    }
}

impl Build {
    fn new(directory: PathBuf) -> Self {
        let (copying, work, news, pacer, since) = Default::default();
        let (goes, gone, paced, groups) = Default::default();
        Self { directory, copying, work, news, pacer, since, goes, gone, paced, groups }
    }

    /// It is to be deleted: what is under way ends soon.
    fn go(&self) {
        *self.goes.lock() = true;
        self.gone.notify_all();
    }

    /// Hears what writers wait for, whenever there is something to do.
    async fn listen(&self, ears: Ears) {
        loop {
            let due = self.pacer.lock().due();
            let Some(due) = due else {
                self.paced.notified().await;
                continue;
            };
            tokio::time::sleep_until(due.into()).await;
            let groups = self.groups.lock().clone();
            let told = ears.listen(groups).await;
            self.pacer.lock().hear(machine::now(), told);
        }
    }

    /// Rests after a slice for as long as it is to.
    async fn rest(&self, slice: Slice) {
        loop {
            let until = self.pacer.lock().until(slice);
            if machine::now() >= until {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// Goes on whenever there is something to do.
    async fn go_on(self: Arc<Self>, machine: Machine) {
        loop {
            let build = Arc::clone(&self);
            match machine.aside(move || build.slice()).await {
                Ok(Next::Slice { bytes, rate }) => {
                    let slice = self.spell(machine::now(), bytes, rate);
                    self.rest(slice).await;
                }
                Ok(Next::Nothing) => {
                    self.pacer.lock().end();
                    self.news.notified().await;
                }
                // The process ends.
                Err(error) if error.is_cancelled() => return,
                Err(error) => self.fail(WireError::internal(format!("building shards has failed: {error}"))),
            }
        }
    }

    /// What was done since it rested last.
    fn spell(&self, ended: Instant, bytes: u64, rate: u64) -> Slice {
        let begun = self.since.lock().unwrap_or(ended);
        self.pacer.lock().begin(begun);
        self.paced.notify_one();
        Slice { begun, ended, bytes, rate }
    }

    /// Has the thread rest that makes an index, if it is time to. Whether the build is to be deleted.
    fn pause(&self) -> bool {
        let slice = self.spell(machine::now(), 0, 0);
        let mut goes = self.goes.lock();
        while !*goes && slice.ended.saturating_duration_since(slice.begun) >= SPELL {
            let (until, now) = (self.pacer.lock().until(slice), machine::now());
            if now >= until {
                *self.since.lock() = Some(now);
                break;
            }
            // SQLite calls this in the midst of a statement, on a thread that may wait: nothing can be awaited here.
            self.gone.wait_until(&mut goes, until);
        }
        *goes
    }

    /// Goes on for a moment. Says what is to follow.
    fn slice(self: &Arc<Self>) -> Next {
        *self.since.lock() = Some(machine::now());
        let mut copying = self.copying.lock();
        self.step(&mut copying).unwrap_or_else(|error| {
            self.give_up(&mut copying, error);
            Next::Nothing
        })
    }

    /// A slice didn't come to its end.
    fn fail(&self, error: WireError) {
        machine::in_place(|| self.give_up(&mut self.copying.lock(), error));
    }

    /// Leaves it there until somebody has heard why. What isn't whole is begun anew then, or goes on from its last batch.
    fn give_up(&self, copying: &mut Option<Copying>, error: WireError) {
        if !*self.goes.lock() {
            tracing::warn!(directory = %self.directory.display(), %error, "building shards is held up");
        }
        let mut work = self.work.lock();
        work.images.clear();
        (*copying, work.copied) = (None, None);
        work.failure = Some(error);
    }

    fn step(self: &Arc<Self>, copying: &mut Option<Copying>) -> ServiceResult<Next> {
        let plan = {
            let mut work = self.work.lock();
            if work.ended || work.failure.is_some() {
                return Ok(Next::Nothing);
            }
            if let Some(bytes) = work.image()? {
                return Ok(Next::Slice { bytes, rate: 0 });
            }
            match &work.plan {
                Some(plan) if !work.is_copied && !work.rests => plan.clone(),
                _ => return Ok(Next::Nothing),
            }
        };
        let present = match copying {
            Some(copying) => copying,
            None => {
                let build = Arc::downgrade(self);
                let pause: Pause = Arc::new(move || build.upgrade().is_none_or(|build| build.pause()));
                copying.insert(Copying::open(&plan)?.pausing(pause))
            }
        };
        let before = present.bytes();
        let is_copied = present.step()?;
        let (bytes, progress) = (present.bytes().saturating_sub(before), present.progress());
        if is_copied {
            *copying = None;
        }
        let mut work = self.work.lock();
        (work.is_copied, work.copied) = (is_copied, (!is_copied).then_some(progress));
        Ok(Next::Slice { bytes, rate: work.rate })
    }

    /// Begins an image, or finds it begun.
    fn image(
        &self,
        work: &mut Work,
        shard: ShardId,
        replica: &Replica,
        after: LogIndex,
    ) -> ServiceResult<LogIndex> {
        if let Some(failure) = work.failure.take() {
            return Err(failure);
        }
        let path = plan::image(&self.directory, shard);
        let begun = match work.images.get(&shard) {
            Some(copying) => Some(copying.position()),
            None if path.exists() => Some(plan::Source::open(&self.directory, shard)?.position),
            None => None,
        };
        if let Some(index) = begun.filter(|index| *index >= after) {
            return Ok(index);
        }
        work.images.remove(&shard);
        fs::create_dir_all(&self.directory).map_err(|source| io(&self.directory, source))?;
        remove(&path)?;
        let copying = replica.copy(&path).map_err(WireError::from)?;
        let index = copying.position();
        work.images.insert(shard, copying);
        Ok(index)
    }

    /// Has it copy by this plan, and says how far it is.
    fn copy(&self, work: &mut Work, plan: Plan) -> ServiceResult<Built> {
        if work.is_copied {
            return Ok(Built::Copied);
        }
        // What it failed with may be why an image is gone. Who has it rest can do nothing about either.
        if !work.rests
            && let Some(failure) = work.failure.take()
        {
            return Err(failure);
        }
        let gone = |shard: &&ShardId| {
            !work.images.contains_key(shard) && !plan::image(&self.directory, **shard).exists()
        };
        match plan.sources.iter().find(gone) {
            Some(_) if work.rests => return Ok(Built::Copying(work.progress())),
            Some(shard) => return Ok(Built::Lost(format!("the image of shard {shard}"))),
            None => {}
        }
        match &work.plan {
            Some(known) if *known != plan => return Err(WireError::internal("a build has another plan")),
            _ => work.plan = Some(plan),
        }
        Ok(Built::Copying(work.progress()))
    }

    /// Founds a group; what is lost, if its file is.
    fn found(
        &self,
        work: &mut Work,
        host: &Host,
        shard: ShardId,
        group: GroupId,
    ) -> ServiceResult<Result<Replica, String>> {
        let path = plan::file(&self.directory, shard);
        if work.copied.is_some() {
            return Err(incomplete());
        }
        if !path.exists() && host.replica(group).is_none() {
            return Ok(Err(format!("the file of shard {shard}")));
        }
        if path.exists() && !finish::is_complete(&path)? {
            return Err(incomplete());
        }
        let replica = host.create_from(group, &path).map_err(WireError::from)?;
        let entries = fs::read_dir(&self.directory).map_err(|source| io(&self.directory, source))?;
        let names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        let is = |path: &&PathBuf, kind: &str| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(kind))
        };
        if !names.iter().any(|path| is(&path, "shard-")) {
            for path in names.iter().filter(|path| is(path, "image-")) {
                remove(path)?;
            }
        }
        Ok(Ok(replica))
    }
}

impl Work {
    /// Goes on with an image, if there is one that isn't whole. Gives how many bytes that were.
    fn image(&mut self) -> ServiceResult<Option<u64>> {
        let Some((shard, mut image)) = self.images.pop_first() else { return Ok(None) };
        let before = image.progress().done;
        let is_whole = image.step().map_err(WireError::from)?;
        let bytes = image.progress().done.saturating_sub(before);
        match is_whole {
            true => self.imaged += image.progress().total,
            false => drop(self.images.insert(shard, image)),
        }
        Ok(Some(bytes))
    }

    fn progress(&self) -> BuildProgress {
        let whole = Progress { done: self.imaged, total: self.imaged };
        let images = self.images.values().map(replica::Copying::progress);
        let images = images.fold(whole, |a, b| Progress { done: a.done + b.done, total: a.total + b.total });
        let (rows, bytes) = self.copied.unwrap_or((0, Progress { done: 0, total: 0 }));
        BuildProgress { images, rows, bytes }
    }
}

fn is_named(topology: &Topology, node: NodeId, (reshard, tries): Name) -> bool {
    let mut builds =
        topology.reshards.iter().filter(|found| found.id == reshard).filter_map(|found| found.build.as_ref());
    builds.any(|build| build.node == node && build.tries == tries)
}

fn name_of(directory: &str) -> Option<Name> {
    let (reshard, tries) = directory.split_once('-')?;
    Some((ReshardId(reshard.parse().ok()?), tries.parse().ok()?))
}

/// Removes a file or a directory, with what SQLite put beside it.
fn remove(path: &Path) -> ServiceResult<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let name = Path::new(&name);
        let removed = if name.is_dir() { fs::remove_dir_all(name) } else { fs::remove_file(name) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(name, error)),
            _ => {}
        }
    }
    Ok(())
}

fn io(path: &Path, source: std::io::Error) -> WireError {
    ReplicaError::Io { path: path.to_owned(), source }.into()
}

fn discarded() -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "what was built is discarded")
        .with_retry(Retry::Later)
}

fn incomplete() -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "the file of a new shard isn't complete yet")
        .with_retry(Retry::Later)
}

fn damaged(problem: &str) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("an image can't be built from: {problem}"))
}

#[cfg(test)]
mod tests;
