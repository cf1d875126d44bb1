//! Clients and servers over real sockets.

mod garbage;
mod raft;
mod requests;

use super::*;
use crate::catalog::Catalog;
use crate::services::*;
use crate::topology::{Leaders, Roles, Topology};
use crate::*;
use futures::StreamExt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("it hangs")
}

/// A shard that does what the SQL says, and tells of what begins and what is dropped.
struct Shard {
    events: mpsc::UnboundedSender<&'static str>,
    /// Batches that streams have been asked for.
    made: Arc<AtomicUsize>,
}

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

/// A batch of one row of an integer and a blob.
fn batch(number: i64, bytes: usize) -> RowBatch {
    let mut builder = RowBatchBuilder::new(2);
    builder.push_row([ValueRef::Int(number), ValueRef::Blob(&vec![7; bytes])]);
    builder.finish()
}

impl ShardService for Shard {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        Box::pin(async move {
            let whole = |batch| {
                let (rows, position) = (RowSource::Whole(batch), LogIndex(9));
                Ok(FragmentResponse { rows, affected: 3, position, waited: Duration::ZERO })
            };
            let number = |at: usize| match request.params.get(at) {
                Some(Value::Int(number)) => *number,
                other => panic!("no number {other:?}"),
            };
            match request.sql.as_ref() {
                "echo" => {
                    let mut builder = RowBatchBuilder::new(request.params.len() as u16);
                    builder.push_row(request.params.iter().map(Value::as_ref));
                    whole(builder.finish())
                }
                "big" => whole(batch(1, number(0) as usize)),
                "many big" => {
                    let mut builder = RowBatchBuilder::new(2);
                    let blob = vec![7; number(1) as usize];
                    for i in 0..number(0) {
                        builder.push_row([ValueRef::Int(i), ValueRef::Blob(&blob)]);
                    }
                    whole(builder.finish())
                }
                "stream" => {
                    let (count, bytes) = (number(0), number(1) as usize);
                    let (dropped, made) = (Dropped(self.events.clone()), self.made.clone());
                    let batches = futures::stream::iter(0..count).map(move |i| {
                        let _ = &dropped;
                        made.fetch_add(1, Ordering::SeqCst);
                        Ok(batch(i, bytes))
                    });
                    let rows = RowSource::Stream(Box::pin(batches));
                    let (position, waited) = (LogIndex(1), Duration::ZERO);
                    Ok(FragmentResponse { rows, affected: 0, position, waited })
                }
                "break" => {
                    let broken = WireError::new(SqlState::DIVISION_BY_ZERO, "division by zero");
                    let rows = futures::stream::iter([Ok(batch(1, 1)), Err(broken)]);
                    let rows = RowSource::Stream(Box::pin(rows));
                    let (position, waited) = (LogIndex(1), Duration::ZERO);
                    Ok(FragmentResponse { rows, affected: 0, position, waited })
                }
                "hang" => {
                    let _dropped = Dropped(self.events.clone());
                    let _ = self.events.send("hanging");
                    std::future::pending().await
                }
                "panic" => panic!("as asked"),
                _ => Err(WireError::new(SqlState::UNDEFINED_TABLE, "x".repeat(100_000))
                    .with_hint("hint")
                    .with_detail("detail")
                    .with_violation(Violation::Unique(TableId(4), None))
                    .with_retry(Retry::StaleEpoch(Epoch(7)))),
            }
        })
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move { Ok(LogIndex(request.step.job)) })
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            match request.action {
                BranchAction::Fail(error) => Err(error),
                _ => Ok(LogIndex(request.transaction.sequence)),
            }
        })
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        let right = router == RouterIncarnation(8);
        Box::pin(async move { if right { Ok(()) } else { Err(WireError::internal("another router")) } })
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        let CutAction::Settle(transactions) = request.action else { return Box::pin(async { Ok(vec![]) }) };
        let participants = vec![request.shard];
        let unsettled = move |transaction| Unsettled { transaction, participants: participants.clone() };
        Box::pin(async move { Ok(transactions.into_iter().map(unsettled).collect()) })
    }

    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(async move { Ok(vec![branch(shard)]) })
    }

    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        Box::pin(async move {
            match request.action {
                HandOverAction::Clear { .. } => Ok(HandedOver::Clear),
                HandOverAction::Seal { drain, cleared: _ } => {
                    Ok(HandedOver::Sealed { ended: drain.as_secs() as u32 })
                }
                HandOverAction::Unseal => Ok(HandedOver::Unsealed),
                HandOverAction::Reached | HandOverAction::Flows => Err(WireError::internal("not asked for")),
            }
        })
    }

    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        let tables = vec![TableTally {
            table: TableId(7),
            rows: request.rate,
            bytes: 5,
            middle: Some(vec![0x80]),
            growth: None,
        }];
        let counted = Some(Counted { age: request.within, took: Duration::ZERO, tables });
        Box::pin(async move { Ok(Tally { counted, counting: Some(request.shard.0) }) })
    }

    /// Shard 1 says something for ever, shard 2 once, shard 3 once before an error.
    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        Box::pin(async move { Ok(Built::Lost(format!("{:?}", request.action))) })
    }

    /// Says how it was asked.
    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        Box::pin(async move {
            let part = request.from.map(|to| SumsPart { after: None, to, rows: 1, sum: 1 << 100 });
            let parts = [Sums::Open(request.after)].into_iter().chain(part.map(Sums::Part));
            Ok(futures::stream::iter(parts.chain([Sums::End]).map(Ok)).boxed())
        })
    }

    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        let next = request.from.map_or(ComparedNext::End, ComparedNext::From);
        Box::pin(async move { Ok(Compared { position: LogIndex(request.source.0), rows: 7, next }) })
    }

    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        let (dropped, made) = (Dropped(self.events.clone()), self.made.clone());
        Box::pin(async move {
            let part = move |index: u64| {
                let _ = &dropped;
                made.fetch_add(1, Ordering::SeqCst);
                Ok(changes(LogIndex(index)))
            };
            let next = request.after.0 + 1;
            Ok(match request.shard.0 {
                1 => futures::stream::iter(next..).map(part).boxed(),
                2 => futures::stream::iter([next]).map(part).chain(futures::stream::pending()).boxed(),
                3 => {
                    let gone = WireError::new(SqlState::POSITION_FORGOTTEN, "gone")
                        .made_from(request.shard, LogIndex(77));
                    let gone = futures::stream::iter([Err(gone)]);
                    futures::stream::iter([next]).map(part).chain(gone).boxed()
                }
                _ => return Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "no such shard")),
            })
        })
    }

    fn load(&self) -> BoxFuture<'_, ServiceResult<Times>> {
        Box::pin(async { Ok(Times::of([0, 3, 1])) })
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        let rows = RowSource::Whole(batch(request.sequence as i64, 2));
        let (position, waited) = (LogIndex(shard.0), Duration::ZERO);
        let told = FragmentResponse { rows, affected: request.sequence, position, waited };
        Box::pin(async move { Ok((request.sequence > 1).then_some(told)) })
    }
}

