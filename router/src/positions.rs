//! How far a session has seen the shards' logs.
//!
//! In come the positions of answers and commits, and those of tokens that the client brings; out comes the floor of each
//! read. Positions only grow, so a session never goes back in time on any shard, whichever replica answers. A local set is
//! added for a block. Where the topology has shards go on in others, their positions do, too. What a shard's log is called,
//! and how a token is written, is the topology's business ([`proto::lineage`], [`crate::gtid`]); nothing here knows it.

use parking_lot::Mutex;
use proto::services::Floor;
use proto::topology::Topology;
use proto::{LogIndex, ShardId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a commit has reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Shards with the entry that has what was written there.
    pub applied: Vec<(ShardId, LogIndex)>,
    /// Shards with an entry up to which their part is prepared. It is committed by then, and may not be applied.
    pub prepared: Vec<(ShardId, LogIndex)>,
    /// Shards whose position couldn't be learned in time.
    pub unheard: Vec<ShardId>,
}

/// A session's positions.
#[derive(Debug, Default)]
pub struct Positions {
    state: Mutex<State>,
    /// The topology whose shards these are; 0 if some may be of an older one.
    epoch: AtomicU64,
    /// There are shards where it has committed something, and doesn't know where.
    has_unheard: AtomicBool,
    /// There are new ones among them.
    has_news: AtomicBool,
}

/// What a reset has taken away.
#[derive(Clone, Debug, Default)]
pub struct Forgotten(Vec<(ShardId, Held)>);

#[derive(Debug, Default)]
struct State {
    /// Ordered by shard.
    held: Vec<(ShardId, Held)>,
    /// The block's own, ordered by shard.
    local: Vec<(ShardId, LogIndex)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    floor: Floor,
    /// It has committed something here, and doesn't know where.
    is_unheard: bool,
    /// And nobody was told so yet.
    is_news: bool,
}

impl Held {
    fn raise(&mut self, by: Floor) {
        self.floor.applied = self.floor.applied.max(by.applied);
        self.floor.settled = self.floor.settled.max(by.settled);
    }
}

impl State {
    fn get(&self, shard: ShardId) -> Held {
        let place = self.held.binary_search_by_key(&shard, |(id, _)| *id);
        place.map(|place| self.held[place].1).unwrap_or_default()
    }

    fn held(&mut self, shard: ShardId) -> &mut Held {
        let place = match self.held.binary_search_by_key(&shard, |(id, _)| *id) {
            Ok(place) => place,
            Err(place) => {
                self.held.insert(place, (shard, Held::default()));
                place
            }
        };
        &mut self.held[place].1
    }

    fn local(&self, shard: ShardId) -> LogIndex {
        let place = self.local.binary_search_by_key(&shard, |(id, _)| *id);
        place.map(|place| self.local[place].1).unwrap_or_default()
    }

    fn raise_local(&mut self, shard: ShardId, index: LogIndex) {
        match self.local.binary_search_by_key(&shard, |(id, _)| *id) {
            Ok(place) => self.local[place].1 = self.local[place].1.max(index),
            Err(place) => self.local.insert(place, (shard, index)),
        }
    }

    /// Has shards that have ended go on in others.
    fn rebase(&mut self, topology: &Topology) {
        let of = |index: fn(&Held) -> LogIndex, held: &[(ShardId, Held)]| {
            let mut positions: BTreeMap<_, _> =
                held.iter().map(|(shard, held)| (*shard, index(held))).collect();
            positions.retain(|_, index| *index > LogIndex(0));
            topology.rebase(&mut positions);
            positions
        };
        let applied = of(|held| held.floor.applied, &self.held);
        let settled = of(|held| held.floor.settled, &self.held);
        let unheard = of(|held| LogIndex(held.is_unheard.into()), &self.held);
        let news = of(|held| LogIndex(held.is_news.into()), &self.held);
        let mut local = self.local.drain(..).collect();
        topology.rebase(&mut local);
        self.local = local.into_iter().collect();
        self.held.clear();
        for (shard, applied) in applied {
            self.held(shard).floor.applied = applied;
        }
        for (shard, settled) in settled {
            self.held(shard).floor.settled = settled;
        }
        for shard in unheard.into_keys() {
            self.held(shard).is_unheard = true;
        }
        for shard in news.into_keys() {
            self.held(shard).is_news = true;
        }
    }
}

