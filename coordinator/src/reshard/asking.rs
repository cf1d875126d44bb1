//! Asking for what a reshard's machine says is to be asked for.
//!
//! In comes one [`Ask`], and the record as it was then; out comes the event that it leads to, none if it is to be asked again, or what
//! is in its way. Every question has its time, and can be asked again without harm. Nothing is kept here.

use super::comparing;
use super::machine::{Ask, Event};
use super::record::{Hold, Record};
use crate::repair::Scene;
use crate::replicas;
use crate::service::Core;
use crate::store::Store;
use bytes::Bytes;
use proto::machine;
use proto::services::{
    BuildAction, BuildRequest, BuildTarget, Built, Consistency, HandOver, HandOverAction, HandedOver,
    LogHold, Progress, ReplicaAction, ReplicaRole, ReplicaService, ReplicaStatus, ShardService,
};
use proto::topology::{Shard, Topology};
use proto::{Attempt, GroupId, LogIndex, NodeId, ReshardId, Retry, ShardId, SqlState, WireError};
use std::sync::Arc;
use std::time::Duration;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a shard's leader may take to answer.
const ANSWERING: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, WireError>;

/// Asks for one reshard.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) core: Arc<Core>,
    pub(crate) record: Arc<Record>,
}

/// How soon something is asked for again that was answered, and is still to be asked for.
pub(crate) fn pause(ask: &Ask) -> Duration {
    match ask {
        // What was heard half a second ago says nothing of now.
        Ask::Flows { .. } | Ask::Whole => Duration::from_millis(200),
        // Flows catch up between two spans.
        Ask::Compare { .. } => Duration::from_millis(200),
        Ask::Clear { .. } | Ask::Seal { .. } | Ask::Unseal { .. } | Ask::Reached { .. } => {
            Duration::from_millis(50)
        }
        Ask::Place { .. } | Ask::Spread { .. } | Ask::TakeBack { .. } => Duration::from_millis(200),
        Ask::Hold { .. } | Ask::Image { .. } | Ask::Copy { .. } | Ask::Found { .. } => {
            Duration::from_millis(500)
        }
        Ask::Wait | Ask::LetGo { .. } | Ask::Discard { .. } => Duration::from_secs(1),
    }
}

impl Asker {
    /// Asks once.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Option<Event>> {
        let limit = match ask {
            // It waits for transactions.
            Ask::Clear { .. } | Ask::Seal { .. } => self.record.options.drain + LIMIT,
            Ask::Compare { .. } => comparing::LONGEST,
            _ => LIMIT,
        };
        match tokio::time::timeout(limit, self.answer(ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(WireError::new(SqlState::CANNOT_CONNECT_NOW, "nobody has answered in time")),
        }
    }

    async fn answer(&self, ask: &Ask) -> Result<Option<Event>> {
        match ask.clone() {
            Ask::Wait => Ok(None),
            Ask::Place { group, node } => self.place(group, node).await,
            Ask::Hold { group, hold } => self.hold(group, hold).await,
            Ask::LetGo { group, before } => self.let_go(group, before).await,
            Ask::Spread { group, replicas } => self.spread(group, &replicas).await,
            Ask::Whole => Ok(Some(Event::Whole(self.lacks()))),
            Ask::TakeBack { group, node } => self.take_back(group, node).await,
            Ask::Image { shard, tries } => self.image(shard, tries).await,
            Ask::Copy { tries, rests } => self.copy(tries, rests).await,
            Ask::Found { shard, group, tries } => {
                match self.build(tries, BuildAction::Found { shard, group }).await? {
                    Built::Founded => Ok(Some(Event::Founded { group, tries })),
                    other => told(tries, other),
                }
            }
            Ask::Discard { node } => self.discard(node).await,
            Ask::Flows { shard } => {
                match self.hand_over(shard, self.record.attempt, HandOverAction::Flows).await? {
                    HandedOver::Flows(flows) => Ok(Some(Event::Flows { shard, flows })),
                    other => Err(strange(shard, &other)),
                }
            }
            Ask::Clear { shard, attempt } => {
                let drain = self.record.options.drain;
                self.attempt(shard, attempt, HandOverAction::Clear { drain }).await
            }
            Ask::Seal { shard, attempt } => {
                let (drain, cleared) = (self.record.options.drain, self.record.clears());
                // Whoever needs another one of them waits meanwhile.
                let drain = if cleared { drain / 4 } else { drain };
                self.attempt(shard, attempt, HandOverAction::Seal { drain, cleared }).await
            }
            Ask::Reached { shard, attempt } => self.attempt(shard, attempt, HandOverAction::Reached).await,
            Ask::Unseal { shard, attempt } => {
                let outcome = self.hand_over(shard, attempt, HandOverAction::Unseal).await?;
                Ok(Some(Event::HandedOver { shard, attempt, outcome }))
            }
            Ask::Compare { attempt, tries } => self.compare(attempt, tries).await,
        }
    }

