//! Sessions over real sockets: a driver's, and ones that send what no driver would.

mod gate;
mod gtid;
mod keys;
mod known;
mod levels;
mod roles;
mod switch;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::fake::{Fake, FakePeers, Fault, catalog_with};
use crate::server::Router;
use proto::services::{Access, Branch, BranchAccess, FragmentRequest, LockWait};
use proto::{SqlState, WireError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A router on a port of its own.
struct Server {
    address: SocketAddr,
    fake: Arc<Fake>,
    cluster: Arc<Cluster>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Fake::new(2);
        let router = Router::new(config, Arc::new(FakePeers(fake.clone())));
        let cluster = router.shared.executor.cluster.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            router
                .serve(listener, async {
                    let _ = stopped.await;
                })
                .await;
        });
        Self { address, fake, cluster, stop: Some(stop), task }
    }

    /// Waits until the router has heard how the shards are now.
    async fn hears(&self) {
        let epoch = self.fake.topology().epoch;
        while self.cluster.load().topology.epoch < epoch {
            tokio::task::yield_now().await;
        }
    }

    async fn client(&self) -> Client {
        self.client_with("").await
    }

    /// A client with this in its startup packet's options.
    async fn client_with(&self, options: &str) -> Client {
        let address = format!("host=127.0.0.1 port={} user=shoal dbname=shoal", self.address.port());
        let text = format!("{address} options='{options}'");
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A session by hand, up to the first ReadyForQuery.
    async fn session(&self) -> TcpStream {
        let mut socket = self.socket().await;
        socket.write_all(&startup(&["user", "shoal", "database", "shoal"])).await.unwrap();
        let messages = until_ready(&mut socket).await;
        assert_eq!(messages.first().map(|m| m.0), Some(b'R'));
        socket
    }
}

fn startup(parameters: &[&str]) -> Vec<u8> {
    let mut body = (3u32 << 16).to_be_bytes().to_vec();
    for text in parameters {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

async fn next(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let tag =
        tokio::time::timeout(Duration::from_secs(20), socket.read_u8()).await.expect("an answer").ok()?;
    let len = socket.read_u32().await.ok()?;
    let mut body = vec![0; len as usize - 4];
    socket.read_exact(&mut body).await.ok()?;
    Some((tag, body))
}

async fn until_ready(socket: &mut TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some(message) = next(socket).await {
        let ready = message.0 == b'Z';
        messages.push(message);
        if ready {
            break;
        }
    }
    messages
}

/// A field of an ErrorResponse.
fn field(body: &[u8], code: u8) -> String {
    let mut fields = body.split(|b| *b == 0);
    let found = fields.find(|f| f.first() == Some(&code)).unwrap_or_default();
    String::from_utf8_lossy(found.get(1..).unwrap_or_default()).into_owned()
}

/// The SQLSTATE of the one answer, after which the connection is closed.
async fn last_words(socket: &mut TcpStream) -> String {
    let (tag, body) = next(socket).await.expect("an error");
    assert_eq!((tag, field(&body, b'S').as_str()), (b'E', "FATAL"));
    assert!(next(socket).await.is_none(), "the connection must be closed");
    field(&body, b'C')
}

#[tokio::test]
async fn what_is_no_client_hears_why_and_is_left() {
    let server = Server::start(Config::default()).await;
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        (vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0], "08P01"),
        (startup(&["user", "other"]), "28000"),
        (startup(&["user", "shoal", "database", "other"]), "3D000"),
        (startup(&["user", "shoal", "client_encoding", "LATIN1"]), "22023"),
        (startup(&["user", "shoal", "nonsense", "1"]), "42704"),
        (startup(&["database", "shoal"]), "28000"),
    ] {
        let mut socket = server.socket().await;
        socket.write_all(&bytes).await.unwrap();
        assert_eq!(last_words(&mut socket).await, code, "{bytes:?}");
    }
    server.session().await;
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_its_session_alone() {
    let server = Server::start(Config { max_message_bytes: 1 << 20, ..Config::default() }).await;
    let mut other = server.session().await;
    for (bytes, code) in
        [(&b"Q\x40\0\0\0"[..], "54000"), (b"Q\0\0\0\x01", "08P01"), (b"\x01\0\0\0\x04", "08P01")]
    {
        let mut socket = server.session().await;
        socket.write_all(bytes).await.unwrap();
        assert_eq!(last_words(&mut socket).await, code);
    }
    other.write_all(&message(b'Q', b"\0")).await.unwrap();
    let answers = until_ready(&mut other).await;
    assert_eq!(answers.iter().map(|m| m.0).collect::<Vec<_>>(), b"IZ");
}

#[tokio::test]
async fn an_error_skips_to_sync() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    let mut pipeline = message(b'B', b"\0nope\0\0\0\0\0\0\0");
    pipeline.extend(message(b'E', b"\0\0\0\0\0"));
    pipeline.extend(message(b'P', b"\0\0\0\0"));
    pipeline.extend(message(b'S', b""));
    // An empty statement, described, bound and run twice.
    pipeline.extend(message(b'P', b"e\0 -- nothing\0\0\0"));
    pipeline.extend(message(b'D', b"Se\0"));
    pipeline.extend(message(b'B', b"p\0e\0\0\0\0\0\0\0"));
    pipeline.extend(message(b'E', b"p\0\0\0\0\0"));
    pipeline.extend(message(b'C', b"Pp\0"));
    pipeline.extend(message(b'P', b"e\0\0\0\0"));
    pipeline.extend(message(b'S', b""));
    socket.write_all(&pipeline).await.unwrap();
    let first = until_ready(&mut socket).await;
    assert_eq!(first.iter().map(|m| m.0).collect::<Vec<_>>(), b"EZ");
    assert_eq!(field(&first[0].1, b'C'), "26000");
    let second = until_ready(&mut socket).await;
    assert_eq!(second.iter().map(|m| m.0).collect::<Vec<_>>(), b"1tn2I3EZ");
    assert_eq!(field(&second[6].1, b'C'), "42P05");
}

