//! Big transactions: what they change is staged in the shard's own database, and takes no memory.
//!
//! In comes an open transaction; as soon as much of what it has changed is in memory, that is written into a table, in
//! pieces, each an ordinary write of the replica's. Nobody reads them there but the transaction itself, through its overlay.
//! What makes them rows is an entry that every replica executes ([`replica::Replay`]): of a commit, or of a prepared
//! transaction's finish. Its locks are free once that is applied, not before, as with what is prepared.
//!
//! What is left of transactions that came to nothing is struck out later ([`Desk::tidy`]): of those that ended here when they
//! end, and of those of earlier terms when a term begins. What is prepared is never left over. It must never know what the
//! changes are.

use crate::branch::{Handle, Phase};
use crate::prepared;
use crate::transact::Desk;
use bytes::Bytes;
use dialect::sqlite::error;
use proto::machine;
use proto::{LogIndex, RequestId, Retry, RouterIncarnation, SqlState, Term, TransactionId, WireError};
use replica::{Overlay, Piece, Pieces, Replay, Stage, Staging, Write};
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The table.
const TABLE: &str = "shoal_staged";

/// Pieces have at most so many bytes, unless one statement has changed more.
const PIECE_BYTES: usize = 1 << 20;

/// How long striking out may take before it is tried anew.
const TIDYING: Duration = Duration::from_secs(60);

/// What every replica of a shard runs before its first log entry.
pub(crate) fn init() -> String {
    format!(
        "CREATE TABLE {TABLE} (router INTEGER NOT NULL, sequence INTEGER NOT NULL, n INTEGER NOT NULL,
                               changes BLOB NOT NULL, PRIMARY KEY (router, sequence, n)) STRICT"
    )
}

/// An overlay for a transaction.
pub(crate) fn overlay(id: TransactionId) -> Overlay {
    Overlay::staged_in(Staging { table: TABLE, owner: id })
}

/// Transactions that have changes staged and aren't prepared. Where a term has just begun, none of them will ever be.
pub(crate) fn left_over(connection: &Connection) -> Result<Vec<TransactionId>, WireError> {
    let sql = format!(
        "SELECT router, sequence FROM {TABLE} UNION SELECT router, sequence FROM {}
         EXCEPT SELECT router, sequence FROM {}",
        prepared::LOCKS,
        prepared::TABLE
    );
    transactions(connection, &sql)
}

/// Transactions of which something is written beside what fits into one row: changes, or locks.
pub(crate) fn owners(connection: &Connection) -> Result<Vec<TransactionId>, WireError> {
    let sql = format!(
        "SELECT router, sequence FROM {TABLE} UNION SELECT router, sequence FROM {}
         UNION SELECT router, sequence FROM {} WHERE staged IS NOT NULL",
        prepared::LOCKS,
        prepared::TABLE
    );
    transactions(connection, &sql)
}

fn transactions(connection: &Connection, sql: &str) -> Result<Vec<TransactionId>, WireError> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let id = |row: &rusqlite::Row<'_>| -> rusqlite::Result<TransactionId> {
        let (router, sequence): (i64, i64) = (row.get(0)?, row.get(1)?);
        let router = RouterIncarnation(router.cast_unsigned());
        Ok(TransactionId { router, sequence: sequence.cast_unsigned() })
    };
    statement.query_map([], id).map_err(error)?.collect::<Result<_, _>>().map_err(error)
}

/// Whether all pieces are there. For closures on the writer.
pub(crate) fn check(connection: &Connection, id: TransactionId, pieces: &Pieces) -> Result<(), WireError> {
    let sql = format!("SELECT count(*) FROM {TABLE} WHERE router = ?1 AND sequence = ?2");
    let mut statement = connection.prepare_cached(&sql).map_err(error)?;
    let key = (id.router.0.cast_signed(), id.sequence.cast_signed());
    let count: i64 = statement.query_row(key, |row| row.get(0)).map_err(error)?;
    if count.cast_unsigned() < pieces.count() {
        let message = format!("changes of transaction {id} are lost");
        return Err(WireError::new(SqlState::DATA_CORRUPTED, message));
    }
    Ok(())
}

