//! Consistent cuts, as one shard has them.
//!
//! In come what routers ask for ([`proto::services::CutAction`]) and answers on their way out of the shard; out go what a cut
//! has to settle, its snapshot, and the answers, once nobody's cut withholds them. A cut **withholds** from before its
//! snapshot is opened until it is released: an answer from a later state of its tables than the snapshot's would tell news
//! that the cut lacks, so it waits. So does the vote of a transaction that was prepared after the snapshot was first
//! opened, unless the cut settles and was told to let that transaction through. Nothing else waits: the shard goes on
//! committing. Who changes one of a cut's tables together with another one, or by what it has read in another one, makes
//! that the cut's, too: the news could be read there.
//!
//! A cut has a bound, after which it is forgotten: its reader begins anew. All this is in the leader's memory, and worth
//! nothing under another leader. docs/transactions.md proves the rules, docs/models/cut.py tries them. It must never know
//! what is read, nor what other shards do.

use crate::config::Config;
use crate::transact::Desk;
use crate::{fence, prepared};
use parking_lot::{Mutex, MutexGuard};
use proto::machine;
use proto::services::{Consistency, CutAction, Unsettled, cut_lost};
use proto::{CutId, LogIndex, Retry, SchemaVersion, ShardId, SqlState, TableId, TransactionId, WireError};
use replica::{Office, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long those wait who wait for cuts: each of those has a bound.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often it's looked whether the replica has ended the snapshot of a cut that is kept.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What an answer is about, or what a cut reads. None: everything.
pub(crate) type Tables = [TableId];

/// The cuts of one shard.
pub(crate) struct Cuts {
    holds: Mutex<BTreeMap<CutId, Hold>>,
    /// What is being committed of several tables at once. It is locked before the holds.
    links: Mutex<Links>,
    /// How many of them withhold: mostly none, and then nobody looks further.
    withholding: AtomicUsize,
    /// That something has changed for those who wait here, or that a transaction has ended.
    news: Arc<Notify>,
    most: usize,
    most_kept: usize,
    bound: Duration,
    kept: Duration,
}

/// What the shard has of one cut.
struct Hold {
    office: Option<Office>,
    tables: Vec<TableId>,
    phase: Phase,
    /// Where the snapshot was when it was first opened, and where it is now.
    first: LogIndex,
    position: LogIndex,
    /// What was pending in the snapshot that was opened first, and hasn't been settled.
    pending: BTreeMap<TransactionId, Vec<ShardId>>,
    /// What is let through.
    permits: BTreeSet<TransactionId>,
    /// What has been let through, and hasn't been settled.
    passed: BTreeMap<TransactionId, Vec<ShardId>>,
    snapshot: Option<Snapshot>,
    /// How many fragments will yet read the snapshot; none for one that is kept.
    scans: Option<u32>,
    until: Instant,
}

/// The tables of each commit that is under way and has several.
#[derive(Default)]
struct Links {
    next: u64,
    tables: BTreeMap<u64, Vec<TableId>>,
}

/// That tables are changed together, until it is dropped: then all that a commit changes can be seen.
pub(crate) struct Linked {
    cuts: Arc<Cuts>,
    number: u64,
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.cuts.links.lock().tables.remove(&self.number);
    }
}

