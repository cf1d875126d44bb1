//! What clients did and saw, judged from outside.
//!
//! Calls and answers go in as they happen, rows as they're read; what can't be true is told at once, and registers are
//! judged at the end. It must never know how a replica works.

use super::linear::{self, Effect, Operation, Verdict};
use super::trace::Time;
use std::collections::{BTreeMap, BTreeSet};

/// What a snapshot held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The log index that it stands at.
    pub position: u64,
    /// The values of the table without a key of its own, sorted.
    pub appended: Vec<i64>,
    /// The registers.
    pub registers: BTreeMap<i64, i64>,
    /// A hash of all tables that replicas must agree on.
    pub hash: u128,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It may be there or not.
    Open,
    /// It was acknowledged.
    Acknowledged,
    /// Every answer said that it wasn't executed and won't be.
    Refused,
}

/// A read that was begun, with what it must show.
#[derive(Clone, Debug)]
pub struct ReadCall {
    called: u64,
    known: usize,
}

/// A register operation's number.
pub type SwapCall = usize;

/// Everything that clients did and saw.
#[derive(Default)]
pub struct History {
    moments: u64,
    appends: BTreeMap<i64, Fate>,
    /// Appends that every later strong read must show, in the order in which that became known, and when.
    known: Vec<(Time, i64)>,
    known_set: BTreeSet<i64>,
    /// The furthest log index that some caller had heard of, since when.
    furthest: Vec<(Time, u64)>,
    registers: BTreeMap<i64, Vec<Operation>>,
    /// The hash at each index, and who saw it first.
    hashes: BTreeMap<u64, (u128, String)>,
    compared: u64,
}

impl History {
    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// How many snapshots were compared with another one of the same index.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// An append is sent for the first time.
    pub fn append_called(&mut self, value: i64) {
        self.appends.insert(value, Fate::Open);
    }

    /// An append was acknowledged.
    pub fn append_acknowledged(&mut self, value: i64, now: Time) {
        self.appends.insert(value, Fate::Acknowledged);
        self.know(value, now);
    }

    /// Nobody executed an append, nor will.
    pub fn append_refused(&mut self, value: i64) {
        self.appends.insert(value, Fate::Refused);
    }

    fn know(&mut self, value: i64, now: Time) {
        if self.known_set.insert(value) {
            self.known.push((now, value));
        }
    }

    /// A caller has heard that the group has come to an index.
    pub fn heard(&mut self, index: u64, now: Time) {
        if self.furthest.last().is_none_or(|(_, furthest)| *furthest < index) {
            self.furthest.push((now, index));
        }
    }

    /// A strong read stands at an index, and was opened no earlier than this: whatever anybody had heard of by then must
    /// be in it. Later than its call, and so more than linearizability asks for.
    pub fn opened(&mut self, position: u64, opened: Time, who: &str, now: Time) -> Result<(), String> {
        let before = self.furthest.partition_point(|(time, _)| *time < opened);
        if let Some((_, index)) = self.furthest[..before].last().filter(|(_, index)| *index > position) {
            return Err(format!(
                "{who}: index {index} was heard of before this strong read was opened, and it stands at {position}"
            ));
        }
        self.heard(position, now);
        Ok(())
    }

    /// A swap is sent for the first time.
    pub fn swap_called(&mut self, key: i64, new: i64) -> SwapCall {
        let called = self.moment();
        let operations = self.registers.entry(key).or_default();
        operations.push(Operation { called, returned: None, effect: Effect::Swap { new, old: None } });
        operations.len() - 1
    }

    /// A swap was acknowledged, and said what was there before.
    pub fn swap_acknowledged(&mut self, key: i64, call: SwapCall, new: i64, old: i64) {
        let returned = Some(self.moment());
        if let Some(operation) = self.registers.get_mut(&key).and_then(|operations| operations.get_mut(call))
        {
            operation.returned = returned;
            operation.effect = Effect::Swap { new, old: Some(old) };
        }
    }

