//! What is going to happen in a run, drawn from its seed before it begins, so that a failing run can be made shorter by
//! taking things out.

use super::clock::SLOWEST;
use super::network::Quality;
use super::random::Random;
use super::trace::{MILLISECOND, SECOND, Time};
use std::collections::BTreeSet;
use std::fmt;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What all chance is drawn from.
    pub seed: u64,
    /// How many members the group begins with, and has again after each change.
    pub nodes: u64,
    /// How many nodes there are beside those.
    pub spares: u64,
    /// How many clients work on it.
    pub clients: usize,
    /// How long faults happen. Then all is healed, and it must go on.
    pub length: Time,
    /// How the replicas are set up.
    pub setup: Setup,
    /// What happens when.
    pub faults: Vec<(Time, Fault)>,
}

/// Settings of replicas that change what can meet what.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// As in `replica::Config`. With few, readers wait for one another.
    pub max_snapshots: usize,
    /// As in `replica::Config`.
    pub max_writes: usize,
    /// As in `replica::Config`.
    pub max_batch_bytes: usize,
    /// As in `replica::Config`.
    pub checkpoint_bytes: u64,
    /// As in `replica::Config`. With little, who was away for long gets an image.
    pub log_keep_bytes: u64,
    /// As in `replica::Config`. With few, the group sleeps whenever its clients think.
    pub sleep_ticks: u32,
    /// How long clients think between two operations at most. Where they think long, the group falls asleep.
    pub think: Time,
    /// A loop that has something to do waits up to this long for its turn.
    pub turn_delay: Time,
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This node.
    Node(u64),
    /// Whoever leads then; this node if nobody does.
    Leader(u64),
}

/// Which messages a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those to and from the node.
    Both,
    /// Those from the node.
    Out,
    /// Those to the node.
    In,
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A node dies, and starts again later.
    Crash(Who, Time),
    /// A node dies while it writes its log, having sent what could be sent before.
    CrashInLog(Who, Time),
    /// A node dies while SQLite writes, at its so-many-th write.
    CrashInFile(Who, u64, Time),
    /// All nodes die.
    CrashAll(Time),
    /// The leader dies and is back after the first time, while messages take up to the last time, so that several ask
    /// for votes at once. Whoever votes for another dies right after it said so, and is back after the second time; so
    /// does, a little later, whoever is elected.
    CrashInVote(Who, Time, Time, Time),
    /// A node isn't run for a while.
    Pause(Who, Time),
    /// A node isn't run for the first time, and its consensus has no turn for the second time after that, while its
    /// engine goes on.
    Stall(Who, Time, Time),
    /// A node is cut off.
    Isolate(Who, Way, Time),
    /// These nodes and the others don't hear each other.
    Split(BTreeSet<u64>, Time),
    /// A link takes long.
    SlowLink(Who, u64, Time, Time),
    /// All links are bad.
    Network(Quality, Time),
    /// A node's disk is full.
    DiskFull(Who, Time),
    /// A node's clock runs at another speed, in thousandths.
    ClockRate(Who, u64),
    /// A node's loops wait long for their turns.
    SlowNode(Who, Time, Time),
    /// The leader hands over to this node. Not a fault, but what faults like to meet.
    Transfer(u64),
    /// These become the group's members, one of them perhaps afresh.
    Members(BTreeSet<u64>, Option<u64>),
    /// All hash their tables, and the hashes must be equal.
    Check,
    /// The log is kept for somebody from where it ends, or for nobody any more.
    Hold(bool),
    /// All of a node's readers are taken for the first time, while it is cut off, and it stays cut off for the second
    /// time after that: reads that it believed it could serve are opened once others lead.
    LateReads(Who, Time, Time),
    /// A node's disks are lost. Its machine comes back as another node, which takes its place in the group.
    DiskLost(Who, Time),
    /// A node dies, and the group's files are gone when it's back. Its member is made anew.
    FilesGone(Who, Time),
    /// A node's log needs so long for a sync.
    SlowDisk(Who, Time, Time),
    /// A node hands over what it leads, is shut down as it should be, and starts again.
    Restart(Who, Time),
    /// No client begins anything.
    Quiet(Time),
}

