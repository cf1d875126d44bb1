//! SQLite's backup API: the pages of one database, as one read transaction sees them, into a new file.
//!
//! rusqlite's own binding borrows both connections, and who copies in slices must keep them; so the three C functions
//! are wrapped here with the connections inside. It must never know what the database holds.

#![allow(unsafe_code)]

use rusqlite::{Connection, OpenFlags, ffi};
use std::ffi::c_int;
use std::path::Path;

/// A copy that is being made.
pub(super) struct Backup {
    raw: *mut ffi::sqlite3_backup,
    /// Dropped after the backup was finished, which points into both.
    _source: Connection,
    _target: Connection,
}

// SAFETY: SQLite is compiled thread-safe, a connection may be used from any thread as long as it's one at a time, and a
// backup is part of its two connections, which nobody else has.
unsafe impl Send for Backup {}

impl Backup {
    /// Begins to copy. The source's open read transaction decides what is copied, so that no writer makes the copy begin
    /// again. The target must not exist.
    pub fn begin(source: Connection, target: &Path) -> rusqlite::Result<Self> {
        let target = Connection::open_with_flags(
            target,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        // A copy that isn't finished is thrown away, so nothing needs to be undone in it.
        target.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA cache_size = -1024;",
        )?;
        // SAFETY: both handles are open, and live as long as the backup; the names are NUL-terminated.
        let raw = unsafe {
            ffi::sqlite3_backup_init(target.handle(), c"main".as_ptr(), source.handle(), c"main".as_ptr())
        };
        if raw.is_null() {
            // SAFETY: the handle is open; the call before left its error there.
            return Err(error(unsafe { ffi::sqlite3_errcode(target.handle()) }));
        }
        Ok(Self { raw, _source: source, _target: target })
    }

    /// Copies so many pages. Gives whether it was the last of them; the target is complete then.
    pub fn step(&mut self, pages: u16) -> rusqlite::Result<bool> {
        // SAFETY: `raw` is a live backup.
        match unsafe { ffi::sqlite3_backup_step(self.raw, c_int::from(pages)) } {
            ffi::SQLITE_DONE => Ok(true),
            ffi::SQLITE_OK => Ok(false),
            code => Err(error(code)),
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live backup, and its connections are dropped after this.
        unsafe { ffi::sqlite3_backup_finish(self.raw) };
    }
}

fn error(code: c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}