#[tokio::test]
async fn a_malformed_body_leaves_the_session_usable() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    socket.write_all(&message(b'Q', b"SELECT '\xff'\0")).await.unwrap();
    let answers = until_ready(&mut socket).await;
    assert_eq!(field(&answers[0].1, b'C'), "22021");
    socket.write_all(&message(b'B', b"\0\0\0\x05")).await.unwrap();
    socket.write_all(&message(b'S', b"")).await.unwrap();
    let answers = until_ready(&mut socket).await;
    assert_eq!(field(&answers[0].1, b'C'), "08P01");
}

#[tokio::test]
async fn one_connection_too_many_is_refused() {
    let server = Server::start(Config { max_connections: 1, ..Config::default() }).await;
    let first = server.session().await;
    let mut second = server.socket().await;
    second.write_all(&startup(&["user", "shoal"])).await.unwrap();
    assert_eq!(last_words(&mut second).await, "53300");
    drop(first);
    // The first one's place is free as soon as the server has noticed.
    loop {
        let mut socket = server.socket().await;
        socket.write_all(&startup(&["user", "shoal"])).await.unwrap();
        if next(&mut socket).await.map(|m| m.0) == Some(b'R') {
            break;
        }
    }
}

#[tokio::test]
async fn a_stopping_server_says_goodbye() {
    let mut server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(last_words(&mut socket).await, "57P01");
    server.task.await.unwrap();
}

#[tokio::test]
async fn the_startup_timeout_ends_a_silent_connection() {
    let server =
        Server::start(Config { startup_timeout: Duration::from_millis(20), ..Config::default() }).await;
    let mut socket = server.socket().await;
    assert!(next(&mut socket).await.is_none());
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
    let messages = client.simple_query(sql).await.map_err(|e| e.code().unwrap().code().to_owned())?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

async fn shown(client: &Client, name: &str) -> String {
    rows(client, &format!("SHOW {name}")).await.unwrap()[0][0].clone().unwrap()
}

#[tokio::test]
async fn settings_follow_their_transactions() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("SET application_name = 'one'").await.unwrap();
    client.batch_execute("BEGIN; SET application_name = 'two'").await.unwrap();
    assert_eq!(shown(&client, "application_name").await, "two");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(shown(&client, "application_name").await, "one");
    client.batch_execute("BEGIN; SET LOCAL application_name = 'three'").await.unwrap();
    assert_eq!(shown(&client, "application_name").await, "three");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(shown(&client, "application_name").await, "one");
    assert_eq!(rows(&client, "SET nonsense = 1").await, Err("42704".into()));
    client.batch_execute("RESET ALL; DISCARD ALL").await.unwrap();
    // The driver said none at startup.
    assert_eq!(shown(&client, "application_name").await, "");
}

