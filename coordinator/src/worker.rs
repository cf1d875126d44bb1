//! Working off jobs, on the coordinator's leader.
//!
//! In comes the record of a job, out go entries to shards and writes to the coordinator's log that move the job on.
//! A worker keeps nothing that the record doesn't have: another leader's worker goes on from the same place. Two at
//! once do no harm, for shards know a step that they have had, and a job moves on only from where it stands.

use crate::job::{Copying, Failure, Job, Kind, Request, Stage};
use crate::publish;
use crate::reach::{Pause, Reach, next};
use crate::store::{self, Store};
use bytes::Bytes;
use dialect::physical;
use proto::machine;
use proto::services::{
    Access, Consistency, Floor, FragmentRequest, RowSource, SchemaRequest, SchemaStep, ShardService,
};
use proto::{
    ColumnId, RequestId, Retry, RouterIncarnation, RowBatch, SchemaVersion, ShardId, TableId, WireError,
};
use replica::Replica;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Shards that are asked at once.
const AT_ONCE: usize = 64;

/// Works off one job.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) replica: Replica,
    pub(crate) reach: Reach,
}

/// What became of a stage's entries.
#[derive(Default)]
struct Applied {
    done: Vec<ShardId>,
    error: Option<WireError>,
}

/// Where copied rows go. Each shard remembers requests for itself, so one sequence serves them all.
struct Put<'a> {
    job: &'a Job,
    write: Arc<str>,
    targets: &'a [u64],
    router: RouterIncarnation,
}

impl Worker {
    /// Takes the job to its end, or as far as this node leads.
    pub(crate) async fn run(self, id: u64) {
        let mut pause = Pause::default();
        loop {
            match self.move_on(id).await {
                Ok(true) => pause = Pause::default(),
                Ok(false) => return,
                Err(error) if matches!(error.retry, Retry::NotLeader(_)) => return,
                Err(error) => {
                    tracing::warn!(job = id, %error, "a schema change is held up");
                    pause.wait().await;
                }
            }
        }
    }

    /// One stage. Says whether there is more to do.
    async fn move_on(&self, id: u64) -> Result<bool, WireError> {
        let Some(job) = self.job(id).await? else { return Ok(false) };
        if job.has_failed() {
            let applied = self.apply(&job, job.undo_step(), None, job.undoing()?).await?;
            if let Some(error) = applied.error {
                tracing::error!(job = id, %error, "what a failed schema change did can't be undone");
            }
            self.write(move |store| publish::abort(store, id)).await?;
            return Ok(false);
        }
        let at = job.stage;
        if let Some(stage) = job.current() {
            let applied = match stage.kind() {
                Kind::Entries => self.entries(&job, stage).await?,
                Kind::Copy => self.copy(&job, stage).await,
                Kind::Publish => Applied::default(),
            };
            if let Some(error) = applied.error {
                if stage.failure() == Failure::Undo {
                    self.write(move |store| publish::fail(store, id, at, error, &applied.done)).await?;
                    return Ok(true);
                }
                tracing::error!(job = id, %error, "a shard keeps what a schema change should have removed");
            }
        }
        self.write(move |store| publish::advance(store, id, at)).await?;
        Ok(true)
    }

    async fn job(&self, id: u64) -> Result<Option<Job>, WireError> {
        let deadline = machine::now() + self.reach.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        Store(snapshot.connection()).job(id)
    }

    async fn shards(&self) -> Result<BTreeSet<ShardId>, WireError> {
        let deadline = machine::now() + self.reach.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        Ok(Store(snapshot.connection()).shards()?.into_keys().collect())
    }

