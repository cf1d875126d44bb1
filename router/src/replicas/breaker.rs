//! A circuit breaker: whether something that has failed is worth trying.
//!
//! In come the outcomes of attempts, and when they were; out comes whether there may be another. Closed, it lets everyone
//! through. What fails badly, or a few times in a row, opens it for a while, and then one attempt is let through whose outcome
//! closes it, or opens it for twice as long. Nothing here knows what is tried. The time is the caller's.

use std::time::{Duration, Instant};

/// How long it stays open at first.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest that it stays open.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many refusals in a row open it.
const MOST_REFUSALS: u32 = 3;

/// How something has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was refused, for now.
    Refused,
    /// Nobody is there to refuse it.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everyone is let through. So many were refused since somebody wasn't.
    Closed(u32),
    /// Nobody is until then, and then one.
    Open(Instant),
    /// One is trying: the trial of this number.
    Tried(u64),
}

/// Leave to try. What comes of it must be told, for others may wait for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass(Option<u64>);

/// A breaker.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    state: State,
    /// How long it was open last, or is.
    pause: Duration,
    /// How many trials there have been.
    trials: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed(0), pause: Duration::ZERO, trials: 0 }
    }
}

impl Breaker {
    /// Whether somebody may try now.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed(_) => true,
            State::Open(until) => now >= until,
            State::Tried(_) => false,
        }
    }

    /// Whether it isn't closed.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed(_))
    }

    /// Somebody is about to try. Nobody may who comes while another tries, though both were admitted.
    pub fn enter(&mut self, now: Instant) -> Option<Pass> {
        if !self.admits(now) {
            return None;
        }
        if !self.is_open() {
            return Some(Pass(None));
        }
        self.trials += 1;
        self.state = State::Tried(self.trials);
        Some(Pass(Some(self.trials)))
    }

    /// Whether the one who tries has this pass.
    fn is_tried_by(&self, Pass(trial): Pass) -> bool {
        matches!(self.state, State::Tried(number) if trial == Some(number))
    }

    /// An attempt has succeeded.
    pub fn succeeded(&mut self) {
        *self = Self { trials: self.trials, ..Self::default() };
    }

    /// An attempt has failed. One that was begun before the breaker opened says nothing new.
    pub fn failed(&mut self, how: Failure, pass: Pass, now: Instant) {
        match self.state {
            State::Closed(refusals) if how == Failure::Refused && refusals + 1 < MOST_REFUSALS => {
                self.state = State::Closed(refusals + 1);
            }
            State::Closed(_) => self.open(now),
            State::Tried(_) if self.is_tried_by(pass) => self.open(now),
            State::Tried(_) | State::Open(_) => {}
        }
    }

    /// Nobody will know what came of an attempt.
    pub fn gave_up(&mut self, pass: Pass, now: Instant) {
        if self.is_tried_by(pass) {
            self.state = State::Open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.state = State::Open(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::machine;

    const MS: Duration = Duration::from_millis(1);

    /// Of one who came while it was closed.
    const PLAIN: Pass = Pass(None);

    #[test]
    fn a_few_refusals_in_a_row_open_it_and_a_success_forgives_them() {
        let (mut breaker, now) = (Breaker::default(), machine::now());
        for round in 0..3 {
            breaker.failed(Failure::Refused, PLAIN, now);
            breaker.failed(Failure::Refused, PLAIN, now);
            assert!(breaker.admits(now), "{round}");
            breaker.succeeded();
        }
        (0..3).for_each(|_| breaker.failed(Failure::Refused, PLAIN, now));
        assert!(!breaker.admits(now) && breaker.is_open());
    }

    #[test]
    fn a_loss_opens_it_for_longer_each_time_up_to_a_bound() {
        let (mut breaker, mut now) = (Breaker::default(), machine::now());
        breaker.failed(Failure::Lost, PLAIN, now);
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            // Whoever was under way when it opened says nothing new.
            breaker.failed(Failure::Lost, PLAIN, now);
            assert!(!breaker.admits(now + pause * MS - MS), "{pause}");
            now += pause * MS;
            assert!(breaker.admits(now), "{pause}");
            let trial = breaker.enter(now).unwrap();
            assert!(!breaker.admits(now + 10_000 * MS), "one at a time");
            assert_eq!(breaker.enter(now), None, "and be it that both were admitted");
            breaker.failed(Failure::Lost, PLAIN, now);
            assert!(!breaker.admits(now + 10_000 * MS), "another's failure");
            breaker.failed(Failure::Refused, trial, now);
        }
        now += 5000 * MS;
        breaker.enter(now).unwrap();
        breaker.succeeded();
        assert!(!breaker.is_open());
        assert_eq!((breaker.enter(now), breaker.enter(now)), (Some(PLAIN), Some(PLAIN)));
        breaker.failed(Failure::Lost, PLAIN, now);
        assert!(breaker.admits(now + 100 * MS), "it begins anew");
    }

    #[test]
    fn a_trial_that_was_given_up_leaves_room_for_another() {
        let (mut breaker, now) = (Breaker::default(), machine::now());
        breaker.failed(Failure::Lost, PLAIN, now);
        assert_eq!(breaker.enter(now), None);
        let later = now + 100 * MS;
        let first = breaker.enter(later).unwrap();
        breaker.gave_up(PLAIN, later);
        assert!(!breaker.admits(later));
        breaker.gave_up(first, later);
        let second = breaker.enter(later).unwrap();
        // What comes of one is nothing to the next.
        breaker.gave_up(first, later);
        breaker.failed(Failure::Lost, first, later);
        assert_eq!(breaker.enter(later), None);
        breaker.succeeded();
        breaker.failed(Failure::Lost, PLAIN, later);
        let third = breaker.enter(later + 100 * MS).unwrap();
        breaker.gave_up(second, later + 100 * MS);
        assert_eq!(breaker.enter(later + 100 * MS), None);
        breaker.gave_up(third, later + 100 * MS);
        assert!(breaker.enter(later + 100 * MS).is_some());
    }
}
