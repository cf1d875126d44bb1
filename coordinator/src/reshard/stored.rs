//! The record of a reshard as bytes. The messages here are kept on disk: a field's number is for ever.

use super::record::{Counts, Hold, Options, Part, PauseCause, Paused, Record, Side, Which};
use proto::services::ReshardPhase;
use proto::topology::Retired;
use proto::{
    Attempt, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, NodeId, RequestId, ReshardId,
    RouterIncarnation, ShardId, SqlState, WireError,
};
use std::time::Duration;

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(uint64, tag = "3")]
    router: u64,
    #[prost(uint64, tag = "4")]
    sequence: u64,
    #[prost(uint32, tag = "5")]
    keyspace: u32,
    #[prost(string, tag = "6")]
    what: String,
    /// As on the wire.
    #[prost(int32, tag = "7")]
    phase: i32,
    #[prost(uint32, tag = "8")]
    attempt: u32,
    #[prost(uint32, tag = "9")]
    tries: u32,
    #[prost(uint32, tag = "10")]
    overruns: u32,
    #[prost(message, repeated, tag = "11")]
    old: Vec<StoredPart>,
    #[prost(message, repeated, tag = "12")]
    new: Vec<StoredPart>,
    #[prost(bool, tag = "13")]
    old_served: bool,
    #[prost(bool, tag = "14")]
    new_served: bool,
    #[prost(bool, tag = "15")]
    new_serves: bool,
    #[prost(uint64, tag = "16")]
    builder: u64,
    #[prost(message, repeated, tag = "17")]
    lent: Vec<StoredLent>,
    #[prost(bool, tag = "18")]
    still: bool,
    #[prost(message, repeated, tag = "19")]
    held: Vec<StoredHold>,
    #[prost(bool, tag = "20")]
    verify: bool,
    #[prost(uint64, tag = "21")]
    rate: u64,
    /// Milliseconds.
    #[prost(uint64, tag = "22")]
    drain: u64,
    /// Milliseconds; absent for ever.
    #[prost(uint64, optional, tag = "23")]
    keep: Option<u64>,
    #[prost(bool, tag = "24")]
    wanted: bool,
    #[prost(uint32, tag = "25")]
    given_up: u32,
    #[prost(string, optional, tag = "26")]
    one_way: Option<String>,
    #[prost(message, optional, tag = "27")]
    paused: Option<StoredPause>,
    #[prost(bool, tag = "28")]
    cancel: bool,
    #[prost(string, optional, tag = "29")]
    failed: Option<String>,
    #[prost(string, tag = "30")]
    message: String,
    #[prost(uint32, tag = "31")]
    switches: u32,
    #[prost(uint32, tag = "32")]
    ended: u32,
    /// Microseconds.
    #[prost(uint64, repeated, tag = "33")]
    pauses: Vec<u64>,
    #[prost(uint32, tag = "34")]
    hold: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPart {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    group: u64,
    #[prost(bytes = "vec", tag = "3")]
    start: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "4")]
    end: Option<Vec<u8>>,
    #[prost(uint32, tag = "5")]
    incarnation: u32,
    #[prost(uint64, repeated, tag = "6")]
    replicas: Vec<u64>,
    #[prost(uint64, tag = "7")]
    first: u64,
    #[prost(uint64, tag = "8")]
    last: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StoredLent {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StoredHold {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(uint32, tag = "2")]
    hold: u32,
    #[prost(uint64, tag = "3")]
    from: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPause {
    /// See [`CAUSES`].
    #[prost(uint32, tag = "1")]
    cause: u32,
    #[prost(string, tag = "2")]
    why: String,
}

const CAUSES: [(u32, PauseCause); 5] = [
    (1, PauseCause::Admin),
    (2, PauseCause::Disk),
    (3, PauseCause::Builder),
    (4, PauseCause::Differs),
    (5, PauseCause::Copy),
];

impl Record {
    /// The record as it is kept.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let held = |(group, (hold, from)): (&GroupId, &(Hold, LogIndex))| StoredHold {
            group: group.0,
            hold: hold.0,
            from: from.0,
        };
        let number = |cause| CAUSES.into_iter().find(|(_, known)| *known == cause).map_or(0, |(n, _)| n);
        let stored = Stored {
            id: self.id.0,
            version: self.version,
            router: self.request.router.0,
            sequence: self.request.sequence,
            keyspace: self.keyspace.0,
            what: self.what.clone(),
            phase: self.phase.number(),
            attempt: self.attempt.0,
            tries: self.tries,
            overruns: self.overruns,
            old: self.old.parts.iter().map(Part::to_stored).collect(),
            new: self.new.parts.iter().map(Part::to_stored).collect(),
            old_served: self.old.served,
            new_served: self.new.served,
            new_serves: self.serves == Which::New,
            builder: self.builder.0,
            lent: self.lent.iter().map(|(group, node)| StoredLent { group: group.0, node: node.0 }).collect(),
            still: self.still,
            hold: self.hold.0,
            held: self.held.iter().map(held).collect(),
            verify: self.options.verify,
            rate: self.options.rate,
            drain: self.options.drain.as_millis() as u64,
            keep: self.options.keep.map(|keep| keep.as_millis() as u64),
            wanted: self.wanted,
            given_up: self.given_up,
            one_way: self.one_way.clone(),
            paused: self
                .paused
                .as_ref()
                .map(|Paused { cause, why }| StoredPause { cause: number(*cause), why: why.clone() }),
            cancel: self.cancel,
            failed: self.failed.clone(),
            message: self.message.clone(),
            switches: self.counts.switches,
            ended: self.counts.ended,
            pauses: self.counts.pauses.iter().map(|pause| pause.as_micros() as u64).collect(),
        };
        prost::Message::encode_to_vec(&stored)
    }

    /// Reads what [`Self::bytes`] wrote, here or in another version of Shoal.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let stored: Stored = prost::Message::decode(bytes).map_err(|e: prost::DecodeError| damaged(&e))?;
        let phase = ReshardPhase::numbered(stored.phase);
        let phase = phase.ok_or_else(|| damaged(&format_args!("phase {} is unknown", stored.phase)))?;
        let cause = |number| CAUSES.into_iter().find(|(known, _)| *known == number).map(|(_, cause)| cause);
        let paused = stored.paused.map(|StoredPause { cause: number, why }| match cause(number) {
            Some(cause) => Ok(Paused { cause, why }),
            None => Err(damaged(&format_args!("cause {number} is unknown"))),
        });
        let held = stored.held.iter();
        let held = held.map(|held| (GroupId(held.group), (Hold(held.hold), LogIndex(held.from))));
        Ok(Record {
            id: ReshardId(stored.id),
            version: stored.version,
            request: RequestId { router: RouterIncarnation(stored.router), sequence: stored.sequence },
            keyspace: KeyspaceNumber(stored.keyspace),
            what: stored.what,
            phase,
            attempt: Attempt(stored.attempt),
            tries: stored.tries,
            overruns: stored.overruns,
            old: Side {
                parts: stored.old.into_iter().map(Part::of_stored).collect(),
                served: stored.old_served,
            },
            new: Side {
                parts: stored.new.into_iter().map(Part::of_stored).collect(),
                served: stored.new_served,
            },
            serves: if stored.new_serves { Which::New } else { Which::Old },
            builder: NodeId(stored.builder),
            lent: stored.lent.iter().map(|lent| (GroupId(lent.group), NodeId(lent.node))).collect(),
            still: stored.still,
            hold: Hold(stored.hold),
            held: held.collect(),
            options: Options {
                verify: stored.verify,
                rate: stored.rate,
                drain: Duration::from_millis(stored.drain),
                keep: stored.keep.map(Duration::from_millis),
            },
            wanted: stored.wanted,
            given_up: stored.given_up,
            one_way: stored.one_way,
            paused: paused.transpose()?,
            cancel: stored.cancel,
            failed: stored.failed,
            message: stored.message,
            counts: Counts {
                switches: stored.switches,
                ended: stored.ended,
                pauses: stored.pauses.into_iter().map(Duration::from_micros).collect(),
            },
        })
    }
}

