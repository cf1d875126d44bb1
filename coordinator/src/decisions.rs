//! What distributed transactions become: a row for each, and the first verdict stands.
//!
//! In come verdicts, of routers that have heard all votes and of the coordinator itself where no router does; out goes
//! what the transaction has become, once that is in the log. It must never know what a transaction did.
//!
//! Many decisions share an entry of the log: each is one write, and the replica batches those that wait.
//!
//! A record of a transaction that all its participants have finished is forgotten once it has been there for
//! [`Config::remember_transactions`], so that who lost an answer can still ask; sooner if there are too many, but not
//! within [`LEAST`]; and much later if it has an idempotency key that is used up by it (`claims.rs`). After that nobody may decide the
//! transaction again: a late verdict would find no record, and would stand. Routers see to it. A router asks for its
//! verdict until its patience ends, a matter of seconds; a request that got lost dies with its connection a few seconds
//! later; and what has arrived here is written within `write_timeout` or never. All of that is a minute at most. Commits and
//! aborts are kept alike: a router that is answered "aborted", because the coordinator was faster, must be so whenever its
//! own verdict comes. What isn't finished is never forgotten.
//!
//! The time that a record has been there is counted by the coordinator's own clock, a row of its tables
//! ([`Counter::Clock`]): it goes on in steps while somebody leads, and only while there is something to forget. So
//! neither a wrong time of day nor a process that was stopped for an hour makes a record older than it is.
//!
//! [`Config::remember_transactions`]: crate::Config::remember_transactions

use crate::service::Core;
use crate::store::{self, Counter, Store, decode};
use bytes::Bytes;
use dialect::sqlite::error;
use proto::machine;
use proto::services::{Consistency, Decision, ServiceResult, TransactionStatus, Verdict};
use proto::topology::Topology;
use proto::wire::Wire;
use proto::{RouterIncarnation, ShardId, TransactionId, WireError};
use replica::Stage;
use rusqlite::{Row, params};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a finished transaction is remembered at least, however many there are.
const LEAST: Duration = Duration::from_secs(300);
/// How many rows one write marks or deletes. Others wait meanwhile.
const AT_ONCE: usize = 1000;
/// How many finished transactions are listed.
const LISTED: usize = 1000;
/// How many unfinished ones.
const LISTED_UNFINISHED: usize = 10_000;

type Result<T> = std::result::Result<T, WireError>;

/// What every founding replica runs for it.
pub(crate) const TABLES: [&str; 3] = [
    "CREATE TABLE shoal_decision (router INTEGER NOT NULL, sequence INTEGER NOT NULL, finished INTEGER NOT NULL,
        until INTEGER NOT NULL, key TEXT, descriptor BLOB NOT NULL, PRIMARY KEY (router, sequence)) STRICT",
    "CREATE INDEX shoal_decision_age ON shoal_decision (finished, until)",
    "CREATE UNIQUE INDEX shoal_decision_key ON shoal_decision (key) WHERE key IS NOT NULL",
];

/// How long a finished transaction is remembered: one without an idempotency key, and one with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    plain: Duration,
    keyed: Duration,
}

/// A transaction that is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) decision: Decision,
    /// Whether all participants have finished.
    pub(crate) finished: bool,
}

impl From<Record> for TransactionStatus {
    fn from(record: Record) -> Self {
        let Record { decision, finished } = record;
        let Decision { transaction, participants, commit, key: _, positions } = decision;
        TransactionStatus { transaction, participants, committed: commit, finished, positions }
    }
}

fn key(transaction: TransactionId) -> [i64; 2] {
    [transaction.router.0 as i64, transaction.sequence as i64]
}

