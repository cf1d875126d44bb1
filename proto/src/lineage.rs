//! Positions over a cluster's life: what a GTID set means in the topology of now, and how one is written.
//!
//! Inside a process positions go by shard; in texts by the log's name and incarnation. A log that has ended goes on in its
//! successors: a position in it is covered by each of them from the place on where it took over, and by all of them
//! together. A position that no log of this cluster ever had, or that was lost with a log's end, is an error: nothing will
//! ever reach it. One that nobody knows is as unknown in each of the successors.

use crate::gtid::{GtidSet, GtidSource, Position, shortened};
use crate::ids::ShardId;
use crate::topology::{Retired, Topology};
use std::collections::{BTreeMap, BTreeSet};

/// A GTID set that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GtidError {
    /// There is no keyspace of this name.
    #[error("keyspace \"{}\" does not exist", shortened(.0))]
    UnknownKeyspace(String),
    /// No log of the cluster has had this position and kept it.
    #[error("position {0} is of a history that this cluster doesn't have")]
    Lost(GtidSet),
}

impl Topology {
    /// The positions that cover a set.
    pub fn resolve(&self, set: &GtidSet) -> Result<BTreeMap<ShardId, Position>, GtidError> {
        let mut positions: BTreeMap<ShardId, Position> = BTreeMap::new();
        for (source, position) in set.iter() {
            let lost = || {
                let mut lost = GtidSet::default();
                lost.raise(source.clone(), position);
                GtidError::Lost(lost)
            };
            let shard = match self.lineage.get(source) {
                Some(retired) if position.index <= retired.last => retired.shard,
                Some(_) => return Err(lost()),
                None => self.shard_of(source)?.ok_or_else(lost)?,
            };
            positions.entry(shard).or_default().raise(position);
        }
        self.rebase(&mut positions);
        Ok(positions)
    }

    /// The shard whose log this is.
    fn shard_of(&self, source: &GtidSource) -> Result<Option<ShardId>, GtidError> {
        let keyspace = self.keyspace_named(&source.keyspace);
        let keyspace = keyspace.ok_or_else(|| GtidError::UnknownKeyspace(source.keyspace.clone()))?;
        let mut shards = self.shards.values().filter(|shard| shard.keyspace == keyspace.number);
        let found =
            shards.find(|shard| shard.range == source.shard && shard.incarnation == source.incarnation);
        Ok(found.map(|shard| shard.id))
    }

    /// The set of these positions, each in a log that serves.
    pub fn gtid<P: Into<Position> + Copy>(&self, positions: &BTreeMap<ShardId, P>) -> GtidSet {
        let mut positions = positions.iter().map(|(shard, position)| (*shard, (*position).into())).collect();
        self.rebase(&mut positions);
        let mut set = GtidSet::default();
        for (shard, position) in positions.into_iter().filter(|(_, position)| !position.is_none()) {
            if let Some(source) = self.gtid_source(shard) {
                set.raise(source, position);
            }
        }
        set
    }

    /// The shards that serve what this one served, in order: itself, as long as it does. None if all of it was dropped.
    pub fn heirs(&self, shard: ShardId) -> Vec<ShardId> {
        self.heirs_of(&[shard])
    }

    /// The heirs of several shards, each once, in order.
    pub fn heirs_of(&self, shards: &[ShardId]) -> Vec<ShardId> {
        let mut heirs: BTreeSet<ShardId> = shards.iter().copied().collect();
        if !self.lineage.is_empty() {
            let retired = self.retired();
            // As in `rebase`.
            let mut from = ShardId(0);
            while let Some(shard) = heirs.range(from..).copied().find(|shard| retired.contains_key(shard)) {
                heirs.extend(retired[&shard].successors.iter().map(|(successor, _)| *successor));
                from = ShardId(shard.0 + 1);
            }
            heirs.retain(|shard| !retired.contains_key(shard));
        }
        heirs.retain(|shard| self.shards.contains_key(shard));
        heirs.into_iter().collect()
    }

    fn retired(&self) -> BTreeMap<ShardId, &Retired> {
        self.lineage.values().map(|retired| (retired.shard, retired)).collect()
    }

