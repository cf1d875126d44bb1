//! Copies of a replica's database for a caller, and groups that begin with a database that was made elsewhere.

use crate::cluster::{Cluster, number, request, soon, sql, write};
use proto::services::Consistency::{Eventual, Strong};
use proto::services::ReplicaRole;
use proto::{GroupId, NodeId};
use replica::{Config, Copying, MemberTarget, Replica, ReplicaError, lay_out};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT";
const NEW: GroupId = GroupId(8);

/// 8,000 rows, some 4 MiB.
async fn fill(leader: &Replica) {
    let rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                INSERT INTO t1 SELECT coalesce((SELECT max(c1) FROM t1), 0) + i, printf('%.*c', 500, 'x') FROM n";
    for _ in 0..8 {
        write(leader, rows).await.unwrap();
    }
}

fn finish(copying: &mut Copying) -> usize {
    let mut steps = 1;
    while !copying.step().unwrap() {
        steps += 1;
        let progress = copying.progress();
        assert!(progress.done > 0 && progress.done <= progress.total);
    }
    assert_eq!(copying.progress().done, copying.progress().total);
    steps
}

fn one<T: rusqlite::types::FromSql>(file: &Path, sql: &str) -> T {
    Connection::open(file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_copy_is_one_state_while_a_writer_goes_on() {
    let cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    fill(&leader).await;
    cluster.assert_equal("SELECT count(*) || '' FROM t1").await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (leader, done) = (leader.clone(), done.clone());
        async move {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                // Always two rows, so their number says whether a write was cut in two.
                let two = "INSERT INTO t1 SELECT max(c1) + 1, 'a' FROM t1 UNION ALL SELECT max(c1) + 2, 'b' FROM t1";
                write(&leader, two).await.unwrap();
                count += 1;
            }
            count
        }
    });
    let follower = cluster.replica(cluster.others(leader.status().node)[0]);
    for replica in [&leader, &follower] {
        let target = cluster.data_dir(replica.status().node).join("image-1.sqlite");
        // What an earlier one left that was cut short.
        std::fs::write(target.with_extension("sqlite.part"), "not a database").unwrap();
        let mut copying = replica.copy(&target).unwrap();
        let position = copying.position();
        assert!(!copying.step().unwrap() && !target.exists());
        // Others go on meanwhile: the replica has more, the copy hasn't.
        let later = write(&leader, "INSERT INTO t1 SELECT max(c1) + 1, 'late' FROM t1").await.unwrap().index;
        drop(replica.snapshot_after(Eventual, later, soon()).await.unwrap());
        assert!(finish(&mut copying) > 2 && copying.step().unwrap());
        drop(copying);
        assert!(!target.with_extension("sqlite.part").exists());
        assert_eq!(one::<i64>(&target, "SELECT applied FROM replica_state").cast_unsigned(), position.0);
        assert_eq!(one::<String>(&target, "PRAGMA integrity_check"), "ok");
        let odd = "SELECT count(*) FILTER (WHERE c2 = 'a') - count(*) FILTER (WHERE c2 = 'b') FROM t1";
        assert_eq!(one::<i64>(&target, odd), 0);
        assert!(later > position);
    }
    done.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 0);
}

#[tokio::test]
async fn a_copy_that_is_given_up_or_fails_leaves_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    fill(&leader).await;
    let node = NodeId(1);
    let directory = cluster.data_dir(node).join("copies");
    std::fs::create_dir_all(&directory).unwrap();
    let target = directory.join("image-1.sqlite");
    let mut copying = leader.copy(&target).unwrap();
    copying.step().unwrap();
    drop(copying);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    let nowhere = directory.join("nothing").join("image-1.sqlite");
    assert!(matches!(leader.copy(&nowhere), Err(ReplicaError::Sqlite { .. })));
    // The WAL is emptied again.
    let patience = soon();
    fill(&leader).await;
    while leader.status().wal_bytes > 256 << 10 {
        write(&leader, "UPDATE t1 SET c2 = 'y' WHERE c1 = 1").await.unwrap();
        assert!(Instant::now() < patience, "{} bytes", leader.status().wal_bytes);
    }
    let mut copying = leader.copy(&target).unwrap();
    copying.step().unwrap();
    cluster.stop(node);
    assert!(matches!(copying.step(), Err(ReplicaError::Refused(_))));
    assert!(matches!(leader.copy(&target), Err(ReplicaError::Refused(_))));
    drop(copying);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    drop(leader);
    cluster.start(node);
    let leader = cluster.leader().await;
    assert_eq!(number(&leader, Strong, "SELECT count(*) FROM t1").await, 16_000);
}

