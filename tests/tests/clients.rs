//! The clients that people have: psql, psycopg2, and the admin's own command line.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};
use tests::cluster::{self, Cluster};
use tests::tools::{find_or_skip, find_psycopg2_or_skip};

fn host_and_port(cluster: &Cluster) -> (&str, &str) {
    cluster.address.rsplit_once(':').unwrap()
}

fn client(program: &Path, cluster: &Cluster) -> Command {
    let (host, port) = host_and_port(cluster);
    let mut command = Command::new(program);
    command
        .args(["-h", host, "-p", port, "-U", "shoal"])
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PGDATABASE", "shoal");
    command
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn psql_describes_tables() {
    let Some(psql) = find_or_skip("psql", "psql_describes_tables") else { return };
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1"]);
    let run = |sql: &str| {
        text(&client(&psql, &cluster).args(["-X", "-v", "ON_ERROR_STOP=1", "-c", sql]).output().unwrap())
    };
    run(
        "CREATE TABLE fish (id int PRIMARY KEY, name varchar(20) NOT NULL DEFAULT 'cod', weight numeric(8,2), UNIQUE (id, name))",
    );
    let tables = run("\\dt");
    assert!(tables.contains(" public | fish | table | shoal"), "{tables}");
    let table = run("\\d fish");
    for line in [
        " id     | integer               |           | not null | ",
        " name   | character varying(20) |           | not null | 'cod'::character varying",
        " weight | numeric(8,2)          |           |          | ",
        "    \"fish_pkey\" PRIMARY KEY, btree (id)",
        "    \"fish_id_name_key\" UNIQUE CONSTRAINT, btree (id, name)",
    ] {
        assert!(table.contains(line), "no {line:?} in\n{table}");
    }
    run("ALTER ROLE ALL SET shoal.read_wait = 20");
    run("ALTER ROLE shoal SET application_name = 'a b'");
    let settings = run("\\drds");
    for line in [" shoal |          | application_name=a b", "       |          | shoal.read_wait=20"] {
        assert!(settings.contains(line), "no {line:?} in\n{settings}");
    }
    assert!(run("SHOW shoal.read_wait").contains("20ms"));
    let missing = client(&psql, &cluster).args(["-X", "-c", "\\d nosuch"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("Did not find any relation named \"nosuch\""),
        "{missing:?}"
    );
}

#[test]
fn psql_copies_in_and_out() {
    let Some(psql) = find_or_skip("psql", "psql_copies_in_and_out") else { return };
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.csv");
    std::fs::write(&file, "1,plain\n2,\"with, comma\"\n3,\n4,\"\"\n").unwrap();
    let script = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);\n\\copy t FROM '{}' WITH (FORMAT csv)\n\
         COPY (SELECT id, v, v IS NULL FROM t ORDER BY id) TO STDOUT;\nCOPY t TO STDOUT WITH (FORMAT csv, HEADER);",
        file.display()
    );
    let script_file = folder.path().join("script.sql");
    std::fs::write(&script_file, script).unwrap();
    let mut command = client(&psql, &cluster);
    let out =
        text(&command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(script_file).output().unwrap());
    assert!(out.contains("1\tplain\tf\n2\twith, comma\tf\n3\t\\N\tt\n4\t\tf\n"), "{out}");
    assert!(
        out.contains("id,v\n") && out.contains("2,\"with, comma\"\n") && out.contains("4,\"\"\n"),
        "{out}"
    );
}

#[test]
fn psycopg2_reads_and_writes() {
    let Some(python) = find_psycopg2_or_skip("psycopg2_reads_and_writes") else { return };
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1"]);
    let (host, port) = host_and_port(&cluster);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers/psycopg2_session.py");
    let output = Command::new(python).arg(script).args([host, port]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_admin_sees_shards_and_makes_keyspaces() {
    let cluster = Cluster::start(&[]);
    let shoal = |arguments: &[&str]| {
        Command::new(cluster::binary()).args(arguments).args(["--host", &cluster.admin]).output().unwrap()
    };
    let status = text(&shoal(&["status"]));
    for word in ["main/-80", "main/80-", "node", "leader", "applied"] {
        assert!(status.to_lowercase().contains(word), "no {word} in\n{status}");
    }
    text(&shoal(&["keyspace", "create", "orders", "--sharding", "hash", "--shards", "4"]));
    let json: serde_json::Value = serde_json::from_str(&text(&shoal(&["status", "--json"]))).unwrap();
    let shards = json["shards"].as_array().unwrap();
    assert_eq!(shards.iter().filter(|s| s["keyspace"] == "orders").count(), 4, "{json}");
    let again = shoal(&["keyspace", "create", "orders", "--sharding", "hash", "--shards", "4"]);
    assert!(
        again.status.code() == Some(1) && String::from_utf8_lossy(&again.stderr).contains("orders"),
        "{again:?}"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = cluster.connect().await;
        let sql = "CREATE TABLE o (id int PRIMARY KEY) PARTITION BY HASH (id) WITH (keyspace = 'orders')";
        client.batch_execute(sql).await.unwrap();
        client.batch_execute("INSERT INTO o VALUES (1), (2), (3), (4), (5), (6)").await.unwrap();
        assert_eq!(client.query_one("SELECT count(*) FROM o", &[]).await.unwrap().get::<_, i64>(0), 6);
    });
}

#[test]
fn ctrl_c_ends_it_well_and_the_data_comes_back() {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut cluster = Cluster::start_at(data.path(), &[]);
    runtime.block_on(async {
        let client = cluster.connect().await;
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await.unwrap();
    });
    let interrupt = Command::new("kill").args(["-INT", &cluster.pid().to_string()]).status().unwrap();
    assert!(interrupt.success());
    assert_eq!(cluster.wait().code(), Some(0));
    let cluster = Cluster::start_at(data.path(), &[]);
    runtime.block_on(async {
        let rows = cluster.connect().await.query("SELECT id, v FROM t ORDER BY id", &[]).await.unwrap();
        let rows: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(rows, [(1, "a".to_owned()), (2, "b".to_owned())]);
    });
}
