//! Who still needs old log entries, by name.
//!
//! A hold is a row that every replica has, set by a log entry, so that whoever leads next keeps the log as well. It must
//! never know what its holder reads there.

use super::Engine;
use super::replayed::is_reader;
use crate::entry::Hold;
use crate::error::ReplicaError;
use proto::{SqlState, WireError};
use std::collections::BTreeMap;

impl Engine {
    /// Who has the log kept, and from which index on.
    pub fn holds(&self) -> &BTreeMap<String, u64> {
        &self.holds
    }

    /// Up to where the log may be forgotten: a crash leaves the database at or after it, nobody holds it, and no member
    /// may still fetch it.
    pub fn forgettable(&self) -> u64 {
        let held = self.holds.values().map(|from| from.saturating_sub(1)).min();
        self.durable().min(self.floor).min(held.unwrap_or(u64::MAX))
    }

    /// Sets or ends a hold. What some replica may have forgotten already can't be held any more.
    pub(super) fn apply_hold(
        &mut self,
        index: u64,
        hold: &Hold,
        floor: u64,
    ) -> Result<Result<u64, WireError>, ReplicaError> {
        let Hold { name, from } = hold;
        // Who doesn't know where the log is by now begins with what comes after this.
        match from.map(|from| from.min(index + 1)) {
            // What another holds is there, whatever the floor.
            Some(from) if from <= floor && self.holds.values().all(|held| *held > from) => {
                let message = format!("log index {from} may have been forgotten already");
                let detail = format!("Indexes up to {floor} may be gone.");
                let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
                return Ok(Err(error.with_detail(detail)));
            }
            Some(from) => {
                let set = |from: i64| -> rusqlite::Result<()> {
                    self.connection
                        .prepare_cached("INSERT OR REPLACE INTO replica_holds VALUES (?1, ?2)")?
                        .execute((name, from))?;
                    Ok(())
                };
                set(from.cast_signed()).map_err(|e| self.stop(e))?;
                self.holds.insert(name.clone(), from);
            }
            None => {
                let end = || -> rusqlite::Result<()> {
                    self.connection
                        .prepare_cached("DELETE FROM replica_holds WHERE name = ?1")?
                        .execute([name])?;
                    Ok(())
                };
                end().map_err(|e| self.stop(e))?;
                self.holds.remove(name);
            }
        }
        if is_reader(name) {
            self.forget_replayed()?;
        }
        Ok(Ok(index))
    }
}
