//! raft-rs logs through slog; its records go on to `tracing`.

use slog::{Drain, Logger, Never, OwnedKVList, Record, o};

struct ToTracing {
    node: u64,
    group: u64,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let (node, group) = (self.node, self.group);
        match record.level() {
            slog::Level::Critical | slog::Level::Error => tracing::error!(node, group, "{}", record.msg()),
            slog::Level::Warning => tracing::warn!(node, group, "{}", record.msg()),
            // What raft-rs calls information is its inner life.
            slog::Level::Info => tracing::debug!(node, group, "{}", record.msg()),
            _ => tracing::trace!(node, group, "{}", record.msg()),
        }
        Ok(())
    }
}

/// A logger for one replica.
pub(super) fn logger(node: u64, group: u64) -> Logger {
    Logger::root(ToTracing { node, group }.fuse(), o!())
}
