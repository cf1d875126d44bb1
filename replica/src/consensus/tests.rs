//! Consensus driven by hand: every message is carried, lost or kept by the test.

mod images;
mod members;

use super::*;
use crate::log::{Found, LogReader};
use parking_lot::Mutex;
use raft::eraftpb::ConfState;
use std::collections::BTreeMap;
use std::sync::Arc;

const TICK: Duration = Duration::from_millis(100);

/// A disk that keeps what it was given.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<Entry>, HardState)>>);

impl LogReader for Disk {
    fn entries(&self, _: u64, low: u64, high: u64, _: Option<u64>) -> Result<Vec<Entry>, ReplicaError> {
        Ok(self.0.lock().0.iter().filter(|e| (low..high).contains(&e.index)).cloned().collect())
    }
}

impl Disk {
    fn write(&self, ready: &Ready) {
        let mut disk = self.0.lock();
        if ready.snapshot.is_some() {
            disk.0.clear();
        }
        if let Some(first) = ready.entries.first() {
            disk.0.retain(|entry| entry.index < first.index);
            disk.0.extend(ready.entries.iter().cloned());
        }
        if let Some(state) = &ready.hard_state {
            disk.1 = state.clone();
        }
    }

    fn found(&self, applied: u64) -> Found {
        let disk = self.0.lock();
        let mut hard_state = disk.1.clone();
        hard_state.commit = hard_state.commit.max(applied);
        Found { hard_state, last: disk.0.last().map_or(0, |entry| entry.index), ..Found::default() }
    }
}

struct Member {
    consensus: Consensus,
    disk: Disk,
    committed: Vec<Entry>,
}

/// Three peers, a clock, and the messages between them.
struct Group {
    peers: BTreeMap<u64, Member>,
    down: Vec<u64>,
    now: Duration,
    wire: Vec<Message>,
}

fn settings(node: u64) -> Settings {
    Settings {
        peer: Peer::founding(NodeId(node)),
        group: 3,
        tick: TICK,
        election_ticks: 10,
        heartbeat_ticks: 2,
        seed: 1,
        log_keep_bytes: 1 << 20,
        log_cut_entries: 1,
    }
}

fn peer(node: u64, voters: u64, disk: Disk, applied: u64, now: Duration) -> Member {
    let conf_state = ConfState { voters: (1..=voters).collect(), ..ConfState::default() };
    let store = Store::new(3, Arc::new(disk.clone()), disk.found(applied), conf_state);
    Member {
        consensus: Consensus::new(settings(node), store, applied, now).unwrap(),
        disk,
        committed: Vec::new(),
    }
}

impl Group {
    fn new(voters: u64) -> Self {
        let now = Duration::ZERO;
        let peers = (1..=voters).map(|node| (node, peer(node, voters, Disk::default(), 0, now))).collect();
        Self { peers, down: Vec::new(), now, wire: Vec::new() }
    }

    fn restart(&mut self, node: u64, applied: u64) {
        let voters = self.peers.len() as u64;
        let disk = self.peers[&node].disk.clone();
        self.peers.insert(node, peer(node, voters, disk, applied, self.now));
    }

    /// One peer's readies are written and its messages put on the wire.
    fn flush(&mut self, node: u64) {
        let peer = self.peers.get_mut(&node).unwrap();
        while let Some(ready) = peer.consensus.ready() {
            self.wire.extend(ready.messages.iter().cloned());
            peer.disk.write(&ready);
            let (messages, committed) = peer.consensus.persisted();
            self.wire.extend(messages);
            let delivered = peer.consensus.take_effect([ready.committed, committed].concat()).unwrap();
            peer.committed.extend(delivered.into_iter().map(|delivered| delivered.entry));
            if let Some(last) = peer.committed.last() {
                peer.consensus.applied(last.index);
            }
        }
    }

    /// Carries messages until there are none; those from and to peers that are down are lost.
    fn settle(&mut self) {
        loop {
            for node in self.peers.keys().copied().collect::<Vec<_>>() {
                self.flush(node);
            }
            if self.wire.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.wire) {
                if self.down.contains(&message.from) || self.down.contains(&message.to) {
                    continue;
                }
                let peer = self.peers.get_mut(&message.to).unwrap();
                peer.consensus.step(message, self.now).unwrap();
            }
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        for peer in self.peers.values_mut() {
            peer.consensus.tick().unwrap();
        }
        self.settle();
    }

    fn leader(&self) -> Option<u64> {
        let leads = |peer: &&Member| peer.consensus.standing().role == StateRole::Leader;
        let mut leaders: Vec<_> = self.peers.values().filter(leads).map(|p| p.consensus.standing()).collect();
        leaders.sort_by_key(|standing| standing.term);
        leaders.last().and_then(|standing| standing.leader).map(|node| node.0)
    }

