//! The cluster's shape: nodes, keyspaces, and the shards that cover them.
//!
//! The coordinator writes it, everyone follows it. It changes rarely, and each change is a new [`Epoch`]. Who leads a
//! group changes often and harms nobody who has it wrong, so that is kept beside it ([`Leaders`]), without an epoch.

use crate::gtid::GtidSource;
use crate::ids::{
    Attempt, Epoch, GroupId, Incarnation, KeyspaceNumber, LogIndex, NodeId, ReshardId, ShardId, Term,
};
use crate::key_range::KeyRange;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Nodes, keyspaces and shards at one epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// The version of all this.
    pub epoch: Epoch,
    /// Every node that belongs to the cluster.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every keyspace.
    pub keyspaces: BTreeMap<KeyspaceNumber, Keyspace>,
    /// Every shard that serves, or is being made or retired.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The logs that go on in others. They are never forgotten: somebody may still have a position in one.
    pub lineage: BTreeMap<GtidSource, Retired>,
    /// The nodes that hold the coordinator's replicas, in ascending order.
    pub coordinators: Vec<NodeId>,
    /// Replicas that are being made. Whoever has a replica of a group that is neither here nor placed on it has what was
    /// taken from it; who hasn't one that is placed on it, and not here, has lost it.
    pub joining: Vec<(GroupId, NodeId)>,
    /// The reshards that nodes have a part in now.
    pub reshards: Vec<Reshard>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// `host:port` where other nodes and the admin reach it; empty if it shares their process alone.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Where it is, as whoever runs it calls the place; empty if they don't. Nodes of one zone are near to each other.
    pub zone: String,
    /// Whether all that it holds is being moved away. It gets nothing new.
    pub draining: bool,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Answers Postgres clients.
    pub router: bool,
    /// Holds replicas of shards.
    pub shardnode: bool,
    /// May hold a replica of the coordinator. Who does is in [`Topology::coordinators`].
    pub coordinator: bool,
}

impl Roles {
    /// Everything: the common deployment.
    pub const ALL: Roles = Roles { router: true, shardnode: true, coordinator: true };
}

/// How a keyspace places rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By the hash of the shard key.
    Hash,
    /// By the order of the shard key.
    Range,
    /// Everything on its one shard.
    Single,
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sharding::Hash => "hash",
            Sharding::Range => "range",
            Sharding::Single => "single",
        })
    }
}

/// A log that has ended, and what it goes on in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The shard whose log it was.
    pub shard: ShardId,
    /// The last of its positions that went on.
    pub last: LogIndex,
    /// Each of these covers it from that position of its own log on. Their ids are greater than the shard's. They may be retired, too.
    pub successors: Vec<(ShardId, LogIndex)>,
}

/// A set of shards that together cover all keyspace ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyspace {
    /// Its number.
    pub number: KeyspaceNumber,
    /// Its name.
    pub name: String,
    /// How it places rows.
    pub sharding: Sharding,
    /// How many replicas each of its shards has.
    pub replicas: u32,
    /// The shards that serve it, in the order of their ranges, without gaps or overlaps.
    pub shards: Vec<ShardId>,
    /// Whether what is too big of it is split without being asked for.
    pub auto: Option<AutoSplit>,
}

/// What is split without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoSplit {
    /// A shard of more bytes.
    pub size: u64,
    /// Of a keyspace with fewer shards.
    pub shards: u32,
}

/// One shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Its keyspace.
    pub keyspace: KeyspaceNumber,
    /// The keyspace ids that it holds.
    pub range: KeyRange,
    /// Which of the shards of this name it is.
    pub incarnation: Incarnation,
    /// The Raft group that serves it.
    pub group: GroupId,
    /// The nodes that hold its replicas.
    pub replicas: Vec<NodeId>,
    /// Whether its group has ever had a leader. From then on nobody may found it: a node whose files are gone gets its
    /// replica from the others, not an empty one of its own that votes anew.
    pub formed: bool,
    /// The entry of its group's log from which on it has all that the shards had whose place it took. Positions before aren't
    /// its own. 0 for a shard that took nobody's place, or hasn't yet.
    pub first: LogIndex,
}

/// What nodes must know of a reshard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshard {
    /// Its number.
    pub id: ReshardId,
    /// What is being built for it. A node deletes what it has built, or has begun to, and isn't to be found here any more.
    pub build: Option<Build>,
    /// Who takes over whose entries. Whoever leads a target runs its flows as long as they are here.
    pub flows: Vec<Flow>,
    /// The attempt for which routers keep new transactions waiting. The flows' targets adopt what was sealed by this one, and
    /// by no other: only so do they have the ids here that they are to serve as.
    pub gate: Option<Attempt>,
}

/// The new shards' databases while one node makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// The node.
    pub node: NodeId,
    /// Which try it is.
    pub tries: u32,
    /// The groups that the node may found.
    pub groups: Vec<GroupId>,
}

/// One shard's group takes over what another one's log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Whose log. Where the target has taken over nothing of it yet, it begins after the source's [`Shard::first`].
    pub source: ShardId,
    /// Who takes it over.
    pub target: ShardId,
    /// Whether the rows of reference tables come this way: of all of a target's flows, by one.
    pub references: bool,
}

impl Topology {
    /// The keyspace of this name.
    pub fn keyspace_named(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.values().find(|k| k.name == name)
    }

