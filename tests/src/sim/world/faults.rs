//! Faults that strike a world, and how they pass.

use super::super::network::Quality;
use super::super::node::{Node, Process};
use super::super::plan::{Fault, Way, Who};
use super::super::trace::{MILLISECOND, SECOND, Time};
use super::chores::Wound;
use super::{Event, Outcome, REVIVE, World, now_or_never, soon};
use proto::services::Consistency;
use std::collections::BTreeSet;
use std::path::Path;

impl World {
    /// Whom a fault hits now.
    fn whom(&self, who: Who) -> u64 {
        match who {
            Who::Node(node) => self.stands_for(node),
            Who::Leader(otherwise) => {
                let leading = self.nodes.values().filter_map(|node| {
                    let replica = node.replica()?;
                    replica.is_leader().then(|| (replica.status().term, node.id))
                });
                leading.max().map_or(self.stands_for(otherwise), |(_, node)| node)
            }
        }
    }

    /// Who is there in the place of a node that may be gone.
    pub(super) fn stands_for(&self, mut node: u64) -> u64 {
        while let Some(next) = self.replaced.get(&node) {
            node = *next;
        }
        node
    }

    /// A fault of the plan happens.
    pub(super) fn strike(&mut self, number: usize) -> Outcome {
        let Some((_, fault)) = self.plan.faults.get(number).cloned() else { return Ok(()) };
        *self.faults.entry(fault.kind()).or_default() += 1;
        self.note(format_args!("FAULT {fault:?}"));
        let now = self.now();
        match fault {
            Fault::Crash(who, down) => {
                let node = self.whom(who);
                self.down_for(node, down);
                if self.nodes[&node].process.is_some() {
                    self.crash(node, "crashes")?;
                }
            }
            Fault::CrashInLog(who, down) => {
                let node = self.whom(who);
                self.down_for(node, down);
                if self.nodes[&node].process.is_some() {
                    self.nodes[&node].log.die_at_next_write();
                }
            }
            Fault::CrashInFile(who, writes, down) => {
                let node = self.whom(who);
                self.down_for(node, down);
                if self.nodes[&node].process.is_some() {
                    self.nodes[&node].files.die_in(writes);
                }
            }
            Fault::CrashAll(down) => {
                for node in self.ids() {
                    self.down_for(node, down);
                    if self.nodes[&node].process.is_some() {
                        self.crash(node, "crashes with all others")?;
                    }
                }
            }
            Fault::CrashInVote(who, down, again, delay) => {
                let id = self.whom(who);
                self.down_for(id, down);
                if self.nodes[&id].process.is_some() {
                    self.crash(id, "crashes")?;
                }
                self.nodes.values_mut().for_each(|node| node.dies_voting = Some(again));
                self.network.set_quality(Quality::far(delay));
                self.at(now + 8 * SECOND, Event::Calm);
                self.at(now + 8 * SECOND, Event::Survive);
            }
            Fault::Pause(who, time) => {
                let id = self.whom(who);
                self.note(format_args!("node {id} isn't run"));
                if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.process.is_some()) {
                    node.paused = true;
                    let life = node.life;
                    self.at(now + time, Event::Resume { node: id, life });
                }
            }
            Fault::Stall(who, time, more) => {
                let id = self.whom(who);
                self.note(format_args!("node {id} isn't run, its consensus for longer"));
                if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.process.is_some()) {
                    (node.paused, node.stalled) = (true, true);
                    let life = node.life;
                    self.at(now + time, Event::Awake { node: id, life });
                    self.at(now + time + more, Event::Resume { node: id, life });
                }
            }
            Fault::Isolate(who, way, time) => {
                let node = self.whom(who);
                self.note(format_args!("node {node} is cut off: {way:?}"));
                self.cut_off(node, way, time);
            }
            Fault::Split(some, time) => {
                let some: BTreeSet<u64> = some.iter().map(|node| self.stands_for(*node)).collect();
                let all = self.ids();
                let links = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
                let parted = links.filter(|(from, to)| some.contains(from) != some.contains(to)).collect();
                let cut = self.network.cut(parted);
                self.at(now + time, Event::Mend(cut));
            }
            Fault::SlowLink(who, to, delay, time) => {
                let (from, to) = (self.whom(who), self.stands_for(to));
                self.network.slow(from, to, delay);
                self.at(now + time, Event::Unslow { from, to });
            }
            Fault::Network(quality, time) => {
                self.network.set_quality(quality);
                self.at(now + time, Event::Calm);
            }
            Fault::DiskFull(who, time) => {
                let id = self.whom(who);
                self.note(format_args!("node {id} has no space"));
                let node = self.nodes.get_mut(&id).expect("faults hit nodes that are there");
                node.log.set_full(true);
                node.files.set_full(true);
                node.process.iter_mut().for_each(|process| process.had_trouble = true);
                self.at(now + time, Event::Space { node: id });
            }
            Fault::ClockRate(who, permille) => {
                let id = self.whom(who);
                self.note(format_args!("node {id}'s clock runs at {permille}/1000"));
                self.nodes[&id].clock.set_rate(permille);
                // What it wants to do next comes at another time now.
                self.nodes.get_mut(&id).expect("faults hit nodes that are there").tick_at = None;
                self.touch(id);
            }
            Fault::SlowNode(who, delay, time) => {
                let node = self.whom(who);
                self.note(format_args!("node {node} is slow"));
                self.nodes.get_mut(&node).expect("faults hit nodes that are there").turn_delay = delay;
                self.at(now + time, Event::Hurry { node });
            }
            Fault::Transfer(to) => self.transfer(self.stands_for(to)),
            Fault::Members(voters, rebuild) => self.change_members(&voters, rebuild),
            Fault::Check => self.check(),
            Fault::Hold(holds) => self.hold(holds),
            Fault::LateReads(who, time, more) => {
                let id = self.whom(who);
                self.note(format_args!("node {id} is cut off, and its readers are taken"));
                self.cut_off(id, Way::Both, time + more);
                let node = self.nodes.get_mut(&id).expect("faults hit nodes that are there");
                node.take_readers(|replica| {
                    now_or_never(replica.snapshot(Consistency::Eventual, soon()))?.ok()
                });
                let life = node.life;
                self.at(now + time, Event::Readers { node: id, life });
                self.read_now();
            }
            Fault::DiskLost(who, down) => self.lose(who, down, false)?,
            Fault::FilesGone(who, down) => self.lose(who, down, true)?,
            Fault::SlowDisk(who, delay, time) => {
                let id = self.whom(who);
                self.note(format_args!("node {id}'s disk is slow"));
                self.nodes.get_mut(&id).expect("faults hit nodes that are there").disk_delay = delay;
                self.at(now + time, Event::Quick { node: id });
            }
            Fault::Restart(who, down) => self.leave(self.whom(who), down),
            Fault::Quiet(time) => self.quiet_until = now + time,
        }
        Ok(())
    }

    fn cut_off(&mut self, node: u64, way: Way, time: Time) {
        let others = self.ids().into_iter().filter(|other| *other != node);
        let links = others.flat_map(|other| match way {
            Way::Both => vec![(node, other), (other, node)],
            Way::Out => vec![(node, other)],
            Way::In => vec![(other, node)],
        });
        let cut = self.network.cut(links.collect());
        self.at(self.now() + time, Event::Mend(cut));
    }

    /// A node loses its disks, or no more than the group's files. One at a time: what a majority loses is lost.
    fn lose(&mut self, who: Who, down: Time, files: bool) -> Outcome {
        let id = self.whom(who);
        if self.wound.is_some() || !self.can_lose(id) {
            self.note(format_args!("node {id} keeps what it has"));
            return Ok(());
        }
        if self.nodes[&id].process.is_some() {
            self.crash(id, "loses what it has")?;
        }
        let now = self.now();
        let new = if files {
            self.nodes.get_mut(&id).expect("it was just hit").lose_files()?;
            self.down_for(id, down);
            self.count("files lost");
            id
        } else {
            let new = self.nodes.keys().last().copied().unwrap_or_default() + 1;
            self.nodes.get_mut(&id).expect("it was just hit").gone = true;
            self.replaced.insert(id, new);
            let (root, seed) = (self.root.clone(), self.plan.seed);
            let node = Node::new(new, Path::new(&root), &self.clock, self.plan.setup, seed);
            self.nodes.insert(new, node);
            self.at(now + down, Event::Start { node: new });
            self.at(now + REVIVE, Event::Revive { node: new });
            self.count("disks lost");
            new
        };
        self.note(format_args!("node {new} is to take the place of node {id}"));
        self.wound = Some(Wound { lost: id, new });
        self.at(now + down, Event::Operate);
        Ok(())
    }

    /// Lets go of the snapshots that are open at a node.
    pub(super) fn forget_snapshots(&mut self, id: u64) {
        for client in &mut self.clients {
            if client.kept.as_ref().is_some_and(|kept| kept.node == id) {
                client.kept = None;
            }
        }
    }

    fn down_for(&mut self, node: u64, down: Time) {
        self.nodes.get_mut(&node).expect("faults hit nodes that are there").down_for = down;
    }

    /// A node dies, and will start again.
    pub(super) fn crash(&mut self, id: u64, how: &str) -> Outcome {
        let node = self.nodes.get_mut(&id).expect("only nodes crash");
        let lost = node.crash(&mut self.random)?;
        let again = node.down_for;
        self.forget_snapshots(id);
        self.count("crashes");
        self.note(format_args!("node {id} {how}: {lost}"));
        self.at(self.now() + again, Event::Start { node: id });
        Ok(())
    }

    /// A node starts again.
    pub(super) fn start(&mut self, id: u64) -> Outcome {
        let node = self.nodes.get_mut(&id).expect("only nodes start");
        if node.process.is_some() || node.gone {
            return Ok(());
        }
        let lost_files = node.lost_files;
        let full = node.log.is_full();
        match node.start(None) {
            Ok(()) => {
                let process = node.process.as_mut().expect("it was just started");
                process.had_trouble = full || lost_files;
                let status = process.replica().map(|replica| replica.status());
                match status {
                    None => self.note(format_args!("node {id} starts without a replica")),
                    Some(status) => {
                        self.note(format_args!("node {id} starts at index {}", status.applied));
                        if let (Some(why), false) = (status.stopped, full || lost_files) {
                            return Err(format!("the replica on node {id} can't start: {why}"));
                        }
                    }
                }
                self.touch(id);
                Ok(())
            }
            Err(why) if full => {
                self.note(format_args!("node {id} can't start: {why}"));
                self.at(self.now() + SECOND, Event::Start { node: id });
                Ok(())
            }
            Err(why) => Err(format!("node {id} can't start: {why}")),
        }
    }

    /// Production's upkeep, by hand.
    pub(super) fn revive(&mut self, id: u64) -> Outcome {
        self.at(self.now() + REVIVE, Event::Revive { node: id });
        let node = &self.nodes[&id];
        let Some(process) = node.process.as_ref().filter(|_| !node.paused) else { return Ok(()) };
        let stopped =
            |process: &Process| process.replica().is_some_and(|replica| replica.status().stopped.is_some());
        let had_stopped = stopped(process);
        replica::simulation::revive(&process.host);
        if had_stopped && !stopped(process) {
            let applied = process.replica().map(|replica| replica.status().applied).unwrap_or_default();
            self.count("revivals");
            self.note(format_args!("node {id}'s replica goes on at index {applied}"));
        }
        self.touch(id);
        Ok(())
    }

    /// A node's disk has space again.
    pub(super) fn give_space(&mut self, id: u64) {
        let node = &self.nodes[&id];
        node.log.set_full(false);
        node.files.set_full(false);
    }

    /// Everything is well from now on.
    pub(super) fn heal(&mut self) -> Outcome {
        self.note(format_args!("all is healed"));
        self.healed = true;
        self.network.heal();
        for id in self.ids() {
            self.give_space(id);
            let node = self.nodes.get_mut(&id).expect("they are all there");
            node.dies_voting = None;
            node.taken.clear();
            (node.disk_delay, node.busy_until) = (0, 0);
            node.log.spare();
            node.files.spare();
            (node.paused, node.stalled) = (false, false);
            node.turn_delay = MILLISECOND;
            if node.process.is_none() {
                self.start(id)?;
            }
            self.touch(id);
        }
        Ok(())
    }
}