impl Store<'_> {
    /// What is known of a transaction.
    pub(crate) fn decision(&self, transaction: TransactionId) -> Result<Option<Record>> {
        let sql = "SELECT descriptor, finished FROM shoal_decision WHERE router = ?1 AND sequence = ?2";
        let found =
            self.first(sql, key(transaction), |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, bool>(1)?)))?;
        found.map(|(bytes, finished)| Ok(Record { decision: decode(&bytes)?, finished })).transpose()
    }

    /// Writes a decision down, as one that isn't finished.
    fn put_decision(&self, decision: &Decision, keep: Keep) -> Result<()> {
        let sql = "INSERT INTO shoal_decision VALUES (?1, ?2, 0, ?3, ?4, ?5)
            ON CONFLICT (router, sequence) DO UPDATE SET finished = 0, descriptor = excluded.descriptor";
        let [router, sequence] = key(decision.transaction);
        let spends = decision.key.as_ref().filter(|_| decision.commit);
        let keep = if spends.is_some() { keep.keyed } else { keep.plain };
        let until = self.counter(Counter::Clock)? as i64 + millis(keep);
        self.run(sql, params![router, sequence, until, spends, decision.encode()])
    }

    fn set_finished(&self, transaction: TransactionId, finished: bool) -> Result<()> {
        let sql =
            "UPDATE shoal_decision SET finished = ?3 WHERE router = ?1 AND sequence = ?2 AND finished <> ?3";
        let [router, sequence] = key(transaction);
        self.run(sql, params![router, sequence, finished])
    }

    /// The transactions that are decided and not finished, the oldest first.
    pub(crate) fn unfinished(&self, most: usize) -> Result<Vec<Decision>> {
        let sql = "SELECT descriptor FROM shoal_decision WHERE finished = 0 ORDER BY rowid LIMIT ?1";
        self.all(sql, [most as i64], decision_of)
    }

    /// Those that are finished, the latest first.
    fn finished(&self, most: usize) -> Result<Vec<Decision>> {
        let sql = "SELECT descriptor FROM shoal_decision WHERE finished = 1 ORDER BY rowid DESC LIMIT ?1";
        self.all(sql, [most as i64], decision_of)
    }
}

fn decision_of(row: &Row<'_>) -> Result<Decision> {
    decode(&row.get::<_, Vec<u8>>(0).map_err(error)?)
}

/// Decides a transaction, unless it is decided. Says whether it is committed, and if it isn't because of its idempotency
/// key, who has used that up. `has_claim`: nobody has begun with the key since.
pub(crate) fn decide(
    store: Store<'_>,
    decision: &Decision,
    has_claim: bool,
    keep: Keep,
) -> Result<(bool, Option<TransactionId>)> {
    let spent = decision.key.as_deref().map(|key| store.spent(key)).transpose()?.flatten();
    let committed = match store.decision(decision.transaction)? {
        Some(record) => record.decision.commit,
        None => {
            let commit = decision.commit && (decision.key.is_none() || spent.is_none() && has_claim);
            store.put_decision(&Decision { commit, ..decision.clone() }, keep)?;
            commit
        }
    };
    Ok((committed, spent.filter(|_| !committed).map(|spent| spent.transaction)))
}

/// A transaction's branch that has been prepared for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) transaction: TransactionId,
    /// The shard that has the branch.
    pub(crate) shard: ShardId,
    /// What the branch knows of the others.
    pub(crate) participants: Vec<ShardId>,
    /// What the transaction becomes if nobody has decided it.
    pub(crate) commit: bool,
}

/// Has transactions ended whose branches wait for it: those that nothing is decided of are decided, those that count as
/// finished are finished again. Returns those that it has aborted.
pub(crate) fn settle(store: Store<'_>, prepared: &[Prepared], keep: Keep) -> Result<Vec<TransactionId>> {
    let mut aborted = Vec::new();
    for Prepared { transaction, shard, participants, commit } in prepared {
        let named = participants.iter().chain([shard]).copied();
        match store.decision(*transaction)? {
            None => {
                let participants: BTreeSet<_> = named.collect();
                let participants = participants.into_iter().collect();
                let commit = *commit;
                let decision = Decision { commit, ..Decision::abort(*transaction, participants) };
                store.put_decision(&decision, keep)?;
                if !commit {
                    aborted.push(*transaction);
                }
            }
            Some(Record { mut decision, finished }) => {
                let unknown: BTreeSet<_> =
                    named.filter(|shard| !decision.participants.contains(shard)).collect();
                if !unknown.is_empty() {
                    // Who gave the transaction up needn't have known of all.
                    decision.participants.extend(unknown);
                    store.put_decision(&decision, keep)?;
                } else if finished {
                    // A prepare that came when all was over.
                    store.set_finished(*transaction, false)?;
                }
            }
        }
    }
    Ok(aborted)
}

