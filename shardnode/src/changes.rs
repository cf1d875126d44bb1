//! What a shard's log says, part by part.
//!
//! In comes a position, out come the entries after it as their reader takes them: rows as changesets, answers, schema steps
//! with what came of them, the pieces of big transactions, and what the group serves as. Nothing is read before somebody
//! asks for it, and no snapshot is open once it is given, so who reads slowly costs one read of the log, and who goes away
//! nothing. It must never know what its reader makes of it, nor keep the log for anyone.

use crate::estate;
use crate::fence::{Standing, State};
use crate::layout::{Laid, Layouts};
use bytes::Bytes;
use futures::stream::try_unfold;
use proto::layout::TableLayout;
use proto::machine;
use proto::services::{
    BoxStream, Change, ChangeKind, Changes, ChangesRequest, Consistency, Estate, Left, NamedAnswer,
    ReplayRun, SchemaRun, SchemaStep, ServiceResult, Serving,
};
use proto::{LogIndex, Retry, ShardId, SqlState, Value, WireError};
use replica::{Answered, Content, Logged, Replayed, Replica, Snapshot, TailError};
use rusqlite::Connection;
use std::collections::VecDeque;
use std::iter;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A part that has so many bytes takes nothing more.
const PART_BYTES: usize = 256 << 10;

/// What a change costs beside its bytes.
const CHANGE_COST: usize = 64;

/// Beats are no shorter and no longer.
const BEATS: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(60);

/// A replica to which nothing comes, and which is behind for so long, says no more: others may know what it doesn't.
const CUT_OFF: Duration = Duration::from_secs(2);

/// How long a snapshot may be waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The table of the shard's row, where it says what its group serves as, and by which seal.
const ROW: &str = "shoal_shard";
const STATE: usize = 3;
const SEAL: usize = 5;

/// A shard's log as this replica has it. The stream ends with its first error.
pub(crate) fn read(replica: Replica, request: ChangesRequest) -> BoxStream<ServiceResult<Changes>> {
    let ChangesRequest { shard, after, beat, layouts } = request;
    let beat = beat.clamp(*BEATS.start(), *BEATS.end());
    let (read, begun) = (VecDeque::new(), None);
    let log = Log { replica, shard, beat, untold: layouts, layouts, position: after, read, begun };
    Box::pin(try_unfold(log, |mut log| async move { Ok(Some((log.next().await?, log))) }))
}

/// How far a reader is.
struct Log {
    replica: Replica,
    shard: ShardId,
    beat: Duration,
    /// Whether it is told how rows lie, and whether it hasn't been yet.
    layouts: bool,
    untold: bool,
    /// All up to here was given.
    position: LogIndex,
    /// What comes next, as far as it was read.
    read: VecDeque<Logged>,
    /// The entry after the position, if something of it was given.
    begun: Option<Begun>,
}

/// What is left to give of an entry.
struct Begun {
    index: LogIndex,
    kinds: VecDeque<ChangeKind>,
    /// The pieces that follow.
    pieces: RangeInclusive<u64>,
}

impl Log {
    /// The next part: what is there, up to a bound, or what comes by the next beat, or that nothing has come.
    async fn next(&mut self) -> ServiceResult<Changes> {
        if self.begun.is_none() && self.read.is_empty() {
            let read = self.replica.entries_after(self.position, machine::now() + self.beat).await;
            self.read = read.map_err(|error| self.unread(error))?.into();
            let behind = self.replica.status().behind;
            if self.read.is_empty() && behind > CUT_OFF {
                return Err(self.cut_off(behind));
            }
        }
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while bytes < PART_BYTES {
            if self.begun.is_none() {
                let Some(entry) = self.read.pop_front() else { break };
                self.begun = Some(self.begin(entry).await?);
            }
            match self.take().await? {
                Some(change) => {
                    bytes += cost(&change.kind);
                    changes.push(change);
                }
                None => bytes += CHANGE_COST,
            }
        }
        let committed = self.replica.status().committed.max(self.position);
        Ok(Changes { changes, position: self.position, committed })
    }

