//! What clients did, saw and were told, judged from outside.
//!
//! Lists are only ever appended to, and each element is written once, so a list that somebody has read tells which
//! transactions came before, and in which order (Kingsbury and Alvaro: Elle, VLDB 2020). From that follow:
//!
//! | what | called |
//! |---|---|
//! | what a transaction that failed, or undid it, has written is nowhere | G1a |
//! | nobody reads a part of what a transaction writes to one list | G1b |
//! | nobody reads what came before something that had been read or acknowledged when they asked | stale read |
//! | a transaction reads what it has written | lost own write |
//! | transactions have written in one order to all lists | G0 |
//! | and that order holds for those who have read them, too | G1c |
//! | what was acknowledged is there; of what nobody knows, all or nothing | atomicity |
//! | a read of all lists has all of a transaction or nothing | torn cut |
//! | who carries a token reads what it stands for: what was written and read over the connections that it comes from | session |
//! | who takes a bound reads what anybody was told that long before | bounded |
//! | of all transactions with one idempotency key, one is committed if any was told so, and never two | exactly once |
//!
//! It must never know how a cluster works.

mod knowledge;

use super::super::clock::{SLOWEST, WorldClock};
use super::super::trace::{MICROSECOND, Time};
pub use knowledge::{Asked, Knowledge, Level, Line};
use knowledge::{Fact, Lines, Stories};
use std::collections::{BTreeMap, BTreeSet};

/// A list's number.
pub type Key = i64;
/// An element of a list.
pub type Element = i64;
/// A transaction's number.
pub type Number = usize;

/// What its client knows of a transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told that it is committed.
    Committed,
    /// It was told that nothing of it was done.
    Failed,
    /// It was told nothing, or that it can't be known.
    Unknown,
}

/// What a transaction saw.
#[derive(Clone, Debug)]
struct Read {
    /// What it must show.
    asked: Asked,
    /// When it was told.
    told: u64,
    /// Each list, without what the transaction itself had written by then.
    lists: Vec<(Key, Vec<Element>)>,
    /// Whether it's one statement that must see one state.
    whole: bool,
}

#[derive(Clone, Debug)]
struct Transaction {
    name: String,
    appends: Vec<(Key, Element)>,
    /// What it has taken back before its end.
    undone: Vec<Element>,
    reads: Vec<Read>,
    ended: Option<(u64, Outcome)>,
    /// Its idempotency key.
    key: Option<String>,
    /// The connection that it is made over, if what is known there matters.
    line: Option<Line>,
    /// What the tokens stand for that it was brought for itself.
    brought: Knowledge,
}

impl Transaction {
    fn is_committed(&self) -> bool {
        self.ended.is_some_and(|(_, outcome)| outcome == Outcome::Committed)
    }
}

/// Everything that clients did and saw.
#[derive(Clone, Default)]
pub struct History {
    clock: WorldClock,
    /// When each moment was.
    times: Vec<Time>,
    transactions: Vec<Transaction>,
    lines: Lines,
    /// Keys of which somebody was told that a transaction has been committed with them, and when first.
    spent: BTreeMap<String, u64>,
}

