//! Whole clusters without routers, in one process: hosts, shardnodes and coordinators, and a gate before each shard.

use coordinator::{Config, Coordinator};
use parking_lot::Mutex;
use proto::services::{
    Access, BoxFuture, BoxStream, BranchAction, BranchRequest, BranchStatus, BuildRequest, Built, Changes,
    ChangesRequest, ClusterState, CompareRequest, Compared, CoordinatorService, CutRequest, Floor,
    FragmentRequest, FragmentResponse, HandOver, HandOverAction, HandedOver, Members, Peers, RaftMessage,
    RaftService, RaftTransport, ReplicaService, ReplicaStatus, RowSource, SchemaChange, SchemaChangeRequest,
    SchemaRequest, ServiceResult, ShardService, Sums, SumsRequest, Tally, TallyRequest, Unsettled,
};
use proto::topology::{Node, Roles};
use proto::{
    ClusterId, GroupId, KeyspaceNumber, LogIndex, NodeId, RequestId, Retry, RouterIncarnation, SchemaVersion,
    ShardId, SqlState, TableId, TransactionId, Value, WireError,
};
use replica::Host;
use shardnode::{Agent, ShardNode};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that are up.
pub struct Directory {
    own: Weak<Directory>,
    hosts: Mutex<HashMap<NodeId, Weak<Host>>>,
    shards: Mutex<HashMap<NodeId, Arc<dyn ShardService>>>,
    coordinators: Mutex<BTreeMap<NodeId, Arc<Coordinator>>>,
    /// Shards that take no schema step.
    closed: watch::Sender<HashSet<ShardId>>,
    /// Whether nobody builds.
    pub idle: AtomicBool,
    /// Schema steps that were refused for that.
    refused: watch::Sender<u64>,
    /// The node that no Raft message reaches, and that none leaves.
    cut: Mutex<Option<NodeId>>,
    /// What becomes of changes of members, if they don't reach the groups.
    script: Mutex<Option<Script>>,
    /// The voters that groups were asked to have.
    asked: watch::Sender<Vec<(GroupId, Vec<NodeId>)>>,
    /// What shards have of transactions.
    pub branches: watch::Sender<Branches>,
    /// What was asked of shards for a switch.
    handed: watch::Sender<Vec<(ShardId, HandOverAction)>>,
}

/// What shards have of transactions, in their stead.
#[derive(Default)]
pub struct Branches {
    /// It's the shards themselves that have them.
    pub real: bool,
    /// Those that are there.
    pub open: BTreeMap<(ShardId, TransactionId), BranchStatus>,
    /// What was done with which.
    pub told: Vec<(ShardId, TransactionId, BranchAction)>,
    /// Shards that take nothing.
    pub deaf: HashSet<ShardId>,
    /// How often one of those was told something.
    pub unheard: u64,
}

impl Branches {
    fn transact(&mut self, request: &BranchRequest) -> ServiceResult<LogIndex> {
        let BranchRequest { shard, transaction, action, .. } = request;
        if self.deaf.contains(shard) {
            self.unheard += 1;
            return Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "deaf").with_retry(Retry::Later));
        }
        self.told.push((*shard, *transaction, action.clone()));
        self.open.remove(&(*shard, *transaction));
        Ok(LogIndex(1))
    }

    /// What was done with a transaction's branches.
    pub fn told_of(&self, transaction: TransactionId) -> Vec<(ShardId, BranchAction)> {
        let told = self.told.iter().filter(|(_, told, _)| *told == transaction);
        told.map(|(shard, _, action)| (*shard, action.clone())).collect()
    }
}

/// Answers a change of members in a group's stead.
pub type Script = Box<dyn Fn(GroupId, &[NodeId]) -> ServiceResult<()> + Send>;

/// The replicas of a node; changes of members go by the script, if there is one.
struct Scripted {
    host: Arc<Host>,
    directory: Weak<Directory>,
}

impl Scripted {
    fn script(&self, group: GroupId, voters: &[NodeId]) -> Option<ServiceResult<()>> {
        let directory = self.directory.upgrade()?;
        directory.asked.send_modify(|asked| asked.push((group, voters.to_vec())));
        let script = directory.script.lock();
        script.as_ref().map(|script| script(group, voters))
    }
}

