//! Messages that only the transport sends: heads of answers, small requests, and what changed in a state.

use super::generated::{self as pb, link};
use super::shard::nanos;
use super::topology::{node_numbers, nodes};
use super::{Convert, DecodeError, each, id, maybe, messages, one};
use crate::ids::{
    GroupId, LogIndex, NodeId, RequestId, ReshardId, RouterIncarnation, SequenceId, ShardId, TransactionId,
};
use crate::rows::RowBatch;
use crate::services::{
    Advice, BranchStatus, ClusterState, ReplicaStatus, ReshardCommand, ReshardStatus, ShardTally, Spent,
    TransactionStatus, Unsettled,
};
use crate::topology::AutoSplit;
use std::sync::Arc;
use std::time::Duration;

/// What a [`crate::services::FragmentResponse`] begins with, before its rows if they are streamed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResponseHead {
    pub affected: u64,
    pub position: LogIndex,
    pub waited: Duration,
    /// `None` if the rows follow.
    pub whole: Option<RowBatch>,
}

impl Convert for ResponseHead {
    type Message = link::FragmentResponse;
    const NAME: &'static str = "response";

    fn to_message(&self) -> link::FragmentResponse {
        let whole = self.whole.as_ref().map(RowBatch::to_message);
        let (position, waited) = (self.position.0, nanos(self.waited));
        link::FragmentResponse { affected: self.affected, position, whole, waited }
    }

    fn from_message(message: link::FragmentResponse) -> Result<Self, DecodeError> {
        let link::FragmentResponse { affected, position, whole, waited } = message;
        let (position, waited) = (LogIndex(position), Duration::from_nanos(waited));
        Ok(ResponseHead { affected, position, waited, whole: maybe("whole", whole)? })
    }
}

/// A shard, and a request of which it may know the outcome.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AskOutcome(pub ShardId, pub RequestId);

impl Convert for AskOutcome {
    type Message = link::AskOutcome;
    const NAME: &'static str = "outcome";

    fn to_message(&self) -> link::AskOutcome {
        link::AskOutcome { shard: self.0.0, request: Some(self.1.to_message()) }
    }

    fn from_message(message: link::AskOutcome) -> Result<Self, DecodeError> {
        Ok(AskOutcome(ShardId(id("shard", message.shard)?), one("request", message.request)?))
    }
}

/// What a request was told, if it was done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome(pub Option<ResponseHead>);

impl Convert for Outcome {
    type Message = link::Outcome;
    const NAME: &'static str = "outcome";

    fn to_message(&self) -> link::Outcome {
        link::Outcome { told: self.0.as_ref().map(ResponseHead::to_message) }
    }

    fn from_message(message: link::Outcome) -> Result<Self, DecodeError> {
        Ok(Outcome(maybe("told", message.told)?))
    }
}

/// The statuses of many replicas.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statuses(pub Vec<ReplicaStatus>);

impl Convert for Statuses {
    type Message = link::ReplicaStatuses;
    const NAME: &'static str = "statuses";

    fn to_message(&self) -> link::ReplicaStatuses {
        link::ReplicaStatuses { replicas: messages(&self.0) }
    }

    fn from_message(message: link::ReplicaStatuses) -> Result<Self, DecodeError> {
        Ok(Statuses(each("replicas", message.replicas)?))
    }
}

/// The statuses of many branches.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BranchStatuses(pub Vec<BranchStatus>);

impl Convert for BranchStatuses {
    type Message = link::BranchStatuses;
    const NAME: &'static str = "branches";

    fn to_message(&self) -> link::BranchStatuses {
        link::BranchStatuses { branches: messages(&self.0) }
    }

    fn from_message(message: link::BranchStatuses) -> Result<Self, DecodeError> {
        Ok(BranchStatuses(each("branches", message.branches)?))
    }
}

/// What a cut has to settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnsettledTransactions(pub Vec<Unsettled>);

impl Convert for UnsettledTransactions {
    type Message = link::UnsettledTransactions;
    const NAME: &'static str = "unsettled";

