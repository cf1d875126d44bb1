//! What a run has in store: how the cluster is set up, who works on it, and which faults strike when.
//!
//! A plan is drawn from a seed before the run begins, so that a failing run can be made shorter by taking things out.

use super::super::clock::SLOWEST;
use super::super::network::Quality;
use super::super::plan::Way;
use super::super::random::Random;
use super::super::trace::{MILLISECOND, SECOND, Time};
use std::fmt;

/// How many nodes there are. Each holds a replica of everything.
pub const NODES: u64 = 3;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What all chance is drawn from.
    pub seed: u64,
    /// How many clients work on the cluster.
    pub clients: usize,
    /// How long faults happen, from when the tables are there. Then all is healed, and it must go on.
    pub length: Time,
    /// How nodes are set up.
    pub setup: Setup,
    /// Whether reads of several shards must see one state of them all.
    pub cuts: bool,
    /// Whether some clients read from any replica.
    pub sessions: bool,
    /// Whether nodes die and nothing else goes wrong, and what their routers had prepared must be free in time.
    pub deaths: bool,
    /// Whether an admin reshards meanwhile.
    pub reshards: bool,
    /// What happens when.
    pub faults: Vec<(Time, Fault)>,
}

/// Settings that change what can meet what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Shards of the keyspace that the tables are in.
    pub shards: u32,
    /// How many accounts there are, and how many lists. With few, clients wait for each other.
    pub rows: i64,
    /// As in `replica::Config`.
    pub checkpoint_bytes: u64,
    /// As in `replica::Config`.
    pub log_keep_bytes: u64,
    /// As in `replica::Config`.
    pub sleep_ticks: u32,
    /// As in `router::Config`.
    pub retry_timeout: Time,
    /// As in `router::Config`.
    pub parallel_commit: bool,
    /// As in `shardnode::Config`.
    pub stage_bytes: usize,
    /// As in `coordinator::Config`.
    pub finish_after: Time,
    /// As in `coordinator::Config`.
    pub abort_after: Time,
    /// How long clients think between two transactions at most.
    pub think: Time,
    /// How long whatever has something to do waits for its turn at most.
    pub turn_delay: Time,
    /// How long followers put entries off at most.
    pub apply_lag: Option<Time>,
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This node.
    Node(u64),
    /// Whoever leads the so-manyth group then, of those there are; the coordinator's is the first. This node if nobody
    /// does.
    Leader(u64, u64),
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A node dies, and starts again later.
    Crash(Who, Time),
    /// A node dies once it has sent so many more messages.
    CrashSending(Who, u64, Time),
    /// A node dies while it writes its log.
    CrashInLog(Who, Time),
    /// A node dies while SQLite writes, at its so-many-th write.
    CrashInFile(Who, u64, Time),
    /// All nodes die.
    CrashAll(Time),
    /// A node isn't run for a while.
    Pause(Who, Time),
    /// A node is cut off.
    Isolate(Who, Way, Time),
    /// A link takes long.
    SlowLink(Who, u64, Time, Time),
    /// The router over which somebody next commits something on all shards hears nothing of a node that leads some.
    Silence(Time),
    /// All links are bad.
    Network(Quality, Time),
    /// A node's clock runs at another speed, in thousandths.
    ClockRate(Who, u64),
    /// Everything on a node waits long for its turn.
    SlowNode(Who, Time, Time),
    /// A node's log needs so long for a sync.
    SlowDisk(Who, Time, Time),
    /// The leader of the so-manyth group hands over to this node.
    Transfer(u64, u64),
    /// Something goes wrong so long after it is seen that a switch has begun, the next one from here on.
    AtSwitch(Time, Box<Fault>),
}

