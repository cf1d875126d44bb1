//! What happened in a run: lines for people, and a hash over everything for comparing two runs of a seed.

use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// Nanoseconds since the simulation's begin.
pub type Time = u64;

/// A microsecond.
pub const MICROSECOND: Time = 1_000;
/// A millisecond.
pub const MILLISECOND: Time = 1_000 * MICROSECOND;
/// A second.
pub const SECOND: Time = 1_000 * MILLISECOND;

/// What happened.
pub struct Trace {
    lines: Vec<(Time, String)>,
    hash: Xxh3,
    /// When each thing happened, and the hash up to there.
    moments: Vec<(Time, u64)>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { lines: Vec::new(), hash: Xxh3::new(), moments: Vec::new() }
    }
}

impl Trace {
    /// Something that a reader wants to see.
    pub fn note(&mut self, now: Time, what: impl fmt::Display) {
        let line = what.to_string();
        self.count(now, line.as_bytes());
        self.lines.push((now, line));
    }

    /// Something that only has to be the same the next time.
    pub fn count(&mut self, now: Time, what: &[u8]) {
        self.hash.update(&now.to_le_bytes());
        self.hash.update(what);
        self.moments.push((now, self.hash.digest()));
    }

    /// When each thing happened, and the hash up to there.
    pub fn moments(&self) -> &[(Time, u64)] {
        &self.moments
    }

    /// The lines, each with its time in seconds.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let line = |(time, line): &(Time, String)| {
            format!("{:>4}.{:06}  {line}", time / SECOND, time % SECOND / MICROSECOND)
        };
        self.lines.iter().map(line)
    }
}
