//! Counting the votes of a transaction that they alone commit.
//!
//! In come its participants, the topology, and what shards say that they have of it; out goes whether it is committed, or who is to be
//! asked. A participant that others have replaced is its heirs: it has voted if each of them has its vote, and it never will if one
//! hasn't. What an heir has of the transaction may be another one's vote: it says whose. One that was dropped, with its keyspace, says
//! nothing any more, whether it had voted or not. The others' votes count: if all was committed it must stay so, and if nobody could tell,
//! what it would have changed is gone anyway. It must never know how shards are asked.

use proto::ShardId;
use proto::services::BranchStatus;
use proto::topology::Topology;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is known of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// It is committed.
    Committed,
    /// These must say whether they have voted, or never will.
    Open {
        /// Whose vote it is, and who is asked for it.
        ask: Vec<(ShardId, ShardId)>,
        /// Whether it is committed if all of them have voted.
        commits: bool,
    },
    /// Nothing that counts yet.
    Unknown,
}

/// Counts. The topology has every participant that wasn't dropped or replaced. `rows` are what shards have prepared of the transaction, or remember that it has committed; votes count that are as
/// old as `old`.
pub(crate) fn count(
    participants: &[ShardId],
    topology: &Topology,
    rows: &BTreeMap<ShardId, &BranchStatus>,
    old: Duration,
) -> Count {
    if rows.values().any(|row| row.committed) {
        return Count::Committed;
    }
    let (mut ask, mut is_whole) = (Vec::new(), true);
    let mut is_anyone_left = false;
    for participant in participants.iter().copied() {
        for heir in topology.heirs(participant) {
            is_anyone_left = true;
            let row = rows.get(&heir);
            is_whole &= row.is_some();
            if !row.is_some_and(|row| row.votes.contains(&participant)) {
                ask.push((participant, heir));
            }
        }
    }
    let commits = is_anyone_left && is_whole && rows.values().all(|row| row.idle >= old);
    match ask.is_empty() {
        false => Count::Open { ask, commits },
        true if commits => Count::Committed,
        true => Count::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::gtid::GtidSource;
    use proto::topology::{Retired, Shard};
    use proto::{
        GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RouterIncarnation, TransactionId,
    };

    const OLD: Duration = Duration::from_secs(1);

    /// Shards 1 to 6. 1 was split into 3 and 4; then 2 and 4 became 5.
    fn topology() -> Topology {
        let mut topology = Topology::default();
        for id in (1..=6).map(ShardId) {
            let shard = Shard {
                id,
                keyspace: KeyspaceNumber(1),
                range: KeyRange::full(),
                incarnation: Incarnation(id.0 as u32),
                group: GroupId(id.0 + 1),
                replicas: vec![NodeId(1)],
                formed: true,
                first: LogIndex(0),
            };
            topology.shards.insert(id, shard);
        }
        let successors: [(u64, &[u64]); 3] = [(1, &[3, 4]), (2, &[5]), (4, &[5])];
        for (id, successors) in successors {
            let shard = ShardId(id);
            let source = GtidSource {
                keyspace: "main".into(),
                shard: KeyRange::full(),
                incarnation: Incarnation(id as u32),
            };
            let successors = successors.iter().map(|id| (ShardId(*id), LogIndex(1))).collect();
            topology.lineage.insert(source, Retired { shard, last: LogIndex(9), successors });
        }
        topology
    }

    fn row(shard: u64, idle: Duration) -> BranchStatus {
        BranchStatus {
            shard: ShardId(shard),
            transaction: TransactionId { router: RouterIncarnation(1), sequence: 1 },
            begun: 1,
            prepared: Some(Vec::new()),
            votes: vec![ShardId(shard)],
            parallel: true,
            committed: false,
            forsaken: true,
            idle,
            waits_for: Vec::new(),
        }
    }

    fn counted(participants: &[u64], rows: &[BranchStatus]) -> Count {
        let participants: Vec<_> = participants.iter().copied().map(ShardId).collect();
        let rows = rows.iter().map(|row| (row.shard, row)).collect();
        count(&participants, &topology(), &rows, OLD)
    }

    fn open(ask: &[(u64, u64)], commits: bool) -> Count {
        let ask = ask.iter().map(|(participant, heir)| (ShardId(*participant), ShardId(*heir))).collect();
        Count::Open { ask, commits }
    }

    #[test]
    fn those_that_serve_have_voted_if_they_say_so() {
        assert_eq!(counted(&[3, 6], &[row(3, OLD), row(6, OLD)]), Count::Committed);
        assert_eq!(
            counted(&[3, 6], &[row(3, OLD), row(6, OLD / 2)]),
            Count::Unknown,
            "a cut may be in the way"
        );
        assert_eq!(counted(&[3, 6], &[row(3, OLD)]), open(&[(6, 6)], false));
        let committed = BranchStatus { committed: true, ..row(6, Duration::ZERO) };
        assert_eq!(counted(&[3, 6], &[committed]), Count::Committed);
    }

    #[test]
    fn a_participant_that_was_replaced_is_all_its_heirs() {
        let of = |shard, votes: &[u64]| {
            let votes = votes.iter().copied().map(ShardId).collect();
            BranchStatus { votes, ..row(shard, OLD) }
        };
        let whole = [of(3, &[1]), of(5, &[1]), row(6, OLD)];
        assert_eq!(counted(&[1, 6], &whole), Count::Committed);
        assert_eq!(counted(&[1, 6], &whole[1..]), open(&[(1, 3)], false));
        assert_eq!(counted(&[1, 6], &whole[..2]), open(&[(6, 6)], false));
        let fresh = [of(3, &[1]), BranchStatus { idle: OLD / 2, ..of(5, &[1]) }, row(6, OLD)];
        assert_eq!(counted(&[1, 6], &fresh), Count::Unknown);
        // What shard 5 has is two shards' votes, or one's alone.
        assert_eq!(counted(&[1, 2], &[of(3, &[1]), of(5, &[1, 2])]), Count::Committed);
        assert_eq!(counted(&[1, 2], &[of(3, &[1]), of(5, &[2])]), open(&[(1, 5)], true));
        assert_eq!(counted(&[1, 2], &[of(3, &[1]), of(5, &[1])]), open(&[(2, 5)], true));
        // Nor is it its own.
        assert_eq!(counted(&[2, 5], &[of(5, &[2])]), open(&[(5, 5)], true));
    }

    #[test]
    fn one_that_was_dropped_is_left_out() {
        assert_eq!(counted(&[3, 9], &[row(3, OLD)]), Count::Committed);
        assert_eq!(counted(&[3, 9], &[row(3, OLD / 2)]), Count::Unknown);
        assert_eq!(counted(&[3, 6, 9], &[row(3, OLD)]), open(&[(6, 6)], false));
        assert_eq!(counted(&[8, 9], &[]), Count::Unknown);
    }
}
