//! Consistent cuts: all that a statement reads, of however many shards, is one state.
//!
//! The life of such a read: the cut is **opened** on all of its shards at once; if transactions are pending in one of the
//! snapshots, all shards concerned **settle** them, and are **closed** when they have; then each fragment reads the
//! snapshot of its shard, which releases the shard. Nothing of it was told to anyone until then, so when a shard has
//! given the cut up (it was held for too long, or another leads) the read begins anew. Why the result is one state stands
//! in docs/transactions.md. Nothing here knows what is read.

use super::Executor;
use super::near::reads_twice;
use super::statement::Statement;
use crate::asking::{Asked, no_answer, no_leader};
use crate::cluster::Cluster;
use crate::positions::Positions;
use crate::retry::Backoff;
use dialect::physical::tables_in;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use planner::plan::Fragment;
use proto::machine;
use proto::services::{
    ClusterState, CutAction, CutRequest, FragmentResponse, Unsettled, cut_lost, is_cut_lost,
};
use proto::topology::Topology;
use proto::{CutId, Retry, SchemaVersion, ShardId, SqlState, TableId, TransactionId, Value, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long a shard may take to hear that a cut is over. It has a bound of its own.
const FORGET_TIMEOUT: Duration = Duration::from_millis(500);

/// A fragment, and the shards that it reads.
pub struct Scan<'a> {
    /// The fragment.
    pub fragment: &'a Fragment,
    /// The shards.
    pub shards: Vec<ShardId>,
}

/// Reads that are sent to a shard one after the other: each is a fragment, the place of its scan, and that of the shard in it.
type Lane<'a> = Vec<(usize, usize, &'a Fragment)>;

/// What a cut reads of one shard.
#[derive(Default)]
struct Part {
    tables: BTreeSet<TableId>,
    /// How often; none for as long as the cut is kept.
    scans: Option<u32>,
}

/// A cut that is open somewhere. Dropped, its shards are told that it's over.
pub struct Cut {
    cluster: Arc<Cluster>,
    /// Where its shards are.
    topology: Arc<Topology>,
    /// Its name.
    pub id: CutId,
    /// The shards that it reads.
    shards: Vec<ShardId>,
    /// Those that have something of it.
    told: BTreeSet<ShardId>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        let told = std::mem::take(&mut self.told);
        // Without a runtime everything ends, and the shards find out by themselves.
        let (false, Ok(runtime)) = (told.is_empty(), Handle::try_current()) else { return };
        let (cluster, topology, cut) = (self.cluster.clone(), self.topology.clone(), self.id);
        runtime.spawn(async move {
            let forget = told.into_iter().map(async |shard| {
                let until = machine::now() + FORGET_TIMEOUT;
                let mut asked = Asked::new(&cluster, &topology, shard, until).kept();
                if let Ok(Some(service)) = asked.service() {
                    let (epoch, action) = (asked.epoch, CutAction::Drop);
                    let request = CutRequest { shard, epoch, cut, action, timeout: FORGET_TIMEOUT };
                    // Who doesn't hear it has a bound.
                    let _ = tokio::time::timeout(FORGET_TIMEOUT, service.cut(request)).await;
                }
            });
            futures::future::join_all(forget).await;
        });
    }
}

