//! The state that a snapshot shows, so that others can be opened of the same (SQLite's `sqlite3_snapshot`).
//!
//! A connection goes back to a moment as long as some other connection is still there: that keeps the WAL from being
//! emptied below it. The C functions are called here alone, and what is exported is safe. It must never know what the
//! state is wanted for.

#![allow(unsafe_code)]

use rusqlite::{Connection, ffi};
use std::ptr::{self, NonNull};

/// A state of a database in WAL mode.
pub(crate) struct Moment(NonNull<ffi::sqlite3_snapshot>);

// SAFETY: it is written once, when it is made, and SQLite only reads it from then on.
unsafe impl Send for Moment {}
// SAFETY: as above.
unsafe impl Sync for Moment {}

impl Moment {
    /// What the connection's read transaction shows. It fails if nothing was ever written to the WAL.
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let mut moment = ptr::null_mut();
        // SAFETY: the handle lives as long as the connection, which is borrowed; the name ends with a zero.
        let code =
            unsafe { ffi::sqlite3_snapshot_get(connection.handle(), c"main".as_ptr(), &raw mut moment) };
        match NonNull::new(moment) {
            Some(moment) if code == ffi::SQLITE_OK => Ok(Self(moment)),
            _ => Err(failure(code)),
        }
    }

    /// Has the connection's read transaction, in which no statement may be under way, show this state.
    pub fn enter(&self, connection: &Connection) -> rusqlite::Result<()> {
        // SAFETY: as above; the moment lives as long as `self`.
        let code =
            unsafe { ffi::sqlite3_snapshot_open(connection.handle(), c"main".as_ptr(), self.0.as_ptr()) };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(failure(code)) }
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // SAFETY: it came from sqlite3_snapshot_get, and nobody else frees it.
        unsafe { ffi::sqlite3_snapshot_free(self.0.as_ptr()) }
    }
}

fn failure(code: std::ffi::c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}
