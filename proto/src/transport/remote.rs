//! The service traits, by calls to a node elsewhere.
//!
//! Each method says how its call and its answer are written, how long it may take, and what it means to lose the
//! connection in the middle: a read may be asked again, a write may have run.

use super::client::NodeClient;
use super::link::Messages;
use crate::error::{Retry, SqlState};
use crate::ids::{
    GroupId, KeyspaceNumber, LogIndex, NodeId, RequestId, ReshardId, RouterIncarnation, SchemaVersion,
    SequenceId, ShardId, TransactionId,
};
use crate::rows::RowBatch;
use crate::services::*;
use crate::topology::{AutoSplit, Node};
use crate::wire::generated::link::{Caller, answer, call};
use crate::wire::generated::{ClusterState as StateMessage, Nothing};
use crate::wire::{
    AllAdvice, Allocate, AskOutcome, AutoSet, BranchStatuses, ChangeMembers, CheckTables, Claimed,
    CommandReshard, Convert, DecodeError, HoldLog, OneTransaction, Outcome, Report, ReshardStatuses,
    ResponseHead, SetSequence, ShardTallies, StateDecoder, Statuses, TransactionStatuses, Transactions,
    TransferLeader, UnsettledTransactions, decode_message,
};
use prost::Message;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio_stream::Stream;

/// How long a request and its answer may be on their way.
const WAY: Duration = Duration::from_secs(1);

impl ShardService for NodeClient {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        Box::pin(async move {
            let writes = request.writes();
            let lost = if request.leaves_something() { Retry::Unknown } else { Retry::Later };
            let limit = request.timeout;
            let call = |left: Option<Duration>| {
                let timeout = left.map_or(limit, on_time);
                call::Kind::Execute(FragmentRequest { timeout, ..request }.to_message())
            };
            let answered = self.call(Some(limit), lost.clone(), call).await;
            let (kind, link, messages) = answered.map_err(|error| match error.sqlstate {
                // It isn't repeated after its time, and what it did in a branch is undone.
                SqlState::QUERY_CANCELED if !writes && error.retry == Retry::Unknown => {
                    error.with_retry(Retry::Never)
                }
                _ => error,
            })?;
            let target = self.target();
            let answer::Kind::Execute(head) = kind else {
                return Err(target.garbled(&link, &lost, "an answer to another request"));
            };
            let ResponseHead { affected, position, waited, whole } =
                ResponseHead::from_message(head).map_err(|e| target.garbled(&link, &lost, &e.to_string()))?;
            let rows = match (whole, messages) {
                (Some(batch), None) => RowSource::Whole(batch),
                (None, Some(messages)) => {
                    let lost = if writes { Retry::Unknown } else { Retry::Later };
                    RowSource::Stream(Box::pin(RowStream { messages, client: self.clone(), lost }))
                }
                _ => return Err(target.garbled(&link, &lost, "rows both at once and to come, or neither")),
            };
            Ok(FragmentResponse { rows, affected, position, waited })
        })
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let call = call::Kind::ApplySchema(request.to_message());
            let read = |answer| match answer {
                answer::Kind::ApplySchema(index) => Some(Ok(LogIndex(index))),
                _ => None,
            };
            self.simple(None, Retry::Unknown, call, read).await
        })
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let timeout = with_way(request.timeout);
            let call = call::Kind::Transact(request.to_message());
            let read = |answer| match answer {
                answer::Kind::Transact(index) => Some(Ok(LogIndex(index))),
                _ => None,
            };
            self.simple(timeout, Retry::Unknown, call, read).await
        })
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::KeepAlive(router.0);
            let read = |answer| matches!(answer, answer::Kind::KeepAlive(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Later, call, read).await
        })
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        Box::pin(async move {
            let timeout = with_way(request.timeout);
            let call = call::Kind::Cut(request.to_message());
            let read = |answer| match answer {
                answer::Kind::Cut(message) => Some(UnsettledTransactions::from_message(message).map(|u| u.0)),
                _ => None,
            };
            self.simple(timeout, Retry::Later, call, read).await
        })
    }

    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Branches(message) => Some(BranchStatuses::from_message(message).map(|b| b.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Branches(shard.0), read).await
        })
    }

    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        Box::pin(async move {
            let timeout = with_way(request.timeout);
            let call = call::Kind::HandOver(request.to_message());
            let read = |answer| match answer {
                answer::Kind::HandOver(message) => Some(HandedOver::from_message(message)),
                _ => None,
            };
            self.simple(timeout, Retry::Unknown, call, read).await
        })
    }

    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        Box::pin(async move {
            let silence = request.beat.saturating_add(WAY);
            let call = call::Kind::Changes(request.to_message());
            self.stream(call, |head| matches!(head, answer::Kind::Changes(_)), silence).await
        })
    }

    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        Box::pin(async move {
            let silence = request.timeout.saturating_add(WAY);
            let call = call::Kind::Sums(request.to_message());
            self.stream(call, |head| matches!(head, answer::Kind::Sums(_)), silence).await
        })
    }

    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        Box::pin(async move {
            let timeout = with_way(request.longest());
            let read = |answer| match answer {
                answer::Kind::Compare(message) => Some(Compared::from_message(message)),
                _ => None,
            };
            self.simple(timeout, Retry::Later, call::Kind::Compare(request.to_message()), read).await
        })
    }

    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        Box::pin(async move {
            let timeout = with_way(request.timeout);
            let read = |answer| match answer {
                answer::Kind::Build(message) => Some(Built::from_message(message)),
                _ => None,
            };
            self.simple(timeout, Retry::Later, call::Kind::Build(request.to_message()), read).await
        })
    }

    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Tally(message) => Some(Tally::from_message(message)),
                _ => None,
            };
            let call = call::Kind::Tally(request.to_message());
            self.simple(self.call_timeout(), Retry::Later, call, read).await
        })
    }

    fn load(&self) -> BoxFuture<'_, ServiceResult<Times>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Load(times) => Some(Ok(Times::of(times.counts))),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Load(Nothing {}), read).await
        })
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        Box::pin(async move {
            let call = call::Kind::Outcome(AskOutcome(shard, request).to_message());
            let read = |answer| match answer {
                answer::Kind::Outcome(message) => Some(Outcome::from_message(message)),
                _ => None,
            };
            let Outcome(told) = self.simple(self.call_timeout(), Retry::Later, call, read).await?;
            Ok(told.map(|ResponseHead { affected, position, waited, whole }| {
                let rows = RowSource::Whole(whole.unwrap_or_default());
                FragmentResponse { rows, affected, position, waited }
            }))
        })
    }
}