    fn topology(&self) -> Arc<Topology> {
        self.core.state.subscribe().borrow().topology.clone()
    }

    /// The shard of a group, as far as the topology has one.
    fn shard(&self, group: GroupId) -> Option<Shard> {
        self.topology().shards.values().find(|shard| shard.group == group).cloned()
    }

    async fn place(&self, group: GroupId, node: NodeId) -> Result<Option<Event>> {
        let shard = self.shard(group).ok_or_else(|| gone(group))?;
        if shard.replicas.contains(&node) {
            return Ok(Some(Event::Placed { group, node }));
        }
        self.change(group, ReplicaAction::Add(node)).await.map(|()| None)
    }

    async fn take_back(&self, group: GroupId, node: NodeId) -> Result<Option<Event>> {
        let held = self.shard(group).is_some_and(|shard| shard.replicas.contains(&node));
        if !held {
            return Ok(Some(Event::TakenBack { group, node }));
        }
        self.change(group, ReplicaAction::Remove(node)).await.map(|()| None)
    }

    /// One change after the other, until the group has these replicas and the first of them leads.
    async fn spread(&self, group: GroupId, replicas: &[NodeId]) -> Result<Option<Event>> {
        let shard = self.shard(group).ok_or_else(|| gone(group))?;
        let leader = self.core.state.subscribe().borrow().leaders.get(group);
        let lacks = replicas.iter().find(|node| !shard.replicas.contains(node));
        let exceeds = shard.replicas.iter().find(|node| !replicas.contains(node));
        let action = match (lacks, exceeds, replicas.first()) {
            (Some(node), ..) => ReplicaAction::Add(*node),
            (None, _, Some(first)) if leader != Some(*first) => ReplicaAction::TransferLeader(*first),
            (None, Some(node), _) => ReplicaAction::Remove(*node),
            (None, None, _) => return Ok(Some(Event::Spread { group, replicas: replicas.to_vec() })),
        };
        self.change(group, action).await.map(|()| None)
    }

