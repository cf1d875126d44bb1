//! Reshards that go on while whoever has a part in them is killed: in each phase the coordinator's leader, an old shard's, a new
//! shard's, and the command. Every third of them is cancelled on its way.

use super::Failure;
use super::steps::{Work, lines, told};
use proto::services::ReshardPhase;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::time::{Duration, Instant};
use tests::nodes::{Nodes, groups};
use tests::wait;

/// How long a node is away.
const AWAY: Duration = Duration::from_secs(3);
/// How long a reshard may take to where it is to come. It is cancelled then.
const LONG: Duration = Duration::from_secs(300);
/// How often is looked at it.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a command the next one is given that has it go on.
const AGAIN: Duration = Duration::from_secs(1);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Coordinator,
    Old,
    New,
    Command,
}

const VICTIMS: [Victim; 4] = [Victim::Coordinator, Victim::Old, Victim::New, Victim::Command];

/// Where reshards are cancelled, in turn. In the midst of a switch that has to be undone.
const CANCELLED_IN: [ReshardPhase; 6] = [
    ReshardPhase::Switching,
    ReshardPhase::Copying,
    ReshardPhase::CatchingUp,
    ReshardPhase::Ready,
    ReshardPhase::Spreading,
    ReshardPhase::Imaging,
];

/// Who was killed when, and who is next.
pub struct Kills {
    every: Duration,
    next: Instant,
    away: Option<(usize, Instant)>,
    count: BTreeMap<(ReshardPhase, Victim), u32>,
    /// The phases that a reshard was seen in.
    seen: BTreeSet<ReshardPhase>,
    begun: usize,
    cancelled: usize,
    late: u32,
}

impl Kills {
    pub fn every(every: Duration) -> Kills {
        let (away, count, seen, begun, cancelled, late) = Default::default();
        Kills { every, next: Instant::now() + every, away, count, seen, begun, cancelled, late }
    }

    /// Says how often each was killed in each phase.
    pub fn tell(&self) {
        for ((phase, victim), times) in &self.count {
            println!("  killed in {}: {victim:?}, {times} times", phase.name());
        }
        let missed = self.seen.iter().filter(|phase| self.killed_in(**phase) == 0).map(|phase| phase.name());
        println!("  nobody killed in: {}", missed.collect::<Vec<_>>().join(", "));
        let kills: u32 = self.count.values().sum();
        println!("{kills} kills, {} reshards cancelled, {} as they took too long", self.cancelled, self.late);
    }

    /// How often somebody was killed in this phase.
    fn killed_in(&self, phase: ReshardPhase) -> u32 {
        self.count
            .range((phase, Victim::Coordinator)..=(phase, Victim::Command))
            .map(|(_, times)| times)
            .sum()
    }

    /// Where the reshard that begins now is to be cancelled, if anywhere.
    fn cancel_next(&mut self) -> Option<ReshardPhase> {
        self.begun += 1;
        self.begun.is_multiple_of(3).then(|| CANCELLED_IN[self.cancelled % CANCELLED_IN.len()])
    }

    /// Starts the node again that is away, if it is time or if it must be.
    fn revive(&mut self, nodes: &mut Nodes, at_once: bool) {
        if let Some((node, _)) = self.away.take_if(|(_, since)| at_once || since.elapsed() > AWAY) {
            nodes.restart(node);
            self.next = Instant::now() + self.every;
        }
    }

    /// A node that runs.
    fn alive(&self) -> usize {
        usize::from(self.away.is_some_and(|(node, _)| node == 0))
    }

    /// Whether somebody is to be killed in this phase. As long as a later one has had far fewer kills, nobody is to be away when it
    /// comes.
    fn is_due(&self, phase: ReshardPhase) -> bool {
        let here = self.killed_in(phase);
        self.away.is_none()
            && Instant::now() >= self.next
            && self.seen.range(phase..).all(|later| self.killed_in(*later) + VICTIMS.len() as u32 > here)
    }

    /// Whoever was killed least often in this phase, and then in all.
    fn due(&self, phase: ReshardPhase, has: impl Fn(Victim) -> bool) -> Option<Victim> {
        let count = |victim: &Victim| {
            let here = self.count.get(&(phase, *victim)).copied().unwrap_or(0);
            let all = self.count.iter().filter(|((_, other), _)| other == victim);
            (here, all.map(|(_, times)| times).sum::<u32>())
        };
        VICTIMS.into_iter().filter(|victim| has(*victim)).min_by_key(count)
    }
}

