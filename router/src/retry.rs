//! The one way of asking again.
//!
//! Whoever may repeat a request asks a [`Backoff`] when. Pauses double, are jittered so that sessions which failed
//! together don't return together, and end at a deadline. What may be repeated is the caller's knowledge.

use proto::machine;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The pauses between attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    deadline: Instant,
}

impl Backoff {
    /// Pauses until this deadline.
    pub fn until(deadline: Instant) -> Self {
        Self { next: FIRST_PAUSE, deadline }
    }

    /// The deadline.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits before the next attempt. `false`: there is no time for one.
    pub async fn pause(&mut self) -> bool {
        match self.draw(machine::now()) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                true
            }
            None => false,
        }
    }

    fn draw(&mut self, now: Instant) -> Option<Duration> {
        let left = self.deadline.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let pause = self.next.mul_f64(0.5 + 0.5 * lot(left));
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        Some(pause.min(left))
    }
}

/// A number from 0 to 1, by lot: what is left differs from session to session, in its nanoseconds at least. (SplitMix64's
/// last steps spread them.)
fn lot(left: Duration) -> f64 {
    let mut bits = left.as_nanos() as u64;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_end_at_the_deadline() {
        let start = machine::now();
        let mut backoff = Backoff::until(start + Duration::from_secs(3600));
        let pauses: Vec<_> = (0..20).filter_map(|_| backoff.draw(start)).collect();
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[0] <= FIRST_PAUSE);
        assert!(pauses[19] >= LONGEST_PAUSE / 2 && pauses[19] <= LONGEST_PAUSE);
        let mut backoff = Backoff::until(start + Duration::from_micros(1));
        assert_eq!(backoff.draw(start).map(|p| p <= Duration::from_micros(1)), Some(true));
        assert_eq!(backoff.draw(start + Duration::from_secs(1)), None);
    }
}
