//! `shoal reshard`, as an admin types it, against a cluster; and what it needs to know of shards' rows.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tests::load::{self, Load};
use tests::nodes::{self, Nodes};
use tests::wait::{LOOK, PATIENCE, until};
use tokio_postgres::{Client, SimpleQueryMessage};

/// What a command printed, line by line, each of which is an object.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

/// A shard's name, and the nodes that hold it.
fn first_shard(nodes: &Nodes) -> (String, Vec<u64>) {
    let status = nodes.status(0).unwrap();
    let shard = nodes::groups(&status).find(|group| group["keyspace"] == "main").unwrap();
    let mut voters = numbers(&shard["voters"]);
    voters.sort_unstable();
    (shard["shard"].as_str().unwrap().to_owned(), voters)
}

#[test]
fn a_shard_is_moved_while_clients_write() {
    let nodes = Nodes::start(4, &["--shards", "1", "--replicas", "2"]);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { nodes.connect(0).await.batch_execute(load::TABLE).await.unwrap() });
    let load = Load::start(runtime.handle(), &[nodes.config(0), nodes.config(3)], 2, 0);
    let (shard, held) = first_shard(&nodes);
    let ([a, b], free) = (held[..].try_into().unwrap(), (1..=4).filter(|node| !held.contains(node)));
    let [c, d] = free.collect::<Vec<u64>>()[..].try_into().unwrap();
    let shoal = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        nodes.shoal(1, &[&["reshard", "move", &shard], &arguments[..]].concat())
    };
    for (arguments, code, reason) in [
        (format!("--to {c}"), 1, format!("{shard} has 2 replicas, so it is moved to as many nodes")),
        (format!("--to {c},9"), 1, "node 9 does not exist".into()),
        (format!("--from {c} --to {d}"), 1, format!("node {c} has no replica of {shard}")),
        (format!("--from {a} --to {b}"), 1, format!("node {b} has a replica of {shard} already")),
        (format!("--from {a} --to {c},{d}"), 1, format!("what node {a} has of {shard} is moved to one node")),
        (format!("--from {a}"), 2, "--to <N,..>".into()),
    ] {
        let refused = shoal(&arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(
            (refused.status.code(), said.contains(&reason)),
            (Some(code), true),
            "{arguments}: {said}"
        );
    }
    // A dry run says what it would do, and it is not begun.
    let planned = lines(&shoal(&format!("--to {c},{b} --dry-run --json")));
    let mut to = vec![b, c];
    to.sort_unstable();
    assert_eq!(planned.len(), 1, "{planned:?}");
    assert_eq!((&planned[0]["course"], numbers(&planned[0]["from"])), (&Value::Null, held.clone()));
    assert_eq!(numbers(&planned[0]["to"]), to);
    assert_eq!(planned[0]["what"], format!("move {shard} to nodes {}, {}", to[0], to[1]));
    assert_eq!(
        (first_shard(&nodes).1, &nodes.status(0).unwrap()["jobs"]),
        (held.clone(), &Value::Array(vec![]))
    );

    let moved = lines(&shoal(&format!("--from {a} --to {c} --json")));
    let (begun, done) = (moved.first().unwrap(), moved.last().unwrap());
    assert!(begun["course"].is_u64() && begun["course"] == done["course"], "{moved:?}");
    assert_eq!((numbers(&begun["from"]), numbers(&begun["to"])), (held, to.clone()));
    assert_eq!((&done["done"], numbers(&done["nodes"])), (&Value::Bool(true), to));
    assert!(load.wait_for_each(3, PATIENCE), "the writers stand still");

    // And all of it, whoever leads; for people.
    let moved = shoal(&format!("--to {a},{d}"));
    let said = String::from_utf8_lossy(&moved.stdout);
    let mut to = vec![a, d];
    to.sort_unstable();
    let end = format!("{shard} is on nodes {}, {}", to[0], to[1]);
    assert!(moved.status.success() && said.lines().last() == Some(&end), "{moved:?}");
    nodes.wait_for(0, "the status tells of the move", |_| first_shard(&nodes).1 == to);
    // Who doesn't wait is told what will happen.
    let begun = shoal(&format!("--to {a},{d} --wait no"));
    let said = String::from_utf8_lossy(&begun.stdout);
    assert!(begun.status.success() && said.ends_with("no replica needs to be made\n"), "{begun:?}");

    assert!(load.wait_for_each(3, PATIENCE), "the writers stand still");
    runtime.block_on(async {
        let logs = load.stop().await;
        for log in &logs {
            assert_eq!((log.errors.as_slice(), log.reconnects), (&[][..], 0), "writer {}", log.writer);
        }
        load::check(&nodes.connect(0).await, &logs).await.unwrap();
    });
}

