//! The handle of one replica: what callers do with it, and how they wait.

use crate::connection::Cancel;
use crate::driver::{Inbox, Mail, PendingOrder, PendingRehearsal, PendingWrite, Place};
use crate::driver::{Shared, Wish, WriteState};
use crate::entry::{self, Body, Check, Hold, Note, Request, Schema};
use crate::error::ReplicaError;
use crate::overlay::{Rehearsal, Rehearsed, Unheard};
use crate::readers::{Unopened, too_late};
use crate::snapshot::{Snapshot, State};
use crate::staging::Replay;
use crate::write::{MemberTarget, SchemaEntry, Write, Written};
use arc_swap::ArcSwap;
use proto::services::{Consistency, Members, ReplicaStatus};
use proto::{GroupId, LogIndex, NodeId, Retry, SqlState, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::timeout_at;

/// A time in which a replica leads its group without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Office(u64);

/// How often a follower asks for one read how fresh it is. Once is enough unless asking takes longer than what is asked
/// for, and then the leader is the better one to read from.
const FRESHENINGS: usize = 2;

/// A cheap handle of one replica. It stays good when the replica stops and is opened again, or made anew.
#[derive(Clone)]
pub struct Replica {
    life: Arc<ArcSwap<Shared>>,
}

/// Gives a write up if its caller goes away before it was begun, and interrupts it if it is being run.
struct GiveUp(WriteState, Cancel);

impl Drop for GiveUp {
    fn drop(&mut self) {
        if !self.0.give_up() {
            self.1.cancel();
        }
    }
}

/// Why nobody will say what became of something that was begun.
enum Lost {
    Stopped,
    TooLate,
}

impl Lost {
    /// It was to be committed, and may have been.
    fn unknown(self) -> WireError {
        let message = match self {
            Lost::Stopped => "the replica stopped before the outcome was known",
            Lost::TooLate => "the deadline passed before the outcome was known",
        };
        WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
            .with_retry(Retry::Unknown)
            .with_hint("It may have been committed, or may still be.")
    }
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { life: Arc::new(ArcSwap::new(shared)) }
    }

    /// What it shares with its loops, in its present life.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.life.load_full()
    }

    /// Goes on with another life, which has succeeded ([`Shared::succeed`]) the present one.
    pub(crate) fn begin(&self, life: Arc<Shared>) {
        self.life.store(life);
    }

    /// Whether both are handles of one replica. One that was made in the place of another isn't that other.
    pub fn is(&self, other: &Replica) -> bool {
        Arc::ptr_eq(&self.life, &other.life)
    }

    /// The group it belongs to.
    pub fn group(&self) -> GroupId {
        self.life.load().group
    }

    /// What it is doing.
    pub fn status(&self) -> ReplicaStatus {
        let shared = self.life.load();
        let mut status = shared.status.borrow().clone();
        (status.committed, status.behind) = shared.progress();
        (status.writes, status.reads) = shared.counts();
        status
    }

    /// Whether it leads its group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.life.load().is_leading()
    }

    /// Follows its status: role, leader, and applied index. What is committed, and for how long it has been behind of that,
    /// only [`Self::status`] tells.
    pub fn watch(&self) -> watch::Receiver<ReplicaStatus> {
        self.life.load().status.subscribe()
    }

    /// Runs a write and answers once the group has committed it.
    ///
    /// [`Retry::NotLeader`] and [`Retry::Later`] promise that it wasn't executed and won't be. [`Retry::Unknown`] says
    /// that it may have been, or may still be: repeat it under the same request id. A write whose deadline passes, or
    /// whose future is dropped, while its closure runs is interrupted; once it's proposed, nothing takes it back.
    pub async fn write(&self, write: Write) -> Result<Written, WireError> {
        let Write { request, settled, deadline, run } = write;
        let request = request.map(|id| Request::new(id, settled));
        self.submit(deadline, Lost::unknown, |inbox, state, cancel, reply, place| {
            inbox.writes.push_back(PendingWrite { request, run, cancel, state, reply, _place: place });
        })
        .await
    }

    /// Runs a step of a transaction that isn't committed yet: on the leader, above what the transaction has changed
    /// before and what is committed, and undoes it. What the step changed is one more chunk of the overlay (no chunk if
    /// it changed nothing); whenever this fails, or its future is dropped, the overlay is what it was.
    ///
    /// The answer comes once it's known that this replica still leads in the term in which the step ran. No error
    /// leaves anything: 54000 if the overlay would be bigger than [`crate::Config::max_transaction_bytes`], 40001 if a
    /// table that it changes was altered, XX001 if it doesn't fit what was committed meanwhile. A step whose deadline
    /// passes is interrupted.
    pub async fn rehearse(&self, rehearsal: Rehearsal) -> Result<Rehearsed, WireError> {
        let Rehearsal { overlay, bare, deadline, run } = rehearsal;
        let unheard = Unheard::new(overlay.clone());
        let lost = |lost: Lost| match lost {
            Lost::Stopped => self.shared().not_leader(),
            Lost::TooLate => too_late("its end"),
        };
        let submitted = self.submit(deadline, lost, |inbox, state, cancel, reply, place| {
            let pending = PendingRehearsal { overlay, bare, run, cancel, state, reply, _place: place };
            inbox.rehearsals.push_back(pending);
        });
        // The last to be dropped is `unheard`: who is cut off in here cancels the step before the overlay is cut back.
        let rehearsed = submitted.await?;
        unheard.heard();
        Ok(rehearsed)
    }

    /// Has every replica run a schema entry, and answers once this one has. Errors as for [`Self::write`]; repeating
    /// an entry of the same id is always safe.
    pub async fn schema(&self, entry: SchemaEntry) -> Result<LogIndex, WireError> {
        let schema = Schema {
            job: entry.id.0,
            step: entry.id.1,
            statements: entry.statements,
            require_empty: entry.require_empty,
            notes: entry.notes.into_iter().map(|(key, value)| Note { key, value }).collect(),
        };
        self.order(Body::Schema(schema), None, entry.deadline).await
    }

    /// Has every replica make the changes of a transaction that are staged in its database, and answers once this one has:
    /// with its position, or with why it can't be done; then nothing of it was done anywhere. Other errors as for
    /// [`Self::write`].
    pub async fn replay(&self, replay: Replay) -> Result<LogIndex, WireError> {
        let Replay { request, settled, output, staging, pieces, strike, term, deadline } = replay;
        let body = entry::Replay {
            request: request.map(|id| Request::new(id, settled)),
            output,
            table: staging.table.to_owned(),
            router: staging.owner.router.0,
            sequence: staging.owner.sequence,
            pieces: pieces.0,
            strike: strike.into_iter().map(str::to_owned).collect(),
        };
        self.order(Body::Replay(body), term.map(|term| term.0), deadline).await
    }

    /// Has every replica hash its tables as of one index, and answers with that index once this one has come to it. The
    /// hashes appear in the replicas' statuses as they are ready. Errors as for [`Self::write`].
    pub async fn check(&self, deadline: Instant) -> Result<LogIndex, WireError> {
        self.order(Body::Check(Check {}), None, deadline).await
    }

    /// Has every replica execute an entry, and answers once this one has.
    async fn order(&self, body: Body, term: Option<u64>, deadline: Instant) -> Result<LogIndex, WireError> {
        self.submit(deadline, Lost::unknown, |inbox, state, _, reply, place| {
            inbox.orders.push_back(PendingOrder { body, term, state, reply, _place: Some(place) });
        })
        .await
    }

    /// Has every replica keep the log from this index on for a holder of this name, whoever leads, until it is called
    /// with another index or with none. 55000 if some replica may have forgotten that index already; one that lies ahead is
    /// that of the entry after the one that says all this, which nobody has forgotten. Errors as for
    /// [`Self::write`]; repeating it is always safe. A replica that gets an image has no log from before it. Answers with
    /// the index from which on every replica knows. For a name that begins with `reshard/` or `stream/`, replays from there
    /// on keep what they change ([`crate::replayed`]).
    pub async fn hold_log(
        &self,
        name: &str,
        from: Option<LogIndex>,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        let hold = Hold { name: name.to_owned(), from: from.map(|index| index.0) };
        self.order(Body::Hold(hold), None, deadline).await
    }

    /// Has the group consist of these voters, and answers with its members once it does. Only for its leader; with
    /// [`Retry::NotLeader`] the call is to be repeated there, and goes on where it stands. Members that come catch up as
    /// learners first. With `rebuild`, the member on that node is removed and a fresh one takes its place: what the node
    /// has of the group is thrown away. 55006 while another change is under way.
    pub async fn change_members(
        &self,
        target: MemberTarget,
        deadline: Instant,
    ) -> Result<Members, WireError> {
        let MemberTarget { voters, rebuild } = target;
        let (answer, answered) = oneshot::channel();
        let group = self.shared().group;
        self.shared().mailbox.send(Mail::ChangeMembers { group, wish: Wish { voters, rebuild }, answer });
        self.answered(answered, deadline, "the group's members to change").await
    }

    /// Has another voter lead, and answers once it does. Writes that wait meanwhile are sent on to it.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Instant) -> Result<(), WireError> {
        self.transfer(Some(to), deadline).await
    }

    /// Has whoever is best placed lead.
    pub(crate) async fn hand_over(&self, deadline: Instant) -> Result<(), WireError> {
        self.transfer(None, deadline).await
    }

    async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<(), WireError> {
        let (answer, answered) = oneshot::channel();
        self.shared().mailbox.send(Mail::TransferLeader { group: self.shared().group, to, answer });
        self.answered(answered, deadline, "another leader").await
    }

    async fn answered<T>(
        &self,
        answer: oneshot::Receiver<Result<T, WireError>>,
        deadline: Instant,
        waited_for: &str,
    ) -> Result<T, WireError> {
        match timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.shared().not_leader()),
            Err(_) => Err(too_late(waited_for)),
        }
    }

    async fn submit<T>(
        &self,
        deadline: Instant,
        lost: impl FnOnce(Lost) -> WireError,
        enqueue: impl FnOnce(&mut Inbox, WriteState, Cancel, oneshot::Sender<Result<T, WireError>>, Place),
    ) -> Result<T, WireError> {
        let shared = self.shared();
        if !shared.is_leading() {
            return Err(shared.not_leader());
        }
        let place = match shared.writes.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => timeout_at(deadline.into(), shared.writes.clone().acquire_owned())
                .await
                .map_err(|_| too_late("earlier writes"))?
                .map_err(|_| shared.not_leader())?,
        };
        let place = Arc::new(place);
        let state = WriteState::default();
        let cancel = Cancel::default();
        let give_up = GiveUp(state.clone(), cancel.clone());
        let (reply, answer) = oneshot::channel();
        let is_heeded = {
            let mut inbox = shared.inbox();
            if inbox.closing.is_some() {
                drop(inbox);
                return Err(shared.not_leader());
            }
            enqueue(&mut inbox, state, cancel, reply, place.clone());
            inbox.is_heeded()
        };
        if is_heeded {
            shared.wake();
        }
        match timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if give_up.0.give_up() => Err(shared.not_leader()),
            Ok(Err(_)) => Err(lost(Lost::Stopped)),
            Err(_) if give_up.0.give_up() => Err(too_late("its turn")),
            Err(_) => Err(lost(Lost::TooLate)),
        }
    }

    /// [`Self::snapshot_after`] the beginning.
    pub async fn snapshot(&self, consistency: Consistency, deadline: Instant) -> Result<Snapshot, WireError> {
        self.snapshot_after(consistency, LogIndex(0), deadline).await
    }

    /// Opens a snapshot that is as fresh as asked for and shows `after` at least, waiting until the deadline at most.
    ///
    /// `Strong` is for the leader. If a majority's log ends before `after`, that's SH003, at once, with [`Retry::Behind`]: what
    /// isn't there may never come. The others answer [`Retry::Behind`] if this replica isn't fresh enough by the deadline.
    /// `Session` and `Eventual` ask for `after` alone. `Bounded` gives a snapshot that has everything which was acknowledged
    /// more than so long before it was opened; a follower that doesn't know of itself that it has asks the leader.
    pub async fn snapshot_after(
        &self,
        consistency: Consistency,
        after: LogIndex,
        deadline: Instant,
    ) -> Result<Snapshot, WireError> {
        loop {
            let snapshot = match consistency {
                Consistency::Strong => self.strong(after, deadline).await?,
                Consistency::Session | Consistency::Eventual => {
                    self.applied(after.0, deadline).await?;
                    self.open(deadline).await?
                }
                Consistency::Bounded(staleness) if self.is_leader() => {
                    self.newest(staleness, after, deadline).await?
                }
                Consistency::Bounded(staleness) => self.bounded(staleness, after, deadline).await?,
            };
            // One that was opened again meanwhile may stand earlier than it did.
            if snapshot.position() >= after {
                return Ok(snapshot);
            }
        }
    }

    /// Opens another snapshot of the state that one shows which is still open.
    pub async fn snapshot_of(&self, state: &State, deadline: Instant) -> Result<Snapshot, WireError> {
        self.open(deadline).await?.go_back(state)
    }

    /// In which office it leads, as far as it knows; nothing if it doesn't, or doesn't serve yet.
    pub fn office(&self) -> Option<Office> {
        self.life.load().office().map(Office)
    }

    /// Makes sure that nobody else can have led from the office's beginning until now.
    pub async fn assert_office(&self, office: Office, deadline: Instant) -> Result<(), WireError> {
        let shared = self.shared();
        shared.use_lease();
        if !shared.holds_lease() {
            self.confirmed(&shared, deadline).await?;
        }
        if shared.office() == Some(office.0) { Ok(()) } else { Err(shared.not_leader()) }
    }

    async fn bounded(
        &self,
        staleness: Duration,
        after: LogIndex,
        deadline: Instant,
    ) -> Result<Snapshot, WireError> {
        let shared = self.shared();
        let clock = &shared.clock;
        for attempt in 0.. {
            if let Some(fresh) = shared.fresh()
                && clock.now().saturating_sub(fresh.since) <= staleness
            {
                self.applied(fresh.index.max(after.0), deadline).await?;
                let snapshot = self.open(deadline).await?;
                // Looked at again now that it is open: whatever took long until here made it staler.
                if clock.now().saturating_sub(fresh.since) <= staleness {
                    return Ok(snapshot);
                }
            }
            if attempt == FRESHENINGS {
                break;
            }
            let (sender, known) = oneshot::channel();
            let waiter = Box::new(move |outcome: Result<(), Option<NodeId>>| {
                // A reader that went away isn't missed.
                let _ = sender.send(outcome);
            });
            shared.mailbox.send(Mail::Freshen { group: shared.group, waiter });
            // Who has no leader to ask, or one that doesn't answer, is as good as ever for who asks for less.
            match timeout_at(deadline.into(), known).await {
                Ok(Ok(Ok(()))) => {}
                Ok(_) if shared.has_stopped() => return Err(shared.not_leader()),
                Ok(_) | Err(_) => return Err(not_fresh(&shared, staleness)),
            }
        }
        Err(not_fresh(&shared, staleness))
    }

    /// What a leader has: nothing is fresher, if it is sure to lead.
    async fn newest(
        &self,
        staleness: Duration,
        after: LogIndex,
        deadline: Instant,
    ) -> Result<Snapshot, WireError> {
        // What isn't in the log may come while there is time.
        self.applied(after.0, deadline).await?;
        let shared = self.shared();
        let unsure = |error: &WireError| {
            matches!(error.retry, Retry::NotLeader(_)) || error.sqlstate == SqlState::QUERY_CANCELED
        };
        self.strong(after, deadline).await.map_err(|error| match unsure(&error) && !shared.has_stopped() {
            true => not_fresh(&shared, staleness),
            false => error,
        })
    }

    /// A snapshot that has everything which was acknowledged before it was opened: not just before it was asked for, for
    /// who reads several groups at once compares what their snapshots show as of when they are open.
    async fn strong(&self, after: LogIndex, deadline: Instant) -> Result<Snapshot, WireError> {
        let shared = self.shared();
        self.reached(&shared, after, deadline).await?;
        loop {
            let office = shared.office();
            let snapshot = self.open(deadline).await?;
            // The snapshot is the group's state only if nobody else could lead when it was taken. Who has led all the time
            // can tell now: by its lease, or by asking a majority that heard of nobody else until after that.
            if office.is_some() && shared.holds_lease() && shared.office() == office {
                return Ok(snapshot);
            }
            let index = self.confirmed(&shared, deadline).await?;
            if office.is_some() && shared.office() == office {
                return Ok(snapshot);
            }
            drop(snapshot);
            self.applied(index, deadline).await?;
        }
    }

    /// Waits until this replica leads for certain, and shows all that a `Strong` snapshot would, as of now: so that one can be
    /// opened with little left to wait for. Errors as for [`Self::snapshot_after`].
    pub async fn reach(&self, after: LogIndex, deadline: Instant) -> Result<(), WireError> {
        self.reached(&self.shared(), after, deadline).await
    }

    /// Whether all entries up to this one have been applied.
    pub fn has_applied(&self, index: LogIndex) -> bool {
        self.life.load().applied() >= index.0
    }

    async fn reached(&self, shared: &Shared, after: LogIndex, deadline: Instant) -> Result<(), WireError> {
        shared.use_lease();
        if shared.holds_lease() && shared.applied() >= after.0 {
            return Ok(());
        }
        // A follower may have shown what its leader is just about to: that is committed. Nobody has shown anything else.
        let index = self.confirmed(shared, deadline).await?;
        self.applied(index, deadline).await?;
        if shared.applied() >= after.0 { Ok(()) } else { Err(not_reached(shared, after)) }
    }

    /// An index that covers all that was acknowledged until now, from a majority that knows of no other leader.
    async fn confirmed(&self, shared: &Shared, deadline: Instant) -> Result<u64, WireError> {
        if !shared.is_leading() {
            return Err(shared.not_leader());
        }
        let (sender, confirmed) = oneshot::channel();
        let waiter = Box::new(move |outcome: Result<u64, Option<NodeId>>| {
            // A reader that went away isn't missed.
            let _ = sender.send(outcome);
        });
        shared.mailbox.send(Mail::Confirm { group: shared.group, waiter });
        timeout_at(deadline.into(), confirmed)
            .await
            .map_err(|_| too_late("the group's majority"))?
            .map_err(|_| shared.not_leader())?
            .map_err(|_| shared.not_leader())
    }

    async fn open(&self, deadline: Instant) -> Result<Snapshot, WireError> {
        let shared = self.shared();
        if shared.applied() == 0 {
            // It waits for an image, and has no file yet.
            return Err(shared.not_leader());
        }
        let permit = shared.readers.permit(deadline).await?;
        let reader = match shared.readers.open(Some(permit)) {
            Ok(reader) => reader,
            Err(Unopened::Refused(error)) => return Err(error),
            Err(Unopened::Fault(source)) => {
                shared.stop(&ReplicaError::Sqlite { path: shared.readers.path().to_owned(), source });
                return Err(shared.not_leader());
            }
        };
        Ok(Snapshot::new(reader, shared.clone()))
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<(), WireError> {
        let shared = self.shared();
        if shared.applied() >= index {
            return Ok(());
        }
        let _awaiting = shared.await_applied(index);
        let mut status = self.watch();
        let reached = status.wait_for(|status| status.applied.0 >= index || status.stopped.is_some());
        match timeout_at(deadline.into(), reached).await {
            Ok(Ok(status)) if status.stopped.is_none() => Ok(()),
            Ok(_) => Err(shared.not_leader()),
            Err(_) => {
                let message = format!("this replica hasn't reached index {index} in time");
                let at = LogIndex(shared.applied());
                Err(WireError::new(SqlState::QUERY_CANCELED, message).with_retry(Retry::Behind(at)))
            }
        }
    }
}

/// Somebody else may be sure.
fn not_fresh(shared: &Shared, staleness: Duration) -> WireError {
    let message = format!("this replica can't tell in time whether it is at most {staleness:?} stale");
    let at = LogIndex(shared.applied());
    WireError::new(SqlState::QUERY_CANCELED, message).with_retry(Retry::Behind(at))
}

/// The log ends before a position that somebody asks for.
fn not_reached(shared: &Shared, after: LogIndex) -> WireError {
    let message = format!("index {after} has not been reached: the log is at {}", shared.applied());
    WireError::new(SqlState::POSITION_NOT_REACHED, message)
        .with_retry(Retry::Behind(LogIndex(shared.applied())))
}
