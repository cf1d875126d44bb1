//! Whose tables differ.
//!
//! In come the hashes that replicas report of their tables, each at an index of their group's log; out goes who holds
//! something else than the others did at the same index. Replicas come to an index at different times, so what was
//! reported is kept for a while; only who still reports what differs is accused.

use proto::services::TableHash;
use proto::{GroupId, LogIndex, NodeId};
use std::collections::BTreeMap;

/// Indexes of which hashes are kept, for each group.
const KEPT: usize = 8;

/// What replicas reported of their tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks(BTreeMap<GroupId, Group>);

#[derive(Clone, Debug, Default)]
struct Group {
    latest: BTreeMap<NodeId, TableHash>,
    seen: BTreeMap<LogIndex, BTreeMap<NodeId, u128>>,
    /// What was found up to here has been dealt with.
    settled: LogIndex,
}

impl Checks {
    /// Takes what a replica last said of its tables.
    pub(crate) fn learn(&mut self, group: GroupId, node: NodeId, check: Option<TableHash>) {
        let Some(check) = check else {
            if let Some(known) = self.0.get_mut(&group) {
                known.latest.remove(&node);
            }
            return;
        };
        let known = self.0.entry(group).or_default();
        if known.latest.insert(node, check) == Some(check) {
            return;
        }
        known.seen.entry(check.index).or_default().insert(node, check.hash);
        while known.seen.len() > KEPT {
            known.seen.pop_first();
        }
    }

    /// Forgets what was reported of a group: its replicas have been made anew since.
    pub(crate) fn settle(&mut self, group: GroupId) {
        let Some(known) = self.0.get_mut(&group) else { return };
        let last = known.seen.last_key_value().map_or(known.settled, |(index, _)| *index);
        *known = Group { settled: last.max(known.settled), ..Group::default() };
    }

    /// The voters whose tables aren't what most voters' were at the same index. Where neither side has most, and all
    /// have spoken, the leader's side is right: it is what clients read.
    pub(crate) fn diverged(
        &self,
        group: GroupId,
        voters: &[NodeId],
        leader: Option<NodeId>,
    ) -> Vec<(NodeId, LogIndex)> {
        let Some(known) = self.0.get(&group) else { return Vec::new() };
        let accused = voters.iter().filter_map(|node| {
            let own = known.latest.get(node).filter(|own| own.index > known.settled)?;
            let said = known.seen.get(&own.index)?;
            let said: Vec<_> = voters.iter().filter_map(|voter| Some((*voter, *said.get(voter)?))).collect();
            let count = |hash: u128| said.iter().filter(|(_, other)| *other == hash).count();
            let most = said.iter().map(|(_, hash)| *hash).max_by_key(|hash| count(*hash))?;
            let right = if 2 * count(most) > voters.len() {
                most
            } else if said.len() == voters.len() {
                said.iter().find(|(voter, _)| Some(*voter) == leader)?.1
            } else {
                return None;
            };
            (own.hash != right).then_some((*node, own.index))
        });
        accused.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(4);

    fn checks(said: &[(u64, u64, u128)]) -> Checks {
        let mut checks = Checks::default();
        for (node, index, hash) in said {
            let check = TableHash { index: LogIndex(*index), hash: *hash };
            checks.learn(GROUP, NodeId(*node), Some(check));
        }
        checks
    }

    fn accused(checks: &Checks, voters: &[u64], leader: u64) -> Vec<u64> {
        let voters: Vec<_> = voters.iter().copied().map(NodeId).collect();
        checks.diverged(GROUP, &voters, Some(NodeId(leader))).into_iter().map(|(node, _)| node.0).collect()
    }

    #[test]
    fn who_differs_from_most_has_diverged() {
        let three = [1, 2, 3];
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 9, 5), (3, 9, 5)]), &three, 1), []);
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 9, 6), (3, 9, 5)]), &three, 2), [2], "a leader, too");
        assert_eq!(
            accused(&checks(&[(1, 9, 5), (2, 9, 6)]), &three, 1),
            [],
            "it isn't known yet who is right"
        );
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 9, 6)]), &[1, 2], 2), [1]);
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 9, 6), (3, 9, 7)]), &three, 2), [1, 3]);
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 8, 6), (3, 9, 5)]), &three, 1), [], "at another index");
        // A replica that is none any more has no say.
        assert_eq!(accused(&checks(&[(1, 9, 5), (2, 9, 6), (8, 9, 6)]), &[1, 2], 1), [2]);
    }

    #[test]
    fn replicas_need_not_come_to_an_index_at_the_same_time() {
        let late = checks(&[(1, 9, 5), (2, 9, 5), (1, 20, 7), (2, 20, 7), (3, 9, 4)]);
        assert_eq!(accused(&late, &[1, 2, 3], 1), [3]);
        let well = checks(&[(1, 9, 5), (2, 9, 5), (3, 9, 4), (1, 20, 7), (2, 20, 7), (3, 20, 7)]);
        assert_eq!(accused(&well, &[1, 2, 3], 1), [], "what it says now is right");
    }

    #[test]
    fn what_was_dealt_with_is_over() {
        let mut checks = checks(&[(1, 9, 5), (2, 9, 5), (3, 9, 4)]);
        checks.settle(GROUP);
        let say = |checks: &mut Checks, node, index, hash| {
            checks.learn(GROUP, NodeId(node), Some(TableHash { index: LogIndex(index), hash }));
        };
        for (node, hash) in [(1, 5), (2, 5), (3, 4)] {
            say(&mut checks, node, 9, hash);
        }
        assert_eq!(accused(&checks, &[1, 2, 3], 1), []);
        for (node, hash) in [(1, 6), (2, 6), (3, 4)] {
            say(&mut checks, node, 30, hash);
        }
        assert_eq!(accused(&checks, &[1, 2, 3], 1), [3], "a new difference isn't");
        checks.learn(GROUP, NodeId(3), None);
        assert_eq!(accused(&checks, &[1, 2, 3], 1), [], "who was made anew has said nothing yet");
    }
}
