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
//! | who carries a token reads what they have written and were told of, and never less than they had read | session |
//! | of all transactions with one idempotency key, one is committed if any was told so, and never two | exactly once |
//!
//! It must never know how a cluster works.

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
    /// When it asked.
    called: u64,
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
    /// The session that it is part of, which may read from any replica: it knows what it has seen, and not what others have.
    session: Option<usize>,
}

/// Everything that clients did and saw.
#[derive(Clone, Default)]
pub struct History {
    moments: u64,
    transactions: Vec<Transaction>,
    /// Keys of which somebody was told that a transaction has been committed with them, and when first.
    spent: BTreeMap<String, u64>,
}

impl History {
    /// A moment later than all before.
    pub fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// Somebody begins a transaction.
    pub fn begin(&mut self, name: String, key: Option<String>, session: Option<usize>) -> Number {
        let (appends, undone, reads) = Default::default();
        self.transactions.push(Transaction { name, appends, undone, reads, ended: None, key, session });
        self.transactions.len() - 1
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

    /// It has read lists that it asked for at a moment. What it had appended to them must be at their ends.
    pub fn read(
        &mut self,
        number: Number,
        called: u64,
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
        self.transactions[number].reads.push(Read { called, told, lists: seen, whole });
        Ok(())
    }

    /// It has ended, as far as its client knows.
    pub fn end(&mut self, number: Number, outcome: Outcome) {
        let moment = self.moment();
        self.transactions[number].ended = Some((moment, outcome));
    }

    /// Somebody is told that a transaction with this key has been committed.
    pub fn spent(&mut self, key: &str) {
        let moment = self.moment();
        self.spent.entry(key.to_owned()).or_insert(moment);
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

    /// What each list had to have from a moment on, how many elements and why: by what was acknowledged to whom it matters,
    /// and by what these had read.
    fn least(
        &self,
        writers: impl Fn(&Transaction) -> bool,
        readers: impl Fn(&Transaction) -> bool,
    ) -> BTreeMap<Key, Vec<(u64, usize, String)>> {
        let mut least: BTreeMap<Key, Vec<(u64, usize, String)>> = BTreeMap::new();
        for transaction in &self.history.transactions {
            let Transaction { name, appends, ended, reads, .. } = transaction;
            for read in reads.iter().filter(|_| readers(transaction)) {
                for (key, list) in &read.lists {
                    let why = format!("{name} had read them");
                    least.entry(*key).or_default().push((read.told, list.len(), why));
                }
            }
            if let Some((moment, Outcome::Committed)) = ended.filter(|_| writers(transaction)) {
                for append in appends {
                    if let Some(place) = self.places.get(append) {
                        let why = format!("{name} was acknowledged, which appended {}", append.1);
                        least.entry(append.0).or_default().push((moment, place.at + 1, why));
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
        let sessions: BTreeSet<Option<usize>> =
            self.history.transactions.iter().map(|transaction| transaction.session).collect();
        for session in sessions {
            let is_of = |transaction: &Transaction| transaction.session == session;
            // Who asks leaders must find what anybody was told of; the others what they were told of themselves.
            let least = self.least(|transaction| session.is_none() || is_of(transaction), is_of);
            let what = if session.is_none() { "stale read" } else { "session" };
            let all = self.history.transactions.iter().enumerate();
            for (number, transaction) in all.filter(|(_, transaction)| is_of(transaction)) {
                for read in &transaction.reads {
                    self.read(number, read, &least, what)?;
                    if read.whole && cuts && session.is_none() {
                        self.whole(&transaction.name, read)?;
                    }
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
        what: &str,
    ) -> Result<(), String> {
        let name = self.name(number);
        for (key, seen) in &read.lists {
            let list = self.lists.get(key).map(Vec::as_slice).unwrap_or_default();
            if !list.starts_with(seen) {
                return Err(format!(
                    "{name} has read {seen:?} in list {key}, which never had that: {list:?} in the end"
                ));
            }
            let known = least.get(key).map(Vec::as_slice).unwrap_or_default();
            let known = &known[..known.partition_point(|(moment, ..)| *moment < read.called)];
            if let Some((_, count, why)) = known.last().filter(|(_, count, _)| *count > seen.len()) {
                return Err(format!(
                    "{what}: {name} has read {} elements of list {key}, when {count} were known: {why}",
                    seen.len()
                ));
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
mod tests {
    use super::*;

    struct Case {
        history: History,
        lists: BTreeMap<Key, Vec<Element>>,
    }

    impl Case {
        fn new(lists: &[(Key, &[Element])]) -> Self {
            let lists = lists.iter().map(|(key, list)| (*key, list.to_vec())).collect();
            Self { history: History::default(), lists }
        }

        fn wrote(&mut self, appends: &[(Key, Element)], outcome: Outcome) -> Number {
            let number = self.history.begin(format!("T{}", self.history.transactions.len()), None, None);
            for (key, element) in appends {
                self.history.append(number, *key, *element);
            }
            self.history.end(number, outcome);
            number
        }

        fn read(&mut self, lists: &[(Key, &[Element])]) {
            let number = self.history.begin(format!("T{}", self.history.transactions.len()), None, None);
            let called = self.history.moment();
            let lists = lists.iter().map(|(key, list)| (*key, list.to_vec())).collect();
            self.history.read(number, called, lists, true).unwrap();
            self.history.end(number, Committed);
        }

        fn fails(&self, why: &str) {
            let judged = self.history.judge(&self.lists, true);
            assert!(judged.as_ref().is_err_and(|error| error.starts_with(why)), "{why}: {judged:?}");
        }
    }

    use Outcome::{Committed, Failed, Unknown};

    #[test]
    fn what_is_well_passes() {
        let mut case = Case::new(&[(1, &[10, 11, 20]), (2, &[12, 21])]);
        case.wrote(&[(1, 10), (1, 11), (2, 12)], Committed);
        case.read(&[(1, &[10, 11]), (2, &[12])]);
        case.wrote(&[(1, 20), (2, 21)], Unknown);
        case.wrote(&[(1, 30), (2, 31)], Unknown);
        case.wrote(&[(1, 40)], Failed);
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    }

    #[test]
    fn outcomes_must_be_as_they_were_told() {
        let mut case = Case::new(&[(1, &[10]), (2, &[])]);
        case.wrote(&[(1, 10), (2, 11)], Committed);
        case.fails("atomicity");
        let mut case = Case::new(&[(1, &[10]), (2, &[])]);
        case.wrote(&[(1, 10), (2, 11)], Unknown);
        case.fails("atomicity");
        let mut case = Case::new(&[(1, &[10])]);
        case.wrote(&[(1, 10)], Failed);
        case.fails("G1a");
        let mut case = Case::new(&[(1, &[10])]);
        let number = case.history.begin("T".into(), None, None);
        case.history.append(number, 1, 10);
        case.history.undo(number, 0);
        case.history.end(number, Committed);
        case.fails("G1a");
    }

    #[test]
    fn reads_must_be_of_what_was_there() {
        let mut case = Case::new(&[(1, &[10, 20])]);
        case.wrote(&[(1, 10)], Committed);
        case.read(&[(1, &[])]);
        case.wrote(&[(1, 20)], Committed);
        case.fails("stale read");
        let mut case = Case::new(&[(1, &[10, 11])]);
        case.read(&[(1, &[10])]);
        case.wrote(&[(1, 10), (1, 11)], Committed);
        case.fails("G1b");
        let mut case = Case::new(&[(1, &[10]), (2, &[11])]);
        case.read(&[(1, &[10]), (2, &[])]);
        case.wrote(&[(1, 10), (2, 11)], Committed);
        case.fails("torn cut");
        assert_eq!(case.history.judge(&case.lists, false), Ok(()));
        let number = case.history.begin("T".into(), None, None);
        case.history.append(number, 1, 50);
        assert!(case.history.read(number, 9, vec![(1, vec![10])], false).is_err());
        case.history.read(number, 9, vec![(1, vec![10, 50])], false).unwrap();
    }

    #[test]
    fn a_session_finds_what_it_knows() {
        let mut case = Case::new(&[(1, &[10, 20, 30]), (2, &[21])]);
        let mine = case.wrote(&[(1, 10)], Committed);
        let others = case.wrote(&[(1, 20), (2, 21)], Committed);
        case.wrote(&[(1, 30)], Committed);
        case.history.transactions[mine].session = Some(7);
        let read = |case: &mut Case, list: &[Element]| {
            case.read(&[(1, list), (2, &[])]);
            case.history.transactions.last_mut().unwrap().session = Some(7);
        };
        // Neither what others have written, nor all of it.
        read(&mut case, &[10, 20]);
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
        let mut back = case.history.clone();
        read(&mut case, &[10]);
        case.fails("session: T4 has read 1 elements of list 1, when 2 were known: T3 had read them");
        // What a session has read is no news for anybody else.
        back.transactions[others].ended = Some((1, Unknown));
        case.history = back.clone();
        case.history.transactions[2].ended = Some((2, Unknown));
        case.read(&[(1, &[10])]);
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
        back.transactions.truncate(3);
        case.history = back;
        read(&mut case, &[]);
        case.fails("session: T3 has read 0 elements of list 1, when 1 were known: T0 was acknowledged");
    }

    #[test]
    fn a_key_is_used_up_once() {
        let attempts = |lists: &[(Key, &[Element])], outcomes: [Outcome; 2]| {
            let mut case = Case::new(lists);
            for (element, outcome) in [10, 20].into_iter().zip(outcomes) {
                let number = case.wrote(&[(1, element)], outcome);
                case.history.transactions[number].key = Some("k".into());
            }
            case
        };
        attempts(&[(1, &[10, 20])], [Unknown, Unknown]).fails("exactly once");
        attempts(&[(1, &[10, 20])], [Unknown, Committed]).fails("exactly once");
        let mut case = attempts(&[(1, &[10])], [Unknown, Failed]);
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
        case.history.spent("k");
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
        case.read(&[(1, &[])]);
        case.fails("stale read");
        let mut case = attempts(&[(1, &[])], [Unknown, Failed]);
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
        case.history.spent("k");
        case.fails("exactly once");
    }

    #[test]
    fn there_must_be_an_order() {
        let mut case = Case::new(&[(1, &[10, 20]), (2, &[21, 11])]);
        case.wrote(&[(1, 10), (2, 11)], Committed);
        case.wrote(&[(1, 20), (2, 21)], Committed);
        case.fails("G0");
        let mut case = Case::new(&[(1, &[10]), (2, &[20])]);
        let (one, two) =
            (case.history.begin("T0".into(), None, None), case.history.begin("T1".into(), None, None));
        case.history.append(one, 1, 10);
        case.history.append(two, 2, 20);
        case.history.read(one, 1, vec![(2, vec![20])], false).unwrap();
        case.history.read(two, 1, vec![(1, vec![10])], false).unwrap();
        case.history.end(one, Committed);
        case.history.end(two, Committed);
        case.fails("G1c");
    }
}
