//! What was read of a source and isn't taken over yet.
//!
//! In come parts of its log, out comes what is to be done next: whole entries that go into one write, a schema step, a big
//! transaction piece by piece. A seal stays in front, with its entry, until it is undone. It must never know what the
//! changes are.

use bytes::Bytes;
use proto::LogIndex;
use proto::services::{
    Change, ChangeKind, Changes, Estate, Left, NamedAnswer, ReplayRun, SchemaRun, Serving,
};
use std::collections::VecDeque;

/// A write takes no further entry once it has so many bytes.
pub(super) const WRITE_BYTES: usize = 1 << 20;

/// No more is read than this, but for an entry that is begun.
const ROOM: usize = 1 << 20;

/// What a change costs beside its bytes.
const COST: usize = 64;

/// Entries that come one after the other.
#[derive(Debug)]
pub(super) struct Queue {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Where what the source serves as changes, and whether by a seal that holds as far as is known.
    servings: VecDeque<(LogIndex, bool)>,
    /// All that lies before this was taken out.
    taken: LogIndex,
    /// All up to here was put in.
    read: LogIndex,
    /// How much of the entry after that was taken out: it isn't to come again.
    begun: Option<(LogIndex, usize)>,
    /// How much of it is to be passed over, as it is told anew.
    again: usize,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing is there.
    Nothing,
    /// Whole entries.
    Entries(Entries),
    /// A schema step, which stays in front.
    Schema,
    /// A big transaction.
    Replay(LogIndex, ReplayRun),
    /// A piece of it.
    Piece(Bytes),
    /// A seal, which stays in front.
    Seal,
}

/// Entries that are taken over in one write.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Entries {
    /// The rows that they changed, as changesets.
    pub rows: Vec<Bytes>,
    /// The requests that they answered.
    pub answers: Vec<NamedAnswer>,
    /// Whether the source was opened again: what was adopted of it isn't its estate any more.
    pub reopens: bool,
    /// All up to here.
    pub to: LogIndex,
}

/// A seal that holds as far as is known, with what else its entry did, and what it leaves.
#[derive(Debug, PartialEq)]
pub(super) struct Seal {
    pub by: Estate,
    pub left: Vec<Left>,
    pub entry: Entries,
}

impl Entries {
    fn add(&mut self, kind: ChangeKind) {
        match kind {
            ChangeKind::Rows(changeset) => self.rows.push(changeset),
            ChangeKind::Answer(answer) => self.answers.push(answer),
            ChangeKind::Serving(Serving::Open) => self.reopens = true,
            _ => {}
        }
    }
}

impl Queue {
    /// Nothing, after this position.
    pub fn new(after: LogIndex) -> Self {
        let (changes, servings) = Default::default();
        Self { changes, bytes: 0, servings, taken: after, read: after, begun: None, again: 0 }
    }

    /// Whether there is room for more. What waits for a schema step reads nothing.
    pub fn has_room(&self) -> bool {
        match self.changes.front() {
            Some(Change { kind: ChangeKind::Schema(_), index }) => *index > self.read,
            // What undoes a seal comes after it; until then next to nothing does.
            Some(_) if self.is_sealed() => true,
            Some(change) => self.bytes < ROOM || change.index > self.read,
            None => true,
        }
    }

    /// Adds a part; says how many bytes that was.
    pub fn put(&mut self, part: Changes) -> usize {
        let before = self.bytes;
        for change in part.changes {
            if self.again > 0 && self.begun.is_some_and(|(index, _)| index == change.index) {
                self.again -= 1;
                continue;
            }
            self.bytes += cost(&change);
            if let ChangeKind::Serving(serving) = &change.kind {
                self.servings.push_back((change.index, matches!(serving, Serving::Sealed(Some(_)))));
            }
            self.changes.push_back(change);
        }
        self.read = part.position;
        self.bytes - before
    }

    /// What was begun of an entry is told anew.
    pub fn forget_begun(&mut self) {
        let read = self.read;
        while let Some(last) = self.changes.back().filter(|change| change.index > read) {
            self.bytes -= cost(last);
            if matches!(last.kind, ChangeKind::Serving(_)) {
                self.servings.pop_back();
            }
            self.changes.pop_back();
        }
        self.again = self.begun.filter(|(index, _)| *index > read).map_or(0, |(_, count)| count);
    }

    /// Up to where all was read.
    pub fn read(&self) -> LogIndex {
        self.read
    }

