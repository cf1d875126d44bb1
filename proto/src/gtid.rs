//! GTIDs: positions in shards' logs, and sets of them.
//!
//! A position is `keyspace/shard.incarnation:index`, for example `main/-80.1:4711`. Where something was committed and nobody
//! knows at which index, `?` stands in its place: `main/-80.1:?`. A set holds one position per shard incarnation, or
//! both; its text form is the positions in order, with commas between. Merging two sets keeps the
//! greater index of each, so a session's set only grows. What a retired incarnation's position is covered by is the
//! topology's business ([`crate::lineage`]), not known here.

use crate::ids::{Incarnation, LogIndex};
use crate::key_range::KeyRange;
use std::borrow::Cow;
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

/// What a set says of one log. The default says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// All that is committed up to here; 0 for nothing.
    pub index: LogIndex,
    /// And something that is committed nobody knows where: only the shard's leader shows it for certain.
    pub is_unheard: bool,
}

/// One position per log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GtidSet(BTreeMap<GtidSource, Position>);

/// The longest text that is read, in bytes: some 3,000 positions.
pub const MOST_BYTES: usize = 64 << 10;

/// What stands in the place of an index that nobody knows.
const UNHEARD: &str = "?";

/// So much of a text is repeated in an error.
const SHOWN_BYTES: usize = 200;

/// A text that isn't a GTID set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseGtidError {
    /// This part of it isn't a position.
    #[error("invalid GTID \"{}\": expected keyspace/shard.incarnation:index", shortened(.0))]
    Position(String),
    /// It has more than [`MOST_BYTES`].
    #[error("a GTID set has {MOST_BYTES} bytes at most")]
    TooLong,
}

impl From<LogIndex> for Position {
    fn from(index: LogIndex) -> Self {
        Position { index, is_unheard: false }
    }
}

impl Position {
    /// Something is committed nobody knows where.
    pub const UNHEARD: Position = Position { index: LogIndex(0), is_unheard: true };

    /// Whether it says nothing.
    pub fn is_none(&self) -> bool {
        *self == Position::default()
    }

    /// Adds what another one says.
    pub fn raise(&mut self, other: Position) {
        self.index = self.index.max(other.index);
        self.is_unheard |= other.is_unheard;
    }
}

impl GtidSet {
    /// Raises one position; a lower one changes nothing.
    pub fn raise(&mut self, source: GtidSource, position: impl Into<Position>) {
        self.0.entry(source).or_default().raise(position.into());
    }

    /// Raises every position to the other set's.
    pub fn merge(&mut self, other: &GtidSet) {
        for (source, position) in &other.0 {
            self.raise(source.clone(), *position);
        }
    }

    /// The positions, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&GtidSource, Position)> {
        self.0.iter().map(|(source, position)| (source, *position))
    }

    /// Whether the set has no position.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As much of a text as is repeated in an error.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES {
        return text.into();
    }
    format!("{}..", &text[..text.floor_char_boundary(SHOWN_BYTES)]).into()
}

impl fmt::Display for GtidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.keyspace, self.shard, self.incarnation)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (source, Position { index, is_unheard }) in self.iter() {
            if index > LogIndex(0) {
                write!(f, "{comma}{source}:{index}")?;
                comma = ",";
            }
            if is_unheard {
                write!(f, "{comma}{source}:{UNHEARD}")?;
                comma = ",";
            }
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
            let (source, position) = position.ok_or_else(|| ParseGtidError::Position(part.to_owned()))?;
            set.raise(source, position);
        }
        Ok(set)
    }
}

fn parse_position(text: &str) -> Option<(GtidSource, Position)> {
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
    let position = match index {
        UNHEARD => Position::UNHEARD,
        index => LogIndex(number(index)?).into(),
    };
    Some((source, position))
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
    fn what_is_not_known_stands_beside_what_is() {
        let mut gtid = set("main/-80.1:?");
        assert_eq!(gtid.to_string(), "main/-80.1:?");
        gtid.merge(&set("main/80-.1:9,main/-80.1:7,main/80-.1:?"));
        assert_eq!(gtid.to_string(), "main/-80.1:7,main/-80.1:?,main/80-.1:9,main/80-.1:?");
        assert_eq!(set(&gtid.to_string()), gtid);
        for bad in ["main/-80.1:??", "main/-80.1:7?", "main/-80.?:7", "main/-80.1?"] {
            assert_eq!(bad.parse::<GtidSet>(), Err(ParseGtidError::Position(bad.to_owned())));
        }
    }

    #[test]
    fn of_a_long_text_an_error_shows_the_beginning() {
        let long = "\u{e4}".repeat(150);
        let message = ParseGtidError::Position(long.clone()).to_string();
        let shown = format!("invalid GTID \"{}..\": expected ", "\u{e4}".repeat(100));
        assert!(message.starts_with(&shown), "{message}");
        assert_eq!(shortened(&long[..200]), long[..200]);
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
