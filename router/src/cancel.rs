//! How a running statement learns that nobody wants it any more.
//!
//! A cancel request, a deadline, a lost client and a shutdown all *say so* and nothing else: the executor looks where
//! it can stop. A write that was sent to a shard isn't one of those places, so its outcome is always learned.

use dashmap::DashMap;
use proto::{SqlState, WireError};
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use tokio::sync::Notify;

/// Why a statement should stop. Later ones outlast earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// A cancel request.
    Requested = 1,
    /// `statement_timeout`.
    Timeout = 2,
    /// The client has gone.
    Lost = 3,
    /// The server stops.
    Shutdown = 4,
}

impl Reason {
    fn from_u8(value: u8) -> Option<Self> {
        [Reason::Requested, Reason::Timeout, Reason::Lost, Reason::Shutdown]
            .into_iter()
            .find(|r| *r as u8 == value)
    }

    /// The error that the statement ends with.
    pub fn error(self) -> WireError {
        match self {
            Reason::Requested => {
                WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
            }
            Reason::Timeout => {
                WireError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
            }
            Reason::Lost => WireError::new(SqlState::CONNECTION_FAILURE, "connection to client lost"),
            Reason::Shutdown => WireError::new(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command",
            ),
        }
    }
}

/// One session's ear for reasons to stop.
#[derive(Debug, Default)]
pub struct Interrupt {
    reason: AtomicU8,
    /// The session is to end where nothing runs.
    closing: AtomicBool,
    raised: Notify,
}

impl Interrupt {
    /// Says that the running statement should stop.
    pub fn raise(&self, reason: Reason) {
        self.reason.fetch_max(reason as u8, Ordering::AcqRel);
        self.raised.notify_waiters();
    }

    /// A new statement begins: what was meant for the one before is forgotten.
    pub fn rearm(&self) {
        let keep = |value| (value < Reason::Lost as u8 && value != 0).then_some(0);
        // Failing means that there was nothing to forget.
        let _ = self.reason.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep);
    }

    /// The reason to stop, if there is one.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_u8(self.reason.load(Ordering::Acquire))
    }

    /// An error if there is a reason to stop.
    pub fn check(&self) -> Result<(), WireError> {
        self.reason().map_or(Ok(()), |reason| Err(reason.error()))
    }

    /// Says that the session should end once nothing runs.
    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.raised.notify_waiters();
    }

    /// Whether the session should end where nothing runs.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits until the session should end where nothing runs.
    pub async fn closing(&self) {
        self.hear(|| self.is_closing().then_some(())).await;
    }

    /// Waits for a reason to stop.
    pub async fn wait(&self) -> Reason {
        self.hear(|| self.reason()).await
    }

    async fn hear<T>(&self, what: impl Fn() -> Option<T>) -> T {
        loop {
            let raised = self.raised.notified();
            tokio::pin!(raised);
            // Listening before looking, so that nothing is missed in between.
            raised.as_mut().enable();
            if let Some(heard) = what() {
                return heard;
            }
            raised.await;
        }
    }
}

/// The sessions that can be cancelled, by the key that their clients were given.
#[derive(Debug, Default)]
pub struct Sessions {
    last: AtomicI32,
    closing: AtomicBool,
    sessions: DashMap<i32, (i32, Arc<Interrupt>)>,
}

/// A session's place in the registry; dropping it gives it up.
#[derive(Debug)]
pub struct Registration {
    sessions: Arc<Sessions>,
    /// The session's process id, so called.
    pub pid: i32,
    /// Its secret.
    pub secret: i32,
    /// Its interrupt.
    pub interrupt: Arc<Interrupt>,
}

impl Sessions {
    /// Enters a session.
    pub fn register(self: &Arc<Self>) -> Registration {
        let interrupt = Arc::new(Interrupt::default());
        let secret = rand::rng().random();
        loop {
            // Positive, as process ids are; after 2^31 sessions those that are still in use are stepped over.
            let pid = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            if pid == 0 {
                continue;
            }
            if let dashmap::Entry::Vacant(vacant) = self.sessions.entry(pid) {
                vacant.insert((secret, interrupt.clone()));
                // After it was entered, so that it is told here or with all the others.
                if self.closing.load(Ordering::Acquire) {
                    interrupt.close();
                }
                return Registration { sessions: self.clone(), pid, secret, interrupt };
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Cancels what a session runs, if the secret is right.
    pub fn cancel(&self, pid: i32, secret: i32) {
        if let Some(session) = self.sessions.get(&pid)
            && session.0 == secret
        {
            session.1.raise(Reason::Requested);
        }
    }

    /// Tells every session to end once it runs nothing, and those that begin from now on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        for session in &self.sessions {
            session.1.close();
        }
    }

    /// Tells every session to end.
    pub fn shut_down(&self) {
        for session in &self.sessions {
            session.1.raise(Reason::Shutdown);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.sessions.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_secret_cancels_and_only_one_statement() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.register();
        sessions.cancel(session.pid, session.secret.wrapping_add(1));
        assert_eq!(session.interrupt.reason(), None);
        sessions.cancel(session.pid, session.secret);
        assert_eq!(session.interrupt.wait().await, Reason::Requested);
        session.interrupt.rearm();
        assert_eq!(session.interrupt.reason(), None);
        session.interrupt.raise(Reason::Lost);
        session.interrupt.raise(Reason::Requested);
        session.interrupt.rearm();
        assert_eq!(session.interrupt.reason(), Some(Reason::Lost));
        let pid = session.pid;
        drop(session);
        assert!(sessions.sessions.get(&pid).is_none());
    }
}
