//! A queue with one reader: what waits for a loop.
//!
//! The node's own mail is never lost. What other nodes send is bounded in bytes, and beyond that dropped: they send it
//! again. It must never know what an item means.

use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// What an item from another node costs beside its bytes. It bounds the number of small ones, too.
const OVERHEAD: usize = 4 << 10;

/// Something that waits for a loop.
pub(crate) trait Item {
    /// What other nodes sent is dropped beyond so many bytes.
    const MOST_BYTES: usize;

    /// How big it is, if another node sent it.
    fn foreign_bytes(&self) -> Option<usize>;

    /// The loop has ended, and nobody takes it any more.
    fn refuse(self);
}

/// A queue with one reader.
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    arrived: Condvar,
}

struct Waiting<T> {
    items: Vec<T>,
    foreign_bytes: usize,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let waiting = Waiting { items: Vec::new(), foreign_bytes: 0, closed: false };
        Self { waiting: Mutex::new(waiting), arrived: Condvar::new() }
    }
}

impl<T: Item> Queue<T> {
    /// Puts something in, and wakes the reader. Only what another node sent may be lost.
    pub fn send(&self, item: T) {
        self.send_all([item]);
    }

    /// Puts several things in.
    pub fn send_all(&self, items: impl IntoIterator<Item = T>) {
        self.put_all(items);
        self.arrived.notify_one();
    }

    /// Puts something in, and wakes nobody: who does so sees to it that it is taken.
    pub fn put(&self, item: T) {
        self.put_all([item]);
    }

    fn put_all(&self, items: impl IntoIterator<Item = T>) {
        let mut late = Vec::new();
        let mut waiting = self.waiting.lock();
        for item in items {
            if waiting.closed {
                late.push(item);
                continue;
            }
            if let Some(bytes) = item.foreign_bytes() {
                let cost = bytes + OVERHEAD;
                // One that is longer comes in alone, or it never would.
                if waiting.foreign_bytes > 0 && waiting.foreign_bytes + cost > T::MOST_BYTES {
                    continue;
                }
                waiting.foreign_bytes += cost;
            }
            waiting.items.push(item);
        }
        drop(waiting);
        late.into_iter().for_each(T::refuse);
    }

    /// Takes everything.
    pub fn take(&self) -> Vec<T> {
        self.waiting.lock().empty()
    }

    /// Waits so long until there is something.
    pub fn wait(&self, patience: Duration) {
        let mut waiting = self.waiting.lock();
        let until = Instant::now() + patience;
        while waiting.items.is_empty() && !self.arrived.wait_until(&mut waiting, until).timed_out() {}
    }

    /// Takes nothing in any more; what is still inside is refused.
    pub fn close(&self) {
        let items = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            waiting.empty()
        };
        items.into_iter().for_each(T::refuse);
    }
}

impl<T> Waiting<T> {
    fn empty(&mut self) -> Vec<T> {
        self.foreign_bytes = 0;
        std::mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Thing(Option<usize>, Arc<AtomicUsize>);

    impl Item for Thing {
        const MOST_BYTES: usize = 1 << 20;

        fn foreign_bytes(&self) -> Option<usize> {
            self.0
        }

        fn refuse(self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_what_others_sent_is_bounded() {
        let (queue, refused) = (Queue::default(), Arc::default());
        let send = |bytes| queue.send(Thing(bytes, Arc::clone(&refused)));
        (0..1000).for_each(|_| send(Some(0)));
        assert_eq!(queue.take().len(), (1 << 20) / OVERHEAD, "small ones");
        (0..1000).for_each(|_| send(Some(100 << 10)));
        (0..1000).for_each(|_| send(None));
        assert_eq!(queue.take().len(), 9 + 1000, "big ones; its own mail always finds room");
        send(Some(5 << 20));
        send(Some(0));
        assert_eq!(queue.take().len(), 1, "one that is longer than all may be comes in alone");
        send(Some(0));
        assert_eq!((queue.take().len(), refused.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn who_comes_after_the_end_is_told() {
        let (queue, refused) = (Queue::default(), Arc::default());
        queue.send(Thing(None, Arc::clone(&refused)));
        queue.close();
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        queue.send(Thing(None, Arc::clone(&refused)));
        assert_eq!((queue.take().len(), refused.load(Ordering::Relaxed)), (0, 2));
    }
}