#[test]
fn a_shard_is_cut_at_keys_and_by_its_rows() {
    let nodes = Nodes::start(2, &["--shards", "1", "--replicas", "2"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = nodes.connect(0).await;
        for table in [
            "event (id int, name text, PRIMARY KEY (id, name)) PARTITION BY RANGE (id)",
            "note (name text PRIMARY KEY) PARTITION BY RANGE (name)",
            "account (id int PRIMARY KEY, v text)",
        ] {
            client.batch_execute(&format!("CREATE TABLE {table}")).await.unwrap();
        }
        let rows = |numbers: std::ops::Range<u32>, row: fn(u32) -> String| {
            numbers.map(row).collect::<Vec<_>>().join(", ")
        };
        for (table, rows) in [
            ("event", rows(1..1001, |n| format!("({n}, 'e{n}')"))),
            ("note", rows(100..200, |n| format!("('n{n}')"))),
            ("account", rows(1..301, |n| format!("({n}, 'a{n}')"))),
        ] {
            client.batch_execute(&format!("INSERT INTO {table} VALUES {rows}")).await.unwrap();
        }
    });
    nodes.wait_for(0, "all are level", |status| {
        let mut shards = nodes::groups(status).filter(|group| group["shard"].is_string());
        shards.all(|group| nodes::is_level(group, 2))
    });
    let split = |arguments: &[&str]| {
        nodes.shoal(0, &[&["reshard", "split"], arguments, &["--dry-run", "--no-verify", "--json"]].concat())
    };
    let into = |arguments: &[&str]| -> Vec<String> {
        let planned = lines(&split(arguments));
        let shards = planned[0]["shards"].as_array().unwrap();
        shards.iter().map(|shard| shard["shard"].as_str().unwrap().to_owned()).collect()
    };
    let id = |number: u32| format!("10{:016x}", u64::from(number) ^ (1 << 63));
    let two =
        |keyspace: &str, bound: &str| vec![format!("{keyspace}/-{bound}"), format!("{keyspace}/{bound}-")];
    assert_eq!(into(&["event/-", "--at", "500"]), two("event", &id(500)));
    assert_eq!(
        into(&["event/-", "--at", "(7)", "--at", "'9'"]),
        [format!("event/-{}", id(7)), format!("event/{}-{}", id(7), id(9)), format!("event/{}-", id(9))]
    );
    assert_eq!(into(&["event/-", "--at", "-1"]), two("event", "107fffffffffffffff"));
    assert_eq!(into(&["note/-", "--at", "'n150'"]), two("note", "206e3135300001"));
    assert_eq!(into(&["main/-", "--at", "40"]), ["main/-40", "main/40-"]);

    // The middle is where rows are, not where keys could be.
    assert_eq!(into(&["event/-", "--median"]), two("event", &id(501)));
    assert_eq!(into(&["note/-", "--median"]), two("note", "206e3135300001"));
    let main = into(&["main/-", "--median"]);
    let bound = main[1].strip_prefix("main/").unwrap().trim_end_matches('-');
    assert!(bound.len() > 2 && ("6".."a").contains(&bound), "{main:?}");

    for (arguments, reason) in [
        (&["event/-", "--at", "x"][..], "invalid input syntax for type integer: \"x\""),
        (&["note/-", "--at", "n150"], "a value of this type is written in quotes: 'n150'"),
        (&["event/-", "--at", "(1, 'a', 2)"], "has 3 values, and the key has 1 column"),
        (&["event/-", "--at", "9", "--at", "7"], "can't be split at"),
        (&["event/-", "--into", "2"], "keyspace event is sharded by range, so event/- has no middle"),
        (&["main/-", "--at", "x"], "isn't pairs of hex digits"),
        (&["main/80-", "--at", "90"], "shard \"main/80-\" does not exist"),
        (&["main/80-", "--median"], "shard \"main/80-\" does not exist"),
        (&["single/-", "--median"], "keyspace single has one shard and is not split"),
        (&["single/-", "--at", "40"], "keyspace single has one shard and is not split"),
    ] {
        let refused = split(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), said.contains(reason)), (Some(1), true), "{arguments:?}: {said}");
    }

    // What was counted is shown, with its age.
    let tables = || -> Vec<Value> {
        let output = nodes.shoal(1, &["tables", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let rows = |tables: &[Value], name: &str| {
        tables.iter().find(|table| table["table"] == name).unwrap()["rows"].as_u64()
    };
    nodes.wait_for(0, "all rows are counted", |_| {
        let tables = tables();
        let counts = ["event", "note", "account"].map(|name| rows(&tables, name));
        counts == [Some(1000), Some(100), Some(300)]
    });
    let event = tables().into_iter().find(|table| table["table"] == "event").unwrap();
    assert_eq!(
        (&event["keyspace"], &event["sharding"], &event["key"][0]),
        (&"event".into(), &"range".into(), &"id".into())
    );
    assert!(event["bytes"].as_u64().unwrap() > 1000 && event["age_ms"].is_u64(), "{event}");
    let shards: Vec<Value> = serde_json::from_slice(&nodes.shoal(1, &["shards", "--json"]).stdout).unwrap();
    let shard = shards.iter().find(|shard| shard["shard"] == "event/-").unwrap();
    assert_eq!(shard["rows"].as_u64(), Some(1000), "{shard}");
}

/// What a query answers, row by row.
async fn ask(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.simple_query(sql).await.unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("null")).collect::<Vec<_>>().join(","))
        }
        _ => None,
    };
    rows.into_iter().filter_map(row).collect()
}

