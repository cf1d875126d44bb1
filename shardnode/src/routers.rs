//! Which routers live, as far as this node hears of them.
//!
//! A transaction that is open here may be left alone by its client for as long as that likes, but not by its router: who
//! says nothing for too long is gone, and so are its transactions. A router says that it lives once for all of them. It
//! must never know what they are.

use parking_lot::Mutex;
use proto::{RouterIncarnation, machine};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// When each router was last heard.
#[derive(Debug)]
pub(crate) struct Routers {
    heard: Mutex<HashMap<RouterIncarnation, Instant>>,
    /// Whoever is silent for so long is forgotten.
    silence: Duration,
}

impl Routers {
    /// None yet.
    pub fn new(silence: Duration) -> Self {
        Self { heard: Mutex::default(), silence }
    }

    /// This one lives.
    pub fn hear(&self, router: RouterIncarnation) {
        let now = machine::now();
        let mut heard = self.heard.lock();
        heard.retain(|_, at| now.saturating_duration_since(*at) <= self.silence);
        heard.insert(router, now);
    }

    /// Whether it has been silent for too long.
    pub fn is_silent(&self, router: RouterIncarnation) -> bool {
        let now = machine::now();
        self.heard.lock().get(&router).is_none_or(|at| now.saturating_duration_since(*at) > self.silence)
    }
}
