//! Idle groups sleep, whole.
//!
//! 1. A leader whose group has been settled and unused for a while stops ticking ([`Sleep::tick`]).
//! 2. Its node tells each member's node every heartbeat interval which groups it lets sleep, and where they stand: one
//!    [`Alive`] for all of them ([`vouch`]).
//! 3. A follower that stands there stops ticking too, and takes each further word as a heartbeat. One that doesn't
//!    answers [`crate::packet::Packet::Wake`], and so does a node that has no such replica ([`hear`]).
//! 4. Anything that happens to a group wakes it: a message, a proposal, a read that wants a round. A leader that wakes
//!    sends heartbeats, which wake the others. A follower for which nobody has vouched for an election timeout wakes as
//!    one that has waited that long.
//!
//! No packet is needed but the next: a lost word is said again, a group that isn't named any more wakes by silence. A
//! sleeping leader renews no lease, so nothing here is needed for safety either. It must never know a thread or a clock.

use crate::consensus::{Consensus, Rest};
use crate::packet::{Alive, Resting};
use proto::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether a group's replica sleeps, and how long it has had nothing to do.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    asleep: Option<Rest>,
    /// A leader's: where the group has stood for `idle` ticks.
    last: u64,
    idle: u32,
}

impl Sleep {
    /// Whether it sleeps.
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// Somebody wanted something. Wakes the replica if it slept.
    pub fn wake(&mut self, consensus: &mut Consensus, now: Duration) {
        self.idle = 0;
        if self.asleep.take().is_some() {
            consensus.rouse(now);
        }
    }

    /// A tick has passed for one that is awake; `is_used` says that somebody reads under its lease. Whether it fell
    /// asleep, after so many idle ticks.
    pub fn tick(&mut self, consensus: &Consensus, is_used: bool, most: u32) -> bool {
        let Some(rest) = consensus.settled() else {
            self.idle = 0;
            return false;
        };
        if is_used || self.last != rest.index {
            (self.idle, self.last) = (0, rest.index);
        }
        self.idle += 1;
        if self.idle > most && consensus.hears_all() {
            self.asleep = Some(rest);
        }
        self.is_asleep()
    }

    /// Whether one that sleeps must wake, since it follows a leader of whom it hears nothing.
    pub fn is_abandoned(&self, consensus: &Consensus, now: Duration) -> bool {
        self.is_asleep() && !consensus.is_leading() && consensus.is_unheard(now)
    }

    /// The leader on `node` lets the group sleep. `false` if this replica knows it otherwise, so that the leader must
    /// wake.
    pub fn hear(&mut self, consensus: &mut Consensus, node: NodeId, rest: Rest, now: Duration) -> bool {
        if !consensus.agrees(node, rest) {
            return false;
        }
        consensus.hear(now);
        self.asleep = Some(rest);
        true
    }

    /// What a sleeping leader says of its group.
    pub fn rest(&self, consensus: &Consensus) -> Option<Rest> {
        self.asleep.filter(|_| consensus.is_leading())
    }
}

/// What a node has to tell others of the groups that it lets sleep.
pub(super) fn vouch<'a>(
    groups: impl Iterator<Item = (GroupId, &'a Consensus, &'a Sleep)>,
) -> BTreeMap<NodeId, Alive> {
    let mut words: BTreeMap<NodeId, Alive> = BTreeMap::new();
    for (group, consensus, sleep) in groups {
        let Some(Rest { term, index }) = sleep.rest(consensus) else { continue };
        for node in consensus.others() {
            words.entry(node).or_default().resting.push(Resting { group: group.0, term, index });
        }
    }
    words
}
