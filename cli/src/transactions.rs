//! `shoal txn ..`: what transactions are under way, what became of one, and an end to one that nobody decides.
//!
//! In come the branches that shards have and the records that the coordinator has, out go tables. A verdict is asked of the
//! coordinator like any router's, so there is no way here to change one that was given.

use crate::admin;
use crate::arguments::{Admin, Txn};
use crate::failure::Failure;
use comfy_table::{Table, presets};
use proto::services::{BranchStatus, ClusterStatus, Decision, ShardService, TransactionStatus};
use proto::topology::Topology;
use proto::transport::NodeClient;
use proto::{NodeId, ShardId, SqlState, TransactionId, WireError};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::time::Duration;

/// How long a shard may take to tell its branches.
const SHARD: Duration = Duration::from_secs(5);
/// How long it is waited until all shards have heard of an abort. They will, however long it takes.
const FINISH: Duration = Duration::from_secs(60);
/// How often it's looked.
const LOOK: Duration = Duration::from_millis(200);

/// Runs the command.
pub async fn run(command: Txn) -> Result<(), Failure> {
    match command {
        Txn::List { all, admin } => {
            let seen = Seen::look(&admin, None).await?;
            print(&(list(&seen, all) + &seen.gaps()))
        }
        Txn::Show { transaction, admin } => {
            let seen = Seen::look(&admin, Some(transaction)).await?;
            let text = show(&seen, transaction).ok_or_else(|| unknown(&seen, transaction))?;
            print(&(text + &seen.gaps()))
        }
        Txn::Resolve { transaction, abort: _, admin } => resolve(&admin, transaction).await,
    }
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(Failure::Print)
}

/// What is known of transactions.
struct Seen {
    /// Names shards.
    topology: Topology,
    /// Branches on shards that were asked.
    branches: Vec<BranchStatus>,
    /// What the coordinator has a record of.
    records: BTreeMap<TransactionId, TransactionStatus>,
    /// Shards that didn't answer, and why.
    silent: Vec<(ShardId, String)>,
}

impl Seen {
    /// Asks shards and coordinator. The coordinator comes last: whatever is decided while shards are asked is decided.
    async fn look(admin: &Admin, one: Option<TransactionId>) -> Result<Seen, Failure> {
        let status = admin::status(admin).await?;
        let (branches, silent) = branches(&status).await;
        let records = admin::ask_leader(admin, |coordinator| {
            Box::pin(async move { coordinator.transactions(one).await })
        })
        .await?;
        let records = records.into_iter().map(|record| (record.transaction, record)).collect();
        Ok(Seen { topology: Topology::clone(&status.state.topology), branches, records, silent })
    }

    fn of(&self, transaction: TransactionId) -> impl Iterator<Item = &BranchStatus> {
        self.branches.iter().filter(move |branch| branch.transaction == transaction)
    }

    /// What it is, in a word.
    fn state(&self, transaction: TransactionId) -> Option<&'static str> {
        if let Some(record) = self.records.get(&transaction) {
            return Some(match (record.committed, record.finished) {
                (true, true) => "committed",
                (true, false) => "committing",
                (false, true) => "aborted",
                (false, false) => "aborting",
            });
        }
        let mut branches = self.of(transaction).peekable();
        branches.peek()?;
        Some(if branches.any(|branch| branch.prepared.is_some()) { "prepared" } else { "open" })
    }

    /// The shards that it is known to have been on.
    fn shards(&self, transaction: TransactionId) -> BTreeSet<ShardId> {
        let recorded = self.records.get(&transaction).into_iter().flat_map(|record| &record.participants);
        let prepared = self.of(transaction).filter_map(|branch| branch.prepared.as_ref()).flatten();
        recorded.chain(prepared).chain(self.of(transaction).map(|branch| &branch.shard)).copied().collect()
    }

    /// Who wasn't heard.
    fn gaps(&self) -> String {
        let line = |(shard, why): &(ShardId, String)| {
            format!("\n{} was not asked: {why}", self.topology.shard_name(*shard))
        };
        self.silent.iter().map(line).collect()
    }
}

