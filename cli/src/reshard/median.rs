//! `--median`: where about half of a shard's rows are before.
//!
//! In comes a shard, out comes a keyspace id that a follower has found among the rows of the shard's biggest table. The follower
//! reads all of the shard's rows for that.

use super::bounds::find;
use crate::admin::Way;
use crate::failure::Failure;
use crate::progress::Display;
use indicatif::HumanCount;
use proto::catalog::Catalog;
use proto::services::{ClusterStatus, Counted, ShardService, Tally, TallyRequest};
use proto::topology::{Keyspace, Shard};
use proto::transport::NodeClient;
use proto::{SqlState, WireError};
use std::time::{Duration, Instant};

/// How many bytes of rows a second are read: somebody waits.
const RATE: u64 = 64 << 20;
/// How often it's looked whether it is done.
const LOOK: Duration = Duration::from_millis(200);
/// How long nobody may answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keyspace id at which a shard is cut.
pub async fn median(way: &Way, name: &str, json: bool) -> Result<Vec<u8>, Failure> {
    let status = way.status().await?;
    let (keyspace, shard) = find(&status.state, name)?;
    let (begun, mut display) = (Instant::now(), Display::new(json));
    let counted = count(&status, shard, |rows| {
        let line = format!("counting     {} rows", HumanCount(rows));
        if json { Ok(()) } else { display.show("counting", line, begun.elapsed(), false) }
    })
    .await;
    display.clear();
    Ok(middle(&status.state.catalog, keyspace, name, &counted?)?)
}

/// Asks the nodes that hold a shard, followers first, until one has counted.
async fn count(
    status: &ClusterStatus,
    shard: &Shard,
    mut tell: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<Counted, Failure> {
    let leader = status.state.leaders.get(shard.group);
    let mut holders: Vec<_> =
        shard.replicas.iter().filter_map(|id| status.state.topology.nodes.get(id)).collect();
    holders.sort_by_key(|node| leader == Some(node.id));
    let clients: Vec<_> =
        holders.iter().map(|node| NodeClient::connect_node(node.id, node.address.clone())).collect();
    let begun = Instant::now();
    let mut answered = begun;
    let mut last = WireError::new(SqlState::CONNECTION_FAILURE, "no node holds the shard");
    let mut place = 0;
    while answered.elapsed() < PATIENCE {
        if let Some(client) = clients.get(place % clients.len().max(1)) {
            // What was counted before says too little of where rows are by now.
            let request = TallyRequest { shard: shard.id, within: begun.elapsed(), rate: RATE };
            match client.tally(request).await {
                Ok(Tally { counted: Some(counted), counting: None }) => return Ok(counted),
                Ok(Tally { counting, .. }) => {
                    answered = Instant::now();
                    tell(counting.unwrap_or(0))?;
                }
                Err(error) => (last, place) = (error, place + 1),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::Cluster(last))
}

/// The middle of the biggest of a keyspace's tables.
fn middle(
    catalog: &Catalog,
    keyspace: &Keyspace,
    shard: &str,
    counted: &Counted,
) -> Result<Vec<u8>, WireError> {
    let refused = |message: String| {
        WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).with_hint("Say where, with --at.")
    };
    let biggest = counted.biggest_of(keyspace.number, catalog).filter(|tally| tally.rows > 0);
    let tally = biggest.ok_or_else(|| refused(format!("{shard} has no rows")))?;
    tally.middle.clone().ok_or_else(|| {
        let table = catalog.table(tally.table).map_or("?", |table| table.name.as_str());
        refused(format!("the rows that table {table} has on {shard} have one key"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::bounds::tests::{state, table};
    use super::*;
    use dialect::types::Type;
    use proto::services::TableTally;
    use proto::{KeyspaceNumber, TableId};

    fn counted(tables: &[(u32, u64, u64, Option<u8>)]) -> Counted {
        let tally = |(table, rows, bytes, middle): &(u32, u64, u64, Option<u8>)| TableTally {
            table: TableId(*table),
            rows: *rows,
            bytes: *bytes,
            middle: middle.map(|byte| vec![byte]),
            growth: None,
        };
        Counted { age: Duration::ZERO, took: Duration::ZERO, tables: tables.iter().map(tally).collect() }
    }

    #[test]
    fn a_shard_is_cut_in_the_middle_of_its_biggest_table() {
        let state =
            state(vec![table(1, 2, &[Type::Int8]), table(2, 2, &[Type::Int8]), table(3, 3, &[Type::Int8])]);
        let keyspace = &state.topology.keyspaces[&KeyspaceNumber(2)];
        let cut = |tables: &[(u32, u64, u64, Option<u8>)]| {
            middle(&state.catalog, keyspace, "log/-", &counted(tables)).map_err(|error| error.message)
        };
        // Of the third one, which is elsewhere, and the ninth, which is gone, nothing matters.
        let all = [(1, 9, 90, Some(10)), (2, 5, 500, Some(20)), (3, 9, 900, Some(30)), (9, 9, 999, Some(40))];
        assert_eq!(cut(&all), Ok(vec![20]));
        assert_eq!(cut(&[(1, 9, 90, Some(10)), (2, 0, 0, None)]), Ok(vec![10]));
        assert_eq!(cut(&[(1, 9, 90, None)]), Err("the rows that table t1 has on log/- have one key".into()));
        assert_eq!(cut(&[(1, 0, 0, None)]), Err("log/- has no rows".into()));
        assert_eq!(cut(&[]), Err("log/- has no rows".into()));
    }
}
