//! Opening a replica's database: one writer, many readers.
//!
//! A path goes in, a configured connection comes out, with Shoal's functions registered. Here alone is decided which
//! pragmas hold. Databases aren't mapped into memory: a page that the disk can't read would end the process with
//! SIGBUS, and not be an error of one replica. It must never know a table.

use crate::reading::{self, Reading};
use crate::session::OWN_PREFIX;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{Action, AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::{Connection, OpenFlags};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const WRITER_STATEMENTS: usize = 512;
const READER_STATEMENTS: usize = 256;

/// How long the writer waits for its lock. Nobody else writes, but a reader that met the WAL's header while it was being
/// written takes the lock for a moment to read it again.
pub(crate) const BUSY: Duration = Duration::from_secs(10);

/// How many steps of SQLite's machine pass between two looks at whether a write is still wanted.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 10_000;

/// Says that nobody waits for a write any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Interrupts the write if it is being run, with 57014.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was said.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The rows that a closure updates, though it be to what they are: no changeset has those.
#[derive(Clone, Default)]
pub(crate) struct Updates {
    wanted: Arc<AtomicBool>,
    rows: Arc<Mutex<HashMap<String, Vec<i64>>>>,
}

impl Updates {
    /// Begins to note rows, or ends.
    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
        self.rows.lock().clear();
    }

    /// The rows since then, by table and rowid.
    pub fn rows(&self) -> HashMap<String, Vec<i64>> {
        self.rows.lock().clone()
    }

    /// How many updates that are.
    pub fn count(&self) -> usize {
        self.rows.lock().values().map(Vec::len).sum()
    }

    fn note(&self, action: Action, database: &str, table: &str, rowid: i64) {
        if !self.wanted.load(Ordering::Relaxed) || action != Action::SQLITE_UPDATE || database != "main" {
            return;
        }
        let mut rows = self.rows.lock();
        match rows.get_mut(table) {
            Some(rowids) => rowids.push(rowid),
            None => drop(rows.insert(table.to_owned(), vec![rowid])),
        }
    }
}

/// What a writer connection shares with its hooks.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    /// What the closure that runs updates.
    pub updates: Updates,
    /// Whether a caller's closure runs, so that only rows may be touched.
    pub guarded: Arc<AtomicBool>,
    /// The write whose closure runs.
    pub running: Arc<Mutex<Option<Cancel>>>,
    /// How many pages the WAL had after the last commit.
    pub wal_pages: Arc<AtomicU64>,
    /// How many of them the last checkpoint saw; 0 if the WAL began anew since.
    pub wal_base: Arc<AtomicU64>,
}

/// Opens the one connection that writes.
pub(crate) fn writer(path: &Path, hooks: &Hooks) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;",
    )?;
    // What a closed connection leaves in the WAL is taken up at the next open; shutdown checkpoints by itself.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(WRITER_STATEMENTS);
    dialect::sqlite::register(&connection)?;
    let guarded = hooks.guarded.clone();
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        if guarded.load(Ordering::Relaxed) { authorize(&context) } else { Authorization::Allow }
    }))?;
    let updates = hooks.updates.clone();
    connection.update_hook(Some(move |action: Action, database: &str, table: &str, rowid: i64| {
        updates.note(action, database, table, rowid);
    }))?;
    let running = hooks.running.clone();
    connection.progress_handler(
        STEPS_BETWEEN_LOOKS,
        Some(move || running.lock().as_ref().is_some_and(Cancel::is_cancelled)),
    )?;
    let (wal_pages, wal_base) = (hooks.wal_pages.clone(), hooks.wal_base.clone());
    connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
        let pages = u64::try_from(pages).unwrap_or(0);
        if wal_pages.swap(pages, Ordering::Relaxed) > pages {
            wal_base.store(0, Ordering::Relaxed);
        }
        Ok(())
    }))?;
    Ok(connection)
}

/// A write may read and change rows. What the log couldn't carry is denied when it is prepared.
fn authorize(context: &AuthContext<'_>) -> Authorization {
    let own = |table: &str| table.starts_with(OWN_PREFIX) || table.starts_with("sqlite_");
    let allow = match context.action {
        AuthAction::Select
        | AuthAction::Read { .. }
        | AuthAction::Function { .. }
        | AuthAction::Recursive => true,
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. } => context.database_name == Some("temp") || !own(table_name),
        AuthAction::Savepoint { operation, savepoint_name } => {
            !matches!(operation, TransactionOperation::Unknown) && !savepoint_name.starts_with(OWN_PREFIX)
        }
        // The session extension asks for a table's columns when it first sees it change; who explains a broken
        // constraint asks for a table's indexes.
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let asks = ["table_xinfo", "index_list", "index_info"];
            pragma_value.is_none() || asks.iter().any(|name| pragma_name.eq_ignore_ascii_case(name))
        }
        _ => false,
    };
    if allow { Authorization::Allow } else { Authorization::Deny }
}

/// Opens a connection from which a database is copied.
pub(crate) fn copier(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -1024;")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    dialect::sqlite::register(&connection)?;
    Ok(connection)
}

/// Opens a connection that only reads, and whose statements end when its reading must.
pub(crate) fn reader(path: &Path, reading: &Arc<Reading>) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection
        .execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY;")?;
    // The last to close a database removes the WAL, by its name: by then it may be another database's.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(READER_STATEMENTS);
    dialect::sqlite::register(&connection)?;
    let reading = reading.clone();
    connection.progress_handler(reading::STEPS_BETWEEN_LOOKS, Some(move || reading.must_end()))?;
    Ok(connection)
}
