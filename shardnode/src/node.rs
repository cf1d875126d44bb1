//! The shards of one node.
//!
//! In come fragments and schema steps for a shard, out go their results. Which shards there are is learned from the
//! topology; nothing here asks for it. Whether this node's replica may answer is the replica's to say: it serves as
//! soon as it can, also before the topology names it, and until it can't.
//!
//! A replica is founded or removed only by a state that is the cluster's own at the time ([`ShardNode::settle`]): one
//! that a coordinator's follower tells may be from before the shard was made, or from before it had ever served.

use crate::altering::Altering;
use crate::branch::Transactions;
use crate::build::{self, Builds};
use crate::config::Config;
use crate::fence::Address;
use crate::flow::{self, Flows};
use crate::metrics::{Figures, ReplicaReads};
use crate::phrase::{Phrase, Phrases};
use crate::routers::Routers;
use crate::statement::Work;
use crate::stream::{Place, Readers};
use crate::tally::Tallies;
use crate::transact::{self, Desk};
use crate::{changes, fence, layout, read, sums, write};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use proto::machine;
use proto::services::{
    Access, BoxFuture, BoxStream, Branch, BranchAccess, BranchAction, BranchRequest, BranchStatus,
    BuildRequest, Built, Changes, ChangesRequest, ClusterState, CompareRequest, Compared, Consistency,
    CutRequest, FlowStatus, FragmentRequest, FragmentResponse, HandOver, HandOverAction, HandedOver,
    LockWait, Peers, SchemaRequest, ServiceResult, ShardService, Sums, SumsRequest, Tally, TallyRequest,
    Times, Unsettled, is_cut_lost,
};
use proto::topology::{Shard, Topology};
use proto::{
    CutId, Epoch, GroupId, LogIndex, NodeId, RequestId, Retry, RouterIncarnation, SchemaVersion, ShardId,
    SqlState, WireError,
};
use replica::{Host, Replica, SchemaEntry, Snapshot, Stage, Write};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A statement that doesn't wait for locks waits so long for transactions that may have committed.
const HASTE: Duration = Duration::from_millis(500);

/// So long at most a read has a reader's place before its snapshot is open.
const SECOND_LOOK: Duration = Duration::from_millis(250);

/// No request may wait longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The shards of one node, over its [`Host`].
pub struct ShardNode {
    host: Arc<Host>,
    config: Config,
    readers: Readers,
    routers: Arc<Routers>,
    phrases: Arc<Phrases>,
    reads: ReplicaReads,
    /// New shards that are built here.
    pub(crate) builds: Builds,
    tallies: Tallies,
    shards: ArcSwap<Shards>,
    /// The epoch of the topology that was taken in last.
    epoch: watch::Sender<Epoch>,
    /// How far the flows are that end here.
    pub(crate) flows: Flows,
    /// Held while a topology is taken in, so that an older one can't overtake a newer one.
    following: Mutex<()>,
}

/// What was on a node when the cluster was asked what is to be there.
#[derive(Default)]
pub struct Before {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) builds: Vec<build::Name>,
}

/// The topology, as far as shards go.
#[derive(Default)]
struct Shards {
    epoch: Epoch,
    topology: Arc<Topology>,
    by_id: HashMap<ShardId, Known>,
    /// What groups of shards that there are were called before.
    former: HashMap<ShardId, GroupId>,
}

struct Known {
    shard: Shard,
    /// The epoch in which it became what it is.
    since: Epoch,
    /// This node's replica of it, when it was last asked for.
    replica: ArcSwapOption<Replica>,
    transactions: Arc<Transactions>,
}

/// Whether requests that were routed by one are right at the other: who holds it is no matter of routing.
fn is_routed_alike(before: &Shard, after: &Shard) -> bool {
    let key = |shard: &Shard| (shard.keyspace, shard.incarnation, shard.group);
    key(before) == key(after) && before.range == after.range
}

impl ShardNode {
    /// A node that knows no shard yet.
    pub fn new(host: Arc<Host>, config: Config) -> Arc<ShardNode> {
        let readers = Readers::new(&config);
        let (shards, routers) = (ArcSwap::default(), Arc::new(Routers::new(config.router_silence)));
        let (phrases, reads, epoch, flows, following) = Default::default();
        let builds = Builds::open(config.node, Arc::clone(&host), config.machine.clone());
        Arc::new(ShardNode {
            host,
            config,
            readers,
            routers,
            phrases,
            reads,
            builds,
            tallies: Tallies::default(),
            shards,
            epoch,
            flows,
            following,
        })
    }

