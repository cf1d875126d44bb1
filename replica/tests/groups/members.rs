//! Members that come and go while a group is at work.

use crate::cluster::{Cluster, GROUP, PATIENCE, number, number_after, soon, write};
use proto::services::Consistency::{Session, Strong};
use proto::services::{Members, ReplicaRole};
use proto::{LogIndex, NodeId, Retry, SqlState, WireError};
use replica::{MemberTarget, Replica};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT";
const ROWS: &str = "SELECT c1 || ':' || c2 FROM t1 ORDER BY c1";

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Founds the group on some of the hosts.
fn found(cluster: &Cluster, ids: &[u64]) {
    for node in nodes(ids) {
        cluster.hosts[&node].create(GROUP, &nodes(ids), &[TABLE.to_owned()]).unwrap();
    }
}

/// Whoever leads, among all hosts that have a replica.
async fn leader(cluster: &Cluster) -> Replica {
    let until = Instant::now() + PATIENCE;
    loop {
        let replicas = cluster.hosts.values().filter_map(|host| host.replica(GROUP));
        for replica in replicas.filter(Replica::is_leader) {
            if replica.snapshot(Strong, Instant::now() + Duration::from_millis(200)).await.is_ok() {
                return replica;
            }
        }
        assert!(Instant::now() < until, "no leader: {:#?}", cluster.statuses());
        changed(cluster.hosts.values().map(|host| host.changed())).await;
    }
}

/// Waits until something changes at one of these hosts, for a moment.
async fn changed(hosts: impl IntoIterator<Item = watch::Receiver<u64>>) {
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    let any = futures::future::select_all(hosts.iter_mut().map(|host| Box::pin(host.changed())));
    // Whatever it is, it's looked at again.
    let _ = tokio::time::timeout(Duration::from_millis(20), any).await;
}

/// Changes the members as the coordinator does: asks whoever leads until it is done.
async fn change(cluster: &Cluster, ids: &[u64], rebuild: Option<u64>) -> Members {
    let target = MemberTarget { voters: nodes(ids), rebuild: rebuild.map(NodeId) };
    loop {
        match leader(cluster).await.change_members(target.clone(), soon()).await {
            Ok(members) => return members,
            Err(WireError { retry: Retry::NotLeader(_) | Retry::Later, .. }) => {}
            Err(error) => panic!("{error:?}: {:#?}", cluster.statuses()),
        }
    }
}

fn voters(ids: &[u64]) -> Members {
    Members { voters: nodes(ids), learners: Vec::new(), joint: false }
}