    /// The next change of the entry that was begun; nothing if that was all of it.
    async fn take(&mut self) -> ServiceResult<Option<Change>> {
        let begun = self.begun.as_mut().expect("an entry was begun");
        let index = begun.index;
        if let Some(kind) = begun.kinds.pop_front() {
            return Ok(Some(Change { index, kind }));
        }
        if let Some(n) = begun.pieces.next() {
            let snapshot = self.snapshot(index).await?;
            let piece = look(&snapshot, |connection| match replica::replayed(connection, index)? {
                Replayed::Made { .. } => replica::replayed_piece(connection, index, n).map(Some),
                Replayed::Nothing | Replayed::Forgotten => Ok(None),
            })?;
            let piece = piece.ok_or_else(|| forgotten(self.shard, self.position, index))?;
            return Ok(Some(Change { index, kind: ChangeKind::Piece(piece) }));
        }
        self.begun = None;
        self.position = index;
        Ok(None)
    }

    async fn begin(&mut self, Logged { index, content }: Logged) -> ServiceResult<Begun> {
        let mut begun = Begun { index, kinds: VecDeque::new(), pieces: RangeInclusive::new(1, 0) };
        if std::mem::take(&mut self.untold) {
            begun.kinds.push_back(self.layouts_at(index, self.position).await?);
        }
        match content {
            Content::Nothing => {}
            Content::Batch { changesets, answers } => {
                let mut state = None;
                for changeset in changesets {
                    state = set(&changeset)?.or(state);
                    begun.kinds.push_back(ChangeKind::Rows(changeset));
                }
                begun.kinds.extend(answers.into_iter().map(|answer| ChangeKind::Answer(named(answer))));
                if let Some(state) = state {
                    begun.kinds.extend(self.serving(index, state).await?);
                }
            }
            Content::Schema { id, statements, require_empty, notes: _ } => {
                let snapshot = self.snapshot(index).await?;
                let outcome = look(&snapshot, |connection| replica::schema_outcome(connection, id))?;
                // One that is repeated has run elsewhere.
                if let Some((_, failure)) = outcome.filter(|(at, _)| *at == index) {
                    let step = SchemaStep { job: id.0, step: id.1 };
                    let has_run = failure.is_none();
                    let run = SchemaRun { step, statements, require_empty, failure };
                    begun.kinds.push_back(ChangeKind::Schema(run));
                    drop(snapshot);
                    if self.layouts && has_run {
                        begun.kinds.push_back(self.layouts_at(index, index).await?);
                    }
                }
            }
            Content::Replay { answer, owner } => {
                let snapshot = self.snapshot(index).await?;
                match look(&snapshot, |connection| replica::replayed(connection, index))? {
                    Replayed::Made { pieces } => {
                        let run = ReplayRun { owner, pieces, answer: answer.map(named) };
                        begun.kinds.push_back(ChangeKind::Replay(run));
                        begun.pieces = 1..=pieces;
                    }
                    Replayed::Nothing => {}
                    Replayed::Forgotten => return Err(forgotten(self.shard, self.position, index)),
                }
            }
        }
        Ok(begun)
    }

    /// How rows lie after an entry, by a snapshot that has another one.
    async fn layouts_at(&self, index: LogIndex, after: LogIndex) -> ServiceResult<ChangeKind> {
        let snapshot = self.snapshot(index).await?;
        let layouts = look(&snapshot, |connection| Layouts::read_at(connection, after))?;
        let table = |(table, laid): (_, &Laid)| TableLayout { table, layout: Some(laid.layout.clone()) };
        Ok(ChangeKind::Layouts(layouts.tables().map(table).collect()))
    }

