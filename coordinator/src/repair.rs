//! What to do by itself about replicas that are lost.
//!
//! Pure: the topology, what is known of the nodes, and the time go in, wishes come out. The replicas of a node that is
//! silent for long go to another that has none of the shard; a replica that is lost on a live node is made anew there.
//! Nothing is begun without a majority that is well: the rest of a group can't change its members either.

use crate::config::Config;
use crate::vitals::{Ailment, Vitals};
use proto::services::{Alarm, ReplicaAction};
use proto::topology::{Node, Topology};
use proto::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// How things are.
pub(crate) struct Scene<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) vitals: &'a Vitals,
    pub(crate) config: &'a Config,
    pub(crate) now: Instant,
}

/// Something that should happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) group: GroupId,
    pub(crate) action: ReplicaAction,
    /// Why, for people.
    pub(crate) cause: String,
}

/// Something that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    /// [`Self::SILENT`], or an [`Ailment`]'s.
    pub(crate) kind: &'static str,
    /// What it is, for people.
    pub(crate) message: String,
}

impl Trouble {
    /// The replica's node is silent.
    const SILENT: &'static str = "silent";
}

impl From<Trouble> for Alarm {
    fn from(Trouble { group, node, message, .. }: Trouble) -> Self {
        Alarm { group, node, message }
    }
}

impl<'a> Scene<'a> {
    /// Every group with the nodes that hold it: the coordinator's own, and those of formed shards.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (GroupId, &'a [NodeId])> {
        groups(self.topology)
    }

    /// How many of these replicas are well.
    pub(crate) fn well(&self, group: GroupId, members: &[NodeId]) -> usize {
        let patience = self.config.silent_after;
        members.iter().filter(|node| self.vitals.is_well(group, **node, patience, self.now)).count()
    }

    /// What should be begun now. `busy` are groups that can't be touched at the moment.
    pub(crate) fn repairs(&self, busy: &BTreeSet<GroupId>, most: usize) -> Vec<Repair> {
        let mut load = self.load();
        let mut repairs = Vec::new();
        for (group, members) in self.groups() {
            if repairs.len() >= most {
                break;
            }
            let majority = members.len() / 2 + 1;
            if busy.contains(&group) || members.len() < 2 || self.well(group, members) < majority {
                continue;
            }
            if let Some(repair) = self.repair(group, members, &mut load) {
                repairs.push(repair);
            }
        }
        repairs
    }

    fn repair(
        &self,
        group: GroupId,
        members: &[NodeId],
        load: &mut BTreeMap<NodeId, usize>,
    ) -> Option<Repair> {
        for node in members {
            let silence = self.vitals.silence(*node, self.now);
            if silence >= self.config.replace_after {
                let Some(to) = self.free(group, members, load) else { continue };
                *load.entry(to).or_default() += 1;
                let action = ReplicaAction::Move { from: *node, to };
                let cause = format!("node {node} has been silent for {} seconds", silence.as_secs());
                return Some(Repair { group, action, cause });
            }
            let Some((ailment, since)) = self.vitals.ailment(group, *node) else { continue };
            let lost = matches!(ailment, Ailment::Gone | Ailment::Diverged(_));
            let reachable =
                self.vitals.heard(*node, self.now).is_some_and(|ago| ago < self.config.silent_after);
            if lost && reachable && self.now.saturating_duration_since(since) >= self.config.rebuild_after {
                let cause = format!("the replica on node {node}: {ailment}");
                return Some(Repair { group, action: ReplicaAction::Rebuild(*node), cause });
            }
        }
        None
    }

    /// The node with the fewest replicas of those that could take one more of this group's.
    pub(crate) fn free(
        &self,
        group: GroupId,
        members: &[NodeId],
        load: &BTreeMap<NodeId, usize>,
    ) -> Option<NodeId> {
        let could = |node: &&Node| {
            may_hold(group, node)
                && !node.draining
                && !members.contains(&node.id)
                && self.vitals.heard(node.id, self.now).is_some_and(|ago| ago < self.config.silent_after)
                // What it still has of the group must go first.
                && self.vitals.status(group, node.id).is_none()
        };
        let free = self.topology.nodes.values().filter(could);
        free.map(|node| node.id).min_by_key(|node| (load.get(node).copied().unwrap_or(0), *node))
    }

    /// How many replicas each node has, those that it is getting among them.
    pub(crate) fn load(&self) -> BTreeMap<NodeId, usize> {
        let mut load = BTreeMap::new();
        let placed = self.topology.shards.values().flat_map(|shard| &shard.replicas);
        for node in placed.chain(self.topology.joining.iter().map(|(_, node)| node)) {
            *load.entry(*node).or_default() += 1;
        }
        load
    }

    /// What somebody should look at.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for (group, members) in self.groups() {
            for node in members {
                let silence = self.vitals.silence(*node, self.now);
                if silence >= self.config.silent_after {
                    let message = format!("its node has been silent for {} seconds", silence.as_secs());
                    troubles.push(Trouble { group, node: *node, kind: Trouble::SILENT, message });
                } else if let Some((ailment, _)) = self.vitals.ailment(group, *node) {
                    let (kind, message) = (ailment.kind(), ailment.to_string());
                    troubles.push(Trouble { group, node: *node, kind, message });
                }
            }
        }
        troubles
    }
}

