//! Exactly-once: what each named request was told, until its router says that it has been answered.
//!
//! The same statements run on a leader and on its followers, from the same entries, so every replica remembers the same.

use super::Engine;
use crate::entry::Request;
use crate::error::ReplicaError;
use bytes::Bytes;
use proto::{Retry, SqlState, WireError};
use rusqlite::OptionalExtension;

/// A router's mark moves in steps of this size, so that most writes don't touch it.
const MARK_STEP: u64 = 64;

impl Engine {
    /// What a request of this name was told; an error if that is forgotten, so that nobody can say whether it ran.
    pub(super) fn remembered(
        &self,
        request: &Request,
    ) -> Result<Result<Option<Bytes>, WireError>, ReplicaError> {
        let key = [request.router.cast_signed(), request.sequence.cast_signed()];
        let find = || -> rusqlite::Result<Option<Vec<u8>>> {
            self.connection
                .prepare_cached("SELECT output FROM replica_requests WHERE router = ?1 AND sequence = ?2")?
                .query_row(key, |row| row.get(0))
                .optional()
        };
        if let Some(output) = find().map_err(|e| self.stop(e))? {
            return Ok(Ok(Some(output.into())));
        }
        if request.sequence < self.mark(request.router)? {
            let message = format!("request {} was settled before and is forgotten", request.id());
            let error =
                WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message).with_retry(Retry::Never);
            return Ok(Err(error));
        }
        Ok(Ok(None))
    }

    /// Remembers what a request is told, and forgets those of its router that are settled.
    pub(super) fn remember(&self, request: &Request, output: &[u8]) -> Result<(), ReplicaError> {
        let router = request.router.cast_signed();
        let insert =
            || -> rusqlite::Result<()> {
                self.connection
                    .prepare_cached("INSERT INTO replica_requests VALUES (?1, ?2, ?3)")?
                    .execute((router, request.sequence.cast_signed(), output))?;
                Ok(())
            };
        insert().map_err(|e| self.stop(e))?;
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
        }
        Ok(())
    }

    fn mark(&self, router: u64) -> Result<u64, ReplicaError> {
        let find = || -> rusqlite::Result<Option<i64>> {
            self.connection
                .prepare_cached("SELECT settled FROM replica_marks WHERE router = ?1")?
                .query_row([router.cast_signed()], |row| row.get(0))
                .optional()
        };
        Ok(find().map_err(|e| self.stop(e))?.unwrap_or(0).cast_unsigned())
    }
}
