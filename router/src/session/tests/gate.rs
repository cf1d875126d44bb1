//! Blocks wait while shards are being replaced, and nobody else does.

use super::*;
use crate::fake::sealed;
use futures::SinkExt;
use proto::Epoch;

const GATED: &str = "INSERT INTO t VALUES (1)";

impl Server {
    /// Routers keep blocks waiting for this attempt, or for none, and this one has heard of it.
    async fn gate(&self, attempt: Option<u32>) {
        self.fake.close_gate(attempt);
        self.hears().await;
    }

    /// Waits until so many wait at the gate.
    async fn until_waiting(&self, count: usize) {
        while self.cluster.gate().waiting() != count {
            tokio::task::yield_now().await;
        }
    }

    /// Runs something that has to wait until the gate is open again.
    async fn held<T>(&self, run: impl Future<Output = T>) -> T {
        let open = async {
            self.until_waiting(1).await;
            let requests = self.fake.requests.lock().len();
            self.fake.close_gate(None);
            requests
        };
        let before = self.fake.requests.lock().len();
        let (came, requests) = tokio::join!(run, open);
        assert_eq!(requests, before, "it waited before anything was asked for");
        came
    }

    /// How long somebody waited, as often as somebody did.
    fn waits(&self) -> u64 {
        self.cluster.gate().gather()[0].get_metric()[0].get_histogram().get_sample_count()
    }
}

