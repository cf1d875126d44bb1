//! Who writes down what happens: a log and a transport that tell what goes through them, and an ear for the replica's
//! own log messages.
//!
//! Nothing here changes what happens, but that a node that is doomed dies in a write of its log. It must never know a
//! script.

use super::words;
use crate::ReplicaError;
use crate::log::{Batch, Change, Kept, LogReader, LogStore, RaftEngineLog};
use crate::packet::Packet;
use bytes::Bytes;
use parking_lot::Mutex;
use proto::NodeId;
use proto::services::{RaftMessage, RaftTransport};
use raft::eraftpb::{Entry, HardState};
use std::collections::VecDeque;
use std::fmt::{Debug, Display, Write as _};
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata};

/// How many digits an image's name has.
const IMAGE_DIGITS: usize = 32;

/// What has happened.
#[derive(Clone, Default)]
pub(super) struct Journal(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    lines: String,
    /// Names of images, which scripts know by letters: they are hashes of what SQLite writes.
    images: Vec<String>,
    /// Whose turn it is.
    acting: u64,
    /// Whether that one has died meanwhile.
    dead: bool,
}

impl Journal {
    /// A node does something. One that is dead doesn't.
    pub fn note(&self, node: u64, what: impl Display) {
        let mut pages = self.0.lock();
        if !(pages.dead && pages.acting == node) {
            pages.write(&format!("{node} {what}"));
        }
    }

    /// Something happens outside of the nodes.
    pub fn remark(&self, what: impl Display) {
        self.0.lock().write(&what.to_string());
    }

    /// From here on a node acts.
    pub fn begin(&self, node: u64) {
        let mut pages = self.0.lock();
        (pages.acting, pages.dead) = (node, false);
    }

    /// Who acts dies now.
    fn die(&self) {
        self.0.lock().dead = true;
    }

    /// Whether who acts has died.
    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// What has happened since the last call.
    pub fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().lines)
    }
}

impl Pages {
    fn write(&mut self, line: &str) {
        let mut rest = line;
        while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
            let length = rest[at..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - at);
            let (before, word) = rest[..at + length].split_at(at);
            self.lines.push_str(before);
            if length == IMAGE_DIGITS {
                let letter = self.letter(word);
                self.lines.push(letter);
            } else {
                self.lines.push_str(word);
            }
            rest = &rest[at + length..];
        }
        self.lines.push_str(rest);
        self.lines.push('\n');
    }

    fn letter(&mut self, image: &str) -> char {
        let found = self.images.iter().position(|known| known == image);
        let at = found.unwrap_or_else(|| {
            self.images.push(image.to_owned());
            self.images.len() - 1
        });
        char::from(b'A' + u8::try_from(at).unwrap())
    }
}

/// What is on its way: from, to and what.
pub(super) type Wire = Arc<Mutex<VecDeque<(u64, u64, RaftMessage)>>>;

/// A node's way to the others.
pub(super) struct Sender {
    pub node: u64,
    pub journal: Journal,
    pub wire: Wire,
}

impl RaftTransport for Sender {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        for message in messages {
            if self.journal.is_dead() {
                return;
            }
            let packet = Packet::decode(message.body.clone()).unwrap();
            self.journal.note(self.node, format_args!("→ {to} {}", words::packet(&packet)));
            self.wire.lock().push_back((self.node, to.0, message));
        }
    }
}

/// Where a doomed node dies while it takes up an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doom {
    /// The image has its last name, the log is as it was.
    LogReset,
    /// The log begins after the image, the database is as it was.
    Swap,
}

impl FromStr for Doom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "log-reset" => Ok(Self::LogReset),
            "swap" => Ok(Self::Swap),
            _ => Err(format!("nobody dies at {text}")),
        }
    }
}

/// A node's log, which is production's.
pub(super) struct WatchedLog {
    pub inner: RaftEngineLog,
    pub node: u64,
    pub journal: Journal,
    pub doom: Arc<Mutex<Option<Doom>>>,
    /// What was last written, so that only what changes is told.
    pub told: Mutex<HardState>,
}

impl WatchedLog {
    fn tell(&self, batch: &Batch, sync: bool) {
        let mut what: Vec<String> = Vec::new();
        for (_, change) in batch.changes() {
            match change {
                Change::Append(entries) => what.extend(entries.iter().map(words::entry)),
                Change::HardState(state) => {
                    let before = std::mem::replace(&mut *self.told.lock(), state.clone());
                    let is_new_term = state.term != before.term;
                    if is_new_term {
                        what.push(format!("term={}", state.term));
                    }
                    if is_new_term || state.vote != before.vote {
                        what.push(format!("vote={}", words::peer(state.vote)));
                    }
                    if state.commit != before.commit {
                        what.push(format!("commit={}", state.commit));
                    }
                }
                Change::Cut(cut) => what.push(format!("cut after {}@{}", cut.index, cut.term)),
                Change::Reset(cut) => {
                    what.push(format!("nothing but what comes after {}@{}", cut.index, cut.term))
                }
                Change::Mark(name, Some(_)) => what.push(format!("its {name}")),
                Change::Mark(name, None) => what.push(format!("no {name}")),
                Change::Clear => {
                    *self.told.lock() = HardState::default();
                    what.push("nothing".to_owned());
                }
            }
        }
        let synced = if sync { ", synced" } else { "" };
        self.journal.note(self.node, format_args!("log: {}{synced}", what.join(", ")));
    }
}

impl LogReader for WatchedLog {
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        most: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError> {
        self.inner.entries(group, low, high, most)
    }
}

impl LogStore for WatchedLog {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn kept(&self, group: u64) -> Result<Kept, ReplicaError> {
        self.inner.kept(group)
    }

    fn mark(&self, group: u64, name: &str) -> Result<Option<Bytes>, ReplicaError> {
        self.inner.mark(group, name)
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError> {
        let resets = batch.changes().iter().any(|(_, change)| matches!(change, Change::Reset(_)));
        let doom = self.doom.lock().take_if(|_| resets);
        if doom == Some(Doom::LogReset) {
            self.journal.die();
            let source = io::ErrorKind::BrokenPipe.into();
            return Err(ReplicaError::Io { path: self.path().to_owned(), source });
        }
        self.tell(&batch, sync);
        self.inner.write(batch, sync)?;
        if doom == Some(Doom::Swap) {
            self.journal.die();
        }
        Ok(())
    }

    fn purge(&self) -> Result<(), ReplicaError> {
        self.inner.purge()
    }

    fn failure(&self) -> Option<ReplicaError> {
        self.inner.failure()
    }

    fn check_room(&self) -> Result<(), ReplicaError> {
        self.inner.check_room()
    }

    fn renew(&self) -> Result<(), ReplicaError> {
        self.inner.renew()
    }

    fn reopen(&self) -> Result<(), ReplicaError> {
        self.inner.reopen()
    }
}

/// Hears what the replica says in its own log, but for raft-rs.
pub(super) struct Ear(pub Journal);

impl tracing::Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        *metadata.level() <= Level::INFO && target.starts_with("replica") && !target.ends_with("logger")
    }

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        let node = self.0.0.lock().acting;
        self.0.note(node, format_args!("says: {}{}", said.message, said.fields));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "group" | "node" => {}
            name => write!(self.fields, " {name}={value:?}").unwrap(),
        }
    }
}
