//! A replica's pool of read-only connections.
//!
//! They are opened when first needed and kept. While the writer empties a long WAL, new snapshots wait
//! ([`Readers::hold`]); those that are open for long and stand in its way can be ended ([`Readers::end_older`]). When a
//! received image takes the database's place ([`Readers::replace`]), open snapshots go on with the old one, whose files
//! live as long as they're open, and every new one is of the new. It must never know how fresh a snapshot has to be, nor
//! how long the WAL is.

use crate::clock::Clock;
use crate::connection;
use crate::fault;
use crate::moment::Moment;
use crate::reading::Reading;
use parking_lot::{Mutex, RwLock};
use proto::{LogIndex, SqlState, WireError};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A replica's pool of read-only connections.
pub(crate) struct Readers {
    path: PathBuf,
    clock: Clock,
    pool: Mutex<Pool>,
    /// Counts the databases that this path has been. Held while a transaction is opened: a connection that found the
    /// database's file, and then another's WAL, would mix the two.
    generation: RwLock<u64>,
    permits: Arc<Semaphore>,
    held: AtomicBool,
    released: Notify,
}

#[derive(Default)]
struct Pool {
    idle: Vec<(Connection, Arc<Reading>)>,
    /// Of every connection, those that are in use among them.
    readings: Vec<Arc<Reading>>,
    /// How many snapshots were opened.
    opened: u64,
}

/// A connection of the pool with an open read transaction.
pub(crate) struct Reader {
    /// The connection.
    pub connection: Connection,
    /// What others may do to the transaction.
    pub reading: Arc<Reading>,
    /// The applied index, as the transaction sees it.
    pub position: LogIndex,
    pub generation: u64,
    permit: Option<OwnedSemaphorePermit>,
}

/// Why no read transaction could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unopened {
    /// For a reason that passes by itself, or with the request.
    #[error("{0}")]
    Refused(#[from] WireError),
    /// The replica's own files are to blame.
    #[error("{0}")]
    Fault(rusqlite::Error),
}

impl From<rusqlite::Error> for Unopened {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            fault if fault::hits_reader(&fault) => Self::Fault(fault),
            // Too many files or too little memory, most likely.
            local if fault::is_local(&local) => {
                Self::Refused(dialect::sqlite::error(local).with_retry(proto::Retry::Later))
            }
            error => Self::Refused(dialect::sqlite::error(error)),
        }
    }
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
    pub fn new(path: PathBuf, max: usize, clock: Clock) -> Self {
        Self {
            path,
            clock,
            pool: Mutex::default(),
            generation: RwLock::new(0),
            permits: Arc::new(Semaphore::new(max)),
            held: AtomicBool::new(false),
            released: Notify::new(),
        }
    }

    /// How many snapshots were opened.
    pub fn opened(&self) -> u64 {
        self.pool.lock().opened
    }

    /// Where the database lies.
    pub fn directory(&self) -> &Path {
        self.path.parent().expect("a database lies in a directory")
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

    /// Opens a read transaction on what is committed now. Who has no permit comes on top of the pool's bound.
    pub fn open(&self, permit: Option<OwnedSemaphorePermit>) -> Result<Reader, Unopened> {
        if self.permits.is_closed() {
            return Err(closed().into());
        }
        let generation = self.generation.read();
        let idle = {
            let mut pool = self.pool.lock();
            pool.opened += 1;
            pool.idle.pop()
        };
        let (connection, reading) = match idle {
            Some(pooled) => pooled,
            None => {
                let reading = Arc::new(Reading::new(self.clock.clone()));
                let opened = connection::reader(&self.path, &reading)?;
                self.pool.lock().readings.push(reading.clone());
                (opened, reading)
            }
        };
        reading.begin();
        let begin = || -> rusqlite::Result<i64> {
            connection.prepare_cached("BEGIN")?.execute([])?;
            connection.prepare_cached("SELECT applied FROM replica_state")?.query_row([], |row| row.get(0))
        };
        match begin() {
            Ok(position) => {
                let position = LogIndex(position.cast_unsigned());
                Ok(Reader { connection, reading, position, generation: *generation, permit })
            }
            Err(error) => {
                self.forget(&reading);
                Err(error.into())
            }
        }
    }

    /// Has a reader that was just opened show an earlier state of the database, which another one still shows.
    pub fn go_back(&self, reader: &mut Reader, moment: &Moment) -> rusqlite::Result<()> {
        moment.enter(&reader.connection)?;
        let mut statement = reader.connection.prepare_cached("SELECT applied FROM replica_state")?;
        let position: i64 = statement.query_row([], |row| row.get(0))?;
        reader.position = LogIndex(position.cast_unsigned());
        Ok(())
    }

    /// The database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a snapshot is one of the present database, and not of one that was replaced meanwhile.
    pub fn is_current(&self, reader: &Reader) -> bool {
        reader.generation == *self.generation.read()
    }

    /// Takes a connection back. One whose transaction can't be ended is closed.
    pub fn give_back(&self, reader: Reader) {
        let Reader { connection, reading, generation, permit, .. } = reader;
        reading.close();
        let ended = connection.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.execute([]));
        let current = self.generation.read();
        if ended.is_ok() && generation == *current && !self.permits.is_closed() {
            self.pool.lock().idle.push((connection, reading));
        } else {
            self.forget(&reading);
        }
        drop(permit);
    }

    /// Has `swap` put another database in this one's place. New snapshots wait for it, and nobody has a connection to
    /// the old one afterwards but for the snapshots that are open.
    pub fn replace<T>(&self, swap: impl FnOnce() -> T) -> T {
        let _held = self.hold();
        let mut generation = self.generation.write();
        *generation += 1;
        let idle = std::mem::take(&mut self.pool.lock().idle);
        idle.iter().for_each(|(_, reading)| self.forget(reading));
        drop(idle);
        swap()
    }

    /// Ends the snapshots that have been open for so long; says how many.
    pub fn end_older(&self, age: Duration) -> usize {
        self.pool.lock().readings.iter().filter(|reading| reading.end_if_older(age)).count()
    }

    fn forget(&self, reading: &Arc<Reading>) {
        reading.close();
        self.pool.lock().readings.retain(|other| !Arc::ptr_eq(other, reading));
    }

    /// Opens no more.
    pub fn close(&self) {
        self.permits.close();
        let mut pool = self.pool.lock();
        let Pool { idle, readings, .. } = &mut *pool;
        for (_, closed) in idle.drain(..) {
            readings.retain(|reading| !Arc::ptr_eq(reading, &closed));
        }
    }

    /// Whether the pool is closed.
    pub fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// Whether the pool is closed and nobody reads any more.
    pub fn are_gone(&self) -> bool {
        self.permits.is_closed() && self.pool.lock().readings.is_empty()
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