    /// The shard of a keyspace that holds a keyspace id. `None` for an unknown keyspace.
    pub fn shard_for(&self, keyspace: KeyspaceNumber, keyspace_id: &[u8]) -> Option<ShardId> {
        let shards = &self.keyspaces.get(&keyspace)?.shards;
        let after = shards.partition_point(|id| {
            self.shards.get(id).is_some_and(|s| s.range.start.as_slice() <= keyspace_id)
        });
        shards.get(after.checked_sub(1)?).copied()
    }

    /// Whether this is one of the shards that serve now: not one that is being made, and not one that others have replaced.
    pub fn serves(&self, id: ShardId) -> bool {
        let keyspace = self.shards.get(&id).and_then(|shard| self.keyspaces.get(&shard.keyspace));
        keyspace.is_some_and(|keyspace| keyspace.shards.contains(&id))
    }

    /// A shard's name, for example `main/-80`.
    pub fn shard_name(&self, id: ShardId) -> String {
        match self.shards.get(&id).and_then(|s| Some((self.keyspaces.get(&s.keyspace)?, s))) {
            Some((keyspace, shard)) => format!("{}/{}", keyspace.name, shard.range),
            None => format!("shard {id}"),
        }
    }

    /// The log that positions of this shard count in.
    pub fn gtid_source(&self, id: ShardId) -> Option<GtidSource> {
        let shard = self.shards.get(&id)?;
        let keyspace = self.keyspaces.get(&shard.keyspace)?.name.clone();
        Some(GtidSource { keyspace, shard: shard.range.clone(), incarnation: shard.incarnation })
    }
}

/// Who leads each group, as last heard. A hint: a wrong one costs a refused request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leaders(HashMap<GroupId, (Term, NodeId)>);

impl Leaders {
    /// Learns that `node` led `group` in `term`. Says whether that was news.
    pub fn learn(&mut self, group: GroupId, term: Term, node: NodeId) -> bool {
        match self.0.get(&group) {
            Some((known, _)) if *known >= term => false,
            _ => {
                self.0.insert(group, (term, node));
                true
            }
        }
    }

    /// The leader of a group, as last heard.
    pub fn get(&self, group: GroupId) -> Option<NodeId> {
        self.0.get(&group).map(|(_, node)| *node)
    }

    /// The term of that leader; 0 if none is known.
    pub fn term(&self, group: GroupId) -> Term {
        self.0.get(&group).map_or(Term(0), |(term, _)| *term)
    }

    /// Every group with the term and node of its last known leader.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, Term, NodeId)> {
        self.0.iter().map(|(group, (term, node))| (*group, *term, *node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(ranges: &[&str]) -> Topology {
        let mut topology = Topology::default();
        let number = KeyspaceNumber(1);
        let mut shards = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            let id = ShardId(i as u64 + 1);
            shards.push(id);
            let range = KeyRange::parse(range).unwrap();
            let group = GroupId(id.0 + 1);
            let replicas = vec![NodeId(1)];
            let incarnation = Incarnation(1);
            topology.shards.insert(
                id,
                Shard {
                    id,
                    keyspace: number,
                    range,
                    incarnation,
                    group,
                    replicas,
                    formed: true,
                    first: LogIndex(0),
                },
            );
        }
        let keyspace = Keyspace {
            number,
            name: "main".into(),
            sharding: Sharding::Hash,
            replicas: 1,
            shards,
            auto: None,
        };
        topology.keyspaces.insert(number, keyspace);
        topology
    }

    #[test]
    fn a_keyspace_id_finds_its_shard() {
        let topology = topology(&["-40", "40-80", "80-"]);
        let find = |id: &[u8]| topology.shard_for(KeyspaceNumber(1), id);
        assert_eq!(find(&[]), Some(ShardId(1)));
        assert_eq!(find(&[0x3f, 0xff]), Some(ShardId(1)));
        assert_eq!(find(&[0x40]), Some(ShardId(2)));
        assert_eq!(find(&[0xff; 8]), Some(ShardId(3)));
        assert_eq!(topology.shard_for(KeyspaceNumber(9), &[0]), None);
        assert_eq!(topology.shard_name(ShardId(2)), "main/40-80");
    }

    #[test]
    fn shards_serve_that_a_keyspace_names() {
        let mut topology = topology(&["-80", "80-"]);
        let keyspace = topology.keyspaces.get_mut(&KeyspaceNumber(1)).unwrap();
        assert_eq!(keyspace.shards.pop(), Some(ShardId(2)));
        assert!(topology.serves(ShardId(1)));
        assert!(!topology.serves(ShardId(2)), "it is there, and nobody is sent to it");
        assert!(!topology.serves(ShardId(3)));
        topology.keyspaces.clear();
        assert!(!topology.serves(ShardId(1)), "its keyspace is still being made");
    }

    #[test]
    fn an_older_term_teaches_nothing() {
        let mut leaders = Leaders::default();
        assert!(leaders.learn(GroupId(2), Term(3), NodeId(1)));
        assert!(!leaders.learn(GroupId(2), Term(2), NodeId(2)));
        assert!(leaders.learn(GroupId(2), Term(4), NodeId(3)));
        assert_eq!(leaders.get(GroupId(2)), Some(NodeId(3)));
        assert_eq!((leaders.term(GroupId(2)), leaders.term(GroupId(9))), (Term(4), Term(0)));
    }
}
