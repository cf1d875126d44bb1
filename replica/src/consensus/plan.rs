//! The next step from the members that a group has to those that it is to have.
//!
//! A configuration and a target go in, one change comes out, or what has to come to pass first. Nothing is remembered
//! between steps: whoever leads next goes on from the configuration alone. It must never know how a change is proposed.
//!
//! Members that come are learners first, one after the other, and vote only when they have what the others have. Then
//! one joint change lets in who comes and lets go who leaves. A member that is made anew leaves before it comes back,
//! so that no node ever has two members of a group.

use crate::peer::Peer;
use proto::NodeId;
use raft::eraftpb::{ConfChangeType, ConfState};

/// Who a group's members are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Where the voters are to be.
    pub voters: Vec<NodeId>,
    /// A member that must go, whatever takes its place.
    pub replaced: Option<Peer>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing: the members are those of the target.
    Done,
    /// These members have to get what the others have.
    CatchUp(Vec<Peer>),
    /// Propose this.
    Change(Vec<(ConfChangeType, Peer)>),
    /// Propose to leave the joint configuration.
    Leave,
    /// Have one of these lead, for the leader itself is to go.
    HandOver(Vec<Peer>),
    /// The target can't be.
    Refuse(&'static str),
}

/// The members of a configuration.
struct Members {
    voters: Vec<Peer>,
    learners: Vec<Peer>,
}

impl Members {
    fn of(state: &ConfState) -> Self {
        let peers = |ids: &[u64]| {
            let mut peers: Vec<Peer> = ids.iter().copied().filter_map(Peer::from_raw).collect();
            peers.sort_unstable();
            peers
        };
        Self { voters: peers(&state.voters), learners: peers(&state.learners) }
    }

    fn has(&self, node: NodeId) -> bool {
        self.voters.iter().chain(&self.learners).any(|peer| peer.node() == node)
    }
}

