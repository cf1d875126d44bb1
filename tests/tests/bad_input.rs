//! What clients and admins get wrong: each a clear error, and the server goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;
use tests::cluster::{self, Cluster};
use tokio_postgres::error::SqlState;

fn small() -> Cluster {
    Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", "2"])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Sends bytes and reads what comes until the server closes.
fn exchange(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server closes the connection by itself");
    answer
}

/// The SQLSTATE of an ErrorResponse.
fn sqlstate(answer: &[u8]) -> String {
    assert_eq!(answer.first(), Some(&b'E'), "no ErrorResponse: {:?}", String::from_utf8_lossy(answer));
    let fields = answer[5..].split(|b| *b == 0);
    let code =
        fields.filter(|f| f.first() == Some(&b'C')).map(|f| String::from_utf8_lossy(&f[1..]).into_owned());
    code.into_iter().next().expect("an ErrorResponse has a code")
}

fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0shoal\0database\0shoal\0\0";
    let mut message = ((body.len() + 4) as u32).to_be_bytes().to_vec();
    message.extend_from_slice(body);
    message
}

#[test]
fn bytes_that_are_not_the_protocol_end_the_connection_alone() {
    let cluster = small();
    let witness = runtime();
    let client = witness.block_on(cluster.connect());
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        &[0xff; 64],
        &[0, 0, 0, 3],
        &[0x40, 0, 0, 0, 0, 3, 0, 0],
    ] {
        assert_eq!(sqlstate(&exchange(&cluster.address, bytes)), "08P01", "{bytes:?}");
    }
    // PostgreSQL's answer to a version of the protocol that there isn't.
    assert_eq!(sqlstate(&exchange(&cluster.address, &[0, 0, 0, 8, 0, 9, 0, 0])), "0A000");
    // The same within a session: an unknown message, a length that is too small, and one of a gigabyte.
    for bytes in [&b"\x01\0\0\0\x04"[..], b"Q\0\0\0\x01", b"Q\x40\0\0\0select 1"] {
        let answer = exchange(&cluster.address, &[&startup(), bytes].concat());
        let after_ready =
            answer.windows(6).position(|w| w == b"Z\0\0\0\x05I").expect("the session starts") + 6;
        assert!(["08P01", "54000"].contains(&sqlstate(&answer[after_ready..]).as_str()));
    }
    // Half a message and then nothing more is no error worth a word; the server must live.
    TcpStream::connect(&cluster.address).unwrap().write_all(&[0, 0]).unwrap();
    witness.block_on(async {
        assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    });
}

#[test]
fn ten_megabytes_in_a_value_come_back() {
    let cluster = small();
    runtime().block_on(async {
        let client = cluster.connect().await;
        client.batch_execute("CREATE TABLE big (id int PRIMARY KEY, t text, b bytea)").await.unwrap();
        let text = "x".repeat(10 << 20);
        let bytes = vec![7u8; 10 << 20];
        client.execute("INSERT INTO big VALUES (1, $1, $2)", &[&text, &bytes]).await.unwrap();
        let row = client.query_one("SELECT t, b FROM big WHERE id = 1", &[]).await.unwrap();
        assert!(row.get::<_, &str>(0) == text && row.get::<_, &[u8]>(1) == bytes);
        let sum: i64 = client.query_one("SELECT sum(length(t)) FROM big", &[]).await.unwrap().get(0);
        assert_eq!(sum, 10 << 20);
    });
}

#[test]
fn forty_thousand_ors_overflow_no_stack() {
    let cluster = small();
    runtime().block_on(async {
        let client = cluster.connect().await;
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
        let ors: Vec<_> = (0..40_000).map(|i| format!("id = {i}")).collect();
        let deep = format!("SELECT {}1{}", "(".repeat(40_000), ")".repeat(40_000));
        for sql in [format!("SELECT id FROM t WHERE {}", ors.join(" OR ")), deep] {
            match client.simple_query(&sql).await {
                Ok(_) => {}
                Err(error) => assert_eq!(error.code(), Some(&SqlState::STATEMENT_TOO_COMPLEX), "{error}"),
            }
        }
        assert_eq!(client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 0);
    });
}

