//! The cluster's shape as messages.

use super::generated as pb;
use super::{Convert, DecodeError, each, id, known, maybe, messages, one};
use crate::gtid::GtidSource;
use crate::ids::{
    Attempt, Epoch, GroupId, Incarnation, KeyspaceNumber, LogIndex, NodeId, ReshardId, ShardId, Term,
};
use crate::key_range::KeyRange;
use crate::topology::{
    AutoSplit, Build, Flow, Keyspace, Leaders, Node, Reshard, Retired, Roles, Shard, Sharding, Topology,
};
use bytes::Bytes;
use std::collections::BTreeMap;

impl Convert for KeyRange {
    type Message = pb::KeyRange;
    const NAME: &'static str = "key_range";

    fn to_message(&self) -> pb::KeyRange {
        let bytes = Bytes::copy_from_slice;
        pb::KeyRange { start: bytes(&self.start), end: self.end.as_deref().map(bytes) }
    }

    fn from_message(message: pb::KeyRange) -> Result<Self, DecodeError> {
        let pb::KeyRange { start, end } = message;
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Err(DecodeError::new("end", "it is not after the start"));
        }
        Ok(KeyRange { start: start.into(), end: end.map(Vec::from) })
    }
}

pub(super) fn sharding_number(sharding: Sharding) -> i32 {
    let sharding = match sharding {
        Sharding::Hash => pb::Sharding::Hash,
        Sharding::Range => pb::Sharding::Range,
        Sharding::Single => pb::Sharding::Single,
    };
    sharding.into()
}

pub(super) fn sharding(number: i32) -> Result<Sharding, DecodeError> {
    match known("sharding", number)? {
        pb::Sharding::Unspecified => Err(DecodeError::new("sharding", "it is missing")),
        pb::Sharding::Hash => Ok(Sharding::Hash),
        pb::Sharding::Range => Ok(Sharding::Range),
        pb::Sharding::Single => Ok(Sharding::Single),
    }
}

/// The numbers of nodes.
pub(super) fn node_numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

/// Node ids, none of them 0.
pub(super) fn nodes(field: &str, ids: Vec<u64>) -> Result<Vec<NodeId>, DecodeError> {
    ids.into_iter().map(|node| Ok(NodeId(id(field, node)?))).collect()
}

impl Convert for Node {
    type Message = pb::Node;
    const NAME: &'static str = "node";

    fn to_message(&self) -> pb::Node {
        let Node { id, address, roles: Roles { router, shardnode, coordinator }, zone, draining } = self;
        pb::Node {
            id: id.0,
            address: address.clone(),
            router: *router,
            shardnode: *shardnode,
            coordinator: *coordinator,
            zone: zone.clone(),
            draining: *draining,
        }
    }

    fn from_message(message: pb::Node) -> Result<Self, DecodeError> {
        let pb::Node { id: node, address, router, shardnode, coordinator, zone, draining } = message;
        let roles = Roles { router, shardnode, coordinator };
        Ok(Node { id: NodeId(id("id", node)?), address, roles, zone, draining })
    }
}

impl Convert for Keyspace {
    type Message = pb::Keyspace;
    const NAME: &'static str = "keyspace";

    fn to_message(&self) -> pb::Keyspace {
        let Keyspace { number, name, sharding, replicas, shards, auto } = self;
        pb::Keyspace {
            number: number.0,
            name: name.clone(),
            sharding: sharding_number(*sharding),
            replicas: *replicas,
            shards: shards.iter().map(|shard| shard.0).collect(),
            auto: auto.as_ref().map(Convert::to_message),
        }
    }

    fn from_message(message: pb::Keyspace) -> Result<Self, DecodeError> {
        let pb::Keyspace { number, name, sharding: how, replicas, shards, auto } = message;
        Ok(Keyspace {
            number: KeyspaceNumber(id("number", number)?),
            name,
            sharding: sharding(how)?,
            replicas,
            shards: shards
                .into_iter()
                .map(|shard| Ok(ShardId(id("shards", shard)?)))
                .collect::<Result<_, _>>()?,
            auto: maybe("auto", auto)?,
        })
    }
}

impl Convert for AutoSplit {
    type Message = pb::AutoSplit;
    const NAME: &'static str = "auto_split";

    fn to_message(&self) -> pb::AutoSplit {
        let AutoSplit { size, shards } = *self;
        pb::AutoSplit { size, shards }
    }