    fn to_message(&self) -> link::UnsettledTransactions {
        link::UnsettledTransactions { unsettled: messages(&self.0) }
    }

    fn from_message(message: link::UnsettledTransactions) -> Result<Self, DecodeError> {
        Ok(UnsettledTransactions(each("unsettled", message.unsettled)?))
    }
}

/// Many transactions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Transactions(pub Vec<TransactionId>);

impl Convert for Transactions {
    type Message = link::Transactions;
    const NAME: &'static str = "transactions";

    fn to_message(&self) -> link::Transactions {
        link::Transactions { transactions: messages(&self.0) }
    }

    fn from_message(message: link::Transactions) -> Result<Self, DecodeError> {
        Ok(Transactions(each("transactions", message.transactions)?))
    }
}

/// One transaction, or all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OneTransaction(pub Option<TransactionId>);

impl Convert for OneTransaction {
    type Message = link::OneTransaction;
    const NAME: &'static str = "transactions";

    fn to_message(&self) -> link::OneTransaction {
        link::OneTransaction { transaction: self.0.as_ref().map(TransactionId::to_message) }
    }

    fn from_message(message: link::OneTransaction) -> Result<Self, DecodeError> {
        Ok(OneTransaction(maybe("transaction", message.transaction)?))
    }
}

/// The statuses of many transactions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TransactionStatuses(pub Vec<TransactionStatus>);

impl Convert for TransactionStatuses {
    type Message = link::TransactionStatuses;
    const NAME: &'static str = "transactions";

    fn to_message(&self) -> link::TransactionStatuses {
        link::TransactionStatuses { transactions: messages(&self.0) }
    }

    fn from_message(message: link::TransactionStatuses) -> Result<Self, DecodeError> {
        Ok(TransactionStatuses(each("transactions", message.transactions)?))
    }
}

/// Who has used up an idempotency key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claimed(pub Option<Spent>);

impl Convert for Claimed {
    type Message = link::Claimed;
    const NAME: &'static str = "claimed";

    fn to_message(&self) -> link::Claimed {
        link::Claimed { spent: self.0.as_ref().map(Spent::to_message) }
    }

    fn from_message(message: link::Claimed) -> Result<Self, DecodeError> {
        Ok(Claimed(maybe("spent", message.spent)?))
    }
}

/// What a node says of its replicas, and of the routers that ran there before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report(pub NodeId, pub Vec<ReplicaStatus>, pub Vec<RouterIncarnation>);

impl Convert for Report {
    type Message = link::Report;
    const NAME: &'static str = "report";

    fn to_message(&self) -> link::Report {
        let former = self.2.iter().map(|router| router.0).collect();
        link::Report { node: self.0.0, replicas: messages(&self.1), former }
    }

    fn from_message(message: link::Report) -> Result<Self, DecodeError> {
        let former = message.former.into_iter().map(RouterIncarnation).collect();
        Ok(Report(NodeId(id("node", message.node)?), each("replicas", message.replicas)?, former))
    }
}

/// A sequence and how many of its values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Allocate(pub SequenceId, pub u32);

impl Convert for Allocate {
    type Message = link::Allocate;
    const NAME: &'static str = "allocate";

    fn to_message(&self) -> link::Allocate {
        link::Allocate { sequence: self.0.0, count: self.1 }
    }

    fn from_message(message: link::Allocate) -> Result<Self, DecodeError> {
        Ok(Allocate(SequenceId(id("sequence", message.sequence)?), message.count))
    }
}

/// A sequence and its next value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SetSequence(pub SequenceId, pub i64);

impl Convert for SetSequence {
    type Message = link::SetSequence;
    const NAME: &'static str = "set_sequence";

    fn to_message(&self) -> link::SetSequence {
        link::SetSequence { sequence: self.0.0, next: self.1 }
    }

    fn from_message(message: link::SetSequence) -> Result<Self, DecodeError> {
        Ok(SetSequence(SequenceId(id("sequence", message.sequence)?), message.next))
    }
}

