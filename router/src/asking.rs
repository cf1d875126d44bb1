//! One shard's leader, asked until it answers.
//!
//! Whoever asks a shard for something keeps an [`Asked`]: it names the node to ask now, notices when another has come to
//! lead meanwhile, and says after an error whether and when to ask again. What may be repeated is the caller's
//! knowledge. Once the cluster has others in the shard's place it isn't asked any more, unless for what it keeps of before;
//! what has become of a write that it may have done its heirs know ([`outcome`]).

use crate::cluster::Cluster;
use crate::gtid;
use crate::retry::Backoff;
use proto::services::{FragmentResponse, ShardService};
use proto::topology::Topology;
use proto::{Epoch, GroupId, NodeId, RequestId, Retry, SchemaVersion, ShardId, SqlState, Term, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a node that doesn't lead any more may take to answer what it was asked while it did.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Nobody to ask.
pub fn no_leader() -> WireError {
    let message = "the shard has no leader that this router can reach";
    WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
}

/// No word from whoever was asked.
pub fn no_answer() -> WireError {
    WireError::new(SqlState::CANNOT_CONNECT_NOW, "the shard did not answer").with_retry(Retry::Unknown)
}

/// Others serve in the place of the shard, by a topology of this epoch.
pub fn replaced(shard: ShardId, epoch: Epoch) -> WireError {
    let message = format!("shard {shard} doesn't serve any more");
    WireError::new(SqlState::SERIALIZATION_FAILURE, message).with_retry(Retry::StaleEpoch(epoch))
}

/// Whether an error says that nothing was executed.
pub fn is_unexecuted(error: &WireError) -> bool {
    match error.retry {
        Retry::NotLeader(_)
        | Retry::StaleEpoch(_)
        | Retry::StaleSchema(_)
        | Retry::Later
        | Retry::Moved
        | Retry::Behind(_) => true,
        Retry::Never | Retry::Unknown => false,
    }
}

/// Whom to ask next.
enum Next {
    /// At once, this node.
    Node(NodeId),
    /// After a pause, this node, or whoever leads then.
    Pause(Option<NodeId>),
}

/// The attempts of one request.
pub struct Asked<'a> {
    cluster: &'a Cluster,
    topology: &'a Topology,
    shard: ShardId,
    /// What the next request says that it was routed by.
    pub epoch: Epoch,
    /// The pauses between attempts, and their end.
    pub backoff: Backoff,
    hint: Option<NodeId>,
    /// Who was asked last, in which group, and the term of its leader as it was known then.
    asked: Option<NodeId>,
    group: GroupId,
    term: Term,
    attempts: usize,
    /// Whether it is asked for what it keeps of before, whoever serves in its place.
    keeps: bool,
    news: Option<watch::Receiver<u64>>,
}

impl<'a> Asked<'a> {
    /// Nobody has been asked yet. `topology` has the shard, unless the cluster has a newer one.
    pub fn new(cluster: &'a Cluster, topology: &'a Topology, shard: ShardId, until: Instant) -> Self {
        Self {
            cluster,
            topology,
            shard,
            epoch: topology.epoch,
            backoff: Backoff::until(until),
            hint: None,
            asked: None,
            group: GroupId(0),
            term: Term(0),
            attempts: 0,
            keeps: false,
            news: None,
        }
    }

    /// The same, of a shard that is asked for what it keeps: others may serve in its place by now.
    pub fn kept(self) -> Self {
        Self { keeps: true, ..self }
    }

    /// Whether others serve in the shard's place, in a topology later than the one that it was routed by.
    fn is_replaced(&self, newest: &Topology) -> bool {
        !self.keeps && newest.epoch > self.topology.epoch && !newest.serves(self.shard)
    }