/// The shards that a query is said to ask.
async fn asked(client: &Client, sql: &str) -> Vec<String> {
    let plan = ask(client, &format!("EXPLAIN {sql}")).await;
    let route = plan.iter().find_map(|line| line.trim().strip_prefix("Route: "));
    let (_, shards) = route.unwrap_or_else(|| panic!("{plan:?}")).split_once('(').unwrap();
    shards.trim_end_matches(')').split(", ").map(str::to_owned).collect()
}

/// What is advised about a keyspace: why, and by which command.
fn advised(nodes: &Nodes, keyspace: &str) -> Vec<(String, Option<String>)> {
    let output = nodes.shoal(0, &["advise", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let lines = lines.iter().map(|line| (text(&line["why"]).unwrap(), text(&line["command"])));
    lines.filter(|(why, _)| why.contains(&format!("{keyspace}/"))).collect()
}

#[test]
fn a_range_keyspace_is_split_and_scans_ask_whom_they_must() {
    let nodes = Nodes::start(2, &["--shards", "1", "--replicas", "2"]);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = nodes.connect(0).await;
        let table = "CREATE TABLE event (id int, name text, PRIMARY KEY (id, name)) PARTITION BY RANGE (id)";
        client.batch_execute(table).await.unwrap();
        let rows: Vec<_> = (0..1000).map(|id| format!("({id}, 'e{id}')")).collect();
        client.batch_execute(&format!("INSERT INTO event VALUES {}", rows.join(", "))).await.unwrap();
        client
    });
    let split = |arguments: &[&str]| {
        let options = ["--yes", "--keep", "0", "--json"];
        lines(&nodes.shoal(0, &[&["reshard", "split"], arguments, &options].concat()));
        nodes.wait_for(0, "the old shard is gone", |_| {
            let reshards = lines(&nodes.shoal(0, &["reshard", "status", "--json"]));
            reshards.iter().all(|reshard| reshard["phase"] == "ended")
        });
    };
    let id = |number: u32| format!("10{:016x}", u64::from(number) ^ (1 << 63));
    split(&["event/-", "--at", "200"]);
    let upper = format!("event/{}-", id(200));
    split(&[&upper, "--median"]);
    let [low, middle, high] =
        [format!("-{}", id(200)), format!("{}-{}", id(200), id(600)), format!("{}-", id(600))]
            .map(|range| format!("event/{range}"));
    runtime.block_on(async {
        for (condition, shards, rows) in [
            ("id = 5", vec![&low], "1,5"),
            ("id = 200", vec![&middle], "1,200"),
            ("id < 200", vec![&low], "200,19900"),
            ("id <= 200", vec![&low, &middle], "201,20100"),
            ("id BETWEEN 250 AND 599", vec![&middle], "350,148575"),
            ("id >= 599 AND id < 601", vec![&middle, &high], "2,1199"),
            ("id > 600", vec![&high], "399,319200"),
            ("id IN (1, 999)", vec![&low, &high], "2,1000"),
            ("name = 'e7'", vec![&low, &middle, &high], "1,7"),
        ] {
            let sql = format!("SELECT count(*), sum(id) FROM event WHERE {condition}");
            assert_eq!(asked(&client, &sql).await.iter().collect::<Vec<_>>(), shards, "{condition}");
            assert_eq!(ask(&client, &sql).await, [rows], "{condition}");
        }
        let ordered = ask(&client, "SELECT id FROM event WHERE id BETWEEN 198 AND 202 ORDER BY id").await;
        assert_eq!(ordered, ["198", "199", "200", "201", "202"]);
        // Rows that move from shard to shard by their key, and new ones, are where they belong.
        client.batch_execute("UPDATE event SET id = 2000 WHERE id = 7").await.unwrap();
        assert_eq!(ask(&client, "SELECT name FROM event WHERE id = 2000").await, ["e7"]);
        assert_eq!(asked(&client, "SELECT name FROM event WHERE id = 2000").await, [high.as_str()]);
    });

    // The view has them with their rows, once these are counted.
    let counted = "SELECT shard, rows FROM shoal_shards WHERE keyspace = 'event' ORDER BY shard";
    let expected = [format!("{low},199"), format!("{middle},400"), format!("{high},401")];
    let seen = until(PATIENCE, LOOK, || {
        let found = runtime.block_on(ask(&client, counted));
        if found == expected { Ok(()) } else { Err(found) }
    });
    assert_eq!(seen, Ok(()));

    // Who appends hears that no split helps, and what does.
    let before = advised(&nodes, "event");
    assert!(before.is_empty(), "{before:?}");
    let stop = Arc::new(AtomicBool::new(false));
    let writing = runtime.spawn({
        let stop = stop.clone();
        async move {
            let mut id = 3000;
            while !stop.load(Ordering::Relaxed) {
                let rows: Vec<_> = (id..id + 20).map(|id| format!("({id}, 'e')")).collect();
                client.batch_execute(&format!("INSERT INTO event VALUES {}", rows.join(", "))).await.unwrap();
                id += 20;
            }
        }
    });
    let told = until(PATIENCE, LOOK, || {
        let advised = advised(&nodes, "event");
        let is_told = |(why, _): &&(String, _)| why.contains("keys grow");
        advised.iter().find(is_told).cloned().ok_or(advised)
    });
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(writing).unwrap();
    let (why, command) = told.unwrap();
    assert!(why.starts_with(&format!("{high}, the last shard of range keyspace event, gets")), "{why}");
    assert!(why.contains("Splitting it won't help") && why.contains("PARTITION BY HASH"), "{why}");
    assert_eq!(command, None, "there is no command that helps");
    let splits =
        |(_, command): &(String, Option<String>)| command.as_ref().is_some_and(|c| c.contains("split"));
    assert!(!advised(&nodes, "event").iter().any(splits), "and none that wouldn't");
}