    async fn write(
        &self,
        run: impl FnOnce(Store<'_>) -> Result<(), WireError> + Send + 'static,
    ) -> Result<(), WireError> {
        let run = move |store: Store<'_>| run(store).map(|()| Bytes::new());
        store::write(&self.replica, self.reach.config.write_timeout, run).await.map(drop)
    }

    async fn entries(&self, job: &Job, stage: &Stage) -> Result<Applied, WireError> {
        let least = if stage.fence { job.version() } else { None };
        self.apply(job, job.step(), least, stage.requests()?).await
    }

    /// Applies a step on shards, all of them to the end: only so is it known what there would be to undo.
    async fn apply(
        &self,
        job: &Job,
        step: u32,
        least_version: Option<SchemaVersion>,
        requests: Vec<Request>,
    ) -> Result<Applied, WireError> {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked = JoinSet::new();
        // The job's shards were all there when it was admitted: one that isn't any more took its tables with it.
        let present = self.shards().await?;
        for Request { shard, statements, layouts, require_empty } in requests {
            if !present.contains(&shard) {
                continue;
            }
            let step = SchemaStep { job: job.id, step };
            let request = SchemaRequest { shard, step, statements, layouts, least_version, require_empty };
            let (reach, turns) = (self.reach.clone(), Arc::clone(&turns));
            asked.spawn(async move {
                let _turn = turns.acquire().await;
                let call = |service: Arc<dyn ShardService>| {
                    let request = request.clone();
                    async move { service.apply_schema(request).await }
                };
                (shard, reach.leader(shard, call).await)
            });
        }
        let mut applied = Applied::default();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((shard, Ok(_))) => applied.done.push(shard),
                Ok((_, Err(error))) => applied.error = Some(error),
                Err(error) => applied.error = Some(WireError::internal(format!("a schema step: {error}"))),
            }
        }
        Ok(applied)
    }

    /// Copies reference tables to shards that don't serve yet. The source takes no writes meanwhile, so that doing it
    /// again, or twice at once, gives the same rows.
    async fn copy(&self, job: &Job, stage: &Stage) -> Applied {
        for copying in &stage.copies {
            let mut pause = Pause::default();
            loop {
                match self.copy_table(job, copying).await {
                    Ok(()) => break,
                    Err(error) if error.retry == Retry::Never => {
                        return Applied { error: Some(error), ..Applied::default() };
                    }
                    Err(error) => {
                        tracing::warn!(job = job.id, %error, "copying a reference table begins again");
                        pause.wait().await;
                    }
                }
            }
        }
        Applied::default()
    }

    async fn copy_table(&self, job: &Job, copying: &Copying) -> Result<(), WireError> {
        let table = physical::table_name(TableId(copying.table));
        let columns: Vec<_> = copying.columns.iter().map(|id| physical::column_name(ColumnId(*id))).collect();
        let places: Vec<_> = (1..=columns.len()).map(|place| format!("?{place}")).collect();
        let columns = columns.join(", ");
        let read = format!("SELECT {columns} FROM {table}");
        let write: Arc<str> =
            format!("INSERT OR REPLACE INTO {table} ({columns}) VALUES ({})", places.join(", ")).into();
        // Its own incarnation: what an earlier attempt sent can't be taken for this one's.
        let router = RouterIncarnation(self.reach.config.machine.random());
        let source = ShardId(copying.source);
        let read = self.fragment(job, source, read.into(), None, None);
        let call = |service: Arc<dyn ShardService>| {
            let read = read.clone();
            async move { service.execute(read).await }
        };
        let response = self.reach.leader(source, call).await?;
        let put = Put { job, write, targets: &copying.targets, router };
        match response.rows {
            RowSource::Whole(batch) => self.put(&put, 1, batch).await,
            RowSource::Stream(mut batches) => {
                let mut sequence = 1;
                while let Some(batch) = next(&mut batches).await {
                    self.put(&put, sequence, batch?).await?;
                    sequence += 1;
                }
                Ok(())
            }
        }
    }

    async fn put(&self, put: &Put<'_>, sequence: u64, batch: RowBatch) -> Result<(), WireError> {
        for target in put.targets {
            let request = RequestId { router: put.router, sequence };
            let target = ShardId(*target);
            let fragment =
                self.fragment(put.job, target, Arc::clone(&put.write), Some(batch.clone()), Some(request));
            let call = |service: Arc<dyn ShardService>| {
                let fragment = fragment.clone();
                async move { service.execute(fragment).await }
            };
            self.reach.leader(target, call).await?;
        }
        Ok(())
    }

    fn fragment(
        &self,
        job: &Job,
        shard: ShardId,
        sql: Arc<str>,
        rows: Option<RowBatch>,
        write: Option<RequestId>,
    ) -> FragmentRequest {
        let epoch = self.reach.state.borrow().topology.epoch;
        FragmentRequest {
            shard,
            epoch,
            schema_version: job.version().unwrap_or_default(),
            sql,
            params: Vec::new(),
            rows,
            access: match write {
                None => Access::strong(false),
                Some(request) => {
                    Access::Write { request, settled: request.sequence, touch: 0, lock_timeout: None }
                }
            },
            cut: None,
            floor: Floor::default(),
            timeout: self.reach.config.attempt_timeout,
        }
    }
}