    /// The service of the node that is asked now.
    pub fn service(&mut self) -> Result<Option<Arc<dyn ShardService>>, WireError> {
        let cluster = self.cluster;
        // Leaders change more often than plans: the newest are asked, the plan's own topology says of which group.
        let newest = cluster.load();
        if self.is_replaced(&newest.topology) {
            return Err(replaced(self.shard, newest.topology.epoch));
        }
        let shard = self.topology.shards.get(&self.shard).or_else(|| newest.topology.shards.get(&self.shard));
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

    /// Resolves when another node than the one that was asked has come to lead, or other shards serve: a node that is paused
    /// or cut off may never answer. One that just hands over does, and gets a moment for it.
    pub async fn superseded(&self) {
        let mut news = self.cluster.news();
        loop {
            let state = self.cluster.snapshot();
            let leaders = &state.leaders;
            let has_new_leader =
                leaders.term(self.group) > self.term && leaders.get(self.group) != self.asked;
            if has_new_leader || self.is_replaced(&state.topology) {
                return tokio::time::sleep(LAST_WORDS).await;
            }
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Prepares for asking again after this error; the error itself if that can't help.
    pub async fn again(&mut self, error: WireError) -> Result<(), WireError> {
        self.attempts += 1;
        match self.next(&error) {
            None => return Err(self.named(error)),
            Some(Next::Node(node)) => self.hint = Some(node),
            Some(Next::Pause(hint)) => {
                self.hint = hint;
                let cluster = self.cluster;
                let news = self.news.get_or_insert_with(|| cluster.news());
                tokio::select! {
                    biased;
                    more = self.backoff.pause() => if !more { return Err(self.named(error)) },
                    // Perhaps of who leads now.
                    _ = news.changed() => {}
                }
            }
        }
        Ok(())
    }

    /// An error about a position, as clients know it.
    pub fn named(&self, error: WireError) -> WireError {
        if error.sqlstate != SqlState::POSITION_NOT_REACHED {
            return error;
        }
        let source = self.topology.gtid_source(self.shard);
        let source = source.or_else(|| self.cluster.load().topology.gtid_source(self.shard));
        match source {
            Some(source) => gtid::not_reached(error, &source.to_string()),
            None => error,
        }
    }

    fn next(&self, error: &WireError) -> Option<Next> {
        match error.retry {
            Retry::NotLeader(Some(node)) if self.hint != Some(node) && self.attempts <= 2 => {
                if let Some(shard) = self.topology.shards.get(&self.shard) {
                    self.cluster.correct_leader(shard.group, node);
                }
                Some(Next::Node(node))
            }
            Retry::NotLeader(Some(node)) if self.hint != Some(node) => Some(Next::Pause(Some(node))),
            // It leads: nobody else is further.
            Retry::Behind(_) => Some(Next::Pause(self.asked)),
            Retry::NotLeader(_) | Retry::Later | Retry::Unknown => Some(Next::Pause(None)),
            Retry::Never | Retry::StaleEpoch(_) | Retry::StaleSchema(_) | Retry::Moved => None,
        }
    }
}

/// What a write or a commit was told that a shard may have done in whose place others serve now. `None`: it wasn't, and never
/// will be. An error leaves it unknown.
pub async fn outcome(
    cluster: &Cluster,
    shard: ShardId,
    request: RequestId,
    until: Instant,
) -> Result<Option<FragmentResponse>, WireError> {
    let mut state = cluster.snapshot();
    let mut backoff = Backoff::until(until);
    loop {
        let topology = &state.topology;
        // Every heir knows all that the shard had answered.
        let heir = topology.heirs(shard).first().copied().filter(|_| !topology.serves(shard));
        let mut asked = Asked::new(cluster, topology, heir.ok_or_else(no_answer)?, until);
        let epoch = loop {
            let answer = match asked.service() {
                Ok(Some(service)) => tokio::select! {
                    biased;
                    answer = service.outcome(asked.shard, request) => answer,
                    () = asked.superseded() => Err(no_answer()),
                    () = tokio::time::sleep_until(until.into()) => return Err(no_answer()),
                },
                Ok(None) => Err(no_leader()),
                Err(error) => Err(error),
            };
            match answer {
                Ok(told) => return Ok(told),
                Err(error) if let Retry::StaleEpoch(epoch) = error.retry => break epoch,
                Err(error) => asked.again(error).await?,
            }
        };
        // Its node may have heard of no later epoch than this router, and has its say again.
        if epoch <= topology.epoch && !backoff.pause().await {
            return Err(no_answer());
        }
        state = cluster.wait_for(SchemaVersion(0), epoch, until).await?;
    }
}
