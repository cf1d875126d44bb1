//! The record of a reshard: all that a leader must know to go on with it, and what others are shown of it.
//!
//! Progress isn't in it, nor what anybody has answered: whoever leads asks again.

use proto::services::ReshardPhase;
use proto::topology::{Build, Flow, Reshard};
use proto::{
    Attempt, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, ReshardId, ShardId,
};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// One reshard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: ReshardId,
    /// Counts what was written of it. A step is taken on the record that it was due on, or not at all.
    pub(crate) version: u64,
    pub(crate) request: RequestId,
    pub(crate) keyspace: KeyspaceNumber,
    /// What it does, for people.
    pub(crate) what: String,
    pub(crate) phase: ReshardPhase,
    /// The last attempt at a switch, in either direction.
    pub(crate) attempt: Attempt,
    /// How often images were begun. It names what the builder builds.
    pub(crate) tries: u32,
    /// How often a log had to be let go that had become too long.
    pub(crate) overruns: u32,
    pub(crate) old: Side,
    pub(crate) new: Side,
    /// Which of the two is the keyspace's.
    pub(crate) serves: Which,
    pub(crate) builder: NodeId,
    /// The replicas of old shards that the builders got for its sake.
    pub(crate) lent: Vec<(GroupId, NodeId)>,
    /// Whether schema changes wait, so that all images are of one schema.
    pub(crate) still: bool,
    /// The last hold that it has needed.
    pub(crate) hold: Hold,
    /// From where on the logs are held that flows read, or are to read if the attempt is decided.
    pub(crate) held: BTreeMap<GroupId, (Hold, LogIndex)>,
    pub(crate) options: Options,
    /// Whether the other side is to serve, as soon as it can.
    pub(crate) wanted: bool,
    /// How many attempts were given up since somebody wanted it.
    pub(crate) given_up: u32,
    /// Why there is no way back, if there is none.
    pub(crate) one_way: Option<String>,
    pub(crate) paused: Option<Paused>,
    /// Whether it is to be cancelled once the attempt is undone.
    pub(crate) cancel: bool,
    /// Why it ended, if not because it was completed.
    pub(crate) failed: Option<String>,
    /// What last went otherwise than it should, for people.
    pub(crate) message: String,
    pub(crate) counts: Counts,
}

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The shards that served when it began.
    Old,
    /// The shards that were made for it.
    New,
}

impl Which {
    pub(crate) fn other(self) -> Self {
        match self {
            Which::Old => Which::New,
            Which::New => Which::Old,
        }
    }
}

/// The shards of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// In the order of their ranges.
    pub(crate) parts: Vec<Part>,
    /// Whether they have served under the ids that they have now. An id never serves twice.
    pub(crate) served: bool,
}

/// One shard of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) shard: ShardId,
    pub(crate) group: GroupId,
    pub(crate) range: KeyRange,
    pub(crate) incarnation: Incarnation,
    /// Who holds it in the end, the one first that is to lead.
    pub(crate) replicas: Vec<NodeId>,
    /// The entry from which on it had all that was before it; 0 if it hasn't, or nothing was.
    pub(crate) first: LogIndex,
    /// Its seal, once others serve in its place; 0 before.
    pub(crate) last: LogIndex,
}

/// A name under which logs are held, one after the other. So a request that comes late concerns what nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hold(pub(crate) u32);

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// How it was wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) verify: bool,
    /// Bytes a second; 0 for as many as the writers don't mind.
    pub(crate) rate: u64,
    pub(crate) drain: Duration,
    /// `None` for ever.
    pub(crate) keep: Option<Duration>,
}

/// Why it rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paused {
    pub(crate) cause: PauseCause,
    /// For people.
    pub(crate) why: String,
}

/// What has it rest, and so what going on means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PauseCause {
    /// An admin.
    Admin,
    /// The builder's disk is full.
    Disk,
    /// No node can build.
    Builder,
    /// Old and new aren't the same.
    Differs,
    /// Its copies don't come to anything: it is to be copied anew.
    Copy,
}

/// What has happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Attempts that were decided.
    pub(crate) switches: u32,
    /// Transactions that were ended for them.
    pub(crate) ended: u32,
    /// How long each took, from the last seal to the decision.
    pub(crate) pauses: Vec<Duration>,
}

