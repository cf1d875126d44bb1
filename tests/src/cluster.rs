//! A `shoal dev` process of a test's own: a fresh data directory, ports that the system picks, killed at the end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// How long a cluster may take until it says that it is ready, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(60);

/// A running cluster.
pub struct Cluster {
    child: Child,
    /// `host:port` for Postgres clients.
    pub address: String,
    /// `host:port` for `shoal status`.
    pub admin: String,
    data: DataDir,
    arguments: Vec<String>,
}

enum DataDir {
    Own(TempDir),
    Given(PathBuf),
}

impl DataDir {
    fn path(&self) -> &Path {
        match self {
            DataDir::Own(dir) => dir.path(),
            DataDir::Given(path) => path,
        }
    }
}

/// The `shoal` binary, built if it isn't.
pub fn binary() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let output = Command::new(cargo)
                .args(["build", "-p", "cli", "--bin", "shoal", "--message-format", "json"])
                .args(if cfg!(debug_assertions) { &[][..] } else { &["--release"][..] })
                .stderr(Stdio::inherit())
                .output()
                .expect("cargo runs");
            assert!(output.status.success(), "the shoal binary doesn't build");
            let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
            text.lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
                .next_back()
                .expect("cargo names the executable")
        })
        .clone()
}

impl Cluster {
    /// Starts `shoal dev` with these further arguments, on a data directory of its own.
    pub fn start(arguments: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::start_in(DataDir::Own(dir), arguments.iter().map(|a| a.to_string()).collect())
    }

    /// The same on a data directory that stays.
    pub fn start_at(data: &Path, arguments: &[&str]) -> Cluster {
        Self::start_in(DataDir::Given(data.to_owned()), arguments.iter().map(|a| a.to_string()).collect())
    }

    fn start_in(data: DataDir, arguments: Vec<String>) -> Cluster {
        let (child, address, admin) = launch(data.path(), &arguments);
        Cluster { child, address, admin, data, arguments }
    }

    /// Kills the process as `kill -9` does, and starts another on the same data.
    pub fn crash_and_restart(&mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
        (self.child, self.address, self.admin) = launch(self.data.path(), &self.arguments);
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("the process is ours")
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the process is ours").is_none()
    }

    /// A tokio-postgres configuration that reaches it.
    pub fn config(&self) -> tokio_postgres::Config {
        config_for(&self.address)
    }

    /// A connected client. Its connection runs in the background of the caller's runtime.
    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(&self.config()).await.expect("the cluster accepts connections")
    }
}

/// A tokio-postgres configuration for user and database `shoal` at `host:port`.
pub fn config_for(address: &str) -> tokio_postgres::Config {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let mut config = tokio_postgres::Config::new();
    config.host(host).port(port.parse().expect("a port")).user("shoal").dbname("shoal");
    config
}

/// Connects, and drives the connection in the background.
pub async fn connect(
    config: &tokio_postgres::Config,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    // The connection's error reaches the client's next call.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

fn launch(data: &Path, arguments: &[String]) -> (Child, String, String) {
    let mut child = Command::new(binary())
        .arg("dev")
        .arg("--data-dir")
        .arg(data)
        .args(["--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the shoal binary starts");
    let stdout = child.stdout.take().expect("piped");
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // After the last expected line nobody listens; the pipe must be drained all the same.
            drop(send.send(line));
        }
    });
    let (mut address, mut admin) = (None, None);
    while address.is_none() || admin.is_none() {
        let line = receive.recv_timeout(START).expect("shoal dev prints its addresses in time");
        if let Some(rest) = line.strip_prefix("admin: ") {
            admin = Some(rest.trim().to_owned());
        } else if let Some(host) = word_after(&line, "-h") {
            address = Some(format!("{host}:{}", word_after(&line, "-p").expect("psql's -p follows its -h")));
        }
    }
    (child, address.expect("found"), admin.expect("found"))
}

fn word_after<'a>(line: &'a str, flag: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == flag)?;
    words.next()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
