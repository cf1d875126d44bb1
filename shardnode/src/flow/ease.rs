//! How long a flow rests that has much to take over, so that its source's writers wait less for the machine that they share.
//!
//! In comes how long it has worked and how many bytes it lacks, out comes how long to rest. It rests for as long as it works, unless it
//! comes no nearer: then it rests ever less. Who lacks little doesn't rest. It must never know a clock.

use std::time::{Duration, Instant};

/// Who lacks less doesn't rest.
const LITTLE: u64 = 2 << 20;
/// How often it is looked whether it comes nearer.
const EVERY: Duration = Duration::from_secs(1);
/// By so much the rest grows each time that it does, up to as long as the work; else it's halved.
const GROWTH: f64 = 0.25;
/// And so little is none.
const LEAST: f64 = 0.1;

/// How long a flow rests.
pub(super) struct Ease {
    /// For this much of the time that it works.
    rest: f64,
    /// When it was looked how much it lacks, and how much that was.
    looked: Option<(Instant, u64)>,
}

impl Default for Ease {
    fn default() -> Self {
        Self { rest: 1.0, looked: None }
    }
}

impl Ease {
    /// How long to rest, by now, after so much work, if it lacks so many bytes.
    pub fn after(&mut self, now: Instant, worked: Duration, lacks: u64) -> Duration {
        if lacks < LITTLE {
            *self = Self::default();
            return Duration::ZERO;
        }
        match self.looked {
            None => self.looked = Some((now, lacks)),
            Some((at, before)) if now.saturating_duration_since(at) >= EVERY => {
                let more = (self.rest + GROWTH).min(1.0);
                let less = Some(self.rest / 2.0).filter(|rest| *rest >= LEAST).unwrap_or_default();
                self.rest = if lacks < before { more } else { less };
                self.looked = Some((now, lacks));
            }
            Some(_) => {}
        }
        worked.min(EVERY).mul_f64(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKED: Duration = Duration::from_millis(20);

    #[test]
    fn it_rests_as_long_as_it_works_unless_it_comes_no_nearer() {
        let (mut ease, begin) = (Ease::default(), Instant::now());
        let mut after = |second: u32, mib: u64| ease.after(begin + EVERY * second, WORKED, mib << 20);
        assert_eq!(after(0, 1), Duration::ZERO);
        assert_eq!(after(0, 100), WORKED);
        assert_eq!(after(0, 200), WORKED, "a moment says nothing");
        assert_eq!(after(1, 99), WORKED);
        let lacking: Vec<_> = (2..8).map(|second| after(second, 100)).collect();
        assert_eq!(lacking[..3], [WORKED / 2, WORKED / 4, WORKED / 8]);
        assert_eq!(lacking[3..], [Duration::ZERO; 3]);
        assert_eq!(after(8, 98), WORKED / 4);
        assert_eq!(after(9, 1), Duration::ZERO);
        assert_eq!(after(9, 100), WORKED, "what was is forgotten");
    }
}
