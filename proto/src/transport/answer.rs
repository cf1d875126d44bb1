//! From a call's bytes to a service, and from what it says to the answer's bytes.

use super::lane::Closed;
use super::server::Reply;
use super::{MAX_MESSAGE, PIECE};
use crate::error::{Retry, SqlState, WireError};
use crate::ids::{NodeId, RouterIncarnation, ShardId};
use crate::rows::{RowBatch, RowBatchBuilder};
use crate::services::*;
use crate::wire::generated::Nothing;
use crate::wire::generated::link::{self, Answer, Call, Caller, answer::Kind as AnswerKind, call::Kind};
use crate::wire::{
    AllAdvice, Allocate, AskOutcome, AutoSet, BranchStatuses, ChangeMembers, CheckTables, Claimed,
    CommandReshard, Convert, DecodeError, HoldLog, OneTransaction, Outcome, Report, ReshardStatuses,
    ResponseHead, SetSequence, ShardTallies, StateEncoder, Statuses, TransactionStatuses, Transactions,
    TransferLeader, UnsettledTransactions, Wire,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use prost::Message;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a message has beside its row batch, at most.
const ENVELOPE: usize = 128;

/// How a request ended that has no answer.
enum End {
    /// With an error, which the client hears.
    Failed(WireError),
    /// Nobody would hear more.
    Closed,
    /// The client sent what nobody understands.
    Malformed(DecodeError),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        End::Failed(error)
    }
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        End::Closed
    }
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        End::Malformed(error)
    }
}

/// Runs one request to its end.
pub(super) async fn answer(reply: Reply, call: Bytes, timeout: Option<Duration>) {
    let kind = match Call::decode(call).map(|call| call.kind) {
        Ok(Some(kind)) => kind,
        Ok(None) => return reply.refuse("a request of an unknown kind"),
        Err(e) => return reply.refuse(format_args!("malformed request: {e}")),
    };
    let writes = writes(&kind);
    // A fragment minds its own time, which reaches as far as its result; others are dropped here.
    let timeout = timeout.filter(|_| !matches!(kind, Kind::Execute(_)));
    let run = AssertUnwindSafe(run(&reply, kind)).catch_unwind();
    let ended = match timeout {
        None => run.await,
        Some(timeout) => match tokio::time::timeout(timeout, run).await {
            Ok(ended) => ended,
            // The client has given up in the same moment.
            Err(_) => return,
        },
    };
    let end = ended.unwrap_or_else(|_| {
        tracing::error!("a request panicked");
        let retry = if writes { Retry::Unknown } else { Retry::Never };
        Err(End::Failed(WireError::internal("the request panicked").with_retry(retry)))
    });
    match end {
        Ok(()) | Err(End::Closed) => {}
        // A closed lane has nobody to tell.
        Err(End::Failed(error)) => drop(reply.fail(error).await),
        Err(End::Malformed(e)) => reply.refuse(e),
    }
}

fn writes(kind: &Kind) -> bool {
    use crate::wire::generated::{FragmentRequest, access};
    match kind {
        Kind::Execute(FragmentRequest { access: Some(access), .. }) => {
            matches!(access.kind, Some(access::Kind::Write(_)))
        }
        Kind::Execute(_)
        | Kind::Changes(_)
        | Kind::Replicas(_)
        | Kind::Watch(_)
        | Kind::Status(_)
        | Kind::Identity(_) => false,
        Kind::ApplySchema(_) | Kind::Register(_) | Kind::Report(_) | Kind::ChangeSchema(_) => true,
        Kind::Allocate(_) | Kind::SetSequence(_) | Kind::CreateKeyspace(_) => true,
        Kind::ChangeMembers(_) | Kind::TransferLeader(_) | Kind::Check(_) => true,
        Kind::ChangeReplicas(_) | Kind::Join(_) | Kind::HoldLog(_) => true,
        Kind::Reshard(_) | Kind::Command(_) | Kind::Course(_) | Kind::SetAuto(_) => true,
        Kind::Reshards(_) => false,
        Kind::Transact(_) | Kind::Decide(_) | Kind::Finished(_) => true,
        Kind::Branches(_) | Kind::Transactions(_) | Kind::KeepAlive(_) | Kind::Claim(_) | Kind::Cut(_) => {
            false
        }
        Kind::Outcome(_) | Kind::Build(_) | Kind::Sums(_) | Kind::Compare(_) => false,
        Kind::Tally(_) | Kind::Tallies(_) | Kind::Load(_) | Kind::Advise(_) => false,
        Kind::Found(_) | Kind::Init(_) | Kind::HandOver(_) => true,
    }
}

