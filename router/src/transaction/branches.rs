//! What a transaction has done where: its branches, and how far each is.
//!
//! Statements are numbered for each shard, in the order in which they are sent there. A savepoint is nothing but the
//! numbers of the last ones ([`Mark`]). A branch is **bound** once it may have changed or locked something: the bound
//! ones take part in the commit, the others are just let go. Nothing here asks anyone.

use proto::ShardId;
use std::collections::BTreeMap;

/// The branches of one transaction.
#[derive(Debug, Default)]
pub struct Branches {
    shards: BTreeMap<ShardId, Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The greatest number so far.
    last: u32,
    /// The last statement that stands; 0 for none.
    stands: u32,
    /// The one that stood before it.
    stood: u32,
    /// The greatest number's statement was undone, or never came there. Its number is given out again: the shard can't
    /// tell one that it knows nothing of from one whose predecessor got lost.
    undone: bool,
    /// The first of those that stand that may have changed or locked something.
    bound: Option<u32>,
}

/// How far a transaction was on each shard: what a savepoint remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark(Vec<(ShardId, u32)>);

impl Mark {
    fn of(&self, shard: ShardId) -> u32 {
        self.0.iter().find(|(id, _)| *id == shard).map_or(0, |(_, stood)| *stood)
    }
}

impl Branches {
    /// Whether statements of the transaction stand on this shard.
    pub fn has(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|progress| progress.stands > 0)
    }

    /// Whether statements of the transaction stand anywhere.
    pub fn has_part(&self) -> bool {
        self.shards.values().any(|progress| progress.stands > 0)
    }

    /// Whether something that stands on this shard may have changed or locked something.
    pub fn is_bound(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|progress| progress.bound.is_some())
    }

    /// The shard has nothing of the transaction any more, and is asked for nothing again.
    pub fn forget(&mut self, shard: ShardId) {
        self.shards.remove(&shard);
    }

    /// Numbers the next statement on a shard. `binds`: it may change or lock something.
    pub fn number(&mut self, shard: ShardId, binds: bool) -> u32 {
        let progress = self.shards.entry(shard).or_default();
        if !std::mem::take(&mut progress.undone) {
            progress.last += 1;
        }
        progress.stood = std::mem::replace(&mut progress.stands, progress.last);
        if binds {
            progress.bound.get_or_insert(progress.last);
        }
        progress.last
    }

    /// This statement, the shard's last one, has changed and locked nothing.
    pub fn unbind(&mut self, shard: ShardId, statement: u32) {
        if let Some(progress) = self.shards.get_mut(&shard)
            && progress.bound == Some(statement)
        {
            progress.bound = None;
        }
    }

    /// The shard's last statement never ran.
    pub fn take_back(&mut self, shard: ShardId) {
        if let Some(stood) = self.shards.get(&shard).map(|progress| progress.stood) {
            self.cut(shard, stood);
        }
    }

    /// On this shard no statement after this one stands.
    pub fn cut(&mut self, shard: ShardId, statement: u32) {
        if let Some(progress) = self.shards.get_mut(&shard)
            && progress.stands > statement
        {
            progress.stands = statement;
            progress.undone = true;
            progress.bound = progress.bound.filter(|first| *first <= statement);
        }
    }

    /// How far the transaction is.
    pub fn mark(&self) -> Mark {
        Mark(self.shards.iter().map(|(shard, progress)| (*shard, progress.stands)).collect())
    }

    /// The shards on which more stands than at the mark, each with the last statement that stood there then.
    pub fn beyond(&self, mark: &Mark) -> Vec<(ShardId, u32)> {
        let then = self.shards.iter().map(|(shard, progress)| (*shard, progress.stands, mark.of(*shard)));
        then.filter(|(_, now, then)| now > then).map(|(shard, _, then)| (shard, then)).collect()
    }

    /// The shards that take part in the commit, and those that are just let go.
    pub fn parts(&self) -> (Vec<ShardId>, Vec<ShardId>) {
        let (bound, loose): (Vec<_>, Vec<_>) =
            self.shards.iter().partition(|(_, progress)| progress.bound.is_some());
        let ids = |parts: Vec<(&ShardId, &Progress)>| parts.into_iter().map(|(shard, _)| *shard).collect();
        (ids(bound), ids(loose))
    }

    /// Every shard with a branch.
    pub fn shards(&self) -> Vec<ShardId> {
        self.shards.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    #[test]
    fn a_mark_finds_what_came_after_it() {
        let mut branches = Branches::default();
        assert_eq!(branches.number(A, true), 1);
        let mark = branches.mark();
        assert_eq!((branches.number(A, true), branches.number(A, true), branches.number(B, true)), (2, 3, 1));
        assert_eq!(branches.beyond(&mark), [(A, 1), (B, 0)]);
        branches.cut(A, 1);
        branches.cut(B, 0);
        assert_eq!(branches.beyond(&mark), []);
        assert!(branches.has(A) && !branches.has(B));
        assert_eq!((branches.number(A, false), branches.number(A, false)), (3, 4), "2 is done with");
        assert_eq!(branches.beyond(&mark), [(A, 1)]);
        branches.take_back(A);
        branches.cut(A, 3);
        assert_eq!((branches.number(A, false), branches.number(B, false)), (4, 1));
    }

    #[test]
    fn only_what_changed_or_locked_something_takes_part() {
        let mut branches = Branches::default();
        branches.number(A, true);
        branches.number(A, false);
        let second = branches.number(B, true);
        branches.unbind(B, second);
        assert_eq!(branches.parts(), (vec![A], vec![B]));
        branches.number(B, true);
        branches.number(B, true);
        branches.unbind(B, 3);
        assert_eq!(branches.parts(), (vec![A, B], vec![]));
        branches.cut(B, 1);
        branches.cut(A, 0);
        assert_eq!(branches.parts(), (vec![], vec![A, B]));
        branches.number(A, true);
        branches.take_back(A);
        assert_eq!(branches.parts(), (vec![], vec![A, B]));
        assert_eq!(branches.shards(), [A, B]);
    }
}
