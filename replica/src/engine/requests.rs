//! Exactly-once: what each named request was told, until its router says that it has been answered.
//!
//! The same statements run on a leader and on its followers, from the same entries, so every replica remembers the same.
//!
//! A router that is gone says nothing any more. So the leader watches by its clock who has sent nothing for long, and
//! its next batch says what all replicas forget ([`Engine::expire`]); the same goes for a router that has too much
//! unanswered. What was forgotten is refused, never run: the router's mark stays, some 20 bytes for each router that
//! ever wrote to the group. (Marks can't go: incarnations are random, so nothing else tells a late repetition from a
//! new router's request.)

use super::Engine;
use crate::entry::{Forget, Request};
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::{RequestId, Retry, SqlState, WireError};
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashMap;
use std::time::Duration;

/// A router's mark moves in steps of this size, so that most writes don't touch it.
const MARK_STEP: u64 = 64;
/// The leader looks who is silent so many times in the time after which it matters.
const LOOKS: u32 = 8;
/// It also looks after so many results were added.
const LOOK_RESULTS: u64 = 4096;
/// So many routers' marks are kept in memory.
const KNOWN_MARKS: usize = 1024;

/// What is known of the routers beside what the database says. Only when something is forgotten depends on it.
#[derive(Default)]
pub(super) struct Routers {
    /// Each one's last request, and since when that is its last.
    seen: HashMap<i64, (i64, Duration)>,
    looked: Option<Duration>,
    added: u64,
    /// Marks as the open transaction has them, of routers that wrote lately.
    marks: HashMap<u64, u64>,
}

/// One router's results.
struct Held {
    router: i64,
    last: i64,
    rows: i64,
    bytes: i64,
}

impl Engine {
    /// What a request of this name was told; an error if that is forgotten, so that nobody can say whether it ran.
    pub(super) fn remembered(
        &mut self,
        request: &Request,
    ) -> Result<Result<Option<Bytes>, WireError>, ReplicaError> {
        if let Some(output) = find(&self.connection, request.id()).map_err(|e| self.stop(e))? {
            return Ok(Ok(Some(output)));
        }
        if request.sequence < self.mark(request.router)? {
            return Ok(Err(forgotten(request.id())));
        }
        Ok(Ok(None))
    }

    /// Remembers what a request is told, and forgets those of its router that are settled.
    pub(super) fn remember(&mut self, request: &Request, output: &[u8]) -> Result<(), ReplicaError> {
        let router = request.router.cast_signed();
        let insert =
            || -> rusqlite::Result<()> {
                self.connection
                    .prepare_cached("INSERT INTO replica_requests VALUES (?1, ?2, ?3)")?
                    .execute((router, request.sequence.cast_signed(), output))?;
                Ok(())
            };
        insert().map_err(|e| self.stop(e))?;
        self.routers.added += 1;
        if request.settled >= self.mark(request.router)? + MARK_STEP {
            let raise = || -> rusqlite::Result<()> {
                let settled = request.settled.cast_signed();
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO replica_marks VALUES (?1, ?2)")?
                    .execute([router, settled])?;
                self.connection
                    .prepare_cached("DELETE FROM replica_requests WHERE router = ?1 AND sequence < ?2")?
                    .execute([router, settled])?;
                Ok(())
            };
            raise().map_err(|e| self.stop(e))?;
            self.routers.marks.insert(request.router, request.settled);
        }
        Ok(())
    }

    /// Has the open batch forget what is due, if it is time to look: the results of routers that have been silent for
    /// long, and the oldest of those that have too many. It changes nothing in a batch that needs no entry.
    pub fn expire(&mut self, now: Duration) -> Result<(), ReplicaError> {
        let due = self
            .routers
            .looked
            .is_none_or(|last| now.saturating_sub(last) >= self.limits.remember_for / LOOKS);
        let captured = self.connection.capture().is_some_and(|capture| capture.size() > 0);
        let changes = captured || self.batch.as_ref().is_some_and(|batch| !batch.requests.is_empty());
        if !changes || !(due || self.routers.added >= LOOK_RESULTS) {
            return Ok(());
        }
        self.routers.looked = Some(now);
        self.routers.added = 0;
        let held = self.held().map_err(|e| self.stop(e))?;
        let before = std::mem::take(&mut self.routers.seen);
        let mut forgets = Vec::new();
        for held in held {
            let since = match before.get(&held.router) {
                Some((last, since)) if *last == held.last => *since,
                _ => now,
            };
            let below = if now.saturating_sub(since) >= self.limits.remember_for {
                Some(held.last + 1)
            } else {
                self.routers.seen.insert(held.router, (held.last, since));
                self.surplus(&held).map_err(|e| self.stop(e))?
            };
            forgets.extend(
                below.map(|below| Forget {
                    router: held.router.cast_unsigned(),
                    below: below.cast_unsigned(),
                }),
            );
        }
        forgets.iter().try_for_each(|forget| self.forget(forget))?;
        self.batch.as_mut().expect("a batch is open").forgets = forgets;
        Ok(())
    }