    /// The bytes that are in here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The schema step in front, and its entry, up to a bound: all before that was taken out.
    pub fn schema(&self, bound: LogIndex) -> Option<(LogIndex, &SchemaRun)> {
        match self.changes.front() {
            Some(Change { kind: ChangeKind::Schema(run), index }) if *index <= self.read.min(bound) => {
                Some((*index, run))
            }
            _ => None,
        }
    }

    /// The seal in front, if all before it was taken out and nothing undoes it.
    pub fn seal(&self) -> Option<Seal> {
        let index = self.changes.front()?.index;
        if !self.is_sealed() || index > self.read || self.taken.0 + 1 < index.0 {
            return None;
        }
        let mut entry = Entries { to: index, ..Entries::default() };
        let (mut by, mut left) = (None, Vec::new());
        for change in self.changes.iter().take_while(|change| change.index == index) {
            match &change.kind {
                ChangeKind::Serving(Serving::Sealed(estate)) => by = *estate,
                ChangeKind::Left(of) => left.push(of.clone()),
                other => entry.add(other.clone()),
            }
        }
        Some(Seal { by: by?, left, entry })
    }

    /// Takes the entry in front out.
    pub fn end_entry(&mut self) {
        let Some(index) = self.changes.front().map(|change| change.index) else { return };
        while self.changes.front().is_some_and(|change| change.index == index) {
            self.pop();
        }
        self.taken = self.taken.max(index);
    }

    /// Takes what is in front out, whatever it is, with the entry that it is all of.
    pub fn pass(&mut self) {
        if let Some(change) = self.pop() {
            self.taken = self.taken.max(change.index);
        }
    }

    /// What is next of the entries up to a bound. Entries and pieces are taken out.
    pub fn next(&mut self, bound: LogIndex) -> Next {
        let mut entries = Entries { to: self.taken, ..Entries::default() };
        let mut bytes = 0;
        loop {
            let Some(front) = self.changes.front() else {
                entries.to = entries.to.max(self.read.min(bound));
                break;
            };
            let index = front.index;
            // All before it is there.
            entries.to = entries.to.max(LogIndex(index.0 - 1).min(bound));
            if index > bound {
                break;
            }
            let is_first = entries.to == self.taken;
            match &front.kind {
                ChangeKind::Schema(_) if is_first && index <= self.read => return Next::Schema,
                ChangeKind::Replay(_) if is_first => {
                    let Some(Change { kind: ChangeKind::Replay(run), .. }) = self.pop() else {
                        unreachable!()
                    };
                    self.begun = Some((index, 1));
                    return Next::Replay(index, run);
                }
                ChangeKind::Piece(_) => {
                    let Some(Change { kind: ChangeKind::Piece(piece), .. }) = self.pop() else {
                        unreachable!()
                    };
                    self.begun = self.begun.map(|(index, count)| (index, count + 1));
                    return Next::Piece(piece);
                }
                ChangeKind::Schema(_) | ChangeKind::Replay(_) => break,
                ChangeKind::Rows(_) | ChangeKind::Answer(_) | ChangeKind::Left(_) => {}
                ChangeKind::Serving(_) | ChangeKind::Layouts(_) => {}
            }
            let entry = self.changes.iter().take_while(|change| change.index == index);
            let more: usize = entry.map(cost).sum();
            if index > self.read || bytes > 0 && bytes + more > WRITE_BYTES {
                break;
            }
            if self.is_sealed() {
                if is_first {
                    return Next::Seal;
                }
                break;
            }
            while self.changes.front().is_some_and(|change| change.index == index) {
                let Some(change) = self.pop() else { break };
                bytes += cost(&change);
                entries.add(change.kind);
            }
            entries.to = index;
        }
        if entries.to == self.taken {
            return Next::Nothing;
        }
        self.taken = entries.to;
        Next::Entries(entries)
    }

    /// The entry that was begun has ended.
    pub fn end(&mut self, index: LogIndex) {
        self.begun = None;
        self.taken = index;
    }

    /// Whether the entry in front is a seal that nothing which was read undoes.
    fn is_sealed(&self) -> bool {
        let front = self.changes.front().map(|change| change.index);
        self.servings.len() == 1
            && self.servings.front().is_some_and(|(index, seals)| *seals && Some(*index) == front)
    }

    fn pop(&mut self) -> Option<Change> {
        let change = self.changes.pop_front()?;
        self.bytes -= cost(&change);
        if matches!(change.kind, ChangeKind::Serving(_)) {
            self.servings.pop_front();
        }
        Some(change)
    }
}

