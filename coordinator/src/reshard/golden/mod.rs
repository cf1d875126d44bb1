//! Golden scripts: a reshard, told event by event.
//!
//! A script under `scripts/` is a list of commands with what each of them brought about: steps that were written, what they
//! changed in the topology, and what is asked for from then on. What is asked for isn't answered before the script says so.
//! After each command the invariants are asserted (`world`). Beside them, thousands of reshards are driven by chance.
//! `UPDATE_GOLDENFILES=1 cargo test -p coordinator reshard` records what happens now; what is recorded is to be read before it
//! is committed.

mod chance;
mod world;

use super::machine::{Ask, Event};
use super::step::Step;
use goldenscript::Context;
use proto::services::{FlowObstacle, FlowStatus, ReshardCommand};
use proto::{GroupId, LogIndex, NodeId, Retry, ShardId};
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use world::{Sent, World};

/// From the package's directory, where tests run.
const SCRIPTS: &str = "src/reshard/scripts";

/// What a script can say.
#[derive(goldenscript::Command)]
enum Command {
    /// `split`: shard 1 (`-80`, group 2) is to become shards 2 and 3 (groups 3 and 4).
    Split {
        #[arg(key)]
        auto: Option<bool>,
        #[arg(key)]
        verify: Option<bool>,
        /// Seconds.
        #[arg(key)]
        keep: Option<u64>,
        /// The builder has no replica of this group.
        #[arg(key)]
        lacking: Option<u64>,
    },
    /// `merge`: shards 1 and 2 (groups 2 and 3) are to become shard 3 (group 4).
    Merge {
        #[arg(key)]
        auto: Option<bool>,
    },
    /// `answer seal`: what is asked for under this name arrives and is answered; `all` is everything. With `of=3`, what
    /// concerns this shard or group.
    Answer {
        names: Vec<String>,
        #[arg(key)]
        of: Option<u64>,
    },
    /// `lose seal`: it arrives, and its answer is on its way until `late`.
    Lose {
        names: Vec<String>,
        #[arg(key)]
        of: Option<u64>,
    },
    /// `delay seal`: it is sent, and doesn't arrive before `late`.
    Delay {
        names: Vec<String>,
        #[arg(key)]
        of: Option<u64>,
    },
    /// What was lost or delayed arrives.
    Late,
    /// `pass 1500`: so many milliseconds pass, and who is asked how far flows are answers four times a second.
    Pass(u64),
    /// `wait 2000`: so many milliseconds pass, and nobody answers.
    Wait(u64),
    /// `ready`: it is answered, and time passes, until nothing happens any more.
    Ready,
    /// Another leader takes over.
    Leader,
    /// `say switch`: somebody gives a command.
    Say(String),
    /// `race pause copy`: what is asked for is answered, and before the step is written that is due then, somebody says so.
    Race { say: String, name: String },
    /// `event disk-full`: something happens.
    Event(String),
    /// `busy 2 1`: a transaction is in the way of the seal of group 2.
    Busy { group: u64, count: u32 },
    /// `set quiet=false`: there is a schema change; `turn=false`: other reshards are under way; `stuck=true`: flows stand still;
    /// `whole=false`: a replica is missing.
    Set {
        #[arg(key)]
        quiet: Option<bool>,
        #[arg(key)]
        turn: Option<bool>,
        #[arg(key)]
        stuck: Option<bool>,
        #[arg(key)]
        whole: Option<bool>,
        #[arg(key)]
        behind: Option<u64>,
    },
    /// `rows 10`: so many entries are written on each shard that isn't sealed; then logs are cut as far as may be.
    Rows(u64),
    /// Whether logs are held.
    Holds,
    /// The keyspace is dropped.
    Drop,
}