    fn from_message(message: pb::AutoSplit) -> Result<Self, DecodeError> {
        let pb::AutoSplit { size, shards } = message;
        Ok(AutoSplit { size, shards })
    }
}

impl Convert for Shard {
    type Message = pb::Shard;
    const NAME: &'static str = "shard";

    fn to_message(&self) -> pb::Shard {
        let Shard { id, keyspace, range, incarnation, group, replicas, formed, first } = self;
        pb::Shard {
            id: id.0,
            keyspace: keyspace.0,
            range: Some(range.to_message()),
            incarnation: incarnation.0,
            group: group.0,
            replicas: node_numbers(replicas),
            formed: *formed,
            first: first.0,
        }
    }

    fn from_message(message: pb::Shard) -> Result<Self, DecodeError> {
        let pb::Shard { id: shard, keyspace, range, incarnation, group, replicas, formed, first } = message;
        Ok(Shard {
            id: ShardId(id("id", shard)?),
            keyspace: KeyspaceNumber(id("keyspace", keyspace)?),
            range: one("range", range)?,
            incarnation: Incarnation(incarnation),
            group: GroupId(id("group", group)?),
            replicas: nodes("replicas", replicas)?,
            formed,
            first: LogIndex(first),
        })
    }
}

impl Convert for GtidSource {
    type Message = pb::GtidSource;
    const NAME: &'static str = "gtid_source";

    fn to_message(&self) -> pb::GtidSource {
        let GtidSource { keyspace, shard, incarnation } = self;
        pb::GtidSource {
            keyspace: keyspace.clone(),
            shard: Some(shard.to_message()),
            incarnation: incarnation.0,
        }
    }

    fn from_message(message: pb::GtidSource) -> Result<Self, DecodeError> {
        let pb::GtidSource { keyspace, shard, incarnation } = message;
        if keyspace.is_empty() {
            return Err(DecodeError::new("keyspace", "it is missing"));
        }
        Ok(GtidSource { keyspace, shard: one("shard", shard)?, incarnation: Incarnation(incarnation) })
    }
}

/// A log that has ended: one entry of [`Topology::lineage`].
struct Lineage(GtidSource, Retired);

impl Convert for Lineage {
    type Message = pb::Lineage;
    const NAME: &'static str = "lineage";

    fn to_message(&self) -> pb::Lineage {
        let Lineage(source, Retired { shard, last, successors }) = self;
        pb::Lineage {
            source: Some(source.to_message()),
            shard: shard.0,
            last: last.0,
            successors: messages(successors),
        }
    }

    fn from_message(message: pb::Lineage) -> Result<Self, DecodeError> {
        let pb::Lineage { source, shard, last, successors } = message;
        let (shard, last) = (ShardId(id("shard", shard)?), LogIndex(last));
        let successors = each("successors", successors)?;
        Ok(Lineage(one("source", source)?, Retired { shard, last, successors }))
    }
}

impl Convert for (ShardId, LogIndex) {
    type Message = pb::Position;
    const NAME: &'static str = "position";

    fn to_message(&self) -> pb::Position {
        pb::Position { shard: self.0.0, index: self.1.0 }
    }

    fn from_message(message: pb::Position) -> Result<Self, DecodeError> {
        Ok((ShardId(id("shard", message.shard)?), LogIndex(message.index)))
    }
}

impl Convert for Reshard {
    type Message = pb::Reshard;
    const NAME: &'static str = "reshard";

    fn to_message(&self) -> pb::Reshard {
        let Reshard { id, build, flows, gate } = self;
        pb::Reshard {
            id: id.0,
            build: build.as_ref().map(Build::to_message),
            flows: messages(flows),
            gate: gate.map_or(0, |attempt| attempt.0),
        }
    }

    fn from_message(message: pb::Reshard) -> Result<Self, DecodeError> {
        let pb::Reshard { id: reshard, build, flows, gate } = message;
        Ok(Reshard {
            id: ReshardId(id("id", reshard)?),
            build: maybe("build", build)?,
            flows: each("flows", flows)?,
            gate: (gate != 0).then_some(Attempt(gate)),
        })
    }
}

impl Convert for Build {
    type Message = pb::Build;
    const NAME: &'static str = "build";

    fn to_message(&self) -> pb::Build {
        let Build { node, tries, groups } = self;
        pb::Build { node: node.0, tries: *tries, groups: groups.iter().map(|group| group.0).collect() }
    }

