//! What an operator asks of the group's leader: to hand over, to change the members, to have all hash their tables.
//!
//! Each may fail at any time, and nobody repeats it: whatever it leaves behind, the group must go on.

use super::super::client::Flag;
use super::{Outcome, World};
use proto::{NodeId, WireError};
use replica::{MemberTarget, Replica};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long a chore may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// A chore that a leader was given.
pub(super) struct Chore {
    what: String,
    node: u64,
    life: u64,
    answer: Pin<Box<dyn Future<Output = Result<(), WireError>>>>,
    flag: Arc<Flag>,
}

impl World {
    fn leader(&self) -> Option<(u64, Replica)> {
        let replicas = self.nodes.values().filter_map(|node| Some((node.id, node.replica()?)));
        replicas.filter(|(_, replica)| replica.is_leader()).max_by_key(|(_, replica)| replica.status().term)
    }

    fn give(
        &mut self,
        what: String,
        chore: impl FnOnce(Replica, std::time::Instant) -> Pin<Box<dyn Future<Output = Result<(), WireError>>>>,
    ) {
        let Some((node, replica)) = self.leader() else {
            return self.note(format_args!("nobody leads who could {what}"));
        };
        let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
        let life = self.nodes[&node].life;
        self.note(format_args!("node {node} is to {what}"));
        self.chores.push(Chore { what, node, life, answer: chore(replica, deadline), flag: Arc::default() });
        // The first poll, right after this event, puts it before the loops.
        self.touch(node);
    }

    pub(super) fn transfer(&mut self, to: u64) {
        self.give(format!("let node {to} lead"), |replica, deadline| {
            Box::pin(async move { replica.transfer_leader(NodeId(to), deadline).await })
        });
    }

    pub(super) fn change_members(&mut self, voters: &BTreeSet<u64>, rebuild: Option<u64>) {
        let target = MemberTarget {
            voters: voters.iter().map(|node| NodeId(*node)).collect(),
            rebuild: rebuild.map(NodeId),
        };
        let what = format!("have the members {voters:?}, {rebuild:?} afresh");
        self.give(what, |replica, deadline| {
            Box::pin(async move { replica.change_members(target, deadline).await.map(drop) })
        });
    }

    pub(super) fn check(&mut self) {
        self.give("have all hash their tables".into(), |replica, deadline| {
            Box::pin(async move { replica.check(deadline).await.map(drop) })
        });
    }

    pub(super) fn hold(&mut self, holds: bool) {
        let what = if holds { "keep the log for somebody" } else { "keep the log for nobody" };
        self.give(what.into(), move |replica, deadline| {
            let from = holds.then(|| replica.status().applied);
            Box::pin(async move { replica.hold_log("somebody", from, deadline).await })
        });
    }

    /// Looks after the chores.
    pub(super) fn poll_chores(&mut self) -> Outcome {
        let mut at = 0;
        while at < self.chores.len() {
            let chore = &mut self.chores[at];
            let node = &self.nodes[&chore.node];
            let (id, what) = (chore.node, chore.what.clone());
            if node.life != chore.life {
                self.chores.remove(at);
                self.count("chores cut short");
            } else if node.paused || !chore.flag.is_set() {
                at += 1;
            } else {
                let answer = chore.flag.poll(&mut chore.answer);
                // Whether it has its answer or not, it may have given the loops something to do.
                self.touch(id);
                match answer {
                    None => {
                        at += 1;
                        continue;
                    }
                    Some(Ok(())) => {
                        self.count("chores done");
                        self.note(format_args!("node {id} did {what}"));
                    }
                    Some(Err(error)) => {
                        self.count("chores refused");
                        self.note(format_args!("node {id} didn't {what}: {error}"));
                    }
                }
                self.chores.remove(at);
            }
        }
        Ok(())
    }
}
