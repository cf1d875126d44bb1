//! `shoal shards` and `shoal nodes`: what there is, how big it is and how busy.
//!
//! In comes the cluster's status, out go tables. Sizes and rates are what nodes have reported last; what nobody has
//! reported is left out.

use crate::admin;
use crate::arguments;
use crate::drain::holds;
use crate::failure::Failure;
use crate::tables::ago;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, HumanCount};
use proto::services::{ClusterStatus, ReplicaStatus, ShardTally};
use proto::topology::{Node, Shard, Topology};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct ShardLine {
    shard: String,
    keyspace: String,
    incarnation: u32,
    /// `serves`; or, beside those of a reshard that do, `follows`.
    state: &'static str,
    leader: Option<u64>,
    replicas: Vec<u64>,
    bytes: Option<u64>,
    /// Of its keyspace's tables, as followers have counted them; null if they haven't counted all of them yet.
    rows: Option<u64>,
    /// How long ago they have.
    rows_age_ms: Option<u64>,
    writes_per_second: Option<f64>,
    reads_per_second: Option<f64>,
}

#[derive(Serialize)]
struct NodeLine {
    node: u64,
    address: String,
    zone: String,
    /// How long ago it reported; null if the coordinator's leader hasn't heard of it.
    heard_ms: Option<u64>,
    replicas: usize,
    leads: usize,
    /// Of its shards' databases.
    bytes: u64,
    writes_per_second: f64,
    draining: bool,
    /// Whether it is draining, and all that it held is elsewhere.
    drained: bool,
}

/// Runs `shoal shards`.
pub async fn shards(options: arguments::Status) -> Result<(), Failure> {
    let status = admin::status(&options.admin).await?;
    let lines = shard_lines(&status, &tallies(&options.admin).await?);
    print(&options, &lines, shard_table)
}

/// What followers have counted.
pub async fn tallies(admin: &arguments::Admin) -> Result<Vec<ShardTally>, Failure> {
    admin::ask_leader(admin, |coordinator| Box::pin(async move { coordinator.tallies().await })).await
}

/// Runs `shoal nodes`.
pub async fn nodes(options: arguments::Status) -> Result<(), Failure> {
    let status = admin::status(&options.admin).await?;
    let lines: Vec<_> = status.state.topology.nodes.values().map(|node| node_line(&status, node)).collect();
    print(&options, &lines, node_table)
}

/// Prints lines as JSON, or as a table.
pub fn print<T: Serialize, S: ToString>(
    options: &arguments::Status,
    lines: &[T],
    table: impl Fn(&[T]) -> S,
) -> Result<(), Failure> {
    let text = if options.json {
        serde_json::to_string_pretty(lines).expect("names and numbers can be written as JSON")
    } else {
        table(lines).to_string()
    };
    writeln!(std::io::stdout(), "{text}").map_err(Failure::Print)
}

/// All shards, keyspace by keyspace, in the order of their ranges.
fn shard_lines(status: &ClusterStatus, tallies: &[ShardTally]) -> Vec<ShardLine> {
    let topology = &status.state.topology;
    let mut shards: Vec<&Shard> = topology.shards.values().collect();
    shards.sort_by_key(|shard| (shard.keyspace, &shard.range.start, !topology.serves(shard.id), shard.id));
    shards.into_iter().map(|shard| shard_line(status, topology, tallies, shard)).collect()
}

fn shard_line(
    status: &ClusterStatus,
    topology: &Topology,
    tallies: &[ShardTally],
    shard: &Shard,
) -> ShardLine {
    let counted = tallies.iter().find(|tally| tally.shard == shard.id).map(|tally| &tally.counted);
    let load = status.loads.iter().find(|load| load.group == shard.group);
    let keyspace = topology.keyspaces.get(&shard.keyspace);
    ShardLine {
        shard: topology.shard_name(shard.id),
        keyspace: keyspace.map_or_else(String::new, |keyspace| keyspace.name.clone()),
        incarnation: shard.incarnation.0,
        state: if topology.serves(shard.id) { "serves" } else { "follows" },
        leader: status.state.leaders.get(shard.group).map(|node| node.0),
        replicas: shard.replicas.iter().map(|node| node.0).collect(),
        bytes: replicas(status, shard).map(|replica| replica.bytes).max(),
        rows: counted.and_then(|counted| counted.rows_of(shard.keyspace, &status.state.catalog)),
        rows_age_ms: counted.map(|counted| u64::try_from(counted.age.as_millis()).unwrap_or(u64::MAX)),
        writes_per_second: load.map(|load| tenths(load.writes_per_second)),
        reads_per_second: load.map(|load| tenths(load.reads_per_second)),
    }
}

