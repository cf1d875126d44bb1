//! The hint that says how fresh what a query reads must be: `/*+ read(session) */` before its first token.
//!
//! In comes a comment, out goes the level that it names, if it names one. Other words in it are for others, and are passed
//! over, as PostgreSQL does with all of them.

use crate::parse_millis;
use proto::{SqlState, WireError};
use std::time::Duration;

/// How fresh what is read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadHint {
    /// The newest state.
    Strong,
    /// What the session has seen and done.
    Session,
    /// At most this old; `None` for what `shoal.max_staleness` says.
    Bounded(Option<Duration>),
    /// Any state.
    Eventual,
}

/// What opens a hint.
const OPEN: &str = "read(";

/// The hint in the comment's text.
pub(super) fn parse(comment: &str) -> Option<Result<ReadHint, Box<WireError>>> {
    let lower = comment.to_ascii_lowercase();
    let begins = |at: &usize| {
        let before = lower[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$'))
    };
    let at = lower.match_indices(OPEN).map(|(at, _)| at).find(begins)?;
    let rest = &lower[at + OPEN.len()..];
    let (inside, closed) = match rest.split_once(')') {
        Some((inside, _)) => (inside, true),
        None => (rest, false),
    };
    let (level, bound) = match inside.split_once(',') {
        Some((level, bound)) => (level.trim(), Some(bound)),
        None => (inside.trim(), None),
    };
    let hint = match (level, bound.map(parse_millis)) {
        ("strong", None) => Some(ReadHint::Strong),
        ("session", None) => Some(ReadHint::Session),
        ("eventual", None) => Some(ReadHint::Eventual),
        ("bounded", None) => Some(ReadHint::Bounded(None)),
        ("bounded", Some(Some(millis))) => Some(ReadHint::Bounded(Some(Duration::from_millis(millis)))),
        _ => None,
    };
    Some(hint.filter(|_| closed).ok_or_else(|| {
        let message = format!("invalid hint \"{OPEN}{}{}\"", inside.trim(), if closed { ")" } else { "" });
        let takes = "read(strong), read(session), read(bounded), read(bounded, 500ms) or read(eventual)";
        Box::new(
            WireError::new(SqlState::INVALID_PARAMETER_VALUE, message).with_hint(format!("Write {takes}.")),
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_named_among_other_words() {
        let bounded = |millis| ReadHint::Bounded(Some(Duration::from_millis(millis)));
        for (comment, hint) in [
            (" read(strong) ", ReadHint::Strong),
            ("READ(Session)", ReadHint::Session),
            (" SeqScan(t) read( eventual ) ", ReadHint::Eventual),
            ("read(bounded)", ReadHint::Bounded(None)),
            ("read(bounded, 500ms)", bounded(500)),
            ("read(bounded,2s)", bounded(2000)),
            ("spread(1) read(session)", ReadHint::Session),
        ] {
            assert_eq!(parse(comment), Some(Ok(hint)), "{comment}");
        }
        for comment in ["", " SeqScan(t) ", "spread(session)", "read", "we read (much)", "\u{e9}read(x)"] {
            assert_eq!(parse(comment), None, "{comment}");
        }
        let bad = ["read()", "read(linear)", "read(session", "read(session, 1s)", "read(bounded, soon)"];
        for comment in bad.into_iter().chain(["read(bounded, -1)", "read(bounded, 1s, 2s)"]) {
            let error = parse(comment).unwrap().unwrap_err();
            assert_eq!(error.sqlstate.as_str(), "22023", "{comment}");
        }
    }
}