impl ReplicaService for NodeClient {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Replicas(message) => Some(Statuses::from_message(message).map(|s| s.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Replicas(Nothing {}), read).await
        })
    }
    fn change_members(
        &self,
        group: GroupId,
        voters: Vec<NodeId>,
        rebuild: Option<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        Box::pin(async move {
            let request = ChangeMembers { group, voters, rebuild, timeout };
            let read = |answer| match answer {
                answer::Kind::ChangeMembers(members) => Some(Members::from_message(members)),
                _ => None,
            };
            let call = call::Kind::ChangeMembers(request.to_message());
            self.simple(with_way(timeout), Retry::Unknown, call, read).await
        })
    }

    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::TransferLeader(TransferLeader(group, to, timeout).to_message());
            let read = |answer| matches!(answer, answer::Kind::TransferLeader(_)).then_some(Ok(()));
            self.simple(with_way(timeout), Retry::Unknown, call, read).await
        })
    }

    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let call = call::Kind::Check(CheckTables(group, timeout).to_message());
            let read = |answer| match answer {
                answer::Kind::Check(index) => Some(Ok(LogIndex(index))),
                _ => None,
            };
            self.simple(with_way(timeout), Retry::Unknown, call, read).await
        })
    }

    fn hold_log(
        &self,
        group: GroupId,
        name: String,
        from: Option<LogIndex>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async move {
            let call = call::Kind::HoldLog(HoldLog { group, name, from, timeout }.to_message());
            let read = |answer| match answer {
                answer::Kind::HoldLog(index) => Some(Ok(LogIndex(index))),
                _ => None,
            };
            self.simple(with_way(timeout), Retry::Unknown, call, read).await
        })
    }
}

