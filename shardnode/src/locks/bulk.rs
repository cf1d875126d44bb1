//! Many locks of one kind, in some fifteen bytes each.
//!
//! In come hashes of what a transaction has locked, statement by statement; out goes whether one is there. Two things with
//! one hash are one lock to it: who comes upon the other waits in vain, and that is all. It must never know what is locked,
//! nor by whom.

use super::{Part, Resource};
use xxhash_rust::xxh3::Xxh3;

/// What stands in a slot that is empty.
const EMPTY: u32 = u32::MAX;

/// Of so many hashes, in the order in which they came: so the last can be taken back.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    hashes: Vec<u64>,
    /// Places in `hashes`, found by linear probing. A power of two, at most three quarters full. Only what came last is
    /// ever taken out, so no probe went past it and its slot is simply emptied.
    slots: Vec<u32>,
    /// Where the hashes of each statement begin.
    statements: Vec<(u32, usize)>,
}

impl Bulk {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// All of them.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The statement that locked it, if it is locked.
    pub fn statement(&self, hash: u64) -> Option<u32> {
        let place = self.find(hash)?;
        let after = self.statements.partition_point(|(_, begin)| *begin <= place);
        after.checked_sub(1).map(|at| self.statements[at].0)
    }

    /// Adds one, unless it is there.
    pub fn add(&mut self, statement: u32, hash: u64) {
        if self.find(hash).is_some() {
            return;
        }
        if (self.hashes.len() + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        if self.statements.last().is_none_or(|(last, _)| *last < statement) {
            self.statements.push((statement, self.hashes.len()));
        }
        self.put(self.hashes.len(), hash);
        self.hashes.push(hash);
    }

    /// Takes back those of the statements after this one.
    pub fn release_after(&mut self, statement: u32) {
        while let Some((last, begin)) = self.statements.last().copied()
            && last > statement
        {
            self.statements.pop();
            while self.hashes.len() > begin {
                let hash = self.hashes[self.hashes.len() - 1];
                let slot = self.slot_of(hash);
                self.slots[slot] = EMPTY;
                self.hashes.pop();
            }
        }
    }

    fn find(&self, hash: u64) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let place = self.slots[self.slot_of(hash)];
        (place != EMPTY).then_some(place as usize)
    }

    /// The slot that has it, or the empty one that would have it.
    fn slot_of(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        while self.slots[slot] != EMPTY && self.hashes[self.slots[slot] as usize] != hash {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn put(&mut self, place: usize, hash: u64) {
        let slot = self.slot_of(hash);
        self.slots[slot] = place as u32;
    }

    fn grow(&mut self) {
        self.slots = vec![EMPTY; (self.slots.len() * 2).max(1024)];
        for place in 0..self.hashes.len() {
            self.put(place, self.hashes[place]);
        }
    }
}

/// What a lock goes by among many: it is written down with what is prepared, so it is the same everywhere and always.
pub(crate) fn hash(resource: &Resource) -> u64 {
    let (kind, number, key): (u8, u32, &[u8]) = match &resource.part {
        Part::Table => (0, 0, &[]),
        Part::Row(key) => (1, 0, key),
        Part::Unique(number, key) => (2, *number, key),
        Part::Keys(key) => (3, 0, key),
        Part::Moved(key) => (4, 0, key),
    };
    let mut hasher = Xxh3::new();
    hasher.update(&[kind]);
    hasher.update(&number.to_le_bytes());
    hasher.update(key);
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_last_is_taken_back() {
        let mut bulk = Bulk::default();
        // Many that want the same slot.
        let hash = |n: u64| (n << 32) | (n % 7);
        for statement in 1..=50_u32 {
            (0..200).for_each(|n| bulk.add(statement, hash(u64::from(statement) * 150 + n)));
        }
        let len = bulk.len();
        assert_eq!(len, 150 * 50 + 50);
        assert_eq!(bulk.statement(hash(150)), Some(1));
        assert_eq!(bulk.statement(hash(300)), Some(1), "the first that had it");
        assert_eq!(bulk.statement(hash(50 * 150 + 199)), Some(50));
        assert_eq!(bulk.statement(hash(149)), None);
        bulk.release_after(50);
        assert_eq!(bulk.len(), len);
        bulk.release_after(2);
        assert_eq!(bulk.len(), 350);
        for n in 0..10_000 {
            let statement =
                if (150..350).contains(&n) { Some(1) } else { (350..500).contains(&n).then_some(2) };
            assert_eq!(bulk.statement(hash(n)), statement, "{n}");
        }
        bulk.add(9, hash(0));
        assert_eq!(bulk.statement(hash(0)), Some(9));
        bulk.release_after(0);
        assert_eq!((bulk.len(), bulk.statement(hash(150))), (0, None));
    }
}
