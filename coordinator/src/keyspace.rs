//! Keyspaces, and which node holds what of them.
//!
//! In come wishes for keyspaces, out go rows of the coordinator's tables. Nothing here waits: a
//! keyspace that is made but not ready is seen by shardnodes, which make its replicas, and not by routers.

use crate::config::Config;
use crate::store::{Counter, KeyspaceRow, Store};
use proto::catalog::Placement;
use proto::services::CreateKeyspace;
use proto::topology::{Keyspace, Shard, Sharding};
use proto::{
    GroupId, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, RouterIncarnation, ShardId, SqlState,
    TableId, WireError,
};
use std::collections::BTreeMap;

/// The most shards that a keyspace begins with.
const MOST_SHARDS: u32 = 1024;
/// Nobody asks for the keyspaces that a new cluster begins with.
pub(crate) const BOOTSTRAP: RequestId = RequestId { router: RouterIncarnation(0), sequence: 0 };
/// The most bytes of a keyspace's name, as of any PostgreSQL identifier.
const LONGEST_NAME: usize = 63;

/// Makes a new cluster's first keyspaces once there are enough nodes.
pub(crate) fn bootstrap(store: Store<'_>, config: &Config) -> Result<(), WireError> {
    let holders = store.nodes()?.values().filter(|node| node.roles.shardnode).count();
    if holders >= config.expected_nodes as usize && store.keyspaces()?.is_empty() {
        let main = CreateKeyspace {
            request: BOOTSTRAP,
            name: "main".into(),
            sharding: Sharding::Hash,
            shards: config.shards,
            replicas: Some(config.replicas),
        };
        make(store, &main, None, true)?;
        let single = CreateKeyspace { name: "single".into(), sharding: Sharding::Single, shards: 1, ..main };
        make(store, &single, None, true)?;
    }
    Ok(())
}

/// Checks a wish for a keyspace.
pub(crate) fn check(store: Store<'_>, request: &CreateKeyspace) -> Result<(), WireError> {
    let invalid = |message: String| Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    let name = &request.name;
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !first || !rest || name.len() > LONGEST_NAME {
        let message = format!("invalid keyspace name \"{name}\"");
        return Err(WireError::new(SqlState::INVALID_NAME, message).with_hint(
            "A keyspace's name is a lower-case identifier: a to z, 0 to 9 and _, no digit first, 63 bytes at most.",
        ));
    }
    if request.shards == 0 || request.shards > MOST_SHARDS {
        return invalid(format!("a keyspace has 1 to {MOST_SHARDS} shards, not {}", request.shards));
    }
    if request.shards > 1 && request.sharding != Sharding::Hash {
        return invalid(format!("a keyspace with {} sharding begins with one shard", request.sharding));
    }
    let holders = store.nodes()?.values().filter(|node| node.roles.shardnode && !node.draining).count();
    if let Some(replicas) = request.replicas
        && (replicas == 0 || replicas as usize > holders)
    {
        return invalid(format!("a shard has 1 to {holders} replicas on {holders} nodes, not {replicas}"));
    }
    if store.keyspaces()?.iter().any(|row| row.keyspace.name == *name) {
        let message = format!("keyspace \"{name}\" already exists");
        return Err(WireError::new(SqlState::DUPLICATE_OBJECT, message));
    }
    Ok(())
}

/// Makes a keyspace with its shards, on the nodes that hold the fewest replicas.
pub(crate) fn make(
    store: Store<'_>,
    request: &CreateKeyspace,
    owner: Option<TableId>,
    ready: bool,
) -> Result<Keyspace, WireError> {
    let existing = store.keyspaces()?;
    let replicas = request
        .replicas
        .or_else(|| existing.iter().find(|row| row.keyspace.name == "main").map(|row| row.keyspace.replicas))
        .ok_or_else(|| {
            WireError::new(SqlState::CANNOT_CONNECT_NOW, "the cluster has no keyspace yet")
                .with_hint("It is made once enough nodes have registered.")
        })?;
    let number = KeyspaceNumber(store.take(Counter::Keyspace)? as u32);
    let mut load = Load::of(store)?;
    let ranges = match request.sharding {
        Sharding::Hash => KeyRange::split_evenly(request.shards),
        Sharding::Range | Sharding::Single => vec![KeyRange::full()],
    };
    let incarnation = store.first_incarnation(&request.name)?;
    let mut shards = Vec::with_capacity(ranges.len());
    for range in ranges {
        let shard = Shard {
            id: ShardId(store.take(Counter::Shard)?),
            keyspace: number,
            range,
            incarnation,
            group: GroupId(store.take(Counter::Group)?),
            replicas: load.place(replicas)?,
            formed: false,
            first: LogIndex(0),
        };
        store.put_shard(&shard)?;
        shards.push(shard.id);
    }
    let (name, sharding) = (request.name.clone(), request.sharding);
    let keyspace = Keyspace { number, name, sharding, replicas, shards, auto: None };
    store.put_keyspace(&KeyspaceRow { keyspace: keyspace.clone(), ready, owner })?;
    store.next_epoch()?;
    Ok(keyspace)
}

