//! What an operator asks of the group's leader: to hand over, to change the members, to have all hash their tables; and of
//! a node: to let go of its replica, to hand over and go.
//!
//! Each may fail at any time, and nobody repeats it: whatever it leaves behind, the group must go on. Only what a node has
//! lost is made up for again and again until it's done, as the coordinator does it.

use super::super::client::Flag;
use super::super::node::GROUP;
use super::super::trace::{SECOND, Time};
use super::{Event, Outcome, World};
use proto::{NodeId, Retry, SqlState, WireError};
use replica::simulation::holds_lease;
use replica::{MemberTarget, Replica};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a chore may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often an operator looks whether the group has made up for what a node lost.
const OPERATION: Time = 2 * SECOND;

/// What kind of chore it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Transfer,
    Members,
    /// Has the group make up for what a node lost.
    Replace,
    Check,
    Hold,
    /// The node is to be shut down, and stays down for so long.
    Leave(Time),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Transfer => "leader transfer",
            Kind::Members => "membership change",
            Kind::Replace => "replacement of what was lost",
            Kind::Check => "check",
            Kind::Hold => "log hold",
            Kind::Leave(_) => "graceful shutdown",
        }
    }
}

/// A chore that a node was given.
pub(super) struct Chore {
    kind: Kind,
    what: String,
    node: u64,
    life: u64,
    answer: Answer,
    flag: Arc<Flag>,
}

type Answer = Pin<Box<dyn Future<Output = Result<(), WireError>>>>;

/// What a node has lost, and the group must make up for.
pub(super) struct Wound {
    /// Who lost it.
    pub lost: u64,
    /// Who comes in its place: another node, or itself afresh.
    pub new: u64,
}

impl World {
    fn leader(&self) -> Option<(u64, Replica)> {
        let replicas = self.nodes.values().filter_map(|node| Some((node.id, node.replica()?)));
        replicas.filter(|(_, replica)| replica.is_leader()).max_by_key(|(_, replica)| replica.status().term)
    }

    fn give(&mut self, kind: Kind, what: String, chore: impl FnOnce(Replica, Instant) -> Answer) {
        let Some((node, replica)) = self.leader() else {
            self.count(format!("{}: nobody leads", kind.name()));
            return self.note(format_args!("nobody leads who could {what}"));
        };
        self.give_to(node, kind, what, chore(replica, patience()));
    }

    fn give_to(&mut self, node: u64, kind: Kind, what: String, answer: Answer) {
        let life = self.nodes[&node].life;
        self.note(format_args!("node {node} is to {what}"));
        self.chores.push(Chore { kind, what, node, life, answer, flag: Arc::default() });
        // The first poll, right after this event, puts it before the loops.
        self.touch(node);
    }

    pub(super) fn transfer(&mut self, to: u64) {
        self.give(Kind::Transfer, format!("let node {to} lead"), |replica, deadline| {
            Box::pin(async move { replica.transfer_leader(NodeId(to), deadline).await })
        });
    }

    pub(super) fn change_members(&mut self, voters: &BTreeSet<u64>, rebuild: Option<u64>) {
        // Who is made anew is no member meanwhile: too many to miss, if another one has lost all that it had.
        let rebuild = rebuild.filter(|_| self.wound.is_none()).map(|node| self.stands_for(node));
        let voters = voters.iter().map(|node| self.stands_for(*node)).collect();
        self.members_settled = false;
        self.have_members(Kind::Members, &voters, rebuild);
    }

    fn have_members(&mut self, kind: Kind, voters: &BTreeSet<u64>, rebuild: Option<u64>) {
        let target = MemberTarget {
            voters: voters.iter().map(|node| NodeId(*node)).collect(),
            rebuild: rebuild.map(NodeId),
        };
        let what = format!("have the members {voters:?}, {rebuild:?} afresh");
        self.give(kind, what, |replica, deadline| {
            Box::pin(async move { replica.change_members(target, deadline).await.map(drop) })
        });
    }

    pub(super) fn check(&mut self) {
        self.give(Kind::Check, "have all hash their tables".into(), |replica, deadline| {
            Box::pin(async move { replica.check(deadline).await.map(drop) })
        });
    }

    pub(super) fn hold(&mut self, holds: bool) {
        let what = if holds { "keep the log for somebody" } else { "keep the log for nobody" };
        self.give(Kind::Hold, what.into(), move |replica, deadline| {
            let from = holds.then(|| replica.status().applied);
            Box::pin(async move { replica.hold_log("somebody", from, deadline).await.map(drop) })
        });
    }

    /// Has a node hand over and go, to be back later.
    pub(super) fn leave(&mut self, id: u64, down: Time) {
        let Some(host) = self.nodes[&id].process.as_ref().map(|process| process.host.clone()) else { return };
        let answer = Box::pin(async move {
            host.hand_over(patience()).await;
            Ok(())
        });
        self.give_to(id, Kind::Leave(down), "hand over and go".into(), answer);
    }

