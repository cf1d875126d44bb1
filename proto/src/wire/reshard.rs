//! Reshards as messages.

use super::generated as pb;
use super::shard::nanos;
use super::topology::{node_numbers, nodes};
use super::{Convert, DecodeError, each, id, known, maybe, messages, one, required};
use crate::ids::{Attempt, GroupId, LogIndex, NodeId, RequestId, ReshardId, ShardId, TransactionId};
use crate::services::{
    BuildAction, BuildProgress, BuildRequest, BuildTarget, Built, FlowObstacle, FlowStatus, HandOver,
    HandOverAction, HandedOver, Hindrance, HindranceCause, Progress, Reached, ReshardCommand, ReshardCourse,
    ReshardOptions, ReshardPhase, ReshardPlan, ReshardStatus, ReshardWish, SplitAt,
};
use std::time::Duration;

impl Convert for BuildRequest {
    type Message = pb::BuildRequest;
    const NAME: &'static str = "build";

    fn to_message(&self) -> pb::BuildRequest {
        use pb::build_request::{Action, Copy, Found, Image};
        let BuildRequest { reshard, tries, action, timeout } = self;
        let action = match action {
            BuildAction::Image { shard, group, after } => {
                Action::Image(Image { shard: shard.0, group: group.0, after: after.0 })
            }
            BuildAction::Copy { sources, targets, rests, rate } => Action::Copy(Copy {
                sources: sources.iter().map(|shard| shard.0).collect(),
                targets: messages(targets),
                rests: *rests,
                rate: *rate,
            }),
            BuildAction::Found { shard, group } => Action::Found(Found { shard: shard.0, group: group.0 }),
            BuildAction::Discard => Action::Discard(pb::Nothing {}),
        };
        pb::BuildRequest { reshard: reshard.0, tries: *tries, action: Some(action), timeout: nanos(*timeout) }
    }

    fn from_message(message: pb::BuildRequest) -> Result<Self, DecodeError> {
        use pb::build_request::{Action, Copy, Found, Image};
        let pb::BuildRequest { reshard, tries, action, timeout } = message;
        let action = match required("action", action)? {
            Action::Image(Image { shard, group, after }) => BuildAction::Image {
                shard: ShardId(id("image.shard", shard)?),
                group: GroupId(id("image.group", group)?),
                after: LogIndex(after),
            },
            Action::Copy(Copy { sources, targets, rests, rate }) => {
                if sources.is_empty() || targets.is_empty() {
                    return Err(DecodeError::new("copy", "it has no shards"));
                }
                let source = |shard| Ok(ShardId(id("copy.sources", shard)?));
                let sources = sources.into_iter().map(source).collect::<Result<_, _>>()?;
                BuildAction::Copy { sources, targets: each("copy.targets", targets)?, rests, rate }
            }
            Action::Found(Found { shard, group }) => BuildAction::Found {
                shard: ShardId(id("found.shard", shard)?),
                group: GroupId(id("found.group", group)?),
            },
            Action::Discard(pb::Nothing {}) => BuildAction::Discard,
        };
        let timeout = Duration::from_nanos(timeout);
        Ok(BuildRequest { reshard: ReshardId(id("reshard", reshard)?), tries, action, timeout })
    }
}

impl Convert for BuildTarget {
    type Message = pb::BuildTarget;
    const NAME: &'static str = "target";

    fn to_message(&self) -> pb::BuildTarget {
        let BuildTarget { shard, group, range } = self;
        pb::BuildTarget { shard: shard.0, group: group.0, range: Some(range.to_message()) }
    }

    fn from_message(message: pb::BuildTarget) -> Result<Self, DecodeError> {
        let pb::BuildTarget { shard, group, range } = message;
        let (shard, group) = (ShardId(id("shard", shard)?), GroupId(id("group", group)?));
        Ok(BuildTarget { shard, group, range: one("range", range)? })
    }
}

impl Convert for Built {
    type Message = pb::Built;
    const NAME: &'static str = "built";

