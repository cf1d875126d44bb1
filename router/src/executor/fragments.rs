//! Sending fragments to shards.
//!
//! A fragment goes to the shard's leader. Where nothing was executed, or repeating is safe (a read; a write under its
//! request id), it's sent again, to the leader that the answer named or after a pause. A catalog or topology that is
//! newer than the plan ends the fragment with that error: the session plans again. A write that may have been done by a shard
//! in whose place others serve is answered by these, or never was done.
//!
//! A read that needs no leader goes to any replica first ([`super::near`]).
//!
//! In a transaction a fragment goes to the transaction's branch on the shard: a write always, a read where there is one.
//!
//! A read is given up as soon as nobody wants it, and so is what a branch does, for it can be undone. A write that is a
//! transaction by itself is waited for once it was sent.

use super::Executor;
use super::cut::Kept;
use super::statement::{Statement, in_time};
use crate::asking::{Asked, is_unexecuted, no_answer, no_leader, outcome};
use crate::replicas::{By, Why};
use crate::requests::Request;
use crate::transaction::{Transaction, lost};
use planner::plan::Fragment;
use proto::machine;
use proto::services::{
    Access, BranchAccess, ClusterState, Consistency, Floor, FragmentRequest, FragmentResponse,
};
use proto::{CutId, LogIndex, Retry, RowBatch, SchemaVersion, ShardId, SqlState, TableId, Value, WireError};
use std::sync::Arc;
use std::time::Duration;

/// One write for one shard.
#[derive(Clone)]
pub struct ShardWrite {
    /// The shard.
    pub shard: ShardId,
    /// The catalog that it was planned by.
    pub schema_version: SchemaVersion,
    /// The statement.
    pub sql: Arc<str>,
    /// Its parameters, after those of a row.
    pub params: Vec<Value>,
    /// The rows that it runs for.
    pub rows: Option<RowBatch>,
    /// See [`Access::Write`].
    pub touch: u16,
    /// It may lock rows and affect none.
    pub locks: bool,
    /// What it deletes is added on other shards.
    pub moves: bool,
    /// The one table that its statement names, if it names but one.
    pub alone_in: Option<TableId>,
    /// Whether it is part of a write to every shard: a shard that joins meanwhile must get it too, so it goes only as
    /// long as the shards are those that it was planned for.
    pub everywhere: bool,
}

impl ShardWrite {
    fn request(&self, asked: &Asked<'_>, access: Access, timeout: Duration) -> FragmentRequest {
        FragmentRequest {
            shard: self.shard,
            epoch: asked.epoch,
            schema_version: self.schema_version,
            sql: self.sql.clone(),
            params: self.params.clone(),
            rows: self.rows.clone(),
            access,
            cut: None,
            floor: Floor::default(),
            timeout,
        }
    }
}

impl Statement<'_> {
    /// What a shard is asked for by one of the statement's fragments.
    pub(super) fn request(
        &self,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
        access: Access,
        floor: Floor,
    ) -> Result<FragmentRequest, WireError> {
        Ok(FragmentRequest {
            shard,
            epoch: self.state.topology.epoch,
            schema_version: self.state.catalog.version(),
            sql: fragment.sql.clone(),
            params: pick(&fragment.params, scalars)?,
            rows: None,
            access,
            cut: None,
            floor,
            timeout: self.time_left(),
        })
    }
}

impl Executor {
    /// Reads one shard, perhaps as part of a cut.
    pub async fn read(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
        cut: Option<CutId>,
    ) -> Result<FragmentResponse, WireError> {
        if cut.is_none() && run.is_weak() && !run.positions.is_unheard(shard) {
            return Box::pin(self.read_near(run, shard, fragment, scalars)).await;
        }
        self.replicas.reads.count(Consistency::Strong, By::Leader, Why::Asked);
        if let Some(kept) = run.kept {
            kept.check(run)?;
            let access = Access::strong(fragment.lookup);
            let cut = Some(kept.id());
            return self
                .ask(run, shard, fragment, scalars, (access, cut), &mut false)
                .await
                .map_err(Kept::explain);
        }
        let Some(transaction) = run.transaction.filter(|transaction| transaction.has(shard)) else {
            let access = Access::strong(fragment.lookup);
            return self.ask(run, shard, fragment, scalars, (access, cut), &mut false).await;
        };
        let branch = transaction.statement(shard, false, run.lock_timeout);
        let access = Access::Branch { branch, access: BranchAccess::Read };
        let mut unknown = false;
        let answer = self.ask(run, shard, fragment, scalars, (access, cut), &mut unknown).await;
        settle(transaction, shard, answer, unknown)
    }