    fn elect(&mut self) -> u64 {
        for _ in 0..60 {
            if let Some(leader) = self.leader().filter(|leader| !self.down.contains(leader)) {
                return leader;
            }
            self.tick();
        }
        panic!("nobody was elected");
    }

    fn standing(&self, node: u64) -> Standing {
        self.peers[&node].consensus.standing()
    }

    fn propose(&mut self, node: u64, term: u64, data: &'static str) -> Option<u64> {
        self.peers.get_mut(&node).unwrap().consensus.propose(term, data.into())
    }

    /// A peer's committed entries that aren't Raft's own.
    fn committed(&self, node: u64) -> Vec<String> {
        let data = self.peers[&node].committed.iter().filter(|entry| !entry.data.is_empty());
        data.map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
    }
}

#[test]
fn a_sole_voter_leads_at_once() {
    let mut group = Group::new(1);
    assert_eq!(group.standing(1).role, StateRole::Leader);
    assert_eq!(group.standing(1).first, Some(1));
    group.settle();
    let index = group.propose(1, 1, "a").unwrap();
    group.settle();
    assert_eq!((index, group.committed(1)), (2, vec!["a".to_owned()]));
}

#[test]
fn a_new_group_elects_within_a_few_ticks_and_all_commit() {
    let mut group = Group::new(3);
    for _ in 0..2 {
        group.tick();
    }
    let leader = group.leader().expect("nobody waits for an election timeout");
    let term = group.standing(leader).term;
    group.propose(leader, term, "a").unwrap();
    group.settle();
    for node in 1..=3 {
        assert_eq!(group.committed(node), ["a"]);
    }
}

#[test]
fn a_deposed_leader_proposes_nothing_and_its_entry_is_replaced() {
    let mut group = Group::new(3);
    let old = group.elect();
    let term = group.standing(old).term;
    group.down = vec![old];
    let index = group.propose(old, term, "lost").unwrap();
    group.settle();
    // It steps down by itself when it hears nobody, and the others elect.
    for _ in 0..40 {
        group.tick();
    }
    assert_ne!(group.standing(old).role, StateRole::Leader);
    let new = group.elect();
    assert_ne!(new, old);
    assert_eq!(group.propose(old, term, "late"), None);
    let new_term = group.standing(new).term;
    assert_eq!(group.propose(new, term, "of an older term"), None);
    group.propose(new, new_term, "won").unwrap();
    group.settle();
    group.down.clear();
    for _ in 0..20 {
        group.tick();
    }
    for node in 1..=3 {
        assert_eq!(group.committed(node), ["won"]);
        let at_index = group.peers[&node].committed.iter().find(|entry| entry.index == index).unwrap();
        assert_ne!(at_index.term, term, "the caller of the lost entry can tell by the term");
    }
}

#[test]
fn a_forwarded_proposal_is_dropped() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgPropose);
    (message.from, message.to) = (leader % 3 + 1, leader);
    message.set_entries(vec![Entry { data: "foreign".into(), ..Entry::default() }].into());
    let now = group.now;
    group.peers.get_mut(&leader).unwrap().consensus.step(message, now).unwrap();
    group.settle();
    assert!(group.committed(leader).is_empty());
}

#[test]
fn a_restarted_replica_votes_for_nobody_during_one_election_timeout() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let (a, b) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.settle();
    // `a` asks for votes when its timeout has passed; `b` has just started and may have promised a lease before.
    group.down = vec![leader];
    for _ in 0..8 {
        group.tick();
    }
    group.restart(b, 0);
    let restarted = group.now;
    while group.leader().is_none_or(|new| new == leader) {
        group.tick();
        assert!(group.now < restarted + TICK * 60, "it votes in the end");
    }
    assert!(group.now >= restarted + TICK * 10, "{:?} after the start", group.now - restarted);
    assert!([a, b].contains(&group.leader().unwrap()));
}

