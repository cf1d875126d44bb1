//! A group of one replica: the same path as any other, over one disk.

use crate::cluster::{Cluster, GROUP, number, request, schema, soon, sql, write};
use bytes::Bytes;
use proto::services::Consistency::{Eventual, Session, Strong};
use proto::services::{RaftMessage, RaftService};
use proto::{GroupId, NodeId, Retry, SqlState};
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use replica::{Overlay, Rehearsal, Stage, Write, note};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT UNIQUE) STRICT";

#[tokio::test]
async fn what_was_written_is_read() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let written = write(&replica, "INSERT INTO t1 VALUES (1, 'a'), (2, 'b')").await.unwrap();
    assert_eq!(written.output.as_ref(), b"2");
    assert!(!written.repeated);
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 2);
    let snapshot = replica.snapshot_after(Session, written.index, soon()).await.unwrap();
    assert_eq!(snapshot.position(), written.index);
}

#[tokio::test]
async fn a_failed_write_undoes_itself_alone() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let writes = (0..50).map(|i| {
        let key = i / 2;
        let replica = replica.clone();
        async move { write(&replica, &format!("INSERT INTO t1 VALUES ({key}, 'v{key}')")).await }
    });
    let results = futures::future::join_all(writes).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 25);
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 25);
}

#[tokio::test]
async fn open_transactions_and_writes_go_on_side_by_side() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let transactions = (0..4).map(|transaction| {
        let replica = replica.clone();
        tokio::spawn(async move {
            let overlay = Overlay::new();
            for row in 0..50 {
                let run = Box::new(move |stage: &Stage<'_>| {
                    let key = transaction * 1000 + row;
                    let count = || -> rusqlite::Result<i64> {
                        stage.execute("INSERT INTO t1 (c1) VALUES (?1)", [key])?;
                        let sql = "SELECT count(*) FROM t1 WHERE c1 / 1000 = ?1";
                        stage.query_row(sql, [transaction], |row| row.get(0))
                    };
                    count().map(|count| count.to_string().into()).map_err(dialect::sqlite::error)
                });
                let rehearsal = Rehearsal { overlay: overlay.clone(), bare: false, deadline: soon(), run };
                let seen = replica.rehearse(rehearsal).await.unwrap();
                assert_eq!(seen.output, (row + 1).to_string());
                let key = 10_000 + transaction * 1000 + row;
                write(&replica, &format!("INSERT INTO t1 (c1) VALUES ({key})")).await.unwrap();
            }
            let commit = Write {
                run: Box::new(move |stage| stage.apply(&overlay.changeset()?).map(|()| Bytes::new())),
                ..sql("")
            };
            replica.write(commit).await.unwrap();
        })
    });
    for transaction in futures::future::join_all(transactions).await {
        transaction.unwrap();
    }
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 400);
}

#[tokio::test]
async fn a_snapshot_stays_as_it_was() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    write(&replica, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    let before = replica.snapshot(Strong, soon()).await.unwrap();
    write(&replica, "INSERT INTO t1 VALUES (2, 'b')").await.unwrap();
    let count: i64 = before.connection().query_row("SELECT count(*) FROM t1", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
    assert_eq!(number(&replica, Eventual, "SELECT count(*) FROM t1").await, 2);
}

#[tokio::test]
async fn a_repeated_request_is_answered_once() {
    let mut cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let named = |key: u64, sequence: u64, settled: u64| {
        let mut write = sql(&format!("INSERT INTO t1 VALUES ({key}, 'x{key}')"));
        write.request = Some(request(sequence));
        write.settled = settled;
        write
    };
    let replica = cluster.leader().await;
    let first = replica.write(named(1, 5, 1)).await.unwrap();
    let again = replica.write(named(100, 5, 1)).await.unwrap();
    assert!(again.repeated && again.output == first.output && again.index >= first.index);
    // At once, in one batch.
    let (a, b) = tokio::join!(replica.write(named(2, 6, 1)), replica.write(named(200, 6, 1)));
    assert!(a.unwrap().repeated != b.unwrap().repeated);
    drop(replica);
    cluster.stop(NodeId(1));
    cluster.start(NodeId(1));
    let replica = cluster.leader().await;
    assert!(replica.write(named(101, 5, 1)).await.unwrap().repeated);
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 2);
    // What is settled is forgotten, and refused rather than run again.
    replica.write(named(3, 1000, 999)).await.unwrap();
    let refused = replica.write(named(102, 5, 1)).await.unwrap_err();
    assert_eq!((refused.sqlstate, refused.retry), (SqlState::TRANSACTION_RESOLUTION_UNKNOWN, Retry::Never));
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 3);
}

