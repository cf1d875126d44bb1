//! A cluster of `shoal node` processes of a test's own: fresh data directories, ports that the system picks and that
//! stay, and everything that can befall a process. All are killed at the end.

use crate::cluster::{binary, config_for, connect};
use crate::http;
use crate::wait::{LOOK, PATIENCE, until};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use tempfile::TempDir;

/// A cluster of processes. Nodes are numbered from 0, in the order that they were started in; that isn't their id.
pub struct Nodes {
    nodes: Vec<Process>,
    folder: TempDir,
    /// What every node is started with beside its addresses and directory.
    arguments: Vec<String>,
}

struct Process {
    child: Child,
    /// It was ended, and is to be started before it's used.
    ended: bool,
    directory: PathBuf,
    /// `host:port` for Postgres clients.
    address: String,
    /// `host:port` for other nodes and the admin.
    admin: String,
    /// `host:port` for Prometheus, if the arguments have it listen.
    metrics: Option<String>,
    arguments: Vec<String>,
}

impl Nodes {
    /// Starts so many nodes and has them become a cluster. `arguments` are `shoal init`'s.
    pub fn start(count: usize, arguments: &[&str]) -> Nodes {
        Self::start_with(count, &[], arguments)
    }

    /// The same, with further arguments for every node.
    pub fn start_with(count: usize, node_arguments: &[&str], arguments: &[&str]) -> Nodes {
        let nodes = Self::launch(count, node_arguments);
        if count > 1 {
            nodes.wait_for_acquaintance();
        }
        nodes.init(arguments);
        nodes
    }

    /// Starts nodes that aren't part of a cluster yet.
    pub fn launch(count: usize, node_arguments: &[&str]) -> Nodes {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let arguments = owned(node_arguments);
        let mut nodes = Nodes { nodes: Vec::new(), folder, arguments };
        for _ in 0..count {
            nodes.add(&[]);
        }
        nodes
    }

