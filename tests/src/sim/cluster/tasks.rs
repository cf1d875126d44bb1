//! A runtime that is run by hand: everybody goes on until nobody has anything to do, while its time stands still.
//!
//! Wakers work across runtimes: who is woken from outside waits until it's run again ([`Tasks::are_woken`]). Dropping it
//! drops its tasks where they stand. It must never know what they do.

use super::super::trace::Time;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};

/// A process' tasks, and its time.
pub struct Tasks {
    runtime: Runtime,
    idle: Arc<Idle>,
    now: Time,
}

/// Whether the runtime has found nothing to do.
#[derive(Default)]
struct Idle {
    parked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Idle {
    /// The runtime would wait now. Whoever waits for that goes on instead.
    fn park(&self) {
        self.parked.store(true, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn parked(&self) {
        self.parked.store(false, Ordering::Relaxed);
        poll_fn(|context| {
            if self.parked.swap(false, Ordering::Relaxed) {
                return Poll::Ready(());
            }
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Tasks {
    /// No tasks, at this time.
    pub fn new(now: Time) -> std::io::Result<Self> {
        let idle = Arc::new(Idle::default());
        let parking = idle.clone();
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || parking.park())
            .build()?;
        Ok(Self { runtime, idle, now })
    }

    /// Sets the time, and lets everybody go on.
    pub fn run(&mut self, now: Time) {
        let passed = Duration::from_nanos(now - self.now);
        self.now = now;
        self.runtime.block_on(async {
            if !passed.is_zero() {
                tokio::time::advance(passed).await;
            }
            // The first time it looks which timers are due; whom they wake goes on before the second.
            self.idle.parked().await;
            self.idle.parked().await;
        });
    }

    /// Whether somebody was woken from outside.
    pub fn are_woken(&self) -> bool {
        self.runtime.metrics().global_queue_depth() > 0
    }

    /// What is called until the guard is dropped has this runtime's time, and may spawn tasks.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// The way in for tasks from elsewhere.
    pub fn handle(&self) -> Handle {
        self.runtime.handle().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn time_passes_when_it_is_told_to_and_by_nothing_else() {
        let mut tasks = Tasks::new(0).unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        tasks.handle().spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        assert!(tasks.are_woken());
        tasks.run(5_000_000);
        tasks.run(5_000_000);
        assert_eq!((count.load(Ordering::Relaxed), tasks.are_woken()), (0, false));
        tasks.run(15_100_000);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        for time in 2..100 {
            tasks.run(time * 10_000_000);
        }
        assert!((95..=99).contains(&count.load(Ordering::Relaxed)));
    }
}
