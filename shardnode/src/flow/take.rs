//! Taking over: what the sources' logs say becomes entries of the target's.
//!
//! Whatever is written moves the source's row with it, and only from where this flow knows it to be: what another leader
//! has taken over meanwhile, or this one without hearing of it, is never taken over again.

use super::brake::{Brake, Order};
use super::ease::Ease;
use super::progress::Progress;
use super::queue::{Entries, Next, Queue, Seal, WRITE_BYTES};
use super::source::{Heard, listen};
use super::{LOOK, Stop};
use crate::estate;
use crate::fence::{Standing, State};
use crate::layout::{Layouts, Share};
use crate::node::ShardNode;
use bytes::Bytes;
use dialect::sqlite::error;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use proto::machine;
use proto::services::{
    BoxStream, Consistency, FlowObstacle, Left, NamedAnswer, Peers, ReplayRun, ServiceResult,
};
use proto::topology::{Flow, Reshard};
use proto::{
    Attempt, LogIndex, ReshardId, Retry, RouterIncarnation, ShardId, SqlState, Term, TransactionId, WireError,
};
use replica::{Overlay, Piece, Pieces, Rehearsal, Replay, Replica, SchemaEntry, Stage, Staging, Write};
use rusqlite::{Connection, OptionalExtension};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Where the pieces of big transactions lie until they are replayed.
pub(super) const TABLE: &str = "shoal_arriving";

/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a schema step may, or a big transaction.
const LONG_PATIENCE: Duration = Duration::from_secs(3600);

/// A target, as long as its group is led here without a break.
pub(super) struct Target {
    node: Arc<ShardNode>,
    replica: Replica,
    target: ShardId,
    term: Term,
    layouts: Layouts,
    sources: Vec<Source>,
    progress: Arc<Mutex<Vec<Progress>>>,
    brake: Arc<Brake>,
    /// Whose turn it is to be heard.
    turn: usize,
}

/// A source, and how far it was taken over.
struct Source {
    flow: Flow,
    share: Share,
    log: BoxStream<Heard>,
    queue: Queue,
    /// What its row says.
    position: LogIndex,
    replay: Option<Arriving>,
}

/// A big transaction that is being staged.
struct Arriving {
    source: ShardId,
    index: LogIndex,
    answer: Option<NamedAnswer>,
    /// The source's pieces that are to come.
    left: u64,
    /// The pieces that are staged.
    staged: u64,
}

impl Arriving {
    /// Its entry names it: a transaction may come from several sources, a part of it from each.
    fn staging(&self) -> Staging {
        let owner = TransactionId { router: RouterIncarnation(self.source.0), sequence: self.index.0 };
        Staging { table: TABLE, owner }
    }
}

