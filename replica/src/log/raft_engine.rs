//! The log of production: one raft-engine for all groups of a node.
//!
//! Batches go in and are framed as raft-engine wants them; entries come out by index. It must never know what an entry
//! means.

#[cfg(test)]
mod tests;

use super::files::{Disk, Failure, Files, TestDisk};
use super::{Batch, Change, Cut, Kept, LogReader, LogStore, tail};
use crate::error::ReplicaError;
use bytes::Bytes;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use std::cell::RefCell;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

const HARD_STATE: &[u8] = b"hard";
const CUT: &[u8] = b"cut";
/// Marks' names begin with this, so that they can't be mistaken for the two above.
const MARK: &str = "mark.";
/// Log files beyond this many times one file's size are purged of what was compacted.
const PURGE_FILES: u64 = 4;
/// A disk takes writes again once it takes this much: more than a log file is made longer by at once.
const ROOM_BYTES: usize = 4 << 20;

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

type Engine = raft_engine::Engine<Files>;

/// The log of one node.
pub(crate) struct RaftEngineLog {
    path: PathBuf,
    file_bytes: u64,
    test: TestDisk,
    state: RwLock<State>,
}

enum State {
    Open(Box<Opened>),
    /// It couldn't be opened, and may be later. What is known of its files' syncs.
    Closed(Failure, Arc<Disk>),
    /// Which file is damaged, and how.
    Damaged(PathBuf, String),
}

struct Opened {
    engine: Engine,
    disk: Arc<Disk>,
}

thread_local! {
    /// Which log this thread reads; kept, so that no other can be taken for it.
    static READS: RefCell<Option<Arc<Disk>>> = const { RefCell::new(None) };
}

impl Opened {
    /// Reads entries. raft-engine keeps the last block that a thread read under its place alone, file number and offset,
    /// whichever log that was of: a thread that reads another log would be given this one's entries. So a thread reads
    /// the log that it first read, and what it wants of others is read in a thread that has read nothing yet.
    fn read<T: Send>(&self, read: impl FnOnce(&Engine) -> T + Send) -> T {
        let own = READS
            .with_borrow_mut(|log| Arc::ptr_eq(log.get_or_insert_with(|| self.disk.clone()), &self.disk));
        if own {
            return read(&self.engine);
        }
        let apart = thread::scope(|scope| scope.spawn(|| read(&self.engine)).join());
        apart.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn mark_key(name: &str) -> Vec<u8> {
    format!("{MARK}{name}").into_bytes()
}

fn cut_value(cut: Cut) -> Vec<u8> {
    let mut value = cut.index.to_le_bytes().to_vec();
    value.extend(cut.term.to_le_bytes());
    value
}

impl RaftEngineLog {
    /// Opens or makes a log on a disk that is what it is.
    #[cfg(test)]
    pub fn open(path: &Path, file_bytes: u64) -> Result<Self, ReplicaError> {
        Self::open_on(path, file_bytes, TestDisk::default())
    }

    /// Opens or makes a log. One that is damaged, or whose disk fails, is there and says so whatever it's asked. A test
    /// can spoil its disk.
    pub fn open_on(path: &Path, file_bytes: u64, test: TestDisk) -> Result<Self, ReplicaError> {
        let known = path.is_dir();
        let state = match State::open(path, file_bytes, &test, None) {
            Err(ReplicaError::Io { path, source }) if known => {
                tracing::error!("{}: {source}", path.display());
                let failure = Failure { path, message: source.to_string(), kind: source.kind() };
                State::Closed(failure, Arc::new(Disk::new(test.clone())))
            }
            opened => opened?,
        };
        Ok(Self { path: path.to_owned(), file_bytes, test, state: RwLock::new(state) })
    }

    /// What is opened may be used as long as the guard is held.
    fn opened(&self) -> Result<MappedRwLockReadGuard<'_, Opened>, ReplicaError> {
        let opened = RwLockReadGuard::try_map(self.state.read(), |state| match state {
            State::Open(opened) => Some(opened.as_ref()),
            State::Closed(..) | State::Damaged(..) => None,
        });
        opened.map_err(|state| state.why().unwrap_or(ReplicaError::ShutDown))
    }

    /// Does what changes files. After a failure nothing is tried any more.
    fn change(&self, act: impl FnOnce(&Opened) -> raft_engine::Result<()>) -> Result<(), ReplicaError> {
        let opened = self.opened()?;
        if let Some(failure) = opened.disk.failure() {
            return Err(failure.into());
        }
        let (message, kind) = match catch_unwind(AssertUnwindSafe(|| act(&opened))) {
            Ok(Ok(())) => return opened.disk.failure().map_or(Ok(()), |failure| Err(failure.into())),
            Ok(Err(raft_engine::Error::Io(error))) => (error.to_string(), error.kind()),
            Ok(Err(error)) => (error.to_string(), ErrorKind::Other),
            // It syncs directories by itself, and panics where that fails.
            Err(panic) => (ReplicaError::panicked("the log", panic.as_ref()).to_string(), ErrorKind::Other),
        };
        opened.disk.note(&self.path, message, kind);
        opened.disk.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// A log that was there and isn't: its disk is away, and what is in its place isn't to be begun anew.
    fn check_mounted(&self) -> Result<(), ReplicaError> {
        fs::metadata(&self.path).map(drop).map_err(ReplicaError::io(&self.path))
    }

    fn wrap(&self, source: raft_engine::Error) -> ReplicaError {
        ReplicaError::Log { path: self.path.clone(), source }
    }

    fn damaged(&self, message: String) -> ReplicaError {
        ReplicaError::Damaged { path: self.path.clone(), message }
    }
}

impl State {
    /// Why nothing can be written.
    fn why(&self) -> Option<ReplicaError> {
        match self {
            Self::Open(opened) => opened.disk.failure().map(ReplicaError::from),
            Self::Closed(failure, _) => Some(failure.clone().into()),
            Self::Damaged(path, message) => {
                Some(ReplicaError::Damaged { path: path.clone(), message: message.clone() })
            }
        }
    }

    /// Opens what is there, which has `failed` before.
    fn open(
        path: &Path,
        file_bytes: u64,
        test: &TestDisk,
        failed: Option<&Disk>,
    ) -> Result<Self, ReplicaError> {
        let dir =
            path.to_str().ok_or_else(|| ReplicaError::Invalid(format!("{} isn't UTF-8", path.display())))?;
        let config = raft_engine::Config {
            dir: dir.to_owned(),
            // What a crash may leave is gone by then: the rest has to be whole.
            recovery_mode: RecoveryMode::AbsoluteConsistency,
            recovery_threads: 2,
            target_file_size: ReadableSize(file_bytes),
            purge_threshold: ReadableSize(file_bytes * PURGE_FILES),
            ..raft_engine::Config::default()
        };
        let disk = Arc::new(Disk::new(test.clone()));
        let files = Arc::new(Files(disk.clone()));
        let open = || Engine::open_with_file_system(config, files);
        let open = || match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(raft_engine::Error::Io(error))) => match disk.failure() {
                Some(failure) => Err(failure.into()),
                None => Err(ReplicaError::io(path)(error)),
            },
            Ok(Err(source @ (raft_engine::Error::Corruption(_) | raft_engine::Error::Codec(_)))) => {
                tail::first_damage(path)?;
                Err(ReplicaError::Damaged { path: path.to_owned(), message: source.to_string() })
            }
            Ok(Err(source)) => Err(ReplicaError::Log { path: path.to_owned(), source }),
            Err(panic) => {
                let message = ReplicaError::panicked("reading it", panic.as_ref()).to_string();
                Err(ReplicaError::Damaged { path: path.to_owned(), message })
            }
        };
        match tail::mend(path, failed).and_then(|()| open()) {
            Ok(engine) => Ok(Self::Open(Box::new(Opened { engine, disk }))),
            Err(ReplicaError::Damaged { path, message }) => {
                tracing::error!("{}: {message}", path.display());
                Ok(Self::Damaged(path, message))
            }
            Err(error) => Err(error),
        }
    }
}