fn node_line(status: &ClusterStatus, node: &Node) -> NodeLine {
    let topology = &status.state.topology;
    let heard = status.heard.iter().find(|(known, _)| *known == node.id);
    let held = || topology.shards.values().filter(|shard| shard.replicas.contains(&node.id));
    let leads = |shard: &&Shard| status.state.leaders.get(shard.group) == Some(node.id);
    let writes = held().filter(leads).filter_map(|shard| {
        status.loads.iter().find(|load| load.group == shard.group).map(|load| load.writes_per_second)
    });
    let of_node = |shard| replicas(status, shard).find(|replica| replica.node == node.id);
    NodeLine {
        node: node.id.0,
        address: node.address.clone(),
        zone: node.zone.clone(),
        heard_ms: heard.map(|(_, ago)| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        replicas: held().count(),
        leads: held().filter(leads).count(),
        bytes: held().filter_map(of_node).map(|replica| replica.bytes).sum(),
        writes_per_second: tenths(writes.sum()),
        draining: node.draining,
        drained: node.draining && !holds(topology, node.id),
    }
}

fn replicas<'a>(status: &'a ClusterStatus, shard: &'a Shard) -> impl Iterator<Item = &'a ReplicaStatus> {
    let of_shard =
        |replica: &&ReplicaStatus| replica.group == shard.group && shard.replicas.contains(&replica.node);
    status.replicas.iter().filter(of_shard)
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// A table whose columns at these places are numbers.
pub fn new_table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header.iter().copied());
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn shard_table(lines: &[ShardLine]) -> String {
    let header =
        ["shard", "incarnation", "state", "leader", "replicas", "size", "rows", "writes/s", "reads/s"];
    let mut table = new_table(&header, &[1, 3, 5, 6, 7, 8]);
    let rate = |rate: Option<f64>| rate.map_or_else(String::new, whole);
    for line in lines {
        table.add_row([
            line.shard.clone(),
            line.incarnation.to_string(),
            line.state.to_owned(),
            line.leader.map_or_else(|| "none".to_owned(), |node| node.to_string()),
            line.replicas.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
            line.bytes.map_or_else(String::new, |bytes| HumanBytes(bytes).to_string()),
            line.rows.map_or_else(String::new, |rows| HumanCount(rows).to_string()),
            rate(line.writes_per_second),
            rate(line.reads_per_second),
        ]);
    }
    let counted = lines.iter().filter(|line| line.rows.is_some());
    let ages: Vec<_> = counted.filter_map(|line| line.rows_age_ms).collect();
    match (ages.iter().min(), ages.iter().max()) {
        (Some(least), Some(most)) if ago(*least) != ago(*most) => {
            format!("{table}\nrows counted {} at the latest, and {} at the earliest", ago(*least), ago(*most))
        }
        (Some(age), _) => format!("{table}\nrows counted {}", ago(*age)),
        (None, _) => table.to_string(),
    }
}

fn node_table(lines: &[NodeLine]) -> Table {
    let header = ["node", "address", "zone", "heard", "replicas", "leads", "size", "writes/s", ""];
    let mut table = new_table(&header, &[0, 4, 5, 6, 7]);
    for line in lines {
        let heard = |ms: u64| format!("{}.{} s ago", ms / 1000, ms % 1000 / 100);
        table.add_row([
            line.node.to_string(),
            line.address.clone(),
            line.zone.clone(),
            line.heard_ms.map_or_else(|| "never".to_owned(), heard),
            line.replicas.to_string(),
            line.leads.to_string(),
            HumanBytes(line.bytes).to_string(),
            whole(line.writes_per_second),
            match (line.drained, line.draining) {
                (true, _) => "is drained".to_owned(),
                (false, true) => "being drained".to_owned(),
                (false, false) => String::new(),
            },
        ]);
    }
    table
}

/// A rate, for people.
fn whole(rate: f64) -> String {
    HumanCount(rate.round() as u64).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tables::tests::{definition, tally};
    use proto::KeyspaceNumber;
    use proto::catalog::{Catalog, Placement};
    use proto::services::{ClusterState, GroupLoad};
    use proto::topology::{Keyspace, Leaders, Roles, Sharding};
    use proto::{GroupId, Incarnation, KeyRange, LogIndex, NodeId, SchemaVersion, ShardId, Term};
    use std::sync::Arc;
    use std::time::Duration;

    /// Two shards that serve, and one that is being made of the second.
    pub(crate) fn status() -> ClusterStatus {
        let mut topology = Topology::default();
        let (main, replicas) = (KeyspaceNumber(1), vec![NodeId(1), NodeId(2)]);
        for (id, range) in [(1, "-80"), (2, "80-"), (3, "80-c0")] {
            let shard = Shard {
                id: ShardId(id),
                keyspace: main,
                range: KeyRange::parse(range).unwrap(),
                incarnation: Incarnation(1),
                group: GroupId(id + 1),
                replicas: replicas.clone(),
                formed: true,
                first: LogIndex(0),
            };
            topology.shards.insert(shard.id, shard);
        }
        let (sharding, shards) = (Sharding::Hash, vec![ShardId(1), ShardId(2)]);
        let keyspace =
            Keyspace { number: main, name: "main".into(), sharding, replicas: 2, shards, auto: None };
        topology.keyspaces.insert(main, keyspace);
        for id in replicas {
            let (address, zone) = (format!("n{id}:1"), String::new());
            topology.nodes.insert(id, Node { id, address, roles: Roles::ALL, zone, draining: id.0 == 2 });
        }
        let mut leaders = Leaders::default();
        leaders.learn(GroupId(2), Term(1), NodeId(1));
        leaders.learn(GroupId(3), Term(1), NodeId(2));
        let said =
            |node, group, bytes| ReplicaStatus { bytes, ..ReplicaStatus::new(NodeId(node), GroupId(group)) };
        let load = |group, writes_per_second, reads_per_second| GroupLoad {
            group: GroupId(group),
            writes_per_second,
            reads_per_second,
        };
        ClusterStatus {
            state: ClusterState {
                topology: Arc::new(topology),
                leaders: Arc::new(leaders),
                catalog: Arc::new(Catalog::default()),
            },
            replicas: vec![
                said(1, 2, 53 << 20),
                said(2, 2, 52 << 20),
                said(2, 3, 1 << 20),
                said(9, 3, 7 << 20),
            ],
            heard: vec![(NodeId(1), Duration::from_millis(1_250))],
            jobs: vec![],
            alarms: vec![],
            loads: vec![load(2, 1_200.04, 340.0), load(3, 0.4, 0.0)],
        }
    }

    /// A table's cells.
    pub(crate) fn cells(table: &impl ToString) -> Vec<Vec<String>> {
        let text = table.to_string();
        let rows = text.lines().filter(|line| line.starts_with('│'));
        rows.map(|row| {
            let cells = row.trim_matches('│').split("  ").map(str::trim);
            cells.filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
        })
        .collect()
    }

    #[test]
    fn shards_are_listed_with_their_sizes_and_rates() {
        let main = Placement::Sharded { keyspace: KeyspaceNumber(1), key: Vec::new() };
        let tables = [definition(1, "event", main), definition(2, "color", Placement::Reference)];
        let mut status = status();
        status.state.catalog = Arc::new(Catalog::new(SchemaVersion(1), tables, []));
        let tallies = [tally(1, 185, &[(1, 1_234, 7), (2, 5, 50), (9, 3, 3)])];
        let lines = shard_lines(&status, &tallies);
        let expected: [&[&str]; 4] = [
            &["shard", "incarnation", "state", "leader", "replicas", "size", "rows", "writes/s", "reads/s"],
            &["main/-80", "1", "serves", "1", "1,2", "53.00 MiB", "1,234", "1,200", "340"],
            &["main/80-", "1", "serves", "2", "1,2", "1.00 MiB", "0", "0"],
            &["main/80-c0", "1", "follows", "none", "1,2"],
        ];
        let table = shard_table(&lines);
        assert_eq!(cells(&table), expected, "what node 9 says isn't of a replica that counts");
        assert!(table.ends_with("\nrows counted 3 minutes ago"), "{table}");
        let recent = tally(2, 14, &[(1, 7, 7)]);
        let table = shard_table(&shard_lines(&status, &[tallies[0].clone(), recent]));
        let expected = "\nrows counted 14 seconds ago at the latest, and 3 minutes ago at the earliest";
        assert!(table.ends_with(expected), "{table}");
        assert_eq!((lines[0].writes_per_second, lines[2].bytes), (Some(1_200.0), None));
        assert_eq!((lines[0].rows_age_ms, lines[1].rows), (Some(185_000), None));
        // A table that has come since isn't counted yet.
        let new = Placement::Sharded { keyspace: KeyspaceNumber(1), key: Vec::new() };
        let tables = status.state.catalog.tables().cloned().chain([definition(3, "new", new)]);
        status.state.catalog = Arc::new(Catalog::new(SchemaVersion(2), tables, []));
        assert_eq!(shard_lines(&status, &tallies)[0].rows, None);
    }

    #[test]
    fn nodes_are_listed_with_what_they_hold() {
        let status = status();
        let lines: Vec<_> =
            status.state.topology.nodes.values().map(|node| node_line(&status, node)).collect();
        let expected: [&[&str]; 3] = [
            &["node", "address", "zone", "heard", "replicas", "leads", "size", "writes/s"],
            &["1", "n1:1", "1.2 s ago", "3", "1", "53.00 MiB", "1,200"],
            &["2", "n2:1", "never", "3", "1", "53.00 MiB", "0", "being drained"],
        ];
        assert_eq!(cells(&node_table(&lines)), expected);
        let mut gone = Topology::clone(&status.state.topology);
        gone.shards.values_mut().for_each(|shard| shard.replicas = vec![NodeId(1)]);
        let last = |topology: &Topology| {
            let state = ClusterState { topology: Arc::new(topology.clone()), ..status.state.clone() };
            let lines = [node_line(&ClusterStatus { state, ..status.clone() }, &topology.nodes[&NodeId(2)])];
            cells(&node_table(&lines))[1].last().unwrap().clone()
        };
        assert_eq!(last(&gone), "is drained");
        gone.joining = vec![(GroupId(2), NodeId(2))];
        assert_eq!(last(&gone), "being drained");
        gone.joining.clear();
        gone.coordinators = vec![NodeId(2)];
        assert_eq!(last(&gone), "being drained");
    }
}
