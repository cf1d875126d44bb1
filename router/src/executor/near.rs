//! Reads that any replica may answer.
//!
//! A read whose level isn't strong goes to one replica ([`crate::replicas`]), once. If that one is behind of what the session
//! has seen, can't, or doesn't answer, the shard's leader is asked as for a strong read: so it costs at most one attempt more
//! than that. A level is a lower bound, and what is strong anyway goes to the leader at once: what writes or locks, and all that
//! belongs to it; what a transaction reads once it has a part anywhere; and what would be read of one shard twice.

use super::Executor;
use super::cut::Scan;
use super::statement::Statement;
use crate::replicas::{By, Verdict, Why, silent};
use futures::{StreamExt, TryStreamExt, stream};
use planner::plan::{Action, CopyOut, Fragment, Plan};
use proto::services::{Access, Consistency, Floor, FragmentResponse};
use proto::{ShardId, Value, WireError};
use std::collections::BTreeSet;

impl Statement<'_> {
    /// Whether what it reads may come from any replica.
    pub(super) fn is_weak(&self) -> bool {
        self.reading.consistency != Consistency::Strong
            && !self.positions.has_unheard()
            && self.kept.is_none()
            && self.transaction.is_none_or(|transaction| !transaction.has_part())
            && only_reads(self.plan)
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

/// Whether some shard is read by several fragments. Two snapshots of it would contradict each other.
pub(super) fn reads_twice(scans: &[Scan<'_>]) -> bool {
    let mut seen = BTreeSet::new();
    scans.iter().flat_map(|scan| &scan.shards).any(|shard| !seen.insert(*shard))
}

impl Executor {
    /// Reads one shard where that is best.
    pub(super) async fn read_near(
        &self,
        run: &Statement<'_>,
        shard: ShardId,
        fragment: &Fragment,
        scalars: &[Value],
    ) -> Result<FragmentResponse, WireError> {
        let (level, wait) = (run.reading.consistency, run.reading.wait);
        let floor = run.near_floor(shard);
        let why = match self.replicas.choose(shard, floor.index()) {
            None => Why::Avoided,
            Some(chosen) => {
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
                match (chosen.answered(&answer, wait, fragment.lookup), answer) {
                    (Verdict::Final, answer) => {
                        self.replicas.reads.count(level, by, Why::Asked);
                        let answer = answer?;
                        run.positions.saw(shard, answer.position);
                        return Ok(answer);
                    }
                    (Verdict::Behind, _) => Why::Behind,
                    (Verdict::Failed, _) => Why::Failed,
                }
            }
        };
        self.replicas.reads.count(level, By::Leader, why);
        let access = Access::strong(fragment.lookup);
        self.ask(run, shard, fragment, scalars, (access, None), &mut false).await
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
