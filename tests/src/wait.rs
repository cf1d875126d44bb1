//! Waiting for what other processes do.
//!
//! A process elsewhere can't be waited on, so it is looked at, again and again, until it has done what it should or has
//! had long enough. In goes how to look; out comes what was seen. This is the only place where a test sleeps for that.

use std::time::{Duration, Instant};

/// How long another process may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a process is looked at again.
pub const LOOK: Duration = Duration::from_millis(100);

/// Looks until there is something, pausing in between. After so long, what was seen last is the error.
pub fn until<T, E>(
    patience: Duration,
    pause: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Err(_) if Instant::now() < end => std::thread::sleep(pause),
            seen => return seen,
        }
    }
}

/// Leaves others to their work for a while: for trials that take a given time, never for anything to come to pass.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
