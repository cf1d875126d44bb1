//! How long committed entries lie before a replica's database has them.
//!
//! In come entries' indexes as they are delivered, and the time; out goes for how long the oldest of them has waited. A
//! follower may be told to lag, so that whoever reads from it can be tried: then entries lie for a time that is drawn anew
//! every tenth of a second, by the clock alone. It must never know what is in an entry, nor who waits for it.

use std::collections::VecDeque;
use std::time::Duration;

/// So many arrivals are told apart.
const ARRIVALS: usize = 1024;

/// For how long a follower lags by the same time.
const PHASE: Duration = Duration::from_millis(100);

/// When committed entries came that the database may lack.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(VecDeque<Arrival>);

#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// The last of the entries that came together.
    index: u64,
    at: Duration,
}

/// By how much a follower lags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lag {
    least: Duration,
    most: Duration,
    seed: u64,
}

impl Arrivals {
    /// Entries up to this one have come.
    pub fn note(&mut self, index: u64, at: Duration) {
        if self.0.back().is_some_and(|last| last.index >= index) {
            return;
        }
        // What comes in too many parts counts as having come with its last one.
        if self.0.len() >= ARRIVALS || self.0.back().is_some_and(|last| last.at == at) {
            self.0.pop_back();
        }
        self.0.push_back(Arrival { index, at });
    }

    /// The database has entries up to this one.
    pub fn forget(&mut self, applied: u64) {
        while self.0.front().is_some_and(|first| first.index <= applied) {
            self.0.pop_front();
        }
    }

    /// When the first entry came that isn't forgotten.
    pub fn oldest(&self) -> Option<Duration> {
        self.0.front().map(|first| first.at)
    }

    /// The last entry that had come by then; 0 if all others are forgotten.
    pub fn by(&self, time: Duration) -> u64 {
        let count = self.0.partition_point(|arrival| arrival.at <= time);
        count.checked_sub(1).map_or(0, |last| self.0[last].index)
    }
}

impl Lag {
    /// Between these, by lot. Whoever has the same seed lags alike at the same times.
    pub fn new((least, most): (Duration, Duration), seed: u64) -> Self {
        Self { least, most: most.max(least), seed }
    }

    /// The last entry that may be applied at this time.
    pub fn ripe(&self, arrivals: &Arrivals, now: Duration) -> u64 {
        // So early, nothing has lain for long enough.
        now.checked_sub(self.at(now)).map_or(0, |time| arrivals.by(time))
    }

    /// How long until there may be another one.
    pub fn left(&self, arrivals: &Arrivals, now: Duration) -> Option<Duration> {
        let oldest = arrivals.oldest()?;
        let phase = now.as_nanos() / PHASE.as_nanos();
        let next_phase =
            PHASE.saturating_mul(u32::try_from(phase + 1).unwrap_or(u32::MAX)).saturating_sub(now);
        Some((oldest + self.at(now)).saturating_sub(now).min(next_phase))
    }

    /// By how much a follower lags at this time.
    fn at(&self, now: Duration) -> Duration {
        let span = u64::try_from((self.most - self.least).as_nanos()).unwrap_or(u64::MAX);
        let phase = u64::try_from(now.as_nanos() / PHASE.as_nanos()).unwrap_or(u64::MAX);
        self.least + Duration::from_nanos(mixed(self.seed ^ mixed(phase)) % span.saturating_add(1))
    }
}

/// SplitMix64's output function (Steele, Lea, Flood, 2014).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn arrivals_are_told_apart_as_far_as_there_is_room() {
        let mut arrivals = Arrivals::default();
        assert_eq!((arrivals.oldest(), arrivals.by(ms(9))), (None, 0));
        for (index, at) in [(5, 10), (5, 11), (4, 12), (6, 12), (7, 12), (9, 15)] {
            arrivals.note(index, ms(at));
        }
        let by = |arrivals: &Arrivals, times: [u64; 5]| times.map(|time| arrivals.by(ms(time)));
        assert_eq!(by(&arrivals, [9, 10, 11, 12, 99]), [0, 5, 5, 7, 9]);
        arrivals.forget(4);
        assert_eq!(arrivals.oldest(), Some(ms(10)));
        // Some of what came together is there, and some isn't.
        arrivals.forget(6);
        assert_eq!(arrivals.oldest(), Some(ms(12)));
        assert_eq!(by(&arrivals, [9, 10, 11, 12, 99]), [0, 0, 0, 7, 9]);
        arrivals.forget(9);
        assert_eq!(arrivals.oldest(), None);
        for index in 10..10 + 2 * ARRIVALS as u64 {
            arrivals.note(index, ms(index));
        }
        let last = 9 + 2 * ARRIVALS as u64;
        assert_eq!((arrivals.0.len(), arrivals.oldest()), (ARRIVALS, Some(ms(10))));
        assert_eq!((arrivals.by(ms(last - 1)), arrivals.by(ms(last))), (8 + ARRIVALS as u64, last));
    }

    #[test]
    fn a_lag_is_drawn_anew_for_each_tenth_of_a_second() {
        let lag = Lag::new((ms(20), ms(100)), 7);
        let phases: Vec<_> = (0..1000).map(|phase| lag.at(ms(100 * phase))).collect();
        for (phase, drawn) in (0..).zip(&phases) {
            assert!((ms(20)..=ms(100)).contains(drawn), "{drawn:?}");
            assert_eq!(lag.at(ms(100 * phase + 99)), *drawn);
        }
        let parts = [20, 40, 60, 80]
            .map(|least| phases.iter().filter(|drawn| (ms(least)..ms(least + 20)).contains(drawn)).count());
        assert!(parts.iter().all(|count| *count > 200), "{parts:?}");
        let other = Lag::new((ms(20), ms(100)), 8);
        assert!((0..100).filter(|phase| other.at(ms(100 * phase)) == phases[*phase as usize]).count() < 5);
        assert_eq!(Lag::new((ms(50), ms(50)), 7).at(ms(12)), ms(50));
        assert_eq!(Lag::new((ms(50), ms(0)), 7).at(ms(12)), ms(50));
    }

    #[test]
    fn what_has_lain_for_long_enough_is_ripe() {
        let mut arrivals = Arrivals::default();
        let lag = Lag::new((ms(250), ms(250)), 7);
        assert_eq!((lag.ripe(&arrivals, ms(999)), lag.left(&arrivals, ms(999))), (0, None));
        arrivals.note(5, ms(110));
        arrivals.note(6, ms(130));
        assert_eq!(lag.ripe(&arrivals, ms(130)), 0);
        // It looks again when it may have become another.
        assert_eq!(lag.left(&arrivals, ms(130)), Some(ms(70)));
        assert_eq!(lag.left(&arrivals, ms(300)), Some(ms(60)));
        assert_eq!([359, 360, 379, 380].map(|now| lag.ripe(&arrivals, ms(now))), [0, 5, 5, 6]);
        arrivals.forget(5);
        assert_eq!(lag.left(&arrivals, ms(360)), Some(ms(20)));
    }
}