impl Links {
    /// Has a cut be about all tables that are linked to its own.
    fn spread(&self, hold: &mut Hold) {
        while !hold.tables.is_empty() {
            let before = hold.tables.len();
            for tables in self.tables.values() {
                if hold.is_about(tables) {
                    let more: Vec<_> =
                        tables.iter().filter(|table| !hold.tables.contains(table)).copied().collect();
                    hold.tables.extend(more);
                }
            }
            if hold.tables.len() == before {
                return;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It withholds everything, and has no snapshot yet.
    Opening,
    /// It withholds everything but what was prepared before its snapshot was first opened.
    Open,
    /// It lets through what it permits.
    Settling,
    /// It isn't read here: the shard was told what it settles.
    Word,
    /// It withholds nothing any more.
    Released,
}

impl Hold {
    fn withholds(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open | Phase::Settling)
    }

    /// Whether it is there for a whole transaction.
    fn is_kept(&self) -> bool {
        self.scans.is_none() && self.phase != Phase::Word
    }

    /// Whether the replica has ended its snapshot, for that kept the WAL from being emptied.
    fn is_ended(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.check().is_err())
    }

    fn settles(&self) -> bool {
        matches!(self.phase, Phase::Settling | Phase::Word)
    }

    fn is_about(&self, tables: &Tables) -> bool {
        self.tables.is_empty() || tables.is_empty() || tables.iter().any(|table| self.tables.contains(table))
    }

    /// Whether an answer as of this index would tell news.
    fn withholds_from(&self, index: LogIndex) -> bool {
        self.withholds() && (self.phase == Phase::Opening || self.position < index)
    }

    /// Whether a vote that was prepared at this index may go.
    fn lets_through(&self, transaction: TransactionId, index: LogIndex) -> bool {
        match self.phase {
            Phase::Opening => false,
            Phase::Open => index <= self.first,
            Phase::Settling => index <= self.first || self.permits.contains(&transaction),
            Phase::Word | Phase::Released => true,
        }
    }

    /// What must end before the cut is settled here.
    fn must(&self) -> impl Iterator<Item = (&TransactionId, &Vec<ShardId>)> {
        self.pending.iter().chain(&self.passed)
    }
}

fn unsettled((transaction, participants): (&TransactionId, &Vec<ShardId>)) -> Unsettled {
    Unsettled { transaction: *transaction, participants: participants.clone() }
}

impl Cuts {
    /// `news` is told whenever a transaction has ended on the shard.
    pub fn new(config: &Config, news: Arc<Notify>) -> Self {
        Self {
            holds: Mutex::default(),
            links: Mutex::default(),
            withholding: AtomicUsize::new(0),
            news,
            most: config.max_cuts,
            most_kept: config.max_kept_cuts,
            bound: config.cut_timeout,
            kept: config.kept_cut_timeout,
        }
    }

    /// Whether no answer has to wait.
    pub fn are_idle(&self) -> bool {
        self.withholding.load(Ordering::SeqCst) == 0
    }

    /// All of them that are still there.
    fn look(&self) -> MutexGuard<'_, BTreeMap<CutId, Hold>> {
        let mut holds = self.holds.lock();
        if !holds.is_empty() {
            let now = machine::now();
            let before = holds.len();
            holds.retain(|_, hold| now < hold.until);
            if holds.len() != before {
                self.count(&holds);
            }
        }
        holds
    }

    /// Something about them has changed.
    fn count(&self, holds: &BTreeMap<CutId, Hold>) {
        let withholding = holds.values().filter(|hold| hold.withholds()).count();
        self.withholding.store(withholding, Ordering::SeqCst);
        self.news.notify_waiters();
    }

