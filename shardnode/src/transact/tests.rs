//! Taking over what others have left, on a leader that is at work.

use super::*;
use crate::config::Config;
use crate::locks::{Part, Resource};
use crate::prepared::tests::left;
use crate::routers::Routers;
use proto::services::{LeftPrepared, RaftMessage, RaftTransport};
use proto::{Epoch, GroupId, NodeId, RouterIncarnation, SchemaVersion};
use replica::{Content, Host, RowOp, SchemaEntry};

const PATIENCE: Duration = Duration::from_secs(20);
const HERE: NodeId = NodeId(1);

struct Nobody;

impl RaftTransport for Nobody {
    fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
}

fn until() -> Instant {
    Instant::now() + PATIENCE
}

fn id(sequence: u64) -> TransactionId {
    TransactionId { router: RouterIncarnation(9), sequence }
}

/// What is taken to be prepared, and whose votes that is; what is remembered, of 1 to 9; and of which transactions the locks are
/// held.
type Known = (Vec<(u64, Vec<ShardId>)>, Vec<u64>, Vec<u64>);

fn known(desk: &Desk) -> Known {
    let statuses = desk.transactions.statuses(desk.to.shard);
    let prepared = statuses.into_iter().filter(|status| status.prepared.is_some());
    let prepared = prepared.map(|status| (status.transaction.sequence, status.votes)).collect();
    let state = desk.transactions.look();
    let kept = (1..=9).filter(|n| state.is_kept(id(*n))).collect();
    let table = Resource { table: TableId(16384), part: Part::Table };
    (prepared, kept, (1..=9).filter(|n| state.locks.has(id(*n), &table)).collect())
}

/// A shard that is led here, and where it lies.
async fn led() -> (Desk, Arc<Host>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = replica::Config::new(HERE, directory.path());
    config.tick = Duration::from_millis(10);
    let host = Host::open(config, Arc::new(Nobody)).unwrap();
    let init = fence::init(ShardId(3), fence::State::Open, SchemaVersion(0));
    let replica = host.create(GroupId(2), &[HERE], &init).unwrap();
    let routers = Arc::new(Routers::new(PATIENCE));
    let transactions = Transactions::new(&Config::new(HERE), routers, Arc::default());
    let to = Address { shard: ShardId(3), epoch: Epoch(1) };
    let desk = Desk { replica, transactions: Arc::new(transactions), to };
    let mut status = desk.replica.watch();
    while desk.know(until()).await.is_err() {
        status.changed().await.unwrap();
    }
    (desk, host, directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_over_is_known_at_once() {
    let (desk, host, _directory) = led().await;
    assert_eq!(known(&desk), (vec![], vec![], vec![]));
    let adopt = |shard: u64, sequences: &'static [u64], committed: u64, fails: bool| {
        let run = move |stage: &Stage<'_>| {
            prepared::clear(stage)?;
            ended::clear(stage)?;
            for left in left(shard, sequences) {
                prepared::adopt(stage, stage.applied(), &left)?;
            }
            ended::commit(stage, id(committed), &[])?;
            if fails { Err(WireError::internal("no")) } else { Ok(shard) }
        };
        desk.adopt(run, until())
    };
    assert_eq!(adopt(1, &[1, 2], 7, false).await.unwrap(), 1);
    let votes = |shard| vec![ShardId(shard)];
    assert_eq!(known(&desk), (vec![(1, votes(1)), (2, votes(1))], vec![7], vec![1, 2]));
    // What a later one takes over is all there is.
    let before = desk.applied();
    adopt(2, &[2, 3], 8, false).await.unwrap();
    let second = (vec![(2, votes(2)), (3, votes(2))], vec![8], vec![2, 3]);
    assert_eq!(known(&desk), second);
    assert!(desk.transactions.ended(&[id(1)], 0, Instant::now()).await);
    // And its followers are told so.
    let mut gone = Vec::new();
    for entry in desk.replica.entries_after(before, until()).await.ok().unwrap() {
        let Content::Batch { changesets, .. } = entry.content else { continue };
        let changes = changesets.iter().flat_map(|changeset| replica::changes(changeset).unwrap());
        gone.extend(changes.filter(|change| change.op == RowOp::Delete).map(|change| change.table));
    }
    gone.sort();
    assert_eq!(gone, ["shoal_ended", "shoal_prepared"]);
    assert_eq!(adopt(1, &[4], 9, true).await.unwrap_err().message, "no");
    desk.know(until()).await.unwrap();
    assert_eq!(known(&desk), second);
    // What was taken over ends as any other.
    assert!(desk.transactions.look().is_pending(id(3)));
    let end = BranchAction::Finish { commit: false, keep: false };
    assert!(desk.act_for(ShardId(2), id(3), end, until()).await.unwrap() > LogIndex(0));
    assert_eq!(known(&desk), (vec![(2, votes(2))], vec![8], vec![2]));
    drop(desk);
    tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
}

/// What a statement changes that comes to nothing here: a changeset.
async fn changes(desk: &Desk, sql: &'static str) -> Bytes {
    let run = move |stage: &Stage<'_>| {
        stage.execute(sql, []).unwrap();
        stage.changes()
    };
    let overlay = Overlay::new();
    let rehearsal = Rehearsal { overlay, bare: false, deadline: until(), run: Box::new(run) };
    desk.replica.rehearse(rehearsal).await.unwrap().output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_end_as_one() {
    let (desk, host, _directory) = led().await;
    let table = "CREATE TABLE t1 (c1 INTEGER NOT NULL PRIMARY KEY, c2 TEXT) STRICT".to_owned();
    let (statements, require_empty, notes) = (vec![table], Vec::new(), Vec::new());
    let step = SchemaEntry { id: (1, 1), statements, require_empty, notes, deadline: until() };
    desk.replica.schema(step).await.unwrap();
    let halves = [
        (1, changes(&desk, "INSERT INTO t1 VALUES (1, 'a'), (3, 'c')").await),
        (2, changes(&desk, "INSERT INTO t1 VALUES (2, 'b')").await),
    ];
    let adopt = move |stage: &Stage<'_>| {
        for (shard, changes) in halves {
            let left = left(shard, &[1]).remove(0);
            prepared::adopt(stage, stage.applied(), &LeftPrepared { changes, ..left })?;
        }
        Ok(())
    };
    desk.adopt(adopt, until()).await.unwrap();
    let votes = [1, 2].map(ShardId);
    assert_eq!(known(&desk), (vec![(1, votes.to_vec())], vec![], vec![1]));
    let prepare = BranchAction::Prepare { participants: votes.to_vec(), parallel: true };
    for of in votes {
        desk.act_for(of, id(1), prepare.clone(), until()).await.unwrap();
    }
    let end = BranchAction::Finish { commit: true, keep: true };
    desk.act_for(ShardId(1), id(1), end, until()).await.unwrap();
    let snapshot = desk.replica.snapshot(Consistency::Strong, until()).await.unwrap();
    let sql = "SELECT group_concat(c2, '') FROM (SELECT c2 FROM t1 ORDER BY c1)";
    let found: String = snapshot.connection().query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!((found.as_str(), known(&desk)), ("abc", (vec![], vec![1], vec![])));
    drop((snapshot, desk));
    tokio::task::spawn_blocking(move || host.shutdown()).await.unwrap();
}
