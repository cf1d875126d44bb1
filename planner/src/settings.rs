//! What a session can set that changes plans.
//!
//! In comes the text of a setting, out goes a value that a plan cache can have in its key. Settings that only change
//! how a plan runs or how values look have no place here.

use proto::{SqlState, WireError};

/// Everything that a session can set and that plans depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The pushdown rules that are on (`shoal.rules`).
    pub rules: Rules,
}

/// A rule that pushes work from the gather to the shards. Each can be switched off, and the answer stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Conditions on the shard key choose the shards.
    RouteByKey,
    /// A query whose rows are all on one shard runs there whole.
    PushWhole,
    /// Conditions on one table are checked where its rows are.
    PushFilter,
    /// Columns that nobody reads aren't sent.
    PushProjection,
    /// Tables whose rows lie together are joined where they lie.
    PushJoin,
    /// Shards aggregate what they have, the gather merges it.
    PushAggregate,
    /// Shards drop their own duplicates.
    PushDistinct,
    /// Shards sort, the gather merges in order.
    PushOrder,
    /// Shards send no more rows than the limit lets through.
    PushLimit,
}

impl Rule {
    /// Every rule.
    pub const ALL: &'static [Rule] = &[
        Rule::RouteByKey,
        Rule::PushWhole,
        Rule::PushFilter,
        Rule::PushProjection,
        Rule::PushJoin,
        Rule::PushAggregate,
        Rule::PushDistinct,
        Rule::PushOrder,
        Rule::PushLimit,
    ];

    /// The name that `shoal.rules` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Rule::RouteByKey => "route-by-key",
            Rule::PushWhole => "push-whole",
            Rule::PushFilter => "push-filter",
            Rule::PushProjection => "push-projection",
            Rule::PushJoin => "push-join",
            Rule::PushAggregate => "push-aggregate",
            Rule::PushDistinct => "push-distinct",
            Rule::PushOrder => "push-order",
            Rule::PushLimit => "push-limit",
        }
    }
}

/// A set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules(u16);

impl Default for Rules {
    fn default() -> Self {
        Rules::ALL
    }
}

impl Rules {
    /// All of them.
    pub const ALL: Rules = Rules((1 << Rule::ALL.len()) - 1);
    /// None: every table is gathered whole.
    pub const NONE: Rules = Rules(0);

    /// Whether a rule is on.
    pub fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u16) != 0
    }

    /// The same with one rule off.
    pub fn without(self, rule: Rule) -> Rules {
        Rules(self.0 & !(1 << rule as u16))
    }

    /// The same with one rule on.
    pub fn with(self, rule: Rule) -> Rules {
        Rules(self.0 | (1 << rule as u16))
    }

    /// Reads a value of `shoal.rules`: names with `-` (off) or `+` (on) before them, applied in order to all of them
    /// being on; `all` and `none` (or `-all`) for the two ends. 22023 for a name that isn't one.
    pub fn parse(text: &str) -> Result<Rules, WireError> {
        let mut rules = Rules::ALL;
        for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
            let (on, name) = match word.split_at_checked(1) {
                Some(("-", name)) => (false, name),
                Some(("+", name)) => (true, name),
                _ => (true, word),
            };
            rules = match (name, Rule::ALL.iter().find(|rule| rule.name() == name)) {
                ("all", _) => {
                    if on {
                        Rules::ALL
                    } else {
                        Rules::NONE
                    }
                }
                ("none", _) if on => Rules::NONE,
                (_, Some(rule)) => {
                    if on {
                        rules.with(*rule)
                    } else {
                        rules.without(*rule)
                    }
                }
                _ => {
                    let known: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
                    return Err(WireError::new(
                        SqlState::INVALID_PARAMETER_VALUE,
                        format!("invalid value for parameter \"shoal.rules\": \"{text}\""),
                    )
                    .with_detail(format!("There is no rule \"{name}\"."))
                    .with_hint(format!("Rules are: {}.", known.join(", "))));
                }
            };
        }
        Ok(rules)
    }
}

impl std::fmt::Display for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Rules::ALL {
            return f.write_str("all");
        }
        if *self == Rules::NONE {
            return f.write_str("none");
        }
        let off = Rule::ALL.iter().filter(|rule| !self.has(**rule));
        let words: Vec<_> = off.map(|rule| format!("-{}", rule.name())).collect();
        f.write_str(&words.join(","))
    }
}

/// A time, as settings are given it, in milliseconds. Without a unit that is what it is in.
pub fn parse_millis(value: &str) -> Option<u64> {
    let value = value.trim();
    let digits = value.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(value.len());
    let number: f64 = value[..digits].parse().ok()?;
    let millis = match value[digits..].trim() {
        "us" => number / 1000.0,
        "" | "ms" => number,
        "s" => number * 1000.0,
        "min" => number * 60_000.0,
        "h" => number * 3_600_000.0,
        "d" => number * 86_400_000.0,
        _ => return None,
    };
    (millis.is_finite() && millis < 1e18).then(|| millis.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_setting() {
        assert_eq!(Rules::parse(""), Ok(Rules::ALL));
        assert_eq!(Rules::parse("none"), Ok(Rules::NONE));
        let two = Rules::parse("-push-limit, -push-order").unwrap();
        assert!(!two.has(Rule::PushLimit) && !two.has(Rule::PushOrder) && two.has(Rule::PushFilter));
        assert_eq!(Rules::parse(&two.to_string()), Ok(two));
        assert!(Rules::parse("-all +push-limit").unwrap().has(Rule::PushLimit));
        assert_eq!(Rules::parse("-nope").unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
        assert_eq!(Rules::parse("é").unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    }
}
