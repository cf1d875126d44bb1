//! Finds the programs that a test drives Shoal with: psql, pgbench, sysbench, a PostgreSQL server.
//!
//! A machine with only Rust and a C compiler runs the tests, too: a test whose tool is missing says so on stderr and
//! ends. With `SHOAL_TESTS_SKIP_NOTHING` set (as CI does) a missing tool is a failure.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The path of a program, looked for in `PATH` and where Debian keeps PostgreSQL 15's.
pub fn find(program: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths)
        .chain([PathBuf::from("/usr/lib/postgresql/15/bin")])
        .map(|folder| folder.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The path of a program, or `None` after saying that the test is skipped.
pub fn find_or_skip(program: &str, test: &str) -> Option<PathBuf> {
    let found = find(program);
    if found.is_none() {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// Says that a test is skipped, where the harness can't swallow it; panics if nothing may be skipped.
pub fn skip(test: &str, why: &str) {
    assert!(env::var_os("SHOAL_TESTS_SKIP_NOTHING").is_none(), "{test}: {why}");
    // The print macros write into the harness's capture, which a passing test never shows.
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}
