//! The end of a run: all is healed, everybody gets somewhere, nothing is left, and what happened is judged.

use super::super::clients::{End, lock, look};
use super::{Outcome, World};
use crate::sim::rows;
use crate::sim::trace::{SECOND, Time};
use proto::services::{Consistency, CoordinatorService, ShardService};
use proto::{GroupId, WireError};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long after the last fault every client must get somewhere.
const RECOVERY: Time = 60 * SECOND;
/// How many transactions of each client must be committed by then.
const COMMITS_AFTER: u64 = 2;
/// How long the last transactions may take once no other is begun.
const LAST_WORDS: Time = 90 * SECOND;
/// How long it may take then until nothing is left of any transaction.
const SETTLING: Time = 40 * SECOND;
/// How long the look at everything may take.
const LOOK: Time = 30 * SECOND;
/// How long replicas may take to have the same.
const CONVERGENCE: Time = 20 * SECOND;

impl World {
    /// Brings the run to its end.
    pub(super) fn end(&mut self) -> Outcome {
        self.heal();
        if self.plan.deaths {
            self.bury()?;
        }
        let before = lock(&self.shared.committed).clone();
        let works = |world: &Self| {
            let committed = lock(&world.shared.committed);
            committed.iter().zip(&before).all(|(now, before)| *now >= before + COMMITS_AFTER)
        };
        if !self.run_until(self.now() + RECOVERY, works)? {
            let after = lock(&self.shared.committed).clone();
            let left = Arc::new(Mutex::new(None));
            self.ask_what_is_left(&left);
            self.run_until(self.now() + 3 * SECOND, |_| lock(&left).is_some())?;
            let left = lock(&left).take().unwrap_or_else(|| "nobody can say".to_owned());
            let state = self.state();
            return Err(format!(
                "not live {} s after all was healed: clients had {before:?} commits, and have {after:?}{state}\n    left: {left}",
                RECOVERY / SECOND
            ));
        }
        self.shared.ends.store(true, Ordering::Relaxed);
        let all_ended = |world: &Self| Arc::strong_count(&world.shared) == 1;
        if !self.run_until(self.now() + LAST_WORDS, all_ended)? {
            return Err(format!("a client's last transaction takes {} s", LAST_WORDS / SECOND));
        }
        self.note(format_args!("every client has ended"));
        self.settle()?;
        let found = Arc::new(Mutex::new(None));
        self.clients.handle().spawn(look(self.shared.clone(), found.clone()));
        if !self.run_until(self.now() + LOOK, |_| lock(&found).is_some())? {
            return Err(format!("what is there can't be read within {} s", LOOK / SECOND));
        }
        let found: End = lock(&found).take().expect("it was just seen");
        if found.money != self.shared.money() {
            return Err(format!("the accounts have {} and not {}", found.money, self.shared.money()));
        }
        lock(&self.shared.history).judge(&found.lists, self.shared.cuts)?;
        self.converge()?;
        self.note(format_args!("the end"));
        Ok(())
    }

    /// Waits until no shard has a branch, the coordinator has nothing left to finish, and nothing is left of reshards.
    fn settle(&mut self) -> Outcome {
        let until = self.now() + SETTLING;
        loop {
            let left = Arc::new(Mutex::new(None));
            self.ask_what_is_left(&left);
            if !self.run_until((self.now() + 3 * SECOND).min(until), |_| lock(&left).is_some())? {
                *lock(&left) = Some("nobody can say what is left".to_owned());
            }
            let left = lock(&left).take().unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            if self.now() >= until {
                return Err(format!("{} s after the last transaction: {left}", SETTLING / SECOND));
            }
            self.run_until(self.now() + SECOND / 2, |_| false)?;
        }
    }