#[test]
fn a_follower_that_just_heard_the_leader_refuses_even_in_a_higher_term() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let (a, b) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for _ in 0..2 {
        group.tick();
    }
    let term = group.standing(leader).term;
    // A late refusal of a higher term makes `a` forget its leader, and with it raft-rs's own reason not to vote.
    let mut refusal = Message::default();
    refusal.set_msg_type(MessageType::MsgRequestPreVoteResponse);
    (refusal.from, refusal.to, refusal.term, refusal.reject) = (b, a, term + 1, true);
    let mut ask = Message::default();
    ask.set_msg_type(MessageType::MsgRequestVote);
    (ask.from, ask.to, ask.term, ask.index, ask.log_term) = (b, a, term + 1, 100, term);
    let now = group.now;
    let peer = group.peers.get_mut(&a).unwrap();
    peer.consensus.step(refusal, now).unwrap();
    peer.consensus.step(ask.clone(), now).unwrap();
    group.flush(a);
    let voted = |wire: &[Message]| {
        wire.iter().any(|m| m.get_msg_type() == MessageType::MsgRequestVoteResponse && !m.reject)
    };
    assert!(!voted(&group.wire), "a lease may stand on its silence");
    group.wire.clear();
    let later = now + TICK * 10;
    group.peers.get_mut(&a).unwrap().consensus.step(ask, later).unwrap();
    group.flush(a);
    assert!(voted(&group.wire));
}

#[test]
fn a_round_confirms_what_was_committed_when_it_was_sent() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let term = group.standing(leader).term;
    group.propose(leader, term, "a").unwrap();
    group.settle();
    let sent = group.now;
    let index = group.peers[&leader].committed.last().unwrap().index;
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    let round = consensus.confirm(sent).unwrap();
    assert_eq!(consensus.confirm(sent), None, "one at a time");
    group.now += TICK;
    group.settle();
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    // The lease counts from when the round was sent, and is shorter than any election timeout.
    let lease = Some(sent + TICK * 9 * 4 / 5);
    assert_eq!(consensus.take_confirmed(), [Confirmed { round, index, lease }]);
}

#[test]
fn a_leader_that_offered_its_office_gets_no_lease() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let other = leader % 3 + 1;
    // The other one doesn't hear of it, so the office stays, but the lease must not.
    let now = group.now;
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    consensus.raw.transfer_leader(other);
    group.flush(leader);
    assert!(group.wire.iter().any(|m| m.get_msg_type() == MessageType::MsgTimeoutNow));
    group.wire.clear();
    for _ in 0..12 {
        group.down = vec![other];
        group.tick();
    }
    group.down.clear();
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    assert_eq!(consensus.standing().role, StateRole::Leader);
    assert!(consensus.has_offered());
    consensus.confirm(now).unwrap();
    group.settle();
    let confirmed = group.peers.get_mut(&leader).unwrap().consensus.take_confirmed();
    assert_eq!(confirmed.iter().map(|c| c.lease).collect::<Vec<_>>(), [None]);
}

#[test]
fn a_round_that_ends_together_with_the_offer_gives_no_lease() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let (now, other) = (group.now, leader % 3 + 1);
    group.peers.get_mut(&leader).unwrap().consensus.confirm(now).unwrap();
    group.flush(leader);
    for message in std::mem::take(&mut group.wire) {
        group.peers.get_mut(&message.to).unwrap().consensus.step(message, now).unwrap();
    }
    group.flush(other);
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    for message in std::mem::take(&mut group.wire) {
        consensus.step(message, now).unwrap();
    }
    consensus.raw.transfer_leader(other);
    group.flush(leader);
    assert!(group.wire.iter().any(|m| m.get_msg_type() == MessageType::MsgTimeoutNow));
    let confirmed = group.peers.get_mut(&leader).unwrap().consensus.take_confirmed();
    assert_eq!(confirmed.iter().map(|c| c.lease).collect::<Vec<_>>(), [None]);
}

#[test]
fn a_new_leader_confirms_no_read_before_its_terms_first_commit() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.settle();
    let (now, new) = (group.now, old % 3 + 1);
    group.peers.get_mut(&old).unwrap().consensus.raw.transfer_leader(new);
    // The votes are carried, the new leader's entry isn't yet.
    while group.standing(new).role != StateRole::Leader {
        for node in [old, new] {
            group.flush(node);
        }
        for message in std::mem::take(&mut group.wire) {
            group.peers.get_mut(&message.to).unwrap().consensus.step(message, now).unwrap();
        }
    }
    // Its commit index may be older than what the old one acknowledged.
    assert_eq!(group.peers.get_mut(&new).unwrap().consensus.confirm(now), None);
    assert_eq!(group.peers.get_mut(&old).unwrap().consensus.confirm(now), None);
    group.settle();
    assert!(group.peers.get_mut(&new).unwrap().consensus.confirm(now).is_some());
}