#[test]
fn errors_name_the_thing() {
    let cluster = small();
    runtime().block_on(async {
        let client = cluster.connect().await;
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, name text)").await.unwrap();
        for (sql, code, word) in [
            ("SELECT * FROM nosuch", "42P01", "nosuch"),
            ("SELECT nosuch FROM t", "42703", "nosuch"),
            ("INSERT INTO t VALUES ('abc', 'x')", "22P02", "abc"),
            ("CREATE TABLE u (a int PRIMARY KEY, b int) PARTITION BY HASH (b)", "0A000", "partition"),
            ("INSERT INTO t VALUES (1)  garbage", "42601", "garbage"),
        ] {
            let error = client.simple_query(sql).await.unwrap_err();
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
            assert_eq!(error.code().code(), code, "{sql}: {error}");
            assert!(error.message().contains(word), "{sql}: {error}");
        }
        // What isn't supported says so, with a way out, and leaves nothing behind.
        let error = client.simple_query("CREATE TABLE v (a int REFERENCES t)").await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!((error.code().code(), error.hint().is_some()), ("0A000", true), "{error}");
    });
}

#[test]
fn what_fails_leaves_nothing_behind_on_any_shard() {
    let cluster = small();
    runtime().block_on(async {
        let (client, other) = (cluster.connect().await, cluster.connect().await);
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n < 10))").await.unwrap();
        let rows: Vec<_> = (1..=20).map(|id| format!("({id}, 0)")).collect();
        client.batch_execute(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await.unwrap();
        // One row of many, on one shard of several.
        for sql in [
            "UPDATE t SET n = CASE id WHEN 7 THEN 10 ELSE 1 END",
            "INSERT INTO t SELECT id + 13, 5 FROM t",
            "UPDATE t SET n = 1 WHERE id = 1; UPDATE t SET n = 1 WHERE id = 2; INSERT INTO t VALUES (3, 3)",
        ] {
            assert!(client.batch_execute(sql).await.is_err(), "{sql}");
        }
        client.batch_execute("BEGIN; UPDATE t SET n = 1; DELETE FROM t WHERE id < 9").await.unwrap();
        assert!(client.batch_execute("INSERT INTO t VALUES (30, 30)").await.is_err());
        let error = client.batch_execute("SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        // Its locks are free, though it hasn't been rolled back yet.
        assert_eq!(other.execute("UPDATE t SET n = 0", &[]).await.unwrap(), 20);
        client.batch_execute("COMMIT").await.unwrap();
        let (count, sum) = ("SELECT count(*) FROM t", "SELECT count(*) FROM t WHERE n <> 0");
        for (sql, expected) in [(count, 20), (sum, 0)] {
            assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), expected, "{sql}");
        }
        client
            .batch_execute("BEGIN; UPDATE t SET n = 1; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT")
            .await
            .unwrap();
        assert_eq!(other.query_one(sum, &[]).await.unwrap().get::<_, i64>(0), 20);
    });
}

#[test]
fn a_second_cluster_on_the_same_port_or_data_is_refused() {
    let mut cluster = small();
    let other = tempfile::tempdir().unwrap();
    let run = |data: &std::path::Path, listen: &str| {
        let mut command = Command::new(cluster::binary());
        let output = command.args(["dev", "--listen", listen, "--data-dir"]).arg(data).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = run(cluster.data(), "127.0.0.1:0");
    assert!(code == Some(1) && message.contains(&*cluster.data().to_string_lossy()), "{code:?} {message}");
    let (code, message) = run(other.path(), &cluster.address);
    assert!(code == Some(1) && message.contains(&cluster.address), "{code:?} {message}");
    let (code, message) = run(other.path(), "0.0.0.0:0");
    assert!(code == Some(1) && message.contains("--insecure"), "{code:?} {message}");
    assert!(cluster.is_running());
    runtime().block_on(async {
        assert_eq!(cluster.connect().await.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    });
}
