//! The session extension: capturing row changes, reading them, applying them.
//!
//! rusqlite's own binding needs libclang, so the dozen C functions are declared here, by hand, against the SQLite that
//! `libsqlite3-sys` bundles (`.cargo/config.toml` compiles the extension in). This is the only module with unsafe
//! code; everything it exports is safe. It must never know what changed rows mean, nor what to do about a conflict.

#![allow(unsafe_code)]

mod rows;

pub use rows::{RowChange, RowOp, changes, merge};

use bytes::Bytes;
use rusqlite::{Connection, ffi};
use std::ffi::{CStr, c_char, c_int, c_uchar, c_void};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;

#[repr(C)]
struct RawSession {
    opaque: [u8; 0],
}

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
    fn sqlite3session_create(
        db: *mut ffi::sqlite3,
        schema: *const c_char,
        out: *mut *mut RawSession,
    ) -> c_int;
    fn sqlite3session_delete(session: *mut RawSession);
    fn sqlite3session_object_config(session: *mut RawSession, option: c_int, value: *mut c_void) -> c_int;
    fn sqlite3session_changeset_size(session: *mut RawSession) -> i64;
    fn sqlite3session_attach(session: *mut RawSession, table: *const c_char) -> c_int;
    fn sqlite3session_table_filter(
        session: *mut RawSession,
        filter: Option<TableFilter>,
        context: *mut c_void,
    );
    fn sqlite3session_changeset(session: *mut RawSession, len: *mut c_int, data: *mut *mut c_void) -> c_int;
    fn sqlite3changeset_start(iter: *mut *mut RawIter, len: c_int, data: *mut c_void) -> c_int;
    fn sqlite3changeset_next(iter: *mut RawIter) -> c_int;
    fn sqlite3changeset_op(
        iter: *mut RawIter,
        table: *mut *const c_char,
        columns: *mut c_int,
        op: *mut c_int,
        indirect: *mut c_int,
    ) -> c_int;
    fn sqlite3changeset_pk(iter: *mut RawIter, key: *mut *mut c_uchar, columns: *mut c_int) -> c_int;
    fn sqlite3changeset_old(iter: *mut RawIter, column: c_int, value: *mut *mut ffi::sqlite3_value) -> c_int;
    fn sqlite3changeset_new(iter: *mut RawIter, column: c_int, value: *mut *mut ffi::sqlite3_value) -> c_int;
    fn sqlite3changeset_finalize(iter: *mut RawIter) -> c_int;
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

const SESSION_OBJCONFIG_SIZE: c_int = 1;
const CHANGESETAPPLY_NOSAVEPOINT: c_int = 1;
const CHANGESET_FOREIGN_KEY: c_int = 5;
const CHANGESET_ABORT: c_int = 2;

/// The prefix of tables that are never captured: the replica's own, which every replica writes itself.
pub(crate) const OWN_PREFIX: &str = "replica_";

/// A capture of the changes that a connection makes to the tables of its main database, from its making until
/// [`Session::changeset`]. The replica's own tables are left out.
pub struct Session<'c> {
    raw: *mut RawSession,
    connection: PhantomData<&'c Connection>,
}

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

unsafe extern "C" fn not_own(_: *mut c_void, table: *const c_char) -> c_int {
    // SAFETY: SQLite passes the name of a table, which lives for the call.
    let name = unsafe { CStr::from_ptr(table) };
    c_int::from(!name.to_bytes().starts_with(OWN_PREFIX.as_bytes()))
}

impl<'c> Session<'c> {
    /// Begins to capture.
    pub fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the handle is open for as long as 'c, which outlives the session; "main" is NUL-terminated; SQLite
        // sets `raw` to a session or null. Attaching no table by name means all that the filter lets through.
        unsafe {
            check(sqlite3session_create(connection.handle(), c"main".as_ptr(), &mut raw))?;
            let session = Self { raw, connection: PhantomData };
            let mut wanted: c_int = 1;
            check(sqlite3session_object_config(raw, SESSION_OBJCONFIG_SIZE, (&raw mut wanted).cast()))?;
            sqlite3session_table_filter(raw, Some(not_own), ptr::null_mut());
            check(sqlite3session_attach(raw, ptr::null()))?;
            Ok(session)
        }
    }

    /// How many bytes the changeset has at most. It only grows: what is undone is still counted.
    pub fn size(&self) -> usize {
        // SAFETY: `raw` is a live session.
        usize::try_from(unsafe { sqlite3session_changeset_size(self.raw) }).unwrap_or(0)
    }

    /// What has changed since the session was made, as one changeset; empty if nothing did. (An "is it empty" that
    /// the extension offers would hide an error that it met while capturing.)
    pub fn changeset(&self) -> rusqlite::Result<Bytes> {
        let (mut len, mut data) = (0, ptr::null_mut());
        // SAFETY: `raw` is a live session. SQLite gives out a buffer of `len` bytes.
        unsafe {
            check(sqlite3session_changeset(self.raw, &mut len, &mut data))?;
            Ok(take(len, data))
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live session, and the connection it belongs to outlives it.
        unsafe { sqlite3session_delete(self.raw) }
    }
}

