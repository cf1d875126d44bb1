//! How far a flow is, for who asks.

use super::source::BEAT;
use proto::LogIndex;
use proto::services::{FlowObstacle, FlowStatus};
use proto::topology::Flow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many news of what is committed are told apart.
const NEWS: usize = 256;

/// What is known of one flow.
#[derive(Debug)]
pub(super) struct Progress {
    flow: Flow,
    position: LogIndex,
    /// What was known to be committed, and since when: what lies after the position.
    committed: VecDeque<(LogIndex, Instant)>,
    last: LogIndex,
    heard: Instant,
    /// Bytes that were read and not taken over yet, and up to where they reach.
    read: (LogIndex, usize),
    /// Entries and bytes that were read ever.
    total: (u64, u64),
    obstacle: Option<FlowObstacle>,
}

impl Progress {
    pub fn new(flow: Flow, position: LogIndex, now: Instant) -> Self {
        let (committed, last, heard) = (VecDeque::new(), position, now);
        let (read, total, obstacle) = ((position, 0), (0, 0), None);
        Self { flow, position, committed, last, heard, read, total, obstacle }
    }

    /// More was heard of the source: it has this much, and so much of it has been read.
    pub fn hear(&mut self, committed: LogIndex, read: LogIndex, bytes: usize, now: Instant) {
        self.heard = now;
        self.obstacle = None;
        self.total.0 += read.0.saturating_sub(self.read.0.0);
        self.total.1 += bytes as u64;
        self.read = (read, self.read.1 + bytes);
        if committed <= self.last {
            return;
        }
        self.last = committed;
        let is_full = self.committed.len() >= NEWS;
        match self.committed.back_mut() {
            // It may seem to have been committed for longer than it is.
            Some((last, _)) if is_full => *last = committed,
            _ => self.committed.push_back((committed, now)),
        }
    }

    /// All up to here was taken over, and so much that was read is still to be.
    pub fn take(&mut self, position: LogIndex, left: usize) {
        self.position = position;
        self.last = self.last.max(position);
        self.read.1 = left;
        while self.committed.front().is_some_and(|(index, _)| *index <= position) {
            self.committed.pop_front();
        }
    }

    pub fn stop(&mut self, obstacle: FlowObstacle) {
        self.obstacle = Some(obstacle);
    }

    pub fn status(&self, now: Instant) -> FlowStatus {
        let known = self.committed.front().map_or(Duration::ZERO, |(_, since)| now - *since);
        let silent = Some(now - self.heard).filter(|silence| *silence > BEAT * 2);
        let unread = self.last.0.saturating_sub(self.read.0.0);
        let (entries, bytes) = self.total;
        let mean = bytes.checked_div(entries).unwrap_or(0);
        FlowStatus {
            source: self.flow.source,
            position: self.position,
            committed: self.last,
            lag: known.max(silent.unwrap_or_default()),
            lag_bytes: self.read.1 as u64 + unread * mean,
            obstacle: self.obstacle.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ShardId;

    #[test]
    fn a_flow_lags_for_as_long_as_what_it_lacks_is_known() {
        let flow = Flow { source: ShardId(1), target: ShardId(2), references: false };
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut progress = Progress::new(flow, LogIndex(10), at(0));
        let lag = |progress: &Progress, millis| {
            let FlowStatus { position, committed, lag, lag_bytes, .. } = progress.status(at(millis));
            (position.0, committed.0, lag.as_millis(), lag_bytes)
        };
        assert_eq!(lag(&progress, 0), (10, 10, 0, 0));
        progress.hear(LogIndex(20), LogIndex(15), 500, at(0));
        progress.hear(LogIndex(24), LogIndex(20), 500, at(30));
        assert_eq!(lag(&progress, 50), (10, 24, 50, 1000 + 4 * 100));
        progress.take(LogIndex(20), 0);
        assert_eq!(lag(&progress, 50), (20, 24, 20, 400));
        progress.hear(LogIndex(24), LogIndex(24), 400, at(30));
        progress.take(LogIndex(24), 0);
        assert_eq!(lag(&progress, 50), (24, 24, 0, 0));
        // Of a source that says nothing nobody knows how far it is.
        assert_eq!(lag(&progress, 2030).2, 2000);
        progress.stop(FlowObstacle::Forgotten);
        assert_eq!(progress.status(at(2030)).obstacle, Some(FlowObstacle::Forgotten));
        progress.hear(LogIndex(24), LogIndex(24), 0, at(2030));
        assert_eq!((lag(&progress, 2030).2, progress.status(at(2030)).obstacle), (0, None));
        for index in 0..10 * NEWS as u64 {
            progress.hear(LogIndex(100 + index), LogIndex(24), 0, at(2030));
        }
        assert_eq!(progress.committed.len(), NEWS);
    }
}