#[tokio::test]
async fn a_block_waits_before_it_writes_or_locks() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    rows(&client, "INSERT INTO t VALUES (5)").await.unwrap();
    let begun = [
        ("BEGIN", GATED),
        ("BEGIN; SELECT a FROM t; SAVEPOINT s", "DELETE FROM t WHERE a = 1"),
        ("BEGIN", "SELECT a FROM t WHERE a = 5 FOR UPDATE"),
        ("BEGIN", "TRUNCATE t"),
        ("BEGIN", "UPDATE r SET b = 'x'"),
        // What came after the savepoint is undone, and with it all that it has done.
        ("BEGIN; SAVEPOINT s; INSERT INTO t VALUES (9); ROLLBACK TO s", GATED),
    ];
    for (number, (first, sql)) in begun.into_iter().enumerate() {
        rows(&client, first).await.unwrap();
        server.gate(Some(number as u32 + 1)).await;
        rows(&client, "SELECT count(*) FROM t").await.unwrap();
        server.held(rows(&client, sql)).await.unwrap_or_else(|code| panic!("{sql}: {code}"));
        rows(&client, "ROLLBACK").await.unwrap();
        assert_eq!(server.waits(), number as u64 + 1);
    }
    // A string of several is a block, too; and so is a pipeline.
    server.gate(Some(50)).await;
    server.held(rows(&client, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")).await.unwrap();
    server.gate(Some(51)).await;
    let mut socket = server.session().await;
    let mut bytes: Vec<u8> =
        [3, 4].iter().flat_map(|a| execute(&format!("INSERT INTO t VALUES ({a})"))).collect();
    bytes.extend(message(b'S', b""));
    socket.write_all(&bytes).await.unwrap();
    let answers = server.held(until_ready(&mut socket)).await;
    assert!(answers.iter().all(|answer| answer.0 != b'E'));
    server.gate(Some(52)).await;
    rows(&client, "SET shoal.idempotency_key = 'k'").await.unwrap();
    server.held(rows(&client, "INSERT INTO t VALUES (6)")).await.unwrap();
    assert_eq!(count(&client).await, "6");
}

#[tokio::test]
async fn who_reads_or_is_alone_or_has_begun_goes_on() {
    let server = Server::start(Config::default()).await;
    let (client, begun) = (server.client().await, server.client().await);
    rows(&begun, "BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    server.gate(Some(1)).await;
    for sql in [
        "SELECT count(*) FROM t",
        "BEGIN; SELECT count(*) FROM t; COMMIT",
        "INSERT INTO t VALUES (2)",
        "INSERT INTO t VALUES (3), (4), (5), (6)",
        "UPDATE t SET b = 'x' WHERE a > 1",
        "SELECT a FROM t WHERE a = 2 FOR UPDATE",
        "SELECT 1; INSERT INTO t VALUES (7)",
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM t; COMMIT",
    ] {
        rows(&client, sql).await.unwrap_or_else(|code| panic!("{sql}: {code}"));
    }
    client.execute("INSERT INTO t VALUES (8)", &[]).await.unwrap();
    rows(&begun, "INSERT INTO t VALUES (9), (10), (11); SELECT a FROM t FOR UPDATE").await.unwrap();
    rows(&begun, "COMMIT").await.unwrap();
    assert_eq!((count(&client).await.as_str(), server.waits()), ("11", 0));
}

#[tokio::test]
async fn the_gate_is_kept_for_so_long_at_most() {
    let gate = Duration::from_millis(50);
    let server = Server::start(Config { gate, ..Config::default() }).await;
    let (client, other) = (server.client().await, server.client().await);
    server.gate(Some(1)).await;
    rows(&client, &format!("BEGIN; {GATED}; ROLLBACK")).await.unwrap();
    assert_eq!(server.waits(), 1);
    // Nobody waits for this attempt any more, though it still goes on.
    rows(&other, &format!("BEGIN; {GATED}; ROLLBACK")).await.unwrap();
    server.fake.reshape(|_| {});
    server.hears().await;
    rows(&other, &format!("BEGIN; {GATED}; ROLLBACK")).await.unwrap();
    assert_eq!(server.waits(), 1);
    server.gate(Some(2)).await;
    rows(&client, &format!("BEGIN; {GATED}; ROLLBACK")).await.unwrap();
    assert_eq!(server.waits(), 2);
}

#[tokio::test]
async fn who_waits_at_the_gate_can_be_cancelled_and_can_leave() {
    let server = Server::start(Config::default()).await;
    let (client, mut leaves) = (server.client().await, server.session().await);
    server.gate(Some(1)).await;
    rows(&client, "SET statement_timeout = 20; BEGIN").await.unwrap();
    assert_eq!(rows(&client, GATED).await, Err("57014".into()));
    assert_eq!(rows(&client, GATED).await, Err("25P02".into()));
    rows(&client, "ROLLBACK; SET statement_timeout = 0; BEGIN").await.unwrap();
    let cancel = async {
        server.until_waiting(1).await;
        client.cancel_token().cancel_query(NoTls).await.unwrap();
    };
    assert_eq!(tokio::join!(rows(&client, GATED), cancel).0, Err("57014".into()));
    let sql = format!("BEGIN; {GATED}\0");
    leaves.write_all(&message(b'Q', sql.as_bytes())).await.unwrap();
    server.until_waiting(1).await;
    drop(leaves);
    server.until_waiting(0).await;
    let asked: Vec<_> = server.fake.requests.lock().iter().map(|request| request.sql.clone()).collect();
    assert!(asked.is_empty() && server.fake.open_branches() == 0, "{asked:?}");
}

fn lines(keys: std::ops::Range<i64>) -> bytes::Bytes {
    keys.map(|key| format!("{key}\tcopied\n")).collect::<String>().into()
}

/// Copies these rows. What it came to.
async fn copy(client: &Client, keys: std::ops::Range<i64>) -> Result<u64, String> {
    let code =
        |error: tokio_postgres::Error| error.code().map_or_else(String::new, |code| code.code().to_owned());
    let sink = client.copy_in("COPY t FROM STDIN").await.map_err(code)?;
    futures::pin_mut!(sink);
    sink.send(lines(keys)).await.map_err(code)?;
    sink.finish().await.map_err(code)
}

#[tokio::test]
async fn a_copy_of_several_batches_waits_before_the_first() {
    let server = Server::start(Config { batch_bytes: 1 << 10, ..Config::default() }).await;
    let client = server.client().await;
    server.gate(Some(1)).await;
    assert_eq!(copy(&client, 0..5).await, Ok(5));
    assert_eq!(server.waits(), 0);
    assert_eq!(server.held(copy(&client, 100..600)).await, Ok(500));
    server.gate(Some(2)).await;
    rows(&client, "BEGIN").await.unwrap();
    assert_eq!(server.held(copy(&client, 600..605)).await, Ok(5));
    rows(&client, "COMMIT").await.unwrap();
    assert_eq!(count(&client).await, "510");
}

fn split(fake: &Fake) {
    fake.switch(&[1], &[(11, "-40"), (12, "40-80")]);
}

#[tokio::test]
async fn batches_of_a_copy_that_are_refused_are_placed_again() {
    // One batch or several, in a block or not.
    for (keys, begin) in [(0..12, ""), (0..12, "BEGIN"), (0..500, ""), (0..500, "BEGIN")] {
        let expected = keys.end.to_string();
        for change in [split as fn(&Fake), |fake| fake.unseal(&[1])] {
            let server = Server::start(Config { batch_bytes: 1 << 10, ..Config::default() }).await;
            let client = server.client().await;
            rows(&client, &format!("{begin};")).await.unwrap();
            server.fake.seal(&[1]);
            let (copied, ()) = tokio::join!(copy(&client, keys.clone()), server.fake.once_refused(change));
            assert_eq!(copied.map(|rows| rows.to_string()), Ok(expected.clone()), "{keys:?} {begin}");
            rows(&client, "COMMIT").await.unwrap();
            assert_eq!(count(&client).await, expected, "{keys:?} {begin}");
            assert_eq!(server.fake.open_branches(), 0);
        }
    }
    // One batch for several shards is a transaction of which nobody has seen anything.
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let late = Fault::Then(Some(Box::new(Fault::Before(sealed(Epoch(1))))), split);
    *server.fake.action_faults.lock() = vec![("prepare", late)];
    assert_eq!(copy(&client, 0..12).await, Ok(12));
    assert_eq!(count(&client).await, "12");
    // What it has written on the shard is lost with it.
    let server = Server::start(Config { batch_bytes: 1 << 10, ..Config::default() }).await;
    let client = server.client().await;
    let later = Fault::Then(Some(Box::new(Fault::Before(sealed(Epoch(1))))), split);
    let well = Fault::Then(None, |_: &Fake| {});
    server.fake.faults.lock().extend(std::iter::repeat_n(well, 20).chain([later]));
    assert_eq!(copy(&client, 0..2000).await, Err("40001".into()));
    assert_eq!(count(&client).await, "0");
}
