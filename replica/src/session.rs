//! Changed rows: capturing them, reading them, applying them, in the form of SQLite's session extension.
//!
//! rusqlite's own binding needs libclang, so the dozen C functions are declared here, by hand, against the SQLite that
//! `libsqlite3-sys` bundles (`.cargo/config.toml` compiles hook and extension in). This is the only module with unsafe
//! code; everything it exports is safe. It must never know what changed rows mean, nor what to do about a conflict.

#![allow(unsafe_code)]

mod capture;
mod format;
mod part;
mod rows;

pub use capture::{Capture, Capturing};
pub use part::{Record, Values, retain};
pub use rows::{RowChange, RowOp, changes, merge};

use bytes::Bytes;
use format::{Part, Reader, Table, in_key};
use rusqlite::{Connection, ffi};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

#[repr(C)]
struct RawIter {
    opaque: [u8; 0],
}

#[repr(C)]
struct RawGroup {
    opaque: [u8; 0],
}

type TableFilter = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type ConflictHandler = unsafe extern "C" fn(*mut c_void, c_int, *mut RawIter) -> c_int;

unsafe extern "C" {
    fn sqlite3changeset_op(
        iter: *mut RawIter,
        table: *mut *const c_char,
        columns: *mut c_int,
        op: *mut c_int,
        indirect: *mut c_int,
    ) -> c_int;
    fn sqlite3changegroup_new(group: *mut *mut RawGroup) -> c_int;
    fn sqlite3changegroup_add(group: *mut RawGroup, len: c_int, data: *mut c_void) -> c_int;
    fn sqlite3changegroup_output(group: *mut RawGroup, len: *mut c_int, data: *mut *mut c_void) -> c_int;
    fn sqlite3changegroup_delete(group: *mut RawGroup);
    fn sqlite3changeset_apply_v2(
        db: *mut ffi::sqlite3,
        len: c_int,
        data: *mut c_void,
        filter: Option<TableFilter>,
        conflict: Option<ConflictHandler>,
        context: *mut c_void,
        rebase: *mut *mut c_void,
        rebase_len: *mut c_int,
        flags: c_int,
    ) -> c_int;
}

const CHANGESETAPPLY_NOSAVEPOINT: c_int = 1;
const CHANGESET_FOREIGN_KEY: c_int = 5;
const CHANGESET_ABORT: c_int = 2;

/// The prefix of tables that are never captured: the replica's own, which every replica writes itself.
pub(crate) const OWN_PREFIX: &str = "replica_";

/// What a changeset does to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChanges {
    /// The table.
    pub table: String,
    /// For each column, whether it belongs to the primary key.
    pub key: Vec<bool>,
    /// How many rows are inserted, updated or deleted.
    pub changes: u64,
}

/// Why a changeset was not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// A row wasn't as the changeset has it. Nothing says what of the changeset was applied: roll back.
    Conflict {
        /// The table.
        table: String,
        /// What kind of conflict.
        kind: &'static str,
    },
}

fn check(code: c_int) -> rusqlite::Result<()> {
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

fn length(data: &[u8]) -> rusqlite::Result<c_int> {
    c_int::try_from(data.len())
        .map_err(|_| rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), None))
}

/// The text behind a pointer that SQLite gave out; empty for none.
///
/// # Safety
/// `text` is null, or points at a NUL-terminated string that lives until this returns.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A buffer that SQLite gave out, copied and freed.
///
/// # Safety
/// `data` is null, or `len` bytes that SQLite allocated and nobody else frees.
unsafe fn take(len: c_int, data: *mut c_void) -> Bytes {
    // SAFETY: the caller vouches for it.
    unsafe {
        let copied = match usize::try_from(len) {
            Ok(len) if len > 0 && !data.is_null() => {
                Bytes::copy_from_slice(std::slice::from_raw_parts(data.cast::<u8>(), len))
            }
            _ => Bytes::new(),
        };
        ffi::sqlite3_free(data);
        copied
    }
}

/// What a changeset does, table by table.
pub fn inspect(changeset: &[u8]) -> rusqlite::Result<Vec<TableChanges>> {
    let mut found: Vec<TableChanges> = Vec::new();
    let mut reader = Reader::new(changeset);
    while let Some(part) = reader.next()? {
        match (part, found.last_mut()) {
            (Part::Table(Table { name, key }), _) => {
                found.push(TableChanges { table: name.to_owned(), key: in_key(key), changes: 0 });
            }
            (Part::Change { .. }, Some(last)) => last.changes += 1,
            (Part::Change { .. }, None) => {}
        }
    }
    Ok(found)
}

unsafe extern "C" fn on_conflict(context: *mut c_void, kind: c_int, iter: *mut RawIter) -> c_int {
    // SAFETY: the context is the `Option` that `apply` passed, and nobody else uses it meanwhile. For all kinds but
    // FOREIGN_KEY the iterator stands on a change, so its table can be asked for.
    unsafe {
        let seen = &mut *context.cast::<Option<(String, &'static str)>>();
        let mut name = ptr::null();
        let (mut columns, mut op, mut indirect) = (0, 0, 0);
        if kind != CHANGESET_FOREIGN_KEY {
            sqlite3changeset_op(iter, &mut name, &mut columns, &mut op, &mut indirect);
        }
        let kind = match kind {
            1 => "a row has other values than expected",
            2 => "a row is missing",
            3 => "a row exists already",
            4 => "a constraint fails",
            _ => "a foreign key fails",
        };
        seen.get_or_insert_with(|| (text(name), kind));
        CHANGESET_ABORT
    }
}

/// Applies a changeset. Any conflict ends it. The caller must have checked that the tables are what the changeset
/// takes them for ([`inspect`]): SQLite skips those that aren't, in silence.
pub fn apply(connection: &Connection, changeset: &[u8]) -> Result<(), ApplyError> {
    let len = length(changeset).map_err(ApplyError::Sqlite)?;
    let mut seen: Option<(String, &'static str)> = None;
    // SAFETY: the handle is open; the buffer outlives the call and is only read; the context pointer is used by
    // `on_conflict` alone and only during the call.
    let code = unsafe {
        sqlite3changeset_apply_v2(
            connection.handle(),
            len,
            changeset.as_ptr().cast_mut().cast(),
            None,
            Some(on_conflict),
            (&raw mut seen).cast(),
            ptr::null_mut(),
            ptr::null_mut(),
            CHANGESETAPPLY_NOSAVEPOINT,
        )
    };
    match (seen, check(code)) {
        (Some((table, kind)), _) => Err(ApplyError::Conflict { table, kind }),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(ApplyError::Sqlite(error)),
    }
}
