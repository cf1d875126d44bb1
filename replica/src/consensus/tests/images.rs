//! Followers that need what the leader's log has forgotten.

use super::*;
use crate::image::{Image, ImageId, offer, offered};
use raft::Storage as _;

fn image(id: u128, index: u64, voters: u64) -> Image {
    let conf_state = ConfState { voters: (1..=voters).collect(), ..ConfState::default() };
    Image { id: ImageId(id), length: 1, index, conf_state }
}

/// A group that has cut its logs while one of three was away. Gives the leader and the one.
fn behind() -> (Group, u64, u64) {
    let mut group = Group::new(3);
    let leader = group.elect();
    let away = (1..=3).find(|node| *node != leader).unwrap();
    group.down = vec![away];
    let term = group.standing(leader).term;
    for data in ["a", "b", "c"] {
        group.propose(leader, term, data).unwrap();
        group.settle();
    }
    (1..=3).filter(|node| *node != away).for_each(|node| cut(&mut group, node));
    group.down.clear();
    (group, leader, away)
}

/// Forgets all but the last entry.
fn cut(group: &mut Group, node: u64) {
    let store = group.consensus(node).store();
    let last = store.last_index().unwrap();
    let cut = store.cut_at(last).unwrap();
    store.was_cut(cut);
}

impl Group {
    fn wanted(&mut self, node: u64) -> Option<Wanted> {
        self.consensus(node).take_wanted()
    }

    fn consensus(&mut self, node: u64) -> &mut Consensus {
        &mut self.peers.get_mut(&node).unwrap().consensus
    }

    /// Lets time pass until the node is offered an image.
    fn offer_to(&mut self, node: u64) -> Snapshot {
        for _ in 0..60 {
            if let Some(message) = self.consensus(node).take_offers().pop() {
                return message.get_snapshot().clone();
            }
            self.tick();
        }
        panic!("it is offered nothing");
    }

    fn last(&mut self, node: u64) -> u64 {
        self.consensus(node).store().last_index().unwrap()
    }
}

#[test]
fn who_needs_what_was_cut_gets_an_image_and_the_entries_after_it() {
    let (mut group, leader, away) = behind();
    for _ in 0..3 {
        group.tick();
    }
    let cut = group.consensus(leader).store().cut();
    assert_eq!(group.wanted(leader), Some(Wanted { member: away, least: cut.index }));

    // One that is older than the log is of no use, and is not offered.
    assert!(!group.consensus(leader).store().add_image(image(1, cut.index - 1, 3)));
    assert!(group.consensus(leader).store().add_image(image(2, cut.index, 3)));
    let snapshot = group.offer_to(away);
    assert_eq!(offered(&snapshot).unwrap(), image(2, cut.index, 3));
    assert_eq!(snapshot.get_metadata().term, cut.term);
    assert_eq!(group.wanted(leader), None);

    // Nothing has changed for it before the image is there, however long that takes.
    for _ in 0..30 {
        group.tick();
    }
    assert_eq!((group.last(away), group.leader()), (1, Some(leader)));

    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Taken);
    let ready = group.consensus(away).ready().unwrap();
    assert_eq!((ready.snapshot, ready.sync), (Some(cut), true));
    assert!(ready.committed.is_empty());
    group.peers[&away].disk.write(&ready);
    let (messages, _) = group.consensus(away).persisted();
    group.wire.extend(messages);
    group.settle();
    assert_eq!(group.committed(away), ["c"], "what comes after the image comes from the log");
    let term = group.standing(leader).term;
    group.propose(leader, term, "d").unwrap();
    group.settle();
    assert_eq!(group.committed(away), ["c", "d"]);
}

#[test]
fn a_transfer_that_failed_is_tried_again_with_what_there_is_then() {
    let (mut group, leader, away) = behind();
    let index = group.consensus(leader).store().cut().index;
    group.consensus(leader).store().add_image(image(1, index, 3));
    group.offer_to(away);
    for _ in 0..30 {
        group.tick();
    }
    assert!(group.consensus(away).take_offers().is_empty(), "Raft waits for the transfer");
    let term = group.standing(leader).term;
    group.propose(leader, term, "d").unwrap();
    group.settle();
    group.consensus(leader).store().drop_image(ImageId(1));
    group.consensus(leader).store().add_image(image(2, index + 1, 3));
    group.consensus(leader).offer_ended(NodeId(away));
    let snapshot = group.offer_to(away);
    assert_eq!(offered(&snapshot).unwrap().id, ImageId(2));
    // That it ended is told of one that has arrived, too; then it changes nothing.
    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Taken);
    group.settle();
    group.consensus(leader).offer_ended(NodeId(away));
    for _ in 0..5 {
        group.tick();
    }
    assert_eq!(group.committed(away), ["d"]);
}

