//! Whose fault a SQLite error is: this machine's, or that of what was asked.
//!
//! A connection's last error code goes in; out comes whether other replicas would have met it, too. SQLSTATEs can't say
//! it: a function that finds a malformed value, or a caller's closure, may raise those of a broken disk. It must never
//! know what is done about a fault.

#![allow(unsafe_code)]

use rusqlite::{Connection, ErrorCode, ffi};
use std::io;

/// Whether an error comes from this machine and not from what was asked: other replicas need not have it.
pub(crate) fn is_local(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code().is_some_and(is_local_code)
}

/// Whether the same request, or the same replica, may do better once the machine does: space returns, a disk is mounted
/// again. Damage stays.
pub(crate) fn can_pass(error: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    !matches!(error.sqlite_error_code(), None | Some(DatabaseCorrupt | NotADatabase)) && is_local(error)
}

/// Whether a sync failed.
pub(crate) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// Whether a request met this machine's fault. That memory ran out isn't one: a request can ask for more than there is.
pub(crate) fn is_machines(error: &rusqlite::Error) -> bool {
    is_local(error) && error.sqlite_error_code() != Some(ErrorCode::OutOfMemory)
}

fn is_local_code(code: ErrorCode) -> bool {
    use ErrorCode::*;
    matches!(
        code,
        SystemIoFailure
            | DiskFull
            | DatabaseCorrupt
            | NotADatabase
            | OutOfMemory
            | CannotOpen
            | ReadOnly
            | PermissionDenied
            | DatabaseBusy
            | DatabaseLocked
            | FileLockingProtocolFailed
            | NoLargeFileSupport
    )
}

/// The fault that the connection's last call met, if it met one of this machine's. To be asked right after what failed:
/// the next call forgets it.
pub(crate) fn met(connection: &Connection) -> Option<rusqlite::Error> {
    // SAFETY: the handle lives as long as the connection, which is borrowed.
    let code = unsafe { ffi::sqlite3_extended_errcode(connection.handle()) };
    let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
    is_machines(&error).then(|| explained(connection, error))
}

/// The fault of this machine that a read met, if it met one that others' replicas can do without. To be asked as
/// [`met`].
pub(crate) fn met_by_reader(connection: &Connection) -> Option<rusqlite::Error> {
    met(connection).filter(hits_reader)
}

/// Whether a read can't be done here, now or ever. That there were too many connections or files passes by itself.
pub(crate) fn hits_reader(error: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    let code = error.sqlite_error();
    code.is_some_and(|code| {
        matches!(code.code, SystemIoFailure | DatabaseCorrupt | NotADatabase)
            && code.extended_code != ffi::SQLITE_IOERR_NOMEM
    })
}

/// The error with the operating system's reason, where SQLite kept one: "disk I/O error" alone says little.
pub(crate) fn explained(connection: &Connection, error: rusqlite::Error) -> rusqlite::Error {
    let rusqlite::Error::SqliteFailure(code, message) = error else { return error };
    let message = message.unwrap_or_else(|| ffi::code_to_str(code.extended_code).to_owned());
    let message = match code.code {
        ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => {
            // SAFETY: as above.
            match unsafe { ffi::sqlite3_system_errno(connection.handle()) } {
                0 => message,
                number => format!("{message}: {}", io::Error::from_raw_os_error(number)),
            }
        }
        _ => message,
    };
    rusqlite::Error::SqliteFailure(code, Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::functions::FunctionFlags;

    fn open() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let connection = Connection::open(directory.path().join("a.sqlite")).unwrap();
        connection.execute_batch("CREATE TABLE t (c); INSERT INTO t VALUES (1)").unwrap();
        (directory, connection)
    }

    #[test]
    fn a_full_database_is_the_machines_fault_and_can_pass() {
        let (_directory, connection) = open();
        connection.execute_batch("PRAGMA max_page_count = 3").unwrap();
        let run = || connection.prepare_cached("INSERT INTO t VALUES (zeroblob(20000))")?.execute([]);
        let error = run().unwrap_err();
        assert!(is_local(&error) && can_pass(&error), "{error}");
        // The statement was reset and went back to the cache: the code is still there.
        assert_eq!(met(&connection).unwrap().sqlite_error_code(), Some(ErrorCode::DiskFull));
        connection.execute_batch("SELECT 1").unwrap();
        assert!(met(&connection).is_none());
    }

    #[test]
    fn what_a_function_raises_is_the_requests_fault() {
        let (_directory, connection) = open();
        connection
            .create_scalar_function("broken", 0, FunctionFlags::SQLITE_UTF8, |_| -> rusqlite::Result<i64> {
                Err(rusqlite::Error::UserFunctionError("a database file is damaged".into()))
            })
            .unwrap();
        for sql in ["SELECT broken() FROM t", "INSERT INTO t SELECT broken()", "SELECT nonsense"] {
            let error = connection.prepare(sql).and_then(|mut s| s.query_row([], |_| Ok(()))).unwrap_err();
            assert!(!is_local(&error) && met(&connection).is_none(), "{error}");
        }
    }

    #[test]
    fn a_damaged_page_is_the_machines_fault_and_stays() {
        let (directory, connection) = open();
        drop(connection);
        let path = directory.path().join("a.sqlite");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..4200].fill(0xee);
        std::fs::write(&path, bytes).unwrap();
        let connection = Connection::open(&path).unwrap();
        let error = connection.query_row("SELECT c FROM t", [], |_| Ok(())).unwrap_err();
        assert!(is_local(&error) && !can_pass(&error), "{error}");
        assert!(met(&connection).unwrap().to_string().contains("malformed"));
    }

    #[test]
    fn an_open_failure_says_what_the_system_said() {
        let (_directory, connection) = open();
        let error = connection.execute_batch("ATTACH '/nowhere/a.sqlite' AS b").unwrap_err();
        let said = explained(&connection, error).to_string();
        assert!(said.contains("No such file or directory"), "{said}");
    }
}
