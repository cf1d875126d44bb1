//! raft-rs logs through slog; its records go on to `tracing`.

use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

struct ToTracing {
    peer: u64,
    group: u64,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let (peer, group) = (self.peer, self.group);
        match record.level() {
            slog::Level::Critical | slog::Level::Error => tracing::error!(peer, group, "{}", record.msg()),
            slog::Level::Warning => tracing::warn!(peer, group, "{}", record.msg()),
            // What raft-rs calls information is its inner life.
            slog::Level::Info => tracing::debug!(peer, group, "{}", record.msg()),
            _ => tracing::trace!(peer, group, "{}", record.msg()),
        }
        Ok(())
    }
}

/// A logger for one replica.
pub(super) fn logger(peer: u64, group: u64) -> Logger {
    Logger::root(ToTracing { peer, group }.fuse(), o!())
}
