//! Flows: this node's groups take over what other groups' logs say, entry by entry.
//!
//! 1. The topology names them, and whoever leads a target's group runs those that end there ([`run`]).
//! 2. The sources' logs are read from any of their replicas (`source`), as far as there is room for it (`queue`).
//! 3. What comes is filtered by the target's own layouts and written into its group: several entries as one write, a schema
//!    step as an entry of its own, a big transaction as pieces and their replay (`take`). Each moves the source's row of
//!    `shoal_source` in the same SQLite transaction. So nothing is taken over twice and nothing left out, whoever leads.
//! 4. A target with several sources runs a schema step when all of them have come to it.
//! 5. A seal stays in front of its flow. When all sources of a target are sealed by the attempt of which the topology says that
//!    their routers wait, the target adopts what they leave (`estate`) and serves. What undoes a seal closes it again.
//! 6. How far each flow is, and why it can't go on, is told to who asks ([`Flows::statuses`]; `progress`); that it has
//!    adopted, by whoever leads it ([`reached`]).
//!
//! What can't be taken over stops the flows of its target, never its group. It must never know why shards are replaced, nor
//! who serves.

mod brake;
mod ease;
mod progress;
mod queue;
mod source;
mod take;

use crate::node::ShardNode;
pub(crate) use brake::{Brake, Held};
use parking_lot::Mutex;
use progress::Progress;
use proto::machine;
use proto::services::{Consistency, FlowObstacle, FlowStatus, Peers, Reached, ServiceResult};
use proto::topology::{Flow, Topology};
use proto::{Attempt, ReshardId, Retry, ShardId, SqlState, WireError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use take::Target;
pub(crate) use take::position;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// How often it is looked whether the target's replica is here and leads, if nothing says so.
const LOOK: Duration = Duration::from_secs(1);

/// The pause after a failure; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What every replica of a shard runs before its first log entry: how far each source was taken over.
pub(crate) fn init() -> String {
    "CREATE TABLE shoal_source (shard INTEGER NOT NULL PRIMARY KEY, position INTEGER NOT NULL,
                                attempt INTEGER NOT NULL) STRICT"
        .into()
}

/// And the pieces of a big transaction that is being taken over.
pub(crate) fn init_arriving() -> String {
    format!(
        "CREATE TABLE {} (router INTEGER NOT NULL, sequence INTEGER NOT NULL, n INTEGER NOT NULL,
                          changes BLOB NOT NULL, PRIMARY KEY (router, sequence, n)) STRICT",
        take::TABLE
    )
}

/// The flows that this node runs, by their targets.
#[derive(Default)]
pub(crate) struct Flows {
    running: Mutex<BTreeMap<ShardId, Running>>,
    /// Is told when a target has adopted.
    adopted: Notify,
}

/// The flows of a target that is led here.
#[derive(Clone)]
pub(crate) struct Running {
    progress: Arc<Mutex<Vec<Progress>>>,
    pub brake: Arc<Brake>,
    pub peers: Arc<dyn Peers>,
}

impl Flows {
    /// A target has adopted.
    fn tell(&self) {
        self.adopted.notify_waiters();
    }

    /// A target's flows; nothing if they aren't run here.
    pub fn running(&self, target: ShardId) -> Option<Running> {
        self.running.lock().get(&target).cloned()
    }

    /// How far they are.
    pub fn statuses(&self, target: ShardId) -> Option<Vec<FlowStatus>> {
        let now = machine::now();
        let running = self.running(target)?;
        let statuses = running.progress.lock().iter().map(|progress| progress.status(now)).collect();
        Some(statuses)
    }
}

/// Why a target's flows don't go on.
enum Stop {
    /// They begin anew, here or wherever the group is led.
    Again(WireError),
    /// They can't.
    Obstacle(usize, FlowObstacle),
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Stop::Again(error)
    }
}