#[tokio::test]
async fn what_a_string_has_set_is_undone_with_it() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("SET application_name = 'a'").await.unwrap();
    assert_eq!(rows(&client, "SET application_name = 'b'; SELECT 1 / 0").await, Err("22012".into()));
    assert_eq!(shown(&client, "application_name").await, "a");
    // What a COMMIT in it has ended stays, what a BEGIN has taken in goes with the block.
    let halves = "SET application_name = 'c'; COMMIT; SET application_name = 'd'; SELECT 1 / 0";
    assert_eq!(rows(&client, halves).await, Err("22012".into()));
    assert_eq!(shown(&client, "application_name").await, "c");
    client.batch_execute("SET application_name = 'd'; BEGIN; SET application_name = 'e'").await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(shown(&client, "application_name").await, "c");
    assert_eq!(rows(&client, "RESET ALL; SELECT 1 / 0").await, Err("22012".into()));
    assert_eq!(shown(&client, "application_name").await, "c");
    client.batch_execute("SET application_name = 'f'; SELECT 1").await.unwrap();
    assert_eq!(rows(&client, "SELECT 1 / 0").await, Err("22012".into()));
    assert_eq!(shown(&client, "application_name").await, "f");
}

#[tokio::test]
async fn a_block_begins_where_one_ends_with_and_chain() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    assert_eq!(rows(&client, "COMMIT AND CHAIN").await, Err("25P01".into()));
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1); COMMIT AND CHAIN").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (2); ROLLBACK AND CHAIN").await.unwrap();
    assert_eq!(rows(&client, "SELECT 1 / 0").await, Err("22012".into()));
    client.batch_execute("COMMIT AND CHAIN; INSERT INTO t VALUES (3); COMMIT AND NO CHAIN").await.unwrap();
    assert_eq!(rows(&client, "ROLLBACK AND CHAIN").await, Err("25P01".into()));
    assert_eq!(count(&client).await, "2");
    client.batch_execute("BEGIN READ ONLY; COMMIT AND CHAIN").await.unwrap();
    assert_eq!(rows(&client, "INSERT INTO t VALUES (4)").await, Err("25006".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn a_failed_block_waits_for_its_end() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(rows(&client, "SHOW nonsense").await, Err("42704".into()));
    assert_eq!(rows(&client, "SHOW application_name").await, Err("25P02".into()));
    assert_eq!(rows(&client, "SHO application_name").await, Err("42601".into()));
    client.batch_execute("COMMIT").await.unwrap();
    shown(&client, "application_name").await;
    assert_eq!(rows(&client, "BEGIN ISOLATION LEVEL SERIALIZABLE").await, Err("0A000".into()));
    assert_eq!(rows(&client, "SAVEPOINT x").await, Err("25P01".into()));
    assert_eq!(rows(&client, "SHOW server_version; SELEC").await, Err("42601".into()));
}

#[tokio::test]
async fn queries_over_both_protocols() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let inserted =
        client.execute("INSERT INTO t VALUES ($1, $2), (2, 'two'), (3, NULL)", &[&1, &"one"]).await;
    assert_eq!(inserted.unwrap(), 3);
    assert_eq!(server.fake.on_each("SELECT count(*) FROM t16384").iter().sum::<i64>(), 3);
    let row = client.query_one("SELECT a, b FROM t WHERE a = $1", &[&1]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (1, "one"));
    let all = rows(&client, "SELECT b, a FROM t ORDER BY a DESC").await.unwrap();
    let expected = [(None, "3"), (Some("two"), "2"), (Some("one"), "1")];
    let expected: Vec<_> = expected.map(|(b, a)| vec![b.map(str::to_owned), Some(a.to_owned())]).into();
    assert_eq!(all, expected);
    let error = client.execute("INSERT INTO t VALUES (1, 'again')", &[]).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!((error.code().code(), error.constraint()), ("23505", Some("t_pkey")));
    assert_eq!(client.execute("UPDATE t SET b = 'x' WHERE a = 1", &[]).await.unwrap(), 1);
    assert!(server.fake.acted("commit").is_empty(), "one shard's write is no transaction over shards");
    assert_eq!(client.execute("UPDATE t SET b = 'y'", &[]).await.unwrap(), 3);
    assert_eq!(
        rows(&client, "SELECT count(*) FROM t WHERE b = 'y'").await.unwrap(),
        [[Some("3".to_owned())]]
    );
}

