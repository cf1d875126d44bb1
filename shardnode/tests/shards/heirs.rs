//! What a shard answers in the name of one whose place it has taken.

use crate::common::{GROUP, Node, PATIENCE, SHARD};
use crate::serving::{NEXT, anew, filled, set};
use crate::session::{Session, told};
use bytes::Bytes;
use proto::services::{BranchAction, BranchRequest, BranchStatus, Consistency, ShardService};
use proto::{Epoch, LogIndex, Retry, ShardId, SqlState, WireError};
use replica::{Stage, Write};
use std::time::{Duration, Instant};

/// It takes part in every transaction here. Where it has gone nobody knows.
const OTHER: ShardId = ShardId(9);

const NEVER: &str = "40001: the transaction was aborted: a shard of it was replaced before it had voted";

fn prepare() -> BranchAction {
    BranchAction::Prepare { participants: vec![SHARD, OTHER], parallel: true }
}

fn finish(commit: bool, keep: bool) -> BranchAction {
    BranchAction::Finish { commit, keep }
}

/// Has the shard do something in the name of this one.
async fn act_for(session: &Session<'_>, of: ShardId, action: BranchAction) -> Result<LogIndex, WireError> {
    let (transaction, timeout) = (session.id(), PATIENCE);
    let on_behalf = (of != NEXT).then_some(of);
    let request = BranchRequest { shard: NEXT, epoch: Epoch(1), on_behalf, transaction, action, timeout };
    session.node.shards.transact(request).await
}

/// What it says when it is asked for the vote of this shard: once more, and then whether it can promise that there is none.
async fn voted(session: &Session<'_>, of: ShardId) -> bool {
    let again = act_for(session, of, prepare()).await;
    let promised = act_for(session, of, BranchAction::Renounce).await;
    let refusal = format!("55000: the shard has voted for transaction {}", session.id());
    match again {
        Ok(_) => {
            assert_eq!(told(promised), refusal);
            true
        }
        Err(error) => {
            assert_eq!(error.to_string(), NEVER);
            assert_eq!(error.retry, Retry::Never, "it is said for good");
            promised.unwrap();
            false
        }
    }
}

/// What the shard says of it.
async fn status(session: &Session<'_>) -> Option<BranchStatus> {
    let all = session.node.shards.branches(NEXT).await.unwrap();
    let mut of_it = all.into_iter().filter(|status| status.transaction == session.id());
    let found = of_it.next();
    assert_eq!(of_it.next(), None, "it is told of once");
    found
}

/// A value of the shard's database.
async fn number(node: &Node, sql: &str) -> i64 {
    let replica = node.host.replica(GROUP).unwrap();
    let until = Instant::now() + PATIENCE;
    let snapshot = replica.snapshot(Consistency::Strong, until).await.unwrap();
    snapshot.connection().query_row(sql, [], |row| row.get(0)).unwrap()
}

async fn count(node: &Node, table: &str) -> i64 {
    number(node, &format!("SELECT count(*) FROM {table}")).await
}

/// Writes into the shard's database, as nobody does but in a test.
async fn change(node: &Node, sql: String) {
    let run = move |stage: &Stage<'_>| {
        stage.execute(&sql, []).unwrap();
        Ok(Bytes::new())
    };
    let deadline = Instant::now() + PATIENCE;
    let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
    node.host.replica(GROUP).unwrap().write(write).await.unwrap();
}

