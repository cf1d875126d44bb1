//! Nodes in the coordinator's tables: who belongs to the cluster, and who holds the coordinator's replicas.
//!
//! In come registrations and wishes to join, out go rows. A node's id is its own for ever: the data directory that it
//! was given to is its only rightful bearer, and an id that was given out is never given out again.

use crate::config::Config;
use crate::keyspace;
use crate::replica_job::ReplicaJob;
use crate::store::{Answer, Counter, Store, decode};
use dialect::sqlite::error;
use proto::services::{Joined, NodeJoin};
use proto::topology::Node;
use proto::wire::Wire;
use proto::{ClusterId, GroupId, NodeId, Retry, SqlState, WireError};
use rusqlite::params;
use std::collections::BTreeMap;
use std::time::Duration;

/// The most that a node's number may be: it shares a word with a number of the log.
const MOST: u64 = 65_535;

type Result<T> = std::result::Result<T, WireError>;

/// Takes note of a node. When there are enough of them, a new cluster's first keyspaces are made. `heard` is how long
/// ago a process reported as this node.
pub(crate) fn register(
    store: Store<'_>,
    node: &Node,
    heard: Option<Duration>,
    config: &Config,
) -> Result<()> {
    if node.id == NodeId(0) || node.id.0 > MOST {
        let message = format!("node id {} is never given out", node.id);
        return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    let nodes = store.nodes()?;
    let known = nodes.get(&node.id);
    // Whoever runs a node has no say in what an admin has begun with it.
    let node = Node { draining: known.is_some_and(|known| known.draining), ..node.clone() };
    match known {
        Some(known) if *known == node => {}
        Some(known)
            if known.address != node.address && heard.is_some_and(|ago| ago < config.silent_after) =>
        {
            let message = format!("node {} is another process, at {}", node.id, known.address);
            return Err(WireError::new(SqlState::OBJECT_IN_USE, message)
                .with_hint("Two nodes never share a data directory or a copy of it. Stop one of them.")
                .with_retry(Retry::Later));
        }
        _ => {
            store.put_node(&node)?;
            store.next_epoch()?;
        }
    }
    keyspace::bootstrap(store, config)
}

/// Gives a node its id. Founders have theirs, and must have registered: until then nobody's number is known to be free.
pub(crate) fn join(store: Store<'_>, join: &NodeJoin) -> Result<Joined> {
    let id = match store.answer(join.request)? {
        Some(Ok(id)) => NodeId(id),
        Some(Err(error)) => return Err(error),
        None => {
            let nodes = store.nodes()?;
            if let Some(founder) = store.coordinators()?.iter().find(|id| !nodes.contains_key(id)) {
                let message =
                    format!("node {founder}, which the cluster is founded with, hasn't registered yet");
                return Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                    .with_retry(Retry::Later));
            }
            let id = NodeId(store.take(Counter::Node)?);
            if id.0 > MOST {
                let message = format!("the cluster has given out all of its {MOST} node ids");
                return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
            }
            let NodeJoin { address, roles, zone, .. } = join.clone();
            store.put_node(&Node { id, address, roles, zone, draining: false })?;
            store.next_epoch()?;
            store.put_answer(join.request, &Ok(id.0))?;
            id
        }
    };
    let nodes = store.nodes()?;
    let coordinators = store.coordinators()?.iter().filter_map(|id| nodes.get(id).cloned()).collect();
    Ok(Joined { cluster: store.cluster()?, node: id, coordinators })
}

/// Notes that groups are formed: each has a leader, and each of its replicas has been made, or has had its time.
pub(crate) fn formed(store: Store<'_>, groups: &[GroupId]) -> Result<()> {
    let mut news = false;
    for mut shard in store.shards()?.into_values() {
        if groups.contains(&shard.group) && !shard.formed {
            shard.formed = true;
            store.put_shard(&shard)?;
            news = true;
        }
    }
    if news { store.next_epoch() } else { Ok(()) }
}