/// A fault's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Fault::Crash`].
    Crash,
    /// [`Fault::CrashSending`].
    CrashSending,
    /// [`Fault::CrashInLog`].
    CrashInLog,
    /// [`Fault::CrashInFile`].
    CrashInFile,
    /// [`Fault::CrashAll`].
    CrashAll,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Isolate`].
    Isolate,
    /// [`Fault::SlowLink`].
    SlowLink,
    /// [`Fault::Silence`].
    Silence,
    /// [`Fault::Network`].
    Network,
    /// [`Fault::ClockRate`].
    ClockRate,
    /// [`Fault::SlowNode`].
    SlowNode,
    /// [`Fault::SlowDisk`].
    SlowDisk,
    /// [`Fault::Transfer`].
    Transfer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::CrashSending,
        Self::CrashInLog,
        Self::CrashInFile,
        Self::CrashAll,
        Self::Pause,
        Self::Isolate,
        Self::SlowLink,
        Self::Silence,
        Self::Network,
        Self::ClockRate,
        Self::SlowNode,
        Self::SlowDisk,
        Self::Transfer,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Crash => "crash",
            Kind::CrashSending => "crash after a message",
            Kind::CrashInLog => "crash in a log write",
            Kind::CrashInFile => "crash in a SQLite write",
            Kind::CrashAll => "crash of all",
            Kind::Pause => "pause",
            Kind::Isolate => "isolation",
            Kind::SlowLink => "slow link",
            Kind::Silence => "silence at a commit",
            Kind::Network => "bad network",
            Kind::ClockRate => "skewed clock",
            Kind::SlowNode => "slow node",
            Kind::SlowDisk => "slow disk",
            Kind::Transfer => "leader transfer",
        })
    }
}

impl Fault {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Crash(..) => Kind::Crash,
            Fault::CrashSending(..) => Kind::CrashSending,
            Fault::CrashInLog(..) => Kind::CrashInLog,
            Fault::CrashInFile(..) => Kind::CrashInFile,
            Fault::CrashAll(..) => Kind::CrashAll,
            Fault::Pause(..) => Kind::Pause,
            Fault::Isolate(..) => Kind::Isolate,
            Fault::SlowLink(..) => Kind::SlowLink,
            Fault::Silence(..) => Kind::Silence,
            Fault::Network(..) => Kind::Network,
            Fault::ClockRate(..) => Kind::ClockRate,
            Fault::SlowNode(..) => Kind::SlowNode,
            Fault::SlowDisk(..) => Kind::SlowDisk,
            Fault::Transfer(..) => Kind::Transfer,
            Fault::AtSwitch(_, fault) => fault.kind(),
        }
    }

    fn draw(kind: Kind, groups: u64, random: &mut Random) -> Self {
        let node = random.within(1..NODES + 1);
        let group = random.within(0..groups);
        // Most of what can go wrong goes wrong where it hurts.
        let who = if random.permille(600) { Who::Leader(group, node) } else { Who::Node(node) };
        let short = random.within(50 * MILLISECOND..3 * SECOND);
        match kind {
            Kind::Crash => Fault::Crash(who, short),
            Kind::CrashSending => Fault::CrashSending(who, random.within(0..60), short),
            Kind::CrashInLog => Fault::CrashInLog(who, short),
            Kind::CrashInFile => Fault::CrashInFile(who, random.within(0..20), short),
            Kind::CrashAll => Fault::CrashAll(short),
            Kind::Pause => Fault::Pause(who, random.within(200 * MILLISECOND..5 * SECOND)),
            Kind::Isolate => {
                let way = *random.pick(&[Way::Both, Way::Both, Way::In, Way::Out]).expect("there are some");
                Fault::Isolate(who, way, random.within(200 * MILLISECOND..6 * SECOND))
            }
            Kind::SlowLink => {
                let delay = random.within(50 * MILLISECOND..SECOND);
                let other = random.within(1..NODES + 1);
                Fault::SlowLink(who, other, delay, random.within(SECOND..6 * SECOND))
            }
            Kind::Silence => Fault::Silence(random.within(SECOND..6 * SECOND)),
            Kind::Network => Fault::Network(Quality::bad(random), random.within(SECOND..5 * SECOND)),
            Kind::ClockRate => Fault::ClockRate(who, random.within(SLOWEST..1080)),
            Kind::SlowNode => Fault::SlowNode(who, random.within(5 * MILLISECOND..100 * MILLISECOND), short),
            Kind::SlowDisk => Fault::SlowDisk(
                who,
                random.within(5 * MILLISECOND..200 * MILLISECOND),
                random.within(SECOND..6 * SECOND),
            ),
            Kind::Transfer => Fault::Transfer(group, node),
        }
    }
}

impl Plan {
    /// What this seed has in store.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::stream(seed, "cluster plan", 0);
        let length = random.within(5 * SECOND..14 * SECOND);
        let setup = Setup {
            shards: *random.pick(&[2, 2, 3]).expect("there are some"),
            rows: *random.pick(&[3, 6, 6, 12]).expect("there are some"),
            checkpoint_bytes: *random.pick(&[64 << 10, 256 << 10]).expect("there are some"),
            log_keep_bytes: *random.pick(&[16 << 10, 64 << 20]).expect("there are some"),
            sleep_ticks: *random.pick(&[5, 30]).expect("there are some"),
            retry_timeout: *random.pick(&[3 * SECOND, 30 * SECOND]).expect("there are some"),
            // Drawn apart, like all that came later than the rest.
            parallel_commit: Random::stream(seed, "cluster commits", 0).permille(500),
            stage_bytes: *random.pick(&[1, 40, 4 << 20]).expect("there are some"),
            finish_after: *random.pick(&[300 * MILLISECOND, 2 * SECOND]).expect("there are some"),
            abort_after: *random.pick(&[SECOND, 3 * SECOND, 10 * SECOND]).expect("there are some"),
            think: *random
                .pick(&[20 * MILLISECOND, 100 * MILLISECOND, 500 * MILLISECOND])
                .expect("there are some"),
            turn_delay: *random.pick(&[100_000, 500_000, 3_000_000]).expect("there are some"),
            apply_lag: None,
        };
        // The coordinator's group, the keyspaces' shards, and the one shard of what isn't sharded.
        let groups = u64::from(setup.shards) + 2;
        // Few kinds at a time find more than all at once, for one hides another.
        let share = random.within(150..700);
        let drawn = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Silence);
        let kinds: Vec<Kind> = drawn.filter(|_| random.permille(share)).collect();
        let count = random.within(2..16);
        let mut faults: Vec<(Time, Fault)> = (0..count)
            .filter_map(|_| {
                let kind = *random.pick(&kinds)?;
                Some((random.within(0..length), Fault::draw(kind, groups, &mut random)))
            })
            .collect();
        // Where the coordinator's records commit, much depends on what its leader still sends.
        let mut deadly = Random::stream(seed, "cluster decisions", 0);
        let deaths = if setup.parallel_commit { 0 } else { deadly.within(0..4) };
        faults.extend((0..deaths).map(|_| {
            let who = Who::Leader(0, deadly.within(1..NODES + 1));
            let down = deadly.within(50 * MILLISECOND..3 * SECOND);
            let fault = Fault::CrashSending(who, deadly.within(0..60), down);
            (deadly.within(0..length), fault)
        }));
        faults.sort_by_key(|(time, _)| *time);
        let clients = usize::try_from(random.within(2..7)).unwrap_or(2);
        Self {
            seed,
            clients,
            length,
            setup,
            cuts: false,
            sessions: false,
            deaths: false,
            reshards: false,
            faults,
        }
    }

    /// Has nodes die, one after the other, with much under way, and nothing else go wrong. Each is back soon or after long.
    pub fn demand_deaths(&mut self) {
        let mut random = Random::stream(self.seed, "cluster deaths", 0);
        self.deaths = true;
        self.clients = 5;
        let setup = &mut self.setup;
        (setup.rows, setup.think, setup.turn_delay) = (12, 20 * MILLISECOND, 500_000);
        (setup.finish_after, setup.abort_after, setup.retry_timeout) = (2 * SECOND, 10 * SECOND, 30 * SECOND);
        let groups = u64::from(setup.shards) + 2;
        let mut time = 0;
        self.faults = (0..4)
            .map(|_| {
                let node = random.within(1..NODES + 1);
                let who = if random.permille(300) {
                    Who::Leader(random.within(0..groups), node)
                } else {
                    Who::Node(node)
                };
                let soon = random.permille(500);
                let down =
                    random.within(if soon { 100 * MILLISECOND..2 * SECOND } else { 7 * SECOND..8 * SECOND });
                time += SECOND + random.within(0..SECOND);
                let death = (time, Fault::CrashSending(who, random.within(0..60), down));
                // What it has left is free before the next one dies.
                time += 8 * SECOND;
                death
            })
            .collect();
        self.length = time;
    }

    /// Has an admin reshard. There is time for some switches, and something to do meanwhile; faults come later, and some wait
    /// for a switch.
    pub fn demand_reshards(&mut self) {
        self.reshards = true;
        if self.deaths {
            return;
        }
        let mut random = Random::stream(self.seed, "cluster switches", 0);
        self.length += random.within(5 * SECOND..12 * SECOND);
        self.clients = self.clients.max(3);
        self.setup.think = self.setup.think.min(60 * MILLISECOND);
        // As above, and new shards' groups.
        let groups = u64::from(self.setup.shards) + 5;
        let share = random.within(150..700);
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Silence);
        let kinds: Vec<Kind> = kinds.filter(|_| random.permille(share)).collect();
        // A shard that is replaced must first be copied, which takes some seconds in which all is well.
        for (time, fault) in &mut self.faults {
            *time = random.within(0..self.length);
            if random.permille(500) {
                let delay = random.within(0..60 * MILLISECOND);
                // What a leader has in memory, and the next one hasn't, is much of what a switch is about.
                let transfers = random.permille(250);
                let kind = if transfers { Some(Kind::Transfer) } else { random.pick(&kinds).copied() };
                let then = kind.map_or(fault.clone(), |kind| Fault::draw(kind, groups, &mut random));
                *fault = Fault::AtSwitch(delay, Box::new(then));
            }
        }
        self.faults.sort_by_key(|(time, _)| *time);
    }

    /// Has some clients read from any replica, and followers lag. In some runs shards can't answer some router for longer than
    /// it asks, so that it commits without hearing where.
    pub fn demand_sessions(&mut self) {
        self.sessions = true;
        let mut random = Random::stream(self.seed, "cluster lag", 0);
        self.setup.apply_lag = random.permille(700).then(|| random.within(MILLISECOND..100 * MILLISECOND));
        let mut random = Random::stream(self.seed, "cluster silence", 0);
        if self.deaths || !random.permille(250) {
            return;
        }
        // The coordinator has found all votes by the time that a router gives up waiting for the last one, and asks.
        let patience = 3 * SECOND;
        (self.setup.parallel_commit, self.setup.retry_timeout, self.setup.abort_after) =
            (true, patience, SECOND);
        for _ in 0..random.within(1..4) {
            let long = random.within(2 * patience..4 * patience) + SECOND;
            self.faults.push((random.within(0..self.length), Fault::Silence(long)));
        }
        self.faults.sort_by_key(|(time, _)| *time);
        self.length += 4 * patience;
    }
}