    /// Looks until there is something to say, or the time is over. Whoever doesn't know when another bound passes looks
    /// again when one does.
    async fn until<T>(
        &self,
        end: Instant,
        mut look: impl FnMut(&mut BTreeMap<CutId, Hold>) -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let next = {
                let mut holds = self.look();
                if let Some(found) = look(&mut holds) {
                    return Some(found);
                }
                holds.values().map(|hold| hold.until).min()
            };
            if machine::now() >= end {
                return None;
            }
            let wake = next.map_or(end, |next| next.min(end));
            // Either is a reason to look again.
            let _ = tokio::time::timeout_at(wake.into(), news).await;
        }
    }

    /// Tables are about to be changed together, or one of them by what is in another. To be said before anybody can see it.
    pub fn link(self: &Arc<Self>, tables: &Tables) -> Option<Linked> {
        if tables.len() < 2 {
            return None;
        }
        let mut links = self.links.lock();
        let number = links.next;
        links.next += 1;
        links.tables.insert(number, tables.to_vec());
        if !self.are_idle() {
            self.look().values_mut().for_each(|hold| links.spread(hold));
        }
        Some(Linked { cuts: Arc::clone(self), number })
    }

    /// The state that every cut which withholds something has seen; nothing if none does.
    pub fn least_seen(&self) -> Option<LogIndex> {
        if self.are_idle() {
            return None;
        }
        self.look().values().filter(|hold| hold.withholds()).map(|hold| hold.first).min()
    }

    /// Waits until no cut withholds an answer about these tables from the state after this index. Cuts that come later
    /// have seen that state.
    pub async fn withhold(&self, tables: &Tables, index: LogIndex, own: Option<CutId>) {
        if self.are_idle() {
            return;
        }
        let tells =
            |id: &CutId, hold: &Hold| Some(*id) != own && hold.is_about(tables) && hold.withholds_from(index);
        let met: Vec<CutId> =
            self.look().iter().filter(|(id, hold)| tells(id, hold)).map(|(id, _)| *id).collect();
        if met.is_empty() {
            return;
        }
        self.until(machine::now() + FOR_EVER, |holds| {
            let waits = |id: &CutId| holds.get(id).is_some_and(|hold| hold.withholds_from(index));
            (!met.iter().any(waits)).then_some(())
        })
        .await;
    }

    /// Waits until the vote for a transaction that was prepared at this index may be told.
    pub async fn vote(
        &self,
        transaction: TransactionId,
        participants: &[ShardId],
        tables: &Tables,
        index: LogIndex,
    ) {
        if self.are_idle() {
            return;
        }
        let about = |holds: &BTreeMap<CutId, Hold>| -> Vec<CutId> {
            holds.iter().filter(|(_, hold)| hold.is_about(tables)).map(|(id, _)| *id).collect()
        };
        let met = about(&self.look());
        self.until(machine::now() + FOR_EVER, |holds| {
            let waits = |id: &CutId| holds.get(id).is_some_and(|hold| !hold.lets_through(transaction, index));
            if met.iter().any(waits) {
                return None;
            }
            for id in &met {
                if let Some(hold) = holds.get_mut(id)
                    && hold.phase == Phase::Settling
                    && hold.first < index
                {
                    hold.passed.insert(transaction, participants.to_vec());
                }
            }
            // Those that it was let through by have something more to settle.
            self.news.notify_waiters();
            Some(())
        })
        .await;
    }

    /// Does what a router asks for.
    pub async fn act(
        self: &Arc<Self>,
        desk: &Desk,
        cut: CutId,
        action: CutAction,
        deadline: Instant,
    ) -> Result<Vec<Unsettled>, WireError> {
        match action {
            CutAction::Open { schema_version, tables, scans, after } => {
                self.open(desk, cut, schema_version, (tables, scans), after, deadline).await
            }
            CutAction::Settle(transactions) => self.settle(desk, cut, &transactions, deadline).await,
            CutAction::Close => self.close(cut),
            CutAction::Release => {
                self.assert(desk, cut, deadline).await?;
                self.release(cut)?;
                Ok(Vec::new())
            }
            CutAction::Drop => {
                self.forget(cut);
                Ok(Vec::new())
            }
        }
    }

    async fn open(
        self: &Arc<Self>,
        desk: &Desk,
        cut: CutId,
        schema_version: SchemaVersion,
        (tables, scans): (Vec<TableId>, Option<u32>),
        after: LogIndex,
        deadline: Instant,
    ) -> Result<Vec<Unsettled>, WireError> {
        desk.know(deadline).await?;
        // A position that nobody has reached may never come: nothing is withheld while it is waited for.
        desk.reach(after, deadline).await?;
        let until = machine::now() + self.bound;
        {
            // What is committed from here on finds the cut, and what is being committed is found by it.
            let links = self.links.lock();
            let mut holds = self.look();
            let count = |kept: bool| holds.values().filter(|hold| hold.is_kept() == kept).count();
            // A router asks once. What comes again is a copy of what was opened, and lost or over since.
            if holds.contains_key(&cut) {
                return Err(cut_lost());
            }
            if scans.is_none() && count(true) >= self.most_kept {
                let message = "too many REPEATABLE READ transactions are open on the shard";
                return Err(WireError::new(SqlState::TOO_MANY_CONNECTIONS, message)
                    .with_detail(format!("There may be {}.", self.most_kept)));
            }
            if scans.is_some() && count(false) >= self.most {
                let message = "too many reads over several shards are under way on the shard";
                return Err(WireError::new(SqlState::TOO_MANY_CONNECTIONS, message)
                    .with_detail(format!("There may be {}.", self.most))
                    .with_retry(Retry::Later));
            }
            let mut hold = Hold::new(desk.replica.office(), tables, Phase::Opening, until);
            hold.scans = scans;
            links.spread(&mut hold);
            holds.insert(cut, hold);
            self.count(&holds);
        }
        let mut unopened = Unopened { cuts: self, cut: Some(cut) };
        let (snapshot, pending) = self.look_at(desk, cut, schema_version, after, deadline.min(until)).await?;
        let mut holds = self.look();
        let hold = holds.get_mut(&cut).filter(|hold| hold.phase == Phase::Opening).ok_or_else(cut_lost)?;
        // Nothing is worth anything that another leader doesn't know of.
        if hold.office.is_none() || desk.replica.office() != hold.office || !desk.is_known() {
            return Err(cut_lost());
        }
        (hold.first, hold.position, hold.phase) = (snapshot.position(), snapshot.position(), Phase::Open);
        (hold.snapshot, hold.pending) = (Some(snapshot), pending);
        let pending = hold.pending.iter().map(unsettled).collect();
        self.count(&holds);
        drop(holds);
        unopened.cut = None;
        self.watch(cut, until);
        Ok(pending)
    }

    /// A snapshot for a cut, and what is pending in it of the cut's tables.
    async fn look_at(
        &self,
        desk: &Desk,
        cut: CutId,
        schema_version: SchemaVersion,
        after: LogIndex,
        deadline: Instant,
    ) -> Result<(Snapshot, BTreeMap<TransactionId, Vec<ShardId>>), WireError> {
        let snapshot = desk.replica.snapshot_after(Consistency::Strong, after, deadline).await?;
        let connection = snapshot.connection();
        fence::check(&snapshot, desk.to, schema_version, true)?;
        let mut pending = prepared::participants(connection).map_err(|e| snapshot.explain(e))?;
        let holds = self.look();
        let hold = holds.get(&cut).ok_or_else(cut_lost)?;
        let state = desk.transactions.look();
        // One that has ended meanwhile is of no tables any more, and taken to be of all.
        pending.retain(|id, _| hold.is_about(&state.tables(*id)));
        drop((state, holds));
        Ok((snapshot, pending))
    }

    /// Sees to it that a cut of which nothing is heard any more gives its snapshot back, and one whose snapshot is ended.
    fn watch(self: &Arc<Self>, cut: CutId, mut until: Instant) {
        let cuts = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep_until(until.min(machine::now() + LOOK_EVERY).into()).await;
                let mut holds = cuts.look();
                match holds.get(&cut) {
                    Some(hold) if hold.is_ended() => {
                        holds.remove(&cut);
                        return cuts.count(&holds);
                    }
                    Some(hold) => until = hold.until,
                    None => return,
                }
            }
        });
    }

    async fn settle(
        self: &Arc<Self>,
        desk: &Desk,
        cut: CutId,
        known: &[TransactionId],
        deadline: Instant,
    ) -> Result<Vec<Unsettled>, WireError> {
        self.hear(cut, known)?;
        loop {
            let found = self.until(deadline, |holds| self.is_settled(desk, holds, cut, known)).await;
            match found.unwrap_or_else(|| Err(timed_out()))? {
                Settled::Learned(unsettled) => return Ok(unsettled),
                Settled::All => return Ok(Vec::new()),
                Settled::Ended(ended) => self.open_again(desk, cut, &ended, deadline).await?,
            }
        }
    }

    /// The shard is told what a cut settles: whoever settles something here settles that, too.
    fn hear(self: &Arc<Self>, cut: CutId, known: &[TransactionId]) -> Result<(), WireError> {
        let mut holds = self.look();
        let is_new = !holds.contains_key(&cut);
        if is_new && holds.values().filter(|hold| !hold.is_kept()).count() >= self.most {
            return Err(cut_lost());
        }
        let until = machine::now() + self.bound;
        let hold = holds.entry(cut).or_insert_with(|| Hold::new(None, Vec::new(), Phase::Word, until));
        match hold.phase {
            Phase::Open | Phase::Settling => hold.phase = Phase::Settling,
            Phase::Word => {}
            Phase::Opening | Phase::Released => return Err(cut_lost()),
        }
        hold.permits.extend(known);
        let all = holds.values().filter(|hold| hold.settles()).flat_map(|hold| hold.permits.iter().copied());
        let all: BTreeSet<TransactionId> = all.collect();
        for hold in holds.values_mut().filter(|hold| hold.settles()) {
            hold.permits.clone_from(&all);
        }
        self.count(&holds);
        drop(holds);
        if is_new {
            self.watch(cut, until);
        }
        Ok(())
    }

    fn is_settled(
        &self,
        desk: &Desk,
        holds: &BTreeMap<CutId, Hold>,
        cut: CutId,
        known: &[TransactionId],
    ) -> Option<Result<Settled, WireError>> {
        let Some(hold) = holds.get(&cut).filter(|hold| hold.settles()) else { return Some(Err(cut_lost())) };
        let learned: Vec<_> = hold.must().filter(|(id, _)| !known.contains(id)).map(unsettled).collect();
        if !learned.is_empty() {
            return Some(Ok(Settled::Learned(learned)));
        }
        let must: Vec<TransactionId> = hold.must().map(|(id, _)| *id).collect();
        if must.is_empty() {
            return Some(Ok(Settled::All));
        }
        let state = desk.transactions.look();
        must.iter().all(|id| !state.is_pending(*id)).then_some(Ok(Settled::Ended(must)))
    }

    async fn open_again(
        &self,
        desk: &Desk,
        cut: CutId,
        ended: &[TransactionId],
        deadline: Instant,
    ) -> Result<(), WireError> {
        let snapshot = desk.replica.snapshot(Consistency::Strong, deadline).await?;
        let mut holds = self.look();
        let hold = holds.get_mut(&cut).filter(|hold| hold.phase == Phase::Settling).ok_or_else(cut_lost)?;
        if desk.replica.office() != hold.office {
            return Err(cut_lost());
        }
        // Another request to settle may have opened a later one meanwhile. That has what has ended, too.
        if hold.position <= snapshot.position() {
            hold.position = snapshot.position();
            hold.snapshot = Some(snapshot);
        }
        hold.pending.retain(|id, _| !ended.contains(id));
        hold.passed.retain(|id, _| !ended.contains(id));
        self.count(&holds);
        Ok(())
    }

    fn close(&self, cut: CutId) -> Result<Vec<Unsettled>, WireError> {
        let mut holds = self.look();
        let hold = holds.get_mut(&cut).ok_or_else(cut_lost)?;
        if !matches!(hold.phase, Phase::Open | Phase::Settling) {
            return Err(cut_lost());
        }
        let late: Vec<_> = hold.must().map(unsettled).collect();
        if late.is_empty() {
            hold.phase = Phase::Open;
            hold.permits.clear();
            self.count(&holds);
        }
        Ok(late)
    }

    /// Makes sure that the cut has withheld until now what it should.
    pub async fn assert(&self, desk: &Desk, cut: CutId, deadline: Instant) -> Result<(), WireError> {
        let office = self.look().get(&cut).and_then(|hold| hold.office).ok_or_else(cut_lost)?;
        desk.replica.assert_office(office, deadline).await.map_err(|_| cut_lost())?;
        let holds = self.look();
        let hold = holds.get(&cut).ok_or_else(cut_lost)?;
        let is_whole = match hold.phase {
            Phase::Open => hold.pending.is_empty() && hold.passed.is_empty(),
            Phase::Released => true,
            Phase::Opening | Phase::Settling | Phase::Word => false,
        };
        if is_whole && hold.office == Some(office) { Ok(()) } else { Err(cut_lost()) }
    }

    fn release(&self, cut: CutId) -> Result<(), WireError> {
        let mut holds = self.look();
        let hold = holds.get_mut(&cut).ok_or_else(cut_lost)?;
        hold.phase = Phase::Released;
        if hold.scans.is_none() {
            hold.until = machine::now() + self.kept;
        }
        self.count(&holds);
        Ok(())
    }

    /// Those that withhold are lost: nothing of what they have yet to open may be told elsewhere meanwhile, and that isn't
    /// this shard's to see to any more. What waited for them is told. Those that are released have all that they need.
    pub fn lose_withholding(&self) {
        let mut holds = self.look();
        holds.retain(|_, hold| !hold.withholds());
        self.count(&holds);
    }

    fn forget(&self, cut: CutId) {
        let mut holds = self.look();
        holds.remove(&cut);
        self.count(&holds);
    }

    /// The cut's snapshot, while the cut goes on withholding: for what reads some of its shards as of now.
    pub async fn peek(&self, desk: &Desk, cut: CutId, deadline: Instant) -> Result<Snapshot, WireError> {
        self.assert(desk, cut, deadline).await?;
        let state = {
            let holds = self.look();
            let snapshot = holds.get(&cut).and_then(|hold| hold.snapshot.as_ref());
            snapshot.ok_or_else(cut_lost)?.state()
        };
        desk.replica.snapshot_of(&state, deadline).await.map_err(gone)
    }

    /// Makes sure of what a fragment's snapshot needs, so that there is little left to wait for.
    pub async fn get_ready(&self, desk: &Desk, cut: CutId, deadline: Instant) -> Result<(), WireError> {
        if self.is_released(cut) { Ok(()) } else { self.assert(desk, cut, deadline).await }
    }

    fn is_released(&self, cut: CutId) -> bool {
        self.look().get(&cut).is_some_and(|hold| hold.phase == Phase::Released)
    }

    /// The cut's snapshot, for a fragment: from here on the cut withholds nothing.
    pub async fn scan(&self, desk: &Desk, cut: CutId, deadline: Instant) -> Result<Snapshot, WireError> {
        if !self.is_released(cut) {
            self.assert(desk, cut, deadline).await?;
        }
        self.release(cut)?;
        let state = {
            let mut holds = self.look();
            let hold = holds.get_mut(&cut).ok_or_else(cut_lost)?;
            if hold.scans == Some(1) {
                let snapshot = hold.snapshot.take();
                holds.remove(&cut);
                return snapshot.ok_or_else(cut_lost);
            }
            hold.snapshot.as_ref().ok_or_else(cut_lost)?.state()
        };
        let another = desk.replica.snapshot_of(&state, deadline).await.map_err(gone)?;
        let mut holds = self.look();
        if let Some(hold) = holds.get_mut(&cut)
            && let Some(scans) = &mut hold.scans
        {
            *scans = scans.saturating_sub(1);
        }
        Ok(another)
    }
}