    pub(super) async fn ask(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
        (access, cut): (Access, Option<CutId>),
        unknown: &mut bool,
    ) -> Result<FragmentResponse, WireError> {
        let mut asked = Asked::new(&self.cluster, &run.state.topology, shard, run.retry_until());
        if run.kept.is_some() {
            asked = asked.kept();
        }
        loop {
            let floor = run.positions.floor(shard);
            let request = run.request(shard, fragment, scalars, access.clone(), floor)?;
            let request = FragmentRequest { cut, ..request };
            let Some(service) = asked.service()? else {
                run.attend(asked.again(no_leader())).await?;
                continue;
            };
            let answer = async {
                tokio::select! {
                    biased;
                    answer = service.execute(request) => answer,
                    () = asked.superseded() => Err(no_answer()),
                }
            };
            match run.attend(answer).await {
                Ok(response) => {
                    // A leader shows its newest state, but that of what is kept is the newest only as long as nothing more
                    // is to be asked for.
                    if run.kept.is_none_or(|kept| kept.is_newest(run.positions)) {
                        run.positions.asked(shard, response.position);
                    } else {
                        run.positions.saw(shard, response.position);
                    }
                    return Ok(response);
                }
                Err(error) => {
                    *unknown |= error.retry == Retry::Unknown;
                    run.attend(asked.again(error)).await.map_err(|error| run.in_vain(error))?;
                }
            }
        }
    }

    /// How long the outcome of a write is waited for: the statement's time, or until it is cancelled, and then for as
    /// long again as it takes a group to find a leader. A shard that works answers sooner.
    async fn patience(&self, run: &Statement<'_>) {
        tokio::select! {
            biased;
            _ = run.interrupt.wait() => {}
            () = tokio::time::sleep_until(run.deadline.into()) => {}
        }
        tokio::time::sleep(self.config.retry_timeout).await;
    }

    /// A shard refused a write because the cluster has changed since it was planned. Brings the write up to date, if
    /// all that it depends on is as it was: its table, and its shard, whose range never changes. An error if nobody says how the
    /// cluster is now.
    async fn restamp(
        &self,
        run: &Statement<'_>,
        write: &mut ShardWrite,
        asked: &mut Asked<'_>,
        error: &WireError,
    ) -> Result<bool, WireError> {
        let (schema, epoch) = match error.retry {
            Retry::StaleSchema(version) if write.alone_in.is_some() => (version, asked.epoch),
            Retry::StaleEpoch(epoch) => (write.schema_version, epoch),
            _ => return Ok(false),
        };
        let state = self.cluster.wait_for(schema, epoch, asked.backoff.deadline()).await;
        let state = state.map_err(|late| in_time(run.deadline, late.with_detail(error.to_string())))?;
        if state.catalog.version() == write.schema_version && state.topology.epoch == asked.epoch {
            // The shard is ahead of what the coordinator says; it isn't asked in a hurry.
            return Ok(asked.backoff.pause().await);
        }
        let same_table = match write.alone_in {
            Some(table) => state.catalog.table(table) == run.state.catalog.table(table),
            None => state.catalog.version() == write.schema_version,
        };
        let shards = |state: &ClusterState| -> Vec<Vec<ShardId>> {
            state.topology.keyspaces.values().map(|keyspace| keyspace.shards.clone()).collect()
        };
        let misses_none = !write.everywhere || shards(&state) == shards(&run.state);
        if !state.topology.serves(write.shard) || !same_table || !misses_none {
            return Ok(false);
        }
        write.schema_version = state.catalog.version();
        asked.epoch = state.topology.epoch;
        Ok(true)
    }

