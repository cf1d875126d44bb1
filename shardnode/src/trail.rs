//! What a read waits for that needn't be as fresh as only a leader knows.
//!
//! In come a read with its floor and what any replica has: rows. Out comes a snapshot that has all entries up to the floor,
//! and in which whatever was prepared up to there has ended, as far as it concerns the read:
//!
//! 1. A snapshot is opened once the entries are applied.
//! 2. Its rows of prepared transactions say what was applied when they were prepared. The entry of one is later than that, so
//!    one that was prepared at the floor or after it isn't below the floor. What is known of the others is kept from
//!    one read to the next.
//! 3. Those that may have changed what the statement reads must end. What is prepared later isn't waited for.
//! 4. A transaction's end takes its row away. So a snapshot of the next entry is opened, and looked at, until they are gone.
//!
//! All this takes as long as the read may wait; past that, somebody else is to be asked. It must never know who leads.

use crate::fence::{self, Address};
use crate::locks::{Part, Resource};
use crate::phrase::Phrase;
use crate::prepared::{self, Locked};
use crate::sought::{self, COMPARED, Sought};
use crate::touched::encode;
use crate::transact::Desk;
use parking_lot::Mutex;
use proto::machine;
use proto::services::{Consistency, FragmentRequest};
use proto::{LogIndex, Retry, SqlState, TableId, TransactionId, Value, WireError};
use replica::Snapshot;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// What was read of a shard's prepared transactions.
#[derive(Debug, Default)]
pub(crate) struct Trail(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The position at which the rows are these.
    at: LogIndex,
    rows: Arc<[(TransactionId, LogIndex)]>,
    /// What some of them have locked.
    briefs: BTreeMap<(TransactionId, LogIndex), Arc<Brief>>,
}

/// What a prepared transaction may change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Brief(BTreeMap<TableId, Rows>);

/// Rows of a table.
#[derive(Debug, PartialEq, Eq)]
enum Rows {
    /// Those that these locks are about.
    Some(Vec<Part>),
    /// There are too many of them to tell.
    Any,
}

/// What a read that isn't strong has waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    /// What is in effect now.
    position: LogIndex,
    waited: Duration,
}

impl Brief {
    fn new(Locked { locks, hashed }: Locked) -> Self {
        let mut tables = BTreeMap::new();
        for Resource { table, part } in locks {
            let rows = tables.entry(table).or_insert_with(|| Rows::Some(Vec::new()));
            if let Rows::Some(parts) = rows
                && !matches!(part, Part::Table | Part::Unique(..))
            {
                parts.push(part);
                if parts.len() > COMPARED {
                    *rows = Rows::Any;
                }
            }
        }
        tables.extend(hashed.into_iter().map(|table| (table, Rows::Any)));
        Self(tables)
    }

    /// Whether it may change something in these tables.
    fn is_about_any(&self, tables: &[TableId]) -> bool {
        tables.iter().any(|table| self.0.contains_key(table))
    }

    /// Whether it may change the row of a table that has this key.
    fn is_about(&self, table: TableId, key: &[u8]) -> bool {
        match self.0.get(&table) {
            None => false,
            Some(Rows::Some(parts)) => parts.iter().any(|part| sought::may_be_about(part, key)),
            Some(Rows::Any) => true,
        }
    }
}

impl Trail {
    /// All that is prepared in a snapshot, and what was applied when it was.
    fn rows(&self, snapshot: &Snapshot) -> Result<Arc<[(TransactionId, LogIndex)]>, WireError> {
        let at = snapshot.position();
        {
            let seen = self.0.lock();
            if seen.at == at {
                return Ok(Arc::clone(&seen.rows));
            }
        }
        let rows: Arc<[_]> = prepared::since(snapshot.connection()).map_err(|e| snapshot.explain(e))?.into();
        let mut seen = self.0.lock();
        if seen.at < at {
            (seen.at, seen.rows) = (at, Arc::clone(&rows));
            seen.briefs.retain(|row, _| rows.contains(row));
        }
        Ok(rows)
    }

    /// What a transaction may change that is prepared in a snapshot.
    fn brief(
        &self,
        snapshot: &Snapshot,
        id: TransactionId,
        since: LogIndex,
    ) -> Result<Arc<Brief>, WireError> {
        // What comes back from where it has gone along to isn't what it was.
        let known = self.0.lock().briefs.get(&(id, since)).cloned();
        if let Some(brief) = known {
            return Ok(brief);
        }
        let locked = prepared::locked(snapshot.connection(), id).map_err(|e| snapshot.explain(e))?;
        let missing = || WireError::internal(format!("{id} is prepared, and its row is missing"));
        let brief = Arc::new(Brief::new(locked.ok_or_else(missing)?));
        let mut seen = self.0.lock();
        // What has ended since is never asked for again.
        if seen.rows.contains(&(id, since)) {
            seen.briefs.insert((id, since), Arc::clone(&brief));
        }
        Ok(brief)
    }

