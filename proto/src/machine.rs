//! What a node's code takes from the machine that it runs on: time, the time of day, chance, and threads that may wait.
//!
//! All of it comes through here, so that a simulation can give something else: the runtime's clock, which it pauses; a
//! time of day and numbers of its own; and for work that would wait on a thread, a turn in the one thread that it has.
//! Disks and networks are others' affair. It must never know what anything is wanted for.

use rand::Rng;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

/// The time, by the runtime's clock: the machine's, unless the runtime is a simulation's. What deadlines and pauses are
/// counted by.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Does something that takes long without waiting for anything, and lets another thread do meanwhile what else this one
/// would have. In a simulation, or in a test's one thread, there is none.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

/// Has the thread sleep that work is run on which may wait ([`Machine::blocking`]). Never in a simulation: its one thread would be
/// kept, and its time would stand still.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Where the time of day, chance and threads come from.
#[derive(Clone, Default)]
pub struct Machine(Option<Arc<Simulated>>);

struct Simulated {
    time_of_day: Box<dyn Fn() -> Duration + Send + Sync>,
    random: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Machine {
    /// One that a simulation makes up: the time since 1970, and numbers of which none comes twice, all bits alike.
    pub fn simulated(
        time_of_day: impl Fn() -> Duration + Send + Sync + 'static,
        random: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let simulated = Simulated { time_of_day: Box::new(time_of_day), random: Box::new(random) };
        Self(Some(Arc::new(simulated)))
    }

    /// The time since 1970. It may go back.
    pub fn time_of_day(&self) -> Duration {
        match &self.0 {
            Some(simulated) => (simulated.time_of_day)(),
            None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// The microseconds since 1970.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.time_of_day().as_micros()).unwrap_or(u64::MAX)
    }

    /// A number that nobody can guess, all bits alike.
    pub fn random(&self) -> u64 {
        match &self.0 {
            Some(simulated) => (simulated.random)(),
            None => rand::rng().random(),
        }
    }

    /// Has something run that takes long, or waits, on a thread of its own. In a simulation it runs in the one thread
    /// that there is, when whoever asked for it waits for something next: it must find there what it would wait for.
    pub fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match &self.0 {
            Some(_) => tokio::spawn(async move { work() }),
            None => tokio::task::spawn_blocking(work),
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Machine(simulated)" } else { "Machine" })
    }
}
