//! The log's files, watched: the first write, truncation or sync that fails is the last that is tried.
//!
//! raft-engine panics where a sync fails, goes on in a new file where a disk is full, and forgets which file it was.
//! This file system under it notes the first failure with file and cause, and refuses every change after it: what a
//! failed sync left is unknown, and asked again the kernel says that all is well. A sync that fails is reported to
//! raft-engine as done, lest it panic; whoever wrote asks [`Disk::failure`] before anyone is told that it's durable. It
//! must never know what is written.

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type RawHandle = <DefaultFileSystem as FileSystem>::Handle;
type RawReader = <DefaultFileSystem as FileSystem>::Reader;
type RawWriter = <DefaultFileSystem as FileSystem>::Writer;

/// What a test makes of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    #[default]
    Sound,
    /// Nothing more fits.
    Full,
    /// Writes seem to work, syncs fail.
    Unsyncable,
}

/// A disk as a test sees it. It outlives the logs that are opened on it.
#[derive(Clone, Debug, Default)]
pub struct TestDisk(Arc<Mutex<Condition>>);

impl TestDisk {
    /// Changes how the disk behaves.
    pub fn set(&self, condition: Condition) {
        *self.0.lock() = condition;
    }

    fn is(&self, condition: Condition) -> bool {
        *self.0.lock() == condition
    }

    /// What a write meets.
    pub(crate) fn write(&self) -> Result<()> {
        if self.is(Condition::Full) { Err(Error::from(ErrorKind::StorageFull)) } else { Ok(()) }
    }

    fn sync(&self) -> Result<()> {
        if self.is(Condition::Unsyncable) {
            Err(Error::other("a sync that fails for a test"))
        } else {
            Ok(())
        }
    }
}

/// The first failure of a log's files.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The file.
    pub path: PathBuf,
    /// What was tried, and what the system said.
    pub message: String,
    pub kind: ErrorKind,
}

/// What all files of one opened log share.
#[derive(Debug, Default)]
pub(super) struct Disk {
    failure: Mutex<Option<Failure>>,
    /// How much of each file that was written to is synced.
    synced: Mutex<HashMap<PathBuf, u64>>,
    test: TestDisk,
}

impl Disk {
    pub fn new(test: TestDisk) -> Self {
        Self { failure: Mutex::default(), synced: Mutex::default(), test }
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().clone()
    }

    /// How much of this file is known to be synced.
    pub fn synced(&self, path: &Path) -> Option<u64> {
        self.synced.lock().get(path).copied()
    }

    /// Notes a failure that isn't an operation's own.
    pub fn note(&self, path: &Path, message: String, kind: ErrorKind) {
        let mut failure = self.failure.lock();
        failure.get_or_insert_with(|| Failure { path: path.to_owned(), message, kind });
    }

    fn change<T>(&self, path: &Path, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.failure.lock().is_some() {
            return Err(Error::other("the log has failed before"));
        }
        act().map_err(|error| {
            let error = by_the_system(error);
            self.note(path, format!("{what}: {error}"), error.kind());
            error
        })
    }
}

/// raft-engine's own errors keep the kind alone; the system's reason is still there to be asked for.
fn by_the_system(error: Error) -> Error {
    let system = Error::last_os_error();
    if error.raw_os_error().is_none() && error.get_ref().is_some() && system.kind() == error.kind() {
        system
    } else {
        error
    }
}

/// [`DefaultFileSystem`] with a watch on it.
pub(super) struct Files(pub Arc<Disk>);

/// An open file.
pub(super) struct File {
    raw: Arc<RawHandle>,
    /// How much of it was written.
    written: Arc<AtomicU64>,
    path: PathBuf,
    disk: Arc<Disk>,
}

/// A place in a file to read at.
pub(super) struct Reader {
    raw: RawReader,
    path: PathBuf,
}

/// A place in a file to write at.
pub(super) struct Writer {
    raw: RawWriter,
    position: u64,
    written: Arc<AtomicU64>,
    path: PathBuf,
    disk: Arc<Disk>,
}

impl Files {
    fn file(&self, raw: RawHandle, path: &Path) -> File {
        File { raw: Arc::new(raw), written: Arc::default(), path: path.to_owned(), disk: self.0.clone() }
    }
}

