//! Schema entries among transactions: nobody has changed or locked rows of a table while it is altered.
//!
//! In come the statements of a schema entry; out comes the tables' exclusive lock, for as long as the entry is under way.
//! What is open there is rolled back (its changes wouldn't fit the table any more), what is prepared is waited for. It must
//! never know what the statements do.

use crate::branch::{Claim, Transactions};
use crate::locks::{Mode, Party, Resource};
use crate::transact::Desk;
use crate::{statement, stream};
use bytes::Bytes;
use dialect::physical::tables_in;
use parking_lot::Mutex;
use proto::{Retry, RouterIncarnation, TableId, TransactionId, WireError};
use replica::{Overlay, Rehearsal, Stage};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// The tables' exclusive lock. Dropped, they're free.
pub(crate) struct Altering {
    transactions: Arc<Transactions>,
    party: Party,
}

impl Altering {
    /// Gets the lock of all tables that the statements name. No error is for good: the tables are as they were.
    pub async fn begin(desk: &Desk, statements: &[String], deadline: Instant) -> Result<Altering, WireError> {
        let begun = Self::wait(desk, statements, deadline).await;
        begun.map_err(|error| match error.retry {
            Retry::Never => error.with_retry(Retry::Later),
            _ => error,
        })
    }

    async fn wait(desk: &Desk, statements: &[String], deadline: Instant) -> Result<Altering, WireError> {
        let tables: HashSet<TableId> = statements.iter().flat_map(|statement| tables_in(statement)).collect();
        // No router has this number. It is older than any transaction, and waits for none that waits.
        let id = TransactionId { router: RouterIncarnation(0), sequence: desk.transactions.count() };
        let party = Party { id, begun: 0, statement: 1 };
        let altering = Altering { transactions: Arc::clone(&desk.transactions), party };
        if tables.is_empty() {
            return Ok(altering);
        }
        loop {
            let met = Arc::new(Mutex::new(None));
            let (found, transactions, tables) =
                (Arc::clone(&met), Arc::clone(&desk.transactions), tables.clone());
            let run = move |stage: &Stage<'_>| {
                let mut state = transactions.enter(stage)?;
                state.abort_in(&tables, id);
                for table in &tables {
                    let resource = Resource::table(*table);
                    let claim =
                        transactions.claim_one(&mut state, party, &resource, Mode::Exclusive, false)?;
                    if let Some(Claim::Waits(granted)) = claim {
                        *found.lock() = Some(granted);
                        break;
                    }
                }
                Ok(Bytes::new())
            };
            let rehearsal = Rehearsal { overlay: Overlay::new(), bare: false, deadline, run: Box::new(run) };
            desk.replica.rehearse(rehearsal).await?;
            let Some(granted) = met.lock().take() else { return Ok(altering) };
            let waited = statement::wait(&desk.replica, &desk.transactions, granted, deadline).await;
            waited.unwrap_or_else(|| Err(stream::timed_out()))?;
        }
    }
}

impl Drop for Altering {
    fn drop(&mut self) {
        self.transactions.look().end(self.party.id, None);
    }
}