/// A part of a log, of 50,000 bytes.
fn changes(index: LogIndex) -> Changes {
    let kind = ChangeKind::Rows(vec![7; 50_000].into());
    Changes { changes: vec![Change { index, kind }], position: index, committed: index }
}

/// Replicas that answer with what they were asked.
struct Replicas;

impl ReplicaService for Replicas {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        Box::pin(async move { Ok(vec![status()]) })
    }

    fn change_members(
        &self,
        group: GroupId,
        voters: Vec<NodeId>,
        rebuild: Option<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        let right = (group, timeout) == (GroupId(4), HANG);
        let members = Members { voters, learners: rebuild.into_iter().collect(), joint: right };
        Box::pin(async move { Ok(members) })
    }

    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        let error = WireError::internal(format!("{group} {to} {timeout:?}"));
        Box::pin(async move { Err(error) })
    }

    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move { Ok(LogIndex(group.0 + timeout.as_secs())) })
    }

    fn hold_log(
        &self,
        group: GroupId,
        name: String,
        from: Option<LogIndex>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        let error = WireError::internal(format!("{group} {name} {from:?} {timeout:?}"));
        Box::pin(async move { Err(error) })
    }
}

fn transaction() -> TransactionId {
    TransactionId { router: RouterIncarnation(6), sequence: 7 }
}

fn branch(shard: ShardId) -> BranchStatus {
    let prepared = Some(vec![shard, ShardId(9)]);
    BranchStatus {
        shard,
        transaction: transaction(),
        begun: 5,
        prepared,
        votes: vec![shard],
        parallel: true,
        committed: false,
        forsaken: false,
        idle: HANG,
        waits_for: vec![transaction()],
    }
}

fn status() -> ReplicaStatus {
    ReplicaStatus {
        role: ReplicaRole::Leader,
        leader: Some(NodeId(2)),
        applied: LogIndex(77),
        ..ReplicaStatus::new(NodeId(2), GroupId(1))
    }
}

fn reshard_status() -> ReshardStatus {
    ReshardStatus {
        id: ReshardId(7),
        what: "split".into(),
        keyspace: "main".into(),
        phase: ReshardPhase::CatchingUp,
        attempt: Attempt(2),
        old: vec!["main/-80".into()],
        new: vec!["main/-40".into(), "main/40-80".into()],
        wanted: true,
        bytes: Some(Progress { done: 1, total: 2 }),
        rows: Some(3),
        lag: Some(HANG),
        paused: Some("a rest".into()),
        failed: None,
        message: "a message".into(),
        switches: 2,
        ended: 1,
        pause: Some(HANG),
        completes_in: None,
        since: HANG,
    }
}