impl Target {
    /// Reads how far each flow is, as its leader.
    pub async fn begin(
        node: &Arc<ShardNode>,
        peers: &Arc<dyn Peers>,
        replica: Replica,
        target: ShardId,
        flows: &[Flow],
    ) -> ServiceResult<Target> {
        let topology = node.topology();
        let shard = |id: ShardId| {
            let unknown =
                || WireError::internal(format!("shard {id} of a flow isn't known")).with_retry(Retry::Later);
            topology.shards.get(&id).ok_or_else(unknown)
        };
        let range = shard(target)?.range.clone();
        let mut firsts = Vec::new();
        for flow in flows {
            firsts.push((flow.source, shard(flow.source)?.first));
        }
        let run = move |stage: &Stage<'_>| {
            let mut numbers = vec![stage.term().0];
            for (source, first) in firsts {
                numbers.push(position(stage, source)?.unwrap_or(first).0);
            }
            Ok(numbers.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>().into())
        };
        let numbers: Vec<u64> = write(&replica, run).await?.chunks_exact(8).map(number).collect();
        let now = machine::now();
        let (mut sources, mut progress) = (Vec::new(), Vec::new());
        for (flow, position) in flows.iter().zip(numbers[1..].iter().copied().map(LogIndex)) {
            sources.push(Source {
                flow: *flow,
                share: Share { range: range.clone(), references: flow.references },
                log: listen(Arc::clone(node), Arc::clone(peers), flow.source, position),
                queue: Queue::new(position),
                position,
                replay: None,
            });
            progress.push(Progress::new(*flow, position, now));
        }
        let (node, progress) = (Arc::clone(node), Arc::new(Mutex::new(progress)));
        let (term, layouts, brake, turn) = (Term(numbers[0]), Layouts::default(), Arc::default(), 0);
        let mut begun = Target { node, replica, target, term, layouts, sources, progress, brake, turn };
        begun.read_layouts().await?;
        Ok(begun)
    }

    pub fn progress(&self) -> Arc<Mutex<Vec<Progress>>> {
        Arc::clone(&self.progress)
    }

    pub fn brake(&self) -> Arc<Brake> {
        Arc::clone(&self.brake)
    }

    /// Notes why a flow can't go on.
    pub fn stop(&self, place: usize, obstacle: FlowObstacle) {
        self.progress.lock()[place].stop(obstacle);
    }

    /// Takes over what comes, as long as the group is led here.
    pub async fn run(&mut self) -> Result<(), Stop> {
        let (mut epochs, mut orders) = (self.node.epochs(), self.brake.orders());
        let mut ease = Ease::default();
        while self.replica.is_leader() {
            let mut goes_on = true;
            while goes_on {
                epochs.mark_unchanged();
                let (order, begun) = (*orders.borrow_and_update(), machine::now());
                goes_on = self.align(order).await? || self.adopt().await?;
                for place in 0..self.sources.len() {
                    goes_on |= self.take(place, order).await?;
                }
                self.stand(order);
                let now = machine::now();
                // Nobody rests while routers keep clients waiting for a switch.
                let lacks = if self.gate().is_none() { self.lacks(now) } else { 0 };
                let rest = ease.after(now, now - begun, lacks);
                if !rest.is_zero() {
                    tokio::time::sleep(rest).await;
                }
            }
            // Nobody may have anything to say for long, and meanwhile somebody else may lead.
            let heard = async {
                tokio::select! {
                    biased;
                    _ = orders.changed() => None,
                    heard = self.hear() => Some(heard),
                    // What is sealed may have the gate that it is for.
                    _ = epochs.changed() => None,
                }
            };
            if let Ok(Some((place, heard))) = tokio::time::timeout(LOOK, heard).await {
                self.put(place, heard);
                while self.sources[place].queue.bytes() < WRITE_BYTES
                    && let Some(Some(heard)) = self.sources[place].log.next().now_or_never()
                {
                    self.put(place, heard);
                }
            }
        }
        Ok(())
    }

    /// What is heard next, of a source of which there is room for more.
    async fn hear(&mut self) -> (usize, Heard) {
        let count = self.sources.len();
        poll_fn(|context| {
            for place in (0..count).map(|step| (self.turn + step) % count) {
                let source = &mut self.sources[place];
                if source.queue.has_room()
                    && let Poll::Ready(Some(heard)) = source.log.poll_next_unpin(context)
                {
                    self.turn = place + 1;
                    return Poll::Ready((place, heard));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn put(&mut self, place: usize, heard: Heard) {
        let source = &mut self.sources[place];
        let progress = &mut self.progress.lock()[place];
        match heard {
            Heard::Part(part) => {
                let committed = part.committed;
                let bytes = source.queue.put(part);
                progress.hear(committed, source.queue.read(), bytes, machine::now());
            }
            Heard::Again => source.queue.forget_begun(),
            Heard::Forgotten => progress.stop(FlowObstacle::Forgotten),
        }
    }

    /// The attempt for which routers wait, if any.
    fn gate(&self) -> Option<(ReshardId, Attempt)> {
        let topology = self.node.topology();
        let flows = |reshard: &&Reshard| reshard.flows.iter().any(|flow| flow.target == self.target);
        topology.reshards.iter().find(flows).and_then(|of| Some((of.id, of.gate?)))
    }

    /// How many bytes are still to come, of the source that lacks most of them.
    fn lacks(&self, now: Instant) -> u64 {
        let lacks = |progress: &Progress| progress.status(now).lag_bytes;
        self.progress.lock().iter().map(lacks).max().unwrap_or_default()
    }

    /// Says where it stands, if anybody holds a flow.
    fn stand(&self, order: Order) {
        let position = |source| {
            let source = self.sources.iter().find(|known| known.flow.source == source)?;
            Some(source.position)
        };
        self.brake.stand(order, position);
    }

    /// Takes over what is next of a source; says whether there was anything.
    async fn take(&mut self, place: usize, order: Order) -> Result<bool, Stop> {
        let Source { flow, queue, .. } = &mut self.sources[place];
        match queue.next(order.bound(flow.source)) {
            Next::Nothing | Next::Schema | Next::Seal => return Ok(false),
            Next::Entries(entries) => self.take_entries(place, entries).await?,
            Next::Replay(index, ReplayRun { owner: _, pieces, answer }) => {
                let source = self.sources[place].flow.source;
                let replay = Arriving { source, index, answer, left: pieces, staged: 0 };
                self.sources[place].replay = Some(replay);
                self.finish_replay(place).await?;
            }
            Next::Piece(changes) => {
                self.stage(place, &changes).await?;
                self.finish_replay(place).await?;
            }
        }
        Ok(true)
    }

    async fn take_entries(&mut self, place: usize, entries: Entries) -> Result<(), Stop> {
        let (reopens, to) = (entries.reopens, entries.to);
        let own = self.own(place, entries)?;
        let written = if reopens {
            let run = move |stage: &Stage<'_>| {
                own.take(stage, None)?;
                estate::close(stage)
            };
            self.node.desk(self.target, None)?.adopt(run, machine::now() + PATIENCE).await
        } else {
            write(&self.replica, move |stage| own.take(stage, None).map(|()| Bytes::new())).await.map(drop)
        };
        written.map_err(|error| obstacle(place, error))?;
        self.note(place, to);
        Ok(())
    }

    /// What of entries is the target's.
    fn own(&self, place: usize, entries: Entries) -> Result<Own, Stop> {
        let Entries { rows, answers, reopens: _, to } = entries;
        let mut own = Vec::with_capacity(rows.len());
        for changeset in &rows {
            own.push(self.filter(place, changeset)?);
        }
        own.retain(|changeset| !changeset.is_empty());
        let Source { flow, position, .. } = &self.sources[place];
        Ok(Own { source: flow.source, from: *position, to, rows: own, answers })
    }

    /// Adopts what the sources leave, if all of them are sealed and the topology says by which attempt they are to be; says
    /// whether there was something to adopt.
    async fn adopt(&mut self) -> Result<bool, Stop> {
        let mut seals = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let Some(seal) = source.queue.seal() else { return Ok(false) };
            seals.push(seal);
        }
        let (target, gate) = (self.target, self.gate());
        if seals.iter().any(|seal| Some((seal.by.reshard, seal.by.attempt)) != gate) {
            return Ok(false);
        }
        let (mut ends, mut owns, mut estate) = (Vec::new(), Vec::new(), Vec::new());
        for (place, Seal { by, left, entry }) in seals.into_iter().enumerate() {
            ends.push(entry.to);
            owns.push((by.attempt, self.own(place, entry)?));
            for mut left in left {
                if let Left::Prepared(prepared) = &mut left {
                    prepared.changes = self.filter(place, &prepared.changes)?;
                }
                estate.push(left);
            }
        }
        let run = move |stage: &Stage<'_>| {
            for (attempt, own) in owns {
                own.take(stage, Some(attempt))?;
            }
            estate::adopt(stage, target, estate)
        };
        // None of them is to blame that what they leave can't be taken up together. If it never can, the seals will be undone.
        self.node.desk(target, None)?.adopt(run, machine::now() + PATIENCE).await?;
        for (place, to) in ends.into_iter().enumerate() {
            self.sources[place].queue.end_entry();
            self.note(place, to);
        }
        tracing::info!(%target, "has adopted what was sealed");
        self.node.flows.tell();
        Ok(true)
    }

    /// Stages a piece of a big transaction, as far as it is the target's.
    async fn stage(&mut self, place: usize, changes: &Bytes) -> Result<(), Stop> {
        let own = self.filter(place, changes)?;
        let Source { flow, position: from, replay: Some(replay), .. } = &mut self.sources[place] else {
            return Err(WireError::internal("a piece of no transaction").into());
        };
        replay.left -= 1;
        if own.is_empty() {
            return Ok(());
        }
        replay.staged += 1;
        let piece = Piece::new(replay.staging(), replay.staged, vec![own]);
        let (source, from) = (flow.source, *from);
        put_aside(&self.replica, source, from, piece).await.map_err(|error| obstacle(place, error))
    }

    /// Makes a big transaction's changes, once all of them are there.
    async fn finish_replay(&mut self, place: usize) -> Result<(), Stop> {
        let Some(replay) = self.sources[place].replay.take_if(|replay| replay.left == 0) else {
            return Ok(());
        };
        let (source, from, to) =
            (self.sources[place].flow.source, self.sources[place].position, replay.index);
        self.sources[place].queue.end(to);
        if replay.staged == 0 {
            let answers = replay.answer.into_iter().collect();
            return self.take_entries(place, Entries { answers, to, ..Entries::default() }).await;
        }
        // Its last piece is that the source's row moves.
        let move_row = move |stage: &Stage<'_>| {
            go_on(stage, source, from, to)?;
            stage.changes()
        };
        let (overlay, deadline) = (Overlay::new(), machine::now() + PATIENCE);
        let rehearsal = Rehearsal { overlay, bare: false, deadline, run: Box::new(move_row) };
        let last = self.replica.rehearse(rehearsal).await?.output;
        let piece = Piece::new(replay.staging(), replay.staged + 1, vec![last]);
        put_aside(&self.replica, source, from, piece).await.map_err(|error| obstacle(place, error))?;
        let replayed = make(&self.replica, self.term, &replay, replay.answer.clone()).await;
        let was_answered = match replayed {
            // Another source has told of a request of this name.
            Err(error)
                if error.sqlstate == SqlState::TRANSACTION_RESOLUTION_UNKNOWN
                    && error.retry == Retry::Never =>
            {
                true
            }
            Err(error) => return Err(obstacle(place, error)),
            Ok(()) => look(&self.replica, |connection| position(connection, source)).await? != Some(to),
        };
        if was_answered {
            make(&self.replica, self.term, &replay, None).await.map_err(|error| obstacle(place, error))?;
        }
        self.note(place, to);
        Ok(())
    }

    /// Runs the schema step that all sources have come to; says whether there was one.
    async fn align(&mut self, order: Order) -> Result<bool, Stop> {
        let (mut ends, mut runs) = (Vec::new(), Vec::new());
        for source in &self.sources {
            let bound = order.bound(source.flow.source);
            let Some((index, run)) = source.queue.schema(bound) else { return Ok(false) };
            ends.push((source.flow.source, source.position, index));
            runs.push(run);
        }
        let Some(run) = runs.first().map(|run| (*run).clone()) else { return Ok(false) };
        let step = format!("step {} of schema change {}", run.step.step, run.step.job);
        let differs = |place: usize, what: String| Err(Stop::Obstacle(place, FlowObstacle::Differs(what)));
        for (place, other) in runs.iter().enumerate() {
            if other.step != run.step {
                let other = format!("step {} of schema change {}", other.step.step, other.step.job);
                return differs(place, format!("{other} comes where another source has {step}"));
            }
            if other.failure.is_some() != run.failure.is_some() {
                return differs(place, format!("{step} has failed on one source and not on another"));
            }
        }
        if run.failure.is_none() {
            let mut statements = run.statements;
            statements.extend(ends.iter().map(|(source, _, to)| set_position(*source, *to, None)));
            let (id, deadline) = ((run.step.job, run.step.step), machine::now() + LONG_PATIENCE);
            let (require_empty, notes) = (run.require_empty, Vec::new());
            let entry = SchemaEntry { id, statements, require_empty, notes, deadline };
            if let Err(error) = self.replica.schema(entry).await {
                let is_lasting = error.retry == Retry::Never && error.sqlstate != SqlState::QUERY_CANCELED;
                return if is_lasting { differs(0, format!("{step}: {error}")) } else { Err(error.into()) };
            }
        }
        // A step that had run before has moved nothing, nor has one that has failed.
        let moves = ends.clone();
        let run = move |stage: &Stage<'_>| {
            for (source, from, to) in moves {
                if position(stage, source)? != Some(to) {
                    go_on(stage, source, from, to)?;
                }
            }
            Ok(Bytes::new())
        };
        write(&self.replica, run).await?;
        for (place, (_, _, to)) in ends.into_iter().enumerate() {
            self.sources[place].queue.pass();
            self.note(place, to);
        }
        self.node.forget_looks(self.target);
        self.read_layouts().await?;
        Ok(true)
    }

    /// Notes that all up to here is taken over.
    fn note(&mut self, place: usize, to: LogIndex) {
        let source = &mut self.sources[place];
        source.position = to;
        self.progress.lock()[place].take(to, source.queue.bytes());
    }

    fn filter(&self, place: usize, changeset: &Bytes) -> Result<Bytes, Stop> {
        let filtered = machine::in_place(|| self.layouts.filter(changeset, &self.sources[place].share));
        filtered.map_err(|error| obstacle(place, error))
    }

    async fn read_layouts(&mut self) -> ServiceResult<()> {
        self.layouts = look(&self.replica, Layouts::read).await?;
        Ok(())
    }
}