    /// Nobody executed a swap, nor will: if its value is seen, no order explains it.
    pub fn swap_refused(&mut self, key: i64, call: SwapCall) {
        if let Some(operation) = self.registers.get_mut(&key).and_then(|operations| operations.get_mut(call))
        {
            // Before all time, for a value that nothing could find.
            operation.effect = Effect::Read(0);
            operation.called = 0;
        }
    }

    /// A strong read is begun.
    pub fn read_called(&mut self) -> ReadCall {
        ReadCall { called: self.moment(), known: self.known.len() }
    }

    /// A strong read gave these rows.
    pub fn read_returned(
        &mut self,
        call: &ReadCall,
        rows: &Rows,
        who: &str,
        now: Time,
    ) -> Result<(), String> {
        self.saw(rows, who)?;
        let known = &self.known[..call.known];
        if let Some((_, lost)) = known.iter().find(|(_, value)| rows.appended.binary_search(value).is_err()) {
            return Err(format!(
                "{who}: append {lost} was acknowledged or seen before this strong read began, and isn't in it"
            ));
        }
        for value in &rows.appended {
            self.know(*value, now);
        }
        let returned = Some(self.moment());
        for (key, value) in &rows.registers {
            let operation = Operation { called: call.called, returned, effect: Effect::Read(*value) };
            self.registers.entry(*key).or_default().push(operation);
        }
        Ok(())
    }

    /// A read with bounded staleness gave these rows: whatever was known at that time must be in them.
    pub fn bounded_returned(&mut self, since: Time, rows: &Rows, who: &str) -> Result<(), String> {
        self.saw(rows, who)?;
        let known = &self.known[..self.known.partition_point(|(time, _)| *time < since)];
        match known.iter().find(|(_, value)| rows.appended.binary_search(value).is_err()) {
            Some((_, lost)) => Err(format!("{who}: append {lost} is missing, staler than was asked for")),
            None => Ok(()),
        }
    }

    /// A session's read gave these rows: none of what the session has done or seen may be missing.
    pub fn session_returned(
        &mut self,
        least: u64,
        own: &BTreeSet<i64>,
        rows: &Rows,
        who: &str,
    ) -> Result<(), String> {
        self.saw(rows, who)?;
        if rows.position < least {
            return Err(format!("{who}: a session at {least} was shown {}", rows.position));
        }
        match own.iter().find(|value| rows.appended.binary_search(value).is_err()) {
            Some(lost) => Err(format!("{who}: a session doesn't see its own append {lost}")),
            None => Ok(()),
        }
    }

    /// Someone saw these rows at their index: they must be possible, and the same for all who look there.
    pub fn saw(&mut self, rows: &Rows, who: &str) -> Result<(), String> {
        if let Some(pair) = rows.appended.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{who}: append {} is there twice at index {}", pair[0], rows.position));
        }
        for value in &rows.appended {
            match self.appends.get(value) {
                None => return Err(format!("{who}: {value} is there, and nobody appended it")),
                Some(Fate::Refused) => {
                    return Err(format!(
                        "{who}: append {value} is there, and its client was told that it won't be"
                    ));
                }
                Some(_) => {}
            }
        }
        match self.hashes.get(&rows.position) {
            Some((hash, _)) if *hash == rows.hash => {
                self.compared += 1;
                Ok(())
            }
            Some((_, first)) => {
                Err(format!("{who} and {first} have different tables at index {}", rows.position))
            }
            None => {
                self.hashes.insert(rows.position, (rows.hash, who.to_owned()));
                Ok(())
            }
        }
    }

    /// The end: these are the rows that all replicas have.
    pub fn end(&mut self, rows: &Rows, now: Time) -> Result<(), String> {
        let call = self.read_called();
        self.read_returned(&call, rows, "the end", now)
    }

    /// Judges the registers. Gives how many took too long.
    pub fn judge(&self) -> Result<u64, String> {
        let mut undecided = 0;
        for (key, operations) in &self.registers {
            match linear::judge(0, operations) {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Broken => {
                    return Err(format!(
                        "register {key} isn't linearizable over {} operations:{}",
                        operations.len(),
                        shortest_broken(operations)
                    ));
                }
            }
        }
        Ok(undecided)
    }
}