    fn to_message(&self) -> pb::Built {
        use pb::built::Outcome;
        let outcome = match self {
            Built::Begun(index) => Outcome::Begun(index.0),
            Built::Copying(progress) => {
                let BuildProgress { images, rows, bytes } = *progress;
                Outcome::Copying(pb::BuildProgress {
                    images: images.done,
                    images_total: images.total,
                    rows,
                    bytes: bytes.done,
                    bytes_total: bytes.total,
                })
            }
            Built::Copied => Outcome::Copied(pb::Nothing {}),
            Built::DiskFull(directory) => Outcome::DiskFull(directory.clone()),
            Built::Lost(what) => Outcome::Lost(what.clone()),
            Built::Founded => Outcome::Founded(pb::Nothing {}),
            Built::Discarded => Outcome::Discarded(pb::Nothing {}),
        };
        pb::Built { outcome: Some(outcome) }
    }

    fn from_message(message: pb::Built) -> Result<Self, DecodeError> {
        use pb::built::Outcome;
        Ok(match required("outcome", message.outcome)? {
            Outcome::Begun(index) => Built::Begun(LogIndex(index)),
            Outcome::Copying(pb::BuildProgress { images, images_total, rows, bytes, bytes_total }) => {
                let images = Progress { done: images, total: images_total };
                Built::Copying(BuildProgress {
                    images,
                    rows,
                    bytes: Progress { done: bytes, total: bytes_total },
                })
            }
            Outcome::Copied(pb::Nothing {}) => Built::Copied,
            Outcome::DiskFull(directory) => Built::DiskFull(directory),
            Outcome::Lost(what) => Built::Lost(what),
            Outcome::Founded(pb::Nothing {}) => Built::Founded,
            Outcome::Discarded(pb::Nothing {}) => Built::Discarded,
        })
    }
}

impl Convert for HandOver {
    type Message = pb::HandOver;
    const NAME: &'static str = "hand_over";

