//! The network: when a message arrives, and how often.
//!
//! Each link may be cut in one direction or both, and have a delay of its own. It must never look into a message.

use super::random::Random;
use super::trace::{MICROSECOND, MILLISECOND, SECOND, Time};
use std::collections::BTreeMap;

/// How a network treats messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// So many of a thousand are lost.
    pub lost: u64,
    /// So many of a thousand arrive twice.
    pub doubled: u64,
    /// So many of a thousand are late, by up to [`Self::late_by`]: they come after others that were sent later.
    pub late: u64,
    /// How late those are at most.
    pub late_by: Time,
    /// What the others need at most.
    pub delay: Time,
}

impl Quality {
    /// As in one rack.
    pub const GOOD: Self = Self { lost: 0, doubled: 0, late: 0, late_by: 0, delay: MILLISECOND };

    /// Nothing is lost, but it takes up to this long.
    pub const fn far(delay: Time) -> Self {
        Self { delay, ..Self::GOOD }
    }

    /// One that misbehaves.
    pub fn bad(random: &mut Random) -> Self {
        Self {
            lost: random.within(0..200),
            doubled: random.within(0..100),
            late: random.within(0..100),
            late_by: random.within(10 * MILLISECOND..4 * SECOND),
            delay: random.within(MILLISECOND..100 * MILLISECOND),
        }
    }
}

/// After this long, what wasn't acknowledged is sent again.
const AGAIN: Time = 200 * MILLISECOND;

/// A cut that can be mended.
pub type CutId = usize;

/// A network between nodes.
pub struct Network {
    random: Random,
    quality: Quality,
    cuts: BTreeMap<CutId, Vec<(u64, u64)>>,
    slow: BTreeMap<(u64, u64), Time>,
    next: CutId,
}

impl Network {
    /// A good network.
    pub fn new(seed: u64) -> Self {
        let random = Random::stream(seed, "network", 0);
        Self { random, quality: Quality::GOOD, cuts: BTreeMap::new(), slow: BTreeMap::new(), next: 0 }
    }

    /// How long each copy of a message takes that is sent now; none if it's lost.
    pub fn carry(&mut self, from: u64, to: u64) -> Vec<Time> {
        let quality = self.quality;
        if self.is_cut(from, to) || self.random.permille(quality.lost) {
            return Vec::new();
        }
        let copies = 1 + u64::from(self.random.permille(quality.doubled));
        (0..copies)
            .map(|_| {
                let mut delay = self.random.within(20 * MICROSECOND..quality.delay.max(21 * MICROSECOND));
                if self.random.permille(quality.late) {
                    delay += self.random.within(0..quality.late_by);
                }
                if let Some(slow) = self.slow.get(&(from, to)) {
                    delay += self.random.within(slow / 2..*slow);
                }
                delay
            })
            .collect()
    }

    /// How long something takes that is sent again until it arrives. The link isn't cut.
    pub fn carry_surely(&mut self, from: u64, to: u64) -> Time {
        let quality = self.quality;
        let mut delay = self.random.within(20 * MICROSECOND..quality.delay.max(21 * MICROSECOND));
        while self.random.permille(quality.lost) {
            delay += AGAIN;
        }
        if let Some(slow) = self.slow.get(&(from, to)) {
            delay += self.random.within(slow / 2..*slow);
        }
        delay
    }

    /// Whether nothing gets through.
    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.values().any(|links| links.contains(&(from, to)))
    }

    /// Cuts links, each from one node to another.
    pub fn cut(&mut self, links: Vec<(u64, u64)>) -> CutId {
        self.next += 1;
        self.cuts.insert(self.next, links);
        self.next
    }

    /// Mends a cut.
    pub fn mend(&mut self, cut: CutId) {
        self.cuts.remove(&cut);
    }

    /// Has a link take so much longer; 0 for no longer.
    pub fn slow(&mut self, from: u64, to: u64, delay: Time) {
        if delay == 0 {
            self.slow.remove(&(from, to));
        } else {
            self.slow.insert((from, to), delay);
        }
    }

    /// How it treats messages from now on.
    pub fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
    }

    /// Whether an answer to a client gets lost, which comes over the same network.
    pub fn loses_answer(&mut self) -> bool {
        self.random.permille(self.quality.lost / 2)
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.slow.clear();
        self.quality = Quality::GOOD;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_works_one_way_and_can_be_mended() {
        let mut network = Network::new(1);
        let cut = network.cut(vec![(1, 2)]);
        assert!(network.carry(1, 2).is_empty());
        assert_eq!(network.carry(2, 1).len(), 1);
        network.mend(cut);
        assert_eq!(network.carry(1, 2).len(), 1);
        network.set_quality(Quality { doubled: 1000, ..Quality::GOOD });
        assert_eq!(network.carry(1, 2).len(), 2);
    }
}