#[tokio::test]
async fn a_schema_entry_is_applied_once_or_answers_its_error() {
    let cluster = Cluster::new(1);
    cluster.create(&[]);
    let replica = cluster.leader().await;
    let index = schema(&replica, 1, &[TABLE]).await.unwrap();
    assert_eq!(schema(&replica, 1, &[TABLE]).await.unwrap(), index);
    let failed = schema(&replica, 2, &["CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)", TABLE]).await.unwrap_err();
    assert_eq!(failed.retry, Retry::Never);
    assert_eq!(schema(&replica, 2, &[]).await.unwrap_err(), failed);
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 't%' AND type = 'table'";
    assert_eq!(number(&replica, Strong, tables).await, 1);
    let snapshot = replica.snapshot(Strong, soon()).await.unwrap();
    assert_eq!(note(snapshot.connection(), "schema").unwrap().unwrap().as_ref(), b"1");
    // Rows of such tables would be missing in changesets.
    for bad in ["CREATE TABLE t3 (c1 INT)", "CREATE TABLE t3 (c1 TEXT PRIMARY KEY)"] {
        let refused = schema(&replica, 3 + bad.len() as u64, &[bad]).await.unwrap_err();
        assert_eq!(refused.sqlstate, SqlState::INVALID_TABLE_DEFINITION);
    }
}

#[tokio::test]
async fn a_write_changes_rows_and_nothing_else() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    write(&replica, "INSERT INTO t1 VALUES (0, 'z')").await.unwrap();
    for denied in [
        "CREATE TABLE t9 (c1 INTEGER PRIMARY KEY)",
        "DROP TABLE t1",
        "COMMIT",
        "PRAGMA user_version = 7",
        "UPDATE replica_state SET applied = 0",
        "DELETE FROM replica_requests",
        "RELEASE replica_write",
    ] {
        assert!(write(&replica, denied).await.is_err(), "{denied}");
    }
    write(&replica, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 2);
}

#[tokio::test]
async fn too_big_a_transaction_is_refused() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let refused =
        write(&replica, "INSERT INTO t1 VALUES (1, printf('%.*c', 1100000, 'x'))").await.unwrap_err();
    assert_eq!(refused.sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 0);
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_a_crash() {
    let mut cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let node = NodeId(1);
    let replica = cluster.leader().await;
    for i in 0..200 {
        write(&replica, &format!("INSERT INTO t1 VALUES ({i}, printf('%.*c{i}', 2000, 'x'))")).await.unwrap();
    }
    // A crash: the files as they are at this moment, without a clean end.
    let image = tempfile::tempdir().unwrap();
    copy(&cluster.data_dir(node), image.path());
    drop(replica);
    cluster.stop(node);
    cluster.start(node);
    assert_eq!(number(&cluster.leader().await, Strong, "SELECT count(*) FROM t1").await, 200);
    cluster.stop(node);

    // The same, with the database as it was after its last checkpoint: the log replays the rest.
    for lose_wal in [false, true] {
        std::fs::remove_dir_all(cluster.data_dir(node)).unwrap();
        copy(image.path(), &cluster.data_dir(node));
        if lose_wal {
            let group = cluster.data_dir(node).join("groups").join(GROUP.to_string());
            std::fs::write(group.join("replica.sqlite-wal"), b"").unwrap();
        }
        cluster.start(node);
        let replica = cluster.leader().await;
        assert_eq!(number(&replica, Strong, "SELECT count(*) FROM t1").await, 200);
        write(&replica, "DELETE FROM t1 WHERE c1 = 0").await.unwrap();
        drop(replica);
        cluster.stop(node);
    }
}