async fn run(reply: &Reply, call: Kind) -> Result<(), End> {
    let answer = match call {
        Kind::Execute(request) => {
            let request = FragmentRequest::from_message(request)?;
            let writes = request.writes();
            let response = shard(reply)?.execute(request).await?;
            return rows(reply, response, writes).await;
        }
        Kind::ApplySchema(request) => {
            let request = SchemaRequest::from_message(request)?;
            AnswerKind::ApplySchema(shard(reply)?.apply_schema(request).await?.0)
        }
        Kind::Transact(request) => {
            let request = BranchRequest::from_message(request)?;
            AnswerKind::Transact(shard(reply)?.transact(request).await?.0)
        }
        Kind::KeepAlive(router) => {
            shard(reply)?.keep_alive(RouterIncarnation(router)).await?;
            AnswerKind::KeepAlive(Nothing {})
        }
        Kind::Cut(request) => {
            let unsettled = shard(reply)?.cut(CutRequest::from_message(request)?).await?;
            AnswerKind::Cut(UnsettledTransactions(unsettled).to_message())
        }
        Kind::Branches(number) => {
            let branches = shard(reply)?.branches(ShardId(number)).await?;
            AnswerKind::Branches(BranchStatuses(branches).to_message())
        }
        Kind::HandOver(request) => {
            let outcome = shard(reply)?.hand_over(HandOver::from_message(request)?).await?;
            AnswerKind::HandOver(outcome.to_message())
        }
        Kind::Changes(request) => {
            let parts = shard(reply)?.changes(ChangesRequest::from_message(request)?).await?;
            return stream(reply, AnswerKind::Changes(Nothing {}), parts).await;
        }
        Kind::Sums(request) => {
            let parts = shard(reply)?.sums(SumsRequest::from_message(request)?).await?;
            return stream(reply, AnswerKind::Sums(Nothing {}), parts).await;
        }
        Kind::Compare(request) => {
            let compared = shard(reply)?.compare(CompareRequest::from_message(request)?).await?;
            AnswerKind::Compare(compared.to_message())
        }
        Kind::Build(request) => {
            let request = BuildRequest::from_message(request)?;
            AnswerKind::Build(shard(reply)?.build(request).await?.to_message())
        }
        Kind::Tally(request) => {
            let request = TallyRequest::from_message(request)?;
            AnswerKind::Tally(shard(reply)?.tally(request).await?.to_message())
        }
        Kind::Load(Nothing {}) => {
            let times = shard(reply)?.load().await?;
            AnswerKind::Load(link::Times { counts: times.counts().to_vec() })
        }
        Kind::Outcome(ask) => {
            let AskOutcome(number, request) = AskOutcome::from_message(ask)?;
            let told = shard(reply)?.outcome(number, request).await?;
            let head = |FragmentResponse { rows, affected, position, waited }| match rows {
                RowSource::Whole(batch) => {
                    Ok(ResponseHead { affected, position, waited, whole: Some(batch) })
                }
                RowSource::Stream(_) => Err(WireError::internal("an outcome that is still to come")),
            };
            AnswerKind::Outcome(Outcome(told.map(head).transpose()?).to_message())
        }
        Kind::Replicas(Nothing {}) => {
            let replicas = replica(reply)?.replicas().await?;
            AnswerKind::Replicas(Statuses(replicas).to_message())
        }
        Kind::ChangeMembers(request) => {
            let ChangeMembers { group, voters, rebuild, timeout } = ChangeMembers::from_message(request)?;
            let members = replica(reply)?.change_members(group, voters, rebuild, timeout).await?;
            AnswerKind::ChangeMembers(members.to_message())
        }
        Kind::TransferLeader(request) => {
            let TransferLeader(group, to, timeout) = TransferLeader::from_message(request)?;
            replica(reply)?.transfer_leader(group, to, timeout).await?;
            AnswerKind::TransferLeader(Nothing {})
        }
        Kind::Check(request) => {
            let CheckTables(group, timeout) = CheckTables::from_message(request)?;
            AnswerKind::Check(replica(reply)?.check(group, timeout).await?.0)
        }
        Kind::HoldLog(request) => {
            let HoldLog { group, name, from, timeout } = HoldLog::from_message(request)?;
            AnswerKind::HoldLog(replica(reply)?.hold_log(group, name, from, timeout).await?.0)
        }
        Kind::Watch(Nothing {}) => {
            let states = coordinator(reply)?.watch().await?;
            return watch(reply, states).await;
        }
        Kind::Register(node) => {
            let node = crate::topology::Node::from_message(node)?;
            coordinator(reply)?.register(node).await?;
            AnswerKind::Register(Nothing {})
        }
        Kind::Report(report) => {
            let Report(node, replicas, former) = Report::from_message(report)?;
            coordinator(reply)?.report(node, replicas, former).await?;
            AnswerKind::Report(Nothing {})
        }
        Kind::ChangeSchema(request) => {
            let request = SchemaChangeRequest::from_message(request)?;
            AnswerKind::ChangeSchema(coordinator(reply)?.change_schema(request).await?.0)
        }
        Kind::Allocate(request) => {
            let Allocate(sequence, count) = Allocate::from_message(request)?;
            AnswerKind::Allocate(coordinator(reply)?.allocate(sequence, count).await?.to_message())
        }
        Kind::SetSequence(request) => {
            let SetSequence(sequence, next) = SetSequence::from_message(request)?;
            coordinator(reply)?.set_sequence(sequence, next).await?;
            AnswerKind::SetSequence(Nothing {})
        }
        Kind::CreateKeyspace(request) => {
            let request = CreateKeyspace::from_message(request)?;
            AnswerKind::CreateKeyspace(coordinator(reply)?.create_keyspace(request).await?.0)
        }
        Kind::ChangeReplicas(change) => {
            let change = ReplicaChange::from_message(change)?;
            coordinator(reply)?.change_replicas(change).await?;
            AnswerKind::ChangeReplicas(Nothing {})
        }
        Kind::Course(wish) => {
            let wish = CourseWish::from_message(wish)?;
            AnswerKind::Course(coordinator(reply)?.course(wish).await?.to_message())
        }
        Kind::Reshard(wish) => {
            let wish = ReshardWish::from_message(wish)?;
            AnswerKind::Reshard(coordinator(reply)?.reshard(wish).await?.to_message())
        }
        Kind::Command(request) => {
            let CommandReshard(request, reshard, command) = CommandReshard::from_message(request)?;
            coordinator(reply)?.command(request, reshard, command).await?;
            AnswerKind::Command(Nothing {})
        }
        Kind::Reshards(Nothing {}) => {
            let reshards = coordinator(reply)?.reshards().await?;
            AnswerKind::Reshards(ReshardStatuses(reshards).to_message())
        }
        Kind::Tallies(Nothing {}) => {
            AnswerKind::Tallies(ShardTallies(coordinator(reply)?.tallies().await?).to_message())
        }
        Kind::SetAuto(wish) => {
            let wish = AutoWish::from_message(wish)?;
            AnswerKind::SetAuto(AutoSet(coordinator(reply)?.set_auto(wish).await?).to_message())
        }
        Kind::Advise(Nothing {}) => {
            AnswerKind::Advise(AllAdvice(coordinator(reply)?.advise().await?).to_message())
        }
        Kind::Join(join) => {
            let join = NodeJoin::from_message(join)?;
            AnswerKind::Join(coordinator(reply)?.join(join).await?.to_message())
        }
        Kind::Decide(decision) => {
            let decision = Decision::from_message(decision)?;
            AnswerKind::Decide(coordinator(reply)?.decide(decision).await?.to_message())
        }
        Kind::Claim(claim) => {
            let spent = coordinator(reply)?.claim(Claim::from_message(claim)?).await?;
            AnswerKind::Claim(Claimed(spent).to_message())
        }
        Kind::Finished(transactions) => {
            let Transactions(transactions) = Transactions::from_message(transactions)?;
            coordinator(reply)?.finished(transactions).await?;
            AnswerKind::Finished(Nothing {})
        }
        Kind::Transactions(one) => {
            let OneTransaction(one) = OneTransaction::from_message(one)?;
            let found = coordinator(reply)?.transactions(one).await?;
            AnswerKind::Transactions(TransactionStatuses(found).to_message())
        }
        Kind::Status(Nothing {}) => AnswerKind::Status(coordinator(reply)?.status().await?.to_message()),
        Kind::Identity(Caller { node }) => {
            let caller = node.map(Identity::from_message).transpose()?;
            AnswerKind::Identity(bootstrap(reply)?.identity(caller).await?.to_message())
        }
        Kind::Found(founding) => {
            bootstrap(reply)?.found(Founding::from_message(founding)?).await?;
            AnswerKind::Found(Nothing {})
        }
        Kind::Init(request) => {
            AnswerKind::Init(bootstrap(reply)?.init(InitRequest::from_message(request)?).await?.to_message())
        }
    };
    send(reply, answer, true).await
}