#[tokio::test]
async fn the_catalog_can_be_asked() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let tables =
        "SELECT relname FROM pg_catalog.pg_class WHERE relkind = 'r' AND relnamespace = 2200 ORDER BY 1";
    assert_eq!(rows(&client, tables).await.unwrap(), [[Some("r".to_owned())], [Some("t".to_owned())]]);
    let setting = "SELECT setting FROM pg_settings WHERE name = 'application_name'";
    client.batch_execute("SET application_name = 'x'").await.unwrap();
    assert_eq!(rows(&client, setting).await.unwrap(), [[Some("x".to_owned())]]);
}

#[tokio::test]
async fn explain_shows_the_shards() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let lines = rows(&client, "EXPLAIN SELECT a FROM t WHERE a = 1").await.unwrap().concat();
    let text: Vec<_> = lines.into_iter().flatten().collect();
    assert!(text.iter().any(|line| line.contains("main/")), "{text:?}");
    let lines = rows(&client, "EXPLAIN ANALYZE SELECT count(*) FROM t").await.unwrap().concat();
    let text: Vec<_> = lines.into_iter().flatten().collect();
    assert!(text.iter().any(|line| line.contains("main/-80: rows=1")), "{text:?}");
    assert_eq!(rows(&client, "EXPLAIN ANALYZE DELETE FROM t WHERE a = 1").await, Err("0A000".into()));
}

#[tokio::test]
async fn portals_return_rows_in_parts() {
    let server = Server::start(Config::default()).await;
    let mut client = server.client().await;
    client.batch_execute("INSERT INTO t VALUES (1), (2), (3), (4), (5)").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT a FROM t ORDER BY a", &[]).await.unwrap();
    for expected in [vec![1, 2], vec![3, 4], vec![5], vec![]] {
        let rows = transaction.query_portal(&portal, 2).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), expected);
    }
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_plan_follows_the_catalog() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let statement = client.prepare("SELECT a FROM t WHERE a = $1").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    server.fake.set_version(7);
    assert_eq!(client.query(&statement, &[&1]).await.unwrap().len(), 1);
    assert_eq!(rows(&client, "SELECT a FROM t WHERE a = 1").await.unwrap().len(), 1);
}

/// Nobody answers who could say which catalog is the newest.
fn silence_coordinator(server: &Server) {
    let nobody = WireError::internal("no leader").with_retry(proto::Retry::NotLeader(None));
    let silence = vec![("status", Fault::Before(nobody)); 10_000];
    server.fake.action_faults.lock().extend(silence);
}

