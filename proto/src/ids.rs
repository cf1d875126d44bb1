//! A type of its own for every id, so that no two can be mixed up.

use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One `shoal` process with its data directory. Never 0, never reused within a cluster.
    NodeId(u64)
);
id!(
    /// A Raft group. Group 1 is the coordinator's; shards take the ones from 2 up. Never reused.
    GroupId(u64)
);
id!(
    /// A shard, over the whole cluster. Unlike its name, never reused.
    ShardId(u64)
);
id!(
    /// A keyspace. Named so, because *keyspace id* means the bytes that place a row.
    KeyspaceNumber(u32)
);
id!(
    /// Tells a shard from earlier ones of the same name (2 -> 4 -> 2 shards gives `main/-80` again, with a new log).
    Incarnation(u32)
);
id!(
    /// The version of the topology. Every request carries the one it was routed by.
    Epoch(u64)
);
id!(
    /// The version of the catalog. Every request carries the one it was planned by.
    SchemaVersion(u64)
);
id!(
    /// An index in a Raft group's log. 0 is before the first entry.
    LogIndex(u64)
);
id!(
    /// A Raft term.
    Term(u64)
);
id!(
    /// A table. Shards store it as `t<id>`. Doubles as the relation's object id in `pg_catalog`.
    TableId(u32)
);
id!(
    /// A column within its table; never reused there. Shards store it as `c<id>`. The hidden key is column 0.
    ColumnId(u32)
);
id!(
    /// An index or unique constraint. Shards store it as `i<id>`. Shares its numbers with [`TableId`].
    IndexId(u32)
);
id!(
    /// A sequence. Shares its numbers with [`TableId`].
    SequenceId(u32)
);
id!(
    /// One start of one router. A restart gives a new one, so request ids can't repeat.
    RouterIncarnation(u64)
);

id!(
    /// A reshard, over the cluster's life. Never 0, never reused.
    ReshardId(u64)
);
id!(
    /// One try at a switch of a reshard. They are counted from 1; 0 is before the first.
    Attempt(u32)
);

/// A cluster, for ever. Drawn by lot when it is founded, never 0; nodes of another one aren't let in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<ClusterId> for String {
    fn from(cluster: ClusterId) -> String {
        cluster.to_string()
    }
}

impl TryFrom<String> for ClusterId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u128::from_str_radix(&text, 16) {
            Ok(number) if number != 0 => Ok(ClusterId(number)),
            _ => Err(format!("{text:?} is not a cluster's id")),
        }
    }
}

impl GroupId {
    /// The group that the coordinator's replicas form.
    pub const COORDINATOR: GroupId = GroupId(1);
}

impl ColumnId {
    /// The key of a table that declares no primary key.
    pub const HIDDEN_KEY: ColumnId = ColumnId(0);
}

/// Names one write, so that a repeated one is answered and not executed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The router that made it.
    pub router: RouterIncarnation,
    /// Counts up by one per request within the incarnation, from 1.
    pub sequence: u64,
}

/// A transaction, for ever. Its text form, `<router>-<sequence>` in hex, is what clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId {
    /// The router that began it.
    pub router: RouterIncarnation,
    /// Counts up by one per transaction within the incarnation, from 1.
    pub sequence: u64,
}

/// A read that sees one state of several shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CutId {
    /// The router that reads.
    pub router: RouterIncarnation,
    /// Counts up by one per cut within the incarnation, from 1.
    pub sequence: u64,
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.router.0, self.sequence)
    }
}

impl FromStr for TransactionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let is_plain = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let parts = text.split_once('-').and_then(|(router, sequence)| number(router).zip(number(sequence)));
        match parts {
            Some((router, sequence)) if sequence != 0 => {
                Ok(TransactionId { router: RouterIncarnation(router), sequence })
            }
            _ => Err(format!("{text:?} is not a transaction id")),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{}", self.router.0, self.sequence)
    }
}