/// Runs the flows that the topology names for this node's groups, until it is dropped.
pub(crate) async fn run(node: Arc<ShardNode>, peers: Arc<dyn Peers>) {
    let mut epochs = node.epochs();
    let mut running: BTreeMap<ShardId, (Vec<Flow>, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        epochs.mark_unchanged();
        let wanted = wanted(&node.topology(), &node);
        running.retain(|target, (flows, task)| {
            let stays = wanted.get(target) == Some(flows) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (target, flows) in wanted {
            running.entry(target).or_insert_with(|| {
                let task = tasks.spawn(follow(Arc::clone(&node), Arc::clone(&peers), target, flows.clone()));
                (flows, task)
            });
        }
        while tasks.try_join_next().is_some() {}
        if epochs.changed().await.is_err() {
            return;
        }
    }
}

/// The flows that end in groups that this node has a part in, by target.
fn wanted(topology: &Topology, node: &ShardNode) -> BTreeMap<ShardId, Vec<Flow>> {
    let mut wanted: BTreeMap<ShardId, Vec<Flow>> = BTreeMap::new();
    for flow in topology.reshards.iter().flat_map(|reshard| &reshard.flows) {
        if node.holders(flow.target).contains(&node.id()) {
            wanted.entry(flow.target).or_default().push(*flow);
        }
    }
    for flows in wanted.values_mut() {
        flows.sort();
    }
    wanted
}

/// Tells of a target's flows for as long as this runs them.
struct Told<'a> {
    flows: &'a Flows,
    target: ShardId,
    progress: Arc<Mutex<Vec<Progress>>>,
}

impl<'a> Told<'a> {
    fn begin(flows: &'a Flows, target: ShardId, running: Running) -> Self {
        let progress = Arc::clone(&running.progress);
        flows.running.lock().insert(target, running);
        Told { flows, target, progress }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let mut running = self.flows.running.lock();
        // Others may have been begun meanwhile.
        if running.get(&self.target).is_some_and(|known| Arc::ptr_eq(&known.progress, &self.progress)) {
            running.remove(&self.target);
        }
    }
}

/// Waits until a target has adopted what an attempt has sealed of all its sources, for as long as it is led here.
pub(crate) async fn reached(
    node: &ShardNode,
    target: ShardId,
    (reshard, attempt): (ReshardId, Attempt),
    deadline: Instant,
) -> ServiceResult<Reached> {
    let later = |why: &str| {
        let message = format!("shard {target} hasn't adopted in attempt {attempt}: {why}");
        WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
    };
    loop {
        let mut adopted = std::pin::pin!(node.flows.adopted.notified());
        adopted.as_mut().enable();
        let topology = node.topology();
        let known = topology.reshards.iter().find(|known| known.id == reshard);
        let flows = known.into_iter().flat_map(|known| &known.flows).filter(|flow| flow.target == target);
        let sources: Vec<ShardId> = flows.map(|flow| flow.source).collect();
        if sources.is_empty() {
            return Err(later("it takes over from none that this node knows"));
        }
        let statuses = node.flows.statuses(target).unwrap_or_default();
        if let Some(obstacle) = statuses.iter().find_map(|status| status.obstacle.as_ref()) {
            return Err(WireError::internal(format!(
                "shard {target} can't take over any more: {obstacle:?}"
            )));
        }
        let replica = node.desk(target, None)?.replica;
        let snapshot = replica.snapshot(Consistency::Strong, deadline).await?;
        let found = take::adopted(snapshot.connection(), target, attempt, &sources);
        if let Some(sources) = found.map_err(|error| snapshot.explain(error))? {
            // It hasn't served in between, since nobody was told of it.
            return Ok(Reached { first: snapshot.position(), sources });
        }
        drop(snapshot);
        let now = machine::now();
        if now >= deadline {
            return Err(later("something of it hasn't come"));
        }
        // Whoever leads it by then may be another one.
        let _ = tokio::time::timeout_at(deadline.min(now + LOOK).into(), adopted).await;
    }
}

/// Runs a target's flows whenever its group is led here.
async fn follow(node: Arc<ShardNode>, peers: Arc<dyn Peers>, target: ShardId, flows: Vec<Flow>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(replica) = node.replica(target) else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        if !replica.is_leader() {
            let mut status = replica.watch();
            if !replica.is_leader() {
                // It may have been made anew, and then nothing comes of this one any more.
                let _ = tokio::time::timeout(LOOK, status.changed()).await;
            }
            continue;
        }
        let (begun_at, mut told) = (machine::now(), None);
        let ended = match Target::begin(&node, &peers, replica.clone(), target, &flows).await {
            Ok(mut begun) => {
                let (progress, brake, peers) = (begun.progress(), begun.brake(), Arc::clone(&peers));
                told = Some(Told::begin(&node.flows, target, Running { progress, brake, peers }));
                let ended = begun.run().await;
                if let Err(Stop::Obstacle(place, obstacle)) = &ended {
                    begun.stop(*place, obstacle.clone());
                }
                ended
            }
            Err(error) => Err(Stop::Again(error)),
        };
        match ended {
            Ok(()) => {}
            Err(Stop::Again(error)) => {
                tracing::debug!(%target, %error, "flows begin anew");
                if machine::now() - begun_at > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(Stop::Obstacle(place, obstacle)) => {
                tracing::error!(%target, source = %flows[place].source, ?obstacle, "a flow can't go on");
                // Until it is led elsewhere: whoever leads finds out for himself.
                while replica.is_leader() {
                    let mut status = replica.watch();
                    let _ = tokio::time::timeout(LOOK, status.changed()).await;
                }
            }
        }
        drop(told);
    }
}