/// Lets the coordinator's clock go on, and forgets some of the finished transactions whose time is over then. Says whether
/// there may be more of them.
fn forget(store: Store<'_>, passed: Duration) -> Result<bool> {
    store.pass(Counter::Clock, millis(passed) as u64)?;
    let sql = "DELETE FROM shoal_decision WHERE rowid IN
        (SELECT rowid FROM shoal_decision WHERE finished = 1 AND until < ?1 ORDER BY until LIMIT ?2)";
    let (clock, most) = (store.counter(Counter::Clock)? as i64, AT_ONCE as i64);
    let deleted = store.0.prepare_cached(sql).map_err(error)?.execute([clock, most]).map_err(error)?;
    Ok(deleted == AT_ONCE)
}

/// Forgets so many of the finished transactions before their time, the oldest, but for those that are younger than
/// [`LEAST`] or have a key. Says how many it found.
fn thin(store: Store<'_>, most: usize, keep: Keep) -> Result<usize> {
    let sql = "DELETE FROM shoal_decision WHERE rowid IN
        (SELECT rowid FROM shoal_decision WHERE finished = 1 AND key IS NULL AND until < ?1 ORDER BY until LIMIT ?2)";
    let before = store.counter(Counter::Clock)? as i64 + millis(keep.plain.saturating_sub(LEAST));
    store.0.prepare_cached(sql).map_err(error)?.execute([before, most as i64]).map_err(error)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Transactions as a write's output.
pub(crate) fn to_bytes(transactions: &[TransactionId]) -> Bytes {
    let ids = transactions.iter().flat_map(|id| [id.router.0, id.sequence]);
    ids.flat_map(u64::to_be_bytes).collect::<Vec<u8>>().into()
}

pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<TransactionId> {
    let (numbers, _) = bytes.as_chunks::<8>();
    let (ids, _) = numbers.as_chunks::<2>();
    ids.iter()
        .map(|[router, sequence]| TransactionId {
            router: RouterIncarnation(u64::from_be_bytes(*router)),
            sequence: u64::from_be_bytes(*sequence),
        })
        .collect()
}

impl Core {
    /// How long records are kept.
    fn keep(&self) -> Keep {
        // A record gets the time of the step before it, and a step may be long in coming.
        let more = 2 * step(self.config.remember_transactions);
        Keep { plain: self.config.remember_transactions + more, keyed: self.config.remember_keys + more }
    }

    /// Decides a transaction, unless it is decided. Who has no answer asks again.
    pub(crate) async fn decide(&self, decision: Decision) -> ServiceResult<Verdict> {
        // The record may be made though nobody waits for this any more.
        self.deciding.send_modify(|calls| *calls += 1);
        let (transaction, key) = (decision.transaction, decision.key.clone());
        let (claims, keep) = (Arc::clone(&self.claims), self.keep());
        let decide = move |stage: &Stage<'_>| {
            let key = decision.key.as_deref();
            let has_claim =
                key.is_some_and(|key| claims.lock().holds(stage.term(), key, decision.transaction));
            let (committed, spent) = decide(Store(stage), &decision, has_claim, keep)?;
            let mut output = to_bytes(spent.as_slice()).to_vec();
            output.push(committed.into());
            Ok(output.into())
        };
        let written = store::staged(&self.replica, self.config.write_timeout, decide).await?;
        if let Some(key) = key {
            self.claims.lock().release(&key, transaction);
            self.keys.fetch_add(1, Ordering::Relaxed);
        }
        let committed = written.output.last() == Some(&1);
        let duplicate_of = from_bytes(&written.output).first().copied();
        Ok(Verdict { committed, position: written.index, duplicate_of })
    }

    /// All participants of these have finished.
    pub(crate) async fn finished(&self, transactions: &[TransactionId]) -> ServiceResult<()> {
        for some in transactions.chunks(AT_ONCE) {
            let some = some.to_vec();
            self.write(move |store| {
                some.iter().try_for_each(|id| store.set_finished(*id, true)).map(|()| Bytes::new())
            })
            .await?;
        }
        Ok(())
    }

    /// Those of these transactions that nothing is decided of, and the topology as of then.
    pub(crate) async fn undecided(
        &self,
        transactions: BTreeSet<TransactionId>,
    ) -> ServiceResult<(BTreeSet<TransactionId>, Topology)> {
        let deadline = machine::now() + self.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        let mut undecided = BTreeSet::new();
        for transaction in transactions {
            if store.decision(transaction)?.is_none() {
                undecided.insert(transaction);
            }
        }
        Ok((undecided, store.topology()?))
    }

    /// Has these transactions ended. Returns those that it has aborted.
    pub(crate) async fn settle(&self, prepared: Vec<Prepared>) -> ServiceResult<Vec<TransactionId>> {
        self.deciding.send_modify(|calls| *calls += 1);
        let mut aborted = Vec::new();
        for some in prepared.chunks(AT_ONCE) {
            let (some, keep) = (some.to_vec(), self.keep());
            let output = self.write(move |store| Ok(to_bytes(&settle(store, &some, keep)?))).await?;
            aborted.extend(from_bytes(&output));
        }
        // Their records are there by now, for whoever looks.
        self.orphans.lock().extend(prepared.iter().map(|prepared| prepared.transaction));
        self.orphaned.notify_one();
        Ok(aborted)
    }

    /// One transaction that there is a record of; or all that aren't finished and the latest that are.
    pub(crate) async fn transactions(
        &self,
        one: Option<TransactionId>,
    ) -> ServiceResult<Vec<TransactionStatus>> {
        self.check_leader()?;
        let deadline = machine::now() + self.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        if let Some(one) = one {
            return Ok(store.decision(one)?.map(TransactionStatus::from).into_iter().collect());
        }
        let status =
            |finished: bool| move |decision: Decision| TransactionStatus::from(Record { decision, finished });
        let unfinished = store.unfinished(LISTED_UNFINISHED)?.into_iter().map(status(false));
        Ok(unfinished.chain(store.finished(LISTED)?.into_iter().map(status(true))).collect())
    }

    async fn forget(&self, passed: Duration) -> ServiceResult<()> {
        let deadline = machine::now() + self.config.write_timeout;
        // Any snapshot does: it only spares a group that has nothing to forget from being woken.
        let (is_empty, records, keys) = {
            let snapshot = self.replica.snapshot(Consistency::Eventual, deadline).await?;
            let store = Store(snapshot.connection());
            let count = |sql| store.first(sql, [], |row| row.get::<_, i64>(0));
            let records = count("SELECT count(*) FROM shoal_decision WHERE finished = 1")?;
            let keys = count("SELECT count(*) FROM shoal_decision WHERE key IS NOT NULL")?;
            (store.finished(1)?.is_empty(), records.unwrap_or(0) as u64, keys.unwrap_or(0) as u64)
        };
        self.keys.store(keys, Ordering::Relaxed);
        let mut passed = passed;
        let mut more = !is_empty;
        while more {
            let output = self.write(move |store| {
                let more = forget(store, passed)?;
                Ok(Bytes::from_static(if more { &[1] } else { &[0] }))
            });
            more = output.await?[..] == [1];
            passed = Duration::ZERO;
        }
        let mut surplus = (records - keys.min(records)).saturating_sub(self.config.max_records) as usize;
        while surplus > 0 {
            let (most, keep) = (surplus.min(AT_ONCE), self.keep());
            let thin =
                move |store: Store<'_>| Ok(Bytes::from(vec![(thin(store, most, keep)? == most).into()]));
            let is_done = self.write(thin).await?[..] == [0];
            surplus = if is_done { 0 } else { surplus - most };
        }
        Ok(())
    }
}

