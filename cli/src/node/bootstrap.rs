//! Founding a cluster: the plan, and taking part in it.
//!
//! In come `init` and `found`, out goes a node that belongs to a cluster. The plan is on disk before anyone hears of
//! it, and stays until every founder has taken part, so that whoever repeats `init` goes on with the same one.

use super::Core;
use crate::failure::Failure;
use crate::identity::{Address, Directory, Member, Plan};
use proto::services::{
    BootstrapService, BoxFuture, Founding, Identity, InitRequest, Introduction, ServiceResult,
};
use proto::topology::Node;
use proto::{ClusterId, NodeId, Retry, SqlState, WireError};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often everyone is asked whom they know before the founders are picked: enough for a chain of acquaintances.
const ROUNDS: usize = 4;
/// How long a founder may take to take part.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
/// How many replicas a shard has where nobody says, and there are as many nodes.
const REPLICAS: u32 = 3;
const SHARDS: u32 = 2;

/// How a node becomes part of a cluster.
pub struct Bootstrap(pub(super) Weak<Core>);

impl Bootstrap {
    fn core(&self) -> Result<Arc<Core>, WireError> {
        let gone = || WireError::new(SqlState::ADMIN_SHUTDOWN, "the node is shutting down");
        self.0.upgrade().ok_or_else(gone)
    }
}

impl BootstrapService for Bootstrap {
    fn identity(&self, caller: Option<Identity>) -> BoxFuture<'_, ServiceResult<Introduction>> {
        Box::pin(async move {
            let core = self.core()?;
            if let Some(caller) = caller {
                core.learn(&caller);
            }
            Ok(core.introduction())
        })
    }

    fn found(&self, founding: Founding) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let core = self.core()?;
            // Half of it must not be done because nobody waits for the answer any more.
            finish(tokio::spawn(async move { core.found(founding).await })).await
        })
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, ServiceResult<Founding>> {
        Box::pin(async move {
            let core = self.core()?;
            finish(tokio::spawn(async move { core.init(request).await })).await
        })
    }
}

async fn finish<T>(task: tokio::task::JoinHandle<ServiceResult<T>>) -> ServiceResult<T> {
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "taking part in a cluster has failed");
        Err(WireError::internal("the node met a bug while it was to take part in a cluster"))
    })
}

fn refused(message: String) -> WireError {
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

impl From<Failure> for WireError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Cluster(error) => error,
            other => WireError::new(SqlState::IO_ERROR, other.to_string()),
        }
    }
}

impl Core {
    async fn found(self: &Arc<Self>, founding: Founding) -> ServiceResult<()> {
        let Ok(mut directory) = self.directory.try_lock() else {
            return Err(
                refused("the node is just becoming part of a cluster".into()).with_retry(Retry::Later)
            );
        };
        if let Some(plan) = &directory.record().plan
            && plan.cluster != founding.cluster
        {
            return Err(refused(format!("the node at {} founds a cluster itself", self.settings.address)));
        }
        self.take_part(&mut directory, &founding).await
    }

    async fn take_part(
        self: &Arc<Self>,
        directory: &mut Directory,
        founding: &Founding,
    ) -> ServiceResult<()> {
        if let Some(member) = &directory.record().member {
            if (member.cluster, member.node) == (founding.cluster, founding.node) {
                return Ok(());
            }
            return Err(refused(format!(
                "the node at {} is node {} of cluster {} already",
                self.settings.address, member.node, member.cluster
            )));
        }
        Ok(self.enter(directory, Member::from(founding)).await?)
    }

    async fn init(self: &Arc<Self>, request: InitRequest) -> ServiceResult<Founding> {
        let mut directory = self.directory.lock().await;
        let record = directory.record();
        let plan = match (&record.plan, &record.member) {
            (Some(plan), _) => {
                check_same(plan, request)?;
                plan.clone()
            }
            (None, Some(member)) => {
                return Err(refused(format!(
                    "the node at {} is node {} of cluster {} already",
                    self.settings.address, member.node, member.cluster
                ))
                .with_hint("A cluster is made once; further nodes become part of it by --join."));
            }
            (None, None) => {
                let plan = self.plan(request).await?;
                directory.change(|record| record.plan = Some(plan.clone()))?;
                plan
            }
        };
        self.carry_out(&mut directory, &plan).await
    }

