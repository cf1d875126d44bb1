//! Disks that fill up, fail and lie: one node's replicas stop and say why, the group goes on, and they come back.

use crate::cluster::{Cluster, GROUP, PATIENCE, number, request, soon, sql, write};
use proto::services::Consistency::{Eventual, Strong};
use proto::services::{ReplicaRole, ReplicaStatus};
use proto::{GroupId, NodeId, Retry};
use replica::MemberTarget;
use replica::simulation::Condition;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT";
const ROWS: &str = "SELECT c1 || ':' || length(c2) FROM t1 ORDER BY c1";

fn three() -> Cluster {
    Cluster::with(3, |config| config.revive_every = Duration::from_millis(50))
}

/// Inserts a row as a router does: at whoever leads, again and again under one name. Nothing but "not here", "not now"
/// and "perhaps" may be heard meanwhile.
async fn insert(cluster: &Cluster, number: u64, bytes: usize) {
    let until = Instant::now() + PATIENCE;
    loop {
        for node in &cluster.nodes {
            let text = "x".repeat(bytes);
            let mut write = sql(&format!("INSERT INTO t1 VALUES ({number}, '{text}')"));
            write.request = Some(request(number));
            match cluster.replica(*node).write(write).await {
                Ok(_) => return,
                Err(error) => assert!(
                    matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Unknown),
                    "a client would hear of it: {error:?}"
                ),
            }
        }
        assert!(Instant::now() < until, "no leader: {:?}", cluster.statuses());
        let mut changes = cluster.hosts[&cluster.nodes[0]].changed();
        let _ = tokio::time::timeout(Duration::from_millis(5), changes.changed()).await;
    }
}

async fn wait(cluster: &Cluster, node: NodeId, what: impl FnMut(&ReplicaStatus) -> bool) -> ReplicaStatus {
    let mut status = cluster.replica(node).watch();
    let reached = tokio::time::timeout(PATIENCE, status.wait_for(what)).await;
    reached.unwrap_or_else(|_| panic!("{:?}", cluster.statuses())).unwrap().clone()
}

async fn stopped(cluster: &Cluster, node: NodeId) -> String {
    wait(cluster, node, |status| status.stopped.is_some()).await.stopped.unwrap()
}

#[tokio::test]
async fn a_log_that_takes_nothing_stops_its_node_and_no_group() {
    for condition in [Condition::Full, Condition::Unsyncable] {
        for leads in [true, false] {
            let cluster = three();
            cluster.create(&[TABLE]);
            let leader = cluster.leader().await.status().node;
            let node = if leads { leader } else { cluster.others(leader)[0] };
            insert(&cluster, 1, 10).await;
            cluster.disks[&node].set(condition);
            for number in 2..=30 {
                insert(&cluster, number, 1000).await;
            }
            let why = stopped(&cluster, node).await;
            assert!(why.contains(".raftlog: it could not be "), "{why}");
            let others = cluster.others(node);
            assert!(others.iter().all(|other| cluster.replica(*other).status().stopped.is_none()));
            // It isn't opened again before the disk is better.
            assert!(cluster.replica(node).status().stopped.is_some());
            let handle = cluster.replica(node);
            assert!(matches!(
                handle.snapshot(Eventual, soon()).await.err().unwrap().retry,
                Retry::NotLeader(_)
            ));

            cluster.disks[&node].set(Condition::Sound);
            wait(&cluster, node, |status| status.stopped.is_none() && status.leader.is_some()).await;
            assert!(cluster.assert_equal(ROWS).await.ends_with("30:1000"));
            // Handles from before are good again.
            assert_eq!(number(&handle, Eventual, "SELECT count(*) FROM t1").await, 30);
            insert(&cluster, 31, 10).await;
        }
    }
}

#[tokio::test]
async fn a_leader_that_stops_has_another_lead_at_once() {
    // Nobody would miss it for a minute.
    let cluster = Cluster::with(3, |config| {
        config.election_ticks = 3000;
        config.heartbeat_ticks = 2;
    });
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await.status().node;
    insert(&cluster, 1, 10).await;
    cluster.disks[&leader].set(Condition::Full);
    let begun = Instant::now();
    insert(&cluster, 2, 10).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_ne!(cluster.leader_among(&cluster.others(leader)).await.status().node, leader);
}

