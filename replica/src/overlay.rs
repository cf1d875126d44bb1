//! What open transactions have changed so far, in the leader's memory.
//!
//! An overlay is a list of changesets, one for each rehearsal that changed something. Rehearsals push onto it, whoever
//! has the transaction cuts it back (ROLLBACK TO) and commits it. Whoever has it may also put its first ones aside, into a
//! table of the database ([`Staging`]): then the overlay knows just where they are. It must never know which rows are
//! whose, nor who waits for whom.

use crate::connection::Cancel;
use crate::replay::SMALL_BYTES;
use crate::session;
use crate::stage::Stage;
use crate::staging::{Piece, Pieces, Staging};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::{LogIndex, SqlState, WireError};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What a transaction has changed so far, and hasn't committed. Clones are the same overlay.
#[derive(Clone, Debug, Default)]
pub struct Overlay(Arc<Mutex<Contents>>);

/// Which overlay it is. As long as this is there nothing else can come in its place.
#[derive(Debug)]
pub(crate) struct OverlayId(Weak<Mutex<Contents>>);

impl OverlayId {
    /// Whether it is this one.
    pub fn is(&self, overlay: &Overlay) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&overlay.0))
    }
}

#[derive(Debug, Default)]
struct Contents {
    /// Where its first chunks may be put.
    staging: Option<Staging>,
    staged: Vec<Staged>,
    /// The number of the next piece. None is given out twice, whatever is cut back.
    next: u64,
    /// The chunks that are in memory.
    chunks: Vec<Bytes>,
    /// Their bytes, and those of all pieces that were ever staged: they take their room until the end.
    bytes: usize,
    staged_bytes: usize,
    /// Changes whenever the chunks do.
    version: u64,
}

/// A piece that lies in the table.
#[derive(Clone, Copy, Debug)]
struct Staged {
    n: u64,
    /// How many of its chunks count.
    chunks: usize,
    /// Whether it has more.
    is_cut: bool,
}

impl Contents {
    fn len(&self) -> usize {
        self.staged.iter().map(|piece| piece.chunks).sum::<usize>() + self.chunks.len()
    }

    fn pieces(&self) -> Pieces {
        let mut pieces = Pieces::default();
        for piece in &self.staged {
            pieces.add(piece.n, if piece.is_cut { piece.chunks as u32 } else { 0 });
        }
        pieces
    }
}

/// What an overlay consists of.
pub(crate) struct Laid {
    pub staging: Option<Staging>,
    pub pieces: Pieces,
    /// What comes after them.
    pub chunks: Vec<Bytes>,
    pub version: u64,
}

impl Overlay {
    /// A transaction that has changed nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, of a transaction whose changes may be staged.
    pub fn staged_in(staging: Staging) -> Self {
        Self(Arc::new(Mutex::new(Contents { staging: Some(staging), ..Contents::default() })))
    }

    /// Which one it is.
    pub(crate) fn id(&self) -> OverlayId {
        OverlayId(Arc::downgrade(&self.0))
    }

    /// What it has changed, step by step, as far as it is in memory.
    pub fn chunks(&self) -> Vec<Bytes> {
        self.0.lock().chunks.clone()
    }

    /// All that it has changed, as one changeset; empty for nothing. 40001 if tables were altered meanwhile. Only of what
    /// isn't staged.
    pub fn changeset(&self) -> Result<Bytes, WireError> {
        merged(&self.chunks())
    }

    /// How many bytes its chunks have, staged ones included.
    pub fn bytes(&self) -> usize {
        let contents = self.0.lock();
        contents.bytes + contents.staged_bytes
    }

    /// How many bytes of it are in memory.
    pub fn bytes_in_memory(&self) -> usize {
        self.0.lock().bytes
    }

    /// The pieces that it consists of, beside what is in memory.
    pub fn pieces(&self) -> Pieces {
        self.0.lock().pieces()
    }

    /// Whether its changes may be staged.
    pub(crate) fn may_be_staged(&self) -> bool {
        self.0.lock().staging.is_some()
    }

    /// The first chunks in memory, up to so many bytes but one at least, if there are as many bytes; they are to be
    /// written, and then [`Self::put_aside`]. Whoever calls sees to it that the overlay isn't cut back meanwhile.
    pub fn piece(&self, least: usize, most: usize) -> Option<Piece> {
        let contents = self.0.lock();
        let staging = contents.staging?;
        if contents.chunks.is_empty() || contents.bytes < least {
            return None;
        }
        let mut bytes = 0;
        let fits = |chunk: &&Bytes| {
            bytes += chunk.len();
            bytes == chunk.len() || bytes <= most
        };
        let chunks = contents.chunks.iter().take_while(fits).cloned().collect();
        Some(Piece { staging, n: contents.next, chunks })
    }

