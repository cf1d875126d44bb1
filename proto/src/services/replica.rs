//! What a node's replicas do for the coordinator, whatever the groups hold that they belong to.

use super::{BoxFuture, ServiceResult};
use crate::ids::{GroupId, LogIndex, NodeId, Term};
use std::time::Duration;

/// The replicas of one node. All but `replicas` are for the group's leader; others answer
/// [`crate::Retry::NotLeader`].
pub trait ReplicaService: Send + Sync {
    /// What the node's replicas are doing.
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>>;

    /// Has the group consist of these voters, and answers with its members once it does. Members that come catch up
    /// as learners first. With `rebuild`, that node's member is replaced by a fresh one, whatever it has on disk.
    ///
    /// Repeating the call, at whoever leads by then, goes on where it stands. 55006 while another change is under way.
    fn change_members(
        &self,
        group: GroupId,
        voters: Vec<NodeId>,
        rebuild: Option<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>>;

    /// Hands a group over to another of its voters, and answers once that one leads.
    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<()>>;

    /// Has every replica of a group hash its tables at one index, and answers with that index. The hashes come with
    /// the replicas' statuses.
    fn check(&self, group: GroupId, timeout: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>>;

    /// Has every replica of a group keep its log from an index on for whoever has this name, or no more, and answers with
    /// the index from which on every replica knows. 55000 if some replica may have forgotten that index already; one that
    /// lies ahead means all that comes after the answer.
    fn hold_log(
        &self,
        group: GroupId,
        name: String,
        from: Option<LogIndex>,
        timeout: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>>;
}

/// Who belongs to a group, as a replica has applied it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Who votes. While `joint`, who votes before or after the change.
    pub voters: Vec<NodeId>,
    /// Who catches up.
    pub learners: Vec<NodeId>,
    /// Whether the group is between two sets of voters, and needs a majority of both.
    pub joint: bool,
}

/// The hash of a replica's tables at an index. Replicas of a group that differ at the same index have diverged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHash {
    /// The index.
    pub index: LogIndex,
    /// The hash.
    pub hash: u128,
}

/// How much of something has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub done: u64,
    /// Bytes that there will be.
    pub total: u64,
}

/// For whom a replica keeps its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHold {
    /// Whose name it has.
    pub name: String,
    /// The first index that is kept.
    pub from: LogIndex,
    /// How many bytes of entries lie there and after, a few more at most, as of the replica's last tick. What was in the
    /// log before the replica was opened counts as nothing: who bounds what is held looks at all the group's replicas.
    pub bytes: u64,
}

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaStatus {
    /// Its node.
    pub node: NodeId,
    /// Its group.
    pub group: GroupId,
    /// Its part in the group.
    pub role: ReplicaRole,
    /// Its term.
    pub term: Term,
    /// The leader that it knows.
    pub leader: Option<NodeId>,
    /// The last index that its SQLite database has.
    pub applied: LogIndex,
    /// The last index that it knows to be committed.
    pub committed: LogIndex,
    /// For how long it has known the oldest committed entry that its database lacks; or, if that is longer, hasn't heard of
    /// its leader though it should have. By its own clock alone: how long an entry was on its way isn't in it.
    pub behind: Duration,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
    /// Who belongs to its group. Empty if it doesn't know.
    pub members: Members,
    /// The last index of the leader's log, as far as it knows. 0 if it doesn't.
    pub last: LogIndex,
    /// Of a leader: the last index that each other member is known to have in its log.
    pub lag: Vec<(NodeId, LogIndex)>,
    /// For whom the log is held.
    pub holds: Vec<LogHold>,
    /// The size of its SQLite database, as of its last checkpoint.
    pub bytes: u64,
    /// The size of its SQLite database's write-ahead log.
    pub wal_bytes: u64,
    /// The last hash that it took of its tables.
    pub check: Option<TableHash>,
    /// The image that it is being sent.
    pub image: Option<Progress>,
    /// How many writes have changed something while it led, since its node's process began.
    pub writes: u64,
    /// How many snapshots it has opened since then.
    pub reads: u64,
}

impl ReplicaStatus {
    /// Why a replica doesn't run whose group was formed and whose files aren't there any more. Only the others can give
    /// it back what it had.
    pub const FILES_GONE: &str = "its files are gone";

    /// Whether it has stopped because its disk is full.
    pub fn has_full_disk(&self) -> bool {
        // As SQLite says it, and the operating system.
        let texts = ["disk is full", "No space left on device", "quota exceeded"];
        self.stopped.as_ref().is_some_and(|why| texts.iter().any(|text| why.contains(text)))
    }

    /// A replica of which nothing is known yet.
    pub fn new(node: NodeId, group: GroupId) -> Self {
        Self {
            node,
            group,
            role: ReplicaRole::Follower,
            term: Term(0),
            leader: None,
            applied: LogIndex(0),
            committed: LogIndex(0),
            behind: Duration::ZERO,
            stopped: None,
            members: Members::default(),
            last: LogIndex(0),
            lag: Vec::new(),
            holds: Vec::new(),
            bytes: 0,
            wal_bytes: 0,
            check: None,
            image: None,
            writes: 0,
            reads: 0,
        }
    }
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It executes, proposes, and answers strong reads.
    Leader,
    /// It applies what the leader sends.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It catches up and doesn't vote.
    Learner,
}
