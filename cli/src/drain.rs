//! `shoal node drain|undrain|remove` and `shoal keyspace alter --replicas`: what many changes of replicas come to.
//!
//! In come the admin's wishes, out goes one request to the coordinator, under one name however often it is sent, and then how far
//! it is, until it is done. It goes on when the command ends.

use crate::admin::{self, Way};
use crate::arguments::{Admin, NodeAdmin};
use crate::course;
use crate::failure::Failure;
use crate::progress::print;
use proto::services::{ClusterStatus, Course, JobStatus};
use proto::topology::Topology;
use proto::{NodeId, SqlState, WireError};

/// Runs `shoal node drain|undrain|remove`.
pub async fn run(command: NodeAdmin) -> Result<(), Failure> {
    match command {
        NodeAdmin::Drain { node, admin } => {
            let status = follow(&admin, Course::Drain(NodeId(node))).await?;
            drained(&status.state.topology, NodeId(node))?;
            print(&format!("node {node} holds nothing any more"))
        }
        NodeAdmin::Undrain { node, admin } => {
            follow(&admin, Course::Undrain(NodeId(node))).await?;
            print(&format!("node {node} may hold replicas again"))
        }
        NodeAdmin::Remove { node, admin } => {
            follow(&admin, Course::Remove(NodeId(node))).await?;
            print(&format!("node {node} doesn't belong to the cluster any more"))
        }
    }
}

/// Runs `shoal keyspace alter --replicas`.
pub async fn alter(keyspace: String, replicas: u32, admin: Admin) -> Result<(), Failure> {
    let status = follow(&admin, Course::Count { keyspace: keyspace.clone(), replicas }).await?;
    altered(&status.state.topology, &keyspace, replicas as usize)?;
    print(&format!("each shard of {keyspace} has {}", admin::count(replicas as usize, "replica")))
}

/// Begins a course, and prints how far it is until it has ended: a line whenever that has changed. Answers with what there is then:
/// somebody may have ended it.
async fn follow(admin: &Admin, wish: Course) -> Result<ClusterStatus, Failure> {
    let (way, _) = Way::find(admin).await?;
    // What is done at once has no number.
    let Some(number) = course::begin(&way, wish, false).await?.course else { return way.status().await };
    let mut told = String::new();
    let tell = |_: &ClusterStatus, job: &JobStatus| {
        if job.progress == told {
            return Ok(());
        }
        told.clone_from(&job.progress);
        print(&format!("{}: {told}", job.what))
    };
    course::follow(number, &way, tell).await
}

/// Whether a node is being drained, and holds nothing.
fn drained(topology: &Topology, id: NodeId) -> Result<(), Failure> {
    // One that was removed since held nothing.
    let Some(node) = topology.nodes.get(&id) else { return Ok(()) };
    if !node.draining {
        return Err(ended(format!("node {id} isn't being drained any more")));
    }
    if holds(topology, id) {
        return Err(ended(format!("node {id} still holds replicas")));
    }
    Ok(())
}

/// Whether a node holds replicas, or gets one.
pub fn holds(topology: &Topology, id: NodeId) -> bool {
    topology.shards.values().any(|shard| shard.replicas.contains(&id))
        || topology.coordinators.contains(&id)
        || topology.joining.iter().any(|(_, node)| *node == id)
}

/// Whether each shard of a keyspace has so many replicas.
fn altered(topology: &Topology, keyspace: &str, replicas: usize) -> Result<(), Failure> {
    let shards = topology.keyspace_named(keyspace).map(|keyspace| keyspace.shards.as_slice());
    let mut shards = shards.unwrap_or_default().iter().filter_map(|id| topology.shards.get(id));
    match shards.find(|shard| shard.replicas.len() != replicas) {
        None => Ok(()),
        Some(shard) => {
            let (name, has) = (topology.shard_name(shard.id), admin::count(shard.replicas.len(), "replica"));
            Err(ended(format!("{name} has {has}")))
        }
    }
}

/// Somebody has ended it before it was done.
fn ended(message: String) -> Failure {
    let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
    Failure::Cluster(error.with_hint("Somebody has ended it. The same command has it go on."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;
    use proto::topology::{Keyspace, Node, Roles, Shard, Sharding};
    use proto::{GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, ShardId};

    #[test]
    fn what_was_ended_by_somebody_is_not_done() {
        let shard = |replicas: &[u64]| Shard {
            id: ShardId(1),
            keyspace: KeyspaceNumber(1),
            range: KeyRange::parse("-").unwrap(),
            incarnation: Incarnation(1),
            group: GroupId(2),
            replicas: replicas.iter().copied().map(NodeId).collect(),
            formed: true,
            first: LogIndex(0),
        };
        let mut topology = Topology::default();
        topology.shards.insert(ShardId(1), shard(&[1, 3]));
        let keyspace = Keyspace {
            number: KeyspaceNumber(1),
            name: "main".into(),
            sharding: Sharding::Hash,
            replicas: 2,
            shards: vec![ShardId(1)],
            auto: None,
        };
        topology.keyspaces.insert(keyspace.number, keyspace);
        assert!(altered(&topology, "main", 2).is_ok());
        let why = altered(&topology, "main", 3).unwrap_err().to_string();
        assert!(why.starts_with("main/- has 2 replicas"), "{why}");
        for (id, draining) in [(1, false), (2, true), (3, true), (4, true)] {
            let (id, address, zone) = (NodeId(id), String::new(), String::new());
            topology.nodes.insert(id, Node { id, address, roles: Roles::ALL, zone, draining });
        }
        topology.joining = vec![(GroupId(2), NodeId(4))];
        let why = |id| drained(&topology, NodeId(id)).err().map(|failure| failure.to_string());
        assert!(why(1).unwrap().starts_with("node 1 isn't being drained any more"));
        assert_eq!((why(2), why(9)), (None, None));
        for id in [3, 4] {
            assert!(why(id).unwrap().starts_with(&format!("node {id} still holds replicas")));
        }
    }

    fn node(line: &[&str]) -> Result<Option<NodeAdmin>, clap::Error> {
        let line = ["shoal", "node"].iter().chain(line);
        match Arguments::try_parse_from(line)?.command {
            Command::Node(node) => Ok(node.admin),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_runs_or_something_becomes_of_one() {
        let drained = node(&["drain", "3", "--host", "h:1"]).unwrap();
        assert!(matches!(drained, Some(NodeAdmin::Drain { node: 3, .. })));
        let removed = node(&["remove", "3", "--host", "h:1"]).unwrap();
        assert!(matches!(removed, Some(NodeAdmin::Remove { node: 3, .. })));
        assert!(node(&["--listen", "127.0.0.1:0"]).unwrap().is_none());
        assert!(node(&["--listen", "127.0.0.1:0", "drain", "3", "--host", "h:1"]).is_err());
        assert!(node(&["drain", "--host", "h:1"]).is_err(), "which?");
    }
}
