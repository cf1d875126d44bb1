//! What a node's code takes from the machine that it runs on: time, the time of day, chance, and threads that may wait.
//!
//! All of it comes through here, so that a simulation can give something else: the runtime's clock, which it pauses; a
//! time of day and numbers of its own; and for work that would wait on a thread, a turn in the one thread that it has.
//! Disks and networks are others' affair. It must never know what anything is wanted for.

use rand::Rng;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

/// How nice a thread is that gives way.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

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

/// Gives this thread about a tenth of the weight that others have.
fn give_way() {
    // Elsewhere it would be the whole process. It may fail: it's only polite.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, nice.max(NICE)));
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

    /// As [`Machine::blocking`], on a thread that gives way to others where processors are few.
    pub fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        if self.0.is_some() {
            return self.blocking(work);
        }
        // A thread that has once given way can't take that back, so it's none of the runtime's.
        let give_way = move || {
            give_way();
            work()
        };
        let run = move || {
            let thread =
                thread::Builder::new().name("aside".into()).spawn(give_way).expect("a thread can be started");
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        self.blocking(run)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Machine(simulated)" } else { "Machine" })
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_works_aside_gives_way_and_nobody_else() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let usual = nice();
        assert_eq!(Machine::default().aside(nice).await.unwrap(), NICE.max(usual));
        assert_eq!(Machine::default().blocking(nice).await.unwrap(), usual);
        assert!(Machine::default().aside(|| panic!("as any task")).await.unwrap_err().is_panic());
    }
}