impl Store<'_> {
    /// The cluster that was founded with these tables.
    pub(crate) fn cluster(&self) -> Result<ClusterId> {
        let found = self.first("SELECT id FROM shoal_cluster", [], |row| row.get::<_, [u8; 16]>(0))?;
        found.map(|id| ClusterId(u128::from_be_bytes(id))).ok_or_else(|| {
            WireError::new(SqlState::DATA_CORRUPTED, "the coordinator has lost its cluster's id")
        })
    }

    pub(crate) fn nodes(&self) -> Result<BTreeMap<NodeId, Node>> {
        let nodes = self.all("SELECT descriptor FROM shoal_node ORDER BY id", [], |row| {
            decode::<Node>(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })?;
        Ok(nodes.into_iter().map(|node| (node.id, node)).collect())
    }

    pub(crate) fn put_node(&self, node: &Node) -> Result<()> {
        let sql = "INSERT INTO shoal_node VALUES (?1, ?2)
            ON CONFLICT (id) DO UPDATE SET descriptor = excluded.descriptor";
        self.run(sql, params![node.id.0 as i64, node.encode()])?;
        self.run(
            "UPDATE shoal_counter SET value = max(value, ?1) WHERE name = 'node'",
            [node.id.0 as i64 + 1],
        )
    }

    /// The nodes that hold the coordinator's replicas.
    pub(crate) fn coordinators(&self) -> Result<Vec<NodeId>> {
        self.all("SELECT node FROM shoal_coordinator ORDER BY node", [], |row| {
            Ok(NodeId(row.get::<_, i64>(0).map_err(error)? as u64))
        })
    }

    pub(crate) fn put_coordinators(&self, nodes: &[NodeId]) -> Result<()> {
        self.run("DELETE FROM shoal_coordinator", [])?;
        for node in nodes {
            self.run("INSERT INTO shoal_coordinator VALUES (?1)", [node.0 as i64])?;
        }
        Ok(())
    }

    /// Every unfinished change of replicas, in the order of their beginning.
    pub(crate) fn replica_jobs(&self) -> Result<Vec<ReplicaJob>> {
        self.all("SELECT body FROM shoal_replica_job ORDER BY id", [], |row| {
            ReplicaJob::read(&row.get::<_, Vec<u8>>(0).map_err(error)?)
        })
    }

    pub(crate) fn replica_job(&self, id: u64) -> Result<Option<ReplicaJob>> {
        let sql = "SELECT body FROM shoal_replica_job WHERE id = ?1";
        let found = self.first(sql, [id as i64], |row| row.get::<_, Vec<u8>>(0))?;
        found.map(|bytes| ReplicaJob::read(&bytes)).transpose()
    }

    /// Writes a change of replicas down. There may be only one for each group.
    pub(crate) fn put_replica_job(&self, job: &ReplicaJob) -> Result<()> {
        let sql = "INSERT INTO shoal_replica_job VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (id) DO UPDATE SET body = excluded.body";
        let (router, sequence) = (job.request().router.0 as i64, job.request().sequence as i64);
        self.run(sql, params![job.id as i64, router, sequence, job.group().0 as i64, job.bytes()])
    }

    /// Ends a change of replicas, and remembers what came of it.
    pub(crate) fn end_replica_job(&self, job: &ReplicaJob, answer: &Answer) -> Result<()> {
        self.run("DELETE FROM shoal_replica_job WHERE id = ?1", [job.id as i64])?;
        self.put_answer(job.request(), answer)
    }

    /// The replicas that are being made.
    pub(crate) fn joining(&self) -> Result<Vec<(GroupId, NodeId)>> {
        let jobs = self.replica_jobs()?;
        Ok(jobs.iter().filter_map(|job| Some((job.group(), job.joining()?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::Roles;
    use proto::{RequestId, RouterIncarnation};
    use rusqlite::Connection;

    #[test]
    fn a_node_that_registers_anew_is_drained_as_before() {
        let config = Config { expected_nodes: 9, ..Config::new(NodeId(1), vec![NodeId(1)]) };
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&crate::store::init(&config).join(";")).unwrap();
        let store = Store(&connection);
        let node = |address: &str, draining| Node {
            id: NodeId(1),
            address: address.to_owned(),
            roles: Roles::ALL,
            zone: String::new(),
            draining,
        };
        register(store, &node("a:1", true), None, &config).unwrap();
        assert_eq!(store.nodes().unwrap()[&NodeId(1)], node("a:1", false), "nobody drains itself");
        store.put_node(&node("a:1", true)).unwrap();
        let before = store.epoch().unwrap();
        register(store, &node("a:1", false), None, &config).unwrap();
        assert_eq!((store.nodes().unwrap()[&NodeId(1)].draining, store.epoch().unwrap()), (true, before));
        register(store, &node("b:1", false), None, &config).unwrap();
        assert_eq!(store.nodes().unwrap()[&NodeId(1)], node("b:1", true));
    }

    #[test]
    fn who_joins_gets_no_founders_number() {
        let voters: Vec<_> = (1..=3).map(NodeId).collect();
        let config = Config { expected_nodes: 9, ..Config::new(NodeId(1), voters.clone()) };
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&crate::store::init(&config).join(";")).unwrap();
        let store = Store(&connection);
        let (roles, zone) = (Roles::ALL, String::new());
        let request = RequestId { router: RouterIncarnation(7), sequence: 1 };
        let wish = NodeJoin { request, address: "d:1".into(), roles, zone: zone.clone() };
        for id in voters {
            let early = join(store, &wish).unwrap_err();
            assert_eq!((early.retry, early.message.contains("hasn't registered yet")), (Retry::Later, true));
            let founder = Node { id, address: format!("a:{id}"), roles, zone: zone.clone(), draining: false };
            register(store, &founder, None, &config).unwrap();
        }
        let joined = join(store, &wish).unwrap();
        assert_eq!((joined.node, joined.coordinators.len()), (NodeId(4), 3));
        assert_eq!(join(store, &wish).unwrap(), joined, "it asks again");
    }
}