    /// What the group serves as since an entry that has set this, and what it leaves.
    async fn serving(&self, index: LogIndex, set: Set) -> ServiceResult<Vec<ChangeKind>> {
        match set.state {
            State::Open => return Ok(vec![ChangeKind::Serving(Serving::Open)]),
            State::Following => return Ok(vec![ChangeKind::Serving(Serving::Following)]),
            State::Sealed => {}
        }
        let snapshot = self.snapshot(index).await?;
        look(&snapshot, |connection| {
            let standing = Standing::read(connection)?;
            // What is sealed stays as it is, and an attempt seals once.
            if standing.state != State::Sealed || set.seal != Some(standing.seal()) {
                return Ok(vec![ChangeKind::Serving(Serving::Sealed(None))]);
            }
            let Standing { reshard, attempt, .. } = standing;
            let sealed = ChangeKind::Serving(Serving::Sealed(Some(Estate { reshard, attempt })));
            let left = estate::left(connection)?.into_iter().map(ChangeKind::Left);
            Ok(iter::once(sealed).chain(left).collect())
        })
    }

    /// A snapshot that has an entry's effects. Not to be kept longer than it takes to read one thing.
    async fn snapshot(&self, index: LogIndex) -> ServiceResult<Snapshot> {
        let until = machine::now() + PATIENCE;
        self.replica.snapshot_after(Consistency::Eventual, index, until).await
    }

    fn cut_off(&self, behind: Duration) -> WireError {
        let message = format!("this replica of shard {} has been behind for {behind:.1?}", self.shard);
        WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
    }

    fn unread(&self, error: TailError) -> WireError {
        match error {
            TailError::Refused(error) => error,
            TailError::Forgotten { after, oldest } => forgotten(self.shard, after, oldest),
        }
    }
}

/// Reads one thing of a snapshot.
fn look<T>(snapshot: &Snapshot, read: impl FnOnce(&Connection) -> ServiceResult<T>) -> ServiceResult<T> {
    machine::in_place(|| read(snapshot.connection())).map_err(|error| snapshot.explain(error))
}

/// SH004: the log doesn't reach back so far here, but to this position.
fn forgotten(shard: ShardId, after: LogIndex, oldest: LogIndex) -> WireError {
    let message = format!("the log of shard {shard} has forgotten what comes after {after}");
    WireError::new(SqlState::POSITION_FORGOTTEN, message)
        .with_detail(format!("This replica has all that comes after {oldest}."))
        .made_from(shard, oldest)
}

fn named(Answered { request, settled, output }: Answered) -> NamedAnswer {
    NamedAnswer { request, settled, output }
}

fn cost(kind: &ChangeKind) -> usize {
    let bytes = match kind {
        ChangeKind::Rows(changeset) | ChangeKind::Piece(changeset) => changeset.len(),
        ChangeKind::Answer(answer) => answer.output.len(),
        ChangeKind::Schema(run) => run.statements.iter().map(String::len).sum(),
        ChangeKind::Replay(run) => run.answer.as_ref().map_or(0, |answer| answer.output.len()),
        ChangeKind::Layouts(tables) => tables.len() * CHANGE_COST,
        ChangeKind::Left(Left::Prepared(prepared)) => prepared.locks.len() + prepared.changes.len(),
        ChangeKind::Left(Left::Ended { .. }) | ChangeKind::Serving(_) => 0,
    };
    bytes + CHANGE_COST
}

/// What a change of the shard's row has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    state: State,
    /// By which seal, if that is another one than before.
    seal: Option<i64>,
}

/// What a changeset makes of the shard's row, if it changes what the group serves as.
fn set(changeset: &Bytes) -> ServiceResult<Option<Set>> {
    // Almost none does, and to read them all takes time.
    if !changeset.windows(ROW.len()).any(|bytes| bytes == ROW.as_bytes()) {
        return Ok(None);
    }
    let mut found = None;
    for change in replica::changes(changeset)?.into_iter().filter(|change| change.table == ROW) {
        let int = |at: usize| match change.new.get(at) {
            Some(Some(Value::Int(value))) => Some(*value),
            _ => None,
        };
        let Some(state) = int(STATE) else { continue };
        found = Some(Set { state: State::of(state)?, seal: int(SEAL) });
    }
    Ok(found)
}