    /// Runs the flows that the topology names for the groups that are led here, until it is dropped. `peers`: the way to
    /// the nodes that have the sources.
    pub async fn run_flows(self: &Arc<Self>, peers: Arc<dyn Peers>) {
        self.builds.set_peers(&peers);
        flow::run(Arc::clone(self), peers).await;
    }

    /// How far the flows are that end in a shard's group, if it is led here.
    fn flow_statuses(&self, target: ShardId) -> ServiceResult<Vec<FlowStatus>> {
        let replica = self.replica_of(target)?;
        self.flows.statuses(target).ok_or_else(|| self.runs_no_flows(target, &replica))
    }

    /// Why this node can't tell of flows.
    pub(crate) fn runs_no_flows(&self, target: ShardId, replica: &Replica) -> WireError {
        let leader = replica.status().leader.filter(|leader| *leader != self.config.node);
        // Who leads may not have begun.
        let retry = if replica.is_leader() { Retry::Later } else { Retry::NotLeader(leader) };
        let message = format!("node {} runs no flows to shard {target}", self.config.node);
        WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(retry)
    }

    /// This node.
    pub(crate) fn id(&self) -> NodeId {
        self.config.node
    }

    /// Tells of each topology that is taken in.
    pub(crate) fn epochs(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }

    /// The topology as it was taken in last.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.shards.load().topology)
    }

    /// The nodes that hold a shard.
    pub(crate) fn holders(&self, shard: ShardId) -> Vec<NodeId> {
        let shards = self.shards.load();
        shards.by_id.get(&shard).map_or(Vec::new(), |known| known.shard.replicas.clone())
    }

    /// This node's replica of a shard as it is by now, whatever it serves as.
    pub(crate) fn replica(&self, shard: ShardId) -> Option<Replica> {
        self.host.replica(self.shards.load().by_id.get(&shard)?.shard.group)
    }

    /// A shard's tables have changed without its transactions' doing.
    pub(crate) fn forget_looks(&self, shard: ShardId) {
        if let Some(known) = self.shards.load().by_id.get(&shard) {
            known.transactions.look().looks.forget();
        }
    }

    /// Takes in the cluster's state, and serves what it names. An older state than the last changes nothing. Says
    /// whether the node holds what it should; if not, [`Self::settle`] is needed.
    pub fn follow(&self, state: &ClusterState) -> bool {
        // Whoever settles may be at it for long.
        let turn = self.following.try_lock();
        let _turn = turn.unwrap_or_else(|| machine::in_place(|| self.following.lock()));
        self.take_in(&state.topology);
        self.is_settled()
    }

    /// Takes in a state that is the cluster's own at the time of asking, founds the replicas that it places here and
    /// removes those that it doesn't, as far as they were here before it was asked for: one that came meanwhile may be
    /// of a change that the state doesn't tell of. Says whether the node then holds what it should; what fails is
    /// logged. Writes to disk, so call it off the runtime's threads.
    pub fn settle(&self, state: &ClusterState, before: &Before) -> bool {
        let _turn = self.following.lock();
        self.take_in(&state.topology);
        if state.topology.epoch < self.shards.load().epoch {
            return false;
        }
        for shard in state.topology.shards.values().filter(|shard| self.lacks(&state.topology, shard)) {
            self.make(shard);
        }
        for group in self.left_over(&state.topology) {
            if !is_still(&self.host, group, &before.replicas) {
                continue;
            }
            if let Err(error) = self.host.remove(group) {
                tracing::error!(%group, %error, "a replica that was taken from this node can't be removed");
            }
        }
        self.builds.keep(&state.topology, self.config.node, &before.builds);
        self.take_in(&state.topology);
        self.is_settled()
    }

    /// What is here now, for [`Self::settle`].
    pub fn before(&self) -> Before {
        Before { replicas: self.host.replicas(), builds: self.builds.names() }
    }

    fn take_in(&self, topology: &Arc<Topology>) {
        let known = self.shards.load();
        if topology.epoch < known.epoch {
            return;
        }
        // They are the group's, whatever it serves as: its leader has what it has prepared under any name.
        let mut by_group: HashMap<GroupId, Arc<Transactions>> = HashMap::new();
        for known in known.by_id.values() {
            by_group.entry(known.shard.group).or_insert_with(|| Arc::clone(&known.transactions));
        }
        let by_id = topology.shards.values().map(|shard| {
            let before = known.by_id.get(&shard.id);
            let since = match before {
                Some(before) if is_routed_alike(&before.shard, shard) => before.since,
                _ => topology.epoch,
            };
            let replica = ArcSwapOption::new(self.host.replica(shard.group).map(Arc::new));
            let transactions = by_group.entry(shard.group).or_insert_with(|| {
                let (routers, phrases) = (Arc::clone(&self.routers), Arc::clone(&self.phrases));
                Arc::new(Transactions::new(&self.config, routers, phrases))
            });
            let transactions = Arc::clone(transactions);
            (shard.id, Known { shard: shard.clone(), since, replica, transactions })
        });
        let by_id: HashMap<ShardId, Known> = by_id.collect();
        let mut former = known.former.clone();
        former.extend(known.by_id.values().map(|known| (known.shard.id, known.shard.group)));
        former.retain(|id, group| {
            !by_id.contains_key(id) && by_id.values().any(|known| known.shard.group == *group)
        });
        for (_, group) in former.iter().filter(|(id, _)| known.by_id.contains_key(id)) {
            // Under the name that it has now it has never served.
            by_group[group].look().let_go();
        }
        let (epoch, topology) = (topology.epoch, Arc::clone(topology));
        self.shards.store(Arc::new(Shards { epoch, topology, by_id, former }));
        self.epoch.send_replace(epoch);
    }

    fn is_settled(&self) -> bool {
        let shards = self.shards.load();
        let topology = &shards.topology;
        let complete = topology.shards.values().all(|shard| !self.lacks(topology, shard));
        let built = !self.builds.are_left_over(topology, self.config.node);
        complete && built && self.left_over(topology).is_empty()
    }

    /// How reads went that weren't strong.
    pub(crate) fn replica_reads(&self) -> &ReplicaReads {
        &self.reads
    }

    /// What the shards that this node leads have of transactions.
    pub(crate) fn figures(&self) -> Vec<(GroupId, Figures)> {
        let shards = self.shards.load();
        let led = shards
            .by_id
            .values()
            .filter(|known| known.replica.load().as_ref().is_some_and(|replica| replica.is_leader()));
        led.map(|known| (known.shard.group, known.transactions.figures())).collect()
    }

    fn holds(&self, shard: &Shard) -> bool {
        shard.replicas.contains(&self.config.node)
    }

    /// Whether the shard should have a replica here, has none, and isn't being given one.
    fn lacks(&self, topology: &Topology, shard: &Shard) -> bool {
        self.holds(shard)
            && self.host.replica(shard.group).is_none()
            && !topology.joining.contains(&(shard.group, self.config.node))
    }

    /// The groups of shards that this node has replicas of and isn't meant to.
    fn left_over(&self, topology: &Topology) -> Vec<GroupId> {
        let builds = topology.reshards.iter().filter_map(|reshard| reshard.build.as_ref());
        let own: Vec<_> = builds.filter(|build| build.node == self.config.node).collect();
        let placed = |group: GroupId| {
            topology.joining.contains(&(group, self.config.node))
                || own.iter().any(|build| build.groups.contains(&group))
                || topology.shards.values().any(|shard| shard.group == group && self.holds(shard))
        };
        let groups = self.host.replicas().into_iter().map(|replica| replica.group());
        groups.filter(|group| *group != GroupId::COORDINATOR && !placed(*group)).collect()
    }

    fn make(&self, shard: &Shard) {
        if shard.formed {
            if self.host.note_missing(shard.group) {
                tracing::error!(shard = %shard.id, group = %shard.group, "the files of a replica are gone");
            }
            return;
        }
        let init = fence::init(shard.id, fence::State::Open, SchemaVersion(0));
        if let Err(error) = self.host.create(shard.group, &shard.replicas, &init) {
            tracing::error!(shard = %shard.id, group = %shard.group, %error, "a replica can't be made");
        }
    }

    /// The replica of a shard, for a request that was routed by this epoch (`None`: by whoever makes epochs).
    fn find(&self, id: ShardId, epoch: Option<Epoch>) -> ServiceResult<Replica> {
        let shards = self.shards.load();
        let Some(known) = shards.by_id.get(&id) else {
            // The shard is newer than this node's topology, or the request's topology is older than the shard's end.
            let retry = match epoch {
                Some(epoch) if epoch <= shards.epoch => Retry::StaleEpoch(shards.epoch),
                _ => Retry::Later,
            };
            let message = format!("shard {id} isn't known at epoch {}", shards.epoch);
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(retry));
        };
        if epoch.is_some_and(|epoch| epoch < known.since) {
            let message = format!("shard {id} has changed at epoch {}", known.since);
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message)
                .with_retry(Retry::StaleEpoch(known.since)));
        }
        if let Some(replica) = &*known.replica.load() {
            return Ok(Replica::clone(replica));
        }
        // One that is being made serves before the topology says so.
        if let Some(replica) = self.host.replica(known.shard.group) {
            known.replica.store(Some(Arc::new(replica.clone())));
            return Ok(replica);
        }
        let message = format!("shard {id} has no replica on node {}", self.config.node);
        Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::NotLeader(None)))
    }

    /// The replica of a shard, for whoever makes epochs.
    pub(crate) fn replica_of(&self, id: ShardId) -> ServiceResult<Replica> {
        self.find(id, None)
    }

    /// As [`Self::desk`], for what may name a cut. That may have been opened when the group was another shard, which its
    /// snapshot is to this day.
    fn desk_of(&self, id: ShardId, epoch: Epoch, cut: Option<CutId>) -> ServiceResult<Desk> {
        let shards = self.shards.load();
        let group = cut.and_then(|_| shards.former.get(&id));
        let Some(now) =
            group.and_then(|group| shards.by_id.values().find(|known| known.shard.group == *group))
        else {
            return self.desk(id, Some(epoch));
        };
        let desk = self.desk(now.shard.id, None)?;
        Ok(Desk { to: Address { shard: id, epoch }, ..desk })
    }

    /// As [`Self::find`], with the shard's transactions.
    pub(crate) fn desk(&self, id: ShardId, epoch: Option<Epoch>) -> ServiceResult<Desk> {
        let replica = self.find(id, epoch)?;
        let shards = self.shards.load();
        let known = shards.by_id.get(&id);
        let transactions = known.map(|known| Arc::clone(&known.transactions));
        let gone = || WireError::internal(format!("shard {id} was there a moment ago"));
        let to = Address { shard: id, epoch: epoch.unwrap_or(shards.epoch) };
        Ok(Desk { replica, transactions: transactions.ok_or_else(gone)?, to })
    }

    /// Looks a shard's replica up again if it refused as one that doesn't lead: it may have been made anew, and then
    /// the one that was known will never lead again.
    fn renew<T>(&self, id: ShardId, answer: ServiceResult<T>) -> ServiceResult<T> {
        if let Err(error) = &answer
            && matches!(error.retry, Retry::NotLeader(_))
            && let Some(known) = self.shards.load().by_id.get(&id)
        {
            known.replica.store(self.host.replica(known.shard.group).map(Arc::new));
        }
        answer
    }

    /// The fast path: a future of its own, which is smaller than [`Self::run`]'s.
    async fn lookup(&self, request: FragmentRequest) -> ServiceResult<FragmentResponse> {
        let desk = self.desk_of(request.shard, request.epoch, request.cut)?;
        let deadline = machine::now() + request.timeout.min(LONGEST);
        let until = transact::patience(&request, deadline);
        let opened = self.renew(request.shard, desk.snapshot(&request, None, until).await);
        let answer =
            opened.and_then(|(snapshot, waited)| read::lookup(&snapshot, &request, waited, deadline));
        let answer = answer.map_err(|error| dated(error, request.shard, &desk));
        if !request.is_strong() {
            self.reads.count(&answer);
        }
        if !desk.transactions.cuts.are_idle() {
            let index = desk.told_from(&answer);
            Box::pin(desk.tell(&self.phrases.of(&request.sql), request.cut, index)).await;
        }
        answer
    }

    async fn read(&self, request: FragmentRequest, deadline: Instant) -> ServiceResult<FragmentResponse> {
        let desk = self.desk_of(request.shard, request.epoch, request.cut)?;
        let is_strong = request.is_strong();
        let answer = async {
            let (opened, place) = self.place(&desk, &request, deadline).await?;
            self.readers.run(request, deadline, opened, place).await
        };
        let answer = answer.await;
        if !is_strong {
            self.reads.count(&answer);
        }
        answer
    }

    /// A snapshot for a read, and a reader's place. What may take long to come is waited for without one: few have a place,
    /// for all of the node's shards.
    async fn place(
        &self,
        desk: &Desk,
        request: &FragmentRequest,
        deadline: Instant,
    ) -> ServiceResult<((Snapshot, Duration), Place)> {
        let until = transact::patience(request, deadline);
        loop {
            let ready = desk.get_ready(request, until).await?;
            let place = self.readers.place(until).await;
            let place = place.ok_or_else(|| desk.too_late(request))?;
            let look = until.min(machine::now() + SECOND_LOOK);
            match tokio::time::timeout_at(look.into(), desk.snapshot(request, ready, until)).await {
                Ok(opened) => return Ok((opened?, place)),
                Err(_) if machine::now() >= until => return Err(desk.too_late(request)),
                // There is something to wait for that wasn't there before.
                Err(_) => drop(place),
            }
        }
    }

    /// A write outside of any transaction: in the leader's next batch, unless it would have to look at locks.
    async fn write(
        &self,
        request: FragmentRequest,
        (id, settled, touch): (RequestId, u64, u16),
        lock_timeout: Option<Duration>,
        deadline: Instant,
    ) -> ServiceResult<FragmentResponse> {
        let shard = request.shard;
        let desk = self.desk(shard, Some(request.epoch))?;
        let phrase = self.phrases.of(&request.sql);
        if !phrase.adds {
            desk.catch_up(&request, true, deadline).await?;
        }
        // What reads one table and writes another is committed so that cuts know of it.
        let is_of_several = phrase.tables.len() > 1;
        let job = Arc::new(self.job(request, phrase, touch));
        let in_the_way = Arc::new(AtomicBool::new(false));
        let (looked, transactions, fast) =
            (Arc::clone(&in_the_way), Arc::clone(&desk.transactions), Arc::clone(&job));
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check(stage, fast.to, fast.schema_version)?;
            if is_of_several || transact::is_in_the_way(&transactions, stage, &fast)? {
                looked.store(true, Ordering::Relaxed);
                return Err(transact::in_the_way());
            }
            write::run(stage, &fast, None).map(|ran| ran.output())
        };
        let write = Write { request: Some(id), settled, deadline, run: Box::new(run) };
        let written = match desk.replica.write(write).await {
            Err(error) if in_the_way.load(Ordering::Relaxed) && error == transact::in_the_way() => {
                desk.single(job, (id, settled), lock_timeout, deadline).await
            }
            Ok(written) => desk.answer(written, deadline).await,
            refused => refused,
        }?;
        write::decode(&written.output, written.index)
    }

    fn job(&self, request: FragmentRequest, phrase: Arc<Phrase>, touch: u16) -> write::Job {
        write::Job {
            to: Address::of(&request),
            sql: request.sql,
            phrase,
            params: request.params,
            rows: request.rows,
            touch,
            schema_version: request.schema_version,
            returning_bytes: self.config.returning_bytes,
            moves: false,
        }
    }

    /// A statement of a transaction.
    async fn in_branch(
        &self,
        request: FragmentRequest,
        branch: Branch,
        access: BranchAccess,
        deadline: Instant,
    ) -> ServiceResult<FragmentResponse> {
        let shard = request.shard;
        let desk = self.desk(shard, Some(request.epoch))?;
        let _under_way = desk.transactions.look().statement_comes(branch.transaction);
        let limit = self.config.returning_bytes;
        let phrase = self.phrases.of(&request.sql);
        let cut = request.cut;
        let mut is_hasty = false;
        let waits = match &access {
            BranchAccess::Lock { rows, .. } => {
                is_hasty = rows.iter().any(|rows| rows.wait != LockWait::Wait);
                !is_hasty
            }
            // What it is for a read is decided below.
            BranchAccess::Read => false,
            BranchAccess::Write { .. } | BranchAccess::Move => !phrase.adds,
        };
        if cut.is_none() && waits {
            // Only a leader has branches; and one that is lost waits for nothing.
            desk.know(deadline).await?;
            desk.transactions.admit(&branch)?;
            desk.catch_up(&request, true, deadline).await?;
        }
        if cut.is_none() && is_hasty {
            // What is pending may have been told of as committed: then its locks are as good as gone. It waits for no more.
            desk.know(deadline).await?;
            desk.transactions.admit(&branch)?;
            desk.reach(request.floor.index(), deadline).await?;
            match desk.catch_up(&request, false, deadline.min(machine::now() + HASTE)).await {
                Err(error) if error.sqlstate != SqlState::QUERY_CANCELED => return Err(error),
                _ => {}
            }
        }
        let work = match access {
            BranchAccess::Read => match desk.passage(&branch, &phrase, deadline).await? {
                Some(passage) => {
                    let response = self.read(request, deadline).await?;
                    passage.done();
                    return Ok(response);
                }
                None => {
                    if cut.is_none() {
                        desk.catch_up(&request, false, deadline).await?;
                    }
                    Work::Read { request, phrase, limit }
                }
            },
            BranchAccess::Lock { rows, limit: most, anew } => {
                Work::Lock { request, phrase, limit, rows, most, anew }
            }
            BranchAccess::Write { touch } => Work::Write(Arc::new(self.job(request, phrase, touch))),
            BranchAccess::Move => {
                Work::Write(Arc::new(write::Job { moves: true, ..self.job(request, phrase, 0) }))
            }
        };
        let answer = desk.statement(branch, work, cut, deadline).await?;
        if let Some(cut) = cut {
            desk.transactions.cuts.assert(&desk, cut, deadline).await?;
        }
        write::decode(&answer.output, answer.index)
    }

    async fn run(&self, request: FragmentRequest) -> ServiceResult<FragmentResponse> {
        let (shard, sql, cut) = (request.shard, request.sql.clone(), request.cut);
        let answer = self.dated(shard, self.renew(shard, self.carry_out(request).await));
        if let Ok(desk) = self.desk(shard, None)
            && !desk.transactions.cuts.are_idle()
        {
            let index = desk.told_from(&answer);
            desk.tell(&self.phrases.of(&sql), cut, index).await;
        }
        answer
    }

    /// An error that leaves the shard says what it was made from.
    fn dated<T>(&self, id: ShardId, answer: ServiceResult<T>) -> ServiceResult<T> {
        answer.map_err(|error| match self.desk(id, None) {
            Ok(desk) => dated(error, id, &desk),
            Err(_) => error,
        })
    }

    async fn carry_out(&self, request: FragmentRequest) -> ServiceResult<FragmentResponse> {
        let deadline = machine::now() + request.timeout.min(LONGEST);
        match request.access.clone() {
            Access::Read { .. } => self.read(request, deadline).await,
            Access::Write { request: id, settled, touch, lock_timeout } => {
                self.write(request, (id, settled, touch), lock_timeout, deadline).await
            }
            Access::Branch { branch, access } => self.in_branch(request, branch, access, deadline).await,
        }
    }

    async fn act(&self, request: BranchRequest) -> ServiceResult<LogIndex> {
        let BranchRequest { shard, epoch, on_behalf, transaction, action, timeout } = request;
        // What ends a transaction is never refused for an old epoch.
        let ends = match action {
            BranchAction::Finish { .. } | BranchAction::Fail(_) => true,
            BranchAction::Renounce | BranchAction::Forget(_) => true,
            BranchAction::RollbackTo(_) | BranchAction::Commit { .. } | BranchAction::Prepare { .. } => false,
        };
        let mut desk = self.desk(shard, (!ends).then_some(epoch))?;
        desk.to.epoch = epoch;
        let deadline = machine::now() + timeout.min(LONGEST);
        let acted = match on_behalf.filter(|of| *of != shard) {
            Some(of) => desk.act_for(of, transaction, action, deadline).await,
            None => desk.act(transaction, action, deadline).await,
        };
        self.dated(shard, self.renew(shard, acted))
    }

    async fn cut_through(&self, request: CutRequest) -> ServiceResult<Vec<Unsettled>> {
        let CutRequest { shard, epoch, cut, action, timeout } = request;
        let desk = self.desk_of(shard, epoch, Some(cut))?;
        let deadline = machine::now() + timeout.min(LONGEST);
        let cuts = Arc::clone(&desk.transactions.cuts);
        self.renew(shard, cuts.act(&desk, cut, action, deadline).await)
    }

    async fn list(&self, shard: ShardId) -> ServiceResult<Vec<BranchStatus>> {
        let desk = self.desk(shard, None)?;
        let listed = desk.list(shard, machine::now() + self.config.schema_timeout).await;
        self.renew(shard, listed)
    }

    async fn hand(&self, request: HandOver) -> ServiceResult<HandedOver> {
        let shard = request.shard;
        if request.action == HandOverAction::Flows {
            return self.flow_statuses(shard).map(HandedOver::Flows);
        }
        let deadline = machine::now() + request.timeout.min(LONGEST);
        if request.action == HandOverAction::Reached {
            let reached = flow::reached(self, shard, (request.reshard, request.attempt), deadline).await;
            return self.renew(shard, reached).map(HandedOver::Reached);
        }
        let desk = self.desk(shard, None)?;
        self.renew(shard, desk.hand_over(request, deadline).await)
    }

    /// As its leader knows it, which has all that the shards were told from which this one has taken over.
    async fn told(&self, shard: ShardId, request: RequestId) -> ServiceResult<Option<FragmentResponse>> {
        let desk = self.desk(shard, None)?;
        let deadline = machine::now() + self.config.schema_timeout;
        let snapshot = self.renew(shard, desk.replica.snapshot(Consistency::Strong, deadline).await)?;
        fence::check_served(&snapshot, desk.to)?;
        let told = snapshot.told(request)?;
        told.map(|output| write::told(&output, snapshot.position())).transpose()
    }

    async fn step(&self, request: SchemaRequest) -> ServiceResult<LogIndex> {
        let shard = request.shard;
        let desk = self.desk(shard, None)?;
        let deadline = machine::now() + self.config.schema_timeout;
        let mut statements = request.statements;
        statements.extend(request.layouts.iter().map(|made| layout::note(request.step, made)));
        statements.extend(request.least_version.map(fence::raise));
        let require_empty = request.require_empty.into_iter().map(dialect::physical::table_name).collect();
        let entry = SchemaEntry {
            id: (request.step.job, request.step.step),
            statements,
            require_empty,
            notes: Vec::new(),
            deadline,
        };
        // Seen through though nobody may wait any more: it may be applied as long as it is under way.
        let step = tokio::spawn(async move {
            let _altering = Altering::begin(&desk, &entry.statements, deadline).await?;
            let stepped = desk.replica.schema(entry).await;
            desk.transactions.look().looks.forget();
            stepped
        });
        let stepped = step.await.unwrap_or_else(|_| Err(WireError::internal("a schema step was given up")));
        self.dated(shard, self.renew(shard, stepped))
    }
}