/// What of a source's entries is the target's.
struct Own {
    source: ShardId,
    from: LogIndex,
    to: LogIndex,
    rows: Vec<Bytes>,
    answers: Vec<NamedAnswer>,
}

impl Own {
    /// Takes it over; in an attempt's adoption notes that.
    fn take(self, stage: &Stage<'_>, adopted: Option<Attempt>) -> ServiceResult<()> {
        check(stage, self.source, self.from)?;
        stage.execute_batch(&set_position(self.source, self.to, adopted)).map_err(error)?;
        for changeset in &self.rows {
            stage.apply(changeset)?;
        }
        for NamedAnswer { request, settled, output } in self.answers {
            stage.remember(request, settled, output)?;
        }
        Ok(())
    }
}

/// What an error of taking over means: what was said of the rows isn't so, or it is to be tried anew.
fn obstacle(place: usize, error: WireError) -> Stop {
    let passes = [SqlState::QUERY_CANCELED, SqlState::DISK_FULL, SqlState::IO_ERROR, SqlState::OUT_OF_MEMORY];
    match error.retry {
        Retry::Never if !passes.contains(&error.sqlstate) => {
            Stop::Obstacle(place, FlowObstacle::Differs(error.to_string()))
        }
        _ => Stop::Again(error),
    }
}

