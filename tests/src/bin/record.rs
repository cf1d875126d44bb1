//! Records what PostgreSQL 15 answers to the golden scripts.
//!
//! `cargo run -p tests --bin record [NAME..]` starts a PostgreSQL of its own (collation C.UTF-8, time zone UTC), runs
//! each script of `tests/sql` in a database of its own, and writes the `.expected` file beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};
use tests::script;
use tests::tools;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let names: Vec<String> = env::args().skip(1).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let server = Server::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut scripts: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|e| Ok(e?.path())).collect::<Result<_, Failure>>()?;
    scripts.sort();
    for path in scripts.iter().filter(|path| path.extension().is_some_and(|e| e == "sql")) {
        let name = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
        if !names.is_empty() && !names.contains(&name) {
            continue;
        }
        let recorded = runtime.block_on(server.record(&name, &fs::read_to_string(path)?))?;
        fs::write(path.with_extension("expected"), recorded)?;
        println!("{name}");
    }
    Ok(())
}

/// A PostgreSQL server with a folder of its own, reached over a socket in it.
struct Server {
    folder: tempfile::TempDir,
    user: Option<&'static str>,
}

impl Server {
    fn start() -> Result<Self, Failure> {
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

    async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, Failure> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.folder.path()).user("postgres").dbname(database);
        Ok(tests::cluster::connect(&config).await?)
    }

    async fn record(&self, name: &str, text: &str) -> Result<String, Failure> {
        self.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await?;
        let client = self.connect(name).await?;
        let mut recorded = String::new();
        for statement in script::parse(text) {
            let answer = script::answer(&client, &script::for_postgres(&statement)).await;
            recorded.push_str(&script::render(&statement.sql, &answer));
        }
        Ok(recorded)
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
