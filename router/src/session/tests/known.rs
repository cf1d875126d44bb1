//! What sessions know beside rows: what errors were made from, and of which commits nobody has told them.

use super::gtid::{gtid, told};
use super::levels::{ROW, levels_of, server};
use super::*;
use futures::SinkExt;
use proto::{LogIndex, ShardId};

const FOUR: &str = "INSERT INTO t VALUES (1), (2), (3), (4)";

/// The next error that is put in the way, and what the session's set has once it was told.
struct Errors {
    index: u64,
}

impl Errors {
    fn next(&mut self) -> WireError {
        self.index += 1;
        WireError::new(SqlState::UNIQUE_VIOLATION, "x").made_from(ShardId(1), LogIndex(self.index))
    }

    fn befall(&mut self, server: &Server) {
        let error = self.next();
        server.fake.faults.lock().push_back(Fault::Before(error));
    }

    async fn assert_seen(&self, client: &Client, what: &str) {
        let position = format!("main/-80.1:{}", self.index);
        let gtid = gtid(client).await;
        assert!(gtid.split(',').any(|part| part == position), "{what}: {gtid} lacks {position}");
        // No log has come so far.
        client.batch_execute("RESET shoal.gtid").await.unwrap();
    }
}

#[tokio::test]
async fn an_error_is_seen_like_rows() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let mut errors = Errors { index: 1000 };
    for sql in [
        "INSERT INTO t VALUES (1)",
        FOUR,
        "UPDATE t SET b = 'x'",
        "DELETE FROM t WHERE a = 1",
        ROW,
        "SELECT count(*) FROM t",
        "SELECT b FROM t ORDER BY a",
        "/*+ read(session) */ SELECT b FROM t WHERE a = 1",
        "/*+ read(eventual) */ SELECT count(*) FROM t",
        "SELECT b FROM t WHERE a = 1 FOR UPDATE",
        "COPY t TO STDOUT",
        "INSERT INTO t SELECT a, b FROM r",
        "BEGIN; INSERT INTO t VALUES (1)",
        "BEGIN; SAVEPOINT a; SELECT count(*) FROM t",
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM t",
        "INSERT INTO t VALUES (1); SELECT 1",
    ] {
        errors.befall(&server);
        assert_eq!(rows(&client, sql).await, Err("23505".into()), "{sql}");
        client.batch_execute("ROLLBACK").await.unwrap();
        errors.assert_seen(&client, sql).await;
    }
    let prepared = client.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
    errors.befall(&server);
    client.execute(&prepared, &[&1]).await.unwrap_err();
    errors.assert_seen(&client, "a pipeline").await;
    errors.befall(&server);
    let mut copy = Box::pin(client.copy_in("COPY t FROM STDIN").await.unwrap());
    copy.send(bytes::Bytes::from_static(b"1\tx\n")).await.unwrap();
    copy.close().await.unwrap_err();
    errors.assert_seen(&client, "a COPY").await;
    // Votes, and the commit of a block on one shard.
    for (action, write) in [("prepare", FOUR), ("commit", "INSERT INTO t VALUES (1)")] {
        let error = errors.next();
        server.fake.action_faults.lock().push((action, Fault::Before(error)));
        assert!(rows(&client, &format!("BEGIN; {write}; COMMIT")).await.is_err());
        errors.assert_seen(&client, action).await;
    }
}

#[tokio::test]
async fn what_is_told_in_the_place_of_an_error_is_seen_like_it() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let mut errors = Errors { index: 1000 };
    let unknown = WireError::new(SqlState::CANNOT_CONNECT_NOW, "x").with_retry(proto::Retry::Unknown);
    server.fake.faults.lock().push_back(Fault::Before(unknown));
    errors.befall(&server);
    assert_eq!(rows(&client, "INSERT INTO t VALUES (1)").await, Err("08007".into()));
    errors.assert_seen(&client, "an outcome that isn't known").await;
}

#[tokio::test]
async fn a_token_says_where_a_commit_was_not_heard_of() {
    let server = server().await;
    let client = server.client_with("-c shoal.read_consistency=session").await;
    let levels = async |sql: &str| levels_of(&server, &client, sql).await;
    client.batch_execute(FOUR).await.unwrap();
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    let both = gtid(&client).await;
    let unheard = both.replace(',', ",main/-80.1:?,") + ",main/80-.1:?";
    client.batch_execute(&format!("SET shoal.gtid = '{unheard}'")).await.unwrap();
    assert_eq!(gtid(&client).await, unheard);
    // Each shard's leader is asked once.
    assert_eq!(levels("SELECT count(*) FROM t").await, ["strong", "strong"]);
    assert_eq!(gtid(&client).await, both);
    assert_eq!(levels("SELECT count(*) FROM t").await, ["session", "session"]);
    // Also by who writes or locks: a transaction by itself, a statement of one, and its commit.
    let each: Vec<_> = (11..19).map(|a| format!("INSERT INTO t VALUES ({a})")).collect();
    for sqls in [&each[..], &["BEGIN; UPDATE t SET b = 'x'".into()], &["SELECT b FROM t FOR UPDATE".into()]] {
        client.batch_execute("SET shoal.gtid = 'main/-80.1:?,main/80-.1:?'").await.unwrap();
        for sql in sqls {
            client.batch_execute(sql).await.unwrap();
        }
        assert!(!gtid(&client).await.contains('?'), "{sqls:?}");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    client.batch_execute("BEGIN; UPDATE t SET b = 'y'").await.unwrap();
    client.batch_execute("SET shoal.gtid = 'main/-80.1:?,main/80-.1:?'; COMMIT").await.unwrap();
    assert!(!gtid(&client).await.contains('?'));
    // One that began with it goes back to it.
    let token = "main/-80.1:?";
    let begun = server.client_with(&format!("-c shoal.gtid={token}")).await;
    rows(&begun, "SELECT count(*) FROM t").await.unwrap();
    assert!(!gtid(&begun).await.contains('?'));
    begun.batch_execute("RESET shoal.gtid").await.unwrap();
    assert_eq!(gtid(&begun).await, token);
}

#[tokio::test]
async fn a_block_tells_on_what_it_was_told() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    let begin = "BEGIN; SET LOCAL shoal.report_gtid = on; SET LOCAL shoal.gtid = 'main/-80.1:5,main/-80.1:?'";
    told(&mut socket, begin).await;
    assert_eq!(told(&mut socket, "COMMIT").await.1.as_deref(), Some("main/-80.1:5,main/-80.1:?"));
    told(&mut socket, begin).await;
    told(&mut socket, "SELECT count(*) FROM t").await;
    let read = told(&mut socket, "COMMIT").await.1.unwrap();
    assert!(read.contains("main/-80.1:") && !read.contains('?'), "{read}");
    assert_eq!(told(&mut socket, "SET shoal.report_gtid = on; BEGIN; COMMIT").await.1, Some(read));
}

/// What no shard has heard of needn't be asked of any.
#[tokio::test]
async fn sequences_and_what_is_so_already_ask_no_shard() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    for sql in [
        "CREATE SEQUENCE q",
        "ALTER SEQUENCE s RESTART WITH 7",
        "SELECT nextval('s')",
        "CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY)",
        "DROP TABLE IF EXISTS nothing",
        "DROP SEQUENCE s",
    ] {
        client.batch_execute(sql).await.unwrap();
        assert_eq!(server.fake.requests.lock().len(), 0, "{sql}");
    }
}
