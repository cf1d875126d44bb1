//! How far a session has seen the shards' logs.
//!
//! In come the positions of answers, errors and commits, and those of tokens that the client brings; out comes the floor of
//! each read. Positions only grow, so a session never goes back in time on any shard, whichever replica answers. Where
//! something was committed and nobody has told at which position, the shard is **unheard**: its leader is asked, until an
//! answer shows its newest state. A local set is added for a block. Where the topology has shards go on in others, their
//! positions do, too. What a shard's log is called, and how a token is written, is the topology's business
//! ([`proto::lineage`], [`crate::gtid`]); nothing here knows it.

use parking_lot::Mutex;
use proto::gtid::Position;
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
    /// There are shards that are unheard.
    has_unheard: AtomicBool,
    /// There are new ones among them, by the session's own commits.
    has_news: AtomicBool,
    /// How often shards became so.
    times_unheard: AtomicU64,
}

/// What a reset has taken away.
#[derive(Clone, Debug, Default)]
pub struct Forgotten(Vec<(ShardId, Held)>);

#[derive(Debug, Default)]
struct State {
    /// Ordered by shard.
    held: Vec<(ShardId, Held)>,
    /// The block's own, ordered by shard.
    local: Vec<(ShardId, Position)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    floor: Floor,
    /// Something was committed here nobody knows where.
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

    fn local(&self, shard: ShardId) -> Position {
        let place = self.local.binary_search_by_key(&shard, |(id, _)| *id);
        place.map(|place| self.local[place].1).unwrap_or_default()
    }

    fn raise_local(&mut self, shard: ShardId, position: Position) {
        match self.local.binary_search_by_key(&shard, |(id, _)| *id) {
            Ok(place) => self.local[place].1.raise(position),
            Err(place) => self.local.insert(place, (shard, position)),
        }
    }

    fn is_unheard(&self, shard: ShardId) -> bool {
        self.get(shard).is_unheard || self.local(shard).is_unheard
    }

    fn has_unheard(&self) -> bool {
        self.held.iter().any(|(_, held)| held.is_unheard)
            || self.local.iter().any(|(_, held)| held.is_unheard)
    }

    /// All that was committed on the shard before is at this index or before it, or was prepared there.
    fn hear(&mut self, shard: ShardId, index: LogIndex) {
        let held = self.held(shard);
        held.raise(Floor { applied: LogIndex(0), settled: index });
        (held.is_unheard, held.is_news) = (false, false);
        if let Ok(place) = self.local.binary_search_by_key(&shard, |(id, _)| *id) {
            self.local[place].1.is_unheard = false;
        }
    }

