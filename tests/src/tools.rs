//! Finds the programs that a test drives Shoal with: psql, pgbench, sysbench, Python, PgBouncer, a PostgreSQL server.
//!
//! A machine with only Rust and a C compiler runs the tests, too: a test whose tool is missing says so on stderr and
//! ends. With `SHOAL_TESTS_SKIP_NOTHING` set (as CI does) a missing tool is a failure.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The path of a program, looked for in `PATH` and where Debian keeps PostgreSQL 15's and servers.
pub fn find(program: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths)
        .chain(["/usr/lib/postgresql/15/bin", "/usr/sbin"].map(PathBuf::from))
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
    drop(writeln!(io::stderr(), "SKIPPED {test}: {why}"));
}

/// Whom servers run as that refuse to be root: the user that Debian's PostgreSQL makes, if this is root.
#[derive(Clone, Copy, Debug)]
pub struct Unprivileged(Option<&'static str>);

impl Unprivileged {
    /// Looks who this is.
    pub fn find() -> io::Result<Self> {
        let is_root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
        Ok(Self(is_root.then_some("postgres")))
    }

    /// A command of that user's.
    pub fn command(self, program: &Path) -> Command {
        match self.0 {
            Some(user) => {
                let mut command = Command::new("runuser");
                command.args(["-u", user, "--"]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Makes a file or folder that user's.
    pub fn own(self, path: &Path) -> io::Result<()> {
        let Some(user) = self.0 else { return Ok(()) };
        let status = Command::new("chown").arg(user).arg(path).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("chown {user} failed"))) }
    }
}

/// A Python that has psycopg2, or `None` after saying that the test is skipped.
pub fn find_psycopg2_or_skip(test: &str) -> Option<PathBuf> {
    // Debian's python3 has its packages apart from others that may come first in PATH.
    let pythons = [find("python3"), Some(PathBuf::from("/usr/bin/python3")).filter(|path| is_program(path))];
    let mut pythons = pythons.into_iter().flatten().peekable();
    if pythons.peek().is_none() {
        skip(test, "python3 is not installed");
        return None;
    }
    let has = |python: &PathBuf| {
        let imported = Command::new(python).args(["-c", "import psycopg2"]).output();
        imported.is_ok_and(|output| output.status.success())
    };
    let found = pythons.find(has);
    if found.is_none() {
        skip(test, "psycopg2 is not installed");
    }
    found
}