    /// Forgets a router's results below a sequence, and raises its mark.
    pub(super) fn forget(&mut self, forget: &Forget) -> Result<(), ReplicaError> {
        self.routers.marks.remove(&forget.router);
        let key = [forget.router.cast_signed(), forget.below.cast_signed()];
        let run = || -> rusqlite::Result<()> {
            let raise = "INSERT INTO replica_marks VALUES (?1, ?2)
                         ON CONFLICT (router) DO UPDATE SET settled = max(settled, excluded.settled)";
            self.connection.prepare_cached(raise)?.execute(key)?;
            self.connection
                .prepare_cached("DELETE FROM replica_requests WHERE router = ?1 AND sequence < ?2")?
                .execute(key)?;
            Ok(())
        };
        run().map_err(|e| self.stop(e))
    }

    fn held(&self) -> rusqlite::Result<Vec<Held>> {
        let sql = "SELECT router, max(sequence), count(*), sum(length(output)) FROM replica_requests GROUP BY router";
        self.connection
            .prepare_cached(sql)?
            .query_map([], |row| {
                Ok(Held { router: row.get(0)?, last: row.get(1)?, rows: row.get(2)?, bytes: row.get(3)? })
            })?
            .collect()
    }

    /// Below which sequence a router's results are more than it may have.
    fn surplus(&self, held: &Held) -> rusqlite::Result<Option<i64>> {
        let (rows, bytes) =
            (self.limits.remember_rows.cast_signed(), self.limits.remember_bytes.cast_signed());
        if held.rows <= rows && held.bytes <= bytes {
            return Ok(None);
        }
        let sql = "SELECT sequence + 1 FROM (
                     SELECT sequence, row_number() OVER newest AS row, sum(length(output)) OVER newest AS bytes
                     FROM replica_requests WHERE router = ?1 WINDOW newest AS (ORDER BY sequence DESC))
                   WHERE row > ?2 OR bytes > ?3 ORDER BY sequence DESC LIMIT 1";
        self.connection
            .prepare_cached(sql)?
            .query_row([held.router, rows, bytes], |row| row.get(0))
            .optional()
    }

    fn mark(&mut self, router: u64) -> Result<u64, ReplicaError> {
        if let Some(settled) = self.routers.marks.get(&router) {
            return Ok(*settled);
        }
        let settled = settled(&self.connection, router).map_err(|e| self.stop(e))?;
        if self.routers.marks.len() >= KNOWN_MARKS {
            self.routers.marks.clear();
        }
        self.routers.marks.insert(router, settled);
        Ok(settled)
    }

    /// A transaction that may have moved marks was undone.
    pub(super) fn doubt_marks(&mut self) {
        self.routers.marks.clear();
    }
}

/// What a request was told, as a replica's database has it; an error if that is forgotten. `None`: it isn't in there.
pub(crate) fn told(
    connection: &Connection,
    request: RequestId,
) -> rusqlite::Result<Result<Option<Bytes>, WireError>> {
    if let Some(output) = find(connection, request)? {
        return Ok(Ok(Some(output)));
    }
    let is_forgotten = request.sequence < settled(connection, request.router.0)?;
    Ok(if is_forgotten { Err(forgotten(request)) } else { Ok(None) })
}

fn find(connection: &Connection, request: RequestId) -> rusqlite::Result<Option<Bytes>> {
    let output: Option<Vec<u8>> = connection
        .prepare_cached("SELECT output FROM replica_requests WHERE router = ?1 AND sequence = ?2")?
        .query_row([request.router.0.cast_signed(), request.sequence.cast_signed()], |row| row.get(0))
        .optional()?;
    Ok(output.map(Bytes::from))
}

/// A router's mark.
fn settled(connection: &Connection, router: u64) -> rusqlite::Result<u64> {
    let settled: Option<i64> = connection
        .prepare_cached("SELECT settled FROM replica_marks WHERE router = ?1")?
        .query_row([router.cast_signed()], |row| row.get(0))
        .optional()?;
    Ok(settled.unwrap_or(0).cast_unsigned())
}

fn forgotten(request: RequestId) -> WireError {
    let message = format!("request {request} was settled before and is forgotten");
    WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message).with_retry(Retry::Never)
}
