//! `shoal replica ..`: who holds a group's replicas, and whether they agree.
//!
//! In come the admin's wishes, out go requests to the coordinator, each under one name however often it is sent. A
//! change that is under way goes on when the command ends.

use crate::admin;
use crate::arguments::{Admin, Replica};
use crate::failure::Failure;
use proto::services::{
    ClusterStatus, ReplicaAction, ReplicaChange, ReplicaService, ReplicaStatus, ReplicaTarget, TableHash,
};
use proto::transport::NodeClient;
use proto::{GroupId, LogIndex, NodeId, RequestId, RouterIncarnation, SqlState, WireError};
use std::io::Write;
use std::time::Duration;

/// How long hashing a group's tables may take.
const CHECK: Duration = Duration::from_secs(600);
/// How often it's looked whether they are hashed. Nodes report every two seconds.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the command.
pub async fn run(command: Replica) -> Result<(), Failure> {
    let (target, action, done) = match command {
        Replica::Add { target, node } => {
            (target, ReplicaAction::Add(NodeId(node)), format!("has a replica on node {node}"))
        }
        Replica::Remove { target, node } => {
            (target, ReplicaAction::Remove(NodeId(node)), format!("has no replica on node {node} any more"))
        }
        Replica::Move { target, from, to } => {
            let action = ReplicaAction::Move { from: NodeId(from), to: NodeId(to) };
            (target, action, format!("has moved from node {from} to node {to}"))
        }
        Replica::Rebuild { target, node } => {
            (target, ReplicaAction::Rebuild(NodeId(node)), format!("is rebuilt on node {node}"))
        }
        Replica::TransferLeader { target, to } => {
            (target, ReplicaAction::TransferLeader(NodeId(to)), format!("is led by node {to}"))
        }
        Replica::Check { target } => return check(&target.admin, &target.shard).await,
    };
    let request = RequestId { router: RouterIncarnation(rand::random()), sequence: 1 };
    let change = ReplicaChange { request, target: named(&target.shard), action };
    admin::ask_leader_for(&target.admin, None, |coordinator| {
        let change = change.clone();
        Box::pin(async move { coordinator.change_replicas(change).await })
    })
    .await?;
    writeln!(std::io::stdout(), "{} {done}", target.shard).map_err(Failure::Print)
}

/// A group as the admin names it.
fn named(name: &str) -> ReplicaTarget {
    match name {
        "coordinator" => ReplicaTarget::Group(GroupId::COORDINATOR),
        shard => ReplicaTarget::Shard(shard.to_owned()),
    }
}

/// Has the replicas of a group hash their tables at one index, and compares.
async fn check(admin: &Admin, name: &str) -> Result<(), Failure> {
    let status = admin::status(admin).await?;
    let topology = &status.state.topology;
    let (group, holders) = match named(name) {
        ReplicaTarget::Group(group) => (group, topology.coordinators.clone()),
        ReplicaTarget::Shard(name) => {
            let shard = topology.shards.values().find(|shard| topology.shard_name(shard.id) == name);
            let shard = shard.ok_or_else(|| unknown(format!("shard \"{name}\" does not exist")))?;
            (shard.group, shard.replicas.clone())
        }
    };
    let leader = status.state.leaders.get(group).and_then(|leader| topology.nodes.get(&leader));
    let leader = leader.ok_or_else(|| unknown(format!("{name} has no leader")))?;
    let index = NodeClient::connect_node(leader.id, leader.address.clone()).check(group, CHECK).await?;
    let waiting = async {
        loop {
            let status = admin::status(admin).await?;
            let found = hashes(&status, group, index);
            if holders.iter().all(|node| found.iter().any(|(known, _)| known == node)) {
                return Ok::<_, Failure>(found);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let found = tokio::time::timeout(CHECK, waiting).await.map_err(|_| {
        unknown(format!("not all replicas of {name} have hashed their tables at {index} in time"))
    })??;
    let mut text = String::new();
    for (node, hash) in &found {
        text += &format!("node {node}: {:032x} at {}\n", hash.hash, hash.index);
    }
    write!(std::io::stdout(), "{text}").map_err(Failure::Print)?;
    let comparable = found.iter().filter(|(_, hash)| hash.index == found[0].1.index);
    if comparable.clone().any(|(_, hash)| hash.hash != found[0].1.hash) {
        let message = format!("the replicas of {name} differ");
        let error = WireError::new(SqlState::DATA_CORRUPTED, message)
            .with_hint("The minority is rebuilt by itself; shoal status tells of it.");
        return Err(Failure::Cluster(error));
    }
    Ok(())
}

/// The hashes that a group's replicas took at this index or later.
fn hashes(status: &ClusterStatus, group: GroupId, index: LogIndex) -> Vec<(NodeId, TableHash)> {
    let of_group = status.replicas.iter().filter(|replica| replica.group == group);
    let hash = |replica: &ReplicaStatus| Some((replica.node, replica.check?));
    of_group.filter_map(hash).filter(|(_, hash)| hash.index >= index).collect()
}

fn unknown(message: String) -> Failure {
    Failure::Cluster(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message))
}