/// Whether some of what a transaction has changed is staged, or was and may have left something.
pub(crate) fn is_staged(handle: &Handle) -> bool {
    handle.has_staged.load(Ordering::Relaxed)
}

impl Desk {
    /// Puts what a transaction has in memory aside, if that is much. If it can't be done now, it is later. Whoever calls has
    /// the branch's turn.
    pub(crate) async fn spill(&self, handle: &Arc<Handle>, deadline: Instant) {
        while let Some(piece) = handle.overlay.piece(self.transactions.stage_bytes(), PIECE_BYTES) {
            if let Err(error) = self.put_aside(handle, piece, deadline).await {
                tracing::debug!(transaction = %handle.id, %error, "changes were not staged");
                return;
            }
        }
    }

    /// Puts all of it aside. An error leaves it as good as it was.
    pub(crate) async fn spill_all(&self, handle: &Arc<Handle>, deadline: Instant) -> Result<(), WireError> {
        while let Some(piece) = handle.overlay.piece(0, PIECE_BYTES) {
            let put = self.put_aside(handle, piece, deadline).await;
            put.map_err(|error| match error.retry {
                Retry::Unknown => error.with_retry(Retry::Later),
                _ => error,
            })?;
        }
        Ok(())
    }

    async fn put_aside(
        &self,
        handle: &Arc<Handle>,
        piece: Piece,
        deadline: Instant,
    ) -> Result<(), WireError> {
        handle.has_staged.store(true, Ordering::Relaxed);
        let (transactions, own, part) = (Arc::clone(&self.transactions), Arc::clone(handle), piece.clone());
        let to = self.to;
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check_served(stage, to)?;
            // One that has ended leaves nothing.
            transactions.enter(stage)?.bind(&own)?;
            part.write(stage)?;
            Ok(Bytes::new())
        };
        self.replica.write(Write { request: None, settled: 0, deadline, run: Box::new(run) }).await?;
        handle.overlay.put_aside(&piece);
        Ok(())
    }

    /// Writes the locks down that a transaction has as hashes, if they are too many for its row. Says whether they were.
    pub(crate) async fn put_locks_aside(
        &self,
        handle: &Arc<Handle>,
        deadline: Instant,
    ) -> Result<bool, WireError> {
        let id = handle.id;
        let count = self.transactions.look().locks.hashes(id).map(|(.., hashes)| hashes.len()).sum::<usize>();
        // As many as are a piece's bytes, or less.
        let at_once = (self.transactions.stage_bytes() / 16).max(1);
        if count <= at_once {
            return Ok(false);
        }
        handle.has_staged.store(true, Ordering::Relaxed);
        for n in 0.. {
            let (transactions, own, to) = (Arc::clone(&self.transactions), Arc::clone(handle), self.to);
            let run = move |stage: &Stage<'_>| {
                transactions.fence.check_served(stage, to)?;
                let mut state = transactions.enter(stage)?;
                state.bind(&own)?;
                let mut all = state.locks.hashes(id).flat_map(|(table, mode, hashes)| {
                    hashes.chunks(at_once).map(move |some| (table, mode, some))
                });
                match all.nth(n) {
                    Some(some) => prepared::insert_locks(stage, id, n as u64, some).map(|()| Bytes::new()),
                    None => Ok(Bytes::from_static(b"that was all")),
                }
            };
            let write = Write { request: None, settled: 0, deadline, run: Box::new(run) };
            let written = self.replica.write(write).await.map_err(|error| match error.retry {
                Retry::Unknown => error.with_retry(Retry::Later),
                _ => error,
            })?;
            if !written.output.is_empty() {
                break;
            }
        }
        Ok(true)
    }

    /// Commits a transaction whose changes are all staged. Seen through by the caller.
    pub(crate) async fn commit_staged(
        &self,
        handle: &Arc<Handle>,
        request: (RequestId, u64),
        output: Bytes,
        deadline: Instant,
    ) -> Result<LogIndex, WireError> {
        let (transactions, own, to) = (Arc::clone(&self.transactions), Arc::clone(handle), self.to);
        let run = move |stage: &Stage<'_>| {
            transactions.fence.check_served(stage, to)?;
            let mut state = transactions.enter(stage)?;
            state.bind_to_end(&own)?;
            state.advance(&own, Phase::Sealed)?;
            Ok(Bytes::copy_from_slice(&stage.term().0.to_le_bytes()))
        };
        let sealed = self.replica.write(Write { request: None, settled: 0, deadline, run: Box::new(run) });
        // It has changed nothing, so whatever became of it, the transaction isn't committed.
        let sealed = sealed.await.map_err(|error| match error.retry {
            Retry::Unknown => error.with_retry(Retry::Later),
            _ => error,
        });
        let sealed = sealed.inspect_err(|_| drop(self.transactions.look().advance(handle, Phase::Open)))?;
        let done =
            self.replay(handle.id, Some((request, output)), handle.overlay.pieces(), term(&sealed.output)?);
        let done = done.await;
        let mut state = self.transactions.look();
        match &done {
            Ok(_) => {
                handle.has_staged.store(false, Ordering::Relaxed);
                state.end(handle.id, None);
            }
            Err(error) if error.retry == Retry::Never => state.end(handle.id, Some(error.clone())),
            // It may be repeated.
            Err(error) if error.retry != Retry::Unknown => drop(state.advance(handle, Phase::Open)),
            // Another term begins, or the replica has stopped.
            Err(_) => {}
        }
        drop(state);
        self.tidy();
        done
    }

    /// Has every replica make changes and strike out all that is written of their transaction: in this term, in which its
    /// locks are known to be held.
    pub(crate) async fn replay(
        &self,
        id: TransactionId,
        name: Option<((RequestId, u64), Bytes)>,
        pieces: Pieces,
        term: Term,
    ) -> Result<LogIndex, WireError> {
        let (request, output) = name.unzip();
        let replay = Replay {
            request: request.map(|(request, _)| request),
            settled: request.map_or(0, |(_, settled)| settled),
            output: output.unwrap_or_default(),
            staging: Staging { table: TABLE, owner: id },
            pieces,
            strike: vec![TABLE, prepared::TABLE, prepared::LOCKS],
            term: Some(term),
            deadline: machine::now() + crate::transact::AS_LONG_AS_IT_TAKES,
        };
        self.replica.replay(replay).await
    }

    /// Has what is left over struck out, in the background.
    pub(crate) fn tidy(&self) {
        let (left, term) = {
            let mut state = self.transactions.look();
            let Some(term) = state.term() else { return };
            let left = std::mem::take(&mut state.left_over);
            state.striking.extend(&left);
            (left, term)
        };
        if left.is_empty() {
            return;
        }
        let desk = self.clone();
        tokio::spawn(async move {
            for id in left {
                let replay = Replay {
                    request: None,
                    settled: 0,
                    output: Bytes::new(),
                    staging: Staging { table: TABLE, owner: id },
                    pieces: Pieces::default(),
                    strike: vec![TABLE, prepared::LOCKS],
                    term: Some(term),
                    deadline: machine::now() + TIDYING,
                };
                let struck = desk.replica.replay(replay).await;
                let mut state = desk.transactions.look();
                if state.term() != Some(term) {
                    continue;
                }
                state.striking.remove(&id);
                if let Err(error) = struck {
                    tracing::debug!(transaction = %id, %error, "what it has staged is left for later");
                    state.left_over.push(id);
                }
            }
        });
    }
}

/// Reads the term that a closure gave.
pub(crate) fn term(bytes: &[u8]) -> Result<Term, WireError> {
    let term = bytes.try_into().map(u64::from_le_bytes);
    term.map(Term).map_err(|_| WireError::internal("a closure gave no term"))
}
