//! Reads that any replica may answer.
//!
//! A read whose level isn't strong goes to one replica ([`crate::replicas`]). If that one is behind of what the session
//! has seen, the shard's leader is asked as for a strong read; so it costs at most one attempt more than that. If it can't, or
//! doesn't answer, the others are asked before, each once, and so they are where nobody is known to lead. A leader that isn't to
//! be had in a moment leaves it to the replicas again, all of them: it is where there is no majority that they are wanted most.
//! A level is a lower bound, and what is strong anyway goes to the leader at once: what writes or locks, and all that
//! belongs to it; what a transaction reads once it has a part anywhere; what would be read of one shard twice; at the level
//! `session`, copies of reference tables; and what is read of a shard of which a commit wasn't heard.

use super::Executor;
use super::cut::Scan;
use super::statement::Statement;
use crate::replicas::{By, Verdict, Why, silent};
use futures::{StreamExt, TryStreamExt, stream};
use planner::plan::{Action, CopyOut, Fragment, Plan};
use proto::machine;
use proto::services::{Access, Consistency, Floor, FragmentResponse};
use proto::{Retry, ShardId, Value, WireError};
use std::collections::BTreeSet;
use std::time::Duration;

impl Statement<'_> {
    /// Whether what it reads may come from any replica.
    pub(super) fn is_weak(&self) -> bool {
        self.reading.consistency != Consistency::Strong
            && self.kept.is_none()
            && self.transaction.is_none_or(|transaction| !transaction.has_part())
            && only_reads(self.plan)
            // Each shard's copy of a reference table has its own time.
            && !(self.reading.consistency == Consistency::Session && self.plan.reads_copies)
    }

    /// What a replica must show. Nothing where staleness is all that was asked for; but what a statement reads after its
    /// own subquery isn't from before that.
    fn near_floor(&self, shard: ShardId) -> Floor {
        let floor = self.positions.floor(shard);
        match self.reading.consistency {
            Consistency::Strong | Consistency::Session => floor,
            _ if !self.plan.first.is_empty() => Floor::applied(floor.applied),
            Consistency::Bounded(_) | Consistency::Eventual => Floor::default(),
        }
    }
}

/// Whether a plan is a query that locks nothing.
fn only_reads(plan: &Plan) -> bool {
    match &plan.action {
        Action::Query(query) | Action::CopyOut(CopyOut { query, .. }) => {
            query.lock.is_none() && plan.locks_first().is_none()
        }
        _ => false,
    }
}

/// Whether what a leader was asked in vain may come to something yet.
fn may_pass(error: &WireError) -> bool {
    matches!(error.retry, Retry::NotLeader(_) | Retry::Later | Retry::Behind(_) | Retry::Unknown)
}

/// Whether some shard is read by several fragments. Two snapshots of it would contradict each other.
pub(super) fn reads_twice(scans: &[Scan<'_>]) -> bool {
    let mut seen = BTreeSet::new();
    scans.iter().flat_map(|scan| &scan.shards).any(|shard| !seen.insert(*shard))
}

/// How long a leader is asked in vain before the replicas are asked again.
const LEADER_PATIENCE: Duration = Duration::from_millis(250);

impl Executor {
    /// Reads one shard where that is best.
    pub(super) async fn read_near(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
    ) -> Result<FragmentResponse, WireError> {
        let until = run.retry_until();
        let brief = Statement { state: run.state.clone(), retry_for: LEADER_PATIENCE, ..*run };
        let mut is_first = true;
        loop {
            let wait = run.reading.wait.min(until.saturating_duration_since(machine::now()));
            let why = match self.read_replica(run, shard, fragment, scalars, (wait, is_first)).await? {
                Ok(answer) => return Ok(answer),
                Err(why) => why,
            };
            is_first = false;
            let access = (Access::strong(fragment.lookup), None);
            match self.ask(&brief, shard, fragment, scalars, access, &mut false).await {
                Err(error) if may_pass(&error) && machine::now() < until => {}
                answer => {
                    self.replicas.reads.count(run.reading.consistency, By::Leader, why);
                    return answer;
                }
            }
        }
    }

    /// Reads one shard from a replica that is there and isn't behind, where each may wait so long; or says why the leader is to
    /// be asked. `is_first`: one that is behind is enough of a reason.
    async fn read_replica(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
        (wait, is_first): (Duration, bool),
    ) -> Result<Result<FragmentResponse, Why>, WireError> {
        let level = run.reading.consistency;
        let (mut tried, mut why) = (Vec::new(), Why::Avoided);
        loop {
            let floor = run.near_floor(shard);
            let chosen = match is_first && tried.is_empty() {
                true => self.replicas.choose(shard, floor.index()),
                false => self.replicas.choose_other(shard, floor.index(), &tried),
            };
            let Some(chosen) = chosen else { return Ok(Err(why)) };
            tried.push(chosen.node);
            let access = Access::Read { consistency: level, wait, lookup: fragment.lookup };
            let request = run.request(shard, fragment, scalars, access, floor)?;
            let answer = chosen.service.execute(request);
            // A scan may take as long as it likes, if only its node is there.
            let answer = async {
                if !fragment.lookup {
                    return Ok(answer.await);
                }
                let bounded = tokio::time::timeout(chosen.patience(wait), answer);
                Ok(bounded.await.unwrap_or_else(|_| Err(silent())))
            };
            let answer = run.attend(answer).await?;
            let by = if chosen.leads { By::Leader } else { By::Follower };
            let because = if tried.len() > 1 { why } else { Why::Asked };
            match chosen.answered(&answer, wait, fragment.lookup) {
                Verdict::Final => {
                    self.replicas.reads.count(level, by, because);
                    let answer = answer?;
                    run.positions.saw(shard, answer.position);
                    return Ok(Ok(answer));
                }
                Verdict::Behind if is_first && self.has_leader(shard) => return Ok(Err(Why::Behind)),
                Verdict::Behind => why = Why::Behind,
                Verdict::Failed => why = Why::Failed,
            }
        }
    }

    /// Whether somebody is known to lead a shard.
    fn has_leader(&self, shard: ShardId) -> bool {
        let state = self.cluster.load();
        let shard = state.topology.shards.get(&shard);
        shard.is_some_and(|shard| self.cluster.leader(&state, shard.group).is_some())
    }

    /// Reads shards that have nothing to do with each other, each where that is best.
    pub(super) async fn read_apart(
        &self,
        run: &Statement<'_>,
        scans: &[Scan<'_>],
        scalars: &[Value],
    ) -> Result<Vec<Vec<FragmentResponse>>, WireError> {
        let mut reads = Vec::new();
        for Scan { fragment, shards } in scans {
            reads.extend(shards.iter().map(|shard| self.read(run, *shard, fragment, scalars, None)));
        }
        let answers: Vec<_> = stream::iter(reads).buffered(self.config.shards_at_once).try_collect().await?;
        let mut answers = answers.into_iter();
        Ok(scans.iter().map(|scan| answers.by_ref().take(scan.shards.len()).collect()).collect())
    }
}

#[cfg(test)]
mod tests;