/// How often it's looked whether something is to be forgotten.
fn step(remember: Duration) -> Duration {
    (remember / 60).clamp(Duration::from_millis(50), Duration::from_secs(60))
}

/// Forgets what has been finished for long, until it is dropped.
pub(crate) async fn sweep(core: Arc<Core>) {
    let step = step(core.config.remember_transactions);
    let mut ticks = tokio::time::interval(step);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = machine::now();
    loop {
        ticks.tick().await;
        let passed = machine::now().saturating_duration_since(last).min(2 * step);
        last = machine::now();
        if let Err(error) = core.forget(passed).await {
            tracing::debug!(%error, "finished transactions can't be forgotten");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use proto::services::Spent;
    use proto::{LogIndex, NodeId};
    use rusqlite::Connection;

    fn tables() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        let config = Config::new(NodeId(1), vec![NodeId(1)]);
        connection.execute_batch(&store::init(&config).join(";")).unwrap();
        connection
    }

    fn id(sequence: u64) -> TransactionId {
        TransactionId { router: RouterIncarnation(u64::MAX), sequence }
    }

    fn decision(sequence: u64, commit: bool) -> Decision {
        let positions = vec![(ShardId(1), LogIndex(sequence)), (ShardId(2), LogIndex(7))];
        Decision { commit, positions, ..Decision::abort(id(sequence), vec![ShardId(1), ShardId(2)]) }
    }

    const KEEP: Keep = Keep { plain: Duration::from_secs(60), keyed: Duration::from_secs(600) };

    fn decide(store: Store<'_>, decision: &Decision) -> Result<bool> {
        super::decide(store, decision, true, KEEP).map(|(committed, _)| committed)
    }

    fn settle(store: Store<'_>, prepared: &[Prepared]) -> Result<Vec<TransactionId>> {
        super::settle(store, prepared, KEEP)
    }

    fn prepared(sequence: u64, shard: u64) -> Prepared {
        let participants = vec![ShardId(1), ShardId(2)];
        Prepared { transaction: id(sequence), shard: ShardId(shard), participants, commit: false }
    }

    fn record(commit: bool, finished: bool) -> Option<Record> {
        Some(Record { decision: decision(1, commit), finished })
    }

    #[test]
    fn the_first_verdict_stands() {
        let connection = tables();
        let store = Store(&connection);
        assert!(decide(store, &decision(1, true)).unwrap());
        assert!(decide(store, &decision(1, false)).unwrap());
        assert!(!decide(store, &decision(2, false)).unwrap());
        assert!(!decide(store, &decision(2, true)).unwrap());
        assert_eq!(store.decision(id(1)).unwrap(), record(true, false));
        assert_eq!(store.decision(id(3)).unwrap(), None);
        assert_eq!(store.unfinished(9).unwrap(), [decision(1, true), decision(2, false)]);
    }

    #[test]
    fn who_waits_for_a_verdict_gets_one() {
        let connection = tables();
        let store = Store(&connection);
        decide(store, &decision(1, true)).unwrap();
        assert_eq!(settle(store, &[prepared(1, 1), prepared(2, 1), prepared(2, 2)]).unwrap(), [id(2)]);
        assert_eq!(store.decision(id(1)).unwrap(), record(true, false));
        assert!(!decide(store, &decision(2, true)).unwrap(), "the abort is on record");
        // One that counts as finished isn't, if a branch still waits; nor is one that a shard was forgotten of.
        store.set_finished(id(1), true).unwrap();
        assert_eq!(store.decision(id(1)).unwrap(), record(true, true));
        assert_eq!(settle(store, &[prepared(1, 2)]).unwrap(), []);
        assert_eq!(store.decision(id(1)).unwrap(), record(true, false));
        store.set_finished(id(1), true).unwrap();
        assert_eq!(settle(store, &[prepared(1, 3)]).unwrap(), []);
        let found = store.decision(id(1)).unwrap().unwrap();
        assert_eq!(found.decision.participants, [1, 2, 3].map(ShardId));
        assert!(found.decision.commit && !found.finished);
        // One whose votes were all found is committed, unless somebody was faster.
        let voted = |sequence| Prepared { commit: true, ..prepared(sequence, 1) };
        assert_eq!(settle(store, &[voted(2), voted(4)]).unwrap(), []);
        assert!(!decide(store, &decision(2, true)).unwrap() && decide(store, &decision(4, false)).unwrap());
    }

    #[test]
    fn only_what_is_finished_and_old_is_forgotten() {
        let connection = tables();
        let store = Store(&connection);
        let seconds = Duration::from_secs;
        for sequence in 1..=3 {
            decide(store, &decision(sequence, sequence == 1)).unwrap();
        }
        store.set_finished(id(1), true).unwrap();
        store.set_finished(id(2), true).unwrap();
        assert!(!forget(store, seconds(60)).unwrap());
        assert!(store.decision(id(1)).unwrap().is_some(), "its time isn't over, but nearly");
        decide(store, &decision(4, true)).unwrap();
        store.set_finished(id(4), true).unwrap();
        assert!(!forget(store, seconds(1)).unwrap());
        let left: Vec<_> = (1..=4).filter(|n| store.decision(id(*n)).unwrap().is_some()).collect();
        assert_eq!(left, [3, 4]);
        for sequence in 5..=AT_ONCE as u64 + 5 {
            decide(store, &decision(sequence, true)).unwrap();
            store.set_finished(id(sequence), true).unwrap();
        }
        assert!(forget(store, seconds(100)).unwrap(), "a write isn't to take long");
        assert!(!forget(store, seconds(0)).unwrap());
        assert_eq!(store.finished(9).unwrap(), []);
        assert_eq!(store.unfinished(9).unwrap(), [decision(3, false)]);
    }

    #[test]
    fn if_there_are_too_many_the_oldest_go_sooner_but_not_within_minutes() {
        let connection = tables();
        let store = Store(&connection);
        let keep = Keep { plain: 2 * LEAST, keyed: 4 * LEAST };
        let put = |sequence, key: Option<&str>| {
            let decision = Decision { key: key.map(String::from), ..decision(sequence, true) };
            super::decide(store, &decision, true, keep).unwrap();
            store.set_finished(id(sequence), true).unwrap();
        };
        put(1, None);
        put(2, None);
        put(3, Some("k"));
        assert_eq!(thin(store, 9, keep).unwrap(), 0);
        forget(store, LEAST + Duration::from_secs(1)).unwrap();
        put(4, None);
        assert_eq!((thin(store, 1, keep).unwrap(), thin(store, 9, keep).unwrap()), (1, 1));
        let left: Vec<_> = (1..=4).filter(|n| store.decision(id(*n)).unwrap().is_some()).collect();
        assert_eq!(left, [3, 4]);
        forget(store, 3 * LEAST).unwrap();
        assert_eq!(store.spent("k").unwrap(), None, "a key's time ends, too");
    }

    #[test]
    fn a_key_is_used_up_once_and_only_by_who_has_claimed_it() {
        let connection = tables();
        let store = Store(&connection);
        let keyed = |sequence| Decision { key: Some("k".into()), ..decision(sequence, true) };
        let decide = |sequence, has_claim| super::decide(store, &keyed(sequence), has_claim, KEEP).unwrap();
        assert_eq!(decide(1, false), (false, None));
        assert_eq!(store.spent("k").unwrap(), None);
        assert_eq!(decide(1, true), (false, None), "the first verdict stands");
        assert_eq!(decide(2, true), (true, None));
        assert_eq!(decide(2, false), (true, None), "its answer got lost");
        assert_eq!(decide(3, true), (false, Some(id(2))));
        assert_eq!(decide(3, true), (false, Some(id(2))));
        assert_eq!(
            store.spent("k").unwrap(),
            Some(Spent { transaction: id(2), finished: false, positions: keyed(2).positions })
        );
        store.set_finished(id(2), true).unwrap();
        assert!(store.spent("k").unwrap().is_some_and(|spent| spent.finished));
        // Whom a shard was forgotten of keeps its key.
        assert_eq!(settle(store, &[prepared(2, 3)]).unwrap(), []);
        assert_eq!(decide(4, true), (false, Some(id(2))));
        assert_eq!(super::decide(store, &decision(5, false), false, KEEP).unwrap(), (false, None));
    }

    #[test]
    fn ids_survive_the_engine() {
        let ids = [id(1), id(u64::MAX)];
        assert_eq!(from_bytes(&to_bytes(&ids)), ids);
        assert_eq!(from_bytes(&[]), []);
    }
}