/// What settling has come to.
enum Settled {
    /// There is something to settle that the router doesn't know of.
    Learned(Vec<Unsettled>),
    /// These have ended, and the snapshot doesn't have them.
    Ended(Vec<TransactionId>),
    All,
}

impl Hold {
    fn new(office: Option<Office>, tables: Vec<TableId>, phase: Phase, until: Instant) -> Self {
        Self {
            office,
            tables,
            phase,
            first: LogIndex(0),
            position: LogIndex(0),
            pending: BTreeMap::new(),
            permits: BTreeSet::new(),
            passed: BTreeMap::new(),
            snapshot: None,
            scans: None,
            until,
        }
    }
}

/// A cut whose snapshot isn't open yet. Dropped, it is forgotten.
struct Unopened<'a> {
    cuts: &'a Cuts,
    cut: Option<CutId>,
}

impl Drop for Unopened<'_> {
    fn drop(&mut self) {
        if let Some(cut) = self.cut {
            self.cuts.forget(cut);
        }
    }
}

/// What is heard of a state that can't be shown once more.
fn gone(error: WireError) -> WireError {
    if error.sqlstate == SqlState::SNAPSHOT_TOO_OLD { cut_lost() } else { error }
}

fn timed_out() -> WireError {
    let message = "a transaction that a read over several shards has to wait for didn't end in time";
    WireError::new(SqlState::QUERY_CANCELED, message)
}
