//! Replicas that need more than the log has: they come back by images of the database.

use crate::cluster::{Cluster, GROUP, PATIENCE, number, number_after, request, soon, sql, write};
use proto::services::Consistency::{Eventual, Session, Strong};
use proto::services::Progress;
use proto::{NodeId, Retry};
use replica::{Config, MemberTarget, Replica};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT";
const ROWS: &str = "SELECT c1 || ':' || length(c2) FROM t1 ORDER BY c1";
/// More writes than the log keeps.
const MANY: i64 = 400;

fn short_log(config: &mut Config) {
    config.log_keep_bytes = 16 << 10;
    config.log_cut_entries = 16;
    config.image_chunk_bytes = 8 << 10;
}

/// So that there is time to see it arrive.
fn slow_images(config: &mut Config) {
    short_log(config);
    config.image_bytes_per_second = 192 << 10;
}

async fn fill(leader: &Replica, from: i64, to: i64) {
    for key in from..to {
        write(leader, &format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 500, 'x'))")).await.unwrap();
    }
}

/// A group one of whose followers isn't running, and needs an image. Gives the leader and the follower.
async fn behind(change: fn(&mut Config)) -> (Cluster, Replica, NodeId) {
    let mut cluster = Cluster::with(3, change);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    fill(&leader, 0, 10).await;
    let away = cluster.others(leader.status().node)[0];
    cluster.stop(away);
    fill(&leader, 10, MANY).await;
    (cluster, leader, away)
}

/// Waits until so much of an image has arrived, and gives how much of it there is.
async fn arrived(replica: &Replica, share: u64) -> Progress {
    let mut watch = replica.watch();
    let enough = |image: &Progress| image.done * 100 >= image.total * share;
    let seen = watch.wait_for(|status| status.image.as_ref().is_some_and(enough));
    tokio::time::timeout(PATIENCE, seen).await.expect("no image arrives").unwrap().image.unwrap()
}

fn files(cluster: &Cluster, node: NodeId) -> Vec<String> {
    let directory = cluster.data_dir(node).join("groups").join(GROUP.to_string());
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with("replica.sqlite"));
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_follower_comes_back_by_an_image_while_writes_go_on() {
    let (mut cluster, leader, away) = behind(short_log).await;
    let done = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicI64::new(MANY));
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (leader, done, written) = (leader.clone(), done.clone(), written.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let key = written.fetch_add(1, Ordering::Relaxed);
                    fill(&leader, key, key + 1).await;
                }
            })
        })
        .collect();
    cluster.start(away);
    let replica = cluster.replica(away);
    let behind = leader.status().applied;
    drop(replica.snapshot_after(Session, behind, soon()).await.unwrap());
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(cluster.network.image_bytes() > 150_000, "{}", cluster.network.image_bytes());
    assert_eq!(replica.status().image, None);
    cluster.assert_equal(ROWS).await;
    let rows = written.load(Ordering::Relaxed);
    assert_eq!(number(&replica, Eventual, "SELECT count(*) FROM t1").await, rows);
    let whole = "SELECT integrity_check = 'ok' FROM pragma_integrity_check";
    assert_eq!(number(&replica, Eventual, whole).await, 1);

    // What was taken up is there after a restart, and nothing is left of how it came.
    drop(replica);
    cluster.stop(away);
    cluster.start(away);
    assert_eq!(files(&cluster, away), Vec::<String>::new());
    fill(&leader, rows, rows + 1).await;
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn a_log_of_few_but_large_entries_is_cut_too() {
    let mut cluster = Cluster::with(3, |config| config.log_keep_bytes = 64 << 10);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let away = cluster.others(leader.status().node)[0];
    cluster.stop(away);
    for key in 0..40 {
        write(&leader, &format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 50000, 'x'))")).await.unwrap();
    }
    cluster.start(away);
    cluster.assert_equal(ROWS).await;
    assert!(cluster.network.image_bytes() > 2_000_000, "{} bytes of an image", cluster.network.image_bytes());
}