fn short_log(config: &mut Config) {
    config.image_chunk_bytes = 8 << 10;
}

#[tokio::test]
async fn a_group_that_was_founded_from_a_file_gets_members() {
    let mut cluster = Cluster::with(3, short_log);
    let first = NodeId(1);
    let file = cluster.data_dir(first).join("shard-8.sqlite");
    {
        let connection = Connection::open(&file).unwrap();
        lay_out(&connection).unwrap();
        connection.execute_batch(TABLE).unwrap();
        connection
            .execute_batch(
                "INSERT INTO t1 VALUES (1, 'copied'), (2, 'copied');
                 INSERT INTO replica_requests VALUES (9, 70, x'746f6c64'); INSERT INTO replica_marks VALUES (9, 64);
                 INSERT INTO replica_notes VALUES ('schema', x'37');",
            )
            .unwrap();
    }
    let leader = cluster.hosts[&first].create_from(NEW, &file).unwrap();
    assert!(!file.exists());
    let mut watch = leader.watch();
    let leads = watch.wait_for(|status| status.role == ReplicaRole::Leader);
    drop(tokio::time::timeout_at(soon().into(), leads).await.unwrap().unwrap());
    let named = |sequence| {
        let mut write = sql("INSERT INTO t1 SELECT max(c1) + 1, 'written' FROM t1");
        (write.request, write.settled) = (Some(request(sequence)), 0);
        write
    };
    // What was answered before is known, and what was settled is, too.
    let again = leader.write(named(70)).await.unwrap();
    assert!(again.repeated && again.output.as_ref() == b"told");
    assert!(leader.write(named(3)).await.is_err());
    assert!(!leader.write(named(71)).await.unwrap().repeated);
    let all = cluster.nodes.clone();
    let members =
        leader.change_members(MemberTarget { voters: all.clone(), rebuild: None }, soon()).await.unwrap();
    assert_eq!(members.voters, all);
    let last = write(&leader, "INSERT INTO t1 VALUES (10, 'last')").await.unwrap().index;
    for node in &all {
        let replica = cluster.hosts[node].replica(NEW).unwrap();
        let snapshot = replica.snapshot_after(Eventual, last, soon()).await.unwrap();
        let sql = "SELECT group_concat(c1 || c2, ' ' ORDER BY c1) FROM t1";
        let rows: String = snapshot.connection().query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, "1copied 2copied 3written 10last");
    }
    let checked = leader.check(soon()).await.unwrap();
    let mut hashes = Vec::new();
    for node in &all {
        let replica = cluster.hosts[node].replica(NEW).unwrap();
        let mut watch = replica.watch();
        let status = watch.wait_for(|status| status.check.is_some_and(|check| check.index == checked));
        hashes.push(tokio::time::timeout_at(soon().into(), status).await.unwrap().unwrap().check);
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
    // The first one isn't needed any more, and founding is once.
    assert!(cluster.hosts[&first].create_from(NEW, &file).unwrap().is(&leader));
    drop(leader);
    cluster.hosts[&first].remove(NEW).unwrap();
    cluster.stop(first);
    cluster.start(first);
    assert!(matches!(cluster.hosts[&first].create_from(NEW, &file), Err(ReplicaError::Invalid(_))));
}
