//! `shoal status`: nodes, keyspaces, and shards with what their replicas are doing.

use crate::admin;
use crate::arguments;
use crate::failure::Failure;
use comfy_table::{Table, presets};
use proto::services::{ClusterStatus, ReplicaRole, ReplicaStatus};
use proto::topology::{Node, Roles, Topology};
use proto::{GroupId, NodeId};
use serde::Serialize;
use std::io::Write;

/// The whole answer, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    epoch: u64,
    schema_version: u64,
    nodes: Vec<NodeLine>,
    keyspaces: Vec<KeyspaceLine>,
    coordinator: GroupLine,
    shards: Vec<ShardLine>,
}

#[derive(Serialize)]
struct NodeLine {
    node: u64,
    address: String,
    roles: Vec<&'static str>,
}

#[derive(Serialize)]
struct KeyspaceLine {
    keyspace: String,
    sharding: String,
    shards: usize,
    replicas: u32,
}

#[derive(Serialize)]
struct ShardLine {
    shard: String,
    keyspace: String,
    key_range: String,
    incarnation: u32,
    #[serde(flatten)]
    group: GroupLine,
}

#[derive(Serialize)]
struct GroupLine {
    group: u64,
    leader: Option<u64>,
    replicas: Vec<ReplicaLine>,
}

#[derive(Serialize)]
struct ReplicaLine {
    node: u64,
    role: Option<&'static str>,
    term: Option<u64>,
    applied: Option<u64>,
    stopped: Option<String>,
}

/// Asks the cluster and prints what it says.
pub async fn run(options: arguments::Status) -> Result<(), Failure> {
    let status =
        admin::ask_leader(&options.admin, |coordinator| Box::pin(async move { coordinator.status().await }))
            .await?;
    let report = report(&status);
    let text = if options.json {
        serde_json::to_string_pretty(&report).expect("names and numbers can be written as JSON")
    } else {
        tables(&report)
    };
    writeln!(std::io::stdout(), "{text}").map_err(Failure::Print)
}

fn report(status: &ClusterStatus) -> Report {
    let topology = &status.state.topology;
    let coordinators = topology.coordinators.clone();
    Report {
        epoch: topology.epoch.0,
        schema_version: status.state.catalog.version().0,
        nodes: topology.nodes.values().map(node_line).collect(),
        keyspaces: topology
            .keyspaces
            .values()
            .map(|k| KeyspaceLine {
                keyspace: k.name.clone(),
                sharding: k.sharding.to_string(),
                shards: k.shards.len(),
                replicas: k.replicas,
            })
            .collect(),
        coordinator: group_line(status, GroupId::COORDINATOR, &coordinators),
        shards: shard_lines(status, topology),
    }
}

fn node_line(node: &Node) -> NodeLine {
    let Roles { router, shardnode, coordinator } = node.roles;
    let roles = [(router, "router"), (shardnode, "shardnode"), (coordinator, "coordinator")];
    NodeLine {
        node: node.id.0,
        address: node.address.clone(),
        roles: roles.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect(),
    }
}

fn shard_lines(status: &ClusterStatus, topology: &Topology) -> Vec<ShardLine> {
    let in_order = topology.keyspaces.values().flat_map(|keyspace| {
        let shards = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
        shards.map(move |shard| (keyspace, shard))
    });
    in_order
        .map(|(keyspace, shard)| ShardLine {
            shard: topology.shard_name(shard.id),
            keyspace: keyspace.name.clone(),
            key_range: shard.range.to_string(),
            incarnation: shard.incarnation.0,
            group: group_line(status, shard.group, &shard.replicas),
        })
        .collect()
}

fn group_line(status: &ClusterStatus, group: GroupId, nodes: &[NodeId]) -> GroupLine {
    let line = |node: &NodeId| {
        let said = status.replicas.iter().find(|r| r.group == group && r.node == *node);
        ReplicaLine {
            node: node.0,
            role: said.map(role),
            term: said.map(|r| r.term.0),
            applied: said.map(|r| r.applied.0),
            stopped: said.and_then(|r| r.stopped.clone()),
        }
    };
    GroupLine {
        group: group.0,
        leader: status.state.leaders.get(group).map(|node| node.0),
        replicas: nodes.iter().map(line).collect(),
    }
}

fn role(replica: &ReplicaStatus) -> &'static str {
    match (&replica.stopped, replica.role) {
        (Some(_), _) => "stopped",
        (None, ReplicaRole::Leader) => "leader",
        (None, ReplicaRole::Follower) => "follower",
        (None, ReplicaRole::Candidate) => "candidate",
        (None, ReplicaRole::Learner) => "learner",
    }
}

fn tables(report: &Report) -> String {
    let table = |header: &[&str]| {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header.iter().copied());
        table
    };
    let mut nodes = table(&["node", "address", "roles"]);
    for node in &report.nodes {
        nodes.add_row([node.node.to_string(), node.address.clone(), node.roles.join(", ")]);
    }
    let mut keyspaces = table(&["keyspace", "sharding", "shards", "replicas"]);
    for keyspace in &report.keyspaces {
        let KeyspaceLine { keyspace, sharding, shards, replicas } = keyspace;
        keyspaces.add_row([keyspace.clone(), sharding.clone(), shards.to_string(), replicas.to_string()]);
    }
    let mut shards = table(&["shard", "group", "leader", "replicas (node: role, applied index)"]);
    let coordinator = ("coordinator", &report.coordinator);
    for (name, group) in
        [coordinator].into_iter().chain(report.shards.iter().map(|s| (s.shard.as_str(), &s.group)))
    {
        let leader = group.leader.map_or("none".to_owned(), |node| format!("node {node}"));
        shards.add_row([name.to_owned(), group.group.to_string(), leader, replicas(group)]);
    }
    format!("{nodes}\n{keyspaces}\n{shards}")
}

fn replicas(group: &GroupLine) -> String {
    let replica = |r: &ReplicaLine| match (r.role, r.applied, &r.stopped) {
        (Some(_), _, Some(cause)) => format!("{}: stopped: {cause}", r.node),
        (Some(role), Some(applied), None) => format!("{}: {role}, {applied}", r.node),
        _ => format!("{}: unheard of", r.node),
    };
    group.replicas.iter().map(replica).collect::<Vec<_>>().join("\n")
}