#[tokio::test]
async fn a_transfer_goes_on_after_the_receiver_restarted_and_through_a_bad_network() {
    let (mut cluster, leader, away) = behind(slow_images).await;
    cluster.start(away);
    let image = arrived(&cluster.replica(away), 40).await;
    cluster.stop(away);
    assert!(files(&cluster, away)[0].starts_with("incoming-"));
    cluster.network.lose_every(9);
    cluster.start(away);
    let again = arrived(&cluster.replica(away), 40).await;
    assert_eq!(again.total, image.total, "it is the same image");
    let index = leader.status().applied;
    drop(cluster.replica(away).snapshot_after(Session, index, soon()).await.unwrap());
    let sent = cluster.network.image_bytes();
    assert!(sent < image.total * 13 / 10, "{sent} bytes were sent of an image of {}", image.total);
    cluster.network.heal();
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn damaged_chunks_are_sent_again() {
    let (mut cluster, leader, away) = behind(short_log).await;
    cluster.network.damage_every(4);
    cluster.start(away);
    let index = leader.status().applied;
    drop(cluster.replica(away).snapshot_after(Session, index, soon()).await.unwrap());
    cluster.network.heal();
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn another_leader_goes_on_where_the_first_left_off() {
    let (mut cluster, leader, away) = behind(slow_images).await;
    let first = leader.status().node;
    drop(leader);
    cluster.start(away);
    arrived(&cluster.replica(away), 30).await;
    cluster.stop(first);
    // The second can't commit anything before the one that is behind has an image.
    let second = cluster.leader_among(&cluster.others(first)).await;
    assert_ne!(second.status().node, away);
    fill(&second, MANY, MANY + 5).await;
    cluster.start(first);
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn what_was_answered_before_an_image_is_answered_alike_after_it() {
    let mut cluster = Cluster::with(3, short_log);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let node = leader.status().node;
    let [away, other] = cluster.others(node)[..] else { panic!("three nodes") };
    cluster.stop(away);
    let named = || {
        let mut write = sql("INSERT INTO t1 SELECT coalesce(max(c1), 0) + 1, 'named' FROM t1");
        write.request = Some(request(5));
        write.settled = 1;
        write
    };
    let written = leader.write(named()).await.unwrap();
    fill(&leader, 10, MANY).await;
    cluster.start(away);
    let index = leader.status().applied;
    drop(cluster.replica(away).snapshot_after(Session, index, soon()).await.unwrap());
    assert!(cluster.network.image_bytes() > 0);
    // Only who came back by an image has this, so only it can lead without the one that leads now.
    cluster.stop(other);
    fill(&leader, MANY, MANY + 1).await;
    drop(leader);
    cluster.stop(node);
    cluster.start(other);
    let new = cluster.leader_among(&[away, other]).await;
    assert_eq!(new.status().node, away);
    let again = new.write(named()).await.unwrap();
    assert!(again.repeated && again.output == written.output);
    assert_eq!(number(&new, Strong, "SELECT count(*) FROM t1 WHERE c2 = 'named'").await, 1);
}

#[tokio::test]
async fn snapshots_that_are_open_go_on_with_what_they_saw() {
    let cluster = Cluster::with(3, short_log);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    fill(&leader, 0, 10).await;
    let away = cluster.others(leader.status().node)[0];
    let replica = cluster.replica(away);
    let index = leader.status().applied;
    let old = replica.snapshot_after(Session, index, soon()).await.unwrap();
    let second = replica.snapshot_after(Session, index, soon()).await.unwrap();
    cluster.network.isolate(away, &cluster.nodes);
    fill(&leader, 10, MANY).await;
    cluster.network.heal();
    let index = leader.status().applied;
    assert_eq!(number_after(&replica, index, "SELECT count(*) FROM t1").await, MANY);
    assert!(cluster.network.image_bytes() > 0);
    let count = |snapshot: &replica::Snapshot| -> i64 {
        snapshot.connection().query_row("SELECT count(*) FROM t1", [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count(&old), count(&second)), (10, 10));
    // Their end takes nothing of the new database with it.
    drop(old);
    fill(&leader, MANY, MANY + 20).await;
    assert_eq!(count(&second), 10);
    drop(second);
    let index = leader.status().applied;
    assert_eq!(number_after(&replica, index, "SELECT count(*) FROM t1").await, MANY + 20);
    cluster.assert_equal(ROWS).await;
    let whole = "SELECT integrity_check = 'ok' FROM pragma_integrity_check";
    assert_eq!(number(&replica, Eventual, whole).await, 1);
}

/// Has the members be these, asking whoever leads, until it is so.
async fn change(cluster: &Cluster, nodes: &[NodeId], rebuild: Option<NodeId>) {
    let target = MemberTarget { voters: nodes.to_vec(), rebuild };
    loop {
        let healthy: Vec<NodeId> =
            cluster.nodes.iter().copied().filter(|node| Some(*node) != rebuild).collect();
        let changed = cluster.leader_among(&healthy[..2]).await.change_members(target.clone(), soon()).await;
        match changed {
            Ok(members) => return assert_eq!(members.voters, nodes),
            Err(error) if matches!(error.retry, Retry::NotLeader(_) | Retry::Later) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn an_emptied_node_and_a_new_one_are_filled_one_after_the_other() {
    let mut cluster = Cluster::with(4, |config| {
        short_log(config);
        config.image_bytes_per_second = 4 << 20;
    });
    let [first, second, emptied, new] = cluster.nodes[..] else { panic!("four nodes") };
    for node in [first, second, emptied] {
        cluster.hosts[&node].create(GROUP, &[first, second, emptied], &[TABLE.to_owned()]).unwrap();
    }
    let leader = cluster.leader_among(&[first, second, emptied]).await;
    fill(&leader, 0, 200).await;
    drop(leader);
    cluster.stop(emptied);
    std::fs::remove_dir_all(cluster.data_dir(emptied)).unwrap();
    cluster.start(emptied);
    let leader = cluster.leader_among(&[first, second]).await;
    fill(&leader, 200, 400).await;
    change(&cluster, &[first, second, emptied], Some(emptied)).await;
    // The image that was made before doesn't know of this one, so it would be of no use.
    change(&cluster, &[first, second, emptied, new], None).await;
    fill(&cluster.leader_among(&[first, second]).await, 400, 420).await;
    let rows = cluster.assert_equal(ROWS).await;
    assert_eq!(rows.lines().count(), 420);
    assert!(cluster.network.image_bytes() > 200_000);
    // They are members as all others are: a majority of the two of them and one more goes on.
    let down = [first, second].into_iter().find(|node| cluster.replica(*node).is_leader()).unwrap_or(first);
    cluster.stop(down);
    let rest = cluster.others(down);
    fill(&cluster.leader_among(&rest).await, 420, 430).await;
}