#[tokio::test]
async fn a_leader_whose_disk_is_full_answers_no_write_that_is_not_durable() {
    let cluster = three();
    cluster.create(&[TABLE]);
    let leader = cluster.leader().await;
    let node = leader.status().node;
    for other in cluster.others(node) {
        cluster.disks[&other].set(Condition::Full);
    }
    cluster.disks[&node].set(Condition::Full);
    let mut alone = sql("INSERT INTO t1 VALUES (1, 'a')");
    alone.deadline = Instant::now() + Duration::from_secs(2);
    let error = leader.write(alone).await.unwrap_err();
    assert_ne!(error.retry, Retry::Never);
    for node in &cluster.nodes {
        cluster.disks[node].set(Condition::Sound);
        wait(&cluster, *node, |status| status.stopped.is_none()).await;
    }
    insert(&cluster, 2, 10).await;
    assert!(cluster.assert_equal(ROWS).await.contains("2:10"));
}

fn log_file(directory: &Path) -> PathBuf {
    directory.join("log/0000000000000001.raftlog")
}

#[tokio::test]
async fn a_damaged_log_stops_its_replicas_with_the_files_name() {
    let mut cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=20 {
        insert(&cluster, number, 100).await;
    }
    let node = cluster.others(cluster.leader().await.status().node)[0];
    cluster.stop(node);
    let path = log_file(&cluster.data_dir(node));
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 4;
    fs::write(&path, bytes).unwrap();
    cluster.start(node);
    let why = stopped(&cluster, node).await;
    assert!(why.contains("0000000000000001.raftlog: ") && why.contains("damaged at byte"), "{why}");
    insert(&cluster, 21, 100).await;
}

#[tokio::test]
async fn a_log_that_was_lost_stops_the_replica() {
    let mut cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=5 {
        insert(&cluster, number, 100).await;
    }
    let node = cluster.others(cluster.leader().await.status().node)[0];
    cluster.assert_equal(ROWS).await;
    cluster.stop(node);
    fs::remove_dir_all(cluster.data_dir(node).join("log")).unwrap();
    cluster.start(node);
    let why = stopped(&cluster, node).await;
    assert!(why.contains("/log: group 7 ends at 0, but"), "{why}");
    insert(&cluster, 6, 100).await;
}