/// A name for a table's own keyspace that no keyspace has.
pub(crate) fn name_for(store: Store<'_>, table: &str) -> Result<String, WireError> {
    let mut name: String = table
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(LONGEST_NAME - 11)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        name.insert(0, '_');
    }
    let taken: Vec<_> = store.keyspaces()?.into_iter().map(|row| row.keyspace.name).collect();
    let free = (2u32..).map(|n| format!("{name}_{n}")).find(|next| !taken.contains(next));
    Ok(if taken.contains(&name) { free.expect("there are more numbers than keyspaces") } else { name })
}

/// The keyspace of a placement; `None` for all of them.
pub(crate) fn of(placement: &Placement) -> Option<KeyspaceNumber> {
    match placement {
        Placement::Sharded { keyspace, .. } | Placement::Single { keyspace } => Some(*keyspace),
        Placement::Reference => None,
    }
}

/// How a table of this placement finds its rows' shards; one that is in no keyspace has all rows together.
pub(crate) fn sharding_of(store: Store<'_>, placement: &Placement) -> Result<Sharding, WireError> {
    let Some(number) = of(placement) else { return Ok(Sharding::Single) };
    let found = store.keyspaces()?.into_iter().find(|row| row.keyspace.number == number);
    found.map(|row| row.keyspace.sharding).ok_or_else(|| missing(number))
}

fn missing(number: KeyspaceNumber) -> WireError {
    WireError::new(SqlState::UNDEFINED_OBJECT, format!("keyspace {number} does not exist"))
}

/// The shards that hold a table of this placement, now.
pub(crate) fn shards_of(store: Store<'_>, placement: &Placement) -> Result<Vec<ShardId>, WireError> {
    let rows = store.keyspaces()?;
    match placement {
        Placement::Sharded { keyspace, .. } | Placement::Single { keyspace } => {
            let found = rows.into_iter().find(|row| row.keyspace.number == *keyspace);
            found.map(|row| row.keyspace.shards).ok_or_else(|| missing(*keyspace))
        }
        Placement::Reference => {
            Ok(rows.into_iter().filter(|row| row.ready).flat_map(|row| row.keyspace.shards).collect())
        }
    }
}

/// How many replicas each node holds, and how many of them come first and are likelier to lead.
struct Load(BTreeMap<NodeId, (usize, usize)>);

impl Load {
    fn of(store: Store<'_>) -> Result<Self, WireError> {
        let holders = store.nodes()?.into_values().filter(|node| node.roles.shardnode && !node.draining);
        let mut load: BTreeMap<_, _> = holders.map(|node| (node.id, (0, 0))).collect();
        for shard in store.shards()?.into_values() {
            for (place, node) in shard.replicas.iter().enumerate() {
                if let Some((held, first)) = load.get_mut(node) {
                    *held += 1;
                    *first += usize::from(place == 0);
                }
            }
        }
        Ok(Self(load))
    }

    /// The nodes of one more shard, the one that comes first on the fewest shards first.
    fn place(&mut self, replicas: u32) -> Result<Vec<NodeId>, WireError> {
        let mut nodes: Vec<_> = self.0.iter().map(|(node, load)| (*load, *node)).collect();
        if nodes.len() < replicas as usize {
            let message = format!("{replicas} replicas need as many nodes, and there are {}", nodes.len());
            return Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message));
        }
        nodes.sort_unstable();
        nodes.truncate(replicas as usize);
        nodes.sort_by_key(|((_, first), node)| (*first, *node));
        let chosen: Vec<_> = nodes.into_iter().map(|(_, node)| node).collect();
        for (place, node) in chosen.iter().enumerate() {
            if let Some((held, first)) = self.0.get_mut(node) {
                *held += 1;
                *first += usize::from(place == 0);
            }
        }
        Ok(chosen)
    }
}
