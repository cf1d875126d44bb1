//! Who holds what, as an admin changes it: with clients that write meanwhile, and with wishes that can't be had. And a
//! replica that isn't what the others are.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::process::Output;
use tests::load::{self, Load};
use tests::nodes::{self, Nodes};
use tests::wait::PATIENCE;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

/// A group of a status, by its shard's name or `coordinator`.
fn group<'a>(status: &'a Value, name: &str) -> &'a Value {
    match name {
        "coordinator" => &status["coordinator"],
        name => nodes::groups(status).find(|group| group["shard"] == name).unwrap(),
    }
}

/// The ids of the nodes that hold a group, as the status lists them.
fn holders(group: &Value) -> Vec<u64> {
    let mut holders: Vec<_> =
        nodes::replicas(group).iter().map(|replica| replica["node"].as_u64().unwrap()).collect();
    holders.sort_unstable();
    holders
}

fn main_shard(nodes: &Nodes) -> String {
    let status = nodes.status(0).unwrap();
    let shard = nodes::groups(&status).find(|group| group["keyspace"] == "main").unwrap();
    shard["shard"].as_str().unwrap().to_owned()
}

/// Ends writers, of whom nobody may have had an error, lost a connection, or a row.
fn end(runtime: &Runtime, nodes: &Nodes, at: usize, load: Load) {
    assert!(load.wait_for_each(3, PATIENCE), "the writers stand still");
    runtime.block_on(async {
        let logs = load.stop().await;
        for log in &logs {
            assert_eq!((log.errors.as_slice(), log.reconnects), (&[][..], 0), "writer {}", log.writer);
        }
        load::check(&nodes.connect(at).await, &logs).await.unwrap();
    });
}