impl FileSystem for Files {
    type Handle = File;
    type Reader = Reader;
    type Writer = Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<File> {
        let path = path.as_ref();
        self.0.change(path, "it could not be made", || {
            self.0.test.write()?;
            DefaultFileSystem.create(path).map(|raw| self.file(raw, path))
        })
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<File> {
        let path = path.as_ref();
        self.0.change(path, "it could not be opened", || {
            DefaultFileSystem.open(path, permission).map(|raw| self.file(raw, path))
        })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.0.change(path.as_ref(), "it could not be deleted", || DefaultFileSystem.delete(path.as_ref()))
    }

    fn rename<P: AsRef<Path>>(&self, source: P, target: P) -> Result<()> {
        self.0.change(source.as_ref(), "it could not be renamed", || {
            DefaultFileSystem.rename(source.as_ref(), target.as_ref())
        })
    }

    fn new_reader(&self, file: Arc<File>) -> Result<Reader> {
        let raw = DefaultFileSystem.new_reader(file.raw.clone())?;
        Ok(Reader { raw, path: file.path.clone() })
    }

    fn new_writer(&self, file: Arc<File>) -> Result<Writer> {
        let raw = DefaultFileSystem.new_writer(file.raw.clone())?;
        let written = file.written.clone();
        Ok(Writer { raw, position: 0, written, path: file.path.clone(), disk: file.disk.clone() })
    }
}

impl Handle for File {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.disk.change(&self.path, "it could not be shortened", || Handle::truncate(&*self.raw, offset))
    }

    fn file_size(&self) -> Result<usize> {
        self.raw.file_size()
    }

    fn sync(&self) -> Result<()> {
        // Whether it failed is asked of the disk: an error here would be a panic.
        let written = self.written.load(Ordering::Acquire);
        let synced = self.disk.change(&self.path, "it could not be synced", || {
            self.disk.test.sync()?;
            self.raw.sync()
        });
        if synced.is_ok() {
            self.disk.synced.lock().insert(self.path.clone(), written);
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.raw.read(buffer).map_err(|error| {
            let error = by_the_system(error);
            Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        })
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.raw.seek(to)
    }
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        self.disk
            .change(&self.path, "it could not be written", || {
                self.disk.test.write()?;
                self.raw.write(buffer)
            })
            .inspect(|count| {
                self.position += *count as u64;
                self.written.store(self.position, Ordering::Release);
            })
    }

    fn flush(&mut self) -> Result<()> {
        self.raw.flush()
    }
}

impl Seek for Writer {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.position = self.raw.seek(to)?;
        Ok(self.position)
    }
}

impl WriteExt for Writer {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.disk.change(&self.path, "it could not be shortened", || self.raw.truncate(offset))?;
        self.position = offset as u64;
        Ok(())
    }

    /// Room that can't be had in advance may still be had when it's written to. Where it can, it's filled with zeros:
    /// in room that was only reserved, every first write of a block changes the file's map as well, which doubles what
    /// the sync after it has to write.
    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.raw.allocate(offset, size)?;
        let position = self.raw.seek(SeekFrom::Start(offset as u64))?;
        debug_assert_eq!(position, offset as u64);
        let filled = fill(&mut self.raw, size);
        self.raw.seek(SeekFrom::Start(self.position))?;
        filled
    }
}

fn fill(writer: &mut RawWriter, mut size: usize) -> Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while size > 0 {
        let written = writer.write(&ZEROS[..size.min(ZEROS.len())])?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        size -= written;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn room_in_advance_is_written_and_the_next_write_goes_where_it_belongs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let files = Files(Arc::new(Disk::new(TestDisk::default())));
        let file = Arc::new(files.create(&path).unwrap());
        let mut writer = files.new_writer(file.clone()).unwrap();
        writer.write_all(b"first").unwrap();
        let size = (100 << 10) + 1;
        writer.allocate(5, size).unwrap();
        writer.write_all(b"second").unwrap();
        file.sync().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), &bytes[..11]), (5 + size, &b"firstsecond"[..]));
        assert!(bytes[11..].iter().all(|byte| *byte == 0));
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= size as u64);
        assert_eq!(files.0.synced(&path), Some(11), "zeros aren't what was written");
    }
}