impl ReplicaService for Scripted {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        ReplicaService::replicas(self.host.as_ref())
    }

    fn change_members(
        &self,
        group: GroupId,
        voters: Vec<NodeId>,
        rebuild: Option<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        match self.script(group, &voters) {
            Some(answer) => {
                Box::pin(async move { answer.map(|()| Members { voters, ..Members::default() }) })
            }
            None => self.host.change_members(group, voters, rebuild, timeout),
        }
    }

    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        match self.script(group, &[to]) {
            Some(answer) => Box::pin(async move { answer }),
            None => self.host.transfer_leader(group, to, timeout),
        }
    }

    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        self.host.check(group, timeout)
    }

    fn hold_log(
        &self,
        group: GroupId,
        name: String,
        from: Option<LogIndex>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        self.host.hold_log(group, name, from, timeout)
    }
}

impl Peers for Directory {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        self.shards.lock().get(&node).cloned()
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        let host = self.hosts.lock().get(&node).and_then(Weak::upgrade)?;
        let directory = Weak::clone(&self.own);
        Some(Arc::new(Scripted { host, directory }))
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        let coordinators = self.coordinators.lock();
        let services = coordinators
            .iter()
            .map(|(node, coordinator)| (*node, Arc::clone(coordinator) as Arc<dyn CoordinatorService>));
        services.collect()
    }
}

impl Directory {
    fn new() -> Arc<Directory> {
        Arc::new_cyclic(|own| Directory {
            own: Weak::clone(own),
            hosts: Mutex::default(),
            shards: Mutex::default(),
            coordinators: Mutex::default(),
            closed: watch::Sender::default(),
            idle: AtomicBool::default(),
            refused: watch::Sender::default(),
            cut: Mutex::default(),
            script: Mutex::default(),
            asked: watch::Sender::default(),
            branches: watch::Sender::default(),
            handed: watch::Sender::default(),
        })
    }

    /// A node's part of the coordinator, with more than others can ask of it.
    pub fn coordinator(&self, node: NodeId) -> Arc<Coordinator> {
        self.coordinators.lock()[&node].clone()
    }

    /// Cuts a node off from the others, as far as Raft goes.
    pub fn cut(&self, node: Option<NodeId>) {
        *self.cut.lock() = node;
    }

    /// Has changes of members go by a script, or reach the groups.
    pub fn script(&self, script: Option<Script>) {
        *self.script.lock() = script;
    }

    /// Waits until a group has been asked to have such voters.
    pub async fn asked(&self, wanted: impl Fn(GroupId, &[NodeId]) -> bool) {
        let mut asked = self.asked.subscribe();
        let found = asked.wait_for(|asked| asked.iter().any(|(group, voters)| wanted(*group, voters)));
        tokio::time::timeout(PATIENCE, found).await.expect("the group is asked").unwrap();
    }

    /// What groups were asked to have.
    pub fn all_asked(&self) -> Vec<(GroupId, Vec<NodeId>)> {
        self.asked.borrow().clone()
    }

    /// Waits until all of these shards were asked for such a thing, for a switch. What was asked for by then.
    pub async fn handed(
        &self,
        shards: &[ShardId],
        wanted: impl Fn(&HandOverAction) -> bool,
    ) -> Vec<(ShardId, HandOverAction)> {
        let mut handed = self.handed.subscribe();
        let is_asked = |handed: &Vec<(ShardId, HandOverAction)>, shard: &ShardId| {
            handed.iter().any(|(of, action)| of == shard && wanted(action))
        };
        let found = handed.wait_for(|handed| shards.iter().all(|shard| is_asked(handed, shard)));
        tokio::time::timeout(PATIENCE, found).await.expect("the shards are asked").unwrap().clone()
    }

