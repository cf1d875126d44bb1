//! SQLite's backup API: the pages of one database, as one read transaction sees them, into a new file.
//!
//! rusqlite's own binding borrows both connections, and who copies in slices must keep them; so the three C functions
//! are wrapped here with the connections inside. It must never know what the database holds.

#![allow(unsafe_code)]

use rusqlite::{Connection, OpenFlags, ffi};
use std::borrow::Borrow;
use std::ffi::c_int;
use std::path::Path;

/// A copy that is being made. Fields are dropped in order: SQLite's backup points into both connections.
pub(super) struct Backup<S = Connection> {
    raw: Raw,
    source: S,
    _target: Connection,
}

struct Raw(*mut ffi::sqlite3_backup);

// SAFETY: SQLite is compiled thread-safe, a connection may be used from any thread as long as it's one at a time, and a
// backup is part of its two connections, which nobody else has.
unsafe impl Send for Raw {}

impl<S: Borrow<Connection>> Backup<S> {
    /// Begins to copy. The source's open read transaction decides what is copied, so that no writer makes the copy begin
    /// again. The target must not exist.
    pub fn begin(source: S, target: &Path) -> rusqlite::Result<Self> {
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
            let source = source.borrow().handle();
            ffi::sqlite3_backup_init(target.handle(), c"main".as_ptr(), source, c"main".as_ptr())
        };
        if raw.is_null() {
            // SAFETY: the handle is open; the call before left its error there.
            return Err(error(unsafe { ffi::sqlite3_errcode(target.handle()) }));
        }
        Ok(Self { raw: Raw(raw), source, _target: target })
    }

    /// Copies so many pages. Gives whether it was the last of them; the target is complete then.
    pub fn step(&mut self, pages: u16) -> rusqlite::Result<bool> {
        // SAFETY: `raw` is a live backup.
        match unsafe { ffi::sqlite3_backup_step(self.raw.0, c_int::from(pages)) } {
            ffi::SQLITE_DONE => Ok(true),
            ffi::SQLITE_OK => Ok(false),
            code => Err(error(code)),
        }
    }

    /// What is copied from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// How many pages are left, as of the last step.
    pub fn pages_left(&self) -> u64 {
        // SAFETY: `raw` is a live backup.
        u64::try_from(unsafe { ffi::sqlite3_backup_remaining(self.raw.0) }).unwrap_or(0)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: it is a live backup, and its connections are dropped after this.
        unsafe { ffi::sqlite3_backup_finish(self.0) };
    }
}

fn error(code: c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}