#[test]
fn an_image_outlives_the_leader_that_offered_it() {
    let (mut group, leader, away) = behind();
    let index = group.consensus(leader).store().cut().index;
    group.consensus(leader).store().add_image(image(1, index, 3));
    let snapshot = group.offer_to(away);
    group.down = vec![leader];
    for _ in 0..30 {
        group.tick();
    }
    let new = group.elect();
    assert!(new != leader && new != away, "who is behind isn't elected");
    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Taken);
    group.settle();
    for _ in 0..5 {
        group.tick();
    }
    assert_eq!(group.committed(away), ["c"], "the new leader goes on from there");
}

#[test]
fn an_image_waits_for_a_leader_to_be_known() {
    let (mut group, leader, away) = behind();
    let index = group.consensus(leader).store().cut().index;
    group.consensus(leader).store().add_image(image(1, index, 3));
    let snapshot = group.offer_to(away);
    group.down = vec![away];
    for _ in 0..30 {
        group.tick();
    }
    assert_eq!(group.standing(away).leader, None);
    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Later);
    group.down.clear();
    for _ in 0..30 {
        group.tick();
    }
    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Taken);
}

#[test]
fn who_has_caught_up_needs_no_image() {
    let mut group = Group::new(3);
    let leader = group.elect();
    let term = group.standing(leader).term;
    let index = group.propose(leader, term, "a").unwrap();
    group.settle();
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    let snapshot = offer(&image(1, index, 3), term);
    assert_eq!(group.consensus(follower).install(&snapshot).unwrap(), Install::Unneeded);
    // A late offer is answered by Raft itself.
    let mut message = Message { from: leader, to: follower, term, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    let now = group.now;
    group.consensus(follower).step(message, now).unwrap();
    assert!(group.consensus(follower).take_offers().is_empty());
    assert!(group.consensus(follower).ready().unwrap().snapshot.is_none());
}

#[test]
fn a_member_that_came_after_an_image_needs_a_newer_one() {
    let (mut group, leader, _) = behind();
    let index = group.consensus(leader).store().cut().index;
    let store = group.consensus(leader).store();
    store.add_image(image(1, index, 3));
    let unavailable = raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable);
    assert_eq!(store.snapshot(0, 4), Err(unavailable));
    assert_eq!(store.take_wanted(), Some(Wanted { member: 4, least: index }));
    let mut newer = image(2, index, 3);
    newer.conf_state.learners = vec![4];
    store.add_image(newer);
    assert_eq!(offered(&store.snapshot(0, 4).unwrap()).unwrap().id, ImageId(2));
    // raft-rs ignores one that doesn't have its receiver, so it isn't even fetched.
    let mut message = Message { from: leader, to: leader, term: 99, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.set_snapshot(offer(&Image { conf_state: ConfState::default(), ..image(3, 99, 3) }, 9));
    let now = group.now;
    group.consensus(leader).step(message, now).unwrap();
    assert!(group.consensus(leader).take_offers().is_empty());
}

#[test]
fn who_has_an_image_may_campaign_before_the_database_is_swapped() {
    let (mut group, leader, away) = behind();
    let index = group.consensus(leader).store().cut().index;
    group.consensus(leader).store().add_image(image(1, index, 3));
    let snapshot = group.offer_to(away);
    assert_eq!(group.consensus(away).install(&snapshot).unwrap(), Install::Taken);
    // All have the image's last entry and no more, and the one doesn't hear of what comes after it.
    group.down = vec![leader];
    group.settle();
    for _ in 0..40 {
        group.tick();
    }
    assert_ne!(group.standing(away).term, 0);
    let roles = [group.standing(away).role, group.standing(6 - leader - away).role];
    assert!(roles.contains(&StateRole::Leader), "{roles:?}");
}

#[test]
fn a_new_leader_keeps_the_log_for_who_has_not_said_yet_what_it_has() {
    let mut group = Group::new(3);
    let dead = group.elect();
    let term = group.standing(dead).term;
    group.propose(dead, term, "a").unwrap();
    group.settle();
    (1..=3).for_each(|node| cut(&mut group, node));
    group.down = vec![dead];
    let leader = group.elect();
    let begin = group.consensus(leader).store().cut().index;
    let term = group.standing(leader).term;
    group.propose(leader, term, "b").unwrap();
    group.settle();
    assert_eq!(group.consensus(leader).floor(), begin, "it may have all that was there");

    group.down.clear();
    (0..6).for_each(|_| group.tick());
    assert_eq!(group.wanted(leader), None, "the log has what it lacks");
    assert_eq!(group.consensus(leader).floor(), group.last(leader));

    // A dead member doesn't hold it for ever.
    let kept = settings(leader).log_keep_bytes;
    group.down = vec![dead];
    for _ in 0..30 {
        group.consensus(leader).propose(term, vec![0; kept as usize / 10].into()).unwrap();
        group.settle();
    }
    let last = group.last(leader);
    assert!((last - 20..last).contains(&group.consensus(leader).floor()));
}
