//! How many rows shards have, as far as their followers have counted them.
//!
//! In come the topology, who leads, and what replicas have applied; out go questions, to one node for each shard, and again when
//! what it has counted is an hour old; sooner, if something was written since and counting takes little time. What they say is kept in
//! memory alone: a new leader asks again, and hears what was counted before.

use crate::service::Core;
use proto::machine;
use proto::services::{Counted, ReplicaStatus, ServiceResult, ShardTally, TableTally, TallyRequest};
use proto::topology::{Leaders, Topology};
use proto::{GroupId, LogIndex, NodeId, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was counted longer ago is counted anew.
const EVERY: Duration = Duration::from_secs(3600);
/// The same, of a shard that was written to, if it's longer than [`SHARE`] times what counting takes.
const CHANGED: Duration = Duration::from_secs(20);
/// Nobody counts for more than one in so many seconds.
const SHARE: u32 = 60;
/// How many bytes of rows a node reads in a second for it.
const RATE: u64 = 16 << 20;
/// How often it is looked who is to be asked.
const LOOK: Duration = Duration::from_secs(1);
/// When somebody is asked again who is counting, or hasn't answered.
const AGAIN: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of shards' rows.
#[derive(Debug, Default)]
pub(crate) struct Tallies(BTreeMap<GroupId, Known>);

#[derive(Debug, Default)]
struct Known {
    counted: Option<Entry>,
    /// When it was asked to count anew, and what was applied then.
    asked: Option<(Instant, LogIndex)>,
    /// Nobody is asked before.
    after: Option<Instant>,
    /// How many have been asked in vain.
    tries: usize,
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    took: Duration,
    /// It has all that was applied by then.
    applied: LogIndex,
    tables: Vec<TableTally>,
}

/// A question, and whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    shard: ShardId,
    group: GroupId,
    node: NodeId,
    /// How old what it has counted may be.
    within: Duration,
}

impl Tallies {
    /// What is to be asked now. `hears` says which nodes live.
    fn due(
        &mut self,
        topology: &Topology,
        leaders: &Leaders,
        replicas: &[ReplicaStatus],
        hears: impl Fn(NodeId) -> bool,
        now: Instant,
    ) -> Vec<Question> {
        let serving = || topology.shards.values().filter(|shard| topology.serves(shard.id) && shard.formed);
        self.0.retain(|group, _| serving().any(|shard| shard.group == *group));
        let mut due = Vec::new();
        for shard in serving() {
            let known = self.0.entry(shard.group).or_default();
            let of_shard = replicas.iter().filter(|replica| replica.group == shard.group);
            let applied = of_shard.map(|replica| replica.applied).max().unwrap_or(LogIndex(0));
            let within = match &known.counted {
                Some(entry) => {
                    let is_written = applied > entry.applied;
                    let within = if is_written { (entry.took * SHARE).clamp(CHANGED, EVERY) } else { EVERY };
                    if now.saturating_duration_since(entry.at) <= within {
                        continue;
                    }
                    within
                }
                None => EVERY,
            };
            if known.after.is_some_and(|after| now < after) {
                continue;
            }
            let leader = leaders.get(shard.group);
            let mut nodes: Vec<_> = shard.replicas.iter().copied().filter(|node| hears(*node)).collect();
            // Who leads has enough to do.
            nodes.sort_by_key(|node| (leader == Some(*node), *node));
            let followers = nodes.iter().filter(|node| leader != Some(**node)).count().max(1);
            if let Some(node) = nodes.get(known.tries % followers) {
                known.after = Some(now + AGAIN);
                known.asked.get_or_insert((now, applied));
                due.push(Question { shard: shard.id, group: shard.group, node: *node, within });
            }
        }
        due
    }

