//! Changes of a group's members, and the promises that they touch.

use super::*;
use crate::consensus::{Changing, Target};
use raft::eraftpb::Snapshot;

impl Group {
    fn change(&mut self, node: u64, voters: &[u64]) -> Changing {
        let target = Target { voters: voters.iter().copied().map(NodeId).collect(), replaced: None };
        self.peers.get_mut(&node).unwrap().consensus.change_members(&target)
    }

    /// Changes the members step by step, at whoever leads.
    fn change_all(&mut self, voters: &[u64]) -> u64 {
        for _ in 0..100 {
            let leader = self.elect();
            match self.change(leader, voters) {
                Changing::Done => return leader,
                Changing::HandOver(to) => {
                    let consensus = &mut self.peers.get_mut(&leader).unwrap().consensus;
                    assert!(consensus.hand_over(to));
                    consensus.continue_hand_over(true);
                    consensus.continue_hand_over(true);
                }
                Changing::Waiting => {}
                Changing::Refused(why) => panic!("{why}"),
            }
            self.settle();
            self.tick();
        }
        panic!("the members didn't change");
    }

    /// One peer's readies are written, and its messages lost.
    fn flush_unheard(&mut self, node: u64) {
        self.flush(node);
        self.wire.clear();
    }

    fn voters(&self, node: u64) -> (Vec<u64>, Vec<u64>) {
        let state = self.peers[&node].consensus.conf_state();
        let sorted = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids
        };
        (sorted(state.voters), sorted(state.voters_outgoing))
    }
}

fn blank(node: u64, incarnation: u64) -> Member {
    let disk = Disk::default();
    let store = Store::new(3, Arc::new(disk.clone()), Found::default(), ConfState::default());
    let settings = Settings { peer: Peer::new(NodeId(node), incarnation), ..settings(node) };
    let consensus = Consensus::new(settings, store, 0, Duration::ZERO).unwrap();
    Member { consensus, disk, committed: Vec::new() }
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn a_leader_that_goes_hands_over_and_the_others_go_on() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.settle();
    let rest: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    let new = group.change_all(&rest);
    assert_ne!(new, old);
    assert_eq!(group.voters(new), (rest.clone(), vec![]));
    let term = group.standing(new).term;
    group.down = vec![old];
    group.propose(new, term, "without it").unwrap();
    group.settle();
    assert_eq!(group.committed(rest[0]), group.committed(rest[1]));
    assert_eq!(group.committed(new).last().unwrap(), "without it");
}

#[test]
fn a_joint_configuration_that_its_leader_left_behind_is_left_by_the_next() {
    let mut group = Group::new(5);
    let old = group.elect();
    group.settle();
    let rest: Vec<u64> = (1..=5).filter(|node| *node != old).take(2).collect();
    let keep: Vec<u64> = [vec![old], rest.clone()].concat();
    assert_eq!(group.change(old, &keep), Changing::Waiting);
    // The others get the change and that it's committed, and then the leader is gone.
    while group.voters(rest[0]).1.is_empty() {
        for node in 1..=5 {
            group.flush(node);
        }
        for message in std::mem::take(&mut group.wire) {
            let now = group.now;
            group.peers.get_mut(&message.to).unwrap().consensus.step(message, now).unwrap();
        }
    }
    group.wire.clear();
    group.down = vec![old];
    for _ in 0..60 {
        group.tick();
    }
    let new = group.elect();
    assert_ne!(new, old);
    let (voters, outgoing) = group.voters(new);
    assert!(outgoing.is_empty() && voters.len() == 3, "{voters:?} {outgoing:?}");
}

#[test]
fn a_change_that_was_not_committed_is_finished_or_forgotten_by_the_next_leader() {
    let mut group = Group::new(3);
    let old = group.elect();
    group.settle();
    group.down = (1..=3).filter(|node| *node != old).collect();
    let rest = group.down.clone();
    // Nobody hears of it.
    group.change(old, &[old, rest[0]]);
    group.settle();
    group.down = vec![old];
    for _ in 0..60 {
        group.tick();
    }
    let new = group.elect();
    group.down.clear();
    for _ in 0..20 {
        group.tick();
    }
    for node in 1..=3 {
        assert_eq!(group.voters(node), (vec![1, 2, 3], vec![]), "node {node}");
    }
    let mut keep = vec![new, old];
    keep.sort_unstable();
    group.change_all(&keep);
    assert_eq!(group.voters(new).0, keep);
}

#[test]
fn who_has_a_change_in_its_log_knows_that_the_one_before_is_committed() {
    let mut group = Group::new(1);
    group.settle();
    // What it commits by itself alone isn't news that Raft wants written.
    group.change(1, &[1, 2]);
    group.flush_unheard(1);
    let first = group.peers[&1].disk.0.lock().0.last().unwrap().index;
    group.change(1, &[1, 2, 3]);
    let ready = group.peers.get_mut(&1).unwrap().consensus.ready().unwrap();
    let disk = &group.peers[&1].disk;
    disk.write(&ready);
    let last = disk.0.lock().0.last().unwrap().index;
    let commit = disk.0.lock().1.commit;
    assert!(last > first && commit >= first, "{last}, {commit}, {first}");
}

