//! What travels and what is logged, each in a line.
//!
//! Raft's names are raft-rs's. An entry is its index and term, `5@2`; a member that was added later is its node and the
//! index at which that was, `4#7`.

use crate::entry::{self, Body};
use crate::image;
use crate::packet::Packet;
use crate::peer::Peer;
use crate::session;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType};
use std::fmt::Display;

/// A member.
pub(super) fn peer(raw: u64) -> String {
    match Peer::from_raw(raw) {
        None => "nobody".to_owned(),
        Some(peer) if peer.incarnation() == 0 => peer.node().to_string(),
        Some(peer) => format!("{}#{}", peer.node(), peer.incarnation()),
    }
}

/// Things with blanks between.
pub(super) fn list<T: Display>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(" ")
}

/// What kind of packet it is.
pub(super) fn kind(packet: &Packet) -> String {
    let words = self::packet(packet);
    words.split(' ').next().unwrap().to_owned()
}

/// A packet.
pub(super) fn packet(packet: &Packet) -> String {
    match packet {
        Packet::Raft(message) => raft(message),
        Packet::ImageRequest(request) if request.length == 0 => {
            format!("ImageRequest still here at={}", request.offset)
        }
        Packet::ImageRequest(request) => {
            format!("ImageRequest {:016x}{:016x} at={}", request.high, request.low, request.offset)
        }
        Packet::ImageChunk(chunk) if chunk.gone => "ImageChunk none: the image is gone".to_owned(),
        Packet::ImageChunk(chunk) => {
            let (at, bytes) = (chunk.offset, chunk.data.len());
            format!("ImageChunk {:016x}{:016x} at={at} bytes={bytes}", chunk.high, chunk.low)
        }
        Packet::Alive(alive) => {
            let rest = alive.resting.iter().map(|rest| format!("term={} last={}", rest.term, rest.index));
            format!("Alive {}", list(rest))
        }
        Packet::Wake => "Wake".to_owned(),
        Packet::Ask(ask) => format!("Ask {}", ask.sequence),
        Packet::Answer(answer) => format!("Answer {} index={:?}", answer.ask.sequence, answer.index),
        Packet::Removed(peer) => format!("Removed {}", self::peer(peer.raw())),
    }
}

fn raft(message: &Message) -> String {
    use MessageType::*;
    let Message { term, index, log_term, commit, reject, .. } = message;
    let forced = if message.context.as_ref() == b"CampaignTransfer" { " by transfer" } else { "" };
    match message.get_msg_type() {
        MsgRequestPreVote => format!("PreVote term={term} last={index}@{log_term}"),
        MsgRequestVote => format!("Vote term={term} last={index}@{log_term}{forced}"),
        MsgRequestPreVoteResponse => format!("PreVoteReply term={term} {}", verdict(*reject)),
        MsgRequestVoteResponse => format!("VoteReply term={term} {}", verdict(*reject)),
        MsgAppend => {
            let entries = message.get_entries().iter().map(entry).collect::<Vec<_>>().join(", ");
            format!("Append term={term} after={index}@{log_term} [{entries}] commit={commit}")
        }
        MsgAppendResponse if *reject => {
            format!("AppendReply term={term} no: not {index}, try {}@{log_term}", message.reject_hint)
        }
        MsgAppendResponse => format!("AppendReply term={term} has={index}"),
        MsgHeartbeat => format!("Heartbeat term={term} commit={commit}{}", round(message)),
        MsgHeartbeatResponse => format!("HeartbeatReply term={term}{}", round(message)),
        MsgSnapshot => {
            let snapshot = message.get_snapshot();
            let metadata = snapshot.get_metadata();
            let image = image::offered(snapshot).unwrap();
            let members = conf_state(metadata.get_conf_state());
            let (at, of) = (metadata.index, metadata.term);
            format!(
                "Snapshot term={term} at={at}@{of} image={} bytes={} members={members}",
                image.id, image.length
            )
        }
        MsgTimeoutNow => format!("TimeoutNow term={term}"),
        other => format!("{other:?} term={term}"),
    }
}

fn verdict(reject: bool) -> &'static str {
    if reject { "no" } else { "yes" }
}

/// The round of reads that a heartbeat is for.
fn round(message: &Message) -> String {
    message
        .context
        .get(8..16)
        .map_or(String::new(), |bytes| format!(" round={}", u64::from_le_bytes(bytes.try_into().unwrap())))
}

/// Who is in a group.
pub(super) fn conf_state(state: &ConfState) -> String {
    let peers = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable_by_key(|id| Peer::from_raw(*id).map(Peer::node));
        list(ids.into_iter().map(peer))
    };
    let mut words = format!("({})", peers(&state.voters));
    for (name, ids) in [
        ("before", &state.voters_outgoing),
        ("learners", &state.learners),
        ("learners next", &state.learners_next),
    ] {
        if !ids.is_empty() {
            words.push_str(&format!(" {name} ({})", peers(ids)));
        }
    }
    words
}

/// A log entry.
pub(super) fn entry(entry: &Entry) -> String {
    format!("{}@{} {}", entry.index, entry.term, content(entry))
}

fn content(entry: &Entry) -> String {
    if entry.get_entry_type() != EntryType::EntryNormal {
        return change(&ConfChangeV2::parse_from_carllerche_bytes(&entry.data).unwrap());
    }
    if entry.data.is_empty() {
        return "empty".to_owned();
    }
    match entry::Entry::read(entry.data.clone()).unwrap().body.unwrap() {
        Body::Batch(batch) => {
            let writes: Vec<String> = batch.transactions.iter().map(transaction).collect();
            writes.join(" and ")
        }
        Body::Schema(schema) => schema.statements.join("; "),
        Body::Check(_) => "check".to_owned(),
        Body::Hold(hold) => format!("hold {} from {:?}", hold.name, hold.from),
        Body::Replay(replay) => format!("replay of {:x}-{:x}", replay.router, replay.sequence),
    }
}

fn transaction(transaction: &entry::Transaction) -> String {
    let changes = session::inspect(&transaction.changeset).unwrap();
    let rows = changes.iter().map(|table| format!("{} of {}", table.changes, table.table));
    let mut words = format!("rows: {}", list(rows));
    if let Some(request) = transaction.request {
        words.push_str(&format!(" (request {}.{})", request.router, request.sequence));
    }
    words
}

fn change(change: &ConfChangeV2) -> String {
    let changes = change.get_changes().iter().map(|change| {
        let member = peer(change.node_id);
        match change.get_change_type() {
            ConfChangeType::AddNode => format!("voter {member}"),
            ConfChangeType::AddLearnerNode => format!("learner {member}"),
            ConfChangeType::RemoveNode => format!("without {member}"),
        }
    });
    let changes: Vec<String> = changes.collect();
    if changes.is_empty() { "leave joint".to_owned() } else { format!("change: {}", changes.join(", ")) }
}