#[test]
fn an_admin_moves_replicas_about_under_writes() {
    let nodes = Nodes::start(5, &["--shards", "1", "--replicas", "3"]);
    let runtime = runtime();
    runtime.block_on(async { nodes.connect(0).await.batch_execute(load::TABLE).await.unwrap() });
    let shard = main_shard(&nodes);
    let routers: Vec<_> = [0, 3].map(|node| nodes.config(node)).into();
    let load = Load::start(runtime.handle(), &routers, 4, 0);

    let change = |name: &str, arguments: &[String], expected: &[u64]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let done = nodes.shoal(1, &[&["replica", arguments[0], "--shard", name], &arguments[1..]].concat());
        assert!(done.status.success(), "{arguments:?}: {}", said(&done));
        // What the command says has happened; what its nodes tell of themselves may take a moment.
        let status = nodes.status(2).unwrap();
        assert_eq!(status["jobs"], Value::Array(Vec::new()), "{arguments:?}");
        nodes.wait_for(2, "the status tells of the change", |status| {
            let group = group(status, name);
            let voters: Vec<_> =
                group["voters"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
            let is_well = |replica: &Value| {
                matches!(replica["role"].as_str(), Some("leader" | "follower")) && replica["log_lag"].is_u64()
            };
            voters == expected
                && holders(group) == expected
                && group["learners"] == Value::Array(Vec::new())
                && group["joint"] == false
                && group["leader"].as_u64().is_some_and(|leader| expected.contains(&leader))
                && nodes::replicas(group).iter().all(is_well)
        });
        assert!(load.wait_for_each(3, PATIENCE), "the writers stand still after {arguments:?}");
    };
    let words = |line: String| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };

    let three = holders(group(&nodes.status(0).unwrap(), &shard));
    let free: Vec<u64> = (1..=5).filter(|node| !three.contains(node)).collect();
    let ([a, b, c], [d, e]) = (three[..].try_into().unwrap(), free[..].try_into().unwrap());
    let sorted = |mut nodes: Vec<u64>| {
        nodes.sort_unstable();
        nodes
    };
    change(&shard, &words(format!("add --node {d}")), &sorted(vec![a, b, c, d]));
    change(&shard, &words(format!("transfer-leader --to {d}")), &sorted(vec![a, b, c, d]));
    assert_eq!(nodes.leader(0, &shard).and_then(|node| nodes.id(node)), Some(d));
    change(&shard, &words(format!("remove --node {a}")), &sorted(vec![b, c, d]));
    // The leader itself goes, and a node that has had a replica before gets one again.
    change(&shard, &words(format!("move --from {d} --to {a}")), &sorted(vec![a, b, c]));
    change(&shard, &words(format!("rebuild --node {b}")), &sorted(vec![a, b, c]));
    change(&shard, &words(format!("move --from {c} --to {e}")), &sorted(vec![a, b, e]));
    let leader = nodes.leader(0, &shard).and_then(|node| nodes.id(node)).unwrap();
    change(&shard, &words(format!("rebuild --node {leader}")), &sorted(vec![a, b, e]));

    // The coordinator's own group goes the same way, its leader too.
    let five = holders(group(&nodes.status(0).unwrap(), "coordinator"));
    assert_eq!(five, [1, 2, 3, 4, 5]);
    let leader = nodes.leader(0, "coordinator").and_then(|node| nodes.id(node)).unwrap();
    let rest: Vec<u64> = five.iter().copied().filter(|node| *node != leader).collect();
    change("coordinator", &words(format!("remove --node {leader}")), &rest);
    change("coordinator", &words(format!("add --node {leader}")), &five);
    change("coordinator", &words(format!("transfer-leader --to {leader}")), &five);

    end(&runtime, &nodes, 4, load);
    nodes.wait_for(0, "all are level", |status| {
        nodes::is_level(group(status, &shard), 3) && nodes::is_level(group(status, "coordinator"), 5)
    });
    let check = nodes.shoal(0, &["replica", "check", "--shard", &shard]);
    assert!(check.status.success(), "{}", said(&check));
    assert_eq!(nodes.status(0).unwrap()["alarms"], Value::Array(Vec::new()));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let mut nodes = Nodes::launch(3, &[]);
    nodes.init(&["--shards", "1", "--replicas", "2", "--coordinators", "1"]);
    let router = nodes.add(&["--roles", "router"]);
    let down = nodes.add(&[]);
    nodes.wait_for(0, "five nodes", |status| status["nodes"].as_array().unwrap().len() == 5);
    let shard = main_shard(&nodes);
    let (router, dead) = (nodes.id(router).unwrap(), nodes.id(down).unwrap());
    nodes.kill(down);
    nodes.wait_for(0, "a silent node", |status| {
        let heard =
            |node: &Value| node["node"] == dead && node["heard_ms"].as_u64().is_none_or(|ms| ms > 10_000);
        status["nodes"].as_array().unwrap().iter().any(heard)
    });
    let before = nodes.status(0).unwrap();
    let held = holders(group(&before, &shard));
    let [a, b] = held[..] else { panic!("two replicas: {held:?}") };
    let free = (1..=3).find(|node| !held.contains(node)).unwrap();
    let refused = |line: String, reason: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = nodes.shoal(1, &[&["replica"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{line}: {}", said(&output));
        assert!(said(&output).contains(reason), "{line} wants {reason:?}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
    };
    for action in [
        "add --node 1",
        "remove --node 1",
        "rebuild --node 1",
        "transfer-leader --to 1",
        "move --from 1 --to 2",
        "check",
    ] {
        let (verb, rest) = action.split_once(' ').unwrap_or((action, ""));
        let line = format!("{verb} --shard main/nowhere {rest}");
        refused(line.trim_end().to_owned(), "shard \"main/nowhere\" does not exist");
    }
    refused(format!("add --shard {shard} --node 77"), "node 77 does not exist");
    refused(format!("remove --shard {shard} --node 77"), "node 77 does not exist");
    refused(format!("move --shard {shard} --from 77 --to {free}"), "node 77 does not exist");
    refused(format!("move --shard {shard} --from {a} --to 77"), "node 77 does not exist");
    refused(format!("transfer-leader --shard {shard} --to 77"), "node 77 does not exist");
    refused(format!("add --shard {shard} --node {a}"), "already has a replica");
    refused(format!("move --shard {shard} --from {a} --to {b}"), "already has a replica");
    refused(format!("move --shard {shard} --from {a} --to {a}"), "already has a replica");
    refused(format!("remove --shard {shard} --node {free}"), "has no replica");
    refused(format!("rebuild --shard {shard} --node {free}"), "has no replica");
    refused(format!("transfer-leader --shard {shard} --to {free}"), "has no replica");
    for action in ["add --node", &format!("move --from {a} --to")] {
        let (verb, rest) = action.split_once(' ').unwrap();
        refused(format!("{verb} --shard {shard} {rest} {router}"), "doesn't have the role shardnode");
        refused(format!("{verb} --shard {shard} {rest} {dead}"), "has been silent for");
    }
    refused(format!("add --shard coordinator --node {router}"), "doesn't have the role coordinator");
    refused(
        "remove --shard coordinator --node 1".into(),
        "the last replica of the coordinator can't be removed",
    );
    refused(
        "rebuild --shard coordinator --node 1".into(),
        "the last replica of the coordinator can't be rebuilt",
    );
    let after = nodes.status(0).unwrap();
    assert_eq!(holders(group(&after, &shard)), held);
    assert_eq!((&after["jobs"], &after["epoch"]), (&before["jobs"], &before["epoch"]), "nothing was begun");
}

/// Changes a row of the only table of a database that nobody uses, so that nobody is told.
fn plant(database: &std::path::Path) {
    let connection = rusqlite::Connection::open(database).unwrap();
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 't[0-9]*'")
        .unwrap();
    let tables: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let planted = tables.iter().filter(|table| {
        let columns: Vec<String> = connection
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let [key, value] = &columns[..] else { return false };
        connection.execute(&format!("UPDATE {table} SET {value} = 1000 WHERE {key} = 7"), []).unwrap() == 1
    });
    assert_eq!(planted.count(), 1, "of {tables:?}");
}

#[test]
fn a_replica_that_differs_is_found_alarmed_about_and_made_anew() {
    let mut nodes = Nodes::start(3, &["--shards", "1", "--replicas", "3"]);
    let runtime = runtime();
    runtime.block_on(async {
        let client = nodes.connect(0).await;
        client.batch_execute(load::TABLE).await.unwrap();
        client.batch_execute("CREATE TABLE t (n int PRIMARY KEY, v int)").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1, 1), (7, 7), (8, 8)").await.unwrap();
    });
    let shard = main_shard(&nodes);
    nodes.wait_for(0, "all are level", |status| nodes::is_level(group(status, &shard), 3));
    let check = nodes.shoal(0, &["replica", "check", "--shard", &shard]);
    assert!(check.status.success(), "{}", said(&check));

    let victim = (nodes.leader(0, &shard).unwrap() + 1) % 3;
    let others: Vec<usize> = (0..3).filter(|node| *node != victim).collect();
    let at = others[0];
    let id = nodes.id(victim).unwrap();
    let routers: Vec<_> = others.iter().map(|node| nodes.config(*node)).collect();
    let load = Load::start(runtime.handle(), &routers, 2, 0);
    assert_eq!(nodes.stop(victim).code(), Some(0));
    let number = group(&nodes.status(at).unwrap(), &shard)["group"].to_string();
    plant(&nodes.directory(victim).join("groups").join(number).join("replica.sqlite"));
    nodes.restart(victim);
    nodes.wait_for(at, "the replica is back", |status| {
        let replicas = nodes::replicas(group(status, &shard));
        replicas.iter().any(|replica| {
            replica["node"] == id
                && replica["role"] == "follower"
                && replica["log_lag"].as_u64().is_some_and(|lag| lag < 50)
        })
    });
    let check = nodes.shoal(at, &["replica", "check", "--shard", &shard]);
    assert!(check.status.code() == Some(1) && said(&check).contains("differ"), "{}", said(&check));
    nodes.wait_for(at, "an alarm about the replica", |status| {
        let alarm = |alarm: &Value| {
            alarm["node"] == id
                && alarm["shard"] == shard.as_str()
                && alarm["message"].as_str().unwrap().contains("differ")
        };
        status["alarms"].as_array().unwrap().iter().any(alarm)
    });
    let logs: String = (0..3).map(|node| nodes.log(node)).collect();
    let error = logs.lines().find(|line| line.contains("ERROR") && line.contains("its tables differ"));
    assert!(error.is_some_and(|line| line.contains(&shard)), "no alarm in any log: {error:?}");

    nodes.wait_for(at, "the replica is made anew", |status| {
        let group = group(status, &shard);
        let anew = nodes::replicas(group).iter().any(|replica| {
            replica["node"] == id && replica["role"] == "follower" && replica["check"].is_null()
        });
        anew && group["voters"].as_array().unwrap().len() == 3
            && status["alarms"].as_array().unwrap().is_empty()
    });
    end(&runtime, &nodes, at, load);
    nodes.wait_for(at, "all are level", |status| nodes::is_level(group(status, &shard), 3));
    let check = nodes.shoal(at, &["replica", "check", "--shard", &shard]);
    assert!(check.status.success(), "{}", said(&check));
    // It may lead, and gives what the others have.
    let led = nodes.shoal(at, &["replica", "transfer-leader", "--shard", &shard, "--to", &id.to_string()]);
    assert!(led.status.success(), "{}", said(&led));
    runtime.block_on(async {
        let row = nodes.connect(victim).await.query_one("SELECT v FROM t WHERE n = 7", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 7);
    });
}