    fn to_message(&self) -> pb::HandOver {
        use pb::hand_over::{Action, Clear, Seal};
        let HandOver { shard, reshard, attempt, action, timeout } = self;
        let action = match action {
            HandOverAction::Clear { drain } => Action::Clear(Clear { drain: nanos(*drain) }),
            HandOverAction::Seal { drain, cleared } => {
                Action::Seal(Seal { drain: nanos(*drain), cleared: *cleared })
            }
            HandOverAction::Unseal => Action::Unseal(pb::Nothing {}),
            HandOverAction::Reached => Action::Reached(pb::Nothing {}),
            HandOverAction::Flows => Action::Flows(pb::Nothing {}),
        };
        pb::HandOver {
            shard: shard.0,
            reshard: reshard.0,
            attempt: attempt.0,
            action: Some(action),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: pb::HandOver) -> Result<Self, DecodeError> {
        use pb::hand_over::{Action, Clear, Seal};
        let pb::HandOver { shard, reshard, attempt, action, timeout } = message;
        let action = match required("action", action)? {
            Action::Clear(Clear { drain }) => HandOverAction::Clear { drain: Duration::from_nanos(drain) },
            Action::Seal(Seal { drain, cleared }) => {
                HandOverAction::Seal { drain: Duration::from_nanos(drain), cleared }
            }
            Action::Unseal(pb::Nothing {}) => HandOverAction::Unseal,
            Action::Reached(pb::Nothing {}) => HandOverAction::Reached,
            Action::Flows(pb::Nothing {}) => HandOverAction::Flows,
        };
        if action != HandOverAction::Flows {
            id("attempt", attempt)?;
        }
        Ok(HandOver {
            shard: ShardId(id("shard", shard)?),
            reshard: ReshardId(id("reshard", reshard)?),
            attempt: Attempt(attempt),
            action,
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for HandedOver {
    type Message = pb::HandedOver;
    const NAME: &'static str = "handed_over";

    fn to_message(&self) -> pb::HandedOver {
        use pb::handed_over::{Flows, InTheWay, Outcome, Sealed};
        let outcome = match self {
            HandedOver::Clear => Outcome::Clear(pb::Nothing {}),
            HandedOver::Sealed { ended } => Outcome::Sealed(Sealed { ended: *ended }),
            HandedOver::InTheWay(found) => Outcome::InTheWay(InTheWay { hindrances: messages(found) }),
            HandedOver::Unsealed => Outcome::Unsealed(pb::Nothing {}),
            HandedOver::Reached(reached) => Outcome::Reached(reached.to_message()),
            HandedOver::Flows(flows) => Outcome::Flows(Flows { flows: messages(flows) }),
        };
        pb::HandedOver { outcome: Some(outcome) }
    }

    fn from_message(message: pb::HandedOver) -> Result<Self, DecodeError> {
        use pb::handed_over::Outcome;
        Ok(match required("outcome", message.outcome)? {
            Outcome::Clear(pb::Nothing {}) => HandedOver::Clear,
            Outcome::Sealed(sealed) => HandedOver::Sealed { ended: sealed.ended },
            Outcome::InTheWay(found) => HandedOver::InTheWay(each("in_the_way", found.hindrances)?),
            Outcome::Unsealed(pb::Nothing {}) => HandedOver::Unsealed,
            Outcome::Reached(reached) => {
                HandedOver::Reached(Reached::from_message(reached).map_err(|e| e.inside("reached"))?)
            }
            Outcome::Flows(flows) => HandedOver::Flows(each("flows", flows.flows)?),
        })
    }
}

impl Convert for Hindrance {
    type Message = pb::Hindrance;
    const NAME: &'static str = "hindrance";

    fn to_message(&self) -> pb::Hindrance {
        let Hindrance { transaction, cause, since } = self;
        let cause = match cause {
            HindranceCause::Busy => pb::hindrance::Cause::Busy,
            HindranceCause::Staged => pb::hindrance::Cause::Staged,
        };
        pb::Hindrance {
            transaction: Some(transaction.to_message()),
            cause: cause.into(),
            since: nanos(*since),
        }
    }

    fn from_message(message: pb::Hindrance) -> Result<Self, DecodeError> {
        let pb::Hindrance { transaction, cause, since } = message;
        let transaction: TransactionId = one("transaction", transaction)?;
        let cause = match known("cause", cause)? {
            pb::hindrance::Cause::Unspecified => return Err(DecodeError::new("cause", "it is missing")),
            pb::hindrance::Cause::Busy => HindranceCause::Busy,
            pb::hindrance::Cause::Staged => HindranceCause::Staged,
        };
        Ok(Hindrance { transaction, cause, since: Duration::from_nanos(since) })
    }
}

impl Convert for Reached {
    type Message = pb::Reached;
    const NAME: &'static str = "reached";

    fn to_message(&self) -> pb::Reached {
        let Reached { first, sources } = self;
        pb::Reached { first: first.0, sources: messages(sources) }
    }

    fn from_message(message: pb::Reached) -> Result<Self, DecodeError> {
        let pb::Reached { first, sources } = message;
        Ok(Reached { first: LogIndex(id("first", first)?), sources: each("sources", sources)? })
    }
}

impl Convert for FlowStatus {
    type Message = pb::FlowStatus;
    const NAME: &'static str = "flow";

    fn to_message(&self) -> pb::FlowStatus {
        use pb::flow_status::Obstacle;
        let FlowStatus { source, position, committed, lag, lag_bytes, obstacle } = self;
        let obstacle = obstacle.as_ref().map(|obstacle| match obstacle {
            FlowObstacle::Forgotten => Obstacle::Forgotten(pb::Nothing {}),
            FlowObstacle::Differs(what) => Obstacle::Differs(what.clone()),
        });
        pb::FlowStatus {
            source: source.0,
            position: position.0,
            committed: committed.0,
            lag: nanos(*lag),
            lag_bytes: *lag_bytes,
            obstacle,
        }
    }

    fn from_message(message: pb::FlowStatus) -> Result<Self, DecodeError> {
        use pb::flow_status::Obstacle;
        let pb::FlowStatus { source, position, committed, lag, lag_bytes, obstacle } = message;
        let obstacle = obstacle.map(|obstacle| match obstacle {
            Obstacle::Forgotten(pb::Nothing {}) => FlowObstacle::Forgotten,
            Obstacle::Differs(what) => FlowObstacle::Differs(what),
        });
        Ok(FlowStatus {
            source: ShardId(id("source", source)?),
            position: LogIndex(position),
            committed: LogIndex(committed),
            lag: Duration::from_nanos(lag),
            lag_bytes,
            obstacle,
        })
    }
}

impl Convert for ReshardWish {
    type Message = pb::ReshardWish;
    const NAME: &'static str = "reshard_wish";

    fn to_message(&self) -> pb::ReshardWish {
        use pb::reshard_wish::split::At;
        use pb::reshard_wish::{Bounds, Course, Merge, Split};
        let ReshardWish { request, course, options, dry_run } = self;
        let course = match course {
            ReshardCourse::Split { shard, at } => {
                let at = match at {
                    SplitAt::Evenly(parts) => At::Evenly(*parts),
                    SplitAt::Bounds(bounds) => {
                        At::Bounds(Bounds { bounds: bounds.iter().cloned().map(Into::into).collect() })
                    }
                };
                Course::Split(Split { shard: shard.clone(), at: Some(at) })
            }
            ReshardCourse::Merge { shards } => Course::Merge(Merge { shards: shards.clone() }),
        };
        pb::ReshardWish {
            request: Some(request.to_message()),
            course: Some(course),
            options: Some(options.to_message()),
            dry_run: *dry_run,
        }
    }

    fn from_message(message: pb::ReshardWish) -> Result<Self, DecodeError> {
        use pb::reshard_wish::split::At;
        use pb::reshard_wish::{Course, Merge, Split};
        let pb::ReshardWish { request, course, options, dry_run } = message;
        let request: RequestId = one("request", request)?;
        let course = match required("course", course)? {
            Course::Split(Split { shard, at }) => {
                let at = match required("split.at", at)? {
                    At::Evenly(parts) => SplitAt::Evenly(parts),
                    At::Bounds(bounds) => SplitAt::Bounds(bounds.bounds.into_iter().map(Vec::from).collect()),
                };
                ReshardCourse::Split { shard, at }
            }
            Course::Merge(Merge { shards }) => ReshardCourse::Merge { shards },
        };
        Ok(ReshardWish { request, course, options: one("options", options)?, dry_run })
    }
}

impl Convert for ReshardOptions {
    type Message = pb::ReshardOptions;
    const NAME: &'static str = "options";

    fn to_message(&self) -> pb::ReshardOptions {
        let ReshardOptions { auto, verify, rate, drain, keep, builder, nodes } = self;
        pb::ReshardOptions {
            auto: *auto,
            verify: *verify,
            rate: *rate,
            drain: nanos(*drain),
            keep: keep.map(nanos),
            builder: builder.map(|node| node.0),
            nodes: node_numbers(nodes),
        }
    }

    fn from_message(message: pb::ReshardOptions) -> Result<Self, DecodeError> {
        let pb::ReshardOptions { auto, verify, rate, drain, keep, builder, nodes: holders } = message;
        Ok(ReshardOptions {
            auto,
            verify,
            rate,
            drain: Duration::from_nanos(drain),
            keep: keep.map(Duration::from_nanos),
            builder: builder.map(|node| Ok(NodeId(id("builder", node)?))).transpose()?,
            nodes: nodes("nodes", holders)?,
        })
    }
}

impl Convert for ReshardPlan {
    type Message = pb::ReshardPlan;
    const NAME: &'static str = "reshard_plan";

    fn to_message(&self) -> pb::ReshardPlan {
        let ReshardPlan { reshard, what, builder, shards } = self;
        let shard = |(name, replicas): &(String, Vec<NodeId>)| pb::reshard_plan::Shard {
            name: name.clone(),
            replicas: node_numbers(replicas),
        };
        pb::ReshardPlan {
            reshard: reshard.map(|reshard| reshard.0),
            what: what.clone(),
            builder: builder.0,
            shards: shards.iter().map(shard).collect(),
        }
    }

    fn from_message(message: pb::ReshardPlan) -> Result<Self, DecodeError> {
        let pb::ReshardPlan { reshard, what, builder, shards } = message;
        let shard =
            |pb::reshard_plan::Shard { name, replicas }| Ok((name, nodes("shards.replicas", replicas)?));
        Ok(ReshardPlan {
            reshard: reshard.map(|reshard| Ok(ReshardId(id("reshard", reshard)?))).transpose()?,
            what,
            builder: NodeId(id("builder", builder)?),
            shards: shards.into_iter().map(shard).collect::<Result<_, _>>()?,
        })
    }
}

impl Convert for ReshardCommand {
    type Message = pb::ReshardCommand;
    const NAME: &'static str = "reshard_command";

    fn to_message(&self) -> pb::ReshardCommand {
        use pb::reshard_command::Kind;
        let kind = match self {
            ReshardCommand::Switch => Kind::Switch,
            ReshardCommand::Reverse => Kind::Reverse,
            ReshardCommand::Complete => Kind::Complete,
            ReshardCommand::Cancel => Kind::Cancel,
            ReshardCommand::Pause => Kind::Pause,
            ReshardCommand::Resume => Kind::Resume,
            ReshardCommand::Verify => Kind::Verify,
        };
        pb::ReshardCommand { kind: kind.into() }
    }

    fn from_message(message: pb::ReshardCommand) -> Result<Self, DecodeError> {
        use pb::reshard_command::Kind;
        Ok(match known("kind", message.kind)? {
            Kind::Unspecified => return Err(DecodeError::new("kind", "it is missing")),
            Kind::Switch => ReshardCommand::Switch,
            Kind::Reverse => ReshardCommand::Reverse,
            Kind::Complete => ReshardCommand::Complete,
            Kind::Cancel => ReshardCommand::Cancel,
            Kind::Pause => ReshardCommand::Pause,
            Kind::Resume => ReshardCommand::Resume,
            Kind::Verify => ReshardCommand::Verify,
        })
    }
}

impl ReshardPhase {
    /// Its number, on the wire and on disk.
    pub fn number(self) -> i32 {
        let phase = match self {
            ReshardPhase::Planned => pb::ReshardPhase::Planned,
            ReshardPhase::Placing => pb::ReshardPhase::Placing,
            ReshardPhase::Imaging => pb::ReshardPhase::Imaging,
            ReshardPhase::Copying => pb::ReshardPhase::Copying,
            ReshardPhase::Founding => pb::ReshardPhase::Founding,
            ReshardPhase::Spreading => pb::ReshardPhase::Spreading,
            ReshardPhase::CatchingUp => pb::ReshardPhase::CatchingUp,
            ReshardPhase::Verifying => pb::ReshardPhase::Verifying,
            ReshardPhase::Ready => pb::ReshardPhase::Ready,
            ReshardPhase::Switching => pb::ReshardPhase::Switching,
            ReshardPhase::Undoing => pb::ReshardPhase::Undoing,
            ReshardPhase::Switched => pb::ReshardPhase::Switched,
            ReshardPhase::Completing => pb::ReshardPhase::Completing,
            ReshardPhase::Cancelling => pb::ReshardPhase::Cancelling,
            ReshardPhase::Ended => pb::ReshardPhase::Ended,
        };
        phase.into()
    }

    /// The phase of a number.
    pub fn numbered(number: i32) -> Option<Self> {
        ReshardPhase::ALL.into_iter().find(|phase| phase.number() == number)
    }
}

impl Convert for ReshardStatus {
    type Message = pb::ReshardStatus;
    const NAME: &'static str = "reshard_status";

    fn to_message(&self) -> pb::ReshardStatus {
        let ReshardStatus {
            id,
            what,
            keyspace,
            phase,
            attempt,
            old,
            new,
            wanted,
            bytes,
            rows,
            lag,
            paused,
            failed,
            message,
            switches,
            ended,
            pause,
            completes_in,
            since,
        } = self;
        pb::ReshardStatus {
            id: id.0,
            what: what.clone(),
            keyspace: keyspace.clone(),
            phase: phase.number(),
            attempt: attempt.0,
            old: old.clone(),
            new: new.clone(),
            bytes: bytes.as_ref().map(Progress::to_message),
            lag: lag.map(nanos),
            paused: paused.clone(),
            message: message.clone(),
            since: nanos(*since),
            wanted: *wanted,
            rows: *rows,
            failed: failed.clone(),
            switches: *switches,
            ended: *ended,
            pause: pause.map(nanos),
            completes_in: completes_in.map(nanos),
        }
    }

    fn from_message(message: pb::ReshardStatus) -> Result<Self, DecodeError> {
        let phase = ReshardPhase::numbered(message.phase)
            .ok_or_else(|| DecodeError::new("phase", format_args!("unknown value {}", message.phase)))?;
        let pb::ReshardStatus {
            id: reshard,
            what,
            keyspace,
            phase: _,
            attempt,
            old,
            new,
            wanted,
            bytes,
            rows,
            lag,
            paused,
            failed,
            message,
            switches,
            ended,
            pause,
            completes_in,
            since,
        } = message;
        Ok(ReshardStatus {
            id: ReshardId(id("id", reshard)?),
            what,
            keyspace,
            phase,
            attempt: Attempt(attempt),
            old,
            new,
            wanted,
            bytes: maybe("bytes", bytes)?,
            rows,
            lag: lag.map(Duration::from_nanos),
            paused,
            failed,
            message,
            switches,
            ended,
            pause: pause.map(Duration::from_nanos),
            completes_in: completes_in.map(Duration::from_nanos),
            since: Duration::from_nanos(since),
        })
    }
}