/// Writes until told to end; gives what was acknowledged.
fn writer(cluster: &Cluster, end: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    let hosts: Vec<_> = cluster.hosts.values().cloned().collect();
    tokio::spawn(async move {
        let mut acknowledged = 0;
        let mut next = 0;
        while !end.load(Ordering::Relaxed) {
            let leader = hosts.iter().filter_map(|host| host.replica(GROUP)).find(Replica::is_leader);
            let Some(leader) = leader else {
                changed(hosts.iter().map(|host| host.changed())).await;
                continue;
            };
            let statement = format!("INSERT INTO t1 VALUES ({next}, hex(randomblob(50)))");
            match write(&leader, &statement).await {
                Ok(_) => acknowledged += 1,
                Err(error) if matches!(error.retry, Retry::NotLeader(_) | Retry::Later) => {
                    changed(hosts.iter().map(|host| host.changed())).await;
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            }
            next += 1;
        }
        assert_eq!(acknowledged, next);
        acknowledged
    })
}

/// Checks that these nodes have the same rows, and how many.
async fn assert_equal(cluster: &mut Cluster, ids: &[u64]) -> usize {
    let all = std::mem::replace(&mut cluster.nodes, nodes(ids));
    let rows = cluster.assert_equal(ROWS).await;
    cluster.nodes = all;
    rows.lines().count()
}

/// Waits until a host has no replica of the group, and no files.
async fn gone(cluster: &Cluster, node: u64) {
    let directory = cluster.data_dir(NodeId(node)).join("groups").join(GROUP.to_string());
    let until = Instant::now() + PATIENCE;
    while cluster.hosts[&NodeId(node)].replica(GROUP).is_some() || directory.exists() {
        assert!(Instant::now() < until, "{:#?}", cluster.statuses());
        // Every now and then the host looks what it can delete.
        cluster.hosts[&NodeId(node)].remove(GROUP).unwrap();
        changed([cluster.hosts[&NodeId(node)].changed()]).await;
    }
}

#[tokio::test]
async fn a_member_comes_as_a_learner_and_votes() {
    let mut cluster = Cluster::new(4);
    found(&cluster, &[1, 2, 3]);
    for key in 0..100 {
        write(&leader(&cluster).await, &format!("INSERT INTO t1 VALUES ({key}, 'a')")).await.unwrap();
    }
    assert_eq!(change(&cluster, &[1, 2, 3, 4], None).await, voters(&[1, 2, 3, 4]));
    // Again, it's done already.
    assert_eq!(change(&cluster, &[1, 2, 3, 4], None).await, voters(&[1, 2, 3, 4]));
    let last = write(&leader(&cluster).await, "INSERT INTO t1 VALUES (100, 'b')").await.unwrap();
    let new = cluster.replica(NodeId(4));
    assert_eq!(number_after(&new, last.index, "SELECT count(*) FROM t1").await, 101);
    let status = new.status();
    assert_eq!((status.members, status.role), (voters(&[1, 2, 3, 4]), ReplicaRole::Follower));
    // It is what it is after a restart, too, and its vote counts: with two of four down nothing is committed.
    cluster.stop(NodeId(4));
    cluster.start(NodeId(4));
    assert_equal(&mut cluster, &[1, 2, 3, 4]).await;
    let leading = leader(&cluster).await.status().node;
    let down = cluster.others(leading);
    down.iter().take(2).for_each(|node| cluster.stop(*node));
    let mut late = crate::cluster::sql("INSERT INTO t1 VALUES (101, 'c')");
    late.deadline = Instant::now() + Duration::from_millis(300);
    assert!(cluster.replica(leading).write(late).await.is_err());
    cluster.start(down[0]);
    let third = [leading, down[0], down[2]];
    write(&cluster.leader_among(&third).await, "INSERT INTO t1 VALUES (102, 'd')").await.unwrap();
}

#[tokio::test]
async fn a_dead_member_is_replaced_by_another_node() {
    let mut cluster = Cluster::new(4);
    found(&cluster, &[1, 2, 3]);
    write(&leader(&cluster).await, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    cluster.stop(NodeId(3));
    assert_eq!(change(&cluster, &[1, 2, 4], None).await, voters(&[1, 2, 4]));
    assert_eq!(assert_equal(&mut cluster, &[1, 2, 4]).await, 1);
    // The dead one comes back, asks for votes, and hears that it isn't a member any more.
    let term = leader(&cluster).await.status().term;
    cluster.start(NodeId(3));
    gone(&cluster, 3).await;
    assert_eq!(leader(&cluster).await.status().term, term, "it disturbed nobody");
    assert!(!cluster.hosts[&NodeId(3)].note_missing(GROUP), "nobody misses it");
    // Founding it again would be wrong: the others have rows that it hasn't.
    assert!(cluster.hosts[&NodeId(3)].create(GROUP, &nodes(&[1, 2, 3]), &[]).is_err());
    // It may come again, as another.
    assert_eq!(change(&cluster, &[1, 2, 3], None).await, voters(&[1, 2, 3]));
    assert_eq!(assert_equal(&mut cluster, &[1, 2, 3]).await, 1);
    gone(&cluster, 4).await;
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut cluster = Cluster::new(3);
    found(&cluster, &[1, 2, 3]);
    let old = leader(&cluster).await;
    write(&old, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    let node = old.status().node;
    let rest: Vec<u64> = cluster.others(node).iter().map(|node| node.0).collect();
    let target = MemberTarget { voters: nodes(&rest), rebuild: None };
    let refused = old.change_members(target, soon()).await.unwrap_err();
    assert!(matches!(refused.retry, Retry::NotLeader(Some(to)) if to != node), "{refused:?}");
    assert_eq!(change(&cluster, &rest, None).await, voters(&rest));
    cluster.hosts[&node].remove(GROUP).unwrap();
    gone(&cluster, node.0).await;
    write(&leader(&cluster).await, "INSERT INTO t1 VALUES (2, 'b')").await.unwrap();
    assert_eq!(assert_equal(&mut cluster, &rest).await, 2);
}

#[tokio::test]
async fn a_group_grows_and_shrinks_under_writes() {
    let mut cluster = Cluster::new(5);
    found(&cluster, &[1, 2, 3]);
    let end = Arc::new(AtomicBool::new(false));
    leader(&cluster).await;
    let writes = writer(&cluster, end.clone());
    for ids in [&[1_u64, 2, 3, 4, 5][..], &[3, 4, 5], &[3], &[1, 2]] {
        assert_eq!(change(&cluster, ids, None).await, voters(ids));
    }
    end.store(true, Ordering::Relaxed);
    let acknowledged = writes.await.unwrap();
    assert!(acknowledged > 10, "{acknowledged}");
    assert_eq!(assert_equal(&mut cluster, &[1, 2]).await as u64, acknowledged);
}

#[tokio::test]
async fn a_replica_whose_files_were_lost_is_rebuilt() {
    let mut cluster = Cluster::new(3);
    found(&cluster, &[1, 2, 3]);
    for round in 0..2 {
        let key = 2 * round;
        write(&leader(&cluster).await, &format!("INSERT INTO t1 VALUES ({key}, 'a')")).await.unwrap();
        let node = cluster.others(leader(&cluster).await.status().node)[0];
        cluster.stop(node);
        std::fs::remove_dir_all(cluster.data_dir(node)).unwrap();
        cluster.start(node);
        assert!(cluster.hosts[&node].note_missing(GROUP));
        let lost = cluster.replica(node);
        let mut status = lost.watch();
        let told = status.wait_for(|status| status.stopped.as_deref() == Some("its files are gone"));
        tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
        assert!(lost.snapshot_after(Session, LogIndex(0), soon()).await.is_err());
        write(&leader(&cluster).await, &format!("INSERT INTO t1 VALUES ({}, 'b')", key + 1)).await.unwrap();
        change(&cluster, &[1, 2, 3], Some(node.0)).await;
        assert_eq!(assert_equal(&mut cluster, &[1, 2, 3]).await, key + 2);
        assert_eq!(cluster.replica(node).status().stopped, None);
    }
}

#[tokio::test]
async fn a_member_that_is_made_anew_waits_for_nothing_but_the_end_of_the_one_before() {
    // What is tried again from time to time alone isn't tried again.
    let cluster = Cluster::with(3, |config| config.revive_every = Duration::from_secs(3600));
    found(&cluster, &[1, 2, 3]);
    let leading = leader(&cluster).await;
    write(&leading, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    let rebuilt = cluster.others(leading.status().node)[0];
    // Once more, as the one that was made anew has a tombstone before it.
    for _ in 0..2 {
        let changed = tokio::time::timeout(PATIENCE / 2, change(&cluster, &[1, 2, 3], Some(rebuilt.0))).await;
        assert_eq!(changed, Ok(voters(&[1, 2, 3])));
    }
    write(&leader(&cluster).await, "INSERT INTO t1 VALUES (2, 'b')").await.unwrap();
    assert_eq!(cluster.assert_equal(ROWS).await, "1:a\n2:b");
}

#[tokio::test]
async fn members_are_changed_one_after_the_other() {
    let cluster = Cluster::new(4);
    found(&cluster, &[1, 2, 3]);
    let leading = leader(&cluster).await;
    cluster.network.isolate(NodeId(4), &cluster.nodes);
    // The new one can't be reached, so this one waits.
    let first = tokio::spawn({
        let leading = leading.clone();
        let target = MemberTarget { voters: nodes(&[1, 2, 3, 4]), rebuild: None };
        async move { leading.change_members(target, soon()).await }
    });
    let mut status = leading.watch();
    let begun = status.wait_for(|status| !status.members.learners.is_empty());
    tokio::time::timeout(PATIENCE, begun).await.unwrap().unwrap();
    let target = MemberTarget { voters: nodes(&[1, 2, 3]), rebuild: None };
    let refused = leading.change_members(target.clone(), soon()).await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::OBJECT_IN_USE);
    // Nobody waits for the first any more: the other goes on from where that one stood.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(change(&cluster, &[1, 2, 3], None).await, voters(&[1, 2, 3]));
    for (voters, rebuild) in [(nodes(&[]), None), (nodes(&[1, 2]), Some(NodeId(3))), (nodes(&[0]), None)] {
        let refused = leader(&cluster).await.change_members(MemberTarget { voters, rebuild }, soon()).await;
        assert_eq!(refused.unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    }
}

#[tokio::test]
async fn leadership_is_handed_over_without_an_error_but_the_new_address() {
    let cluster = Cluster::new(3);
    found(&cluster, &[1, 2, 3]);
    leader(&cluster).await;
    let end = Arc::new(AtomicBool::new(false));
    let longest = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8_u64)
        .map(|client| {
            let hosts: Vec<_> = cluster.hosts.values().cloned().collect();
            let (end, longest) = (end.clone(), longest.clone());
            tokio::spawn(async move {
                let replica = |node: NodeId| {
                    hosts.iter().filter_map(|host| host.replica(GROUP)).find(|r| r.status().node == node)
                };
                let mut at = hosts.iter().filter_map(|host| host.replica(GROUP)).next().unwrap();
                let mut count = 0;
                while !end.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    let key = client * 1_000_000 + count;
                    let statement = format!("INSERT INTO t1 VALUES ({key}, 'x')");
                    while let Err(error) = write(&at, &statement).await {
                        match error.retry {
                            Retry::NotLeader(Some(node)) => at = replica(node).unwrap(),
                            Retry::NotLeader(None) | Retry::Later => {
                                changed(hosts.iter().map(|host| host.changed())).await;
                            }
                            _ => panic!("{error:?}"),
                        }
                    }
                    let took = u64::try_from(since.elapsed().as_millis()).unwrap();
                    longest.fetch_max(took, Ordering::Relaxed);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..10 {
        let leading = leader(&cluster).await;
        let to = cluster.others(leading.status().node)[0];
        leading.transfer_leader(to, soon()).await.unwrap();
        assert!(cluster.replica(to).status().role == ReplicaRole::Leader);
    }
    end.store(true, Ordering::Relaxed);
    let mut count = 0;
    for client in clients {
        count += client.await.unwrap();
    }
    let longest = longest.load(Ordering::Relaxed);
    println!("{count} writes, 10 transfers, longest write {longest} ms");
    // The least election timeout is 200 ms here: nobody waited for one.
    assert!(longest < 1_000, "{longest} ms");
    assert_eq!(number(&leader(&cluster).await, Strong, "SELECT count(*) FROM t1").await as u64, count);
}

#[tokio::test]
async fn a_host_that_goes_hands_all_over() {
    let cluster = Cluster::new(3);
    found(&cluster, &[1, 2, 3]);
    let old = leader(&cluster).await;
    let node = old.status().node;
    cluster.hosts[&node].hand_over(soon()).await;
    assert!(!old.is_leader());
    assert_ne!(leader(&cluster).await.status().node, node);
    let error = old.transfer_leader(node, soon()).await.unwrap_err();
    assert!(matches!(error.retry, Retry::NotLeader(Some(_))), "{error:?}");
    let unknown = leader(&cluster).await.transfer_leader(NodeId(9), soon()).await.unwrap_err();
    assert_eq!(unknown.sqlstate, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
}

#[tokio::test]
async fn the_log_is_kept_for_a_named_holder_on_all_replicas() {
    let mut cluster = Cluster::new(3);
    found(&cluster, &[1, 2, 3]);
    let leading = leader(&cluster).await;
    let first = write(&leading, "INSERT INTO t1 VALUES (0, 'a')").await.unwrap().index;
    let first = LogIndex(first.0 + 1);
    leading.hold_log("stream", Some(first), soon()).await.unwrap();
    for key in 1..1500 {
        let statement = format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 500, 'x'))");
        write(&leading, &statement).await.unwrap();
    }
    assert_eq!(assert_equal(&mut cluster, &[1, 2, 3]).await, 1500);
    for node in nodes(&[1, 2, 3]) {
        let holds = cluster.replica(node).status().holds;
        assert_eq!((holds.len(), holds[0].name.as_str(), holds[0].from), (1, "stream", first));
    }
    // What is held can be held again, by whoever; only without any hold it's forgotten.
    leading.hold_log("other", Some(first), soon()).await.unwrap();
    leading.hold_log("stream", None, soon()).await.unwrap();
    leading.hold_log("other", None, soon()).await.unwrap();
    for key in 1500..3500 {
        let statement = format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 500, 'x'))");
        write(&leading, &statement).await.unwrap();
    }
    let refused = leading.hold_log("late", Some(first), soon()).await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    assert!(leading.status().holds.is_empty());
}
