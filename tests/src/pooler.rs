//! A PgBouncer in front of routers: transaction pooling, few connections for many clients, as applications have it.
//!
//! It listens on a socket in a folder of its own alone, so it needs no port. It ends when it is dropped.

use crate::tools::Unprivileged;
use crate::wait;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// The port in the socket's name.
pub const PORT: u16 = 6432;

/// A running PgBouncer.
pub struct Pooler {
    child: Child,
    folder: TempDir,
}

impl Pooler {
    /// Starts one. Each database is a name of the pooler's own and the `host:port` of the router behind it; each has so
    /// many connections there. The error says what is wrong with it.
    pub fn start(
        program: &Path,
        databases: &[(&str, &str)],
        connections: usize,
    ) -> Result<Pooler, Box<dyn std::error::Error>> {
        let (folder, user) = (tempfile::tempdir()?, Unprivileged::find()?);
        user.own(folder.path())?;
        let line = |(name, address): &(&str, &str)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
            format!("{name} = host={host} port={port} dbname=shoal user=shoal pool_size={connections}\n")
        };
        let databases: String = databases.iter().map(line).collect();
        let place = folder.path().display();
        let configuration = folder.path().join("pgbouncer.ini");
        fs::write(
            &configuration,
            format!(
                "[databases]\n{databases}[pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\nunix_socket_dir = {place}\n\
                 auth_type = any\npool_mode = transaction\nmax_client_conn = 100\nlog_connections = 0\n\
                 log_disconnections = 0\nignore_startup_parameters = extra_float_digits\n"
            ),
        )?;
        user.own(&configuration)?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = user.command(program);
        command.arg(&configuration).current_dir("/").stdout(Stdio::null()).stderr(log);
        let mut pooler = Pooler { child: command.spawn()?, folder };
        let socket = pooler.socket();
        let up = wait::until(wait::PATIENCE, wait::LOOK, || match pooler.child.try_wait() {
            Ok(None) => UnixStream::connect(&socket).map(Some).map_err(drop),
            _ => Ok(None),
        });
        match up {
            Ok(Some(_)) => Ok(pooler),
            _ => Err(format!("PgBouncer doesn't start; it said:\n{}", pooler.log()).into()),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(format!(".s.PGSQL.{PORT}"))
    }

    /// Where its socket is: what libpq takes for a host.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How one of its databases is reached.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.folder.path()).port(PORT).user("shoal").dbname(database);
        config
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // runuser hands a SIGTERM on to PgBouncer, which a SIGKILL would leave behind.
        let pid = self.child.id().to_string();
        drop(std::process::Command::new("kill").args(["-TERM", &pid]).status());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- PgBouncer said:\n{}", self.log());
        }
    }
}
