//! A consistent view of one replica's rows, on a pooled read-only connection.

use proto::LogIndex;
use rusqlite::{Connection, InterruptHandle};

/// A read-only connection with an open read transaction. Dropping it ends the transaction and gives the connection
/// back to the replica's pool.
pub struct Snapshot {
    connection: Connection,
    position: LogIndex,
}

impl Snapshot {
    /// The connection. What a statement reads is one state of the replica, the one at [`Self::position`].
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The last log index whose effects the snapshot has, read inside it.
    pub fn position(&self) -> LogIndex {
        self.position
    }

    /// Stops a statement that runs on the connection from another thread (it fails with 57014). Use it only while the
    /// snapshot lives: afterwards it would stop another reader's statement.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }
}
