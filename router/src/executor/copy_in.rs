//! COPY .. FROM STDIN: input to rows to shards, in bounded memory.
//!
//! Input comes in pieces and may end anywhere in a line. Rows that are complete go into batches; when these are big
//! enough they are sent, and the client waits meanwhile. A COPY that fits one batch for one shard is written at its
//! end; any other is a transaction, its session's or one of its own, which ends with it. The input of what was sent is gone, so such
//! a one is never run again: it waits like a block while shards are being replaced, and a batch that is refused since others
//! serve is placed again.

use super::Executor;
use super::insert::Placed;
use super::statement::{Statement, in_time};
use super::writes::{Written, is_unseen};
use crate::copy::read::{LineError, Reader, shown};
use crate::error::Report;
use crate::retry::Backoff;
use crate::transaction::{Ending, Mark, Transaction};
use dialect::io;
use planner::plan::{Action, CopyIn, Insert, Plan};
use proto::services::ClusterState;
use proto::{Retry, SchemaVersion, Value, WireError};
use std::sync::Arc;

/// A COPY that is under way.
pub struct Copying {
    /// Its plan.
    pub plan: Arc<Plan>,
    /// The cluster that it was planned by.
    pub state: Arc<ClusterState>,
    scalars: Vec<Value>,
    reader: Reader,
    placed: Placed,
    table: String,
    sent: u64,
    /// The transaction that it has for itself.
    own: Option<Transaction>,
}

impl Copying {
    fn copy(plan: &Plan) -> Result<&CopyIn, WireError> {
        match &plan.action {
            Action::CopyIn(copy) => Ok(copy),
            _ => Err(WireError::internal("not a COPY FROM")),
        }
    }

    /// How many columns the input has.
    pub fn columns(&self) -> usize {
        Self::copy(&self.plan).map_or(0, |copy| copy.columns.len())
    }

    /// Gives up what it has written as a transaction of its own.
    pub fn abandon(&mut self) -> Option<Ending> {
        self.own.take().map(Transaction::rollback)
    }

    fn context(&self, rest: &str) -> String {
        format!("COPY {}, line {}{rest}", self.table, self.reader.line_number())
    }

    /// The error with the place in the input.
    fn report(&self, mut error: WireError, context: Option<String>, state: &ClusterState) -> Box<Report> {
        // The input is gone.
        error.retry = Retry::Never;
        let mut report = Report::named(error, &state.catalog);
        report.context = context;
        report
    }
}

impl Executor {
    /// Begins a COPY: its scalars are evaluated once.
    pub async fn copy_begin(&self, run: &Statement<'_>) -> Result<Copying, WireError> {
        let copy = Copying::copy(run.plan)?;
        let scalars = self.scalars(run.plan, run).await?;
        let columns = copy.columns.iter().map(|(name, _)| name.clone()).collect();
        let table = run.state.catalog.table(copy.insert.table);
        let table = table.map_or_else(|| copy.insert.table.to_string(), |table| table.name.clone());
        Ok(Copying {
            plan: run.plan.clone(),
            state: run.state.clone(),
            scalars,
            reader: Reader::new(copy.format.clone(), columns),
            placed: Placed::new(false),
            table,
            sent: 0,
            own: None,
        })
    }

    /// Takes in a piece of the input.
    pub async fn copy_feed(
        &self,
        run: &Statement<'_>,
        copying: &mut Copying,
        piece: &[u8],
    ) -> Result<(), Box<Report>> {
        copying.reader.push(piece);
        self.copy_rows(run, copying, false).await
    }

    /// The input has ended: writes what is left, and says how many rows it was.
    pub async fn copy_end(&self, run: &Statement<'_>, copying: &mut Copying) -> Result<u64, Box<Report>> {
        self.copy_rows(run, copying, true).await?;
        self.copy_send(run, copying).await?;
        let own = copying.own.take();
        let done = self.conclude(run, own, Ok(())).await;
        done.map_err(|error| copying.report(error, None, &run.state))?;
        Ok(copying.sent)
    }

