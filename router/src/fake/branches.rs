//! The fake cluster's transactions.

use super::{Fake, LOOKS, response_of};
use proto::services::*;
use proto::*;
use std::collections::BTreeSet;

/// A branch: its statements that stand, with what they were told.
#[derive(Default)]
pub struct FakeBranch {
    pub(super) statements: Vec<(u32, FragmentRequest, (RowBatch, u64))>,
    pub(super) last: u32,
    pub(super) undone: bool,
    pub(super) prepared: bool,
    pub(super) parallel: bool,
    /// Whose votes it is, if it is prepared.
    pub(super) votes: BTreeSet<ShardId>,
}

impl FakeBranch {
    /// Whether it has changed or locked something.
    pub(super) fn has_something(&self) -> bool {
        self.statements.iter().any(|(_, request, (_, affected))| {
            let reads = matches!(request.access, Access::Branch { access: BranchAccess::Read, .. });
            !reads && *affected > 0
        })
    }
}

impl Fake {
    pub(super) fn run_in_branch(
        &self,
        request: &FragmentRequest,
        branch: Branch,
    ) -> ServiceResult<FragmentResponse> {
        let mut branches = self.branches.lock();
        let key = (request.shard, branch.transaction);
        if branch.statement == 1 {
            branches.entry(key).or_default();
        }
        let Some(found) = branches.get_mut(&key) else { return Err(unknown_branch()) };
        assert!(!found.prepared, "a statement after the vote");
        if let Some((_, _, answer)) = found.statements.iter().find(|(number, ..)| *number == branch.statement)
        {
            return Ok(response_of(answer.0.clone(), answer.1, self.log(request.shard, 0)));
        }
        assert!(branch.statement >= found.last, "a number for the second time");
        if branch.statement > found.last + 1 && !found.undone {
            return Err(unknown_branch());
        }
        (found.last, found.undone) = (branch.statement, false);
        let before = found.statements.iter().map(|(_, request, _)| request);
        let answer = self.execute_sql(request.shard, before, Some(request), false)?;
        found.statements.push((branch.statement, request.clone(), answer.clone()));
        Ok(response_of(answer.0, answer.1, self.log(request.shard, 0)))
    }

    pub(super) fn act(&self, request: &BranchRequest) -> ServiceResult<LogIndex> {
        // What has only read stays where it is, and can be undone.
        if !matches!(request.action, BranchAction::RollbackTo(_)) {
            self.admit(request.shard, request.epoch)?;
        }
        let mut branches = self.branches.lock();
        let key = (request.shard, request.transaction);
        let found = branches.get_mut(&key);
        match (&request.action, found) {
            (BranchAction::Prepare { .. }, found) if let Some(of) = request.on_behalf => {
                let has_ended = self.kept.lock().contains(&key);
                if !has_ended && !found.is_some_and(|branch| branch.votes.contains(&of)) {
                    return Err(unknown_branch());
                }
            }
            (BranchAction::RollbackTo(statement), Some(branch)) => {
                branch.statements.retain(|(number, ..)| number <= statement);
                branch.undone |= *statement < branch.last;
            }
            (BranchAction::Commit { request: id, .. }, None) if self.done.lock().contains_key(id) => {}
            (BranchAction::Commit { request: id, .. }, Some(branch)) => {
                self.execute_sql(request.shard, branch.statements.iter().map(|(_, r, _)| r), None, true)?;
                self.done.lock().insert(*id, 0);
                branches.remove(&key);
            }
            (BranchAction::Prepare { participants, parallel }, Some(branch)) => {
                branch.prepared = true;
                branch.votes.insert(request.shard);
                let mut votes = self.votes.lock();
                let missing = votes
                    .entry(request.transaction)
                    .or_insert_with(|| participants.iter().copied().collect());
                missing.remove(&request.shard);
                branch.parallel = *parallel;
            }
            (BranchAction::Finish { commit, keep }, Some(branch)) => {
                let verdict = self.verdicts.lock().get(&request.transaction).copied();
                let all_voted = self.votes.lock().get(&request.transaction).is_some_and(BTreeSet::is_empty);
                assert!(
                    verdict == Some(*commit)
                        || (*commit && *keep && branch.parallel && all_voted && verdict.is_none())
                        || (!branch.prepared && !commit && verdict != Some(true)),
                    "{request:?} against {verdict:?}"
                );
                if *commit && *keep {
                    self.kept.lock().insert(key);
                }
                if *commit {
                    self.execute_sql(request.shard, branch.statements.iter().map(|(_, r, _)| r), None, true)?;
                }
                branches.remove(&key);
            }
            (BranchAction::Finish { .. }, None) => {}
            (BranchAction::Fail(_), _) => {
                branches.remove(&key);
            }
            (BranchAction::Forget(ids), _) => {
                let mut kept = self.kept.lock();
                kept.retain(|(shard, id)| *shard != request.shard || !ids.contains(id));
            }
            _ => return Err(unknown_branch()),
        }
        let is_written = matches!(
            request.action,
            BranchAction::Commit { .. } | BranchAction::Prepare { .. } | BranchAction::Finish { .. }
        );
        Ok(self.log(request.shard, is_written.into()))
    }

    /// Waits until what is committed by its votes is finished on a shard, unless that takes long: as statements do.
    pub(super) async fn wait_for_committed(&self, of: ShardId) {
        let is_committed = |(shard, id): &(ShardId, TransactionId), branch: &FakeBranch| {
            let votes = self.votes.lock();
            *shard == of && branch.parallel && votes.get(id).is_some_and(BTreeSet::is_empty)
        };
        for _ in 0..LOOKS {
            if !self.branches.lock().iter().any(|(key, branch)| is_committed(key, branch)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// How many branches there are, on all shards together.
    pub fn open_branches(&self) -> usize {
        self.branches.lock().len()
    }

    /// A new leader: the branches that aren't prepared are lost.
    pub fn lose_branches(&self) {
        self.branches.lock().retain(|_, branch| branch.prepared);
    }

    /// The actions of a kind so far, by the shards' numbers, sorted.
    pub fn acted(&self, kind: &str) -> Vec<u64> {
        let mut shards: Vec<_> =
            self.actions.lock().iter().filter(|(of, _)| *of == kind).map(|(_, shard)| *shard).collect();
        shards.sort_unstable();
        shards
    }
}

fn unknown_branch() -> WireError {
    WireError::new(
        SqlState::SERIALIZATION_FAILURE,
        "the transaction was aborted: the shard's leader has changed",
    )
}
