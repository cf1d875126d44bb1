//! A consistent view of one replica's rows, on a pooled read-only connection.

use crate::driver::Shared;
use crate::readers::Reader;
use proto::LogIndex;
use rusqlite::{Connection, InterruptHandle};
use std::sync::Arc;

/// A read-only connection with an open read transaction. Dropping it ends the transaction and gives the connection
/// back to the replica's pool; statements of it must be gone by then.
pub struct Snapshot {
    reader: Option<Reader>,
    shared: Arc<Shared>,
}

impl Snapshot {
    pub(crate) fn new(reader: Reader, shared: Arc<Shared>) -> Self {
        Self { reader: Some(reader), shared }
    }

    fn reader(&self) -> &Reader {
        self.reader.as_ref().expect("it's there until the snapshot is dropped")
    }

    /// The connection. What a statement reads is one state of the replica, the one at [`Self::position`].
    pub fn connection(&self) -> &Connection {
        &self.reader().connection
    }

    /// The last log index whose effects the snapshot has, read inside it.
    pub fn position(&self) -> LogIndex {
        self.reader().position
    }

    /// Stops a statement that runs on the connection from another thread (it fails with 57014). Use it only while the
    /// snapshot lives: afterwards it would stop another reader's statement.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        self.connection().get_interrupt_handle()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.shared.readers.give_back(reader);
        }
    }
}