impl History {
    /// Nothing has happened by then.
    pub fn new(clock: WorldClock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// A moment later than all before.
    fn moment(&mut self) -> u64 {
        self.times.push(self.clock.now());
        self.times.len() as u64
    }

    /// The first moment that may be no longer ago than this on some node's clock.
    fn moment_before(&self, ago: Time) -> u64 {
        // What clocks lose where their speed changes is less than the last.
        let most = (ago * 1000).div_ceil(SLOWEST) + MICROSECOND;
        let now = self.clock.now();
        self.times.partition_point(|time| time + most < now) as u64 + 1
    }

    /// Somebody connects who carries a token.
    pub fn connect(&mut self) -> Line {
        self.lines.open()
    }

    /// A connection is brought a token that stands for this.
    pub fn bring(&mut self, line: Line, knowledge: &Knowledge) {
        self.lines.bring(line, knowledge);
    }

    /// What a connection's token stands for, if it has all.
    pub fn knowledge(&self, line: Line) -> Knowledge {
        self.lines.knowledge(line)
    }

    /// Somebody begins a transaction, over this connection if they carry a token.
    pub fn begin(&mut self, name: String, key: Option<String>, line: Option<Line>) -> Number {
        let (appends, undone, reads, brought) = Default::default();
        let ended = None;
        self.transactions.push(Transaction { name, appends, undone, reads, ended, key, line, brought });
        self.transactions.len() - 1
    }

    /// It is brought a token that stands for this, for itself alone.
    pub fn bring_locally(&mut self, number: Number, knowledge: &Knowledge) {
        self.transactions[number].brought.merge(knowledge);
    }

    /// It is about to read.
    pub fn ask(&mut self, number: Number, level: Level) -> Asked {
        let before = match level {
            Level::Strong => self.moment(),
            Level::Bounded(ago) => self.moment_before(ago),
            Level::Session | Level::Eventual => 0,
        };
        let mut known = Knowledge::default();
        if matches!(level, Level::Strong | Level::Session) {
            let Transaction { line, brought, .. } = &self.transactions[number];
            known = line.map(|line| self.lines.knowledge(line)).unwrap_or_default();
            known.merge(brought);
        }
        Asked { level, before, known }
    }

    /// It is about to append.
    pub fn append(&mut self, number: Number, key: Key, element: Element) {
        self.transactions[number].appends.push((key, element));
    }

    /// How much it has appended.
    pub fn mark(&self, number: Number) -> usize {
        self.transactions[number].appends.len()
    }

    /// It has taken back what it appended since a mark, or it never was done.
    pub fn undo(&mut self, number: Number, mark: usize) {
        let transaction = &mut self.transactions[number];
        transaction.undone.extend(transaction.appends.drain(mark..).map(|(_, element)| element));
    }

    /// It has read lists that it had asked for. What it had appended to them must be at their ends.
    pub fn read(
        &mut self,
        number: Number,
        asked: Asked,
        lists: Vec<(Key, Vec<Element>)>,
        whole: bool,
    ) -> Result<(), String> {
        let transaction = &mut self.transactions[number];
        let mut seen = Vec::new();
        for (key, mut list) in lists {
            let own = transaction.appends.iter().filter(|(to, _)| *to == key).map(|(_, element)| *element);
            let own: Vec<Element> = own.collect();
            if !list.ends_with(&own) {
                let name = &transaction.name;
                return Err(format!(
                    "lost own write: {name} has appended {own:?} to list {key} and reads {list:?}"
                ));
            }
            list.truncate(list.len() - own.len());
            seen.push((key, list));
        }
        let told = self.moment();
        let Transaction { reads, line, .. } = &mut self.transactions[number];
        reads.push(Read { asked, told, lists: seen, whole });
        if let Some(line) = line {
            self.lines.tell(*line, Fact::Read(number, reads.len() - 1));
        }
        Ok(())
    }

    /// It has ended, as far as its client knows.
    pub fn end(&mut self, number: Number, outcome: Outcome) {
        let moment = self.moment();
        let transaction = &mut self.transactions[number];
        transaction.ended = Some((moment, outcome));
        if let Some(line) = transaction.line.filter(|_| outcome == Outcome::Committed) {
            self.lines.tell(line, Fact::Commit(number));
        }
    }

    /// Somebody is told that a transaction with this key has been committed, over this connection if they carry a token.
    pub fn spent(&mut self, key: &str, line: Option<Line>) {
        let moment = self.moment();
        self.spent.entry(key.to_owned()).or_insert(moment);
        if let Some(line) = line {
            self.lines.tell(line, Fact::Spent(key.to_owned()));
        }
    }

    /// Whether somebody was told so.
    pub fn is_spent(&self, key: &str) -> bool {
        self.spent.contains_key(key)
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.transactions.iter().filter(|one| one.ended.is_some_and(|(_, other)| other == outcome)).count()
            as u64
    }

    /// Judges all of it by what the lists hold at the end. `cuts`: reads of several shards see one state.
    pub fn judge(&self, lists: &BTreeMap<Key, Vec<Element>>, cuts: bool) -> Result<(), String> {
        let known = self.settled(lists)?;
        let judge = Judge::new(&known, lists)?;
        judge.outcomes()?;
        judge.reads(cuts)?;
        judge.order()
    }
}

impl History {
    /// The same, with what idempotency keys tell of transactions whose clients weren't told: which one it was that has used
    /// a key up, and since when everybody sees what it did.
    fn settled(&self, lists: &BTreeMap<Key, Vec<Element>>) -> Result<Self, String> {
        let mut known = self.clone();
        let mut attempts: BTreeMap<&str, Vec<Number>> = BTreeMap::new();
        for (number, transaction) in self.transactions.iter().enumerate() {
            if let Some(key) = &transaction.key {
                attempts.entry(key).or_default().push(number);
            }
        }
        for (key, attempts) in attempts {
            let outcome = |number: &&Number| self.transactions[**number].ended.map(|(_, outcome)| outcome);
            let is_there = |number: &&Number| {
                let mut appends = self.transactions[**number].appends.iter();
                appends.any(|(key, element)| lists.get(key).is_some_and(|list| list.contains(element)))
            };
            let is_done = |number: &&Number| outcome(number) == Some(Outcome::Committed) || is_there(number);
            let done: Vec<Number> = attempts.iter().filter(is_done).copied().collect();
            let names = |numbers: &[Number]| -> Vec<&str> {
                numbers.iter().map(|number| self.transactions[*number].name.as_str()).collect()
            };
            if done.len() > 1 {
                let names = names(&done);
                return Err(format!("exactly once: with the key {key:?} were committed all of {names:?}"));
            }
            let Some(moment) = self.spent.get(key) else { continue };
            match &done[..] {
                [one] if outcome(&one) != Some(Outcome::Committed) => {
                    known.transactions[*one].ended = Some((*moment, Outcome::Committed));
                }
                [] => {
                    // One that changed nothing can't be looked for.
                    let changes = |number: &Number| !self.transactions[*number].appends.is_empty();
                    if attempts.iter().all(changes) {
                        let names = names(&attempts);
                        return Err(format!(
                            "exactly once: the key {key:?} was said to be used up, but by none of {names:?}"
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(known)
    }
}

/// Where an element is.
#[derive(Clone, Copy, Debug)]
struct Place {
    writer: Number,
    at: usize,
}

struct Judge<'a> {
    history: &'a History,
    lists: &'a BTreeMap<Key, Vec<Element>>,
    places: BTreeMap<(Key, Element), Place>,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History, lists: &'a BTreeMap<Key, Vec<Element>>) -> Result<Self, String> {
        let mut writers = BTreeMap::new();
        let mut undone = BTreeMap::new();
        for (number, transaction) in history.transactions.iter().enumerate() {
            writers.extend(transaction.appends.iter().map(|(key, element)| ((*key, *element), number)));
            undone.extend(transaction.undone.iter().map(|element| (*element, number)));
        }
        let mut places = BTreeMap::new();
        for (key, list) in lists {
            for (at, element) in list.iter().enumerate() {
                let Some(writer) = writers.get(&(*key, *element)).copied() else {
                    let by = undone.get(element).map(|number| history.transactions[*number].name.as_str());
                    return Err(format!(
                        "G1a: list {key} has {element}, which {} has taken back",
                        by.unwrap_or("nobody has written or somebody")
                    ));
                };
                if places.insert((*key, *element), Place { writer, at }).is_some() {
                    return Err(format!("list {key} has {element} twice"));
                }
            }
        }
        Ok(Self { history, lists, places })
    }

    fn name(&self, number: Number) -> &str {
        &self.history.transactions[number].name
    }

    /// What everybody was told agrees with what is there.
    fn outcomes(&self) -> Result<(), String> {
        for Transaction { name, appends, ended, .. } in &self.history.transactions {
            let is_there = |append: &&(Key, Element)| self.places.contains_key(*append);
            let there: Vec<_> = appends.iter().filter(is_there).collect();
            match ended.map_or(Outcome::Unknown, |(_, outcome)| outcome) {
                Outcome::Committed if there.len() < appends.len() => {
                    let missing = appends.iter().find(|append| !is_there(append));
                    return Err(format!("atomicity: {name} was acknowledged, and {missing:?} isn't there"));
                }
                Outcome::Failed if !there.is_empty() => {
                    return Err(format!("G1a: {name} has failed, and {:?} is there", there[0]));
                }
                Outcome::Unknown if !there.is_empty() && there.len() < appends.len() => {
                    return Err(format!(
                        "atomicity: of {name}, which wrote {appends:?}, only {there:?} is there"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What each list had to have from a moment on, how many elements and why: by what was acknowledged, and by what had
    /// been read that everybody must find.
    fn least(&self) -> BTreeMap<Key, Vec<(u64, usize, String)>> {
        let mut least: BTreeMap<Key, Vec<(u64, usize, String)>> = BTreeMap::new();
        for transaction in &self.history.transactions {
            let Transaction { name, appends, ended, reads, .. } = transaction;
            for read in reads.iter().filter(|read| read.asked.level == Level::Strong) {
                for (key, list) in &read.lists {
                    let why = format!("{name} had read them");
                    least.entry(*key).or_default().push((read.told, list.len(), why));
                }
            }
            if let Some((moment, Outcome::Committed)) = ended {
                for append in appends {
                    if let Some(place) = self.places.get(append) {
                        let why = format!("{name} was acknowledged, which appended {}", append.1);
                        least.entry(append.0).or_default().push((*moment, place.at + 1, why));
                    }
                }
            }
        }
        for requirements in least.values_mut() {
            requirements.sort_by_key(|(moment, ..)| *moment);
            let mut most: Option<(usize, String)> = None;
            for (_, count, why) in requirements.iter_mut() {
                match &most {
                    Some((before, reason)) if before > count => {
                        *count = *before;
                        why.clone_from(reason);
                    }
                    _ => most = Some((*count, why.clone())),
                }
            }
        }
        least
    }

    /// Everybody has read what they had to, and nothing else.
    fn reads(&self, cuts: bool) -> Result<(), String> {
        let (least, stories) = (self.least(), self.stories());
        for (number, transaction) in self.history.transactions.iter().enumerate() {
            for read in &transaction.reads {
                self.read(number, read, &least, &stories)?;
                if read.whole && cuts && read.asked.level == Level::Strong {
                    self.whole(&transaction.name, read)?;
                }
            }
        }
        Ok(())
    }

    fn read(
        &self,
        number: Number,
        read: &Read,
        least: &BTreeMap<Key, Vec<(u64, usize, String)>>,
        stories: &Stories,
    ) -> Result<(), String> {
        let name = self.name(number);
        let Asked { level, before, known } = &read.asked;
        let what = if *level == Level::Strong { "stale read" } else { "bounded" };
        for (key, seen) in &read.lists {
            let list = self.lists.get(key).map(Vec::as_slice).unwrap_or_default();
            if !list.starts_with(seen) {
                return Err(format!(
                    "{name} has read {seen:?} in list {key}, which never had that: {list:?} in the end"
                ));
            }
            let told = least.get(key).map(Vec::as_slice).unwrap_or_default();
            let told = told[..told.partition_point(|(moment, ..)| moment < before)].last();
            let told = told.map(|(_, count, why)| (what, *count, why.clone()));
            let own = self.known(stories, known, *key).map(|(count, why)| ("session", count, why));
            for (what, count, why) in told.into_iter().chain(own) {
                if count > seen.len() {
                    return Err(format!(
                        "{what}: {name} has read {} elements of list {key}, when {count} were known: {why}",
                        seen.len()
                    ));
                }
            }
            self.intermediate(number, *key, seen, list)?;
        }
        Ok(())
    }

    /// Nobody has read a part of what a transaction wrote to a list: if they did, its next element comes right after.
    fn intermediate(
        &self,
        reader: Number,
        key: Key,
        seen: &[Element],
        list: &[Element],
    ) -> Result<(), String> {
        let (Some(last), Some(next)) = (seen.last(), list.get(seen.len())) else { return Ok(()) };
        let writer = |element: &Element| self.places.get(&(key, *element)).map(|place| place.writer);
        match (writer(last), writer(next)) {
            (Some(one), Some(other)) if one == other && one != reader => Err(format!(
                "G1b: {} has read {last} in list {key} without {next}, both by {}",
                self.name(reader),
                self.name(one)
            )),
            _ => Ok(()),
        }
    }

    /// A read of several lists at once has all of each transaction, or nothing.
    fn whole(&self, name: &str, read: &Read) -> Result<(), String> {
        let lengths: BTreeMap<Key, usize> = read.lists.iter().map(|(key, list)| (*key, list.len())).collect();
        for Transaction { name: writer, appends, .. } in &self.history.transactions {
            let seen = appends.iter().filter_map(|append| {
                let (length, place) = (lengths.get(&append.0)?, self.places.get(append)?);
                Some((*append, place.at < *length))
            });
            let (with, without): (Vec<_>, Vec<_>) = seen.partition(|(_, is_seen)| *is_seen);
            if let (Some((with, _)), Some((without, _))) = (with.first(), without.first()) {
                return Err(format!(
                    "torn cut: {name} has read {with:?} and not {without:?}, both by {writer}"
                ));
            }
        }
        Ok(())
    }

    /// There is an order of all transactions by what they wrote, and by what they read.
    fn order(&self) -> Result<(), String> {
        let mut after: Vec<BTreeSet<Number>> = vec![BTreeSet::new(); self.history.transactions.len()];
        for (key, list) in self.lists {
            let writers: Vec<Number> = list
                .iter()
                .filter_map(|element| self.places.get(&(*key, *element)))
                .map(|p| p.writer)
                .collect();
            for pair in writers.windows(2).filter(|pair| pair[0] != pair[1]) {
                after[pair[0]].insert(pair[1]);
            }
        }
        self.acyclic(&after, "G0")?;
        for (number, transaction) in self.history.transactions.iter().enumerate() {
            for (key, seen) in transaction.reads.iter().flat_map(|read| &read.lists) {
                let last = seen.last().and_then(|element| self.places.get(&(*key, *element)));
                if let Some(place) = last.filter(|place| place.writer != number) {
                    after[place.writer].insert(number);
                }
            }
        }
        self.acyclic(&after, "G1c")
    }

    /// Fails with a cycle, if there is one.
    fn acyclic(&self, after: &[BTreeSet<Number>], what: &str) -> Result<(), String> {
        let mut done = vec![false; after.len()];
        let mut on_path = vec![false; after.len()];
        for start in 0..after.len() {
            if done[start] {
                continue;
            }
            let mut path = vec![(start, after[start].iter())];
            on_path[start] = true;
            while let Some((number, nexts)) = path.last_mut() {
                let number = *number;
                let Some(next) = nexts.next().copied() else {
                    (done[number], on_path[number]) = (true, false);
                    path.pop();
                    continue;
                };
                if on_path[next] {
                    let cycle = path.iter().map(|(number, _)| *number).skip_while(|number| *number != next);
                    let names: Vec<&str> = cycle.map(|number| self.name(number)).collect();
                    return Err(format!(
                        "{what}: each came before the next, and the last before the first: {names:?}"
                    ));
                }
                if !done[next] {
                    on_path[next] = true;
                    path.push((next, after[next].iter()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