fn shard(reply: &Reply) -> Result<Arc<dyn ShardService>, WireError> {
    let services = reply.services();
    services.shard.clone().ok_or_else(|| absent(services.node, "holds no shards"))
}

fn replica(reply: &Reply) -> Result<Arc<dyn ReplicaService>, WireError> {
    let services = reply.services();
    services.replica.clone().ok_or_else(|| absent(services.node, "holds no replicas"))
}

fn coordinator(reply: &Reply) -> Result<Arc<dyn CoordinatorService>, WireError> {
    let services = reply.services();
    services.coordinator.clone().ok_or_else(|| absent(services.node, "holds no replica of the coordinator"))
}

fn bootstrap(reply: &Reply) -> Result<Arc<dyn BootstrapService>, WireError> {
    let services = reply.services();
    services.bootstrap.clone().ok_or_else(|| absent(services.node, "can't become part of a cluster"))
}

fn absent(node: Option<NodeId>, what: &str) -> WireError {
    match node {
        Some(node) => {
            let message = format!("node {node} {what}");
            WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                .with_retry(Retry::NotLeader(None))
        }
        None => WireError::new(
            SqlState::CANNOT_CONNECT_NOW,
            "this node is not part of a cluster yet; run shoal init",
        )
        .with_retry(Retry::Later),
    }
}