/// A node whose only group was shard 1, and is shard 2 by now. As shard 1 it has prepared transactions 1 to 4, each of which
/// adds the row of its number and ten; 3 has committed and is remembered, 4 was aborted.
async fn heir() -> Node {
    let node = filled().await;
    for n in 1..=4 {
        let session = Session::new(&node, n);
        session.write(&format!("INSERT INTO t1 VALUES ({}, 'by {n}')", n + 10)).await.unwrap();
        session.act(prepare()).await.unwrap();
        assert_eq!(session.status().await.unwrap().votes, [SHARD]);
    }
    Session::new(&node, 3).act(finish(true, true)).await.unwrap();
    Session::new(&node, 4).act(finish(false, false)).await.unwrap();
    set(&node, "shard = 2").await;
    anew(node, NEXT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_its_shards_and_no_others() {
    let node = heir().await;
    let session = |n| Session::new(&node, n);
    for (n, of, has_voted) in [
        // Its row is shard 1's vote, and neither the other one's nor its own.
        (1, SHARD, true),
        (1, OTHER, false),
        (1, NEXT, false),
        // What has committed had every vote.
        (3, SHARD, true),
        (3, OTHER, true),
        (3, NEXT, true),
        (4, SHARD, false),
        (4, OTHER, false),
        // It was never heard of.
        (5, SHARD, false),
    ] {
        let before = count(&node, "shoal_renounced").await;
        assert_eq!(voted(&session(n), of).await, has_voted, "transaction {n}, shard {of}");
        let own_promise = i64::from(of == NEXT && !has_voted);
        assert_eq!(
            count(&node, "shoal_renounced").await,
            before + own_promise,
            "only for itself it promises"
        );
    }
    // Whatever was asked, what is prepared is as it was, and locked.
    assert_eq!((count(&node, "shoal_prepared").await, count(&node, "shoal_ended").await), (2, 1));
    for n in 1..=2 {
        let status = status(&session(n)).await.unwrap();
        assert_eq!((status.prepared, status.votes), (Some(vec![SHARD, OTHER]), vec![SHARD]));
        assert!(status.parallel && !status.committed);
    }
    let mut write = node.write("INSERT INTO t1 VALUES (11, 'mine')", 70);
    (write.shard, write.timeout) = (NEXT, Duration::from_millis(100));
    assert_eq!(node.shards.execute(write).await.err().unwrap().sqlstate, SqlState::QUERY_CANCELED);
    // Nothing else is done in another's name.
    for action in [BranchAction::RollbackTo(0), session(1).commitment()] {
        assert!(told(act_for(&session(1), SHARD, action).await).starts_with("40001"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_the_end_in_anothers_name_finishes_all_of_it() {
    let node = heir().await;
    let session = |n| Session::new(&node, n);
    // Once for each participant whose place it has taken, and once more.
    for of in [OTHER, SHARD, SHARD] {
        act_for(&session(1), of, finish(true, true)).await.unwrap();
        act_for(&session(2), of, finish(false, false)).await.unwrap();
    }
    assert_eq!(number(&node, "SELECT group_concat(c1 ORDER BY c1) = '1,11,13' FROM t1").await, 1);
    assert_eq!((count(&node, "shoal_prepared").await, count(&node, "shoal_ended").await), (0, 2));
    for of in [SHARD, OTHER] {
        assert!(voted(&session(1), of).await);
        assert!(!voted(&session(2), of).await);
    }
    // Locks are free.
    for n in 1..=2 {
        assert_eq!(status(&session(n)).await, None);
        let mut write = node.write("INSERT INTO t1 VALUES (99, 'x') ON CONFLICT DO NOTHING", 70 + n);
        write.shard = NEXT;
        node.shards.execute(write).await.unwrap();
    }
    let ids = vec![session(1).id(), session(3).id()];
    act_for(&session(1), SHARD, BranchAction::Forget(ids)).await.unwrap();
    assert_eq!(count(&node, "shoal_ended").await, 0);
}

/// Of two shards that are one now, one had committed it, and the other one had it prepared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_committed_in_part_is_committed() {
    let node = filled().await;
    for n in 1..=2 {
        let session = Session::new(&node, n);
        session.write(&format!("INSERT INTO t1 VALUES ({}, 'by {n}')", n + 10)).await.unwrap();
        session.act(prepare()).await.unwrap();
        let sql = "INSERT INTO shoal_ended SELECT router, sequence, x'' FROM shoal_prepared";
        change(&node, format!("{sql} WHERE sequence = {n}")).await;
    }
    set(&node, "shard = 2").await;
    let node = anew(node, NEXT).await;
    let session = |n| Session::new(&node, n);
    for (n, keep) in [(1, true), (2, false)] {
        let session = session(n);
        let told = status(&session).await.unwrap();
        assert_eq!(
            (told.committed, told.prepared, told.votes),
            (true, Some(vec![SHARD, OTHER]), vec![SHARD])
        );
        assert!(voted(&session, SHARD).await && voted(&session, OTHER).await);
        act_for(&session, SHARD, finish(true, keep)).await.unwrap();
        // Who has it written down elsewhere needs nobody here to remember.
        let sql = format!("SELECT count(*) FROM shoal_ended WHERE sequence = {n}");
        assert_eq!(number(&node, &sql).await, i64::from(keep));
        assert_eq!(number(&node, &format!("SELECT count(*) FROM t1 WHERE c1 = {}", n + 10)).await, 1);
    }
    assert_eq!(count(&node, "shoal_prepared").await, 0);
}

/// Whoever serves no more says nothing in anybody's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_sealed_itself_sends_on() {
    let node = heir().await;
    let session = Session::new(&node, 1);
    set(&node, "state = 1, reshard = 8, attempt = 1").await;
    for action in [prepare(), BranchAction::Renounce, finish(true, true), finish(false, false)] {
        let refused = act_for(&session, SHARD, action.clone()).await.unwrap_err();
        assert_eq!(refused.retry, Retry::StaleEpoch(Epoch(2)), "{action:?}: {refused}");
    }
    assert_eq!(count(&node, "shoal_prepared").await, 2);
}