#[tokio::test]
async fn nothing_is_said_to_be_missing_by_an_old_catalog() {
    let config = Config { retry_timeout: Duration::from_millis(300), ..Config::default() };
    let server = Server::start(config).await;
    let client = server.client().await;
    let statements = [
        "SELECT a FROM late",
        "SELECT late FROM t",
        "SELECT nextval('late')",
        "DROP TABLE late",
        "DROP TABLE IF EXISTS late",
        "ALTER TABLE IF EXISTS late ADD c int",
        "CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY)",
        "CREATE TABLE t (a int PRIMARY KEY)",
    ];
    silence_coordinator(&server);
    for sql in statements {
        assert_eq!(rows(&client, sql).await, Err("57P03".into()), "{sql}");
    }
    // What needs no word on the catalog goes on, and so does a failed block.
    assert_eq!(rows(&client, "SELECT a FROM t").await, Ok(vec![]));
    assert_eq!(rows(&client, "SELECT a, FROM t").await, Err("42601".into()));
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(rows(&client, "SELECT a FROM late").await, Err("57P03".into()));
    assert_eq!(rows(&client, "SELECT a FROM late").await, Err("25P02".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    server.fake.action_faults.lock().clear();
    assert_eq!(rows(&client, "SELECT a FROM late").await, Err("42P01".into()));
    assert_eq!(rows(&client, "SELECT late FROM t").await, Err("42703".into()));
    assert_eq!(rows(&client, "DROP TABLE IF EXISTS late").await, Ok(vec![]));
}

#[tokio::test]
async fn the_coordinator_knows_what_a_router_has_not_heard_of() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    assert_eq!(rows(&client, "SELECT a FROM late WHERE a = 1").await, Err("42P01".into()));
    *server.fake.untold.lock() = Some(catalog_with(9, Some("late")).into());
    let found = rows(&client, "EXPLAIN SELECT a FROM late WHERE a = 1").await;
    assert!(found.is_ok(), "{found:?}");
    // One that doesn't answer is asked again.
    server.fake.action_faults.lock().push(("status", Fault::Hang));
    *server.fake.untold.lock() = Some(catalog_with(10, Some("later")).into());
    let found = rows(&client, "EXPLAIN SELECT a FROM later WHERE a = 1").await;
    assert!(found.is_ok(), "{found:?}");
}

#[tokio::test]
async fn copy_in_and_out() {
    use futures::{SinkExt, StreamExt};
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
    futures::pin_mut!(sink);
    sink.send(bytes::Bytes::from_static(b"1\tone\n2\t")).await.unwrap();
    sink.send(bytes::Bytes::from_static(b"a\\tb\n3\t\\N\n")).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 3);
    let out =
        client.copy_out("COPY (SELECT a, b FROM t ORDER BY a) TO STDOUT WITH (FORMAT csv, HEADER)").await;
    let pieces: Vec<_> = out.unwrap().map(|piece| piece.unwrap()).collect().await;
    assert_eq!(pieces.concat(), b"a,b\n1,one\n2,a\tb\n3,\n");
    let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
    futures::pin_mut!(sink);
    sink.send(bytes::Bytes::from_static(b"x\tone\n")).await.unwrap();
    let error: tokio_postgres::Error = sink.finish().await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().where_(), Some("COPY t, line 1, column a: \"x\""));
    assert_eq!(rows(&client, "SELECT count(*) FROM t").await.unwrap(), [[Some("3".to_owned())]]);
}

#[tokio::test]
async fn a_cancel_request_ends_a_query_and_not_the_session() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    server.fake.faults.lock().push_back(Fault::Hang);
    let cancel = client.cancel_token();
    let query = client.simple_query("SELECT a FROM t");
    let canceling = async {
        while server.fake.requests.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let both = async { tokio::join!(query, canceling) };
    let (result, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!(result.unwrap_err().code().unwrap().code(), "57014");
    rows(&client, "SELECT a FROM t").await.unwrap();
    client.batch_execute("SET statement_timeout = 20").await.unwrap();
    server.fake.faults.lock().push_back(Fault::Hang);
    assert_eq!(rows(&client, "SELECT a FROM t").await, Err("57014".into()));
}

async fn count(client: &Client) -> String {
    rows(client, "SELECT count(*) FROM t").await.unwrap()[0][0].clone().unwrap()
}

#[tokio::test]
async fn a_block_is_all_or_nothing_and_sees_itself() {
    let server = Server::start(Config::default()).await;
    let (client, other) = (server.client().await, server.client().await);
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1), (2), (3), (4), (5)").await.unwrap();
    client.batch_execute("UPDATE t SET b = 'x' WHERE a < 4").await.unwrap();
    client.batch_execute("DELETE FROM t WHERE a = 1").await.unwrap();
    assert_eq!((count(&client).await.as_str(), count(&other).await.as_str()), ("4", "0"));
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&other).await, "4");
    client.batch_execute("BEGIN; DELETE FROM t; ROLLBACK").await.unwrap();
    assert_eq!(count(&other).await, "4");
    client.batch_execute("BEGIN; DELETE FROM t").await.unwrap();
    assert_eq!(rows(&client, "SELECT nonsense").await, Err("42703".into()));
    assert_eq!(rows(&client, "SELECT 1").await, Err("25P02".into()));
    assert_eq!(server.fake.open_branches(), 0, "a failed block holds nothing any more");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&client).await, "4");
}