/// A coordinator that answers with what it was asked.
struct Coordinator(watch::Receiver<ClusterState>);

impl CoordinatorService for Coordinator {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        let states = tokio_stream::wrappers::WatchStream::new(self.0.clone());
        Box::pin(async move { Ok(Box::pin(states) as BoxStream<ClusterState>) })
    }

    fn register(&self, node: topology::Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { Err(WireError::internal(format!("{} {}", node.id, node.address))) })
    }

    fn report(
        &self,
        node: NodeId,
        replicas: Vec<ReplicaStatus>,
        former: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        let right = node == NodeId(2) && replicas == [status()] && former == [RouterIncarnation(3)];
        Box::pin(async move { if right { Ok(()) } else { Err(WireError::internal("another report")) } })
    }

    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        Box::pin(async move { Ok(SchemaVersion(request.planned_by.0 + 1)) })
    }

    fn allocate(&self, sequence: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        Box::pin(async move { Ok(SequenceBlock { first: i64::from(sequence.0), increment: 1, count }) })
    }

    fn set_sequence(&self, sequence: SequenceId, next: i64) -> BoxFuture<'_, ServiceResult<()>> {
        let right = (sequence, next) == (SequenceId(5), -8);
        Box::pin(async move { if right { Ok(()) } else { Err(WireError::internal("another value")) } })
    }

    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { Err(WireError::internal(format!("{change:?}"))) })
    }

    fn course(&self, wish: CourseWish) -> BoxFuture<'_, ServiceResult<CoursePlan>> {
        Box::pin(async move { Err(WireError::internal(format!("{wish:?}"))) })
    }

    fn reshard(&self, wish: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>> {
        Box::pin(async move { Err(WireError::internal(format!("{wish:?}"))) })
    }

    fn command(
        &self,
        request: RequestId,
        reshard: ReshardId,
        command: ReshardCommand,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { Err(WireError::internal(format!("{request} {reshard} {command:?}"))) })
    }

    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>> {
        Box::pin(async { Ok(vec![reshard_status()]) })
    }

    fn tallies(&self) -> BoxFuture<'_, ServiceResult<Vec<ShardTally>>> {
        let counted = Counted { age: HANG, took: Duration::ZERO, tables: vec![] };
        Box::pin(async { Ok(vec![ShardTally { shard: ShardId(4), counted }]) })
    }

    fn set_auto(&self, wish: AutoWish) -> BoxFuture<'_, ServiceResult<Option<topology::AutoSplit>>> {
        let set = |auto: AutoChange| topology::AutoSplit { size: auto.size.unwrap_or(7), shards: 3 };
        Box::pin(async move { Ok(wish.auto.map(set)) })
    }

    fn advise(&self) -> BoxFuture<'_, ServiceResult<Vec<Advice>>> {
        Box::pin(async { Ok(vec![Advice { why: "so".into(), remedy: Some(Remedy::Drain(NodeId(3))) }]) })
    }

    fn join(&self, join: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>> {
        let node = NodeId(join.request.sequence);
        let coordinators = vec![topology::Node {
            id: node,
            address: join.address,
            roles: join.roles,
            zone: join.zone,
            draining: false,
        }];
        Box::pin(async move { Ok(Joined { cluster: ClusterId(1 << 100), node, coordinators }) })
    }

    fn create_keyspace(&self, request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async move { Ok(KeyspaceNumber(request.shards)) })
    }

    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        let position = LogIndex(decision.participants[0].0);
        let duplicate_of = decision.key.map(|_| decision.transaction);
        Box::pin(async move { Ok(Verdict { committed: decision.commit, position, duplicate_of }) })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>> {
        let spent = Spent { transaction: claim.transaction, finished: true, positions: vec![] };
        Box::pin(async move { Ok((claim.key == "spent").then_some(spent)) })
    }

    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        let right = transactions == [transaction()];
        Box::pin(async move { if right { Ok(()) } else { Err(WireError::internal("others")) } })
    }

    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        let status = |transaction| TransactionStatus {
            transaction,
            participants: vec![ShardId(3)],
            committed: true,
            finished: false,
            positions: vec![],
        };
        Box::pin(async move { Ok(one.into_iter().map(status).collect()) })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        let state = self.0.borrow().clone();
        Box::pin(async move {
            let replicas = vec![status()];
            Ok(ClusterStatus { state, replicas, heard: vec![], jobs: vec![], alarms: vec![], loads: vec![] })
        })
    }
}

