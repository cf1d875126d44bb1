//! What replicas say of themselves as messages.

use super::generated as pb;
use super::shard::nanos;
use super::topology::{node_numbers, nodes};
use super::{Convert, DecodeError, id, known, maybe};
use crate::ids::{GroupId, LogIndex, NodeId, Term};
use crate::services::{LogHold, Members, Progress, ReplicaRole, ReplicaStatus, TableHash};
use std::time::Duration;

/// 16 bytes as a number, the most significant first.
pub(super) fn wide(field: &str, bytes: &[u8]) -> Result<u128, DecodeError> {
    let bytes = bytes.try_into().map_err(|_| DecodeError::new(field, "it has not 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}

/// What [`wide`] reads.
pub(super) fn wide_bytes(number: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&number.to_be_bytes())
}

impl Convert for Members {
    type Message = pb::Members;
    const NAME: &'static str = "members";

    fn to_message(&self) -> pb::Members {
        let Members { voters, learners, joint } = self;
        pb::Members { voters: node_numbers(voters), learners: node_numbers(learners), joint: *joint }
    }

    fn from_message(message: pb::Members) -> Result<Self, DecodeError> {
        let pb::Members { voters, learners, joint } = message;
        Ok(Members { voters: nodes("voters", voters)?, learners: nodes("learners", learners)?, joint })
    }
}

impl Convert for TableHash {
    type Message = pb::TableHash;
    const NAME: &'static str = "table_hash";

    fn to_message(&self) -> pb::TableHash {
        pb::TableHash { index: self.index.0, hash: wide_bytes(self.hash) }
    }

    fn from_message(message: pb::TableHash) -> Result<Self, DecodeError> {
        Ok(TableHash { index: LogIndex(message.index), hash: wide("hash", &message.hash)? })
    }
}

impl Convert for Progress {
    type Message = pb::Progress;
    const NAME: &'static str = "progress";

    fn to_message(&self) -> pb::Progress {
        pb::Progress { done: self.done, total: self.total }
    }

    fn from_message(message: pb::Progress) -> Result<Self, DecodeError> {
        let pb::Progress { done, total } = message;
        Ok(Progress { done, total })
    }
}

impl Convert for ReplicaStatus {
    type Message = pb::ReplicaStatus;
    const NAME: &'static str = "replica";

    fn to_message(&self) -> pb::ReplicaStatus {
        let ReplicaStatus { node, group, role, term, leader, applied, stopped, .. } = self;
        let ReplicaStatus { members, last, lag, holds, wal_bytes, check, image, committed, behind, .. } =
            self;
        let ReplicaStatus { bytes, writes, reads, .. } = self;
        let role = match role {
            ReplicaRole::Leader => pb::ReplicaRole::Leader,
            ReplicaRole::Follower => pb::ReplicaRole::Follower,
            ReplicaRole::Candidate => pb::ReplicaRole::Candidate,
            ReplicaRole::Learner => pb::ReplicaRole::Learner,
        };
        let index = |(node, index): &(NodeId, LogIndex)| pb::MemberIndex { node: node.0, index: index.0 };
        let hold = |hold: &LogHold| {
            let LogHold { name, from, bytes } = hold;
            pb::LogHold { name: name.clone(), index: from.0, bytes: *bytes }
        };
        pb::ReplicaStatus {
            node: node.0,
            group: group.0,
            role: role.into(),
            term: term.0,
            leader: leader.map(|leader| leader.0),
            applied: applied.0,
            stopped: stopped.clone(),
            members: Some(members.to_message()),
            last: last.0,
            lag: lag.iter().map(index).collect(),
            holds: holds.iter().map(hold).collect(),
            wal_bytes: *wal_bytes,
            check: check.as_ref().map(TableHash::to_message),
            image: image.as_ref().map(Progress::to_message),
            committed: committed.0,
            behind: nanos(*behind),
            bytes: *bytes,
            writes: *writes,
            reads: *reads,
        }
    }

    fn from_message(message: pb::ReplicaStatus) -> Result<Self, DecodeError> {
        let pb::ReplicaStatus { node, group, role, term, leader, applied, stopped, members, .. } = message;
        let pb::ReplicaStatus { last, lag, holds, wal_bytes, check, image, committed, behind, .. } = message;
        let pb::ReplicaStatus { bytes, writes, reads, .. } = message;
        let role = match known("role", role)? {
            pb::ReplicaRole::Unspecified => return Err(DecodeError::new("role", "it is missing")),
            pb::ReplicaRole::Leader => ReplicaRole::Leader,
            pb::ReplicaRole::Follower => ReplicaRole::Follower,
            pb::ReplicaRole::Candidate => ReplicaRole::Candidate,
            pb::ReplicaRole::Learner => ReplicaRole::Learner,
        };
        let index = |pb::MemberIndex { node, index }| Ok((NodeId(id("lag.node", node)?), LogIndex(index)));
        let hold = |pb::LogHold { name, index, bytes }| LogHold { name, from: LogIndex(index), bytes };
        Ok(ReplicaStatus {
            node: NodeId(id("node", node)?),
            group: GroupId(id("group", group)?),
            role,
            term: Term(term),
            leader: leader.map(|leader| Ok(NodeId(id("leader", leader)?))).transpose()?,
            applied: LogIndex(applied),
            stopped,
            members: maybe("members", members)?.unwrap_or_default(),
            last: LogIndex(last),
            lag: lag.into_iter().map(index).collect::<Result<_, _>>()?,
            holds: holds.into_iter().map(hold).collect(),
            wal_bytes,
            check: maybe("check", check)?,
            image: maybe("image", image)?,
            committed: LogIndex(committed),
            behind: Duration::from_nanos(behind),
            bytes,
            writes,
            reads,
        })
    }
}