    /// Has the nodes become a cluster.
    pub fn init(&self, arguments: &[&str]) {
        let mut init = vec!["init"];
        init.extend(arguments);
        let output = self.shoal(0, &init);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until every node that isn't part of a cluster yet knows of all others.
    pub fn wait_for_acquaintance(&self) {
        // Who asks for more replicas than any test has nodes is told how many there are, and nothing else happens.
        let found = format!("there are {}", self.count());
        let met = until(PATIENCE, LOOK, || {
            let output = self.shoal(0, &["init", "--replicas", "16"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains(&found) { Ok(()) } else { Err(said) }
        });
        if let Err(said) = met {
            panic!("the nodes haven't met after {PATIENCE:?}: {said}");
        }
    }

    /// Starts one more node, which is told of the first, and answers with its number.
    pub fn add(&mut self, arguments: &[&str]) -> usize {
        let number = self.nodes.len();
        let directory = self.folder.path().join(format!("node-{number}"));
        let mut all = self.arguments.clone();
        all.extend(owned(arguments));
        if let Some(first) = self.nodes.first() {
            all.extend(["--join".to_owned(), first.admin.clone()]);
        }
        let any = "127.0.0.1:0".to_owned();
        let (child, Addresses { clients: address, admin, metrics }) = spawn(&directory, &any, &any, &all);
        self.nodes.push(Process { child, ended: false, directory, address, admin, metrics, arguments: all });
        number
    }

    /// How many nodes there are, those that have ended among them.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Kills a node as `kill -9` does, and waits until it's gone.
    pub fn kill(&mut self, node: usize) {
        let process = &mut self.nodes[node];
        process.child.kill().expect("the process is ours");
        process.child.wait().expect("the process is ours");
        process.ended = true;
    }

    /// Starts a node that has ended, on its directory and ports.
    pub fn restart(&mut self, node: usize) {
        let (address, admin) = (self.nodes[node].address.clone(), self.nodes[node].admin.clone());
        self.restart_at(node, &address, &admin);
    }

    /// Starts a node that has ended, on its directory and other ports.
    pub fn restart_elsewhere(&mut self, node: usize) {
        self.restart_at(node, "127.0.0.1:0", "127.0.0.1:0");
    }

    fn restart_at(&mut self, node: usize, address: &str, admin: &str) {
        let process = &mut self.nodes[node];
        assert!(process.ended, "node {node} runs");
        let (child, addresses) = spawn(&process.directory, address, admin, &process.arguments);
        process.child = child;
        (process.address, process.admin) = (addresses.clients, addresses.admin);
        process.metrics = addresses.metrics;
        process.ended = false;
    }

    /// Deletes the directory of a node that has ended. It is told of all others when it is started again, as who knows
    /// nobody can't come back.
    pub fn wipe(&mut self, node: usize) {
        assert!(self.nodes[node].ended, "node {node} runs");
        std::fs::remove_dir_all(&self.nodes[node].directory).expect("the directory is the test's");
        let others =
            (0..self.count()).filter(|other| *other != node).map(|other| self.admin(other).to_owned());
        let others: Vec<String> = others.collect();
        let arguments = &mut self.nodes[node].arguments;
        if let Some(at) = arguments.iter().position(|argument| argument == "--join") {
            arguments.drain(at..at + 2);
        }
        arguments.extend(["--join".to_owned(), others.join(",")]);
    }

    /// Stops a node where it is, as SIGSTOP does.
    pub fn pause(&self, node: usize) {
        self.signal(node, "STOP");
    }

    /// Lets a paused node go on.
    pub fn resume(&self, node: usize) {
        self.signal(node, "CONT");
    }

    /// Has a node shut down, without waiting for it.
    pub fn terminate(&self, node: usize) {
        self.signal(node, "TERM");
    }

    /// Waits for a node to end by itself.
    pub fn wait(&mut self, node: usize) -> ExitStatus {
        let process = &mut self.nodes[node];
        process.ended = true;
        process.child.wait().expect("the process is ours")
    }

    /// Shuts a node down well.
    pub fn stop(&mut self, node: usize) -> ExitStatus {
        self.terminate(node);
        self.wait(node)
    }

    fn signal(&self, node: usize, signal: &str) {
        let pid = self.pid(node).to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().expect("kill runs");
        assert!(sent.success(), "SIG{signal} for node {node}");
    }

    /// The process id of a node.
    pub fn pid(&self, node: usize) -> u32 {
        self.nodes[node].child.id()
    }

    /// Whether a node's process runs.
    pub fn is_running(&mut self, node: usize) -> bool {
        self.nodes[node].child.try_wait().expect("the process is ours").is_none()
    }

    /// A node's data directory.
    pub fn directory(&self, node: usize) -> &Path {
        &self.nodes[node].directory
    }

    /// Where Postgres clients reach a node.
    pub fn address(&self, node: usize) -> &str {
        &self.nodes[node].address
    }

    /// Where other nodes and the admin reach a node.
    pub fn admin(&self, node: usize) -> &str {
        &self.nodes[node].admin
    }

    /// Where Prometheus reaches a node that was started with `--metrics-listen`.
    pub fn metrics_address(&self, node: usize) -> &str {
        self.nodes[node].metrics.as_deref().expect("the test gave it --metrics-listen")
    }

    /// What such a node tells Prometheus.
    pub fn metrics(&self, node: usize) -> String {
        http::get(self.metrics_address(node), "/metrics").expect("the node answers").body
    }

    /// What a node wrote to stderr, in all of its runs.
    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(log_file(&self.nodes[node].directory)).unwrap_or_default()
    }

    /// A tokio-postgres configuration that reaches a node.
    pub fn config(&self, node: usize) -> tokio_postgres::Config {
        config_for(self.address(node))
    }

    /// A client of a node. Its connection runs in the background of the caller's runtime.
    pub async fn connect(&self, node: usize) -> tokio_postgres::Client {
        connect(&self.config(node)).await.expect("the node accepts connections")
    }

    /// Runs a `shoal` command against a node.
    pub fn shoal(&self, node: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--host", self.admin(node)]).output().expect("the shoal binary starts")
    }

    /// Starts a `shoal` command against a node, without waiting for it.
    pub fn begin_shoal(&self, node: usize, arguments: &[&str]) -> Child {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--host", self.admin(node)]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the shoal binary starts")
    }

    /// What `shoal status --json` says at a node; `None` if it fails.
    pub fn status(&self, node: usize) -> Option<serde_json::Value> {
        let output = self.shoal(node, &["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("status prints JSON"))
    }

    /// The id that the cluster gave a node; `None` until its directory says so.
    pub fn id(&self, node: usize) -> Option<u64> {
        let text = std::fs::read(self.nodes[node].directory.join("node.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        record["member"]["node"].as_u64()
    }

    /// The number of the node with this id.
    pub fn numbered(&self, id: u64) -> Option<usize> {
        (0..self.count()).find(|node| self.id(*node) == Some(id))
    }

    /// The number of the node that leads a shard, by the shard's name (or `coordinator`), asked at node `at`.
    pub fn leader(&self, at: usize, shard: &str) -> Option<usize> {
        let status = self.status(at)?;
        let id = match shard {
            "coordinator" => status["coordinator"]["leader"].as_u64(),
            name => status["shards"].as_array()?.iter().find(|s| s["shard"] == name)?["leader"].as_u64(),
        };
        self.numbered(id?)
    }

    /// Waits until what `shoal status` says at a node is as it should be.
    pub fn wait_for(&self, node: usize, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
        let came = until(PATIENCE, LOOK, || {
            let status = self.status(node);
            if status.as_ref().is_some_and(&is) { Ok(()) } else { Err(status) }
        });
        if let Err(last) = came {
            panic!("still not after {PATIENCE:?}: {what}\n{last:#?}");
        }
    }
}

/// All groups of a status: the shards, and the coordinator's own.
pub fn groups(status: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let shards = status["shards"].as_array().map_or(&[][..], Vec::as_slice);
    shards.iter().chain([&status["coordinator"]])
}

/// The replicas of a group of a status.
pub fn replicas(group: &serde_json::Value) -> &[serde_json::Value] {
    group["replicas"].as_array().map_or(&[][..], Vec::as_slice)
}

/// Whether a group has so many replicas, and all vote and have what their leader has. Nobody may write.
pub fn is_level(group: &serde_json::Value, count: usize) -> bool {
    let replicas = replicas(group);
    let level = |replica: &serde_json::Value| {
        matches!(replica["role"].as_str(), Some("leader" | "follower"))
            && replica["log_lag"] == 0
            && replica["applied"] == replicas[0]["applied"]
    };
    replicas.len() == count && replicas.iter().all(level)
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in &mut self.nodes {
            // It may have ended already.
            drop(process.child.kill());
            drop(process.child.wait());
        }
        if std::thread::panicking() {
            for node in 0..self.count() {
                eprintln!("--- node {node} said:\n{}", self.log(node));
            }
        }
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Beside the directory, which the test may delete.
fn log_file(directory: &Path) -> PathBuf {
    directory.with_extension("log")
}

/// Where a process listens.
struct Addresses {
    clients: String,
    admin: String,
    metrics: Option<String>,
}

fn spawn(directory: &Path, address: &str, admin: &str, arguments: &[String]) -> (Child, Addresses) {
    let has_metrics = arguments.iter().any(|argument| argument == "--metrics-listen");
    let log = File::options().create(true).append(true).open(log_file(directory)).expect("a log file");
    let mut child = Command::new(binary())
        .arg("node")
        .arg("--data-dir")
        .arg(directory)
        .args(["--listen", admin, "--pg-listen", address])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(log)
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
    let (mut clients, mut admin, mut metrics) = (None, None, None);
    while clients.is_none() || admin.is_none() || (has_metrics && metrics.is_none()) {
        let Ok(line) = receive.recv_timeout(PATIENCE) else {
            let said = std::fs::read_to_string(log_file(directory)).unwrap_or_default();
            panic!("shoal node doesn't print its addresses; it said:\n{said}");
        };
        if let Some(rest) = line.strip_prefix("admin: ") {
            admin = Some(rest.trim().to_owned());
        } else if let Some(rest) = line.strip_prefix("metrics: http://") {
            metrics = Some(rest.trim_end_matches("/metrics").to_owned());
        } else if let Some((host, port)) = psql(&line) {
            clients = Some(format!("{host}:{port}"));
        }
    }
    (child, Addresses { clients: clients.expect("found"), admin: admin.expect("found"), metrics })
}

/// Host and port of the line that connects psql.
fn psql(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |flag| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1).copied());
    Some((after("-h")?, after("-p")?))
}