/// The time that a request may take which minds `timeout` by itself, the ways there and back included.
fn with_way(timeout: Duration) -> Option<Duration> {
    timeout.checked_add(WAY)
}

/// The time that the server gets of what is left: a little less, so that what it says in its last moment arrives.
fn on_time(left: Duration) -> Duration {
    left.saturating_sub((left / 10).min(Duration::from_millis(20)))
}

/// A streamed result.
struct RowStream {
    messages: Messages,
    /// Keeps the connection.
    client: NodeClient,
    lost: Retry,
}

impl Stream for RowStream {
    type Item = ServiceResult<RowBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = ready!(Pin::new(&mut self.messages).poll_next(cx));
        Poll::Ready(message.map(|message| {
            let link = self.messages.link();
            match message {
                Ok(bytes) => decode_message(bytes)
                    .map_err(|e: DecodeError| self.client.target().garbled(link, &self.lost, &e.to_string())),
                Err(failure) => Err(self.client.target().failed(failure, link, &self.lost)),
            }
        }))
    }
}

impl NodeClient {
    /// Has a shard tell of something part by part. It is over when nothing comes for so long.
    async fn stream<T: Convert + Send + Unpin + 'static>(
        &self,
        call: call::Kind,
        is_head: impl FnOnce(&answer::Kind) -> bool,
        silence: Duration,
    ) -> ServiceResult<BoxStream<ServiceResult<T>>> {
        // The server may take as long as it likes for the whole, but not to begin.
        let begun = self.call(None, Retry::Later, |_| call);
        let begun = match self.call_timeout() {
            Some(limit) => tokio::time::timeout(limit, begun).await,
            None => Ok(begun.await),
        };
        let (kind, link, messages) = begun.unwrap_or_else(|_| Err(self.target().silent()))?;
        match messages {
            Some(messages) if is_head(&kind) => {
                let (messages, client, what) = (Some(messages), self.clone(), PhantomData);
                Ok(Box::pin(PartStream { messages, client, silence, patience: None, what }))
            }
            _ => Err(self.target().garbled(&link, &Retry::Later, "an answer to another request")),
        }
    }
}

/// What a shard tells of part by part.
struct PartStream<T> {
    /// `None` once it is over.
    messages: Option<Messages>,
    /// Keeps the connection.
    client: NodeClient,
    silence: Duration,
    /// Ends the silence. Only while somebody waits: a reader that is slow isn't the server's fault.
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
    what: PhantomData<T>,
}

impl<T: Convert + Unpin> Stream for PartStream<T> {
    type Item = ServiceResult<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(messages) = &mut this.messages else { return Poll::Ready(None) };
        let target = this.client.target();
        let part = match Pin::new(&mut *messages).poll_next(cx) {
            Poll::Ready(Some(Ok(bytes))) => decode_message(bytes)
                .map_err(|e: DecodeError| target.garbled(messages.link(), &Retry::Later, &e.to_string())),
            Poll::Ready(Some(Err(failure))) => Err(target.failed(failure, messages.link(), &Retry::Later)),
            Poll::Ready(None) => {
                this.messages = None;
                return Poll::Ready(None);
            }
            Poll::Pending => {
                let patience =
                    this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.silence)));
                ready!(patience.as_mut().poll(cx));
                Err(target.silent())
            }
        };
        this.patience = None;
        if part.is_err() {
            this.messages = None;
        }
        Poll::Ready(Some(part))
    }
}

