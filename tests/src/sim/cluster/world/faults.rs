//! Faults that strike a world, and how they pass.

use super::super::super::plan::Way;
use super::super::clients::lock;
use super::super::plan::{Fault, Who};
use super::{Event, KEEPALIVE, Outcome, World};
use crate::sim::network::Quality;
use proto::{GroupId, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

impl World {
    /// The groups that there are, the coordinator's first.
    fn groups(&self) -> Vec<GroupId> {
        let processes = self.nodes.values().filter_map(|node| node.process.as_ref());
        let groups: BTreeSet<GroupId> =
            processes.flat_map(|process| process.host.replicas()).map(|replica| replica.group()).collect();
        groups.into_iter().collect()
    }

    /// The so-manyth group, and who leads it.
    fn leader(&self, number: u64) -> Option<(GroupId, u64)> {
        let group = *self.groups().get(usize::try_from(number).ok()?)?;
        let leading = self.nodes.values().filter_map(|node| {
            let replica = node.process.as_ref()?.host.replica(group)?;
            replica.is_leader().then(|| (replica.status().term, node.id))
        });
        leading.max().map(|(_, node)| (group, node))
    }

    /// Whom a fault hits now.
    fn whom(&self, who: Who) -> u64 {
        match who {
            Who::Node(node) => node,
            Who::Leader(group, otherwise) => self.leader(group).map_or(otherwise, |(_, node)| node),
        }
    }

    /// A fault of the plan happens.
    pub(super) fn strike(&mut self, number: usize) -> Outcome {
        let Some((_, fault)) = self.plan.faults.get(number).cloned().filter(|_| !self.healed) else {
            return Ok(());
        };
        if matches!(fault, Fault::AtSwitch(..)) {
            self.lurking.push_back(number);
            return Ok(());
        }
        self.hit(fault)
    }

    /// A switch has begun: what waits for one comes soon.
    pub(super) fn lie_in_wait(&mut self) {
        let Some(number) = self.lurking.pop_front() else { return };
        if let Some((_, Fault::AtSwitch(delay, _))) = self.plan.faults.get(number) {
            self.at(self.now() + delay, Event::Ambush(number));
        }
    }

    /// What has waited for a switch happens.
    pub(super) fn ambush(&mut self, number: usize) -> Outcome {
        match self.plan.faults.get(number).cloned() {
            Some((_, Fault::AtSwitch(_, fault))) if !self.healed => {
                let fault = self.aim(*fault);
                self.hit(fault)
            }
            _ => Ok(()),
        }
    }

    /// Has a fault that hits a leader hit one whom the switch is about, or the coordinator's.
    fn aim(&self, fault: Fault) -> Fault {
        let all = self.groups();
        let switching = lock(&self.shared.switching);
        let number = |number: u64| {
            let place = usize::try_from(number.checked_sub(1)?).ok()?.checked_rem(switching.len())?;
            all.iter().position(|group| *group == switching[place]).map(|place| place as u64)
        };
        let at = |who| match who {
            Who::Leader(group, node) => Who::Leader(number(group).unwrap_or(group), node),
            Who::Node(_) => who,
        };
        match fault {
            Fault::Crash(who, down) => Fault::Crash(at(who), down),
            Fault::CrashSending(who, after, down) => Fault::CrashSending(at(who), after, down),
            Fault::CrashInLog(who, down) => Fault::CrashInLog(at(who), down),
            Fault::CrashInFile(who, writes, down) => Fault::CrashInFile(at(who), writes, down),
            Fault::Pause(who, time) => Fault::Pause(at(who), time),
            Fault::Isolate(who, way, time) => Fault::Isolate(at(who), way, time),
            Fault::SlowLink(who, to, delay, time) => Fault::SlowLink(at(who), to, delay, time),
            Fault::SlowNode(who, delay, time) => Fault::SlowNode(at(who), delay, time),
            Fault::SlowDisk(who, delay, time) => Fault::SlowDisk(at(who), delay, time),
            Fault::Transfer(group, to) => Fault::Transfer(number(group).unwrap_or(group), to),
            other => other,
        }
    }

    fn hit(&mut self, fault: Fault) -> Outcome {
        *self.faults.entry(fault.kind()).or_default() += 1;
        self.note(format_args!("FAULT {fault:?}"));
        let now = self.now();
        match fault {
            Fault::Crash(who, down) => {
                let id = self.whom(who);
                if self.will_die(id, down) {
                    self.crash(id, "crashes")?;
                }
            }
            Fault::CrashSending(who, after, down) => {
                let id = self.whom(who);
                if self.will_die(id, down) {
                    self.nodes.get_mut(&id).expect("it was just seen").dies_after = Some(after);
                }
            }
            Fault::CrashInLog(who, down) => {
                let id = self.whom(who);
                if self.will_die(id, down) {
                    self.nodes[&id].log.die_at_next_write();
                }
            }
            Fault::CrashInFile(who, writes, down) => {
                let id = self.whom(who);
                if self.will_die(id, down) {
                    self.nodes[&id].files.die_in(writes);
                }
            }
            Fault::CrashAll(down) => {
                for id in self.ids() {
                    if self.will_die(id, down) {
                        self.crash(id, "crashes with all others")?;
                    }
                }
            }
            Fault::Pause(who, time) => {
                let id = self.whom(who);
                let node = self.nodes.get_mut(&id).expect("faults hit nodes that are there");
                if node.process.is_some() {
                    node.paused = true;
                    let life = node.life;
                    self.note(format_args!("node {id} isn't run"));
                    self.at(now + time, Event::Resume { node: id, life });
                    self.watch(id, None);
                }
            }
            Fault::Isolate(who, way, time) => {
                let id = self.whom(who);
                self.note(format_args!("node {id} is cut off: {way:?}"));
                let others = self.ids().into_iter().filter(|other| *other != id);
                let links = others.flat_map(|other| match way {
                    Way::Both => vec![(id, other), (other, id)],
                    Way::Out => vec![(id, other)],
                    Way::In => vec![(other, id)],
                });
                let cut = self.network.cut(links.collect());
                self.at(now + time, Event::Mend(cut));
                self.watch(id, None);
            }
            Fault::SlowLink(who, to, delay, time) => {
                let from = self.whom(who);
                self.network.slow(from, to, delay);
                self.at(now + time, Event::Unslow { from, to });
            }
            Fault::Silence(time) => self.silences.push(time),
            Fault::AtSwitch(_, fault) => return self.hit(*fault),
            Fault::Network(quality, time) => {
                self.network.set_quality(quality);
                self.at(now + time, Event::Calm);
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
                let id = self.whom(who);
                self.note(format_args!("node {id} is slow"));
                self.nodes.get_mut(&id).expect("faults hit nodes that are there").turn_delay = delay;
                self.at(now + time, Event::Hurry { node: id });
            }
            Fault::SlowDisk(who, delay, time) => {
                let id = self.whom(who);
                self.note(format_args!("node {id}'s disk is slow"));
                self.nodes.get_mut(&id).expect("faults hit nodes that are there").disk_delay = delay;
                self.at(now + time, Event::Quick { node: id });
            }
            Fault::Transfer(group, to) => {
                if let Some((group, from)) = self.leader(group).filter(|(_, from)| *from != to)
                    && let Some(process) = &self.nodes[&from].process
                    && let Some(replica) = process.host.replica(group)
                {
                    process.tasks.handle().spawn(async move {
                        let patience = proto::machine::now() + Duration::from_secs(8);
                        // It may fail, and then all stays as it is.
                        let _ = replica.transfer_leader(NodeId(to), patience).await;
                    });
                    self.wake(from);
                }
            }
        }
        Ok(())
    }

    /// Somebody commits over these routers. One of them hears nothing any more of a node that leads shards, if that was
    /// planned. It still hears the coordinator's leader, which hears all: so it learns that a commit is done, and not where.
    pub(super) fn fall_silent(&mut self, routers: Vec<u64>) {
        for to in routers {
            let Some(time) = self.silences.last().copied().filter(|_| !self.healed) else { return };
            let Some((_, coordinator)) = self.leader(0) else { return };
            let leads = |node| {
                (1..self.groups().len() as u64).any(|it| self.leader(it).is_some_and(|(_, by)| by == node))
            };
            let others = self.ids().into_iter().filter(|id| *id != to && *id != coordinator);
            if let Some(from) = others.filter(|_| to != coordinator).find(|node| leads(*node)) {
                self.silences.pop();
                self.note(format_args!("node {to} hears nothing of node {from}"));
                let cut = self.network.cut(vec![(from, to)]);
                self.at(self.now() + time, Event::Mend(cut));
                self.watch(from, Some(to));
            }
        }
    }

    /// Whether a node is there that can die.
    fn will_die(&mut self, id: u64, down: super::Time) -> bool {
        let node = self.nodes.get_mut(&id).expect("faults hit nodes that are there");
        node.down_for = down;
        node.process.is_some()
    }

    /// Whoever has a stream to the node finds out that it says nothing.
    fn watch(&mut self, id: u64, other: Option<u64>) {
        for wire in self.wires.between(id, other) {
            let time = self.now() + self.random.within(KEEPALIVE.0..KEEPALIVE.1);
            self.at(time, Event::Keepalive { wire });
        }
    }

    /// Everything works from now on.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.note(format_args!("all is healed"));
        self.network.heal();
        self.network.set_quality(Quality::GOOD);
        for id in self.ids() {
            let node = self.nodes.get_mut(&id).expect("it was just seen");
            node.log.spare();
            node.files.spare();
            node.clock.set_rate(1000);
            (node.turn_delay, node.disk_delay, node.dies_after) = (self.plan.setup.turn_delay, 0, None);
            (node.paused, node.tick_at) = (false, None);
            if node.process.is_some() {
                self.touch(id);
                self.wake(id);
            }
        }
        self.release();
    }
}