fn copy(source: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let to = target.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// It voted and acknowledged what it knows nothing of. raft-rs panics when it hears of that.
#[tokio::test]
async fn a_member_from_a_backup_stops_alone() {
    // An election would be an entry of the quiet group, too.
    let mut cluster = Cluster::with(3, |config| config.election_ticks = 150);
    cluster.create(&[TABLE]);
    let quiet = GroupId(8);
    for host in cluster.hosts.values() {
        host.create(quiet, &cluster.nodes, &[TABLE.to_owned()]).unwrap();
    }
    for number in 1..=5 {
        insert(&cluster, number, 100).await;
    }
    let beside = cluster.hosts[&cluster.nodes[0]].replica(quiet).unwrap();
    let mut status = beside.watch();
    let known = status.wait_for(|status| status.leader.is_some());
    tokio::time::timeout(PATIENCE, known).await.unwrap().unwrap();
    // Leads neither, so that nothing happens in the quiet group.
    let leads = |group: GroupId| {
        let replicas = cluster.hosts.values().filter_map(move |host| host.replica(group));
        replicas.filter(|replica| replica.is_leader()).map(|replica| replica.status().node).next()
    };
    let (one, other) = (cluster.leader().await.status().node, leads(quiet));
    let node = cluster.others(one).into_iter().find(|node| Some(*node) != other).unwrap();
    cluster.assert_equal(ROWS).await;
    let backup = tempfile::tempdir().unwrap();
    cluster.stop(node);
    copy(&cluster.data_dir(node), backup.path());
    cluster.start(node);
    for number in 6..=50 {
        insert(&cluster, number, 100).await;
    }
    cluster.assert_equal(ROWS).await;
    cluster.stop(node);
    fs::remove_dir_all(cluster.data_dir(node)).unwrap();
    copy(backup.path(), &cluster.data_dir(node));
    cluster.start(node);
    let why = stopped(&cluster, node).await;
    assert!(why.contains("its log ends at"), "{why}");
    let beside = cluster.hosts[&node].replica(quiet).unwrap();
    let mut status = beside.watch();
    let leads = status.wait_for(|status| status.leader.is_some());
    let led = tokio::time::timeout(PATIENCE, leads).await.is_ok();
    assert!(led && beside.status().stopped.is_none(), "{:?}", cluster.statuses());
    insert(&cluster, 51, 100).await;
}

#[tokio::test]
async fn a_database_that_was_cut_short_stops_the_replica() {
    let mut cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=30 {
        insert(&cluster, number, 4000).await;
    }
    let node = cluster.others(cluster.leader().await.status().node)[0];
    cluster.assert_equal(ROWS).await;
    // A clean end empties the WAL.
    cluster.stop(node);
    let path = cluster.data_dir(node).join(format!("groups/{GROUP}/replica.sqlite"));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(16384).unwrap();
    drop(file);
    cluster.start(node);
    let why = stopped(&cluster, node).await;
    assert!(why.contains("replica.sqlite: ") && why.contains("malformed"), "{why}");
    insert(&cluster, 31, 10).await;
}

/// A small file system, if this machine lets a test mount one.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all that is free.
    fn fill(&self) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        while file.write_all(&[7]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_under_all_of_a_nodes_files() {
    for leads in [true, false] {
        let mut cluster = three();
        let small = cluster.nodes[0];
        cluster.stop(small);
        let Some(mount) = Small::mount(&cluster.data_dir(small), 32) else {
            eprintln!("SKIPPED: this machine doesn't let a test mount a file system");
            return;
        };
        cluster.start(small);
        cluster.create(&[TABLE]);
        let mut last = 0;
        // Until the small node has the role that is to be tried.
        while (cluster.leader().await.status().node == small) != leads {
            let leader = cluster.leader().await.status().node;
            cluster.network.isolate(leader, &cluster.nodes);
            cluster.leader_among(&cluster.others(leader)).await;
            cluster.network.heal();
        }
        for _ in 0..3 {
            for _ in 0..10 {
                last += 1;
                insert(&cluster, last, 2000).await;
            }
            mount.fill();
            let mut rounds = 0;
            while cluster.replica(small).status().stopped.is_none() {
                last += 1;
                insert(&cluster, last, 50_000).await;
                rounds += 1;
                assert!(rounds < 500, "it never met the full disk");
            }
            let why = stopped(&cluster, small).await;
            assert!(why.contains(&format!("{}", mount.0.display())), "{why}");
            mount.free();
            wait(&cluster, small, |status| status.stopped.is_none() && status.leader.is_some()).await;
        }
        let rows = cluster.assert_equal(ROWS).await;
        assert_eq!(rows.lines().count() as u64, last);
        cluster.stop(small);
    }
}

#[tokio::test]
async fn the_only_replica_comes_back_too() {
    let cluster = Cluster::with(1, |config| config.revive_every = Duration::from_millis(50));
    cluster.create(&[TABLE]);
    let replica = cluster.leader().await;
    write(&replica, "INSERT INTO t1 VALUES (1, 'a')").await.unwrap();
    cluster.disks[&cluster.nodes[0]].set(Condition::Unsyncable);
    let error = write(&replica, "INSERT INTO t1 VALUES (2, 'b')").await.unwrap_err();
    assert_eq!(error.retry, Retry::Unknown);
    cluster.disks[&cluster.nodes[0]].set(Condition::Sound);
    wait(&cluster, cluster.nodes[0], |status| status.role == ReplicaRole::Leader).await;
    write(&replica, "INSERT INTO t1 VALUES (3, 'c')").await.unwrap();
    let rows = number(&replica, Strong, "SELECT count(*) FROM t1").await;
    assert!([2, 3].contains(&rows), "{rows}");
}

/// Spoils the first page of the table in a node's database, as a bad disk does.
fn spoil_table(cluster: &Cluster, node: NodeId, table: &str) {
    let path = cluster.data_dir(node).join(format!("groups/{GROUP}/replica.sqlite"));
    let connection = rusqlite::Connection::open(&path).unwrap();
    let root: usize = connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| row.get::<_, i64>(0))
        .map(|root| usize::try_from(root).unwrap())
        .unwrap();
    drop(connection);
    let mut bytes = fs::read(&path).unwrap();
    bytes[(root - 1) * 4096..][..64].fill(0xee);
    fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_page_is_no_reason_for_a_reader_to_hear_of_it() {
    let mut cluster = three();
    cluster.create(&[TABLE, "CREATE TABLE t2 (c1 INTEGER PRIMARY KEY)"]);
    for number in 1..=3 {
        insert(&cluster, number, 100).await;
    }
    cluster.assert_equal(ROWS).await;
    let node = cluster.nodes[0];
    cluster.stop(node);
    spoil_table(&cluster, node, "t1");
    cluster.start(node);
    // As long as nobody looks there, it does its part, and may even lead.
    for _ in 0..10 {
        let leader = cluster.leader().await.status().node;
        if leader == node {
            break;
        }
        cluster.network.isolate(leader, &cluster.nodes);
        cluster.leader_among(&cluster.others(leader)).await;
        cluster.network.heal();
    }
    let until = Instant::now() + PATIENCE;
    let mut met = false;
    'asked: loop {
        for node in &cluster.nodes {
            let Ok(snapshot) = cluster.replica(*node).snapshot(Strong, soon()).await else { continue };
            let read = snapshot
                .connection()
                .query_row(ROWS, [], |row| row.get::<_, String>(0))
                .map_err(|error| snapshot.explain(dialect::sqlite::error(error)));
            match read {
                Ok(row) => {
                    assert_eq!(row, "1:100");
                    break 'asked;
                }
                Err(error) => {
                    assert_eq!(error.retry, Retry::NotLeader(None), "{error:?}");
                    met = true;
                }
            }
        }
        assert!(Instant::now() < until);
    }
    let why = if met {
        stopped(&cluster, node).await
    } else {
        // It never led; whoever reads there meets it all the same.
        let replica = cluster.replica(node);
        let snapshot = replica.snapshot(Eventual, soon()).await.unwrap();
        snapshot.connection().query_row(ROWS, [], |row| row.get::<_, String>(0)).unwrap_err();
        drop(snapshot);
        stopped(&cluster, node).await
    };
    assert!(why.contains("replica.sqlite: ") && why.contains("malformed"), "{why}");
    insert(&cluster, 4, 100).await;
    // Damage doesn't pass: nobody tries.
    assert!(cluster.replica(node).status().stopped.is_some());
}

#[tokio::test]
async fn a_missing_wal_is_made_up_for_from_the_log() {
    let mut cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=30 {
        insert(&cluster, number, 4000).await;
    }
    cluster.assert_equal(ROWS).await;
    let node = cluster.nodes[1];
    cluster.stop(node);
    let wal = cluster.data_dir(node).join(format!("groups/{GROUP}/replica.sqlite-wal"));
    fs::remove_file(wal).unwrap();
    cluster.start(node);
    insert(&cluster, 31, 10).await;
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn a_database_that_is_cut_short_under_its_readers_ends_nobody_but_itself() {
    let cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=30 {
        insert(&cluster, number, 4000).await;
    }
    let rows = cluster.assert_equal(ROWS).await;
    let node = cluster.others(cluster.leader().await.status().node)[0];
    let replica = cluster.replica(node);
    let path = cluster.data_dir(node).join(format!("groups/{GROUP}/replica.sqlite"));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    // A mapped file would have ended the process here.
    let read = replica.snapshot(Eventual, soon()).await.map(|snapshot| {
        let query = "SELECT sum(length(c2)) FROM t1";
        snapshot.connection().query_row(query, [], |row| row.get::<_, i64>(0))
    });
    match read {
        // All of it was still in the WAL.
        Ok(Ok(sum)) => assert_eq!(sum, 30 * 4000),
        Ok(Err(_)) | Err(_) => {
            let why = stopped(&cluster, node).await;
            assert!(why.contains("replica.sqlite: "), "{why}");
        }
    }
    insert(&cluster, 31, 10).await;
    let leader = cluster.leader_among(&cluster.others(node)).await;
    assert_eq!(number(&leader, Strong, "SELECT count(*) FROM t1").await, 31);
    assert_eq!(rows.lines().count(), 30);
}

/// Has a node's replica made anew, as `shoal replica rebuild` does, and waits until it's as the others.
async fn rebuild(cluster: &Cluster, node: NodeId) {
    let until = Instant::now() + PATIENCE;
    loop {
        let leader = cluster.leader_among(&cluster.others(node)).await;
        let target = MemberTarget { voters: cluster.nodes.clone(), rebuild: Some(node) };
        match leader.change_members(target, soon()).await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < until, "{error:?} {:#?}", cluster.statuses()),
        }
    }
    wait(cluster, node, |status| status.stopped.is_none() && status.leader.is_some()).await;
    cluster.assert_equal(ROWS).await;
}