#[test]
fn a_round_that_was_sent_before_a_change_gives_no_lease() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let now = group.now;
    group.peers.get_mut(&leader).unwrap().consensus.confirm(now).unwrap();
    group.flush(leader);
    // The round's heartbeats are slow.
    let is_slow = |message: &Message| message.get_msg_type() == MessageType::MsgHeartbeat;
    let (slow, rest) = std::mem::take(&mut group.wire).into_iter().partition(is_slow);
    group.wire = rest;
    group.change(leader, &[leader, leader % 3 + 1]);
    group.settle();
    assert_eq!(group.voters(leader).0.len(), 2);
    group.wire = slow;
    group.settle();
    let confirmed = group.peers.get_mut(&leader).unwrap().consensus.take_confirmed();
    assert_eq!(confirmed.iter().map(|confirmed| confirmed.lease).collect::<Vec<_>>(), [None]);
    // One that is sent afterwards does.
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    consensus.confirm(now);
    group.settle();
    let confirmed = group.peers.get_mut(&leader).unwrap().consensus.take_confirmed();
    assert!(confirmed.last().is_some_and(|confirmed| confirmed.lease.is_some()));
}

#[test]
fn who_leads_alone_does_not_once_a_change_is_proposed() {
    let mut group = Group::new(1);
    group.settle();
    let leads_alone = |group: &Group| group.peers[&1].consensus.leads_alone();
    assert!(leads_alone(&group));
    assert_eq!(group.change(1, &[1, 2]), Changing::Waiting);
    assert!(!leads_alone(&group), "another voter may exist before this one hears of it again");
    // A learner has no say.
    group.flush_unheard(1);
    let member = &group.peers[&1];
    assert_eq!(member.consensus.conf_state().learners.len(), 1);
    assert!(member.consensus.leads_alone());
}

#[test]
fn a_removed_member_that_asks_for_votes_is_found_out_and_disturbs_nobody() {
    let mut group = Group::new(3);
    let leader = group.elect();
    group.settle();
    let gone = leader % 3 + 1;
    let keep: Vec<u64> = (1..=3).filter(|node| *node != gone).collect();
    group.down = vec![gone];
    group.change_all(&keep);
    let term = group.standing(leader).term;
    let now = group.now + TICK * 100;
    for kind in [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote] {
        let mut ask = message(kind, gone, leader, term + 5);
        (ask.index, ask.log_term) = (1000, term + 4);
        let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
        consensus.step(ask, now).unwrap();
        assert_eq!(consensus.take_removed().map(Peer::raw), Some(gone));
        assert_eq!((consensus.standing().term, consensus.standing().role), (term, StateRole::Leader));
    }
    // One that isn't in the configuration yet is another matter.
    let later = Peer::new(NodeId(4), 1_000).raw();
    let ask = message(MessageType::MsgRequestPreVote, later, leader, term + 5);
    let consensus = &mut group.peers.get_mut(&leader).unwrap().consensus;
    consensus.step(ask, now).unwrap();
    assert_eq!(consensus.take_removed(), None);
}

#[test]
fn a_blank_replica_promises_nothing() {
    let mut member = blank(4, 50);
    let me = member.consensus.settings.peer.raw();
    for _ in 0..100 {
        member.consensus.tick().unwrap();
    }
    assert_eq!(member.consensus.standing().role, StateRole::Follower);
    let later = TICK * 1000;
    for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote, MessageType::MsgTimeoutNow] {
        let mut ask = message(kind, 1, me, 9);
        (ask.index, ask.log_term) = (100, 8);
        member.consensus.step(ask, later).unwrap();
        assert!(member.consensus.ready().is_none(), "{kind:?}");
    }
    // The log's begin without what was there before is no replica.
    let mut append = message(MessageType::MsgAppend, 1, me, 9);
    append.set_entries(vec![Entry { index: 1, term: 1, ..Entry::default() }].into());
    member.consensus.step(append, later).unwrap();
    assert!(member.consensus.is_blank());
    assert!(!member.consensus.standing().files_gone);
}

#[test]
fn a_replica_that_lost_its_files_says_so_and_votes_never_again() {
    let mut member = blank(4, 50);
    let me = member.consensus.settings.peer.raw();
    let mut heartbeat = message(MessageType::MsgHeartbeat, 1, me, 9);
    heartbeat.commit = 70;
    member.consensus.step(heartbeat, Duration::ZERO).unwrap();
    assert!(member.consensus.standing().files_gone);
    let ready = member.consensus.ready().unwrap();
    let (messages, _) = member.consensus.persisted();
    let rejected = |m: &Message| m.get_msg_type() == MessageType::MsgAppendResponse && m.reject;
    assert!(ready.messages.iter().chain(&messages).any(rejected), "the leader hears that it begins again");
    // An image that knows it as a voter is from when it voted.
    for (voter, taken) in [(true, 0), (false, 1)] {
        let mut offer = message(MessageType::MsgSnapshot, 1, me, 9);
        let mut snapshot = Snapshot::default();
        (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (80, 9);
        let state = snapshot.mut_metadata().mut_conf_state();
        state.voters = vec![1, 2];
        if voter {
            state.voters.push(me)
        } else {
            state.learners.push(me)
        }
        offer.set_snapshot(snapshot);
        member.consensus.step(offer, Duration::ZERO).unwrap();
        assert_eq!(member.consensus.take_offers().len(), taken);
    }
}
