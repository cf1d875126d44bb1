//! A PostgreSQL server with a folder of its own, reached over a socket in it: what Shoal is compared with.

use crate::tools::Unprivileged;
use crate::{cluster, tools};
use std::process::{Command, Stdio};

/// What went wrong, for a program's end.
pub type Failure = Box<dyn std::error::Error>;

/// A running server. It stops when it is dropped.
pub struct Server {
    folder: tempfile::TempDir,
    user: Unprivileged,
}

impl Server {
    /// Starts one: collation C.UTF-8, time zone UTC.
    pub fn start() -> Result<Self, Failure> {
        let (folder, user) = (tempfile::tempdir()?, Unprivileged::find()?);
        user.own(folder.path())?;
        let server = Server { folder, user };
        let data = server.folder.path().join("data");
        let initdb =
            ["--locale=C.UTF-8", "--encoding=UTF8", "--username=postgres", "--auth=trust", "--pgdata"];
        server.check(server.command("initdb")?.args(initdb).arg(&data))?;
        let socket = server.folder.path().display();
        let options =
            format!("-c listen_addresses= -c unix_socket_directories={socket} -c timezone=UTC -c fsync=off");
        let log = server.folder.path().join("log");
        let mut start = server.command("pg_ctl")?;
        server.check(start.arg("-D").arg(&data).arg("-l").arg(log).args(["-w", "-o", &options, "start"]))?;
        Ok(server)
    }

    fn command(&self, program: &str) -> Result<Command, Failure> {
        let path =
            tools::find(program).ok_or_else(|| format!("{program} of PostgreSQL 15 is not installed"))?;
        Ok(self.user.command(&path))
    }

    fn check(&self, command: &mut Command) -> Result<(), Failure> {
        let status = command.current_dir("/").stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
    }

    /// How a database is reached.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.folder.path()).user("postgres").dbname(database);
        config
    }

    /// A connected client.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, Failure> {
        Ok(cluster::connect(&self.config(database)).await?)
    }

    /// Makes a database.
    pub async fn create(&self, database: &str) -> Result<(), Failure> {
        let sql = format!("CREATE DATABASE \"{database}\"");
        Ok(self.connect("postgres").await?.batch_execute(&sql).await?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        if let Ok(mut command) = self.command("pg_ctl") {
            // The folder goes away with the server, whether it stopped well or not.
            drop(self.check(command.arg("-D").arg(data).args(["-m", "immediate", "stop"])));
        }
    }
}