#[test]
fn a_forwarded_read_index_is_dropped() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let follower = leader % 3 + 1;
    for (from, to) in [(follower, leader), (leader, follower)] {
        for kind in [MessageType::MsgReadIndex, MessageType::MsgReadIndexResp] {
            let mut message = Message { from, to, index: 9, ..Message::default() };
            message.set_msg_type(kind);
            message.set_entries(vec![Entry { data: "ctx".into(), ..Entry::default() }].into());
            let now = group.now;
            group.peers.get_mut(&to).unwrap().consensus.step(message, now).unwrap();
            group.flush(to);
            assert!(group.wire.is_empty(), "{:?}", group.wire);
            assert!(group.peers.get_mut(&to).unwrap().consensus.take_confirmed().is_empty());
        }
    }
}

#[test]
fn a_follower_forwards_no_proposal() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let follower = leader % 3 + 1;
    let term = group.standing(leader).term;
    assert_eq!(group.propose(follower, term, "of a leader that was"), None);
    group.flush(follower);
    assert!(group.wire.is_empty(), "{:?}", group.wire);
}

#[test]
fn a_partitioned_leader_confirms_nothing() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    group.down = vec![leader];
    let now = group.now;
    group.peers.get_mut(&leader).unwrap().consensus.confirm(now).unwrap();
    for _ in 0..40 {
        group.tick();
        assert!(group.peers.get_mut(&leader).unwrap().consensus.take_confirmed().is_empty());
    }
}

#[test]
fn a_restart_with_more_applied_than_was_noted_as_committed_goes_on() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let term = group.standing(leader).term;
    group.propose(leader, term, "a").unwrap();
    group.settle();
    let applied = group.peers[&leader].committed.last().unwrap().index;
    // The commit index is written lazily, so a crash may have it older than what SQLite has.
    group.peers[&leader].disk.0.lock().1.commit = 0;
    group.restart(leader, applied);
    group.down.clear();
    let leader = {
        for _ in 0..40 {
            group.tick();
        }
        group.elect()
    };
    let term = group.standing(leader).term;
    group.propose(leader, term, "b").unwrap();
    group.settle();
    for node in 1..=3 {
        assert_eq!(group.committed(node).last().unwrap(), "b");
    }
}

#[test]
fn a_commit_alone_is_not_written() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let follower = if leader == 1 { 2 } else { 1 };
    let disk = |group: &Group| group.peers[&follower].disk.0.lock().1.clone();
    let (before, noted) = (group.committed(follower), disk(&group));
    group.propose(leader, noted.term, "one").unwrap();
    group.settle();
    assert_eq!(group.committed(follower), [before, vec!["one".into()]].concat());
    let first = disk(&group);
    group.propose(leader, noted.term, "two").unwrap();
    group.settle();
    // The second entry's write says that the first is committed; nothing says it of the second.
    assert_eq!((first.commit, disk(&group).commit), (noted.commit + 1, noted.commit + 2));
}

#[test]
fn election_timeouts_depend_on_seed_replica_and_term_alone() {
    let draw = |node: u64| {
        let mut group = Group::new(3);
        let mut drawn = Vec::new();
        for _ in 0..50 {
            group.tick();
            drawn.push(group.peers[&node].consensus.raw.raft.randomized_election_timeout());
        }
        drawn
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_group_is_settled_when_all_have_all_and_none_is_to_come_or_go() {
    use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
    let mut group = Group::new(3);
    let leader = group.elect();
    let other = leader % 3 + 1;
    group.tick();
    let Standing { term, first, .. } = group.standing(leader);
    let rest = Rest { term, index: first.unwrap() };
    // A follower learns of the commit with the next heartbeat.
    group.tick();
    let settled = |group: &Group| group.peers[&leader].consensus.settled();
    let agrees = |group: &Group, node, rest| group.peers[&other].consensus.agrees(NodeId(node), rest);
    assert_eq!(settled(&group), Some(rest));
    assert_eq!(group.peers[&other].consensus.settled(), None);
    assert!(agrees(&group, leader, rest));
    assert!(!agrees(&group, other, rest));
    assert!(!agrees(&group, leader, Rest { term: term + 1, ..rest }));
    // One that lacks an entry keeps it awake.
    group.down = vec![other];
    let index = group.propose(leader, term, "a").unwrap();
    group.settle();
    assert_eq!(settled(&group), None);
    group.down.clear();
    for _ in 0..4 {
        group.tick();
    }
    assert_eq!(settled(&group), Some(Rest { term, index }));
    assert!(!agrees(&group, leader, rest));
    // So does one that is being added.
    let mut change = ConfChangeV2::default();
    let mut learner = ConfChangeSingle { node_id: 4, ..ConfChangeSingle::default() };
    learner.set_change_type(ConfChangeType::AddLearnerNode);
    change.set_changes(vec![learner].into());
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    consensus.raw.apply_conf_change(&change).unwrap();
    assert_eq!(settled(&group), None);
}