struct Runner {
    world: World,
    /// What was asked for when it was last told.
    asked: Vec<Ask>,
    lost: Vec<Event>,
    delayed: Vec<Sent>,
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        match command {
            Command::Split { auto, verify, keep, lacking } => {
                let how = (auto.unwrap_or(false), verify.unwrap_or(true));
                self.world = World::new(&["-80"], &["-40", "40-80"], how, *keep);
                self.world.ledger.lacking = lacking.iter().copied().map(GroupId).collect();
            }
            Command::Merge { auto } => {
                let how = (auto.unwrap_or(false), true);
                self.world = World::new(&["-40", "40-80"], &["-80"], how, None);
            }
            Command::Answer { names, of } => {
                for ask in self.asks(names, *of) {
                    let sent = self.world.send(&ask);
                    if let Some(event) = self.world.arrive(&sent) {
                        self.hear(event);
                    }
                }
            }
            Command::Lose { names, of } => {
                for ask in self.asks(names, *of) {
                    let sent = self.world.send(&ask);
                    self.lost.extend(self.world.arrive(&sent));
                }
            }
            Command::Delay { names, of } => {
                for ask in self.asks(names, *of) {
                    self.delayed.push(self.world.send(&ask));
                }
            }
            Command::Late => {
                for event in std::mem::take(&mut self.lost) {
                    self.hear(event);
                }
                for sent in std::mem::take(&mut self.delayed) {
                    if let Some(event) = self.world.arrive(&sent) {
                        self.hear(event);
                    }
                }
            }
            Command::Pass(millis) => self.pass(*millis),
            Command::Wait(millis) => self.hear(Event::Passed(Duration::from_millis(*millis))),
            Command::Ready => self.ready(),
            Command::Leader => self.world.another_leader(),
            Command::Say(name) => self.command(name)?,
            Command::Race { say, name } => {
                for ask in self.asks(std::slice::from_ref(name), None) {
                    let sent = self.world.send(&ask);
                    if let Some(event) = self.world.arrive(&sent) {
                        self.world.machine.hear(event);
                    }
                }
                let record = self.world.machine.record().clone();
                let heard = self.world.machine.clone();
                self.command(say)?;
                self.world.machine = heard;
                assert_ne!(record, self.world.record);
            }
            Command::Event(name) => {
                let event = self.event(name)?;
                self.hear(event);
            }
            Command::Busy { group, count } => {
                self.world.groups.get_mut(&GroupId(*group)).ok_or("there is no such group")?.busy = *count;
            }
            Command::Set { quiet, turn, stuck, whole, behind } => {
                let world = &mut self.world;
                world.ledger.quiet = quiet.unwrap_or(world.ledger.quiet);
                world.ledger.turn = turn.unwrap_or(world.ledger.turn);
                world.stuck = stuck.unwrap_or(world.stuck);
                world.whole = whole.unwrap_or(world.whole);
                world.behind = behind.unwrap_or(world.behind);
            }
            Command::Rows(entries) => {
                self.world.rows(*entries);
                self.world.trim();
            }
            Command::Drop => self.write(&Step::Dropped),
            Command::Holds => {
                let held = if self.world.is_held() { "held" } else { "not held" };
                self.world.told.push(held.to_owned());
            }
        }
        self.work();
        let asks = self.world.machine.asks();
        if asks != self.asked {
            let words: Vec<_> = asks.iter().map(words).collect();
            let words = if words.is_empty() { "nothing".to_owned() } else { words.join("; ") };
            self.world.told.push(format!("asks {words}"));
            self.asked = asks;
        }
        let told = std::mem::take(&mut self.world.told);
        Ok(told.into_iter().map(|line| line + "\n").collect())
    }
}

impl Runner {
    fn new() -> Self {
        let world = World::new(&["-80"], &["-40", "40-80"], (false, true), None);
        Runner { world, asked: Vec::new(), lost: Vec::new(), delayed: Vec::new() }
    }

