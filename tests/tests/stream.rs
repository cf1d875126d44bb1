//! `shoal stream`: what is committed to a table comes out as lines, whatever befalls nodes and the command itself.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use tests::nodes::Nodes;
use tests::wait::PATIENCE;

/// A `shoal stream` that runs, and what it has printed.
struct Stream {
    child: Child,
    lines: Receiver<String>,
    /// Of each shard's log the last entry that was told whole.
    places: BTreeMap<String, u64>,
}

impl Stream {
    fn begin(nodes: &Nodes, node: usize, from: Option<&str>) -> Stream {
        let arguments = Self::arguments(from);
        let mut child = nodes.begin_shoal(node, &arguments);
        let stdout = child.stdout.take().expect("piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(send.send(line));
            }
        });
        let mut stream = Stream { child, lines, places: BTreeMap::new() };
        assert_eq!(stream.next()["op"], "shards", "it begins with where it begins");
        stream
    }

    fn arguments(from: Option<&str>) -> Vec<&str> {
        let from = from.into_iter().flat_map(|from| ["--from", from]);
        ["stream", "--table", "account"].into_iter().chain(from).collect()
    }

    fn next(&mut self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line comes");
        let line: Value = serde_json::from_str(&line).expect("each line is JSON");
        if line["last"] == true {
            let is_all = line["op"] == "shards";
            let before = if is_all { std::mem::take(&mut self.places) } else { self.places.clone() };
            for position in line["gtid"].as_str().expect("each has a gtid").split(',') {
                let (source, index) = position.rsplit_once(':').expect("a position");
                let index: u64 = index.parse().expect("an index");
                let before = before.get(source).copied().unwrap_or(0);
                assert!(before < index || is_all && before == index, "each log in its order: {line}");
                self.places.insert(source.to_owned(), index);
            }
        }
        line
    }

    /// The next line that isn't about where it is.
    fn change(&mut self) -> Value {
        loop {
            let line = self.next();
            if line["op"] != "shards" {
                return line;
            }
        }
    }

    /// The next so many changes: `+7=a`, `~7=b`, `-7`, sorted, for shards have no order between them.
    fn changes(&mut self, count: usize) -> Vec<String> {
        let mut told: Vec<String> = (0..count)
            .map(|_| {
                let line = self.change();
                let (id, note) = (&line["key"]["id"], line["new"]["note"].as_str());
                match line["op"].as_str() {
                    Some("insert") => format!("+{id}={}", note.unwrap_or("null")),
                    Some("update") => format!("~{id}={}", note.unwrap_or("null")),
                    Some("delete") => format!("-{id}"),
                    _ => line.to_string(),
                }
            })
            .collect();
        told.sort();
        told
    }

    /// Where it is.
    fn token(&self) -> String {
        self.places.iter().map(|(source, index)| format!("{source}:{index}")).collect::<Vec<_>>().join(",")
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().expect("the process is ours")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn numbered(sign: &str, ids: impl Iterator<Item = u32>, note: &str) -> Vec<String> {
    let mut told: Vec<String> = ids.map(|id| format!("{sign}{id}{note}")).collect();
    told.sort();
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_told_across_deaths_and_changes_of_the_schema() {
    let mut nodes = Nodes::start(3, &["--shards", "2", "--replicas", "3"]);
    let client = nodes.connect(0).await;
    client.batch_execute("CREATE TABLE account (id int PRIMARY KEY, note text)").await.unwrap();
    client.batch_execute("CREATE TABLE other (id int PRIMARY KEY)").await.unwrap();
    client.batch_execute("INSERT INTO account VALUES (1000, 'before')").await.unwrap();

    let mut stream = Stream::begin(&nodes, 0, None);
    client
        .batch_execute("INSERT INTO account SELECT id, 'a' FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8)) AS v (id)")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO other VALUES (1), (2), (3)").await.unwrap();
    assert_eq!(stream.changes(8), numbered("+", 1..=8, "=a"));
    client.batch_execute("UPDATE account SET note = 'b' WHERE id <= 8").await.unwrap();
    assert_eq!(stream.changes(8), numbered("~", 1..=8, "=b"));
    let token = stream.token();
    drop(stream);

    // What is done while nobody listens is told to who goes on.
    client.batch_execute("DELETE FROM account WHERE id <= 4").await.unwrap();
    let mut stream = Stream::begin(&nodes, 1, Some(&token));
    assert_eq!(stream.changes(4), numbered("-", 1..=4, ""));

    // Whoever of the two it reads from.
    for node in [2, 1] {
        nodes.kill(node);
        client.batch_execute("UPDATE account SET note = 'c' WHERE id <= 8").await.unwrap();
        assert_eq!(stream.changes(4), numbered("~", 5..=8, "=c"), "node {node} is dead");
        client.batch_execute("UPDATE account SET note = 'b' WHERE id <= 8").await.unwrap();
        assert_eq!(stream.changes(4), numbered("~", 5..=8, "=b"));
        nodes.restart(node);
        nodes.wait_for(0, "all replicas are level", |status| {
            tests::nodes::groups(status).all(|group| tests::nodes::is_level(group, 3))
        });
    }

    client.batch_execute("ALTER TABLE account ADD COLUMN worth numeric").await.unwrap();
    client.batch_execute("INSERT INTO account VALUES (9, 'd', 1.50)").await.unwrap();
    let mut told: Vec<Value> = (0..3).map(|_| stream.change()).collect();
    told.sort_by_key(|line| line["op"].to_string());
    assert_eq!(told[0]["new"].to_string(), r#"{"id":9,"note":"d","worth":"1.50"}"#);
    assert_eq!(told[1]["columns"][2]["name"], "worth", "{told:?}");
    assert_eq!(told[2]["op"], "schema");
    client.batch_execute("TRUNCATE account").await.unwrap();
    assert!((0..2).all(|_| stream.change()["op"] == "truncate"));
    client.batch_execute("DROP TABLE account").await.unwrap();
    assert!((0..2).all(|_| stream.change()["columns"].as_array().is_some_and(Vec::is_empty)));
    assert!(stream.end().success(), "nothing more can come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_no_place_of_each_shard_is_refused() {
    let nodes = Nodes::start(1, &["--shards", "2", "--replicas", "1"]);
    let client = nodes.connect(0).await;
    client.batch_execute("CREATE TABLE account (id int PRIMARY KEY)").await.unwrap();
    let refused = |arguments: &[&str], code: i32, what: &str| {
        let output = nodes.shoal(0, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(what) && output.status.code() == Some(code), "{said} {}", output.status);
    };
    refused(&["stream", "--table", "nothing"], 1, "table \"nothing\" does not exist");
    refused(&["stream", "--table", "account", "--from", "main/-80.1:3"], 1, "says nothing of main/80-");
    refused(&["stream", "--table", "account", "--from", "main/-80.9:3,main/80-.1:3"], 1, "there is no log");
    refused(&["stream", "--table", "account", "--from", "nonsense"], 2, "--from");
    refused(&["stream"], 2, "--table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_gone_is_no_matter_to_who_has_heard_all_of_it() {
    let nodes = Nodes::start(1, &["--shards", "1", "--replicas", "1"]);
    let client = nodes.connect(0).await;
    client.batch_execute("CREATE TABLE account (id int PRIMARY KEY, note text)").await.unwrap();
    client.batch_execute("CREATE TABLE other (id int PRIMARY KEY)").await.unwrap();
    let mut stream = Stream::begin(&nodes, 0, None);
    client.batch_execute("INSERT INTO account VALUES (1, 'a'), (2, 'a'), (3, 'a')").await.unwrap();
    assert_eq!(stream.changes(3), numbered("+", 1..=3, "=a"));
    let early = stream.token();
    // What is no line of the table takes it further all the same.
    client.batch_execute("INSERT INTO other VALUES (1)").await.unwrap();
    while stream.token() == early {
        assert_eq!(stream.next()["op"], "shards");
    }
    let reshard = |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = nodes.shoal(0, &[&["reshard"], &arguments[..], &["--yes", "--keep", "0"]].concat());
        assert!(output.status.success(), "{output:?}");
    };
    reshard("split main/- --into 2");
    client.batch_execute("UPDATE account SET note = 'b'").await.unwrap();
    assert_eq!(stream.changes(3), numbered("~", 1..=3, "=b"));
    let halves = stream.token();
    assert!(halves.contains("main/-80.1:") && halves.contains("main/80-.1:"), "{halves}");
    assert!(!halves.contains("main/-.1:"), "{halves}");
    reshard("merge main/-80 main/80-");
    client.batch_execute("DELETE FROM account").await.unwrap();
    assert_eq!(stream.changes(3), numbered("-", 1..=3, ""));
    let late = stream.token();
    drop(stream);

    // What may have come after is gone with the shard.
    for (from, shard) in [(early, "main/-"), (halves, "main/-80")] {
        let output = nodes.shoal(0, &Stream::arguments(Some(&from)));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0), "{said}");
        assert!(
            said.contains(&format!(" of {shard} is gone with the shard (hint: copy the table")),
            "{said}"
        );
    }
    client.batch_execute("INSERT INTO account VALUES (4, 'd')").await.unwrap();
    let mut stream = Stream::begin(&nodes, 0, Some(&late));
    assert_eq!(stream.changes(1), ["+4=d"]);
}