    /// Whether the group can do without what a node has: all of its members are voters, and nobody is about to change that.
    pub(super) fn can_lose(&self, node: u64) -> bool {
        let Some((_, leader)) = self.leader() else { return false };
        let members = leader.status().members;
        holds_lease(&leader)
            && self.members_settled
            && !members.joint
            && members.learners.is_empty()
            && members.voters.len() as u64 == self.plan.nodes
            && members.voters.contains(&NodeId(node))
    }

    /// What an operator does again and again until the group has made up for what a node lost.
    pub(super) fn operate(&mut self) {
        let Some(Wound { lost, new }) = self.wound else { return };
        self.at(self.now() + OPERATION, Event::Operate);
        let mut voters: BTreeSet<u64> = self.members().into_iter().collect();
        if self.chores.iter().any(|chore| chore.kind == Kind::Replace) || voters.is_empty() {
            return;
        }
        voters.remove(&lost);
        voters.insert(new);
        // Somebody else may have put another one in its place meanwhile.
        while voters.len() as u64 > self.plan.nodes
            && let Some(other) = voters.iter().copied().find(|node| *node != new)
        {
            voters.remove(&other);
        }
        self.have_members(Kind::Replace, &voters, (lost == new).then_some(new));
    }

    /// A chore was done.
    fn done(&mut self, kind: Kind, node: u64) -> Outcome {
        match kind {
            Kind::Members => {
                self.members_settled = true;
                let pause = self.random.within(0..2 * SECOND);
                self.at(self.now() + pause, Event::Sweep);
            }
            Kind::Replace => {
                if let Some(wound) = self.wound.take() {
                    self.nodes.get_mut(&wound.new).expect("it was made").lost_files = false;
                }
                self.at(self.now(), Event::Sweep);
            }
            Kind::Leave(down) => {
                self.forget_snapshots(node);
                let leaving = self.nodes.get_mut(&node).expect("it was just asked");
                leaving.stop();
                if leaving.has_died() {
                    leaving.down_for = down;
                    return self.crash(node, "dies in a write while it is shut down");
                }
                leaving.log.close();
                self.note(format_args!("node {node} is shut down"));
                self.at(self.now() + down, Event::Start { node });
            }
            Kind::Transfer | Kind::Check | Kind::Hold => {}
        }
        Ok(())
    }

    /// As the coordinator does it, nodes let go of replicas that are no members any more.
    pub(super) fn sweep(&mut self) {
        let Some((_, leader)) = self.leader() else { return };
        let members = leader.status().members;
        let all = |node: u64| members.voters.iter().chain(&members.learners).any(|member| member.0 == node);
        if members.joint
            || self.chores.iter().any(|chore| matches!(chore.kind, Kind::Members | Kind::Replace))
        {
            return;
        }
        for id in self.ids() {
            let node = &self.nodes[&id];
            if let Some(process) = node.process.as_ref().filter(|_| !all(id) && node.replica().is_some()) {
                let removed = process.host.remove(GROUP);
                self.count("replicas removed by the coordinator");
                self.note(format_args!("node {id} is to let go of its replica: {removed:?}"));
                self.touch(id);
            }
        }
    }

    /// Looks after the chores.
    pub(super) fn poll_chores(&mut self) -> Outcome {
        let mut at = 0;
        while at < self.chores.len() {
            let chore = &mut self.chores[at];
            let node = &self.nodes[&chore.node];
            let (id, kind, what) = (chore.node, chore.kind, chore.what.clone());
            if node.life != chore.life {
                self.chores.remove(at);
                self.count(format!("{}: outcome unknown", kind.name()));
            } else if node.paused || !chore.flag.is_set() {
                at += 1;
            } else {
                let answer = chore.flag.poll(&mut chore.answer);
                // Whether it has its answer or not, it may have given the loops something to do.
                self.touch(id);
                let Some(answer) = answer else {
                    at += 1;
                    continue;
                };
                self.chores.remove(at);
                match answer {
                    Ok(()) => {
                        self.count(format!("{}: done", kind.name()));
                        self.note(format_args!("node {id} did {what}"));
                        self.done(kind, id)?;
                    }
                    Err(error) => {
                        // What took too long goes on, and may be done later.
                        let late =
                            error.sqlstate == SqlState::QUERY_CANCELED || error.retry == Retry::Unknown;
                        let outcome = if late { "outcome unknown" } else { "refused" };
                        self.count(format!("{}: {outcome}", kind.name()));
                        self.note(format_args!("node {id} didn't {what}: {error}"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn patience() -> Instant {
    (tokio::time::Instant::now() + PATIENCE).into_std()
}