/// A connection with the capture that is under way on it, if there is one.
pub(crate) struct Capturing {
    // Dropped first: a session must not outlive its connection.
    session: Option<Session<'static>>,
    connection: Connection,
}

// SAFETY: a connection can be sent, and SQLite touches a session only in calls on its connection or on itself, both of
// which whoever has this has alone.
unsafe impl Send for Capturing {}

impl Capturing {
    /// A connection on which nothing is captured.
    pub fn new(connection: Connection) -> Self {
        Self { session: None, connection }
    }

    /// Begins to capture. What was captured before is forgotten.
    pub fn begin_capture(&mut self) -> rusqlite::Result<()> {
        self.end_capture();
        let Session { raw, .. } = *std::mem::ManuallyDrop::new(Session::new(&self.connection)?);
        // The session lives in here beside its connection, which can't be taken out, and is dropped before it.
        self.session = Some(Session { raw, connection: PhantomData });
        Ok(())
    }

    /// The capture that is under way.
    pub fn capture(&self) -> Option<&Session<'static>> {
        self.session.as_ref()
    }

    /// Captures no more.
    pub fn end_capture(&mut self) {
        self.session = None;
    }
}

impl Deref for Capturing {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A change that an iterator stands on.
struct Change {
    iter: *mut RawIter,
    table: String,
    op: c_int,
}

impl Change {
    /// For each column, whether it belongs to the primary key.
    fn key(&self) -> rusqlite::Result<Vec<bool>> {
        let (mut key, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the iterator is live and stands on a change, whose flags live until it moves on.
        let flags = unsafe {
            check(sqlite3changeset_pk(self.iter, &mut key, &mut count))?;
            match usize::try_from(count) {
                Ok(count) if !key.is_null() => std::slice::from_raw_parts(key, count),
                _ => &[],
            }
        };
        Ok(flags.iter().map(|flag| *flag != 0).collect())
    }
}

/// Shows each change of a changeset in turn.
fn each(changeset: &[u8], mut visit: impl FnMut(Change) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    let len = length(changeset)?;
    let mut iter = ptr::null_mut();
    // SAFETY: the buffer outlives the iterator, which only reads it; every pointer that the iterator gives out is
    // used before it moves on; it is finalized on every path.
    unsafe {
        check(sqlite3changeset_start(&mut iter, len, changeset.as_ptr().cast_mut().cast()))?;
        let outcome = loop {
            match sqlite3changeset_next(iter) {
                ffi::SQLITE_ROW => {}
                ffi::SQLITE_DONE => break Ok(()),
                code => break check(code),
            }
            let (mut name, mut columns, mut op, mut indirect) = (ptr::null(), 0, 0, 0);
            let visited = check(sqlite3changeset_op(iter, &mut name, &mut columns, &mut op, &mut indirect))
                .and_then(|()| visit(Change { iter, table: text(name), op }));
            if visited.is_err() {
                break visited;
            }
        };
        let finalized = check(sqlite3changeset_finalize(iter));
        outcome.and(finalized)
    }
}

/// What a changeset does, table by table.
pub fn inspect(changeset: &[u8]) -> rusqlite::Result<Vec<TableChanges>> {
    let mut found: Vec<TableChanges> = Vec::new();
    each(changeset, |change| {
        match found.last_mut() {
            Some(last) if last.table == change.table => last.changes += 1,
            _ => {
                let key = change.key()?;
                found.push(TableChanges { table: change.table, key, changes: 1 });
            }
        }
        Ok(())
    })?;
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