impl Executor {
    /// Reads what the fragments of a statement want, all of one state if it is to be strong: for each, the answers in the order of its shards.
    /// All have opened when it returns.
    pub async fn read_scans(
        &self,
        run: &Statement<'_>,
        scans: &[Scan<'_>],
        scalars: &[Value],
    ) -> Result<Vec<Vec<FragmentResponse>>, WireError> {
        let reads: usize = scans.iter().map(|scan| scan.shards.len()).sum();
        if reads < 2 || run.kept.is_some() {
            let mut answers = Vec::with_capacity(scans.len());
            for Scan { fragment, shards } in scans {
                let mut answer = Vec::with_capacity(shards.len());
                for shard in shards {
                    answer.push(self.read(run, *shard, fragment, scalars, None).await?);
                }
                answers.push(answer);
            }
            return Ok(answers);
        }
        if run.is_weak() && !reads_twice(scans) {
            return Box::pin(self.read_apart(run, scans, scalars)).await;
        }
        let mut parts: BTreeMap<ShardId, Part> = BTreeMap::new();
        for Scan { fragment, shards } in scans {
            for shard in shards {
                let part = parts.entry(*shard).or_default();
                part.tables.extend(tables_in(&fragment.sql));
                *part.scans.get_or_insert_default() += 1;
            }
        }
        let mut backoff = Backoff::until(run.retry_until());
        let mark = run.transaction.map(|transaction| transaction.mark());
        loop {
            match self.read_once(run, &parts, scans, scalars).await {
                Err(error) if may_begin_anew(&error) => {
                    tracing::debug!("a cut is begun anew");
                    // Its branches may know of some of the reads, and not of others that came before them.
                    if let (Some(transaction), Some(mark)) = (run.transaction, &mark) {
                        run.attend(transaction.undo(mark, run.deadline)).await?;
                    }
                    pause(run, &mut backoff, error).await?;
                }
                answers => return answers,
            }
        }
    }

    async fn read_once(
        &self,
        run: &Statement<'_>,
        parts: &BTreeMap<ShardId, Part>,
        scans: &[Scan<'_>],
        scalars: &[Value],
    ) -> Result<Vec<Vec<FragmentResponse>>, WireError> {
        let mut cut = self.open_cut(run, parts).await?;
        let id = Some(cut.id);
        // What a transaction reads of its own changes is read as of now, so every shard is held until it has been.
        let is_own = |shard: &ShardId| run.transaction.is_some_and(|transaction| transaction.has(*shard));
        let mut answers: Vec<Vec<Option<FragmentResponse>>> =
            scans.iter().map(|scan| scan.shards.iter().map(|_| None).collect()).collect();
        for own in [true, false] {
            // The statements of a branch are numbered: each is sent when the one before it has been answered.
            let mut lanes: Vec<(ShardId, Lane<'_>)> = Vec::new();
            for (place, Scan { fragment, shards }) in scans.iter().enumerate() {
                for (at, shard) in shards.iter().enumerate().filter(|(_, shard)| is_own(shard) == own) {
                    let lane = lanes.iter_mut().find(|(of, _)| own && of == shard);
                    match lane {
                        Some((_, lane)) => lane.push((place, at, fragment)),
                        None => lanes.push((*shard, vec![(place, at, fragment)])),
                    }
                }
            }
            let mut reads = FuturesUnordered::new();
            for (shard, lane) in lanes {
                let read = async move {
                    let mut answers = Vec::with_capacity(lane.len());
                    for (place, at, fragment) in lane {
                        answers.push((place, at, self.read(run, shard, fragment, scalars, id).await?));
                    }
                    Ok::<_, WireError>(answers)
                };
                reads.push(read.boxed());
            }
            while let Some(read) = reads.next().await {
                for (place, at, answer) in read? {
                    answers[place][at] = Some(answer);
                }
            }
        }
        // The last fragment to read a shard has ended the cut there.
        cut.told.retain(|shard| is_own(shard) || !cut.shards.contains(shard));
        Ok(answers.into_iter().map(|answers| answers.into_iter().flatten().collect()).collect())
    }

    /// Opens a cut that nothing reads, for who looks at these tables as of now while it is held. Once it is open, what the
    /// shards have committed of what it didn't see yet is told to nobody.
    pub async fn hold(
        &self,
        run: &Statement<'_>,
        parts: impl Iterator<Item = (ShardId, impl Iterator<Item = TableId>)>,
    ) -> Result<Cut, WireError> {
        let part = |tables: BTreeSet<TableId>| Part { tables, scans: Some(0) };
        let parts = parts.map(|(shard, tables)| (shard, part(tables.collect()))).collect();
        let mut backoff = Backoff::until(run.retry_until());
        loop {
            match self.open_cut(run, &parts).await {
                Err(error) if may_begin_anew(&error) => pause(run, &mut backoff, error).await?,
                cut => return cut,
            }
        }
    }

    /// Opens a cut, and has it settled: what its shards show from here on, as long as they have it, is one state.
    async fn open_cut(&self, run: &Statement<'_>, parts: &BTreeMap<ShardId, Part>) -> Result<Cut, WireError> {
        let id = self.requests.begin_cut();
        let shards: Vec<ShardId> = parts.keys().copied().collect();
        let told = shards.iter().copied().collect();
        let (cluster, topology) = (self.cluster.clone(), run.state.topology.clone());
        let mut cut = Cut { cluster, topology, id, shards, told };
        let open = parts.iter().map(|(shard, part)| {
            let action = CutAction::Open {
                schema_version: run.state.catalog.version(),
                tables: part.tables.iter().copied().collect(),
                scans: part.scans,
                after: run.positions.floor(*shard).index(),
            };
            self.ask_cut(run, *shard, id, action)
        });
        let (mut known, mut behind) = (BTreeMap::new(), None);
        let mut opening: FuturesUnordered<_> = open.map(FutureExt::boxed).collect();
        while let Some(opened) = opening.next().await {
            match opened {
                Ok(pending) => _ = learn(&mut known, pending),
                // The others are told that it's over once they have it: else they would hold it in vain.
                Err(error) if is_behind(&error) => behind = Some(error),
                Err(error) => return Err(error),
            }
        }
        drop(opening);
        if let Some(error) = behind {
            return Err(error);
        }
        while !known.is_empty() && !self.settle(run, &mut cut, &mut known).await? {}
        Ok(cut)
    }

    /// Has all shards settle what is known to be unsettled. Says whether they have, and are closed; else there is more to
    /// settle.
    async fn settle(
        &self,
        run: &Statement<'_>,
        cut: &mut Cut,
        known: &mut BTreeMap<TransactionId, Vec<ShardId>>,
    ) -> Result<bool, WireError> {
        let all: Vec<TransactionId> = known.keys().copied().collect();
        // Others may hold back what they vote on, and have to know that somebody waits for it.
        let participants: BTreeSet<ShardId> = known.values().flatten().copied().collect();
        let participants: Vec<ShardId> = participants.into_iter().collect();
        let heirs = self.cluster.load().topology.heirs_of(&participants);
        let elsewhere: BTreeSet<ShardId> =
            heirs.into_iter().filter(|shard| !cut.shards.contains(shard)).collect();
        cut.told.extend(&elsewhere);
        let mut settling = FuturesUnordered::new();
        for shard in cut.shards.iter().chain(&elsewhere).copied() {
            let settle = self.ask_cut(run, shard, cut.id, CutAction::Settle(all.clone()));
            settling.push(settle.map(move |answer| (shard, answer)).boxed());
        }
        let mut left = cut.shards.len();
        while left > 0
            && let Some((shard, answer)) = settling.next().await
        {
            if elsewhere.contains(&shard) {
                // It is told for the others' sake. If it can't be, they wait for what they wait for.
                continue;
            }
            if learn(known, answer?) {
                return Ok(false);
            }
            left -= 1;
        }
        drop(settling);
        let close = cut.shards.iter().map(|shard| self.ask_cut(run, *shard, cut.id, CutAction::Close));
        let late: Vec<Unsettled> = try_join_all(close).await?.into_iter().flatten().collect();
        let is_closed = late.is_empty();
        learn(known, late);
        Ok(is_closed)
    }

    /// Asks a shard for something of a cut. All of it can be repeated but the opening, which might happen twice: then the cut
    /// is lost.
    async fn ask_cut(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        cut: CutId,
        action: CutAction,
    ) -> Result<Vec<Unsettled>, WireError> {
        let mut asked = Asked::new(&self.cluster, &run.state.topology, shard, run.retry_until());
        if !run.state.topology.serves(shard) {
            // It serves in the place of a participant of before.
            asked.epoch = self.cluster.load().topology.epoch;
        }
        let epoch = asked.epoch;
        loop {
            let Some(service) = asked.service()? else {
                run.attend(asked.again(no_leader())).await?;
                continue;
            };
            let request = CutRequest { shard, epoch, cut, action: action.clone(), timeout: run.time_left() };
            let answer = async {
                tokio::select! {
                    biased;
                    answer = service.cut(request) => answer,
                    () = asked.superseded() => Err(no_answer()),
                }
            };
            match run.attend(answer).await {
                Ok(unsettled) => return Ok(unsettled),
                Err(error) => {
                    let opens = matches!(action, CutAction::Open { .. });
                    // The other shards aren't to hold it until this one has come so far.
                    if opens && is_behind(&error) {
                        return Err(asked.named(error));
                    }
                    // Who doesn't lead has opened nothing.
                    let is_unopened = matches!(error.retry, Retry::NotLeader(_));
                    run.attend(asked.again(error)).await?;
                    if opens && !is_unopened {
                        return Err(cut_lost());
                    }
                }
            }
        }
    }
}

/// One state of the whole cluster, for as long as this lives or the shards keep it. It is read where it is: a shard in whose
/// place others serve by now has it all the same.
pub struct Kept {
    cut: Cut,
    version: SchemaVersion,
    /// How often shards had become unheard before it was opened.
    times_unheard: u64,
}

impl Kept {
    /// Its name.
    pub fn id(&self) -> CutId {
        self.cut.id
    }

    /// A newer state of the cluster, with the shards that have what is kept.
    pub fn pin(&self, state: Arc<ClusterState>) -> Arc<ClusterState> {
        if state.topology.epoch == self.cut.topology.epoch {
            return state;
        }
        let (leaders, catalog) = (state.leaders.clone(), state.catalog.clone());
        ClusterState { topology: self.cut.topology.clone(), leaders, catalog }.into()
    }

    /// Refuses what was planned for tables that may be others than the state has.
    pub fn check(&self, run: &Statement<'_>) -> Result<(), WireError> {
        if run.state.catalog.version() == self.version {
            return Ok(());
        }
        Err(gone("The schema has changed since the transaction's first statement."))
    }

    /// Whether it has all that the session still has to ask for.
    pub fn is_newest(&self, positions: &Positions) -> bool {
        positions.times_unheard() == self.times_unheard
    }

    /// What the transaction hears if a shard doesn't have the state any more.
    pub fn explain(error: WireError) -> WireError {
        match error.retry {
            _ if is_cut_lost(&error) => gone("A shard has not kept it."),
            Retry::StaleEpoch(_) => gone("A shard that has kept it was replaced, and is gone."),
            _ => error,
        }
    }
}

fn gone(why: &str) -> WireError {
    WireError::new(SqlState::SERIALIZATION_FAILURE, "the state that the transaction reads is gone")
        .with_detail(why)
        .with_hint("Run the transaction again.")
}

impl Executor {
    /// Keeps the state that all shards have now.
    pub async fn keep(&self, run: &Statement<'_>) -> Result<Kept, WireError> {
        let keyspaces = run.state.topology.keyspaces.values();
        let parts = keyspaces.flat_map(|keyspace| &keyspace.shards).map(|shard| (*shard, Part::default()));
        let parts: BTreeMap<ShardId, Part> = parts.collect();
        let mut backoff = Backoff::until(run.retry_until());
        loop {
            match self.keep_once(run, &parts).await {
                Err(error) if may_begin_anew(&error) => pause(run, &mut backoff, error).await?,
                kept => return kept,
            }
        }
    }

    async fn keep_once(
        &self,
        run: &Statement<'_>,
        parts: &BTreeMap<ShardId, Part>,
    ) -> Result<Kept, WireError> {
        let times_unheard = run.positions.times_unheard();
        let cut = self.open_cut(run, parts).await?;
        let release = cut.shards.iter().map(|shard| self.ask_cut(run, *shard, cut.id, CutAction::Release));
        try_join_all(release).await?;
        Ok(Kept { cut, version: run.state.catalog.version(), times_unheard })
    }
}

/// Takes in what is to be settled. Says whether there was anything new.
fn learn(known: &mut BTreeMap<TransactionId, Vec<ShardId>>, unsettled: Vec<Unsettled>) -> bool {
    let before = known.len();
    known.extend(unsettled.into_iter().map(|one| (one.transaction, one.participants)));
    known.len() > before
}

/// Whether a shard hasn't come to a position that a cut must show.
fn is_behind(error: &WireError) -> bool {
    matches!(error.retry, Retry::Behind(_))
}

/// Whether a cut can be begun anew that has come to this.
fn may_begin_anew(error: &WireError) -> bool {
    is_cut_lost(error) || is_behind(error)
}

/// Waits before a cut is begun anew that has come to this. If there's no time for that, it's the end.
async fn pause(run: &Statement<'_>, backoff: &mut Backoff, error: WireError) -> Result<(), WireError> {
    if run.attend(async { Ok(backoff.pause().await) }).await? {
        return Ok(());
    }
    Err(if is_behind(&error) { run.in_vain(error) } else { never_settled() })
}

fn never_settled() -> WireError {
    let message = "the shards could not be read as of one moment in time";
    WireError::new(SqlState::SERIALIZATION_FAILURE, message)
        .with_detail("A transaction over several shards had no outcome for long, or their leaders changed.")
        .with_hint("Run the statement again.")
        .with_retry(Retry::Never)
}
