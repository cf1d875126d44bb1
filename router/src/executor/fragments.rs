//! Sending fragments to shards.
//!
//! A fragment goes to the shard's leader. Where nothing was executed, or repeating is safe (a read; a write under its
//! request id), it's sent again, to the leader that the answer named or after a pause. A catalog or topology that is
//! newer than the plan ends the fragment with that error: the session plans again.
//!
//! A read is given up as soon as nobody wants it. A write that was sent is waited for.

use super::Executor;
use super::statement::Statement;
use crate::requests::Request;
use crate::retry::Backoff;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use planner::plan::Fragment;
use proto::services::{Access, ClusterState, Consistency, FragmentRequest, FragmentResponse, ShardService};
use proto::{
    GroupId, NodeId, Retry, RowBatch, SchemaVersion, ShardId, SqlState, TableId, Term, Value, WireError,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a node that doesn't lead any more may take to answer what it was asked while it did.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// One write for one shard.
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
    /// Its name.
    pub request: Request,
    /// The one table that its statement names, if it names but one.
    pub alone_in: Option<TableId>,
    /// Whether it is the first of a write to every shard: a shard that joins meanwhile must get it too, so it goes only
    /// as long as the shards are those that it was planned for.
    pub everywhere: bool,
}

/// Whom to ask next.
enum Next {
    /// At once, this node.
    Node(NodeId),
    /// After a pause, this node, or whoever leads then.
    Pause(Option<NodeId>),
}

impl Executor {
    /// Reads one shard.
    pub async fn read(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
    ) -> Result<FragmentResponse, WireError> {
        let mut asked = Asked::new(self, run, shard);
        loop {
            let request = FragmentRequest {
                shard,
                epoch: run.state.topology.epoch,
                schema_version: run.state.catalog.version(),
                sql: fragment.sql.clone(),
                params: pick(&fragment.params, scalars)?,
                rows: None,
                access: Access::Read { consistency: Consistency::Strong, lookup: fragment.lookup },
                timeout: run.time_left(),
            };
            let Some(service) = asked.service()? else {
                run.attend(asked.again(no_leader())).await?;
                continue;
            };
            let answer = async {
                tokio::select! {
                    biased;
                    answer = service.execute(request) => answer,
                    () = asked.superseded() => Err(no_answer().with_retry(Retry::Later)),
                }
            };
            match run.attend(answer).await {
                Ok(response) => return Ok(response),
                Err(error) => run.attend(asked.again(error)).await?,
            }
        }
    }

    /// Reads several shards, their answers in the order that they are named in. All have opened when it returns.
    pub async fn read_all(
        &self,
        run: &Statement<'_>,
        shards: &[ShardId],
        fragment: &Fragment,
        scalars: &[Value],
    ) -> Result<Vec<FragmentResponse>, WireError> {
        if let [shard] = shards {
            return Ok(vec![self.read(run, *shard, fragment, scalars).await?]);
        }
        let reads: Vec<BoxFuture<'_, _>> =
            shards.iter().map(|shard| self.read(run, *shard, fragment, scalars).boxed()).collect();
        stream::iter(reads).buffered(self.config.shards_at_once).try_collect().await
    }

    /// How long the outcome of a write is waited for: the statement's time, or until it is cancelled, and then for as
    /// long again as it takes a group to find a leader. A shard that works answers sooner.
    async fn patience(&self, run: &Statement<'_>) {
        tokio::select! {
            _ = run.interrupt.wait() => {}
            () = tokio::time::sleep_until(run.deadline.into()) => {}
        }
        tokio::time::sleep(self.config.retry_timeout).await;
    }

