//! The simulation's time, and what each node's clock makes of it.
//!
//! A node's clock never goes back and goes on while the node is paused, as `CLOCK_BOOTTIME` does; but it may run faster
//! or slower than the others.

use super::trace::Time;
use replica::simulation::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The simulation's time.
#[derive(Clone, Default)]
pub struct WorldClock(Arc<AtomicU64>);

impl WorldClock {
    /// What time it is.
    pub fn now(&self) -> Time {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set(&self, now: Time) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// The slowest that a node's clock may run, in thousandths of the true speed.
pub const SLOWEST: u64 = 920;

/// A node's clock.
#[derive(Clone)]
pub struct NodeClock {
    world: WorldClock,
    rate: Arc<Rate>,
}

/// The clock showed `shown` at `since`, and has run at `permille` of the true speed from there.
struct Rate {
    since: AtomicU64,
    shown: AtomicU64,
    permille: AtomicU64,
}

impl NodeClock {
    /// A clock that begins at some time of its own and runs at the true speed.
    pub fn new(world: WorldClock, shown: Time) -> Self {
        let rate = Rate { since: world.now().into(), shown: shown.into(), permille: 1000.into() };
        Self { world, rate: Arc::new(rate) }
    }

    /// What it shows.
    pub fn now(&self) -> Time {
        let passed = self.world.now() - self.rate.since.load(Ordering::Relaxed);
        self.rate.shown.load(Ordering::Relaxed) + passed * self.rate.permille.load(Ordering::Relaxed) / 1000
    }

    /// Has it run at another speed from now on.
    pub fn set_rate(&self, permille: u64) {
        let (now, shown) = (self.world.now(), self.now());
        self.rate.since.store(now, Ordering::Relaxed);
        self.rate.shown.store(shown, Ordering::Relaxed);
        self.rate.permille.store(permille, Ordering::Relaxed);
    }

    /// When it will show this, if its speed stays.
    pub fn world_time(&self, shown: Duration) -> Time {
        let shown = u64::try_from(shown.as_nanos()).unwrap_or(u64::MAX);
        let left = shown.saturating_sub(self.now());
        self.world.now() + (left * 1000).div_ceil(self.rate.permille.load(Ordering::Relaxed))
    }

    /// The earliest time that can be this long ago on the clock.
    pub fn earliest(&self, ago: Duration) -> Time {
        let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX / 1000);
        self.world.now().saturating_sub((ago * 1000).div_ceil(SLOWEST))
    }

    /// As a host wants it.
    pub fn for_host(&self) -> Clock {
        let clock = self.clone();
        Clock::simulated(move || Duration::from_nanos(clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_is_early_and_never_goes_back() {
        let world = WorldClock::default();
        let clock = NodeClock::new(world.clone(), 500);
        world.set(1_000);
        clock.set_rate(1_100);
        assert_eq!(clock.now(), 1_500);
        world.set(2_000);
        assert_eq!(clock.now(), 2_600);
        clock.set_rate(900);
        assert_eq!(clock.now(), 2_600);
        assert_eq!(clock.world_time(Duration::from_nanos(3_500)), 3_000);
    }
}
