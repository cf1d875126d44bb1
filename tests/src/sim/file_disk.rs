//! The SQLite files of a node on a disk that loses what wasn't synced.
//!
//! SQLite's own unix VFS does the work; this module stands before it as the process's default VFS and notes, for the
//! databases and WALs under a directory that is watched, what was written since the last sync. A crash makes a new
//! directory: what was synced is in it, and of what came later a part, the last write perhaps torn. It must never know a
//! replica; the directories belong to whoever asks. Everything of a simulation happens in one thread, so what is noted is
//! the thread's.
//!
//! This is the only module of the crate with unsafe code; everything it exports is safe.

#![allow(unsafe_code)]

use super::random::Random;
use rusqlite::ffi;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

/// One directory's files.
pub struct FileDisk {
    directory: PathBuf,
    health: Rc<Health>,
}

#[derive(Default)]
struct Health {
    full: Cell<bool>,
    die_in: Cell<Option<u64>>,
    died: Cell<bool>,
}

/// A file, as it would be after a crash at once and what was written since.
struct Tracked {
    health: Rc<Health>,
    synced: RefCell<Vec<u8>>,
    unsynced: RefCell<Vec<Op>>,
}

enum Op {
    Write { offset: usize, data: Vec<u8> },
    Truncate(usize),
}

impl Op {
    fn act(&self, content: &mut Vec<u8>) {
        match self {
            Op::Write { offset, data } => {
                let end = offset + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(data);
            }
            Op::Truncate(length) => content.truncate(*length),
        }
    }
}

#[derive(Default)]
struct Watched {
    directories: BTreeMap<PathBuf, Rc<Health>>,
    files: BTreeMap<PathBuf, Rc<Tracked>>,
    handles: BTreeMap<usize, Handle>,
}

#[derive(Clone)]
struct Handle {
    real: &'static ffi::sqlite3_io_methods,
    file: Rc<Tracked>,
}

thread_local! {
    static WATCHED: RefCell<Watched> = RefCell::default();
}

impl FileDisk {
    /// Watches a directory from now on. What is in it counts as synced.
    pub fn new(directory: PathBuf) -> Self {
        assert!(install(), "SQLite takes the VFS");
        let health = Rc::new(Health::default());
        WATCHED.with_borrow_mut(|watched| watched.directories.insert(directory.clone(), health.clone()));
        Self { directory, health }
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether writes find no space.
    pub fn set_full(&self, full: bool) {
        self.health.full.set(full);
    }

    /// Has the process die after so many more writes.
    pub fn die_in(&self, writes: u64) {
        self.health.die_in.set(Some(writes));
    }

    /// Has the process live, if it hasn't died yet.
    pub fn spare(&self) {
        self.health.die_in.set(None);
    }

    /// Whether the process died in a write.
    pub fn has_died(&self) -> bool {
        self.health.died.get()
    }

    /// Puts what a crash leaves into another directory, and watches that. This one's files are as they were: who had
    /// them open hasn't noticed yet.
    pub fn crash(self, directory: PathBuf, random: &mut Random) -> io::Result<Self> {
        let tracked: BTreeMap<PathBuf, Rc<Tracked>> = WATCHED.with_borrow(|watched| {
            let own = watched.files.iter().filter(|(path, _)| path.starts_with(&self.directory));
            own.map(|(path, file)| (path.clone(), file.clone())).collect()
        });
        copy(&self.directory, &directory, &tracked, random)?;
        Ok(Self::new(directory))
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        WATCHED.with_borrow_mut(|watched| {
            watched.directories.remove(&self.directory);
            watched.files.retain(|path, _| !path.starts_with(&self.directory));
        });
    }
}

fn copy(
    from: &Path,
    to: &Path,
    tracked: &BTreeMap<PathBuf, Rc<Tracked>>,
    random: &mut Random,
) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&path, &target, tracked, random)?;
        } else if path.to_string_lossy().ends_with("-shm") {
            // It lives in memory, and a crash ends that.
        } else {
            let content = fs::read(&path)?;
            let left = tracked.get(&path).and_then(|file| file.left(&content, random));
            fs::write(&target, left.unwrap_or(content))?;
        }
    }
    Ok(())
}

