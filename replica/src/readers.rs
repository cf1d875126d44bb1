//! A replica's pool of read-only connections.
//!
//! They are opened when first needed and kept. While the writer empties a long WAL, new snapshots wait ([`Readers::hold`]).
//! It must never know how fresh a snapshot has to be.

use crate::connection;
use parking_lot::Mutex;
use proto::{LogIndex, SqlState, WireError};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A replica's pool of read-only connections.
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    held: AtomicBool,
    released: Notify,
}

/// A connection of the pool with an open read transaction.
pub(crate) struct Reader {
    /// The connection.
    pub connection: Connection,
    /// The applied index, as the transaction sees it.
    pub position: LogIndex,
    permit: OwnedSemaphorePermit,
}

/// New snapshots wait as long as this lives.
pub(crate) struct Hold<'a>(&'a Readers);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
        self.0.released.notify_waiters();
    }
}

impl Readers {
    pub fn new(path: PathBuf, max: usize) -> Self {
        Self {
            path,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(max)),
            held: AtomicBool::new(false),
            released: Notify::new(),
        }
    }

    /// Holds new snapshots back.
    pub fn hold(&self) -> Hold<'_> {
        self.held.store(true, Ordering::Release);
        Hold(self)
    }

    /// Leave to open a snapshot.
    pub async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, WireError> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout_at(deadline.into(), self.permits.clone().acquire_owned())
                .await
                .map_err(|_| too_late("a free reader"))?
                .map_err(|_| closed())?,
        };
        while self.held.load(Ordering::Acquire) {
            let released = self.released.notified();
            // Looked at again after enlisting, so that a release in between isn't missed.
            if !self.held.load(Ordering::Acquire) {
                break;
            }
            tokio::time::timeout_at(deadline.into(), released).await.map_err(|_| too_late("a checkpoint"))?;
        }
        Ok(permit)
    }

    /// Opens a read transaction on what is committed now.
    pub fn open(&self, permit: OwnedSemaphorePermit) -> Result<Reader, WireError> {
        if self.permits.is_closed() {
            return Err(closed());
        }
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connection::reader(&self.path).map_err(dialect::sqlite::error)?,
        };
        let begin = || -> rusqlite::Result<i64> {
            connection.prepare_cached("BEGIN")?.execute([])?;
            connection.prepare_cached("SELECT applied FROM replica_state")?.query_row([], |row| row.get(0))
        };
        let position = begin().map_err(dialect::sqlite::error)?;
        Ok(Reader { connection, position: LogIndex(position.cast_unsigned()), permit })
    }

    /// Takes a connection back. One whose transaction can't be ended is closed.
    pub fn give_back(&self, reader: Reader) {
        let Reader { connection, permit, .. } = reader;
        let ended = connection.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.execute([]));
        if ended.is_ok() && !self.permits.is_closed() {
            self.idle.lock().push(connection);
        }
        drop(permit);
    }

    /// Opens no more.
    pub fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }
}

fn closed() -> WireError {
    WireError::new(SqlState::CANNOT_CONNECT_NOW, "the replica is closed")
        .with_retry(proto::Retry::NotLeader(None))
}

/// A deadline that passed before anything was executed.
pub(crate) fn too_late(waited_for: &str) -> WireError {
    WireError::new(
        SqlState::QUERY_CANCELED,
        format!("canceled by its deadline while it waited for {waited_for}"),
    )
    .with_retry(proto::Retry::Later)
}