impl From<Failure> for ReplicaError {
    fn from(failure: Failure) -> Self {
        let Failure { path, message, kind } = failure;
        ReplicaError::Io { path, source: std::io::Error::new(kind, message) }
    }
}

/// raft-engine can only forget a group as a whole: what is to stay is written again behind that.
fn clean(engine: &Engine, group: u64, framed: &mut LogBatch) -> Result<(), raft_engine::Error> {
    let mut marks: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let keep = |key: &[u8], value: &[u8]| {
        marks.push((key.to_vec(), value.to_vec()));
        true
    };
    let (begin, end) = (MARK.as_bytes(), b"mark/".as_slice());
    engine.scan_raw_messages(group, Some(begin), Some(end), false, keep)?;
    framed.add_command(group, Command::Clean);
    for (key, value) in marks {
        framed.put(group, key, value)?;
    }
    Ok(())
}

fn frame(
    engine: &Engine,
    group: u64,
    change: Change,
    framed: &mut LogBatch,
) -> Result<(), raft_engine::Error> {
    match change {
        Change::Append(entries) => framed.add_entries::<Entries>(group, &entries),
        Change::HardState(state) => framed.put_message(group, HARD_STATE.to_vec(), &state),
        Change::Cut(cut) => {
            framed.put(group, CUT.to_vec(), cut_value(cut))?;
            framed.add_command(group, Command::Compact { index: cut.index + 1 });
            Ok(())
        }
        Change::Reset(cut) => {
            let state: Option<HardState> = engine.get_message(group, HARD_STATE)?;
            clean(engine, group, framed)?;
            if let Some(state) = state {
                framed.put_message(group, HARD_STATE.to_vec(), &state)?;
            }
            framed.put(group, CUT.to_vec(), cut_value(cut))
        }
        Change::Mark(name, Some(value)) => framed.put(group, mark_key(name), value.to_vec()),
        Change::Mark(name, None) => {
            framed.delete(group, mark_key(name));
            Ok(())
        }
        Change::Clear => clean(engine, group, framed),
    }
}

