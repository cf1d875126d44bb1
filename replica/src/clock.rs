//! The node's clock: how long it has been up, counted also while the machine is suspended.
//!
//! Leases and promises not to vote are measured with it, and nothing else in this crate reads a clock for them. A clock
//! that stands still while the machine sleeps would keep a lease alive that the others have long outlived.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A clock that only goes forward. Its clones agree.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    Machine {
        origin: Duration,
    },
    /// Where the system has no clock that counts suspended time.
    Monotonic {
        origin: Instant,
    },
    Simulated(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Clock {
    /// The machine's clock, from now on.
    pub fn machine() -> Self {
        Self(match since_boot() {
            Some(origin) => Source::Machine { origin },
            None => Source::Monotonic { origin: Instant::now() },
        })
    }

    /// A clock that shows what it's told to. It must never go back.
    pub fn simulated(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Source::Simulated(Arc::new(now)))
    }

    /// How long it has gone.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::Machine { origin } => since_boot().unwrap_or(*origin).saturating_sub(*origin),
            Source::Monotonic { origin } => origin.elapsed(),
            Source::Simulated(now) => now(),
        }
    }

    /// [`Self::now`] in nanoseconds.
    pub(crate) fn nanos(&self) -> u64 {
        u64::try_from(self.now().as_nanos()).expect("a node doesn't run for 584 years")
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Option<Duration> {
    let time = rustix::time::clock_gettime_dynamic(rustix::time::DynamicClockId::Boottime).ok()?;
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn the_machines_clock_goes_forward() {
        let clock = Clock::machine();
        let first = clock.now();
        let second = clock.clone().now();
        assert!(first <= second && second < Duration::from_secs(60), "{first:?}, {second:?}");
    }

    #[test]
    fn a_simulated_clock_shows_what_it_is_told() {
        let nanos = Arc::new(AtomicU64::new(5));
        let shown = nanos.clone();
        let clock = Clock::simulated(move || Duration::from_nanos(shown.load(Ordering::Relaxed)));
        assert_eq!(clock.nanos(), 5);
        nanos.store(9, Ordering::Relaxed);
        assert_eq!(clock.clone().nanos(), 9);
    }
}
