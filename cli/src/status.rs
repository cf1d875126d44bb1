//! `shoal status`: nodes, keyspaces, and shards with what their replicas are doing.

use crate::admin;
use crate::arguments;
use crate::failure::Failure;
use crate::keyspaces::bounds;
use comfy_table::{Table, presets};
use proto::services::{ClusterStatus, ReplicaRole, ReplicaStatus};
use proto::topology::{Node, Roles, Topology};
use proto::{GroupId, NodeId};
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// What a node said that has been silent for so long isn't shown where it has no part any more.
const GONE: Duration = Duration::from_secs(10);

/// The whole answer, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    epoch: u64,
    schema_version: u64,
    nodes: Vec<NodeLine>,
    keyspaces: Vec<KeyspaceLine>,
    coordinator: GroupLine,
    shards: Vec<ShardLine>,
    jobs: Vec<JobLine>,
    alarms: Vec<AlarmLine>,
}

#[derive(Serialize)]
struct NodeLine {
    node: u64,
    address: String,
    roles: Vec<&'static str>,
    zone: String,
    /// How long ago it reported; null if the coordinator's leader hasn't heard of it.
    heard_ms: Option<u64>,
}

#[derive(Serialize)]
struct KeyspaceLine {
    keyspace: String,
    sharding: String,
    shards: usize,
    replicas: u32,
    /// What it splits by itself; null if nothing.
    auto: Option<AutoLine>,
}