    /// Writes to one shard, as a transaction of its own. Returns when the outcome is known, or when it couldn't be
    /// learned in time (08007).
    pub async fn write(
        &self,
        run: &Statement<'_>,
        mut write: ShardWrite,
    ) -> Result<FragmentResponse, WireError> {
        let name: Request = self.requests.begin();
        let mut asked = Asked::new(&self.cluster, &run.state.topology, write.shard, run.retry_until());
        // Set once an attempt may have executed: from then on only that same request may be asked for.
        let mut unknown = false;
        loop {
            if !unknown {
                run.interrupt.check()?;
            }
            let access = Access::Write {
                request: name.id,
                settled: self.requests.settled(),
                touch: write.touch,
                lock_timeout: run.lock_timeout,
            };
            // One that may have executed is asked for beyond the statement's deadline.
            let end = if unknown { asked.backoff.deadline() } else { run.deadline };
            let timeout = end.saturating_duration_since(machine::now());
            let request = write.request(&asked, access, timeout);
            let error = match asked.service() {
                Ok(Some(service)) => {
                    let answer = tokio::select! {
                        biased;
                        answer = service.execute(request) => answer,
                        () = asked.superseded() => Err(no_answer()),
                        () = self.patience(run) => return Err(outcome_unknown(no_answer())),
                    };
                    match answer {
                        Ok(response) => {
                            run.positions.asked(write.shard, response.position);
                            return Ok(response);
                        }
                        Err(error) => error,
                    }
                }
                Ok(None) => no_leader(),
                Err(error) => error,
            };
            unknown |= error.retry == Retry::Unknown;
            let restamped = self.restamp(run, &mut write, &mut asked, &error);
            let restamped = if unknown { restamped.await } else { run.attend(restamped).await };
            let ended = match restamped {
                Ok(true) => continue,
                Ok(false) if unknown && matches!(error.retry, Retry::StaleEpoch(_)) => {
                    let until = machine::now() + run.retry_for;
                    match outcome(&self.cluster, write.shard, name.id, until).await {
                        Ok(Some(told)) => {
                            // All that the shard had done is in what has taken its place.
                            run.positions.saw(write.shard, LogIndex(1));
                            return Ok(told);
                        }
                        Ok(None) => return Err(error),
                        Err(error) => Err(error),
                    }
                }
                Ok(false) => asked.again(error).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                return Err(if unknown { outcome_unknown(error) } else { error });
            }
        }
    }

    /// Writes to one shard, in the transaction's branch there.
    pub async fn write_within(
        &self,
        run: &Statement<'_>,
        transaction: &Transaction,
        write: ShardWrite,
        cut: Option<CutId>,
    ) -> Result<FragmentResponse, WireError> {
        let (shard, touch, locks) = (write.shard, write.touch, write.locks);
        let branch = transaction.statement(shard, true, run.lock_timeout);
        let access = if write.moves { BranchAccess::Move } else { BranchAccess::Write { touch } };
        let access = Access::Branch { branch, access };
        let mut unknown = false;
        let answer = self.ask_branch(run, write, (access, cut), &mut unknown).await;
        let written = settle(transaction, shard, answer, unknown)?;
        if written.affected == 0 && !locks {
            transaction.unbind(shard, branch);
        }
        Ok(written)
    }

    async fn ask_branch(
        &self,
        run: &Statement<'_>,
        mut write: ShardWrite,
        (access, cut): (Access, Option<CutId>),
        unknown: &mut bool,
    ) -> Result<FragmentResponse, WireError> {
        let mut asked = Asked::new(&self.cluster, &run.state.topology, write.shard, run.retry_until());
        loop {
            run.interrupt.check()?;
            let request = write.request(&asked, access.clone(), run.time_left());
            let request = FragmentRequest { cut, ..request };
            let error = match asked.service()? {
                Some(service) => {
                    let answer = async {
                        tokio::select! {
                            biased;
                            answer = service.execute(request) => answer,
                            () = asked.superseded() => Err(no_answer()),
                        }
                    };
                    match run.attend(answer).await {
                        Ok(response) => {
                            run.positions.asked(write.shard, response.position);
                            return Ok(response);
                        }
                        Err(error) => error,
                    }
                }
                None => no_leader(),
            };
            *unknown |= error.retry == Retry::Unknown;
            if run.attend(self.restamp(run, &mut write, &mut asked, &error)).await? {
                continue;
            }
            run.attend(asked.again(error)).await?;
        }
    }
}

/// What a branch's statement has come to, for the transaction as for who sent it. `unknown`: an attempt may have been
/// executed.
pub(super) fn settle(
    transaction: &Transaction,
    shard: ShardId,
    answer: Result<FragmentResponse, WireError>,
    unknown: bool,
) -> Result<FragmentResponse, WireError> {
    answer.map_err(|error| match error.retry {
        _ if is_unexecuted(&error) && !unknown => {
            transaction.take_back(shard);
            error
        }
        // It is undone before it's planned again.
        Retry::StaleEpoch(_) | Retry::StaleSchema(_) | Retry::Moved => error,
        _ => lost(error),
    })
}

/// The scalars at these places.
pub fn pick(places: &[planner::plan::ScalarId], scalars: &[Value]) -> Result<Vec<Value>, WireError> {
    let value = |id: &planner::plan::ScalarId| scalars.get(id.0 as usize).cloned();
    let values: Option<Vec<Value>> = places.iter().map(value).collect();
    values.ok_or_else(|| WireError::internal("a plan names a scalar that it hasn't"))
}

fn outcome_unknown(error: WireError) -> WireError {
    if error.sqlstate == SqlState::TRANSACTION_RESOLUTION_UNKNOWN {
        return error;
    }
    let message = "the outcome of a write could not be learned; it may have been done";
    WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
        .with_detail(error.to_string())
        .with_retry(Retry::Unknown)
        .instead_of(error)
}
