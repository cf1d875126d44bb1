//! Reading the log of what is applied, on whichever replica, whoever leads.

use crate::cluster::{Cluster, GROUP, number, request, schema, soon, sql, write};
use proto::services::Consistency::{Session, Strong};
use proto::{LogIndex, Retry};
use replica::{Config, Content, Logged, Replica, TailError, Write, changes, schema_outcome};
use std::time::Instant;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT NOT NULL) STRICT";

fn short_log(config: &mut Config) {
    config.log_keep_bytes = 16 << 10;
    config.log_cut_entries = 16;
    config.image_chunk_bytes = 8 << 10;
}

/// All entries after one, up to another.
async fn read(replica: &Replica, after: LogIndex, last: LogIndex) -> Vec<Logged> {
    let mut read: Vec<Logged> = Vec::new();
    loop {
        let at = read.last().map_or(after, |entry| entry.index);
        if at >= last {
            read.retain(|entry| entry.index <= last);
            return read;
        }
        let more = replica.entries_after(at, soon()).await.unwrap();
        assert_eq!(more[0].index.0, at.0 + 1, "not the next one");
        read.extend(more);
    }
}

fn named(key: i64) -> Write {
    let mut write = sql(&format!("INSERT INTO t1 VALUES ({key}, 'named')"));
    (write.request, write.settled) = (Some(request(key.cast_unsigned())), 1);
    write
}

/// How many rows and requests they have, and which schema changes.
fn count(entries: &[Logged]) -> (usize, Vec<u64>, Vec<(u64, u32)>) {
    let (mut rows, mut requests, mut steps) = (0, Vec::new(), Vec::new());
    for entry in entries {
        match &entry.content {
            Content::Batch { changesets, answers } => {
                rows += changesets.iter().map(|changeset| changes(changeset).unwrap().len()).sum::<usize>();
                for answer in answers {
                    assert_eq!((answer.output.as_ref(), answer.settled), (b"1".as_ref(), 1));
                    requests.push(answer.request.sequence);
                }
            }
            Content::Schema { id, statements, notes, .. } => {
                assert_eq!((statements.len(), notes[0].0.as_str()), (1, "schema"));
                steps.push(*id);
            }
            Content::Replay { .. } => panic!("nothing was replayed"),
            Content::Nothing => {}
        }
    }
    (rows, requests, steps)
}