    /// Has a change of replicas begin, unless one of the group is under way.
    async fn change(&self, group: GroupId, action: ReplicaAction) -> Result<()> {
        let deadline = machine::now() + LIMIT;
        let jobs = {
            let snapshot = self.core.replica.snapshot(Consistency::Strong, deadline).await?;
            Store(snapshot.connection()).replica_jobs()?
        };
        if jobs.iter().any(|job| job.group() == group) {
            return Ok(());
        }
        let (id, known) = (self.record.id, self.core.known(machine::now()));
        let begin = move |store: Store<'_>| {
            let cause = format!("reshard {id}");
            replicas::needed(store, group, action, &cause, &known).map(|()| Bytes::new())
        };
        self.core.write(begin).await?;
        self.core.state.refresh(&self.core.replica).await?;
        self.core.begun.notify_one();
        Ok(())
    }

    /// What keeps an attempt from beginning: a group without a leader, or with replicas that aren't well.
    fn lacks(&self) -> Option<String> {
        let state = self.core.state.subscribe().borrow().clone();
        let known = self.core.known(machine::now());
        let scene =
            Scene { topology: &state.topology, vitals: &known.vitals, config: &known.config, now: known.now };
        let parts = self.record.old.parts.iter().chain(&self.record.new.parts);
        parts.map(|part| part.group).find_map(|group| {
            let shard = state.topology.shards.values().find(|shard| shard.group == group);
            let Some(shard) = shard else { return Some(format!("group {group} isn't in the topology")) };
            let is_ill = |node: &&NodeId| scene.well(group, &[**node]) == 0;
            let ill = shard.replicas.iter().find(is_ill);
            let lacks = match (ill, state.leaders.get(group)) {
                (Some(node), _) => format!("a replica on node {node} that is well"),
                (None, None) => "a leader".to_owned(),
                (None, Some(_)) => return None,
            };
            Some(format!("{} lacks {lacks}", state.topology.shard_name(shard.id)))
        })
    }

    async fn image(&self, shard: ShardId, tries: u32) -> Result<Option<Event>> {
        let part = self.record.old.parts.iter().find(|part| part.shard == shard);
        let part =
            part.ok_or_else(|| WireError::internal(format!("shard {shard} is none of the old ones")))?;
        let group = part.group;
        // What it lacks must be in the log.
        let after = self.record.held.get(&group).map_or(LogIndex(0), |(_, from)| LogIndex(from.0 - 1));
        match self.build(tries, BuildAction::Image { shard, group, after }).await? {
            Built::Begun(index) => Ok(Some(Event::Begun { shard, tries, index })),
            other => told(tries, other),
        }
    }

    async fn copy(&self, tries: u32, rests: bool) -> Result<Option<Event>> {
        let sources = self.record.old.parts.iter().map(|part| part.shard).collect();
        let targets = self.record.new.parts.iter().map(|part| {
            let (shard, group, range) = (part.shard, part.group, part.range.clone());
            BuildTarget { shard, group, range }
        });
        let (targets, rate) = (targets.collect(), self.record.options.rate);
        match self.build(tries, BuildAction::Copy { sources, targets, rests, rate }).await? {
            Built::Copying(progress) => {
                let mut seen = self.core.reshards.lock();
                let seen = seen.entry(self.record.id).or_default();
                // All is copied twice: into images, and from them.
                let (images, bytes) = (progress.images, progress.bytes);
                let total = images.total.max(bytes.total);
                let imaged = if bytes.total > 0 { total } else { images.done };
                seen.built = Some(Progress { done: imaged + bytes.done, total: total * 2 });
                seen.rows = Some(progress.rows);
                Ok(None)
            }
            other => told(tries, other),
        }
    }

    async fn discard(&self, node: NodeId) -> Result<Option<Event>> {
        let silence = self.core.state.silence(node);
        if !self.topology().nodes.contains_key(&node) || silence >= self.core.config.silent_after {
            // It deletes what nobody names when it comes back.
            return Ok(Some(Event::Discarded { node }));
        }
        match self.build(self.record.tries, BuildAction::Discard).await? {
            Built::Discarded => Ok(Some(Event::Discarded { node })),
            other => told(self.record.tries, other),
        }
    }

    /// Asks the builder.
    async fn build(&self, tries: u32, action: BuildAction) -> Result<Built> {
        let node = self.record.builder;
        let service = self.core.reach().peers.shard_service(node).ok_or_else(|| {
            let message = format!("node {node}, which builds, isn't known");
            WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later)
        })?;
        service.build(BuildRequest { reshard: self.record.id, tries, action, timeout: ANSWERING }).await
    }

    async fn hold(&self, group: GroupId, hold: Hold) -> Result<Option<Event>> {
        // From its own entry on: an image is begun once that is applied, and so has all that came before. What lies before may be
        // forgotten at any moment.
        let index = self.set_hold(group, hold, Some(LogIndex(u64::MAX))).await?;
        Ok(Some(Event::Held { group, hold, from: LogIndex(index.0 + 1) }))
    }

    /// Holds a log from an index on, or no more. Answers with the index from which on every replica knows.
    pub(crate) async fn set_hold(
        &self,
        group: GroupId,
        hold: Hold,
        from: Option<LogIndex>,
    ) -> Result<LogIndex> {
        self.set(group, hold_name(self.record.id, hold), from).await
    }

    async fn set(&self, group: GroupId, name: String, from: Option<LogIndex>) -> Result<LogIndex> {
        let nodes = self.shard(group).ok_or_else(|| gone(group))?.replicas;
        let ask = |service: Arc<dyn ReplicaService>| {
            let name = name.clone();
            async move { service.hold_log(group, name, from, LIMIT).await }
        };
        self.core.reach().group(group, &nodes, LIMIT, ask).await
    }

    async fn let_go(&self, group: GroupId, before: Hold) -> Result<Option<Event>> {
        if self.shard(group).is_some() {
            let holds = self.leading(group).await?.holds;
            let ends = holds.into_iter().map(|LogHold { name, .. }| name);
            let ends = ends
                .filter(|name| hold_of(name).is_some_and(|(id, hold)| id == self.record.id && hold < before));
            for name in ends {
                self.set(group, name, None).await?;
            }
        }
        Ok(Some(Event::LetGo { group, before }))
    }

    /// What an attempt wants of a shard. What that refuses for good ends the attempt.
    async fn attempt(
        &self,
        shard: ShardId,
        attempt: Attempt,
        action: HandOverAction,
    ) -> Result<Option<Event>> {
        Ok(Some(match self.hand_over(shard, attempt, action).await {
            Ok(outcome) => Event::HandedOver { shard, attempt, outcome },
            Err(error) => Event::Refused { shard, attempt, why: error.message },
        }))
    }

    /// Asks a shard's leader, and whoever leads after it, until there is an answer. An error is one that asking again can't mend.
    async fn hand_over(
        &self,
        shard: ShardId,
        attempt: Attempt,
        action: HandOverAction,
    ) -> Result<HandedOver> {
        let timeout = match action {
            HandOverAction::Clear { drain } | HandOverAction::Seal { drain, .. } => drain + ANSWERING,
            HandOverAction::Unseal | HandOverAction::Reached | HandOverAction::Flows => ANSWERING,
        };
        let request = HandOver { shard, reshard: self.record.id, attempt, action, timeout };
        let call = |service: Arc<dyn ShardService>| {
            let request = request.clone();
            async move { service.hand_over(request).await }
        };
        self.core.reach().leader(shard, call).await
    }

    /// What a group's leader is doing.
    async fn leading(&self, group: GroupId) -> Result<ReplicaStatus> {
        let nodes = self.shard(group).ok_or_else(|| gone(group))?.replicas;
        let ask = |service: Arc<dyn ReplicaService>| async move {
            let found = service.replicas().await?.into_iter().find(|status| status.group == group);
            let leader = found.as_ref().and_then(|status| status.leader);
            found.filter(|status| status.role == ReplicaRole::Leader).ok_or_else(|| {
                let message = format!("this node doesn't lead group {group}");
                WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::NotLeader(leader))
            })
        };
        self.core.reach().group(group, &nodes, LIMIT, ask).await
    }
}