    /// Asks the coordinator's leader, as a router does: again where nothing was done, or where it is safe.
    pub async fn ask<T, F>(&self, call: impl Fn(Arc<dyn CoordinatorService>) -> F) -> ServiceResult<T>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let asked = async {
            loop {
                for (_, coordinator) in self.coordinators() {
                    match call(coordinator).await {
                        Err(error) if is_passing(&error) => {}
                        answer => return answer,
                    }
                }
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("a coordinator answers")
    }
}

struct Link {
    from: NodeId,
    directory: Weak<Directory>,
}

impl RaftTransport for Link {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let Some(directory) = self.directory.upgrade() else { return };
        if directory.cut.lock().is_some_and(|cut| cut == to || cut == self.from) {
            return;
        }
        let host = directory.hosts.lock().get(&to).and_then(Weak::upgrade);
        if let Some(host) = host {
            host.receive(self.from, messages);
        }
    }
}

/// A shardnode that refuses schema steps for closed shards, and whose transactions are made up.
struct Gate {
    shards: Arc<ShardNode>,
    directory: Weak<Directory>,
}

impl ShardService for Gate {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        self.shards.execute(request)
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        let directory = self.directory.upgrade();
        if directory.as_ref().is_some_and(|directory| directory.branches.borrow().real) {
            return self.shards.transact(request);
        }
        Box::pin(async move {
            let Some(directory) = directory else { return Err(WireError::internal("the test is over")) };
            let mut answer = Err(WireError::internal("nobody was told"));
            directory.branches.send_modify(|branches| answer = branches.transact(&request));
            answer
        })
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        self.shards.keep_alive(router)
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        self.shards.cut(request)
    }

    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        let directory = self.directory.upgrade();
        if directory.as_ref().is_some_and(|directory| directory.branches.borrow().real) {
            return self.shards.branches(shard);
        }
        Box::pin(async move {
            let Some(directory) = directory else { return Ok(Vec::new()) };
            let branches = directory.branches.borrow();
            Ok(branches.open.values().filter(|branch| branch.shard == shard).cloned().collect())
        })
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        self.shards.outcome(shard, request)
    }

    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        if let Some(directory) = self.directory.upgrade()
            && request.action != HandOverAction::Flows
        {
            directory.handed.send_modify(|handed| handed.push((request.shard, request.action.clone())));
        }
        self.shards.hand_over(request)
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        if let Some(directory) = self.directory.upgrade()
            && directory.closed.borrow().contains(&request.shard)
        {
            directory.refused.send_modify(|refused| *refused += 1);
            let error = WireError::new(SqlState::CANNOT_CONNECT_NOW, "closed").with_retry(Retry::Later);
            return Box::pin(async move { Err(error) });
        }
        self.shards.apply_schema(request)
    }

    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        self.shards.tally(request)
    }

    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        if self.directory.upgrade().is_some_and(|directory| directory.idle.load(Ordering::Relaxed)) {
            let idle = WireError::new(SqlState::CANNOT_CONNECT_NOW, "idle").with_retry(Retry::Later);
            return Box::pin(async move { Err(idle) });
        }
        self.shards.build(request)
    }

    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        self.shards.sums(request)
    }

    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        self.shards.compare(request)
    }

    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        self.shards.changes(request)
    }
}

struct Member {
    host: Arc<Host>,
    tasks: Vec<AbortHandle>,
}

/// How a cluster begins.
#[derive(Clone)]
pub struct Shape {
    /// How many nodes it has.
    pub nodes: u64,
    /// How many of them, the first ones, found the coordinator.
    pub coordinators: u64,
    /// How many shards `main` has.
    pub shards: u32,
    /// How many replicas each shard has.
    pub replicas: u32,
    /// After what silence replicas are replaced.
    pub replace_after: Duration,
    /// After what time a lost replica is made anew.
    pub rebuild_after: Duration,
    /// How long a decided transaction is left to its router.
    pub finish_after: Duration,
    /// How long a prepared one is.
    pub abort_after: Duration,
    /// After what silence of its router a shard takes a prepared one for forsaken.
    pub router_silence: Duration,
    /// How long a finished one is remembered.
    pub remember_transactions: Duration,
    /// The routers that ran on its nodes before.
    pub former: &'static [RouterIncarnation],
}