impl Positions {
    /// Changes them. Shards that weren't there may be of an older topology.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        let before = state.held.len() + state.local.len();
        change(&mut state);
        if state.held.len() + state.local.len() > before {
            self.epoch.store(0, Ordering::Relaxed);
        }
    }

    /// What follows is planned by this topology. All that it asks for is of shards that this has.
    pub fn rebase(&self, topology: &Topology) {
        if self.epoch.load(Ordering::Relaxed) == topology.epoch.0 {
            return;
        }
        let mut state = self.state.lock();
        if !topology.lineage.is_empty() {
            state.rebase(topology);
        }
        self.epoch.store(topology.epoch.0, Ordering::Relaxed);
    }

    /// What a read of this shard must show.
    pub fn floor(&self, shard: ShardId) -> Floor {
        let state = self.state.lock();
        let (Held { floor, .. }, local) = (state.get(shard), state.local(shard));
        Floor { applied: floor.applied.max(local), settled: floor.settled.max(local) }
    }

    /// Something was committed at a position that isn't known: only its shard's leader shows it for certain.
    pub fn has_unheard(&self) -> bool {
        self.has_unheard.load(Ordering::Relaxed)
    }

    /// An answer was from this state.
    pub fn saw(&self, shard: ShardId, index: LogIndex) {
        self.change(|state| state.held(shard).raise(Floor::applied(index)));
    }

    /// The shard's leader has answered, and this was its newest state: all that was committed before is in it, or was
    /// prepared before it.
    pub fn asked(&self, shard: ShardId, index: LogIndex) {
        self.change(|state| {
            let held = state.held(shard);
            held.raise(Floor::applied(index));
            if held.is_unheard {
                held.floor.settled = held.floor.settled.max(index);
                (held.is_unheard, held.is_news) = (false, false);
                self.has_unheard.store(state.held.iter().any(|(_, held)| held.is_unheard), Ordering::Relaxed);
            }
        });
    }

    /// A transaction of the session was committed.
    pub fn committed(&self, committed: &Committed) {
        self.change(|state| {
            for (shard, index) in &committed.applied {
                state.held(*shard).raise(Floor::applied(*index));
            }
            for (shard, index) in &committed.prepared {
                state.held(*shard).raise(Floor { applied: LogIndex(0), settled: *index });
            }
            for shard in &committed.unheard {
                let held = state.held(*shard);
                (held.is_unheard, held.is_news) = (true, true);
            }
            if !committed.unheard.is_empty() {
                self.has_unheard.store(true, Ordering::Relaxed);
                self.has_news.store(true, Ordering::Relaxed);
            }
        });
    }

    /// The shards whose position isn't known since the last time that this was asked.
    pub fn take_unheard(&self) -> Vec<ShardId> {
        if !self.has_news.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let news = |(shard, held): &mut (ShardId, Held)| std::mem::take(&mut held.is_news).then_some(*shard);
        state.held.iter_mut().filter_map(news).collect()
    }

    /// Takes in the positions of a token. `local`: until the block ends.
    pub fn merge(&self, token: impl IntoIterator<Item = (ShardId, LogIndex)>, local: bool) {
        self.change(|state| {
            for (shard, index) in token {
                if local {
                    state.raise_local(shard, index);
                } else {
                    state.held(shard).raise(Floor { applied: index, settled: index });
                }
            }
        });
    }

    /// The block has ended.
    pub fn end_local(&self) {
        self.state.lock().local.clear();
    }

    /// Forgets everything but the block's own, and what this token says.
    pub fn reset(&self, token: impl IntoIterator<Item = (ShardId, LogIndex)>) -> Forgotten {
        let forgotten = Forgotten(std::mem::take(&mut self.state.lock().held));
        self.has_unheard.store(false, Ordering::Relaxed);
        self.merge(token, false);
        forgotten
    }

    /// Takes back what a reset has taken away.
    pub fn restore(&self, forgotten: &Forgotten) {
        self.change(|state| {
            for (shard, before) in &forgotten.0 {
                let held = state.held(*shard);
                held.raise(before.floor);
                held.is_unheard |= before.is_unheard;
                if before.is_unheard {
                    self.has_unheard.store(true, Ordering::Relaxed);
                }
            }
        });
    }

    /// How far the shards' logs were seen.
    pub fn show(&self) -> BTreeMap<ShardId, LogIndex> {
        let state = self.state.lock();
        let mut all: BTreeMap<_, _> =
            state.held.iter().map(|(shard, held)| (*shard, held.floor.index())).collect();
        for (shard, index) in &state.local {
            let known = all.entry(*shard).or_default();
            *known = (*known).max(*index);
        }
        all.retain(|_, index| *index > LogIndex(0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::gtid::GtidSource;
    use proto::topology::Retired;
    use proto::{Epoch, Incarnation, KeyRange};

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);
    const C: ShardId = ShardId(3);

    fn floor(applied: u64, settled: u64) -> Floor {
        Floor { applied: LogIndex(applied), settled: LogIndex(settled) }
    }

    #[test]
    fn positions_only_grow() {
        let positions = Positions::default();
        assert_eq!(positions.floor(A), Floor::default());
        positions.saw(B, LogIndex(5));
        positions.saw(B, LogIndex(4));
        assert_eq!((positions.floor(A), positions.floor(B)), (Floor::default(), floor(5, 0)));
        let applied = vec![(A, LogIndex(3))];
        let prepared = vec![(B, LogIndex(2))];
        positions.committed(&Committed { applied, prepared, unheard: Vec::new() });
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(3, 0), floor(5, 2)));
        assert_eq!(positions.show(), BTreeMap::from([(A, LogIndex(3)), (B, LogIndex(5))]));
    }

    #[test]
    fn a_token_raises_both_and_a_local_one_for_the_block_alone() {
        let positions = Positions::default();
        positions.merge([(A, LogIndex(7))], false);
        positions.merge([(A, LogIndex(6)), (B, LogIndex(9))], true);
        positions.merge([(B, LogIndex(8))], true);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(7, 7), floor(9, 9)));
        assert_eq!(positions.show(), BTreeMap::from([(A, LogIndex(7)), (B, LogIndex(9))]));
        let forgotten = positions.reset([(A, LogIndex(5))]);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(6, 6), floor(9, 9)));
        positions.end_local();
        assert_eq!(positions.show(), BTreeMap::from([(A, LogIndex(5))]));
        positions.saw(B, LogIndex(3));
        positions.restore(&forgotten);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(7, 7), floor(3, 0)));
    }

    #[test]
    fn what_was_not_heard_is_asked_for() {
        let positions = Positions::default();
        positions.committed(&Committed { unheard: vec![A], ..Committed::default() });
        assert!(positions.has_unheard() && positions.show().is_empty());
        assert_eq!((positions.take_unheard(), positions.take_unheard()), (vec![A], vec![]));
        positions.saw(A, LogIndex(3));
        positions.asked(B, LogIndex(4));
        assert!(positions.has_unheard());
        assert_eq!(positions.floor(B), floor(4, 0), "nothing of it is known to be prepared");
        let forgotten = positions.reset([]);
        assert!(!positions.has_unheard());
        positions.restore(&forgotten);
        assert!(positions.has_unheard());
        positions.asked(A, LogIndex(2));
        assert_eq!((positions.has_unheard(), positions.floor(A)), (false, floor(3, 2)));
        assert!(positions.take_unheard().is_empty());
    }

    #[test]
    fn positions_go_on_with_their_shards() {
        let split = |epoch, successors: &[(ShardId, u64)]| {
            let source =
                GtidSource { keyspace: "main".into(), shard: KeyRange::full(), incarnation: Incarnation(1) };
            let successors = successors.iter().map(|(shard, index)| (*shard, LogIndex(*index))).collect();
            let retired = Retired { shard: A, last: LogIndex(100), successors };
            let lineage = BTreeMap::from([(source, retired)]);
            Topology { epoch: Epoch(epoch), lineage, ..Topology::default() }
        };
        let positions = Positions::default();
        positions.rebase(&Topology { epoch: Epoch(1), ..Topology::default() });
        let (applied, prepared) = (vec![(A, LogIndex(7))], vec![(A, LogIndex(6))]);
        positions.committed(&Committed { applied, prepared, unheard: vec![A] });
        positions.saw(C, LogIndex(5));
        positions.merge([(A, LogIndex(8))], true);
        positions.rebase(&split(2, &[(B, 3), (C, 4)]));
        positions.end_local();
        assert_eq!((positions.floor(A), positions.floor(B)), (Floor::default(), floor(3, 3)));
        assert_eq!((positions.floor(C), positions.has_unheard()), (floor(5, 4), true));
        assert_eq!(positions.take_unheard(), [B, C]);
        positions.merge([(B, LogIndex(3))], true);
        assert_eq!(positions.floor(B), floor(3, 3));
        // An answer of before the split that comes after it.
        positions.saw(A, LogIndex(9));
        positions.rebase(&split(2, &[(B, 3), (C, 6)]));
        assert_eq!((positions.floor(A), positions.floor(C)), (Floor::default(), floor(6, 4)));
    }
}
