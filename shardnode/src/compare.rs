//! Comparing the rows of a shard that takes over with those of one of its sources.
//!
//! 1. The flow from that source stops where it is; others go on.
//! 2. A replica of the source opens a snapshot that is no older.
//! 3. The flow goes on to exactly that position. A snapshot of the target is opened, which says itself that it is there, and the flow goes
//!    on freely.
//! 4. Part by part, the source says what the sum of its rows is that are the target's, and they are added up here: the same rows, the same
//!    sum.
//!
//! One span of keys is compared, and what follows is asked for anew. Rows of reference tables are compared with those of the source
//! that they come from, and so is whatever lies on the target and is nobody's. Nothing is kept, and nothing is decided here.

use crate::flow::Held;
use crate::node::ShardNode;
use crate::sums::{Summed, Tables, Until, look, rest};
use futures::StreamExt;
use proto::machine;
use proto::services::{
    BoxStream, CompareRequest, Compared, ComparedNext, Consistency, Difference, Peers, ServiceResult, Sums,
    SumsPart, SumsPlace, SumsRequest,
};
use proto::topology::{Flow, Topology};
use proto::{KeyRange, KeyspaceId, LogIndex, NodeId, Retry, ShardId, SqlState, TableId, WireError};
use replica::{Replica, Snapshot};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No request may take longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(60);

/// A flow whose rows are compared.
struct Compare {
    flow: Flow,
    /// The keyspace ids that source and target have.
    source: KeyRange,
    target: KeyRange,
    /// What the source had before is the target's without having been taken over.
    first: LogIndex,
    /// Where the source's rows are, whoever is to be asked first.
    nodes: Vec<NodeId>,
}

/// Two snapshots of the same position.
struct Opened {
    position: LogIndex,
    theirs: BoxStream<ServiceResult<Sums>>,
    own: Snapshot,
    tables: Tables,
}

impl ShardNode {
    /// Compares a span of rows.
    pub(crate) async fn compare_rows(&self, request: CompareRequest) -> ServiceResult<Compared> {
        let CompareRequest { target, source, .. } = request;
        let until = machine::now() + request.timeout.min(LONGEST);
        let replica = self.replica_of(target)?;
        let running = self.flows.running(target).ok_or_else(|| self.runs_no_flows(target, &replica))?;
        let compare = Compare::of(&self.topology(), source, target, self.id())?;
        let held = running.brake.hold(source);
        let opening = compare.open(held, &replica, &running.peers, &request, until);
        let opened = tokio::time::timeout_at(until.into(), opening).await;
        let opened = opened.unwrap_or_else(|_| {
            Err(later(format!("shards {source} and {target} don't come to one position in time")))
        })?;
        compare.run(opened, request).await
    }
}

impl Compare {
    fn of(topology: &Topology, source: ShardId, target: ShardId, here: NodeId) -> ServiceResult<Self> {
        let flows = topology.reshards.iter().flat_map(|reshard| &reshard.flows);
        let flow = flows.copied().find(|flow| (flow.source, flow.target) == (source, target));
        let flow = flow.ok_or_else(|| later(format!("no flow from shard {source} to {target} is known")))?;
        let shard = |id: ShardId| {
            let unknown = || later(format!("shard {id} of a flow isn't known"));
            topology.shards.get(&id).ok_or_else(unknown)
        };
        let (theirs, own) = (shard(source)?, shard(target)?);
        let mut nodes = theirs.replicas.clone();
        nodes.sort_by_key(|node| (*node != here, *node));
        Ok(Self { flow, source: theirs.range.clone(), target: own.range.clone(), first: theirs.first, nodes })
    }

    /// Brings both to one position. The flow goes on when this ends, whatever comes of it.
    async fn open(
        &self,
        mut held: Held,
        replica: &Replica,
        peers: &Arc<dyn Peers>,
        request: &CompareRequest,
        until: Instant,
    ) -> ServiceResult<Opened> {
        let Flow { source, target, references } = self.flow;
        let lost = || later(format!("the flow from shard {source} to {target} has begun anew"));
        let after = held.stands().await.ok_or_else(lost)?;
        let (position, theirs) = self.ask(peers, request, after, until).await?;
        held.go_on_to(position).await.ok_or_else(lost)?;
        let own = replica.snapshot(Consistency::Strong, until).await?;
        drop(held);
        let (stands, tables) = look(&own, |connection| {
            let tables = Tables::read(connection, references)?;
            let stands = crate::flow::position(connection, source)?;
            Ok((stands.unwrap_or(self.first), tables))
        })?;
        if stands != position {
            return Err(lost());
        }
        Ok(Opened { position, theirs, own, tables })
    }