#[tokio::test]
async fn savepoints_are_gone_back_to() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a").await.unwrap();
    client.batch_execute("SET application_name = 'inner'; INSERT INTO t VALUES (2), (3)").await.unwrap();
    assert_eq!(rows(&client, "INSERT INTO t VALUES (4), (5), (6), (1)").await, Err("23505".into()));
    assert_eq!(
        server.fake.acted("rollback to"),
        [1, 2],
        "what came after the savepoint is lost, and let go at once"
    );
    assert_eq!(rows(&client, "SAVEPOINT b").await, Err("25P02".into()));
    assert_eq!(rows(&client, "ROLLBACK TO b").await, Err("3B001".into()));
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    assert_eq!((count(&client).await.as_str(), shown(&client, "application_name").await.as_str()), ("1", ""));
    client.batch_execute("INSERT INTO t VALUES (2); SAVEPOINT b; INSERT INTO t VALUES (7)").await.unwrap();
    client.batch_execute("ROLLBACK TO SAVEPOINT b; RELEASE a").await.unwrap();
    assert_eq!(rows(&client, "ROLLBACK TO b").await, Err("3B001".into()));
    client.batch_execute("ROLLBACK; BEGIN; SAVEPOINT a; INSERT INTO t VALUES (1), (2), (3)").await.unwrap();
    client.batch_execute("ROLLBACK TO a; INSERT INTO t VALUES (9); COMMIT").await.unwrap();
    assert_eq!(rows(&client, "SELECT a FROM t").await.unwrap(), [[Some("9".to_owned())]]);
}

#[tokio::test]
async fn a_lost_branch_ends_its_block_for_good() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("BEGIN; SAVEPOINT a; INSERT INTO t VALUES (1)").await.unwrap();
    server.fake.lose_branches();
    assert_eq!(rows(&client, "DELETE FROM t WHERE a = 1").await, Err("40001".into()));
    assert_eq!(rows(&client, "ROLLBACK TO a").await, Err("40001".into()));
    client.batch_execute("ROLLBACK; BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    server.fake.lose_branches();
    assert_eq!(rows(&client, "COMMIT").await, Err("40001".into()));
    assert_eq!(count(&client).await, "0");
}

#[tokio::test]
async fn a_string_is_one_transaction() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let twice = "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); INSERT INTO t VALUES (1)";
    assert_eq!(rows(&client, twice).await, Err("23505".into()));
    assert_eq!((count(&client).await.as_str(), server.fake.open_branches()), ("0", 0));
    client.batch_execute("INSERT INTO t VALUES (1); SELECT 1; INSERT INTO t VALUES (2)").await.unwrap();
    // A COMMIT in it is a commit, and what comes after it another transaction.
    let halves = "INSERT INTO t VALUES (3); COMMIT; INSERT INTO t VALUES (4); SELECT 1 / 0";
    assert_eq!(rows(&client, halves).await, Err("22012".into()));
    assert_eq!(count(&client).await, "3");
    // A BEGIN in it takes in what came before.
    client.batch_execute("INSERT INTO t VALUES (4); BEGIN; INSERT INTO t VALUES (5)").await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(count(&client).await, "3");
    server.fake.actions.lock().clear();
    client.batch_execute("SELECT 1; INSERT INTO t VALUES (6)").await.unwrap();
    assert!(server.fake.actions.lock().is_empty(), "its only write is alone in it");
}

#[tokio::test]
async fn a_commit_that_fails_is_told_instead_of_the_last_statements_end() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    let lost = WireError::new(SqlState::SERIALIZATION_FAILURE, "lost");
    server.fake.action_faults.lock().push(("commit", Fault::Before(lost)));
    let sql = b"INSERT INTO t VALUES (1); UPDATE t SET b = 'x' WHERE a = 1; SELECT 1\0";
    socket.write_all(&message(b'Q', sql)).await.unwrap();
    let answers = until_ready(&mut socket).await;
    assert_eq!(answers.iter().map(|m| m.0).collect::<Vec<_>>(), b"CCTDEZ");
    assert_eq!((field(&answers[4].1, b'C').as_str(), answers[5].1[0]), ("40001", b'I'));
}

