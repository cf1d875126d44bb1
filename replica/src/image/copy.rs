//! A copy of a replica's database for a caller, in a file of its own: made in slices, while writers go on.
//!
//! It is made as an image is, but nobody offers it to anyone, and it comes as fast as it's stepped. A path goes in, a
//! synced file comes out that has everything up to one index; it has its name only once it is whole. It must never know
//! what it is for.

use super::backup::Backup;
use super::file;
use crate::driver::Shared;
use crate::error::ReplicaError;
use crate::readers::{Reader, Unopened};
use crate::replica::Replica;
use proto::LogIndex;
use proto::services::Progress;
use rusqlite::Connection;
use std::borrow::Borrow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many pages one slice copies.
const SLICE_PAGES: u16 = 256;
/// After so many slices, what was copied is synced: all of it at the end would keep the disk from others for long.
const SYNC_SLICES: u32 = 16;

/// A copy of a replica's database that is being made. Dropped before its end, it leaves nothing.
///
/// While it is being made, the replica's WAL can't be emptied, and grows by all that is written.
pub struct Copying {
    target: PathBuf,
    position: LogIndex,
    page_bytes: u64,
    pages: u64,
    slices: u32,
    is_named: bool,
    /// Until it has all.
    backup: Option<Backup<Source>>,
}

/// What is copied from. Dropped, it is given back.
struct Source {
    shared: Arc<Shared>,
    reader: Option<Reader>,
}

impl Borrow<Connection> for Source {
    fn borrow(&self) -> &Connection {
        &self.reader.as_ref().expect("it's there until the source is dropped").connection
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.shared.give_back(reader);
        }
        self.shared.end_copy();
    }
}

impl Replica {
    /// Begins to copy what the database has now into a new file; it replaces what has this name in the end. Its directory
    /// must be there. Whether the replica leads makes no difference.
    pub fn copy(&self, target: &Path) -> Result<Copying, ReplicaError> {
        let shared = self.shared();
        if shared.has_stopped() || shared.applied() == 0 {
            return Err(ReplicaError::Refused(shared.not_leader()));
        }
        let part = part(target);
        remove(&part)?;
        let reader = shared.readers.open(None).map_err(|error| match error {
            Unopened::Refused(error) => ReplicaError::Refused(error),
            Unopened::Fault(source) => {
                shared.stop(&ReplicaError::Sqlite { path: shared.readers.path().to_owned(), source });
                ReplicaError::Refused(shared.not_leader())
            }
        })?;
        let position = reader.position;
        shared.begin_copy();
        let source = Source { shared: shared.clone(), reader: Some(reader) };
        let number = |pragma| -> rusqlite::Result<u64> {
            let connection: &Connection = source.borrow();
            let number: i64 = connection.query_row(pragma, [], |row| row.get(0))?;
            Ok(number.cast_unsigned())
        };
        let size = || Ok((number("PRAGMA page_size")?, number("PRAGMA page_count")?));
        let (page_bytes, pages) = size().map_err(ReplicaError::sqlite(shared.readers.path()))?;
        let backup = Backup::begin(source, &part).map_err(ReplicaError::sqlite(&part))?;
        let (slices, is_named) = (0, false);
        let (target, backup) = (target.to_owned(), Some(backup));
        Ok(Copying { target, position, page_bytes, pages, slices, is_named, backup })
    }
}

impl Copying {
    /// The last entry whose effects the copy has.
    pub fn position(&self) -> LogIndex {
        self.position
    }

    /// How many bytes are there, and how many there will be.
    pub fn progress(&self) -> Progress {
        let left = match &self.backup {
            None => 0,
            // It knows nothing before its first step.
            Some(_) if self.slices == 0 => self.pages,
            Some(backup) => backup.pages_left(),
        };
        let done = self.pages.saturating_sub(left) * self.page_bytes;
        Progress { done, total: self.pages * self.page_bytes }
    }

    /// Goes on for a moment: about a MiB. Whether the copy is complete; then it is synced and has its name. After an error
    /// it is begun anew. [`ReplicaError::Refused`] if the replica has stopped.
    pub fn step(&mut self) -> Result<bool, ReplicaError> {
        let part = part(&self.target);
        if let Some(backup) = &mut self.backup {
            let shared = &backup.source().shared;
            if shared.has_stopped() {
                return Err(ReplicaError::Refused(shared.not_leader()));
            }
            let is_whole = backup.step(SLICE_PAGES).map_err(ReplicaError::sqlite(&part))?;
            self.slices += 1;
            if is_whole || self.slices.is_multiple_of(SYNC_SLICES) {
                File::open(&part).and_then(|file| file.sync_data()).map_err(ReplicaError::io(&part))?;
            }
            if !is_whole {
                return Ok(false);
            }
            self.backup = None;
        }
        if !self.is_named {
            // Closing it may have written what was left to be written.
            File::open(&part).and_then(|file| file.sync_all()).map_err(ReplicaError::io(&part))?;
            fs::rename(&part, &self.target).map_err(ReplicaError::io(&self.target))?;
            file::sync_directory(directory(&self.target))?;
            self.is_named = true;
        }
        Ok(true)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.backup = None;
        if !self.is_named
            && let Err(error) = remove(&part(&self.target))
        {
            tracing::warn!("an unfinished copy stays: {error}");
        }
    }
}

fn directory(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where it is until it is complete.
fn part(target: &Path) -> PathBuf {
    target.with_added_extension("part")
}

/// Removes what was begun, with what SQLite put beside it.
fn remove(part: &Path) -> Result<(), ReplicaError> {
    ["", "-journal"].iter().try_for_each(|suffix| {
        let mut path = part.as_os_str().to_owned();
        path.push(suffix);
        file::remove(Path::new(&path))
    })
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use crate::driver::Shared;
    use crate::host::Host;
    use proto::services::{RaftMessage, RaftTransport};
    use proto::{GroupId, NodeId};
    use std::path::PathBuf;
    use std::sync::Arc;

    struct Nowhere;

    impl RaftTransport for Nowhere {
        fn send(&self, _: NodeId, _: Vec<RaftMessage>) {}
    }

    /// Who empties the WAL doesn't try as long as a copy is in the way, and does again afterwards.
    #[test]
    fn a_replica_knows_that_it_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let node = NodeId(1);
        let host = Host::open(Config::new(node, directory.path()), Arc::new(Nowhere)).unwrap();
        let replica = host.create(GroupId(3), &[node], &[]).unwrap();
        let target = |n: u8| -> PathBuf { directory.path().join(format!("{n}.sqlite")) };
        let is_copied = || Shared::is_copied(&replica.shared());
        assert!(!is_copied());
        let (given_up, mut whole) = (replica.copy(&target(1)).unwrap(), replica.copy(&target(2)).unwrap());
        assert!(is_copied());
        drop(given_up);
        assert!(is_copied(), "by the other one");
        while !whole.step().unwrap() {}
        assert!(!is_copied(), "it has what it needs");
        drop(whole);
        assert!(replica.copy(&directory.path().join("nowhere").join("3.sqlite")).is_err());
        assert!(!is_copied() && target(2).exists() && !target(1).exists());
    }
}
