//! How long things took, as counts that only grow.

use std::time::Duration;

/// What the first place has, and everything that took less.
const LEAST: Duration = Duration::from_micros(50);
/// So many places on, things took twice as long.
const OCTAVE: f64 = 4.0;
/// Up to some thirteen seconds; the last place has everything that took longer.
const PLACES: usize = 73;

/// How many things took how long. A counter: what became of it between two looks is the second without the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times(Vec<u64>);

impl Times {
    /// How many places there are.
    pub const PLACES: usize = PLACES;

    /// The place of something that took so long.
    pub fn place(took: Duration) -> usize {
        let octaves = (took.as_secs_f64() / LEAST.as_secs_f64()).log2();
        // What is negative, or no number, becomes 0.
        ((octaves * OCTAVE) as usize).min(PLACES - 1)
    }

    /// With so many at each place.
    pub fn of(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut counts: Vec<u64> = counts.into_iter().take(PLACES).collect();
        counts.truncate(counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        Self(counts)
    }

    /// How many there are at each place, up to the last that has any.
    pub fn counts(&self) -> &[u64] {
        &self.0
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What has come since an earlier look. `None` if this is no later one: it was begun anew.
    pub fn since(&self, earlier: &Times) -> Option<Times> {
        let at = |times: &Times, place: usize| times.0.get(place).copied().unwrap_or(0);
        let counts = (0..self.0.len().max(earlier.0.len()))
            .map(|place| at(self, place).checked_sub(at(earlier, place)))
            .collect::<Option<Vec<_>>>()?;
        Some(Self::of(counts))
    }

    /// Adds others.
    pub fn add(&mut self, others: &Times) {
        self.0.resize(self.0.len().max(others.0.len()), 0);
        self.0.iter_mut().zip(&others.0).for_each(|(count, more)| *count += more);
    }

    /// How long this share of them took at most. `None` if there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (self.total() as f64 * share).ceil().max(1.0);
        let mut before = 0.0;
        for (place, count) in self.0.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && before + count >= rank {
                // As if those of a place were spread over it.
                let octaves = (place as f64 + (rank - before) / count) / OCTAVE;
                return Some(LEAST.mul_f64(octaves.exp2()));
            }
            before += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[Duration]) -> Times {
        let mut counts = [0; Times::PLACES];
        all.iter().for_each(|took| counts[Times::place(*took)] += 1);
        Times::of(counts)
    }

    #[test]
    fn quantiles_are_about_right() {
        let millis = |number| Duration::from_millis(number);
        let times = of(&(1..=100).map(millis).collect::<Vec<_>>());
        assert_eq!(times.total(), 100);
        for (share, expected) in [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            let found = times.quantile(share).unwrap().as_secs_f64() * 1000.0;
            assert!((found / expected - 1.0).abs() < 0.2, "{share}: {found} instead of {expected}");
        }
        assert_eq!(Times::default().quantile(0.95), None);
    }

    #[test]
    fn whatever_takes_long_or_no_time_has_a_place() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Times::place(Duration::ZERO), 0);
        assert_eq!(Times::place(Duration::from_micros(99)), 3);
        assert_eq!(Times::place(Duration::from_micros(101)), 4);
        assert_eq!(Times::place(hour), Times::PLACES - 1);
        assert!(of(&[hour]).quantile(0.5).unwrap() > Duration::from_secs(10));
        assert!(of(&[Duration::ZERO]).quantile(0.5).unwrap() <= Duration::from_micros(60));
    }

    #[test]
    fn what_came_between_two_looks_is_told() {
        let (one, two) = (Duration::from_millis(1), Duration::from_millis(2));
        let (before, after) = (of(&[one]), of(&[one, two, two]));
        assert_eq!(after.since(&before), Some(of(&[two, two])));
        assert_eq!(after.since(&after), Some(Times::default()));
        assert_eq!(before.since(&after), None, "it was begun anew");
        let mut sum = before;
        sum.add(&of(&[two, two]));
        assert_eq!(sum, after);
    }
}
