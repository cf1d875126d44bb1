//! How fast a reshard goes, and what is left of its phase.
//!
//! Pure: in come what was heard of it and when, out goes what can honestly be said of that. What isn't known is `None`, and
//! never a guess.

use proto::services::{ReshardPhase, ReshardStatus};
use std::collections::VecDeque;
use std::time::Duration;

/// What was heard longer ago says nothing of now.
const WINDOW: Duration = Duration::from_secs(30);
/// So long it takes at least to know a speed.
const LEAST: Duration = Duration::from_secs(2);

/// Follows one reshard.
#[derive(Debug, Default)]
pub struct Meter {
    phase: Option<ReshardPhase>,
    heard: VecDeque<Heard>,
}

#[derive(Debug)]
struct Heard {
    at: Duration,
    done: Option<u64>,
    lag: Option<Duration>,
}

/// What is known of a phase's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Bytes a second.
    pub rate: Option<u64>,
    /// How long the phase will take yet.
    pub remaining: Option<Duration>,
    /// Whether what is behind comes nearer.
    pub gains: Option<bool>,
}

impl Meter {
    /// Takes in what was heard at a time, counted from any beginning, and says how fast it goes.
    pub fn hear(&mut self, at: Duration, status: &ReshardStatus) -> Speed {
        if self.phase != Some(status.phase) {
            self.phase = Some(status.phase);
            self.heard.clear();
        }
        let done = status.bytes.map(|bytes| bytes.done);
        // What begins anew isn't going backwards.
        if self.heard.back().is_some_and(|last| last.done > done) {
            self.heard.clear();
        }
        while self.heard.front().is_some_and(|first| at.saturating_sub(first.at) > WINDOW) {
            self.heard.pop_front();
        }
        self.heard.push_back(Heard { at, done, lag: status.lag });
        self.speed(status)
    }

    fn speed(&self, status: &ReshardStatus) -> Speed {
        let mut speed = Speed::default();
        let (Some(first), Some(last)) = (self.heard.front(), self.heard.back()) else { return speed };
        let time = last.at - first.at;
        if status.paused.is_some() || time < LEAST {
            return speed;
        }
        if let (Some(bytes), Some(before)) = (status.bytes, first.done) {
            let rate = (bytes.done - before) as f64 / time.as_secs_f64();
            speed.rate = Some(rate as u64);
            let left = bytes.total.saturating_sub(bytes.done) as f64 / rate;
            speed.remaining = Duration::try_from_secs_f64(left).ok();
        } else if let (Some(now), Some(before)) = (last.lag, first.lag)
            && status.phase == ReshardPhase::CatchingUp
        {
            speed.gains = Some(now < before);
            if now < before {
                let each = (before - now).as_secs_f64() / time.as_secs_f64();
                speed.remaining = Duration::try_from_secs_f64(now.as_secs_f64() / each).ok();
            }
        }
        speed
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::status;
    use super::*;
    use proto::services::Progress;

    fn copied(done: u64) -> ReshardStatus {
        ReshardStatus { bytes: Some(Progress { done, total: 1_000 }), ..status(ReshardPhase::Copying) }
    }

    fn behind(ms: u64) -> ReshardStatus {
        ReshardStatus { lag: Some(Duration::from_millis(ms)), ..status(ReshardPhase::CatchingUp) }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_left_follows_from_the_last_half_minute() {
        let mut meter = Meter::default();
        assert_eq!(meter.hear(SECOND, &copied(0)), Speed::default());
        assert_eq!(meter.hear(2 * SECOND, &copied(100)), Speed::default(), "a second tells nothing");
        let speed = meter.hear(3 * SECOND, &copied(200));
        assert_eq!((speed.rate, speed.remaining), (Some(100), Some(8 * SECOND)));
        // What was done in haste doesn't count for ever.
        for second in 4..50 {
            meter.hear(second * SECOND, &copied(200 + u64::from(second)));
        }
        let speed = meter.hear(50 * SECOND, &copied(250));
        assert_eq!((speed.rate, speed.remaining), (Some(1), Some(750 * SECOND)));
    }

    #[test]
    fn nothing_is_said_that_is_not_known() {
        let mut meter = Meter::default();
        meter.hear(SECOND, &copied(500));
        let speed = meter.hear(9 * SECOND, &copied(500));
        assert_eq!((speed.rate, speed.remaining), (Some(0), None), "it doesn't go on");
        let paused = ReshardStatus { paused: Some("an admin has paused it".into()), ..copied(600) };
        assert_eq!(meter.hear(10 * SECOND, &paused), Speed::default());
        assert_eq!(meter.hear(20 * SECOND, &copied(10)), Speed::default(), "it begins anew");
        assert_eq!(meter.hear(30 * SECOND, &behind(70)), Speed::default(), "it's another phase");
    }

    #[test]
    fn whoever_is_behind_says_whether_it_gains() {
        let mut meter = Meter::default();
        meter.hear(SECOND, &behind(5_000));
        let speed = meter.hear(5 * SECOND, &behind(4_000));
        assert_eq!((speed.gains, speed.remaining), (Some(true), Some(16 * SECOND)));
        let speed = meter.hear(9 * SECOND, &behind(6_000));
        assert_eq!((speed.gains, speed.remaining), (Some(false), None));
    }
}