/// Runs a closure in the target's next batch.
async fn write(
    replica: &Replica,
    run: impl FnOnce(&Stage<'_>) -> ServiceResult<Bytes> + Send + 'static,
) -> ServiceResult<Bytes> {
    let deadline: Instant = machine::now() + PATIENCE;
    let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
    Ok(replica.write(write).await?.output)
}

/// Stages a piece.
async fn put_aside(replica: &Replica, source: ShardId, from: LogIndex, piece: Piece) -> ServiceResult<()> {
    let run = move |stage: &Stage<'_>| {
        check(stage, source, from)?;
        piece.write(stage)?;
        Ok(Bytes::new())
    };
    write(replica, run).await.map(drop)
}

/// Makes the changes that are staged, and answers their request.
async fn make(
    replica: &Replica,
    term: Term,
    replay: &Arriving,
    answer: Option<NamedAnswer>,
) -> ServiceResult<()> {
    let (request, settled, output) = match answer {
        Some(NamedAnswer { request, settled, output }) => (Some(request), settled, output),
        None => (None, 0, Bytes::new()),
    };
    let pieces = Pieces::up_to(replay.staged + 1);
    let (staging, strike, term) = (replay.staging(), vec![TABLE], Some(term));
    let deadline = machine::now() + LONG_PATIENCE;
    let replay = Replay { request, settled, output, staging, pieces, strike, term, deadline };
    replica.replay(replay).await.map(drop)
}

