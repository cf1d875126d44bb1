//! A PostgreSQL server with a folder of its own, reached over a socket in it: what Shoal is compared with.

use crate::{cluster, tools};
use std::process::{Command, Stdio};

/// What went wrong, for a program's end.
pub type Failure = Box<dyn std::error::Error>;

/// A running server. It stops when it is dropped.
pub struct Server {
    folder: tempfile::TempDir,
    user: Option<&'static str>,
}

impl Server {
    /// Starts one: collation C.UTF-8, time zone UTC.
    pub fn start() -> Result<Self, Failure> {
        // The server refuses to run as root; Debian's package makes this user.
        let root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
        let user = root.then_some("postgres");
        let folder = tempfile::tempdir()?;
        let server = Server { folder, user };
        if let Some(user) = user {
            server.check(Command::new("chown").arg(user).arg(server.folder.path()))?;
        }
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
        Ok(match self.user {
            Some(user) => {
                let mut command = Command::new("runuser");
                command.args(["-u", user, "--"]).arg(path);
                command
            }
            None => Command::new(path),
        })
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