    /// A shard refused a write because the cluster has changed since it was planned. Brings the write up to date, if
    /// all that it depends on is as it was: its table, and its shard, whose range never changes.
    async fn restamp(
        &self,
        run: &Statement<'_>,
        write: &mut ShardWrite,
        asked: &mut Asked<'_>,
        error: &WireError,
    ) -> bool {
        let (schema, epoch) = match error.retry {
            Retry::StaleSchema(version) if write.alone_in.is_some() => (version, asked.epoch),
            Retry::StaleEpoch(epoch) => (write.schema_version, epoch),
            _ => return false,
        };
        let Ok(state) = self.cluster.wait_for(schema, epoch, asked.backoff.deadline()).await else {
            return false;
        };
        if state.catalog.version() == write.schema_version && state.topology.epoch == asked.epoch {
            // The shard is ahead of what the coordinator says; it isn't asked in a hurry.
            return asked.backoff.pause().await;
        }
        let shard = state.topology.shards.get(&write.shard);
        let serves = shard
            .and_then(|shard| state.topology.keyspaces.get(&shard.keyspace))
            .is_some_and(|keyspace| keyspace.shards.contains(&write.shard));
        let same_table = match write.alone_in {
            Some(table) => state.catalog.table(table) == run.state.catalog.table(table),
            None => state.catalog.version() == write.schema_version,
        };
        let shards = |state: &ClusterState| -> Vec<Vec<ShardId>> {
            state.topology.keyspaces.values().map(|keyspace| keyspace.shards.clone()).collect()
        };
        let misses_none = !write.everywhere || shards(&state) == shards(&run.state);
        if !serves || !same_table || !misses_none {
            return false;
        }
        write.schema_version = state.catalog.version();
        asked.epoch = state.topology.epoch;
        true
    }

    /// Writes to one shard. Returns when the outcome is known, or when it couldn't be learned in time (08007).
    pub async fn write(
        &self,
        run: &Statement<'_>,
        mut write: ShardWrite,
    ) -> Result<FragmentResponse, WireError> {
        let mut asked = Asked::new(self, run, write.shard);
        // Set once an attempt may have executed: from then on only that same request may be asked for.
        let mut unknown = false;
        loop {
            if !unknown {
                run.interrupt.check()?;
            }
            let request = FragmentRequest {
                shard: write.shard,
                epoch: asked.epoch,
                schema_version: write.schema_version,
                sql: write.sql.clone(),
                params: write.params.clone(),
                rows: write.rows.clone(),
                access: Access::Write {
                    request: write.request.id,
                    settled: self.requests.settled(),
                    touch: write.touch,
                },
                timeout: asked.write_timeout(unknown),
            };
            let error = match asked.service()? {
                Some(service) => {
                    let answer = tokio::select! {
                        biased;
                        answer = service.execute(request) => answer,
                        () = asked.superseded() => Err(no_answer()),
                        () = self.patience(run) => return Err(outcome_unknown(no_answer())),
                    };
                    match answer {
                        Ok(response) => return Ok(response),
                        Err(error) => error,
                    }
                }
                None => no_leader(),
            };
            unknown |= error.retry == Retry::Unknown;
            if self.restamp(run, &mut write, &mut asked, &error).await {
                continue;
            }
            if let Err(error) = asked.again(error).await {
                return Err(if unknown { outcome_unknown(error) } else { error });
            }
        }
    }
}

/// The scalars at these places.
pub fn pick(places: &[planner::plan::ScalarId], scalars: &[Value]) -> Result<Vec<Value>, WireError> {
    let value = |id: &planner::plan::ScalarId| scalars.get(id.0 as usize).cloned();
    let values: Option<Vec<Value>> = places.iter().map(value).collect();
    values.ok_or_else(|| WireError::internal("a plan names a scalar that it hasn't"))
}

fn no_leader() -> WireError {
    let message = "the shard has no leader that this router can reach";
    WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
}

fn no_answer() -> WireError {
    WireError::internal("the shard did not answer").with_retry(Retry::Unknown)
}

fn outcome_unknown(error: WireError) -> WireError {
    if error.sqlstate == SqlState::TRANSACTION_RESOLUTION_UNKNOWN {
        return error;
    }
    let message = "the outcome of a write could not be learned; it may have been done";
    WireError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
        .with_detail(error.to_string())
        .with_retry(Retry::Unknown)
}