async fn send(reply: &Reply, answer: AnswerKind, end: bool) -> Result<(), End> {
    let bytes = Answer { kind: Some(answer) }.encode_to_vec();
    if bytes.len() > MAX_MESSAGE {
        return Err(too_big(bytes.len(), false).into());
    }
    Ok(reply.message(bytes.into(), end).await?)
}

fn too_big(bytes: usize, writes: bool) -> WireError {
    let retry = if writes { Retry::Unknown } else { Retry::Never };
    WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("a result of {bytes} bytes is too big"))
        .with_detail(format!("A row may have at most {MAX_MESSAGE} bytes between nodes."))
        .with_retry(retry)
}

/// Sends a fragment's result: whole if it is small, else batch by batch.
async fn rows(reply: &Reply, response: FragmentResponse, writes: bool) -> Result<(), End> {
    let FragmentResponse { rows, affected, position, waited } = response;
    let head = |whole| AnswerKind::Execute(ResponseHead { affected, position, waited, whole }.to_message());
    match rows {
        RowSource::Whole(batch) if batch.data().len() + ENVELOPE <= MAX_MESSAGE => {
            send(reply, head(Some(batch)), true).await
        }
        RowSource::Whole(batch) => {
            send(reply, head(None), false).await?;
            send_batch(reply, batch, writes).await?;
            Ok(reply.end().await?)
        }
        RowSource::Stream(mut batches) => {
            send(reply, head(None), false).await?;
            while let Some(batch) = batches.next().await {
                send_batch(reply, batch?, writes).await?;
            }
            Ok(reply.end().await?)
        }
    }
}