    /// Goes on with what a crash interrupted.
    pub(super) async fn go_on_founding(self: &Arc<Self>) {
        let mut directory = self.directory.lock().await;
        if let Some(plan) = directory.record().plan.clone()
            && let Err(error) = self.carry_out(&mut directory, &plan).await
        {
            tracing::warn!(%error, "founding the cluster goes on");
        }
    }

    async fn carry_out(self: &Arc<Self>, directory: &mut Directory, plan: &Plan) -> ServiceResult<Founding> {
        let until = Instant::now() + PATIENCE;
        let (here, others) = plan.coordinators.split_first().expect("this node is the first founder");
        for founder in others {
            let client = self.meeting.client(&founder.address);
            loop {
                let Err(error) = client.found(plan.founding(founder.node)).await else { break };
                if error.retry == Retry::Never || Instant::now() > until {
                    return Err(refused(format!(
                        "node {} at {} doesn't take part",
                        founder.node, founder.address
                    ))
                    .with_detail(error.to_string())
                    .with_hint(
                        "Once it can, shoal init goes on where it stands. To begin anew, empty the founders' \
                             data directories.",
                    ));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        let founding = plan.founding(here.node);
        self.take_part(directory, &founding).await?;
        directory.change(|record| record.plan = None)?;
        Ok(founding)
    }

    /// Picks the founders among everyone that this node can reach.
    async fn plan(&self, request: InitRequest) -> ServiceResult<Plan> {
        let me = self.identity();
        if !me.roles.coordinator {
            return Err(refused(format!("the node at {} isn't to be a coordinator", me.address))
                .with_hint("Run shoal init at a node with the role coordinator."));
        }
        for _ in 0..ROUNDS {
            self.meeting.ask(&me, []).await;
        }
        let unmet = self.meeting.unmet();
        if !unmet.is_empty() {
            return Err(refused(format!("nobody answers at {}", unmet.join(", ")))
                .with_hint("Start these nodes first, or start the others without naming them in --join."));
        }
        let mut everyone: BTreeMap<String, Identity> =
            self.meeting.known().into_iter().map(|identity| (identity.address.clone(), identity)).collect();
        if let Some((identity, (cluster, node))) = everyone.values().find_map(|i| Some((i, i.member?))) {
            let message =
                format!("the node at {} is node {node} of cluster {cluster} already", identity.address);
            return Err(refused(message)
                .with_hint("This node becomes part of that cluster by itself; there is nothing to init."));
        }
        everyone.remove(&me.address);
        let mut everyone: Vec<Identity> = everyone.into_values().collect();
        everyone.insert(0, me);
        choose(&everyone, request)
    }
}

/// The plan for a cluster of these nodes; the first of them founds it.
fn choose(everyone: &[Identity], request: InitRequest) -> ServiceResult<Plan> {
    let willing: Vec<&Identity> = everyone.iter().filter(|identity| identity.roles.coordinator).collect();
    let shardnodes = everyone.iter().filter(|identity| identity.roles.shardnode).count() as u32;
    let count = match request.coordinators {
        Some(count @ (1 | 3 | 5)) => count as usize,
        Some(other) => {
            let message = format!("a cluster has 1, 3 or 5 coordinators, not {other}");
            return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        None => [5, 3, 1].into_iter().find(|count| *count <= willing.len()).unwrap_or(1),
    };
    let addresses =
        || everyone.iter().map(|identity| identity.address.as_str()).collect::<Vec<_>>().join(", ");
    if count > willing.len() {
        let message = format!(
            "{count} coordinators need as many nodes that may be one, and there are {}",
            willing.len()
        );
        return Err(refused(message).with_detail(format!("These nodes were found: {}.", addresses())));
    }
    let replicas = request.replicas.unwrap_or(REPLICAS.min(shardnodes));
    if replicas == 0 || replicas > shardnodes {
        let message = format!("{replicas} replicas need as many shardnodes, and there are {shardnodes}");
        return Err(refused(message).with_detail(format!("These nodes were found: {}.", addresses())));
    }
    let coordinators = (1..).zip(&willing[..count]).map(|(number, identity)| {
        let Identity { member: _, address, roles } = (*identity).clone();
        Address::from(&Node { id: NodeId(number), address, roles, zone: String::new(), draining: false })
    });
    Ok(Plan {
        cluster: ClusterId(rand::random::<u128>().max(1)),
        coordinators: coordinators.collect(),
        nodes: shardnodes,
        shards: request.shards.unwrap_or(SHARDS),
        replicas,
    })
}

/// A repeated init must not silently make something else than it says.
fn check_same(plan: &Plan, request: InitRequest) -> ServiceResult<()> {
    let founders = plan.coordinators.len() as u32;
    for (name, wanted, planned) in [
        ("shards", request.shards, plan.shards),
        ("replicas", request.replicas, plan.replicas),
        ("coordinators", request.coordinators, founders),
    ] {
        if wanted.is_some_and(|wanted| wanted != planned) {
            return Err(refused(format!("this cluster is being made already, with --{name} {planned}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::Roles;

    fn nodes(coordinators: usize, others: usize) -> Vec<Identity> {
        let roles = |coordinator| Roles { router: true, shardnode: true, coordinator };
        (0..coordinators + others)
            .map(|i| Identity { member: None, address: format!("h{i}:1"), roles: roles(i < coordinators) })
            .collect()
    }

    fn plan(coordinators: usize, others: usize, request: InitRequest) -> Result<(usize, u32, u32), String> {
        let plan = choose(&nodes(coordinators, others), request).map_err(|error| error.message)?;
        assert_eq!(plan.coordinators[0].address, "h0:1");
        assert!((1..).zip(&plan.coordinators).all(|(n, c)| c.node == NodeId(n)));
        Ok((plan.coordinators.len(), plan.nodes, plan.replicas))
    }

    #[test]
    fn founders_are_the_largest_odd_group_that_fits() {
        let open = InitRequest::default();
        assert_eq!(plan(1, 0, open), Ok((1, 1, 1)));
        assert_eq!(plan(2, 0, open), Ok((1, 2, 2)));
        assert_eq!(plan(3, 0, open), Ok((3, 3, 3)));
        assert_eq!(plan(4, 3, open), Ok((3, 7, 3)));
        assert_eq!(plan(9, 0, open), Ok((5, 9, 3)));
        assert_eq!(plan(9, 0, InitRequest { coordinators: Some(1), ..open }), Ok((1, 9, 3)));
        let too_many = plan(2, 5, InitRequest { coordinators: Some(3), ..open }).unwrap_err();
        assert!(too_many.contains("there are 2"), "{too_many}");
        assert!(plan(9, 0, InitRequest { coordinators: Some(2), ..open }).is_err());
        assert_eq!(plan(5, 0, InitRequest { replicas: Some(5), ..open }), Ok((5, 5, 5)));
        assert!(plan(3, 0, InitRequest { replicas: Some(4), ..open }).unwrap_err().contains("there are 3"));
    }

    #[test]
    fn a_repeated_init_says_the_same_or_nothing() {
        let plan = choose(&nodes(3, 0), InitRequest { shards: Some(4), ..InitRequest::default() }).unwrap();
        check_same(&plan, InitRequest::default()).unwrap();
        check_same(&plan, InitRequest { shards: Some(4), replicas: Some(3), coordinators: Some(3) }).unwrap();
        let error = check_same(&plan, InitRequest { shards: Some(8), ..InitRequest::default() }).unwrap_err();
        assert!(error.message.contains("--shards 4"), "{error}");
    }
}