/// Every group with the nodes that hold it: the coordinator's own, and those of formed shards.
pub(crate) fn groups(topology: &Topology) -> impl Iterator<Item = (GroupId, &[NodeId])> {
    let formed = topology.shards.values().filter(|shard| shard.formed);
    let shards = formed.map(|shard| (shard.group, shard.replicas.as_slice()));
    std::iter::once((GroupId::COORDINATOR, topology.coordinators.as_slice())).chain(shards)
}

/// Whether a node's role lets it hold a replica of the group.
pub(crate) fn may_hold(group: GroupId, node: &Node) -> bool {
    if group == GroupId::COORDINATOR { node.roles.coordinator } else { node.roles.shardnode }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::services::ReplicaStatus;
    use proto::topology::{Roles, Shard};
    use proto::{Incarnation, KeyRange, KeyspaceNumber, LogIndex, ShardId};
    use std::time::Duration;

    const START: u64 = 1000;

    struct Stage {
        topology: Topology,
        vitals: Vitals,
        config: Config,
        zero: Instant,
    }

    impl Stage {
        /// So many nodes, and shards of groups 2.. on these; all report at the start and every second after.
        fn new(nodes: u64, shards: &[&[u64]]) -> Stage {
            let zero = Instant::now();
            let ids: Vec<_> = (1..=nodes).map(NodeId).collect();
            let mut topology = Topology { coordinators: vec![NodeId(1)], ..Topology::default() };
            for id in &ids {
                let node = Node {
                    id: *id,
                    address: String::new(),
                    roles: Roles::ALL,
                    zone: String::new(),
                    draining: false,
                };
                topology.nodes.insert(*id, node);
            }
            for (id, replicas) in (1..).zip(shards) {
                let shard = Shard {
                    id: ShardId(id),
                    keyspace: KeyspaceNumber(1),
                    range: KeyRange::full(),
                    incarnation: Incarnation(1),
                    group: GroupId(id + 1),
                    replicas: replicas.iter().copied().map(NodeId).collect(),
                    formed: true,
                    first: LogIndex(0),
                };
                topology.shards.insert(shard.id, shard);
            }
            let config = Config::new(NodeId(1), vec![NodeId(1)]);
            let mut stage = Stage { topology, vitals: Vitals::new(zero), config, zero };
            stage.vitals.begin(stage.at(START));
            stage.report(&(1..=nodes).collect::<Vec<_>>(), START, None);
            stage
        }

        fn at(&self, second: u64) -> Instant {
            self.zero + Duration::from_secs(second)
        }

        fn report(&mut self, nodes: &[u64], second: u64, stopped: Option<(u64, &str)>) {
            for node in nodes.iter().copied().map(NodeId) {
                let held = groups(&self.topology).filter(|(_, members)| members.contains(&node));
                let statuses: Vec<_> = held
                    .map(|(group, _)| ReplicaStatus {
                        stopped: stopped.filter(|(n, _)| *n == node.0).map(|(_, why)| why.to_owned()),
                        ..ReplicaStatus::new(node, group)
                    })
                    .collect();
                self.vitals.report(node, &statuses, Vec::new(), self.at(second));
            }
        }

        /// What is to be done after these have reported every second.
        fn repairs(&mut self, nodes: &[u64], until: u64, stopped: Option<(u64, &str)>) -> Vec<Repair> {
            for second in START..=until {
                self.report(nodes, second, stopped);
                let groups: Vec<_> = groups(&self.topology).map(|(g, members)| (g, members, None)).collect();
                self.vitals.look(groups, self.zero + Duration::from_secs(second));
            }
            let now = self.at(until);
            let Stage { topology, vitals, config, .. } = self;
            Scene { topology, vitals, config, now }.repairs(&BTreeSet::new(), 2)
        }
    }

    fn moved(from: u64, to: u64) -> ReplicaAction {
        ReplicaAction::Move { from: NodeId(from), to: NodeId(to) }
    }

    #[test]
    fn a_silent_nodes_replicas_go_to_free_nodes_a_few_at_a_time() {
        let shards: [&[u64]; 4] = [&[1, 2, 3], &[2, 3, 4], &[3, 4, 5], &[1, 2, 5]];
        let mut stage = Stage::new(5, &shards);
        assert_eq!(stage.repairs(&[1, 2, 4, 5], START + 299, None), []);
        let repairs = stage.repairs(&[1, 2, 4, 5], START + 300, None);
        let actions: Vec<_> = repairs.iter().map(|repair| (repair.group.0, repair.action)).collect();
        // Nodes 1, 4 and 5 had two replicas each; the first repair makes it three on 4.
        assert_eq!(actions, [(2, moved(3, 4)), (3, moved(3, 1))]);
        assert_eq!(repairs[0].cause, "node 3 has been silent for 300 seconds");
    }

    #[test]
    fn nothing_is_done_without_a_free_node_or_a_majority() {
        let mut stage = Stage::new(3, &[&[1, 2, 3]]);
        assert_eq!(stage.repairs(&[1, 2], START + 400, None), []);
        let mut stage = Stage::new(5, &[&[1, 2, 3]]);
        assert_eq!(stage.repairs(&[1, 4, 5], START + 400, None), []);
        let mut stage = Stage::new(2, &[&[2]]);
        assert_eq!(stage.repairs(&[1], START + 400, None), [], "there is nobody to copy from");
        // Node 4 is silent as well, and node 5 is no shardnode.
        let mut stage = Stage::new(5, &[&[1, 2, 3]]);
        stage.topology.nodes.get_mut(&NodeId(5)).unwrap().roles.shardnode = false;
        assert_eq!(stage.repairs(&[1, 2, 5], START + 400, None), []);
    }

    #[test]
    fn a_lost_replica_on_a_live_node_is_made_anew() {
        let gone = Some((3, ReplicaStatus::FILES_GONE));
        let mut stage = Stage::new(4, &[&[1, 2, 3]]);
        let wait = stage.config.rebuild_after.as_secs();
        assert_eq!(stage.repairs(&[1, 2, 3, 4], START + wait - 1, gone), []);
        let repairs = stage.repairs(&[1, 2, 3, 4], START + wait, gone);
        assert_eq!(repairs[0].action, ReplicaAction::Rebuild(NodeId(3)));
        assert_eq!(repairs[0].cause, "the replica on node 3: its files are gone");
        let full = Some((3, "disk full"));
        let mut stage = Stage::new(4, &[&[1, 2, 3]]);
        assert_eq!(stage.repairs(&[1, 2, 3, 4], START + 400, full), [], "that may pass by itself");
    }

    #[test]
    fn the_coordinators_own_group_is_cared_for_likewise() {
        let mut stage = Stage::new(4, &[]);
        stage.topology.coordinators = [1, 2, 3].map(NodeId).to_vec();
        stage.topology.nodes.get_mut(&NodeId(4)).unwrap().roles.shardnode = false;
        let repairs = stage.repairs(&[1, 2, 4], START + 300, None);
        assert_eq!((repairs[0].group, repairs[0].action), (GroupId::COORDINATOR, moved(3, 4)));
    }
}