/// The branches of all shards whose leaders answer, and who doesn't.
async fn branches(status: &ClusterStatus) -> (Vec<BranchStatus>, Vec<(ShardId, String)>) {
    let topology = &status.state.topology;
    let mut clients: HashMap<NodeId, NodeClient> = HashMap::new();
    let (mut branches, mut silent) = (Vec::new(), Vec::new());
    for shard in topology.shards.values() {
        let leader = status.state.leaders.get(shard.group).and_then(|leader| topology.nodes.get(&leader));
        let Some(leader) = leader else {
            silent.push((shard.id, "it has no leader".to_owned()));
            continue;
        };
        let client = clients
            .entry(leader.id)
            .or_insert_with(|| NodeClient::connect_node(leader.id, leader.address.clone()));
        match tokio::time::timeout(SHARD, client.branches(shard.id)).await {
            Ok(Ok(of_shard)) => branches.extend(of_shard),
            Ok(Err(error)) => silent.push((shard.id, error.message)),
            Err(_) => silent.push((shard.id, format!("node {} doesn't answer", leader.id))),
        }
    }
    (branches, silent)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header.iter().copied());
    table
}

fn names(topology: &Topology, shards: &BTreeSet<ShardId>) -> String {
    shards.iter().map(|shard| topology.shard_name(*shard)).collect::<Vec<_>>().join(", ")
}

fn seconds(time: Duration) -> String {
    format!("{}.{} s", time.as_secs(), time.subsec_millis() / 100)
}

/// All transactions, those that have been as they are for the longest first.
fn list(seen: &Seen, all: bool) -> String {
    let recorded = seen.records.values().filter(|record| all || !record.finished).map(|r| r.transaction);
    let transactions: BTreeSet<_> =
        recorded.chain(seen.branches.iter().map(|branch| branch.transaction)).collect();
    let idle = |transaction| seen.of(transaction).map(|branch| branch.idle).max();
    let mut transactions: Vec<_> = transactions.into_iter().map(|id| (idle(id), id)).collect();
    transactions.sort_by_key(|(idle, id)| (std::cmp::Reverse(*idle), *id));
    if transactions.is_empty() {
        return "no transactions".to_owned();
    }
    let mut table = table(&["transaction", "state", "shards", "for"]);
    for (idle, transaction) in transactions {
        let state = seen.state(transaction).unwrap_or_default();
        let shards = names(&seen.topology, &seen.shards(transaction));
        table.add_row([transaction.to_string(), state.into(), shards, idle.map(seconds).unwrap_or_default()]);
    }
    table.to_string()
}

/// One transaction; `None` if nobody knows it.
fn show(seen: &Seen, transaction: TransactionId) -> Option<String> {
    let state = seen.state(transaction)?;
    let mut table = table(&["shard", "branch", "for", "waits for"]);
    for shard in seen.shards(transaction) {
        let name = seen.topology.shard_name(shard);
        let Some(branch) = seen.of(transaction).find(|branch| branch.shard == shard) else {
            let asked = !seen.silent.iter().any(|(silent, _)| *silent == shard);
            table.add_row([name.as_str(), if asked { "none" } else { "unknown" }, "", ""]);
            continue;
        };
        let state = match branch {
            BranchStatus { committed: true, .. } => "committed",
            BranchStatus { prepared: Some(_), .. } => "prepared",
            _ => "open",
        };
        let waits = branch.waits_for.iter().map(TransactionId::to_string).collect::<Vec<_>>().join(", ");
        table.add_row([name, state.to_owned(), seconds(branch.idle), waits]);
    }
    let positions = seen.records.get(&transaction).filter(|record| record.committed);
    let positions = positions.map(|record| record.positions.iter().copied().collect());
    let gtid = positions.map(|positions| seen.topology.gtid(&positions)).filter(|gtid| !gtid.is_empty());
    let gtid = gtid.map_or_else(String::new, |gtid| format!("\nGTID {gtid}"));
    Some(format!("transaction {transaction}: {state}{gtid}\n{table}"))
}