    async fn copy_rows(
        &self,
        run: &Statement<'_>,
        copying: &mut Copying,
        last: bool,
    ) -> Result<(), Box<Report>> {
        let plan = copying.plan.clone();
        let copy = Copying::copy(&plan)?;
        loop {
            let mut input = Vec::with_capacity(copy.columns.len());
            let bad = match copying.reader.next(last) {
                Ok(None) => return Ok(()),
                Ok(Some(record)) => copy.columns.iter().enumerate().find_map(|(place, (name, ty))| {
                    let field = record.get(place);
                    let value = match field {
                        None => Value::Null,
                        Some(text) => match io::input(*ty, text, &run.facts.zone) {
                            Ok(value) => value,
                            Err(error) => {
                                return Some((error, format!(", column {name}: \"{}\"", shown(text))));
                            }
                        },
                    };
                    input.push(value);
                    None
                }),
                Err(failed) => {
                    let LineError { error, line } = *failed;
                    let context = line.map_or_else(String::new, |line| format!(": \"{line}\""));
                    Some((error, context))
                }
            };
            if let Some((error, context)) = bad {
                let context = copying.context(&context);
                return Err(copying.report(error, Some(context), &run.state));
            }
            let made = self.make_row(run, &copy.row, &copying.scalars, input).await;
            let (placed, topology) = (&mut copying.placed, &copying.state.topology);
            let placed = made.and_then(|row| placed.push(run, topology, &copy.insert, &row));
            if let Err(error) = placed {
                let context = copying.context("");
                return Err(copying.report(error, Some(context), &run.state));
            }
            if copying.placed.is_full(self.config.batch_bytes) {
                if run.transaction.is_none() && copying.own.is_none() {
                    let passed = self.pass_gate(run.interrupt, run.deadline).await;
                    passed.map_err(|error| copying.report(error, None, &run.state))?;
                    copying.own = Some(self.transactions.begin(run.facts.begun()));
                }
                self.copy_send(run, copying).await?;
                run.interrupt.check().map_err(|error| copying.report(error, None, &run.state))?;
            }
        }
    }

    async fn copy_send(&self, run: &Statement<'_>, copying: &mut Copying) -> Result<(), Box<Report>> {
        let plan = copying.plan.clone();
        let insert = &Copying::copy(&plan)?.insert;
        let placed = std::mem::replace(&mut copying.placed, Placed::new(false));
        match self.send_placed(run, copying, insert, placed).await {
            Ok(written) => {
                copying.sent += written.affected;
                Ok(())
            }
            Err(error) => {
                // The row isn't known, but it was one of the last.
                let context = format!("COPY {}", copying.table);
                Err(copying.report(error, Some(context), &run.state))
            }
        }
    }

    /// Sends rows to the shards that serve, whichever these are by then.
    async fn send_placed(
        &self,
        run: &Statement<'_>,
        copying: &mut Copying,
        insert: &Insert,
        placed: Placed,
    ) -> Result<Written, WireError> {
        let mut backoff = Backoff::until(run.retry_until());
        let mut batches = placed.finish();
        loop {
            let now = Statement { state: copying.state.clone(), ..run.within(copying.own.as_ref()) };
            let mark = now.transaction.map(Transaction::mark);
            let sent = self.send(&now, insert, &copying.scalars, batches.clone()).await;
            let error = match sent {
                Err(error) if matches!(error.retry, Retry::StaleEpoch(_)) => error,
                // It had a transaction of its own, of which nothing is left.
                Err(error) if now.transaction.is_none() && is_unseen(&error) => {
                    run.interrupt.check()?;
                    if backoff.pause().await {
                        continue;
                    }
                    return Err(error);
                }
                sent => return sent,
            };
            let newest = run.attend(self.after(&now, mark.as_ref(), error, &mut backoff)).await?;
            // Its plan is of the catalog that it had.
            let (topology, leaders) = (newest.topology.clone(), newest.leaders.clone());
            let catalog = copying.state.catalog.clone();
            copying.state = ClusterState { topology, leaders, catalog }.into();
            batches = batches.place_again(run, &copying.state.topology, insert)?.finish();
        }
    }

    /// Undoes what was done of a batch that was refused, and waits for the topology that it's to be placed by.
    async fn after(
        &self,
        run: &Statement<'_>,
        mark: Option<&Mark>,
        error: WireError,
        backoff: &mut Backoff,
    ) -> Result<Arc<ClusterState>, WireError> {
        let Retry::StaleEpoch(epoch) = error.retry else { return Err(error) };
        if let (Some(transaction), Some(mark)) = (run.transaction, mark) {
            transaction.undo(mark, run.deadline).await?;
        }
        let newest = self.cluster.wait_for(SchemaVersion(0), epoch, backoff.deadline()).await;
        let newest = newest.map_err(|late| in_time(run.deadline, late))?;
        if newest.topology.epoch == run.state.topology.epoch && !backoff.pause().await {
            return Err(error);
        }
        if let Some(transaction) = run.transaction {
            transaction.follow(&newest.topology)?;
        }
        Ok(newest)
    }
}
