//! GTIDs: positions in shards' logs, and sets of them.
//!
//! A position is `keyspace/shard.incarnation:index`, for example `main/-80.1:4711`. A set holds one position per
//! shard incarnation; its text form is the positions in order, with commas between. Merging two sets keeps the
//! greater index of each, so a session's set only grows. What a retired incarnation's position is covered by is the
//! topology's business ([`crate::lineage`]), not known here.

use crate::ids::{Incarnation, LogIndex};
use crate::key_range::KeyRange;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The log of one shard, over its life.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GtidSource {
    /// The keyspace's name.
    pub keyspace: String,
    /// The shard's key range, which is its name.
    pub shard: KeyRange,
    /// Which of the shards that had this name.
    pub incarnation: Incarnation,
}

/// One position per log. An empty set is covered by everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GtidSet(BTreeMap<GtidSource, LogIndex>);

/// The longest text that is read, in bytes: some 3,000 positions.
pub const MOST_BYTES: usize = 64 << 10;

/// A text that isn't a GTID set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseGtidError {
    /// This part of it isn't a position.
    #[error("invalid GTID \"{0}\": expected keyspace/shard.incarnation:index")]
    Position(String),
    /// It has more than [`MOST_BYTES`].
    #[error("a GTID set has {MOST_BYTES} bytes at most")]
    TooLong,
}

impl GtidSet {
    /// Raises one position; a lower one changes nothing.
    pub fn raise(&mut self, source: GtidSource, index: LogIndex) {
        let held = self.0.entry(source).or_default();
        *held = (*held).max(index);
    }

    /// Raises every position to the other set's.
    pub fn merge(&mut self, other: &GtidSet) {
        for (source, index) in &other.0 {
            self.raise(source.clone(), *index);
        }
    }

    /// Whether everything in `other` is at or before this set's positions.
    pub fn covers(&self, other: &GtidSet) -> bool {
        other.0.iter().all(|(source, index)| self.get(source) >= *index)
    }

    /// The position in one log; 0 if the set has none.
    pub fn get(&self, source: &GtidSource) -> LogIndex {
        self.0.get(source).copied().unwrap_or_default()
    }

    /// The positions, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&GtidSource, LogIndex)> {
        self.0.iter().map(|(source, index)| (source, *index))
    }

    /// Whether the set has no position.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for GtidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.keyspace, self.shard, self.incarnation)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (source, index)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{source}:{index}")?;
        }
        Ok(())
    }
}

impl FromStr for GtidSet {
    type Err = ParseGtidError;

    fn from_str(text: &str) -> Result<Self, ParseGtidError> {
        if text.len() > MOST_BYTES {
            return Err(ParseGtidError::TooLong);
        }
        let mut set = GtidSet::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let position = parse_position(part);
            let (source, index) = position.ok_or_else(|| ParseGtidError::Position(part.to_owned()))?;
            set.raise(source, index);
        }
        Ok(set)
    }
}

fn parse_position(text: &str) -> Option<(GtidSource, LogIndex)> {
    let (rest, index) = text.rsplit_once(':')?;
    let (rest, incarnation) = rest.rsplit_once('.')?;
    let (keyspace, shard) = rest.rsplit_once('/')?;
    if keyspace.is_empty() {
        return None;
    }
    let source = GtidSource {
        keyspace: keyspace.to_owned(),
        shard: KeyRange::parse(shard)?,
        incarnation: Incarnation(u32::try_from(number(incarnation)?).ok()?),
    };
    Some((source, LogIndex(number(index)?)))
}

/// Digits alone. No incarnation and no index is 0, nor more than a database's integer can be.
fn number(digits: &str) -> Option<u64> {
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    number.filter(|number| (1..=i64::MAX as u64).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> GtidSet {
        text.parse().unwrap()
    }

    #[test]
    fn text_form_is_sorted_and_parses_back() {
        let gtid = set("main/80-.1:5, main/-80.2:7,other/-.1:3");
        assert_eq!(gtid.to_string(), "main/-80.2:7,main/80-.1:5,other/-.1:3");
        assert_eq!(set(&gtid.to_string()), gtid);
        assert!(set("").is_empty());
    }

    #[test]
    fn merge_keeps_the_greater_index() {
        let mut gtid = set("main/-80.1:5,main/80-.1:9");
        gtid.merge(&set("main/-80.1:7,main/80-.1:2,main/-80.2:1"));
        assert_eq!(gtid.to_string(), "main/-80.1:7,main/-80.2:1,main/80-.1:9");
    }

    #[test]
    fn covers_compares_every_position() {
        assert!(set("main/-.1:5").covers(&set("main/-.1:5")));
        assert!(set("main/-.1:5").covers(&set("")));
        assert!(!set("main/-.1:5").covers(&set("main/-.1:6")));
        assert!(!set("main/-.1:5").covers(&set("main/-.2:1")));
    }

    #[test]
    fn a_bad_position_is_named() {
        let most = format!("main/-.1:{}", i64::MAX as u64 + 1);
        let bad = ["x", "main/-.1", "main/-:3", "/-.1:3", "main/8-.1:3", "main/-.1:-3", "main/-.x:3"];
        for bad in bad.into_iter().chain(["main/-.1:0", "main/-.1:+3", "main/-.0:3", &most]) {
            let text = format!("main/-.1:3, {bad}");
            assert_eq!(text.parse::<GtidSet>().unwrap_err(), ParseGtidError::Position(bad.to_owned()));
        }
    }

    #[test]
    fn white_space_and_empty_parts_are_nothing() {
        assert_eq!(set(" main/-.1:5 ,, main/-.1:4,").to_string(), "main/-.1:5");
        assert!(set(" , ").is_empty());
    }

    #[test]
    fn a_text_has_an_end() {
        let positions = |count: usize| vec!["a/-.1:2"; count].join(",").parse::<GtidSet>();
        assert!(positions(MOST_BYTES / 8).is_ok());
        assert_eq!(positions(MOST_BYTES / 8 + 1).unwrap_err(), ParseGtidError::TooLong);
    }
}