    /// What was prepared below an index, and may change what a statement reads.
    fn concerned(
        &self,
        snapshot: &Snapshot,
        request: &FragmentRequest,
        phrase: &Phrase,
        settled: LogIndex,
    ) -> Result<Vec<TransactionId>, WireError> {
        let rows = self.rows(snapshot)?;
        let mut concerned = Vec::new();
        for (id, since) in rows.iter().filter(|(_, since)| *since < settled) {
            let brief = self.brief(snapshot, *id, *since)?;
            if brief.is_about_any(&phrase.tables) {
                concerned.push((*id, brief));
            }
        }
        // Mostly nothing is there, and how the statement reads is no matter.
        if let Some(table) = phrase.only.filter(|_| !concerned.is_empty())
            && let Some(row) = Sought::read(snapshot.connection(), table, &request.sql)
            && let Some(key) = row.values(&request.params)
        {
            let key = encode(key.iter().map(Value::as_ref));
            concerned.retain(|(_, brief)| brief.is_about(row.table, &key));
        }
        Ok(concerned.into_iter().map(|(id, _)| id).collect())
    }
}

impl Desk {
    /// A snapshot for a read that isn't strong, and how long it took until there was one; it may take until then. `fresh`: what
    /// is below its floor was waited for, up to there.
    pub async fn near(
        &self,
        request: &FragmentRequest,
        consistency: Consistency,
        fresh: Option<Fresh>,
        until: Instant,
    ) -> Result<(Snapshot, Duration), WireError> {
        let begun = machine::now();
        // What was waited for isn't waited for again; but of what a bounded read must show there may be more by now.
        let (after, before) = match fresh {
            Some(Fresh { position, waited }) => (position, waited),
            None => (request.floor.index(), Duration::ZERO),
        };
        let mut opening = pin!(self.approach(request, consistency, after, until));
        // What is there at once has waited for nothing, however long it took to look.
        match poll_fn(|context| Poll::Ready(opening.as_mut().poll(context))).await {
            Poll::Ready(snapshot) => snapshot.map(|snapshot| (snapshot, before)),
            Poll::Pending => {
                let snapshot = opening.await?;
                let waited = machine::now().saturating_duration_since(begun);
                Ok((snapshot, before + waited.max(Duration::from_nanos(1))))
            }
        }
    }

    /// Waits for what is below a read's floor, for one that opens its snapshot later.
    pub async fn come_near(
        &self,
        request: &FragmentRequest,
        consistency: Consistency,
        until: Instant,
    ) -> Result<Fresh, WireError> {
        let (snapshot, waited) = self.near(request, consistency, None, until).await?;
        Ok(Fresh { position: snapshot.position(), waited })
    }

    async fn approach(
        &self,
        request: &FragmentRequest,
        consistency: Consistency,
        after: LogIndex,
        until: Instant,
    ) -> Result<Snapshot, WireError> {
        let open = |after| self.replica.snapshot_after(consistency, after, until);
        let mut snapshot = open(after).await.map_err(|e| self.behind(e))?;
        let settled = match consistency {
            // What is acknowledged may be prepared only.
            Consistency::Bounded(_) => LogIndex(u64::MAX),
            Consistency::Session | Consistency::Eventual | Consistency::Strong => request.floor.settled,
        };
        if settled == LogIndex(0) {
            return Ok(snapshot);
        }
        let phrase = self.transactions.phrases.of(&request.sql);
        let trail = &self.transactions.trail;
        let mut awaited = trail.concerned(&snapshot, request, &phrase, settled)?;
        while !awaited.is_empty() {
            // What a shard has prepared that isn't served any more ends elsewhere.
            fence::check(&snapshot, Address::of(request), request.schema_version, false)?;
            let next = LogIndex(snapshot.position().0 + 1);
            // It is held for no longer than it takes to look.
            drop(snapshot);
            snapshot = open(next).await.map_err(|e| self.behind(e))?;
            let rows = trail.rows(&snapshot)?;
            awaited.retain(|id| rows.iter().any(|(prepared, _)| prepared == id));
        }
        Ok(snapshot)
    }

    /// Who has waited for a snapshot for as long as it may isn't told that something is wrong here.
    fn behind(&self, error: WireError) -> WireError {
        match (error.sqlstate, &error.retry) {
            (SqlState::QUERY_CANCELED, Retry::Later) => error.with_retry(Retry::Behind(self.applied())),
            _ => error,
        }
    }
}