impl Default for Shape {
    /// Five nodes; the coordinator is on three, and each shard on three. Nothing is repaired by itself.
    fn default() -> Self {
        let never = Duration::from_secs(3600);
        Shape {
            nodes: 5,
            coordinators: 3,
            shards: 1,
            replicas: 3,
            replace_after: never,
            rebuild_after: never,
            finish_after: Duration::from_millis(50),
            abort_after: Duration::from_secs(5),
            router_silence: never,
            remember_transactions: never,
            former: &[],
        }
    }
}

/// A cluster.
pub struct Cluster {
    pub directory: Arc<Directory>,
    pub shape: Shape,
    members: BTreeMap<NodeId, Member>,
    files: tempfile::TempDir,
    sequence: AtomicU64,
}

impl Cluster {
    /// So many nodes, with a replica of everything each, and so many shards in `main`.
    pub async fn start(nodes: u64, shards: u32) -> Cluster {
        let shape = Shape { nodes, coordinators: nodes, shards, replicas: nodes as u32, ..Shape::default() };
        Self::start_as(shape).await
    }

    /// Begins as it says, and waits until all groups are formed.
    pub async fn start_as(shape: Shape) -> Cluster {
        let mut cluster = Cluster {
            directory: Directory::new(),
            members: BTreeMap::new(),
            files: tempfile::tempdir().unwrap(),
            sequence: AtomicU64::new(1),
            shape,
        };
        for node in 1..=cluster.shape.nodes {
            cluster.open(NodeId(node));
        }
        cluster.formed().await;
        cluster
    }

    /// Waits until all groups are formed.
    pub async fn formed(&self) -> ClusterState {
        self.state_where(|state| {
            let topology = &state.topology;
            topology.keyspaces.len() >= 2 && topology.shards.values().all(|shard| shard.formed)
        })
        .await
    }

    /// Starts a node.
    pub fn open(&mut self, node: NodeId) {
        let path = self.files.path().join(node.to_string());
        let founds = node.0 <= self.shape.coordinators && !path.exists();
        let mut config = replica::Config::new(node, path);
        config.tick = Duration::from_millis(20);
        let directory = Arc::downgrade(&self.directory);
        let link = Link { from: node, directory: Weak::clone(&directory) };
        let host = Host::open(config, Arc::new(link)).unwrap();
        self.directory.hosts.lock().insert(node, Arc::downgrade(&host));
        let mut config = shardnode::Config::new(node);
        config.router_silence = self.shape.router_silence;
        let shards = ShardNode::new(Arc::clone(&host), config);
        let gate = Gate { shards: Arc::clone(&shards), directory };
        self.directory.shards.lock().insert(node, Arc::new(gate));
        let peers: Arc<dyn Peers> = Arc::clone(&self.directory) as Arc<dyn Peers>;
        let config = Config {
            cluster: ClusterId(77),
            shards: self.shape.shards,
            replicas: self.shape.replicas,
            expected_nodes: self.shape.nodes as u32,
            attempt_timeout: Duration::from_secs(5),
            schema_timeout: PATIENCE,
            member_timeout: Duration::from_secs(5),
            silent_after: Duration::from_secs(5),
            replace_after: self.shape.replace_after,
            rebuild_after: self.shape.rebuild_after,
            look_every: Duration::from_millis(50),
            finish_after: self.shape.finish_after,
            abort_after: self.shape.abort_after,
            remember_transactions: self.shape.remember_transactions,
            ask_every: Duration::from_millis(50),
            ask_waiting_every: Duration::from_millis(20),
            ..Config::new(node, (1..=self.shape.coordinators).map(NodeId).collect())
        };
        if founds {
            drop(Coordinator::new(&host, Arc::clone(&peers), config.clone()).unwrap());
        }
        let attending = attend(Arc::clone(&self.directory), node, Arc::clone(&host), config);
        let registered = Node {
            id: node,
            address: String::new(),
            roles: Roles::ALL,
            zone: String::new(),
            draining: false,
        };
        let heard = Box::new(|_: &ClusterState| {});
        let agent = Agent {
            node: registered,
            host: Arc::clone(&host),
            shards: Some(shards),
            former: self.shape.former.to_vec(),
            peers,
            heard,
            machine: Default::default(),
        };
        let tasks = vec![tokio::spawn(agent.run()).abort_handle(), tokio::spawn(attending).abort_handle()];
        self.members.insert(node, Member { host, tasks });
    }

