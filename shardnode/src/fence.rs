//! What a shard's group serves as, kept in a row of the shard's own database.
//!
//! In comes a connection inside a transaction or a snapshot, and what a request says of itself: the shard that it is for and
//! the version that it was planned by. Both are looked up where the rows are read, so the answer can't disagree with them,
//! on any replica: one that has the entry which seals the shard answers nobody, one that hasn't yet answers from before it,
//! and one that takes over from others answers once it has the entry which opens it. The version is raised by the entry that
//! changes the tables, so a plan can never meet tables that it wasn't made for. On the writer, which runs all these entries
//! itself, the row is read once after each. It must never know why it is as it is.

use crate::{ended, flow, layout, prepared, staged};
use dialect::sqlite::error;
use parking_lot::Mutex;
use proto::services::FragmentRequest;
use proto::{Attempt, Epoch, LogIndex, ReshardId, Retry, SchemaVersion, ShardId, SqlState, Term, WireError};
use replica::{Snapshot, Stage};
use rusqlite::Connection;
use std::sync::Arc;

/// What a shard's group serves as. Of one group the shards' ids only grow: who comes back comes under a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The least schema version that it serves.
    pub least: SchemaVersion,
    /// The shard.
    pub shard: ShardId,
    /// Whether it serves.
    pub state: State,
    /// The last reshard that has asked for a seal, or to open what one had sealed.
    pub reshard: ReshardId,
    /// The attempt of it that has sealed the shard; 0 unless it is sealed.
    pub attempt: Attempt,
    /// Up to here its attempts can't seal the shard any more.
    pub void: Attempt,
}

/// Whether a group serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It does.
    Open,
    /// Not any more: others are to.
    Sealed,
    /// Not yet: it takes over from others.
    Following,
}

/// Where a request goes: the shard that it is for, and the topology that it was routed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub shard: ShardId,
    pub epoch: Epoch,
}

impl Address {
    /// A fragment's.
    pub fn of(request: &FragmentRequest) -> Self {
        Address { shard: request.shard, epoch: request.epoch }
    }
}

/// What every replica of a shard runs before its first log entry. A group that is founded by its log is open from the
/// beginning. One that is founded from a file that was built from other shards' databases is [`State::Following`], as the
/// shard that it is to become, and has the highest version of theirs: whoever builds the file runs this in it first.
pub(crate) fn init(shard: ShardId, state: State, least: SchemaVersion) -> Vec<String> {
    let number = state.number();
    vec![
        prepared::init(),
        prepared::init_locks(),
        staged::init(),
        ended::init(),
        ended::init_renounced(),
        layout::init(),
        flow::init(),
        flow::init_arriving(),
        "CREATE TABLE shoal_shard (id INTEGER NOT NULL PRIMARY KEY, least_version INTEGER NOT NULL,
                                   shard INTEGER NOT NULL, state INTEGER NOT NULL, reshard INTEGER NOT NULL,
                                   attempt INTEGER NOT NULL, void INTEGER NOT NULL) STRICT"
            .into(),
        format!("INSERT INTO shoal_shard VALUES (1, {least}, {shard}, {number}, 0, 0, 0)"),
    ]
}

/// The statement that raises the least version. Entries of two jobs may come in either order: it never falls.
pub(crate) fn raise(version: SchemaVersion) -> String {
    format!("UPDATE shoal_shard SET least_version = max(least_version, {version}) WHERE id = 1")
}

/// Refuses a read that the shard doesn't serve in this snapshot, or that was planned by an older catalog than it serves.
/// `is_strong`: the leader answers it.
pub(crate) fn check(
    snapshot: &Snapshot,
    to: Address,
    version: SchemaVersion,
    is_strong: bool,
) -> Result<(), WireError> {
    let checked = Standing::read(snapshot.connection()).and_then(|standing| {
        standing.admit(to, (!is_strong).then(|| snapshot.position()))?;
        standing.admit_plan(version)
    });
    checked.map_err(|e| snapshot.explain(e))
}

/// The same of a request that nobody has planned, by the leader.
pub(crate) fn check_served(snapshot: &Snapshot, to: Address) -> Result<(), WireError> {
    let checked = Standing::read(snapshot.connection()).and_then(|standing| standing.admit(to, None));
    checked.map_err(|e| snapshot.explain(e))
}

impl State {
    const ALL: [State; 3] = [State::Open, State::Sealed, State::Following];

    /// Its number in the row.
    pub fn number(self) -> i64 {
        State::ALL.iter().position(|state| *state == self).expect("they are all there") as i64
    }

    /// The state of a number that the row has.
    pub fn of(number: i64) -> Result<State, WireError> {
        let state = usize::try_from(number).ok().and_then(|state| State::ALL.get(state).copied());
        state.ok_or_else(damaged)
    }
}

fn damaged() -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, "what a shard serves as is damaged")
}