impl CoordinatorService for NodeClient {
    fn watch(&self) -> BoxFuture<'_, ServiceResult<BoxStream<ClusterState>>> {
        Box::pin(async move {
            let (kind, link, messages) =
                self.call(None, Retry::Later, |_| call::Kind::Watch(Nothing {})).await?;
            match (kind, messages) {
                (answer::Kind::Watch(Nothing {}), Some(messages)) => {
                    let states = StateDecoder::default();
                    Ok(Box::pin(StateStream { messages, states, client: self.clone() })
                        as BoxStream<ClusterState>)
                }
                _ => Err(self.target().garbled(&link, &Retry::Later, "an answer to another request")),
            }
        })
    }

    fn register(&self, node: Node) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::Register(node.to_message());
            let read = |answer| matches!(answer, answer::Kind::Register(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn report(
        &self,
        node: NodeId,
        replicas: Vec<ReplicaStatus>,
        former: Vec<RouterIncarnation>,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::Report(Report(node, replicas, former).to_message());
            let read = |answer| matches!(answer, answer::Kind::Report(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn change_schema(&self, request: SchemaChangeRequest) -> BoxFuture<'_, ServiceResult<SchemaVersion>> {
        Box::pin(async move {
            let call = call::Kind::ChangeSchema(request.to_message());
            let read = |answer| match answer {
                answer::Kind::ChangeSchema(version) => Some(Ok(SchemaVersion(version))),
                _ => None,
            };
            self.simple(None, Retry::Unknown, call, read).await
        })
    }

    fn allocate(&self, sequence: SequenceId, count: u32) -> BoxFuture<'_, ServiceResult<SequenceBlock>> {
        Box::pin(async move {
            let call = call::Kind::Allocate(Allocate(sequence, count).to_message());
            let read = |answer| match answer {
                answer::Kind::Allocate(block) => Some(SequenceBlock::from_message(block)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn set_sequence(&self, sequence: SequenceId, next: i64) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::SetSequence(SetSequence(sequence, next).to_message());
            let read = |answer| matches!(answer, answer::Kind::SetSequence(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn create_keyspace(&self, request: CreateKeyspace) -> BoxFuture<'_, ServiceResult<KeyspaceNumber>> {
        Box::pin(async move {
            let call = call::Kind::CreateKeyspace(request.to_message());
            let read = |answer| match answer {
                answer::Kind::CreateKeyspace(number) => Some(Ok(KeyspaceNumber(number))),
                _ => None,
            };
            self.simple(None, Retry::Unknown, call, read).await
        })
    }

    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::ChangeReplicas(change.to_message());
            let read = |answer| matches!(answer, answer::Kind::ChangeReplicas(_)).then_some(Ok(()));
            self.simple(None, Retry::Unknown, call, read).await
        })
    }

    fn course(&self, wish: CourseWish) -> BoxFuture<'_, ServiceResult<CoursePlan>> {
        Box::pin(async move {
            let call = call::Kind::Course(wish.to_message());
            let read = |answer| match answer {
                answer::Kind::Course(plan) => Some(CoursePlan::from_message(plan)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn reshard(&self, wish: ReshardWish) -> BoxFuture<'_, ServiceResult<ReshardPlan>> {
        Box::pin(async move {
            let call = call::Kind::Reshard(wish.to_message());
            let read = |answer| match answer {
                answer::Kind::Reshard(plan) => Some(ReshardPlan::from_message(plan)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn command(
        &self,
        request: RequestId,
        reshard: ReshardId,
        command: ReshardCommand,
    ) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::Command(CommandReshard(request, reshard, command).to_message());
            let read = |answer| matches!(answer, answer::Kind::Command(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn reshards(&self) -> BoxFuture<'_, ServiceResult<Vec<ReshardStatus>>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Reshards(all) => Some(ReshardStatuses::from_message(all).map(|all| all.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Reshards(Nothing {}), read).await
        })
    }

    fn tallies(&self) -> BoxFuture<'_, ServiceResult<Vec<ShardTally>>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Tallies(all) => Some(ShardTallies::from_message(all).map(|all| all.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Tallies(Nothing {}), read).await
        })
    }

    fn set_auto(&self, wish: AutoWish) -> BoxFuture<'_, ServiceResult<Option<AutoSplit>>> {
        Box::pin(async move {
            let call = call::Kind::SetAuto(wish.to_message());
            let read = |answer| match answer {
                answer::Kind::SetAuto(set) => Some(AutoSet::from_message(set).map(|set| set.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn advise(&self) -> BoxFuture<'_, ServiceResult<Vec<Advice>>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Advise(all) => Some(AllAdvice::from_message(all).map(|all| all.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Advise(Nothing {}), read).await
        })
    }

    fn join(&self, join: NodeJoin) -> BoxFuture<'_, ServiceResult<Joined>> {
        Box::pin(async move {
            let call = call::Kind::Join(join.to_message());
            let read = |answer| match answer {
                answer::Kind::Join(joined) => Some(Joined::from_message(joined)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn decide(&self, decision: Decision) -> BoxFuture<'_, ServiceResult<Verdict>> {
        Box::pin(async move {
            let call = call::Kind::Decide(decision.to_message());
            let read = |answer| match answer {
                answer::Kind::Decide(verdict) => Some(Verdict::from_message(verdict)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, ServiceResult<Option<Spent>>> {
        Box::pin(async move {
            let call = call::Kind::Claim(claim.to_message());
            let read = |answer| match answer {
                answer::Kind::Claim(claimed) => Some(Claimed::from_message(claimed).map(|c| c.0)),
                _ => None,
            };
            // Claiming it again is safe.
            self.simple(self.call_timeout(), Retry::Later, call, read).await
        })
    }

    fn finished(&self, transactions: Vec<TransactionId>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::Finished(Transactions(transactions).to_message());
            let read = |answer| matches!(answer, answer::Kind::Finished(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> BoxFuture<'_, ServiceResult<Vec<TransactionStatus>>> {
        Box::pin(async move {
            let call = call::Kind::Transactions(OneTransaction(one).to_message());
            let read = |answer| match answer {
                answer::Kind::Transactions(all) => Some(TransactionStatuses::from_message(all).map(|t| t.0)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call, read).await
        })
    }

    fn status(&self) -> BoxFuture<'_, ServiceResult<ClusterStatus>> {
        Box::pin(async move {
            let read = |answer| match answer {
                answer::Kind::Status(status) => Some(ClusterStatus::from_message(status)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call::Kind::Status(Nothing {}), read).await
        })
    }
}

impl BootstrapService for NodeClient {
    fn identity(&self, caller: Option<Identity>) -> BoxFuture<'_, ServiceResult<Introduction>> {
        Box::pin(async move {
            let call = call::Kind::Identity(Caller { node: caller.map(|caller| caller.to_message()) });
            let read = |answer| match answer {
                answer::Kind::Identity(introduction) => Some(Introduction::from_message(introduction)),
                _ => None,
            };
            self.simple(self.call_timeout(), Retry::Later, call, read).await
        })
    }

    fn found(&self, founding: Founding) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let call = call::Kind::Found(founding.to_message());
            let read = |answer| matches!(answer, answer::Kind::Found(_)).then_some(Ok(()));
            self.simple(self.call_timeout(), Retry::Unknown, call, read).await
        })
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, ServiceResult<Founding>> {
        Box::pin(async move {
            let call = call::Kind::Init(request.to_message());
            let read = |answer| match answer {
                answer::Kind::Init(founding) => Some(Founding::from_message(founding)),
                _ => None,
            };
            self.simple(None, Retry::Unknown, call, read).await
        })
    }
}

/// The states that a watch gives. It ends when the connection does; whoever follows asks again.
struct StateStream {
    messages: Messages,
    states: StateDecoder,
    /// Keeps the connection.
    client: NodeClient,
}

impl Stream for StateStream {
    type Item = ClusterState;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ClusterState>> {
        let message = ready!(Pin::new(&mut self.messages).poll_next(cx));
        let Some(message) = message else { return Poll::Ready(None) };
        let failure = match message {
            Ok(bytes) => {
                let state = StateMessage::decode(bytes).map_err(|e| e.to_string());
                match state.and_then(|message| self.states.next(message).map_err(|e| e.to_string())) {
                    Ok(state) => return Poll::Ready(Some(state)),
                    Err(e) => self.client.target().garbled(self.messages.link(), &Retry::Later, &e),
                }
            }
            Err(failure) => self.client.target().failed(failure, self.messages.link(), &Retry::Later),
        };
        tracing::debug!(node = %self.client.target(), error = %failure, "the watch ended");
        Poll::Ready(None)
    }
}