    /// Has shards that have ended go on in others.
    fn rebase(&mut self, topology: &Topology) {
        let of = |position: fn(&Held) -> Position, held: &[(ShardId, Held)]| {
            let mut positions: BTreeMap<_, _> =
                held.iter().map(|(shard, held)| (*shard, position(held))).collect();
            positions.retain(|_, position| !position.is_none());
            topology.rebase(&mut positions);
            positions
        };
        let applied = |held: &Held| Position { index: held.floor.applied, is_unheard: held.is_unheard };
        let news = |held: &Held| Position { index: LogIndex(0), is_unheard: held.is_news };
        let (applied, news) = (of(applied, &self.held), of(news, &self.held));
        let settled = of(|held| held.floor.settled.into(), &self.held);
        let mut local = self.local.drain(..).collect();
        topology.rebase(&mut local);
        self.local = local.into_iter().collect();
        self.held.clear();
        for (shard, Position { index, is_unheard }) in applied {
            let held = self.held(shard);
            (held.floor.applied, held.is_unheard) = (index, is_unheard);
        }
        for (shard, settled) in settled {
            self.held(shard).floor.settled = settled.index;
        }
        for (shard, _) in news.into_iter().filter(|(_, news)| news.is_unheard) {
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
        Floor { applied: floor.applied.max(local.index), settled: floor.settled.max(local.index) }
    }

    /// Whether something was committed on the shard at a position that isn't known: only its leader shows it for certain.
    pub fn is_unheard(&self, shard: ShardId) -> bool {
        self.has_unheard.load(Ordering::Relaxed) && self.state.lock().is_unheard(shard)
    }

    /// How often shards became unheard so far: an answer from a state of before the last time settles nothing.
    pub fn times_unheard(&self) -> u64 {
        self.times_unheard.load(Ordering::Relaxed)
    }

    /// Shards have become unheard.
    fn note_unheard(&self) {
        self.has_unheard.store(true, Ordering::Relaxed);
        self.times_unheard.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer was from this state.
    pub fn saw(&self, shard: ShardId, index: LogIndex) {
        self.change(|state| state.held(shard).raise(Floor::applied(index)));
    }

    /// The shard's leader has answered, and this was its newest state: all that was committed before is in it, or was
    /// prepared before it.
    pub fn asked(&self, shard: ShardId, index: LogIndex) {
        self.change(|state| {
            state.held(shard).raise(Floor::applied(index));
            if self.has_unheard.load(Ordering::Relaxed) && state.is_unheard(shard) {
                state.hear(shard, index);
                self.has_unheard.store(state.has_unheard(), Ordering::Relaxed);
            }
        });
    }

    /// An error was from this state, or from what had been prepared by then and may be committed.
    pub fn failed(&self, shard: ShardId, index: LogIndex) {
        self.change(|state| state.held(shard).raise(Floor { applied: index, settled: index }));
    }

    /// A transaction of the session's was committed.
    pub fn committed(&self, committed: &Committed) {
        self.change(|state| {
            for (shard, index) in &committed.applied {
                state.held(*shard).raise(Floor::applied(*index));
            }
            for (shard, index) in &committed.prepared {
                state.held(*shard).raise(Floor { applied: LogIndex(0), settled: *index });
            }
            if self.has_unheard.load(Ordering::Relaxed) {
                // Its entries are later than all that was committed before.
                for (shard, index) in committed.applied.iter().chain(&committed.prepared) {
                    if state.is_unheard(*shard) {
                        state.hear(*shard, *index);
                    }
                }
                self.has_unheard.store(state.has_unheard(), Ordering::Relaxed);
            }
            for shard in &committed.unheard {
                let held = state.held(*shard);
                (held.is_unheard, held.is_news) = (true, true);
            }
            if !committed.unheard.is_empty() {
                self.note_unheard();
                self.has_news.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Another's transaction was, which was prepared there.
    pub fn learned(&self, prepared: &[(ShardId, LogIndex)]) {
        self.change(|state| {
            for (shard, index) in prepared {
                state.held(*shard).raise(Floor { applied: LogIndex(0), settled: *index });
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
    pub fn merge(&self, token: impl IntoIterator<Item = (ShardId, Position)>, local: bool) {
        self.change(|state| {
            for (shard, position) in token {
                if position.is_unheard {
                    self.note_unheard();
                }
                if local {
                    state.raise_local(shard, position);
                } else {
                    let held = state.held(shard);
                    held.raise(Floor { applied: position.index, settled: position.index });
                    held.is_unheard |= position.is_unheard;
                }
            }
        });
    }

    /// The block has ended.
    pub fn end_local(&self) {
        let mut state = self.state.lock();
        if !state.local.is_empty() {
            state.local.clear();
            self.has_unheard.store(state.has_unheard(), Ordering::Relaxed);
        }
    }

    /// Forgets everything but the block's own, and what this token says.
    pub fn reset(&self, token: impl IntoIterator<Item = (ShardId, Position)>) -> Forgotten {
        let forgotten = {
            let mut state = self.state.lock();
            let held = std::mem::take(&mut state.held);
            self.has_unheard.store(state.has_unheard(), Ordering::Relaxed);
            Forgotten(held)
        };
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
                    self.note_unheard();
                }
            }
        });
    }

    /// How far the shards' logs were seen.
    pub fn show(&self) -> BTreeMap<ShardId, Position> {
        let state = self.state.lock();
        let position = |held: &Held| Position { index: held.floor.index(), is_unheard: held.is_unheard };
        let mut all: BTreeMap<_, _> =
            state.held.iter().map(|(shard, held)| (*shard, position(held))).collect();
        for (shard, position) in &state.local {
            all.entry(*shard).or_default().raise(*position);
        }
        all.retain(|_, position| !position.is_none());
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

    fn at(index: u64) -> Position {
        LogIndex(index).into()
    }

    fn unheard(shard: ShardId) -> Committed {
        Committed { unheard: vec![shard], ..Committed::default() }
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
        assert_eq!(positions.show(), BTreeMap::from([(A, at(3)), (B, at(5))]));
        positions.failed(A, LogIndex(4));
        positions.learned(&[(B, LogIndex(7))]);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(4, 4), floor(5, 7)));
    }

    #[test]
    fn a_token_raises_both_and_a_local_one_for_the_block_alone() {
        let positions = Positions::default();
        positions.merge([(A, at(7))], false);
        positions.merge([(A, at(6)), (B, at(9))], true);
        positions.merge([(B, at(8))], true);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(7, 7), floor(9, 9)));
        assert_eq!(positions.show(), BTreeMap::from([(A, at(7)), (B, at(9))]));
        let forgotten = positions.reset([(A, at(5))]);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(6, 6), floor(9, 9)));
        positions.end_local();
        assert_eq!(positions.show(), BTreeMap::from([(A, at(5))]));
        positions.saw(B, LogIndex(3));
        positions.restore(&forgotten);
        assert_eq!((positions.floor(A), positions.floor(B)), (floor(7, 7), floor(3, 0)));
    }

    #[test]
    fn what_was_not_heard_is_asked_for() {
        let positions = Positions::default();
        positions.committed(&unheard(A));
        assert!(positions.is_unheard(A) && !positions.is_unheard(B));
        assert_eq!(positions.show(), BTreeMap::from([(A, Position::UNHEARD)]));
        assert_eq!((positions.take_unheard(), positions.take_unheard()), (vec![A], vec![]));
        positions.saw(A, LogIndex(3));
        positions.failed(A, LogIndex(1));
        positions.learned(&[(A, LogIndex(2))]);
        positions.asked(B, LogIndex(4));
        assert!(positions.is_unheard(A));
        assert_eq!(positions.show()[&A], Position { index: LogIndex(3), is_unheard: true });
        assert_eq!(positions.floor(B), floor(4, 0), "nothing of it is known to be prepared");
        let forgotten = positions.reset([]);
        assert!(!positions.is_unheard(A));
        positions.restore(&forgotten);
        assert!(positions.is_unheard(A));
        positions.asked(A, LogIndex(5));
        assert_eq!((positions.is_unheard(A), positions.floor(A)), (false, floor(5, 5)));
        assert!(positions.take_unheard().is_empty());
    }

    #[test]
    fn a_later_commit_of_the_session_is_after_what_was_not_heard() {
        let positions = Positions::default();
        positions.committed(&unheard(A));
        positions.committed(&Committed { applied: vec![(B, LogIndex(2))], ..unheard(B) });
        assert!(positions.is_unheard(A) && positions.is_unheard(B));
        positions.committed(&Committed { applied: vec![(A, LogIndex(7))], ..Committed::default() });
        positions.committed(&Committed { prepared: vec![(B, LogIndex(8))], ..Committed::default() });
        assert_eq!((positions.is_unheard(A), positions.floor(A)), (false, floor(7, 7)));
        assert_eq!((positions.is_unheard(B), positions.floor(B)), (false, floor(2, 8)));
    }

    #[test]
    fn a_token_tells_of_what_was_not_heard() {
        let positions = Positions::default();
        let (token, times) = ([(A, at(3)), (A, Position::UNHEARD)], positions.times_unheard());
        positions.merge(token, true);
        assert!(positions.is_unheard(A) && positions.times_unheard() > times);
        assert!(positions.take_unheard().is_empty(), "who brings it knows");
        assert_eq!(
            positions.show(),
            BTreeMap::from([(A, Position { index: LogIndex(3), is_unheard: true })])
        );
        positions.reset([(B, Position::UNHEARD)]);
        assert!(positions.is_unheard(A) && positions.is_unheard(B));
        positions.end_local();
        assert!(!positions.is_unheard(A) && positions.is_unheard(B));
        positions.merge(token, true);
        positions.asked(A, LogIndex(4));
        assert_eq!((positions.is_unheard(A), positions.floor(A)), (false, floor(4, 4)));
        positions.asked(B, LogIndex(4));
        assert!(!positions.is_unheard(B));
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
        positions.merge([(A, at(8))], true);
        positions.rebase(&split(2, &[(B, 3), (C, 4)]));
        positions.end_local();
        assert_eq!((positions.floor(A), positions.floor(B)), (Floor::default(), floor(3, 3)));
        assert_eq!((positions.floor(C), positions.is_unheard(C)), (floor(5, 4), true));
        assert!(positions.is_unheard(B) && !positions.is_unheard(A));
        assert_eq!(positions.take_unheard(), [B, C]);
        positions.merge([(B, at(3))], true);
        assert_eq!(positions.floor(B), floor(3, 3));
        // An answer of before the split that comes after it.
        positions.saw(A, LogIndex(9));
        positions.rebase(&split(2, &[(B, 3), (C, 6)]));
        assert_eq!((positions.floor(A), positions.floor(C)), (Floor::default(), floor(6, 4)));
    }
}
