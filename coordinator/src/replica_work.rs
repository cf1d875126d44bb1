//! Working off changes of replicas, on the coordinator's leader.
//!
//! In comes the record of a job, out go requests to the leader of its group and writes to the coordinator's log that
//! move the job on. A worker keeps nothing that the record doesn't have but what held it up last: another leader's
//! worker goes on from the same place, and asking for the same voters twice is harmless.

use crate::reach::{Pause, Reach};
use crate::replica_job::{Next, ReplicaJob};
use crate::replicas;
use crate::state::State;
use crate::store::{self, Store};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::machine;
use proto::services::{Consistency, ReplicaService};
use proto::{GroupId, NodeId, Retry, SqlState, WireError};
use replica::Replica;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A leader that isn't another's after so many attempts won't be: nobody waits for ever for what nobody needs.
const TRANSFERS: u32 = 5;

/// What held up each job last.
pub(crate) type Obstacles = Arc<Mutex<BTreeMap<u64, String>>>;

/// Works off one change of replicas.
#[derive(Clone)]
pub(crate) struct ReplicaWorker {
    pub(crate) replica: Replica,
    pub(crate) reach: Reach,
    pub(crate) state: Arc<State>,
    pub(crate) obstacles: Obstacles,
}

impl ReplicaWorker {
    /// Takes the job to its end, or as far as this node leads.
    pub(crate) async fn run(self, id: u64) {
        let mut pause = Pause::default();
        let mut attempt = 0;
        loop {
            match self.move_on(id, attempt).await {
                Ok(Some(())) => (pause, attempt) = (Pause::default(), 0),
                Ok(None) => break,
                Err(error) if !self.replica.is_leader() => {
                    tracing::debug!(job = id, %error, "another leader goes on with a change of replicas");
                    break;
                }
                Err(error) => {
                    attempt += 1;
                    tracing::info!(job = id, %error, "a change of replicas is held up");
                    self.obstacles.lock().insert(id, error.message.clone());
                    pause.wait().await;
                }
            }
        }
        self.obstacles.lock().remove(&id);
    }

    /// One step, if it can be done now. `None` once there is no more to do.
    async fn move_on(&self, id: u64, attempt: u32) -> Result<Option<()>, WireError> {
        let (job, nodes) = self.job(id).await?;
        let Some(job) = job else { return Ok(None) };
        let (group, step) = (job.group(), job.step);
        let timeout = self.reach.config.member_timeout;
        let asked = match job.next()? {
            Next::Voters(voters) => {
                if let Some(error) = self.hopeless(&job) {
                    return self.write(move |store| replicas::fail(store, id, step, &error)).await.map(Some);
                }
                let ask = |service: Arc<dyn ReplicaService>| {
                    let voters = voters.clone();
                    async move { service.change_members(group, voters, None, timeout).await.map(drop) }
                };
                self.reach.group(group, &nodes, timeout, ask).await
            }
            Next::Lead(to) => {
                let ask = |service: Arc<dyn ReplicaService>| async move {
                    service.transfer_leader(group, to, timeout).await
                };
                match self.reach.group(group, &nodes, timeout, ask).await {
                    Err(error) if attempt + 1 >= TRANSFERS => Err(error.with_retry(Retry::Never)),
                    asked => asked,
                }
            }
            Next::Undo(voters, error) => {
                let ask = |service: Arc<dyn ReplicaService>| {
                    let voters = voters.clone();
                    async move { service.change_members(group, voters, None, timeout).await.map(drop) }
                };
                match self.reach.group(group, &nodes, timeout, ask).await {
                    Err(held_up) if held_up.retry != Retry::Never => return Err(held_up),
                    Err(refused) => {
                        tracing::error!(job = id, error = %refused, "what a failed change of replicas did can't be undone");
                    }
                    Ok(()) => {}
                }
                self.write(move |store| replicas::abort(store, id, &error)).await?;
                self.state.settle(group);
                return Ok(None);
            }
            Next::End => Ok(()),
        };
        match asked {
            Ok(()) => {
                self.write(move |store| replicas::advance(store, id, step).map(drop)).await?;
                self.state.settle(group);
                Ok(Some(()))
            }
            Err(error) if error.retry == Retry::Never => {
                tracing::warn!(job = id, %error, "a change of replicas has failed");
                self.write(move |store| replicas::fail(store, id, step, &error)).await.map(Some)
            }
            Err(error) => Err(error),
        }
    }

    /// Why a job will never come to its end.
    fn hopeless(&self, job: &ReplicaJob) -> Option<WireError> {
        let node = job.joining()?;
        let silence = self.state.silence(node);
        (silence >= self.reach.config.replace_after).then(|| {
            let message = format!("node {node} has been silent for {} seconds", silence.as_secs());
            WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        })
    }

    /// The job, and where its group's leader may be.
    async fn job(&self, id: u64) -> Result<(Option<ReplicaJob>, Vec<NodeId>), WireError> {
        let deadline = machine::now() + self.reach.config.write_timeout;
        let snapshot = self.replica.snapshot(Consistency::Strong, deadline).await?;
        let store = Store(snapshot.connection());
        let Some(job) = store.replica_job(id)? else { return Ok((None, Vec::new())) };
        let mut nodes = match job.group() {
            GroupId::COORDINATOR => store.coordinators()?,
            group => {
                let shard = store.shards()?.into_values().find(|shard| shard.group == group);
                shard.map(|shard| shard.replicas).unwrap_or_default()
            }
        };
        nodes.extend(job.joining());
        Ok((Some(job), nodes))
    }

    async fn write(
        &self,
        run: impl FnOnce(Store<'_>) -> Result<(), WireError> + Send + 'static,
    ) -> Result<(), WireError> {
        let run = move |store: Store<'_>| run(store).map(|()| Bytes::new());
        store::write(&self.replica, self.reach.config.write_timeout, run).await.map(drop)
    }
}
