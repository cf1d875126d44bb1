//! Reshards that go on while whoever has a part in them is killed: in each phase the coordinator's leader, an old shard's, a new
//! shard's, and the command.

use super::Failure;
use super::steps::{Work, lines, told};
use serde_json::Value;
use std::collections::BTreeMap;
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

/// Who was killed when, and who is next.
pub struct Kills {
    every: Duration,
    next: Instant,
    away: Option<(usize, Instant)>,
    count: BTreeMap<(String, Victim), u32>,
    cancelled: u32,
}

impl Kills {
    pub fn every(every: Duration) -> Kills {
        Kills { every, next: Instant::now() + every, away: None, count: BTreeMap::new(), cancelled: 0 }
    }

    /// Says how often each was killed in each phase.
    pub fn tell(&self) {
        for ((phase, victim), times) in &self.count {
            println!("  killed in {phase}: {victim:?}, {times} times");
        }
        println!("{} kills, {} reshards cancelled", self.count.values().sum::<u32>(), self.cancelled);
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

    /// Whoever was killed least often in this phase, and then in all, if a kill is due.
    fn due(&self, phase: &str, has: impl Fn(Victim) -> bool) -> Option<Victim> {
        if self.away.is_some() || Instant::now() < self.next {
            return None;
        }
        let count = |victim: &Victim| {
            let here = self.count.get(&(phase.to_owned(), *victim)).copied().unwrap_or(0);
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
        let mut course = Course { work: self, id, command: Some(command), told: Instant::now() };
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
}

impl Course<'_, '_> {
    /// Goes on until the reshard is in this phase, and gives this command whenever it waits for one. A reshard that takes too
    /// long is cancelled: then there is no more to come.
    fn come_to(&mut self, command: &str, goal: &str) -> Result<bool, Failure> {
        let (begun, mut seen) = (Instant::now(), String::new());
        loop {
            wait::pause(LOOK);
            self.revive(false);
            let Some((line, status)) = self.look() else { continue };
            let phase = line["phase"].as_str().unwrap_or_default();
            if phase != seen {
                self.work.say(&format!("  reshard {} is {phase}: {}", self.id, line["message"]));
                phase.clone_into(&mut seen);
            }
            if phase == goal {
                self.forget_command();
                return if line["failed"].is_null() { Ok(true) } else { Err(line.to_string().into()) };
            }
            if phase == "ended" {
                return Err(format!("reshard {} has ended: {line}", self.id).into());
            }
            if begun.elapsed() > LONG {
                println!("reshard {} isn't {goal} after {LONG:?}: {line}", self.id);
                return self.cancel().map(|()| false);
            }
            self.kill(phase, &line, &status)?;
            self.tell(command, phase, &line);
        }
    }

    /// What is known of the reshard, and of the cluster. Nothing, if nobody could be asked.
    fn look(&self) -> Option<(Value, Value)> {
        let nodes = &self.work.stage.nodes;
        let alive = self.kills().alive();
        let status = nodes.status(alive)?;
        let output = nodes.shoal(alive, &["reshard", "status", &self.id.to_string(), "--json"]);
        Some((lines(&output).pop()?, status))
    }

    fn kills(&self) -> &Kills {
        self.work.kills.as_ref().expect("somebody is to be killed")
    }

    fn revive(&mut self, at_once: bool) {
        if let Some(kills) = &mut self.work.kills {
            kills.revive(&mut self.work.stage.nodes, at_once);
        }
    }

    /// Kills whose turn it is, if it is time.
    fn kill(&mut self, phase: &str, line: &Value, status: &Value) -> Result<(), Failure> {
        let nodes = &self.work.stage.nodes;
        let leader = |shard: &Value| {
            let group = groups(status).find(|group| group["shard"] == *shard && shard.is_string())?;
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
                self.work.say(&format!("  node {node} is killed, which leads {victim:?}, in {phase}"));
            }
            None => {
                let Some(mut command) = self.command.take() else { return Ok(()) };
                command.kill()?;
                command.wait()?;
                self.work.say(&format!("  the command is killed, in {phase}"));
            }
        }
        if let Some(kills) = &mut self.work.kills {
            *kills.count.entry((phase.to_owned(), victim)).or_default() += 1;
            kills.away = node.map(|node| (node, Instant::now()));
            kills.next = Instant::now() + kills.every;
        }
        Ok(())
    }

    /// Gives a command if the reshard rests and none follows it.
    fn tell(&mut self, command: &str, phase: &str, line: &Value) {
        if let Some(Ok(Some(_))) = self.command.as_mut().map(Child::try_wait) {
            self.command = None;
        }
        if self.command.is_some() || self.told.elapsed() < AGAIN {
            return;
        }
        let command = match phase {
            _ if line["paused"].is_string() => "resume",
            "ready" | "switched" => command,
            _ => return,
        };
        let mut child = self
            .work
            .stage
            .nodes
            .begin_shoal(self.kills().alive(), &["reshard", command, &self.id.to_string(), "--json"]);
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
            kills.cancelled += 1;
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
