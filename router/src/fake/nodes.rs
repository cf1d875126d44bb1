//! The fake cluster's nodes. What one of them has they all have; what befalls requests, and what answers say of the log, can
//! be each one's own.

use super::{Fake, Fault};
use parking_lot::Mutex;
use proto::services::*;
use proto::topology::{Leaders, Node, Roles};
use proto::{GroupId, LogIndex, NodeId, RequestId, RouterIncarnation, ShardId, Term, WireError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What nodes do by themselves.
#[derive(Default)]
pub struct Nodes {
    /// What befalls the next requests to a node, in order.
    pub faults: Mutex<BTreeMap<NodeId, VecDeque<Fault>>>,
    /// What a node's answers say of the log, and how long it had to wait for that.
    pub positions: Mutex<BTreeMap<NodeId, (LogIndex, Duration)>>,
    /// The nodes that are in the router's process.
    pub here: Mutex<BTreeSet<NodeId>>,
    /// What the nodes that answer say of their replicas.
    pub statuses: Mutex<BTreeMap<NodeId, Vec<ReplicaStatus>>>,
    /// Every request so far, and which node it went to.
    pub asked: Mutex<Vec<(NodeId, FragmentRequest)>>,
}

/// A node.
pub fn node(id: u64) -> (NodeId, Node) {
    let address = format!("node:{id}");
    (NodeId(id), Node { id: NodeId(id), address, roles: Roles::ALL, zone: String::new(), draining: false })
}

impl Fake {
    /// The shards' replicas are on these nodes from now on, and the first leads.
    pub fn place(&self, nodes: &[u64], term: u64) {
        self.reshape(|topology| {
            topology.nodes = nodes.iter().map(|id| node(*id)).collect();
            for shard in topology.shards.values_mut() {
                shard.replicas = nodes.iter().map(|id| NodeId(*id)).collect();
            }
        });
        self.state.send_modify(|state| {
            let mut leaders = Leaders::clone(&state.leaders);
            for shard in state.topology.shards.values() {
                leaders.learn(shard.group, Term(term), NodeId(nodes[0]));
            }
            state.leaders = leaders.into();
        });
    }

    /// The state as it is.
    pub fn state(&self) -> ClusterState {
        self.state.borrow().clone()
    }

    /// The next requests to a node come to this.
    pub fn befall(&self, node: u64, faults: impl IntoIterator<Item = Fault>) {
        self.nodes.faults.lock().entry(NodeId(node)).or_default().extend(faults);
    }

    /// Which nodes were asked since the last time, in order.
    pub fn asked(&self) -> Vec<u64> {
        self.nodes.asked.lock().drain(..).map(|(node, _)| node.0).collect()
    }
}

/// The services of the fake's nodes.
pub struct FakePeers(pub Arc<Fake>);

impl Peers for FakePeers {
    fn shard_service(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        Some(Arc::new(FakeNode { node, fake: self.0.clone() }))
    }

    fn replica_service(&self, node: NodeId) -> Option<Arc<dyn ReplicaService>> {
        Some(Arc::new(FakeNode { node, fake: self.0.clone() }))
    }

    fn is_here(&self, node: NodeId) -> bool {
        self.0.nodes.here.lock().contains(&node)
    }

    fn coordinators(&self) -> Vec<(NodeId, Arc<dyn CoordinatorService>)> {
        vec![(NodeId(1), self.0.clone())]
    }
}

struct FakeNode {
    node: NodeId,
    fake: Arc<Fake>,
}

impl ShardService for FakeNode {
    fn execute(&self, request: FragmentRequest) -> BoxFuture<'_, ServiceResult<FragmentResponse>> {
        Box::pin(async move {
            let nodes = &self.fake.nodes;
            nodes.asked.lock().push((self.node, request.clone()));
            let fault = nodes.faults.lock().get_mut(&self.node).and_then(VecDeque::pop_front);
            match fault {
                None => {}
                Some(Fault::Before(error) | Fault::After(error)) => return Err(error),
                Some(Fault::Hang | Fault::Then(..)) => std::future::pending().await,
            }
            let mut response = self.fake.execute(request).await?;
            if let Some((position, waited)) = nodes.positions.lock().get(&self.node).copied() {
                (response.position, response.waited) = (position, waited);
            }
            Ok(response)
        })
    }

    fn apply_schema(&self, request: SchemaRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        self.fake.apply_schema(request)
    }

    fn transact(&self, request: BranchRequest) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        self.fake.transact(request)
    }

    fn keep_alive(&self, router: RouterIncarnation) -> BoxFuture<'_, ServiceResult<()>> {
        self.fake.keep_alive(router)
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, ServiceResult<Vec<Unsettled>>> {
        self.fake.cut(request)
    }

    fn outcome(
        &self,
        shard: ShardId,
        request: RequestId,
    ) -> BoxFuture<'_, ServiceResult<Option<FragmentResponse>>> {
        self.fake.outcome(shard, request)
    }

    fn branches(&self, shard: ShardId) -> BoxFuture<'_, ServiceResult<Vec<BranchStatus>>> {
        self.fake.branches(shard)
    }

    fn hand_over(&self, request: HandOver) -> BoxFuture<'_, ServiceResult<HandedOver>> {
        self.fake.hand_over(request)
    }

    fn tally(&self, request: TallyRequest) -> BoxFuture<'_, ServiceResult<Tally>> {
        self.fake.tally(request)
    }

    fn build(&self, request: BuildRequest) -> BoxFuture<'_, ServiceResult<Built>> {
        self.fake.build(request)
    }

    fn sums(&self, request: SumsRequest) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Sums>>>> {
        self.fake.sums(request)
    }

    fn compare(&self, request: CompareRequest) -> BoxFuture<'_, ServiceResult<Compared>> {
        self.fake.compare(request)
    }

    fn changes(
        &self,
        request: ChangesRequest,
    ) -> BoxFuture<'_, ServiceResult<BoxStream<ServiceResult<Changes>>>> {
        self.fake.changes(request)
    }
}

impl ReplicaService for FakeNode {
    fn replicas(&self) -> BoxFuture<'_, ServiceResult<Vec<ReplicaStatus>>> {
        Box::pin(async move {
            let said = self.fake.nodes.statuses.lock().get(&self.node).cloned();
            match said {
                Some(said) => Ok(said),
                None => std::future::pending().await,
            }
        })
    }

    fn change_members(
        &self,
        _: GroupId,
        _: Vec<NodeId>,
        _: Option<NodeId>,
        _: Duration,
    ) -> BoxFuture<'_, ServiceResult<Members>> {
        Box::pin(async { Err(WireError::unsupported("members of a fake group")) })
    }

    fn transfer_leader(&self, _: GroupId, _: NodeId, _: Duration) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async { Err(WireError::unsupported("handing a fake group over")) })
    }

    fn check(&self, _: GroupId, _: Duration) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async { Err(WireError::unsupported("a check of a fake group")) })
    }

    fn hold_log(
        &self,
        _: GroupId,
        _: String,
        _: Option<LogIndex>,
        _: Duration,
    ) -> BoxFuture<'_, ServiceResult<LogIndex>> {
        Box::pin(async { Err(WireError::unsupported("holding a fake group's log")) })
    }
}