fn state(epoch: u64) -> ClusterState {
    ClusterState {
        topology: Arc::new(Topology { epoch: Epoch(epoch), ..Topology::default() }),
        leaders: Arc::new(Leaders::default()),
        catalog: Arc::new(Catalog::default()),
    }
}

/// What a node was sent.
struct Raft(mpsc::UnboundedSender<(NodeId, RaftMessage)>);

impl RaftService for Raft {
    fn receive(&self, from: NodeId, messages: Vec<RaftMessage>) {
        for message in messages {
            let _ = self.0.send((from, message));
        }
    }
}

/// Node 2, with all services.
struct Node {
    address: SocketAddr,
    events: mpsc::UnboundedReceiver<&'static str>,
    made: Arc<AtomicUsize>,
    states: watch::Sender<ClusterState>,
    messages: mpsc::UnboundedReceiver<(NodeId, RaftMessage)>,
    stop: oneshot::Sender<()>,
    stopped: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Node {
    async fn start() -> Node {
        Node::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(address: SocketAddr) -> Node {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (events_in, events) = mpsc::unbounded_channel();
        let (messages_in, messages) = mpsc::unbounded_channel();
        let (states, states_out) = watch::channel(state(1));
        let made = Arc::new(AtomicUsize::new(0));
        let services = Services {
            node: Some(NodeId(2)),
            shard: Some(Arc::new(Shard { events: events_in, made: made.clone() })),
            replica: Some(Arc::new(Replicas)),
            coordinator: Some(Arc::new(Coordinator(states_out))),
            raft: Some(Arc::new(Raft(messages_in))),
            ..Services::default()
        };
        let (stop, stopping) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopping.await) };
        let stopped = tokio::spawn(serve(listener, services, shutdown));
        Node { address, events, made, states, messages, stop, stopped }
    }

    fn client(&self) -> NodeClient {
        client(self.address)
    }

    async fn event(&mut self) -> &'static str {
        soon(self.events.recv()).await.unwrap()
    }

    async fn stop(self) {
        drop(self.stop);
        soon(self.stopped).await.unwrap().unwrap();
    }
}

fn impatient() -> ClientConfig {
    let least_backoff = Duration::from_millis(1);
    ClientConfig { least_backoff, most_backoff: least_backoff, ..ClientConfig::default() }
}

fn client(address: SocketAddr) -> NodeClient {
    NodeClient::with_config(address.to_string(), None, impatient())
}

fn read(sql: &str, params: Vec<Value>) -> FragmentRequest {
    FragmentRequest {
        shard: ShardId(1),
        epoch: Epoch(1),
        schema_version: SchemaVersion(1),
        sql: sql.into(),
        params,
        rows: None,
        access: Access::strong(true),
        cut: None,
        floor: Floor::default(),
        timeout: HANG,
    }
}

fn write(sql: &str, params: Vec<Value>) -> FragmentRequest {
    let request = RequestId { router: RouterIncarnation(1), sequence: 1 };
    FragmentRequest {
        access: Access::Write { request, settled: 0, touch: 0, lock_timeout: None },
        ..read(sql, params)
    }
}

/// A read of a transaction.
fn within(sql: &str) -> FragmentRequest {
    let transaction = TransactionId { router: RouterIncarnation(1), sequence: 1 };
    let branch = Branch { transaction, begun: 1, statement: 1, lock_timeout: None, alone: false };
    FragmentRequest { access: Access::Branch { branch, access: BranchAccess::Read }, ..read(sql, vec![]) }
}

async fn ask(client: &NodeClient, request: FragmentRequest) -> ServiceResult<FragmentResponse> {
    soon(client.execute(request)).await
}

async fn fails(client: &NodeClient, request: FragmentRequest) -> WireError {
    match ask(client, request).await {
        Err(error) => error,
        Ok(_) => panic!("it should have failed"),
    }
}

/// Every row of a result.
async fn rows(response: FragmentResponse) -> ServiceResult<Vec<Vec<Value>>> {
    let owned = |batch: &RowBatch| -> Vec<Vec<Value>> {
        batch.rows().map(|row| row.map(ValueRef::to_owned).collect()).collect()
    };
    match response.rows {
        RowSource::Whole(batch) => Ok(owned(&batch)),
        RowSource::Stream(mut batches) => {
            let mut rows = Vec::new();
            while let Some(batch) = soon(batches.next()).await {
                rows.extend(owned(&batch?));
            }
            Ok(rows)
        }
    }
}

/// Asks until a client has noticed that its node is back.
async fn until_up(client: &NodeClient) {
    soon(async {
        while let Err(error) = client.execute(read("echo", vec![])).await {
            assert_eq!(error.retry, Retry::Later, "{error}");
            tokio::task::yield_now().await;
        }
    })
    .await;
}