    /// Takes an answer; `None` if there was none.
    fn hear(&mut self, question: &Question, counted: Option<Option<Counted>>, now: Instant) {
        let Some(known) = self.0.get_mut(&question.group) else { return };
        let Some(counted) = counted else {
            known.tries += 1;
            return;
        };
        let Some(Counted { age, took, tables }) = counted else { return };
        let at = now.checked_sub(age).unwrap_or(now);
        // Who counts anew says what it has counted before, which may be less than what is known.
        if known.counted.as_ref().is_none_or(|before| before.at < at) {
            // What was begun before, for another leader, has nobody knows what.
            let asked = known.asked.take_if(|(asked, _)| *asked + took <= at);
            let applied = asked.map_or(LogIndex(0), |(_, applied)| applied);
            known.counted = Some(Entry { at, took, applied, tables });
        }
    }

    /// What has been counted.
    pub(crate) fn all(&self, topology: &Topology, now: Instant) -> Vec<ShardTally> {
        let serving = topology.shards.values().filter(|shard| topology.serves(shard.id));
        let tally = serving.filter_map(|shard| {
            let entry = self.0.get(&shard.group)?.counted.as_ref()?;
            let (age, took) = (now.saturating_duration_since(entry.at), entry.took);
            Some(ShardTally { shard: shard.id, counted: Counted { age, took, tables: entry.tables.clone() } })
        });
        tally.collect()
    }
}

/// Has followers count until it is dropped.
pub(crate) async fn count(core: Arc<Core>) {
    *core.tallies.lock() = Tallies::default();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (state, now) = (core.state.subscribe().borrow().clone(), machine::now());
        let replicas = core.state.reports();
        let hears = |node| core.state.heard(node).is_some_and(|ago| ago < core.config.silent_after);
        let due = core.tallies.lock().due(&state.topology, &state.leaders, &replicas, hears, now);
        for question in due {
            let answer = core.ask_tally(&question).await;
            core.tallies.lock().hear(&question, answer, machine::now());
        }
    }
}

impl Core {
    async fn ask_tally(&self, question: &Question) -> Option<Option<Counted>> {
        let service = self.peers.shard_service(question.node)?;
        let request = TallyRequest { shard: question.shard, within: question.within, rate: RATE };
        match tokio::time::timeout(PATIENCE, service.tally(request)).await {
            Ok(Ok(tally)) => Some(tally.counted),
            Ok(Err(error)) => {
                tracing::debug!(node = %question.node, shard = %question.shard, %error, "rows can't be counted there");
                None
            }
            Err(_) => None,
        }
    }