    /// What is asked for under these names.
    fn asks(&mut self, names: &[String], of: Option<u64>) -> Vec<Ask> {
        let asks = self.world.machine.asks().into_iter().filter(|ask| {
            let named = names.iter().any(|name| name == "all" || words(ask).starts_with(name.as_str()));
            named && of.is_none_or(|of| concerns(ask) == Some(of))
        });
        let asks: Vec<_> = asks.collect();
        if asks.is_empty() {
            self.world.told.push(format!("nobody asks for {}", names.join(", ")));
        }
        asks
    }

    fn hear(&mut self, event: Event) {
        self.world.machine.hear(event);
        self.work();
    }

    /// Steps that are due are written.
    fn work(&mut self) {
        self.world.check();
        while let Some(step) = self.world.machine.due() {
            let due = self.world.machine.record().version;
            match self.world.write(&step, Some(due)) {
                Ok(()) => {
                    let record = self.world.record.clone();
                    self.world.machine.written(record);
                }
                Err(error) if due != self.world.record.version => {
                    self.world.told.push(error.message);
                    let record = self.world.record.clone();
                    self.world.machine.written(record);
                }
                Err(error) => {
                    assert_eq!(error.retry, Retry::Later, "{step:?}: {error}");
                    self.world.told.push(format!("not yet: {}", error.message));
                    break;
                }
            }
            self.world.check();
        }
    }

    fn pass(&mut self, millis: u64) {
        let mut left = millis;
        while left > 0 {
            let time = left.min(250);
            left -= time;
            for ask in self.world.machine.asks() {
                if matches!(ask, Ask::Flows { .. } | Ask::Whole) {
                    let sent = self.world.send(&ask);
                    if let Some(event) = self.world.arrive(&sent) {
                        self.hear(event);
                    }
                }
            }
            self.hear(Event::Passed(Duration::from_millis(time)));
        }
    }

    fn ready(&mut self) {
        for _ in 0..40 {
            for ask in self.world.machine.asks() {
                let sent = self.world.send(&ask);
                if let Some(event) = self.world.arrive(&sent) {
                    self.hear(event);
                }
            }
            self.pass(250);
        }
    }

    fn command(&mut self, name: &str) -> Result<(), Box<dyn Error>> {
        let command = match name {
            "switch" => ReshardCommand::Switch,
            "reverse" => ReshardCommand::Reverse,
            "complete" => ReshardCommand::Complete,
            "cancel" => ReshardCommand::Cancel,
            "pause" => ReshardCommand::Pause,
            "resume" => ReshardCommand::Resume,
            "verify" => ReshardCommand::Verify,
            _ => return Err("there is no such command".into()),
        };
        self.write(&Step::Command(command));
        Ok(())
    }

    /// Writes what the machine didn't say, as somebody's service does.
    fn write(&mut self, step: &Step) {
        match self.world.write(step, None) {
            Ok(()) => self.world.machine.written(self.world.record.clone()),
            Err(error) => {
                let hint = error.hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
                self.world.told.push(format!("refused: {}: {}{hint}", error.sqlstate, error.message));
            }
        }
    }

    fn event(&self, name: &str) -> Result<Event, Box<dyn Error>> {
        let record = &self.world.record;
        let (tries, attempt, node) = (record.tries, record.attempt, record.builder);
        Ok(match name {
            "disk-full" => Event::DiskFull { tries, directory: "/data/builds".to_owned() },
            "lost" => Event::Lost { tries, what: "an image is gone".to_owned() },
            "builder-lost" => Event::BuilderLost { node, another: Some(NodeId(node.0 + 1)) },
            "no-builder" => Event::BuilderLost { node, another: None },
            "misplaced" => {
                let part = &record.new.parts[0];
                Event::Misplaced { group: part.group, replicas: [1, 2, 4].map(NodeId).to_vec() }
            }
            "group-lost" => Event::GroupLost { group: record.targets()[0].group },
            "overrun" => Event::Overrun { group: record.sources()[0].group },
            "differs" => Event::Compared { attempt, tries, differs: Some("table t".to_owned()) },
            "follows-not" | "forgotten" => {
                let source = record.sources()[0].shard;
                let (position, committed, lag) = (LogIndex(1), LogIndex(2), Duration::from_millis(1));
                let obstacle = Some(match name {
                    "forgotten" => FlowObstacle::Forgotten,
                    _ => FlowObstacle::Differs("a row of t isn't there".to_owned()),
                });
                let flow = FlowStatus { source, position, committed, lag, lag_bytes: 1, obstacle };
                Event::Flows { shard: record.targets()[0].shard, flows: vec![flow] }
            }
            "refused" => {
                let shard = record.sources()[0].shard;
                Event::Refused { shard, attempt, why: "it can't".to_owned() }
            }
            _ => return Err("there is no such event".into()),
        })
    }
}

