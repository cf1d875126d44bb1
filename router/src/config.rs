//! What a router is told when it is made.

use proto::machine::Machine;
use proto::services::GATE;
use std::time::Duration;

/// A router's bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sessions at a time; one more gets 53300.
    pub max_connections: usize,
    /// Bytes of a client's message; a longer one is refused before it is read.
    pub max_message_bytes: usize,
    /// How long a client may take until its session has started.
    pub startup_timeout: Duration,
    /// How long a statement asks again while a shard has no leader, or the coordinator none.
    pub retry_timeout: Duration,
    /// How long transaction blocks are kept waiting for one attempt to replace shards. Longer than such an attempt takes, and
    /// shorter than `retry_timeout`: who was refused by a shard that is being replaced waits as long as it takes.
    pub gate: Duration,
    /// How long a statement may take where `statement_timeout` sets no bound.
    pub statement_timeout: Duration,
    /// Whether the votes of a transaction over several shards commit it; else the coordinator's verdict does, one round
    /// later.
    pub parallel_commit: bool,
    /// Plans that are kept.
    pub cached_plans: usize,
    /// Bytes of rows that go to a shard in one request, and that COPY and INSERT .. SELECT hold back for a shard.
    pub batch_bytes: usize,
    /// Shards that one statement asks at a time.
    pub shards_at_once: usize,
    /// Gathers that run at a time; others wait.
    pub gathers_at_once: usize,
    /// The router's zone: replicas in it are preferred. Empty for none.
    pub zone: String,
    /// Where the time of day, chance and threads come from.
    pub machine: Machine,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 500,
            max_message_bytes: 64 << 20,
            startup_timeout: Duration::from_secs(60),
            retry_timeout: Duration::from_secs(30),
            gate: GATE,
            statement_timeout: Duration::from_secs(3600),
            parallel_commit: true,
            cached_plans: 4096,
            batch_bytes: 1 << 20,
            shards_at_once: 64,
            gathers_at_once: 32,
            zone: String::new(),
            machine: Machine::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_waits_for_longer_than_the_gate_is_closed() {
        let config = Config::default();
        assert!(config.gate < config.retry_timeout);
    }
}