/// The attempts of one request.
struct Asked<'a> {
    executor: &'a Executor,
    run: &'a Statement<'a>,
    shard: ShardId,
    epoch: proto::Epoch,
    hint: Option<NodeId>,
    /// Who was asked last, in which group, and the term of its leader as it was known then.
    asked: Option<NodeId>,
    group: GroupId,
    term: Term,
    attempts: usize,
    backoff: Backoff,
    news: Option<watch::Receiver<u64>>,
}

impl<'a> Asked<'a> {
    fn new(executor: &'a Executor, run: &'a Statement<'a>, shard: ShardId) -> Self {
        Self {
            executor,
            run,
            shard,
            epoch: run.state.topology.epoch,
            hint: None,
            asked: None,
            group: GroupId(0),
            term: Term(0),
            attempts: 0,
            backoff: Backoff::until(run.retry_until()),
            news: None,
        }
    }

    /// How long a write may take. One that may have executed is asked for beyond the statement's deadline.
    fn write_timeout(&self, unknown: bool) -> Duration {
        let end = if unknown { self.backoff.deadline() } else { self.run.deadline };
        end.saturating_duration_since(Instant::now())
    }

    /// The service of the node that is asked now.
    fn service(&mut self) -> Result<Option<Arc<dyn ShardService>>, WireError> {
        let cluster = &self.executor.cluster;
        // Leaders change more often than plans: the newest are asked, the plan's own topology says of which group.
        let newest = cluster.load();
        let shard = self
            .run
            .state
            .topology
            .shards
            .get(&self.shard)
            .or_else(|| newest.topology.shards.get(&self.shard));
        let shard = shard.ok_or_else(|| WireError::internal(format!("there is no shard {}", self.shard)))?;
        let again = |node: &NodeId| self.asked == Some(*node);
        let known = || {
            let leader = cluster.leader(&newest, shard.group);
            leader.filter(|node| !again(node) || self.attempts.is_multiple_of(2))
        };
        // Nobody is known to lead, or the one that was known doesn't: the replicas are asked in turn, one will know.
        let turn = self.attempts / 2 % shard.replicas.len().max(1);
        let node = self.hint.or_else(known).or_else(|| shard.replicas.get(turn).copied());
        self.asked = node;
        self.term = newest.leaders.term(shard.group);
        self.group = shard.group;
        Ok(node.and_then(|node| cluster.peers().shard_service(node)))
    }

    /// Resolves when another node than the one that was asked has come to lead: a node that is paused or cut off may
    /// never answer. One that just hands over does, and gets a moment for it.
    async fn superseded(&self) {
        let cluster = &self.executor.cluster;
        let mut news = cluster.news();
        loop {
            let leaders = &cluster.load().leaders.clone();
            if leaders.term(self.group) > self.term && leaders.get(self.group) != self.asked {
                return tokio::time::sleep(LAST_WORDS).await;
            }
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Prepares for asking again after this error; the error itself if that can't help.
    async fn again(&mut self, error: WireError) -> Result<(), WireError> {
        self.attempts += 1;
        match self.next(&error) {
            None => return Err(error),
            Some(Next::Node(node)) => self.hint = Some(node),
            Some(Next::Pause(hint)) => {
                self.hint = hint;
                let cluster = &self.executor.cluster;
                let news = self.news.get_or_insert_with(|| cluster.news());
                tokio::select! {
                    more = self.backoff.pause() => if !more { return Err(error) },
                    // Perhaps of who leads now.
                    _ = news.changed() => {}
                }
            }
        }
        Ok(())
    }

    fn next(&self, error: &WireError) -> Option<Next> {
        match error.retry {
            Retry::NotLeader(Some(node)) if self.hint != Some(node) && self.attempts <= 2 => {
                if let Some(shard) = self.run.state.topology.shards.get(&self.shard) {
                    self.executor.cluster.correct_leader(shard.group, node);
                }
                Some(Next::Node(node))
            }
            Retry::NotLeader(Some(node)) if self.hint != Some(node) => Some(Next::Pause(Some(node))),
            Retry::NotLeader(_) | Retry::Later | Retry::Unknown => Some(Next::Pause(None)),
            Retry::Never | Retry::StaleEpoch(_) | Retry::StaleSchema(_) => None,
        }
    }
}