#[derive(Serialize)]
struct AutoLine {
    size_bytes: u64,
    shards: u32,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct ShardLine {
    shard: String,
    keyspace: String,
    key_range: String,
    incarnation: u32,
    /// Whether it serves. If not, it is a reshard's, and yet to serve or done with that.
    serves: bool,
    #[serde(flatten)]
    group: GroupLine,
}

#[derive(Serialize)]
struct GroupLine {
    group: u64,
    leader: Option<u64>,
    voters: Vec<u64>,
    learners: Vec<u64>,
    /// Between two sets of voters.
    joint: bool,
    replicas: Vec<ReplicaLine>,
    holds: Vec<HoldLine>,
}

#[derive(Serialize)]
struct ReplicaLine {
    node: u64,
    /// Whether nothing was heard of the node for long: the rest is of before.
    silent: bool,
    role: Option<&'static str>,
    term: Option<u64>,
    applied: Option<u64>,
    /// The last entry that it knows to be committed.
    committed: Option<u64>,
    /// How many of those its database lacks, and for how long it has.
    lag_entries: Option<u64>,
    lag_ms: Option<u64>,
    /// How many entries its log lacks, as its leader knows.
    log_lag: Option<u64>,
    wal_bytes: Option<u64>,
    image: Option<ImageLine>,
    check: Option<CheckLine>,
    stopped: Option<String>,
}

#[derive(Serialize)]
struct ImageLine {
    done_bytes: u64,
    total_bytes: u64,
}

#[derive(Serialize)]
struct CheckLine {
    index: u64,
    hash: String,
}

#[derive(Serialize)]
struct HoldLine {
    name: String,
    index: u64,
}

#[derive(Serialize)]
struct JobLine {
    job: u64,
    what: String,
    progress: String,
}

#[derive(Serialize)]
struct AlarmLine {
    group: u64,
    shard: String,
    node: u64,
    message: String,
}

/// Asks the cluster and prints what it says.
pub async fn run(options: arguments::Status) -> Result<(), Failure> {
    let status = admin::status(&options.admin).await?;
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
    Report {
        epoch: topology.epoch.0,
        schema_version: status.state.catalog.version().0,
        nodes: topology.nodes.values().map(|node| node_line(status, node)).collect(),
        keyspaces: topology
            .keyspaces
            .values()
            .map(|k| KeyspaceLine {
                keyspace: k.name.clone(),
                sharding: k.sharding.to_string(),
                shards: k.shards.len(),
                replicas: k.replicas,
                auto: k.auto.map(|auto| AutoLine {
                    size_bytes: auto.size,
                    shards: auto.shards,
                    text: bounds(&auto),
                }),
            })
            .collect(),
        coordinator: group_line(status, GroupId::COORDINATOR, &topology.coordinators),
        shards: shard_lines(status, topology),
        jobs: status
            .jobs
            .iter()
            .map(|job| JobLine { job: job.id, what: job.what.clone(), progress: job.progress.clone() })
            .collect(),
        alarms: status
            .alarms
            .iter()
            .map(|alarm| AlarmLine {
                group: alarm.group.0,
                shard: group_name(topology, alarm.group),
                node: alarm.node.0,
                message: alarm.message.clone(),
            })
            .collect(),
    }
}

fn group_name(topology: &Topology, group: GroupId) -> String {
    if group == GroupId::COORDINATOR {
        return "coordinator".to_owned();
    }
    let shard = topology.shards.values().find(|shard| shard.group == group);
    shard.map_or_else(|| format!("group {group}"), |shard| topology.shard_name(shard.id))
}

fn node_line(status: &ClusterStatus, node: &Node) -> NodeLine {
    let heard = status.heard.iter().find(|(known, _)| *known == node.id);
    let Roles { router, shardnode, coordinator } = node.roles;
    let roles = [(router, "router"), (shardnode, "shardnode"), (coordinator, "coordinator")];
    NodeLine {
        node: node.id.0,
        address: node.address.clone(),
        roles: roles.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect(),
        zone: node.zone.clone(),
        heard_ms: heard.map(|(_, ago)| millis(*ago)),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn shard_lines(status: &ClusterStatus, topology: &Topology) -> Vec<ShardLine> {
    let in_order = topology.keyspaces.values().flat_map(|keyspace| {
        let serving = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
        let of_keyspace = topology.shards.values().filter(|shard| shard.keyspace == keyspace.number);
        let others = of_keyspace.filter(|shard| !keyspace.shards.contains(&shard.id));
        let serving = serving.map(move |shard| (keyspace, shard, true));
        serving.chain(others.map(move |shard| (keyspace, shard, false)))
    });
    in_order
        .map(|(keyspace, shard, serves)| ShardLine {
            shard: topology.shard_name(shard.id),
            keyspace: keyspace.name.clone(),
            key_range: shard.range.to_string(),
            incarnation: shard.incarnation.0,
            serves,
            group: group_line(status, shard.group, &shard.replicas),
        })
        .collect()
}

fn group_line(status: &ClusterStatus, group: GroupId, nodes: &[NodeId]) -> GroupLine {
    let said = |node: NodeId| status.replicas.iter().find(|r| r.group == group && r.node == node);
    let leader = status.state.leaders.get(group);
    let leading = leader.and_then(said).filter(|r| r.role == ReplicaRole::Leader);
    let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    let members = leading.map(|leading| leading.members.clone()).unwrap_or_default();
    // Those that are coming and those that are going are of interest, too, but not what a node that is gone said last.
    let lives = |node: NodeId| status.heard.iter().any(|(heard, ago)| *heard == node && *ago < GONE);
    let mut everyone = nodes.to_vec();
    let others = status.replicas.iter().filter(|r| r.group == group && lives(r.node)).map(|r| r.node);
    for node in members.voters.iter().chain(&members.learners).copied().chain(others) {
        if !everyone.contains(&node) {
            everyone.push(node);
        }
    }
    let line = |node: &NodeId| {
        let said = said(*node);
        let log_lag = leading.and_then(|leading| {
            let has = leading.lag.iter().find(|(member, _)| member == node).map(|(_, index)| *index);
            let has = if leading.node == *node { Some(leading.last) } else { has };
            Some(leading.last.0.saturating_sub(has?.0))
        });
        // Who has been replaced and says nothing any more doesn't lead.
        let is_former = |r: &ReplicaStatus| {
            let leaders = &status.state.leaders;
            r.role == ReplicaRole::Leader && leader != Some(*node) && leaders.term(group) > r.term
        };
        let role = |r| if is_former(r) && r.stopped.is_none() { "former leader" } else { role(r) };
        ReplicaLine {
            node: node.0,
            silent: !lives(*node),
            role: said.map(role),
            term: said.map(|r| r.term.0),
            applied: said.map(|r| r.applied.0),
            committed: said.map(|r| r.committed.0),
            lag_entries: said.map(|r| r.committed.0.saturating_sub(r.applied.0)),
            lag_ms: said.map(|r| millis(r.behind)),
            log_lag,
            wal_bytes: said.map(|r| r.wal_bytes),
            image: said
                .and_then(|r| r.image)
                .map(|image| ImageLine { done_bytes: image.done, total_bytes: image.total }),
            check: said
                .and_then(|r| r.check)
                .map(|check| CheckLine { index: check.index.0, hash: format!("{:032x}", check.hash) }),
            stopped: said.and_then(|r| r.stopped.clone()),
        }
    };
    GroupLine {
        group: group.0,
        leader: leader.map(|node| node.0),
        voters: numbers(&members.voters),
        learners: numbers(&members.learners),
        joint: members.joint,
        replicas: everyone.iter().map(line).collect(),
        holds: leading
            .into_iter()
            .flat_map(|leading| &leading.holds)
            .map(|hold| HoldLine { name: hold.name.clone(), index: hold.from.0 })
            .collect(),
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
    let mut nodes = table(&["node", "address", "roles", "zone", "heard"]);
    for node in &report.nodes {
        let heard =
            node.heard_ms.map_or("never".to_owned(), |ms| format!("{}.{} s ago", ms / 1000, ms % 1000 / 100));
        let NodeLine { node, address, roles, zone, .. } = node;
        nodes.add_row([node.to_string(), address.clone(), roles.join(", "), zone.clone(), heard]);
    }
    let mut keyspaces = table(&["keyspace", "sharding", "shards", "replicas", "splits by itself what is"]);
    for keyspace in &report.keyspaces {
        let KeyspaceLine { keyspace, sharding, shards, replicas, auto } = keyspace;
        let auto = auto.as_ref().map_or("", |auto| auto.text.as_str());
        let (shards, replicas) = (shards.to_string(), replicas.to_string());
        keyspaces.add_row([keyspace, sharding, &shards, &replicas, auto]);
    }
    let mut shards = table(&["shard", "group", "leader", "replicas (node: role, applied index)"]);
    let coordinator = ("coordinator".to_owned(), &report.coordinator);
    let of_shards = report.shards.iter().map(|line| {
        let mark = if line.serves { "" } else { " (doesn't serve)" };
        (format!("{}{mark}", line.shard), &line.group)
    });
    for (name, group) in [coordinator].into_iter().chain(of_shards) {
        let leader = group.leader.map_or("none".to_owned(), |node| format!("node {node}"));
        shards.add_row([name, group.group.to_string(), leader, replicas(group)]);
    }
    let mut text = format!("{nodes}\n{keyspaces}\n{shards}");
    if !report.jobs.is_empty() {
        let mut jobs = table(&["job", "what", "progress"]);
        for JobLine { job, what, progress } in &report.jobs {
            jobs.add_row([job.to_string(), what.clone(), progress.clone()]);
        }
        text += &format!("\n{jobs}");
    }
    if !report.alarms.is_empty() {
        let mut alarms = table(&["alarm", "node", "what"]);
        for AlarmLine { group: _, shard, node, message } in &report.alarms {
            alarms.add_row([shard.clone(), node.to_string(), message.clone()]);
        }
        text += &format!("\n{alarms}");
    }
    text
}

fn replicas(group: &GroupLine) -> String {
    let mut lines: Vec<String> = group.replicas.iter().map(replica).collect();
    if group.joint {
        lines.push("between two sets of voters".to_owned());
    }
    lines.extend(group.holds.iter().map(|hold| format!("log held from {} for {}", hold.index, hold.name)));
    lines.join("\n")
}

/// What a replica lacks. Of a log that is short the replica itself may know nothing.
fn lag(r: &ReplicaLine) -> String {
    let [entries, ms, log] = [r.lag_entries, r.lag_ms, r.log_lag].map(Option::unwrap_or_default);
    match (entries, ms, log) {
        (0, 0, 0) => String::new(),
        (0, 0, log) => format!(", its log lags by {}", entries_of(log)),
        (entries, ms, _) => format!(", lags by {}, {ms} ms", entries_of(entries)),
    }
}

fn entries_of(number: u64) -> String {
    if number == 1 { "1 entry".to_owned() } else { format!("{number} entries") }
}

fn replica(r: &ReplicaLine) -> String {
    let lag = lag(r);
    let node = if r.silent { format!("{} (silent):", r.node) } else { format!("{}:", r.node) };
    match (r.role, r.applied, &r.stopped, &r.image) {
        (Some(_), _, Some(cause), _) => format!("{node} stopped: {cause}"),
        (Some(role), _, None, Some(ImageLine { done_bytes, total_bytes })) => {
            format!("{node} {role}, receives an image: {done_bytes} of {total_bytes} bytes")
        }
        (Some(role), Some(applied), None, None) => format!("{node} {role}, {applied}{lag}"),
        _ => format!("{}: unheard of", r.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Term;

    #[test]
    fn a_dead_nodes_replica_leads_no_more() {
        let mut status = crate::listings::tests::status();
        status.heard.push((NodeId(2), Duration::from_secs(14)));
        let group = |status: &ClusterStatus| {
            replicas(&group_line(status, GroupId(2), &[NodeId(1), NodeId(2), NodeId(3)]))
        };
        let said = |node, term| ReplicaStatus {
            role: ReplicaRole::Leader,
            term: Term(term),
            ..ReplicaStatus::new(NodeId(node), GroupId(2))
        };
        status.replicas = vec![said(1, 1), said(2, 0)];
        assert_eq!(group(&status), "1: leader, 0\n2 (silent): former leader, 0\n3: unheard of");
        status.heard[1].1 = Duration::from_secs(1);
        assert_eq!(group(&status), "1: leader, 0\n2: former leader, 0\n3: unheard of");
        // Who says that it leads in a later term does.
        status.replicas[1].term = Term(2);
        assert_eq!(group(&status), "1: leader, 0\n2: leader, 0\n3: unheard of");
    }
}