    /// Stops a node as a crash would: nobody is told.
    pub async fn stop(&mut self, node: NodeId) {
        let member = self.members.remove(&node).unwrap();
        self.directory.shards.lock().remove(&node);
        self.directory.hosts.lock().remove(&node);
        for task in member.tasks {
            task.abort();
        }
        if let Some(coordinator) = self.directory.coordinators.lock().remove(&node) {
            coordinator.shutdown();
        }
        tokio::task::spawn_blocking(move || member.host.shutdown()).await.unwrap();
    }

    /// The host of a node that is up.
    pub fn host(&self, node: NodeId) -> &Arc<Host> {
        &self.members[&node].host
    }

    /// Deletes the files that a node, which is down, has of a group.
    pub fn lose(&self, node: NodeId, group: GroupId) {
        let path = self.files.path().join(node.to_string()).join("groups").join(group.to_string());
        std::fs::remove_dir_all(path).unwrap();
    }

    /// The host of a node, if that is up.
    pub fn host_of(&self, node: NodeId) -> Option<&Arc<Host>> {
        self.members.get(&node).map(|member| &member.host)
    }

    /// The node that leads the coordinator.
    pub async fn leader(&self) -> NodeId {
        self.ask(|coordinator| async move { coordinator.status().await }).await.unwrap();
        let leading = |node: &&NodeId| {
            let replica = self.members[node].host.replica(GroupId::COORDINATOR);
            replica.is_some_and(|replica| replica.is_leader())
        };
        *self.members.keys().find(leading).expect("one has answered as leader")
    }

