//! What a node's replicas are told once, at their start.

use proto::NodeId;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a [`crate::Host`].
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Where its files live: `log/` is the shared Raft log, `groups/<id>/` a replica's database.
    pub data_dir: PathBuf,
    /// The unit of Raft's time.
    pub tick: Duration,
    /// A follower that heard nothing for this many ticks (up to twice as many, by lot) asks for votes.
    pub election_ticks: u32,
    /// A leader sends a heartbeat every so many ticks. Less than `election_ticks`.
    pub heartbeat_ticks: u32,
    /// A group that has had nothing to do for this many ticks sleeps: its members exchange nothing until it is wanted.
    pub sleep_ticks: u32,
    /// What election timeouts are drawn from, together with replica and term.
    pub seed: u64,
    /// How many snapshots of one replica may be open at once; more wait.
    pub max_snapshots: usize,
    /// How many writes to one replica may be under way at once; more wait.
    pub max_writes: usize,
    /// How many bytes one transaction may put into the log. More is refused with 54000. Less than the longest message that
    /// travels between nodes (64 MiB), else its entry would never arrive.
    pub max_transaction_bytes: usize,
    /// How many bytes an open transaction may have changed whose changes may be staged in the database. More is refused with
    /// 54000.
    pub max_staged_bytes: u64,
    /// A batch that has this many bytes takes no further transaction.
    pub max_batch_bytes: usize,
    /// The writer checkpoints a database whose WAL has grown past this many bytes.
    pub checkpoint_bytes: u64,
    /// Past this many bytes of WAL, new snapshots wait for a moment so that it can be emptied.
    pub hold_bytes: u64,
    /// How long they, and the writers, wait at most; up to four times as long when the WAL is as many times too long.
    pub hold_snapshots: Duration,
    /// Past this many bytes of WAL, snapshots that are open for longer than [`Self::end_reads_after`] and keep it from
    /// being emptied are ended with 72000.
    pub end_reads_bytes: u64,
    /// How long a snapshot may be open whatever the WAL does.
    pub end_reads_after: Duration,
    /// For how long the results of a router's requests are remembered after it has fallen silent. What it repeats later
    /// is refused; so it must be more than a router goes on asking.
    pub remember_requests: Duration,
    /// How often a leader has all replicas of its group hash their tables, if anything was written since. The hashes are
    /// in their statuses.
    pub check_every: Duration,
    /// How many bytes of tables a node hashes in a second, over all its replicas.
    pub check_bytes_per_second: u64,
    /// How many bytes of an image travel at once; a megabyte at most.
    pub image_chunk_bytes: u32,
    /// How many bytes of images this node sends in a second, so that the network and the others' disks have time for
    /// other things.
    pub image_bytes_per_second: u64,
    /// What stopped for a reason that can pass (a full disk, an I/O error) is opened again as soon as its disk takes
    /// writes, which is tried this often.
    pub revive_every: Duration,
    /// So many bytes of each group's log are kept for members that lack them; those that lack more get an image.
    pub log_keep_bytes: u64,
    /// The log is cut when that frees so many entries, or [`Self::log_keep_bytes`]. Tests choose few.
    pub log_cut_entries: u64,
    /// A follower applies what is committed no sooner than so long after it came: a time between these, by lot. For drills
    /// and tests. A leader never lags.
    pub apply_lag: Option<(Duration, Duration)>,
    /// Each log file's size. Tests choose small ones.
    pub log_file_bytes: u64,
}

impl Config {
    /// The defaults: elections after one to two seconds of silence, 48 MiB per transaction.
    pub fn new(node: NodeId, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            data_dir: data_dir.into(),
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 2,
            sleep_ticks: 30,
            seed: node.0,
            max_snapshots: 256,
            max_writes: 1024,
            max_transaction_bytes: 48 << 20,
            max_staged_bytes: 16 << 30,
            max_batch_bytes: 1 << 20,
            checkpoint_bytes: 8 << 20,
            hold_bytes: 16 << 20,
            hold_snapshots: Duration::from_millis(50),
            end_reads_bytes: 48 << 20,
            end_reads_after: Duration::from_secs(10),
            remember_requests: Duration::from_secs(3600),
            check_every: Duration::from_secs(600),
            check_bytes_per_second: 64 << 20,
            image_chunk_bytes: 256 << 10,
            image_bytes_per_second: 128 << 20,
            revive_every: Duration::from_secs(5),
            log_keep_bytes: 64 << 20,
            log_cut_entries: 1024,
            apply_lag: None,
            log_file_bytes: 32 << 20,
        }
    }
}