/// Who is to belong to a group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChangeMembers {
    pub group: GroupId,
    pub voters: Vec<NodeId>,
    pub rebuild: Option<NodeId>,
    pub timeout: Duration,
}

impl Convert for ChangeMembers {
    type Message = link::ChangeMembers;
    const NAME: &'static str = "change_members";

    fn to_message(&self) -> link::ChangeMembers {
        let ChangeMembers { group, voters, rebuild, timeout } = self;
        link::ChangeMembers {
            group: group.0,
            voters: node_numbers(voters),
            rebuild: rebuild.map(|node| node.0),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: link::ChangeMembers) -> Result<Self, DecodeError> {
        let link::ChangeMembers { group, voters, rebuild, timeout } = message;
        Ok(ChangeMembers {
            group: GroupId(id("group", group)?),
            voters: nodes("voters", voters)?,
            rebuild: rebuild.map(|node| Ok(NodeId(id("rebuild", node)?))).transpose()?,
            timeout: Duration::from_nanos(timeout),
        })
    }
}

/// Who is to lead a group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TransferLeader(pub GroupId, pub NodeId, pub Duration);

impl Convert for TransferLeader {
    type Message = link::TransferLeader;
    const NAME: &'static str = "transfer_leader";

    fn to_message(&self) -> link::TransferLeader {
        link::TransferLeader { group: self.0.0, to: self.1.0, timeout: nanos(self.2) }
    }

    fn from_message(message: link::TransferLeader) -> Result<Self, DecodeError> {
        let link::TransferLeader { group, to, timeout } = message;
        let (group, to) = (GroupId(id("group", group)?), NodeId(id("to", to)?));
        Ok(TransferLeader(group, to, Duration::from_nanos(timeout)))
    }
}

/// A group whose tables are to be hashed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckTables(pub GroupId, pub Duration);

impl Convert for CheckTables {
    type Message = link::CheckTables;
    const NAME: &'static str = "check";

    fn to_message(&self) -> link::CheckTables {
        link::CheckTables { group: self.0.0, timeout: nanos(self.1) }
    }

    fn from_message(message: link::CheckTables) -> Result<Self, DecodeError> {
        let link::CheckTables { group, timeout } = message;
        Ok(CheckTables(GroupId(id("group", group)?), Duration::from_nanos(timeout)))
    }
}

/// For whom a group's log is to be kept, from where on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HoldLog {
    pub group: GroupId,
    pub name: String,
    pub from: Option<LogIndex>,
    pub timeout: Duration,
}

impl Convert for HoldLog {
    type Message = link::HoldLog;
    const NAME: &'static str = "hold_log";

    fn to_message(&self) -> link::HoldLog {
        let HoldLog { group, name, from, timeout } = self;
        let from = from.map(|index| index.0);
        link::HoldLog { group: group.0, name: name.clone(), from, timeout: nanos(*timeout) }
    }

    fn from_message(message: link::HoldLog) -> Result<Self, DecodeError> {
        let link::HoldLog { group, name, from, timeout } = message;
        let from = from.map(|index| Ok(LogIndex(id("from", index)?))).transpose()?;
        Ok(HoldLog {
            group: GroupId(id("group", group)?),
            name,
            from,
            timeout: Duration::from_nanos(timeout),
        })
    }
}

/// What a reshard is to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommandReshard(pub RequestId, pub ReshardId, pub ReshardCommand);

impl Convert for CommandReshard {
    type Message = link::CommandReshard;
    const NAME: &'static str = "command";

    fn to_message(&self) -> link::CommandReshard {
        let CommandReshard(request, reshard, command) = self;
        let (request, command) = (Some(request.to_message()), Some(command.to_message()));
        link::CommandReshard { reshard: reshard.0, command, request }
    }