/// Sends a batch, in several if it is too big for one message.
async fn send_batch(reply: &Reply, batch: RowBatch, writes: bool) -> Result<(), End> {
    if batch.data().len() + ENVELOPE <= MAX_MESSAGE {
        return Ok(reply.message(batch.encode().into(), false).await?);
    }
    for part in split(&batch) {
        let bytes = part.encode();
        if bytes.len() > MAX_MESSAGE {
            return Err(too_big(bytes.len(), writes).into());
        }
        reply.message(bytes.into(), false).await?;
    }
    Ok(())
}

/// The same rows in batches of a few pieces each, as far as rows can be parted.
fn split(batch: &RowBatch) -> impl Iterator<Item = RowBatch> {
    let mut rows = batch.rows().peekable();
    std::iter::from_fn(move || {
        rows.peek()?;
        let mut builder = RowBatchBuilder::new(batch.columns());
        while builder.byte_len() < 16 * PIECE
            && let Some(row) = rows.next()
        {
            builder.push_row(row);
        }
        Some(builder.finish())
    })
}

/// Sends what a shard says part by part, as the client takes it.
async fn stream<T: Wire>(
    reply: &Reply,
    head: AnswerKind,
    mut parts: BoxStream<ServiceResult<T>>,
) -> Result<(), End> {
    send(reply, head, false).await?;
    while let Some(part) = parts.next().await {
        let bytes = part?.encode();
        if bytes.len() > MAX_MESSAGE {
            return Err(too_big(bytes.len(), false).into());
        }
        reply.message(bytes.into(), false).await?;
    }
    Ok(reply.end().await?)
}

async fn watch(reply: &Reply, mut states: BoxStream<ClusterState>) -> Result<(), End> {
    send(reply, AnswerKind::Watch(Nothing {}), false).await?;
    let mut encoder = StateEncoder::default();
    while let Some(state) = states.next().await {
        let bytes = encoder.next(state).encode_to_vec();
        if bytes.len() > MAX_MESSAGE {
            return Err(too_big(bytes.len(), false).into());
        }
        // One without a changed part says that the others are as they were.
        reply.message(bytes.into(), false).await?;
    }
    Ok(reply.end().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::ValueRef;

    #[test]
    fn a_batch_splits_between_rows() {
        let mut builder = RowBatchBuilder::new(2);
        let blob = vec![7; 300_000];
        for i in 0..20 {
            builder.push_row([ValueRef::Int(i), ValueRef::Blob(&blob)]);
        }
        let batch = builder.finish();
        let parts: Vec<_> = split(&batch).collect();
        assert_eq!(parts.len(), 5);
        let rows: Vec<_> = parts.iter().flat_map(RowBatch::rows).map(Iterator::collect::<Vec<_>>).collect();
        assert_eq!(rows, batch.rows().map(Iterator::collect::<Vec<_>>).collect::<Vec<_>>());
        assert_eq!(split(&RowBatchBuilder::new(3).finish()).count(), 0);
    }
}