/// A fault's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Fault::Crash`].
    Crash,
    /// [`Fault::CrashInLog`].
    CrashInLog,
    /// [`Fault::CrashInFile`].
    CrashInFile,
    /// [`Fault::CrashAll`].
    CrashAll,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Isolate`], both ways.
    Isolate,
    /// [`Fault::Isolate`], one way.
    OneWay,
    /// [`Fault::Split`].
    Split,
    /// [`Fault::SlowLink`].
    SlowLink,
    /// [`Fault::Network`].
    Network,
    /// [`Fault::DiskFull`].
    DiskFull,
    /// [`Fault::ClockRate`].
    ClockRate,
    /// [`Fault::SlowNode`].
    SlowNode,
    /// [`Fault::Transfer`].
    Transfer,
    /// [`Fault::Members`].
    Members,
    /// [`Fault::Check`].
    Check,
    /// [`Fault::Hold`].
    Hold,
    /// [`Fault::CrashInVote`].
    CrashInVote,
    /// [`Fault::Stall`].
    Stall,
    /// [`Fault::LateReads`].
    LateReads,
    /// [`Fault::DiskLost`].
    DiskLost,
    /// [`Fault::FilesGone`].
    FilesGone,
    /// [`Fault::SlowDisk`].
    SlowDisk,
    /// [`Fault::Restart`].
    Restart,
    /// [`Fault::Quiet`].
    Quiet,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::Crash,
        Self::CrashInLog,
        Self::CrashInFile,
        Self::CrashAll,
        Self::Pause,
        Self::Isolate,
        Self::OneWay,
        Self::Split,
        Self::SlowLink,
        Self::Network,
        Self::DiskFull,
        Self::ClockRate,
        Self::SlowNode,
        Self::Transfer,
        Self::Members,
        Self::Check,
        Self::Hold,
        Self::CrashInVote,
        Self::Stall,
        Self::LateReads,
        Self::DiskLost,
        Self::FilesGone,
        Self::SlowDisk,
        Self::Restart,
        Self::Quiet,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Crash => "crash",
            Kind::CrashInLog => "crash in a log write",
            Kind::CrashInFile => "crash in a SQLite write",
            Kind::CrashAll => "crash of all",
            Kind::Pause => "pause",
            Kind::Isolate => "isolation",
            Kind::OneWay => "one-way cut",
            Kind::Split => "split",
            Kind::SlowLink => "slow link",
            Kind::Network => "bad network",
            Kind::DiskFull => "full disk",
            Kind::ClockRate => "skewed clock",
            Kind::SlowNode => "slow node",
            Kind::Transfer => "leader transfer",
            Kind::Members => "membership change",
            Kind::Check => "check",
            Kind::Hold => "log hold",
            Kind::CrashInVote => "crash after a vote",
            Kind::Stall => "consensus that wakes late",
            Kind::LateReads => "reads opened late",
            Kind::DiskLost => "lost disks",
            Kind::FilesGone => "lost files",
            Kind::SlowDisk => "slow disk",
            Kind::Restart => "graceful restart",
            Kind::Quiet => "quiet time",
        })
    }
}

impl Fault {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Crash(..) => Kind::Crash,
            Fault::CrashInLog(..) => Kind::CrashInLog,
            Fault::CrashInFile(..) => Kind::CrashInFile,
            Fault::CrashAll(..) => Kind::CrashAll,
            Fault::Pause(..) => Kind::Pause,
            Fault::Isolate(_, Way::Both, _) => Kind::Isolate,
            Fault::Isolate(..) => Kind::OneWay,
            Fault::Split(..) => Kind::Split,
            Fault::SlowLink(..) => Kind::SlowLink,
            Fault::Network(..) => Kind::Network,
            Fault::DiskFull(..) => Kind::DiskFull,
            Fault::ClockRate(..) => Kind::ClockRate,
            Fault::SlowNode(..) => Kind::SlowNode,
            Fault::Transfer(..) => Kind::Transfer,
            Fault::Members(..) => Kind::Members,
            Fault::Check => Kind::Check,
            Fault::Hold(..) => Kind::Hold,
            Fault::CrashInVote(..) => Kind::CrashInVote,
            Fault::Stall(..) => Kind::Stall,
            Fault::LateReads(..) => Kind::LateReads,
            Fault::DiskLost(..) => Kind::DiskLost,
            Fault::FilesGone(..) => Kind::FilesGone,
            Fault::SlowDisk(..) => Kind::SlowDisk,
            Fault::Restart(..) => Kind::Restart,
            Fault::Quiet(..) => Kind::Quiet,
        }
    }

    fn draw(kind: Kind, members: u64, nodes: u64, random: &mut Random) -> Self {
        let node = random.within(1..nodes + 1);
        // Most of what can go wrong goes wrong where it hurts.
        let who = if random.permille(600) { Who::Leader(node) } else { Who::Node(node) };
        let short = random.within(50 * MILLISECOND..4 * SECOND);
        match kind {
            Kind::Crash => Fault::Crash(who, short),
            Kind::CrashInLog => Fault::CrashInLog(who, short),
            Kind::CrashInFile => Fault::CrashInFile(who, random.within(0..20), short),
            Kind::CrashAll => Fault::CrashAll(short),
            // Long enough for another to be elected, mostly: then it wakes up with old mail and new writes.
            Kind::Pause if random.permille(700) => {
                Fault::Pause(who, random.within(1200 * MILLISECOND..4 * SECOND))
            }
            Kind::Pause => Fault::Pause(who, short),
            // As with pauses: when it goes on, its mail is that of others' leader, and behind it a batch of its own.
            Kind::Stall => Fault::Stall(
                who,
                random.within(1200 * MILLISECOND..3 * SECOND),
                random.within(20 * MILLISECOND..600 * MILLISECOND),
            ),
            Kind::Isolate => Fault::Isolate(who, Way::Both, short),
            Kind::OneWay if random.permille(500) => Fault::Isolate(who, Way::In, short),
            Kind::OneWay => Fault::Isolate(who, Way::Out, short),
            Kind::Split => {
                let some = (1..=nodes).filter(|_| random.permille(500)).collect();
                Fault::Split(some, short)
            }
            Kind::SlowLink => {
                let other = random.within(1..nodes + 1);
                let delay = random.within(100 * MILLISECOND..3 * SECOND);
                Fault::SlowLink(who, other, delay, random.within(SECOND..8 * SECOND))
            }
            Kind::Network => Fault::Network(Quality::bad(random), random.within(SECOND..8 * SECOND)),
            Kind::DiskFull => Fault::DiskFull(who, short),
            Kind::ClockRate => Fault::ClockRate(who, random.within(SLOWEST..1080)),
            Kind::Transfer => Fault::Transfer(node),
            Kind::Members => {
                let mut voters = BTreeSet::new();
                while (voters.len() as u64) < members {
                    voters.insert(random.within(1..nodes + 1));
                }
                let rebuild = voters.first().copied().filter(|_| random.permille(300));
                Fault::Members(voters, rebuild)
            }
            Kind::Check => Fault::Check,
            Kind::Hold => Fault::Hold(random.permille(500)),
            // Soon enough to be asked in the election that its death brings about, and asked again in the same.
            Kind::CrashInVote => Fault::CrashInVote(
                Who::Leader(node),
                random.within(10 * MILLISECOND..300 * MILLISECOND),
                random.within(MILLISECOND..20 * MILLISECOND),
                random.within(500 * MILLISECOND..900 * MILLISECOND),
            ),
            // A read waits for a reader until nothing of what its leader knew is true any more.
            Kind::LateReads => Fault::LateReads(
                Who::Leader(node),
                random.within(1800 * MILLISECOND..3500 * MILLISECOND),
                random.within(10 * MILLISECOND..SECOND),
            ),
            Kind::DiskLost => Fault::DiskLost(who, short),
            Kind::FilesGone => Fault::FilesGone(who, short),
            Kind::SlowDisk => Fault::SlowDisk(
                who,
                random.within(5 * MILLISECOND..400 * MILLISECOND),
                random.within(SECOND..8 * SECOND),
            ),
            Kind::Restart => Fault::Restart(who, short),
            Kind::Quiet => Fault::Quiet(random.within(SECOND..6 * SECOND)),
            Kind::SlowNode => Fault::SlowNode(who, random.within(10 * MILLISECOND..300 * MILLISECOND), short),
        }
    }
}

impl Plan {
    /// What this seed has in store.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::stream(seed, "plan", 0);
        let nodes = if random.permille(700) { 3 } else { 5 };
        let spares = random.within(0..3);
        let length = random.within(8 * SECOND..20 * SECOND);
        let setup = Setup {
            max_snapshots: *random.pick(&[1, 1, 2, 16]).expect("there are some"),
            max_writes: *random.pick(&[2, 64]).expect("there are some"),
            max_batch_bytes: *random.pick(&[200, 4096, 1 << 20]).expect("there are some"),
            checkpoint_bytes: *random.pick(&[16 << 10, 64 << 10, 256 << 10]).expect("there are some"),
            log_keep_bytes: *random.pick(&[2 << 10, 16 << 10, 64 << 20]).expect("there are some"),
            sleep_ticks: *random.pick(&[5, 30]).expect("there are some"),
            think: *random.pick(&[300 * MILLISECOND, 300 * MILLISECOND, 4 * SECOND]).expect("there are some"),
            turn_delay: *random.pick(&[100_000, 500_000, 3_000_000, 20_000_000]).expect("there are some"),
        };
        // Few kinds at a time find more than all at once, for one hides another.
        let share = random.within(150..700);
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|_| random.permille(share)).collect();
        let count = random.within(3..30);
        let mut faults: Vec<(Time, Fault)> = (0..count)
            .filter_map(|_| {
                let kind = *random.pick(&kinds)?;
                Some((random.within(0..length), Fault::draw(kind, nodes, nodes + spares, &mut random)))
            })
            .collect();
        faults.sort_by_key(|(time, _)| *time);
        let clients = usize::try_from(random.within(2..7)).unwrap_or(2);
        Self { seed, nodes, spares, clients, length, setup, faults }
    }
}