impl LogReader for RaftEngineLog {
    fn entries(
        &self,
        group: u64,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, ReplicaError> {
        let mut entries = Vec::new();
        let max = max_bytes.map(|max| usize::try_from(max).unwrap_or(usize::MAX));
        let opened = self.opened()?;
        let mut fetch =
            |engine: &Engine| engine.fetch_entries_to::<Entries>(group, low, high, max, &mut entries);
        let fetched = catch_unwind(AssertUnwindSafe(|| opened.read(&mut fetch)));
        let fetched = fetched.map_err(|panic| {
            let panic = ReplicaError::panicked("reading", panic.as_ref());
            self.damaged(format!("group {group}, entry {low} or after: {panic}"))
        });
        match fetched? {
            Ok(_) => Ok(entries),
            Err(raft_engine::Error::Io(error)) => Err(ReplicaError::io(&self.path)(error)),
            Err(error @ (raft_engine::Error::Corruption(_) | raft_engine::Error::Codec(_))) => {
                Err(self.damaged(format!("group {group}, entry {low} or after: {error}")))
            }
            Err(error) => Err(self.wrap(error)),
        }
    }
}

impl LogStore for RaftEngineLog {
    fn path(&self) -> &Path {
        &self.path
    }

    fn kept(&self, group: u64) -> Result<Kept, ReplicaError> {
        let engine = &self.opened()?.engine;
        let cut = match engine.get(group, CUT) {
            None => Cut::default(),
            Some(value) => {
                let (index, term) =
                    value.split_first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                let term = term.first_chunk::<8>().ok_or_else(|| self.damaged("a short cut".into()))?;
                Cut { index: u64::from_le_bytes(*index), term: u64::from_le_bytes(*term) }
            }
        };
        let hard_state: Option<HardState> =
            engine.get_message(group, HARD_STATE).map_err(|e| self.wrap(e))?;
        let range = engine.first_index(group).zip(engine.last_index(group));
        Ok(Kept { hard_state: hard_state.unwrap_or_default(), cut, range })
    }

    fn mark(&self, group: u64, name: &str) -> Result<Option<Bytes>, ReplicaError> {
        Ok(self.opened()?.engine.get(group, &mark_key(name)).map(Bytes::from))
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), ReplicaError> {
        self.change(|Opened { engine, .. }| {
            let mut framed = LogBatch::default();
            for (group, change) in batch.into_changes() {
                frame(engine, group, change, &mut framed)?;
            }
            engine.write(&mut framed, sync).map(drop)
        })
    }

    fn purge(&self) -> Result<(), ReplicaError> {
        let mut unreadable = None;
        // It reads what it writes anew.
        self.change(|opened| match opened.read(Engine::purge_expired_files) {
            // What it can't read stays where it is, and is its group's affair once that needs it.
            Err(error @ (raft_engine::Error::Corruption(_) | raft_engine::Error::Codec(_))) => {
                unreadable = Some(error);
                Ok(())
            }
            purged => purged.map(drop),
        })?;
        unreadable.map_or(Ok(()), |error| Err(self.damaged(format!("some entry: {error}"))))
    }

    fn failure(&self) -> Option<ReplicaError> {
        self.state.read().why()
    }

    fn check_room(&self) -> Result<(), ReplicaError> {
        self.check_mounted()?;
        let path = self.path.with_extension("room");
        let write = || -> std::io::Result<()> {
            self.test.write()?;
            let mut file = fs::File::create(&path)?;
            file.write_all(&vec![0x5a; ROOM_BYTES])?;
            file.sync_all()
        };
        let written = write().map_err(ReplicaError::io(&path));
        if path.exists() {
            fs::remove_file(&path).map_err(ReplicaError::io(&path))?;
        }
        written
    }

    fn renew(&self) -> Result<(), ReplicaError> {
        let mut state = self.state.write();
        if !matches!(*state, State::Damaged(..)) {
            return Ok(());
        }
        let aside = |number: &u32| self.path.with_extension(format!("damaged-{number}"));
        let aside = (1..).map(|number| aside(&number)).find(|aside| !aside.exists());
        let aside = aside.expect("a directory has fewer entries than there are numbers");
        fs::rename(&self.path, &aside).map_err(ReplicaError::io(&self.path))?;
        tracing::warn!("{} is put aside as {}", self.path.display(), aside.display());
        *state = State::open(&self.path, self.file_bytes, &self.test, None)?;
        if let Some(parent) = self.path.parent() {
            fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(ReplicaError::io(parent))?;
        }
        Ok(())
    }

    fn reopen(&self) -> Result<(), ReplicaError> {
        let mut state = self.state.write();
        let failed = match &*state {
            State::Open(opened) => opened.disk.failure().map(|failure| (failure, opened.disk.clone())),
            State::Closed(failure, disk) => Some((failure.clone(), disk.clone())),
            State::Damaged(..) => None,
        };
        if let Some((failure, disk)) = failed {
            self.check_mounted()?;
            // What was open has the directory's lock, and lets go of it here.
            *state = State::Closed(failure, disk.clone());
            *state = State::open(&self.path, self.file_bytes, &self.test, Some(&disk))?;
        }
        state.why().map_or(Ok(()), Err)
    }
}