    fn from_message(message: pb::Build) -> Result<Self, DecodeError> {
        let pb::Build { node, tries, groups } = message;
        let group = |group| Ok(GroupId(id("groups", group)?));
        let groups = groups.into_iter().map(group).collect::<Result<_, _>>()?;
        Ok(Build { node: NodeId(id("node", node)?), tries, groups })
    }
}

impl Convert for Flow {
    type Message = pb::Flow;
    const NAME: &'static str = "flow";

    fn to_message(&self) -> pb::Flow {
        let Flow { source, target, references } = *self;
        pb::Flow { source: source.0, target: target.0, references }
    }

    fn from_message(message: pb::Flow) -> Result<Self, DecodeError> {
        let pb::Flow { source, target, references } = message;
        let (source, target) = (ShardId(id("source", source)?), ShardId(id("target", target)?));
        Ok(Flow { source, target, references })
    }
}

impl Convert for Topology {
    type Message = pb::Topology;
    const NAME: &'static str = "topology";

    fn to_message(&self) -> pb::Topology {
        let Topology { epoch, nodes, keyspaces, shards, lineage, coordinators, joining, reshards } = self;
        let replica = |(group, node): &(GroupId, NodeId)| pb::Joining { group: group.0, node: node.0 };
        pb::Topology {
            epoch: epoch.0,
            nodes: messages(nodes.values()),
            keyspaces: messages(keyspaces.values()),
            shards: messages(shards.values()),
            lineage: lineage.iter().map(|(of, to)| Lineage(of.clone(), to.clone()).to_message()).collect(),
            coordinators: node_numbers(coordinators),
            joining: joining.iter().map(replica).collect(),
            reshards: messages(reshards),
        }
    }

    fn from_message(message: pb::Topology) -> Result<Self, DecodeError> {
        let pb::Topology {
            epoch,
            nodes: members,
            keyspaces,
            shards,
            lineage,
            coordinators,
            joining,
            reshards,
        } = message;
        let replica = |pb::Joining { group, node }| {
            Ok((GroupId(id("joining.group", group)?), NodeId(id("joining.node", node)?)))
        };
        let lineage: Vec<Lineage> = each("lineage", lineage)?;
        Ok(Topology {
            epoch: Epoch(epoch),
            nodes: keyed("nodes", each("nodes", members)?, |node: &Node| node.id)?,
            keyspaces: keyed("keyspaces", each("keyspaces", keyspaces)?, |keyspace: &Keyspace| {
                keyspace.number
            })?,
            shards: keyed("shards", each("shards", shards)?, |shard: &Shard| shard.id)?,
            lineage: keyed("lineage", lineage, |entry| entry.0.clone())?
                .into_iter()
                .map(|(source, Lineage(_, retired))| (source, retired))
                .collect(),
            coordinators: nodes("coordinators", coordinators)?,
            joining: joining.into_iter().map(replica).collect::<Result<_, _>>()?,
            reshards: each("reshards", reshards)?,
        })
    }
}

/// A map of things by their own ids, each there once.
fn keyed<K: Ord, V>(
    field: &str,
    values: Vec<V>,
    key: impl Fn(&V) -> K,
) -> Result<BTreeMap<K, V>, DecodeError> {
    let count = values.len();
    let map: BTreeMap<K, V> = values.into_iter().map(|value| (key(&value), value)).collect();
    if map.len() == count { Ok(map) } else { Err(DecodeError::new(field, "an id comes up twice")) }
}

impl Convert for Leaders {
    type Message = pb::Leaders;
    const NAME: &'static str = "leaders";

    fn to_message(&self) -> pb::Leaders {
        let mut leaders: Vec<_> = self
            .iter()
            .map(|(group, term, node)| pb::Leader { group: group.0, term: term.0, node: node.0 })
            .collect();
        leaders.sort_unstable_by_key(|leader| leader.group);
        pb::Leaders { leaders }
    }

    fn from_message(message: pb::Leaders) -> Result<Self, DecodeError> {
        let mut leaders = Leaders::default();
        for pb::Leader { group, term, node } in message.leaders {
            let group = GroupId(id("leaders.group", group)?);
            let node = NodeId(id("leaders.node", node)?);
            if leaders.get(group).is_some() {
                return Err(DecodeError::new("leaders.group", "it comes up twice"));
            }
            leaders.learn(group, Term(term), node);
        }
        Ok(leaders)
    }
}