#[tokio::test]
async fn a_log_that_lost_what_was_applied_stops_the_replica() {
    let mut cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let node = NodeId(1);
    write(&cluster.leader().await, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    cluster.stop(node);
    std::fs::remove_dir_all(cluster.data_dir(node).join("log")).unwrap();
    cluster.start(node);
    let replica = cluster.replica(node);
    let why = replica.status().stopped.unwrap();
    assert!(why.contains("log") && why.contains("ends at 0"), "{why}");
    assert!(write(&replica, "INSERT INTO t1 VALUES (2, 'b')").await.is_err());
    // The node goes on.
    cluster.hosts[&node].create(GroupId(8), &[node], &[]).unwrap();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_readers_do_not_let_the_wal_grow() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let (done, ended) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (replica, ended) = (replica.clone(), ended.clone());
            tokio::spawn(async move {
                while !*ended.borrow() {
                    let snapshot = replica.snapshot(Eventual, soon()).await.unwrap();
                    for _ in 0..3 {
                        snapshot
                            .connection()
                            .query_row("SELECT sum(length(c2)) FROM t1", [], |_| Ok(()))
                            .unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    let wal = cluster.data_dir(NodeId(1)).join("groups").join(GROUP.to_string()).join("replica.sqlite-wal");
    let mut longest = 0;
    for i in 0..200 {
        write(&replica, &format!("INSERT INTO t1 VALUES ({i}, hex(randomblob(5000)))")).await.unwrap();
        longest = longest.max(std::fs::metadata(&wal).unwrap().len());
    }
    done.send(true).unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    // 200 rows of 10 kB and their pages are 2.5 MB and more; the cluster's checkpoints are due at 64 KiB.
    assert!(longest < 1 << 20, "{longest}");
}

#[tokio::test]
async fn a_deep_expression_is_run_or_refused() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    for depth in [900, 9_900, 100_000] {
        let sum = "1+".repeat(depth);
        let nested = format!("{}1{}", "abs(".repeat(depth), ")".repeat(depth));
        for expression in [format!("{sum}1"), nested] {
            // Either is fine, but for a crash.
            let _ = write(&replica, &format!("INSERT INTO t1 (c1) VALUES ({expression})")).await;
        }
    }
    write(&replica, "INSERT OR REPLACE INTO t1 VALUES (1, 'still here')").await.unwrap();
}

#[tokio::test]
async fn writes_that_were_given_up_do_not_gather() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let busy = Write {
        run: Box::new(move |_| {
            begun.send(()).unwrap();
            released.recv().unwrap();
            Ok(Bytes::new())
        }),
        ..sql("")
    };
    let busy = tokio::spawn({
        let replica = replica.clone();
        async move { replica.write(busy).await }
    });
    begins.await.unwrap();
    let alive = std::sync::Arc::new(());
    for _ in 0..3_000 {
        let held = alive.clone();
        let run = Box::new(move |_: &Stage<'_>| {
            drop(held);
            Ok(Bytes::new())
        });
        let late = Write { run, deadline: std::time::Instant::now(), ..sql("") };
        assert_eq!(replica.write(late).await.unwrap_err().retry, Retry::Later);
    }
    let waiting = std::sync::Arc::strong_count(&alive) - 1;
    assert!(waiting <= 1024, "{waiting}");
    release.send(()).unwrap();
    busy.await.unwrap().unwrap();
    write(&replica, "INSERT INTO t1 (c1) VALUES (1)").await.unwrap();
}

#[tokio::test]
async fn what_panics_in_one_groups_raft_stops_that_group_alone() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let other = GroupId(8);
    cluster.hosts[&NodeId(1)].create(other, &[NodeId(1)], &[TABLE.to_owned()]).unwrap();
    let replica = cluster.leader().await;
    let stopped = cluster.hosts[&NodeId(1)].replica(other).unwrap();
    stopped.watch().wait_for(|status| status.applied.0 >= 2).await.unwrap();
    let term = stopped.status().term.0;
    // raft-rs panics when it's sent an entry that doesn't follow the one before.
    let mut message = Message { from: 2, to: 1, term: 99, index: 2, log_term: term, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    message.set_entries(vec![Entry { index: 50, term: 98, ..Entry::default() }].into());
    let mut body = vec![0];
    message.write_to_vec(&mut body).unwrap();
    cluster.hosts[&NodeId(1)].receive(NodeId(2), vec![RaftMessage { group: other, body: body.into() }]);
    let status = stopped.watch().wait_for(|status| status.stopped.is_some()).await.unwrap().clone();
    assert!(status.stopped.unwrap().contains("panicked"));
    write(&replica, "INSERT INTO t1 (c1) VALUES (1)").await.unwrap();
}