impl Part {
    fn to_stored(&self) -> StoredPart {
        let Part { shard, group, range, incarnation, replicas, first, last } = self;
        StoredPart {
            shard: shard.0,
            group: group.0,
            start: range.start.clone(),
            end: range.end.clone(),
            incarnation: incarnation.0,
            replicas: replicas.iter().map(|node| node.0).collect(),
            first: first.0,
            last: last.0,
        }
    }

    fn of_stored(stored: StoredPart) -> Self {
        let StoredPart { shard, group, start, end, incarnation, replicas, first, last } = stored;
        Part {
            shard: ShardId(shard),
            group: GroupId(group),
            range: KeyRange { start, end },
            incarnation: Incarnation(incarnation),
            replicas: replicas.into_iter().map(NodeId).collect(),
            first: LogIndex(first),
            last: LogIndex(last),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredRetired {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    last: u64,
    #[prost(message, repeated, tag = "3")]
    successors: Vec<StoredSuccessor>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StoredSuccessor {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    first: u64,
}

/// What a log goes on in, as it is kept.
pub(crate) fn retired_bytes(retired: &Retired) -> Vec<u8> {
    let Retired { shard, last, successors } = retired;
    let successor = |(shard, first): &(ShardId, LogIndex)| StoredSuccessor { shard: shard.0, first: first.0 };
    let successors = successors.iter().map(successor).collect();
    prost::Message::encode_to_vec(&StoredRetired { shard: shard.0, last: last.0, successors })
}

/// Reads what [`retired_bytes`] wrote.
pub(crate) fn read_retired(bytes: &[u8]) -> Result<Retired, WireError> {
    let stored: StoredRetired = prost::Message::decode(bytes).map_err(|e: prost::DecodeError| damaged(&e))?;
    let successors = stored.successors.iter();
    let successors =
        successors.map(|successor| (ShardId(successor.shard), LogIndex(successor.first))).collect();
    Ok(Retired { shard: ShardId(stored.shard), last: LogIndex(stored.last), successors })
}

fn damaged(problem: &dyn std::fmt::Display) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("the record of a reshard: {problem}"))
}
