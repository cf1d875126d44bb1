//! Which transactions must end so that others go on.
//!
//! In come rounds of what shards say of their branches; out go the cycles of waits that last, each with one victim, its
//! youngest member. A statement waits for *all* that it is said to wait for, so every cycle is a deadlock. But shards don't
//! answer at one moment, so a cycle may be put together from waits that were never there at once: what counts is
//! one whose every wait was there in two rounds running. It must never know how shards are asked or victims end.

use proto::services::BranchStatus;
use proto::{ShardId, TransactionId};
use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap, HashSet};

/// A statement of `waiter` waits on `shard` for the end of `holder`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wait {
    pub(crate) waiter: TransactionId,
    pub(crate) holder: TransactionId,
    pub(crate) shard: ShardId,
}

/// A deadlock: each waits for the next one, the last one for the first. The first is the one to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deadlock {
    pub(crate) cycle: Vec<Wait>,
}

impl Deadlock {
    /// The wait of the victim.
    pub(crate) fn victim(&self) -> Wait {
        self.cycle[0]
    }

    /// The cycle in words, a line for each wait.
    pub(crate) fn describe(&self, name: impl Fn(ShardId) -> String) -> String {
        let line = |wait: &Wait| {
            let Wait { waiter, holder, shard } = wait;
            format!("Transaction {waiter} waits for transaction {holder} on shard {}.", name(*shard))
        };
        self.cycle.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// For each transaction that waits: for whom, and on which shard.
type Graph = BTreeMap<TransactionId, BTreeMap<TransactionId, ShardId>>;

/// What the last round saw.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    before: BTreeSet<Wait>,
}

impl Rounds {
    /// Takes the next round, and tells the deadlocks that were there in the one before, too. Their victims are to be ended
    /// before the next.
    pub(crate) fn next(&mut self, branches: &[BranchStatus]) -> Vec<Deadlock> {
        let mut waits = BTreeSet::new();
        let mut begun = BTreeMap::new();
        for BranchStatus { shard, transaction, begun: since, waits_for, .. } in branches {
            begun.insert(*transaction, *since);
            let wait = |holder: &TransactionId| Wait { waiter: *transaction, holder: *holder, shard: *shard };
            waits.extend(waits_for.iter().map(wait));
        }
        let lasting: BTreeSet<_> = waits.intersection(&self.before).copied().collect();
        let begun = |transaction: TransactionId| begun.get(&transaction).copied().unwrap_or_default();
        let deadlocks = deadlocks(&lasting, begun);
        // What was seen is no more: whoever goes on after a savepoint isn't to be ended for an old wait.
        self.before = if deadlocks.is_empty() { waits } else { BTreeSet::new() };
        deadlocks
    }
}

/// The deadlocks, so many that none is left when the victim of each has ended. `begun` tells who is young; of two that
/// began at once, the greater id is.
fn deadlocks(waits: &BTreeSet<Wait>, begun: impl Fn(TransactionId) -> u64) -> Vec<Deadlock> {
    let mut graph = Graph::new();
    for Wait { waiter, holder, shard } in waits {
        if waiter != holder
            && let Entry::Vacant(entry) = graph.entry(*waiter).or_default().entry(*holder)
        {
            entry.insert(*shard);
        }
    }
    let mut found = Vec::new();
    while let Some(mut cycle) = cycle(&graph) {
        let youngest = (0..cycle.len()).max_by_key(|at| (begun(cycle[*at].waiter), cycle[*at].waiter));
        cycle.rotate_left(youngest.expect("a cycle has a member"));
        graph.remove(&cycle[0].waiter);
        found.push(Deadlock { cycle });
    }
    found
}

/// Any cycle of the graph. Chains may be long: a row that everyone wants has everyone in its queue.
fn cycle(graph: &Graph) -> Option<Vec<Wait>> {
    // Whoever is explored is on no cycle.
    let mut explored = HashSet::new();
    for start in graph.keys() {
        let mut path = Vec::new();
        let mut places = HashMap::new();
        let mut enter = Some(*start);
        loop {
            if let Some(transaction) = enter.take().filter(|transaction| !explored.contains(transaction)) {
                let Some(holders) = graph.get(&transaction) else {
                    explored.insert(transaction);
                    continue;
                };
                places.insert(transaction, path.len());
                path.push((transaction, holders.iter()));
            }
            let Some((transaction, holders)) = path.last_mut() else { break };
            let Some((holder, _)) = holders.next() else {
                explored.insert(*transaction);
                places.remove(transaction);
                path.pop();
                continue;
            };
            if let Some(place) = places.get(holder) {
                let members: Vec<_> = path[*place..].iter().map(|(member, _)| *member).collect();
                let nexts = members.iter().cycle().skip(1);
                let wait = |(waiter, holder): (&TransactionId, &TransactionId)| Wait {
                    waiter: *waiter,
                    holder: *holder,
                    shard: graph[waiter][holder],
                };
                return Some(members.iter().zip(nexts).map(wait).collect());
            }
            enter = Some(*holder);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RouterIncarnation;

    fn id(sequence: u64) -> TransactionId {
        TransactionId { router: RouterIncarnation(1), sequence }
    }

    fn wait(waiter: u64, holder: u64, shard: u64) -> Wait {
        Wait { waiter: id(waiter), holder: id(holder), shard: ShardId(shard) }
    }

    /// The members of each cycle, the victim first. Ids count up as transactions begin.
    fn found(waits: &[(u64, u64)]) -> Vec<Vec<u64>> {
        let waits = waits.iter().map(|(waiter, holder)| wait(*waiter, *holder, 1)).collect();
        let deadlocks = deadlocks(&waits, |transaction| transaction.sequence);
        deadlocks
            .iter()
            .map(|deadlock| deadlock.cycle.iter().map(|wait| wait.waiter.sequence).collect())
            .collect()
    }

    const NONE: [Vec<u64>; 0] = [];

    #[test]
    fn who_waits_in_a_row_isnt_deadlocked() {
        assert_eq!(found(&[]), NONE);
        assert_eq!(found(&[(1, 2), (2, 3), (1, 3), (4, 1), (4, 3)]), NONE);
        assert_eq!(found(&[(1, 1)]), NONE, "nobody waits for itself");
        // A diamond: two ways to the same holder.
        assert_eq!(found(&[(1, 2), (1, 3), (2, 4), (3, 4), (4, 5)]), NONE);
    }

    #[test]
    fn a_cycle_has_one_victim() {
        assert_eq!(found(&[(1, 2), (2, 1)]), [[2, 1]]);
        assert_eq!(found(&[(2, 1), (3, 2), (1, 3)]), [[3, 2, 1]]);
        assert_eq!(found(&[(1, 2), (2, 1), (3, 1), (3, 2), (9, 3), (1, 5)]), [[2, 1]]);
    }

    #[test]
    fn each_of_several_cycles_is_broken() {
        assert_eq!(found(&[(1, 2), (2, 1), (3, 4), (4, 3)]), [[2, 1], [4, 3]]);
        // One victim serves two cycles, where it is in both.
        assert_eq!(found(&[(1, 3), (3, 1), (2, 3), (3, 2)]), [[3, 1]]);
        // The oldest is in both, the youngest aren't.
        assert_eq!(found(&[(1, 2), (2, 1), (1, 3), (3, 1)]), [[2, 1], [3, 1]]);
    }

    #[test]
    fn the_youngest_is_told_by_its_beginning_and_then_by_its_id() {
        let waits: BTreeSet<_> = [wait(1, 2, 7), wait(2, 1, 8)].into();
        let victim = |begun: fn(TransactionId) -> u64| deadlocks(&waits, begun)[0].victim();
        assert_eq!(victim(|transaction| 10 - transaction.sequence), wait(1, 2, 7));
        assert_eq!(victim(|_| 5), wait(2, 1, 8));
    }

    #[test]
    fn the_cycle_is_named() {
        let waits: BTreeSet<_> = [wait(1, 10, 7), wait(1, 10, 9), wait(10, 1, 8)].into();
        let deadlocks = deadlocks(&waits, |transaction| transaction.sequence);
        let text = deadlocks[0].describe(|shard| format!("s{shard}"));
        let expected = "Transaction 1-a waits for transaction 1-1 on shard s8.\n\
            Transaction 1-1 waits for transaction 1-a on shard s7.";
        assert_eq!((deadlocks.len(), text.as_str()), (1, expected));
    }

    #[test]
    fn only_a_cycle_that_lasts_costs_a_victim() {
        let branch = |wait: Wait| BranchStatus {
            shard: wait.shard,
            transaction: wait.waiter,
            begun: wait.waiter.sequence,
            prepared: None,
            votes: Vec::new(),
            parallel: false,
            committed: false,
            forsaken: false,
            idle: Default::default(),
            waits_for: vec![wait.holder],
        };
        let (one, two) = (branch(wait(1, 2, 7)), branch(wait(2, 1, 8)));
        let elsewhere = branch(wait(2, 1, 9));
        let mut rounds = Rounds::default();
        let mut victims = |branches: &[&BranchStatus]| {
            let branches: Vec<_> = branches.iter().map(|branch| (*branch).clone()).collect();
            rounds
                .next(&branches)
                .iter()
                .map(|deadlock| deadlock.victim().waiter.sequence)
                .collect::<Vec<_>>()
        };
        // Never both at once, as far as two rounds can tell.
        assert_eq!(victims(&[&one]), []);
        assert_eq!(victims(&[&one, &two]), []);
        assert_eq!(victims(&[&one]), []);
        assert_eq!(victims(&[&one, &elsewhere]), []);
        assert_eq!(victims(&[&one, &two]), [], "the second waits for the first, but in another place");
        assert_eq!(victims(&[&one, &two, &elsewhere]), [2]);
        // It ends once, and what was seen before counts no more.
        assert_eq!(victims(&[&one, &two]), []);
        assert_eq!(victims(&[&one, &two]), [2]);
    }

    #[test]
    fn a_long_queue_takes_neither_stack_nor_time() {
        let chain = 20_000;
        let mut waits: Vec<_> = (1..chain).map(|n| (n, n + 1)).collect();
        assert_eq!(found(&waits), NONE);
        waits.push((chain, 1));
        let cycles = found(&waits);
        assert_eq!((cycles.len(), cycles[0].len(), cycles[0][0]), (1, chain as usize, chain));
    }
}