/// Reads something of the target's newest state.
async fn look<T>(replica: &Replica, read: impl FnOnce(&Connection) -> ServiceResult<T>) -> ServiceResult<T> {
    let snapshot = replica.snapshot(Consistency::Strong, machine::now() + PATIENCE).await?;
    read(snapshot.connection()).map_err(|error| snapshot.explain(error))
}

/// What a source's row says; nothing if nothing was taken over of it.
pub(crate) fn position(connection: &Connection, source: ShardId) -> ServiceResult<Option<LogIndex>> {
    let sql = "SELECT position FROM shoal_source WHERE shard = ?1";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let found: Option<i64> =
        statement.query_row([source.0.cast_signed()], |row| row.get(0)).optional().map_err(error)?;
    Ok(found.map(|position| LogIndex(position.cast_unsigned())))
}

/// The seals that a target has adopted, one of each of its sources; nothing if it hasn't adopted what this attempt has sealed, or not all.
pub(super) fn adopted(
    connection: &Connection,
    target: ShardId,
    attempt: Attempt,
    sources: &[ShardId],
) -> ServiceResult<Option<Vec<(ShardId, LogIndex)>>> {
    let Standing { shard, state, .. } = Standing::read(connection)?;
    if (shard, state) != (target, State::Open) {
        return Ok(None);
    }
    let sql = "SELECT position FROM shoal_source WHERE shard = ?1 AND attempt = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut found = Vec::with_capacity(sources.len());
    for source in sources {
        let position = statement.query_row((source.0.cast_signed(), attempt.0), |row| row.get::<_, i64>(0));
        let Some(position) = position.optional().map_err(error)? else { return Ok(None) };
        found.push((*source, LogIndex(position.cast_unsigned())));
    }
    Ok(Some(found))
}

/// That all up to here was taken over, and no more.
fn check(connection: &Connection, source: ShardId, from: LogIndex) -> ServiceResult<()> {
    match position(connection, source)? {
        Some(position) if position != from => {
            let message = format!("shard {source} was taken over up to {position}, not {from}");
            Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(Retry::Later))
        }
        _ => Ok(()),
    }
}

/// Moves a source's row.
fn go_on(connection: &Connection, source: ShardId, from: LogIndex, to: LogIndex) -> ServiceResult<()> {
    check(connection, source, from)?;
    connection.execute_batch(&set_position(source, to, None)).map_err(error)
}

/// The statement that moves a source's row; `adopted`: by taking up what it leaves that was sealed by this attempt.
fn set_position(source: ShardId, to: LogIndex, adopted: Option<Attempt>) -> String {
    let attempt = adopted.map_or(0, |attempt| attempt.0);
    format!(
        "INSERT INTO shoal_source VALUES ({}, {}, {attempt})
         ON CONFLICT (shard) DO UPDATE SET position = excluded.position, attempt = max(attempt, excluded.attempt)",
        source.0, to.0
    )
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
