//! Transactions that take long to end, for whoever looks after the cluster.
//!
//! In comes what the coordinator's leader last saw of them, out go alarms. What holds them up is for the reader to find
//! out: mostly a shard without a leader.

use proto::services::{Alarm, ClusterState};
use proto::{ShardId, TransactionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// What lasts longer than this isn't as it should be.
const LATE: Duration = Duration::from_secs(60);
/// How many are named.
const NAMED: usize = 10;

/// A transaction, a shard where it isn't finished, and for how long.
pub(crate) type Late = (TransactionId, ShardId, Duration);

/// What was last seen.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    prepared: Vec<Late>,
    unfinished: Vec<Late>,
}

impl Lingering {
    /// These are prepared.
    pub(crate) fn prepared(&mut self, seen: Vec<Late>) {
        self.prepared = late(seen);
    }

    /// These are decided, and their shards haven't said that they have finished.
    pub(crate) fn unfinished(&mut self, seen: Vec<Late>) {
        self.unfinished = late(seen);
    }

    /// What should be looked at, the worst first.
    pub(crate) fn alarms(&self, state: &ClusterState) -> Vec<Alarm> {
        let prepared = self.prepared.iter().map(|late| (late, "prepared"));
        let decided = self.unfinished.iter().map(|late| (late, "decided"));
        let mut worst: BTreeMap<_, _> = BTreeMap::new();
        for ((transaction, shard, time), what) in prepared.chain(decided) {
            worst.entry((*transaction, *shard)).or_insert((*time, what));
        }
        let mut worst: Vec<_> = worst.into_iter().collect();
        worst.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
        let more = worst.len().saturating_sub(NAMED);
        let alarm = |((transaction, shard), (time, what)): ((TransactionId, ShardId), (Duration, &str))| {
            let shard = state.topology.shards.get(&shard)?;
            let node = state.leaders.get(shard.group).or_else(|| shard.replicas.first().copied())?;
            let seconds = time.as_secs();
            let message =
                format!("transaction {transaction} has been {what} for {seconds} seconds and isn't finished");
            Some(Alarm { group: shard.group, node, message })
        };
        let mut alarms: Vec<_> = worst.into_iter().take(NAMED).filter_map(alarm).collect();
        if more > 0
            && let Some(last) = alarms.last_mut()
        {
            last.message += &format!(" (as are {more} more)");
        }
        alarms
    }
}

fn late(mut seen: Vec<Late>) -> Vec<Late> {
    seen.retain(|(_, _, time)| *time >= LATE);
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::{Leaders, Topology};
    use proto::{GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RouterIncarnation, Term};
    use std::sync::Arc;

    #[test]
    fn what_takes_a_minute_is_told_once_and_a_few_times_at_most() {
        let mut topology = Topology::default();
        let shard = proto::topology::Shard {
            id: ShardId(1),
            keyspace: KeyspaceNumber(1),
            range: KeyRange::full(),
            incarnation: Incarnation(1),
            group: GroupId(2),
            replicas: vec![NodeId(3), NodeId(4)],
            formed: true,
            first: LogIndex(0),
        };
        topology.shards.insert(shard.id, shard);
        let mut leaders = Leaders::default();
        let state = |leaders: &Leaders| ClusterState {
            topology: Arc::new(topology.clone()),
            leaders: Arc::new(leaders.clone()),
            catalog: Arc::default(),
        };
        let late = |sequence, seconds| {
            let transaction = TransactionId { router: RouterIncarnation(5), sequence };
            (transaction, ShardId(1), Duration::from_secs(seconds))
        };
        let mut lingering = Lingering::default();
        lingering.prepared(vec![late(1, 59), late(2, 61), late(3, 70)]);
        lingering.unfinished(vec![late(3, 65), late(4, 5)]);
        let told = |alarms: Vec<Alarm>| alarms.into_iter().map(|a| (a.node.0, a.message)).collect::<Vec<_>>();
        let expected = [
            (3, "transaction 5-3 has been prepared for 70 seconds and isn't finished".to_owned()),
            (3, "transaction 5-2 has been prepared for 61 seconds and isn't finished".to_owned()),
        ];
        assert_eq!(told(lingering.alarms(&state(&leaders))), expected);
        leaders.learn(GroupId(2), Term(1), NodeId(4));
        lingering.prepared(Vec::new());
        lingering.unfinished((1..=20).map(|n| late(n, 100 + n)).collect());
        let alarms = told(lingering.alarms(&state(&leaders)));
        assert_eq!((alarms.len(), alarms[0].0), (10, 4));
        assert!(alarms[0].1.starts_with("transaction 5-14 "), "{}", alarms[0].1);
        assert!(
            alarms[9].1.ends_with("for 111 seconds and isn't finished (as are 10 more)"),
            "{}",
            alarms[9].1
        );
        lingering.unfinished(Vec::new());
        assert_eq!(lingering.alarms(&state(&leaders)), []);
    }
}