/// Bind and Execute of a statement without parameters.
fn execute(statement: &str) -> Vec<u8> {
    let mut bytes = message(b'P', format!("\0{statement}\0\0\0").as_bytes());
    bytes.extend(message(b'B', b"\0\0\0\0\0\0\0\0"));
    bytes.extend(message(b'E', b"\0\0\0\0\0"));
    bytes
}

#[tokio::test]
async fn a_pipeline_is_one_transaction_up_to_its_sync() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let mut socket = server.session().await;
    let mut send = async |statements: &[&str]| {
        let mut bytes: Vec<u8> = statements.iter().flat_map(|sql| execute(sql)).collect();
        bytes.extend(message(b'S', b""));
        socket.write_all(&bytes).await.unwrap();
        let answers = until_ready(&mut socket).await;
        let errors = answers.iter().filter(|m| m.0 == b'E').map(|m| field(&m.1, b'C'));
        (errors.collect::<Vec<_>>(), answers.last().unwrap().1[0])
    };
    let (one, two) = ("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)");
    assert_eq!(send(&[one, two, one]).await, (vec!["23505".to_owned()], b'I'));
    assert_eq!((count(&client).await.as_str(), server.fake.open_branches()), ("0", 0));
    assert_eq!(send(&[one, two]).await, (vec![], b'I'));
    assert_eq!(count(&client).await, "2");
    server.fake.actions.lock().clear();
    assert_eq!(send(&["INSERT INTO t VALUES (3)"]).await, (vec![], b'I'));
    assert!(
        server.fake.actions.lock().is_empty(),
        "a statement alone before its Sync is a transaction by itself"
    );
    assert_eq!(send(&["BEGIN", "INSERT INTO t VALUES (4)"]).await, (vec![], b'T'));
    assert_eq!(count(&client).await, "3");
    assert_eq!(send(&["DELETE FROM t", one, one]).await, (vec!["23505".to_owned()], b'E'));
    assert_eq!(send(&["COMMIT"]).await, (vec![], b'I'));
    assert_eq!(count(&client).await, "3");
    let lost = WireError::new(SqlState::SERIALIZATION_FAILURE, "lost");
    server.fake.action_faults.lock().push(("commit", Fault::Before(lost)));
    assert_eq!(send(&["DELETE FROM t WHERE a = 1", "SELECT 1"]).await, (vec!["40001".to_owned()], b'I'));
}

#[tokio::test]
async fn who_leaves_lets_go() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1), (2), (3)").await.unwrap();
    assert!(server.fake.open_branches() > 0);
    drop(client);
    let gone = async {
        while server.fake.open_branches() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    let mut socket = server.session().await;
    let sql = b"SET idle_in_transaction_session_timeout = 20; BEGIN; INSERT INTO t VALUES (1)\0";
    socket.write_all(&message(b'Q', sql)).await.unwrap();
    until_ready(&mut socket).await;
    assert_eq!(last_words(&mut socket).await, "25P03");
}