fn unknown(seen: &Seen, transaction: TransactionId) -> Failure {
    let message = format!("transaction {transaction} is not known");
    let error = WireError::new(SqlState::UNDEFINED_OBJECT, message);
    Failure::Cluster(if seen.silent.is_empty() {
        error.with_hint("It has never been prepared, or has been over for long.")
    } else {
        error.with_hint(format!("Not all shards were asked.{}", seen.gaps()))
    })
}

/// Aborts a transaction that nobody has decided.
async fn resolve(admin: &Admin, transaction: TransactionId) -> Result<(), Failure> {
    let seen = Seen::look(admin, Some(transaction)).await?;
    let participants = undecided(&seen, transaction)?;
    let decision = Decision::abort(transaction, participants);
    let verdict = admin::ask_leader(admin, |coordinator| {
        let decision = decision.clone();
        Box::pin(async move { coordinator.decide(decision).await })
    })
    .await?;
    if verdict.committed {
        return Err(decided(transaction, "committed"));
    }
    let finished = async {
        loop {
            let found = admin::ask_leader(admin, |coordinator| {
                Box::pin(async move { coordinator.transactions(Some(transaction)).await })
            });
            if found.await?.iter().all(|record| record.finished) {
                return Ok::<_, Failure>(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(FINISH, finished).await {
        Ok(finished) => {
            finished?;
            print(&format!("transaction {transaction} is aborted"))
        }
        Err(_) => print(&format!(
            "transaction {transaction} is aborted; shards that could not be reached hear of it as soon as they can"
        )),
    }
}

/// The participants of a transaction that is prepared and undecided.
fn undecided(seen: &Seen, transaction: TransactionId) -> Result<Vec<ShardId>, Failure> {
    match seen.state(transaction) {
        None => Err(unknown(seen, transaction)),
        Some("prepared") if seen.of(transaction).any(|branch| branch.parallel) => {
            let message = format!("transaction {transaction} is committed by its votes");
            let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
            Err(Failure::Cluster(
                error.with_hint(
                    "The coordinator finds out what it becomes, as soon as its shards can be asked.",
                ),
            ))
        }
        Some("prepared") => Ok(seen.shards(transaction).into_iter().collect()),
        Some("open") => {
            let message = format!("transaction {transaction} is not prepared");
            let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
            Err(Failure::Cluster(error.with_hint("Its session can end it; so does the end of its session.")))
        }
        Some(state) => Err(decided(transaction, state)),
    }
}

fn decided(transaction: TransactionId, state: &str) -> Failure {
    let message = format!("transaction {transaction} is {state}: its outcome is decided for good");
    Failure::Cluster(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::{Keyspace, Shard, Sharding};
    use proto::{GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, RouterIncarnation};

    fn id(sequence: u64) -> TransactionId {
        TransactionId { router: RouterIncarnation(0x5a), sequence }
    }

    fn branch(sequence: u64, shard: u64, prepared: bool, millis: u64) -> BranchStatus {
        BranchStatus {
            shard: ShardId(shard),
            transaction: id(sequence),
            begun: 0,
            prepared: prepared.then(|| vec![ShardId(1), ShardId(2)]),
            votes: prepared.then_some(ShardId(shard)).into_iter().collect(),
            parallel: false,
            committed: false,
            forsaken: false,
            idle: Duration::from_millis(millis),
            waits_for: if prepared { Vec::new() } else { vec![id(1)] },
        }
    }

    fn seen() -> Seen {
        let record = |sequence, committed, finished| {
            let participants = vec![ShardId(1), ShardId(2)];
            let positions = if sequence == 5 {
                vec![(ShardId(1), LogIndex(7)), (ShardId(2), LogIndex(9))]
            } else {
                vec![]
            };
            let transaction = id(sequence);
            (id(sequence), TransactionStatus { transaction, participants, committed, finished, positions })
        };
        Seen {
            topology: Topology::default(),
            branches: vec![
                branch(1, 1, true, 1_200),
                branch(2, 1, false, 300),
                branch(3, 2, true, 65_000),
                branch(3, 3, false, 65_100),
            ],
            records: [
                record(1, true, false),
                record(4, false, false),
                record(5, true, true),
                record(6, false, true),
            ]
            .into(),
            silent: vec![(ShardId(2), "it has no leader".into())],
        }
    }

    /// A table's cells.
    fn cells(text: &str) -> Vec<Vec<&str>> {
        let rows = text.lines().filter(|line| line.starts_with('│'));
        rows.map(|row| {
            let cells = row.trim_matches('│').split("  ").map(str::trim);
            cells.filter(|cell| !cell.is_empty()).collect()
        })
        .collect()
    }

    #[test]
    fn what_is_under_way_is_listed_the_slowest_first() {
        let seen = seen();
        let text = list(&seen, false);
        let expected: [&[&str]; 5] = [
            &["transaction", "state", "shards", "for"],
            &["5a-3", "prepared", "shard 1, shard 2, shard 3", "65.1 s"],
            &["5a-1", "committing", "shard 1, shard 2", "1.2 s"],
            &["5a-2", "open", "shard 1", "0.3 s"],
            &["5a-4", "aborting", "shard 1, shard 2"],
        ];
        assert_eq!(cells(&text), expected);
        assert!(list(&seen, true).contains("5a-6"));
        assert_eq!(seen.gaps(), "\nshard 2 was not asked: it has no leader");
    }

    #[test]
    fn one_is_shown_with_its_branches() {
        let seen = seen();
        let text = show(&seen, id(3)).unwrap();
        assert!(text.starts_with("transaction 5a-3: prepared\n"), "{text}");
        let expected: [&[&str]; 4] = [
            &["shard", "branch", "for", "waits for"],
            &["shard 1", "none"],
            &["shard 2", "prepared", "65.0 s"],
            &["shard 3", "open", "65.1 s", "5a-1"],
        ];
        assert_eq!(cells(&text), expected);
        assert!(show(&seen, id(4)).unwrap().contains("unknown"), "a shard that wasn't asked may have it");
        assert_eq!(show(&seen, id(9)), None);
    }

    #[test]
    fn one_that_is_committed_is_shown_with_its_gtid() {
        let mut seen = seen();
        let keyspace = KeyspaceNumber(1);
        let ids: Vec<_> = [1, 2].map(ShardId).into();
        for (id, range) in ids.iter().zip(KeyRange::split_evenly(2)) {
            let (group, incarnation) = (GroupId(id.0 + 1), Incarnation(1));
            let (id, replicas, formed) = (*id, vec![], true);
            let first = LogIndex(0);
            let shard = Shard { id, keyspace, range, incarnation, group, replicas, formed, first };
            seen.topology.shards.insert(id, shard);
        }
        let (name, sharding) = ("main".into(), Sharding::Hash);
        let main = Keyspace { number: keyspace, name, sharding, replicas: 1, shards: ids, auto: None };
        seen.topology.keyspaces.insert(keyspace, main);
        let text = show(&seen, id(5)).unwrap();
        assert!(text.starts_with("transaction 5a-5: committed\nGTID main/-80.1:7,main/80-.1:9\n"), "{text}");
        assert!(
            show(&seen, id(1)).unwrap().starts_with("transaction 5a-1: committing\n┌"),
            "nobody knows it"
        );
    }

    #[test]
    fn only_what_is_prepared_and_undecided_is_resolved() {
        let seen = seen();
        let refused = |sequence| undecided(&seen, id(sequence)).unwrap_err().to_string();
        assert_eq!(undecided(&seen, id(3)).unwrap(), [1, 2, 3].map(ShardId));
        assert_eq!(refused(1), "transaction 5a-1 is committing: its outcome is decided for good");
        assert_eq!(refused(6), "transaction 5a-6 is aborted: its outcome is decided for good");
        assert!(refused(2).starts_with("transaction 5a-2 is not prepared"), "{}", refused(2));
        assert!(refused(9).starts_with("transaction 5a-9 is not known"), "{}", refused(9));
    }
}