    /// Puts successors' positions in the place of those of logs that have ended.
    pub fn rebase(&self, positions: &mut BTreeMap<ShardId, Position>) {
        if self.lineage.is_empty() {
            return;
        }
        let retired = self.retired();
        // Successors have greater ids, so they are still to come, and no lineage that is wrong leads in a circle.
        let mut from = ShardId(0);
        while let Some((shard, Position { is_unheard, .. })) =
            positions.range(from..).map(|(id, held)| (*id, *held)).find(|(id, _)| retired.contains_key(id))
        {
            positions.remove(&shard);
            for (successor, index) in &retired[&shard].successors {
                let index = *index;
                positions.entry(*successor).or_default().raise(Position { index, is_unheard });
            }
            from = ShardId(shard.0 + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, GroupId, Incarnation, KeyspaceNumber, LogIndex, NodeId};
    use crate::key_range::KeyRange;
    use crate::topology::{Keyspace, Shard, Sharding};

    const MAIN: KeyspaceNumber = KeyspaceNumber(1);

    fn source(name: &str, incarnation: u32) -> GtidSource {
        let (keyspace, range) = name.split_once('/').unwrap();
        GtidSource {
            keyspace: keyspace.into(),
            shard: KeyRange::parse(range).unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    /// A keyspace `main` of these shards: id, range and incarnation.
    fn topology(serving: &[(u64, &str, u32)]) -> Topology {
        let mut topology = Topology { epoch: Epoch(1), ..Topology::default() };
        for (id, range, incarnation) in serving {
            let id = ShardId(*id);
            let shard = Shard {
                id,
                keyspace: MAIN,
                range: KeyRange::parse(range).unwrap(),
                incarnation: Incarnation(*incarnation),
                group: GroupId(id.0 + 1),
                replicas: vec![NodeId(1)],
                formed: true,
                first: LogIndex(0),
            };
            topology.shards.insert(id, shard);
        }
        let shards = serving.iter().map(|(id, ..)| ShardId(*id)).collect();
        let (name, sharding) = ("main".into(), Sharding::Hash);
        topology
            .keyspaces
            .insert(MAIN, Keyspace { number: MAIN, name, sharding, replicas: 1, shards, auto: None });
        topology
    }

    fn retire(
        topology: &mut Topology,
        name: &str,
        incarnation: u32,
        (shard, last): (u64, u64),
        next: &[(u64, u64)],
    ) {
        let successors = next.iter().map(|(shard, index)| (ShardId(*shard), LogIndex(*index))).collect();
        let retired = Retired { shard: ShardId(shard), last: LogIndex(last), successors };
        topology.lineage.insert(source(name, incarnation), retired);
    }

    /// What the cluster makes of a text: the text of what covers it, or the error.
    fn again(topology: &Topology, text: &str) -> Result<String, String> {
        let positions = topology.resolve(&text.parse().unwrap()).map_err(|error| error.to_string())?;
        Ok(topology.gtid(&positions).to_string())
    }

    fn lost(position: &str) -> Result<String, String> {
        Err(format!("position {position} is of a history that this cluster doesn't have"))
    }

    #[test]
    fn positions_in_logs_that_serve_are_what_they_are() {
        let topology = topology(&[(1, "-80", 1), (2, "80-", 2)]);
        let text = "main/-80.1:7,main/80-.2:9";
        assert_eq!(again(&topology, text), Ok(text.into()));
        assert_eq!(again(&topology, ""), Ok(String::new()));
        let unheard = "main/-80.1:?,main/80-.2:9,main/80-.2:?";
        assert_eq!(again(&topology, unheard), Ok(unheard.into()));
        let positions = topology.resolve(&text.parse().unwrap()).unwrap();
        assert_eq!(
            positions,
            BTreeMap::from([(ShardId(1), LogIndex(7).into()), (ShardId(2), LogIndex(9).into())])
        );
    }

    #[test]
    fn what_this_cluster_never_had_is_said_so() {
        let topology = topology(&[(1, "-80", 1), (2, "80-", 2)]);
        assert_eq!(again(&topology, "other/-.1:3"), Err("keyspace \"other\" does not exist".into()));
        for position in ["main/80-.1:3", "main/80-.1:?", "main/80-.3:3", "main/-.1:3", "main/-40.1:3"] {
            assert_eq!(again(&topology, &format!("main/-80.1:1,{position}")), lost(position));
        }
    }

    /// Two shards, then four, then two again.
    #[test]
    fn successors_cover_what_was_before_a_split_and_a_merge() {
        let mut four = topology(&[(3, "-40", 1), (4, "40-80", 1), (5, "80-c0", 1), (6, "c0-", 1)]);
        retire(&mut four, "main/-80", 1, (1, 100), &[(3, 11), (4, 12)]);
        retire(&mut four, "main/80-", 1, (2, 200), &[(5, 13), (6, 14)]);
        assert_eq!(again(&four, "main/-80.1:7"), Ok("main/-40.1:11,main/40-80.1:12".into()));
        assert_eq!(again(&four, "main/-80.1:100"), Ok("main/-40.1:11,main/40-80.1:12".into()));
        assert_eq!(again(&four, "main/-80.1:101"), lost("main/-80.1:101"));
        let (both, each) = ("main/-80.1:7,main/-40.1:50", "main/-40.1:50,main/40-80.1:12");
        assert_eq!(again(&four, both), Ok(each.into()), "what is known of a successor already counts");
        let unheard = "main/-40.1:11,main/-40.1:?,main/40-80.1:12,main/40-80.1:?";
        assert_eq!(again(&four, "main/-80.1:?"), Ok(unheard.into()));

        let mut two = topology(&[(7, "-80", 2), (8, "80-", 2)]);
        two.lineage = four.lineage;
        retire(&mut two, "main/-40", 1, (3, 60), &[(7, 5)]);
        retire(&mut two, "main/40-80", 1, (4, 70), &[(7, 6)]);
        retire(&mut two, "main/80-c0", 1, (5, 80), &[(8, 5)]);
        retire(&mut two, "main/c0-", 1, (6, 90), &[(8, 5)]);
        assert_eq!(again(&two, "main/-80.1:7"), Ok("main/-80.2:6".into()), "the later of the two");
        assert_eq!(again(&two, "main/-40.1:60"), Ok("main/-80.2:5".into()));
        assert_eq!(again(&two, "main/-80.1:7,main/-80.2:9"), Ok("main/-80.2:9".into()));
        assert_eq!(again(&two, "main/80-.1:200"), Ok("main/80-.2:5".into()));
        assert_eq!(again(&two, "main/-40.1:61"), lost("main/-40.1:61"));
        let mut held = BTreeMap::from([(ShardId(1), LogIndex(90).into()), (ShardId(8), LogIndex(4).into())]);
        two.rebase(&mut held);
        assert_eq!(
            held,
            BTreeMap::from([(ShardId(7), LogIndex(6).into()), (ShardId(8), LogIndex(4).into())])
        );
        assert_eq!(again(&two, "main/-40.1:60,main/-40.1:?"), Ok("main/-80.2:5,main/-80.2:?".into()));
    }

    /// Two shards, then one of them in two, then these and the other one as one.
    #[test]
    fn a_participant_is_its_heirs() {
        let heirs = |topology: &Topology, shards: &[u64]| -> Vec<u64> {
            let shards: Vec<_> = shards.iter().copied().map(ShardId).collect();
            topology.heirs_of(&shards).iter().map(|shard| shard.0).collect()
        };
        let two = topology(&[(1, "-80", 1), (2, "80-", 1)]);
        assert_eq!(heirs(&two, &[1]), [1]);
        assert_eq!(heirs(&two, &[2, 1, 2]), [1, 2]);
        assert_eq!(heirs(&two, &[9]), [0; 0], "nobody has what it had");

        let mut three = topology(&[(2, "80-", 1), (3, "-40", 1), (4, "40-80", 1)]);
        // It is sealed, and still there for the way back.
        three.shards.insert(ShardId(1), two.shards[&ShardId(1)].clone());
        retire(&mut three, "main/-80", 1, (1, 100), &[(3, 11), (4, 12)]);
        assert_eq!(heirs(&three, &[1]), [3, 4]);
        assert_eq!(heirs(&three, &[1, 2, 4]), [2, 3, 4]);
        assert_eq!(three.heirs(ShardId(3)), [ShardId(3)]);

        let mut one = topology(&[(5, "-", 1)]);
        one.lineage = three.lineage.clone();
        retire(&mut one, "main/-40", 1, (3, 60), &[(5, 7)]);
        retire(&mut one, "main/40-80", 1, (4, 70), &[(5, 7)]);
        retire(&mut one, "main/80-", 1, (2, 80), &[(5, 7)]);
        for shards in [&[1][..], &[2], &[4], &[1, 2, 3, 4, 5]] {
            assert_eq!(heirs(&one, shards), [5], "{shards:?}");
        }
        assert_eq!(heirs(&one, &[9]), [0; 0]);
        one.shards.clear();
        assert_eq!(heirs(&one, &[1, 5]), [0; 0], "the keyspace was dropped");
    }

    #[test]
    fn what_came_after_a_backup_is_lost_with_it() {
        let mut topology = topology(&[(2, "-", 170_000_000)]);
        retire(&mut topology, "main/-", 1, (1, 500), &[(2, 1)]);
        assert_eq!(again(&topology, "main/-.1:500"), Ok("main/-.170000000:1".into()));
        assert_eq!(again(&topology, "main/-.1:501"), lost("main/-.1:501"));
        assert_eq!(again(&topology, "main/-.2:1"), lost("main/-.2:1"));
    }

    #[test]
    fn a_lineage_that_leads_in_a_circle_has_an_end() {
        let mut topology = topology(&[(3, "-", 3)]);
        retire(&mut topology, "main/-", 1, (1, 10), &[(2, 5)]);
        retire(&mut topology, "main/-", 2, (2, 10), &[(1, 5), (3, 6)]);
        assert_eq!(again(&topology, "main/-.1:4"), Ok("main/-.3:6".into()));
        assert_eq!(topology.heirs(ShardId(1)), [ShardId(3)]);
    }
}