#[tokio::test]
async fn schema_changes_keep_out_of_transactions() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("INSERT INTO t VALUES (1), (2), (3)").await.unwrap();
    assert_eq!(rows(&client, "BEGIN; INSERT INTO t VALUES (4); DROP TABLE r").await, Err("0A000".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(rows(&client, "BEGIN; DROP TABLE r; INSERT INTO t VALUES (4)").await, Err("0A000".into()));
    client.batch_execute("ROLLBACK; BEGIN; DROP TABLE r; SELECT 1; COMMIT").await.unwrap();
    // TRUNCATE is part of the transaction.
    client.batch_execute("BEGIN; TRUNCATE t").await.unwrap();
    assert_eq!(count(&client).await, "0");
    client.batch_execute("INSERT INTO t VALUES (1); ROLLBACK").await.unwrap();
    assert_eq!(count(&client).await, "3");
    client.batch_execute("BEGIN; TRUNCATE t, r; INSERT INTO t VALUES (9); COMMIT").await.unwrap();
    assert_eq!(count(&client).await, "1");
}

#[tokio::test]
async fn rows_are_locked_in_branches() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')").await.unwrap();
    server.fake.actions.lock().clear();
    // By itself it locks and lets go.
    let one = "SELECT b FROM t WHERE a = 1 FOR UPDATE";
    assert_eq!(rows(&client, one).await.unwrap(), [[Some("one".to_owned())]]);
    assert_eq!((server.fake.acted("let go").len(), server.fake.open_branches()), (1, 0));
    // Nobody has seen anything of it if it's ended for others' sake, alone or within a statement.
    let deadlock = || {
        let deadlock = WireError::new(SqlState::DEADLOCK_DETECTED, "deadlock detected");
        server.fake.faults.lock().push_back(Fault::Before(deadlock));
    };
    for again in [one, "SELECT (SELECT b FROM t WHERE a = 1 FOR UPDATE)"] {
        deadlock();
        assert_eq!(rows(&client, again).await.unwrap(), [[Some("one".to_owned())]]);
    }
    client.batch_execute("BEGIN").await.unwrap();
    deadlock();
    assert_eq!(rows(&client, one).await, Err("40P01".into()));
    client.batch_execute("ROLLBACK; BEGIN").await.unwrap();
    assert_eq!(rows(&client, one).await.unwrap(), [[Some("one".to_owned())]]);
    assert_eq!(server.fake.open_branches(), 1);
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!((server.fake.acted("commit").len(), server.fake.open_branches()), (1, 0));
    client.batch_execute("BEGIN; SELECT b FROM t WHERE a = 9 FOR SHARE; COMMIT").await.unwrap();
    assert_eq!(server.fake.acted("commit").len(), 1, "no row, no lock, no commit");
    client.batch_execute("BEGIN").await.unwrap();
    let all = rows(&client, "SELECT a FROM t ORDER BY a DESC LIMIT 2 FOR NO KEY UPDATE SKIP LOCKED").await;
    assert_eq!(all.unwrap().concat(), [Some("3".to_owned()), Some("2".to_owned())]);
    let is_lock = |request: &FragmentRequest| {
        matches!(
            &request.access,
            Access::Branch {
                access: BranchAccess::Lock { limit: Some(2), rows, .. },
                branch: Branch { statement: 1, .. },
            } if rows[0].wait == LockWait::SkipLocked
        )
    };
    assert_eq!(server.fake.requests.lock().iter().filter(|request| is_lock(request)).count(), 2);
    client.batch_execute("ROLLBACK; BEGIN READ ONLY").await.unwrap();
    assert_eq!(rows(&client, one).await, Err("25006".into()));
}

#[tokio::test]
async fn a_plan_that_is_old_on_one_shard_is_made_again_for_all() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1), (2), (3), (4)").await.unwrap();
    let stale = WireError::internal("stale").with_retry(proto::Retry::StaleSchema(proto::SchemaVersion(7)));
    // The update has run on the first shard when the second refuses it.
    server.fake.faults.lock().extend([
        Fault::After(WireError::internal("x").with_retry(proto::Retry::Unknown)),
        Fault::Before(stale),
    ]);
    server.fake.set_version(7);
    client.batch_execute("UPDATE t SET b = coalesce(b, '') || 'x'").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    let once = "SELECT count(*) FROM t WHERE b = 'x'";
    assert_eq!(rows(&client, once).await.unwrap(), [[Some("4".to_owned())]]);
}

#[tokio::test]
async fn a_row_that_breaks_a_constraint_is_told() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("INSERT INTO t VALUES (1, 'one')").await.unwrap();
    let told = async |sql: &str| {
        let error = client.batch_execute(sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        (error.code().code().to_owned(), error.detail().map(str::to_owned))
    };
    let unique = |detail: Option<&str>| ("23505".to_owned(), detail.map(str::to_owned));
    assert_eq!(told("INSERT INTO t VALUES (1, 'x')").await, unique(Some("Key (a)=(1) already exists.")));
    assert_eq!(told("BEGIN; INSERT INTO t SELECT 1").await, unique(Some("Key (a)=(1) already exists.")));
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(
        told("INSERT INTO t VALUES (7, 'x'), (1, 'y')").await,
        unique(None),
        "nobody knows which it was"
    );
    let null = ("23502".to_owned(), Some("Failing row contains (null, y).".to_owned()));
    assert_eq!(told("INSERT INTO t VALUES (7, 'x'), (NULL, 'y')").await, null);
}