/// The shards of `main` that serve, and the reshards that there are and have been.
fn of_main(nodes: &Nodes) -> (Vec<String>, Vec<Value>) {
    let status = nodes.status(0).unwrap();
    let serves = |group: &&Value| group["keyspace"] == "main" && group["serves"] == true;
    let shards = nodes::groups(&status).filter(serves).map(|group| group["shard"].as_str().unwrap().into());
    (shards.collect(), lines(&nodes.shoal(0, &["reshard", "status", "--json"])))
}

#[test]
fn a_keyspace_splits_by_itself_what_is_too_big() {
    let nodes = Nodes::start(2, &["--shards", "1", "--replicas", "2"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = nodes.connect(0).await;
        client.batch_execute("CREATE TABLE account (id int PRIMARY KEY, v text)").await.unwrap();
        let v = "v".repeat(1000);
        for first in (0..24_000).step_by(1_000) {
            let rows: Vec<_> = (first..first + 1_000).map(|id| format!("({id}, '{v}')")).collect();
            client.batch_execute(&format!("INSERT INTO account VALUES {}", rows.join(", "))).await.unwrap();
        }
        client
    });
    let alter = |arguments: &[&str]| {
        let output = nodes.shoal(1, &[&["keyspace", "alter"], arguments].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    for (arguments, code, reason) in [
        (&["single", "--auto", "on"][..], 1, "keyspace single has one shard and is not split"),
        (&["other", "--auto", "on"], 1, "keyspace \"other\" does not exist"),
        (&["main", "--auto", "on", "--auto-size", "1KiB"], 1, "at 1 MiB or more"),
        (&["main", "--auto", "off", "--auto-size", "1GiB"], 1, "--auto off takes neither"),
        (&["main", "--auto-size", "1GiB"], 2, "--auto <on|off>"),
        (&["main"], 2, "required arguments"),
    ] {
        let (ended, said) = alter(arguments);
        assert_eq!((ended, said.contains(reason)), (Some(code), true), "{arguments:?}: {said}");
    }
    // Off: though it is known how big it is, and where its middle is.
    nodes.wait_for(0, "the shard is measured", |_| {
        let shards: Vec<Value> =
            serde_json::from_slice(&nodes.shoal(1, &["shards", "--json"]).stdout).unwrap();
        let shard = shards.iter().find(|shard| shard["shard"] == "main/-").unwrap();
        // It may have been counted before the last of them came, and a count that took long isn't made again soon.
        shard["rows"].as_u64().is_some_and(|rows| rows > 0) && shard["bytes"].as_u64().unwrap() > 14 << 20
    });
    assert_eq!(of_main(&nodes), (vec!["main/-".to_owned()], vec![]));

    let bounds = ["main", "--auto", "on", "--auto-size", "14MiB", "--auto-shards", "8"];
    let told = "main splits by itself what is bigger than 14MiB, up to 8 shards\n";
    assert_eq!(alter(&bounds), (Some(0), told.to_owned()));
    nodes.wait_for(0, "it has split itself", |status| {
        let (shards, reshards) = of_main(&nodes);
        let is_set =
            status["keyspaces"][0]["auto"] == serde_json::json!({"size_bytes": 14 << 20, "shards": 8});
        assert!(is_set && reshards.len() <= 1, "{status}\n{reshards:?}");
        shards == ["main/-80", "main/80-"] && reshards[0]["phase"] == "switched"
    });
    let (_, reshards) = of_main(&nodes);
    assert_eq!(reshards[0]["what"], "split main/- into main/-80, main/80-");
    let completed = nodes.shoal(0, &["reshard", "complete", "1"]);
    assert!(completed.status.success(), "{completed:?}");
    let told = "main splits nothing by itself\n";
    assert_eq!(alter(&["main", "--auto", "off"]), (Some(0), told.to_owned()));
    assert_eq!(nodes.status(0).unwrap()["keyspaces"][0]["auto"], Value::Null);
    assert_eq!(of_main(&nodes).1.len(), 1);
    let rows = runtime.block_on(ask(&client, "SELECT count(*), sum(id) FROM account"));
    assert_eq!(rows, ["24000,287988000"]);
}