    /// A piece is in the table: it needn't be in memory.
    pub fn put_aside(&self, piece: &Piece) {
        let mut contents = self.0.lock();
        if contents.next != piece.n || contents.chunks.len() < piece.chunks.len() {
            return;
        }
        contents.next += 1;
        let bytes: usize = contents.chunks.drain(..piece.chunks.len()).map(|chunk| chunk.len()).sum();
        contents.bytes -= bytes;
        contents.staged_bytes += bytes;
        contents.staged.push(Staged { n: piece.n, chunks: piece.chunks.len(), is_cut: false });
    }

    /// How many chunks it has: one for each rehearsal that changed rows, none for one that didn't.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether it has changed nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what came after the first `len` chunks: ROLLBACK TO. Nothing if it hasn't as many.
    pub fn truncate(&self, len: usize) {
        let mut contents = self.0.lock();
        let Some(mut surplus) = contents.len().checked_sub(len).filter(|surplus| *surplus > 0) else {
            return;
        };
        let keep = contents.chunks.len().saturating_sub(surplus);
        surplus -= contents.chunks.len() - keep;
        let dropped: usize = contents.chunks.drain(keep..).map(|chunk| chunk.len()).sum();
        contents.bytes -= dropped;
        while surplus > 0
            && let Some(piece) = contents.staged.last_mut()
        {
            let cut = surplus.min(piece.chunks);
            (piece.chunks, piece.is_cut) = (piece.chunks - cut, true);
            surplus -= cut;
            if piece.chunks == 0 {
                contents.staged.pop();
            }
        }
        contents.version += 1;
    }

    /// What it has changed, and which version of it that is.
    pub(crate) fn contents(&self) -> Laid {
        let contents = self.0.lock();
        Laid {
            staging: contents.staging,
            pieces: contents.pieces(),
            chunks: contents.chunks.clone(),
            version: contents.version,
        }
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

/// Chunks as one changeset. What is small is just put together: [`replay`](crate::replay) takes rows that come up again.
pub(crate) fn merged(chunks: &[Bytes]) -> Result<Bytes, WireError> {
    match chunks {
        [one] => return Ok(one.clone()),
        few if few.iter().map(Bytes::len).sum::<usize>() <= SMALL_BYTES => return Ok(few.concat().into()),
        _ => {}
    }
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

/// An overlay as it was applied.
pub(crate) struct Applied {
    overlay: OverlayId,
    pub version: u64,
}

impl Applied {
    /// This version of it.
    pub fn new(overlay: &Overlay, version: u64) -> Self {
        Self { overlay: overlay.id(), version }
    }

    /// Whether it is this overlay, and as it is now.
    pub fn is(&self, overlay: &Overlay) -> bool {
        self.overlay.is(overlay) && self.version == overlay.0.lock().version
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
    use proto::{RouterIncarnation, TransactionId};

    fn chunk(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn it_is_cut_back_by_length_and_knows_what_was_applied() {
        let (overlay, cancel) = (Overlay::new(), Cancel::default());
        let empty = Applied::new(&overlay, overlay.contents().version);
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
    fn its_first_chunks_are_put_aside_and_cut_back_as_well() {
        let owner = TransactionId { router: RouterIncarnation(1), sequence: 2 };
        let overlay = Overlay::staged_in(Staging { table: "s", owner });
        let cancel = Cancel::default();
        let push = |text| overlay.push(chunk(text), &cancel).unwrap();
        let rows = || overlay.pieces().rows().collect::<Vec<_>>();
        for text in ["a", "bb", "ccc", "dddd", "e"] {
            push(text);
        }
        assert!(overlay.piece(12, 3).is_none() && Overlay::new().piece(0, 3).is_none());
        let first = overlay.piece(11, 3).unwrap();
        assert_eq!(first.chunks, [chunk("a"), chunk("bb")]);
        let before = overlay.contents().version;
        overlay.put_aside(&first);
        overlay.put_aside(&first);
        let second = overlay.piece(0, 3).unwrap();
        assert_eq!(second.chunks, [chunk("ccc")]);
        overlay.put_aside(&second);
        let third = overlay.piece(0, 3).unwrap();
        assert_eq!(third.chunks, [chunk("dddd")], "one at least");
        overlay.put_aside(&third);
        assert_eq!((overlay.len(), overlay.bytes(), overlay.bytes_in_memory()), (5, 11, 1));
        assert_eq!(overlay.contents().version, before, "it is the same as before");
        assert_eq!(rows(), [(0, 0), (1, 0), (2, 0)]);
        overlay.truncate(4);
        assert_eq!((overlay.len(), overlay.bytes_in_memory()), (4, 0));
        push("f");
        overlay.truncate(1);
        assert_eq!((rows(), overlay.len(), overlay.bytes()), (vec![(0, 1)], 1, 10));
        push("gg");
        overlay.put_aside(&overlay.piece(0, 3).unwrap());
        assert_eq!((rows(), overlay.len()), (vec![(0, 1), (3, 0)], 2));
        overlay.truncate(0);
        assert!(overlay.is_empty() && overlay.pieces().is_empty() && overlay.piece(0, 3).is_none());
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