    /// Has a replica of the source open a snapshot, whichever can.
    async fn ask(
        &self,
        peers: &Arc<dyn Peers>,
        request: &CompareRequest,
        after: LogIndex,
        until: Instant,
    ) -> ServiceResult<(LogIndex, BoxStream<ServiceResult<Sums>>)> {
        let Flow { source, references, .. } = self.flow;
        let mut last = later(format!("no replica of shard {source} is known"));
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(service) = peers.shard_service(*node) else { continue };
            // One that is far behind leaves time for others.
            let left = until.saturating_duration_since(machine::now());
            let timeout = left / (self.nodes.len() - number) as u32;
            let (range, from, time) = (self.target.clone(), request.from.clone(), request.time);
            let sums = SumsRequest { shard: source, after, range, references, from, time, timeout };
            let opening = async {
                let mut theirs = service.sums(sums).await?;
                match theirs.next().await {
                    Some(Ok(Sums::Open(position))) => Ok((position, theirs)),
                    Some(Err(error)) => Err(error),
                    Some(Ok(_)) | None => Err(later("a replica's sums don't begin".into())),
                }
            };
            match tokio::time::timeout(timeout, opening).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => last = error,
                Err(_) => last = later(format!("node {node} opens no snapshot of shard {source} in time")),
            }
        }
        Err(last)
    }

    /// Adds up this side's rows behind the other's, as far as that goes.
    async fn run(&self, opened: Opened, request: CompareRequest) -> ServiceResult<Compared> {
        let Opened { position, mut theirs, own, tables } = opened;
        let end = |rows, next| Ok(Compared { position, rows, next });
        let until = machine::now() + request.time.min(LONGEST) * 2;
        let mut rows = 0;
        let mut place = request.from;
        let mut ended = pin!(own.ended());
        loop {
            let sums = tokio::select! {
                biased;
                sums = theirs.next() => sums.transpose()?,
                () = &mut ended => return Err(own.check().err().unwrap_or_else(|| later("ended".into()))),
            };
            let since = machine::now();
            let next = place.as_ref().map_or(TableId(0), begins);
            match sums {
                Some(Sums::Part(part)) => {
                    let table = part.to.table;
                    // Each that is there on one side must be on the other.
                    let first = tables.from(next).map(|table| table.id).next().unwrap_or(table);
                    let made = tables.get(table).filter(|own| own.schema == part.to.schema);
                    let Some(made) = made.filter(|_| first >= table) else {
                        return end(rows, otherwise(first.min(table)));
                    };
                    if let Some(difference) = look(&own, |connection| self.differ(connection, made, &part))? {
                        return end(rows, ComparedNext::Differs(difference));
                    }
                    rows += part.rows;
                    place = Some(part.to);
                }
                Some(Sums::End) => {
                    let more = tables.from(next).next();
                    return end(rows, more.map_or(ComparedNext::End, |table| otherwise(table.id)));
                }
                Some(Sums::Open(_)) => return Err(later("a replica's sums begin twice".into())),
                None => break,
            }
            if since >= until {
                break;
            }
            rest(since).await;
        }
        match place {
            Some(place) => end(rows, ComparedNext::From(place)),
            None => Err(later("a replica's sums have no part".into())),
        }
    }

    fn differ(
        &self,
        connection: &rusqlite::Connection,
        table: &Summed,
        part: &SumsPart,
    ) -> ServiceResult<Option<Difference>> {
        let is_meant = |id: Option<KeyspaceId>| {
            id.is_none_or(|KeyspaceId(id)| match self.target.contains(&id) {
                true => self.source.contains(&id),
                // It is nobody's here. One source finds it.
                false => self.flow.references,
            })
        };
        let until = Until::Key(part.to.key.as_deref());
        let own = table.add(connection, part.after.as_deref(), until, is_meant)?;
        let is_same = (own.rows, own.sum) == (part.rows, part.sum);
        Ok((!is_same).then(|| Difference {
            table: table.id,
            after: part.after.clone(),
            to: part.to.key.clone(),
            rows: Some((part.rows, own.rows)),
        }))
    }
}

/// The first table that isn't done.
fn begins(place: &SumsPlace) -> TableId {
    TableId(place.table.0 + u32::from(place.key.is_none()))
}

/// A table isn't there on one side, or is made otherwise.
fn otherwise(table: TableId) -> ComparedNext {
    ComparedNext::Differs(Difference { table, after: None, to: None, rows: None })
}

fn later(message: String) -> WireError {
    WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
}