impl Record {
    /// A reshard at its beginning: `auto` if it is to switch without being told to.
    pub(crate) fn new(
        (id, request): (ReshardId, RequestId),
        (keyspace, what): (KeyspaceNumber, String),
        (old, new): (Vec<Part>, Vec<Part>),
        builder: NodeId,
        (options, auto): (Options, bool),
    ) -> Self {
        Record {
            id,
            version: 1,
            request,
            keyspace,
            what,
            phase: ReshardPhase::Planned,
            attempt: Attempt(0),
            tries: 0,
            overruns: 0,
            old: Side { parts: old, served: true },
            new: Side { parts: new, served: false },
            serves: Which::Old,
            builder,
            lent: Vec::new(),
            still: false,
            hold: Hold(0),
            held: BTreeMap::new(),
            options,
            wanted: auto,
            given_up: 0,
            one_way: None,
            paused: None,
            cancel: false,
            failed: None,
            message: String::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn side(&self, which: Which) -> &Side {
        match which {
            Which::Old => &self.old,
            Which::New => &self.new,
        }
    }

    pub(crate) fn side_mut(&mut self, which: Which) -> &mut Side {
        match which {
            Which::Old => &mut self.old,
            Which::New => &mut self.new,
        }
    }

    /// The groups of both sides.
    pub(crate) fn all_groups(&self) -> impl Iterator<Item = GroupId> {
        self.old.parts.iter().chain(&self.new.parts).map(|part| part.group)
    }

    /// The shards that serve, whose entries are taken over.
    pub(crate) fn sources(&self) -> &[Part] {
        &self.side(self.serves).parts
    }

    /// The shards that take over.
    pub(crate) fn targets(&self) -> &[Part] {
        &self.side(self.serves.other()).parts
    }

    /// Whether several shards are to be sealed: first all of them must be clear.
    pub(crate) fn clears(&self) -> bool {
        self.sources().len() > 1
    }

    /// The hold that it needs next.
    pub(crate) fn next_hold(&self) -> Hold {
        Hold(self.hold.0 + 1)
    }

    /// Where it rests between two attempts.
    pub(crate) fn resting(&self) -> ReshardPhase {
        match self.serves {
            Which::Old => ReshardPhase::Ready,
            Which::New => ReshardPhase::Switched,
        }
    }

    /// Whether an attempt is under way.
    pub(crate) fn is_attempting(&self) -> bool {
        matches!(self.phase, ReshardPhase::Switching | ReshardPhase::Undoing)
    }

    /// Whether the new shards are in the topology.
    pub(crate) fn has_founded(&self) -> bool {
        (ReshardPhase::Spreading..=ReshardPhase::Completing).contains(&self.phase)
    }

    /// Whether those that take over do so now.
    pub(crate) fn flows(&self) -> bool {
        (ReshardPhase::Spreading..=ReshardPhase::Switched).contains(&self.phase) && self.one_way.is_none()
    }

    /// What nodes must know of it.
    pub(crate) fn shown(&self) -> Option<Reshard> {
        let builds =
            matches!(self.phase, ReshardPhase::Imaging | ReshardPhase::Copying | ReshardPhase::Founding);
        let groups = || self.new.parts.iter().map(|part| part.group).collect();
        let build = builds.then(|| Build { node: self.builder, tries: self.tries, groups: groups() });
        let mut flows = Vec::new();
        for target in self.targets().iter().filter(|_| self.flows()) {
            for source in feeding(self.sources(), target) {
                let references = flows.last().is_none_or(|flow: &Flow| flow.target != target.shard);
                flows.push(Flow { source: source.shard, target: target.shard, references });
            }
        }
        let gate = self.is_attempting().then_some(self.attempt);
        let shown = Reshard { id: self.id, build, flows, gate };
        (shown.build.is_some() || !shown.flows.is_empty()).then_some(shown)
    }
}

/// Those of the sources that have rows of the target's.
pub(crate) fn feeding<'a>(sources: &'a [Part], target: &'a Part) -> impl Iterator<Item = &'a Part> {
    sources.iter().filter(|source| source.range.overlaps(&target.range))
}
