//! The coordinator's part on one node.
//!
//! In come the calls of [`CoordinatorService`], out go writes to the coordinator's log, and work for the workers. On
//! the leader a task takes up every unfinished job; on every node one follows what the replica applies.

use crate::admit::{self, Admission};
use crate::claims::Claims;
use crate::config::Config;
use crate::lingering::Lingering;
use crate::metrics::Metrics;
use crate::reach::{Pause, Reach};
use crate::replica_work::{Obstacles, ReplicaWorker};
use crate::state::State;
use crate::store::{self, Store};
use crate::tallies::{self, Tallies};
use crate::worker::Worker;
use crate::{care, course, decisions, finishing, inquiry, nodes, replicas, reshard, sequence, watching};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use proto::machine;
use proto::services::{
    Advice, Alarm, AutoWish, BoxFuture, BoxStream, Claim, ClusterState, ClusterStatus, Consistency,
    CoordinatorService, CoursePlan, CourseWish, CreateKeyspace, Decision, Joined, NodeJoin, Peers,
    ReplicaChange, ReplicaRole, ReplicaStatus, ReshardCommand, ReshardPhase, ReshardPlan, ReshardStatus,
    ReshardWish, SchemaChangeRequest, SequenceBlock, ServiceResult, ShardTally, Spent, TransactionStatus,
    Verdict,
};
use proto::topology::{AutoSplit, Node};
use proto::wire::Wire;
use proto::{
    GroupId, KeyspaceNumber, NodeId, RequestId, ReshardId, Retry, RouterIncarnation, SchemaVersion,
    SequenceId, SqlState, TransactionId, WireError,
};
use replica::{Host, Replica};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// How soon a request is tried again that others were in the way of.
const AGAIN: Duration = Duration::from_secs(1);

/// What the replica applies is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The coordinator's part on one node.
pub struct Coordinator {
    core: Arc<Core>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What all parts of it share.
pub(crate) struct Core {
    pub(crate) replica: Replica,
    pub(crate) config: Config,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) state: Arc<State>,
    /// There is a new job.
    pub(crate) begun: Notify,
    pub(crate) metrics: Metrics,
    /// What held up each change of replicas last.
    pub(crate) obstacles: Obstacles,
    /// What this leader knows of each reshard.
    pub(crate) reshards: Mutex<BTreeMap<ReshardId, reshard::Seen>>,
    /// How many rows shards have.
    pub(crate) tallies: Mutex<Tallies>,
    /// Counts what reshards were told.
    pub(crate) told: watch::Sender<u64>,
    /// Counts the calls that may have decided a transaction.
    pub(crate) deciding: watch::Sender<u64>,
    /// Transactions whose records were made or found since no router goes on with them: they are finished at once.
    pub(crate) orphans: Mutex<Vec<TransactionId>>,
    /// There are some.
    pub(crate) orphaned: Notify,
    /// Transactions that take long to end.
    pub(crate) lingering: Mutex<Lingering>,
    /// Who has claimed which idempotency key.
    pub(crate) claims: Arc<Mutex<Claims>>,
    /// How many keys are used up, about.
    pub(crate) keys: AtomicU64,
    /// Counts the jobs that ended here; `None` once nobody works here any more.
    ended: watch::Sender<Option<u64>>,
}

