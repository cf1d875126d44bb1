//! What somebody knows who carries tokens, and how fresh what they read must be.
//!
//! In come the connections over which clients were told something, and the tokens that went from one to another; out comes
//! what a read must show. A token stands for what its connection had been told when it was asked for, and for what that one
//! had been brought. It must never know what a token looks like.

use super::super::super::trace::Time;
use super::{Judge, Key, Number};
use std::collections::BTreeMap;

/// A connection's number.
pub type Line = usize;

/// What a token stands for: of each connection so much, from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knowledge(BTreeMap<Line, usize>);

impl Knowledge {
    /// Adds what another stands for.
    pub fn merge(&mut self, other: &Self) {
        for (line, count) in &other.0 {
            let known = self.0.entry(*line).or_default();
            *known = (*known).max(*count);
        }
    }
}

/// Something that a client was told.
#[derive(Clone, Debug)]
pub(super) enum Fact {
    /// What this transaction read, at that place among its reads.
    Read(Number, usize),
    /// It's committed.
    Commit(Number),
    /// A transaction with this idempotency key is.
    Spent(String),
}

/// What was told over a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// What the tokens stand for that it was brought.
    brought: Knowledge,
    facts: Vec<Fact>,
}

/// How fresh what is read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It has all that anybody was told before.
    Strong,
    /// It has all that the reader knows.
    Session,
    /// It has all that anybody was told so long before.
    Bounded(Time),
    /// It was there once.
    Eventual,
}

/// What a read must show that somebody has asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How fresh it must be.
    pub level: Level,
    /// All that anybody was told before this moment.
    pub(super) before: u64,
    /// And this.
    pub(super) known: Knowledge,
}

/// All connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Vec<Told>);

impl Lines {
    /// A connection that has been told nothing.
    pub fn open(&mut self) -> Line {
        self.0.push(Told::default());
        self.0.len() - 1
    }

    /// It is brought a token.
    pub fn bring(&mut self, line: Line, knowledge: &Knowledge) {
        self.0[line].brought.merge(knowledge);
    }

    /// It is told something.
    pub fn tell(&mut self, line: Line, fact: Fact) {
        self.0[line].facts.push(fact);
    }

    /// What its token stands for now.
    pub fn knowledge(&self, line: Line) -> Knowledge {
        let Told { brought, facts } = &self.0[line];
        let mut known = brought.clone();
        known.merge(&Knowledge(BTreeMap::from([(line, facts.len())])));
        known
    }
}

/// How many elements lists must have, each by the fact of this place.
type Least = BTreeMap<Key, (usize, usize)>;

/// What each connection was told, as what lists must have after each fact.
pub(super) struct Stories(Vec<Vec<Least>>);

impl Judge<'_> {
    /// What was told over each connection.
    pub(super) fn stories(&self) -> Stories {
        let mut spent: BTreeMap<&str, Number> = BTreeMap::new();
        for (number, transaction) in self.history.transactions.iter().enumerate() {
            if let Some(key) = transaction.key.as_deref().filter(|_| transaction.is_committed()) {
                spent.insert(key, number);
            }
        }
        let of = |fact: &Fact| match fact {
            Fact::Read(number, place) => {
                let read = &self.history.transactions[*number].reads[*place];
                read.lists.iter().map(|(key, list)| (*key, list.len())).collect()
            }
            Fact::Commit(number) => self.appended(*number),
            Fact::Spent(key) => spent.get(key.as_str()).map(|n| self.appended(*n)).unwrap_or_default(),
        };
        let story = |told: &Told| {
            let mut least = Least::new();
            let facts = told.facts.iter().enumerate().map(|(place, fact)| {
                for (key, count) in of(fact) {
                    let known = least.entry(key).or_default();
                    *known = (*known).max((count, place));
                }
                least.clone()
            });
            facts.collect()
        };
        Stories(self.history.lines.0.iter().map(story).collect())
    }

    /// How long lists must be to have what a transaction wrote.
    fn appended(&self, number: Number) -> Vec<(Key, usize)> {
        let appends = self.history.transactions[number].appends.iter();
        appends.filter_map(|append| Some((append.0, self.places.get(append)?.at + 1))).collect()
    }

    /// How many elements of a list are known, and why.
    pub(super) fn known(&self, stories: &Stories, known: &Knowledge, key: Key) -> Option<(usize, String)> {
        let of = |(line, count): (&Line, &usize)| {
            let (least, place) = *stories.0[*line].get(count.checked_sub(1)?)?.get(&key)?;
            Some((least, *line, place))
        };
        let (least, line, place) = known.0.iter().filter_map(of).max()?;
        let why = match &self.history.lines.0[line].facts[place] {
            Fact::Read(number, _) => format!("{} had read them", self.name(*number)),
            Fact::Commit(number) => format!("{} was acknowledged", self.name(*number)),
            Fact::Spent(key) => format!("the key {key:?} was told to be used up"),
        };
        Some((least, why))
    }
}
