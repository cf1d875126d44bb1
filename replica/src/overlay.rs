//! What open transactions have changed so far, in the leader's memory.
//!
//! An overlay is a list of changesets, one for each rehearsal that changed something. Rehearsals push onto it, whoever
//! has the transaction cuts it back (ROLLBACK TO) and commits it. It must never know which rows are whose, nor who
//! waits for whom.

use crate::connection::Cancel;
use crate::session;
use crate::stage::Stage;
use bytes::Bytes;
use parking_lot::Mutex;
use proto::{LogIndex, SqlState, WireError};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What a transaction has changed so far, and hasn't committed. Clones are the same overlay.
#[derive(Clone, Debug, Default)]
pub struct Overlay(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Changes whenever the chunks do.
    version: u64,
}

impl Overlay {
    /// A transaction that has changed nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it has changed, step by step.
    pub fn chunks(&self) -> Vec<Bytes> {
        self.0.lock().chunks.clone()
    }

    /// All that it has changed, as one changeset; empty for nothing. 40001 if tables were altered meanwhile.
    pub fn changeset(&self) -> Result<Bytes, WireError> {
        merged(&self.chunks())
    }

    /// How many bytes its chunks have.
    pub fn bytes(&self) -> usize {
        self.0.lock().bytes
    }

    /// How many chunks it has: one for each rehearsal that changed rows, none for one that didn't.
    pub fn len(&self) -> usize {
        self.0.lock().chunks.len()
    }

    /// Whether it has changed nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what came after the first `len` chunks: ROLLBACK TO. Nothing if it hasn't as many.
    pub fn truncate(&self, len: usize) {
        let mut contents = self.0.lock();
        if len < contents.chunks.len() {
            let dropped: usize = contents.chunks.drain(len..).map(|chunk| chunk.len()).sum();
            contents.bytes -= dropped;
            contents.version += 1;
        }
    }

    /// What it has changed, and which version of it that is.
    pub(crate) fn contents(&self) -> (Vec<Bytes>, u64) {
        let contents = self.0.lock();
        (contents.chunks.clone(), contents.version)
    }

    /// Adds what a rehearsal has changed and gives the version, unless nobody waits for it any more: whoever gives a
    /// rehearsal up cancels it first and then cuts the overlay back, so none is left behind.
    pub(crate) fn push(&self, chunk: Bytes, cancel: &Cancel) -> Option<u64> {
        let mut contents = self.0.lock();
        if cancel.is_cancelled() {
            return None;
        }
        if !chunk.is_empty() {
            contents.bytes += chunk.len();
            contents.chunks.push(chunk);
            contents.version += 1;
        }
        Some(contents.version)
    }
}

/// Chunks as one changeset.
pub(crate) fn merged(chunks: &[Bytes]) -> Result<Bytes, WireError> {
    session::merge(chunks).map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::SchemaChanged) => altered("a table was altered while it was open"),
        _ => dialect::sqlite::error(error),
    })
}

/// What a transaction hears whose tables aren't what they were.
pub(crate) fn altered(why: &str) -> WireError {
    WireError::new(SqlState::SERIALIZATION_FAILURE, format!("the transaction can't go on: {why}"))
        .with_hint("Run the transaction again.")
}

/// An overlay as it was applied, in whose place nothing else can have come.
pub(crate) struct Applied {
    overlay: Weak<Mutex<Contents>>,
    pub version: u64,
}

impl Applied {
    /// This version of it.
    pub fn new(overlay: &Overlay, version: u64) -> Self {
        Self { overlay: Arc::downgrade(&overlay.0), version }
    }

    /// Whether it is this overlay, and as it is now.
    pub fn is(&self, overlay: &Overlay) -> bool {
        std::ptr::eq(self.overlay.as_ptr(), Arc::as_ptr(&overlay.0))
            && self.version == overlay.0.lock().version
    }
}

/// A rehearsal whose caller hasn't heard of it. Dropped, the overlay is what it was.
pub(crate) struct Unheard {
    overlay: Overlay,
    len: usize,
    is_heard: bool,
}

impl Unheard {
    /// Before it is begun.
    pub fn new(overlay: Overlay) -> Self {
        let len = overlay.len();
        Self { overlay, len, is_heard: false }
    }

    /// Its caller hears that it is done.
    pub fn heard(mut self) {
        self.is_heard = true;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if !self.is_heard {
            self.overlay.truncate(self.len);
        }
    }
}

/// What a rehearsal does, as [`crate::WriteFn`].
pub type RehearsalFn = Box<dyn FnOnce(&Stage<'_>) -> Result<Bytes, WireError> + Send>;

/// A step of a transaction that isn't committed yet. An overlay's rehearsals come one after the other, each when the
/// last has been answered.
pub struct Rehearsal {
    /// What the transaction has done before, and what it does now.
    pub overlay: Overlay,
    /// It does the same whether or not the overlay's changes are there, so they needn't be made for it.
    pub bare: bool,
    /// How long its caller waits.
    pub deadline: Instant,
    /// What it does.
    pub run: RehearsalFn,
}

/// What came of a rehearsal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// What the closure gave.
    pub output: Bytes,
    /// What was committed when it ran: everything up to this position, and nothing after it.
    pub index: LogIndex,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn it_is_cut_back_by_length_and_knows_what_was_applied() {
        let (overlay, cancel) = (Overlay::new(), Cancel::default());
        let empty = Applied::new(&overlay, overlay.contents().1);
        assert!(empty.is(&overlay) && !empty.is(&Overlay::new()));
        let version = overlay.push(chunk("abc"), &cancel).unwrap();
        let applied = Applied::new(&overlay, version);
        assert!(applied.is(&overlay) && !empty.is(&overlay));
        assert_eq!(overlay.push(Bytes::new(), &cancel), Some(version), "nothing was changed");
        overlay.truncate(1);
        overlay.truncate(7);
        assert!(applied.is(&overlay.clone()), "nothing was cut off");
        overlay.push(chunk("de"), &cancel).unwrap();
        assert_eq!((overlay.len(), overlay.bytes()), (2, 5));
        overlay.truncate(1);
        assert_eq!((overlay.len(), overlay.bytes(), overlay.chunks()), (1, 3, vec![chunk("abc")]));
        assert!(!applied.is(&overlay), "it was more meanwhile");
    }

    #[test]
    fn what_nobody_heard_of_is_taken_back() {
        let (overlay, cancel) = (Overlay::new(), Cancel::default());
        let unheard = Unheard::new(overlay.clone());
        overlay.push(chunk("a"), &cancel).unwrap();
        unheard.heard();
        let unheard = Unheard::new(overlay.clone());
        overlay.push(chunk("b"), &cancel).unwrap();
        drop(unheard);
        assert_eq!(overlay.chunks(), [chunk("a")]);
        cancel.cancel();
        assert_eq!(overlay.push(chunk("c"), &cancel), None);
        assert_eq!(overlay.chunks(), [chunk("a")]);
    }
}