impl Coordinator {
    /// Makes or finds this node's replica of the coordinator's group as one of its founders, and plays its part as
    /// [`Self::open`] does. Only for a group that hasn't had a leader yet, or whose files are here.
    pub fn new(host: &Host, peers: Arc<dyn Peers>, config: Config) -> Result<Arc<Coordinator>, WireError> {
        if config.replicas == 0 || config.replicas > config.expected_nodes || config.shards == 0 {
            let message = format!(
                "{} shards with {} replicas each can't be placed on {} nodes",
                config.shards, config.replicas, config.expected_nodes
            );
            return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        let replica = host.create(GroupId::COORDINATOR, &config.voters, &store::init(&config))?;
        Ok(Self::open(replica, peers, config))
    }

    /// Follows this node's replica of the coordinator's group, and works for it where it leads. The replica may be one
    /// that the group has just begun to fill. Call it inside a tokio runtime.
    pub fn open(replica: Replica, peers: Arc<dyn Peers>, config: Config) -> Arc<Coordinator> {
        let core = Arc::new(Core {
            replica,
            config,
            peers,
            state: Arc::new(State::new()),
            begun: Notify::new(),
            metrics: Metrics::new(),
            obstacles: Obstacles::default(),
            reshards: Mutex::default(),
            tallies: Mutex::default(),
            told: watch::Sender::default(),
            deciding: watch::Sender::default(),
            orphans: Mutex::default(),
            orphaned: Notify::new(),
            lingering: Mutex::default(),
            claims: Arc::default(),
            keys: AtomicU64::new(0),
            ended: watch::Sender::new(Some(0)),
        });
        let following = tokio::spawn(follow(Arc::clone(&core))).abort_handle();
        let leading = tokio::spawn(lead(Arc::clone(&core))).abort_handle();
        Arc::new(Coordinator { core, tasks: Mutex::new(vec![following, leading]) })
    }

    /// Whether this is the replica that it works on. If the group has another one on this node by now, it must be
    /// opened on that.
    pub fn works_on(&self, replica: &Replica) -> bool {
        self.core.replica.is(replica)
    }

    /// Alarms and reshards, in Prometheus' form: what it has counted, and while it leads, the alarms that stand and the
    /// phases of reshards.
    pub fn metrics(&self) -> Vec<MetricFamily> {
        if self.core.check_leader().is_err() {
            return self.core.metrics.gather(&[], &[]);
        }
        let topology = self.core.state.subscribe().borrow().topology.clone();
        let standing = self.core.troubles(&topology, machine::now());
        let seen = self.core.reshards.lock();
        let phases = seen.iter().filter_map(|(id, seen)| seen.since.map(|(phase, _)| (*id, phase)));
        self.core.metrics.gather(&standing, &phases.collect::<Vec<_>>())
    }

    /// Stops what it does by itself. Its replica goes on. Doing it again does nothing.
    pub fn shutdown(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.core.ended.send_replace(None);
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Tells everyone what the replica applies: at once, but not for every decision of a busy cluster.
async fn follow(core: Arc<Core>) {
    let mut status = core.replica.watch();
    let mut pause = Pause::default();
    let mut looked: Option<Instant> = None;
    let mut closely = None;
    loop {
        if let Some(looked) = looked {
            tokio::time::sleep_until((looked + LOOK_EVERY).into()).await;
        }
        looked = Some(machine::now());
        status.mark_unchanged();
        match core.state.refresh(&core.replica).await {
            Ok(()) => pause = Pause::default(),
            Err(error) => {
                tracing::debug!(%error, "the coordinator's replica can't be read");
                pause.wait().await;
                continue;
            }
        }
        // While transactions wait for a switch, what is decided is told without waiting for a tick.
        let is_gated =
            core.state.subscribe().borrow().topology.reshards.iter().any(|shown| shown.gate.is_some());
        closely = is_gated.then(|| closely.take().unwrap_or_else(|| core.replica.follow_closely()));
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Something that a leader goes on with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Schema(u64),
    Replicas(u64),
    Course(u64),
    Reshard(ReshardId),
}

/// Works off the jobs, while this node leads.
async fn lead(core: Arc<Core>) {
    let mut status = core.replica.watch();
    loop {
        if status.wait_for(|status| status.role == ReplicaRole::Leader).await.is_err() {
            return;
        }
        let mut working = JoinSet::new();
        *core.lingering.lock() = Lingering::default();
        core.reshards.lock().clear();
        let standing: HashSet<_> = [
            working.spawn(care::care(Arc::clone(&core))).id(),
            working.spawn(finishing::finish(Arc::clone(&core))).id(),
            working.spawn(inquiry::inquire(Arc::clone(&core))).id(),
            working.spawn(decisions::sweep(Arc::clone(&core))).id(),
            working.spawn(tallies::count(Arc::clone(&core))).id(),
        ]
        .into();
        let mut jobs: HashMap<tokio::task::Id, Work> = HashMap::new();
        let mut pause = Pause::default();
        while status.borrow().role == ReplicaRole::Leader {
            match core.jobs().await {
                Ok(unfinished) => {
                    pause = Pause::default();
                    for work in unfinished {
                        if jobs.values().any(|known| *known == work) {
                            continue;
                        }
                        let task = match work {
                            Work::Schema(job) => working.spawn(core.worker().run(job)),
                            Work::Replicas(job) => working.spawn(core.replica_worker().run(job)),
                            Work::Course(id) => working.spawn(course::run(Arc::clone(&core), id)),
                            Work::Reshard(id) => working.spawn(reshard::run(Arc::clone(&core), id)),
                        };
                        jobs.insert(task.id(), work);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the coordinator's jobs can't be read");
                    pause.wait().await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                Some(ended) = working.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "the coordinator's worker has failed");
                            error.id()
                        }
                    };
                    if standing.contains(&id) {
                        // None of them ends by itself: all begins anew.
                        break;
                    }
                    jobs.remove(&id);
                    if let Err(error) = core.state.refresh(&core.replica).await {
                        tracing::debug!(%error, "the coordinator's replica can't be read");
                    }
                    core.count_end();
                }
                () = core.begun.notified() => {}
                left = lost(&mut status) => {
                    if left.is_err() {
                        return;
                    }
                }
            }
        }
        // Whoever leads now goes on with what was begun; who waits here asks there.
        working.shutdown().await;
        core.count_end();
    }
}

/// Waits for the end of this node's leadership.
async fn lost(status: &mut watch::Receiver<ReplicaStatus>) -> Result<(), watch::error::RecvError> {
    status.wait_for(|status| status.role != ReplicaRole::Leader).await.map(drop)
}

impl Core {
    /// The way to the shards.
    pub(crate) fn reach(&self) -> Reach {
        let (peers, config) = (Arc::clone(&self.peers), self.config.clone());
        Reach { peers, state: self.state.subscribe(), config }
    }

    fn worker(&self) -> Worker {
        Worker { replica: self.replica.clone(), reach: self.reach() }
    }

    fn replica_worker(&self) -> ReplicaWorker {
        ReplicaWorker {
            replica: self.replica.clone(),
            reach: self.reach(),
            state: Arc::clone(&self.state),
            obstacles: Arc::clone(&self.obstacles),
        }
    }

    /// Wakes everyone who waits for a job's end.
    pub(crate) fn count_end(&self) {
        self.ended.send_modify(|ended| *ended = ended.map(|count| count + 1));
    }

    /// What isn't finished.
    async fn jobs(&self) -> Result<Vec<Work>, WireError> {
        let deadline = machine::now() + self.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        let schema = store.jobs()?.into_iter().map(|job| Work::Schema(job.id));
        let replicas = store.replica_jobs()?.into_iter().map(|job| Work::Replicas(job.id));
        let going_on = store.reshards()?.into_iter().filter(|record| record.phase != ReshardPhase::Ended);
        let courses = store.courses()?.into_iter().map(|course| Work::Course(course.id));
        Ok(schema
            .chain(replicas)
            .chain(courses)
            .chain(going_on.map(|record| Work::Reshard(record.id)))
            .collect())
    }

    /// Runs a write on the coordinator's leader, which must be here.
    pub(crate) async fn write(
        &self,
        run: impl FnOnce(Store<'_>) -> Result<Bytes, WireError> + Send + 'static,
    ) -> ServiceResult<Bytes> {
        store::write(&self.replica, self.config.write_timeout, run).await
    }

    /// Has something admitted, again and again while others are in the way, and waits for its end. `begin` is
    /// asked again, and knows what it has admitted.
    async fn admit(
        &self,
        begin: impl Fn(Store<'_>) -> Result<Admission, WireError> + Clone + Send + 'static,
    ) -> ServiceResult<u64> {
        let until = tokio::time::Instant::now() + self.config.schema_timeout;
        let mut ended = self.ended.subscribe();
        let mut running: Option<u64> = None;
        loop {
            if ended.borrow_and_update().is_none() {
                return Err(WireError::new(SqlState::ADMIN_SHUTDOWN, "the coordinator is shutting down")
                    .with_retry(Retry::NotLeader(None)));
            }
            let begin = begin.clone();
            let output = self.write(move |store| Ok(begin(store)?.to_bytes()));
            match Admission::from_bytes(&output.await?)? {
                Admission::Done(value) => {
                    self.state.refresh(&self.replica).await?;
                    return Ok(value);
                }
                Admission::Failed(error) => {
                    self.state.refresh(&self.replica).await?;
                    return Err(error);
                }
                Admission::Running(job) => {
                    if running.is_none() {
                        // The keyspace that it makes must be known before its shards are asked.
                        self.state.refresh(&self.replica).await?;
                        self.begun.notify_one();
                    }
                    running = Some(job);
                }
                Admission::Wait => {}
            }
            // What is in the way needn't be a job of this node's.
            let again = until.min(tokio::time::Instant::now() + AGAIN);
            let waited = tokio::time::timeout_at(again, ended.changed()).await;
            if waited.is_err() && tokio::time::Instant::now() >= until {
                return Err(match running {
                    Some(job) => WireError::new(
                        SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                        format!("change {job} is still under way"),
                    )
                    .with_detail("It goes on by itself.")
                    .with_retry(Retry::Unknown),
                    None => WireError::new(
                        SqlState::LOCK_NOT_AVAILABLE,
                        "canceling statement because other changes are in its way",
                    )
                    .with_hint("\"shoal status\" shows what is under way. Run it again when that is done."),
                });
            }
        }
    }

    pub(crate) fn check_leader(&self) -> ServiceResult<()> {
        if self.replica.is_leader() {
            return Ok(());
        }
        let leader = self.replica.status().leader.filter(|leader| *leader != self.config.node);
        Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "this node doesn't lead the coordinator")
            .with_retry(Retry::NotLeader(leader)))
    }
}

impl CoordinatorService for Coordinator {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        Box::pin(async { Ok(watching::watch(self.core.state.subscribe(), self.core.replica.watch())) })
    }

    fn register(&self, node: Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let (config, heard) = (self.core.config.clone(), self.core.state.heard(node.id));
            let register =
                move |store: Store<'_>| nodes::register(store, &node, heard, &config).map(|()| Bytes::new());
            self.core.write(register).await.map(drop)
        })
    }

    fn report(
        &self,
        node: NodeId,
        replicas: Vec<ReplicaStatus>,
        former: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            self.core.state.report(node, &replicas, former);
            Ok(())
        })
    }

    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        Box::pin(async move {
            let request = Arc::new(request);
            let begin = move |store: Store<'_>| admit::change(store, &request);
            self.core.admit(begin).await.map(SchemaVersion)
        })
    }

    fn allocate(&self, id: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        Box::pin(async move {
            let output = self
                .core
                .write(move |store| Ok(sequence::allocate(store, id, count)?.encode().into()))
                .await?;
            SequenceBlock::decode(&output).map_err(|e| WireError::internal(e.to_string()))
        })
    }

    fn set_sequence(&self, id: SequenceId, next: i64) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let set = move |store: Store<'_>| sequence::set(store, id, next).map(|()| Bytes::new());
            self.core.write(set).await.map(drop)
        })
    }

    fn create_keyspace(&self, request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async move {
            let begin = move |store: Store<'_>| admit::keyspace(store, &request);
            self.core.admit(begin).await.map(|number| KeyspaceNumber(number as u32))
        })
    }

    fn join(&self, join: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>> {
        Box::pin(async move {
            let join = move |store: Store<'_>| Ok(nodes::join(store, &join)?.encode().into());
            let output = self.core.write(join).await?;
            self.core.state.refresh(&self.core.replica).await?;
            Joined::decode(&output).map_err(|e| WireError::internal(e.to_string()))
        })
    }

    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let core = Arc::clone(&self.core);
            let change = Arc::new(change);
            let begin = move |store: Store<'_>| replicas::change(store, &change, &core.known(machine::now()));
            self.core.admit(begin).await.map(drop)
        })
    }

    fn course(&self, wish: CourseWish) -> BoxFuture<'_, ServiceResult<CoursePlan>> {
        Box::pin(self.core.course(wish))
    }

    fn reshard(&self, wish: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>> {
        Box::pin(self.core.reshard(wish))
    }

    fn command(
        &self,
        request: RequestId,
        reshard: ReshardId,
        command: ReshardCommand,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(self.core.command(request, reshard, command))
    }

    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>> {
        Box::pin(self.core.reshards())
    }

    fn set_auto(&self, wish: AutoWish) -> BoxFuture<'_, ServiceResult<Option<AutoSplit>>> {
        Box::pin(self.core.set_auto(wish))
    }

    fn advise(&self) -> BoxFuture<'_, ServiceResult<Vec<Advice>>> {
        Box::pin(self.core.advise())
    }

    fn tallies(&self) -> BoxFuture<'_, ServiceResult<Vec<ShardTally>>> {
        Box::pin(async { self.core.tallies_now() })
    }

    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        Box::pin(self.core.decide(decision))
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>> {
        Box::pin(self.core.claim(claim))
    }

    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { self.core.finished(&transactions).await })
    }

    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        Box::pin(self.core.transactions(one))
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        Box::pin(async {
            self.core.check_leader()?;
            // Whoever asks has heard of what isn't told yet: this is the group's state, not what was told last.
            let deadline = machine::now() + self.core.config.write_timeout;
            drop(self.core.replica.snapshot(Consistency::Strong, deadline).await?);
            self.core.state.refresh(&self.core.replica).await?;
            let jobs = self.core.jobs_now().await?;
            let state = self.core.state.subscribe().borrow().clone();
            let now = machine::now();
            let heard = self.core.heard(&state.topology, now);
            let mut alarms: Vec<_> =
                self.core.troubles(&state.topology, now).into_iter().map(Alarm::from).collect();
            alarms.extend(self.core.lingering.lock().alarms(&state));
            let (replicas, loads) = (self.core.state.reports(), self.core.state.loads());
            Ok(ClusterStatus { state, replicas, heard, jobs, alarms, loads })
        })
    }
}