impl Standing {
    /// The row.
    pub fn read(connection: &Connection) -> Result<Standing, WireError> {
        let sql = "SELECT least_version, shard, state, reshard, attempt, void FROM shoal_shard WHERE id = 1";
        let mut statement = connection.prepare_cached(sql).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        let row = rows.next().map_err(error)?.ok_or_else(damaged)?;
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned).map_err(error);
        let state = State::of(row.get(2).map_err(error)?)?;
        Ok(Standing {
            least: SchemaVersion(number(0)?),
            shard: ShardId(number(1)?),
            state,
            reshard: ReshardId(number(3)?),
            attempt: Attempt(number(4)? as u32),
            void: u32::try_from(number(5)?).map(Attempt).map_err(|_| damaged())?,
        })
    }

    /// The column `attempt`: it has the reshard before the attempt, and is 0 while nothing is sealed. So what the entry of a seal
    /// changes names the seal, also where the attempt before it was of the same reshard.
    pub fn seal(&self) -> i64 {
        match self.attempt {
            Attempt(0) => 0,
            Attempt(attempt) => (self.reshard.0 << 32 | u64::from(attempt)).cast_signed(),
        }
    }

    /// Writes it into the row. Only a closure on the writer may that has the fence's word for it ([`Fence::change`]).
    pub fn write(&self, connection: &Connection) -> Result<(), WireError> {
        let sql =
            "UPDATE shoal_shard SET least_version = ?1, shard = ?2, state = ?3, reshard = ?4, attempt = ?5,
                   void = ?6 WHERE id = 1";
        let number = u64::cast_signed;
        let values = (
            number(self.least.0),
            number(self.shard.0),
            self.state.number(),
            number(self.reshard.0),
            self.seal(),
            self.void.0,
        );
        connection.prepare_cached(sql).map_err(error)?.execute(values).map_err(error)?;
        Ok(())
    }

    /// Refuses a request that isn't for what this serves as. `at`: a replica that follows answers, from here.
    pub fn admit(&self, to: Address, at: Option<LogIndex>) -> Result<(), WireError> {
        if to.shard == self.shard && self.state == State::Open {
            return Ok(());
        }
        let is_past = to.shard < self.shard || to.shard == self.shard && self.state == State::Sealed;
        if is_past {
            // Whatever serves now, the one who asked has been told of it by a later topology or will be.
            let message = format!("shard {} is not served here any more", to.shard);
            let retry = Retry::StaleEpoch(Epoch(to.epoch.0 + 1));
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(retry));
        }
        let message = format!("shard {} is not served here yet", to.shard);
        let retry = at.map_or(Retry::Later, Retry::Behind);
        Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(retry))
    }

    fn admit_plan(&self, version: SchemaVersion) -> Result<(), WireError> {
        if version >= self.least {
            return Ok(());
        }
        let message =
            format!("planned by schema version {version}, but the shard serves {} and later", self.least);
        let retry = Retry::StaleSchema(self.least);
        Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(retry))
    }
}

/// The row as the writer has it.
#[derive(Debug, Default)]
pub(crate) struct Fence(Mutex<Known>);

/// What is remembered of the row, so that it needn't be read each time.
#[derive(Debug, Default)]
struct Known {
    /// As it was last read, in this term and of this age of the schema: its entries raise the version.
    row: Option<(Term, u64, Standing)>,
    /// How many writes may be under way that change it otherwise. Then nothing is remembered: they may yet come to nothing.
    changing: u32,
}

/// That a write may change the row, until it is dropped.
pub(crate) struct Changing(Arc<Fence>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.0.lock().changing -= 1;
    }
}

impl Fence {
    /// To be had before a write begins that changes the row, and until it has been answered for good.
    pub fn change(self: &Arc<Self>) -> Changing {
        let mut known = self.0.lock();
        known.changing += 1;
        known.row = None;
        Changing(Arc::clone(self))
    }

    /// As [`check`], on the writer.
    pub fn check(&self, stage: &Stage<'_>, to: Address, version: SchemaVersion) -> Result<(), WireError> {
        let standing = self.look(stage)?;
        standing.admit(to, None)?;
        standing.admit_plan(version)
    }

    /// As [`check_served`], on the writer.
    pub fn check_served(&self, stage: &Stage<'_>, to: Address) -> Result<(), WireError> {
        self.look(stage)?.admit(to, None)
    }

    fn look(&self, stage: &Stage<'_>) -> Result<Standing, WireError> {
        let mut known = self.0.lock();
        match known.row {
            Some((term, age, standing)) if (term, age) == (stage.term(), stage.schema_age()) => Ok(standing),
            _ => {
                let standing = Standing::read(stage)?;
                if known.changing == 0 {
                    known.row = Some((stage.term(), stage.schema_age(), standing));
                }
                Ok(standing)
            }
        }
    }
}