    /// Has the leaders say what is left of transactions and reshards.
    fn ask_what_is_left(&mut self, left: &Arc<Mutex<Option<String>>>) {
        let mut shards = BTreeMap::new();
        let mut coordinator = None;
        let mut found = Vec::new();
        for node in self.nodes.values() {
            let Some(process) = &node.process else { continue };
            let statuses = process.host.statuses();
            let holds =
                statuses.iter().flat_map(|status| status.holds.iter().map(|hold| (status.group, hold)));
            found.extend(holds.map(|(group, hold)| format!("group {group}'s log is held: {hold:?}")));
            for replica in process.host.replicas().into_iter().filter(replica::Replica::is_leader) {
                let tasks = process.tasks.handle();
                if replica.group() == GroupId::COORDINATOR {
                    coordinator = Some((process.coordinator.clone(), tasks));
                } else {
                    shards.insert(replica.group(), (process.shards.clone(), tasks));
                }
            }
        }
        let left = left.clone();
        self.clients.handle().spawn(async move {
            match coordinator {
                None => found.push("the coordinator has no leader".to_owned()),
                Some((service, tasks)) => {
                    let asked = tasks.spawn(async move {
                        let state = service.status().await?.state;
                        Ok::<_, WireError>((state, service.transactions(None).await?))
                    });
                    match asked.await {
                        Ok(Ok((state, transactions))) => {
                            let unfinished = transactions.iter().filter(|transaction| !transaction.finished);
                            found.extend(unfinished.map(|transaction| format!("{transaction:?}")));
                            let topology = &state.topology;
                            found.extend(topology.reshards.iter().map(|reshard| format!("{reshard:?}")));
                            let placed = |group| topology.shards.values().any(|shard| shard.group == group);
                            let others = shards.keys().filter(|group| !placed(**group));
                            found.extend(others.map(|group| format!("group {group} is no shard's")));
                            for shard in topology.shards.values() {
                                let Some((service, tasks)) = shards.get(&shard.group).cloned() else {
                                    found.push(format!("shard {} has no leader", shard.id));
                                    continue;
                                };
                                let id = shard.id;
                                let asked = tasks.spawn(async move { service.branches(id).await });
                                match asked.await {
                                    Ok(Ok(branches)) if branches.is_empty() => {}
                                    other => found.push(format!("shard {id}: {other:?}")),
                                }
                            }
                        }
                        other => found.push(format!("the coordinator: {:?}", other.map(drop))),
                    }
                }
            }
            *lock(&left) = Some(found.join("; "));
        });
        for id in self.ids() {
            self.wake(id);
        }
    }

    /// Waits until all replicas of each group have applied the same, and compares what they have.
    fn converge(&mut self) -> Outcome {
        let same = |world: &Self| world.positions().is_some();
        if !self.run_until(self.now() + CONVERGENCE, same)? {
            return Err(format!("replicas aren't the same after {} s{}", CONVERGENCE / SECOND, self.state()));
        }
        let mut hashes: BTreeMap<GroupId, (u64, u128)> = Default::default();
        for (id, node) in &self.nodes {
            let Some(process) = &node.process else { continue };
            for replica in process.host.replicas() {
                let _entered = process.tasks.enter();
                let deadline = proto::machine::now() + Duration::from_secs(1);
                let snapshot = now_or_never(replica.snapshot(Consistency::Eventual, deadline));
                let Some(Ok(snapshot)) = snapshot else {
                    return Err(format!("group {} can't be read on node {id} in the end", replica.group()));
                };
                let hash = rows::hash(snapshot.connection()).map_err(|error| error.to_string())?;
                let (first, expected) = *hashes.entry(replica.group()).or_insert((*id, hash));
                if expected != hash {
                    return Err(format!(
                        "nodes {first} and {id} have other rows of group {}",
                        replica.group()
                    ));
                }
            }
        }
        Ok(())
    }

    /// What each group has applied, if that is the same everywhere.
    fn positions(&self) -> Option<()> {
        let mut applied = BTreeMap::new();
        let mut count = 0;
        for node in self.nodes.values() {
            for replica in node.process.as_ref()?.host.replicas() {
                let status = replica.status();
                count += 1;
                let first = *applied.entry(replica.group()).or_insert(status.applied);
                if first != status.applied || status.stopped.is_some() {
                    return None;
                }
            }
        }
        (count == applied.len() * self.nodes.len()).then_some(())
    }

    /// How all replicas are, for people.
    fn state(&self) -> String {
        let mut text = String::new();
        for node in self.nodes.values() {
            match &node.process {
                None => text += &format!("\n    node {} is down", node.id),
                Some(process) => {
                    for status in process.host.statuses() {
                        text += &format!(
                            "\n    node {}: group {} {:?} of term {}, leader {:?}, applied {}, {:?}",
                            node.id,
                            status.group,
                            status.role,
                            status.term,
                            status.leader,
                            status.applied,
                            status.stopped
                        );
                    }
                }
            }
        }
        text
    }
}

/// What a future gives at once.
pub(super) fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