impl Tracked {
    /// What a crash leaves of a file with this content; nothing if it isn't the file that was tracked, but another one
    /// that has taken its name.
    fn left(&self, content: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        let mut all = self.synced.borrow().clone();
        let unsynced = self.unsynced.borrow();
        unsynced.iter().for_each(|op| op.act(&mut all));
        if content.len() < all.len() || content[..all.len()] != all[..] {
            return None;
        }
        let mut left = self.synced.borrow().clone();
        // A disk writes in whatever order it likes, but mostly in the one that it was given.
        let in_order = random.permille(700);
        let kept = random.within(0..unsynced.len() as u64 + 1);
        for (number, op) in (0..).zip(unsynced.iter()) {
            let keep = if in_order { number < kept } else { random.permille(500) };
            match op {
                _ if keep => op.act(&mut left),
                Op::Write { offset, data } if in_order && number == kept => {
                    let torn = usize::try_from(random.within(0..data.len() as u64 + 1)).unwrap_or(0);
                    Op::Write { offset: *offset, data: data[..torn].to_vec() }.act(&mut left);
                }
                _ => {}
            }
        }
        Some(left)
    }

    fn sync(&self) {
        let mut synced = self.synced.borrow_mut();
        self.unsynced.borrow_mut().drain(..).for_each(|op| op.act(&mut synced));
    }

    /// What a write meets; nothing if it's well.
    fn trouble(&self) -> Option<c_int> {
        let health = &self.health;
        if let Some(left) = health.die_in.get() {
            health.die_in.set(left.checked_sub(1));
            health.died.set(health.died.get() || left == 0);
        }
        if health.died.get() {
            return Some(ffi::SQLITE_IOERR_WRITE);
        }
        health.full.get().then_some(ffi::SQLITE_FULL)
    }
}

/// The unix VFS that stands behind.
struct Real(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite's VFS objects are used by all threads and live as long as the process.
unsafe impl Send for Real {}
// SAFETY: as above; it's never written to.
unsafe impl Sync for Real {}

static REAL: OnceLock<Real> = OnceLock::new();

fn real() -> *mut ffi::sqlite3_vfs {
    REAL.get().expect("it's set before the VFS is registered").0
}

fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: the default VFS exists once SQLite is initialized; the copy and its name live for ever.
        unsafe {
            if ffi::sqlite3_initialize() != ffi::SQLITE_OK {
                return false;
            }
            let real = REAL.get_or_init(|| Real(ffi::sqlite3_vfs_find(std::ptr::null()))).0;
            let mut vfs = Box::new(*real);
            vfs.zName = c"simulated".as_ptr();
            vfs.pNext = std::ptr::null_mut();
            vfs.xOpen = Some(open);
            vfs.xSleep = Some(sleep);
            ffi::sqlite3_vfs_register(Box::into_raw(vfs), 1) == ffi::SQLITE_OK
        }
    })
}

/// Time passes where the simulation says so, and nowhere else.
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: all arguments are SQLite's own, handed on; the copy has the unix VFS's private data.
    let code = unsafe { (*real()).xOpen.expect("the unix VFS opens files")(vfs, name, file, flags, out) };
    let data = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL;
    if code != ffi::SQLITE_OK || name.is_null() || flags & data == 0 {
        return code;
    }
    // SAFETY: a name that isn't null is a C string, and SQLite gives full paths.
    let path = PathBuf::from(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
    WATCHED.with_borrow_mut(|watched| {
        let Some(file_state) = watched.track(&path) else { return };
        // SAFETY: a file that was opened has methods, which are static tables.
        let real: &'static ffi::sqlite3_io_methods = unsafe { &*(*file).pMethods };
        watched.handles.insert(file as usize, Handle { real, file: file_state });
        // SAFETY: as above. The table with our methods has the same layout and lives for ever.
        unsafe { (*file).pMethods = methods(real) };
    });
    code
}

