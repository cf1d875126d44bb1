//! The shards of one node.
//!
//! In come fragments and schema steps for a shard, out go their results. Which shards there are, and which of them
//! have a replica here, is learned from the topology; nothing here asks for it.

use crate::config::Config;
use crate::stream::Readers;
use crate::{fence, read, write};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto::services::{
    Access, BoxFuture, ClusterState, Consistency, FragmentRequest, FragmentResponse, SchemaRequest,
    ServiceResult, ShardService,
};
use proto::topology::Shard;
use proto::{Epoch, LogIndex, Retry, ShardId, SqlState, WireError};
use replica::{Host, Replica, SchemaEntry, Write};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No request may wait longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The shards of one node, over its [`Host`].
pub struct ShardNode {
    host: Arc<Host>,
    config: Config,
    readers: Readers,
    shards: ArcSwap<Shards>,
    /// Held while a topology is taken in, so that an older one can't overtake a newer one.
    following: Mutex<()>,
}

/// The topology, as far as shards go.
#[derive(Default)]
struct Shards {
    epoch: Epoch,
    by_id: HashMap<ShardId, Known>,
}

struct Known {
    shard: Shard,
    /// The epoch in which it became what it is.
    since: Epoch,
    /// This node's replica of it.
    replica: Option<Replica>,
}

impl ShardNode {
    /// A node that knows no shard yet.
    pub fn new(host: Arc<Host>, config: Config) -> Arc<ShardNode> {
        let readers = Readers::new(&config);
        let shards = ArcSwap::default();
        Arc::new(ShardNode { host, config, readers, shards, following: Mutex::new(()) })
    }

    /// Takes in the cluster's state: makes the replicas that the topology places here, and serves what it names. An
    /// older state than the last changes nothing. Making a replica writes to disk, so call it off the runtime's
    /// threads. What fails is logged, and tried again with the next state.
    pub fn follow(&self, state: ClusterState) {
        let _turn = self.following.lock();
        let known = self.shards.load();
        let topology = &state.topology;
        if topology.epoch < known.epoch {
            return;
        }
        let complete = known.by_id.values().all(|k| k.replica.is_some() || !self.holds(&k.shard));
        if topology.epoch == known.epoch && complete && topology.shards.len() == known.by_id.len() {
            return;
        }
        let by_id = topology.shards.values().map(|shard| {
            let before = known.by_id.get(&shard.id);
            let since = match before {
                Some(before) if before.shard == *shard => before.since,
                _ => topology.epoch,
            };
            let replica = before
                .and_then(|before| before.replica.clone())
                .filter(|replica| replica.group() == shard.group)
                .or_else(|| self.replica_of(shard));
            (shard.id, Known { shard: shard.clone(), since, replica })
        });
        let shards = Shards { epoch: topology.epoch, by_id: by_id.collect() };
        self.shards.store(Arc::new(shards));
    }

    fn holds(&self, shard: &Shard) -> bool {
        shard.replicas.contains(&self.config.node)
    }

    fn replica_of(&self, shard: &Shard) -> Option<Replica> {
        if !self.holds(shard) {
            return None;
        }
        if let Some(replica) = self.host.replica(shard.group) {
            return Some(replica);
        }
        match self.host.create(shard.group, &shard.replicas, &fence::init()) {
            Ok(replica) => Some(replica),
            Err(error) => {
                tracing::error!(shard = %shard.id, group = %shard.group, %error, "a replica can't be made");
                None
            }
        }
    }

    /// The replica of a shard, for a request that was routed by this epoch (`None`: by whoever makes epochs).
    fn find(&self, id: ShardId, epoch: Option<Epoch>) -> ServiceResult<Replica> {
        let shards = self.shards.load();
        let Some(known) = shards.by_id.get(&id) else {
            // The shard is newer than this node's topology, or the request's topology is older than the shard's end.
            let retry = match epoch {
                Some(epoch) if epoch <= shards.epoch => Retry::StaleEpoch(shards.epoch),
                _ => Retry::Later,
            };
            let message = format!("shard {id} isn't known at epoch {}", shards.epoch);
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(retry));
        };
        if epoch.is_some_and(|epoch| epoch < known.since) {
            let message = format!("shard {id} has changed at epoch {}", known.since);
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message)
                .with_retry(Retry::StaleEpoch(known.since)));
        }
        match &known.replica {
            Some(replica) => Ok(replica.clone()),
            // A replica that couldn't be made is no leader either.
            None => {
                let message = format!("shard {id} has no replica on node {}", self.config.node);
                Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::NotLeader(None)))
            }
        }
    }

    /// The fast path: a future of its own, which is smaller than [`Self::run`]'s.
    async fn lookup(
        &self,
        request: FragmentRequest,
        consistency: Consistency,
    ) -> ServiceResult<FragmentResponse> {
        let replica = self.find(request.shard, Some(request.epoch))?;
        let deadline = Instant::now() + request.timeout.min(LONGEST);
        let snapshot = replica.snapshot(consistency, deadline).await?;
        read::lookup(&snapshot, &request, deadline)
    }

    async fn run(&self, request: FragmentRequest) -> ServiceResult<FragmentResponse> {
        let replica = self.find(request.shard, Some(request.epoch))?;
        let deadline = Instant::now() + request.timeout.min(LONGEST);
        match request.access {
            Access::Read { consistency, lookup: _ } => {
                self.readers.run(request, deadline, replica.snapshot(consistency, deadline)).await
            }
            Access::Write { request: id, settled, touch } => {
                let job = write::Job {
                    sql: request.sql,
                    params: request.params,
                    rows: request.rows,
                    touch,
                    schema_version: request.schema_version,
                    returning_bytes: self.config.returning_bytes,
                };
                let run = Box::new(move |connection: &rusqlite::Connection| write::run(connection, &job));
                let written = replica.write(Write { request: Some(id), settled, deadline, run }).await?;
                write::decode(&written.output, written.index)
            }
        }
    }

    async fn step(&self, request: SchemaRequest) -> ServiceResult<LogIndex> {
        let replica = self.find(request.shard, None)?;
        let mut statements = request.statements;
        statements.extend(request.least_version.map(fence::raise));
        let require_empty = request.require_empty.into_iter().map(dialect::physical::table_name).collect();
        let entry = SchemaEntry {
            id: (request.step.job, request.step.step),
            statements,
            require_empty,
            notes: Vec::new(),
            deadline: Instant::now() + self.config.schema_timeout,
        };
        replica.schema(entry).await
    }
}

impl ShardService for ShardNode {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        match request.access {
            Access::Read { consistency, lookup: true } => Box::pin(self.lookup(request, consistency)),
            Access::Read { .. } | Access::Write { .. } => Box::pin(self.run(request)),
        }
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(self.step(request))
    }
}