fn concerns(ask: &Ask) -> Option<u64> {
    match ask {
        Ask::Hold { group: GroupId(id), .. }
        | Ask::LetGo { group: GroupId(id), .. }
        | Ask::Place { group: GroupId(id), .. }
        | Ask::Found { group: GroupId(id), .. }
        | Ask::Spread { group: GroupId(id), .. }
        | Ask::TakeBack { group: GroupId(id), .. }
        | Ask::Image { shard: ShardId(id), .. }
        | Ask::Flows { shard: ShardId(id) }
        | Ask::Clear { shard: ShardId(id), .. }
        | Ask::Seal { shard: ShardId(id), .. }
        | Ask::Unseal { shard: ShardId(id), .. }
        | Ask::Reached { shard: ShardId(id), .. } => Some(*id),
        Ask::Wait | Ask::Copy { .. } | Ask::Whole | Ask::Compare { .. } | Ask::Discard { .. } => None,
    }
}

/// What is asked for, its name first.
fn words(ask: &Ask) -> String {
    match ask {
        Ask::Wait => "wait".to_owned(),
        Ask::Place { group, node } => format!("place {group} on node {node}"),
        Ask::Hold { group, hold } => format!("hold {group} {hold}"),
        Ask::LetGo { group, before } => format!("let-go {group} before {before}"),
        Ask::Image { shard, tries } => format!("image {shard} try {tries}"),
        Ask::Copy { tries, rests: false } => format!("copy try {tries}"),
        Ask::Copy { rests: true, .. } => "rest".to_owned(),
        Ask::Found { shard, group, tries } => format!("found {shard}@{group} try {tries}"),
        Ask::Spread { group, replicas } => {
            let nodes: Vec<_> = replicas.iter().map(|node| node.to_string()).collect();
            format!("spread {group} to {}", nodes.join(" "))
        }
        Ask::Flows { shard } => format!("flows {shard}"),
        Ask::Whole => "whole".to_owned(),
        Ask::Compare { .. } => "compare".to_owned(),
        Ask::Clear { shard, attempt } => format!("clear {shard} attempt {attempt}"),
        Ask::Seal { shard, attempt } => format!("seal {shard} attempt {attempt}"),
        Ask::Unseal { shard, attempt } => format!("unseal {shard} attempt {attempt}"),
        Ask::Reached { shard, attempt } => format!("reached {shard} attempt {attempt}"),
        Ask::Discard { node } => format!("discard on node {node}"),
        Ask::TakeBack { group, node } => format!("take-back {group} from node {node}"),
    }
}

fn play(name: &str) {
    goldenscript::run(&mut Runner::new(), Path::new(SCRIPTS).join(name)).unwrap();
}

/// One test for each script, of its name.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                play(concat!(stringify!($name), ".txt"));
            }
        )*

        #[test]
        fn every_script_is_played() {
            let scripts = std::fs::read_dir(SCRIPTS).unwrap().count();
            assert_eq!(scripts, [$(stringify!($name)),*].len());
        }
    };
}

scripts! { split merge leaders late bounds reverse cancel pauses again lost }