impl Watched {
    fn track(&mut self, path: &Path) -> Option<Rc<Tracked>> {
        let (_, health) = self.directories.iter().find(|(directory, _)| path.starts_with(directory))?;
        let known = self.files.get(path).filter(|file| {
            // Somebody else may have removed the file, and this is a new one of the same name.
            Rc::strong_count(file) > 1 || fs::metadata(path).is_ok_and(|found| found.len() > 0)
        });
        if let Some(known) = known {
            return Some(known.clone());
        }
        let content = fs::read(path).unwrap_or_default();
        let (synced, unsynced) = (RefCell::new(content), RefCell::default());
        let file = Rc::new(Tracked { health: health.clone(), synced, unsynced });
        self.files.insert(path.to_owned(), file.clone());
        Some(file)
    }
}

/// A copy of a VFS's methods with ours in front.
fn methods(real: &'static ffi::sqlite3_io_methods) -> *const ffi::sqlite3_io_methods {
    thread_local! {
        static MADE: RefCell<BTreeMap<usize, &'static ffi::sqlite3_io_methods>> = const { RefCell::new(BTreeMap::new()) };
    }
    MADE.with_borrow_mut(|made| {
        let key = std::ptr::from_ref(real) as usize;
        *made.entry(key).or_insert_with(|| {
            Box::leak(Box::new(ffi::sqlite3_io_methods {
                xClose: Some(close),
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                ..*real
            }))
        })
    })
}

fn handle(file: *mut ffi::sqlite3_file) -> Handle {
    let found = WATCHED.with_borrow(|watched| watched.handles.get(&(file as usize)).cloned());
    found.expect("these methods are only given to files that are tracked, and used in their thread")
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let handle = handle(file);
    WATCHED.with_borrow_mut(|watched| watched.handles.remove(&(file as usize)));
    // SAFETY: SQLite closes an open file of the VFS behind.
    unsafe { handle.real.xClose.expect("files can be closed")(file) }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let handle = handle(file);
    if let Some(trouble) = handle.file.trouble() {
        return trouble;
    }
    let (Ok(length_bytes), Ok(offset_bytes)) = (usize::try_from(length), usize::try_from(offset)) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: SQLite hands over so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length_bytes) };
    handle.file.unsynced.borrow_mut().push(Op::Write { offset: offset_bytes, data: bytes.to_vec() });
    // SAFETY: the call is handed on as it came.
    unsafe { handle.real.xWrite.expect("files can be written")(file, data, length, offset) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    let handle = handle(file);
    handle.file.unsynced.borrow_mut().push(Op::Truncate(usize::try_from(size).unwrap_or(0)));
    // SAFETY: the call is handed on as it came.
    unsafe { handle.real.xTruncate.expect("files can be truncated")(file, size) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    handle(file).file.sync();
    ffi::SQLITE_OK
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn count(directory: &Path) -> i64 {
        let connection = Connection::open(directory.join("a.sqlite")).expect("it opens");
        let check: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("it is whole");
        assert_eq!(check, "ok");
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("the table is there")
    }

    #[test]
    fn a_crash_keeps_what_a_checkpoint_synced_and_loses_commits_from_the_end() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let temporary = tempfile::tempdir().expect("there is room");
            let disk = FileDisk::new(temporary.path().join("1"));
            fs::create_dir_all(disk.directory()).expect("there is room");
            let connection = Connection::open(disk.directory().join("a.sqlite")).expect("it opens");
            connection
                .execute_batch(
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;
                     CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2);
                     PRAGMA wal_checkpoint(PASSIVE);",
                )
                .expect("it runs");
            for value in 3..=5 {
                connection.execute("INSERT INTO t VALUES (?1)", [value]).expect("it runs");
            }
            let left = disk.crash(temporary.path().join("2"), &mut Random::new(seed)).expect("it's copied");
            let rows = count(left.directory());
            assert!((2..=5).contains(&rows), "{rows}");
            seen.insert(rows);
            drop(connection);
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[test]
    fn a_full_disk_refuses_and_recovers() {
        let temporary = tempfile::tempdir().expect("there is room");
        let disk = FileDisk::new(temporary.path().to_owned());
        let connection = Connection::open(disk.directory().join("a.sqlite")).expect("it opens");
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").expect("it runs");
        disk.set_full(true);
        let error = connection.execute("INSERT INTO t VALUES (1)", []).expect_err("there is no space");
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
        disk.set_full(false);
        connection.execute("INSERT INTO t VALUES (2)", []).expect("there is space again");
        drop(connection);
        assert_eq!(count(disk.directory()), 1);
    }
}