/// The error, made from what is in effect here by now, unless it says from what. A cut that is lost tells of nothing.
fn dated(error: WireError, id: ShardId, desk: &Desk) -> WireError {
    if is_cut_lost(&error) { error } else { error.made_from(id, desk.applied()) }
}

/// Whether the replica that is here of a group is one of those that were here before.
pub(crate) fn is_still(host: &Host, group: GroupId, before: &[Replica]) -> bool {
    host.replica(group).is_some_and(|replica| before.iter().any(|known| known.is(&replica)))
}

impl ShardService for ShardNode {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        match request.access {
            Access::Read { lookup: true, .. } => Box::pin(self.lookup(request)),
            Access::Read { .. } | Access::Write { .. } | Access::Branch { .. } => Box::pin(self.run(request)),
        }
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(self.act(request))
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        self.routers.hear(router);
        Box::pin(async { Ok(()) })
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        Box::pin(self.cut_through(request))
    }

    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(self.list(shard))
    }

    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        Box::pin(self.hand(request))
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        Box::pin(self.told(shard, request))
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(self.step(request))
    }

    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        Box::pin(self.build_for(request))
    }

    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        let replica = self.find(request.shard, None);
        Box::pin(async move { Ok(sums::read(replica?, request)) })
    }

    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        Box::pin(self.compare_rows(request))
    }

    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        Box::pin(async move {
            let TallyRequest { shard, within, rate } = request;
            let replica = self.find(shard, None)?;
            self.tallies.keep(|group| self.host.replica(group).is_some());
            Ok(self.tallies.ask(&replica, within, rate, &self.config.machine))
        })
    }

    fn load(&self) -> BoxFuture<'_, ServiceResult<Times>> {
        Box::pin(async { Ok(self.host.batch_times()) })
    }

    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        let replica = self.find(request.shard, None);
        Box::pin(async move { Ok(changes::read(replica?, request)) })
    }
}
