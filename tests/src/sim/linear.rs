//! Linearizability of one register: is there an order of its operations, each at a moment between its call and its
//! return, in which every operation gives what it gave?
//!
//! The search is Wing and Gong's (Testing and Verifying Concurrent Objects, JPDC 1993) with Lowe's memory of what was
//! tried (Testing for Linearizability, CPE 2017). An operation whose caller never heard may have happened at any moment
//! after its call, or never. Registers are independent (Herlihy and Wing's locality), so each is judged by itself.

use std::collections::HashSet;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It found this value.
    Read(i64),
    /// It set a value and, if its caller heard, gave the one before.
    Swap {
        /// The value it set.
        new: i64,
        /// The value it found.
        old: Option<i64>,
    },
}

/// An operation on a register.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When it was called, on a clock that gives each moment once.
    pub called: u64,
    /// When its caller heard; nothing if it never did.
    pub returned: Option<u64>,
    /// What it did.
    pub effect: Effect,
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Broken,
    /// It took too long.
    Undecided,
}

/// How many states the search remembers before it gives up.
const MOST_STATES: usize = 500_000;

/// Calls and returns in the order of their times, linked, so that an operation can be taken out and put back.
struct Events {
    /// Each event's operation, and whether it is the call.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    return_of: Vec<Option<usize>>,
}

/// The link before the first event and after the last.
const ENDS: usize = 0;

impl Events {
    fn new(operations: &[Operation]) -> Self {
        let mut times: Vec<(u64, usize, bool)> = Vec::new();
        for (number, operation) in operations.iter().enumerate() {
            times.push((operation.called, number, true));
            times.extend(operation.returned.map(|returned| (returned, number, false)));
        }
        times.sort_unstable();
        let mut events = vec![(usize::MAX, false)];
        events.extend(times.iter().map(|(_, number, is_call)| (*number, *is_call)));
        let count = events.len();
        let mut return_of = vec![None; operations.len()];
        for (at, (number, is_call)) in events.iter().enumerate().skip(1) {
            if !is_call {
                return_of[*number] = Some(at);
            }
        }
        let next = (0..count).map(|at| (at + 1) % count).collect();
        let previous = (0..count).map(|at| (at + count - 1) % count).collect();
        Self { events, next, previous, return_of }
    }

    fn unlink(&mut self, at: usize) {
        let (next, previous) = (self.next[at], self.previous[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, at: usize) {
        let (next, previous) = (self.next[at], self.previous[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }

    /// Takes a call and its return out.
    fn lift(&mut self, call: usize) {
        self.unlink(call);
        if let Some(end) = self.return_of[self.events[call].0] {
            self.unlink(end);
        }
    }

    /// Puts back what was lifted last.
    fn unlift(&mut self, call: usize) {
        if let Some(end) = self.return_of[self.events[call].0] {
            self.link(end);
        }
        self.link(call);
    }
}

fn step(value: i64, effect: Effect) -> Option<i64> {
    match effect {
        Effect::Read(found) => (found == value).then_some(value),
        Effect::Swap { new, old } => old.is_none_or(|old| old == value).then_some(new),
    }
}

/// Judges a register that began with this value.
pub fn judge(initial: i64, operations: &[Operation]) -> Verdict {
    let mut events = Events::new(operations);
    let mut done = vec![0u64; operations.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, i64)> = HashSet::new();
    let mut path: Vec<(usize, i64)> = Vec::new();
    let mut returns_left = operations.iter().filter(|operation| operation.returned.is_some()).count();
    let mut value = initial;
    let mut at = events.next[ENDS];
    while returns_left > 0 {
        let (number, is_call) = events.events[at];
        if at != ENDS && is_call {
            if let Some(after) = step(value, operations[number].effect) {
                done[number / 64] |= 1 << (number % 64);
                if tried.insert((done.clone(), after)) {
                    path.push((at, value));
                    value = after;
                    events.lift(at);
                    returns_left -= usize::from(operations[number].returned.is_some());
                    at = events.next[ENDS];
                    continue;
                }
                done[number / 64] &= !(1 << (number % 64));
            }
            at = events.next[at];
            continue;
        }
        if tried.len() > MOST_STATES {
            return Verdict::Undecided;
        }
        let Some((call, before)) = path.pop() else { return Verdict::Broken };
        let number = events.events[call].0;
        done[number / 64] &= !(1 << (number % 64));
        value = before;
        events.unlift(call);
        returns_left += usize::from(operations[number].returned.is_some());
        at = events.next[call];
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(called: u64, returned: u64, found: i64) -> Operation {
        Operation { called, returned: Some(returned), effect: Effect::Read(found) }
    }

    fn swap(
        called: u64,
        returned: impl Into<Option<u64>>,
        new: i64,
        old: impl Into<Option<i64>>,
    ) -> Operation {
        Operation { called, returned: returned.into(), effect: Effect::Swap { new, old: old.into() } }
    }

    #[test]
    fn reads_see_what_was_written_before() {
        assert_eq!(judge(0, &[swap(1, 2, 5, 0), read(3, 4, 5)]), Verdict::Linearizable);
        assert_eq!(judge(0, &[swap(1, 2, 5, 0), read(3, 4, 0)]), Verdict::Broken);
        assert_eq!(judge(0, &[swap(1, 4, 5, 0), read(2, 3, 0)]), Verdict::Linearizable);
        assert_eq!(judge(0, &[swap(1, 6, 5, 0), read(2, 3, 5), read(4, 5, 0)]), Verdict::Broken);
    }

    #[test]
    fn what_nobody_heard_of_may_have_happened_late_or_never() {
        let lost = swap(1, None, 5, None);
        assert_eq!(judge(0, &[lost, read(2, 3, 0), read(8, 9, 5)]), Verdict::Linearizable);
        assert_eq!(judge(0, &[lost, read(2, 3, 0), read(8, 9, 0)]), Verdict::Linearizable);
        assert_eq!(judge(0, &[lost, read(2, 3, 5), read(8, 9, 0)]), Verdict::Broken);
        assert_eq!(judge(0, &[lost, swap(4, 5, 6, 5), swap(6, 7, 7, 6)]), Verdict::Linearizable);
    }

    #[test]
    fn a_value_is_swapped_out_once() {
        assert_eq!(judge(0, &[swap(1, 9, 5, 0), swap(2, 8, 6, 0)]), Verdict::Broken);
        assert_eq!(judge(0, &[swap(1, 9, 5, 6), swap(2, 8, 6, 0)]), Verdict::Linearizable);
    }

    #[test]
    fn many_at_once_are_judged_in_time() {
        // Forty that overlap, each of which found what the one called after it set.
        let old = |number: i64| if number == 40 { 0 } else { number + 1 };
        let mut operations: Vec<Operation> = (1..=40)
            .map(|number: u64| swap(number, 1_000 + number, number.cast_signed(), old(number.cast_signed())))
            .collect();
        operations.extend((0..40).map(|at: u64| read(100 + 2 * at, 101 + 2 * at, 40 - at.cast_signed())));
        assert_eq!(judge(0, &operations), Verdict::Linearizable);
        operations.push(read(900, 901, 17));
        assert_eq!(judge(0, &operations), Verdict::Broken);
    }
}