fn cost(change: &Change) -> usize {
    let bytes = match &change.kind {
        ChangeKind::Rows(changeset) | ChangeKind::Piece(changeset) => changeset.len(),
        ChangeKind::Answer(answer) => answer.output.len(),
        ChangeKind::Left(Left::Prepared(prepared)) => prepared.locks.len() + prepared.changes.len(),
        _ => 0,
    };
    bytes + COST
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::services::{Estate, SchemaStep};
    use proto::{Attempt, ReshardId, RouterIncarnation, TransactionId};

    const ANY: LogIndex = LogIndex(u64::MAX);

    fn rows(index: u64, bytes: usize) -> Change {
        Change { index: LogIndex(index), kind: ChangeKind::Rows(vec![7; bytes].into()) }
    }

    fn part(changes: Vec<Change>, position: u64) -> Changes {
        Changes { changes, position: LogIndex(position), committed: LogIndex(position) }
    }

    /// Up to where entries are given next, and how many changesets they have.
    fn entries(queue: &mut Queue) -> (u64, usize) {
        match queue.next(ANY) {
            Next::Entries(entries) => (entries.to.0, entries.rows.len()),
            other => panic!("{other:?}"),
        }
    }

    fn is_empty(queue: &mut Queue) -> bool {
        matches!(queue.next(ANY), Next::Nothing)
    }

    #[test]
    fn whole_entries_go_together_up_to_a_bound() {
        let mut queue = Queue::new(LogIndex(3));
        assert!(is_empty(&mut queue) && queue.has_room());
        queue.put(part(vec![], 5));
        assert_eq!(entries(&mut queue), (5, 0), "nothing was done, and that is taken over");
        queue.put(part(vec![rows(6, 10), rows(6, 10), rows(8, 10), rows(9, 10)], 8));
        assert_eq!(entries(&mut queue), (8, 3), "the ninth may have more");
        assert!(is_empty(&mut queue));
        queue.put(part(vec![rows(9, 10)], 10));
        assert_eq!(entries(&mut queue), (10, 2));
        queue.put(part((11..16).map(|index| rows(index, WRITE_BYTES / 2 - COST)).collect(), 15));
        assert!(!queue.has_room());
        assert_eq!(entries(&mut queue), (12, 2));
        assert_eq!(entries(&mut queue), (14, 2));
        assert!(queue.has_room());
        // One that would be too much goes by itself.
        queue.put(part(vec![rows(16, 3 * WRITE_BYTES)], 15));
        assert_eq!(entries(&mut queue), (15, 1));
        assert!(is_empty(&mut queue) && queue.has_room(), "else its end would never come");
        assert_eq!(queue.bytes(), 3 * WRITE_BYTES + COST);
    }

    #[test]
    fn nothing_beyond_a_bound_is_taken() {
        let run = || {
            let step = SchemaStep { job: 1, step: 1 };
            SchemaRun { step, statements: Vec::new(), require_empty: Vec::new(), failure: None }
        };
        let owner = TransactionId { router: RouterIncarnation(1), sequence: 1 };
        let replay = ChangeKind::Replay(ReplayRun { owner, pieces: 1, answer: None });
        let at = |index, kind| Change { index: LogIndex(index), kind };
        let mut queue = Queue::new(LogIndex(3));
        queue.put(part(vec![rows(4, 1), rows(5, 1), rows(8, 1), at(10, ChangeKind::Schema(run()))], 10));
        queue.put(part(vec![at(11, replay), at(11, ChangeKind::Piece(vec![1].into())), rows(12, 1)], 14));
        let mut up_to = |bound| match queue.next(LogIndex(bound)) {
            Next::Entries(entries) => format!("{} up to {}", entries.rows.len(), entries.to),
            Next::Nothing => "nothing".into(),
            Next::Schema => {
                assert_eq!(queue.schema(LogIndex(bound - 1)), None);
                assert_eq!(queue.schema(LogIndex(bound)), Some((LogIndex(bound), &run())));
                queue.pass();
                "a schema step".into()
            }
            Next::Replay(..) => "a replay".into(),
            Next::Piece(_) => {
                queue.end(LogIndex(bound));
                "a piece".into()
            }
            Next::Seal => "a seal".into(),
        };
        assert_eq!([0, 3].map(&mut up_to), ["nothing"; 2]);
        assert_eq!([4, 4, 6, 7].map(&mut up_to), ["1 up to 4", "nothing", "1 up to 6", "0 up to 7"]);
        assert_eq!([9, 9].map(&mut up_to), ["1 up to 9", "nothing"]);
        assert_eq!([10, 10, 11].map(&mut up_to), ["a schema step", "nothing", "a replay"]);
        assert_eq!([0, 10, 11].map(&mut up_to), ["nothing", "nothing", "a piece"]);
        assert_eq!([13, 13, 20].map(&mut up_to), ["1 up to 13", "nothing", "0 up to 14"]);
    }

    #[test]
    fn what_is_told_anew_is_taken_once() {
        let mut queue = Queue::new(LogIndex(3));
        queue.put(part(vec![rows(4, 1), rows(5, 2)], 4));
        queue.forget_begun();
        queue.put(part(vec![rows(5, 2), rows(5, 3)], 5));
        assert_eq!(entries(&mut queue), (5, 3));

        let owner = TransactionId { router: RouterIncarnation(1), sequence: 1 };
        let run = || ChangeKind::Replay(ReplayRun { owner, pieces: 3, answer: None });
        let replay = |kind| Change { index: LogIndex(7), kind };
        let piece = |n: u8| replay(ChangeKind::Piece(vec![n].into()));
        let is_piece =
            |queue: &mut Queue, n: u8| matches!(queue.next(ANY), Next::Piece(bytes) if bytes[..] == [n]);
        queue.put(part(vec![replay(run()), piece(1), piece(2)], 6));
        assert_eq!(entries(&mut queue), (6, 0));
        assert!(matches!(queue.next(ANY), Next::Replay(LogIndex(7), _)));
        assert!(is_piece(&mut queue, 1));
        for _ in 0..2 {
            queue.forget_begun();
            assert!(is_empty(&mut queue));
            queue.put(part(vec![replay(run())], 6));
            queue.put(part(vec![piece(1)], 6));
            assert!(is_empty(&mut queue));
        }
        queue.put(part(vec![piece(2), piece(3), rows(8, 1)], 8));
        assert!(is_piece(&mut queue, 2));
        // Its end was told: what breaks off now doesn't concern it.
        queue.forget_begun();
        assert!(is_piece(&mut queue, 3));
        queue.end(LogIndex(7));
        assert_eq!(entries(&mut queue), (8, 1));
    }

    #[test]
    fn a_schema_step_stays_in_front() {
        let step = SchemaStep { job: 1, step: 1 };
        let run = SchemaRun { step, statements: Vec::new(), require_empty: Vec::new(), failure: None };
        let mut queue = Queue::new(LogIndex(3));
        let schema = Change { index: LogIndex(5), kind: ChangeKind::Schema(run.clone()) };
        queue.put(part(vec![rows(4, 1), schema], 4));
        assert_eq!(entries(&mut queue), (4, 1));
        assert!(is_empty(&mut queue) && queue.has_room() && queue.schema(ANY).is_none(), "it isn't whole");
        queue.put(part(vec![rows(6, 1)], 6));
        for _ in 0..2 {
            assert!(matches!(queue.next(ANY), Next::Schema));
            assert_eq!(queue.schema(ANY), Some((LogIndex(5), &run)));
            assert!(!queue.has_room());
        }
        queue.pass();
        assert_eq!(entries(&mut queue), (6, 1));
    }

    #[test]
    fn a_seal_stays_until_it_is_undone() {
        let serving = |index, serving| Change { index: LogIndex(index), kind: ChangeKind::Serving(serving) };
        let seal =
            |attempt| Serving::Sealed(Some(Estate { reshard: ReshardId(1), attempt: Attempt(attempt) }));
        let mut queue = Queue::new(LogIndex(3));
        queue.put(part(vec![rows(4, 1), rows(5, 1), serving(5, seal(1))], 7));
        assert_eq!(entries(&mut queue), (4, 1));
        for _ in 0..2 {
            assert!(matches!(queue.next(ANY), Next::Seal));
            assert!(queue.has_room());
        }
        queue.put(part(vec![rows(8, 1), serving(8, Serving::Open)], 8));
        assert_eq!(entries(&mut queue), (8, 2));
        queue.put(part(
            vec![serving(9, Serving::Sealed(None)), serving(10, Serving::Open), serving(11, seal(2))],
            11,
        ));
        assert_eq!(entries(&mut queue), (10, 0));
        assert!(matches!(queue.next(ANY), Next::Seal));
    }
}