/// The next step. `next` is the index that a change would have if it were proposed now; `keeps_up` says whether a member
/// has what the others have.
pub(crate) fn plan(
    state: &ConfState,
    me: Peer,
    next: u64,
    keeps_up: impl Fn(Peer) -> bool,
    target: &Target,
) -> Plan {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    if !state.voters_outgoing.is_empty() {
        return Plan::Leave;
    }
    let members = Members::of(state);
    let wanted = |peer: &Peer| target.voters.contains(&peer.node());
    if let Some(old) = target.replaced {
        if members.learners.contains(&old) {
            return Plan::Change(vec![(RemoveNode, old)]);
        }
        if members.voters.contains(&old) {
            let others: Vec<Peer> = members.voters.iter().copied().filter(|peer| *peer != old).collect();
            return match others.is_empty() {
                true => Plan::Refuse("its only voter can't be made anew: nobody else has its rows"),
                false if old == me => Plan::HandOver(others),
                false => Plan::Change(vec![(RemoveNode, old)]),
            };
        }
    }
    if let Some(node) = target.voters.iter().find(|node| !members.has(**node)) {
        return Plan::Change(vec![(AddLearnerNode, Peer::new(*node, next))]);
    }
    let coming: Vec<Peer> = members.learners.iter().copied().filter(wanted).collect();
    let late: Vec<Peer> = coming.iter().copied().filter(|peer| !keeps_up(*peer)).collect();
    if !late.is_empty() {
        return Plan::CatchUp(late);
    }
    let staying: Vec<Peer> = members.voters.iter().copied().filter(wanted).collect();
    let mut changes: Vec<(ConfChangeType, Peer)> = coming.iter().map(|peer| (AddNode, *peer)).collect();
    let leaves = |peer: &&Peer| !wanted(peer);
    let leaving = members.voters.iter().chain(&members.learners).filter(leaves);
    changes.extend(leaving.map(|peer| (RemoveNode, *peer)));
    if changes.is_empty() {
        return Plan::Done;
    }
    if changes.contains(&(RemoveNode, me)) {
        if !staying.is_empty() {
            return Plan::HandOver(staying);
        }
        // Who comes must be a voter before it can lead.
        changes.retain(|change| *change != (RemoveNode, me));
        return Plan::Change(changes);
    }
    // The new voters' majority must be there, or the change would leave a group that can't go on.
    let mut voters = staying;
    voters.extend(&coming);
    let majority = voters.len() / 2 + 1;
    let behind: Vec<Peer> = voters.iter().copied().filter(|peer| *peer != me && !keeps_up(*peer)).collect();
    if voters.len() - behind.len() < majority {
        return Plan::CatchUp(behind);
    }
    Plan::Change(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};

    const NEXT: u64 = 50;

    fn peer(node: u64) -> Peer {
        Peer::founding(NodeId(node))
    }

    fn state(voters: &[Peer], learners: &[Peer]) -> ConfState {
        let raw = |peers: &[Peer]| peers.iter().map(|peer| peer.raw()).collect::<Vec<_>>();
        ConfState { voters: raw(voters), learners: raw(learners), ..ConfState::default() }
    }

    fn target(voters: &[u64]) -> Target {
        Target { voters: voters.iter().copied().map(NodeId).collect(), replaced: None }
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let state = state(&[peer(1), peer(2), peer(3)], &[]);
        assert_eq!(plan(&state, peer(1), NEXT, |_| false, &target(&[3, 2, 1])), Plan::Done);
    }

    #[test]
    fn a_member_comes_as_a_learner_catches_up_and_votes_together_with_who_leaves() {
        let (old, new) = ([peer(1), peer(2), peer(3)], Peer::new(NodeId(4), NEXT));
        let target = target(&[1, 2, 4]);
        let step = |learners: &[Peer], late: &[Peer]| {
            plan(&state(&old, learners), peer(1), NEXT, |peer| !late.contains(&peer), &target)
        };
        assert_eq!(step(&[], &[]), Plan::Change(vec![(AddLearnerNode, new)]));
        assert_eq!(step(&[new], &[new, peer(3)]), Plan::CatchUp(vec![new]));
        assert_eq!(step(&[new], &[peer(3)]), Plan::Change(vec![(AddNode, new), (RemoveNode, peer(3))]));
        let after = state(&[peer(1), peer(2), new], &[]);
        assert_eq!(plan(&after, peer(1), NEXT + 9, |_| true, &target), Plan::Done);
    }

    #[test]
    fn a_joint_configuration_is_left_first() {
        let mut state = state(&[peer(1), peer(2)], &[]);
        state.voters_outgoing = vec![1, 2, 3];
        assert_eq!(plan(&state, peer(1), NEXT, |_| true, &target(&[1, 2, 3])), Plan::Leave);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_to_one_that_stays() {
        let state = state(&[peer(1), peer(2), peer(3)], &[]);
        let step = |me| plan(&state, me, NEXT, |_| true, &target(&[2, 3]));
        assert_eq!(step(peer(1)), Plan::HandOver(vec![peer(2), peer(3)]));
        assert_eq!(step(peer(2)), Plan::Change(vec![(RemoveNode, peer(1))]));
    }

    #[test]
    fn a_leader_whom_nobody_outlives_lets_the_others_in_first() {
        let new = Peer::new(NodeId(2), 40);
        let target = target(&[2]);
        let before = state(&[peer(1)], &[new]);
        assert_eq!(plan(&before, peer(1), NEXT, |_| true, &target), Plan::Change(vec![(AddNode, new)]));
        let after = state(&[peer(1), new], &[]);
        assert_eq!(plan(&after, peer(1), NEXT, |_| true, &target), Plan::HandOver(vec![new]));
        assert_eq!(plan(&after, new, NEXT, |_| true, &target), Plan::Change(vec![(RemoveNode, peer(1))]));
    }

    #[test]
    fn a_member_that_is_made_anew_leaves_before_it_comes() {
        let target = Target { replaced: Some(peer(3)), ..target(&[1, 2, 3]) };
        let step = |me, voters: &[Peer]| plan(&state(voters, &[]), me, NEXT, |_| true, &target);
        assert_eq!(step(peer(1), &[peer(1), peer(2), peer(3)]), Plan::Change(vec![(RemoveNode, peer(3))]));
        assert_eq!(step(peer(3), &[peer(1), peer(2), peer(3)]), Plan::HandOver(vec![peer(1), peer(2)]));
        let again = Peer::new(NodeId(3), NEXT);
        assert_eq!(step(peer(1), &[peer(1), peer(2)]), Plan::Change(vec![(AddLearnerNode, again)]));
        assert_eq!(step(peer(1), &[peer(1), peer(2), again]), Plan::Done);
        assert!(matches!(step(peer(3), &[peer(3)]), Plan::Refuse(_)));
    }

    #[test]
    fn nobody_is_let_go_if_the_rest_could_not_go_on() {
        let state = state(&[peer(1), peer(2), peer(3)], &[]);
        let alive = |peer: Peer| peer.node() == NodeId(3);
        assert_eq!(plan(&state, peer(1), NEXT, alive, &target(&[1, 2])), Plan::CatchUp(vec![peer(2)]));
        assert_eq!(
            plan(&state, peer(1), NEXT, alive, &target(&[1, 3])),
            Plan::Change(vec![(RemoveNode, peer(2))])
        );
    }

    #[test]
    fn a_learner_that_nobody_wants_goes() {
        let stray = Peer::new(NodeId(4), 40);
        let state = state(&[peer(1), peer(2), peer(3)], &[stray]);
        let step = plan(&state, peer(1), NEXT, |peer| peer != stray, &target(&[1, 2, 3]));
        assert_eq!(step, Plan::Change(vec![(RemoveNode, stray)]));
    }
}