impl Work<'_> {
    /// Begins a reshard and has it come through these switches, and to its end, while somebody is killed.
    pub fn drive(&mut self, what: &str, wish: &[&str], commands: &[&str]) -> Result<(), Failure> {
        let (id, command) = self.begin(wish)?;
        let cancel_in = self.kills.as_mut().and_then(Kills::cancel_next);
        let mut course = Course { work: self, id, command: Some(command), told: Instant::now(), cancel_in };
        for command in commands {
            let goal = if *command == "reverse" { "ready" } else { "switched" };
            if !course.come_to(command, goal)? {
                return Ok(());
            }
            course.work.say(&format!("{command} of {what} is done"));
            course.work.switched += 1;
            course.work.goes_on()?;
        }
        course.come_to("complete", "ended").map(drop)
    }

    /// Has the node come back that is away, before what isn't to be disturbed.
    pub fn calm(&mut self) {
        if let Some(kills) = &mut self.kills {
            kills.revive(&mut self.stage.nodes, true);
        }
    }

    /// Gives the command that begins a reshard, and waits for its first line.
    fn begin(&mut self, wish: &[&str]) -> Result<(u64, Child), Failure> {
        self.calm();
        // Nodes that were silent are given nothing to hold, and what only comes back isn't asked to build.
        let well = |status: &Value| {
            let heard = |node: &Value| node["heard_ms"].as_u64().is_some_and(|ms| ms < 2000);
            status["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(heard))
                && groups(status).all(|group| group["leader"].is_u64())
        };
        self.stage.nodes.wait_for(0, "all nodes are heard and all groups have leaders", well);
        let mut command = self.stage.nodes.begin_shoal(0, wish);
        let Some(output) = command.stdout.take() else {
            return Err(told(&command.wait_with_output()?).into());
        };
        let mut lines = BufReader::new(output).lines();
        let first =
            lines.next().and_then(Result::ok).and_then(|line| serde_json::from_str::<Value>(&line).ok());
        let Some(id) = first.and_then(|line| line["reshard"].as_u64()) else {
            let output = command.wait_with_output()?;
            return Err(told(&output).into());
        };
        // Nobody reads the rest, but it must go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Ok((id, command))
    }
}

/// One reshard, and the command that follows it.
struct Course<'a, 'b> {
    work: &'a mut Work<'b>,
    id: u64,
    command: Option<Child>,
    told: Instant,
    /// Where it is to be cancelled.
    cancel_in: Option<ReshardPhase>,
}

impl Course<'_, '_> {
    /// Goes on until the reshard is in this phase, and gives this command whenever it waits for one. A reshard that is cancelled,
    /// as it is its turn or takes too long, has no more to come.
    fn come_to(&mut self, command: &str, goal: &str) -> Result<bool, Failure> {
        let (begun, mut seen, mut cancelled) = (Instant::now(), None, false);
        loop {
            wait::pause(LOOK);
            self.revive(false);
            let Some((phase, line)) = self.look() else { continue };
            if seen != Some(phase) {
                self.work.say(&format!("  reshard {} is {}: {}", self.id, phase.name(), line["message"]));
                seen = Some(phase);
                if phase != ReshardPhase::Ended
                    && let Some(kills) = &mut self.work.kills
                {
                    kills.seen.insert(phase);
                }
            }
            // It was told when the switch was decided already.
            cancelled &= phase != ReshardPhase::Switched;
            if phase.name() == goal && !cancelled {
                self.forget_command();
                return if line["failed"].is_null() { Ok(true) } else { Err(line.to_string().into()) };
            }
            if phase == ReshardPhase::Ended {
                self.forget_command();
                return if cancelled { Ok(false) } else { Err(format!("it has ended: {line}").into()) };
            }
            if begun.elapsed() > LONG {
                println!("reshard {} isn't {goal} after {LONG:?}: {line}", self.id);
                return self.cancel().map(|()| false);
            }
            if self.cancel_in == Some(phase) {
                self.cancel_in = None;
                self.forget_command();
                self.give("cancel");
                self.work.say(&format!("  reshard {} is told to cancel, in {}", self.id, phase.name()));
                cancelled = true;
                if let Some(kills) = &mut self.work.kills {
                    kills.cancelled += 1;
                }
            }
            if self.kills().is_due(phase) {
                self.kill(phase, &line)?;
            }
            self.tell(if cancelled { "cancel" } else { command }, phase, &line);
        }
    }