#[tokio::test]
async fn what_cannot_pass_is_rebuilt() {
    let mut cluster = three();
    cluster.create(&[TABLE]);
    for number in 1..=20 {
        insert(&cluster, number, 100).await;
    }
    let node = cluster.nodes[1];
    let database = |cluster: &Cluster| cluster.data_dir(node).join(format!("groups/{GROUP}/replica.sqlite"));
    type Spoil = fn(&Path, &Path);
    let spoils: [(&str, Spoil); 5] = [
        ("malformed", |_, database| {
            fs::OpenOptions::new().write(true).open(database).unwrap().set_len(8192).unwrap();
        }),
        ("not a database", |_, database| fs::write(database, [7; 20_000]).unwrap()),
        ("ends at 0, but", |log, _| fs::remove_dir_all(log).unwrap()),
        ("damaged at byte", |log, _| {
            // The first file that has more than one record.
            let mut files: Vec<PathBuf> =
                fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.retain(|path| path.extension().is_some_and(|extension| extension == "raftlog"));
            files.sort();
            let path = files.last().unwrap();
            let mut bytes = fs::read(path).unwrap();
            bytes[200] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("damaged at byte", |log, database| {
            let path = log.join("0000000000000001.raftlog");
            let mut bytes = fs::read(&path).unwrap();
            bytes[200] ^= 1;
            fs::write(path, bytes).unwrap();
            fs::write(database, [7; 20_000]).unwrap();
        }),
    ];
    let mut last = 20;
    for (expected, spoil) in spoils {
        cluster.assert_equal(ROWS).await;
        cluster.stop(node);
        spoil(&cluster.data_dir(node).join("log"), &database(&cluster));
        cluster.start(node);
        let why = stopped(&cluster, node).await;
        assert!(why.contains(expected), "{expected}: {why}");
        last += 1;
        insert(&cluster, last, 100).await;
        rebuild(&cluster, node).await;
        // It's a member as any other, also after a restart.
        cluster.stop(node);
        cluster.start(node);
        for _ in 0..20 {
            last += 1;
            insert(&cluster, last, 100).await;
        }
        assert!(cluster.assert_equal(ROWS).await.ends_with(&format!("{last}:100")));
        assert_eq!(cluster.replica(node).status().stopped, None);
    }
}

/// A file system on a device that can run out of blocks: it then fails writes and syncs with EIO, and what it couldn't
/// write it forgets.
struct Device {
    mounted: PathBuf,
    device: String,
    under: Small,
}

fn runs(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Device {
    fn mount(at: &Path, under: &Path) -> Option<Self> {
        let under = Small::mount(under, 16)?;
        let image = under.0.join("image");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        // With a journal it would turn read-only for good.
        runs("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", image.to_str().unwrap()])?;
        let device = runs("losetup", &["--find", "--show", image.to_str().unwrap()])?;
        let device = Self { mounted: at.to_owned(), device, under };
        fs::create_dir_all(at).unwrap();
        runs("mount", &["-o", "errors=continue", &device.device, at.to_str().unwrap()])?;
        Some(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(runs("umount", &["--lazy", self.mounted.to_str().unwrap()]));
        drop(runs("losetup", &["--detach", &self.device]));
    }
}

#[tokio::test]
async fn a_disk_that_fails_for_a_while() {
    let mut cluster = three();
    let node = cluster.nodes[0];
    cluster.stop(node);
    let under = tempfile::tempdir().unwrap();
    let Some(device) = Device::mount(&cluster.data_dir(node), under.path()) else {
        eprintln!("SKIPPED: this machine doesn't let a test mount a device");
        return;
    };
    cluster.start(node);
    cluster.create(&[TABLE]);
    let mut last = 0;
    for _ in 0..20 {
        last += 1;
        insert(&cluster, last, 2000).await;
    }
    device.under.fill();
    while cluster.replica(node).status().stopped.is_none() {
        last += 1;
        insert(&cluster, last, 100_000).await;
        assert!(last < 2000, "it never met the failing disk");
    }
    let why = stopped(&cluster, node).await;
    println!("{why}");
    assert!(why.contains(cluster.data_dir(node).to_str().unwrap()), "{why}");
    for _ in 0..20 {
        last += 1;
        insert(&cluster, last, 2000).await;
    }
    device.under.free();
    let until = Instant::now() + PATIENCE;
    // What it lost of its log may be damage, which it must not come back with: then it is made anew.
    while Instant::now() < until
        && cluster.replica(node).status().applied < cluster.leader().await.status().applied
    {
        let status = cluster.replica(node).status();
        if status.stopped.is_some_and(|why| why.contains("damaged") || why.contains("malformed")) {
            rebuild(&cluster, node).await;
        }
        let mut changes = cluster.hosts[&node].changed();
        let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
    }
    let rows = cluster.assert_equal(ROWS).await;
    assert_eq!(rows.lines().count() as u64, last);
    cluster.stop(node);
}
