//! A consistent view of one replica's rows, on a pooled read-only connection.

use crate::driver::Shared;
use crate::engine::requests;
use crate::moment::Moment;
use crate::readers::Reader;
use crate::reading::Canceller;
use bytes::Bytes;
use proto::{LogIndex, RequestId, SqlState, WireError};
use rusqlite::Connection;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The state that a snapshot shows. More snapshots of it can be opened ([`crate::Replica::snapshot_of`]) as long as one
/// is open.
pub struct State {
    /// None where the database has no WAL yet: then only the newest state can be shown.
    moment: Option<Moment>,
    position: LogIndex,
    generation: u64,
}

/// A read-only connection with an open read transaction. Dropping it ends the transaction and gives the connection
/// back to the replica's pool; statements of it must be gone by then.
///
/// An open snapshot keeps the replica's WAL from being emptied. Once the WAL is past a bound, snapshots that are open
/// for longer than another bound are ended with 72000 (see [`crate::Config`]): what runs on them fails, and who holds
/// one without running anything should wait for [`Self::ended`] meanwhile.
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

    /// What it shows.
    pub fn state(&self) -> State {
        let reader = self.reader();
        let moment = Moment::of(&reader.connection).ok();
        State { moment, position: reader.position, generation: reader.generation }
    }

    /// Shows another state than the newest, if that isn't it. Fails if that one is gone.
    pub(crate) fn go_back(mut self, to: &State) -> Result<Self, WireError> {
        let Self { reader, shared } = &mut self;
        let reader = reader.as_mut().expect("it's there until the snapshot is dropped");
        if reader.generation == to.generation && reader.position != to.position {
            let gone = |_| gone();
            let moment = to.moment.as_ref().ok_or_else(self::gone)?;
            shared.readers.go_back(reader, moment).map_err(gone)?;
        }
        let is_there = reader.generation == to.generation && reader.position == to.position;
        if is_there { Ok(self) } else { Err(gone()) }
    }

    /// What a request was told. `None`: it isn't done in this state. 08007 if that is forgotten, so that nobody can say.
    pub fn told(&self, request: RequestId) -> Result<Option<Bytes>, WireError> {
        let told = requests::told(self.connection(), request).map_err(dialect::sqlite::error);
        told.map_err(|error| self.explain(error))?
    }

    /// How long it has been open.
    pub fn age(&self) -> Duration {
        self.reader().reading.age()
    }

    /// Ends statements that still run at the deadline, with 57014.
    pub fn end_at(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now().into_std());
        self.reader().reading.set_deadline(left);
    }

    /// The way to end it from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.reader().reading.clone())
    }

    /// Fails if it was ended: by its deadline, its canceller, or the replica.
    pub fn check(&self) -> Result<(), WireError> {
        self.reader().reading.why().map_or(Ok(()), Err)
    }

    /// Waits until it is ended by its canceller or the replica; [`Self::check`] says why.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let reading = Arc::clone(&self.reader().reading);
        async move { reading.ended().await }
    }

    /// The error of a statement on it, with its true cause: SQLite only says that it was interrupted. What this replica's
    /// own files are to blame for stops it; another one is to be asked.
    pub fn explain(&self, error: WireError) -> WireError {
        if self.shared.stop_for(self.reader()) {
            return self.shared.not_leader();
        }
        match self.check() {
            Err(why) if error.sqlstate == SqlState::QUERY_CANCELED => why,
            _ => error,
        }
    }
}

fn gone() -> WireError {
    WireError::new(SqlState::SNAPSHOT_TOO_OLD, "a state of the replica's database is gone")
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.shared.give_back(reader);
        }
    }
}