    /// What is known of the reshard. Nothing, if nobody could be asked.
    fn look(&self) -> Option<(ReshardPhase, Value)> {
        let nodes = &self.work.stage.nodes;
        let output =
            nodes.shoal(self.kills().alive(), &["reshard", "status", &self.id.to_string(), "--json"]);
        let line = lines(&output).pop()?;
        let phase = ReshardPhase::ALL.into_iter().find(|phase| line["phase"] == phase.name())?;
        Some((phase, line))
    }

    fn kills(&self) -> &Kills {
        self.work.kills.as_ref().expect("somebody is to be killed")
    }

    fn revive(&mut self, at_once: bool) {
        if let Some(kills) = &mut self.work.kills {
            kills.revive(&mut self.work.stage.nodes, at_once);
        }
    }

    /// Kills whose turn it is.
    fn kill(&mut self, phase: ReshardPhase, line: &Value) -> Result<(), Failure> {
        let nodes = &self.work.stage.nodes;
        let Some(status) = nodes.status(self.kills().alive()) else { return Ok(()) };
        let leader = |shard: &Value| {
            let group = groups(&status).find(|group| group["shard"] == *shard && shard.is_string())?;
            nodes.numbered(group["leader"].as_u64()?)
        };
        let node = |victim| match victim {
            Victim::Coordinator => nodes.numbered(status["coordinator"]["leader"].as_u64()?),
            Victim::Old => leader(&line["old"][0]),
            Victim::New => leader(&line["new"][0]),
            Victim::Command => None,
        };
        let has = |victim| match victim {
            Victim::Command => self.command.is_some(),
            _ => node(victim).is_some(),
        };
        let Some(victim) = self.kills().due(phase, has) else { return Ok(()) };
        let node = node(victim);
        match node {
            Some(node) => {
                self.work.stage.nodes.kill(node);
                self.work
                    .say(&format!("  node {node} is killed, which leads {victim:?}, in {}", phase.name()));
            }
            None => {
                let Some(mut command) = self.command.take() else { return Ok(()) };
                command.kill()?;
                command.wait()?;
                self.work.say(&format!("  the command is killed, in {}", phase.name()));
            }
        }
        if let Some(kills) = &mut self.work.kills {
            *kills.count.entry((phase, victim)).or_default() += 1;
            kills.away = node.map(|node| (node, Instant::now()));
            kills.next = Instant::now() + kills.every;
        }
        Ok(())
    }

    /// Gives a command if the reshard rests and none follows it.
    fn tell(&mut self, command: &str, phase: ReshardPhase, line: &Value) {
        if let Some(Ok(Some(_))) = self.command.as_mut().map(Child::try_wait) {
            self.command = None;
        }
        if self.command.is_some() || self.told.elapsed() < AGAIN {
            return;
        }
        match phase {
            _ if command == "cancel" => self.give(command),
            _ if line["paused"].is_string() => self.give("resume"),
            ReshardPhase::Ready | ReshardPhase::Switched => self.give(command),
            _ => {}
        }
    }

    /// Gives a command, and has it follow the reshard.
    fn give(&mut self, command: &str) {
        let arguments = ["reshard", command, &self.id.to_string(), "--json"];
        let mut child = self.work.stage.nodes.begin_shoal(self.kills().alive(), &arguments);
        drain(&mut child);
        (self.command, self.told) = (Some(child), Instant::now());
    }

    /// Ends a reshard that doesn't come to where it should.
    fn cancel(&mut self) -> Result<(), Failure> {
        self.revive(true);
        self.forget_command();
        let id = self.id.to_string();
        let output = self.work.stage.nodes.shoal(0, &["reshard", "cancel", &id, "--json"]);
        if !output.status.success() {
            return Err(format!("reshard {id} neither ends nor can be cancelled: {}", told(&output)).into());
        }
        if let Some(kills) = &mut self.work.kills {
            kills.late += 1;
        }
        Ok(())
    }

    fn forget_command(&mut self) {
        if let Some(mut command) = self.command.take() {
            // It may have ended already.
            drop(command.kill());
            drop(command.wait());
        }
    }
}

/// Nobody reads what a command says, but it must go somewhere.
fn drain(command: &mut Child) {
    if let Some(out) = command.stdout.take() {
        std::thread::spawn(move || BufReader::new(out).lines().for_each(drop));
    }
    if let Some(err) = command.stderr.take() {
        std::thread::spawn(move || BufReader::new(err).lines().for_each(drop));
    }
}
