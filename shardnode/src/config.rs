//! The settings of a shardnode.

use proto::NodeId;
use proto::machine::Machine;
use std::time::Duration;

/// The settings of a [`crate::ShardNode`].
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// How many reads that aren't lookups may run at once; more wait.
    pub readers: usize,
    /// How many of them may have begun and not ended, those included that wait for their client; more wait.
    pub streams: usize,
    /// A batch of a streamed result that has this many bytes is sent.
    pub batch_bytes: usize,
    /// A batch of a streamed result that has this many rows is sent.
    pub batch_rows: u32,
    /// How many bytes of rows a write may return, or a query that runs within its transaction's changes. More is refused
    /// with 54000.
    pub returning_bytes: usize,
    /// How many transactions may be open on one shard. More are refused with 53300.
    pub max_branches: usize,
    /// How many statements may wait for locks on one shard. More are refused with 53200.
    pub max_waiting: usize,
    /// How many locks may be held on one shard. More are refused with 53200.
    pub max_locks: usize,
    /// How many more of those may be held there that a transaction has beyond its first ten thousand, and that take some
    /// fifteen bytes each. More are refused with 53200.
    pub max_hashed_locks: usize,
    /// A transaction of which the shard has heard nothing for so long, and whose router the node hasn't heard for so long
    /// either, is rolled back, unless it is prepared: its router is gone.
    pub router_silence: Duration,
    /// What a transaction has changed on a shard is written into the shard's database as soon as so many bytes of it are
    /// in memory.
    pub stage_bytes: usize,
    /// How long a schema entry may wait to be applied before its caller is told to ask again.
    pub schema_timeout: Duration,
    /// How many cuts there may be on one shard, but for those that are kept. More are asked to come again.
    pub max_cuts: usize,
    /// How many cuts may be kept on one shard, for REPEATABLE READ. More are refused with 53300.
    pub max_kept_cuts: usize,
    /// How long a cut may withhold what it withholds. Past it, its reader begins anew.
    pub cut_timeout: Duration,
    /// How long the snapshot of a transaction that only reads (REPEATABLE READ) is kept after its last statement.
    pub kept_cut_timeout: Duration,
    /// Where the time of day and threads come from.
    pub machine: Machine,
}

impl Config {
    /// The defaults: two readers for each processor, batches of 256 KiB or 1000 rows.
    pub fn new(node: NodeId) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            node,
            readers: (2 * processors).max(4),
            streams: 256,
            batch_bytes: 256 << 10,
            batch_rows: 1000,
            returning_bytes: 4 << 20,
            max_branches: 10_000,
            max_waiting: 10_000,
            max_locks: 4_000_000,
            max_hashed_locks: 16_000_000,
            router_silence: Duration::from_secs(6),
            stage_bytes: 4 << 20,
            schema_timeout: Duration::from_secs(60),
            max_cuts: 128,
            max_kept_cuts: 64,
            cut_timeout: Duration::from_secs(1),
            kept_cut_timeout: Duration::from_secs(300),
            machine: Machine::default(),
        }
    }
}