    fn from_message(message: link::CommandReshard) -> Result<Self, DecodeError> {
        let link::CommandReshard { reshard, command, request } = message;
        let reshard = ReshardId(id("reshard", reshard)?);
        Ok(CommandReshard(one("request", request)?, reshard, one("command", command)?))
    }
}

/// The statuses of many reshards.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReshardStatuses(pub Vec<ReshardStatus>);

impl Convert for ReshardStatuses {
    type Message = link::ReshardStatuses;
    const NAME: &'static str = "reshards";

    fn to_message(&self) -> link::ReshardStatuses {
        link::ReshardStatuses { reshards: messages(&self.0) }
    }

    fn from_message(message: link::ReshardStatuses) -> Result<Self, DecodeError> {
        Ok(ReshardStatuses(each("reshards", message.reshards)?))
    }
}

/// What an admin could do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AllAdvice(pub Vec<Advice>);

impl Convert for AllAdvice {
    type Message = link::AllAdvice;
    const NAME: &'static str = "all_advice";

    fn to_message(&self) -> link::AllAdvice {
        link::AllAdvice { advice: messages(&self.0) }
    }

    fn from_message(message: link::AllAdvice) -> Result<Self, DecodeError> {
        Ok(AllAdvice(each("advice", message.advice)?))
    }
}

/// What is split by itself of a keyspace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AutoSet(pub Option<AutoSplit>);

impl Convert for AutoSet {
    type Message = link::AutoSet;
    const NAME: &'static str = "auto_set";

    fn to_message(&self) -> link::AutoSet {
        link::AutoSet { auto: self.0.as_ref().map(Convert::to_message) }
    }

    fn from_message(message: link::AutoSet) -> Result<Self, DecodeError> {
        Ok(AutoSet(maybe("auto", message.auto)?))
    }
}

/// What many shards have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShardTallies(pub Vec<ShardTally>);

impl Convert for ShardTallies {
    type Message = link::ShardTallies;
    const NAME: &'static str = "tallies";

    fn to_message(&self) -> link::ShardTallies {
        link::ShardTallies { tallies: messages(&self.0) }
    }

    fn from_message(message: link::ShardTallies) -> Result<Self, DecodeError> {
        Ok(ShardTallies(each("tallies", message.tallies)?))
    }
}

/// Sends of each state what the one before hadn't.
#[derive(Default)]
pub(crate) struct StateEncoder(Option<ClusterState>);

impl StateEncoder {
    /// The parts that changed.
    pub(crate) fn next(&mut self, state: ClusterState) -> pb::ClusterState {
        let before = self.0.as_ref();
        let topology = !before.is_some_and(|before| Arc::ptr_eq(&before.topology, &state.topology));
        let leaders = !before.is_some_and(|before| Arc::ptr_eq(&before.leaders, &state.leaders));
        let catalog = !before.is_some_and(|before| Arc::ptr_eq(&before.catalog, &state.catalog));
        let changed = pb::ClusterState {
            topology: topology.then(|| state.topology.to_message()),
            leaders: leaders.then(|| state.leaders.to_message()),
            catalog: catalog.then(|| state.catalog.to_message()),
        };
        self.0 = Some(state);
        changed
    }
}

/// Puts states together again. Parts that weren't sent are the same objects as before.
#[derive(Default)]
pub(crate) struct StateDecoder(Option<ClusterState>);

impl StateDecoder {
    pub(crate) fn next(&mut self, message: pb::ClusterState) -> Result<ClusterState, DecodeError> {
        let state = match &self.0 {
            None => ClusterState::from_message(message)?,
            Some(before) => {
                let pb::ClusterState { topology, leaders, catalog } = message;
                ClusterState {
                    topology: maybe("topology", topology)?.map_or_else(|| before.topology.clone(), Arc::new),
                    leaders: maybe("leaders", leaders)?.map_or_else(|| before.leaders.clone(), Arc::new),
                    catalog: maybe("catalog", catalog)?.map_or_else(|| before.catalog.clone(), Arc::new),
                }
            }
        };
        self.0 = Some(state.clone());
        Ok(state)
    }
}
