//! Whether a batch waits for company.
//!
//! Each batch costs a round of the log and a commit, however many writes it has. Where several transactions take their
//! steps at once, more of them are about to end; so their writes wait a moment for each other. PostgreSQL does the same by
//! `commit_delay` and `commit_siblings`. Who writes without steps before it, or is nearly alone, waits for nobody. In come
//! steps and what waits, out goes whether to wait. It must never know what is written.

use crate::overlay::{Overlay, OverlayId};
use std::time::Duration;

/// So many transactions that take steps are company.
const SIBLINGS: usize = 4;
/// One that has taken none for so long may be idle.
const IDLE: Duration = Duration::from_millis(5);
/// The first write of a batch waits no longer than this.
const PATIENCE: Duration = Duration::from_micros(1500);
/// So many writes wait for no more.
pub(crate) const ENOUGH_WRITES: usize = 12;

/// Who has taken steps lately, and until when a batch waits.
#[derive(Default)]
pub(crate) struct Company {
    siblings: Vec<(OverlayId, Duration)>,
    until: Option<Duration>,
}

impl Company {
    /// A transaction has taken a step. One that has changed nothing has nothing to end.
    pub fn step(&mut self, overlay: &Overlay, now: Duration) {
        if overlay.is_empty() {
            return;
        }
        if let Some((_, last)) = self.siblings.iter_mut().find(|(sibling, _)| sibling.is(overlay)) {
            *last = now;
        } else if self.siblings.len() < SIBLINGS {
            self.siblings.push((overlay.id(), now));
        } else if let Some(oldest) = self.siblings.iter_mut().min_by_key(|(_, last)| *last) {
            *oldest = (overlay.id(), now);
        }
    }

    /// Whether a batch of so many writes waits for more.
    pub fn is_awaited(&mut self, writes: usize, now: Duration) -> bool {
        let is_there =
            || self.siblings.iter().filter(|(_, last)| now.saturating_sub(*last) < IDLE).count() == SIBLINGS;
        if writes == 0 || writes >= ENOUGH_WRITES || (self.until.is_none() && !is_there()) {
            self.until = None;
            return false;
        }
        now < *self.until.get_or_insert(now + PATIENCE)
    }

    /// How much longer a batch waits, if one does.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        self.until.map(|until| until.saturating_sub(now)).filter(|left| !left.is_zero())
    }

    /// A batch is begun.
    pub fn begin(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Cancel;
    use bytes::Bytes;

    const MOMENT: Duration = Duration::from_micros(100);

    /// Transactions that have changed something.
    fn overlays(count: usize) -> Vec<Overlay> {
        let overlays: Vec<Overlay> = (0..count).map(|_| Overlay::new()).collect();
        for overlay in &overlays {
            overlay.push(Bytes::from_static(b"change"), &Cancel::default()).unwrap();
        }
        overlays
    }

    #[test]
    fn writes_wait_for_those_who_take_steps() {
        let (mut company, mut now) = (Company::default(), Duration::from_secs(1));
        let overlays = overlays(SIBLINGS);
        for _ in 0..3 {
            overlays[1..].iter().for_each(|overlay| company.step(overlay, now));
            company.step(&Overlay::new(), now);
        }
        assert!(!company.is_awaited(1, now), "too few");
        company.step(&overlays[0], now);
        assert!(!company.is_awaited(0, now));
        assert!(company.is_awaited(1, now));
        now += MOMENT;
        assert_eq!(company.left(now), Some(PATIENCE - MOMENT));
        assert!(!company.is_awaited(ENOUGH_WRITES, now), "no need");
        assert_eq!(company.left(now), None);
        assert!(company.is_awaited(1, now));
        now += PATIENCE;
        assert!(!company.is_awaited(1, now), "too late");
        company.begin();
        now += IDLE;
        overlays[1..].iter().for_each(|overlay| company.step(overlay, now));
        assert!(!company.is_awaited(1, now), "one is idle");
    }

    #[test]
    fn who_is_gone_isnt_taken_for_who_comes_in_its_place() {
        let (mut company, now) = (Company::default(), Duration::from_secs(1));
        for _ in 0..SIBLINGS {
            // Memory that it leaves is the next one's.
            company.step(&overlays(1)[0], now);
        }
        assert!(company.is_awaited(1, now));
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut company, mut now) = (Company::default(), Duration::ZERO);
        let overlays = overlays(SIBLINGS + 1);
        for overlay in &overlays {
            company.step(overlay, now);
            now += Duration::from_millis(1);
        }
        assert!(company.is_awaited(1, now));
    }
}