/// The operations up to the first return that breaks the order, the last few of them in words.
fn shortest_broken(operations: &[Operation]) -> String {
    let mut returns: Vec<u64> = operations.iter().filter_map(|operation| operation.returned).collect();
    returns.sort_unstable();
    let broken = |until: &u64| {
        let seen: Vec<Operation> = operations
            .iter()
            .filter(|operation| operation.called <= *until)
            .map(|operation| match operation.returned {
                Some(returned) if returned <= *until => *operation,
                _ => match operation.effect {
                    Effect::Swap { new, .. } => {
                        Operation { returned: None, effect: Effect::Swap { new, old: None }, ..*operation }
                    }
                    Effect::Read(_) => Operation { returned: None, ..*operation },
                },
            })
            .collect();
        linear::judge(0, &seen) == Verdict::Broken
    };
    let Some(until) = returns.iter().find(|until| broken(until)) else { return String::new() };
    let mut seen: Vec<&Operation> =
        operations.iter().filter(|operation| operation.called <= *until).collect();
    seen.sort_by_key(|operation| operation.called);
    let last = &seen[seen.len().saturating_sub(12)..];
    last.iter()
        .map(|operation| {
            let end = operation.returned.map_or("never".to_owned(), |returned| returned.to_string());
            format!("\n    called {}, returned {end}: {:?}", operation.called, operation.effect)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn rows(position: u64, appended: &[i64], hash: u128) -> Rows {
        Rows { position, appended: appended.to_vec(), registers: BTreeMap::new(), hash }
    }

    #[test]
    fn what_was_acknowledged_must_be_seen_once() {
        let mut history = History::default();
        history.append_called(1);
        history.append_called(2);
        history.append_acknowledged(1, 10);
        let call = history.read_called();
        assert!(history.read_returned(&call, &rows(5, &[2], 7), "a", 20).unwrap_err().contains("append 1"));
        assert!(history.saw(&rows(6, &[1, 1], 8), "a").unwrap_err().contains("twice"));
        assert!(history.saw(&rows(6, &[3], 8), "a").unwrap_err().contains("nobody"));
        history.read_returned(&call, &rows(7, &[1, 2], 9), "a", 20).unwrap();
        // What one strong read has shown, no later one may lack.
        let call = history.read_called();
        assert!(history.read_returned(&call, &rows(8, &[1], 7), "a", 20).unwrap_err().contains("append 2"));
        assert!(history.bounded_returned(11, &rows(9, &[2], 8), "a").unwrap_err().contains("staler"));
        history.bounded_returned(10, &rows(10, &[2], 8), "a").unwrap();
        history.append_refused(2);
        assert!(history.saw(&rows(9, &[1, 2], 8), "a").unwrap_err().contains("won't be"));
    }

    #[test]
    fn a_strong_read_has_what_was_heard_of_before_it_was_opened() {
        let mut history = History::default();
        history.heard(5, 10);
        history.heard(4, 20);
        assert!(history.opened(4, 11, "a", 30).unwrap_err().contains("index 5"));
        history.opened(4, 10, "a", 30).unwrap();
        history.opened(6, 11, "a", 30).unwrap();
        assert!(history.opened(5, 31, "a", 40).unwrap_err().contains("index 6"));
    }

    #[test]
    fn replicas_differ_or_not() {
        let mut history = History::default();
        history.saw(&rows(1, &[], 5), "a").unwrap();
        history.saw(&rows(1, &[], 5), "b").unwrap();
        assert_eq!(history.compared(), 1);
        assert!(history.saw(&rows(1, &[], 6), "c").unwrap_err().contains("different tables"));
    }

    #[test]
    fn a_refused_swap_has_no_effect() {
        let mut history = History::default();
        let call = history.swap_called(1, 5);
        history.swap_refused(1, call);
        assert_eq!(history.judge(), Ok(0));
        let read = history.read_called();
        let mut seen = rows(1, &[], 5);
        seen.registers.insert(1, 5);
        history.read_returned(&read, &seen, "a", 20).unwrap();
        assert!(history.judge().unwrap_err().contains("register 1"));
    }
}