    /// What followers have counted.
    pub(crate) fn tallies_now(&self) -> ServiceResult<Vec<ShardTally>> {
        self.check_leader()?;
        let topology = Arc::clone(&self.state.subscribe().borrow().topology);
        Ok(self.tallies.lock().all(&topology, machine::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::{Keyspace, Shard, Sharding};
    use proto::{Incarnation, KeyRange, KeyspaceNumber, TableId, Term};

    const GROUP: GroupId = GroupId(7);

    /// One shard on three nodes, of which the first leads.
    fn cluster() -> (Topology, Leaders) {
        let (mut topology, mut leaders) = (Topology::default(), Leaders::default());
        let (main, id) = (KeyspaceNumber(1), ShardId(4));
        let shard = Shard {
            id,
            keyspace: main,
            range: KeyRange::full(),
            incarnation: Incarnation(1),
            group: GROUP,
            replicas: (1..=3).map(NodeId).collect(),
            formed: true,
            first: LogIndex(0),
        };
        topology.shards.insert(id, shard);
        let (sharding, shards) = (Sharding::Hash, vec![id]);
        let keyspace =
            Keyspace { number: main, name: "main".into(), sharding, replicas: 3, shards, auto: None };
        topology.keyspaces.insert(main, keyspace);
        leaders.learn(GROUP, Term(1), NodeId(1));
        (topology, leaders)
    }

    fn counted(age: u64, took: u64, rows: u64) -> Option<Option<Counted>> {
        let table = TableTally { table: TableId(16384), rows, bytes: rows * 10, middle: None, growth: None };
        let (age, took) = (Duration::from_secs(age), Duration::from_secs(took));
        Some(Some(Counted { age, took, tables: vec![table] }))
    }

    #[test]
    fn followers_are_asked_again_after_an_hour_or_when_something_was_written() {
        let (topology, leaders) = cluster();
        let zero = Instant::now();
        let at = |second| zero + Duration::from_secs(second);
        let mut tallies = Tallies::default();
        let due = |tallies: &mut Tallies, applied: u64, second: u64| {
            let applied = LogIndex(applied);
            let said = [ReplicaStatus { applied, ..ReplicaStatus::new(NodeId(2), GROUP) }];
            let due = tallies.due(&topology, &leaders, &said, |_| true, at(second));
            assert!(due.len() <= 1, "{due:?}");
            due.first().copied()
        };
        let told = |tallies: &Tallies, second| {
            let all = tallies.all(&topology, at(second));
            (all[0].counted.tables[0].rows, all[0].counted.age.as_secs())
        };
        let first = due(&mut tallies, 10, 0).unwrap();
        assert_eq!((first.shard, first.node, first.within), (ShardId(4), NodeId(2), EVERY));
        assert_eq!(due(&mut tallies, 10, 4), None, "it has just been asked");
        tallies.hear(&first, Some(None), at(0));
        let again = due(&mut tallies, 12, 5).unwrap();
        assert_eq!(again.node, NodeId(2), "it is at it");
        tallies.hear(&again, counted(1, 1, 100), at(5));
        assert_eq!(told(&tallies, 10), (100, 6));
        // It may lack what was written while it counted.
        assert_eq!(due(&mut tallies, 10, 65), None);
        assert_eq!(due(&mut tallies, 12, 64), None, "it took a second, so it is let be for a minute");
        let second = due(&mut tallies, 12, 65).unwrap();
        assert_eq!(second.within.as_secs(), 60);
        // Who has begun to count says what it knew, and is asked again.
        tallies.hear(&second, counted(61, 1, 100), at(65));
        let second = due(&mut tallies, 14, 70).unwrap();
        tallies.hear(&second, counted(0, 0, 120), at(70));
        assert_eq!(told(&tallies, 71), (120, 1));
        assert_eq!(due(&mut tallies, 14, 90), None);
        assert_eq!(
            due(&mut tallies, 14, 91).unwrap().within,
            CHANGED,
            "the last two were written after it was asked"
        );
        tallies.hear(&second, counted(0, 600, 130), at(91));
        assert_eq!(due(&mut tallies, 99, 3_691), None, "it takes ten minutes");
        assert_eq!(due(&mut tallies, 99, 3_692).unwrap().within, EVERY);
        // Somebody else who has counted earlier says nothing new.
        tallies.hear(&second, counted(3_650, 0, 7), at(3_692));
        assert_eq!(told(&tallies, 3_692).0, 130);
    }

    #[test]
    fn who_does_not_answer_is_left_for_another() {
        let (mut topology, leaders) = cluster();
        let zero = Instant::now();
        let mut tallies = Tallies::default();
        let mut asked = Vec::new();
        for round in 0..3 {
            let now = zero + AGAIN * round;
            let due = tallies.due(&topology, &leaders, &[], |_| true, now);
            asked.push(due[0].node.0);
            tallies.hear(&due[0], None, now);
        }
        assert_eq!(asked, [2, 3, 2], "the leader has enough to do");
        let now = zero + AGAIN * 3;
        let alone = tallies.due(&topology, &leaders, &[], |node| node == NodeId(1), now);
        assert_eq!(alone[0].node, NodeId(1), "if nobody else is there, it is asked");
        let shards = &mut topology.keyspaces.get_mut(&KeyspaceNumber(1)).unwrap().shards;
        shards.clear();
        assert_eq!(tallies.due(&topology, &leaders, &[], |_| true, now + AGAIN), []);
        assert!(tallies.0.is_empty(), "what doesn't serve isn't counted");
    }
}
