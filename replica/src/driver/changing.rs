//! What a group's leader is asked to do about its members: change them, or have another lead.
//!
//! Requests wait here, and each time that something happened in the group they are taken a step further. Whoever asked
//! and went away isn't served any more; what has been done stays, and asking again goes on from there. It must never
//! know how a step is done.

use super::shared::Shared;
use crate::consensus::{Changing, Consensus, Standing, Target};
use crate::peer::Peer;
use proto::services::Members;
use proto::{NodeId, Retry, SqlState, WireError};
use raft::StateRole;
use raft::eraftpb::ConfState;
use tokio::sync::oneshot;

/// Who asked, and waits.
pub(crate) type Asker<T> = oneshot::Sender<Result<T, WireError>>;

/// Who the members are to be.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub voters: Vec<NodeId>,
    pub rebuild: Option<NodeId>,
}

/// Requests under way in one group.
#[derive(Default)]
pub(super) struct Requests {
    members: Option<(Target, Asker<Members>)>,
    transfer: Option<(Peer, Asker<()>)>,
}

impl Requests {
    /// Begins to change the members, if this replica leads and no other change is under way.
    pub fn change_members(
        &mut self,
        consensus: &Consensus,
        shared: &Shared,
        wish: Wish,
        answer: Asker<Members>,
    ) {
        let refusal = if consensus.standing().role != StateRole::Leader {
            Some(shared.not_leader())
        } else if self.members.as_ref().is_some_and(|(_, answer)| !answer.is_closed()) {
            let message = format!("the members of group {} are being changed", shared.group);
            Some(WireError::new(SqlState::OBJECT_IN_USE, message))
        } else {
            refuse(&wish)
        };
        if let Some(refusal) = refusal {
            return drop(answer.send(Err(refusal)));
        }
        let Wish { mut voters, rebuild } = wish;
        voters.sort_unstable();
        voters.dedup();
        // One that catches up is what an earlier call has put in the old one's place.
        let replaced =
            rebuild.and_then(|node| consensus.member_on(node)).filter(|peer| consensus.is_voter(*peer));
        self.members = Some((Target { voters, replaced }, answer));
    }

    /// Begins to hand leadership over, to whom it's best for if nobody is named.
    pub fn transfer_leader(
        &mut self,
        consensus: &mut Consensus,
        shared: &Shared,
        to: Option<NodeId>,
        answer: Asker<()>,
    ) {
        if consensus.standing().role != StateRole::Leader {
            return drop(answer.send(Err(shared.not_leader())));
        }
        if to == Some(shared.node) {
            return drop(answer.send(Ok(())));
        }
        let mut voters = consensus.other_voters();
        voters.retain(|peer| to.is_none_or(|to| peer.node() == to));
        let Some(to) = consensus.best_of(&voters).or(voters.first().copied()) else {
            let message = match to {
                Some(to) => format!("node {to} isn't a voter of group {}", shared.group),
                None => format!("group {} has no other voter", shared.group),
            };
            let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
            return drop(answer.send(Err(error)));
        };
        if consensus.hand_over(to) {
            if let Some((_, answer)) = self.transfer.replace((to, answer)) {
                drop(answer.send(Err(interrupted(shared))));
            }
        } else {
            drop(answer.send(Err(interrupted(shared))));
        }
    }

    /// Takes a leader's requests a step further.
    pub fn go_on(&mut self, consensus: &mut Consensus) {
        let ended = self.transfer.take_if(|(_, answer)| answer.is_closed()).is_some()
            | self.members.take_if(|(_, answer)| answer.is_closed()).is_some();
        if ended && self.transfer.is_none() {
            // It may come to pass long after anyone wants it. A change of members that needs it asks for it again.
            consensus.give_up_hand_over();
        }
        let Some((target, _)) = &self.members else { return };
        let answer = match consensus.change_members(target) {
            Changing::Waiting => return,
            Changing::HandOver(to) => {
                consensus.hand_over(to);
                return;
            }
            Changing::Done => Ok(members(&consensus.conf_state())),
            Changing::Refused(why) => Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, why)),
        };
        if let Some((_, waiting)) = self.members.take() {
            drop(waiting.send(answer));
        }
    }

    /// Answers those whose question is settled by who leads now.
    pub fn settle(&mut self, consensus: &Consensus, standing: Standing, shared: &Shared) {
        if standing.role == StateRole::Leader {
            if consensus.handing_over().is_none()
                && let Some((_, answer)) = self.transfer.take()
            {
                drop(answer.send(Err(interrupted(shared))));
            }
            return;
        }
        // Who is about to lead doesn't yet.
        if standing.successor.is_some() {
            return;
        }
        if let Some((to, answer)) = self.transfer.take() {
            let done = standing.leader == Some(to.node());
            drop(answer.send(if done { Ok(()) } else { Err(shared.not_leader()) }));
        }
        if let Some((_, answer)) = self.members.take() {
            drop(answer.send(Err(shared.not_leader())));
        }
    }

    /// The replica goes away.
    pub fn fail(self, shared: &Shared) {
        if let Some((_, answer)) = self.transfer {
            drop(answer.send(Err(shared.not_leader())));
        }
        if let Some((_, answer)) = self.members {
            drop(answer.send(Err(shared.not_leader())));
        }
    }
}

fn refuse(wish: &Wish) -> Option<WireError> {
    let message = match wish.rebuild {
        _ if wish.voters.is_empty() => "a group needs a voter".to_owned(),
        Some(node) if !wish.voters.contains(&node) => {
            format!("node {node} is to be rebuilt but isn't to be a voter")
        }
        _ => match wish.voters.iter().find(|node| Peer::check_node(**node).is_err()) {
            Some(node) => format!("node {node} can't be a member of groups"),
            None => return None,
        },
    };
    Some(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message))
}

fn interrupted(shared: &Shared) -> WireError {
    let message = format!("leadership of group {} wasn't taken over in time", shared.group);
    WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).with_retry(Retry::Later)
}

/// A configuration in the words of those who know nodes alone.
pub(crate) fn members(state: &ConfState) -> Members {
    let nodes = |ids: Vec<u64>| {
        let mut nodes: Vec<NodeId> = ids.into_iter().filter_map(Peer::from_raw).map(Peer::node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    };
    Members {
        voters: nodes([state.voters.clone(), state.voters_outgoing.clone()].concat()),
        learners: nodes([state.learners.clone(), state.learners_next.clone()].concat()),
        joint: !state.voters_outgoing.is_empty(),
    }
}