/// What a builder says that may say it whatever it is asked for.
fn told(tries: u32, answer: Built) -> Result<Option<Event>> {
    Ok(match answer {
        Built::Copied => Some(Event::Copied { tries }),
        Built::DiskFull(directory) => Some(Event::DiskFull { tries, directory }),
        Built::Lost(what) => Some(Event::Lost { tries, what }),
        Built::Begun(_) | Built::Copying(_) | Built::Founded | Built::Discarded => None,
    })
}

fn strange(shard: ShardId, answer: &HandedOver) -> WireError {
    WireError::internal(format!("shard {shard} answers what it wasn't asked: {answer:?}"))
}

/// The name under which a reshard holds logs.
fn hold_name(id: ReshardId, hold: Hold) -> String {
    format!("reshard/{id}/{}", hold.0)
}

/// Whose hold it is, and which.
pub(crate) fn hold_of(name: &str) -> Option<(ReshardId, Hold)> {
    let (id, hold) = name.strip_prefix("reshard/")?.split_once('/')?;
    Some((ReshardId(id.parse().ok()?), Hold(hold.parse().ok()?)))
}

fn gone(group: GroupId) -> WireError {
    WireError::new(SqlState::CANNOT_CONNECT_NOW, format!("group {group} isn't in the topology"))
        .with_retry(Retry::Later)
}