#[tokio::test]
async fn all_replicas_give_the_same_entries_whoever_has_led() {
    let mut cluster = Cluster::new(3);
    cluster.create(&[TABLE]);
    let mut leader = cluster.leader().await;
    // Somebody reads at each of them all the while.
    let nodes = cluster.nodes.clone();
    let begin = leader.status().applied;
    let follow = |replica: Replica| {
        tokio::spawn(async move {
            let mut read: Vec<Logged> = Vec::new();
            loop {
                let at = read.last().map_or(begin, |entry| entry.index);
                match replica.entries_after(at, soon()).await {
                    Ok(more) => read.extend(more),
                    Err(TailError::Refused(error)) => return (read, error),
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    let readers: Vec<_> = nodes.iter().map(|node| follow(cluster.replica(*node))).collect();
    let mut key = 0;
    for turn in 0..3 {
        for _ in 0..20 {
            key += 1;
            leader.write(named(key)).await.unwrap();
            write(&leader, &format!("UPDATE t1 SET c2 = 'changed' WHERE c1 = {key}")).await.unwrap();
        }
        schema(&leader, turn, &[&format!("CREATE TABLE u{turn} (c1 INTEGER PRIMARY KEY) STRICT")])
            .await
            .unwrap();
        leader.check(soon()).await.unwrap();
        let next = LogIndex(leader.status().applied.0 + 1);
        leader.hold_log("stream/a", Some(next), soon()).await.unwrap();
        // Two leaders hand over, and the third one's successor isn't asked.
        let node = leader.status().node;
        match turn {
            2 => cluster.stop(node),
            _ => {
                let to = cluster.others(node)[0];
                leader.transfer_leader(to, soon()).await.unwrap();
            }
        }
        let rest: Vec<_> = nodes.iter().copied().filter(|node| cluster.hosts.contains_key(node)).collect();
        leader = cluster.leader_among(&rest).await;
    }
    let last = write(&leader, "INSERT INTO t1 VALUES (0, 'last')").await.unwrap().index;
    let node = nodes.iter().copied().find(|node| !cluster.hosts.contains_key(node)).unwrap();
    cluster.start(node);
    let mut all = Vec::new();
    for node in &nodes {
        all.push(read(&cluster.replica(*node), begin, last).await);
    }
    assert!(all.iter().all(|read| *read == all[0]), "what one replica gives isn't what another does");
    let (rows, requests, steps) = count(&all[0]);
    assert_eq!((rows, steps.as_slice()), (key as usize * 2 + 1, [(0, 1), (1, 1), (2, 1)].as_slice()));
    assert!(requests.into_iter().eq(1..=key.cast_unsigned()));
    // Who goes on at another where one was left has all, too.
    let middle = LogIndex(begin.0 + (last.0 - begin.0) / 2);
    let mut halves = read(&cluster.replica(nodes[0]), begin, middle).await;
    halves.extend(read(&cluster.replica(nodes[1]), middle, last).await);
    assert_eq!(halves, all[0]);
    // Those who read all the while have read the same, until their replicas went.
    for node in &nodes {
        cluster.stop(*node);
    }
    for reader in readers {
        let (read, error) = reader.await.unwrap();
        assert!(matches!(error.retry, Retry::NotLeader(_)), "{error}");
        let same = read.iter().zip(&all[0]).all(|(one, other)| one == other);
        assert!(same && read.len() > all[0].len() / 2, "{} of {} entries", read.len(), all[0].len());
    }
}

#[tokio::test]
async fn what_the_log_has_forgotten_is_refused() {
    let cluster = Cluster::with(3, short_log);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let first = write(&leader, "INSERT INTO t1 VALUES (0, 'a')").await.unwrap().index;
    let before = LogIndex(first.0 - 1);
    let kept = first;
    leader.hold_log("stream/a", Some(LogIndex(kept.0 + 1)), soon()).await.unwrap();
    let fill = async |from: i64| -> LogIndex {
        let mut last = kept;
        for key in from..from + 200 {
            let row = format!("INSERT INTO t1 VALUES ({key}, printf('%.*c', 500, 'x'))");
            last = write(&leader, &row).await.unwrap().index;
        }
        last
    };
    // What is held is there on all.
    let last = fill(1).await;
    for node in &cluster.nodes {
        assert_eq!(read(&cluster.replica(*node), kept, last).await.len() as u64, last.0 - kept.0);
    }
    // One is away for longer than the log is kept, and gets an image.
    let away = cluster.others(leader.status().node)[0];
    cluster.network.isolate(away, &cluster.nodes);
    leader.hold_log("stream/a", None, soon()).await.unwrap();
    let mut from = 201;
    let patience = soon();
    loop {
        let last = fill(from).await;
        from += 200;
        match leader.entries_after(before, soon()).await {
            Ok(_) => assert!(Instant::now() < patience, "the log is never cut"),
            Err(TailError::Forgotten { after, oldest }) => {
                assert!(after == before && oldest > before && oldest < last, "{oldest}");
                let (entries, _, _) = count(&read(&leader, oldest, last).await);
                assert!(entries > 0);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let replica = cluster.replica(away);
    let behind = replica.status().applied;
    let waiting = tokio::spawn({
        let replica = replica.clone();
        async move { replica.entries_after(LogIndex(behind.0 + 1), soon()).await }
    });
    let last = fill(from).await;
    cluster.network.heal();
    drop(replica.snapshot_after(Session, last, soon()).await.unwrap());
    assert!(cluster.network.image_bytes() > 0);
    // Who has waited there hears it, too.
    for refused in [waiting.await.unwrap(), replica.entries_after(behind, soon()).await] {
        let Err(TailError::Forgotten { oldest, .. }) = refused else { panic!("{refused:?}") };
        assert!(oldest > behind);
        read(&replica, oldest, last).await;
    }
}

#[tokio::test]
async fn what_a_schema_entry_came_to_is_there_when_it_is_read() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let begin = leader.status().applied;
    let index = "CREATE INDEX i1 ON t1 (c2)";
    let ran = schema(&leader, 1, &[index]).await.unwrap();
    let refused = schema(&leader, 2, &[index]).await.unwrap_err();
    assert_eq!(schema(&leader, 1, &[index]).await.unwrap(), ran, "repeated");
    let last = write(&leader, "INSERT INTO t1 VALUES (0, 'a')").await.unwrap().index;
    let steps: Vec<_> = read(&leader, begin, last)
        .await
        .into_iter()
        .filter_map(|entry| match entry.content {
            Content::Schema { id, .. } => Some((entry.index, id)),
            _ => None,
        })
        .collect();
    assert_eq!(steps[0], (ran, (1, 1)));
    let snapshot = leader.snapshot(Strong, soon()).await.unwrap();
    let outcome = |id| schema_outcome(snapshot.connection(), id).unwrap();
    assert_eq!(outcome((1, 1)), Some((ran, None)));
    assert_eq!(outcome((2, 1)), Some((steps[1].0, Some(refused))));
    assert_eq!(outcome((3, 1)), None);
    assert!(steps.len() == 3 && steps[2].1 == (1, 1) && steps[2].0 > ran, "it was passed over there");
}

#[tokio::test]
async fn a_removed_replica_gives_no_entries() {
    let cluster = Cluster::new(1);
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let last = write(&leader, "INSERT INTO t1 VALUES (0, 'a')").await.unwrap().index;
    let waiting = tokio::spawn({
        let leader = leader.clone();
        async move { leader.entries_after(LogIndex(last.0 + 1), soon()).await }
    });
    assert_eq!(number(&leader, Strong, "SELECT count(*) FROM t1").await, 1);
    cluster.hosts[&cluster.nodes[0]].remove(GROUP).unwrap();
    // Who waits hears it once the log has nothing of it any more.
    for refused in [waiting.await.unwrap(), leader.entries_after(LogIndex(last.0 - 1), soon()).await] {
        assert!(matches!(refused, Err(TailError::Refused(_))), "{refused:?}");
    }
}
