//! A value that many follow: what the last one to change it has left, and that it has changed.
//!
//! As `tokio::sync::watch`, but for one thing: who waits is woken in the order in which they began to. There it is by
//! lot, and in a simulation two who follow one value would go on in another order each time. It must never know what the value is.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::Notify;
use tokio::task::coop::cooperative;

/// Whoever changes it.
pub struct Sender<T>(Arc<Shared<T>>);

/// Whoever follows it.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// What was seen.
    seen: u64,
}

/// The value, which doesn't change as long as this is there. Not to be kept over anything that takes time.
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

/// Nobody is left who could change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left who could change it")]
pub struct Closed;

struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    is_closed: AtomicBool,
    receivers: AtomicUsize,
}

struct State<T> {
    value: T,
    version: u64,
}

/// A value, who changes it, and one who follows it and has seen what it is now.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value that nobody follows yet.
    pub fn new(value: T) -> Self {
        let (state, changed) = (RwLock::new(State { value, version: 0 }), Notify::new());
        let (is_closed, receivers) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self(Arc::new(Shared { state, changed, is_closed, receivers }))
    }

    /// What it is now.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Another one who follows it, and has seen what it is now.
    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver { shared: Arc::clone(&self.0), seen: self.0.read().version }
    }

    /// How many follow it.
    pub fn receiver_count(&self) -> usize {
        self.0.receivers.load(Ordering::Relaxed)
    }

    /// Gives it another value, and gives back what it was.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|present| std::mem::swap(present, &mut value));
        value
    }

    /// Changes it.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes it, and tells nobody if that says that it hasn't. Whether it has.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            if !change(&mut state.value) {
                return false;
            }
            state.version += 1;
        }
        self.0.changed.notify_waiters();
        true
    }
}

impl<T> Receiver<T> {
    /// What it is now.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// What it is now, which is seen by that.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.read();
        self.seen = state.version;
        Ref(state)
    }

    /// What it is now has been seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.read().version;
    }

    /// Whether it has changed since it was seen.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        let has_changed = self.shared.read().version != self.seen;
        if self.shared.is_closed() { Err(Closed) } else { Ok(has_changed) }
    }

    /// Waits until it has changed since it was seen; that is seen by this.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        cooperative(self.shared.change_since(&mut self.seen)).await
    }

    /// Waits until it is such that this holds, which it may be now.
    pub async fn wait_for(&mut self, mut holds: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let is_closed = self.shared.is_closed();
            {
                let state = self.shared.read();
                self.seen = state.version;
                if holds(&state.value) {
                    return Ok(Ref(state));
                }
            }
            if is_closed {
                return Err(Closed);
            }
            // That nobody is left is looked for above, after the last change.
            let _ = cooperative(self.shared.change_since(&mut self.seen)).await;
        }
    }
}

impl<T> Shared<T> {
    async fn change_since(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            // What happens from here on isn't missed.
            let changed = self.changed.notified();
            let is_closed = self.is_closed();
            let version = self.read().version;
            if version != *seen {
                *seen = version;
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            changed.await;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn who_waits_goes_on_in_the_order_in_which_he_began_to() {
        let sender = Sender::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (mut receiver, order) = (sender.subscribe(), Arc::clone(&order));
            tasks.spawn(async move {
                for round in 1..=3 {
                    receiver.wait_for(|value| *value >= round).await.unwrap();
                    order.lock().unwrap().push(number);
                }
            });
        }
        for round in 1..=3 {
            // In one thread, all begin to wait meanwhile.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            sender.send_replace(round);
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        let once = (0..50).collect::<Vec<_>>();
        assert_eq!(*order.lock().unwrap(), [once.clone(), once.clone(), once].concat());
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_last_one_of_several() {
        let (sender, mut receiver) = channel(1);
        assert!(!receiver.has_changed().unwrap());
        sender.send_modify(|value| *value = 2);
        assert_eq!(sender.send_replace(3), 2);
        assert!(receiver.has_changed().unwrap());
        receiver.changed().await.unwrap();
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (3, Ok(false)));
        assert!(!sender.send_if_modified(|_| false));
        assert!(!receiver.has_changed().unwrap());
        sender.send_replace(4);
        receiver.mark_unchanged();
        assert_eq!(receiver.has_changed(), Ok(false));
        sender.send_replace(5);
        assert_eq!(*receiver.borrow_and_update(), 5);
        assert_eq!(receiver.has_changed(), Ok(false));
        let other = receiver.clone();
        assert_eq!(sender.receiver_count(), 2);
        drop(other);
        assert_eq!((sender.receiver_count(), *sender.borrow()), (1, 5));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_missed_and_at_the_end_it_is_told() {
        let (sender, mut receiver) = channel(0_u32);
        let mut late = receiver.clone();
        let follows = tokio::spawn(async move {
            let mut last = 0;
            while receiver.changed().await.is_ok() {
                let now = *receiver.borrow();
                assert!(now >= last);
                last = now;
            }
            last
        });
        for value in 1..=10_000 {
            sender.send_replace(value);
            if value % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(sender);
        assert_eq!(follows.await.unwrap(), 10_000, "the last change comes before the end");
        assert_eq!(late.wait_for(|value| *value == 10_000).await.map(|value| *value), Ok(10_000));
        assert_eq!(late.wait_for(|value| *value == 7).await.map(|value| *value), Err(Closed));
        assert_eq!((late.changed().await, late.has_changed()), (Err(Closed), Err(Closed)));
    }
}