    /// The newest state that satisfies this, at any coordinator.
    pub async fn state_where(&self, wanted: impl Fn(&ClusterState) -> bool) -> ClusterState {
        let found = async {
            loop {
                // One that is stopped tells no more: another one goes on.
                let coordinators = self.directory.coordinators();
                let Some((_, coordinator)) = coordinators.into_iter().next() else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let mut states = coordinator.watch().await.unwrap();
                drop(coordinator);
                while let Some(state) = poll_fn(|context| Pin::as_mut(&mut states).poll_next(context)).await {
                    if wanted(&state) {
                        return state;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the cluster gets there")
    }

    /// The state now.
    pub async fn state(&self) -> ClusterState {
        self.ask(|coordinator| async move { coordinator.status().await }).await.unwrap().state
    }

    /// Asks the coordinator's leader.
    pub async fn ask<T, F>(&self, call: impl Fn(Arc<dyn CoordinatorService>) -> F) -> ServiceResult<T>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        self.directory.ask(call).await
    }

    /// A name for a request that nobody has used.
    pub fn name(&self) -> RequestId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        RequestId { router: RouterIncarnation(5), sequence }
    }

    /// A request that plans by this version.
    pub fn request(&self, planned_by: SchemaVersion, change: SchemaChange) -> SchemaChangeRequest {
        SchemaChangeRequest { request: self.name(), planned_by, change }
    }

    /// Has a request done.
    pub async fn send(&self, request: &SchemaChangeRequest) -> ServiceResult<SchemaVersion> {
        self.ask(|coordinator| {
            let request = request.clone();
            async move { coordinator.change_schema(request).await }
        })
        .await
    }

    /// Makes a change, planned by the newest catalog.
    pub async fn change(&self, change: SchemaChange) -> ServiceResult<SchemaVersion> {
        let planned_by = self.state().await.catalog.version();
        self.send(&self.request(planned_by, change)).await
    }

    /// Refuses schema steps for a shard from now on.
    pub fn close(&self, shard: ShardId) {
        self.directory.closed.send_modify(|closed| {
            closed.insert(shard);
        });
    }

    /// Takes them again.
    pub fn open_all(&self) {
        self.directory.closed.send_modify(HashSet::clear);
    }

    /// Waits until a step has been refused.
    pub async fn refused(&self) {
        let mut refused = self.directory.refused.subscribe();
        let heard = refused.wait_for(|refused| *refused > 0);
        tokio::time::timeout(PATIENCE, heard).await.expect("a step is tried").unwrap();
    }

    /// The shards of a keyspace, in order.
    pub async fn shards_of(&self, keyspace: KeyspaceNumber) -> Vec<ShardId> {
        self.state().await.topology.keyspaces[&keyspace].shards.clone()
    }

    /// Runs SQL on one shard, at this version.
    pub async fn run_at(
        &self,
        version: SchemaVersion,
        shard: ShardId,
        sql: &str,
    ) -> ServiceResult<Vec<Vec<Value>>> {
        let state = self.state().await;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let reads = sql.starts_with("SELECT");
        let request = RequestId { router: RouterIncarnation(6), sequence };
        let fragment = FragmentRequest {
            shard,
            epoch: state.topology.epoch,
            schema_version: version,
            sql: sql.into(),
            params: Vec::new(),
            rows: None,
            access: if reads {
                Access::strong(true)
            } else {
                Access::Write { request, settled: 0, touch: 0, lock_timeout: None }
            },
            cut: None,
            floor: Floor::default(),
            timeout: PATIENCE,
        };
        let execute = |service: Arc<dyn ShardService>| {
            let fragment = fragment.clone();
            async move { service.execute(fragment).await }
        };
        let response = self.ask_shard(shard, execute).await?;
        let RowSource::Whole(batch) = response.rows else { panic!("a small result comes whole") };
        Ok(batch.rows().map(|row| row.map(|value| value.to_owned()).collect()).collect())
    }

    /// Asks a shard's leader.
    pub async fn ask_shard<T, F>(
        &self,
        shard: ShardId,
        call: impl Fn(Arc<dyn ShardService>) -> F,
    ) -> ServiceResult<T>
    where
        F: Future<Output = ServiceResult<T>>,
    {
        let replicas = self.state().await.topology.shards[&shard].replicas.clone();
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let asked = async {
            loop {
                for node in &replicas {
                    let Some(service) = self.directory.shard_service(*node) else { continue };
                    match call(service).await {
                        Err(error) if is_passing(&error) => {}
                        answer => return answer,
                    }
                }
                pause.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("the shard answers")
    }

    /// Runs SQL on one shard.
    pub async fn run(&self, shard: ShardId, sql: &str) -> ServiceResult<Vec<Vec<Value>>> {
        let version = self.state().await.catalog.version();
        self.run_at(version, shard, sql).await
    }

    /// How many rows a shard has of a table.
    pub async fn count(&self, shard: ShardId, table: TableId) -> i64 {
        match self.run(shard, &format!("SELECT count(*) FROM t{table}")).await.unwrap()[0][0] {
            Value::Int(count) => count,
            ref other => panic!("not a count: {other:?}"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (node, member) in std::mem::take(&mut self.members) {
            for task in member.tasks {
                task.abort();
            }
            if let Some(coordinator) = self.directory.coordinators.lock().remove(&node) {
                coordinator.shutdown();
            }
            member.host.shutdown();
        }
    }
}

/// Works for the coordinator on a node exactly while it has a replica of it.
async fn attend(directory: Arc<Directory>, node: NodeId, host: Arc<Host>, config: Config) {
    let mut changed = host.changed();
    loop {
        changed.mark_unchanged();
        let replica = host.replica(GroupId::COORDINATOR);
        let works = directory.coordinators.lock().get(&node).cloned();
        let same = match (&replica, &works) {
            (Some(replica), Some(coordinator)) => coordinator.works_on(replica),
            (replica, coordinator) => replica.is_none() && coordinator.is_none(),
        };
        if !same {
            if let Some(gone) = works {
                gone.shutdown();
                directory.coordinators.lock().remove(&node);
            }
            if let Some(replica) = replica {
                let peers = Arc::clone(&directory) as Arc<dyn Peers>;
                let coordinator = Coordinator::open(replica, peers, config.clone());
                directory.coordinators.lock().insert(node, coordinator);
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn is_passing(error: &WireError) -> bool {
    matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Unknown)
}
